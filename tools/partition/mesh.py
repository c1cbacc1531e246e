"""One device group and its axes.

A group of ranks is factorised twice, into attention axes (attn_dp, cp, tp) and expert axes (edp, ep, etp). Both
factorisations cut the same line of ranks at some strides; the *atomic* axes are the pieces between all cuts together. So
every logical axis is a tuple of atomic ones (outermost first), and a tensor that moves from the attention factorisation
to the expert one is an ordinary redistribution. tp itself is cut at `tp_rep`, the number of ranks that share one KV
head when tp exceeds the number of KV heads.

A stage may have several groups of ranks (experts apart from attention, an attention pool). Each has atomic axes of its
own on one stretch of the stage's ranks; an axis says which group it belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from math import gcd, prod

import numpy as np

from tools.graph.ir import Size
from tools.partition.axes import LOGICAL, SLICES, VISIBLE, KVHeads, counted, cuts, sliced
from tools.spec.base import Refused
from tools.spec.strategy import Strategy

Axes = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MeshShape:
    """Structure of a group: names of the atomic axes from outermost to innermost, and what each logical axis is made of.

    No degrees here: candidates whose axes nest alike share one MeshShape, and so one partitioned graph.
    """

    atoms: Axes
    logical: tuple[tuple[str, Axes], ...]
    groups: tuple[tuple[str, Axes, str], ...] = ()
    """Device groups where a stage has several: (name, atoms, the group whose ranks it follows; "" starts with the stage).
    The first one is attention's, which holds everything that no other group was made for."""

    def axis(self, name: str) -> Axes:
        return dict(self.logical).get(name, ())

    def group_of(self, atom: str) -> str:
        """Name of the device group that an axis belongs to; "" where there is one group only."""
        return next((name for name, atoms, _ in self.groups if atom in atoms), "")

    def members(self, group: str) -> Axes:
        """Atomic axes of a device group."""
        return next((atoms for name, atoms, _ in self.groups if name == group), self.atoms)

    def words(self, axes: Axes, first: str = "") -> str:
        """Atomic axes as a strategy calls them: "cp·tp"; "part of tp" where a logical axis is cut further; "nothing".

        Where two logical axes are the same ranks, `first` is the one to name.
        """
        named = {n: set(self.axis(n)) for n in VISIBLE if self.axis(n)}
        out: list[str] = []
        while axes:
            fit = [n for n, a in named.items() if set(axes[: len(a)]) == a]
            # Attention's axes before the experts', the longest first.
            whole = min(fit, key=lambda n: (n != first, n not in ("tp", "cp", "attn_dp"), -len(named[n])), default=None)
            host = whole or min((n for n, a in named.items() if axes[0] in a), key=lambda n: len(named[n]))
            out.append(host if whole else f"part of {host}")
            axes = axes[len(named[host]) if whole else 1 :]
        return "·".join(dict.fromkeys(out)) or "nothing"


@dataclass(frozen=True, slots=True)
class Mesh:
    """A MeshShape with degrees: ints for one strategy, arrays for a candidate set."""

    shape: MeshShape
    degrees: Mapping[str, Size]

    def degree(self, axes: Axes) -> Size:
        d: Size = 1
        for a in axes:
            d = d * self.degrees[a]
        return d

    @property
    def size(self) -> Size:
        """Ranks of one pipeline stage, those of all groups."""
        if not self.shape.groups:
            return self.degree(self.shape.atoms)
        ends = [self.first(g) + self.degree(atoms) for g, atoms, _ in self.shape.groups]
        return reduce(np.maximum, ends) if any(isinstance(e, np.ndarray) for e in ends) else max(ends)

    def first(self, group: str) -> Size:
        """First rank of a device group inside its stage."""
        before = next((after for name, _, after in self.shape.groups if name == group), "")
        return self.first(before) + self.degree(self.shape.members(before)) if before else 0

    def ranks(self, group: str) -> range:
        """Ranks of a device group inside its stage; of the stage where it has one group only."""
        first = int(self.first(group))
        return range(first, first + int(self.degree(self.shape.members(group))))

    def roles(self) -> tuple[tuple[frozenset[str], range], ...]:
        """Ranks that belong to the same device groups, run by run: the pool's own ranks serve the pool only, attention's
        serve both."""
        if not self.shape.groups:
            return ((frozenset({""}), range(int(self.size))),)
        spans = {name: self.ranks(name) for name, _, _ in self.shape.groups}
        cuts_ = sorted({end for r in spans.values() for end in (r.start, r.stop)})
        runs = [range(a, b) for a, b in pairwise(cuts_)]
        return tuple((frozenset(n for n, span in spans.items() if run.start in span), run) for run in runs)

    def stride(self, atom: str) -> Size:
        """Rank distance between neighbours along the axis."""
        mine = self.shape.members(self.shape.group_of(atom))
        return self.degree(mine[mine.index(atom) + 1 :])

    def coordinate(self, rank: int, atom: str) -> int:
        rank = rank - int(self.first(self.shape.group_of(atom))) if self.shape.groups else rank
        return int(rank // self.stride(atom) % self.degrees[atom])

    def groups(self, axes: Axes) -> tuple[tuple[int, ...], ...]:
        """Ranks that differ only along `axes`, in the order of `axes` (outermost first); every rank of the device group
        that has these axes is in one of them."""
        group = self.shape.group_of(axes[0]) if axes else next((name for name, _, _ in self.shape.groups), "")
        atoms = self.shape.members(group)
        grid = np.asarray(self.ranks(group)).reshape([int(self.degrees[a]) for a in atoms])
        keep = [i for i, a in enumerate(atoms) if a not in axes]
        move = [atoms.index(a) for a in axes]
        rows = grid.transpose(keep + move).reshape(-1, int(self.degree(axes)))
        return tuple(tuple(int(r) for r in row) for row in rows)


ATTENTION, EXPERTS, POOL = "attention", "experts", "pool"
"""Device groups of a stage that has more than one."""


def build_mesh(strategy: Strategy, kv_heads: KVHeads) -> Mesh:
    """Mesh of one stage of one replica. Refuses factorisations that do not nest, with the two strides that clash."""
    assert strategy.attn_dp is not None and strategy.etp is not None
    taken = prod(d for x, d in sliced(strategy).values() if "heads" in x.takes_from)
    if strategy.tp % taken:
        raise Refused(f"tp({strategy.tp}) % {taken} = {strategy.tp % taken}; slices of heads take ranks from tp")
    over_heads = strategy.tp // taken
    for kv in counted(kv_heads):
        if over_heads > kv and over_heads % kv:
            raise Refused(
                f"tp({over_heads}) exceeds kv_heads({kv}) and is no multiple of it: KV heads cannot be replicated "
                f"evenly; choose tp among the divisors or multiples of {kv}"
            )
    apart = strategy.expert_devices > 0
    names = ("tp", "cp", "attn_dp", "dcp", *SLICES)
    degrees = {n: strategy.degree(n) for n in names} | (
        {} if apart else {n: strategy.degree(n) for n in ("ep", "etp", "ep_nodes")}
    )
    named = cuts(degrees, kv_heads)
    if strategy.cp_kind == "ring":
        named["cp_rep"] = named["cp_rep_sliding"] = named["tp"]  # heads are not exchanged, so cp needs no cut for them
    attention = _nodes_inside(mesh_from_cuts({k: int(v) for k, v in named.items()}))
    others = []
    if strategy.attn_pool:
        others.append(_pool_mesh(strategy.attention_group + strategy.attn_pool, kv_heads))
    if apart:
        others.append(_expert_mesh(strategy, POOL if strategy.attn_pool else ATTENTION))
    return _together(attention, others) if others else attention


def _nodes_inside(mesh: Mesh) -> Mesh:
    """Sequences are dealt out over attn_dp with the nodes inside: what a rank gets from its counterparts in the other nodes
    is then one run of the batch, which the exchange inside the node cuts no further. Which rank serves which sequence is
    free; ranks that slice the same experts (etp) stay innermost."""
    nodes, etp = mesh.shape.axis("ep_nodes"), mesh.shape.axis("etp")
    if not nodes:
        return mesh

    def order(axes: Axes) -> Axes:
        return tuple(sorted(axes, key=lambda a: (a in nodes) + 2 * (a in etp)))

    logical = tuple((n, order(a) if n == "attn_dp" else a) for n, a in mesh.shape.logical)
    return replace(mesh, shape=replace(mesh.shape, logical=logical))


def _expert_mesh(s: Strategy, after: str) -> tuple[str, str, Mesh]:
    """Experts on devices of their own: edp * ep * etp, etp innermost."""
    assert s.etp is not None
    atoms = {"e_edp": s.edp, "e_ep": s.ep, "e_etp": s.etp}
    mine = {a: d for a, d in atoms.items() if d > 1}
    logical = tuple((name[2:], (name,) if name in mine else ()) for name in atoms)
    return EXPERTS, after, Mesh(MeshShape(tuple(mine), logical), mine)


def _pool_mesh(size: int, kv_heads: KVHeads) -> tuple[str, str, Mesh]:
    """Attention over the stage's own devices and the pool's: heads as far as KV heads go, positions over the rest."""
    heads = gcd(size, *counted(kv_heads))
    mine = {a: d for a, d in (("p_seq", size // heads), ("p_heads", heads)) if d > 1}
    logical = tuple((f"pool_{a[2:]}", (a,) if a in mine else ()) for a in ("p_seq", "p_heads"))
    return POOL, "", Mesh(MeshShape(tuple(mine), logical), mine)


def _together(attention: Mesh, others: Sequence[tuple[str, str, Mesh]]) -> Mesh:
    """One mesh of several device groups."""
    taken = {name for _, _, m in others for name, _ in m.shape.logical}
    logical = tuple((n, a) for n, a in attention.shape.logical if n not in taken)
    groups = ((ATTENTION, attention.shape.atoms, ""), *((n, m.shape.atoms, after) for n, after, m in others))
    shape = MeshShape(
        tuple(a for _, atoms, _ in groups for a in atoms),
        (*logical, *(pair for _, _, m in others for pair in m.shape.logical)), groups,
    )  # fmt: skip
    degrees = dict(attention.degrees)
    for _, _, m in others:
        degrees |= m.degrees
    return Mesh(shape, degrees)


CUT_WORDS = {
    "inner": "the slices of tp", "tp_rep": "tp/kv_heads (the ranks that share a KV head)",
    "tp_rep_sliding": "tp/sliding_kv_heads (the ranks that share a KV head of layers that slide)",
    "cp_rep": "tp * cp/kv_heads (the ranks that share a KV head)",
    "cp_rep_sliding": "tp * cp/sliding_kv_heads (the ranks that share a KV head of layers that slide)",
    "group": "tp * cp * attn_dp",
}  # fmt: skip


def _ends_at(named: Mapping[str, int], stride: int) -> str:
    """Name of a cut at `stride`, one that a strategy names if there is one."""
    return min((k for k, v in named.items() if v == stride), key=lambda k: k in CUT_WORDS)


def mesh_from_cuts(named: Mapping[str, int]) -> Mesh:
    strides = sorted(set(named.values()))
    for inner, outer in pairwise(strides):
        if outer % inner:
            a, b = (CUT_WORDS.get(k, k) for k in (_ends_at(named, inner), _ends_at(named, outer)))
            raise Refused(
                f"axes do not nest: {a} ends at stride {inner}, {b} at {outer}, and {inner} does not divide {outer}; "
                f"choose degrees where one divides the other"
            )
    atoms = [f"a{i}" for i in range(len(strides) - 1)]
    degrees = {a: outer // inner for a, (inner, outer) in zip(atoms, pairwise(strides), strict=True)}
    ends = dict(zip(strides, range(len(strides)), strict=True))
    logical = tuple(
        (name, tuple(reversed(atoms[ends[named[lo]] : max(ends[named[lo]], ends[named[hi]])])))
        for name, lo, hi in LOGICAL
    )
    return Mesh(MeshShape(tuple(reversed(atoms)), logical), degrees)
