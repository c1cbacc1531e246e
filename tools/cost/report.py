"""The scalar keys of `meshwright estimate --json`."""

from __future__ import annotations

from typing import Any

from tools.cost.disagg import Disaggregated
from tools.cost.estimate import Predicted
from tools.spec.plan import Estimate, StageMemory


def estimate_json(e: Estimate) -> dict[str, Any]:
    """`{"feasible", "findings", "ttft_ms", "tpot_ms", …}`: times in ms, memory per rank, breakdown in words."""
    bands = {p.metric: p.band for p in e.predictions}
    out: dict[str, Any] = {
        "feasible": e.feasible,
        "findings": [f.model_dump(mode="json") for f in e.findings],
        "ttft_ms": e.ttft_s * 1e3,
        "tpot_ms": e.tpot_s * 1e3,
    }
    out |= {f"ttft_ms_{k}": v * 1e3 for k, v in e.ttft_percentiles.items()}
    out |= {f"tpot_ms_{k}": v * 1e3 for k, v in e.tpot_percentiles.items()}
    return out | {
        "output_tok_s": e.output_tok_s,
        "output_tok_s_per_device": e.output_tok_s_per_device,
        "total_tok_s": e.total_tok_s,
        "concurrency": e.concurrency,
        "batch": e.batch,
        "max_batch": e.max_batch,
        "num_devices": e.num_devices,
        "e2e_ms": e.e2e_s * 1e3,
        "burst_ttft_ms": e.burst_ttft_s * 1e3,
        "request_rate": e.request_rate,
        "band": bands,
        "memory": memory_json(e.memory),
        "breakdown": [
            {"of": name, "name": t.name, "ms": t.value * 1e3, "formula": t.formula, "source": t.source}
            for name, b in e.breakdown.items()
            for t in b.terms
        ],
        "utilisation": dict(e.utilisation),
        "strategy": e.strategy.model_dump(mode="json"),
    }


def prediction_json(p: Predicted) -> dict[str, Any]:
    """The scalar keys alone, of a prediction without memory tables and verdicts: `feasible` says whether it fits."""
    perf, n = p.performance, p.strategy.num_devices

    def one(x: Any) -> float:
        return float(x.reshape(-1)[0])

    out: dict[str, Any] = {
        "feasible": p.max_batch >= p.strategy.batch,
        "ttft_ms": one(perf.ttft) * 1e3,
        "tpot_ms": one(perf.tpot) * 1e3,
    }
    out |= {f"ttft_ms_{k}": one(v) * 1e3 for k, v in perf.ttft_percentiles.items() if f"ttft_ms_{k}" in SCALARS}
    out |= {f"tpot_ms_{k}": one(v) * 1e3 for k, v in perf.tpot_percentiles.items() if f"tpot_ms_{k}" in SCALARS}
    output = one(perf.output_tok_s)
    return out | {
        "output_tok_s": output, "output_tok_s_per_device": output / n, "total_tok_s": output + one(perf.input_tok_s),
        "concurrency": max(1, round(one(perf.concurrency))), "batch": p.strategy.batch, "max_batch": p.max_batch,
        "num_devices": n, "e2e_ms": one(perf.e2e) * 1e3, "burst_ttft_ms": one(perf.burst_ttft) * 1e3,
        "request_rate": one(perf.request_rate),
    }  # fmt: skip


def disaggregated_json(p: Disaggregated, concurrency: int) -> dict[str, Any]:
    """The scalar keys of two pools; percentiles are not predicted."""
    e2e = concurrency / p.request_rate
    return {
        "feasible": p.batch <= p.max_batch, "ttft_ms": p.ttft_s * 1e3, "tpot_ms": p.tpot_s * 1e3,
        "output_tok_s": p.output_tok_s, "output_tok_s_per_device": p.output_tok_s / p.num_devices,
        "total_tok_s": p.output_tok_s + p.input_tok_s, "concurrency": concurrency, "batch": p.batch,
        "max_batch": p.max_batch, "num_devices": p.num_devices, "e2e_ms": e2e * 1e3, "request_rate": p.request_rate,
    }  # fmt: skip


def memory_json(stages: tuple[StageMemory, ...]) -> dict[str, Any]:
    """Per rank of the fullest stage, and every stage."""
    worst = min(stages, key=lambda s: s.free_bytes)
    keys = (
        "weights_bytes",
        "kv_bytes",
        "activation_bytes",
        "overhead_bytes",
        "reserve_bytes",
        "capacity_bytes",
        "total_bytes",
        "free_bytes",
    )
    return {k: getattr(worst, k) for k in keys} | {
        "stages": [{"stage": s.stage, "layers": s.layers, **{k: getattr(s, k) for k in keys}} for s in stages]
    }


SCALARS = (
    "feasible", "ttft_ms", "tpot_ms", "ttft_ms_p50", "ttft_ms_p90", "ttft_ms_p95", "ttft_ms_p99", "tpot_ms_p50",
    "tpot_ms_p90", "tpot_ms_p95", "tpot_ms_p99", "output_tok_s", "output_tok_s_per_device", "total_tok_s",
    "concurrency", "batch", "max_batch", "num_devices", "e2e_ms", "burst_ttft_ms", "request_rate",
)  # fmt: skip
"""Keys of `estimate_json` that are one number or truth value: the columns of `estimate --csv`."""
