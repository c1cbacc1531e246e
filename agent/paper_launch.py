"""Launch files of a paper's proposed strategies: where the model is a published one and an engine has words for the layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent.bind import Workbench
from agent.bundle import launch_files
from tools.engines.export import LaunchFile, export_pd
from tools.engines.rules.handover import CONNECTORS
from tools.spec.base import ToolError
from tools.spec.finding import Finding
from tools.spec.paper import PaperModel
from tools.spec.plan import Plan

if TYPE_CHECKING:
    from tools.spec.deployment import Deployment


def paper_launch(model: PaperModel, plan: Plan) -> tuple[tuple[LaunchFile, ...], tuple[Finding, ...]]:
    """Files, and why there are none of an engine. A paper names no engine, so that nothing here is an error."""
    if not published(model):
        text = f"no launch files for {model.name}: the paper gives its shape, engines load checkpoints by name"
        return (), (_info(text),)
    files, said = _pools(plan) if plan.pools else _one(plan)
    return files, tuple(f.model_copy(update={"severity": "info"}) for f in said)


def published(model: PaperModel) -> bool:
    """Whether the model is one of the catalogue, and so has a checkpoint."""
    return any(f.path == "model.name" for f in model.facts)


def _one(plan: Plan) -> tuple[tuple[LaunchFile, ...], Sequence[Finding]]:
    try:
        return launch_files(Workbench(plan.deployment), plan)
    except ToolError as e:
        return (), (_info(f"no launch files: {e}"),)


def _pools(plan: Plan) -> tuple[tuple[LaunchFile, ...], Sequence[Finding]]:
    files: list[LaunchFile] = []
    said: list[Finding] = []
    for engine in CONNECTORS:
        try:
            made, found = _pair(engine, plan.deployment, plan)
        except ToolError as e:
            made, found = (), (_info(f"no {engine} files: {e}"),)
        files += [f.model_copy(update={"name": f.name if "/" in f.name else f"{engine}/{f.name}"}) for f in made]
        said += [f for f in found if not made]
    return tuple(files), said


def _pair(engine: str, d: Deployment, plan: Plan) -> tuple[tuple[LaunchFile, ...], tuple[Finding, ...]]:
    pools = plan.pools
    return export_pd(
        engine, d.model, pools["prefill"], pools["decode"], isl=d.workload.isl, osl=d.workload.osl,
        devices_per_node=d.cluster.devices_per_node, memory_total_bytes=d.cluster.memory_bytes, device=d.cluster.known_device,
    )  # fmt: skip


def _info(text: str) -> Finding:
    return Finding(code="launch", severity="info", cause="engine", message=text)
