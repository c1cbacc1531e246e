"""Parameters of a decoder in closed form, from its shape alone: a second derivation for configs and operator graphs.

Written from papers and model cards, not from the graph builder. Weights, biases and norms are counted.
"""

from __future__ import annotations

from tools.spec.model import LayerKind, ModelSpec


def parameter_count(model: ModelSpec) -> dict[str, float]:
    """Keys: total, active, embedding, attention, mlp, experts, shared, router, norms, lm_head.

    `active` counts everything but the routed experts that a token does not visit; embedding and head are in both.
    """
    moe_layers = sum(kind.ffn == "moe" for kind in model.layers())
    linear_layers = sum(kind.recurs for kind in model.layers())
    attention = sum(_attention(model, k) for k in model.layers() if k.attends)
    beside = model.moe is not None and model.moe.beside_mlp
    dense_layers = sum(kind.ffn == "dense" or (kind.ffn == "moe" and beside) for kind in model.layers())
    parts = {
        "embedding": _embedding(model),
        "attention": attention + linear_layers * _linear(model),
        "mlp": dense_layers * _mlp(model) + _wider(model),
        "layer_inputs": _layer_inputs(model),
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
        expert = matrices * (moe.latent_size or h) * moe.intermediate_size
        if moe.expert_bias:
            expert += (matrices - 1) * moe.intermediate_size + h
        parts["experts"] = moe_layers * moe.num_experts * expert
        parts["shared"] = moe_layers * (matrices * h * moe.shared_intermediate_size + h * moe.shared_gate)
        extra = moe.router_bias + moe.correction_bias + moe.expert_scale
        parts["latent"] = moe_layers * 2 * h * (moe.latent_size or 0)
        parts["router"] = moe_layers * (moe.num_experts * (h + extra) + h * moe.router_norm)
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


def _attention(model: ModelSpec, kind: LayerKind) -> float:
    a, h = model.attention_of(kind), model.hidden_size
    if a.mla is not None:
        m = a.mla
        qk = m.qk_nope_head_dim + m.qk_rope_head_dim
        q = h * a.num_heads * qk
        if m.q_lora_rank:
            q = h * m.q_lora_rank + m.q_lora_rank + m.q_lora_rank * a.num_heads * qk
        kv = h * (m.kv_lora_rank + m.qk_rope_head_dim) + m.kv_lora_rank
        up = m.kv_lora_rank * a.num_heads * (m.qk_nope_head_dim + m.v_head_dim)
        ix = a.indexer if kind.picks == "own" else None
        # Its queries from the query latent, one key and a weight per head from the hidden state, a LayerNorm on the key.
        index = (
            (m.q_lora_rank or h) * ix.num_heads * ix.head_dim + h * (ix.head_dim + ix.num_heads) + 2 * ix.head_dim
            if ix
            else 0
        )
        gate = h * a.num_heads * (1 if a.gate_per_head else m.v_head_dim) * a.output_gate
        return q + kv + up + a.num_heads * m.v_head_dim * h + index + gate
    q, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    out = a.num_heads * (a.v_head_dim or a.head_dim)
    if kind.kv == "borrowed":  # queries and output alone
        return h * q + out * h + (a.head_dim if a.qk_norm == "head" else 0) + q * a.qkv_bias + h * a.out_bias
    values = 0 if a.values_are_keys else a.num_kv_heads * (a.v_head_dim or a.head_dim)
    weights = h * (q + kv + values + out * a.output_gate) + out * h
    weights += (q + kv + values) * a.qkv_bias + h * a.out_bias + a.num_heads * a.sinks
    if a.indexer and kind.picks == "own":  # a query for every KV head, one key, a norm on each
        weights += h * (a.num_kv_heads + 1) * a.indexer.head_dim + 2 * a.indexer.head_dim
    weights += out * a.context_norm - (h * (out - a.num_heads) if a.output_gate and a.gate_per_head else 0)
    norms = {"none": 0, "plain": 0, "head": 2 * a.head_dim, "layer": 4 * a.head_dim, "heads": q + kv, "full": q + kv}
    return weights + norms[a.qk_norm]


def _linear(model: ModelSpec) -> float:
    """Gated DeltaNet, Kimi Delta Attention and Mamba-2, from their papers (arXiv 2412.06464, 2510.26692, 2405.21060) and
    model cards."""
    a, h = model.linear, model.hidden_size
    if a is None:
        return 0.0
    keys, values = a.num_key_heads * a.key_dim, a.num_value_heads * a.value_dim
    if a.kind == "short_conv":
        return 4 * h * h + h * a.conv_kernel + 5 * h * a.conv_bias
    if a.kind == "mamba1":
        # channels and gate; convolution; step size, key and query out of the channels, with norms; A per channel and key, D
        rank, low = a.gate_rank or 0, (a.gate_rank or 0) + 2 * a.key_dim
        inner = 2 * h * values + values * (a.conv_kernel + a.conv_bias) + values * low + low
        return inner + rank * values + values + values * a.key_dim + values + values * h
    if a.kind == "mamba2":
        # gate, x, B, C and dt out of one projection; a convolution over x, B and C; dt's bias, A and D per head
        channels = values + 2 * keys
        return (
            h * (values + channels + a.num_value_heads)
            + channels * (a.conv_kernel + a.conv_bias)
            + 3 * a.num_value_heads
            + values * a.output_norm
            + values * h
        )
    weights = (
        h * (2 * keys + values) + a.conv_kernel * (2 * keys + values) + h * a.num_value_heads
    )  # q, k, v, convolution, beta
    if a.kind == "kda":
        rank = a.gate_rank or 0
        weights += keys + a.num_key_heads  # the decay's bias, its rate per head
        weights += h * rank + rank * keys if rank else h * keys  # decay
        weights += h * rank + rank * values if rank else h * values  # output gate
    else:
        weights += h * a.num_value_heads + 2 * a.num_value_heads  # decay, its bias and rate per head
        weights += h * values  # output gate
    return weights + a.value_dim + values * h


def _wider(model: ModelSpec) -> float:
    """What the MLPs of layers that borrow keys and values have more."""
    if model.mlp is None or model.borrower_mlp_size is None:
        return 0.0
    more = model.borrower_mlp_size - model.mlp.intermediate_size
    return sum(k.kv == "borrowed" for k in model.layers()) * 3 * model.hidden_size * more


def _layer_inputs(model: ModelSpec) -> float:
    """A row per token and layer, a projection to all of them and its norm; per layer two projections and a norm."""
    if model.layer_inputs is None:
        return 0.0
    h, w, n = model.hidden_size, model.layer_inputs.width, model.num_hidden_layers
    return (model.vocab_size + h) * n * w + w + n * (2 * h * w + h)


def _mlp(model: ModelSpec) -> float:
    if model.mlp is None:
        return 0.0
    h, f = model.hidden_size, model.mlp.intermediate_size
    matrices = 3 if model.mlp.gated else 2
    inner = f * model.mlp.inner_norm + 2 * (model.mlp.activation == "xielu")
    return matrices * h * f + ((matrices - 1) * f + h) * model.mlp.bias + inner


def _norms(model: ModelSpec) -> float:
    per_layer = {"sequential": 2, "parallel": model.parallel_norms, "sandwich": 4, "post": 2, "summed": 2}[model.block]
    halves = sum((k.mixer != "none") + (k.ffn != "none") for k in model.layers())
    count = halves * per_layer / 2 if model.block != "parallel" else model.num_hidden_layers * per_layer
    count += (model.block != "summed") + model.embedding_norm
    if model.moe is not None and model.moe.beside_mlp:
        count += 3 * sum(kind.ffn == "moe" for kind in model.layers())  # before the experts, after them, after the MLP
    if model.moe is not None and model.moe.output_norm:
        count += sum(kind.ffn == "moe" for kind in model.layers())
    scales = model.num_hidden_layers * model.layer_scale
    return count * model.hidden_size * (model.norm_affine + model.norm_bias) + scales
