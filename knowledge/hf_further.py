"""Further rows of `FAMILIES`: architectures of transformers that are a known one with a few answers of their own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from knowledge.hf_families import FAMILIES as FIRST
from knowledge.hf_linear import kimi_delta
from knowledge.hf_values import Config, Family, Fields


def _as(base: str, **changes: Any) -> Family:
    """The family `base` with some answers replaced."""
    return replace(FIRST[base], **changes)


def _base(name: str, c: Config, f: Fields) -> None:
    adapt = FIRST[name].adapt
    if adapt:
        adapt(c, f)


# ── which layers slide, and how they rotate ───────────────────────────────────────────────────────────────────────────


def _slide_but(c: Config, f: Fields, every: int, first: int) -> None:
    """Where no layer is listed: one in `every` attends to everything, from layer `first` on."""
    if f["sliding_layers"] is None and f["attention"]["sliding_window"] is not None:
        f["sliding_layers"] = tuple(i % every != first for i in range(f["num_hidden_layers"]))


def _turn_if_sliding(f: Fields) -> None:
    """Layers that attend to everything have no positions."""
    if f["attention"]["sliding_window"] is not None and f["sliding_layers"] is not None:
        f["position"]["rope_layers"] = f["sliding_layers"]


def _rope_by_type(c: Config, f: Fields) -> None:
    """Layers that slide rotate by parameters of their own: another base, and all of d_k or a part of it."""
    own = Config(Config(c.mapping("rope_parameters"), c.name).mapping("sliding_attention"), c.name)
    if str(own.raw("rope_type") or "default") != "default":
        f["unsupported"] += ("RoPE that is stretched in the layers that slide",)
    whole = f["attention"]["head_dim"]
    dim = int(whole * own.number("partial_rotary_factor", default=1.0))
    if own.data and dim != (f["position"]["rotary_dim"] or whole):
        f["position"]["sliding_rotary_dim"] = dim


FIRST_DENSE = ("mlp_layer_types", "first_k_dense_replace", "mlp_only_layers")
"""Spellings of which layers do not route."""

# ── families ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _cwm(c: Config, f: Fields) -> None:
    _slide_but(c, f, every=4, first=0)


def _exaone_moe(c: Config, f: Fields) -> None:
    _slide_but(c, f, every=4, first=3)
    _turn_if_sliding(f)


def _flint(c: Config, f: Fields) -> None:
    layers = f["num_hidden_layers"]
    f["attention"]["sinks"] = True
    if f["sliding_layers"] is None:
        f["sliding_layers"] = tuple(i >= 2 and i % 4 != 1 and i != layers - 1 for i in range(layers))
    if c.raw("mlp_only_layers") is None and f["moe"]:
        f["moe_layers"] = tuple(i >= 2 for i in range(layers))
    _turn_if_sliding(f)


def _granite_swa(c: Config, f: Fields) -> None:
    """Granite with windows and sinks; every layer may have a RoPE base of its own, or none: `layer_rope_theta`."""
    _base("granite", c, f)
    f["attention"]["sinks"] = True
    _slide_but(c, f, every=4, first=0)
    layers, position = f["num_hidden_layers"], f["position"]
    bases = c.sequence("layer_rope_theta", layers)
    if bases is None:
        return
    sliding = f["sliding_layers"] or (False,) * layers
    full, slid = ({float(b) for b, s in zip(bases, sliding, strict=True) if b and s is is_} for is_ in (False, True))
    if len(full) > 1 or len(slid) > 1:
        f["unsupported"] += ("layers of one type that rotate by different bases (layer_rope_theta)",)
        return
    if not all(bases):
        position["rope_layers"] = tuple(bool(b) for b in bases)
    position["theta"] = next(iter(full or slid), position["theta"])
    if full and slid != full and slid:
        position["sliding_theta"] = next(iter(slid))
        if position["scaling"]:
            f["unsupported"] += ("RoPE that is stretched from different bases (layer_rope_theta)",)


def _hy_v3(c: Config, f: Fields) -> None:
    layers = f["num_hidden_layers"]
    if f["moe"]:
        f["moe"]["routed_scaling_factor"] = c.number("router_scaling_factor", default=2.826)
        if c.raw(*FIRST_DENSE) is None:
            f["moe_layers"] = tuple(i >= 1 for i in range(layers))


def _mellum(c: Config, f: Fields) -> None:
    _rope_by_type(c, f)


def _laguna(c: Config, f: Fields) -> None:
    """A softplus gate on every head's output; layers that slide rotate by other parameters."""
    a, layers = f["attention"], f["num_hidden_layers"]
    _rope_by_type(c, f)
    heads = c.sequence("num_attention_heads_per_layer", layers)
    if heads and set(heads) != {a["num_heads"]}:
        f["unsupported"] += (f"{min(heads)} to {max(heads)} query heads, depending on the layer",)
    gating = c.raw("gating")
    per_head = gating in (None, True, "per-head")
    a.update(output_gate=gating is not False, gate_fn="softplus", gate_per_head=per_head)
    if a["qkv_bias"]:
        f["unsupported"] += ("biases of an attention whose gate has none",)
    if f["moe"]:
        f["moe"]["routed_scaling_factor"] = c.number("moe_routed_scaling_factor", default=1.0)
        if c.raw(*FIRST_DENSE) is None:
            f["moe_layers"] = tuple(i >= 1 for i in range(layers))
    if c.flag("moe_apply_router_weight_on_input"):
        f["unsupported"] += ("gate weights on the experts' inputs (moe_apply_router_weight_on_input)",)
    if c.number("moe_router_logit_softcapping", default=0.0) > 0:
        f["unsupported"] += ("a soft-cap on the router's logits",)


def _afmoe(c: Config, f: Fields) -> None:
    f["attention"]["output_gate"] = True
    _slide_but(
        c, f, every=c.whole("global_attn_every_n_layers") or 4, first=(c.whole("global_attn_every_n_layers") or 4) - 1
    )
    _turn_if_sliding(f)
    if c.flag("mup_enabled"):
        f["embed_scale"] = math.sqrt(f["hidden_size"])
    if f["moe"]:
        f["moe"]["routed_scaling_factor"] = c.number("route_scale", default=1.0)


def _axk1(c: Config, f: Fields) -> None:
    if f["moe"]:
        f["moe"]["output_norm"] = True


def _cohere2_moe(c: Config, f: Fields) -> None:
    """Command-A with experts: `intermediate_size` is an expert's, dense layers have their own; the shared experts may be
    averaged with the routed ones."""
    _base("cohere2", c, f)
    if c.raw("rms_norm_eps") is not None:
        f["norm"] = "rmsnorm"
    expert = c.whole("intermediate_size")
    if not f["moe"] or not expert:
        return
    shared = (c.whole("num_shared_experts", minimum=0) or 0) * expert
    gate = {"softmax": "topk_softmax", "sigmoid": "sigmoid_topk"}.get(str(c.raw("expert_selection_fn") or "softmax"))
    f["moe"].update(intermediate_size=expert, shared_intermediate_size=shared, gate=gate or "topk_softmax")
    if shared and str(c.raw("shared_expert_combination_strategy")) == "average":
        f["moe"]["output_scale"] = 0.5
    if f["moe_layers"] is not None:
        f["mlp"]["intermediate_size"] = c.whole("prefix_dense_intermediate_size") or expert
    if f["moe_layers"] is not None and c.whole("prefix_dense_sliding_window_pattern") == 1:
        turned = zip(f["position"]["rope_layers"], f["moe_layers"], strict=True)
        f["position"]["rope_layers"] = tuple(rope or not moe for rope, moe in turned)


def _cohere_compass(c: Config, f: Fields) -> None:
    """Command-R with RoPE stated per layer type, null where layers have no positions. Text has the same position in all three
    sections of its multimodal RoPE, which then is a plain one."""
    _base("cohere", c, f)
    f["logit_scale"] = c.number("logit_scale", default=1.0)
    types, layers = c.sequence("layer_types", f["num_hidden_layers"]), f["num_hidden_layers"]
    rope = c.mapping("rope_parameters")
    if types and any(t in rope for t in types):
        f["position"]["rope_layers"] = tuple(rope.get(t) is not None for t in types)
        full = any(t == "full_attention" and rope.get(t) is not None for t in types)
        if not full and f["position"]["sliding_theta"]:
            f["position"]["theta"] = f["position"]["sliding_theta"]
    _rope_by_type(c, f)
    if f["sliding_layers"] is None:
        f["sliding_layers"] = (False,) * layers


def _phi4_multimodal(c: Config, f: Fields) -> None:
    f["remarks"].append("text tower only: those for images and audio are not counted")


def _hyperclovax(c: Config, f: Fields) -> None:
    _base("granite", c, f)
    f["logit_scale"] = c.number("logits_scaling", default=1.0)
    f["block"] = "sandwich" if c.flag("use_post_norm", True) else "sequential"


def _kolibri(c: Config, f: Fields) -> None:
    _slide_but(c, f, every=5, first=4)
    _turn_if_sliding(f)


def _nanochat(c: Config, f: Fields) -> None:
    """Norms without weights, also of the embeddings and of queries and keys once they have turned. It turns the other way
    round, which is the same up to the order of the two halves of d_k."""
    f.update(norm_affine=False, logit_softcap=c.raw("final_logit_softcapping"))
    f["attention"].update(norm_after_rope=True)


def _bailing_hybrid(c: Config, f: Fields) -> None:
    """Ling-2.5: Kimi Delta Attention whose gates are single projections and whose decay is bounded; every so many layers latent
    attention with a gate per head."""
    kimi_delta(c, f)
    layers, group = f["num_hidden_layers"], c.whole("layer_group_size") or 6
    f["linear"].update(gate_rank=None)
    if c.flag("kda_safe_gate", True):
        f["linear"]["decay_bound"] = c.number("kda_lower_bound", default=-5.0)
    if c.raw("layer_types") is None:
        f["linear_layers"] = tuple((i + 1) % group != 0 for i in range(layers))
    f["attention"].update(output_gate=True, gate_per_head=True)
    if f["moe"] and c.raw(*FIRST_DENSE) is None:
        f["moe_layers"] = tuple(i >= 2 for i in range(layers))


def _biogpt(c: Config, f: Fields) -> None:
    if c.flag("scale_embedding", True):
        f["embed_scale"] = math.sqrt(f["hidden_size"])


def _apertus(c: Config, f: Fields) -> None:
    if f["mlp"] and c.raw("hidden_act") in (None, "xielu"):
        f["mlp"]["activation"] = "xielu"


def _persimmon(c: Config, f: Fields) -> None:
    f["attention"]["qk_norm"] = "layer" if c.flag("qk_layernorm", True) else "none"


def _bitnet(c: Config, f: Fields) -> None:
    """Norms inside attention and MLP, before what leads back to the residual stream."""
    f["attention"]["context_norm"] = True
    if f["mlp"]:
        f["mlp"]["inner_norm"] = True


LLAMA3 = ("rope_parameters", {
    "rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e6,
    "original_max_position_embeddings": 8192,
})  # fmt: skip

FURTHER: dict[str, Family] = {
    "afmoe": _as(
        "llama", block="sandwich", qk_norm="head", gate="sigmoid_topk", correction_bias=True, qkv_bias=False,
        out_bias=False, head_dim=128, adapt=_afmoe,
    ),
    "apertus": _as("llama", gated=False, qk_norm="head", adapt=_apertus, mlp_bias=False),
    "aria_text": _as("llama", gate="topk_softmax"),
    "axk1": _as("deepseek_v3", adapt=_axk1),
    "bailing_hybrid": _as("deepseek_v3", defaults=(("mla_use_nope", False),), adapt=_bailing_hybrid),
    "biogpt": _as("opt", activation="gelu", qkv_bias=True, out_bias=True, mlp_bias=True, adapt=_biogpt),
    "bitnet": _as("llama", activation="relu2", adapt=_bitnet),
    "cohere2_moe": _as("cohere2", adapt=_cohere2_moe),
    "cohere_compass_text": _as("cohere", interleaved=False, adapt=_cohere_compass),
    "cwm": _as("llama", head_dim=128, qkv_bias=False, out_bias=False, defaults=(LLAMA3,), adapt=_cwm),
    "emu3_text_model": _as("llama"),
    "exaone_moe": _as(
        "exaone4", block="sequential", gate="sigmoid_topk", correction_bias=True, adapt=_exaone_moe,
    ),
    "flex_olmo": _as("olmo2", norm_topk=False),
    "flint": _as("qwen3", gate="sigmoid_topk", sliding=True, adapt=_flint),
    "gemma4_unified": _as("gemma4", defaults=FIRST["gemma4"].defaults[:1]),
    "gpt-sw3": _as("gpt2"),
    "granite_swa": _as("granite", tie=True, adapt=_granite_swa),
    "granitemoe_swa": _as("granitemoeshared", adapt=_granite_swa),
    "helium": _as("llama", interleaved=True, head_dim=128, out_bias=False),
    "hy_v3": _as("qwen3", gate="sigmoid_topk", correction_bias=True, adapt=_hy_v3),
    "hyperclovax": _as("granite", adapt=_hyperclovax),
    "iquestcoder": _as("llama", head_dim=128),
    "jais2": _as(
        "llama", norm="layernorm", norm_bias=True, gated=False, activation="relu2", qkv_bias=("attention_bias", True),
        out_bias=("attention_bias", True), mlp_bias=("mlp_bias", True),
    ),
    "kolibri1": _as(
        "qwen3", block="sandwich", gate="topk_sigmoid", correction_bias=True, norm_topk=False, qkv_bias=False, out_bias=False,
        sliding=True, adapt=_kolibri,
    ),
    "laguna": _as("qwen3", gate="sigmoid_topk", correction_bias=True, sliding=True, adapt=_laguna),
    "mellum": _as("qwen3_moe", norm_topk=True, head_dim=128, sliding=True, adapt=_mellum),
    "nanochat": _as(
        "llama", gated=False, activation="relu2", qk_norm="plain", embedding_norm=True, adapt=_nanochat, mlp_bias=False
    ),
    "phi4_multimodal": _as("phi3", adapt=_phi4_multimodal),
    "persimmon": _as(
        "gpt_neox", block="sequential", activation="relu2", rotary_fraction=0.5, qkv_bias=True, out_bias=True,
        adapt=_persimmon, draws=frozenset({"qk_layernorm"}),
    ),
    "solar_open": _as("glm4_moe", rotary_fraction=1.0, head_dim=128, adapt=None),
    "vaultgemma": _as("gemma2", block="sequential"),
    "youtu": _as("deepseek_v3", tie=True),
}  # fmt: skip
FURTHER["gemma4_unified_text"] = FURTHER["gemma4_unified"]
FURTHER["emu3"] = FURTHER["emu3_text_model"]
FURTHER["fuyu"] = FURTHER["persimmon"]

FAMILIES: dict[str, Family] = FIRST | FURTHER
