"""Layer-wise placement: contiguous groups of layers, one per device (or stage), by a byte budget such as an L2 or SRAM size.

A group's load is what its layers hold together (weights, KV cache) plus the largest of what they need one after another
(activations), plus embedding or head where it is the first or the last group.

    greedy(loads, budget)             fill one device after the other
    optimal(loads, groups, budget)    the fewest groups, or as many as asked for, and then the lightest heaviest one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tools.spec.base import Refused, ToolError

Method = Literal["greedy", "dp"]


@dataclass(frozen=True, slots=True)
class Loads:
    """Bytes per layer, in order: `held` adds up inside a group, of `peak` the largest counts. `first` and `last` are what
    embedding and head add to the end groups."""

    held: tuple[float, ...]
    peak: tuple[float, ...] = ()
    first: float = 0.0
    last: float = 0.0

    def __post_init__(self) -> None:
        if self.peak and len(self.peak) != len(self.held):
            raise ToolError(f"{len(self.held)} layers with {len(self.peak)} activation peaks")

    def of(self, lo: int, hi: int) -> float:
        """Load of the group of layers lo … hi - 1."""
        ends = (self.first if lo == 0 else 0.0) + (self.last if hi == len(self.held) else 0.0)
        return sum(self.held[lo:hi]) + max(self.peak[lo:hi], default=0.0) + ends

    def groups(self, counts: Sequence[int]) -> tuple[float, ...]:
        """Loads of groups of these numbers of layers."""
        out, lo = [], 0
        for n in counts:
            out.append(self.of(lo, lo + n))
            lo += n
        return tuple(out)


def loads_of(given: Loads | Sequence[float]) -> Loads:
    """Plain bytes per layer as loads that add up."""
    return given if isinstance(given, Loads) else Loads(tuple(given))


def place(loads: Loads, *, budget: float | None, method: Method = "dp", groups: int | None = None) -> tuple[int, ...]:
    """Layers per group. Raises ToolError without a budget or a number of groups, Refused with the numbers where a layer, or
    the best placement, exceeds the budget."""
    if method == "greedy":
        if budget is None:
            raise ToolError("layer-wise placement by greedy filling needs a budget in bytes per device")
        counts = greedy(loads, budget)
        if groups is not None and len(counts) != groups:
            raise Refused(
                f"greedy filling of {megabytes(budget)} takes {len(counts)} devices, not {groups}; use method dp, or "
                f"pp {len(counts)}"
            )
        return counts
    return optimal(loads, budget=budget, groups=groups)


def greedy(loads: Loads | Sequence[float], budget: float) -> tuple[int, ...]:
    """Layers per device, each filled until the next layer would exceed the budget. No placement takes fewer devices: a
    group's load only grows with its layers."""
    loads = loads_of(loads)
    refuse_large_layers(loads, budget)
    n, lo = len(loads.held), 0
    out: list[int] = []
    while lo < n:
        hi = lo + 1
        while hi < n and loads.of(lo, hi + 1) <= budget:
            hi += 1
        out.append(hi - lo)
        lo = hi
    return tuple(out)


def optimal(
    loads: Loads | Sequence[float], groups: int | None = None, *, budget: float | None = None
) -> tuple[int, ...]:
    """Of all placements into `groups` non-empty contiguous groups (without it: into the fewest that keep the budget) the one
    whose heaviest group is lightest; of equal ones the one whose first groups are smallest. Exact, by dynamic programming
    over (groups used, layers placed)."""
    loads = loads_of(loads)
    if groups is None:
        if budget is None:
            raise ToolError("layer-wise placement needs a budget in bytes per device, or a number of devices")
        groups = len(greedy(loads, budget))
    n = len(loads.held)
    if not 1 <= groups <= n:
        raise ToolError(f"{groups} groups for {n} layers; choose from 1 to {n}")
    if budget is not None:
        refuse_large_layers(loads, budget)
    cost = {(lo, hi): loads.of(lo, hi) for lo in range(n) for hi in range(lo + 1, n + 1)}
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for used in range(1, groups + 1):
        best = {
            hi: min((max(best[lo][0], cost[lo, hi]), (*best[lo][1], hi - lo)) for lo in best if lo < hi)
            for hi in range(used, n - groups + used + 1)
        }
    worst, counts = best[n]
    if budget is not None and worst > budget:
        raise Refused(
            f"{n} layers on {groups} devices of {megabytes(budget)}: the heaviest group takes at least {megabytes(worst)}; "
            f"use {len(greedy(loads, budget))} devices, or a budget of {megabytes(worst)}"
        )
    return counts


def refuse_large_layers(loads: Loads, budget: float) -> None:
    """Raises Refused, with numbers, for a layer that no device can hold."""
    n = len(loads.held)
    for i in range(n):
        need = loads.of(i, i + 1)
        if need > budget:
            ends = [("embedding", loads.first)] * (i == 0) + [("head", loads.last)] * (i == n - 1)
            beside = "".join(f" with the {what} ({megabytes(b)})" for what, b in ends if b)
            raise Refused(
                f"layer {i}{beside} takes {megabytes(need)}, the budget is {megabytes(budget)} per device; slice layers over "
                f"tp of at least {-(-int(need) // max(1, int(budget)))}, use fewer-bit weights or a smaller batch, or raise "
                f"the budget"
            )


def megabytes(n: float) -> str:
    return f"{n / 1e6:,.4g} MB" if n < 1e9 else f"{n / 1e9:,.4g} GB"


__all__ = ["Loads", "Method", "greedy", "loads_of", "megabytes", "optimal", "place", "refuse_large_layers"]
