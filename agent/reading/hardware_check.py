"""Stated hardware numbers against the catalogue: sparsity, both directions, bits for bytes, tenfold slips."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.reading.facts import Candidate
from tools.spec.hardware import Device
from tools.units import format_quantity

if TYPE_CHECKING:
    from agent.reading.draft import Draft

_SLIPS = (
    (10.0, "ten times"),
    (0.1, "a tenth of"),
    (8.0, "eight times (GB/s written for Gb/s?)"),
    (0.125, "an eighth of (Gb/s written for GB/s?)"),
    (1000.0, "a thousand times"),
    (0.001, "a thousandth of"),
)


def _near(a: float, b: float, tolerance: float = 0.03) -> bool:
    return b > 0 and abs(a / b - 1) <= tolerance


# ---------------------------------------------------------------- links


def settle_links(draft: Draft, device: Device | None) -> None:
    """Interconnect speeds to bytes/s per device, one direction; every other reading that was seen is a conflict."""
    from agent.reading.draft import distinct, take

    references = {
        "hardware.intra_node_bandwidth": device.link_bandwidth if device else None,
        "hardware.pcie_bandwidth": device.pcie_bandwidth if device else None,
        "hardware.inter_node_bandwidth": device.network_bandwidth if device else None,
    }
    per_node = draft.value("hardware.devices_per_node") or _node_size(draft)
    for path, reference in references.items():
        candidates = distinct(take(draft, path))
        absent = [c for c in candidates if c.value is None]
        candidates = [c for c in candidates if c.value is not None]
        if absent and not candidates:
            draft.put(absent[0].fact(path=path))
        if not candidates:
            continue
        readings = [(c, *_link(c, reference, per_node, path)) for c in candidates]
        chosen = next((r for r in readings if reference and _near(r[1], reference)), readings[-1])
        value = chosen[1]
        draft.put(chosen[0].fact(value=value, path=path))
        written = sorted({c.value for c in candidates} | {v for _, v, _ in readings})
        whys = [f"{_where(c)} {c.stated_as}{f': {why}' if why else ''}" for c, _, why in readings]
        if (len(readings) > 1 and len({v for _, v, _ in readings}) > 1) or "both directions" in chosen[2]:
            draft.conflict(
                path,
                written,
                value,
                f"{'; '.join(whys)}; {format_quantity(value, 'bytes/s')} per device, one direction, is used",
            )
        elif chosen[2]:
            draft.reading.flag(
                "unit-mismatch" if "GB/s" in chosen[2] else "per-node-or-device", f"{path}: {'; '.join(whys)}"
            )


def _node_size(draft: Draft) -> int:
    """Devices that share a node's network where the node's size is not stated: all of a small cluster, else 8."""
    total = draft.value("hardware.num_devices")
    return total if isinstance(total, int) and 0 < total <= 8 else 8


def _where(c: Candidate) -> str:
    return c.key.split(".")[-1] if c.key and len(c.key) < 70 else f"line {c.line}"


def _link(c: Candidate, reference: float | None, per_node: int, path: str) -> tuple[float, str]:
    """(bytes/s per device one direction, why it differs from what is written)."""
    value = float(c.value)
    inter = path == "hardware.inter_node_bandwidth"
    if inter and c.scope != "device" and (c.factor > 1 or c.scope == "node"):
        total = value * c.factor
        shared = total / per_node
        return float(
            f"{shared:.6g}"
        ), "" if shared == value else f"{format_quantity(total, 'bytes/s')} per node over {per_node} devices"
    value *= c.factor
    if "both" in c.tags:
        return value / 2, "both directions stated"
    if reference is None or "one" in c.tags:
        return value, ""
    doubtful = "lower case" in c.doubt or "no unit" in c.doubt
    if _near(value, reference):
        return value, ""
    if not inter and _near(value / 2, reference):
        return value / 2, f"both directions of {format_quantity(reference, 'bytes/s')} each"
    if doubtful and _near(value * 8, reference):
        return value * 8, "GB/s by the catalogue, although written like Gb/s"
    if doubtful and not inter and _near(value * 4, reference):
        return value * 4, f"GB/s and both directions of {format_quantity(reference, 'bytes/s')} each"
    return value, ""


# ---------------------------------------------------------------- device numbers


def check_hardware(draft: Draft, device: Device | None) -> None:
    """Conflicts of what is stated with a named device, and of peaks quoted with sparsity."""
    for path in [p for p in draft.facts if p.startswith("hardware.peak_flops.")]:
        _check_peak(draft, path, device)
    if device is None:
        return
    _check_number(draft, "hardware.memory_bandwidth", device.memory_bandwidth, "bytes/s", 0.15)
    _check_number(draft, "hardware.memory_bytes", device.memory_bytes, "bytes", 0.08)


def _check_peak(draft: Draft, path: str, device: Device | None) -> None:
    fact = draft.facts[path]
    dtype = path.rsplit(".", 1)[1]
    dense = device.peak_flops.get(dtype) if device else None
    said_sparse = any(c.path.startswith("hardware.peak_flops") and "sparse" in c.tags for c in draft.reading.candidates)
    ratio = fact.value / dense if dense else 0.0
    # 1979 = 2 × 989.4: datasheets round, and some say fp8 where they mean the sparse bf16 figure
    if (dense and abs(ratio - 2) < 0.06) or (said_sparse and not (dense and _near(fact.value, dense, 0.05))):
        resolution = dense if dense else fact.value / 2
        draft.conflict(
            path,
            (fact.value, resolution),
            resolution,
            f"{fact.stated_as} is the figure with sparsity; dense it is {format_quantity(resolution, 'flop/s', 4)}",
        )
        draft.put(fact.model_copy(update={"value": resolution}))
        draft.reading.flag(
            "sparse-tflops",
            f"{fact.stated_as} counts 2:4 sparsity; planned with {format_quantity(resolution, 'flop/s', 4)} dense",
        )
    elif dense and not _near(fact.value, dense, 0.1):
        _disagree(draft, path, dense, "flop/s")


def _check_number(draft: Draft, path: str, published: float, dimension: str, tolerance: float) -> None:
    value = draft.value(path)
    if isinstance(value, int | float) and value > 0 and not _near(value, published, tolerance):
        _disagree(draft, path, published, dimension)


def _disagree(draft: Draft, path: str, published: float, dimension: str) -> None:
    """A stated number wins over the name, unless it is off by a factor that only a slip explains."""
    fact = draft.facts[path]
    slip = next((words for factor, words in _SLIPS if _near(fact.value / published, factor, 0.12)), "")
    resolution = published if slip else fact.value
    name = draft.value("hardware.device")
    why = f"{fact.stated_as} stated, the catalogue has {format_quantity(published, dimension, 4)} for {name}"
    why += f": stated is {slip} the published value, a slip; the published one is used" if slip else "; stated wins"
    draft.conflict(path, (fact.value, published), resolution, why)
    if slip:
        draft.put(fact.model_copy(update={"value": resolution}))
        draft.reading.flag("suspicious-magnitude", f"{path}: {why}")
