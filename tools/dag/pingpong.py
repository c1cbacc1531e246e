"""The schedule of attention and experts on devices of their own: micro-batches that go back and forth between the two.

The first layers are drawn, the others run alike; times, and what is idle, are of all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.cost.schedule import Halves, Piece, Schedule, pieces_of, ping_pong
from tools.dag import runtime
from tools.dag.graph import Dag, DagNode, Lane, Port
from tools.dag.schedule import TURN, _Drawing
from tools.memory import Dtypes
from tools.partition.lower import PBody, Program, local_dims, num_elements
from tools.partition.pipeline import Task
from tools.spec.base import ToolError

DRAWN = 2
"""Layers that are drawn one by one."""


def ping_pong_dag(program: Program, halves: tuple[Halves, ...] | None = None, *, title: str | None = None) -> Dag:
    """`halves` as from `tools.cost.schedule.layer_halves`, in seconds; without them the matmuls' FLOPs on one device of each
    side. Raises ToolError for a strategy without experts of their own, or with pipeline stages."""
    s = program.strategy
    if not s.expert_devices or s.pp > 1:
        raise ToolError(
            f"expert_devices({s.expert_devices}) with pp({s.pp}): micro-batches go back and forth between attention and experts of "
            "one stage; use expert_devices above 0 and pp=1"
        )
    pieces = ping_pong_pieces(program)
    unit = "s" if halves else "TFLOP"
    times = ping_pong(halves or flops_halves(program, pieces[0]), len(pieces))
    times = Schedule(pieces, times.orders, times.spans, times.transfer, unit)
    return _PingPong(program, times).dag(title)


def ping_pong_pieces(program: Program) -> tuple[Piece, ...]:
    """The strategy's micro-batches; two where it states none and has two sequences."""
    s, sizes = program.strategy, {k: int(v) for k, v in program.sizes.items()}
    count = s.microbatches if s.microbatches > 1 else min(2, sizes["batch_size"])
    length = sizes["seq_len" if program.phase == "prefill" else "kv_len"]
    return pieces_of(
        s.model_copy(update={"microbatches": count, "pp": count}),
        program.phase,
        batch=sizes["batch_size"],
        seq_len=length,
    )


def flops_halves(program: Program, piece: Piece) -> tuple[Halves, ...]:
    """Matmul TFLOP per device of both sides of every layer; a transfer takes no time."""
    sizes = {**program.sizes, "batch_size": piece.sequences, "seq_len": piece.tokens, "kv_len": piece.context}
    out: list[Halves] = []
    for run in program.stages[0].runs:
        rows = [_flops(b, program, sizes) for b in run.bodies]
        out += [rows[i % len(rows)] for i in range(len(run.layers))]
    return tuple(out)


def _flops(body: PBody, program: Program, sizes: dict) -> Halves:
    found = dict.fromkeys(("attention", "experts"), 0.0)
    for p in body.ops:
        if p.op is not None and p.op.kind == "einsum":
            dims: dict[str, int] = {}
            for n in p.inputs:
                for d, k in local_dims(body, n, sizes, program.mesh).items():
                    dims[d] = min(int(k), dims.get(d, int(k)))
            found[body.group(p.output)] += 2.0 * float(num_elements(dims)) / 1e12
    return Halves(found["attention"], found["experts"], 0.0)


@dataclass(slots=True)
class _PingPong(_Drawing):
    def dag(self, title: str | None) -> Dag:
        p, s = self.program, self.program.strategy
        stage = p.stages[0]
        spans = [(" + ".join(sorted(role)), tuple(stage.ranks[i] for i in run)) for role, run in p.mesh.roles()]
        lanes = tuple(
            Lane(r[0], f"{runtime.short(runtime.gpu_text(r))} · {name}", r, i) for i, (name, r) in enumerate(spans)
        )
        drawn = self.drawn()
        sides = [[t for t in tasks if t.chunk // 2 in drawn] for tasks in self.times.orders]
        rows = self.rows(sides)
        source, last_row = self.total_input(stage, lanes), 2 * max(rows.values()) + 2
        before: dict[int, DagNode] = {}
        made: dict[int, DagNode] = {}
        for t in sorted(rows, key=lambda t: (rows[t], t.chunk % 2)):
            node = self.visit(t, rows[t], lanes[t.chunk % 2], before.get(t.chunk % 2), bool(self.later(t, sides)))
            self.bring(node, made.get(t.piece), source, lanes)
            before[t.chunk % 2] = made[t.piece] = node
        self.finish(last_row, lanes, made)
        head = title or f"{p.model.name} · {p.phase} · {s.label()} · ping-pong schedule"
        attrs = {
            "model": p.model.name, "strategy": s.label(), "phase": p.phase, "detail": "schedule",
            "num_hidden_layers": str(p.model.num_hidden_layers), "num_devices": str(s.num_devices),
            "num_replicas": str(s.dp), "drawn_replicas": "1", "pieces": str(len(self.times.pieces)), "digest": p.digest(),
            "busy_attention": f"{self.busy(0):.4f}", "busy_experts": f"{self.busy(1):.4f}",
        }  # fmt: skip
        return Dag(
            head,
            self.subtitle(),
            "schedule",
            tuple(sorted(self.nodes, key=lambda n: n.row)),
            tuple(self.edges),
            lanes,
            (),
            attrs,
        )

    def busy(self, side: int) -> float:
        """Share of the step that one side works."""
        spans = [self.times.spans[t] for t in self.times.orders[side]]
        return sum(x.end - x.start for x in spans) / self.times.makespan if self.times.makespan else 0.0

    def subtitle(self) -> str:
        return (
            f"{len(self.times.pieces)} micro-batches through {self.program.model.num_hidden_layers} layers · "
            f"{self.length(self.times.makespan)} · attention busy {self.busy(0):.1%}, experts busy {self.busy(1):.1%} · "
            f"first {DRAWN} layers drawn · dashed: a side's next turn"
        )

    def rows(self, sides: list[list[Task]]) -> dict[Task, int]:
        """Row of every task: after the one before it on its side and after the same micro-batch's visit before."""
        out: dict[Task, int] = {}
        free, came = [0, 0], dict.fromkeys(range(len(self.times.pieces)), 0)
        todo = [list(s) for s in sides]
        while any(todo):
            for side, tasks in enumerate(todo):
                t = tasks[0] if tasks else None
                other = todo[1 - side]
                if t is None or any(o.piece == t.piece and o.chunk < t.chunk for o in other):
                    continue
                out[t] = max(free[side], came[t.piece])
                free[side] = came[t.piece] = out[t] + 1
                tasks.pop(0)
        return out

    def later(self, task: Task, sides: list[list[Task]]) -> bool:
        return sides[task.chunk % 2][-1] != task

    def port(self, tensor: str, piece: Piece, chunk: int) -> Port:
        """A micro-batch of token ids, all of it."""
        return Port(tensor, (("batch_size", piece.sequences), ("seq_len", piece.tokens)), 4.0)

    def drawn(self) -> tuple[int, ...]:
        """The first layers that have routed experts."""
        return tuple(sorted({t.chunk // 2 for t in self.times.orders[1]}))[:DRAWN]

    def x(self, piece: Piece) -> Port:
        """A micro-batch, all its tokens; what of it each device gets is in the full graph."""
        hidden = self.program.model.hidden_size
        dims = (("batch_size", piece.sequences), ("seq_len", piece.tokens), ("hidden", hidden))
        return Port("x", dims, Dtypes.of_strategy(self.program.model, self.program.strategy).plain)

    def visit(self, task: Task, row: int, lane: Lane, before: DagNode | None, more: bool) -> DagNode:
        layer, turn, piece = task.chunk // 2, Port(TURN, (("stage", task.chunk % 2),)), self.times.pieces[task.piece]
        drawn, x = self.drawn(), self.x(piece)
        enters = self.port("ids", piece, 0) if layer == drawn[0] and not task.chunk % 2 else x
        words = [f"layer {layer}" + (f", after layers 0-{layer - 1}" if layer == drawn[0] and layer else "")]
        span, n = self.times.spans[task], self.program.model.num_hidden_layers
        alike = [f"so on to layer {n - 1}"] * (layer == drawn[-1] < n - 1)
        side = "FFN side" if task.chunk % 2 else "attention side"
        node = self.node(
            f"row{row}", 2 * row, "compute", f"{side} · micro-batch {task.piece}",
            "model.ping_pong", lane.devices, ([enters, *[turn] * (before is not None)], [x, *[turn] * more]),
            [*words, f"start {self.length(span.start, ' ')}, end {self.length(span.end, ' ')}", *alike], lane=lane.index,
            whole=self.whole(enters, x),
        )  # fmt: skip
        if before is not None:
            self.join(before.id, node.id, turn, lane.index, dashed=True)
        return node

    def bring(self, node: DagNode, made: DagNode | None, source: DagNode, lanes: tuple[Lane, ...]) -> None:
        """What a visit takes: the input, or through a transfer what the same micro-batch's visit before gave."""
        if made is None:
            self.join(source.id, node.id, node.inputs[0], node.lane)
            return
        move = self.send(made, lanes)
        self.join(move.id, node.id, node.inputs[0], node.lane)

    def send(self, made: DagNode, lanes: tuple[Lane, ...]) -> DagNode:
        """From one side to the other."""
        a, b = lanes if made.lane == lanes[0].index else lanes[::-1]
        x, took = made.outputs[0], self.times.transfer[0]
        ways = [f"{runtime.short(runtime.gpu_text(a.devices))} → {runtime.short(runtime.gpu_text(b.devices))}"]
        move = self.node(
            f"send_row{made.row // 2}", made.row + 1, "comm", f"send / recv · {made.operator.split(' · ')[1]}",
            "model.ping_pong.hand_over", (*a.devices, *b.devices), ([x], [x]),
            ways + [f"takes {self.length(took)}"] * bool(took), spans=(b.index,), kernel="p2p", whole=self.whole(x),
        )  # fmt: skip
        self.join(made.id, move.id, x, a.index)
        return move

    def finish(self, row: int, lanes: tuple[Lane, ...], made: dict[int, DagNode]) -> None:
        """Further layers and head, and the total output."""
        whole, last = Port("sampled", (("batch_size", self.batch),), 4.0), self.program.model.num_hidden_layers - 1
        backs = [self.send(n, lanes) for n in made.values()]
        inputs = [Port(f"x({i})", n.outputs[0].dims) for i, n in made.items()]
        if len({p.dims for p in inputs}) == 1:
            inputs = [made[0].outputs[0]]
        alike = [f"layers {self.drawn()[-1] + 1}-{last} alike, then the head"] * (self.drawn()[-1] < last)
        gather = self.node(
            "aggregate", row, "routing", "aggregation: sampled tokens", "model.output.aggregate", lanes[0].devices,
            (inputs, [whole]), alike, spans=(lanes[0].index,),
        )  # fmt: skip
        for move in backs:
            self.join(move.id, gather.id, move.outputs[0], lanes[0].index)
        sink = self.node("total_output", row + 1, "io", "total output · next token ids", "model.output", self.everybody(),
                         ([whole], [whole]), [], spans=tuple(lane.index for lane in lanes))  # fmt: skip
        self.join(gather.id, sink.id, whole)


__all__ = ["flops_halves", "ping_pong_dag", "ping_pong_pieces"]
