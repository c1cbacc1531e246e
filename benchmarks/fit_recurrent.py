"""Fits how fast linear attention runs to measured times of its kernels: knowledge/curves/kernels.yaml, recurrent_*.

Source: the same package as benchmarks/distil_operators.py, unpacked anywhere (gdn_perf.parquet of each device and framework):

    python benchmarks/fit_recurrent.py DIR/aiconfigurator_core/systems/data [--write]

Prefill works off a sequence chunk after chunk: it takes `position_s` per position of one sequence, or the roofline of all
sequences and heads together, whichever is longer. Decode reads and writes the state of every sequence. As in
fit_kernels.py one set holds for all generations, each weighs the same, and the error printed for a generation is that of
the set fitted to the others.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

from distil_operators import device, newest  # noqa: E402

from knowledge.catalog import device_by_id  # noqa: E402
from knowledge.curves import load_curves  # noqa: E402
from tools.cost.curves import Curves, DeviceCurve, KernelCurve  # noqa: E402

SYSTEMS = ("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm", "gb200", "gb300", "l40s", "rtx_pro_6000_server")
PHASES = {"context": "recurrent_prefill", "generation": "recurrent_decode"}
FREE = {"recurrent_prefill": ("compute", "latency_s", "position_s"), "recurrent_decode": ("memory", "latency_s")}
START = {"compute": 0.3, "memory": 0.9, "latency_s": 5e-6, "position_s": 4e-8}
CUT = 0.7


@dataclass(frozen=True, slots=True)
class Rows:
    """Measured kernels of one generation: seconds of its roofs at the generation's own fractions, positions in sequence."""

    compute: np.ndarray
    memory: np.ndarray
    positions: np.ndarray
    latency: float
    measured: np.ndarray


def rows(root: Path, curves: Curves) -> Iterator[tuple[str, str, Rows]]:
    """(kind, generation, rows) of every device and framework; convolutions are other kernels."""
    for system in SYSTEMS:
        sheet = device(system)
        curve: DeviceCurve = curves.device(device_by_id(sheet["id"]))
        for _, _, table in newest(root, system, "linear_attention", "gdn"):
            table = table[~table.kernel_source.str.contains("conv")]
            for phase, kind in PHASES.items():
                r = table[(table.phase == phase) & (table.num_tokens <= 65536)]
                if len(r):
                    yield kind, curve.name, _rows(r, sheet, curve, phase)


def _rows(r, sheet: dict, curve: DeviceCurve, phase: str) -> Rows:  # type: ignore[no-untyped-def]
    state = (r.num_v_heads * r.head_k_dim * r.head_v_dim).to_numpy(float)
    sequences = (r.batch_size if phase == "context" else r.num_tokens).to_numpy(float)
    tokens = r.num_tokens.to_numpy(float)
    io = 2.0 * tokens * (2 * r.num_k_heads * r.head_k_dim + 2 * r.num_v_heads * r.head_v_dim).to_numpy(float)
    return Rows(
        compute=6.0 * tokens * state / (sheet["peak"]["bf16"] * curve.gemm["bf16"]),
        memory=(8.0 * sequences * state + io) / (sheet["bandwidth"] * curve.memory),
        positions=tokens / sequences, latency=curve.kernel_latency_s, measured=r.latency.to_numpy(float) / 1e3,
    )  # fmt: skip


def errors(d: Rows, k: KernelCurve, overlap: float) -> np.ndarray:
    roof = ((d.compute / k.compute) ** overlap + (d.memory / k.memory) ** overlap) ** (1 / overlap)
    return np.log((np.maximum(roof, d.positions * k.position_s) + d.latency + k.latency_s) / d.measured)


def fit(by_generation: list[list[Rows]], free: tuple[str, ...], overlap: float) -> KernelCurve:
    """Coordinate descent on the logarithms of the `free` parameters."""

    def at(logs: dict[str, float]) -> KernelCurve:
        return KernelCurve(**{p: float(np.exp(v)) for p, v in logs.items()})

    def cost(logs: dict[str, float]) -> float:
        k = at(logs)
        each = [np.mean([np.minimum(np.abs(errors(d, k, overlap)), CUT).mean() for d in ds]) for ds in by_generation]
        return float(np.mean(each))

    now = {p: float(np.log(START[p])) for p in free}
    best, size = cost(now), 0.4
    while size > 0.01:
        tries = [now | {p: now[p] + sign * size} for p in free for sign in (-1, 1)]
        found = min((t for t in tries if t.get("memory", -1.0) <= 0.15 and t.get("compute", -1.0) <= 0.0), key=cost)
        if cost(found) < best - 1e-6:
            now, best = found, cost(found)
        else:
            size /= 2
    return at(now)


def main() -> int:
    args = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    args.add_argument("data", type=Path)
    args.add_argument("--write", action="store_true")
    options = args.parse_args()
    curves = load_curves()
    overlap = curves.devices[0].overlap
    groups: dict[str, dict[str, list[Rows]]] = {}
    for kind, generation, found in rows(options.data, curves):
        groups.setdefault(kind, {}).setdefault(generation, []).append(found)
    path = ROOT / "knowledge" / "curves" / "kernels.yaml"
    text = path.read_text(encoding="utf-8")
    for kind, by in groups.items():
        k = fit(list(by.values()), FREE[kind], overlap)
        print(f"{kind}: " + ", ".join(f"{p} {getattr(k, p):.3g}" for p in FREE[kind]))
        for out, mine in by.items():
            rest = [d for g, d in by.items() if g != out]
            r = np.concatenate([errors(d, fit(rest, FREE[kind], overlap), overlap) for d in mine])
            print(f"   without {out:14} median |error| {np.median(np.abs(r)):.0%}, bias {np.expm1(np.median(r)):+.0%}")
        line = f"  {kind}: {{compute: {k.compute:.3g}, memory: {k.memory:.3g}, latency_s: {k.latency_s:.2e}, "
        line += f"position_s: {k.position_s:.2e}}}"
        text = re.sub(rf"(?m)^  {kind}: .*$", line, text)
    if options.write:
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
