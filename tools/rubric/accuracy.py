"""Accuracy: are the requirements met, and with what margin?"""

from __future__ import annotations

from tools.rubric.base import BAR, Item, Score, criterion, mean, score
from tools.rubric.record import RunRecord
from tools.spec.plan import Estimate, Plan
from tools.spec.term import Prediction
from tools.spec.workload import Requirement


@criterion("accuracy")
def accuracy(record: RunRecord) -> Score:
    """The worst gate's score, as requirements hold together. Met: 1; inside its band: 0.8 to 1; broken: 0."""
    plan = record.plan
    if plan.status == "infeasible":
        return _infeasible(record)
    gates = plan.deployment.requirements.gates
    items = [gate_item(gate, plan) for gate in gates]
    if record.fidelity:
        items += [Item(name=f.name, value=float(f.holds), reason=f.reason) for f in record.fidelity]
        return score(
            "accuracy", mean(items), items, f"the graphs are what the paper says, in {len(record.fidelity)} respects"
        )
    value = min((i.value for i in items), default=1.0)
    good = (
        f"all {len(gates)} requirements are met by more than their error band" if gates else "no requirement is stated"
    )
    return score("accuracy", value, items, good, provisional=True)


def gate_item(gate: Requirement, plan: Plan) -> Item:
    name = f"{gate.metric} {gate.stat}".removesuffix(" limit")
    prediction = find(gate, plan.estimate)
    if prediction is None:
        return Item(name=name, value=0.0, reason=f"limit {gate.limit:.4g}, but nothing was predicted for it")
    margin = prediction.value / gate.limit - 1 if gate.higher_is_better else 1 - prediction.value / gate.limit
    unit = UNITS.get(gate.metric, " s")
    said = (
        f"predicted {prediction.value:.4g}{unit} ±{prediction.band:.0%}, limit {gate.limit:.4g}{unit}, margin "
        f"{margin:+.1%}"
    )
    if not margin >= 0:
        return Item(name=name, value=0.0, reason=f"broken: {said}")
    if margin < prediction.band:
        return Item(name=name, value=BAR + (1 - BAR) * margin / prediction.band, reason=f"at risk: {said}")
    return Item(name=name, value=1.0, reason=f"met: {said}")


UNITS = {"throughput_per_device": " tok/s per device", "throughput_total": " tok/s", "request_rate": " requests/s"}


def find(gate: Requirement, estimate: Estimate | None) -> Prediction | None:
    """The prediction made for this gate: same metric, statistic and limit."""
    for p in estimate.predictions if estimate else ():
        if (
            p.metric == gate.metric
            and p.stat == gate.stat
            and (p.limit is None or abs(p.limit - gate.limit) <= 1e-9 * abs(gate.limit))
        ):
            return p
    return None


def _infeasible(record: RunRecord) -> Score:
    """A verdict is accurate when the way out was applied and proven; named only, it stands at the bar."""
    verdict = record.plan.infeasible
    proven = [p for p in record.proofs if p.role == "nearest" and p.proof.ok]
    if verdict is None or not verdict.nearest:
        items = [Item(name="nearest change", value=0.0, reason="no change that would make a plan possible is named")]
    elif proven:
        items = [
            Item(
                name=verdict.nearest[0].description,
                value=1.0,
                reason=f"applied, it gives a plan that is proven ({proven[0].proof.strategy})",
            )
        ]
    else:
        items = [
            Item(name=verdict.nearest[0].description, value=BAR, reason="named, but not applied and proven in this run")
        ]
    return score(
        "accuracy", items[0].value, items, "the nearest change, applied, gives a proven plan", provisional=True
    )
