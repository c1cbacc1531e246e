"""Paths that a plan needs and that nothing states or fixes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agent.reading.model_check import named_model
from tools.spec.hardware import Device

if TYPE_CHECKING:
    from agent.reading.draft import Draft


def find_missing(draft: Draft, device: Device | None) -> list[str]:
    """In the order hardware, model, workload, requirements."""
    out = [*_hardware(draft, device), *_model(draft), *_workload(draft), *_requirements(draft)]
    for flag in draft.reading.flags:
        if flag.code == "impossible-value":
            out.append(flag.message.split(" ", 1)[0])
    for path in draft.reading.unknown:
        full = {"hardware.device_count": "hardware.num_devices"}.get(path, path)
        if not draft.has(full):
            out.append(full)
    return list(dict.fromkeys(out))


def _known(draft: Draft, path: str) -> bool:
    """Stated with a value: an explicit "none" leaves a needed number missing."""
    return draft.value(path) is not None


def _hardware(draft: Draft, device: Device | None) -> list[str]:
    out = []
    if not _known(draft, "hardware.num_devices"):
        out.append("hardware.num_devices")
    if device is not None:
        return out
    numbers = [p for p in ("memory_bytes", "memory_bandwidth") if not _known(draft, f"hardware.{p}")]
    if not any(p.startswith("hardware.peak_flops.") for p in draft.facts):
        numbers.append("peak_flops")
    if len(numbers) == 3 or (numbers and _known(draft, "hardware.device")):
        out.append("hardware.device")
    out += [f"hardware.{p}" for p in numbers]
    single = draft.value("hardware.num_devices") == 1
    if not _known(draft, "hardware.intra_node_bandwidth") and not single:
        out.append("hardware.intra_node_bandwidth")
    if not _known(draft, "hardware.inter_node_bandwidth") and draft.value("hardware.num_nodes") != 1 and not single:
        out.append("hardware.inter_node_bandwidth")
    return out


def _model(draft: Draft) -> list[str]:
    name = draft.value("model.name")
    if named_model(name) is not None:
        return []
    out = [] if name else ["model.name"]
    has_shape = any(_known(draft, f"model.{k}") for k in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    if not has_shape and (not name or named_model(name) is None):
        return [*out, "model.num_hidden_layers", "model.hidden_size"] if name else out
    experts = draft.value("model.num_experts") or 0
    needed = ["num_hidden_layers", "hidden_size", "num_attention_heads"]
    if experts > 1:
        needed += ["num_experts_per_tok"]
        if not _known(draft, "model.intermediate_size"):
            needed += ["moe_intermediate_size"]
    else:
        needed += ["intermediate_size"]
    needed.append("vocab_size")
    if _says_gqa(draft):
        needed.append("num_key_value_heads")
    out += [f"model.{k}" for k in needed if not _known(draft, f"model.{k}")]
    if not _known(draft, "model.weight_dtype"):
        out.append("model.weight_dtype")
    return out


def _says_gqa(draft: Draft) -> bool:
    return any(
        c.path.startswith("model.") and re.search(r"\bgqa\b|grouped[- ]query", c.quote, re.I)
        for c in draft.reading.candidates
    )


def _workload(draft: Draft) -> list[str]:
    if draft.value("workload.mode") == "training":
        return [] if _known(draft, "workload.batch_size") else ["workload.batch_size"]
    out = [p for p in ("workload.isl", "workload.osl") if not _known(draft, p)]
    if not any(_known(draft, f"workload.{p}") for p in ("batch_size", "concurrency", "request_rate")):
        out.append("workload.concurrency")
    return out


def _requirements(draft: Draft) -> list[str]:
    per_device = [
        p for p in draft.facts if p.startswith("requirements.throughput_per_device.") and not p.endswith(".counts")
    ]
    stated = any(_known(draft, p) for p in per_device)
    if stated and not _known(draft, "requirements.throughput_per_device.counts"):
        return ["requirements.throughput_per_device.counts"]
    return []
