"""Hugging Face `config.json` of a decoder-only transformer → `ModelSpec`.

One path for everybody: the catalogue's own entries and a user's file are read by the same function. A row of
`FAMILIES` holds what the architecture fixes in code rather than in the config (biases, norms, block layout, defaults);
a reader function per section takes the rest; `adapt` handles what a row cannot say. A `model_type` without a row is
read as Llama-like, with low confidence.

Defaults and layouts follow the modelling code of transformers 5.23.

    model_from_config({"model_type": "llama", "hidden_size": 4096, ...}, name="my-7b") -> ModelSpec
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tools.spec.base import Refused, ToolError
from tools.spec.model import ModelSpec

__all__ = ["FAMILIES", "Family", "model_from_config"]

Fields = dict[str, Any]
Switch = bool | tuple[str, bool]
"""A fixed answer, or (config key, default when the key is absent)."""

HIDDEN = ("hidden_size", "n_embd", "n_embed", "d_model", "dim", "model_dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = (
    "num_key_value_heads",
    "num_kv_heads",
    "n_kv_heads",
    "n_head_kv",
    "multi_query_group_num",
    "num_query_groups",
)
HEAD_DIM = ("head_dim", "kv_channels", "attention_head_dim")
VOCAB = ("padded_vocab_size", "vocab_size", "n_vocab")
FFN = ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim", "hidden_dim", "d_ff", "inner_hidden_size")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "n_ctx")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
TOP_K = (
    "num_experts_per_tok", "experts_per_token", "num_experts_per_token", "moe_k", "moe_topk", "moe_top_k",
    "num_selected_experts", "top_k",
)  # fmt: skip
EXPERT_FFN = ("moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size", "expert_intermediate_size")
SHARED_FFN = ("shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size")
SHARED_COUNT = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
EPS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "layernorm_epsilon", "norm_eps")
ACT = ("hidden_act", "hidden_activation", "activation_function", "activation")
TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "swiglu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "geglu": "gelu",
    "relu": "relu",
}
MAX_WHOLE = 10**8
MAX_LAYERS = 4096


@dataclass(frozen=True, slots=True)
class Family:
    """What the modelling code of one `model_type` fixes; the config file only says the rest."""

    norm: str = "rmsnorm"
    norm_bias: Switch = False
    norm_offset: float = 0.0
    block: str = "sequential"
    parallel_norms: int = 1
    position: str = "rope"
    interleaved: bool = False
    rotary_fraction: float = 1.0
    learned_offset: int = 0
    qkv_bias: Switch = ("attention_bias", False)
    out_bias: Switch = ("attention_bias", False)
    mlp_bias: Switch = ("mlp_bias", False)
    gated: bool = True
    activation: str = "silu"
    ffn_multiple: int | None = None
    """FFN width over hidden when the config leaves it out; None: it must be stated."""
    qk_norm: str = "none"
    head_dim: int | None = None
    kv_heads: int | None = None
    tie: bool = False
    lm_head_bias: bool = False
    embedding_norm: bool = False
    gate: str = "softmax_topk"
    norm_topk: bool = True
    correction_bias: bool = False
    sliding: bool = True
    """Whether `sliding_window`, when set, is in force without a further switch."""
    adapt: Callable[[Config, Fields], None] | None = None
    defaults: tuple[tuple[str, Any], ...] = ()
    """Keys that released configs of the family leave out, as the configuration class fills them in."""


class Config:
    """Typed access to a config: a bad value is an error that names the key and shows the value."""

    def __init__(self, data: Mapping[str, Any], name: str):
        self.data = data
        self.name = name

    def raw(self, *keys: str) -> Any:
        """First non-null value among spellings of one key."""
        return next((self.data[k] for k in keys if self.data.get(k) is not None), None)

    def key(self, *keys: str) -> str:
        return next((k for k in keys if self.data.get(k) is not None), keys[0])

    def whole(self, *keys: str, minimum: int = 1, maximum: int = MAX_WHOLE) -> int | None:
        value = self.raw(*keys)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise ToolError(
                f"{self.name}: {self.key(*keys)} must be a whole number from {minimum} to {maximum}, got {value!r}"
            )
        return value

    def number(self, *keys: str, default: float) -> float:
        value = self.raw(*keys)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ToolError(f"{self.name}: {self.key(*keys)} must be a finite number, got {value!r}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, (bool, int)):
            raise ToolError(f"{self.name}: {key} must be true or false, got {value!r}")
        return bool(value)

    def switch(self, switch: Switch) -> bool:
        return switch if isinstance(switch, bool) else self.flag(*switch)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.raw(key)
        return value if isinstance(value, Mapping) else {}

    def sequence(self, key: str, length: int) -> list[Any] | None:
        """A per-layer list. A longer one is cut (released configs ship such), a shorter one is an error."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or len(value) < length:
            size = len(value) if isinstance(value, (list, tuple)) else repr(value)
            raise ToolError(f"{self.name}: {key} has {size} entries for {length} layers")
        return list(value[:length])


def model_from_config(config: Mapping[str, Any], name: str | None = None) -> ModelSpec:
    """Reads the keys of an HF `config.json`; nested text configs of multimodal models are unwrapped (text tower only).

    Layers without an operator graph yet (linear attention, state space, sparse attention …) land in `unsupported`.

    Raises: ToolError naming missing keys, or the key and value that cannot be; Refused for models that are no decoder.
    """
    if not isinstance(config, Mapping):
        raise ToolError(f"a model config is a JSON object of keys and values, got {type(config).__name__}")
    data, remarks = _unwrap(config)
    model_type = _model_type(data)
    label = name or str(data.get("_name_or_path") or data.get("model_name") or model_type or "model")
    c = Config(data, label)
    _refuse_other_kinds(c, model_type)
    try:
        fields = _fields(c, model_type, remarks)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # a foreign file may hold anything; what no check above foresaw is still the file's fault
        raise ToolError(f"{label}: the config holds a value of the wrong kind ({str(error)[:100]})") from error
    return _checked(label, fields)


def _fields(c: Config, model_type: str, remarks: list[str]) -> Fields:
    """Keyword arguments of `ModelSpec`."""
    family = FAMILIES.get(model_type)
    known = family is not None
    if family is None:
        family = _guess_family(c)
        remarks.append(f"model_type {model_type!r} is not known here: read as {family.norm}, Llama-like")
    c.data = {**dict(family.defaults), **{k: v for k, v in c.data.items() if v is not None}}
    _require_essentials(c, family)
    fields = _sections(c, family)
    if family.adapt:
        family.adapt(c, fields)
    if fields["moe"] and (fields["moe_layers"] is None or all(fields["moe_layers"])):
        fields["mlp"] = None
    fields["unsupported"] = tuple(dict.fromkeys([*fields["unsupported"], *_unsupported(c, fields)]))
    fields["sources"] = ("config.json", *remarks, *fields.pop("remarks"))
    fields["confidence"] = "high" if known else "low"
    return fields


def _sections(c: Config, family: Family) -> Fields:
    layers = c.whole(*LAYERS, maximum=MAX_LAYERS)
    assert layers is not None
    fields: Fields = {
        "name": c.name,
        "hidden_size": c.whole(*HIDDEN),
        "num_hidden_layers": layers,
        "vocab_size": c.whole(*VOCAB),
        "attention": _attention(c, family),
        "mlp": _mlp(c, family),
        "moe": _moe(c, family),
        "moe_layers": _moe_layers(c, layers),
        "sliding_layers": _sliding_layers(c, layers),
        "norm": family.norm,
        "norm_eps": c.number(*EPS, default=1e-6 if family.norm == "rmsnorm" else 1e-5),
        "norm_bias": c.switch(family.norm_bias),
        "norm_offset": family.norm_offset,
        "embedding_norm": family.embedding_norm,
        "block": family.block,
        "parallel_norms": family.parallel_norms,
        "tie_word_embeddings": c.flag("tie_word_embeddings", family.tie),
        "lm_head_bias": family.lm_head_bias,
        "max_context": _max_context(c),
        "architecture": _architecture(c),
        "unsupported": (),
        "remarks": [],
    }
    fields["position"] = _position(c, family, fields["attention"])
    fields.update(_dtype(c, fields["moe"] is not None))
    if fields["moe"] is None:
        fields["moe_layers"] = None
    return fields


def _checked(label: str, fields: Fields) -> ModelSpec:
    try:
        return ModelSpec(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        got = "" if isinstance(first["input"], Mapping) else f", got {first['input']!r}"
        raise ToolError(f"{label}: {where or 'config'}: {first['msg']}{got}") from None


# ── what the file is ──────────────────────────────────────────────────────────────────────────────────────────────────


def _unwrap(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Text tower of a multimodal config, with what only the outer level says (architecture, quantisation, dtype)."""
    data = dict(config)
    remarks: list[str] = []
    while part := next((p for p in TEXT_PARTS if isinstance(data.get(p), Mapping)), None):
        outer = ("architectures", "quantization_config", "tie_word_embeddings", "torch_dtype", "dtype", "_name_or_path")
        data = {k: data[k] for k in outer if k in data} | dict(data[part])
        remarks.append(f"{part} only: other towers of the model are not counted")
    # nested groups of dbrx and mpt; the outer keys win
    for group in ("attn_config", "ffn_config"):
        if isinstance(data.get(group), Mapping):
            data = {**data[group], **data}
    return data, remarks


ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "DeepseekV2ForCausalLM": "deepseek_v2",
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "GPT2LMHeadModel": "gpt2",
    "GPTJForCausalLM": "gptj",
    "GptOssForCausalLM": "gpt_oss",
    "BaichuanForCausalLM": "baichuan",
    "GPTNeoXForCausalLM": "gpt_neox",
    "OPTForCausalLM": "opt",
    "BloomForCausalLM": "bloom",
    "FalconForCausalLM": "falcon",
    "RWForCausalLM": "falcon",
    "ChatGLMModel": "chatglm",
    "ChatGLMForConditionalGeneration": "chatglm",
    "InternLM2ForCausalLM": "internlm2",
    "QWenLMHeadModel": "qwen",
    "PhiForCausalLM": "phi",
    "Phi3ForCausalLM": "phi3",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
}


def _model_type(data: Mapping[str, Any]) -> str:
    """`model_type`, or what the architecture class says where the type is absent or means a relative."""
    names = data.get("architectures")
    first = str(names[0]) if isinstance(names, (list, tuple)) and names else ""
    stated = str(data.get("model_type") or "")
    if first.startswith("MiniMaxM2"):  # released with the type of the hybrid MiniMax-01
        return "minimax_m2"
    return stated or ARCHITECTURES.get(first, "")


def _architecture(c: Config) -> str | None:
    names = c.raw("architectures")
    return str(names[0]) if isinstance(names, (list, tuple)) and names else None


ENCODERS = (
    "bert",
    "roberta",
    "t5",
    "mt5",
    "bart",
    "vit",
    "swin",
    "whisper",
    "clip",
    "electra",
    "deberta",
    "albert",
    "xlm",
)
STATE_SPACE = ("mamba", "mamba2", "rwkv", "falcon_mamba", "xlstm")


def _refuse_other_kinds(c: Config, model_type: str) -> None:
    if c.raw("is_encoder_decoder") or model_type in ENCODERS or model_type.startswith(("bert-", "t5-")):
        raise Refused(f"{c.name}: model_type {model_type!r} has an encoder; only decoder-only models can be planned")
    if model_type in STATE_SPACE:
        raise Refused(f"{c.name}: model_type {model_type!r} has no attention layers; only transformers can be planned")


def _guess_family(c: Config) -> Family:
    """Llama-like, with what the spelling of the keys gives away."""
    layernorm = c.raw("rms_norm_eps") is None and c.raw("layer_norm_epsilon", "layer_norm_eps") is not None
    act = _activation(c, "silu")
    qk = bool(c.raw("use_qk_norm") or c.raw("qk_norm"))
    return Family(
        norm="layernorm" if layernorm else "rmsnorm", norm_bias=layernorm, gated=act == "silu" or not layernorm,
        activation=act, qk_norm="head" if qk else "none", tie=False, gate=_stated_gate(c) or "softmax_topk",
    )  # fmt: skip


def _require_essentials(c: Config, family: Family) -> None:
    needed = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": VOCAB}
    missing = [label for label, keys in needed.items() if c.raw(*keys) is None]
    if family.ffn_multiple is None and _ffn_width(c, family) is None and c.raw(*EXPERT_FFN) is None:
        missing.append("intermediate_size")
    if missing:
        raise ToolError(
            f"{c.name}: the config lacks {', '.join(missing)}; add them (spelled as in Hugging Face's config.json)"
        )


# ── sections ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _attention(c: Config, family: Family) -> Fields:
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


def _sliding_layers(c: Config, layers: int) -> tuple[bool, ...] | None:
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


def _yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature (arXiv 2309.00071, eq. 22): 0.1 m ln s + 1."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _rope_attention_factor(c: Config) -> float:
    """What RoPE scaling multiplies cos and sin by; scores get its square."""
    rope = _rope(c)
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if not isinstance(factor, (int, float)) or factor <= 0 or kind != "yarn":
        return 1.0
    if isinstance(rope.get("attention_factor"), (int, float)):
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return _yarn_mscale(factor, rope["mscale"]) / _yarn_mscale(factor, rope["mscale_all_dim"])
    return _yarn_mscale(factor, 1.0)


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
        return head_dim**-0.5 * _yarn_mscale(factor, all_dim) ** 2 if all_dim and factor else None
    temperature = _rope_attention_factor(c)
    return None if temperature == 1.0 or family.rotary_fraction != 1.0 else head_dim**-0.5 * temperature**2


def _position(c: Config, family: Family, attention: Fields) -> Fields:
    kind = "alibi" if c.flag("alibi") else family.position
    rope = _rope(c)
    head_dim = attention["mla"]["qk_rope_head_dim"] if attention["mla"] else attention["head_dim"]
    fraction = rope.get(
        "partial_rotary_factor", c.number("partial_rotary_factor", "rotary_pct", "rope_pct", default=-1.0)
    )
    fraction = family.rotary_fraction if fraction == -1.0 else fraction
    rotary = c.whole("rotary_dim") or (int(head_dim * fraction) if fraction != 1.0 else None)
    if rotary is not None and not 0 < rotary <= head_dim:
        raise ToolError(f"{c.name}: rotary_dim {rotary} must be within 1 and head_dim {head_dim}")
    theta = rope.get("rope_theta", c.number("rope_theta", "rotary_emb_base", default=10000.0))
    return {
        "kind": kind,
        "theta": theta,
        "rotary_dim": rotary if kind == "rope" and rotary != head_dim else None,
        "interleaved": c.flag("rope_interleave", family.interleaved) if kind == "rope" else False,
        "max_positions": c.whole(*POSITIONS, maximum=10**9) or 4096,
        "learned_offset": family.learned_offset,
    }


def _max_context(c: Config) -> int | None:
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


def _activation(c: Config, default: str) -> str:
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


def _mlp(c: Config, family: Family) -> Fields | None:
    width = _ffn_width(c, family)
    if width is None:
        return None
    activation = _activation(c, family.activation) or "relu"
    return {
        "intermediate_size": width,
        "gated": family.gated,
        "activation": activation,
        "bias": c.switch(family.mlp_bias),
    }


def _stated_gate(c: Config) -> str | None:
    scoring = str(c.raw("scoring_func", "moe_router_score_function", "score_function", "moe_router_activation_func"))
    return {"sigmoid": "sigmoid_topk", "softmax": "softmax_topk"}.get(scoring)


def _moe(c: Config, family: Family) -> Fields | None:
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
    groups = c.whole("n_group") or 1
    topk_group = c.whole("topk_group") or groups
    if experts % groups or topk_group > groups:
        raise ToolError(
            f"{c.name}: {experts} experts in n_group({groups}) groups, of which topk_group({topk_group}) are chosen"
        )
    return {
        "num_experts": experts,
        "top_k": top_k,
        "intermediate_size": width,
        "gate": _stated_gate(c) or family.gate,
        "norm_topk_prob": c.flag("norm_topk_prob", c.flag("moe_renormalize", family.norm_topk)),
        "routed_scaling_factor": c.number("routed_scaling_factor", default=1.0),
        "n_group": groups,
        "topk_group": topk_group,
        "correction_bias": c.raw("topk_method") == "noaux_tc" or c.flag("use_routing_bias", family.correction_bias),
        "gated": family.gated,
        "activation": _activation(c, family.activation) or "relu",
        "shared_intermediate_size": _shared_width(c, width),
    }


def _shared_width(c: Config, expert_width: int) -> int:
    total = c.whole(*SHARED_FFN, minimum=0)
    count = c.whole(*SHARED_COUNT, minimum=0) or 0
    return total if total is not None else count * expert_width


def _moe_layers(c: Config, layers: int) -> tuple[bool, ...] | None:
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


def _dtype(c: Config, has_experts: bool) -> Fields:
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
    (("index_topk", "index_n_heads"), "sparse attention with an indexer (DSA)"),
    (("compress_ratios", "o_groups"), "compressed sparse attention"),
    (("mamba_d_state", "mamba_num_heads", "mamba_d_ssm", "ssm_state_size", "hybrid_override_pattern", "ssm_cfg"),
     "state-space (Mamba) layers"),
    (("layers_block_type",), "layers of mixed kinds (layers_block_type)"),
    (("conv_L_cache",), "short-convolution layers"),
    (("altup_num_inputs",), "AltUp and LAuReL blocks (Gemma-3n)"),
    (("cross_attention_layers",), "cross-attention layers"),
    (("block_configs",), "blocks whose shape differs from layer to layer"),
    (("moe_latent_size", "routed_expert_hidden_size"), "experts in a latent space narrower than hidden"),
    (("zero_expert_num",), "zero-computation experts"),
    (("clip_qkv",), "clamped q, k and v (clip_qkv)"),
    (("use_mla_nope",), "MLA without RoPE"),
    (("qk_layernorm",), "LayerNorm on q and k"),
    (("hyper_connection", "hc_mult"), "hyper-connections"),
    (("attention_sink_bias", "add_swa_attention_sink_bias"), "sinks on some layers only"),
)  # fmt: skip
KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention", "global", "local"}


def _in_force(value: Any) -> bool:
    """Whether a key means something: a list of nothing but ordinary attention layers does not."""
    if isinstance(value, (list, tuple)):
        return any(item not in (1, "attention", "full_attention") for item in value)
    return bool(value)


def _unsupported(c: Config, fields: Fields) -> list[str]:
    reasons = [reason for keys, reason in FEATURES if any(_in_force(c.data.get(k)) for k in keys)]
    types = c.raw("layer_types")
    other = sorted({str(t) for t in types} - KNOWN_LAYERS) if isinstance(types, (list, tuple)) else []
    if other and not any("linear" in r for r in reasons):
        reasons.append(f"layer types {', '.join(other)}")
    stated = c.raw(*ACT)
    stated = stated.get("name") if isinstance(stated, Mapping) else stated
    if stated is not None and str(stated) not in ACTIVATIONS:
        reasons.append(f"activation {stated}")
    return reasons


# ── families ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _gpt_bigcode(c: Config, f: Fields) -> None:
    if c.flag("multi_query", True):
        f["attention"]["num_kv_heads"] = 1


def _falcon(c: Config, f: Fields) -> None:
    """7B: one norm, one KV head. 40B/180B (`new_decoder_architecture`): two norms, grouped KV."""
    new = c.flag("new_decoder_architecture", c.raw("model_type") == "RefinedWeb")
    attention = f["attention"]
    if not new:
        attention["num_kv_heads"] = 1 if c.flag("multi_query", True) else attention["num_heads"]
    parallel = new or c.flag("parallel_attn", True)
    f["block"] = "parallel" if parallel else "sequential"
    f["parallel_norms"] = (c.whole("num_ln_in_parallel_attn") or 2) if new else 1


def _qwen(c: Config, f: Fields) -> None:
    # Qwen-1 prints the width of gate and up together
    f["mlp"]["intermediate_size"] //= 2


def _qwen2_moe(c: Config, f: Fields) -> None:
    if f["moe"]:
        f["moe"]["shared_gate"] = f["moe"]["shared_intermediate_size"] > 0


def _gemma(c: Config, f: Fields) -> None:
    f["embed_scale"] = math.sqrt(f["hidden_size"])
    f["logit_softcap"] = c.raw("final_logit_softcapping")


def _gemma2(c: Config, f: Fields) -> None:
    _gemma(c, f)
    if f["sliding_layers"] is None:
        f["sliding_layers"] = tuple(i % 2 == 0 for i in range(f["num_hidden_layers"]))


def _gemma3(c: Config, f: Fields) -> None:
    _gemma(c, f)
    if f["sliding_layers"] is None:
        f["sliding_layers"] = tuple((i + 1) % 6 != 0 for i in range(f["num_hidden_layers"]))
    f["remarks"].append(
        "sliding layers rotate with their own base (10 000); one theta is kept, shapes do not depend on it"
    )


def _gpt_neox(c: Config, f: Fields) -> None:
    parallel = c.flag("use_parallel_residual", True)
    f["block"], f["parallel_norms"] = ("parallel", 2) if parallel else ("sequential", 1)


def _gpt_neo(c: Config, f: Fields) -> None:
    """Scores are not scaled; every second layer attends to a local window."""
    f["attention"]["scale"] = 1.0
    f["attention"]["sliding_window"] = c.whole("window_size") or 256
    kinds = c.raw("attention_layers") or ["global", "local"] * f["num_hidden_layers"]
    f["sliding_layers"] = tuple(k == "local" for k in kinds[: f["num_hidden_layers"]])


def _opt(c: Config, f: Fields) -> None:
    narrow = c.whole("word_embed_proj_dim")
    if narrow is not None and narrow != f["hidden_size"]:
        f["unsupported"] += (f"embedding of width {narrow} projected to hidden {f['hidden_size']}",)
    if not c.flag("do_layer_norm_before", True):
        f["unsupported"] += ("norms after each half with learned bias (do_layer_norm_before false)",)


def _mpt(c: Config, f: Fields) -> None:
    attention = c.mapping("attn_config")
    alibi = bool(attention.get("alibi", c.data.get("alibi", False)))
    f["position"]["kind"] = "alibi" if alibi else "learned" if c.flag("learned_pos_emb", True) else "none"
    f["norm_bias"] = not c.flag("no_bias", True)
    kv = attention.get("kv_n_heads")
    if isinstance(kv, int) and kv > 0:
        f["attention"]["num_kv_heads"] = kv


def _stablelm(c: Config, f: Fields) -> None:
    if c.flag("use_parallel_residual"):
        f["block"] = "parallel"


def _baichuan(c: Config, f: Fields) -> None:
    """7B rotates, 13B has ALiBi; the config says so only by its shape (40 heads of 128)."""
    if f["hidden_size"] >= 5120:
        f["position"].update(kind="alibi", rotary_dim=None, interleaved=False)


def _chatglm(c: Config, f: Fields) -> None:
    f["attention"]["qkv_bias"] = c.flag("add_qkv_bias") or c.flag("add_bias_linear")
    if not c.flag("multi_query_attention", True):
        f["attention"]["num_kv_heads"] = f["attention"]["num_heads"]
    f["norm"] = "rmsnorm" if c.flag("rmsnorm", True) else "layernorm"
    f["position"]["theta"] = 10000.0 * c.number("rope_ratio", default=1.0)


def _glm4_moe(c: Config, f: Fields) -> None:
    f["attention"]["qk_norm"] = "head" if c.flag("use_qk_norm") else "none"


def _gpt_oss(c: Config, f: Fields) -> None:
    """Sinks, alternating windows, router and expert biases, clamped SwiGLU."""
    f["attention"]["sinks"] = True
    if f["sliding_layers"] is None:
        f["sliding_layers"] = tuple(i % 2 == 0 for i in range(f["num_hidden_layers"]))
    if f["moe"]:
        f["moe"].update(router_bias=True, expert_bias=True, activation="swiglu_oai")


def _rope_by_layer(c: Config, f: Fields) -> None:
    """`no_rope_layers`: 1 where the layer rotates; else every `no_rope_layer_interval`-th does not."""
    layers = f["num_hidden_layers"]
    listed = c.sequence("no_rope_layers", layers) if c.raw("no_rope_layers") else None
    interval = c.whole("no_rope_layer_interval") or 4
    flags = listed if listed is not None else [(i + 1) % interval != 0 for i in range(layers)]
    f["position"]["rope_layers"] = tuple(bool(x) for x in flags)


def _llama4(c: Config, f: Fields) -> None:
    """Chunked attention on rotating layers, sigmoid gate on the expert's input, a shared expert of the same width."""
    _rope_by_layer(c, f)
    f["attention"]["chunk_size"] = c.whole("attention_chunk_size") or 8192
    f["attention"]["sliding_window"] = None
    if f["sliding_layers"] is None:
        f["sliding_layers"] = f["position"]["rope_layers"]
    if c.flag("use_qk_norm", True):
        f["attention"]["qk_norm"] = "head"
        f["remarks"].append("QK-norm is an L2 norm without weights, after RoPE; kept as a norm per head")
    if f["moe"]:
        width = c.whole("intermediate_size")
        f["moe"].update(
            intermediate_size=width,
            shared_intermediate_size=width,
            gate="sigmoid_topk",
            norm_topk_prob=False,
            input_scaled=True,
        )


def _minimax_m2(c: Config, f: Fields) -> None:
    if f["moe"]:
        f["moe"]["correction_bias"] = c.flag("use_routing_bias", True)
        f["moe"]["shared_intermediate_size"] = c.whole("shared_intermediate_size", minimum=0) or 0


def _cohere(c: Config, f: Fields) -> None:
    f["logit_scale"] = c.number("logit_scale", default=0.0625)
    if c.flag("use_qk_norm"):
        f["unsupported"] += ("LayerNorm on q and k with weights per head",)


def _cohere2(c: Config, f: Fields) -> None:
    """Three sliding layers that rotate, then one over everything that does not."""
    _cohere(c, f)
    if f["sliding_layers"] is None:
        f["sliding_layers"] = tuple((i + 1) % 4 != 0 for i in range(f["num_hidden_layers"]))
    f["position"]["rope_layers"] = f["sliding_layers"]


def _granite(c: Config, f: Fields) -> None:
    f["embed_scale"] = c.number("embedding_multiplier", default=1.0)
    f["logit_scale"] = 1.0 / c.number("logits_scaling", default=1.0)
    f["residual_scale"] = c.number("residual_multiplier", default=1.0)


def _minicpm(c: Config, f: Fields) -> None:
    f["embed_scale"] = c.number("scale_emb", default=1.0)
    f["residual_scale"] = c.number("scale_depth", default=1.0) / math.sqrt(f["num_hidden_layers"])
    f["logit_scale"] = c.number("dim_model_base", default=f["hidden_size"]) / f["hidden_size"]


def _olmo(c: Config, f: Fields) -> None:
    f["unsupported"] += ("LayerNorm without weights (OLMo-1)",)


def _phimoe(c: Config, f: Fields) -> None:
    f["unsupported"] += ("sparse-mixer routing (Phi-MoE)",)


def _exaone4(c: Config, f: Fields) -> None:
    if f["attention"]["sliding_window"] is not None and f["sliding_layers"] is not None:
        f["position"]["rope_layers"] = f["sliding_layers"]


def _ernie_moe(c: Config, f: Fields) -> None:
    if f["moe"]:
        f["moe"]["correction_bias"] = c.flag("moe_use_aux_free", True)


def _internlm(c: Config, f: Fields) -> None:
    f["attention"].update(qkv_bias=c.flag("bias", True), out_bias=c.flag("bias", True))


_LLAMA = Family()
_BIASED = Family(norm="layernorm", norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True, gated=False,
                 activation="gelu_tanh", ffn_multiple=4)  # fmt: skip


def _like(base: Family, **changes: Any) -> Family:
    """`base` with some answers replaced."""
    values = {name: getattr(base, name) for name in Family.__dataclass_fields__}
    return Family(**(values | changes))


_QWEN2 = _like(_LLAMA, qkv_bias=True, out_bias=False, sliding=False)
_QWEN3 = _like(_LLAMA, qk_norm="head", head_dim=128, sliding=False)
_GEMMA = _like(_LLAMA, norm_offset=1.0, activation="gelu_tanh", tie=True, head_dim=256, adapt=_gemma)
_DEEPSEEK3 = _like(_LLAMA, gate="sigmoid_topk", correction_bias=True, interleaved=True)
_GLM = _like(
    _LLAMA, qkv_bias=("attention_bias", True), out_bias=False, rotary_fraction=0.5, interleaved=True, head_dim=128
)
_GEMMA3_DEFAULTS = (
    ("vocab_size", 262208),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("query_pre_attn_scalar", 256),
    ("sliding_window", 4096),
    ("max_position_embeddings", 131072),
    ("rope_theta", 1000000.0),
)
_COHERE = _like(_LLAMA, norm="layernorm", block="parallel", interleaved=True, tie=True)
_OLMO2 = _like(_LLAMA, block="post", qk_norm="full")

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "ministral": _LLAMA,
    "ministral3": _LLAMA,
    "yi": _LLAMA,
    "Yi": _LLAMA,
    "deepseek": _like(_LLAMA, norm_topk=False),
    "arcee": _like(_LLAMA, gated=False),
    "internlm2": _like(_LLAMA, qkv_bias=False, out_bias=False),
    "internlm": _like(_LLAMA, adapt=_internlm),
    "internlm3": _like(_LLAMA, qkv_bias=("qkv_bias", False), out_bias=("bias", False)),
    "phi3": _like(_LLAMA, qkv_bias=False, out_bias=False, mlp_bias=False),
    "baichuan": _like(_LLAMA, adapt=_baichuan),
    "smollm3": _like(_LLAMA, tie=True, sliding=False, adapt=_rope_by_layer),
    "seed_oss": _like(_LLAMA, qkv_bias=("attention_bias", True), out_bias=("attention_out_bias", False), head_dim=128),
    "granite": _like(_LLAMA, adapt=_granite),
    "granitemoe": _like(_LLAMA, gate="topk_softmax", adapt=_granite),
    "granitemoeshared": _like(_LLAMA, gate="topk_softmax", adapt=_granite),
    "minicpm": _like(_LLAMA, tie=True, adapt=_minicpm),
    "minicpm3": _like(_LLAMA, tie=True, adapt=_minicpm),
    "exaone4": _like(_LLAMA, block="post", qk_norm="head", adapt=_exaone4),
    "ernie4_5": _like(
        _LLAMA,
        qkv_bias=("use_bias", False),
        out_bias=("use_bias", False),
        mlp_bias=("use_bias", False),
        interleaved=True,
        tie=True,
        head_dim=128,
    ),
    "ernie4_5_moe": _like(
        _LLAMA,
        qkv_bias=("use_bias", False),
        out_bias=("use_bias", False),
        mlp_bias=("use_bias", False),
        interleaved=True,
        tie=True,
        adapt=_ernie_moe,
    ),
    "mixtral": _like(_LLAMA, gate="topk_softmax", kv_heads=8),
    "qwen": _like(_LLAMA, qkv_bias=True, out_bias=False, mlp_bias=False, adapt=_qwen),
    "qwen2": _QWEN2,
    "qwen2_vl_text": _QWEN2,
    "qwen2_5_vl_text": _QWEN2,
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen2_moe": _like(_QWEN2, norm_topk=False, adapt=_qwen2_moe),
    "qwen3": _QWEN3,
    "qwen3_vl_text": _QWEN3,
    "qwen3_moe": _like(_QWEN3, norm_topk=False),
    "qwen3_vl_moe_text": _QWEN3,
    "qwen3_next": _like(_QWEN3, head_dim=256, adapt=_qwen2_moe),
    "qwen3_5_moe_text": _like(_QWEN3, head_dim=256, adapt=_qwen2_moe),
    "qwen3_5_text": _like(_QWEN3, head_dim=256),
    "gemma": _GEMMA,
    "gemma2": _like(_GEMMA, block="sandwich", adapt=_gemma2),
    "gemma3_text": _like(_GEMMA, block="sandwich", qk_norm="head", adapt=_gemma3, defaults=_GEMMA3_DEFAULTS),
    "gemma3": _like(_GEMMA, block="sandwich", qk_norm="head", adapt=_gemma3, defaults=_GEMMA3_DEFAULTS),
    "deepseek_v2": _like(_LLAMA, interleaved=True, norm_topk=False),
    "deepseek_v3": _DEEPSEEK3,
    "kimi_k2": _DEEPSEEK3,
    "deepseek_v32": _DEEPSEEK3,
    "glm_moe_dsa": _DEEPSEEK3,
    "glm4_moe_lite": _DEEPSEEK3,
    "dots1": _like(_LLAMA, gate="sigmoid_topk", correction_bias=True, qk_norm="head", sliding=False),
    "glm": _GLM,
    "glm4": _like(_GLM, block="sandwich"),
    "glm4_moe": _like(
        _LLAMA,
        out_bias=False,
        rotary_fraction=0.5,
        gate="sigmoid_topk",
        correction_bias=True,
        head_dim=128,
        adapt=_glm4_moe,
    ),
    "chatglm": _like(_LLAMA, qkv_bias=False, out_bias=False, rotary_fraction=0.5, interleaved=True, adapt=_chatglm),
    "gpt_oss": _like(
        _LLAMA,
        gate="topk_softmax",
        head_dim=64,
        kv_heads=8,
        qkv_bias=("attention_bias", True),
        out_bias=("attention_bias", True),
        adapt=_gpt_oss,
    ),
    "llama4": _like(_LLAMA, interleaved=True, adapt=_llama4),
    "llama4_text": _like(_LLAMA, interleaved=True, adapt=_llama4),
    "minimax_m2": _like(
        _LLAMA,
        gate="sigmoid_topk",
        qk_norm="full",
        qkv_bias=False,
        out_bias=False,
        correction_bias=True,
        adapt=_minimax_m2,
    ),
    "cohere": _like(_COHERE, adapt=_cohere),
    "cohere2": _like(_COHERE, head_dim=128, adapt=_cohere2),
    "olmo": _like(_LLAMA, norm="layernorm", adapt=_olmo),
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "olmoe": _like(_LLAMA, qk_norm="full", norm_topk=False),
    "stablelm": _like(
        _LLAMA,
        norm="layernorm",
        norm_bias=True,
        qkv_bias=("use_qkv_bias", False),
        out_bias=False,
        rotary_fraction=0.25,
        adapt=_stablelm,
    ),
    "phi": _like(_BIASED, block="parallel", rotary_fraction=0.5, lm_head_bias=True),
    "phimoe": _like(_LLAMA, norm="layernorm", norm_bias=True, adapt=_phimoe),
    "starcoder2": _like(
        _BIASED, qkv_bias=("use_bias", True), out_bias=("use_bias", True), mlp_bias=("use_bias", True), tie=True
    ),
    "gpt2": _like(_BIASED, position="learned", tie=True),
    "openai-gpt": _like(_BIASED, position="learned", tie=True),
    "gpt_bigcode": _like(_BIASED, position="learned", tie=True, adapt=_gpt_bigcode),
    "gpt_neo": _like(_BIASED, position="learned", tie=True, qkv_bias=False, adapt=_gpt_neo),
    "gptj": _like(_BIASED, block="parallel", qkv_bias=False, out_bias=False, interleaved=True, lm_head_bias=True),
    "codegen": _like(_BIASED, block="parallel", qkv_bias=False, out_bias=False, interleaved=True, lm_head_bias=True),
    "gpt_neox": _like(
        _BIASED,
        rotary_fraction=0.25,
        activation="gelu",
        qkv_bias=("attention_bias", True),
        out_bias=("attention_bias", True),
        adapt=_gpt_neox,
    ),
    "opt": _like(
        _BIASED,
        position="learned",
        learned_offset=2,
        activation="relu",
        qkv_bias=("enable_bias", True),
        out_bias=("enable_bias", True),
        mlp_bias=("enable_bias", True),
        tie=True,
        adapt=_opt,
    ),
    "bloom": _like(_BIASED, position="alibi", embedding_norm=True, tie=True),
    "falcon": _like(
        _BIASED,
        qkv_bias=("bias", False),
        out_bias=("bias", False),
        mlp_bias=("bias", False),
        activation="gelu",
        tie=True,
        adapt=_falcon,
    ),
    "mpt": _like(
        _BIASED,
        norm_bias=False,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        activation="gelu",
        tie=True,
        adapt=_mpt,
    ),
    "dbrx": _like(_LLAMA, norm="layernorm", norm_bias=False),
    "nemotron": _like(_LLAMA, norm="layernorm", norm_bias=True, norm_offset=1.0, gated=False, rotary_fraction=0.5),
}
FAMILIES["glm4v_moe_text"] = FAMILIES["glm4_moe"]
FAMILIES["glm4v_text"] = FAMILIES["glm4"]
FAMILIES["RefinedWeb"] = FAMILIES["RefinedWebModel"] = FAMILIES["falcon"]
