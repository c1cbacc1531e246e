"""Measured operators on a device: which table prices a kernel, and what "ideal" means in it.

A table holds ideal / measured (`tools.cost.tables`). The ideal seconds here are those of `benchmarks/distil_operators.py`,
computed with the datasheet of the device at hand, so that a device nobody measured can use the table of its nearest
relative: of the measured devices of its generation the one whose FLOP/s per byte/s is closest. What carries over is the
time, by the ratio of the two devices' rooflines (`tools.cost.compute`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tools.cost.tables import Table
from tools.spec.hardware import Device

Num = Any
Provenance = Literal["measured", "nearest generation", "datasheet"]

FRAMEWORKS = {
    "vllm": ("vllm", "sglang", "trtllm"), "sglang": ("sglang", "vllm", "trtllm"), "trtllm": ("trtllm", "sglang", "vllm"),
}  # fmt: skip
"""Whose kernels an engine is closest to, first its own."""
ACTIVATION_BYTES = {"fp8": 1.0, "fp8_block": 1.0, "nvfp4": 0.5625, "mxfp4_fp8": 1.0}
"""Bytes of an activation element on its way into the matrix unit; 2 where it stays 16-bit."""
WEIGHT_BYTES = {
    "bf16": 2.0, "fp16": 2.0, "fp32": 4.0, "fp8": 1.0, "fp8_block": 1.0, "int8": 1.0, "int4": 0.53, "mxfp4": 0.53,
    "mxfp4_fp8": 0.53, "nvfp4": 0.5625, "fp4": 0.5625,
}  # fmt: skip
MATRIX_UNIT = {"fp8": "fp8", "fp8_block": "fp8", "nvfp4": "fp4", "fp4": "fp4", "mxfp4_fp8": "fp8"}
"""dtype that the matrix unit multiplies in; bf16 where it is not named (weights are widened on the way in)."""
SUBSTITUTES = {
    "fp8": ("fp8_block", "int8", "bf16"), "fp8_block": ("fp8", "int8", "bf16"), "int8": ("fp8", "bf16"),
    "int4": ("mxfp4", "bf16"), "mxfp4": ("int4", "bf16"), "mxfp4_fp8": ("mxfp4", "int4", "bf16"),
    "nvfp4": ("mxfp4", "int4", "bf16"), "fp4": ("nvfp4", "mxfp4", "int4", "bf16"),
}  # fmt: skip
"""Whose efficiency stands in when a format was not measured. The ideal stays the format's own."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a datasheet says: dense FLOP/s by dtype, memory bytes/s."""

    peak_flops: Mapping[str, float]
    memory_bandwidth: float


@dataclass(frozen=True, eq=False)
class Operators:
    """All tables by key "kind/device/framework/dtype", and what the datasheets of the measured devices say."""

    tables: Mapping[str, Table]
    ridge: Mapping[str, float]
    """By device: bf16 FLOP/s over memory bytes/s."""
    sheets: Mapping[str, Sheet] = field(default_factory=dict)
    """By device: the datasheet that its tables were made with."""
    use_own: bool = True
    """False: a measured device is priced by its relatives all the same, to see what that costs."""
    chosen: dict[Any, Any] = field(default_factory=dict, repr=False)
    """Answers of `find`, by its arguments."""

    def relative(self, device: Device, candidates: tuple[str, ...]) -> tuple[str, Provenance]:
        """(measured device whose tables apply, how near it is); ("", datasheet) when nothing of its kind was measured."""
        if device.id in self.ridge and self.use_own:
            return device.id, "measured"
        known = [c for c in candidates if c in self.ridge and c != device.id]
        peak = device.peak_flops.get("bf16") or device.peak_flops.get("fp16")
        if not known or not peak or not device.memory_bandwidth:
            return "", "datasheet"
        own = math.log(peak / device.memory_bandwidth)
        return min(known, key=lambda c: abs(math.log(self.ridge[c]) - own)), "nearest generation"

    def find(self, kind: str, device: str, engine: str, dtype: str) -> Table | None:
        """The table for a kernel: the engine's own, else another's; the format's own, else a substitute's."""
        key = (kind, device, engine, dtype)
        if key not in self.chosen:
            self.chosen[key] = self._find(*key)
        return self.chosen[key]

    def _find(self, kind: str, device: str, engine: str, dtype: str) -> Table | None:
        for name in (dtype, *SUBSTITUTES.get(dtype, ("bf16",))):
            for framework in FRAMEWORKS.get(engine, FRAMEWORKS["vllm"]):
                found = self.tables.get(f"{kind}/{device}/{framework}/{name}")
                if found is not None:
                    return found
        return None


UNTUNED = 1.75
"""A table whose kernels are this much slower than another framework's on the same device, in the median over the grid, was
measured on a fallback path (default Triton configurations, quantisation outside the kernel) that deployments do not take."""


def tuned(tables: Mapping[str, Table]) -> dict[str, Table]:
    """The tables without those measured on fallback paths."""
    groups: dict[tuple[str, str, str], dict[str, Table]] = {}
    for key, t in tables.items():
        kind, device, framework, dtype = key.split("/")
        groups.setdefault((kind, device, "library" if framework == "nccl" else dtype), {})[key] = t
    out: dict[str, Table] = {}
    for group in groups.values():
        best = np.max(np.stack([t.log_efficiency for t in group.values()]), axis=0)
        out |= {k: t for k, t in group.items() if float(np.median(best - t.log_efficiency)) <= math.log(UNTUNED)}
    return out


def kernel_dtype(dtype: str, peak: Mapping[str, float], *, block: bool) -> str:
    """The format a quantised GEMM runs as on a device: block-scaled fp8, mxfp4 with fp8 activations where the matrix unit
    has fp4, and 16-bit activations with widened weights where it lacks the format."""
    if dtype == "fp8":
        return "int8" if not peak.get("fp8") else "fp8_block" if block else "fp8"
    if dtype == "mxfp4":
        return "mxfp4_fp8" if peak.get("fp4") else "mxfp4"
    if dtype in ("nvfp4", "fp4"):
        return "nvfp4" if peak.get("fp4") else "int4"
    return "bf16" if dtype in ("fp16", "fp32") else dtype


def unit_peak(dtype: str, peak: Mapping[str, float]) -> float:
    """Dense FLOP/s of the unit that multiplies `dtype`."""
    for name in (MATRIX_UNIT.get(dtype, "bf16"), "bf16", "fp16", "fp32"):
        if peak.get(name):
            return peak[name]
    return max(peak.values())


def gemm_ideal(m: Num, n: Num, k: Num, dtype: str, peak: float, bandwidth: float) -> tuple[Num, Num]:
    """(compute, memory) seconds of an m x n x k GEMM, every operand crossing HBM once."""
    a, w = ACTIVATION_BYTES.get(dtype, 2.0), WEIGHT_BYTES[dtype]
    return 2.0 * m * n * k / peak, (a * m * k + w * n * k + 2.0 * m * n) / bandwidth


def link_ideal(kind: str, nbytes: Num, p: Num, bandwidth: float) -> Num:
    """Bus-bandwidth seconds: (p-1)/p of the buffer over the link, twice for an all-reduce."""
    factor = 2.0 if kind == "all_reduce" else 1.0
    return factor * (p - 1) / p * nbytes / bandwidth


def sheets_of(datasheet: Mapping[str, Any]) -> dict[str, Sheet]:
    """The datasheet of every measured device."""
    return {d: Sheet(v["peak"], v["bandwidth"]) for d, v in datasheet.items()}


def ridge_of(datasheet: Mapping[str, Any]) -> dict[str, float]:
    """bf16 FLOP/s over bytes/s of every measured device."""
    return {d: v["peak"]["bf16"] / v["bandwidth"] for d, v in datasheet.items()}


__all__ = [
    "Operators", "Provenance", "Sheet", "gemm_ideal", "kernel_dtype", "link_ideal", "ridge_of", "sheets_of", "tuned",
    "unit_peak",
]  # fmt: skip
