"""What a text says and does not mean: a name that is asked about and refused, and how things are today beside how they shall be.

Both are seen only over several statements, so they are taken back after all of them are read.
"""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from agent.reading.facts import Candidate, Reading
from agent.reading.segments import Statement

_NAMES = ("model.name", "hardware.device", "engine.name")
_REFUSED = re.compile(r"\s*(?:no|nope|nah|not (?:that|this)|wrong)\b|\s*(?:不是|不对|不用|不上|不,|不，|否|错)", re.I)
_AS_IS = re.compile(
    r"(?:today|now|current(?:ly)?|existing|as[- ]is|observed|actual|before|old|status quo|present|measured|so far|retro\w*|pilot|poc|trial|试点|现状|现有|当前|目前|现在|旧|实测|原方案)\b.{0,30}", re.I
)  # fmt: skip
_TO_BE = re.compile(
    r"(?:新方案|roll-?out|production|go-?live|正式|上线|new|target|to[- ]be|wanted|want|goals?|future|after|planned?|proposed|desired|required|requirements?|next|tomorrow|wish|should be|目标|规划|新|期望|要求|改造后|之后|需求).{0,20}",
    re.I,
)


_RUNS_TODAY = re.compile(
    r"\W*(?:我们|公司|这边)?(?:现在|目前|当前|现网|眼下)(?:线上)?(?:在)?(?:用|跑|使用|部署|运行|是)|\W*(?:right now|at the moment|today|currently|so far),? (?:we|it|this) |\W*(?:we|it) (?:currently|now|today) (?:run|use|serve|have)",
    re.I,
)


def may_be_taken_back(statement: Statement) -> bool:
    return _is_question(statement) or _side(statement, _AS_IS)


def take_back(statements: Sequence[Statement], gave: Mapping[int, list[Candidate]], reading: Reading) -> None:
    """Drops what was not meant. `gave` has the candidates of every statement that may be such a one, by its number."""
    gone = {id(c) for c in (*_rejected(statements, gave, reading), *_as_it_is(statements, gave, reading))}
    if gone:
        reading.candidates[:] = [c for c in reading.candidates if id(c) not in gone]


def _is_question(statement: Statement) -> bool:
    return statement.text.rstrip().endswith(("?", "？"))


def _rejected(
    statements: Sequence[Statement], gave: Mapping[int, list[Candidate]], reading: Reading
) -> list[Candidate]:
    """ "DeepSeek-V2-Lite? No, DeepSeek-V2.5": the name that is asked about."""
    out: list[Candidate] = []
    for k, asked in gave.items():
        following = statements[k + 1] if k + 1 < len(statements) else None
        near = following is not None and following.line - statements[k].line <= 1 and _is_question(statements[k])
        if following is None or not near or not _REFUSED.match(following.value or following.text):
            continue
        for c in asked:
            if c.path in _NAMES and any(o.path == c.path and o not in asked for o in reading.candidates):
                reading.flag("negated-name", f"{c.stated_as} is asked about and refused; left out")
                out.append(c)
    return out


_NOW_IT_IS = re.compile(
    r"\bthat (?:was|is) (?:\w+ ){0,3}?(?:last|old|outdated|before|then|stale|wrong)\b[^\d]*?\bnow\b[^\d]{0,16}(?P<n>\d[\d,]*(?:\.\d+)?)|那是.{0,10}现在(?:是|到|有)?\s*(?P<zh>\d+(?:\.\d+)?)|^\W*(?:but |so |for now )?(?:plan|size|design|budget|calculate) (?:for|with|on) (?P<plan>\d[\d,]*)\W*$",
    re.I,
)


def superseded(statement: Statement, before: Sequence[Candidate], reading: Reading) -> None:
    """ "14 requests/s." "That was last summer, now it is 20.": the new number, in the unit of the old one."""
    match = _NOW_IT_IS.search(statement.text)
    counted = [
        c for c in before if isinstance(c.value, int | float) and c.path.startswith(("workload.", "hardware.num_"))
    ]
    if match is None or len(counted) != 1:
        return
    old, part = counted[0], next(k for k in ("n", "zh", "plan") if match[k])
    figure = re.search(r"\d[\d,]*(?:\.\d+)?", old.stated_as)
    if figure is None:
        return
    one = old.value / float(figure.group().replace(",", ""))
    value = type(old.value)(float(f"{float(match[part].replace(',', '')) * one:.10g}"))
    line, quote = statement.at(match.start(part))
    new = replace(old, value=value, stated_as=match[part], line=line, quote=quote, weight=old.weight + 2)
    reading.candidates.append(new)


def _side(statement: Statement, words: re.Pattern[str]) -> bool:
    names = [*statement.context, statement.label if statement.label_end else ""]
    if lead := re.match(r"([^:：.。]{2,40})[:：]\s*\S", statement.text):
        names.append(lead[1])
    if words is _AS_IS and _RUNS_TODAY.match(statement.text):
        return True
    return any(words.fullmatch(n.strip(" *_#:：")) for n in names if n)


def _as_it_is(
    statements: Sequence[Statement], gave: Mapping[int, list[Candidate]], reading: Reading
) -> list[Candidate]:
    """ "Today: 8x V100, TTFT 4 s. New: 4x H200, TTFT 1 s": of what runs today only what the new text leaves open is kept,
    and no speed that was measured is a requirement."""
    today = {k: mine for k, mine in gave.items() if mine and _side(statements[k], _AS_IS)}
    if not today or not any(_side(s, _TO_BE) for s in statements):
        return []
    old = {id(c) for mine in today.values() for c in mine}
    new = {c.path for c in reading.candidates if id(c) not in old}
    whole = {"hardware": "hardware.device" in new, "model": "model.name" in new}
    out: list[Candidate] = []
    for k, mine in today.items():
        gone = [
            c for c in mine
            if c.path != "baseline"
            and (c.path.startswith("requirements.") or c.path in new or whole.get(c.path.split(".")[0], False))
        ]  # fmt: skip
        if gone:
            text = " ".join(statements[k].text.split())
            reading.ignore(
                text if len(text) <= 100 else text[:97] + "...", "how it runs today, beside what is asked for"
            )
        out += gone
    return out
