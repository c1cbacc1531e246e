"""The coarse view: one node per stage and run of layers, one per transfer between stages."""

from __future__ import annotations

from dataclasses import replace

from tools.dag.graph import Dag, DagEdge, DagNode
from tools.dag.text import layers_text


def stage_view(dag: Dag) -> Dag:
    """Merges the operators of every body sequence of one stage; from a Dag with one lane per stage."""
    group: dict[str, str] = {}
    for n in dag.nodes:
        group[n.id] = n.id if n.lane is None and n.kernel in ("", "p2p") else _block(n)
    members: dict[str, list[DagNode]] = {}
    for n in dag.nodes:
        members.setdefault(group[n.id], []).append(n)
    edges: dict[tuple[str, str], DagEdge] = {}
    for e in dag.edges:
        a, b = group[e.src], group[e.dst]
        if a != b:
            edges.setdefault((a, b), replace(e, src=a, dst=b, dashed=False))
    layers = {f.key: f.layers for f in dag.frames}
    nodes = tuple(_merge(key, ns, layers.get(ns[0].frame, ()),
    [e for e in dag.edges if group[e.dst] == key != group[e.src]],
    [e for e in dag.edges if group[e.src] == key != group[e.dst]])
                  for key, ns in members.items())  # fmt: skip
    attrs = {**dag.attrs, "detail": "stage"}
    return replace(dag, nodes=nodes, edges=tuple(edges.values()), detail="stage", attrs=attrs)


def _block(n: DagNode) -> str:
    lane = n.devices[0]
    part = n.frame or n.step.rsplit("_", 1)[0] if n.frame else "_".join(n.step.split("_")[:2])
    return f"{part}__g{lane}"


def _merge(
    key: str, nodes: list[DagNode], layers: tuple[int, ...], entering: list[DagEdge], leaving: list[DagEdge]
) -> DagNode:
    first = nodes[0]
    if len(nodes) == 1 and key == first.id:
        return first
    by_id = {n.id: n for n in nodes}
    inputs = tuple({p.tensor: p for e in entering for p in by_id[e.dst].inputs if p.tensor == e.tensor}.values())
    outputs = tuple({p.tensor: p for e in leaving for p in by_id[e.src].outputs}.values())
    collectives = sum(n.role == "comm" for n in nodes)
    step = key.rsplit("__g", 1)[0]
    what = f"layers {layers_text(layers)} × {first.repeats}" if layers else step.split("_")[-1]
    lane = next((n.lane for n in nodes if n.lane is not None), first.devices[0])
    return replace(
        first, id=key, step=step, role="compute",
        operator=f"{what}: {len(nodes) - collectives} operators, {collectives} collectives",
        module="model.layers" if first.frame else f"model.{step.split('_')[-1]}", kernel="", inputs=inputs,
        outputs=outputs, notes=(),
        weights=(), caches=(), shards=(), batch_items=(), lane=lane, spans=(),
        layers=layers_text(layers), repeats=max(1, len(layers)),
    )  # fmt: skip
