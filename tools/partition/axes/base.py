"""What an axis is: a cut in the line of a stage's ranks, and the dims it splits.

Everything else (collectives, memory, cost, DAG nodes, the oracle's simulated devices) follows from the layouts that these
few facts give. An axis is one file of this folder with one `Axis(...)` in it; the folder is the registry.

Two kinds: the *strategy's own* axes (tp, cp, attn_dp, ep, etp, edp, dcp), whose degrees are fields of `Strategy`, say
where they cut and what they split. A `Slice` is an axis that takes ranks away from tp, innermost: it says which dims it
splits and which dims give up those ranks, and needs nothing else. Its degree is a field (`dk`) or an entry of
`Strategy.axes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

Order = Literal["run", "cyclic", "zigzag", "paired"]
KVHeads = int | tuple[int, ...]
"""KV heads, or those of full layers and those of layers that slide, where they differ."""
Strides = Mapping[str, Any]
"""Rank distance at which a cut lies, by its name; ints, or arrays with one entry per candidate."""


def counted(kv_heads: KVHeads) -> tuple[int, ...]:
    return (kv_heads,) if isinstance(kv_heads, int) else kv_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Takes ranks away from tp, from the inside: `tp(8) = 4 over the heads * dk(2)`."""

    dims: tuple[str, ...]
    """Dims of weights that it splits; a weight of one dim stays whole."""
    takes_from: tuple[str, ...]
    """Dims that tp deals out over the ranks that this axis leaves."""
    beside: frozenset[str] = frozenset()
    """Weights with one of these dims stay as they are."""
    cache: tuple[str, ...] = ()
    """Dims of the KV cache that it splits."""
    orders: tuple[tuple[str, Order], ...] = ()
    """Dims that are not dealt out in runs while it is above 1."""
    grain: int = 1
    """The split dims have to be multiples of `grain` times the degree; 1: any length, with a remainder too."""
    engines: str = ""
    """Why no engine can run it; the finding ends with this."""


Sliced = Mapping[str, tuple[Slice, int]]
"""The slices of a strategy whose degree is above 1, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a strategy, or several that are cut together."""

    name: str
    summary: str
    """One sentence with the source."""
    cuts: Callable[[Strides], Strides] = field(default=lambda _: {})
    """Names and strides of the cuts that it makes, from degrees by name (`d["tp"]`), `d["kv_heads"]` and
    `d["sliding_kv_heads"]` (the same where all layers have the same heads), and `d["inner"]`: the
    ranks of tp that slices take from the heads."""
    pieces: tuple[tuple[str, str, str], ...] = ()
    """(axis, cut where it starts, cut where it ends): the axes that lie between cuts, innermost first."""
    visible: tuple[str, ...] = ()
    """Those that a strategy names, as messages should."""
    splits: tuple[tuple[str, str], ...] = ()
    """(dim, axis) for every weight that has the dim."""
    slice: Slice | None = None
    check: Callable[[ModelSpec, Strategy, Sliced], None] = field(default=lambda _m, _s, _x: None)
    """Raises ToolError or Refused for degrees that no layout can express, with numbers and the way out."""
    examples: tuple[Mapping[str, Any], ...] = ()
    """Strategies to prove it with (`make prove-all`), on models that accept them."""
