"""One rule per operator kind: given how the inputs lie, how they must lie, and how the output then lies.

A rule is `rule(op, ctx) -> Need`. It never guesses: what it cannot do it refuses with op, dim and axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tools.graph.heads import KV_HEADS
from tools.graph.ir import Body, Op, Tensor
from tools.graph.semantics import LINEAR_UNARY
from tools.partition.layout import Layout
from tools.partition.mesh import Axes
from tools.partition.placement import Placement
from tools.spec.base import Refused


@dataclass(frozen=True, slots=True)
class Need:
    """Layouts that an operator needs its inputs in, and the one its output has."""

    inputs: tuple[Layout, ...]
    output: Layout


@dataclass(frozen=True, slots=True)
class Context:
    body: Body
    layouts: Mapping[str, Layout]
    placement: Placement

    def tensor(self, name: str) -> Tensor:
        return self.body.tensors[name]

    def settled(self, name: str) -> Layout:
        """The input's layout once its pending sum is done; residual-shaped tensors return to the residual layout."""
        have = self.layouts[name]
        if not have.pending:
            return have
        return self.placement.home(self.tensor(name).dims, have)

    def is_weight(self, name: str) -> bool:
        return self.tensor(name).kind == "weight"


def project(layout: Layout, dims: Sequence[str], pending: Axes = ()) -> Layout:
    """The part of a layout that concerns `dims`."""
    return Layout.of({d: layout.axes(d) for d in dims}, pending)


def _whole(layout: Layout, dim: str) -> Layout:
    """`layout` with `dim` on one rank."""
    return Layout.of({d: a for d, a in layout.split if d != dim}, layout.pending)


def einsum_rule(op: Op, ctx: Context) -> Need:
    """Derived from the equation: weights stay; a contracted split dim leaves a pending sum; an axis splits one dim only."""
    weights = [n for n in op.inputs if ctx.is_weight(n)]
    acts = [n for n in op.inputs if not ctx.is_weight(n)]
    want: dict[str, Axes] = {}
    for n in weights:
        want.update({d: ctx.layouts[n].axes(d) for d in ctx.tensor(n).dims})
    if op.kernel == "attention":
        dims = {d for n in op.inputs for d in ctx.tensor(n).dims}
        want.update({d: axes for d, axes in ctx.placement.attention().items() if d in dims and d not in want})
    taken = {a for axes in want.values() for a in axes}
    for n in acts:
        for dim, axes in _tokens_home(n, op, ctx).items():
            if dim in want:
                continue
            free = _leading(axes, taken)
            if free:
                want[dim] = free
                taken |= set(free)
    inputs = tuple(
        ctx.layouts[n] if n in weights else Layout.of({d: want.get(d, ()) for d in ctx.tensor(n).dims})
        for n in op.inputs
    )
    out = ctx.tensor(op.output).dims
    pending = tuple(a for d, axes in want.items() if d not in out for a in axes)
    return Need(inputs, Layout.of({d: want.get(d, ()) for d in out}, pending))


def _tokens_home(name: str, op: Op, ctx: Context) -> Mapping[str, Axes]:
    """Where an activation lies; what attention made whole goes back to where the tokens belong."""
    have = ctx.settled(name).as_dict()
    t = ctx.tensor(name)
    if t.routed or op.kernel == "attention":
        return have
    for dim, axes in ctx.placement.tokens().items():
        if dim in t.dims and axes[: len(have.get(dim, ()))] == have.get(dim, ()):
            have[dim] = axes
    return have


def _leading(axes: Axes, taken: set[str]) -> Axes:
    """Axes that can stay: up to the first one that another dim of this operator needs."""
    keep: list[str] = []
    for a in axes:
        if a in taken:
            break
        keep.append(a)
    return tuple(keep)


def elementwise_rule(op: Op, ctx: Context) -> Need:
    """Inputs lie alike. A sum of summands may stay pending if all of them await the same axes."""
    acts = [n for n in op.inputs if not ctx.is_weight(n)]
    have = [ctx.layouts[n] for n in acts]
    out = ctx.tensor(op.output).dims
    if len(op.inputs) == 1 and (not have[0].pending or op.fn in LINEAR_UNARY):
        return Need((have[0],), have[0])
    if op.fn == "add" and len(acts) == len(op.inputs) and all(h == have[0] for h in have):
        return Need(tuple(have), have[0])
    factor = _factor(op, acts, ctx)
    if factor is not None:
        return factor
    # The widest settled input decides; the residual stream, where there is one, is never moved.
    lead = next((h for n, h in zip(acts, have, strict=True) if not h.pending and ctx.tensor(n).dims == out), None)
    target = lead or ctx.settled(acts[0])
    inputs = []
    for n in op.inputs:
        if ctx.is_weight(n):
            inputs.append(_check_weight(op, n, ctx, target))
        else:
            inputs.append(project(target, ctx.tensor(n).dims))
    return Need(tuple(inputs), target)


def _factor(op: Op, acts: Sequence[str], ctx: Context) -> Need | None:
    """Summands times a factor that every rank has whole: the sum can wait, and be one with the sum they are added to."""
    have = [ctx.layouts[n] for n in acts]
    waiting = [i for i, h in enumerate(have) if h.pending]
    if op.fn != "mul" or len(acts) != 2 or len(op.inputs) != 2 or len(waiting) != 1:
        return None
    sums, by = have[waiting[0]], have[1 - waiting[0]]
    dims = ctx.tensor(acts[1 - waiting[0]]).dims
    if (
        by != project(sums, dims)
        or sums.reduce != "sum"
        or ctx.tensor(acts[waiting[0]]).dims != ctx.tensor(op.output).dims
    ):
        return None
    return Need(tuple(have), sums)


def _check_weight(op: Op, name: str, ctx: Context, target: Layout) -> Layout:
    """A weight as the activation needs it: a rank may use a slice of what it holds, but nothing it does not."""
    have, dims = ctx.layouts[name], ctx.tensor(name).dims
    for dim in dims:
        if target.axes(dim)[: len(have.axes(dim))] != have.axes(dim):
            raise Refused(
                f"{op.name}: weight {name} splits {dim} over {ctx.placement.mesh.words(have.axes(dim))}, the activation "
                f"over {ctx.placement.mesh.words(target.axes(dim))}; weights cannot move"
            )
    return project(target, dims)


def norm_rule(op: Op, ctx: Context) -> Need:
    """Normalises its last dim, which must be whole."""
    x = op.inputs[0]
    target = _whole(ctx.settled(x), ctx.tensor(x).dims[-1])
    return Need((target, *(_check_weight(op, w, ctx, target) for w in op.inputs[1:])), target)


def sumsq_rule(op: Op, ctx: Context) -> Need:
    src = ctx.settled(op.inputs[0])
    out = ctx.tensor(op.output).dims
    pending = tuple(a for d, axes in src.split if d not in out for a in axes)
    return Need((src,), project(src, out, pending))


def rms_apply_rule(op: Op, ctx: Context) -> Need:
    src = ctx.settled(op.inputs[0])
    ssq = project(src, ctx.tensor(op.inputs[1]).dims)
    return Need((src, ssq, _check_weight(op, op.inputs[2], ctx, src)), src)


def softmax_rule(op: Op, ctx: Context) -> Need:
    target = _whole(ctx.settled(op.inputs[0]), op.attrs["dim"])
    rest = tuple(_check_weight(op, n, ctx, target) for n in op.inputs[1:])
    return Need((target, *rest), target)


def local_rule(op: Op, ctx: Context) -> Need:
    """Acts where its one input lies (mask, RoPE, renormalise). RoPE rotates pairs inside d_k: whole, or dealt out by pairs."""
    target = ctx.settled(op.inputs[0])
    dim = op.attrs.get("dim")
    paired = (
        op.kind == "rope"
        and ctx.placement.orders.get(str(dim)) == "paired"
        and not op.attrs["rotary_dim"]
        and not op.attrs["interleaved"]
    )
    if op.kind in ("rope", "renormalise") and dim and not paired:
        target = _whole(target, dim)
    return Need((target,), target)


def mask_rule(op: Op, ctx: Context) -> Need:
    """Acts where the scores lie; the positions that an indexer picked are those of the same queries."""
    target = ctx.settled(op.inputs[0])
    return Need((target, *(project(target, ctx.tensor(n).dims) for n in op.inputs[1:])), target)


def cache_rule(op: Op, ctx: Context) -> Need:
    """A cache lies the same in every phase, whatever sequence or context parallelism did before. New positions come
    whole; each rank keeps those it owns."""
    cache, have = ctx.placement.cache(), ctx.settled(op.inputs[0])
    dims = ctx.tensor(op.inputs[0]).dims
    target = Layout.of({d: cache.get(d, have.axes(d)) for d in dims})
    kept = {d: a for d, a in target.split if d != "seq_len"}
    return Need((target,), Layout.of({**kept, "kv_len": cache["kv_len"]}))


def of_layer_rule(op: Op, ctx: Context) -> Need:
    """Every rank has the vectors of all layers for its tokens."""
    target = _whole(ctx.settled(op.inputs[0]), "layers")
    return Need((target,), project(target, ctx.tensor(op.output).dims))


def part_rule(op: Op, ctx: Context) -> Need:
    """A stretch of the last dim, which must be whole."""
    x = op.inputs[0]
    target = _whole(ctx.settled(x), ctx.tensor(x).dims[-1])
    return Need((target,), project(target, ctx.tensor(op.output).dims))


def block_max_rule(op: Op, ctx: Context) -> Need:
    """Positions of a block are compared, so that all of them are needed."""
    target = _whole(ctx.settled(op.inputs[0]), "kv_len")
    return Need((target,), target)


def reduce_rule(op: Op, ctx: Context) -> Need:
    """Max or sum over one dim; where that dim is split, a pending reduction."""
    src = ctx.settled(op.inputs[0])
    pending = src.axes(op.attrs["dim"])
    return Need((src,), Layout.of(project(src, ctx.tensor(op.output).dims).as_dict(), pending, op.fn))  # type: ignore[arg-type]


def repeat_heads_rule(op: Op, ctx: Context) -> Need:
    """KV heads split over tp_kv and cp_kv; their copies for the query heads over all of tp and cp. No data moves, unless
    attention wants cached positions whole that dcp dealt out."""
    attention, t = ctx.placement.attention(), ctx.tensor(op.inputs[0])
    have = ctx.settled(op.inputs[0]).as_dict()
    if (
        t.kind == "index"
    ):  # what is picked for the queries lies where attention wants these, and by the heads of the cache
        cache = ctx.placement.cache()
        src = Layout.of({d: cache[d] if d in KV_HEADS else attention.get(d, have.get(d, ())) for d in t.dims})
    else:
        src = Layout.of({**have, "kv_len": attention["kv_len"]})
    return Need((src,), Layout.of({**{d: a for d, a in src.split if d not in KV_HEADS}, "heads": attention["heads"]}))


def embed_rule(op: Op, ctx: Context) -> Need:
    """A vocabulary shard answers for its own rows and gives zero for the rest: a pending sum."""
    table = ctx.layouts[op.inputs[1]]
    rows, *rest = (table.axes(d) for d in ctx.tensor(op.inputs[1]).dims)
    columns = tuple(a for axes in rest for a in axes)
    # Ranks that share the table must see the same tokens.
    have = ctx.settled(op.inputs[0])
    ids = Layout.of({d: _leading(axes, {*rows, *columns}) for d, axes in have.split})
    held = {d: table.axes(d) for d in ctx.tensor(op.inputs[1]).dims[1:]}
    return Need((ids, table), Layout.of({**ids.as_dict(), **held}, rows))


def pos_lookup_rule(op: Op, ctx: Context) -> Need:
    ids, table = ctx.settled(op.inputs[0]), ctx.layouts[op.inputs[1]]
    return Need((ids, table), Layout.of({**ids.as_dict(), "hidden": table.axes("hidden")}))


def topk_rule(op: Op, ctx: Context) -> Need:
    target = _whole(ctx.settled(op.inputs[0]), ctx.tensor(op.inputs[0]).dims[-1])
    return Need((target,), project(target, ctx.tensor(op.output).dims))


def gather_scores_rule(op: Op, ctx: Context) -> Need:
    if op.fn == "of_experts":  # a table that every rank has whole, read where the chosen experts' numbers lie
        ids = ctx.settled(op.inputs[0])
        return Need((ids, ctx.layouts[op.inputs[1]]), project(ids, ctx.tensor(op.output).dims))
    target = _whole(ctx.settled(op.inputs[0]), ctx.tensor(op.inputs[0]).dims[-1])
    return Need((target, project(target, ctx.tensor(op.inputs[1]).dims)), project(target, ctx.tensor(op.output).dims))


def to_nodes_rule(op: Op, ctx: Context) -> Need:
    """Hierarchical dispatch, first step: tokens spread over the expert ranks, so that each leaves for a node once; the next
    operator asks for them node by node."""
    p = ctx.placement
    x = ctx.settled(op.inputs[0])
    nodes, tokens = p.axis("ep_nodes"), p.routed(x)
    if not p.dispatches(x) or not any(axes[-len(nodes) :] == nodes for _, axes in tokens.split):
        raise Refused(
            f"{op.name}: ep_nodes({p.mesh.words(nodes, 'ep_nodes')}) needs tokens that leave for the nodes by all-to-all, and "
            f"they lie {p.words(tokens)}; deal sequences out over the nodes (attn_dp across nodes, tp inside), or use ep_nodes=1"
        )
    inputs = tuple(project(tokens, ctx.tensor(n).dims) for n in op.inputs)
    return Need(inputs, tokens)


def _in_node(sent: Layout, ctx: Context) -> dict[str, Axes]:
    """How the tokens that left as `sent` lie once they are in their node: each rank has those of the ranks that hold its
    place in the other nodes."""
    nodes = ctx.placement.axis("ep_nodes")
    return {d: tuple(a for a in sent.axes(d) if a not in nodes) for d in ("batch_size", "seq_len")}


def from_nodes_rule(op: Op, ctx: Context) -> Need:
    """Each rank adds up what the nodes send back for the tokens that left it; a pending sum passes through."""
    home = ctx.layouts[op.attrs["left"]]
    pending = tuple(a for a in ctx.layouts[op.inputs[0]].pending if a not in home.used())
    return Need((Layout.of(home.as_dict(), pending),), Layout.of(home.as_dict(), pending))


def dispatch_rule(op: Op, ctx: Context) -> Need:
    """Experts on ranks that see the tokens anyway: each rank picks its own. Else tokens are spread over the expert ranks
    first and leave by all-to-all (the next operator asks for experts split, tokens whole)."""
    p = ctx.placement
    if "expert_nodes" in ctx.tensor(op.inputs[0]).dims:
        arrived, nodes = _in_node(ctx.layouts[op.inputs[0]], ctx), p.axis("ep_nodes")
        return Need(
            (Layout.of({**arrived, "expert_nodes": nodes}),) * len(op.inputs), Layout.of({**arrived, "experts": nodes})
        )
    x = ctx.settled(op.inputs[0])
    if p.dispatches(x):
        tokens = p.routed(x)
        split = tokens.as_dict()
    else:
        tokens = p.gathered(x)
        split = {**tokens.as_dict(), "experts": p.axis("ep")}
    inputs = tuple(project(tokens, ctx.tensor(n).dims) for n in op.inputs)
    return Need(inputs, Layout.of(split))


def combine_rule(op: Op, ctx: Context) -> Need:
    """The mirror image of dispatch; a pending sum of sliced experts passes through, because combining is linear."""
    y, ids = op.inputs[0], op.inputs[1]
    have = ctx.layouts[y]
    sent = ctx.layouts[op.attrs["dispatched"]] if "dispatched" in op.attrs else ctx.layouts[ids]
    experts = () if not sent.axes("experts") else have.axes("experts")
    tokens = {d: sent.axes(d) for d in ("batch_size", "seq_len")}
    pending = tuple(a for a in have.pending if not any(a in axes for axes in tokens.values()))
    need_y = Layout.of({**tokens, "experts": experts}, pending)
    if "expert_nodes" in ctx.tensor(op.output).dims:
        nodes = sent.axes("experts")
        out = Layout.of({**tokens, "expert_nodes": nodes}, pending)
        return Need(
            (Layout.of({**tokens, "experts": nodes}, pending), *(out.without_pending(),) * len(op.inputs[1:])), out
        )
    rest = tuple(project(Layout.of(tokens), ctx.tensor(n).dims) for n in op.inputs[1:])
    return Need((need_y, *rest), Layout.of(tokens, (*pending, *experts)))


def select_last_rule(op: Op, ctx: Context) -> Need:
    """Only the rank with the last position has it; under sequence parallelism the sequence is gathered first."""
    target = _whole(ctx.settled(op.inputs[0]), "seq_len")
    return Need((target,), project(target, ctx.tensor(op.output).dims))


def sampler_rule(op: Op, ctx: Context) -> Need:
    dims = ctx.tensor(op.inputs[0]).dims
    target = _whole(ctx.settled(op.inputs[0]), dims[-1])
    return Need((target,), project(target, ctx.tensor(op.output).dims))


def state_rule(op: Op, ctx: Context) -> Need:
    """A convolution or recurrence over positions: every rank has all positions of its sequences and heads, in order, and
    keeps the state of these."""
    out = set(ctx.tensor(op.output).dims)
    # A key that all heads share says nothing of where they lie.
    first = max((n for n in op.inputs if not ctx.is_weight(n)), key=lambda n: len(out & set(ctx.tensor(n).dims)))
    # A state lies the same in every phase, whatever sequence parallelism did before.
    have = {**ctx.settled(first).as_dict(), "batch_size": ctx.placement.tokens()["batch_size"]}
    lead = _whole(Layout.of(have), "seq_len")
    inputs = tuple(
        _check_weight(op, n, ctx, lead) if ctx.is_weight(n) else project(lead, ctx.tensor(n).dims) for n in op.inputs
    )
    return Need(inputs, project(lead, ctx.tensor(op.output).dims))


RULES: dict[str, Callable[[Op, Context], Need]] = {
    "einsum": einsum_rule, "elementwise": elementwise_rule, "norm": norm_rule, "sumsq": sumsq_rule, "rms_apply": rms_apply_rule,
    "softmax": softmax_rule, "mask": mask_rule, "rope": local_rule, "renormalise": local_rule,
    "assign_copies": local_rule, "cache": cache_rule,
    "reduce": reduce_rule, "repeat_heads": repeat_heads_rule, "embed": embed_rule, "pos_lookup": pos_lookup_rule,
    "topk": topk_rule, "select": topk_rule, "block_max": block_max_rule, "of_layer": of_layer_rule, "part": part_rule,
    "gather_scores": gather_scores_rule, "dispatch": dispatch_rule, "combine": combine_rule,
    "to_nodes": to_nodes_rule, "from_nodes": from_nodes_rule,
    "select_last": select_last_rule,
    "unpad": sampler_rule, "argmax": sampler_rule, "conv": state_rule, "recur": state_rule,
}  # fmt: skip
