"""Memory of a training step per rank, read from its graph.

    parameters   weights as they lie between steps
    gradients    as they are accumulated over micro-batches
    optimizer    states where ZeRO put them: master weights, first and second moments
    activations  what backward programs read of forward programs, times layers and micro-batches in flight
    working      peak of what lives between two kernels of one pass, gathered parameters included

Every figure is of the rank that holds the longest shard of every tensor, as in `tools.memory`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tools.graph.ir import Sizes
from tools.memory import Dtypes, _lifetimes, tensor_bytes
from tools.partition.lower import PBody, local_dims, num_elements
from tools.partition.mesh import Mesh
from tools.partition.pipeline import Task
from tools.partition.train import TrainBody, TrainProgram, TrainStage, task_order
from tools.spec.base import Frozen
from tools.spec.model import dtype_bytes
from tools.spec.term import Breakdown, Term


class TrainMemory(Frozen):
    """Bytes on the fullest rank of one pipeline stage."""

    stage: int
    ranks: int
    layers: int
    in_flight: int
    """Passes (of a micro-batch through a chunk) whose activations are kept at once."""
    parameters_bytes: float
    gradients_bytes: float
    optimizer_bytes: float
    activations_bytes: float
    working_bytes: float
    breakdown: Breakdown

    @property
    def total_bytes(self) -> float:
        return self.breakdown.total


def train_memory(program: TrainProgram) -> tuple[TrainMemory, ...]:
    """What the fullest rank of every stage holds during a step; framework overhead and fragmentation not included."""
    tasks = task_order(program.strategy, program.options)
    return tuple(_stage(program, i, chunks, tasks[i]) for i, chunks in enumerate(program.on_ranks))


def _stage(program: TrainProgram, index: int, chunks: Sequence[TrainStage], tasks: Sequence[Task]) -> TrainMemory:
    o, sizes, mesh = program.options, program.sizes, program.mesh
    dtypes = Dtypes.of_strategy(program.model, program.strategy)
    kept = (o.optimizer == "adam") * 2 + o.master_weights
    rows: dict[str, float] = dict.fromkeys(("parameters", "gradients", "optimizer", "activations"), 0.0)
    embed = next((c.embed for c in chunks if c.embed), None)
    held = {w.name for w in embed.forward.weights()} if embed else set()
    bodies = [(c, body, times) for c in chunks for body, times in c.bodies()]
    for chunk, body, times in bodies:
        again = held if body is chunk.loss else set()  # a tied embedding is there once
        rows["parameters"] += times * weight_bytes(body, sizes, mesh, dtypes, again)
        rows["gradients"] += times * _elements(body, sizes, mesh, "grad", again) * dtype_bytes(o.grad_dtype)
        rows["optimizer"] += times * kept * _elements(body, sizes, mesh, "new") * dtype_bytes(o.state_dtype)
    saved = {
        c.index: sum(times * saved_bytes(b, sizes, mesh, dtypes) for at, b, times in bodies if at is c) for c in chunks
    }
    flight, rows["activations"] = in_flight(tasks, saved)
    working = max(working_bytes(body, sizes, mesh, dtypes) for _, body, _ in bodies)
    words = {
        "parameters": f"Σ local elements · bytes, ZeRO-{o.zero}",
        "gradients": f"Σ local elements · {dtype_bytes(o.grad_dtype):g} B",
        "optimizer": f"Σ local elements · {kept} states · {dtype_bytes(o.state_dtype):g} B",
        "activations": f"Σ layers, what backward reads (recompute: {o.recompute}) · up to {flight} passes in flight",
        "working": "peak between kernels of one pass",
    }
    terms = tuple(
        Term(name=n, value=float(v), unit="bytes", formula=words[n], source="training graph")
        for n, v in (*rows.items(), ("working", working))
    )
    return TrainMemory(
        stage=index, ranks=len(chunks[0].ranks), layers=sum(c.num_layers for c in chunks), in_flight=flight,
        parameters_bytes=terms[0].value, gradients_bytes=terms[1].value, optimizer_bytes=terms[2].value,
        activations_bytes=terms[3].value, working_bytes=terms[4].value,
        breakdown=Breakdown(name="training memory", unit="bytes", terms=terms),
    )  # fmt: skip


def in_flight(tasks: Sequence[Task], saved: Mapping[int, float]) -> tuple[int, float]:
    """(passes, bytes) that a stage keeps at most at once: from a chunk's forward task to its backward task on the same
    micro-batch, what that chunk saves."""
    now, most, passes, peak = 0.0, 0.0, 0, 0
    for t in tasks:
        now += -saved[t.chunk] if t.backward else saved[t.chunk]
        passes += -1 if t.backward else 1
        most, peak = max(most, now), max(peak, passes)
    return peak, most


def weight_bytes(body: TrainBody, sizes: Sizes, mesh: Mesh, dtypes: Dtypes, skip: Iterable[str] = ()) -> float:
    """Weights of one body as they lie between steps."""
    pbody, without = body.forward, set(skip)
    return sum(
        float(tensor_bytes(pbody, w.name, sizes, mesh, dtypes)) for w in pbody.weights() if w.name not in without
    )


def _elements(body: TrainBody, sizes: Sizes, mesh: Mesh, what: str, skip: Iterable[str] = ()) -> float:
    """Local elements of all accumulated gradients ("grad"), or of one optimizer state of all weights ("new")."""
    if what == "grad":
        without = set(skip)
        names = [(body.backward, g) for w, g in body.grads.items() if w not in without]
    else:
        names = [(body.update, p.output) for p in body.update.ops if p.op and p.op.fn in ("adam_step", "sgd_step")]
    return sum(float(num_elements(local_dims(pbody, n, sizes, mesh))) for pbody, n in names)


def saved_bytes(body: TrainBody, sizes: Sizes, mesh: Mesh, dtypes: Dtypes) -> float:
    """What one micro-batch leaves behind in one body for its backward pass."""
    pbody = body.forward
    return sum(float(tensor_bytes(pbody, n, sizes, mesh, dtypes)) for n in body.saved)


def working_bytes(body: TrainBody, sizes: Sizes, mesh: Mesh, dtypes: Dtypes) -> float:
    """Peak beside what is saved: of the forward pass, or of the backward pass with what it made again."""
    forward = _peak(body.forward, set(body.saved) | set(body.forward.inputs), sizes, mesh, dtypes)
    made_again = 0.0
    if body.rerun is not None:
        made_again = sum(
            float(tensor_bytes(body.forward, n, sizes, mesh, dtypes)) for n in body.reads if n not in body.saved
        )
    return max(forward, made_again + _peak(body.backward, set(body.reads), sizes, mesh, dtypes))


def _peak(pbody: PBody, without: set[str], sizes: Sizes, mesh: Mesh, dtypes: Dtypes) -> float:
    """Largest sum of tensors that are live between kernels at one moment."""
    spans = [(n, a, b) for n, a, b in _lifetimes(pbody) if n not in without]
    size = {n: float(tensor_bytes(pbody, n, sizes, mesh, dtypes)) for n, _, _ in spans}
    return max((sum(size[n] for n, a, b in spans if a <= at <= b) for at in {a for _, a, _ in spans}), default=0.0)
