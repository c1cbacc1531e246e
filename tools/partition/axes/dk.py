"""Two-level attention slicing: of the tp ranks, dk slice each head's d_k; the others share the heads.

Q and K are then split along the dim that the score matmul contracts, so partial scores are summed over dk.
"""

from __future__ import annotations

from tools.graph.heads import KEY_DIMS, KV_HEADS, VALUE_DIMS
from tools.partition.axes.base import Axis, Slice, Sliced
from tools.spec.base import Refused
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy


def _check(model: ModelSpec, s: Strategy, _: Sliced) -> None:
    for a in model.attentions:
        if s.dk > 1 and (a.mla or s.dcp > 1 or a.head_dim % (2 * s.dk)):
            raise Refused(
                f"dk({s.dk}): slices of d_k need plain attention without dcp and d_k({a.head_dim}) % (2 * dk) = 0, so that "
                "RoPE pairs stay whole"
            )


AXIS = Axis(
    name="dk",
    summary="Two-level attention slicing: heads into groups, each head's d_k into dk slices; partial scores are summed.",
    slice=Slice(
        dims=(*KEY_DIMS, *VALUE_DIMS, "qk_nope"),
        takes_from=("heads", *KV_HEADS),
        cache=(*KEY_DIMS, *VALUE_DIMS),
        orders=tuple(
            (d, "paired") for d in KEY_DIMS
        ),  # both halves of a pair that RoPE turns, (i, i + d_k/2), share a rank
        grain=2,
        engines="attention kernels take whole heads",
    ),
    check=_check,
)
