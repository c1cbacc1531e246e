"""Decode context parallelism: the KV cache of a sequence dealt out over ranks that would hold copies of it."""

from __future__ import annotations

from math import gcd, prod

from tools.partition.axes.base import Axis, Sliced
from tools.spec.base import Refused, ToolError
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy


def _check(model: ModelSpec, s: Strategy, sliced: Sliced) -> None:
    over = s.tp // prod(d for _, d in sliced.values())
    copies = s.tp if model.attention.mla else gcd(*(max(1, over // kv) for kv in model.cache_heads))
    if s.dcp > 1 and sliced:
        raise Refused(
            f"dcp({s.dcp}) with {', '.join(f'{n}({d})' for n, (_, d) in sliced.items())}: both take the innermost ranks of tp; "
            "use one of them"
        )
    if copies % s.dcp:
        raise ToolError(
            f"dcp({s.dcp}) deals the KV cache out over ranks that would hold copies of it, and tp({s.tp}) makes {copies}; "
            f"dcp must divide {copies}"
        )


AXIS = Axis(
    name="dcp",
    summary="Decode context parallelism: KV split over the sequence, log-sum-exp merge (Helix, arXiv 2507.07120).",
    cuts=lambda d: {"dcp": d["dcp"]},
    pieces=(("dcp", "one", "dcp"),),
    visible=("dcp",),
    check=_check,
)
