"""How the run was judged: the demands of the task, the rubric, the proposal, the knowledge it used."""

from __future__ import annotations

from agent.report.format import (
    digits,
    table,
)
from agent.report.page import Lines, Page


def task(page: Page) -> Lines:
    if page.evaluation is None:
        return []
    rows = [(c.line or "-", c.text, c.status.replace("_", " "), c.reason) for c in page.evaluation.constraints]
    return table(("line", "demand", "status", "how"), rows, "rlll")


def rubric(page: Page) -> Lines:
    e = page.evaluation
    if e is None:
        return []
    rows = [
        (s.criterion.capitalize(), f"{s.value:.2f}", s.reason + ("" if s.barred else " (reported, not barred)"))
        for s in e.scores
    ]
    verdict_ = "passed" if e.passed else "**not passed**"
    out = [
        *table(("criterion", "score", "why"), rows, "lrl"),
        "",
        f"Bar: no failed check and every score at least {e.bar}: {verdict_}.",
    ]
    return out + ([""] + [f"- Provisional: {note}" for note in e.provisional] if e.provisional else [])


def proposal(page: Page) -> Lines:
    """Who proposed what, and what it would have cost against the search's best."""
    p = page.plan.proposal
    rows = [(k.replace("_", " "), said(v)) for k, v in p.items() if v not in (None, "", [], {})]
    return table(("proposal", ""), rows)


def said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return digits(value) if isinstance(value, float) else str(value)


def knowledge(page: Page) -> Lines:
    out = []
    for p in page.plan.knowledge:
        where = f"{p['file']}:{p['line']}" if p.get("line") else p.get("file", "")
        out.append(f"- {p.get('title') or p.get('id')}" + (f" ({where})" if where else ""))
    return out
