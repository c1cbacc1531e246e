"""Context parallelism: positions of a sequence dealt out in prefill; attention crosses them by an exchange with heads
(Ulysses) or as a ring."""

from __future__ import annotations

from math import prod

import numpy as np

from tools.partition.axes.base import Axis, Sliced, Strides
from tools.spec.base import Refused, ToolError
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy


def _cuts(d: Strides) -> Strides:
    """What tp leaves of the KV heads is dealt out over cp; ranks beyond that hold copies (`cp_rep`)."""
    out = {"cp": d["tp"] * d["cp"]}
    for name, kv in (("cp_rep", "kv_heads"), ("cp_rep_sliding", "sliding_kv_heads")):
        left = np.maximum(d[kv] // (d["tp"] // d["inner"]), 1)
        out[name] = d["tp"] * np.maximum(d["cp"] // np.gcd(d["cp"], left), 1)
    return out


def _check(model: ModelSpec, s: Strategy, sliced: Sliced) -> None:
    if s.cp == 1:
        return
    if s.cp_kind == "ring":
        if model.attention.indexer:
            ix = model.attention.indexer
            what = f"blocks of {ix.block} positions" if ix.block else "positions"
            raise Refused(
                f"ring attention on {model.name}: a query reads the {ix.top_k} {what} that its indexer "
                "picks among all of them, and a ring shows it some at a time; use cp_kind=ulysses"
            )
        for name in (n for n, (x, _) in sliced.items() if x.cache):
            raise Refused(
                f"{name} with ring attention: partial scores would have to be summed in every ring step; use {name}=1"
            )
        if s.dcp > 1:
            raise Refused("dcp with ring attention: kv_len is dealt out zig-zag over cp already; use dcp=1")
        if s.sp:
            raise Refused(
                "sp with ring attention: seq_len would be split over cp (zig-zag) and tp (runs) at once; use sp=False"
            )
        return
    heads, over = model.attention.num_heads, s.tp // prod(d for x, d in sliced.values() if "heads" in x.takes_from)
    if heads % (over * s.cp):
        raise ToolError(
            f"heads({heads}) % (tp({over}) * cp({s.cp})) = {heads % (over * s.cp)}: the exchange of positions for "
            f"heads needs tp * cp to divide the heads"
        )


AXIS = Axis(
    name="cp",
    summary="Context parallelism: DeepSpeed-Ulysses (arXiv 2309.14509) or ring attention (arXiv 2310.01889, 2411.01783).",
    cuts=_cuts,
    pieces=(
        ("cp_rep", "tp", "cp_rep"),
        ("cp_kv", "cp_rep", "cp"),
        ("cp_kv_sliding", "cp_rep_sliding", "cp"),
        ("cp", "tp", "cp"),
    ),
    visible=("cp",),
    check=_check,
)
