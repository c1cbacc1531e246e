"""Markdown and plain text as statements: one field ("**TTFT**: 10s"), table cell, or sentence each, with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace


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
    r"^(\s*)(?:[*+•·▪◦‣-]|\d{1,2}[.)、)]|[（(]\d{1,2}[)）]|[a-z][.)])\s+(?=\S)|^(\s*)(?:\d{1,2}、|[•·▪◦‣])"
)
_FIELD = re.compile(
    r"^\s*(?P<label>(?:\*\*|__|`)?[^:：=|]{1,70}?(?:\*\*|__|`)?)\s*(?:[:：]|(?<![<>!])=(?!=)|(?<=\s)\.+(?=\s))(?:\*\*|__)?\s*(?P<value>\S.*)?$"
)
# "qps=12, avg_in=700, gpu=L4x8" on one line
_SETTING = re.compile(
    r"(?P<key>[A-Za-z][\w.\-]*)\s*=\s*(?P<value>[^=,;\s]+(?:\s+(?![\w.\-]+\s*=)[^=,;\s]+)*)(?:\s*[,;]\s*|\s+|$)"
)
_SETTINGS = re.compile(rf"\s*(?:{_SETTING.pattern.replace('?P<key>', '?:').replace('?P<value>', '?:')}){{2,}}")
_TABLE_RULE = re.compile(r"^\s*\|?\s*:?-{2,}:?\s*(\|\s*:?-{2,}:?\s*)*\|?\s*$")
_FENCE = re.compile(r"^\s*(```+|~~~+)\s*([\w+-]*)")
_SENTENCE_END = re.compile(r"[。！？；;!?]+|\.(?=\s+(?:[A-Z\u4e00-\u9fff]|[a-z]\w|\d)|\s*$)")
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
    return [
        replace(s, quoted=depths[s.line - 1]) if depths[s.line - 1] else s for s in scanner.statements
    ], scanner.fences


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
                or self._heading(i)
                or self._table(i)
                or self._csv(i)
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
        self.statements.append(
            Statement(self.file, i + 1, line.strip(), title, 0, tuple(t for _, t in self.headings[:-1]), kind="heading")
        )
        return i + step

    def _plain(self, line: str) -> bool:
        return (
            not _BULLET.match(line)
            and "|" not in line
            and len(line.strip()) < 80
            and not line.rstrip().endswith((".", "。", ";", ","))
        )

    # ------------------------------------------------------------ tables

    def _table(self, i: int) -> int:
        if (
            "|" not in self.lines[i]
            or i + 1 >= len(self.lines)
            or not _TABLE_RULE.match(self.lines[i + 1])
            or "|" not in self.lines[i + 1]
        ):
            return 0
        header = _cells(self.lines[i])
        j = i + 2
        rows: list[tuple[int, list[str]]] = []
        while j < len(self.lines) and "|" in self.lines[j] and self.lines[j].strip():
            rows.append((j + 1, _cells(self.lines[j])))
            j += 1
        self._emit_table(header, rows)
        return j

    def _csv(self, i: int) -> int:
        """Comma or tab separated lines of one width, the first without numbers: a table too."""
        for separator in ("\t", ","):
            if not self.file.lower().endswith((".csv", ".tsv")) and separator == ",":
                continue
            header = self.lines[i].split(separator)
            if len(header) < 2 or re.search(r"\d", self.lines[i]) or not self.lines[i].strip():
                continue
            j, rows = i + 1, []
            while j < len(self.lines) and len(cells := self.lines[j].split(separator)) == len(header):
                rows.append((j + 1, [c.strip().strip('"') for c in cells]))
                j += 1
            if rows:
                self._emit_table([h.strip().strip('"') for h in header], rows)
                return j
        return 0

    def _emit_table(self, header: list[str], rows: list[tuple[int, list[str]]]) -> None:
        generic = re.compile(
            r"^(?:values?|settings?|spec(?:ification)?s?|数值|值|取值|参数值|配置|规格|要求|目标|target|limit|requirement|quantity|数量|内容|说明|detail)?$",
            re.I,
        )
        unit_column = next((c for c, h in enumerate(header) if re.fullmatch(r"units?|单位", h.strip(), re.I)), None)
        note = re.compile(r"notes?|remarks?|comments?|备注|说明|source|来源", re.I)
        for number, cells in rows:
            quote = self.lines[number - 1].strip()
            row_label = cells[0] if cells else ""
            keyed = len(header) >= 2 and not re.search(r"^\W*\d", row_label)
            for column, cell in enumerate(cells):
                if not cell or (column == 0 and keyed) or column == unit_column or column >= len(header):
                    continue
                title = header[column].strip()
                unit = cells[unit_column] if unit_column is not None and unit_column < len(cells) else ""
                label = (
                    row_label
                    if generic.fullmatch(title) or note.fullmatch(title)
                    else f"{row_label} {title}"
                    if keyed
                    else title
                )
                value = f"{cell} {unit}" if unit and re.fullmatch(r"[\s\d.,~\-]+", cell) else cell
                text = f"{label}: {value}"
                self.statements.append(
                    Statement(self.file, number, quote, text, len(label) + 2, self.context, kind="cell")
                )

    # ------------------------------------------------------------ paragraphs, bullets, fields

    def _text(self, i: int) -> int:
        line = self.lines[i]
        if not line.strip() or re.fullmatch(r"\s*([-*_=])\1{2,}\s*", line):
            return i + 1
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
        clean = _strip_marks(text)
        first_line = numbered[0][1]
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


def _is_label(label: str) -> bool:
    words = re.findall(r"[A-Za-z]+|[\u4e00-\u9fff]", label)
    has_comma = "，" in label or ", " in label or "。" in label
    return (
        bool(words)
        and not has_comma
        and len(re.findall(r"[A-Za-z]+", label)) <= 9
        and not re.search(r"https?$", label.strip())
    )


def _strip_marks(text: str) -> str:
    """Emphasis marks to nothing; length may change, so this happens before any offset is taken."""
    return re.sub(r"\*\*|__(?=\w)|(?<=\w)__|`", lambda m: "", text)


def _cells(line: str) -> list[str]:
    return [_strip_marks(c).strip() for c in line.strip().strip("|").split("|")]
