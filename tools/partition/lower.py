"""Walks a body, applies the rules, inserts the collectives; assembles pipeline stages into one Program.

A `PBody` is the program that every rank of a device group runs (SPMD): its operators carry layouts, its collectives
carry axes. It has no sizes and no degrees; `Bound` adds those. A `Program` is one replica: stages of bodies, with the
layers of each, and the ranks of each.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from tools.graph.build import embed_body, head_body, layer_body
from tools.graph.ir import Body, Op, Size, Sizes, Tensor
from tools.graph.routing import node_sizes, node_tokens, routed_name
from tools.graph.semantics import STATEFUL
from tools.partition.axes import check_axes
from tools.partition.layout import Comm, Layout, Orders, local_size, redistribute
from tools.partition.mesh import Mesh, build_mesh
from tools.partition.pipeline import default_layers_per_stage as default_layers_per_stage
from tools.partition.pipeline import handover, num_chunks, ranks_of
from tools.partition.placement import Placement, placed
from tools.partition.ring import ring_region, unroll
from tools.partition.rules import RULES, Context
from tools.partition.transfer import Side
from tools.spec.base import Refused, ToolError
from tools.spec.model import LayerKind, ModelSpec, with_nodes, with_redundant
from tools.spec.strategy import Phase, Strategy


@dataclass(frozen=True, slots=True)
class PTensor:
    """A tensor of the per-device program: `origin` is its name in the unpartitioned graph."""

    name: str
    origin: str
    layout: Layout
    partial: bool = False
    """A value that only exists inside a rewrite (one ring step): the unpartitioned model has no such tensor."""
    group: str = ""
    """Device group whose ranks hold it; "" where a stage has one group only."""


@dataclass(frozen=True, slots=True)
class POp:
    """One step of every rank: an operator (`comm` None) or a collective (`op` None) on `inputs` → `output`."""

    name: str
    inputs: tuple[str, ...]
    output: str
    op: Op | None = None
    comm: Comm | None = None

    @property
    def kernel(self) -> str:
        return self.op.kernel if self.op else self.name


@dataclass(frozen=True, slots=True)
class PBody:
    """Per-device program of one body: steps in execution order, every tensor with its layout."""

    body: Body
    ops: tuple[POp, ...]
    tensors: Mapping[str, PTensor]
    inputs: tuple[str, ...]
    output: str
    carries: tuple[tuple[str, str], ...] = ()
    """(tensor that is handed on beside the output, what it is called here once it lies as others will read it)."""

    @property
    def name(self) -> str:
        return self.body.name

    def spec(self, tensor: str) -> Tensor:
        """Dims, kind and dtype of a tensor of this program."""
        return self.body.tensors[self.tensors[tensor].origin]

    def layout(self, tensor: str) -> Layout:
        return self.tensors[tensor].layout

    def group(self, tensor: str) -> str:
        """Device group that holds the tensor."""
        return self.tensors[tensor].group

    def weights(self) -> Iterator[PTensor]:
        return (self.tensors[t.name] for t in self.body.weights())

    def kernels(self) -> Iterator[tuple[str, tuple[POp, ...]]]:
        """Operators that run as one launch, in order; a collective is a kernel of its own."""
        seen: dict[str, list[POp]] = {}
        for p in self.ops:
            seen.setdefault(p.kernel, []).append(p)
        return ((k, tuple(v)) for k, v in seen.items())

    def digest(self) -> str:
        """Hash of structure: operators, wiring, layouts, collectives; no sizes. Equal for the published and the proven graph."""
        rows: list[Any] = []
        for p in self.ops:
            what = (p.op.kind, p.op.fn) if p.op else (p.comm.kind, p.comm.axes, p.comm.src_dim, p.comm.dst_dim)  # type: ignore[union-attr]
            rows.append((p.name, p.inputs, p.output, what, str(self.layout(p.output)), self.spec(p.output).dims))
            if self.group(p.output):
                rows.append(self.group(p.output))
        rows += sorted((t.name, str(t.layout)) for t in self.tensors.values())
        rows += self.carries
        return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


class _Lowering:
    def __init__(self, body: Body, placement: Placement, inputs: Mapping[str, Layout]):
        self.body, self.placement = body, placement
        self.ops: list[POp] = []
        self.tensors: dict[str, PTensor] = {t.name: self.weight(t) for t in body.weights()}
        for name, layout in inputs.items():
            self.tensors[name] = PTensor(name, name, layout, group=placement.main)
        self.moved: dict[tuple[str, Layout], str] = {}
        """Copies by what they are copies of ("NAME to GROUP" in another device group) and how they lie."""
        self.layouts = {t.name: t.layout for t in self.tensors.values()}

    def weight(self, t: Tensor) -> PTensor:
        """A weight lies in the group of the operators that read it."""
        reader = next((op for op in self.body.ops if t.name in op.inputs), None)
        group = self.placement.group_of(reader) if reader else self.placement.main
        layout = self.placement.weight(t, group, reader.module if reader else "")
        return PTensor(t.name, t.name, layout, group=group)

    def bring(self, name: str, want: Layout, group: str | None = None) -> str:
        """`name` in layout `want` on the ranks of `group` (its own by default): itself, or a copy that was sent there, made
        once."""
        group = self.tensors[name].group if group is None else group
        if self.tensors[name].group != group:
            return self.send(name, want, group)
        if self.layouts[name] == want:
            return name
        current, before = name, self.layouts[name]
        for comm, layout in redistribute(before, want):
            self.refuse_torn(name, comm, before, layout)
            before = layout
            current = self.copy(current, name, layout, group, comm)
        return current

    def copy(self, current: str, name: str, layout: Layout, group: str, comm: Comm) -> str:
        """`name` after `comm` made it from `current`; the same copy if that was done before."""
        key = (name if group == self.tensors[name].group else f"{name} to {group}", layout)
        if key not in self.moved:
            made = f"{name}@{comm.kind}"
            if made in self.tensors:
                made = f"{made}{len(self.moved)}"
            self.tensors[made] = PTensor(made, self.tensors[name].origin, layout, group=group)
            self.ops.append(POp(made, (current,), made, comm=comm))
            self.moved[key] = made
        return self.moved[key]

    def send(self, name: str, want: Layout, group: str) -> str:
        """To the ranks of another group, straight into the layout that is wanted there."""
        mine, spec = self.tensors[name], self.body.tensors[self.tensors[name].origin]
        if mine.group and want.pending:
            raise Refused(f"{name} goes to the {group} ranks, where a sum over them would stay pending")
        ready = self.bring(name, self.placement.leaving(spec, mine.layout), mine.group)
        return self.copy(ready, name, want, group, Comm("transfer", ()))

    def visible(self, op: Op, group: str) -> Mapping[str, Layout]:
        """Layouts as an operator of `group` sees them: what other groups made as it would arrive."""
        foreign = {
            n: self.placement.arrival(self.body.tensors[self.tensors[n].origin], group)
            for n in op.inputs
            if self.tensors[n].group != group
        }
        return {**self.layouts, **foreign} if foreign else self.layouts

    def refuse_torn(self, name: str, comm: Comm, before: Layout, after: Layout) -> None:
        """A dim that is not dealt out in runs moves over all its axes at once or not at all."""
        for dim, layout in ((comm.src_dim, before), (comm.dst_dim, after)):
            if dim and self.placement.orders.get(dim, "run") != "run" and layout.axes(dim) != comm.axes:
                words = self.placement.mesh.words
                raise Refused(
                    f"{comm.kind} of {name}: {dim} is dealt out {self.placement.orders[dim]} over {words(layout.axes(dim))}, only "
                    f"{words(comm.axes)} would move; choose degrees so that one axis covers the other"
                )

    def step(self, op: Op) -> None:
        if op.kind == "combine":
            op = Op(
                op.name,
                op.kind,
                op.inputs,
                op.output,
                op.kernel,
                op.module,
                op.fn,
                {**op.attrs, "dispatched": "dispatch"},
            )
        group = self.placement.group_of(op)
        need = RULES[op.kind](op, Context(self.body, self.visible(op, group), self.placement))
        inputs = tuple(self.bring(n, want, group) for n, want in zip(op.inputs, need.inputs, strict=True))
        self.ops.append(POp(op.name, inputs, op.output, op=op))
        self.tensors[op.output] = PTensor(op.output, op.output, need.output, group=group)
        self.layouts[op.output] = need.output

    def ring(self) -> None:
        """Attention as a ring: its inputs brought home, then all steps written out."""
        region, _ = ring_region(self.body)
        made = {op.output for op in region}
        attention, tokens = self.placement.attention(), self.placement.tokens()
        for name in dict.fromkeys(n for op in region for n in op.inputs if n not in made):
            t = self.body.tensors[name]
            if t.kind == "activation" and "kv_heads" not in t.dims:
                want = Layout.of({d: attention.get(d, tokens.get(d, ())) for d in t.dims})
                if self.layouts[name] != want:
                    words = self.placement.words
                    raise Refused(
                        f"ring attention: {name} lies {words(self.layouts[name])}, the ring needs {words(want)}"
                    )

        def emit(op: Op, inputs: tuple[str, ...], output: str, origin: str, layout: Layout) -> None:
            self.ops.append(POp(output, inputs, output, op=replace(op, name=output, inputs=inputs, output=output)))
            part = "#" in output or output.startswith("ring_")
            self.tensors[output] = PTensor(output, origin, layout, part, self.placement.main)
            self.layouts[output] = layout

        def shift(comm: Comm, src: str, output: str, origin: str, layout: Layout) -> None:
            self.ops.append(POp(output, (src,), output, comm=comm))
            self.tensors[output] = PTensor(output, origin, layout, output.startswith("ring_"), self.placement.main)
            self.layouts[output] = layout

        unroll(self.body, self.placement, emit, shift, self.layouts.__getitem__)


def partition_body(body: Body, placement: Placement, inputs: Mapping[str, Layout], want: Layout | None) -> PBody:
    """Per-device program of `body`; its output is brought to `want` (None: left as it comes)."""
    low = _Lowering(body, placement, inputs)
    region = {op.output for op in ring_region(body)[0]} if placement.rings else set()
    done = False
    for op in body.ops:
        if op.output not in region:
            low.step(op)
        elif not done:
            done = True
            low.ring()
    output = low.bring(body.output, want, placement.main) if want is not None else body.output
    carries = tuple((n, low.bring(n, placement.handed(body.tensors[n]), placement.main)) for n in body.carries)
    return PBody(body, tuple(low.ops), dict(low.tensors), body.inputs, output, carries)


@lru_cache(maxsize=4096)
def partition_embed(model: ModelSpec, placement: Placement) -> PBody:
    return partition_body(embed_body(model), placement, {"ids": Layout.of(placement.tokens())}, placement.residual())


@lru_cache(maxsize=4096)
def partition_layer(model: ModelSpec, kind: LayerKind, placement: Placement, absorb: bool = True) -> PBody:
    body = layer_body(model, kind, placement.phase, absorb, placement.splits_kv or placement.rings)
    inputs = {n: placement.handed(body.tensors[n]) for n in body.inputs[1:]}
    return partition_body(body, placement, {"x": placement.residual(), **inputs}, placement.residual())


@lru_cache(maxsize=4096)
def partition_head(model: ModelSpec, placement: Placement, logits: str = "last") -> PBody:
    return partition_body(head_body(model, logits), placement, {"x": placement.residual()}, None)


# --------------------------------------------------------------------------------------------------------------- program


@dataclass(frozen=True, slots=True)
class Run:
    """`repeat` copies of a sequence of layer bodies; `layers` lists the model's layer indices, repeat-major."""

    bodies: tuple[PBody, ...]
    repeat: int
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """One chunk of a pipeline: a run of layers and the ranks of one replica that hold it, in mesh order, as global device
    ids. Without interleaving a stage holds one chunk."""

    index: int
    ranks: tuple[int, ...]
    embed: PBody | None
    runs: tuple[Run, ...]
    head: PBody | None
    receives: tuple[tuple[int, int], ...] = ()
    """(sender, receiver) global ranks of the residual stream that arrives from the previous stage."""
    carried: tuple[str, ...] = ()
    """What arrives with it: tensors that earlier bodies carry and this stage or a later one reads."""

    def bodies(self) -> Iterator[tuple[PBody, int]]:
        """Every distinct body with the number of times this stage runs it."""
        if self.embed:
            yield self.embed, 1
        for run in self.runs:
            for b in run.bodies:
                yield b, run.repeat
        if self.head:
            yield self.head, 1

    @property
    def num_layers(self) -> int:
        return sum(len(r.layers) for r in self.runs)


@dataclass(frozen=True, slots=True)
class Program:
    """The per-device graph of one replica, with its sizes. Replicas (dp) are copies of it on the following ranks."""

    model: ModelSpec
    strategy: Strategy
    phase: Phase
    mesh: Mesh
    stages: tuple[Stage, ...]
    sizes: Sizes = field(compare=False)
    first: int = 0
    """Global rank of its first device; above 0 for the second pool of a deployment."""

    @property
    def orders(self) -> Orders:
        """How dims that are not split in runs are dealt out."""
        return placement_of(self.strategy, self.mesh, self.phase).orders

    @property
    def num_devices(self) -> int:
        return self.strategy.num_devices

    @property
    def on_ranks(self) -> tuple[Stage, ...]:
        """Everything that the ranks of each pipeline stage hold: the chunks of an interleaved pipeline together, else
        `stages`. `receives` are those of all its chunks."""
        chunks: dict[tuple[int, ...], list[Stage]] = {}
        for s in self.stages:
            chunks.setdefault(s.ranks, []).append(s)
        return tuple(_together(i, mine) for i, mine in enumerate(chunks.values()))

    def digest(self) -> str:
        """Structure of all stages, repeats written as "more than one or not", no sizes."""
        rows = [
            (
                s.index,
                len(s.ranks),
                *([s.carried] if s.carried else []),
                [(b.name, b.digest(), n > 1) for b, n in s.bodies()],
            )
            for s in self.stages
        ]
        return hashlib.sha256(repr((self.phase, rows)).encode()).hexdigest()[:16]


def _together(index: int, chunks: Sequence[Stage]) -> Stage:
    if len(chunks) == 1:
        return chunks[0]
    return replace(
        chunks[0], index=index, embed=next((s.embed for s in chunks if s.embed), None),
        runs=tuple(r for s in chunks for r in s.runs), head=next((s.head for s in chunks if s.head), None),
        receives=tuple(pair for s in chunks for pair in s.receives),
    )  # fmt: skip


def compress(kinds: Sequence[LayerKind]) -> list[tuple[tuple[LayerKind, ...], int]]:
    """Runs of repeated patterns: [A, B, B, B] → [((A,), 1), ((B,), 3)]; [A, B, A, B] → [((A, B), 2)]."""
    out: list[tuple[tuple[LayerKind, ...], int]] = []
    i = 0
    while i < len(kinds):
        best_period, best_count = 1, 1
        for period in range(1, min(12, len(kinds) - i) + 1):
            pattern = tuple(kinds[i : i + period])
            count = 1
            while tuple(kinds[i + count * period : i + (count + 1) * period]) == pattern:
                count += 1
            if count > 1 and period * count > best_period * best_count:
                best_period, best_count = period, count
        out.append((tuple(kinds[i : i + best_period]), best_count))
        i += best_period * best_count
    return out


def lower(
    model: ModelSpec, strategy: Strategy, phase: Phase, sizes: Sizes, *, absorb: bool = True, logits: str = "last"
) -> Program:
    """Per-device graph of one replica of `model` under `strategy`.

    `sizes` as from `tools.graph.build.all_sizes` with batch_size per replica. Raises Refused with op, dim and axis for
    what cannot be represented, ToolError for degrees that contradict the model.
    """
    model = with_nodes(with_redundant(model, strategy.redundant_experts), strategy.ep_nodes)
    if model.moe and strategy.ep_nodes > 1:
        sizes = {**sizes, **node_sizes(model.moe)}
    if model.moe and strategy.redundant_experts and "experts" in sizes:
        sizes = {**sizes, "experts": model.moe.num_slots}  # callers give the lengths of the model without copies
    check_axes(model, strategy)
    mesh = build_mesh(strategy, model.cache_heads)
    placement = placement_of(strategy, mesh, phase)
    _check_placements(model, strategy, phase)
    chunks = num_chunks(strategy)
    per_stage = strategy.layers_per_stage or default_layers_per_stage(model.num_hidden_layers, chunks)
    kinds, stages, first = model.layers(), [], 0
    for i, count in enumerate(per_stage):
        runs, at = [], first
        for pattern, repeat in compress(kinds[first : first + count]):
            bodies = tuple(partition_layer(model, k, placement, absorb) for k in pattern)
            runs.append(Run(bodies, repeat, tuple(range(at, at + repeat * len(pattern)))))
            at += repeat * len(pattern)
        stages.append(
            Stage(
                index=i,
                ranks=ranks_of(strategy, i),
                embed=partition_embed(model, placement) if i == 0 else None,
                runs=tuple(runs),
                head=partition_head(model, placement, logits) if i == chunks - 1 else None,
                receives=handover(strategy, i, mesh.ranks(placement.main)),
            )
        )
        first += count
    return Program(model, strategy, phase, mesh, _with_carried(stages), sizes)


def _with_carried(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Stages with what each of them receives beside the residual stream: what it or a later one reads before making it."""
    out: list[Stage] = []
    wanted: frozenset[str] = frozenset()
    for stage in reversed(stages):
        for pbody, _ in reversed(list(stage.bodies())):
            wanted = wanted - {n for n, _ in pbody.carries} | frozenset(pbody.inputs[1:])
        out.append(replace(stage, carried=tuple(sorted(wanted))))
    return tuple(reversed(out))


def placement_of(strategy: Strategy, mesh: Mesh, phase: Phase) -> Placement:
    """The strategy's layouts on its mesh."""
    ring = strategy.cp if strategy.cp_kind == "ring" and strategy.cp > 1 else 0
    moves = strategy.moe_comm
    pass_q = ring > 0 and strategy.ring_pass == "q"
    return Placement(mesh.shape, phase, strategy.sp, moves, ring, pass_q=pass_q, overrides=strategy.placements)


def _check_placements(model: ModelSpec, s: Strategy, phase: Phase) -> None:
    """Every entry means some weight of the model, and every dim it names is one of that weight's."""
    if not s.placements:
        return
    bodies = [
        embed_body(model),
        *(layer_body(model, k, phase) for k in dict.fromkeys(model.layers())),
        head_body(model),
    ]
    found: dict[str, set[str]] = {name: set() for name, _ in s.placements}
    modules: set[str] = set()
    for body in bodies:
        for op in body.ops:
            for t in (body.tensors[n] for n in op.inputs if body.tensors[n].kind == "weight"):
                modules.add(op.module)
                for name in found:
                    if placed(name, t.name, op.module):
                        found[name] |= set(t.dims)
    for name, split in s.placements:
        if not found[name]:
            near = difflib.get_close_matches(name, modules, 3) or sorted(modules)
            raise ToolError(f"placements: no weight of {model.name} is called {name}; near: {', '.join(near)}")
        wrong = next((d for d, _ in split if d not in found[name]), None)
        if wrong is not None:
            raise ToolError(f"placements: {name} has no dim {wrong}; it has {', '.join(sorted(found[name]))}")


# ----------------------------------------------------------------------------------------------------------------- sizes


def local_dims(pbody: PBody, tensor: str, sizes: Sizes, mesh: Mesh) -> dict[str, Size]:
    """Longest local length of every dim of a tensor; for routed tensors batch_size x seq_len read `expert_tokens`,
    or `node_tokens` where they travel between nodes."""
    t, layout = pbody.spec(tensor), pbody.layout(tensor)
    dims = {d: local_size(sizes[d], mesh.degree(layout.axes(d))) for d in t.dims}
    if not t.routed:
        return dims
    tokens = dims.pop("batch_size") * dims.pop("seq_len")
    parts = "expert_nodes" if "expert_nodes" in dims else "experts"
    out = {parts: dims.pop(parts), routed_name(t.dims): expected_tokens(t.dims, tokens, sizes)}
    return out | dims


def expected_tokens(dims: Iterable[str], tokens: Size, sizes: Sizes) -> Any:
    """Of `tokens`, those that one expert gets (⌈tokens · top_k / experts⌉), or one node."""
    if "expert_nodes" in dims:
        expected = np.ceil(node_tokens(tokens, sizes) - 1e-9)
        return expected.astype(np.int64) if np.ndim(expected) else int(expected)
    return -(-tokens * sizes["top_k"] // sizes["experts"])


def keepers(pbody: PBody) -> tuple[str, ...]:
    """Tensors of which something is kept from one step to the next: caches, and states of linear attention."""
    return tuple(p.output for p in pbody.ops if p.op is not None and p.op.kind in ("cache", *STATEFUL))


def kept_dims(pbody: PBody, tensor: str) -> tuple[str, ...]:
    """Dims of what is kept of it: all positions of a cache, the last state, what a convolution still sees."""
    dims = pbody.spec(tensor).dims
    kind = next(p.op.kind for p in pbody.ops if p.op is not None and p.output == tensor)
    if kind == "recur":
        return tuple(d for d in dims if d != "seq_len")
    return tuple("conv_past" if d == "seq_len" else d for d in dims) if kind == "conv" else dims


def ends_of(pbody: PBody, p: POp, mesh: Mesh, orders: Orders) -> tuple[Side, Side]:
    """Senders and receivers of a transfer, by their ranks inside the stage."""
    (source,) = p.inputs
    sides = (Side(pbody.layout(n), mesh, mesh.ranks(pbody.group(n)), orders) for n in (source, p.output))
    return next(sides), next(sides)


def num_elements(dims: Mapping[str, Size]) -> Size:
    n: Size = 1
    for v in dims.values():
        n = n * v
    return n


def refuse_unknown_dims(body: Body, sizes: Sizes) -> None:
    unknown = {d for t in body.tensors.values() for d in t.dims} - set(sizes)
    if unknown:
        raise Refused(f"{body.name}: no length known for dims {sorted(unknown)}")
