"""Clauses: which words of a paper state whose strategy, baseline or proposed, for which model."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from agent.reading.paper_degrees import Degrees, parse_degrees, stated
from agent.reading.paper_groups import mentions
from agent.reading.paper_rows import (
    by_title_role,
    column_clauses,
    entry_words,
    measured,
    row_words,
    stage_clauses,
    tables,
)
from agent.reading.paper_schedule import threshold
from agent.reading.paper_shapes import SHAPE_NAMES, find_facts, find_workload
from agent.reading.paper_text import Paper, Passage, part, section_kind
from tools.spec.paper import PaperModel, PaperRole

_DEV = r"(?:GPUs?|NPUs?|devices?|cards?|ranks?|accelerators?|nodes?|卡|设备)"
BASELINE = re.compile(
    r"\bwhat we (?:had|did|used|ran) before\b|\bbase ?lines?\b|compar\w+ (?:with|to|against)|versus|\bcomparators?\b|\breference (?:point|deployment|configuration|config|system|set-?up|scheme|strategy|layout|plan)|\bcontrol (?:group|set-?up|deployment)|conventional (?:deployment|layout|set-?up|scheme|plan)|\bstatus quo\b|基线|对照|参照|基准(?:方案|方法|部署|策略)|对比(?:方案|方法|对象)|传统(?:方案|部署)",
    re.I,
)
PROPOSED = re.compile(
    r"\bwhat we (?:do|run|use) now\b|\bproposed\b|\bours\b|\bour (?:method|approach|scheme|strategy|system|deployment|proposal)|\bthis (?:paper(?:'s)? (?:method|approach)|work)\b|\b(?:new|suggested) (?:scheme|layout|deployment|plan|strategy|placement)|所提|提出的|本文(?:方法|方案|策略)?|本(?:方法|方案|工作|策略)|新方案|我们的(?:方法|方案|部署|策略)",
    re.I,
)
_BASELINE_LABEL = re.compile(
    r"(?:the )?(?:control|competitors?|comparisons?|prior (?:practice|art)|what (?:we|i) compared? (?:against|with|to)(?: .{0,20})?|(?:common|current|today's|usual) (?:practice|deployment|layout)|before|(?:对比|常规|现有|原有)(?:方案|部署|做法)?)",
    re.I,
)
_PROPOSED_LABEL = re.compile(
    r"(?:the )?(?:treatment|mine|ours|suggestion|recommend(?:ed|ation)(?: \w+)?|we (?:recommend|suggest|propose|advocate|use)|after|改进(?:方案|后)?|优化后)",
    re.I,
)
"""Labels that name a role only where they are the whole label."""
_WE = re.compile(
    r"\bwe (?:use|run|deploy|place|set|choose|apply|split|partition|evaluate|distribute)|\bour\b|我们(?:采用|使用|部署|将)",
    re.I,
)


@dataclass(slots=True)
class Clause:
    """One strategy in words. `texts` are the passages it is made of, `model` the key it is for (None: every model)."""

    role: PaperRole
    texts: list[Passage]
    model: str | None = None
    explicit: bool = True
    """Under a label or heading that says its role."""
    degrees: Degrees = field(default_factory=Degrees)
    unsure: bool = False
    """Its role is a guess: it states a strategy, and nothing says whose."""
    last: bool = False
    """Counts only where nothing else states a baseline."""
    said_as: str = ""
    """The words, where only some of the passages' are about it."""

    @property
    def words(self) -> str:
        if self.said_as:
            return self.said_as
        words = _joined(p.said if p.body else p.text for p in self.texts)
        spelled = "; ".join(self.texts[0].terms.spelled(words)) if self.texts else ""
        return f"{words} ⟨{spelled}⟩" if spelled else words


def _joined(pieces: Iterable[str]) -> str:
    """One after the other; items that end without a mark do not run into the next."""
    out = ""
    for piece in (" ".join(p.split()) for p in pieces):
        out += ("" if not out else " " if out[-1] in ".;:,。；：，" else "; ") + piece
    return out


@dataclass(frozen=True, slots=True)
class Setting:
    """What strategies are read against."""

    num_devices: int | None
    per_node: int | None
    fast_memory: tuple[float, Passage] | None = None
    """Bytes of cache or SRAM of a device, and the passage that states them."""

    @property
    def num_nodes(self) -> int | None:
        return -(-self.num_devices // self.per_node) if self.num_devices and self.per_node else None


_ALL_DEVICES = re.compile(
    rf"\b(?:the same|all(?: of)?(?: the)?|every one of the) (?:\d+ |\w+ )?{_DEV}|所有的?{_DEV}|全部{_DEV}|相同的?{_DEV}",
    re.I,
)


def clauses_of(paper: Paper, models: Sequence[PaperModel], setting: Setting) -> list[Clause]:
    out = _headed(paper, models)
    under = {t for c in out for p in c.texts[:1] for t in [p.raw]}
    for p in paper.passages:
        if p.section and p.section[-1] in under:
            continue
        if section_kind(p.section) in ("related", "references", "conclusion"):
            continue
        if p.kind not in ("row", "data"):
            role = role_of(p)
            if role is None and section_kind(p.section) not in ("experiments", "results", ""):
                continue
            out += _labelled(p, role, models) if role else _sentences(p, models)
    for rows in tables(paper.passages):
        if section_kind(rows[0].section) not in ("related", "references", "conclusion"):
            out += _table(rows, models)
    out += data_clauses(paper, models)
    out = _together(out, setting)
    for c in out:
        c.degrees = parse_degrees(c.words, per_node=setting.per_node, num_nodes=setting.num_nodes)
        if c.degrees.devices is None and not any(c.degrees.axes.values()) and _ALL_DEVICES.search(c.words):
            c.degrees.devices = setting.num_devices
    kept = [c for c in out if not c.degrees.empty or (c.role == "proposed" and c.explicit and not _beside_the_point(c))]
    if any(c.role == "baseline" and not c.last and any(c.degrees.axes.values()) for c in kept):
        kept = [c for c in kept if not c.last]
    return _settled(kept)


def _beside_the_point(c: Clause) -> bool:
    """A statement under the method's name that deals nothing out: what was measured, or the model it was measured with."""
    measured_there = bool(c.texts) and section_kind(c.texts[0].section) == "results"
    return measured_there or _describes_a_model(c)


def _describes_a_model(c: Clause) -> bool:
    """Shapes, batch and lengths under "we evaluate our method on a model with:" are no words about a strategy."""
    if not any(len(label.split()) > 6 for p in c.texts for label in _outer(p)):
        return False
    told = set(find_facts(c.texts)) & SHAPE_NAMES or find_workload(c.texts)
    return bool(told) and not mentions(c.words) and threshold(c.words) is None and not c.degrees.bindings


def _settled(clauses: list[Clause]) -> list[Clause]:
    """Clauses of unsure role: the last one of a paper that names no proposed strategy is it, the others are baselines."""
    sure = [c for c in clauses if not c.unsure]
    unsure = [c for c in clauses if c.unsure]
    if not unsure:
        return clauses
    said = {c.role for c in sure if not c.degrees.empty or mentions(c.words)}
    if "proposed" not in said:
        last = {unsure[-1].model} if unsure[-1].model is None else {c.model for c in unsure}
        for model in last:
            [c for c in unsure if c.model == model][-1].role = "proposed"
    elif "baseline" in said:
        unsure = [c for c in unsure if c.texts[0].kind == "row"]
    return [*sure, *unsure]


def _headed(paper: Paper, models: Sequence[PaperModel]) -> list[Clause]:
    """Headings that carry degrees ("Baseline (TP=8, PP=2)"), with what stands below them."""
    out = []
    for line, title in paper.headings:
        base = bool(BASELINE.search(title))
        prop = bool(PROPOSED.search(title)) or paper.terms.names_own(title)
        if base == prop or parse_degrees(title).empty or section_kind((title,)) == "method":
            continue
        below = [p for p in paper.passages if p.section and p.section[-1] == title]
        file = paper.passages[0].file if paper.passages else ""
        heading = Passage(file, title, title, ((0, line),), kind="heading")
        out.append(Clause("baseline" if base else "proposed", [heading, *below], _model_key(title, models)))
    return out


_PLURAL = re.compile(
    r"\b(?:baselines|comparisons|competitors|strategies|methods|systems|configurations|alternatives)\b", re.I
)


def _together(clauses: Sequence[Clause], setting: Setting) -> list[Clause]:
    """Items below one heading that give one axis each ("TP: 8-way", "PP: 2-way", "Total GPUs: 16") are parts of one baseline;
    items that repeat an axis, that fill the devices alone, or that stand below a plural are alternatives."""
    out: list[Clause] = []
    for place, group in itertools.groupby(clauses, _place):
        items = list(group)
        if place is not None and out and (whole := _carried_on(out[-1], items)):
            out[-1] = whole
            continue
        if place is None or not _are_parts(items, setting):
            out += items
            continue
        telling = [c for c in items if not parse_degrees(c.words).empty or parse_degrees(c.words).devices]
        words = "; ".join(c.words.strip(" .;") for c in telling)
        out.append(replace(items[0], texts=[p for c in telling for p in c.texts], said_as=words))
    return out


def _carried_on(before: Clause, items: Sequence[Clause]) -> Clause | None:
    """ "Baseline (TP=8, PP=2):" and the items below it: what they say of devices belongs to it, and states no other baseline."""
    outer = _outer(items[0].texts[0])[-1:]
    head = before.texts[-1].text.strip(" *_:：")
    if before.role != "baseline" or not outer or not outer[0] or not head.startswith(outer[0].strip(" *_:：")):
        return None
    if not any(parse_degrees(before.words).axes.values()):
        return None
    told = [c for c in items if parse_degrees(c.words).devices and not any(parse_degrees(c.words).axes.values())]
    words = "; ".join(x.words.strip(" .;") for x in (before, *told))
    return replace(before, texts=[*before.texts, *(p for c in told for p in c.texts)], said_as=words)


def _place(c: Clause) -> tuple[object, ...] | None:
    """The list that a baseline's item stands in; None for anything else."""
    p = c.texts[0] if c.texts else None
    if c.role != "baseline" or not c.explicit or p is None or p.kind != "bullet" or c.said_as:
        return None
    return (p.file, p.section, _outer(p), c.model)


def _outer(p: Passage) -> tuple[str, ...]:
    """The labels around an item, without its own."""
    labels = p.label.split(" / ")
    own = labels[-1] and p.text.strip(" *_").lower().startswith(labels[-1].lower())
    return tuple(labels[:-1] if own else labels)


def _are_parts(items: Sequence[Clause], setting: Setting) -> bool:
    told = [parse_degrees(c.words, per_node=setting.per_node, num_nodes=setting.num_nodes) for c in items]
    axes = [{a: v for a, v in d.axes.items() if v} for d in told]
    named = [set(a) for a in axes if a]
    if len(named) < 2 or sum(map(len, named)) != len(set().union(*named)):
        return False
    title = " ".join((*items[0].texts[0].section[-1:], items[0].texts[0].label))
    alone = [prod(a.values()) == setting.num_devices for a in axes if a]
    return not _PLURAL.search(title) and not any(alone)


_ASIDE = re.compile(r"performance|metric|result|communicat|memory|hardware|\bmodel|mapping|input|training", re.I)
"""Parts of a deployment's data that say nothing of how the model is dealt out."""


def data_clauses(paper: Paper, models: Sequence[PaperModel]) -> Iterator[Clause]:
    """One clause for everything below a key that names a role ("baseline": {"tensor_parallelism": 8, …})."""
    groups: dict[tuple[str, ...], list[Passage]] = {}
    roles: dict[tuple[str, ...], PaperRole] = {}
    for p in paper.passages:
        way = tuple(p.label.split(" / ")) if p.kind == "data" else ()
        for i, key in enumerate(way):
            base, prop = _roles_in(key, p)
            if base != prop:
                groups.setdefault(way[: i + 1], []).append(p)
                roles[way[: i + 1]] = "baseline" if base else "proposed"
                break
    for root, parts in groups.items():
        below = [p for p in parts if not _ASIDE.search(" ".join(p.label.split(" / ")[len(root) :]))]
        words = [w for p in below for w in entry_words(p)]
        if words:
            yield Clause(roles[root], below, _model_key(" ".join(root), models), said_as="; ".join(words))


def role_of(p: Passage) -> PaperRole | None:
    """By its labels, innermost first, then by the headings around it; a method section is no set-up."""
    for title in (*reversed(p.label.split(" / ")), *reversed(p.section[1:])):
        if title not in p.section and len(title.split()) > 6 and p.section and _of_method(p, p.section[-1]):
            continue  # a sentence of the method that leads to a list
        base, prop = _roles_in(title, p)
        heading = title in p.section and _of_method(p, title) and not _inside_set_up(p, title)
        if heading and not re.match(r"what we", title, re.I):
            continue
        if base != prop:
            return "baseline" if base else "proposed"
    return None


def _of_method(p: Passage, title: str) -> bool:
    """Whether a heading is the method's, or stands below one that is; "Proposed method parameters" head a set-up."""
    around = p.section[: p.section.index(title) + 1]
    return any(section_kind((t,)) == "method" for t in around) and not any(_SETTINGS.search(t) for t in around)


_SETTINGS = re.compile(
    r"\b(?:parameters?|configurations?|deployments?|set-?ups?|settings?)\b|参数|配置|部署|设置", re.I
)


def _ours(title: str) -> PaperRole:
    return "proposed" if re.search(r"\bour\b|我们", title, re.I) else "baseline"


def _roles_in(title: str, p: Passage) -> tuple[bool, bool]:
    """Whether a label or heading names the baseline, the proposed method (by the paper's own name for it, too)."""
    bare = title.strip(" *_:：.")
    base = bool(BASELINE.search(title)) or bool(_BASELINE_LABEL.fullmatch(bare))
    prop = bool(PROPOSED.search(title)) or bool(_PROPOSED_LABEL.fullmatch(bare)) or p.terms.names_own(title)
    return base, prop


def _inside_set_up(p: Passage, title: str) -> bool:
    """ "4.3 Proposed method" below "4 Experiments" is set-up."""
    outer = p.section[: p.section.index(title)]
    return any(section_kind((t,)) == "experiments" for t in outer)


_SIDE = re.compile(r"prefill|decod|attention|experts?\b|\bbase\b|\bpool|预填|解码|注意力|专家|基础|池", re.I)
"""Groups, pools and phases that a label may name beside a role."""


def _labelled(p: Passage, role: PaperRole, models: Sequence[PaperModel]) -> Iterator[Clause]:
    # The label itself may carry the degrees: "Baseline (TP=8, PP=2): each GPU …"
    label = p.text[: p.body]
    carries = p.body and (
        _role_in(label, p) is None
        or not parse_degrees(label).empty
        or bool(mentions(label))
        or bool(_SIDE.search(label))
    )
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
        base = bool(BASELINE.search(sentence.text))
        prop = bool(PROPOSED.search(sentence.text)) or bool(_WE.search(sentence.text))
        if not base and not prop:
            if section_kind(p.section) == "experiments" and any(parse_degrees(sentence.text).axes.values()):
                yield from (Clause("baseline", [x], k, False, unsure=True) for k, x in _by_model(sentence, models))
            continue
        role: PaperRole = "baseline" if base else "proposed"
        for key, piece in _by_model(sentence, models):
            for text in _alternatives(piece) if base else [piece]:
                yield Clause(role, [text], key, False)


def _table(rows: Sequence[Passage], models: Sequence[PaperModel]) -> Iterator[Clause]:
    """One strategy per row or per column. An unmarked one is a baseline if another one is marked as proposed."""
    staged = list(stage_clauses(rows))
    if staged and any(_role_in(name, p) for name, p in staged):
        for name, p in staged:
            yield Clause(_role_in(name, p) or _ours(name), [p], _model_key(name, models))
        return
    titled = [
        (p, t, r[0].cells[0][1]) for r in by_title_role(rows) for t, p in column_clauses(r) if _model_key(t, models)
    ]
    if titled:  # "EP (proposed)" by model
        for p, title, row in titled:
            yield Clause(_role_in(row, p) or "proposed", [p], _model_key(title, models))
        return
    columns = [(t, p) for t, p in column_clauses(rows) if any(_roles_in(t, p))]
    if columns:
        for title, p in columns:
            yield Clause(_role_in(title, p) or "baseline", [p], _model_key(title, models))
        return
    if all(measured(r) for r in rows):
        yield from _compared_columns(rows, models)
        return
    found = [(" ".join(c for _, c in p.cells), p, words) for p in rows if (words := row_words(p))]
    marked = any(_role_in(name, p) == "proposed" for name, p, _ in found)
    for name, p, words in found:
        role = _role_in(name, p)
        clause = Clause(role or "baseline", [replace(p, text=words, body=0)], _model_key(name, models))
        clause.unsure = role is None and not marked
        yield clause


def _compared_columns(rows: Sequence[Passage], models: Sequence[PaperModel]) -> Iterator[Clause]:
    """Columns of measurements whose titles are degrees ("TPOT | TP=8, PP=2 | ours"): the strategies compared with."""
    line, header = rows[0].head
    for title, _ in rows[0].cells[1:]:
        at = header.find(title)
        if at >= 0 and any(parse_degrees(title).axes.values()) and _role_in(title, rows[0]) != "proposed":
            here = replace(rows[0], raw=header, text=title, lines=((0, line),), cells=(), kind="head", body=0, label="")
            yield Clause("baseline", [here], _model_key(title, models), explicit=False, last=True)


def _role_in(text: str, p: Passage) -> PaperRole | None:
    """The one role that a text names; a text that names both is one about the proposed."""
    base, prop = _roles_in(text, p)
    return "baseline" if base and not prop else "proposed" if prop and not base else None


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
    r"\s*(?:[(（](?:\d|[a-z]|i{1,3}|iv)[)）]|(?:(?<=[;；:：,，.]\s)|^)\d\)|[;；]|,?\s+or\s+|,?\s+versus\s+|,?\s+as well as\s+|以及)\s*"
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


def _aside(c: Clause) -> bool:
    """Whether a clause stands outside the set-up."""
    return bool(c.texts) and section_kind(c.texts[0].section) not in ("experiments", "")


def merged(clauses: Sequence[Clause]) -> Clause | None:
    """One proposed strategy: the explicit clause, with what further ones add to it."""
    ordered = sorted(clauses, key=lambda c: (not c.explicit, c.degrees.empty, _aside(c), not re.search(r"\d", c.words)))
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
            experts_sliced=d.experts_sliced or o.experts_sliced, microbatches=d.microbatches or o.microbatches, bindings={**o.bindings, **d.bindings},
        )  # fmt: skip
    told = sorted(ordered[:12], key=lambda c: (not c.explicit, _aside(c), c.texts[0].lines[0][1] if c.texts else 0))
    return Clause("proposed", [p for c in told for p in c.texts], first.model, first.explicit, d)
