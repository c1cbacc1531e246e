"""What an engine can run on a device: its back ends by vendor, and which dtypes it computes in, or only stores in.

A dtype without units on the device is either converted on the fly (weight-only: memory is saved, the FLOP/s are those
of bf16) or refused. Compute capabilities are NVIDIA's, times ten (Ampere 80, Hopper 90, Blackwell 100).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tools.spec.finding import Finding, Severity
from tools.spec.hardware import Device

RUNS_ON: dict[str, tuple[str, ...]] = {
    "vllm": ("nvidia", "amd"),
    "sglang": ("nvidia", "amd", "huawei", "moore threads"),
    "trtllm": ("nvidia",),
    "vllm-ascend": ("huawei",),
    "megatron": ("nvidia", "amd"),
    "torchtitan": ("nvidia", "amd"),
}
"""Vendors that the engine's own release has a back end for."""
PLUGINS: dict[tuple[str, str], str] = {
    ("vllm", "huawei"): "vllm-ascend", ("vllm", "intel"): "vllm-gaudi", ("vllm", "google"): "tpu-inference",
    ("vllm", "cambricon"): "vllm-mlu", ("vllm", "moore threads"): "vllm-musa", ("sglang", "google"): "sglang-jax",
}  # fmt: skip
"""Separate projects that bring the back end, by engine and vendor."""


def engine_on(device: Device, name: str) -> str:
    """The project that brings `name` to the device's vendor, where the engine itself has no back end for it."""
    vendor = device.vendor.lower()
    return name if vendor in RUNS_ON.get(name, (vendor,)) else PLUGINS.get((name, vendor), name)


ASCEND_UNSUPPORTED = ("Da Vinci (910)",)
"""First-generation 910: vllm-ascend's releases name A2 (910B), A3 (910C) and 310P."""

RINGS = {"ascend_910b2c_64gb": 8}
"""Devices of one scale-up ring, where a server holds several (16 devices of 910B2C: two rings of 8)."""

LOADS: dict[str, dict[str, tuple[int, str]]] = {
    "vllm": {
        "fp8": (75, "quantization/fp8.py:147"), "int8": (75, "quantization/compressed_tensors"),
        "int4": (75, "quantization/auto_awq.py:234"), "mxfp4": (80, "quantization/mxfp4.py:72"),
        "nvfp4": (75, "quantization/modelopt.py:773"),
    },
    "sglang": {
        "fp8": (80, "layers/quantization/fp8.py:341"), "int8": (75, "layers/quantization/w8a8_int8.py:88"),
        "int4": (75, "layers/quantization/awq"), "mxfp4": (80, "layers/quantization/mxfp4.py:339"),
        "nvfp4": (80, "layers/quantization/modelopt_quant.py:1550"),
    },
    "trtllm": {
        "fp8": (89, "second-hand: precision matrix of the 2025 documentation"),
        "int8": (80, "second-hand: precision matrix of the 2025 documentation"),
        "int4": (80, "second-hand: precision matrix of the 2025 documentation"),
        "mxfp4": (90, "second-hand: precision matrix of the 2025 documentation"),
        "nvfp4": (100, "second-hand: precision matrix of the 2025 documentation"),
    },
    "megatron": {"fp8": (89, "Transformer Engine")},
    "torchtitan": {"fp8": (89, "torchao Float8Linear")},
}  # fmt: skip
"""Lowest compute capability that loads weights of a dtype, by engine, and where the engine says so."""
COMPUTES = {"fp8": 89, "int8": 75, "mxfp4": 100, "nvfp4": 100, "fp4": 100}
"""Lowest compute capability whose matrix units take the dtype (NVIDIA: Ada and Hopper FP8, Blackwell FP4)."""
WEIGHT_ONLY = {"int4"}
"""Formats that every device converts on the fly; no finding."""
FLOATS = ("bf16", "fp16", "fp32")
LABEL = {"fp8": "FP8", "int8": "INT8", "nvfp4": "NVFP4", "mxfp4": "MXFP4", "fp4": "FP4", "int4": "INT4"}


def capability(device: Device) -> int | None:
    """NVIDIA compute capability times ten, from the catalogue's architecture ("Hopper (sm90)"): 90."""
    found = re.search(r"sm_?(\d{2,3})", device.arch.lower())
    return int(found[1]) if found else None


def units(device: Device, dtype: str) -> float | None:
    """Dense peak FLOP/s in `dtype`; None where the device has no matrix path for it."""
    key = "fp4" if dtype in ("mxfp4", "nvfp4") and dtype not in device.peak_flops else dtype
    return device.peak_flops.get(key)


def device_dtype(device: Device | None, weight_dtype: str, kv_dtype: str, engine: str) -> tuple[Finding, ...]:
    """What `engine` says to these dtypes on `device`; nothing when the device is unknown.

    Errors: no back end, or the dtype cannot be loaded. Warnings: stored in the dtype, computed in another one.
    """
    if device is None:
        return ()
    found = [*_back_end(device, engine)]
    if not any(f.severity == "error" for f in found):
        found += [*_weights(device, weight_dtype, engine), *_kv(device, kv_dtype, engine)]
    return tuple(found)


def device_layout(device: Device | None, engine: str, ep: int, group: int) -> tuple[Finding, ...]:
    """Whether expert dispatch of a group of `group` ranks stays on links that its kernels can use."""
    ring = RINGS.get(device.id) if device is not None and engine == "vllm-ascend" else None
    if device is None or ring is None or ep == 1 or group <= ring:
        return ()
    return (_finding(
        "device-ring", "warning", "moe.dispatch",
        f"{group} ranks of {device.name} lie on rings of {ring} joined by PCIe, which MC2 dispatch does not cross",
        f"groups of at most {ring} ranks, or all-gather dispatch", "vllm-project/vllm-ascend #1643",
        group=group, ring=ring,
    ),)  # fmt: skip


def _finding(code: str, severity: Severity, where: str, text: str, fix: str, source: str, **values: object) -> Finding:
    return Finding(
        code=code, severity=severity, cause="engine", where=where, message=f"{where}: {text} ({source})", fix=fix,
        values=values,
    )  # fmt: skip


def _back_end(device: Device, engine: str) -> Iterator[Finding]:
    vendor = device.vendor.lower()
    known = RUNS_ON.get(engine)
    if known is None or (vendor in known and not (engine == "vllm-ascend" and device.arch in ASCEND_UNSUPPORTED)):
        return
    if vendor in known:
        yield _finding(
            "device-engine", "error", "device", f"{device.name}: {engine} serves A2 (910B), A3 (910C) and 310P",
            "another device", f"{engine} supported products", device=device.id,
        )  # fmt: skip
        return
    plugin = PLUGINS.get((engine, vendor))
    others = [e for e, vendors in RUNS_ON.items() if vendor in vendors]
    use = f"use {plugin}" if plugin else f"use {' or '.join(others)}" if others else "ask the vendor for an engine"
    # A plugin of the same engine keeps its flags; a plugin that is an engine of ours must be asked for by name.
    severity: Severity = "warning" if plugin and plugin not in RUNS_ON else "error"
    yield _finding(
        "device-engine", severity, "device", f"{engine} itself has no back end for {device.vendor} ({device.name})",
        use, f"{engine} platforms", device=device.id, vendor=device.vendor,
    )  # fmt: skip


def _weights(device: Device, dtype: str, engine: str) -> Iterator[Finding]:
    if dtype in FLOATS:
        if dtype == "bf16" and "bf16" not in device.peak_flops:
            yield _finding(
                "device-dtype", "error", "weights", f"{device.name} has no bf16 units", "weight_dtype fp16",
                "platforms/cuda.py:640 in vLLM, the same elsewhere", weight_dtype=dtype, device=device.id,
            )  # fmt: skip
        return
    if dtype in WEIGHT_ONLY:
        return
    yield from (_nvidia if device.vendor.lower() == "nvidia" else _others)(device, dtype, engine)
    yield from _slower(device, dtype)


def _nvidia(device: Device, dtype: str, engine: str) -> Iterator[Finding]:
    cc = capability(device)
    if cc is None:
        return
    floor, source = LOADS.get(engine, {}).get(dtype, (0, ""))
    label, values = LABEL.get(dtype, dtype), {"weight_dtype": dtype, "capability": cc, "device": device.id}
    if cc < floor:
        yield _finding(
            "device-dtype", "error", "weights",
            f"{engine} loads {label} from compute capability {floor / 10:g}, {device.name} has {cc / 10:g}",
            "a checkpoint in int4 or fp16" if dtype != "int4" else "a checkpoint in fp16", source, **values,
        )  # fmt: skip
    elif cc < COMPUTES.get(dtype, 0):
        bf16 = device.peak_flops.get("bf16") or device.peak_flops.get("fp16") or 0.0
        yield _finding(
            "weight-only", "warning", "weights",
            f"{device.name} (compute capability {cc / 10:g}) has no {label} units: weights are stored in {label} and "
            f"computed in 16 bits (Marlin or Triton) at {bf16 / 1e12:g} TFLOP/s",
            "count memory in the stored dtype and FLOP/s in bf16", source or "quantization kernels", **values,
        )  # fmt: skip


def _others(device: Device, dtype: str, engine: str) -> Iterator[Finding]:
    label, values = LABEL.get(dtype, dtype), {"weight_dtype": dtype, "device": device.id}
    if dtype == "nvfp4":
        # Petit unpacks NVFP4 on CDNA in SGLang only.
        petit = engine == "sglang" and device.vendor.lower() == "amd"
        yield _finding(
            "device-dtype", "warning" if petit else "error", "weights",
            f"NVFP4 is a format of NVIDIA's kernels, {device.name} is from {device.vendor}"
            + (": unpacked to bf16 (Petit)" if petit else ""),
            "an mxfp4, fp8 or int4 checkpoint", "quantization/modelopt.py", **values,
        )  # fmt: skip
    elif units(device, dtype) is None:
        kinds = ", ".join(sorted(device.peak_flops))
        upcast = dtype == "mxfp4" and device.vendor.lower() == "amd"
        yield _finding(
            "weight-only" if upcast else "device-dtype", "warning" if upcast else "error", "weights",
            f"{device.name} has no {label} units (it has {kinds})" + (": computed in bf16 (Triton)" if upcast else ""),
            "a checkpoint in " + ("int8 (W8A8)" if "int8" in device.peak_flops else "bf16") + " or fp16"
            if not upcast else "count FLOP/s in bf16",
            "matrix units of the device", **values,
        )  # fmt: skip


def _slower(device: Device, dtype: str) -> Iterator[Finding]:
    """Chips whose low-precision units are no faster than bf16 (Gaudi 3 FP8), or slower (B300 INT8)."""
    low, bf16 = units(device, dtype), device.peak_flops.get("bf16")
    if low is None or bf16 is None or low > bf16:
        return
    label = LABEL.get(dtype, dtype)
    yield _finding(
        "dtype-slow", "warning" if low < bf16 else "info", "weights",
        f"{device.name} computes {label} at {low / 1e12:g} TFLOP/s, bf16 at {bf16 / 1e12:g} TFLOP/s",
        "bf16 where memory allows" if low < bf16 else f"{label} saves memory, not time", "catalogue of devices",
        weight_dtype=dtype, peak=low, bf16=bf16,
    )  # fmt: skip


def _kv(device: Device, dtype: str, engine: str) -> Iterator[Finding]:
    if dtype in FLOATS or dtype in ("int8", "int4"):
        return
    cc, label = capability(device), LABEL.get(dtype, dtype)
    values = {"kv_dtype": dtype, "device": device.id}
    nvidia = device.vendor.lower() == "nvidia"
    if nvidia and cc is not None and cc < COMPUTES.get(dtype, 0):
        refused = dtype != "fp8"
        yield _finding(
            "device-kv-dtype", "error" if refused else "warning", "kv_cache",
            f"{device.name} (compute capability {cc / 10:g}) has no {label} units"
            + ("" if refused else ": the cache is converted on every read, by some attention back ends only"),
            "kv_dtype fp8 or bf16" if refused and cc >= COMPUTES["fp8"] else "kv_dtype bf16", "attention back ends",
            **values,
        )  # fmt: skip
    elif not nvidia and units(device, dtype) is None:
        yield _finding(
            "device-kv-dtype", "error", "kv_cache", f"{device.name} has no {label} units", "kv_dtype bf16",
            "matrix units of the device", **values,
        )  # fmt: skip
