"""Linear attention in Hugging Face configs: which layers have it, and its shape."""

from __future__ import annotations

from knowledge.hf_values import Config, Fields
from tools.spec.base import ToolError


def gated_delta(c: Config, f: Fields) -> None:
    """Qwen3-Next and Qwen3.5: Gated DeltaNet, every fourth layer full attention with an output gate."""
    f["attention"]["output_gate"] = c.flag("attn_output_gate", True)
    keys = c.whole("linear_num_key_heads") or 16
    f["linear"] = {
        "kind": "gated_delta",
        "num_key_heads": keys,
        "num_value_heads": c.whole("linear_num_value_heads") or 32,
        "key_dim": c.whole("linear_key_head_dim") or 128,
        "value_dim": c.whole("linear_value_head_dim") or 128,
        "conv_kernel": c.whole("linear_conv_kernel_dim") or 4,
    }
    _groups_divide(c, f)
    interval = c.whole("full_attention_interval") or 4
    f["linear_layers"] = _by_type(c, f) or tuple((i + 1) % interval != 0 for i in range(f["num_hidden_layers"]))
    f["sliding_layers"] = None


def kimi_delta(c: Config, f: Fields) -> None:
    """Kimi-Linear: Kimi Delta Attention, every fourth layer latent attention that does not rotate. Layers are listed from 1."""
    stated = c.mapping("linear_attn_config")
    inner = Config({**stated, **{k: v for k, v in c.data.items() if v is not None}}, c.name)
    heads, dim = inner.whole("linear_num_heads") or stated.get("num_heads"), inner.whole("linear_head_dim")
    dim = dim or stated.get("head_dim") or 128
    f["linear"] = {
        "kind": "kda",
        "num_key_heads": heads or f["attention"]["num_heads"],
        "num_value_heads": heads or f["attention"]["num_heads"],
        "key_dim": dim,
        "value_dim": dim,
        "conv_kernel": inner.whole("linear_conv_kernel_dim", "short_conv_kernel_size") or 4,
        "gate_rank": dim,
    }
    layers, full = f["num_hidden_layers"], stated.get("full_attn_layers")
    listed = tuple(i + 1 not in full for i in range(layers)) if isinstance(full, (list, tuple)) else None
    f["linear_layers"] = listed or _by_type(c, f) or tuple((i + 1) % 4 != 0 for i in range(layers))
    f["sliding_layers"] = None
    if f["attention"]["mla"] and c.flag("mla_use_nope", True):
        f["position"]["rope_layers"] = (False,) * layers


def _by_type(c: Config, f: Fields) -> tuple[bool, ...] | None:
    types = c.sequence("layer_types", f["num_hidden_layers"])
    return tuple(t == "linear_attention" for t in types) if types is not None else None


def _groups_divide(c: Config, f: Fields) -> None:
    k, v = f["linear"]["num_key_heads"], f["linear"]["num_value_heads"]
    if v % k:
        raise ToolError(f"{c.name}: linear_num_value_heads({v}) % linear_num_key_heads({k}) = {v % k}, must be 0")
