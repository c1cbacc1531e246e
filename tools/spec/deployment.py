"""Conditions, resolved: the one value that the search, the cost model and the report read."""

from __future__ import annotations

from typing import Literal

from tools.spec.base import Frozen, ToolError
from tools.spec.hardware import Cluster
from tools.spec.model import DType, ModelSpec
from tools.spec.strategy import Strategy
from tools.spec.workload import EngineChoice, Requirements, Workload

Objective = Literal["fewest_devices", "total_throughput", "knee", "min_latency"]


class Assumption(Frozen):
    """What was filled in because nobody said it, and how the answer depends on it."""

    path: str
    value: str
    why: str
    effect: str = ""


class Deployment(Frozen):
    model: ModelSpec
    cluster: Cluster
    workload: Workload
    requirements: Requirements = Requirements()
    engine: EngineChoice = EngineChoice()
    objective: Objective | None = None
    """The stated one; None: chosen by the precedence in docs."""
    weight_dtypes: tuple[DType, ...] = ("bf16",)
    """Dtypes the conditions allow, preferred first."""
    kv_dtypes: tuple[DType, ...] = ("bf16",)
    assumptions: tuple[Assumption, ...] = ()
    baseline: dict | None = None
    """A stated baseline strategy (keyword arguments of Strategy)."""
    alternatives: tuple[dict, ...] = ()
    """Strategies that the user asks about by name; each is priced and reported beside the plan."""
    other_clusters: tuple[Cluster, ...] = ()
    """Clusters of other devices that the user considers ("H100 or H20?"); each is searched and set beside the plan."""
    further_clusters: tuple[Cluster, ...] = ()
    """Clusters of other kinds of devices that are there beside `cluster`: a plan may use any of them, alone or together."""
    prices: dict[str, float] = {}
    """Price of one device for an hour, by device id, in `currency`."""
    currency: str = "USD"

    @property
    def clusters(self) -> tuple[Cluster, ...]:
        """Every kind of device that is there, the main one first."""
        return (self.cluster, *self.further_clusters)

    @property
    def num_devices(self) -> int | None:
        """Devices of all kinds; None: unbounded."""
        counts = [c.num_devices for c in self.clusters]
        return None if None in counts else sum(n for n in counts if n is not None)

    def cluster_of(self, device: str) -> Cluster:
        """The cluster of a kind of device, by catalogue id. Raises ToolError for one that is not there."""
        found = next((c for c in self.clusters if c.device.id == device), None)
        if found is None:
            there = ", ".join(c.device.id for c in self.clusters)
            raise ToolError(f"there is no {device} in this deployment; there is {there}")
        return found

    def stage_clusters(self, strategy: Strategy) -> tuple[Cluster, ...]:
        """Where each pipeline stage of a strategy lies."""
        if not strategy.stage_devices:
            return (self.cluster,) * strategy.pp
        return tuple(self.cluster_of(device) for device in strategy.stage_devices)

    def places(self, strategy: Strategy) -> tuple[tuple[Cluster, int], ...]:
        """Of every stage of every replica (stages innermost): its cluster, and the number that its first rank has there."""
        where = self.stage_clusters(strategy)
        of_kind = [c.device.id for c in where]
        own = [of_kind[:i].count(kind) for i, kind in enumerate(of_kind)]
        return tuple(
            (c, (replica * of_kind.count(c.device.id) + own[i]) * strategy.group)
            for replica in range(strategy.dp)
            for i, c in enumerate(where)
        )
