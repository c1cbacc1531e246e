"""Dims of attention's heads. Where layers that slide have other heads than the rest, their dims have names of their own."""

from __future__ import annotations

from typing import NamedTuple

from tools.spec.model import Attention, LayerKind, ModelSpec

KV_HEADS = ("kv_heads", "sliding_kv_heads")
KEY_DIMS = ("d_k", "sliding_d_k")
VALUE_DIMS = ("v_dim", "sliding_v_dim")


class HeadDims(NamedTuple):
    """Names of the KV heads and of what a key and a value have in one."""

    kv: str
    d_k: str
    d_v: str


def _lengths(a: Attention) -> tuple[int, int, int | None]:
    return a.num_kv_heads, a.head_dim, a.v_head_dim if a.v_head_dim != a.head_dim else None


def head_dims(model: ModelSpec, kind: LayerKind) -> HeadDims:
    """Dims of a layer of this kind. Keys of MHA have the queries' heads: were they named apart, the scores would sum over
    all of them."""
    a = model.attention_of(kind)
    own = [x != y for x, y in zip(_lengths(a), _lengths(model.attention), strict=True)]
    kv, d_k, v_dim = (names[mine] for names, mine in zip((KV_HEADS, KEY_DIMS, VALUE_DIMS), own, strict=True))
    return HeadDims("heads" if a.num_kv_heads == a.num_heads else kv, d_k, v_dim if _lengths(a)[2] else d_k)


def head_sizes(model: ModelSpec) -> dict[str, int]:
    """Lengths of these dims."""
    sizes: dict[str, int] = {}
    for a, names in zip(model.attentions, zip(KV_HEADS, KEY_DIMS, VALUE_DIMS, strict=True), strict=False):
        sizes |= {name: n for name, n in zip(names, _lengths(a), strict=True) if n}
    return sizes
