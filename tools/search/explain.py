"""Why nothing works, and the nearest change that does; what a little more of something would bring.

Every suggestion is applied to the conditions and searched again before it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from tools.cost.curves import Curves
from tools.cost.estimate import batch_limit, beyond_positions, estimate
from tools.cost.fit import max_batch
from tools.cost.judge import margins
from tools.cost.serving import Load, serve
from tools.cost.steps import ARRAYS, Candidates, layout_of
from tools.search.objective import objective_value, relative_gain
from tools.search.rank import Ranked, baseline_strategy, explore, order
from tools.search.space import Priced, Space, _ceiling, _price, price_space, worst
from tools.spec.deployment import Deployment, Objective
from tools.spec.finding import Finding
from tools.spec.plan import Candidate, Change, Estimate, Infeasible, WhatIf
from tools.spec.workload import Requirement
from tools.units import format_quantity

WHAT_IF_LIMIT = 2_500
"""Priced candidates of one step size above which what-ifs that search again are left out."""
MORE = "one more "
RELAXED = 0.10
"""By how much a requirement is relaxed to see what that would bring."""
Kind = Literal[
    "devices", "ttft", "tpot", "throughput", "weight_dtype", "kv_dtype", "context", "memory", "rate", "engine", "batch"
]  # fmt: skip
KIND: dict[str, Kind] = {
    "ttft_s": "ttft",
    "tpot_s": "tpot",
    "e2e_latency_s": "tpot",
    "throughput_per_device": "throughput",
    "throughput_total": "throughput",
    "request_rate": "rate",
}
_SAID: dict[str, tuple[str, str]] = {
    "ttft_s": ("TTFT", "s"),
    "tpot_s": ("TPOT", "s"),
    "e2e_latency_s": ("end-to-end latency", "s"),
    "throughput_per_device": ("throughput per device", "tokens/s"),
    "throughput_total": ("total throughput", "tokens/s"),
    "request_rate": ("request rate", "requests/s"),
}
"""A metric as a reader calls it, and the dimension of its limit."""


def gate_words(gate: Requirement) -> str:
    """ "TTFT p90"; without a statistic where none was stated."""
    name = _SAID[gate.metric][0]
    return name if gate.stat == "limit" else f"{name} {gate.stat}"


def limit_words(gate: Requirement, limit: float) -> str:
    """ "2.2 s", "55 ms", "4000 tokens/s"."""
    return format_quantity(limit, _SAID[gate.metric][1], 3 if limit < 1000 else 6)


def explain_infeasible(deployment: Deployment, curves: Curves, seen: list[Space]) -> Infeasible:
    """The verdict with its cause, the candidate that comes closest, and changes that were verified to help."""
    if (beyond := beyond_positions(deployment)) is not None:
        return _too_long(deployment, curves, seen, beyond)
    closest = _closest(deployment, curves, seen)
    binding = _binding(deployment, closest, seen)
    rules = _rules(seen)
    changes = [c for make in CHANGES for c in make(deployment, curves, seen)]
    if not changes:
        changes = list(several_limits(deployment, curves, seen))
    return Infeasible(
        cause=binding.cause, binding=binding, findings=(*(closest.findings if closest else ()), *rules),
        nearest=tuple(changes), num_searched=sum(s.num_enumerated for s in seen), closest=closest,
    )  # fmt: skip


def _too_long(deployment: Deployment, curves: Curves, seen: list[Space], beyond: Finding) -> Infeasible:
    """The nearest change is the model's own context, with what else it then takes."""
    closest, most = _closest(deployment, curves, seen), int(beyond.values["max_position_embeddings"])
    changed, text = _within_positions(deployment, most)
    if best_of(changed, curves) is not None:
        nearest: tuple[Change, ...] = (Change(description=text, kind="context", value=float(most), deployment=changed),)
    else:
        more = explain_infeasible(changed, curves, explore(changed, curves)[1]).nearest
        nearest = tuple(c.model_copy(update={"description": f"{text}, and {c.description}"}) for c in more)
    return Infeasible(
        cause=beyond.cause, binding=beyond, findings=(beyond, *(closest.findings if closest else ())), nearest=nearest,
        num_searched=sum(s.num_enumerated for s in seen), closest=closest,
    )  # fmt: skip


def _within_positions(d: Deployment, most: int) -> tuple[Deployment, str]:
    """The conditions with every length cut to `most` positions, and that in words."""
    w = d.workload
    isl = min(w.isl, most - w.osl)
    longest = {k: min(v, most) for k in ("seq_len_min", "seq_len_max", "max_context") if (v := getattr(w, k))}
    text = f"a context of {most} tokens instead of {max(w.context, w.isl + w.osl)}"
    return with_workload(d, **longest, isl=isl), text + (f" (prompts of {isl})" if isl < w.isl else "")


def _closest(deployment: Deployment, curves: Curves, seen: list[Space]) -> Estimate | None:
    """Priced candidate with the best worst margin; without any that fits, the baseline."""
    best: tuple[float, Priced, int] | None = None
    for p in (p for space in seen for p in space.priced if len(p)):
        # Serving the load at all comes before doing it in time.
        score = np.where(p.metrics["load"] >= 0, p.margin, -1e9 + p.metrics["load"])
        i = int(np.argmax(score))
        if best is None or score[i] > best[0]:
            best = (float(score[i]), p, i)
    if best is not None:
        found = best[1].cands.strategy(best[2], deployment.model)
        w = deployment.workload
        if w.batch_size is not None and w.concurrency is None and w.request_rate is None:
            found = found.model_copy(update={"batch": w.batch_size})  # a stated batch is what has to fit
        return estimate(deployment, found, curves)
    # Nothing fits: the baseline at the load that was asked for, so that what it lacks is shown.
    held = {"batch": deployment.workload.batch_size or 1}
    return estimate(deployment, baseline_strategy(deployment, curves).model_copy(update=held), curves)


def binding_of(deployment: Deployment, curves: Curves, seen: list[Space]) -> Finding:
    """What stands in the way of the strategy that comes closest, without a search for changes."""
    return _binding(deployment, _closest(deployment, curves, seen), seen)


def _binding(deployment: Deployment, closest: Estimate | None, seen: list[Space]) -> Finding:
    errors = [f for f in closest.findings if f.severity == "error"] if closest else []
    fitting = sum(s.num_fitting for s in seen)
    if not sum(s.num_legal for s in seen):
        rules = _rules(seen)
        n = deployment.cluster.num_devices
        message = f"no strategy over {n} devices is legal on {deployment.engine.name}: " + "; ".join(
            f.message for f in rules[:3]
        )
        return Finding(code="nothing-legal", severity="error", cause="shape", message=message)
    if not fitting:
        fit = next((f for f in errors if f.code == "does-not-fit"), None)
        if fit is not None:
            return fit
    return (
        errors[0]
        if errors
        else Finding(code="infeasible", severity="error", message="no strategy meets all requirements", cause="slo")
    )


def _rules(seen: list[Space]) -> tuple[Finding, ...]:
    """What dropped layouts before they were priced, most frequent first."""
    total: dict[str, int] = {}
    for s in seen:
        for k, v in s.reasons.items():
            total[k] = total.get(k, 0) + v
    return tuple(
        Finding(code=f"dropped-{k}", severity="info", cause="memory" if k == "memory" else "engine",
                message=f"{v} layouts dropped by {k}", values={"layouts": v})
        for k, v in sorted(total.items(), key=lambda kv: -kv[1])
    )  # fmt: skip


def best_of(deployment: Deployment, curves: Curves, objective: Objective | None = None) -> Ranked | None:
    """Best feasible strategy of these conditions, or None."""
    space, _ = explore(deployment, curves)
    ranked = order(space, objective or "total_throughput")
    return ranked[0] if ranked else None


def workable(d: Deployment, curves: Curves, judged: Sequence[Space] = ()) -> bool:
    """Whether anything is feasible. `judged`: spaces with the same prices and no feasible strategy."""
    return bool(explore(d, curves, judged, able=True)[0].num_feasible)


# -------------------------------------------------------------------------------------------------------------- changes


def with_cluster(d: Deployment, **update: object) -> Deployment:
    return d.model_copy(update={"cluster": d.cluster.model_copy(update=update)})


def with_workload(d: Deployment, **update: object) -> Deployment:
    return d.model_copy(update={"workload": d.workload.model_copy(update=update)})


def with_limit(d: Deployment, gate: Requirement, limit: float) -> Deployment:
    gates = tuple(g.model_copy(update={"limit": limit}) if g is gate else g for g in d.requirements.gates)
    return d.model_copy(update={"requirements": d.requirements.model_copy(update={"gates": gates})})


def more_devices(d: Deployment, curves: Curves, seen: list[Space]) -> Iterable[Change]:
    """The smallest larger cluster that works, up to 16 times as many devices."""
    n = d.cluster.num_devices
    if n is None:
        return
    steps = sorted(
        {
            *range(n + 1, n + 9),
            *(n * k for k in (2, 3, 4, 6, 8, 12, 16)),
            *(-(-n // 8) * 8 + 8 * k for k in range(1, 5)),
        }
    )
    # Clusters nearby and far ones, each priced together: what they have in common is worked out once.
    for low, high in ((n, 2 * n), (2 * n, 8 * n), (8 * n, steps[-1])):
        space = price_space(d, curves, [m for m in steps if low < m <= high], able=True)
        works = [int(p.num_devices[p.feasible].min()) for p in space.priced if p.feasible.any()]
        if works:
            m = min(works)
            yield Change(
                description=f"{m - n} more devices ({m} instead of {n})",
                kind="devices",
                value=float(m),
                deployment=with_cluster(d, num_devices=m),
            )
            return


def relaxed_limits(d: Deployment, curves: Curves, seen: list[Space]) -> Iterable[Change]:
    """For each requirement alone: the best that any strategy reaches while it meets all the others."""
    for i, gate in enumerate(d.requirements.gates):
        reach = -math.inf
        for space in seen:
            for p in space.priced:
                others = p.metrics["load"]
                for j in range(len(d.requirements.gates)):
                    if j != i:
                        others = np.minimum(others, p.metrics[f"gate:{j}"])
                ok = others >= 0
                if ok.any():
                    reach = max(reach, float(p.metrics[f"gate:{i}"][ok].max()))
        if not -math.inf < reach < 0:
            continue
        limit = _round_away(
            gate.limit * (1 + reach) if gate.higher_is_better else gate.limit * (1 - reach),
            up=not gate.higher_is_better,
        )
        changed = with_limit(d, gate, limit)
        # Prices do not depend on limits: what was priced is judged again, every device count that was tried.
        if limit > 0 and any(_with_gate(space, d, i, limit).num_feasible for space in seen):
            yield Change(
                description=f"{gate_words(gate)} of {limit_words(gate, limit)} instead of {limit_words(gate, gate.limit)}",
                kind=KIND[gate.metric],
                value=limit,
                deployment=changed,
            )


def _round_away(x: float, *, up: bool) -> float:
    """Three significant digits, to the easier side."""
    if x <= 0:
        return 0.0
    scale = 10.0 ** (2 - math.floor(math.log10(x)))
    return (math.ceil(x * scale - 1e-9) if up else math.floor(x * scale + 1e-9)) / scale


def narrower_dtypes(d: Deployment, curves: Curves, seen: list[Space]) -> Iterable[Change]:
    """fp8 (where the device has it, else int8), then int4 weights; fp8 KV."""
    native = "fp8" if d.cluster.peak_flops.get("fp8") else "int8"
    for dtype in (native, "int4"):
        if dtype in d.weight_dtypes or d.weight_dtypes[0] in ("int4", "fp4", "mxfp4", "nvfp4"):
            continue
        changed = d.model_copy(update={"weight_dtypes": (dtype,)})
        if workable(changed, curves):
            yield Change(
                description=f"{dtype} weights instead of {d.weight_dtypes[0]}",
                kind="weight_dtype",
                value=dtype,
                deployment=changed,
            )
            break
    if "fp8" not in d.kv_dtypes and d.cluster.peak_flops.get("fp8"):
        changed = d.model_copy(update={"kv_dtypes": ("fp8",)})
        if workable(changed, curves):
            yield Change(
                description=f"fp8 KV cache instead of {d.kv_dtypes[0]}",
                kind="kv_dtype",
                value="fp8",
                deployment=changed,
            )


def shorter_context(d: Deployment, curves: Curves, seen: list[Space]) -> Iterable[Change]:
    """The longest context, in 1,024-token steps, that works; never below the typical request."""
    w = d.workload
    typical, longest = w.isl + w.osl, w.context
    if longest <= typical:
        return

    def at(context: int) -> Deployment:
        return with_workload(d, max_context=context, seq_len_max=min(w.seq_len_max, context) if w.seq_len_max else None)

    # A context changes how many sequences fit, and no price: what was priced has failed already.
    def works(context: int) -> bool:
        return workable(at(context), curves, seen)

    # Only whole steps are offered, so only they are tried.
    step = 1024
    first = typical // step + 1
    steps = _largest(first, (longest - 1) // step, lambda k: works(k * step))
    if steps is not None or works(typical):
        rounded = typical if steps is None else steps * step
        yield Change(
            description=f"context of {rounded} tokens instead of {longest}",
            kind="context",
            value=float(rounded),
            deployment=at(rounded),
        )


def lighter_load(d: Deployment, curves: Curves, seen: list[Space]) -> Iterable[Change]:
    """The highest arrival rate, concurrency or batch that works."""
    w = d.workload
    rate = w.request_rate
    if rate:
        percent = _largest(1, 99, _Rows(curves, seen, lambda k: with_workload(d, request_rate=rate * k / 100)))
        if percent:
            less = rate * percent / 100
            changed = with_workload(d, request_rate=less)
            text = f"{less:.4g} requests/s instead of {rate:g}"
            yield Change(description=text, kind="rate", value=less, deployment=changed)
    for name in ("concurrency", "batch_size"):
        now = getattr(w, name)
        if now and now > 1:
            fits = _largest(1, now - 1, _Survivors(curves, seen, _with_field(d, name)))
            if fits:
                changed = with_workload(d, **{name: fits})
                text = f"{name} {fits} instead of {now}"
                yield Change(description=text, kind="batch", value=float(fits), deployment=changed)
            return


def _with_field(d: Deployment, field: str) -> Callable[[int], Deployment]:
    return lambda k: with_workload(d, **{field: k})


class _Rows:
    """Whether something serves k % of the rate, asked for one k after the other.

    A rate changes neither legality nor memory nor the batches that are tried, only the serving of what was priced. What a
    strategy can serve at most is known from there, latencies only grow with the rate, and one that works is enough: few
    rows are served again, the most promising first.
    """

    FEW = 256

    def __init__(self, curves: Curves, seen: list[Space], at: Callable[[int], Deployment]) -> None:
        self.curves, self.at = curves, at
        self.left = [p.cands for space in seen for p in space.priced if len(p)]
        self.most = [
            100.0 * (1.0 + np.minimum(p.metrics["load"], 0.0)) for space in seen for p in space.priced if len(p)
        ]
        """Highest k that each row can serve."""
        self.worth = [p.margin for space in seen for p in space.priced if len(p)]

    def __call__(self, k: int) -> bool:
        able = [np.flatnonzero(m >= k) for m in self.most]
        best = np.sort(np.concatenate([w[i] for w, i in zip(self.worth, able, strict=True)] or [np.zeros(0)]))
        bar = best[-self.FEW] if len(best) > self.FEW else -np.inf
        first = [i[w[i] >= bar] for w, i in zip(self.worth, able, strict=True)]
        if any(self._serves(k, which, index) for which, index in enumerate(first)):
            return True
        rest = [np.setdiff1d(i, f) for i, f in zip(able, first, strict=True)]
        return any(self._serves(k, which, index) for which, index in enumerate(rest))

    def _serves(self, k: int, which: int, index: np.ndarray) -> bool:
        """Whether one of these rows works; those that do not are not tried at a heavier load again."""
        if not len(index):
            return False
        d = self.at(k)
        load, c = Load.of(d.workload), self.left[which].take(index)
        perf = serve(layout_of(d, self.curves, c), load)
        works = worst(margins(d, perf, load, c.dp, c.num_devices)) >= 0
        self.most[which][index[~works]] = np.minimum(self.most[which][index[~works]], k - 1)
        return bool(works.any())


class _Survivors:
    """Whether some layout works at load k, asked for one load after the other.

    Legality and memory do not depend on the load, so the layouts that were priced already are served again, all device
    counts at once; what fails at some load fails at every heavier one and is not tried there.
    """

    def __init__(self, curves: Curves, seen: list[Space], at: Callable[[int], Deployment]) -> None:
        self.curves, self.at = curves, at
        self.left = [distinct_layouts(p.cands) for space in seen for p in space.priced if len(p)]
        self.lightest = 0

    def __call__(self, k: int) -> bool:
        found = [p for c in self.left if (p := price_layouts(self.at(k), self.curves, c)) is not None]
        works = any(p.feasible.any() for p in found)
        if works and k > self.lightest:
            self.lightest = k
            able = [p.cands.take(np.flatnonzero(p.feasible)) for p in found]
            self.left = [distinct_layouts(c) for c in able if len(c)]
        return works


def distinct_layouts(cands: Candidates) -> Candidates:
    """Every layout once, whatever the batches it was priced at."""
    columns = [getattr(cands, n) for n in ARRAYS if n != "batch"]
    _, first = np.unique(np.stack(columns, axis=1), axis=0, return_index=True)
    return cands.take(np.sort(first))


def price_layouts(deployment: Deployment, curves: Curves, cands: Candidates) -> Priced | None:
    """Legal layouts at every batch of their ladder under these conditions; None where not one sequence fits."""
    limit = np.minimum(batch_limit(deployment, curves, cands.engine, 1), cands.max_num_batched_tokens) * cands.attn_dp
    layout = layout_of(deployment, curves, cands)
    most = max_batch(layout, _ceiling(deployment, cands, limit))
    fits = np.flatnonzero(most > 0)
    return _price(layout.take(fits), most[fits], Load.of(deployment.workload)) if len(fits) else None


def _largest(low: int, high: int, works: Callable[[int], bool]) -> int | None:
    """Largest value in [low, high] that works, supposing that smaller ones do; None if `low` does not."""
    if high < low or not works(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if works(middle):
            low = middle
        else:
            high = middle - 1
    return low


def several_limits(d: Deployment, curves: Curves, seen: list[Space]) -> Iterable[Change]:
    """All broken requirements at once, to what the strategy with the best worst margin reaches; with more devices first
    where nothing fits or the load cannot be served on these."""
    point = _least_broken(seen)
    if point is not None and (change := _relaxed(d, curves, point, "")) is not None:
        yield change
    n = d.cluster.num_devices
    if n is None or (point is not None and point[0].margin[point[1]] > FAR):
        return
    for factor in (2, 4, 8, 16, 32, 64):
        grown = with_cluster(d, num_devices=n * factor)
        point = _least_broken([price_space(grown, curves, (n * factor,))])
        if point is not None and (point[0].margin[point[1]] > FAR or factor == 64):
            change = _relaxed(grown, curves, point, f"{n * factor} devices instead of {n}, and ")
            if change is not None:
                yield change
            return


FAR = -1.0
"""A margin below this asks for more than twice the limit: then more devices are offered as well."""


def _relaxed(d: Deployment, curves: Curves, point: tuple[Priced, int], prefix: str) -> Change | None:
    """`d` with every requirement that the candidate breaks set to what it reaches."""
    p, i = point
    said, changed = [], d
    for j, gate in enumerate(d.requirements.gates):
        m = float(p.metrics[f"gate:{j}"][i])
        if m < 0:
            reach = gate.limit * (1 + m) if gate.higher_is_better else gate.limit * (1 - m)
            limit = _round_away(reach, up=not gate.higher_is_better)
            changed = with_limit(changed, gate, limit)
            text = f"{gate_words(gate)} of {limit_words(gate, limit)} instead of {limit_words(gate, gate.limit)}"
            said.append((m, text, KIND[gate.metric], limit))
    if not said or not _meets(p, i, d, changed):
        return None
    _, _, kind, value = min(said)
    description = prefix + " and ".join(x[1] for x in said)
    return Change(description=description, kind=kind, value=value, deployment=changed)


def _meets(p: Priced, i: int, d: Deployment, changed: Deployment) -> bool:
    """Whether candidate i, priced under `d`, meets the limits of `changed`."""
    judged = p.metrics["load"][i]
    for j, (gate, new) in enumerate(zip(d.requirements.gates, changed.requirements.gates, strict=True)):
        judged = min(judged, _rejudged(p.metrics[f"gate:{j}"][i], gate, new.limit))
    return bool(judged >= 0)


def _rejudged(margin: Any, gate: Requirement, limit: float) -> Any:
    """The margin to another limit of the same gate."""
    if gate.higher_is_better:
        return (1 + margin) * gate.limit / limit - 1
    return 1 - (1 - margin) * gate.limit / limit


def _least_broken(seen: list[Space]) -> tuple[Priced, int] | None:
    """The candidate that serves the load and misses its requirements by least."""
    best: tuple[float, Priced, int] | None = None
    for space in seen:
        for p in space.priced:
            score = np.where(p.metrics["load"] >= 0, p.margin, -np.inf)
            if len(p) and np.isfinite(score.max()):
                i = int(np.argmax(score))
                if best is None or score[i] > best[0]:
                    best = (float(score[i]), p, i)
    return None if best is None else best[1:]


CHANGES: tuple[Callable[[Deployment, Curves, list[Space]], Iterable[Change]], ...] = (
    more_devices, relaxed_limits, narrower_dtypes, shorter_context, lighter_load,
)  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- what-if


def what_ifs(
    deployment: Deployment, curves: Curves, best: Candidate, objective: Objective, space: Space
) -> tuple[WhatIf, ...]:
    """Marginal value of one change each. A relaxed requirement re-judges known prices; the rest searches again."""
    out = []

    def note(description: str, ranked: Ranked | None) -> None:
        if ranked is not None and description.startswith(MORE) and ranked.value < best.objective_value:
            # A device that the best layout cannot use is better left idle.
            stays = best.estimate.strategy.label(deployment.model.moe is not None)
            out.append(WhatIf(description=f"{description}: idle", strategy=stays, objective_value=best.objective_value,
                              relative_gain=0.0))  # fmt: skip
        elif ranked is not None:
            gain = relative_gain(objective, ranked.value, best.objective_value)
            label = ranked.strategy(deployment).label(deployment.model.moe is not None)
            out.append(
                WhatIf(description=description, strategy=label, objective_value=ranked.value, relative_gain=gain)
            )

    for i, gate in enumerate(deployment.requirements.gates):
        limit = gate.limit * (1 - RELAXED if gate.higher_is_better else 1 + RELAXED)
        ranked = order(_with_gate(space, deployment, i, limit), objective)
        note(
            f"{gate_words(gate)} relaxed by {RELAXED:.0%} to {limit_words(gate, limit)}", ranked[0] if ranked else None
        )
    # Searched again at the plan's step size: what a change brings hardly depends on it, and the space is a few times
    # smaller.
    tokens = best.estimate.strategy.max_num_batched_tokens
    limits = {**deployment.engine.limits, "max_num_batched_tokens": float(tokens)}
    fixed = deployment.model_copy(update={"engine": deployment.engine.model_copy(update={"limits": limits})})
    if sum(int((p.cands.max_num_batched_tokens == tokens).sum()) for p in space.priced) <= WHAT_IF_LIMIT:
        for description, changed in _variations(fixed):
            note(description, best_of(changed, curves, objective))
    return tuple(out)


def _with_gate(space: Space, deployment: Deployment, i: int, limit: float) -> Space:
    """The same prices judged with another limit of gate i."""
    gates = deployment.requirements.gates
    priced = []
    for p in space.priced:
        judged = {k: v for k, v in p.metrics.items() if k == "load" or k.startswith("gate:")}
        judged[f"gate:{i}"] = _rejudged(judged[f"gate:{i}"], gates[i], limit)
        priced.append(replace(p, margin=worst(judged)))
    return replace(space, priced=tuple(priced))


def _variations(d: Deployment) -> Iterable[tuple[str, Deployment]]:
    n, per_node = d.cluster.num_devices, d.cluster.devices_per_node
    if n is not None:
        yield "one more device", with_cluster(d, num_devices=n + 1)
        if 1 < per_node < n or n == per_node > 1:
            yield f"one more node ({per_node} devices)", with_cluster(d, num_devices=n + per_node)
        if per_node != n:
            yield "twice the devices", with_cluster(d, num_devices=2 * n)
    if "fp8" not in d.weight_dtypes and d.weight_dtypes[0] in ("bf16", "fp16") and d.cluster.peak_flops.get("fp8"):
        yield "fp8 weights", d.model_copy(update={"weight_dtypes": ("fp8",)})
    if "fp8" not in d.kv_dtypes and d.cluster.peak_flops.get("fp8"):
        yield "fp8 KV cache", d.model_copy(update={"kv_dtypes": ("fp8",)})
    if d.workload.spare_replicas or d.workload.spare_nodes:
        yield "without the spare", with_workload(d, spare_replicas=0, spare_nodes=0)


__all__ = ["CHANGES", "best_of", "explain_infeasible", "objective_value", "what_ifs"]
