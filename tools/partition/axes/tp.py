"""Tensor parallelism: every weight split along the dim that the next operator contracts, or that heads own."""

from __future__ import annotations

from math import prod

import numpy as np

from tools.partition.axes.base import Axis, Sliced, Strides
from tools.spec.base import ToolError
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy


def _cuts(d: Strides) -> Strides:
    """KV heads are dealt out as far as there are some; ranks beyond that hold copies (`tp_rep`)."""
    over_heads = d["tp"] // d["inner"]
    shared = {
        name: d["inner"] * np.maximum(over_heads // d[kv], 1)
        for name, kv in (("tp_rep", "kv_heads"), ("tp_rep_sliding", "sliding_kv_heads"))
    }
    return {**shared, "tp": d["tp"]}


def _check(model: ModelSpec, s: Strategy, sliced: Sliced) -> None:
    taken = prod(d for _, d in sliced.values())
    if s.tp % taken:
        names = " * ".join(f"{n}({d})" for n, (_, d) in sliced.items())
        raise ToolError(
            f"tp({s.tp}) % {names} = {s.tp % taken}; these take their ranks from tp, so tp must be a multiple of {taken}"
        )
    if model.linear and model.linear.dealt_heads % s.tp:
        n = model.linear.dealt_heads
        raise ToolError(
            f"heads of linear attention ({n}) % tp({s.tp}) = {n % s.tp}; tp must be one of "
            f"{[t for t in range(1, n + 1) if n % t == 0]}"
        )
    a, over = model.attention, s.tp // prod(d for x, d in sliced.values() if "heads" in x.takes_from)
    if a.num_heads % over:
        ok = [t * (s.tp // over) for t in range(1, a.num_heads + 1) if a.num_heads % t == 0]
        raise ToolError(f"heads({a.num_heads}) % tp({over}) = {a.num_heads % over}; tp must be one of {ok}")
    for kv in () if a.mla else model.cache_heads:
        if over <= kv and kv % over:
            raise ToolError(
                f"kv_heads({kv}) % tp({s.tp}) = {kv % s.tp}; tp must divide kv_heads or be a multiple of it"
            )


AXIS = Axis(
    name="tp",
    summary="Tensor parallelism (Megatron-LM, arXiv 1909.08053 §3).",
    cuts=_cuts,
    pieces=(
        ("tp_rep", "inner", "tp_rep"),
        ("tp_kv", "tp_rep", "tp"),
        ("tp_kv_sliding", "tp_rep_sliding", "tp"),
        ("tp_heads", "inner", "tp"),
        ("tp", "one", "tp"),
    ),
    visible=("tp",),
    splits=(
        ("heads", "tp_heads"), ("kv_heads", "tp_kv"), ("sliding_kv_heads", "tp_kv_sliding"),
        ("lin_heads", "tp"), ("ffn", "tp"), ("wide_ffn", "tp"), ("shared_ffn", "tp"), ("vocab", "tp"),
        ("padded_vocab", "tp"),
    ),
    check=_check,
)  # fmt: skip
