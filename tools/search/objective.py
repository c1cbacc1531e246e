"""What "best" means, and in which order.

Precedence: the stated objective; ample devices → the fewest that meet everything; no latency limit → the knee of the
front of throughput against latency; else the most output tokens/s that meet the requirements.
"""

from __future__ import annotations

import numpy as np

from tools.search.space import Priced
from tools.spec.deployment import Deployment, Objective

LATENCIES = frozenset({"ttft_s", "tpot_s", "e2e_latency_s"})


def choose_objective(deployment: Deployment) -> Objective:
    if deployment.objective is not None:
        return deployment.objective
    if deployment.cluster.num_devices is None:
        return "fewest_devices"
    if not any(r.metric in LATENCIES for r in deployment.requirements.gates):
        return "knee"
    return "total_throughput"


def objective_value(objective: Objective, priced: Priced) -> np.ndarray:
    """Higher is better. total_throughput: output tokens/s (at capacity where a rate is stated). fewest_devices: minus
    the number of devices, ties by tokens/s per device. min_latency: minus E2E seconds. knee: see `knee_score`."""
    m = priced.metrics
    return value_of(objective, m["capacity_tok_s"], m["e2e"], m["tpot"], priced.num_devices)


def value_of(
    objective: Objective, tok_s: np.ndarray, e2e: np.ndarray, tpot: np.ndarray, num_devices: np.ndarray
) -> np.ndarray:
    """`objective_value` of figures at hand."""
    if objective == "total_throughput":
        return tok_s
    if objective == "min_latency":
        return -e2e
    if objective == "fewest_devices":
        per_device = tok_s / num_devices
        return -num_devices + per_device / (1.0 + per_device) * 0.5
    return knee_score(tok_s, tpot)


def knee_score(tok_s: np.ndarray, tpot: np.ndarray) -> np.ndarray:
    """log(tokens/s) - log(TPOT): on a log-log plot, how far a point lies towards fast and plenty. Its maximum is where
    one more percent of throughput starts to cost more than one percent of latency."""
    return np.log(np.maximum(tok_s, 1e-300)) - np.log(np.maximum(tpot, 1e-300))


def relative_gain(objective: Objective, new: float, old: float) -> float:
    """How much better `new` is, relative (for the knee's logarithms: of the ratio they stand for)."""
    if objective == "knee":
        return float(np.expm1(new - old))
    return (new - old) / abs(old) if old else 0.0
