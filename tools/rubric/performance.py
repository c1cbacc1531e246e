"""Performance: how far is the plan from a reference that is not its own search?"""

from __future__ import annotations

from tools.rubric.base import Item, Score, criterion, score
from tools.rubric.record import Reference, RunRecord


@criterion("performance")
def performance(record: RunRecord) -> Score:
    barred, reference = not record.fixed_strategy, record.reference
    if reference is None or reference.num_evaluated < 1:
        item = Item(name="reference", value=0.0, reason="the plan was compared with nothing")
        return score("performance", 0.0, [item], "", barred=barred)
    item = infeasible_item(reference) if record.plan.status == "infeasible" else distance_item(reference)
    return score("performance", item.value, [item], item.reason, barred=barred, provisional=reference.provisional)


def distance_item(r: Reference) -> Item:
    """Share of the reference's objective that the plan reaches; better than the reference is 1."""
    if r.plan_value is None:
        return Item(name="plan", value=0.0, reason="the plan itself was not priced by the reference")
    if r.objective_value is None:
        return Item(
            name=r.method,
            value=0.0,
            reason=f"none of {r.num_evaluated} strategies is feasible there, the plan included",
        )
    got, best = (r.plan_value, r.objective_value) if r.higher_is_better else (r.objective_value, r.plan_value)
    share = min(1.0, got / best) if got > 0 and best > 0 else _signed(got, best)
    said = f"{r.plan_value:.6g} against {r.objective_value:.6g} of {r.strategy or 'the reference'}, best of {r.num_evaluated} ({r.method})"
    return Item(name="distance", value=share, reason=said)


def _signed(got: float, best: float) -> float:
    """Objectives with a turned sign (minus devices): the ratio of magnitudes, the other way round."""
    if got >= best:
        return 1.0
    return best / got if got < 0 and best < 0 else 0.0


def infeasible_item(r: Reference) -> Item:
    agrees = r.objective_value is None
    found = "finds nothing feasible either" if agrees else f"finds {r.strategy} feasible with {r.objective_value:.6g}"
    return Item(name="reference", value=float(agrees), reason=f"{r.method} over {r.num_evaluated} strategies {found}")
