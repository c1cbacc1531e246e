"""A language model's reading of a paper, checked quote by quote and set beside the built-in reader's.

Nothing is taken without a verbatim quote that carries its numbers. Where both readers state something, the one whose
quotes carry all of its numbers is used, the built-in reader's if both do; every disagreement is a recorded conflict.
"""

# ruff: noqa: E501  (a message reads better unbroken)

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from agent.paper_submission import (
    WORKLOAD,
    PaperSubmission,
    Quoted,
    Reading,
    SubmittedModel,
    SubmittedPaperStrategy,
)
from agent.reading.paper import degrees_of, paper_flags, section_passages
from agent.reading.paper_models import HF_NAMES, slug
from agent.reading.paper_shapes import Found
from agent.reading.paper_spec import spec_of
from agent.reading.paper_text import NUMBER, read_paper_text, whole
from agent.reading.paper_unread import accounts_for
from tools.spec.base import Refused, ToolError
from tools.spec.conditions import Conditions, Conflict, Evidence, Fact, InputFile
from tools.spec.model import ModelSpec
from tools.spec.paper import PaperMethod, PaperModel, PaperStrategy, Unsupported
from tools.spec.strategy import Strategy


def accept(s: PaperSubmission, file: InputFile, own: PaperMethod | None, why: str = "") -> Reading | None:
    """Raises ToolError, with every reason, where what is handed in leaves no method to draw."""
    check = _Check(file)
    if own is None and not (s.models or s.strategies or s.unsupported):
        return None  # nobody can read it: the reader's own reason is the answer
    method = _beside(own, s, check) if own is not None else _alone(s, check, why)
    return Reading(method, check.rejected)


class _Check:
    """Quotes against the file; what is refused and why."""

    def __init__(self, file: InputFile) -> None:
        self.file, self.lines = file, file.text.splitlines()
        self.rejected: list[tuple[str, str]] = []

    def evidence(self, q: Quoted, what: str) -> Evidence | None:
        """The quote where it stands; a wrong line is put right where the words occur once."""
        if q.line <= len(self.lines) and q.quote in self.lines[q.line - 1]:
            return Evidence(file=self.file.path, line=q.line, quote=q.quote)
        at = [i for i, line in enumerate(self.lines, 1) if q.quote in line]
        if len(at) == 1:
            return Evidence(file=self.file.path, line=at[0], quote=q.quote)
        self.refuse(what, f"the quote {q.quote[:60]!r} is not on line {q.line}")
        return None

    def fact(self, path: str, value: Any, q: Quoted) -> Fact | None:
        where = self.evidence(q, path)
        if where is None:
            return None
        if not follows(value, q.quote):
            self.refuse(path, f"{value!r} does not follow from {q.quote[:60]!r}")
            return None
        return Fact(path=path, value=value, stated_as=q.quote, evidence=where)

    def refuse(self, what: str, why: str) -> None:
        self.rejected.append((what, why))


def numbers_in(text: str) -> set[int]:
    """Every whole number that a text states, 4K both as 4096 and as 4000."""
    out: set[int] = set()
    for m in re.finditer(rf"(?<![A-Za-z\d.])(?:{NUMBER})|\d+", text, re.I):
        for binary in (True, False):
            try:
                out.add(whole(m[0], binary=binary))
            except ToolError:
                continue
    return out


_DTYPES = {"fp16": r"fp ?16|float16|half|半精度", "bf16": r"bf ?16|bfloat16", "fp8": r"fp ?8", "fp32": r"fp ?32|float32", "int8": r"int ?8", "int4": r"int ?4"}  # fmt: skip


def follows(value: Any, quote: str) -> bool:
    """Whether a value stands in its quote: a number by its digits or words, a name by its letters."""
    if isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return value in (0, 1) or int(value) in numbers_in(quote)
    text = str(value).casefold()
    pattern = _DTYPES.get(text)
    if pattern:
        return bool(re.search(pattern, quote, re.I))
    plain = re.sub(r"[^0-9a-z\u4e00-\u9fff]", "", text)
    return plain in re.sub(r"[^0-9a-z\u4e00-\u9fff]", "", quote.casefold())


# ----------------------------------------------------------------------------------------------- beside the reader's own


def _beside(own: PaperMethod, s: PaperSubmission, check: _Check) -> PaperMethod:
    conflicts: list[Conflict] = []
    models = [_amended(m, _named_model(s.models, m), check, conflicts) for m in own.models]
    facts = [*own.conditions.facts, *_hardware(s, check, own.conditions)]
    strategies = list(own.strategies)
    for given in s.strategies:
        for m in models:
            if given.model in ("", m.name, m.key) or slug(given.model) == m.key:
                _settle(strategies, _strategy(given, m, check, f"{m.key}.{given.role}"), m, conflicts)
    gaps = [*own.unsupported, *_gaps(s, check, own.unsupported)]
    conditions = own.conditions.model_copy(
        update={"facts": tuple(facts), "conflicts": (*own.conditions.conflicts, *conflicts)}
    )
    return own.model_copy(
        update={
            "models": tuple(models),
            "strategies": tuple(_numbered(strategies)),
            "conditions": conditions,
            "unsupported": tuple(gaps),
        }
    )


def _named_model(given: Sequence[SubmittedModel], m: PaperModel) -> SubmittedModel | None:
    alone = given[0] if len(given) == 1 else None
    return next((g for g in given if slug(g.name) == m.key or g.name == m.name), alone)


SPEC_PATHS: dict[str, tuple[str, ...]] = {
    "num_hidden_layers": ("num_hidden_layers",), "hidden_size": ("hidden_size",), "vocab_size": ("vocab_size",),
    "num_attention_heads": ("attention", "num_heads"), "num_key_value_heads": ("attention", "num_kv_heads"),
    "head_dim": ("attention", "head_dim"), "intermediate_size": ("mlp", "intermediate_size"), "num_experts": ("moe", "num_experts"),
    "num_experts_per_tok": ("moe", "top_k"), "moe_intermediate_size": ("moe", "intermediate_size"),
    "shared_expert_intermediate_size": ("moe", "shared_intermediate_size"), "weight_dtype": ("weight_dtype",),
}  # fmt: skip
"""Where a ModelSpec carries a fact."""


def _amended(m: PaperModel, given: SubmittedModel | None, check: _Check, conflicts: list[Conflict]) -> PaperModel:
    """The model with the quoted facts that the reader lacked; what it had from its own quote stands."""
    if given is None:
        return m
    had = {f.path.split(".", 1)[1]: f for f in m.facts}
    fields, added, update = m.spec.model_dump(), list(m.facts), cast("dict[str, Any]", {})
    for g in given.facts:
        path = f"{'workload' if g.name in WORKLOAD else 'model'}.{g.name}"
        fact = check.fact(f"{m.key}.{path}", g.value, g)
        if fact is None:
            continue
        if g.name in had:
            if had[g.name].value != g.value:
                conflicts.append(
                    _conflict(
                        f"{m.key}.{path}",
                        had[g.name].value,
                        g.value,
                        had[g.name].value,
                        "both are quoted: the deterministic reader's stands",
                    )
                )
            continue
        target: Any = fields
        *parents, leaf = SPEC_PATHS.get(g.name, (g.name,))
        for p in parents:
            target = target.get(p) if isinstance(target, dict) else None
        if g.name in WORKLOAD:
            update |= {
                "batch_size": {"batch_size": g.value},
                "isl": {"seq_len": g.value, "seq_lens": (g.value,), "kv_len": g.value + (m.output_len or 0)},
                "osl": {"output_len": g.value, "kv_len": m.seq_len + g.value},
            }[g.name]
        elif g.name in SPEC_PATHS and isinstance(target, dict):
            target[leaf] = g.value
        else:
            check.refuse(f"{m.key}.{path}", "the model has no such part")
            continue
        added.append(fact.model_copy(update={"path": path}))
    try:
        spec = ModelSpec.model_validate(fields)
    except ValueError as e:
        check.refuse(m.key, f"the facts make no model: {' '.join(str(e).split())[:200]}")
        return m
    return m.model_copy(update={**update, "spec": spec, "facts": tuple(added)})


def _conflict(path: str, reader: Any, other: Any, used: Any, why: str) -> Conflict:
    return Conflict(path=f"paper.{path}", values=(reader, other), resolution=used, why=why)


def _settle(
    strategies: list[PaperStrategy], given: PaperStrategy | None, m: PaperModel, conflicts: list[Conflict]
) -> None:
    """Puts a submitted strategy beside, or in the place of, the reader's own."""
    if given is None:
        return
    same_role = [
        s for s in strategies if s.model == m.key and s.role == given.role and set(s.phases) & set(given.phases)
    ]
    if any(_degrees(s) == _degrees(given) for s in same_role):
        return
    assumed = [s for s in same_role if not s.quotes]
    path = f"{m.key}.strategy.{given.role}"
    for s in assumed:  # a baseline that nobody stated gives way to one that is quoted
        strategies.remove(s)
    if given.role == "baseline" or not same_role:
        strategies.append(given)
        return
    kept = next(s for s in same_role)
    if covered(kept.strategy, kept.quotes) >= 1.0 and not accounts_for(kept, given, m.spec):
        conflicts.append(
            _conflict(
                path,
                degrees_of(kept),
                degrees_of(given),
                degrees_of(kept),
                "the deterministic reader's quotes carry all of its degrees",
            )
        )
        return
    strategies[strategies.index(kept)] = given.model_copy(update={"name": kept.name, "seq_len": kept.seq_len})
    conflicts.append(
        _conflict(
            path,
            degrees_of(kept),
            degrees_of(given),
            degrees_of(given),
            "its quotes carry all of its degrees; the deterministic reader's do not, or leave numbers of them unread",
        )
    )


def _degrees(s: PaperStrategy) -> dict[str, Any]:
    return {k: v for k, v in degrees_of(s).items() if k != "devices"}


COUNTS = ("tp", "pp", "dp", "ep", "attn_dp", "cp", "dcp", "dk", "expert_devices", "attn_pool", "virtual", "seq_slices")


def covered(s: Strategy, quotes: Sequence[Quoted | Evidence]) -> float:
    """Share of the degrees above 1 whose number stands in the quotes; a number of devices covers what multiplies to it."""
    found: set[int] = set().union(*(numbers_in(q.quote) for q in quotes)) if quotes else set()
    degrees = [v for k in COUNTS if (v := getattr(s, k) or 0) > 1]
    if not degrees:
        return 1.0
    open_ones = [v for v in degrees if v not in found]
    if len(open_ones) == 1 and s.num_devices in found:
        return 1.0  # the last degree follows from the number of devices
    return 1.0 - len(open_ones) / len(degrees)


def _strategy(g: SubmittedPaperStrategy, m: PaperModel, check: _Check, what: str) -> PaperStrategy | None:
    """A submitted strategy that is quoted, whose degrees stand in the quotes, and that can be laid out; else None."""
    from tools.partition.lower import lower

    quotes = [e for q in g.quotes if (e := check.evidence(q, what)) is not None]
    if len(quotes) < len(g.quotes):
        return None
    dtype = m.spec.weight_dtype
    fixed = {"weight_dtype": dtype, "kv_dtype": dtype if dtype in ("fp16", "bf16", "fp32") else "bf16", "name": g.role}
    try:
        unknown = sorted(g.degrees.keys() - set(Strategy.model_fields))
        if unknown:
            raise ToolError(f"no degree is called {unknown[0]!r}")
        strategy = Strategy.model_validate({**fixed, **g.degrees})
        strategy = strategy.model_copy(update={"batch": max(1, -(-m.batch_size // strategy.dp))})
        lower(m.spec, strategy, g.phases[0] if g.phases else "prefill", {})
    except (ToolError, ValueError) as e:
        check.refuse(what, " ".join(str(e).split())[:300])
        return None
    if covered(strategy, quotes) < 1.0:
        check.refuse(what, f"{strategy.label()}: not all of its degrees stand in its quotes")
        return None
    phases = tuple(dict.fromkeys(g.phases)) or ("prefill", "decode")
    name = g.role if len(phases) > 1 else f"{g.role}_{phases[0]}"
    return PaperStrategy(
        model=m.key, name=name, role=g.role, title=quotes[0].quote[:160], strategy=strategy, num_devices=strategy.num_devices,
        devices_source="stated", phases=phases, quotes=tuple(quotes), notes=("read by the language model",),
    )  # fmt: skip


def _numbered(strategies: Sequence[PaperStrategy]) -> list[PaperStrategy]:
    """Unique names per model: baseline, baseline_2 …"""
    taken: dict[tuple[str, str], int] = {}
    out = []
    for s in strategies:
        base = re.sub(r"_\d+$", "", s.name)
        n = taken[s.model, base] = taken.get((s.model, base), 0) + 1
        out.append(s.model_copy(update={"name": base if n == 1 else f"{base}_{n}"}))
    return out


def _hardware(s: PaperSubmission, check: _Check, known: Conditions) -> list[Fact]:
    """Quoted hardware that the reader lacked; a device must be one of the catalogue."""
    from knowledge import catalog

    have = {f.path for f in known.facts if f.origin == "stated"}
    out = []
    for h in s.hardware:
        path = h.path if h.path.startswith("hardware.") else f"hardware.{h.path}"
        value = h.value
        if path == "hardware.device":
            named = catalog.find_devices_in_text(h.quote)
            if not named:
                check.refuse(path, f"{h.value!r} is no device of the catalogue")
                continue
            value = named[0][3]
            where = check.evidence(h, path)
            fact = Fact(path=path, value=value, stated_as=h.quote, evidence=where) if where else None
        else:
            fact = check.fact(path, value, h)
        if fact is not None and path not in have:
            out.append(fact)
    return out


def _gaps(s: PaperSubmission, check: _Check, known: Sequence[Unsupported]) -> list[Unsupported]:
    told = {u.evidence.line for u in known}
    out = []
    for g in s.unsupported:
        where = check.evidence(g, g.what)
        if where is not None and where.line not in told:
            out.append(Unsupported(what=g.what, why="the layout language has no words for it", evidence=where))
    return out


# ------------------------------------------------------------------------------------------- where the reader gave up


def _alone(s: PaperSubmission, check: _Check, why: str) -> PaperMethod:
    """A method from the submission only. Raises ToolError where it has no model, or no proposed strategy."""
    models = [m for g in s.models if (m := _model(g, check)) is not None]
    strategies: list[PaperStrategy] = []
    for given in s.strategies:
        for m in models:
            if given.model in ("", m.name) or slug(given.model) == m.key:
                made = _strategy(given, m, check, f"{m.key}.{given.role}")
                strategies += [made] if made is not None else []
    gaps = _gaps(s, check, ())
    if not any(x.role == "proposed" for x in strategies):
        reasons = "; ".join(f"{what}: {reason}" for what, reason in check.rejected[:8])
        if gaps and not s.strategies:
            raise Refused(f"the proposed method cannot be drawn: {'; '.join(g.message() for g in gaps)}")
        raise ToolError(
            f"no model with a proposed strategy is left ({reasons or 'none was handed in'}; the reader: {why})"
        )
    paper = read_paper_text(check.file.text, check.file.path)
    hardware = tuple(_hardware(s, check, Conditions()))
    facts = (*hardware, *(f.model_copy(update={"path": f"paper.{m.key}.{f.path}"}) for m in models for f in m.facts))
    facts += tuple(
        Fact(path=f"paper.{x.model}.strategy.{x.name}", value=degrees_of(x), stated_as=q.quote[:120], evidence=q)
        for x in strategies
        for q in x.quotes
    )
    used, ignored = section_passages(paper, facts, gaps)
    conditions = Conditions(facts=facts, ignored=ignored, flags=paper_flags(models, strategies, hardware))
    return PaperMethod(
        title=paper.title, models=tuple(models), strategies=tuple(_numbered(strategies)), conditions=conditions,
        unsupported=tuple(gaps), used=used,
    )  # fmt: skip


def _model(g: SubmittedModel, check: _Check) -> PaperModel | None:
    internal = {hf: name for name, hf in HF_NAMES.items()}
    found: dict[str, Found] = {}
    workload: dict[str, int] = {}
    facts: list[Fact] = []
    for f in g.facts:
        kind = "workload" if f.name in WORKLOAD else "model"
        fact = check.fact(f"{kind}.{f.name}", f.value, f)
        if fact is None or fact.evidence is None:
            continue
        if f.name in WORKLOAD:
            workload[f.name] = int(f.value)
        elif f.name in internal:
            if f.name == "hidden_act" and "glu" in str(f.value).casefold():
                found["gated"] = Found("gated", True, fact.evidence, f.quote)
                f = f.model_copy(update={"value": "gelu" if "ge" in str(f.value).casefold() else "silu"})
            found[internal[f.name]] = Found(internal[f.name], f.value, fact.evidence, f.quote)
        else:
            check.refuse(f.name, "no such fact")
            continue
        facts.append(fact)
    notes: list[str] = []
    try:
        spec = spec_of(g.name, found, notes)
    except ToolError as e:
        check.refuse(g.name, str(e))
        return None
    seq, out = workload.get("isl", 4096), workload.get("osl")
    notes += [f"{n} assumed: none stated" for n in ("batch_size", "isl") if n not in workload]
    return PaperModel(
        key=slug(g.name), name=g.name, spec=spec, batch_size=workload.get("batch_size", 1), seq_len=seq, kv_len=seq + (out or 0),
        seq_lens=(seq,), output_len=out, facts=tuple(facts), quotes=tuple(f.evidence for f in facts if f.evidence), notes=tuple(notes),
    )  # fmt: skip


__all__ = ["accept", "covered", "follows", "numbers_in"]
