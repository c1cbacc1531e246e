"""Measured efficiency, as tables on logarithmic grids.

A table says what fraction of the roofline a kernel reaches: efficiency = ideal seconds / measured seconds, by shape. The
ideal uses the device's own datasheet, so that a table can be carried over to a device that nobody measured. Between grid
points the logarithm of the efficiency is interpolated linearly in the logarithm of every coordinate; outside the grid the
edge holds.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Table:
    """`axes[i]`: increasing grid of coordinate `names[i]`; `log_efficiency`: natural logarithms, one per grid point."""

    names: tuple[str, ...]
    axes: tuple[np.ndarray, ...]
    log_efficiency: np.ndarray
    residual: float = 0.0
    """Median of |ln(measured / table)| over all measured points."""
    _log_axes: tuple[np.ndarray, ...] = field(default=(), compare=False)
    _lists: tuple[list[float], ...] = field(default=(), compare=False)
    _flat: list[float] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_log_axes", tuple(np.log(a) for a in self.axes))
        object.__setattr__(self, "_lists", tuple(list(map(float, a)) for a in self._log_axes))
        object.__setattr__(self, "_flat", [float(x) for x in self.log_efficiency.ravel()])

    def efficiency(self, coordinates: Sequence[Any]) -> np.ndarray:
        """Efficiency at one point, or at arrays of points (broadcast against each other)."""
        if all(np.size(c) == 1 for c in coordinates):
            shape = np.broadcast_shapes(*(np.shape(c) for c in coordinates))
            return np.full(
                shape, math.exp(self.at([math.log(max(float(np.reshape(c, ())), 1e-12)) for c in coordinates]))
            )
        return np.exp(
            interpolate(self._log_axes, self.log_efficiency, [np.log(np.maximum(c, 1e-12)) for c in coordinates])
        )

    def at(self, point: Sequence[float]) -> float:
        """Logarithm of the efficiency at one point, given by the logarithms of its coordinates: `interpolate` without arrays,
        since an estimate asks for thousands of single points."""
        rows: list[tuple[int, float]] = [(0, 1.0)]
        for grid, x in zip(self._lists, point, strict=True):
            n = len(grid)
            if n == 1:
                rows = [(i * n, w) for i, w in rows]
                continue
            x = min(max(x, grid[0]), grid[-1])
            j = min(bisect_right(grid, x) - 1, n - 2)
            f = (x - grid[j]) / (grid[j + 1] - grid[j])
            rows = [e for i, w in rows for e in ((i * n + j, w * (1.0 - f)), (i * n + j + 1, w * f))]
        return sum(w * self._flat[i] for i, w in rows)


def corner(grid: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower grid index and fraction of every point along one axis, clamped to the grid."""
    i = np.searchsorted(grid[1:-1], x, side="right")
    low, high = grid[i], grid[i + 1]
    return i, (np.minimum(np.maximum(x, low), high) - low) / (high - low)


def corners(grids: Sequence[np.ndarray], points: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """`corner` along every axis."""
    found = [
        corner(g, x) if len(g) > 1 else (np.zeros(np.shape(x), int), np.zeros(np.shape(x)))
        for g, x in zip(grids, points, strict=True)
    ]
    return [i for i, _ in found], [f for _, f in found]


def interpolate(grids: Sequence[np.ndarray], values: np.ndarray, points: Sequence[Any]) -> np.ndarray:
    """Multilinear interpolation; `points[i]` are coordinates along axis i."""
    shape = np.broadcast_shapes(*(np.shape(p) for p in points))
    base: Any = 0
    left: list[tuple[int, np.ndarray]] = []
    for axis in reversed(range(len(grids))):
        grid, x = grids[axis], np.asarray(points[axis], float)
        if len(grid) == 1:
            values = values.take(0, axis)
        elif x.size == 1:
            # The same for all points: only a slice of the table is left.
            i, f = corner(grid, x.reshape(1))
            low, high = values.take(i[0], axis), values.take(i[0] + 1, axis)
            values = low + f[0] * (high - low)
        else:
            left.append((axis, x))
    flat, stride, steps, fractions = values.ravel(), 1, [0], []
    for axis, x in left:
        i, f = corner(grids[axis], x)
        base = base + i * stride
        steps, stride = [s + up for up in (0, stride) for s in steps], stride * len(grids[axis])
        fractions.append(f)
    at = [flat[base + step] for step in steps]
    for f in fractions[::-1]:
        half = len(at) // 2
        at = [low + f * (high - low) for low, high in zip(at[:half], at[half:], strict=True)]
    return np.broadcast_to(at[0], shape)


GROWS = {
    "context": {"isl": 2.0, "heads": 1.0}, "generation": {"context": 1.0, "kv_heads": 1.0}, "gemm": {"m": 1.0},
    "mla_context": {"isl": 2.0, "heads": 1.0}, "mla_generation": {"context": 1.0, "batch": 1.0, "heads": 1.0},
    "moe": {"rows": 1.0},
}  # fmt: skip
"""Coordinates along which no kernel gets faster, with the power of them that its work grows by at most: more sequences, rows or
positions could always be run as what they are a part of. (Wider weights can be faster: libraries choose another kernel.)"""


def ordered(
    names: Sequence[str], axes: Sequence[np.ndarray], values: np.ndarray, grows: Mapping[str, float]
) -> np.ndarray:
    """Logarithms of efficiencies whose times do not fall along `grows`: midway between what slows the larger of two points
    that are the wrong way around and what speeds the smaller up. The fit that filled the grid has such points where nothing
    was measured."""
    out = values
    for i, name in enumerate(names):
        if name not in grows or len(axes[i]) < 2:
            continue
        work = (grows[name] * np.log(axes[i])).reshape([-1 if j == i else 1 for j in range(values.ndim)])
        y = out - work  # minus the logarithm of the time
        slowed = np.minimum.accumulate(y, axis=i)
        sped = np.flip(np.maximum.accumulate(np.flip(y, i), axis=i), i)
        out = 0.5 * (slowed + sped) + work
    return out


def unpack(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> dict[str, Table]:
    """Tables by key ("gemm/h100_sxm_80gb/vllm/bf16") from the arrays of one archive and its description."""
    out = {}
    for key, about in meta["tables"].items():
        axes = tuple(np.array(meta["grids"][about["kind"]][n], float) for n in meta["coordinates"][about["kind"]])
        names = tuple(meta["coordinates"][about["kind"]])
        values = arrays[key.replace("/", "__")].astype(float) / meta["scale"]
        out[key] = Table(names, axes, ordered(names, axes, values, GROWS.get(about["kind"], {})), about["residual"])
    return out
