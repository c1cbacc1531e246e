"""What was worked out before: costs of bodies by what they depend on, so that a second search over changed conditions (other
limits, another rate, more devices) prices only what is new.

A `Known` belongs to one kind of device. Its tables map whole numbers (graph, degrees, sequences, tokens, context) to one value
per body. Values are exactly what would be worked out again; nothing is rounded to be found.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tools.partition.mesh import Mesh

MAX_ROWS = 400_000
"""Rows that a table keeps; it starts anew beyond."""
MAX_VALUES = 16_000_000
"""Numbers that are remembered in all; what was used longest ago goes first."""
BITS_SEQUENCES, BITS_PAIR, BITS_MESH = 28, 17, 18


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
    """Lines of values by key."""

    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """In order."""
    where: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Line of each key."""
    values: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """Lines from `base` on; the last ones are room for more."""
    base: int = 0
    """Lines that are gone. Numbers of lines are never used again: other tables are keyed by them."""
    lock: Any = field(default_factory=threading.Lock)

    def rows(self, keys: np.ndarray, work_out: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(values, one line per key; the number of each line). `keys` are distinct; `work_out` gives the values of those at
        the indices that are missing."""
        with self.lock:
            if len(self.keys) + len(keys) > MAX_ROWS:
                self.base += len(self.keys)
                self.keys, self.where = self.keys[:0], self.where[:0]
            at = np.searchsorted(self.keys, keys)
            known = at < len(self.keys)
            known[known] = self.keys[at[known]] == keys[known]
            missing = np.flatnonzero(~known)
            if len(missing):
                self._add(keys[missing], work_out(missing))
                at = np.searchsorted(self.keys, keys)
            found = self.where[at]
            return self.values[found - self.base], found

    def _add(self, keys: np.ndarray, values: np.ndarray) -> None:
        old, new = len(self.keys), len(self.keys) + len(keys)
        if new > len(self.values) or self.values.shape[1] != values.shape[1]:
            room = np.empty((max(new, 2 * old), values.shape[1]))
            if old:
                room[:old] = self.values[:old]
            self.values = room
        self.values[old:new] = values
        order = np.argsort(keys)
        at = np.searchsorted(self.keys, keys[order])
        self.where = np.insert(self.where, at, self.base + old + order)
        self.keys = np.insert(self.keys, at, keys[order])


@dataclass(slots=True)
class Known:
    """Tables of one kind of device and number format, for any number of partitioned graphs."""

    owner: list[Any]
    """What the tables' identity rests on, kept alive."""
    tables: dict[str, Table] = field(default_factory=dict)
    graphs: dict[tuple[int, ...], int] = field(default_factory=dict)
    meshes: dict[tuple[int, ...], int] = field(default_factory=dict)
    pairs: dict[tuple[int, int], int] = field(default_factory=dict)
    launches: dict[int, list[float]] = field(default_factory=dict)
    """Kernels of every body in prefill, by graph: whatever the sizes."""
    lock: Any = field(default_factory=threading.Lock)
    """Two threads must not give one number to two things."""

    def table(self, name: str) -> Table:
        return self.tables.setdefault(name, Table())

    @property
    def size(self) -> int:
        """Numbers it holds."""
        return sum(t.values.size for t in self.tables.values())

    def number(self, graph: Sequence[Any]) -> int:
        """A number for each partitioned graph, told apart by the objects it consists of."""
        key = tuple(map(id, graph))
        with self.lock:
            if key not in self.graphs:
                self.graphs[key] = len(self.graphs)
                self.owner.append(graph)
            return self.graphs[key]

    def mesh_ids(self, graph: int, mesh: Mesh) -> np.ndarray:
        """A number for each combination of degrees of a graph."""
        columns = [np.atleast_1d(mesh.degrees[a]).tolist() for a in mesh.shape.atoms]
        rows = zip(*columns, strict=True) if columns else [()]
        with self.lock:
            return np.asarray([self.meshes.setdefault((graph, *r), len(self.meshes)) for r in rows], np.int64)

    def keys(self, mesh_ids: np.ndarray, sequences: np.ndarray, first: Any, second: Any) -> np.ndarray | None:
        """One whole number per row; None where they do not fit into one."""
        pair = self._pair_ids(first, second)
        sizes = (int(np.max(mesh_ids, initial=0)), int(np.max(pair, initial=0)), int(np.max(sequences, initial=0)))
        if any(x >> bits for x, bits in zip(sizes, (BITS_MESH, BITS_PAIR, BITS_SEQUENCES), strict=True)):
            return None
        return ((mesh_ids << BITS_PAIR | pair) << BITS_SEQUENCES) | np.asarray(sequences, np.int64)

    def _pair_ids(self, first: Any, second: Any) -> Any:
        if np.ndim(first) == 0 and np.ndim(second) == 0:
            return self._numbers([(int(first), int(second))])[0]
        both = np.broadcast_arrays(np.asarray(first, np.int64), np.asarray(second, np.int64))
        start, back = distinct(both, len(both[0]))
        return self._numbers([(int(both[0][i]), int(both[1][i])) for i in start])[back]

    def _numbers(self, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
        with self.lock:
            return np.asarray([self.pairs.setdefault(p, len(self.pairs)) for p in pairs], np.int64)


_KNOWN: OrderedDict[Hashable, Known] = OrderedDict()
_LOCK = threading.Lock()


def known(key: Hashable, owner: Any) -> Known:
    """Tables of what `key` names; `owner`: the object whose identity is part of the key."""
    with _LOCK:
        found = _KNOWN.pop(key, None) or Known([owner])
        _KNOWN[key] = found
        while len(_KNOWN) > 1 and sum(k.size for k in _KNOWN.values()) > MAX_VALUES:
            _KNOWN.popitem(last=False)
        return found


def forget() -> None:
    """Start anew: for measurements of a first search."""
    with _LOCK:
        _KNOWN.clear()


__all__ = ["Known", "Table", "distinct", "forget", "known"]
