"""How sure the choice is: what within the error bands would turn it, and the experiment that decides."""

from __future__ import annotations

from agent.report.format import digits, percent, table
from agent.report.page import Lines, Page
from tools.search.sensitivity import sentence
from tools.spec.plan import Experiment


def sensitivity(page: Page) -> Lines:
    s = page.plan.sensitivity
    if s is None:
        return []
    out = [f"{sentence(s)}."]
    rows = [
        (
            f.input,
            f"× {f.change:.2f}",
            f.winner,
            "infeasible" if f.top_value is None else digits(f.top_value, 4),
            digits(f.winner_value, 4),
            f.why,
        )
        for f in s.flips
    ]
    if rows:
        head = ("input", "changed", "best then", "plan's objective", "its objective", "")
        out += ["", *table(head, rows, "lrlrrl")]
    if s.experiment is not None:
        out += ["", *experiment(s.experiment, page.moe, turns=bool(s.flips))]
    return out


def experiment(e: Experiment, moe: bool, *, turns: bool) -> Lines:
    a, b = e.first.label(moe), e.second.label(moe)
    lead = "What would decide" if turns else "What would confirm it"
    return [
        f"**{lead}:** run {a} and {b}, {e.load}, and compare {e.metric}: predicted {digits(e.predicted[0])} and "
        f"{digits(e.predicted[1])} {e.unit}; {e.decides}. `bench.sh` beside the launch files measures it."
    ]


def close_call(page: Page) -> Lines:
    """For the first lines, where the choice turns within the error band."""
    s = page.plan.sensitivity
    if s is None or s.stable or s.experiment is None:
        return []
    e = s.experiment
    return [
        f"- **Close call.** {sentence(s)}; runner-up {s.runner_up} at {percent(s.gap)} less. To decide, measure "
        f"{e.metric} of {e.first.label(page.moe)} and {e.second.label(page.moe)} ({e.load})."
    ]
