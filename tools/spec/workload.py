"""Workload and requirements, resolved to SI base units."""

from __future__ import annotations

from typing import Literal

from tools.spec.base import Frozen

Metric = Literal["ttft_s", "tpot_s", "e2e_latency_s", "throughput_per_device", "throughput_total", "request_rate"]
Stat = Literal["mean", "p50", "p90", "p95", "p99", "max", "limit"]
HIGHER_IS_BETTER = frozenset({"throughput_per_device", "throughput_total", "request_rate"})


class Workload(Frozen):
    """`isl`/`osl` are the typical lengths that requirements gate at; min/max bound capacity and the drawn DAG."""

    isl: int
    osl: int
    seq_len_min: int | None = None
    seq_len_max: int | None = None
    max_context: int | None = None
    batch_size: int | None = None
    """Concurrent sequences per replica that arrive together."""
    concurrency: int | None = None
    """Closed loop: requests in flight over the whole deployment."""
    request_rate: float | None = None
    """Open loop: Poisson arrivals per second over the whole deployment."""
    prefix_hit_rate: float = 0.0
    draft_acceptance: float | None = None
    """Speculative decoding: share of drafted tokens that verification accepts, each independently."""
    draft_length: int | None = None
    """Tokens drafted per step; None: DRAFT_LENGTH of the cost model."""
    peak_factor: float = 1.0
    """Peak over mean of the request rate; latencies and capacity are judged at the peak."""
    spare_replicas: int = 0
    """N+k: the load is met with this many replicas out of service. Their devices are planned for and paid for."""
    spare_nodes: int = 0
    """The same for nodes: with this many gone, and the replicas that lie on them."""
    mode: Literal["inference", "training"] = "inference"

    @property
    def context(self) -> int:
        """Longest sequence the KV cache must hold for one request."""
        return max(self.isl + self.osl, self.seq_len_max or 0, self.max_context or 0)


class Requirement(Frozen):
    """One gate. For latencies `limit` is an upper bound, for throughput and rates a lower one."""

    metric: Metric
    stat: Stat = "limit"
    limit: float
    counts: Literal["input", "output", "total"] | None = None
    """Which tokens a throughput counts; None = not said, the verdict is given under each reading."""

    @property
    def higher_is_better(self) -> bool:
        return self.metric in HIGHER_IS_BETTER


class Requirements(Frozen):
    gates: tuple[Requirement, ...] = ()
    memory_reserve: float | None = None
    """Fraction of device memory that must stay free (0.15 for "use at most 85 %")."""
    balance_epsilon: float = 0.05
    balance_stated: bool = False
    utilisation_target: float | None = None


class EngineChoice(Frozen):
    name: str = "vllm"
    version: str | None = None
    alternatives: tuple[str, ...] = ()
    limits: dict[str, float] = {}
    stated: bool = False
