"""What each operator computes, in numpy: the executable spec of the graph.

The same function runs the unpartitioned model and one device's shard of it. A shard knows where it lies through
`Place.index(dim)`: the global positions of its part of a dim (RoPE, masks, vocabulary offsets need it); the unpartitioned
model lies everywhere. Routed tensors are computed densely here: every expert sees all tokens, zero where not routed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tools.graph.heads import KV_HEADS
from tools.graph.ir import Body, Op
from tools.graph.rope import attention_factor, inverse_frequencies

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Place:
    """Where a shard lies: `index(dim)` gives global positions; `past` tokens are in the cache already."""

    index: Callable[[str], Array]
    past: int
    body: Body
    out_dims: tuple[str, ...]
    length: int = 0
    """Positions that there are after this step, on all devices; 0: as many as `index` reaches."""
    layer: int = 0
    """Index of the layer that runs."""

    def dims(self, tensor: str) -> tuple[str, ...]:
        return self.body.tensors[tensor].dims


def run(op: Op, args: Sequence[Array], place: Place, dims: Sequence[tuple[str, ...]]) -> Array:
    """Value of `op.output`. `dims[i]` names the axes of `args[i]`."""
    return RUN[op.kind](op, args, place, dims)


# ------------------------------------------------------------------------------------------------------- broadcasting


def align(x: Array, have: Sequence[str], want: Sequence[str]) -> Array:
    """Axes of `x` reordered to `want`, with length-1 axes where `x` lacks the dim."""
    order = [have.index(d) for d in want if d in have]
    x = np.transpose(x, order)
    return x.reshape([x.shape[[d for d in want if d in have].index(d)] if d in have else 1 for d in want])


def _letters(dims: Sequence[Sequence[str]]) -> dict[str, str]:
    names = list(dict.fromkeys(d for ds in dims for d in ds))
    return {d: chr(ord("a") + i) for i, d in enumerate(names)}


def einsum(args: Sequence[Array], dims: Sequence[tuple[str, ...]], out: tuple[str, ...]) -> Array:
    """Named einsum: dims that are missing from `out` are contracted."""
    m = _letters([*dims, out])
    eq = ",".join("".join(m[d] for d in ds) for ds in dims) + "->" + "".join(m[d] for d in out)
    return np.einsum(eq, *args, optimize=len(args) > 2 or args[0].ndim + args[1].ndim > 5)


# ------------------------------------------------------------------------------------------------------------ operators


def _assign_copies(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    """Slots for chosen experts: expert e lies in slots e, e + E, e + 2E, …; token t takes the one whose turn it is."""
    (ids,), experts, slots = args, op.attrs["num_experts"], op.attrs["num_slots"]
    token = place.index("batch_size")[:, None, None] + place.index("seq_len")[None, :, None]
    copies = (slots - ids + experts - 1) // experts
    return ids + token % copies * experts


def _embed(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    ids, table = args
    rows = place.index(dims[1][0])
    local = np.full(int(rows.max(initial=-1)) + 2, -1)
    local[rows] = np.arange(len(rows))
    slot = np.where(ids < len(local), local[np.minimum(ids, len(local) - 1)], -1)
    held = (slot >= 0)[(..., *(None,) * (table.ndim - 1))]
    return np.where(held, table[np.maximum(slot, 0)], 0.0)


def _pos_lookup(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    ids, table = args
    rows = table[place.index("seq_len") + op.attrs["offset"]]
    return np.broadcast_to(rows, (*ids.shape, table.shape[-1])).copy()


def _einsum(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    return einsum(args, dims, place.out_dims)


def _gelu(x: Array) -> Array:
    # Abramowitz-Stegun is not accurate enough for 1e-9; math.erf vectorised is.
    return 0.5 * x * (1.0 + _erf(x / np.sqrt(2.0)))


def _erf(x: Array) -> Array:
    from math import erf

    return np.frompyfunc(erf, 1, 1)(x).astype(float)


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


OAI_ALPHA, OAI_LIMIT = 1.702, 7.0
"""Constants of gpt-oss's clamped SwiGLU (openai/gpt-oss, torch/model.py)."""


def _clamped_glu(x: Array) -> Array:
    g = np.minimum(x, OAI_LIMIT)
    return g * _sigmoid(OAI_ALPHA * g)


def _xielu(x: Array, above: Array, below: Array) -> Array:
    """arXiv 2411.13010 with beta = 1/2: a parabola above zero, an exponential below, each bent by a scalar."""
    up, down = np.logaddexp(0.0, above), 0.5 + np.logaddexp(0.0, below)
    return 0.5 * x + np.where(x > 0, up * x * x, (np.expm1(np.minimum(x, -1e-6)) - x) * down)


UNARY: dict[str, Callable[[Array, Any], Array]] = {
    "scale": lambda x, a: x * a["c"],
    "softcap": lambda x, a: a["c"] * np.tanh(x / a["c"]),
    "silu": lambda x, a: x * _sigmoid(x),
    "gelu": lambda x, a: _gelu(x),
    "gelu_tanh": lambda x, a: 0.5 * x * (1.0 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x, a: np.maximum(x, 0.0),
    "relu2": lambda x, a: np.maximum(x, 0.0) ** 2,
    "softplus": lambda x, a: np.logaddexp(0.0, x),
    "clip": lambda x, a: np.clip(x, -a["limit"], a["limit"]),
    "sigmoid": lambda x, a: _sigmoid(x),
    "swiglu_oai": lambda x, a: _clamped_glu(x),
    "clamp_add_one": lambda x, a: np.clip(x, -OAI_LIMIT, OAI_LIMIT) + 1.0,
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add, "mul": np.multiply, "div": np.divide, "maximum": np.maximum, "exp_sub": lambda a, b: np.exp(a - b),
    "decay": lambda x, log_rate: -np.exp(log_rate) * x,
}  # fmt: skip
TERNARY: dict[str, Callable[[Array, Array, Array], Array]] = {
    "xielu": lambda x, above, below: _xielu(x, above, below),
}
LINEAR_UNARY = frozenset({"scale"})
"""Functions that commute with a sum, and so may act before a pending reduction."""


def _elementwise(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    if op.fn in UNARY:
        return UNARY[op.fn](args[0], op.attrs)
    aligned = [align(x, ds, place.out_dims) for x, ds in zip(args, dims, strict=True)]
    return TERNARY[op.fn](*aligned) if op.fn in TERNARY else BINARY[op.fn](*aligned)


def _norm(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    x, eps = args[0], op.attrs["eps"]
    if op.fn == "l2":
        return x / np.sqrt((x * x).sum(-1, keepdims=True) + eps)
    w = args[1] + op.attrs["offset"] if len(args) > 1 else 1.0
    if op.fn == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w
    return y + args[2] if len(args) == 3 else y


def conv(op: Op, args: Sequence[Array], place: Place, dims: Any, state: Array | None) -> tuple[Array, Array]:
    """Causal convolution of every channel with itself, and the inputs that the next position will still see."""
    x, w = args[0], args[1]
    reach = w.shape[0] - 1
    before = np.zeros((x.shape[0], reach, *x.shape[2:])) if state is None else state
    seen = np.concatenate([before, x], axis=1)
    y = sum((w[j] * seen[:, j : j + x.shape[1]] for j in range(reach + 1)), np.zeros_like(x))
    return (y + args[2] if len(args) > 2 else y), seen[:, x.shape[1] :]


def recur(op: Op, args: Sequence[Array], place: Place, dims: Any, state: Array | None) -> tuple[Array, Array]:
    """The state after every position: decayed by exp(g), then key x value is added; with `delta` the value less what the
    state already answers to the key, times beta."""
    out = place.out_dims
    k, v, g, *beta = (align(x, ds, out) for x, ds in zip(args, dims, strict=True))
    keys = out.index("lin_dk") - 1  # a step has no seq_len
    shape = np.broadcast_shapes(k.shape, v.shape, g.shape)
    states = np.empty(shape)
    s = np.zeros((shape[0], *shape[2:])) if state is None else state
    for t in range(shape[1]):
        s = s * np.exp(g[:, t])
        new = v[:, t]
        if op.fn == "delta":
            new = (new - (s * k[:, t]).sum(keys, keepdims=True)) * beta[0][:, t]
        s = s + k[:, t] * new
        states[:, t] = s
    return states, s


STATEFUL = {"conv": conv, "recur": recur}
"""Operators that carry something of fixed size from one step to the next: (op, inputs, place, dims, state or None before
the first) → (output, state)."""


def _sumsq(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    return (args[0] ** 2).sum(axis=tuple(dims[0].index(d) for d in dims[0] if d not in place.out_dims))


def _reduce(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    axis = dims[0].index(op.attrs["dim"])
    return args[0].max(axis, initial=-np.inf) if op.fn == "max" else args[0].sum(axis)


def _rms_apply(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    x, ssq, w = args
    mean = ssq / op.attrs["count"]
    return x * align(1.0 / np.sqrt(mean + op.attrs["eps"]), dims[1], dims[0]) * w


def _softmax(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    x, axis = args[0], dims[0].index(op.attrs["dim"])
    top = x.max(axis, keepdims=True, initial=-np.inf)
    if op.fn == "sinks":
        sink = align(args[1], dims[1], [d if d != op.attrs["dim"] else "" for d in dims[0]])
        top = np.maximum(top, sink)
        e = np.exp(x - top)
        return e / (e.sum(axis, keepdims=True) + np.exp(sink - top))
    e = np.exp(x - top)
    return e / e.sum(axis, keepdims=True)


def _mask(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    x, want = args[0], dims[0]
    q, k = place.index("seq_len")[:, None], place.index("kv_len")[None, :]
    if op.fn == "alibi":
        slopes = alibi_slopes(op.attrs["num_heads"])[place.index("heads")]
        bias = slopes[:, None, None] * k[None].astype(float)
        return x + align(bias + 0.0 * q[None], ("heads", "seq_len", "kv_len"), want)
    if op.fn == "selected":
        chosen = (args[1][..., None] == place.index("kv_len") // op.attrs.get("block", 1)).any(-2)
        return np.where(align(chosen, (*dims[1][:-1], "kv_len"), want), x, -np.inf)
    if op.fn == "local_blocks":
        back = q // op.attrs["block"] - k // op.attrs["block"]
        return np.where(align((back >= 0) & (back < op.attrs["count"]), ("seq_len", "kv_len"), want), np.inf, x)
    seen = k <= q
    if op.attrs.get("window"):
        seen &= k > q - op.attrs["window"]
    if op.attrs.get("chunk"):
        seen &= k // op.attrs["chunk"] == q // op.attrs["chunk"]
    return np.where(align(seen, ("seq_len", "kv_len"), want), x, -np.inf)


def alibi_slopes(num_heads: int) -> Array:
    """Geometric slopes of ALiBi (arXiv 2108.12409, §3), with the interleaving for counts that are no power of two."""
    base = 2 ** int(np.floor(np.log2(num_heads)))
    slopes = [2 ** (-8 * (i + 1) / base) for i in range(base)]
    slopes += [2 ** (-8 * (2 * i + 1) / (2 * base)) for i in range(num_heads - base)]
    return np.array(slopes)


def _rope(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    """Pair i turns by position x its frequency. A rank may hold some pairs only: `index` says which."""
    x, a = args[0], op.attrs
    if op.fn == "temperature":
        return x * align(_temperature(place.index("seq_len"), a), ("seq_len",), dims[0])
    held = place.index(a["dim"])
    whole = a["rotary_dim"] or a["size"]
    rot = min(whole, len(held))
    pair = held[:rot:2] // 2 if a["interleaved"] else held[: rot // 2]
    at = place.index("seq_len")
    length = place.length or int(np.abs(at).max(initial=0)) + 1
    angle = at[:, None] * inverse_frequencies(a["theta"], whole, a["scaling"], length)[pair][None]
    shape = [x.shape[i] if d == "seq_len" else 1 for i, d in enumerate(dims[0][:-1])] + [rot // 2]
    stretch = attention_factor(a["scaling"], length)
    cos, sin = stretch * np.cos(angle).reshape(shape), stretch * np.sin(angle).reshape(shape)
    part, rest = x[..., :rot], x[..., rot:]
    if a["interleaved"]:
        a0, a1 = part[..., 0::2], part[..., 1::2]
        out = np.stack([a0 * cos - a1 * sin, a1 * cos + a0 * sin], axis=-1).reshape(part.shape)
    else:
        a0, a1 = part[..., : rot // 2], part[..., rot // 2 :]
        out = np.concatenate([a0 * cos - a1 * sin, a1 * cos + a0 * sin], axis=-1)
    return np.concatenate([out, rest], axis=-1)


def _temperature(at: Array, a: Any) -> Array:
    """A factor per position that grows with the logarithm of how often `every` positions went by (`Temperature`)."""
    return 1.0 + a["strength"] * np.log1p((np.abs(at) + a["shift"]) // a["every"])


def _repeat_heads(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    """Each query head reads the KV head of its group: head h → kv head h // (heads / kv_heads)."""
    group = op.attrs["group"]
    kv = next(d for d in dims[0] if d in KV_HEADS)
    held, wanted = place.index(kv), place.index("heads") // group
    where = np.searchsorted(held, wanted)
    if len(held) == 0 or (where >= len(held)).any() or (held[where] != wanted).any():
        raise ValueError(f"{op.name}: heads {place.index('heads')} need kv heads {wanted}, device holds {held}")
    return np.take(args[0], where, axis=dims[0].index(kv))


def _topk(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    return np.argsort(-_eligible(args[0], op)[0], axis=-1, kind="stable")[..., : op.attrs["top_k"]]


def _select(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    """The best positions of every query, or blocks of them, -1 where there are fewer."""
    scores = candidates(op, args[0])
    best = np.argsort(-scores, axis=-1, kind="stable")[..., : op.attrs["top_k"]]
    best = np.where(np.isneginf(np.take_along_axis(scores, best, -1)), -1, best)
    short = op.attrs["top_k"] - best.shape[-1]
    return np.pad(best, [(0, 0)] * (best.ndim - 1) + [(0, short)], constant_values=-1) if short > 0 else best


def candidates(op: Op, x: Array) -> Array:
    """What a selection chooses among: every position, or every block, whose positions all have its score."""
    return x[..., :: op.attrs.get("block", 1)]


def _block_max(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    """Every position has the best score of its block; the last block may be short."""
    x, block = args[0], op.attrs["block"]
    starts = np.arange(0, x.shape[-1], block)
    best = np.maximum.reduceat(x, starts, axis=-1)
    return np.repeat(best, block, axis=-1)[..., : x.shape[-1]]


def _of_layer(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    return np.take(args[0], place.layer, axis=dims[0].index("layers"))


def _part(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    return args[0][..., op.attrs["first"] : op.attrs["first"] + op.attrs["length"]]


def _eligible(x: Array, op: Op) -> tuple[Array, Array]:
    """Scores with the experts of rejected groups at -inf, and the group scores: the best expert of a group (DeepSeek-V2)
    or the sum of its best two (DeepSeek-V3)."""
    a = op.attrs
    if a["n_group"] <= 1:
        return x, np.zeros((*x.shape[:-1], 0))
    g = x.reshape(*x.shape[:-1], a["n_group"], x.shape[-1] // a["n_group"])
    score = np.sort(g, axis=-1)[..., -a["group_score_of"] :].sum(-1)
    live = np.zeros(score.shape, bool)
    np.put_along_axis(live, np.argsort(-score, axis=-1, kind="stable")[..., : a["topk_group"]], True, -1)
    return np.where(live[..., None], g, -np.inf).reshape(x.shape), score


def topk_margin(op: Op, x: Array) -> float:
    """Smallest difference of two scores whose order decides the outcome of a top-k."""

    def gap(scores: Array, keep: int) -> float:
        top = -np.sort(-scores, axis=-1)[..., : keep + 1]
        return float(np.abs(np.diff(top, axis=-1)).min(initial=np.inf)) if top.shape[-1] > 1 else float("inf")

    scores, groups = _eligible(x, op)
    return min(
        gap(scores, op.attrs["top_k"]), gap(groups, op.attrs["topk_group"]) if groups.shape[-1] else float("inf")
    )


def select_margin(op: Op, x: Array) -> float:
    """Smallest difference between the last position that is picked and the first that is not; positions that no head
    answers to tie at zero, where the earlier one is picked."""
    top = -np.sort(-candidates(op, x), axis=-1)
    k = op.attrs["top_k"]
    if top.shape[-1] <= k:
        return float("inf")
    last, next_ = top[..., k - 1], top[..., k]
    open_ = np.isfinite(next_) & ~((last == 0.0) & (next_ == 0.0))
    return float((last[open_] - next_[open_]).min(initial=np.inf))


def _sparsemixer(scores: Array, ids: Array, jitter: float) -> Array:
    """Weights of the chosen experts, one choice after the other (arXiv 2409.12136; modeling_phimoe.py)."""
    left, out = scores.copy(), []
    for j in range(ids.shape[-1]):
        chosen = ids[..., j : j + 1]
        best = np.take_along_axis(left, chosen, -1)
        near = (best - scores) / np.maximum(np.abs(scores), best) <= 2 * jitter
        e = np.where(near & np.isfinite(left), np.exp(left - best), 0.0)
        out.append(np.take_along_axis(e, chosen, -1) / e.sum(-1, keepdims=True))
        np.put_along_axis(left, chosen, -np.inf, -1)
    return np.concatenate(out, axis=-1)


def _gather_scores(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    if op.fn == "of_experts":
        return args[1][args[0]]
    if op.fn == "sparsemixer":
        return _sparsemixer(args[0], args[1], op.attrs["jitter"])
    return np.take_along_axis(args[0], args[1], axis=-1)


def _renormalise(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    return args[0] / (args[0].sum(-1, keepdims=True) + 1e-20)


def _to_nodes(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    """Per node: its tokens (0 where none of their experts lies there), their experts (else -1), their weights (else 0)."""
    x, ids = args[0], args[-1]
    nodes = place.index("expert_nodes")[:, None, None, None]
    here = ids[None] // (op.attrs["num_slots"] // op.attrs["nodes"]) == nodes
    if op.fn == "tokens":
        return np.where(here.any(-1)[..., None], x[None], 0.0)
    return np.where(here, x[None], -1 if op.fn == "ids" else 0.0)


def _from_nodes(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    return args[0].sum(0)


def _onehot(ids: Array, place: Place) -> Array:
    """[(expert_nodes,) batch_size, seq_len, top_k, experts held here]"""
    return (ids[..., None] == place.index("experts")).astype(float)


def _dispatch(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    x, hot = args[0], _onehot(args[1], place)
    gate = (hot * args[2][..., None]).sum(-2) if op.fn == "scaled" else hot.sum(-2)
    return np.einsum("nbsh,nbse->ebsh" if x.ndim == 4 else "bsh,bse->ebsh", x, gate)


def _combine(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    y, hot = args[0], _onehot(args[1], place)
    gate = hot.sum(-2) if op.fn == "unweighted" else (hot * args[2][..., None]).sum(-2)
    return np.einsum("ebsh,nbse->nbsh" if gate.ndim == 4 else "ebsh,bse->bsh", y, gate)


def _select_last(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    return args[0][:, -1]


def _unpad(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    return args[0][..., : op.attrs["vocab"]]


def _argmax(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    return args[0].argmax(-1)


def _cache(op: Op, args: Sequence[Array], place: Place, dims: Any) -> Array:
    raise RuntimeError("cache append has state; the executor does it")


RUN: dict[str, Callable[[Op, Sequence[Array], Place, Any], Array]] = {
    "assign_copies": _assign_copies, "embed": _embed, "pos_lookup": _pos_lookup,
    "einsum": _einsum, "elementwise": _elementwise, "norm": _norm,
    "sumsq": _sumsq, "reduce": _reduce, "rms_apply": _rms_apply, "softmax": _softmax, "mask": _mask, "rope": _rope, "cache": _cache,
    "repeat_heads": _repeat_heads, "topk": _topk, "select": _select, "block_max": _block_max, "of_layer": _of_layer, "part": _part,
    "gather_scores": _gather_scores, "renormalise": _renormalise,
    "dispatch": _dispatch, "combine": _combine, "to_nodes": _to_nodes, "from_nodes": _from_nodes,
    "select_last": _select_last, "unpad": _unpad, "argmax": _argmax,
}  # fmt: skip
