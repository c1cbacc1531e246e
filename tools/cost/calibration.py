"""What one cluster's own measurements say about the curves: four factors on time, and the error that is left.

A factor of 1.1 means that this cluster takes 10 % longer than the committed curves say. They are few and have a meaning,
so that a handful of rows can fit them: `compute` scales kernels bound by math, `memory` those bound by memory traffic
(between the two by their shares), `link` collectives and transfers, `step` what the engine adds per step and request.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tools.spec.base import Frozen

FACTORS = ("compute", "memory", "link", "step")


class Fitted(Frozen):
    """One factor, with the standard error of its logarithm; `informed` says how far the rows moved it from 1 (0..1)."""

    factor: float = 1.0
    standard_error: float = 0.0
    informed: float = 0.0


class CalibratedBand(Frozen):
    """Relative half-width of a metric before and after, and the median absolute error of rows left out of the fit."""

    band: float
    before: float
    rows: int
    error_before: float
    error_after: float


class Calibration(Frozen):
    """Written by `meshwright calibrate`, read by --calibration. Applies to `devices` only (the step factor to every run)."""

    version: int = 1
    devices: tuple[str, ...]
    engines: tuple[str, ...] = ()
    compute: Fitted = Fitted()
    memory: Fitted = Fitted()
    link: Fitted = Fitted()
    step: Fitted = Fitted()
    bands: dict[str, CalibratedBand] = {}
    rows: int = 0
    source: str = ""

    @property
    def factors(self) -> dict[str, float]:
        return {name: getattr(self, name).factor for name in FACTORS}

    def scaled(self, total: Any, compute: Any, memory: Any, *, network: bool) -> Any:
        """Seconds of a kernel on this cluster, from what the committed curves say of it."""
        if network:
            return total * self.link.factor
        share = memory / (compute + memory + 1e-30)
        return total * (share * self.memory.factor + (1.0 - share) * self.compute.factor)


# ---------------------------------------------------------------------------------------------------------------- fit

PRIOR = 0.2
"""Standard deviation of a factor's logarithm before any row is seen: clusters differ from the curves by 20 % or so. With
few rows the fit stays near 1."""
HUBER = 1.5
"""Residuals beyond so many standard deviations pull no harder than at it."""
BAND_ROWS = 8
"""Rows that the committed band counts for, beside those measured."""


def solve(
    jacobian: np.ndarray, residuals: np.ndarray, at: np.ndarray, sigma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(logarithms of the factors, their covariance) that explain `residuals` = ln(predicted/measured), linearised at `at`.

    Ridge towards 1 of width PRIOR; Huber weights by iteration. `jacobian`: one row per residual, one column per factor;
    `sigma`: standard deviation of each residual.
    """
    prior = np.eye(len(at)) / PRIOR**2
    theta, covariance = at.copy(), np.linalg.inv(prior)
    for _ in range(20):
        now = residuals + jacobian @ (theta - at)
        weight = np.minimum(1.0, HUBER / np.maximum(np.abs(now / sigma), 1e-12)) / sigma**2
        normal = jacobian.T @ (weight[:, None] * jacobian) + prior
        # Of the linear model r = residuals - J·at + J·theta.
        right = -jacobian.T @ (weight * (residuals - jacobian @ at))
        step = np.linalg.solve(normal, right)
        covariance = np.linalg.inv(normal)
        if np.abs(step - theta).max() < 1e-6:
            return step, covariance
        theta = step
    return theta, covariance


def left_out(
    jacobian: np.ndarray, residuals: np.ndarray, at: np.ndarray, sigma: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Residual of every row under the factors fitted without it. `rows`: which row each residual belongs to."""
    out = np.empty_like(residuals)
    for row in np.unique(rows):
        mine = rows == row
        if mine.all():
            theta = np.zeros_like(at)
        else:
            theta, _ = solve(jacobian[~mine], residuals[~mine], at, sigma[~mine])
        out[mine] = residuals[mine] + jacobian[mine] @ (theta - at)
    return out


def band_after(before: float, errors: np.ndarray) -> float:
    """The committed band and the 80 % quantile of the left-out errors, weighted by rows."""
    n = len(errors)
    if not n:
        return before
    own = float(np.quantile(np.abs(errors), 0.8))
    return float(np.sqrt((BAND_ROWS * before**2 + n * own**2) / (BAND_ROWS + n)))
