"""Prefill and decode in separate pools: TTFT, TPOT and throughput of a closed loop over both.

A request waits for a prefill worker, is prefilled, its KV cache moves to a decode worker, and it decodes there, without
prefills in its way. With N requests in flight and X requests/s,

    N = X · (R + H + (osl-1)·t(b)),   b = X·(osl-1)·t(b) / workers,   X <= prefill workers / s,

R the prefill's latency and queue, H the hand-over, t(b) the decode step with b sequences, s the prefill's service time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np

from tools.cost.curves import Curves
from tools.cost.estimate import batch_limit
from tools.cost.fit import max_batch
from tools.cost.serving import Load, drift, price_steps
from tools.cost.steps import Candidates, Layout, layouts
from tools.memory import kv_bytes_per_token, state_bytes_per_sequence
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
    nbytes += state_bytes_per_sequence(deployment.model)
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

    def paces(self) -> np.ndarray:
        """Seconds between tokens with 0, 1, 2 … sequences on a decode worker, up to one more than it holds."""
        self.step(1)
        return np.interp(np.arange(self.most + 2), *self._steps)

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


# ------------------------------------------------------------------------------------------------- request by request


SPREAD = (0.8, 1.2)
"""Lengths around the stated ones, as in the simulation of a single pool's reference."""
REQUESTS = (1200, 3000)
"""Fewest and most requests of one simulation; between the two, six for each that is in flight."""


@dataclass(frozen=True, slots=True)
class Walked:
    """Of requests after the warm-up: seconds to the first token and between tokens, requests per second."""

    ttft: np.ndarray
    tpot: np.ndarray
    request_rate: float

    def percentile(self, metric: str, q: float) -> float:
        """`metric`: ttft or tpot."""
        return float(np.quantile({"ttft": self.ttft, "tpot": self.tpot}[metric], q))


def walk(cycle: Cycle, *, concurrency: int | None = None, rate: float | None = None, seed: int = 0) -> Walked:
    """Requests one by one through both pools: Poisson arrivals at `rate`, or a closed loop of `concurrency`. Of large pools
    a part, see `_Part`.

    A prompt waits for the first free prefill worker, its cache crosses, it takes a place on the decode worker with the
    fewest sequences (or waits for one), and all sequences of a worker advance together at the pace of its steps.
    Where the closed form gives means of a steady state, this gives the spread around them.
    """
    assert (concurrency is None) != (rate is None)
    flying = concurrency or int((rate or 0.0) * cycle.fastest()) + 1
    part = _Part.of(cycle, flying)
    flying, rate = max(1, round(flying * part.share)), rate * part.share if rate is not None else None
    count = int(np.clip(6 * flying, *REQUESTS)) + 2 * flying
    rng = np.random.default_rng(seed)
    scale, tokens = rng.uniform(*SPREAD, count), cycle.gaps * rng.uniform(*SPREAD, count)
    # A closed loop starts spread over one cycle, not as a burst.
    starts = np.cumsum(rng.exponential(1.0 / rate, count)) if rate else np.sort(rng.uniform(0, cycle.fastest(), flying))
    w = _Walk(cycle, part, scale, tokens, starts, closed=rate is None)
    w.run()
    done = slice(min(2 * flying, count // 2), count)
    ttft, tpot = w.first[done] - w.came[done], (w.end[done] - w.first[done]) / np.maximum(tokens[done], 1e-9)
    ends = np.sort(w.end)
    lo, hi = count // 4, 3 * count // 4
    return Walked(ttft, tpot, (hi - lo) / max(ends[hi] - ends[lo], 1e-12) / part.share)


@dataclass(frozen=True, slots=True)
class _Part:
    """The workers that a walk has: with the same load on each, queues of fewer workers are longer, so that a part of large
    pools errs on the side of care."""

    fronts: int
    backs: int
    share: float
    """Of the decode workers, and of the requests."""
    slower: float
    """A prefill takes so much longer, where the prefill workers do not divide likewise: their load stays what it is."""

    @classmethod
    def of(cls, cycle: Cycle, flying: int) -> _Part:
        """All of it, up to `WALKED` requests in flight."""
        fewer = max(1.0, min(flying / WALKED, float(cycle.prefill_workers), float(cycle.decode_workers)))
        backs = max(1, round(cycle.decode_workers / fewer))
        share = backs / cycle.decode_workers
        fronts = max(1, round(cycle.prefill_workers * share))
        return cls(fronts, backs, share, fronts / (cycle.prefill_workers * share))


WALKED = 500
"""Requests in flight beyond which only a part of the workers is walked."""


class _Walk:
    """The state of `walk`: a heap of events, a clock of tokens per decode worker."""

    def __init__(
        self, cycle: Cycle, part: _Part, scale: np.ndarray, tokens: np.ndarray, starts: np.ndarray, *, closed: bool
    ) -> None:  # fmt: skip
        self.cycle, self.part, self.scale, self.tokens, self.closed = cycle, part, scale, tokens, closed
        n = len(scale)
        self.came, self.first, self.end = np.zeros(n), np.zeros(n), np.zeros(n)
        self.events: list[tuple[float, int, str, int]] = []
        self.serial = 0
        self.next = 0
        for t in starts:
            self._arrive(float(t))
        self.free, self.waiting = part.fronts, deque[int]()
        self.full: deque[int] = deque()
        workers = range(part.backs)
        self.held: list[list[tuple[float, int]]] = [[] for _ in workers]
        """Per decode worker: (value of its token clock at which a sequence ends, request), a heap."""
        self.clock, self.at, self.turn = [0.0 for _ in workers], [0.0 for _ in workers], [0 for _ in workers]
        self.pace = cycle.paces()

    def _put(self, t: float, kind: str, what: int) -> None:
        self.serial += 1
        heappush(self.events, (t, self.serial, kind, what))

    def _arrive(self, t: float) -> None:
        if self.next < len(self.scale):
            self.came[self.next] = t
            self._put(t, "arrives", self.next)
            self.next += 1

    def run(self) -> None:
        act = {"arrives": self._arrives, "prefilled": self._prefilled, "handed": self._handed}
        while self.events:
            t, _, kind, what = heappop(self.events)
            if kind == "ends":
                worker, turn = divmod(what, 1 << 40)
                if turn == self.turn[worker]:
                    self._ends(t, worker)
            else:
                act[kind](t, what)

    def _arrives(self, t: float, r: int) -> None:
        self.waiting.append(r)
        self._start(t)

    def _start(self, t: float) -> None:
        while self.free and self.waiting:
            there = 1.0 + (len(self.waiting) - 1) / self.part.fronts
            r = self.waiting.popleft()
            self.free -= 1
            busy, latency = self.cycle.service(there)
            after = self.cycle.handoff + self.cycle.front.engine.prefill_s
            self._put(t + busy * self.part.slower * self.scale[r], "prefilled", r)
            self._put(t + latency * self.scale[r] + after, "handed", r)

    def _prefilled(self, t: float, r: int) -> None:
        self.free += 1
        self._start(t)

    def _handed(self, t: float, r: int) -> None:
        worker = min(range(len(self.held)), key=lambda i: len(self.held[i]))
        if len(self.held[worker]) >= self.cycle.most:
            self.full.append(r)
            return
        self._advance(t, worker)
        # Half a step passes on average before it is taken in.
        self.first[r] = t + 0.5 * self.pace[len(self.held[worker]) + 1]
        heappush(self.held[worker], (self.clock[worker] + self.tokens[r], r))
        self._schedule(worker)

    def _advance(self, t: float, worker: int) -> None:
        n = len(self.held[worker])
        if n:
            self.clock[worker] += (t - self.at[worker]) / self.pace[n]
        self.at[worker] = t

    def _schedule(self, worker: int) -> None:
        self.turn[worker] += 1
        if self.held[worker]:
            left = max(self.held[worker][0][0] - self.clock[worker], 0.0)
            ends = self.at[worker] + left * self.pace[len(self.held[worker])]
            self._put(ends, "ends", (worker << 40) + self.turn[worker])

    def _ends(self, t: float, worker: int) -> None:
        self._advance(t, worker)
        _, r = heappop(self.held[worker])
        self.end[r] = max(t, self.first[r])
        if self.full:
            self._handed(t, self.full.popleft())
        self._schedule(worker)
        if self.closed:
            self._arrive(t)


__all__ = ["Cycle", "Disaggregated", "Walked", "at_concurrency", "cycle_of", "predict_disaggregated", "walk"]
