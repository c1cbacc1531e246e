"""From one device group to another: who sends which part of a tensor to whom.

The two groups lay the tensor out on meshes of their own, so no collective of one mesh takes one layout to the other. What
a receiver needs is cut into the pieces that the senders hold; of equal copies the receivers take turns, so that the load
spreads; what a receiver holds already stays where it is. Attention sends tokens to experts this way and experts send them
back, an attention pool gets its queries, keys and values, and decode ranks get the KV cache of prefill ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tools.partition.layout import Layout, Orders, positions
from tools.partition.mesh import Mesh

Index = tuple[np.ndarray, ...]
"""Global positions per dim."""


@dataclass(frozen=True, slots=True)
class Side:
    """One end of a transfer: the layout, the mesh it speaks of, and the ranks of the group."""

    layout: Layout
    mesh: Mesh
    ranks: Sequence[int]
    orders: Orders

    def held(self, rank: int, lengths: Mapping[str, int]) -> Index:
        """Positions of every dim that a rank holds (or is to hold)."""
        axes, ring = self.layout.axes, self.orders.get("seq_len", "run") != "run"
        # A ring's cache lies as the prompt's positions were dealt out.
        order = {d: "seq_len" if d == "kv_len" and ring else d for d in lengths}
        return tuple(positions(n, axes(d), self.mesh, rank, order[d], self.orders, 0) for d, n in lengths.items())


@dataclass(frozen=True, slots=True)
class Message:
    """Rank `src` hands rank `dst` the part of the tensor at `index`; src == dst: the part stays there."""

    src: int
    dst: int
    index: Index

    @property
    def elements(self) -> int:
        return int(np.prod([len(i) for i in self.index], dtype=np.int64))


def messages(src: Side, dst: Side, lengths: Mapping[str, int], *, same_ranks: bool = True) -> tuple[Message, ...]:
    """Every piece that travels, receiver by receiver. `same_ranks`: equal numbers on both sides are the same device.

    Raises ValueError where the senders' parts do not cover what a receiver needs.
    """
    copies: dict[tuple[bytes, ...], tuple[Index, list[int]]] = {}
    for rank in src.ranks:
        held = src.held(rank, lengths)
        if all(len(i) for i in held):
            copies.setdefault(tuple(i.tobytes() for i in held), (held, []))[1].append(rank)
    out: list[Message] = []
    turn = [0] * len(copies)
    for receiver in dst.ranks:
        want = dst.held(receiver, lengths)
        missing = int(np.prod([len(i) for i in want], dtype=np.int64))
        for k, (held, owners) in enumerate(copies.values()):
            part = tuple(np.intersect1d(a, b, assume_unique=True) for a, b in zip(want, held, strict=True))
            if not all(len(i) for i in part):
                continue
            at_home = same_ranks and receiver in owners
            sender = receiver if at_home else owners[turn[k] % len(owners)]
            turn[k] += not at_home
            out.append(Message(sender, receiver, part))
            missing -= out[-1].elements
        if missing:
            raise ValueError(
                f"rank {receiver} needs {missing} elements of a tensor over {dict(lengths)} that no rank sends"
            )
    return tuple(out)


def circles(sent: Iterable[Message]) -> list[tuple[list[int], list[int]]]:
    """(senders, receivers) of a transfer, apart where no message joins them."""
    found: list[tuple[set[int], set[int]]] = []
    for m in sent:
        joined = [c for c in found if m.src in c[0] or m.dst in c[1]]
        found = [c for c in found if c not in joined]
        found.append(({m.src}.union(*(c[0] for c in joined)), {m.dst}.union(*(c[1] for c in joined))))
    return sorted((sorted(a), sorted(b)) for a, b in found)


def place(whole: Index, piece: Index) -> tuple[np.ndarray, ...]:
    """Open mesh that addresses `piece` inside an array that holds the positions `whole`. Raises ValueError for positions
    that it does not hold: what carries only zeros would else pass wherever it came from."""
    return np.ix_(*(_where(w, p) for w, p in zip(whole, piece, strict=True)))


def _where(held: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    order = np.argsort(held, kind="stable")
    at = np.searchsorted(held, wanted, sorter=order)
    if len(wanted) and (at.max() >= len(held) or (held[order[at]] != wanted).any()):
        raise ValueError(f"positions {wanted.min()} to {wanted.max()} are not among those held")
    return order[at]
