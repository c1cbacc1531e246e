"""Wrong programs, made systematically from right ones. A sound oracle must notice each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise

import numpy as np

from tools.oracle.execute import Devices, stage_bodies
from tools.oracle.prove import Programs
from tools.partition.layout import Comm, Layout, Orders, positions
from tools.partition.lower import PBody, POp, Program, Run, Stage, ends_of
from tools.partition.mesh import Axes
from tools.partition.pipeline import slices
from tools.partition.pools import Handover, Pools, handovers
from tools.partition.transfer import Message, messages
from tools.spec.strategy import Phase


@dataclass(frozen=True)
class Mutant:
    """One wrong program (`alter`), wrong machine (`alter_devices`) or wrong way from pool to pool (`alter_handovers`)."""

    name: str
    alter: Callable[[Programs], Programs] | None = None
    alter_devices: Callable[[Devices], None] | None = None
    alter_handovers: Callable[[Sequence[Handover]], Sequence[Handover]] | None = None


Where = tuple[int, str, int, int]
"""stage index, "embed" | "run" | "head", run index, body index"""


def places(program: Program) -> Iterator[tuple[Where, PBody]]:
    for s in program.stages:
        if s.embed:
            yield (s.index, "embed", 0, 0), s.embed
        for i, run in enumerate(s.runs):
            for j, b in enumerate(run.bodies):
                yield (s.index, "run", i, j), b
        if s.head:
            yield (s.index, "head", 0, 0), s.head


def with_body(program: Program, where: Where, body: PBody) -> Program:
    index, kind, i, j = where

    def change(s: Stage) -> Stage:
        if s.index != index:
            return s
        if kind == "embed":
            return replace(s, embed=body)
        if kind == "head":
            return replace(s, head=body)
        bodies = tuple(body if b == j else old for b, old in enumerate(s.runs[i].bodies))
        return replace(s, runs=tuple(replace(r, bodies=bodies) if k == i else r for k, r in enumerate(s.runs)))

    return replace(program, stages=tuple(change(s) for s in program.stages))


def with_op(body: PBody, at: int, op: POp) -> PBody:
    return replace(body, ops=(*body.ops[:at], op, *body.ops[at + 1 :]))


def wrong_comms(comm: Comm, program: Program) -> Iterator[tuple[str, Comm]]:
    """The collective dropped; over another axis; over one axis more; over one less; along another dim."""
    yield "dropped", replace(comm, axes=())
    others = [a for a in program.mesh.shape.atoms if a not in comm.axes]
    for a in others:
        yield f"over {a} instead", replace(comm, axes=(a,))
        yield f"over {a} too", replace(comm, axes=(*comm.axes, a))
    if len(comm.axes) > 1:
        yield "over one axis less", replace(comm, axes=comm.axes[:-1])
        yield "axes in another order", replace(comm, axes=comm.axes[::-1])


def comm_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    for where, body in places(program):
        for at, p in enumerate(body.ops):
            if p.comm is None or p.comm.kind == "transfer":
                continue  # a transfer has messages, no axes
            for how, comm in wrong_comms(p.comm, program):
                changed = with_body(program, where, with_op(body, at, replace(p, comm=comm)))
                yield f"stage {where[0]} {body.name}.{p.name} {how}", changed


def residual_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """An addition that forgets one of its inputs and takes the other twice."""
    for where, body in places(program):
        for at, p in enumerate(body.ops):
            if p.op is None or p.op.fn != "add" or len(p.inputs) != 2:
                continue
            if any(body.spec(n).kind == "weight" for n in p.inputs):
                continue
            for keep in p.inputs:
                changed = with_body(program, where, with_op(body, at, replace(p, inputs=(keep, keep))))
                yield f"stage {where[0]} {body.name}.{p.name} adds {keep} twice", changed


def repeat_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """A layer left out, a layer run twice."""
    for s in program.stages:
        for i, run in enumerate(s.runs):
            for how, layers in (
                ("one layer fewer", run.layers[:-1]),
                ("one layer twice", (*run.layers, run.layers[-1])),
            ):
                changed: Run = replace(run, layers=layers)
                stage = replace(s, runs=tuple(changed if k == i else r for k, r in enumerate(s.runs)))
                stages = tuple(stage if t.index == s.index else t for t in program.stages)
                yield f"stage {s.index} run {i} {how}", replace(program, stages=stages)


def handover_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """Ranks of a stage receive from the wrong ranks of the one before."""
    for s in program.stages[1:]:
        senders = [a for a, _ in s.receives]
        turned = tuple(zip(senders[1:] + senders[:1], s.ranks, strict=True))
        for how, receives in (("turned by one", turned), ("one missing", s.receives[:-1])):
            stages = tuple(replace(t, receives=receives) if t.index == s.index else t for t in program.stages)
            yield f"stage {s.index} handover {how}", replace(program, stages=stages)


MAKERS = (comm_mutants, residual_mutants, repeat_mutants, handover_mutants)


# ------------------------------------------------------------------------------------------- further kinds of mistakes

SAME = " (same: "
"""Ends the name of a mutant that computes the same numbers, with the reason; nobody can catch it, nothing is wrong."""


def same_because(reason: str) -> str:
    return f"{SAME}{reason})" if reason else ""


def hold_copies(program: Program, layout: Layout, pairs: Iterable[tuple[int, int]], but: Axes = ()) -> bool:
    """Whether the ranks (inside a stage) of every pair hold the same part and the same summand of a tensor; axes of
    `but` do not count."""
    mesh, used = program.mesh, layout.used() - set(but)
    return all(mesh.coordinate(a, x) == mesh.coordinate(b, x) for a, b in pairs for x in used)


def axis_order_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """The axes of a collective in reverse: groups of the same ranks, in another order."""
    for where, body, at, p, comm in comms(program):
        if len(comm.axes) > 1:
            changed = with_body(program, where, with_op(body, at, replace(p, comm=replace(comm, axes=comm.axes[::-1]))))
            why = "a sum or a maximum does not depend on the order of the members" if comm.kind == "all_reduce" else ""
            yield f"stage {where[0]} {body.name}.{p.name} axes in reverse{same_because(why)}", changed


def comms(program: Program) -> Iterator[tuple[Where, PBody, int, POp, Comm]]:
    for where, body in places(program):
        for at, p in enumerate(body.ops):
            if p.comm is not None:
                yield where, body, at, p, p.comm


def how_mutants(how: str) -> Callable[[Program], Iterator[tuple[str, Program]]]:
    """The part of `comm_mutants` whose name ends in one of the ways of `wrong_comms`."""

    def make(program: Program) -> Iterator[tuple[str, Program]]:
        return ((name, changed) for name, changed in comm_mutants(program) if name.endswith(how))

    return make


def reduction_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """A maximum where a sum is due, and the other way round."""
    for where, body, at, p, comm in comms(program):
        if comm.kind in ("all_reduce", "reduce_scatter"):
            wrong = replace(comm, reduce="sum" if comm.reduce == "max" else "max")
            changed = with_body(program, where, with_op(body, at, replace(p, comm=wrong)))
            yield f"stage {where[0]} {body.name}.{p.name} takes the {wrong.reduce}", changed


def dim_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """Gathered, scattered or exchanged along another dim of the tensor."""
    for where, body, at, p, comm in comms(program):
        for end in ("src_dim", "dst_dim"):
            right = getattr(comm, end)
            for d in body.spec(p.output).dims if right else ():
                if d != right:
                    op = replace(p, comm=replace(comm, **{end: d}))
                    changed = with_body(program, where, with_op(body, at, op))
                    yield f"stage {where[0]} {body.name}.{p.name} {end} {d} instead of {right}", changed


def bypass_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """One reader of a collective's result takes what went into the collective instead."""
    for where, body, _, p, _ in comms(program):
        for at, reader in enumerate(body.ops):
            if p.output in reader.inputs:
                inputs = tuple(p.inputs[0] if n == p.output else n for n in reader.inputs)
                changed = with_body(program, where, with_op(body, at, replace(reader, inputs=inputs)))
                yield f"stage {where[0]} {body.name}.{reader.name} reads {p.inputs[0]} before {p.name}", changed


def swap_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """Two collectives of a body do each other's work."""
    for where, body in places(program):
        found = [(at, p) for at, p in enumerate(body.ops) if p.comm is not None]
        for (i, a), (j, b) in pairwise(found):
            if a.comm != b.comm:
                changed = with_op(with_op(body, i, replace(a, comm=b.comm)), j, replace(b, comm=a.comm))
                yield (
                    f"stage {where[0]} {body.name}: {a.name} and {b.name} exchanged",
                    with_body(program, where, changed),
                )


def operand_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """An operator reads another value of the same dims and layout, the last one made before it."""
    for where, body in places(program):
        for at, p in enumerate(body.ops):
            made = [body.inputs[0], *(q.output for q in body.ops[:at])]
            for n in dict.fromkeys(p.inputs):
                mine = body.tensors[n]
                if body.spec(n).kind == "weight" or mine.partial:
                    continue
                same = [m for m in made if _interchangeable(body, m, n)]
                if same:
                    inputs = tuple(same[-1] if x == n else x for x in p.inputs)
                    changed = with_body(program, where, with_op(body, at, replace(p, inputs=inputs)))
                    why = same_because(_mask_hides_nothing(program, body, n, same[-1]))
                    yield f"stage {where[0]} {body.name}.{p.name} reads {same[-1]} for {n}{why}", changed


def _mask_hides_nothing(program: Program, body: PBody, masked: str, other: str) -> str:
    made = next((q for q in body.ops if q.output == masked), None)
    plain = made is not None and made.op is not None and made.op.kind == "mask" and not any(
        made.op.attrs.get(k) for k in ("window", "chunk")
    )  # fmt: skip
    if (
        program.phase == "decode"
        and plain
        and made
        and body.tensors[made.inputs[0]].origin == body.tensors[other].origin
    ):
        return "a decode step without window sees every cached position, its mask hides none"
    return ""


def _interchangeable(body: PBody, a: str, b: str) -> bool:
    x, y = body.tensors[a], body.tensors[b]
    return x.origin != y.origin and x.layout == y.layout and body.spec(a).dims == body.spec(b).dims and not x.partial


def order_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """A collective runs one step late, after its first reader."""
    for where, body, at, p, _ in comms(program):
        if any(p.output in q.inputs for q in body.ops[at + 1 : at + 2]):
            ops = (*body.ops[:at], body.ops[at + 1], p, *body.ops[at + 2 :])
            late = with_body(program, where, replace(body, ops=ops))
            yield f"stage {where[0]} {body.name}.{p.name} after its first reader", late


def stage_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """Neighbouring stages hold each other's layers; a stage runs its layers in reverse."""
    for a, b in pairwise(program.stages):
        mine, other = _layers(a), _layers(b)
        one_each = (*mine[:-1], other[0]), (mine[-1], *other[1:])
        for how, new_a, new_b in (("exchanged whole", other, mine), ("exchange one layer", *one_each)):
            if len(new_a) == len(mine) and len(new_b) == len(other):
                changed = {a.index: new_a, b.index: new_b}
                stages = tuple(_with_layers(s, changed[s.index]) if s.index in changed else s for s in program.stages)
                yield f"layers of stages {a.index} and {b.index} {how}", replace(program, stages=stages)
    for s in program.stages:
        if len(_layers(s)) > 1:
            stages = tuple(_with_layers(t, _layers(t)[::-1]) if t.index == s.index else t for t in program.stages)
            yield f"layers of stage {s.index} in reverse", replace(program, stages=stages)


def _layers(s: Stage) -> tuple[int, ...]:
    return tuple(i for r in s.runs for i in r.layers)


def _with_layers(s: Stage, layers: tuple[int, ...]) -> Stage:
    runs, at = [], 0
    for r in s.runs:
        runs.append(replace(r, layers=layers[at : at + len(r.layers)]))
        at += len(r.layers)
    return replace(s, runs=tuple(runs))


def p2p_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """One pair of receivers exchanged; one rank served twice by the first sender; one rank served by nobody."""
    for before, s in pairwise(program.stages):
        body = next(b for b, _ in s.bodies())
        r, layout = s.receives, body.layout(body.inputs[0])
        at = {g: i for i, g in enumerate(before.ranks)}
        wrong: list[tuple[str, tuple[tuple[int, int], ...], list[tuple[int, int]]]] = []
        for i in range(len(r) - 1):
            (a, x), (b, y) = r[i], r[i + 1]
            wrong.append((f"pairs {i} and {i + 1} exchanged", (*r[:i], (b, x), (a, y), *r[i + 2 :]), [(at[a], at[b])]))
            first = r[0][0]
            wrong.append(
                (f"receiver {i + 1} served by sender 0", (*r[: i + 1], (first, y), *r[i + 2 :]), [(at[first], at[b])])
            )
        for i in range(len(r)):
            wrong.append((f"receiver {i} served by nobody", (*r[:i], *r[i + 1 :]), []))
        for how, receives, pairs in wrong:
            why = (
                "both senders hold copies of the residual stream"
                if pairs and hold_copies(program, layout, pairs)
                else ""
            )
            stages = tuple(replace(t, receives=receives) if t.index == s.index else t for t in program.stages)
            yield f"stage {s.index} p2p {how}{same_because(why)}", replace(program, stages=stages)


def cache_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """Decode forgets what was cached; prefill stores under the wrong name; K stored as V."""
    for where, body in places(program):
        found = [(at, p) for at, p in enumerate(body.ops) if p.op is not None and p.op.kind == "cache"]
        for at, p in found:
            assert p.op is not None
            stray = with_op(body, at, replace(p, op=replace(p.op, output=p.op.output + "_stray")))
            yield f"stage {where[0]} {body.name}.{p.name} kept where nobody looks", with_body(program, where, stray)
            if program.phase == "decode":
                ops = tuple(
                    replace(q, inputs=tuple(p.inputs[0] if n == p.output else n for n in q.inputs)) for q in body.ops
                )
                fresh = with_body(program, where, replace(body, ops=ops))
                yield f"stage {where[0]} {body.name}: readers of {p.name} see the new position only", fresh
        for (i, a), (j, b) in pairwise(found):
            assert a.op is not None and b.op is not None
            crossed = with_op(body, i, replace(a, op=replace(a.op, output=b.op.output)))
            crossed = with_op(crossed, j, replace(b, op=replace(b.op, output=a.op.output)))
            yield f"stage {where[0]} {body.name}: {a.name} and {b.name} crossed", with_body(program, where, crossed)


def ring_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """A ring step that starts from the wrong step's keys, is masked as another step, or is summed twice."""
    for where, body, at, p, comm in comms(program):
        if comm.kind != "ring_shift":
            continue
        home = body.tensors[p.output].origin
        if p.inputs[0] != home:
            stale = with_op(body, at, replace(p, inputs=(home,)))
            yield f"stage {where[0]} {body.name}.{p.name} sends its own again", with_body(program, where, stale)
        t = body.tensors[p.output]
        readers = [q for q in body.ops if p.output in q.inputs]
        unasked = t.partial and all(q.comm or (q.op and q.op.kind == "elementwise") for q in readers)
        why = same_because("no operator asks to which positions a running sum belongs" if unasked else "")
        for by in (1, 2):
            turned = replace(t, layout=replace(t.layout, rotation=t.layout.rotation + by))
            wrong = replace(body, tensors={**body.tensors, p.output: turned})
            name = f"stage {where[0]} {body.name}.{p.name} taken for {by} step later{why}"
            yield name, with_body(program, where, wrong)
    for where, body in places(program):
        for at, p in enumerate(body.ops):
            if p.op is not None and p.op.module == "self_attn.ring" and len(p.inputs) == 2:
                for keep in p.inputs:
                    if body.spec(keep).kind != "weight":
                        twice = with_op(body, at, replace(p, inputs=(keep, keep)))
                        yield (
                            f"stage {where[0]} {body.name}.{p.name} takes {keep} twice",
                            with_body(program, where, twice),
                        )


def copies_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """Tokens sent to slots that hold another expert, that nobody has, or always to the first copy."""
    for where, body in places(program):
        for at, p in enumerate(body.ops):
            if p.op is None or p.op.kind != "assign_copies":
                continue
            experts, num = p.op.attrs["num_experts"], p.op.attrs["num_slots"]
            for how, attrs in (
                ("copies counted one slot late", {"num_experts": experts + 1}),
                ("copies counted one slot early", {"num_experts": experts - 1}),
                ("one copy too many of each", {"num_slots": num + experts}),
                ("first copies only", {"num_slots": experts}),
            ):
                op = replace(p.op, attrs={**p.op.attrs, **attrs})
                changed = with_body(program, where, with_op(body, at, replace(p, op=op)))
                yield f"stage {where[0]} {body.name}.{p.name} {how}", changed
            for k, reader in enumerate(body.ops):
                if p.output in reader.inputs:
                    inputs = tuple(p.inputs[0] if n == p.output else n for n in reader.inputs)
                    changed = with_body(program, where, with_op(body, k, replace(reader, inputs=inputs)))
                    yield f"stage {where[0]} {body.name}.{reader.name} takes experts for slots", changed


# ------------------------------------------------------------------------------------- messages between groups and pools

BETWEEN_GROUPS, BETWEEN_POOLS = "message between device groups", "hand-over of the KV cache"
Change = Callable[[Sequence[Message]], Sequence[Message]]


def message_changes(sent: Sequence[Message]) -> Iterator[tuple[str, Change, tuple[int, int] | None]]:
    """Mistakes with the first, the middle and the last message: (which, what becomes of the messages, the senders that
    were confused)."""
    for i in sorted({0, len(sent) // 2, len(sent) - 1}):
        m = sent[i]
        yield f"message {i} lost", lambda ms, i=i: [*ms[:i], *ms[i + 1 :]], None
        for field, word in (
            ("dst", "goes to the receiver"),
            ("src", "comes from the sender"),
            ("index", "is the part"),
        ):
            j = next((j for j in _onwards(i, len(sent)) if _differ(sent[j], m, field)), None)
            if j is not None:
                change = partial(_confused, i, j, field)
                yield f"message {i} {word} of message {j}", change, (m.src, sent[j].src) if field == "src" else None


def _confused(i: int, j: int, field: str, ms: Sequence[Message]) -> Sequence[Message]:
    return [*ms[:i], replace(ms[i], **{field: getattr(ms[j], field)}), *ms[i + 1 :]]


def _onwards(i: int, n: int) -> list[int]:
    return [*range(i + 1, n), *range(i)]


def _differ(a: Message, b: Message, field: str) -> bool:
    if field == "index":
        return any(len(x) != len(y) or (x != y).any() for x, y in zip(a.index, b.index, strict=True))
    return bool(getattr(a, field) != getattr(b, field))


def transfers(program: Program) -> Iterator[tuple[int, PBody, POp]]:
    """The transfers of each distinct body, in the first layer that has it: (how many a pass makes before it, body, step)."""
    seen: set[tuple[int, str]] = set()
    passed = [
        (b, p)
        for s in program.stages
        for _, b in stage_bodies(s)
        for p in b.ops
        if p.comm and p.comm.kind == "transfer"
    ]
    for at, (body, p) in enumerate(passed):
        if (id(body), p.name) not in seen:
            seen.add((id(body), p.name))
            yield at, body, p


def route_mutants(program: Program) -> Iterator[Mutant]:
    """One message of one transfer goes wrong, in one layer; a program without device groups has none."""
    for at, body, p in transfers(program):
        sender, receiver = ends_of(body, p, program.mesh, program.orders)
        lengths = {d: int(program.sizes[d]) for d in body.spec(p.output).dims}
        for how, change, senders in message_changes(messages(sender, receiver, lengths)):
            same = senders is not None and hold_copies(program, sender.layout, [senders])
            why = same_because("both senders hold copies of the part" if same else "")
            name = f"{program.phase}: {body.name}.{p.name} {how}{why}"
            yield Mutant(name, alter_devices=_on_call(program.phase, at, change))


def _on_call(phase: Phase, at: int, change: Change) -> Callable[[Devices], None]:
    """Changes the messages of one transfer of every pass of a phase."""

    def alter(devices: Devices) -> None:
        calls = iter(range(10**6))
        if (devices.sizes["seq_len"] > 1) == (phase == "prefill"):
            devices.route = lambda sent: change(sent) if next(calls) == at else sent

    return alter


@dataclass(frozen=True)
class WrongHandover(Handover):
    """A hand-over whose messages go wrong."""

    change: Change = tuple

    def messages(self, sizes: Mapping[str, int]) -> tuple[Message, ...]:
        return tuple(self.change(Handover.messages(self, sizes)))


def handover_cache_mutants(pools: Pools) -> list[Mutant]:
    """One message of one cache goes wrong; one layer, or all of a hand-over, is forgotten; a ring's positions are taken
    for runs."""
    out = []
    for at, h in enumerate(handovers(pools)):
        where = f"{h.cache} of layers {h.layers[0]} to {h.layers[-1]}"
        for how, change, senders in message_changes(h.messages(pools.prefill.sizes)):
            same = senders is not None and hold_copies(pools.prefill, h.sender.layout, [senders])
            why = same_because("both senders hold copies of the part" if same else "")
            out.append(_of_handover(f"{where}: {how}{why}", at, partial(_wrong_messages, change)))
        out.append(_of_handover(f"{where}: forgotten", at, lambda h: None))
        out.append(_of_handover(f"{where}: one layer forgotten", at, lambda h: replace(h, layers=h.layers[:-1])))
        if h.sender.orders.get("seq_len", "run") != "run":
            runs = partial(_with_orders, {**h.sender.orders, "seq_len": "run"})
            out.append(_of_handover(f"{where}: zig-zag positions taken for runs", at, runs))
    return out


def _wrong_messages(change: Change, h: Handover) -> Handover:
    return WrongHandover(**{f.name: getattr(h, f.name) for f in fields(h)}, change=change)


def _with_orders(orders: Orders, h: Handover) -> Handover:
    return replace(h, sender=replace(h.sender, orders=orders))


def _of_handover(name: str, at: int, wrong: Callable[[Handover], Handover | None]) -> Mutant:
    def alter(found: Sequence[Handover]) -> Sequence[Handover]:
        changed = wrong(found[at])
        return [*found[:at], *([changed] if changed else []), *found[at + 1 :]]

    return Mutant(name, alter_handovers=alter)


def program_mutants(programs: Programs) -> Iterator[Mutant]:
    for phase, program in programs.items():
        for make in MAKERS:
            for name, _ in make(program):
                yield Mutant(f"{phase}: {name}", _swap(phase, name, make))


def _swap(
    phase: Phase, name: str, make: Callable[[Program], Iterator[tuple[str, Program]]]
) -> Callable[[Programs], Programs]:
    """Mutates the *reduced* program that the oracle hands over, which has the same structure."""

    def alter(programs: Programs) -> Programs:
        return {**programs, phase: dict(make(programs[phase]))[name]}

    return alter


def reversed_groups(kind: str) -> Mutant:
    """Members of every group of one kind of collective in reverse order."""

    def alter(devices: Devices) -> None:
        def groups(comm: Comm) -> list[tuple[int, ...]]:
            found = devices.mesh.groups(comm.axes)
            return [g[::-1] if comm.kind == kind else g for g in found]

        devices.groups = groups

    return Mutant(f"members of every {kind} reversed", alter_devices=alter)


def neighbours_shard(dim: str) -> Mutant:
    """Every rank holds what its neighbour should hold of one dim."""

    def alter(devices: Devices) -> None:
        def shard(n: int, d: str, axes: tuple[str, ...], rank: int) -> np.ndarray:
            if d == dim and axes:
                rank = (rank + int(devices.mesh.stride(axes[-1]))) % int(devices.mesh.size)
            return positions(n, axes, devices.mesh, rank, d, devices.orders)

        devices.shard = shard

    return Mutant(f"shards of {dim} moved to the neighbour", alter_devices=alter)


def shifted_shard(dim: str) -> Mutant:
    """Every shard of one dim begins one element late (and wraps around)."""

    def alter(devices: Devices) -> None:
        def shard(n: int, d: str, axes: tuple[str, ...], rank: int) -> np.ndarray:
            at = positions(n, axes, devices.mesh, rank, d, devices.orders)
            return (at + 1) % n if d == dim and axes else at

        devices.shard = shard

    return Mutant(f"shards of {dim} shifted by one", alter_devices=alter)


def rearranged(target: Comm, how: str, programs: Programs) -> Mutant:
    """Groups of one collective: members reversed, turned by one, or one member exchanged with the next group."""

    def alter(devices: Devices) -> None:
        def groups(comm: Comm) -> list[tuple[int, ...]]:
            found = [tuple(g) for g in devices.mesh.groups(comm.axes)]
            return found if comm != target else REARRANGE[how](found)

        devices.groups = groups

    over = programs["prefill"].mesh.shape.words(target.axes)
    dims = f" {target.src_dim or ''} → {target.dst_dim or ''}" if target.src_dim or target.dst_dim else ""
    where = f"{target.kind} over {over}{dims}"
    why = same_because(_order_does_not_matter(target, how, programs))
    return Mutant(f"{where}: members {how}{why}", alter_devices=alter)


def _order_does_not_matter(comm: Comm, how: str, programs: Programs) -> str:
    mesh = programs["prefill"].mesh
    groups = [tuple(g) for g in mesh.groups(comm.axes)]
    if how != "exchanged with the next group":
        if comm.kind == "all_reduce":
            return "a sum or a maximum does not depend on the order of the members"
        if comm.kind == "ring_shift" and (how == "turned by one" or len(groups[0]) == 2):
            return "a ring has no first member" if how == "turned by one" else "a ring of two has one direction"
        return ""
    if comm.kind == "slice":
        return "a rank slices its own copy, and its place in the group is the same"
    moved = [(a[-1], b[-1]) for a, b in zip(groups, REARRANGE[how](groups), strict=True)]
    uses = [(p, b.layout(q.inputs[0])) for p in programs.values() for _, b, _, q, c in comms(p) if c == comm]
    if all(hold_copies(p, x, moved) for p, x in uses):
        return "the exchanged ranks hold copies"
    if all(x.reduce == "sum" and hold_copies(p, x, moved, but=x.pending) for p, x in uses):
        return "the exchanged ranks hold summands of one sum, all of which are added up later"
    return ""


def _exchanged(groups: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The last member of each group sits in the next group."""
    lasts = [g[-1] for g in groups]
    return [(*g[:-1], last) for g, last in zip(groups, lasts[1:] + lasts[:1], strict=True)]


REARRANGE: dict[str, Callable[[list[tuple[int, ...]]], list[tuple[int, ...]]]] = {
    "reversed": lambda gs: [g[::-1] for g in gs],
    "turned by one": lambda gs: [g[1:] + g[:1] for g in gs],
    "exchanged with the next group": _exchanged,
}

PROGRAM_KINDS: dict[str, Callable[[Program], Iterator[tuple[str, Program]]]] = {
    "collective dropped": how_mutants("dropped"), "collective over another axis": how_mutants("instead"),
    "collective over one axis more": how_mutants("too"), "collective over one axis less": how_mutants("over one axis less"),
    "axes of a collective in another order": axis_order_mutants, "wrong reduction": reduction_mutants,
    "collective along another dim": dim_mutants, "collective bypassed by a reader": bypass_mutants,
    "two collectives exchanged": swap_mutants, "collective after its reader": order_mutants,
    "residual edge forgotten": residual_mutants, "wrong operand of the same shape": operand_mutants,
    "layer left out or run twice": repeat_mutants, "layers on the wrong stage or out of order": stage_mutants,
    "copies of experts confused": copies_mutants,
    "wrong send/receive pair": p2p_mutants, "stale or misplaced cache": cache_mutants, "wrong ring step": ring_mutants,
}  # fmt: skip


def mutants_by_kind(programs: Programs) -> dict[str, list[Mutant]]:
    """Every mutant of a pair of programs, by the kind of mistake."""
    out: dict[str, list[Mutant]] = {}
    for kind, make in PROGRAM_KINDS.items():
        out[kind] = [
            Mutant(f"{phase}: {name}", _swap(phase, name, make)) for phase, p in programs.items() for name, _ in make(p)
        ]
    found = dict.fromkeys(c for p in programs.values() for *_, c in comms(p) if c.kind != "transfer")
    for how in REARRANGE:
        out[f"members of a group {how}"] = [
            rearranged(c, how, programs)
            for c in found
            if how != "exchanged with the next group" or len(programs["prefill"].mesh.groups(c.axes)) > 1
        ]
    bodies = [b for p in programs.values() for s in p.stages for b, _ in s.bodies()]
    # Dims that a rank's own data is cut along: weights, token ids, caches. The rest is dealt out by collectives alone.
    held = [*(b.inputs[0] for b in bodies), *(w.name for b in bodies for w in b.weights())]
    held += [p.output for b in bodies for p in b.ops if p.op is not None and p.op.kind == "cache"]
    dims = {
        d for b in bodies for n in held if n in b.tensors and b.spec(n).dims != RESIDUAL for d, _ in b.layout(n).split
    }
    out["slice at the wrong positions"] = slice_mutants(programs["prefill"])
    out[BETWEEN_GROUPS] = [m for p in programs.values() for m in route_mutants(p)]
    out[BETWEEN_POOLS] = []
    out["shard shifted by one"] = [shifted_shard(d) for d in sorted(dims)]
    out["shard of the neighbour"] = [neighbours_shard(d) for d in sorted(dims)]
    return out


def pool_mutants_by_kind(pools: Pools, kinds: Iterable[str]) -> dict[str, list[Mutant]]:
    """Mutants of the hand-over; its programs have theirs as strategies of their own."""
    return {**{k: [] for k in kinds}, BETWEEN_POOLS: handover_cache_mutants(pools)}


def slice_mutants(program: Program) -> list[Mutant]:
    """A slice of the prompt that forgets how many positions came before it, or miscounts them."""
    count = program.strategy.seq_slices

    def moved(i: int, by: Callable[[int], int]) -> Callable[[Devices], None]:
        def alter(d: Devices) -> None:
            if d.sizes["seq_len"] > 1 and d.past == slices(d.prompt, count)[i][0]:
                d.past = by(d.past)

        return alter

    wrong: tuple[tuple[str, Callable[[int], int]], ...] = (
        ("from position 0", lambda n: 0), ("one too early", lambda n: n - 1), ("two too early", lambda n: n - 2),
        ("one too late", lambda n: n + 1), ("two too late", lambda n: n + 2), ("twice as far", lambda n: 2 * n),
        ("half as far", lambda n: n // 2),
    )  # fmt: skip
    return [Mutant(f"slice {i} {how}", alter_devices=moved(i, by)) for i in range(1, count) for how, by in wrong]


RESIDUAL = ("batch_size", "seq_len", "hidden")


def equivalent(mutant: str) -> str:
    """Why a mutant of `mutants_by_kind` computes the same numbers; empty for one that must be caught."""
    return mutant.partition(SAME)[2].removesuffix(")")
