"""Two pools of a plan: their programs with the hand-over between them, their proof, and their launch files."""

from __future__ import annotations

from math import lcm
from typing import TYPE_CHECKING, Any

from agent.bind import PHASES, Workbench, phase_sizes, strategy_key
from tools.spec.deployment import Deployment
from tools.spec.finding import Finding
from tools.spec.strategy import Phase, Strategy

if TYPE_CHECKING:
    from tools.engines.export import LaunchFile
    from tools.oracle.prove import Proof
    from tools.partition.pools import Pools

Pair = tuple[Strategy, Strategy]
"""Of the prefill and of the decode pool."""


def pool_programs(bench: Workbench, pair: Pair) -> Pools:
    """Both programs with real sizes; ranks of the decode pool follow those of the prefill pool."""
    from tools.graph.build import all_sizes
    from tools.partition.pools import lower_pools

    groups, model = lcm(*(s.attn_dp or 1 for s in pair)), bench.deployment.model

    def sizes(s: Strategy, phase: Phase) -> Any:
        found = phase_sizes(bench.deployment, s, phase).model_dump()
        return all_sizes(model, **{**found, "batch_size": -(-found["batch_size"] // groups) * groups})

    return lower_pools(model, *pair, sizes(pair[0], "prefill"), sizes(pair[1], "decode"))


def pool_proofs(bench: Workbench, pair: Pair) -> dict[Phase, Proof]:
    """Prefill, hand-over and decode steps executed at reduced dims; every tensor equals the unpartitioned model's."""
    from tools.oracle.pools import prove_pools
    from tools.oracle.prove import Proof

    def work() -> dict[str, Any]:
        batch = 2 * lcm(*(s.attn_dp or 1 for s in pair))
        found = prove_pools(bench.deployment.model, *pair, batch_size=batch, seq_len=bench.deployment.workload.isl)
        return {phase: p.model_dump(mode="json") for phase, p in found.items()}

    found = bench.stored(f"proof {strategy_key(pair[0])} to {strategy_key(pair[1])}", None, work)
    return {phase: Proof.model_validate(found[phase]) for phase in PHASES}


def export_pair(
    d: Deployment, pair: Pair, engine: str, **bench: Any
) -> tuple[tuple[LaunchFile, ...], tuple[Finding, ...]]:  # fmt: skip
    """The scripts of both pools, their proxy and the benchmark, for the conditions of the whole plan."""
    from tools.engines.export import export_pd

    per_node = d.cluster.devices_per_node
    nodes = (-(-pair[0].num_devices // per_node), -(-pair[1].num_devices // per_node))
    return export_pd(
        engine, d.model, *pair, isl=d.workload.isl, osl=d.workload.osl, num_nodes=nodes, devices_per_node=per_node,
        max_model_len=max(d.workload.context, d.workload.isl + d.workload.osl), memory_total_bytes=d.cluster.memory_bytes,
        memory_reserve=d.requirements.memory_reserve, device=d.cluster.known_device, **bench,
    )  # fmt: skip


__all__ = ["Pair", "export_pair", "pool_programs", "pool_proofs"]
