"""The shard counter: how many parts of what lie where, counted by index sets rather than by formula; and balance.

count_parts(program)        every weight: shards × copies = devices that host it, in numbers and in words
hosts(program)              which devices hold something of which module
balance(per_device)         max / mean over devices, of bytes or of time
optimal_cut(costs, pp)      the most even pipeline cut that exists: the bound where no balance is asked for
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from tools.graph.build import all_sizes
from tools.graph.heads import KV_HEADS
from tools.graph.ir import Sizes
from tools.partition.layout import DEFAULT_ORDERS, Comm, Layout, Order, Orders, positions
from tools.partition.lower import PBody, Program, Stage, local_dims
from tools.partition.mesh import Axes, Mesh, MeshShape
from tools.spec.plan import ModuleParts
from tools.spec.strategy import Strategy

Runs = tuple[tuple[int, int], ...]
"""An index set as half-open runs, in order."""
Box = tuple[Runs, ...]
"""One index set per dim; a box with an empty one holds nothing."""

DEFAULT_BALANCE = 1.05
"""Largest max/mean over devices when the conditions state none."""


class Tiling(NamedTuple):
    """How a set of boxes covers a tensor: `exact` when the distinct ones tile it once and each has the same copies."""

    num_shards: int
    copies: tuple[int, ...]
    hosts: int
    exact: bool
    covered: float
    """Elements covered by distinct shards, overlaps counted twice, over the tensor's elements: 1 when they tile it."""


def tiling(boxes: Iterable[Box], shape: Sequence[int]) -> Tiling:
    """Counts distinct non-empty boxes and their copies; `exact` if the distinct ones cover every index once."""
    held = Counter(b for b in boxes if all(b))
    edges = [sorted({0, n, *(e for b in held for run in b[i] for e in run)}) for i, n in enumerate(shape)]
    inside = all(lo >= 0 and hi <= n for b in held for runs, n in zip(b, shape, strict=True) for lo, hi in runs)
    count = np.zeros([len(e) - 1 for e in edges], dtype=np.int64)
    for b in held:
        spans = zip(b, edges, strict=True)
        cells = [[c for lo, hi in runs for c in range(e.index(lo), e.index(hi))] for runs, e in spans]
        count[np.ix_(*cells)] += 1
    volume = sum(prod(sum(hi - lo for lo, hi in runs) for runs in b) for b in held)
    copies = tuple(held.values())
    exact = inside and bool(held) and bool((count == 1).all()) and len(set(copies)) == 1
    return Tiling(len(held), copies, sum(copies), exact, volume / max(1, prod(shape)))


def boxes_of(pbody: PBody, tensor: str, sizes: Sizes, mesh: Mesh, orders: Orders = DEFAULT_ORDERS) -> list[Box]:
    """What every rank of the stage holds of a tensor, rank by rank; nothing outside the tensor's device group."""
    layout, lengths = pbody.layout(tensor), {d: int(sizes[d]) for d in pbody.spec(tensor).dims}
    holders, nothing = mesh.ranks(pbody.group(tensor)), ((),) * len(lengths)
    return [box(layout, lengths, mesh, rank, orders) if rank in holders else nothing for rank in range(int(mesh.size))]


def box(layout: Layout, lengths: Mapping[str, int], mesh: Mesh, rank: int, orders: Orders = DEFAULT_ORDERS) -> Box:
    """What one rank of the group holds of dims of these lengths."""

    def held(dim: str, n: int) -> Runs:
        axes = layout.axes(dim)
        degrees = tuple(int(mesh.degrees[a]) for a in axes)
        place = tuple(mesh.coordinate(rank, a) for a in axes)
        order = orders.get(dim, "run")
        return _runs(n, degrees, place, order, layout.turned(dim))

    return tuple(held(d, n) for d, n in lengths.items())


@lru_cache(maxsize=65536)
def _runs(n: int, degrees: tuple[int, ...], place: tuple[int, ...], order: Order, rotation: int) -> Runs:
    """What the rank at `place` along axes of these degrees holds of a dim of length `n`."""
    axes = tuple(f"a{i}" for i in range(len(degrees)))
    mesh = Mesh(MeshShape(axes, ()), dict(zip(axes, degrees, strict=True)))
    rank = 0
    for d, c in zip(degrees, place, strict=True):
        rank = rank * d + c
    return runs_of(positions(n, axes, mesh, rank, "dim", {"dim": order}, rotation))


def runs_of(where: np.ndarray) -> Runs:
    """Indices as runs."""
    if not len(where):
        return ()
    where = np.sort(where)
    cut = np.flatnonzero(np.diff(where) != 1) + 1
    return tuple((int(part[0]), int(part[-1]) + 1) for part in np.split(where, cut))


# ---------------------------------------------------------------------------------------------------------- the counter


def count_parts(program: Program) -> tuple[ModuleParts, ...]:
    """One row per weight of each kind of layer, of the embedding and of the head.

    Devices are those that host one layer (all replicas); where a stage holds the same kind of layer, its copies of the
    row agree and `layers` adds up. Σ copies = devices that host it: counted, not computed.
    """
    sizes = all_sizes(program.model, batch_size=1, seq_len=1, kv_len=1)
    rows: dict[tuple[str, str], ModuleParts] = {}
    for stage in program.stages:
        for pbody, times in stage.bodies():
            for w in pbody.weights():
                row = _parts(program, stage, pbody, w.name, times, sizes)
                key = (pbody.name, w.name)
                if key in rows:
                    row = _merge(rows[key], row)
                rows[key] = row
    return tuple(rows.values())


def _merge(a: ModuleParts, b: ModuleParts) -> ModuleParts:
    """The same weight in two stages: layers add up, and both must be cut alike."""
    alike = (a.num_shards, a.copies, a.devices, a.local_dims) == (b.num_shards, b.copies, b.devices, b.local_dims)
    return a.model_copy(update={"layers": a.layers + b.layers, "matches": a.matches and b.matches and alike})


def _parts(program: Program, stage: Stage, pbody: PBody, weight: str, times: int, sizes: Sizes) -> ModuleParts:
    s, mesh, dims = program.strategy, program.mesh, pbody.spec(weight).dims
    found = tiling(boxes_of(pbody, weight, sizes, mesh), [int(sizes[d]) for d in dims])
    devices = len(mesh.ranks(pbody.group(weight))) * s.dp
    copies = max(found.copies, default=0) * s.dp
    idle = devices - found.hosts * s.dp
    matches = found.exact and found.num_shards * copies == devices - idle
    module = module_of(pbody, weight)
    axis = axis_words(pbody, weight, mesh, s)
    return ModuleParts(
        module=module, weight=weight, global_dims={d: int(sizes[d]) for d in dims}, axis=axis,
        local_dims={d: int(n) for d, n in local_dims(pbody, weight, sizes, mesh).items()},
        collective=restoring_collective(pbody, weight, mesh), num_shards=found.num_shards, copies=copies,
        devices=devices - idle, layers=times, matches=matches,
        sentence=_sentence(_full_name(module, weight), found, copies, devices, idle, axis, s, matches),
    )  # fmt: skip


def _sentence(
    name: str, found: Tiling, copies: int, devices: int, idle: int, axis: str, s: Strategy, matches: bool
) -> str:
    """ "attention: 8 shards × 1 copy on 8 GPUs (heads over tp(8)), matches"."""
    note = f", {s.dp} replicas" if s.dp > 1 else ""
    text = (
        f"{name}: {_many(found.num_shards, 'shard')} × {_many(copies, 'copy')} on {_many(devices - idle, 'GPU')} "
        f"({axis}{note})"
    )
    if idle:
        text += f", {_many(idle, 'GPU')} of the group hold nothing of it"
    if matches:
        return f"{text}, matches"
    return f"{text}, DOES NOT MATCH: {found.num_shards} × {copies} copies, {found.covered:.4g} of the tensor covered"


def _full_name(module: str, weight: str) -> str:
    """self_attn.q_proj + q_proj.weight → self_attn.q_proj.weight; else the weight in brackets."""
    head, _, rest = weight.partition(".")
    if module.endswith(head):
        return f"{module}.{rest}" if rest else module
    return f"{module} ({weight})"


REGIONS = (
    ("self_attn", "attention"), ("mlp.experts", "routed experts"), ("mlp.shared_expert", "shared expert"),
    ("mlp.gate", "router"), ("mlp", "dense MLP"), ("embed", "embedding"), ("lm_head", "head"),
)  # fmt: skip


def region_of(module: str) -> str:
    """attention, dense MLP, routed experts, shared expert, router, embedding, head, norms."""
    if module == "mlp.gate_proj":
        return "dense MLP"
    return next((name for prefix, name in REGIONS if module.startswith(prefix)), "norms")


def summary(parts: Sequence[ModuleParts]) -> tuple[str, ...]:
    """One sentence per region, of its most divided weight: "attention: 8 shards × 1 copy on 8 GPUs (…), matches"."""
    best: dict[str, ModuleParts] = {}
    for row in parts:
        region = region_of(row.module)
        if region not in best or row.num_shards > best[region].num_shards:
            best[region] = row
    broken = {region_of(r.module): r for r in parts if not r.matches}
    return tuple(f"{k}: {broken.get(k, r).sentence.split(': ', 1)[1]}" for k, r in best.items())


def _many(n: int, word: str) -> str:
    plural = word[:-1] + "ies" if word.endswith("py") else word + "s"
    return f"{n} {word if n == 1 else plural}"


def module_of(pbody: PBody, weight: str) -> str:
    """Module path of the operator that reads the weight."""
    return next((p.op.module for p in pbody.ops if p.op is not None and weight in p.inputs), weight)


AXES_BY_DIM = {"experts": ("ep",), "expert_ffn": ("etp",), "batch_size": ("attn_dp",), "seq_len": ("cp",)}
ORDER = ("tp", "attn_dp", "ep", "etp", "edp", "cp", "tp_kv", "tp_rep")


def axis_name(mesh: Mesh, axes: Axes, dim: str | None = None) -> str:
    """Field's name of some mesh axes with their degree: "tp(8)"; "attn_dp(2)·tp(4)" where they are several."""
    names = (*AXES_BY_DIM.get(dim or "", ()), *ORDER)
    logical = {n: a for n, a in mesh.shape.logical if a}
    for n in names:
        if n in logical and set(logical[n]) == set(axes):
            return f"{'tp' if n in ('tp_kv', 'tp_rep') else n}({int(mesh.degree(axes))})"
    for first, second in product(names, names):
        both = (*logical.get(first, ()), *logical.get(second, ()))
        if first in logical and second in logical and sorted(both) == sorted(axes):
            return f"{axis_name(mesh, logical[first], dim)}·{axis_name(mesh, logical[second], dim)}"
    return f"{int(mesh.degree(axes))} ranks"


def axis_words(pbody: PBody, weight: str, mesh: Mesh, s: Strategy) -> str:
    """ "heads over tp(8)"; "kv_heads over tp(8), 4 ranks share each"; "whole on every rank"."""
    parts = []
    for dim, axes in pbody.layout(weight).split:
        degree = int(mesh.degree(axes))
        if degree == 1:
            continue
        if dim in KV_HEADS and degree < s.tp:
            parts.append(f"{dim} over {degree} of tp({s.tp}), {s.tp // degree} ranks share each")
        else:
            parts.append(f"{dim} over {axis_name(mesh, axes, dim)}")
    ranks = len(mesh.ranks(pbody.group(weight)))
    whole = "one rank" if ranks == 1 else "whole on every rank"
    return ", ".join(parts) or whole


def restoring_collective(pbody: PBody, weight: str, mesh: Mesh) -> str:
    """First collective downstream of the weight over an axis that splits it: "all-reduce over tp(8) after o_proj"."""
    split = {a for _, axes in pbody.layout(weight).split for a in axes if int(mesh.degrees[a]) > 1}
    if not split:
        return ""
    reached = {weight}
    for p in pbody.ops:
        if not reached & set(p.inputs):
            continue
        reached.add(p.output)
        if p.comm is not None and p.comm.kind != "slice" and split & set(p.comm.axes):
            return f"{comm_words(p.comm, mesh)} after {pbody.tensors[p.inputs[0]].origin}"
    return ""


def comm_words(comm: Comm, mesh: Mesh) -> str:
    """ "all-reduce over tp(8)"."""
    return f"{comm.kind.replace('_', '-')} over {axis_name(mesh, comm.axes, comm.dst_dim or comm.src_dim)}"


def hosts(program: Program) -> dict[str, frozenset[int]]:
    """Global ids of the devices, over all replicas, that hold part of some weight of each module."""
    s, sizes = program.strategy, all_sizes(program.model, batch_size=1, seq_len=1, kv_len=1)
    out: dict[str, set[int]] = {}
    for stage in program.stages:
        for pbody, _ in stage.bodies():
            for w in pbody.weights():
                boxes = boxes_of(pbody, w.name, sizes, program.mesh)
                ranks = [r for r, b in zip(stage.ranks, boxes, strict=True) if all(b)]
                everywhere = {r + k * s.replica for r in ranks for k in range(s.dp)}
                out.setdefault(module_of(pbody, w.name), set()).update(everywhere)
    return {k: frozenset(v) for k, v in out.items()}


def idle_devices(program: Program) -> tuple[int, ...]:
    """Devices of the strategy that hold neither a weight nor a cache."""
    s, busy = program.strategy, set[int]().union(*hosts(program).values())
    for stage in program.stages:
        kept = {
            pbody.group(n)
            for pbody, _ in stage.bodies()
            for n, t in pbody.tensors.items()
            if pbody.spec(t.name).kind == "cache"
        }
        ranks = [stage.ranks[r] for group in kept for r in program.mesh.ranks(group)]
        busy |= {r + k * s.replica for r in ranks for k in range(s.dp)}
    return tuple(sorted(set(range(program.num_devices)) - busy))


# -------------------------------------------------------------------------------------------------------------- balance


class Balance(NamedTuple):
    """max / mean over devices; 1 is perfectly even."""

    ratio: float
    maximum: float
    mean: float
    fullest: int


def balance(per_device: Mapping[int, float]) -> Balance:
    """Of bytes or of time by device. All zero counts as even."""
    worst = max(per_device, key=lambda r: (per_device[r], -r))
    mean = sum(per_device.values()) / len(per_device)
    return Balance(per_device[worst] / mean if mean else 1.0, per_device[worst], mean, worst)


def optimal_cut(
    layer_costs: Sequence[float], pp: int, *, first: float = 0.0, last: float = 0.0
) -> tuple[tuple[int, ...], float]:
    """Layers per stage whose heaviest stage is lightest, over all cuts into `pp` contiguous non-empty stages, and that
    stage's cost. `first` and `last` are what embedding and head add to the end stages. Dynamic programming."""
    n = len(layer_costs)
    before = np.concatenate([[0.0], np.cumsum(layer_costs)])

    def cost(lo: int, hi: int, stage: int) -> float:
        return float(before[hi] - before[lo]) + (first if stage == 0 else 0.0) + (last if stage == pp - 1 else 0.0)

    best: dict[int, tuple[float, tuple[int, ...]]] = {hi: (cost(0, hi, 0), (hi,)) for hi in range(1, n + 1)}
    for stage in range(1, pp):
        best = {
            hi: min((max(best[lo][0], cost(lo, hi, stage)), (*best[lo][1], hi - lo)) for lo in best if lo < hi)
            for hi in range(stage + 1, n + 1)
        }
    worst, counts = best[n]
    return counts, worst


def balance_bound(stated: float | None, optimum: float) -> float:
    """Largest max/mean that passes: 1 + the stated ε, else 1.05, or the best that any cut of this model reaches."""
    return 1.0 + stated if stated is not None else max(DEFAULT_BALANCE, optimum)


__all__ = [
    "DEFAULT_BALANCE",
    "Balance",
    "Box",
    "Runs",
    "Tiling",
    "axis_name",
    "axis_words",
    "balance",
    "balance_bound",
    "box",
    "boxes_of",
    "comm_words",
    "count_parts",
    "hosts",
    "idle_devices",
    "module_of",
    "optimal_cut",
    "region_of",
    "restoring_collective",
    "runs_of",
    "summary",
    "tiling",
]
