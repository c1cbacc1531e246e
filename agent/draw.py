"""The DAGs of a run: built, written as scripts, executed in one child process, read back, and judged by the rules."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from agent.bind import PHASES, Workbench
from agent.files import sha256_file, write_atomic
from agent.verify import Verification, Verified, workbench_of
from tools.dag.graph import Detail
from tools.oracle.prove import Proof
from tools.rubric.record import DagReport, Role
from tools.spec.base import Frozen
from tools.spec.finding import Finding
from tools.spec.plan import Infeasible
from tools.spec.strategy import Phase

if TYPE_CHECKING:
    from agent.render import Rendered
    from tools.dag.graph import Dag

FULL: Detail = "full"


class Drawing(Frozen):
    """Files of one DAG under RUN_DIR/state/dag, with their hashes; `detail` is `full` for the one that is judged."""

    name: str
    role: Role
    phase: Phase
    detail: Detail
    digest: str
    files: dict[str, str]
    """File name → sha256, for NAME.py, NAME.dot and NAME.svg."""
    num_nodes: int
    num_edges: int
    passed: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    def report(self, model: str) -> DagReport:
        return DagReport(
            role=self.role, model=model, phase=self.phase, dot=f"dag/{self.name}.dot", digest=self.digest,
            passed=self.passed, findings=self.findings,
        )  # fmt: skip


class Drawn(Frozen):
    drawings: tuple[Drawing, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for d in self.drawings for f in d.findings if f.severity == "error")


def dag_dir(run_dir: Path) -> Path:
    return run_dir / "state" / "dag"


def draw(
    bench: Workbench,
    run_dir: Path,
    verification: Verification,
    verdict: Infeasible | None,
    views: Iterable[Detail] = (),
) -> Drawn:
    """All DAGs of all verified strategies. Same input, same files; a second call overwrites them with themselves."""
    from agent.render import run_scripts
    from tools.dag.build import build_dag
    from tools.dag.script import script_text

    folder = dag_dir(run_dir)
    shutil.rmtree(folder, ignore_errors=True)
    wanted = {}
    for v in verification.subjects:
        own = workbench_of(bench, verdict, v.subject.change)
        for phase in PHASES:
            for detail in dict.fromkeys((FULL, *views)):
                name = f"{v.subject.role}_{phase}" + ("" if detail == "full" else f".{detail}")
                dag = build_dag(own.program(v.subject.strategy, phase), detail=detail, title=_title(own, v, phase))
                wanted[name] = (v, phase, detail, dag)
                write_atomic(folder / f"{name}.py", script_text(dag, name).encode())
    dags = {name: w[3] for name, w in wanted.items()}
    rendered = {r.name: r for r in run_scripts([folder / f"{n}.py" for n in wanted], folder, dags=dags)}
    return Drawn(drawings=tuple(_drawing(folder, n, *w, rendered[n]) for n, w in wanted.items()))


def _drawing(folder: Path, name: str, v: Verified, phase: Phase, detail: Detail, dag: Dag, made: Rendered) -> Drawing:
    """One rendered DAG, judged on the file that was written."""
    files = {f"{name}{ext}": folder / f"{name}{ext}" for ext in (".py", ".dot", ".svg")}
    gone = [n for n, path in files.items() if not path.is_file()]
    findings = [*made.findings]
    if gone:
        text = f"{', '.join(gone)} was not written by {name}.py"
        findings.append(Finding(code="render", severity="error", cause="dag", message=text, where=name))
    passed: tuple[str, ...] = ()
    if detail == "full" and not gone:
        passed, broken = judge(files[f"{name}.dot"].read_text(encoding="utf-8"), name, v.proofs[phase])
        findings += broken
    return Drawing(
        name=name, role=v.subject.role, phase=phase, detail=detail, digest=v.proofs[phase].digest,
        files={n: sha256_file(path) for n, path in files.items() if path.is_file()}, num_nodes=len(dag.nodes),
        num_edges=len(dag.edges), passed=passed, findings=tuple(findings),
    )  # fmt: skip


def judge(dot: str, name: str, proof: Proof) -> tuple[tuple[str, ...], list[Finding]]:
    """(rules that hold, broken ones) of a written DOT file."""
    from tools.dag.check_dot import check_dot

    reports = check_dot(dot, name)
    passed = [r.rule for report in reports for r in report.results if r.status == "passed"]
    return tuple(sorted(set(passed))), [f for report in reports for f in report.findings()]


def _title(bench: Workbench, v: Verified, phase: Phase) -> str:
    role = v.subject.role.replace("_", "-")
    return f"{bench.deployment.model.name} · {role} · {phase} · {v.subject.strategy.label()}"
