"""One forward pass of every pipeline stage, for arrays of candidates.

Candidates whose axes nest alike share one `MeshShape` and so one partitioned graph; degrees and sizes are filled in as
arrays. A `Layout` prices steps on demand: decode of b sequences, a prefill chunk, both together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from tools.cost.collectives import Level, boundaries, collective_time, levels, p2p_time
from tools.cost.compute import KernelTime, Num, Roof, WalkContext, Work, merge, price, walk
from tools.cost.curves import Curves, EngineCurve
from tools.engines.rules import default_layers_per_stage, engines
from tools.graph.build import all_sizes
from tools.memory import (
    Dtypes,
    activation_sizes,
    body_activation_bytes,
    body_kv_bytes,
    body_weight_bytes,
)
from tools.partition.lower import PBody, partition_embed, partition_head, partition_layer, placement_of
from tools.partition.lower import default_layers_per_stage as balanced_layers
from tools.partition.mesh import Mesh, MeshShape, build_mesh
from tools.partition.placement import Placement
from tools.spec.deployment import Deployment
from tools.spec.model import DType, LayerKind, ModelSpec
from tools.spec.strategy import Phase, Strategy

MoEComm = Literal["auto", "alltoall", "allgather"]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Degrees as int64 arrays of one length; what all of them share as scalars."""

    tp: np.ndarray
    pp: np.ndarray
    dp: np.ndarray
    ep: np.ndarray
    etp: np.ndarray
    attn_dp: np.ndarray
    batch: np.ndarray
    max_num_batched_tokens: np.ndarray
    sp: bool = False
    moe_comm: MoEComm = "auto"
    weight_dtype: DType = "bf16"
    kv_dtype: DType = "bf16"
    engine: str = "vllm"
    layers_per_stage: tuple[int, ...] | None = None
    """Stated stages, for one strategy; None: the engine's default."""
    origin: Strategy | None = None
    """Set when all entries are one strategy at several batches: axes that have no array here (cp, dcp, dk) come from
    it."""

    def __len__(self) -> int:
        return len(self.tp)

    @property
    def group(self) -> np.ndarray:
        return self.tp * self.attn_dp * (self.origin.cp if self.origin else 1)

    @property
    def num_devices(self) -> np.ndarray:
        return self.group * self.pp * self.dp

    def take(self, index: Any) -> Candidates:
        return replace(self, **{n: getattr(self, n)[index] for n in ARRAYS})

    def with_batch(self, batch: np.ndarray) -> Candidates:
        return replace(self, batch=batch)

    @classmethod
    def of(cls, s: Strategy) -> Candidates:
        arrays = {n: np.asarray([getattr(s, n)], np.int64) for n in ARRAYS}
        return cls(
            **arrays, sp=s.sp, moe_comm=s.moe_comm, weight_dtype=s.weight_dtype, kv_dtype=s.kv_dtype, engine=s.engine,
            layers_per_stage=s.layers_per_stage, origin=s,
        )  # fmt: skip

    def strategy(self, i: int, model: ModelSpec) -> Strategy:
        """Candidate i as a Strategy, its stages spelled out."""
        degrees: dict[str, Any] = {n: int(getattr(self, n)[i]) for n in ARRAYS}
        stages = self.layers_per_stage or stage_layers(self.engine, model.num_hidden_layers, degrees["pp"])
        return Strategy(
            **degrees, sp=self.sp, moe_comm=self.moe_comm, weight_dtype=self.weight_dtype, kv_dtype=self.kv_dtype,
            engine=self.engine, layers_per_stage=stages if degrees["pp"] > 1 else None, microbatches=degrees["pp"],
        )  # fmt: skip


ARRAYS = ("tp", "pp", "dp", "ep", "etp", "attn_dp", "batch", "max_num_batched_tokens")
assert {f.name for f in fields(Candidates)} >= set(ARRAYS)


def stage_layers(engine: str, num_layers: int, pp: int) -> tuple[int, ...]:
    """The engine's own split where it has one."""
    if engine in engines() or engine == "trtllm":
        return default_layers_per_stage(engine, num_layers, pp)
    return balanced_layers(num_layers, pp)


@dataclass(frozen=True, slots=True)
class StageRow:
    """What one kind of stage runs: how many of its layers are of each kind, and whether it embeds and ends."""

    layers: tuple[tuple[LayerKind, int], ...]
    embed: bool
    head: bool


@lru_cache(maxsize=2048)
def stage_rows(model: ModelSpec, split: tuple[int, ...]) -> tuple[tuple[StageRow, int], ...]:
    """Distinct stages with how many there are of each."""
    kinds, first = model.layers(), 0
    rows: dict[StageRow, int] = {}
    for i, count in enumerate(split):
        mine = kinds[first : first + count]
        per_kind = tuple((k, mine.count(k)) for k in dict.fromkeys(mine))
        row = StageRow(tuple(sorted(per_kind, key=repr)), i == 0, i == len(split) - 1)
        rows[row] = rows.get(row, 0) + 1
        first += count
    return tuple(rows.items())


@dataclass(frozen=True, slots=True)
class StepTime:
    """One pass of one microbatch. `latency`: through all stages; `slowest`: what bounds the rate."""

    latency: Num
    slowest: Num

    def minus(self, other: StepTime) -> StepTime:
        return StepTime(np.maximum(self.latency - other.latency, 0.0), np.maximum(self.slowest - other.slowest, 0.0))


@dataclass(frozen=True, slots=True)
class Bodies:
    """Partitioned bodies of one phase."""

    embed: PBody
    layers: tuple[tuple[LayerKind, PBody], ...]
    head: PBody


@dataclass(frozen=True, slots=True)
class Works:
    """Kernels of every body in one step; `tokens_p2p`: residual bytes that cross a stage boundary per rank."""

    embed: tuple[Work, ...]
    layers: tuple[tuple[LayerKind, tuple[Work, ...]], ...]
    head: tuple[Work, ...]
    residual_bytes: Num
    key: np.ndarray | None = None
    """One row per candidate: what its kernels depend on. Rows that are alike are priced once."""


DEDUPLICATE = 64
"""Candidates from which looking for equal ones pays."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Candidates of one MeshShape on one deployment, ready to be priced."""

    deployment: Deployment
    curves: Curves
    cands: Candidates
    mesh: Mesh
    prefill: Bodies
    decode: Bodies
    dtypes: Dtypes
    roof: Roof
    tops: tuple[Level, ...]

    @property
    def model(self) -> ModelSpec:
        return self.deployment.model

    @property
    def engine(self) -> EngineCurve:
        return self.curves.engine(self.cands.engine)

    # ------------------------------------------------------------------------------------------------------------ steps

    def works(self, phase: Phase, sequences: Num, tokens: Num, context: Num) -> Works:
        """Kernels of a step of `sequences` (per replica) x `tokens` new ones at `context` KV positions."""
        bodies, mesh = self.prefill if phase == "prefill" else self.decode, self.mesh
        if len(self.cands) == 1:
            # Plain numbers: arrays of one are ten times slower to multiply.
            mesh = Mesh(mesh.shape, {a: int(np.reshape(d, -1)[0]) for a, d in mesh.degrees.items()})
            sequences, tokens, context = (int(np.reshape(x, -1)[0]) for x in (sequences, tokens, context))
        sizes = all_sizes(self.model, batch_size=sequences, seq_len=tokens, kv_len=context)
        ctx = WalkContext(self.dtypes, self.cands.weight_dtype, sizes, mesh, phase, self.curves.moe)
        per_rank = -(-sequences // self.cands.attn_dp)
        if self.cands.sp:
            per_rank = -(-per_rank // self.cands.tp)
        return Works(
            embed=walk(bodies.embed, ctx),
            layers=tuple((k, walk(b, ctx)) for k, b in bodies.layers),
            head=walk(bodies.head, ctx),
            residual_bytes=per_rank * tokens * self.model.hidden_size * self.dtypes.plain,
            key=self._key(sequences, tokens, context),
        )

    def _key(self, *sizes: Num) -> np.ndarray | None:
        n = len(self.cands)
        if n < DEDUPLICATE:
            return None
        rows = [*(self.mesh.degrees[a] for a in self.mesh.shape.atoms), *sizes]
        return np.stack([np.broadcast_to(np.asarray(x, np.int64), (n,)) for x in rows], axis=1)

    def _distinct(self, works: Works) -> tuple[Layout, Works, np.ndarray] | None:
        """(layout and kernels of the candidates that differ, where each candidate is among them)."""
        if works.key is None:
            return None
        key = works.key - works.key.min(axis=0)
        weight = np.cumprod(np.concatenate([[1.0], key.max(axis=0)[:-1] + 1.0]))
        if weight[-1] * (key[:, -1].max() + 1.0) > 2.0**62:
            _, first, back = np.unique(works.key, axis=0, return_index=True, return_inverse=True)
        else:
            _, first, back = np.unique(key @ weight.astype(np.int64), return_index=True, return_inverse=True)
        n = len(self.cands)
        if len(first) > 0.7 * n:
            return None

        def few(ws: tuple[Work, ...]) -> tuple[Work, ...]:
            return tuple(w.take(first, n) for w in ws)

        mesh = Mesh(self.mesh.shape, {a: np.asarray(d)[first] for a, d in self.mesh.degrees.items()})
        layers = tuple((k, few(ws)) for k, ws in works.layers)
        small = Works(few(works.embed), layers, few(works.head), works.residual_bytes)
        return replace(self, cands=self.cands.take(first), mesh=mesh), small, back.reshape(-1)

    def _body_times(self, works: Works) -> tuple[Num, dict[LayerKind, Num], Num]:
        """Seconds of the embedding, of a layer of each kind, of the head."""
        found = self._distinct(works)
        if found is None:
            layers = {k: self.body_time(w) for k, w in works.layers}
            return self.body_time(works.embed), layers, self.body_time(works.head)
        layout, small, back = found
        n = len(layout.cands)

        def all_of(t: Num) -> np.ndarray:
            return np.asarray(np.broadcast_to(t, (n,))[back])

        embed, kinds, head = layout._body_times(small)
        return all_of(embed), {k: all_of(t) for k, t in kinds.items()}, all_of(head)

    def mixed(self, prefill: Works, decode: Works) -> Works:
        """Both in one step."""
        layers = tuple((k, merge(a, b)) for (k, a), (_, b) in zip(prefill.layers, decode.layers, strict=True))
        return Works(
            merge(prefill.embed, decode.embed), layers, merge(prefill.head, decode.head),
            prefill.residual_bytes + decode.residual_bytes,
            None if prefill.key is None or decode.key is None else np.concatenate([prefill.key, decode.key], axis=1),
        )  # fmt: skip

    def kernel_time(self, w: Work) -> KernelTime:
        if w.comm is None:
            return price(w, self.roof)
        t = collective_time(w.comm.kind, w.comm.axes, w.comm_bytes, self.mesh, self.tops)
        return KernelTime(t, 0.0, 0.0)

    def body_time(self, works: tuple[Work, ...]) -> Num:
        total: Num = 0.0
        for w in works:
            total = total + self.kernel_time(w).total
        return total

    def step(self, works: Works, sequences: Num) -> StepTime:
        """Time of a step, the engine's overhead for `sequences` included once per pass."""
        embed, layers, head = self._body_times(works)
        overhead = self.engine.step_s + self.engine.per_sequence_s * -(-sequences // self.cands.attn_dp)

        def stage_time(row: StageRow) -> Num:
            t: Num = embed if row.embed else 0.0
            for kind, count in row.layers:
                t = t + count * layers[kind]
            return t + head if row.head else t

        latency, slowest = self.over_stages(stage_time)
        hops, worst = self.boundary_times(works.residual_bytes)
        return StepTime(latency + hops + overhead, slowest + worst + overhead)

    def launches(self, works: Works) -> np.ndarray:
        """Kernels that one pass through all stages launches."""
        per = {k: float(sum(not w.fused for w in ws)) for k, ws in works.layers}
        ends = (len(works.embed), len(works.head))

        def count(row: StageRow) -> Num:
            return ends[0] * row.embed + ends[1] * row.head + sum(n * per[kind] for kind, n in row.layers)

        return self.over_stages(count)[0]

    def boundary_times(self, nbytes: Num) -> tuple[Num, Num]:
        """(sum over the stage boundaries, slowest one): each rank sends its part of the residual stream."""
        total: Num = 0.0
        worst: Num = 0.0
        for count, level in zip(boundaries(self.cands.pp, self.cands.group, self.tops), self.tops, strict=True):
            t = p2p_time(nbytes, level)
            total = total + count * t
            worst = np.maximum(worst, np.where(count > 0, t, 0.0))
        return total, worst

    # ----------------------------------------------------------------------------------------------------------- stages

    def splits(self) -> list[tuple[np.ndarray, tuple[int, ...]]]:
        """(indices of candidates, layers per stage), one entry per distinct pp."""
        out = []
        for pp in np.unique(self.cands.pp):
            split = self.cands.layers_per_stage or stage_layers(
                self.cands.engine, self.model.num_hidden_layers, int(pp)
            )
            out.append((np.flatnonzero(self.cands.pp == pp), split))
        return out

    def over_stages(self, value: Callable[[StageRow], Num]) -> tuple[np.ndarray, np.ndarray]:
        """(sum, maximum) over the stages of each candidate of a quantity per kind of stage."""
        n = len(self.cands)
        total, worst = np.zeros(n), np.full(n, -np.inf)
        for index, split in self.splits():
            for row, count in stage_rows(self.model, split):
                v = np.broadcast_to(np.asarray(value(row), float), (n,))[index]
                total[index] += count * v
                worst[index] = np.maximum(worst[index], v)
        return total, worst

    # ----------------------------------------------------------------------------------------------------------- memory

    def memory_rows(self, batch: np.ndarray) -> StageBytes:
        """Bytes per body of the fullest rank at `batch` sequences per replica."""
        w = self.deployment.workload
        per_rank = -(-batch // self.cands.attn_dp)
        sizes = activation_sizes(
            self.model,
            attn_dp=self.cands.attn_dp,
            batch=batch,
            max_num_batched_tokens=self.cands.max_num_batched_tokens,
        )
        held: dict[str, Any] = {
            "sequences": per_rank, "context": w.context, "engine": self.cands.engine,
            "in_flight": self.cands.max_num_batched_tokens,
        }  # fmt: skip
        args = (sizes, self.mesh, self.dtypes)
        tied = frozenset(x.name for x in self.prefill.embed.weights())
        return StageBytes(
            weights={k: body_weight_bytes(b, *args) for k, b in self.prefill.layers}
            | {"embed": body_weight_bytes(self.prefill.embed, *args)}
            | {"head": body_weight_bytes(self.prefill.head, *args)}
            | {"head_tied": body_weight_bytes(self.prefill.head, *args, tied)},
            kv={k: body_kv_bytes(b, *args, **held) for k, b in self.prefill.layers},
            activation={k: body_activation_bytes(b, *args) for k, b in self.prefill.layers}
            | {"embed": body_activation_bytes(self.prefill.embed, *args)}
            | {"head": body_activation_bytes(self.prefill.head, *args)},
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StageBytes:
    """Bytes by body, and their sums by stage."""

    weights: Mapping[Any, Num]
    kv: Mapping[Any, Num]
    activation: Mapping[Any, Num]

    def stage_weights(self, row: StageRow) -> Num:
        total: Num = self.weights["embed"] if row.embed else 0.0
        for kind, count in row.layers:
            total = total + count * self.weights[kind]
        if row.head:
            total = total + self.weights["head_tied" if row.embed else "head"]
        return total

    def stage_kv(self, row: StageRow) -> Num:
        return sum((count * self.kv[kind] for kind, count in row.layers), 0.0)

    def stage_activation(self, row: StageRow) -> Num:
        names = [k for k, _ in row.layers] + ["embed"] * row.embed + ["head"] * row.head
        peak: Num = 0.0
        for n in names:
            peak = np.maximum(peak, self.activation[n])
        return peak


def kv_heads_cut(model: ModelSpec) -> int:
    """Heads along which tp can split the cache (MLA: the latent is copied, so heads as such)."""
    return model.attention.num_heads if model.attention.mla else model.attention.num_kv_heads


@lru_cache(maxsize=65536)
def _degrees(tp: int, attn_dp: int, ep: int, etp: int, kv_heads: int) -> Mesh:
    return build_mesh(Strategy(tp=tp, attn_dp=attn_dp, ep=ep, etp=etp), kv_heads)


def group_by_shape(cands: Candidates, model: ModelSpec) -> dict[MeshShape, tuple[np.ndarray, Mesh]]:
    """Indices and array mesh of the candidates of each MeshShape. Raises Refused for degrees that do not nest."""
    if cands.origin is not None:
        one = build_mesh(cands.origin, kv_heads_cut(model))
        degrees = {a: np.full(len(cands), d, np.int64) for a, d in one.degrees.items()}
        return {one.shape: (np.arange(len(cands)), Mesh(one.shape, degrees))}
    keys = np.stack([cands.tp, cands.attn_dp, cands.ep, cands.etp], axis=1)
    unique, inverse = np.unique(keys, axis=0, return_inverse=True)
    meshes = [_degrees(*(int(x) for x in row), kv_heads_cut(model)) for row in unique]
    by_shape: dict[MeshShape, list[int]] = {}
    for i, mesh in enumerate(meshes):
        by_shape.setdefault(mesh.shape, []).append(i)
    out = {}
    inverse = inverse.reshape(-1)
    for shape, rows in by_shape.items():
        index = np.flatnonzero(np.isin(inverse, rows))
        degrees = {a: np.asarray([meshes[inverse[j]].degrees[a] for j in index], np.int64) for a in shape.atoms}
        out[shape] = (index, Mesh(shape, degrees))
    return out


def bodies(model: ModelSpec, placement: Placement) -> Bodies:
    kinds = tuple(dict.fromkeys(model.layers()))
    return Bodies(
        partition_embed(model, placement),
        tuple((k, partition_layer(model, k, placement)) for k in kinds),
        partition_head(model, placement),
    )


def layouts(deployment: Deployment, curves: Curves, cands: Candidates) -> list[tuple[np.ndarray, Layout]]:
    """One Layout per MeshShape with the indices of its candidates. Raises Refused for what cannot be partitioned."""
    model, cluster = deployment.model, deployment.cluster
    roof = Roof(
        cluster, curves.device(cluster.device), curves.operators, curves.relative(cluster.device)[0], cands.engine,
        block_fp8=model.quant_group is not None and model.weight_dtype == "fp8", kv_dtype=cands.kv_dtype,
    )  # fmt: skip
    tops = levels(cluster, curves, cands.engine)
    dtypes = Dtypes.of(model, cands.weight_dtype, cands.kv_dtype)
    out = []
    for index, mesh in group_by_shape(cands, model).values():
        phases = {p: bodies(model, _placement(cands, mesh, p)) for p in PHASES}
        out.append(
            (
                index,
                Layout(
                    deployment, curves, cands.take(index), mesh, phases["prefill"], phases["decode"], dtypes, roof, tops
                ),
            )
        )
    return out


def _placement(cands: Candidates, mesh: Mesh, phase: Phase) -> Placement:
    if cands.origin is not None:
        return placement_of(cands.origin, mesh, phase)
    return Placement(mesh.shape, phase, cands.sp, cands.moe_comm)


PHASES: tuple[Phase, ...] = ("prefill", "decode")
