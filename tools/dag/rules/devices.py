"""R01, R02, R12: where every operator stands, and what crosses devices."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tools.dag.facts import NodeFacts, View, is_computed, is_dashed, is_gate, lane_of, words
from tools.dag.rules.base import NotDecidable, Violation, bad, full_detail, rule, some_nodes
from tools.dag.rules.evidence import (
    DEVICE,
    DEVICE_ON_LABEL,
    Fact,
    absent,
    boxed_hinted,
    deviating,
    in_turn,
    is_own,
    lacking,
)

HOST = re.compile(r"\b(?:CPU|host)\b|主机", re.IGNORECASE)
"""Where the total input may come from, and the total output go to, besides a device."""


@rule("R01", "one lane per device; every compute operator is one node on one named device, in its lane")
def lanes(v: View) -> Iterator[Violation]:
    some_nodes(v)
    full_detail(v)
    nodes = list(v.nodes.values())
    if absent(v, DEVICE, nodes):
        yield Violation(
            message=f"none of the {len(v.nodes)} nodes names a device, and no cluster does",
            line=v.graph.line,
            fix='write `GPU 3` into every label and draw one `subgraph cluster_gpu3 { label="GPU 3" … }` per device',
        )
        return
    by_lane = _named_by_lanes(v)
    computes = [n for n in nodes if n.kind == "compute" and is_computed(n)]
    one = "draw one node per device, in that device's lane"
    for n in computes:
        if n.everywhere:
            yield bad(n, "one compute node for all GPUs", one)
        elif n.devices and len(n.devices) > 1 and (n.on_label or by_lane):
            yield bad(n, f"one compute node for {len(n.devices)} devices", one)
    alone = [n for n in computes if n.devices and len(n.devices) == 1 and (n.on_label or by_lane)]
    yield from _unboxed(v, alone)
    yield from in_turn(
        _only_boxes(v, computes) if by_lane else (),
        _shared_lanes(v, alone),
        _other_lanes(v, alone),
        (bad(n, "has no lane around it", "put the node into `subgraph cluster_gpu…` of its device")
         for n in lacking(v, _lane_fact(v), alone)),
        (bad(n, "names no GPU in its label", "write `GPU 3` into the label")
         for n in lacking(v, DEVICE if by_lane else DEVICE_ON_LABEL, [n for n in computes if not n.everywhere])),
        (bad(n, "names no GPU", "write `all GPUs`, or `GPU: host` where it comes from the host" if n.kind == "io"
             else "write `GPU 3`, `GPU 0,1` or `all GPUs` into the label")
         for n in lacking(v, DEVICE, [n for n in nodes if n.kind != "compute" and not HOST.search(n.text)])),
    )  # fmt: skip


def _lane_fact(v: View) -> Fact:
    return Fact(
        "the device of the lane", lambda n: lane_of(v, n) is not None, boxed_hinted, "`GPU 3` as the box's label"
    )


def _only_boxes(v: View, computes: list[NodeFacts]) -> Iterator[Violation]:
    if absent(v, DEVICE_ON_LABEL, computes):
        yield Violation(
            message="no computation names its device in its label; only the boxes around them do",
            line=v.graph.line,
            fix="write `GPU 3` into every label",
        )


def _shared_lanes(v: View, alone: list[NodeFacts]) -> Iterator[Violation]:
    """Boxes around the devices of a stage or group are no lanes; inside them every device needs its own."""
    for n in alone:
        lane = lane_of(v, n)
        if lane is not None and n.devices is not None and n.devices < lane:
            yield bad(n, f"lies in a box of {v.places.names(lane)}, not in a lane of its own",
                      "draw one box per device inside the box of the group")  # fmt: skip


def _other_lanes(v: View, alone: list[NodeFacts]) -> Iterator[Violation]:
    boxed = [(n, lane) for n in alone if (lane := lane_of(v, n)) is not None and not (n.devices or lane) < lane]
    yield from deviating(v, "devices of nodes and of the boxes around them", len(boxed), (
        bad(n, f"is on {v.places.names(n.devices or ())} but lies in the lane of {v.places.names(lane)}",
            "move it to its own lane") for n, lane in boxed if lane != n.devices))  # fmt: skip


def _unboxed(v: View, alone: list[NodeFacts]) -> Iterator[Violation]:
    if not any("pos" in n.attrs for n in v.nodes.values()):
        return
    for c in sorted({n.cluster or "" for n in alone} & set(v.graph.clusters)):
        if "bb" not in v.graph.clusters[c].attrs:
            yield Violation(
                message=f"{c}: positions are fixed but the lane has no bb, so no box is drawn",
                line=v.graph.clusters[c].line,
                fix='add bb="x0,y0,x1,y1"',
            )


def _named_by_lanes(v: View) -> bool:
    """The file's convention: the box around a node says the device, the node does not."""
    computes = [n for n in v.nodes.values() if n.kind == "compute" and not n.everywhere]
    return bool(computes) and all(n.devices and not n.on_label for n in computes)


@rule("R02", "every transfer between devices is a node")
def transfers(v: View) -> Iterator[Violation]:
    known = [n for n in v.nodes.values() if n.devices]
    if not known:
        raise NotDecidable("no node names its GPU")
    for e in v.graph.edges:
        a, b = v.nodes[e.src], v.nodes[e.dst]
        if not a.devices or not b.devices:
            continue
        if is_dashed(e.attrs) and b.kind == "routing" and (is_gate(a) or not is_own(v)):
            continue  # R09's dashed selection says who is chosen; the tokens' own way is a solid line
        # An operator that is drawn once for several devices is R01's to tell, not every edge of it.
        several = any(n.kind == "compute" and len(n.devices or ()) > 1 for n in (a, b))
        if several and a.devices & b.devices:
            continue
        if not is_own(v) and not (is_computed(a) and is_computed(b)):
            continue  # what is drawn and named in ways of its own may be the transfer
        if (a.kind == "compute" == b.kind and a.devices != b.devices) or not a.devices & b.devices:
            yield _crossing(v, a, b, e.line)
        elif (
            "comm" not in (a.kind, b.kind)
            and "routing" not in (a.kind, b.kind)
            and "io" not in (a.kind, b.kind)
            and a.devices != b.devices
        ):
            yield Violation(
                message=f"{a.id} → {b.id} crosses devices without a node",
                node=a.id,
                line=e.line,
                fix="add a communication node",
            )


def _crossing(v: View, a: NodeFacts, b: NodeFacts, line: int) -> Violation:
    way = f"{a.id} ({v.places.names(a.devices or ())}) → {b.id} ({v.places.names(b.devices or ())})"
    if transfer := next((n for n in (a, b) if n.kind == "comm"), None):
        return Violation(message=f"{way}: {transfer.id} names one end of the transfer only", node=transfer.id, line=line,
                         fix="name every device that it joins in its label: `GPU 0,1`")  # fmt: skip
    return Violation(message=f"{way} crosses devices without communication", node=a.id, line=line,
                     fix="put an ellipse (send/recv or a collective) that names both devices between them")  # fmt: skip


@rule("R12", '"all GPUs" only for the whole world')
def all_gpus(v: View) -> Iterator[Violation]:
    stated = v.graph.attrs.get("num_devices", "")
    world = (
        frozenset(range(int(stated)))
        if stated.isdigit()
        else frozenset().union(*(n.devices or frozenset() for n in v.nodes.values()))
    )
    for n in v.nodes.values():
        if not n.everywhere or n.kind == "io":
            continue
        if (n.kind == "routing" and _joins_all(v, n, world)) or not n.sure:
            continue
        if n.kind in ("compute", "routing"):
            yield bad(
                n,
                '"all GPUs" on something that is neither a collective nor the total input or output',
                "name the devices, one node each",
            )
            continue
        near: frozenset[int] = frozenset().union(
            *(v.nodes[m].devices or frozenset() for m in (*v.preds[n.id], *v.succs[n.id]))
        )
        if (
            world
            and len(near) > 1  # a collective around one device stands for others that are not drawn
            and near != world
            and not _unplaced(v, [*v.preds[n.id], *v.succs[n.id]])
            and not any(v.nodes[m].everywhere for m in (*v.preds[n.id], *v.succs[n.id]))
        ):
            yield bad(
                n,
                f'"all GPUs", but it joins {len(near)} of {len(world)} devices',
                f"write {v.places.names(near)}",
            )


EXPERT_SIDE = re.compile(r"\bdispatch|\bcombine|\brout", re.IGNORECASE)
"""What each device does for its own tokens and experts; in one for all, tokens would change devices unseen."""


def _joins_all(v: View, n: NodeFacts, world: frozenset[int]) -> bool:
    """A split to, or an aggregation from, every device of the graph, drawn outside the lanes."""
    if is_gate(n) or EXPERT_SIDE.search(words(n.operator)) or lane_of(v, n) is not None or len(world) < 2:
        return False
    sides = (v.preds[n.id], v.succs[n.id])
    if any(v.nodes[m].kind == "io" for side in sides for m in side):
        return True  # what the total input is split into, or the total output is made of
    return any(
        frozenset().union(*(v.nodes[m].devices or frozenset() for m in side)) == world or _unplaced(v, side)
        for side in sides
    )


def _unplaced(v: View, nodes: list[str]) -> bool:
    """One of them names no device, which is R01's to tell; what it joins is unknown until it does."""
    return any(v.nodes[m].devices is None and not v.nodes[m].everywhere for m in nodes)
