"""Swim lanes: where every node and edge is drawn, as tables that `runtime` turns into a drawing.

A lane is a device's column, a row is a topological step; collectives lie across the lanes they join. Edges between
neighbouring rows run straight down; edges that skip rows run beside the lane's nodes, in channels that never hold two
edges at the same height. Unit: points.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.dag import runtime
from tools.dag.graph import Dag, DagEdge, DagNode, dims_text, ports_text
from tools.dag.text import layers_text

ROW_GAP, FRAME_GAP, LANE_GAP, LANE_TITLE, CHANNEL = 30.0, 30.0, 46.0, 38.0, 9.0
FAN_GAP = 70.0
"""Room below and above what fans out to all lanes."""
LONG = 8
"""Edges that skip at least this many rows run on the left, with the residual stream; the others on the right."""

Pair = tuple[int, int, int | None]


@dataclass(slots=True)
class Tables:
    """Everything a drawing consists of; the columns of STEPS and EDGES are those that `runtime.draw_*` unpack."""

    title: str
    subtitle: str
    facts: dict[str, str]
    lanes: list[tuple[int, str, str, float, str]] = field(default_factory=list)
    """(first device, title, devices, abscissa of its middle, bounding box)"""
    frames: list[tuple[str, int, str, int, str, str]] = field(default_factory=list)
    """(cluster, lane, title, repeats, layers, bounding box)"""
    steps: list[tuple[Any, ...]] = field(default_factory=list)
    edges: list[tuple[Any, ...]] = field(default_factory=list)
    all_devices: tuple[int, ...] = ()


@dataclass(slots=True)
class _Step:
    key: str
    nodes: list[DagNode]
    width: float = 0.0
    height: float = 0.0
    gap: float = 0.0
    y: float = 0.0

    @property
    def role(self) -> str:
        return self.nodes[0].role

    @property
    def frame(self) -> str:
        return self.nodes[0].frame

    @property
    def depth(self) -> float:
        return self.height + self.gap * (len(self.nodes) - 1)


def tables(dag: Dag) -> Tables:
    """Lay out a Dag and write it as compact tables."""
    order: dict[str, _Step] = {}
    for n in sorted(dag.nodes, key=lambda n: n.row):
        order.setdefault(n.step, _Step(n.step, [])).nodes.append(n)
    steps = list(order.values())
    lane_at = {lane.index: i for i, lane in enumerate(dag.lanes)}
    for s in steps:
        _measure(s, lane_at)
    channels = _channels(dag, {s.key: i for i, s in enumerate(steps)})
    lane_x, half = _columns(dag, steps, channels)
    _stack(dag, steps)
    out = Tables(dag.title, dag.subtitle, dict(dag.attrs), all_devices=tuple(range(int(dag.attrs["num_devices"]))))
    _boxes(dag, steps, lane_x, half, channels, out)
    out.steps = [_step_row(s, lane_at) for s in steps]
    out.edges = _edge_rows(dag, channels, half)
    return out


# ------------------------------------------------------------------------ measures


def _measure(step: _Step, lane_at: Mapping[int, int]) -> None:
    """Size of a step's nodes from their longest label; groups that interleave get a row each."""
    labels = {n.label for n in step.nodes}
    text_w = max(runtime.text_width(t) for t in labels)
    text_h = max(t.count("\n") + 1 for t in labels) * runtime.LINE
    across = any(len(n.spans) > 1 for n in step.nodes)
    shape = step.nodes[0].shape
    if shape == "ellipse":
        step.width = max(150.0, text_w * (0.8 if across else 1.28))
        step.height = text_h * (1.3 if across else 1.6) + 8
    elif shape == "parallelogram":
        step.width, step.height = text_w * 1.4 + 12, text_h + 12
    else:
        step.width, step.height = text_w + 14, text_h + 10
    spans = [sorted(lane_at[i] for i in n.spans) for n in step.nodes if n.spans]
    if len(spans) > 1 and any(b[0] <= a[-1] for a, b in itertools.pairwise(spans)):
        step.gap = step.height + 8


def _columns(
    dag: Dag, steps: Sequence[_Step], channels: Mapping[Any, int]
) -> tuple[dict[int, float], dict[int, float]]:
    """Middle of each lane, and half the width of its nodes; both by first device."""
    half_of_stage: dict[int, float] = defaultdict(lambda: 60.0)
    stage_of = {lane.index: lane.stage for lane in dag.lanes}
    for s in steps:
        alone = {n.lane for n in s.nodes if n.lane is not None} | {n.spans[0] for n in s.nodes if len(n.spans) == 1}
        for stage in {stage_of[i] for i in alone}:
            half_of_stage[stage] = max(half_of_stage[stage], s.width / 2)
    left, right = _margins(channels, 22)
    x = 0.0
    lane_x: dict[int, float] = {}
    half: dict[int, float] = {}
    for lane in dag.lanes:
        h = half_of_stage[lane.stage]
        x += h + left
        lane_x[lane.index], half[lane.index] = x, h
        x += h + right + LANE_GAP
    return lane_x, half


def _margins(channels: Mapping[Any, int], free: float) -> tuple[float, float]:
    """Room that the channels take left and right of a lane's nodes."""
    left = max((-c for c in channels.values() if c < 0), default=0)
    return left * CHANNEL + free, max((c for c in channels.values() if c > 0), default=0) * CHANNEL + free


def _stack(dag: Dag, steps: Sequence[_Step]) -> None:
    """Ordinates, downwards from 0; room is left for the titles of lanes and frames."""
    y, frame, stage = 0.0, "", -1
    titled: set[int] = set()
    stage_of = {lane.index: lane.stage for lane in dag.lanes}
    for s in steps:
        lane = next((n.lane for n in s.nodes if n.lane is not None), None)
        new = {stage_of[n.lane] for n in s.nodes if n.lane is not None} - titled
        if new or (lane is not None and stage_of[lane] != stage):
            y -= LANE_TITLE
            titled |= new
        stage = stage if lane is None else stage_of[lane]
        if s.frame != frame:
            y -= FRAME_GAP
            frame = s.frame
        if s.role != "comm" and any(len(n.spans) > 1 for n in s.nodes) and s is not steps[0]:
            y -= FAN_GAP - ROW_GAP
        s.y = y - s.height / 2
        y -= s.depth + (FAN_GAP if any(len(n.spans) > 1 for n in s.nodes) and s.role != "comm" else ROW_GAP)


def _boxes(
    dag: Dag,
    steps: Sequence[_Step],
    lane_x: Mapping[int, float],
    half: Mapping[int, float],
    channels: Mapping[Any, int],
    out: Tables,
) -> None:
    """Lanes and frames as bounding boxes around their rows."""
    left, right = _margins(channels, 14)
    stage_of = {lane.index: lane.stage for lane in dag.lanes}
    tall: dict[int, list[_Step]] = {lane.stage: [] for lane in dag.lanes}
    for s in steps:
        for stage in {stage_of[n.lane] for n in s.nodes if n.lane is not None}:
            tall[stage].append(s)
    for lane in dag.lanes:
        # As tall as the stage: a device group that joins in the middle of a layer still has its lane from top to bottom.
        rows = tall[lane.stage]
        x0, x1 = lane_x[lane.index] - half[lane.index] - left, lane_x[lane.index] + half[lane.index] + right
        bb = f"{x0 - 6:.1f},{_bottom(rows) - 16:.1f},{x1 + 6:.1f},{_top(rows) + LANE_TITLE + 12:.1f}"
        out.lanes.append(
            (lane.index, lane.title, runtime.gpu_text(lane.devices).removeprefix("GPU "), lane_x[lane.index], bb)
        )
        for f in (f for f in dag.frames if lane.index in f.lanes):
            mine = [s for s in steps if s.frame == f.key]
            box = f"{x0:.1f},{_bottom(mine) - 10:.1f},{x1:.1f},{_top(mine) + 24:.1f}"
            out.frames.append((f.key, lane.index, f.title, f.repeats, layers_text(f.layers), box))


def _top(rows: Sequence[_Step]) -> float:
    return max(s.y + s.height / 2 for s in rows)


def _bottom(rows: Sequence[_Step]) -> float:
    return min(s.y + s.height / 2 - s.depth for s in rows)


# ------------------------------------------------------------------------ channels

EdgeKey = tuple[str, str, str, bool]


def _edge_key(e: DagEdge) -> EdgeKey:
    return (e.src.rsplit("__g", 1)[0], e.dst.rsplit("__g", 1)[0], e.tensor, e.dashed)


def _channels(dag: Dag, at: Mapping[str, int]) -> dict[EdgeKey, int]:
    """Channel of every edge that skips rows: 1, 2, … to the right, -1, -2, … to the left; shorter ones lie inside."""
    keys = {_edge_key(e) for e in dag.edges if e.lane is not None}
    skipping = sorted((k for k in keys if at[k[1]] - at[k[0]] > 1), key=lambda k: (at[k[1]] - at[k[0]], k))
    taken: dict[int, list[tuple[int, int]]] = defaultdict(list)
    out: dict[EdgeKey, int] = {}
    for key in skipping:
        lo, hi = at[key[0]], at[key[1]]
        direction = -1 if hi - lo >= LONG else 1
        channel = 1
        while any(lo <= b and a <= hi for a, b in taken[direction * channel]):
            channel += 1
        taken[direction * channel].append((lo, hi))
        out[key] = direction * channel
    return out


# ------------------------------------------------------------------------ tables


def _step_row(s: _Step, lane_at: Mapping[int, int]) -> tuple[Any, ...]:
    """Nodes with equal text share one entry that lists their places: (devices, lane or first and last lane)."""
    groups: dict[tuple[Any, ...], list[tuple[tuple[int, ...], Any]]] = {}
    for n in s.nodes:
        items = ",".join(f"{a}:{b}" for a, b in n.batch_items)
        whole = dims_text(n.global_dims) if n.global_dims else ""
        key = (
            ports_text(n.inputs),
            ports_text(n.outputs),
            whole,
            n.notes,
            ports_text(n.weights),
            ports_text(n.caches),
            items,
            n.operator,
        )
        spans = sorted(n.spans, key=lambda i: lane_at[i])
        place: Any = n.lane if n.lane is not None else (spans[0], spans[-1])
        devices = () if n.device_text == "all GPUs" else n.devices
        groups.setdefault(key, []).append((devices, place))
    n = s.nodes[0]
    instances = [(places, *(list(v) if isinstance(v, tuple) else v for v in key)) for key, places in groups.items()]
    return (
        s.key,
        round(s.y, 1),
        round(s.width, 1),
        round(s.height, 1),
        round(s.gap, 1),
        n.role,
        n.module,
        n.kernel,
        n.repeats,
        n.layers,
        n.frame,
        instances,
    )


def _edge_rows(dag: Dag, channels: Mapping[EdgeKey, int], half: Mapping[int, float]) -> list[tuple[Any, ...]]:
    rows: dict[tuple[Any, ...], list[Pair]] = {}
    for e in dag.edges:
        key = _edge_key(e)
        a, b = int(e.src.rsplit("__g", 1)[1]), int(e.dst.rsplit("__g", 1)[1])
        channel = channels.get(key, 0)
        offset = 0.0
        if channel and e.lane is not None:
            offset = round((half[e.lane] + 10 + CHANNEL * (abs(channel) - 1)) * (1 if channel > 0 else -1), 1)
        rows.setdefault((*key[:3], dims_text(e.dims), e.dashed, offset, abs(channel)), []).append((a, b, e.lane))
    return [(*key, pairs) for key, pairs in rows.items()]
