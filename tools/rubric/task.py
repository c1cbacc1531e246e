"""Demands of a task prompt: the sentences of its TASK, NOTE and SUBMISSION sections, remarks in <<<…>>> left out."""

from __future__ import annotations

import re

from tools.rubric.record import Constraint

DEMANDING = re.compile(r"task|note|submission|constraint|requirement|任务|注意|约束|提交|要求", re.I)
SKIPPED = re.compile(r"resource|grade|grading|score|rubric|role|background|资源|评分|角色|背景", re.I)
_REMARK = re.compile(r"<<<.*?>>>", re.S)
_RULE = re.compile(r"^\s*(?:[-*_=]\s*){3,}$")
_HEAD = re.compile(r"^\s*(?:#+\s*)?\**([A-Z][A-Z ]{2,}|[^\W\d_][^.。!?]{0,40})\**\s*[:：]?\s*$")
_LEAD = re.compile(r"(following (tasks|constraints|conditions))?\s*[:：]$", re.I)


def parse_task(text: str, file: str = "") -> tuple[Constraint, ...]:
    """One Constraint per line that demands something, with its 1-based line; a text without sections is all demands."""
    lines = _without_remarks(text).splitlines()
    sections, current, out = _has_sections(lines), None, []
    for number, line in enumerate(lines, 1):
        plain = re.sub(r"^\s*(?:[-*+•]|\d+[.)、])\s+", "", line.replace("\\", "")).strip()
        if not plain or _RULE.match(line):
            continue
        if (title := _section(lines, number - 1)) is not None:
            current = title
        elif SKIPPED.search(plain) and plain.endswith((":", "：")):
            current = plain
        elif (
            not sections or (current and DEMANDING.search(current) and not SKIPPED.search(current))
        ) and not _LEAD.search(plain):
            out.append(Constraint(text=plain.rstrip(" ."), line=number, file=file))
    return tuple(out)


def _without_remarks(text: str) -> str:
    """Remarks become spaces, so that line numbers stay."""
    return _REMARK.sub(lambda m: "\n" * m[0].count("\n"), text)


def _section(lines: list[str], i: int) -> str | None:
    """Title of a section: a markdown heading, a line of capitals, or a short line with a rule under it."""
    line = lines[i].strip()
    below = next((x for x in lines[i + 1 : i + 3] if x.strip()), "")
    m = _HEAD.match(lines[i])
    if m is None or not line:
        return None
    if line.startswith("#") or re.fullmatch(r"[A-Z][A-Z &/-]+", m[1]) or _RULE.match(below):
        return m[1].strip()
    return None


def _has_sections(lines: list[str]) -> bool:
    titles = [t for i in range(len(lines)) if (t := _section(lines, i))]
    return any(DEMANDING.search(t) for t in titles)
