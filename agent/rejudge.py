"""A finished run judged again from the files that lie in its directory: the rubric sees what was published.

    restated = restate(run_dir)                 # what the recorded state says should lie there; nothing is written
    evaluation = rejudge(run_dir, restated)     # the rubric on plan.json, the DOT files, the launch files, the manifest

Everything a run publishes is a function of its recorded state. So a file that differs was changed or torn, and the
difference counts where it belongs: a number of the plan and a launch flag are engineering errors (rigor), a DAG is
judged by its rules again (rigor, attitude), a report, picture or hash that is not what was written spoils the result.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from agent.bundle import Bundle
from agent.draw import judge
from agent.files import sha256_file
from agent.options import RunOptions, load_options
from tools.manifest import Manifest, verify
from tools.oracle.prove import Proof
from tools.rubric import DagReport, Deliverable, Evaluation, RunRecord, evaluate
from tools.spec.base import Bug, ToolError
from tools.spec.finding import Finding
from tools.spec.plan import Plan

T = TypeVar("T", Manifest, Plan)
MAX_TOLD = 5
"""Differences of one file that are told one by one."""


@dataclass(frozen=True, slots=True)
class Restated:
    """What a run's recorded state says: `files` by path, the record that was judged, and the run's options."""

    options: RunOptions
    files: dict[str, tuple[str, bytes]]
    record: RunRecord
    evaluation: Evaluation


def restate(run_dir: Path) -> Restated:
    """Everything the run published, made again from its recorded state. Raises ToolError where it did not finish."""
    from agent.graph import recorded_state

    options = load_options(run_dir)
    if not (run_dir / "manifest.json").is_file():
        raise ToolError(f"{run_dir}: this run has published nothing; go on with meshwright resume {run_dir}")
    state = asyncio.run(recorded_state(run_dir))
    made = _made_again(run_dir, options, state)
    assert made.record is not None
    files = {**made.files, **{p: (kind, source.read_bytes()) for p, (kind, source) in made.copies.items()}}
    return Restated(options, files, made.record, made.evaluation)


def _made_again(run_dir: Path, options: RunOptions, state: Any) -> Bundle:
    from agent.events import EventLog
    from agent.files import Store
    from agent.llm.builtin import Builtin
    from agent.loop import Conversation
    from agent.nodes import RunContext, make_bundle, opinion_of

    def refuse(*_: Any) -> Any:
        raise Bug(f"{run_dir / 'state'}: drawn files are gone or changed; run the plan again")

    log = EventLog(run_dir / "events.jsonl")
    context = RunContext(run_dir, options, Store(run_dir), log, Conversation(Builtin(), log), drawer=refuse)
    return make_bundle(context, state, opinion_of(state))


def rejudge(run_dir: Path, restated: Restated | None = None) -> Evaluation:
    """The rubric on the published files. Raises ToolError when plan.json or manifest.json cannot be read at all."""
    r = restated or restate(run_dir)
    published = {path: _bytes(run_dir / path) for path in r.files}
    manifest = _parsed(run_dir / "manifest.json", Manifest)
    plan = _parsed(run_dir / "plan.json", Plan)
    told = [*_plan_differences(plan, r.record.plan), *plan.findings]
    record = r.record.model_copy(
        update={
            "plan": plan.model_copy(update={"findings": tuple(told)}),
            "inputs_after": {f.path: _hash(r.options.path(f.path)) for f in r.record.inputs},
            "dags": tuple(_dag(d, published.get(d.dot), r) for d in r.record.dags),
            "launch_findings": (*r.record.launch_findings, *_launch_differences(r, published)),
            "deliverables": tuple(_there(d, run_dir) for d in r.record.deliverables),
            "flaws": _flaws(run_dir, manifest, r, published),
        }
    )
    return evaluate(record)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _hash(path: Path) -> str:
    return sha256_file(path) if path.is_file() else ""


def _parsed(path: Path, kind: type[T]) -> T:
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ToolError(f"{path}: {place}: {first['msg']}; run the plan again") from None
    except OSError as e:
        raise ToolError(f"{path}: {e.strerror}; run the plan again") from None


# ------------------------------------------------------------------------------------------------------- differences


def _plan_differences(plan: Plan, made: Plan) -> list[Finding]:
    """Every value of plan.json that is not the one that the recorded state gives."""
    found = _leaves_that_differ(plan.model_dump(mode="json"), made.model_dump(mode="json"))
    return [
        Finding(
            code="not-reproduced", severity="error", cause="other", where=where,
            message=f"plan.json: {where} is {_short(got)}, made again it is {_short(want)}",
        )
        for where, got, want in found[:MAX_TOLD]
    ]  # fmt: skip


def _leaves_that_differ(got: Any, want: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(got, dict) and isinstance(want, dict):
        keys = dict.fromkeys((*got, *want))
        return [x for k in keys for x in _leaves_that_differ(got.get(k), want.get(k), f"{where}.{k}" if where else k)]
    if isinstance(got, list) and isinstance(want, list) and len(got) == len(want):
        return [
            x for i, pair in enumerate(zip(got, want, strict=True)) for x in _leaves_that_differ(*pair, f"{where}[{i}]")
        ]
    return [] if got == want else [(where, got, want)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _dag(drawn: DagReport, data: bytes | None, r: Restated) -> DagReport:
    """The published DOT file judged by the rules again, and compared with the drawn one."""
    if data is None:
        return drawn
    name, want = Path(drawn.dot).stem, r.files[drawn.dot][1]
    if data == want:
        return drawn
    proofs = (p.proof for p in r.record.proofs if p.role == drawn.role and p.proof.phase == drawn.phase)
    proof = next(proofs, None)
    if proof is None:
        return drawn
    passed, broken = _judged(data.decode(errors="replace"), name, proof)
    # Rules about all DAGs of a run together are not asked again: they read graphs, not files.
    kept = (set(drawn.passed) - {f.code for f in broken}) if not broken else set(passed)
    first = _first_difference(data, want)
    changed = Finding(
        code="dag-changed", severity="error", cause="dag", where=drawn.dot, message=f"{drawn.dot}: {first}",
    )  # fmt: skip
    return drawn.model_copy(update={"passed": tuple(sorted(kept)), "findings": (*broken, changed)})


@lru_cache(maxsize=64)
def _judged(text: str, name: str, proof: Proof) -> tuple[tuple[str, ...], list[Finding]]:
    return judge(text, name, proof)


def _launch_differences(r: Restated, published: dict[str, bytes | None]) -> list[Finding]:
    """Launch files that would start something else than the plan."""
    out = []
    for path, (kind, want) in r.files.items():
        got = published[path]
        if kind == "launch" and got is not None and got != want:
            out.append(
                Finding(
                    code="launch-changed", severity="error", cause="engine", where=path,
                    message=f"{path}: {_first_difference(got, want)}",
                )
            )  # fmt: skip
    return out


def _first_difference(got: bytes, want: bytes) -> str:
    ours, theirs = want.decode(errors="replace").splitlines(), got.decode(errors="replace").splitlines()
    for number, (a, b) in enumerate(zip(theirs, ours, strict=False), 1):
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            start = max(0, at - 20)
            return f"line {number} is …{a[start : start + 60]}…, made again it is …{b[start : start + 60]}…"
    if len(theirs) != len(ours):
        return f"{len(theirs)} lines, made again {len(ours)}"
    return "its line ends differ from what the state gives"


def _there(d: Deliverable, run_dir: Path) -> Deliverable:
    path = run_dir / d.path
    gone = not path.is_file() or (path.stat().st_size == 0 and d.kind != "events")
    return d.model_copy(update={"num_bytes": 0}) if gone else d


PLAIN = ("report", "pareto", "dag_script", "dag_svg", "evaluation")
"""Kinds whose content no other criterion reads: a difference is a flaw of the deliverable."""


def _flaws(run_dir: Path, manifest: Manifest, r: Restated, published: dict[str, bytes | None]) -> dict[str, str]:
    """Published file → what is wrong with it as a deliverable."""
    found: dict[str, str] = {}
    for path, (kind, want) in r.files.items():
        got = published[path]
        if kind in PLAIN and got is not None and got != want:
            found[path] = _score_difference(got, r) if kind == "evaluation" else _first_difference(got, want)
    wrong = verify(manifest, lambda path: _bytes(run_dir / path))
    found |= {f.where: f.message for f in wrong if f.where and f.where not in found}
    if listed := _list_differences(run_dir, manifest, r):
        found["manifest.json"] = listed
    return found


def _score_difference(got: bytes, r: Restated) -> str:
    try:
        told = Evaluation.model_validate_json(got)
    except ValidationError as e:
        return f"cannot be read: {e.errors()[0]['msg']}"
    values = {s.criterion: s.value for s in told.scores}
    for s in r.evaluation.scores:
        if values.get(s.criterion) != s.value:
            return f"says {s.criterion} {values.get(s.criterion)}, judged again {s.value}"
    return _first_difference(got, r.evaluation.to_json().encode())


def _list_differences(run_dir: Path, manifest: Manifest, r: Restated) -> str:
    """What the manifest leaves out, adds, or says otherwise than the run."""
    listed, there = {a.path: a.kind for a in manifest.artifacts}, {p: kind for p, (kind, _) in r.files.items()}
    there["events.jsonl"] = "events"
    for path in sorted(listed.keys() | there.keys()):
        if listed.get(path) != there.get(path):
            return f"{path} is listed as {listed.get(path, 'nothing')}, the run published {there.get(path, 'nothing')}"
    if manifest.status != r.record.plan.status:
        return f"status {manifest.status}, the plan is {r.record.plan.status}"
    if manifest.degraded != r.record.plan.degraded:
        return f"degraded {list(manifest.degraded)}, the run's are {list(r.record.plan.degraded)}"
    return _input_differences(run_dir, manifest, r)


def _input_differences(run_dir: Path, manifest: Manifest, r: Restated) -> str:
    read = {str(r.options.path(f.path).resolve()): f.sha256 for f in r.record.inputs}
    told = {str((run_dir / i.path).resolve()): i.sha256 for i in manifest.inputs}
    return "" if read == told else f"inputs {sorted(told)}, the run read {sorted(read)} (or their hashes differ)"
