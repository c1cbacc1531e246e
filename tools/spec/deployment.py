"""Conditions, resolved: the one value that the search, the cost model and the report read."""

from __future__ import annotations

from typing import Literal

from tools.spec.base import Frozen
from tools.spec.hardware import Cluster
from tools.spec.model import DType, ModelSpec
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
    idle_clusters: tuple[Cluster, ...] = ()
    """Kinds of devices that stand beside the planned ones; a plan does not mix kinds, so they are left idle."""
    prices: dict[str, float] = {}
    """Price of one device for an hour, by device id, in `currency`."""
    currency: str = "USD"
