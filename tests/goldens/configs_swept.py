"""Tiny configs of further architectures of transformers, so that each of its causal language models is equal or refused."""

from __future__ import annotations

from typing import Any

from tests.goldens.configs import BASE, DEEPSEEK, GPT, HYBRID, MHA, MOE, PLAIN_ROPE, SLIDE, TYPES

FULL_FIRST = ["full_attention", "sliding_attention", "sliding_attention"]
SPARSE = ["dense", "sparse", "sparse"]
GRANITE = {
    "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.0, "attention_multiplier": 0.2,
}  # fmt: skip
MLA = {
    k: v for k, v in DEEPSEEK.items() if k not in MOE and "group" not in k and "expert" not in k and "first_k" not in k
}
LAYERNORM = {k: v for k, v in BASE.items() if k != "rms_norm_eps"} | {"layer_norm_eps": 1e-5}
PER_TYPE_ROPE = {
    "full_attention": {**PLAIN_ROPE, "rope_theta": 5e4},
    "sliding_attention": PLAIN_ROPE,
}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip

SWEPT: dict[str, dict[str, Any]] = {
    "cwm": {**BASE, **SLIDE, "model_type": "cwm", "layer_types": FULL_FIRST, "rope_parameters": LLAMA3_ROPE},
    "exaone_moe": {
        **BASE, **MOE, **SLIDE, "model_type": "exaone_moe", "layer_types": TYPES, "mlp_layer_types": SPARSE, "num_experts": 8,
        "num_shared_experts": 2, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.5,
    },
    "flint": {
        **BASE, **MOE, **SLIDE, "model_type": "flint", "layer_types": TYPES, "num_experts": 6, "mlp_only_layers": [0],
        "shared_expert_intermediate_size": 28,
    },
    "gpt-sw3": {**GPT, "model_type": "gpt-sw3", "n_inner": 40, "activation_function": "gelu_new"},
    "granite_swa": {
        **BASE, **SLIDE, **GRANITE, "model_type": "granite_swa", "layer_types": FULL_FIRST, "layer_rope_theta": [0, 5e3, 5e3],
    },
    "granitemoe_swa": {
        **BASE, **SLIDE, **GRANITE, "model_type": "granitemoe_swa", "layer_types": FULL_FIRST,
        "layer_rope_theta": [5e4, 1e4, 1e4], "num_local_experts": 6, "num_experts_per_tok": 2, "shared_intermediate_size": 28,
    },
    "helium": {**BASE, "model_type": "helium", "head_dim": 6},
    "hy_v3": {
        **BASE, **MOE, "model_type": "hy_v3", "mlp_layer_types": SPARSE, "num_experts": 6, "num_shared_experts": 2,
        "router_scaling_factor": 1.7,
    },
    "iquestcoder": {**BASE, "model_type": "iquestcoder"},
    "jais2": {**LAYERNORM, "model_type": "jais2"},
    "mellum": {
        **BASE, **MOE, **SLIDE, "model_type": "mellum", "layer_types": FULL_FIRST, "mlp_layer_types": SPARSE, "num_experts": 6,
        "rope_parameters": PER_TYPE_ROPE,
    },
    "solar_open": {
        **{k: v for k, v in BASE.items() if k != "intermediate_size"}, **MOE, "model_type": "solar_open", "n_routed_experts": 6,
        "n_shared_experts": 1, "n_group": 3, "topk_group": 2, "routed_scaling_factor": 1.5,
    },
    "youtu": {**MLA, "model_type": "youtu"},
    "vaultgemma": {
        **BASE, **SLIDE, "model_type": "vaultgemma", "layer_types": TYPES, "query_pre_attn_scalar": 12,
        "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0,
    },
    "aria_text": {
        **BASE, "model_type": "aria_text", "moe_num_experts": 6, "moe_topk": 2, "moe_num_shared_experts": 2,
        "intermediate_size": 20,
    },
    "axk1": {
        **{k: v for k, v in DEEPSEEK.items() if k != "first_k_dense_replace"}, "model_type": "axk1", "mlp_layer_types": SPARSE,
    },
    "afmoe": {
        **BASE, **MOE, **SLIDE, "model_type": "afmoe", "layer_types": TYPES, "num_experts": 6, "num_dense_layers": 1,
        "num_shared_experts": 2, "route_scale": 1.6, "mup_enabled": True,
    },
    "cohere2_moe": {
        **LAYERNORM, **SLIDE, "model_type": "cohere2_moe", "layer_types": TYPES, "mlp_layer_types": SPARSE, "num_experts": 6,
        "num_experts_per_tok": 2, "num_shared_experts": 2, "shared_expert_combination_strategy": "average",
        "prefix_dense_intermediate_size": 44, "logit_scale": 0.25, "norm_topk_prob": True, "expert_selection_fn": "sigmoid",
    },
    "flex_olmo": {**BASE, "model_type": "flex_olmo", "num_experts": 6, "num_experts_per_tok": 2, "pad_token_id": 0},
    "hyperclovax": {**BASE, **GRANITE, "model_type": "hyperclovax"},
    "kolibri1": {
        **{k: v for k, v in BASE.items() if k != "intermediate_size"}, **MOE, **SLIDE, "model_type": "kolibri1",
        "layer_types": TYPES, "num_experts": 6, "shared_expert_intermediate_size": 28, "norm_topk_prob": True,
    },
    "nanochat": {
        **{k: v for k, v in BASE.items() if k != "head_dim"}, "model_type": "nanochat", "final_logit_softcapping": 3.0,
    },
    "biogpt": {
        **{k: v for k, v in MHA.items() if k not in ("rms_norm_eps", "rope_theta")}, "model_type": "biogpt", "pad_token_id": 1,
    },
    "apertus": {**BASE, "model_type": "apertus", "rope_parameters": LLAMA3_ROPE},
    "persimmon": {
        **{k: v for k, v in LAYERNORM.items() if k not in ("head_dim", "num_key_value_heads")}, "model_type": "persimmon",
        "rope_parameters": {**PLAIN_ROPE, "partial_rotary_factor": 0.67}, "pad_token_id": 0,
    },
    "bailing_hybrid": {
        **{k: v for k, v in DEEPSEEK.items() if k not in ("q_lora_rank", "n_routed_experts", "first_k_dense_replace")},
        "model_type": "bailing_hybrid", "num_local_experts": 8, "layer_types": HYBRID, "mlp_layer_types": SPARSE, "head_dim": 6,
        "short_conv_kernel_size": 3, "kda_lower_bound": -1.5, "pad_token_id": 0,
    },
    "bitnet": {**{k: v for k, v in BASE.items() if k != "head_dim"}, "model_type": "bitnet", "hidden_act": "relu2"},
    "laguna": {
        **BASE, **MOE, **SLIDE, "model_type": "laguna", "layer_types": FULL_FIRST, "mlp_layer_types": SPARSE, "num_experts": 6,
        "shared_expert_intermediate_size": 28, "moe_routed_scaling_factor": 1.5, "gating": "per-head",
        "rope_parameters": {
            "full_attention": {**PLAIN_ROPE, "rope_theta": 5e4, "partial_rotary_factor": 0.5}, "sliding_attention": PLAIN_ROPE,
        },
    },
    "arcee": {**BASE, "model_type": "arcee"},
    "codegen": {
        **GPT, "model_type": "codegen", "n_ctx": 64, "rotary_dim": 4, "activation_function": "gelu_new",
        "tie_word_embeddings": False,
    },
    "dots1": {
        **BASE, **MOE, "model_type": "dots1", "n_routed_experts": 6, "n_shared_experts": 1, "n_group": 3, "topk_group": 2,
        "first_k_dense_replace": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
    },
    "exaone4": {**BASE, **SLIDE, "model_type": "exaone4", "layer_types": TYPES},
    "glm": {**BASE, "model_type": "glm", "attention_bias": True, "pad_token_id": 0},
    "internlm3": {**BASE, "model_type": "internlm3", "qkv_bias": True, "bias": True},
    "ministral": {**BASE, **SLIDE, "model_type": "ministral", "layer_types": TYPES},
    "ministral3": {
        **BASE, "model_type": "ministral3", "rope_parameters": {
            **LLAMA3_ROPE, "rope_type": "yarn", "llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 4,
        },
    },
    "olmo3": {**BASE, **SLIDE, "model_type": "olmo3", "layer_types": TYPES, "pad_token_id": 0},
    "smollm3": {**BASE, "model_type": "smollm3", "no_rope_layers": [1, 0, 1], "pad_token_id": 0},
    "granitemoe": {**BASE, **GRANITE, "model_type": "granitemoe", "num_local_experts": 6, "num_experts_per_tok": 2},
    "granitemoeshared": {
        **BASE, **GRANITE, "model_type": "granitemoeshared", "num_local_experts": 6, "num_experts_per_tok": 2,
        "shared_intermediate_size": 28,
    },
    "minicpm3": {**MLA, "model_type": "minicpm3", "scale_emb": 3, "scale_depth": 1.4, "dim_model_base": 12},
    "qwen3_5_moe": {
        **BASE, **MOE, "model_type": "qwen3_5_moe_text", "num_experts": 6, "shared_expert_intermediate_size": 28,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 5, "linear_value_head_dim": 7, "linear_conv_kernel_dim": 4,
        "rope_parameters": {**PLAIN_ROPE, "partial_rotary_factor": 0.5},
    },
    "glm4_moe_lite": {
        **{k: v for k, v in DEEPSEEK.items() if k != "first_k_dense_replace"}, "model_type": "glm4_moe_lite",
        "mlp_layer_types": SPARSE,
    },
    "ernie4_5": {**BASE, "model_type": "ernie4_5", "use_bias": True},
    "dbrx": {
        "model_type": "dbrx", "d_model": 24, "n_heads": 4, "n_layers": 3, "vocab_size": 67, "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 20, "moe_num_experts": 6, "moe_top_k": 2},
    },
    "emu3": {
        "model_type": "emu3", "text_config": {**BASE, "model_type": "emu3_text_model", "pad_token_id": 0},
    },
    "openai-gpt": {**GPT, "model_type": "openai-gpt"},
    "cohere_compass": {
        **LAYERNORM, **SLIDE, "model_type": "cohere_compass_text", "layer_types": TYPES, "logit_scale": 0.25,
        "rope_parameters": {
            "sliding_attention": {**PLAIN_ROPE, "rope_theta": 5e3, "mrope_section": [2, 1, 1]}, "full_attention": None,
        },
    },
    "phi4_multimodal": {
        **{k: v for k, v in BASE.items() if k != "head_dim"}, "model_type": "phi4_multimodal", "pad_token_id": 0,
        "vision_config": {
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
            "crop_size": 28, "image_token_id": 66,
        },
        "audio_config": {
            "hidden_size": 8, "intermediate_size": 8, "num_blocks": 1, "num_attention_heads": 2, "ext_pw_out_channel": 8,
            "depthwise_separable_out_channel": 8, "nemo_conv_channels": 8, "audio_token_id": 65,
        },
    },
    "llama4_qk_norm": {
        **BASE, "model_type": "llama4_text", "num_local_experts": 6, "num_experts_per_tok": 1, "intermediate_size": 20,
        "intermediate_size_mlp": 40, "interleave_moe_layer_step": 2, "attention_chunk_size": 4, "no_rope_layers": [1, 0, 1],
        "use_qk_norm": True, "attn_temperature_tuning": True, "floor_scale": 3, "attn_scale": 0.3,
    },
    "gemma4_unified": {
        **BASE, **SLIDE, "model_type": "gemma4_unified_text", "head_dim": 6, "global_head_dim": 16,
        "num_global_key_value_heads": 1, "attention_k_eq_v": True,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "final_logit_softcapping": 20.0,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 5e4},
            "sliding_attention": PLAIN_ROPE,
        },
    },
}  # fmt: skip
