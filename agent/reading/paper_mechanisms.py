"""What a paper's method says about itself: mechanisms that `Strategy` has words for, and what it has none for."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.reading.paper_clauses import Clause, role_of
from agent.reading.paper_degrees import parse_degrees
from agent.reading.paper_schedule import bound
from agent.reading.paper_text import Paper, Passage, part, section_kind
from tools.spec.paper import Unsupported

_DEV = r"(?:GPUs?|NPUs?|devices?|cards?|ranks?|accelerators?|nodes?|卡|设备)"
_OTHERS = re.compile(
    r"\bunlike\b|instead of|rather than|in contrast|\bbase ?lines?\b|\bprior\b|\bexisting\b|conventional|traditional|whereas|suffers?|under (?:tensor|data|pipeline|expert) parallelism|drawback|orthogonal|future work|is not needed|\bno longer\b|not (?:used|required|needed)|与(?:现有|传统|以往|之前|已有|上述)?[^。]{0,14}不同(?:的是|之处|，|,)|不同于|传统|现有|以往|而非",
    re.I,
)


_SET_UP = re.compile(
    r"\bmodels?\b|hardware|cluster|testbed|platform|machines?|workload|inputs?\b|set[- ]?up|settings?|configurations?|devices$|network$|load$|metrics?|模型|硬件|集群|平台|环境|设置|配置|负载|指标",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A sentence shows it when one alternative holds: a pattern, or several that all stand in that sentence."""

    name: str
    alternatives: tuple[str | tuple[str, ...], ...]

    def __init__(self, name: str, *alternatives: str | tuple[str, ...]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "alternatives", alternatives)

    def found_in(self, text: str) -> bool:
        return any(
            all((m := re.search(part, text, re.I)) and not _denied(text, m) for part in _parts(a))
            for a in self.alternatives
        )


def _parts(alternative: str | tuple[str, ...]) -> tuple[str, ...]:
    return (alternative,) if isinstance(alternative, str) else alternative


def _denied(text: str, m: re.Match[str]) -> bool:
    """ "no attention pool", "无需流水线": what stands there is what is not done."""
    return bool(
        re.search(
            r"\b(?:no|not|without|never|nor)\s+(?:\w+\s+)?$|\bnon-?$|(?:不|无需|没有|不需要|不使用|不采用)\s*$",
            text[max(0, m.start() - 25) : m.start()],
            re.I,
        )
    )


_ATT = r"\b(?:self[- ])?att(?:entio)?n\b|注意力"
_EXP = r"\bexperts?\b|\bMoE\b|\bFFNs?\b|feed[- ]?forward|专家|前馈"
_SEPARATE = r"disaggregat|decoupl|disjoint|separat|split(?:ting)? (?:the two|them) (?:on|in|over|apart|across)|apart\b|解耦|分离|拆分|分开|分置|分池"
_ATT_PLACE = re.compile(
    r"\batt(?:entio)?n[- ](?:only )?(?:GPUs?|NPUs?|devices|accelerators|tier|side|nodes|workers)\b|注意力(?:设备|侧|卡|节点)",
    re.I,
)
_EXP_PLACE = re.compile(
    r"\b(?:experts?|MoE|FFN)[- ](?:only )?(?:GPUs?|NPUs?|devices|accelerators|tier|side|nodes|workers)\b|专家(?:设备|侧|卡|节点)",
    re.I,
)
_HAND_OVER = re.compile(
    r"(?:\bKV\b|key[- ]value|cache)[^.。]{0,50}(?:mov|transfer|stream|ship|sent|send|cross|migrat|hand|goes|over RDMA)|disaggregat|缓存[^。]{0,14}(?:传输|迁移|发送)|分离",
    re.I,
)
_PREFILL_PLACE = re.compile(
    r"^\s*prefill(?:ing)?\s*[:：.]|\bprefill(?:ing)?[- ](?:pool|instances?|cluster|nodes|side|workers|tier|GPUs|devices)\b|预填充?(?:池|侧|节点|实例|集群)",
    re.I,
)
_DECODE_PLACE = re.compile(
    r"^\s*decod(?:e|ing)\s*[:：.]|\bdecod(?:e|ing)[- ](?:pool|instances?|cluster|nodes|side|workers|tier|GPUs|devices)\b|解码(?:池|侧|节点|实例|集群)",
    re.I,
)
_PLACE = rf"(?:{_DEV}|groups?|tiers?|pools?|sides?|sets?|workers?|instances?|组|侧|池)"
REDUNDANT = "redundant experts"
_REDUNDANT = r"redundant experts?|(?:hot\w*|popular|busiest|frequent\w*) experts?[^.]{0,60}(?:replicat|duplicat|redundant|extra|further|cop(?:y|ies))\w*|(?:replicat|duplicat)\w* (?:of )?(?:the )?(?:hot\w*|popular|busiest) experts?|冗余专家|热(?:点|门)?专家[^。]{0,20}(?:复制|副本|冗余)"
_LENGTH = r"threshold|exceed|longer than|above|beyond|\blong\b|阈值|超过|大于|长(?:序列|文本|输入|提示)"
_STAGE = r"\bstages?\b|pipelin\w*|流水"
MECHANISMS: tuple[Mechanism, ...] = (
    Mechanism("ulysses", r"ulysses|(?:all[- ]to[- ]all|exchang\w*|redistribut\w*|transpos\w*|swap\w*)[^.]{0,120}heads?[^.]{0,80}(?:seq|sequence|tokens?|positions?)|(?:exchang\w*|swap\w*) (?:heads?|sequence) (?:for|with|and) (?:heads?|sequence)|all[- ]to[- ]all[^.]{0,140}(?:seq\w*|tokens?|positions?)[^.]{0,80}\bheads?\b|(?:all[- ]to[- ]all)[^.]{0,160}seq_?len[^.]{0,120}heads?|(?:all[- ]to[- ]all|全对全|全交换)[^。]{0,60}头", (r"all[- ]to[- ]all", r"permut\w*|exchang\w*|redistribut\w*|transpos\w*|xrightarrow|\u2192|brings?", r"\bheads?\b|\bH ?/", r"\bN ?/|\bS ?/|\bL ?/|\[B, N|seq|token|position")),
    Mechanism("ring", r"(?:rotat|circulat)\w*[^.]{0,20}(?:key[- ]value|\bKV|keys and values|K and V)[^.]{0,30}(?:blocks?|chunks?|between|among)|\bring[- ](?:self[- ])?attention|(?:keys? and values?|K and V|KV(?: blocks?| chunks?)?)[^.]{0,80}(?:around|along|in) (?:a|the) (?:logical )?ring|环形注意力|环注意力|(?:KV|键值)[^。]{0,30}(?:环|轮转)", (r"keys and values|\bK and V\b|\bKVs?\b|key[- /]value|queries", r"\b(?:hand|pass|forward|send|rotat|circulat|travel|shift)\w*|\bgo(?:es)? round", r"neighbou?rs?\b|next (?:device|rank|GPU)|\bin a circle|\bring\b|round the")),
    Mechanism("attn_dp", r"attention weights (?:are )?(?:stored|held|kept|present|replicated) (?:everywhere|on (?:every|each|all))|attention[^.;]{0,80}data[- ]parallel|data[- ]parallel(?:ism)?[^.;]{0,60}attention|replicat\w+ (?:the )?attention|attention[^.;]{0,50}(?:is |are )?replicated|(?:full|whole|complete) (?:copy of the )?attention weights|DP[- ]attention|注意力[^。；]{0,40}(?:数据并行|复制|副本)|数据并行[^。；]{0,20}注意力"),
    Mechanism("attn_tp", r"\battention[^.;]{0,50}tensor[- ]parallel|tensor[- ]parallel\w* (?:for |in )?attention|attention heads (?:are )?(?:sharded|split|dealt|divided)|注意力[^。；]{0,20}张量并行"),
    Mechanism("slices", r"heads?[^.]{0,80}(?:into|in) \w+ groups?[^.]{0,200}(?:d_?k|dim\w*)[^.]{0,60}(?:into|in) \w+ (?:slices?|parts?|segments?|shards?|pieces?)|two[- ]level (?:attention )?(?:slicing|partition\w*|split\w*)|(?:头)[^。]{0,40}组[^。]{0,60}(?:维|d_?k)[^。]{0,30}(?:片|段|份)|二维(?:注意力)?切分|两级(?:注意力)?切分"),
    Mechanism("slices", r"(?:dual|two|double|2)[- ]level (?:slic|split|partition|cut)|(?:slic|\bcut|\bsplit|divid|partition|segment)\w* (?:each|every|a|the) head's|(?:(?:each|every) head's (?:\w+ )?dim\w*|d_?k|d_?h|head dim\w*|dim\w* (?:of|within|inside|in) (?:each|every|a|the) (?:attention )?head|(?:inside|within) (?:each|every|a) head|intra-head)[^.]{0,60}(?:slic|\bcut|\bsplit|divid|partition|segment|shard)|(?:slic|\bcut|\bsplit|divid|partition|segment)\w*[^.]{0,50}(?:inside|within) (?:each|every|a|the) (?:attention )?head|(?:头内|每个头内部|头维度|每头维度)[^。]{0,20}(?:切|划分|分片)|(?:切分|划分)[^。]{0,12}(?:头内|头维度)"),
    Mechanism("layerwise", r"(?:consecutive|contiguous|successive) (?:layers|blocks) on (?:consecutive|contiguous|successive|neighbou?ring)", (r"\blayers?\b|层", r"on-chip|\bL2\b|\bSRAM\b|last-level cache|scratch-?pad|片上|二级缓存", r"\bfit\w*|exceed|within|below|budget|capacity|超过|放入|装入|容纳|不超"), r"groups? of layers|layer groups?|layers? (?:are|is) (?:assigned|taken|placed|packed) in order|layer[- ]?wise|(?:contiguous|consecutive) (?:groups? of |blocks? of |runs? of |sets? of )?(?:\w+ )?layers|(?:each|every|one) device (?:holds|hosts|stores|owns|runs|processes) (?:\w+ ){0,3}layers|layers? (?:are|is) (?:assigned|placed|distributed|mapped)[^.]{0,40}devices|按层(?:划分|切分|放置|部署)|逐层(?:划分|部署|放置)|连续的?(?:若干)?层"),
    Mechanism("apart",
              rf"(?:{_EXP}|{_ATT})[^.。]{{0,40}}(?:on|to|in) (?:other|different|separate) {_DEV} than[^.。]{{0,30}}(?:{_ATT}|{_EXP})",
              *(rf"(?:{one})[^.。]{{0,40}}(?:and|from|/|vs\.?|与|和|跟)[^.。]{{0,40}}(?:{other})[^.。]{{0,70}}(?:different|separate|disjoint|distinct|dedicated|two|their own|respective|不同|各自|独立|分别)[^.。,，]{{0,20}}{_PLACE}" for one, other in ((_ATT, _EXP), (_EXP, _ATT))),
              rf"(?:{_ATT})[^.。]{{0,60}}(?:on|to|in|onto|by|over|uses?|gets?|has) (?:one|a|its own|their own|separate|dedicated|different|disjoint|\d+)[^.。]{{0,50}}{_PLACE}[^.。]{{0,120}}(?:{_EXP})[^.。]{{0,80}}(?:another|the other|separate|second|the rest|remaining|different|dedicated|own|\d+ {_DEV})",
              (_SEPARATE, _ATT, _EXP), rf"(?:{_ATT})(?:[- ]only)?[- ]?{_PLACE}[^.。]{{0,120}}(?:{_EXP})(?:[- ]only)?[- ]?{_PLACE}|(?:{_EXP})(?:[- ]only)?[- ]?{_PLACE}[^.。]{{0,120}}(?:{_ATT})(?:[- ]only)?[- ]?{_PLACE}"),
    Mechanism("pool", rf"(?:{_ATT})[- ]?(?:resource )?pool|pool of [^.。]{{0,30}}(?:{_DEV})[^.。]{{0,60}}(?:{_ATT})|注意力(?:计算)?(?:资源)?池",
              (rf"(?:additional|extra|idle|spare|further|more|helper|pool\w*|borrow\w*|lend\w*|lent|join\w*|额外|池|空闲|加入)[^.。]{{0,60}}(?:{_DEV})|(?:{_DEV})[^.。]{{0,40}}(?:pool|池)|extra|pool", _LENGTH, _ATT),
              (rf"(?:additional|extra|idle|spare|额外|空闲|池)[^.。]{{0,40}}(?:{_DEV})", _LENGTH)),
    Mechanism("tokens", r"(?:piece|slice|chunk|segment) (?:one|1|i|k|\w) (?:enters|starts|goes|moves)[^.。]{0,40}\bstage|token[- ](?:level|wise|dimension|granularity|axis|dim)[ -](?:pipelin\w*)|terapipe|pipelin\w*[^.。]{0,40}(?:along|over|across|in|on) (?:the )?(?:token|sequence|position)s?(?: (?:axis|dimension|dim))?\b",
              (r"(?:slices?|chunks?|segments?|pieces|parts?) of (?:the |a |an |each |every |one )?(?:\w+ )?(?:sequence|prompt|input|tokens?)|(?:sequence|prompt|token|input)s?[ -](?:chunks?|slices?|segments?|pieces)|(?:sequence|prompt|input|tokens?)[^.。]{0,60}(?:into|in) (?:\w+ )?(?:\w+ )?(?:slices?|chunks?|segments?|pieces)|(?:序列|token|提示|输入)[^。]{0,20}(?:切片|分片|片段|分段|切成|切分|分成|划分)|slice i\b", _STAGE)),
    Mechanism("pd", (r"disaggregat|separat|decoupl|dedicated|own\b|two pools|different (?:pools|instances|devices|GPUs)|分离|解耦", r"\bprefill|prompt phase|预填", r"\bdecod|generation|解码"),
              rf"(?:prefill\w*|decod\w*) ?(?:pool|instances?|cluster|nodes?|side|workers?|{_DEV})[^.。]{{0,140}}(?:decod\w*|prefill\w*) ?(?:pool|instances?|cluster|nodes?|side|workers?|{_DEV})|(?:PD|P/D|预填充[^。]{{0,10}}解码)\s*分离|each phase a pool"),
    Mechanism("interleaved", r"round[- ]robin[^.。]{0,40}(?:chunks|layers|stages)|(?:layer|model) chunks|chunks? of layers|(?:chunks?|runs?|pieces) (?:of layers )?(?:per|on (?:each|every)|to (?:each|every)) (?:pipeline )?(?:stage|rank|device|GPU|worker)|on stage \w mod|interleav\w+[^.。]{0,30}(?:pipeline|1F1B|schedule|stages?)|(?:pipeline|stages?|chunks?)[^.。]{0,30}interleav\w+|virtual (?:pipeline )?stages?|model chunks|non-?adjacent (?:chunks|runs|layers)|(?:runs?|chunks?|stages?|layers)[^.。]{0,60}round[- ]robin|cyclic\w* (?:assign|placement|dealt)|交错(?:式)?(?:流水|调度)|虚拟(?:流水)?(?:阶段|级)"),
    Mechanism("fewest_bytes", r"dynamic program\w*|\bDP (?:over|algorithm|search|solver|formulation)|balanc\w+[^.。]{0,40}(?:cut|partition|runs?|groups?)|动态规划|最均衡"),
    Mechanism("sliced", r"expert[- ]slicing|(?:slice|cut|split)s? (?:each|every|all|the) experts?|(?:each|every) expert (?:is|being) (?:sliced|cut|split)|专家切片"),
    Mechanism("copied", r"(?:store|hold|host|keep|have|has)s? (?:the same|a copy of (?:the|an|every|each)|copies of (?:the|an|every|each)) experts?|(?:\w+) copies of (?:each|every) (?:one of the |expert|of them)|experts? (?:is|are) (?:replicated|copied)|每个专家[^。]{0,10}(?:份|个)副本"),
    Mechanism("redundant", _REDUNDANT),
    Mechanism("sp", r"(?:norms?|LayerNorm|RMSNorm)[^.]{0,80}(?:split|sharded|partitioned|divided)[^.]{0,40}(?:sequence|positions|tokens)[^.]{0,80}(?:tensor|TP|reduce[- ]scatter)|reduce[- ]scatter[^.]{0,120}all[- ]gather[^.]{0,80}(?:sequence|residual|norm)"),
    Mechanism("ep", (rf"{_DEV}", r"\b(?:stores?|holds?|hosts?|keeps?|owns?)\b", r"\bexperts? \(?\w (?:mod|%)"), r"expert parallel|\bEP\b|one expert per|experts? (?:are |is )?(?:distributed|spread|placed|dealt)[^.]{0,40}(?:devices|GPUs|ranks)|专家并行"),
    Mechanism("dcp", (r"\bK/?V\b|key[s]?[- /]|cache|KV|键值", r"split|shard|partition|dealt|divid|distribut|切分|划分|分布", r"position|context|sequence|token|上下文|序列|位置", r"\bdecod|log-sum-exp|lse\b|解码"), r"decode[- ]context[- ]parallel|(?:KV cache|keys and values)[^.]{0,60}(?:split|sharded|partitioned|dealt)[^.]{0,40}(?:sequence|positions|context)[^.]{0,120}(?:log[- ]sum[- ]exp|decod)|KV[- ]parallel"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Beyond:
    """A way to deploy that `Strategy` has no words for."""

    what: str
    why: str
    regex: str
    partial: bool = False
    """The rest of the method can be drawn without it; the gap is told."""


BEYOND: tuple[Beyond, ...] = (
    Beyond("matrices tiled in two dimensions (SUMMA, 2-D, 2.5-D or 3-D tensor parallelism)", "a weight is split along one dim per mesh axis, and activations are not broadcast tile by tile", r"\bSUMMA\b|Cannon's|(?:2|2\.5|3)[- ]?D (?:tensor|matrix|model)[- ]parallel|(?:two|three)[- ]dimensional (?:tensor|matrix|model)[- ]parallel|二维张量并行|三维张量并行"),
    Beyond("weights that are fetched from host memory or disk while serving", "every weight lies in the memory of its device", r"offload\w*[^.。]{0,40}(?:weights?|experts?|layers?|parameters)|(?:weights?|experts?|parameters)[^.。]{0,40}(?:offload|swapped? (?:in|out)|stream\w* from (?:host|CPU|DRAM|SSD|disk))|(?:权重|专家)[^。]{0,14}(?:卸载|换入|换出)"),
    Beyond("sharded weights gathered layer by layer", "weights stay where they are in a serving strategy", r"\bFSDP\b|\bZeRO(?:-\d)?\b|fully[- ]sharded"),
    Beyond(REDUNDANT, "how many copies there are is not said; the layout is drawn without them", _REDUNDANT, partial=True),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Method:
    """What a paper says about its own method: sentence by sentence, and the mechanisms found in them."""

    sentences: tuple[Passage, ...] = ()
    found: Mapping[str, Passage] = field(default_factory=dict)

    def says(self, read: Callable[[str], Any], symbols: Mapping[str, int]) -> tuple[Any, Passage | None]:
        """(the first value that `read` finds in a sentence, with symbols written out, and that sentence)."""
        for p in self.sentences:
            value = read(bound(p.text, symbols))
            if value:
                return value, p
        return None, None

    def mentions(self, pattern: re.Pattern[str]) -> bool:
        return any(pattern.search(p.text) for p in self.sentences)


NO_METHOD = Method()


def read_method(paper: Paper, clauses: Sequence[Clause]) -> Method:
    sentences = tuple(_sentences(paper, clauses))
    return Method(sentences, mechanisms(sentences))


def _sentences(paper: Paper, clauses: Sequence[Clause]) -> Iterator[Passage]:
    """Method first, then abstract, then its clauses; sections with a title of their own count as method."""
    title = paper.heading(paper.title)
    own = [title] if title is not None else []
    own += [p for p in paper.passages if section_kind(p.section) in ("method", "") and not _is_set_up(p)]
    if not any(section_kind(p.section) in ("method", "") and len(p.section) > 1 for p in own):
        own += paper.of("introduction")
    for p in (*own, *paper.of("abstract")):
        if role_of(p) != "baseline":
            for a, b in p.sentences():
                if not _OTHERS.search(p.text[a:b]):
                    yield part(p, a, b)
    for p in paper.of("appendix"):  # where the cut of each model is listed; its other sentences explain
        if parse_degrees(p.text).layers_per_stage and role_of(p) != "baseline":
            yield p
    for c in clauses:
        if c.role == "proposed":
            yield from c.texts


def _is_set_up(p: Passage) -> bool:
    """Shapes, hardware and strategies of an experiment, wherever they stand."""
    inside = (
        section_kind(p.section) == "method"
    )  # a label there is the method's: "Hardware distribution: 8 attention GPUs"
    titles = " ".join(p.section[1:] if inside else (*p.section[1:], p.label))
    return p.kind in ("row", "data") or role_of(p) is not None or bool(_SET_UP.search(titles))


def mechanisms(sentences: Sequence[Passage]) -> dict[str, Passage]:
    """The sentence that shows each mechanism."""
    out: dict[str, Passage] = {}
    for p in sentences:
        for m in MECHANISMS:
            if m.name not in out and m.found_in(p.text):
                out[m.name] = p
        if (d := parse_degrees(p.text)).experts_per_device:
            out.setdefault("experts_per_device", p)
        if d.layers_each:
            out.setdefault("layers_each", p)
        if d.layers_per_stage:
            out.setdefault("layers_listed", p)
        if d.slices:
            out["slices"] = p if "slices" not in out or not parse_degrees(out["slices"].text).slices else out["slices"]
    for side, other in ((_ATT_PLACE, _EXP_PLACE),):
        a, e = (next((p for p in sentences if x.search(p.text)), None) for x in (side, other))
        if a is not None and e is not None:
            out.setdefault("apart", e)
    first, then = (
        next((x for x in sentences if side.search(x.text)), None) for side in (_PREFILL_PLACE, _DECODE_PLACE)
    )
    if first is not None and then is not None and any(_HAND_OVER.search(x.text) for x in sentences):
        out.setdefault("pd", first)
    if "ulysses" in out and "ring" in out and "ring" not in out["ring"].text.lower():
        del out["ring"]
    return out


def beyond_words(sentences: Sequence[Passage]) -> list[tuple[Beyond, Unsupported]]:
    """What `Strategy` has no words for, with the passage that asks for it."""
    out: dict[str, tuple[Beyond, Unsupported]] = {}
    for p in sentences:
        for b in BEYOND:
            if b.what not in out and (m := re.search(b.regex, p.text, re.I)) and not _denied(p.text, m):
                out[b.what] = (b, Unsupported(what=b.what, why=b.why, evidence=p.quote()))
    return list(out.values())
