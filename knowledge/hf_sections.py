"""Sections of a Hugging Face config → fields of `ModelSpec`: attention, positions, MLP, experts, dtypes, what is unsupported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knowledge.hf_rope import KINDS, scaling_of, scaling_type, sliding_theta, stretched_theta, yarn_mscale
from knowledge.hf_values import (
    ACT,
    ACTIVATIONS,
    EXPERT_FFN,
    EXPERTS,
    FFN,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    POSITIONS,
    SHARED_COUNT,
    SHARED_FFN,
    TOP_K,
    VOCAB,
    Config,
    Family,
    Fields,
)
from tools.spec.base import Refused, ToolError


def require_essentials(c: Config, family: Family) -> None:
    if c.raw("block_configs"):
        raise Refused(
            f"{c.name}: blocks whose shape differs from layer to layer (block_configs) have no operator graph yet"
        )
    needed = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": VOCAB}
    missing = [label for label, keys in needed.items() if c.raw(*keys) is None]
    if family.ffn_multiple is None and _ffn_width(c, family) is None and c.raw(*EXPERT_FFN) is None:
        missing.append("intermediate_size")
    if missing:
        raise ToolError(
            f"{c.name}: the config lacks {', '.join(missing)}; add them (spelled as in Hugging Face's config.json)"
        )


# ── sections ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def attention_of(c: Config, family: Family) -> Fields:
    hidden, heads = c.whole(*HIDDEN), c.whole(*HEADS)
    assert hidden and heads
    kv = c.whole(*KV_HEADS) or family.kv_heads or heads
    mla = _mla(c)
    head_dim = mla["qk_nope_head_dim"] + mla["qk_rope_head_dim"] if mla else c.whole(*HEAD_DIM) or family.head_dim
    if head_dim is None:
        if hidden % heads:
            raise ToolError(
                f"{c.name}: hidden_size({hidden}) / num_attention_heads({heads}) = {hidden / heads:.4g} is not whole; "
                f"state head_dim, or choose heads among the divisors of {hidden}"
            )
        head_dim = hidden // heads
    if heads % kv:
        raise ToolError(
            f"{c.name}: num_attention_heads({heads}) / num_key_value_heads({kv}) = {heads / kv:.4g} is not whole"
        )
    return {
        "num_heads": heads,
        "num_kv_heads": kv,
        "head_dim": head_dim,
        "mla": mla,
        "qkv_bias": c.switch(family.qkv_bias),
        "out_bias": c.switch(family.out_bias),
        "qk_norm": family.qk_norm,
        "clip_qkv": c.raw("clip_qkv"),
        "sliding_window": _window(c, family),
        "chunk_size": None,
        "softcap": c.raw("attn_logit_softcapping"),
        "scale": _score_scale(c, family, head_dim, mla),
    }


def _mla(c: Config) -> Fields | None:
    latent = c.whole("kv_lora_rank")
    if latent is None:
        return None
    dims = {k: c.whole(k) for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")}
    missing = [k for k, v in dims.items() if v is None]
    if missing:
        raise ToolError(f"{c.name}: kv_lora_rank {latent} makes this MLA, but {', '.join(missing)} is missing")
    return {"q_lora_rank": c.whole("q_lora_rank"), "kv_lora_rank": latent, **dims}


def _window(c: Config, family: Family) -> int | None:
    """Sliding window in force; `use_sliding_window: false` (Qwen) and windows of the whole context switch it off."""
    window = c.whole("sliding_window", "window_size", minimum=0, maximum=10**9)
    if not window or not c.flag("use_sliding_window", family.sliding):
        return None
    context = c.whole(*POSITIONS, maximum=10**9)
    return None if context is not None and window >= context and c.raw("layer_types") is None else window


def sliding_layers_of(c: Config, layers: int) -> tuple[bool, ...] | None:
    types = c.sequence("layer_types", layers)
    if types is not None:
        return tuple(t in ("sliding_attention", "chunked_attention") for t in types)
    drawn = c.raw("sliding_window_pattern")
    if isinstance(drawn, str) and drawn and set(drawn) <= set("LG"):  # "LLLG": local, local, local, global
        return tuple(drawn[i % len(drawn)] == "L" for i in range(layers))
    pattern = c.whole("sliding_window_pattern", "_sliding_window_pattern")
    if pattern is not None:
        return tuple((i + 1) % pattern != 0 for i in range(layers))
    first = c.whole("max_window_layers", minimum=0)
    if first is not None and c.flag("use_sliding_window"):
        return tuple(i >= first for i in range(layers))
    return None


ROPE_NUMBERS = (
    "factor",
    "rope_theta",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)


def _rope(c: Config) -> Mapping[str, Any]:
    """RoPE parameters under either spelling; per-kind ones (Gemma-3) give those of the full-attention layers."""
    rope = c.mapping("rope_parameters")
    if isinstance(rope.get("full_attention"), Mapping):
        rope = rope["full_attention"]
    merged = {**c.mapping("rope_scaling"), **rope}
    for key in ROPE_NUMBERS:
        Config(merged, c.name).number(key, default=0.0)
    return merged


def _score_scale(c: Config, family: Family, head_dim: int, mla: Fields | None) -> float | None:
    """Multiplier of the scores where it is not head_dim ** -0.5."""
    if c.raw("attention_multiplier") is not None:
        return c.number("attention_multiplier", default=1.0)
    if c.raw("query_pre_attn_scalar") is not None:
        scalar = c.number("query_pre_attn_scalar", default=head_dim)
        return None if scalar == head_dim else scalar**-0.5
    rope = _rope(c)
    if mla:
        all_dim, factor = rope.get("mscale_all_dim"), rope.get("factor")
        return head_dim**-0.5 * yarn_mscale(factor, all_dim) ** 2 if all_dim and factor else None
    return None


def position_of(c: Config, family: Family, attention: Fields) -> Fields:
    kind = "alibi" if c.flag("alibi") else family.position
    rope = _rope(c)
    head_dim = attention["mla"]["qk_rope_head_dim"] if attention["mla"] else attention["head_dim"]
    fraction = rope.get(
        "partial_rotary_factor", c.number("partial_rotary_factor", "rotary_pct", "rope_pct", default=-1.0)
    )
    fraction = family.rotary_fraction if fraction == -1.0 else fraction
    fraction = (
        1.0 if scaling_type(rope) == "proportional" else fraction
    )  # of that, all pairs count and some stand still
    rotary = c.whole("rotary_dim") or (int(head_dim * fraction) if fraction != 1.0 else None)
    if rotary is not None and not 0 < rotary <= head_dim:
        raise ToolError(f"{c.name}: rotary_dim {rotary} must be within 1 and head_dim {head_dim}")
    theta = rope.get("rope_theta", c.number("rope_theta", "rotary_emb_base", default=10000.0))
    rotates = kind == "rope"
    return {
        "kind": kind,
        "theta": stretched_theta(rope, theta, rotary or head_dim),
        "scaling": scaling_of(c, rope, rotary or head_dim) if rotates else None,
        "sliding_theta": sliding_theta(c, theta) if rotates else None,
        "rotary_dim": rotary if kind == "rope" and rotary != head_dim else None,
        "interleaved": c.flag("rope_interleave", family.interleaved) if kind == "rope" else False,
        "max_positions": c.whole(*POSITIONS, maximum=10**9) or 4096,
        "learned_offset": family.learned_offset,
    }


def max_context_of(c: Config) -> int | None:
    """Positions the model is configured for; YaRN and linear scaling stretch the trained length by their factor."""
    stated = c.whole(*POSITIONS, maximum=10**9)
    rope = _rope(c)
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    kind = rope.get("rope_type", rope.get("type"))
    if stated is None or not isinstance(factor, (int, float)):
        return stated
    if kind == "yarn" and isinstance(original, int):
        return max(stated, int(original * factor))
    return int(stated * factor) if kind in ("linear", "dynamic") else stated


def activation_of(c: Config, default: str) -> str:
    stated = c.raw(*ACT)
    if isinstance(stated, Mapping):  # dbrx: {"name": "silu"}
        stated = stated.get("name")
    return ACTIVATIONS.get(str(stated), "") if stated is not None else default


def _ffn_width(c: Config, family: Family) -> int | None:
    hidden = c.whole(*HIDDEN)
    width = c.whole("intermediate_size_mlp", *FFN)
    if width is not None or hidden is None:
        return width
    if c.raw("expansion_ratio") is not None:
        return int(hidden * c.number("expansion_ratio", default=4))
    if c.raw("multiple_of") is not None:  # Meta's params.json: 2/3 of 4·hidden, scaled, rounded up
        width = int(c.number("ffn_dim_multiplier", default=1.0) * int(8 * hidden / 3))
        step = c.whole("multiple_of") or 1
        return step * -(-width // step)
    return family.ffn_multiple * hidden if family.ffn_multiple else None


def mlp_of(c: Config, family: Family) -> Fields | None:
    width = _ffn_width(c, family)
    if width is None:
        return None
    activation = activation_of(c, family.activation) or "relu"
    return {
        "intermediate_size": width,
        "gated": family.gated,
        "activation": activation,
        "bias": c.switch(family.mlp_bias),
    }


def stated_gate(c: Config) -> str | None:
    scoring = str(c.raw("scoring_func", "moe_router_score_function", "score_function", "moe_router_activation_func"))
    return {"sigmoid": "sigmoid_topk", "softmax": "softmax_topk"}.get(scoring)


def moe_of(c: Config, family: Family) -> Fields | None:
    experts = c.whole(*EXPERTS, minimum=0)
    if not experts or experts == 1:
        return None
    top_k = c.whole(*TOP_K)
    width = c.whole(*EXPERT_FFN) or c.whole(*FFN)
    missing = [k for k, v in (("num_experts_per_tok", top_k), ("moe_intermediate_size", width)) if v is None]
    if missing or top_k is None or width is None:
        raise ToolError(f"{c.name}: {experts} experts, but the config lacks {', '.join(missing)}")
    if top_k > experts:
        raise ToolError(f"{c.name}: num_experts_per_tok({top_k}) exceeds the {experts} experts of a layer")
    groups = c.whole("n_group", "num_expert_group") or 1
    topk_group = c.whole("topk_group") or groups
    if experts % groups or topk_group > groups:
        raise ToolError(
            f"{c.name}: {experts} experts in n_group({groups}) groups, of which topk_group({topk_group}) are chosen"
        )
    return {
        "num_experts": experts,
        "top_k": top_k,
        "intermediate_size": width,
        "latent_size": c.whole("moe_latent_size"),
        "gate": stated_gate(c) or family.gate,
        "norm_topk_prob": c.flag("norm_topk_prob", c.flag("moe_renormalize", family.norm_topk)),
        "routed_scaling_factor": c.number("routed_scaling_factor", default=1.0),
        "n_group": groups,
        "topk_group": topk_group,
        "correction_bias": c.raw("topk_method") == "noaux_tc" or c.flag("use_routing_bias", family.correction_bias),
        "gated": family.gated,
        "activation": activation_of(c, family.activation) or "relu",
        "shared_intermediate_size": _shared_width(c, width),
    }


def _shared_width(c: Config, expert_width: int) -> int:
    total = c.whole(*SHARED_FFN, minimum=0)
    count = c.whole(*SHARED_COUNT, minimum=0) or 0
    return total if total is not None else count * expert_width


def moe_layers_of(c: Config, layers: int) -> tuple[bool, ...] | None:
    """Which layers route, under every spelling in use; None means all."""
    kinds = c.sequence("mlp_layer_types", layers)
    if kinds is not None:
        return tuple(k != "dense" for k in kinds)
    listed = c.raw("moe_layers")
    if isinstance(listed, (list, tuple)):
        return tuple(i in listed for i in range(layers))
    frequency = c.raw("moe_layer_freq")
    if isinstance(frequency, (list, tuple)):
        return tuple(bool(f) for f in c.sequence("moe_layer_freq", layers) or ())
    first = c.whole("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers", minimum=0) or 0
    step = c.whole("moe_layer_freq", "moe_layer_interval") or 1
    every = c.whole("decoder_sparse_step", "interleave_moe_layer_step") or 1
    last = c.whole("moe_layer_end_index", minimum=0)
    dense = c.raw("mlp_only_layers") or ()
    if not isinstance(dense, (list, tuple)):
        raise ToolError(f"{c.name}: mlp_only_layers must be a list of layer numbers, got {dense!r}")
    flags = tuple(
        i >= first and (i % step == 0 if first == 0 else (i - first) % step == 0)
        and (i + 1) % every == 0 and i not in dense and (last is None or i <= last)
        for i in range(layers)
    )  # fmt: skip
    return None if all(flags) else flags


# ── dtype and quantisation ────────────────────────────────────────────────────────────────────────────────────────────

PLAIN = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float8_e4m3fn": "fp8"}


def dtype_of(c: Config, has_experts: bool) -> Fields:
    """Native dtype of the matrices: the quantisation's when there is one, else `torch_dtype`, else bf16."""
    quant = c.mapping("quantization_config") or c.mapping("compression_config")
    stated = str(c.raw("torch_dtype", "dtype") or "bfloat16").removeprefix("torch.")
    plain = PLAIN.get(stated, stated if stated in PLAIN.values() else "bf16")
    dtype, group = _quantised(c, quant) if quant else (None, None)
    kept = str(quant.get("modules_to_not_convert") or quant.get("ignore") or "")
    return {
        "weight_dtype": dtype or plain,
        "quant_group": group,
        "quantized_experts_only": bool(dtype and has_experts and "self_attn" in kept),
    }


def _quantised(c: Config, quant: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """(dtype, group size) of a `quantization_config`."""
    method = str(quant.get("quant_method") or quant.get("quant_algo") or "").lower().replace("_", "-")
    group = quant.get("group_size")
    if method in ("fp8", "fbgemm-fp8", "modelopt-fp8"):
        block = quant.get("weight_block_size")
        return "fp8", block[0] if isinstance(block, (list, tuple)) and block else None
    if method == "mxfp4":
        return "mxfp4", 32
    if method in ("awq", "gptq", "auto-round", "autoround", "awq-marlin", "gptq-marlin", "hqq"):
        return _integer(c, quant.get("bits", quant.get("w_bit", quant.get("nbits", 4)))), _group(group)
    if method in ("compressed-tensors", "quark"):
        return _compressed(c, quant)
    if method in ("modelopt", "nvfp4", "modelopt-fp4") or "fp4" in method:
        algorithm = str(quant.get("quant_algo") or method).lower()
        return ("nvfp4", 16) if "fp4" in algorithm else ("fp8", None)
    if method in ("bitsandbytes", "bnb") or quant.get("load_in_4bit") or quant.get("load_in_8bit"):
        return ("int4", 64) if quant.get("load_in_4bit") else ("int8", None)
    if method in ("w8a8", "ascend", "smoothquant", "int8"):
        return "int8", None
    raise ToolError(
        f"{c.name}: quantization_config.quant_method {method!r} is not known; state the weight dtype in the conditions"
    )


def _group(size: Any) -> int | None:
    return size if isinstance(size, int) and size > 0 else None


def _integer(c: Config, bits: Any) -> str:
    if bits not in (4, 8):
        raise ToolError(f"{c.name}: quantization_config.bits = {bits!r}; 4 and 8 bits can be planned")
    return f"int{bits}"


def _compressed(c: Config, quant: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """compressed-tensors: the first group's weights tell bits, type and group size."""
    groups = quant.get("config_groups")
    first: Any = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
    weights = first.get("weights") if isinstance(first, Mapping) else None
    weights = weights if isinstance(weights, Mapping) else {}
    bits, kind = weights.get("num_bits"), str(weights.get("type", "int"))
    if (kind == "float" and bits == 4) or "nvfp4" in str(quant.get("format")):
        return ("mxfp4", 32) if weights.get("group_size") == 32 else ("nvfp4", 16)
    if kind == "float" and bits == 8:
        block = weights.get("block_structure")
        return "fp8", block[0] if isinstance(block, (list, tuple)) and block else None
    return _integer(c, bits), _group(weights.get("group_size"))


# ── what has no operator graph yet ────────────────────────────────────────────────────────────────────────────────────

FEATURES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("linear_attn_config", "linear_num_key_heads", "linear_key_head_dim", "full_attention_interval"),
     "linear attention layers (delta rule)"),
    (("attn_type_list",), "linear (lightning) attention layers"),
    (("index_topk", "index_n_heads"), "sparse attention with an indexer"),
    (("index_topk_freq", "index_topk_pattern"), "picked positions that layers share (index_topk_freq)"),
    (("compress_ratios", "o_groups"), "compressed sparse attention"),
    (("mamba_d_state", "mamba_num_heads", "mamba_d_ssm", "ssm_state_size", "hybrid_override_pattern", "ssm_cfg"),
     "state-space (Mamba) layers"),
    (("layers_block_type",), "layers of mixed kinds (layers_block_type)"),
    (("conv_L_cache",), "short-convolution layers"),
    (("altup_num_inputs",), "AltUp and LAuReL blocks (Gemma-3n)"),
    (("cross_attention_layers",), "cross-attention layers"),
    (("moe_latent_size", "routed_expert_hidden_size"), "experts in a latent space narrower than hidden"),
    (("zero_expert_num",), "zero-computation experts"),
    (("qk_layernorm",), "LayerNorm on q and k"),
    (("hyper_connection", "hc_mult"), "hyper-connections"),
    (("attention_sink_bias", "add_swa_attention_sink_bias"), "sinks on some layers only"),
    (("global_head_dim", "num_global_key_value_heads", "swa_num_key_value_heads", "swa_head_dim"),
     "attention heads whose size or number differs from layer to layer"),
    (("attention_k_eq_v",), "values that are the keys (attention_k_eq_v)"),
    (("hidden_size_per_layer_input",), "embeddings for every layer (hidden_size_per_layer_input)"),
    (("num_kv_shared_layers",), "layers that read the keys and values of others (num_kv_shared_layers)"),
    (("enable_moe_block",), "experts beside a dense MLP, with norms of their own (enable_moe_block)"),
    (("sparse_attention_config",), "sparse attention over blocks of positions (sparse_attention_config)"),
    (("use_cla",), "keys and values shared across layers (use_cla)"),
)  # fmt: skip
OTHER_BLOCKS = {
    "gemma3n": "AltUp and LAuReL blocks (Gemma-3n)",
    "gemma3n_text": "AltUp and LAuReL blocks (Gemma-3n)",
    "zamba2": "attention blocks shared by layers (Zamba2)",
}
"""Model types whose blocks are known to be others than the config's keys say."""
MAMBA2 = ("nemotron_h", "granitemoehybrid", "falcon_h1", "bamba")
"""Families whose Mamba layers have an operator graph; others lay theirs out otherwise (Jamba, Zamba)."""
KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention", "global", "local"}


def _in_force(value: Any) -> bool:
    """Whether a key means something: a list of nothing but ordinary attention layers does not."""
    if isinstance(value, (list, tuple)):
        return any(item not in (1, "attention", "full_attention") for item in value)
    return bool(value)


def unsupported_of(c: Config, fields: Fields, family: Family) -> list[str]:
    kind = scaling_type(_rope(c)) if fields["position"]["kind"] == "rope" else ""
    linear = fields.get("linear") is not None
    drawn = {f for f in FEATURES if family.draws & set(f[0])} | ({FEATURES[0]} if linear else set())
    if c.raw("model_type") in MAMBA2:
        drawn |= {f for f in FEATURES if f[0][0] in ("mamba_d_state", "layers_block_type", "moe_latent_size")}
    if fields["attention"].get("indexer"):
        drawn |= {f for f in FEATURES if f[0][0] == "index_topk"}
    features = [f for f in FEATURES if f not in drawn]
    reasons = [OTHER_BLOCKS[t] for t in [str(c.raw("model_type"))] if t in OTHER_BLOCKS]
    reasons += [reason for keys, reason in features if any(_in_force(c.data.get(k)) for k in keys)]
    if kind and kind not in KINDS:
        reasons.append(f"RoPE scaling of type {kind} (known: {', '.join(KINDS)})")
    types = c.raw("layer_types")
    known = KNOWN_LAYERS | ({"linear_attention"} if linear else set())
    if linear and c.raw("conv_L_cache"):
        known |= {"conv"}
    if c.raw("model_type") in (*MAMBA2, "jamba"):
        known |= {"mamba", "mlp", "moe"}
    if fields["attention"].get("indexer"):
        known |= {"indexed_attention", "deepseek_sparse_attention", "minimax_m3_sparse"}
    other = sorted({str(t) for t in types} - known) if isinstance(types, (list, tuple)) else []
    if other and not any("linear" in r for r in reasons):
        reasons.append(f"layer types {', '.join(other)}")
    stated = c.raw(*ACT)
    stated = stated.get("name") if isinstance(stated, Mapping) else stated
    clamped = (fields["mlp"] or {}).get("activation") == "swiglu_oai"  # the family knows it
    if stated is not None and str(stated) not in ACTIVATIONS and not clamped:
        reasons.append(f"activation {stated}")
    return reasons
