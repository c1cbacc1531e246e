"""Result: are all deliverables there, and none empty?"""

from __future__ import annotations

from itertools import product

from tools.manifest import Artifact
from tools.rubric.base import Item, Score, criterion, mean, score
from tools.rubric.record import Deliverable, RunRecord

ALWAYS = ("plan", "report", "evaluation")
PROVEN = ("pareto", "launch")
DRAWN = ("dag_script", "dag_dot", "dag_svg")


@criterion("result")
def result(record: RunRecord) -> Score:
    items = [_present(kind, record) for kind in ALWAYS]
    if record.plan.status == "proven":
        # Where the strategy is given, there is no front to plot, and often no engine that can launch it.
        items += [_present(kind, record) for kind in PROVEN if not record.fixed_strategy]
        items += [
            drawn(kind, role, phase, record)
            for role, phase, kind in product(("plan", "baseline"), ("prefill", "decode"), DRAWN)
        ]
    items += [_listable(d) for d in record.deliverables]
    items += [Item(name=path, value=0.0, reason=why, weight=2.0) for path, why in record.flaws.items()]
    return score(
        "result", mean(items), items, f"all {len(record.deliverables)} deliverables are there, as relative paths"
    )


def _present(kind: str, record: RunRecord) -> Item:
    files = [d for d in record.deliverables if d.kind == kind and d.num_bytes > 0]
    return Item(name=kind, value=float(bool(files)), reason=f"{len(files)} file(s)" if files else "missing", weight=2.0)


def drawn(kind: str, role: str, phase: str, record: RunRecord) -> Item:
    """The baseline's place is taken by the runner-up where both strategies are the same."""
    roles = {role, "runner_up"} if role == "baseline" else {role}
    files = [
        d.path
        for d in record.deliverables
        if d.kind == kind and d.role in roles and d.phase == phase and d.num_bytes > 0
    ]
    return Item(
        name=f"{kind} of the {role}'s {phase}",
        value=float(bool(files)),
        reason=files[0] if files else "missing",
        weight=2.0,
    )


def _listable(d: Deliverable) -> Item:
    """The manifest can list it: not empty, relative, inside the folder."""
    try:
        Artifact(kind=d.kind, path=d.path, sha256=None if d.kind == "events" else "0" * 64)
    except ValueError as error:
        return Item(name=d.path, value=0.0, reason=str(error).splitlines()[-1].strip(), weight=0.5)
    ok = d.num_bytes > 0 or d.kind == "events"
    return Item(name=d.path, value=float(ok), reason=f"{d.num_bytes} bytes" if ok else "empty", weight=0.5)
