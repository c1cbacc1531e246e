"""Every legal strategy over N devices, as arrays; and their prices, as arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from tools.cost.curves import Curves
from tools.cost.estimate import batch_limit
from tools.cost.fit import free_bytes, max_batch
from tools.cost.judge import margins
from tools.cost.serving import Load, serve, spare_replicas
from tools.cost.steps import ARRAYS, Candidates, Layout, kv_heads_cut, layouts
from tools.engines.rules import engines, legal_mask, server_defaults
from tools.partition.mesh import cuts, mesh_from_cuts
from tools.spec.base import Refused
from tools.spec.deployment import Deployment
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

MAX_BATCH_POINTS = 14
METRICS = ("ttft", "tpot", "e2e", "output_tok_s", "capacity_tok_s")
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
    a = model.attention
    kv = kv_heads_cut(model)
    return tuple(t for t in divisors(a.num_heads) if t <= most and (kv % t == 0 or t % kv == 0))


@lru_cache(maxsize=65536)
def _nests(tp: int, attn_dp: int, ep: int, etp: int, kv_heads: int) -> bool:
    try:
        mesh_from_cuts({k: int(v) for k, v in cuts(tp, 1, attn_dp, ep, etp, kv_heads).items()})
    except Refused:
        return False
    return True


def degrees(model: ModelSpec, sizes: Iterable[int], *, replicas: bool = True) -> np.ndarray:
    """Rows (tp, pp, dp, ep, etp, attn_dp) whose product uses exactly one of the device counts in `sizes`.

    `replicas` False: dp = 1 only, for loads where replicas are mere copies of each other."""
    kv = kv_heads_cut(model)
    rows = []
    for n in sizes:
        for tp in tensor_degrees(model, n):
            if n % tp:
                continue
            for pp in divisors(n // tp):
                if pp > model.num_hidden_layers:
                    break
                for attn_dp in divisors(n // tp // pp):
                    group = tp * attn_dp
                    dp = n // group // pp
                    if dp > 1 and not replicas:
                        continue
                    for ep in divisors(group) if model.moe else (1,):
                        if model.moe and ep > model.moe.num_experts:
                            break
                        if _nests(tp, attn_dp, ep, group // ep, kv):
                            rows.append((tp, pp, dp, ep, group // ep, attn_dp))
    return np.asarray(rows, np.int64).reshape(-1, 6)


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
    """Empty candidate sets, one per combination of dtypes that the conditions allow."""
    d = deployment
    empty: dict[str, Any] = {n: np.zeros(0, np.int64) for n in ARRAYS}
    return [
        Candidates(**empty, weight_dtype=w, kv_dtype=k, engine=d.engine.name)
        for w in d.weight_dtypes for k in d.kv_dtypes
    ]  # fmt: skip


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
        c.engine, deployment.model, tp=c.tp, pp=c.pp, ep=c.ep, etp=c.etp, attn_dp=c.attn_dp, dp=c.dp, batch=1,
        max_num_batched_tokens=c.max_num_batched_tokens, weight_dtype=c.weight_dtype, kv_dtype=c.kv_dtype,
        num_nodes=deployment.cluster.num_nodes, devices_per_node=deployment.cluster.devices_per_node,
        version=deployment.engine.version, device=deployment.cluster.known_device,
    )  # fmt: skip
    reasons.update(dict(zip(*(x.tolist() for x in np.unique(why[~mask], return_counts=True)), strict=True)))
    return mask, reasons


def price_space(deployment: Deployment, curves: Curves, sizes: Sequence[int]) -> Space:
    """Enumerate, filter by engine and memory, choose batches, price: everything over the device counts `sizes`."""
    rows = degrees(deployment.model, sizes, replicas=not only_copies(deployment))
    load = Load.of(deployment.workload)
    reasons: Counter[str] = Counter()
    priced: list[Priced] = []
    enumerated = legal_count = fitting = 0
    for family in families(deployment, curves):
        cands = _fill(family, rows, token_limits(deployment, curves, family.engine))
        enumerated += len(cands)
        mask, why = legal(deployment, cands)
        reasons.update(why)
        cands = cands.take(mask)
        legal_count += len(cands)
        if not len(cands):
            continue
        # A scheduler never runs more sequences than tokens in a step.
        limit = (
            np.minimum(batch_limit(deployment, curves, cands.engine, 1), cands.max_num_batched_tokens) * cands.attn_dp
        )
        for index, layout in layouts(deployment, curves, cands):
            most = max_batch(layout, _ceiling(deployment, layout.cands, limit[index]))
            fits = most > 0
            reasons["memory"] += int((~fits).sum())
            fitting += int(fits.sum())
            if fits.any():
                found = _price(layout.take(np.flatnonzero(fits)), most[fits], load)
                priced += [found] if len(found) else []
    return Space(tuple(priced), enumerated, legal_count, fitting, {k: v for k, v in reasons.items() if v})


def only_copies(deployment: Deployment) -> bool:
    """Devices are ample and every replica has the same load whatever their number: one replica tells all."""
    load = Load.of(deployment.workload)
    spare = deployment.workload.spare_replicas or deployment.workload.spare_nodes
    coupled = load.rate is not None or load.concurrency is not None or bool(spare)
    totals = any(r.metric in ("throughput_total", "request_rate") for r in deployment.requirements.gates)
    return deployment.cluster.num_devices is None and not coupled and not totals


def _fill(family: Candidates, rows: np.ndarray, tokens: Sequence[int]) -> Candidates:
    """Every row of degrees with every limit of tokens."""
    n = len(rows) * len(tokens)
    columns = {k: np.repeat(v, len(tokens)) for k, v in zip(("tp", "pp", "dp", "ep", "etp", "attn_dp"), rows.T, strict=True)}
    one = np.ones(n, np.int64)
    limits = np.tile(np.asarray(tokens, np.int64), len(rows))
    return replace(family, **columns, cp=one, dcp=one, batch=one, max_num_batched_tokens=limits)


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
    index, batch = _ladder(most, together=load.mode == "together", deployment=layout.deployment)
    if not len(index):
        index, batch = np.arange(len(most)), most
    wide = layout.take(index)
    wide = replace(wide, cands=wide.cands.with_batch(batch))
    free, _ = free_bytes(wide, batch)
    keep = np.flatnonzero(free >= 0)
    if not len(keep):
        names = (*METRICS, "load", *(f"gate:{i}" for i in range(len(layout.deployment.requirements.gates))))
        return Priced(wide.cands.take(keep), dict.fromkeys(names, np.zeros(0)), np.zeros(0))
    wide = wide.take(keep) if len(keep) < len(free) else wide
    perf = serve(wide, load)
    devices = wide.cands.num_devices
    capacity = np.where(perf.stable, perf.capacity_rate * load.osl, perf.output_tok_s)
    metrics = dict(zip(METRICS, (perf.ttft, perf.tpot, perf.e2e, perf.output_tok_s, capacity), strict=True))
    judged = margins(layout.deployment, perf, load, wide.cands.dp, devices)
    judged["load"] = np.where(_too_small(layout.deployment, wide.cands, load), -np.inf, judged["load"])
    return Priced(wide.cands, metrics | judged, worst(judged))


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
    """(candidate index, batch): 1, 2, 3, 4, 6, 8, 12 … and the most that fits; only the most where the batch is
    stated."""
    if together:
        return np.arange(len(most)), most
    doubling = 2 ** np.arange(MAX_BATCH_POINTS, dtype=np.int64)
    steps = np.unique(np.concatenate([doubling, 3 * doubling // 2]))
    grid = np.minimum(steps[None, :], most[:, None])
    grid = np.concatenate([grid, most[:, None]], axis=1)
    first = np.ones_like(grid, bool)
    first[:, 1:] = grid[:, 1:] > np.maximum.accumulate(grid, axis=1)[:, :-1]
    index, column = np.nonzero(first)
    return index, grid[index, column]


def strategy_of(priced: Priced, i: int, model: ModelSpec) -> Strategy:
    return priced.cands.strategy(i, model)
