"""Requests over steps: TTFT, TPOT and throughput of one replica in closed form, for arrays of candidates.

A replica runs steps. A step carries up to `batch` decodes and, where the engine mixes, up to max_num_batched_tokens new
prompt tokens. Per request the replica spends s on its prefill (the time that chunks add to steps) and its share of the
decode steps; with B sequences decoding, throughput is 1 / (s + (osl-1) · t(B)/B).

    closed loop  n requests in flight; B and the queue before prefill follow from mean-value analysis of two stations,
                 one that serves prefills one after another and one that decodes all at once
    open loop    Poisson arrivals; B from Little's law, the queue from M/D/1
    together     a batch arrives at once: TTFT is the prefill of the whole batch
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tools.cost.compute import Num
from tools.cost.steps import Layout, StepTime, Works
from tools.spec.workload import Workload

Z = {"p50": 0.0, "p90": 1.2816, "p95": 1.6449, "p99": 2.3263, "max": 3.0902}
"""Quantiles of the normal distribution."""
QUANTILE = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99, "max": 0.999}
"""`max` is read as one request in a thousand."""
ROUNDS = 16
"""Of the fixed point between the two stations; each round halves what is left of the error."""
SATURATED = 0.98
"""Share of a replica's time that waiting formulas are evaluated at when the load reaches all of it."""

Mode = Literal["closed", "open", "together"]


@dataclass(frozen=True, slots=True)
class Load:
    """What arrives at the whole deployment."""

    mode: Mode
    isl: int
    osl: int
    concurrency: Num | None = None
    """closed: requests in flight over all replicas; None: as many as the batch of every replica."""
    rate: float | None = None
    """open: requests per second over all replicas."""
    cached: float = 0.0
    """Share of the prompt whose KV is already there."""
    cold_start: bool = False
    """closed: the mean over a benchmark run whose requests all start at once, not the steady state."""
    requests: int | None = None
    """closed: the run is over after so many; None: steady state."""
    equal_lengths: bool = False
    """With cold_start: lengths are exact, so that an engine that prefills first keeps its requests in step."""

    @classmethod
    def of(cls, w: Workload, *, concurrency: int | None = None, max_throughput: bool = False) -> Load:
        base: dict[str, Any] = {
            "isl": max(1, w.isl),
            "osl": max(1, w.osl),
            "cached": min(max(w.prefix_hit_rate, 0.0), 1.0),
        }
        if max_throughput:
            return cls("closed", **base)
        if concurrency is not None:
            return cls("closed", concurrency=concurrency, **base)
        if w.request_rate is not None:
            return cls("open", rate=w.request_rate * w.peak_factor, **base)
        if w.concurrency is not None:
            return cls("closed", concurrency=w.concurrency, **base)
        if w.batch_size is not None:
            return cls("together", **base)
        return cls("closed", **base)


@dataclass(frozen=True, slots=True)
class Steps:
    """Step times a load needs. `decode` at `b_high` and `b_low` sequences; `mixed`: a decode step with a chunk."""

    b_high: np.ndarray
    b_low: np.ndarray
    high: np.ndarray
    low: np.ndarray
    """Time between two tokens of a sequence, with b_high and b_low sequences in the replica."""
    decode: StepTime
    """One microbatch of b_high."""
    mixed: StepTime
    prefill: StepTime
    prompts: np.ndarray
    """Prompts that one prefill step works on."""
    chunks: np.ndarray
    """Steps a prompt takes."""
    queue_share: np.ndarray
    """Prompts that can share one step when several wait, over `prompts`."""
    packed: StepTime
    """A prefill step filled up with waiting prompts: `prompts` x `queue_share` of them."""
    launches: np.ndarray
    """Kernels of one prefill pass."""
    decode_works: Works
    """Kernels of `decode`."""
    prefill_works: Works

    def between_tokens(self, batch: Num) -> Num:
        """Linear in the batch between the two points that were priced, and beyond."""
        slope = (self.high - self.low) / np.maximum(self.b_high - self.b_low, 1e-9)
        line = self.high + slope * (batch - self.b_high)
        return np.maximum(np.where(self.b_high > self.b_low, line, self.high), 0.2 * self.high)


@dataclass(frozen=True, slots=True)
class Performance:
    """Per candidate; times in seconds, rates over the whole deployment."""

    ttft: np.ndarray
    tpot: np.ndarray
    ttft_percentiles: Mapping[str, np.ndarray]
    tpot_percentiles: Mapping[str, np.ndarray]
    e2e: np.ndarray
    request_rate: np.ndarray
    output_tok_s: np.ndarray
    input_tok_s: np.ndarray
    concurrency: np.ndarray
    decoding: np.ndarray
    """Mean sequences decoding per replica."""
    burst_ttft: np.ndarray
    stable: np.ndarray
    """False: the load exceeds what the replica can serve."""
    capacity_rate: np.ndarray
    """Requests per second at full batch, all replicas."""
    steps: Steps
    prefill_share: np.ndarray
    """Share of time spent on prefill."""
    busy: np.ndarray
    replicas: np.ndarray


def microbatches(layout: Layout, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(number in flight, sequences of each): as many as stages, if there are sequences for them."""
    count = np.minimum(layout.cands.pp, np.maximum(batch, 1))
    return count, -(-batch // count)


def decode_steps(layout: Layout, batch: np.ndarray, context: Num) -> tuple[np.ndarray, StepTime, Works]:
    """(time between two tokens of a sequence, one microbatch's pass, its kernels) with `batch` sequences decoding."""
    count, size = microbatches(layout, batch)
    works = layout.works("decode", size, np.ones_like(size), context)
    step = layout.step(works, size)
    return np.maximum(step.latency, count * step.slowest), step, works


def prefill_shape(layout: Layout, load: Load, in_flight: np.ndarray) -> tuple[np.ndarray, ...]:
    """(prompts per step, new tokens per step and prompt, chunks per prompt, mean context of a chunk)."""
    budget = layout.cands.max_num_batched_tokens
    new = max(1, math.ceil(load.isl * (1.0 - load.cached)))
    chunks = np.maximum(-(-new // budget), 1)
    tokens = -(-new // chunks)
    # Chunk j of c ends at cached + j·tokens: linear, so their mean prices them all.
    context = (load.isl - new) + np.ceil(tokens * (chunks + 1) / 2).astype(np.int64)
    # A lone prompt occupies one attention-DP rank; a scheduler that holds prompts back fills them all.
    together = layout.cands.attn_dp if load.cold_start and layout.engine.attn_dp_wait_steps else np.ones_like(in_flight)
    prompts = np.minimum(together, np.maximum(in_flight, 1))
    return prompts, tokens, chunks, np.maximum(context, tokens)


def price_steps(layout: Layout, load: Load, batch: np.ndarray, *, whole_batch: bool = False) -> Steps:
    """Step times around `batch` sequences per replica."""
    batch = np.maximum(batch, 1).astype(np.int64)
    low = np.maximum(batch // 2, 1)
    context = load.isl + max(1, load.osl // 2)
    high_time, high_step, high_works = decode_steps(layout, batch, context)
    low_time = (
        np.where(low < batch, decode_steps(layout, low, context)[0], high_time) if (low < batch).any() else high_time
    )
    prompts, tokens, chunks, kv = prefill_shape(layout, load, batch)
    room = np.maximum(layout.cands.max_num_batched_tokens // tokens, 1) * layout.cands.attn_dp
    # As many prompts join a step as sequences end in one, if the step has room for them.
    prompts = np.clip(np.round(batch / load.osl).astype(np.int64), prompts, np.maximum(room, prompts))
    if whole_batch:
        prompts = np.minimum(batch, room)
    prefill = layout.works("prefill", prompts, tokens, kv)
    alone = layout.step(prefill, prompts)
    if layout.engine.mixed:
        _, size = microbatches(layout, batch)
        mixed = layout.step(layout.mixed(prefill, high_works), size + prompts)
    else:
        mixed = StepTime(alone.latency + high_step.latency, alone.slowest + high_step.slowest)
    queue_share = np.clip(
        np.maximum(batch, 1) // np.maximum(prompts, 1), 1, np.maximum(room // np.maximum(prompts, 1), 1)
    )
    packed = alone
    if (queue_share > 1).any():
        packed = layout.step(layout.works("prefill", prompts * queue_share, tokens, kv), prompts * queue_share)
    return Steps(
        batch, low, high_time, low_time, high_step, mixed, alone, prompts, chunks, queue_share, packed,
        layout.launches(prefill), high_works, prefill,
    )  # fmt: skip


def serve(layout: Layout, load: Load) -> Performance:
    """Performance of every candidate of `layout` at `load`; its `batch` is the cap on sequences per replica."""
    cap = layout.cands.batch
    if load.mode == "open":
        return _open(layout, load)
    if load.mode == "together":
        return _together(layout, load)
    n = cap if load.concurrency is None else -(-np.asarray(load.concurrency) // layout.cands.dp)
    n = np.broadcast_to(np.asarray(n, np.int64), cap.shape)
    if load.requests is None:
        return _closed(layout, load, n)
    mine = max(1, load.requests // max(1, int(np.max(layout.cands.dp))))
    return _finite(load, _closed(layout, load, np.minimum(n, mine)), mine)


def _finite(load: Load, perf: Performance, requests: int) -> Performance:
    """A run of `requests` per replica: its steady part, and what the last requests waste.

    Where prompts are short beside the outputs, requests of equal length move in waves, the last of them not full; where
    prefill takes most of a cycle they are spread evenly, and the batch drains over the life of one request. Between the
    two the share of prefill in the cycle decides.
    """
    steps, gaps = perf.steps, max(load.osl - 1, 1)
    batch = np.minimum(steps.b_high, requests).astype(float)
    rate = perf.request_rate / perf.replicas
    last = requests - batch * (np.ceil(requests / batch) - 1)
    life = batch / rate
    slope = np.maximum(steps.high - steps.between_tokens(last), 0.0) / np.maximum(batch - last, 1e-9)
    short = life - np.where(last < batch, slope * gaps * (batch - last), 0.0)
    waves = np.where(last < batch, short - last / batch * life, 0.0)
    fixed = np.maximum(steps.high - (steps.high - steps.low) / np.maximum(batch - steps.b_low, 1e-9) * batch, 0.0)
    drain = np.where(requests > batch, 0.5 * gaps * fixed, 0.0)
    mixed = np.clip(perf.prefill_share, 0.0, 1.0)
    seconds = requests / rate + (1.0 - mixed) * np.maximum(waves, 0.0) + mixed * drain
    slower = requests / rate / seconds
    return replace(
        perf, request_rate=perf.request_rate * slower, output_tok_s=perf.output_tok_s * slower,
        input_tok_s=perf.input_tok_s * slower,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prefill:
    """Costs of one request's prefill."""

    added: Num
    """Time it adds to the replica's schedule."""
    service: Num
    """Time between two prompts leaving when many wait."""
    latency: Num
    """From its first chunk's start to its first token."""


def _prefill(layout: Layout, steps: Steps) -> Prefill:
    extra = steps.mixed.minus(steps.decode)
    added = steps.chunks * extra.slowest / steps.prompts
    base = steps.decode.slowest if layout.engine.mixed else 0.0
    # When prompts wait, a step takes as many as it has room for.
    queued = np.minimum(extra.slowest, steps.packed.slowest / steps.queue_share)
    service = steps.chunks * (queued + base / steps.queue_share) / steps.prompts
    if layout.engine.mixed:
        latency = steps.mixed.latency + (steps.chunks - 1) * steps.mixed.slowest
    else:
        latency = steps.prefill.latency + (steps.chunks - 1) * steps.prefill.slowest
    # Prefill passes are launched kernel by kernel: the first token waits for the host where the device is faster.
    # The device is not held up: the host is ahead again while decodes replay their graphs.
    return Prefill(added, service, np.maximum(latency, steps.launches * layout.engine.launch_s))


def _closed(layout: Layout, load: Load, n: np.ndarray) -> Performance:
    cap = np.maximum(layout.cands.batch, 1)
    inside = np.minimum(n, cap)
    steps = price_steps(layout, load, inside)
    p = _prefill(layout, steps)
    gaps = load.osl - 1
    others = (inside - 1) / inside
    response: Num = p.latency
    wait: Num = 0.0
    t, decode = steps.between_tokens(inside), gaps * steps.between_tokens(inside)
    in_step = load.cold_start and load.equal_lengths and not layout.engine.mixed
    for _ in range(ROUNDS):
        decode = _decode_time(gaps * t, response, (inside - 1) * p.added)
        if in_step:
            # All prefills come in one wave, before all decodes; half of the others' fall behind a request's own.
            decode = gaps * t + 0.5 * (inside - 1) * p.added
        t = steps.between_tokens(1.0 + (inside - 1) * decode / (response + decode))
        wait = 0.5 * (inside - 1) * p.added if in_step else _closed_wait(inside, p.service, decode)
        response = 0.5 * (response + 0.5 * t * others + wait + p.latency)
    rate = inside / (response + decode)
    decoding = inside * np.clip(decode * rate / inside, 0.0, 1.0)
    # Requests beyond the batch wait outside for a place.
    outside = np.maximum(n - inside, 0) / rate
    tpot = decode / max(gaps, 1) if gaps else steps.between_tokens(inside)
    if not in_step:
        wait = _closed_wait(inside, p.service, decode)
    ttft = response + outside + layout.engine.prefill_s
    if load.cold_start:
        # Attention-DP schedulers hold prompts back for some steps so that all ranks prefill at once.
        ttft = ttft + np.where(layout.cands.attn_dp > 1, layout.engine.attn_dp_wait_steps * tpot, 0.0)
    if load.cold_start and not in_step:
        ttft = ttft + layout.curves.cold_start.share * (_burst(layout, steps, inside) - p.latency).clip(0.0)
    used = np.minimum(rate * p.added, 1.0)
    spread = _Spread(
        base=ttft - wait, wait=wait, ceiling=(inside - 1) * p.service, load=np.minimum(rate * p.service, SATURATED)
    )
    return _performance(layout, load, steps, p, rate, ttft, tpot, decoding, spread, n, np.ones(len(inside), bool), used)


def _decode_time(alone: Num, response: Num, interference: Num) -> Num:
    """D = alone + interference·D/(R+D): the prefills of the n-1 others that fall into the decoding part of a cycle."""
    b = response - alone - interference
    return (-b + np.sqrt(b * b + 4.0 * alone * response)) / 2.0


def _closed_wait(n: np.ndarray, service: Num, decode: Num) -> Num:
    """Queue before prefill with n circulating requests (Schweitzer's mean-value analysis, one queue and one delay):
    R = s·(1 + (n-1)·R/(R+D)) → R² + (D - s·n)·R - s·D = 0; half of the wait, because
    service is not random but constant."""
    b = decode - service * n
    r = (-b + np.sqrt(b * b + 4.0 * service * decode)) / 2.0
    return np.maximum(r - service, 0.0) * 0.5


def _open(layout: Layout, load: Load) -> Performance:
    assert load.rate is not None
    cap = np.maximum(layout.cands.batch, 1)
    rate = np.full(len(cap), load.rate) / layout.cands.dp
    gaps = load.osl - 1
    full = price_steps(layout, load, cap)
    p_full = _prefill(layout, full)
    capacity = 1.0 / (p_full.added + gaps * full.high / cap)
    guess = cap
    steps, p = full, p_full
    decode = gaps * full.high
    for _ in range(3):
        used = np.minimum(rate * p.added, SATURATED)
        slope = (steps.high - steps.low) / np.maximum(steps.b_high - steps.b_low, 1)
        intercept = np.maximum(steps.high - slope * steps.b_high, 0.2 * steps.high)
        # D = gaps·(t0 + t1·rate·D)/(1 - used), Little's law inside.
        room = 1.0 - used - gaps * slope * rate
        decode = np.where(room > 0.02, gaps * intercept / np.maximum(room, 0.02), cap / rate)
        guess = np.clip(np.ceil(rate * decode), 1, cap).astype(np.int64)
        steps = price_steps(layout, load, guess)
        p = _prefill(layout, steps)
    stable = (rate < capacity) & (rate * p.service < 1.0) & (rate * decode <= cap)
    rho = np.minimum(rate * p.service, SATURATED)
    wait = rho * p.service / (2.0 * (1.0 - rho))
    base = 0.5 * steps.high * np.minimum(rate * decode, 1.0) + p.latency + layout.engine.prefill_s
    tpot = decode / max(gaps, 1) if gaps else steps.high
    spread = _Spread(base=base, wait=wait, ceiling=np.full(len(cap), np.inf), load=rho)
    in_flight = rate * (base + wait + decode) * 1.0
    perf = _performance(
        layout, load, steps, p, np.minimum(rate, capacity), base + wait, tpot, rate * decode, spread, in_flight, stable,
        np.minimum(rate * p.added, 1.0),
    )  # fmt: skip
    busy = np.minimum(1.0, rate * p.added + np.minimum(rate * decode, 1.0))
    return replace(perf, capacity_rate=capacity * layout.cands.dp, busy=busy)


def _together(layout: Layout, load: Load) -> Performance:
    batch = np.maximum(layout.cands.batch, 1)
    steps = price_steps(layout, load, batch, whole_batch=True)
    passes = -(-batch // steps.prompts) * steps.chunks
    ttft = steps.prefill.latency + (passes - 1) * steps.prefill.slowest + layout.engine.prefill_s
    tpot = steps.high
    p = _prefill(layout, steps)
    rate = batch / (ttft + (load.osl - 1) * tpot)
    zero = np.zeros(len(batch))
    spread = _Spread(base=ttft, wait=zero, ceiling=zero, load=zero)
    decoding = batch.astype(float)
    used = ttft * rate / batch
    perf = _performance(
        layout, load, steps, p, rate, ttft, tpot, decoding, spread, batch, np.ones(len(batch), bool), used
    )
    return replace(perf, tpot_percentiles=dict.fromkeys(perf.tpot_percentiles, tpot), burst_ttft=ttft)


@dataclass(frozen=True, slots=True)
class _Spread:
    """Distribution of TTFT: a constant plus a wait, exponential in its tail, bounded in a closed loop."""

    base: Num
    wait: Num
    ceiling: Num
    load: Num

    def quantile(self, q: float) -> Num:
        """P(W > t) = ρ·exp(-ρ·t/W̄), the M/G/1 tail whose mean is W̄."""
        rho = np.maximum(self.load, 1e-12)
        t = np.where(rho > 1 - q, self.wait / rho * np.log(np.maximum(rho / (1 - q), 1.0)), 0.0)
        return self.base + np.minimum(t, self.ceiling)


def _performance(
    layout: Layout, load: Load, steps: Steps, p: Prefill, rate: Num, ttft: Num, tpot: Num, decoding: Num,
    spread: _Spread, in_flight: Num, stable: Num, used: Num,
) -> Performance:  # fmt: skip
    dp, gaps = layout.cands.dp, load.osl - 1
    total = rate * dp
    # Prefills of others that fall into one request's decoding: Poisson, so their spread is the square root of their
    # number.
    met = rate * tpot * gaps
    jitter = np.sqrt(np.maximum(met, 0.0)) * p.added / max(gaps, 1)
    return Performance(
        ttft=ttft, tpot=tpot, ttft_percentiles={k: spread.quantile(q) for k, q in QUANTILE.items()},
        tpot_percentiles={k: tpot + z * jitter for k, z in Z.items()}, e2e=ttft + gaps * tpot, request_rate=total,
        output_tok_s=total * load.osl, input_tok_s=total * load.isl, concurrency=np.asarray(in_flight) * dp,
        decoding=decoding, burst_ttft=_burst(layout, steps, in_flight), stable=stable, capacity_rate=total, steps=steps,
        prefill_share=used, busy=np.ones(len(dp)), replicas=dp,
    )  # fmt: skip


def _burst(layout: Layout, steps: Steps, in_flight: Num) -> Num:
    """First token of the last of `in_flight` requests that arrive at the same moment."""
    n = np.maximum(np.ceil(np.asarray(in_flight, float)), 1)
    passes = np.ceil(n / (steps.prompts * steps.queue_share)) * steps.chunks
    return steps.packed.latency + (passes - 1) * steps.packed.slowest + layout.engine.prefill_s


def at_concurrency(load: Load, concurrency: int) -> Load:
    return replace(load, mode="closed", concurrency=concurrency, rate=None)
