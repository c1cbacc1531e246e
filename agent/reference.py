"""Performance's reference: strategies enumerated here, one at a time, and run request by request.

Not the search's own walk and not its own clock: every factorisation of the devices into axes, and local moves around the
plan that the search does not enumerate (a layer from one pipeline stage to another, odd batches and step sizes, a degree
moved from one axis to another), are priced alone in closed form; the most promising few and the plan then serve the same
requests in the simulation. What the search prunes, groups, skips or prices wrongly shows as a better value here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from agent.bind import Workbench, strategy_key
from tools.cost.disagg import cycle_of, walk
from tools.cost.judge import BAND_OF, statistic
from tools.cost.serving import Load
from tools.cost.simulate import Simulated, simulate_strategy
from tools.rubric import Reference
from tools.search.objective import choose_objective
from tools.spec.base import ToolError
from tools.spec.deployment import Objective
from tools.spec.plan import Candidate
from tools.spec.strategy import Strategy
from tools.spec.workload import Requirement

MAX_PRICED = 48
MAX_SIMULATED = 6
"""Strategies beside the plan that are simulated: half of them moves around it, half other ways to parallelise."""
REQUESTS = (800, 2500)
"""Fewest and most requests of one simulation; between the two, six batches of the plan, so that the warm-up that is not
counted is more than one. The same for all."""
SPREAD = (0.8, 1.2)
"""Lengths around the stated ones: requests of equal length would stay in step for ever, which no steady state does."""
METHOD = "brute force with local moves around the plan, simulated request by request"
CLOSED = "one-at-a-time enumeration over the same cost model, with local moves around the plan"


def reference_of(bench: Workbench, chosen: Candidate | None) -> Reference:
    """The best feasible strategy among those tried; for an infeasible verdict the closest one is the starting point. Of a
    plan with several units: that of the unit which gives away most."""
    if chosen is not None and chosen.units:
        pools = len(chosen.units[0].phases_run) == 1
        return _single_pool(bench, chosen) if pools else _worst_unit(bench, chosen)
    key = f"reference {strategy_key(chosen.estimate.strategy) if chosen else 'none'}"
    return bench.stored(key, Reference, lambda: _reference(bench, chosen))


def _worst_unit(bench: Workbench, chosen: Candidate) -> Reference:
    """Every unit against other strategies on its devices under its share of the load."""
    found = []
    for unit, own in bench.units(chosen):
        made = reference_of(own, own.candidate(unit.strategy))
        broken = f"{unit.name}: {made.broken}" if made.broken else ""
        found.append(made.model_copy(update={"strategy": f"{unit.name} {made.strategy}", "broken": broken}))
    # Ratios of units' objectives are what compares; a unit that breaks a limit in the simulation comes first.
    return max(found, key=lambda r: (bool(r.broken), _gap(r)))


def _single_pool(bench: Workbench, chosen: Candidate) -> Reference:
    """Two pools, walked request by request, against the best single pools, simulated."""
    d = bench.deployment
    prefill, decode = (u.strategy for u in chosen.units)
    cycle, load = cycle_of(d, prefill, decode, bench.curves), Load.of(d.workload)
    at = chosen.estimate.concurrency
    mine = walk(cycle, rate=load.rate) if load.rate is not None else walk(cycle, concurrency=at)
    plain = [c for c in bench.search.ranked if not c.units][:MAX_SIMULATED]
    runs = [r for c in plain if (r := run(bench, c.estimate.strategy, REQUESTS[0])) is not None and not r.broken]
    value = mine.request_rate * load.osl
    best = max(runs, key=lambda r: r.value, default=None)
    better = best is not None and best.value > value
    return Reference(
        objective_value=best.value if better and best else value, plan_value=value,
        strategy=bench.label(best.strategy) if better and best else "two pools", num_evaluated=1 + len(plain),
        num_simulated=1 + len(runs), method="the best single pools, simulated request by request", provisional=False,
    )  # fmt: skip


def _gap(r: Reference) -> float:
    if r.objective_value is None or r.plan_value is None:
        return 0.0
    return (r.objective_value - r.plan_value) / max(abs(r.objective_value), 1e-12)


def _reference(bench: Workbench, chosen: Candidate | None) -> Reference:
    verdict = bench.search.infeasible
    closest = verdict.closest.strategy if verdict and verdict.closest else bench.search.baseline.estimate.strategy
    centre = chosen.estimate.strategy if chosen else closest
    priced = _priced(bench, centre)
    if chosen is not None and simulates(bench):
        found = _simulated(bench, chosen, priced)
        if found is not None:
            return found
    feasible = [c for c in priced if c.estimate.feasible]
    best = max([*([chosen] if chosen else []), *feasible], key=lambda c: c.objective_value, default=None)
    return Reference(
        objective_value=best.objective_value if best else None,
        plan_value=chosen.objective_value if chosen else None,
        strategy=bench.label(best.estimate.strategy) if best else "", num_evaluated=max(1, len(priced)), method=CLOSED,
        provisional=False,
    )  # fmt: skip


def simulates(bench: Workbench) -> bool:
    """A batch that arrives together has no steady state to simulate: its closed form is exact."""
    w = bench.deployment.workload
    return not (w.batch_size is not None and w.concurrency is None and w.request_rate is None)


def _priced(bench: Workbench, centre: Strategy) -> list[Candidate]:
    out: list[Candidate] = []
    for strategy in candidates(bench, centre):
        try:
            out.append(bench.candidate(strategy))
        except ToolError:
            continue
        if len(out) >= MAX_PRICED:
            break
    return out


# ---------------------------------------------------------------------------------------------------------- simulation


@dataclass(frozen=True, slots=True)
class Run:
    """A strategy after the simulation."""

    strategy: Strategy
    value: float
    """Objective, with the simulated figures."""
    margin: float
    """Smallest relative margin over the requirements."""
    broken: str = ""
    """The requirement it misses by more than the error band, with both numbers."""


def _simulated(bench: Workbench, chosen: Candidate, priced: list[Candidate]) -> Reference | None:
    """The plan beside the most promising of `priced`, all on the same requests; None where the plan cannot be simulated."""
    count = int(np.clip(6 * chosen.estimate.batch, *REQUESTS))
    mine = run(bench, chosen.estimate.strategy, count)
    if mine is None:
        return None
    rivals = promising(bench, chosen, priced)
    runs = [r for c in rivals if (r := run(bench, c.estimate.strategy, count)) is not None]
    # Where the plan misses a limit in the simulation, rivals that hold all of them come first; if there are none, those
    # that miss by no more.
    holding = [r for r in runs if r.margin >= 0] if mine.broken else []
    allowed = min(0.0, mine.margin)
    if holding:
        best = max(holding, key=lambda r: r.value)
        return Reference(
            objective_value=best.value, plan_value=mine.value, strategy=bench.label(best.strategy) + _moved(best, mine),
            num_evaluated=len(priced), num_simulated=1 + len(runs), method=METHOD, provisional=False,
            broken=mine.broken, holds=True,
        )  # fmt: skip
    best = max([mine, *(r for r in runs if r.margin >= allowed)], key=lambda r: r.value)
    return Reference(
        objective_value=best.value, plan_value=mine.value, strategy=bench.label(best.strategy) + _moved(best, mine),
        num_evaluated=len(priced), num_simulated=1 + len(runs), method=METHOD, provisional=False, broken=mine.broken,
    )  # fmt: skip


def _moved(best: Run, mine: Run) -> str:
    """What tells two operating points of one way to parallelise apart."""
    a, b = best.strategy, mine.strategy
    if a.label() != b.label() or best is mine:
        return ""
    said = [f"batch {a.batch}"] if a.batch != b.batch else []
    said += (
        [f"{a.max_num_batched_tokens} tokens a step"] if a.max_num_batched_tokens != b.max_num_batched_tokens else []
    )
    said += (
        [f"stages {'+'.join(map(str, a.layers_per_stage or ()))}"] if a.layers_per_stage != b.layers_per_stage else []
    )
    return f" ({', '.join(said)})" if said else ""


def promising(bench: Workbench, chosen: Candidate, priced: list[Candidate]) -> list[Candidate]:
    """The best by closed form, half of them moves around the plan, half other layouts; what misses a limit by less than its
    band may hold it in the simulation."""
    ranked = sorted((c for c in priced if _within_band(c)), key=lambda c: -c.objective_value)
    label = chosen.estimate.strategy.label()
    near = [c for c in ranked if c.estimate.strategy.label() == label]
    other, seen = [], {label}
    for c in (*bench.search.ranked, *ranked):
        name = c.estimate.strategy.label()
        if name not in seen:
            seen.add(name)
            other.append(c)
    half = MAX_SIMULATED // 2
    return [*near[: max(half, MAX_SIMULATED - len(other))], *other[: max(half, MAX_SIMULATED - len(near))]]


def _within_band(c: Candidate) -> bool:
    if c.estimate.feasible:
        return True
    errors = {f.code for f in c.estimate.findings if f.severity == "error"}
    close = all(p.margin is None or p.margin > -p.band for p in c.estimate.predictions)
    return errors == {"slo-broken"} and close and math.isfinite(c.objective_value)


def run(bench: Workbench, s: Strategy, count: int) -> Run | None:
    """`s` under the stated load for `count` requests, and, where a rate is stated, at full batch for what it can serve."""
    d, objective = bench.deployment, choose_objective(bench.deployment)
    w = d.workload
    # No more sequences at a time than planned, whatever memory would hold.
    seats = -(-s.batch // (s.attn_dp or 1))
    limits = {**d.engine.limits, "max_num_seqs": min(seats, d.engine.limits.get("max_num_seqs", seats))}
    d = d.model_copy(update={"engine": d.engine.model_copy(update={"limits": limits})})
    try:
        loaded = simulate_strategy(d, s, bench.curves, requests=count, spread=SPREAD)
        full = loaded
        if w.request_rate is not None and objective != "min_latency":
            full = simulate_strategy(d, s, bench.curves, requests=count, concurrency=s.batch * s.dp, spread=SPREAD)
    except (ToolError, ValueError):
        return None
    margins = [_margin(r, loaded, full, w.isl, w.osl, s.num_devices) for r in d.requirements.gates]
    return Run(s, value(objective, loaded, full, s), min(margins, default=math.inf), _broken(bench, margins))


def _broken(bench: Workbench, margins: list[float]) -> str:
    """The requirement that is missed by most, if by more than its error band."""
    d = bench.deployment
    clear = [
        (m, r)
        for m, r in zip(margins, d.requirements.gates, strict=True)
        if m < -bench.curves.band(BAND_OF[r.metric], d.cluster).band
    ]
    if not clear:
        return ""
    m, r = min(clear, key=lambda x: x[0])
    got = r.limit * (1 + m) if r.higher_is_better else r.limit * (1 - m)
    return f"{r.metric} {statistic(r)} = {got:.4g}, required {'>=' if r.higher_is_better else '<='} {r.limit:.4g}"


def value(objective: Objective, loaded: Simulated, full: Simulated, s: Strategy) -> float:
    """The search's objective (tools.search.objective), of simulated figures."""
    if objective == "min_latency":
        return -float(loaded.outcome.e2e.mean())
    if objective == "fewest_devices":
        per_device = full.output_tok_s / s.num_devices
        return -s.num_devices + per_device / (1.0 + per_device) * 0.5
    if objective == "knee":
        return math.log(max(full.output_tok_s, 1e-300)) - math.log(max(float(loaded.outcome.tpot.mean()), 1e-300))
    return full.output_tok_s


def _margin(r: Requirement, loaded: Simulated, full: Simulated, isl: int, osl: int, devices: int) -> float:
    """How far inside the requirement the simulation is, relative to it."""
    latency = {"ttft_s": "ttft", "tpot_s": "tpot", "e2e_latency_s": "e2e"}.get(r.metric)
    if latency is not None:
        times = getattr(loaded.outcome, latency)
        share = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 0.999}.get(r.stat)
        got = float(times.mean() if share is None else np.quantile(times, share))
        return (r.limit - got) / r.limit
    tokens = {"output": 1.0, "input": isl / osl, "total": (isl + osl) / osl}
    got = full.output_tok_s * (tokens[r.counts] if r.counts else max(tokens.values()))
    if r.metric == "request_rate":
        got = full.output_tok_s / osl
    elif r.metric == "throughput_per_device":
        got /= devices
    return (got - r.limit) / r.limit


# ---------------------------------------------------------------------------------------------------------- candidates


def candidates(bench: Workbench, centre: Strategy) -> Iterator[Strategy]:
    """Moves around `centre` first, then factorisations of its devices and of the cluster's, each once."""
    seen = {strategy_key(centre)}
    stated = stated_batch(bench)
    moe = bench.deployment.model.moe is not None
    for fields in (*moves(centre, moe), *factorisations(bench, centre)):
        try:
            strategy = Strategy.model_validate(
                {**centre.model_dump(exclude={"etp", "attn_dp", "layers_per_stage"}), **fields, **stated}
            )
        except (ToolError, ValueError):
            continue
        key = strategy_key(strategy)
        if key not in seen and _within(bench, strategy):
            seen.add(key)
            yield strategy


def stated_batch(bench: Workbench) -> dict[str, int]:
    """A batch that the conditions fix per replica is no degree of freedom."""
    w = bench.deployment.workload
    fixed = w.batch_size is not None and w.concurrency is None and w.request_rate is None
    return {"batch": w.batch_size} if fixed and w.batch_size is not None else {}


def _within(bench: Workbench, s: Strategy) -> bool:
    d = bench.deployment
    limit = d.num_devices if s.stage_devices else d.cluster.num_devices
    return (limit is None or s.num_devices <= limit) and s.pp <= bench.deployment.model.num_hidden_layers


def moves(s: Strategy, moe: bool = False) -> Iterator[dict[str, object]]:
    """Batch and step size halved, doubled, a little more or less; a layer moved between stages; factor 2 moved between two
    axes."""
    same = {"etp": s.etp, "attn_dp": s.attn_dp, "layers_per_stage": s.layers_per_stage}
    for batch in (s.batch * 2, s.batch // 2, s.batch + max(1, s.batch // 8), s.batch - max(1, s.batch // 8)):
        if batch >= 1:
            yield {**same, "batch": batch}
    tokens = s.max_num_batched_tokens
    for n in (tokens * 2, tokens // 2, tokens * 3 // 4, tokens * 3 // 2):
        if n >= 256:
            yield {**same, "max_num_batched_tokens": n}
    yield from stage_moves(s, same)
    if moe:
        yield from expert_moves(s)
    degrees = {"tp": s.tp, "pp": s.pp, "dp": s.dp}
    for a, b in product(degrees, degrees):
        if a != b and degrees[a] % 2 == 0:
            batch = s.batch * 2 if a == "dp" else max(1, s.batch // 2) if b == "dp" else s.batch
            moved = {**degrees, a: degrees[a] // 2, b: degrees[b] * 2, "batch": batch}
            yield {**moved, "ep": min(s.ep, moved["tp"] * (s.attn_dp or 1))}


def stage_moves(s: Strategy, same: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """One layer from a stage at one end to its neighbour or to the other end, and back."""
    cut, last = s.layers_per_stage, s.pp - 1
    if cut is None or len(cut) != s.pp or s.pp < 2:
        return
    for give, take in dict.fromkeys([(0, 1), (0, last), (last, 0), (last, last - 1), (1, 0), (last - 1, last)]):
        if give != take and cut[give] > 1:
            moved = list(cut)
            moved[give] -= 1
            moved[take] += 1
            yield {**same, "layers_per_stage": tuple(moved)}


def expert_moves(s: Strategy) -> Iterator[dict[str, object]]:
    """Experts whole instead of sliced and back; attention's tp against its data parallelism; how tokens reach experts."""
    attn_dp, etp = s.attn_dp or 1, s.etp or 1
    if etp % 2 == 0:
        yield {"attn_dp": attn_dp, "ep": s.ep * 2, "etp": etp // 2, "layers_per_stage": s.layers_per_stage}
    if s.ep % 2 == 0:
        yield {"attn_dp": attn_dp, "ep": s.ep // 2, "etp": etp * 2, "layers_per_stage": s.layers_per_stage}
    if s.tp % 2 == 0:
        yield {"tp": s.tp // 2, "attn_dp": attn_dp * 2, "etp": s.etp, "layers_per_stage": s.layers_per_stage}
    if attn_dp % 2 == 0:
        yield {"tp": s.tp * 2, "attn_dp": attn_dp // 2, "etp": s.etp, "layers_per_stage": s.layers_per_stage}
    if attn_dp > 1:
        other = "allgather" if s.moe_comm == "auto" else "auto"
        yield {"moe_comm": other, "attn_dp": s.attn_dp, "etp": s.etp, "layers_per_stage": s.layers_per_stage}


def factorisations(bench: Workbench, s: Strategy) -> Iterator[dict[str, object]]:
    """tp · pp · attn_dp · dp = devices, the requests in flight shared evenly; experts whole or sliced."""
    n, moe = s.num_devices, bench.deployment.model.moe
    flight = s.batch * s.dp
    for tp in _divisors(n):
        for pp in _divisors(n // tp):
            for attn in _divisors(n // (tp * pp)) if moe else (1,):
                dp = n // (tp * pp * attn)
                fields = {"tp": tp, "pp": pp, "dp": dp, "attn_dp": attn, "batch": max(attn, -(-flight // dp))}
                for ep in {1, tp * attn} if moe else {1}:
                    yield {**fields, "ep": ep}


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
