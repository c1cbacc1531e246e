"""Closed forms over a stated shape: parameters and KV bytes, to hold against what the conditions declare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.spec.model import ModelSpec

SHAPE_KEYS = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
)


def stated_shape_parameters(shape: Mapping[str, Any], *, gated: bool, vocab_size: int = 0) -> float | None:
    """Weights of a decoder with `shape` (HF names): embeddings twice, attention, FFN (3 or 2 matrices), router.

    `vocab_size` stands in where none is stated. None when layers, hidden size or every FFN width is unknown.
    """
    layers, hidden = shape.get("num_hidden_layers"), shape.get("hidden_size")
    heads = shape.get("num_attention_heads")
    experts = shape.get("num_experts") or 0
    width = shape.get("moe_intermediate_size") if experts > 1 else None
    width = width or shape.get("intermediate_size")
    if not (layers and hidden and width):
        return None
    head_dim = shape.get("head_dim") or (hidden // heads if heads else None)
    kv_heads = shape.get("num_key_value_heads") or heads
    attention = 2 * hidden * head_dim * (heads + kv_heads) if heads and head_dim else 4 * hidden * hidden
    ffn = (3 if gated else 2) * hidden * width * (experts if experts > 1 else 1) + (
        hidden * experts if experts > 1 else 0
    )
    vocab = shape.get("vocab_size") or vocab_size
    return float(layers * (attention + ffn) + 2 * vocab * hidden)


def published_shape(model: ModelSpec) -> dict[str, Any]:
    """The same keys for a model of the catalogue."""
    shape: dict[str, Any] = {
        "num_hidden_layers": model.num_hidden_layers,
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "num_attention_heads": model.attention.num_heads,
    }
    if model.attention.mla is None:
        shape |= {"num_key_value_heads": model.attention.num_kv_heads, "head_dim": model.attention.head_dim}
    if model.mlp is not None:
        shape["intermediate_size"] = model.mlp.intermediate_size
    if model.moe is not None:
        shape |= {
            "num_experts": model.moe.num_experts,
            "num_experts_per_tok": model.moe.top_k,
            "moe_intermediate_size": model.moe.intermediate_size,
        }
    return shape


def kv_bytes_per_token(shape: Mapping[str, Any], elem_bytes: float) -> float | None:
    """2·L·H_kv·d_h·elem_bytes; None when the shape does not say."""
    layers, heads = shape.get("num_hidden_layers"), shape.get("num_attention_heads")
    kv_heads = shape.get("num_key_value_heads") or heads
    head_dim = shape.get("head_dim") or (shape["hidden_size"] // heads if heads and shape.get("hidden_size") else None)
    return 2.0 * layers * kv_heads * head_dim * elem_bytes if layers and kv_heads and head_dim else None
