"""A paper's text as passages: section, label, sentences and table rows, each of which can quote itself verbatim."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from agent.reading.paper_data import Entries, data_block
from agent.reading.paper_terms import NO_TERMS, Terms, terms_of
from agent.reading.segments import sentence_spans
from tools.spec.base import ToolError
from tools.spec.conditions import Evidence
from tools.units import chinese_number, fold_width

_UNITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = (
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WORDS = {
    **{w: n for n, w in enumerate(_UNITS, 1)}, **{w: n for n, w in enumerate(_TEENS, 10)},
    **{w: 10 * n for n, w in enumerate(_TENS, 2)}, "single": 1, "a": 1, "an": 1,
}  # fmt: skip
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_UNITS)}))?|{'|'.join((*_TEENS, *_UNITS))})"
_BELOW_1000 = rf"(?:{_BELOW_100}(?:[- ]hundred(?:(?: and)? {_BELOW_100})?)?)"
_IN_WORDS = rf"(?<![A-Za-z])(?:{_BELOW_1000}(?:[- ]thousand(?:(?: and)? {_BELOW_1000})?)?|single)\b"
_ZH = "一二两三四五六七八九十百千"
NUMBER = (
    rf"(?:\d{{1,3}}(?:,\d{{3}})+|\d+(?:\.\d+)?\s?[kK](?![A-Za-z])|\d+M(?![A-Za-z])|\d+|{_IN_WORDS}"
    rf"|[{_ZH}]+(?=\s*[个张块卡台层路组片段份]))"
)
"""A whole number as a paper writes it; `whole` gives its value."""

HEADINGS = {
    "abstract": r"abstract|executive summary|tl;?dr|摘要|概要",
    "introduction": r"introduction|motivation|引言|绪论|介绍|前言|动机",
    "background": r"background|preliminaries|preliminary|背景|预备知识",
    "related": r"related works?|prior work|相关工作",
    "method": r"(?:(?:our|the|proposed) )?(?:methods?|methodology|approach|design|system|system design|architecture|algorithm|technique|trick|idea|parallelisation|parallelization)|what we (?:do|did|propose)|(?:本文)?(?:方法|做法|方案)(?:论|设计)?|算法|系统设计|设计",
    "experiments": r"(?:experiment(?:s|al)?|evaluation)(?: ?(?:set[- ]?up|settings?|results?|evaluation|and results))*|set[- ]?up|test ?(?:bench|bed)|workload|eval|(?:benchmark |experimental )?(?:configurations?|settings?)|systems compared|compared methods|models? and workload|what we (?:ran it on|tested|used)|实验(?:设置|评估|与评估|结果|部分|配置)?|评估|评测",
    "results": r"results?(?: and (?:discussion|analysis))?|discussion|analysis|结果(?:与分析)?|讨论",
    "conclusion": r"conclusions?|summary|future work|limitations|结论|总结|展望",
    "references": r"references|bibliography|acknowledge?ments?|参考文献|致谢",
    "appendix": r"appendi(?:x|ces)|supplementary(?: material)?|附录",
}
_KIND = {k: re.compile(rf"(?:{v})(?:[:：]? .{{0,40}})?", re.I) for k, v in HEADINGS.items()}
_OWN_METHOD = re.compile(
    r"(?!.*\b(?:baseline|compared)\b)[A-Z].{1,40} (?:methods?|methodology|approach)|.{2,20}(?:方法|方案)(?:论|设计)",
    re.I,
)
"""A method's heading that begins with its name: "MA-Split methodology"."""
_LATEX_HEADING = re.compile(r"^\s*\\(?P<w>title|(?:sub)*section|chapter)\*?\{(?P<t>[^{}]+)\}\s*$")
_LATEX_ABSTRACT = re.compile(r"^\s*\\begin\{abstract\}\s*$")
_LATEX_STYLED = re.compile(
    r"\\(?:math(?:rm|bf|it|sf|tt)|text(?:bf|it|tt|rm|sf)?|emph|operatorname|paragraph)\*?\{(?P<t>[^{}]*)\}"
)
_LATEX_COMMA = re.compile(r"(\d{1,3})\{,\}(?=\d{3})")
_LATEX_SIGNS = {
    r"\times": "×",
    r"\cdot": "·",
    r"\leq": "≤",
    r"\geq": "≥",
    r"\le": "≤",
    r"\ge": "≥",
    r"\,": " ",
    r"\;": " ",
    r"\ ": " ",
}
_HASH = re.compile(r"^\s{0,3}(#{1,6})\s*(.+?)\s*#*\s*$")
_NUMBERED = re.compile(
    r"^\s*(?:(\d+(?:\.\d+)*)\.?|([IVX]+)\.|([一二三四五六七八九十]+)[、.])\s+(\S.{1,70}?)\s*$|^\s*([一二三四五六七八九十]+)、\s*(\S.{1,40}?)\s*$"
)
_BARE = re.compile(rf"^\s*(?:\*\*|__)?(?P<t>{'|'.join(HEADINGS.values())})(?:\*\*|__)?\s*[:：.]?\s*$", re.I)
_RUN_IN = re.compile(r"^\s*(?:\*\*|__)?(abstract|摘要)(?:\*\*|__)?\s*[—:：.\-–]+\s*(?=\S)", re.I)
_RUN_IN_BOLD = re.compile(
    rf"^\s*(?:\*\*|__)(?:[\dIVX]+(?:\.\d+)*[.、]?\s*)?(?P<t>{'|'.join(HEADINGS.values())})[.:：。]?(?:\*\*|__)\s*[.:：—–-]?\s*(?=\S)",
    re.I,
)
"""A heading in bold at the start of its paragraph: "**2. Method.** We …"."""
_BULLET = re.compile(
    r"^(\s*)(?:(?:[-*+]|\d{1,2}[.)])\s+|(?:[•·]|\d{1,2}、|[（(]\d{1,2}[)）]|[（(][a-z][)）])\s*)(?=\S)"
)
_LABEL = re.compile(
    r"^\s*(?:\*\*|__|`)?([^:：.。|;；]{1,60}?(?:\([^)]{1,40}\)|（[^）]{1,40}）)?)(?:\*\*|__|`)?\s*[:：](?:\*\*|__)?(?!//)"
)
_LOWER_ROLE = re.compile(r"(?:baselines?|ours|mine|proposed|model|hardware|setup)\s*[:：]")
_MID_ROLE = re.compile(
    r"(?<=[.;。；])\s+(?=(?:Baselines?|Proposed|Ours|Our (?:method|system|layout)|基线|本文(?:方法|方案)?|所提方法)\s*[:：])"
)
"""Where a paragraph turns to another role: "Baseline: TP 8. Proposed: TP 8 with …"."""
_ROLE_LABEL = re.compile(
    r"^\s*(?P<t>(?:(?:the|our)\s+)?(?:base ?line|proposed(?: \w+)?|ours|mine|our \w+|control|treatment|this work|comparison)(?:\s*\([^)]{1,30}\))?)\s*(?:=|[-–—]{1,2}\s)\s*(?=\S)",
    re.I,
)
"""A role before "=" or a dash: "Ours = TP 8", "Baseline - TP8"."""
_SET_UP_WORD = r"(?:[A-H]\.\s+)?(?:The )?(?:models?|hardware|machines?|clusters?|platform|testbed|workload|load|traffic|baselines?|comparison|proposed(?: \w+)?|ours|prefill|decode|decoding)"
_RUN_IN_LABEL = re.compile(
    rf"^\s*(?:(?P<w>(?i:{_SET_UP_WORD}))\.\s|"
    r"\\paragraph\*?\{([^{}]{2,60}?)[.:]?\}\s*|(?:\*\*|__)([^*_]{2,60}?)[.:：。]?(?:\*\*|__)[.:：。]?|[*_]([^*_\s][^*_]{1,58}?)[.:：。][*_])\s+(?=\S)"
)
_CONTINUES = re.compile(r"\s*(?:it|its|the|this|they|there|each|both|all|every|here|其|该|它)\b", re.I)
_STATEMENT = re.compile(r"(?=.*\d)(?=.*[A-Za-z\u4e00-\u9fff]{2}).*[ ,，;；×].{3,}")
_TABLE_RULE = re.compile(r"^\s*\|?\s*:?-{2,}:?\s*(\|\s*:?-{2,}:?\s*)+\|?\s*$")


def whole(text: str, *, binary: bool = True) -> int:
    """ "16,384" 16384, "64K" 65536 (or 64000 where `binary` is off), "two" 2, "十六" 16. Raises ToolError otherwise."""
    word = text.strip().lower()
    if word in WORDS:
        return WORDS[word]
    if word[:1].isalpha() and word.isascii():
        return _spelled(word)
    if word and all(c in _ZH for c in word):
        return int(chinese_number(word))
    plain = word.replace(",", "").replace(" ", "")
    if plain.endswith("k"):
        value = float(plain[:-1]) * (1024 if binary else 1000)
    elif plain.endswith("m"):
        value = float(plain[:-1]) * (1024**2 if binary else 1e6)
    elif plain.isdigit():
        value = float(plain)
    else:
        raise ToolError(f"{text!r} is not a whole number")
    if value != int(value):
        raise ToolError(f"{text!r} is not a whole number")
    return int(value)


def _spelled(words: str) -> int:
    """ "three thousand and seventy-two" 3072. Raises ToolError on any other word."""
    total, part = 0, 0
    for w in re.split(r"[\s-]+", re.sub(r"^an?\s+(?=single)", "", words)):
        if w == "thousand":
            total, part = total + part * 1000, 0
        elif w == "hundred":
            part *= 100
        elif w in WORDS:
            part += WORDS[w]
        elif w != "and":
            raise ToolError(f"{words!r} is not a whole number")
    return total + part


@dataclass(frozen=True, slots=True)
class Passage:
    """`text` has `raw`'s length, with marks and line breaks blanked, so that offsets serve both.

    `section` holds the headings around it, `label` what stands before a colon ("Baseline", "Model A"; outer labels
    first, joined by " / "), `body` where the labelled text begins.
    """

    file: str
    raw: str
    text: str
    lines: tuple[tuple[int, int], ...]
    """(offset, 1-based line) of every line."""
    section: tuple[str, ...] = ()
    kind: str = "paragraph"
    label: str = ""
    body: int = 0
    cells: tuple[tuple[str, str], ...] = ()
    """(column title, cell) of a table row."""
    terms: Terms = NO_TERMS
    """What the paper calls its own method, and its symbols."""
    head: tuple[int, str] = (0, "")
    """(line, header) of the table that a row stands in."""

    def quote(self, start: int = 0, end: int | None = None) -> Evidence:
        """The words between two offsets, verbatim; several lines if they run over several."""
        end = len(self.raw) if end is None else end
        while start < end and self.raw[start].isspace():
            start += 1
        at = [(o, n) for o, n in self.lines if o <= start]
        line = at[-1][1] if at else self.lines[0][1]
        return Evidence(file=self.file, line=line, quote=self.raw[start:end].rstrip())

    def sentences(self) -> Iterator[tuple[int, int]]:
        yield from sentence_spans(self.text)

    @property
    def said(self) -> str:
        """The text after the label."""
        return self.text[self.body :]


@dataclass(slots=True)
class Paper:
    title: str
    passages: list[Passage] = field(default_factory=list)
    headings: list[tuple[int, str]] = field(default_factory=list)
    terms: Terms = NO_TERMS

    def heading(self, title: str) -> Passage | None:
        """A heading as a passage that quotes itself."""
        line = next((n for n, t in self.headings if t == title), None)
        file = self.passages[0].file if self.passages else ""
        return None if line is None else Passage(file, title, title, ((0, line),), kind="heading")

    def of(self, *kinds: str) -> list[Passage]:
        """Passages below a heading of one of these kinds (keys of `HEADINGS`)."""
        return [p for p in self.passages if section_kind(p.section) in kinds]


def section_kind(section: Sequence[str]) -> str:
    """The kind of the innermost heading that has one; "" if none has."""
    for title in reversed(section):
        plain = re.sub(r"^[\dIVX]+(?:\.\d+)*\.?\s+|^[一二三四五六七八九十]+[、.]\s*", "", title).strip(" :：")
        for kind, pattern in _KIND.items():
            if pattern.fullmatch(plain):
                return kind
        if _OWN_METHOD.fullmatch(plain):
            return "method"
    return ""


def heading_kinds(text: str) -> set[str]:
    """Which of a paper's usual headings the text has."""
    found = set()
    for line in text.splitlines():
        title = _heading(line)
        if title and (kind := section_kind((title[1],))):
            found.add(kind)
        elif _RUN_IN.match(line):
            found.add("abstract")
        elif (bold := _RUN_IN_BOLD.match(line)) and (kind := section_kind((bold["t"],))):
            found.add(kind)
    return found


_TAG = re.compile(
    r"</?(?:p|h[1-6]|div|span|em|strong|b|i|br|pre|code|a|sup|sub|ul|ol|li|section|article)\b[^<>]*>", re.I
)
_OPENS = re.compile(r"\s*<(?:p|h[1-6]|div|li|section)\b", re.I)
_HTML_HEADING = re.compile(r"\s*<h([1-6])\b[^<>]*>(.*?)(?:</h\1>)?\s*$", re.I)


def _heading(line: str) -> tuple[int, str] | None:
    """(level, title) of a heading line: Markdown, HTML, a bare usual word, or a numbered one ("3 Method", "三、方法")."""
    if m := _HTML_HEADING.match(line):
        return int(m[1]), _TAG.sub("", m[2]).strip()
    line = _TAG.sub("", line)
    if m := _HASH.match(line):
        return len(m[1]), m[2].strip("*_ ")
    if m := _LATEX_HEADING.match(line):
        return {"title": 1, "chapter": 1}.get(m["w"], 2 + m["w"].count("sub")), m["t"].strip()
    if _LATEX_ABSTRACT.match(line):
        return 2, "Abstract"
    if m := _BARE.match(line):
        return 2, m["t"]
    if m := _NUMBERED.match(line.strip().strip("*_")):
        title = m[4] or m[6]
        if section_kind((title,)):
            return 2 + (m[1] or "").count("."), title
    return None


def read_paper_text(text: str, file: str) -> Paper:
    """Passages in order. A paragraph ends at a blank line, a bullet, a label, a heading or a table."""
    lines = text.split("\n")
    paper, stack, labels = Paper(title=""), [], []  # type: ignore[var-annotated]
    i = 0
    while i < len(lines):
        line = lines[i]
        if not line.strip():
            i += 1
        elif heading := _heading(line):
            level, title = heading
            stack = [(n, t) for n, t in stack if n < level] + [(level, title)]
            labels = []
            if not paper.headings and not section_kind((title,)):
                paper.title = title  # a first heading that is "Abstract" is no title, and none comes behind it
            paper.headings.append((i + 1, title))
            i += 1
        elif found := data_block(lines, i):
            paper.passages += [_of_data(d, lines, file, tuple(t for _, t in stack), labels) for d in found[0]]
            i = found[1]
        elif "|" in line and i + 1 < len(lines) and _TABLE_RULE.match(lines[i + 1]):
            i = _table(paper, lines, i, file, tuple(t for _, t in stack), labels)
        else:
            if (bold := _RUN_IN_BOLD.match(line)) and section_kind((bold["t"],)):
                stack = [(n, t) for n, t in stack if n < 2] + [(2, bold["t"])]
                labels = []
            elif m := _RUN_IN.match(line):
                stack = [(n, t) for n, t in stack if n < 2] + [(2, m[1])]
            i = _block(paper, lines, i, file, tuple(t for _, t in stack), labels)
    if not paper.title:
        paper.title = _untitled(lines, file)
    about = [p.text for p in paper.passages if section_kind(p.section) not in ("related", "references")]
    paper.passages = [q for p in paper.passages for q in _by_role(p)]
    paper.terms = terms_of(paper.title, about)
    paper.passages = [replace(p, terms=paper.terms) for p in paper.passages]
    return paper


def _untitled(lines: Sequence[str], file: str) -> str:
    """The first line where it is no heading of a section; else the file's name."""
    first = next((y for x in lines if (y := _TAG.sub("", x).strip("*_ #"))), "")[:120]
    plain = file.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return plain if section_kind((first,)) or not re.search(r"\w", first) else first


def _of_data(
    d: Entries, lines: list[str], file: str, section: tuple[str, ...], labels: list[tuple[int, str]]
) -> Passage:
    """Entries of a JSON or YAML block: a row whose label is the way to them."""
    raw = "\n".join(lines[d.first : d.last + 1])
    offsets, at = [], 0
    for n in range(d.first, d.last + 1):
        offsets.append((at, n + 1))
        at += len(lines[n]) + 1
    text = re.sub(r"[_\"',{}\[\]]", " ", _blank(raw.replace("\n", ";")))  # no entry runs on into the next one
    outer = [t for _, t in labels if t]
    return Passage(file, raw, text, tuple(offsets), section, "data", " / ".join([*outer, *d.path]), 0, d.entries)


def _by_role(p: Passage) -> list[Passage]:
    """A passage cut where it turns to another role, each with that role as its label."""
    cuts = [m.end() for m in _MID_ROLE.finditer(p.text, p.body)]
    if p.kind in ("row", "data") or not cuts:
        return [p]
    first = replace(part(p, 0, cuts[0]), body=p.body)
    out = [first]
    for a, b in zip(cuts, [*cuts[1:], len(p.text)], strict=True):
        piece = part(p, a, b)
        label = _LABEL.match(piece.text)
        assert label is not None
        out.append(replace(piece, label=label[1].strip(), body=label.end()))
    return out


def _blank(raw: str) -> str:
    """Emphasis, code marks, LaTeX and line breaks to blanks, full width to ASCII, one character for one."""
    raw = _TAG.sub(lambda m: " " * len(m[0]), raw) if "<" in raw else raw
    raw = _LATEX_STYLED.sub(lambda m: m["t"].rjust(len(m[0]) - 1) + " ", raw) if "\\" in raw else raw
    raw = _LATEX_COMMA.sub(lambda m: f"  {m[1]},", raw)
    for sign, shown in _LATEX_SIGNS.items():
        raw = re.sub(rf"{re.escape(sign)}(?![A-Za-z])", shown.ljust(len(sign)), raw) if "\\" in raw else raw
    raw = re.sub(r"_\{(\w+)\}", r"_\1  ", raw)
    text = re.sub(r"\*{1,2}|`|\$|\\|(?<!\w)_{1,2}(?=\w)|(?<=[A-Za-z0-9])__(?!\w)", lambda m: " " * len(m[0]), raw)
    return fold_width(text).replace("\n", " ").replace("\t", " ")


def _block(
    paper: Paper, lines: list[str], i: int, file: str, section: tuple[str, ...], labels: list[tuple[int, str]]
) -> int:
    """One paragraph or list item, with the labels of the items around it."""
    bullet = _BULLET.match(lines[i])
    inside = bool(bullet) or lines[i].lstrip().startswith("```")  # a listing belongs to the label above it
    indent = len(lines[i]) - len(lines[i].lstrip()) + (1 if inside else 0)
    labels[:] = [(n, t) for n, t in labels if n < indent]
    j = i + 1
    while j < len(lines) and lines[j].strip() and not _starts(lines, j) and not _ends(lines[i], lines[j - 1], lines[j]):
        j += 1
    raw = "\n".join(lines[i:j])
    offsets, at = [], 0
    for n in range(i, j):
        offsets.append((at, n + 1))
        at += len(lines[n]) + 1
    start = bullet.end() if bullet else 0
    text = _blank(raw)
    first = raw[start:].split("\n")[0]
    label = _ROLE_LABEL.match(first) or _RUN_IN_LABEL.match(first) or _LABEL.match(first)
    name = re.sub(r"^[A-H]\.\s+", "", next((g for g in label.groups() if g), "").strip(" *_`")) if label else ""
    body, own = (start + label.end(), name) if label and _names(name) else (start, "")
    if bold := _RUN_IN_BOLD.match(raw[start:]):  # a heading is no label
        body, own = start + bold.end(), ""
        text = text[:start] + " " * bold.end() + text[start + bold.end() :]
    outer = [t for _, t in labels]
    passage = Passage(
        file, raw, " " * start + text[start:], tuple(offsets), section, "bullet" if bullet else "paragraph",
        " / ".join([*outer, own] if own else outer), body,
    )  # fmt: skip
    paper.passages.append(passage)
    if text.rstrip().endswith((":", "：")) or (own and not text[body:].strip()):
        labels.append((indent, own or _lead_in(passage)))
    return j


def _lead_in(p: Passage) -> str:
    """What introduces a list: the last sentence before its colon; what was said before that is about something else."""
    a, b = list(p.sentences())[-1]
    return p.text[a:b].strip()[:160]


def _starts(lines: list[str], j: int) -> bool:
    """Whether line `j` begins something new inside what would be one paragraph."""
    line = lines[j]
    if _RUN_IN_LABEL.match(line) or _ROLE_LABEL.match(line) or _OPENS.match(line):
        return True
    label, head = _LABEL.match(line), line.lstrip()
    named = (
        label is not None
        and _names(label[1])
        and (head[0].isupper() or head[:2] == "**" or ord(head[0]) > 0x2E80 or _LOWER_ROLE.match(head))
    )
    table = "|" in line and j + 1 < len(lines) and bool(_TABLE_RULE.match(lines[j + 1]))
    return bool(_BULLET.match(line) or _heading(line) or table or named)


def _ends(first: str, before: str, line: str) -> bool:
    """Whether a labelled statement is over before `line`: its sentence ended, and the next one is about something else."""
    labelled = _LABEL.match(_BULLET.sub("", first)) or _RUN_IN_LABEL.match(_BULLET.sub("", first))
    over = before.rstrip().endswith((".", "。", ";", "；"))
    return bool(labelled) and over and not line.startswith((" ", "\t")) and not _CONTINUES.match(line)


def _names(label: str) -> bool:
    words = re.findall(r"[A-Za-z]+|[\u4e00-\u9fff]", label)
    return bool(words) and len(re.findall(r"[A-Za-z]+", label)) <= 7 and len(words) <= 24


def _table(
    paper: Paper, lines: list[str], i: int, file: str, section: tuple[str, ...], labels: list[tuple[int, str]]
) -> int:
    """One passage per row; its cells carry their column's title. A row of two cells, the second of which is a statement, is
    one with a label."""
    header = _cells(lines[i])
    j = i + 2
    while j < len(lines) and "|" in lines[j] and lines[j].strip():
        cells = tuple(zip(header, _cells(lines[j]), strict=False))
        text = _blank(lines[j])
        if len(cells) == 2 and _STATEMENT.search(cells[1][1]):
            at = lines[j].find("|", lines[j].find(cells[0][1][:1] or "|")) + 1
            outer = [t for _, t in labels]
            plain = text.replace("|", " ")
            paper.passages.append(
                Passage(file, lines[j], plain, ((0, j + 1),), section, "bullet", " / ".join([*outer, cells[0][1]]), at)
            )
            j += 1
            continue
        paper.passages.append(_row(file, lines, j, section, labels, cells, head=i))
        j += 1
    return j


def _row(
    file: str, lines: list[str], j: int, section: tuple[str, ...], labels: list[tuple[int, str]],
    cells: tuple[tuple[str, str], ...], *, head: int,
) -> Passage:  # fmt: skip
    label = " / ".join(t for _, t in labels)
    return Passage(
        file, lines[j], _blank(lines[j]), ((0, j + 1),), section, "row", label, 0, cells, head=(head + 1, lines[head])
    )


def _cells(line: str) -> list[str]:
    return [_blank(c).strip() for c in line.strip().strip("|").split("|")]


def part(p: Passage, start: int, end: int) -> Passage:
    """The stretch of a passage between two offsets, as a passage that quotes itself."""
    line = [n for o, n in p.lines if o <= start][-1]
    inner = tuple((o - start, n) for o, n in p.lines if start < o < end)
    return replace(p, raw=p.raw[start:end], text=p.text[start:end], lines=((0, line), *inner), body=0)
