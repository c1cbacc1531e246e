"""One forward pass of every pipeline stage, for arrays of candidates.

Candidates whose axes nest alike share one partitioned graph (`tools.cost.graphs`). A `Layout` holds candidates of one or
several graphs and prices steps on demand: decode of b sequences, a prefill chunk, both together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np

from tools.cost.candidates import (
    ARRAYS,
    Candidates,
    MoEComm,
    StageRow,
    Stages,
    each_stage,
    splits,
    stage_layers,
    stage_rows,
    virtual_runs,
    weighted,
)
from tools.cost.collectives import Level, across, boundaries, collective_time, levels, p2p_time
from tools.cost.compute import KernelTime, Num, Roof, Work, both, pairs, price
from tools.cost.curves import Curves, EngineCurve
from tools.cost.graphs import PHASES, Bodies, Graph, bodies, meshes, placement, starts
from tools.cost.known import Known, distinct, known
from tools.cost.together import Job, price_all
from tools.graph.build import carried_widths
from tools.memory import Dtypes, Role
from tools.partition.mesh import Mesh
from tools.spec.deployment import Deployment
from tools.spec.model import LayerKind, ModelSpec, with_nodes
from tools.spec.strategy import Phase


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
class Rows:
    """Steps that differ: entry of the layout's meshes, and sizes."""

    mesh: np.ndarray
    sequences: Num
    tokens: Num
    context: Num

    def sizes(self, index: np.ndarray) -> tuple[Num, ...]:
        """Sequences, tokens and context of some of them."""
        return tuple(x[index] if np.ndim(x) else x for x in (self.sequences, self.tokens, self.context))


@dataclass(frozen=True, slots=True)
class Walked:
    """Kernels of some steps, those of one graph."""

    graph: int
    where: np.ndarray
    """Which steps."""
    mesh_row: np.ndarray
    """Entry of the graph's mesh for each."""
    bodies: tuple[tuple[Work, ...], ...]
    seconds: dict[int, Num] = field(default_factory=dict)
    """Of kernels that were priced already, by identity."""

    def body_seconds(self) -> list[Num]:
        return [sum((self.seconds[id(w)] for w in works), 0.0) for works in self.bodies]


@dataclass(frozen=True, slots=True)
class Works:
    """What one step of every candidate runs. Of one candidate: the kernels of its bodies, sizes plain numbers. Of several:
    seconds of the bodies, once per row, candidates whose kernels are alike sharing one."""

    embed: tuple[Work, ...]
    layers: tuple[tuple[LayerKind, tuple[Work, ...]], ...]
    head: tuple[Work, ...]
    residual_bytes: Num
    """What crosses a stage boundary per rank; one value per candidate."""
    row: np.ndarray | None = None
    """Row of each candidate; None: plain numbers, of the one candidate there is."""
    mesh_row: Num = 0
    """Entry of the layout's meshes for each row."""
    times: np.ndarray | None = None
    """Seconds of the bodies, one line per row."""
    index: np.ndarray | None = None
    """Line of each row in the table of what is known."""
    steps: Rows | None = None
    walked: tuple[Walked, ...] = ()
    """Kernels of those rows that were not known."""
    seconds: dict[int, Num] = field(default_factory=dict)
    """Kernels that were priced already, by identity."""
    beside: tuple[Works, ...] = ()
    """The same step on the other kinds of devices of a mixed pipeline (`tools.cost.staged`)."""

    @property
    def bodies(self) -> tuple[tuple[Work, ...], ...]:
        return (self.embed, *(ws for _, ws in self.layers), self.head)

    def part(self, i: int) -> Works:
        """Of several steps that were worked out together, one."""
        if self.row is None:
            return self
        beside = tuple(w.part(i) for w in self.beside)
        return replace(self, row=self.row[i], residual_bytes=self.residual_bytes[i], beside=beside)


@dataclass(frozen=True, slots=True)
class Layout:
    """Candidates of one or several partitioned graphs on one deployment, ready to be priced."""

    deployment: Deployment
    curves: Curves
    cands: Candidates
    graphs: tuple[Graph, ...]
    starts: np.ndarray
    """First entry of every graph's mesh when they are counted through, and the end."""
    row: np.ndarray
    """Entry of these for each candidate."""
    mesh_ids: np.ndarray
    """Number of each entry in `known`."""
    known: Known
    stages: Stages
    dtypes: Dtypes
    roof: Roof
    tops: tuple[Level, ...]
    weights: list[np.ndarray] = field(default_factory=list, compare=False)
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

    @property
    def mesh(self) -> Mesh:
        """Of a layout of one graph."""
        return self.graphs[0].mesh

    @property
    def prefill(self) -> Bodies:
        return self.graphs[0].prefill

    @property
    def decode(self) -> Bodies:
        return self.graphs[0].decode

    def take(self, index: np.ndarray) -> Layout:
        """The same layout for some of its candidates (repeats allowed)."""
        return replace(self, cands=self.cands.take(index), row=self.row[index])

    def graph_of(self, rows: np.ndarray) -> np.ndarray:
        """Which graph the entries `rows` belong to."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def _by_graph(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(graph, which of `rows` are its)."""
        if len(self.graphs) == 1:
            yield 0, np.arange(len(rows))
            return
        graph = self.graph_of(rows)
        for k in np.unique(graph):
            yield int(k), np.flatnonzero(graph == k)

    # ------------------------------------------------------------------------------------------------------------ steps

    def works(self, phase: Phase, sequences: Num, tokens: Num, context: Num) -> Works:
        """A step of `sequences` (per replica) x `tokens` new ones at `context` KV positions. Sizes may have a leading dim:
        several steps of every candidate at once."""
        per_rank = -(-sequences // self.cands.attn_dp)
        if self.cands.sp:
            per_rank = -(-per_rank // self.cands.tp)
        held = -(-tokens // self.cands.cp) if phase == "prefill" else tokens
        residual = per_rank * held * self.model.hidden_size * self.dtypes.plain
        for n, role in carried_widths(self.model):  # sequence parallelism leaves these whole
            whole = -(-sequences // self.cands.attn_dp)
            residual = residual + whole * held * n * self.dtypes.bytes(role)
        if np.size(per_rank) == 1:
            return self._plain(phase, [int(np.reshape(x, -1)[0]) for x in (sequences, tokens, context)], residual)
        shape = np.shape(per_rank)
        flat = [np.broadcast_to(x, shape).ravel() if np.ndim(x) else x for x in (sequences, tokens, context)]
        at = np.broadcast_to(self.row, shape).ravel()
        first, row = distinct([at, *flat], at.size)
        steps = Rows(at[first], *(x[first] if np.ndim(x) else x for x in flat))
        return replace(self._looked_up(phase, steps), row=row.reshape(shape), residual_bytes=residual)

    def _plain(self, phase: Phase, sizes: Sequence[int], residual: Num) -> Works:
        row = int(self.row[0])
        k = int(self.graph_of(self.row[:1])[0])
        graph = self.graphs[k]
        embed, *layers, head = graph.walk(phase, graph.one(row - int(self.starts[k])), *sizes)
        kinds = [kind for kind, _ in graph.bodies(phase).layers]
        return Works(embed, tuple(zip(kinds, layers, strict=True)), head, residual, mesh_row=row)

    def _looked_up(self, phase: Phase, steps: Rows) -> Works:
        """Seconds of distinct steps, and the kernels of those that were not known."""
        n, walked = len(steps.mesh), []
        sequences = np.broadcast_to(np.asarray(steps.sequences, np.int64), (n,))
        keys = self.known.keys(self.mesh_ids[steps.mesh], sequences, steps.tokens, steps.context)

        def work_out(missing: np.ndarray) -> np.ndarray:
            walked.extend(self._walked(phase, steps, missing))
            self._price(walked)
            out = np.empty((n, len(walked[0].bodies)))
            for x in walked:
                for i, t in enumerate(x.body_seconds()):
                    out[x.where, i] = t
            return out[missing]

        if keys is None:
            times, index = work_out(np.arange(n)), None
        else:
            times, index = self.known.table(phase).rows(keys, work_out)
        return Works((), (), (), 0.0, mesh_row=steps.mesh, times=times, index=index, steps=steps, walked=tuple(walked))

    def _walked(self, phase: Phase, steps: Rows, which: np.ndarray) -> list[Walked]:
        out = []
        for k, mine in self._by_graph(steps.mesh[which]):
            where, graph = which[mine], self.graphs[k]
            local = steps.mesh[where] - self.starts[k]
            out.append(Walked(k, where, local, graph.walk(phase, graph.at(local), *steps.sizes(where))))
            if phase == "prefill":
                self._count_launches(graph, out[-1].bodies)
        return out

    def _price(self, walked: Iterable[Walked], only: frozenset[int] | None = None) -> None:
        """Seconds of all kernels, or of those named by identity."""
        wanted, jobs = [], []
        for x in walked:
            for w in {id(w): w for works in x.bodies for w in works}.values():
                if id(w) not in x.seconds and (only is None or id(w) in only):
                    wanted.append((x, w))
                    jobs.append(Job(w, len(x.where), self._reach(w, x.graph, x.mesh_row)))
        for (x, w), seconds in zip(wanted, price_all(jobs, lambda w, reach: self._time(w, reach).total), strict=True):
            x.seconds[id(w)] = seconds

    def mixed(self, prefill: Works, decode: Works) -> Works:
        """Both in one step: GEMMs and collectives together, attention of each by itself."""
        residual = prefill.residual_bytes + decode.residual_bytes
        if prefill.row is None or decode.row is None:
            return replace(_joined(prefill, decode), residual_bytes=residual)
        first, row = distinct([prefill.row, decode.row], prefill.row.size)
        p, d = prefill.row[first], decode.row[first]

        def work_out(missing: np.ndarray) -> np.ndarray:
            return self._mixed_times(prefill, decode, p[missing], d[missing])

        if prefill.index is None or decode.index is None:
            times = work_out(np.arange(len(p)))
        else:
            times, _ = self.known.table("mixed").rows(prefill.index[p] << 31 | decode.index[d], work_out)
        return Works((), (), (), residual, row, prefill.mesh_row[p], times)

    def _mixed_times(self, prefill: Works, decode: Works, p: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Seconds of the bodies of steps that carry row `p` of one and row `d` of the other."""
        pairs_: list[_Pair] = []
        for k, where in self._by_graph(prefill.mesh_row[p]):
            sides = (
                self._with_kernels("prefill", prefill, k, p[where]),
                self._with_kernels("decode", decode, k, d[where]),
            )
            pairs_.append(_Pair.of(where, *sides))
        self._price([x.prefill for x in pairs_], frozenset(i for x in pairs_ for i in x.alone))
        self._price([x.decode for x in pairs_], frozenset(i for x in pairs_ for i in x.alone))
        self._price([x.joined for x in pairs_])
        out = np.empty((len(p), len(self.graphs[0].prefill.layers) + 2))
        for x in pairs_:
            for i, t in enumerate(x.body_seconds()):
                out[x.joined.where, i] = t
        return out

    def _with_kernels(self, phase: Phase, works: Works, k: int, rows: np.ndarray) -> tuple[Walked, np.ndarray]:
        """Kernels of graph `k` for these rows of a step at least, and where each row is in them."""
        assert works.steps is not None
        for x in works.walked:
            if x.graph == k:
                place = np.full(len(works.steps.mesh), -1)
                place[x.where] = np.arange(len(x.where))
                at = place[rows]
                if (at >= 0).all():
                    return x, at
        few, back = np.unique(rows, return_inverse=True)
        return self._walked(phase, works.steps, few)[0], back.reshape(-1)

    # ---------------------------------------------------------------------------------------------------------- kernels

    def kernel_time(self, w: Work) -> KernelTime:
        """Of a layout of one graph: at its one mesh, or at all of them."""
        return self._time(w, list(self._reach(w, 0)))

    def _reach(self, w: Work, k: int, rows: Num = None) -> tuple[Num, ...]:
        """Members of a collective's group at each level, at entries `rows` of the mesh of graph `k`."""
        if w.comm is None or w.comm.kind == "transfer":
            return ()
        reach = self.graphs[k].reach(w.comm.axes)
        return tuple(reach if rows is None else [r[rows] if np.ndim(r) else r for r in reach])

    def _time(self, w: Work, reach: list[Num]) -> KernelTime:
        if w.comm is None:
            t = price(w, self.roof)
        elif w.comm.kind == "transfer":
            seconds = collective_time(w.comm.kind, w.comm.axes, w.comm_bytes, self.mesh, self.tops, w.fanout, w.balance)
            t = KernelTime(seconds, 0.0, 0.0)
        else:
            t = KernelTime(across(w.comm.kind, reach, w.comm_bytes, self.tops, w.fanout, w.balance), 0.0, 0.0)
        own = self.curves.calibration_of(self.deployment.cluster.device)
        if own is None:
            return t
        return replace(t, total=own.scaled(t.total, t.compute, t.memory, network=w.comm is not None))

    def body_time(self, works: tuple[Work, ...], of: Works | None = None) -> Num:
        """Seconds of one candidate's kernels; `of`: the step they belong to, which remembers them."""
        total: Num = 0.0
        for w in works:
            if of is None:
                total = total + self.kernel_time(w).total
                continue
            if id(w) not in of.seconds:
                k = int(self.graph_of(np.asarray([of.mesh_row]))[0])
                of.seconds[id(w)] = self._time(w, list(self._reach(w, k, of.mesh_row - int(self.starts[k])))).total
            total = total + of.seconds[id(w)]
        return total

    def step(self, works: Works, sequences: Num) -> StepTime:
        """Time of a step, the engine's overhead for `sequences` included once per pass."""
        overhead = self.engine.step_s + self.engine.per_sequence_s * -(-sequences // self.cands.attn_dp)
        latency, slowest = self.through(works)
        hops, worst = self.boundary_times(works.residual_bytes)
        return StepTime(latency + hops + overhead, slowest + worst + overhead)

    def body_times(self, works: Works) -> list[Num]:
        """Seconds of embedding, of a layer of each kind, of head."""
        if works.row is not None and works.times is not None:
            return [t[works.row] for t in works.times.T]
        return [self.body_time(ws, works) for ws in works.bodies]

    def through(self, works: Works) -> tuple[Num, Num]:
        """Kernel seconds (through all stages, of the slowest stage)."""
        if works.row is not None and works.times is not None:
            return self.stages.through(self.cands.pp, works.times, works.row)
        times = self.body_times(works)
        return self.stages.total(self.cands.pp, times), self.stages.worst(self.cands.pp, times)

    def by_stage(self, works: Works) -> tuple[tuple[Layout, Works], ...]:
        """What prices each pipeline stage of the one candidate there is."""
        return ((self, works),) * int(self.cands.pp[0])

    @property
    def capacities(self) -> tuple[float, ...]:
        """Bytes of a device: one figure for all stages, or one for each."""
        return (self.deployment.cluster.memory_bytes,)

    def launches(self) -> np.ndarray:
        """Kernels that one prefill pass through all stages launches."""
        each = np.asarray([self._launched(g) for g in self.graphs])
        per = each[0] if len(each) == 1 else each[self.graph_of(self.row)].T
        return np.asarray(self.stages.total(self.cands.pp, list(per)))

    def _launched(self, graph: Graph) -> list[float]:
        """Kernels of every body, whatever the sizes."""
        if graph.number not in self.known.launches:
            self._count_launches(graph, graph.walk("prefill", graph.one(0), 1, 16, 16))
        return self.known.launches[graph.number]

    def _count_launches(self, graph: Graph, bodies_: tuple[tuple[Work, ...], ...]) -> None:
        embed, *layers, head = bodies_
        per = (float(sum(not w.fused for w in ws)) for ws in layers)
        self.known.launches.setdefault(graph.number, [float(len(embed)), *per, float(len(head))])

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
        # What a rank holds depends on its own sequences alone.
        batch = -(-np.asarray(batch, np.int64) // c.attn_dp) * c.attn_dp
        first, back = distinct([self.row, c.max_num_batched_tokens, batch], n)
        context, few = self.deployment.workload.context, self.take(first).cands.with_batch(batch[first])
        row = self.row[first]
        keys = self.known.keys(self.mesh_ids[row], few.batch, few.max_num_batched_tokens, context)

        def work_out(missing: np.ndarray) -> np.ndarray:
            parts = list(self._by_graph(row[missing]))
            held = []
            for k, mine in parts:
                at = missing[mine]
                held.append(self.graphs[k].held(few.take(at), row[at] - self.starts[k], few.batch[at], context, role))
            out = np.empty((len(missing), held[0].shape[1]))
            for (_, mine), x in zip(parts, held, strict=True):
                out[mine] = x
            return out

        if keys is None or role:
            rows = work_out(np.arange(len(first)))
        else:
            rows = self.known.table("memory").rows(keys, work_out)[0]
        held = [x[back] for x in rows.T]
        weights = [x[self.row] for x in self._weights(role).T]
        bodies_ = len(held) // 2
        return BodyBytes(weights[:-1], weights[-2] - weights[-1], held[:bodies_], held[bodies_:])

    def _weights(self, role: Role) -> np.ndarray:
        """`Graph.weights` of every entry of the meshes."""
        if role:
            return np.concatenate([g.weights(role) for g in self.graphs])
        if not self.weights:

            def work_out(missing: np.ndarray) -> np.ndarray:
                graphs = np.unique(self.graph_of(missing))
                out = np.empty((len(self.mesh_ids), len(self.stages.whole) + 1))
                for k in graphs:
                    out[self.starts[k] : self.starts[k + 1]] = self.graphs[k].weights()
                return out[missing]

            self.weights.append(self.known.table("weights").rows(self.mesh_ids, work_out)[0])
        return self.weights[0]

    def roles(self) -> tuple[frozenset[str], ...]:
        """Device groups that ranks belong to together, where a stage has several."""
        return tuple(role for role, _ in self.graphs[0].one(0).roles())


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


def _joined(prefill: Works, decode: Works) -> Works:
    """Kernels of the one candidate's step that carries both."""

    def together(a: tuple[Work, ...], b: tuple[Work, ...]) -> tuple[Work, ...]:
        return tuple(both(x, y) if x and y else x or y for x, y in pairs(a, b))  # type: ignore[misc]

    layers = tuple((k, together(a, b)) for (k, a), (_, b) in zip(prefill.layers, decode.layers, strict=True))
    return Works(
        together(prefill.embed, decode.embed),
        layers,
        together(prefill.head, decode.head),
        0.0,
        mesh_row=prefill.mesh_row,
    )


@dataclass(frozen=True, slots=True)
class _Pair:
    """Steps of one graph that carry both: kernels that join, and those that each side runs by itself."""

    prefill: Walked
    p: np.ndarray
    decode: Walked
    d: np.ndarray
    joined: Walked
    own: tuple[tuple[tuple[Walked, Work], ...], ...]
    """Per body, kernels of one side alone."""

    @property
    def alone(self) -> list[int]:
        return [id(w) for works in self.own for _, w in works]

    @classmethod
    def of(cls, where: np.ndarray, prefill: tuple[Walked, np.ndarray], decode: tuple[Walked, np.ndarray]) -> _Pair:
        (a, p), (b, d) = prefill, decode
        made: dict[tuple[int, int], Work] = {}
        bodies_, own = [], []
        for xs, ys in zip(a.bodies, b.bodies, strict=True):
            found = pairs(xs, ys)
            for x, y in found:
                if x and y and (id(x), id(y)) not in made:
                    made[id(x), id(y)] = both(x.take(p, len(a.where)), y.take(d, len(b.where)))
            bodies_.append(tuple(made[id(x), id(y)] for x, y in found if x and y))
            own.append(tuple((a, x) if x else (b, y) for x, y in found if not (x and y)))
        return cls(a, p, b, d, Walked(a.graph, where, a.mesh_row[p], tuple(bodies_)), tuple(own))  # type: ignore[arg-type]

    def body_seconds(self) -> list[Num]:
        out = []
        for joined, own in zip(self.joined.body_seconds(), self.own, strict=True):
            for side, w in own:
                t = side.seconds[id(w)]
                joined = joined + (t[self.p if side is self.prefill else self.d] if np.ndim(t) else t)
            out.append(joined)
        return out


# ------------------------------------------------------------------------------------------------------------------ make


def layout_of(deployment: Deployment, curves: Curves, cands: Candidates) -> Layout:
    """All candidates, whatever their graphs. Raises Refused for what cannot be partitioned."""
    if cands.origin is not None and cands.origin.stage_devices:
        from tools.cost.staged import staged_layout

        return staged_layout(deployment, curves, cands)
    deployment = _dispatching(deployment, cands)
    model, cluster = deployment.model, deployment.cluster
    block = model.quant_group is not None and model.weight_dtype == "fp8"
    roof = Roof.of(cluster, curves, cands.engine, block_fp8=block, kv_dtype=cands.kv_dtype)
    tops = levels(cluster, curves, cands.engine)
    dtypes = Dtypes.of(model, cands.weight_dtype, cands.kv_dtype)
    kinds = list(dict.fromkeys(model.layers()))
    stages = Stages.of(model, kinds, splits(cands, model), virtual_runs(cands))
    found, row = meshes(cands, model)
    seen = _known(deployment, curves, cands, len(kinds), tops)
    graphs = []
    for mesh in found:
        prefill, decode = (bodies(model, placement(cands, mesh, p)) for p in PHASES)
        graph = Graph(model, mesh, prefill, decode, dtypes, cands.weight_dtype, curves.moe, tops)
        graphs.append(replace(graph, number=seen.number(graph.identity)))
    ids = np.concatenate([seen.mesh_ids(g.number, g.mesh) for g in graphs])
    return Layout(deployment, curves, cands, tuple(graphs), starts(found), row, ids, seen, stages, dtypes, roof, tops)


def _dispatching(deployment: Deployment, cands: Candidates) -> Deployment:
    """The deployment with the model as these candidates dispatch its tokens. How many nodes each has, its mesh says."""
    nodes = cands.origin.ep_nodes if cands.origin else 2 if cands.node else 1
    model = with_nodes(deployment.model, nodes)
    return deployment if model is deployment.model else deployment.model_copy(update={"model": model})


def layouts(deployment: Deployment, curves: Curves, cands: Candidates) -> list[tuple[np.ndarray, Layout]]:
    """One Layout per graph with the indices of its candidates. Raises Refused for what cannot be partitioned."""
    whole = layout_of(deployment, curves, cands)
    if len(whole.graphs) == 1:
        return [(np.arange(len(cands)), whole)]
    out, graph = [], whole.graph_of(whole.row)
    for k, one in enumerate(whole.graphs):
        index, (first, end) = np.flatnonzero(graph == k), whole.starts[k : k + 2]
        part = replace(
            whole, cands=cands.take(index), graphs=(one,), starts=np.asarray([0, end - first]), row=whole.row[index] - first,
            mesh_ids=whole.mesh_ids[first:end], weights=[],
        )  # fmt: skip
        out.append((index, part))
    return out


def _known(deployment: Deployment, curves: Curves, cands: Candidates, kinds: int, tops: tuple[Level, ...]) -> Known:
    """Everything that the costs of a body depend on, besides its graph, degrees and sizes."""
    cluster = deployment.cluster
    about = (
        cluster.device.id, cluster.memory_bandwidth, tuple(sorted(cluster.peak_flops.items())), cluster.mfu, cluster.mbu,
        tuple((t.name, t.size, t.bandwidth, t.mesh, t.curve.name) for t in tops), cands.engine, cands.weight_dtype,
        cands.kv_dtype, kinds,
    )  # fmt: skip
    return known((id(curves), about), curves)


__all__ = [
    "ARRAYS", "BodyBytes", "Candidates", "Layout", "MoEComm", "StageRow", "Stages", "StepTime", "Works", "each_stage",
    "layout_of", "layouts", "splits", "stage_layers", "stage_rows", "weighted",
]  # fmt: skip
