"""The Plan of a paper: per model its proposed strategy with the baselines beside it, and whether what is proposed fits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from agent.bind import PHASES, Workbench
from agent.draw import Drawn
from agent.report.plan_json import phase_entry, rank_map
from tools.rubric.record import Fidelity
from tools.spec.deployment import Deployment
from tools.spec.finding import Finding
from tools.spec.paper import PaperMethod, PaperModel, PaperStrategy
from tools.spec.plan import Plan
from tools.spec.strategy import Phase

if TYPE_CHECKING:
    pass

from agent.paper_run import POSITIONS, PaperGraph, PaperVerification, deployment_of

NOT_LOADED = ("memory", "kv-cache")
"""Codes of the memory check: weights alone, or weights and cache, exceed a device."""


def fits(method: PaperMethod, verification: PaperVerification) -> Iterable[Fidelity]:
    """Whether what is proposed fits the devices of its paper: weights, cache of the whole batch, activations of every stage.

    How many sequences an engine's scheduler admits is no matter of the paper.
    """
    for g in verification.graphs:
        if g.verified.subject.role != "plan":
            continue
        short = next((f for f in g.verified.findings if f.code in NOT_LOADED), None)
        worst = min(g.estimate.memory, key=lambda m: m.free_bytes) if g.estimate and g.estimate.memory else None
        holds, reason = short is None, "no stage exceeds its device's memory"
        if short is not None:
            reason = _with_way_out(short)
        elif worst is not None:
            holds = worst.free_bytes >= 0
            reason = f"{worst.total_bytes / 1e9:.1f} of {worst.capacity_bytes / 1e9:.1f} GB on {worst.where}"
        yield Fidelity(name=f"{method.model(g.model).name}, {g.name}: fits its devices", holds=holds, reason=reason)


def _with_way_out(f: Finding) -> str:
    return f"{f.message}; fix: {f.fix}" if f.fix else f.message


def plan_of(
    method: PaperMethod, verification: PaperVerification, model: PaperModel, drawn: Drawn | None = None
) -> Plan | None:
    """The Plan of one model's proposed strategy, with its baselines; None where the proposed one cannot be drawn."""
    proposed = next(iter(method.of(model.key, "proposed")), None)
    graph = verification.of(model.key, proposed.name) if proposed else None
    if proposed is None or graph is None:
        return None
    deployment = deployment_of(method, model, proposed)
    others = [g for s in method.of(model.key, "baseline") if (g := verification.of(model.key, s.name))]
    phases: dict[str, dict[str, Any]] = {
        p: _entry(g, p) | ({"baseline": _entry(others[0], p)} if others and p in others[0].verified.proofs else {})
        for p in PHASES
        if (g := _proposed_in(method, verification, model.key, p)) is not None
    }
    pools = _pools(method, verification, model.key)
    return Plan(
        status="proven", headline=headline(method, model, verification), deployment=deployment,
        at_risk=tuple(_at_risk(verification)), objective="total_throughput", strategy=proposed.strategy, phases=phases,
        pools={s.phases[0]: s.strategy for s in pools} if len(pools) > 1 else {},
        num_devices=sum(s.strategy.num_devices for s in pools), rank_map=_rank_map(pools, deployment, verification),
        parts=graph.verified.parts, estimate=graph.estimate, baseline=others[0].estimate if others else None,
        asked=tuple(g.estimate for g in others[1:] if g.estimate), assumptions=deployment.assumptions,
        ignored=tuple(i.model_dump(mode="json") for i in method.conditions.ignored),
        findings=tuple(_findings(method, verification, proposed, deployment)),
        proposal=_proposal(method, verification, proposed, drawn),
    )  # fmt: skip


def _proposed_in(method: PaperMethod, verification: PaperVerification, key: str, phase: Phase) -> PaperGraph | None:
    """The graph of the proposed strategy that runs this phase; phases may have pools of their own."""
    graphs = (verification.of(key, s.name) for s in method.of(key, "proposed") if phase in s.phases)
    return next((g for g in graphs if g is not None), None)


def _pools(method: PaperMethod, verification: PaperVerification, key: str) -> list[PaperStrategy]:
    """Proposed strategies that run at the same time, each on devices of its own."""
    drawn = [s for s in method.of(key, "proposed") if verification.of(key, s.name)]
    return [s for s in drawn if len(s.phases) == 1] or drawn[:1]


def _rank_map(
    pools: Sequence[PaperStrategy], deployment: Deployment, verification: PaperVerification
) -> tuple[dict[str, Any], ...]:
    """Global ranks of every pool, one after the other."""
    rows: list[dict[str, Any]] = []
    first = 0
    for s in pools:
        g = verification.of(s.model, s.name)
        memory = g.estimate.memory if g and g.estimate else ()
        layers = list({m.stage: m.layers for m in memory}.values()) or _layers(deployment, s)
        for row in rank_map(s.strategy, deployment, layers):
            ranks = [r + first for r in row["ranks"]]
            nodes = sorted({r // deployment.cluster.devices_per_node for r in ranks})
            pool = {"pool": s.phases[0]} if len(s.phases) == 1 else {}
            rows.append({**row, **pool, "ranks": ranks, "nodes": nodes})
        first += s.strategy.num_devices
    return tuple(rows)


def _proposal(
    method: PaperMethod, verification: PaperVerification, proposed: PaperStrategy, drawn: Drawn | None
) -> dict[str, Any]:
    return {
        "by": "paper",
        "title": method.title,
        "strategy": proposed.strategy.label(),
        "justification": proposed.title,
        "quotes": [q.model_dump(mode="json") for q in proposed.quotes],
        "graphs": graphs_table(method, verification, drawn),
    }


def _entry(graph: PaperGraph, phase: Any) -> dict[str, Any]:
    sizes = graph.verified.sizes[phase]
    return phase_entry(graph.verified.proofs[phase], batch=sizes.batch_size, seq_len=sizes.seq_len, kv_len=sizes.kv_len)


def _layers(deployment: Deployment, s: PaperStrategy) -> list[int]:
    return [stage.num_layers for stage in Workbench(deployment).program(s.strategy, "prefill").stages]


def _at_risk(verification: PaperVerification) -> list[str]:
    """Strategies that do not fit the paper's own hardware (once each), what their words leave in doubt, and contexts that
    the model was not made for."""
    out: dict[tuple[str, str, str], str] = {}
    for g in verification.graphs:
        beyond = [f for f in (g.estimate.findings if g.estimate else ()) if f.code == POSITIONS]
        for f in (*g.verified.findings, *beyond):
            if f.severity == "warning" and (f.cause in ("memory", "kv", "input") or f in beyond):
                short = " does not fit" if f.code in NOT_LOADED else ""
                key = (
                    g.model,
                    "" if f in beyond else g.name,
                    f.code if f.code in (*NOT_LOADED, POSITIONS) else f.message,
                )
                out.setdefault(key, f"{g.model}, {g.name}{short}: {_with_way_out(f)}")
    return list(out.values())


def _findings(
    method: PaperMethod, verification: PaperVerification, proposed: PaperStrategy, deployment: Deployment
) -> Iterable[Finding]:
    yield from (
        Finding(code=f.code, severity="info", cause="input", message=f.message) for f in method.conditions.flags
    )
    for u in (*method.unsupported, *verification.refused):
        yield Finding(code="paper-unsupported", severity="warning", cause="input", message=u.message())
    have, used = deployment.cluster.num_devices, proposed.strategy.num_devices
    if have is not None and used < have:
        text = f"{proposed.model}: the paper gives its method {used} of the {have} devices"
        yield Finding(code="paper-idle-devices", severity="info", cause="balance", message=text)
    for g in verification.graphs:
        own = (g.model, g.name) == (proposed.model, proposed.name)
        for f in g.verified.findings:
            yield f if own else f.model_copy(update={"message": f"{g.model}, {g.name}: {f.message}"})


def graphs_table(method: PaperMethod, verification: PaperVerification, drawn: Drawn | None) -> list[dict[str, Any]]:
    """One row per graph: model, role, phase, strategy, devices, dims, proof, files."""
    files = {d.name: d for d in drawn.drawings} if drawn else {}
    rows = []
    for g in verification.graphs:
        s = next(x for x in method.strategies if (x.model, x.name) == (g.model, g.name))
        for phase in g.verified.proofs:
            proof, sizes, d = g.verified.proofs[phase], g.verified.sizes[phase], files.get(g.file(phase))
            rows.append(
                {
                    "model": method.model(g.model).name,
                    "name": s.name,
                    "role": s.role,
                    "phase": phase,
                    "strategy": s.strategy.model_dump(mode="json"),
                    "label": s.strategy.label(moe=method.model(g.model).spec.moe is not None),
                    "devices": s.strategy.num_devices,
                    "devices_source": s.devices_source,
                    **sizes.model_dump(),
                    "digest": proof.digest,
                    "ok": proof.ok,
                    "max_relative_error": proof.max_relative_error,
                    "dag": f"dag/{d.name}.dot" if d else None,
                }
            )
    return rows


def headline(method: PaperMethod, model: PaperModel, verification: PaperVerification) -> str:
    """What is deployed on how many devices, against what, and that it is proven."""
    moe = model.spec.moe is not None
    drawn = [s for s in method.of(model.key) if verification.of(model.key, s.name)]
    proposed = [s for s in drawn if s.role == "proposed"]
    pools = _pools(method, verification, model.key)
    labels = ", ".join(f"{s.strategy.label(moe=moe)}{_regime(s)}" for s in proposed)
    against = ", ".join(s.strategy.label(moe=moe) for s in drawn if s.role == "baseline")
    models = f"{len(method.models)} models; " if len(method.models) > 1 else ""
    count = sum(len(g.verified.proofs) for g in verification.graphs)
    short = [f.name.removesuffix(": fits its devices") for f in fits(method, verification) if not f.holds]
    return (
        f"{method.title}: {models}{model.name} as {labels} on {sum(s.strategy.num_devices for s in pools)} devices"
        f"{f', against {against}' if against else ''}; {count} DAGs, each proven equal to the unpartitioned model."
        f"{_short(short)}"
    )


def _short(names: Sequence[str]) -> str:
    return f" Not deployable as given, for lack of memory: {'; '.join(names)}." if names else ""


def _regime(s: PaperStrategy) -> str:
    """When a strategy applies, where it does not always: " (prefill)", " (above 4096 tokens)"."""
    if len(s.phases) == 1:
        return f" ({s.phases[0]})"
    if s.strategy.pool_above:
        return f" ({'above' if s.strategy.attn_pool else 'up to'} {s.strategy.pool_above} tokens)"
    return ""
