"""What a run publishes, as values: the plan, its report, launch files, the evaluation, and the manifest's list.

`bundle` is a function of recorded state only: called again after a crash it gives the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.bind import Workbench
from agent.draw import Drawing, Drawn, dag_dir
from agent.pools import export_pair
from agent.report import assemble_plan, pareto_csv, pareto_svg, phase_entry, plan_to_json, render_plan_md
from agent.report.plan_json import rank_map_of
from agent.verify import Proven, ProvenInfeasible, Verified
from knowledge.catalog import released_checkpoint
from tools.cost.serving import DRAFT_LENGTH
from tools.engines.export import LAUNCHERS, Expected, LaunchFile, export, serving_engines
from tools.engines.rules.handover import CONNECTORS
from tools.rubric import Constraint, Deliverable, Evaluation, Reference, RunRecord, evaluate
from tools.search.fleet import JUDGED_TOGETHER, views
from tools.spec.base import ToolError
from tools.spec.conditions import Conditions, InputFile
from tools.spec.deployment import Deployment
from tools.spec.finding import Finding
from tools.spec.plan import Candidate, Plan, PlanUnit, SearchResult, Unit
from tools.spec.strategy import Strategy

DAG_KINDS = {".py": "dag_script", ".dot": "dag_dot", ".svg": "dag_svg"}


@dataclass(frozen=True, slots=True)
class Record:
    """Everything the earlier nodes left, loaded."""

    bench: Workbench
    run_dir: Path
    inputs: tuple[InputFile, ...]
    inputs_after: dict[str, str]
    conditions: Conditions
    search: SearchResult
    verdict: Proven | ProvenInfeasible
    drawn: Drawn
    proposal: dict[str, Any]
    passages: Sequence[dict[str, Any]] = ()
    constraints: tuple[Constraint, ...] = ()
    degraded: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    opinion: str = ""


@dataclass(frozen=True, slots=True)
class Bundle:
    """`files`: path → (kind, content) of all that is generated; `copies`: path → (kind, source) of the drawn DAGs."""

    plan: Plan
    evaluation: Evaluation
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    copies: dict[str, tuple[str, Path]] = field(default_factory=dict)
    record: RunRecord | None = None
    """What was judged."""


def bundle(record: Record, reference: Reference | None) -> Bundle:
    plan = simulated(make_plan(record), reference)
    launch, launch_findings = launch_files(record.bench, plan)
    files: dict[str, tuple[str, bytes]] = {"plan.json": ("plan", plan_to_json(plan).encode())}
    files |= {f"launch/{f.name}": ("launch", f.text.encode()) for f in launch}
    if plan.search.get("pareto"):
        files["pareto.svg"] = ("pareto", pareto_svg(plan).encode())
        files["pareto.csv"] = ("pareto", pareto_csv(plan).encode())
    copies = dag_copies(record)
    listed = deliverables(files, copies, record.drawn)
    run_record = _run_record(record, plan, listed, launch_findings, reference)
    judged = evaluate(run_record)
    report = render_plan_md(plan, files=listed, evaluation=judged) + opinion_section(record)
    files["plan.md"] = ("report", report.encode())
    files["evaluation.json"] = ("evaluation", judged.to_json().encode())
    return Bundle(plan=plan, evaluation=judged, files=files, copies=copies, record=run_record)


def simulated(plan: Plan, reference: Reference | None) -> Plan:
    """The plan, with what the request-level simulation says against it first."""
    if reference is None or not reference.broken or plan.status != "proven":
        return plan
    way_out = f"; {reference.strategy} holds every requirement there" if reference.holds else ""
    line = f"the request-level simulation finds {reference.broken}: queues that the closed form does not see{way_out}"
    return plan.model_copy(update={"at_risk": (*plan.at_risk, line)})


def make_plan(record: Record) -> Plan:
    verdict = record.verdict
    verification = verdict.verification
    plans, baseline = verification.all("plan"), verification.of("baseline")
    chosen = verdict.chosen if isinstance(verdict, Proven) else None
    units = plan_units(record.bench, chosen, plans)
    plan = _main(chosen, plans)
    findings = [*record.findings]
    for v in plans:
        shown = [f for f in v.findings if not units or f.code not in JUDGED_TOGETHER]
        findings += [_of_unit(v, f) for f in shown] if len(units) > 1 else shown
        findings += staged_findings(v.subject.strategy)
    if chosen and chosen.units:
        findings += [f for f in chosen.estimate.findings if f.code in (*JUDGED_TOGETHER, "router")]
    for v in verification.subjects:
        if v.subject.role != "plan":
            findings += [_of_other(v, f) for f in v.findings if f.severity != "info"]
    return assemble_plan(
        record.bench.deployment, record.conditions, record.search,
        chosen=chosen, units=units,
        phases=_all_phases(plan, plans), baseline_phases=_phases(baseline), parts=plan.parts if plan else (), findings=findings,
        proposal=record.proposal, passages=record.passages, degraded=record.degraded,
        economics=record.bench.economics(chosen), sensitivity=record.bench.sensitivity(chosen),
    )  # fmt: skip


def _main(chosen: Candidate | None, plans: Sequence[Verified]) -> Verified | None:
    """Of the plan's units the one that stands for it."""
    if chosen is None or not plans:
        return None
    return next(v for v in plans if v.subject.strategy == chosen.estimate.strategy)


def _all_phases(main: Verified | None, plans: Sequence[Verified]) -> dict[str, dict[str, Any]]:
    """Of the unit that stands for the plan; of two pools one phase each."""
    if main is None or main.subject.pair is None:
        return _phases(main)
    return {phase: entry for v in plans for phase, entry in _phases(v).items()}


def plan_units(bench: Workbench, chosen: Candidate | None, plans: Sequence[Verified]) -> tuple[PlanUnit, ...]:
    """The units of a plan with their proofs, ranks and parts."""
    if chosen is None or not chosen.units:
        return ()
    out: list[PlanUnit] = []
    first = 0
    for (unit, own), v in zip(bench.units(chosen), plans, strict=True):
        rows = tuple(
            {
                **row,
                "unit": unit.name,
                "device": row.get("device", unit.clusters[0].device.id),
                **_shifted(row, first),
                **(_same_nodes(row, first, own.deployment) if v.subject.pair else {}),
            }
            for row in rank_map_of(unit.estimate, own.deployment)
        )
        fields = {k: getattr(unit, k) for k in Unit.model_fields}
        out.append(PlanUnit(**fields, phases=_phases(v), rank_map=rows, first_rank=first, parts=v.parts))
        first += unit.strategy.num_devices
    return tuple(out)


def _shifted(row: dict[str, Any], first: int) -> dict[str, Any]:
    """Ranks of a row counted through all units."""
    groups = {k: [r + first for r in v] for k, v in row.get("groups", {}).items()}
    return {"ranks": [r + first for r in row["ranks"]], **({"groups": groups} if groups else {})}


def _same_nodes(row: dict[str, Any], first: int, d: Deployment) -> dict[str, Any]:
    """Nodes of a pool's row: both pools lie on the nodes of one cluster."""
    return {"nodes": sorted({(r + first) // d.cluster.devices_per_node for r in row["ranks"]})}


def _of_unit(v: Verified, f: Finding) -> Finding:
    return f.model_copy(update={"message": f"{v.subject.unit}: {f.message}"}) if v.subject.unit else f


def _phases(v: Verified | None) -> dict[str, dict[str, Any]]:
    if v is None:
        return {}
    sizes = v.sizes
    return {
        p: phase_entry(proof, batch=sizes[p].batch_size, seq_len=sizes[p].seq_len, kv_len=sizes[p].kv_len)
        for p, proof in v.proofs.items()
    }


def _of_other(v: Verified, f: Finding) -> Finding:
    """A finding about the baseline or runner-up is told, but is no error of the plan."""
    label = f"{v.subject.role.replace('_', '-')} {v.subject.strategy.label()}"
    return f.model_copy(update={"severity": "info", "message": f"{label}: {f.message}"})


def launch_files(bench: Workbench, plan: Plan) -> tuple[tuple[LaunchFile, ...], tuple[Finding, ...]]:
    """Launch files of a proven plan for its engine and for the other engines that accept it; of several units in a folder
    each, with the shares that a router gives them."""
    if plan.strategy is None or plan.estimate is None:
        return (), ()
    if plan.units:
        return _unit_launch_files(bench, plan)
    files: list[LaunchFile] = []
    findings: list[Finding] = []
    usable = serving_engines(bench.deployment.cluster.known_device)
    own = plan.strategy.engine if plan.strategy.engine in LAUNCHERS else next(iter(usable), "vllm")
    for engine in (own, *(e for e in usable if e != own)):
        made, said = export_plan(bench, plan, engine)
        files += [f.model_copy(update={"name": f.name if "/" in f.name else f"{engine}/{f.name}"}) for f in made]
        if engine == own:
            findings += said
        elif not made and said:
            first = said[0]
            findings.append(
                first.model_copy(update={"severity": "info", "message": f"no {engine} files: {first.message}"})
            )
    return tuple(files), tuple(findings)


def _unit_launch_files(bench: Workbench, plan: Plan) -> tuple[tuple[LaunchFile, ...], tuple[Finding, ...]]:
    files, findings = [placement_file(plan)], []
    if len(plan.units[0].phases_run) == 1:
        made, said = _pool_launch_files(plan)
        return (*files, *made), said
    for unit, view in zip(plan.units, views(plan), strict=True):
        made, said = launch_files(bench.under(view.deployment), view)
        files += [f.model_copy(update={"name": f"{unit.name}/{f.name}"}) for f in made]
        findings += [f.model_copy(update={"message": f"{unit.name}: {f.message}"}) for f in said]
    return tuple(files), tuple(findings)


def _pool_launch_files(plan: Plan) -> tuple[tuple[LaunchFile, ...], tuple[Finding, ...]]:
    """Both pools, their proxy and the benchmark, for every engine whose connector joins them."""
    assert plan.strategy is not None
    pair, d = (plan.units[0].strategy, plan.units[-1].strategy), plan.deployment
    files: list[LaunchFile] = []
    findings: list[Finding] = []
    usable = [e for e in serving_engines(d.cluster.known_device) if e in CONNECTORS]
    for engine in dict.fromkeys((plan.strategy.engine, *usable)):
        try:
            more = {"expected": expected(plan), "request_rate": bench_rate(d)}
            made, said = export_pair(d, pair, engine, concurrency=plan.estimate and plan.estimate.concurrency, **more)
        except ToolError as error:
            made, said = (), (Finding(code="launch", severity="warning", cause="engine", message=str(error)),)
        files += [f.model_copy(update={"name": f.name if "/" in f.name else f"{engine}/{f.name}"}) for f in made]
        if engine == plan.strategy.engine:
            findings += said
    return tuple(files), tuple(findings)


def placement_file(plan: Plan) -> LaunchFile:
    """What no engine's flags say: the share of the requests that each unit gets, and which rank lies on which device."""
    told = [
        {
            "unit": u.name, "launch": "" if len(u.phases_run) == 1 else f"{u.name}/", "share": u.share,
            "requests_in_flight": u.in_flight, "first_rank": u.first_rank,
            "ranks": [{k: row[k] for k in ("replica", "stage", "ranks", "device", "nodes")} for row in u.rank_map],
        }
        for u in plan.units
    ]  # fmt: skip
    return LaunchFile(name="placement.json", text=json.dumps({"units": told}, indent=1) + "\n", executable=False)


def staged_findings(s: Strategy) -> tuple[Finding, ...]:
    """What the launch files of a pipeline over several kinds of devices leave to whoever starts them."""
    if not s.stage_devices:
        return ()
    order = ", ".join(f"{i} on {device}" for i, device in enumerate(s.stage_devices))
    again = f"; start it {s.dp} times, one replica each, behind a router" if s.dp > 1 else ""
    message = (
        f"the scripts start one replica with one node rank per stage of {s.group} devices: node rank {order}{again}; the engine "
        f"does not know one kind of device from another"
    )
    return (
        Finding(code="mixed-launch", severity="warning", cause="engine", message=message, values={"replicas": s.dp}),
    )


def export_plan(
    bench: Workbench, plan: Plan, engine: str, kinds: tuple[str, ...] = ("shell",), image: str | None = None
) -> tuple[tuple[LaunchFile, ...], tuple[Finding, ...]]:
    """The exporter with everything the plan knows; what it refuses is a finding."""
    assert plan.strategy is not None
    d, e, s = bench.deployment, plan.estimate, plan.strategy
    clusters, nodes, per_node = d.stage_clusters(s), d.cluster.num_nodes, d.cluster.devices_per_node
    told = staged_findings(s)
    if s.stage_devices:
        # An engine knows nodes of one size: every stage is one.
        nodes, per_node, s = s.pp, s.group, s.model_copy(update={"dp": 1})
    try:
        files, findings = export(
            engine,
            d.model,
            s,
            isl=d.workload.isl,
            osl=d.workload.osl,
            released=released_checkpoint(d.model.name),
            num_nodes=nodes,
            devices_per_node=per_node,
            max_model_len=max(d.workload.context, d.workload.isl + d.workload.osl),
            max_num_seqs=s.batch,
            max_num_batched_tokens=s.max_num_batched_tokens,
            memory_total_bytes=min(c.memory_bytes for c in clusters),
            memory_reserve=d.requirements.memory_reserve,
            concurrency=bench_concurrency(plan),
            request_rate=bench_rate(d),
            device=d.cluster.known_device,
            weights_bytes=max((m.weights_bytes for m in e.memory), default=None) if e else None,
            kinds=kinds,
            image=image,
            expected=expected(plan),
            bench_notes=bench_notes(plan, engine),
            cached=d.workload.prefix_hit_rate,
            draft=draft_of(d),
        )
        return files, (*findings, *told)
    except ToolError as error:
        return (), (Finding(code="launch", severity="warning", cause="engine", message=str(error)),)


def draft_of(d: Deployment) -> tuple[int, float] | None:
    """(tokens drafted per step, share accepted) where the predictions count on speculation."""
    w = d.workload
    return None if w.draft_acceptance is None else (w.draft_length or DRAFT_LENGTH, w.draft_acceptance)


def bench_rate(d: Deployment) -> float | None:
    return d.workload.request_rate * d.workload.peak_factor if d.workload.request_rate is not None else None


def bench_concurrency(plan: Plan) -> int | None:
    """Requests in flight of the benchmark; under a rate all places there are, so that none is held back."""
    assert plan.strategy is not None
    if plan.deployment.workload.request_rate is not None:
        return plan.strategy.batch * plan.strategy.dp
    return plan.estimate.concurrency if plan.estimate else None


RESULT_KEYS = {"ttft_s": "ttft", "tpot_s": "tpot", "e2e_latency_s": "e2el"}
"""A latency in the result of the engines' benchmarks: mean_ttft_ms, p99_ttft_ms, …"""


def expected(plan: Plan) -> tuple[Expected, ...]:
    """The plan's predictions under the names that a benchmark's result gives them, in its units."""
    if plan.estimate is None:
        return ()
    out: dict[str, Expected] = {}
    for p in plan.estimate.predictions:
        stat = {"limit": "mean", "max": ""}.get(p.stat, p.stat)
        if p.metric in RESULT_KEYS and stat:
            key = f"{stat}_{RESULT_KEYS[p.metric]}_ms"
            name = f"{stat} {RESULT_KEYS[p.metric].upper()} (ms)"
            limit = None if p.limit is None else p.limit * 1e3
            out.setdefault(key, Expected(key=key, name=name, value=p.value * 1e3, band=p.band, limit=limit))
        elif p.metric == "throughput_total" and p.limit is None:
            name = "output tokens/s"
            out["output_throughput"] = Expected(key="output_throughput", name=name, value=p.value, band=p.band)
    return tuple(e for e in out.values() if e.value > 0 and math.isfinite(e.value))


def bench_notes(plan: Plan, engine: str) -> tuple[str, ...]:
    """How the benchmark's setting has to differ from a plain run for the predictions to hold."""
    w = plan.deployment.workload
    spare = next((f.values for f in (plan.estimate.findings if plan.estimate else ()) if f.code == "spare"), None)
    out = []
    if spare:
        out.append(f"predicted with {spare['spare_replicas']} of {spare['replicas']} replicas stopped: stop them first")
    if w.prefix_hit_rate and not engine.startswith("vllm"):
        out.append(
            f"predicted with {w.prefix_hit_rate:.0%} of each prompt in the prefix cache; random prompts find none there"
        )
    if w.draft_acceptance is not None:
        out.append("speculative decoding: random prompts accept other drafts than yours")
    if w.request_rate is None and w.concurrency is None and w.batch_size is not None:
        out.append("the plan is judged with a batch that arrives together; this measures the steady state")
    return tuple(out)


def dag_copies(record: Record) -> dict[str, tuple[str, Path]]:
    folder = dag_dir(record.run_dir)
    return {
        f"dag/{name}": (DAG_KINDS[Path(name).suffix], folder / name) for d in record.drawn.drawings for name in d.files
    }


def deliverables(
    files: dict[str, tuple[str, bytes]], copies: dict[str, tuple[str, Path]], drawn: Drawn
) -> tuple[Deliverable, ...]:
    """Every file that will be published. Report and evaluation are written last: they are listed with a size of 1."""
    owner: dict[str, Drawing] = {f"dag/{n}": d for d in drawn.drawings if d.detail == "full" for n in d.files}
    out = [Deliverable(kind=kind, path=path, num_bytes=len(data)) for path, (kind, data) in files.items()]  # type: ignore[arg-type]
    for path, (kind, source) in copies.items():
        d = owner.get(path)
        role, phase = (d.role, d.phase) if d else (None, None)
        size = source.stat().st_size
        out.append(Deliverable(kind=kind, path=path, num_bytes=size, role=role, phase=phase))  # type: ignore[arg-type]
    out.append(Deliverable(kind="report", path="plan.md", num_bytes=1))
    out.append(Deliverable(kind="evaluation", path="evaluation.json", num_bytes=1))
    out.append(Deliverable(kind="events", path="events.jsonl", num_bytes=1))
    return tuple(sorted(out, key=lambda x: (x.kind, x.path)))


def _run_record(
    record: Record,
    plan: Plan,
    listed: tuple[Deliverable, ...],
    launch: tuple[Finding, ...],
    reference: Reference | None,
) -> RunRecord:
    model = record.bench.deployment.model.name
    return RunRecord(
        plan=plan, conditions=record.conditions, inputs=record.inputs, inputs_after=record.inputs_after,
        proofs=record.verdict.verification.graph_proofs(), deliverables=listed, launch_findings=launch,
        dags=tuple(d.report(model) for d in record.drawn.drawings if d.detail == "full"),
        constraints=record.constraints, reference=reference,
    )  # fmt: skip


def opinion_section(record: Record) -> str:
    """What an LLM says about the plan, labelled as an opinion; it changes no score."""
    if not record.opinion:
        return ""
    text = "\n".join(f"> {line}" for line in record.opinion.strip().splitlines())
    return f"\n## Opinion of the language model (not verified, not scored)\n\n{text}\n"
