"""One statement (a sentence, field, table cell or leaf) → candidates for facts."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

from agent.reading import demand, economics, loose, sentence
from agent.reading.binding import Pair, Spot, amounts, find_spots, noun_of, pair
from agent.reading.coerce import hinted_unit
from agent.reading.facts import Reading
from agent.reading.lexicon import (
    IRRELEVANT,
    PLANNED,
    TERMS,
    search,
)
from agent.reading.meaning import candidates_of
from agent.reading.names import Name, find_names, mask
from agent.reading.orders import commands, order_in
from agent.reading.scene import OSL, Scene
from agent.reading.segments import Statement
from agent.reading.typos import corrected
from tools.units import Quantity, find_quantities, fold_width

BESIDE_AN_ORDER = 8
"""What a fact on the line of an order to the reader loses of its weight."""


MANY_NUMBERS = 300


def _numbers_of(text: str) -> int:
    return len(re.findall(r"\d+(?:[.,]\d+)*", text))


def read_statement(statement: Statement, reading: Reading) -> bool:
    """Adds what `statement` says to `reading`; True when it said something (a fact, a flag, or a declared irrelevance)."""
    text = fold_width(statement.text)
    if (count := _numbers_of(text)) > MANY_NUMBERS:
        data = f"{count:,} numbers in one statement: data, not conditions, which are read up to {MANY_NUMBERS}"
        reading.ignore(_short(statement.text), data)
        reading.flag(
            "many-numbers",
            f"{statement.file} line {statement.line}: {data}; state what they mean, such as mean and p95",
        )
        return True
    tainted = statement.kind != "leaf" and statement.line in reading.order_lines.get(statement.file, ())
    if order_in(text) or (commands(text) and (tainted or _goes_on(statement, reading))):
        return _flag_order(statement, text, reading)
    why = next((why for words, why in IRRELEVANT if search(words).search(text)), None)
    if why and why.startswith("organisational") and _states_much(text):
        why = None  # "20 requests per second in the lunch hour"
    if (
        why
        and statement.kind != "leaf"
        and not (re.search(r"\d", text) and (search(PLANNED).search(text) or _OURS.search(text)))
    ):
        reading.ignore(_short(statement.text), why)
        reading.candidates += sentence.subject_of_an_aside(_scene(statement, text))
        return True
    before = len(reading.candidates) + len(reading.flags) + len(reading.unknown)
    first = len(reading.candidates)
    scene = _scene(statement, text)
    reading.numbers += _numbers(scene)
    reading.candidates += [c for p in scene.pairs for c in candidates_of(scene, p)]
    if any(loose.not_working(scene, p.quantity) for p in scene.pairs if p.spot.term.path.startswith("hardware.")):
        reading.flag(
            "devices-not-working",
            f"{statement.file} line {statement.line} says that some devices do not work: {_short(statement.text)!r}; the stated "
            "count is planned as it stands, so state how many can be used",
        )
    sentence.read(scene, reading)
    economics.read(scene, reading)
    demand.read(scene, reading)
    economics.mark_rates(scene, reading, first)
    if tainted:  # beside an order: believed where nothing else says it
        beside = [replace(c, weight=c.weight - BESIDE_AN_ORDER) for c in reading.candidates[first:]]
        reading.candidates[first:] = beside
    said = len(reading.candidates) + len(reading.flags) + len(reading.unknown) > before
    if not said and statement.kind != "leaf" and re.search(r"[?？]\s*$", statement.quote):
        reading.ignore(_short(statement.text), "a question to the planner: the plan is its answer")
        return True
    return said


def _states_much(text: str) -> bool:
    """Whether a sentence has at least two amounts in units of the trade: no note about people or rooms."""
    found = find_quantities(text)
    return sum(q.dimension not in ("count", "s", "fraction") or noun_of(text, q) == "tokens" for q in found) >= 2


# "shared with another team, so assume half of it": what is left is said too
_OURS = re.compile(
    r"\bassum(?:e|ing)\b|\b(?:leav(?:es|ing)|left for) us\b|\bwe (?:get|may use|can use|can have|have)\b|\bour (?:share|half|part|portion)\b"
    r"|[归给]我们|我们(?:能|可以?)用|留给我们|按.{0,12}(?:算|计)",
    re.I,
)


def _numbers(scene: Scene) -> list[tuple[str, int, str, str]]:
    """What must turn up as a fact or be said to be left out. A key's number is accounted for by its key."""
    if scene.statement.kind == "leaf":
        return []
    out = []
    for q in scene.seen:
        numbering = q.start == scene.shift and re.match(r"\d+(?:\.\d+)+\s", scene.text[q.start :])
        if q.start >= scene.shift and not numbering and (q.value != 1 or re.search(r"\d", q.text)):
            line, _ = scene.statement.at(q.start - scene.shift)
            words = " ".join(scene.text[max(scene.shift, q.start - 24) : q.end + 24].split())
            out.append((scene.statement.file, line, q.text.strip(), words))
    return out


def _goes_on(statement: Statement, reading: Reading) -> bool:
    """Whether the statement stands right below an order, in prose."""
    file, line = reading.order_at
    return statement.kind == "prose" and statement.file == file and 0 <= statement.line - line <= 1


def _flag_order(statement: Statement, text: str, reading: Reading) -> bool:
    reading.flag(
        "prompt-injection",
        f"{statement.file} line {statement.line} addresses the reader, not the deployment: {_short(text)!r}; kept as data, not obeyed",
    )
    reading.ignore(_short(statement.text), "an instruction to the reader inside the conditions; treated as data")
    reading.order_at = (statement.file, statement.lines[-1][1] if statement.lines else statement.line)
    return True


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."


def _scene(statement: Statement, text: str) -> Scene:
    lead = _lead(statement)
    if statement.kind != "leaf" and not statement.lines[1:]:
        text, label_end = corrected(text, statement.label_end)
        statement = replace(statement, text=text, label_end=label_end)
    full, label_end = lead + text, (statement.label_end + len(lead) if statement.label_end else 0)
    names = find_names(full)
    masked = mask(full, names)
    numbered = (_HEADING_NUMBER if statement.kind == "heading" else _NUMBERING).match(masked, len(lead))
    numbered = None if statement.kind == "leaf" else numbered
    seen = tuple(q for q in amounts(masked) if not (numbered and q.start < numbered.end()))
    quantities = [
        q for q in seen if not (q.dimension == "count" and (_is_money(masked, q) or _is_difference(masked, q)))
    ]
    quantities = _peaks_of_other_dtypes(masked, quantities, names)
    if statement.kind != "prose":
        quantities = [q for q in quantities if q.start >= label_end] if label_end else quantities
    if label_end:
        quantities = [_with_label_unit(q, full[:label_end], masked) for q in quantities]
    spots = find_spots(masked, names) if quantities else []
    spots = [s for s in spots if s.start >= len(lead) or statement.kind == "leaf" or s.end <= label_end]
    if statement.kind == "leaf":
        spots = _leaf_spots(spots, label_end, len(lead), statement)
        if _LENGTH_KEY.search(full[len(lead) : label_end]):  # {"traffic": {"prompt": {"avg_tok": 1700}}} is no rate
            spots = [s for s in spots if s.start >= label_end or s.term.dimension not in _RATES]
    quantities = [q for q in quantities if not _GIVEN_IN_TOKENS.match(masked, q.end) and not _rate_in_words(masked, q)]
    named = any(s.end <= label_end and s.term.dimension == "count" for s in spots)
    lengths = _slashed_lengths(masked, quantities, label_end, named) or _in_and_out(masked, quantities)
    taken = {id(p.quantity) for p in lengths}
    pairs = lengths + pair(masked, spots, [q for q in quantities if id(q) not in taken], label_end)
    return Scene(statement, full, masked, label_end, len(lead), names, quantities, pairs, seen)


def _peaks_of_other_dtypes(masked: str, quantities: list[Quantity], names: list[Name]) -> list[Quantity]:
    """ "620 TFLOPS bf16 (1240 fp8)": the second is in the unit of the first."""
    out: list[Quantity] = []
    for q in quantities:
        last = out[-1] if out else None
        dtype = any(n.kind == "dtype" and 0 <= n.start - q.end <= 2 for n in names)
        if (
            last
            and dtype
            and last.dimension == "flop/s"
            and q.dimension == "count"
            and _SAME_UNIT.fullmatch(masked[last.end : q.start])
        ):
            unit = find_quantities(f"1 {last.unit}")
            q = (
                replace(q, dimension="flop/s", value=q.value * unit[0].value, unit=last.unit, integral=False)
                if unit
                else q
            )
        out.append(q)
    return out


_LENGTH_KEY = re.compile(r"\btok(?:en)?s?\b(?!.*\b(?:per|s|sec|second|min|minute|rate|speed|ps)\b)", re.I)
_RATES = ("requests/s", "tokens/s")
_BOTH_IN_K = re.compile(r"[\d.]+ ?[kK]/[\d.]+ ?[kK]")  # "8k/1k"
_ISL = next(t for t in TERMS if t.path == "workload.isl" and not t.needs)
_IN, _OUT = (
    r"(?:输入|提示|input|prompt|prefill|isl|\bin\b)",
    r"(?:输出|生成|回答|output|answer|repl|completion|response|osl|\bout\b)",
)
_IN_OUT = re.compile(rf"{_IN}.{{0,14}}{_OUT}", re.I)
_OUT_IN = re.compile(rf"{_OUT}.{{0,14}}{_IN}", re.I)


# "1500 words, about 2000 tokens": the length is given twice, the tokens count
# "3.1.2 卡间采用 …", "2) …": the number of a section
_NUMBERING = re.compile(r"\s*(?:\d{1,2}(?:\.\d{1,2}){2,4}[.、)）]?\s+(?=\D)|\d{1,2}[、)）]\s*(?=\D))")
_HEADING_NUMBER = re.compile(r"\s*\d{1,2}(?:\.\d{1,2}){0,4}[.、)）]?\s+(?=\D)")
# "$1.20", "5 元", "EUR 300": money counts nothing
_MONEY_BEFORE = re.compile(r"(?:[$¥￥€£]|\b(?:USD|EUR|RMB|CNY|GBP))\s*$", re.I)
_MONEY_BEHIND = re.compile(
    r"(?:[.,]\d{1,2})?\s*(?:[¥￥€£]|\$(?!\s*\d)|(?:USD|EUR|RMB|CNY|GBP|dollars?|euros?|yuan)\b|元|美元|人民币|欧元|块钱)",
    re.I,
)


# "比上次多一台", "one more server": how many more, not how many
_MORE_BEFORE = re.compile(r"(?:比[^，。,.;；]{1,8}(?:多|少)|多了|少了|增加了?|新增了?|减少了?|再加)\s*$")
_MORE_BEHIND = re.compile(
    r"\s*(?:more|fewer|extra|additional|less)\s+(?:\x01+|nodes?|servers?|gpus?|cards?|machines?|hosts?|boxes|than)\b|\s*卡\s*一(?:口|网口|网卡|端口)",
    re.I,
)


def _is_difference(text: str, q: Quantity) -> bool:
    port = re.search(r"一卡\s*$", text[: q.start]) and re.match(r"(?:口|网口|网卡|端口)", text[q.end :])
    return bool(_MORE_BEFORE.search(text[: q.start]) or _MORE_BEHIND.match(text, q.end) or port)


def _is_money(text: str, q: Quantity) -> bool:
    return bool(_MONEY_BEFORE.search(text[: q.start]) or _MONEY_BEHIND.match(text, q.end))


_GIVEN_IN_TOKENS = re.compile(
    r"\s*(?:words?\b|characters?\b|chars\b|个?(?:汉)?字(?:符)?)\s*(?:左右|上下)?[\s,，(]*(?:算|即|约|大约|约合|折合|相当于|也就是|合|≈|=|~|about|around|roughly|i\.e\.,?|which (?:is|are|makes)|so|or|that is)*[\s,，]*"
    r"(?:about|around|roughly|大约|约|大概)?\s*[\d.,]+\s?[kK万千]?\s*(?:个)?\s*(?:tokens?|词元)",
    re.I,
)


# "30 字/秒（约 20 token/秒）", "25 words/s (about 33 tokens/s)"
_THEN_TOKENS = re.compile(
    r"[\s,，(]*(?:算|即|约|大约|约合|折合|相当于|也就是|合|≈|=|~|about|around|roughly|i\.e\.,?|so|or|that is)*\s*[\d.,]+\s?[kK]?\s*(?:个)?\s*(?:tokens?|toks?|词元)\s*(?:/|per|每)",
    re.I,
)


def _rate_in_words(masked: str, q: Quantity) -> bool:
    """A speed in words or characters whose tokens are given behind it."""
    return (
        q.dimension == "tokens/s"
        and re.search(r"字|words?|char", q.text, re.I) is not None
        and _THEN_TOKENS.match(masked, q.end) is not None
    )


_LENGTHS = re.compile(
    r".*?(?:^|\W)(?:tokens?|lengths?|sizes?|token (?:counts?|lengths?)|shapes?|长度|token数?)\W*", re.I
)
_SAME_UNIT = re.compile(r"[\s\x01]*[(（,，/]\s*")
_IN_SLASH_OUT = re.compile(rf"{_IN}\s*/\s*{_OUT}\W*$", re.I)
# a part of an enumeration that is nothing but "4096/512"
_OWN_PART = re.compile(r"[;；|,，]|\s[—–-]\s")
_ALONE_AFTER = re.compile(r"\s*(?:[;；|,，]|$)")


def _slashed_lengths(masked: str, quantities: list[Quantity], label_end: int, named_label: bool) -> list[Pair]:
    """ "2000/500 tokens", "输入/输出 | 2048 / 512": an input and an output length, whatever else stands near."""
    pairs: list[Pair] = []
    for a, b in pairwise(quantities):
        lengths = a.dimension == b.dimension == "count" and a.high is None and b.high is None
        if not lengths or not re.fullmatch(r"\s*(?:tokens?|tok)?\s*(?:[/|+→]|->|=>)\s*", masked[a.end : b.start], re.I):
            continue
        label = masked[:label_end] if label_end <= a.start else ""
        tail = masked[b.end : b.end + 24]
        own = (
            _OWN_PART.split(masked[label_end if _LENGTHS.fullmatch(masked[:label_end]) else 0 : a.start])[-1]
            if label_end <= a.start
            else ""
        )
        label = "" if _LENGTHS.fullmatch(label) else label
        alone = a.value >= 32 and b.value >= 32 and not own.strip() and _ALONE_AFTER.match(masked, b.end)
        parted = label and _OWN_PART.search(
            masked, label_end, a.start
        )  # "New: 4 cards, 2k/500, …": the label is of the whole
        if alone and (not label or parted):
            pairs += [Pair(Spot(t, q.start, q.start), q, 100.0) for t, q in zip((_ISL, OSL), (a, b), strict=True)]
            continue
        named = (
            _IN_OUT.search(label)
            or _IN_SLASH_OUT.search(own)
            or re.match(r"\s*(?:tokens?\s*)?\(?(?:in\s*/\s*out|input\s*/\s*output|输入\s*/\s*输出)", tail, re.I)
        )
        reverse = _OUT_IN.search(label) is not None and not _IN_OUT.search(label)
        if not (
            named
            or reverse
            or (
                not (label and named_label)
                and (noun_of(masked, b) == "tokens" or _BOTH_IN_K.fullmatch(f"{a.text}/{b.text}"))
            )
        ):
            continue
        terms = (OSL, _ISL) if reverse else (_ISL, OSL)
        pairs += [Pair(Spot(t, q.start, q.start), q, 100.0) for t, q in zip(terms, (a, b), strict=True)]
    return pairs


_IN_BEFORE = re.compile(r"(?:\bin(?:put)?|(?<![\u4e00-\u9fff])[入进])\s*[:=~≈]?\s*$", re.I)
_OUT_BETWEEN = re.compile(r"\s*(?:tokens?|toks?)?\s*[,，、/;；&+|]?\s*(?:and\s+)?(?:out(?:put)?|出)\s*[:=~≈]?\s*", re.I)


def _in_and_out(masked: str, quantities: list[Quantity]) -> list[Pair]:
    """ "in 3k out 600": the words before their numbers, both of them."""
    for a, b in pairwise(quantities):
        counts = a.dimension == b.dimension == "count" and a.high is None and b.high is None
        if counts and _IN_BEFORE.search(masked[: a.start]) and _OUT_BETWEEN.fullmatch(masked[a.end : b.start]):
            return [Pair(Spot(t, q.start, q.start), q, 100.0) for t, q in zip((_ISL, OSL), (a, b), strict=True)]
    return []


_ENDS_HERE = re.compile(r"\s*(?:$|[,，;；()（）/|~\n-]|p\d\d|\x02|or\b|and\b|左右|以内|以下)", re.I)


def _with_label_unit(q: Quantity, label: str, masked: str) -> Quantity:
    """A bare number under "TTFT (ms)" or `gpu_memory_gb` takes the unit of its label."""
    if (
        q.dimension != "count"
        or q.unit
        or not re.fullmatch(r"[-−]?[\d.,]+(?:[eE][+-]?\d+)?(?:\s*(?:~|-|to|,|到)\s*[\d.,]+)?", q.text)
        or not _ENDS_HERE.match(masked, q.end)
    ):
        return q
    unit = hinted_unit(label)
    if unit is None or (unit.dimension == "count" and abs(q.value) >= 1e6):
        return q
    scale, doubt = unit.value, unit.doubt
    if unit.dimension == "fraction" and 0 < q.value < 1:
        scale, doubt = 1.0, f"{q.text} under a percent label read as a fraction"
    high = None if q.high is None else q.high * scale
    return replace(
        q,
        value=q.value * scale,
        high=high,
        dimension=unit.dimension,
        unit=unit.unit,
        doubt=doubt,
        per=unit.per,
        integral=q.integral and unit.dimension == "count",
    )


def _lead(statement: Statement) -> str:
    """Words of the context that a bare label ("P99", "Max", "Size") or key needs in order to mean something."""
    if not statement.context or statement.kind in ("heading", "prose"):
        return ""
    if statement.kind == "leaf":
        return statement.context[-1] + " " if statement.context[-1] else ""
    label = re.sub(r"[^A-Za-z0-9\u4e00-\u9fff%]+", " ", statement.label).strip()
    bare = r"(?:p\d\d|mean|avg|average|max(?:imum)?|min(?:imum)?|median|typical|target|limit|value|size|count|number|quantity|type|name|model|total|capacity|length|bandwidth|per (?:gpu|card|node)|hard|soft|数量|大小|容量|型号|名称|最大|最小|平均|单卡|每卡|总|带宽|均值|峰值|上限|下限|类型|input|output|tokens?)"
    if re.fullmatch(rf"{bare}(?: {bare})*", label, re.I):
        return statement.context[-1] + " "
    return ""


# words in a key that make its count something else: node_cpu_cores, layer_norm_eps, token_budget
_FOREIGN = re.compile(
    r"cpu|core|socket|thread|worker|norm|eps|theta|\bid\b|index|uuid|port|rack(?!s| (?:count|num))(?<!per rack)|switch|step|seed|retry|retries|version|scale|bias|factor|dropout|interval|bits|warm|epoch|log|shard|price|cost|power|watt|disk|ssd|dataset|freq|numa|"
    r"lora|rope|beam|temperature|top p|penalty|timeout|queue|cache|backup|spare|fault|\bname\b|\btype\b|share|proportion|distribution|slot|rail|plane|pool|fail|user id|group|tdp|clock|mhz|ghz|sm count|year|storage|ram\b", re.I
)  # fmt: skip


def _without(text: str, start: int, end: int) -> str:
    return text[: max(0, start)] + " " + text[max(0, end) :]


_ONLY_A_STAT = re.compile(
    r"\W*(?:peak|mean|average|avg|max(?:imum)?|min(?:imum)?|typical|usual|total|value|p\d\d|峰值|平均|最大)\W*", re.I
)


def _leaf_spots(spots: list[Any], label_end: int, lead_end: int, statement: Statement) -> list[Any]:
    """Of the words in a key only the most telling count: those of the key itself before those of its parents, longest first."""
    label = [s for s in spots if s.end <= label_end]
    own = [s for s in label if s.end > lead_end]
    if _ONLY_A_STAT.fullmatch(statement.text[: statement.label_end]) and any(s.end <= lead_end for s in label):
        own = []  # {"sessions": {"peak": 140}}
    key = statement.text[: statement.label_end]
    own = [
        s
        for s in own
        if s.term.dimension != "count" or not _FOREIGN.search(_without(key, s.start - lead_end, s.end - lead_end))
    ]
    pool = own or [s for s in label if not _FOREIGN.search(key) and s.end <= lead_end]
    if not pool:
        return [s for s in spots if s.start >= label_end and isinstance(statement.raw, str)]
    kept = []
    for dimension in {s.term.dimension for s in pool}:
        same = [s for s in pool if s.term.dimension == dimension]
        kept.append(
            max(
                same,
                key=lambda s: (
                    s.end - max(s.start, lead_end),
                    s.end - s.start,
                    s.term.path.startswith("engine"),
                    s.start,
                ),
            )
        )
    value = [s for s in spots if s.start >= label_end] if isinstance(statement.raw, str) else []
    return sorted([*kept, *value], key=lambda s: (s.start, s.end))
