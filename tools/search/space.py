"""Every legal strategy over N devices, as arrays; and their prices, as arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd
from typing import Any

import numpy as np

from tools.cost.curves import Curves
from tools.cost.estimate import batch_limit
from tools.cost.fit import free_bytes, max_batch
from tools.cost.judge import margins
from tools.cost.known import distinct
from tools.cost.serving import Load, overwhelmed, serve, spare_replicas
from tools.cost.steps import ARRAYS, Candidates, Layout, MoEComm, layout_of
from tools.engines.rules import check, engines, legal_mask, server_defaults
from tools.partition.axes import KVHeads, cuts
from tools.partition.mesh import mesh_from_cuts
from tools.spec.base import MeshwrightError, Refused
from tools.spec.deployment import Deployment
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

BATCHES = np.unique([k * 2**i // 4 for i in range(16) for k in (4, 5, 6, 7)])
"""Sequences per replica that are tried, up to what fits: no step is larger than a quarter."""
METRICS = ("ttft", "tpot", "e2e", "output_tok_s", "capacity_tok_s")
DEGREES = ("tp", "pp", "dp", "ep", "etp", "attn_dp", "cp", "dcp")
DEFAULT_TOKENS = 8192
STEP_TOKENS = (2048, 4096, 8192, 16384)
"""max_num_batched_tokens that are tried where the conditions leave it open."""
TOKEN_LIMITS = ("max_num_batched_tokens", "chunked_prefill_size", "max_num_tokens")
"""What engines call it."""


@lru_cache(maxsize=65536)
def divisors(n: int) -> tuple[int, ...]:
    small = [i for i in range(1, int(n**0.5) + 1) if n % i == 0]
    return tuple(sorted({*small, *(n // i for i in small)}))


def tensor_degrees(model: ModelSpec, most: int) -> tuple[int, ...]:
    """tp that divides the heads and divides or is a multiple of the KV heads."""
    return Axes.of(model).tps(most)


@lru_cache(maxsize=65536)
def _nests(tp: int, cp: int, attn_dp: int, ep: int, etp: int, dcp: int, kv_heads: KVHeads) -> bool:
    try:
        degrees = {"tp": tp, "cp": cp, "attn_dp": attn_dp, "ep": ep, "etp": etp, "dcp": dcp}
        mesh_from_cuts({k: int(v) for k, v in cuts(degrees, kv_heads).items()})
    except Refused:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Axes:
    """What the degrees of a model may be, in whole numbers: enumerations that agree in this are the same."""

    num_heads: int
    kv_heads: tuple[int, ...]
    """Heads along which tp can split the cache, of every attention there is."""
    num_layers: int
    num_experts: int
    """0: dense."""
    copies_all: bool
    """Every tp rank would hold the whole cache (MLA); else only tp beyond the KV heads makes copies."""
    cp: bool = False
    dcp: bool = False

    @classmethod
    def of(cls, model: ModelSpec, *, cp: bool = False, dcp: bool = False) -> Axes:
        a, moe = model.attention, model.moe
        return cls(
            a.num_heads, model.cache_heads, model.num_hidden_layers, moe.num_experts if moe else 0, a.mla is not None,
            cp, dcp,
        )  # fmt: skip

    def tps(self, most: int) -> tuple[int, ...]:
        fits = (t for t in divisors(self.num_heads) if t <= most)
        return tuple(t for t in fits if all(kv % t == 0 or t % kv == 0 for kv in self.kv_heads))

    def cps(self, tp: int, most: int) -> tuple[int, ...]:
        """Ways to exchange positions for heads: tp * cp divides the heads."""
        return tuple(c for c in divisors(most) if self.num_heads % (tp * c) == 0) if self.cp else (1,)

    def dcps(self, tp: int, cp: int) -> tuple[int, ...]:
        """Ways to deal the cache out over ranks that would hold copies of it."""
        copies = tp if self.copies_all else gcd(*(max(1, tp // kv) for kv in self.kv_heads))
        return divisors(copies) if self.dcp and cp == 1 else (1,)


def degrees(
    model: ModelSpec, sizes: Iterable[int], *, replicas: bool = True, cp: bool = False, dcp: bool = False
) -> np.ndarray:
    """Rows (tp, pp, dp, ep, etp, attn_dp, cp, dcp) whose product uses exactly one of the device counts in `sizes`.

    `replicas` False: dp = 1 only, for loads where replicas are mere copies of each other. `cp`, `dcp`: these axes too."""
    axes = Axes.of(model, cp=cp, dcp=dcp)
    rows = [r for n in sizes for r in _rows(axes, n, replicas)]
    return np.asarray(rows, np.int64).reshape(-1, len(DEGREES))


@lru_cache(maxsize=256)
def _rows(axes: Axes, n: int, replicas: bool) -> tuple[tuple[int, ...], ...]:
    """`degrees` over n devices."""
    out = []
    for tp, cp, attn_dp, pp in _attention(axes, n):
        group = tp * cp * attn_dp
        dp = n // group // pp
        if dp > 1 and not replicas:
            continue
        for ep in divisors(group) if axes.num_experts else (1,):
            if axes.num_experts and ep > axes.num_experts:
                break
            for dcp in axes.dcps(tp, cp):
                if _nests(tp, cp, attn_dp, ep, group // ep, dcp, axes.kv_heads):
                    out.append((tp, pp, dp, ep, group // ep, attn_dp, cp, dcp))
    return tuple(out)


def _attention(axes: Axes, n: int) -> Iterator[tuple[int, int, int, int]]:
    """(tp, cp, attn_dp, pp) whose product divides n."""
    for tp in axes.tps(n):
        if n % tp:
            continue
        for pp in divisors(n // tp):
            if pp > axes.num_layers:
                break
            for cp in axes.cps(tp, n // tp // pp):
                yield from ((tp, cp, attn_dp, pp) for attn_dp in divisors(n // tp // pp // cp))


@dataclass(frozen=True, slots=True)
class Priced:
    """Candidates that are legal and fit, with what was predicted for each. Parallel arrays."""

    cands: Candidates
    metrics: dict[str, np.ndarray]
    """ttft, tpot, e2e, output_tok_s, capacity_tok_s; margins: one `gate:i` per requirement, and `load`."""
    margin: np.ndarray
    """Smallest relative margin over the requirements; negative: breaks one."""

    def __len__(self) -> int:
        return len(self.margin)

    @property
    def feasible(self) -> np.ndarray:
        return self.margin >= 0

    @property
    def num_devices(self) -> np.ndarray:
        return self.cands.num_devices


@dataclass(frozen=True, slots=True)
class Space:
    """Outcome of pricing everything: one Priced per family of dtypes."""

    priced: tuple[Priced, ...]
    num_enumerated: int
    num_legal: int
    num_fitting: int
    reasons: dict[str, int]
    """Why layouts fell out before pricing: engine rule codes, `memory`."""

    @property
    def num_feasible(self) -> int:
        return sum(int(p.feasible.sum()) for p in self.priced)


def families(deployment: Deployment, curves: Curves) -> list[Candidates]:
    """Empty candidate sets, one per combination of what is no number: dtypes that the conditions allow, ways to reach
    experts, sequence parallelism."""
    d, engine = deployment, deployment.engine.name
    empty: dict[str, Any] = {n: np.zeros(0, np.int64) for n in ARRAYS}
    ways: list[tuple[MoEComm, bool, int]] = [("auto", False, 0)]
    if engine in engines():
        ways += [("allgather", False, 0)] if d.model.moe else []
        ways += [("auto", True, 0)] if _accepts(deployment, tp=2, sp=True) else []
        ways += [("auto", False, node)] if (node := _dispatch_node(deployment)) else []
    return [
        Candidates(**empty, weight_dtype=w, kv_dtype=k, engine=engine, moe_comm=comm, sp=sp, node=node)
        for w in d.weight_dtypes for k in d.kv_dtypes for comm, sp, node in ways
    ]  # fmt: skip


def prefill_families(deployment: Deployment, curves: Curves) -> list[Candidates]:
    """Empty candidate sets for ranks that only prefill: tokens straight to the experts, and to the nodes first."""
    plain, node = families(deployment, curves)[0], _dispatch_node(deployment, frozenset({"ep-nodes-phase"}))
    return [plain, replace(plain, node=node)] if node else [plain]


def _dispatch_node(deployment: Deployment, ignored: frozenset[str] = frozenset()) -> int:
    """Ranks of a node, where the engine can send tokens to nodes first; 0 where it cannot or there is one node only."""
    node, several = deployment.cluster.devices_per_node, deployment.cluster.num_nodes != 1
    if not deployment.model.moe or node < 2 or not several:
        return 0
    degrees = {"attn_dp": 2 * node, "ep": 2 * node, "ep_nodes": 2}
    return node if _accepts(deployment, ignored, **degrees) else 0


UNLIKE = frozenset({"cp-kind", "cp-prefill", "dcp-backend", "ep-nodes-phase"})
"""Warnings that an engine does something else than the graph that is priced and proven, or cannot be relied on to do it."""
REFUSED = frozenset({"sp", "dcp", "dcp-cp", "cp-heads", "cp-window", "cp-ep", "cp-kind", "ep-nodes", "not-expressible"})


def _accepts(deployment: Deployment, ignored: frozenset[str] = frozenset(), **axis: Any) -> bool:
    """Whether the engine has this axis, as the graph has it. `ignored`: warnings that do not apply."""
    try:
        found = check(
            deployment.model, Strategy(**axis), engine=deployment.engine.name, version=deployment.engine.version
        )
    except MeshwrightError:
        return False
    return not any(f.code in UNLIKE - ignored or (f.severity == "error" and f.code in REFUSED) for f in found)


def searched_axes(deployment: Deployment) -> dict[str, bool]:
    """Whether cp and dcp are tried: where the engine has them as the graph does."""
    model, known = deployment.model, deployment.engine.name in engines()
    kv = 1 if model.attention.mla else max(model.cache_heads)
    return {"cp": known and _accepts(deployment, cp=2), "dcp": known and _accepts(deployment, tp=2 * kv, dcp=2)}


def token_limits(deployment: Deployment, curves: Curves, engine: str) -> tuple[int, ...]:
    """Tokens of one step that the search tries: the stated limit alone, else the engine's default first."""
    if any(deployment.engine.limits.get(name) for name in TOKEN_LIMITS):
        return (batched_tokens(deployment, curves, engine),)
    return tuple(dict.fromkeys((batched_tokens(deployment, curves, engine), *STEP_TOKENS)))


def batched_tokens(deployment: Deployment, curves: Curves, engine: str) -> int:
    """Tokens of one step: the stated limit, else the engine's default for this device."""
    limits = deployment.engine.limits
    for name in TOKEN_LIMITS:
        if limits.get(name):
            return int(limits[name])
    if engine in engines():
        return server_defaults(engine, deployment.cluster.memory_bytes, 1, version=deployment.engine.version)[0]
    return curves.engine(engine).max_num_batched_tokens


def legal(deployment: Deployment, cands: Candidates) -> tuple[np.ndarray, Counter[str]]:
    """(mask, why not) by the engine's own rules."""
    reasons: Counter[str] = Counter()
    if cands.engine not in engines():
        return np.ones(len(cands), bool), reasons
    c = cands
    mask, why = legal_mask(
        c.engine, deployment.model, tp=c.tp, pp=c.pp, ep=c.ep, etp=c.etp, attn_dp=c.attn_dp, cp=c.cp, dcp=c.dcp, dp=c.dp,
        sp=c.sp, moe_comm=c.moe_comm, batch=1,
        max_num_batched_tokens=c.max_num_batched_tokens, weight_dtype=c.weight_dtype, kv_dtype=c.kv_dtype,
        num_nodes=_nodes(deployment, c), devices_per_node=deployment.cluster.devices_per_node,
        version=deployment.engine.version, device=deployment.cluster.known_device,
    )  # fmt: skip
    reasons.update(dict(zip(*(x.tolist() for x in np.unique(why[~mask], return_counts=True)), strict=True)))
    return mask, reasons


def _nodes(deployment: Deployment, c: Candidates) -> Any:
    """Nodes there are: the cluster's, or as many as the devices of a candidate fill where that is asked about a larger
    one."""
    n = deployment.cluster.num_nodes
    return None if n is None else np.maximum(n, -(-c.num_devices // deployment.cluster.devices_per_node))


def price_space(
    deployment: Deployment, curves: Curves, sizes: Sequence[int], judged: Sequence[Space] = (), *, able: bool = False
) -> Space:
    """Enumerate, filter by engine and memory, choose batches, price: everything over the device counts `sizes` but the
    configurations of `judged`. `able`: where only what is feasible counts, without those that the arrivals overwhelm."""
    rows = degrees(deployment.model, sizes, replicas=not only_copies(deployment), **searched_axes(deployment))
    load = Load.of(deployment.workload)
    reasons: Counter[str] = Counter()
    priced: list[Priced] = []
    enumerated = legal_count = fitting = 0
    for family in families(deployment, curves):
        tokens = token_limits(deployment, curves, family.engine)
        cands = _fill(family, _meant(family, rows))
        mask, why = legal(deployment, cands)
        reasons.update({k: n * len(tokens) for k, n in why.items()})
        enumerated += len(cands) * len(tokens)
        cands = at_limits(cands.take(mask), tokens)
        legal_count += len(cands)
        if not len(cands):
            continue
        # A scheduler never runs more sequences than tokens in a step.
        limit = (
            np.minimum(batch_limit(deployment, curves, cands.engine, 1), cands.max_num_batched_tokens) * cands.attn_dp
        )
        layout = layout_of(deployment, curves, cands)
        most = max_batch(layout, _ceiling(deployment, cands, limit))
        fits = np.flatnonzero(most > 0)
        reasons["memory"] += len(cands) - len(fits)
        fitting += len(fits)
        for block in _blocks(layout, fits, most):
            wide = _unless(_fitting(layout.take(block), most[block], load), judged)
            if able:
                wide = wide.take(np.flatnonzero(~overwhelmed(wide, load)))
            found = _served(wide, load)
            priced += [found] if len(found) else []
    return Space(tuple(priced), enumerated, legal_count, fitting, {k: v for k, v in reasons.items() if v})


BLOCK = 250_000
"""Configurations that are served at once, more or less: some sixty arrays of them are held at the same time. Smaller blocks
are no faster."""


def _blocks(layout: Layout, index: np.ndarray, most: np.ndarray) -> Iterator[np.ndarray]:
    """These candidates in blocks of whole graphs."""
    graph = layout.graph_of(layout.row[index])
    rows = np.bincount(graph, np.searchsorted(BATCHES, most[index]) + 1, len(layout.graphs))
    block = (np.cumsum(rows) // BLOCK)[graph]
    yield from (index[block == k] for k in np.unique(block))


def only_copies(deployment: Deployment) -> bool:
    """Devices are ample and every replica has the same load whatever their number: one replica tells all."""
    load = Load.of(deployment.workload)
    spare = deployment.workload.spare_replicas or deployment.workload.spare_nodes
    coupled = load.rate is not None or load.concurrency is not None or bool(spare)
    totals = any(r.metric in ("throughput_total", "request_rate") for r in deployment.requirements.gates)
    return deployment.cluster.num_devices is None and not coupled and not totals


def _meant(family: Candidates, rows: np.ndarray) -> np.ndarray:
    """The rows of degrees that a family is about: without tokens to exchange, or tp to split norms over, it repeats the
    plain one."""
    column = dict(zip(DEGREES, rows.T, strict=True))
    if family.sp:
        return rows[column["tp"] > 1]
    if family.node:
        return rows[_over_nodes(column, family.node)]
    if family.moe_comm != "auto":
        return rows[(column["attn_dp"] > 1) & (column["ep"] > 1)]
    return rows


def _over_nodes(column: dict[str, np.ndarray], node: int) -> np.ndarray:
    """Degrees whose experts lie over several whole nodes, with sequences dealt out over the nodes and tp inside them."""
    ranks, inside = column["ep"] * column["etp"], column["tp"] * column["cp"]
    nodes = ranks // node
    whole = (ranks % node == 0) & (nodes > 1) & (column["ep"] % np.maximum(nodes, 1) == 0)
    return whole & (node % inside == 0) & (column["cp"] == 1) & (column["attn_dp"] > 1)


def _fill(family: Candidates, rows: np.ndarray) -> Candidates:
    """The family with these degrees."""
    one = np.ones(len(rows), np.int64)
    columns: dict[str, Any] = dict(zip(DEGREES, rows.T, strict=True))
    return replace(family, **columns, batch=one, max_num_batched_tokens=DEFAULT_TOKENS * one)


def at_limits(cands: Candidates, tokens: Sequence[int]) -> Candidates:
    """Every candidate with every limit of tokens."""
    out = cands.take(np.repeat(np.arange(len(cands)), len(tokens)))
    return replace(out, max_num_batched_tokens=np.tile(np.asarray(tokens, np.int64), len(cands)))


def _ceiling(deployment: Deployment, cands: Candidates, limit: np.ndarray) -> np.ndarray:
    """No more sequences than the load can bring to one replica."""
    w = deployment.workload
    load = Load.of(w)
    if load.mode == "closed" and load.concurrency is not None:
        in_service = np.maximum(cands.dp - spare_replicas(deployment, cands), 1)
        return np.minimum(limit, -(-int(load.concurrency) // in_service))
    if load.mode == "together" and w.batch_size is not None:
        return np.full(len(cands), w.batch_size, np.int64)
    return limit


def _price(layout: Layout, most: np.ndarray, load: Load) -> Priced:
    """Every candidate at every batch of its ladder that fits."""
    return _served(_fitting(layout, most, load), load)


def _fitting(layout: Layout, most: np.ndarray, load: Load) -> Layout:
    """Every candidate at every batch of its ladder that fits."""
    index, batch = _ladder(most, together=load.mode == "together", deployment=layout.deployment)
    if not len(index):
        index, batch = np.arange(len(most)), most
    wide = layout.take(index)
    wide = replace(wide, cands=wide.cands.with_batch(batch))
    free, _ = free_bytes(wide, batch)
    return wide if (free >= 0).all() else wide.take(np.flatnonzero(free >= 0))


def _unless(layout: Layout, judged: Sequence[Space]) -> Layout:
    """The layout without candidates that were judged before."""
    family = replace(layout.cands, **_NO_DEGREES)
    same = [p.cands for s in judged for p in s.priced if replace(p.cands, **_NO_DEGREES) == family]
    if not same or not len(layout.cands):
        return layout
    columns = [np.concatenate([getattr(c, n) for c in (*same, layout.cands)]) for n in ARRAYS]
    n = len(layout.cands)
    _, kind = distinct(columns, len(columns[0]))
    return layout.take(np.flatnonzero(~np.isin(kind[-n:], kind[:-n])))


_NO_DEGREES: dict[str, Any] = dict.fromkeys(ARRAYS)


def _served(layout: Layout, load: Load) -> Priced:
    """What every candidate does under the load."""
    d, cands = layout.deployment, layout.cands
    if not len(cands):
        names = (*METRICS, "load", *(f"gate:{i}" for i in range(len(d.requirements.gates))))
        return Priced(cands, dict.fromkeys(names, np.zeros(0)), np.zeros(0))
    perf = serve(layout, load)
    capacity = np.where(perf.stable, perf.capacity_rate * load.osl, perf.output_tok_s)
    metrics = dict(zip(METRICS, (perf.ttft, perf.tpot, perf.e2e, perf.output_tok_s, capacity), strict=True))
    judged = margins(d, perf, load, cands.dp, cands.num_devices)
    judged["load"] = np.where(_too_small(d, cands, load), -np.inf, judged["load"])
    return Priced(cands, metrics | judged, worst(judged))


def worst(judged: dict[str, np.ndarray]) -> np.ndarray:
    """Smallest of the margins."""
    out = judged["load"]
    for m in judged.values():
        out = np.minimum(out, m)
    return out


def _too_small(deployment: Deployment, cands: Candidates, load: Load) -> np.ndarray:
    """A batch that is stated must be held whole."""
    size = deployment.workload.batch_size
    if load.mode != "together" or size is None:
        return np.zeros(len(cands), bool)
    return cands.batch < size


def _ladder(most: np.ndarray, *, together: bool, deployment: Deployment) -> tuple[np.ndarray, np.ndarray]:
    """(candidate index, batch): four to an octave (1 to 8, 10, 12, 14, 16, 20 …) and the most that fits; only the most
    where the batch is stated."""
    if together:
        return np.arange(len(most)), most
    count = np.searchsorted(BATCHES, most)
    index = np.repeat(np.arange(len(most)), count + 1)
    place = np.arange(len(index)) - np.repeat(np.cumsum(count + 1) - count - 1, count + 1)
    return index, np.where(place < count[index], BATCHES[np.minimum(place, len(BATCHES) - 1)], most[index])


def strategy_of(priced: Priced, i: int, model: ModelSpec) -> Strategy:
    return priced.cands.strategy(i, model)
