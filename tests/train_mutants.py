"""Wrong training steps, made systematically from right ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.mutants import wrong_comms
from tools.graph.ir import Op
from tools.partition.layout import Comm
from tools.partition.lower import PBody, POp
from tools.partition.train import TrainBody, TrainProgram, TrainStage

Where = tuple[int, str, int, int, str]
"""stage, "embed" | "run" | "loss", run, body, program"""


def places(program: TrainProgram) -> Iterator[tuple[Where, PBody]]:
    for s in program.stages:
        bodies = [("embed", 0, 0, s.embed), ("loss", 0, 0, s.loss)]
        bodies += [("run", i, j, b) for i, r in enumerate(s.runs) for j, b in enumerate(r.bodies)]
        for kind, i, j, body in bodies:
            if body is not None:
                yield from (((s.index, kind, i, j, which), p) for which, p in body.programs())


def with_body(program: TrainProgram, where: Where, pbody: PBody) -> TrainProgram:
    index, kind, i, j, which = where

    def changed(body: TrainBody) -> TrainBody:
        return replace(body, **{which: pbody})

    def stage(s: TrainStage) -> TrainStage:
        if s.index != index:
            return s
        if kind != "run":
            return replace(s, **{kind: changed(getattr(s, kind))})
        bodies = tuple(changed(b) if k == j else b for k, b in enumerate(s.runs[i].bodies))
        return replace(s, runs=tuple(replace(r, bodies=bodies) if k == i else r for k, r in enumerate(s.runs)))

    return replace(program, stages=tuple(stage(s) for s in program.stages))


def with_op(body: PBody, at: int, op: POp) -> PBody:
    return replace(body, ops=(*body.ops[:at], op, *body.ops[at + 1 :]))


def comms(program: TrainProgram) -> Iterator[tuple[Where, PBody, int, POp, Comm]]:
    for where, body in places(program):
        for at, p in enumerate(body.ops):
            if p.comm is not None:
                yield where, body, at, p, p.comm


def name(where: Where, p: POp) -> str:
    return f"stage {where[0]} {where[1]} {where[2]}.{where[3]} {where[4]} {p.name}"


def comm_mutants(program: TrainProgram) -> Iterator[tuple[str, TrainProgram]]:
    """A collective dropped, over another axis, over one more or one less, its axes in another order."""
    for where, body, at, p, comm in comms(program):
        for how, wrong in wrong_comms(comm, program):  # type: ignore[arg-type]
            if comm.kind == "all_reduce" and how == "axes in another order":
                continue  # the same sum
            yield f"{name(where, p)} {how}", with_body(program, where, with_op(body, at, replace(p, comm=wrong)))


def dim_mutants(program: TrainProgram) -> Iterator[tuple[str, TrainProgram]]:
    """A collective along another dim of its tensor."""
    for where, body, at, p, comm in comms(program):
        for which in ("src_dim", "dst_dim"):
            for d in body.spec(p.output).dims if getattr(comm, which) else ():
                if d not in (comm.src_dim, comm.dst_dim):
                    wrong = replace(p, comm=replace(comm, **{which: d}))
                    yield f"{name(where, p)} along {d}", with_body(program, where, with_op(body, at, wrong))


def kind_mutants(program: TrainProgram) -> Iterator[tuple[str, TrainProgram]]:
    """A reduce-scatter that only slices, a sum that takes the maximum, a gradient reduction that averages nothing."""
    for where, body, at, p, comm in comms(program):
        if comm.kind == "reduce_scatter":
            wrong = replace(p, comm=replace(comm, kind="slice"))
            yield f"{name(where, p)} slices", with_body(program, where, with_op(body, at, wrong))
        if comm.kind in ("all_reduce", "reduce_scatter"):
            wrong = replace(p, comm=replace(comm, reduce="max" if comm.reduce == "sum" else "sum"))
            yield f"{name(where, p)} other reduction", with_body(program, where, with_op(body, at, wrong))


def forgotten_mutants(program: TrainProgram) -> Iterator[tuple[str, TrainProgram]]:
    """A sum of gradients that forgets one of its summands; a residual addition that forgets a branch."""
    for where, body in places(program):
        for at, p in enumerate(body.ops):
            if p.op is None or p.op.fn != "add" or len(p.inputs) != 2:
                continue
            if any(body.spec(n).kind == "weight" for n in p.inputs):
                continue
            for keep in p.inputs:
                zero = replace(p.op, fn="scale", inputs=(keep,), attrs={"c": 1.0})
                wrong = replace(p, op=zero, inputs=(keep,))
                yield f"{name(where, p)} keeps only {keep}", with_body(program, where, with_op(body, at, wrong))


def ring_mutants(program: TrainProgram) -> Iterator[tuple[str, TrainProgram]]:
    """Keys, values or gradients on their way around the ring that miss a step."""
    for where, body, at, p, comm in comms(program):
        if comm.kind == "ring_shift":
            scale = Op(p.name, "elementwise", p.inputs, p.output, "ring", "ring", "scale", {"c": 1.0})
            wrong = replace(p, comm=None, op=scale)
            yield f"{name(where, p)} stays", with_body(program, where, with_op(body, at, wrong))


def handover_mutants(program: TrainProgram) -> Iterator[tuple[str, TrainProgram]]:
    """Activations and gradients handed to the wrong ranks."""
    for s in program.stages[1:]:
        senders = [a for a, _ in s.receives]
        turned = tuple(zip(senders[1:] + senders[:1], s.ranks, strict=True))
        for how, receives in (("turned by one", turned), ("one missing", s.receives[:-1])):
            stages = tuple(replace(t, receives=receives) if t.index == s.index else t for t in program.stages)
            yield f"stage {s.index} handover {how}", replace(program, stages=stages)


MAKERS: tuple[Callable[[TrainProgram], Iterator[tuple[str, TrainProgram]]], ...] = (
    comm_mutants, dim_mutants, kind_mutants, forgotten_mutants, ring_mutants, handover_mutants,
)  # fmt: skip
