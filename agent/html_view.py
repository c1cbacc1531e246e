"""A Dag as one static HTML file: zoom, pan, search, dims and bytes and FLOPs on a click, one tensor followed, the
critical path. No network, no build step: the page is `html_view.html`, the graph is JSON inside it.

    html(dag, times={"s0_l0_q_proj": 31e-6})       # seconds of one execution, by node id or by step
"""

from __future__ import annotations

import html as markup
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.dag import runtime
from tools.dag.graph import Dag, DagNode, Port, dims_text
from tools.dag.layout import tables

PAGE = Path(__file__).with_name("html_view.html")
FIELDS = (
    "id", "operator", "module", "device", "kernel", "layers", "repeats", "role", "shape", "x", "y", "w", "h", "label",
    "inputs", "outputs", "weights", "caches", "whole", "notes", "flops", "time",
)  # fmt: skip
ROLE_WORDS = {"compute": "computation", "attention": "attention", "moe": "MoE experts", "comm": "communication",
              "routing": "routing, split, aggregation", "io": "total input / output"}  # fmt: skip
STAGE_TINTS = ("#f1f5f9", "#eff6ff", "#f0fdf4", "#fefce8", "#fff7ed", "#fdf2f8", "#f5f3ff", "#ecfeff")
"""Background of the lanes: one tint per pipeline stage, in turn."""


def html(dag: Dag, *, times: Mapping[str, float] | None = None) -> str:
    """The page. `times`: seconds of one execution by node id or step; without them the critical path goes by FLOPs."""
    page = PAGE.read_text(encoding="utf-8")
    data = json.dumps(_data(dag, times or {}), ensure_ascii=False, separators=(",", ":"))
    # Inside a script element only "<" could end it; in JSON it can only stand in strings.
    filled = {"@@TITLE@@": markup.escape(dag.title), "@@DATA@@": data.replace("<", "\\u003c")}
    head, rest = page.split("@@TITLE@@", 1)
    middle, tail = rest.split("@@DATA@@", 1)
    return head + filled["@@TITLE@@"] + middle + filled["@@DATA@@"] + tail


def _data(dag: Dag, times: Mapping[str, float]) -> dict[str, Any]:
    t = tables(dag)
    lane_x = {first: x for first, _, _, x, _ in t.lanes}
    boxes = {node: box for node, _, _, _, box in runtime.draw_nodes(t.steps, lane_x, t.all_devices)}
    index = {n.id: i for i, n in enumerate(dag.nodes)}
    tensors = {name: i for i, name in enumerate(dict.fromkeys(e.tensor for e in dag.edges))}
    edges = [
        [index[src], index[dst], tensors[attrs["tensor"]], int(attrs.get("style") == "dashed"), _curve(attrs["pos"])]
        for src, dst, attrs in runtime.draw_edges(t.edges, boxes, lane_x)
    ]
    stages = {lane.index: lane.stage for lane in dag.lanes}
    tint = {first: STAGE_TINTS[stages[first] % len(STAGE_TINTS)] for first in lane_x}
    lanes = [[title, *_flip(bb), tint[first]] for first, title, _, _, bb in t.lanes]
    path = critical_path(dag, times)
    at = [[index[a], index[b]] for a, b in zip(path.nodes, path.nodes[1:], strict=False)]
    steps = {(e[0], e[1]): i for i, e in enumerate(edges)}
    return {
        "title": dag.title, "subtitle": dag.subtitle, "fields": FIELDS, "tensors": list(tensors), "edges": edges,
        "nodes": [_node(n, boxes[n.id], _time(n, times)) for n in dag.nodes], "lanes": lanes,
        "frames": [[title, *_flip(bb)] for _, _, title, _, _, bb in t.frames],
        "roles": {r: [runtime.FILL[r], runtime.LINE_COLOUR[r], w] for r, w in ROLE_WORDS.items()},
        "box": _bounds(boxes.values(), lanes),
        "critical": {"by": path.by, "total": path.total, "nodes": [index[n] for n in path.nodes],
                     "edges": [steps[a, b] for a, b in at]},
    }  # fmt: skip


def _node(n: DagNode, box: Any, seconds: float | None) -> list[Any]:
    _, x, y, w, h = box[:5]
    return [
        n.id, n.operator, n.module, n.device_text, n.kernel, n.layers, n.repeats, n.role, n.shape, round(x, 1),
        round(-y, 1), round(w, 1), round(h, 1), n.label, _ports(n.inputs), _ports(n.outputs), _ports(n.weights),
        _ports(n.caches), dims_text(n.global_dims) if n.global_dims else "", list(n.notes), n.flops, seconds,
    ]  # fmt: skip


def _ports(ports: Sequence[Port]) -> list[list[Any]]:
    return [[p.tensor, dims_text(p.dims), p.bytes] for p in ports]


def _curve(pos: str) -> list[float]:
    """Points of a Graphviz spline, from the source to the foot of the arrow's head; ordinates grow downwards here."""
    return [v for xy in pos.split()[1:] for x, y in (xy.split(","),) for v in (float(x), -float(y))]


def _flip(bb: str) -> list[float]:
    x0, y0, x1, y1 = map(float, bb.split(","))
    return [x0, -y1, x1, -y0]


def _bounds(boxes: Any, lanes: Sequence[Sequence[Any]]) -> list[float]:
    corners = [(x - w / 2, -y - h / 2, x + w / 2, -y + h / 2) for _, x, y, w, h, *_ in boxes]
    corners += [(x0, y0, x1, y1) for _, x0, y0, x1, y1, _ in lanes]
    low, high = [min(c[i] for c in corners) for i in (0, 1)], [max(c[i] for c in corners) for i in (2, 3)]
    return [round(v, 1) for v in (*low, *high)]


# ------------------------------------------------------------------------ critical path


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """Node ids from the total input to the total output. `total`: seconds or FLOPs, repeated layers counted."""

    nodes: tuple[str, ...]
    by: str
    total: float


def _time(n: DagNode, times: Mapping[str, float]) -> float | None:
    return times.get(n.id, times.get(n.step))


def critical_path(dag: Dag, times: Mapping[str, float] | None = None) -> CriticalPath:
    """The path with the largest sum of repeats x time; without times, of repeats x FLOPs, ties by bytes."""
    weight: dict[str, tuple[float, float]] = {}
    for n in dag.nodes:
        moved = n.repeats * sum(p.bytes for p in (*n.inputs, *n.outputs, *n.weights))
        weight[n.id] = (n.repeats * ((_time(n, times) or 0.0) if times else n.flops), moved)
    preds: dict[str, list[str]] = {n.id: [] for n in dag.nodes}
    for e in dag.edges:
        preds[e.dst].append(e.src)
    best: dict[str, tuple[float, float]] = {}
    before: dict[str, str] = {}
    for n in sorted(dag.nodes, key=lambda n: n.row):
        longest = max(preds[n.id], key=lambda p: best[p], default=None)
        start = best[longest] if longest is not None else (0.0, 0.0)
        if longest is not None:
            before[n.id] = longest
        best[n.id] = (start[0] + weight[n.id][0], start[1] + weight[n.id][1])
    end: str | None = max(best, key=lambda i: best[i], default=None)
    total = best[end][0] if end is not None else 0.0
    path: list[str] = []
    while end is not None:
        path.append(end)
        end = before.get(end)
    return CriticalPath(tuple(reversed(path)), "time" if times else "FLOPs", total)


__all__ = ["CriticalPath", "critical_path", "html"]
