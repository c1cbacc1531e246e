"""Kernels of a partitioned body → work → seconds.

`walk` turns every kernel of a `PBody` into a `Work`: FLOPs, bytes from weights, bytes of everything else that crosses
HBM, GEMM shape, or the collective it is. Tensors that live inside one kernel cost nothing. `price` puts a Work on a
device. Sizes and degrees are ints or arrays with one entry per candidate; every function works on both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal

import numpy as np

from tools.cost.curves import Curves, DeviceCurve, KernelCurve, MoECurve
from tools.cost.operators import ACTIVATION_BYTES, WEIGHT_BYTES, Operators, gemm_ideal, kernel_dtype, unit_peak
from tools.cost.tables import Table
from tools.graph.heads import KEY_DIMS, KV_HEADS
from tools.graph.ir import Sizes
from tools.graph.routing import node_tokens
from tools.graph.semantics import STATEFUL
from tools.memory import Dtypes, kept_positions
from tools.partition.layout import Comm
from tools.partition.lower import PBody, POp
from tools.partition.mesh import Axes, Mesh
from tools.spec.hardware import Cluster

Num = Any
"""float, or an array of one float per candidate."""

KernelKind = Literal[
    "gemm", "grouped_gemm", "attention_prefill", "attention_decode", "elementwise", "embedding", "comm"
]


@dataclass(frozen=True, slots=True)
class Work:
    """What one kernel does on one rank. `weight_total` is what it would read if every expert were touched."""

    kernel: str
    kind: KernelKind
    flops: Num = 0.0
    weight_bytes: Num = 0.0
    weight_total: Num = 0.0
    stream_bytes: Num = 0.0
    m: Num = 0.0
    """GEMM rows (tokens) of one group."""
    n: Num = 1.0
    groups: Num = 1.0
    dtype: str = "bf16"
    """What the math runs in, before the device is asked whether it can."""
    comm: Comm | None = None
    comm_bytes: Num = 0.0
    fanout: Num = 1.0
    """Dispatch and combine: ranks of the group over ranks that a token needs, were every token to go to every rank."""
    balance: Num = 1.0
    """Load of the busiest rank over the mean one."""
    k: Num = 0.0
    """Inner dim of a GEMM."""
    experts: Num = 0.0
    """Local experts of a grouped GEMM."""
    width: Num = 0.0
    """Its hidden size x local expert width."""
    chain: Num = 0.0
    """Positions of a sequence that it works off one after another."""
    reads_hidden: bool = False
    """Its inner dim is the hidden size (gate and up), not the expert width (down)."""
    table: str = ""
    """Kind of measured table that prices it ("" = none)."""
    shape: tuple[Num, ...] = ()
    """Attention: coordinates in that table."""
    routed: bool = False
    """Moves or activates routed tokens: a measured expert kernel contains it."""
    fused: bool = False
    """Ends a body in an addition that engines run inside the next body's norm: no launch of its own."""

    def take(self, index: np.ndarray, n: int) -> Work:
        """The entries at `index` of every array of `n`."""

        def pick(x: Num) -> Num:
            return x[index] if isinstance(x, np.ndarray) and x.shape == (n,) else x

        return replace(
            self, **{f: pick(getattr(self, f)) for f in ARRAYS}, shape=tuple(pick(x) for x in self.shape)
        )  # fmt: skip


ARRAYS = (
    "flops", "weight_bytes", "weight_total", "stream_bytes", "m", "n", "groups", "comm_bytes", "fanout", "balance", "k", "experts",
    "width", "chain",
)  # fmt: skip
"""Fields of a Work that may hold one entry per candidate."""


@dataclass(frozen=True, slots=True)
class WalkContext:
    """What a walk needs to know besides the body."""

    dtypes: Dtypes
    weight_dtype: str
    sizes: Sizes
    mesh: Mesh
    phase: str
    moe: MoECurve
    cache: dict[tuple[int, str], dict[str, Num]] = field(default_factory=dict)
    """Local sizes that this walk has worked out already, by body and tensor."""
    lengths: dict[tuple[str, Axes], Num] = field(default_factory=dict)
    """The same by dim and the axes that cut it."""
    works: dict[int, Work] = field(default_factory=dict)
    """Kernels that it has worked out already, by `Kernel.same`."""
    products: dict[tuple[int, ...], Num] = field(default_factory=dict)
    """Elements of tensors, by the identity of their local sizes, which `cache`, `lengths` and `sizes` keep alive."""
    attended: dict[tuple[Any, Any, Any], Attended] = field(default_factory=dict)
    """KV positions that matter, by window, chunk, and how many are picked."""


def local_sizes(pbody: PBody, tensor: str, ctx: WalkContext) -> dict[str, Num]:
    """Longest local length of each dim; routed tensors keep experts, and their tokens are the expected ones."""
    known = ctx.cache.get((id(pbody), tensor))
    if known is not None:
        return known
    t, layout = pbody.spec(tensor), pbody.layout(tensor)
    out: dict[str, Num] = {}
    for d in t.dims:
        axes = layout.axes(d)
        if axes and (d, axes) not in ctx.lengths:
            ctx.lengths[d, axes] = -(-ctx.sizes[d] // ctx.mesh.degree(axes))
        out[d] = ctx.lengths[d, axes] if axes else ctx.sizes[d]
    if t.routed:
        # Expected tokens: those of all ranks over the ranks, since which rank a token comes from does not matter here.
        del out["batch_size"], out["seq_len"]
        spread = ctx.mesh.degree(layout.axes("batch_size") + layout.axes("seq_len"))
        tokens = ctx.sizes["batch_size"] * ctx.sizes["seq_len"] / spread
        by_node = "expert_nodes" in out
        out["tokens"] = (
            node_tokens(tokens, ctx.sizes) if by_node else tokens * ctx.sizes["top_k"] / ctx.sizes["experts"]
        )
    ctx.cache[id(pbody), tensor] = out
    return out


def elements(dims: Mapping[str, Num]) -> Num:
    n: Num = 1.0
    arrays = []
    for v in dims.values():
        if isinstance(v, np.ndarray):
            arrays.append(v)
        else:
            n = n * v
    for v in arrays:
        n = n * v
    return n


def num_elements(pbody: PBody, tensor: str, ctx: WalkContext) -> Num:
    """Elements of the longest shard of a tensor."""
    dims = local_sizes(pbody, tensor, ctx)
    key = tuple(map(id, dims.values()))
    if key not in ctx.products:
        ctx.products[key] = elements(dims)
    return ctx.products[key]


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a kernel of a body is, whatever the sizes."""

    name: str
    steps: tuple[POp, ...]
    comm: Comm | None
    made: frozenset[str]
    outside: frozenset[str]
    """Tensors it makes that something outside of it reads."""
    einsums: tuple[POp, ...]
    weighted: tuple[POp, ...]
    """Its einsums that have a weight."""
    routed: bool
    last: bool
    """It makes the body's output."""
    same: int
    """Kernels with one number do the same in every body: the dense and the expert layers of a model share attention."""


_KERNELS: dict[int, tuple[PBody, tuple[Kernel, ...]]] = {}
"""Kernels of bodies seen before, by identity; the body is kept so that its id stays its own."""


def kernels_of(pbody: PBody) -> tuple[Kernel, ...]:
    known = _KERNELS.get(id(pbody))
    if known is not None and known[0] is pbody:
        return known[1]
    outside, out = _outside_uses(pbody), []
    for name, steps in pbody.kernels():
        einsums = tuple(p for p in steps if p.op is not None and p.op.kind == "einsum")
        weighted = tuple(p for p in einsums if any(pbody.spec(t).kind == "weight" for t in p.inputs))
        routed = any(pbody.spec(t).routed for p in steps for t in (*p.inputs, p.output))
        made = frozenset(p.output for p in steps)
        last = steps[-1].output == pbody.output
        same = _SAME[_what(pbody, steps, outside[name], last)]
        out.append(Kernel(name, steps, steps[0].comm, made, outside[name], einsums, weighted, routed, last, same))
    if len(_KERNELS) > 8192:
        _KERNELS.clear()
        _SAME.clear()
    _KERNELS[id(pbody)] = (pbody, tuple(out))
    return tuple(out)


_SAME: defaultdict[Any, int] = defaultdict(count().__next__)
"""Numbers of kernels, by everything that their work depends on besides sizes."""


def _what(pbody: PBody, steps: tuple[POp, ...], outside: frozenset[str], last: bool) -> Any:
    def tensor(t: str) -> tuple[Any, ...]:
        return (t, pbody.spec(t), pbody.layout(t), pbody.group(t))

    used = sorted({t for p in steps for t in (*p.inputs, p.output)})
    caches = sorted(p.output for p in pbody.ops if p.op is not None and p.op.kind == "cache")
    ops = tuple((p.kernel, p.inputs, p.output, repr(p.op), p.comm) for p in steps)
    return ops, tuple(map(tensor, used)), tuple(map(tensor, caches)), outside, last


def walk(pbody: PBody, ctx: WalkContext) -> tuple[Work, ...]:
    """Every kernel of the body, in order of its first operator. Local slices are free, and what tokens carry
    with them is counted with the tokens."""
    out = []
    for k in kernels_of(pbody):
        if k.comm is not None and (k.comm.kind == "slice" or _rides_along(pbody, k.steps[0])):
            continue
        if k.same not in ctx.works:
            known = None if k.comm is None else _comm_work(pbody, k.name, k.steps[0], k.comm, ctx)
            ctx.works[k.same] = known or _kernel_work(pbody, k, ctx)
        out.append(ctx.works[k.same])
    return tuple(out)


def _outside_uses(pbody: PBody) -> dict[str, frozenset[str]]:
    """Per kernel, the tensors it makes that something outside of it reads."""
    maker = {p.output: p.kernel for p in pbody.ops}
    out: dict[str, set[str]] = {p.kernel: set() for p in pbody.ops}
    for p in pbody.ops:
        for t in p.inputs:
            if t in maker and maker[t] != p.kernel:
                out[maker[t]].add(t)
    for t in (pbody.output, *(here for _, here in pbody.carries)):
        if t in maker:
            out[maker[t]].add(t)
    return {k: frozenset(v) for k, v in out.items()}


def _comm_work(pbody: PBody, name: str, p: POp, comm: Comm, ctx: WalkContext) -> Work:
    """`comm_bytes`: what a rank contributes (all_gather: what it ends up with)."""
    tensor = p.output if comm.kind == "all_gather" else p.inputs[0]
    # Logits travel in the activations' 16 bits; engines widen them after the gather.
    per = min(ctx.dtypes.bytes(pbody.spec(tensor).dtype), ctx.dtypes.plain)
    nbytes, fanout = elements(local_sizes(pbody, tensor, ctx)), 1.0
    extra: Num = 0.0
    busiest: Num = 1.0
    if comm.kind == "all_to_all" and pbody.spec(tensor).routed:
        first = _leads_to(pbody, tensor, comm, ctx)
        if "expert_nodes" not in pbody.spec(tensor).dims:
            copies = _copies(ctx, (*first, *comm.axes))
            nbytes, fanout = nbytes * copies, ctx.mesh.degree(comm.axes) / (copies * ctx.sizes["top_k"])
        # The rank (or node) of the busiest experts gets, and sends back, more than the mean.
        width = ctx.sizes["moe_latent" if "moe_latent" in pbody.spec(tensor).dims else "hidden"]
        busiest = _imbalance(ctx, (*first, *comm.axes), nbytes / width)
        if first or "expert_nodes" in pbody.spec(tensor).dims:
            fanout = 0.0  # kernels that dispatch in two steps never gather
        if comm.dst_dim in ("experts", "expert_nodes"):
            # Tokens are quantised before they leave; what comes back is 16-bit.
            per = min(per, ACTIVATION_BYTES.get(ctx.weight_dtype, 2.0))
        if comm.dst_dim == "expert_nodes":
            each = ctx.sizes["top_k"] * (ctx.dtypes.bytes("index") + ctx.dtypes.bytes("fp32"))
            extra = nbytes / width * each  # the experts that each token chose, and their weights
    if comm.kind == "transfer":
        # The busier side: what a receiver gets, or what a sender sends when it feeds several.
        ends = (pbody.group(n) for n in (p.inputs[0], p.output))
        senders, receivers = (ctx.mesh.degree(ctx.mesh.shape.members(g)) for g in ends)
        nbytes = elements(local_sizes(pbody, p.output, ctx)) * np.maximum(1.0, receivers / senders)
    elif comm.kind == "all_reduce" and pbody.spec(tensor).routed and "experts" in pbody.spec(tensor).dims:
        # Engines sum over the ranks after they have summed each token's experts (a bias is added by one rank).
        nbytes = nbytes / ctx.sizes["top_k"]
    return Work(kernel=name, kind="comm", comm=comm, comm_bytes=nbytes * per + extra, fanout=fanout, balance=busiest)


def _leads_to(pbody: PBody, tensor: str, comm: Comm, ctx: WalkContext) -> Axes:
    """Axes between nodes that the tokens of this exchange inside a node have crossed before; none if they went straight."""
    nodes = ctx.mesh.shape.axis("ep_nodes")
    crossed = set(nodes) <= set(pbody.layout(tensor).axes("experts")) and not set(nodes) & set(comm.axes)
    return nodes if crossed else ()


def _rides_along(pbody: PBody, p: POp) -> bool:
    """Whether this exchange takes the chosen experts of tokens, or their weights, to where the tokens go: one message."""
    spec = pbody.spec(p.output)
    return spec.routed and "top_k" in spec.dims


def _copies(ctx: WalkContext, axes: Axes) -> Num:
    """Ranks that a token is sent to over the experts it chose, p(1 - (1-1/p)^k)/k: to a rank that holds several of them it
    goes once, and their results come back summed."""
    p, k = np.asarray(ctx.mesh.degree(axes), float), ctx.sizes["top_k"]
    return p * (1.0 - np.power(1.0 - 1.0 / np.maximum(p, 1.0), k)) / k


def _kernel_work(pbody: PBody, k: Kernel, ctx: WalkContext) -> Work:
    kind = _kind(pbody, k.steps, k.einsums, k.weighted, ctx)
    limit = _attended(k.steps, ctx)
    weights, total = _weight_bytes(pbody, k.steps, kind, ctx)
    flops: Num = 0.0
    for p in k.einsums:
        flops = flops + _einsum_flops(pbody, p, limit, ctx)
    for p in k.steps:
        if p.op is not None and p.op.kind == "recur":
            # Multiply-adds per element of the state: key x value, and with the delta rule what it answers to the key.
            flops = flops + elements(local_sizes(pbody, p.output, ctx)) * (4.0 if p.op.fn == "delta" else 2.0)
    if any(p.op is not None and p.op.fn == "selected" for p in k.steps) and _latent(pbody):
        heads = next(local_sizes(pbody, p.output, ctx)["heads"] for p in k.einsums)
        flops = flops * np.maximum(1.0, PICKED_HEADS / heads)
    shape: dict[str, Any] = {"routed": k.routed, "fused": kind == "elementwise" and k.last}
    if k.weighted:
        shape = _gemm_shape(pbody, kind, k.weighted, weights, total, ctx)
    elif k.einsums:
        shape = _attention_shape(pbody, kind, k.einsums, limit, ctx)
    return Work(
        kernel=k.name, kind=kind, flops=flops, weight_bytes=weights, weight_total=total,
        stream_bytes=_stream_bytes(pbody, k.steps, k.made, k.outside, limit, ctx),
        dtype=_math_dtype(pbody, k.einsums, k.weighted, ctx), **shape,
    )  # fmt: skip


MOVES_ROWS = frozenset({"embed", "pos_lookup", "dispatch", "combine", "to_nodes", "from_nodes"})


def _kind(pbody: PBody, steps: Any, einsums: Any, weighted: Any, ctx: WalkContext) -> KernelKind:
    if weighted:
        return "grouped_gemm" if any(pbody.spec(p.output).routed for p in weighted) else "gemm"
    if einsums:
        return "attention_prefill" if ctx.phase == "prefill" else "attention_decode"
    if any(p.op.kind in MOVES_ROWS for p in steps):
        return "embedding"
    return "elementwise"


@dataclass(frozen=True, slots=True)
class Attended:
    """KV positions that matter: per query on average, and in all that must be read."""

    per_query: Num
    read: Num


def _attended(steps: tuple[POp, ...], ctx: WalkContext) -> Attended:
    """Causal attention with `seq_len` queries at the end of `kv_len` positions, limited by window, chunk, or what an indexer
    picks.

    Sum over queries at positions a < i <= T of min(i, w), w the window or the number picked; T without one.
    """
    attrs = next((p.op.attrs for p in steps if p.op is not None and p.op.kind == "mask" and p.op.fn == "causal"), {})
    chosen = next((p.op.attrs for p in steps if p.op is not None and p.op.fn == "selected"), None)
    picked = chosen["top_k"] * chosen.get("block", 1) if chosen else None
    key = (attrs.get("window"), attrs.get("chunk"), picked)
    if key not in ctx.attended:
        ctx.attended[key] = _positions(*key, ctx)
    return ctx.attended[key]


def _positions(window: Any, chunk: Any, picked: Any, ctx: WalkContext) -> Attended:
    s, total = np.asarray(ctx.sizes["seq_len"], float), np.asarray(ctx.sizes["kv_len"], float)
    causal = total - (s - 1) / 2
    if window or picked:
        w, a = float(picked or window), total - s
        below = np.clip(np.minimum(total, w) - a, 0, None)
        inside = below * (a + 1 + np.minimum(total, w)) / 2
        per_query = (inside + np.clip(total - np.maximum(a, w), 0, None) * w) / s
        # A window slides with its queries; what is picked for one query may be anywhere.
        return Attended(per_query, np.minimum(total, s * w if picked else s + w - 1))
    if chunk:
        c = float(chunk)
        return Attended(
            np.where(total <= c, causal, np.minimum(causal, (c + 1) / 2)),
            np.where(total <= c, total, np.minimum(total, np.maximum(s, c / 2))),
        )
    return Attended(causal, total)


def _einsum_flops(pbody: PBody, p: POp, limit: Attended, ctx: WalkContext) -> Num:
    """2 x product of all dims; attention's query x key pairs count only where the mask lets them."""
    dims: dict[str, Num] = {}
    for t in p.inputs:
        for d, v in local_sizes(pbody, t, ctx).items():
            dims[d] = np.minimum(dims[d], v) if d in dims else v
    if "seq_len" in dims and "kv_len" in dims:
        dims["kv_len"] = dims["kv_len"] * limit.per_query / ctx.sizes["kv_len"]
    return 2.0 * elements(dims)


def _stream_bytes(
    pbody: PBody,
    steps: tuple[POp, ...],
    made: frozenset[str],
    outside: frozenset[str],
    limit: Attended,
    ctx: WalkContext,
) -> Num:
    """External inputs and outputs. A cache is read as far as the mask reaches and written only where it is new."""
    total: Num = 0.0
    seen: set[str] = set()
    for p in steps:
        for t in p.inputs:
            if t not in made and t not in seen and pbody.spec(t).kind != "weight":
                seen.add(t)
                share = (
                    limit.read / ctx.sizes["kv_len"] if pbody.spec(t).kind == "cache" else 1.0
                )  # as far as the mask reaches
                total = total + _bytes(pbody, t, ctx) * share
        if p.op is not None and p.op.kind == "cache":
            new, old = _bytes(pbody, p.inputs[0], ctx), _bytes(pbody, p.output, ctx)
            total = total + new * _kv_ratio(pbody, p, ctx) + old * limit.read / ctx.sizes["kv_len"]
        if p.op is not None and p.op.kind in STATEFUL:
            kept = _bytes(pbody, p.output, ctx) / local_sizes(pbody, p.output, ctx)["seq_len"]
            total = total + 2.0 * kept * kept_positions(p, ctx.sizes)  # read before the step, written after it
    for t in outside:
        if pbody.spec(t).kind != "cache":
            total = total + _bytes(pbody, t, ctx)
    return total


def _kv_ratio(pbody: PBody, p: POp, ctx: WalkContext) -> float:
    """Bytes of a cached element over those of the activation it comes from."""
    cached, act = (ctx.dtypes.bytes(pbody.spec(t).dtype) for t in (p.output, p.inputs[0]))
    return cached / act


def _bytes(pbody: PBody, tensor: str, ctx: WalkContext) -> Num:
    per = ctx.dtypes.bytes(pbody.spec(tensor).dtype)
    return num_elements(pbody, tensor, ctx) * per


def _weight_bytes(pbody: PBody, steps: tuple[POp, ...], kind: KernelKind, ctx: WalkContext) -> tuple[Num, Num]:
    """(read, held). Lookups read one row per token; experts that no token chose are not read."""
    read: Num = 0.0
    held: Num = 0.0
    seen: set[str] = set()
    for p in steps:
        for t in p.inputs:
            spec = pbody.spec(t)
            if spec.kind != "weight" or t in seen:
                continue
            seen.add(t)
            full = _bytes(pbody, t, ctx)
            if p.op is not None and p.op.kind in ("embed", "pos_lookup"):
                read = read + np.minimum(full, _bytes(pbody, p.output, ctx))
            elif kind == "grouped_gemm" and "experts" in spec.dims:
                read = read + full * _touched(pbody, p.inputs[0], ctx)
            else:
                read = read + full
            held = held + full
    return read, held


def _touched(pbody: PBody, tensor: str, ctx: WalkContext) -> Num:
    """Expected share of the local experts that at least one of the tokens in sight chose: 1 - (1 - k/E)^T."""
    share = ctx.sizes["top_k"] / ctx.sizes["experts"]
    tokens = local_sizes(pbody, tensor, ctx)["tokens"] / share
    return 1.0 - np.power(1.0 - np.minimum(share, 1.0 - 1e-12), tokens)


def _math_dtype(pbody: PBody, einsums: tuple[POp, ...], weighted: tuple[POp, ...], ctx: WalkContext) -> str:
    if any(pbody.spec(t).dtype == "index_key" for p in einsums for t in p.inputs):
        return "fp8"
    roles = {pbody.spec(t).dtype for p in weighted for t in p.inputs if pbody.spec(t).kind == "weight"}
    experts_only = ctx.dtypes.matrix != ctx.dtypes.expert_matrix
    quantised = "expert_matrix" in roles or ("matrix" in roles and not experts_only)
    return ctx.weight_dtype if quantised else "bf16"


RECURRENT = "recurrent"
"""Name in place of a table's: linear attention has fractions of its own (`kernels.yaml`), no tables."""
PICKED_HEADS = 64
"""Kernels for picked positions pad the query heads of a rank to this (vLLM v1/attention/backends/mla/flashmla_sparse.py)."""


def _attention_shape(
    pbody: PBody, kind: KernelKind, einsums: tuple[POp, ...], limit: Attended, ctx: WalkContext
) -> dict[str, Any]:
    """Coordinates of attention in the measured tables.

    Prefill: (length of a causal prompt with as many query x key pairs per query, sequences · heads, d_k). Decode:
    (positions read, sequences · kv_heads, query heads per kv head, d_k); MLA decode: (positions, sequences, heads).
    """
    kept = {p.output for p in pbody.ops if p.op is not None and p.op.kind == "recur"}
    states = next((n for p in einsums for n in p.inputs if n in kept), None)
    if states is not None:
        chain = local_sizes(pbody, states, ctx)["seq_len"]
        return {"table": RECURRENT, "chain": chain if kind == "attention_prefill" else 0.0}
    scores = next((p for p in einsums if "kv_len" in pbody.spec(p.output).dims), None)
    if scores is None or "index_dim" in pbody.spec(scores.inputs[0]).dims:
        return {}  # no attention, or an indexer's, of which there are no tables
    out = local_sizes(pbody, scores.output, ctx)
    b, h, s = (out.get(d, 1) for d in ("batch_size", "heads", "seq_len"))
    keys = pbody.spec(scores.inputs[1]).dims
    caches = [n for n in pbody.tensors if pbody.spec(n).kind == "cache"]  # its own, or those of a layer that lends them
    mla = _latent(pbody)
    if kind == "attention_prefill" and mla and "kv_lora" in keys:
        return {}  # on latents, as kernels for picked positions do it; the tables are of expanded heads
    if kind == "attention_prefill":
        length = np.maximum(2.0 * np.asarray(limit.per_query, float) - 1.0, s)
        d = 1.0 if mla else _key_width(pbody, scores, ctx)
        return {"table": "mla_context" if mla else "context", "shape": (length, b * h, d)[: 2 if mla else 3]}
    read = limit.read * out.get("kv_len", ctx.sizes["kv_len"]) / ctx.sizes["kv_len"]
    # Several new tokens of a sequence (speculation) share its keys, like more query heads.
    if mla and "kv_lora" in keys:
        return {"table": "mla_generation", "shape": (read, b, h * s)}
    kv = next((n for t in caches for d, n in local_sizes(pbody, t, ctx).items() if d in KV_HEADS), h)
    return {"table": "generation", "shape": (read, b * kv, h / kv * s, _key_width(pbody, scores, ctx))}


def _latent(pbody: PBody) -> bool:
    """Whether attention caches latents."""
    return any("kv_lora" in pbody.spec(p.output).dims for p in pbody.ops if p.op is not None and p.op.kind == "cache")


def _key_width(pbody: PBody, scores: POp, ctx: WalkContext) -> Num:
    """d_k of the layer that these scores belong to, whole."""
    return next(ctx.sizes[d] for d in pbody.spec(scores.inputs[0]).dims if d in KEY_DIMS)


def _gemm_shape(
    pbody: PBody, kind: KernelKind, weighted: tuple[POp, ...], read: Num, total: Num, ctx: WalkContext
) -> dict[str, Any]:
    """m x n of the fused GEMM: the n of its weights add up, dims that weight and activation share are batches."""
    n: Num = 0.0
    m: Num = 1.0
    k: Num = 1.0
    groups: Num = 1.0
    held: dict[str, Num] = {}
    for p in weighted:
        weight = next(t for t in p.inputs if pbody.spec(t).kind == "weight")
        act = local_sizes(pbody, next(t for t in p.inputs if t != weight), ctx)
        out, w = local_sizes(pbody, p.output, ctx), local_sizes(pbody, weight, ctx)
        n = n + elements({d: v for d, v in w.items() if d in out and d not in act})
        groups = elements({d: v for d, v in w.items() if d in out and d in act})
        m = elements({d: v for d, v in act.items() if d not in w})
        k = elements({d: v for d, v in w.items() if d in act and d not in out})
        held = w
    n = np.maximum(n, 1.0)
    if kind != "grouped_gemm":
        return {"m": m, "n": n, "k": k, "groups": groups, "table": "gemm"}
    touched = np.maximum(read / np.maximum(total, 1.0), 1e-9)
    experts, groups, m = groups, groups * touched, m / touched
    return {
        "m": m, "n": n, "k": k, "groups": groups, "table": "moe", "experts": experts,
        "balance": _imbalance(ctx, ctx.mesh.shape.axis("ep"), m * groups),
        "width": elements({d: v for d, v in held.items() if d != "experts"}),
        "reads_hidden": not {"hidden", "moe_latent"}.isdisjoint(local_sizes(pbody, weighted[0].inputs[0], ctx)),
    }  # fmt: skip


def _imbalance(ctx: WalkContext, axes: Axes, mean_load: Num) -> Num:
    """Busiest of the ranks along `axes` over the mean when tokens fall at random (balls into bins: mean + sqrt(2 mean ln n)),
    plus the routing's own skew, which grows with the number of ranks."""
    ep = np.asarray(ctx.mesh.degree(axes), float) if axes else np.asarray(1.0)
    chance = np.sqrt(2.0 * np.log(ep) / np.maximum(mean_load, 1.0))
    return np.minimum(1.0 + chance + ctx.moe.skew * (1.0 - 1.0 / ep), ep)


def pairs(prefill: tuple[Work, ...], decode: tuple[Work, ...]) -> list[tuple[Work | None, Work | None]]:
    """Kernels of a step that carries prefill chunks and decodes: GEMMs run once over all tokens, attention runs once per
    kind."""
    rest = {w.kernel: w for w in decode}
    out: list[tuple[Work | None, Work | None]] = []
    for w in prefill:
        d = rest.pop(w.kernel, None)
        apart = d is not None and w.kind != d.kind and "attention" in w.kind
        if d is not None and (apart or _in_steps(w) != _in_steps(d)):
            out += [(w, None), (None, d)]
        else:
            out.append((w, d))
    return [*out, *((None, d) for d in rest.values())]


def _in_steps(w: Work) -> bool:
    """Whether this exchange belongs to a dispatch in two steps, which shares no message with one that goes straight."""
    return w.comm is not None and not np.any(w.fanout)


def merge(prefill: tuple[Work, ...], decode: tuple[Work, ...]) -> tuple[Work, ...]:
    """The kernels of `pairs`, of one candidate or of arrays of one length."""
    return tuple(both(a, b) if a and b else a or b for a, b in pairs(prefill, decode))  # type: ignore[misc]


def both(a: Work, b: Work) -> Work:
    """One kernel for the tokens of two: weights are read once."""
    held = np.maximum(np.maximum(a.weight_total, b.weight_total), 1e-30)
    # Untouched by both: independent choices, so the untouched shares multiply.
    weights = held * (1.0 - (1.0 - a.weight_bytes / held) * (1.0 - b.weight_bytes / held))
    if a.kind != "grouped_gemm":
        weights = np.maximum(a.weight_bytes, b.weight_bytes)
    groups = np.maximum(a.groups, b.groups)
    return replace(
        a, flops=a.flops + b.flops, weight_bytes=weights, stream_bytes=a.stream_bytes + b.stream_bytes,
        m=(a.m * a.groups + b.m * b.groups) / groups, groups=groups, comm_bytes=a.comm_bytes + b.comm_bytes,
        balance=np.minimum(a.balance, b.balance), chain=np.maximum(a.chain, b.chain),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- roofline


PLAIN = KernelCurve()
"""A kernel that reaches what its generation's large ones do."""


@dataclass(frozen=True, slots=True)
class Roof:
    """What a device can do: the cluster's datasheet, the curve of its generation, and what the user stated instead."""

    cluster: Cluster
    curve: DeviceCurve
    operators: Operators | None = None
    relative: str = ""
    """Measured device whose tables apply; "" for none."""
    engine: str = "vllm"
    block_fp8: bool = False
    """fp8 weights carry scales per block."""
    kv_dtype: str = "bf16"
    kernels: Mapping[str, KernelCurve] = field(default_factory=dict)
    reference: Roof | None = None
    """The relative itself, as it was measured; None where this is what was measured."""

    @classmethod
    def of(
        cls, cluster: Cluster, curves: Curves, engine: str = "vllm", *, block_fp8: bool = False, kv_dtype: str = "bf16"
    ) -> Roof:
        """The roof of a cluster's device under `curves`, its reference included."""
        relative, _ = curves.relative(cluster.device)
        roof = cls(
            cluster,
            curves.device(cluster.device),
            curves.operators,
            relative,
            engine,
            block_fp8,
            kv_dtype,
            curves.kernels,
        )
        sheet = curves.operators.sheets.get(relative) if curves.operators else None
        if sheet is None:
            return roof
        same = {"peak_flops": dict(sheet.peak_flops), "memory_bandwidth": sheet.memory_bandwidth}
        if all(getattr(cluster, k) == v for k, v in same.items()):
            return roof
        return replace(roof, reference=replace(roof, cluster=cluster.model_copy(update=same)))

    def table(self, w: Work) -> tuple[Table, str] | None:
        """(measured table of a kernel, the format it runs as). None: nothing measured, or the user stated utilisations."""
        if not w.table or not self.relative or self.operators is None:
            return None
        if self.cluster.mfu is not None or self.cluster.mbu is not None:
            return None
        if w.kind.startswith("attention"):
            dtype = "fp8" if self.kv_dtype == "fp8" else "bf16"
        else:
            dtype = kernel_dtype(w.dtype, self.cluster.peak_flops, block=self.block_fp8)
        found = self.operators.find(w.table, self.relative, self.engine, dtype)
        return None if found is None else (found, dtype)

    def widened(self, w: Work, dtype: str) -> Table | None:
        """The 16-bit table that a kernel with narrow weights and 16-bit activations need not be slower than, since it widens
        its weights on the way in. Measured times of many rows can be longer: those of untuned fallback kernels."""
        narrow = WEIGHT_BYTES.get(dtype, 2.0) < 2.0 <= ACTIVATION_BYTES.get(dtype, 2.0)
        if not narrow or w.kind.startswith("attention") or self.operators is None:
            return None
        return self.operators.find(w.table, self.relative, self.engine, "bf16")

    @property
    def experts_measured(self) -> bool:
        """Whether a measured expert kernel, which holds permutation and activation, prices the grouped GEMMs."""
        return self.table(Work("", "grouped_gemm", table="moe")) is not None

    def peak(self, dtype: str) -> tuple[float, str]:
        """(FLOP/s, dtype the math runs in): the format itself if the device has a matrix path for it, else the next
        wider."""
        chain = {
            "nvfp4": ("nvfp4", "fp4"),
            "mxfp4": ("mxfp4", "fp4"),
            "fp4": ("fp4",),
            "fp8": ("fp8",),
            "int8": ("int8",),
        }
        for name in chain.get(dtype, ()):
            if self.cluster.peak_flops.get(name):
                return self.cluster.peak_flops[name], "fp4" if name in ("nvfp4", "mxfp4") else name
        for name in ("bf16", "fp16", "fp32"):
            if self.cluster.peak_flops.get(name):
                return self.cluster.peak_flops[name], "bf16"
        return max(self.cluster.peak_flops.values()), "bf16"

    def shape(self, w: Work, dtype: str) -> KernelCurve:
        """What this kind of kernel reaches of its generation's best."""
        kind: str = {"mla_generation": "mla_decode", RECURRENT: w.kind.replace("attention", "recurrent")}.get(
            w.table, w.kind
        )
        if self.quantised_bytes(w, dtype):
            kind = "gemm_quantised"
        return self.kernels.get(kind, PLAIN)

    def quantised_bytes(self, w: Work, dtype: str) -> float:
        """Traffic per activation element of the pass that narrows it for the matrix unit: 16 bits in, the format out."""
        narrow = ACTIVATION_BYTES.get(kernel_dtype(w.dtype, self.cluster.peak_flops, block=False), 2.0)
        return 2.0 + narrow if dtype != "bf16" and narrow < 2.0 and w.kind == "gemm" else 0.0

    def efficiency(self, w: Work, dtype: str) -> float:
        if self.cluster.mfu is not None:
            return self.cluster.mfu
        return self.curve.gemm.get(dtype, self.curve.gemm["bf16"]) * self.shape(w, dtype).compute

    def bandwidth(self, w: Work, dtype: str) -> float:
        if self.cluster.mbu is not None:
            return self.cluster.memory_bandwidth * self.cluster.mbu
        if w.kind == "embedding":
            return self.cluster.memory_bandwidth * self.curve.gather_memory
        return self.cluster.memory_bandwidth * min(self.curve.memory * self.shape(w, dtype).memory, 1.0)

    def overhead(self, w: Work, dtype: str) -> float:
        """Time of a kernel that does next to nothing."""
        if w.fused:
            return 0.0
        stated = self.cluster.mfu is not None or self.cluster.mbu is not None
        return self.latency + (0.0 if stated else self.shape(w, dtype).latency_s)

    def from_memory(self, w: Work) -> Num:
        """Streamed bytes, those that the last-level cache serves counted at its speed. A KV cache is never in it."""
        if w.kind.startswith("attention") or self.cluster.mbu is not None:
            return w.stream_bytes
        missed = w.stream_bytes / (w.stream_bytes + self.curve.cache_bytes)
        return w.stream_bytes * (missed + (1.0 - missed) / self.curve.cache_speed)

    @property
    def latency(self) -> float:
        """A stated utilisation is end to end: it already contains the launches."""
        return 0.0 if self.cluster.mfu is not None and self.cluster.mbu is not None else self.curve.kernel_latency_s


@dataclass(frozen=True, slots=True)
class KernelTime:
    """Seconds of one kernel. `compute` and `memory` are the two roofs, `total` what the kernel takes."""

    total: Num
    compute: Num
    memory: Num


def price(w: Work, roof: Roof) -> KernelTime:
    """The measured table's time where there is one, else the roofline of the generation."""
    found = roof.table(w)
    if found is not None:
        took, wide = _tabled(w, roof, *found), roof.widened(w, found[1])
        if wide is None:
            return took
        plain = replace(w, dtype="bf16", weight_bytes=w.weight_bytes * (WEIGHT_BYTES["bf16"] / WEIGHT_BYTES[found[1]]))
        return _shorter(took, _tabled(plain, roof, wide, "bf16"))
    if w.routed and roof.experts_measured:
        return KernelTime(0.0 * w.stream_bytes, 0.0, 0.0)
    return _roofline(w, roof)


def _tabled(w: Work, roof: Roof, table: Table, dtype: str) -> KernelTime:
    return (
        _measured(w, roof, table, dtype) if roof.reference is None else _carried(w, roof, roof.reference, table, dtype)
    )


def _shorter(a: KernelTime, b: KernelTime) -> KernelTime:
    total = np.minimum(a.total, b.total)
    return KernelTime(total, np.minimum(a.compute, total), np.minimum(a.memory, total))


@dataclass(frozen=True, slots=True)
class Ideal:
    """Seconds that a datasheet allows a kernel at best: math, memory traffic, and of that what no cache can spare."""

    compute: Num
    memory: Num
    streamed: Num
    shape: tuple[Num, ...]
    """Its coordinates in the measured table."""


def _ideal(w: Work, cluster: Cluster, dtype: str) -> Ideal:
    """As `benchmarks/distil_operators.py` defines it."""
    bandwidth, sheet = cluster.memory_bandwidth, cluster.peak_flops
    if w.kind.startswith("attention"):
        fp8 = dtype == "fp8" and w.kind == "attention_prefill" and bool(sheet.get("fp8"))
        memory = w.stream_bytes / bandwidth
        streamed = memory if w.kind == "attention_decode" else 0.0
        return Ideal(w.flops / unit_peak("fp8" if fp8 else "bf16", sheet), memory, streamed, w.shape)
    peak = unit_peak(dtype, sheet)
    weights = w.groups * w.n * w.k * WEIGHT_BYTES[dtype] / bandwidth
    if w.kind == "grouped_gemm":
        # An expert kernel is both GEMMs; this one is the share of it that reads tokens (up) or writes them (down).
        side = ACTIVATION_BYTES.get(dtype, 2.0) * w.k if w.reads_hidden else 2.0 * w.n
        memory = weights + w.m * w.groups * side / bandwidth
        return Ideal(w.flops / peak, memory, weights, (w.m * w.groups / w.experts, w.experts, w.width))
    compute, memory = gemm_ideal(w.m, w.n * w.groups, w.k, dtype, peak, bandwidth)
    return Ideal(compute, memory, weights, (w.m, w.n * w.groups, w.k))


def _measured(w: Work, roof: Roof, table: Table, dtype: str) -> KernelTime:
    """ideal / efficiency, and the gap to the next kernel.

    Timed over and over on one set of operands a kernel finds them in the cache. In a model the next layer has others, so
    that weights and KV cross the memory's pins each time, and the time is never below that or below the matrix unit's.
    """
    ideal = _ideal(w, roof.cluster, dtype)
    alone = np.maximum(ideal.compute, ideal.memory) / table.efficiency(ideal.shape)
    took = np.maximum(np.maximum(alone - roof.curve.launch_s, 0.5 * alone), roof.latency)
    return _allowed(took, ideal)


def _carried(w: Work, roof: Roof, reference: Roof, table: Table, dtype: str) -> KernelTime:
    """A kernel measured on a relative takes longer here by the ratio of the two rooflines: what is latency stays, what is
    bandwidth or math scales with the datasheets."""
    ratio = _roofline(w, roof).total / _roofline(w, reference).total
    return _allowed(_measured(w, reference, table, dtype).total * ratio, _ideal(w, roof.cluster, dtype))


def _allowed(took: Num, ideal: Ideal) -> KernelTime:
    """No faster than the datasheet."""
    took = np.maximum(took, np.maximum(ideal.compute, ideal.streamed))
    return KernelTime(took, np.minimum(ideal.compute, took), np.minimum(ideal.memory, took))


def _roofline(w: Work, roof: Roof) -> KernelTime:
    """Roofline with tile quantisation and a floor: (t_c^p + t_m^p)^(1/p) + latency."""
    peak, dtype = roof.peak(w.dtype)
    flops = w.flops
    if w.kind in ("gemm", "grouped_gemm") and roof.cluster.mfu is None:
        # Libraries choose the tile that fits the rows best, down to those of one tensor-core instruction.
        flops = flops * _padding(w.m, ROWS) * _padding(w.n, roof.curve.tile_n)
    t_compute = flops * w.balance / (peak * roof.efficiency(w, dtype))
    moved = w.weight_bytes + roof.from_memory(w) + roof.quantised_bytes(w, dtype) * w.m * w.groups * w.k
    t_memory = moved / roof.bandwidth(w, dtype)
    p = roof.curve.overlap
    top = np.maximum(np.maximum(t_compute, t_memory), 1e-30)
    total = top * ((t_compute / top) ** p + (t_memory / top) ** p) ** (1 / p)
    total = np.maximum(total, w.chain * roof.shape(w, dtype).position_s) + roof.overhead(w, dtype)
    return KernelTime(total, t_compute, t_memory)


ROWS = 8
"""Rows of the smallest tensor-core tile (the side of eight of m16n8k16)."""


def _padding(size: Num, tile: Num) -> Num:
    """Work on whole tiles over the work asked for."""
    size = np.maximum(size, 1.0)
    return np.ceil(size / tile) * tile / size
