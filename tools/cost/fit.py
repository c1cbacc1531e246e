"""How many sequences fit: the engine's KV budget on the fullest rank of every stage, for arrays of candidates."""

from __future__ import annotations

import numpy as np

from tools.cost.steps import BodyBytes, Candidates, Layout
from tools.engines.rules import engines, kv_budgets
from tools.memory import Role


def free_bytes(layout: Layout, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bytes left on the fullest rank with `batch` sequences per replica, KV bytes on that rank).

    Negative: does not fit.
    """
    if not layout.mesh.shape.groups:
        return _free(layout, batch)
    # Several device groups per stage: the fullest of them decides.
    apart = [_free(layout, batch, role) for role in layout.roles()]
    free, kv = (np.stack(x) for x in zip(*apart, strict=True))
    fullest = np.argmin(free, axis=0)[None]
    return np.take_along_axis(free, fullest, 0)[0], np.take_along_axis(kv, fullest, 0)[0]


def _free(layout: Layout, batch: np.ndarray, role: Role = None) -> tuple[np.ndarray, np.ndarray]:
    """The same of the ranks that belong to these device groups."""
    d, engine = layout.deployment, layout.cands.engine
    known = engine in engines()
    bodies, degrees = layout.memory_rows(batch, role), layout.cands.with_batch(batch).degrees()
    stages = [bodies.stage(counts) for counts in layout.stages.each(layout.cands.pp)]
    weights, activation, kv = (np.stack(x) for x in zip(*stages, strict=True))

    def budget(capacity: float, weights: np.ndarray, activation: np.ndarray) -> np.ndarray:
        return kv_budgets(
            # vLLM's accounting stands in for an engine without rules.
            engine if known else "vllm", degrees, memory_total_bytes=capacity, weights_bytes=weights,
            activation_bytes=activation, memory_reserve=d.requirements.memory_reserve,
            version=d.engine.version if known else None,
        )  # fmt: skip

    sizes = layout.capacities
    if len(sizes) == 1:
        left = budget(sizes[0], weights, activation) - kv
    else:
        left = np.stack([budget(*rows) for rows in zip(sizes, weights, activation, strict=True)]) - kv
    fullest = np.argmin(left, axis=0)[None]
    return np.take_along_axis(left, fullest, 0)[0], np.take_along_axis(kv, fullest, 0)[0]


def max_batch(layout: Layout, limit: np.ndarray) -> np.ndarray:
    """Most sequences per replica, at most `limit`, whose KV cache of the longest context fits; 0: not even one."""
    step, limit = layout.cands.attn_dp, np.maximum(limit, 1).astype(np.int64)
    free, kv = free_bytes(layout, limit)
    index = np.flatnonzero(free < 0)
    out = limit.copy()
    if len(index):
        fails = -(-limit // step)[index]
        out[index] = step[index] * _between(layout.take(index), fails, _room(fails, free[index], kv[index]))
    return out


def _room(at: np.ndarray, free: np.ndarray, kv: np.ndarray) -> np.ndarray:
    """Sequences per rank for which there is room, if all that changes with their number is their KV cache."""
    return np.floor(np.maximum(free + kv, 0.0) / np.maximum(kv / at, 1e-9)).astype(np.int64)


def _between(layout: Layout, fails: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Most sequences per rank that fit, `fails` being too many: guesses what there is room for, from both sides, until
    one fits and one more does not; activations and graphs change with the batch too."""
    fits, step = np.zeros_like(fails), layout.cands.attn_dp
    for turn in range(64):
        index = np.flatnonzero(fails - fits > 1)
        if not len(index):
            break
        low, high = fits[index], fails[index]
        at = np.clip(guess[index] if turn < GUESSES else (low + high) // 2, low + 1, high - 1)
        free, kv = free_bytes(layout.take(index), at * step[index])
        fits[index] = np.where(free >= 0, at, low)
        fails[index] = np.where(free < 0, at, high)
        guess[index] = _room(at, free, kv)
    return fits


GUESSES = 8
"""Guesses before the interval is halved instead."""

__all__ = ["BodyBytes", "Candidates", "free_bytes", "max_batch"]
