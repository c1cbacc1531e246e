"""One forward pass of every pipeline stage, for arrays of candidates.

Candidates whose axes nest alike share one `MeshShape` and so one partitioned graph; degrees and sizes are filled in as
arrays. A `Layout` prices steps on demand: decode of b sequences, a prefill chunk, both together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, reduce
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from tools.cost.collectives import Level, across, boundaries, collective_time, levels, members, p2p_time
from tools.cost.compute import KernelTime, Num, Roof, WalkContext, Work, both, pairs, price, walk
from tools.cost.curves import Curves, EngineCurve
from tools.cost.known import Known, distinct, known
from tools.engines.rules import Degrees, default_layers_per_stage, engines
from tools.graph.build import all_sizes
from tools.memory import (
    Dtypes,
    Role,
    activation_sizes,
    body_activation_bytes,
    body_kv_bytes,
    body_weight_bytes,
)
from tools.partition.lower import PBody, partition_embed, partition_head, partition_layer, placement_of
from tools.partition.lower import default_layers_per_stage as balanced_layers
from tools.partition.mesh import Axes, Mesh, MeshShape, build_mesh
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
    cp: np.ndarray
    dcp: np.ndarray
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
    """Set when all entries are one strategy at several batches: axes that have no array here (dk, an attention pool,
    experts on devices of their own) come from it."""

    def __len__(self) -> int:
        return len(self.tp)

    @property
    def group(self) -> np.ndarray:
        """Ranks of one pipeline stage of one replica."""
        return np.full(len(self), self.origin.group) if self.origin else self.tp * self.attn_dp * self.cp

    @property
    def num_devices(self) -> np.ndarray:
        return self.group * self.pp * self.dp

    def take(self, index: Any) -> Candidates:
        return replace(self, **{n: getattr(self, n)[index] for n in ARRAYS})

    def with_batch(self, batch: np.ndarray) -> Candidates:
        return replace(self, batch=batch)

    def degrees(self) -> Degrees:
        """The same candidates as engine rules read them."""
        return Degrees(
            **{n: getattr(self, n) for n in ARRAYS}, weight_dtype=self.weight_dtype, kv_dtype=self.kv_dtype, sp=self.sp,
            moe_comm=self.moe_comm,
        )  # fmt: skip

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
        if self.origin is not None:
            return self.origin.model_copy(update=degrees)
        stages = self.layers_per_stage or stage_layers(self.engine, model.num_hidden_layers, degrees["pp"])
        return Strategy(
            **degrees, sp=self.sp, moe_comm=self.moe_comm, weight_dtype=self.weight_dtype, kv_dtype=self.kv_dtype,
            engine=self.engine, layers_per_stage=stages if degrees["pp"] > 1 else None, microbatches=degrees["pp"],
        )  # fmt: skip


ARRAYS = ("tp", "pp", "dp", "ep", "etp", "attn_dp", "cp", "dcp", "batch", "max_num_batched_tokens")
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
def stage_rows(model: ModelSpec, split: tuple[int, ...], virtual: int = 1) -> tuple[tuple[StageRow, int], ...]:
    """Distinct stages with how many there are of each; a stage of an interleaved pipeline holds every (n / virtual)-th of
    the n runs of `split`."""
    kinds, ends = model.layers(), [0, *accumulate(split)]
    stages = len(split) // virtual
    rows: dict[StageRow, int] = {}
    for i in range(stages):
        mine = [k for c in range(i, len(split), stages) for k in kinds[ends[c] : ends[c + 1]]]
        per_kind = tuple((k, mine.count(k)) for k in dict.fromkeys(mine))
        row = StageRow(tuple(sorted(per_kind, key=repr)), i == 0, i == stages - 1)
        rows[row] = rows.get(row, 0) + 1
    return tuple(rows.items())


@dataclass(frozen=True, slots=True)
class StepTime:
    """One pass of one microbatch. `latency`: through all stages; `slowest`: what bounds the rate."""

    latency: Num
    slowest: Num

    def part(self, i: int) -> StepTime:
        """Of several steps that were priced together, one."""
        return StepTime(self.latency[i], self.slowest[i])

    def minus(self, other: StepTime) -> StepTime:
        return StepTime(np.maximum(self.latency - other.latency, 0.0), np.maximum(self.slowest - other.slowest, 0.0))


@dataclass(frozen=True, slots=True)
class Bodies:
    """Partitioned bodies of one phase."""

    embed: PBody
    layers: tuple[tuple[LayerKind, PBody], ...]
    head: PBody


@dataclass(frozen=True, slots=True)
class Rows:
    """Steps that differ: entry of the layout's mesh, and sizes."""

    mesh: np.ndarray
    sequences: Num
    tokens: Num
    context: Num

    def take(self, index: np.ndarray) -> Rows:
        sizes = (x[index] if np.ndim(x) else x for x in (self.sequences, self.tokens, self.context))
        return Rows(self.mesh[index], *sizes)


@dataclass(frozen=True, slots=True)
class Works:
    """Kernels of every body in one step, once per row: candidates whose kernels are alike share one."""

    embed: tuple[Work, ...]
    layers: tuple[tuple[LayerKind, tuple[Work, ...]], ...]
    head: tuple[Work, ...]
    residual_bytes: Num
    """What crosses a stage boundary per rank; one value per candidate."""
    row: np.ndarray | None = None
    """Row of each candidate; None: plain numbers, of the one candidate there is."""
    mesh_row: Any = 0
    """Entry of the layout's mesh for each row."""
    times: np.ndarray | None = None
    """Seconds of the bodies, one line per row; its kernels may be left out then."""
    index: np.ndarray | None = None
    """Line of each row in the table of what is known."""
    steps: Rows | None = None
    seconds: dict[int, Num] = field(default_factory=dict)
    """Kernels that were priced already, by identity."""

    def part(self, i: int) -> Works:
        """Of several steps that were worked out together, one."""
        if self.row is None:
            return self
        return replace(self, row=self.row[i], residual_bytes=self.residual_bytes[i])


@dataclass(frozen=True, slots=True)
class Stages:
    """Stages of every pp of a candidate set. `whole[body, pp]`: how often each body (embedding, layers by kind, head) runs
    in all stages; `kinds[j, body, pp]`: how often in the j-th kind of stage, of those that can be the slowest or fullest."""

    whole: np.ndarray
    kinds: np.ndarray

    @classmethod
    def of(
        cls, model: ModelSpec, kinds: Sequence[LayerKind], splits: Mapping[int, tuple[int, ...]], virtual: int
    ) -> Stages:
        rows: dict[int, list[np.ndarray]] = {}
        whole = np.zeros((len(kinds) + 2, max(splits) + 1))
        for pp, split in splits.items():
            found = []
            for row, times in stage_rows(model, split, virtual):
                per = dict(row.layers)
                counts = np.asarray([row.embed, *(per.get(k, 0) for k in kinds), row.head], float)
                whole[:, pp] += times * counts
                found.append(counts)
            rows[pp] = [c for c in found if not any((c <= o).all() and o is not c for o in found)]
        most = max(len(r) for r in rows.values())
        table = np.zeros((most, *whole.shape))
        for pp, left in rows.items():
            for j in range(most):
                table[j, :, pp] = left[min(j, len(left) - 1)]
        return cls(whole, table)

    def each(self, pp: np.ndarray) -> Iterator[list[np.ndarray]]:
        """Per kind of stage, how often each body runs in it, for candidates with these `pp`."""
        return ([counts[pp] for counts in kind] for kind in self.kinds)

    def total(self, pp: np.ndarray, values: Sequence[Num]) -> Num:
        """Sum over the stages of each candidate of a quantity per body."""
        return weighted([counts[pp] for counts in self.whole], values)

    def worst(self, pp: np.ndarray, values: Sequence[Num]) -> Num:
        """Maximum over its stages."""
        found = [weighted(counts, values) for counts in self.each(pp)]
        return reduce(np.maximum, found)


def weighted(counts: Sequence[np.ndarray], values: Sequence[Num]) -> Num:
    out: Num = counts[0] * values[0]
    for n, v in zip(counts[1:], values[1:], strict=True):
        out = out + n * v
    return out


@dataclass(frozen=True, slots=True)
class KnownMesh(Mesh):
    """A mesh of arrays that multiplies its degrees once."""

    known: dict[Axes, Num] = field(default_factory=dict, compare=False)

    def degree(self, axes: Axes) -> Num:
        if axes not in self.known:
            self.known[axes] = Mesh.degree(self, axes)
        return self.known[axes]


@dataclass(frozen=True, slots=True)
class Layout:
    """Candidates of one MeshShape on one deployment, ready to be priced."""

    deployment: Deployment
    curves: Curves
    cands: Candidates
    mesh: Mesh
    """Every combination of degrees that some candidate has, once."""
    row: np.ndarray
    """Entry of `mesh` for each candidate."""
    mesh_ids: np.ndarray
    """Number of each entry of `mesh` in `known`."""
    known: Known
    stages: Stages
    prefill: Bodies
    decode: Bodies
    dtypes: Dtypes
    roof: Roof
    tops: tuple[Level, ...]
    reach: dict[Axes, list[Num]] = field(default_factory=dict, compare=False)
    """Members of groups at each level, by axes, as they were asked for."""
    weights: list[tuple[list[Num], Num]] = field(default_factory=list, compare=False)
    """What `_weights` found."""

    @property
    def model(self) -> ModelSpec:
        return self.deployment.model

    @property
    def engine(self) -> EngineCurve:
        return self.curves.engine(self.cands.engine)

    @property
    def virtual(self) -> int:
        return virtual_runs(self.cands)

    # ------------------------------------------------------------------------------------------------------------ steps

    def take(self, index: np.ndarray) -> Layout:
        """The same layout for some of its candidates (repeats allowed)."""
        return replace(self, cands=self.cands.take(index), row=self.row[index])

    def works(self, phase: Phase, sequences: Num, tokens: Num, context: Num) -> Works:
        """Kernels of a step of `sequences` (per replica) x `tokens` new ones at `context` KV positions. Sizes may have a
        leading dim: several steps of every candidate at once."""
        per_rank = -(-sequences // self.cands.attn_dp)
        if self.cands.sp:
            per_rank = -(-per_rank // self.cands.tp)
        held = -(-tokens // self.cands.cp) if phase == "prefill" else tokens
        residual = per_rank * held * self.model.hidden_size * self.dtypes.plain
        if np.size(per_rank) == 1:
            # Plain numbers: arrays of one are ten times slower to multiply.
            one = self.row[0]
            mesh = Mesh(self.mesh.shape, {a: int(np.asarray(d)[one]) for a, d in self.mesh.degrees.items()})
            b, s, kv = (int(np.reshape(x, -1)[0]) for x in (sequences, tokens, context))
            return replace(self._walk(phase, mesh, b, s, kv, residual), mesh_row=one)
        shape = np.shape(per_rank)
        flat = [np.broadcast_to(x, shape).ravel() if np.ndim(x) else x for x in (sequences, tokens, context)]
        at = np.broadcast_to(self.row, shape).ravel()
        first, row = distinct([at, *flat], at.size)
        steps = Rows(at[first], *(x[first] if np.ndim(x) else x for x in flat))
        return replace(self._looked_up(phase, steps), row=row.reshape(shape), residual_bytes=residual)

    def _looked_up(self, phase: Phase, steps: Rows) -> Works:
        """Works of distinct steps: their times alone where all of them are known, else with their kernels."""
        sequences = np.broadcast_to(np.asarray(steps.sequences, np.int64), steps.mesh.shape)
        keys = self.known.keys(self.mesh_ids[steps.mesh], sequences, steps.tokens, steps.context)
        fresh: list[Works] = []

        def work_out(missing: np.ndarray) -> np.ndarray:
            fresh.append(self._walked(phase, steps if len(missing) == len(sequences) else steps.take(missing)))
            return self._body_times(fresh[0], len(missing))

        if keys is None:
            works = self._walked(phase, steps)
            return replace(works, times=self._body_times(works, len(sequences)))
        times, index = self.known.table(phase).rows(keys, work_out)
        whole = fresh and len(fresh[0].mesh_row) == len(sequences)
        works = fresh[0] if whole else Works((), (), (), 0.0, mesh_row=steps.mesh)
        return replace(works, times=times, index=index, steps=steps)

    def _walked(self, phase: Phase, steps: Rows) -> Works:
        works = self._walk(phase, self.mesh_at(steps.mesh), steps.sequences, steps.tokens, steps.context, 0.0)
        return replace(works, mesh_row=steps.mesh, steps=steps)

    def _body_times(self, works: Works, n: int) -> np.ndarray:
        """Seconds of every body, one row per step."""
        bodies = (works.embed, *(ws for _, ws in works.layers), works.head)
        return np.stack([np.broadcast_to(self.body_time(ws, works), (n,)) for ws in bodies], axis=1)

    def mesh_at(self, rows: np.ndarray) -> Mesh:
        return KnownMesh(self.mesh.shape, {a: np.asarray(d)[rows] for a, d in self.mesh.degrees.items()})

    def _walk(self, phase: Phase, mesh: Mesh, sequences: Num, tokens: Num, context: Num, residual: Num) -> Works:
        bodies = self.prefill if phase == "prefill" else self.decode
        sizes = all_sizes(self.model, batch_size=sequences, seq_len=tokens, kv_len=context)
        ctx = WalkContext(self.dtypes, self.cands.weight_dtype, sizes, mesh, phase, self.curves.moe)
        layers = tuple((k, walk(b, ctx)) for k, b in bodies.layers)
        return Works(walk(bodies.embed, ctx), layers, walk(bodies.head, ctx), residual)

    def mixed(self, prefill: Works, decode: Works) -> Works:
        """Both in one step: GEMMs and collectives together, attention of each by itself."""
        residual = prefill.residual_bytes + decode.residual_bytes
        if prefill.row is None or decode.row is None:
            return replace(self._joined(prefill, decode, None, None), residual_bytes=residual)
        first, row = distinct([prefill.row, decode.row], prefill.row.size)
        p, d = prefill.row[first], decode.row[first]

        def work_out(missing: np.ndarray) -> np.ndarray:
            joined = self._joined(*self._with_kernels(prefill, decode, p[missing], d[missing]))
            return self._body_times(joined, len(missing))

        if prefill.index is None or decode.index is None:
            times = work_out(np.arange(len(p)))
        else:
            times, _ = self.known.table("mixed").rows(prefill.index[p] << 31 | decode.index[d], work_out)
        return Works((), (), (), residual, row, prefill.mesh_row[p], times)

    def _with_kernels(
        self, prefill: Works, decode: Works, p: np.ndarray, d: np.ndarray
    ) -> tuple[Works, Works, np.ndarray, np.ndarray]:
        """The works with kernels, of the rows `p` and `d` at least, and where these rows are in them."""
        out: list[tuple[Works, np.ndarray]] = []
        for phase, works, rows in (("prefill", prefill, p), ("decode", decode, d)):
            if works.head or works.steps is None:
                out.append((works, rows))
                continue
            few, back = np.unique(rows, return_inverse=True)
            out.append((self._walked(phase, works.steps.take(few)), back.reshape(-1)))  # type: ignore[arg-type]
        return out[0][0], out[1][0], out[0][1], out[1][1]

    def _joined(self, prefill: Works, decode: Works, p: np.ndarray | None, d: np.ndarray | None) -> Works:
        """Kernels of steps that carry row `p` of one and row `d` of the other; None: the one row there is."""
        mesh_row = prefill.mesh_row if p is None else prefill.mesh_row[p]
        seconds: dict[int, Num] = {}

        def rows(w: Work, of: Works, index: np.ndarray | None) -> Work:
            return w if index is None else w.take(index, len(of.mesh_row))

        def together(a: tuple[Work, ...], b: tuple[Work, ...]) -> tuple[Work, ...]:
            out = []
            for x, y in pairs(a, b):
                if x is not None and y is not None:
                    out.append(joined(x, y))
                    continue
                alone, of, index = (x, prefill, p) if x is not None else (y, decode, d)
                assert alone is not None
                t = self._seconds(alone, of)
                seconds[id(alone)] = t[index] if index is not None and np.ndim(t) else t
                out.append(alone)
            return tuple(out)

        made: dict[tuple[int, int], Work] = {}

        def joined(x: Work, y: Work) -> Work:
            if (id(x), id(y)) not in made:
                made[id(x), id(y)] = both(rows(x, prefill, p), rows(y, decode, d))
            return made[id(x), id(y)]

        layers = tuple((k, together(a, b)) for (k, a), (_, b) in zip(prefill.layers, decode.layers, strict=True))
        return Works(
            together(prefill.embed, decode.embed), layers, together(prefill.head, decode.head), 0.0,
            mesh_row=mesh_row, seconds=seconds,
        )  # fmt: skip

    def kernel_time(self, w: Work, mesh_row: np.ndarray | None = None) -> KernelTime:
        """`mesh_row`: entry of the mesh for each value of an array in `w`."""
        t = self._kernel_time(w, mesh_row)
        own = self.curves.calibration_of(self.deployment.cluster.device)
        if own is None:
            return t
        return replace(t, total=own.scaled(t.total, t.compute, t.memory, network=w.comm is not None))

    def _kernel_time(self, w: Work, mesh_row: np.ndarray | None) -> KernelTime:
        if w.comm is None:
            return price(w, self.roof)
        if w.comm.kind == "transfer":
            t = collective_time(w.comm.kind, w.comm.axes, w.comm_bytes, self.mesh, self.tops, w.fanout)
        else:
            reach = self._reach(w.comm.axes)
            if mesh_row is not None:
                reach = [r[mesh_row] if np.ndim(r) else r for r in reach]
            t = across(w.comm.kind, reach, w.comm_bytes, self.tops, w.fanout)
        return KernelTime(t, 0.0, 0.0)

    def _reach(self, axes: Axes) -> list[Num]:
        """Members of a group at each level, for every entry of the mesh."""
        if axes not in self.reach:
            self.reach[axes] = members(axes, self.mesh, self.tops)
        return self.reach[axes]

    def _seconds(self, w: Work, works: Works) -> Num:
        if id(w) not in works.seconds:
            works.seconds[id(w)] = self.kernel_time(w, works.mesh_row).total
        return works.seconds[id(w)]

    def body_time(self, works: tuple[Work, ...], of: Works | None = None) -> Num:
        total: Num = 0.0
        for w in works:
            total = total + (self.kernel_time(w).total if of is None else self._seconds(w, of))
        return total

    def step(self, works: Works, sequences: Num) -> StepTime:
        """Time of a step, the engine's overhead for `sequences` included once per pass."""
        if works.row is not None and works.times is not None:
            times = [t[works.row] for t in works.times.T]
        else:
            times = [self.body_time(ws, works) for ws in (works.embed, *(ws for _, ws in works.layers), works.head)]
        overhead = self.engine.step_s + self.engine.per_sequence_s * -(-sequences // self.cands.attn_dp)
        latency, slowest = self.stages.total(self.cands.pp, times), self.stages.worst(self.cands.pp, times)
        hops, worst = self.boundary_times(works.residual_bytes)
        return StepTime(latency + hops + overhead, slowest + worst + overhead)

    def launches(self, works: Works) -> np.ndarray:
        """Kernels that one prefill pass through all stages launches."""
        if "prefill" not in self.known.launches:
            if not works.head:
                assert works.steps is not None
                works = self._walked("prefill", works.steps.take(np.zeros(1, np.int64)))
            per = [float(sum(not w.fused for w in ws)) for _, ws in works.layers]
            self.known.launches["prefill"] = [float(len(works.embed)), *per, float(len(works.head))]
        return np.asarray(self.stages.total(self.cands.pp, self.known.launches["prefill"]))

    def boundary_times(self, nbytes: Num) -> tuple[Num, Num]:
        """(sum over the stage boundaries, slowest one): each rank sends its part of the residual stream."""
        total: Num = 0.0
        worst: Num = 0.0
        for count, level in zip(boundaries(self.cands.pp, self.cands.group, self.tops), self.tops, strict=True):
            t = p2p_time(nbytes, level)
            total = total + count * t
            worst = np.maximum(worst, np.where(count > 0, t, 0.0))
        # Interleaved: every chunk but the last one's crosses again, and goes around from the last stage to the first.
        return self.virtual * total + (self.virtual - 1) * worst, self.virtual * worst

    # ----------------------------------------------------------------------------------------------------------- memory

    def memory_rows(self, batch: np.ndarray, role: Role = None) -> BodyBytes:
        """Bytes per body of the fullest rank at `batch` sequences per replica; `role`: of the ranks in these device groups."""
        c, n = self.cands, len(self.cands)
        bodies = (self.prefill.embed, *(b for _, b in self.prefill.layers), self.prefill.head)
        weights, untied = self._weights(role)
        # What a rank holds depends on its own sequences alone.
        batch = -(-np.asarray(batch, np.int64) // c.attn_dp) * c.attn_dp
        first, back = distinct([self.row, c.max_num_batched_tokens, batch], n)
        context, batch = self.deployment.workload.context, batch[first]
        few = self.take(first)
        keys = self.known.keys(self.mesh_ids[few.row], batch, few.cands.max_num_batched_tokens, context)

        def work_out(missing: np.ndarray) -> np.ndarray:
            return few.take(missing)._held_rows(batch[missing], bodies, role)

        rows = (
            work_out(np.arange(len(first)))
            if keys is None or role
            else self.known.table("memory").rows(keys, work_out)[0]
        )
        kv, activation = rows.T[: len(bodies)], rows.T[len(bodies) :]

        def each(x: Num, index: np.ndarray) -> np.ndarray:
            return np.asarray(x)[index] if np.ndim(x) else np.broadcast_to(np.asarray(x, float), (n,))

        return BodyBytes(
            weights=[each(w, self.row) for w in weights],
            tied=each(weights[-1], self.row) - each(untied, self.row),
            kv=[x[back] for x in kv],
            activation=[x[back] for x in activation],
        )

    def roles(self) -> tuple[frozenset[str], ...]:
        """Device groups that ranks belong to together, where a stage has several."""
        one = Mesh(self.mesh.shape, {a: int(np.ravel(d)[0]) for a, d in self.mesh.degrees.items()})
        return tuple(role for role, _ in one.roles())

    def _held_rows(self, batch: np.ndarray, bodies: Sequence[PBody], role: Role = None) -> np.ndarray:
        """KV of every body, then its activations, one row per candidate."""
        c = self.cands
        sizes = activation_sizes(
            self.model, attn_dp=c.attn_dp, batch=batch, max_num_batched_tokens=c.max_num_batched_tokens
        )
        held: dict[str, Any] = {
            "sequences": -(-batch // c.attn_dp), "context": self.deployment.workload.context, "engine": c.engine,
            "in_flight": c.max_num_batched_tokens, "role": role,
        }  # fmt: skip
        args = (sizes, self.mesh_at(self.row), self.dtypes)
        kv = [body_kv_bytes(b, *args, **held) for b in bodies]
        seen: dict[Any, Any] = {}
        found = [*kv, *(body_activation_bytes(b, *args, role=role, known=seen) for b in bodies)]
        return np.stack([np.broadcast_to(np.asarray(x, float), (len(batch),)) for x in found], axis=1)

    def _weights(self, role: Role = None) -> tuple[list[Num], Num]:
        """(bytes of every body's weights, the head's without what the embedding holds too) per entry of the mesh."""
        if role or not self.weights:
            sizes = activation_sizes(self.model, attn_dp=1, batch=1, max_num_batched_tokens=1)
            args = (sizes, self.mesh, self.dtypes)
            tied = frozenset(x.name for x in self.prefill.embed.weights())
            head = self.prefill.head
            bodies = (self.prefill.embed, *(b for _, b in self.prefill.layers), head)
            found = [body_weight_bytes(b, *args, role=role) for b in bodies]
            pair = (found, body_weight_bytes(head, *args, tied, role))
            if role:
                return pair
            self.weights.append(pair)
        return self.weights[0]


@dataclass(frozen=True, slots=True)
class BodyBytes:
    """Bytes of each candidate by body: embedding, layers by kind, head."""

    weights: Sequence[np.ndarray]
    tied: np.ndarray
    """What a stage that both embeds and ends holds once instead of twice."""
    kv: Sequence[np.ndarray]
    activation: Sequence[np.ndarray]

    def stage(self, counts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(weights, peak activation, KV) of a stage that runs each body so many times."""
        held = weighted(counts, self.weights) - self.tied * (counts[0] * counts[-1])
        peak = reduce(np.maximum, [np.where(n > 0, a, 0.0) for n, a in zip(counts, self.activation, strict=True)])
        return held, peak, weighted(counts[1:-1], self.kv[1:-1])


def kv_heads_cut(model: ModelSpec) -> int:
    """Heads along which tp can split the cache (MLA: the latent is copied, so heads as such)."""
    return model.attention.num_heads if model.attention.mla else model.attention.num_kv_heads


@lru_cache(maxsize=65536)
def _degrees(tp: int, attn_dp: int, ep: int, etp: int, cp: int, dcp: int, kv_heads: int) -> Mesh:
    return build_mesh(Strategy(tp=tp, attn_dp=attn_dp, ep=ep, etp=etp, cp=cp, dcp=dcp), kv_heads)


def group_by_shape(cands: Candidates, model: ModelSpec) -> list[tuple[np.ndarray, Mesh, np.ndarray]]:
    """Per MeshShape: indices of its candidates, every combination of their degrees once, and which of these each one has.
    Raises Refused for degrees that do not nest."""
    if cands.origin is not None:
        one = build_mesh(cands.origin, kv_heads_cut(model))
        degrees = {a: np.asarray([d], np.int64) for a, d in one.degrees.items()}
        return [(np.arange(len(cands)), Mesh(one.shape, degrees), np.zeros(len(cands), np.int64))]
    names = ("tp", "attn_dp", "ep", "etp", "cp", "dcp")
    columns = [getattr(cands, n) for n in names]
    first, back = distinct(columns, len(cands))
    meshes = [_degrees(*(int(x[i]) for x in columns), kv_heads_cut(model)) for i in first]
    by_shape: dict[MeshShape, list[int]] = {}
    for i, mesh in enumerate(meshes):
        by_shape.setdefault(mesh.shape, []).append(i)
    out = []
    for shape, rows in by_shape.items():
        where = np.full(len(meshes), -1, np.int64)
        where[rows] = np.arange(len(rows))
        index = np.flatnonzero(where[back] >= 0)
        degrees = {a: np.asarray([meshes[i].degrees[a] for i in rows], np.int64) for a in shape.atoms}
        out.append((index, Mesh(shape, degrees), where[back][index]))
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
    stages = Stages.of(model, list(dict.fromkeys(model.layers())), splits(cands, model), virtual_runs(cands))
    out = []
    for index, mesh, row in group_by_shape(cands, model):
        mine = cands.take(index)
        phases = {p: bodies(model, _placement(cands, mesh, p)) for p in PHASES}
        seen = _known(deployment, curves, mine, phases["prefill"], phases["decode"], tops)
        layout = Layout(
            deployment, curves, mine, mesh, row, seen.mesh_ids(mesh), seen, stages, phases["prefill"], phases["decode"],
            dtypes, roof, tops,
        )  # fmt: skip
        out.append((index, layout))
    return out


def _known(
    deployment: Deployment, curves: Curves, cands: Candidates, prefill: Bodies, decode: Bodies, tops: tuple[Level, ...]
) -> Known:
    """Everything that the costs of a body depend on, besides degrees and sizes."""
    bodies = tuple(b for phase in (prefill, decode) for b in (phase.embed, *(b for _, b in phase.layers), phase.head))
    cluster = deployment.cluster
    about = (
        cluster.device.id, cluster.memory_bandwidth, tuple(sorted(cluster.peak_flops.items())), cluster.mfu, cluster.mbu,
        tuple((t.name, t.size, t.bandwidth, t.mesh, t.curve.name) for t in tops), cands.engine, cands.weight_dtype,
        cands.kv_dtype,
    )  # fmt: skip
    return known((tuple(map(id, bodies)), id(curves), about), (bodies, curves))


def virtual_runs(cands: Candidates) -> int:
    """Runs of layers per rank; a candidate set has one each."""
    return cands.origin.virtual if cands.origin else 1


def splits(cands: Candidates, model: ModelSpec) -> dict[int, tuple[int, ...]]:
    """Layers per stage (per run, where a rank holds several), by pp."""
    runs = virtual_runs(cands)
    return {
        int(pp): cands.layers_per_stage or stage_layers(cands.engine, model.num_hidden_layers, int(pp) * runs)
        for pp in np.unique(cands.pp)
    }


def _placement(cands: Candidates, mesh: Mesh, phase: Phase) -> Placement:
    if cands.origin is not None:
        return placement_of(cands.origin, mesh, phase)
    return Placement(mesh.shape, phase, cands.sp, cands.moe_comm)


PHASES: tuple[Phase, ...] = ("prefill", "decode")
