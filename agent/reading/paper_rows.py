"""Strategies in tables: one per row (columns TP, PP, GPUs, Prefill …) or one per column (rows TP, PP, devices …), in words.

A cell is said with its column's title: "TP" and "8" become "TP 8", "Attention GPUs" and "12" become "12 attention GPUs".
"""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from agent.reading.paper_degrees import axis_spans, parse_degrees
from agent.reading.paper_groups import DEV, device_groups, mentions
from agent.reading.paper_text import Passage

_MEASURED = re.compile(r"TPS|TTFT|TPOT|tok\w*\s*/\s*s|throughput|latency|speed-?up|utili[sz]ation|efficiency|overhead|improvement|energy|\bms\b|time|吞吐|时延|延迟|加速比|利用率", re.I)  # fmt: skip
_DEVICES = re.compile(rf"(?:number of |num |no\.? of |#\s?|total |所用)?(?:{DEV})(?: count| used| total|数量?|总数)?", re.I)  # fmt: skip
_WIDTH = re.compile(
    rf"(?:num(?:ber)? (?:of )?)?(?:{DEV}|stages|size|degree|width|ways?|group size|ranks)(?: count)?", re.I
)
_COUNTED = re.compile(r"micro-?\s?batch|slice|chunk|virtual|threshold|segment|stage|replica|instance|group|微批|切片|阈值|虚拟|阶段|副本", re.I)  # fmt: skip
_ROLE = re.compile(r"prefill|decod|attention|expert|MoE|base|pool|预填|解码|注意力|专家|基础|池", re.I)
_TITLE_ROLE = re.compile(r"\s*[(（](?:base ?line|proposed|ours|our method|基线|本文(?:方法)?)[)）]", re.I)
"""Whose a row is, behind its title: "EP (proposed)"."""
_NUMBER = re.compile(r"\d[\d,]*")
_SYMBOL = re.compile(r"[A-Za-z](?:_?\w{1,3})?")


def said(title: str, cell: str) -> str:
    """One cell as a clause would say it; "" where it says nothing about a strategy."""
    title, cell = title.strip(), cell.strip()
    title = _TITLE_ROLE.sub("", title).strip()
    if not cell or cell in ("-", "–", "—", "n/a", "/") or _MEASURED.search(title):
        return ""
    number = _NUMBER.fullmatch(cell)
    axis = next((a for a, s, e in axis_spans(title) if e - s >= len(title) - 8), None)
    if axis and number:
        return f"{title} {cell}" if cell not in ("0", "1") else ""
    if number and _DEVICES.fullmatch(title):
        return f"{cell} devices"
    if number and (mentions(f"1 {title}") or _COUNTED.search(title)):
        return f"{title}: {cell}" if re.search(r"threshold|阈值", title, re.I) else f"{cell} {title}"
    if number and _ROLE.search(title):
        return f"{title}: {cell} devices"
    if number and _SYMBOL.fullmatch(title):
        return f"{title} = {cell}"
    if number or re.fullmatch(r"[\d.,%x× ]*[KMBkms]*", cell):
        return ""
    return f"{title}: {cell}" if _ROLE.search(title) else cell


def entry_words(p: Passage) -> list[str]:
    """Entries of a data block as a clause would say them; below a key that names an axis, "size" or "devices" is its degree."""
    axis = axis_named(p.label.split(" / ")[-1])
    out = []
    for title, cell in p.cells:
        if axis and _NUMBER.fullmatch(cell) and _WIDTH.fullmatch(title):
            out.append(f"{axis.upper()} {cell}")
        elif not (axis and _NUMBER.fullmatch(cell)):
            out.append(said(title, cell))
    return [w for w in out if w]


def measured(p: Passage) -> bool:
    """Whether a row holds what was measured ("TPOT (ms) | 2.84 | 1.82"): nothing in it is a shape or a degree."""
    return bool(p.cells) and bool(_MEASURED.search(p.cells[0][1]))


def row_words(p: Passage) -> str | None:
    """A row as one clause; None where it states no strategy."""
    if measured(p):
        return None
    words = [w for t, c in p.cells if (w := said(t, c))]
    text = "; ".join(words)
    degrees = parse_degrees(", ".join(words))
    placed = len(device_groups(text, ("attention", "expert"))) == 2 or len(device_groups(text, ("base", "pool"))) == 2
    if not any(degrees.axes.values()) and not placed and not degrees.slices and not degrees.experts_per_device:
        return None
    pools = sum(bool(re.search(r"prefill|decod|预填|解码", t, re.I)) for t, _ in p.cells) > 1
    return text if pools or placed else ", ".join(words)


def tables(passages: Sequence[Passage]) -> Iterator[list[Passage]]:
    """Rows that follow each other below the same header."""

    def key(p: Passage) -> tuple[object, ...]:
        return (p.section, tuple(t for t, _ in p.cells)) if p.kind == "row" else ()

    for head, rows in itertools.groupby(passages, key):
        if head:
            yield list(rows)


def stage_clauses(rows: Sequence[Passage]) -> Iterator[tuple[str, Passage]]:
    """(row's name, its layers per stage in words) for a table with one column per pipeline stage."""
    head = [t for t, _ in rows[0].cells]
    staged = re.match(r"(?:pipeline )?stages?|阶段|级|段", head[0], re.I) or all(
        re.match(r"(?:stage|阶段|第)\s*\d", t, re.I) for t in head[1:]
    )
    if len(head) < 3 or not staged or not all(re.search(r"\d", t) for t in head[1:]):
        return
    counts = {
        r.cells[0][1]: [c for _, c in r.cells[1:]] for r in rows if all(re.fullmatch(r"\d+", c) for _, c in r.cells[1:])
    }
    widths = [v for k, v in counts.items() if axis_named(k) == "tp" or _DEVICES.fullmatch(k)]
    tp = f"TP {widths[0][0]}, " if widths and len(set(widths[0])) == 1 else ""
    for r in rows:
        name = r.cells[0][1]
        if name in counts and counts[name] not in widths:
            text = f"{tp}PP {len(counts[name])}, {'+'.join(counts[name])} layers"
            yield name, replace(r, text=text, body=0)


def axis_named(title: str) -> str | None:
    """The axis that a row's title names."""
    return next((a for a, _, _ in axis_spans(title)), None)


def by_title_role(rows: Sequence[Passage]) -> Iterator[list[Passage]]:
    """Rows that say whose they are ("EP (proposed)", "GPUs (proposed)"), grouped by that; each group's columns are clauses."""
    marked = [(m[0].lower(), r) for r in rows if r.cells and (m := _TITLE_ROLE.search(r.cells[0][1]))]
    for role in dict.fromkeys(k for k, _ in marked):
        yield [r for k, r in marked if k == role]


def column_clauses(rows: Sequence[Passage]) -> Iterator[tuple[str, Passage]]:
    """(title, what stands below it) for a table whose rows are degrees; nothing where rows are something else."""
    if len(rows) < 2 or any(len(r.cells) < 2 for r in rows):
        return
    names = [r.cells[0][1] for r in rows]
    if sum(bool(said(n, "2")) for n in names) < min(2, len(names)):
        return
    for i, (title, _) in enumerate(rows[0].cells[1:], 1):
        words = [w for r in rows if i < len(r.cells) and (w := said(r.cells[0][1], r.cells[i][1]))]
        if words and not parse_degrees(", ".join(words)).empty:
            first = rows[0]
            lines = tuple((0, n) for _, n in first.lines)
            yield title, replace(first, text="; ".join(words), lines=lines, body=0)
