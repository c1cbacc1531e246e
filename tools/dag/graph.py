"""What a deployment DAG consists of. Sizes are local (of that node's device) unless called global."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Literal

from tools.dag import runtime

Detail = Literal["full", "stage", "group", "schedule"]
Role = Literal["compute", "attention", "moe", "comm", "routing", "io"]
Shape = Literal["box", "ellipse", "parallelogram"]
Dims = tuple[tuple[str, int], ...]

SHAPES: Mapping[str, Shape] = {
    "compute": "box",
    "attention": "box",
    "moe": "box",
    "comm": "ellipse",
    "routing": "parallelogram",
    "io": "parallelogram",
}


@dataclass(frozen=True, slots=True)
class Port:
    """One tensor that enters or leaves a node, with its local dims in order."""

    tensor: str
    dims: Dims
    elem_bytes: float = 0.0
    """Bytes of one element under the strategy's dtypes; 0 where that is not known."""

    @property
    def bytes(self) -> float:
        return self.elem_bytes * prod(n for _, n in self.dims)

    def __str__(self) -> str:
        return f"{self.tensor}={dims_text(self.dims)}"


@dataclass(frozen=True, slots=True)
class DagNode:
    """One operator on one device, or one collective on one group of devices.

    `step` is shared by the copies of an operator on all devices; `row` orders steps topologically. `shards` says which
    part of each weight lies here: (weight, ((dim, first, end, length of the whole dim), …)).
    """

    id: str
    step: str
    row: int
    role: Role
    operator: str
    module: str
    kernel: str
    devices: tuple[int, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    device_text: str
    global_dims: Dims = ()
    notes: tuple[str, ...] = ()
    weights: tuple[Port, ...] = ()
    caches: tuple[Port, ...] = ()
    shards: tuple[tuple[str, tuple[tuple[str, int, int, int], ...]], ...] = ()
    lane: int | None = None
    """Position of the device's lane; None for what lies across lanes."""
    spans: tuple[int, ...] = ()
    """Lanes that a collective joins."""
    frame: str = ""
    repeats: int = 1
    layers: str = ""
    batch_items: tuple[tuple[int, int], ...] = ()
    """Range of batch items that each input port holds, one per member of a collective; [first, end)."""
    flops: float = 0.0
    """Of one execution on one device: 2 x the product of all dims of a matmul, masked positions included; else 0."""

    @property
    def shape(self) -> Shape:
        return SHAPES[self.role]

    @property
    def label(self) -> str:
        return runtime.label_of(
            self.operator, self.module, self.device_text, self.kernel, ports_text(self.inputs),
            ports_text(self.outputs),
            dims_text(self.global_dims) if self.global_dims else "", self.notes, ports_text(self.weights),
            ports_text(self.caches),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class DagEdge:
    """`tensor` as the consumer calls it; `lane` is the device whose shard it carries."""

    src: str
    dst: str
    tensor: str
    dims: Dims
    dashed: bool = False
    lane: int | None = None


@dataclass(frozen=True, slots=True)
class Lane:
    index: int
    title: str
    devices: tuple[int, ...]
    stage: int


@dataclass(frozen=True, slots=True)
class Frame:
    """A run of layers drawn once. `layers` are the model's layer indices that one body of it stands for."""

    key: str
    title: str
    repeats: int
    layers: tuple[int, ...]
    stage: int
    lanes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dag:
    title: str
    subtitle: str
    detail: Detail
    nodes: tuple[DagNode, ...]
    edges: tuple[DagEdge, ...]
    lanes: tuple[Lane, ...]
    frames: tuple[Frame, ...]
    attrs: Mapping[str, str] = field(default_factory=dict)
    """Graph attributes: model, strategy, phase, sizes, num_hidden_layers, num_devices, digest."""

    def node(self, node_id: str) -> DagNode:
        return next(n for n in self.nodes if n.id == node_id)


@lru_cache(maxsize=65536)
def dims_text(dims: Dims) -> str:
    """`[batch_size=8, heads=8]`"""
    return "[" + ", ".join(f"{d}={n}" for d, n in dims) + "]"


@lru_cache(maxsize=65536)
def ports_text(ports: tuple[Port, ...]) -> tuple[str, ...]:
    return tuple(str(p) for p in ports)
