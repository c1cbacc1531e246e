"""Model types of transformers that have no operator graph here, each with the reason: what it has that the graph lacks.

A type that becomes known gets a row in `FAMILIES` and loses its line here.
"""

from __future__ import annotations

_BIDIRECTIONAL = "is an encoder whose every position reads all others"
_ENCODER_DECODER = "has an encoder"
_RECURRENT = "has no attention layers"

NO_DECODER: dict[str, str] = {
    "albert": _BIDIRECTIONAL,
    "bart": _ENCODER_DECODER,
    "bert": _BIDIRECTIONAL,
    "bert-generation": _BIDIRECTIONAL,
    "big_bird": _BIDIRECTIONAL,
    "bigbird_pegasus": _ENCODER_DECODER,
    "blenderbot": _ENCODER_DECODER,
    "blenderbot-small": _ENCODER_DECODER,
    "blt": "reads bytes through an encoder of patches",
    "camembert": _BIDIRECTIONAL,
    "clip": _BIDIRECTIONAL,
    "data2vec-text": _BIDIRECTIONAL,
    "deberta": _BIDIRECTIONAL,
    "electra": _BIDIRECTIONAL,
    "ernie": _BIDIRECTIONAL,
    "falcon_mamba": _RECURRENT,
    "git": "is the text half of an image captioner, with the blocks of BERT",
    "mamba": _RECURRENT,
    "mamba2": _RECURRENT,
    "marian": _ENCODER_DECODER,
    "mbart": _ENCODER_DECODER,
    "megatron-bert": _BIDIRECTIONAL,
    "moshi": "is a speech model whose depth decoder writes several audio codes per step",
    "mt5": _ENCODER_DECODER,
    "musicgen": "decodes audio codes with attention to an encoder's output",
    "musicgen_melody": "decodes audio codes of several codebooks at once",
    "mvp": _ENCODER_DECODER,
    "pegasus": _ENCODER_DECODER,
    "plbart": _ENCODER_DECODER,
    "prophetnet": _ENCODER_DECODER,
    "reformer": "hashes positions into buckets instead of attending to all of them",
    "rembert": _BIDIRECTIONAL,
    "roberta": _BIDIRECTIONAL,
    "roberta-prelayernorm": _BIDIRECTIONAL,
    "roc_bert": _BIDIRECTIONAL,
    "roformer": _BIDIRECTIONAL,
    "rwkv": _RECURRENT,
    "swin": _BIDIRECTIONAL,
    "t5": _ENCODER_DECODER,
    "trocr": "decodes with attention to an encoder's output",
    "vit": _BIDIRECTIONAL,
    "whisper": _ENCODER_DECODER,
    "xlm": _BIDIRECTIONAL,
    "xlm-roberta": _BIDIRECTIONAL,
    "xlm-roberta-xl": _BIDIRECTIONAL,
    "xlnet": "attends in two streams over permuted positions",
    "xlstm": _RECURRENT,
    "xmod": _BIDIRECTIONAL,
}
"""Model types that are no decoder-only transformer at all."""

_HYPER = "hyper-connections (several residual streams)"
_SHORT_CONV = "short-convolution layers"

OTHER_BLOCKS: dict[str, str] = {
    "axk2": "queries gated by their own latent, norms with a gate (A.X-K2)",
    "beam": "residual sums weighted by their depth (Beam)",
    "cpmant": "learned biases per bucket of relative positions (CPM-Ant)",
    "ctrl": "sinusoidal positions added to scaled embeddings (CTRL)",
    "deepseek_v4": "compressed sparse attention and hyper-connections (DeepSeek-V4)",
    "diffllama": "differential attention, whose factors change with depth (DiffLlama)",
    "doge": "a mask made of the values, and experts that are single neurons (Doge)",
    "dots3_note": "latent attention of two sizes, gated per head (dots3-note)",
    "dots3_note_text": "latent attention of two sizes, gated per head (dots3-note)",
    "gemma3n": "AltUp and LAuReL blocks (Gemma-3n)",
    "gemma3n_text": "AltUp and LAuReL blocks (Gemma-3n)",
    "gemma4_assistant": "a draft model that reads the keys and values of the model it serves (Gemma-4 assistant)",
    "gemma4_unified_assistant": "a draft model that reads the keys and values of the model it serves (Gemma-4 assistant)",
    "gpt_neox_japanese": "a bias of the attention's output in the last layer alone (GPT-NeoX-Japanese)",
    "hrm_text": "layers that run several times in nested cycles (HRM)",
    "hy_v4": _HYPER,
    "inkling2_text": "logits of relative positions and short convolutions around attention (Inkling)",
    "inkling_text": "logits of relative positions and short convolutions around attention (Inkling)",
    "jetmoe": "experts of attention heads (JetMoE)",
    "lfm3": _SHORT_CONV,
    "longcat_flash": "two attentions per layer around one set of experts, some of which do nothing (LongCat-Flash)",
    "minimax": "linear (lightning) attention layers",
    "mllama": "cross-attention layers that read an image encoder (Llama-3.2-Vision)",
    "mllama_text_model": "cross-attention layers that read an image encoder (Llama-3.2-Vision)",
    "modernbert-decoder": "a first layer without a norm, and a dense layer before the LM head (ModernBERT decoder)",
    "olmo_hybrid": "layers of two block layouts, linear attention with negative eigenvalues (OLMo hybrid)",
    "qwen4_exp": "embeddings of n-grams and several residual streams (Qwen4 experimental)",
    "qwen4_exp_text": "embeddings of n-grams and several residual streams (Qwen4 experimental)",
    "recurrent_gemma": "gated linear recurrent units (RecurrentGemma)",
    "xglm": "sinusoidal positions added to scaled embeddings (XGLM)",
    "zamba": "attention blocks shared by layers (Zamba)",
    "zamba2": "attention blocks shared by layers (Zamba2)",
    "zaya": "convolutions of queries, keys and values in a compressed space (Zaya)",
}
"""Decoders whose blocks are known to be others than the config's keys say."""
