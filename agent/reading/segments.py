"""Markdown and plain text as statements: one field ("**TTFT**: 10s"), table cell, or sentence each, with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from agent.reading.dialogue import conversation
from agent.reading.forms import answered, answered_below, is_empty_box, is_ticked_box, ticked
from agent.reading.lexicon import STATS
from agent.reading.listings import device_listing, engine_command
from agent.reading.names import find_names
from agent.reading.tables import (
    cells_of,
    html_table,
    machines,
    markdown_table,
    parallel,
    separated_table,
    strip_marks,
)
from tools.units import find_quantities


@dataclass(frozen=True, slots=True)
class Statement:
    """`text` is what is read; `label_end` > 0 says that text[:label_end] names the thing that the rest states.

    `context` holds headings and parent labels, outermost first. `quote` is verbatim from line `line`.
    """

    file: str
    line: int
    quote: str
    text: str
    label_end: int = 0
    context: tuple[str, ...] = ()
    key: str = ""
    """Dotted key of a structured input; empty for prose."""
    raw: object = None
    kind: str = "prose"
    quoted: int = 0
    """Depth of mail quoting ("> ") of its line: what is quoted is older than what quotes it."""
    lines: tuple[tuple[int, int, str], ...] = ()
    """(offset in text, line number, the line) where a sentence runs over several lines."""

    @property
    def label(self) -> str:
        return self.text[: self.label_end].rstrip(" :=：")

    @property
    def value(self) -> str:
        return self.text[self.label_end :]

    def at(self, offset: int) -> tuple[int, str]:
        """Line and quote for a character of `text`."""
        for start, number, quote in reversed(self.lines):
            if offset >= start:
                return number, quote
        return self.line, self.quote


_HEADING = re.compile(r"^\s{0,3}#{1,6}\s*(.+?)\s*#*\s*$")
_UNDERLINE = re.compile(r"^\s*(=+|-+)\s*$")
_BULLET = re.compile(
    r"^(\s*)(?:[*+•·▪◦‣-]|\d{1,2}[.)、)]|[（(]\d{1,2}[)）]|[a-z][.)])\s+(?=\S)|^(\s*)（\d{1,2}）(?=\S)|^(\s*)(?:\d{1,2}、|[•·▪◦‣])"
)
_FIELD = re.compile(
    r"^\s*(?P<label>(?:\*\*|__|`)?[^:：=|]{1,70}?(?:\*\*|__|`)?)\s*(?:[:：]|(?<![<>!])=(?!=)|(?<=\s)\.+(?=\s))(?:\*\*|__)?\s*(?P<value>\S.*)?$"
)
# "qps=12, avg_in=700, gpu=L4x8" on one line
_SETTING = re.compile(
    r"(?P<key>[A-Za-z][\w.\-]*)\s*(?:[<>]=|[≤≥=])\s*(?P<value>[^=<>≤≥,;\s]+(?:\s+(?![\w.\-]+\s*[<>≤≥=])[^=<>≤≥,;\s]+)*)(?:\s*[,;]\s*|\s+|$)"
)
_SETTINGS = re.compile(rf"\s*(?:{_SETTING.pattern.replace('?P<key>', '?:').replace('?P<value>', '?:')}){{2,}}")
_FENCE = re.compile(r"^\s*(```+|~~~+)\s*([\w+-]*)")
_SENTENCE_END = re.compile(r"[。！？；;!?]+|\.(?=\s+(?:[A-Z\u4e00-\u9fff]|[a-z]\w|\d)|\s*$)")
# "8x H200 each; three of them"
_OF_WHAT_WAS_NAMED = re.compile(r"\s*[\w-]+ of (?:them|these|those)\b", re.I)
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|approx|vs|etc|incl|resp|no|max|min|avg|ca)\.$", re.I)


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced block in Markdown: its language, first line (1-based) and body."""

    language: str
    line: int
    body: str
    context: tuple[str, ...]


def segment(text: str, file: str) -> tuple[list[Statement], list[Fence]]:
    """Statements and fenced blocks of a Markdown or text file."""
    scanner = _Scanner(file, text.split("\n"))
    scanner.run()
    depths = scanner.depths
    quoted = [replace(s, quoted=depths[s.line - 1]) if depths[s.line - 1] else s for s in scanner.statements]
    notes = _footnotes(scanner.lines)
    return [_with_notes(s, notes) for s in quoted] if notes else quoted, scanner.fences


_MARKS = "¹²³⁴⁵⁶⁷⁸⁹"
_NOTE = re.compile(rf"^\s*(?P<mark>[{_MARKS}])\s*(?P<note>\S.{{0,160}})$")


def _footnotes(lines: list[str]) -> dict[str, str]:
    """Mark → what its note says of the place that it marks; a note with an amount or a name of its own is a statement itself."""
    found = {m["mark"]: m["note"].strip() for line in lines if (m := _NOTE.match(line))}
    return {
        mark: "" if find_quantities(mask_percentiles(note)) or find_names(note) else note
        for mark, note in found.items()
    }


def _with_notes(statement: Statement, notes: dict[str, str]) -> Statement:
    """ "40 ms⁴" with "⁴ at p99" below is "40 ms (at p99)"."""
    if statement.lines[1:] or not any(mark in statement.text for mark in notes) or _NOTE.match(statement.text):
        return statement
    text, label_end = statement.text, statement.label_end
    for mark, note in notes.items():
        words = f" ({note})" if note else ""
        label_end += sum(len(words) - 1 for c in text[:label_end] if c == mark)
        text = text.replace(mark, words)
    return replace(statement, text=text, label_end=label_end, lines=())


def mask_percentiles(text: str) -> str:
    """`text` without the numbers of its percentiles, which are no amounts."""
    for _, words in STATS[:4]:
        text = re.sub(rf"(?<![A-Za-z0-9.])(?:{words})(?![A-Za-z0-9])", " ", text, flags=re.I)
    return text


_HASH_COMMENTS = (
    ".sh",
    ".bash",
    ".slurm",
    ".sbatch",
    ".conf",
    ".cfg",
    ".env",
    ".ini",
    ".properties",
    ".tf",
    ".hcl",
    ".service",
)
_COMMENT = re.compile(r"^\s*#+(?:!.*$|\s*)")  # where # is a comment it is no heading
_QUOTED = re.compile(r"^\s*(?:>\s?)+(?![\s=\d])")
_QUOTED_MORE = re.compile(r"^\s*(?:>\s?)+(?!=)")


def _unquoted(lines: list[str]) -> tuple[list[str], list[int]]:
    """Lines without their mail quoting, and its depth per line; "> 20 tok/s" alone is a comparison."""
    out: list[str] = []
    depths: list[int] = []
    for line in lines:
        pattern = _QUOTED_MORE if depths and depths[-1] else _QUOTED
        match = pattern.match(line) or (re.match(r"^\s*>\s*$", line) if depths and depths[-1] else None)
        out.append(line[match.end() :] if match else line)
        depths.append(match.group().count(">") if match else 0)
    return out, depths


class _Scanner:
    """Line by line: headings and bullets nest, tables and paragraphs end at the next blank line."""

    def __init__(self, file: str, lines: list[str]) -> None:
        self.file = file
        if file.lower().endswith(_HASH_COMMENTS):
            lines = [_COMMENT.sub("", line) for line in lines]
        self.lines, self.depths = _unquoted(lines)
        self.statements: list[Statement] = []
        self.fences: list[Fence] = []
        self.headings: list[tuple[int, str]] = []
        self.parents: list[tuple[int, str]] = []

    @property
    def context(self) -> tuple[str, ...]:
        return tuple(t for _, t in self.headings) + tuple(t for _, t in self.parents)

    def run(self) -> None:
        i = 0
        while i < len(self.lines):
            if not self.lines[i].strip():
                i += 1
                continue
            i = (
                self._front_matter(i)
                or self._fence(i)
                or self._command(i)
                or self._conversation(i)
                or self._listing(i)
                or self._heading(i)
                or self._table(i)
                or self._text(i)
            )

    def _front_matter(self, i: int) -> int:
        if i or self.lines[0].strip() != "---":
            return 0
        for j in range(1, min(len(self.lines), 200)):
            if self.lines[j].strip() == "---":
                body = "\n".join(self.lines[1:j])
                if all(re.match(r"\s*(#|$|-\s|[\w\"'. -]+:)", line) for line in self.lines[1:j]):
                    self.fences.append(Fence("yaml", 2, body, ()))
                    return j + 1
                return 0
        return 0

    def _fence(self, i: int) -> int:
        opening = _FENCE.match(self.lines[i])
        if not opening:
            return 0
        for j in range(i + 1, len(self.lines)):
            if self.lines[j].strip().startswith(opening[1]):
                self.fences.append(Fence(opening[2].lower(), i + 2, "\n".join(self.lines[i + 1 : j]), self.context))
                return j + 1
        self.lines[i] = ""  # an unclosed fence hides nothing
        return i + 1

    def _heading(self, i: int) -> int:
        line = self.lines[i]
        match = _HEADING.match(line)
        if match:
            level, title, step = len(line.lstrip()) - len(line.lstrip().lstrip("#")), match[1], 1
        elif line.strip() and i + 1 < len(self.lines) and _UNDERLINE.match(self.lines[i + 1]) and self._plain(line):
            level, title, step = (1 if "=" in self.lines[i + 1] else 2), line.strip(), 2
        elif bracket := re.match(
            r"^\s*(?:\[([^\[\]=]{2,40})\]|【([^】]{2,40})】|\*\*([^*:：]{2,60})\*\*)\s*[:：]?\s*$", line
        ):
            level, title, step = 4, next(g for g in bracket.groups() if g), 1
        else:
            return 0
        title = title.strip("*_` ")
        self.headings = [(n, t) for n, t in self.headings if n < level] + [(level, title)]
        self.parents = []
        named = re.match(r"[^:：]{2,40}[:：]\s*(?=\S)", title)  # "## Accelerator: Nebula-X1"
        self.statements.append(
            Statement(
                self.file, i + 1, line.strip(), title, named.end() if named else 0,
                tuple(t for _, t in self.headings[:-1]), kind="heading",
            )
        )  # fmt: skip
        return i + step

    def _plain(self, line: str) -> bool:
        return (
            not _BULLET.match(line)
            and "|" not in line
            and len(line.strip()) < 80
            and not line.rstrip().endswith((".", "。", ";", ","))
        )

    # ------------------------------------------------------------ tables, listings, commands

    def _table(self, i: int) -> int:
        found = markdown_table(self.lines, i) or html_table(self.lines, i) or separated_table(self.lines, i, self.file)
        if found is None:
            return 0
        table, end = found
        title = [h.strip() for h in table.header if h.strip()]
        if len(table.header) > 1 and len(title) == 1:  # a table under one title instead of names of columns
            self.statements.append(
                Statement(self.file, i + 1, self.lines[i].strip(), title[0], 0, self.context, kind="heading")
            )
        for cell in cells_of(table):
            context = (*self.context, cell.category) if cell.category else self.context
            text = f"{cell.label}: {cell.value}"
            quote = self.lines[cell.line - 1].strip()
            self.statements.append(
                Statement(self.file, cell.line, quote, text, len(cell.label) + 2, context, kind="cell")
            )
        if count := machines(table):
            self._count("hardware.num_nodes", count, table.rows[0][0], "rows of the table")
        return end

    def _count(self, path: str, count: int, line: int, of: str) -> None:
        """What is counted, not said: `raw` is (path, how many)."""
        quote = self.lines[line - 1].strip()
        self.statements.append(Statement(self.file, line, quote, f"{count} {of}", raw=(path, count), kind="count"))

    def _listing(self, i: int) -> int:
        """What a management tool prints: how many devices of which kind, and their memory."""
        found = device_listing(self.lines, i)
        if found is None:
            return 0
        self._count("hardware.device_count", found.count, found.line, "devices listed")
        self._count("hardware.num_nodes", 1, found.line, "machine whose devices are listed")
        for line, label, value in found.fields:
            quote = self.lines[line - 1].strip()
            text = f"{label}: {value}"
            self.statements.append(Statement(self.file, line, quote, text, len(label) + 2, self.context, kind="field"))
        rest = " ".join(" ".join(self.lines[i : found.end]).split())
        self.statements.append(Statement(self.file, i + 1, self.lines[i].strip(), rest, kind="listing"))
        return found.end

    def _command(self, i: int) -> int:
        """A command line that starts an engine: every flag is a key."""
        found = engine_command(self.lines, i)
        if found is None:
            return 0
        for flag in found.flags:
            text = f"{flag.words}: {flag.value}"
            quote = self.lines[flag.line - 1].strip()
            self.statements.append(
                Statement(
                    self.file, flag.line, quote, text, len(flag.words) + 2, key=flag.name, raw=flag.raw, kind="leaf"
                )
            )
        return found.end

    def _conversation(self, i: int) -> int:
        """A chat: every turn is prose; what answers the question above it has that question as its label."""
        found = conversation(self.lines, i)
        if found is None:
            return 0
        turns, end = found
        for turn in turns:
            quote = self.lines[turn.line].strip()
            spans = sentence_spans(turn.said)
            for k, (a, b) in enumerate(spans):
                said, label = turn.said[a:b], turn.asked if k == 0 else ""
                text = f"{label}: {said}" if label else said
                kind, size = ("cell", len(label) + 2) if label else ("prose", 0)
                self.statements.append(Statement(self.file, turn.line + 1, quote, text, size, self.context, kind=kind))
        return end

    # ------------------------------------------------------------ paragraphs, bullets, fields

    def _text(self, i: int) -> int:
        line = self.lines[i]
        if not line.strip() or re.fullmatch(r"\s*([-*_=])\1{2,}\s*", line):
            return i + 1
        if is_empty_box(line) and any(is_ticked_box(o) for o in self._beside(i)):
            return i + 1
        if self._asked_above(i):
            self._answer(i + 1, line.strip(" ?？"), self.lines[i + 1].strip())
            return i + 2
        if i + 1 < len(self.lines) and (pair := answered_below(line, self.lines[i + 1])):
            self._answer(i + 1, *pair)
            return i + 2
        bullet = _BULLET.match(line)
        indent = len(line) - len(line.lstrip())
        body = line[bullet.end() :] if bullet else line
        if not bullet and indent == 0:
            self.parents = []
        self.parents = [(n, t) for n, t in self.parents if n < indent or (not bullet and n == indent and n > 0)]
        end, numbered = i + 1, [(0, i + 1, body.strip())]
        joined = body
        while end < len(self.lines) and self._continues(self.lines[end - 1], self.lines[end]):
            numbered.append((len(joined) + 1, end + 1, self.lines[end].strip()))
            joined += "\n" + self.lines[end]
            end += 1
        self._emit(joined, numbered, indent, bool(bullet))
        return end

    def _beside(self, i: int) -> list[str]:
        """The lines of the list that line `i` is in."""
        first, last = i, i
        while first > 0 and self.lines[first - 1].strip():
            first -= 1
        while last + 1 < len(self.lines) and self.lines[last + 1].strip():
            last += 1
        return self.lines[first : last + 1]

    def _asked_above(self, i: int) -> bool:
        """Whether line `i` is a question quoted from a mail and the next line answers it."""
        asked = (
            self.depths[i] > 0 and self.lines[i].rstrip().endswith(("?", "？")) and not re.search(r"\d", self.lines[i])
        )
        return asked and i + 1 < len(self.lines) and self.depths[i + 1] == 0 and bool(self.lines[i + 1].strip())

    def _answer(self, i: int, question: str, answer: str) -> None:
        """A question and its answer on line `i` (from 0): the question is the label."""
        text = f"{question}: {ticked(answer)}"
        quote = self.lines[i].strip()
        self.statements.append(Statement(self.file, i + 1, quote, text, len(question) + 2, self.context, kind="cell"))

    def _continues(self, line: str, following: str) -> bool:
        """A wrapped line goes on: no end mark, a long line, and no bullet, heading, table or field next."""
        stripped, after = line.rstrip(), following.strip()
        if (
            not after
            or _BULLET.match(following)
            or _HEADING.match(following)
            or _FENCE.match(following)
            or "|" in after[:1]
        ):
            return False
        if stripped.endswith(tuple("。.;；:：!！?？")) or _FIELD.match(following) or _UNDERLINE.match(following):
            return False
        width = sum(2 if ord(c) > 0x2E80 else 1 for c in stripped)
        return (
            width >= 60
            and (after[0].islower() or ord(after[0]) > 0x2E80 or after[0].isdigit() or stripped[-1] in ",，、(")
        ) or stripped[-1] in ",，、"

    def _emit(self, text: str, numbered: list[tuple[int, int, str]], indent: int, bullet: bool) -> None:
        clean = strip_marks(text)
        first_line = numbered[0][1]
        if "\n" not in clean and (pair := answered(clean)):
            self._answer(first_line - 1, *pair)
            return
        if "\n" not in clean:
            clean = ticked(clean)
        if _SETTINGS.fullmatch(clean):
            for m in _SETTING.finditer(clean):
                quote = self.lines[first_line - 1].strip()
                start = m.start("value") - m.start()
                self.statements.append(
                    Statement(self.file, first_line, quote, m.group().strip(" ,;"), start, self.context, kind="field")
                )
            return
        field = _FIELD.match(clean.split("\n")[0])
        if field and _is_label(field["label"]):
            if not field["value"] and "\n" not in clean:
                self.parents.append((indent, field["label"].strip("*_` ")))
                self.statements.append(
                    Statement(
                        self.file,
                        first_line,
                        self.lines[first_line - 1].strip(),
                        clean,
                        len(clean),
                        self.context[:-1],
                        kind="heading",
                    )
                )
                return
            value_start = field.start("value") if field["value"] else len(clean)
            if "\n" not in clean and (pairs := parallel(field["label"], field["value"] or "")):
                quote = self.lines[first_line - 1].strip()
                for label, value in pairs:
                    text = f"{label}: {value}"
                    self.statements.append(
                        Statement(self.file, first_line, quote, text, len(label) + 2, self.context, kind="field")
                    )
                return
            whole = Statement(
                self.file,
                first_line,
                self.lines[first_line - 1].strip(),
                clean,
                value_start,
                self.context,
                kind="field",
                lines=tuple(numbered),
            )
            self.statements.extend(_split_field(whole))
            if bullet:
                self.parents.append((indent, field["label"].strip("*_` ")))
            return
        self.statements.extend(self._sentences(clean, numbered))

    def _sentences(self, text: str, numbered: list[tuple[int, int, str]]) -> Iterator[Statement]:
        for start, end in sentence_spans(text):
            inner = [(max(0, offset - start), number, quote) for offset, number, quote in numbered if offset < end]
            kept = [row for k, row in enumerate(inner) if k + 1 == len(inner) or inner[k + 1][0] > 0]
            sentence = text[start:end]
            rows = []
            for offset, number, _ in kept:
                raw = self.lines[number - 1].strip()
                part = sentence[offset:].split("\n")[0].strip()
                rows.append((offset, number, part if part and part in raw else raw))
            yield Statement(self.file, rows[0][1], rows[0][2], sentence, 0, self.context, lines=tuple(rows))


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Offsets of the sentences of `text`, end marks included."""
    spans, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        if _OF_WHAT_WAS_NAMED.match(text, match.end()) and match.group() in (";", "；"):
            continue
        if match.group() == "." and _ABBREVIATION.search(text[start : match.end()]):
            continue
        spans.append((start, match.end()))
        start = match.end()
    spans.append((start, len(text)))
    out = []
    for a, b in spans:
        piece = text[a:b]
        if piece.strip():
            out.append((a + len(piece) - len(piece.lstrip()), b))
    return out


def _split_field(statement: Statement) -> Iterator[Statement]:
    """A field whose value holds several sentences: the label goes with the first, the rest are sentences of their own."""
    if parts := _fields_of(statement):
        for part in parts:
            yield from _split_field(part)
        return
    spans = sentence_spans(statement.text[statement.label_end :])
    if len(spans) < 2 or (
        re.search(r"\d.*;.*\d|\d.*；.*\d", statement.value)
        and len(statement.value) < 160
        and "。" not in statement.value
    ):
        yield statement
        return
    base = statement.label_end
    for k, (a, b) in enumerate(spans):
        if k == 0:
            yield replace(statement, text=statement.text[: base + b])
            continue
        start = base + a
        line, quote = statement.at(start)
        yield replace(statement, text=statement.text[start : base + b], label_end=0, line=line, quote=quote, lines=(), kind="prose",
                      context=(*statement.context, statement.label))  # fmt: skip


_INNER = re.compile(r"(?:[;；]|[.。](?=\s))\s*(?=(?P<label>[^:：;；,，.\d]{2,24})[:：]\s*\S)")


def _fields_of(statement: Statement) -> list[Statement]:
    """ "首 token：中位数 1.2 s；每 token：中位数 28 ms": every part has a label of its own."""
    found = [m for m in _INNER.finditer(statement.text, statement.label_end) if _is_label(m["label"])]
    if "\n" in statement.text or not found:
        return []
    cuts, out = [m.end() for m in found], []
    for start, end in zip([0, *cuts], [*cuts, len(statement.text)], strict=True):
        part = statement.text[start:end].rstrip(" ;；")
        colon = re.search(r"[:：]\s*", part)
        size = statement.label_end if start == 0 else colon.end() if colon else 0
        out.append(replace(statement, text=part, label_end=size, lines=()))
    return out


def _is_label(label: str) -> bool:
    words = re.findall(r"[A-Za-z]+|[\u4e00-\u9fff]", label)
    has_comma = any(mark in label for mark in ("，", ", ", "。", "; ", "；"))
    return (
        bool(words)
        and not has_comma
        and len(re.findall(r"[A-Za-z]+", label)) <= 9
        and not re.search(r"https?$", label.strip())
    )
