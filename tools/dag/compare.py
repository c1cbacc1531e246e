"""Does a DOT file that was written and read back still say what the Dag in memory says?"""

from __future__ import annotations

from collections import Counter

from tools.dag.facts import plain
from tools.dag.graph import Dag
from tools.dag.parse import DotGraph
from tools.spec.finding import Finding


def differences(dag: Dag, graph: DotGraph) -> tuple[Finding, ...]:
    """Findings where nodes, labels, shapes, lanes or edges of the file differ from the Dag; empty if equal."""
    out: list[Finding] = [_finding("dot-syntax", f"line {p.line}: {p.message} at {p.token!r}") for p in graph.problems]
    want = {n.id: n for n in dag.nodes}
    out += [_finding("dag-node-lost", f"node {n} is not in the file") for n in want.keys() - graph.nodes.keys()]
    out += [_finding("dag-node-added", f"node {n} is not in the graph") for n in graph.nodes.keys() - want.keys()]
    for node_id in want.keys() & graph.nodes.keys():
        n, found = want[node_id], graph.nodes[node_id]
        if plain(found.attrs.get("label", ""), node_id) != n.label:
            out.append(_finding("dag-label", f"label of {node_id} differs from the graph"))
        if found.attrs.get("shape") != n.shape:
            out.append(_finding("dag-shape", f"{node_id} is drawn as {found.attrs.get('shape')}, not {n.shape}"))
        lane = f"cluster_gpu{n.lane}" + (f"_{n.frame}" if n.frame else "") if n.lane is not None else None
        if found.cluster != lane:
            out.append(_finding("dag-lane", f"{node_id} lies in {found.cluster}, not in {lane}"))
    edges = Counter((e.src, e.dst, e.tensor, e.dashed) for e in dag.edges)
    read = Counter((e.src, e.dst, e.attrs.get("tensor", ""), "dashed" in e.attrs.get("style", "")) for e in graph.edges)
    out += [_finding("dag-edge-lost", f"edge {a} → {b} ({t}) is not in the file") for a, b, t, _ in (edges - read)]
    out += [_finding("dag-edge-added", f"edge {a} → {b} ({t}) is not in the graph") for a, b, t, _ in (read - edges)]
    return tuple(out)


def _finding(code: str, message: str) -> Finding:
    return Finding(code=code, severity="error", cause="dag", message=message, fix="regenerate the DAG from its script")
