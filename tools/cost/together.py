"""Pricing many kernels at once: kernels that differ in nothing but their sizes are laid end to end and priced as one.

A step of one graph has some thirty kernels, a candidate set a dozen graphs; a call into the cost model takes as long as
pricing hundreds of rows. What a kernel costs does not depend on which others are priced with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from tools.cost.compute import ARRAYS, Num, Work

MOST_ROWS = 8192
"""Rows of one call: beyond, arrays no longer fit the cache and longer ones gain nothing."""
PLAIN = tuple(f.name for f in fields(Work) if f.name not in (*ARRAYS, "shape", "kernel", "comm"))
"""Fields of a Work that choose how it is priced; its name does not, nor the axes of a collective beside `reach`."""


@dataclass(frozen=True, slots=True)
class Job:
    """A kernel at `rows` sizes. `reach`, of a collective: group members at each level."""

    work: Work
    rows: int
    reach: tuple[Num, ...] = ()

    @property
    def values(self) -> tuple[Num, ...]:
        w = self.work
        return (*(getattr(w, name) for name in ARRAYS), *w.shape, *self.reach)


def price_all(jobs: Sequence[Job], price: Callable[[Work, list[Num]], Num]) -> list[Num]:
    """`price` of every job's kernel, in order."""
    groups: dict[Any, list[int]] = {}
    for i, job in enumerate(jobs):
        groups.setdefault(_alike(job), []).append(i)
    out: list[Num] = [0.0] * len(jobs)
    for group in groups.values():
        for part in _parts(jobs, group):
            if len(part) == 1:
                out[part[0]] = price(jobs[part[0]].work, list(jobs[part[0]].reach))
                continue
            seconds, at = price(*_end_to_end([jobs[i] for i in part])), 0
            for i in part:
                out[i] = seconds[at : at + jobs[i].rows] if np.ndim(seconds) else seconds
                at += jobs[i].rows
    return out


def _alike(job: Job) -> Any:
    """Equal for kernels that one call can price: what is an array in one is an array in the other, what is a number the same
    number (a coordinate that all share takes a dimension off a table)."""
    w = job.work
    numbers = tuple(None if isinstance(x, np.ndarray) and x.ndim else float(x) for x in job.values)
    sort = None if w.comm is None else w.comm.kind
    return sort, len(w.shape), numbers, tuple(getattr(w, name) for name in PLAIN)


def _parts(jobs: Sequence[Job], group: Sequence[int]) -> list[list[int]]:
    """The group in runs of at most MOST_ROWS."""
    out: list[list[int]] = []
    rows = MOST_ROWS + 1
    for i in group:
        rows += jobs[i].rows
        if rows > MOST_ROWS:
            out.append([])
            rows = jobs[i].rows
        out[-1].append(i)
    return out


def _end_to_end(jobs: Sequence[Job]) -> tuple[Work, list[Num]]:
    """One kernel with the rows of all of them."""
    columns = [
        np.concatenate(
            [x if len(x) == j.rows else np.broadcast_to(x, (j.rows,)) for x, j in zip(xs, jobs, strict=True)]
        )
        if isinstance(xs[0], np.ndarray) and xs[0].ndim
        else xs[0]
        for xs in zip(*(j.values for j in jobs), strict=True)
    ]
    w, n = jobs[0].work, len(ARRAYS)
    sizes: dict[str, Any] = dict(zip(ARRAYS, columns[:n], strict=True))
    shape = tuple(columns[n : n + len(w.shape)])
    return replace(w, **sizes, shape=shape), columns[n + len(shape) :]


__all__ = ["Job", "price_all"]
