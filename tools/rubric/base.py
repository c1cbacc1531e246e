"""The criteria's registry, and what a score is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from tools.rubric.record import Reference, RunRecord
from tools.spec.base import Frozen
from tools.spec.finding import Finding

BAR = 0.8


class Item(Frozen):
    """One thing a criterion looked at. `value` 0..1, `weight` its share in a weighted mean."""

    name: str
    value: float
    reason: str
    weight: float = 1.0


class Score(Frozen):
    """One criterion: 0..1, why in one line, and what was looked at. Never without a reason."""

    criterion: str
    value: float
    reason: str
    evidence: tuple[str, ...] = ()
    items: tuple[Item, ...] = ()
    barred: bool = True
    """False: reported, but the bar does not ask for it."""
    provisional: bool = False


class ConstraintResult(Frozen):
    """How one demand of the task was judged; `check` is "" where no machine check knows the demand."""

    text: str
    line: int
    check: str
    status: Literal["obeyed", "broken", "not_machine_checked", "not_applicable", "statement"]
    reason: str


class Evaluation(Frozen):
    """`evaluation.json`."""

    schema_version: Literal["1"] = "1"
    passed: bool
    bar: float = BAR
    scores: tuple[Score, ...]
    failed_checks: tuple[Finding, ...] = ()
    constraints: tuple[ConstraintResult, ...] = ()
    reference: Reference | None = None
    provisional: tuple[str, ...] = ()
    """What about these scores is provisional, in words."""

    def score(self, criterion: str) -> Score:
        return next(s for s in self.scores if s.criterion == criterion)

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"


Criterion = Callable[[RunRecord], Score]
CRITERIA: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Registers a pure function RunRecord -> Score under `name`."""

    def register(function: Criterion) -> Criterion:
        if name in CRITERIA:
            raise ValueError(f"criterion {name} is registered twice")
        CRITERIA[name] = function
        return function

    return register


def mean(items: Iterable[Item]) -> float:
    """Weighted mean; no items is 0: what was not looked at was not found right."""
    items = list(items)
    weight = sum(i.weight for i in items)
    return sum(i.value * i.weight for i in items) / weight if weight else 0.0


def score(name: str, value: float, items: Iterable[Item], good: str, **more: Any) -> Score:
    """Score whose reason is `good` when nothing is wrong, else the worst item's. Evidence: every item, worst first."""
    ordered = sorted(items, key=lambda i: i.value)
    bad = [i for i in ordered if i.value < 1]
    rest = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    reason = f"{bad[0].name}: {bad[0].reason}{rest}" if bad else good
    evidence = tuple(f"{i.name}: {i.reason}" for i in ordered)
    return Score(
        criterion=name, value=min(1.0, max(0.0, value)), reason=reason, evidence=evidence, items=tuple(ordered), **more
    )  # fmt: skip
