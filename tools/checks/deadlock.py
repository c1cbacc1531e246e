"""No deadlock: every rank's sends, receives and collectives, in program order, simulated as blocking calls.

    calls(program, …)   per rank, what it calls, in order, over the whole schedule
    blocked(calls)      "" when all ranks come to their end, else who waits for whom

A collective blocks until all its members have called the same one. What a rank sends after one task and receives for the
next is one call (as in a batch of isend and irecv): it blocks until every partner has called the other half.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tools.checks.base import Case, check, error
from tools.graph.build import all_sizes
from tools.graph.ir import Sizes
from tools.partition.lower import PBody, POp, Program, Stage, ends_of
from tools.partition.pipeline import Kind, Orders, Task, needs, num_slices, order, steps
from tools.partition.transfer import messages
from tools.spec.finding import Finding

PROBE = {"batch_size": 64, "seq_len": 64, "kv_len": 64}
ROUNDS = 3
"""Times pp pieces that are simulated at most: warm-up, a steady round and the end; further rounds repeat the steady one."""


@dataclass(frozen=True, slots=True)
class Collective:
    """`members` must all call it; `what` is equal for calls that belong together."""

    what: str
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Exchange:
    """Messages (partner, what) that are sent and received in one call."""

    sends: tuple[tuple[int, str], ...] = ()
    receives: tuple[tuple[int, str], ...] = ()


Call = Collective | Exchange
Calls = Mapping[int, Sequence[Call]]
"""By global rank of one replica; replicas have nothing to say to each other."""


@check("deadlock")
def deadlock(case: Case) -> Iterator[Finding]:
    """All ranks of a replica come to the end of their program, whatever each waits for."""
    for program in case.programs:
        why = blocked(calls(program))
        if why:
            fix = "one order of collectives on all members, sends and receives of a step in one batch"
            yield error("deadlock", f"{program.phase}: {why}", cause="network", fix=fix)


# ---------------------------------------------------------------------------------------------------------- what is called


def calls(program: Program, orders: Orders | None = None, kind: Kind = "1f1b") -> dict[int, list[Call]]:
    """Every rank's calls. `orders`: tasks per stage, by default those of the strategy's micro-batches and slices.

    Repeated layers are called once: what comes to its end once does so n times.
    """
    s = program.strategy
    if orders is None:
        pieces = max(1, s.microbatches) * num_slices(s, program.phase)
        orders = order(s, min(pieces, ROUNDS * s.pp))
    sizes = {**all_sizes(program.model, **PROBE), **program.sizes}
    inner = {chunk.index: _stage_calls(program, chunk, sizes) for chunk in program.stages}
    out: dict[int, list[Call]] = {r: [] for chunk in program.stages for r in chunk.ranks}
    for stage, tasks in enumerate(orders):
        ranks = program.stages[tasks[0].chunk].ranks if tasks else ()
        work = steps(s, stage, tasks, kind)
        for before, step in zip([(), *work], [*work, ()], strict=True):
            for r, call in _handed(program, before, step, ranks).items():
                out[r].append(call)
            for task in step:
                for r, mine in inner[task.chunk].items() if not task.backward else ():
                    out[r] += [_named(c, task) for c in mine]
    return out


def _named(call: Call, task: Task) -> Call:
    if isinstance(call, Collective):
        return Collective(f"{call.what} ({task.words()})", call.members)
    sends, receives = (tuple((p, f"{what} ({task.words()})") for p, what in xs) for xs in (call.sends, call.receives))
    return Exchange(sends, receives)


def _handed(program: Program, before: Sequence[Task], after: Sequence[Task], ranks: Sequence[int]) -> dict[int, Call]:
    """What each rank of a stage sends after one step and receives for the next, as one call."""
    sends: dict[int, list[tuple[int, str]]] = defaultdict(list)
    receives: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for task in before:
        for a, b in _crossing(program, task):
            sends[a].append((b, f"the result of the {task.words()}"))
    for source in (n for task in after for n in needs(task, len(program.stages) - 1)):
        if program.stages[source.chunk].ranks != tuple(ranks):
            for a, b in _crossing(program, source):
                receives[b].append((a, f"the result of the {source.words()}"))
    return {r: Exchange(tuple(sends[r]), tuple(receives[r])) for r in ranks if sends[r] or receives[r]}


def _crossing(program: Program, task: Task) -> tuple[tuple[int, int], ...]:
    """(sender, receiver) of what a task hands to the next chunk; gradients take the way back."""
    after = task.chunk if task.backward else task.chunk + 1
    if not 0 < after < len(program.stages) or program.stages[after].ranks == program.stages[after - 1].ranks:
        return ()
    pairs = program.stages[after].receives
    return tuple((b, a) for a, b in pairs) if task.backward else pairs


def _stage_calls(program: Program, stage: Stage, sizes: Sizes) -> dict[int, list[Call]]:
    """Calls of every rank while it works on one piece of a chunk."""
    out: dict[int, list[Call]] = {r: [] for r in stage.ranks}
    bodies: list[tuple[str, PBody]] = [("embedding", stage.embed)] if stage.embed else []
    bodies += [(f"layer {r.layers[j]}", b) for r in stage.runs for j, b in enumerate(r.bodies)]
    bodies += [("head", stage.head)] if stage.head else []
    for where, body in bodies:
        for p in body.ops:
            if p.comm is not None and p.comm.kind != "slice":
                for r, call in _op_calls(program, stage, body, p, f"{p.name} of {where}", sizes):
                    out[r].append(call)
    return out


def _op_calls(
    program: Program, stage: Stage, body: PBody, p: POp, what: str, sizes: Sizes
) -> Iterator[tuple[int, Call]]:
    assert p.comm is not None
    if p.comm.kind == "transfer":
        lengths = {d: int(sizes[d]) for d in body.spec(p.output).dims}
        yield from _messages(messages(*ends_of(body, p, program.mesh, program.orders), lengths), stage, what)
        return
    for group in program.mesh.groups(p.comm.axes):
        ranks = tuple(stage.ranks[i] for i in group)
        for i, r in enumerate(ranks if len(ranks) > 1 else ()):
            if p.comm.kind == "ring_shift":
                yield r, Exchange(((ranks[(i + 1) % len(ranks)], what),), ((ranks[i - 1], what),))
            else:
                yield r, Collective(what, ranks)


def _messages(sent: Sequence, stage: Stage, what: str) -> Iterator[tuple[int, Call]]:
    sends: dict[int, list[tuple[int, str]]] = defaultdict(list)
    receives: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for src, dst in dict.fromkeys((m.src, m.dst) for m in sent if m.src != m.dst):
        sends[stage.ranks[src]].append((stage.ranks[dst], what))
        receives[stage.ranks[dst]].append((stage.ranks[src], what))
    for r in sorted({*sends, *receives}):
        yield r, Exchange(tuple(sends[r]), tuple(receives[r]))


# --------------------------------------------------------------------------------------------------------------- simulation


def blocked(program: Calls) -> str:
    """Runs all ranks until nobody can go on. "" when all have come to their end."""
    run = _Run(program)
    run.go()
    return run.why()


class _Run:
    def __init__(self, program: Calls):
        self.program, self.at = program, dict.fromkeys(program, 0)
        self.arrived: dict[int, set[int]] = defaultdict(set)
        self.posted: set[tuple[str, int, int, str]] = set()
        """("send" or "receive", from, to, what) of calls that have been made."""
        numbers: dict[Call, int] = {}
        # Numbers instead of calls: a call names all its members, and every one of them makes it.
        self.number = {r: [numbers.setdefault(c, len(numbers)) for c in mine] for r, mine in program.items()}

    def head(self, rank: int) -> Call | None:
        mine = self.program[rank]
        return mine[self.at[rank]] if self.at[rank] < len(mine) else None

    def go(self) -> None:
        for r in self.program:
            self.post(r)
        todo = list(self.program)
        while todo:
            rank = todo.pop()
            call = self.head(rank)
            if call is None or not self.ready(rank, call):
                continue
            together = call.members if isinstance(call, Collective) else (rank,)
            for r in together:
                self.at[r] += 1
                self.post(r)
                after = self.head(r)
                if isinstance(after, Exchange):
                    todo += [p for p, _ in (*after.sends, *after.receives) if p in self.program]
            todo += together

    def post(self, rank: int) -> None:
        call = self.head(rank)
        if isinstance(call, Collective):
            self.arrived[self.number[rank][self.at[rank]]].add(rank)
        elif call is not None:
            self.posted |= {("send", rank, to, what) for to, what in call.sends}
            self.posted |= {("receive", source, rank, what) for source, what in call.receives}

    def ready(self, rank: int, call: Call) -> bool:
        if isinstance(call, Collective):
            return len(self.arrived[self.number[rank][self.at[rank]]]) == len(call.members)
        return not self.waits_for(rank, call)

    def waits_for(self, rank: int, call: Call) -> list[int]:
        """Ranks that have not made their part of the call."""
        if isinstance(call, Collective):
            there = self.arrived[self.number[rank][self.at[rank]]]
            return [m for m in call.members if m not in there]
        missing = [to for to, what in call.sends if ("receive", rank, to, what) not in self.posted]
        return missing + [src for src, what in call.receives if ("send", src, rank, what) not in self.posted]

    def why(self) -> str:
        """Who waits for whom, as a cycle where there is one."""
        stuck = {r: self.waits_for(r, c) for r in self.program if (c := self.head(r)) is not None}
        if not stuck:
            return ""
        path = [min(stuck)]
        while path[-1] in stuck and path[-1] not in path[:-1]:
            path.append(next((w for w in stuck[path[-1]] if w in stuck), stuck[path[-1]][0]))
        if path[-1] not in stuck:
            *_, rank, gone = path
            state = "has come to its end" if gone in self.program else "does not exist"
            return f"{len(stuck)} ranks wait for ever: {self.words(rank, gone)}, which {state}"
        cycle = path[path.index(path[-1]) :]
        waits = [self.words(a, b) for a, b in pairwise(cycle)]
        return f"{len(stuck)} ranks wait for ever, in a circle: {'; '.join(waits)}"

    def words(self, rank: int, partner: int) -> str:
        call = self.head(rank)
        if isinstance(call, Exchange):
            halves = (("receive", call.sends), ("send", call.receives))  # what the partner has to do
            what = " and ".join(f"{verb} {x}" for verb, xs in halves for p, x in xs if p == partner)
        else:
            what = f"call {call.what}" if call else ""
        return f"rank {rank} waits for rank {partner} to {what}" if call else ""


__all__ = ["Call", "Calls", "Collective", "Exchange", "blocked", "calls"]
