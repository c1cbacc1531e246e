"""Long inputs in parts that a language model reads one after the other, cut where a section or a paragraph ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from agent.reading.sources import InputFile

HEADING = re.compile(r"^\s{0,3}(?:#{1,6}\s|\d+(?:\.\d+)*[.)]?\s+\S|第[一二三四五六七八九十百\d]+[章节])")


@dataclass(frozen=True, slots=True)
class Part:
    """Lines `first` to `last` (from 1) of one file, or several whole files."""

    files: tuple[InputFile, ...]
    first: int = 1
    last: int | None = None

    @property
    def words(self) -> str:
        """ "lines 401-820 of handbook.md"."""
        names = ", ".join(f.path for f in self.files)
        return names if self.last is None else f"lines {self.first}-{self.last} of {names}"


def in_parts(files: Sequence[InputFile], limit: int, count: Callable[[str], int]) -> list[Part]:
    """All files as one part if they have at most `limit` tokens; else every file in pieces of at most that many, small
    files whole. A single line above the limit is a piece of its own."""
    if sum(count(f.text) for f in files) <= limit:
        return [Part(tuple(files))]
    out: list[Part] = []
    for f in files:
        lines = f.text.splitlines(keepends=True)
        for first, last in _pieces(lines, limit, count):
            text = "".join(lines[first:last])
            if text.strip():
                out.append(Part((f.model_copy(update={"text": text}),), first + 1, last))
    return out


def _pieces(lines: Sequence[str], limit: int, count: Callable[[str], int]) -> Iterator[tuple[int, int]]:
    """[first, end) of every piece: as many lines as the limit allows, back to the last heading or blank line in its second
    half."""
    sizes = [count(x) for x in lines]
    first = 0
    while first < len(lines):
        end, used = first, 0
        while end < len(lines) and (end == first or used + sizes[end] <= limit):
            used += sizes[end]
            end += 1
        if end < len(lines):
            middle = first + (end - first) // 2
            cuts = [i for i in range(middle + 1, end) if HEADING.match(lines[i])]
            cuts = cuts or [i + 1 for i in range(middle, end - 1) if not lines[i].strip()]
            end = cuts[-1] if cuts else end
        yield first, end
        first = end
