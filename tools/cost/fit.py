"""How many sequences fit: the engine's KV budget on the fullest rank of every stage, for arrays of candidates."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tools.cost.steps import Candidates, Layout, StageBytes, stage_rows
from tools.engines.rules import engines
from tools.memory import kv_budget_bytes
from tools.spec.strategy import Strategy


@lru_cache(maxsize=200_000)
def _budget(
    s: Strategy,
    capacity: float,
    weights: float,
    activation: float,
    reserve: float | None,
    version: str | None,
) -> float:
    return kv_budget_bytes(
        s, capacity_bytes=capacity, weights_bytes=weights, activation_bytes=activation, batch=s.batch,
        memory_reserve=reserve, engine_version=version if s.engine in engines() else None,
    ).total  # fmt: skip


@lru_cache(maxsize=200_000)
def _strategy(tp: int, pp: int, ep: int, etp: int, attn_dp: int, tokens: int, batch: int, engine: str) -> Strategy:
    return Strategy(
        tp=tp, pp=pp, ep=ep, etp=etp, attn_dp=attn_dp, max_num_batched_tokens=tokens, engine=engine, batch=batch
    )  # fmt: skip


def free_bytes(layout: Layout, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bytes left on the fullest rank with `batch` sequences per replica, KV bytes on that rank).

    Negative: does not fit. Candidates whose weights alone exceed the device are not asked further.
    """
    rows = layout.memory_rows(batch)
    free, kv_there = np.full(len(layout.cands), np.inf), np.zeros(len(layout.cands))
    for index, split in layout.splits():
        for row, _ in stage_rows(layout.model, split):
            parts = (rows.stage_weights(row), rows.stage_activation(row), rows.stage_kv(row))
            weights, activation, kv = (np.broadcast_to(np.asarray(x, float), free.shape)[index] for x in parts)
            left = _budgets(layout, index, batch, weights, activation) - kv
            worse = left < free[index]
            kv_there[index] = np.where(worse, kv, kv_there[index])
            free[index] = np.minimum(free[index], left)
    return free, kv_there


def _budgets(
    layout: Layout, index: np.ndarray, batch: np.ndarray, weights: np.ndarray, activation: np.ndarray
) -> np.ndarray:
    c, d = layout.cands, layout.deployment
    capacity = d.cluster.memory_bytes
    out = np.empty(len(index))
    for j, i in enumerate(index):
        if weights[j] >= capacity:
            out[j] = capacity - weights[j] - activation[j]
            continue
        if c.origin is not None:
            s = c.origin if c.origin.batch == batch[i] else c.origin.model_copy(update={"batch": int(batch[i])})
        else:
            degrees = (int(x[i]) for x in (c.tp, c.pp, c.ep, c.etp, c.attn_dp, c.max_num_batched_tokens, batch))
            s = _strategy(*degrees, c.engine)
        out[j] = _budget(
            s, capacity, float(weights[j]), float(activation[j]), d.requirements.memory_reserve, d.engine.version
        )
    return out


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


__all__ = ["Candidates", "StageBytes", "free_bytes", "max_batch"]
