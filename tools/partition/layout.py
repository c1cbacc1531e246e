"""How a tensor lies on a mesh, and the collectives that change it.

A layout maps dims to mesh axes (outermost first) and lists axes along which every rank holds only a summand (`pending`).
Axes that appear nowhere hold copies. A dim splits axis by axis, outermost first, each split as even as possible with the
longer parts first; so shards of a dim that does not divide differ by at most one element per axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tools.graph.ir import Size
from tools.partition.axes.base import Order
from tools.partition.mesh import Axes, Mesh

Reduction = Literal["sum", "max"]
"""How a dim is dealt out. run: one stretch per rank. cyclic: position i to rank i mod d, so that a growing cache stays
even. zigzag: of 2d stretches, rank r has the r-th and the r-th from the end, so that causal attention is balanced.
paired: of 2d stretches, rank r has the r-th and the (d + r)-th, so that both halves of every RoPE pair are on one rank."""
Orders = Mapping[str, Order]
DEFAULT_ORDERS: Orders = {"kv_len": "cyclic"}
CommKind = Literal["all_reduce", "reduce_scatter", "all_gather", "all_to_all", "slice", "p2p", "ring_shift", "transfer"]


@dataclass(frozen=True, slots=True)
class Layout:
    """`split`: (dim, axes) pairs, sorted by dim, none empty. `pending`: axes awaiting a reduction, sorted."""

    split: tuple[tuple[str, Axes], ...] = ()
    pending: Axes = ()
    reduce: Reduction = "sum"
    rotation: int = 0
    """Ring steps that keys and values have travelled: the rank holds the `kv_len` that the rank that many places before it
    had. Negative: steps that queries and their sums have travelled (`seq_len`)."""

    @staticmethod
    def of(split: Mapping[str, Axes], pending: Axes = (), reduce: Reduction = "sum") -> Layout:
        return Layout(
            tuple(sorted((d, a) for d, a in split.items() if a)), tuple(sorted(pending)), reduce if pending else "sum"
        )

    def turned(self, dim: str) -> int:
        """Places around the ring that this dim has travelled."""
        return max(0, self.rotation if dim == "kv_len" else -self.rotation if dim == "seq_len" else 0)

    def axes(self, dim: str) -> Axes:
        return next((a for d, a in self.split if d == dim), ())

    def as_dict(self) -> dict[str, Axes]:
        return dict(self.split)

    def used(self) -> frozenset[str]:
        return frozenset(a for _, axes in self.split for a in axes) | frozenset(self.pending)

    def without_pending(self) -> Layout:
        return Layout(self.split, rotation=self.rotation)

    def __str__(self) -> str:
        parts = [f"{d}:{'·'.join(a)}" for d, a in self.split]
        if self.pending:
            parts.append(f"pending {self.reduce}({'·'.join(self.pending)})")
        return ", ".join(parts) or "replicated"


REPLICATED = Layout()


@dataclass(frozen=True, slots=True)
class Comm:
    """One step of a redistribution. `axes` outermost first; `src_dim` loses them, `dst_dim` gains them.

    all_reduce: neither dim. reduce_scatter, slice: dst_dim. all_gather: src_dim. all_to_all: both. transfer: no axes; from
    one device group to another, each with its own layout (see `tools.partition.transfer`).
    """

    kind: CommKind
    axes: Axes
    src_dim: str | None = None
    dst_dim: str | None = None
    reduce: Reduction = "sum"
    src_axes: Axes = ()
    """all_to_all: the same axes as `src_dim` lies over them, where that is another order."""


def local_size(n: Size, degree: Size) -> Size:
    """Longest shard of a dim of length `n` cut `degree` ways."""
    return -(-n // degree)


def positions(
    n: int, axes: Axes, mesh: Mesh, rank: int, dim: str = "", orders: Orders = DEFAULT_ORDERS, rotation: int = 0
) -> np.ndarray:
    """Global indices of the part of a dim of length `n` that `rank` holds."""
    order = orders.get(dim, "run")
    if order != "run" and axes:
        degree, at = int(mesh.degree(axes)), 0
        for a in axes:
            at = at * int(mesh.degrees[a]) + mesh.coordinate(rank, a)
        at = (at - rotation) % degree
        if order == "cyclic":
            return np.arange(at, n, degree)
        stretches = np.array_split(np.arange(n), 2 * degree)
        return np.concatenate([stretches[at], stretches[degree + at if order == "paired" else 2 * degree - 1 - at]])
    lo, hi = 0, n
    for a in axes:
        d, c, length = int(mesh.degrees[a]), mesh.coordinate(rank, a), hi - lo
        base, extra = divmod(length, d)
        lo, hi = lo + c * base + min(c, extra), lo + (c + 1) * base + min(c + 1, extra)
    return np.arange(lo, hi)


def redistribute(src: Layout, dst: Layout) -> tuple[tuple[Comm, Layout], ...]:
    """Steps from `src` to `dst`, each with the layout it reaches. Pending axes that both have stay pending."""
    steps: list[tuple[Comm, Layout]] = []
    cur = _settle_pending(src, dst, steps)
    # Axes leave from the inside: slicing before gathering would interleave the shards.
    while (move := _next_departure(cur, dst)) is not None:
        cur = _apply(cur, move)
        steps.append((move, cur))
    for dim, axes in dst.split:
        have = cur.axes(dim)
        if len(have) < len(axes):
            comm = Comm("slice", axes[len(have) :], dst_dim=dim)
            cur = _apply(cur, comm)
            steps.append((comm, cur))
    assert cur == dst, f"redistribute({src} → {dst}) ended at {cur}"
    return tuple(steps)


def _settle_pending(src: Layout, dst: Layout, steps: list[tuple[Comm, Layout]]) -> Layout:
    """Reduce-scatter where the destination splits a dim over the pending axes next, all-reduce the rest."""
    cur, todo = src, [a for a in src.pending if a not in dst.pending]
    for dim, axes in dst.split:
        have = cur.axes(dim)
        run: list[str] = []
        if axes[: len(have)] == have:
            for a in axes[len(have) :]:
                if a not in todo:
                    break
                run.append(a)
        if run:
            comm = Comm("reduce_scatter", tuple(run), dst_dim=dim, reduce=src.reduce)
            cur = _apply(cur, comm)
            steps.append((comm, cur))
            todo = [a for a in todo if a not in run]
    if todo:
        comm = Comm("all_reduce", tuple(todo), reduce=src.reduce)
        cur = _apply(cur, comm)
        steps.append((comm, cur))
    return cur


def _next_departure(cur: Layout, dst: Layout) -> Comm | None:
    for dim, axes in cur.split:
        want = dst.axes(dim)
        keep = 0
        while keep < min(len(axes), len(want)) and axes[keep] == want[keep]:
            keep += 1
        tail = axes[keep:]
        if not tail:
            continue
        for cut in range(len(tail)):
            moving = tail[cut:]
            for other, wanted in dst.split:
                have = cur.axes(other)
                gains = wanted[len(have) : len(have) + len(moving)]
                if other != dim and wanted[: len(have)] == have and sorted(gains) == sorted(moving):
                    return Comm("all_to_all", gains, dim, other, src_axes=() if gains == moving else moving)
        # Gather only what lies inside the first axis that another dim waits for; that one can then leave by all-to-all.
        waiting = {wanted[len(cur.axes(d))] for d, wanted in dst.split if d != dim and len(cur.axes(d)) < len(wanted)}
        inner = next((i + 1 for i, a in enumerate(tail[:-1]) if a in waiting), 0)
        return Comm("all_gather", tail[inner:], src_dim=dim)
    return None


def _apply(cur: Layout, comm: Comm) -> Layout:
    split, pending = cur.as_dict(), cur.pending
    if comm.kind in ("all_reduce", "reduce_scatter"):
        pending = tuple(a for a in pending if a not in comm.axes)
    if comm.src_dim:
        have = split[comm.src_dim]
        assert have[len(have) - len(comm.axes) :] == (comm.src_axes or comm.axes), f"{comm} on {cur}"
        split[comm.src_dim] = have[: len(have) - len(comm.axes)]
    if comm.dst_dim:
        split[comm.dst_dim] = split.get(comm.dst_dim, ()) + comm.axes
    return Layout.of(split, pending, cur.reduce)
