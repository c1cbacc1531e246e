"""One statement (a sentence, field, table cell or leaf) → candidates for facts."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from agent.reading import demand, economics, loose, sentence
from agent.reading.binding import Pair, Spot, amounts, find_spots, noun_of, pair
from agent.reading.coerce import amount, hinted_unit
from agent.reading.facts import Candidate, Reading
from agent.reading.lexicon import (
    BIDIRECTIONAL,
    CORRECTED,
    IRRELEVANT,
    MAXIMUM,
    MEAN,
    MINIMUM,
    PER_DEVICE,
    PER_NODE,
    PER_USER,
    PLANNED,
    SHARED_LINK,
    SPARSE,
    STATS,
    TERMS,
    UNIDIRECTIONAL,
    WISHED,
    compiled,
    search,
    stats_in,
)
from agent.reading.names import Name, find_names, mask
from agent.reading.orders import commands, order_in
from agent.reading.segments import Statement
from agent.reading.typos import corrected
from tools.units import Quantity, fold_width

BESIDE_AN_ORDER = 8
"""What a fact on the line of an order to the reader loses of its weight."""
_CLAUSE = re.compile(r"[,，、;；。()（）\n]|\.(?=\s)")
_GENERIC_BANDWIDTH = re.compile(r"(?:带宽|bandwidth|bw)", re.I)


@dataclass(slots=True)
class Scene:
    """A statement taken apart: masked text, names, pairs; `shift` is what the lead words of the context added in front."""

    statement: Statement
    text: str
    masked: str
    label_end: int
    shift: int
    names: list[Name]
    quantities: list[Quantity]
    pairs: list[Pair]

    def candidate(self, path: str, value: Any, start: int, end: int, **more: Any) -> Candidate:
        line, quote = self.statement.at(max(0, start - self.shift))
        return Candidate(
            path=path, value=value, stated_as=self.text[start:end].strip(), file=self.statement.file, line=line, quote=quote,
            key=self.statement.key or self.statement.label, weight=self._weight(start, end), **more,
        )  # fmt: skip

    def _weight(self, start: int, end: int) -> int:
        """A correction counts more than what it corrects, what is planned for more than what is dreamt of."""
        clause = _CLAUSE.split(self.text[:start])[-1] + self.text[start:end] + _CLAUSE.split(self.text[end:])[0]
        planned, wished = bool(search(PLANNED).search(clause)), bool(search(WISHED).search(clause))
        return planned - wished + 2 * bool(search(CORRECTED).search(self.text)) - 4 * self.statement.quoted


def read_statement(statement: Statement, reading: Reading) -> bool:
    """Adds what `statement` says to `reading`; True when it said something (a fact, a flag, or a declared irrelevance)."""
    text = fold_width(statement.text)
    tainted = statement.kind != "leaf" and statement.line in reading.order_lines.get(statement.file, ())
    if order_in(text) or (commands(text) and (tainted or _goes_on(statement, reading))):
        return _flag_order(statement, text, reading)
    why = next((why for words, why in IRRELEVANT if search(words).search(text)), None)
    if why and statement.kind != "leaf" and not (search(PLANNED).search(text) and re.search(r"\d", text)):
        reading.ignore(_short(statement.text), why)
        reading.candidates += sentence.subject_of_an_aside(_scene(statement, text))
        return True
    before = len(reading.candidates) + len(reading.flags) + len(reading.unknown)
    first = len(reading.candidates)
    scene = _scene(statement, text)
    reading.candidates += [c for p in scene.pairs for c in _candidates(scene, p)]
    if any(loose.not_working(scene, p.quantity) for p in scene.pairs if p.spot.term.path.startswith("hardware.")):
        reading.flag(
            "devices-not-working",
            f"{statement.file} line {statement.line} says that some devices do not work: {_short(statement.text)!r}; the stated "
            "count is planned as it stands, so state how many can be used",
        )
    sentence.read(scene, reading)
    economics.read(scene, reading)
    demand.read(scene, reading)
    if tainted:  # beside an order: believed where nothing else says it
        beside = [replace(c, weight=c.weight - BESIDE_AN_ORDER) for c in reading.candidates[first:]]
        reading.candidates[first:] = beside
    said = len(reading.candidates) + len(reading.flags) + len(reading.unknown) > before
    if not said and statement.kind != "leaf" and re.search(r"[?？]\s*$", statement.quote):
        reading.ignore(_short(statement.text), "a question to the planner: the plan is its answer")
        return True
    return said


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
    quantities = [
        q
        for q in amounts(masked)
        if not (q.dimension == "count" and (_is_money(masked, q) or _is_difference(masked, q)))
        and not (numbered and q.start < numbered.end())
    ]
    if statement.kind != "prose":
        quantities = [q for q in quantities if q.start >= label_end] if label_end else quantities
    if label_end:
        quantities = [_with_label_unit(q, full[:label_end], masked) for q in quantities]
    spots = find_spots(masked, names) if quantities else []
    spots = [s for s in spots if s.start >= len(lead) or statement.kind == "leaf" or s.end <= label_end]
    if statement.kind == "leaf":
        spots = _leaf_spots(spots, label_end, len(lead), statement)
    quantities = [q for q in quantities if not _GIVEN_IN_TOKENS.match(masked, q.end) and not _rate_in_words(masked, q)]
    named = any(s.end <= label_end and s.term.dimension == "count" for s in spots)
    lengths = _slashed_lengths(masked, quantities, label_end, named) or _in_and_out(masked, quantities)
    taken = {id(p.quantity) for p in lengths}
    pairs = lengths + pair(masked, spots, [q for q in quantities if id(q) not in taken], label_end)
    return Scene(statement, full, masked, label_end, len(lead), names, quantities, pairs)


_BOTH_IN_K = re.compile(r"[\d.]+ ?[kK]/[\d.]+ ?[kK]")  # "8k/1k"
_ISL = next(t for t in TERMS if t.path == "workload.isl" and not t.needs)
_OSL = next(t for t in TERMS if t.path == "workload.osl" and not t.needs)
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
        own = _OWN_PART.split(masked[: a.start])[-1] if label_end <= a.start else ""
        alone = a.value >= 32 and b.value >= 32 and not own.strip() and _ALONE_AFTER.match(masked, b.end)
        if alone and not label:
            pairs += [Pair(Spot(t, q.start, q.start), q, 100.0) for t, q in zip((_ISL, _OSL), (a, b), strict=True)]
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
        terms = (_OSL, _ISL) if reverse else (_ISL, _OSL)
        pairs += [Pair(Spot(t, q.start, q.start), q, 100.0) for t, q in zip(terms, (a, b), strict=True)]
    return pairs


_IN_BEFORE = re.compile(r"(?:\bin(?:put)?|(?<![\u4e00-\u9fff])[入进])\s*[:=~≈]?\s*$", re.I)
_OUT_BETWEEN = re.compile(r"\s*(?:tokens?|toks?)?\s*[,，、/;；&+|]?\s*(?:and\s+)?(?:out(?:put)?|出)\s*[:=~≈]?\s*", re.I)


def _in_and_out(masked: str, quantities: list[Quantity]) -> list[Pair]:
    """ "in 3k out 600": the words before their numbers, both of them."""
    for a, b in pairwise(quantities):
        counts = a.dimension == b.dimension == "count" and a.high is None and b.high is None
        if counts and _IN_BEFORE.search(masked[: a.start]) and _OUT_BETWEEN.fullmatch(masked[a.end : b.start]):
            return [Pair(Spot(t, q.start, q.start), q, 100.0) for t, q in zip((_ISL, _OSL), (a, b), strict=True)]
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
    r"cpu|core|socket|thread|worker|norm|eps|theta|\bid\b|index|uuid|port|rack|switch|step|seed|retry|retries|version|scale|bias|factor|dropout|interval|bits|warm|epoch|log|shard|price|cost|power|watt|disk|ssd|dataset|freq|numa|"
    r"lora|rope|beam|temperature|top p|penalty|timeout|queue|cache|backup|spare|fault|\bname\b|\btype\b|share|proportion|distribution|slot|rail|plane|pool|fail|user id|group|tdp|clock|mhz|ghz|sm count|year|storage|ram\b", re.I
)  # fmt: skip


def _without(text: str, start: int, end: int) -> str:
    return text[: max(0, start)] + " " + text[max(0, end) :]


def _leaf_spots(spots: list[Any], label_end: int, lead_end: int, statement: Statement) -> list[Any]:
    """Of the words in a key only the most telling count: those of the key itself before those of its parents, longest first."""
    label = [s for s in spots if s.end <= label_end]
    own = [s for s in label if s.end > lead_end]
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


# ---------------------------------------------------------------- from a pair to candidates


def _region(scene: Scene, q: Quantity) -> str:
    """The words that qualify `q`: from the amount before it to a little after it, inside the sentence."""
    start = max((o.end for o in scene.quantities if o.end <= q.start), default=0)
    return scene.masked[start : q.start]


def _after(scene: Scene, q: Quantity, limit: int = 26) -> str:
    tail = scene.masked[q.end : q.end + limit]
    cut = _CLAUSE.search(tail, 2)
    return tail if cut is None else tail[: cut.start() + 1]


def _candidates(scene: Scene, p: Pair) -> list[Candidate]:
    converted = amount(p.quantity, p.spot.term)
    if converted is None:
        return []
    value, high, doubt = converted
    path = p.spot.term.path
    q = p.quantity
    base = scene.candidate(path, _tidy(path, value), min(q.start, q.start), q.end, doubt=doubt, factor=q.factor)
    if path.startswith("requirements."):
        return _requirement(scene, p, base, high)
    if path in ("workload.isl", "workload.osl", "workload.seq_len", "workload.max_context"):
        return _length(scene, p, base, high)
    if path.startswith("hardware."):
        return _hardware(scene, p, base, high)
    if path == "workload.isl" and p.spot.term.needs and _is_the_answer(scene, p):
        p = replace(p, spot=replace(p.spot, term=_OSL))
        return _length(scene, p, replace(base, path="workload.osl"), high)
    if path == "workload.concurrency" and p.spot.term.side == "noun" and not _AT_ONCE.search(_own_clause(scene, q)):
        base = replace(base, tags=("headcount",))
    if path == "model.num_experts" and _CHOOSES.search(scene.masked[: q.start]):
        return [replace(base, path="model.num_experts_per_tok")]
    if path == "model.num_hidden_layers" and _FIRST_OF_THEM.search(scene.masked[: q.start]):
        dense = re.search(r"稠密|dense", _after(scene, q, 30), re.I)
        return [replace(base, path="model.first_k_dense_replace")] if dense else []
    if path == "model.declared_parameters" and value < 1e6:
        return []
    if high is not None and not path.startswith("ignore"):
        base = replace(base, value=_tidy(path, high), doubt=f"{base.stated_as} is a range; planned for its upper end")
    return [base]


_AT_ONCE = re.compile(
    r"同时|一起|at once|at (?:a|any|one) time|at the same time|concurrent|simultaneous|in parallel|online|active", re.I
)


def _own_clause(scene: Scene, q: Quantity) -> str:
    return _CLAUSE.split(scene.text[: q.start])[-1] + q.text + _CLAUSE.split(scene.text[q.end :])[0]


def _is_the_answer(scene: Scene, p: Pair) -> bool:
    """ "6000 token prompts, 800 token reports": the prompt is named, so the document behind it is what comes out."""
    lengths = [o for o in scene.pairs if o is not p and o.quantity.end <= p.quantity.start]
    return any(o.spot.term.path == "workload.isl" and not o.spot.term.needs for o in lengths) and not any(
        o.spot.term.path == "workload.osl" for o in scene.pairs
    )


_FIRST_OF_THEM = re.compile(
    r"(?:前|首|最初|最后|末|后|\bfirst|\bleading|\blast|\bfinal|\bother|\bremaining|其余)\s*$", re.I
)
_CHOOSES = re.compile(
    r"(?:激活|选择|路由到|选取?|activat\w+|select\w*|rout\w+ to|choos\w+|pick\w*|top)[\s\-]*(?:其中|的|the|only|about)?\s*$",
    re.I,
)
_REAL = re.compile(
    r"(?:mfu|mbu|_rate|peak_factor|bandwidth|flops\.?\w*|acceptance|ttft_s|tpot_s|latency_s|throughput\w*|epsilon|reserve|target|utilization|usage_limit|price"
    r"|bytes\w*|parameters)$"
)


def _tidy(path: str, value: float) -> Any:
    """Counts are ints; other numbers lose the noise of decimal scaling."""
    value = float(f"{value:.12g}")
    real = _REAL.search(path) or path.startswith("ignore")
    return int(value) if not real and value.is_integer() else value


def _stat(scene: Scene, p: Pair) -> str:
    q = p.quantity
    siblings = [o for o in scene.pairs if o.spot is p.spot]
    first = siblings[0].quantity.start
    window = scene.text[max((o.end for o in scene.quantities if o.end <= first), default=0) : first]
    listed = [name for _, name in stats_in(window)]
    if len(siblings) > 1 and len(listed) == len(siblings):
        return listed[siblings.index(p)]
    start = max((o.end for o in scene.quantities if o.end <= q.start), default=0)
    before = stats_in(scene.text[start : q.start])
    if before and not (start and _ASIDE_BEGINS.fullmatch(scene.text[start : start + before[-1][0]])):
        between = scene.masked[start + before[-1][0] : q.start]
        others = [
            o
            for o in scene.pairs
            if o is not p
            and start + before[-1][0] <= o.spot.start < p.spot.start
            and "requirements" in o.spot.term.path
        ]
        if not others or len(between) < 12:
            return before[-1][1]
    after = re.match(
        r"\s*(?:以内|之内|以下|左右|之下|or (?:less|better|faster)|at most|max(?:imum)?)?\s*[,，]?\s*[(（@]?\s*(?:at |for |on |in |\()?(?:the |an? )?",
        scene.text[q.end :],
        re.I,
    )
    tail = scene.text[q.end + (after.end() if after else 0) : q.end + 30]
    follow = stats_in(tail)
    if (
        follow
        and follow[0][0] <= 2
        and not _next_term_first(scene, q, q.end + (after.end() if after else 0) + follow[0][0])
    ):
        return follow[0][1]
    if p.spot.start < start:
        shared = stats_in(scene.text[: p.spot.start])
        if shared and not any(o.quantity.end <= p.spot.start for o in scene.pairs):
            return shared[-1][1]
    if shared_stat := _SHARED_STAT.search(scene.text[q.end :]):
        return stats_in(shared_stat.group())[0][1]
    label = scene.text[: scene.label_end]
    own = stats_in(label)
    if len(own) == 1 and not any(compiled(t.words).search(label) for t in _LATENCIES):
        return own[0][1]  # "SLO p95: TTFT 1200ms; TPOT 60ms"
    if leading := _LEADING_STAT.match(scene.text, scene.label_end):
        return stats_in(leading.group())[0][1]
    if scene.statement.kind == "prose" and scene.statement.context:
        above = stats_in(scene.statement.context[-1])  # "SLO p95: TTFT 1200ms; TPOT 60ms"
        return above[-1][1] if above else "limit"
    if not scene.label_end or scene.statement.kind == "leaf":
        return "limit"
    context = stats_in(" ".join(scene.statement.context[-2:]))
    return context[-1][1] if context else "limit"


# "3s 以内（p90），吐字 …": the bracket right behind an amount belongs to it
_ASIDE_BEGINS = re.compile(r"\s*(?:以内|之内|以下|左右|or less)?\s*[(（@]\s*")
_ANY_STAT = "|".join(words for _, words in STATS)
# "TTFT <= 600 ms, TPOT <= 25 ms, both p99": said once behind the last of several bounds
_SHARED_STAT = re.compile(
    rf"(?:\b(?:both|all)(?: of them| limits)?|均|都|皆)(?: (?:at|as|are|in|the|measured)|为|按|取|是|以|指)*\s*\(?(?:{_ANY_STAT})(?![A-Za-z0-9])",
    re.I,
)


_LATENCIES = tuple(
    t for t in TERMS if t.path in ("requirements.ttft_s", "requirements.tpot_s", "requirements.e2e_latency_s")
)
# "99% of requests: TTFT < 4 s and TPOT < 30 ms": said once, before all bounds
_LEADING_STAT = re.compile(
    rf"\s*(?:the |at |for |in )*(?:{_ANY_STAT})(?:\s*(?:of|的)?\s*(?:all |the )*(?:requests?|queries|users|cases|请求|用户)?)?\s*(?:slo|target)?\s*[:：]",
    re.I,
)


def _next_term_first(scene: Scene, q: Quantity, stat_at: int) -> bool:
    """ "TTFT 2s, P99 TPOT 50ms": the percentile after the comma belongs to what follows it."""
    following = [o for o in scene.pairs if o.spot.start >= stat_at and o.quantity.start > stat_at]
    return bool(re.match(r"\s*[,，;；/]", scene.text[q.end :])) and bool(following)


def _requirement(scene: Scene, p: Pair, base: Candidate, high: float | None) -> list[Candidate]:
    path, value, q = p.spot.term.path, base.value, p.quantity
    around = _region(scene, q) + q.text + _after(scene, q)
    doubt = base.doubt
    if p.spot.term.transform == "complement":
        return [replace(base, path="requirements.memory_reserve", value=float(f"{1 - value:.10g}"))]
    if path in ("requirements.memory_reserve", "requirements.balance_epsilon", "requirements.utilisation_target"):
        return [base]
    user = q.per == "user" or (q.dimension == "tokens/s" and search(PER_USER).search(around))
    if p.spot.term.transform == "inverse" or user:
        if q.dimension != "tokens/s" or not value:
            return [replace(base, path=f"requirements.tpot_s.{_stat(scene, p)}")] if not value else []
        return [replace(base, path=f"requirements.tpot_s.{_stat(scene, p)}", value=float(f"{1 / value:.10g}"))]
    if high is not None:
        loose = path.startswith("requirements.throughput")
        value, doubt = (
            (base.value if loose else high),
            f"{base.stated_as} is a range; gated at its {'lower' if loose else 'upper'} end",
        )
    if path in ("requirements.throughput_total", "requirements.throughput_per_device"):
        return _throughput(scene, p, replace(base, value=value, doubt=doubt), around)
    return [replace(base, path=f"{path}.{_stat(scene, p)}", value=value, doubt=doubt)]


def _throughput(scene: Scene, p: Pair, base: Candidate, around: str) -> list[Candidate]:
    label = scene.text[: scene.label_end]
    words = label + around + scene.masked[p.spot.start : p.spot.end] + p.quantity.text
    per_device = (
        p.spot.term.path.endswith("per_device")
        or p.quantity.per == "device"
        or bool(search(PER_DEVICE).search(label + around))
    )
    metric = "throughput_per_device" if per_device else "throughput_total"
    out = [replace(base, path=f"requirements.{metric}.{_stat(scene, p)}")]
    counts = loose.counted_tokens(words)
    if counts:
        out.append(replace(base, path=f"requirements.{metric}.counts", value=counts, doubt=""))
    return out


def _length(scene: Scene, p: Pair, base: Candidate, high: float | None) -> list[Candidate]:
    """Typical lengths, bounds of ranges, and the context window (whose K is 1024 for the usual sizes)."""
    path, q = p.spot.term.path, p.quantity
    # a bound belongs to its own clause, not to the one before
    near = (
        _CLAUSE.split(_region(scene, q))[-1]
        + " "
        + scene.masked[p.spot.start : p.spot.end]
        + " "
        + _CLAUSE.split(_after(scene, q, 22))[0]
    )
    label = scene.text[: scene.label_end]
    if bound := _listed_bound(scene, p, label):
        return [replace(base, path=path if bound == "mean" else f"{path}_{bound}")]
    lowest, highest = (bool(search(w).search(near + " " + label)) for w in (MINIMUM, MAXIMUM))
    kind = path.removeprefix("workload.")
    if path == "workload.max_context":
        value = _window(q, high if high is not None else base.value)
        own_min = search(MINIMUM).search(near + label) and not search(r"max|最[长大]").search(near + label)
        return [replace(base, path="workload.min_context" if own_min else path, value=value)]
    if high is not None:
        stem = "seq_len" if kind == "seq_len" else kind
        return [
            replace(base, path=f"workload.{stem}_min"),
            replace(base, path=f"workload.{stem}_max", value=_tidy(path, high)),
        ]
    if kind == "seq_len":
        return [replace(base, path=f"workload.seq_len_{'min' if lowest and not highest else 'max'}")]
    own = _CLAUSE.split(_region(scene, q))[-1]
    if search(MAXIMUM).search(own) and not search(MEAN).search(own):
        return [replace(base, path=f"{path}_max")]
    if search(MAXIMUM).search(_shared_bound(scene, q)):
        return [replace(base, path=f"{path}_max")]
    if search(MEAN).search(near + " " + label):
        return [base]
    if lowest and not highest:
        return [replace(base, path=f"{path}_min")]
    return [replace(base, path=f"{path}_max")] if highest else [base]


_JOINED_LENGTHS = re.compile(r"\s*(?:tokens?|toks?)?\s*(?:in|input|输入)?\s*(?:tokens?)?\s*(?:and|/|和|与|及)\s*", re.I)


def _shared_bound(scene: Scene, q: Quantity) -> str:
    """The words before the length that `q` is joined to: "the longest was 28,000 in and 2,000 out"."""
    before = [o for o in scene.quantities if o.end <= q.start and o.dimension == "count"]
    if not before or not _JOINED_LENGTHS.fullmatch(scene.masked[before[-1].end : q.start]):
        return ""
    return _CLAUSE.split(scene.masked[: before[-1].start])[-1]


_BOUNDS = re.compile(
    r"(?P<mean>avg|average|mean|typical|平均|均值|典型)|(?P<max>max(?:imum)?|longest|最大|最长)|(?P<min>min(?:imum)?|shortest|最小|最短)",
    re.I,
)


def _listed_bound(scene: Scene, p: Pair, label: str) -> str:
    """ "Input tokens (avg / max): 1500 / 12000": the i-th amount is what the i-th word of the label says; else empty."""
    kinds = [m.lastgroup or "" for m in _BOUNDS.finditer(label)]
    own = [o for o in scene.pairs if o.spot.term.path == p.spot.term.path or o.spot.start == o.spot.end]
    amounts_here = sorted(
        {o.quantity.start for o in own} | {q.start for q in scene.quantities if q.dimension == "count"}
    )
    if len(kinds) < 2 or len(amounts_here) != len(kinds):
        return ""
    return kinds[amounts_here.index(p.quantity.start)]


def _window(q: Quantity, value: float) -> int:
    thousands = value / 1000
    if (
        re.search(r"[kK]", q.text)
        and thousands.is_integer()
        and thousands >= 1
        and int(thousands) & (int(thousands) - 1) == 0
    ):
        return int(thousands) * 1024
    if re.search(r"\dM|\d m", q.text) and value == 1e6:
        return 1024 * 1024
    return int(value)


_ASIDE_OF_THE_LAST = re.compile(r"^\s*[(（][^()（）]*[)）]")
"""Brackets right behind an amount say something about that amount, not about the next."""


def _hardware(scene: Scene, p: Pair, base: Candidate, high: float | None) -> list[Candidate]:
    path, q = p.spot.term.path, p.quantity
    if path in ("hardware.device_count", "hardware.num_nodes", "hardware.devices_per_node"):
        return _count(scene, p, base, high)
    before = _region(scene, q)
    if any(o.end <= q.start for o in scene.quantities):
        before = _ASIDE_OF_THE_LAST.sub("", before)
    words = scene.masked[: scene.label_end] + before[-40:] + _after(scene, q)
    tags = tuple(
        t for t, w in (("both", BIDIRECTIONAL), ("one", UNIDIRECTIONAL), ("sparse", SPARSE)) if search(w).search(words)
    )
    ports = loose.ports_of_a_node(scene.text) if path == "hardware.inter_node_bandwidth" else None
    scope = (
        "node"
        if path == "hardware.inter_node_bandwidth" and (search(SHARED_LINK).search(scene.text) or ports)
        else "device"
        if q.per == "device" or _EACH_DEVICE.search(_CLAUSE.split(_region(scene, q))[-1])
        else "node"
        if q.per in ("node", "replica")
        or (search(PER_NODE).search(_CLAUSE.split(_region(scene, q))[-1] + _after(scene, q)))
        else ""
    )
    base = replace(base, tags=tags, scope=scope, factor=max(base.factor, ports or 1))
    if path == "hardware.intra_node_bandwidth" and _says_fabric(scene, p):
        return [replace(base, path="hardware.inter_node_bandwidth")]
    if path == "hardware.memory_bandwidth":
        return [replace(base, path=_bandwidth_of(scene, p))]
    if path == "hardware.memory_bytes":
        near = _CLAUSE.split(_region(scene, q))[-1] + scene.masked[: scene.label_end] + _after(scene, q, 12)
        if re.search(
            r"\btotal\b(?! memory per)|aggregate|合计|总(?:显存|共)|overall|combined", near, re.I
        ) and not re.search(PER_DEVICE, near, re.I):
            return [replace(base, path="hardware.total_memory_bytes", value=base.value * q.factor)]
        both = [base]
        if q.factor > 1:
            both.append(replace(base, path="hardware.device_count", value=q.factor))
        return both
    if path == "hardware.peak_flops":
        return [
            replace(
                base,
                path=f"hardware.peak_flops.{loose.flops_dtype(scene, min(q.start, p.spot.start), max(q.end, p.spot.end))}",
            )
        ]
    return [base]


_FABRIC = re.compile(
    r"\b[ehnx]dr\b|(?<![A-Za-z])[ehnx]dr(?=\d)|infiniband|\bib\b|roce|ethernet|\bnics?\b|\bhcas?\b|connectx|\d ?GbE\b|\d ?GE\b",
    re.I,
)


_EACH_DEVICE = re.compile(
    r"\b(?:each|every|per) (?:gpu|card|npu|device|accelerator|chip)|每(?:张|块|个)?(?:卡|gpu|npu)", re.I
)


def _says_fabric(scene: Scene, p: Pair) -> bool:
    """ "Interconnect: 8x NDR 400Gb/s per server": a general word, and the name of a network beside the amount."""
    spelled = scene.masked[p.spot.start : p.spot.end]
    near = scene.text[max(0, p.quantity.start - 24) : p.quantity.end + 16]
    return bool(re.match(r"interconnect|互联|互连", spelled.strip(), re.I) and _FABRIC.search(near))


def _bandwidth_of(scene: Scene, p: Pair) -> str:
    """ "Bandwidth" alone is the memory's, unless a link was named just before it."""
    spelled = scene.masked[p.spot.start : p.spot.end]
    if not _GENERIC_BANDWIDTH.fullmatch(spelled.strip()):
        return p.spot.term.path
    start = min(p.spot.start, p.quantity.start)
    words = scene.masked[max(0, start - 30) : start] + " " + " ".join(scene.statement.context[-1:])
    best, place = p.spot.term.path, -1
    for term in _LINKS:
        for match in compiled(term.words).finditer(words):
            if match.start() > place:
                best, place = term.path, match.start()
    memory = [m.start() for m in re.finditer(r"memory|vram|hbm|显存", words, re.I)]
    return p.spot.term.path if memory and memory[-1] > place else best


def _count(scene: Scene, p: Pair, base: Candidate, high: float | None) -> list[Candidate]:
    """Nodes and devices; whether a device count is per node stands in the words around it."""
    path, q = p.spot.term.path, p.quantity
    value = base.value if high is None else _tidy(path, high)
    doubt = base.doubt if high is None else f"{base.stated_as} is a range; planned for its upper end"
    base = replace(base, value=value, doubt=doubt)
    if not isinstance(value, int):
        return [replace(base, doubt=f"{base.stated_as} is no whole number")]
    if loose.not_working(scene, q):
        return []
    named = next((n for n in scene.names if n.kind == "device" and n.start >= q.end and n.start - q.end < 14), None)
    system = named is not None and re.search(r"dgx|hgx", named.text, re.I)
    if system and path == "hardware.device_count" and p.spot.is_name:
        return [
            replace(base, path="hardware.num_nodes"),
            replace(base, path="hardware.devices_per_node", value=8, origin="derived"),
        ]
    if path == "hardware.num_nodes" and _OTHER_NODES.search(scene.text[q.end : max(q.end, p.spot.end)]):
        return []
    if path == "hardware.num_nodes" and (pool := _POOL.search(_CLAUSE.split(scene.text[: q.start])[-1])):
        base = replace(base, tags=("prefill" if pool["prefill"] else "decode",))
    if path == "hardware.num_nodes" and re.search(
        r"(?:nodes?|servers?|machines?|hosts?|台|节点|服务器|机器)\s*[x×*]\s*$|\b(?:nodes?|servers?|machines?|hosts?|boxes)\s+of\s*$",
        scene.masked[: q.start],
        re.I,
    ):
        return [replace(base, path="hardware.devices_per_node")]
    apiece = path == "hardware.devices_per_node" and scene.masked[p.spot.start : p.spot.end] in ("each", "apiece")
    if apiece and not any(_counts_nodes(scene, o) for o in scene.pairs):
        return []
    if path != "hardware.device_count":
        return [base]
    if rack := _rack(scene, q, named):
        return [replace(base, path="hardware.num_devices", value=value * rack, scope="total", origin="derived")]
    if _counts_the_lot(scene, p):
        return [replace(base, path="hardware.num_nodes")]
    if loose.counts_boxes(scene, q):
        return [replace(base, path="hardware.num_nodes")]
    extra = [
        replace(base, path="hardware.num_nodes", value=int(o.value), stated_as=o.text)
        for o in scene.quantities
        if _multiplies(scene, o, q)
    ]
    before = scene.masked[: scene.label_end] * (scene.label_end <= q.start) + _region(scene, q)
    after = scene.masked[q.end : q.end + 40]
    has_nodes = any(_counts_nodes(scene, o) for o in scene.pairs) or bool(extra)
    owner = re.match(
        r"[\s\-]*(?:x|×|[张块片]|卡|gpus?|npus?|cards?)?[\s\-]*(?:\x01+)?[\s\-]*(?:\d+ ?GB?)?[\s\-]*(?:gpus?|cards?)?[\s\-]*(?:的)?[\s\-]*(?:nodes?|servers?|machines?|box|hosts?|服务器|节点|机器|机型|机\b|机[，,。])",
        after,
        re.I,
    )
    each = has_nodes and re.search(
        r"\beach\b|apiece|per (?:node|server|machine)|/node|每台|每节点", _after(scene, q, 40), re.I
    )
    times = re.search(r"(?:(?:nodes?|servers?|台|节点|服务器)\s*[x×*]|台)\s*$", before, re.I)
    single = search(r"单机|单节点|一台|single[- ](?:node|server|machine)|^box\b").search(scene.text[: q.start])
    scope = "node" if (search(PER_NODE).search(before) or owner or each or times or extra or single) else ""
    total = search(r"total|in all|altogether|across|共|合计|总").search(scene.masked[max(0, q.start - 14) : q.end + 24])
    tags = (
        (f"id={named.value}",)
        if named and p.spot.is_name
        else tuple(f"id={n.value}" for n in scene.names if n.kind == "device" and n.start == p.spot.start)
    )
    return [replace(base, scope="total" if total and not scope else scope, tags=tags[:1]), *extra]


_OTHER_NODES = re.compile(
    r"\b(?:cpu|osd|storage|master|control[- ]plane|login|head|management|etcd|ceph)\b|存储|管理|登录|控制", re.I
)
_POOL = re.compile(
    r"(?P<prefill>prefill(?:ing)?|预填充|P ?(?:池|节点|实例))|(?P<decode>decod(?:e|ing)|解码|D ?(?:池|节点|实例))", re.I
)
_RACK = re.compile(r"NVL[ -]?(?P<size>\d{2,3})\b(?! ?GB)", re.I)


def _rack(scene: Scene, q: Quantity, named: Name | None) -> int:
    """Devices in one of the racks that `q` counts ("2 × GB200 NVL72" is 144); 0 where it counts devices."""
    size = _RACK.search(scene.text, named.start, named.end + 8) if named is not None else None
    return (
        int(size["size"])
        if size and not re.match(r"[\s-]*(?:gpus?|cards?|devices?|卡)", scene.text[size.end() :], re.I)
        else 0
    )


def _counts_the_lot(scene: Scene, p: Pair) -> bool:
    """ "8x H200 each; three of them": what was described has several devices each, so these are nodes."""
    spelled = scene.masked[p.spot.start : p.spot.end]
    earlier = [
        o for o in scene.pairs if o.quantity.end <= p.quantity.start and o.spot.term.path == "hardware.device_count"
    ]
    return bool(
        re.match(r"of (?:them|these|those)", spelled)
        and any(re.search(r"\beach\b|apiece", scene.masked[o.quantity.end : p.quantity.start]) for o in earlier)
    )


def _counts_nodes(scene: Scene, p: Pair) -> bool:
    path = p.spot.term.path
    return path == "hardware.num_nodes" or (path == "hardware.device_count" and loose.counts_boxes(scene, p.quantity))


def _multiplies(scene: Scene, o: Quantity, q: Quantity) -> bool:
    """The 2 of "2×8 H20"."""
    return o.end <= q.start and o.integral and bool(re.fullmatch(r"\s*[x×*]\s*", scene.masked[o.end : q.start]))


def _links() -> tuple[Any, ...]:
    from agent.reading.lexicon import TERMS

    wanted = ("hardware.inter_node_bandwidth", "hardware.intra_node_bandwidth", "hardware.pcie_bandwidth")
    return tuple(t for t in TERMS if t.path in wanted)


_LINKS = _links()
