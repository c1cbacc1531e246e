"""Runs one case with one backend and writes down what came of it, as plain JSON; nothing is judged here.

An observation holds: exit_code, error, seconds, cpu_seconds, conditions (as `read --json`), plan (what can be compared),
scores (the run's own rubric), dags, proposal, reference, degraded, usage, tools (called per node), stray (files written
outside the run directory), and the event log's path.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.draw import Drawing, Drawn, dag_dir, judge
from agent.errors import BACKEND, BAD_INPUT, BUG, INFEASIBLE, OK, one_line
from agent.events import read_events
from agent.files import sha256_file, write_atomic
from agent.llm.base import BackendError
from agent.llm.usage import usage_of
from agent.loop import StrictFailure
from agent.options import RunOptions
from agent.verify import Verification, workbench_of
from evals.case import Case, load_case
from evals.suites import Depth
from evals.watch import Seen, watching
from tools.spec.base import ToolError
from tools.spec.plan import Infeasible, Plan

Observation = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a case, a backend (as on the command line), which sample of it, how deep, and where it goes."""

    folder: str
    backend: str
    base_url: str | None
    sample: int
    depth: Depth
    out: str
    task: str | None = None
    strict: bool = False


def observe(job: Job) -> Observation:
    """The observation of a job. Raises nothing that a run raises: it is part of what is observed."""
    case, out = load_case(Path(job.folder)), Path(job.out)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    found: Observation = {"case": case.id, "backend": job.backend, "sample": job.sample, "depth": job.depth}
    before = {str(p): sha256_file(p) for p in sorted(case.folder.rglob("*")) if p.is_file()}
    began, cpu = time.monotonic(), time.process_time()
    with watching((out,)) as seen:
        found |= _outcome(lambda: (_read_only if job.depth == "read" else _whole)(case, job, out))
    found |= {"seconds": round(time.monotonic() - began, 3), "cpu_seconds": round(time.process_time() - cpu, 3)}
    after = {str(p): sha256_file(p) for p in sorted(case.folder.rglob("*")) if p.is_file()}
    found["stray"] = _stray(seen, before, after)
    return {**found, **from_events(out)}


def _stray(seen: Seen, before: dict[str, str], after: dict[str, str]) -> list[str]:
    changed = [f"input changed: {p}" for p in before if after.get(p) != before[p]]
    return [*dict.fromkeys(seen.stray), *changed][:20]


def _outcome(work: Callable[[], Observation]) -> Observation:
    """What `work` finds, or how it ended, with the exit code the command line would give."""
    try:
        return {"exit_code": OK, "error": None, **work()}
    except ToolError as e:
        return {"exit_code": BAD_INPUT, "error": one_line(e)}
    except (BackendError, StrictFailure) as e:
        return {"exit_code": BACKEND, "error": one_line(e)}
    except Exception as e:  # any other exception is a bug of ours, and that is the finding
        return {"exit_code": BUG, "error": f"{type(e).__name__}: {one_line(e)}"}


def _read_only(case: Case, job: Job, out: Path) -> Observation:
    from agent.commands.pure import read_with

    conditions = asyncio.run(read_with(case.inputs, job.backend, job.base_url, out / "events.jsonl"))
    return {"conditions": conditions.model_dump(mode="json")}


def _whole(case: Case, job: Job, out: Path) -> Observation:
    from agent.graph import start

    options = RunOptions(
        cwd=str(case.folder.resolve()), inputs=case.files, backend=job.backend, llm_base_url=job.base_url,
        strict=job.strict, task=job.task,
    )  # fmt: skip
    # What was read is kept even where the run then refuses the conditions.
    kept: Observation = {}
    with contextlib.suppress(ToolError):
        kept["conditions"] = _conditions(case)
    result = _outcome(
        lambda: _published(asyncio.run(start(options, out, drawer=sketch if job.depth == "plan" else None)), out)
    )
    return {**kept, **result}


def _conditions(case: Case) -> Any:
    from agent.reading import read_conditions, read_files

    return read_conditions(read_files(case.inputs)).model_dump(mode="json")


def _published(state: Any, out: Path) -> Observation:
    """What the run left: the conditions with the backend's facts, the plan, its scores, its DAGs."""
    from agent.files import Store

    store = Store(out)
    plan = Plan.model_validate_json((out / "plan.json").read_bytes())
    evaluation = json.loads((out / "evaluation.json").read_bytes())
    drawn = Drawn.model_validate(store.json(state["drawn"]))
    return {
        "exit_code": INFEASIBLE if plan.status == "infeasible" else OK,
        # Of a paper the typed method is the reading; what was read of it as conditions is judged as everywhere.
        **({} if state.get("paper") else {"conditions": store.json(state["conditions"])}),
        "plan": _comparable(plan),
        "scores": {s["criterion"]: {"value": s["value"], "reason": s["reason"]} for s in evaluation["scores"]},
        "failed_checks": [f["message"] for f in evaluation["failed_checks"]],
        "reference": evaluation["reference"],
        "dags": [
            {"name": d.name, "nodes": d.num_nodes, "passed": list(d.passed), "broken": [f.message for f in d.findings]}
            for d in drawn.drawings
        ],
        "proposal": plan.proposal,
        "degraded": list(plan.degraded),
    }


def _comparable(plan: Plan) -> dict[str, Any]:
    s = plan.strategy
    degrees = ("tp", "pp", "dp", "cp", "ep", "etp", "attn_dp", "weight_dtype", "engine")
    said = [f.code for f in plan.findings] + [f.message for f in plan.findings]
    return {
        "status": plan.status, "headline": plan.headline, "at_risk": list(plan.at_risk), "objective": plan.objective,
        "num_devices": plan.num_devices, "strategy": {k: getattr(s, k) for k in degrees} if s else None,
        "label": s.label(plan.deployment.model.moe is not None) if s else None,
        "cause": plan.infeasible.cause if plan.infeasible else None, "said": said,
        "nearest": [c.description for c in plan.infeasible.nearest] if plan.infeasible else [],
    }  # fmt: skip


def sketch(bench: Any, run_dir: Path, verification: Verification, verdict: Infeasible | None, views: Any = ()) -> Drawn:
    """The DAGs as DOT text straight from the graph in memory, judged by the same rules: no script is executed and no
    SVG rendered. Takes the place of `agent.draw.draw`."""
    from tools.dag.build import build_dag
    from tools.dag.dot import to_dot

    drawings = []
    for v in verification.subjects:
        own = workbench_of(bench, verdict, v.subject)
        for phase in v.subject.phases:
            name, proof = v.subject.dag(phase), v.proofs[phase]
            dag = build_dag(own.program(v.subject.strategy, phase), detail="full", title=name)
            text = to_dot(dag)
            write_atomic(dag_dir(run_dir) / f"{name}.dot", text.encode())
            passed, broken = judge(text, name, proof)
            drawings.append(
                Drawing(
                    name=name, role=v.subject.role, phase=phase, detail="full", digest=proof.digest,
                    files={f"{name}.dot": sha256_file(dag_dir(run_dir) / f"{name}.dot")}, num_nodes=len(dag.nodes),
                    num_edges=len(dag.edges), passed=passed, findings=tuple(broken),
                )
            )  # fmt: skip
    return Drawn(drawings=tuple(drawings))


def from_events(out: Path) -> Observation:
    """Usage, degraded nodes, and the tools that were called in each node, from the event log."""
    events = list(read_events(out / "events.jsonl"))
    tools: dict[str, list[str]] = {}
    for e in events:
        if e.get("event") == "llm_call":
            names = [c["function"]["name"] for c in e["reply"].get("tool_calls") or ()]
            tools.setdefault(e["node"], []).extend(names)
    return {
        "usage": usage_of(events).model_dump(mode="json"),
        "why_degraded": {e["node"]: e["why"] for e in events if e.get("event") == "degraded"},
        "rejected_facts": [f"{e['path']}: {e['why']}" for e in events if e.get("event") == "fact_rejected"],
        "tools": tools,
        "events": str(out / "events.jsonl"),
    }
