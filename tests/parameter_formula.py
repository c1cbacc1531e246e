"""Parameters of a decoder in closed form, from its shape alone: a second derivation for configs and operator graphs.

Written from papers and model cards, not from the graph builder. Weights, biases and norms are counted.
"""

from __future__ import annotations

from tools.spec.model import ModelSpec


def parameter_count(model: ModelSpec) -> dict[str, float]:
    """Keys: total, active, embedding, attention, mlp, experts, shared, router, norms, lm_head.

    `active` counts everything but the routed experts that a token does not visit; embedding and head are in both.
    """
    moe_layers = sum(kind.ffn == "moe" for kind in model.layers())
    dense_layers = model.num_hidden_layers - moe_layers
    parts = {
        "embedding": _embedding(model),
        "attention": model.num_hidden_layers * _attention(model),
        "mlp": dense_layers * _mlp(model),
        "norms": _norms(model),
        "lm_head": _lm_head(model),
        "experts": 0.0,
        "shared": 0.0,
        "router": 0.0,
    }
    idle = 0.0
    if model.moe is not None:
        moe, h = model.moe, model.hidden_size
        matrices = 3 if moe.gated else 2
        expert = matrices * h * moe.intermediate_size
        if moe.expert_bias:
            expert += (matrices - 1) * moe.intermediate_size + h
        parts["experts"] = moe_layers * moe.num_experts * expert
        parts["shared"] = moe_layers * (matrices * h * moe.shared_intermediate_size + h * moe.shared_gate)
        extra = moe.router_bias + moe.correction_bias
        parts["router"] = moe_layers * moe.num_experts * (h + extra)
        idle = moe_layers * (moe.num_experts - moe.top_k) * expert
    total = sum(parts.values())
    return {"total": total, "active": total - idle, **parts}


def _embedding(model: ModelSpec) -> float:
    rows = model.vocab_size
    if model.position.kind == "learned":
        rows += model.position.max_positions + model.position.learned_offset
    return rows * model.hidden_size


def _lm_head(model: ModelSpec) -> float:
    bias = model.vocab_size if model.lm_head_bias else 0
    return bias + (0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size)


def _attention(model: ModelSpec) -> float:
    a, h = model.attention, model.hidden_size
    if a.mla is not None:
        m = a.mla
        qk = m.qk_nope_head_dim + m.qk_rope_head_dim
        q = h * a.num_heads * qk
        if m.q_lora_rank:
            q = h * m.q_lora_rank + m.q_lora_rank + m.q_lora_rank * a.num_heads * qk
        kv = h * (m.kv_lora_rank + m.qk_rope_head_dim) + m.kv_lora_rank
        up = m.kv_lora_rank * a.num_heads * (m.qk_nope_head_dim + m.v_head_dim)
        return q + kv + up + a.num_heads * m.v_head_dim * h
    q, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    weights = h * (q + 2 * kv) + q * h
    weights += (q + 2 * kv) * a.qkv_bias + h * a.out_bias + a.num_heads * a.sinks
    return weights + {"none": 0, "head": 2 * a.head_dim, "full": q + kv}[a.qk_norm]


def _mlp(model: ModelSpec) -> float:
    if model.mlp is None:
        return 0.0
    h, f = model.hidden_size, model.mlp.intermediate_size
    matrices = 3 if model.mlp.gated else 2
    return matrices * h * f + ((matrices - 1) * f + h) * model.mlp.bias


def _norms(model: ModelSpec) -> float:
    per_layer = {"sequential": 2, "parallel": model.parallel_norms, "sandwich": 4, "post": 2}[model.block]
    count = model.num_hidden_layers * per_layer + 1 + model.embedding_norm
    return count * model.hidden_size * (2 if model.norm_bias else 1)
