"""Which groups cross the scale-up link's domain: tensor parallelism across the network is legal and slow."""

from __future__ import annotations

from collections.abc import Iterator

from tools.checks.base import Case, check, error, info, warning
from tools.partition.lower import Program
from tools.partition.mesh import Axes
from tools.spec.finding import Finding
from tools.spec.hardware import Cluster

LATENCY_BOUND = ("tp", "etp")
"""Axes with a collective per operator of every layer: they belong inside the domain."""


@check("topology")
def topology(case: Case) -> Iterator[Finding]:
    if case.deployment is None:
        return
    program, cluster = case.programs[0], case.deployment.cluster
    needed = program.num_devices
    if cluster.num_devices is not None and needed > cluster.num_devices:
        words = f"the strategy needs {needed} devices, the cluster has {cluster.num_devices}"
        yield error("devices", words, cause="input", fix="smaller degrees", needed=needed)
    elif cluster.num_devices is not None and needed < cluster.num_devices:
        idle = cluster.num_devices - needed
        words = f"{idle} of {cluster.num_devices} devices stay idle: the strategy uses {needed}"
        yield warning("idle-devices", words, cause="other", fix="more replicas, or degrees that use them", idle=idle)
    seen: set[frozenset[str]] = set()
    for name in ("tp", "attn_dp", *(("etp", "ep") if program.model.moe else ())):
        axes = program.mesh.shape.axis(name)
        if frozenset(axes) not in seen:
            seen.add(frozenset(axes))
            yield from _axis(program, cluster, name)


def groups_of(program: Program, axes: Axes) -> tuple[tuple[int, ...], ...]:
    """Global device ids of every group along `axes`, over all stages and replicas."""
    s = program.strategy
    return tuple(
        tuple(stage.ranks[r] + k * s.replica for r in group)
        for stage in program.stages
        for group in program.mesh.groups(axes)
        for k in range(s.dp)
    )


def _axis(program: Program, cluster: Cluster, name: str) -> Iterator[Finding]:
    axes = program.mesh.shape.axis(name)
    degree = int(program.mesh.degree(axes))
    domain = max(1, min(cluster.link_domain, cluster.num_devices or cluster.link_domain))
    if degree == 1:
        return
    spans = [len({r // domain for r in group}) for group in groups_of(program, axes)]
    if max(spans) == 1:
        return
    ratio = cluster.intra_node_bandwidth / cluster.inter_node_bandwidth
    words = (
        f"{name}({degree}) spans {max(spans)} scale-up domains of {domain} devices: its collectives run at "
        f"{cluster.inter_node_bandwidth / 1e9:g} GB/s instead of {cluster.intra_node_bandwidth / 1e9:g} ({ratio:.3g}×)"
    )
    tell = warning if name in LATENCY_BOUND and domain > 1 else info
    fix = f"{name} of at most {domain}, pipeline stages or replicas across domains"
    yield tell("crosses-domain", words, cause="network", where=name, fix=fix, degree=degree, domain=domain)
