"""Papers that describe a parallel method: recognised against conditions, and read into a PaperMethod.

`is_paper(files)` looks at headings and at what the text says it does; `read_paper(files)` reads models, set-up,
baselines and the proposed strategy, each with its quotes. What a paper leaves open is assumed by name; what cannot be
represented is reported with its passage, never replaced by something that can.
"""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from agent.reading.paper_clauses import BASELINE, PROPOSED, Setting, data_clauses
from agent.reading.paper_degrees import axis_spans, parse_degrees
from agent.reading.paper_doubts import contradictions
from agent.reading.paper_hardware import read_hardware
from agent.reading.paper_models import read_models, unknown_models
from agent.reading.paper_schedule import budget_bytes
from agent.reading.paper_strategies import read_strategies
from agent.reading.paper_text import Paper, Passage, heading_kinds, read_paper_text, section_kind
from tools.spec.base import Refused, ToolError
from tools.spec.conditions import Conditions, Evidence, Fact, Flag, Ignored, InputFile
from tools.spec.paper import PaperMethod, PaperModel, PaperStrategy
from tools.spec.strategy import Strategy

DEGREES = (
    "tp", "pp", "dp", "ep", "etp", "attn_dp", "cp", "cp_kind", "sp", "dcp", "dk", "expert_devices", "attn_pool", "pool_above",
    "virtual", "seq_slices", "redundant_experts", "layers_per_stage", "microbatches",
)  # fmt: skip
"""Fields of a strategy that a paper states."""

_SAYS = re.compile(
    r"\bwe (?:propose|present|introduce|partition|give|describe|study|place|split|exchange|deploy|reproduce|revisit|show|argue|put|test)\b|\bour (?:system|layout|arrangement)|\bour method|\bproposed\b|this paper|arxiv|本文|我们提出|所提",
    re.I,
)  # fmt: skip
_COMPARES = re.compile(r"\bbase ?lines?\b|基线|对照|compare[ds]? (?:with|to|against)", re.I)
_ASKS = re.compile(
    r"^\W*(?:performance )?(?:requirements?|slo|deployment conditions?|部署条件|(?:性能)?(?:需求|要求|指标要求))\b",
    re.I | re.M,
)


def is_paper(files: Sequence[InputFile]) -> bool:
    """Whether the inputs are one paper: the usual headings, a method that it says is its own, a comparison.

    Conditions may quote a paper, or have an introduction; they ask for something and propose nothing.
    """
    texts = [f for f in files if f.kind in ("markdown", "text")]
    if len(texts) != 1 or len(files) != 1:
        return False
    text = texts[0].text
    if _data_of_both_roles(texts[0]):
        return True
    kinds = heading_kinds(text)
    marks = len(
        kinds
        & {
            "abstract",
            "method",
            "experiments",
            "introduction",
            "related",
            "references",
            "appendix",
            "conclusion",
            "results",
        }
    )
    core = len(kinds & {"abstract", "method", "experiments"})
    says, compares = bool(_SAYS.search(text)), bool(_COMPARES.search(text))
    asks = bool(_ASKS.search(text)) or bool(_WANTS.search(text))
    if _ASKS.search(text) and core < 2:
        return False
    if asks and not (says and (compares or PROPOSED.search(text))):
        return False  # a plan is asked for, and no method of its own is set against another
    return bool(
        core == 3
        or (core >= 2 and marks >= 3)
        or _sets_a_method_against_others(text)
        or (core >= 2 and (says or compares))
        or (marks >= 3 and says)
        or (core >= 1 and says and compares and marks >= 2)
    )


def _data_of_both_roles(file: InputFile) -> bool:
    """JSON or YAML inside the text that gives a baseline and a proposed deployment their degrees."""
    if "```" not in file.text and "~~~" not in file.text:
        return False
    clauses = list(data_clauses(read_paper_text(file.text, file.path), ()))
    return {c.role for c in clauses if any(parse_degrees(c.words).axes.values())} == {"baseline", "proposed"}


_WANTS = re.compile(
    r"\bSLOs?\b|\brequirements?\b|TTFT\s*(?:<|≤|below|under|of)|\bdeploy(?:ment)? (?:plan|conditions?)|性能(?:要求|需求|指标)|需求",
    re.I,
)


def _sets_a_method_against_others(text: str) -> bool:
    """A free-form paper: strategies of its own and of others, in degrees, and nothing that is asked for."""
    if not (BASELINE.search(text) and PROPOSED.search(text)) or _ASKS.search(text) or _WANTS.search(text):
        return False
    return bool(axis_spans(text)) and any(v for v in parse_degrees(text).axes.values())


def read_paper(files: Sequence[InputFile]) -> PaperMethod:
    """Raises ToolError where a model or the proposed strategy cannot be told, Refused where nothing of it can be drawn."""
    if len(files) != 1:
        raise ToolError(f"{len(files)} files: a paper is one file; pass papers one by one")
    file = files[0]
    paper = read_paper_text(file.text, file.path)
    models = read_models(paper)
    hardware = read_hardware(paper)
    counts = (_value(hardware, "hardware.num_devices"), _value(hardware, "hardware.devices_per_node"))
    setting = Setting(*counts, fast_memory=_fast_memory(paper))
    strategies, unsupported = read_strategies(paper, models, setting)
    unsupported = [*unsupported, *unknown_models(paper, models)]
    if not any(s.role == "proposed" for s in strategies):
        why = "; ".join(u.message() for u in unsupported) or "no proposed strategy was found"
        raise Refused(f"the proposed method cannot be drawn: {why}")
    strategies = [*strategies, *_default_baselines(models, strategies, setting)]
    facts = (*hardware, *_model_facts(models), *_strategy_facts(strategies))
    used, ignored = section_passages(paper, facts, unsupported)
    flags = paper_flags(models, strategies, hardware)
    return PaperMethod(
        title=paper.title, models=tuple(models), strategies=tuple(strategies), unsupported=tuple(unsupported), used=used,
        conditions=Conditions(facts=facts, ignored=ignored, flags=flags, conflicts=contradictions(paper, models)),
    )  # fmt: skip


def _fast_memory(paper: Paper) -> tuple[float, Passage] | None:
    """The on-chip memory of a device where the paper states it."""
    for p in paper.passages:
        if section_kind(p.section) not in ("related", "references") and (found := budget_bytes(p.text)):
            return found, p
    return None


def paper_flags(
    models: Sequence[PaperModel], strategies: Sequence[PaperStrategy], hardware: Sequence[Fact]
) -> tuple[Flag, ...]:
    """What was assumed, by name."""
    flags = [Flag(code="paper-assumed", message=f"{m.name}: {n}") for m in models for n in m.notes]
    flags += [Flag(code="paper-read", message=f"{s.model}, {s.name}: {n}") for s in strategies for n in s.notes]
    if not any(f.path == "hardware.device" for f in hardware):
        text = "no device is named: H100 80GB assumed for memory and times"
        flags.append(Flag(code="paper-assumed", message=text))
    return tuple(dict.fromkeys(flags))


def _value(facts: Sequence[Fact], path: str) -> int | None:
    value = next((f.value for f in facts if f.path == path), None)
    return value if isinstance(value, int) else None


# --------------------------------------------------------------------------------------------------------------- facts


def _default_baselines(
    models: Sequence[PaperModel], strategies: Sequence[PaperStrategy], setting: Setting
) -> list[PaperStrategy]:
    """A paper without a baseline is held against tensor parallelism inside the node, pipeline across."""
    from tools.partition.lower import lower
    from tools.spec.strategy import Strategy

    out = []
    for m in models:
        mine = [s for s in strategies if s.model == m.key]
        proposed = next((s for s in mine if s.role == "proposed"), None)
        if proposed is None or any(s.role == "baseline" for s in mine):
            continue
        n, heads = proposed.num_devices, m.spec.attention.num_heads
        fits = [
            t
            for t in range(1, min(setting.per_node or 8, n) + 1)
            if n % t == 0 and heads % t == 0 and n // t <= m.spec.num_hidden_layers
        ]
        tp = max(fits, default=1)
        strategy = Strategy(
            tp=tp,
            pp=n // tp if fits else 1,
            weight_dtype=m.spec.weight_dtype,
            kv_dtype=proposed.strategy.kv_dtype,
            batch=m.batch_size,
            name="baseline",
        )
        lower(m.spec, strategy, "prefill", {})
        note = "the paper states no baseline: tensor parallelism inside the node, pipeline across it"
        out.append(
            PaperStrategy(
                model=m.key,
                name="baseline",
                role="baseline",
                title="assumed",
                strategy=strategy,
                num_devices=strategy.num_devices,
                devices_source="product",
                notes=(note,),
            )
        )
    return out


def _model_facts(models: Sequence[PaperModel]) -> tuple[Fact, ...]:
    return tuple(f.model_copy(update={"path": f"paper.{m.key}.{f.path}"}) for m in models for f in m.facts)


def _strategy_facts(strategies: Sequence[PaperStrategy]) -> tuple[Fact, ...]:
    return tuple(_fact(f"paper.{s.model}.strategy.{s.name}", degrees_of(s), q) for s in strategies for q in s.quotes)


def degrees_of(s: PaperStrategy, *, moe: bool = True) -> dict[str, Any]:
    """What a strategy says beyond the defaults, and its devices."""
    told = {n: getattr(s.strategy, n) for n in DEGREES if moe or n not in ("ep", "etp")}
    plain = Strategy()
    said = {k: v for k, v in told.items() if v != getattr(plain, k) and (k != "cp_kind" or s.strategy.cp > 1)}
    return {**said, "devices": s.num_devices, **({"phases": list(s.phases)} if len(s.phases) == 1 else {})}


def as_conditions(method: PaperMethod) -> Conditions:
    """A paper as `read` shows it: models, hardware, inputs and strategies by the names of conditions.

    With several models each has its key in the path (`model.model_a.hidden_size`). Models of the catalogue are told by
    name; what was assumed and what cannot be represented is among the flags.
    """
    alone = len(method.models) == 1
    facts = [f for f in method.conditions.facts if f.path.startswith("hardware.")]
    for m in method.models:
        for f in m.facts:
            head, name = f.path.split(".", 1)
            facts.append(f if alone else f.model_copy(update={"path": f"{head}.{m.key}.{name}"}))
        for s in method.of(m.key):
            said = degrees_of(s, moe=m.spec.moe is not None)
            path = f"strategy.{s.name}" if alone else f"strategy.{m.key}.{s.name}"
            facts += [_fact(path, said, q) for q in s.quotes] or [
                Fact(path=path, value=said, origin="assumed", stated_as=s.title)
            ]
    flags = [
        *method.conditions.flags,
        *(Flag(code="paper-unsupported", message=u.message()) for u in method.unsupported),
    ]
    flags += [Flag(code=f.code, message=f.message) for s in method.strategies for f in s.findings]
    unique = {(f.path, str(f.value), f.evidence): f for f in facts}
    return method.conditions.model_copy(update={"facts": tuple(unique.values()), "flags": tuple(dict.fromkeys(flags))})


def _fact(path: str, value: object, quote: Evidence) -> Fact:
    return Fact(path=path, value=value, stated_as=" ".join(quote.quote.split())[:120], evidence=quote)


def section_passages(
    paper: Paper, facts: Sequence[Fact], unsupported: Sequence[object]
) -> tuple[tuple[str, ...], tuple[Ignored, ...]]:
    """(titles that something was read from, what was not needed and why)."""
    spans = [(f.evidence.line, f.evidence.line + f.evidence.quote.count("\n")) for f in facts if f.evidence]
    used: dict[str, None] = {}
    ignored: dict[str, Ignored] = {}
    for p in paper.passages:
        title = p.section[-1] if p.section else paper.title
        if any(a <= n <= b for _, n in p.lines for a, b in spans):
            used[title] = None
            for text in _uncovered(p, spans):
                ignored[text] = Ignored(section=text, why=_why(p))
            continue
        text = " ".join(p.raw.split())
        ignored[text] = Ignored(section=text, why=_why(p))
    return tuple(used), tuple(ignored.values())


def _uncovered(p: Passage, spans: Sequence[tuple[int, int]]) -> list[str]:
    """Lines of a passage that no quote touches, where it has several."""
    lines = p.raw.split("\n")
    rows = zip(lines, (n for _, n in p.lines), strict=False)
    return [" ".join(x.split()) for x, n in rows if x.strip() and not any(a <= n <= b for a, b in spans)]


def _why(p: Passage) -> str:
    kind = section_kind(p.section)
    reasons = {
        "abstract": "says in short what the method says in full", "introduction": "motivation", "background": "background",
        "related": "others' work", "results": "measured results, which decide no layout", "conclusion": "conclusion", "references": "references",
        "appendix": "an appendix that decides no layout",
    }  # fmt: skip
    if re.search(r"metric|指标", p.label, re.I):
        return "names what is measured, and decides no layout"
    return reasons.get(kind, "explains, and fixes nothing that the graphs need")
