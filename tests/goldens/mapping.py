"""Hugging Face parameters → our weights: names, transposes, and the ways families pack Q, K, V and gate, up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tests.goldens.seeded import draw
from tools.graph.build import model_sizes
from tools.graph.ir import Tensor
from tools.oracle.execute import Weights
from tools.oracle.prove import reference_bodies
from tools.spec.model import ModelSpec

Array = np.ndarray

PREFIXES = (
    "model.layers.{}.",
    "transformer.h.{}.",
    "gpt_neox.layers.{}.",
    "model.decoder.layers.{}.",
    "transformer.blocks.{}.",
    "biogpt.layers.{}.",
)
ATTENTION = (
    "self_attn.",
    "norm_attn_norm.attn.",
    "attn.attention.",
    "attn.",
    "self_attention.",
    "attention.",
    "mixer.",
)
OUTSIDE = {
    "embed_tokens": (
        "model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight",
        "transformer.word_embeddings.weight", "model.decoder.embed_tokens.weight", "model.embeddings.weight",
        "biogpt.embed_tokens.weight", "transformer.tokens_embed.weight",
    ),
    "embed_positions": (
        "transformer.wpe.weight", "model.decoder.embed_positions.weight", "biogpt.embed_positions.weight",
        "transformer.positions_embed.weight",
    ),
    "embed_norm": ("transformer.word_embeddings_layernorm",),
    "final_norm": (
        "model.norm", "transformer.ln_f", "gpt_neox.final_layer_norm", "model.final_layernorm",
        "model.decoder.final_layer_norm", "transformer.norm_f", "model.norm_f", "model.embedding_norm",
        "biogpt.layer_norm",
    ),
    "embed_tokens_per_layer": ("model.embed_tokens_per_layer.weight",),
    "layer_inputs_proj": ("model.per_layer_model_projection",),
    "layer_inputs_norm": ("model.per_layer_projection_norm",),
    "lm_head": ("lm_head.weight",),
    "lm_head_bias": ("lm_head.bias",),
}  # fmt: skip
O_PROJ = ("o_proj", "out_proj", "dense", "c_proj")
UP = ("up_proj", "w3", "c_fc", "fc_in", "fc1", "dense_h_to_4h")
DOWN = ("down_proj", "w2", "c_proj", "fc_out", "fc2", "dense_4h_to_h", "output_linear")
MLP = ("mlp.", "feed_forward.", "ffn.", "mixer.", "shared_mlp.", "")
SHARED = (
    "mlp.shared_expert.", "mlp.shared_experts.", "feed_forward.shared_expert.", "mixer.shared_experts.", "shared_mlp.",
    "mlp.shared_mlp.",
)  # fmt: skip
EXPERTS = ("mlp.experts.", "experts.", "feed_forward.experts.", "mixer.experts.", "block_sparse_moe.experts.")
ROUTER = (
    "mlp.gate.",
    "router.proj.",
    "mlp.router.",
    "feed_forward.router.",
    "feed_forward.gate.",
    "mixer.gate.",
    "mlp.gate.wg.",
    "mlp.router.gate.",
    "ffn.router.layer.",
    "block_sparse_moe.router.",
)
CORRECTION = (
    "mlp.gate.e_score_correction_bias",
    "mlp.e_score_correction_bias",
    "mlp.gate.moe_statics.e_score_correction_bias",
    "mixer.gate.e_score_correction_bias",
    "mlp.expert_bias",
    "feed_forward.expert_bias",
)
CONV1D = frozenset({"gpt2", "openai-gpt"})
"""Families that store linear weights as [in, out]."""
EXPERTS_IN_OUT = frozenset({"gpt_oss", "llama4_text", "aria_text"})
INNER_NORMS = {
    "moe_norm": "mlp.post_mlp_layernorm", "context_norm": "self_attn.attn_sub_norm", "inner_norm": "mlp.ffn_sub_norm",
}  # fmt: skip


class Checkpoint:
    """Parameters by HF name, drawn on first use; remembers which were read."""

    def __init__(self, shapes: Mapping[str, Sequence[int]], family: str, model: ModelSpec):
        self.shapes, self.family, self.model = shapes, family, model
        self.read: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self.shapes

    def get(self, name: str) -> Array:
        self.read.add(name)
        return draw(name, tuple(self.shapes[name]))

    def first(self, names: Sequence[str]) -> str:
        return next((n for n in names if n in self.shapes), "")

    def linear(self, name: str) -> Array:
        """Weight as [in, out]."""
        w = self.get(name)
        return w if self.family in CONV1D else w.T


def our_weights(c: Checkpoint) -> Weights:
    """Every weight of the unpartitioned graph, by (layer or None, name)."""
    sizes = model_sizes(c.model)
    out: dict[tuple[int | None, str], Array] = {}
    for layer, body in reference_bodies(c.model, "prefill"):
        for t in body.weights():
            key = (None if t.dtype == "embedding" else layer, t.name)
            if key in out:
                continue
            x = outside(c, t.name) if layer is None else inside(c, layer, t)
            shape = tuple(sizes[d] for d in t.dims)
            if "padded_vocab" in t.dims:
                pad = shape[t.dims.index("padded_vocab")] - x.shape[0]
                x = np.concatenate([x, np.zeros((pad, *x.shape[1:]))])
            out[key] = x.reshape(shape)
    return out


def outside(c: Checkpoint, name: str) -> Array:
    head, _, kind = name.partition(".")
    found = c.first(OUTSIDE[head]) or c.first([f"{n}.{kind}" for n in OUTSIDE[head]])
    if not found:
        raise KeyError(f"no HF parameter for {name}")
    return c.linear(found) if head.endswith("_proj") else c.get(found)


def inside(c: Checkpoint, layer: int, t: Tensor) -> Array:
    """One weight of one layer; the first rule that knows its name answers."""
    prefix = next(p.format(layer) for p in PREFIXES if any(n.startswith(p.format(layer)) for n in c.shapes))
    head, _, kind = t.name.partition(".")
    for rule in (
        index_weight,
        linear_weight,
        gated_query_weight,
        attention_weight,
        mla_weight,
        norm_weight,
        expert_weight,
        mlp_weight,
    ):
        found = rule(c, prefix, head, kind)
        if found is not None:
            return found
    raise KeyError(f"no HF parameter for layer {layer} {t.name}")


# ------------------------------------------------------------------------------------------------------------ attention


def attention_weight(c: Checkpoint, prefix: str, head: str, kind: str) -> Array | None:
    a = next((prefix + x for x in ATTENTION if any(n.startswith(prefix + x) for n in c.shapes)), prefix)
    if head == "sinks":
        return c.get(f"{a}sinks")
    if head in ("q_norm", "k_norm"):
        names = (head, f"{'query' if head[0] == 'q' else 'key'}_layernorm", f"{head[0]}_layernorm")
        return c.get(c.first([f"{a}{n}.{kind}" for n in names]))
    if head == "o_proj":
        name = c.first([f"{a}{n}.{kind}" for n in O_PROJ])
        return c.linear(name) if kind == "weight" else c.get(name)
    if head not in ("q_proj", "k_proj", "v_proj"):
        return None
    if c.has(f"{a}{head}.{kind}"):
        w = c.linear(f"{a}{head}.{kind}") if kind == "weight" else c.get(f"{a}{head}.{kind}")
        return _halves_swapped(c, w) if c.family == "nanochat" and head != "v_proj" else w
    return fused_qkv(c, a, head, kind)


def _halves_swapped(c: Checkpoint, w: Array) -> Array:
    """NanoChat turns (b, a) where others turn (a, b): the halves of each head change places."""
    x = w.reshape(*w.shape[:-1], -1, 2, c.model.attention.head_dim // 2)
    return x[..., ::-1, :].reshape(w.shape)


def fused_qkv(c: Checkpoint, a: str, head: str, kind: str) -> Array | None:
    """[hidden, heads, d_k] (or [heads, d_k]) out of one fused matrix."""
    name = c.first([f"{a}{n}.{kind}" for n in ("qkv_proj", "c_attn", "Wqkv", "query_key_value")])
    if not name:
        return None
    m, which = c.model.attention, "qkv".index(head[0])
    w = c.linear(name) if kind == "weight" else c.get(name)
    heads, kv, d = m.num_heads, m.num_kv_heads, m.head_dim
    if c.family == "codegen":  # in four parts, for four TPU cores: queries, values and keys of some heads each
        parts = w.reshape(*w.shape[:-1], 4, 3, heads // 4, d)[..., "qvk".index(head[0]), :, :]
        return parts.reshape(*w.shape[:-1], heads, d)
    rows = w.reshape(*w.shape[:-1], -1, d)
    if name.endswith(f"query_key_value.{kind}"):
        return _interleaved(rows, c.family, heads, kv, which)
    start = (0, heads, heads + kv)[which]
    return rows[..., start : start + (heads if which == 0 else kv), :]


def _interleaved(rows: Array, family: str, heads: int, kv: int, which: int) -> Array:
    """BLOOM, GPT-NeoX: q, k, v per head. Falcon: the query heads of a group, then its k and v."""
    if family in ("bloom", "gpt_neox", "persimmon"):
        return rows.reshape(*rows.shape[:-2], heads, 3, rows.shape[-1])[..., which, :]
    group = heads // kv
    grouped = rows.reshape(*rows.shape[:-2], kv, group + 2, rows.shape[-1])
    if which:
        return grouped[..., group + which - 1, :]
    return grouped[..., :group, :].reshape(*rows.shape[:-2], heads, rows.shape[-1])


def mla_weight(c: Checkpoint, prefix: str, head: str, kind: str) -> Array | None:
    mla = c.model.attention.mla
    if mla is None:
        return None
    a, heads, nope = f"{prefix}self_attn.", c.model.attention.num_heads, mla.qk_nope_head_dim
    if head in ("q_a_norm", "kv_a_norm"):
        return c.get(f"{a}{head[:-5]}_layernorm.weight")
    if head == "q_a_proj":
        return c.linear(f"{a}q_a_proj.weight")
    if head in ("q_nope", "q_pe"):
        q = c.linear(c.first([f"{a}q_b_proj.weight", f"{a}q_proj.weight"]))
        q = q.reshape(q.shape[0], heads, -1)
        return q[..., :nope] if head == "q_nope" else q[..., nope:]
    if head in ("kv_a", "k_pe"):
        kv = c.linear(f"{a}kv_a_proj_with_mqa.weight")
        return kv[:, : mla.kv_lora_rank] if head == "kv_a" else kv[:, mla.kv_lora_rank :]
    if head in ("k_up", "v_up"):
        up = c.linear(f"{a}kv_b_proj.weight").reshape(mla.kv_lora_rank, heads, -1)
        return up[..., :nope] if head == "k_up" else up[..., nope:]
    return None


# ----------------------------------------------------------------------------------------------------- linear attention


def gated_query_weight(c: Checkpoint, prefix: str, head: str, kind: str) -> Array | None:
    """Queries and the gate of the output, packed head by head."""
    if not c.model.attention.output_gate or head not in ("q_proj", "q_gate"):
        return None
    own = c.first([f"{prefix}self_attn.{n}.{kind}" for n in ("gate_proj", "g_proj")])
    if own:
        return c.linear(own) if head == "q_gate" else None
    w = c.linear(f"{prefix}self_attn.q_proj.{kind}")
    w = w.reshape(w.shape[0], c.model.attention.num_heads, 2, -1)
    return w[:, :, 0 if head == "q_proj" else 1]


def index_weight(c: Checkpoint, prefix: str, head: str, kind: str) -> Array | None:
    names = {
        "index_q": ("wq_b", "q_proj"), "index_k": ("wk", "k_proj"), "index_w": ("weights_proj",),
        "index_k_norm": ("k_norm",), "index_q_norm": ("q_norm",),
    }  # fmt: skip
    if head not in names:
        return None
    name = c.first([f"{prefix}self_attn.indexer.{n}.{kind}" for n in names[head]])
    return c.get(name) if head.endswith("norm") else c.linear(name)


def linear_weight(c: Checkpoint, prefix: str, head: str, kind: str) -> Array | None:
    a = c.model.linear
    if a is None or not head.startswith("lin_"):
        return None
    name = head.removeprefix("lin_")
    bases = [prefix + x for x in ("linear_attn.", "mamba.", "mixer.", "conv.", "self_attn.")]
    base = next(p for p in bases if any(n.startswith(p) for n in c.shapes))
    if a.kind == "mamba1":
        return _mamba1(c, base, name, kind)
    if a.kind == "short_conv":
        return _short_conv(c, base, name, kind)
    if a.kind == "mamba2" and name not in ("A_log", "dt_bias", "norm", "o"):
        return _mamba2(c, base, name, kind)
    if name.endswith("_conv"):
        return _channels(c.get(f"{base}conv1d.weight")[:, 0, :].T, c, "qkv".index(name[0]))
    if name in ("A_log", "dt_bias"):
        return c.get(c.first([f"{base}{name}", f"{base}forget_gate.{name}"]))
    if name == "norm":
        return c.get(c.first([f"{base}norm.weight", f"{base}o_norm.weight"]))
    if name == "o":
        return c.linear(c.first([f"{base}out_proj.weight", f"{base}o_proj.weight"]))
    name = "g" if name == "z" and a.kind == "kda" else name
    plain = c.first(
        [f"{base}{p}{name}{s}" for p in ("", "in_proj_", "forget_gate.") for s in ("_proj.weight", ".weight")]
    )
    if plain:
        return c.linear(plain)
    if name in ("q", "k", "v") and c.has(f"{base}in_proj_qkv.weight"):
        return _channels(c.linear(f"{base}in_proj_qkv.weight"), c, "qkv".index(name))
    return _packed(c, base, name)


def _short_conv(c: Checkpoint, base: str, name: str, kind: str) -> Array:
    """One input projection in the order b, c, x."""
    if name == "v_conv":
        w = c.get(f"{base}conv.{kind}")
        return w[:, 0, :].T if kind == "weight" else w
    full = f"{base}{'out' if name == 'o' else 'in'}_proj.{kind}"
    w = c.linear(full) if kind == "weight" else c.get(full)
    return w if name == "o" else np.split(w, 3, axis=-1)["bcv".index(name)]


def _mamba1(c: Checkpoint, base: str, name: str, kind: str) -> Array:
    """One input projection to channels and gate; the step size's bias is its projection's."""
    plain = {"A_log": "A_log", "D": "D", "dt_bias": "dt_proj.bias", "dt_norm": "dt_layernorm.weight",
             "k_norm": "b_layernorm.weight", "q_norm": "c_layernorm.weight"}  # fmt: skip
    if name in plain:
        return c.get(base + plain[name])
    if name == "v_conv":
        w = c.get(f"{base}conv1d.{kind}")
        return w[:, 0, :].T if kind == "weight" else w
    named = {"x": "x_proj", "dt_proj": "dt_proj", "o": "out_proj", "v": "in_proj", "z": "in_proj"}
    w = c.linear(f"{base}{named[name]}.weight")
    half = w.shape[-1] // 2
    return {"v": w[:, :half], "z": w[:, half:]}.get(name, w)


def _mamba2(c: Checkpoint, base: str, name: str, kind: str) -> Array:
    """One input projection in the order gate, x, B, C, dt; one convolution over x, B and C."""
    a = c.model.linear
    assert a is not None
    values, keys = a.num_value_heads * a.value_dim, a.num_key_heads * a.key_dim
    if name == "D":
        return c.get(f"{base}D")
    order, widths = ["v", "k", "q"], [values, keys, keys]
    if name.endswith("_conv"):
        w = c.get(f"{base}conv1d.{kind}")
        w, name = (w[:, 0, :].T if kind == "weight" else w), name[0]
    else:
        w, order, widths = c.linear(f"{base}in_proj.weight"), ["z", *order, "a"], [values, *widths, a.num_value_heads]
    ends = np.cumsum([0, *widths])
    return w[..., ends[order.index(name)] : ends[order.index(name) + 1]]


def _channels(w: Array, c: Checkpoint, which: int) -> Array:
    """Queries, keys or values out of the columns of all three, one after the other."""
    a = c.model.linear
    assert a is not None
    ends = np.cumsum([0, a.num_key_heads * a.key_dim, a.num_key_heads * a.key_dim, a.num_value_heads * a.value_dim])
    return w[..., ends[which] : ends[which + 1]]


def _packed(c: Checkpoint, base: str, name: str) -> Array:
    """Qwen3-Next packs by key head: its query, its key, the values and gates of its group; and beta and decay likewise."""
    a = c.model.linear
    assert a is not None
    group = a.num_value_heads // a.num_key_heads
    if name in ("b", "a"):
        w, widths, order = c.linear(f"{base}in_proj_ba.weight"), [group, group], "ba"
    else:
        wide = group * a.value_dim
        w, widths, order = c.linear(f"{base}in_proj_qkvz.weight"), [a.key_dim, a.key_dim, wide, wide], "qkvz"
    ends = np.cumsum([0, *widths])
    at = order.index(name)
    return w.reshape(w.shape[0], a.num_key_heads, -1)[..., ends[at] : ends[at + 1]]


# ----------------------------------------------------------------------------------------------------------- norms, FFN


def norm_weight(c: Checkpoint, prefix: str, head: str, kind: str) -> Array | None:
    if head in INNER_NORMS:
        return c.get(f"{prefix}{INNER_NORMS[head]}.{kind}")
    if head not in NORMS:
        return None
    return c.get(c.first([f"{prefix}{n}.{kind}" for n in NORMS[head](c, prefix)]))


def _after_attention(c: Checkpoint, prefix: str) -> Sequence[str]:
    return ("post_self_attn_layernorm", "post_norm1", "post_attention_layernorm")


def _before_ffn(c: Checkpoint, prefix: str) -> Sequence[str]:
    return (
        "pre_feedforward_layernorm",
        "feedforward_layernorm",
        "pre_mlp_layernorm",
        "pre_ff_layernorm",
        "norm_attn_norm.norm_2",
        "ffn_norm",
        "ln_mlp",
        "ln_2",
        "norm_2",
        "final_layer_norm",
        "post_attention_layernorm",
        "norm",
    )


NORMS: Mapping[str, Callable[[Checkpoint, str], Sequence[str]]] = {
    "input_norm": lambda c, p: (
        "input_layernorm",
        "operator_norm",
        "ln_attn",
        "ln_1",
        "norm_1",
        "self_attn_layer_norm",
        "norm",
        "attention_layernorm",
        "norm_attn_norm.norm_1",
    ),
    "post_attn_norm": _after_attention,
    "ffn_norm": _before_ffn,
    "post_ffn_norm": lambda c, p: ("post_feedforward_layernorm", "post_mlp_layernorm", "post_norm2"),
    "attn_sum_norm": lambda c, p: ("ln_1",),
    "ffn_sum_norm": lambda c, p: ("ln_2",),
    "post_layer_input_norm": lambda c, p: ("post_per_layer_input_norm",),
    "post_mlp_norm": lambda c, p: ("post_feedforward_layernorm_1",),
    "expert_norm": lambda c, p: ("pre_feedforward_layernorm_2",),
    "post_expert_norm": lambda c, p: ("post_feedforward_layernorm_2",),
}


def expert_weight(c: Checkpoint, prefix: str, head: str, kind: str) -> Array | None:
    if head == "gate_correction_bias":
        return c.get(c.first([prefix + n for n in CORRECTION]))
    if head in ("layer_input_gate", "layer_input_proj"):
        return c.linear(f"{prefix}{'per_layer_input_gate' if head.endswith('gate') else 'per_layer_projection'}.weight")
    named = {"router_norm": "router.scale", "expert_scale": "router.per_expert_scale", "layer_scale": "layer_scalar"}
    if head in named:
        return c.get(prefix + named[head])
    if head == "router":
        name = c.first([f"{prefix}{r}{kind}" for r in ROUTER])
        return c.get(name).T if kind == "weight" else c.get(name)
    if head in ("latent_down", "latent_up"):
        return c.linear(f"{prefix}mixer.fc{1 if head == 'latent_down' else 2}_latent_proj.weight")
    if head == "shared_gate":
        return c.get(f"{prefix}mlp.shared_expert_gate.weight")
    if head not in ("expert_up", "expert_gate", "expert_down"):
        return None
    if c.has(f"{prefix}ffn.experts.mlp.w1"):  # DBRX: all experts below one another
        w = c.get(f"{prefix}ffn.experts.mlp.{ {'expert_gate': 'w1', 'expert_up': 'v1', 'expert_down': 'w2'}[head] }")
        w = w.reshape(c.model.moe.num_experts if c.model.moe else 0, -1, w.shape[-1])
        return w if head == "expert_down" else w.swapaxes(1, 2)
    base = next(prefix + e for e in EXPERTS if any(n.startswith(prefix + e) for n in c.shapes))
    bias, in_out = "_bias" if kind == "bias" else "", c.family in EXPERTS_IN_OUT
    if head == "expert_down":
        w = c.get(f"{base}down_proj{bias}")
        return w if bias or in_out else w.swapaxes(1, 2)
    if c.has(f"{base}up_proj{bias}"):
        return c.get(f"{base}up_proj{bias}").swapaxes(1, 2)
    w = c.get(f"{base}gate_up_proj{bias}")
    w = w if bias or in_out else w.swapaxes(1, 2)
    first = head == "expert_gate"
    if c.family == "gpt_oss":
        return w[..., 0::2] if first else w[..., 1::2]
    half = w.shape[-1] // 2
    return w[..., :half] if first else w[..., half:]


def mlp_weight(c: Checkpoint, prefix: str, head: str, kind: str) -> Array | None:
    if head == "act":
        return c.get(f"{prefix}mlp.act_fn.{kind}")
    bases = SHARED if head.startswith("shared_") else MLP
    head = head.removeprefix("shared_")
    names = {"up_proj": UP, "gate_proj": ("gate_proj", "w1"), "down_proj": DOWN}.get(head)
    if names is None:
        return None
    name = c.first([f"{prefix}{b}{n}.{kind}" for b in bases for n in names])
    if name:
        return c.linear(name) if kind == "weight" else c.get(name)
    fused = c.linear(c.first([f"{prefix}{b}{n}.weight" for b in bases for n in ("gate_up_proj", "input_linear")]))
    half = fused.shape[-1] // 2
    return fused[:, :half] if head == "gate_proj" else fused[:, half:]
