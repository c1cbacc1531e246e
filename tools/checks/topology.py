"""Which groups cross the scale-up link's domain: tensor parallelism across the network is legal and slow."""

from __future__ import annotations

from collections.abc import Iterator

from tools.checks.base import Case, check, error, info, warning
from tools.partition.lower import Program
from tools.partition.mesh import Axes
from tools.spec.deployment import Deployment
from tools.spec.finding import Finding
from tools.spec.hardware import Cluster
from tools.spec.strategy import Strategy

LATENCY_BOUND = ("tp", "etp")
"""Axes with a collective per operator of every layer: they belong inside the domain."""


@check("topology")
def topology(case: Case) -> Iterator[Finding]:
    if case.deployment is None:
        return
    program, d = case.programs[0], case.deployment
    yield from _counts(case.strategy, d)
    seen: set[frozenset[str]] = set()
    for name in ("tp", "attn_dp", *(("etp", "ep") if program.model.moe else ())):
        axes = program.mesh.shape.axis(name)
        if frozenset(axes) not in seen:
            seen.add(frozenset(axes))
            yield from _axis(program, d, name)


def _counts(s: Strategy, d: Deployment) -> Iterator[Finding]:
    """Devices against what is there, of each kind."""
    for cluster in d.clusters:
        kind = f" {cluster.device.id}" if d.further_clusters else ""
        needed = s.dp * s.group * sum(c.device.id == cluster.device.id for c in d.stage_clusters(s))
        if cluster.num_devices is not None and needed > cluster.num_devices:
            words = f"the strategy needs {needed}{kind} devices, the cluster has {cluster.num_devices}"
            yield error("devices", words, cause="input", fix="smaller degrees", needed=needed)
    total = d.num_devices
    if total is not None and s.num_devices < total:
        idle = total - s.num_devices
        words = f"{idle} of {total} devices stay idle: the strategy uses {s.num_devices}"
        yield warning("idle-devices", words, cause="other", fix="more replicas, or degrees that use them", idle=idle)


def groups_of(program: Program, axes: Axes) -> tuple[tuple[int, ...], ...]:
    """Global device ids of every group along `axes`, over all stages and replicas."""
    s = program.strategy
    return tuple(
        tuple(stage.ranks[r] + k * s.replica for r in group)
        for stage in program.stages
        for group in program.mesh.groups(axes)
        for k in range(s.dp)
    )


def _axis(program: Program, d: Deployment, name: str) -> Iterator[Finding]:
    axes, s = program.mesh.shape.axis(name), program.strategy
    degree = int(program.mesh.degree(axes))
    if degree == 1:
        return
    places = d.places(s)
    for cluster in {c.device.id: c for c in d.stage_clusters(s)}.values():
        mine = [(start, p) for p, (c, start) in enumerate(places) if c is cluster]
        domain = max(1, min(cluster.link_domain, cluster.num_devices or cluster.link_domain))
        spans = [
            len({(r - p * s.group + start) // domain for r in group})
            for start, p in mine
            for group in groups_of(program, axes)
            if group[0] // s.group == p
        ]
        if spans and max(spans) > 1:
            yield _crosses(cluster, name, degree, max(spans), domain)


def _crosses(cluster: Cluster, name: str, degree: int, spans: int, domain: int) -> Finding:
    ratio = cluster.intra_node_bandwidth / cluster.inter_node_bandwidth
    words = (
        f"{name}({degree}) spans {spans} scale-up domains of {domain} devices: its collectives run at "
        f"{cluster.inter_node_bandwidth / 1e9:g} GB/s instead of {cluster.intra_node_bandwidth / 1e9:g} ({ratio:.3g}×)"
    )
    tell = warning if name in LATENCY_BOUND and domain > 1 else info
    fix = f"{name} of at most {domain}, pipeline stages or replicas across domains"
    return tell("crosses-domain", words, cause="network", where=name, fix=fix, degree=degree, domain=domain)
