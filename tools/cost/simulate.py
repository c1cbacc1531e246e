"""A replica, request by request: the second evaluator over the same step costs.

The closed form (`tools.cost.serving`) prices a steady state; this walks one: requests arrive (Poisson, closed loop, or a
trace), wait for a slot and for KV memory, are prefilled chunk by chunk, decode one token per step, and leave. Every step
costs what the partitioned graph says. Out come the percentiles a closed form can only approximate.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tools.cost.curves import Curves
from tools.cost.estimate import Predicted, predict
from tools.cost.serving import Speculation, decode_steps, microbatches, spare_replicas
from tools.cost.steps import Candidates, Layout, Works, layouts
from tools.cost.tables import Table
from tools.spec.base import ToolError
from tools.spec.deployment import Deployment
from tools.spec.strategy import Strategy

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
    max_chunk: int | None = None
    """Most new tokens of one request per step (it lives on one attention-DP rank); None: as the budget has it."""
    cached: float = 0.0
    """Share of every prompt whose KV is found in the prefix cache (its blocks are held all the same)."""
    draft: tuple[float, int] | None = None
    """Speculation: (acceptance of a drafted token, tokens drafted per step)."""
    seed: int = 0
    """Of the accepted drafts."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """`isl`/`osl`/`at`: one entry per request; `at` in seconds, or all zero with `concurrency` set (closed loop)."""

    isl: np.ndarray
    osl: np.ndarray
    at: np.ndarray
    concurrency: int | None = None

    def every(self, n: int) -> Arrivals:
        """The first of every `n` requests, as one of `n` replicas gets them in turn."""
        return replace(self, isl=self.isl[::n], osl=self.osl[::n], at=self.at[::n])


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


def trace_of(at: Sequence[float], isl: Sequence[int], osl: Sequence[int]) -> Arrivals:
    """Recorded requests, in order of arrival; times count from the first one. Raises ToolError for what cannot have been."""
    if not len(at) == len(isl) == len(osl) or not len(at):
        raise ToolError(
            f"a trace needs as many arrivals ({len(at)}) as prompts ({len(isl)}) and outputs ({len(osl)}), and one"
        )
    order = np.argsort(np.asarray(at, float), kind="stable")
    times, prompts, outputs = (np.asarray(x)[order] for x in (np.asarray(at, float), isl, osl))
    if not np.isfinite(times).all() or (prompts < 1).any() or (outputs < 1).any():
        raise ToolError("a trace has an arrival that is no number, or a length below 1")
    return Arrivals(prompts.astype(int), outputs.astype(int), times - times[0])


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
    rng: np.random.Generator = field(default_factory=np.random.default_rng)

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
            r.goal, r.prefilled = r.isl, self.found(r.isl)
            self.waiting.append(r)
            self.next += 1

    def found(self, isl: int) -> int:
        """Prompt tokens in the prefix cache: never all, since the last one must be computed."""
        return min(int(self.scheduler.cached * isl), isl - 1)

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
            victim.goal, victim.prefilled = victim.isl + victim.made, self.found(victim.isl)
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
        repeats = 1 if chunks else self.alike(decoding, cached)
        # Contexts grow by a token each time: the middle one stands for all.
        seconds = repeats * self.step(tokens, context, len(decoding), cached + 0.5 * (repeats - 1) * self.yields)
        self.now += seconds
        self.busy += seconds
        self.steps += repeats
        for r, n in chunks:
            r.prefilled += n
            if r.decoding:
                self.emit(r, 1)
        for r, n in zip(decoding, self.gains(decoding, repeats), strict=True):
            r.prefilled += n
            self.held += 0.0 if self.scheduler.reserve_output else n
            self.emit(r, n)
        self.retire()

    @property
    def yields(self) -> float:
        """Tokens that a step yields per sequence on average."""
        return 1.0 if self.scheduler.draft is None else sum(self.scheduler.draft[0] ** i for i in range(self.most))

    @property
    def most(self) -> int:
        return 1 if self.scheduler.draft is None else 1 + self.scheduler.draft[1]

    def alike(self, decoding: list[_Request], cached: float) -> int:
        """Steps until something can change: a sequence ends, a request arrives or finds a place, the cache is full."""
        n = max(1, min(r.osl - r.made for r in decoding) // self.most)
        if n > 1 and not self.scheduler.reserve_output:
            left = self.scheduler.kv_tokens - self.held
            n = max(1, min(n, int(left / (len(decoding) * self.most))))
        a = self.arrivals
        if n > 1 and a.concurrency is None and self.next < len(a.isl):
            until = float(a.at[self.next]) - self.now
            n = max(1, min(n, math.ceil(until / self.step(0, 0.0, len(decoding), cached))))
        return n

    def gains(self, decoding: list[_Request], repeats: int) -> list[int]:
        """Tokens that each sequence gets in so many steps: one each, and the drafts up to the first rejected one."""
        if self.scheduler.draft is None:
            return [repeats] * len(decoding)
        acceptance, length = self.scheduler.draft
        hits = self.rng.random((len(decoding), repeats, length)) < acceptance
        more = np.cumprod(hits, axis=2).sum(axis=(1, 2))
        return [min(repeats + int(n), r.osl - r.made) for r, n in zip(decoding, more, strict=True)]

    def chunks(self, decoding: int) -> list[tuple[_Request, int]]:
        budget, out = self.scheduler.max_num_batched_tokens - decoding, []
        most = self.scheduler.max_chunk or self.scheduler.max_num_batched_tokens
        for r in self.running:
            if budget <= 0:
                break
            if not r.decoding:
                n = min(budget, most, r.goal - r.prefilled)
                out.append((r, n))
                budget -= n
        return out

    def emit(self, r: _Request, tokens: int) -> None:
        r.made += tokens
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
    replica = _Replica(arrivals, scheduler, step, rng=np.random.default_rng(scheduler.seed))
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
    ends = sorted(e for _, e in counted)
    # From the first departure to the last one: neither the filling before nor the draining after is in it.
    tokens = sum(r.osl for r, _ in counted) * (len(ends) - 1) / len(ends)
    through = tokens / max(ends[-1] - ends[0], 1e-12) if len(ends) > 1 else counted[0][0].osl / max(e2e[0], 1e-12)
    return Outcome(
        ttft, tpot, e2e, through, replica.now, replica.busy / max(replica.now, 1e-12), replica.steps,
        replica.evictions, n,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------- a strategy, simulated


@dataclass(frozen=True, slots=True)
class StepTable:
    """Exact step prices on grids, interpolated between: a StepSeconds. Logarithmic in every coordinate and in the time."""

    prefill: Table
    """(new tokens, their mean context)"""
    decode: Table
    """(sequences, mean context)"""
    mixed: Table
    """(new tokens, their mean context, sequences, their mean context)"""

    def __call__(self, tokens: int, context: float, sequences: int, cached: float) -> float:
        if not tokens:
            return math.exp(self.decode.at([math.log(max(x, 1.0)) for x in (sequences, cached)]))
        if not sequences:
            return math.exp(self.prefill.at([math.log(max(x, 1.0)) for x in (tokens, context)]))
        return math.exp(self.mixed.at([math.log(max(x, 1.0)) for x in (tokens, context, sequences, cached)]))


def step_table(deployment: Deployment, strategy: Strategy, curves: Curves, longest: int) -> StepTable:
    """Prices every grid point with the partitioned graph: one walk over arrays per table.

    With pipeline stages a step is a round: every microbatch once, each with up to max_num_batched_tokens new tokens.
    """
    budget = round_budget(strategy)
    tokens = _grid(min(64, budget), budget, 6)
    batch, context = _grid(1, max(strategy.batch, 1), 7), _grid(64, max(longest, 65), 4)

    def price(axes: tuple[np.ndarray, ...], kind: str) -> Table:
        points = [p.ravel() for p in np.meshgrid(*axes, indexing="ij")]
        ((_, layout),) = layouts(deployment, curves, Candidates.of(strategy).take(np.zeros(len(points[0]), np.int64)))
        names = tuple(str(i) for i in range(len(axes)))
        seconds = _price(layout, points, kind)
        return Table(names, tuple(a.astype(float) for a in axes), np.log(seconds).reshape([len(a) for a in axes]))

    return StepTable(
        price((tokens, context), "prefill"), price((batch, context), "decode"),
        price((tokens, context, batch, context), "mixed"),
    )  # fmt: skip


def round_budget(s: Strategy) -> int:
    """New tokens that one round of all microbatches takes, on every attention-DP rank."""
    return s.max_num_batched_tokens * s.pp * (s.attn_dp or 1)


def _grid(low: int, high: int, count: int) -> np.ndarray:
    return np.unique(np.round(np.geomspace(low, max(high, low), count)).astype(np.int64))


def _price(layout: Layout, points: list[np.ndarray], kind: str) -> np.ndarray:
    """Seconds that a step keeps the replica busy: with pipeline stages, a round of all microbatches."""
    if kind == "decode":
        return np.asarray(_round(layout, points[0], points[1])[0])
    new, prompts, chunks = _chunks(layout, points[0], points[1])
    slower = layout.engine.eager
    if kind == "prefill":
        step = layout.step(new, prompts)
        return np.asarray(slower * np.maximum(step.latency, chunks * step.slowest))
    seconds, old, size = _round(layout, points[2], points[3])
    extra = layout.step(layout.mixed(new, old), size + prompts).minus(layout.step(old, size))
    # The other microbatches wait for a chunk at every stage, whether or not they carry one themselves.
    return np.asarray(seconds + slower * extra.latency)


def _round(layout: Layout, batch: np.ndarray, context: np.ndarray) -> tuple[np.ndarray, Works, np.ndarray]:
    """(seconds of a step that decodes `batch` sequences, kernels and sequences of one microbatch)."""
    between, _, works = decode_steps(layout, batch, context)
    _, size = microbatches(layout, batch)
    return between * Speculation.of(layout.deployment.workload).accepted, works, size


def _chunks(layout: Layout, tokens: np.ndarray, context: np.ndarray) -> tuple[Works, np.ndarray, np.ndarray]:
    """(kernels of one microbatch's part of so many new tokens, prompts they belong to, microbatches that carry some).

    What is longer than one prompt belongs to several: attention-DP ranks share them, and none attends another's.
    """
    isl = max(1, layout.deployment.workload.isl)
    budget = layout.cands.max_num_batched_tokens * layout.cands.attn_dp
    chunks = np.maximum(-(-tokens // budget), 1)
    each = np.maximum(tokens // chunks, 1)
    prompts = -(-each // isl)
    each = np.maximum(each // prompts, 1)
    return layout.works("prefill", prompts, each, np.maximum(context, each)), prompts, chunks


@dataclass(frozen=True, slots=True)
class Simulated:
    """One replica, request by request; rates are of all replicas."""

    outcome: Outcome
    output_tok_s: float
    goodput: float
    """Share of requests that meet the limits given."""

    def percentiles(self, metric: str) -> dict[str, float]:
        """p50, p90, p95, p99 of ttft, tpot or e2e, seconds."""
        return {f"p{q}": self.outcome.percentile(metric, q / 100) for q in (50, 90, 95, 99)}


def simulate_strategy(
    deployment: Deployment,
    strategy: Strategy,
    curves: Curves,
    *,
    requests: int = 1000,
    concurrency: int | None = None,
    rate: float | None = None,
    trace: Arrivals | None = None,
    spread: tuple[float, float] = (1.0, 1.0),
    ttft_limit: float = np.inf,
    tpot_limit: float = np.inf,
    seed: int = 0,
) -> Simulated:
    """`requests` through one replica of `strategy`, at `concurrency` (closed loop) or `rate` (Poisson) over all replicas,
    or as a `trace` has them, dealt out to the replicas in turn.

    None of them given: the workload's load. `spread`: lengths uniform in that share of isl and osl. Raises ToolError when
    the replica cannot hold one request.
    """
    w = deployment.workload
    if concurrency is None and rate is None and trace is None:
        rate = w.request_rate * w.peak_factor if w.request_rate else None
        concurrency = None if rate else w.concurrency or strategy.batch * strategy.dp
    p = predict(deployment, strategy, curves, concurrency=concurrency)
    if p.max_batch < 1:
        raise ToolError(f"{strategy.label()} cannot hold one sequence of {w.context} tokens: nothing to simulate")
    s, engine, replicas = p.strategy, curves.engine(p.strategy.engine), _replicas(p)
    seats = p.max_batch if concurrency is not None else min(p.max_batch, max(s.batch, 1))
    s = s.model_copy(update={"batch": min(seats, -(-concurrency // replicas)) if concurrency is not None else seats})
    rng = np.random.default_rng(seed)
    if trace is not None:
        arrivals = trace.every(replicas)
    else:
        isl, osl = (lengths(n, requests, *spread, rng) for n in (w.isl, w.osl))
        arrivals = (
            closed_loop(isl, osl, max(1, concurrency // replicas)) if concurrency is not None
            else poisson(isl, osl, (rate or 1.0) / replicas, rng)
        )  # fmt: skip
    longest = int((arrivals.isl + arrivals.osl).max())
    spec = Speculation.of(w)
    scheduler = Scheduler(
        s.batch, round_budget(s), float(max(p.max_batch * w.context, longest)), engine.mixed, engine.reserve_output,
        s.max_num_batched_tokens, p.load.cached, (w.draft_acceptance or 0.0, spec.length) if spec.length else None, seed,
    )  # fmt: skip
    outcome = simulate(arrivals, scheduler, step_table(deployment, s, curves, longest))
    # The host launches a prefill pass kernel by kernel: no first token before it is through.
    first = np.maximum(outcome.ttft, float(p.performance.steps.launches[0]) * engine.launch_s) + engine.prefill_s
    outcome = replace(outcome, ttft=first, e2e=outcome.e2e + first - outcome.ttft)
    return Simulated(outcome, outcome.output_tok_s * replicas, outcome.goodput(ttft_limit, tpot_limit))


def _replicas(p: Predicted) -> int:
    """Those in service."""
    w = p.layout.deployment.workload
    gone = int(spare_replicas(p.layout.deployment, p.layout.cands)[0]) if w.spare_replicas or w.spare_nodes else 0
    return max(1, p.strategy.dp - gone)
