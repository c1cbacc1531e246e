"""Pipelines over devices of several kinds: stages of one kind each, layers cut by their speed and memory.

    mixed_pipelines(deployment, clusters, curves)   every group size and number of replicas, best first

A pipeline's rate is that of its slowest stage, and what a stage takes per request is the prefill of the prompt and its share
of the decode steps, on its own device. Kinds follow one another in the order that is fastest. All stages have groups of one
size: a group never mixes kinds, because its slowest member would set its pace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, permutations
from math import gcd

import numpy as np

from tools.cost.curves import Curves
from tools.cost.staged import refuse_vendors
from tools.cost.steps import Candidates, Layout, layouts
from tools.graph.build import all_sizes
from tools.memory import layer_loads, memory
from tools.partition.layerwise import Loads
from tools.partition.lower import default_layers_per_stage, lower
from tools.partition.uneven import StageDevice, fastest_split
from tools.search.rank import evaluate_strategy
from tools.spec.base import Frozen, Refused, ToolError
from tools.spec.deployment import Deployment
from tools.spec.hardware import Cluster
from tools.spec.plan import Candidate, StageMemory
from tools.spec.strategy import Phase, Strategy

MOST_STAGES = 32
"""Longer pipelines are not tried: a request would cross them for every token."""
MOST_PRICED = 6
"""Pipelines that are priced as a serving run, of those with the highest kernel rates."""


class MixedStage(Frozen):
    """One stage on its device. Seconds are kernel times: of one prompt's prefill, of one decode step of a micro-batch."""

    device: str
    layers: int
    prefill_s: float
    decode_s: float
    memory: StageMemory


class MixedPipeline(Frozen):
    """A strategy over all kinds of devices. Times leave the engine's host overhead out: they rank pipelines, they are no
    prediction of a serving run."""

    strategy: Strategy
    stages: tuple[MixedStage, ...]
    ttft_s: float
    tpot_s: float
    output_tok_s: float
    even_output_tok_s: float
    """The same pipeline with layers dealt out evenly; 0 where that does not fit."""

    @property
    def words(self) -> str:
        """ "4 × a100_sxm_80gb: 58 layers, 4 × v100_sxm2_32gb: 22 layers"."""
        group = self.strategy.group * self.strategy.dp
        return ", ".join(f"{group} × {s.device}: {s.layers} layers" for s in self.stages)


def mixed_pipelines(
    deployment: Deployment, clusters: Sequence[Cluster], curves: Curves, *, concurrency: int | None = None
) -> tuple[MixedPipeline, ...]:
    """Pipelines that use every device of every cluster, the highest rate first. `concurrency`: sequences in flight over all
    replicas, by default the workload's, else 32.

    Raises ToolError for fewer than two kinds or an unbounded number of devices, Refused (with bytes) when none fits.
    """
    counts = [c.num_devices or 0 for c in clusters]
    if len(clusters) < 2 or not all(counts):
        raise ToolError(
            "a mixed pipeline needs at least two kinds of devices, each with a number, such as 4xA100 and 4xV100"
        )
    found: list[MixedPipeline] = []
    refusals: list[str] = []
    flying = concurrency or deployment.workload.concurrency or 32
    for tp, dp in _shapes(counts, deployment):
        try:
            found.append(_best_order(deployment, clusters, curves, tp, dp, -(-flying // dp)))
        except ToolError as e:
            refusals.append(f"tp({tp}) dp({dp}): {e}")
    if not found:
        why = refusals[-1] if refusals else f"no group size divides all of {counts} and leaves each stage a layer"
        raise Refused(f"no pipeline over {_kinds(clusters)} fits: {why}")
    return tuple(sorted(found, key=lambda p: (-p.output_tok_s, p.strategy.tp)))


def _kinds(clusters: Sequence[Cluster]) -> str:
    return " + ".join(f"{c.num_devices} × {c.device.id}" for c in clusters)


def _shapes(counts: Sequence[int], d: Deployment) -> Iterator[tuple[int, int]]:
    """(tp, dp) that use all devices of every kind, stages of at least one layer."""
    common = gcd(*counts)
    for tp in range(1, common + 1):
        if common % tp or d.model.attention.num_heads % tp:
            continue
        for dp in range(1, common // tp + 1):
            if (common // tp) % dp == 0 and sum(counts) // (tp * dp) <= min(MOST_STAGES, d.model.num_hidden_layers):
                yield tp, dp


@dataclass(frozen=True, slots=True)
class _Priced:
    """One kind of device at one group size: seconds per layer, of embedding and of head, by phase."""

    cluster: Cluster
    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    ends: tuple[tuple[float, float], tuple[float, float]]
    """((embedding, head) in prefill, the same in decode)"""

    def busy(self, osl: int, share: float) -> tuple[float, ...]:
        """Seconds that a request keeps a device busy, by layer: its prefill and its share of `osl` decode steps."""
        return tuple(p + osl * share * d for p, d in zip(self.prefill, self.decode, strict=True))

    def stage(self, lo: int, hi: int, phase: Phase) -> float:
        layers, (first, last) = (self.prefill, self.ends[0]) if phase == "prefill" else (self.decode, self.ends[1])
        return sum(layers[lo:hi]) + first * (lo == 0) + last * (hi == len(layers))


def _best_order(
    d: Deployment, clusters: Sequence[Cluster], curves: Curves, tp: int, dp: int, batch: int
) -> MixedPipeline:
    """Kinds in the order, and layers in the cut, whose slowest stage is fastest."""
    per_kind = [(c.num_devices or 0) // (tp * dp) for c in clusters]
    pp = sum(per_kind)
    s = Strategy(
        tp=tp, dp=dp, pp=pp, batch=batch, microbatches=min(pp, batch), weight_dtype=d.weight_dtypes[0],
        kv_dtype=d.kv_dtypes[0], engine=d.engine.name,
    )  # fmt: skip
    micro = -(-batch // min(pp, batch))
    priced = [_price(d, c, curves, s, micro) for c in clusters]
    loads = layer_loads(d.model, s, batch=batch, seq_len=d.workload.context, count=("weights", "kv"))
    room = [_room(d, s, c) for c in clusters]
    best: MixedPipeline | None = None
    refusal: ToolError | None = None
    for kinds in permutations(range(len(clusters))):
        where = [k for k in kinds for _ in range(per_kind[k])]
        try:
            plan = _cut(d, s, [priced[k] for k in where], [room[k] for k in where], loads, micro)
        except Refused as e:
            refusal = e
            continue
        best = plan if best is None or plan.output_tok_s > best.output_tok_s else best
    if best is None:
        assert refusal is not None
        raise refusal
    return best


def _price(d: Deployment, cluster: Cluster, curves: Curves, s: Strategy, micro: int) -> _Priced:
    """Every layer on one kind of device, with the cost model."""
    one = s.model_copy(update={"pp": 1, "dp": 1, "layers_per_stage": None})
    ((_, layout),) = layouts(d.model_copy(update={"cluster": cluster}), curves, Candidates.of(one))
    w = d.workload
    prefill, first = _layer_seconds(layout, "prefill", 1, w.isl, w.isl)
    decode, second = _layer_seconds(layout, "decode", micro, 1, w.isl + max(1, w.osl // 2))
    return _Priced(cluster, prefill, decode, (first, second))


def _layer_seconds(
    layout: Layout, phase: Phase, sequences: int, tokens: int, context: int
) -> tuple[tuple[float, ...], tuple[float, float]]:
    works = layout.works(phase, *(np.asarray([n]) for n in (sequences, tokens, context)))
    kinds = {k: float(np.max(layout.body_time(w, works))) for k, w in works.layers}
    ends = tuple(float(np.max(layout.body_time(w, works))) for w in (works.embed, works.head))
    return tuple(kinds[k] for k in layout.model.layers()), (ends[0], ends[1])


def _room(d: Deployment, s: Strategy, c: Cluster) -> float:
    """Bytes for weights and KV cache on one device of a kind: its capacity without what the engine and activations take."""
    held = _memory(d, s.model_copy(update={"layers_per_stage": None}), c)[0]
    return held.capacity_bytes - (held.total_bytes - held.weights_bytes - held.kv_bytes)


def _memory(d: Deployment, s: Strategy, c: Cluster) -> tuple[StageMemory, ...]:
    program = lower(
        d.model, s, "prefill", all_sizes(d.model, batch_size=s.batch, seq_len=d.workload.isl, kv_len=d.workload.isl)
    )
    return memory(
        program, capacity_bytes=c.memory_bytes, context=d.workload.context, batch=s.batch,
        memory_reserve=d.requirements.memory_reserve, engine_version=d.engine.version,
    )  # fmt: skip


def _cut(
    d: Deployment, s: Strategy, where: Sequence[_Priced], room: Sequence[float], loads: Loads, micro: int
) -> MixedPipeline:
    """Layers over stages on these devices, and what comes of it; the engine's own accounting has the last word."""
    osl, room = d.workload.osl, list(room)
    for _ in range(8):
        devices = [
            StageDevice(
                p.cluster.device.id, p.busy(osl, 1 / micro), r, p.ends[0][0] + osl / micro * p.ends[1][0],
                p.ends[0][1] + osl / micro * p.ends[1][1],
            )
            for p, r in zip(where, room, strict=True)
        ]  # fmt: skip
        counts, slowest = fastest_split(devices, loads)
        cut = s.model_copy(update={"layers_per_stage": counts})
        kinds = {p.cluster.device.id: p.cluster for p in where}
        by_kind = {k: _memory(d, cut, c) for k, c in kinds.items()}
        held = [by_kind[p.cluster.device.id][i] for i, p in enumerate(where)]
        short = [min(0.0, m.free_bytes) for m in held]
        if not any(short):
            return _assemble(d, cut, where, held, slowest, devices, loads)
        room = [r + x for r, x in zip(room, short, strict=True)]
    raise Refused(
        f"stage {int(np.argmin(short))} stays {-min(short) / 1e9:.3g} GB short under every cut that was tried"
    )


def _assemble(
    d: Deployment, s: Strategy, where: Sequence[_Priced], held: Sequence[StageMemory], slowest: float,
    devices: Sequence[StageDevice], loads: Loads,
) -> MixedPipeline:  # fmt: skip
    counts = s.layers_per_stage or ()
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(int)
    stages = tuple(
        MixedStage(
            device=p.cluster.device.id, layers=n, prefill_s=p.stage(ends[i], ends[i + 1], "prefill"),
            decode_s=p.stage(ends[i], ends[i + 1], "decode"), memory=held[i],
        )
        for i, (p, n) in enumerate(zip(where, counts, strict=True))
    )  # fmt: skip
    decode = [x.decode_s for x in stages]
    base, extra = divmod(len(loads.held), len(where))
    even = [base + (i < extra) for i in range(len(where))]
    at = np.concatenate([[0], np.cumsum(even)]).astype(int)
    fits = all(loads.of(at[i], at[i + 1]) <= x.capacity_bytes for i, x in enumerate(devices))
    evenly = max(x.time(at[i], at[i + 1]) for i, x in enumerate(devices))
    rate = s.dp * d.workload.osl
    return MixedPipeline(
        strategy=s, stages=stages, ttft_s=sum(x.prefill_s for x in stages),
        tpot_s=max(sum(decode), min(s.pp, s.batch) * max(decode)), output_tok_s=rate / slowest,
        even_output_tok_s=rate / evenly if fits else 0.0,
    )  # fmt: skip


def mixed_candidates(d: Deployment, curves: Curves) -> tuple[Candidate, ...]:
    """Pipelines over all kinds of devices of the deployment, priced and judged as any strategy is; the cuts with the highest
    kernel rate first, `MOST_PRICED` of them. Raises as `mixed_pipelines` does, Refused for kinds of several vendors."""
    refuse_vendors(d.clusters)
    w = d.workload
    flying = w.concurrency or (32 if w.batch_size is None else w.batch_size)
    found = mixed_pipelines(d, d.clusters, curves, concurrency=flying)
    return tuple(evaluate_strategy(d, staged(p), curves) for p in found[:MOST_PRICED])


def staged(p: MixedPipeline) -> Strategy:
    """Its strategy with the device of every stage; batch and step size are left to the search."""
    fields = p.strategy.model_dump(exclude={"batch", "max_num_batched_tokens"})
    return Strategy.model_validate({**fields, "stage_devices": tuple(s.device for s in p.stages)})


def pipeline_rate(d: Deployment, curves: Curves, s: Strategy) -> float:
    """Output tokens/s that a strategy on the deployment's own devices could reach by its kernel times, as a mixed pipeline's
    are counted."""
    micro = -(-s.batch // min(s.pp, s.batch))
    p = _price(d, d.cluster, curves, s, micro)
    counts = s.layers_per_stage or default_layers_per_stage(len(p.decode), s.pp)
    ends = [0, *accumulate(counts)]
    share = d.workload.osl / micro
    slowest = max(p.stage(a, b, "prefill") + share * p.stage(a, b, "decode") for a, b in pairwise(ends))
    return s.dp * d.workload.osl / slowest


__all__ = ["MixedPipeline", "MixedStage", "mixed_candidates", "mixed_pipelines", "pipeline_rate", "staged"]
