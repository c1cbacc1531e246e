"""R01-R21: what a deployment DAG must be. Each rule reads a `View` of any DOT file and yields what is wrong.

A rule yields `Violation`s; none means passed. What a file cannot say raises `NotDecidable` with the reason; rules that
need the run (R13, R16, R17, R18) are evaluated by `tools.dag.context.run_rules`.
"""

from __future__ import annotations

from collections.abc import Iterator

from tools.dag.facts import View, devices_in
from tools.dag.rules import devices, dims, layers, wiring  # noqa: F401  (importing registers their rules)
from tools.dag.rules.base import RULES, Check, NotDecidable, Rule, RuleResult, Status, Violation, result, rule


def _needs_run(what: str) -> Check:
    def check(v: View) -> Iterator[Violation]:
        raise NotDecidable(f"needs the run: {what}")
        yield

    return check


rule("R13", "every model has its own DAGs, the baseline too, per phase")(_needs_run("the set of all DAGs"))
rule("R16", "parts match devices; load is balanced")(_needs_run("shards and predicted times"))
rule("R17", "the executed graph equals the unpartitioned model")(_needs_run("the proof"))
rule("R18", "inputs are byte-identical after the run")(_needs_run("the hashes of the inputs"))
ALL_RULES = tuple(sorted(RULES))
__all__ = [
    "ALL_RULES",
    "RULES",
    "NotDecidable",
    "Rule",
    "RuleResult",
    "Status",
    "Violation",
    "devices_in",
    "result",
    "rule",
]
