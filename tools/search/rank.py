"""search(): the best strategy, those behind it, the baseline, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tools.cost.curves import Curves
from tools.cost.estimate import batch_limit, beyond_positions, estimate, normalise
from tools.cost.fit import max_batch
from tools.cost.known import distinct
from tools.cost.serving import Load
from tools.cost.steps import Candidates, layouts
from tools.engines.rules import resolve_layers
from tools.memory import model_weight_bytes
from tools.search.objective import choose_objective, objective_value
from tools.search.pareto import front
from tools.search.space import (
    Priced,
    Space,
    _ceiling,
    _price,
    at_limits,
    batched_tokens,
    degrees,
    legal,
    only_copies,
    price_space,
    tensor_degrees,
    token_limits,
)
from tools.spec.base import Refused, ToolError
from tools.spec.deployment import Deployment, Objective
from tools.spec.finding import Finding
from tools.spec.plan import Candidate, Estimate, SearchResult
from tools.spec.strategy import Strategy

DEFAULT_NODE = 8
LAYOUT = ("cp", "dcp", "tp", "pp", "dp", "ep", "etp", "attn_dp")
"""What makes two candidates one layout at two operating points; the plain axes come first where values are equal."""
AMPLE_STEPS: tuple[tuple[int, int, int], ...] = (
    (1, 17, 1),
    (17, 65, 1),
    (72, 257, 8),
    (320, 1025, 64),
    (1280, 4097, 256),
)
"""(from, below, step): device counts tried in turn when devices are ample; the first group with a feasible plan ends
it."""
TABLE_GROWTH = (1, 2, 4, 8)
MAX_PARETO = 10


@dataclass(frozen=True, slots=True)
class Ranked:
    """One row of the order: which family, which index, its objective value."""

    priced: Priced
    index: int
    value: float

    def strategy(self, deployment: Deployment) -> Strategy:
        return self.priced.cands.strategy(self.index, deployment.model)


def device_counts(deployment: Deployment) -> Iterator[Sequence[int]]:
    """Groups of device counts to try, in turn, until one has a feasible strategy.

    A bounded cluster is used whole; only if nothing at all works on all of it are fewer devices tried."""
    n = deployment.cluster.num_devices
    if n is not None:
        yield (n,)
        if n > 1:
            yield range(n - 1, max(0, n - 1 - DEFAULT_NODE), -1)
        return
    least = lower_bound(deployment)
    steps = AMPLE_STEPS[:4] if only_copies(deployment) else AMPLE_STEPS
    for start, stop, step in steps:
        group = [k for k in range(start, stop, step) if k >= least]
        if group:
            yield group


def lower_bound(deployment: Deployment) -> int:
    """Devices that hold one copy of the weights."""
    least = min(model_weight_bytes(deployment.model, w) for w in deployment.weight_dtypes)
    return max(1, int(least // deployment.cluster.memory_bytes))


def explore(
    deployment: Deployment, curves: Curves, judged: Sequence[Space] = (), *, able: bool = False
) -> tuple[Space, list[Space]]:
    """(the first space with a feasible strategy, else the first one; all spaces that were priced). Configurations of
    `judged`, which are known to fail under these conditions too, are left out; `able` as in `price_space`."""
    seen: list[Space] = []
    for sizes in device_counts(deployment):
        space = price_space(deployment, curves, sizes, judged, able=able)
        seen.append(space)
        if space.num_feasible:
            return (space if deployment.cluster.num_devices is None else _most_devices(space)), seen
    return seen[0], seen


def _most_devices(space: Space) -> Space:
    """The strategies that use as many devices as any feasible one does."""
    most = max(int(p.num_devices[p.feasible].max(initial=0)) for p in space.priced)
    if all((p.num_devices == most).all() for p in space.priced):
        return space
    left = [_select(p, np.flatnonzero(p.num_devices == most)) for p in space.priced]
    return replace(space, priced=tuple(p for p in left if len(p)))


def order(space: Space, objective: Objective) -> list[Ranked]:
    """Feasible strategies, best first; each layout once, at its best batch."""
    tables = [(p, np.flatnonzero(p.feasible)) for p in space.priced]
    tables = [(p, index) for p, index in tables if len(index)]
    if not tables:
        return []
    values = np.concatenate([objective_value(objective, p)[i] for p, i in tables])
    families = [(c.sp, c.moe_comm != "auto", c.node, c.weight_dtype, c.kv_dtype) for c in (p.cands for p, _ in tables)]
    numbers = {f: i for i, f in enumerate(sorted(set(families)))}
    family = np.concatenate([np.full(len(i), numbers[f]) for f, (_, i) in zip(families, tables, strict=True)])
    layout = [*(np.concatenate([getattr(p.cands, name)[i] for p, i in tables]) for name in LAYOUT), family]
    rest = [np.concatenate([x[i] for x, (_, i) in zip(xs, tables, strict=True)]) for xs in (
        [p.cands.max_num_batched_tokens for p, _ in tables], [p.cands.batch for p, _ in tables],
        [-p.margin for p, _ in tables],
    )]  # fmt: skip
    # Equal values: the larger margin, then the simpler layout.
    order_ = np.lexsort((rest[0], rest[1], *layout[::-1], rest[2], -values))
    _, kind = distinct(layout, len(values))
    _, first = np.unique(kind[order_], return_index=True)
    which = np.repeat(np.arange(len(tables)), [len(i) for _, i in tables])
    index = np.concatenate([i for _, i in tables])
    return [Ranked(tables[which[j]][0], int(index[j]), float(values[j])) for j in order_[np.sort(first)]]


def search(deployment: Deployment, curves: Curves, *, top: int = 10) -> SearchResult:
    """Exhaustive over every legal strategy; `ranked` holds the feasible ones, best first.

    Without any, `infeasible` says why, with the change of the conditions that helps least far away. Raises ToolError
    for conditions no search can answer (no devices), Refused for a model whose operators are not supported.
    """
    from tools.search.explain import explain_infeasible, what_ifs
    from tools.search.fleet import better, fleet_candidates, fleets
    from tools.search.pools import pooled, pooled_candidate, takes_over

    _check(deployment)
    objective = choose_objective(deployment)
    space, seen = explore(deployment, curves)
    # A context beyond the model's positions is no memory or time problem: no layout makes it right.
    ranked = [] if beyond_positions(deployment) else order(space, objective)
    candidates = _candidates(deployment, curves, ranked, objective, top)
    baseline = evaluate_strategy(deployment, baseline_strategy(deployment, curves), curves)
    answers = [_asked(deployment, a, curves) for a in deployment.alternatives]
    grouped = () if beyond_positions(deployment) else fleets(deployment, curves, objective)
    mine = candidates[0] if candidates else None
    # Groups of several kinds of devices stand among the strategies of the main kind alone, where they belong.
    mixed = [c for c in fleet_candidates(grouped) if [u.clusters for u in c.units] != [(deployment.cluster,)]]
    ahead = tuple(c for c in mixed if mine is None or better(c, mine))
    candidates = _numbered((*ahead, *candidates, *(c for c in mixed if c not in ahead)), objective)
    pair = pooled(deployment, curves, candidates[0].estimate.output_tok_s if candidates else None)
    alone = not deployment.further_clusters and not beyond_positions(deployment)
    if pair is not None and alone and takes_over(pair, objective, candidates[0] if candidates else None):
        ahead = tuple(c for c in (pooled_candidate(deployment, curves, pair),) if c.estimate.feasible)
        candidates = _numbered((*ahead, *candidates), objective)
    infeasible = None if candidates else explain_infeasible(deployment, curves, seen)
    return SearchResult(
        objective=objective, best=candidates[0] if candidates else None, ranked=candidates,
        pareto=_pareto(deployment, curves, space, objective, candidates) or candidates[:MAX_PARETO], baseline=baseline,
        asked=tuple(a for a in answers if isinstance(a, Candidate)),
        refused=tuple(a for a in answers if isinstance(a, Finding)), infeasible=infeasible,
        num_enumerated=sum(s.num_enumerated for s in seen), num_legal=sum(s.num_legal for s in seen),
        num_fitting=sum(s.num_fitting for s in seen), num_feasible=sum(s.num_feasible for s in seen),
        what_ifs=what_ifs(deployment, curves, mine, objective, space) if mine is not None and not ahead else (),
        pooled=pair, fleets=grouped,
        devices_table=_devices_table(deployment, curves, candidates[0]) if candidates else (),
    )  # fmt: skip


def _numbered(candidates: Sequence[Candidate], objective: Objective) -> tuple[Candidate, ...]:
    """In this order, each with what decides between it and the first."""
    return tuple(
        c.model_copy(update={"rank": i, "reason": _reason(candidates[0], c.estimate, c.objective_value, objective)})
        if i > 1
        else c.model_copy(update={"rank": 1, "reason": "best"})
        for i, c in enumerate(candidates, 1)
    )


def _check(deployment: Deployment) -> None:
    n = deployment.cluster.num_devices
    if n is not None and n < 1:
        raise ToolError(f"num_devices({n}) must be at least 1")
    if deployment.workload.isl < 1 or deployment.workload.osl < 1:
        raise ToolError(f"isl({deployment.workload.isl}) and osl({deployment.workload.osl}) must be at least 1")
    if deployment.workload.mode == "training":
        raise Refused("search: training workloads are not searched yet; state an inference workload")


def _candidates(
    deployment: Deployment, curves: Curves, ranked: list[Ranked], objective: Objective, top: int
) -> tuple[Candidate, ...]:
    out: list[Candidate] = []
    for r in ranked[: max(top, 1)]:
        e = estimate(deployment, r.strategy(deployment), curves)
        reason = _reason(out[0], e, r.value, objective) if out else "best"
        out.append(Candidate(rank=len(out) + 1, estimate=e, objective_value=r.value, reason=reason))
    return tuple(out)


def _reason(best: Candidate, e: Estimate, value: float, objective: Objective) -> str:
    """The number that decided between this one and the best."""
    b = best.estimate
    if objective == "fewest_devices" and e.num_devices != b.num_devices:
        return f"{e.num_devices} devices against {b.num_devices}"
    if objective == "min_latency":
        return f"E2E {e.e2e_s:.4g} s against {b.e2e_s:.4g} s"
    if objective == "knee":
        return (
            f"{e.output_tok_s:.4g} tokens/s at TPOT {e.tpot_s * 1e3:.3g} ms "
            f"against {b.output_tok_s:.4g} at {b.tpot_s * 1e3:.3g} ms"
        )
    gap = 1 - value / best.objective_value if best.objective_value else 0.0
    if objective == "fewest_devices":
        gap = 1 - e.output_tok_s_per_device / max(b.output_tok_s_per_device, 1e-12)
    return (
        f"{gap:.1%} fewer output tokens/s"
        if gap > 5e-4
        else f"equal throughput, margin {_margin(e):.1%} against {_margin(b):.1%}"
    )


def _margin(e: Estimate) -> float:
    return min((p.margin for p in e.predictions if p.margin is not None), default=0.0)


def evaluate_strategy(deployment: Deployment, strategy: Strategy, curves: Curves) -> Candidate:
    """Any strategy, priced and judged as the search does its own. A batch or a limit of tokens that was not set is chosen
    like the search chooses it: the best that is feasible, else the most that fits."""
    objective, w = choose_objective(deployment), deployment.workload
    if w.batch_size is not None and w.concurrency is None and w.request_rate is None:
        # The conditions say how many sequences a replica holds: a strategy with fewer would answer another question.
        strategy = strategy.model_copy(update={"batch": w.batch_size})
    tokens = token_limits(deployment, curves, strategy.engine)
    if "max_num_batched_tokens" in strategy.model_fields_set:
        tokens = (strategy.max_num_batched_tokens,)
    strategy = strategy.model_copy(update={"max_num_batched_tokens": tokens[0]})
    strategy = resolve_layers(strategy.engine, deployment.model, normalise(deployment, strategy))
    priced = _price_one(deployment, strategy, curves, tokens)
    if priced is None:
        size = deployment.workload.batch_size or 1
        update = {} if "batch" in strategy.model_fields_set else {"batch": size}
        e = estimate(deployment, strategy.model_copy(update=update), curves)
        return Candidate(rank=0, estimate=e, objective_value=float("-inf"), reason="does not fit")
    values = objective_value(objective, priced)
    i = int(np.lexsort((values, priced.feasible))[-1])
    strategy = strategy.model_copy(update={
        "batch": int(priced.cands.batch[i]), "max_num_batched_tokens": int(priced.cands.max_num_batched_tokens[i]),
    })  # fmt: skip
    e = estimate(deployment, strategy, curves)
    return Candidate(rank=0, estimate=e, objective_value=float(values[i]), reason="evaluated on request")


def _price_one(deployment: Deployment, strategy: Strategy, curves: Curves, tokens: tuple[int, ...]) -> Priced | None:
    """One strategy at every limit of tokens and every batch of the ladder (its own batch alone if that is set); None if
    not one sequence fits."""
    cands = at_limits(Candidates.of(strategy), tokens)
    ((_, layout),) = layouts(deployment, curves, cands)
    load = Load.of(deployment.workload)
    if "batch" in strategy.model_fields_set:
        priced = _price(layout, cands.batch, load)
        mine = np.flatnonzero(priced.cands.batch == strategy.batch)
        return _select(priced, mine) if len(mine) else None
    limit = (
        np.minimum(batch_limit(deployment, curves, strategy.engine, 1), cands.max_num_batched_tokens) * cands.attn_dp
    )
    most = max_batch(layout, _ceiling(deployment, cands, limit))
    fits = np.flatnonzero(most > 0)
    return _price(layout.take(fits), most[fits], load) if len(fits) else None


def _select(p: Priced, index: np.ndarray) -> Priced:
    return Priced(p.cands.take(index), {k: v[index] for k, v in p.metrics.items()}, p.margin[index])


def _asked(deployment: Deployment, keywords: dict[str, Any], curves: Curves) -> Candidate | Finding:
    """A strategy that the conditions ask about, priced; that it cannot be laid out is the answer to the question."""
    base = {
        "engine": deployment.engine.name,
        "weight_dtype": deployment.weight_dtypes[0],
        "kv_dtype": deployment.kv_dtypes[0],
    }
    named = "·".join(f"{axis}{degree}" for axis, degree in keywords.items())
    try:
        return evaluate_strategy(deployment, Strategy(**{**base, **keywords}), curves)
    except ToolError as error:
        text = f"{named}, which the conditions ask about, is not possible: {error}"
        return Finding(code="asked-illegal", severity="warning", cause="shape", where=named, message=text)


# ------------------------------------------------------------------------------------------------------------- baseline


def baseline_strategy(deployment: Deployment, curves: Curves) -> Strategy:
    """The stated baseline, else tp inside the node x pp across nodes, the smallest pp that fits, experts sliced (ep 1),
    replicas over what is left. If nothing fits, the widest of them: it is drawn all the same, marked."""
    base: dict[str, Any] = {
        "engine": deployment.engine.name, "weight_dtype": deployment.weight_dtypes[0],
        "kv_dtype": deployment.kv_dtypes[0], "name": "baseline",
    }  # fmt: skip
    if deployment.baseline is not None:
        stated = Strategy(**{**base, **deployment.baseline, "name": "baseline"})
        return resolve_layers(stated.engine, deployment.model, stated)
    tokens = batched_tokens(deployment, curves, deployment.engine.name)
    options = _baseline_options(deployment)
    for tp, pp, dp in options:
        s = Strategy(tp=tp, pp=pp, dp=dp, max_num_batched_tokens=tokens, **base)
        ((_, layout),) = layouts(deployment, curves, Candidates.of(s))
        if max_batch(layout, np.asarray([deployment.workload.batch_size or 1]))[0] > 0:
            break
    return resolve_layers(s.engine, deployment.model, s)


def _baseline_options(deployment: Deployment) -> list[tuple[int, int, int]]:
    """(tp, pp, dp) with growing pp: first what the engine accepts, tp as wide as the node."""
    model, n = deployment.model, deployment.cluster.num_devices
    node = deployment.cluster.devices_per_node or DEFAULT_NODE
    out: list[tuple[int, int, int]] = []
    total = n if n is not None else node * model.num_hidden_layers
    tps = [t for t in tensor_degrees(model, min(node, total)) if _legal_tp(deployment, t)] or [1]
    exact = [t for t in tps if n is None or n % t == 0]
    tp = max(exact or tps)
    for pp in range(1, min(model.num_hidden_layers, total // tp) + 1):
        dp = 1 if n is None else n // (tp * pp)
        if dp >= 1 and (n is None or tp * pp * dp == n):
            out.append((tp, pp, dp))
    return out or [(tp, 1, max(1, total // tp))]


def _legal_tp(deployment: Deployment, tp: int) -> bool:
    one: dict[str, Any] = {n: np.ones(1, np.int64) for n in ("pp", "dp", "ep", "attn_dp", "cp", "dcp", "batch")}
    cands = Candidates(
        tp=np.asarray([tp]), etp=np.asarray([tp]), max_num_batched_tokens=np.asarray([8192]), **one,
        weight_dtype=deployment.weight_dtypes[0], kv_dtype=deployment.kv_dtypes[0], engine=deployment.engine.name,
    )  # fmt: skip
    return bool(legal(deployment, cands)[0][0])


# ------------------------------------------------------------------------------------------------------ front and table


def _pareto(
    deployment: Deployment, curves: Curves, space: Space, objective: Objective, ranked: tuple[Candidate, ...]
) -> tuple[Candidate, ...]:
    """Strategies that fit and that no other beats in both TPOT and tokens/s per device; requirements left aside."""
    # What the arrivals overwhelm has no steady state, hence no latency to draw.
    able = [(p, np.flatnonzero(p.metrics["load"] >= 0)) for p in space.priced]
    tables = [_select(p, i) for p, i in able if len(i)] or [p for p in space.priced if len(p)]
    if not tables:
        return ()
    known = {c.estimate.strategy: c.estimate for c in ranked if not c.units}
    starts = np.cumsum([0, *(len(p) for p in tables)])
    per_device = np.concatenate([p.metrics["output_tok_s"] / p.num_devices for p in tables])
    tpot = np.concatenate([p.metrics["tpot"] for p in tables])
    chosen = front(per_device, tpot)
    if len(chosen) > MAX_PARETO:
        chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, MAX_PARETO).astype(int))]
    values = np.concatenate([objective_value(objective, p) for p in tables])
    out: list[Candidate] = []
    for k in chosen:
        t = int(np.searchsorted(starts, k, side="right")) - 1
        p, i = tables[t], int(k - starts[t])
        s = p.cands.strategy(i, deployment.model)
        e = known[s] if s in known else estimate(deployment, s, curves)
        out.append(Candidate(rank=len(out) + 1, estimate=e, objective_value=float(values[k]), reason="on the front"))
    return tuple(out)


def _devices_table(deployment: Deployment, curves: Curves, best: Candidate) -> tuple[dict[str, Any], ...]:
    """For ample devices: what more of them bring."""
    if deployment.cluster.num_devices is not None:
        return ()
    rows = []
    for factor in TABLE_GROWTH:
        n = best.estimate.num_devices * factor
        if n > 4096:
            break
        whole = deployment.model_copy(update={"cluster": deployment.cluster.model_copy(update={"num_devices": n})})
        ranked = order(price_space(whole, curves, (n,)), "total_throughput")
        if ranked:
            e = estimate(deployment, ranked[0].strategy(deployment), curves)
            rows.append(
                {
                    "devices": n, "strategy": e.strategy.label(deployment.model.moe is not None),
                    "output_tok_s": e.output_tok_s, "output_tok_s_per_device": e.output_tok_s_per_device,
                    "ttft_s": e.ttft_s, "tpot_s": e.tpot_s, "batch": e.batch,
                }
            )  # fmt: skip
    return tuple(rows)


__all__ = ["baseline_strategy", "degrees", "evaluate_strategy", "explore", "order", "search"]
