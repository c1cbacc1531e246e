"""One picture per example: a layer on its devices, everything between two collectives one box."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from knowledge.catalog import load_model
from strategies_page.examples import ENTRIES, SEQ, Entry
from strategies_page.graphs import (
    pools_of,
    program_of,
    strategies_of,
    strategy_of,
)
from tools.dag.build import COMM_WORDS, build_dag
from tools.dag.graph import Dag, DagEdge, DagNode, Port, Role
from tools.dag.text import slug
from tools.graph.build import all_sizes
from tools.spec.strategy import Strategy

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGES = ROOT / "docs" / "images" / "strategies"


def picture(e: Entry) -> Dag:
    """One layer of the example (of every stage) on its devices: what runs between collectives is one box."""
    s, full = strategy_of(e), load_model(e.model).model
    if e.view != "layer":
        return build_dag(program_of(e), detail=e.view, title=f"{e.title} · {s.label()} · {e.phase}")
    layers = max(s.pp, 1)
    update: dict[str, object] = {
        "num_hidden_layers": layers,
        "moe_layers": (True,) * layers if e.layer == "layer_moe" else None,
        "sliding_layers": None,
    }
    if e.layer == "layer_dense" and full.moe:
        update["moe_layers"] = (False,) * layers
    update["position"] = full.position.model_copy(update={"rope_layers": None})
    small = s.model_copy(update={"layers_per_stage": None})
    model = full.model_copy(update=update)
    pools = pools_of(e, model)
    return condense(
        build_dag(
            pools.prefill if pools else program_of(e, model, small),
            title=f"{e.title} · {' → '.join(x.label() for x in strategies_of(e))} · {e.phase}",
            expand_replicas=not pools,
            pools=pools,
        )
    )


def condense(dag: Dag) -> Dag:
    """Layers only; operators of a lane between the same collectives merged, collectives of a kind at one depth too."""
    kept = [n for n in sorted(dag.nodes, key=lambda n: n.row) if n.frame or n.kernel == "p2p" or n.caches]
    ids = {n.id for n in kept}
    depth = _depths(kept, [x for x in dag.edges if x.src in ids and x.dst in ids])
    groups: dict[tuple[int, bool, str, tuple[int, ...]], list[DagNode]] = {}
    for n in kept:
        comm = n.role == "comm"
        groups.setdefault((depth[n.id], comm, n.kernel if comm else "", n.devices), []).append(n)
    nodes: list[DagNode] = []
    home: dict[str, str] = {}
    for row, (key, members) in enumerate(sorted(groups.items(), key=lambda kv: kv[0][:2])):
        nodes.append(_merged(members, key[0], row))
        home |= {m.id: nodes[-1].id for m in members}
    edges: dict[tuple[str, str], list[DagEdge]] = {}
    for x in dag.edges:
        a, b = home.get(x.src), home.get(x.dst)
        if a and b and a != b:
            edges.setdefault((a, b), []).append(x)
    wide = {n.id for n in nodes if n.role == "comm" and n.kernel != "p2p"}
    drawn = tuple(
        # From one collective to the next of the same devices no lane is meant more than the others.
        replace(
            xs[0],
            src=a,
            dst=b,
            tensor=_names((x.tensor for x in xs), most=2),
            dashed=False,
            lane=None if {a, b} <= wide else xs[0].lane,
        )
        for (a, b), xs in edges.items()
    )
    return replace(dag, nodes=tuple(nodes), edges=drawn, frames=())


def _names(tensors: Iterable[str], most: int = 9) -> str:
    found = list(dict.fromkeys(tensors))
    return ", ".join(found[:most]) + (f" + {len(found) - most}" if len(found) > most else "")


def _depths(nodes: Sequence[DagNode], edges: Sequence[DagEdge]) -> dict[str, int]:
    """Collectives on the longest way to each node; all copies of a step share the largest."""
    entering: dict[str, list[str]] = {}
    for x in edges:
        entering.setdefault(x.dst, []).append(x.src)
    by_id = {n.id: n for n in nodes}
    steps: dict[str, list[DagNode]] = {}
    for n in nodes:
        steps.setdefault(n.step, []).append(n)
    out: dict[str, int] = {}
    for copies in steps.values():
        before = (a for n in copies for a in entering.get(n.id, ()))
        depth = max((out[a] + (by_id[a].role == "comm") for a in before), default=0)
        out |= {n.id: depth for n in copies}
    return out


def _merged(members: Sequence[DagNode], depth: int, row: int) -> DagNode:
    """One node for several of a lane, or for several collectives of the same devices."""
    first, comm = members[0], members[0].role == "comm"
    step = f"d{depth}_{slug(first.kernel) if comm else 'run'}"
    node = replace(
        first,
        id=f"{step}__g{first.devices[0]}",
        step=step,
        row=row,
        module="",
        notes=(),
        weights=(),
        caches=(),
        frame="",
    )
    return _merged_collectives(node, members) if comm else _merged_operators(node, members)


def _merged_collectives(node: DagNode, members: Sequence[DagNode]) -> DagNode:
    moved = {_names(p.tensor for p in m.inputs): m for m in members}
    many = f"{len(members)} × {COMM_WORDS[node.kernel].rstrip(',')}: {', '.join(moved)}"
    return replace(
        node,
        operator=node.operator if len(members) == 1 else many,
        inputs=tuple(Port(n, m.inputs[0].dims) for n, m in moved.items()),
        outputs=tuple(Port(n, m.outputs[0].dims) for n, m in moved.items()),
    )


def _merged_operators(node: DagNode, members: Sequence[DagNode]) -> DagNode:
    # What a decode pool receives is called by the cache and by what happens to it.
    names = list(dict.fromkeys(" ".join(m.module.split(".")[-1 if m.frame else -2 :]) for m in members))
    lines = [" · ".join(names[i : i + 3]) for i in range(0, len(names), 3)]
    role: Role = next((m.role for m in members if m.role in ("attention", "moe")), "compute")
    return replace(
        node,
        operator="\n".join(lines),
        kernel="",
        role=role,
        inputs=node.inputs[:1],
        outputs=members[-1].outputs,
        global_dims=(),
    )


TRAINING: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "train_zero3": ("FSDP: weights gathered twice, gradients scattered", {"dp": 2}, {"zero": 3}),
    "train_sp": ("Sequence parallelism, forward and backward", {"tp": 2, "sp": True}, {}),
}
"""Pictures of docs/training.md: (title, degrees, options)."""


def training_picture(name: str) -> Dag:
    """A training step of a one-layer model: forward, loss, backward, optimizer."""
    from tools.dag.train import train_dag
    from tools.partition.train import lower_train
    from tools.spec.training import TrainOptions

    title, degrees, options = TRAINING[name]
    s, model = (
        Strategy.model_validate(degrees),
        load_model("llama-3-8b").model.model_copy(update={"num_hidden_layers": 1}),
    )
    sizes = all_sizes(model, batch_size=s.dp, seq_len=SEQ, kv_len=SEQ)
    dag = train_dag(lower_train(model, s, TrainOptions.model_validate(options), sizes), title=title)
    # The loss stands between the passes: without it both would begin at the top.
    nodes = tuple(replace(n, frame="loss") if "_loss_" in n.step and "_upd_" not in n.step else n for n in dag.nodes)
    return condense(replace(dag, nodes=nodes))


def write_pictures(entries: Sequence[Entry] = ENTRIES) -> None:
    from agent.render import run_scripts, write_scripts
    from tools.dag.script import script_text

    IMAGES.mkdir(parents=True, exist_ok=True)
    work = ROOT / "build" / "strategies"
    drawn = {e.id: picture(e) for e in entries} | {name: training_picture(name) for name in TRAINING}
    paths = write_scripts({name: script_text(dag, name) for name, dag in drawn.items()}, work)
    for r in run_scripts(paths, work):
        if r.svg is None or r.findings:
            raise SystemExit(f"{r.name}: {r.findings}")
        (IMAGES / f"{r.name}.svg").write_bytes(r.svg.read_bytes())
