"""What the nodes of any DOT graph say: operator, device, dims, role, repetition (labels, attributes, clusters)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tools.dag.labels import (
    ALL_DEVICES,
    RECORDS,
    Dims,
    PortFacts,
    attribute_ports,
    devices_in,
    index_set,
    layers_in,
    module_of,
    num_layers_in,
    operator_of,
    plain,
    ports_in,
    record_text,
    repeats_in,
    repeats_of,
    sections,
    words,
)
from tools.dag.parse import DotEdge, DotGraph, DotNode


@dataclass(slots=True)
class NodeFacts:
    id: str
    line: int
    text: str
    operator: str
    kind: str
    """compute, comm, routing, io, or unknown."""
    shape: str
    inputs: tuple[PortFacts, ...] | None
    outputs: tuple[PortFacts, ...] | None
    whole: dict[str, str]
    devices: frozenset[int] | None
    everywhere: bool
    """The label says "all GPUs"."""
    on_label: bool
    """The device is named on the node itself, not only by its cluster."""
    module: str
    repeats: int | None
    layers: frozenset[int]
    """Layers it stands for: the attribute `layer_indices`, else a range in its module path."""
    cluster: str | None
    attrs: dict[str, str]


@dataclass(slots=True)
class View:
    """A graph with everything the rules ask about it."""

    graph: DotGraph
    nodes: dict[str, NodeFacts]
    preds: dict[str, list[str]]
    succs: dict[str, list[str]]
    in_edges: dict[str, list[DotEdge]]
    out_edges: dict[str, list[DotEdge]]

    def edges_from(self, node: str) -> list[DotEdge]:
        return self.out_edges[node]


def view(graph: DotGraph) -> View:
    nodes = {n.id: _node_facts(n, graph) for n in graph.nodes.values()}
    v = View(
        graph, nodes, {n: [] for n in nodes}, {n: [] for n in nodes}, {n: [] for n in nodes}, {n: [] for n in nodes}
    )
    for e in graph.edges:
        v.preds[e.dst].append(e.src)
        v.succs[e.src].append(e.dst)
        v.in_edges[e.dst].append(e)
        v.out_edges[e.src].append(e)
    return v


def _node_facts(n: DotNode, graph: DotGraph) -> NodeFacts:
    text = plain(n.attrs.get("label", n.id), n.id)
    if n.attrs.get("shape", "").lower() in RECORDS:
        text = record_text(text)
    module = n.attrs.get("module") or module_of(text)
    operator = operator_of(n.attrs.get("operator") or text, module) or n.id.strip() or "?"
    devices, everywhere, on_label = _devices(n, text, graph)
    said = sections(text)
    inputs, outputs, whole = (said.get(k) or attribute_ports(n.attrs, k) for k in ("input", "output", "global"))
    layers = index_set(n.attrs.get("layer_indices", "")) or layers_in(module)
    return NodeFacts(
        n.id, n.line, text, operator, _kind(n, operator), _shape(n.attrs), inputs, outputs,
        {d: size for p in whole or () for d, size in p.dims if d}, devices,
        everywhere, on_label, module, _repeats(n, text), layers, n.cluster, n.attrs,
    )  # fmt: skip


def _shape(attrs: dict[str, str]) -> str:
    """The shape as drawn: a skewed polygon of four sides is a parallelogram."""
    shape = attrs.get("shape", "ellipse").lower()
    if shape == "polygon":
        if attrs.get("sides", "4") != "4":
            return shape
        return "parallelogram" if attrs.get("skew", "0").strip("-0.") else "box"
    return shape


# ------------------------------------------------------------------------ devices


_PORT_LINES = re.compile(
    r"^\s*(?:input|output)\b.*?(?=^\s*(?:GPU|device|Global|Weights|Cache)\b|\Z)",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)


def _devices(n: DotNode, text: str, graph: DotGraph) -> tuple[frozenset[int] | None, bool, bool]:
    # Tensor names such as "x(GPU 3)" name members of a group, not the node's place.
    where = _PORT_LINES.sub("", text)
    if beside := n.attrs.get("xlabel", ""):
        text, where = (f"{t}\n{plain(beside)}" for t in (text, where))  # drawn next to the node: it says this too
    if ALL_DEVICES.search(text) or any(n.attrs.get(k, "") in ("all", "all GPUs") for k in _DEVICE_KEYS):
        return None, True, True
    found = devices_in(where) or devices_in(text)
    if found:
        return found, False, True
    for key in _DEVICE_KEYS:
        if n.attrs.get(key) and index_set(n.attrs[key]):
            return index_set(n.attrs[key]), False, True
    found = _cluster_devices(graph, n.cluster)
    return found, False, False


_DEVICE_KEYS = ("gpu", "gpus", "device", "devices", "rank", "ranks", "npu")


def _cluster_devices(graph: DotGraph, cluster: str | None) -> frozenset[int] | None:
    """Devices of the innermost cluster that names some."""
    while cluster is not None:
        c = graph.clusters[cluster]
        found = (
            index_set(c.attrs.get("gpu", ""))
            or devices_in(plain(c.attrs.get("label", "")))
            or devices_in(c.name.replace("_", " "))
        )
        if found:
            return found
        cluster = c.parent
    return None


def lane_of(v: View, node: NodeFacts) -> frozenset[int] | None:
    return _cluster_devices(v.graph, node.cluster)


# ------------------------------------------------------------------------ kind

COMM = re.compile(
    r"all[\s_-]?reduce|all[\s_-]?gather|reduce[\s_-]?scatter|all[\s_-]?to[\s_-]?all|\ba2a\b|\bsend\b|\brecv\b|\breceive\b|\bp2p\b|\bbroadcast\b|"
    r"\bcommunication\b|\btransfer\b|\bcomm\b|ring[\s_-]?(?:exchange|shift)|\bnccl\b|\bhccl\b|通信|发送|接收|传输|广播|规约|归约|全收集|全交换",
    re.IGNORECASE,
)  # fmt: skip
ROUTING = re.compile(
    r"\bsplit(?:ter)?\b|\bslice\b|\baggregat\w*|\bconcat\w*|\bdispatch\b|\bcombine\b|\brout(?:e|er|ing)\b(?!.*(?:matmul|linear|logits))|top[\s_-]?k|"
    r"\bgate\b(?!.*(?:proj|matmul|linear|softmax|sigmoid|score|mul|up))|\bscatter\b|"
    r"\bgather\b(?!.*(?:embed|lookup|rows|index))|\bpartition\b|\bmerge\b|聚合|切分|拆分|分割|分发|汇总|合并|路由", re.IGNORECASE,
)  # fmt: skip
IO = re.compile(
    r"\b(?:total|model|final|global)[\s_-]*(?:input|output)\b|总输入|总输出|模型输入|模型输出|"
    r"^\s*(?:input|output)s?(?:\s+(?:tokens?|ids|token ids|sequences?|text|prompts?|data|batch|results?))?\s*$",
    re.IGNORECASE,
)
ROLE_KIND = {
    "comm": "comm",
    "routing": "routing",
    "io": "io",
    "compute": "compute",
    "attention": "compute",
    "moe": "compute",
}


def _kind(n: DotNode, operator: str) -> str:
    if n.attrs.get("role") in ROLE_KIND:
        return ROLE_KIND[n.attrs["role"]]
    head = words(operator.split("\n")[0])
    head = re.split(r"\b(?:input|output)\s*[:=]", head, flags=re.IGNORECASE)[0] or head
    head = _PLACE_FIRST.sub("", head) or head
    # "Input tokens (all GPUs)": what stands in brackets at the end does not change what the node is.
    if IO.search(head) or IO.search(re.sub(r"\s*[(（][^()（）]*[)）]\s*$|\s+(?:on\s+)?all\b.*", "", head)):
        return "io"
    if COMM.search(head):
        return "comm"
    # Only of a head that names no operator before its brackets do they tell: "Q Projection (dim slice 0)" projects.
    bare = _BRACKETED.sub(" ", head)
    if ROUTING.search(head if not _COMPUTES.search(bare) else bare):
        return "routing"
    return "compute"


_PLACE_FIRST = re.compile(
    r"^\s*[\[(【](?:all\s+)?(?:GPU|NPU|cuda|device|rank|card|卡|设备)s?[^\])】]*[\])】]\s*", re.IGNORECASE
)
_BRACKETED = re.compile(r"[(（][^()（）]*[)）]")
_COMPUTES = re.compile(
    r"\bproj|\blinear\b|matmul|gemm|softmax|norm\b|投影|线性|\bembedding\b|\bgelu\b|\bsilu\b", re.IGNORECASE
)


RESIDUAL = re.compile(r"\bresidual|\bresid\b|残差|\badd\s*(?:&|and|\+)\s*norm", re.IGNORECASE)


def is_residual(n: NodeFacts) -> bool:
    head = words(n.operator)
    return bool(RESIDUAL.search(head)) and not re.search(r"\bscale\b", head)


GATE = re.compile(
    r"top[\s_-]?k|\bgate\b.*\bselect|\bgating\b|\brouter\b(?!.*(?:matmul|linear|logits|softmax|proj))|\bgate\b\s*$|门控",
    re.IGNORECASE,
)
TOP_K = re.compile(r"top[\s_-]?k", re.IGNORECASE)


def is_gate(n: NodeFacts) -> bool:
    """It chooses experts, whatever shape it is drawn with."""
    head = words(n.operator)
    return (
        n.kind in ("compute", "routing")
        and bool(GATE.search(head))
        and (bool(TOP_K.search(head)) or not re.search(r"gate[ _]?proj|\b(?:bias|add|scores?)\b", head))
    )


def is_dashed(attrs: dict[str, str]) -> bool:
    return "dashed" in attrs.get("style", "")


# ------------------------------------------------------------------------ repetition


def _repeats(n: DotNode, text: str) -> int | None:
    stated = next((n.attrs[k] for k in ("repeats", "repeat", "repetitions") if n.attrs.get(k, "").isdigit()), None)
    return int(stated) if stated else repeats_of(text)


def cluster_repeats(v: View, cluster: str | None) -> Iterable[tuple[str, int, frozenset[int]]]:
    """(cluster, repeats, layers) of every enclosing cluster that states a repetition."""
    while cluster is not None:
        c = v.graph.clusters[cluster]
        label = plain(c.attrs.get("label", ""))
        n = int(c.attrs["repeats"]) if c.attrs.get("repeats", "").isdigit() else repeats_in(label)
        if n is not None:
            yield cluster, n, index_set(c.attrs.get("layer_indices", "")) or layers_in(label)
        cluster = c.parent


def num_layers(v: View) -> int | None:
    """Layers of the model as the graph states them: an attribute, else its title."""
    for key in ("num_hidden_layers", "num_layers", "layers", "n_layers"):
        if v.graph.attrs.get(key, "").isdigit():
            return int(v.graph.attrs[key])
    return num_layers_in(plain(v.graph.attrs.get("label", "")))


__all__ = [
    "COMM",
    "TOP_K",
    "Dims",
    "NodeFacts",
    "PortFacts",
    "View",
    "cluster_repeats",
    "devices_in",
    "index_set",
    "is_dashed",
    "is_gate",
    "is_residual",
    "lane_of",
    "num_layers",
    "plain",
    "ports_in",
    "repeats_in",
    "view",
    "words",
]
