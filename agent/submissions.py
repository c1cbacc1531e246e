"""What each node's `submit_*` tool takes, and the checks that stand between a submission and the run.

Nothing an LLM submits can lower the result: facts must be quoted and derivable, strategies are priced beside the
search's
best, verdicts and opinions change no check.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tools.spec.base import ToolError
from tools.spec.conditions import Conditions, Conflict, Evidence, Fact, InputFile
from tools.units import find_quantities


class Submission(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SubmittedFact(Submission):
    path: str = Field(description="dotted path as in read_facts, e.g. workload.isl")
    value: Any = Field(description="in SI base units; counts are whole numbers")
    file: str
    line: int = Field(ge=1, description="1-based")
    quote: str = Field(min_length=1, description="copied verbatim from that line")


class ConditionsSubmission(Submission):
    facts: list[SubmittedFact] = Field(default=[], description="facts that the reader missed")
    remarks: str = ""


class Dropped(Submission):
    id: str
    why: str = ""


class PassagesSubmission(Submission):
    ids: list[str] = Field(description="passages that will be used, best first")
    dropped: list[Dropped] = []


class StrategySubmission(Submission):
    strategy: dict[str, Any] = Field(
        description="`strategy` of an item of search_strategies, or other degrees; {} when nothing is feasible"
    )
    justification: str = Field(min_length=1, description="with the numbers that tools returned")
    passages: list[str] = Field(default=[], description="ids of passages that support it")


class VerificationSubmission(Submission):
    verdict: Literal["accept", "revise"]
    notes: str = ""


class DagsSubmission(Submission):
    extra_views: list[Literal["stage", "group"]] = Field(default=[], description="views with less detail, besides full")
    notes: str = ""


class ReviewSubmission(Submission):
    opinion: str = Field(default="", max_length=2000)
    weakest: str | None = None


class Facts(BaseModel):
    """Facts that were taken over from a submission, and those that were not, with the reason."""

    taken: tuple[Fact, ...] = ()
    rejected: tuple[tuple[str, str], ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    """Two quotes that say different things about one path."""


def check_facts(submitted: Sequence[SubmittedFact], conditions: Conditions, files: Sequence[InputFile]) -> Facts:
    """Takes a fact only where the reader left a gap, or where its own quote does not carry what it read; the submitted quote
    must be in the file and its value follow from it. Where both quotes carry their values, that is a conflict."""
    known = {f.path: f for f in conditions.facts if f.origin in ("stated", "derived")}
    taken: list[Fact] = []
    rejected: list[tuple[str, str]] = []
    conflicts: list[Conflict] = []
    for s in submitted:
        other = known.get(s.path)
        differs = other is not None and not same_value(other.value, s.value)
        why = refusal(s, {} if differs else known, files)
        if why is None and other is not None:
            conflict, why = disagreement(s, other)
            conflicts.append(conflict)
        if why:
            rejected.append((s.path, why))
            continue
        fact = Fact(
            path=s.path,
            value=s.value,
            stated_as=s.quote,
            evidence=Evidence(file=s.file, line=line_of(s, files) or s.line, quote=s.quote),
        )
        taken.append(fact)
        known[s.path] = fact
    return Facts(taken=tuple(taken), rejected=tuple(rejected), conflicts=tuple(conflicts))


def disagreement(s: SubmittedFact, read: Fact) -> tuple[Conflict, str | None]:
    """What to do with a submitted fact that differs from the reader's: the quote that carries its value decides, and the
    reader's where both do. (the conflict, why the submitted one is not taken or None)"""
    quote = read.evidence.quote if read.evidence else ""
    carried = bool(quote) and derivable(read.path, read.value, quote)
    used = read.value if carried else s.value
    reason = f"the reader has {read.value!r} from its own quote" if carried else None
    why = f"{quote!r} says {read.value!r}, {s.quote!r} says {s.value!r}; " + (
        "both quotes carry their values, the first one read is used" if carried else "only the second carries its value"
    )
    return Conflict(path=s.path, values=(read.value, s.value), resolution=used, why=why), reason


def line_of(s: SubmittedFact, files: Sequence[InputFile]) -> int | None:
    """Line of the quote: the one that was said, else the first that has it; None where no line has."""
    lines = next((f.text.splitlines() for f in files if f.path == s.file), [])
    if s.quote and 0 < s.line <= len(lines) and s.quote in lines[s.line - 1]:
        return s.line
    return next((i + 1 for i, text in enumerate(lines) if s.quote and s.quote in text), None)


def refusal(s: SubmittedFact, known: dict[str, Fact], files: Sequence[InputFile]) -> str | None:
    """Why a submitted fact is not taken; None when it is."""
    if s.path in known:
        return f"the reader has {known[s.path].value!r} from its own quote"
    if s.path.split(".")[0] not in ("hardware", "model", "workload", "requirements", "engine", "objective"):
        return "no such path"
    file = next((f for f in files if f.path == s.file), None)
    if file is None:
        return f"no input is called {s.file!r}"
    if line_of(s, files) is None:
        return f"the quote is not in {s.file}"
    if not derivable(s.path, s.value, s.quote):
        return f"{s.value!r} does not follow from {s.quote!r}"
    return None


def derivable(path: str, value: Any, quote: str) -> bool:
    """The deterministic reader, given the quote alone, finds this value at this path or as a quantity."""
    from agent.reading import read_conditions

    alone = InputFile(path="quote", sha256="", text=quote, kind="text")
    facts = read_conditions((alone,)).facts
    same_path = [f for f in facts if f.path == path]
    if same_path:
        return any(same_value(f.value, value) for f in same_path)
    return any(same_value(q.value, value) for q in find_quantities(quote) if q.dimension in dimensions(path))


def dimensions(path: str) -> tuple[str, ...]:
    """Dimensions that a value at `path` may have."""
    leaf = path.split(".")[1] if "." in path else path
    if path.startswith("requirements.throughput") or leaf == "request_rate":
        return ("tokens/s", "requests/s")
    if leaf == "peak_flops":
        return ("flop/s",)
    for ending, dimension in (("_bytes", "bytes"), ("_bandwidth", "bytes/s"), ("_s", "s")):
        if leaf.endswith(ending):
            return (dimension,)
    return ("count", "fraction")


def same_value(a: Any, b: Any) -> bool:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    if numbers:
        return math.isclose(a, b, rel_tol=1e-6)
    return str(a).strip().casefold() == str(b).strip().casefold()


def known_passages(ids: Sequence[str], library_ids: Sequence[str]) -> list[str]:
    """Raises ToolError for an id that no passage has."""
    unknown = [i for i in ids if i not in library_ids]
    if unknown:
        raise ToolError(f"no passage has the id {unknown[0]!r}; submit ids that retrieve returned")
    return list(dict.fromkeys(ids))
