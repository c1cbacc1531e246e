"""The DAGs of a run: built, written as scripts, executed in one child process, read back, and judged by the rules."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent.bind import Workbench
from agent.files import sha256_file, write_atomic
from agent.pools import pool_programs
from agent.verify import Verification, Verified, workbench_of
from tools.dag.graph import Detail
from tools.oracle.prove import Proof
from tools.rubric.record import DagReport, Role
from tools.shards import balance_bound
from tools.spec.base import Frozen
from tools.spec.finding import Finding
from tools.spec.plan import Infeasible
from tools.spec.strategy import Phase, Strategy

if TYPE_CHECKING:
    from agent.render import Rendered
    from tools.dag.graph import Dag
    from tools.dag.rules import RuleResult
    from tools.partition.lower import Program

FULL: Detail = "full"
if TYPE_CHECKING:
    Wanted = tuple[Verified, Phase, Detail, Dag]
    """Whose DAG, of which phase, at which detail, and the DAG itself."""


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
    from tools.dag.build import build_dag

    wanted: dict[str, Wanted] = {}
    for v in verification.subjects:
        own = workbench_of(bench, verdict, v.subject)
        for phase in v.subject.phases:
            in_time: tuple[Detail, ...] = ("schedule",) if v.subject.strategy.pp > 1 and not v.subject.pair else ()
            for detail in dict.fromkeys((FULL, *views, *in_time)):
                name = v.subject.dag(phase) + ("" if detail == "full" else f".{detail}")
                if detail == "schedule":
                    dag = _schedule(own, v, phase)
                else:
                    kinds, pools = lane_kinds(own, v), pool_programs(own, v.subject.pair) if v.subject.pair else None
                    program = program_of(own, v, phase)
                    dag = build_dag(program, detail=detail, title=_title(own, v, phase), kinds=kinds, pools=pools)
                wanted[name] = (v, phase, detail, dag)
    return _with_run_rules(draw_all(dag_dir(run_dir), wanted), bench, wanted, verdict)


def program_of(bench: Workbench, v: Verified, phase: Phase) -> Program:
    """What the DAG of a phase is drawn from: of a pool the program that hands its cache over."""
    if v.subject.pair is None:
        return bench.program(v.subject.strategy, phase)
    pools = pool_programs(bench, v.subject.pair)
    return pools.prefill if phase == "prefill" else pools.decode


def lane_kinds(bench: Workbench, v: Verified) -> tuple[str, ...]:
    """The kind of device of every stage, where a plan uses several."""
    if not v.subject.unit or v.subject.pair:
        return ()
    return tuple(c.device.id for c in bench.deployment.stage_clusters(v.subject.strategy))


def _schedule(bench: Workbench, v: Verified, phase: Phase) -> Dag:
    """What every stage does when, with the predicted times of the deployment's devices."""
    from tools.cost.schedule import schedule
    from tools.dag.schedule import schedule_dag

    s, program = v.subject.strategy, bench.program(v.subject.strategy, phase)
    batch, length = (int(program.sizes[d]) for d in ("batch_size", "seq_len" if phase == "prefill" else "kv_len"))
    # A plan may keep fewer sequences than it has micro-batches; the others are then empty.
    flying = s.model_copy(update={"microbatches": min(s.microbatches, batch)})
    times = schedule(bench.deployment, flying, bench.curves, phase, batch=batch, seq_len=length)
    return schedule_dag(program, times, title=f"{_title(bench, v, phase)} · schedule")


def _with_run_rules(drawn: Drawn, bench: Workbench, wanted: Mapping[str, Wanted], verdict: Infeasible | None) -> Drawn:
    """The rules about all DAGs together, told with the first of them: which are drawn, parts and balance, proofs,
    weights.
    """
    from tools.dag.context import run_rules

    full = {n: w for n, w in wanted.items() if w[2] == FULL}
    subjects = {(v.subject.role, v.subject.unit): v for v, _, _, _ in full.values()}
    benches = {key: workbench_of(bench, verdict, v.subject) for key, v in subjects.items()}
    leader = next((key for role in ("plan", "nearest") for key in subjects if key[0] == role), None)
    own = benches[leader] if leader else bench
    stated = own.deployment.requirements.balance_epsilon if own.deployment.requirements.balance_stated else None
    results = run_rules(
        [dag for _, _, _, dag in full.values()],
        [program_of(benches[v.subject.role, v.subject.unit], v, phase) for v, phase, _, _ in full.values()],
        [p for v in subjects.values() for p in v.proofs.values()],
        balance=_balance(own, subjects[leader].subject.strategy) if leader else None,
        balance_bound=balance_bound(stated, 1.0),
        expected=[
            (m.name, v.subject.strategy.label(m.moe is not None), phase)
            for key, v in subjects.items()
            for m in (benches[key].deployment.model,)
            for phase in v.subject.phases
        ],
    )
    told = [f for r in results if r.status == "failed" for f in _run_findings(r, stated is not None)]
    passed = {r.rule for r in results if r.status == "passed"}
    lost = {r.rule for r in results if r.status == "failed"}
    out = []
    for d in drawn.drawings:
        if d.detail == FULL:
            kept = tuple(sorted((set(d.passed) | passed) - lost))
            d = d.model_copy(update={"passed": kept, "findings": (*d.findings, *told)})
            told = []
        out.append(d)
    return Drawn(drawings=tuple(out))


def _balance(bench: Workbench, strategy: Strategy) -> dict[str, float] | None:
    """None for stages on several kinds of devices: there even bytes are no aim, and the check of balance tells about time."""
    if strategy.stage_devices:
        return None
    estimate = bench.estimate(strategy)
    return {"predicted time": estimate.time_imbalance, "predicted memory": estimate.memory_imbalance}


def _run_findings(r: RuleResult, bound_stated: bool) -> list[Finding]:
    """A broken balance is an error only where the conditions state a bound, as in the check of the same name."""
    return [
        Finding(
            code=r.rule, severity="error" if v.node or bound_stated or r.rule != "R16" else "warning",
            cause="balance" if r.rule == "R16" and not v.node else "dag", message=v.message, where=v.node, fix=v.fix,
            values={"title": r.title},
        )
        for v in r.violations
    ]  # fmt: skip


def draw_all(folder: Path, wanted: Mapping[str, Wanted]) -> Drawn:
    """Scripts, DOT and SVG of the named DAGs in `folder`, which is emptied first; all scripts run in one child."""
    from agent.render import run_scripts
    from tools.dag.script import script_text

    shutil.rmtree(folder, ignore_errors=True)
    dags = {name: w[3] for name, w in wanted.items()}
    for name, dag in dags.items():
        write_atomic(folder / f"{name}.py", script_text(dag, name).encode())
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
    s = v.subject.strategy
    names = {c.device.id: c.device.name for c in bench.deployment.clusters}
    kinds = dict.fromkeys(s.stage_devices or ((bench.deployment.cluster.device.id,) if v.subject.unit else ()))
    where = "".join(f" · {' + '.join(names[k] for k in kinds)}" if kinds else "")
    return f"{bench.deployment.model.name} · {role} · {phase} · {s.label()}{where}"
