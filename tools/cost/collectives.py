"""α–β time of a collective, per algorithm, on the topology levels that its group really spans.

Ranks are numbered so that a node, and a scale-up domain, is a run of consecutive ranks. An axis of degree d and stride
s therefore has min(d, D/s) members inside a domain of D ranks, and the rest of it crosses to the next level.
Collectives are hierarchical: each level handles what the level below has left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tools.cost.curves import Curves, LinkCurve
from tools.cost.operators import Operators, link_ideal
from tools.cost.tables import Table
from tools.partition.mesh import Axes, Mesh
from tools.spec.hardware import Cluster

Num = Any


@dataclass(frozen=True, slots=True)
class Level:
    """Ranks reachable at `bandwidth` (bytes/s per device, one direction); `size` None: everybody."""

    name: str
    size: int | None
    bandwidth: Num
    curve: LinkCurve
    operators: Operators | None = None
    engine: str = "vllm"
    mesh: bool = False
    """Every pair has its own link: `bandwidth` is the sum of a device's links to the size - 1 others."""

    def within(self, p: Num) -> Level:
        """As a group of `p` sees it: in a mesh it has only the links between its members."""
        if not self.mesh or not self.size or self.size < 3:
            return self
        links = np.clip(np.asarray(p, float) - 1.0, 1.0, self.size - 1.0)
        return replace(self, bandwidth=self.bandwidth * links / (self.size - 1.0))

    def tables(self, kind: str) -> list[Table]:
        """Measured collectives of this kind of link: NCCL's, and for all-reduce the engine's own kernel."""
        if self.operators is None or not self.curve.measured:
            return []
        found = [self.operators.tables.get(f"{kind}/{self.curve.measured}/nccl/bf16")]
        if kind == "all_reduce":
            found.append(self.operators.find(kind, self.curve.measured, self.engine, "bf16"))
        return [t for t in found if t is not None]


def levels(cluster: Cluster, curves: Curves, engine: str = "vllm") -> tuple[Level, ...]:
    """Innermost first. A scale-up domain of 1 means that neighbours in a node talk over PCIe."""
    node, domain = cluster.devices_per_node, cluster.link_domain
    bus = cluster.device.link if cluster.device.link.lower().startswith("pcie") else "pcie"
    pcie, network = curves.link(bus), curves.link("network")
    has = (curves.operators, engine)
    if cluster.device.link_domain <= cluster.device.devices_per_node:
        domain = min(domain, node)  # a link inside the node, unlike a rack's, ends where a smaller node does
    mesh = cluster.device.link_topology == "mesh"
    out: list[Level] = []
    if domain > 1:
        out.append(Level("domain", domain, cluster.intra_node_bandwidth, curves.link(cluster.device.link), *has, mesh))
        if domain < node:
            out.append(Level("node", node, cluster.device.pcie_bandwidth, pcie, *has))
    elif node > 1:
        # A stated intra-node bandwidth describes whatever joins the cards of a node.
        out.append(Level("node", node, cluster.intra_node_bandwidth, pcie, *has))
    out.append(Level("network", None, cluster.inter_node_bandwidth, network))
    return tuple(out)


def members(axes: Axes, mesh: Mesh, tops: Sequence[Level]) -> list[Num]:
    """Group members at each level: their product is the size of the group."""
    out: list[Num] = []
    left = [(np.asarray(mesh.degrees[a], float), np.asarray(mesh.stride(a), float)) for a in axes]
    for level in tops:
        inside: Num = 1.0
        rest = []
        for degree, stride in left:
            if level.size is None:
                here = degree
            else:
                fit = np.maximum(level.size // np.maximum(stride, 1), 1.0)
                # The largest power-like share that divides the axis evenly; an axis that does not fit whole is cut
                # there.
                here = np.where(
                    degree <= fit, degree, np.where(degree % fit == 0, fit, np.gcd(degree.astype(int), fit.astype(int)))
                )
            inside = inside * here
            # Later levels see the axis with its inner part folded away: a larger stride, a smaller degree.
            rest.append((degree / here, stride * here))
        out.append(inside)
        left = rest
    return out


def collective_time(
    kind: str, axes: Axes, nbytes: Num, mesh: Mesh, tops: Sequence[Level], fanout: Num = 1.0, busiest: Num = 1.0
) -> Num:  # fmt: skip
    """Seconds of one collective of `nbytes` per rank (all_gather: of the gathered result) over `axes`.

    `fanout`, of a dispatch or combine: by how much its bytes grow where each token goes to every rank; 0: it never does.
    `busiest`: what the busiest member sends or gets, over the mean `nbytes`; it ends the exchange.
    """
    if kind == "transfer":
        return transfer_time(nbytes, mesh.size, tops)
    return across(kind, members(axes, mesh, tops), nbytes, tops, fanout, busiest)


def across(
    kind: str, per_level: list[Num], nbytes: Num, tops: Sequence[Level], fanout: Num = 1.0, busiest: Num = 1.0
) -> Num:  # fmt: skip
    """`collective_time` of a group with so many members at each level."""
    total: Num = 0.0
    if kind == "ring_shift":
        # To the next rank and from the one before: as fast as the slowest hop, at the outermost level that is crossed.
        hops = [np.where(np.asarray(p) > 1, p2p_time(nbytes, t), 0.0) for p, t in zip(per_level, tops, strict=True)]
        return np.maximum.reduce(np.broadcast_arrays(*hops))
    if kind == "all_to_all":
        return _all_to_all(nbytes, per_level, tops, fanout, busiest)
    share: Num = 1.0
    for p, level in zip(per_level, tops, strict=True):
        if np.any(np.asarray(p) > 1):
            total = total + np.where(np.asarray(p) > 1, _at_level(kind, nbytes / share, p, level), 0.0)
        share = share * p
    return total


def _at_level(kind: str, n: Num, p: Num, level: Level) -> Num:
    """Measured where this kind of link was (the faster of library and engine kernel), else the algorithms' α–β."""
    level, tables = level.within(p), level.tables(kind)
    if not tables:
        return ALGORITHMS[kind](n, p, level)
    p = np.maximum(p, 2.0)
    # Below the grid a collective is all latency: it takes what the smallest measured one takes.
    n = np.maximum(n, tables[0].axes[0][0])
    ideal = link_ideal(kind, n, p, level.bandwidth)
    times = [ideal / t.efficiency((n, p)) for t in tables]
    return times[0] if len(times) == 1 else np.minimum(times[0], times[1])


def ring_step(n: Num, p: Num, level: Level, rounds: float) -> Num:
    """`rounds` passes over the ring: rounds · (p-1)/p · n / bandwidth, and a hop of latency each step."""
    bandwidth = level.bandwidth * level.curve.ring
    return level.curve.latency_s + rounds * (p - 1) * level.curve.hop_s + rounds * (p - 1) / p * n / bandwidth


def tree_all_reduce(n: Num, p: Num, level: Level) -> Num:
    """Double binary tree: 2·log2(p) hops, the whole message up and down once."""
    hops = 2 * np.ceil(np.log2(np.maximum(p, 2)))
    return level.curve.latency_s + hops * level.curve.hop_s + 2 * n / (level.bandwidth * level.curve.ring)


def one_shot_all_reduce(n: Num, p: Num, level: Level) -> Num:
    """Everybody reads everybody's buffer: (p-1)·n bytes in, one step."""
    if not level.curve.one_shot:
        return np.inf
    return _at_once(p, level) + (p - 1) * n / (level.bandwidth * level.curve.one_shot)


def _at_once(p: Num, level: Level) -> Num:
    """Latency of reading p - 1 peers at once."""
    return level.curve.one_shot_latency_s + np.maximum(p - 2, 0) * level.curve.peer_s


def two_shot_all_reduce(n: Num, p: Num, level: Level) -> Num:
    """Reduce-scatter then all-gather, each read directly from the peers: 2·(p-1)/p·n bytes, two steps."""
    if not level.curve.one_shot:
        return np.inf
    return 2 * _at_once(p, level) + 2 * (p - 1) / p * n / (level.bandwidth * level.curve.one_shot)


def in_network_all_reduce(n: Num, p: Num, level: Level) -> Num:
    """The switch reduces: each rank sends and receives its message about once."""
    if not level.curve.in_network:
        return np.inf
    return level.curve.latency_s + 2 * (p - 1) / p * n / (level.bandwidth * level.curve.ring * level.curve.in_network)


def all_reduce(n: Num, p: Num, level: Level) -> Num:
    """The fastest algorithm for this message, as libraries choose it."""
    times = [
        ring_step(n, p, level, 2.0), tree_all_reduce(n, p, level), one_shot_all_reduce(n, p, level),
        two_shot_all_reduce(n, p, level), in_network_all_reduce(n, p, level),
    ]  # fmt: skip
    out = times[0]
    for t in times[1:]:
        out = np.minimum(out, t)
    return out


def half_ring(n: Num, p: Num, level: Level) -> Num:
    """Reduce-scatter or all-gather: one pass, or directly from the peers where that is possible."""
    ring = ring_step(n, p, level, 1.0)
    if not level.curve.one_shot:
        return ring
    return np.minimum(ring, _at_once(p, level) + (p - 1) / p * n / (level.bandwidth * level.curve.one_shot))


def _all_to_all(n: Num, per_level: list[Num], tops: Sequence[Level], fanout: Num, busiest: Num) -> Num:
    """Each rank keeps 1/p of its n bytes; what stays inside a level travels there, at the same time as the rest.

    Inside one node engines by default gather all tokens and scatter the sums, `fanout` times the bytes; kernels that send
    each token to its experts' ranks only are what they use across nodes and in a rack-scale domain.
    """
    group: Num = 1.0
    for p in per_level:
        group = group * p
    reach: Num = 1.0
    time: Num = 0.0
    for p, level in zip(per_level, tops, strict=True):
        several = np.asarray(p) > 1
        if not np.any(several):
            continue
        took = _exchange(n * busiest * (p - 1) * reach / group, p, level)
        if level.size is not None and level.size <= NODE:
            inside = (group <= p * reach) & (np.asarray(fanout) > 0)
            if np.any(inside):
                took = np.where(inside, _at_level("all_gather", n * fanout, p * reach, level), took)
        time = np.maximum(time, np.where(several, took, 0.0))
        reach = reach * p
    return time


NODE = 16
"""Devices of the largest single node."""


def _exchange(sent: Num, p: Num, level: Level) -> Num:
    """Every rank sends `sent` bytes in all to the p - 1 others."""
    level, tables = level.within(p), level.tables("all_to_all")
    if not tables:
        bandwidth = level.bandwidth * (level.curve.one_shot or level.curve.ring)
        return (level.curve.one_shot_latency_s or level.curve.latency_s) + sent / bandwidth
    # The measured exchange moves (p-1)/p of its buffer: the buffer that sends as much as this level does.
    inside = np.maximum(p, 2.0)
    buffer = np.maximum(sent * inside / (inside - 1), tables[0].axes[0][0])
    return link_ideal("all_to_all", buffer, inside, level.bandwidth) / tables[0].efficiency((buffer, inside))


def p2p_time(nbytes: Num, level: Level) -> Num:
    """One message between neighbouring stages."""
    level = level.within(2)
    return level.curve.latency_s + nbytes / (level.bandwidth * level.curve.ring)


def transfer_time(nbytes: Num, ranks: Num, tops: Sequence[Level]) -> Num:
    """From one device group of a stage to another, all senders at once, at the innermost level that holds the stage."""
    out: Num = p2p_time(nbytes, tops[-1])
    for level in reversed(tops[:-1]):
        out = np.where(np.asarray(ranks) <= (level.size or 0), p2p_time(nbytes, level), out)
    return out


def boundaries(pp: Num, group: Num, tops: Sequence[Level]) -> list[Num]:
    """How many of the pp-1 stage boundaries cross at each level, stages being runs of `group` consecutive ranks."""
    out: list[Num] = []
    left = np.asarray(pp, float) - 1
    for level in tops:
        if level.size is None:
            beyond: Num = 0.0 * left
        else:
            per = np.maximum(level.size // np.maximum(np.asarray(group), 1), 1)
            beyond = np.where(np.asarray(group) > level.size, left, np.minimum(left, (np.asarray(pp) - 1) // per))
        out.append(left - beyond)
        left = beyond
    return out


ALGORITHMS: dict[str, Callable[[Num, Num, Level], Num]] = {
    "all_reduce": all_reduce, "reduce_scatter": half_ring, "all_gather": half_ring,
}  # fmt: skip
