"""Prefill and decode on pools of their own: which layouts, how many workers of each, and whether that beats one pool.

Every legal layout of a worker is priced once for prefill and once for decode, as arrays; the best few of each by what a
device of theirs gets done are paired, the workers dealt out so that neither pool waits for the other, and the best pairs
priced as a closed loop over both pools (`tools.cost.disagg`). That model predicts means: a requirement on a percentile is
judged by its mean, and a finding says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np

from tools.cost.curves import Curves
from tools.cost.disagg import Cycle, Disaggregated, at_concurrency, cycle_of
from tools.cost.estimate import batch_limit
from tools.cost.fit import max_batch
from tools.cost.serving import Load, price_steps
from tools.cost.steps import Layout, layouts
from tools.engines.rules import engines
from tools.engines.rules.handover import CONNECTORS, pd_findings
from tools.search.space import (
    _fill,
    _ladder,
    at_limits,
    batched_tokens,
    degrees,
    divisors,
    families,
    legal,
    searched_axes,
)
from tools.spec.base import MeshwrightError
from tools.spec.deployment import Deployment
from tools.spec.finding import Finding
from tools.spec.plan import Pooled
from tools.spec.strategy import Strategy
from tools.spec.workload import Requirement

KEPT = 2
"""Layouts of every size that are paired, for prefill at each of `WITHIN`."""
WITHIN = (1.0, 0.5, 0.2)
"""Shares of the limit of TTFT that a lone prompt may take: the faster it is, the longer its queue may be."""
WAITING = (1, 4, 64)
"""Prompts at a prefill worker, per attention-DP rank, that its pace is asked at."""
HEADROOM = 0.97
"""Most of a prefill pool's time that is planned for: its queue grows without bound towards all of it."""
LATENCY = {"ttft_s": "ttft", "tpot_s": "tpot", "e2e_latency_s": "e2e"}


@dataclass(frozen=True, slots=True)
class Worker:
    """One layout of one worker, and how fast it is: seconds per prompt, or sequences it decodes and their time per token."""

    strategy: Strategy
    seconds: float
    latency: float = 0.0
    batch: int = 0

    @property
    def devices(self) -> int:
        return self.strategy.num_devices

    @property
    def pace(self) -> float:
        """Seconds per prompt, or per sequence's token."""
        return self.seconds / max(self.batch, 1)


def pooled(deployment: Deployment, curves: Curves, aggregated_tok_s: float | None = None) -> Pooled | None:
    """The best two pools over all devices; None where the question does not arise: fewer than two devices, devices without
    number, a batch that arrives at once, one output token. `aggregated_tok_s`: output tokens/s of the best single pool."""
    d, n = deployment, deployment.cluster.num_devices
    load = Load.of(d.workload)
    if n is None or n < 2 or load.mode == "together" or load.osl < 2 or d.engine.name not in engines("serving"):
        return None
    pairs = _chosen(d, sorted(_pairs(d, curves, *_workers(d, curves, load, n), n), key=lambda x: -x.rate))
    priced = [p for pair in pairs if (p := _priced(d, curves, *pair.strategies(), load)) is not None]
    if not priced:
        return None
    best = max(priced, key=lambda p: (p.meets, p.output_tok_s))
    gain = best.output_tok_s / aggregated_tok_s - 1.0 if aggregated_tok_s else None
    return best.model_copy(update={"gain": gain})


def _limit(d: Deployment, metric: str) -> float:
    return min((g.limit for g in d.requirements.gates if g.metric == metric), default=np.inf)


def _workers(d: Deployment, curves: Curves, load: Load, n: int) -> tuple[list[Worker], list[Worker]]:
    """The best layouts of a prefill and of a decode worker, by what a device gets done."""
    node = d.cluster.devices_per_node
    sizes = [m for m in range(1, n) if m in divisors(node) or m % node == 0]
    sizes = [m for m in sizes if m <= max(4 * node, 1)]
    rows = degrees(d.model, sizes, replicas=False, **searched_axes(d))
    family = families(d, curves)[0]
    cands = _fill(family, rows)
    cands = at_limits(cands.take(legal(d, cands)[0]), (batched_tokens(d, curves, family.engine),))
    fronts: list[Worker] = []
    backs: dict[float, list[Worker]] = {}
    for index, layout in layouts(d, curves, cands) if len(cands) else ():
        limit = batch_limit(d, curves, family.engine, 1) * cands.attn_dp[index]
        most = max_batch(layout, np.minimum(limit, layout.cands.max_num_batched_tokens * layout.cands.attn_dp))
        fits = np.flatnonzero(most > 0)
        if len(fits):
            fronts += _prefilling(d, layout.take(fits), load)
            for aim, found in _decoding(d, layout.take(fits), load, most[fits]).items():
                backs.setdefault(aim, []).extend(found)
    return _leading(fronts), list(dict.fromkeys(w for ws in backs.values() for w in _leading(ws)))


def _leading(workers: list[Worker]) -> list[Worker]:
    """Without those that another one of the same size matches or beats in pace and in latency."""
    out: list[Worker] = []
    for w in sorted(workers, key=lambda w: (w.devices, w.pace, w.latency)):
        if not any(x.devices == w.devices and x.latency <= w.latency for x in out):
            out.append(w)
    return out


def _cheapest(cost: np.ndarray, size: np.ndarray, ok: np.ndarray) -> list[int]:
    """Indices of the `KEPT` cheapest of every size among those that are `ok`."""
    out: list[int] = []
    for s in np.unique(size):
        mine = np.flatnonzero(ok & (size == s))
        out += mine[np.argsort(cost[mine], kind="stable")[:KEPT]].tolist()
    return out


def _prefilling(d: Deployment, layout: Layout, load: Load) -> list[Worker]:
    """Workers by the seconds a prompt takes and the latency it sees, with none, few and many prompts in a step: full steps
    take least per prompt, and longest for each."""
    c, limit, size = layout.cands, _limit(d, "ttft_s"), layout.cands.num_devices
    out: list[Worker] = []
    for waiting in WAITING:
        steps = price_steps(layout, load, waiting * c.attn_dp)
        seconds = steps.chunks * steps.packed.slowest / (steps.prompts * steps.queue_share)
        device = steps.packed.latency + (steps.chunks - 1) * steps.packed.slowest
        latency = np.maximum(device, steps.launches * layout.engine.launch_s)
        chosen = {i for share in WITHIN for i in _cheapest(seconds, size, latency <= share * limit)}
        out += [Worker(c.strategy(i, d.model), float(seconds[i]), float(latency[i])) for i in sorted(chosen)]
    return out


def _decoding(d: Deployment, layout: Layout, load: Load, most: np.ndarray) -> dict[float, list[Worker]]:
    """Workers at the batch, up to one that is aimed at, at which a device generates most within the limit of TPOT."""
    index, batch = _ladder(most, together=False, deployment=d)
    wide = layout.take(index)
    time = price_steps(wide, load, batch).high
    rate = np.where(time <= _limit(d, "tpot_s"), batch / time / wide.cands.num_devices, -np.inf)
    c = wide.cands.with_batch(batch)
    out: dict[float, list[Worker]] = {}
    for aim in _aims(load):
        mine = np.where(batch <= aim, rate, -np.inf)
        best = np.full(len(most), -np.inf)
        np.maximum.at(best, index, mine)
        chosen = _cheapest(-mine, c.num_devices, (mine == best[index]) & np.isfinite(mine))
        out[aim] = [Worker(c.strategy(i, d.model), float(time[i]), batch=int(batch[i])) for i in chosen]
    return out


def _aims(load: Load) -> list[float]:
    """Batches of a decode worker: of a stated number of requests, what one of 1, 2, 4 … workers has; else any."""
    if load.concurrency is None:
        return [np.inf]
    total = int(load.concurrency)
    return sorted({float(-(-total // 2**k)) for k in range(total.bit_length())})


@dataclass(frozen=True, slots=True)
class Pair:
    """A layout for each pool, with the number of workers that serves most requests/s."""

    rate: float
    prefill: Worker
    decode: Worker
    fronts: int
    backs: int

    def strategies(self) -> tuple[Strategy, Strategy]:
        return (
            self.prefill.strategy.model_copy(update={"dp": self.fronts}),
            self.decode.strategy.model_copy(update={"dp": self.backs}),
        )


def _chosen(d: Deployment, ranked: list[Pair]) -> list[Pair]:
    """For each of `WITHIN`, the first pair whose lone prompt is as fast, and that the connector can join."""

    def joins(p: Pair) -> bool:
        found = pd_findings(d.engine.name, d.model, p.prefill.strategy, p.decode.strategy)
        return not any(f.severity == "error" for f in found)

    out: list[Pair] = []
    for share in WITHIN:
        fast = (p for p in ranked if p.prefill.latency <= share * _limit(d, "ttft_s") and joins(p))
        first = next(fast, None)
        out += [first] if first is not None and first not in out else []
    return out


def _pairs(d: Deployment, curves: Curves, fronts: list[Worker], backs: list[Worker], n: int) -> Iterable[Pair]:
    """Every pair at its best number of workers."""
    gaps, engine, limit = max(d.workload.osl - 1, 1), curves.engine(d.engine.name), _limit(d, "ttft_s")
    asked = Load.of(d.workload).concurrency or np.inf
    for f, b in product(fronts, backs):
        prefill = np.arange(1, max((n - b.devices) // f.devices, 0) + 1)
        if not len(prefill):
            continue
        decode = (n - prefill * f.devices) // b.devices
        # A queue of rho/(1 - rho) * s/(2 workers) fits into what the limit leaves.
        slack = max(limit - f.latency - engine.prefill_s - engine.handoff_s - 0.5 * b.seconds, 0.0)
        odds = 2.0 * prefill * min(slack, 1e6) / f.seconds
        busy = np.minimum(odds / (1.0 + odds), HEADROOM)
        rate = np.minimum(busy * prefill / f.seconds, np.minimum(decode * b.batch, asked) / (gaps * b.seconds))
        i = int(np.argmax(rate))
        if rate[i] > 0:
            yield Pair(float(rate[i]), f, b, int(prefill[i]), int(decode[i]))


def _priced(d: Deployment, curves: Curves, prefill: Strategy, decode: Strategy, load: Load) -> Pooled | None:
    """The pair at the load: at the stated concurrency or rate, else at as many requests as the latencies allow."""
    try:
        cycle = cycle_of(d, prefill, decode, curves)
    except MeshwrightError:
        return None
    if load.concurrency is not None:
        at = int(load.concurrency)
    else:
        at = _most_in_flight(d, cycle, decode, load)
    found = at_concurrency(cycle, at)
    findings = (*pd_findings(d.engine.name, d.model, prefill, decode), *_said(d, found, load))
    return Pooled(
        prefill=prefill, decode=decode.model_copy(update={"batch": max(1, found.batch)}), num_devices=found.num_devices,
        concurrency=at, ttft_s=found.ttft_s, tpot_s=found.tpot_s, request_rate=found.request_rate,
        output_tok_s=found.output_tok_s, prefill_busy=found.prefill_busy,
        meets=not any(f.severity == "error" for f in findings), findings=findings,
    )  # fmt: skip


def _most_in_flight(d: Deployment, cycle: Cycle, decode: Strategy, load: Load) -> int:
    """Most requests in flight at which the latencies hold (1 if they never do); under a stated rate, the fewest that
    reach it."""
    low, high = 1, 2 * cycle.most * decode.dp

    def good(k: int) -> bool:
        found = at_concurrency(cycle, k)
        if load.rate is not None:
            return found.request_rate < load.rate
        return not any(g.metric in LATENCY and _broken(g, found, load, d) for g in d.requirements.gates)

    while high - low > max(1, low // 25):
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low if load.rate is None else high


def _value(g: Requirement, found: Disaggregated, load: Load) -> float:
    per = found.num_devices if g.metric == "throughput_per_device" else 1
    if g.metric in LATENCY:
        e2e = found.ttft_s + (load.osl - 1) * found.tpot_s
        return {"ttft_s": found.ttft_s, "tpot_s": found.tpot_s, "e2e_latency_s": e2e}[g.metric]
    if g.metric == "request_rate":
        return found.request_rate
    counted = {"input": found.input_tok_s, "output": found.output_tok_s}
    return counted.get(g.counts or "", found.input_tok_s + found.output_tok_s) / per


def _broken(g: Requirement, found: Disaggregated, load: Load, d: Deployment) -> bool:
    value = _value(g, found, load)
    return value < g.limit if g.higher_is_better else value > g.limit


def _said(d: Deployment, found: Disaggregated, load: Load) -> Iterable[Finding]:
    """Requirements that break, and those whose percentile was judged by the mean."""
    for g in d.requirements.gates:
        value = _value(g, found, load)
        if _broken(g, found, load, d):
            yield Finding(
                code="pd-slo", severity="error", cause="slo",
                message=f"{g.metric} = {value:.4g} over two pools, required {'>=' if g.higher_is_better else '<='} {g.limit:g}",
                values={"metric": g.metric, "value": value, "limit": g.limit},
            )  # fmt: skip
        elif g.metric in LATENCY and g.stat not in ("mean", "limit"):
            yield Finding(
                code="pd-percentile", severity="warning", cause="slo",
                message=f"{g.metric} {g.stat} is judged by its mean over two pools: {value:.4g} of {g.limit:g}",
                fix="measure the percentile, or simulate the pools", values={"value": value, "limit": g.limit},
            )  # fmt: skip
    if load.rate is not None and found.request_rate < 0.999 * load.rate:
        yield Finding(
            code="pd-overload", severity="error", cause="slo",
            message=f"two pools serve {found.request_rate:.4g} requests/s, {load.rate:.4g} arrive",
            values={"served": found.request_rate, "asked": load.rate},
        )  # fmt: skip
    if d.engine.name not in CONNECTORS:
        yield Finding(
            code="pd-connector", severity="error", cause="engine",
            message=f"no KV connector is known for {d.engine.name}: its pools cannot hand caches over",
            fix=f"an engine among {', '.join(CONNECTORS)}",
        )  # fmt: skip


__all__ = ["pooled"]
