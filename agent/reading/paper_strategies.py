"""The strategies of a paper: each baseline and the proposed one, per model, from the words of its set-up and method.

The set-up's clause gives degrees ("the exchange over P = 16"); what the method says about itself ("attention runs
data-parallel", "Q, K and V are redistributed by all-to-all") gives the axes that the clause leaves unnamed. What is
named without a degree takes the devices that are left; nothing else is filled in.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.reading.paper_build import build_strategies
from agent.reading.paper_clauses import Clause, Setting, clauses_of, merged
from agent.reading.paper_degrees import Degrees
from agent.reading.paper_mechanisms import REDUNDANT, Method, beyond_words, mechanisms, read_method
from agent.reading.paper_text import Paper
from agent.reading.paper_unread import with_unread
from tools.spec.base import Refused, ToolError
from tools.spec.paper import PaperModel, PaperStrategy, Unsupported

_IN_BASELINES = ("apart", "pool", "pd", "interleaved")
"""Ways to deploy that a baseline has only where its own words say so."""


def read_strategies(
    paper: Paper, models: Sequence[PaperModel], setting: Setting
) -> tuple[list[PaperStrategy], list[Unsupported]]:
    """Every baseline and the proposed strategy of every model. Raises ToolError when no model has a proposed one to read."""
    clauses = clauses_of(paper, models, setting)
    method = read_method(paper, clauses)
    beyond = beyond_words(method.sentences)
    out: list[PaperStrategy] = []
    missing = [u for _, u in beyond]
    blocked = any(not b.partial for b, _ in beyond)
    failed: list[ToolError] = []
    for model in models:
        mine = [c for c in clauses if c.model in (None, model.key)]
        read: list[PaperStrategy] = []
        for c in mine:
            if c.role == "baseline" and _says_enough(c.degrees) and not _said_again(c, mine):
                made = build_strategies(model, c, "baseline", _own_words(c), setting)
                read += with_unread(made, c, model, setting)
        if not blocked:
            clause = merged([c for c in mine if c.role == "proposed"]) or Clause("proposed", [])
            try:
                read += with_unread(
                    build_strategies(model, clause, "proposed", method, setting), clause, model, setting
                )
            except ToolError as e:
                failed.append(e)
                missing += _lost(model, clause, e)
        out += _named(read)
    if any(s.strategy.redundant_experts for s in out if s.role == "proposed"):
        missing = [u for u in missing if u.what != REDUNDANT]
    if failed and not any(s.role == "proposed" for s in out):
        raise _with_passage(failed[0], missing)
    return out, missing


def _with_passage(error: ToolError, missing: Sequence[Unsupported]) -> ToolError:
    """A refusal with the passage that asks for what is refused; anything else as it is."""
    e = next((u.evidence for u in missing if u.why == str(error)), None)
    if not isinstance(error, Refused) or e is None or str(error).startswith(e.file):
        return error
    return Refused(f"{e.file} line {e.line}: {error}")


def _own_words(clause: Clause) -> Method:
    found = {k: p for k, p in mechanisms(clause.texts).items() if k in _IN_BASELINES}
    return Method(tuple(clause.texts), found)


def _lost(model: PaperModel, clause: Clause, error: ToolError) -> list[Unsupported]:
    """A model whose strategy cannot be told, beside others whose can."""
    quotes = [p.quote() for p in clause.texts] or list(model.quotes)
    return [Unsupported(what="a strategy", why=str(error), evidence=q, model=model.key) for q in quotes[:1]]


def _says_enough(d: Degrees) -> bool:
    """Whether a clause fixes anything: a degree, or how many devices share what it names."""
    return (
        any(d.axes.values())
        or bool(d.layers_each or d.layers_per_stage or d.slices)
        or (bool(d.axes) and d.devices is not None)
    )


def _said_again(c: Clause, clauses: Sequence[Clause]) -> bool:
    """A row of results that names the degrees of a baseline that the set-up states."""
    if not c.texts or c.texts[0].kind != "row":
        return False
    known = [o for o in clauses if o.role == "baseline" and o is not c and o.texts and o.texts[0].kind != "row"]
    return _degrees(c) in [_degrees(o) for o in known]


def _degrees(c: Clause) -> dict[str, int]:
    return {a: v for a, v in c.degrees.axes.items() if v}


def _same(a: PaperStrategy, b: PaperStrategy) -> bool:
    return (a.role, a.strategy, a.phases, a.seq_len) == (b.role, b.strategy, b.phases, b.seq_len)


def _named(read: list[PaperStrategy]) -> list[PaperStrategy]:
    """Equal strategies once; baselines numbered."""
    unique: list[PaperStrategy] = []
    for s in read:
        if not any(_same(u, s) for u in unique):
            unique.append(s)
    out, n = [], 0
    for s in unique:
        if s.role == "baseline":
            n += 1
            s = s.model_copy(update={"name": "baseline" if n == 1 else f"baseline_{n}"})
        out.append(s)
    return out
