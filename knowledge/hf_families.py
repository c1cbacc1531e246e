"""What each `model_type` fixes in its modelling code rather than in the config, one row per family."""

from __future__ import annotations

import math
from typing import Any

from knowledge.hf_heads import gemma4, mimo_v2, minimax_m3
from knowledge.hf_linear import (
    bamba,
    beside_attention,
    gated_delta,
    granite_hybrid,
    jamba,
    kimi_delta,
    short_convolutions,
    single_halves,
)
from knowledge.hf_values import Config, Family, Fields
from tools.spec.base import ToolError
from tools.spec.model import Picks


def _gpt1(c: Config, f: Fields) -> None:
    """GPT-1 calls its activation `afn`, and what is the approximate GELU elsewhere "gelu"."""
    f["mlp"]["activation"] = {"relu": "relu", "silu": "silu", "swish": "silu"}.get(str(c.raw("afn")), "gelu_tanh")


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


def _qwen_hybrid(c: Config, f: Fields) -> None:
    _qwen2_moe(c, f)
    gated_delta(c, f)


def _sparse(c: Config, f: Fields) -> None:
    """DeepSeek sparse attention. Released configs say how the indexer rotates only where it does so in pairs."""
    top_k = c.whole("index_topk")
    if top_k is None or not f["attention"]["mla"]:
        return
    f["indexer_layers"] = _indexer_layers(c, f["num_hidden_layers"])
    f["attention"]["indexer"] = {
        "num_heads": c.whole("index_n_heads") or 64,
        "head_dim": c.whole("index_head_dim") or 128,
        "top_k": top_k,
        "interleaved": c.flag("indexer_rope_interleave", c.raw("model_type") == "glm_moe_dsa"),
    }


def _indexer_layers(c: Config, layers: int) -> tuple[Picks, ...] | None:
    """Which layers have an indexer: as listed, as drawn ("FSSF"), or every so many from an offset on; None: all have."""
    listed, drawn = c.sequence("indexer_types", layers), c.raw("index_topk_pattern")
    if listed is None and drawn is not None:
        listed = Config({"index_topk_pattern": list(drawn)}, c.name).sequence("index_topk_pattern", layers)
    if listed is not None:
        own = tuple(str(k) in ("full", "F") for k in listed)
    else:
        every, offset = c.whole("index_topk_freq") or 1, c.whole("index_skip_topk_offset", minimum=0)
        own = tuple(max(i - (2 if offset is None else offset) + 1, 0) % every == 0 for i in range(layers))
    if not own[0]:
        raise ToolError(
            f"{c.name}: the first layer has no indexer, and there is none before it to share; see indexer_types"
        )
    return None if all(own) else tuple("own" if x else "shared" for x in own)


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
    """Chunked attention on rotating layers, which norm queries and keys without weights; queries of the others grow far into the
    context; sigmoid gate on the expert's input, a shared expert of the same width."""
    _rope_by_layer(c, f)
    f["attention"]["chunk_size"] = c.whole("attention_chunk_size") or 8192
    f["attention"]["sliding_window"] = None
    if f["sliding_layers"] is None:
        f["sliding_layers"] = f["position"]["rope_layers"]
    if c.flag("use_qk_norm", True):
        f["attention"].update(qk_norm="plain", norm_after_rope=True, norm_if_turned=True)
    if c.flag("attn_temperature_tuning", True):
        strength, every = c.number("attn_scale", default=0.1), c.whole("floor_scale") or 8192
        f["attention"]["temperature"] = {"strength": strength, "every": every, "shift": 1, "turned_too": False}
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
        f["attention"]["qk_norm"] = "heads"


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


def _granite_hybrid(c: Config, f: Fields) -> None:
    _granite(c, f)
    granite_hybrid(c, f)


def _minicpm(c: Config, f: Fields) -> None:
    f["embed_scale"] = c.number("scale_emb", default=1.0)
    f["residual_scale"] = c.number("scale_depth", default=1.0) / math.sqrt(f["num_hidden_layers"])
    f["logit_scale"] = c.number("dim_model_base", default=f["hidden_size"]) / f["hidden_size"]


def _olmo(c: Config, f: Fields) -> None:
    f["norm_affine"] = False


def _phimoe(c: Config, f: Fields) -> None:
    if f["moe"]:
        f["lm_head_bias"] = c.flag("lm_head_bias")
        f["moe"].update(gate="sparsemixer", jitter=c.number("router_jitter_noise", default=0.01))


def _grok(c: Config, f: Fields) -> None:
    """Grok-1 (github.com/xai-org/grok-1, run.py): embeddings and logits are scaled."""
    f["embed_scale"] = c.number("embedding_multiplier_scale", default=78.38367176906169)
    f["logit_scale"] = c.number("output_multiplier_scale", default=0.5773502691896257)


def _exaone4(c: Config, f: Fields) -> None:
    if f["attention"]["sliding_window"] is not None and f["sliding_layers"] is not None:
        f["position"]["rope_layers"] = f["sliding_layers"]


def _ernie_moe(c: Config, f: Fields) -> None:
    if f["moe"]:
        f["moe"]["correction_bias"] = c.flag("moe_use_aux_free", True)


def _hunyuan(c: Config, f: Fields) -> None:
    """Norms after RoPE, an MLP beside the experts as wide as one of them. Released configs list per-layer values that are
    all the same. `alpha` of their dynamic RoPE is a larger base."""
    f["attention"].update(qk_norm="head" if c.flag("use_qk_norm", True) else "none", norm_after_rope=True)
    if c.raw("model_type") == "hunyuan_v1_moe" and not f["moe"]:
        f["unsupported"] += ("a router that has one expert to choose from",)
    if f["moe"]:
        f["moe"]["shared_intermediate_size"] = f["mlp"]["intermediate_size"]


def _internlm(c: Config, f: Fields) -> None:
    f["attention"].update(qkv_bias=c.flag("bias", True), out_bias=c.flag("bias", True))


def _internlm3(c: Config, f: Fields) -> None:
    """Released configs say `qkv_bias` and `bias`, transformers' own `attention_bias` and `mlp_bias`."""
    f["attention"].update(
        qkv_bias=c.flag("qkv_bias", c.flag("attention_bias")), out_bias=c.flag("bias", c.flag("attention_bias"))
    )
    f["mlp"]["bias"] = c.flag("bias", c.flag("mlp_bias"))


def _ministral3(c: Config, f: Fields) -> None:
    """Queries grow with the logarithm of how often the trained length has gone by."""
    rope = Config({**c.mapping("rope_scaling"), **c.mapping("rope_parameters")}, c.name)
    strength, every = rope.number("llama_4_scaling_beta", default=0.0), rope.whole("original_max_position_embeddings")
    if strength and every:
        f["attention"]["temperature"] = {"strength": strength, "every": every}


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

_QWEN_HYBRID = _like(_QWEN3, head_dim=256, norm_offset=1.0, rotary_fraction=0.25, adapt=_qwen_hybrid)

_LFM2 = _like(
    _LLAMA, qk_norm="head", tie=True, kv_heads=8, gate="sigmoid_topk", adapt=short_convolutions,
    draws=frozenset({"conv_L_cache"}), defaults=(("rope_theta", 1000000.0),),
)  # fmt: skip
_MINIMAX_M3 = _like(
    _LLAMA, gate="sigmoid_topk", qk_norm="head", norm_offset=1.0, correction_bias=True, qkv_bias=False, out_bias=False,
    rotary_fraction=0.5, head_dim=128, kv_heads=4, adapt=minimax_m3,
    draws=frozenset({"sparse_attention_config", "index_topk"}),
    defaults=(("routed_scaling_factor", 2.0), ("shared_intermediate_size", 3072), ("hidden_act", "silu")),
)  # fmt: skip
_SPARSE = _like(_DEEPSEEK3, adapt=_sparse, draws=frozenset({"index_topk_freq"}))
_GEMMA4_DEFAULTS = (
    ("rope_parameters", {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }),
    ("hidden_size_per_layer_input", 256),
)  # fmt: skip
_GEMMA4 = _like(
    _LLAMA, block="sandwich", qk_norm="head", activation="gelu_tanh", tie=True, head_dim=256, adapt=gemma4,
    defaults=_GEMMA4_DEFAULTS, draws=frozenset(
        {"global_head_dim", "attention_k_eq_v", "enable_moe_block", "num_kv_shared_layers", "hidden_size_per_layer_input"}
    ),
)  # fmt: skip
_MIMO_V2 = _like(
    _LLAMA, gate="sigmoid_topk", correction_bias=True, out_bias=False, rotary_fraction=0.334, head_dim=192, adapt=mimo_v2,
    draws=frozenset({"attention_sink_bias", "global_head_dim"}),
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "ministral": _LLAMA,
    "ministral3": _like(_LLAMA, adapt=_ministral3),
    "yi": _LLAMA,
    "Yi": _LLAMA,
    "deepseek": _like(_LLAMA, norm_topk=False),
    "arcee": _like(_LLAMA, gated=False),
    "internlm2": _like(_LLAMA, qkv_bias=False, out_bias=False),
    "internlm": _like(_LLAMA, adapt=_internlm),
    "internlm3": _like(_LLAMA, adapt=_internlm3),
    "phi3": _like(_LLAMA, qkv_bias=False, out_bias=False, mlp_bias=False),
    "baichuan": _like(_LLAMA, adapt=_baichuan),
    "smollm3": _like(_LLAMA, tie=True, sliding=False, adapt=_rope_by_layer),
    "seed_oss": _like(_LLAMA, qkv_bias=("attention_bias", True), out_bias=("attention_out_bias", False), head_dim=128),
    "granite": _like(_LLAMA, adapt=_granite),
    "granitemoe": _like(_LLAMA, gate="topk_softmax", adapt=_granite),
    "granitemoeshared": _like(_LLAMA, gate="topk_softmax", adapt=_granite),
    "bamba": _like(_LLAMA, kv_heads=8, rotary_fraction=0.5, adapt=bamba, draws=frozenset({"attn_layer_indices"})),
    "falcon_h1": _like(_LLAMA, adapt=beside_attention),
    "granitemoehybrid": _like(_LLAMA, gate="topk_softmax", adapt=_granite_hybrid),
    "nemotron_h": _like(
        _LLAMA,
        position="none",
        gated=False,
        activation="relu2",
        gate="sigmoid_topk",
        correction_bias=True,
        head_dim=128,
        kv_heads=8,
        adapt=single_halves,
    ),
    "jamba": _like(
        _LLAMA,
        position="none",
        qkv_bias=False,
        out_bias=False,
        kv_heads=8,
        norm_topk=False,
        adapt=jamba,
        draws=frozenset({"mamba_d_state", "layers_block_type"}),
    ),
    "lfm2": _LFM2,
    "lfm2_moe": _LFM2,
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
    "qwen3_moe": _like(_QWEN3, norm_topk=False, head_dim=None),
    "qwen3_vl_moe_text": _QWEN3,
    "qwen3_next": _QWEN_HYBRID,
    "qwen3_5_moe_text": _QWEN_HYBRID,
    "qwen3_5_text": _QWEN_HYBRID,
    "kimi_linear": _like(_DEEPSEEK3, adapt=kimi_delta),
    "gemma": _GEMMA,
    "gemma2": _like(_GEMMA, block="sandwich", adapt=_gemma2),
    "gemma3_text": _like(_GEMMA, block="sandwich", qk_norm="head", adapt=_gemma3, defaults=_GEMMA3_DEFAULTS),
    "gemma3": _like(_GEMMA, block="sandwich", qk_norm="head", adapt=_gemma3, defaults=_GEMMA3_DEFAULTS),
    "gemma4_text": _GEMMA4,
    "gemma4": _GEMMA4,
    "mimo_v2_flash": _MIMO_V2,
    "mimo_v2": _MIMO_V2,
    "deepseek_v2": _like(_LLAMA, interleaved=True, norm_topk=False),
    "deepseek_v3": _DEEPSEEK3,
    "kimi_k2": _DEEPSEEK3,
    "deepseek_v32": _SPARSE,
    "glm_moe_dsa": _SPARSE,
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
    "minimax_m3": _MINIMAX_M3,
    "minimax_m3_vl": _MINIMAX_M3,
    "minimax_m3_vl_text": _MINIMAX_M3,
    "cohere": _like(_COHERE, adapt=_cohere),
    "cohere2": _like(_COHERE, head_dim=128, adapt=_cohere2),
    "olmo": _like(_LLAMA, norm="layernorm", adapt=_olmo),
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "hunyuan_v1_dense": _like(_LLAMA, head_dim=128, adapt=_hunyuan),
    "hunyuan_v1_moe": _like(_LLAMA, adapt=_hunyuan),
    "hunyuan": _like(_LLAMA, adapt=_hunyuan),
    "mimo": _QWEN2,
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
    "openai-gpt": _like(_BIASED, position="learned", tie=True, block="summed", adapt=_gpt1),
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
    "grok": _like(_LLAMA, block="sandwich", activation="gelu", tie=True, norm_topk=False, adapt=_grok),
    "dbrx": _like(_LLAMA, norm="layernorm", norm_bias=False),
    "nemotron": _like(_LLAMA, norm="layernorm", norm_bias=True, norm_offset=1.0, gated=False, rotary_fraction=0.5),
}
FAMILIES["qwen3_5"] = FAMILIES["qwen3_5_moe"] = _QWEN_HYBRID
FAMILIES["qwen3_vl"], FAMILIES["qwen3_vl_moe"] = FAMILIES["qwen3_vl_text"], FAMILIES["qwen3_vl_moe_text"]
FAMILIES["glm4v_moe_text"] = FAMILIES["glm4_moe"]
FAMILIES["glm4v_text"] = FAMILIES["glm4"]
FAMILIES["RefinedWeb"] = FAMILIES["RefinedWebModel"] = FAMILIES["falcon"]
