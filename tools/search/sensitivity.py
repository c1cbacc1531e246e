"""Would the choice be another one if the curves are wrong by as much as they may be?

The error of a prediction is mostly common to all strategies and turns nothing. What turns a choice is an error in one kind
of cost, of which one strategy has more than another. So each kind (compute, memory, links, engine) is moved by the error
band, up and down, and the best few strategies are priced again, each at its best batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tools.cost.calibration import FACTORS, Calibration, Fitted
from tools.cost.curves import Curves
from tools.cost.steps import ARRAYS, Candidates
from tools.search.explain import price_layouts
from tools.search.objective import objective_value, relative_gain
from tools.search.rank import evaluate_strategy
from tools.spec.base import ToolError
from tools.spec.deployment import Deployment, Objective
from tools.spec.plan import Candidate, Estimate, Experiment, Flip, Sensitivity
from tools.spec.strategy import Strategy

RIVALS = 4
"""Strategies beside the plan that are priced again."""
WORDS = {
    "compute": "compute-bound kernels", "memory": "memory-bound kernels", "link": "collectives and transfers",
    "step": "engine overhead",
}  # fmt: skip
BAND_OF: dict[Objective, str] = {
    "total_throughput": "throughput", "fewest_devices": "throughput", "knee": "tpot_s", "min_latency": "tpot_s",
}  # fmt: skip
LENGTHS = (("workload.isl", "isl", "input length"), ("workload.osl", "osl", "output length"))


def sensitivity(
    deployment: Deployment,
    curves: Curves,
    ranked: Sequence[Candidate],
    objective: Objective,
    top: Candidate | None = None,
) -> Sensitivity | None:
    """Of the choice of `top` (default: the first of `ranked`); None where nothing is feasible."""
    if top is None:
        if not ranked:
            return None
        top = ranked[0]
    rivals = _rivals(top, ranked)
    band = curves.band(BAND_OF[objective], deployment.cluster).band
    moe = deployment.model.moe is not None
    runner = rivals[0] if rivals else None
    varied, flips = [], []
    for words, change, d, c in _variations(deployment, curves, band) if rivals else ():
        varied.append(words)
        found = _flip(d, c, top, rivals, objective)
        if found is not None:
            value, winner, theirs = found
            flips.append(
                Flip(
                    input=words, change=change, winner=winner.estimate.strategy.label(moe), top_value=value,
                    winner_value=theirs, why=_why(value, theirs, objective),
                )
            )  # fmt: skip
    rival = _against(flips, rivals, moe) or runner
    return Sensitivity(
        top=top.estimate.strategy.label(moe), runner_up=runner.estimate.strategy.label(moe) if runner else "",
        gap=max(0.0, -relative_gain(objective, runner.objective_value, top.objective_value)) if runner else 0.0,
        band=band, varied=tuple(dict.fromkeys(varied)), compared=1 + len(rivals), flips=tuple(flips),
        experiment=experiment(deployment, objective, top.estimate, rival.estimate) if rival else None,
    )  # fmt: skip


def _rivals(top: Candidate, ranked: Sequence[Candidate]) -> list[Candidate]:
    """The best candidates that parallelise otherwise, each way once."""
    seen, out = {layout(top.estimate.strategy)}, []
    for c in ranked:
        key = layout(c.estimate.strategy)
        if key not in seen:
            seen.add(key)
            out.append(c)
    return out[:RIVALS]


def layout(s: Strategy) -> tuple[Any, ...]:
    """What tells two ways to parallelise apart: everything but the operating point."""
    free = {"batch", "max_num_batched_tokens", "name", "microbatches", "layers_per_stage"}
    return tuple(v for k, v in sorted(s.model_dump().items()) if k not in free)


def _variations(d: Deployment, curves: Curves, band: float) -> Iterator[tuple[str, float, Deployment, Curves]]:
    """(what, factor on it, conditions, curves): every cost slower and faster; lengths that were assumed, half and twice."""
    for name in FACTORS:
        for factor in (1.0 + band, 1.0 / (1.0 + band)):
            yield WORDS[name], factor, d, moved(curves, d, name, factor)
    assumed = {a.path for a in d.assumptions}
    for path, field, words in LENGTHS:
        for times in (2.0, 0.5) if path in assumed else ():
            n = max(1, round(getattr(d.workload, field) * times))
            yield (
                f"{words} (assumed)",
                times,
                d.model_copy(update={"workload": d.workload.model_copy(update={field: n})}),
                curves,
            )


def moved(curves: Curves, d: Deployment, name: str, factor: float) -> Curves:
    """The curves with one kind of cost scaled on this device, on top of a calibration that may be there."""
    own = curves.calibration_of(d.cluster.device)
    base = own or Calibration(devices=(d.cluster.device.id,))
    fitted = base.model_copy(update={name: Fitted(factor=getattr(base, name).factor * factor), "engines": ()})
    if name != "step":
        return curves.model_copy(update={"calibration": fitted})
    # Engine overheads are in the curves already; only the change is applied.
    only = Calibration(devices=base.devices, step=Fitted(factor=factor))
    return curves.calibrated(only).model_copy(update={"calibration": curves.calibration})


def _flip(
    d: Deployment, curves: Curves, top: Candidate, rivals: Sequence[Candidate], objective: Objective
) -> tuple[float | None, Candidate, float] | None:
    """(objective of the plan, the rival that beats it, its objective) under these curves; None: the plan stays best."""
    mine, *others = best_values(d, curves, [top.estimate.strategy, *(r.estimate.strategy for r in rivals)], objective)
    able = [(v, r) for v, r in zip(others, rivals, strict=True) if v is not None]
    if not able:
        return None
    value, winner = max(able, key=lambda x: x[0])
    return (mine, winner, value) if mine is None or value > mine else None


def best_values(
    d: Deployment, curves: Curves, strategies: Sequence[Strategy], objective: Objective
) -> list[float | None]:
    """The objective of every strategy at its best feasible batch, None where none is; one walk over all of them."""
    out: list[float | None] = [None] * len(strategies)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, s in enumerate(strategies):
        if any(getattr(s, n) != Strategy.model_fields[n].default for n in UNUSUAL):
            out[i] = _alone(d, curves, s)
            continue
        groups.setdefault((s.weight_dtype, s.kv_dtype, s.engine, s.sp, s.moe_comm), []).append(i)
    for members in groups.values():
        first = Candidates.of(strategies[members[0]])
        arrays = {n: np.asarray([getattr(strategies[i], n) for i in members], np.int64) for n in ARRAYS}
        together: Any = {**arrays, "origin": None, "layers_per_stage": None}
        priced = price_layouts(d, curves, replace(first, **together))
        for p in (priced,) if priced is not None else ():
            values = np.where(p.feasible, objective_value(objective, p), -np.inf)
            for i in members:
                mine = [np.asarray(getattr(p.cands, n) == getattr(strategies[i], n)) for n in ARRAYS if n != "batch"]
                best = float(values[np.logical_and.reduce(mine)].max(initial=-np.inf))
                if np.isfinite(best):
                    out[i] = best if out[i] is None else max(best, out[i] or best)
    return out


UNUSUAL = ("dk", "ep_nodes", "cp_kind", "expert_devices", "attn_pool", "virtual", "seq_slices")
"""Axes that are priced one strategy at a time."""


def _alone(d: Deployment, curves: Curves, s: Strategy) -> float | None:
    try:
        found = evaluate_strategy(d, Strategy.model_validate(s.model_dump(exclude={"batch"})), curves)
    except ToolError:
        return None
    return found.objective_value if found.estimate.feasible else None


def _why(value: float | None, winner: float, objective: Objective) -> str:
    if value is None:
        return "the plan then breaks a requirement or cannot serve the load"
    return f"{relative_gain(objective, winner, value):+.1%} of the objective"


def _against(flips: Sequence[Flip], rivals: Sequence[Candidate], moe: bool) -> Candidate | None:
    """The rival that turns the choice most often."""
    wins = [f.winner for f in flips]
    name = max(dict.fromkeys(wins), key=wins.count) if wins else None
    return next((r for r in rivals if r.estimate.strategy.label(moe) == name), None)


def experiment(d: Deployment, objective: Objective, a: Estimate, b: Estimate) -> Experiment:
    """Both strategies under the planned load, and the one figure that tells them apart."""
    w = d.workload
    if w.request_rate is not None:
        load = f"{w.request_rate * w.peak_factor:g} requests/s (Poisson)"
    elif w.batch_size is not None and w.concurrency is None:
        load = f"{w.batch_size} sequences per replica that arrive together"
    else:
        load = f"{w.concurrency or max(a.concurrency, b.concurrency)} requests in flight"
    load += f", {w.isl} tokens in, {w.osl} out"
    gate = _deciding_gate(a, b)
    if gate is not None:
        metric, stat, values, limit = gate
        name = f"{metric.removesuffix('_s').upper().replace('_LATENCY', '')} {stat}"
        decides = f"{a.strategy.label()} stays if its {name} is at most {limit:.4g} s"
        return Experiment(first=a.strategy, second=b.strategy, load=load, metric=name, predicted=values, unit="s",
                          decides=decides)  # fmt: skip
    if objective == "min_latency":
        return Experiment(
            first=a.strategy, second=b.strategy, load=load, metric="end-to-end latency", unit="s",
            predicted=(a.e2e_s, b.e2e_s), decides="the lower end-to-end latency wins",
        )  # fmt: skip
    values = (a.capacity_tok_s or a.output_tok_s, b.capacity_tok_s or b.output_tok_s)
    if objective == "knee":
        ratio = (values[0] / a.tpot_s, values[1] / b.tpot_s)
        return Experiment(
            first=a.strategy, second=b.strategy, load=load, metric="output tokens/s over TPOT", unit="tokens/s²",
            predicted=ratio, decides="the higher ratio wins",
        )  # fmt: skip
    if w.request_rate is not None:
        full = f"{a.batch * a.strategy.dp} and {b.batch * b.strategy.dp}"
        load = f"as many requests in flight as fit ({full}), {w.isl} tokens in, {w.osl} out"
    return Experiment(
        first=a.strategy, second=b.strategy, load=load, metric="output tokens/s", predicted=values, unit="tokens/s",
        decides="the higher output tokens/s wins",
    )  # fmt: skip


def _deciding_gate(a: Estimate, b: Estimate) -> tuple[str, str, tuple[float, float], float] | None:
    """The latency limit that the plan meets by less than its band: (metric, statistic, both values, limit)."""
    close = [p for p in a.predictions if p.limit is not None and p.metric in ("ttft_s", "tpot_s", "e2e_latency_s")
             and p.status == "at_risk"]  # fmt: skip
    if not close:
        return None
    p = min(close, key=lambda p: p.margin or 0.0)
    other = next((q.value for q in b.predictions if (q.metric, q.stat) == (p.metric, p.stat)), float("nan"))
    return p.metric, "mean" if p.stat == "limit" else p.stat, (p.value, other), p.limit or 0.0


def sentence(s: Sensitivity) -> str:
    """The finding in words."""
    if not s.runner_up:
        return f"{s.top} is the only way to parallelise that is feasible: nothing to turn"
    if s.stable:
        return (
            f"{s.top} stays the best of {s.compared} with {', '.join(s.varied)} each moved by ±{s.band:.0%}; "
            f"runner-up {s.runner_up} reaches {s.gap:.1%} less"
        )
    said = "; ".join(
        f"{f.winner} is better if {f.input} {'is' if '(assumed)' in f.input else 'take'} × {f.change:.2f} ({f.why})"
        for f in s.flips[:3]
    )
    return f"the choice turns within the error band of ±{s.band:.0%}: {said}"
