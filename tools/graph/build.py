"""A model's operator graph: one function per block kind, each a readable list of operators.

`embed_body`, `layer_body`, `head_body` are the three bodies every decoder-only model is made of. Prefill and decode have
the same operators except for MLA, whose decode form absorbs the KV up-projection into the query and the output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from math import prod
from typing import Any

from tools.graph.heads import KEY_DIMS, KV_HEADS, HeadDims, head_dims, head_sizes
from tools.graph.ir import Body, BodyBuilder, DTypeRole, Sizes, Tensor
from tools.graph.parts import X, linear, rms, scaled, step
from tools.graph.recurrent import linear_attention, linear_sizes
from tools.graph.routing import NODE_TOKENS, from_nodes, hierarchical, node_sizes, to_nodes
from tools.spec.base import Refused
from tools.spec.model import Attention, LayerKind, ModelSpec, Temperature
from tools.spec.strategy import Phase

VOCAB_ALIGNMENT = 64
"""Engines pad the vocabulary to a multiple of 64 (vLLM and SGLang `vocab_parallel_embedding.py`)."""

AFTER = ("post", "summed")
"""Blocks whose halves read the residual stream as it is."""
BENDS = ("alpha_p", "alpha_n")
"""Learned scalars of xIELU, for what is above zero and for what is below."""


def padded_vocab(model: ModelSpec) -> int:
    return -(-model.vocab_size // VOCAB_ALIGNMENT) * VOCAB_ALIGNMENT


def vocab_dim(model: ModelSpec) -> str:
    return "vocab" if padded_vocab(model) == model.vocab_size else "padded_vocab"


def model_sizes(model: ModelSpec) -> dict[str, int]:
    """Length of every dim that the model fixes; batch_size, seq_len and kv_len come from the workload."""
    a, mla = model.attention, model.attention.mla
    sizes = {
        "hidden": model.hidden_size,
        "heads": a.num_heads,
        **head_sizes(model),
        "vocab": model.vocab_size,
        "padded_vocab": padded_vocab(model),
        "positions": model.position.max_positions + model.position.learned_offset,
    }
    if mla:
        sizes |= {
            "q_lora": mla.q_lora_rank or 0,
            "kv_lora": mla.kv_lora_rank,
            "qk_nope": mla.qk_nope_head_dim,
            "qk_rope": mla.qk_rope_head_dim,
            "v_dim": mla.v_head_dim,
        }
    if model.linear:
        sizes |= linear_sizes(model.linear)
    if a.indexer:
        sizes |= {"index_heads": a.indexer.num_heads, "index_dim": a.indexer.head_dim, "index_k": a.indexer.top_k}
    if model.mlp:
        sizes["ffn"] = model.mlp.intermediate_size
        sizes["wide_ffn"] = model.borrower_mlp_size or model.mlp.intermediate_size
    if model.layer_inputs:
        sizes |= {"layers": model.num_hidden_layers, "layer_input": model.layer_inputs.width}
    if model.moe:
        sizes |= {
            "experts": model.moe.num_slots,
            "gate_experts": model.moe.num_experts,
            "top_k": model.moe.top_k,
            "expert_ffn": model.moe.intermediate_size,
            "shared_ffn": model.moe.shared_intermediate_size,
            "moe_latent": model.moe.latent_size or 0,
            **node_sizes(model.moe),
        }
    return sizes


def all_sizes(model: ModelSpec, *, batch_size: Any, seq_len: Any, kv_len: Any) -> Sizes:
    return {**model_sizes(model), "batch_size": batch_size, "seq_len": seq_len, "kv_len": kv_len}


@lru_cache(maxsize=256)
def embed_body(model: ModelSpec) -> Body:
    ids = Tensor("ids", ("batch_size", "seq_len"), "index", "index")
    b = BodyBuilder("embed", {"ids": ids})
    table = b.weight("embed_tokens", (vocab_dim(model), "hidden"), "embedding")
    x = b.op("embed", "embed", ("ids", table), X, kernel="embedding", module="embed_tokens")
    if model.embed_scale != 1.0:
        attrs = {"c": model.embed_scale}
        x = b.op(
            "embed_scale", "elementwise", (x,), X, kernel="embedding", module="embed_tokens", fn="scale", attrs=attrs
        )
    if model.position.kind == "learned":
        wpe = b.weight("embed_positions", ("positions", "hidden"), "embedding")
        attrs = {"offset": model.position.learned_offset}
        pos = b.op(
            "pos_lookup", "pos_lookup", ("ids", wpe), X, kernel="embedding", module="embed_positions", attrs=attrs
        )
        x = b.op("pos_add", "elementwise", (x, pos), X, kernel="embedding", module="embed_positions", fn="add")
    if model.embedding_norm:
        x = _norm(b, model, "embed_norm", x, kernel="embedding", module="embed_norm")
    return b.build(x, (_layer_inputs(b, model, x),) if model.layer_inputs else ())


PER_LAYER = (*X[:2], "layers", "layer_input")


def _layer_inputs(b: BodyBuilder, model: ModelSpec, x: str) -> str:
    """What every layer gets of the token itself: (its row of a second table + norm(projection of the embedding)) / sqrt(2)."""
    assert model.layer_inputs is not None
    table = b.weight("embed_tokens_per_layer", (vocab_dim(model), *PER_LAYER[2:]), "embedding")
    at: dict[str, Any] = {"kernel": "layer_inputs_embedding", "module": "embed_tokens_per_layer"}
    rows = b.op("embed_per_layer", "embed", ("ids", table), PER_LAYER, **at)
    rows = step(b, "embed_per_layer_scale", "scale", (rows,), attrs={"c": model.layer_inputs.width**0.5}, **at)
    module = "per_layer_model_projection"
    y = linear(
        b, "layer_inputs_proj", x, ("hidden", *PER_LAYER[2:]), PER_LAYER, kernel="layer_inputs_proj", module=module
    )
    at = {"kernel": "layer_inputs_norm", "module": module}
    y = step(b, "layer_inputs_scaled", "scale", (y,), attrs={"c": model.hidden_size**-0.5}, **at)
    y = _rms(b, model, "layer_inputs_norm", y, "layer_input", **at)
    y = step(b, "layer_inputs_sum", "add", (y, rows), **at)
    return step(b, "layer_inputs", "scale", (y,), attrs={"c": 2**-0.5}, **at)


@lru_cache(maxsize=1024)
def layer_body(model: ModelSpec, kind: LayerKind, phase: Phase, absorb: bool = True, split_kv: bool = False) -> Body:
    """One transformer layer. Same numbers, other operators: `absorb`, MLA decode in its absorbed form; `split_kv`, softmax
    as max, exp, sum and divide, so that ranks may hold parts of the cached positions."""
    if model.unsupported:
        raise Refused(f"{model.name}: {'; '.join(model.unsupported)}; no operator graph for these blocks yet")
    b = BodyBuilder(_layer_name(model, kind), {"x": Tensor("x", X), **_carried_in(model, kind)})
    attend = partial(_mla if model.attention.mla else _gqa, split_kv=split_kv)
    if model.block == "parallel":
        return _parallel_block(b, model, kind, phase, absorb, attend)
    x = "x"
    if kind.mixer != "none":
        x = _mixer_half(b, model, kind, x, partial(attend, b, model, kind, phase, absorb))
    if kind.ffn != "none":
        x = _ffn_half(b, model, kind, x, phase)
    shares = kind.attends and kind.picks == "own" and "shared" in (model.indexer_layers or ())
    carries = ("picked_positions",) if shares else ()
    if kind.kv == "lent":
        carries = (*carries, *_lent_names(kind))
    if model.layer_inputs:
        x = _layer_input_added(b, model, x)
    return b.build(_layer_scaled(b, model, x), carries)


def _lent_names(kind: LayerKind) -> tuple[str, str]:
    """Caches that other layers of this type read: keys, values."""
    own = "sliding" if kind.sliding else "full"
    return f"{own}_k_cache", f"{own}_v_cache"


def _layer_input_added(b: BodyBuilder, model: ModelSpec, x: str) -> str:
    """The layer's own vector of each token, gated by the residual stream, projected, normed and added to it."""
    assert model.mlp is not None
    own, module = (*X[:2], "layer_input"), "per_layer_input"
    mine = b.op("layer_input", "of_layer", ("layer_inputs",), own, kernel="layer_input_act", module=module)
    at: dict[str, Any] = {"kernel": "layer_input_act", "module": module}
    g = linear(b, "layer_input_gate", x, ("hidden", "layer_input"), own, kernel="layer_input_gate", module=module)
    g = step(b, "layer_input_act", model.mlp.activation, (g,), **at)
    g = step(b, "layer_input_gated", "mul", (g, mine), **at)
    y = linear(b, "layer_input_proj", g, ("layer_input", "hidden"), X, kernel="layer_input_proj", module=module)
    y = _norm(b, model, "post_layer_input_norm", y, kernel="layer_input_add", module="post_per_layer_input_norm")
    return _residual(
        b, model, "layer_input_residual", x, y, kernel="layer_input_add", module="per_layer_input.residual"
    )


def _carried_in(model: ModelSpec, kind: LayerKind) -> dict[str, Tensor]:
    """What a layer reads that layers before it made, beside the residual stream."""
    if kind.attends and kind.picks == "shared":
        return {"picked_positions": Tensor("picked_positions", (*X[:2], "index_k"), "index", "index")}
    found: dict[str, Tensor] = {}
    if model.layer_inputs:
        found["layer_inputs"] = Tensor("layer_inputs", PER_LAYER)
    if kind.kv == "borrowed":
        dims = head_dims(model, kind)
        for name, width in zip(_lent_names(kind), (dims.d_k, dims.d_v), strict=True):
            found[name] = Tensor(name, ("batch_size", "kv_len", dims.kv, width), "cache", "kv")
    return found


def carried_widths(model: ModelSpec) -> tuple[tuple[int, DTypeRole], ...]:
    """(elements per token, dtype) of everything that layers hand on beside the residual stream."""
    sizes = model_sizes(model)
    found = {n: t for k in dict.fromkeys(model.layers()) for n, t in _carried_in(model, k).items()}
    return tuple((prod(sizes[d] for d in t.dims[2:]), t.dtype) for t in found.values() if t.kind != "cache")


def _mixer_half(b: BodyBuilder, model: ModelSpec, kind: LayerKind, x: str, attend: Any) -> str:
    """Norms, attention or what is in its place, residual."""
    # The sum is fused with the next norm where there is one in this layer.
    add = "attn_add_norm" if kind.ffn != "none" else "attn_add"
    h = (
        _norm(b, model, "input_norm", x, kernel="input_norm", module="input_layernorm")
        if model.block not in AFTER
        else x
    )
    attn = _mixed(b, model, kind, h, attend)
    if model.block in ("sandwich", "post"):
        attn = _norm(b, model, "post_attn_norm", attn, kernel=add, module="post_attention_layernorm")
    x = _residual(b, model, "attn_residual", x, attn, kernel=add, module="self_attn.residual")
    if model.block == "summed":
        x = _norm(b, model, "attn_sum_norm", x, kernel=add, module="attn_sum_layernorm")
    return x


def _mixed(b: BodyBuilder, model: ModelSpec, kind: LayerKind, h: str, attend: Any) -> str:
    """Attention, linear attention, or the sum of both."""
    if not kind.recurs:
        return str(attend(h))
    out = linear_attention(b, model, h)
    if not kind.attends:
        return out
    return step(b, "mixers_add", "add", (attend(h), out), kernel="mixers_add", module="mixers_add")


def _ffn_half(b: BodyBuilder, model: ModelSpec, kind: LayerKind, x: str, phase: Phase) -> str:
    norm, h = "attn_add_norm" if kind.mixer != "none" else "input_norm", x
    if model.block not in AFTER:
        h = _norm(b, model, "ffn_norm", x, kernel=norm, module="pre_ffn_layernorm")
    beside = kind.ffn == "moe" and model.moe is not None and model.moe.beside_mlp
    out = _mlp_and_experts(b, model, h, x, phase) if beside else _ffn(b, model, kind, h, phase)
    if model.block in ("sandwich", "post"):
        out = _norm(b, model, "post_ffn_norm", out, kernel="ffn_add", module="post_ffn_layernorm")
    x = _residual(b, model, "ffn_residual", x, out, kernel="ffn_add", module="mlp.residual")
    if model.block == "summed":
        x = _norm(b, model, "ffn_sum_norm", x, kernel="ffn_add", module="ffn_sum_layernorm")
    return x


def _layer_scaled(b: BodyBuilder, model: ModelSpec, x: str) -> str:
    if not model.layer_scale:
        return x
    w = b.weight("layer_scale", (), "vector")
    return step(b, "layer_scaled", "mul", (x, w), kernel="ffn_add", module="layer_scale")


@lru_cache(maxsize=256)
def head_body(model: ModelSpec, logits: str = "last") -> Body:
    """Final norm, LM head, sampling (greedy). `logits="all"` keeps every position (used to compare with references)."""
    b = BodyBuilder("head", {"x": Tensor("x", X)})
    h = "x"
    if model.block != "summed":
        h = _norm(b, model, "final_norm", h, kernel="final_norm", module="norm")
    dims: tuple[str, ...] = X
    if logits == "last":
        dims = ("batch_size", "hidden")
        h = b.op("select_last", "select_last", (h,), dims, kernel="final_norm", module="logits_processor")
    v = vocab_dim(model)
    w = b.weight("embed_tokens" if model.tie_word_embeddings else "lm_head", (v, "hidden"), "embedding")
    out = (*dims[:-1], v)
    y = b.op("logits", "einsum", (h, w), out, kernel="lm_head", module="lm_head", dtype="fp32")
    if model.lm_head_bias:
        bias = b.weight("lm_head_bias", (v,), "vector")
        y = b.op(
            "logits_bias", "elementwise", (y, bias), out, kernel="lm_head", module="lm_head", fn="add", dtype="fp32"
        )
    if model.logit_scale != 1.0:
        attrs = {"c": model.logit_scale}
        y = b.op(
            "logits_scale",
            "elementwise",
            (y,),
            out,
            kernel="sampler",
            module="lm_head",
            fn="scale",
            attrs=attrs,
            dtype="fp32",
        )
    if model.logit_softcap:
        attrs = {"c": model.logit_softcap}
        y = b.op(
            "logits_softcap",
            "elementwise",
            (y,),
            out,
            kernel="sampler",
            module="lm_head",
            fn="softcap",
            attrs=attrs,
            dtype="fp32",
        )
    if v == "padded_vocab":
        attrs = {"vocab": model.vocab_size}
        y = b.op(
            "logits_unpad",
            "unpad",
            (y,),
            (*dims[:-1], "vocab"),
            kernel="sampler",
            module="lm_head",
            dtype="fp32",
            attrs=attrs,
        )
    tok = b.op(
        "sample", "argmax", (y,), dims[:-1], kernel="sampler", module="sampler", tensor_kind="index", dtype="index"
    )
    return b.build(tok)


# ---------------------------------------------------------------------------------------------------------------- blocks


def _layer_name(model: ModelSpec, kind: LayerKind) -> str:
    if kind.mixer == "none":
        return f"layer_{kind.ffn}_only"
    parts = ["layer", kind.ffn if kind.ffn != "none" else f"{kind.mixer}_only"]
    if kind.mixer == "linear":
        return "_".join([*parts, "linear"] if kind.ffn != "none" else parts)
    if kind.recurs:
        parts.append("beside_linear")
    if kind.sliding:
        parts.append("chunked" if model.attention.chunk_size else "sliding")
    if model.position.kind == "rope" and not kind.rope:
        parts.append("nope")
    if kind.kv != "own":
        parts.append("lending" if kind.kv == "lent" else "borrowing")
    if kind.picks != "own":
        parts.append("picked" if kind.picks == "shared" else "full")
    return "_".join(parts)


def _norm(b: BodyBuilder, model: ModelSpec, name: str, x: str, *, kernel: str, module: str, dim: str = "hidden") -> str:
    inputs: tuple[str, ...] = (x,)
    if model.norm_affine:
        inputs = (x, b.weight(f"{name}.weight", (dim,), "vector"))
    if model.norm_bias:
        inputs = (*inputs, b.weight(f"{name}.bias", (dim,), "vector"))
    attrs = {"eps": model.norm_eps, "offset": model.norm_offset}
    t = b.tensors[x]
    return b.op(name, "norm", inputs, t.dims, kernel=kernel, module=module, fn=model.norm, attrs=attrs, routed=t.routed)


def _rms(b: BodyBuilder, model: ModelSpec, name: str, x: str, dim: str, *, kernel: str, module: str) -> str:
    """RMSNorm over one inner dim, with the model's epsilon and offset."""
    return rms(b, name, x, dim, eps=model.norm_eps, offset=model.norm_offset, kernel=kernel, module=module)


def _plain_rms(b: BodyBuilder, model: ModelSpec, name: str, x: str, *, kernel: str, module: str) -> str:
    """RMSNorm over the last dim, without weights."""
    attrs = {"eps": model.norm_eps, "offset": 0.0}
    return b.op(name, "norm", (x,), b.tensors[x].dims, kernel=kernel, module=module, fn="rmsnorm", attrs=attrs)


def _residual(b: BodyBuilder, model: ModelSpec, name: str, x: str, branch: str, *, kernel: str, module: str) -> str:
    if model.residual_scale != 1.0:
        attrs = {"c": model.residual_scale}
        branch = b.op(
            f"{name}_scale", "elementwise", (branch,), X, kernel=kernel, module=module, fn="scale", attrs=attrs
        )
    return b.op(name, "elementwise", (x, branch), X, kernel=kernel, module=module, fn="add")


def _rope(b: BodyBuilder, model: ModelSpec, kind: LayerKind, name: str, x: str, dim: str, **other: Any) -> str:
    """RoPE of the layer's kind; `other`: what a block does otherwise than the model."""
    p = model.position
    local = kind.sliding and p.sliding_theta is not None
    attrs = {
        "theta": p.sliding_theta if local else p.theta,
        "scaling": None if local else p.scaling,
        "rotary_dim": ((kind.sliding and p.sliding_rotary_dim) or p.rotary_dim) if dim in KEY_DIMS else None,
        "interleaved": p.interleaved,
        "dim": dim,
        "size": model_sizes(model)[dim],
        **other,
    }
    return b.op(name, "rope", (x,), b.tensors[x].dims, kernel="rope", module="self_attn.rotary_emb", attrs=attrs)


def _qk_norm(b: BodyBuilder, model: ModelSpec, a: Attention, name: str, x: str) -> str:
    module, (heads, d_k) = f"self_attn.{name}", b.tensors[x].dims[-2:]
    if a.qk_norm == "head":
        return _rms(b, model, name, x, d_k, kernel="rope", module=module)
    if a.qk_norm == "plain":
        return _plain_rms(b, model, name, x, kernel="rope", module=module)
    if a.qk_norm == "layer":
        scales = [b.weight(f"{name}.{n}", (d_k,), "vector") for n in ("weight", "bias")]
        at: dict[str, Any] = {"kernel": "rope", "module": module, "attrs": {"eps": model.norm_eps, "offset": 0.0}}
        return b.op(name, "norm", (x, *scales), b.tensors[x].dims, fn="layernorm", **at)
    if a.qk_norm == "heads":
        w = b.weight(f"{name}.weight", (heads, d_k), "vector")
        attrs: dict[str, Any] = {"eps": model.norm_eps, "offset": model.norm_offset}
        return b.op(name, "norm", (x, w), b.tensors[x].dims, kernel="rope", module=module, fn="layernorm", attrs=attrs)
    count = (a.num_heads if heads == "heads" else a.num_kv_heads) * a.head_dim
    return _wide_rms(b, model, name, x, count, kernel="rope", module=module)


def _wide_rms(b: BodyBuilder, model: ModelSpec, name: str, x: str, count: int, *, kernel: str, module: str) -> str:
    """RMSNorm over all of a token's `count` numbers in a dim that ranks may split: the sum of squares is an operator of its own
    and gets its all-reduce."""
    dims = b.tensors[x].dims
    w = b.weight(f"{name}.weight", dims[2:], "vector")
    ssq = b.op(f"{name}_sumsq", "sumsq", (x,), dims[:2], kernel=f"{name}_sumsq", module=module, dtype="fp32")
    attrs = {"eps": model.norm_eps, "count": count}
    return b.op(name, "rms_apply", (x, ssq, w), dims, kernel=kernel, module=module, attrs=attrs)


def _gqa(b: BodyBuilder, model: ModelSpec, kind: LayerKind, phase: Phase, absorb: bool, h: str, split_kv: bool) -> str:
    a, dims = model.attention_of(kind), head_dims(model, kind)
    q, k, v = _queries_keys_values(b, model, kind, dims, h)
    names = ("k_cache", "v_cache") if kind.kv == "own" else _lent_names(kind)
    chosen = picked_blocks(b, model, kind, dims, h) if a.indexer and kind.picks == "own" else None
    k, v = names if kind.kv == "borrowed" else (_cache(b, n, x) for n, x in zip(names, (k, v), strict=True))
    if a.num_kv_heads != a.num_heads:
        group = a.num_heads // a.num_kv_heads
        k, v = _repeat(b, "k_heads", k, group), _repeat(b, "v_heads", v, group)
        chosen = chosen and _repeat(b, "picked_heads", chosen, group)
    scores = b.op(
        "scores",
        "einsum",
        (q, k),
        ("batch_size", "heads", "seq_len", "kv_len"),
        kernel="attention",
        module="self_attn.scores",
    )
    s = _masked_scores(b, model, kind, scores, a.scale or a.head_dim**-0.5)
    if chosen:
        s = _only_picked(b, a, s, chosen)
    out = (*X[:2], "heads", dims.d_v)
    ctx = _softmax_values(b, a, s, v, "attn_values", out, split_kv)
    if a.context_norm:
        count = a.num_heads * (a.v_head_dim or a.head_dim)
        ctx = _wide_rms(b, model, "context_norm", ctx, count, kernel="context_norm", module="self_attn.context_norm")
    if a.output_gate:
        ctx = _output_gated(b, a, h, ctx, "qkv_proj")
    into = ("heads", dims.d_v, "hidden")
    return linear(b, "o_proj", ctx, into, X, kernel="o_proj", module="self_attn.o_proj", bias=a.out_bias)


def _output_gated(b: BodyBuilder, a: Attention, h: str, ctx: str, kernel: str) -> str:
    """What the heads read, times a gate made of the hidden state: a number for each of theirs, or one per head."""
    out = b.tensors[ctx].dims
    wide, at = out[2:3] if a.gate_per_head else out[2:], "self_attn.output_gate"
    lin: dict[str, Any] = {"kernel": kernel, "bias": a.qkv_bias, "module": "self_attn.q_proj"}
    gate = linear(b, "q_gate", h, ("hidden", *wide), (*X[:2], *wide), **lin)
    gate = step(b, "output_gate", a.gate_fn, (gate,), kernel="output_gate", module=at)
    return step(b, "gated_values", "mul", (ctx, gate), kernel="output_gate", module=at)


def _queries_keys_values(
    b: BodyBuilder, model: ModelSpec, kind: LayerKind, dims: HeadDims, h: str
) -> tuple[str, str, str]:
    """As attention and cache take them: normed, turned, scaled. Of a layer that borrows keys and values, queries alone."""
    a = model.attention_of(kind)
    lin: dict[str, Any] = {"kernel": "qkv_proj", "bias": a.qkv_bias}
    shapes = (("q", "heads", dims.d_k), ("k", dims.kv, dims.d_k), ("v", dims.kv, dims.d_v))
    q, *own = (
        linear(b, f"{n}_proj", h, ("hidden", *s), (*X[:2], *s), module=f"self_attn.{n}_proj", **lin)
        for n, *s in shapes[: 1 if kind.kv == "borrowed" else 2 if a.values_are_keys else 3]
    )
    made = {"q": q} if kind.kv == "borrowed" else {"q": q, "k": own[0], "v": own[-1]}
    turned = [n for n in made if n != "v"]
    if a.clip_qkv is not None:
        limit: dict[str, Any] = {"attrs": {"limit": a.clip_qkv}, "kernel": "rope", "module": "self_attn.clip"}
        made = {n: step(b, f"{n}_clip", "clip", (x,), **limit) for n, x in made.items()}
    normed = a.qk_norm != "none" and (kind.rope or not a.norm_if_turned)
    if normed and not a.norm_after_rope:
        made |= {n: _qk_norm(b, model, a, f"{n}_norm", made[n]) for n in turned}
    if kind.rope:
        made |= {n: _rope(b, model, kind, f"{n}_rope", made[n], dims.d_k) for n in turned}
    if normed and a.norm_after_rope:
        made |= {n: _qk_norm(b, model, a, f"{n}_norm", made[n]) for n in turned}
    if a.temperature and (a.temperature.turned_too or not kind.rope):
        made["q"] = _tempered(b, a.temperature, made["q"])
    if kind.kv == "borrowed":
        return made["q"], "", ""
    q, k, v = made.values()
    if a.value_norm:
        v = _plain_rms(b, model, "v_norm", v, kernel="rope", module="self_attn.v_norm")
    if a.value_scale != 1.0:
        v = step(b, "v_scaled", "scale", (v,), attrs={"c": a.value_scale}, kernel="rope", module="self_attn.v_scale")
    return q, k, v


def _tempered(b: BodyBuilder, t: Temperature, q: str) -> str:
    """Queries grow with their position."""
    attrs = {"strength": t.strength, "every": t.every, "shift": t.shift, "dim": "", "rotary_dim": None}
    at: dict[str, Any] = {"kernel": "rope", "module": "self_attn.temperature", "attrs": attrs}
    return b.op("q_tempered", "rope", (q,), b.tensors[q].dims, fn="temperature", **at)


def _cache(b: BodyBuilder, name: str, new: str) -> str:
    dims = tuple("kv_len" if d == "seq_len" else d for d in b.tensors[new].dims)
    return b.op(
        name, "cache", (new,), dims, kernel="attention", module=f"self_attn.{name}", tensor_kind="cache", dtype="kv"
    )


def _repeat(b: BodyBuilder, name: str, x: str, group: int) -> str:
    dims = tuple("heads" if d in KV_HEADS else d for d in b.tensors[x].dims)
    more: dict[str, Any] = {"tensor_kind": "index", "dtype": "index"} if b.tensors[x].kind == "index" else {}
    at: dict[str, Any] = {"kernel": "attention", "module": "self_attn.repeat_kv", "attrs": {"group": group}}
    return b.op(name, "repeat_heads", (x,), dims, **at, **more)


def _masked_scores(b: BodyBuilder, model: ModelSpec, kind: LayerKind, scores: str, scale: float) -> str:
    a, dims = model.attention_of(kind), b.tensors[scores].dims
    kw: dict[str, Any] = {"kernel": "attention", "module": "self_attn.softmax"}
    s = b.op("scaled", "elementwise", (scores,), dims, fn="scale", attrs={"c": scale}, **kw)
    if a.softcap:
        s = b.op("softcap", "elementwise", (s,), dims, fn="softcap", attrs={"c": a.softcap}, **kw)
    if model.position.kind == "alibi":
        s = b.op("alibi", "mask", (s,), dims, fn="alibi", attrs={"num_heads": a.num_heads}, **kw)
    attrs = {"window": a.sliding_window if kind.sliding else None, "chunk": a.chunk_size if kind.sliding else None}
    return b.op("masked", "mask", (s,), dims, fn="causal", attrs=attrs, **kw)


def _softmax_values(
    b: BodyBuilder, a: Attention, s: str, values: str, name: str, out: tuple[str, ...], split_kv: bool
) -> str:
    """Softmax over kv_len, then the weighted sum of `values`."""
    kw: dict[str, Any] = {"kernel": "attention", "module": "self_attn.softmax"}
    sinks = (b.weight("sinks", ("heads",), "vector"),) if a.sinks else ()
    if not split_kv:
        attrs = {"dim": "kv_len"}
        probs = b.op("probs", "softmax", (s, *sinks), b.tensors[s].dims, fn="sinks" if sinks else "", attrs=attrs, **kw)
        return b.op(name, "einsum", (probs, values), out, kernel="attention", module="self_attn.values")
    row = ("batch_size", "heads", "seq_len")
    top = b.op("row_max", "reduce", (s,), row, fn="max", attrs={"dim": "kv_len"}, dtype="fp32", **kw)
    if sinks:
        top = b.op("row_max_sink", "elementwise", (top, *sinks), row, fn="maximum", dtype="fp32", **kw)
    e = b.op("exps", "elementwise", (s, top), b.tensors[s].dims, fn="exp_sub", **kw)
    total = b.op("row_sum", "reduce", (e,), row, fn="sum", attrs={"dim": "kv_len"}, dtype="fp32", **kw)
    if sinks:
        sink = b.op("sink_exp", "elementwise", (*sinks, top), row, fn="exp_sub", dtype="fp32", **kw)
        total = b.op("row_total", "elementwise", (total, sink), row, fn="add", dtype="fp32", **kw)
    y = b.op(f"{name}_sum", "einsum", (e, values), out, kernel="attention", module="self_attn.values", dtype="fp32")
    return b.op(name, "elementwise", (y, total), out, kernel="attention_merge", module="self_attn.values", fn="div")


def _mla(b: BodyBuilder, model: ModelSpec, kind: LayerKind, phase: Phase, absorb: bool, h: str, split_kv: bool) -> str:
    mla = model.attention.mla
    assert mla is not None
    bs = ("batch_size", "seq_len")
    nope, rope = (*bs, "heads", "qk_nope"), (*bs, "heads", "qk_rope")
    if mla.q_lora_rank:
        qa = linear(
            b, "q_a_proj", h, ("hidden", "q_lora"), (*bs, "q_lora"), kernel="qkv_a_proj", module="self_attn.q_a_proj"
        )
        qa = _rms(b, model, "q_a_norm", qa, "q_lora", kernel="latent_norm", module="self_attn.q_a_layernorm")
        src, inner = qa, "q_lora"
    else:
        src, inner = h, "hidden"
    qn = linear(b, "q_nope", src, (inner, "heads", "qk_nope"), nope, kernel="q_b_proj", module="self_attn.q_b_proj")
    qr = linear(b, "q_pe", src, (inner, "heads", "qk_rope"), rope, kernel="q_b_proj", module="self_attn.q_b_proj")
    c = linear(b, "kv_a", h, ("hidden", "kv_lora"), (*bs, "kv_lora"), kernel="qkv_a_proj", module="self_attn.kv_a_proj")
    kr = linear(
        b, "k_pe", h, ("hidden", "qk_rope"), (*bs, "qk_rope"), kernel="qkv_a_proj", module="self_attn.kv_a_proj"
    )
    c = _rms(b, model, "kv_a_norm", c, "kv_lora", kernel="latent_norm", module="self_attn.kv_a_layernorm")
    if kind.rope:
        qr, kr = _rope(b, model, kind, "q_rope", qr, "qk_rope"), _rope(b, model, kind, "k_rope", kr, "qk_rope")
    chosen = None
    if model.attention.indexer:
        chosen = picked_positions(b, model, kind, h, src) if kind.picks == "own" else "picked_positions"
    c, kr = _cache(b, "c_cache", c), _cache(b, "pe_cache", kr)
    # Kernels that read picked positions only read latents, in prefill too.
    absorbed = (phase == "decode" or model.attention.indexer is not None) and absorb
    ctx = (_mla_absorbed if absorbed else _mla_expanded)(b, model, kind, qn, qr, c, kr, split_kv, chosen)
    if model.attention.output_gate:
        ctx = _output_gated(b, model.attention, h, ctx, "qkv_a_proj")
    return linear(
        b,
        "o_proj",
        ctx,
        ("heads", "v_dim", "hidden"),
        X,
        kernel="o_proj",
        module="self_attn.o_proj",
        bias=model.attention.out_bias,
    )


def sizes_of_rope(model: ModelSpec) -> int:
    """Dims of a key that rotate in latent attention."""
    assert model.attention.mla is not None
    return model.attention.mla.qk_rope_head_dim


def picked_positions(b: BodyBuilder, model: ModelSpec, kind: LayerKind, h: str, latent: str) -> str:
    """The indexer: [batch_size, seq_len, index_k] positions that attention may read, -1 where there are fewer.

    Every rank has all of it, as in the engines: its weights are small, and what it picks holds for all heads.
    """
    ix = model.attention.indexer
    assert ix is not None
    bs, dims = ("batch_size", "seq_len"), ("batch_size", "index_heads", "seq_len", "kv_len")
    project: dict[str, Any] = {"kernel": "index_proj", "module": "self_attn.indexer.proj"}
    score: dict[str, Any] = {"kernel": "indexer", "module": "self_attn.indexer.scores"}
    inner = b.tensors[latent].dims[-1]
    q = linear(b, "index_q", latent, (inner, "index_heads", "index_dim"), (*bs, "index_heads", "index_dim"), **project)
    k = linear(b, "index_k", h, ("hidden", "index_dim"), (*bs, "index_dim"), **project)
    w = linear(b, "index_w", h, ("hidden", "index_heads"), (*bs, "index_heads"), **project)
    scales = [b.weight(f"index_k_norm.{x}", ("index_dim",), "vector") for x in ("weight", "bias")]
    attrs: dict[str, Any] = {"eps": 1e-6, "offset": 0.0}
    norm: dict[str, Any] = {"kernel": "index_rope", "module": "self_attn.indexer.k_norm"}
    k = b.op("index_k_norm", "norm", (k, *scales), (*bs, "index_dim"), fn="layernorm", attrs=attrs, **norm)
    if kind.rope:
        turns = {"rotary_dim": sizes_of_rope(model), "interleaved": ix.interleaved}
        q, k = (_rope(b, model, kind, f"{x}_rope", x, "index_dim", **turns) for x in (q, k))
    keys = b.op(
        "index_cache",
        "cache",
        (k,),
        ("batch_size", "kv_len", "index_dim"),
        tensor_kind="cache",
        dtype="index_key",
        **score,
    )
    s = b.op("index_scores", "einsum", (q, keys), dims, dtype="fp32", **score)
    s = step(b, "index_relu", "relu", (s,), dtype="fp32", **score)
    # The factors are positive, so that they may follow the relu.
    w = step(
        b, "index_w_scaled", "scale", (w,), attrs={"c": (ix.num_heads * ix.head_dim) ** -0.5}, dtype="fp32", **score
    )
    s = b.op("index_sum", "einsum", (s, w), (*bs, "kv_len"), dtype="fp32", **score)
    s = b.op("index_masked", "mask", (s,), (*bs, "kv_len"), fn="causal", attrs={"window": None, "chunk": None}, **score)
    return b.op(
        "picked_positions", "select", (s,), (*bs, "index_k"), attrs={"top_k": ix.top_k}, tensor_kind="index",
        dtype="index", **score,
    )  # fmt: skip


def picked_blocks(b: BodyBuilder, model: ModelSpec, kind: LayerKind, dims: HeadDims, h: str) -> str:
    """The indexer of every KV head: [batch_size, kv_heads, seq_len, index_k] blocks of positions that its queries may read, -1
    where there are fewer. Its queries lie where the KV heads are, so that every rank picks for its own."""
    ix = model.attention.indexer
    assert ix is not None and ix.block
    bs, wide = X[:2], ("batch_size", dims.kv, "seq_len", "kv_len")
    project: dict[str, Any] = {"kernel": "qkv_proj", "module": "self_attn.indexer.proj"}
    score: dict[str, Any] = {"kernel": "indexer", "module": "self_attn.indexer.scores"}
    q = linear(b, "index_q", h, ("hidden", dims.kv, "index_dim"), (*bs, dims.kv, "index_dim"), **project)
    k = linear(b, "index_k", h, ("hidden", "index_dim"), (*bs, "index_dim"), **project)
    at: dict[str, Any] = {"kernel": "rope", "module": "self_attn.indexer.norm"}
    q, k = (_rms(b, model, f"{x}_norm", x, "index_dim", **at) for x in (q, k))
    if kind.rope:
        turns = {"rotary_dim": model.position.rotary_dim, "interleaved": ix.interleaved}
        q, k = (
            _rope(b, model, kind, f"{n}_rope", x, "index_dim", **turns) for n, x in (("index_q", q), ("index_k", k))
        )
    keys = b.op(
        "index_cache", "cache", (k,), ("batch_size", "kv_len", "index_dim"), tensor_kind="cache", dtype="kv", **score
    )
    s = b.op("index_scores", "einsum", (q, keys), wide, dtype="fp32", **score)
    s = b.op("index_masked", "mask", (s,), wide, fn="causal", attrs={"window": None, "chunk": None}, **score)
    s = b.op("block_scores", "block_max", (s,), wide, dtype="fp32", attrs={"block": ix.block}, **score)
    if ix.local_blocks:
        attrs = {"block": ix.block, "count": ix.local_blocks}
        s = b.op("block_scores_local", "mask", (s,), wide, fn="local_blocks", dtype="fp32", attrs=attrs, **score)
    return b.op(
        "picked_blocks", "select", (s,), ("batch_size", dims.kv, "seq_len", "index_k"), tensor_kind="index", dtype="index",
        attrs={"top_k": ix.top_k, "block": ix.block}, **score,
    )  # fmt: skip


def _mla_scores(
    b: BodyBuilder, model: ModelSpec, kind: LayerKind, nope_scores: str, qr: str, kr: str, chosen: str | None
) -> str:
    mla = model.attention.mla
    assert mla is not None
    dims = b.tensors[nope_scores].dims
    pe = b.op("scores_pe", "einsum", (qr, kr), dims, kernel="attention", module="self_attn.scores")
    s = b.op("scores", "elementwise", (nope_scores, pe), dims, kernel="attention", module="self_attn.scores", fn="add")
    scale = model.attention.scale or (mla.qk_nope_head_dim + mla.qk_rope_head_dim) ** -0.5
    s = _masked_scores(b, model, kind, s, scale)
    return s if chosen is None else _only_picked(b, model.attention, s, chosen)


def _only_picked(b: BodyBuilder, a: Attention, s: str, chosen: str) -> str:
    """Scores of the positions, or blocks of them, that an indexer picked."""
    attrs = {"top_k": a.indexer.top_k, "block": a.indexer.block or 1} if a.indexer else {}
    at: dict[str, Any] = {"kernel": "attention", "module": "self_attn.softmax"}
    return b.op("picked", "mask", (s, chosen), b.tensors[s].dims, fn="selected", attrs=attrs, **at)


def _mla_expanded(
    b: BodyBuilder, model: ModelSpec, kind: LayerKind, qn: str, qr: str, c: str, kr: str, split_kv: bool,
    chosen: str | None,
) -> str:  # fmt: skip
    """Prefill: expand the latent into per-head keys and values, then ordinary attention."""
    bt, dims = ("batch_size", "kv_len"), ("batch_size", "heads", "seq_len", "kv_len")
    uk = b.weight("k_up.weight", ("kv_lora", "heads", "qk_nope"))
    uv = b.weight("v_up.weight", ("kv_lora", "heads", "v_dim"))
    k = b.op("k_up", "einsum", (c, uk), (*bt, "heads", "qk_nope"), kernel="kv_b_proj", module="self_attn.kv_b_proj")
    v = b.op("v_up", "einsum", (c, uv), (*bt, "heads", "v_dim"), kernel="kv_b_proj", module="self_attn.kv_b_proj")
    s = b.op("scores_nope", "einsum", (qn, k), dims, kernel="attention", module="self_attn.scores")
    s = _mla_scores(b, model, kind, s, qr, kr, chosen)
    return _softmax_values(
        b, model.attention, s, v, "attn_values", ("batch_size", "seq_len", "heads", "v_dim"), split_kv
    )


def _mla_absorbed(
    b: BodyBuilder, model: ModelSpec, kind: LayerKind, qn: str, qr: str, c: str, kr: str, split_kv: bool,
    chosen: str | None,
) -> str:  # fmt: skip
    """Decode: fold W_UK into the query and W_UV into the output, so that attention reads the latent only."""
    bs, dims = ("batch_size", "seq_len"), ("batch_size", "heads", "seq_len", "kv_len")
    uk = b.weight("k_up.weight", ("kv_lora", "heads", "qk_nope"))
    uv = b.weight("v_up.weight", ("kv_lora", "heads", "v_dim"))
    q = b.op(
        "q_absorbed", "einsum", (qn, uk), (*bs, "heads", "kv_lora"), kernel="q_absorb", module="self_attn.kv_b_proj"
    )
    s = b.op("scores_nope", "einsum", (q, c), dims, kernel="attention", module="self_attn.scores")
    s = _mla_scores(b, model, kind, s, qr, kr, chosen)
    lat = _softmax_values(b, model.attention, s, c, "attn_latent", (*bs, "heads", "kv_lora"), split_kv)
    return b.op(
        "attn_values", "einsum", (lat, uv), (*bs, "heads", "v_dim"), kernel="v_absorb", module="self_attn.kv_b_proj"
    )


def _parallel_block(b: BodyBuilder, model: ModelSpec, kind: LayerKind, phase: Phase, absorb: bool, attend: Any) -> Body:
    h = _norm(b, model, "input_norm", "x", kernel="input_norm", module="input_layernorm")
    h2 = h
    if model.parallel_norms == 2:
        h2 = _norm(b, model, "ffn_norm", "x", kernel="input_norm", module="mlp_layernorm")
    attn = attend(b, model, kind, phase, absorb, h)
    out = _ffn(b, model, kind, h2, phase)
    both = b.op("branch_add", "elementwise", (attn, out), X, kernel="ffn_add", module="branch_add", fn="add")
    x = _residual(b, model, "residual", "x", both, kernel="ffn_add", module="residual")
    return b.build(_layer_scaled(b, model, x))


# ------------------------------------------------------------------------------------------------------------ FFN and MoE


def _mlp_and_experts(b: BodyBuilder, model: ModelSpec, h: str, x: str, phase: Phase) -> str:
    """The dense MLP on `h` and the experts on `x`, each normed on its own side."""
    mlp = _dense(b, model, h)
    mlp = _norm(b, model, "post_mlp_norm", mlp, kernel="mlp_norm", module="post_mlp_layernorm")
    sent = _norm(b, model, "expert_norm", x, kernel="expert_norm", module="pre_experts_layernorm")
    out = _moe(b, model, sent, phase, gate=x)
    out = _norm(b, model, "post_expert_norm", out, kernel="ffn_add", module="post_experts_layernorm")
    return step(b, "mlp_expert_add", "add", (mlp, out), kernel="ffn_add", module="mlp.expert_add")


def _ffn(b: BodyBuilder, model: ModelSpec, kind: LayerKind, h: str, phase: Phase) -> str:
    if kind.ffn != "moe":
        wide = kind.kv == "borrowed" and model.borrower_mlp_size is not None
        return _dense(b, model, h, "wide_ffn" if wide else "ffn")
    assert model.moe is not None
    out, factor = _moe(b, model, h, phase), model.moe.output_scale
    if factor != 1.0:
        out = step(b, "moe_scaled", "scale", (out,), attrs={"c": factor}, kernel="moe_add", module="mlp.scale")
    if model.moe.output_norm:
        out = _norm(b, model, "moe_norm", out, kernel="moe_norm", module="mlp.post_mlp_layernorm")
    return out


def _dense(b: BodyBuilder, model: ModelSpec, h: str, dim: str = "ffn") -> str:
    m = model.mlp
    if m is None:
        raise Refused(f"{model.name}: layer is dense, but no intermediate_size is known; state intermediate_size")
    out = ("batch_size", "seq_len", dim)
    kw: dict[str, Any] = {"gated": m.gated, "activation": m.activation, "bias": m.bias, "module": "mlp", "prefix": ""}
    kw["scales"] = (m.gate_scale, m.out_scale)
    if m.inner_norm:
        at: dict[str, Any] = {"count": m.intermediate_size, "kernel": "inner_norm", "module": "mlp.inner_norm"}
        kw["normed"] = lambda x: _wide_rms(b, model, "inner_norm", x, **at)
    return _mlp(b, h, dim, out, **kw)


def _mlp(
    b: BodyBuilder,
    h: str,
    dim: str,
    mid: tuple[str, ...],
    *,
    gated: bool,
    activation: str,
    bias: bool,
    module: str,
    prefix: str,
    normed: Callable[[str], str] | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
) -> str:
    """Gate and up (or up alone), activation, a norm if there is one, down; constants on the gate and on what goes into down."""
    p, kernels = prefix, {"up": f"{prefix}gate_up_proj", "act": f"{prefix}act", "down": f"{prefix}down_proj"}
    up = linear(b, f"{p}up_proj", h, ("hidden", dim), mid, kernel=kernels["up"], module=f"{module}.up_proj", bias=bias)
    src = up
    if gated:
        src = linear(
            b, f"{p}gate_proj", h, ("hidden", dim), mid, kernel=kernels["up"], module=f"{module}.gate_proj", bias=bias
        )
    src = scaled(b, f"{p}gate_scaled", src, scales[0], kernel=kernels["act"], module=f"{module}.act_fn")
    bends = tuple(b.weight(f"{p}act.{n}", (), "vector") for n in BENDS) if activation == "xielu" else ()
    a = step(b, f"{p}act", activation, (src, *bends), kernel=kernels["act"], module=f"{module}.act_fn")
    if activation == "swiglu_oai":
        up = step(b, f"{p}up_clamp", "clamp_add_one", (up,), kernel=kernels["act"], module=f"{module}.act_fn")
    if gated:
        a = b.op(
            f"{p}act_mul", "elementwise", (a, up), mid, kernel=kernels["act"], module=f"{module}.act_mul", fn="mul"
        )
    a = scaled(b, f"{p}act_scaled", a, scales[1], kernel=kernels["act"], module=f"{module}.act_mul")
    a = normed(a) if normed else a
    return linear(
        b, f"{p}down_proj", a, (dim, "hidden"), X, kernel=kernels["down"], module=f"{module}.down_proj", bias=bias
    )


def _router(b: BodyBuilder, model: ModelSpec, h: str) -> tuple[str, str]:
    """Gate scores → chosen experts (`expert_ids`) and their weights, both [batch_size, seq_len, top_k]."""
    m = model.moe
    assert m is not None
    if m.router_norm:
        at: dict[str, Any] = {"kernel": "router_norm", "module": "mlp.gate.norm"}
        h = rms(b, "router_norm", h, "hidden", eps=model.norm_eps, **at)
        h = step(b, "router_scaled", "scale", (h,), attrs={"c": model.hidden_size**-0.5}, **at)
    # Where experts have copies, the gate scores experts and the slots that hold them are another dim.
    scored = "gate_experts" if m.redundant else "experts"
    wide, narrow = ("batch_size", "seq_len", scored), ("batch_size", "seq_len", "top_k")
    kw: dict[str, Any] = {"kernel": "gate_topk", "module": "mlp.gate"}
    logits = linear(
        b,
        "router",
        h,
        ("hidden", scored),
        wide,
        kernel="router",
        module="mlp.gate",
        bias=m.router_bias,
        dtype="vector",
    )
    scores = logits
    if m.gate == "softmax_topk":
        scores = b.op("gate_scores", "softmax", (logits,), wide, dtype="fp32", attrs={"dim": scored}, **kw)
    elif m.gate == "sigmoid_topk":
        scores = b.op("gate_scores", "elementwise", (logits,), wide, fn="sigmoid", dtype="fp32", **kw)
    choice = scores
    if m.correction_bias:
        wb = b.weight("gate_correction_bias", (scored,), "vector")
        choice = b.op("gate_choice", "elementwise", (scores, wb), wide, fn="add", dtype="fp32", **kw)
    best = 2 if m.gate == "sigmoid_topk" else 1
    attrs = {"top_k": m.top_k, "n_group": m.n_group, "topk_group": m.topk_group, "group_score_of": best}
    ids = b.op("expert_ids", "topk", (choice,), narrow, tensor_kind="index", dtype="index", attrs=attrs, **kw)
    mixer: dict[str, Any] = {"fn": "sparsemixer", "attrs": {"jitter": m.jitter}} if m.gate == "sparsemixer" else {}
    w = b.op("expert_scores", "gather_scores", (scores, ids), narrow, dtype="fp32", **mixer, **kw)
    if m.gate == "topk_sigmoid":
        w = step(b, "expert_gates", "sigmoid", (w,), dtype="fp32", **kw)
    if m.gate == "sparsemixer":
        pass  # its weights need no further norm
    elif m.gate == "topk_softmax":
        w = b.op("expert_weights", "softmax", (w,), narrow, dtype="fp32", attrs={"dim": "top_k"}, **kw)
    elif m.norm_topk_prob:
        w = b.op("expert_weights", "renormalise", (w,), narrow, dtype="fp32", attrs={"dim": "top_k"}, **kw)
    if m.routed_scaling_factor != 1.0:
        w = b.op(
            "expert_weights_scaled",
            "elementwise",
            (w,),
            narrow,
            fn="scale",
            dtype="fp32",
            attrs={"c": m.routed_scaling_factor},
            **kw,
        )
    if m.expert_scale:
        scale = b.weight("expert_scale", (scored,), "vector")
        scale = b.op("expert_scales", "gather_scores", (ids, scale), narrow, dtype="fp32", fn="of_experts", **kw)
        w = step(b, "expert_weights_by_expert", "mul", (w, scale), dtype="fp32", **kw)
    if m.redundant:
        attrs = {"num_experts": m.num_experts, "num_slots": m.num_slots}
        ids = b.op(
            "expert_slots", "assign_copies", (ids,), narrow, tensor_kind="index", dtype="index", attrs=attrs, **kw
        )
    return ids, w


def _moe(b: BodyBuilder, model: ModelSpec, h: str, phase: Phase, gate: str = "") -> str:
    """Experts on `h`; the router reads `gate`, `h` too where nothing else is said."""
    m = model.moe
    assert m is not None
    ids, weights = _router(b, model, gate or h)
    nodes, sent, inner = hierarchical(m, phase), h, "moe_latent" if m.latent_size else "hidden"
    latent: dict[str, Any] = {"kernel": "latent_proj", "module": "mlp.latent_proj"}
    if m.latent_size:
        sent = linear(b, "latent_down", h, ("hidden", inner), (*X[:2], inner), **latent)
    if nodes:
        sent, ids, weights = to_nodes(b, model, sent, ids, weights)
    tok = ("experts", "batch_size", "seq_len")
    wide, mid = (*tok, inner), (*tok, "expert_ffn")
    send = (sent, ids, weights) if m.input_scaled else (sent, ids)
    x = b.op(
        "dispatch",
        "dispatch",
        send,
        wide,
        kernel="dispatch",
        module="mlp.dispatch",
        routed=True,
        fn="scaled" if m.input_scaled else "",
    )
    lin: dict[str, Any] = {"dtype": "expert_matrix", "routed": True, "bias": m.expert_bias}
    up = linear(
        b,
        "expert_up",
        x,
        ("experts", inner, "expert_ffn"),
        mid,
        kernel="expert_gate_up",
        module="mlp.experts.up_proj",
        **lin,
    )
    src = up
    if m.gated:
        src = linear(
            b,
            "expert_gate",
            x,
            ("experts", inner, "expert_ffn"),
            mid,
            kernel="expert_gate_up",
            module="mlp.experts.gate_proj",
            **lin,
        )
    act: dict[str, Any] = {"kernel": "expert_act", "routed": True}
    a = b.op("expert_act", "elementwise", (src,), mid, module="mlp.experts.act_fn", fn=m.activation, **act)
    if m.gated:
        if m.activation == "swiglu_oai":
            up = b.op(
                "expert_up_clamp", "elementwise", (up,), mid, module="mlp.experts.act_fn", fn="clamp_add_one", **act
            )
        a = b.op("expert_act_mul", "elementwise", (a, up), mid, module="mlp.experts.act_mul", fn="mul", **act)
    y = linear(
        b,
        "expert_down",
        a,
        ("experts", "expert_ffn", inner),
        wide,
        kernel="expert_down",
        module="mlp.experts.down_proj",
        **lin,
    )
    back = (y, ids) if m.input_scaled else (y, ids, weights)
    name, dims = ("combine_nodes", (*NODE_TOKENS, inner)) if nodes else ("combine", (*X[:2], inner))
    fn = "unweighted" if m.input_scaled else ""
    out = b.op(name, "combine", back, dims, kernel=name, module="mlp.combine", fn=fn, routed=nodes)
    if nodes:
        out = from_nodes(b, out)
    if m.latent_size:
        out = linear(b, "latent_up", out, (inner, "hidden"), X, **latent)
    if not m.shared_intermediate_size:
        return out
    shared = _mlp(
        b, h, "shared_ffn", ("batch_size", "seq_len", "shared_ffn"), gated=m.gated,
        activation=m.activation, bias=False,
        module="mlp.shared_expert", prefix="shared_",
    )  # fmt: skip
    if m.shared_gate:
        g = linear(
            b,
            "shared_gate",
            h,
            ("hidden",),
            ("batch_size", "seq_len"),
            kernel="router",
            module="mlp.shared_expert_gate",
            dtype="vector",
        )
        kw: dict[str, Any] = {"kernel": "moe_add", "module": "mlp.shared_expert_gate"}
        g = b.op("shared_gate_sigmoid", "elementwise", (g,), ("batch_size", "seq_len"), fn="sigmoid", **kw)
        shared = b.op("shared_gated", "elementwise", (shared, g), X, fn="mul", **kw)
    return b.op("moe_add", "elementwise", (out, shared), X, kernel="moe_add", module="mlp.shared_add", fn="add")
