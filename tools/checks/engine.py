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
    d, name, s = case.deployment, case.strategy.engine, case.strategy
    said: list[Finding] = []
    for cluster in {c.device.id: c for c in d.stage_clusters(s)}.values():
        # The nodes of one kind are not all there are under a pipeline over several kinds.
        found = engine_check(
            case.programs[0].model, s, engine=name, version=d.engine.version if d.engine.name == name else None,
            num_nodes=None if s.stage_devices else cluster.num_nodes, devices_per_node=cluster.devices_per_node,
            device=cluster.known_device,
        )  # fmt: skip
        said += [f for f in found if f not in said]
    yield from said
