"""The strategies of a paper: each baseline and the proposed one, per model, from the words of its set-up and method.

The set-up's clause gives degrees ("the exchange over P = 16"); what the method says about itself ("attention runs
data-parallel", "Q, K and V are redistributed by all-to-all") gives the axes that the clause leaves unnamed. What is
named without a degree takes the devices that are left; nothing else is filled in.
"""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, cast

from agent.reading.paper_degrees import Degrees, parse_degrees, stated
from agent.reading.paper_text import Paper, Passage, part, section_kind
from tools.spec.base import ToolError
from tools.spec.finding import Finding
from tools.spec.model import ModelSpec
from tools.spec.paper import DevicesSource, PaperModel, PaperRole, PaperStrategy, Unsupported
from tools.spec.strategy import Strategy

_DEV = r"(?:GPUs?|NPUs?|devices?|cards?|ranks?|accelerators?|nodes?|卡|设备)"
_BASELINE = re.compile(r"\bbase ?lines?\b|compared? (?:with|to|against)|versus|基线|对照|对比(?:方案|方法)", re.I)
_PROPOSED = re.compile(
    r"\bproposed\b|\bours\b|\bour (?:method|approach|scheme|strategy|system|deployment|proposal)|\bthis paper(?:'s)? (?:method|approach)|所提|提出的|本文(?:方法|方案|策略)?|我们的(?:方法|方案)",
    re.I,
)
_WE = re.compile(
    r"\bwe (?:use|run|deploy|place|set|choose|apply|split|partition|evaluate|distribute)|\bour\b|我们(?:采用|使用|部署|将)",
    re.I,
)
_OTHERS = re.compile(
    r"\bunlike\b|instead of|rather than|in contrast|\bbase ?lines?\b|\bprior\b|\bexisting\b|conventional|traditional|whereas|suffers?|under (?:tensor|data|pipeline|expert) parallelism|drawback|orthogonal|future work|is not needed|\bno longer\b|not (?:used|required|needed)|与.{0,20}不同|传统|现有|以往|而非",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Mechanism:
    name: str
    regex: str


MECHANISMS: tuple[Mechanism, ...] = (
    Mechanism("ulysses", r"ulysses|(?:all[- ]to[- ]all|exchang\w*|redistribut\w*|transpos\w*|swap\w*)[^.]{0,120}heads?[^.]{0,80}(?:seq|sequence|tokens?|positions?)|(?:exchang\w*|swap\w*) (?:heads?|sequence) (?:for|with|and) (?:heads?|sequence)|all[- ]to[- ]all[^.]{0,140}(?:seq\w*|tokens?|positions?)[^.]{0,80}\bheads?\b|(?:all[- ]to[- ]all)[^.]{0,160}seq_?len[^.]{0,120}heads?|(?:all[- ]to[- ]all|全对全|全交换)[^。]{0,60}头"),
    Mechanism("ring", r"ring[- ](?:self[- ])?attention|(?:keys? and values?|K and V|KV(?: blocks?| chunks?)?)[^.]{0,80}(?:around|along|in) (?:a|the) (?:logical )?ring|环形注意力|环注意力|(?:KV|键值)[^。]{0,30}(?:环|轮转)"),
    Mechanism("attn_dp", r"attention[^.;]{0,80}data[- ]parallel|data[- ]parallel(?:ism)?[^.;]{0,60}attention|replicat\w+ (?:the )?attention|attention[^.;]{0,50}(?:is |are )?replicated|(?:full|whole|complete) (?:copy of the )?attention weights|DP[- ]attention|注意力[^。；]{0,40}(?:数据并行|复制|副本)|数据并行[^。；]{0,20}注意力"),
    Mechanism("slices", r"heads?[^.]{0,80}(?:into|in) \w+ groups?[^.]{0,200}(?:d_?k|dim\w*)[^.]{0,60}(?:into|in) \w+ (?:slices?|parts?|segments?|shards?|pieces?)|two[- ]level (?:attention )?(?:slicing|partition\w*|split\w*)|(?:头)[^。]{0,40}组[^。]{0,60}(?:维|d_?k)[^。]{0,30}(?:片|段|份)|二维(?:注意力)?切分|两级(?:注意力)?切分"),
    Mechanism("layerwise", r"layer[- ]?wise|(?:contiguous|consecutive) (?:groups? of |blocks? of |runs? of |sets? of )?(?:\w+ )?layers|(?:each|every|one) device (?:holds|hosts|stores|owns|runs|processes) (?:\w+ ){0,3}layers|layers? (?:are|is) (?:assigned|placed|distributed|mapped)[^.]{0,40}devices|按层(?:划分|切分|放置|部署)|逐层(?:划分|部署|放置)|连续的?(?:若干)?层"),
    Mechanism("sp", r"(?:norms?|LayerNorm|RMSNorm)[^.]{0,80}(?:split|sharded|partitioned|divided)[^.]{0,40}(?:sequence|positions|tokens)[^.]{0,80}(?:tensor|TP|reduce[- ]scatter)|reduce[- ]scatter[^.]{0,120}all[- ]gather[^.]{0,80}(?:sequence|residual|norm)"),
    Mechanism("ep", r"expert parallel|\bEP\b|one expert per|experts? (?:are |is )?(?:distributed|spread|placed|dealt)[^.]{0,40}(?:devices|GPUs|ranks)|专家并行"),
    Mechanism("dcp", r"decode[- ]context[- ]parallel|(?:KV cache|keys and values)[^.]{0,60}(?:split|sharded|partitioned|dealt)[^.]{0,40}(?:sequence|positions|context)[^.]{0,120}(?:log[- ]sum[- ]exp|decod)|KV[- ]parallel"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Beyond:
    """A way to deploy that `Strategy` has no words for."""

    what: str
    why: str
    regex: str


BEYOND: tuple[Beyond, ...] = (
    Beyond("attention and experts on different device groups", "a strategy has one device group per pipeline stage, on which attention and experts are both laid out",
           rf"(?:attention|attn)[^.]{{0,120}}(?:on|to|in|onto) (?:one|a|its own|their own|separate|dedicated|different|disjoint|\d+)[^.]{{0,60}}(?:group|{_DEV}|pool)[^.]{{0,140}}(?:experts?|MoE|FFNs?)[^.]{{0,80}}(?:another|other|separate|second|the rest|remaining|different|dedicated|own|\d+ {_DEV})"
           rf"|(?:disaggregat|separat|decoupl)\w*[^.]{{0,50}}(?:attention|attn)[^.]{{0,60}}(?:experts?|MoE|FFN)|(?:attention|attn) (?:and|from|/) (?:experts?|MoE|FFN)[^.]{{0,30}}(?:disaggregat|separat|decoupl)\w*|(?:attention|attn) (?:{_DEV}|group|pool)[^.]{{0,100}}(?:expert|MoE|FFN) (?:{_DEV}|group|pool)"
           rf"|注意力[^。]{{0,40}}(?:专家|MoE|FFN)[^。]{{0,20}}(?:分离|解耦)|(?:分离|解耦)[^。]{{0,20}}注意力[^。]{{0,20}}(?:专家|MoE|FFN)"),
    Beyond("an attention pool that joins above a length", "a strategy is one regime; devices that join attention only for long sequences need two",
           rf"attention pool|(?:additional|extra|idle|spare)[^.]{{0,30}}{_DEV}[^.]{{0,100}}(?:threshold|exceeds?|longer than|above)|(?:threshold|exceeds?)[^.]{{0,100}}(?:additional|extra|idle|spare)[^.]{{0,30}}{_DEV}|注意力池|超过阈值[^。]{{0,40}}{_DEV}"),
    Beyond("a pipeline over slices of the sequence", "pipeline stages pass whole sequences on; token-dimension pipelines are not in the layout language",
           r"token[- ](?:level|wise|dimension|granularity)[ -]pipelin\w*|terapipe|(?:slices?|chunks?|segments?) of (?:the |a |each )?(?:sequence|prompt)[^.]{0,100}(?:stages?|pipelin\w*)|(?:sequence|prompt|token) (?:chunks?|slices?|segments?)[^.]{0,100}(?:stages?|pipelin\w*)|(?:stages?|pipelin\w*)[^.]{0,80}(?:sequence|prompt|token) (?:chunks?|slices?|segments?)|(?:序列|token)(?:切片|分片|片段|块)[^。]{0,40}流水"),
    Beyond("separate pools for prefill and decode", "a strategy is one pool; prefill and decode share its ranks and weights",
           r"(?:disaggregat|separat)\w*[^.]{0,40}(?:prefill|decod)\w*|(?:prefill|decode) (?:pool|instances?|cluster|nodes?)[^.]{0,120}(?:decode|prefill) (?:pool|instances?|cluster|nodes?)|(?:PD|P/D|预填充[^。]{0,10}解码)\s*分离"),
    Beyond("an interleaved pipeline (virtual stages)", "each stage holds one contiguous run of layers", r"interleav\w+[^.]{0,30}(?:pipeline|1F1B|schedule|stages?)|virtual (?:pipeline )?stages?|交错(?:式)?流水|虚拟(?:流水)?(?:阶段|级)"),
    Beyond("sharded weights gathered layer by layer", "weights stay where they are in a serving strategy", r"\bFSDP\b|\bZeRO(?:-\d)?\b|fully[- ]sharded"),
    Beyond("redundant experts", "every expert has the same number of copies", r"redundant experts?|(?:hot|popular) experts?[^.]{0,60}(?:replicat|duplicat|cop(?:y|ies))\w*|冗余专家|热(?:点)?专家[^。]{0,20}(?:复制|副本)"),
)  # fmt: skip


@dataclass(slots=True)
class Clause:
    """One strategy in words. `texts` are the passages it is made of, `model` the key it is for (None: every model)."""

    role: PaperRole
    texts: list[Passage]
    model: str | None = None
    explicit: bool = True
    """Under a label or heading that says its role."""
    degrees: Degrees = field(default_factory=Degrees)

    @property
    def words(self) -> str:
        return " ".join(" ".join(p.said if p.body else p.text for p in self.texts).split())


@dataclass(frozen=True, slots=True)
class Setting:
    """What strategies are read against."""

    num_devices: int | None
    per_node: int | None

    @property
    def num_nodes(self) -> int | None:
        return -(-self.num_devices // self.per_node) if self.num_devices and self.per_node else None


def read_strategies(
    paper: Paper, models: Sequence[PaperModel], setting: Setting
) -> tuple[list[PaperStrategy], list[Unsupported]]:
    """Every baseline and the proposed strategy of every model. Raises ToolError when there is no proposed one to read."""
    clauses = _clauses(paper, models, setting)
    method = list(_method_sentences(paper, clauses))
    found = _mechanisms(method)
    beyond = _beyond(method)
    out: list[PaperStrategy] = []
    missing: list[Unsupported] = list(beyond)
    for model in models:
        mine = [c for c in clauses if c.model in (None, model.key)]
        baselines = [c for c in mine if c.role == "baseline" and _says_enough(c.degrees)]
        read = [_strategy(model, c, "baseline", {}, setting) for c in baselines]
        if not beyond:
            clause = _merged([c for c in mine if c.role == "proposed"]) or Clause("proposed", [])
            read.append(_strategy(model, clause, "proposed", found, setting))
        out += _named(read)
    return out, missing


def _says_enough(d: Degrees) -> bool:
    """Whether a clause fixes anything: a degree, or how many devices share what it names."""
    return (
        any(d.axes.values())
        or bool(d.layers_each or d.layers_per_stage or d.slices)
        or (bool(d.axes) and d.devices is not None)
    )


def _named(read: list[PaperStrategy]) -> list[PaperStrategy]:
    """Equal strategies once; baselines numbered."""
    unique: list[PaperStrategy] = []
    for s in read:
        if not any(u.role == s.role and u.strategy == s.strategy for u in unique):
            unique.append(s)
    out, n = [], 0
    for s in unique:
        if s.role == "baseline":
            n += 1
            s = s.model_copy(update={"name": "baseline" if n == 1 else f"baseline_{n}"})
        out.append(s)
    return out


# -------------------------------------------------------------------------------------------------------------- clauses


def _clauses(paper: Paper, models: Sequence[PaperModel], setting: Setting) -> list[Clause]:
    out = _headed(paper, models)
    under = {t for c in out for p in c.texts[:1] for t in [p.raw]}
    for p in paper.passages:
        if p.section and p.section[-1] in under:
            continue
        if section_kind(p.section) in ("related", "references", "conclusion"):
            continue
        if p.kind == "row":
            out += _row(p, models)
        else:
            role = _role_of(p)
            if role is None and section_kind(p.section) not in ("experiments", "results", ""):
                continue
            out += _labelled(p, role, models) if role else _sentences(p, models)
    for c in out:
        c.degrees = parse_degrees(c.words, per_node=setting.per_node, num_nodes=setting.num_nodes)
    return [c for c in out if not c.degrees.empty or (c.role == "proposed" and c.explicit)]


def _headed(paper: Paper, models: Sequence[PaperModel]) -> list[Clause]:
    """Headings that carry degrees ("Baseline (TP=8, PP=2)"), with what stands below them."""
    out = []
    for line, title in paper.headings:
        base, prop = bool(_BASELINE.search(title)), bool(_PROPOSED.search(title))
        if base == prop or parse_degrees(title).empty or section_kind((title,)) == "method":
            continue
        below = [p for p in paper.passages if p.section and p.section[-1] == title]
        file = paper.passages[0].file if paper.passages else ""
        heading = Passage(file, title, title, ((0, line),), kind="heading")
        out.append(Clause("baseline" if base else "proposed", [heading, *below], _model_key(title, models)))
    return out


def _role_of(p: Passage) -> PaperRole | None:
    """By its labels, innermost first, then by the headings around it; a method section is no set-up."""
    for title in (*reversed(p.label.split(" / ")), *reversed(p.section[1:])):
        base, prop = bool(_BASELINE.search(title)), bool(_PROPOSED.search(title))
        if title in p.section and section_kind((title,)) == "method" and not _inside_set_up(p, title):
            continue
        if base != prop:
            return "baseline" if base else "proposed"
    return None


def _inside_set_up(p: Passage, title: str) -> bool:
    """ "4.3 Proposed method" below "4 Experiments" is set-up."""
    outer = p.section[: p.section.index(title)]
    return any(section_kind((t,)) == "experiments" for t in outer)


def _labelled(p: Passage, role: PaperRole, models: Sequence[PaperModel]) -> Iterator[Clause]:
    # The label itself may carry the degrees: "Baseline (TP=8, PP=2): each GPU …"
    carries = p.body and not parse_degrees(p.text[: p.body]).empty
    said = part(p, 0 if carries else p.body, len(p.text))
    inherited = _model_key(p.label, models)
    for key, piece in _by_model(said, models):
        for text in _alternatives(piece) if role == "baseline" else [piece]:
            yield Clause(role, [text], key or inherited)


def _sentences(p: Passage, models: Sequence[PaperModel]) -> Iterator[Clause]:
    """Sentences that say whose strategy they state."""
    for a, b in p.sentences():
        sentence = part(p, a, b)
        compared = re.search(r"\bcompar\w+\s+(?P<x>.+?)\s+(?:with|against|to|versus)\s+(?P<y>.+)", sentence.text, re.I)
        if compared and not parse_degrees(compared["x"]).empty and not parse_degrees(compared["y"]).empty:
            yield Clause("proposed", [part(sentence, compared.start("x"), compared.end("x"))], None, False)
            yield Clause("baseline", [part(sentence, compared.start("y"), compared.end("y"))], None, False)
            continue
        base = bool(_BASELINE.search(sentence.text))
        prop = bool(_PROPOSED.search(sentence.text)) or bool(_WE.search(sentence.text))
        if not base and not prop:
            continue
        role: PaperRole = "baseline" if base else "proposed"
        for key, piece in _by_model(sentence, models):
            for text in _alternatives(piece) if base else [piece]:
                yield Clause(role, [text], key, False)


def _row(p: Passage, models: Sequence[PaperModel]) -> Iterator[Clause]:
    """A table row with columns of degrees, or whose name carries them."""
    axes = [
        (t, c)
        for t, c in p.cells
        if re.fullmatch(
            r"(?:TP|PP|DP|EP|CP|SP|ETP|DCP|attention DP|attn[_ ]dp|tensor parallel\w*|pipeline parallel\w*|expert parallel\w*|data parallel\w*|context parallel\w*)(?: (?:size|degree))?",
            t,
            re.I,
        )
        and re.fullmatch(r"\d+", c)
    ]
    name = " ".join(c for t, c in p.cells if not re.fullmatch(r"[\d.,%x× ]*[KMBkms]*", c))
    devices = next(
        (
            c
            for t, c in p.cells
            if re.fullmatch(rf"(?:number of |num |#\s?|total )?{_DEV}(?: count)?", t, re.I) and c.isdigit()
        ),
        None,
    )
    if not axes and not any(parse_degrees(name).axes.values()):
        return
    base, prop = bool(_BASELINE.search(name)), bool(_PROPOSED.search(name))
    role: PaperRole = "proposed" if prop and not base else "baseline"
    words = ", ".join(
        [
            name,
            *(f"{t.split()[0].upper() if len(t) <= 3 else t} {c}" for t, c in axes if int(c) > 1),
            *([f"{devices} devices"] if devices else []),
        ]
    )
    yield Clause(role, [replace(p, text=words, body=0)], _model_key(name, models))


def _model_key(text: str, models: Sequence[PaperModel]) -> str | None:
    found = {k for k, _, _ in _mentions(text, models)}
    return found.pop() if len(found) == 1 else None


def _names(m: PaperModel) -> list[str]:
    short = re.sub(r"^(?:model|模型)[ -]*|[ -]*(?:model|模型)$", "", m.name, flags=re.I).strip()
    return [n for n in dict.fromkeys((m.name, short)) if n]


def _mentions(text: str, models: Sequence[PaperModel]) -> list[tuple[str, int, int]]:
    """(key, start, end) of every place that turns to a model."""
    if len(models) < 2:
        return []
    out = []
    for m in models:
        for name in _names(m):
            word = re.escape(name)
            long = len(name) > 2 and name.lower() not in ("moe",)
            pattern = rf"(?:(?<![A-Za-z0-9])(?:for |on |of )?(?:the )?(?:model|模型)\s*{word}(?![A-Za-z0-9])|(?<![A-Za-z0-9]){word}\s*[:：]|(?:for|on|对于?|在)\s+(?:the )?{word}(?![A-Za-z0-9]))"
            pattern = rf"{pattern}|(?<![A-Za-z0-9]){word}(?![A-Za-z0-9])" if long else pattern
            out += [(m.key, x.start(), x.end()) for x in re.finditer(pattern, text, re.I if long else 0)]
    out.sort(key=lambda x: (x[1], -x[2]))
    kept: list[tuple[str, int, int]] = []
    for x in out:
        if not kept or x[1] >= kept[-1][2]:
            kept.append(x)
    return kept


def _by_model(p: Passage, models: Sequence[PaperModel]) -> list[tuple[str | None, Passage]]:
    """(model, the stretch about it); None: every model."""
    marks = _mentions(p.text, models)
    if not marks:
        return [(None, p)]
    out: list[tuple[str | None, Passage]] = []
    head = part(p, 0, marks[0][1])
    if not parse_degrees(head.text).empty:
        # The model is named after its strategy: "EP 16 for model A".
        cuts = [0, *(m[2] for m in marks)]
        return [(m[0], part(p, a, m[2])) for a, m in zip(cuts, marks, strict=False)]
    for (key, _, end), following in zip(marks, [*(m[1] for m in marks[1:]), len(p.text)], strict=True):
        if following > end and p.text[end:following].strip(" :：,，;；.。"):
            out.append((key, part(p, end, following)))
        else:
            out.append((key, part(p, end, len(p.text))))  # "A and B: …" share what follows
    return out


_ALTERNATIVE = re.compile(
    r"\s*(?:[(（](?:\d|[a-z]|i{1,3}|iv)[)）]|(?:(?<=\s)|^)\d\)|[;；]|,?\s+or\s+|,?\s+versus\s+|,?\s+as well as\s+|以及)\s*"
)


def _alternatives(p: Passage) -> list[Passage]:
    """Baselines that stand side by side in one passage; a stretch without degrees belongs to the one before it."""
    cuts = {0, len(p.text)} | {m.end() for m in _ALTERNATIVE.finditer(stated(p.text))} | {a for a, _ in p.sentences()}
    # "and" separates strategies only where both sides are whole ones: "TP 16, and ring attention over 16 devices".
    cuts |= {m.end() for m in re.finditer(r",\s*(?:and|另外|和)\s+", p.text) if _stands_alone(p.text[m.end() :])}
    edges = sorted(cuts)
    out: list[tuple[int, int]] = []
    for a, b in itertools.pairwise(edges):
        if (out and parse_degrees(p.text[a:b]).empty) or (out and parse_degrees(p.text[out[-1][0] : out[-1][1]]).empty):
            out[-1] = (out[-1][0], b)
        else:
            out.append((a, b))
    return [part(p, a, b) for a, b in out]


def _stands_alone(text: str) -> bool:
    d = parse_degrees(text)
    return bool({"ring", "ulysses", "cp"} & d.axes.keys()) or (d.devices is not None and not d.empty)


def _merged(clauses: Sequence[Clause]) -> Clause | None:
    """One proposed strategy: the explicit clause, with what further ones add to it."""
    ordered = sorted(clauses, key=lambda c: (not c.explicit, c.degrees.empty))
    if not ordered:
        return None
    first = ordered[0]
    d = first.degrees
    for c in ordered[1:]:
        o = c.degrees
        if any(d.axes.get(a) and v and d.axes[a] != v for a, v in o.axes.items()):
            continue
        if not first.degrees.empty and not c.explicit and set(o.axes) - set(d.axes):
            continue
        d = Degrees(
            axes={**o.axes, **{a: v for a, v in d.axes.items() if v is not None or a not in o.axes}}, devices=d.devices or o.devices,
            experts_per_device=d.experts_per_device or o.experts_per_device, layers_per_stage=d.layers_per_stage or o.layers_per_stage,
            layers_each=d.layers_each or o.layers_each, slices=d.slices or o.slices, sp=d.sp or o.sp,
            experts_sliced=d.experts_sliced or o.experts_sliced, bindings={**o.bindings, **d.bindings},
        )  # fmt: skip
    return Clause("proposed", [p for c in ordered for p in c.texts][:3], first.model, first.explicit, d)


# ----------------------------------------------------------------------------------------------------------- the method


def _method_sentences(paper: Paper, clauses: Sequence[Clause]) -> Iterator[Passage]:
    """What the paper says about its own method, sentence by sentence: method first, then abstract, then its clauses."""
    own = paper.of("method") or paper.of("introduction")
    for p in (*own, *paper.of("abstract")):
        if _role_of(p) != "baseline":
            for a, b in p.sentences():
                if not _OTHERS.search(p.text[a:b]):
                    yield part(p, a, b)
    for c in clauses:
        if c.role == "proposed":
            yield from c.texts


def _mechanisms(sentences: Sequence[Passage]) -> dict[str, Passage]:
    out: dict[str, Passage] = {}
    for p in sentences:
        for m in MECHANISMS:
            if m.name not in out and re.search(m.regex, p.text, re.I):
                out[m.name] = p
        if (d := parse_degrees(p.text)).experts_per_device:
            out.setdefault("experts_per_device", p)
        if d.layers_each:
            out.setdefault("layers_each", p)
        if d.slices:
            out["slices"] = p if "slices" not in out or not parse_degrees(out["slices"].text).slices else out["slices"]
    if "ulysses" in out and "ring" in out and "ring" not in out["ring"].text.lower():
        del out["ring"]
    return out


def _beyond(sentences: Sequence[Passage]) -> list[Unsupported]:
    out: dict[str, Unsupported] = {}
    for p in sentences:
        for b in BEYOND:
            if (
                b.what not in out
                and (m := re.search(b.regex, p.text, re.I))
                and not re.search(
                    r"\b(?:no|not|without|never)\b|不(?:需要|使用|采用)|无需",
                    p.text[max(0, m.start() - 25) : m.end()],
                    re.I,
                )
            ):
                out[b.what] = Unsupported(what=b.what, why=b.why, evidence=p.quote())
    return list(out.values())


# ---------------------------------------------------------------------------------------------------------- a Strategy


class _Build:
    """Degrees of one strategy as they become known; notes say what was not in the words."""

    def __init__(self, model: PaperModel, clause: Clause, method: dict[str, Passage], setting: Setting) -> None:
        self.model, self.spec, self.clause, self.method, self.setting = model, model.spec, clause, method, setting
        self.d, self.notes = clause.degrees, cast("list[str]", [])
        self.quotes = [p.quote() for p in clause.texts]
        self.axes: dict[str, int | None] = {}
        self.extra: dict[str, Any] = {}

    def cite(self, name: str) -> None:
        if name in self.method:
            self.quotes.append(self.method[name].quote())

    def known(self, *names: str) -> int:
        return prod(self.axes.get(n) or 1 for n in names)


def _strategy(
    model: PaperModel, clause: Clause, role: PaperRole, method: dict[str, Passage], setting: Setting
) -> PaperStrategy:
    """Raises ToolError when nothing says how the model is dealt out."""
    b = _Build(model, clause, method, setting)
    _take_axes(b)
    _take_slices(b)
    _take_layers(b)
    _take_experts(b)
    if not (b.axes or b.extra):
        raise ToolError(
            f"no {role} strategy found for {model.name}; state it like 'Proposed: TP 8 × PP 2 on 16 devices'"
        )
    devices, source = _solve(b)
    strategy, findings = _make(b, devices)
    if strategy.num_devices != devices:
        text = f"{model.name}, {role}: the degrees read ({strategy.label(moe=model.spec.moe is not None)}) take {strategy.num_devices} devices, the paper gives {devices}"
        findings.append(
            Finding(
                code="paper-devices",
                severity="warning",
                cause="input",
                message=text,
                values={"read": strategy.num_devices, "stated": devices},
            )
        )
        b.notes.append(text)
    return PaperStrategy(
        model=model.key, name=role, role=role, title=_title(clause), strategy=strategy,
        num_devices=devices, devices_source=source, quotes=tuple(dict.fromkeys(b.quotes)), notes=tuple(b.notes), findings=tuple(findings),
    )  # fmt: skip


def _title(clause: Clause) -> str:
    words = re.sub(r"^\W*[(（]?(?:\d|[a-z])[)）]\s*|\s*[(（]?(?:\d|[a-z])[)）]\s*$", "", clause.words)
    return words.strip(" ;；.。,，")[:160] or "as the method says"


def _take_axes(b: _Build) -> None:
    """Axes that the clause names, then those the method names."""
    d, m = b.d, b.method
    for axis in ("tp", "pp", "dp", "ep", "etp", "attn_dp", "dcp"):
        if axis in d.axes:
            b.axes[axis] = d.axes[axis]
    crossing = next((a for a in ("ulysses", "ring", "cp", "sp") if a in d.axes and (a != "sp" or _sp_is_cp(b))), None)
    from_method = next((k for k in ("ulysses", "ring") if k in m), None)
    if crossing or (from_method and not _only_local(b)):
        degree = next(
            (d.axes[a] for a in ("ulysses", "ring", "cp", "sp") if d.axes.get(a) and (a != "sp" or _sp_is_cp(b))), None
        )
        b.axes["cp"] = degree or d.bindings.get("P") or d.bindings.get("p")
        kind = (
            crossing if crossing in ("ulysses", "ring") else from_method or ("ring" if crossing == "cp" else "ulysses")
        )
        b.extra["cp_kind"] = kind
        if crossing in ("cp", "sp") and not from_method:
            b.notes.append(f"how attention crosses the split sequence is not said: {kind} assumed")
        b.cite(kind)
    elif d.sp or "sp" in d.axes or ("sp" in m and ("tp" in d.axes)):
        b.extra["sp"] = True
        b.cite("sp")
    if "dcp" in m and "dcp" not in b.axes:
        b.axes["dcp"] = d.bindings.get("K")
        b.cite("dcp")


def _sp_is_cp(b: _Build) -> bool:
    """ "SP 16" beside no equal TP splits the sequence over ranks of its own (Ulysses); beside TP it splits norms over TP's."""
    degree = b.d.axes.get("sp")
    return degree is not None and b.d.axes.get("tp") != degree and not ("tp" in b.d.axes and b.d.axes["tp"] is None)


def _only_local(b: _Build) -> bool:
    """The clause names other axes with degrees that fill its devices, so that the method's text adds none."""
    return b.d.devices is not None and prod(v or 1 for v in b.d.axes.values()) == b.d.devices and bool(b.d.axes)


def _take_slices(b: _Build) -> None:
    slices = b.d.slices
    if slices is None and "slices" in b.method:
        read = parse_degrees(b.method["slices"].text)
        slices = read.slices or (None, None)
        letters = re.search(r"into (?P<n>[A-Za-z]) groups?.*?into (?P<m>[A-Za-z]) ", b.method["slices"].text)
        n, k = (letters["n"], letters["m"]) if letters else ("n", "m")
        slices = (slices[0] or b.d.bindings.get(n), slices[1] or b.d.bindings.get(k))
        grid = re.search(r"(?<![\d.])(\d+)\s*[×x]\s*(\d+)(?![\d.])", b.clause.words)
        if grid and None in slices:
            slices = (int(grid[1]), int(grid[2]))
    if slices is None:
        return
    b.cite("slices")
    groups, parts = slices
    total = b.d.devices or b.d.axes.get("tp") or b.setting.num_devices
    groups = groups or (total // parts if total and parts else None)
    parts = parts or (total // groups if total and groups else None)
    if groups is None or parts is None:
        raise ToolError(
            f"{b.model.name}: heads are dealt out in groups and d_k in slices, but how many is not said; state e.g. n = 4, m = 4"
        )
    b.axes["tp"] = groups * parts
    b.extra["dk"] = parts
    b.notes.append(
        f"{groups} head groups × {parts} slices of d_k = {groups * parts} ranks of attention; the MLP is split over the same ranks"
    )


def _take_layers(b: _Build) -> None:
    layers = b.spec.num_hidden_layers
    each = b.d.layers_each
    if each is None and "layers_each" in b.method and "pp" not in b.d.axes and not b.axes:
        each = parse_degrees(b.method["layers_each"].text).layers_each
        b.cite("layers_each")
    if b.d.layers_per_stage and sum(b.d.layers_per_stage) == layers:
        b.axes["pp"] = len(b.d.layers_per_stage)
        b.extra["layers_per_stage"] = b.d.layers_per_stage
    elif b.d.layers_per_stage and "pp" in b.axes:
        b.notes.append(
            f"layers per stage {'+'.join(map(str, b.d.layers_per_stage))} = {sum(b.d.layers_per_stage)}, but {b.model.name} has {layers}; the even split is used"
        )
    if each and ("pp" in b.axes or "layerwise" in b.method or not b.axes):
        stages = -(-layers // each)
        b.axes["pp"] = b.axes.get("pp") or stages
        if layers % each == 0 and b.axes["pp"] == stages:
            b.extra["layers_per_stage"] = (each,) * stages
    if "layerwise" in b.method and "pp" not in b.axes and not {"tp", "cp", "ep"} & b.axes.keys():
        b.axes["pp"] = None
        b.cite("layerwise")


def _take_experts(b: _Build) -> None:
    """EP, and attention beside it."""
    moe = b.spec.moe
    if moe is None:
        for axis in ("ep", "etp"):
            b.axes.pop(axis, None)
        return
    per_device = b.d.experts_per_device
    if per_device is None and "experts_per_device" in b.method:
        per_device = parse_degrees(b.method["experts_per_device"].text).experts_per_device
        b.cite("experts_per_device")
    if "ep" not in b.axes and ("ep" in b.method or per_device) and not b.d.experts_sliced and not _only_local(b):
        b.axes["ep"] = None
        b.cite("ep")
    if b.axes.get("ep") is None and per_device and not b.d.experts_sliced:
        b.axes["ep"] = max(1, -(-moe.num_experts // per_device))
        b.notes.append(f"EP = {moe.num_experts} experts / {per_device} per device = {b.axes['ep']}")
    if "ep" in b.axes and ("attn_dp" in b.method or "attn_dp" in b.axes):
        b.axes.setdefault("attn_dp", None)
        b.cite("attn_dp")
        if b.axes["attn_dp"] is None and b.axes.get("dp") and b.axes.get("dp") != 1:
            b.axes["attn_dp"] = b.axes.pop("dp")  # "DP 16 + EP 16": the data parallelism is that of attention


def _solve(b: _Build) -> tuple[int, DevicesSource]:
    """Fills the one degree that is named without a number, and says how many devices the strategy takes."""
    devices, source = b.d.devices, cast("DevicesSource", "stated")
    a = b.axes
    outer = ("tp", "pp", "cp", "dp", "attn_dp")
    open_axes = [n for n in (*outer, "ep") if n in a and a[n] is None]
    if devices is None:
        wide = max(b.known("tp", "cp", "attn_dp"), b.known("ep", "etp")) * b.known("pp", "dp")
        if open_axes and not (open_axes == ["attn_dp"] and a.get("ep")) and b.setting.num_devices:
            devices, source = b.setting.num_devices, "hardware"
            b.notes.append(f"no number of devices stated for it: all {devices} of the set-up")
        else:
            devices, source = wide, "product"
    moe = b.spec.moe
    if (
        moe
        and a.get("ep")
        and "attn_dp" not in a
        and a.get("dp", 1)
        and (a.get("dp") or 1) > 1
        and (a["ep"] or 1) > b.known("tp", "cp")
    ) and (
        b.known("tp", "cp", "dp", "pp") in (devices, b.known("ep", "pp"))
        or (a["ep"] or 1) % b.known("tp", "cp", "dp") == 0
    ):
        a["attn_dp"] = a.pop("dp")
        b.notes.append("data parallelism beside EP is that of attention: the replicas share the experts")
    if "ep" in a and "attn_dp" not in a:
        group = devices // b.known("pp", "dp")
        if group > b.known("tp", "cp") and (a["ep"] is None or (a["ep"] or 1) > b.known("tp", "cp")):
            a["attn_dp"] = None
            b.notes.append("attention beside EP is not described: data-parallel over the same devices, as usual")
    for axis in [n for n in outer if n in a and a[n] is None]:
        rest = b.known(*outer)
        if devices % rest:
            raise ToolError(
                f"{b.model.name}, {b.clause.role}: {devices} devices do not split over the other degrees ({rest}); state the degree of {axis}"
            )
        a[axis] = devices // rest
        if axis == "pp" and a[axis] and a[axis] > b.spec.num_hidden_layers:  # type: ignore[operator]
            a[axis] = b.spec.num_hidden_layers
    if "ep" in a and a["ep"] is None:
        group = b.known("tp", "cp", "attn_dp")
        a["ep"] = min(group, moe.num_experts) if moe else 1
        b.notes.append(f"EP's degree is not said: {a['ep']}, the devices that attention takes")
    return devices, source


def _make(b: _Build, devices: int) -> tuple[Strategy, list[Finding]]:
    a, findings = {k: v for k, v in b.axes.items() if v}, []  # type: ignore[var-annotated]
    have = prod(a.get(n, 1) for n in ("tp", "pp", "cp", "dp", "attn_dp"))
    if "attn_dp" not in a and a.get("ep", 1) * a.get("etp", 1) > a.get("tp", 1) * a.get("cp", 1):
        have = a.get("ep", 1) * a.get("etp", 1) * a.get("pp", 1) * a.get("dp", 1)
    if "dp" not in a and have < devices and devices % have == 0 and b.d.devices is not None:
        a["dp"] = devices // have
        b.notes.append(f"{have} devices hold one copy of the model; {devices} devices hold {a['dp']} replicas")
    if b.spec.moe and "ep" in a and a["ep"] > b.spec.moe.num_experts:
        b.notes.append(
            f"EP {a['ep']} is more than {b.spec.moe.num_experts} experts: each has {a['ep'] // b.spec.moe.num_experts} copies"
        )
        a["ep"] = b.spec.moe.num_experts
    if "attn_dp" in a and "ep" in a and "etp" not in a:
        group = a.get("tp", 1) * a.get("cp", 1) * a["attn_dp"]
        if b.d.experts_per_device or "experts_per_device" in b.method:
            a["etp"] = 1  # whole experts; what EP leaves of the group are copies
        elif group % a["ep"]:
            raise ToolError(
                f"{b.model.name}, {b.clause.role}: {group} devices do not split over EP {a['ep']}; state EP among the divisors of {group}"
            )
    batch = max(1, b.model.batch_size // a.get("dp", 1))
    fields: dict[str, Any] = {
        **a,
        **b.extra,
        "weight_dtype": b.spec.weight_dtype,
        "kv_dtype": _kv(b.spec),
        "batch": batch,
        "name": b.clause.role,
    }
    if fields.get("layers_per_stage") and len(fields["layers_per_stage"]) != a.get("pp", 1):
        fields.pop("layers_per_stage")
    if a.get("pp", 1) > b.spec.num_hidden_layers:
        raise ToolError(
            f"{b.model.name}, {b.clause.role}: {a['pp']} pipeline stages for {b.spec.num_hidden_layers} layers; use at most one stage per layer"
        )
    try:
        return Strategy.model_validate(fields), findings
    except ToolError as e:
        raise ToolError(f"{b.model.name}, {b.clause.role} ({b.clause.words[:80]!r}): {e}") from None


def _kv(spec: ModelSpec) -> str:
    return spec.weight_dtype if spec.weight_dtype in ("fp16", "bf16", "fp32") else "bf16"
