"""Pipelines: which ranks hold which run of layers, who hands over to whom, and in which order every stage works.

A *chunk* is a run of consecutive layers, a *stage* the ranks that hold one chunk, or `virtual` of them dealt out
cyclically (interleaved pipeline, Narayanan et al., arXiv 2104.04473 §2.2). A *piece* is what follows another through the
stages: a micro-batch, or a slice of the prompt (TeraPipe, arXiv 2102.07988). A *task* is one piece in one chunk.

    order(...)      per stage, the tasks in the order in which it works them off
    sequence(...)   one order of all tasks that respects every stage's own and all hand-overs
    timeline(...)   start and end of every task, given what each takes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

from tools.spec.base import Refused, ToolError
from tools.spec.strategy import Phase, Strategy

Kind = Literal["gpipe", "1f1b"]


class Task(NamedTuple):
    """One piece in one chunk; `backward` only in training."""

    piece: int
    chunk: int
    backward: bool = False

    def words(self) -> str:
        return f"{'backward' if self.backward else 'forward'} of piece {self.piece} in chunk {self.chunk}"


Orders = tuple[tuple[Task, ...], ...]
"""Tasks of every stage, in its order."""


# ------------------------------------------------------------------------------------------------------------- assembly


def num_chunks(s: Strategy) -> int:
    return s.pp * s.virtual


def stage_of(s: Strategy, chunk: int) -> int:
    """Stage that holds a chunk."""
    return chunk % s.pp


def ranks_of(s: Strategy, chunk: int) -> tuple[int, ...]:
    """Global ranks, in mesh order, that hold a chunk."""
    first = stage_of(s, chunk) * s.group
    return tuple(range(first, first + s.group))


def default_layers_per_stage(num_layers: int, pp: int) -> tuple[int, ...]:
    """As even as can be; the remainder goes to the middle stages, because the ends also hold embedding and head."""
    base, extra = divmod(num_layers, pp)
    counts = [base] * pp
    order = sorted(range(pp), key=lambda i: (i in (0, pp - 1), i == pp - 1, -i))
    for i in order[:extra]:
        counts[i] += 1
    return tuple(counts)


def handover(s: Strategy, chunk: int, members: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(sender, receiver) of the residual stream that enters a chunk; from the last stage it goes around to the first.
    `members`: the ranks inside a stage that hold it."""
    if not chunk:
        return ()
    before, here = ranks_of(s, chunk - 1), ranks_of(s, chunk)
    return tuple((before[r], here[r]) for r in members)


def check_pipeline(s: Strategy, num_layers: int) -> None:
    """Raises ToolError or Refused for a pipeline that cannot be assembled."""
    if s.virtual > 1 and s.pp == 1:
        raise ToolError(
            f"virtual({s.virtual}) with pp(1): runs of layers are dealt out over stages; use pp of at least 2"
        )
    if num_chunks(s) > num_layers:
        times = f" * virtual({s.virtual}) = {num_chunks(s)}" if s.virtual > 1 else ""
        raise ToolError(f"pp({s.pp}){times} exceeds the {num_layers} layers; use at most {num_layers}")
    if s.seq_slices > 1 and s.cp > 1 and s.cp_kind == "ring":
        raise Refused(
            f"seq_slices({s.seq_slices}) with ring attention over cp({s.cp}): a slice's queries would need the keys of earlier "
            "slices, which lie zig-zag by slice; use cp_kind=ulysses or seq_slices=1"
        )


def cut(n: int, count: int, parts: str, whole: str) -> tuple[tuple[int, int], ...]:
    """(first, length) of every part of `n`: runs, the longer ones first. Raises ToolError when there are more parts than
    there is to cut."""
    if count > n:
        raise ToolError(f"{parts}({count}) > {whole}({n}): a part would be empty; use at most {n}")
    base, extra = divmod(n, count)
    lengths = [base + (i < extra) for i in range(count)]
    return tuple(zip(accumulate([0, *lengths[:-1]]), lengths, strict=True))


def slices(seq_len: int, count: int) -> tuple[tuple[int, int], ...]:
    """(first position, length) of every slice of a prompt. The longer ones come first, because a later position attends to
    more."""
    return cut(seq_len, count, "seq_slices", "seq_len")


def num_slices(s: Strategy, phase: Phase) -> int:
    """Passes that one prompt takes through the stages; a decode step is one."""
    return s.seq_slices if phase == "prefill" else 1


# --------------------------------------------------------------------------------------------------------------- order


def order(s: Strategy, pieces: int, *, backward: bool = False, kind: Kind = "1f1b") -> Orders:
    """What every stage does, in order. Forward only, GPipe (arXiv 1811.06965) and 1F1B (arXiv 2104.04473) are the same.

    With `virtual` > 1 a stage takes pieces in groups of pp, all of a group through one of its chunks before the next one
    (the interleaved schedule); the backward pass takes the chunks in reverse.
    """
    if pieces < 1:
        raise ToolError(f"a pipeline needs at least 1 micro-batch or slice, got {pieces}")
    if backward and s.virtual > 1 and pieces % s.pp:
        raise ToolError(
            f"microbatches({pieces}) % pp({s.pp}) = {pieces % s.pp}: an interleaved training step takes micro-batches in "
            f"groups of pp; use a multiple of {s.pp}"
        )
    return tuple(_stage_order(s, r, pieces, backward, kind) for r in range(s.pp))


def _stage_order(s: Strategy, stage: int, pieces: int, backward: bool, kind: Kind) -> tuple[Task, ...]:
    forward = _grouped(s, stage, pieces, backward=False)
    if not backward:
        return forward
    back = _grouped(s, stage, pieces, backward=True)
    ahead = _ahead(s, stage, len(forward), kind)
    out = list(forward[:ahead])
    for f, b in zip(forward[ahead:], back, strict=False):
        out += [f, b]
    return (*out, *back[len(forward) - ahead :])


def _ahead(s: Strategy, stage: int, forwards: int, kind: Kind) -> int:
    """Forward tasks before the first backward one: all (GPipe), or the stages below, and with several chunks the earlier
    chunks too (1F1B)."""
    behind = s.pp - 1 - stage
    warm_up = behind if s.virtual == 1 else 2 * behind + (s.virtual - 1) * s.pp
    return forwards if kind == "gpipe" else min(forwards, warm_up)


def _grouped(s: Strategy, stage: int, pieces: int, *, backward: bool) -> tuple[Task, ...]:
    chunks = [v * s.pp + stage for v in range(s.virtual)]
    size = s.pp if s.virtual > 1 else 1
    groups = [range(i, min(i + size, pieces)) for i in range(0, pieces, size)]
    ordered = chunks[::-1] if backward else chunks
    return tuple(Task(p, c, backward) for group in groups for c in ordered for p in group)


def steps(s: Strategy, stage: int, tasks: Sequence[Task], kind: Kind = "1f1b") -> tuple[tuple[Task, ...], ...]:
    """Tasks that a stage works off between two exchanges of messages: one by one; in the steady state of interleaved 1F1B a
    forward and a backward one, whose four messages go together. (One by one, every stage would wait there for another that
    is about to send it something else: the check `deadlock` says so.)"""
    forwards = sum(not t.backward for t in tasks)
    alone = _ahead(s, stage, forwards, kind) if s.virtual > 1 and forwards < len(tasks) else len(tasks)
    pairs = range(alone, 2 * forwards - alone, 2)
    rest = tasks[max(alone, 2 * forwards - alone) :]
    return (*((t,) for t in tasks[:alone]), *(tuple(tasks[i : i + 2]) for i in pairs), *((t,) for t in rest))


def needs(task: Task, last_chunk: int) -> tuple[Task, ...]:
    """Tasks whose result arrives from another chunk before this one can start."""
    piece, chunk, back = task
    if not back:
        return (Task(piece, chunk - 1),) if chunk else ()
    return (Task(piece, chunk + 1, True),) if chunk < last_chunk else (Task(piece, chunk),)


def sequence(orders: Orders, last_chunk: int) -> list[Task]:
    """All tasks in an order that a machine could execute. Raises ValueError naming what waits when there is none."""
    at, done, out = [0] * len(orders), set[Task](), list[Task]()
    while len(out) < sum(map(len, orders)):
        before = len(out)
        for stage, tasks in enumerate(orders):
            if at[stage] < len(tasks) and all(n in done for n in needs(tasks[at[stage]], last_chunk)):
                out.append(tasks[at[stage]])
                done.add(tasks[at[stage]])
                at[stage] += 1
        if len(out) == before:
            waiting = [tasks[i].words() for i, tasks in zip(at, orders, strict=True) if i < len(tasks)]
            raise ValueError(f"no stage can go on: {'; '.join(waiting)} each wait for another")
    return out


# --------------------------------------------------------------------------------------------------------------- time


class Span(NamedTuple):
    """Seconds (or whatever unit durations have) from the start of the first task."""

    start: float
    end: float


def timeline(
    orders: Orders,
    last_chunk: int,
    duration: Callable[[Task], float],
    transfer: Callable[[Task], float] = lambda t: 0.0,
) -> dict[Task, Span]:
    """When every task runs: after the one before it on its stage and `transfer(task)` after what it needs from elsewhere
    has ended. Transfers run beside computation."""
    stage_of_task = {t: i for i, tasks in enumerate(orders) for t in tasks}
    free, out = [0.0] * len(orders), dict[Task, Span]()
    for task in sequence(orders, last_chunk):
        stage = stage_of_task[task]
        arrived = [out[n].end + (transfer(task) if stage_of_task[n] != stage else 0.0) for n in needs(task, last_chunk)]
        start = max(free[stage], *arrived) if arrived else free[stage]
        out[task] = Span(start, start + duration(task))
        free[stage] = out[task].end
    return out


def bubble(spans: Mapping[Task, Span], orders: Sequence[Sequence[Task]]) -> float:
    """Idle share of all stages between the start of the first and the end of the last task.

    Equal tasks and no transfer time: (pp - 1) / (virtual * pieces + pp - 1) where pp divides the pieces.
    """
    total = max(s.end for s in spans.values()) - min(s.start for s in spans.values())
    busy = sum(spans[t].end - spans[t].start for tasks in orders for t in tasks)
    return 1.0 - busy / (total * len(orders)) if total else 0.0
