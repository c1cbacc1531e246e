"""Hugging Face `config.json` of a decoder-only transformer → `ModelSpec`.

One path for everybody: the catalogue's own entries and a user's file are read by the same function. A row of
`FAMILIES` holds what the architecture fixes in code rather than in the config (biases, norms, block layout, defaults);
a reader function per section takes the rest; `adapt` handles what a row cannot say. What has no operator graph is
refused by name (`hf_refused`); a `model_type` that is in neither is read as Llama-like, with low confidence.

Defaults and layouts follow the modelling code of transformers 5.23.

    model_from_config({"model_type": "llama", "hidden_size": 4096, ...}, name="my-7b") -> ModelSpec
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from knowledge.hf_further import FAMILIES
from knowledge.hf_refused import NO_DECODER, OTHER_BLOCKS
from knowledge.hf_sections import (
    activation_of,
    attention_of,
    dtype_of,
    max_context_of,
    mlp_of,
    moe_layers_of,
    moe_of,
    position_of,
    require_essentials,
    sliding_layers_of,
    stated_gate,
    unsupported_of,
)
from knowledge.hf_values import EPS, HIDDEN, LAYERS, MAX_LAYERS, TEXT_PARTS, VOCAB, Config, Family, Fields
from tools.spec.base import Refused, ToolError
from tools.spec.model import ModelSpec

__all__ = ["FAMILIES", "Family", "model_from_config"]


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
    # the outer type of a multimodal model counts too
    types = [*dict.fromkeys([str(config.get("model_type") or "") if remarks else model_type, model_type])]
    _refuse_other_kinds(c, types)
    other = next((t for t in types if t in OTHER_BLOCKS), None)
    try:
        fields = _fields(c, model_type, remarks)
    except ToolError as error:
        if other is None:
            raise
        # keys that such a model spells in its own way are not missing
        raise Refused(f"{label}: {OTHER_BLOCKS[other]}; no operator graph for these blocks yet") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # a foreign file may hold anything; what no check above foresaw is still the file's fault
        raise ToolError(f"{label}: the config holds a value of the wrong kind ({str(error)[:100]})") from error
    if other:
        fields["unsupported"] = tuple(dict.fromkeys([OTHER_BLOCKS[other], *fields["unsupported"]]))
    return _checked(label, fields)


def _fields(c: Config, model_type: str, remarks: list[str]) -> Fields:
    """Keyword arguments of `ModelSpec`."""
    family = FAMILIES.get(model_type)
    known, doubt = family is not None, None
    if family is None:
        family = _guess_family(c)
        if model_type not in OTHER_BLOCKS:
            doubt = f"model_type {model_type!r} is not known here: read as {family.norm}, Llama-like"
            remarks.append(doubt)
    c.data = {**dict(family.defaults), **{k: v for k, v in c.data.items() if v is not None}}
    _count_drawn_layers(c)
    require_essentials(c, family)
    fields = _sections(c, family)
    if family.adapt:
        family.adapt(c, fields)
    routed = fields["moe"] and (fields["moe_layers"] is None or all(fields["moe_layers"]))
    if routed and not fields["moe"].get("beside_mlp"):
        fields["mlp"] = None
    fields["unsupported"] = tuple(dict.fromkeys([*fields["unsupported"], *unsupported_of(c, fields, family)]))
    fields["sources"] = ("config.json", *remarks, *fields.pop("remarks"))
    fields["confidence"] = "high" if known else "low"
    fields["doubt"] = doubt if model_type else None
    return fields


def _count_drawn_layers(c: Config) -> None:
    """Some configs only draw the layers, one by one (Nemotron-H as transformers writes it)."""
    drawn = c.raw("layers_block_type", "hybrid_override_pattern")
    if c.raw(*LAYERS) is None and isinstance(drawn, (list, tuple, str)):
        c.data = {**c.data, "num_hidden_layers": len(drawn)}


def _sections(c: Config, family: Family) -> Fields:
    layers = c.whole(*LAYERS, maximum=MAX_LAYERS)
    assert layers is not None
    fields: Fields = {
        "name": c.name,
        "hidden_size": c.whole(*HIDDEN),
        "num_hidden_layers": layers,
        "vocab_size": c.whole(*VOCAB),
        "attention": attention_of(c, family),
        "mlp": mlp_of(c, family),
        "moe": moe_of(c, family),
        "moe_layers": moe_layers_of(c, layers),
        "sliding_layers": sliding_layers_of(c, layers),
        "norm": family.norm,
        "norm_eps": c.number(*EPS, default=1e-6 if family.norm == "rmsnorm" else 1e-5),
        "norm_bias": c.switch(family.norm_bias),
        "norm_offset": family.norm_offset,
        "embedding_norm": family.embedding_norm,
        "block": family.block,
        "parallel_norms": family.parallel_norms,
        "tie_word_embeddings": c.flag("tie_word_embeddings", family.tie),
        "lm_head_bias": family.lm_head_bias,
        "max_context": max_context_of(c),
        "architecture": _architecture(c),
        "linear": None,
        "linear_layers": None,
        "mixer_layers": None,
        "ffn_layers": None,
        "unsupported": (),
        "remarks": [],
    }
    fields["position"] = position_of(c, family, fields["attention"])
    fields.update(dtype_of(c, fields["moe"] is not None))
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
        stated = (
            {"model_type": data["model_type"]} if str(data.get("model_type")) in FAMILIES else {}
        )  # the part may not say
        data = {k: data[k] for k in outer if k in data} | stated | dict(data[part])
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
    first = _first_architecture(data.get("architectures")) or ""
    stated = str(data.get("model_type") or "")
    if first.startswith("MiniMaxM2"):  # released with the type of the hybrid MiniMax-01
        return "minimax_m2"
    return _as_spelled_here(stated) or ARCHITECTURES.get(first, "")


def _as_spelled_here(stated: str) -> str:
    """Released configs may spell a type in capitals or with hyphens ("AXK1")."""
    known = (*FAMILIES, *NO_DECODER, *OTHER_BLOCKS)
    return stated if stated in known else next((t for t in known if _plain(t) == _plain(stated)), stated)


def _plain(model_type: str) -> str:
    return model_type.lower().replace("-", "_")


def _architecture(c: Config) -> str | None:
    return _first_architecture(c.raw("architectures"))


def _first_architecture(names: Any) -> str | None:
    """Of a list of classes, or the one that is stated."""
    if isinstance(names, str):
        return names or None
    return str(names[0]) if isinstance(names, (list, tuple)) and names else None


def _refuse_other_kinds(c: Config, types: Sequence[str]) -> None:
    """`types`: of the model and, inside a multimodal one, of its text tower."""
    if c.raw("is_encoder_decoder"):
        raise Refused(f"{c.name}: model_type {types[-1]!r} has an encoder; only decoder-only models can be planned")
    for t in types:
        if t in NO_DECODER:
            raise Refused(f"{c.name}: model_type {t!r} {NO_DECODER[t]}; only decoder-only transformers can be planned")


def _guess_family(c: Config) -> Family:
    """Llama-like, with what the spelling of the keys gives away."""
    layernorm = c.raw("rms_norm_eps") is None and c.raw("layer_norm_epsilon", "layer_norm_eps") is not None
    act = activation_of(c, "silu")
    qk = bool(c.raw("use_qk_norm") or c.raw("qk_norm"))
    return Family(
        norm="layernorm" if layernorm else "rmsnorm", norm_bias=layernorm, gated=act == "silu" or not layernorm,
        activation=act, qk_norm="head" if qk else "none", tie=False, gate=stated_gate(c) or "softmax_topk",
    )  # fmt: skip
