"""What the inputs say, unit by unit: headings, paragraphs, keys, list items, table rows, sentences with numbers.

A unit is covered when a fact quotes it, a conflict names it, or it is declared irrelevant. It is a second, cruder
reading on purpose, made without the reader: what the reader overlooked must show here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tools.spec.conditions import Conditions, InputFile

Lines = Sequence[str]

_HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*$")
_BOLD = re.compile(r"^\s*(?:\*\*|__)([^*_]+?)(?:\*\*|__)\s*[:：]?\s*$")
_ITEM = re.compile(r"^\s*(?:[-*+•·]|\d+[.)、])\s+(.*)$")
_RULE = re.compile(r"^\s*(?:[-*_=]\s*){3,}$")
_TABLE_RULE = re.compile(r"^\s*\|?[\s:|-]+\|[\s:|-]*$")
_QUANTITY = re.compile(
    r"\d|[零〇一二两三四五六七八九十百千万亿半]\s*(?:台|张|卡|块|路|层|个|秒|毫秒|节点|机|万|亿|百|千)"
)
_JSON_TOKEN = re.compile(r'(?P<string>"(?:[^"\\]|\\.)*")|(?P<mark>[{}\[\]:])|(?P<scalar>[^\s{}\[\]:,"]+)')
_YAML_KEY = re.compile(r"^(\s*(?:-\s+)?)[\"']?([^\s\"'#{}\[\]-][^\"'#:=]*?)[\"']?\s*[:=]\s*(.*)$")
_TOML_TABLE = re.compile(r"^\s*\[+\s*([^\]]+?)\s*\]+\s*$")


@dataclass(frozen=True, slots=True)
class Unit:
    """`first`..`last` are 1-based lines; `path` are the headings or keys around it, outermost first."""

    file: str
    kind: str
    title: str
    first: int
    last: int
    text: str
    path: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return f"{self.file}:{self.first}"


def units(source: InputFile) -> tuple[Unit, ...]:
    lines = source.text.splitlines()
    if source.kind == "json":
        return tuple(_json_units(source.path, lines))
    if source.kind in ("yaml", "toml"):
        return tuple(_keyed_units(source.path, lines))
    return (*_sections(source.path, lines), *_statements(source.path, lines))


# ------------------------------------------------------------------------------------------------------ structured


def _json_units(file: str, lines: Lines) -> Iterator[Unit]:
    """Keys whose value holds no further key: scalars, lists of scalars, empty objects. Tolerates broken JSON."""
    text = "\n".join(lines)
    tokens = [(m.lastgroup or "", m[0], m.start()) for m in _JSON_TOKEN.finditer(text)]
    path: list[str] = []
    for i, (kind, token, at) in enumerate(tokens):
        after = tokens[i + 1][1] if i + 1 < len(tokens) else ""
        if token in "{[":
            path.append(tokens[i - 2][1][1:-1] if i >= 2 and tokens[i - 1][1] == ":" else "")
        elif token in "}]":
            path = path[:-1]
        elif kind == "string" and after == ":":
            end = _leaf_end(tokens, i + 2)
            if end is not None:
                first, last = (text.count("\n", 0, x) + 1 for x in (at, end))
                outer = tuple(name for name in path if name)
                yield Unit(file, "key", token[1:-1], first, last, text[at : end + 1], outer)


def _leaf_end(tokens: Sequence[tuple[str, str, int]], i: int) -> int | None:
    """Where the value that starts at token `i` ends, None when keys lie inside it."""
    depth = 0
    for n in range(i, len(tokens)):
        _, token, at = tokens[n]
        depth += (token in "{[") - (token in "}]")
        if n > i and token == ":":
            return None
        if depth <= 0:
            return at + len(token) - 1
    return None


def _keyed_units(file: str, lines: Lines) -> Iterator[Unit]:
    """YAML and TOML keys with a value; one without spans the scalars below it, or is the path of the keys below."""
    marks = [(i, m) for i, line in enumerate(lines, 1) if (m := _YAML_KEY.match(_uncomment(line)))]
    tables = [(i, m[1]) for i, line in enumerate(lines, 1) if (m := _TOML_TABLE.match(line))]
    stack: list[tuple[int, str]] = []
    for (line, m), after in zip(marks, [*(i for i, _ in marks[1:]), len(lines) + 1], strict=True):
        indent = len(m[1])
        stack = [s for s in stack if s[0] < indent]
        table = next((name for i, name in reversed(tables) if i < line), "")
        path = (*(table.split(".") if table else ()), *(name for _, name in stack))
        last = max(
            (i for i in range(line, after) if lines[i - 1].strip() and not _TOML_TABLE.match(lines[i - 1])),
            default=line,
        )
        if m[3].strip() or (last > line and lines[line].lstrip().startswith("-")):
            yield Unit(file, "key", m[2].strip(), line, last, "\n".join(lines[line - 1 : last]).strip(), path)
        stack.append((indent, m[2].strip()))


def _uncomment(line: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", line)


# ----------------------------------------------------------------------------------------------------------- prose


def _heading(lines: Lines, i: int) -> tuple[int, str] | None:
    """(level, title) when the 0-based line opens a section."""
    line = lines[i]
    if m := _HEADING.match(line):
        return len(m[1]), m[2].strip(" *_:：")
    below = lines[i + 1].strip() if i + 1 < len(lines) else ""
    if line.strip() and not _ITEM.match(line) and re.fullmatch(r"={3,}|-{3,}", below):
        return (1 if below[0] == "=" else 2), line.strip()
    if m := _BOLD.match(line):
        return 7, m[1].strip(" :：")
    return None


def _headings(lines: Lines) -> list[tuple[int, int, str]]:
    """(1-based line, level, title) of every heading outside code fences."""
    found, fenced = [], False
    for i, line in enumerate(lines):
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif not fenced and (h := _heading(lines, i)):
            found.append((i + 1, *h))
    return found


def _sections(file: str, lines: Lines) -> Iterator[Unit]:
    """A section reaches to the next heading of its level or above; every paragraph of prose counts as one too."""
    heads = _headings(lines)
    yield from _paragraphs(file, lines, heads)
    for n, (line, level, title) in enumerate(heads):
        end = next((at for at, other, _ in heads[n + 1 :] if other <= level), len(lines) + 1)
        body = [x for x in lines[line : end - 1] if x.strip() and not _RULE.match(x)]
        if body:
            yield Unit(file, "section", title, line, end - 1, "\n".join(lines[line - 1 : end - 1]))


def _paragraphs(file: str, lines: Lines, heads: Sequence[tuple[int, int, str]]) -> Iterator[Unit]:
    """Blocks between blank lines and headings; blocks of list items or table rows are judged row by row instead."""
    titles = {at for at, _, _ in heads}
    gaps = [i for i, line in enumerate(lines, 1) if i in titles or not line.strip() or _RULE.match(line)]
    for before, after in pairwise([0, *gaps, len(lines) + 1]):
        block = lines[before : after - 1]
        if block and not all(_ITEM.match(x) or "|" in x for x in block):
            text = "\n".join(block)
            yield Unit(file, "paragraph", _clip(text), before + 1, after - 1, text, _around(heads, before + 1))


def _statements(file: str, lines: Lines) -> Iterator[Unit]:
    """List items, table rows and lines of prose that state a quantity or a `key: value`."""
    heads = _headings(lines)
    for i, line in enumerate(lines, 1):
        if not line.strip() or _RULE.match(line) or _TABLE_RULE.match(line) or any(i == at for at, _, _ in heads):
            continue
        if i < len(lines) and _TABLE_RULE.match(lines[i]) and "|" in line:
            continue  # a table's header row names columns; its cells are what is said
        item = _ITEM.match(line)
        keyed = item and re.search(r"[:：]\s*\S", item[1])
        if keyed or _QUANTITY.search(item[1] if item else line):
            yield Unit(file, "statement", _clip(line), i, i, line.strip(), _around(heads, i))


def _around(heads: Sequence[tuple[int, int, str]], line: int) -> tuple[str, ...]:
    """Titles of the headings that line stands under."""
    open_: list[tuple[int, str]] = []
    for at, level, title in heads:
        if at > line:
            break
        open_ = [*(o for o in open_ if o[0] < level), (level, title)]
    return tuple(title for _, title in open_)


def _clip(text: str, width: int = 60) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


# -------------------------------------------------------------------------------------------------------- coverage


def coverage(unit: Unit, conditions: Conditions) -> str:
    """How the unit was accounted for, in words; "" if it was not."""
    if paths := _quoting(unit, conditions):
        return f"used: {', '.join(paths[:4])}" + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
    if path := _restated(unit, conditions):
        return f"says {path} once more"
    for conflict in conditions.conflicts:
        if _names(unit, " ".join((conflict.why, conflict.path, *conflict.paths))):
            return f"in conflict: {conflict.path}"
    for skipped in conditions.ignored:
        if skipped.why and _declares(unit, skipped.section):
            return f"declared irrelevant: {skipped.why}"
    for flag in conditions.flags:
        if _names(unit, flag.message):
            return f"flagged: {flag.code}"
    return ""


def _quoting(unit: Unit, conditions: Conditions) -> list[str]:
    out = []
    for fact in conditions.facts:
        e = fact.evidence
        if e is None or not _same_file(e.file, unit.file):
            continue
        last = e.line + e.quote.rstrip("\n").count("\n")
        if e.line <= unit.last and last >= unit.first and (unit.kind != "key" or _quotes_key(e.quote, unit)):
            out.append(fact.path)
    return list(dict.fromkeys(out))


def _restated(unit: Unit, conditions: Conditions) -> str:
    """Path of the fact whose words this key repeats: `"gpu_name": "NVIDIA_H100"` after "H100" was read elsewhere."""
    said = _plain(unit.text.partition(unit.title)[2]) if unit.kind == "key" else ""
    for fact in conditions.facts:
        words = _plain(fact.stated_as)
        if len(words) >= 4 and words in said and re.search(r"\d", words) and re.search(r"[^\W\d]", words):
            return fact.path
    return ""


def _same_file(a: str, b: str) -> bool:
    return a == b or a.endswith("/" + b) or b.endswith("/" + a)


def _quotes_key(quote: str, unit: Unit) -> bool:
    """On a line with several keys (minified JSON) the quote must hold this one."""
    return any(unit.title in line or not re.search(r'"\s*:', line) for line in quote.splitlines() or [""])


def _names(unit: Unit, text: str) -> bool:
    if unit.kind == "key":
        return len(unit.title) > 2 and re.search(rf"(?<![\w]){re.escape(unit.title)}(?![\w])", text) is not None
    body = _plain(re.sub(r"^\s*[-*+•]\s+", "", unit.text))
    return unit.kind == "statement" and len(body) >= 6 and body in _plain(text)


def _declares(unit: Unit, section: str) -> bool:
    said = _plain(section)
    if not said:
        return False
    if unit.kind == "key":
        own = [_plain(p) for p in (*unit.path, unit.title)]
        parts = [_plain(p) for p in re.split(r"[./\[\]>:]", section) if _plain(p)]
        if said in own or (bool(parts) and parts[-1] in own) or "".join(own).endswith(said):
            return True
        # `labels: {team: support}` is one unit; what lies inside it is declared key by key.
        inside = unit.text.partition(unit.title)[2]
        return (
            len(parts) > 1
            and parts[-2:-1] == own[-1:]
            and re.search(rf"(?<!\w){re.escape(parts[-1])}\W*:", inside) is not None
        )
    around = [_plain(p) for p in unit.path]
    return said in _plain(unit.text) or said in around or (len(_plain(unit.title)) >= 2 and _plain(unit.title) in said)


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.lower())


def account(sources: Sequence[InputFile], conditions: Conditions) -> tuple[tuple[Unit, str], ...]:
    """Every unit with how it was accounted for. A key repeated word for word (eight equal GPUs) is one unit."""
    how: dict[tuple[object, ...], tuple[Unit, str]] = {}
    for source in sources:
        for unit in units(source):
            same = (unit.file, unit.kind, unit.path, unit.title, unit.text if unit.kind == "key" else unit.first)
            if not how.get(same, (unit, ""))[1]:
                how[same] = (unit, coverage(unit, conditions))
    return tuple(how.values())
