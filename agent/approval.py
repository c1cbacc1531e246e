"""`--approve`: the run pauses before it publishes, and a person answers `meshwright resume RUN_DIR --approve yes|no`.

The pause is LangGraph's interrupt, so it outlives the process. "no" excludes the strategy and sends the run back to
propose_strategy with the reason as feedback; nothing is published until somebody says yes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from agent.files import Ref, write_atomic
from agent.state import RunState
from tools.rubric import Evaluation
from tools.spec.base import Frozen, ToolError
from tools.spec.plan import Plan

REVIEW = "state/review.md"


class Answer(Frozen):
    """What a person says to a plan that waits."""

    verdict: Literal["yes", "no"]
    reason: str = ""


def request(run_dir: Path, plan: Plan, evaluation: Evaluation, report: bytes) -> dict[str, Any]:
    """What the person is shown; the whole report lies under `review`."""
    write_atomic(run_dir / REVIEW, report)
    return {
        "headline": plan.headline, "verdict": plan.status, "at_risk": list(plan.at_risk),
        "scores": {s.criterion: s.value for s in evaluation.scores}, "passed": evaluation.passed, "review": REVIEW,
        "rejectable": plan.strategy is not None,
    }  # fmt: skip


def rejected(state: RunState, key: str, chosen: Ref | None, reason: str) -> RunState:
    """State for another proposal: the candidate of this key is out, its finished round too, the reason is what the proposer
    reads."""
    kept = [a for a in state.get("attempts", []) if a.get("chosen") != chosen]
    said = reason.strip() or "no reason given"
    return RunState(
        excluded=[*state.get("excluded", []), key], rejected=[*state.get("rejected", []), key], attempts=kept,
        feedback=[{"code": "rejected", "message": f"a person rejected {key}: {said}"}], round=0,
    )  # fmt: skip


def none_left(state: RunState) -> ToolError:
    count = len(state.get("rejected", []))
    return ToolError(
        f"{count} strategies were rejected and no other one meets every requirement; "
        "nothing is published: change the conditions and plan again"
    )
