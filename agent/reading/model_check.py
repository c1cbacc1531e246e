"""The stated model against itself and against its name: shape, parameters, KV and weight bytes, one-expert "MoE"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.reading.shape import SHAPE_KEYS, kv_bytes_per_token, published_shape, stated_shape_parameters
from knowledge import catalog
from tools.spec.base import ToolError
from tools.spec.model import ModelSpec, dtype_bytes

if TYPE_CHECKING:
    from agent.reading.draft import Draft

ASSUMED_VOCAB = 32000


def named_model(name: Any) -> ModelSpec | None:
    """The catalogue's model of that name, or None."""
    if not isinstance(name, str):
        return None
    try:
        return catalog.load_model(name).model
    except ToolError:
        return None


def check_model(draft: Draft) -> None:
    """Conflicts of shape, name and declared sizes; `model.num_experts` 1 is a dense model."""
    _one_expert(draft)
    model = named_model(draft.value("model.name"))
    stated = {k: draft.value(f"model.{k}") for k in SHAPE_KEYS if isinstance(draft.value(f"model.{k}"), int)}
    if model is not None:
        _against_name(draft, stated, published_shape(model), model.name)
    shape = {**(published_shape(model) if model else {}), **stated}
    _parameters(draft, shape, stated, model)
    _bytes(draft, shape, model)
    _context(draft, model)


def _context(draft: Draft, model: ModelSpec | None) -> None:
    """A sequence longer than the positions the model was made for."""
    if model is None:
        return
    asked = draft.value("workload.max_context") or draft.value("workload.seq_len_max") or 0
    lengths = [draft.value(f"workload.{k}") for k in ("isl", "osl")]
    request = sum(v for v in lengths if isinstance(v, int | float))
    longest = max(asked if isinstance(asked, int | float) else 0, request)
    positions = draft.value("model.max_position_embeddings") or model.max_context or model.position.max_positions
    # 128k is written for 131072 and for 128000: a rounding is no excess
    if positions and model.position.kind != "none" and longest > positions * 1.03:
        draft.reading.flag(
            "context-over-model",
            f"{longest:.0f} tokens of context are asked for, {model.name} has {positions} positions; beyond them its "
            "answers are not defined without position scaling",
        )


def _one_expert(draft: Draft) -> None:
    if draft.value("model.num_experts") in (0, 1):
        count = draft.value("model.num_experts")
        draft.conflict(
            "model.num_experts",
            (count, "dense"),
            "dense",
            f"num_experts {count} is a dense model: no router, no expert parallelism",
            "model.num_experts_per_tok",
        )


def _against_name(draft: Draft, stated: dict[str, Any], published: dict[str, Any], name: str) -> None:
    for key, value in stated.items():
        known = published.get(key)
        if known is None or known == value or (key == "num_experts" and value <= 1):
            continue
        if key == "num_experts_per_tok" and stated.get("num_experts") == 1:
            continue
        draft.conflict(
            f"model.{key}",
            (value, known),
            value,
            f"stated {value}; the published {name} has {known}; the stated shape wins",
        )


def _parameters(draft: Draft, shape: dict[str, Any], stated: dict[str, Any], model: ModelSpec | None) -> None:
    declared = draft.value("model.declared_parameters")
    if not isinstance(declared, int | float) or declared <= 0:
        return
    if (
        model is not None
        and model.declared_parameters
        and not any(k in stated for k in ("num_hidden_layers", "hidden_size", "num_experts"))
    ):
        published = model.declared_parameters
        if abs(declared / published - 1) > 0.06:
            draft.conflict(
                "model.declared_parameters",
                (declared, published),
                published,
                f"{declared / 1e9:.4g} billion declared, the published {model.name} has {published / 1e9:.4g}",
                "model.num_parameters",
            )
        return
    counts = [stated_shape_parameters(shape, gated=g, vocab_size=ASSUMED_VOCAB) for g in (False, True)]
    low, high = (c or 0.0 for c in counts)
    if (
        not low
        or (low * 0.9 <= declared <= high * 1.1)
        or (model is not None and 0.94 <= declared / (model.declared_parameters or 1) <= 1.06 and not _differs(draft))
    ):
        return
    vocab = "" if shape.get("vocab_size") else f" with {ASSUMED_VOCAB} tokens of vocabulary assumed"
    draft.conflict(
        "model.declared_parameters",
        (declared, low, high),
        high,
        f"{declared / 1e9:.4g} billion stated; the stated shape has about {low / 1e9:.2g} (plain FFN) to "
        f"{high / 1e9:.2g} billion (gated){vocab}; the shape is planned for, "
        "capacity is also shown for the declared count",
        "model.num_parameters",
    )


def _differs(draft: Draft) -> bool:
    return any(
        c.path
        in (
            "model.num_hidden_layers",
            "model.hidden_size",
            "model.num_experts",
            "model.moe_intermediate_size",
            "model.intermediate_size",
        )
        for c in draft.conflicts
    )


def _bytes(draft: Draft, shape: dict[str, Any], model: ModelSpec | None) -> None:
    kv_dtype = draft.value("model.kv_dtype") or "bf16"
    declared = draft.value("model.declared_kv_bytes_per_token")
    computed = (
        kv_bytes_per_token(shape, dtype_bytes(kv_dtype)) if model is None or model.attention.mla is None else None
    )
    if declared and computed and abs(declared / computed - 1) > 0.05:
        draft.conflict(
            "model.kv_bytes_per_token",
            (declared, computed),
            computed,
            f"{declared / 1024:.4g} KiB of KV per token stated; the shape gives {computed / 1024:.4g} KiB",
            "model.declared_kv_bytes_per_token",
        )
    weights = draft.value("model.declared_weight_bytes")
    count = (model.declared_parameters if model else None) or stated_shape_parameters(
        shape, gated=True, vocab_size=ASSUMED_VOCAB
    )
    dtype = draft.value("model.weight_dtype") or (model.weight_dtype if model else "bf16")
    if weights and count and abs(weights / (count * dtype_bytes(dtype)) - 1) > 0.15:
        expected = count * dtype_bytes(dtype)
        draft.conflict(
            "model.declared_weight_bytes",
            (weights, expected),
            expected,
            f"{weights / 1e9:.4g} GB of weights stated; "
            f"{count / 1e9:.4g} billion parameters in {dtype} are {expected / 1e9:.4g} GB",
        )
