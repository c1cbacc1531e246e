"""The graph's state: plain JSON only. Large values lie in content-addressed files; here are their paths and hashes."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from agent.files import Ref

NODES = (
    "read_conditions",
    "retrieve_knowledge",
    "propose_strategy",
    "verify_dimensions",
    "generate_dag",
    "evaluate",
    "publish",
)
NodeName = Literal[
    "read_conditions",
    "retrieve_knowledge",
    "propose_strategy",
    "verify_dimensions",
    "generate_dag",
    "evaluate",
    "publish",
]

MAX_ROUNDS = 3
"""Rounds of propose → … → evaluate before the best plan so far is final; a failed check has further ones
(MAX_FALLBACKS).
"""
MAX_FALLBACKS = 3


class RunState(TypedDict, total=False):
    inputs: list[dict[str, str]]
    """path and sha256 of every input, as read."""
    sources: Ref
    """The texts of the inputs, for the evidence check and for Understand."""
    language: str
    """Of the prompts: en or zh."""
    conditions: Ref
    deployment: Ref
    paper: Ref
    """The reading, where the input is a paper: its strategies stand in for the search."""
    passages: list[dict[str, Any]]
    search: Ref
    proposal: dict[str, Any]
    chosen: Ref | None
    """Candidate that the plan is made of; None when the search proved that there is none."""
    excluded: list[str]
    """Strategies (keys) that failed a check or scored below the bar."""
    rejected: list[str]
    """Those of `excluded` that a person rejected under --approve."""
    feedback: list[dict[str, Any]]
    """Findings of the last round, for the next proposal."""
    round: int
    verified: Ref
    drawn: Ref
    evaluation: Ref
    attempts: list[dict[str, Any]]
    """Finished rounds: strategy key, lowest score, references; the best of them is published."""
    degraded: list[str]
    manifest: str
