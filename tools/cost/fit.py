"""How many sequences fit: the engine's KV budget on the fullest rank of every stage, for arrays of candidates."""

from __future__ import annotations

import numpy as np

from tools.cost.steps import BodyBytes, Candidates, Layout
from tools.engines.rules import engines, kv_budgets


def free_bytes(layout: Layout, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bytes left on the fullest rank with `batch` sequences per replica, KV bytes on that rank).

    Negative: does not fit.
    """
    d, engine = layout.deployment, layout.cands.engine
    known = engine in engines()
    bodies, degrees = layout.memory_rows(batch), layout.cands.with_batch(batch).degrees()
    free, kv_there = np.full(len(layout.cands), np.inf), np.zeros(len(layout.cands))
    for counts in layout.stages.each(layout.cands.pp):
        weights, activation, kv = bodies.stage(counts)
        left = kv_budgets(
            # vLLM's accounting stands in for an engine without rules.
            engine if known else "vllm", degrees, memory_total_bytes=d.cluster.memory_bytes, weights_bytes=weights,
            activation_bytes=activation, memory_reserve=d.requirements.memory_reserve,
            version=d.engine.version if known else None,
        ) - kv  # fmt: skip
        kv_there = np.where(left < free, kv, kv_there)
        free = np.minimum(free, left)
    return free, kv_there


def max_batch(layout: Layout, limit: np.ndarray) -> np.ndarray:
    """Most sequences per replica, at most `limit`, whose KV cache of the longest context fits; 0: not even one."""
    c = layout.cands
    batch = np.maximum(limit, 1).astype(np.int64)
    fits = np.zeros(len(c), bool)
    for _ in range(12):
        free, kv = free_bytes(layout, batch)
        fits = free >= 0
        if fits.all():
            break
        per_rank = -(-batch // c.attn_dp)
        per_sequence = np.maximum(kv / per_rank, 1e-9)
        room = np.floor(np.maximum(free + kv, 0.0) / per_sequence).astype(np.int64)
        smaller = np.maximum(np.minimum(room, per_rank - 1), 0) * c.attn_dp
        batch = np.where(fits, batch, np.maximum(smaller, 1))
        if (fits | (smaller < 1)).all():
            free, _ = free_bytes(layout, batch)
            fits = free >= 0
            break
    return np.where(fits, batch, 0)


__all__ = ["BodyBytes", "Candidates", "free_bytes", "max_batch"]
