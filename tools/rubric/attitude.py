"""Attitude: was every demand of the task obeyed?"""

from __future__ import annotations

from tools.rubric.base import Item, Score, criterion, mean, score
from tools.rubric.constraints import judge
from tools.rubric.record import RunRecord

UNCHECKED_VALUE, UNCHECKED_WEIGHT = 0.5, 0.25
"""A demand that no machine check knows is neither obeyed nor broken as far as this run can tell; it counts a little."""


@criterion("attitude")
def attitude(record: RunRecord) -> Score:
    judged = judge(record)
    items, unchecked = [], 0
    for result in judged:
        if result.status in ("statement", "not_applicable"):
            continue
        name = f"line {result.line}" if result.line else "standing"
        if result.status == "not_machine_checked":
            unchecked += 1
            items.append(
                Item(
                    name=name,
                    value=UNCHECKED_VALUE,
                    weight=UNCHECKED_WEIGHT,
                    reason=f"{result.text!r} is not machine-checked: {result.reason}",
                )
            )
        else:
            items.append(
                Item(name=name, value=float(result.status == "obeyed"), reason=f"{result.text!r}: {result.reason}")
            )
    aside = f", {unchecked} not machine-checked" if unchecked else ""
    return score("attitude", mean(items), items, f"{len(items) - unchecked} demands obeyed{aside}")
