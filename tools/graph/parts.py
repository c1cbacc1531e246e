"""Operators that every block is made of: linear layers, norms over one inner dim, unary and binary steps."""

from __future__ import annotations

from typing import Any

from tools.graph.ir import BodyBuilder, DTypeRole

X = ("batch_size", "seq_len", "hidden")


def linear(
    b: BodyBuilder, name: str, x: str, w_dims: tuple[str, ...], out: tuple[str, ...], *,
    kernel: str, module: str, bias: bool = False, dtype: DTypeRole = "matrix", routed: bool = False,
) -> str:  # fmt: skip
    """`x` times a weight of dims `w_dims`; dims that `out` lacks are contracted."""
    w = b.weight(f"{name}.weight", w_dims, dtype)
    y = b.op(name, "einsum", (x, w), out, kernel=kernel, module=module, routed=routed)
    if bias:
        bias_dims = tuple(d for d in w_dims if d in out and (d not in b.tensors[x].dims or d == "experts"))
        wb = b.weight(f"{name}.bias", bias_dims, "vector")
        y = b.op(f"{name}_bias", "elementwise", (y, wb), out, kernel=kernel, module=module, fn="add", routed=routed)
    return y


def rms(
    b: BodyBuilder, name: str, x: str, dim: str, *, eps: float, offset: float = 0.0, kernel: str, module: str
) -> str:
    """RMSNorm over one inner dim whatever the model's block norm is (QK-norm, MLA latents, gated norms)."""
    w = b.weight(f"{name}.weight", (dim,), "vector")
    attrs = {"eps": eps, "offset": offset}
    return b.op(name, "norm", (x, w), b.tensors[x].dims, kernel=kernel, module=module, fn="rmsnorm", attrs=attrs)


def step(b: BodyBuilder, name: str, fn: str, inputs: tuple[str, ...], *, kernel: str, module: str, **more: Any) -> str:
    """An elementwise operator; its output has the dims of the first input."""
    dims = b.tensors[inputs[0]].dims
    return b.op(name, "elementwise", inputs, dims, kernel=kernel, module=module, fn=fn, **more)


def scaled(b: BodyBuilder, name: str, x: str, c: float, *, kernel: str, module: str) -> str:
    """`x` times a constant; `x` itself where that is 1."""
    return x if c == 1.0 else step(b, name, "scale", (x,), attrs={"c": c}, kernel=kernel, module=module)
