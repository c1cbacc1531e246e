"""Prefill and decode on pools of their own: which layouts, how many workers of each, and whether that beats one pool.

Every legal layout of a worker is priced once for prefill and once for decode, as arrays; the best few of each by what a
device of theirs gets done are paired, the workers dealt out so that neither pool waits for the other, and the best pairs
priced as a closed loop over both pools (`tools.cost.disagg`). Percentiles are those of the same requests walked one by one
through both pools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np

from tools.cost.curves import Curves
from tools.cost.disagg import Cycle, Disaggregated, Walked, at_concurrency, cycle_of, walk
from tools.cost.estimate import batch_limit, estimate
from tools.cost.fit import max_batch
from tools.cost.judge import BAND_OF, UNIT, prediction, verdict_findings
from tools.cost.known import distinct
from tools.cost.serving import QUANTILE, Load, price_steps
from tools.cost.steps import Layout, layout_of
from tools.engines.rules import engines
from tools.engines.rules.handover import CONNECTORS, pd_findings
from tools.search.fleet import pool_conditions
from tools.search.space import (
    _fill,
    _ladder,
    _meant,
    at_limits,
    batched_tokens,
    degrees,
    divisors,
    legal,
    prefill_families,
    searched_axes,
)
from tools.spec.base import MeshwrightError
from tools.spec.deployment import Deployment, Objective
from tools.spec.finding import Finding
from tools.spec.plan import Candidate, Pooled, Unit
from tools.spec.strategy import Phase, Strategy
from tools.spec.term import Prediction
from tools.spec.workload import Requirement

KEPT = 2
"""Layouts of every size that are paired, for prefill at each of `WITHIN`."""
WITHIN = (1.0, 0.5, 0.2)
"""Shares of the limit of TTFT that a lone prompt may take: the faster it is, the longer its queue may be."""
WAITING = (1, 4, 64)
"""Prompts at a prefill worker, per attention-DP rank, that its pace is asked at."""
HEADROOM = 0.97
"""Most of a prefill pool's time that is planned for: its queue grows without bound towards all of it."""
LESS = 0.75
"""Of the requests in flight, those that are tried next where a percentile breaks its limit."""
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
    if d.workload.spare_replicas or d.workload.spare_nodes:
        return None  # a spare of both pools is not priced
    pairs = _chosen(d, sorted(_pairs(d, curves, *_workers(d, curves, load, n), n), key=lambda x: -x.rate))
    priced = [p for pair in pairs if (p := _priced(d, curves, *pair.strategies(), load)) is not None]
    if not priced:
        return None
    best = max(priced, key=lambda p: (p.meets, p.output_tok_s))
    gain = best.output_tok_s / aggregated_tok_s - 1.0 if aggregated_tok_s else None
    band = min(curves.band("throughput", d.cluster).band, 0.9)
    return best.model_copy(update={"gain": gain, "least_gain": (1.0 + band) / (1.0 - band) - 1.0})


def _limit(d: Deployment, metric: str) -> float:
    return min((g.limit for g in d.requirements.gates if g.metric == metric), default=np.inf)


def _workers(d: Deployment, curves: Curves, load: Load, n: int) -> tuple[list[Worker], list[Worker]]:
    """The best layouts of a prefill and of a decode worker, by what a device gets done."""
    node = d.cluster.devices_per_node
    sizes = [m for m in range(1, n) if m in divisors(node) or m % node == 0]
    sizes = [m for m in sizes if m <= max(4 * node, 1)]
    rows = degrees(d.model, sizes, replicas=False, **searched_axes(d))
    fronts: list[Worker] = []
    backs: dict[float, list[Worker]] = {}
    for family in prefill_families(d, curves):
        cands = _fill(family, _meant(family, rows))
        cands = at_limits(cands.take(legal(d, cands)[0]), (batched_tokens(d, curves, family.engine),))
        if not len(cands):
            continue
        layout = layout_of(d, curves, cands)
        limit = batch_limit(d, curves, family.engine, 1) * cands.attn_dp
        most = max_batch(layout, np.minimum(limit, cands.max_num_batched_tokens * cands.attn_dp))
        fits = np.flatnonzero(most > 0)
        if len(fits):
            fronts += _prefilling(d, layout.take(fits), load)
        if len(fits) and not family.node:
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


def _kinds(layout: Layout) -> np.ndarray:
    """Equal for candidates of one partitioned graph and one size."""
    return distinct([layout.graph_of(layout.row), layout.cands.num_devices], len(layout.cands))[1]


def _cheapest(cost: np.ndarray, kind: np.ndarray, ok: np.ndarray) -> list[int]:
    """Indices of the `KEPT` cheapest of every kind among those that are `ok`."""
    index = np.flatnonzero(ok)
    index = index[np.lexsort((cost[index], kind[index]))]
    place = np.arange(len(index)) - np.searchsorted(kind[index], kind[index])
    return index[place < KEPT].tolist()


def _prefilling(d: Deployment, layout: Layout, load: Load) -> list[Worker]:
    """Workers by the seconds a prompt takes and the latency it sees, with none, few and many prompts in a step: full steps
    take least per prompt, and longest for each."""
    c, limit, kind = layout.cands, _limit(d, "ttft_s"), _kinds(layout)
    out: list[Worker] = []
    for waiting in WAITING:
        steps = price_steps(layout, load, waiting * c.attn_dp)
        seconds = steps.chunks * steps.packed.slowest / (steps.prompts * steps.queue_share)
        device = steps.packed.latency + (steps.chunks - 1) * steps.packed.slowest
        latency = np.maximum(device, steps.launches * layout.engine.launch_s)
        chosen = {i for share in WITHIN for i in _cheapest(seconds, kind, latency <= share * limit)}
        out += [Worker(c.strategy(i, d.model), float(seconds[i]), float(latency[i])) for i in sorted(chosen)]
    return out


def _decoding(d: Deployment, layout: Layout, load: Load, most: np.ndarray) -> dict[float, list[Worker]]:
    """Workers at the batch, up to one that is aimed at, at which a device generates most within the limit of TPOT."""
    index, batch = _ladder(most, together=False, deployment=d)
    wide = layout.take(index)
    time = price_steps(wide, load, batch).high
    rate = np.where(time <= _limit(d, "tpot_s"), batch / time / wide.cands.num_devices, -np.inf)
    c, kind = wide.cands.with_batch(batch), _kinds(wide)
    out: dict[float, list[Worker]] = {}
    for aim in _aims(load):
        mine = np.where(batch <= aim, rate, -np.inf)
        best = np.full(len(most), -np.inf)
        np.maximum.at(best, index, mine)
        chosen = _cheapest(-mine, kind, (mine == best[index]) & np.isfinite(mine))
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


@dataclass(frozen=True, slots=True)
class Point:
    """Two pools at a load: means in closed form, and the same requests one by one."""

    means: Disaggregated
    walked: Walked
    osl: int

    def latency(self, g: Requirement) -> float:
        """What a requirement on a latency bounds. A mean is the larger of the two evaluators'; percentiles are those of the
        requests; of a whole request's time, the sum of both (no request is slower in both than that)."""
        parts = {"ttft_s": ((1, "ttft"),), "tpot_s": ((1, "tpot"),)}
        return sum(n * self._of(name, g.stat) for n, name in parts.get(g.metric, ((1, "ttft"), (self.osl - 1, "tpot"))))

    def _of(self, name: str, stat: str) -> float:
        if stat not in QUANTILE:
            return self.mean(name)
        # Where the closed form is the slower of the two, the requests around its mean are slower too.
        walked = float(getattr(self.walked, name).mean())
        return self.walked.percentile(name, QUANTILE[stat]) * self.mean(name) / max(walked, 1e-12)

    def mean(self, name: str) -> float:
        """The slower of the two evaluators."""
        closed = self.means.ttft_s if name == "ttft" else self.means.tpot_s
        return max(closed, float(getattr(self.walked, name).mean()))

    def percentiles(self, name: str) -> dict[str, float]:
        return {stat: self._of(name, stat) for stat in QUANTILE}


def _at(cycle: Cycle, in_flight: int, load: Load) -> Point:
    """A closed loop of so many; under a stated rate its arrivals, at random."""
    means = at_concurrency(cycle, in_flight)
    walked = walk(cycle, concurrency=in_flight) if load.rate is None else walk(cycle, rate=load.rate)
    return Point(means, walked, load.osl)


def _priced(d: Deployment, curves: Curves, prefill: Strategy, decode: Strategy, load: Load) -> Pooled | None:
    """The pair at the load: at the stated concurrency or rate, else at as many requests as the latencies allow."""
    try:
        cycle = cycle_of(d, prefill, decode, curves)
    except MeshwrightError:
        return None
    at = int(load.concurrency) if load.concurrency is not None else _most_in_flight(d, cycle, decode, load)
    point = _at(cycle, at, load)
    found = point.means
    findings = (*pd_findings(d.engine.name, d.model, prefill, decode), *_said(d, point, load))
    return Pooled(
        prefill=prefill, decode=decode.model_copy(update={"batch": max(1, found.batch)}), num_devices=found.num_devices,
        concurrency=at, ttft_s=point.mean("ttft"), tpot_s=point.mean("tpot"), request_rate=found.request_rate,
        ttft_percentiles=point.percentiles("ttft"), tpot_percentiles=point.percentiles("tpot"),
        output_tok_s=found.output_tok_s, prefill_busy=found.prefill_busy, num_simulated=len(point.walked.ttft),
        meets=not any(f.severity == "error" for f in findings), findings=findings,
    )  # fmt: skip


def _most_in_flight(d: Deployment, cycle: Cycle, decode: Strategy, load: Load) -> int:
    """Most requests in flight at which the latencies hold (1 if they never do); under a stated rate, the fewest that
    reach it."""
    gates = [g for g in d.requirements.gates if g.metric in LATENCY]

    def reached(k: int) -> bool:
        return at_concurrency(cycle, k).request_rate >= (load.rate or 0.0)

    def slow(k: int) -> bool:
        point = _at(cycle, k, load)
        return any(point.latency(g) > g.limit for g in gates)

    def slow_on_average(k: int) -> bool:
        found = at_concurrency(cycle, k)
        e2e = found.ttft_s + (load.osl - 1) * found.tpot_s
        of = {"ttft_s": found.ttft_s, "tpot_s": found.tpot_s, "e2e_latency_s": e2e}
        return any(of[g.metric] > g.limit for g in gates)

    most = 2 * cycle.most * decode.dp
    if load.rate is not None:
        return _last(1, most, lambda k: not reached(k))[1]
    # No percentile that is stated lies below the mean: walks, which take longer, start where the closed form ends.
    k = _last(1, most, lambda k: not slow_on_average(k))[0] if gates else most
    while k > 1 and slow(k):
        k = max(1, int(k * LESS))
    return k


def _last(low: int, high: int, good: Callable[[int], bool]) -> tuple[int, int]:
    """Neighbours, to 4 %, of which the first is good (or `low`) and the second is not."""
    while high - low > max(1, low // 25):
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low, high


def _value(g: Requirement, point: Point) -> float:
    found = point.means
    if g.metric in LATENCY:
        return point.latency(g)
    if g.metric == "request_rate":
        return found.request_rate
    counted = {"input": found.input_tok_s, "output": found.output_tok_s}
    per = found.num_devices if g.metric == "throughput_per_device" else 1
    return counted.get(g.counts or "", found.input_tok_s + found.output_tok_s) / per


def _said(d: Deployment, point: Point, load: Load) -> Iterable[Finding]:
    """Requirements that break, a load that is not served, an engine that cannot hand caches over."""
    found = point.means
    for g in d.requirements.gates:
        value = _value(g, point)
        if value < g.limit if g.higher_is_better else value > g.limit:
            stat, sign = "" if g.stat == "limit" else f" {g.stat}", ">=" if g.higher_is_better else "<="
            yield Finding(
                code="pd-slo", severity="error", cause="slo",
                message=f"{g.metric}{stat} = {value:.4g} over two pools, required {sign} {g.limit:g}",
                values={"metric": g.metric, "stat": g.stat, "value": value, "limit": g.limit},
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


# ------------------------------------------------------------------------------------------------------ two pools as a plan


def takes_over(p: Pooled, objective: Objective, best: Candidate | None) -> bool:
    """Whether two pools are the plan: they meet everything, and no single pool does, or none by a throughput that both
    predictions, each off by its band, could make up for."""
    if not p.meets or objective != "total_throughput":
        return False
    return best is None or (p.gain is not None and p.gain > p.least_gain)


def pooled_candidate(d: Deployment, curves: Curves, p: Pooled) -> Candidate:
    """The pair as a candidate of the search: a unit per pool, figures over both."""
    units = (_unit(d, curves, "prefill", p.prefill), _unit(d, curves, "decode", p.decode))
    load = Load.of(d.workload)
    point = _at(cycle_of(d, p.prefill, p.decode, curves), p.concurrency, load)
    predictions = tuple(_predictions(d, curves, point))
    told = [f for g, x in zip(d.requirements.gates, predictions, strict=False) for f in verdict_findings(g, x)]
    named = [
        f.model_copy(update={"message": f"{u.name} pool: {f.message}"}) for u in units for f in u.estimate.findings
    ]
    n = p.num_devices
    idle = (d.num_devices or n) - n
    spare = [Finding(
        code="idle-devices", severity="warning", cause="other", message=f"{idle} of {d.num_devices} devices stay idle",
        values={"idle": idle},
    )] if idle else []  # fmt: skip
    findings = (*named, *(f for f in p.findings if f.code != "pd-slo"), *told, *spare)
    main = max(units, key=lambda u: u.strategy.num_devices)
    e = main.estimate.model_copy(
        update={
            "feasible": not any(f.severity == "error" for f in findings), "findings": findings, "ttft_s": p.ttft_s,
            "tpot_s": p.tpot_s, "ttft_percentiles": p.ttft_percentiles, "tpot_percentiles": p.tpot_percentiles,
            "e2e_s": p.ttft_s + (load.osl - 1) * p.tpot_s, "output_tok_s": p.output_tok_s, "request_rate": p.request_rate,
            "input_tok_s": p.request_rate * load.isl, "total_tok_s": p.output_tok_s + p.request_rate * load.isl,
            "num_devices": n, "concurrency": p.concurrency, "capacity_tok_s": p.output_tok_s, "predictions": predictions,
            "breakdown": {}, "utilisation": {"prefill pool": min(1.0, p.prefill_busy)},
        }
    )  # fmt: skip
    return Candidate(rank=0, estimate=e, objective_value=p.output_tok_s, units=units)


def _unit(d: Deployment, curves: Curves, phase: Phase, s: Strategy) -> Unit:
    """A pool; what its estimate says of latencies is of a pool that runs both phases, so that findings about them go."""
    e = estimate(pool_conditions(d, d.cluster, s), s, curves)
    kept = tuple(f for f in e.findings if f.cause != "slo" and f.code not in ("idle-devices", "overload"))
    e = e.model_copy(update={"findings": kept, "feasible": not any(f.severity == "error" for f in kept)})
    return Unit(name=phase, clusters=(d.cluster,), share=1.0, phases_run=(phase,), estimate=e)


def _predictions(d: Deployment, curves: Curves, point: Point) -> Iterable[Prediction]:
    """Every requirement and the means, with the bands of a single pool: nobody fitted any for two."""
    where = f"two pools: closed form, and {len(point.walked.ttft)} requests walked through them"
    for g in d.requirements.gates:
        band = curves.band(BAND_OF[g.metric], d.cluster)
        yield prediction(g.metric, g.stat, _value(g, point), band, UNIT[g.metric], where, g)
    plain = {"ttft_s": point.mean("ttft"), "tpot_s": point.mean("tpot"), "throughput_total": point.means.output_tok_s}
    stated = {(g.metric, "mean" if g.stat == "limit" else g.stat) for g in d.requirements.gates}
    for metric, value in plain.items():
        if (metric, "mean") not in stated:
            unit = "output tokens/s" if metric == "throughput_total" else UNIT[metric]
            yield prediction(metric, "mean", value, curves.band(BAND_OF[metric], d.cluster), unit, where)


__all__ = ["pooled", "pooled_candidate", "takes_over"]
