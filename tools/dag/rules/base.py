"""What a rule is: a named check that reads a `View` of any DOT file and yields what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tools.dag.facts import NodeFacts, View
from tools.spec.base import Frozen

Status = Literal["passed", "failed", "not_decidable"]
MAX_SHOWN = 20


class Violation(Frozen):
    """One thing that is wrong, where, and what to do about it."""

    message: str
    node: str | None = None
    line: int | None = None
    fix: str = ""


class Habit(Frozen):
    """Violations with one way out: the first of them, how many there are, and where some others are."""

    message: str
    count: int
    node: str | None = None
    line: int | None = None
    fix: str = ""
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.count == 1:
            return self.message
        names = f": {', '.join(self.others)}{', …' * (self.count - 1 > len(self.others))}" if self.others else ""
        return f"{self.message} (and {self.count - 1} more{names})"


class RuleResult(Frozen):
    """`violations` shows the first few of `total`; `habits` all of them, those with one way out as one."""

    rule: str
    title: str
    status: Status
    message: str = ""
    violations: tuple[Violation, ...] = ()
    total: int = 0
    habits: tuple[Habit, ...] = ()


class NotDecidable(Exception):
    """The file does not say what the rule needs; the message says what is missing."""


Check = Callable[[View], Iterator[Violation]]


@dataclass(frozen=True, slots=True)
class Rule:
    id: str
    title: str
    check: Check

    def __call__(self, v: View) -> RuleResult:
        found: list[Violation] = []
        try:
            found.extend(self.check(v))  # what was found before the check gave up counts
        except NotDecidable as why:
            if not found:
                return RuleResult(rule=self.id, title=self.title, status="not_decidable", message=str(why))
        return result(self.id, self.title, found)


RULES: dict[str, Rule] = {}


def rule(rule_id: str, title: str) -> Callable[[Check], Check]:
    """Registers a rule; its function yields violations."""

    def register(check: Check) -> Check:
        RULES[rule_id] = Rule(rule_id, title, check)
        return check

    return register


def result(rule_id: str, title: str, found: list[Violation]) -> RuleResult:
    if not found:
        return RuleResult(rule=rule_id, title=title, status="passed")
    shown = tuple(v.model_copy(update={"message": " ".join(v.message.split())}) for v in found[:MAX_SHOWN])
    return RuleResult(
        rule=rule_id,
        title=title,
        status="failed",
        message=shown[0].message,
        violations=shown,
        total=len(found),
        habits=_habits(found),
    )


_NAMED_IN_FIX = re.compile(r"`[^`]*`|'[^']*'|\d+(?:[,\d]*\d)?")
MAX_OTHERS = 3


def _habits(found: Sequence[Violation]) -> tuple[Habit, ...]:
    """What one way out mends is one habit of whoever drew the file, not as many faults as it has places."""
    alike: dict[str, list[Violation]] = {}
    for v in found:
        alike.setdefault(_NAMED_IN_FIX.sub("", v.fix), []).append(v)
    return tuple(_habit(vs) for vs in alike.values())


def _habit(found: Sequence[Violation]) -> Habit:
    first, *rest = found[: 5 * MAX_OTHERS]
    others = dict.fromkeys(" ".join(v.node.split()) for v in rest if v.node and v.node != first.node)
    said = " ".join(first.message.split())
    return Habit(message=said, count=len(found), node=first.node, line=first.line, fix=first.fix,
                 others=tuple(others)[:MAX_OTHERS])  # fmt: skip


def bad(n: NodeFacts, message: str, fix: str) -> Violation:
    # Not validated: a large file may break a rule at every node, and all but the first few are only counted.
    return Violation.model_construct(message=f"{n.id}: {message}", node=n.id, line=n.line, fix=fix)


def full_detail(v: View) -> None:
    detail = v.graph.attrs.get("detail", "full")
    if detail != "full":
        raise NotDecidable(f"a {detail} view; judged on the full-detail file")


def some_nodes(v: View) -> None:
    if not v.nodes:
        raise NotDecidable("the graph has no nodes")
