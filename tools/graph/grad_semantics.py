"""What the operators of a training step compute, in numpy: the loss, the backward operators, the optimizer.

Companion of `semantics.py`: same signature, same `Place`; `run` here knows the operators of both files. A backward operator
reads the gradient of the forward operator's output first, then what it needs of the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tools.graph import semantics
from tools.graph.heads import KV_HEADS
from tools.graph.ir import Op
from tools.graph.semantics import OAI_ALPHA, OAI_LIMIT, RUN, Array, Place, align

Dims = Sequence[tuple[str, ...]]


def run(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    """Value of `op.output`; forward, backward and optimizer operators alike."""
    return (GRAD_RUN.get(op.kind) or RUN[op.kind])(op, args, place, dims)


def _sum_over(x: Array, have: Sequence[str], want: Sequence[str]) -> Array:
    """`x` summed over the dims that `want` lacks, axes in the order of `want`."""
    axes = tuple(i for i, d in enumerate(have) if d not in want)
    return align(x.sum(axis=axes), [d for d in have if d in want], want)


# ------------------------------------------------------------------------------------------------------------- the loss


def _mask_vocab(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    real = place.index(dims[0][-1]) < op.attrs["vocab"]
    return np.where(real, args[0], -np.inf)


def _labelled(labels: Array, place: Place, dim: str) -> Array:
    """[batch_size, seq_len, vocabulary held here]: True at each token's label."""
    return labels[..., None] == place.index(dim)


def _pick(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    return np.where(_labelled(args[1], place, dims[0][-1]), args[0], 0.0).sum(-1)


def _pick_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    return _labelled(args[1], place, place.out_dims[-1]) * args[0][..., None]


def _nll(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    total, top, target = args
    return np.log(total) + top - target


# ----------------------------------------------------------------------------------------------------- backward operators


def _same(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    return args[0]


def _mask_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    zero = replace_kind(op, "mask_vocab" if op.fn == "vocab" else "mask")
    return np.where(np.isfinite(RUN_MASK[zero.kind](zero, [np.zeros_like(args[0])], place, dims)), args[0], 0.0)


def replace_kind(op: Op, kind: Any) -> Op:
    return replace(op, kind=kind)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1.0 + semantics._erf(x / np.sqrt(2.0)))


def _gelu_tanh_grad(x: Array) -> Array:
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)


def _silu_grad(x: Array, a: float = 1.0) -> Array:
    s = semantics._sigmoid(a * x)
    return s * (1 + a * x * (1 - s))


DERIVATIVE: dict[str, Callable[[Array, Any], Array]] = {
    "softcap": lambda x, a: 1 - np.tanh(x / a["c"]) ** 2,
    "silu": lambda x, a: _silu_grad(x),
    "gelu": lambda x, a: _normal_cdf(x) + x * np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi),
    "gelu_tanh": lambda x, a: _gelu_tanh_grad(x),
    "relu": lambda x, a: (x > 0).astype(float),
    "relu2": lambda x, a: 2.0 * np.maximum(x, 0.0),
    "softplus": lambda x, a: semantics._sigmoid(x),
    "sigmoid": lambda x, a: semantics._sigmoid(x) * semantics._sigmoid(-x),
    "swiglu_oai": lambda x, a: np.where(x < OAI_LIMIT, _silu_grad(np.minimum(x, OAI_LIMIT), OAI_ALPHA), 0.0),
    "clip": lambda x, a: (np.abs(x) < a["limit"]).astype(float),
    "clamp_add_one": lambda x, a: (np.abs(x) < OAI_LIMIT).astype(float),
}


def _unary_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    with np.errstate(invalid="ignore"):
        slope = DERIVATIVE[op.fn](args[1], op.attrs)
    return align(args[0], dims[0], place.out_dims) * slope


def _normalised(op: Op, x: Array) -> tuple[Array, Array]:
    """(x / scale, 1 / scale) of a norm over the last dim."""
    if op.fn == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    inv = 1.0 / np.sqrt((x * x).mean(-1, keepdims=True) + op.attrs["eps"])
    return x * inv, inv


def _norm_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    g, x, *w = args
    unit, inv = _normalised(op, x)
    g = g * (w[0] + op.attrs["offset"]) if w else g
    out = g - unit * (g * unit).mean(-1, keepdims=True)
    if op.fn == "layernorm":
        out = out - g.mean(-1, keepdims=True)
    return out * inv


def _norm_weight_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    return _sum_over(args[0] * _normalised(op, args[1])[0], dims[0], place.out_dims)


def _sum_to(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    return _sum_over(args[0], dims[0], place.out_dims)


def _root(op: Op, ssq: Array, dims: Sequence[str], want: Sequence[str]) -> Array:
    """1 / root mean square, aligned to `want`."""
    return align(1.0 / np.sqrt(ssq / op.attrs["count"] + op.attrs["eps"]), dims, want)


def _rms_apply_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    return args[0] * _root(op, args[1], dims[1], dims[0]) * args[2]


def _rms_ssq_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    g, x, ssq, w = args
    return (
        _sum_over(-0.5 * g * x * w * _root(op, ssq, dims[2], dims[0]) ** 3, dims[0], place.out_dims) / op.attrs["count"]
    )


def _rms_weight_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    return _sum_over(args[0] * args[1] * _root(op, args[2], dims[2], dims[0]), dims[0], place.out_dims)


def _softmax_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    g, y = args
    return y * (g - (g * y).sum(dims[0].index(op.attrs["dim"]), keepdims=True))


def _sink_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    """The sink's own probability is what the others leave; its logit only takes away from them."""
    g, y = args
    axis = dims[0].index(op.attrs["dim"])
    kept = tuple(d for d in dims[0] if d != op.attrs["dim"])
    return _sum_over(-(1.0 - y.sum(axis)) * (g * y).sum(axis), kept, place.out_dims)


def _rope_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    """A rotation's transpose is the rotation back: by the negative position."""

    def index(dim: str) -> Array:
        return -place.index(dim) if dim == "seq_len" else place.index(dim)

    return RUN["rope"](op, args, replace(place, index=index), dims)


def _repeat_heads_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    """Sums the query heads of each KV head that this shard holds."""
    axis, held = dims[0].index("heads"), place.index(next(d for d in place.out_dims if d in KV_HEADS))
    mine = place.index("heads") // op.attrs["group"] == held[:, None]
    return np.moveaxis(np.tensordot(mine.astype(float), args[0], axes=(1, axis)), 0, axis)


def _gather_scores_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    return np.einsum("bsk,bske->bse", args[0], semantics._onehot(args[1], place))


def _renormalise_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    g, x = args
    total = x.sum(-1, keepdims=True) + 1e-20
    return (g - (g * x).sum(-1, keepdims=True) / total) / total


def _route_dot(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    """Per chosen expert, the product of a token with what that expert has of it."""
    x, y, ids = args
    return np.einsum("bse,bske->bsk", np.einsum("bsh,ebsh->bse", x, y), semantics._onehot(ids, place))


def _embed_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    ids, g = args
    rows = place.index(place.out_dims[0])
    mine = (ids.reshape(-1)[None] == rows[:, None]).astype(float)
    return mine @ g.reshape(-1, g.shape[-1])


def _pos_grad(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    out = np.zeros((len(place.index(place.out_dims[0])), args[0].shape[-1]))
    np.add.at(out, place.index("seq_len") + op.attrs["offset"], args[0].sum(0))
    return out


# ------------------------------------------------------------------------------------------------------------ optimizer


def _adam_step(a: Any, w: Array, m: Array, v: Array) -> Array:
    """AdamW (arXiv 1711.05101), bias-corrected for step `a["step"]`."""
    mean, square = m / (1 - a["beta1"] ** a["step"]), v / (1 - a["beta2"] ** a["step"])
    return w - a["lr"] * (mean / (np.sqrt(square) + a["eps"]) + a["decay"] * w)


OPTIMIZER: dict[str, Callable[..., Array]] = {
    "adam_mean": lambda a, g, m: a["beta1"] * m + (1 - a["beta1"]) * g,
    "adam_square": lambda a, g, v: a["beta2"] * v + (1 - a["beta2"]) * g * g,
    "adam_step": _adam_step,
    "sgd_step": lambda a, w, g: w - a["lr"] * (g + a["decay"] * w),
    "cast": lambda a, w: w,
}


def _optimizer(op: Op, args: Sequence[Array], place: Place, dims: Dims) -> Array:
    return OPTIMIZER[op.fn](op.attrs, *args)


RUN_MASK: dict[str, Callable[..., Array]] = {"mask": RUN["mask"], "mask_vocab": _mask_vocab}

GRAD_RUN: dict[str, Callable[[Op, Sequence[Array], Place, Any], Array]] = {
    "as_keys": _same, "mask_vocab": _mask_vocab, "pick": _pick, "nll": _nll, "as_keys_grad": _same, "mask_grad": _mask_grad,
    "pick_grad": _pick_grad, "unary_grad": _unary_grad, "norm_grad": _norm_grad, "norm_weight_grad": _norm_weight_grad,
    "sum_to": _sum_to, "rms_apply_grad": _rms_apply_grad, "rms_ssq_grad": _rms_ssq_grad, "rms_weight_grad": _rms_weight_grad,
    "softmax_grad": _softmax_grad, "sink_grad": _sink_grad, "rope_grad": _rope_grad, "repeat_heads_grad": _repeat_heads_grad,
    "gather_scores_grad": _gather_scores_grad, "renormalise_grad": _renormalise_grad, "route_dot": _route_dot,
    "embed_grad": _embed_grad, "pos_grad": _pos_grad, "optimizer": _optimizer,
}  # fmt: skip
