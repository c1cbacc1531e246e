"""Prefill and decode in separate pools: TTFT, TPOT and throughput of a closed loop over both.

A request waits for a prefill worker, is prefilled, its KV cache moves to a decode worker, and it decodes there, without
prefills in its way. With N requests in flight and X requests/s,

    N = X · (R + H + (osl-1)·t(b)),   b = X·(osl-1)·t(b) / workers,   X <= prefill workers / s,

R the prefill's latency and queue, H the hand-over, t(b) the decode step with b sequences, s the prefill's service time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tools.cost.curves import Curves
from tools.cost.estimate import batch_limit
from tools.cost.fit import max_batch
from tools.cost.serving import Load, drift, price_steps
from tools.cost.steps import Candidates, Layout, layouts
from tools.memory import kv_bytes_per_token
from tools.spec.base import ToolError
from tools.spec.deployment import Deployment
from tools.spec.strategy import Strategy

ROUNDS = 60
"""Of the bisection for the rate: each halves the interval."""


@dataclass(frozen=True, slots=True)
class Disaggregated:
    """Means; seconds and tokens/s over both pools."""

    ttft_s: float
    tpot_s: float
    request_rate: float
    output_tok_s: float
    input_tok_s: float
    batch: int
    """Decode sequences per worker."""
    max_batch: int
    num_devices: int
    prefill_busy: float
    """Share of the prefill pool's time that is used."""


def predict_disaggregated(
    deployment: Deployment, prefill: Strategy, decode: Strategy, curves: Curves, *, concurrency: int,
    requests: int | None = None, length_deviation: float = 0.0,
) -> Disaggregated:  # fmt: skip
    """Closed loop of `concurrency` requests over two pools; `dp` of a strategy is the number of its workers.

    `requests`: the run is over after so many, whose lengths deviate by `length_deviation` of their mean; None: steady state.

    Raises ToolError when the decode pool cannot hold one sequence, Refused for a layout that cannot be partitioned.
    """
    cycle = cycle_of(deployment, prefill, decode, curves)
    return at_concurrency(cycle, concurrency, requests=requests, length_deviation=length_deviation)


def cycle_of(deployment: Deployment, prefill: Strategy, decode: Strategy, curves: Curves) -> Cycle:
    """Both pools, ready to be asked at any number of requests in flight. Raises as `predict_disaggregated` does."""
    w = deployment.workload
    load = Load("closed", max(1, w.isl), max(1, w.osl))
    front, back = _layout(deployment, prefill, curves), _layout(deployment, decode, curves)
    most = int(max_batch(back, np.asarray([batch_limit(deployment, curves, decode.engine, decode.attn_dp or 1)]))[0])
    if most < 1:
        raise ToolError(f"the decode pool ({decode.label()}) cannot hold one sequence of {w.context} tokens")
    handoff = _transfer(deployment, back) + curves.engine(decode.engine).handoff_s
    devices = prefill.num_devices + decode.num_devices
    return Cycle(front, back, load, prefill.dp, decode.dp, most, handoff, max(load.osl - 1, 0), devices)


def at_concurrency(
    cycle: Cycle, concurrency: int, *, requests: int | None = None, length_deviation: float = 0.0
) -> Disaggregated:
    """`predict_disaggregated` of pools at hand."""
    load, gaps = cycle.load, cycle.gaps
    ranks = int(cycle.front.cands.attn_dp[0])
    low, high = 0.0, min(cycle.prefill_workers / cycle.service(ranks)[0], concurrency / cycle.fastest())
    for _ in range(ROUNDS):
        rate = 0.5 * (low + high)
        low, high = (rate, high) if cycle.in_flight(rate) < concurrency else (low, rate)
    rate = 0.5 * (low + high)
    batch, tpot = cycle.decode(rate)
    # What is not decoding waits in front: by Little's law, so that a saturated pool queues exactly what is left over.
    ttft = max(concurrency / rate - gaps * tpot, cycle.fastest() - gaps * tpot if rate else 0.0, cycle.alone())
    if requests:
        # The last requests leave one after another, in steps that only shrink to those of one sequence.
        even = float(drift(length_deviation, requests / concurrency))
        rate /= 1.0 + even * 0.5 * gaps * cycle.step(1) * rate / requests
    return Disaggregated(
        ttft_s=ttft, tpot_s=tpot, request_rate=rate, output_tok_s=rate * load.osl, input_tok_s=rate * load.isl,
        batch=max(1, round(batch)), max_batch=cycle.most, num_devices=cycle.num_devices,
        prefill_busy=rate * cycle.service(ranks)[0] / cycle.prefill_workers,
    )  # fmt: skip


def _layout(deployment: Deployment, s: Strategy, curves: Curves) -> Layout:
    ((_, layout),) = layouts(deployment, curves, Candidates.of(s))
    return layout


def _transfer(deployment: Deployment, back: Layout) -> float:
    """Seconds that the KV cache of a prompt takes over the network, spread over the ranks that receive it."""
    cluster, s = deployment.cluster, back.cands.origin
    assert s is not None
    nbytes = kv_bytes_per_token(deployment.model, s.kv_dtype) * deployment.workload.isl
    return float(nbytes / (cluster.inter_node_bandwidth * s.tp))


@dataclass(slots=True)
class Cycle:
    """Times of one request's way through both pools."""

    front: Layout
    back: Layout
    load: Load
    prefill_workers: int
    decode_workers: int
    most: int
    handoff: float
    gaps: int
    num_devices: int
    _steps: Any = None
    _points: Any = None

    def service(self, waiting: float) -> tuple[float, float]:
        """(seconds of a prefill worker per prompt, latency of a prompt) with so many prompts at the worker."""
        if self._points is None:
            adp = int(self.front.cands.attn_dp[0])
            self._points = [self._prefill(n) for n in (1, adp, 64 * adp)]
        one, ranks, full = self._points
        adp = max(1, int(self.front.cands.attn_dp[0]))
        if waiting <= 1 or (adp == 1 and waiting < 2):
            return one
        share = min(1.0, (waiting - 1) / max(adp, 2))
        best = full if full[0] < ranks[0] else ranks
        return one[0] + share * (best[0] - one[0]), one[1] + share * (best[1] - one[1])

    def _prefill(self, n: int) -> tuple[float, float]:
        steps = price_steps(self.front, self.load, np.asarray([n]))
        prompts = float(steps.prompts[0] * steps.queue_share[0])
        chunks = float(steps.chunks[0])
        busy = chunks * float(steps.packed.slowest[0]) / prompts
        device = float(steps.packed.latency[0]) + (chunks - 1) * float(steps.packed.slowest[0])
        return busy, max(device, float(steps.launches[0]) * self.front.engine.launch_s)

    def step(self, batch: float) -> float:
        if self._steps is None:
            sizes = np.unique(np.geomspace(1, self.most, 12).astype(np.int64))
            adp = int(self.back.cands.attn_dp[0])
            sizes = np.unique(np.maximum(sizes // adp, 1) * adp)
            times = [float(price_steps(self.back, self.load, np.asarray([b])).high[0]) for b in sizes]
            self._steps = (sizes.astype(float), np.asarray(times))
        return float(np.interp(batch, *self._steps))

    def decode(self, rate: float) -> tuple[float, float]:
        """(sequences per decode worker, seconds between tokens) at a request rate, at most what the worker holds."""
        low, high = 0.0, float(self.most)
        for _ in range(40):
            b = 0.5 * (low + high)
            low, high = (b, high) if b < rate * self.gaps * self.step(b) / self.decode_workers else (low, b)
        return high, self.step(high)

    def alone(self) -> float:
        return self.service(1)[1] + self.handoff + self.front.engine.prefill_s + 0.5 * self.step(1)

    def fastest(self) -> float:
        return self.alone() + self.gaps * self.step(1)

    def in_flight(self, rate: float) -> float:
        """Requests in both pools at a rate; infinite when the decode pool cannot hold them."""
        batch, tpot = self.decode(rate)
        if batch >= self.most * 0.999 and rate * self.gaps * tpot > self.decode_workers * self.most:
            return np.inf
        waiting = 1.0
        for _ in range(8):
            service, latency = self.service(waiting)
            used = min(rate * service / self.prefill_workers, 0.999)
            queue = service * used / (2.0 * (1.0 - used)) / self.prefill_workers
            waiting = max(1.0, rate * (queue + latency) / self.prefill_workers)
        first = queue + latency + self.handoff + self.front.engine.prefill_s + 0.5 * tpot
        return rate * (first + self.gaps * tpot)


__all__ = ["Cycle", "Disaggregated", "at_concurrency", "cycle_of", "predict_disaggregated"]
