"""Model, engine, formats and stated strategies: one fact each."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from typing import Any

from agent.reading.draft import LISTS, Draft, distinct, same, settle, take, where
from agent.reading.facts import Candidate
from agent.reading.model_check import named_model
from knowledge import catalog
from tools.spec.base import ToolError

# ---------------------------------------------------------------- dtypes, engines, names, strategies


def settle_dtypes(draft: Draft) -> None:
    for path in ("model.weight_dtype", "model.kv_dtype"):
        candidates = [c for c in take(draft, path) if c.value is not None]
        if not candidates:
            continue
        quantised = [c for c in candidates if "quantised" in c.tags]
        own = [c for c in candidates if "config-dtype" not in c.tags]
        firm = quantised or [c for c in own if "optional" not in c.tags] or own or candidates
        options = distinct(firm)
        if len(options) > 1 and all("optional" not in c.tags for c in options):
            settle(draft, path, firm)
        else:
            draft.put(options[0].fact(path=path))
        chosen = draft.value(path)
        if chosen == "fp4" and (format_ := _fp4_of(draft)):
            chosen = format_
            draft.put(draft.facts[path].model_copy(update={"value": chosen}))
            draft.reading.flag(
                "assumed-fp4", f"{path}: fp4 does not say which format; read as {chosen}, the one of the device"
            )
        allowed = [chosen] + [c.value for c in distinct(own) if c.value != chosen and "optional" in c.tags]
        if len(allowed) > 1:
            draft.put(candidates[-1].fact(value=allowed, path=f"{path}.allowed"))


def _fp4_of(draft: Draft) -> str:
    """The 4-bit float format that the device multiplies in: NVFP4 on NVIDIA, MXFP4 on AMD; empty for any other."""
    name = draft.value("hardware.device")
    if name not in catalog.device_ids():
        return ""
    entry = catalog.read_entry("hardware", name)
    computes = "fp4" in entry.get("peak_dense_tflops", {})
    return {"NVIDIA": "nvfp4", "AMD": "mxfp4"}.get(str(entry.get("vendor")), "") if computes else ""


def settle_engines(draft: Draft) -> None:
    candidates = list(take(draft, "engine.name"))
    named = [c for c in candidates if c.value is not None]
    if not named:
        if candidates:
            draft.put(candidates[0].fact(path="engine.name"))
        return
    first = next((c for c in named if "preferred" in c.tags), None) or next(
        (c for c in named if "alternative" not in c.tags), named[0]
    )
    draft.put(first.fact(path="engine.name"))
    others = [c for c in distinct(named) if c.value != first.value]
    if others:
        draft.put(others[0].fact(value=[c.value for c in others], path="engine.alternatives"))
        firm = [c for c in others if "alternative" not in c.tags and (c.file, c.line) != (first.file, first.line)]
        if firm and "preferred" not in first.tags:
            draft.conflict(
                "engine.name",
                [first.value, *(c.value for c in firm)],
                first.value,
                f"{first.value} is named first ({where(first)}); "
                f"{', '.join(c.value for c in firm)} kept as alternative",
            )


def settle_model_name(draft: Draft) -> None:
    candidates = take(draft, "model.name")
    drafts = [c for c in candidates if "draft" in c.tags]
    if drafts:
        draft.put(drafts[0].fact(path="model.draft_name"))
    named = [c for c in candidates if "draft" not in c.tags]
    if not named:
        return
    ids: dict[str, list[Candidate]] = defaultdict(list)
    for c in named:
        ids[next((t[3:] for t in c.tags if t.startswith("id=")), str(c.value))].append(c)
    # "Mixtral" in the title and "Mixtral-8x7B-Instruct-v0.1" in the text are one model: its fullest spelling is shown
    spelled = [max(cs, key=lambda c: (bool(_hint(c)), len(_bare_name(c)))) for cs in ids.values()]
    recognised = [c for c in spelled if "unrecognised" not in c.tags]
    chosen = (recognised or spelled)[0]
    chosen = replace(chosen, value=_bare_name(chosen))
    draft.put(chosen.fact(path="model.name"))
    if len(recognised) > 1:
        values = [_bare_name(c) for c in recognised]
        draft.conflict(
            "model.name",
            values,
            chosen.value,
            f"{len(values)} models are named ({', '.join(map(str, values))}); the first is planned for",
        )
    ident = next((t[3:] for t in chosen.tags if t.startswith("id=")), "")
    if ident:
        _name_hint(draft, chosen)


def _bare_name(c: Candidate) -> str:
    """The name without the Chinese words around it ("满血版 DeepSeek-R1"), where it still means the same model."""
    name = str(c.value)
    bare = re.sub(r"^[\u4e00-\u9fff\s]+|[\u4e00-\u9fff\s]+$", "", name)
    full, part = named_model(name), named_model(bare)
    return bare if full is not None and part is not None and full.name == part.name else name


def _hint(c: Candidate) -> str | None:
    try:
        return catalog.load_model(str(c.value)).weight_hint
    except ToolError:
        return None


def _name_hint(draft: Draft, chosen: Candidate) -> None:
    """A suffix like -AWQ or -FP8 states the dtype of the weights."""
    hint = _hint(chosen)
    if hint and not draft.has("model.weight_dtype"):
        draft.put(chosen.fact(value=hint, path="model.weight_dtype"))


def settle_strategies(draft: Draft) -> None:
    for path in LISTS:
        candidates = take(draft, path)
        if candidates:
            merged: list[Any] = []
            for c in candidates:
                merged += [s for s in c.value if s not in merged]
            draft.put(candidates[0].fact(value=merged, path=path))
    baselines = take(draft, "baseline")
    if baselines:
        axes: dict[str, int] = {}
        for c in baselines:
            for axis, degree in c.value.items():
                if axes.get(axis, degree) != degree:
                    draft.conflict(
                        "baseline",
                        (axes[axis], degree),
                        axes[axis],
                        f"{axis} {axes[axis]} and {degree} are stated; the first is used",
                    )
                axes.setdefault(axis, degree)
        draft.put(baselines[0].fact(value=axes, path="baseline"))


def settle_flops_dtype(draft: Draft) -> None:
    """A peak without dtype is taken for the model's precision, and said to be so."""
    fact = draft.facts.pop("hardware.peak_flops.", None)
    if fact is None:
        return
    dtype = draft.value("model.weight_dtype") or "bf16"
    dtype = {"int4": "fp16", "mxfp4": "bf16", "nvfp4": "bf16"}.get(dtype, dtype)
    path = f"hardware.peak_flops.{dtype}"
    if path in draft.facts:
        if not same(draft.facts[path].value, fact.value):
            draft.conflict(
                path,
                (draft.facts[path].value, fact.value),
                draft.facts[path].value,
                f"{fact.stated_as} has no dtype; the one stated for {dtype} is used",
            )
        return
    draft.put(fact.model_copy(update={"path": path}))
    draft.reading.flag(
        "assumed-flops-dtype",
        f"{fact.stated_as} does not say for which dtype; taken for the model's precision, {dtype}",
    )
