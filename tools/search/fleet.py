"""Several kinds of devices in one plan: which of them serve alone, side by side, or as stages of one pipeline.

    fleets(deployment, curves, objective)   every way to group the kinds, best first; infeasible ones behind, with the reason

Kinds are grouped in every way (set partitions): a group of one kind runs the best strategy of its own search, a group of
several the best pipeline over them (`tools.search.mixed`), and a router deals the requests out over the groups in the ratio
of what each serves within the latencies. Every group must meet every latency requirement with its share by itself, which is
sufficient for all requests together; throughput requirements are judged on the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from tools.cost.curves import Curves
from tools.cost.estimate import estimate, predict
from tools.cost.judge import judge
from tools.cost.serving import Load, Performance
from tools.search.economics import on_cluster, unit_stages
from tools.search.explain import binding_of
from tools.search.mixed import mixed_candidates
from tools.search.objective import LATENCIES, value_of
from tools.search.rank import explore, order
from tools.spec.base import ToolError
from tools.spec.deployment import Deployment, Objective
from tools.spec.finding import Finding
from tools.spec.hardware import Cluster
from tools.spec.plan import Candidate, Estimate, Fleet, Plan, PlanUnit, Unit
from tools.spec.strategy import Strategy

MOST_KINDS = 4
"""Of devices that are grouped in every way: 5 kinds have 52 groupings."""
NEAR = 1e-3
"""Relative difference of the objective below which the plan that uses more of the devices is the better one."""
Group = tuple[Cluster, ...]


def fleets(d: Deployment, curves: Curves, objective: Objective) -> tuple[Fleet, ...]:
    """Every grouping of the kinds of devices, feasible ones first, best first. Empty for one kind of device, an unbounded
    number of one, or more than `MOST_KINDS`.

    A grouping that leaves a kind idle is tried only for one group alone, or where none that uses all kinds is feasible.
    """
    kinds = d.clusters
    if not 2 <= len(kinds) <= MOST_KINDS or d.num_devices is None:
        return ()
    d = d.model_copy(update={"objective": objective})
    seek = _Seeker(d, curves)
    whole = [seek.fleet(groups) for groups in partitions(kinds)]
    alone = [seek.fleet(((c,),)) for c in kinds]
    some: list[Fleet] = []
    if len(kinds) > 2 and not any(f.candidate and f.candidate.estimate.feasible for f in whole):
        some = [seek.fleet(groups) for groups in _partial(kinds)]
    return tuple(sorted([*whole, *alone, *some], key=_rank))


def _rank(f: Fleet) -> tuple[bool, float, int]:
    c = f.candidate
    if c is None or not c.estimate.feasible:
        return True, 0.0, 0
    return False, -c.objective_value, -c.estimate.num_devices


def better(a: Candidate, b: Candidate) -> bool:
    """Whether `a` is the better plan: by the objective, and where that is all but equal by how many devices it uses."""
    gap = (a.objective_value - b.objective_value) / max(abs(b.objective_value), 1e-12)
    if abs(gap) > NEAR:
        return gap > 0
    return (a.estimate.num_devices, a.objective_value) > (b.estimate.num_devices, b.objective_value)


def partitions(kinds: Sequence[Cluster]) -> Iterator[tuple[Group, ...]]:
    """Every way to put all of `kinds` into groups."""
    if not kinds:
        yield ()
        return
    first, rest = kinds[0], kinds[1:]
    for groups in partitions(rest):
        yield ((first,), *groups)
        for i, g in enumerate(groups):
            yield (*groups[:i], (first, *g), *groups[i + 1 :])


def _partial(kinds: Sequence[Cluster]) -> Iterator[tuple[Group, ...]]:
    """Groupings of more than one and fewer than all kinds."""
    for bits in range(1, 2 ** len(kinds) - 1):
        chosen = [c for i, c in enumerate(kinds) if bits >> i & 1]
        if len(chosen) > 1:
            yield from partitions(chosen)


def unit_deployment(d: Deployment, clusters: Group, share: float = 1.0, in_flight: int | None = None) -> Deployment:
    """The conditions of one group: its devices, its share of the load (of a closed loop `in_flight` requests), the latencies;
    what is asked of all devices together (throughputs) is left out where it has but a share."""
    w = d.workload
    load = {
        "request_rate": None if w.request_rate is None else w.request_rate * share,
        "concurrency": w.concurrency if in_flight is None else in_flight,
    }
    own = reduce(_floats_of, clusters[1:], on_cluster(d, clusters[0]))
    gates = d.requirements.gates if share == 1.0 else tuple(g for g in d.requirements.gates if g.metric in LATENCIES)
    return own.model_copy(
        update={
            "further_clusters": clusters[1:], "workload": w.model_copy(update=load),
            "requirements": d.requirements.model_copy(update={"gates": gates}),
        }
    )  # fmt: skip


def _floats_of(d: Deployment, other: Cluster) -> Deployment:
    """One dtype for all stages: 16-bit floats that the other kind has too."""
    theirs = on_cluster(d, other)
    return d.model_copy(update={"weight_dtypes": theirs.weight_dtypes, "kv_dtypes": theirs.kv_dtypes})


def dealt(whole: int, shares: Sequence[float]) -> list[int]:
    """`whole` in parts of these shares, each at least 1, that add up to it where there are as many as parts."""
    ends = [round(whole * sum(shares[: i + 1])) for i in range(len(shares))]
    parts = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    for i, n in enumerate(parts):
        if n < 1:
            parts[i], fullest = 1, parts.index(max(parts))
            parts[fullest] = max(1, parts[fullest] - 1 + n)
    return parts


def name_of(clusters: Group) -> str:
    return "+".join(c.device.id for c in clusters)


@dataclass(slots=True)
class _Seeker:
    """Best strategies of groups of kinds, each looked for once."""

    deployment: Deployment
    curves: Curves
    _most: dict[str, Estimate | str]
    """By group: what it serves at most within the latencies, or why nothing."""

    def __init__(self, deployment: Deployment, curves: Curves) -> None:
        self.deployment, self.curves, self._most = deployment, curves, {}

    def fleet(self, groups: tuple[Group, ...]) -> Fleet:
        names = tuple(name_of(g) for g in groups)
        if len(groups) == 1:
            found = self.best(unit_deployment(self.deployment, groups[0]))
            if isinstance(found, str):
                return Fleet(groups=names, why=found)
            unit = Unit(name=names[0], clusters=groups[0], share=1.0, estimate=found)
            return Fleet(groups=names, candidate=together(self.deployment, self.curves, (unit,)))
        most = [self.most(g) for g in groups]
        lacking = next((f"{n}: {m}" for n, m in zip(names, most, strict=True) if isinstance(m, str)), None)
        if lacking is not None:
            return Fleet(groups=names, why=lacking)
        return self._shared(groups, [m for m in most if not isinstance(m, str)])

    def _shared(self, groups: tuple[Group, ...], most: Sequence[Estimate]) -> Fleet:
        """The groups under shares of the load in the ratio of what each serves."""
        w, names = self.deployment.workload, tuple(name_of(g) for g in groups)
        closed = w.request_rate is None and w.concurrency is not None
        serves = [float(m.concurrency) if closed else m.request_rate for m in most]
        shares = [s / sum(serves) for s in serves]
        flying = dealt(w.concurrency, shares) if closed and w.concurrency is not None else [None] * len(shares)
        units = []
        for group, name, share, n in zip(groups, names, shares, flying, strict=True):
            found = self.best(unit_deployment(self.deployment, group, share, n))
            if isinstance(found, str):
                return Fleet(groups=names, why=f"{name}: {found}")
            units.append(Unit(name=name, clusters=group, share=share, in_flight=n, estimate=found))
        if w.request_rate is None:
            # In a closed loop a group gets as many requests as it finishes.
            done = sum(u.estimate.request_rate for u in units)
            units = [u.model_copy(update={"share": u.estimate.request_rate / done}) for u in units]
        return Fleet(groups=names, candidate=together(self.deployment, self.curves, tuple(units)))

    def most(self, group: Group) -> Estimate | str:
        """The group at the most that it serves within the latencies, whatever load is stated."""
        key = name_of(group)
        if key not in self._most:
            d = unit_deployment(self.deployment, group, 0.5)
            w = d.workload.model_copy(update={"request_rate": None, "concurrency": None})
            stated = self.deployment.workload.request_rate or self.deployment.workload.concurrency
            full = {"workload": w, "objective": "total_throughput"} if stated else {"workload": w}
            self._most[key] = self.best(d.model_copy(update=full))
        return self._most[key]

    def best(self, d: Deployment) -> Estimate | str:
        """The best feasible strategy of these conditions, or why there is none."""
        try:
            if d.further_clusters:
                found = mixed_candidates(d, self.curves)
                able = [c for c in found if c.estimate.feasible]
                return max(able, key=lambda c: c.objective_value).estimate if able else _why(min(found, key=_errors))
            space, seen = explore(d, self.curves)
            ranked = order(space, d.objective or "total_throughput")
            if ranked:
                return estimate(d, ranked[0].strategy(d), self.curves)
            return binding_of(d, self.curves, seen).message
        except ToolError as error:
            return " ".join(str(error).split())


def _errors(c: Candidate) -> int:
    return sum(f.severity == "error" for f in c.estimate.findings)


def _why(c: Candidate) -> str:
    first = next((f.message for f in c.estimate.findings if f.severity == "error"), "infeasible")
    return f"{c.estimate.strategy.label()}: {first}"


# ------------------------------------------------------------------------------------------------------------- together


def together(d: Deployment, curves: Curves, units: tuple[Unit, ...]) -> Candidate:
    """The units as one candidate, judged under the conditions as a whole: means weighted by the shares, percentiles those of
    the slowest unit (all requests together are no slower), rates summed."""
    assert d.objective is not None
    own = [own for _, own in units_of(units, d)]
    perfs = [predict(x, u.strategy, curves).performance for x, u in zip(own, units, strict=True)]
    load = Load.of(d.workload)
    perf = _joined(perfs, [u.share for u in units], load)
    n = sum(u.strategy.num_devices for u in units)
    clusters = tuple(c for u in units for c in u.clusters)
    predictions, verdicts = judge(d, curves, perf, load, n, clusters)
    findings = (*_unit_findings(units), *_idle(d, units), *verdicts, *_router(units))
    osl = max(1, d.workload.osl)
    main = max(units, key=lambda u: u.strategy.num_devices)
    figures = _figures(perf, osl)
    e = main.estimate.model_copy(
        update={
            **figures, "feasible": not any(f.severity == "error" for f in findings), "findings": findings,
            "predictions": predictions, "num_devices": n, "breakdown": main.estimate.breakdown if len(units) == 1 else {},
            "concurrency": d.workload.concurrency
            if load.concurrency is not None
            else sum(u.estimate.concurrency for u in units),
            "utilisation": _over_devices(units, lambda e: e.utilisation),
            "time_imbalance": max(u.estimate.time_imbalance for u in units),
            "memory_imbalance": max(u.estimate.memory_imbalance for u in units),
        }
    )  # fmt: skip
    arrays = (np.asarray([x]) for x in (e.capacity_tok_s or e.output_tok_s, e.e2e_s, e.tpot_s, n))
    value = float(value_of(d.objective, *arrays)[0])
    return Candidate(rank=0, estimate=e, objective_value=value, units=units)


def _joined(perfs: Sequence[Performance], shares: Sequence[float], load: Load) -> Performance:
    """All requests of several groups; `shares` add up to 1."""

    def mean(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.asarray(sum(s * v for s, v in zip(shares, values, strict=True)))

    def total(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.asarray(sum(values))

    def slowest(tables: Sequence) -> dict[str, np.ndarray]:
        return {k: np.maximum.reduce([t[k] for t in tables]) for k in tables[0]}

    return replace(
        perfs[0], ttft=mean([p.ttft for p in perfs]), tpot=mean([p.tpot for p in perfs]), e2e=mean([p.e2e for p in perfs]),
        ttft_percentiles=slowest([p.ttft_percentiles for p in perfs]),
        tpot_percentiles=slowest([p.tpot_percentiles for p in perfs]),
        request_rate=total([p.request_rate for p in perfs]), output_tok_s=total([p.output_tok_s for p in perfs]),
        input_tok_s=total([p.input_tok_s for p in perfs]), concurrency=total([p.concurrency for p in perfs]),
        burst_ttft=np.maximum.reduce([p.burst_ttft for p in perfs]), stable=np.logical_and.reduce([p.stable for p in perfs]),
        # Under arrivals a fixed ratio saturates with the first group; in a closed loop requests go where a place is free.
        capacity_rate=np.minimum.reduce([p.capacity_rate / s for p, s in zip(perfs, shares, strict=True)])
        if load.rate is not None else total([p.capacity_rate for p in perfs]),
    )  # fmt: skip


def _figures(p: Performance, osl: int) -> dict[str, object]:
    def one(x: np.ndarray) -> float:
        return float(np.ravel(x)[0])

    output = one(p.output_tok_s)
    return {
        "ttft_s": one(p.ttft), "tpot_s": one(p.tpot), "e2e_s": one(p.e2e), "output_tok_s": output,
        "ttft_percentiles": {k: one(v) for k, v in p.ttft_percentiles.items()},
        "tpot_percentiles": {k: one(v) for k, v in p.tpot_percentiles.items()},
        "input_tok_s": one(p.input_tok_s), "total_tok_s": output + one(p.input_tok_s), "request_rate": one(p.request_rate),
        "capacity_tok_s": one(p.capacity_rate) * osl if bool(np.ravel(p.stable)[0]) else output,
        "burst_ttft_s": one(p.burst_ttft),
    }  # fmt: skip


def _over_devices(units: Sequence[Unit], of: Callable[[Estimate], dict[str, float]]) -> dict[str, float]:
    n = sum(u.strategy.num_devices for u in units)
    return {k: sum(of(u.estimate)[k] * u.strategy.num_devices for u in units) / n for k in of(units[0].estimate)}


JUDGED_TOGETHER = frozenset({"slo-broken", "slo-at-risk", "throughput-reading", "idle-devices", "overload"})


def _unit_findings(units: Sequence[Unit]) -> list[Finding]:
    """What was found on each unit, named; what is judged on the whole only where it is an error of a unit."""
    several, out = len(units) > 1, []
    for u in units:
        for f in u.estimate.findings:
            if f.code in JUDGED_TOGETHER and not (several and f.severity == "error"):
                continue
            out.append(f.model_copy(update={"message": f"{u.name}: {f.message}"}) if several else f)
    return out


def _idle(d: Deployment, units: Sequence[Unit]) -> list[Finding]:
    used: dict[str, int] = {}
    for u in units:
        for c in unit_stages(u):
            used[c.device.id] = used.get(c.device.id, 0) + u.strategy.group * u.strategy.dp
    left = [((c.num_devices or 0) - used.get(c.device.id, 0), c.device.id) for c in d.clusters]
    idle = sum(n for n, _ in left)
    if not idle:
        return []
    kinds = ", ".join(f"{n} × {device}" for n, device in left if n)
    message = f"{idle} of {d.num_devices} devices stay idle ({kinds})"
    return [Finding(code="idle-devices", severity="warning", cause="other", message=message, values={"idle": idle})]


def _router(units: Sequence[Unit]) -> list[Finding]:
    if len(units) < 2:
        return []
    said = ", ".join(f"{u.share:.1%} to {u.name}" for u in units)
    message = f"a router deals the requests out: {said}; percentiles are those of the slowest group"
    return [Finding(code="router", severity="info", message=message, values={u.name: u.share for u in units})]


def fleet_candidates(found: Sequence[Fleet]) -> tuple[Candidate, ...]:
    """The feasible ones, best first."""
    able = [f.candidate for f in found if f.candidate is not None and f.candidate.estimate.feasible]
    out: list[Candidate] = []
    for c in able:
        at = next((i for i, x in enumerate(out) if better(c, x)), len(out))
        out.insert(at, c)
    return tuple(out)


def views(plan: Plan) -> tuple[Plan, ...]:
    """The plan of every unit by itself, under the conditions that it serves; a plan without units is its own."""
    return tuple(_view(plan, u) for u in plan.units) or (plan,)


def _view(plan: Plan, u: PlanUnit) -> Plan:
    own = {"strategy": u.strategy, "estimate": u.estimate, "num_devices": u.strategy.num_devices, "units": ()}
    own |= {"phases": u.phases, "rank_map": u.rank_map, "parts": u.parts, "fleets": (), "pooled": None}
    return plan.model_copy(update={**own, "deployment": unit_conditions(plan.deployment, u)})


def units_of(units: Sequence[Unit], d: Deployment) -> tuple[tuple[Unit, Deployment], ...]:
    """Every unit with the conditions that it serves under."""
    return tuple((u, unit_conditions(d, u)) for u in units)


def unit_conditions(d: Deployment, u: Unit) -> Deployment:
    """What a unit serves under: its share of the load, or for a pool of one phase its devices alone, because the latencies
    are of both pools together."""
    if len(u.phases_run) > 1:
        return unit_deployment(d, u.clusters, u.share, u.in_flight)
    return pool_conditions(d, u.clusters[0], u.strategy)


def pool_conditions(d: Deployment, cluster: Cluster, s: Strategy) -> Deployment:
    """The devices of a pool of one phase, with as many sequences as it holds."""
    load = {"request_rate": None, "concurrency": s.batch * s.dp}
    return on_cluster(d, cluster.model_copy(update={"num_devices": s.num_devices})).model_copy(
        update={
            "workload": d.workload.model_copy(update=load),
            "requirements": d.requirements.model_copy(update={"gates": ()}),
        }
    )  # fmt: skip


__all__ = [
    "better", "fleet_candidates", "fleets", "name_of", "partitions", "together", "unit_deployment", "units_of",
    "views",
]  # fmt: skip
