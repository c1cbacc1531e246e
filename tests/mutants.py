"""Wrong programs, made systematically from right ones. A sound oracle must notice each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from tools.oracle.execute import Devices
from tools.oracle.prove import Programs
from tools.partition.layout import Comm, positions
from tools.partition.lower import PBody, POp, Program, Run, Stage
from tools.spec.strategy import Phase


@dataclass(frozen=True)
class Mutant:
    """One wrong program (`alter`) or wrong machine (`alter_devices`)."""

    name: str
    alter: Callable[[Programs], Programs] | None = None
    alter_devices: Callable[[Devices], None] | None = None


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
            if p.comm is None:
                continue
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
