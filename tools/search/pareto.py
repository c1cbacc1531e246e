"""The front of throughput per device against TPOT."""

from __future__ import annotations

import numpy as np


def front(throughput: np.ndarray, latency: np.ndarray) -> np.ndarray:
    """Indices of the points that no other beats in both, from low latency to high."""
    order = np.lexsort((-throughput, latency))
    best = np.maximum.accumulate(throughput[order])
    keep = np.ones(len(order), bool)
    keep[1:] = throughput[order][1:] > best[:-1]
    return order[keep]
