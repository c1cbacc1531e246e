"""Verification of the strategies of a run: dims, checks, and the proof, for the plan and for what it is compared with.

subjects(search, chosen)  → who is verified and drawn, in which role
verify(bench, subject)    → Verified: proofs, parts, findings
establish(...)            → Proven | Infeasible, rebuilt from recorded values; what `publish` takes
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.bind import PHASES, PhaseSizes, Workbench, phase_sizes
from agent.pools import pool_proofs
from tools.oracle.prove import Proof
from tools.rubric import GraphProof
from tools.rubric.record import Role
from tools.spec.base import Bug, Frozen
from tools.spec.deployment import Deployment
from tools.spec.finding import Finding
from tools.spec.plan import Candidate, Infeasible, ModuleParts, SearchResult
from tools.spec.strategy import Phase, Strategy

STRUCTURAL = frozenset({"shape", "oracle", "dag"})
"""Causes that are errors of any graph; memory, SLO, engine and balance are judged for the plan only: a baseline that
does not fit is still drawn, marked as such."""


NEAREST_TRIED = 3
"""Best strategies under a changed condition that are verified before the next change is tried."""


class Subject(Frozen):
    """One strategy that is verified and drawn.

    `change` is the index of the infeasible verdict's change it belongs to.
    """

    role: Role
    strategy: Strategy
    change: int | None = None
    unit: str = ""
    """Where a plan has several groups of devices: which of them."""
    deployment: Deployment | None = None
    """The conditions that the unit serves under; None: those of the run."""
    pair: tuple[Strategy, Strategy] | None = None
    """Where the unit is one of two pools: (prefill's, decode's)."""
    phases: tuple[Phase, ...] = PHASES

    def dag(self, phase: Phase) -> str:
        """Name of its DAG."""
        unit = "" if self.pair else self.unit.replace("+", "_")
        return "_".join(x for x in (self.role, unit, phase) if x)


class Verified(Frozen):
    subject: Subject
    sizes: dict[Phase, PhaseSizes]
    proofs: dict[Phase, Proof]
    parts: tuple[ModuleParts, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        counted = self.subject.role in ("plan", "nearest")
        return tuple(f for f in self.findings if f.severity == "error" and (counted or f.cause in STRUCTURAL))


class Verification(Frozen):
    subjects: tuple[Verified, ...]

    def of(self, role: Role) -> Verified | None:
        return next((v for v in self.subjects if v.subject.role == role), None)

    def all(self, role: Role) -> tuple[Verified, ...]:
        return tuple(v for v in self.subjects if v.subject.role == role)

    def graph_proofs(self) -> tuple[GraphProof, ...]:
        return tuple(GraphProof(role=v.subject.role, proof=p) for v in self.subjects for p in v.proofs.values())


def same_layout(a: Strategy, b: Strategy) -> bool:
    """The same per-device graphs: equal in everything but the operating point and the name."""
    ignore = {"batch", "max_num_batched_tokens", "microbatches", "name", "engine"}
    return a.model_dump(exclude=ignore) == b.model_dump(exclude=ignore)


def subjects(bench: Workbench, search: SearchResult, chosen: Candidate | None) -> tuple[Subject, ...]:
    """The plan (each of its units) and its baseline; the runner-up instead where both are the same; for an infeasible
    verdict the baseline.
    """
    baseline = search.baseline.estimate.strategy
    if chosen is None:
        return (Subject(role="baseline", strategy=baseline),)
    plan = chosen.estimate.strategy
    second = Subject(role="baseline", strategy=baseline)
    if chosen.units:
        return (*_units(bench, chosen), second)
    if same_layout(plan, baseline):
        others = (c.estimate.strategy for c in (*search.ranked, *search.pareto, *search.asked) if not c.units)
        other = next((s for s in others if not same_layout(s, plan)), None)
        second = Subject(role="runner_up", strategy=other) if other else second
    return (Subject(role="plan", strategy=plan), second)


def _units(bench: Workbench, chosen: Candidate) -> list[Subject]:
    pair = (chosen.units[0].strategy, chosen.units[-1].strategy)
    return [
        Subject(
            role="plan", strategy=u.strategy, unit=u.name, deployment=own.deployment, phases=u.phases_run,
            pair=pair if len(u.phases_run) == 1 else None,
        )
        for u, own in bench.units(chosen)
    ]  # fmt: skip


def verify_nearest(bench: Workbench, verdict: Infeasible) -> Verified | None:
    """The first change of an infeasible verdict that, applied, gives a plan which passes every check.

    None when no change is named. Raises Bug when every one fails a check: the way out that is told must work.
    """
    failures = []
    for index in range(len(verdict.nearest)):
        own = bench.under(verdict.nearest[index].deployment)
        plain = [c for c in own.search.ranked if not c.units]
        for candidate in plain[:NEAREST_TRIED]:
            found = verify(own, Subject(role="nearest", strategy=candidate.estimate.strategy, change=index))
            if not found.errors:
                return found
            failures.append(f"{verdict.nearest[index].description}: {found.errors[0].message}")
    if failures:
        raise Bug(f"no change named by the infeasible verdict passes the checks: {failures[0]}")
    return None


def workbench_of(bench: Workbench, verdict: Infeasible | None, subject: Subject) -> Workbench:
    """The workbench a subject belongs to: the run's, that of a unit's share, or one for changed conditions."""
    if subject.deployment is not None:
        return bench.under(subject.deployment)
    if subject.change is None or verdict is None:
        return bench
    return bench.under(verdict.nearest[subject.change].deployment)


def verify(bench: Workbench, subject: Subject) -> Verified:
    """Lowers both phases with real sizes, checks them, and executes them at reduced ones."""
    s = subject.strategy
    sizes = {phase: phase_sizes(bench.deployment, s, phase) for phase in subject.phases}
    proofs = bench.proofs(s) if subject.pair is None else pool_proofs(bench, subject.pair)
    proofs = {phase: p for phase, p in proofs.items() if phase in subject.phases}
    findings = [*proof_findings(bench, s, proofs), *run_checks(bench, s, subject.phases)]
    if subject.role in ("plan", "nearest") and subject.pair is None:
        findings += [f for f in bench.estimate(s).findings if f not in findings]
    parts = bench.parts(s)
    findings += [mismatch(p) for p in parts if not p.matches]
    return Verified(subject=subject, sizes=sizes, proofs=proofs, parts=parts, findings=tuple(_unique(findings)))


def run_checks(bench: Workbench, strategy: Strategy, phases: tuple[Phase, ...] = PHASES) -> tuple[Finding, ...]:
    """Every registered check on these phases."""
    from tools.checks import run_checks as run

    return tuple(run([bench.program(strategy, phase) for phase in phases], bench.deployment))


def proof_findings(bench: Workbench, s: Strategy, proofs: dict[Phase, Proof]) -> list[Finding]:
    out = []
    for phase, proof in proofs.items():
        if not proof.ok:
            text = f"{s.label()} {phase}: {proof.failures[0] if proof.failures else 'devices and model differ'}"
            out.append(Finding(code="R17", severity="error", cause="oracle", message=text))
        if proof.digest != bench.program(s, phase).digest():
            text = f"{s.label()} {phase}: the graph that was proven ({proof.digest}) is not the published one"
            out.append(Finding(code="R17", severity="error", cause="oracle", message=text))
    return out


def mismatch(part: ModuleParts) -> Finding:
    return Finding(code="R16", severity="error", cause="shape", where=part.module, message=part.sentence)


def _unique(findings: list[Finding]) -> list[Finding]:
    return list({(f.code, f.severity, f.message, f.where): f for f in findings}.values())


@dataclass(frozen=True, slots=True)
class Proven:
    """A plan that may be published: every proof holds, its graphs are the published ones, no check failed."""

    chosen: Candidate
    verification: Verification


@dataclass(frozen=True, slots=True)
class ProvenInfeasible:
    """A verdict that may be published: the exhausted search says so."""

    verdict: Infeasible
    verification: Verification


def establish(
    bench: Workbench, search: SearchResult, chosen: Candidate | None, verification: Verification
) -> Proven | ProvenInfeasible:
    """What `publish` takes, rebuilt from recorded values: graphs are lowered again and compared with the proofs'
    digests.

    Raises Bug when a record does not support the claim.
    """
    for v in verification.subjects:
        own = workbench_of(bench, search.infeasible, v.subject)
        findings = proof_findings(own, v.subject.strategy, v.proofs)
        if findings:
            raise Bug(findings[0].message)
    if chosen is None:
        if search.infeasible is None or search.best is not None:
            raise Bug("an infeasible verdict without an exhausted search")
        return ProvenInfeasible(search.infeasible, verification)
    wanted = [s for s in subjects(bench, search, chosen) if s.role == "plan"]
    plans = verification.all("plan")
    if [v.subject for v in plans] != wanted or any(set(v.proofs) != set(v.subject.phases) for v in plans):
        raise Bug(f"{chosen.estimate.strategy.label()}: the recorded proof is not of this strategy")
    errors = [f for v in plans for f in v.errors]
    if errors or not chosen.estimate.feasible:
        worst = errors[0].message if errors else "priced as infeasible"
        raise Bug(f"{chosen.estimate.strategy.label()}: {worst}")
    return Proven(chosen, verification)
