"""The coarse view: one node per stage and run of layers, one per transfer between stages."""

from __future__ import annotations

from dataclasses import replace

from tools.dag import runtime
from tools.dag.graph import Dag, DagEdge, DagNode, Lane
from tools.dag.text import layers_text


def stage_view(dag: Dag) -> Dag:
    """Merges the operators of every body sequence of one stage; from a Dag with one lane per stage."""
    if dag.attrs.get("device_groups"):
        dag = _one_lane_per_stage(dag)
    group: dict[str, str] = {}
    for n in dag.nodes:
        group[n.id] = n.id if n.lane is None and n.kernel in ("", "p2p") else _block(n)
    members: dict[str, list[DagNode]] = {}
    for n in dag.nodes:
        members.setdefault(group[n.id], []).append(n)
    edges: dict[tuple[str, str, str], DagEdge] = {}
    for e in dag.edges:
        a, b = group[e.src], group[e.dst]
        if a != b:
            edges.setdefault((a, b, e.tensor), replace(e, src=a, dst=b, dashed=False))
    layers = {f.key: f.layers for f in dag.frames}
    nodes = tuple(_merge(key, ns, layers.get(ns[0].frame, ()),
    [e for e in dag.edges if group[e.dst] == key != group[e.src]],
    [e for e in dag.edges if group[e.src] == key != group[e.dst]])
                  for key, ns in members.items())  # fmt: skip
    attrs = {**dag.attrs, "detail": "stage"}
    return replace(dag, nodes=nodes, edges=tuple(edges.values()), detail="stage", attrs=attrs)


def _one_lane_per_stage(dag: Dag) -> Dag:
    """Device groups of a stage drawn as one: what they send each other is inside the block that stands for its layers."""
    replica = int(dag.attrs["num_devices"]) // int(dag.attrs["num_replicas"])
    whole: dict[tuple[int, int], Lane] = {}
    for lane in dag.lanes:
        key = (lane.stage, lane.index // replica)
        role, where = lane.title.split(" · ", 2)[1:]
        roles = [role]
        if key in whole:
            roles = [*whole[key].title.split(" · ", 2)[1].split(" | "), role]
        devices = (*(whole[key].devices if key in whole else ()), *lane.devices)
        title = f"{runtime.short(runtime.gpu_text(devices))} · {' | '.join(roles)} · {where}"
        whole[key] = replace(whole.get(key, lane), devices=devices, title=title)
    home = {g: lane for lane in whole.values() for g in lane.devices}
    nodes = tuple(
        n if n.kernel == "p2p" or (n.lane is None and not n.kernel)
        else replace(n, devices=home[n.devices[0]].devices, lane=home[n.devices[0]].index,
                     device_text=runtime.gpu_text(home[n.devices[0]].devices))
        for n in dag.nodes
    )  # fmt: skip
    frames = tuple(replace(f, lanes=tuple(dict.fromkeys(home[i].index for i in f.lanes))) for f in dag.frames)
    edges = tuple(e if e.lane is None else replace(e, lane=home[e.lane].index) for e in dag.edges)
    nodes = tuple(replace(n, spans=tuple(dict.fromkeys(home[i].index for i in n.spans))) for n in nodes)
    return replace(dag, lanes=tuple(whole.values()), nodes=nodes, frames=frames, edges=edges)


def _block(n: DagNode) -> str:
    lane = n.devices[0]
    if n.step.startswith("kv_"):
        return n.id  # what crosses between pools stays as it is
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
    whole = {d: n for node in nodes for d, n in node.global_dims}
    shown = dict.fromkeys(d for p in (*inputs, *outputs) for d, n in p.dims if whole.get(d, n) != n)
    collectives = sum(n.role == "comm" for n in nodes)
    step = key.rsplit("__g", 1)[0]
    what = f"layers {layers_text(layers)} × {first.repeats}" if layers else step.split("_")[-1]
    lane = next((n.lane for n in nodes if n.lane is not None), first.devices[0])
    return replace(
        first, id=key, step=step, role="compute",
        operator=f"{what}: {len(nodes) - collectives} operators, {collectives} collectives",
        module="model.layers" if first.frame else f"model.{step.split('_')[-1]}", kernel="", inputs=inputs,
        outputs=outputs, notes=(), global_dims=tuple((d, whole[d]) for d in shown),
        weights=(), caches=(), shards=(), batch_items=(), lane=lane, spans=(),
        layers=layers_text(layers), repeats=max(1, len(layers)),
    )  # fmt: skip
