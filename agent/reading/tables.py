"""Tables of every make as labelled cells: Markdown, CSV and TSV (quoted cells included), HTML; merged cells are filled in.

A cell's label is what names it: its row, its column, or both. Where every row is a machine, the rows count the nodes.
"""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import csv
import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

TABLE_RULE = re.compile(r"^\s*\|?\s*:?-{2,}:?\s*(\|\s*:?-{2,}:?\s*)*\|?\s*$")
_VALUE = re.compile(
    r"(?:values?|figures?|settings?|spec(?:ification)?s?|数值|值|取值|参数值|配置|规格|要求|目标|target|limit|requirement|quantity|数量|内容|说明|detail|answer|response|回答|答复)?",
    re.I,
)
_SUBJECT = re.compile(
    r"(?:parameters?|params?|items?|keys?|names?|metrics?|fields?|propert(?:y|ies)|attributes?|indicators?|questions?|requirements?|项目?|参数|参数项|指标|指标项|名称|配置项|条目|内容项|字段)(?:名称?)?",
    re.I,
)
_UNIT = re.compile(r"units?|单位", re.I)
_NOTE = re.compile(r"notes?|remarks?|comments?|备注|说明|source|来源", re.I)
_STAT = re.compile(r"percentiles?|stat(?:istic)?s?|quantiles?|分位(?:数|值)?|统计(?:口径|值)?|口径", re.I)
_MACHINE = re.compile(
    r"(?:host|node|server|nodelist|hostnames?|machine|节点|主机|服务器|机器)(?: ?(?:name|id)|名|编号)?s?", re.I
)
_DEVICE_COUNT = re.compile(r"(?:num(?:ber)?(?: of)? |n )?(?:gpus|npus|cards|accelerators|devices)|(?:gpu|npu)[._ ]count|(?:gpu|npu)? ?卡数|(?:gpu|npu) ?数量?", re.I)  # fmt: skip
_IDENTIFIER = re.compile(r"(?=\S*\d)[\w.\-]+")


@dataclass(frozen=True, slots=True)
class Cell:
    """`label` and `value` of one cell, the 1-based line of its row, the category it stands under."""

    line: int
    label: str
    value: str
    category: str = ""


@dataclass(frozen=True, slots=True)
class Rows:
    """A table before it is read: the header and (line, cells) of every row."""

    header: list[str]
    rows: list[tuple[int, list[str]]]


def machines(table: Rows) -> int:
    """How many nodes the rows are: each row names a machine of its own, and a column counts its devices. Else 0."""
    header = [h.strip() for h in table.header]
    names = [cells[0] for _, cells in table.rows if cells]
    called = bool(header) and (
        _MACHINE.fullmatch(header[0])
        or (header[0].lower() == "name" and all(re.search(r"node|host|gpu|server|worker", n, re.I) for n in names))
    )
    listed = called and any(_DEVICE_COUNT.fullmatch(h) for h in header[1:])
    own = len(set(names)) == len(names) and all(_IDENTIFIER.fullmatch(n) and not n.isdigit() for n in names)
    return len(names) if listed and own else 0


def cells_of(table: Rows) -> Iterator[Cell]:
    """Every cell that says something, in order, under the label that its row and column give it."""
    header = [h.strip() for h in table.header]
    unit_column = next((c for c, h in enumerate(header) if _UNIT.fullmatch(h)), None)
    subject = next((c for c, h in enumerate(header) if _SUBJECT.fullmatch(h)), 0) if len(header) > 2 else 0
    if _names_without_title(table, header, subject):
        subject += 1
    stats = {c for c, h in enumerate(header) if _STAT.fullmatch(h) and c != subject}
    hosts = machines(table)
    above: list[str] = [""] * len(header)
    for number, cells in table.rows:
        cells = [*cells, *[""] * (len(header) - len(cells))]
        # a merged cell stands once, above the rows it is for
        cells[: subject + 1] = [c or above[k] for k, c in enumerate(cells[: subject + 1])]
        above = cells
        name = cells[subject]
        keyed = len(header) >= 2 and (subject > 0 or not re.search(r"^\W*\d", name))
        stat = " ".join(cells[c] for c in sorted(stats))
        category = " ".join(c for c in cells[:subject] if c)
        notes = [cells[c] for c, h in enumerate(header) if _NOTE.fullmatch(h) and c > subject]
        aside = next(
            (n for n in notes if n and (not re.search(r"\d", n) or _PERCENTILE.fullmatch(n)) and len(n) < 60), ""
        )
        for column, cell in enumerate(cells[: len(header)]):
            if (
                not cell
                or column < subject
                or (column == subject and keyed)
                or column == unit_column
                or column in stats
            ):
                continue
            title = header[column]
            plain = _VALUE.fullmatch(title) or _NOTE.fullmatch(title)
            label = title if hosts else f"{name} {stat}".strip() if plain else f"{name} {title}" if keyed else title
            if hosts and _DEVICE_COUNT.fullmatch(title):
                label = f"{title.replace('.', ' ')} per node"
            unit = cells[unit_column] if unit_column is not None else ""
            value = f"{cell} {unit}" if unit and re.fullmatch(r"[\s\d.,~\-]+", cell) else cell
            if aside and not _NOTE.fullmatch(title) and re.search(r"\d", cell):
                value = f"{value} ({aside})"  # "per server", "both directions": a remark on the amount beside it
            for part, amount in parallel(label, value) or [(label, value)]:
                yield Cell(number, part, amount, category)


_PERCENTILE = re.compile(r"\W*(?:p ?\d\d|\d\dth(?: percentile)?|\d\d ?分位)\W*", re.I)


def _names_without_title(table: Rows, header: list[str], subject: int) -> bool:
    """Whether the column behind `subject` has no title but names the rows: "Cluster | GPU | …" with "GPU" under a blank."""
    if len(header) <= subject + 2 or header[subject + 1] or not header[subject]:
        return False
    cells = [cells[subject + 1] for _, cells in table.rows if len(cells) > subject + 1]
    return bool(cells) and sum(bool(re.match(r"\W*[A-Za-z\u4e00-\u9fff]", c)) for c in cells) > len(table.rows) / 2


_STAT_WORD = re.compile(r"mean|average|avg|median|peak|max(?:imum)?|min(?:imum)?|typical|p ?\d\d", re.I)
_BARE = re.compile(r"[\d.,]+\s?[kK]?")


def parallel(label: str, value: str) -> list[tuple[str, str]] | None:
    """ "weights / cache | BF16 / FP8": as many values as names, each for its own; a unit behind the last is that of all."""
    names, values = ([p.strip() for p in re.split(r"\s+/\s+", text.strip())] for text in (label, value))
    if len(names) < 2 or len(names) != len(values) or not all((*names, *values)):
        return None
    bare = [re.sub(r"\bp ?\d\d\b", "", n, flags=re.I) for n in names]
    if any(re.search(r"\d|[(（)）]", n) or len(n.split()) > 5 for n in bare):
        return None
    tail = names[-1].split(maxsplit=1)
    if len(tail) == 2 and _STAT_WORD.fullmatch(tail[0]):  # "Mean / peak requests per second"
        names = [f"{n} {tail[1]}" if _STAT_WORD.fullmatch(n) else n for n in names]
    unit = re.fullmatch(r"[\d.,]+\s?[kK]?\s*(?P<unit>[A-Za-z%\u4e00-\u9fff].*)", values[-1])
    if unit:
        values = [f"{v} {unit['unit']}" if _BARE.fullmatch(v) else v for v in values]
    return list(zip(names, values, strict=True))


# ---------------------------------------------------------------- makes


def markdown_table(lines: Sequence[str], i: int) -> tuple[Rows, int] | None:
    """The table that begins at line `i` (from 0), and the line behind it."""
    if jira := _jira_table(lines, i):
        return jira
    if "|" not in lines[i] or i + 1 >= len(lines) or not TABLE_RULE.match(lines[i + 1]) or "|" not in lines[i + 1]:
        return None
    j = i + 2
    rows: list[tuple[int, list[str]]] = []
    while j < len(lines) and "|" in lines[j] and lines[j].strip():
        rows.append((j + 1, pipe_cells(lines[j])))
        j += 1
    return Rows(pipe_cells(lines[i]), rows), j


def _jira_table(lines: Sequence[str], i: int) -> tuple[Rows, int] | None:
    """ "||GPU||Count||" and rows "|H100|24|"."""
    if not re.match(r"\s*\|\|.+\|\|\s*$", lines[i]):
        return None
    header = [c.strip() for c in lines[i].strip().strip("|").split("||")]
    end = next((j for j in range(i + 1, len(lines)) if not re.match(r"\s*\|[^|]", lines[j])), len(lines))
    rows = [(j + 1, pipe_cells(lines[j])) for j in range(i + 1, end)]
    return (Rows(header, rows), end) if rows else None


def pipe_cells(line: str) -> list[str]:
    return [strip_marks(c).strip() for c in line.strip().strip("|").split("|")]


def separated_table(lines: Sequence[str], i: int, file: str) -> tuple[Rows, int] | None:
    """Comma or tab separated lines of about one width, the first without values: a table too."""
    if aligned := _aligned_table(lines, i):
        return aligned
    separators = ["\t", ",", ";"] if file.lower().endswith((".csv", ".tsv")) else ["\t"]
    for separator in separators:
        header = _fields(lines[i], separator)
        if len(header) < 2 or not lines[i].strip() or any(re.fullmatch(r"[\d.,\s]+%?", h) for h in header if h):
            continue
        j, rows = i + 1, []
        while j < len(lines) and lines[j].strip() and len(cells := _fields(lines[j], separator)) > 1:
            if len(cells) > len(header):
                if any(cells[len(header) :]):
                    break
                cells = cells[: len(header)]
            rows.append((j + 1, cells))
            j += 1
        if rows and _headless(header, rows):
            return Rows([_NAME_OF_KEY, "value", *["note"] * (len(header) - 2)], [(i + 1, header), *rows]), j
        if rows:
            return Rows(header, rows), j
    return None


_CAPITALS = re.compile(r"[A-Z][A-Z0-9_.()%/-]*")


def _aligned_table(lines: Sequence[str], i: int) -> tuple[Rows, int] | None:
    """What command-line tools print: a header in capitals, columns apart by blanks."""
    header = lines[i].split()
    if len(header) < 3 or not all(_CAPITALS.fullmatch(h) for h in header):
        return None
    j, rows = i + 1, []
    while j < len(lines) and len(cells := lines[j].split()) == len(header):
        rows.append((j + 1, cells))
        j += 1
    return (Rows(header, rows), j) if rows else None


_NAME_OF_KEY = "item"


def _headless(header: list[str], rows: list[tuple[int, list[str]]]) -> bool:
    """Whether the first of two columns already is a field ("GPU,H100"), so that no row names the columns."""
    return (
        len(header) == 2
        and not _VALUE.fullmatch(header[1])
        and not (_SUBJECT.fullmatch(header[0]) or _UNIT.fullmatch(header[1]))
        and any(re.match(r"\W*\d", cells[1]) for _, cells in rows)
    )


def _fields(line: str, separator: str) -> list[str]:
    try:
        return [c.strip() for c in next(csv.reader([line], delimiter=separator), [])]
    except csv.Error:
        return [c.strip() for c in line.split(separator)]


_ROW = re.compile(r"<tr\b[^>]*>(?P<row>.*?)(?=</tr\b|<tr\b|</table\b|$)", re.I | re.S)
_CELL = re.compile(r"<t(?P<kind>[dh])\b(?P<attributes>[^>]*)>(?P<cell>.*?)(?=</t[dh]\b|<t[dh]\b|$)", re.I | re.S)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--.*?-->")


def without_tags(text: str) -> str:
    """HTML tags to blanks, entities to characters."""
    return html.unescape(_TAG.sub(" ", text)).replace("\u00a0", " ")


def html_table(lines: Sequence[str], i: int) -> tuple[Rows, int] | None:
    """The `<table>` that begins on line `i`; a cell with rowspan stands in every row it spans."""
    if not re.search(r"<table\b", lines[i], re.I):
        return None
    end = next((j for j in range(i, len(lines)) if re.search(r"</table\s*>", lines[j], re.I)), len(lines) - 1)
    text = "\n".join(lines[i : end + 1])
    rows: list[tuple[int, list[str]]] = []
    spans: dict[int, tuple[int, str]] = {}
    for match in _ROW.finditer(text):
        cells: list[str] = []
        for cell in _CELL.finditer(match["row"]):
            _carried(cells, spans)
            words = " ".join(without_tags(cell["cell"]).split())
            if (span := re.search(r"rowspan\s*=\s*[\"']?(\d+)", cell["attributes"], re.I)) and int(span[1]) > 1:
                spans[len(cells)] = (int(span[1]) - 1, words)
            cells.append(words)
        _carried(cells, spans)
        if cells:
            rows.append((i + 1 + text.count("\n", 0, match.start()), cells))
    if not rows:
        return None
    headed = bool(re.search(r"<th\b", text, re.I)) or len(rows[0][1]) > 2
    header = rows[0][1] if headed else [_NAME_OF_KEY, "value"]
    return Rows(header, rows[1:] if headed else rows), end + 1


def _carried(cells: list[str], spans: dict[int, tuple[int, str]]) -> None:
    """Appends what cells of earlier rows leave in the next columns of this one."""
    while len(cells) in spans:
        left, words = spans.pop(len(cells))
        if left > 1:
            spans[len(cells)] = (left - 1, words)
        cells.append(words)


def strip_marks(text: str) -> str:
    """Emphasis marks to nothing; length may change, so this happens before any offset is taken."""
    return re.sub(r"\*\*|__(?=\w)|(?<=\w)__|`", "", text)
