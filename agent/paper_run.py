"""Papers as runs: what the nodes do for a PaperMethod, and the same without a graph (`run_paper`).

For every model × {baselines, proposed} × {prefill, decode}: lowered, checked, executed, counted, drawn, judged. The
strategies are the paper's: nothing is searched, times are predictions beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.bind import PHASES, Workbench, phase_sizes
from agent.draw import Drawing, Drawn, dag_dir, draw_all
from agent.report.plan_json import phase_entry, plan_to_json, rank_map
from agent.verify import STRUCTURAL, Subject, Verified, mismatch, proof_findings
from tools.rubric import Constraint, DagReport, Deliverable, GraphProof, Reference, RunRecord, evaluate
from tools.rubric.record import Fidelity, Role
from tools.spec.base import Bug, Frozen, Refused, ToolError
from tools.spec.conditions import Conditions, Evidence, Fact, InputFile
from tools.spec.deployment import Assumption, Deployment
from tools.spec.finding import Finding
from tools.spec.hardware import Cluster
from tools.spec.paper import PaperMethod, PaperModel, PaperStrategy, Unsupported
from tools.spec.plan import Estimate, Plan
from tools.spec.strategy import Phase, Strategy
from tools.spec.workload import Workload

if TYPE_CHECKING:
    from agent.bundle import Bundle
    from tools.oracle.prove import Proof
    from tools.partition.lower import Program
    from tools.partition.pools import Pools

TIMED_OUTPUT = 128
"""Generated tokens that times are predicted for, out of the stated length, where the paper gives no output length."""
ASSUMED_DEVICE = "h100_sxm_80gb"


class PaperGraph(Frozen):
    """One strategy of one model, verified: graphs, proofs, parts, findings; and its predicted performance if there is one."""

    model: str
    name: str
    verified: Verified
    estimate: Estimate | None = None

    def file(self, phase: str) -> str:
        """NAME of its files: model_role_phase; a pool of one phase has it in its name."""
        return f"{self.model}_{self.name}" if self.name.endswith(f"_{phase}") else f"{self.model}_{self.name}_{phase}"

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What would make the graph wrong. That a set-up does not fit or no engine runs it is told, not an error of the reading."""
        return tuple(f for f in self.verified.findings if f.severity == "error" and f.cause in STRUCTURAL)


class PaperVerification(Frozen):
    graphs: tuple[PaperGraph, ...]
    refused: tuple[Unsupported, ...] = ()
    """Strategies that were read but cannot be laid out (40 heads exchanged over 16 ranks), with the words they rest on."""

    def of(self, model: str, name: str) -> PaperGraph | None:
        return next((g for g in self.graphs if (g.model, g.name) == (model, name)), None)


class PaperResult(Frozen):
    """What `run_paper` gives back: the reading, every verified graph, and the files drawn for them."""

    method: PaperMethod
    verification: PaperVerification
    drawn: Drawn

    @property
    def errors(self) -> tuple[Finding, ...]:
        return (*(f for g in self.verification.graphs for f in g.errors), *self.drawn.errors)


def run_paper(method: PaperMethod, out_dir: Path) -> PaperResult:
    """All graphs of a paper, under `out_dir`/state/dag. Raises Refused where a strategy cannot be laid out."""
    verification = verify_paper(method)
    return PaperResult(method=method, verification=verification, drawn=draw_paper(method, verification, out_dir))


# ---------------------------------------------------------------------------------------------------------- deployments


def deployment_of(method: PaperMethod, model: PaperModel, strategy: PaperStrategy) -> Deployment:
    """The paper's set-up as a deployment of one strategy: its batch per replica, prefill at seq_len, decode at kv_len."""
    assumptions = [
        Assumption(path=f"paper.{model.key}", value=n, why="the paper leaves it open")
        for n in (*model.notes, *strategy.notes)
    ]
    cluster = _cluster(method.conditions, model, assumptions)
    n = strategy.strategy.num_devices
    if cluster.num_devices is None or cluster.num_devices < n:
        cluster = cluster.model_copy(update={"num_devices": n})
    osl = model.output_len or max(1, min(TIMED_OUTPUT, model.seq_len // 4))
    seq_len = strategy.seq_len or model.seq_len
    isl = max(1, seq_len + (model.output_len or 0) - osl)
    return Deployment(
        model=model.spec, cluster=cluster,
        workload=Workload(isl=isl, osl=osl, seq_len_max=seq_len, batch_size=max(1, model.batch_size // strategy.strategy.dp)),
        objective="total_throughput", weight_dtypes=(strategy.strategy.weight_dtype,), kv_dtypes=(strategy.strategy.kv_dtype,),
        assumptions=tuple(assumptions),
    )  # fmt: skip


def _cluster(conditions: Conditions, model: PaperModel, assumptions: list[Assumption]) -> Cluster:
    """From the paper's hardware facts by the conditions' rules; H100 where no device is named."""
    from agent.reading.resolve import resolve
    from knowledge.catalog import device_by_id

    facts = [f for f in conditions.facts if f.path.startswith("hardware.")]
    if not any(f.path == "hardware.device" for f in facts):
        facts.append(Fact(path="hardware.device", value=ASSUMED_DEVICE, origin="assumed"))
        why = "the paper names no device"
        assumptions.append(
            Assumption(
                path="hardware.device", value=device_by_id(ASSUMED_DEVICE).name, why=why, effect="memory and every time"
            )
        )
    spec = model.spec
    shape = {
        "num_hidden_layers": spec.num_hidden_layers,
        "hidden_size": spec.hidden_size,
        "num_attention_heads": spec.attention.num_heads,
        "head_dim": spec.attention.head_dim,
        "vocab_size": spec.vocab_size,
        "intermediate_size": 4 * spec.hidden_size,
    }
    facts += [Fact(path=f"model.{k}", value=v) for k, v in shape.items()]
    resolved = resolve(Conditions(facts=tuple(facts)))
    assumptions += [a for a in resolved.assumptions if a.path.startswith("hardware.")]
    return resolved.cluster


def programs_of(method: PaperMethod, s: PaperStrategy, bench: Workbench) -> dict[Phase, Program]:
    """The per-device graph of every phase that a strategy runs; pools of one phase hand their cache over to each other."""
    pools = pools_of(method, s, bench)
    if pools is None:
        return {phase: bench.program(s.strategy, phase) for phase in s.phases}
    (phase,) = s.phases
    return {phase: pools.prefill if phase == "prefill" else pools.decode}


def pools_of(method: PaperMethod, s: PaperStrategy, bench: Workbench) -> Pools | None:
    """Both pools with their real sizes, where `s` is one of them."""
    from tools.graph.build import all_sizes
    from tools.partition.pools import lower_pools

    pair = pool_pair(method, s)
    if pair is None:
        return None
    first, second = pair
    groups = lcm(first.attn_dp or 1, second.attn_dp or 1)
    d = bench.deployment

    def sizes(strategy: Strategy, phase: Phase) -> Any:
        found = phase_sizes(d, strategy, phase).model_dump()
        return all_sizes(d.model, **{**found, "batch_size": -(-found["batch_size"] // groups) * groups})

    return lower_pools(d.model, first, second, sizes(first, "prefill"), sizes(second, "decode"))


def pool_pair(method: PaperMethod, s: PaperStrategy) -> tuple[Strategy, Strategy] | None:
    """(prefill's, decode's strategy) of the two pools that `s` belongs to."""
    if len(s.phases) != 1:
        return None
    mine = {x.phases: x.strategy for x in method.of(s.model, s.role)}
    first, second = mine.get(("prefill",)), mine.get(("decode",))
    return (first, second) if first is not None and second is not None else None


def bench_of(method: PaperMethod, strategy: PaperStrategy, store: Any = None) -> Workbench:
    return Workbench(deployment_of(method, method.model(strategy.model), strategy), store)


# --------------------------------------------------------------------------------------------------------------- work


def primary(method: PaperMethod, verification: PaperVerification | None = None) -> PaperStrategy:
    """The proposed strategy of the first model (of the first one that was drawn): what plan.json leads with."""
    proposed = [s for m in method.models for s in method.of(m.key, "proposed")]
    return next(s for s in proposed if verification is None or verification.of(s.model, s.name))


def role_of(strategy: PaperStrategy) -> Role:
    return "plan" if strategy.role == "proposed" else "baseline"


def verify_paper(method: PaperMethod, store: Any = None) -> PaperVerification:
    """Every strategy lowered, checked and executed. Raises Refused when no proposed one can be laid out."""
    graphs, refused = [], []
    for s in method.strategies:
        bench = bench_of(method, s, store)
        try:
            found = _verified(method, s, bench)
        except ToolError as e:
            quote = s.quotes[0] if s.quotes else Evidence(file="", line=0, quote=s.title)
            refused.append(Unsupported(what=s.strategy.label(), why=str(e), evidence=quote, role=s.role, model=s.model))
            continue
        graphs.append(PaperGraph(model=s.model, name=s.name, verified=_told(found, s), estimate=_estimate(bench, s)))
    if not any(g.verified.subject.role == "plan" for g in graphs):
        raise Refused(next(u for u in refused if u.role == "proposed").message())
    return PaperVerification(graphs=tuple(graphs), refused=tuple(refused))


def _proofs(method: PaperMethod, s: PaperStrategy, bench: Workbench) -> dict[Phase, Proof]:
    """Both phases of a strategy; of pools, with the hand-over of the cache between them."""
    from tools.oracle.pools import prove_pools

    pair = pool_pair(method, s)
    sizes = phase_sizes(bench.deployment, s.strategy, "prefill")
    found = (
        bench.proofs(s.strategy)
        if pair is None
        else prove_pools(bench.deployment.model, *pair, batch_size=sizes.batch_size, seq_len=sizes.seq_len)
    )
    return {phase: p for phase, p in found.items() if phase in s.phases}


def _verified(method: PaperMethod, paper_strategy: PaperStrategy, bench: Workbench) -> Verified:
    """`agent.verify.verify` of the phases that the strategy runs, without an engine's rules: a paper's strategy is no
    engine's."""
    from tools.checks import CHECKS, run_checks

    s, phases = paper_strategy.strategy, paper_strategy.phases
    proofs = _proofs(method, paper_strategy, bench)
    programs = list(programs_of(method, paper_strategy, bench).values())
    findings = [
        *proof_findings(bench, s, proofs),
        *run_checks(programs, bench.deployment, only=[c for c in CHECKS if c != "engine"]),
    ]
    parts = bench.parts(s)
    findings += [mismatch(p) for p in parts if not p.matches]
    sizes = {phase: phase_sizes(bench.deployment, s, phase) for phase in phases}
    subject = Subject(role=role_of(paper_strategy), strategy=s)
    return Verified(subject=subject, sizes=sizes, proofs=proofs, parts=parts, findings=tuple(findings))


def _told(found: Verified, s: PaperStrategy) -> Verified:
    """With the reader's own findings; what the paper's set-up breaks (memory, an engine's rules) is a warning of ours."""
    findings = [_as_paper(f) for f in (*s.findings, *found.findings)]
    return found.model_copy(update={"findings": tuple({(f.code, f.message): f for f in findings}.values())})


def _as_paper(f: Finding) -> Finding:
    if f.cause == "engine" or f.code == "idle-devices":
        return f.model_copy(update={"severity": "info"})  # a paper names its own devices, and no engine
    told = f.cause not in STRUCTURAL or f.code == "positions"  # a context beyond the model's positions is the paper's
    return f if f.severity != "error" or not told else f.model_copy(update={"severity": "warning"})


def _estimate(bench: Workbench, s: PaperStrategy) -> Estimate | None:
    """Predicted performance; None where the cost model has no price for this strategy. It decides nothing."""
    try:
        estimate = bench.estimate(s.strategy)
    except ToolError:
        return None
    return estimate.model_copy(update={"findings": tuple(_as_paper(f) for f in estimate.findings)})


def draw_paper(method: PaperMethod, verification: PaperVerification, run_dir: Path) -> Drawn:
    """Every graph's script, DOT and SVG, judged by the rules."""
    from tools.dag.build import build_dag

    wanted = {}
    for g in verification.graphs:
        s = next(x for x in method.strategies if (x.model, x.name) == (g.model, g.name))
        bench, name = bench_of(method, s), method.model(s.model).name
        pools = pools_of(method, s, bench)
        for phase, program in programs_of(method, s, bench).items():
            title = f"{name} · {s.name.replace('_', ' ')} · {phase} · {bench.label(s.strategy)}"
            dag = build_dag(program, title=title, pools=pools)
            wanted[g.file(phase)] = (g.verified, phase, "full", dag)
    return draw_all(dag_dir(run_dir), wanted)  # type: ignore[arg-type]


def check_again(method: PaperMethod, verification: PaperVerification) -> None:
    """What `publish` asks of a record: every graph lowered again is the one that was proven. Raises Bug if not."""
    for g in verification.graphs:
        s = next(x for x in method.strategies if (x.model, x.name) == (g.model, g.name))
        bench = bench_of(method, s)
        programs = programs_of(method, s, bench)
        for phase, proof in g.verified.proofs.items():
            if not proof.ok or proof.digest != programs[phase].digest():
                raise Bug(f"{g.model}, {g.name}, {phase}: the recorded proof is not of this graph")
        if g.errors:
            raise Bug(f"{g.model}, {g.name}: {g.errors[0].message}")


# ------------------------------------------------------------------------------------------------------------- the plan


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
    """Strategies that do not fit the paper's own hardware."""
    return [
        f"{g.model}, {g.name}: {f.message}"
        for g in verification.graphs
        for f in g.verified.findings
        if f.severity == "warning" and f.cause in ("memory", "kv", "input")
    ]


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
    return (
        f"{method.title}: {models}{model.name} as {labels} on {sum(s.strategy.num_devices for s in pools)} devices"
        f"{f', against {against}' if against else ''}; {count} DAGs, each proven equal to the unpartitioned model."
    )


def _regime(s: PaperStrategy) -> str:
    """When a strategy applies, where it does not always: " (prefill)", " (above 4096 tokens)"."""
    if len(s.phases) == 1:
        return f" ({s.phases[0]})"
    if s.strategy.pool_above:
        return f" ({'above' if s.strategy.attn_pool else 'up to'} {s.strategy.pool_above} tokens)"
    return ""


# ---------------------------------------------------------------------------------------------------------- publication


def bundle_of(
    method: PaperMethod, verification: PaperVerification, drawn: Drawn, run_dir: Path, inputs: tuple[InputFile, ...],
    inputs_after: dict[str, str], constraints: tuple[Constraint, ...] = (), passages: Sequence[dict[str, Any]] = (),
    degraded: tuple[str, ...] = (), opinion: str = "",
) -> Bundle:  # fmt: skip
    from agent.bundle import DAG_KINDS, Bundle, deliverables
    from agent.report.paper import render_paper_md

    plans, launched = _with_launch(method, verification, drawn)
    first = plans[primary(method, verification).model].model_copy(
        update={"knowledge": tuple(passages), "degraded": degraded}
    )
    files: dict[str, tuple[str, bytes]] = dict(launched)
    files |= {"plan.json": ("plan", plan_to_json(first).encode())}
    for key, plan in plans.items():
        if plan.deployment.model != first.deployment.model:
            files[f"models/{key}/plan.json"] = ("plan", plan_to_json(plan).encode())
    copies = {f"dag/{n}": (DAG_KINDS[Path(n).suffix], dag_dir(run_dir) / n) for d in drawn.drawings for n in d.files}
    listed = deliverables(files, copies, drawn)
    record = _record(method, verification, drawn, first, listed, inputs, inputs_after, constraints)
    judged = evaluate(record)
    report = render_paper_md(method, verification, plans, listed, judged, opinion)
    files["plan.md"] = ("report", report.encode())
    files["evaluation.json"] = ("evaluation", judged.to_json().encode())
    return Bundle(plan=first, evaluation=judged, files=files, copies=copies, record=record)


def _with_launch(
    method: PaperMethod, verification: PaperVerification, drawn: Drawn
) -> tuple[dict[str, Plan], dict[str, tuple[str, bytes]]]:
    """The plan of every model, told which engines can launch it, and the launch files."""
    from agent.paper_launch import paper_launch

    plans: dict[str, Plan] = {}
    files: dict[str, tuple[str, bytes]] = {}
    for m in method.models:
        plan = plan_of(method, verification, m, drawn)
        if plan is None:
            continue
        made, said = paper_launch(m, plan)
        plans[m.key] = plan.model_copy(update={"findings": (*plan.findings, *said)})
        folder = f"models/{m.key}/launch" if len(plans) > 1 else "launch"
        files |= {f"{folder}/{f.name}": ("launch", f.text.encode()) for f in made}
    return plans, files


def _record(
    method: PaperMethod, verification: PaperVerification, drawn: Drawn, plan: Plan, listed: tuple[Deliverable, ...],
    inputs: tuple[InputFile, ...], inputs_after: dict[str, str], constraints: tuple[Constraint, ...],
) -> RunRecord:  # fmt: skip
    proofs = tuple(
        GraphProof(role=g.verified.subject.role, proof=p)
        for g in verification.graphs
        for p in g.verified.proofs.values()
    )
    return RunRecord(
        plan=plan, conditions=method.conditions, inputs=inputs, inputs_after=inputs_after, proofs=proofs, deliverables=listed,
        dags=tuple(_report(d, method, verification) for d in drawn.drawings), constraints=constraints,
        reference=_reference(method, verification), fixed_strategy=True, fidelity=tuple(fidelity(method, verification)),
    )  # fmt: skip


def _report(d: Drawing, method: PaperMethod, verification: PaperVerification) -> DagReport:
    owner = next(g for g in verification.graphs if g.file(d.phase) == d.name)
    return d.report(method.model(owner.model).spec.name)


def _same_work(s: PaperStrategy, method: PaperMethod, g: PaperGraph) -> bool:
    """Whether a strategy does the work of a graph: the same model, phases and lengths."""
    mine = next(x for x in method.strategies if (x.model, x.name) == (g.model, g.name))
    whole, seq = method.model(g.model), method.model(g.model).seq_len
    return (s.model, s.phases, s.seq_len or seq) == (whole.key, mine.phases, mine.seq_len or seq)


def _reference(method: PaperMethod, verification: PaperVerification) -> Reference | None:
    """The paper's own strategies beside each other, as the cost model prices them: reported, no bar."""
    first = next((g for g in verification.graphs if g.verified.subject.role == "plan" and g.estimate), None)
    if first is None or first.estimate is None:
        return None
    like = {(x.model, x.name) for x in method.strategies if _same_work(x, method, first)}
    priced = [
        g
        for g in verification.graphs
        if (g.model, g.name) in like and g.estimate and g.estimate.output_tok_s == g.estimate.output_tok_s
    ]
    best = max(priced, key=lambda g: g.estimate.output_tok_s_per_device if g.estimate else 0.0)
    assert best.estimate is not None
    return Reference(
        objective_value=best.estimate.output_tok_s_per_device, plan_value=first.estimate.output_tok_s_per_device,
        strategy=best.verified.subject.strategy.label(), num_evaluated=len(priced),
        method="the paper's own strategies, in output tokens/s per device as the cost model prices them",
    )  # fmt: skip


def fidelity(method: PaperMethod, verification: PaperVerification) -> Iterable[Fidelity]:
    """Is it what the paper says? Devices, dims, both roles of every model, the words behind each strategy."""
    for u in (*method.unsupported, *verification.refused):
        yield Fidelity(name=f"{u.role} method", holds=False, reason=u.message())
    for m in method.models:
        roles = {s.role for s in method.of(m.key) if verification.of(m.key, s.name)}
        yield Fidelity(
            name=f"{m.name}: baseline and proposed",
            holds=roles == {"baseline", "proposed"},
            reason=f"drawn: {', '.join(sorted(roles)) or 'none'}",
        )
    for g in verification.graphs:
        s = next(x for x in method.strategies if (x.model, x.name) == (g.model, g.name))
        same = s.strategy.num_devices == s.num_devices
        yield Fidelity(
            name=f"{s.model}, {s.name}: devices",
            holds=same,
            reason=f"{s.strategy.label()} takes {s.strategy.num_devices}, the paper gives {s.num_devices} ({s.devices_source})",
        )
        m, phase = method.model(s.model), s.phases[0]
        sizes, want = g.verified.sizes[phase], s.seq_len or m.seq_len
        have = sizes.seq_len if phase == "prefill" else sizes.kv_len - (m.output_len or 0)
        drawn = have == want and sizes.batch_size * s.strategy.dp == m.batch_size
        said = f"batch {m.batch_size}, sequence {want}; drawn {sizes.batch_size} × {s.strategy.dp} replicas, {have}"
        yield Fidelity(name=f"{s.model}, {s.name}: batch and sequence", holds=drawn, reason=said)


__all__ = [
    "PaperGraph", "PaperResult", "PaperVerification", "bundle_of", "check_again", "deployment_of", "draw_paper", "plan_of",
    "primary", "run_paper", "verify_paper",
]  # fmt: skip
