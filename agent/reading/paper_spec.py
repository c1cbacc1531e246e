"""The ModelSpec that follows from a paper's facts; what is not stated is assumed by name."""

# ruff: noqa: E501  (a message reads better unbroken)

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from agent.reading.paper_shapes import Found
from tools.spec.base import ToolError
from tools.spec.model import MLP, Attention, DType, ModelSpec, MoE, Position

VOCAB_SIZE, TOP_K = 32000, 2
"""Assumed where a paper does not say; each use is noted."""


class _Facts:
    """Looks values up and notes what is assumed."""

    def __init__(self, facts: Mapping[str, Found], notes: list[str]) -> None:
        self.facts, self.notes = facts, notes

    def get(self, name: str) -> Any:
        found = self.facts.get(name)
        return found.value if found else None

    def or_assume(self, name: str, value: Any, why: str) -> Any:
        if name in self.facts:
            return self.facts[name].value
        self.notes.append(f"{name} = {value} assumed: {why}")
        return value


def spec_of(name: str, facts: Mapping[str, Found], notes: list[str]) -> ModelSpec:
    """Raises ToolError when depth or width cannot be told."""
    f = _Facts(facts, notes)
    layers, hidden = f.get("layers"), f.get("hidden_size")
    label = name or "the model"
    if hidden is None and f.get("heads") and f.get("head_dim"):
        hidden = f.or_assume("hidden_size", f.get("heads") * f.get("head_dim"), "heads × d_k")
    if layers is None or hidden is None:
        raise ToolError(
            f"{label}: the paper states no {'number of layers' if layers is None else 'hidden size'}; add it"
        )
    experts = f.get("experts") if (f.get("experts") or 0) > 1 else None
    called = facts.get("kind_of_layers")
    if experts is None and "experts" not in facts and called is not None and called.value == "moe":
        raise ToolError(f"{label}: a mixture of experts, and the number of experts is not stated; add it")
    gated, activation = _mlp_form(f)
    width = f.get("intermediate_size")
    if width is None and not experts:
        width = f.or_assume("intermediate_size", 4 * hidden, "not stated; 4 × hidden size")
    moe = _moe(f, experts, width or 4 * hidden, gated, activation) if experts else None
    flags = _moe_layers(f, layers) if moe else None
    needs_mlp = moe is None or (flags is not None and not all(flags))
    norm = f.or_assume(
        "norm", "rmsnorm" if gated else "layernorm", f"the usual norm beside a {'gated' if gated else 'two-matrix'} MLP"
    )
    position = f.or_assume("position", "rope", "no position encoding stated")
    shown = name or f"{'moe' if moe else 'dense'}-{layers}l"
    try:
        return ModelSpec(
            name=shown, hidden_size=hidden, num_hidden_layers=layers,
            vocab_size=f.or_assume("vocab_size", VOCAB_SIZE, "no vocabulary stated"), attention=_attention(f, hidden),
            mlp=MLP(intermediate_size=width or 4 * hidden, gated=gated, activation=activation) if needs_mlp else None,
            moe=moe, moe_layers=flags, norm=norm, norm_bias=norm == "layernorm", position=Position(kind=position),
            tie_word_embeddings=bool(f.get("tied")), weight_dtype=cast(DType, f.or_assume("weight_dtype", "bf16", "no precision stated")),
        )  # fmt: skip
    except ValueError as e:
        raise ToolError(f"{label}: {' '.join(str(e).split())[:200]}") from None


def _mlp_form(f: _Facts) -> tuple[bool, Any]:
    gated = f.get("gated")
    if gated is None:
        width, hidden = f.get("intermediate_size"), f.get("hidden_size")
        like_llama = (
            f.get("norm") == "rmsnorm" or f.get("activation") == "silu" or bool(width and hidden and width % hidden)
        )
        form = "gated, three matrices" if like_llama else "two matrices with GELU"
        gated = f.or_assume(
            "gated", like_llama, f"the MLP's form is not stated; its width and norm are those of {form}"
        )
    return gated, f.get("activation") or ("silu" if gated else "gelu")


def _attention(f: _Facts, hidden: int) -> Attention:
    heads, head_dim = f.get("heads"), f.get("head_dim")
    if heads is None:
        size = head_dim or 128
        heads = f.or_assume("heads", max(1, hidden // size), f"hidden size / {size}")
    if head_dim is None:
        if hidden % heads:
            raise ToolError(f"hidden size {hidden} / {heads} heads is not whole; state the head dimension")
        head_dim = hidden // heads
    kv = f.get("kv_heads") or heads
    if heads % kv:
        raise ToolError(f"{heads} heads are not a multiple of {kv} KV heads; correct one of the two")
    return Attention(
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=head_dim,
        qkv_bias=bool(f.get("qkv_bias")),
        qk_norm=f.get("qk_norm") or "none",
    )


def _moe(f: _Facts, experts: int, dense_width: int, gated: bool, activation: Any) -> MoE:
    width = f.or_assume("expert_width", dense_width, "the MLP's width stands in for the experts'")
    top_k = min(f.or_assume("top_k", min(TOP_K, experts), "no top-k stated"), experts)
    count = f.get("shared")
    shared_width = f.get("shared_width")
    if count is None and shared_width is not None:
        count = 1
    shared = (count or 0) * (shared_width or width)
    return MoE(
        num_experts=experts, top_k=top_k, intermediate_size=width, gated=gated, activation=activation,
        shared_intermediate_size=shared, gate=f.get("gate") or "softmax_topk",
    )  # fmt: skip


def _moe_layers(f: _Facts, layers: int) -> tuple[bool, ...] | None:
    """None: every layer has experts."""
    dense, step = f.get("first_dense") or 0, f.get("moe_step") or 1
    if not dense and step == 1:
        return None
    return tuple(i >= dense and (i % step == step - 1 or step == 1) for i in range(layers))
