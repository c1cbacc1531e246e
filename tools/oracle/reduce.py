"""Shrinks a model and a strategy to dims small enough to execute, without changing the graph.

Every dim keeps what the partitioner can see of it: whether its degree divides it, the remainder, whether it is smaller
than the degree, whether KV heads are replicated, whether the vocabulary is padded. All dims are pairwise distinct, so that
a transposed or mis-gathered axis cannot pass unnoticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm

from tools.graph.build import VOCAB_ALIGNMENT, padded_vocab
from tools.partition.lower import compress, default_layers_per_stage
from tools.partition.pipeline import num_chunks
from tools.spec.model import MLA, LayerKind, ModelSpec
from tools.spec.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Reduced:
    model: ModelSpec
    strategy: Strategy
    batch_size: int
    seq_len: int
    decode_steps: int


class _Picker:
    """Hands out lengths of a residue class, each at most once."""

    def __init__(self) -> None:
        self.used: set[int] = {1}

    def take(self, n: int, degree: int = 1, *, at_least: int = 2, multiple: int = 1) -> int:
        """Smallest unused length with the residue of `n` modulo `degree`; `n` itself if it is below the degree."""
        if degree > 1 and n < degree:
            self.used.add(n)
            return n
        residue, step = n % degree, lcm(degree, multiple) if n % multiple == 0 else degree
        length = residue
        while length < at_least or length < degree or length in self.used or (length % multiple and n % multiple == 0):
            length += step if residue == 0 else degree
        self.used.add(length)
        return length


def reduce(model: ModelSpec, strategy: Strategy, *, batch_size: int, seq_len: int, decode_steps: int = 4) -> Reduced:
    """Small twin of (model, strategy). `batch_size` per replica and `seq_len` give residue classes only."""
    s = strategy
    assert s.attn_dp is not None and s.etp is not None
    pick = _Picker()
    attention = _reduce_attention(model, s, pick)
    updates: dict = {"hidden_size": pick.take(model.hidden_size, at_least=6), "attention": attention}
    d_k = attention.head_dim
    rotary = model.position.rotary_dim
    if rotary and rotary < model.attention.head_dim and not attention.mla:
        rotary = max(2, d_k // 4 * 2)  # still a part of d_k
    elif rotary:
        rotary = d_k
    vocab = _vocab(model, s.tp, pick)
    if model.mlp:
        ffn = pick.take(model.mlp.intermediate_size, s.tp)
        updates["mlp"] = model.mlp.model_copy(update={"intermediate_size": ffn})
    if model.moe:
        updates["moe"] = _reduce_moe(model, s, pick)
    batch = pick.take(batch_size, s.attn_dp * (s.tp if s.sp else 1))
    # Equal residues modulo slices * degree: every slice keeps its own residue modulo the degree.
    others = s.edp * s.etp if s.expert_devices else s.tp + s.attn_pool if s.attn_pool else 1  # other device groups
    degree = lcm(s.cp * (s.tp if s.sp else 1), others) * s.seq_slices
    seq = pick.take(
        max(seq_len, 5, s.seq_slices), degree, at_least=max(5, s.seq_slices * (2 * s.cp if s.cp > 1 else 1))
    )
    position = model.position.model_copy(update={"rotary_dim": rotary, "max_positions": seq + decode_steps + 3})
    kinds, per_stage = _layers(model, s)
    updates |= {
        "vocab_size": vocab,
        "position": position.model_copy(update={"rope_layers": tuple(k.rope for k in kinds)}),
    }
    updates |= {
        "num_hidden_layers": len(kinds),
        "moe_layers": tuple(k.ffn == "moe" for k in kinds) if model.moe else None,
        "sliding_layers": tuple(k.sliding for k in kinds),
    }
    small = ModelSpec.model_validate(model.model_copy(update=updates).model_dump())
    return Reduced(small, s.model_copy(update={"layers_per_stage": per_stage}), batch, seq, decode_steps)


def _reduce_attention(model: ModelSpec, s: Strategy, pick: _Picker):
    a = model.attention
    update: dict = {}
    ranks = s.tp // s.dk * (s.cp if s.cp_kind == "ulysses" else 1)
    pool = s.tp + s.attn_pool if s.attn_pool else 1
    if a.mla:
        heads = pick.take(a.num_heads, lcm(ranks, pool))
        m = a.mla
        mla = MLA(
            q_lora_rank=pick.take(m.q_lora_rank) if m.q_lora_rank else None,
            kv_lora_rank=pick.take(m.kv_lora_rank),
            qk_nope_head_dim=pick.take(m.qk_nope_head_dim),
            qk_rope_head_dim=pick.take(4, 2, at_least=4),
            v_head_dim=pick.take(m.v_head_dim),
        )
        return a.model_copy(
            update={
                "num_heads": heads,
                "num_kv_heads": heads,
                "mla": mla,
                "head_dim": mla.qk_nope_head_dim + mla.qk_rope_head_dim,
            }
        )
    group = a.num_heads // a.num_kv_heads
    if a.num_kv_heads < ranks:
        # Ranks share KV heads: their number is fixed by the mesh, query heads per rank stay at least one.
        kv = a.num_kv_heads
        heads = lcm(kv, ranks) * (2 if a.num_heads > lcm(kv, ranks) else 1)
    else:
        kv = ranks * (2 if a.num_kv_heads > ranks else 1)
        while gcd(kv, pool) != gcd(a.num_kv_heads, pool):
            kv += ranks  # a pool's ranks share heads as they do in the model
        heads = kv * min(group, 3)
    pick.used |= {kv, heads}
    update = {"num_heads": heads, "num_kv_heads": kv, "head_dim": pick.take(4 * s.dk, 2 * s.dk, at_least=4)}
    update["sliding_window"] = 3 if a.sliding_window else None
    update["chunk_size"] = 4 if a.chunk_size else None
    return a.model_copy(update=update)


def _reduce_moe(model: ModelSpec, s: Strategy, pick: _Picker):
    m = model.moe
    assert m is not None and s.etp is not None
    groups = min(m.n_group, 4)
    top_k = max(1, min(m.top_k, 3))
    least = max(top_k + 1, 4 if m.num_experts > 4 else 2) if m.num_experts > top_k else top_k
    experts = pick.take(m.num_experts, s.ep, at_least=max(least, groups * 2 if groups > 1 else 0), multiple=groups)
    top_k = min(top_k, experts)
    pick.used.add(top_k)
    update = {
        "num_experts": experts,
        "top_k": top_k,
        "intermediate_size": pick.take(m.intermediate_size, s.etp),
        "shared_intermediate_size": pick.take(m.shared_intermediate_size, s.tp) if m.shared_intermediate_size else 0,
        "n_group": groups,
        "topk_group": min(m.topk_group, max(1, groups - 1)) if groups > 1 else 1,
    }
    return m.model_copy(update=update)


def _vocab(model: ModelSpec, tp: int, pick: _Picker) -> int:
    """Padded or not as in the model; the padded length keeps its residue modulo tp."""
    target, n = padded_vocab(model) % tp, VOCAB_ALIGNMENT
    while n % tp != target or n in pick.used:
        n += VOCAB_ALIGNMENT
    pick.used.add(n)
    if model.vocab_size % VOCAB_ALIGNMENT == 0:
        return n
    short = n - 1
    while short in pick.used:
        short -= 1
    pick.used.add(short)
    return short


def _layers(model: ModelSpec, s: Strategy) -> tuple[list[LayerKind], tuple[int, ...]]:
    """Two of every repeated pattern, one of every single one, stage by stage."""
    per_stage = s.layers_per_stage or default_layers_per_stage(model.num_hidden_layers, num_chunks(s))
    kinds, at = model.layers(), 0
    out: list[LayerKind] = []
    counts: list[int] = []
    for n in per_stage:
        before = len(out)
        for pattern, repeat in compress(kinds[at : at + n]):
            out += list(pattern) * min(repeat, 2)
        counts.append(len(out) - before)
        at += n
    return out, tuple(counts)
