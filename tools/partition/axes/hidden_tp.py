"""Two-dimensional weight-stationary tensor parallelism: of the tp ranks, hidden_tp slice the hidden dim of every dense
weight, the others its heads, ffn or vocabulary.

What a layer sums and gathers then travels among fewer ranks: sums of 1/hidden_tp of the hidden dim over tp / hidden_tp
ranks, partial inner products over hidden_tp.
"""

from __future__ import annotations

from tools.graph.heads import KV_HEADS
from tools.partition.axes.base import Axis, Slice

AXIS = Axis(
    name="hidden_tp",
    summary="2D weight-stationary tensor parallelism: hidden_tp of the tp ranks slice the hidden dim of every dense weight "
    "(Pope et al., arXiv 2211.05102 §3.2.2).",
    slice=Slice(
        dims=("hidden",),
        takes_from=("heads", *KV_HEADS, "lin_heads", "ffn", "wide_ffn", "shared_ffn", "vocab", "padded_vocab"),
        beside=frozenset({"experts"}),  # routed experts lie over ep and etp, on the same ranks
        engines="its layers are split along one dim",
    ),
    examples=({"tp": 4, "axes": {"hidden_tp": 2}}, {"tp": 4, "pp": 2, "attn_dp": 2, "axes": {"hidden_tp": 4}}),
)
