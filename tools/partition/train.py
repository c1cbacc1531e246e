"""A training step on all ranks: forward, backward, and optimizer programs of every body, gathered and reduced as ZeRO says.

    forward    the forward body under the strategy's layouts; under ZeRO-3 each weight is gathered before its first use
    rerun      full recomputation: what of the forward body the backward pass needs, run again
    backward   the backward body (tools/graph/backward.py); weights' gradients end as they are accumulated over micro-batches
    update     gradients brought to where the optimizer's states lie, the optimizer, weights brought back

dp is an axis of the mesh here, outside attn_dp: replicas see other tokens, and that is all data parallelism is. A weight's
gradient sums over tokens, so it comes out pending over dp, attn_dp, cp (and tp, for what sequence parallelism splits); the
all-reduce or reduce-scatter is a redistribution like any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from tools.graph.backward import Backward, backward, grad
from tools.graph.build import embed_body
from tools.graph.ir import Body, Op, Sizes, Tensor
from tools.graph.training import LABELS, TOKEN_WEIGHTS, loss_body, train_layer_body
from tools.partition.axes import SLICES, KVHeads, check_axes, cuts
from tools.partition.layout import Layout, redistribute
from tools.partition.lower import PBody, POp, PTensor, _Lowering, compress, default_layers_per_stage
from tools.partition.mesh import Axes, Mesh, MeshShape, mesh_from_cuts
from tools.partition.pipeline import Orders, check_pipeline, num_chunks, order, stage_of
from tools.partition.placement import Placement
from tools.partition.ring import ring_region
from tools.partition.train_ring import backward_region, unroll_backward
from tools.partition.train_rules import GradContext, rule_of
from tools.spec.base import Refused
from tools.spec.model import LayerKind, ModelSpec
from tools.spec.strategy import Strategy
from tools.spec.training import TrainOptions

Layouts = Mapping[str, Layout]


class TrainShape(MeshShape):
    """A mesh with dp outside everything."""

    __slots__ = ()

    def words(self, axes: Axes, first: str = "") -> str:
        dp = self.axis("dp")
        mine, rest = [a for a in axes if a in dp], tuple(a for a in axes if a not in dp)
        said = ["dp" if len(mine) == len(dp) else "part of dp"] if mine else []
        return "·".join([*said, *([MeshShape.words(self, rest, first)] if rest or not said else [])])


def train_mesh(strategy: Strategy, options: TrainOptions, kv_heads: KVHeads) -> Mesh:
    """Mesh of one stage: the replica's axes as in inference, dp outside them, cut at the sharding degree."""
    s, shard = strategy, options.shard_degree(strategy)
    named = cuts({n: s.degree(n) for n in ("tp", "cp", "attn_dp", "ep", "etp")}, kv_heads)
    if s.cp_kind == "ring":
        named["cp_rep"] = named["cp_rep_sliding"] = named["tp"]  # heads are not exchanged, so cp needs no cut for them
    named |= {"shard": s.group * shard, "world": s.group * s.dp}
    mesh = mesh_from_cuts({k: int(v) for k, v in named.items()})
    dp = tuple(a for a in mesh.shape.atoms if mesh.stride(a) >= s.group)
    near = tuple(a for a in dp if mesh.stride(a) < s.group * shard)
    logical = (*mesh.shape.logical, ("dp", dp), ("dp_shard", near))
    return Mesh(TrainShape(mesh.shape.atoms, logical), mesh.degrees)


@dataclass(frozen=True, slots=True)
class TrainPlacement(Placement):
    """Layouts that strategy and options fix for a training step."""

    zero: int = 0
    reshard: bool = True

    def tokens(self) -> Layouts:  # type: ignore[override]
        return {"batch_size": self.axis("dp") + self.axis("attn_dp"), "seq_len": self.axis("cp")}  # type: ignore[dict-item]

    def cache(self) -> Mapping[str, Axes]:
        return {**Placement.cache(self), "batch_size": self.axis("dp") + self.axis("attn_dp")}

    def states(self, t: Tensor) -> Layout:
        """Optimizer states of a weight. ZeRO deals them out over the ranks that hold the same part of the weight but see
        other tokens, along the hidden dim where there is one (every matrix has it whole), else along the first."""
        own = self.weight(t)
        if not self.zero:
            return own
        free = tuple(a for n in ("dp_shard", "attn_dp", "cp") for a in self.axis(n) if a not in own.used())
        whole = [d for d in t.dims if not own.axes(d)]
        dim = "hidden" if "hidden" in whole else (whole or list(t.dims))[0]
        return Layout.of({**own.as_dict(), dim: own.axes(dim) + free})

    def stored(self, t: Tensor) -> Layout:
        """A weight between steps."""
        return self.states(t) if self.zero == 3 else self.weight(t)

    def accumulated(self, t: Tensor, comes: Layout) -> Layout:
        """A weight's gradient while micro-batches are added up: below ZeRO-2 every rank keeps its own summand."""
        if self.zero >= 2:
            return self.states(t)
        own = self.weight(t)
        return Layout.of(own.as_dict(), tuple(a for a in comes.pending if a not in own.used()))


@dataclass(frozen=True, slots=True)
class TrainBody:
    """One body of a training step. `grads`: weight → its accumulated gradient (of `backward`, input of `update`)."""

    name: str
    forward: PBody
    backward: PBody
    update: PBody
    grads: Mapping[str, str]
    rerun: PBody | None = None
    """Full recomputation: run before `backward`, from the body's inputs."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Tensors of the forward program that the backward program reads."""
        return self.backward.inputs[1:]

    @property
    def saved(self) -> tuple[str, ...]:
        """Tensors that are kept from the forward to the backward pass."""
        return self.rerun.inputs if self.rerun else self.reads

    def programs(self) -> Iterator[tuple[str, PBody]]:
        yield "forward", self.forward
        if self.rerun:
            yield "rerun", self.rerun
        yield "backward", self.backward
        yield "update", self.update

    def digest(self) -> str:
        return hashlib.sha256(repr([(n, p.digest()) for n, p in self.programs()]).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class TrainRun:
    bodies: tuple[TrainBody, ...]
    repeat: int
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TrainStage:
    """One chunk of layers on all replicas of its pipeline stage (one per stage, or `virtual` of them). `ranks` are global
    device ids in mesh order."""

    index: int
    ranks: tuple[int, ...]
    embed: TrainBody | None
    runs: tuple[TrainRun, ...]
    loss: TrainBody | None
    receives: tuple[tuple[int, int], ...] = ()
    """(sender, receiver) of the residual stream; its gradient goes the other way."""

    def bodies(self) -> Iterator[tuple[TrainBody, int]]:
        if self.embed:
            yield self.embed, 1
        for run in self.runs:
            for b in run.bodies:
                yield b, run.repeat
        if self.loss:
            yield self.loss, 1

    def sequence(self) -> list[tuple[int | None, TrainBody]]:
        """Bodies in forward order with the index of each layer."""
        out: list[tuple[int | None, TrainBody]] = [(None, self.embed)] if self.embed else []
        for r in self.runs:
            out += [(layer, r.bodies[i % len(r.bodies)]) for i, layer in enumerate(r.layers)]
        return [*out, (None, self.loss)] if self.loss else out

    @property
    def num_layers(self) -> int:
        return sum(len(r.layers) for r in self.runs)


@dataclass(frozen=True, slots=True)
class TrainProgram:
    """The per-device graph of one training step on all devices."""

    model: ModelSpec
    strategy: Strategy
    options: TrainOptions
    mesh: Mesh
    placement: TrainPlacement
    stages: tuple[TrainStage, ...]
    sizes: Sizes = field(compare=False)
    """batch_size: sequences of one micro-batch, all replicas together."""

    @property
    def on_ranks(self) -> tuple[tuple[TrainStage, ...], ...]:
        """Chunks of each pipeline stage."""
        rows: dict[tuple[int, ...], list[TrainStage]] = {}
        for s in self.stages:
            rows.setdefault(s.ranks, []).append(s)
        return tuple(map(tuple, rows.values()))

    @property
    def tied(self) -> str | None:
        """Weight that the first and the last stage both hold, so that its gradient is summed across them."""
        return "embed_tokens" if self.model.tie_word_embeddings and len(self.stages) > 1 else None

    def digest(self) -> str:
        rows = [(s.index, len(s.ranks), [(b.name, b.digest(), n > 1) for b, n in s.bodies()]) for s in self.stages]
        return hashlib.sha256(repr(("train", rows)).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------- one body


class _Step(_Lowering):
    """Lowering of a training step's body. `stored`: weights that lie otherwise than they are used, and are gathered once.
    `held`: tensors of the forward program that are there already."""

    def __init__(
        self, body: Body, placement: TrainPlacement, inputs: Layouts, homes: Layouts | None = None,
        stored: Layouts | None = None,
    ):  # fmt: skip
        super().__init__(body, placement, inputs)
        self.homes, self.stored = homes or {}, stored or {}
        self.held: set[str] = set()
        for name, layout in self.stored.items():
            self.tensors[name] = PTensor(name, name, layout)

    def hold(self, forward: PBody, name: str) -> None:
        """A forward tensor as the forward program left it: where it lies settled, with the copies that moved it. What was
        gathered is not kept: a rank saves its own part and gathers again."""
        home, where = settled_home(forward, name)
        self.layouts[name] = home
        chain = {name}
        for p in forward.ops:
            if p.comm is not None and p.inputs[0] in chain and p.comm.kind != "all_gather":
                chain.add(p.output)
        for copy in sorted(chain, key=lambda c: c != name):
            self.tensors[copy] = replace(forward.tensors[copy])
            self.moved[(name, forward.layout(copy))] = copy
            self.held.add(copy)
        self.moved[(name, home)] = where

    def hold_gathered(self, forward: PBody, weight: str) -> None:
        """A weight that was gathered before and is still there."""
        copies = (t for t in forward.tensors.values() if t.origin == weight and t.layout == self.layouts[weight])
        for t in copies:
            self.tensors[t.name] = t
            self.moved[(weight, t.layout)] = t.name
            self.held.add(t.name)
        self.tensors[weight] = forward.tensors[weight]

    def bring(self, name: str, want: Layout, group: str | None = None) -> str:
        before = self.stored.get(name, self.layouts[name])
        current = self.moved.get((name, before), name)
        path = redistribute(before, self.layouts[name]) if name in self.stored else ()
        for comm, layout in (*path, *redistribute(self.layouts[name], want)):
            self.refuse_torn(name, comm, before, layout)
            before = layout
            if (name, layout) not in self.moved:
                copy = f"{name}@{comm.kind}"
                copy = copy if copy not in self.tensors else f"{copy}{len(self.moved)}"
                self.tensors[copy] = PTensor(copy, name, layout)
                self.ops.append(POp(copy, (current,), copy, comm=comm))
                self.moved[(name, layout)] = copy
            current = self.moved[(name, layout)]
        return current

    def walk(self, region: Sequence[Op], ring: Callable[[], None]) -> None:
        """Every operator; `ring` writes those of `region`, all at once where the first of them stands."""
        names, done = {op.output for op in region}, False
        for op in self.body.ops:
            if op.output not in names:
                self.step(op)
            elif not done:
                done = True
                ring()

    def ring(self) -> None:
        """Attention as a ring; the final row maxima are handed out, the backward pass needs them."""
        region, first = ring_region(self.body)[0], len(self.ops)
        read = {n for op in region for n in op.inputs}
        here = {w.name: self.bring(w.name, self.layouts[w.name]) for w in self.body.weights() if w.name in read}
        first = len(self.ops)
        super().ring()
        moved = [replace(p, inputs=tuple(here.get(n, n) for n in p.inputs)) for p in self.ops[first:]]
        self.ops[first:] = moved
        top = "row_max_sink" if "row_max_sink" in self.body.tensors else "row_max"
        last = f"ring_max#{self.placement.ring - 1}"
        op = Op(top, "elementwise", (last,), top, "attention", "self_attn.ring", "scale", {"c": 1.0})
        self.ops.append(POp(top, (last,), top, op=op))
        self.tensors[top] = PTensor(top, top, self.layouts[last])
        self.layouts[top] = self.layouts[last]

    def step(self, op: Op) -> None:
        if op.kind == "combine" and "dispatched" not in op.attrs:
            op = replace(op, attrs={**op.attrs, "dispatched": "dispatch"})
        need = rule_of(op)(op, GradContext(self.body, self.layouts, self.placement, self.homes))
        inputs = tuple(self.bring(n, want) for n, want in zip(op.inputs, need.inputs, strict=True))
        self.ops.append(POp(op.name, inputs, op.output, op=op))
        self.tensors[op.output] = PTensor(op.output, op.output, need.output)
        self.layouts[op.output] = need.output

    def program(self, inputs: Sequence[str], output: str) -> PBody:
        read = {n for p in self.ops for n in p.inputs} | {output}
        made = {p.output for p in self.ops}
        used = tuple(n for n in self.tensors if n in read and n in self.held and n not in made)
        return PBody(self.body, tuple(self.ops), dict(self.tensors), (*inputs, *used), output)


def settled_home(forward: PBody, name: str) -> tuple[Layout, str]:
    """(where a forward tensor lies once its pending sum is done, which tensor of the program that is)."""
    have = forward.layout(name)
    if have.pending:
        for p in forward.ops:
            t = forward.tensors[p.output]
            if p.comm is not None and t.origin == name and not t.layout.pending and p.comm.kind != "all_gather":
                return t.layout, t.name
    return have, name


def _forward(body: Body, placement: TrainPlacement, inputs: Layouts, want: Layout | None) -> PBody:
    stored = {t.name: placement.stored(t) for t in body.weights() if placement.stored(t) != placement.weight(t)}
    low = _Step(body, placement, inputs, stored=stored)
    low.walk(ring_region(body)[0] if placement.rings else (), low.ring)
    return low.program(body.inputs, low.bring(body.output, want) if want is not None else body.output)


def _backward(
    bw: Backward, forward: PBody, placement: TrainPlacement, want: Layout | None, keeps: bool
) -> tuple[PBody, dict[str, str]]:
    """(backward program, weight → its gradient as it is accumulated). `keeps`: gathered weights are still there."""
    body, seed = bw.body, bw.body.inputs[0]
    at = {t.name: placement.weight(t) for t in bw.forward.weights()}
    homes = {
        g: at[t] if t in at else settled_home(forward, t)[0].without_pending()
        for g, t in bw.of.items()
        if g in body.tensors
        and (t in at or t in forward.tensors)  # a ring's forward pass has some tensors by parts only
    }
    apart = {t.name: placement.stored(t) for t in body.weights() if placement.stored(t) != placement.weight(t)}
    low = _Step(body, placement, {seed: forward.layout(forward.output)}, homes, {} if keeps else apart)
    for name in bw.saved:
        low.hold(forward, name)
    for name in apart if keeps else ():
        low.hold_gathered(forward, name)
    region = backward_region(body) if placement.rings else ()
    low.walk(region, lambda: unroll_backward(low, region))
    named = {t.name: t for t in bw.forward.weights()}
    grads = {w: low.bring(g, placement.accumulated(named[w], low.layouts[g])) for w, g in bw.grads.items()}
    output = low.bring(body.output, want) if want is not None else body.output
    return low.program((seed,), output), grads


def _rerun(forward: PBody, reads: Sequence[str]) -> PBody:
    """The part of a forward program that ends in `reads`."""
    wanted, ops = set(reads), []
    for p in reversed(forward.ops):
        if p.output in wanted:
            ops.append(p)
            wanted |= set(p.inputs)
    return replace(forward, ops=tuple(reversed(ops)), output=ops[0].output if ops else forward.output)


def _update(body: Body, placement: TrainPlacement, options: TrainOptions, grads: Layouts) -> PBody:
    """The optimizer on every weight of a body that has a gradient, where its states lie."""
    a, names = options, [w for w in body.weights() if w.name in grads]
    attrs = {
        "lr": a.learning_rate, "decay": a.weight_decay, "beta1": a.beta1, "beta2": a.beta2, "eps": a.epsilon, "step": 2,
    }  # fmt: skip
    ops: list[Op] = []
    tensors: dict[str, Tensor] = {}
    inputs: dict[str, Layout] = {}
    for t in names:
        own, g = placement.states(t), grad(t.name)
        base = f"master({t.name})" if a.master_weights else t.name
        tensors |= {g: Tensor(g, t.dims, "activation", "fp32"), t.name: t}
        inputs[g] = grads[t.name]
        kept = ([base] if a.master_weights else []) + (["mean", "square"] if a.optimizer == "adam" else [])
        states = [n if n == base else f"{n}({t.name})" for n in kept]
        for n in states:
            tensors[n] = Tensor(n, t.dims, "weight", "fp32")
            inputs[n] = own
        tensors |= {after(n): replace(tensors[n], name=after(n), kind="activation") for n in (*states, t.name)}
        rows: list[tuple[str, tuple[str, ...], str]] = [("sgd_step", (base, g), after(base))]
        if a.optimizer == "adam":
            rows = _adam(t.name, base, g)
        if a.master_weights:
            rows.append(("cast", (after(base),), after(t.name)))
        ops += [
            Op(out, "optimizer", ins, out, f"{t.name}.update", f"optimizer.{t.name}", fn, attrs)
            for fn, ins, out in rows
        ]
    if not ops:
        return PBody(Body(f"{body.name}_update", (), {}, (), ""), (), {}, (), "")
    whole = Body(f"{body.name}_update", tuple(ops), tensors, tuple(inputs), ops[-1].output)
    return _lower_update(whole, placement, inputs)


def after(tensor: str) -> str:
    """A weight or state once the optimizer has stepped."""
    return f"next({tensor})"


def _adam(w: str, base: str, g: str) -> list[tuple[str, tuple[str, ...], str]]:
    mean, square = f"mean({w})", f"square({w})"
    return [
        ("adam_mean", (g, mean), after(mean)), ("adam_square", (g, square), after(square)),
        ("adam_step", (base, after(mean), after(square)), after(base)),
    ]  # fmt: skip


def _lower_update(whole: Body, placement: TrainPlacement, inputs: Layouts) -> PBody:
    updated = {op.module.removeprefix("optimizer.") for op in whole.ops}
    weights = {t.name: t for t in whole.weights() if t.name in updated}
    # A new weight is a weight still: it returns to where the old one lay.
    low = _Step(whole, placement, inputs)
    for t in weights.values():
        low.layouts[t.name] = placement.stored(t)
        low.tensors[t.name] = PTensor(t.name, t.name, placement.stored(t))
    for op in whole.ops:
        t = weights[op.module.removeprefix("optimizer.")]
        own = placement.states(t)
        read = tuple(low.bring(n, own) for n in op.inputs)
        low.ops.append(POp(op.name, read, op.output, op=op))
        low.tensors[op.output] = PTensor(op.output, op.output, own)
        low.layouts[op.output] = own
        if op.output == after(t.name):
            low.bring(op.output, placement.stored(t))
    return low.program(whole.inputs, low.ops[-1].output)


def _train_body(
    body: Body, placement: TrainPlacement, options: TrainOptions, inputs: Layouts, want: Layout | None, *,
    rerun: bool = False, updates_elsewhere: str | None = None,
) -> TrainBody:  # fmt: skip
    forward = _forward(body, placement, inputs, want)
    bw = backward(body, reruns_attention=options.reruns_attention)
    into = placement.residual() if "x" in body.inputs else None
    back, grads = _backward(bw, forward, placement, into, placement.zero == 3 and (rerun or not placement.reshard))
    again = _rerun(forward, back.inputs[1:]) if rerun else None
    mine = {w: back.layout(g) for w, g in grads.items() if w != updates_elsewhere}
    update = _update(body, placement, options, mine)
    return TrainBody(body.name, forward, back, update, grads, again)


@lru_cache(maxsize=4096)
def train_embed(model: ModelSpec, placement: TrainPlacement, options: TrainOptions) -> TrainBody:
    tokens = Layout.of(placement.tokens())  # type: ignore[arg-type]
    return _train_body(embed_body(model), placement, options, {"ids": tokens}, placement.residual())


@lru_cache(maxsize=4096)
def train_layer(model: ModelSpec, kind: LayerKind, placement: TrainPlacement, options: TrainOptions) -> TrainBody:
    body, home = train_layer_body(model, kind, placement.rings), placement.residual()
    return _train_body(body, placement, options, {"x": home}, home, rerun=options.recompute == "full")


@lru_cache(maxsize=4096)
def train_loss(model: ModelSpec, placement: TrainPlacement, options: TrainOptions, alone: bool) -> TrainBody:
    """`alone`: on another stage than the embedding, so that a tied weight is updated here too."""
    tokens = Layout.of(placement.tokens())  # type: ignore[arg-type]
    inputs = {"x": placement.residual(), LABELS: tokens, TOKEN_WEIGHTS: tokens}
    tied = "embed_tokens" if model.tie_word_embeddings and not alone else None
    return _train_body(loss_body(model), placement, options, inputs, Layout(), updates_elsewhere=tied)


# -------------------------------------------------------------------------------------------------------------- program


def train_placement(strategy: Strategy, options: TrainOptions, mesh: Mesh) -> TrainPlacement:
    ring = strategy.cp if strategy.cp_kind == "ring" and strategy.cp > 1 else 0
    return TrainPlacement(
        mesh.shape,
        "prefill",
        strategy.sp,
        strategy.moe_comm,
        ring,
        zero=options.zero,
        reshard=options.reshard_after_forward,
    )


def task_order(strategy: Strategy, options: TrainOptions) -> Orders:
    """What every pipeline stage does in a step: forward and backward tasks, one per micro-batch and chunk."""
    return order(strategy, options.micro_batches, backward=True, kind=options.schedule)


def lower_train(model: ModelSpec, strategy: Strategy, options: TrainOptions, sizes: Sizes) -> TrainProgram:
    """Per-device graph of one training step. `sizes` as from `all_sizes`, batch_size per micro-batch over all replicas.

    Raises Refused with op, dim and axis for what cannot be represented, ToolError for degrees that contradict the model.
    """
    _refuse(strategy, options)
    if model.attention.indexer:
        raise Refused(f"training step on {model.name}: positions that an indexer picks have no backward pass")
    if model.kv_layers or model.layer_inputs:
        raise Refused(
            f"training step on {model.name}: what layers read beside the residual stream has no backward pass"
        )
    check_axes(model, strategy)
    mesh = train_mesh(strategy, options, model.cache_heads)
    placement = train_placement(strategy, options, mesh)
    check_pipeline(strategy, model.num_hidden_layers)
    task_order(strategy, options)  # refuses micro-batches that the schedule cannot take
    chunks = num_chunks(strategy)
    per_stage = strategy.layers_per_stage or default_layers_per_stage(model.num_hidden_layers, chunks)
    kinds, stages, first, width = model.layers(), [], 0, strategy.group * strategy.dp
    for i, count in enumerate(per_stage):
        here, before = stage_of(strategy, i) * width, stage_of(strategy, i - 1) * width
        runs, at = [], first
        for pattern, repeat in compress(kinds[first : first + count]):
            bodies = tuple(train_layer(model, k, placement, options) for k in pattern)
            runs.append(TrainRun(bodies, repeat, tuple(range(at, at + repeat * len(pattern)))))
            at += repeat * len(pattern)
        stages.append(
            TrainStage(
                index=i, ranks=tuple(range(here, here + width)),
                embed=train_embed(model, placement, options) if i == 0 else None, runs=tuple(runs),
                loss=train_loss(model, placement, options, strategy.pp > 1) if i == chunks - 1 else None,
                receives=tuple((before + r, here + r) for r in range(width)) if i else (),
            )
        )  # fmt: skip
        first += count
    return TrainProgram(model, strategy, options, mesh, placement, tuple(stages), sizes)


def _refuse(s: Strategy, o: TrainOptions) -> None:
    """What a training step cannot say yet, or what has no meaning in it."""
    if s.cp > 1 and s.cp_kind == "ring" and not o.reruns_attention:
        raise Refused(
            f"attention, kv_len, cp({s.cp}): a ring keeps no whole row of probabilities that could be saved; use "
            "fused_attention=true, or recompute=selective"
        )
    if s.placements:
        raise Refused("training step, placements: weights placed one by one have no optimizer layout yet; use degrees")
    for axis, why in (
        ("dcp", "deals out a KV cache, and training keeps none"),
        *((name, f"slices {', '.join(x.dims)} of operators without a backward pass") for name, x in SLICES.items()),
        ("seq_slices", "slices prompts; use micro_batches"),
        ("ep_nodes", "dispatches in two steps that have no backward pass yet"),
    ):
        if s.degree(axis) > 1:
            raise Refused(f"training step, {axis}({s.degree(axis)}): {axis} {why}; use {axis}=1")
    for axis, why in (
        ("expert_devices", "device groups of their own have no backward pass"), ("attn_pool", "a pool joins serving only"),
        ("redundant_experts", "copies of an expert would need their gradients added"),
    ):  # fmt: skip
        if getattr(s, axis):
            raise Refused(f"training step, {axis}({getattr(s, axis)}): {why}; use 0")
