"""Where a paper contradicts itself: the set-up's value is drawn, the others are told with their lines.

A set-up outranks the abstract, the results and the conclusion, and a stated shape a declared number of parameters.
"""

# ruff: noqa: E501  (a message reads better unbroken)

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from agent.reading.paper_models import HF_NAMES, NOT_COUNTED
from agent.reading.paper_rows import measured
from agent.reading.paper_shapes import Found, find_facts, find_workload
from agent.reading.paper_text import Paper, Passage, part, section_kind
from tools.spec.conditions import Conflict, Evidence
from tools.spec.paper import PaperMethod, PaperModel

_COMPARED = ("layers", "experts", "heads", "head_dim", "hidden_size", "top_k", "weight_dtype", "kind")
_ELSEWHERE = ("abstract", "results", "conclusion")
_OF_OUR_RUN = re.compile(
    r"\b(?:our|we|experiments?|evaluat\w*|ran\b|results?|demonstrat\w*|validat\w*|table \d|on (?:a|an|the|both|two)\b)|本文|实验|我们",
    re.I,
)
_DECLARED = re.compile(
    r"(?:param\w*|weights?(?: size)?|size|参数(?:量|规模)?)\s*(?:is|are|of|为|约)?\s*[:：]?\s*(?:about |around |approximately |[~≈约])*\s*(?P<n>\d+(?:\.\d+)?)\s*(?P<u>[BMT]|billion|million|trillion)(?!i?[Bb]|\w)"
    r"|[~≈]?(?P<n1>\d+(?:\.\d+)?)\s*(?P<u1>[BMT]|billion|million|trillion)[ -](?:model )?param",
    re.I,
)
_SCALE = {"m": 1e6, "b": 1e9, "t": 1e12}
_NEAR = 0.2
"""A declared number of parameters is rounded, and papers leave embeddings out."""


def contradictions(paper: Paper, models: Sequence[PaperModel]) -> tuple[Conflict, ...]:
    out = [c for m in models for c in (*_facts(paper, m, models), *_parameters(paper, m, models))]
    return tuple({(c.path, c.values): c for c in out}.values())


def _facts(paper: Paper, m: PaperModel, models: Sequence[PaperModel]) -> Iterator[Conflict]:
    """Shapes and workload of a model that other parts of the paper give another value."""
    drawn = {f.path: f for f in m.facts if f.evidence}
    seen: set[tuple[str, object]] = set()
    for p in _said_again(paper):
        for found, path in _told(p, m, models):
            own = drawn.get(path)
            in_words = isinstance(found.value, int) and not re.search(
                r"\d", found.stated_as
            )  # "two experts never share a device"
            if own is None or own.value == found.value or in_words or (path, found.value) in seen or _another(p, m):
                continue
            seen.add((path, found.value))
            name = path.split(".", 1)[1].replace("_", " ").removeprefix("num ")
            why = f"{name} is {own.value} in the set-up ({_where(own.evidence)}) and {found.value} in the {section_kind(p.section) or 'text'} ({_where(found.evidence)}: {' '.join(found.evidence.quote.split())[:80]!r}); the set-up's is drawn"
            yield Conflict(path=f"paper.{m.key}.{path}", values=(own.value, found.value), resolution=own.value, why=why)


def _said_again(paper: Paper) -> Iterator[Passage]:
    """What abstract, results and conclusion say of the paper's own runs, sentence by sentence; of rows the first cell."""
    for p in paper.of(*_ELSEWHERE):
        if p.kind == "row":
            if not measured(p) and p.cells:
                title = p.cells[0][1]
                at = p.text.find(title)
                yield part(p, at, at + len(title)) if at >= 0 and title else p
            continue
        for a, b in p.sentences():
            if _OF_OUR_RUN.search(p.text[a:b]):
                yield part(p, a, b)


def _told(p: Passage, m: PaperModel, models: Sequence[PaperModel]) -> Iterator[tuple[Found, str]]:
    plain = _plain(p)
    facts = find_facts([plain])
    kind = facts.get("kind")
    if len(models) > 1 and kind is not None and (kind.value == "moe") != (m.spec.moe is not None):
        return  # it is said of another model
    for name in _COMPARED:
        if name in facts and name in HF_NAMES:
            yield facts[name], f"model.{HF_NAMES[name]}"
    if p.kind != "row":
        for name, values in find_workload([plain]).items():
            if name == "batch_size":
                yield from ((v, "workload.batch_size") for v in values)


def _plain(p: Passage) -> Passage:
    """A row's first cell as words."""
    from dataclasses import replace

    return replace(p, kind="paragraph", cells=()) if p.kind == "row" else p


def _another(p: Passage, m: PaperModel) -> bool:
    """A number of one of several: "a batch of 1 to 64", "between 4 and 16 layers"."""
    return bool(re.search(r"\d\s*(?:to|-|–|~|,|and|or)\s*\d+\s*(?:layers|experts|heads|sequences)", p.text))


def _where(e: Evidence | None) -> str:
    return f"line {e.line}" if e else "no line"


def _parameters(paper: Paper, m: PaperModel, models: Sequence[PaperModel]) -> Iterator[Conflict]:
    """A declared number of parameters that the stated shape does not have."""
    from tools.memory import num_parameters

    if len(models) > 1 or any(f.path == "model.name" for f in m.facts):
        return
    for p in paper.passages:
        if section_kind(p.section) in ("related", "references", "background", "introduction") or p.kind == "row":
            continue
        hit = _DECLARED.search(p.text)
        if hit is None:
            continue
        declared = float(hit["n"] or hit["n1"]) * _SCALE[(hit["u"] or hit["u1"])[0].lower()]
        have = float(num_parameters(m.spec))
        if abs(declared - have) > _NEAR * max(declared, have):
            why = f"the paper declares {_count(declared)} parameters ({_where(p.quote(hit.start(), hit.end()))}), and the stated shape has {_count(have)}; the shape is drawn"
            yield Conflict(path=f"paper.{m.key}.model.declared_parameters", values=(declared, have), resolution=have, why=why)  # fmt: skip
        return


def _count(n: float) -> str:
    return f"{n / 1e9:.3g} B" if n >= 1e9 else f"{n / 1e6:.3g} M"


def doubts(method: PaperMethod) -> tuple[str, ...]:
    """What a reader must know first: contradictions, what was taken from elsewhere, what a strategy's words leave open."""
    taken = [f"{m.name}: {n}" for m in method.models for n in m.notes if n.startswith(NOT_COUNTED)]
    found = [f.message for s in method.strategies for f in s.findings if f.severity != "info"]
    return tuple(dict.fromkeys((*(c.why for c in method.conditions.conflicts), *taken, *found)))


__all__ = ["contradictions", "doubts"]
