"""Linear attention: layers whose state is a matrix per head instead of a cache that grows.

All kinds are one recurrence, S_t = exp(g_t) S_{t-1} + k_t v_t^T with the output q_t^T S_t, and differ in how g, k and v
come about (`tools.spec.model.LinearAttention`). The operator `recur` names the state after every position; inside its
kernel it costs no memory, what is kept between steps is the last one.
"""

from __future__ import annotations

from typing import Any

from tools.graph.ir import BodyBuilder
from tools.graph.parts import X, linear, rms, scaled, step
from tools.spec.model import LinearAttention, ModelSpec

BS = ("batch_size", "seq_len")
PROJECT: dict[str, Any] = {"kernel": "lin_in_proj", "module": "linear_attn.in_proj"}
CONV: dict[str, Any] = {"kernel": "lin_conv", "module": "linear_attn.conv1d"}
GATE: dict[str, Any] = {"kernel": "lin_gate", "module": "linear_attn.gate"}
CORE: dict[str, Any] = {"kernel": "linear_attention", "module": "linear_attn.core"}
NORM: dict[str, Any] = {"kernel": "lin_norm", "module": "linear_attn.norm"}


def linear_sizes(a: LinearAttention) -> dict[str, int]:
    """Lengths of the dims of linear attention. Value heads are `lin_heads` x `lin_group`."""
    return {
        "lin_heads": a.dealt_heads, "lin_group": a.num_value_heads // a.dealt_heads, "lin_dk": a.key_dim,
        "lin_dv": a.value_dim, "lin_rank": a.gate_rank or 0, "lin_select": (a.gate_rank or 0) + 2 * a.key_dim,
        "conv": a.conv_kernel,
        "conv_past": a.conv_kernel - 1,
    }  # fmt: skip


def value_heads(a: LinearAttention) -> tuple[str, ...]:
    """Dims that together are the value heads."""
    return ("lin_heads",) if a.num_value_heads == a.dealt_heads else ("lin_heads", "lin_group")


def linear_attention(b: BodyBuilder, model: ModelSpec, h: str) -> str:
    """The block in the place of attention: `h` [batch_size, seq_len, hidden] → the same."""
    a = model.linear
    assert a is not None
    blocks = {"mamba1": _mamba1, "mamba2": _mamba2, "short_conv": _short_conv}
    if a.kind in blocks:
        return blocks[a.kind](b, model, a, h)
    keys, heads = ("lin_heads", "lin_dk"), value_heads(a)
    values = (*heads, "lin_dv")
    q, k = (linear(b, f"lin_{n}", h, ("hidden", *keys), (*BS, *keys), **PROJECT) for n in "qk")
    v = linear(b, "lin_v", h, ("hidden", *values), (*BS, *values), **PROJECT)
    z = _output_gate(b, a, h, values)
    q, k, v = (_convolved(b, a, f"lin_{n}", x) for n, x in (("q", q), ("k", k), ("v", v)))
    _, g = _decay(b, a, h, heads)
    beta = step(
        b, "lin_beta", "sigmoid", (linear(b, "lin_b", h, ("hidden", *heads), (*BS, *heads), **PROJECT),), **GATE
    )
    q, k = (
        b.op(f"lin_{n}_l2", "norm", (x,), (*BS, *keys), fn="l2", attrs={"eps": 1e-6}, **CORE)
        for n, x in (("q", q), ("k", k))
    )
    q = step(b, "lin_q_scaled", "scale", (q,), attrs={"c": a.key_dim**-0.5}, **CORE)
    states = b.op(
        "lin_states", "recur", (k, v, g, beta), (*BS, *heads, "lin_dk", "lin_dv"), fn="delta", dtype="fp32", **CORE
    )
    o = b.op("lin_out", "einsum", (q, states), (*BS, *values), **CORE)
    o = rms(b, "lin_norm", o, "lin_dv", eps=model.norm_eps, **NORM)
    o = step(b, "lin_gated", "mul", (o, z), **NORM)
    return linear(b, "lin_o", o, (*values, "hidden"), X, kernel="lin_out_proj", module="linear_attn.out_proj")


def _mamba2(b: BodyBuilder, model: ModelSpec, a: LinearAttention, h: str) -> str:
    """State-space duality (arXiv 2405.21060, §7): dt·x is added under the key B and read by the query C; D·x goes past the
    state; the gate comes before the norm, which is over the value heads of a group."""
    keys, heads = ("lin_dk",) if a.one_key else ("lin_heads", "lin_dk"), value_heads(a)
    values = (*heads, "lin_dv")
    z = _output_gate(b, a, h, values)
    x = linear(b, "lin_v", h, ("hidden", *values), (*BS, *values), **PROJECT)
    k, q = (linear(b, f"lin_{n}", h, ("hidden", *keys), (*BS, *keys), **PROJECT) for n in "kq")
    x, k, q = (scaled(b, f"lin_{n}_scaled", t, _scale(a, n), **CONV) for n, t in (("v", x), ("k", k), ("q", q)))
    x, k, q = (_convolved(b, a, f"lin_{n}", t) for n, t in (("v", x), ("k", k), ("q", q)))
    dt, g = _decay(b, a, h, heads)
    added = step(b, "lin_added", "mul", (x, dt), **CORE)
    states = b.op("lin_states", "recur", (k, added, g), (*BS, *heads, "lin_dk", "lin_dv"), dtype="fp32", **CORE)
    o = b.op("lin_out", "einsum", (q, states), (*BS, *values), **CORE)
    past = step(b, "lin_skip", "mul", (x, b.weight("lin_D", heads, "vector")), **CORE)
    o = step(b, "lin_skip_add", "add", (o, past), **CORE)
    o = step(b, "lin_gated", "mul", (o, z), **NORM)
    o = _group_norm(b, model, a, o, values) if a.output_norm else o
    o = scaled(b, "lin_out_scaled", o, a.out_scale, **NORM)
    return linear(b, "lin_o", o, (*values, "hidden"), X, kernel="lin_out_proj", module="linear_attn.out_proj")


def _short_conv(b: BodyBuilder, model: ModelSpec, a: LinearAttention, h: str) -> str:
    """c · conv(b · x), all three projected from the input; the few inputs that the convolution still sees are all its state."""
    ch: tuple[str, ...] = ("lin_heads",)
    lin: dict[str, Any] = {**PROJECT, "bias": a.conv_bias}
    before, after, x = (linear(b, f"lin_{n}", h, ("hidden", *ch), (*BS, *ch), **lin) for n in ("b", "c", "v"))
    x = step(b, "lin_gated_in", "mul", (before, x), **CONV)
    inputs: tuple[str, ...] = (x, b.weight("lin_v_conv.weight", ("conv", *ch), "vector"))
    if a.conv_bias:
        inputs = (*inputs, b.weight("lin_v_conv.bias", ch, "vector"))
    y = b.op("lin_v_conv", "conv", inputs, (*BS, *ch), **CONV)
    y = step(b, "lin_gated", "mul", (after, y), **CONV)
    out: dict[str, Any] = {"kernel": "lin_out_proj", "module": "linear_attn.out_proj", "bias": a.conv_bias}
    return linear(b, "lin_o", y, (*ch, "hidden"), X, **out)


def _mamba1(b: BodyBuilder, model: ModelSpec, a: LinearAttention, h: str) -> str:
    """Selective state spaces (arXiv 2312.00752, §3.2): step size, key B and query C are projected from the convolved channels;
    ranks that hold some channels each sum theirs, in one projection. Jamba norms all three (arXiv 2403.19887)."""
    ch: tuple[str, ...] = ("lin_heads",)
    wide = (*BS, *ch)
    select: dict[str, Any] = {"kernel": "lin_select", "module": "linear_attn.x_proj"}
    z = _output_gate(b, a, h, ch)
    x = _convolved(b, a, "lin_v", linear(b, "lin_v", h, ("hidden", *ch), wide, **PROJECT))
    all_three = linear(
        b, "lin_x", x, (*ch, "lin_select"), (*BS, "lin_select"), kernel="lin_x_proj", module=select["module"]
    )
    rank = a.gate_rank or 0
    cuts = (("dt", "lin_rank", 0, rank), ("k", "lin_dk", rank, a.key_dim), ("q", "lin_dk", rank + a.key_dim, a.key_dim))
    low, k, q = (
        rms(
            b, f"lin_{n}_norm",
            b.op(f"lin_{n}", "part", (all_three,), (*BS, d), fn=n, attrs={"first": at, "length": size}, **select), d,
            eps=model.norm_eps, **select,
        )
        for n, d, at, size in cuts
    )  # fmt: skip
    dt = linear(b, "lin_dt_proj", low, ("lin_rank", *ch), wide, kernel="lin_gate_proj", module="linear_attn.dt_proj")
    dt = step(b, "lin_dt_biased", "add", (dt, b.weight("lin_dt_bias", ch, "vector")), dtype="fp32", **GATE)
    dt = step(b, "lin_softplus", "softplus", (dt,), dtype="fp32", **GATE)
    rates = b.weight("lin_A_log", (*ch, "lin_dk"), "vector")
    g = b.op("lin_decay", "elementwise", (dt, rates), (*wide, "lin_dk"), fn="decay", dtype="fp32", **CORE)
    added = step(b, "lin_added", "mul", (x, dt), **CORE)
    states = b.op("lin_states", "recur", (k, added, g), (*wide, "lin_dk"), dtype="fp32", **CORE)
    o = b.op("lin_out", "einsum", (q, states), wide, **CORE)
    past = step(b, "lin_skip", "mul", (x, b.weight("lin_D", ch, "vector")), **CORE)
    o = step(b, "lin_skip_add", "add", (o, past), **CORE)
    o = step(b, "lin_gated", "mul", (o, z), **NORM)
    return linear(b, "lin_o", o, (*ch, "hidden"), X, kernel="lin_out_proj", module="linear_attn.out_proj")


def _scale(a: LinearAttention, name: str) -> float:
    """The constant on a projection: of the gate z, the value, key and query, and the step size a."""
    return 1.0 if a.scales is None else a.scales["zvkqa".index(name)]


def _group_norm(b: BodyBuilder, model: ModelSpec, a: LinearAttention, x: str, values: tuple[str, ...]) -> str:
    """RMSNorm over the value heads of a group. Ranks have whole groups; where there is one, each sums the squares of its
    heads, so that the sum is its own kernel and gets its all-reduce."""
    kept, kernel = (BS, "lin_norm_sumsq") if a.one_key else ((*BS, "lin_heads"), NORM["kernel"])
    ssq = b.op("lin_norm_sumsq", "sumsq", (x,), kept, kernel=kernel, module=NORM["module"], dtype="fp32")
    attrs = {"eps": model.norm_eps, "count": a.num_value_heads // a.num_key_heads * a.value_dim}
    return b.op(
        "lin_norm",
        "rms_apply",
        (x, ssq, b.weight("lin_norm.weight", values, "vector")),
        (*BS, *values),
        attrs=attrs,
        **NORM,
    )


def _output_gate(b: BodyBuilder, a: LinearAttention, h: str, values: tuple[str, ...]) -> str:
    """What the normed output is multiplied by."""
    if a.kind == "kda" and a.gate_rank is not None:
        low = linear(b, "lin_g_a", h, ("hidden", "lin_rank"), (*BS, "lin_rank"), **PROJECT)
        z = linear(
            b,
            "lin_g_b",
            low,
            ("lin_rank", *values),
            (*BS, *values),
            kernel="lin_gate_proj",
            module="linear_attn.g_b_proj",
        )
        return step(b, "lin_gate", "sigmoid", (z,), **NORM)
    z = linear(b, "lin_z", h, ("hidden", *values), (*BS, *values), **PROJECT)
    z = scaled(b, "lin_z_scaled", z, _scale(a, "z"), **NORM)
    return step(b, "lin_gate", "sigmoid" if a.kind == "kda" else "silu", (z,), **NORM)


def _convolved(b: BodyBuilder, a: LinearAttention, name: str, x: str) -> str:
    dims = b.tensors[x].dims
    inputs: tuple[str, ...] = (x, b.weight(f"{name}_conv.weight", ("conv", *dims[2:]), "vector"))
    if a.conv_bias:
        inputs = (*inputs, b.weight(f"{name}_conv.bias", dims[2:], "vector"))
    y = b.op(f"{name}_conv", "conv", inputs, dims, **CONV)
    return step(b, f"{name}_act", "silu", (y,), **CONV)


def _decay(b: BodyBuilder, a: LinearAttention, h: str, heads: tuple[str, ...]) -> tuple[str, str]:
    """dt = softplus(a + dt_bias), and the log of what a step leaves of the state, -exp(A_log) dt; per head, or per key
    channel (kda)."""
    dims = ("lin_heads", "lin_dk") if a.kind == "kda" else heads
    if a.kind == "kda" and a.gate_rank is None:
        raw = linear(b, "lin_f", h, ("hidden", *dims), (*BS, *dims), **PROJECT)
    elif a.kind == "kda":
        low = linear(b, "lin_f_a", h, ("hidden", "lin_rank"), (*BS, "lin_rank"), **PROJECT)
        raw = linear(
            b, "lin_f_b", low, ("lin_rank", *dims), (*BS, *dims), kernel="lin_gate_proj", module="linear_attn.f_b_proj"
        )
    else:
        raw = linear(b, "lin_a", h, ("hidden", *dims), (*BS, *dims), **PROJECT)
        raw = scaled(b, "lin_a_scaled", raw, _scale(a, "a"), **GATE)
    raw = step(b, "lin_dt", "add", (raw, b.weight("lin_dt_bias", dims, "vector")), dtype="fp32", **GATE)
    if a.decay_bound is not None:
        rates = b.weight("lin_A_log", heads, "vector")
        raw = step(b, "lin_rate", "decay", (raw, rates), dtype="fp32", **GATE)
        raw = step(b, "lin_rate_up", "scale", (raw,), attrs={"c": -1.0}, dtype="fp32", **GATE)
        raw = step(b, "lin_share", "sigmoid", (raw,), dtype="fp32", **GATE)
        return raw, step(b, "lin_decay", "scale", (raw,), attrs={"c": a.decay_bound}, dtype="fp32", **GATE)
    soft = step(b, "lin_softplus", "softplus", (raw,), dtype="fp32", **GATE)
    return soft, step(b, "lin_decay", "decay", (soft, b.weight("lin_A_log", heads, "vector")), dtype="fp32", **GATE)
