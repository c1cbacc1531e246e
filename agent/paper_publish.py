"""What a paper's run publishes: plans, launch files, drawings and the record that the rubric judges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.draw import Drawing, Drawn, dag_dir
from agent.reading.paper_unread import UNREAD
from agent.report.plan_json import plan_to_json
from tools.rubric import Constraint, DagReport, Deliverable, GraphProof, Reference, RunRecord, evaluate
from tools.rubric.record import Fidelity
from tools.spec.conditions import InputFile
from tools.spec.paper import PaperMethod, PaperStrategy
from tools.spec.plan import Plan

if TYPE_CHECKING:
    from agent.bundle import Bundle

from agent.paper_plan import fits, plan_of
from agent.paper_run import PaperGraph, PaperVerification, primary


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
        reference=_reference(method, verification), fixed_strategy=True,
        fidelity=tuple(fidelity(method, verification)), fits=tuple(fits(method, verification)),
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
        for f in s.findings:
            if f.code == UNREAD:
                yield Fidelity(name=f"{s.model}, {s.name}: every number of its words", holds=False, reason=f.message)
        m, phase = method.model(s.model), s.phases[0]
        sizes, want = g.verified.sizes[phase], s.seq_len or m.seq_len
        have = sizes.seq_len if phase == "prefill" else sizes.kv_len - (m.output_len or 0)
        drawn = have == want and sizes.batch_size * s.strategy.dp == m.batch_size
        said = f"batch {m.batch_size}, sequence {want}; drawn {sizes.batch_size} × {s.strategy.dp} replicas, {have}"
        yield Fidelity(name=f"{s.model}, {s.name}: batch and sequence", holds=drawn, reason=said)
