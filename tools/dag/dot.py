"""Dag → DOT text, exactly the drawing that the generated script makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tools.dag import runtime
from tools.dag.graph import Dag
from tools.dag.layout import Tables, tables


def to_dot(dag: Dag) -> str:
    """DOT with positions, lanes as clusters with `bb`; render with `neato -n2`."""
    t = tables(dag)
    boxes: dict[str, Any] = {}
    inside: dict[tuple[int | None, str], list[str]] = {}
    lane_x = {first: x for first, _, _, x, _ in t.lanes}
    for node, lane, frame, attrs, box in runtime.draw_nodes(t.steps, lane_x, t.all_devices):
        boxes[node] = box
        inside.setdefault((lane, frame if lane is not None else ""), []).append(f"{node} {_attrs(attrs)};")
    lines = [
        "digraph meshwright {",
        *(f"  {k}={_quote(v)};" for k, v in runtime.graph_attrs(t.title, t.subtitle, t.facts).items()),
    ]
    lines += [f"  node {_attrs(runtime.NODE_ATTRS)};", f"  edge {_attrs(runtime.EDGE_ATTRS)};", *_lanes(t, inside)]
    lines += [f"  {n}" for n in inside.get((None, ""), [])]
    lines += [f"  {a} -> {b} {_attrs(attrs)};" for a, b, attrs in runtime.draw_edges(t.edges, boxes, lane_x)]
    return "\n".join([*lines, "}", ""])


def _lanes(t: Tables, inside: Mapping[tuple[int | None, str], list[str]]) -> Iterator[str]:
    for first, title, gpu, _, bb in t.lanes:
        yield f"  subgraph cluster_gpu{first} {{"
        yield from (f"    {k}={_quote(v)};" for k, v in runtime.lane_attrs(title, gpu, bb).items())
        yield from (f"    {n}" for n in inside.get((first, ""), []))
        for key, lane, text, repeats, layers, box in t.frames:
            if lane == first:
                yield f"    subgraph cluster_gpu{first}_{key} {{"
                yield from (
                    f"      {k}={_quote(v)};" for k, v in runtime.frame_attrs(text, repeats, layers, box).items()
                )
                yield from (f"      {n}" for n in inside.get((first, key), []))
                yield "    }"
        yield "  }"


def _attrs(attrs: Mapping[str, str]) -> str:
    return "[" + ", ".join(f"{k}={_quote(v)}" for k, v in attrs.items()) + "]"


def _quote(text: str) -> str:
    if (text.isidentifier() and text.isascii()) or text.startswith("<<"):
        return text
    return '"' + (text.replace('"', '\\"') if '"' in text else text) + '"'
