"""Degrees as papers write them: "TP 8 × PP 2", "8-way tensor parallelism", "EP 16 on 16 devices", "张量并行 8"."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from agent.reading.paper_schedule import microbatches, symbols_of
from agent.reading.paper_text import NUMBER, whole
from tools.spec.base import ToolError

_DEV = r"(?:GPUs?|NPUs?|DCUs?|devices?|cards?|ranks?|accelerators?|chips?|卡|设备|加速卡|处理器)"
_PAR = r"[- ]?parallel(?:ism|ity|i[sz]ation)?"
AXES: tuple[tuple[str, str], ...] = (
    # longer names first: "expert tensor parallelism" is no "tensor parallelism"
    ("etp", rf"ETP|--expert-tensor-parallel-size|expert[- ]tensor{_PAR}|tensor{_PAR} (?:inside|within|of) (?:the |each )?experts?|专家张量并行"),
    ("attn_dp", rf"DP[- ]attention|attention[- ](?:DP|data{_PAR})|data[- ]parallel attention|attn[_ -]dp|注意力数据并行"),
    ("dcp", rf"DCP|decode[- ]context{_PAR}|KV[- ]?parallel(?:ism)?|KVP|解码上下文并行"),
    ("ulysses", rf"(?:deepspeed[- ])?ulysses(?:[- ](?:sequence{_PAR}|SP|attention))?|(?:sequence[- ]head|head[- ]sequence|heads?[- ]for[- ]sequence)[- ]exchange|the exchange"),
    ("ring", r"ring[- ](?:self[- ])?attention|ring[- ]SP|rings?(?= (?:of|over|across|among|between) |\s*[=:]?\s*\d)|环形注意力|环注意力"),
    ("cp", rf"CP|context{_PAR}|上下文并行"),
    ("sp", rf"SP|(?:megatron )?sequence{_PAR}|序列并行"),
    ("tp", rf"TP|--(?:tensor-parallel-size|tp(?:-size)?)|-tp|tensor(?:[- ]model)?{_PAR}|张量(?:模型)?并行"),
    ("pp", rf"PP|--(?:pipeline-parallel-size|pp(?:-size)?)|-pp|pipeline(?:[- ]model)?{_PAR}|流水线?并行|pipeline(?= (?:over|of|across|with)|\s*\d)|流水线"),
    ("ep", rf"EP|--(?:expert-parallel-size|ep(?:-size)?)|expert{_PAR}|专家并行"),
    ("dp", rf"DP|--(?:data-parallel-size|dp(?:-size)?)|-dp|data{_PAR}|数据并行"),
)  # fmt: skip
_NAME = "|".join(rf"(?P<{a}>(?<![A-Za-z])(?:{w})(?![A-Za-z]))" for a, w in AXES)
_GLUED = r"(?P<g_axis>TP|PP|DP|EP|CP|SP|ETP|DCP)[-_]?(?P<g_n>\d+)(?![\d.])"
_AFTER = re.compile(
    rf"\s*(?:[(（](?:ETP|DCP|TP|PP|EP|CP|SP|DP)[)）])?\s*(?:(?:degree|size|world size|group size|width|attention|exchange)s?\s*)?(?:度|大小)?\s*(?:[=:：]|≥|>=|of at least|at least|of degree|with degree|of size|with size|degree|of|is|set to|为|取|是)?\s*"
    rf"(?:(?:over|across|among|with|在)\s*)?(?:all\s+)?(?:of\s+)?(?:the\s+)?(?:P|N|G|D|n|K|p)?\s*(?:=\s*)?(?P<n>{NUMBER})(?!\.\d|\d)(?!\s*[-]?(?:layers?|heads?|matri|experts? (?:per|on)|times|%))(?P<what>\s*(?:nodes?|servers?|machines?|节点))?",
    re.I,
)
_BEFORE = re.compile(rf"(?<![\d./])(?P<n>{NUMBER})\s*(?:[-–]?\s*way|[-–](?:fold|degree)|路|×|-)?\s*$", re.I)
WITHOUT = re.compile(
    r"\b(?:without|w/o|no|instead of|rather than|not using|optional(?:ly)?)\s[^.;,，。；)]*|(?:不使用|没有|不采用|无需)[^。；，,)]*"
    r"|[^.;。；]*\b(?:only if|if necessary|if needed|where necessary|in case)\b[^.;。；]*",
    re.I,
)
_WAY = re.compile(rf"(?P<n>{NUMBER})\s*(?:[-–]?\s*way|路)[ -]*$", re.I)
_STAGED = re.compile(
    rf"(?P<n>{NUMBER})[ -]?(?:pipeline )?(?:stages(?! (?:hold|own))|stage(?=\s+pipelin|\s*[.;,)]|\s*$))|(?P<n1>{NUMBER})\s*个?(?:流水线?)?(?:阶段|级)",
    re.I,
)
_WITHIN = re.compile(
    r"\s*(?:is (?:kept |used )?)?(?:within|inside|in|在)\s*(?:a|each|the|every|one|单)?\s*(?:node|server|节点)内?", re.I
)
_ACROSS = re.compile(r"\s*(?:across|between|over|跨)\s*(?:the\s+|all\s+)?(?:nodes|servers|节点)", re.I)
_DEVICES = re.compile(
    rf"(?<![A-Za-z\d.])(?P<n>{NUMBER})\s*(?:[×x]\s*)?(?:(?:NVIDIA|Nvidia|AMD|Huawei|Ascend|H100|H200|H800|H20|A100|A800|B200|GB200|MI300X|910[BC]|80|40|GB|SXM\d?|[-])\s*){{0,4}}{_DEV}(?![A-Za-z])(?!\s*(?:per|each|/|in (?:each|a) (?:stage|group|node)))"
    rf"|(?:on|across|over|using|with) (?:all )?(?P<n1>\d+)\s*(?:x\s*)?(?:H100|H200|H800|H20|A100|A800|B200|MI300X|910[BC]|L40S?|V100|RTX ?\d+)s?\b(?!\s*per)"
    rf"|(?<![A-Za-z\d.])(?P<n4>\d+)\s*(?:[×x]\s*)?(?:NVIDIA )?(?:H100|H200|H800|H20|A100|A800|B200|MI300X|910[BC]|L40S?|V100)s?\b(?!\s*(?:per|each))|(?P<n2>{NUMBER})\s*(?:张|块|个|颗)\s*(?:[\w ]{{0,12}}?)?{_DEV}|{_DEV}(?:数|count)?\s*[:=]\s*(?P<n3>\d+)",
    re.I,
)
_TOTAL = re.compile(
    rf"\btotal(?: number)?(?: of)?(?: {_DEV})?\s*(?:is|are)?\s*[:=]?\s*(?P<n>\d+)(?=\s*{_DEV})|(?!)", re.I
)
"""A sum that is called one: "Total: 40 GPUs"."""
_NOT_TOTAL = re.compile(
    r"(?:each|every|per|每)\b[^.;。；]{0,30}\b(?:stages?|groups?|replicas?)\b[^.;。；]{0,30}$|(?:(?:each|every)(?: (?:on|with|of|using|over))?|per|(?:mapped|assigned|bound|goes|given|sent) (?:on)?to|groups? of|stages? of|node of|nodes of|每)\s*(?:of\s*)?(?:个|组|台)?\s*$",
    re.I,
)
_EXPERTS_PER = re.compile(
    rf"experts? per (?:\w+ )?{_DEV}\s*[:=]\s*(?P<n3>{NUMBER})|(?P<n>{NUMBER}|an?|each|every)\s+(?:whole |complete |routed )?experts?\s*(?:(?:each |per )?layer )?(?:per|on each|on every|on one|on its own|on a device of its own|to each|to every|a|/)\s*(?:layer (?:per|on each)\s*)?{_DEV}"
    rf"|(?:each|every|one|a single) {_DEV}\s+(?:holds?|hosts?|owns?|stores?|keeps?|has|serves|contains)\s+(?:exactly |only )?(?P<n1>{NUMBER}|an?)\s+(?:whole |complete |routed |different |distinct )?experts?"
    rf"|每(?:个|张|块)?{_DEV}\s*(?:上|只)?(?:放置|存放|承载|持有|部署|放)?\s*(?P<n2>{NUMBER})\s*个(?:完整)?(?:路由)?专家|(?P<own>every expert (?:gets |has )?(?:on )?an? (?:own )?device(?: of its own)?|give every expert a {_DEV} of its own|expert e (?:lives|resides|is placed) on {_DEV} e|每个专家(?:独占|单独占用)(?:一|1)?[个张块]?{_DEV}|(?:单独|各占)一[张个块]{_DEV})",
    re.I,
)
_STAGE_LIST = re.compile(
    r"(?:(?:stages?|partition\w*|split|阶段)(?:\s*(?:of|with|hold\w*|have|having|into|sizes?|分别(?:为|有)|[:：]))*\s*[\[(]?\s*(?P<l>\d{1,3}(?:\s*(?:,\s*and|,|，|、|\+|/|and|和)\s*\d{1,3}){1,63})\s*[\])]?\s*(?:layers|层)|[\[(]\s*(?P<l1>\d{1,3}(?:\s*,\s*\d{1,3}){1,63})\s*[\])]\s*(?:layers|层)?|layers (?:are )?(?:split|divided|dealt out|cut) (?P<l4>\d{1,3}(?:\s*[/+,]\s*\d{1,3}){1,63})|(?P<l3>\d{1,3}(?:\s*,\s*\d{1,3}){1,62}\s*,?\s*(?:and|和)\s*\d{1,3})\s*(?:layers|层)|(?P<l2>\d{1,3}(?:\s*[+/]\s*\d{1,3}){1,63})\s*(?:layers|层))",
    re.I,
)
_PER_STAGE = re.compile(
    rf"(?P<n>{NUMBER})[ -]?(?:consecutive |contiguous |transformer )*layers?\s*(?:per|on each|in each|to each|for each|on every|a)\s*(?:pipeline )?(?P<w>stage|{_DEV})|每\s*(?:个|张|块)?\s*(?:流水线?)?(?P<w1>阶段|级|{_DEV})\s*(?:上|各|只|仅)?(?:放置|承载|持有|负责|处理|部署|存放|存储|分配|放|存|有)?\s*(?P<n1>{NUMBER})\s*个?(?:连续)?(?:的)?层|(?:each|every) (?P<w2>stage|{_DEV}) (?:holds|hosts|owns|has|stores|runs|processes|keeps|gets|takes|receives|carries)\s+(?:exactly |only |just |precisely |a total of )?(?P<n2>{NUMBER}|an?|a single) (?:whole |full |complete |consecutive |contiguous )?layers?",
    re.I,
)
_SLICES = re.compile(
    rf"heads?[^.;。；]{{0,60}}?(?:into|划分为|分成|分为|切分为)\s*(?P<n>{NUMBER}|[A-Za-z])\s*(?:groups?|组)[^.;。；]{{0,160}}?(?:into|划分为|分成|分为|切分为)\s*(?P<m>{NUMBER}|[A-Za-z])\s*(?:slices?|parts?|segments?|shards?|pieces?|chunks?|片|份|段|块)"
    rf"|(?P<n1>\d+)\s*(?:head[- ]?)groups?\s*(?:[×x*]|and|with|by)\s*(?P<m1>\d+)\s*(?:d_?k |dimension |intra-head )?(?:slices?|parts?|segments?|shards?|片)",
    re.I,
)
_SP_ON = re.compile(
    rf"(?:with|\+|and|plus|,|&|以及|加|和)\s*(?:megatron\s+)?(?:sequence{_PAR}|SP|序列并行)(?![A-Za-z])(?!\s*(?:=|of|over|\d))",
    re.I,
)
_EXPERT_TP = re.compile(
    r"experts? (?:are |is |themselves )?(?:sliced|split|sharded|partitioned) (?:by|with|over|using) (?:TP|tensor)|TP[- ]sliced experts?|专家[^。；]{0,12}张量并行切分",
    re.I,
)


@dataclass(slots=True)
class Degrees:
    """What a clause says. `axes` maps an axis to its degree, None where it is named without one."""

    axes: dict[str, int | None] = field(default_factory=dict)
    devices: int | None = None
    experts_per_device: int | None = None
    layers_per_stage: tuple[int, ...] | None = None
    layers_each: int | None = None
    """Layers of every stage (or device), where one number is given."""
    slices: tuple[int | None, int | None] | None = None
    """Head groups, slices of d_k."""
    slice_symbols: tuple[str, str] = ("", "")
    """The letters that stand for them: "into n groups … into m segments"."""
    sp: bool = False
    experts_sliced: bool = False
    microbatches: int | None = None
    bindings: dict[str, int] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not (self.axes or self.experts_per_device or self.layers_each or self.layers_per_stage or self.slices)


@cache
def _axis_pattern() -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z]){_GLUED}|{_NAME}", re.I)


def axis_spans(text: str) -> Iterator[tuple[str, int, int]]:
    """Every parallel axis that `text` names: (axis, start, end). Two-letter names count in capitals only."""
    for m in _axis_pattern().finditer(text):
        if m["g_axis"]:
            if m["g_axis"].isupper() or m["g_axis"].islower():
                yield m["g_axis"].lower(), m.start(), m.start("g_n")
            continue
        axis = next(a for a, _ in AXES if m[a])
        word = m[axis]
        short = len(word) <= 3 and word.isalpha() and word.isascii() and not word.isupper()
        if short and not (word.islower() and re.match(r"\s?[=:]?\s?\d", text[m.end() :])):
            continue
        yield axis, m.start(), m.end()


def parse_degrees(text: str, *, per_node: int | None = None, num_nodes: int | None = None) -> Degrees:
    """Everything a clause says about how a model is dealt out; what it says to do without does not count."""
    text = _PRODUCT.sub(lambda m: " " * len(m[0]), stated(text))
    d = Degrees()
    d.bindings = symbols_of(text)
    taken: list[tuple[int, int]] = []
    spans = list(axis_spans(text))
    in_nodes: dict[str, int] = {}
    for axis, start, end in spans:
        value, used = _degree_at(text, start, end, spans, per_node, num_nodes)
        if used:
            taken.append(used)
            if per_node and re.search(r"nodes?|servers?|machines?|节点", text[used[0] : used[1]], re.I):
                in_nodes[axis] = (value or 0) // per_node
        if value is not None or axis not in d.axes:
            d.axes[axis] = value if value is not None else d.axes.get(axis)
    if per_node and d.axes.get("tp") == per_node:  # "a ring of 4 nodes, TP 8 within each": the ring counts nodes
        d.axes |= {a: n for a, n in in_nodes.items() if a != "tp" and n > 1}
    _stages(text, d)
    _experts(text, d)
    _sliced(text, d)
    taken += [(m.start("m"), m.end("m")) for m in _STAGES_BY.finditer(text)]
    d.devices = _devices(text, taken)
    d.sp = ("sp" in d.axes and d.axes["sp"] is None) or bool(_SP_ON.search(text))
    d.experts_sliced = bool(_EXPERT_TP.search(text))
    d.microbatches = microbatches(text)
    copies = _copies(text, num_nodes)
    if copies and not d.axes.get("dp"):
        d.axes["dp"] = copies
    elif copies and d.axes.get("ep") and "attn_dp" not in d.axes and _fills_group(d):
        d.axes |= {"attn_dp": d.axes["dp"], "dp": copies}  # "two replicas of (TP 4 × DP 2, EP 8)"
    return d


def _fills_group(d: Degrees) -> bool:
    """tp · dp = etp · ep: the data parallelism that is named is attention's, inside the experts' group."""
    a = {k: v or 1 for k, v in d.axes.items()}
    return a.get("tp", 1) * a.get("cp", 1) * a["dp"] == a.get("etp", 1) * a["ep"]


_PRODUCT = re.compile(
    r"(?<![A-Za-z])(?:[A-Z]{1,3}P|[A-Z])(?:\s*[×x*·]\s*(?:[A-Z]{1,3}P|[A-Z]))+\s*=\s*\d+(?!\s*[×x*]\s*\d)"
)
"""An equation between degrees ("TP × PP = 16"): no degree by itself."""
_COPIES = re.compile(
    rf"(?<![\d.A-Za-z])(?P<n>{NUMBER})\s*(?:independent |identical |model |data[- ]parallel |prefill(?:ing)? |decod(?:e|ing) |full |whole )*(?:replicas|copies of the (?:model|network)|instances|个(?:独立)?(?:副本|实例))(?![A-Za-z])"
    rf"|(?:replicas|instances|副本数?|实例数?)\s*(?:=|:|：|为)\s*(?P<n1>{NUMBER})",
    re.I,
)
_NODE_IS_COPY = re.compile(
    r"(?:each|every|one) (?:node|server|machine|host|box)\s+(?:is|holds|runs|hosts|forms|serves as)\s+(?:an? |one )?(?:\w+ )?(?:replica|(?:full |whole |complete )?copy of the (?:model|network)|instance)|(?:one|a) (?:replica|instance|copy) (?:per|on each|in each|on every) (?:node|server|machine)|每(?:个|台)?(?:节点|服务器|机器)(?:为|是|放置|部署|运行)?一个(?:完整|独立)?(?:的)?(?:模型)?(?:副本|实例)",
    re.I,
)


def _copies(text: str, num_nodes: int | None) -> int | None:
    """Whole copies of the model: "2 replicas", "every machine is a replica of its own"."""
    if _NODE_IS_COPY.search(text):
        return num_nodes
    m = _COPIES.search(text)
    try:
        return whole(m["n"] or m["n1"]) if m else None
    except ToolError:
        return None


def stated(text: str) -> str:
    """`text` with what is done without blanked out; offsets stay."""
    return WITHOUT.sub(lambda m: " " * len(m[0]), text)


def _degree_at(
    text: str, start: int, end: int, spans: list[tuple[str, int, int]], per_node: int | None, num_nodes: int | None
) -> tuple[int | None, tuple[int, int] | None]:
    """(degree of the axis named at start..end, where its number stands)."""
    if (m := _WITHIN.match(text, end)) and per_node:
        return per_node, (m.start(), m.end())
    if (m := _ACROSS.match(text, end)) and num_nodes:
        return num_nodes, (m.start(), m.end())
    if way := _WAY.search(text[:start]):
        return whole(way["n"]), (way.start("n"), way.end("n"))
    m = _AFTER.match(text, end)
    if m:
        try:
            value = whole(m["n"])
        except ToolError:
            return None, None
        if m["what"]:
            return (value * per_node if per_node else None), (m.start("n"), m.end())
        return value, (m.start("n"), m.end("n"))
    before = _BEFORE.search(text[:start])
    if before and not any(s < start and e <= before.start("n") and before.start("n") - e <= 3 for _, s, e in spans):
        try:
            return whole(before["n"]), (before.start("n"), before.end("n"))
        except ToolError:
            return None, None
    return None, None


_STAGES_BY = re.compile(
    rf"(?P<n>{NUMBER})\s*(?:pipeline )?(?:stages|groups|级|阶段)\s*(?:by|[×x*]|of|,? each (?:of|with|on)|，?每(?:级|段|个阶段))\s*(?P<m>{NUMBER})\s*(?:张)?{_DEV}",
    re.I,
)
_LAYER_RANGE = re.compile(
    r"(?:(?:layers?|blocks?|层)\s*|(?<=[,;，；、]\s)|(?<=[,;，；、])|(?<=and\s))(?P<a>\d{1,3})\s*(?:–|-|—|−|~|to|through|至|到)\s*(?P<b>\d{1,3})(?=\s*(?:层|on|in|to|at|go|are|run|live|→|->|:|[(（,，;；.。]|and\b|$|放|在|于))",
    re.I,
)
_LAYERS_ON = re.compile(
    rf"(?:(?P<times>{NUMBER})\s*个[^,，;；。]{{0,14}}[段级]各|each of the (?P<times1>{NUMBER}) [\w -]{{0,20}}stages (?:holds |gets |has |with )?)\s*(?P<n2>\d{{1,3}})\s*(?:layers|层)?"
    rf"|(?P<n>{NUMBER})\s*(?:transformer |decoder )?(?:layers|blocks) (?:on|in|at|to|for) (?:the |stage |each )"
    rf"|(?:[段级]|stage)\s*(?:[A-Z]\s+)?(?:有|为|放|分配|承担|gets|holds|has|takes|:|：)?\s*(?P<n1>\d{{1,3}})\s*(?:layers|层)",
    re.I,
)


_HELD_BY = re.compile(
    rf"\b(?:box|node|machine|stage|server|host|group)(?: \w)?,? (?:(?:takes|gets|holds|has|hosts|runs|receives|with|carries)\s+)?(?P<n>{NUMBER})(?! ?(?:GPUs|devices|cards|stages|way))(?:\s*layers)?(?=\s*(?:[,;.(]|and\b|on\b|$))",
    re.I,
)


def _layers_by_range(text: str) -> tuple[int, ...] | None:
    """ "Blocks 1–3 on the first GPU, 4–6 on the second": runs that follow each other from the first layer on."""
    runs = [(int(m["a"]), int(m["b"])) for m in _LAYER_RANGE.finditer(text)]
    follows = all(b[0] == a[1] + 1 for a, b in itertools.pairwise(runs))
    if len(runs) < 2 or runs[0][0] not in (0, 1) or not follows:
        return None
    return tuple(b - a + 1 for a, b in runs)


def _layers_listed(text: str) -> tuple[int, ...] | None:
    """ "54 layers on the H100 stage and 26 layers on the A100 stage": one number after the other."""
    out: list[int] = []
    for m in _LAYERS_ON.finditer(text):
        times = m["times"] or m["times1"]
        out += [whole(m["n2"])] * whole(times) if times else [whole(m["n"] or m["n1"])]
    if not all(out):
        return None
    if len(out) > 1 or not re.search("layers", text):
        return tuple(out) if len(out) > 1 else None
    held = [whole(m["n"]) for m in _HELD_BY.finditer(text)]
    return tuple(held) if len(held) > 1 else None


def _stages(text: str, d: Degrees) -> None:
    if m := _STAGES_BY.search(text):
        d.axes["pp"] = whole(m["n"])
        if d.axes.get("tp") is None and not {"cp", "ulysses", "ring", "attn_dp", "ep"} & d.axes.keys():
            d.axes["tp"] = whole(m["m"])
    if (m := _STAGED.search(text)) and d.axes.get("pp") is None:
        n = m["n"] or m["n1"]
        d.axes["pp"] = whole(n)
    if m := _PER_STAGE.search(text):
        word = m["n"] or m["n1"] or m["n2"]
        d.layers_each = 1 if word.lower() == "a single" else whole(word)
    for m in _STAGE_LIST.finditer(text):
        counts = tuple(int(x) for x in re.findall(r"\d+", m["l"] or m["l1"] or m["l3"] or m["l2"] or m["l4"]))
        if len(counts) > 1 and all(counts) and (d.axes.get("pp") in (None, len(counts))):
            d.layers_per_stage = counts
            break
    d.layers_per_stage = d.layers_per_stage or _layers_by_range(text) or _layers_listed(text)


def _experts(text: str, d: Degrees) -> None:
    if m := _EXPERTS_PER.search(text):
        word = m["n"] or m["n1"] or m["n2"] or m["n3"]
        d.experts_per_device = (
            1 if m["own"] or not word or word.lower() in ("an", "a", "each", "every") else whole(word)
        )


def _sliced(text: str, d: Degrees) -> None:
    if m := _SLICES.search(text):
        n, k = m["n"] or m["n1"], m["m"] or m["m1"]
        d.slices = (_bound(n, d.bindings), _bound(k, d.bindings))
        d.slice_symbols = (n if n.isalpha() else "", k if k.isalpha() else "")


def _bound(word: str, bindings: dict[str, int]) -> int | None:
    try:
        return bindings.get(word) if len(word) == 1 and word.isalpha() and word != "a" else whole(word)
    except ToolError:
        return None


def _devices(text: str, taken: list[tuple[int, int]]) -> int | None:
    """The number of devices of the whole strategy; numbers per node, per stage or of an axis do not count."""
    for m in _TOTAL.finditer(text):
        if not _NOT_TOTAL.search(text[: m.start()]):
            return whole(m["n"])
    for m in _DEVICES.finditer(text):
        name = next(k for k, v in m.groupdict().items() if v)
        at = m.start(name)
        if any(a <= at < b for a, b in taken) or _NOT_TOTAL.search(text[:at]):
            continue
        try:
            return whole(m[name])
        except ToolError:
            continue
    return None
