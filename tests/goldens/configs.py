"""Tiny configs, one per architecture: every dim small and as distinct as the architecture allows."""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 40, "vocab_size": 67, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}  # fmt: skip
GPT = {"n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 67}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 20}
DEEPSEEK = {
    **BASE, **MOE, "num_key_value_heads": 4, "q_lora_rank": 18, "kv_lora_rank": 12, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
}  # fmt: skip
DEEPSEEK.pop("head_dim")
# The latents' norms have a fixed epsilon of 1e-6 in the modelling code; released configs state the same for the rest.
DEEPSEEK["rms_norm_eps"] = 1e-6
MHA = {k: v for k, v in BASE.items() if k not in ("head_dim", "num_key_value_heads")}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SLIDE = {"sliding_window": 4}
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]

TYPES_LAST_FULL = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
PROPORTIONAL = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 5e4},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
# The prompt fits the original context of the two that depend on the length; decoding leaves it.
SHORT = 8

HYBRID = ["linear_attention", "full_attention", "linear_attention"]
CONFIGS: dict[str, dict[str, Any]] = {
    "nemotron": {**BASE, "model_type": "nemotron", "hidden_act": "relu2", "partial_rotary_factor": 0.5, "norm_eps": 1e-5},
    "olmo": {**BASE, "model_type": "olmo", "clip_qkv": 0.8},
    "cohere_qk_norm": {**BASE, "model_type": "cohere", "use_qk_norm": True, "logit_scale": 0.5},
    "phimoe": {
        **BASE, "model_type": "phimoe", "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": None,
        "attention_bias": True, "lm_head_bias": True, "router_jitter_noise": 0.2,
    },
    "deepseek_v32": {
        **DEEPSEEK, "model_type": "deepseek_v32", "index_topk": 4, "index_n_heads": 9, "index_head_dim": 6,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    },
    "glm_moe_dsa": {
        **DEEPSEEK, "model_type": "glm_moe_dsa", "index_topk": 5, "index_n_heads": 9, "index_head_dim": 6,
        "indexer_types": ["full"] * 3, "mlp_layer_types": ["dense", "sparse", "sparse"],
    },
    "minimax_m3": {
        **BASE, "model_type": "minimax_m3_vl_text", "num_hidden_layers": 4, "num_attention_heads": 6, "head_dim": 8,
        "rotary_dim": 4, "intermediate_size": 20, "dense_intermediate_size": 40, "shared_intermediate_size": 28,
        "num_local_experts": 6, "num_experts_per_tok": 2, "routed_scaling_factor": 1.5, "index_n_heads": 2,
        "index_head_dim": 10, "index_block_size": 2, "index_topk_blocks": 2, "index_local_blocks": 1,
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "rope_parameters": {**PLAIN_ROPE, "partial_rotary_factor": 0.5},
    },
    "glm_moe_dsa_shared": {
        **DEEPSEEK, "model_type": "glm_moe_dsa", "num_hidden_layers": 4, "index_topk": 3, "index_n_heads": 9,
        "index_head_dim": 6, "indexer_types": ["full", "shared", "full", "shared"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "dense"],
    },
    "qwen3_next": {
        **BASE, **MOE, "model_type": "qwen3_next", "num_experts": 6, "shared_expert_intermediate_size": 28,
        "layer_types": HYBRID, "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 5,
        "linear_value_head_dim": 7, "linear_conv_kernel_dim": 3, "partial_rotary_factor": 0.5, "norm_topk_prob": True,
        "rope_parameters": {**PLAIN_ROPE, "partial_rotary_factor": 0.5},
    },
    "qwen3_5": {
        **BASE, "model_type": "qwen3_5_text", "layer_types": HYBRID, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 5, "linear_value_head_dim": 7, "linear_conv_kernel_dim": 4,
        "rope_parameters": {**PLAIN_ROPE, "partial_rotary_factor": 0.5},
    },
    "kimi_linear": {
        **{k: v for k, v in DEEPSEEK.items() if k not in ("q_lora_rank", "n_routed_experts")},
        "model_type": "kimi_linear",
        "q_lora_rank": None, "num_local_experts": 8, "layer_types": HYBRID, "linear_num_heads": 3, "linear_head_dim": 6,
        "linear_conv_kernel_dim": 4, "mlp_layer_types": ["dense", "sparse", "sparse"],
        "pad_token_id": None,
    },
    "nemotron_h": {
        **{k: v for k, v in BASE.items() if k not in ("num_hidden_layers", "rms_norm_eps")}, **MOE,
        "model_type": "nemotron_h", "hybrid_override_pattern": "M-*EM", "mamba_num_heads": 6, "mamba_head_dim": 5,
        "n_groups": 2, "ssm_state_size": 7, "conv_kernel": 3, "n_routed_experts": 6, "chunk_size": 4,
        "moe_shared_expert_intermediate_size": 28, "routed_scaling_factor": 2.5, "layer_norm_epsilon": 1e-5,
    },
    "bamba": {
        **{k: v for k, v in BASE.items() if k != "head_dim"}, "model_type": "bamba", "num_attention_heads": 6,
        "attn_layer_indices": [1],
        "mamba_n_heads": 6, "mamba_d_state": 5, "mamba_n_groups": 3, "mamba_d_conv": 3, "mamba_chunk_size": 4,
    },
    "falcon_h1": {
        **BASE, "model_type": "falcon_h1", "mamba_n_heads": 6, "mamba_d_head": 4, "mamba_d_ssm": 24, "mamba_n_groups": 2,
        "mamba_d_state": 5, "mamba_d_conv": 3, "mamba_rms_norm": True, "mamba_norm_before_gate": False,
        "mamba_chunk_size": 4, "embedding_multiplier": 3.0, "lm_head_multiplier": 0.5, "key_multiplier": 0.4,
        "attention_in_multiplier": 1.5, "attention_out_multiplier": 0.9, "ssm_in_multiplier": 1.25,
        "ssm_out_multiplier": 0.7, "mlp_multipliers": [0.9, 0.6], "ssm_multipliers": [0.35, 0.25, 1.3, 0.5, 1.2],
    },
    "jamba": {
        **{k: v for k, v in BASE.items() if k != "head_dim"}, "model_type": "jamba", "num_hidden_layers": 4,
        "attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 6,
        "num_experts_per_tok": 2, "mamba_d_state": 5, "mamba_d_conv": 3, "mamba_expand": 2, "mamba_dt_rank": 7,
    },
    "lfm2": {
        **{k: v for k, v in BASE.items() if k not in ("head_dim", "rms_norm_eps")}, "model_type": "lfm2", "norm_eps": 1e-5,
        "layer_types": ["conv", "full_attention", "conv"], "conv_bias": True, "block_multiple_of": 8, "intermediate_size": 57,
    },
    "lfm2_moe": {
        **{k: v for k, v in BASE.items() if k not in ("head_dim", "rms_norm_eps")}, **MOE, "model_type": "lfm2_moe",
        "norm_eps": 1e-5, "layer_types": ["conv", "full_attention", "conv"], "num_experts": 6, "num_dense_layers": 1,
        "routed_scaling_factor": 1.5, "conv_L_cache": 4,
    },
    "hunyuan_v1_moe": {
        **BASE, "model_type": "hunyuan_v1_moe", "num_experts": 6, "moe_topk": 2, "pad_token_id": 0,
    },
    "hunyuan_v1_dense": {**BASE, "model_type": "hunyuan_v1_dense", "pad_token_id": 0},
    "nemotron_h_latent": {
        **{k: v for k, v in BASE.items() if k not in ("num_hidden_layers", "rms_norm_eps")}, **MOE,
        "model_type": "nemotron_h", "layers_block_type": ["mamba", "moe", "attention", "moe"], "mamba_num_heads": 4,
        "mamba_head_dim": 5, "n_groups": 1, "ssm_state_size": 7, "conv_kernel": 4, "n_routed_experts": 8,
        "num_experts_per_tok": 3, "moe_shared_expert_intermediate_size": 28, "moe_latent_size": 14, "chunk_size": 4,
        "n_group": 4, "topk_group": 2, "layer_norm_epsilon": 1e-5,
    },
    "granitemoehybrid": {
        **BASE, "model_type": "granitemoehybrid", "layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 6,
        "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 7, "mamba_d_conv": 3, "num_local_experts": 6,
        "num_experts_per_tok": 2, "shared_intermediate_size": 28, "mamba_chunk_size": 4, "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4, "logits_scaling": 2.0, "attention_multiplier": 0.2,
    },
    "granitemoehybrid_dense": {
        **BASE, "model_type": "granitemoehybrid", "layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 6,
        "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 7, "mamba_d_conv": 4, "num_local_experts": 0,
        "shared_intermediate_size": 28, "mamba_chunk_size": 4, "position_embedding_type": "rope", "mamba_conv_bias": False,
    },
    "llama": {**BASE, "model_type": "llama"},
    "rope_linear": {**BASE, "model_type": "llama", "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "rope_dynamic": {
        **BASE, "model_type": "llama", "max_position_embeddings": SHORT,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    },
    "rope_llama3": {
        **BASE, "model_type": "llama", "head_dim": 16, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "rope_llama3_step": {
        **BASE, "model_type": "llama", "head_dim": 16, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
        },
    },
    "rope_yarn": {**BASE, "model_type": "qwen3", "head_dim": 16, "rope_parameters": YARN},
    "rope_yarn_mscale": {
        **DEEPSEEK, "model_type": "deepseek_v3", "qk_rope_head_dim": 8,
        "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 8},
    },
    "rope_yarn_sinks": {
        **BASE, **SLIDE, "model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16,
        "layer_types": TYPES, "rope_parameters": {**YARN, "truncate": False},
    },
    "rope_longrope_partial": {
        **BASE, "model_type": "phi3", "head_dim": 8, "num_attention_heads": 3, "num_key_value_heads": 1,
        "original_max_position_embeddings": SHORT, "pad_token_id": 0, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 3.0, 9.0], "original_max_position_embeddings": SHORT,
        },
    },
    "rope_two_bases": {
        **BASE, **SLIDE, "model_type": "gemma3_text", "query_pre_attn_scalar": 12, "layer_types": TYPES,
        "hidden_activation": "gelu_pytorch_tanh", "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}, "sliding_attention": PLAIN_ROPE,
        },
    },
    "llama_tied_biased": {
        **BASE, "model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True,
    },
    "qwen2": {**BASE, "model_type": "qwen2"},
    "qwen3_narrow_heads": {**BASE, "model_type": "qwen3", "head_dim": 6, "num_key_value_heads": 1},
    "qwen3": {**BASE, "model_type": "qwen3"},
    "mistral_sliding": {**BASE, **SLIDE, "model_type": "mistral"},
    "gemma": {**BASE, "model_type": "gemma", "hidden_activation": "gelu_pytorch_tanh"},
    "gemma2": {
        **BASE, **SLIDE, "model_type": "gemma2", "query_pre_attn_scalar": 12, "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0, "layer_types": TYPES, "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma3": {
        **BASE, **SLIDE, "model_type": "gemma3_text", "query_pre_attn_scalar": 12, "layer_types": TYPES,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {"full_attention": PLAIN_ROPE, "sliding_attention": PLAIN_ROPE},
    },
    "gemma4": {
        **BASE, **SLIDE, "num_hidden_layers": 4, "model_type": "gemma4_text", "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 6,
        "global_head_dim": 16, "num_global_key_value_heads": 2, "attention_k_eq_v": True, "layer_types": TYPES_LAST_FULL,
        "hidden_size_per_layer_input": 0, "final_logit_softcapping": 20.0, "rope_parameters": PROPORTIONAL,
    },
    "gemma4_borrowing": {
        **BASE, **SLIDE, "num_hidden_layers": 6, "model_type": "gemma4_text", "head_dim": 8, "global_head_dim": 12,
        "layer_types": ["sliding_attention", "full_attention"] * 3, "num_kv_shared_layers": 3, "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 10, "vocab_size_per_layer_input": 67, "rope_parameters": PROPORTIONAL,
    },
    "gemma4_moe": {
        **BASE, **SLIDE, "num_hidden_layers": 4, "model_type": "gemma4_text", "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 8,
        "global_head_dim": 12, "layer_types": TYPES_LAST_FULL, "hidden_size_per_layer_input": 0, "enable_moe_block": True,
        "num_experts": 7, "top_k_experts": 3, "moe_intermediate_size": 20, "rope_parameters": PROPORTIONAL,
    },
    "mimo_v2_flash": {
        **BASE, **MOE, "model_type": "mimo_v2_flash", "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 12,
        "v_head_dim": 10, "sliding_window": 4, "layer_types": TYPES, "mlp_layer_types": ["dense", "sparse", "sparse"],
        "n_routed_experts": 6, "n_group": 2, "topk_group": 1, "norm_topk_prob": True, "attention_value_scale": 0.6,
        "rope_parameters": {
            "full_attention": {**PLAIN_ROPE, "rope_theta": 5e4, "partial_rotary_factor": 0.5},
            "sliding_attention": {**PLAIN_ROPE, "partial_rotary_factor": 0.5},
        },
    },
    "seed_oss": {
        **BASE, "model_type": "seed_oss", "attention_bias": True, "attention_out_bias": False, "residual_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "mpt": {
        "model_type": "mpt", "d_model": 24, "n_heads": 4, "n_layers": 3, "vocab_size": 67, "max_seq_len": 64,
        "expansion_ratio": 4, "no_bias": True, "attn_config": {"alibi": True},
    },
    "gpt2": {**GPT, "model_type": "gpt2", "activation_function": "gelu_new"},
    "gpt_neox_sequential": {
        **MHA, "model_type": "gpt_neox", "rotary_pct": 1.0, "hidden_act": "gelu", "use_parallel_residual": False,
        "tie_word_embeddings": False,
    },
    "gptj": {
        **GPT, "model_type": "gptj", "rotary_dim": 4, "activation_function": "gelu_new", "tie_word_embeddings": False,
    },
    "gpt_neox": {
        **MHA, "model_type": "gpt_neox", "rotary_pct": 0.67, "hidden_act": "gelu", "use_parallel_residual": True,
        "tie_word_embeddings": False,
    },
    "phi": {
        **BASE, "model_type": "phi", "partial_rotary_factor": 0.5, "hidden_act": "gelu_new",
        "tie_word_embeddings": False,
    },
    "falcon_7b": {
        "model_type": "falcon", "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 67,
        "multi_query": True, "parallel_attn": True, "bias": False, "new_decoder_architecture": False, "alibi": False,
    },
    "falcon_40b": {
        "model_type": "falcon", "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_kv_heads": 2,
        "vocab_size": 67, "parallel_attn": True, "bias": False, "new_decoder_architecture": True, "alibi": False,
    },
    "bloom": {"model_type": "bloom", "hidden_size": 24, "n_layer": 3, "n_head": 4, "vocab_size": 67},
    "opt": {
        "model_type": "opt", "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 40,
        "vocab_size": 67, "max_position_embeddings": 64, "word_embed_proj_dim": 24, "activation_function": "relu",
        "do_layer_norm_before": True,
    },
    "mixtral": {**BASE, "model_type": "mixtral", "num_local_experts": 6, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **BASE, **MOE, "model_type": "qwen2_moe", "num_experts": 6, "shared_expert_intermediate_size": 28,
        "decoder_sparse_step": 1, "mlp_only_layers": [0], "norm_topk_prob": False,
    },
    "qwen3_moe": {
        **BASE, **MOE, "model_type": "qwen3_moe", "num_experts": 6, "norm_topk_prob": True, "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "olmoe": {
        **MHA, "num_key_value_heads": 2, "model_type": "olmoe", "num_experts": 6, "num_experts_per_tok": 2,
        "norm_topk_prob": False,
    },
    "deepseek_v2": {
        **DEEPSEEK, "model_type": "deepseek_v2", "topk_method": "group_limited_greedy", "norm_topk_prob": False,
    },
    "deepseek_v3": {**DEEPSEEK, "model_type": "deepseek_v3"},
    "deepseek_v3_no_q_lora": {**DEEPSEEK, "model_type": "deepseek_v3", "q_lora_rank": None},
    "gpt_oss": {
        **BASE, **SLIDE, "model_type": "gpt_oss", "num_local_experts": 6, "num_experts_per_tok": 2,
        "layer_types": TYPES, "rope_parameters": PLAIN_ROPE, "tie_word_embeddings": False,
    },
    "olmo2": {**BASE, "model_type": "olmo2"},
    "cohere": {**BASE, "model_type": "cohere", "layer_norm_eps": 1e-5, "logit_scale": 0.25},
    "cohere2": {
        **BASE, **SLIDE, "model_type": "cohere2", "layer_norm_eps": 1e-5, "logit_scale": 0.25, "layer_types": TYPES,
    },
    "starcoder2": {**BASE, "model_type": "starcoder2", "hidden_act": "gelu_pytorch_tanh", "use_bias": True},
    "stablelm": {
        **MHA, "num_key_value_heads": 2, "model_type": "stablelm", "partial_rotary_factor": 0.67, "use_qkv_bias": True,
    },
    "granite": {
        **BASE, "model_type": "granite", "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.0,
        "attention_multiplier": 0.2,
    },
    "glm4": {**BASE, "model_type": "glm4", "partial_rotary_factor": 0.5, "attention_bias": True, "pad_token_id": 0},
    "glm4_moe": {
        **BASE, **MOE, "model_type": "glm4_moe", "n_routed_experts": 6, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "partial_rotary_factor": 0.5, "use_qk_norm": True, "n_group": 1,
        "topk_group": 1, "routed_scaling_factor": 1.5,
        "norm_topk_prob": True, "attention_bias": True,
    },
    "phi3": {**BASE, "model_type": "phi3", "pad_token_id": 0},
    "llama4_text": {
        **BASE, "model_type": "llama4_text", "num_local_experts": 6, "num_experts_per_tok": 1, "intermediate_size": 20,
        "intermediate_size_mlp": 40, "interleave_moe_layer_step": 2, "attention_chunk_size": 4,
        "no_rope_layers": [1, 0, 1], "use_qk_norm": False, "attn_temperature_tuning": False,
    },
    "minimax_m2": {
        **BASE, "model_type": "minimax_m2", "num_local_experts": 6, "num_experts_per_tok": 2, "rotary_dim": 4,
        "use_qk_norm": True,
    },
    "gpt_bigcode": {
        **GPT, "model_type": "gpt_bigcode", "multi_query": True, "activation_function": "gelu_pytorch_tanh",
    },
    "gpt_neo": {
        "model_type": "gpt_neo", "hidden_size": 24, "num_layers": 4, "num_heads": 4, "vocab_size": 67,
        "max_position_embeddings": 64, "window_size": 4, "attention_types": [[["global", "local"], 2]],
        "activation_function": "gelu_new",
    },
    "ernie4_5_moe": {
        **BASE, "model_type": "ernie4_5_moe", "moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 20,
        "moe_num_shared_experts": 1, "moe_layer_start_index": 1, "moe_layer_interval": 1, "moe_layer_end_index": 2,
    },
}  # fmt: skip
