"""The serving engine's own rules: what it would refuse at launch, and what it runs but slowly."""

from __future__ import annotations

from collections.abc import Iterator

from tools.checks.base import Case, check, warning
from tools.engines.rules import check as engine_check
from tools.engines.rules import engines
from tools.spec.finding import Finding


@check("engine")
def engine(case: Case) -> Iterator[Finding]:
    if case.deployment is None:
        return
    d, name = case.deployment, case.strategy.engine
    if name not in engines():
        words = f"no rules for engine {name}: its legality is not checked"
        yield warning("engine-unknown", words, cause="engine", fix=f"an engine among {', '.join(engines())}")
        return
    yield from engine_check(
        case.programs[0].model, case.strategy, engine=name,
        version=d.engine.version if d.engine.name == name else None,
        num_nodes=d.cluster.num_nodes, devices_per_node=d.cluster.devices_per_node,
    )  # fmt: skip
