"""Amounts that no word of their sentence claims: what the unit and the neighbours leave as the one meaning."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from agent.reading.facts import Candidate, Reading
from agent.reading.lexicon import (
    ACROSS_NODES,
    BIDIRECTIONAL,
    INSIDE_NODES,
    PER_NODE,
    PER_USER,
    PORTS,
    RESERVED,
    SHARED_LINK,
    SPARSE,
    TERMS,
    UNIDIRECTIONAL,
    compiled,
    search,
    stats_in,
)

if TYPE_CHECKING:
    from agent.reading.names import Name
    from agent.reading.scene import Scene
    from tools.units import Quantity

_DEVICES = next(t for t in TERMS if t.path == "hardware.device_count")


def read(scene: Scene, reading: Reading) -> list[Candidate]:
    """Amounts that no word claimed, where the unit and the neighbours leave one meaning."""
    used = {p.quantity.start for p in scene.pairs}
    out = []
    for q in scene.quantities:
        if q.start in used or (q.start < scene.label_end and scene.label_end):
            continue
        out += _LOOSE[q.dimension](scene, q) if q.dimension in _LOOSE else []
    return [*out, *_there_and_back(scene, used)]


_CACHED_PART = re.compile(r"\s*(?:tokens?\s*)?,?\s*of (?:which|them|that),?\s*(?:about |around )?$", re.I)


def _there_and_back(scene: Scene, used: set[int]) -> list[Candidate]:
    """ "each step ships 90k tokens of which 88k come from the cache, and emits 700 tokens": two lengths in a row, whatever the
    verbs are, are what goes in and what comes out; a part of the first that is cached is the share that hits."""
    if (
        any(p.spot.term.path in ("workload.isl", "workload.osl") for p in scene.pairs)
        or scene.label_end > scene.shift + 24
    ):
        return []
    free = [
        q
        for q in scene.quantities
        if q.start not in used and q.dimension == "count" and q.high is None and q.value >= 8
    ]
    cached = [
        (a, b) for a, b in pairwise(free)
        if _CACHED_PART.fullmatch(scene.masked[a.end : b.start]) and _REUSED.search(scene.text[b.end : b.end + 40])
    ]  # fmt: skip
    free = [q for q in free if not any(q is b for _, b in cached)]
    lengths = [
        q
        for q in free
        if re.match(r"\s*(?:tokens?|toks?)\b(?! (?:per|a|each|budget|window|limit))", scene.masked[q.end :], re.I)
    ]
    joined = len(lengths) == 2 and re.search(
        r"\b(?:and|then)\s+[a-z]+s?\s+(?:back |out |about |around )*$", scene.masked[: lengths[1].start], re.I
    )
    if not joined:
        return []
    paths = zip(("workload.isl", "workload.osl"), lengths, strict=True)
    out = [scene.candidate(path, int(q.value), q.start, q.end) for path, q in paths]
    for whole, part in cached:
        if whole is lengths[0] and part.value < whole.value:
            share = float(f"{part.value / whole.value:.6g}")
            out.append(scene.candidate("workload.prefix_hit_rate", share, part.start, part.end, origin="derived"))
    return out


_EVERY = re.compile(
    r"\b(?:one|a|an|a single|1) (?:request|query|call|prompt|job)s? (?:every|per|each|in)\s*(?:\x01*)\s*(?P<en>$)|每(?:隔)?(?P<zh>$)",
    re.I,
)


_BEGINS = re.compile(
    r"\bbefore (?:anything|something|the (?:text|answer|reply|output|response|words?)|(?:it|they|text|words?) )|\bshows? up\b|\bappears?\b|\bsilence\b|\bdead air\b|\bblank (?:screen|page)\b|\bspinner\b"
    r"|\bnothing (?:happens|appears|comes)\b|\bat the (?:start|beginning)\b|\b(?:mute|silent|quiet)\b|\bto (?:start|begin|react|respond)\b|\b(?:starts?|begins?|starting|beginning)\b|出字|没有动静|空白|开始(?:回|输|出|显)|起头",
    re.I,
)
_PER_TOKEN = re.compile(r"\b(?:per|each|every|between)\b.{0,12}\b(?:token|word)|每.{0,4}(?:token|字)", re.I)


def _seconds(scene: Scene, q: Any) -> list[Candidate]:
    """ "8 s before anything shows up", "6 seconds of silence at the start": the wait for the first token."""
    rate = _one_every(scene, q)
    value = q.high or q.value
    words = _clause_of(scene, q)
    if rate or not 0.02 <= value <= 120 or not _BEGINS.search(words) or _PER_TOKEN.search(words):
        return rate
    stats = stats_in(scene.text[scene.label_end :])
    stat = stats[0][1] if len({s for _, s in stats}) == 1 else "limit"
    return [scene.candidate(f"requirements.ttft_s.{stat}", value, q.start, q.end)]


def _one_every(scene: Scene, q: Any) -> list[Candidate]:
    """ "One request every 2 seconds" is a rate of 0.5 per second."""
    behind = re.match(r"\s*(?:钟)?(?:来|有|到达)?(?:一|1)\s*(?:个|条|次)(?:请求|查询|调用)", scene.text[q.end :])
    before = _EVERY.search(scene.text[: q.start])
    if not q.value or not (before and (before["en"] is not None or behind)):
        return []
    return [scene.candidate("workload.request_rate", float(f"{1 / q.value:.10g}"), q.start, q.end)]


def _near(scene: Scene, q: Any, before: int, after: int) -> str:
    return scene.masked[max(0, q.start - before) : q.start] + " " + scene.masked[q.end : q.end + after]


_OF_EACH = re.compile(
    r"\s*(?:of )?(?:v?ram\b|memory|hbm\w*|显存)?\s*(?:each\b|apiece|(?:per|/) ?(?:card|gpu|npu|device|gcd|die|chip|accelerator))",
    re.I,
)
_EACH_HAS = re.compile(
    r"(?:(?:每|单|各)[个]?[张块片颗卡]?卡?|per (?:card|gpu|device)|each)\s*(?:card|gpu|有|带|是|has|with|配)?\s*$", re.I
)
_ASIDE = re.compile(r"\s*(?:each|apiece|gpus?|cards?|卡|显卡)?\s*[(（,，]\s*", re.I)  # "8 L40S each (48 GB)"
# "eight H20 accelerators of 141 GB"
_DEVICES_OF = re.compile(r"(?:accelerators|gpus|cards|npus|devices|chips)\s+(?:of|with|having)\s*$", re.I)
_OF_THAT_KIND = re.compile(
    r"\s*(?:ones?\b|versions?\b|variants?\b|models?\b|editions?\b|skus?\b|flavou?rs?\b|的?版本?|款|(?:of )?HBM\w*)",
    re.I,
)
_HOST = re.compile(r"(?<!v)\bram\b|\bddr|(?<!显存)内存|\bdisk|\bssd|nvme|storage|\bhost\b|硬盘|\bcpu", re.I)


def _loose_bytes(scene: Scene, q: Any) -> list[Candidate]:
    """Memory of a device: beside its name, or "each", or beside its form factor; never that of a host."""
    behind = re.split(r"[,，;；(（]", scene.masked[q.end : q.end + 18])[0]
    if _HOST.search(scene.masked[max(0, q.start - 16) : q.start] + " " + behind) or not 1e9 <= q.value <= 2e12:
        return []
    if _NETWORK.search(_clause_of(scene, q)) and re.fullmatch(r"[Gg](?:igs?)?", q.unit):  # "four hundred gig per card"
        link = scene.candidate("hardware.inter_node_bandwidth", q.value / 8, q.start, q.end)
        return [
            replace(
                link,
                scope="device" if _OF_EACH.match(scene.masked, q.end) else "",
                doubt=f"{q.text} of network read as Gb/s, as NICs are named",
            )
        ]
    if q.value > 3.2e11:
        return []  # no device has so much
    if reserved(scene, q):
        return [scene.candidate("done.reserved_bytes", float(f"{q.value:.12g}"), q.start, q.end)]
    devices = [n for n in scene.names if n.kind == "device"]
    beside = any(
        -3 <= q.start - n.end <= 4
        or 0 <= n.start - q.end <= 3
        or _ASIDE.fullmatch(scene.masked[n.end : q.start])
        or re.fullmatch(r"-\x01+-", scene.masked[n.end : q.start])  # A800-SXM4-80G
        for n in devices
    )
    about = devices or compiled(_DEVICES.words).search(scene.masked)
    each = about and (_OF_EACH.match(scene.masked, q.end) or _EACH_HAS.search(scene.masked[: q.start]))
    each = each or (_DEVICES_OF.search(scene.masked[: q.start]) if devices else None)
    pronoun = (about and _OF_THAT_KIND.match(scene.text, q.end)) or re.match(r"\s*ones\b", scene.text[q.end :], re.I)
    form = re.search(r"(?:sxm\d?|pci-?e|oam|nvl\d*|hbm\w*)[\s,，/]*$", scene.text[: q.start], re.I)
    if not (beside or each or form or pronoun or _behind_a_count(scene, q)):
        return []
    return [scene.candidate("hardware.memory_bytes", float(f"{q.value:.12g}"), q.start, q.end)]


_NETWORK = re.compile(r"\bnetwork|\bnics?\b|\bfabric\b|infiniband|ethernet|\broce\b|网络|网卡|网口", re.I)
_COUNTS = ("hardware.device_count", "hardware.devices_per_node")
_AND_THEN = re.compile(
    r"\s*(?:x|×|[张块片颗])?\s*(?:gpus?|cards?|npus?|卡|\x01+)?\s*(?:(?:in )?each|apiece)?\s*[,，/]?\s*", re.I
)


def _behind_a_count(scene: Scene, q: Any) -> bool:
    """ "4 cards, 48 GB", "单机 8 卡 64GB": the size right behind a number of devices is that of each."""
    counts = [p.quantity for p in scene.pairs if p.spot.term.path in _COUNTS and p.quantity.end <= q.start]
    return bool(counts) and q.value <= 3e11 and _AND_THEN.fullmatch(scene.masked[counts[-1].end : q.start]) is not None


def reserved(scene: Scene, q: Any) -> bool:
    """Whether an amount of memory is what must stay free, or is another program's, in each device."""
    own = _clause_of(scene, q)
    label = scene.text[: scene.label_end] if scene.label_end <= q.start else ""
    return bool(search(RESERVED).search(own + " " + label))


_CUT = re.compile(r"[,，;；。()（）\n]|\.(?=\s)|\band\b|\bplus\b")


def _clause_of(scene: Scene, q: Any) -> str:
    return _CUT.split(scene.text[: q.start])[-1] + " \x00 " + _CUT.split(scene.text[q.end :])[0]


def _link_of(scene: Scene, q: Any) -> str:
    """The kind of link that the words of the clause place: the nearest phrase counts; empty where there is none."""
    clause = _clause_of(scene, q)
    middle = clause.index("\x00")
    places = (("hardware.inter_node_bandwidth", ACROSS_NODES), ("hardware.intra_node_bandwidth", INSIDE_NODES))
    found = [
        (min(abs(m.start() - middle), abs(m.end() - middle)), path)
        for path, w in places
        for m in search(w).finditer(clause)
    ]
    return min(found)[1] if found else ""


def _loose_bandwidth(scene: Scene, q: Any) -> list[Candidate]:
    """Of the link whose place its clause names; else of the memory if one is named before it; else of the network if it is
    an Ethernet speed or a cable between machines."""
    value = float(f"{q.value:.12g}")
    if path := _link_of(scene, q):
        clause = _clause_of(scene, q)
        tags = tuple(t for t, w in (("both", BIDIRECTIONAL), ("one", UNIDIRECTIONAL)) if search(w).search(clause))
        each = q.per == "device" or re.search(
            r"\beach\b|apiece|每卡|per (?:chip|card|gpu|npu|device|accelerator)", clause, re.I
        )
        shared = q.per == "node" or (not each and search(PER_NODE).search(clause) and path.startswith("hardware.inter"))
        scope = "device" if each else "node" if shared else ""
        return [replace(scene.candidate(path, value, q.start, q.end, tags=tags), scope=scope, factor=q.factor)]
    if re.search(r"hbm|vram|显存|memory", scene.text[: q.start], re.I):
        return [scene.candidate("hardware.memory_bandwidth", value, q.start, q.end)]
    if re.match(r"\w*bE\b", q.unit) or re.search(
        r"ethernet|infiniband|roce|\bnic|between (?:them|the two)|cable|\bports?\b|网口|网线|光模块|交换机",
        scene.text,
        re.I,
    ):
        scope = (
            "node" if search(SHARED_LINK).search(scene.text) or search(PER_NODE).search(_near(scene, q, 20, 40)) else ""
        )
        ports = ports_of_a_node(scene.text)
        scope = "device" if q.per == "device" else "node" if ports else scope
        link = scene.candidate("hardware.inter_node_bandwidth", value, q.start, q.end)
        return [replace(link, scope=scope, factor=max(q.factor, ports or 1))]
    return []


_REACHED = re.compile(
    r"reach\w*|achiev\w*|attain\w*|sustain\w*|usable|effective\w*|realistic\w*|in practice|实际|实测|可达|能?(?:达|跑)到|有效|能用",
    re.I,
)


_REUSED = re.compile(
    r"\bcach(?:ed|e)\b|\bprefix|\bre-?us(?:ed|able)\b|\b(?:shared|common|identical|the same) (?:between|across|by|with|among|to|in|for)\b|\bhits?\b|命中|复用|重复|前缀",
    re.I,
)


def _loose_fraction(scene: Scene, q: Any) -> list[Candidate]:
    if not 0 < q.value < 1:
        return []
    value = float(f"{q.value:.10g}")
    if _REUSED.search(_clause_of(scene, q)):
        return [scene.candidate("workload.prefix_hit_rate", value, q.start, q.end)]
    above = re.search(
        r"(?:above|over|more (?:\w+ )?than|beyond|off|from|of) (?:the |its )?(?:average|mean)|(?:超过|高于|高出|偏离).{0,6}(?:平均|均值)|平均(?:值|水平)?.{0,4}(?:高|多|以内)",
        scene.text,
        re.I,
    )
    above = above or re.search(
        r"differ|deviat|spread|相差|偏差|差异|差距|波动", scene.text[max(0, q.start - 40) : q.end], re.I
    )
    if above and re.search(r"gpu|card|device|memory|load|卡|显存|负载|设备", scene.text, re.I):
        return [scene.candidate("requirements.balance_epsilon", value, q.start, q.end)]
    if _REACHED.search(_near(scene, q, 24, 30)):
        earlier = [o for o in scene.quantities if o.end <= q.start and o.dimension in ("bytes/s", "flop/s")]
        path = {"bytes/s": "hardware.mbu", "flop/s": "hardware.mfu"}[earlier[-1].dimension] if earlier else ""
        if path:
            return [scene.candidate(path, value, q.start, q.end)]
    return _loose_share(scene, q)


def _loose_count(scene: Scene, q: Any) -> list[Candidate]:
    peak = re.search(r"\bpeak|\bburst|rush hour|busiest|高峰|峰值|忙时|大促", scene.text, re.I)
    if (
        peak
        and q.high is None
        and 1 < q.value <= 1000
        and re.match(r"\s*(?:倍|times\b|x\b|×|-?\s?fold\b)", scene.masked[q.end :], re.I)
    ):
        return [scene.candidate("workload.peak_factor", q.value, q.start, q.end)]
    if _OF_WHICH.search(scene.masked[: q.start]) and _for_a_token(scene, q):
        return [scene.candidate("model.num_experts_per_tok", int(q.value), q.start, q.end)]
    if _EACH_HOLDS.search(scene.masked[: q.start]) and re.match(r"\s*(?:[,.;，。；]|$)", scene.masked[q.end :]):
        return [scene.candidate("hardware.devices_per_node", int(q.value), q.start, q.end)]
    if _THE_OTHER_LENGTH.search(scene.masked[: q.start]) and _second_length(scene, q):
        return [scene.candidate("workload.osl", int(q.value), q.start, q.end)]
    if path := _typical(scene, q):
        return [scene.candidate(path, int(q.value), q.start, q.end)]
    if re.search(r"[bB]$", q.text) and q.value >= 1e8 and scene.statement.kind != "leaf":
        return [scene.candidate("model.declared_parameters", q.value, q.start, q.end)]
    return []


# "servers come with 8", of devices named before
_EACH_HOLDS = re.compile(
    r"\b(?:servers?|nodes?|hosts?|machines?|instances?|boxes|chassis) (?:always )?(?:comes? with|have|has|holds?|carr(?:y|ies)|takes?)\s*$",
    re.I,
)
_THE_OTHER_LENGTH = re.compile(
    r"[,;，；]\s*(?:and )?(?:the|its|a|an|each|every)\s+[a-z]+\s+(?:(?:is|has|are|about|around|of|~)\s*)*$", re.I
)


def _second_length(scene: Scene, q: Any) -> bool:
    """ "A transcript is 9,500 tokens, the recap 450": what is made of the input, in tokens like it."""
    lengths = {p.spot.term.path for p in scene.pairs if p.quantity.end <= q.start}
    ends = re.match(r"\s*(?:tokens?\s*)?(?:[,.;，。；]|$)", scene.masked[q.end :])
    return "workload.isl" in lengths and "workload.osl" not in lengths and ends is not None and q.value >= 8


_OF_WHICH = re.compile(r"(?:\bof (?:which|these|those|them)|其中)\s*$", re.I)
_FOR_A_TOKEN = re.compile(
    r"\s*(?:个)?(?:[a-z]+\s+){0,3}?(?:fires?\b|active\b|activated|selected|chosen|routed|used|per token|each token|被?激活|被选)",
    re.I,
)


def _for_a_token(scene: Scene, q: Any) -> bool:
    """ "96 routed experts of which 6 fire per token"."""
    experts = any(p.spot.term.path == "model.num_experts" and p.quantity.end <= q.start for p in scene.pairs)
    return experts and _FOR_A_TOKEN.match(scene.text, q.end) is not None


_TYPICALLY = re.compile(
    r"[(（,，]\s*(?:(?:but|and|is)\s+)?(?:typically|usually|normally|mostly|(?:on )?average|mean|avg\.?|通常|平均|一般|典型)\s*(?:about|around|约|大约|值)?\s*[:：]?\s*$",
    re.I,
)


def _typical(scene: Scene, q: Any) -> str:
    """ "each 6000 tokens maximum (typically 2500)": the length that the amount before it bounds; empty for any other."""
    before = [p for p in scene.pairs if p.quantity.end <= q.start]
    path = before[-1].spot.term.path if before else ""
    typical = q.high is None and float(q.value).is_integer() and _TYPICALLY.search(scene.masked[: q.start])
    return path if path in ("workload.isl", "workload.osl") and typical else ""


def _loose_flops(scene: Scene, q: Any) -> list[Candidate]:
    path = f"hardware.peak_flops.{flops_dtype(scene, q.start, q.end)}"
    return [scene.candidate(path, q.value, q.start, q.end, tags=_sparse(scene, q))]


def _loose_requests(scene: Scene, q: Any) -> list[Candidate]:
    return [scene.candidate("workload.request_rate", float(f"{q.value:.12g}"), q.start, q.end)] if q.value > 0 else []


def _sparse(scene: Scene, q: Any) -> tuple[str, ...]:
    return ("sparse",) if search(SPARSE).search(scene.text[max(0, q.start - 24) : q.end + 24]) else ()


def _touches(scene: Scene, name: Name, own: tuple[int, int]) -> bool:
    """Whether a name stands right beside [start, end), no comma between."""
    between = scene.text[name.end : own[0]] if name.end <= own[0] else scene.text[own[1] : name.start]
    return len(between) <= 2 and not re.search(r"[,，;；、]", between)


def flops_dtype(scene: Scene, start: int, end: int, own: tuple[int, int] | None = None) -> str:
    """The dtype that a peak in [start, end) is given for: in the label, or the nearest one beside it; else empty."""
    beside = [n for n in scene.names if n.kind == "dtype" and own and _touches(scene, n, own)]
    if len(beside) == 1:
        return str(beside[0].value)  # "FP16 算力 400 TFLOPS，INT8 800 TOPS"
    near = [
        n
        for n in scene.names
        if n.kind == "dtype" and (min(abs(n.end - start), abs(n.start - end)) < 22 or n.end <= scene.label_end)
    ]
    return min(near, key=lambda n: min(abs(n.end - start), abs(n.start - end))).value if near else ""


def _loose_share(scene: Scene, q: Any) -> list[Candidate]:
    """ "No more than 90% of GPU memory may be used", "leave 10% of memory free"."""
    if not re.search(r"memory|vram|显存", scene.text, re.I):
        return []
    free = re.search(r"free|reserve|headroom|spare|余量|空闲|预留|保留|留出?", scene.text, re.I)
    used = re.search(r"\bus(?:e|ed|age)\b|occup|consum|占用|使用|利用", scene.text, re.I)
    value = q.value if free else 1 - q.value
    rounded = float(f"{value:.10g}")
    return [scene.candidate("requirements.memory_reserve", rounded, q.start, q.end)] if free or used else []


def counted_tokens(words: str) -> str:
    """Which tokens a throughput counts by its words: output, input, total; empty where they do not say."""
    low = words.lower()
    if re.search(
        r"input\s*(?:\+|and|&|/)\s*output|输入\s*(?:\+|和|加|与)\s*输出|total (?:tokens?|tok)\b|in\s*\+\s*out|prompt\s*(?:\+|and)\s*(?:completion|output|generation)|总 ?token",
        low,
    ):
        return "total"
    if re.search(r"\boutput|generat|decod|输出|生成|解码", low):
        return "output"
    return "input" if re.search(r"\binput|prefill|prompt|输入|预填充", low) else ""


def _loose_rate(scene: Scene, q: Any) -> list[Candidate]:
    around = scene.text[max(0, q.start - 24) : q.end + 24]
    base = scene.candidate("requirements.throughput_total.limit", q.value, q.start, q.end)
    if q.per == "user" or search(PER_USER).search(around):
        stat = _stat_behind(scene, q)
        return (
            [replace(base, path=f"requirements.tpot_s.{stat}", value=float(f"{1 / q.value:.10g}"))] if q.value else []
        )
    metric = "throughput_per_device" if q.per == "device" else "throughput_total"
    counts = counted_tokens(q.text + scene.text[q.end : q.end + 20])
    out = [replace(base, path=f"requirements.{metric}.counts", value=counts)] if counts else []
    if q.per == "device" or re.search(
        r"\b(?:total|overall|aggregate|altogether|in all|cluster|system)\b|总|合计|整体|集群|系统", scene.text, re.I
    ):
        return [replace(base, path=f"requirements.{metric}.limit"), *out]
    return [replace(base, doubt=f"{base.stated_as} {UNSCOPED}"), *out]


def _stat_behind(scene: Scene, q: Any) -> str:
    """ "30 tok/s/user at p50" is a bound of the median."""
    joint = re.match(r"\s*[(（,，]?\s*(?:at |for |in )?(?:the )?", scene.text[q.end :])
    start = q.end + (joint.end() if joint else 0)
    found = stats_in(scene.text[start : start + 16])
    return found[0][1] if found and found[0][0] == 0 else "limit"


UNSCOPED = "does not say per what; read as the total"
_LOOSE = {
    "bytes": _loose_bytes,
    "bytes/s": _loose_bandwidth,
    "fraction": _loose_fraction,
    "count": _loose_count,
    "s": _seconds,
    "flop/s": _loose_flops,
    "requests/s": _loose_requests,
    "tokens/s": _loose_rate,
}


_NOT_WORKING = re.compile(
    r"\s*(?:[张块台个片颗](?:卡)?|cards?|gpus?|npus?|nodes?|servers?|boxes|of (?:them|which|the \w+))?\s*(?:is|are|has|have)?"
    r"\s*(?:currently|still|now|already|目前|现在|暂时|已经?|都)?\s*(?:坏|故障|损坏|报废|掉卡|挂了|failed|failing|broken|faulty|dead\b|down\b"
    r"|defective|out of (?:order|service)|not working|in repair|being repaired|under rma)",
    re.I,
)
_NOT_COUNTED = re.compile(
    r"\b(?:is|are) (?:not|never) (?:counted|included|ours|part of)\b|\b(?:does|do) not count\b|\bis excluded\b|\bstays? with\b|不算|不参与|不计入?|除外|不在其中",
    re.I,
)
_BOXES = re.compile(r"\s+(?:\x01+)(?:\s*\(?\d+ ?GB?\)?)?\s+(?:boxes|servers|machines|nodes|hosts|workstations)\b", re.I)


_FEW = {
    "one": 1,
    "single": 1,
    "一": 1,
    "单": 1,
    "two": 2,
    "dual": 2,
    "二": 2,
    "两": 2,
    "双": 2,
    "三": 3,
    "four": 4,
    "四": 4,
    "eight": 8,
    "八": 8,
}


def ports_of_a_node(text: str) -> int | None:
    """Network ports that the devices of a server share: "two ports per server", 每台两口. None where none are counted."""
    found = search(PORTS).search(text)
    if found is None:
        return None
    word = (found["en"] or found["zh"]).lower()
    return int(word) if word.isdigit() else _FEW[word]


def not_working(scene: Scene, q: Quantity) -> bool:
    """Whether a count is of devices that are said not to work ("one of which is broken", 有一张坏了): no size of the cluster."""
    clause = re.split(r"[,，;；。()（）\n]|\.(?=\s|$)", scene.text[q.end :])[0]
    return bool(_NOT_WORKING.match(scene.masked, q.end) or _NOT_COUNTED.search(clause))


_OF_CARDS = re.compile(
    r"\s+\d+[ -]?(?:x|gpus?|npus?|cards?|卡)[ -]*(?:\x01+)?\s*(?:boxes|servers|machines|nodes|hosts|workstations)\b",
    re.I,
)
_OF_THEM = re.compile(r"\s+(?:of (?:them|these|those)|such)\b", re.I)
_MACHINES_BEFORE = re.compile(
    r"\b(?:boxes|servers|machines|nodes|hosts|workstations)\b[\s,;:(–—-]*(?:we have |there are )?$", re.I
)


def counts_boxes(scene: Scene, q: Quantity) -> bool:
    """ "five L40S boxes", "two 8-GPU servers" and "8xH100 nodes, 4 of them" count nodes; "8x L40S boxes" are boxes of eight."""
    if _BOXES.match(scene.masked, q.end) or _OF_CARDS.match(scene.masked, q.end):
        return True
    return bool(_OF_THEM.match(scene.masked, q.end) and _MACHINES_BEFORE.search(scene.masked[: q.start]))
