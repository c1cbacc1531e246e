"""The axes of a strategy, one file each. `tools.partition.mesh` cuts the line of ranks as they say, and
`tools.partition.placement` splits weights and cache as they say."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np

from tools.partition.axes.base import Axis, KVHeads, Slice, Sliced, counted
from tools.spec.base import ToolError
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

__all__ = [
    "AXES", "LOGICAL", "SLICES", "SPLITS", "VISIBLE", "Axis", "KVHeads", "Slice", "check_axes", "counted", "cuts", "sliced",
]  # fmt: skip

AXES: tuple[Axis, ...] = tuple(
    import_module(f"{__name__}.{m.name}").AXIS for m in sorted(iter_modules(__path__), key=lambda m: m.name)
    if m.name != "base"
)  # fmt: skip
"""Every file's `AXIS`."""


def _slices() -> dict[str, Slice]:
    found = {a.name: a.slice for a in AXES if a.slice}
    # Innermost those that heads give ranks to, so that the others cannot lie between the copies of a KV head.
    return dict(sorted(found.items(), key=lambda item: "heads" not in item[1].takes_from))


SLICES: dict[str, Slice] = _slices()
"""Axes that take ranks away from tp, by name, innermost first."""
LOGICAL: tuple[tuple[str, str, str], ...] = (
    *((name, before, name) for before, name in zip(("one", *SLICES), SLICES, strict=False)),
    *(piece for a in AXES for piece in a.pieces),
)
"""(axis, cut where it starts, cut where it ends)."""
VISIBLE: tuple[str, ...] = (*dict.fromkeys(("tp", "cp", "attn_dp", *(n for a in AXES for n in a.visible))), *SLICES)
"""Axes that a strategy names, in the order in which messages prefer them; the others are parts of these."""
SPLITS: tuple[tuple[str, str], ...] = tuple(row for a in AXES for row in a.splits)


def cuts(degrees: Mapping[str, Any], kv_heads: KVHeads) -> dict[str, Any]:
    """Strides at which the line of ranks is cut, by name. Works on ints and on arrays; a degree that is missing is 1."""
    counts = counted(kv_heads)
    one = np.ones_like(degrees["tp"])
    named: dict[str, Any] = {"one": one}
    inner, stride = one, one
    for name, s in SLICES.items():
        stride = stride * degrees.get(name, 1)
        named[name] = stride
        inner = stride if "heads" in s.takes_from else inner
    d = {
        "kv_heads": counts[0],
        "sliding_kv_heads": counts[-1],
        "inner": inner,
        "dcp": 1,
        "cp": 1,
        "attn_dp": 1,
        "ep": 1,
        "etp": 1,
        "ep_nodes": 1,
        **degrees,
    }
    named["inner"] = inner
    for axis in AXES:
        named |= {k: v * one for k, v in axis.cuts(d).items()}
    return named


def check_axes(model: ModelSpec, strategy: Strategy) -> None:
    """Raises ToolError or Refused for degrees that no layout can express. Engine rules are stricter and live elsewhere."""
    for name, _ in strategy.axes:
        if name not in SLICES:
            raise ToolError(f"axes: no axis is called {name}; known: {', '.join(SLICES)}")
    taken = sliced(strategy)
    for axis in AXES:
        axis.check(model, strategy, taken)


def sliced(strategy: Strategy) -> Sliced:
    """The slices of a strategy whose degree is above 1."""
    return {n: (x, d) for n, x in SLICES.items() if (d := strategy.degree(n)) > 1}
