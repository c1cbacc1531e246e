"""Which amount belongs to which word: the best order-preserving pairing of the terms and quantities of a sentence."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from agent.reading.lexicon import STATS, TERMS, Term, compiled, stats_in
from agent.reading.names import Name
from tools.units import Quantity, find_quantities, in_dimension

THRESHOLD = 25.0


@dataclass(frozen=True, slots=True)
class Spot:
    """A term at its place."""

    term: Term
    start: int
    end: int
    is_name: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    spot: Spot
    quantity: Quantity
    score: float


_PER_BEFORE = re.compile(r"(?:\bper[\s-]*|/\s*|\beach\s+|\bevery\s+|每个?\s*|单\s*)$", re.I)
# "users: 40", "用户数为 40", but not "for 6 people, input 1500"
_NAMES_ITS_COUNT = re.compile(
    r"\s*(?:数量?|count|number)?\s*(?:[:：=≤<≈~]|\bis\b|\bare\b|\b(?:will|would|should|must|to) be\b|\bbecomes?\b|\b(?:rises?|goes up|grows?) to\b|改?为|变成|增加到|是|有)\s*(?:[~约]|at most|up to|about|最多|不超过|大约)?\s*",
    re.I,
)
DEVICE_NAME = Term("hardware.device_count", "count", "")
INSTANCE_NAME = Term("hardware.num_nodes", "count", "")
_BREAK = re.compile(
    r"(?<!\d),|,(?!\d)|[，、()（）;；:：/\n]|\b(?:and|but|with|while|whereas)\b|以及|而且|并且|同时|其中"
)
_FILLER = re.compile(
    r"[\s\-*_\"'“”`+]*(?:(?:of|the|total|for|x|×|a|used|old|spare|second-hand|identical|二手|new|large|more|such|tokens?|tok|local|nvidia|amd|intel|huawei|google|blackwell|hopper|ampere|ada|lovelace|grace|instinct|ascend|gaudi|geforce|tesla|datacenter|enterprise|physical|logical|available|dedicated|free|idle|unused|reserved|空闲|可用|独占|华为|英伟达|个|的|款|张|块|片|颗|台|条|per|each|single)[\s\-*_]*)*",
    re.I,
)
_LINK = re.compile(
    r"[\s:=：≤<>≥~≈约*\-\"'“”`|]*(?:(?:is|are|was|of|at|to|be|should|must|need(?:s|ed)?|stay|stays|keep|kept|remain|has|have|can|will|not|no|more|less|fewer|greater|higher|lower|longer|exceed(?:s|ing)?|than|or|equal|equals|within|under|below|above|over|around|"
    r"about|roughly|approximately|approx\.?|up|least|most|max(?:imum)?|min(?:imum)?|average|averages|avg|mean|typical(?:ly)?|usually|target|limit|budget|set|the|a|per|each|p\d\d|为|是|在|约|大约|大概|不超过|不大于|不高于|不低于|不小于|不少于|不得超过|不能超过|要求|需要|需|要|应|控制|"
    r"小于|低于|少于|大于|高于|超过|至少|至多|最多|最少|最大|最小|最长|最短|最高|最低|达到|等于|以内|平均|均值|左右|峰值|高峰|peak|目标|上限|下限|均为|都是|共|有|可达|支持|\x02+)[\s:=：≤<>≥~≈*\-]*)*", re.I
)  # fmt: skip


def find_spots(text: str, names: list[Name]) -> list[Spot]:
    """Terms of the lexicon in masked `text`, a shorter one inside or across a longer one dropped; device names count devices."""
    spots: list[Spot] = []
    for term in TERMS:
        for match in compiled(term.words).finditer(text):
            lead = len(match.group()) - len(match.group().lstrip(" _-\n\t"))
            end = match.start() + len(match.group().rstrip(" _-\n\t"))
            # "tokens/s per GPU": what a rate is for counts nothing
            if term.path in (
                "hardware.device_count",
                "hardware.num_nodes",
                "hardware.num_groups",
            ) and _PER_BEFORE.search(text[: match.start() + lead]):
                continue
            if match.start() + lead < end:
                spots.append(Spot(term, match.start() + lead, end))
    kept = [s for s in spots if not any(_beats(o, s) for o in spots)]
    kept = [s for s in kept if not (s.term.path in _WHOLE and any(_is_its_verb(text, o, s) for o in kept))]
    kept = [
        s for s in kept if not (_says_latency(text, s) and any(o.start > s.end and o.term.path in _PARTS for o in kept))
    ]
    kept += [Spot(DEVICE_NAME, n.start, n.end, is_name=True) for n in names if n.kind == "device"]
    kept += [Spot(INSTANCE_NAME, n.start, n.end, is_name=True) for n in names if n.kind == "instance"]
    return sorted(kept, key=lambda s: (s.start, s.end))


_WHOLE = ("requirements.e2e_latency_s",)
_PARTS = ("requirements.ttft_s", "requirements.tpot_s")


def _says_latency(text: str, spot: Spot) -> bool:
    """ "Latency: 1 s to the first token, 30 ms afterwards": a title, where both parts are said behind it."""
    word = re.fullmatch(r"latency|延迟|时延", text[spot.start : spot.end].strip(), re.I)
    return spot.term.path in _WHOLE and word is not None and re.match(r"\s*[:：]", text[spot.end :]) is not None


def _is_its_verb(text: str, subject: Spot, spot: Spot) -> bool:
    """ "the first token shall be returned": what is returned is the token, not the answer."""
    latency = subject.term.path in ("requirements.ttft_s", "requirements.tpot_s") and subject is not spot
    return latency and subject.end <= spot.start and not text[subject.end : spot.start].strip()


def _beats(other: Spot, spot: Spot) -> bool:
    if other.start >= spot.end or spot.start >= other.end:
        return False
    return other.end - other.start > spot.end - spot.start


def mask_stats(text: str) -> str:
    """Percentiles carry numbers that are no amounts."""
    for _, words in STATS[:4]:
        text = re.sub(
            rf"(?<![A-Za-z0-9.])(?:{words})(?![A-Za-z0-9])", lambda m: "\x02" * len(m.group()), text, flags=re.I
        )
    return text


_QUOTIENT = re.compile(r"\d[^\d\n/÷=]{0,24}?[/÷]\s*(?P<sum>[\d.]+\s*=\s*[\d.]+)(?![\d.]*\s*[A-Za-z\u4e00-\u9fff/%])")


def amounts(text: str) -> list[Quantity]:
    """Every amount that is stated; of a division worked out ("40 heads / 5 = 8") only what is divided."""
    worked_out = [m.span("sum") for m in _QUOTIENT.finditer(text)]
    found = find_quantities(mask_stats(text))
    found = [q for q in found if not any(start <= q.start < end for start, end in worked_out)]
    return _said_twice(text, found)


def _said_twice(text: str, found: list[Quantity]) -> list[Quantity]:
    """ "sixteen (16) accelerators" is one amount."""
    out: list[Quantity] = []
    for q in found:
        closing = re.match(r"\s*[)）]", text[q.end :])
        same = out and out[-1].value == q.value and q.dimension == out[-1].dimension == "count"
        if same and closing and re.fullmatch(r"\s*[(（]\s*", text[out[-1].end : q.start]):
            out[-1] = replace(q, start=out[-1].start, end=q.end + closing.end())
        else:
            out.append(q)
    return out


_NOUNS = (
    ("tokens", re.compile(r"[\s-]*(?:个|多个?)?\s*(?:(?:new|input|output|prompt|generated|total|long|的|输入|输出|左右|上下)\s*)*(?:tokens?|toks?\b|words?\b|字|词元?)(?!\s*(?:/|per\b|每))", re.I)),
    ("load", re.compile(r"\s*(?:个|位|名|条|路)?\s*(?:(?:concurrent|simultaneous|parallel|active|online|并发|在线|单独的)\s*)*(?:requests?|users?|people|persons?|clients?|sessions?|chats?|conversations?|analysts?|customers?|colleagues?|engineers?|developers?|devs\b|lawyers?|doctors?|employees|students?|agents?|streams?|律师|医生|学生|请求|用户|会话|人(?!工)|并发|同事|客户|员工)", re.I)),
)  # fmt: skip
_TOKEN_PATHS = frozenset(
    {"workload.isl", "workload.osl", "workload.seq_len", "workload.max_context", "model.max_position_embeddings",
     "engine.limits.max_num_batched_tokens", "engine.limits.chunked_prefill_size", "engine.limits.block_size",
     "model.vocab_size"}
)  # fmt: skip
_LOAD_PATHS = frozenset(
    {"workload.concurrency", "workload.batch_size", "workload.request_rate", "engine.limits.max_num_seqs",
     "engine.limits.max_batch_size"}
)  # fmt: skip


# "6 million prompts" are that many, "2k prompts" are that long
_ITEMS = re.compile(
    r"\s*(?:条|个|份|篇)?\s*(?:prompts|documents|tickets|e?mails|articles|transcripts|jobs|records|items|samples|files|文档|数据|样本|语料)(?![A-Za-z])",
    re.I,
)
_MANY = 1e6


def noun_of(text: str, q: Quantity) -> str:
    """What `q` counts by the word right behind it: "tokens", "load" (requests, users, chats), or empty."""
    if q.dimension != "count":
        return ""
    if q.value >= _MANY and _ITEMS.match(text, q.end):
        return "load"
    return next((name for name, words in _NOUNS if words.match(text, q.end)), "")


def fits(term: Term, q: Quantity, in_label: bool, noun: str = "") -> bool:
    """Whether `q` may be an amount of `term`: by its unit and noun, or bare under a label that names the dimension."""
    if term.dimension == "power" or (term.needs and noun != term.needs):
        return False
    if q.dimension == term.dimension == "count" and (
        (noun == "tokens" and term.path not in _TOKEN_PATHS) or (noun == "load" and term.path not in _LOAD_PATHS)
    ):
        return False
    if in_dimension(q, term.dimension) is not None:
        return term.transform != "inverse" or q.dimension == "tokens/s"
    bare = q.dimension == "count"
    if term.dimension == "count":
        return False
    # "QPS 大约 3" needs no unit: the word is the unit
    return bare and (in_label or term.path == "workload.request_rate")


def pair(text: str, spots: list[Spot], quantities: list[Quantity], label_end: int) -> list[Pair]:
    """The best pairing: terms in order, each usually once (again only under another percentile or bound), some amounts free."""
    best: dict[int, tuple[float, tuple[Pair, ...]]] = {-1: (0.0, ())}
    first_in_value: dict[str, int] = {}
    for i, q in enumerate(quantities):
        first_in_value.setdefault(q.dimension, i)
    for i, q in enumerate(quantities):
        following = dict(best)
        for j, spot in enumerate(spots):
            score = _score(text, spot, q, label_end, i, quantities)
            if score is None or score < THRESHOLD:
                continue
            for last, (total, pairs) in best.items():
                if last > j:
                    continue
                again = [p for p in pairs if p.spot is spot]
                extra = score - (_reuse_cost(text, again[-1].quantity, q) if again else 0.0)
                if extra >= THRESHOLD and total + extra > following.get(j, (-1.0, ()))[0]:
                    following[j] = (total + extra, (*pairs, Pair(spot, q, extra)))
        best = following
    return list(max(best.values(), key=lambda b: b[0])[1])


def _reuse_cost(text: str, before: Quantity, q: Quantity) -> float:
    between = text[before.end : q.start]
    if len(stats_in(text[: before.start])) >= 2:
        return 0.0
    near = text[max(0, q.start - 24) : q.start] + text[q.end : q.end + 24]
    if stats_in(between) or stats_in(text[max(0, q.start - 12) : q.start]):
        return 0.0
    bounds = re.compile(
        r"\b(?:min|max|minimum|maximum|floor|up to|peak|typical|average|most|usual)|最|上限|下限|至少|平均|峰值", re.I
    )
    return 8.0 if bounds.search(near) else 45.0


def _goes_without_saying(text: str, q: Quantity, earlier: list[Quantity]) -> bool:
    """Whether the bare count `q` is in the tokens of a length named before it in the sentence."""
    bare = (
        q.dimension == "count"
        and q.value >= 16
        and re.match(r"\s*(?:[,.;，。；)）]|and\b|$)", text[q.end :]) is not None
    )
    return bare and any(noun_of(text, o) == "tokens" for o in earlier)


def _score(text: str, spot: Spot, q: Quantity, label_end: int, index: int, quantities: list[Quantity]) -> float | None:
    in_label = spot.end <= label_end and q.start >= label_end
    noun = noun_of(text, q)
    if spot.term.needs and not noun and _goes_without_saying(text, q, quantities[:index]):
        noun = spot.term.needs  # "reads 3.4k tokens and writes 520"
    if not fits(spot.term, q, in_label, noun) or (spot.start < q.end and q.start < spot.end):
        return None
    rate_word = spot.term.path == "workload.request_rate" and q.dimension == "count" and not in_label
    if rate_word and not _rate_word_before(text, spot, q):
        return None
    bonus = min(6.0, 0.3 * (spot.end - spot.start))
    if q.dimension != spot.term.dimension and q.dimension != "count":
        bonus -= 25.0
    if spot.term.path == "hardware.memory_bandwidth" and re.search(r"G?bit|Gb", q.unit):
        bonus -= 15.0
    if spot.start >= q.end:
        if spot.term.side == "pre" or (label_end > q.start and spot.start >= label_end):
            return None
        return _score_post(text, spot, q, bonus)
    if spot.term.side == "post" or (
        spot.term.side == "noun" and not in_label and not _NAMES_ITS_COUNT.fullmatch(text[spot.end : q.start])
    ):
        return None
    if spot.is_name:
        tail = re.match(r"\s*(?:张|块|片|颗|卡|台|x\b|×|gpus?\b|cards?\b)", text[q.end :], re.I)
        linked = re.fullmatch(
            r"\s*(?:NVL|SXM\d?|PCIe|\([^)]*\))?\s*[x×*]\s*|\s*[,，]?\s*(?:共|总共|合计)?\s*|\s*\x01*\s*\(?[x×*]|[\s(-]*\d+ ?G(?:i?B)?[\s)]*[\s\x01]*[x×*]\s*"
            + (r"|\s*[(（]\s*" if re.match(r"\s*[x×]\s*[)）]", text[q.end :]) else ""),  # "DGX H200 (1x)"
            text[spot.end : q.start],
            re.I,
        )
        return 92.0 if linked and (tail or re.search(r"[x×*]", text[spot.end : q.start])) else None
    return _score_pre(text, spot, q, bonus, in_label, index, quantities)


def _rate_word_before(text: str, spot: Spot, q: Quantity) -> bool:
    """ "QPS 3", "Requests/sec: 3": the word is the unit of the bare number behind it."""
    word, gap = text[spot.start : spot.end], text[spot.end : q.start]
    if spot.end > q.start or not _LINK.fullmatch(gap):
        return False
    return bool(
        re.fullmatch(r"qps|rps", word, re.I) or (re.search(r"[:：=]", gap) and re.search(r"/|\bper\b|每秒", word))
    )


_USUAL = re.compile(
    r"(?:typical(?:ly)?|usual(?:ly)?|mostly|most(?: of them)?(?: are| is)?|normally|(?:on )?average|averaging|mean|典型|通常|一般|平均)(?:值?[为是约]|\W|about|around)*$",
    re.I,
)


# "TTFT (avg) 700 ms": which statistic it is stands between the word and its amount
_STAT_ASIDE = re.compile(
    r"\s*[(（\[]\s*(?:\x02+|avg\.?|mean|average|typical|median|max(?:imum)?|min(?:imum)?|平均|均值|典型|最大|最小)\s*[)）\]]\s*",
    re.I,
)


def _score_post(text: str, spot: Spot, q: Quantity, bonus: float) -> float | None:
    gap = _STAT_ASIDE.sub(" ", text[q.end : spot.start])
    if _FILLER.fullmatch(gap) and "\n" not in gap:
        return 100.0 + bonus - len(gap) * 0.5
    if spot.term.side == "post" and spot.term.path == "workload.concurrency":
        return None if len(gap) > 44 or _BREAK.search(gap) or re.search(r"\d", gap) else 70.0 + bonus - 0.5 * len(gap)
    if spot.is_name or (spot.term.dimension == "count" and len(gap) > 14):
        return None
    breaks = len(_BREAK.findall(gap))
    return 52.0 + bonus - 1.2 * len(gap) - 22.0 * breaks


_INSIDE_ANOTHER = re.compile(r"\b(?:in|on|inside|across|from)\s+$", re.I)
_HARDWARE_COUNTS = frozenset(
    {"hardware.num_groups", "hardware.num_nodes", "hardware.device_count", "hardware.devices_per_node"}
)


def _score_pre(
    text: str, spot: Spot, q: Quantity, bonus: float, in_label: bool, index: int, quantities: list[Quantity]
) -> float | None:
    gap = _STAT_ASIDE.sub(" ", text[spot.end : q.start])
    between = sum(1 for o in quantities[:index] if o.start >= spot.end and o.dimension == q.dimension)
    if _LINK.fullmatch(gap):
        return 95.0 + bonus
    if in_label:
        earlier = sum(1 for o in quantities[:index] if fits(spot.term, o, True) and o.start >= spot.end)
        return max(80.0 - 14.0 * earlier, 30.0) + bonus
    breaks = len(_BREAK.findall(gap))
    if spot.term.path in _HARDWARE_COUNTS and _INSIDE_ANOTHER.search(gap):
        return None  # "72 GPUs in one NVLink domain"
    if spot.term.path in _HARDWARE_COUNTS and breaks and re.search(r"[A-Za-z\u4e00-\u9fff]{2}", gap):
        return None  # "24 OSD nodes, replication factor 3": another clause counts something else
    if spot.term.path in _TOKEN_PATHS and between and _USUAL.search(gap):
        return 60.0 + bonus - 0.3 * len(gap)  # "between 200 and 16000 tokens, typically 3000"
    return 78.0 + bonus - 0.7 * len(gap) - 14.0 * breaks - 10.0 * between
