"""Performance's reference: strategies enumerated here, one at a time, not by the search's own walk.

Every factorisation of the devices into axes, plus local moves around the plan (batch, step size, a degree moved from
one
axis to another), each priced alone. It shares the cost model with the search and nothing else: what the search prunes,
groups or skips shows as a better value here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from agent.bind import Workbench, strategy_key
from tools.rubric import Reference
from tools.spec.base import ToolError
from tools.spec.plan import Candidate
from tools.spec.strategy import Strategy

MAX_PRICED = 48
METHOD = "one-at-a-time enumeration over the same cost model, with local moves around the plan"


def reference_of(bench: Workbench, chosen: Candidate | None) -> Reference:
    """The best feasible strategy among those tried; for an infeasible verdict the closest one is the starting point."""
    verdict = bench.search.infeasible
    closest = verdict.closest.strategy if verdict and verdict.closest else bench.search.baseline.estimate.strategy
    centre = chosen.estimate.strategy if chosen else closest
    best: Candidate | None = chosen
    priced = 0
    for strategy in candidates(bench, centre):
        try:
            found = bench.candidate(strategy)
        except ToolError:
            continue
        priced += 1
        if found.estimate.feasible and (best is None or found.objective_value > best.objective_value):
            best = found
        if priced >= MAX_PRICED:
            break
    return Reference(
        objective_value=best.objective_value if best else None,
        plan_value=chosen.objective_value if chosen else None,
        strategy=bench.label(best.estimate.strategy) if best else "", num_evaluated=max(1, priced), method=METHOD,
    )  # fmt: skip


def candidates(bench: Workbench, centre: Strategy) -> Iterator[Strategy]:
    """Moves around `centre` first, then factorisations of its devices and of the cluster's, each once."""
    seen = {strategy_key(centre)}
    stated = stated_batch(bench)
    for fields in (*moves(centre), *factorisations(bench, centre)):
        try:
            strategy = Strategy.model_validate(
                {**centre.model_dump(exclude={"etp", "attn_dp", "layers_per_stage"}), **fields, **stated}
            )
        except (ToolError, ValueError):
            continue
        key = strategy_key(strategy)
        if key not in seen and _within(bench, strategy):
            seen.add(key)
            yield strategy


def stated_batch(bench: Workbench) -> dict[str, int]:
    """A batch that the conditions fix per replica is no degree of freedom."""
    w = bench.deployment.workload
    fixed = w.batch_size is not None and w.concurrency is None and w.request_rate is None
    return {"batch": w.batch_size} if fixed and w.batch_size is not None else {}


def _within(bench: Workbench, s: Strategy) -> bool:
    limit = bench.deployment.cluster.num_devices
    return (limit is None or s.num_devices <= limit) and s.pp <= bench.deployment.model.num_hidden_layers


def moves(s: Strategy) -> Iterator[dict[str, object]]:
    """Batch and step size halved, doubled, a little more or less; factor 2 moved between two axes."""
    same = {"etp": s.etp, "attn_dp": s.attn_dp, "layers_per_stage": s.layers_per_stage}
    for batch in (s.batch * 2, s.batch // 2, s.batch + max(1, s.batch // 8), s.batch - max(1, s.batch // 8)):
        if batch >= 1:
            yield {**same, "batch": batch}
    for tokens in (s.max_num_batched_tokens * 2, s.max_num_batched_tokens // 2):
        if tokens >= 256:
            yield {**same, "max_num_batched_tokens": tokens}
    degrees = {"tp": s.tp, "pp": s.pp, "dp": s.dp}
    for a, b in product(degrees, degrees):
        if a != b and degrees[a] % 2 == 0:
            batch = s.batch * 2 if a == "dp" else max(1, s.batch // 2) if b == "dp" else s.batch
            moved = {**degrees, a: degrees[a] // 2, b: degrees[b] * 2, "batch": batch}
            yield {**moved, "ep": min(s.ep, moved["tp"] * (s.attn_dp or 1))}


def factorisations(bench: Workbench, s: Strategy) -> Iterator[dict[str, object]]:
    """tp · pp · attn_dp · dp = devices, the requests in flight shared evenly; experts whole or sliced."""
    n, moe = s.num_devices, bench.deployment.model.moe
    flight = s.batch * s.dp
    for tp in _divisors(n):
        for pp in _divisors(n // tp):
            for attn in _divisors(n // (tp * pp)) if moe else (1,):
                dp = n // (tp * pp * attn)
                fields = {"tp": tp, "pp": pp, "dp": dp, "attn_dp": attn, "batch": max(attn, -(-flight // dp))}
                for ep in {1, tp * attn} if moe else {1}:
                    yield {**fields, "ep": ep}


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
