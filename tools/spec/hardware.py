"""Devices, and clusters of them. SI base units: bytes, bytes/s, FLOP/s (dense), seconds, watts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tools.spec.base import Frozen

Confidence = Literal["high", "medium", "low"]


class Device(Frozen):
    """One rank: a GPU, a GCD of an MI250X, a die of a 910C. Bandwidths are per device, one direction; FLOP/s are dense."""

    id: str
    name: str
    vendor: str
    arch: str
    memory_bytes: float
    """Nominal, decimal, as printed on the box (H100: 80e9)."""
    memory_usable_bytes: float
    """What the driver reports as total (H100: 79.6 GiB)."""
    memory_bandwidth: float
    peak_flops: dict[str, float]
    """dense peak by dtype: bf16, fp16, fp8, int8, fp4; a dtype that is absent has no native matrix path."""
    sparse_multiplier: float = 1.0
    """What the headline figures on the datasheet are multiplied by (2.0 = printed with sparsity)."""
    link: str
    """Scale-up link: NVLink4, PCIe4, HCCS, xGMI …"""
    link_bandwidth: float
    link_domain: int
    """Devices joined by the scale-up link at full bandwidth (1 = none: PCIe only)."""
    link_topology: Literal["switched", "mesh", "torus", "none"] = "switched"
    """mesh: `link_bandwidth` is the sum over links to the other devices of the domain; one pair has its share only."""
    devices_per_node: int = 8
    """Of the usual host (a GB200 tray: 4; an Ascend A3 server: 16 dies)."""
    pcie_bandwidth: float
    network_bandwidth: float
    """Typical inter-node NIC, per device, one direction."""
    power_watts: float | None = None
    sources: tuple[str, ...] = ()
    confidence: Confidence = "high"
    notes: str = ""


class Cluster(Frozen):
    """Devices the plan may use. `num_devices` None means unbounded ("ample, no limit")."""

    device: Device
    num_devices: int | None
    devices_per_node: int = 8
    memory_bytes: float
    """Usable per device: the catalogue's for a recognised device, else decimal as stated."""
    memory_bandwidth: float
    peak_flops: dict[str, float]
    mfu: float | None = None
    """User-stated compute efficiency; overrides the curves."""
    mbu: float | None = None
    """User-stated memory-bandwidth utilisation; overrides the curves."""
    intra_node_bandwidth: float
    inter_node_bandwidth: float
    link_domain: int = 8
    stated: tuple[str, ...] = ()
    """Names of the fields above that the user stated (rather than catalogue or assumption)."""
    assumed: tuple[str, ...] = ()

    @classmethod
    def of(cls, device: Device, num_devices: int | None, devices_per_node: int) -> Cluster:
        """`num_devices` of a catalogue device, everything from its datasheet."""
        return cls(
            device=device, num_devices=num_devices, devices_per_node=devices_per_node,
            memory_bytes=device.memory_usable_bytes, memory_bandwidth=device.memory_bandwidth,
            peak_flops=device.peak_flops, intra_node_bandwidth=device.link_bandwidth,
            inter_node_bandwidth=device.network_bandwidth, link_domain=device.link_domain,
        )  # fmt: skip

    @property
    def known_device(self) -> Device | None:
        """The device, unless the conditions gave only numbers: then no rule about a vendor or a generation applies."""
        return None if self.device.vendor == "unknown" else self.device

    @property
    def num_nodes(self) -> int | None:
        return None if self.num_devices is None else -(-self.num_devices // self.devices_per_node)


class Link(Frozen):
    """α–β of one topology level: seconds of latency per hop, bytes/s per device one direction."""

    level: Literal["device", "domain", "node", "network"]
    latency_s: float
    bandwidth: float
    provenance: str = Field(default="datasheet")
