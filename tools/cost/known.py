"""What was worked out before: costs of bodies by what they depend on, so that a second search over changed conditions (other
limits, another rate, more devices) prices only what is new.

A `Known` belongs to one partitioned graph on one kind of device. Its tables map whole numbers (degrees, sequences, tokens,
context) to one value per body. Values are exactly what would be worked out again; nothing is rounded to be found.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tools.partition.mesh import Mesh

MAX_ROWS = 60_000
"""Rows that a table keeps; it starts anew beyond."""
MAX_KNOWN = 64
"""Graphs that are remembered, the ones used last."""
BITS_SEQUENCES, BITS_PAIR, BITS_MESH = 30, 18, 14


def distinct(columns: Sequence[Any], n: int) -> tuple[np.ndarray, np.ndarray]:
    """(index of one candidate of each kind, kind of each candidate) of `n` candidates that differ in whole numbers."""
    key, most = np.zeros(n, np.int64), 1
    for column in columns:
        x = np.asarray(column, np.int64)
        if x.ndim == 0 or n == 0:
            continue
        low = int(x.min())
        span = int(x.max()) - low + 1
        if span == 1:
            continue
        if most * span >= 2**62:
            _, key = np.unique(key, return_inverse=True)
            most = int(key.max()) + 1
        key, most = key * span + (x - low), most * span
    if most <= 8 * n + 4096:
        # Few possible values: ranks by counting instead of sorting.
        seen = np.full(most, -1, np.int64)
        seen[key[::-1]] = np.arange(n - 1, -1, -1)
        kinds = np.flatnonzero(seen >= 0)
        first = seen[kinds]
        seen[kinds] = np.arange(len(kinds))
        return first, seen[key]
    _, first, back = np.unique(key, return_index=True, return_inverse=True)
    return first, back.reshape(-1)


@dataclass(slots=True)
class Table:
    """Columns of values by key."""

    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """In order."""
    where: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Row of each key in `values`."""
    values: np.ndarray | None = None
    lock: Any = field(default_factory=threading.Lock)

    def rows(self, keys: np.ndarray, work_out: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(values, one row per key; the table's row of each). `keys` are distinct; `work_out` gives the values of those at
        the indices that are missing."""
        with self.lock:
            if len(self.keys) + len(keys) > MAX_ROWS:
                self.keys, self.where, self.values = self.keys[:0], self.where[:0], None
            at = np.searchsorted(self.keys, keys)
            known = at < len(self.keys)
            known[known] = self.keys[at[known]] == keys[known]
            missing = np.flatnonzero(~known)
            if len(missing):
                self._add(keys[missing], work_out(missing))
                at = np.searchsorted(self.keys, keys)
            assert self.values is not None
            found = self.where[at]
            return self.values[found], found

    def _add(self, keys: np.ndarray, values: np.ndarray) -> None:
        old = 0 if self.values is None else len(self.values)
        self.values = values if self.values is None else np.concatenate([self.values, values])
        everything = np.concatenate([self.keys, keys])
        order = np.argsort(everything, kind="stable")
        self.where = np.concatenate([self.where, np.arange(old, old + len(keys))])[order]
        self.keys = everything[order]


@dataclass(slots=True)
class Known:
    """Tables of one partitioned graph."""

    owner: Any
    """What the tables' identity rests on, kept alive."""
    tables: dict[str, Table] = field(default_factory=dict)
    meshes: dict[tuple[int, ...], int] = field(default_factory=dict)
    pairs: dict[tuple[int, int], int] = field(default_factory=dict)
    launches: dict[str, list[float]] = field(default_factory=dict)
    """Kernels of every body, by phase: whatever the sizes."""

    def table(self, name: str) -> Table:
        return self.tables.setdefault(name, Table())

    def mesh_ids(self, mesh: Mesh) -> np.ndarray:
        """A number for each combination of degrees."""
        columns = [np.atleast_1d(mesh.degrees[a]).tolist() for a in mesh.shape.atoms]
        rows = zip(*columns, strict=True) if columns else [()]
        return np.asarray([self.meshes.setdefault(r, len(self.meshes)) for r in rows], np.int64)

    def keys(self, mesh_ids: np.ndarray, sequences: np.ndarray, first: Any, second: Any) -> np.ndarray | None:
        """One whole number per row; None where they do not fit into one."""
        pair = self._pair_ids(first, second)
        sizes = (int(np.max(mesh_ids, initial=0)), int(np.max(pair, initial=0)), int(np.max(sequences, initial=0)))
        if any(x >> bits for x, bits in zip(sizes, (BITS_MESH, BITS_PAIR, BITS_SEQUENCES), strict=True)):
            return None
        return ((mesh_ids << BITS_PAIR | pair) << BITS_SEQUENCES) | np.asarray(sequences, np.int64)

    def _pair_ids(self, first: Any, second: Any) -> Any:
        if np.ndim(first) == 0 and np.ndim(second) == 0:
            return self.pairs.setdefault((int(first), int(second)), len(self.pairs))
        both = np.broadcast_arrays(np.asarray(first, np.int64), np.asarray(second, np.int64))
        start, back = distinct(both, len(both[0]))
        ids = [self.pairs.setdefault((int(both[0][i]), int(both[1][i])), len(self.pairs)) for i in start]
        return np.asarray(ids, np.int64)[back]


_KNOWN: OrderedDict[Hashable, Known] = OrderedDict()
_LOCK = threading.Lock()


def known(key: Hashable, owner: Any) -> Known:
    """Tables of what `key` names; `owner` holds the objects whose identity is part of the key."""
    with _LOCK:
        found = _KNOWN.pop(key, None) or Known(owner)
        _KNOWN[key] = found
        while len(_KNOWN) > MAX_KNOWN:
            _KNOWN.popitem(last=False)
        return found


def forget() -> None:
    """Start anew: for measurements of a first search."""
    with _LOCK:
        _KNOWN.clear()


__all__ = ["Known", "Table", "distinct", "forget", "known"]
