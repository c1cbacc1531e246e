"""Scores one run. The bar: no failed check, and every barred score at least `BAR`."""

from __future__ import annotations

from tools.rubric import accuracy, attitude, performance, result, rigor, understand
from tools.rubric.base import BAR, CRITERIA, Evaluation
from tools.rubric.constraints import judge
from tools.rubric.record import RunRecord
from tools.spec.finding import Finding

REGISTERED = (rigor, understand, attitude, accuracy, performance, result)
"""One module per criterion; importing it registers it."""

ORDER = ("rigor", "understand", "attitude", "accuracy", "performance", "result")


def evaluate(record: RunRecord) -> Evaluation:
    names = sorted(CRITERIA, key=lambda n: ORDER.index(n) if n in ORDER else len(ORDER))
    scores = tuple(CRITERIA[name](record) for name in names)
    failed = failed_checks(record)
    return Evaluation(
        passed=not failed and all(s.value >= BAR for s in scores if s.barred),
        scores=scores,
        failed_checks=failed,
        constraints=judge(record),
        reference=record.reference,
        provisional=_provisional(record),
    )


def failed_checks(record: RunRecord) -> tuple[Finding, ...]:
    """Errors of the plan's checks, the drawn DAGs and the proofs; no score makes up for one of them."""
    plan, verdict = record.plan, record.plan.infeasible
    failed = [f for f in (*plan.findings, *record.launch_findings) if f.severity == "error"]
    if verdict is not None:
        failed = [f for f in failed if f not in verdict.findings and f != verdict.binding]
    failed += [f for d in record.dags for f in d.findings if f.severity == "error"]
    failed += [
        Finding(
            code="R17",
            severity="error",
            cause="oracle",
            where=f"{p.role} {p.proof.phase}",
            message=(
                f"{p.proof.strategy} {p.proof.phase}: "
                f"{p.proof.failures[0] if p.proof.failures else p.proof.worst_tensor}"
            ),
        )
        for p in record.proofs
        if not p.proof.ok
    ]
    return tuple({_key(f): f for f in failed}.values())


def _key(finding: Finding) -> tuple[str, str, str | None]:
    return finding.code, finding.message, finding.where


def _provisional(record: RunRecord) -> tuple[str, ...]:
    notes = []
    if record.reference is not None and record.reference.provisional:
        notes.append(
            f"Performance: the reference is {record.reference.method}; it shares the cost walk with the search, "
            "so it checks the search, not the prices."
        )
    if record.plan.estimate is not None:
        notes.append(
            "Accuracy: percentiles are a closed form, and each band is one residual quantile per metric over "
            "published measurements."
        )
    return tuple(notes)
