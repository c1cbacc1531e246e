"""A pipeline whose stages lie on different kinds of devices: one layout per kind, each stage priced on its own.

The graph is the same on every kind; what differs is how long its kernels take, which link a stage hands over to the next,
and how many bytes a stage has room for. Everything above a step (queues, batches, chunks) reads a `StagedLayout` like any
other: the latency is the sum over the stages, the rate that of the slowest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby, pairwise

import numpy as np

from tools.cost.collectives import boundaries, p2p_time
from tools.cost.compute import Num
from tools.cost.curves import Curves
from tools.cost.steps import Candidates, Layout, Stages, Works, each_stage, layouts, splits, weighted
from tools.spec.base import Refused
from tools.spec.deployment import Deployment
from tools.spec.hardware import Cluster
from tools.spec.model import LayerKind, ModelSpec
from tools.spec.strategy import Phase


@dataclass(frozen=True, slots=True)
class StagedLayout(Layout):
    """The layout of the last stage's kind of device (where the head, and so any draft, runs), with those of the others."""

    others: tuple[Layout, ...] = ()
    where: tuple[int, ...] = ()
    """Which layout runs each stage: 0 this one, i the i-th of `others`."""

    @property
    def kinds(self) -> tuple[Layout, ...]:
        return (self, *self.others)

    @property
    def capacities(self) -> tuple[float, ...]:
        return tuple(self.kinds[k].deployment.cluster.memory_bytes for k in self.where)

    def take(self, index: np.ndarray) -> Layout:
        taken = tuple(o.take(index) for o in self.others)
        return replace(self, cands=self.cands.take(index), row=self.row[index], others=taken)

    def works(self, phase: Phase, sequences: Num, tokens: Num, context: Num) -> Works:
        asked = (phase, sequences, tokens, context)
        return replace(Layout.works(self, *asked), beside=tuple(o.works(*asked) for o in self.others))

    def mixed(self, prefill: Works, decode: Works) -> Works:
        pairs = zip(self.others, prefill.beside, decode.beside, strict=True)
        return replace(Layout.mixed(self, prefill, decode), beside=tuple(o.mixed(p, d) for o, p, d in pairs))

    def by_stage(self, works: Works) -> tuple[tuple[Layout, Works], ...]:
        there = self._each(works)
        return tuple(there[k] for k in self.where)

    def _each(self, works: Works) -> tuple[tuple[Layout, Works], ...]:
        return ((self, works), *zip(self.others, works.beside, strict=True))

    def through(self, works: Works) -> tuple[Num, Num]:
        times = [Layout.body_times(layout, w) for layout, w in self._each(works)]
        counts = self.stages.each(self.cands.pp)
        stages = [weighted(n, times[k]) for n, k in zip(counts, self.where, strict=True)]
        return sum(stages[1:], stages[0]), np.maximum.reduce(stages)

    def boundary_times(self, nbytes: Num) -> tuple[Num, Num]:
        """Within a run of stages of one kind as in a pipeline of that kind; between kinds over the slower network."""
        total: Num = 0.0
        worst: Num = 0.0
        for kind, run in groupby(self.where):
            tops, pp = self.kinds[kind].tops, np.full_like(self.cands.pp, len(list(run)))
            for count, level in zip(boundaries(pp, self.cands.group, tops), tops, strict=True):
                t = p2p_time(nbytes, level)
                total, worst = total + count * t, np.maximum(worst, np.where(count > 0, t, 0.0))
        for a, b in pairwise(self.where):
            if a != b:
                t = np.maximum(*(p2p_time(nbytes, self.kinds[k].tops[-1]) for k in (a, b)))
                total, worst = total + t, np.maximum(worst, t)
        return total, worst


def staged_layout(deployment: Deployment, curves: Curves, cands: Candidates) -> StagedLayout:
    """Layout of the one strategy in `cands`, which names the device of every stage.

    Raises ToolError for a device that is not there, Refused for kinds that no collective library joins.
    """
    s = cands.origin
    assert s is not None and s.stage_devices
    clusters = deployment.stage_clusters(s)
    refuse_vendors(clusters)
    plain = replace(cands, origin=s.model_copy(update={"stage_devices": ()}))
    kinds = {c.device.id: c for c in reversed(clusters)}
    sides = [
        layouts(deployment.model_copy(update={"cluster": c, "further_clusters": ()}), curves, plain)[0][1]
        for c in kinds.values()
    ]
    place = {device: i for i, device in enumerate(kinds)}
    main, where = sides[0], tuple(place[c.device.id] for c in clusters)
    shared = {f.name: getattr(main, f.name) for f in fields(main)}
    shared |= {"cands": cands, "stages": _stages(deployment.model, splits(cands, deployment.model)[s.pp])}
    return StagedLayout(**shared, others=tuple(sides[1:]), where=where)


def refuse_vendors(clusters: Sequence[Cluster]) -> None:
    """One process group has one collective library. Raises Refused naming the vendors."""
    vendors = list(dict.fromkeys(c.device.vendor for c in clusters))
    if len(vendors) > 1:
        raise Refused(
            f"a pipeline over {' and '.join(vendors)} devices: no collective library joins them; run replicas of each kind"
        )


def _stages(model: ModelSpec, split: tuple[int, ...]) -> Stages:
    """Every stage by itself, in order, those that lie alike on different devices included."""
    kinds: list[LayerKind] = list(dict.fromkeys(model.layers()))
    whole = Stages.of(model, kinds, {len(split): split}, 1).whole
    table = np.zeros((len(split), *whole.shape))
    for j, row in enumerate(each_stage(model, split)):
        per = dict(row.layers)
        table[j, :, len(split)] = [row.embed, *(per.get(k, 0) for k in kinds), row.head]
    return Stages(whole, table)


__all__ = ["StagedLayout", "refuse_vendors", "staged_layout"]
