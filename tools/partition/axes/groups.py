"""Device groups beside attention's own: experts apart (`expert_devices`), an attention pool (`attn_pool`)."""

from __future__ import annotations

from tools.partition.axes.base import Axis, Sliced
from tools.spec.base import Refused, ToolError
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy


def _check(model: ModelSpec, s: Strategy, sliced: Sliced) -> None:
    if s.expert_devices and model.moe is None:
        raise ToolError(f"expert_devices({s.expert_devices}) on {model.name}, which has no routed experts; use 0")
    if s.attn_pool and (s.attention_group > s.tp or s.dcp > 1 or sliced or s.sp):
        others = [
            f"attn_dp({s.attn_dp})",
            f"cp({s.cp})",
            f"dcp({s.dcp})",
            *(f"{n}({d})" for n, (_, d) in sliced.items()),
        ]
        raise Refused(
            f"attn_pool({s.attn_pool}) deals heads and positions out over its own ranks: it goes with tp alone, not with "
            f"{', '.join(others)} or sp; use those, or the pool"
        )
    if s.attn_pool and model.attention.indexer:
        raise Refused(
            f"attn_pool({s.attn_pool}) on {model.name}: its indexer's keys would have to be in the pool too; use 0"
        )
    if s.attn_pool and model.kv_layers:
        raise Refused(
            f"attn_pool({s.attn_pool}) on {model.name}: layers read the keys and values of others, which the pool would have "
            "to keep for them; use 0"
        )
    if s.expert_devices and s.sp:
        raise Refused("sp with expert_devices: tokens are dealt out over tp for the experts already; use sp=False")


AXIS = Axis(
    name="groups",
    summary="Attention/expert separation (MegaScale-Infer, arXiv 2504.02263) and attention pools.",
    visible=("pool_heads", "pool_seq"),
    check=_check,
)
