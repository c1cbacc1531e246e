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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from tools.cost.compute import Num
from tools.cost.known import distinct
from tools.cost.steps import Candidates, Layout, StepTime, Works
from tools.memory import parameters_by_role
from tools.spec.deployment import Deployment
from tools.spec.model import ModelSpec
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
    length_deviation: float = 0.0
    """Standard deviation of the lengths over their mean. 0, with cold_start: an engine that prefills first keeps its
    requests in step."""

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
        return self.line()(batch)

    def line(self) -> Callable[[Num], Num]:
        """`between_tokens`, for those who ask often."""
        spread = self.b_high - self.b_low
        slope = np.where(spread > 0, (self.high - self.low) / np.maximum(spread, 1), 0.0)
        high, b_high, least = self.high, self.b_high, 0.2 * self.high
        return lambda batch: np.maximum(high + slope * (batch - b_high), least)


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


DRAFT_LENGTH = 3
"""Tokens drafted per step where nobody says: what engines' recipes for MTP and EAGLE set."""


@dataclass(frozen=True, slots=True)
class Speculation:
    """Tokens drafted per step, and tokens that a step yields on average; (0, 1): no speculation."""

    length: int = 0
    accepted: float = 1.0

    @classmethod
    def of(cls, w: Workload) -> Speculation:
        """1 + α + … + α^γ = (1 - α^(γ+1)) / (1 - α): the drafts up to the first rejected one, and the token that the
        verification itself yields."""
        if w.draft_acceptance is None or w.draft_length == 0:
            return cls()
        alpha, length = min(max(w.draft_acceptance, 0.0), 1.0), w.draft_length or DRAFT_LENGTH
        return cls(length, sum(alpha**i for i in range(length + 1)))


def decode_steps(layout: Layout, batch: np.ndarray, context: Num) -> tuple[np.ndarray, StepTime, Works]:
    """(time between two tokens of a sequence, one microbatch's pass, its kernels) with `batch` sequences decoding."""
    spec = Speculation.of(layout.deployment.workload)
    count, size = microbatches(layout, batch)
    works = layout.works("decode", size, np.full_like(size, 1 + spec.length), context)
    step = layout.step(works, size)
    if spec.length:
        drafts = spec.length * draft_pass(layout, size, context)
        step = StepTime(step.latency + drafts, step.slowest + drafts)
    return np.maximum(step.latency, count * step.slowest) / spec.accepted, step, works


def draft_pass(layout: Layout, size: np.ndarray, context: Num) -> Num:
    """Seconds of drafting one token: a layer of the model and the head, as MTP modules and EAGLE heads are."""
    works = layout.works("decode", size, np.ones_like(size), context)
    kinds = [k for k, _ in layout.decode.layers]
    last = kinds.index(layout.model.layers()[-1])
    if works.row is not None and works.times is not None:
        times = works.times.T
        return (times[1 + last] + times[-1])[works.row]
    return layout.body_time(works.layers[last][1]) + layout.body_time(works.head)


def prefill_shape(layout: Layout, load: Load, in_flight: np.ndarray) -> tuple[np.ndarray, ...]:
    """(prompts per step, new tokens per step and prompt, chunks per prompt, mean context of a chunk)."""
    budget = layout.cands.max_num_batched_tokens
    new = max(1, math.ceil(load.isl * (1.0 - load.cached)))
    slices = layout.cands.origin.seq_slices if layout.cands.origin else 1
    chunks = np.maximum(-(-new // budget), min(slices, new))
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
    high_time, low_time, high_step, high_works = _two_batches(layout, batch, low, context)
    prompts, tokens, chunks, kv = prefill_shape(layout, load, batch)
    room = np.maximum(layout.cands.max_num_batched_tokens // tokens, 1) * layout.cands.attn_dp
    # As many prompts join a step as sequences end in one, if the step has room for them.
    ends = batch * Speculation.of(layout.deployment.workload).accepted / load.osl
    prompts = np.clip(np.round(ends).astype(np.int64), prompts, np.maximum(room, prompts))
    if whole_batch:
        prompts = np.minimum(batch, room)
    queue_share = np.clip(
        np.maximum(batch, 1) // np.maximum(prompts, 1), 1, np.maximum(room // np.maximum(prompts, 1), 1)
    )
    prefill, alone, packed = _two_prefills(layout, prompts, queue_share, tokens, kv)
    if layout.engine.mixed and load.osl > 1:
        _, size = microbatches(layout, batch)
        extra = layout.step(layout.mixed(prefill, high_works), size + prompts).minus(high_step)
    else:
        extra = alone
    slower = layout.engine.eager
    alone, packed, extra = (StepTime(slower * t.latency, slower * t.slowest) for t in (alone, packed, extra))
    mixed = StepTime(high_step.latency + extra.latency, high_step.slowest + extra.slowest)
    return Steps(
        batch, low, high_time, low_time, high_step, mixed, alone, prompts, chunks, queue_share, packed,
        layout.launches(), high_works, prefill,
    )  # fmt: skip


def _two_batches(
    layout: Layout, batch: np.ndarray, low: np.ndarray, context: Num
) -> tuple[np.ndarray, np.ndarray, StepTime, Works]:
    """(time between tokens at `batch` and at `low` sequences, a pass and its kernels at `batch`)."""
    if len(batch) == 1:
        time, step, works = decode_steps(layout, batch, context)
        return time, decode_steps(layout, low, context)[0] if low[0] < batch[0] else time, step, works
    time, step, works = decode_steps(layout, np.stack([batch, low]), context)
    return time[0], time[1], step.part(0), works.part(0)


def _two_prefills(
    layout: Layout, prompts: np.ndarray, queue_share: np.ndarray, tokens: Num, kv: Num
) -> tuple[Works, StepTime, StepTime]:
    """(kernels of a step of `prompts`, its time, the time of one that waiting prompts fill up)."""
    sizes = [prompts, prompts * queue_share]
    if len(prompts) > 1:
        works, both = layout.works("prefill", np.stack(sizes), tokens, kv), np.stack(sizes)
        step = layout.step(works, both)
        return works.part(0), step.part(0), step.part(1)
    works = layout.works("prefill", prompts, tokens, kv)
    alone = layout.step(works, prompts)
    full = layout.step(layout.works("prefill", sizes[1], tokens, kv), sizes[1]) if queue_share[0] > 1 else alone
    return works, alone, full


def serve(layout: Layout, load: Load) -> Performance:
    """Performance of every candidate of `layout` at `load`; its `batch` is the cap on sequences per replica.

    With spare replicas asked for, what is left when they are out of service carries the whole load.
    """
    w = layout.deployment.workload
    if w.spare_replicas or w.spare_nodes:
        left = layout.cands.dp - spare_replicas(layout.deployment, layout.cands)
        perf = _serve(replace(layout, cands=replace(layout.cands, dp=np.maximum(left, 1))), load)
        return replace(perf, stable=perf.stable & (left >= 1))
    return _serve(layout, load)


def spare_replicas(deployment: Deployment, cands: Candidates) -> np.ndarray:
    """Replicas of each candidate that may be out of service: those asked for, and those on the spare nodes."""
    w, per_node = deployment.workload, deployment.cluster.devices_per_node
    on_node = -(-per_node // (cands.num_devices // cands.dp))
    return np.broadcast_to(w.spare_replicas + w.spare_nodes * on_node, cands.dp.shape)


def _serve(layout: Layout, load: Load) -> Performance:
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
    prefill takes most of a cycle, or lengths differ, they are spread evenly, and the batch drains over the life of one
    request. Between the two the share of prefill in the cycle decides, or how far the seats have drifted apart.
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
    mixed = np.clip(np.maximum(perf.prefill_share, drift(load.length_deviation, requests / batch)), 0.0, 1.0)
    seconds = requests / rate + (1.0 - mixed) * np.maximum(waves, 0.0) + mixed * drain
    slower = requests / rate / seconds
    return replace(
        perf, request_rate=perf.request_rate * slower, output_tok_s=perf.output_tok_s * slower,
        input_tok_s=perf.input_tok_s * slower,
    )  # fmt: skip


def drift(deviation: float, rounds: Num) -> Num:
    """How evenly spread over one life the ends of the seats' last requests are, after so many each: the standard deviation
    of the sum of their lengths over that of an even spread, 1/sqrt(12) of a life. At most 1."""
    return np.minimum(deviation * np.sqrt(12.0 * rounds), 1.0)


@dataclass(frozen=True, slots=True)
class Prefill:
    """Costs of one request's prefill."""

    added: Num
    """Time it adds to the replica's schedule."""
    queued: Num
    """Time between two prompts leaving when many wait, but for the decodes that share their steps: `service`."""
    shared: Num
    """Part of a decode step that falls on each of them."""
    latency: Num
    """From its first chunk's start to its first token."""

    def service(self, t: Num, high: Num) -> Num:
        """Time between two prompts leaving when many wait and decodes take `t` rather than `high` between tokens."""
        return self.queued + self.shared * (t / high)


def _prefill(layout: Layout, steps: Steps, load: Load) -> Prefill:
    extra = steps.mixed.minus(steps.decode)
    added = steps.chunks * extra.slowest / steps.prompts * _stalls(layout, steps, load) * _uneven(layout, steps)
    shared = layout.engine.mixed and load.osl > 1  # nothing decodes where the first token is the last
    base = steps.decode.slowest if shared else 0.0
    # When prompts wait, a step takes as many as it has room for.
    queued = np.minimum(extra.slowest, steps.packed.slowest / steps.queue_share)
    per = steps.chunks / steps.prompts
    if shared:
        latency = steps.mixed.latency + (steps.chunks - 1) * steps.mixed.slowest
    else:
        latency = steps.prefill.latency + (steps.chunks - 1) * steps.prefill.slowest
    # Prefill passes are launched kernel by kernel: the first token waits for the host where the device is faster.
    # The device is not held up: the host is ahead again while decodes replay their graphs.
    first = np.maximum(latency, steps.launches * layout.engine.launch_s)
    return Prefill(added, per * queued, base * _steps_each(layout, steps, load), first)


def _steps_each(layout: Layout, steps: Steps, load: Load) -> Num:
    """Steps that a prompt takes when many wait: the share of one that it has with others, or, of a prompt longer than the
    budget, as many as it fills, since the next one takes what its last chunk leaves of a step."""
    new = max(1, math.ceil(load.isl * (1.0 - load.cached)))
    filled = new / (layout.cands.max_num_batched_tokens * layout.cands.attn_dp.astype(float))
    return np.where(steps.chunks > 1, filled, steps.chunks / steps.prompts / steps.queue_share)


def _stalls(layout: Layout, steps: Steps, load: Load) -> Num:
    """Stages that a prompt's chunk holds up, of a pipeline with as many microbatches as stages: while one stage works on
    the chunk the others finish their decodes and wait, unless they have a chunk too. With a share f of the microbatches
    carrying one, a round takes the longest of pp steps: (1 - (1-f)^pp) / f chunks of time for each chunk."""
    pp = layout.cands.pp
    if not (pp > 1).any():
        return 1.0
    ends = steps.b_high / pp * Speculation.of(layout.deployment.workload).accepted / max(load.osl, 1)
    f = np.clip(ends * steps.chunks / steps.prompts, 1e-6, 1.0)
    return np.where(pp > 1, (1.0 - (1.0 - f) ** pp) / f, 1.0)


def _uneven(layout: Layout, steps: Steps) -> Num:
    """How much longer a step with prompts takes because attention-DP ranks get them at random: the rank with the most has
    m/a + sqrt(2 m/a ln a) of m prompts on a ranks (balls into bins), and the others wait for its attention and dense
    layers; experts are shared by all. Waiting prompts are dealt out evenly, so that a queue has none of it."""
    a, m = np.asarray(layout.cands.attn_dp, float), np.asarray(steps.prompts, float)
    if not (a > 1).any():
        return 1.0
    busiest = np.minimum(m, m / a + np.sqrt(2.0 * m / a * np.log(a)))
    return 1.0 + _dense_share(layout.model) * np.maximum(busiest / np.ceil(m / a) - 1.0, 0.0)


@lru_cache(maxsize=64)
def _dense_share(model: ModelSpec) -> float:
    """Of a token's multiplications, those of attention and dense layers."""
    roles = parameters_by_role(model)
    dense = float(sum(n for role, n in roles.items() if role == "matrix"))
    share = model.moe.top_k / model.moe.num_experts if model.moe else 0.0
    return dense / (dense + share * roles.get("expert_matrix", 0))


def _closed(layout: Layout, load: Load, n: np.ndarray) -> Performance:
    cap = np.maximum(layout.cands.batch, 1)
    inside = np.minimum(n, cap)
    steps = price_steps(layout, load, inside)
    p = _prefill(layout, steps, load)
    gaps = load.osl - 1
    ahead = _ahead(layout, load, steps, p, inside)
    # Who waits for a place has been admitted by the time there is one.
    seated = np.where(n <= cap, 1.0, 0.0) if load.concurrency is not None else 0.0
    c = _settled(layout, load, steps, p, inside, lambda t: seated * ahead(t))
    tpot = c.decode / max(gaps, 1) if gaps else steps.between_tokens(inside)
    rate = inside / (c.response + seated * ahead(tpot) + c.decode)
    decoding = inside * np.clip(c.decode * rate / inside, 0.0, 1.0)
    # Requests beyond the batch wait outside for a place.
    outside = np.maximum(n - inside, 0) / rate
    ttft = c.response + outside + ahead(tpot)
    used = np.minimum(rate * p.added, 1.0)
    spread = _Spread(
        base=ttft - c.wait, wait=c.wait, ceiling=(inside - 1) * c.service, load=np.minimum(rate * c.service, SATURATED)
    )
    return _performance(layout, load, steps, p, rate, ttft, tpot, decoding, spread, n, np.ones(len(inside), bool), used)


@dataclass(frozen=True, slots=True)
class _Cycle:
    """One request's way around a closed loop: D, R and the queue's part of it, and the prefill's service time."""

    decode: Num
    response: Num
    wait: Num
    service: Num


def _settled(
    layout: Layout, load: Load, steps: Steps, p: Prefill, inside: np.ndarray, before: Callable[[Num], Num]
) -> _Cycle:  # fmt: skip
    """Where the closed loop settles. `before`: time that a seat is taken before its request's turn."""
    gaps, between = load.osl - 1, steps.line()
    per_step = Speculation.of(layout.deployment.workload).accepted
    in_step = falls_in_step(layout, load)

    def queue(service: Num, decode: Num) -> Num:
        if in_step:
            return 0.5 * (inside - 1) * p.added
        if layout.engine.mixed:
            return _closed_wait(inside, service, decode)
        # Prefills go first, and the next request comes when one ends: it waits for those that end in the same step.
        return 0.5 * np.minimum(inside - 1, inside * per_step / load.osl) * service

    rest = inside - 1
    others, response, joining = rest / inside, p.latency, np.minimum(p.queued - p.added, 0.0)
    t, decode = between(inside), gaps * between(inside)
    for _ in range(ROUNDS):
        service, ahead = p.service(t, steps.high), before(t)
        # The more the prefills take turns, the more of them share steps.
        turns = np.minimum(rest * service / (response + decode), 1.0)
        each = p.added + turns * joining
        if in_step:
            # All prefills come in one wave, before all decodes; half of the others' fall behind a request's own.
            decode = gaps * t + 0.5 * rest * p.added
        else:
            # While a request is prefilled itself no other is.
            decode = _decode_time(gaps * t, np.maximum(response + ahead - p.latency, 0.0), rest * each)
        if layout.engine.mixed:
            # No more prefills fall into a request's decoding than the queue lets through.
            decode = np.minimum(decode, gaps * t / np.maximum(1.0 - each / np.maximum(service, each), 1e-9))
        t = between(1.0 + rest * decode / (response + ahead + decode))
        response = 0.5 * (response + 0.5 * t * per_step * others + queue(service, decode) + p.latency)
    service = p.service(t, steps.high)
    return _Cycle(decode, response, queue(service, decode), service)


def falls_in_step(layout: Layout, load: Load) -> bool:
    """Whether requests of one length that start together stay together: where prefills go first."""
    return load.cold_start and not load.length_deviation and not layout.engine.mixed


def _ahead(
    layout: Layout, load: Load, steps: Steps, p: Prefill, inside: np.ndarray
) -> Callable[[Num], Num]:  # fmt: skip
    """What comes before a request's turn, by the time between tokens: the engine's front end, and in a benchmark the start
    of all at once and the wait of attention-DP ranks for each other."""
    fixed: Num = layout.engine.prefill_s
    if not load.cold_start:
        return lambda t: fixed
    if not falls_in_step(layout, load):
        fixed = fixed + layout.curves.cold_start.share * (_burst(layout, steps, inside) - p.latency).clip(0.0)
    # Attention-DP schedulers hold prompts back for some steps so that all ranks prefill at once.
    held = np.where(layout.cands.attn_dp > 1, layout.engine.attn_dp_wait_steps, 0.0)
    return lambda t: fixed + held * t


def _decode_time(alone: Num, response: Num, interference: Num) -> Num:
    """D = alone + interference·D/(R+D): the prefills of the n-1 others that fall into the decoding part of a cycle, R being
    the rest of it that they can fall into."""
    b = response - alone - interference
    return (-b + np.sqrt(b * b + 4.0 * alone * response)) / 2.0


def _closed_wait(n: np.ndarray, service: Num, decode: Num) -> Num:
    """Queue before prefill with n circulating requests (Schweitzer's mean-value analysis, one queue and one delay):
    R = s·(1 + (n-1)·R/(R+D)) → R² + (D - s·n)·R - s·D = 0; half of the wait, because
    service is not random but constant. No shorter than what keeps the queue's rate n/(R+D) within 1/s."""
    b = decode - service * n
    r = (-b + np.sqrt(b * b + 4.0 * service * decode)) / 2.0
    return np.maximum(np.maximum(r - service, 0.0) * 0.5, service * (n - 1) - decode)


def overwhelmed(layout: Layout, load: Load) -> np.ndarray:
    """Candidates at which more requests arrive than a full batch serves: never stable, whatever their latencies."""
    w = layout.deployment.workload
    if load.rate is None or w.spare_replicas or w.spare_nodes:
        return np.zeros(len(layout.cands), bool)
    # What a replica serves does not depend on how many there are.
    alike = [layout.row, *(getattr(layout.cands, n) for n in ("pp", "batch", "max_num_batched_tokens"))]
    first, replica = distinct(alike, len(layout.cands))
    one = layout.take(first)
    return load.rate / layout.cands.dp >= _at_full(one, load, np.maximum(one.cands.batch, 1))[2][replica]


def _at_full(layout: Layout, load: Load, cap: np.ndarray) -> tuple[Steps, Prefill, np.ndarray]:
    """(steps, prefill, requests per second) of a replica with all seats of its batch taken."""
    full = price_steps(layout, load, cap)
    p = _prefill(layout, full, load)
    return full, p, 1.0 / (p.added + (load.osl - 1) * full.high / cap)


def _open(layout: Layout, load: Load) -> Performance:
    assert load.rate is not None
    cap = np.maximum(layout.cands.batch, 1)
    rate = np.full(len(cap), load.rate) / layout.cands.dp
    gaps = load.osl - 1
    full, p_full, capacity = _at_full(layout, load, cap)
    guess = cap
    steps, p = full, p_full
    decode = gaps * full.high
    for _ in range(3):
        used = np.minimum(rate * p.added, SATURATED)
        slope = (steps.high - steps.low) / np.maximum(steps.b_high - steps.b_low, 1)
        intercept = np.maximum(steps.high - slope * steps.b_high, 0.2 * steps.high)
        # D = gaps·(t0 + t1·rate·D)/(1 - used), Little's law inside.
        room = 1.0 - used - gaps * slope * rate
        decode = np.where(
            room > 0.02, gaps * intercept / np.maximum(room, 0.02), np.maximum(cap / rate, gaps * full.high)
        )
        guess = np.clip(np.ceil(rate * decode), 1, cap).astype(np.int64)
        steps = price_steps(layout, load, guess)
        p = _prefill(layout, steps, load)
    service = p.queued + p.shared
    stable = (rate < capacity) & (rate * service < 1.0) & (rate * decode <= cap)
    rho = np.minimum(rate * service, SATURATED)
    wait = rho * service / (2.0 * (1.0 - rho))
    step = steps.high * Speculation.of(layout.deployment.workload).accepted
    base = 0.5 * step * np.minimum(rate * decode, 1.0) + p.latency + layout.engine.prefill_s
    tpot = decode / max(gaps, 1) if gaps else steps.high
    chance, seat = _seat_wait(rate, decode, cap)
    spread = _Spread(base=base, wait=wait, ceiling=np.full(len(cap), np.inf), load=rho, seat=seat, chance=chance)
    in_flight = rate * (base + wait + decode) * 1.0
    ttft = base + wait + seat
    perf = _performance(
        layout, load, steps, p, np.minimum(rate, capacity), ttft, tpot, rate * decode, spread, in_flight, stable,
        np.minimum(rate * p.added, 1.0),
    )  # fmt: skip
    busy = np.minimum(1.0, rate * p.added + np.minimum(rate * decode, 1.0))
    return replace(perf, capacity_rate=capacity * layout.cands.dp, busy=busy)


def _seat_wait(rate: Num, decode: Num, seats: Num) -> tuple[Num, Num]:
    """(chance that all seats of the batch are taken, mean wait for one): Sakasegawa's approximation of the queue of many
    servers (Ann. Inst. Statist. Math. 29, 1977), halved because outputs of one length leave at even times. Below nine
    tenths of the seats it is next to nothing; near all of them it is most of the time to first token."""
    busy = np.clip(rate * decode / seats, 0.0, SATURATED)
    root = np.sqrt(2.0 * (seats + 1.0))
    queue = busy**root / (1.0 - busy)
    return busy ** (root - 1.0), 0.5 * queue / np.maximum(rate, 1e-12)


def _together(layout: Layout, load: Load) -> Performance:
    batch = np.maximum(layout.cands.batch, 1)
    steps = price_steps(layout, load, batch, whole_batch=True)
    passes = -(-batch // steps.prompts) * steps.chunks
    ttft = steps.prefill.latency + (passes - 1) * steps.prefill.slowest + layout.engine.prefill_s
    tpot = steps.high
    p = _prefill(layout, steps, load)
    rate = batch / (ttft + (load.osl - 1) * tpot)
    zero = np.zeros(len(batch))
    spread = _Spread(base=ttft, wait=zero, ceiling=zero, load=zero)
    decoding = batch.astype(float)
    used = ttft * rate / batch
    perf = _performance(
        layout, load, steps, p, rate, ttft, tpot, decoding, spread, batch, np.ones(len(batch), bool), used
    )
    return replace(perf, tpot_percentiles=dict.fromkeys(perf.tpot_percentiles, tpot), burst_ttft=ttft)


class _Asked(Mapping[str, np.ndarray]):
    """Percentiles, worked out when somebody asks: a search asks for the ones that requirements name."""

    def __init__(self, at: Mapping[str, float], value: Callable[[float], Any]) -> None:
        self.at, self.value = at, value

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self.value(self.at[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.at)

    def __len__(self) -> int:
        return len(self.at)


@dataclass(frozen=True, slots=True)
class _Spread:
    """Distribution of TTFT: a constant plus a wait, exponential in its tail, bounded in a closed loop."""

    base: Num
    wait: Num
    ceiling: Num
    load: Num
    seat: Num = 0.0
    """Mean wait for a seat in the batch, and the chance of having to."""
    chance: Num = 0.0

    def quantile(self, q: float) -> Num:
        """P(W > t) = ρ·exp(-ρ·t/W̄), the M/G/1 tail whose mean is W̄; the same for the wait for a seat. Of the two waits
        one is in its tail, the other at its mean."""
        t, s = (_tail(mean, chance, q) for mean, chance in ((self.wait, self.load), (self.seat, self.chance)))
        t = np.minimum(t, self.ceiling)
        return self.base + np.where(s > t, s + np.minimum(self.wait, t), t + np.minimum(self.seat, s))


def _tail(mean: Num, chance: Num, q: float) -> Num:
    """Quantile of a wait that happens with `chance` and is exponential then."""
    chance = np.maximum(chance, 1e-12)
    return np.where(chance > 1 - q, mean / chance * np.log(np.maximum(chance / (1 - q), 1.0)), 0.0)


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
        ttft=ttft, tpot=tpot, ttft_percentiles=_Asked(QUANTILE, spread.quantile),
        tpot_percentiles=_Asked(Z, lambda z: tpot + z * jitter), e2e=ttft + gaps * tpot, request_rate=total,
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
