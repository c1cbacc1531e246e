"""The serving engine's own rules: what it would refuse at launch, and what it runs but slowly."""

from __future__ import annotations

from collections.abc import Iterator

from tools.checks.base import Case, check
from tools.engines.rules import check as engine_check
from tools.spec.finding import Finding


@check("engine")
def engine(case: Case) -> Iterator[Finding]:
    if case.deployment is None:
        return
    d, name = case.deployment, case.strategy.engine
    yield from engine_check(
        case.programs[0].model, case.strategy, engine=name,
        version=d.engine.version if d.engine.name == name else None,
        num_nodes=d.cluster.num_nodes, devices_per_node=d.cluster.devices_per_node,
        device=d.cluster.known_device,
    )  # fmt: skip
