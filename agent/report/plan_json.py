"""`plan.json`: the answer of a run as one value.

Proven and predicted stay apart: predictions lie in estimates, all else is proven or stated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.report.format import banded, gate_words, gigabytes, name_of, percent, plural, quantity, rate
from tools.oracle.prove import Proof
from tools.spec.base import Bug
from tools.spec.conditions import Conditions
from tools.spec.deployment import Deployment
from tools.spec.finding import Finding
from tools.spec.plan import (
    Candidate,
    Economics,
    Estimate,
    Infeasible,
    ModuleParts,
    Plan,
    PlanUnit,
    SearchResult,
    Sensitivity,
    Unit,
)
from tools.spec.strategy import Strategy
from tools.spec.term import Prediction


def phase_entry(proof: Proof, *, batch: int, seq_len: int, kv_len: int) -> dict[str, Any]:
    """One phase of `Plan.phases`: the sizes its DAG is drawn at, the graph's digest, and its proof."""
    return {
        "batch": batch,
        "seq_len": seq_len,
        "kv_len": kv_len,
        "digest": proof.digest,
        "proof": proof.model_dump(mode="json"),
    }


def assemble_plan(
    deployment: Deployment, conditions: Conditions, result: SearchResult, *, chosen: Candidate | None = None,
    phases: Mapping[str, Mapping[str, Any]] | None = None,
    baseline_phases: Mapping[str, Mapping[str, Any]] | None = None,
    parts: Sequence[ModuleParts] = (), findings: Iterable[Finding] = (), proposal: Mapping[str, Any] | None = None,
    passages: Iterable[Mapping[str, Any]] = (), degraded: Iterable[str] = (), economics: Sequence[Economics] = (),
    sensitivity: Sensitivity | None = None, units: Sequence[PlanUnit] = (),
) -> Plan:  # fmt: skip
    """The plan of `chosen` (default: the search's best), or the infeasible verdict when the search found none.

    A proven plan needs both phases with proofs that hold; anything else is our bug, never a plan.
    """
    chosen = chosen or result.best
    common: dict[str, Any] = {
        "deployment": deployment,
        "objective": result.objective,
        "baseline": result.baseline.estimate,
        "asked": tuple(c.estimate for c in result.asked),
        "what_ifs": result.what_ifs,
        "economics": tuple(economics),
        "units": tuple(units),
        "pooled": result.pooled,
        "fleets": tuple(f.model_copy(update={"candidate": f.candidate and _brief(f.candidate)}) for f in result.fleets),
        "sensitivity": sensitivity,
        "assumptions": deployment.assumptions,
        "conflicts": tuple(c.model_dump(mode="json") for c in conditions.conflicts),
        "ignored": tuple(i.model_dump(mode="json") for i in conditions.ignored),
        "findings": _all_findings(conditions, (*result.refused, *findings)),
        "search": search_record(result, chosen, deployment.model.moe is not None),
        "proposal": dict(proposal or {}),
        "knowledge": tuple(dict(p) for p in passages),
        "degraded": tuple(degraded),
    }
    if chosen is None:
        return _infeasible_plan(deployment, result, common)
    return _proven_plan(deployment, result, chosen, phases or {}, baseline_phases or {}, tuple(parts), common)


def plan_to_json(plan: Plan) -> str:
    return plan.model_dump_json(indent=2) + "\n"


def _all_findings(conditions: Conditions, findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The reader's flags are findings too; equal ones are said once."""
    flags = (Finding(code=f.code, severity="warning", cause="input", message=f.message) for f in conditions.flags)
    return tuple({(f.code, f.message, f.where): f for f in (*findings, *flags)}.values())


def _infeasible_plan(deployment: Deployment, result: SearchResult, common: dict[str, Any]) -> Plan:
    if result.infeasible is None:
        raise Bug("the search gave neither a best strategy nor an infeasible verdict")
    return Plan(
        status="infeasible", headline=infeasible_headline(deployment, result.infeasible), strategy=None,
        infeasible=result.infeasible, **common,
    )  # fmt: skip


def _proven_plan(
    deployment: Deployment, result: SearchResult, chosen: Candidate, phases: Mapping[str, Mapping[str, Any]],
    baseline_phases: Mapping[str, Mapping[str, Any]], parts: tuple[ModuleParts, ...], common: dict[str, Any],
) -> Plan:  # fmt: skip
    for phase in ("prefill", "decode"):
        proof = phases.get(phase, {}).get("proof")
        if proof is None or not proof["ok"]:
            raise Bug(f"{chosen.estimate.strategy.label()} {phase}: a plan is published only with a proof that holds")
    merged = {
        p: {**phases[p], **({"baseline": dict(baseline_phases[p])} if p in baseline_phases else {})}
        for p in ("prefill", "decode")
    }
    strategy = chosen.estimate.strategy
    return Plan(
        status="proven",
        headline=headline(deployment, chosen.estimate, common["units"]),
        at_risk=at_risk(chosen.estimate, common["degraded"]),
        strategy=strategy,
        phases=merged,
        num_devices=chosen.estimate.num_devices,
        rank_map=tuple(row for u in common["units"] for row in u.rank_map) or rank_map_of(chosen.estimate, deployment),
        parts=parts,
        estimate=chosen.estimate,
        runner_up=_runner_up(result, chosen),
        **common,
    )


def _runner_up(result: SearchResult, chosen: Candidate) -> Estimate | None:
    """Best-ranked candidate that parallelises differently; the same degrees at another batch are no alternative."""
    mine = _layout_of(chosen)
    others = (c.estimate for c in result.ranked if _layout_of(c) != mine)
    return next(others, None)


def _layout_of(c: Candidate) -> tuple[Any, ...]:
    return tuple((u.name, *degrees(u.strategy)) for u in c.units) or degrees(c.estimate.strategy)


def _brief(c: Candidate) -> Candidate:
    """Without what only the published plan is read for: breakdowns and memory tables."""

    def short(e: Estimate) -> Estimate:
        return e.model_copy(update={"breakdown": {}, "memory": (), "findings": ()})

    units = tuple(u.model_copy(update={"estimate": short(u.estimate)}) for u in c.units)
    return c.model_copy(update={"estimate": short(c.estimate), "units": units})


def degrees(s: Strategy) -> tuple[Any, ...]:
    return (s.tp, s.pp, s.dp, s.ep, s.etp, s.attn_dp, s.cp, s.dcp, s.sp, s.weight_dtype, s.kv_dtype, s.layers_per_stage)


# -------------------------------------------------------------------------------------------------------- sentences


def device_name(deployment: Deployment) -> str:
    return " + ".join(c.device.name for c in deployment.clusters)


def headline(deployment: Deployment, estimate: Estimate, units: Sequence[Unit] = ()) -> str:
    """The answer: what to run on what, and what it is predicted to give."""
    s, d = estimate.strategy, deployment
    if len(units) > 1:
        what = "; ".join(f"{_role(u)} {_run_on(d, u.estimate, u)}" for u in units)
    else:
        what = _run_on(d, estimate, units[0] if units else None)
    return (
        f"Run {d.model.name} ({s.weight_dtype} weights, {s.kv_dtype} KV cache) {'with ' if len(units) > 1 else ''}{what}, "
        f"with {s.engine}. Predicted: {rate(estimate.output_tok_s)} output in total "
        f"({rate(estimate.output_tok_s_per_device)} per device) with {plural(estimate.concurrency, 'request')} "
        f"in flight{gates(estimate)}."
    )


def _role(u: Unit) -> str:
    return u.phases_run[0] if len(u.phases_run) == 1 else f"{percent(u.share)} of the requests"


def _run_on(d: Deployment, e: Estimate, unit: Unit | None) -> str:
    """ "on 8 × NVIDIA H100 as tp4·dp2, 2 replicas of 4 devices, 64 sequences at a time each"."""
    s = e.strategy
    replicas = f", {plural(s.dp, 'replica')} of {plural(s.replica, 'device')}" if s.dp > 1 else ""
    each = " each" if s.dp > 1 else ""
    where = devices_words(unit) if unit else f"{s.num_devices} × {d.cluster.device.name}"
    return (
        f"on {where} as {s.label(moe=d.model.moe is not None)}{replicas}, {plural(e.batch, 'sequence')} at a time{each}"
    )


def devices_words(unit: Unit) -> str:
    """ "8 × NVIDIA H100 (42 layers) + 16 × NVIDIA A100 (38 layers)"."""
    s = unit.strategy
    if not s.stage_devices:
        return f"{s.num_devices} × {unit.clusters[0].device.name}"
    out = []
    for c in unit.clusters:
        mine = [i for i, k in enumerate(s.stage_devices) if k == c.device.id]
        layers = sum((s.layers_per_stage or ())[i] for i in mine)
        out.append(f"{len(mine) * s.group * s.dp} × {c.device.name} ({plural(layers, 'layer')})")
    return " + ".join(out)


def gates(estimate: Estimate, most: int = 2) -> str:
    """The `most` requirements with the smallest margins, and how many more there are."""
    gated = sorted((p for p in estimate.predictions if p.limit is not None), key=lambda p: p.margin or 0.0)
    if len(gated) <= most:
        gated = [p for p in estimate.predictions if p.limit is not None]
    said = [f"; {name_of(p)} {banded(p)} (limit {quantity(p.metric, p.limit or 0.0)})" for p in gated[:most]]
    more = len(gated) - most
    return "".join(said) + (f"; {plural(more, 'more requirement')} with wider margins" if more > 0 else "")


CAUSES = {
    "memory": "memory",
    "kv": "the KV cache",
    "slo": "a latency or throughput requirement",
    "shape": "the model's shape",
    "network": "the network",
    "engine": "the engine",
    "balance": "balance",
    "input": "the input",
}


def infeasible_headline(deployment: Deployment, verdict: Infeasible) -> str:
    kinds = [
        f"{'any number of' if c.num_devices is None else f'{c.num_devices} ×'} {c.device.name}"
        for c in deployment.clusters
    ]
    devices = " + ".join(kinds) + (", alone or together," if len(kinds) > 1 else "")
    way_out = f" Nearest change that gives a plan: {verdict.nearest[0].description}." if verdict.nearest else ""
    return (
        f"No strategy serves {deployment.model.name} on {devices} within the "
        "requirements: all "
        f"{verdict.num_searched:,} were searched. What binds is {CAUSES.get(verdict.cause, verdict.cause)}: "
        f"{gate_words(verdict.binding)}.{way_out}"
    )


def at_risk(estimate: Estimate, degraded: Sequence[str] = ()) -> tuple[str, ...]:
    """What to hear before deciding: blocks that were guessed, margins smaller than the error band, tight memory, an LLM that
    did not answer."""
    lines = [f"model: {f.message}" for f in estimate.findings if f.code == "blocks-in-doubt"]
    lines += [risk_line(p) for p in estimate.predictions if p.status in ("at_risk", "broken")]
    lines += [
        f"ambiguous: {f.message}"
        for f in estimate.findings
        if f.code == "throughput-reading" and f.severity == "warning"
    ]
    for stage in estimate.memory:
        if 0 <= stage.free_bytes < 0.02 * stage.capacity_bytes:
            lines.append(
                f"memory of {stage.where}: {gigabytes(stage.free_bytes)} free of {gigabytes(stage.capacity_bytes)}"
            )
    if degraded:
        lines.append(f"the built-in policy answered in place of the LLM at: {', '.join(degraded)}")
    return tuple(dict.fromkeys(lines))


def risk_line(p: Prediction) -> str:
    assert p.limit is not None and p.margin is not None
    said = f"{name_of(p)}: predicted {banded(p)}, limit {quantity(p.metric, p.limit)}"
    if p.status == "broken":
        return f"{said}: the limit is exceeded by {percent(-p.margin)}"
    return f"{said}: the margin of {percent(p.margin)} is smaller than the error band"


# ---------------------------------------------------------------------------------------------------------- records


def rank_map_of(e: Estimate, deployment: Deployment) -> tuple[dict[str, Any], ...]:
    return rank_map(e.strategy, deployment, list({s.stage: s.layers for s in e.memory}.values()))


def rank_map(strategy: Strategy, deployment: Deployment, layers: Sequence[int]) -> tuple[dict[str, Any], ...]:
    """One row per replica and stage: its global ranks, the nodes they lie on, its layers, its axes; where there are several
    kinds of devices their kind, whose nodes are then counted by themselves.

    Replica k holds ranks k·replica …, stage i of it the next `group` of them; tp is innermost.
    """
    group, places = strategy.group, deployment.places(strategy)
    first = [sum(layers[:i]) for i in range(strategy.pp)] if len(layers) == strategy.pp else [None] * strategy.pp
    axes = {"tp": strategy.tp, "cp": strategy.cp, "attn_dp": strategy.attn_dp}
    if deployment.model.moe is not None:
        axes |= {"etp": strategy.etp, "ep": strategy.ep, "edp": strategy.edp}
    rows = []
    for replica in range(strategy.dp):
        for stage in range(strategy.pp):
            start = replica * strategy.replica + stage * group
            ranks = list(range(start, start + group))
            at, a = first[stage], strategy.attention_group
            apart = {
                "attention": ranks[:a],
                "pool": ranks[a : a + strategy.attn_pool],
                "experts": ranks[a + strategy.attn_pool :],
            }
            groups = {"groups": {k: v for k, v in apart.items() if v}} if group > a else {}
            cluster, there = places[replica * strategy.pp + stage]
            kind = {"device": cluster.device.id} if deployment.further_clusters else {}
            nodes = sorted({(there + i) // cluster.devices_per_node for i in range(group)})
            rows.append(
                {
                    "replica": replica, "stage": stage, "ranks": ranks, "nodes": nodes,
                    "layers": None if at is None else [at, at + layers[stage] - 1], "axes": axes, **groups, **kind,
                }
            )  # fmt: skip
    return tuple(rows)


def search_record(result: SearchResult, chosen: Candidate | None, moe: bool = True) -> dict[str, Any]:
    """What the search saw: counts, the front, the ranked few, the table for unbounded devices. No wall-clock time."""
    marked: dict[str, Candidate] = {"baseline": result.baseline}
    if chosen is not None:
        marked["plan"] = chosen
    return {
        "num_enumerated": result.num_enumerated,
        "num_legal": result.num_legal,
        "num_fitting": result.num_fitting,
        "num_feasible": result.num_feasible,
        "pareto": [point(c, moe) for c in result.pareto],
        "ranked": [point(c, moe) for c in result.ranked],
        "marked": {name: point(c, moe) for name, c in marked.items()},
        "asked": [point(c, moe) for c in result.asked],
        "devices_table": [dict(row) for row in result.devices_table],
    }


def _finite(value: float) -> float | None:
    """None for what no queue ever reaches (an overloaded baseline's TTFT)."""
    return value if math.isfinite(value) else None


def point(candidate: Candidate, moe: bool = True) -> dict[str, Any]:
    e = candidate.estimate
    labels = [f"{u.name} {u.strategy.label(moe=moe)}" for u in candidate.units]
    return {
        "strategy": " + ".join(labels) or e.strategy.label(moe=moe),
        "weight_dtype": e.strategy.weight_dtype,
        "kv_dtype": e.strategy.kv_dtype,
        "batch": e.batch,
        "concurrency": e.concurrency,
        "num_devices": e.num_devices,
        "ttft_s": _finite(e.ttft_s),
        "tpot_s": _finite(e.tpot_s),
        "output_tok_s": _finite(e.output_tok_s),
        "output_tok_s_per_device": _finite(e.output_tok_s_per_device),
        "feasible": e.feasible,
        "objective_value": _finite(candidate.objective_value),
        "reason": candidate.reason,
    }
