"""The schedule of a training step: forward and backward tasks of every micro-batch on every stage, then the optimizer.

As `tools.dag.schedule`, with edges for what a forward task keeps for its backward task: how many of them are open at once is
what 1F1B and GPipe differ in.
"""

from __future__ import annotations

from collections.abc import Sequence

from tools.cost.schedule import Piece, Schedule
from tools.dag.graph import Dag, DagNode, Lane, Port
from tools.dag.schedule import TURN, _Drawing
from tools.dag.text import layers_text
from tools.partition.lower import PBody, local_dims
from tools.partition.pipeline import Task, needs, order, timeline
from tools.partition.train import TrainProgram, TrainStage
from tools.spec.base import ToolError
from tools.training_memory import in_flight


def train_schedule_dag(program: TrainProgram, *, title: str | None = None) -> Dag:
    """Schedule of one training step; a task is as long as its matmuls have FLOPs on one device, recomputation included.
    Raises ToolError if the program has no sizes."""
    missing = [d for d in ("batch_size", "seq_len", "kv_len") if d not in program.sizes]
    if missing:
        raise ToolError(
            f"a schedule needs the length of {missing}; lower with all_sizes(batch_size=…, seq_len=…, kv_len=…)"
        )
    return _TrainDrawing(program, train_times(program)).dag(title)  # type: ignore[arg-type]


def train_times(program: TrainProgram) -> Schedule:
    """Tasks as long as their matmuls; messages take no time."""
    o, s = program.options, program.strategy
    sizes = {k: int(v) for k, v in program.sizes.items()}
    piece = Piece(sizes["batch_size"], sizes["seq_len"], sizes["kv_len"])
    work = [_stage_flops(program, stage) for stage in program.stages]
    orders = order(s, o.micro_batches, backward=True, kind=o.schedule)
    spans = timeline(orders, len(program.stages) - 1, lambda t: work[t.chunk][t.backward] / 1e12)
    return Schedule((piece,) * o.micro_batches, orders, spans, (0.0,) * o.micro_batches, "TFLOP")


def _stage_flops(program: TrainProgram, stage: TrainStage) -> tuple[float, float]:
    """(forward, backward with what it computes again) of one micro-batch on one device."""
    forward = backward = 0.0
    for body, times in stage.bodies():
        forward += times * matmul_flops(body.forward, program)
        again = matmul_flops(body.rerun, program) if body.rerun else 0.0
        backward += times * (again + matmul_flops(body.backward, program))
    return forward, backward


def matmul_flops(pbody: PBody, program: TrainProgram) -> float:
    """2 x the product of all dims of each matmul's operands on one device."""
    total = 0.0
    for p in pbody.ops:
        if p.op is not None and p.op.kind == "einsum":
            dims: dict[str, int] = {}
            for n in p.inputs:
                for d, k in local_dims(pbody, n, program.sizes, program.mesh).items():
                    dims[d] = min(int(k), dims.get(d, int(k)))
            product = 2.0
            for k in dims.values():
                product *= k
            total += product
    return total


class _TrainDrawing(_Drawing):
    program: TrainProgram  # type: ignore[assignment]

    @property
    def phase(self) -> str:
        return "train"

    @property
    def batch(self) -> int:
        return int(self.program.sizes["batch_size"]) * self.program.options.micro_batches

    def groups(self) -> Sequence[TrainStage]:  # type: ignore[override]
        return tuple(chunks[0] for chunks in self.program.on_ranks)

    def first_body(self, chunk: int) -> PBody:
        return next(b.forward for b, _ in self.program.stages[chunk].bodies())

    def holds(self, stage: TrainStage) -> str:  # type: ignore[override]
        mine = [c for c in self.program.stages if c.ranks == stage.ranks]
        return "layers " + ", ".join(layers_text(tuple(i for r in c.runs for i in r.layers)) for c in mine)

    def subtitle(self) -> str:
        o, t, s = self.program.options, self.times, self.program.strategy
        open_ = [in_flight(tasks, dict.fromkeys(range(len(self.program.stages)), 0.0))[0] for tasks in t.orders]
        return (
            f"{o.micro_batches} micro-batches, {o.schedule} on {s.pp} stages · {self.length(t.makespan)} · bubble "
            f"{t.bubble:.1%} · at most {', '.join(map(str, open_))} passes kept per stage · dashed: a stage's next turn"
        )

    def pieces_word(self) -> str:
        return "micro-batches"

    def turn_port(self, stage: TrainStage) -> Port:
        return Port(TURN, (("stage", stage.index),))

    def total_output(self, last: TrainStage, lanes: Sequence[Lane]) -> DagNode:  # type: ignore[override]
        """Every stage's optimizer step, and the weights of the next training step."""
        row, layers = (
            2 * max(self.turn.values()) + 2,
            Port("updated", (("layers", self.program.model.num_hidden_layers),)),
        )
        stages = self.groups()
        ports = [self.turn_port(s) for s in stages]
        named = [Port(f"{TURN}({i})", p.dims) for i, p in enumerate(ports)] if len(ports) > 1 else ports
        everybody = tuple(r for s in stages for r in s.ranks)
        gather = self.node(
            "aggregate", row + 1, "routing", "aggregation: all stages have stepped", "model.output.aggregate", everybody,
            (named, [layers]), [], spans=tuple(lane.index for lane in lanes),
        )  # fmt: skip
        for stage, turn in zip(stages, ports, strict=True):
            update = self.node(
                "optimizer", row, "compute", "optimizer step · gradients of all micro-batches", "model.optimizer",
                stage.ranks, ([turn], [turn]), [f"{self.holds(stage)}"], lane=stage.ranks[0],
            )  # fmt: skip
            task = self.times.orders[stage.index][-1]
            self.join(f"{self.step(task)}__g{stage.ranks[0]}", update.id, turn, stage.ranks[0], dashed=True)
            self.join(update.id, gather.id, turn, stage.ranks[0])
        sink = self.node(
            "total_output", row + 2, "io", "total output · weights of the next step", "model.output", self.everybody(),
            ([layers], [layers]), [], spans=tuple(lane.index for lane in lanes),
        )  # fmt: skip
        self.join(gather.id, sink.id, layers)
        return gather

    def task(self, stage: TrainStage, before: Task | None, task: Task, source: DagNode, sink: DagNode) -> None:  # type: ignore[override]
        last, piece, lane = len(self.program.stages) - 1, self.times.pieces[task.piece], stage.ranks[0]
        turn, kept = self.turn_port(stage), self.port("kept", piece, task.chunk)
        enters = self.port("x" if task.chunk else "ids", piece, task.chunk)
        if task.backward:
            inputs = [self.port("dx", piece, task.chunk + 1)] if task.chunk < last else []
            inputs, outputs = [*inputs, kept], [self.port("dx", piece, task.chunk)] if task.chunk else []
        else:
            inputs = [enters]
            outputs = [*([self.port("x", piece, task.chunk + 1)] if task.chunk < last else []), kept]
        node = self.node(
            self.step(task), 2 * self.turn[task], "compute",
            f"{'backward' if task.backward else 'forward'} · {self.name(task.piece)} · chunk {task.chunk}", "model.pipeline",
            stage.ranks, ([*inputs, *[turn] * (before is not None)], [*outputs, turn]), self.notes(task), lane=lane,
            whole=self.whole(*inputs, *outputs),
        )  # fmt: skip
        if before is not None:
            self.join(f"{self.step(before)}__g{lane}", node.id, turn, lane, dashed=True)
        if task.backward:
            self.join(f"{self.step(Task(task.piece, task.chunk))}__g{lane}", node.id, kept, lane)
        elif not task.chunk:
            self.join(source.id, node.id, enters, lane)
        for made in needs(task, last):
            if made.chunk != task.chunk:
                self.hand_over(made, task, node, inputs[0])


__all__ = ["matmul_flops", "train_schedule_dag", "train_times"]
