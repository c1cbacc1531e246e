"""The schedule view: one lane per pipeline stage, one node per micro-batch (or slice of the prompt) and chunk of layers.

Nodes side by side are in the same turn of their stages; start and end are written on each. Solid edges carry the residual
stream, through a send / receive node where it changes the stage; dashed ones say what a stage turns to next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tools.cost.schedule import Piece, Schedule, pieces_of
from tools.dag import runtime
from tools.dag.graph import Dag, DagEdge, DagNode, Dims, Lane, Port, Role
from tools.dag.text import layers_text
from tools.memory import Dtypes
from tools.partition.lower import PBody, Program, Stage
from tools.partition.pipeline import Task, needs, order, sequence, timeline
from tools.spec.base import ToolError

TURN = "turn"
"""What dashed edges hand on: that the stage is free."""


def schedule_dag(program: Program, times: Schedule | None = None, *, title: str | None = None) -> Dag:
    """Forward schedule of one step of a replica. `times` as from `tools.cost.schedule`; without them a task is as long as
    its matmuls have FLOPs on one device. Raises ToolError if the program has no sizes."""
    missing = [d for d in ("batch_size", "seq_len", "kv_len") if d not in program.sizes]
    if missing:
        raise ToolError(f"a schedule needs the length of {missing}; lower the model with all_sizes(batch_size=…, …)")
    return _Drawing(program, times or by_flops(program)).dag(title)


def by_flops(program: Program) -> Schedule:
    """Tasks as long as the matmuls of their chunk on its busiest device have FLOPs; messages take no time."""
    s, sizes = program.strategy, {k: int(v) for k, v in program.sizes.items()}
    length = sizes["seq_len" if program.phase == "prefill" else "kv_len"]
    pieces = pieces_of(s, program.phase, batch=sizes["batch_size"], seq_len=length)
    work = {p: chunk_flops(program, p) for p in dict.fromkeys(pieces)}
    orders = order(s, len(pieces))
    spans = timeline(orders, len(program.stages) - 1, lambda t: work[pieces[t.piece]][t.chunk] / 1e12)
    return Schedule(pieces, orders, spans, (0.0,) * len(pieces), "TFLOP")


def chunk_flops(program: Program, p: Piece) -> list[float]:
    """FLOPs of the matmuls of every chunk on one device (masked positions included), of one piece."""
    from tools.dag.build import build_dag

    whole = {**program.sizes, "batch_size": p.sequences, "seq_len": p.tokens, "kv_len": p.context}
    one_piece = program.strategy.model_copy(update={"seq_slices": 1})
    drawn = build_dag(replace(program, sizes=whole, strategy=one_piece), detail="group")
    out = [0.0] * len(program.stages)
    for n in drawn.nodes:
        if n.flops:
            out[int(n.step[1:].split("_")[0])] += n.flops * n.repeats
    return out


@dataclass(slots=True)
class _Drawing:
    program: Program
    times: Schedule
    nodes: list[DagNode] = field(default_factory=list)
    edges: list[DagEdge] = field(default_factory=list)
    turn: dict[Task, int] = field(default_factory=dict)

    def dag(self, title: str | None) -> Dag:
        p, s = self.program, self.program.strategy
        stages = self.groups()
        lanes = tuple(
            Lane(
                st.ranks[0], f"{runtime.short(runtime.gpu_text(st.ranks))} · stage {i} · {self.holds(st)}", st.ranks, i
            )
            for i, st in enumerate(stages)
        )
        self.turns()
        ends = self.total_input(stages[0], lanes), self.total_output(stages[-1], lanes)
        for i, tasks in enumerate(self.times.orders):
            for before, task in zip([None, *tasks], tasks, strict=False):
                self.task(stages[i], before, task, *ends)
        head = title or f"{p.model.name} · {self.phase} · {s.label(p.model.moe is not None)} · schedule"
        attrs = {
            "model": p.model.name, "strategy": s.label(p.model.moe is not None), "phase": self.phase, "detail": "schedule",
            "num_hidden_layers": str(p.model.num_hidden_layers), "num_devices": str(s.num_devices),
            "num_replicas": str(s.dp), "drawn_replicas": "1", "bubble": f"{self.times.bubble:.4f}",
            "pieces": str(len(self.times.pieces)), "digest": p.digest(),
        }  # fmt: skip
        nodes = sorted(self.nodes, key=lambda n: n.row)
        return Dag(head, self.subtitle(), "schedule", tuple(nodes), tuple(self.edges), lanes, (), attrs)

    # ------------------------------------------------------------------------ what is scheduled

    @property
    def phase(self) -> str:
        return self.program.phase

    @property
    def batch(self) -> int:
        """Sequences that enter in all."""
        return int(self.program.sizes["batch_size"])

    def groups(self) -> Sequence[Stage]:
        return self.program.on_ranks

    def first_body(self, chunk: int) -> PBody:
        return next(b for b, _ in self.program.stages[chunk].bodies())

    # ------------------------------------------------------------------------ wording

    def holds(self, stage: Stage) -> str:
        mine = [c for c in self.program.stages if c.ranks == stage.ranks]
        return "layers " + ", ".join(layers_text(tuple(i for r in c.runs for i in r.layers)) for c in mine)

    def subtitle(self) -> str:
        s, t = self.program.strategy, self.times
        groups = s.virtual * len(t.pieces) + s.pp - 1
        even = f", {s.pp - 1}/{groups} = {(s.pp - 1) / groups:.1%} for equal tasks" if not len(t.pieces) % s.pp else ""
        text = (
            f"{len(t.pieces)} {self.pieces_word()} through {len(self.program.stages)} chunks on {s.pp} stages · "
            f"{self.length(t.makespan)} · bubble {t.bubble:.1%}{even}"
        )
        return text + " · dashed: a stage's next turn" + (f" · one of {s.dp} equal replicas" if s.dp > 1 else "")

    def pieces_word(self) -> str:
        slices = len({p.context for p in self.times.pieces})
        if slices == 1:
            return "micro-batches"
        return "slices" if len(self.times.pieces) == slices else "pieces"

    def length(self, t: float, of: str = " per device") -> str:
        if self.times.unit != "s":
            return f"{t:.4g} {self.times.unit}{of}".rstrip()
        return f"{t * 1e3:.4g} ms" if t >= 1e-4 else f"{t * 1e6:.4g} µs"

    # ------------------------------------------------------------------------ placing

    def turns(self) -> None:
        """Row of every task: after the one before it on its stage and after what it needs."""
        last, stage_of = len(self.program.stages) - 1, {t: i for i, ts in enumerate(self.times.orders) for t in ts}
        free = [0] * len(self.times.orders)
        for t in sequence(self.times.orders, last):
            stage = stage_of[t]
            self.turn[t] = max([free[stage], *(self.turn[n] + 1 for n in needs(t, last))])
            free[stage] = self.turn[t] + 1

    def port(self, tensor: str, piece: Piece, chunk: int) -> Port:
        """What a piece is on entering a chunk, on the stage's first device."""
        p = self.program
        sizes = {**p.sizes, "batch_size": piece.sequences, "seq_len": piece.tokens}
        body = self.first_body(chunk)
        spec, layout = body.spec(body.inputs[0]), body.layout(body.inputs[0])
        dims = tuple((d, -(-int(sizes[d]) // int(p.mesh.degree(layout.axes(d))))) for d in spec.dims)
        return Port(tensor, dims, Dtypes.of_strategy(p.model, p.strategy).bytes(spec.dtype))

    def node(self, step: str, row: int, role: Role, operator: str, module: str, devices: Sequence[int],
             ports: tuple[Sequence[Port], Sequence[Port]], notes: Sequence[str], *, lane: int | None = None,
             spans: tuple[int, ...] = (), kernel: str = "", whole: Dims = ()) -> DagNode:  # fmt: skip
        everything = role == "io"
        node = DagNode(
            id=f"{step}__g{devices[0]}", step=step, row=row, role=role, operator=operator, module=module, kernel=kernel,
            devices=tuple(devices), inputs=tuple(ports[0]), outputs=tuple(ports[1]),
            device_text=runtime.gpu_text(devices, everything), global_dims=whole, notes=tuple(notes), lane=lane, spans=spans,
        )  # fmt: skip
        self.nodes.append(node)
        return node

    def join(self, src: str, dst: str, port: Port, lane: int | None = None, dashed: bool = False) -> None:
        self.edges.append(DagEdge(src, dst, port.tensor, port.dims, dashed, lane))

    # ------------------------------------------------------------------------ ends

    def everybody(self) -> tuple[int, ...]:
        return tuple(range(self.program.strategy.num_devices))

    def total_input(self, first: Stage, lanes: Sequence[Lane]) -> DagNode:
        """Total input, and the split into pieces where there are several."""
        s, sizes = self.program.strategy, self.program.sizes
        whole = Port("ids", (("batch_size", self.batch), ("seq_len", int(sizes["seq_len"]))), 4.0)
        note = [f"of one of {s.dp} replicas"] if s.dp > 1 else []
        source = self.node("total_input", -2, "io", "total input · token ids", "model.input", self.everybody(),
                           ([whole], [whole]), note, spans=tuple(lane.index for lane in lanes))  # fmt: skip
        parts = [self.port("ids", p, 0) for p in dict.fromkeys(self.times.pieces)]
        if len(self.times.pieces) == 1 and parts[0].dims == whole.dims:
            return source
        if len({p.dims for p in parts}) > 1:
            parts = [replace(p, tensor=f"ids({i})") for i, p in enumerate(parts)]
        count = len(self.times.pieces)
        what = f"{count} {self.pieces_word()}" if count > 1 else "to the ranks of the first stage"
        split = self.node(
            "split_pieces", -1, "routing", f"split: {what}", "model.input.pieces", first.ranks,
            ([whole], parts if len({p.tensor for p in parts}) > 1 else parts[:1]), [], spans=(lanes[0].index,),
            whole=whole.dims,
        )  # fmt: skip
        self.join(source.id, split.id, whole)
        return split

    def total_output(self, last: Stage, lanes: Sequence[Lane]) -> DagNode:
        """Aggregation of what the pieces sampled, and the total output."""
        row = 2 * max(self.turn.values()) + 2
        whole = Port("tokens", (("batch_size", self.batch),), 4.0)
        parts = {self.tokens(p).dims: self.tokens(p) for p in self.times.pieces}
        named = list(parts.values()) if len(parts) == 1 else [
            replace(p, tensor=f"tokens({i})") for i, p in enumerate(parts.values())
        ]  # fmt: skip
        notes = ["of every prompt's last slice"] if self.pieces_word() != "micro-batches" else []
        gather = self.node("aggregate", row, "routing", "aggregation: sampled tokens", "model.output.aggregate", last.ranks,
                           (named, [whole]), notes, spans=(lanes[-1].index,))  # fmt: skip
        sink = self.node("total_output", row + 1, "io", "total output · next token ids", "model.output", self.everybody(),
                         ([whole], [whole]), [], spans=tuple(lane.index for lane in lanes))  # fmt: skip
        self.join(gather.id, sink.id, whole)
        return gather

    def stage_at(self, stage: Stage) -> int:
        first = self.program.stages[0].ranks[0]  # not 0 in a decode pool
        return (stage.ranks[0] - first) // self.program.strategy.group

    @staticmethod
    def tokens(p: Piece) -> Port:
        return Port("tokens", (("batch_size", p.sequences),), 4.0)

    # ------------------------------------------------------------------------ tasks

    def task(self, stage: Stage, before: Task | None, task: Task, source: DagNode, sink: DagNode) -> None:
        """A node, the edge or transfer that brings its input, and the dashed edge from the task before it."""
        last, piece, lane = len(self.program.stages) - 1, self.times.pieces[task.piece], stage.ranks[0]
        enters = self.port("x" if task.chunk else "ids", piece, task.chunk)
        leaves = self.tokens(piece) if task.chunk == last else self.port("x", piece, task.chunk + 1)
        turn, more = Port(TURN, (("stage", self.stage_at(stage)),)), task != self.times.orders[self.stage_at(stage)][-1]
        node = self.node(
            self.step(task), 2 * self.turn[task], "compute", f"forward · {self.name(task.piece)} · chunk {task.chunk}",
            "model.pipeline", stage.ranks, ([enters, *[turn] * (before is not None)], [leaves, *[turn] * more]),
            self.notes(task), lane=lane, whole=self.whole(enters, leaves),
        )  # fmt: skip
        if before is not None:
            self.join(f"{self.step(before)}__g{lane}", node.id, turn, lane, dashed=True)
        if task.chunk == last:
            self.join(node.id, sink.id, leaves, lane)
        if not task.chunk:
            self.join(source.id, node.id, enters, lane)
            return
        self.hand_over(Task(task.piece, task.chunk - 1), task, node, enters)

    def notes(self, task: Task) -> list[str]:
        """Which layers, from when to when."""
        span, layers = self.times.spans[task], [i for r in self.program.stages[task.chunk].runs for i in r.layers]
        ends = " + embedding" * (task.chunk == 0) + " + head" * (task.chunk == len(self.program.stages) - 1)
        return [
            f"layers {layers_text(tuple(layers))}{ends}",
            f"start {self.length(span.start, ' ')}, end {self.length(span.end, ' ')}",
        ]

    def hand_over(self, made: Task, task: Task, node: DagNode, x: Port) -> None:
        """What one task made comes to another: an edge, through a transfer where it changes the stage."""
        sender, receiver = (self.program.stages[t.chunk] for t in (made, task))
        source, a, b = f"{self.step(made)}__g{sender.ranks[0]}", sender.ranks[0], receiver.ranks[0]
        if sender.ranks == receiver.ranks:
            self.join(source, node.id, x, b)
            return
        step, devices = f"p2p_{self.step(made)}", (*sender.ranks, *receiver.ranks)
        ways = [f"{runtime.short(runtime.gpu_text(sender.ranks))} → {runtime.short(runtime.gpu_text(receiver.ranks))}"]
        took = self.times.transfer[task.piece]
        p2p = self.node(
            step, 2 * self.turn[made] + 1, "comm", f"send / recv · {self.name(task.piece)} · to chunk {task.chunk}",
            "model.pipeline.hand_over", devices, ([x], [x]), ways + [f"takes {self.length(took)}"] * bool(took),
            spans=(b,), kernel="p2p", whole=self.whole(x),
        )  # fmt: skip
        self.join(source, p2p.id, x, a)
        self.join(p2p.id, node.id, x, b)

    def step(self, task: Task) -> str:
        return f"turn{self.turn[task]}"

    def name(self, piece: int) -> str:
        word = self.pieces_word()
        return f"{'micro-batch' if word == 'micro-batches' else word.removesuffix('s')} {piece}"

    def whole(self, *ports: Port) -> Dims:
        sizes = {**self.program.sizes, "batch_size": self.batch}
        parts = {d: int(sizes[d]) for p in ports for d, n in p.dims if d in sizes and n != int(sizes[d])}
        return tuple(parts.items())


__all__ = ["by_flops", "chunk_flops", "schedule_dag"]
