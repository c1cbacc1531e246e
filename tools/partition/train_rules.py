"""Rules of the backward operators: how gradients lie, given how forward tensors lie. Companion of `rules.py`.

Nothing is said about collectives of a backward pass. The gradient of a tensor is brought to where that tensor lay
(`homes`); a weight's gradient is cut as the weight is and sums over tokens, so it is pending over every axis that split the
tokens. The mirror images of the forward collectives, and data parallelism's reduction, follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tools.graph.ir import Op
from tools.partition.layout import Layout
from tools.partition.mesh import Axes
from tools.partition.rules import RULES, Context, Need, _check_weight, _leading, _whole, project


@dataclass(frozen=True, slots=True)
class GradContext(Context):
    """`homes`: where each gradient of this body belongs, that is, where its forward tensor lay."""

    homes: Mapping[str, Layout] = field(default_factory=dict)

    def settled(self, name: str) -> Layout:
        have = self.layouts[name]
        if not have.pending:
            return have
        if name in self.homes:
            return self.homes[name]
        return self.placement.home(self.tensor(name).dims, have)

    def at_home(self, name: str) -> Layout:
        """A gradient's home; for what is none, where it lies, settled."""
        return self.homes.get(name) or self.settled(name)

    def linear(self, name: str) -> Layout:
        """As `at_home`, but a sum that is pending on parts cut as at home may stay pending."""
        have, home = self.layouts[name], self.at_home(name)
        return have if have.pending and have.reduce == "sum" and have.without_pending() == home else home


def rule_of(op: Op) -> Callable[[Op, GradContext], Need]:
    """The rule of an operator of a training step. A forward operator that is made again inside a backward kernel follows
    the forward kernel's rule."""
    if op.kernel.endswith("_bwd") and "wgrad" not in op.attrs and op.kind in RULES:
        return lambda op, ctx: RULES[op.kind](replace(op, kernel=op.kernel.removesuffix("_bwd")), ctx)
    if op.kind == "einsum" and "wgrad" in op.attrs:
        return einsum_grad_rule
    return GRAD_RULES.get(op.kind) or RULES[op.kind]  # type: ignore[return-value]


def einsum_grad_rule(op: Op, ctx: GradContext) -> Need:
    """As the forward rule: weights stay. The gradient of a weight is cut as the weight. A pending factor leaves the product
    pending, if no dim here is cut along those axes."""
    g = next(n for n in op.inputs if n in ctx.homes)
    out = ctx.tensor(op.output).dims
    want: dict[str, Axes] = {d: ctx.homes[op.output].axes(d) for d in out} if op.attrs["wgrad"] else {}
    for n in op.inputs:
        if ctx.is_weight(n):
            want.update({d: ctx.layouts[n].axes(d) for d in ctx.tensor(n).dims})
    dims = {d for n in op.inputs for d in ctx.tensor(n).dims}
    if op.kernel.startswith("attention"):
        want.update({d: axes for d, axes in ctx.placement.attention().items() if d in dims and d not in want})
    taken = {a for axes in want.values() for a in axes}
    have = ctx.layouts[g]
    pending = have.pending if have.reduce == "sum" and not taken & set(have.pending) else ()
    taken |= set(pending)
    for n in op.inputs:
        if ctx.is_weight(n):
            continue
        lies = have.without_pending() if n == g and pending else _where(n, op, ctx)
        for dim, axes in lies.split:
            if dim not in want and (free := _leading(axes, taken)):
                want[dim] = free
                taken |= set(free)
    inputs = tuple(
        ctx.layouts[n]
        if ctx.is_weight(n)
        else Layout.of({d: want.get(d, ()) for d in ctx.tensor(n).dims}, pending if n == g else ())
        for n in op.inputs
    )
    lost = tuple(a for d, axes in want.items() if d in dims and d not in out for a in axes)
    return Need(inputs, Layout.of({d: want.get(d, ()) for d in out}, (*lost, *pending)))


def _where(name: str, op: Op, ctx: GradContext) -> Layout:
    """Where a factor lies; what attention made whole goes back to where the tokens belong."""
    have, t = ctx.settled(name), ctx.tensor(name)
    if t.routed or op.kernel.startswith("attention"):
        return have
    split = have.as_dict()
    for dim, axes in ctx.placement.tokens().items():
        if dim in t.dims and axes[: len(split.get(dim, ()))] == split.get(dim, ()):
            split[dim] = axes
    return Layout.of(split)


def linear_rule(op: Op, ctx: GradContext) -> Need:
    """One input, dims kept: acts where the gradient belongs, and lets a pending sum pass."""
    target = ctx.linear(op.inputs[0])
    if op.kind == "rope_grad" and ctx.placement.orders.get(str(op.attrs["dim"])) != "paired":
        target = _whole(target, op.attrs["dim"])
    return Need((target,), target)


def as_keys_grad_rule(op: Op, ctx: GradContext) -> Need:
    """kv_len is seq_len again."""
    target = ctx.linear(op.inputs[0])
    split = {("seq_len" if d == "kv_len" else d): a for d, a in target.split}
    return Need((target,), Layout.of(split, target.pending))


def repeat_heads_grad_rule(op: Op, ctx: GradContext) -> Need:
    """Query heads of one KV head on several ranks: their sum is pending over these."""
    src = ctx.settled(op.inputs[0])
    kv = ctx.homes[op.output].axes("kv_heads")
    rest = tuple(a for a in src.axes("heads") if a not in kv)
    return Need((src,), Layout.of({**{d: a for d, a in src.split if d != "heads"}, "kv_heads": kv}, rest))


def sum_to_rule(op: Op, ctx: GradContext) -> Need:
    """A sum over dims: pending over the axes that split them."""
    have = ctx.layouts[op.inputs[0]]
    src = have if have.pending and have.reduce == "sum" else ctx.at_home(op.inputs[0])
    out = ctx.tensor(op.output).dims
    lost = tuple(a for d, axes in src.split if d not in out for a in axes)
    return Need((src,), project(src, out, (*src.pending, *lost)))


def norm_grad_rule(op: Op, ctx: GradContext) -> Need:
    """Where the norm itself ran: its last dim whole."""
    x = op.inputs[1]
    target = _whole(ctx.settled(x), ctx.tensor(x).dims[-1])
    return Need((target, target, *(ctx.layouts[w] for w in op.inputs[2:])), target)


def norm_weight_grad_rule(op: Op, ctx: GradContext) -> Need:
    x = op.inputs[1]
    target = _whole(ctx.settled(x), ctx.tensor(x).dims[-1])
    return Need((target, target), _summed(op, ctx, target))


def _summed(op: Op, ctx: GradContext, target: Layout) -> Layout:
    out = ctx.tensor(op.output).dims
    return project(target, out, tuple(a for d, axes in target.split if d not in out for a in axes))


def rms_apply_grad_rule(op: Op, ctx: GradContext) -> Need:
    """Inputs: the gradient, sum of squares, weight."""
    target = ctx.at_home(op.inputs[0])
    ssq = project(target, ctx.tensor(op.inputs[1]).dims)
    return Need((target, ssq, _check_weight(op, op.inputs[2], ctx, target)), target)


def rms_sums_rule(op: Op, ctx: GradContext) -> Need:
    """Gradients of the sum of squares and of the weight: sums over what their dims lack."""
    target = ctx.settled(op.inputs[1])
    rest = [project(target, ctx.tensor(op.inputs[2]).dims)]
    if len(op.inputs) == 4:
        rest.append(_check_weight(op, op.inputs[3], ctx, target))
    return Need((target, target, *rest), _summed(op, ctx, target))


def softmax_grad_rule(op: Op, ctx: GradContext) -> Need:
    target = _whole(ctx.settled(op.inputs[1]), op.attrs["dim"])
    return Need((target, target), target)


def sink_grad_rule(op: Op, ctx: GradContext) -> Need:
    target = _whole(ctx.settled(op.inputs[1]), op.attrs["dim"])
    return Need((target, target), _summed(op, ctx, target))


def gather_scores_grad_rule(op: Op, ctx: GradContext) -> Need:
    """Every token's scores over all experts, where the token lies."""
    target = _whole(ctx.at_home(op.inputs[0]), "top_k")
    ids = project(target, ctx.tensor(op.inputs[1]).dims)
    return Need((target, ids), project(target, ctx.tensor(op.output).dims))


def renormalise_grad_rule(op: Op, ctx: GradContext) -> Need:
    target = _whole(ctx.settled(op.inputs[1]), op.attrs["dim"])
    return Need((target, target), target)


def route_dot_rule(op: Op, ctx: GradContext) -> Need:
    """The mirror image of combine: experts' values where the tokens are; what is sliced or pending there stays pending."""
    x, y = op.inputs[:2]
    have, sent = ctx.layouts[y], ctx.layouts[op.attrs["dispatched"]]
    experts = have.axes("experts") if sent.axes("experts") else ()
    tokens = {d: sent.axes(d) for d in ("batch_size", "seq_len")}
    busy = {a for axes in tokens.values() for a in axes} | set(experts)
    pending = tuple(a for a in have.pending if a not in busy)
    lie = Layout.of(tokens)
    need_y = Layout.of({**tokens, "experts": experts}, pending)
    return Need((project(lie, ctx.tensor(x).dims), need_y, lie), Layout.of(tokens, (*pending, *experts)))


def embed_grad_rule(op: Op, ctx: GradContext) -> Need:
    """Each vocabulary shard takes what belongs to its rows; pending over the axes that split the tokens."""
    ids, g = op.inputs
    rows = ctx.homes[op.output].axes(ctx.tensor(op.output).dims[0])
    tokens = {d: _leading(axes, set(rows)) for d, axes in ctx.at_home(g).split}
    target = Layout.of({d: a for d, a in tokens.items() if d != "hidden"})
    pending = tuple(a for _, axes in target.split for a in axes)
    vocab = ctx.tensor(op.output).dims[0]
    return Need((project(target, ctx.tensor(ids).dims), target), Layout.of({vocab: rows}, pending))


def pos_grad_rule(op: Op, ctx: GradContext) -> Need:
    target = _whole(ctx.at_home(op.inputs[0]), "hidden")
    return Need((target,), Layout.of({}, tuple(a for _, axes in target.split for a in axes)))


def pick_rule(op: Op, ctx: GradContext) -> Need:
    """Each vocabulary shard answers for its own labels: a pending sum."""
    z, labels = op.inputs
    src = ctx.settled(z)
    vocab = src.axes(ctx.tensor(z).dims[-1])
    tokens = project(src, ctx.tensor(labels).dims)
    return Need((src, tokens), Layout.of(tokens.as_dict(), vocab))


def pick_grad_rule(op: Op, ctx: GradContext) -> Need:
    target = ctx.homes[op.output]
    tokens = project(target, ctx.tensor(op.inputs[0]).dims)
    return Need((tokens, tokens), target)


def local_rule(op: Op, ctx: GradContext) -> Need:
    """Acts on every element where it lies."""
    target = ctx.settled(op.inputs[0])
    return Need((target,), target)


GRAD_RULES: dict[str, Callable[[Op, GradContext], Need]] = {
    "as_keys": RULES["cache"], "mask_vocab": local_rule, "pick": pick_rule, "nll": RULES["elementwise"],
    "as_keys_grad": as_keys_grad_rule, "mask_grad": local_rule, "pick_grad": pick_grad_rule, "unary_grad": RULES["elementwise"],
    "norm_grad": norm_grad_rule, "norm_weight_grad": norm_weight_grad_rule, "sum_to": sum_to_rule,
    "rms_apply_grad": rms_apply_grad_rule, "rms_ssq_grad": rms_sums_rule, "rms_weight_grad": rms_sums_rule,
    "softmax_grad": softmax_grad_rule, "sink_grad": sink_grad_rule, "rope_grad": linear_rule,
    "repeat_heads_grad": repeat_heads_grad_rule, "gather_scores_grad": gather_scores_grad_rule,
    "renormalise_grad": renormalise_grad_rule, "route_dot": route_dot_rule, "embed_grad": embed_grad_rule,
    "pos_grad": pos_grad_rule,
}  # fmt: skip
