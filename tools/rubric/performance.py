"""Performance: how far is the plan from a reference that is not its own search?"""

from __future__ import annotations

import math

from tools.rubric.base import Item, Score, criterion, score
from tools.rubric.record import Reference, RunRecord
from tools.spec.deployment import Objective


@criterion("performance")
def performance(record: RunRecord) -> Score:
    barred, reference = not record.fixed_strategy, record.reference
    if reference is None or reference.num_evaluated < 1:
        item = Item(name="reference", value=0.0, reason="the plan was compared with nothing")
        return score("performance", 0.0, [item], "", barred=barred)
    item = (
        infeasible_item(reference)
        if record.plan.status == "infeasible"
        else distance_item(reference, record.plan.objective)
    )
    return score("performance", item.value, [item], item.reason, barred=barred, provisional=reference.provisional)


def distance_item(r: Reference, objective: Objective) -> Item:
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
    if objective == "knee":
        # The knee's objective is a logarithm, so the distance is a difference, and the share its exponential.
        share = min(1.0, math.exp(min(0.0, got - best)))
    else:
        share = _ratio(got, best)
    if r.broken and r.holds:
        share = min(share, BROKEN)
    rival = "its own" if share >= 1.0 else f"{r.objective_value:.6g} of {r.strategy or 'the reference'}"
    tried = f"{r.num_evaluated} priced, {r.num_simulated} simulated" if r.num_simulated else f"{r.num_evaluated}"
    regret = f", regret {1 - share:.1%}" if share < 1.0 and not r.holds else "" if r.holds else ", nothing better found"
    said = f"{r.plan_value:.6g} against {rival}, best of {tried}{regret} ({r.method}){broken_in_simulation(r)}"
    return Item(name="distance", value=share, reason=said)


BROKEN = 0.8
"""Most that a plan scores which breaks a requirement in the simulation while another strategy holds all."""


def broken_in_simulation(r: Reference) -> str:
    """What the simulation says of a limit that the closed form holds met."""
    if not r.broken:
        return ""
    other = f"; {r.strategy} holds every requirement" if r.holds else "; so do all others that were simulated"
    return f"; in the simulation the plan breaks {r.broken}{other}"


def _ratio(got: float, best: float) -> float:
    """Share of `best`; objectives with a turned sign (minus devices) compare magnitudes the other way round."""
    if got >= best:
        return 1.0
    if got > 0:
        return got / best
    return best / got if best < 0 else 0.0


def infeasible_item(r: Reference) -> Item:
    agrees = r.objective_value is None
    found = "finds nothing feasible either" if agrees else f"finds {r.strategy} feasible with {r.objective_value:.6g}"
    return Item(name="reference", value=float(agrees), reason=f"{r.method} over {r.num_evaluated} strategies {found}")
