"""Collectives: their groups partition the ranks, members agree on bytes, and layouts follow from what they do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tools.checks.base import Case, check, error
from tools.graph.build import all_sizes
from tools.graph.ir import Sizes
from tools.memory import held_elements
from tools.partition.layout import Comm, Layout
from tools.partition.lower import PBody, POp, Program, Stage, ends_of
from tools.partition.mesh import Mesh
from tools.partition.transfer import messages
from tools.spec.finding import Finding

PROBE = {"batch_size": 64, "seq_len": 64, "kv_len": 64}


@check("collectives")
def collectives(case: Case) -> Iterator[Finding]:
    for program in case.programs:
        sizes = {**all_sizes(program.model, **PROBE), **program.sizes}
        seen: set[int] = set()
        for stage in program.stages:
            yield from _ranks(program, stage)
            for pbody, _ in stage.bodies():
                if id(pbody) not in seen:
                    seen.add(id(pbody))
                    yield from _body(program, pbody, sizes)
        yield from _handover(program)


def _body(program: Program, pbody: PBody, sizes: Sizes) -> Iterator[Finding]:
    for p in pbody.ops:
        if p.comm is None:
            yield from _settled(program, pbody, p)
            continue
        where = f"{program.phase} {pbody.name}.{p.name}"
        if p.comm.kind == "transfer":
            broken = transfer_fault(p, pbody, sizes, program)
            if broken:
                yield error("collective", f"{where}: {broken}", cause="network", where=p.name)
            continue
        broken = groups_fault(p.comm, program.mesh) or layout_fault(
            p.comm, pbody.layout(p.inputs[0]), pbody.layout(p.output)
        )
        broken = broken or bytes_fault(p, pbody, sizes, program)
        if broken:
            yield error("collective", f"{where}: {broken}", cause="network", where=p.name)


def groups_fault(comm: Comm, mesh: Mesh) -> str:
    """Every rank is in exactly one group, and groups are as large as the axes say."""
    if len(set(comm.axes)) != len(comm.axes) or not set(comm.axes) <= set(mesh.shape.atoms):
        return f"axes {comm.axes} are not distinct axes of the mesh {mesh.shape.atoms}"
    if len({mesh.shape.group_of(a) for a in comm.axes}) != 1:
        return f"axes {comm.axes} are not those of one device group"
    groups, degree = mesh.groups(comm.axes), int(mesh.degree(comm.axes))
    members, ranks = sorted(r for g in groups for r in g), mesh.ranks(mesh.shape.group_of(comm.axes[0]))
    if members != list(ranks) or any(len(g) != degree for g in groups):
        return f"groups {groups[:2]} do not partition {len(ranks)} ranks into groups of {degree}"
    return ""


def layout_fault(comm: Comm, src: Layout, dst: Layout) -> str:
    """The output's layout must be the input's after this collective: it loses axes at the inside, gains them there."""
    split, pending = src.as_dict(), list(src.pending)
    if comm.kind in ("all_reduce", "reduce_scatter"):
        if not set(comm.axes) <= set(pending):
            return f"{comm.kind} over {comm.axes}, but only {tuple(pending)} await a {src.reduce}"
        if comm.reduce != src.reduce:
            return f"{comm.kind} takes the {comm.reduce} of what awaits a {src.reduce}"
        pending = [a for a in pending if a not in comm.axes]
    if comm.kind in ("all_gather", "all_to_all"):
        have = split.get(comm.src_dim or "", ())
        if have[len(have) - len(comm.axes) :] != (comm.src_axes or comm.axes):
            return f"{comm.kind} gathers {comm.src_dim} over {comm.axes}, which lies over {have}"
        split[comm.src_dim or ""] = have[: len(have) - len(comm.axes)]
    if comm.kind in ("reduce_scatter", "all_to_all", "slice"):
        split[comm.dst_dim or ""] = split.get(comm.dst_dim or "", ()) + comm.axes
    rotation = src.rotation
    if comm.kind == "ring_shift":  # one place further, the way it goes already, or home
        ways = {1: (src.rotation + 1,), -1: (src.rotation - 1, 0)}
        going = (src.rotation > 0) - (src.rotation < 0) or (1 if dst.rotation > 0 else -1)
        rotation = dst.rotation if dst.rotation in ways[going] else src.rotation + going
    want = replace(Layout.of(split, tuple(pending), src.reduce), rotation=rotation)
    return "" if want == dst else f"{comm.kind} takes [{src}] to [{want}], the graph says [{dst}]"


def bytes_fault(p: POp, pbody: PBody, sizes: Sizes, program: Program) -> str:
    """Members of a reduction bring tensors of one size; gathered pieces add up to the whole."""
    assert p.comm is not None
    source, mesh, orders = p.inputs[0], program.mesh, program.orders
    for group in mesh.groups(p.comm.axes):
        sent = [held_elements(pbody, source, r, mesh, sizes, orders) for r in group]
        got = [held_elements(pbody, p.output, r, mesh, sizes, orders) for r in group]
        if p.comm.kind in ("all_reduce", "reduce_scatter", "slice") and len(set(sent)) > 1:
            return f"ranks {group} bring {sorted(set(sent))} elements to one {p.comm.kind}"
        if p.comm.kind == "all_gather" and any(g != sum(sent) for g in got):
            return f"ranks {group} send {sum(sent)} elements and receive {got[0]}"
        if p.comm.kind in ("reduce_scatter", "slice") and sum(got) != sent[0]:
            return f"ranks {group} scatter {sent[0]} elements and keep {sum(got)}"
        if p.comm.kind in ("all_to_all", "ring_shift") and sum(got) != sum(sent):
            return f"ranks {group} send {sum(sent)} elements and receive {sum(got)}"
    return ""


def transfer_fault(p: POp, pbody: PBody, sizes: Sizes, program: Program) -> str:
    """Nothing pending leaves a device group, and every receiver gets each part that it needs once."""
    (source,), mesh, orders = p.inputs, program.mesh, program.orders
    if pbody.layout(source).pending or pbody.layout(p.output).pending:
        return f"{source} leaves its device group as a summand"
    sender, receiver = ends_of(pbody, p, mesh, orders)
    lengths = {d: int(sizes[d]) for d in pbody.spec(source).dims}
    try:
        sent = messages(sender, receiver, lengths)
    except ValueError as e:
        return str(e)
    for r in receiver.ranks:
        got = sum(m.elements for m in sent if m.dst == r)
        if got != held_elements(pbody, p.output, r, mesh, sizes, orders):
            return f"rank {r} receives {got} elements and holds another number"
    return ""


LINEAR = frozenset({"einsum", "combine", "from_nodes", "select_last"})


def _settled(program: Program, pbody: PBody, p: POp) -> Iterator[Finding]:
    """Only linear operators may read a summand whose sum is still pending."""
    assert p.op is not None
    waiting = [n for n in p.inputs if pbody.layout(n).pending]
    bilinear = p.op.fn == "mul" and len(waiting) == 1  # a factor that is no summand itself
    linear = p.op.kind in LINEAR or (p.op.kind == "elementwise" and (p.op.fn in ("scale", "add") or bilinear))
    if waiting and not linear:
        words = f"{program.phase} {pbody.name}.{p.name} reads {waiting[0]}, whose sum is pending"
        yield error("pending-read", words, where=p.name, fix="a reduction before it")
    if p.op.kind == "elementwise" and p.op.fn == "add" and len({pbody.layout(n).pending for n in p.inputs}) > 1:
        words = f"{program.phase} {pbody.name}.{p.name} adds a summand to a finished sum: it would be counted per rank"
        yield error("pending-read", words, where=p.name, fix="a reduction before it")


def _ranks(program: Program, stage: Stage) -> Iterator[Finding]:
    if len(set(stage.ranks)) != program.strategy.group:
        words = (
            f"{program.phase} stage {stage.index} has {len(set(stage.ranks))} ranks, the group {program.strategy.group}"
        )
        yield error("stage-ranks", words)
    pp = program.strategy.pp  # chunks of an interleaved pipeline share their stage's ranks
    others = {r for s in program.stages if (s.index - stage.index) % pp for r in s.ranks}
    if others & set(stage.ranks):
        yield error(
            "stage-ranks", f"{program.phase} stage {stage.index} shares ranks {sorted(others & set(stage.ranks))}"
        )


def _handover(program: Program) -> Iterator[Finding]:
    """Between stages every rank receives once, from the rank that holds the same shard of the residual stream."""
    for before, stage in zip(program.stages, program.stages[1:], strict=False):
        where = f"{program.phase} stage {before.index} to {stage.index}"
        first = stage.runs[0].bodies[0]
        holders = program.mesh.ranks(first.group(first.inputs[0]))
        want = tuple((before.ranks[r], stage.ranks[r]) for r in holders)
        got = tuple(sorted(stage.receives, key=lambda pair: pair[1]))
        if got != tuple(sorted(want, key=lambda pair: pair[1])):
            wrong = next((pair for pair in got if pair not in want), None)
            words = (
                f"rank {wrong[1]} receives from {wrong[0]}, which holds another shard"
                if wrong
                else "a rank receives nothing"
            )
            yield error("handover", f"{where}: {words}", cause="network")
