"""Stages on devices of different kinds: which layers go where, so that the slowest stage is fastest and each fits its device.

Exact, by dynamic programming over (stages used, layers placed): a stage's time and bytes are those of its own device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tools.partition.layerwise import Loads, megabytes
from tools.spec.base import Refused, ToolError


@dataclass(frozen=True, slots=True)
class StageDevice:
    """One stage's device: `seconds` of every layer on it, what embedding and head take, what it may hold."""

    name: str
    seconds: tuple[float, ...]
    capacity_bytes: float
    first: float = 0.0
    last: float = 0.0

    def time(self, lo: int, hi: int) -> float:
        ends = (self.first if lo == 0 else 0.0) + (self.last if hi == len(self.seconds) else 0.0)
        return sum(self.seconds[lo:hi]) + ends


def fastest_split(stages: Sequence[StageDevice], loads: Loads) -> tuple[tuple[int, ...], float]:
    """(layers per stage, time of the slowest stage) over all cuts into contiguous non-empty stages that fit; of equal ones
    the one whose first stages are smallest. Raises Refused, with bytes, when no cut fits."""
    n = len(loads.held)
    if not 1 <= len(stages) <= n:
        raise ToolError(f"{len(stages)} stages for {n} layers; choose from 1 to {n}")
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for used, stage in enumerate(stages, 1):
        found: dict[int, tuple[float, tuple[int, ...]]] = {}
        for hi in range(used, n - len(stages) + used + 1):
            ways = [
                (max(best[lo][0], stage.time(lo, hi)), (*best[lo][1], hi - lo))
                for lo in best
                if lo < hi and loads.of(lo, hi) <= stage.capacity_bytes
            ]
            if ways:
                found[hi] = min(ways)
        best = found
    if n not in best:
        room = " + ".join(f"{s.name} {megabytes(s.capacity_bytes)}" for s in stages)
        raise Refused(
            f"no cut of {n} layers fits these stages: they take {megabytes(loads.of(0, n))} in all, per device there is "
            f"{room}; use more stages, a wider group, fewer-bit weights or a smaller batch"
        )
    return best[n][1], best[n][0]


__all__ = ["StageDevice", "fastest_split"]
