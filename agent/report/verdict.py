"""The infeasible verdict: what binds, what would change it, what came closest."""

from __future__ import annotations

from agent.report.format import (
    digits,
    duration,
    exact,
    table,
)
from agent.report.page import COMPARISON, Lines, Page, comparison_row, finding_line


def binding(page: Page) -> Lines:
    v = page.plan.infeasible
    if v is None:
        return []
    told = "metric" in v.binding.values  # then the sentence above the table says these numbers already
    numbers = {} if told else v.binding.values
    rows = [(name, digits(x) if isinstance(x, float) else x) for name, x in numbers.items()]
    out = [finding_line(v.binding), *(["", *table(("number", "value"), rows, "lr")] if rows else [])]
    others = [f for f in v.findings if f != v.binding]
    return [*out, "", *(f"- {finding_line(f)}" for f in others[:10])] if others else out


def nearest(page: Page) -> Lines:
    v = page.plan.infeasible
    if v is None or not v.nearest:
        return ["No single change of the conditions makes a plan possible."]
    rows = [(c.description, c.kind.replace("_", " "), _to(c.kind, c.value)) for c in v.nearest]
    return [
        "Each was applied and searched again; it does give a plan.",
        "",
        *table(("change", "what changes", "to"), rows, "llr"),
    ]


def _to(kind: str, value: object) -> object:
    """The new value with its unit: a latency in ms or s, anything else as stated."""
    if not isinstance(value, float):
        return value
    return duration(value) if kind in ("ttft", "tpot") else exact(value)


def closest(page: Page) -> Lines:
    v = page.plan.infeasible
    if v is None or v.closest is None:
        return []
    rows = [comparison_row("closest", v.closest, page)]
    rows += [comparison_row("baseline", page.plan.baseline, page)] if page.plan.baseline else []
    return table(COMPARISON, [*rows, *(comparison_row("asked", e, page) for e in page.plan.asked)], "llrrrrrl")
