"""Rigor: would the plan cause an engineering error?"""

from __future__ import annotations

import math

from tools.oracle.prove import TOLERANCE
from tools.rubric.base import Item, Score, criterion, mean, score
from tools.rubric.record import Fidelity, GraphProof, RunRecord
from tools.spec.plan import Estimate, Plan
from tools.spec.strategy import Strategy

CAP = 0.5
"""An engineering error is not made good by many things that are right: one of them caps the score."""


@criterion("rigor")
def rigor(record: RunRecord) -> Score:
    items = [*_findings(record), *_rules(record), *verdict_items(record.plan)]
    if record.plan.status == "proven":
        items += [
            *_proofs(record),
            *_drawn_is_proven(record),
            *_ranks(record.plan),
            *_layers(record.plan),
            *(_memory(record.plan) if record.fits is None else _fits(record.fits)),
        ]
        items += [*_parts(record.plan)]
    else:
        items += _infeasible_is_argued(record.plan)
    wrong = any(i.value < 1 for i in items)
    value = min(mean(items), CAP) if wrong else 1.0
    good = f"none of {len(items)} checks finds an engineering error"
    return score("rigor", value, items, good)


def _item(name: str, ok: bool, reason: str) -> Item:
    return Item(name=name, value=float(ok), reason=reason)


def _findings(record: RunRecord) -> list[Item]:
    """Failed checks. The binding finding of an infeasible verdict is its content, not a flaw of it."""
    plan = record.plan
    found = [*plan.findings, *record.launch_findings]
    if plan.status == "proven" and plan.estimate is not None:
        found += plan.estimate.findings
    errors = [f for f in found if f.severity == "error"]
    if plan.status == "infeasible":
        errors = [
            f
            for f in errors
            if plan.infeasible is None or f not in (plan.infeasible.binding, *plan.infeasible.findings)
        ]
    return [_item(f.code, False, f.message) for f in errors] or [
        _item("checks", True, f"{len(found)} findings, none an error")
    ]


def _rules(record: RunRecord) -> list[Item]:
    return [
        _item(f"{f.code} in {d.dot}", False, f.message)
        for d in record.dags
        for f in d.findings
        if f.severity == "error"
    ] or [_item("DAG rules", True, f"{sum(len(d.passed) for d in record.dags)} rule verdicts, none broken")]


def _proofs(record: RunRecord) -> list[Item]:
    """Prefill and decode of the plan and of its baseline, each executed and equal."""
    items = [_proof(p) for p in record.proofs]
    for role in ("plan", "baseline"):
        for phase in ("prefill", "decode"):
            if not any(_stands_for(p, role) and p.proof.phase == phase for p in record.proofs):
                items.append(_item(f"proof of the {role}'s {phase}", False, "was not run"))
    return items


def _stands_for(proof: GraphProof, role: str) -> bool:
    """Where the baseline equals the plan, the runner-up is drawn and proven in its place."""
    return proof.role == role or (role == "baseline" and proof.role == "runner_up")


def _proof(graph: GraphProof) -> Item:
    p = graph.proof
    ok = p.ok and math.isfinite(p.max_relative_error) and p.max_relative_error <= TOLERANCE and p.tensors_compared > 0
    reason = (
        f"max relative error {p.max_relative_error:.1e} over {p.tensors_compared} tensors on "
        f"{p.devices_simulated} simulated devices"
    )
    if p.failures:
        reason += f"; {p.failures[0]}"
    return _item(f"{graph.role} {p.strategy} {p.phase}", ok, reason)


def _drawn_is_proven(record: RunRecord) -> list[Item]:
    items = []
    for dag in record.dags:
        proven = {p.proof.digest for p in record.proofs if p.role == dag.role and p.proof.phase == dag.phase}
        if dag.digest:
            same = dag.digest in proven
            items.append(
                _item(
                    dag.dot, same, f"drawn graph {dag.digest[:12]} is {'' if same else 'not '}the one that was proven"
                )
            )
    return items


def verdict_items(plan: Plan) -> list[Item]:
    """Each prediction's verdict, recomputed from its value, limit and band."""
    items = []
    for p in plan.estimate.predictions if plan.estimate else ():
        if p.limit is None or p.limit <= 0:
            continue
        higher = p.metric.startswith(("throughput", "request_rate"))
        margin = (p.value - p.limit) / p.limit if higher else (p.limit - p.value) / p.limit
        true = "broken" if margin < 0 or math.isnan(margin) else "at_risk" if margin < p.band else "met"
        reason = f"{p.value:.4g} against {p.limit:.4g} with band ±{p.band:.0%} is {true}, reported as {p.status}"
        items.append(_item(f"{p.metric} {p.stat}", true == p.status, reason))
    return items


def _ranks(plan: Plan) -> list[Item]:
    """The rank map gives every device exactly one place, and the devices exist."""
    strategy = plan.strategy
    if strategy is None:
        return [_item("strategy", False, "a proven plan without a strategy")]
    ranks = sorted(r for row in plan.rank_map for r in row["ranks"])
    pools = [u.strategy for u in plan.units] or list(plan.pools.values()) or [strategy]
    n, have = sum(s.num_devices for s in pools), plan.deployment.num_devices
    equation = f"{' + '.join(map(_equation, pools))} = {n}"
    return [
        _item("devices", plan.num_devices == n, f"{equation}, the plan says {plan.num_devices}"),
        _item("devices exist", have is None or n <= have, f"{n} needed, {'unbounded' if have is None else have} there"),
        _item("rank map", ranks == list(range(n)), f"{len(ranks)} places for {n} devices"),
        *_kinds(plan),
    ]


def _kinds(plan: Plan) -> list[Item]:
    """Of several kinds of devices no more are used than there are of each, and every rank's memory is its own kind's."""
    items = []
    for c in plan.deployment.clusters if plan.units else ():
        n = sum(len(row["ranks"]) for row in plan.rank_map if row["device"] == c.device.id)
        there = c.num_devices is None or n <= c.num_devices
        items.append(_item(f"{c.device.id} exist", there, f"{n} of {c.num_devices} are used"))
    for u in plan.units:
        size = {c.device.id: c.memory_bytes for c in u.clusters}
        on = {row["stage"]: row["device"] for row in u.rank_map}
        wrong = [m for m in u.estimate.memory if m.capacity_bytes != size[on[m.stage]]]
        items.append(_item(f"memory of {u.name}", not wrong, "each stage is counted with the bytes of its own device"))
    return items


def _equation(s: Strategy) -> str:
    group = f"tp({s.tp}) × cp({s.cp}) × attn_dp({s.attn_dp})"
    apart = "".join(f" + {name}({n})" for name, n in (("experts", s.expert_devices), ("pool", s.attn_pool)) if n)
    return f"pp({s.pp}) × {f'({group}{apart})' if apart else group} × dp({s.dp})"


def _layers(plan: Plan) -> list[Item]:
    if plan.strategy is None:
        return []
    return [i for s, e in _strategies(plan) for i in _layers_of(s, e, plan.deployment.model.num_hidden_layers)]


def _strategies(plan: Plan) -> list[tuple[Strategy, Estimate | None]]:
    """Every strategy that runs, with its own estimate."""
    assert plan.strategy is not None
    return [(u.strategy, u.estimate) for u in plan.units] or [(plan.strategy, plan.estimate)]


def _layers_of(s: Strategy, e: Estimate | None, total: int) -> list[Item]:
    items = []
    if s.layers_per_stage:
        n = sum(s.layers_per_stage)
        items.append(
            _item("layers per stage", n == total, f"{'+'.join(map(str, s.layers_per_stage))} = {n} of {total}")
        )
    if e and e.memory:
        n = sum({m.stage: m.layers for m in e.memory}.values())  # a stage may have several device groups
        items.append(_item("layers on stages", n == total, f"{n} of {total}"))
    return items


def _memory(plan: Plan) -> list[Item]:
    if plan.units:
        return [i for u in plan.units for i in _memory(plan.model_copy(update={"units": (), "estimate": u.estimate}))]
    stages = plan.estimate.memory if plan.estimate else ()
    e = plan.estimate
    items = [_item("batch", e.batch <= e.max_batch, f"{e.batch} sequences per replica, {e.max_batch} fit")] if e else []
    items += [
        _item(
            f"memory of {s.where}",
            s.free_bytes >= 0,
            f"{s.total_bytes / 1e9:.1f} of {s.capacity_bytes / 1e9:.1f} GB",
        )
        for s in stages
    ]
    return items if stages else [*items, _item("memory", False, "no memory was computed")]


def _fits(fits: tuple[Fidelity, ...]) -> list[Item]:
    """A paper's own strategy that cannot be loaded is drawn and marked; who deploys it meets an engineering error."""
    return [_item(f.name, f.holds, f.reason) for f in fits] or [_item("memory", False, "no memory was computed")]


def _parts(plan: Plan) -> list[Item]:
    items = [
        _item(f"parts of {p.module}.{p.weight}", p.matches and _tally(p.num_shards, p.copies, p.devices), p.sentence)
        for p in (*plan.parts, *(p for u in plan.units for p in u.parts))
    ]
    return items or [_item("parts", False, "no module's parts were counted")]


def _tally(shards: int, copies: int, devices: int) -> bool:
    """Σ copies is a whole multiple of the hosts: shards per device (usually one)."""
    return devices > 0 and shards * copies % devices == 0


def _infeasible_is_argued(plan: Plan) -> list[Item]:
    verdict = plan.infeasible
    if verdict is None:
        return [_item("verdict", False, "infeasible, but without the binding constraint")]
    return [
        _item("search", verdict.num_searched > 0, f"{verdict.num_searched} strategies were searched"),
        _item("binding constraint", bool(verdict.binding.values), f"{verdict.binding.message}"),
    ]
