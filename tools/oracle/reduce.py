"""Shrinks a model and a strategy to dims small enough to execute, without changing the graph.

Every dim keeps what the partitioner can see of it: whether its degree divides it, the remainder, whether it is smaller
than the degree, whether KV heads are replicated, whether the vocabulary is padded. All dims are pairwise distinct, so that
a transposed or mis-gathered axis cannot pass unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import gcd, lcm, prod

from tools.graph.build import VOCAB_ALIGNMENT, padded_vocab
from tools.graph.heads import KEY_DIMS, VALUE_DIMS
from tools.partition.axes import SLICES, sliced
from tools.partition.lower import compress, default_layers_per_stage
from tools.partition.pipeline import num_chunks
from tools.spec.model import MLA, Attention, LayerInputs, LayerKind, LinearAttention, ModelSpec, RopeScaling
from tools.spec.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Reduced:
    model: ModelSpec
    strategy: Strategy
    batch_size: int
    seq_len: int
    decode_steps: int
    decode: Strategy | None = None
    """Strategy of the decode pool, where prefill has a pool of its own."""


class _Picker:
    """Hands out lengths of a residue class, each at most once."""

    def __init__(self, strategies: Sequence[Strategy] = ()) -> None:
        self.used: set[int] = {1}
        self.placed: dict[str, int] = {}
        """Degrees that placements of single weights, and slices, split a dim by."""
        for s in strategies:
            for dim, axes in ((d, a) for _, split in s.placements for d, a in split):
                self.placed[dim] = lcm(self.placed.get(dim, 1), prod(s.degree(a) for a in axes))
            for x, degree in sliced(s).values():
                self.placed |= {dim: lcm(self.placed.get(dim, 1), degree * x.grain) for dim in x.dims}

    def dim(self, name: str, n: int, degree: int = 1, *, at_least: int = 2) -> int:
        """As `take`, with the degrees that placements split this dim by."""
        return self.take(n, lcm(degree, self.placed.get(name, 1)), at_least=at_least)

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


def reduce(
    model: ModelSpec, strategy: Strategy, *, batch_size: int, seq_len: int, decode_steps: int = 4,
    decode: Strategy | None = None,
) -> Reduced:  # fmt: skip
    """Small twin of (model, strategy). `batch_size` per replica and `seq_len` give residue classes only. `decode`: the
    strategy of a decode pool; the dims then keep their residues modulo the degrees of both."""
    s = _both(strategy, decode) if decode else strategy
    assert s.attn_dp is not None and s.etp is not None
    pick = _Picker([x for x in (strategy, decode) if x])
    ranks = lcm(*(_head_ranks(x) for x in (strategy, decode) if x))
    attention, sliding = _reduce_attention(model, s, pick, ranks)
    updates: dict = {"hidden_size": pick.dim("hidden", model.hidden_size, at_least=6)}
    updates |= {"attention": attention, "sliding_attention": sliding}
    d_k = min(a.head_dim for a in (attention, sliding) if a)
    rotary = model.position.rotary_dim
    if rotary and rotary < model.attention.head_dim and not attention.mla:
        rotary = max(2, d_k // 4 * 2)  # still a part of d_k
    elif rotary:
        rotary = d_k
    if model.linear:
        updates["linear"] = _reduce_linear(model.linear, s, pick)
        # What a state returns may be next to nothing; a norm would blow it up, and its rounding with it.
        updates["norm_eps"] = 0.05
    vocab = _vocab(model, s.tp, pick)
    if model.mlp:
        ffn = pick.dim("ffn", model.mlp.intermediate_size, s.tp)
        updates["mlp"] = model.mlp.model_copy(update={"intermediate_size": ffn})
        if model.borrower_mlp_size:
            updates["borrower_mlp_size"] = pick.dim("wide_ffn", model.borrower_mlp_size, s.tp)
    if model.layer_inputs:
        updates["layer_inputs"] = LayerInputs(width=pick.take(model.layer_inputs.width, at_least=5))
    if model.moe:
        updates["moe"] = _reduce_moe(model, s, pick)
    batch = pick.take(batch_size, s.attn_dp * (s.tp if s.sp else 1))
    # Equal residues modulo slices * degree: every slice keeps its own residue modulo the degree.
    others = s.edp * s.etp if s.expert_devices else s.tp + s.attn_pool if s.attn_pool else 1  # other device groups
    degree = lcm(s.cp * (s.tp if s.sp else 1), others) * s.seq_slices
    seq = pick.take(
        max(seq_len, 5, s.seq_slices), degree, at_least=max(5, s.seq_slices * (2 * s.cp if s.cp > 1 else 1))
    )
    slides = model.position.sliding_rotary_dim and (
        d_k if model.position.sliding_rotary_dim == model.attention.head_dim else max(2, d_k // 4 * 2)
    )
    places = {"rotary_dim": rotary, "sliding_rotary_dim": slides, "max_positions": seq + decode_steps + 3}
    position = model.position.model_copy(update=places)
    pairs = (rotary or (attention.mla.qk_rope_head_dim if attention.mla else d_k)) // 2
    position = position.model_copy(update={"scaling": _shorter(position.scaling, pairs)})
    kinds, *splits = _layers(model, [strategy, decode] if decode else [strategy])
    updates |= {
        "vocab_size": vocab,
        "position": position.model_copy(update={"rope_layers": tuple(k.rope for k in kinds)}),
    }
    updates |= {
        "num_hidden_layers": len(kinds),
        "moe_layers": tuple(k.ffn == "moe" for k in kinds) if model.moe else None,
        "sliding_layers": tuple(k.sliding for k in kinds),
        "linear_layers": tuple(k.recurs for k in kinds) if model.linear else None,
        "kv_layers": tuple(k.kv for k in kinds) if model.kv_layers else None,
        "indexer_layers": tuple(k.picks for k in kinds) if model.indexer_layers else None,
        "mixer_layers": tuple(k.mixer != "none" for k in kinds) if model.mixer_layers else None,
        "ffn_layers": tuple(k.ffn != "none" for k in kinds) if model.ffn_layers else None,
    }
    small = ModelSpec.model_validate(model.model_copy(update=updates).model_dump())
    copies = small.moe.redundant if small.moe else 0
    cut = [
        x.model_copy(update={"layers_per_stage": n, "redundant_experts": copies})
        for x, n in zip((strategy, decode), splits, strict=False)
        if x
    ]
    return Reduced(small, cut[0], batch, seq, decode_steps, cut[1] if decode else None)


def _shorter(scaling: RopeScaling | None, pairs: int) -> RopeScaling | None:
    """RoPE's scaling for fewer pairs: factors that are given pair by pair, of the first ones."""
    if scaling is None:
        return None
    some = {n: getattr(scaling, n)[:pairs] for n in ("short_factor", "long_factor")}
    return scaling.model_copy(update={**some, "rotated": 0.5 if scaling.rotated < 1.0 else 1.0})


def _both(a: Strategy, b: Strategy) -> Strategy:
    """Degrees that keep what both strategies see of a dim: their least common multiples."""
    degrees = {n: lcm(a.degree(n), b.degree(n)) for n in ("tp", "cp", "attn_dp", "ep", "etp", "dk", "dcp")}
    degrees["axes"] = tuple((n, d) for n in SLICES if n != "dk" and (d := lcm(a.degree(n), b.degree(n))) > 1)  # type: ignore[assignment]
    kinds = {"cp_kind": "ring" if "ring" in (a.cp_kind, b.cp_kind) and degrees["cp"] > 1 else "ulysses"}
    # No strategy that could run: only its degrees are read.
    return Strategy.model_construct(**{**a.model_dump(), **degrees, **kinds, "sp": a.sp or b.sp})


def _head_ranks(s: Strategy) -> int:
    """Ranks that the heads are dealt out over."""
    taken = prod(d for x, d in sliced(s).values() if "heads" in x.takes_from)
    return s.tp // taken * (s.cp if s.cp_kind == "ulysses" else 1)


def _reduce_attention(model: ModelSpec, s: Strategy, pick: _Picker, ranks: int) -> tuple[Attention, Attention | None]:
    """Attention of full layers, and that of layers that slide where they have their own."""
    a = model.attention
    pool = s.tp + s.attn_pool if s.attn_pool else 1
    rest = pool // gcd(pool, *model.cache_heads)  # ranks of a pool that share heads
    if a.mla:
        heads = pick.take(a.num_heads, lcm(ranks, pool))
        m = a.mla
        mla = MLA(
            q_lora_rank=pick.dim("q_lora", m.q_lora_rank) if m.q_lora_rank else None,
            kv_lora_rank=pick.dim("kv_lora", m.kv_lora_rank, rest),
            qk_nope_head_dim=pick.take(m.qk_nope_head_dim),
            qk_rope_head_dim=pick.take(4, 2, at_least=4),
            v_head_dim=pick.take(m.v_head_dim),
        )
        ix = a.indexer
        if ix:
            index = {
                "num_heads": pick.take(ix.num_heads),
                "head_dim": pick.take(ix.head_dim, 2, at_least=6),
                "top_k": 4,
            }
            ix = ix.model_copy(update=index)
            pick.used.add(4)
        update = {"num_heads": heads, "num_kv_heads": heads, "mla": mla, "indexer": ix}
        return a.model_copy(update={**update, "head_dim": mla.qk_nope_head_dim + mla.qk_rope_head_dim}), None
    return _reduce_heads(model, pick, ranks, pool, rest)


def _reduce_heads(
    model: ModelSpec, pick: _Picker, ranks: int, pool: int, rest: int
) -> tuple[Attention, Attention | None]:
    """Few and small heads; what is equal in both kinds of layers stays equal, what differs stays different."""
    kv: dict[int, int] = {}
    for n in model.cache_heads:
        kv.setdefault(n, _kv_heads(n, ranks, pool, set(kv.values())))
    n = model.attention.num_heads
    if all(k < ranks for k in model.cache_heads):
        least = lcm(*kv.values(), ranks)
        heads = least * (2 if n > least else 1)
    else:
        uneven = any(k % ranks for k in kv.values())
        heads = lcm(*(k * min(n // was, 3) for was, k in kv.items()), ranks if len(kv) > 1 or uneven else 1)
    pick.used |= {*kv.values(), heads}
    lengths: dict[tuple[bool, int], int] = {}
    out = []
    for a, d_k, d_v in zip(model.attentions, KEY_DIMS, VALUE_DIMS, strict=False):
        widths = [(False, a.head_dim, d_k)] + ([(True, a.v_head_dim, d_v)] if a.v_head_dim else [])
        for is_value, width, name in widths:
            if (is_value, width) not in lengths:
                lengths[is_value, width] = _width(pick, name, width, rest, 1 if is_value else 2)
        update: dict = {"num_heads": heads, "num_kv_heads": kv[a.num_kv_heads], "head_dim": lengths[False, a.head_dim]}
        if a.v_head_dim:
            same = a.v_head_dim == a.head_dim
            update["v_head_dim"] = update["head_dim"] if same else lengths[True, a.v_head_dim]
        if a.indexer:
            index = {"num_heads": update["num_kv_heads"], "head_dim": pick.take(a.indexer.head_dim, 2, at_least=6)}
            top_k = next((k for k in (2, 3) if k not in pick.used), 2)
            update["indexer"] = a.indexer.model_copy(update={**index, "top_k": top_k, "block": 3})
            pick.used.add(top_k)
        update |= {"sliding_window": 3 if a.sliding_window else None, "chunk_size": 4 if a.chunk_size else None}
        if a.temperature:
            update["temperature"] = a.temperature.model_copy(update={"every": 3})
        out.append(a.model_copy(update=update))
    return out[0], out[1] if len(out) > 1 else None


def _kv_heads(n: int, ranks: int, pool: int, taken: set[int]) -> int:
    """KV heads as the mesh sees `n` of them: where ranks share them their number is fixed."""
    if n < ranks:
        return n
    kv = ranks * (2 if n > ranks else 1) if n % ranks == 0 else ranks + n % ranks
    while gcd(kv, pool) != gcd(n, pool) or kv in taken:
        kv += ranks  # a pool's ranks share heads as they do in the model
    return kv


def _width(pick: _Picker, name: str, n: int, rest: int, grain: int) -> int:
    return pick.take(n, grain * rest, at_least=4) if rest > 1 else pick.dim(name, n, grain, at_least=4)


def _reduce_linear(a: LinearAttention, s: Strategy, pick: _Picker) -> LinearAttention:
    """Linear attention with as few heads as tp lets it have; value heads still share keys where they did."""
    keys = 1 if a.one_key else pick.take(a.num_key_heads, s.tp)
    if a.one_key:
        group = pick.take(a.num_value_heads, s.tp)
    else:
        group = pick.take(a.num_value_heads // a.num_key_heads) if a.num_value_heads > a.num_key_heads else 1
    pick.used.add(keys * group)
    update: dict = {
        "num_key_heads": keys, "num_value_heads": keys * group, "key_dim": pick.take(a.key_dim, at_least=6),
        "value_dim": pick.take(a.value_dim, at_least=6), "conv_kernel": min(a.conv_kernel, 3),
        "gate_rank": pick.take(a.gate_rank) if a.gate_rank else None,
    }  # fmt: skip
    if a.kind in ("mamba1", "short_conv"):
        update["value_dim"] = 1  # a channel is a head of one value
        pick.used.add((update["gate_rank"] or 0) + 2 * update["key_dim"])
    return a.model_copy(update=update)


def _reduce_moe(model: ModelSpec, s: Strategy, pick: _Picker):
    m = model.moe
    assert m is not None and s.etp is not None
    groups = min(m.n_group, 4)
    pick.used.add(s.ep_nodes)
    top_k = max(1, min(m.top_k, 3))
    least = max(top_k + 1, 4 if m.num_experts > 4 else 2) if m.num_experts > top_k else top_k
    least = max(least, groups * 2 if groups > 1 else 0)
    if s.redundant_experts:
        experts, redundant = _slots(pick, m.num_experts + s.redundant_experts, s.ep, least, groups)
    else:
        experts, redundant = pick.take(m.num_experts, s.ep, at_least=least, multiple=groups), 0
    top_k = min(top_k, experts)
    pick.used.add(top_k)
    update = {
        "num_experts": experts,
        "top_k": top_k,
        "intermediate_size": pick.dim("expert_ffn", m.intermediate_size, s.etp),
        "latent_size": pick.dim("moe_latent", m.latent_size, at_least=5) if m.latent_size else None,
        "shared_intermediate_size": pick.dim("shared_ffn", m.shared_intermediate_size, s.tp)
        if m.shared_intermediate_size
        else 0,
        "n_group": groups,
        "topk_group": min(m.topk_group, max(1, groups - 1)) if groups > 1 else 1,
        "redundant": redundant,
        "nodes": s.ep_nodes,
    }
    return m.model_copy(update=update)


def _slots(pick: _Picker, slots: int, ep: int, least: int, groups: int) -> tuple[int, int]:
    """(experts, further copies): slots keep their residue modulo ep, experts divide into routing groups."""
    total = slots % ep or ep
    while True:
        for copies in range(1, total - least + 1):
            experts = total - copies
            if experts % groups == 0 and copies <= experts and not {experts, total} & pick.used:
                pick.used |= {experts, total}
                return experts, copies
        total += ep


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


def _layers(model: ModelSpec, strategies: Sequence[Strategy]) -> tuple[list[LayerKind], *tuple[tuple[int, ...], ...]]:
    """Two of every repeated pattern, one of every single one, between any two cuts; and the layers of each strategy's
    stages."""
    splits = [
        s.layers_per_stage or default_layers_per_stage(model.num_hidden_layers, num_chunks(s)) for s in strategies
    ]
    for most in range(2, model.num_hidden_layers + 2):
        kinds, counts = _shortened(model.layers(), splits, most)
        # Fewer repetitions may happen to form another pattern: A B B B A B B is none, A B B A B B is one.
        if all(_runs(model.layers(), a) == _runs(kinds, b) for a, b in zip(splits, counts, strict=True)):
            break
    return (kinds, *counts)


def _shortened(
    kinds: Sequence[LayerKind], splits: Sequence[tuple[int, ...]], most: int
) -> tuple[list[LayerKind], list[tuple[int, ...]]]:
    """Every repeated pattern at most `most` times between any two cuts."""
    ends = [list(accumulate(split)) for split in splits]
    at, out = 0, list[LayerKind]()
    reached: dict[int, int] = {0: 0}
    for end in sorted({e for row in ends for e in row}):
        for pattern, repeat in compress(kinds[at:end]):
            out += list(pattern) * min(repeat, most)
        at = end
        reached[end] = len(out)
    return out, [tuple(reached[b] - reached[a] for a, b in pairwise([0, *row])) for row in ends]


def _runs(kinds: Sequence[LayerKind], split: Sequence[int]) -> list[list[tuple[tuple[LayerKind, ...], bool]]]:
    """Patterns of every stage, and whether they repeat."""
    ends = [0, *accumulate(split)]
    return [[(p, n > 1) for p, n in compress(kinds[a:b])] for a, b in pairwise(ends)]
