"""A statement taken apart: its text, its quantities, and the names and terms that they belong to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from agent.reading.binding import Pair
from agent.reading.facts import Candidate
from agent.reading.lexicon import (
    CORRECTED,
    PLANNED,
    TERMS,
    WISHED,
    search,
)
from agent.reading.names import Name
from agent.reading.segments import Statement
from tools.units import Quantity

CLAUSE = re.compile(r"[,，、;；。()（）\n]|\.(?=\s)")


@dataclass(slots=True)
class Scene:
    """A statement taken apart: masked text, names, pairs; `shift` is what the lead words of the context added in front."""

    statement: Statement
    text: str
    masked: str
    label_end: int
    shift: int
    names: list[Name]
    quantities: list[Quantity]
    pairs: list[Pair]
    seen: tuple[Quantity, ...] = ()
    """Every amount of the text, those too that are not read (money, a length given twice)."""

    def candidate(self, path: str, value: Any, start: int, end: int, **more: Any) -> Candidate:
        line, quote = self.statement.at(max(0, start - self.shift))
        return Candidate(
            path=path, value=value, stated_as=self.text[start:end].strip(), file=self.statement.file, line=line, quote=quote,
            key=self.statement.key or self.statement.label, weight=self._weight(start, end), **more,
        )  # fmt: skip

    def _weight(self, start: int, end: int) -> int:
        """A correction counts more than what it corrects, what is planned for more than what is dreamt of."""
        clause = CLAUSE.split(self.text[:start])[-1] + self.text[start:end] + CLAUSE.split(self.text[end:])[0]
        planned, wished = bool(search(PLANNED).search(clause)), bool(search(WISHED).search(clause))
        return planned - wished + 2 * bool(search(CORRECTED).search(self.text)) - 4 * self.statement.quoted


def region(scene: Scene, q: Quantity) -> str:
    """The words that qualify `q`: from the amount before it to a little after it, inside the sentence."""
    start = max((o.end for o in scene.quantities if o.end <= q.start), default=0)
    return scene.masked[start : q.start]


def words_after(scene: Scene, q: Quantity, limit: int = 26) -> str:
    tail = scene.masked[q.end : q.end + limit]
    cut = CLAUSE.search(tail, 2)
    return tail if cut is None else tail[: cut.start() + 1]


def tidy(path: str, value: float) -> Any:
    """Counts are ints; other numbers lose the noise of decimal scaling."""
    value = float(f"{value:.12g}")
    real = _REAL.search(path) or path.startswith("ignore")
    return int(value) if not real and value.is_integer() else value


_REAL = re.compile(
    r"(?:mfu|mbu|_rate|peak_factor|bandwidth|flops\.?\w*|acceptance|ttft_s|tpot_s|latency_s|throughput\w*|epsilon|reserve|target|utilization|usage_limit|price"
    r"|bytes\w*|parameters)$"
)

OSL = next(t for t in TERMS if t.path == "workload.osl" and not t.needs)
