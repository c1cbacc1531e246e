"""Conversations: who says what, and which question an answer belongs to.

A chat log is no list of fields: the names before the colons come again, and "45 ms" means what the line above asks for.
"""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_CLOCK = r"[\[(（]?(?:\d{4}-\d\d-\d\d[ T])?\d{1,2}[:：]\d{2}(?:[:：]\d{2})?\s*(?:[AaPp]\.?[Mm]\.?)?[\])）]?\s*"
_TURN = re.compile(
    rf"^\s*(?P<clock>{_CLOCK})?[<＜@]?(?P<who>[A-Za-z\u4e00-\u9fff][\w .\-]{{0,18}}?)[>＞]?(?:\s*[:：]|(?<=[>＞]))\s*(?P<said>\S.*)$"
)
_ASKS = re.compile(r"(?:[?？]|[吗呢])\s*$|(?:多少|多长|多大|多久|几[台张卡个路块]?|什么|哪[个种款]?)[^,，。.;；]{0,6}$")
MIN_TURNS = 4


@dataclass(frozen=True, slots=True)
class Turn:
    """`said` on line `line` (from 0); `asked` is the question of the turn before that it answers, or empty."""

    line: int
    said: str
    asked: str = ""


def conversation(lines: Sequence[str], i: int) -> tuple[list[Turn], int] | None:
    """The turns that begin on line `i` (from 0), and the line behind them; None where the names do not come again."""
    found: list[tuple[int, str, str]] = []
    clocks, end = 0, i
    while end < len(lines) and (match := _TURN.match(lines[end])):
        found.append((end, match["who"].strip().lower(), match["said"]))
        clocks += match["clock"] is not None
        end += 1
    speakers = {who for _, who, _ in found}
    if len(found) < MIN_TURNS or len(speakers) < 2 or 2 * len(speakers) > len(found) + (clocks == len(found)):
        return None
    turns = [Turn(found[0][0], found[0][2])]
    for (_, asker, question), (line, who, said) in pairwise(found):
        last = re.split(r"(?<=[。.!！;；?？])\s*(?=\S)", question.strip())[-1]
        # a question with a number of its own states something; its answer does not belong under it
        asks = who != asker and _ASKS.search(last) and not re.search(r"\d", last) and len(last) <= 60
        turns.append(Turn(line, said, last.strip(" ?？吗呢") if asks else ""))
    return turns, end
