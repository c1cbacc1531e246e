"""Fits what kinds of kernels reach of their generation's large GEMMs and copies: knowledge/curves/kernels.yaml.

    python benchmarks/fit_kernels.py [--write]

Devices of generations that nobody measured are priced by the datasheet roofline. Its fractions for large GEMMs and large
copies are published for each generation (devices.yaml); how far the other kernels stay behind these, and how long the
smallest ones take, is fitted here: one set for all generations, to the measured operators (operators.npz) of five. Samples
are the kernels of real models at steps from one sequence to a full prefill; every generation weighs the same, and the cost
is the mean absolute logarithm, cut off. Printed: the error on each generation with a set fitted to the four others.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.estimate_csv import cluster_of  # noqa: E402
from knowledge.catalog import device_by_id, load_model  # noqa: E402
from knowledge.curves import load_curves  # noqa: E402
from tools.cost.compute import Roof, Work, price  # noqa: E402
from tools.cost.curves import Curves, KernelCurve  # noqa: E402
from tools.cost.steps import Candidates, Layout, layouts  # noqa: E402
from tools.spec.deployment import Deployment  # noqa: E402
from tools.spec.strategy import Strategy  # noqa: E402
from tools.spec.workload import Workload  # noqa: E402

MODELS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama3.1-8b", {}), ("qwen2.5-7b", {}), ("qwen3-32b", {"tp": 2}), ("llama3.1-70b", {"tp": 2}),
    ("llama3.1-70b", {"tp": 8}), ("llama3.1-70b", {"tp": 4, "weight_dtype": "fp8", "kv_dtype": "fp8"}),
    ("mixtral-8x7b", {"tp": 2}), ("qwen3-30b-a3b", {}), ("qwen3-30b-a3b", {"attn_dp": 2, "ep": 2, "etp": 1}),
    ("qwen3-235b-a22b", {"tp": 8}), ("gpt-oss-120b", {"tp": 2, "weight_dtype": "mxfp4"}),
    ("llama4-scout", {"tp": 4, "weight_dtype": "fp8"}), ("deepseek-v3", {"tp": 8, "weight_dtype": "fp8"}),
)  # fmt: skip
STEPS = [("decode", b, 1, kv) for b in (2, 4, 16, 64, 256) for kv in (512, 4096)] + [
    ("prefill", 2, n, n) for n in (128, 512, 2048, 8192)
]
"""(phase, sequences, new tokens of each, positions)."""
ENGINES = ("vllm", "sglang", "trtllm")
FITTED = {
    "gemm": ("latency_s",), "gemm_quantised": ("latency_s",), "grouped_gemm": ("compute", "memory", "latency_s"),
    "attention_prefill": ("compute", "memory", "latency_s"), "attention_decode": ("memory", "latency_s"),
    "mla_decode": ("compute", "memory", "latency_s"),
}  # fmt: skip
"""What is fitted of each kind. Large GEMMs and copies are the generation's own by definition, so that of plain GEMMs only the
smallest one's time is left. Decode attention reads its keys whatever the number of queries that share them: no compute."""
START = {"compute": 0.6, "memory": 0.9, "latency_s": 5e-6}
CUT = 0.7
"""Logarithm beyond which a sample is taken for a fallback kernel."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A kernel (experts: both GEMMs and what routes for them). compute, memory: seconds of its roofs at the generation's own
    fractions; rest: seconds of what is not fitted; count: kernels."""

    kind: str
    generation: str
    compute: tuple[float, float]
    memory: tuple[float, float]
    rest: float
    count: int
    measured: float


def samples(curves: Curves) -> Iterator[Sample]:
    assert curves.operators is not None
    for device in sorted(curves.operators.ridge):
        for name, degrees in MODELS:
            for engine in ENGINES:
                s = Strategy(engine=engine, **degrees)
                deployment = Deployment(
                    model=load_model(name).model, cluster=cluster_of(device_by_id(device), s.num_devices),
                    workload=Workload(isl=1024, osl=512),
                )  # fmt: skip
                ((_, layout),) = layouts(deployment, curves, Candidates.of(s))
                for phase, sequences, tokens, context in STEPS:
                    sizes = (np.asarray([n]) for n in (sequences, tokens, context))
                    yield from sampled(layout, layout.works(phase, *sizes).layers[-1][1])  # type: ignore[arg-type]


def sampled(layout: Layout, works: tuple[Work, ...]) -> Iterator[Sample]:
    """The measured kernels of one layer; those of its experts as one."""
    roof = layout.roof
    plain = replace(roof, relative="", kernels={}, reference=None)
    kernels = [w for w in works if w.comm is None]
    experts = [w for w in kernels if w.kind == "grouped_gemm" and roof.table(w)]
    if experts:
        routed = sum(_seconds(w, plain) for w in kernels if w.routed and w.kind != "grouped_gemm")
        yield _sample("grouped_gemm", experts, roof, plain, routed)
    for w in kernels:
        if w.kind != "grouped_gemm" and not w.routed and roof.table(w):
            quantised = w.kind == "gemm" and roof.quantised_bytes(w, roof.peak(w.dtype)[1]) > 0
            kind: str = "mla_decode" if w.table == "mla_generation" else w.kind
            yield _sample("gemm_quantised" if quantised else kind, [w], roof, plain, 0.0)


def _sample(kind: str, works: list[Work], roof: Roof, plain: Roof, rest: float) -> Sample:
    times = [price(w, plain) for w in works]
    compute, memory = ([_one(getattr(t, k)) for t in times] + [0.0] * (2 - len(works)) for k in ("compute", "memory"))
    return Sample(
        kind, roof.curve.name, (compute[0], compute[1]), (memory[0], memory[1]), rest + len(works) * plain.latency,
        len(works), sum(_seconds(w, roof) for w in works),
    )  # fmt: skip


def _seconds(w: Work, roof: Roof) -> float:
    return _one(price(w, roof).total)


def _one(x: Any) -> float:
    return float(np.ravel(x)[0])


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def arrays(found: list[Sample]) -> Arrays:
    return (
        np.array([s.compute for s in found]), np.array([s.memory for s in found]), np.array([s.rest for s in found]),
        np.array([s.count for s in found]), np.array([s.measured for s in found]),
    )  # fmt: skip


def log_errors(data: Arrays, k: KernelCurve, overlap: float) -> np.ndarray:
    compute, memory, rest, count, measured = data
    roofs = ((compute / k.compute) ** overlap + (memory / k.memory) ** overlap) ** (1 / overlap)
    return np.log((roofs.sum(axis=1) + rest + count * k.latency_s) / measured)


def fit(by_generation: list[Arrays], free: tuple[str, ...], overlap: float) -> KernelCurve:
    """Coordinate descent on the logarithms of the `free` parameters; generations weigh the same."""

    def at(logs: dict[str, float]) -> KernelCurve:
        return KernelCurve(**{p: float(np.exp(v)) for p, v in logs.items()})

    def cost(logs: dict[str, float]) -> float:
        return float(np.mean([np.minimum(np.abs(log_errors(d, at(logs), overlap)), CUT).mean() for d in by_generation]))

    now = {p: float(np.log(START[p])) for p in free}
    best, step = cost(now), 0.4
    while step > 0.01:
        tries = [now | {p: now[p] + sign * step} for p in free for sign in (-1, 1)]
        tries = [t for t in tries if t.get("compute", -1.0) <= 0.0 and t.get("memory", -1.0) <= 0.15]
        found = min(tries, key=cost)
        if cost(found) < best - 1e-6:
            now, best = found, cost(found)
        else:
            step /= 2
    return at(now)


def write(found: dict[str, KernelCurve]) -> None:
    path = ROOT / "knowledge" / "curves" / "kernels.yaml"
    text = path.read_text(encoding="utf-8")
    for kind, k in found.items():
        line = f"  {kind}: {{compute: {k.compute:.3g}, memory: {k.memory:.3g}, latency_s: {k.latency_s:.2e}}}"
        text = re.sub(rf"(?m)^  {kind}: .*$", line, text)
    path.write_text(text, encoding="utf-8")


def main() -> int:
    args = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    args.add_argument("--write", action="store_true")
    options = args.parse_args()
    curves = load_curves()
    overlap = curves.devices[0].overlap
    groups: dict[str, dict[str, list[Sample]]] = {}
    for s in samples(curves):
        groups.setdefault(s.kind, {}).setdefault(s.generation, []).append(s)
    found: dict[str, KernelCurve] = {}
    for kind, free in FITTED.items():
        data = {g: arrays(found) for g, found in groups[kind].items()}
        k = found[kind] = fit(list(data.values()), free, overlap)
        print(f"{kind}: compute {k.compute:.2f}, memory {k.memory:.2f}, {k.latency_s * 1e6:.1f} us")
        for out, mine in data.items():
            r = log_errors(mine, fit([d for g, d in data.items() if g != out], free, overlap), overlap)
            print(f"   without {out:14} median |error| {np.median(np.abs(r)):.0%}, bias {np.expm1(np.median(r)):+.0%}")
    if options.write:
        write(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
