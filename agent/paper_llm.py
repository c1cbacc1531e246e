"""Papers read by a language model: a typed `PaperSubmission`, accepted quote by quote beside the built-in reader's facts.

What is accepted is decided in `paper_accept`. A strategy that cannot be laid out is refused, so that the language model can
only add to what is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from agent.events import EventLog
from agent.llm import builtin
from agent.loop import Conversation, Outcome, Step, converse
from agent.paper_accept import accept
from agent.paper_submission import PaperSubmission, Reading
from agent.reading.paper import degrees_of, read_paper
from agent.reading.paper_text import read_paper_text, section_kind
from agent.tokens import count_tokens
from prompts import render
from tools.spec.base import ToolError
from tools.spec.conditions import InputFile
from tools.spec.paper import PaperMethod

PROMPT_SHARE = 0.6
"""Of the context that the paper's text may take; results, related work and references are left out beyond it."""


def submission_of_builtin(context: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """The built-in policy adds nothing to the built-in reader."""
    return {"remarks": "The deterministic reader's facts stand; nothing to add."}


builtin.PLANS["submit_paper"] = lambda context, results: []
builtin.SUBMISSIONS["submit_paper"] = submission_of_builtin


async def read_with(
    files: Sequence[InputFile], conversation: Conversation, task: str = "", language: str = "en"
) -> Reading:
    """The paper by the built-in reader, and by the backend where there is one. Raises ToolError where neither can tell its
    models or its method."""
    try:
        own, why = read_paper(files), ""
    except ToolError as e:
        if isinstance(conversation.backend, builtin.Builtin) or len(files) != 1:
            raise
        own, why = None, str(e)
    if isinstance(conversation.backend, builtin.Builtin):
        assert own is not None
        return Reading(own)
    step = _step(files[0], own, why, task, language, conversation.context_tokens)
    outcome: Outcome = await converse(step, conversation)
    if isinstance(outcome.value, Reading):
        found = outcome.value
        found.by, found.degraded = outcome.by, outcome.degraded
        _log(conversation.log, found)
        return found
    raise ToolError(why)  # the built-in policy answered for a paper that the built-in reader cannot read


def _log(log: EventLog, found: Reading) -> None:
    for what, why in found.rejected:
        log.write("fact_rejected", path=what, why=why)


def _step(file: InputFile, own: PaperMethod | None, why: str, task: str, language: str, tokens: int) -> Step:
    where = "" if language == "en" else f"{language}/"
    context = {"reader": _shown(own) if own else None, "reader_failed": why or None, "input": file.path}
    text = _fitted(file, int(tokens * PROMPT_SHARE))
    prompt = render(f"{where}read_paper", context=json.dumps(context, ensure_ascii=False, indent=1))
    return Step(
        node="read_conditions", system=render(f"{where}system", role="Your step: read the paper.", task=task),
        user=f"{prompt}\n\nBEGIN INPUT {file.path}\n{text}\nEND INPUT {file.path}\n", tools=frozenset(), submit="submit_paper",
        description="Hands in what the paper says: models, hardware, strategies, each with quotes.",
        arguments=PaperSubmission, accept=lambda s: accept(s, file, own, why),
    )  # fmt: skip


def _shown(m: PaperMethod) -> dict[str, Any]:
    """The built-in reading as the prompt shows it."""
    facts = [
        {"path": f.path, "value": f.value, "line": f.evidence.line, "quote": f.evidence.quote}
        for f in m.conditions.facts
        if f.evidence and ".strategy." not in f.path
    ]
    strategies = [
        {
            "model": m.model(s.model).name, "role": s.role, "degrees": degrees_of(s), "notes": list(s.notes),
            "doubts": [f.message for f in s.findings],
            "quotes": [{"line": q.line, "quote": q.quote} for q in s.quotes],
        }
        for s in m.strategies
    ]  # fmt: skip
    notes = {x.name: list(x.notes) for x in m.models}
    return {
        "facts": facts,
        "strategies": strategies,
        "assumed": notes,
        "unsupported": [u.message() for u in m.unsupported],
    }


def _fitted(file: InputFile, tokens: int) -> str:
    """The text with line numbers; where it is too long, without the sections that decide nothing."""
    lines = file.text.splitlines()
    numbered = [f"{i}: {line}" for i, line in enumerate(lines, 1)]
    if count_tokens(file.text) <= tokens:
        return "\n".join(numbered)
    paper = read_paper_text(file.text, file.path)
    dull = ("related", "references", "appendix", "results", "conclusion", "background")
    dropped = {n for p in paper.passages if section_kind(p.section) in dull for _, n in p.lines}
    kept = [line for i, line in enumerate(numbered, 1) if i not in dropped]
    while kept and count_tokens("\n".join(kept)) > tokens:
        kept = kept[: int(len(kept) * 0.9)]
    return "\n".join(kept)
