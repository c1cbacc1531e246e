"""What the rubric judges: one run, as values. Nothing in it is looked up elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

from pydantic import Field

from tools.manifest import Kind
from tools.oracle.prove import Proof
from tools.spec.base import Frozen
from tools.spec.conditions import Conditions, InputFile
from tools.spec.finding import Finding
from tools.spec.plan import Plan
from tools.spec.strategy import Phase

Role = Literal["plan", "baseline", "runner_up", "nearest"]
"""Which strategy a graph belongs to; `nearest` is the proven plan of an infeasible verdict's nearest change."""


class GraphProof(Frozen):
    """The oracle's answer for one strategy and phase."""

    role: Role
    proof: Proof


class DagReport(Frozen):
    """One drawn DAG: what the DAG rules said about the file that was published."""

    role: Role
    model: str
    phase: Phase
    dot: str
    digest: str = ""
    """Digest of the per-device graph that was drawn; must be the one that was proven."""
    passed: tuple[str, ...] = ()
    """Ids of the rules that were decided and hold."""
    findings: tuple[Finding, ...] = ()
    """Broken rules (code = rule id, severity error)."""

    @property
    def broken(self) -> frozenset[str]:
        return frozenset(f.code for f in self.findings if f.severity == "error")


class Ruled(Protocol):
    """What the DAG rules return per rule; `tools.dag.rules.RuleResult` is one."""

    @property
    def rule(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def message(self) -> str: ...


def dag_report(
    role: Role, model: str, phase: Phase, dot: str, results: Iterable[Ruled], *, digest: str = ""
) -> DagReport:
    """Report of one published DOT file from the rules' results (status passed, failed or not_decidable)."""
    results = tuple(results)
    broken = tuple(
        Finding(code=r.rule, severity="error", cause="dag", where=dot, message=r.message)
        for r in results
        if r.status == "failed"
    )
    passed = tuple(r.rule for r in results if r.status == "passed")
    return DagReport(role=role, model=model, phase=phase, dot=dot, digest=digest, passed=passed, findings=broken)


class Deliverable(Frozen):
    """A file as it lies in the output folder; a DAG's files say whose they are."""

    kind: Kind
    path: str
    num_bytes: int
    role: Role | None = None
    phase: Phase | None = None


class Constraint(Frozen):
    """One demand of the task, in the task's own words. `line` is 1-based, 0 for the standing ones."""

    text: str
    line: int = 0
    file: str = ""


class Reference(Frozen):
    """The best of a brute force that is not the search's own walk, under the same objective.

    `objective_value` None: nothing that was tried is feasible. `plan_value` is the published plan, priced the same way.
    """

    objective_value: float | None
    plan_value: float | None
    higher_is_better: bool = True
    strategy: str = ""
    num_evaluated: int
    num_simulated: int = 0
    """Of these, run request by request, the plan included."""
    broken: str = ""
    """The requirement that the plan misses in the simulation by more than the error band, with both numbers."""
    holds: bool = False
    """With `broken`: the reference's best holds every requirement there."""
    method: str
    provisional: bool = True


class Fidelity(Frozen):
    """One thing that a paper says and the graphs must show."""

    name: str
    holds: bool
    reason: str


class RunRecord(Frozen):
    plan: Plan
    conditions: Conditions
    inputs: tuple[InputFile, ...]
    inputs_after: dict[str, str] = Field(default_factory=dict)
    """sha256 by path, hashed again after the run; empty: not hashed again."""
    proofs: tuple[GraphProof, ...] = ()
    dags: tuple[DagReport, ...] = ()
    deliverables: tuple[Deliverable, ...] = ()
    flaws: dict[str, str] = Field(default_factory=dict)
    """Published file → why it is not what the run wrote; empty: not compared, or all as written."""
    launch_findings: tuple[Finding, ...] = ()
    """What the engine exporter said: flags the engine cannot express are errors."""
    constraints: tuple[Constraint, ...] = ()
    """Demands of the task; empty: the standing ones are judged."""
    reference: Reference | None = None
    fixed_strategy: bool = False
    """A paper or a user dictated the strategy: Performance is reported, not barred."""
    fidelity: tuple[Fidelity, ...] = ()
    """For papers: what Accuracy looks at besides the requirements."""
    fits: tuple[Fidelity, ...] | None = None
    """For papers: whether the weights, cache and batch of each proposed strategy fit its devices; None: the plan's own memory
    is looked at. A baseline that does not fit is marked, and no fault of the plan."""
