"""Attention data parallelism: the ranks of one replica hold attention's weights in copies and share its sequences."""

from __future__ import annotations

from tools.partition.axes.base import Axis

AXIS = Axis(
    name="attn_dp",
    summary="Attention data parallelism inside a replica (DeepSeek-V3, arXiv 2412.19437 §3.4).",
    cuts=lambda d: {"group": d["tp"] * d["cp"] * d["attn_dp"]},
    pieces=(("attn_dp", "cp", "group"),),
    visible=("attn_dp",),
)
