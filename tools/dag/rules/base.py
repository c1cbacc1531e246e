"""What a rule is: a named check that reads a `View` of any DOT file and yields what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


class RuleResult(Frozen):
    """`violations` shows the first few of `total`."""

    rule: str
    title: str
    status: Status
    message: str = ""
    violations: tuple[Violation, ...] = ()
    total: int = 0


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
    )


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
