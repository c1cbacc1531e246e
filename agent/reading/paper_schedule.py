"""Schedules and budgets as papers state them: micro-batches, virtual stages, slices of the sequence, thresholds, bytes of cache.

`bound(text, symbols)` writes the value of a symbol in its place ("M attention devices" → "8 attention devices"), so that
what a method says in letters reads like what a set-up says in numbers.
"""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from collections.abc import Mapping

from agent.reading.paper_text import NUMBER, whole
from tools.spec.base import ToolError
from tools.units import find_quantities

_N = rf"(?P<n>{NUMBER})"
_MICRO = r"(?:micro[- ]?batch(?:es)?|μ-?batch(?:es)?|mini[- ]?batch(?:es)?|sub[- ]?batch(?:es)?|waves?|微批(?:次|处理)?|子批(?:次)?)"
_NUM = r"(?:(?:number|count|num)\s*(?:of|=)?\s*)?"
_IS = r"\s*(?:count|number|数量?|个数)?\s*(?:is|are|was|of|to|为|是|取|设为|=|:|：)?\s*"
MICROBATCHES = (
    rf"(?<![\d.]){_N}[- ]*(?:concurrent |alternating |equal |interleaved |in-flight )?(?:个)?{_MICRO}(?![- ]?(?:size|大小))",
    rf"{_MICRO}(?:数量?|个数|s)?\s*(?:count|number)?\s*(?:=|:|：|is|are|为|是)\s*{_N}(?!\s*(?:sequences|samples|tokens|requests))",
    rf"(?:number of|num[_ ]?){_MICRO}{_IS}{_N}",
    rf"{_MICRO}[^.;。；\d]{{0,20}}?(?:divided|split|cut) into {_N}",
    rf"(?:divided|split|cut) into {_N} {_MICRO}",
)
VIRTUAL = (
    rf"{_N}\s*(?:virtual |model |layer |interleaved )?(?:virtual )?(?:stages?|chunks?|runs?|segments?|blocks?|parts?|pieces?)\s*(?:of layers )?(?:per|on each|for each|on every|to each|a)\s*(?:pipeline )?(?:ranks?|devices?|GPUs?|stages?|workers?|cards?|accelerators?|卡)",
    rf"{_N}\s*virtual (?:pipeline )?(?:stages?|chunks?|layers)",
    rf"(?:interleav\w*|virtual)(?: (?:pipeline|stage|stages|degree|factor|size|depth|chunks?|of|with))*{_IS}{_N}(?!\s*(?:stages|layers|devices|GPUs))",
    rf"(?:virtual[_ ]pipeline[_ ](?:model[_ ])?(?:parallel[_ ])?size|VPP|vpp){_IS}{_N}",
    rf"每(?:个|张)?(?:卡|设备|GPU|级|阶段|rank)[^。；;,，\d]{{0,10}}{_N}\s*个(?:虚拟)?(?:流水)?(?:阶段|级|块|模型块)",
    rf"{_N}\s*个虚拟(?:流水)?(?:阶段|级)",
    rf"(?:each|every) (?:rank|device|GPU|stage|worker)\s+(?:holds|hosts|owns|has|runs|keeps|gets)\s+{_N}\s*(?:non-?adjacent |non-?contiguous |separate |model |layer )*(?:chunks?|runs?|blocks?|pieces?|virtual stages?|segments?)",
)
_PIECE = r"(?:长度)?(?:相等|等长|均匀|相同)?的?(?:token |sequence |prompt |input |context |equal |consecutive |causal |even )*(?:slices?|chunks?|segments?|pieces|切片|分片|片段|分段|片|段|块)"
SEQ_SLICES = (
    rf"(?:sequences?|prompts?|inputs?|tokens?|contexts?|序列|提示|输入|token)[^.;。；\d]{{0,50}}?(?:into|in|成|为|切|分)\s*{_N}\s*(?:个|等)?{_PIECE}",
    rf"(?<![\d.]){_N}\s*(?:个)?(?:token|sequence|prompt|input|序列|提示)[- ]?(?:level )?{_PIECE}",
    rf"(?<![\d.]){_N}\s*(?:个)?{_PIECE}(?!\s*(?:of d_?k|of (?:each|every) head|per head|of layers|per (?:rank|device|stage|GPU)|tokens))",
    rf"(?:number of|num[_ ]?)\s*{_PIECE}{_IS}{_N}",
    rf"{_PIECE}(?:数量?|个数)?\s*(?:=|:|：|为)\s*{_N}(?!\s*(?:tokens|个? ?token|k\b))",
)
SLICE_TOKENS = (
    rf"(?:slices?|chunks?|segments?|pieces) (?:of|with|contain\w*|hold\w*|each)\s*{_N}\s*tokens",
    rf"(?:slice|chunk|segment) (?:size|length){_IS}{_N}",
    rf"{_N}[- ]tokens? (?:slices?|chunks?|segments?)",
    rf"每(?:个)?(?:切片|分片|片段|片|块|段)\s*(?:长度|大小|为|是|含|包含)*\s*{_N}\s*(?:个)?\s*(?:token|词元)?",
    rf"(?:切片|分片|片段|块)(?:长度|大小){_IS}{_N}",
)
_EXPERTS = r"(?:routed )?experts?"
_DEVICE = r"(?:GPUs?|NPUs?|devices?|ranks?|cards?|accelerators?|卡|设备)"
REDUNDANT = (
    rf"(?<![\d.]){_N}\s*(?:further |additional |extra |global |physical )*(?:redundant|duplicate\w*|spare|replica) (?:copies of )?{_EXPERTS}(?!\s*(?:per|on each|on every)\s*{_DEVICE})",
    rf"(?<![\d.]){_N}\s*(?:of the )?(?:\w+ )?(?:hot\w*|popular|busiest|most[- ]loaded|frequent\w*) {_EXPERTS}",
    rf"{_N} (?:further |additional |extra |redundant )+(?:copies|replicas|slots)(?: of)?",
    rf"redundant {_EXPERTS}(?:\s*(?:count|number))?\s*(?:=|:|：|is|are)\s*{_N}",
    rf"{_N}\s*个?冗余专家|冗余专家(?:数量?|个数)?\s*(?:=|:|：|为)\s*(?P<n1>{NUMBER})|{NUMBER}\s*个?(?:热门|热点|高负载)专家".replace(
        f"|{NUMBER}", f"|(?P<n2>{NUMBER})"
    ),
)
REDUNDANT_EACH = (
    rf"(?P<n>{NUMBER}|an?)\s*(?:further |additional |extra )?(?:redundant|duplicate\w*|spare) {_EXPERTS}\s*(?:per|on each|on every)\s*{_DEVICE}",
    rf"(?:each|every) {_DEVICE}[^.;]{{0,40}}?(?P<n>{NUMBER}|an?)\s*(?:further |additional |extra )?(?:redundant|spare) {_EXPERTS}|每(?:个|张)?{_DEVICE}[^。；]{{0,12}}?(?P<n1>{NUMBER})\s*个冗余专家",
)
_HEAD_PIECE = r"(?:d_?k |d_?h |dimension |dimensional |head |intra-head |inner )*(?:(?:slices?|parts?|segments?|shards?|pieces?|chunks?)(?![A-Za-z])|切片|片段|片|份|段|块)"
HEAD_GROUPS = (
    rf"heads?[^.;。；\d]{{0,60}}?(?:into|in|成|为)\s*{_N}\s*(?:个)?(?:equal |head )*(?:groups?|sets|组)",
    rf"(?<![\d.]){_N}\s*(?:个)?[- ]?(?:head[- ]?|注意力头|头)?(?:groups?(?: of heads)?|组)(?![A-Za-z])",
    rf"(?:number of |num[_ ]?)?(?:head )?groups?{_IS}{_N}",
    rf"(?<![\d.])(?<![×x*]){_N}\s*head (?:partitions|splits)",
)
HEAD_SLICES = (
    rf"(?:d_?k|dim\w*|each head|every head|inside|within|维度?|每个头)[^.;。；\d]{{0,60}}?(?:into|in|成|为)\s*{_N}\s*(?:个)?{_HEAD_PIECE}",
    rf"(?<![\d.]){_N}\s*(?:个)?[- ]?{_HEAD_PIECE}(?:\s*(?:each|of d_?k|of (?:each|every|a) head|per head|inside|within))?",
    rf"(?<![\d.]){_N}\s*(?:d_?k|dim\w*|intra-head)(?: dimension)? (?:partitions|splits)",
)
_LONG = r"(?:seq\w*|prompts?|inputs?|context|lengths?|L|S|tokens?|requests?|序列(?:长度)?|长度|上下文|输入(?:长度)?|提示(?:长度)?)"
THRESHOLD = (
    rf"(?:threshold|cut-?off|switch(?:ing)? point|limit|阈值|门限|临界(?:值|长度)?)[^.;。；\d]{{0,40}}?{_N}(?!\s*(?:{'|'.join(('GPUs', 'devices', 'layers', 'heads', '%'))}))",
    rf"(?:exceed\w*|longer than|more than|above|beyond|over|past|greater than|at least|≥|>=?|超过|大于|长于|高于|不少于)\s*(?:the |a |an )?(?:threshold |length |limit )*(?:of )?(?:[A-Za-z][\w*]*\s*=\s*)?{_N}(?:\s*(?:tokens?|个? ?token|词元))?(?!\s*(?:GPUs|devices|layers|heads|experts|%))",
    rf"(?<![\w])(?:L|S|T|n|τ|θ|l)[_*^]?\{{?(?:\*|0|th|t|max|c|crit)?\}}?\s*=\s*{_N}(?=\s*tokens)",
    rf"(?:up to|at most|below|shorter than|not longer than|no more than|≤|<=|<|不超过|小于|短于)\s*{_N}\s*(?:tokens|个? ?token)",
)
_CACHE = r"(?:caches?|L2|L3|SRAM|on-?chip|LLC|scratch-?pad|budget|capacity|local memor(?:y|ies)|fast memor(?:y|ies)|预算|缓存|片上|容量)"


def _first(patterns: tuple[str, ...], text: str) -> int | None:
    for p in patterns:
        for m in re.finditer(p, text, re.I):
            try:
                return whole(next(v for k, v in m.groupdict().items() if k[0] == "n" and v))
            except ToolError:
                continue
    return None


def microbatches(text: str) -> int | None:
    return _first(MICROBATCHES, text)


def virtual_stages(text: str) -> int | None:
    return _first(VIRTUAL, text)


def seq_slices(text: str) -> int | None:
    """Number of slices that a sequence is cut into."""
    return _first(SEQ_SLICES, text)


def head_groups(text: str) -> int | None:
    """Groups that attention heads are dealt out in."""
    return _first(HEAD_GROUPS, text)


def head_slices(text: str) -> int | None:
    """Slices of each head's d_k."""
    return _first(HEAD_SLICES, text)


def redundant_experts(text: str) -> int | None:
    """Further copies of experts over all devices."""
    return _first(REDUNDANT, text)


def redundant_per_device(text: str) -> int | None:
    return _first(REDUNDANT_EACH, text)


def slice_tokens(text: str) -> int | None:
    """Tokens of one slice."""
    return _first(SLICE_TOKENS, text)


def threshold(text: str) -> int | None:
    """Tokens of context from which a long regime applies."""
    value = _first(THRESHOLD, text)
    return value if value is None or value >= 32 else None


def budget_bytes(text: str) -> float | None:
    """Bytes of the fast memory that a device's layers are to fit, where one is stated beside such a word."""
    for q in find_quantities(text):
        near, before = text[max(0, q.start - 60) : q.end + 40], text[: q.start]
        named = re.search(r"(?<![A-Za-z])[A-Z]\w{0,2}\s*=\s*$", before)  # "C = 50 MB"
        if q.dimension == "bytes" and (named or re.search(_CACHE, near, re.I)):
            return float(q.value)
    return None


# ------------------------------------------------------------------------------------------------------------- symbols

_SYMBOL = r"[A-Za-z](?:_?\{?[A-Za-z*]{1,6}\}?)?"
_BINDING = re.compile(
    rf"(?<![A-Za-z_.\d])(?P<k>[A-Z]{{1,4}}|{_SYMBOL})\s*=\s*(?P<v>\d{{1,6}}(?:,\d{{3}})*)(?![\d.]*\d*[A-Za-z])(?!\s*[×x*/+]\s*[A-Za-z\d]*\s*=)"
)
_DEFINED = (
    r"(?:let|where|with|denote by|here)\s+(?P<k>{s})\s+(?:be|is|are|denotes?|stands? for)?\s*(?:the )?(?:number|count|amount) of\s+(?P<what>[A-Za-z][A-Za-z -]{{3,40}})",
    r"(?:number|count) of\s+(?P<what>[A-Za-z][A-Za-z -]{{3,40}}?)\s*(?:,|\(|is|as|be)?\s*(?:denoted (?:by|as))?\s*(?P<k>{s})(?=[\s,.;)])",
    r"(?P<k>{s})\s*(?:为|是|表示)\s*(?P<what>[\u4e00-\u9fff]{{2,14}}?)(?:的)?(?:数量|个数|数目|数)",
)


_PRODUCT_OF = re.compile(r"(?<![A-Za-z])[A-Za-z]\s*[×x*·]\s*[A-Za-z]\s*=\s*\d+")
""" "m × n = 16" binds neither letter."""


def symbols_of(text: str) -> dict[str, int]:
    """ "M = 8, N=16, KVP = 2"."""
    text = _PRODUCT_OF.sub(" ", text)
    return {m["k"].replace("{", "").replace("}", ""): int(m["v"].replace(",", "")) for m in _BINDING.finditer(text)}


_REMARKED = re.compile(r"=\s*(\d+)\s*\(\s*([a-z][a-z -]{3,40})[^()]*\)", re.I)
"""A value, and in brackets what it counts: "n = 4 (head groups)"."""


def bound(text: str, symbols: Mapping[str, int]) -> str:
    """`text` with bound symbols written out where they count something; definitions are said once more in numbers."""
    text = _REMARKED.sub(r"= \1 \2 ", text)
    more = []
    for pattern in _DEFINED:
        for m in re.finditer(pattern.format(s=_SYMBOL), text, re.I):
            if m["k"] in symbols:
                more.append(f"{symbols[m['k']]} {'个' if ord(m['what'][0]) > 0x2E80 else ''}{m['what']}")
    for name, value in symbols.items():
        if name in ("a", "I", "Q", "V"):
            continue
        shown = re.escape(name) if "_" not in name else re.escape(name).replace("_", "_?\\{?") + r"\}?"
        counts = r"(?=[ -](?!and\b|or\b|is\b|are\b|to\b|as\b|in\b|on\b|of\b|for\b|from\b|with\b|be\b|has\b|have\b|can\b|must\b|holds?\b|then\b)[a-z]{3,}| ?[个张块路片段层组]|-way| (?:for|do|run|hold|on) (?:the )?(?:attention|experts?|prefill|decod|base|pool))"
        after = r"(?P<b>(?:[<>≥≤]=?|\bexceeds?|\bthan|\bthreshold|\babove|\bbelow|\bbeyond|\blimit|\bover|\bacross|\binto|\bamong|超过|大于|小于|不超过)\s*(?:of |the |length |tokens )*)"
        text = re.sub(rf"(?<![A-Za-z_.\d]){shown}{counts}", str(value), text)
        text = re.sub(rf"{after}{shown}(?![A-Za-z_\d/(])", rf"\g<b>{value}", text)
    return f"{text} ({'; '.join(more)})" if more else text
