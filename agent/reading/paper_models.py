"""The models of a paper: which passages describe which, and the ModelSpec that follows, gaps assumed by name."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from agent.reading.paper_clauses import role_of
from agent.reading.paper_rows import measured
from agent.reading.paper_shapes import SHAPE_NAMES, Found, find_facts, spelled_title
from agent.reading.paper_spec import spec_of
from agent.reading.paper_text import Paper, Passage, part, section_kind
from agent.reading.paper_workload import read_workload
from knowledge import catalog
from tools.spec.base import ToolError
from tools.spec.conditions import Fact
from tools.spec.model import ModelSpec
from tools.spec.paper import PaperModel, Unsupported

_NAMED = re.compile(
    r"\bModels?[ -]([A-Z](?:[\w.-]{0,12})|\d{1,2})\b(?!\s*(?:[Pp]arallel|[Ss]ize))|模型\s*([A-Z0-9][\w.-]{0,10})(?![a-z])"
)
_KINDS = re.compile(
    r"(?:(?P<layers>\d+)[- ]layer )?(?P<kind>dense|fully[- ]connected(?: dense)?|MoE|mixture[- ]of[- ]experts?(?: \(MoE\))?|稠密|混合专家)\s*(?:transformers?|models?|LLMs?|networks?|模型)?",
    re.I,
)
_EVERYONE = re.compile(
    r"(?<![A-Za-z])(?:All|Both|Each|Every)(?: of (?:them|the models))?(?: (?:two|three|the))?(?: models?| networks?| runs?)?(?: (?:use|run|share|have|are|in|with))|(?<![A-Za-z])(?:Both|All)\s*[:：]|(?<=[.;。；] )(?:Both|All)\b(?! (?:experts?|layers?|devices|ranks|heads|of (?:its|the) (?:layers|experts)))|(?:两个|所有|全部|两者)(?:模型)?(?:均|都)?(?:采用|使用|为)|(?:两个|所有|全部)模型",
    re.M,
)
"""Where a passage turns from one model to all of them."""
_KIND_PAREN = re.compile(
    r"(?P<kind>dense|MoE|mixture[- ]of[- ]experts?|稠密|混合专家)\s*(?:transformer|model|network|模型)?\s*[(（]\s*(?P<layers>\d+)[- ]?(?:layers?|层)",
    re.I,
)
_MODEL_KIND = re.compile(
    r"(?:\b(?:the|an?|one|our)\s+)?\b(?P<kind>dense|MoE|mixture[- ]of[- ]experts?)\s+(?:transformer|model|LLM|network|one)\b|(?P<kind1>稠密|MoE|混合专家)模型",
    re.I,
)
_KIND_LABEL = re.compile(
    r"(?:the |our )?(?:(?P<kind>dense|fully[- ]connected)|(?P<kind1>MoE|mixture[- ]of[- ]experts?)|(?P<kind2>稠密|混合专家))(?: \(MoE)?\)?\s*(?:transformers?|models?|LLMs?|networks?|模型)?\s*$",
    re.I,
)
"""A label that is a kind of model: "Dense Transformer"."""
_LISTED = re.compile(
    r"(?:^|(?<=[;；.。,，:：])|(?<=[;；.。,，:：] )|[(（][\da-z]{1,4}[)）])\s*(?P<name>[A-Z][\w.-]{0,15}(?:[ -](?:dense|MoE|small|large|base))?)\s*(?:[:：]|\s[—–-])\s*(?=\S)",
    re.I,
)
_SAME = re.compile(
    r"(?:(?:the )?same as|(?<![a-z])as|like|identical to|shares? (?:the|its) (?:shape|configuration) (?:of|with))\s+(?:in )?(?:model )?(?P<k>[A-Z][\w.-]*)(?=\s*[,;.(]| but| except| with)"
    r"|(?:与|同)\s*(?:模型)?\s*(?P<k1>[A-Z][\w.-]*)\s*(?:相同|一致|[,，])", re.I
)  # fmt: skip
_SKIPPED = ("related", "references", "appendix", "results", "conclusion")
_ROLE = re.compile(r"baseline|proposed|our(?:s| method)|基线|对照|提出|本文方法", re.I)


@dataclass(slots=True)
class Draft:
    """A model as its passages are collected."""

    name: str
    passages: list[Passage] = field(default_factory=list)
    spec: ModelSpec | None = None
    """From the catalogue, where it is a published model."""

    @property
    def keys(self) -> tuple[str, ...]:
        """What the paper may call it elsewhere."""
        short = re.sub(r"^(?:model|模型)[ -]*", "", self.name, flags=re.I)
        return tuple(dict.fromkeys((self.name, short)))


def slug(name: str) -> str:
    """A model's name, fit for a file name: "Model A" → model_a."""
    out = re.sub(r"[^0-9A-Za-z\u4e00-\u9fff]+", "_", name).strip("_").lower()
    return out[:40] or "model"


def set_up(paper: Paper) -> list[Passage]:
    """Passages that may state the set-up: the experiments, else everything that is not about others' work or results."""
    wanted = [
        p
        for p in paper.passages
        if section_kind(p.section) == "experiments"
        or (
            re.search(r"model|set[- ]?up|config|workload|模型|设置|配置", " ".join(p.section[1:]), re.I)
            and not re.search(r"problem|notation|formulation|问题|记号", " ".join(p.section[-1:]), re.I)
        )
    ]
    wanted = [p for p in wanted if section_kind(p.section) not in ("related", "references")]
    wanted = [*(p for p in wanted if p.kind != "data"), *(p for p in paper.passages if p.kind == "data")]
    if not any(_declares(find_facts([p])) for p in wanted) and not any(find_facts([p]) for p in wanted):
        wanted = [p for p in paper.passages if section_kind(p.section) not in _SKIPPED]
    return wanted


def read_models(paper: Paper) -> list[PaperModel]:
    """Every model with its shape and workload. Raises ToolError when the paper describes none."""
    passages = set_up(paper)
    drafts, common = _drafts(passages)
    if not drafts:
        drafts = _published(passages) or _published(
            [p for p in paper.passages if section_kind(p.section) not in _SKIPPED]
        )
    if drafts and drafts[0].spec is not None:
        drafts = [*_beside_published(passages), *drafts]
    if not drafts and _declares(find_facts(common)):
        drafts = [Draft("")]
    if not drafts:
        everywhere = [p for p in paper.passages if section_kind(p.section) not in _SKIPPED]
        drafts, common = _drafts(everywhere)
        drafts = drafts or ([Draft("")] if _declares(find_facts(common)) else [])
    if not drafts:
        raise ToolError(
            "the paper describes no model; state layers, hidden size, heads and MLP width, or name a published model"
        )
    fallback = [p for p in paper.of("abstract", "introduction", "method") if not _ROLE.search(p.label)]
    made = [_model(d, drafts, common, fallback) for d in drafts]
    return _unique(made)


_ANOTHER = re.compile(
    r"\b(?:the|a|an|our|one) (?P<kind>dense|MoE|sparse|mixture[- ]of[- ]experts?) (?:model|network|LLM|transformer)\b",
    re.I,
)


def _beside_published(passages: Sequence[Passage]) -> list[Draft]:
    """ "The dense model has 32 layers, …": a model described beside a published one, in a sentence that does not name that."""
    out = []
    for p in passages:
        for a, b in p.sentences() if p.kind != "row" else ():
            sentence = part(p, a, b)
            m = _ANOTHER.search(sentence.text)
            if m and _declares(find_facts([sentence])) and not list(catalog.find_models_in_text(sentence.text)):
                out.append(Draft("Dense" if m["kind"].lower() == "dense" else "MoE", [sentence]))
    return out


def _declares(facts: dict[str, Found]) -> bool:
    """Whether facts describe a model: its depth or width, and something else of its shape."""
    shape = set(facts) & SHAPE_NAMES
    return len(shape) >= 3 and bool(shape & {"layers", "hidden_size"})


def _drafts(passages: Sequence[Passage]) -> tuple[list[Draft], list[Passage]]:
    """(models with passages of their own, passages that concern all of them)."""
    drafts: dict[str, Draft] = {}
    common: list[Passage] = []
    for p in passages:
        if p.kind == "data":
            common.append(p)
            continue
        if p.kind == "row":
            for name, row in _table_models(p):
                (drafts.setdefault(name, Draft(name)).passages if name else common).append(row)
            continue
        if _ROLE.search(p.label) or (role_of(p) == "baseline" and not _declares(find_facts([p]))):
            continue
        for name, piece in _pieces(p):
            if not name:
                common.append(piece)
            elif name in drafts or set(find_facts([piece])) & SHAPE_NAMES:
                drafts.setdefault(name, Draft(name)).passages.append(piece)
    return list(drafts.values()), common


_OF_SHAPE = re.compile(
    r"layers?|hidden|heads?\b|experts?\b|dim(?:ension)?s?\b|\bsizes?\b|param\w*|specs?|shape|details?|fixed|参数|维度|尺寸|规格",
    re.I,
)
"""Labels that name what is listed, and no model: "Dimensions", "Hidden size", "Fixed parameters"."""


def _pieces(p: Passage) -> Iterator[tuple[str, Passage]]:
    """(model or "", the stretch about it). A label names the model of the whole; else the text is cut where one is named."""
    label = p.label.split(" / ")[-1].strip()
    facts = find_facts([p])
    if named := _NAMED.fullmatch(label) or _NAMED.match(label):
        yield from _for_all(f"Model {named[1] or named[2]}", p)
        return
    if p.body and "layers" in facts and (kind := _KIND_LABEL.match(label)):
        yield from _for_all(_kind_of(kind), p)
        return
    if (
        p.body
        and _declares(facts)
        and not _OF_SHAPE.search(label)
        and not re.fullmatch(
            r"(?:all|both|every|each|shared|common)(?: the)?(?: \w+)? (?:models?|configurations?|runs)|(?:the |our )?(?:models?|architecture|model (?:configuration|architecture|setup|set-up|parameters|details)|configuration|set-?up|setup|workloads?|模型(?:配置|参数|结构)?|实验模型|实验设置)",
            label,
            re.I,
        )
    ):
        yield _bare(label), p
        return
    marks = list(_NAMED.finditer(p.text)) or _listed_names(p)
    if not marks and len({_kind_of(m) for m in _KINDS.finditer(p.text) if m["layers"]}) > 1:
        marks = [m for m in _KINDS.finditer(p.text) if m["layers"]]
    if not marks and len({_kind_of(m) for m in _KIND_PAREN.finditer(p.text)}) > 1:
        marks = list(_KIND_PAREN.finditer(p.text))
    if not marks:
        marks = _kinds_of_models(p)
    if not marks or not set(facts) & SHAPE_NAMES:
        yield "", p
        return
    over = _one_sentence(p, marks)
    cuts = [m.start() for m in marks] + [over]
    if cuts[0] > 0:
        yield "", part(p, 0, cuts[0])
    if over < len(p.text):
        yield "", part(p, over, len(p.text))
    for m, end in zip(marks, cuts[1:], strict=True):
        if m.re is _LISTED:
            name = m["name"]
        else:
            name = _kind_of(m) if m.re in (_KINDS, _MODEL_KIND, _KIND_PAREN) else f"Model {m[1] or m[2]}"
        yield from _for_all(name, part(p, m.start(), end))


def _one_sentence(p: Passage, marks: Sequence[re.Match[str]]) -> int:
    """Where the models' part of a passage is over: models that share one sentence share what the next ones say."""
    for a, b in p.sentences():
        if len(marks) > 1 and a <= marks[0].start() and marks[-1].start() < b:
            return b
    return len(p.text)


def _listed_names(p: Passage) -> list[re.Match[str]]:
    """ "(1) M1: 12 layers …; (2) M2: same as M1 but …": names before a colon inside one passage, where shapes follow."""
    marks = list(_LISTED.finditer(p.text))
    ends = [*(m.start() for m in marks[1:]), len(p.text)]
    pieces = [(m, part(p, m.start(), end)) for m, end in zip(marks, ends, strict=False)]
    shaped = [m for m, piece in pieces if "layers" in find_facts([piece]) or _SAME.search(piece.text)]
    return shaped if len(shaped) > 1 and len({m["name"] for m in shaped}) == len(shaped) else []


def _for_all(name: str, piece: Passage) -> Iterator[tuple[str, Passage]]:
    """What is about one model, and what follows about all."""
    if m := _EVERYONE.search(piece.text):
        yield name, part(piece, 0, m.start())
        yield "", part(piece, m.start(), len(piece.text))
    else:
        yield name, piece


def _kinds_of_models(p: Passage) -> list[re.Match[str]]:
    """Where "the dense model" and "the MoE model" are described one after the other; empty if they are only mentioned."""
    first: dict[str, re.Match[str]] = {}
    for m in _MODEL_KIND.finditer(p.text):
        first.setdefault(_kind_of(m), m)
    marks = sorted(first.values(), key=lambda m: m.start())
    if len(marks) < 2:
        return []
    ends = [*(m.start() for m in marks[1:]), len(p.text)]
    described = all("layers" in find_facts([part(p, m.start(), end)]) for m, end in zip(marks, ends, strict=True))
    return marks if described else []


def _kind_of(m: re.Match[str]) -> str:
    return "MoE" if re.search(r"moe|mixture|混合", m[0], re.I) else "Dense"


def _bare(label: str) -> str:
    """A label without its article and the word model: "The dense model" → "dense model"; none where it is a sentence."""
    if (
        re.match(r"(?:we|our|all|both|it|they|there|this|these|here|for|in|on|to|as)\b", label, re.I)
        and " " in label.strip()
    ):
        return ""
    return re.sub(r"^(?:the|our|an?)\s+", "", label, flags=re.I).strip("() ")


_SHAPE_WORD = re.compile(
    r"layer|hidden|head|expert|ffn|mlp|intermediate|vocab|d_?model|d_?k|d_?ff|top|层|隐藏|头|专家|词表|维", re.I
)


def _table_models(row: Passage) -> Iterator[tuple[str, Passage]]:
    """Models of a table: one per row where columns are dims, one per column where rows are; "" for a list of values."""
    titles = [t for t, _ in row.cells]
    if (
        not row.cells
        or measured(row)
        or re.search(r"TPS|tokens/s|throughput|TPOT|TTFT|latency|speed|吞吐|时延|延迟", " ".join(titles), re.I)
    ):
        return
    if sum(bool(_SHAPE_WORD.search(spelled_title(t))) for t in titles[1:]) >= 2:
        yield _bare(row.cells[0][1]), replace(row, cells=row.cells[1:])
    elif _SHAPE_WORD.search(spelled_title(row.cells[0][1])) or re.search(
        r"batch|seq|activation|norm\b|concurren|requests|users|并发|precision|dtype|context|prompt|output|input|tokens|批|序列|精度|长度",
        row.cells[0][1],
        re.I,
    ):
        key = row.cells[0][1]
        for title, cell in row.cells[1:]:
            value = replace(row, cells=((key, cell),))
            generic = (
                len(row.cells) == 2
                or not re.search(r"\w", title)
                or re.fullmatch(r"values?|settings?|值|取值|数值", title, re.I)
            )
            yield ("" if generic else _bare(title)), value


_ONLY_A_PART = re.compile(r"(?:'s)?[ -]*(?:tokeni[sz]er|vocab\w*|BPE|分词器|词表)", re.I)
"""Behind a published model's name, where only its tokenizer is meant: "GPT-2 tokenizer"."""


_OTHER_SIZE = re.compile(r"[- ]?\d+(?:\.\d+)?[BM]\b", re.I)
"""Behind a published model's name: another size of its family."""


def _published(passages: Sequence[Passage]) -> list[Draft]:
    """Models of the catalogue that the passages name."""
    out: dict[str, Draft] = {}
    for p in passages:
        for start, end, _, ident in catalog.find_models_in_text(p.text):
            if p.text[end : end + 2].strip().startswith(("?", "？")):  # a question states nothing
                continue
            if _ONLY_A_PART.match(p.text, end) or _OTHER_SIZE.match(p.text, end):
                continue
            about = p if p.label.split(" / ")[-1] == p.text[start:end] else part(p, start, end)
            out.setdefault(ident, Draft(p.text[start:end], spec=catalog.model_by_id(ident))).passages.append(about)
    return list(out.values())


def unknown_models(paper: Paper, models: Sequence[PaperModel]) -> list[Unsupported]:
    """Sizes of a known family that the catalogue lacks ("GPT3-2B"), beside the models that are drawn."""
    out: dict[str, Unsupported] = {}
    for p in paper.of("experiments"):
        for start, end, _, _ in catalog.find_models_in_text(p.text) if p.kind != "row" else ():
            if (m := _OTHER_SIZE.match(p.text, end)) and (name := p.text[start : m.end()]) not in (
                x.name for x in models
            ):
                why = f"{name} is not in the catalogue, and its hidden size and layers are not stated together; state them"
                out.setdefault(
                    name, Unsupported(what=f"the shape of {name}", why=why, evidence=p.quote(start, m.end()))
                )
    return list(out.values())


# ------------------------------------------------------------------------------------------------------------ ModelSpec


def _model(draft: Draft, drafts: Sequence[Draft], common: Sequence[Passage], fallback: Sequence[Passage]) -> PaperModel:
    notes: list[str] = []
    facts = _facts(draft, drafts, notes, depth=0)
    wide = find_facts([p for p in common if not (draft.spec and _declares(find_facts([p])))])
    for name, found in wide.items():
        facts.setdefault(name, found)
    if draft.spec and (dtype := find_facts(common).get("weight_dtype")):
        facts.setdefault("weight_dtype", dtype)
    for d in drafts:  # one precision is stated behind the last model, for all of them
        if d is not draft and "weight_dtype" not in facts and (dtype := find_facts(d.passages).get("weight_dtype")):
            facts["weight_dtype"] = dtype
    if draft.spec is None:
        rest = {
            k: v
            for k, v in find_facts(fallback).items()
            if k in ("gated", "activation", "norm", "position", "weight_dtype", "tied", "gate", "top_k")
        }
        facts = {**rest, **facts}
    if draft.spec is None and facts.get("kind") and facts["kind"].value == "dense" and draft.name == "Dense":
        facts = {
            k: v for k, v in facts.items() if k not in ("experts", "top_k", "expert_width", "shared", "shared_width")
        }
    if draft.spec is None:
        facts |= _of_experts([*draft.passages, *common]) if "experts" in facts else {}
        facts = _borrowed(facts, draft, drafts, notes)
        draft = _of_the_catalogue(draft, facts, notes)
    spec = _published_spec(draft, facts) if draft.spec else spec_of(draft.name, facts, notes)
    others = [p for d in drafts if d is not draft for p in d.passages]
    batch, lengths, out, workload = read_workload((draft.passages, common, fallback, others), notes, draft.keys)
    seq = max(lengths)
    name = draft.name or spec.name
    used = tuple(f.evidence for f in facts.values()) + tuple(f.evidence for f in workload if f.evidence)
    stated = (*_named(draft), *(_fact(k, f) for k, f in facts.items() if k in HF_NAMES), *workload)
    return PaperModel(
        key=slug(name), name=name, spec=spec, batch_size=batch, seq_len=seq, kv_len=seq + (out or 0), seq_lens=lengths, output_len=out,
        facts=stated, quotes=tuple(dict.fromkeys(used)), notes=tuple(notes),
    )  # fmt: skip


def _of_experts(passages: Sequence[Passage]) -> dict[str, Found]:
    """The MLP's form where it is said of the experts: it outranks an activation of the whole model."""
    about = [p for p in passages if re.search(r"expert|专家", p.label or "", re.I)]
    return {k: f for k, f in find_facts(about).items() if k in ("gated", "activation")}


NOT_COUNTED = "the paper does not count its experts"
_MUST_AGREE = (
    "layers",
    "hidden_size",
    "heads",
    "kv_heads",
    "vocab_size",
    "experts",
    "expert_width",
    "first_dense",
    "top_k",
)


def _of_the_catalogue(draft: Draft, facts: dict[str, Found], notes: list[str]) -> Draft:
    """A mixture of experts whose experts are not counted, but whose every stated size is that of one published shape."""
    if "experts" in facts or not {"layers", "hidden_size", "heads"} <= facts.keys() or not _is_moe(facts):
        return draft
    said = {k: f.value for k, f in facts.items()}
    hits = [m for m in catalog.models() if m.moe is not None and _agrees(m, said)]
    if not hits or len({_shape(m) for m in hits}) > 1:
        return draft
    one, size = hits[0], hits[0].moe
    assert size is not None
    names = ", ".join(m.name for m in hits[:3])
    notes.append(
        f"{NOT_COUNTED}; every size that it states is that of {names}, whose {size.num_experts} experts, "
        f"top-{size.top_k} and vocabulary are taken"
    )
    return Draft(draft.name or one.name, draft.passages, spec=one)


def _is_moe(facts: dict[str, Found]) -> bool:
    """Whether the words that give the number of layers call them a mixture of experts."""
    kind = facts.get("kind_of_layers")
    return kind is not None and kind.value == "moe"


def _agrees(m: ModelSpec, said: dict[str, object]) -> bool:
    size, dense = m.moe, (m.moe_layers or ()).count(False)
    assert size is not None
    have: dict[str, object] = {
        "layers": m.num_hidden_layers, "hidden_size": m.hidden_size, "heads": m.attention.num_heads,
        "kv_heads": m.attention.num_kv_heads, "vocab_size": m.vocab_size, "expert_width": size.intermediate_size,
        "first_dense": dense, "top_k": size.top_k,
    }  # fmt: skip
    widths = {size.intermediate_size, m.mlp.intermediate_size if m.mlp else None}
    told = said.get("intermediate_size")
    return (told is None or told in widths) and all(
        said[k] == have.get(k) for k in _MUST_AGREE if k in said and k in have
    )


def _shape(m: ModelSpec) -> tuple[object, ...]:
    size = m.moe
    return (
        m.num_hidden_layers,
        m.hidden_size,
        m.vocab_size,
        size and (size.num_experts, size.top_k, size.intermediate_size),
    )


def _borrowed(facts: dict[str, Found], draft: Draft, drafts: Sequence[Draft], notes: list[str]) -> dict[str, Found]:
    """Width and heads of another model, where a paper states them once for several models and not for this one."""
    if "hidden_size" in facts or {"heads", "head_dim"} <= facts.keys():
        return facts
    for d in drafts:
        other = find_facts(d.passages) if d is not draft else {}
        lent = {
            k: v
            for k, v in other.items()
            if k in ("hidden_size", "heads", "head_dim", "kv_heads", "intermediate_size", "vocab_size")
            and k not in facts
        }
        if "hidden_size" in lent or {"heads", "head_dim"} <= {**facts, **lent}.keys():
            notes.append(f"{', '.join(lent)} as {d.name}: not stated for {draft.name or 'this model'}")
            return {**lent, **facts}
    return facts


HF_NAMES: dict[str, str] = {
    "layers": "num_hidden_layers", "hidden_size": "hidden_size", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim", "intermediate_size": "intermediate_size", "vocab_size": "vocab_size", "experts": "num_experts",
    "top_k": "num_experts_per_tok", "expert_width": "moe_intermediate_size", "shared": "n_shared_experts",
    "shared_width": "shared_expert_intermediate_size", "first_dense": "first_k_dense_replace", "weight_dtype": "weight_dtype",
    "activation": "hidden_act", "tied": "tie_word_embeddings",
}  # fmt: skip
"""Names of a paper's facts in conditions."""


def _fact(name: str, f: Found) -> Fact:
    return Fact(path=f"model.{HF_NAMES[name]}", value=f.value, stated_as=f.stated_as, evidence=f.evidence)


def _named(draft: Draft) -> tuple[Fact, ...]:
    """The name of a published model."""
    if draft.spec is None or not draft.passages:
        return ()
    where = draft.passages[0].quote()
    return (Fact(path="model.name", value=draft.spec.name, stated_as=draft.name, evidence=where),)


def _facts(draft: Draft, drafts: Sequence[Draft], notes: list[str], depth: int) -> dict[str, Found]:
    """The draft's own facts over those of the model it is "as"."""
    own = find_facts(draft.passages)
    for p in draft.passages:
        for m in _SAME.finditer(p.text):
            key = (m["k"] or m["k1"]).lower()
            other = next((d for d in drafts if d is not draft and key in (k.lower() for k in d.keys)), None)
            if other and depth < 4:
                notes.append(f"as {other.name}, where nothing else is said")
                inherited = _facts(other, drafts, [], depth + 1)
                if own.keys() & {"experts"} or not own.get("kind"):
                    inherited.pop("kind", None)
                return {**inherited, **own}
    return own


def _published_spec(draft: Draft, facts: dict[str, Found]) -> ModelSpec:
    assert draft.spec is not None
    dtype = facts.get("weight_dtype")
    return draft.spec.model_copy(update={"weight_dtype": dtype.value}) if dtype else draft.spec


def _unique(models: list[PaperModel]) -> list[PaperModel]:
    seen: dict[str, int] = {}
    out = []
    for m in models:
        n = seen[m.key] = seen.get(m.key, 0) + 1
        out.append(m if n == 1 else m.model_copy(update={"key": f"{m.key}_{n}"}))
    return out
