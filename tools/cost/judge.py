"""Requirements against predictions, for arrays of candidates and for one.

A latency that names no statistic (`limit`) gates on the mean. A throughput that does not say which tokens it counts is
judged under each reading, and gates on the most favourable one: a plan exists if any reading is met, and is at risk
while another one is not. Under a stated arrival rate throughput is what
the replicas could serve, since what they do serve is the rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tools.cost.curves import Band, Curves
from tools.cost.serving import Load, Performance
from tools.spec.deployment import Deployment
from tools.spec.finding import Finding
from tools.spec.hardware import Cluster
from tools.spec.term import Prediction
from tools.spec.workload import Requirement

Counts = Literal["input", "output", "total", "prefill"]
"""Readings of a throughput: prompt tokens, generated ones, both, each over the whole time; or prompt tokens over the
time that prefill takes (what "tokens per second" means to those who time a prefill)."""
WORDS = {"total": "input + output", "input": "input", "output": "output", "prefill": "prompt tokens during prefill"}
BAND_OF = {
    "ttft_s": "ttft_s", "tpot_s": "tpot_s", "e2e_latency_s": "ttft_s", "throughput_per_device": "throughput",
    "throughput_total": "throughput", "request_rate": "throughput",
}  # fmt: skip
UNIT = {
    "ttft_s": "s", "tpot_s": "s", "e2e_latency_s": "s", "throughput_per_device": "tokens/s per device",
    "throughput_total": "tokens/s", "request_rate": "requests/s",
}  # fmt: skip


def statistic(req: Requirement) -> str:
    return "mean" if req.stat == "limit" else req.stat


def value(
    req: Requirement, perf: Performance, load: Load, num_devices: np.ndarray, counts: Counts | None = None
) -> np.ndarray:
    """The predicted quantity that `req` bounds, in its unit."""
    stat = statistic(req)
    if req.metric == "ttft_s":
        return perf.ttft if stat == "mean" else perf.ttft_percentiles[stat]
    if req.metric == "tpot_s":
        return perf.tpot if stat == "mean" else perf.tpot_percentiles[stat]
    if req.metric == "e2e_latency_s":
        if stat == "mean":
            return perf.e2e
        return perf.ttft_percentiles[stat] + (load.osl - 1) * perf.tpot_percentiles[stat]
    served = perf.capacity_rate if load.mode == "open" else perf.request_rate
    if req.metric == "request_rate":
        return served
    counts = counts or req.counts or "total"
    if counts == "prefill":
        rate = perf.concurrency * load.isl / np.maximum(perf.ttft, 1e-12)
        return rate / num_devices if req.metric == "throughput_per_device" else rate
    tokens = {"input": load.isl, "output": load.osl, "total": load.isl + load.osl}[counts]
    total = served * tokens
    return total / num_devices if req.metric == "throughput_per_device" else total


def readings(req: Requirement, load: Load) -> tuple[Counts, ...]:
    """What a throughput may count: what it says, else everything it could mean under this load."""
    if req.metric not in ("throughput_per_device", "throughput_total") or req.counts is not None:
        return (req.counts or "total",)
    return ("total", "input", "output", "prefill") if load.mode == "together" else ("total", "input", "output")


def best_reading(req: Requirement, perf: Performance, load: Load, num_devices: np.ndarray) -> np.ndarray:
    """`value` under the most favourable reading."""
    return np.max([value(req, perf, load, num_devices, c) for c in readings(req, load)], axis=0)


def margin(req: Requirement, predicted: np.ndarray) -> np.ndarray:
    """How far inside the requirement, relative to it; negative: broken."""
    limit = max(req.limit, 1e-300)
    return (predicted - limit) / limit if req.higher_is_better else (limit - predicted) / limit


def stability(perf: Performance, load: Load, dp: np.ndarray) -> np.ndarray:
    """+inf where the load can be served; else how far capacity falls short of the arrivals, relative (below 0)."""
    if load.rate is None:
        return np.where(perf.stable, np.inf, -1.0)
    return np.where(perf.stable, np.inf, np.minimum(perf.capacity_rate / load.rate - 1.0, -1e-3))


def margins(
    deployment: Deployment, perf: Performance, load: Load, dp: np.ndarray, num_devices: np.ndarray
) -> dict[str, np.ndarray]:
    """Relative margin of every gate (`gate:i`) and of serving the load at all (`load`)."""
    gates = deployment.requirements.gates
    out = {f"gate:{i}": margin(r, best_reading(r, perf, load, num_devices)) for i, r in enumerate(gates)}
    return out | {"load": stability(perf, load, dp)}


def prediction(
    metric: str, stat: str, predicted: float, band: Band, unit: str, provenance: str, req: Requirement | None = None
) -> Prediction:
    """One predicted number, with its verdict if a requirement bounds it."""
    if req is None:
        return Prediction(metric=metric, stat=stat, value=predicted, unit=unit, band=band.band, provenance=provenance)
    inside = float(margin(req, np.asarray(predicted)))
    status: Literal["met", "at_risk", "broken"] = "broken" if inside < 0 else "at_risk" if inside < band.band else "met"
    return Prediction(
        metric=metric, stat=stat, value=predicted, unit=unit, band=band.band, provenance=provenance, limit=req.limit,
        margin=inside, status=status,
    )  # fmt: skip


def kernels_from(curves: Curves, deployment: Deployment) -> str:
    """Where kernel times come from, in words."""
    cluster = deployment.cluster
    own = curves.calibration_of(cluster.device)
    if own is not None:
        curves = curves.model_copy(update={"calibration": None})
        return f"{kernels_from(curves, deployment)}, calibrated on {own.rows} rows of this cluster"
    generation = curves.device(cluster.device).name
    if cluster.mfu is not None or cluster.mbu is not None:
        return f"stated utilisation over the {generation} roofline"
    relative, provenance = curves.relative(cluster.device)
    if provenance == "measured":
        return f"operators measured on {relative}"
    if provenance == "nearest generation":
        return f"operators measured on {relative} (nearest of its generation) over this datasheet"
    return f"{generation} datasheet curve, no operators measured"


def judge(
    deployment: Deployment, curves: Curves, perf: Performance, load: Load, num_devices: int,
    clusters: Sequence[Cluster] = (),
) -> tuple[tuple[Prediction, ...], tuple[Finding, ...]]:  # fmt: skip
    """Predictions with verdicts, and findings: broken and at-risk gates, other readings of a throughput.

    `clusters`: kinds of devices that take part, by default the deployment's own; the widest of their bands counts.
    """
    n = np.asarray([num_devices])
    clusters = clusters or (deployment.cluster,)
    sources = dict.fromkeys(kernels_from(curves, deployment.model_copy(update={"cluster": c})) for c in clusters)
    provenance = f"closed form, {'; '.join(sources)}"

    def band_of(metric: str) -> Band:
        return max((curves.band(BAND_OF[metric], c) for c in clusters), key=lambda b: b.band)

    predictions: list[Prediction] = []
    findings: list[Finding] = []
    judged = set()
    for req in deployment.requirements.gates:
        band = band_of(req.metric)
        p = prediction(
            req.metric, req.stat, float(best_reading(req, perf, load, n)[0]), band, UNIT[req.metric], provenance, req
        )
        judged.add((req.metric, statistic(req)))
        predictions.append(p)
        findings += verdict_findings(req, p)
        findings += _readings(req, perf, load, n)
    plain = {
        ("ttft_s", "mean"): perf.ttft, ("tpot_s", "mean"): perf.tpot, ("e2e_latency_s", "mean"): perf.e2e,
        ("throughput_total", "mean"): perf.output_tok_s,
    }  # fmt: skip
    for (metric, stat), v in plain.items():
        if (metric, stat) not in judged:
            unit = "output tokens/s" if metric == "throughput_total" else UNIT[metric]
            band = band_of(metric)
            predictions.append(prediction(metric, stat, float(v[0]), band, unit, provenance))
    return tuple(predictions), tuple(findings)


def verdict_findings(req: Requirement, p: Prediction) -> list[Finding]:
    """An error for a requirement that is broken, a warning for one whose margin is inside the error band."""
    if p.status not in ("broken", "at_risk"):
        return []
    assert p.margin is not None
    sign = ">=" if req.higher_is_better else "<="
    what = f"{req.metric} {statistic(req)} = {p.value:.4g} {p.unit}, required {sign} {req.limit:.4g}"
    values = {
        "metric": req.metric,
        "stat": req.stat,
        "value": p.value,
        "limit": req.limit,
        "margin": p.margin,
        "band": p.band,
    }
    if p.status == "broken":
        return [
            Finding(
                code="slo-broken",
                severity="error",
                cause="slo",
                message=f"{what} (off by {-p.margin:.1%})",
                values=values,
            )
        ]
    message = f"{what}: margin {p.margin:.1%} is inside the error band of ±{p.band:.0%}"
    return [
        Finding(
            code="slo-at-risk",
            severity="warning",
            cause="slo",
            message=message,
            fix="measure this point, or plan more headroom",
            values=values,
        )
    ]


def _readings(req: Requirement, perf: Performance, load: Load, n: np.ndarray) -> list[Finding]:
    """The verdict under each reading; a warning when they differ."""
    names = readings(req, load)
    if len(names) == 1:
        return []
    out: dict[str, float] = {c: float(value(req, perf, load, n, c)[0]) for c in names}
    met = {c: v >= req.limit for c, v in out.items()}
    verdicts = ", ".join(f"{WORDS[c]}: {v:.4g} ({'met' if met[c] else 'not met'})" for c, v in out.items())
    message = f"{req.metric} >= {req.limit:.4g} does not say which tokens it counts. {verdicts}"
    differ = any(met.values()) and not all(met.values())
    fix = "say which tokens the figure counts" if differ else None
    severity: Literal["warning", "info"] = "warning" if differ else "info"
    values: dict[str, float] = {**out, "limit": req.limit}
    return [Finding(code="throughput-reading", severity=severity, cause="slo", message=message, fix=fix, values=values)]
