"""Published models, by hand, for tests of what engines accept."""

from __future__ import annotations

from tools.spec.model import MLA, MLP, Attention, ModelSpec, MoE


def dense(name: str, hidden: int, layers: int, vocab: int, heads: int, kv: int, width: int, **more) -> ModelSpec:
    attention = Attention(num_heads=heads, num_kv_heads=kv, head_dim=more.pop("head_dim", hidden // heads))
    mlp = MLP(intermediate_size=width, gated=more.pop("gated", True))
    return ModelSpec(
        name=name, hidden_size=hidden, num_hidden_layers=layers, vocab_size=vocab, attention=attention, mlp=mlp, **more
    )


def moe(name: str, hidden: int, layers: int, vocab: int, heads: int, kv: int, experts: MoE, **more) -> ModelSpec:
    attention = Attention(
        num_heads=heads, num_kv_heads=kv, head_dim=more.pop("head_dim", 128), mla=more.pop("mla", None)
    )
    return ModelSpec(
        name=name,
        hidden_size=hidden,
        num_hidden_layers=layers,
        vocab_size=vocab,
        attention=attention,
        moe=experts,
        **more,
    )


GPT2_XL = dense("gpt2-xl", 1600, 48, 50257, 25, 25, 6400, gated=False, architecture="GPT2LMHeadModel")
PHI4 = dense("phi-4", 5120, 40, 100352, 40, 10, 17920, architecture="Phi3ForCausalLM")
FALCON_7B = dense("falcon-7b", 4544, 32, 65024, 71, 1, 18176, gated=False, architecture="FalconForCausalLM")
LLAMA3_70B = dense("Llama-3-70B", 8192, 80, 128256, 64, 8, 28672, architecture="LlamaForCausalLM", max_context=8192)
LLAMA3_405B = dense("Llama-3.1-405B", 16384, 126, 128256, 128, 8, 53248, architecture="LlamaForCausalLM")
QWEN25_7B = dense("Qwen2.5-7B", 3584, 28, 152064, 28, 4, 18944, architecture="Qwen2ForCausalLM")
QWEN25_32B_AWQ = dense(
    "Qwen2.5-32B-Instruct-AWQ", 5120, 64, 152064, 40, 8, 27648, weight_dtype="int4", quant_group=128,
    architecture="Qwen2ForCausalLM",
)  # fmt: skip
QWEN3_235B_FP8 = moe(
    "Qwen3-235B-A22B-FP8", 4096, 94, 151936, 64, 4, MoE(num_experts=128, top_k=8, intermediate_size=1536),
    weight_dtype="fp8", quant_group=128, architecture="Qwen3MoeForCausalLM",
)  # fmt: skip
QWEN3_30B_FP8 = moe(
    "Qwen3-30B-A3B-FP8", 2048, 48, 151936, 32, 4, MoE(num_experts=128, top_k=8, intermediate_size=768),
    weight_dtype="fp8", quant_group=128, architecture="Qwen3MoeForCausalLM",
)  # fmt: skip
DEEPSEEK_V3 = moe(
    "DeepSeek-V3", 7168, 61, 129280, 128, 128,
    MoE(num_experts=256, top_k=8, intermediate_size=2048, shared_intermediate_size=2048), head_dim=192,
    mla=MLA(q_lora_rank=1536), mlp=MLP(intermediate_size=18432), moe_layers=tuple(i >= 3 for i in range(61)),
    weight_dtype="fp8", quant_group=128, architecture="DeepseekV3ForCausalLM",
)  # fmt: skip
GPT_OSS_120B = moe(
    "gpt-oss-120b", 2880, 36, 201088, 64, 8, MoE(num_experts=128, top_k=4, intermediate_size=2880), head_dim=64,
    weight_dtype="mxfp4", quantized_experts_only=True, architecture="GptOssForCausalLM",
)  # fmt: skip
V4_FLASH = moe(
    "DeepSeek-V4-Flash", 4096, 43, 129280, 64, 1, MoE(num_experts=256, top_k=6, intermediate_size=2048), head_dim=512,
    architecture="DeepseekV4ForCausalLM",
)  # fmt: skip
TEN_EXPERTS = moe(
    "ten-experts", 1024, 8, 32000, 16, 16, MoE(num_experts=10, top_k=2, intermediate_size=4096), head_dim=64
)

MODELS = (
    GPT2_XL, PHI4, FALCON_7B, LLAMA3_70B, QWEN25_7B, QWEN25_32B_AWQ, QWEN3_235B_FP8, QWEN3_30B_FP8, DEEPSEEK_V3,
    GPT_OSS_120B, V4_FLASH, TEN_EXPERTS,
)  # fmt: skip
