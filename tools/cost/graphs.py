"""Partitioned graphs of a candidate set: candidates whose axes nest alike share one `MeshShape` and so one graph; degrees
and sizes are filled in as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from tools.cost.candidates import Candidates
from tools.cost.collectives import Level, members
from tools.cost.compute import Num, WalkContext, Work, walk
from tools.cost.curves import MoECurve
from tools.cost.known import distinct
from tools.graph.build import all_sizes
from tools.graph.ir import Sizes
from tools.memory import Dtypes, Role, activation_sizes, body_activation_bytes, body_kv_bytes, body_weight_bytes
from tools.partition.axes import KVHeads
from tools.partition.lower import PBody, partition_embed, partition_head, partition_layer, placement_of
from tools.partition.mesh import Axes, Mesh, MeshShape, build_mesh
from tools.partition.placement import Placement
from tools.spec.model import LayerKind, ModelSpec
from tools.spec.strategy import Phase, Strategy

PHASES: tuple[Phase, ...] = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class Bodies:
    """Partitioned bodies of one phase."""

    embed: PBody
    layers: tuple[tuple[LayerKind, PBody], ...]
    head: PBody

    @property
    def all(self) -> tuple[PBody, ...]:
        return (self.embed, *(b for _, b in self.layers), self.head)


@dataclass(frozen=True, slots=True)
class KnownMesh(Mesh):
    """A mesh of arrays that multiplies its degrees once."""

    known: dict[Axes, Num] = field(default_factory=dict, compare=False)

    def degree(self, axes: Axes) -> Num:
        if axes not in self.known:
            self.known[axes] = Mesh.degree(self, axes)
        return self.known[axes]


@dataclass(frozen=True, slots=True)
class Graph:
    """The partitioned graph of one MeshShape."""

    model: ModelSpec
    mesh: Mesh
    """Every combination of degrees that some candidate has, once."""
    prefill: Bodies
    decode: Bodies
    dtypes: Dtypes
    weight_dtype: str
    moe: MoECurve
    tops: tuple[Level, ...]
    number: int = 0
    """In `Known`."""
    reached: dict[Axes, list[Num]] = field(default_factory=dict, compare=False)

    @property
    def identity(self) -> tuple[PBody, ...]:
        """What its kernels follow from, besides degrees and sizes."""
        return (*self.prefill.all, *self.decode.all)

    def bodies(self, phase: Phase) -> Bodies:
        return self.prefill if phase == "prefill" else self.decode

    def at(self, rows: np.ndarray) -> Mesh:
        """Its mesh at these entries (repeats allowed)."""
        return KnownMesh(self.mesh.shape, {a: np.asarray(d)[rows] for a, d in self.mesh.degrees.items()})

    def one(self, row: int) -> Mesh:
        """Its mesh at one entry, as plain numbers: arrays of one are ten times slower to multiply."""
        return Mesh(self.mesh.shape, {a: int(np.ravel(d)[row]) for a, d in self.mesh.degrees.items()})

    def reach(self, axes: Axes) -> list[Num]:
        """Members of a group at each level, for every entry of the mesh."""
        if axes not in self.reached:
            self.reached[axes] = members(axes, self.mesh, self.tops)
        return self.reached[axes]

    def walk(self, phase: Phase, mesh: Mesh, sequences: Num, tokens: Num, context: Num) -> tuple[tuple[Work, ...], ...]:
        """Kernels of every body in a step of `sequences` x `tokens` new ones at `context` KV positions."""
        sizes = all_sizes(self.model, batch_size=sequences, seq_len=tokens, kv_len=context)
        sizes = with_node_count(sizes, mesh)
        ctx = WalkContext(self.dtypes, self.weight_dtype, sizes, mesh, phase, self.moe)
        return tuple(walk(b, ctx) for b in self.bodies(phase).all)

    def held(
        self, cands: Candidates, rows: np.ndarray, batch: np.ndarray, context: int, role: Role = None
    ) -> np.ndarray:
        """Bytes on the fullest rank, one line per candidate: KV of every body, then their activations. `rows`: entry of the
        mesh for each candidate."""
        bodies, mesh, tokens = self.prefill.all, self.at(rows), cands.max_num_batched_tokens
        sizes = activation_sizes(self.model, attn_dp=cands.attn_dp, batch=batch, max_num_batched_tokens=tokens)
        sizes = with_node_count(sizes, mesh)
        holds: dict[str, Any] = {
            "sequences": -(-batch // cands.attn_dp), "context": context, "engine": cands.engine, "in_flight": tokens,
            "role": role,
        }  # fmt: skip
        kv = [body_kv_bytes(b, sizes, mesh, self.dtypes, **holds) for b in bodies]
        seen: dict[Any, Any] = {}
        peaks = [body_activation_bytes(b, sizes, mesh, self.dtypes, role=role, known=seen) for b in bodies]
        return columns((*kv, *peaks), len(batch))

    def weights(self, role: Role = None) -> np.ndarray:
        """Bytes of every body's weights on the fullest rank, and of the head's those that the embedding does not hold too;
        one line per entry of the mesh."""
        bodies, mesh = self.prefill.all, self.mesh
        sizes = activation_sizes(self.model, attn_dp=1, batch=1, max_num_batched_tokens=1)
        tied = frozenset(x.name for x in bodies[0].weights())
        whole = [body_weight_bytes(b, sizes, mesh, self.dtypes, role=role) for b in bodies]
        untied = body_weight_bytes(bodies[-1], sizes, mesh, self.dtypes, tied, role)
        return columns((*whole, untied), num_rows(mesh))


def columns(values: Sequence[Num], n: int) -> np.ndarray:
    """`values` side by side, `n` lines."""
    out = np.empty((n, len(values)))
    for i, x in enumerate(values):
        out[:, i] = x
    return out


def with_node_count(sizes: Sizes, mesh: Mesh) -> Sizes:
    """Sizes of a hierarchical dispatch over as many nodes as each candidate's mesh has."""
    return {**sizes, "expert_nodes": mesh.degree(mesh.shape.axis("ep_nodes"))} if "expert_nodes" in sizes else sizes


@lru_cache(maxsize=65536)
def _degrees(tp: int, attn_dp: int, ep: int, etp: int, cp: int, dcp: int, ep_nodes: int, kv_heads: KVHeads) -> Mesh:
    return build_mesh(Strategy(tp=tp, attn_dp=attn_dp, ep=ep, etp=etp, cp=cp, dcp=dcp, ep_nodes=ep_nodes), kv_heads)


def meshes(cands: Candidates, model: ModelSpec) -> tuple[list[Mesh], np.ndarray]:
    """(per MeshShape every combination of degrees that some candidate has, once; which of them each candidate has, counted
    through). Raises Refused for degrees that do not nest."""
    if cands.origin is not None:
        one = build_mesh(cands.origin, model.cache_heads)
        degrees = {a: np.asarray([d], np.int64) for a, d in one.degrees.items()}
        return [Mesh(one.shape, degrees)], np.zeros(len(cands), np.int64)
    names = ("tp", "attn_dp", "ep", "etp", "cp", "dcp", "ep_nodes")
    columns = [getattr(cands, n) for n in names]
    first, back = distinct(columns, len(cands))
    found = [_degrees(*(int(x[i]) for x in columns), model.cache_heads) for i in first]
    by_shape: dict[MeshShape, list[int]] = {}
    for i, mesh in enumerate(found):
        by_shape.setdefault(mesh.shape, []).append(i)
    place = np.empty(len(found), np.int64)
    place[[i for rows in by_shape.values() for i in rows]] = np.arange(len(found))
    out = [
        Mesh(shape, {a: np.asarray([found[i].degrees[a] for i in rows], np.int64) for a in shape.atoms})
        for shape, rows in by_shape.items()
    ]
    return out, place[back]


def bodies(model: ModelSpec, placement: Placement) -> Bodies:
    kinds = tuple(dict.fromkeys(model.layers()))
    return Bodies(
        partition_embed(model, placement),
        tuple((k, partition_layer(model, k, placement)) for k in kinds),
        partition_head(model, placement),
    )


def placement(cands: Candidates, mesh: Mesh, phase: Phase) -> Placement:
    if cands.origin is not None:
        return placement_of(cands.origin, mesh, phase)
    return Placement(mesh.shape, phase, cands.sp, cands.moe_comm)


def num_rows(mesh: Mesh) -> int:
    """Combinations of degrees."""
    return max((len(d) for d in mesh.degrees.values()), default=1)  # type: ignore[arg-type]


def starts(found: Sequence[Mesh]) -> np.ndarray:
    """First entry of every mesh when they are counted through, and the end."""
    return np.cumsum([0, *(num_rows(m) for m in found)])


__all__ = ["PHASES", "Bodies", "Graph", "bodies", "meshes", "placement", "starts"]
