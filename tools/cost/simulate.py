"""A replica, request by request: the second evaluator over the same step costs.

The closed form (`tools.cost.serving`) prices a steady state; this walks one: requests arrive (Poisson, closed loop, or a
trace), wait for a slot and for KV memory, are prefilled chunk by chunk, decode one token per step, and leave. Every step
costs what the partitioned graph says. Out come the percentiles a closed form can only approximate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

StepSeconds = Callable[[int, float, int, float], float]
"""(prefill tokens, their mean context, decoding sequences, their mean context) → seconds of one step."""


@dataclass(frozen=True, slots=True)
class Scheduler:
    """What the engine decides per step. `mixed`: prefill chunks ride with decodes; else prefill goes first, alone."""

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: float
    """KV positions that fit on a replica."""
    mixed: bool = True
    reserve_output: bool = False
    """KV for the whole output is held from the start; else it grows, and the youngest request is evicted when full."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """`isl`/`osl`/`at`: one entry per request; `at` in seconds, or all zero with `concurrency` set (closed loop)."""

    isl: np.ndarray
    osl: np.ndarray
    at: np.ndarray
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Per request, in seconds; requests of the warm-up and of the drain are left out of the statistics."""

    ttft: np.ndarray
    tpot: np.ndarray
    e2e: np.ndarray
    output_tok_s: float
    makespan: float
    busy: float
    steps: int
    evictions: int
    finished: int

    def percentile(self, metric: str, q: float) -> float:
        values = {"ttft": self.ttft, "tpot": self.tpot, "e2e": self.e2e}[metric]
        return float(np.quantile(values, q)) if len(values) else float("nan")

    def goodput(self, ttft_limit: float = np.inf, tpot_limit: float = np.inf) -> float:
        """Share of requests that meet both limits."""
        return float(((self.ttft <= ttft_limit) & (self.tpot <= tpot_limit)).mean()) if len(self.ttft) else 0.0


def lengths(mean: int, count: int, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """Uniform integers in [low, high] x mean; `low == high == 1` gives the exact length."""
    return np.maximum(1, rng.integers(round(low * mean), round(high * mean) + 1, size=count))


def closed_loop(isl: np.ndarray, osl: np.ndarray, concurrency: int) -> Arrivals:
    """`concurrency` requests in flight, each replaced when it ends."""
    return Arrivals(isl, osl, np.zeros(len(isl)), concurrency)


def poisson(isl: np.ndarray, osl: np.ndarray, rate: float, rng: np.random.Generator) -> Arrivals:
    """Exponential gaps of mean 1/rate seconds."""
    return Arrivals(isl, osl, np.cumsum(rng.exponential(1.0 / rate, size=len(isl))))


@dataclass(slots=True)
class _Request:
    index: int
    isl: int
    osl: int
    at: float
    prefilled: int = 0
    """Positions in the cache: prompt tokens processed, then generated ones too."""
    goal: int = 0
    """Positions to prefill before decoding (after an eviction: prompt and what was generated)."""
    made: int = 0
    first: float = -1.0

    @property
    def decoding(self) -> bool:
        return self.prefilled >= self.goal


@dataclass(slots=True)
class _Replica:
    arrivals: Arrivals
    scheduler: Scheduler
    step: StepSeconds
    now: float = 0.0
    busy: float = 0.0
    steps: int = 0
    evictions: int = 0
    held: float = 0.0
    next: int = 0
    waiting: deque[_Request] = field(default_factory=deque)
    running: list[_Request] = field(default_factory=list)
    done: list[tuple[_Request, float]] = field(default_factory=list)

    def need(self, r: _Request) -> float:
        return r.goal + (r.osl - r.made if self.scheduler.reserve_output else 1)

    def arrive(self) -> None:
        a = self.arrivals
        while self.next < len(a.isl):
            if a.concurrency is not None:
                if len(self.waiting) + len(self.running) >= a.concurrency:
                    return
                at = self.now
            elif a.at[self.next] <= self.now:
                at = float(a.at[self.next])
            else:
                return
            r = _Request(self.next, int(a.isl[self.next]), int(a.osl[self.next]), at)
            r.goal = r.isl
            self.waiting.append(r)
            self.next += 1

    def admit(self) -> None:
        s = self.scheduler
        while self.waiting and len(self.running) < s.max_num_seqs:
            r = self.waiting[0]
            if self.held + self.need(r) > s.kv_tokens and self.running:
                return
            self.held += self.need(r)
            self.running.append(self.waiting.popleft())

    def make_room(self) -> None:
        """Decoding grows the cache by a position per sequence; when it is full the youngest request starts over."""
        if self.scheduler.reserve_output:
            return
        growing = sum(1 for r in self.running if r.decoding)
        while self.held + growing > self.scheduler.kv_tokens and len(self.running) > 1:
            victim = self.running.pop()
            self.held -= max(victim.prefilled, victim.goal) + 1
            growing -= victim.decoding
            victim.goal, victim.prefilled = victim.isl + victim.made, 0
            self.waiting.appendleft(victim)
            self.evictions += 1

    def run_step(self) -> None:
        decoding = [r for r in self.running if r.decoding]
        chunks = self.chunks(0 if not self.scheduler.mixed else len(decoding))
        if chunks and not self.scheduler.mixed:
            decoding = []
        tokens = sum(n for _, n in chunks)
        context = sum((r.prefilled + n) * n for r, n in chunks) / tokens if tokens else 0.0
        cached = sum(r.prefilled for r in decoding) / len(decoding) if decoding else 0.0
        seconds = self.step(tokens, context, len(decoding), cached)
        self.now += seconds
        self.busy += seconds
        self.steps += 1
        for r, n in chunks:
            r.prefilled += n
            if r.decoding:
                self.emit(r)
        for r in decoding:
            r.prefilled += 1
            self.held += 0.0 if self.scheduler.reserve_output else 1.0
            self.emit(r)
        self.retire()

    def chunks(self, decoding: int) -> list[tuple[_Request, int]]:
        budget, out = self.scheduler.max_num_batched_tokens - decoding, []
        for r in self.running:
            if budget <= 0:
                break
            if not r.decoding:
                n = min(budget, r.goal - r.prefilled)
                out.append((r, n))
                budget -= n
        return out

    def emit(self, r: _Request) -> None:
        r.made += 1
        if r.first < 0:
            r.first = self.now

    def retire(self) -> None:
        stay = []
        for r in self.running:
            if r.made >= r.osl:
                self.held -= r.isl + r.osl if self.scheduler.reserve_output else max(r.prefilled, r.goal) + 1
                self.done.append((r, self.now))
            else:
                stay.append(r)
        self.running = stay


def simulate(
    arrivals: Arrivals, scheduler: Scheduler, step: StepSeconds, *, warm_up: float = 0.2, drain: float = 0.1
) -> Outcome:
    """Runs until every request has left. The first `warm_up` and last `drain` shares of requests are not counted.

    Raises ValueError when a single request needs more KV positions than there are.
    """
    longest = float((arrivals.isl + arrivals.osl).max(initial=0))
    if longest > scheduler.kv_tokens:
        raise ValueError(
            f"a request of {longest:.0f} positions does not fit into {scheduler.kv_tokens:.0f} KV positions"
        )
    replica = _Replica(arrivals, scheduler, step)
    while True:
        replica.arrive()
        replica.admit()
        replica.make_room()
        if not replica.running:
            if replica.next >= len(arrivals.isl):
                break
            replica.now = max(replica.now, float(arrivals.at[replica.next]))
            continue
        replica.run_step()
    return _outcome(replica, warm_up, drain)


def _outcome(replica: _Replica, warm_up: float, drain: float) -> Outcome:
    n = len(replica.done)
    rows = sorted(replica.done, key=lambda d: d[0].index)
    counted: Sequence[tuple[_Request, float]] = rows[int(n * warm_up) : n - int(n * drain)] or rows
    ttft = np.array([r.first - r.at for r, _ in counted])
    tpot = np.array([(end - r.first) / max(1, r.osl - 1) for r, end in counted])
    e2e = np.array([end - r.at for r, end in counted])
    begin, end = min(r.first for r, _ in counted), max(e for _, e in counted)
    tokens = sum(r.osl for r, _ in counted)
    return Outcome(
        ttft, tpot, e2e, tokens / max(end - begin, 1e-12), replica.now, replica.busy / max(replica.now, 1e-12), replica.steps,
        replica.evictions, n,
    )  # fmt: skip
