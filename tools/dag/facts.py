"""What the nodes of any DOT graph say: operator, device, dims, role, repetition (labels, attributes, clusters)."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from tools.dag.parse import DotEdge, DotGraph, DotNode

Dims = tuple[tuple[str, str], ...]
"""(dim, length as written); the name is empty where a length has none."""


@dataclass(frozen=True, slots=True)
class PortFacts:
    tensor: str
    dims: Dims

    def __str__(self) -> str:
        return (
            f"{self.tensor}=" * bool(self.tensor) + "[" + ", ".join(f"{d}={n}" if d else n for d, n in self.dims) + "]"
        )


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
    module = _module(n, text)
    lines = (n.attrs.get("operator", "") + "\n" + text).splitlines()
    operator = next((x.strip() for x in lines if x.strip()), n.id.strip() or "?")
    operator = _head(operator[:MAX_HEAD], module)
    devices, everywhere, on_label = _devices(n, text, graph)
    body, whole = _ports(text)
    inputs, outputs = body
    return NodeFacts(
        n.id, n.line, text, operator, _kind(n, operator, text), n.attrs.get("shape", "ellipse").lower(), inputs,
        outputs, whole, devices,
        everywhere, on_label, module, _repeats(n, text), index_set(n.attrs.get("layer_indices", "")),
        n.cluster, n.attrs,
    )  # fmt: skip


# ------------------------------------------------------------------------ text

_TAG = re.compile(r"<[^<>]*>")
_BREAK = re.compile(r"<\s*(?:br|/tr|/p)\b[^<>]*>", re.IGNORECASE)


MAX_HEAD, MAX_INDICES = 300, 100_000
MAX_LABEL = 16_000
"""Characters of a label that are read; what people can see of one is less."""


@lru_cache(maxsize=65536)
def plain(label: str, name: str = "") -> str:
    """Text of a label: escapes and HTML resolved, one line per line, Markdown's escaped brackets freed."""
    if len(label) > MAX_LABEL:
        label = label[:MAX_LABEL] + (">" if label.startswith("<") else "")
    if label.startswith("<") and label.endswith(">"):
        label = html.unescape(_TAG.sub("", _BREAK.sub("\n", label[1:-1])))
    label = re.sub(r"\\[nlr]", "\n", label).replace("\\N", name)
    return label.replace("\\[", "[").replace("\\]", "]").replace("\\_", "_")


RECORDS = frozenset({"record", "mrecord"})
_FIELD = re.compile(r"<[^<>]*>|(?<!\\)[{}]")


def record_text(label: str) -> str:
    """Fields of a record label, one per line, without braces and port names."""
    fields = re.split(r"(?<!\\)\|", _FIELD.sub("", label))
    return re.sub(r"\\([{}|<>])", r"\1", "\n".join(f.strip() for f in fields if f.strip()))


_AFTER_HEAD = re.compile(
    r"(?<![\s.;,|(\[·@-])[\s.;,|(\[·@-]*(?:\bon\s+)?(?:\b(?:GPUs?|NPUs?|devices?|ranks?)\b\s*[:#=]?\s*\d|(?<![\w-])(?:input|in|输入)\s*(?:dim\w*|shapes?|维度)?\s*[:：=])",
    re.IGNORECASE,
)


def _head(line: str, module: str) -> str:
    """The operator in a line that goes on with module, device or dims."""
    if module and module in line[1:]:
        line = re.sub(rf"[\s<(\[]*{re.escape(module)}[\s>)\]]*", " ", line).strip() or line
    m = _AFTER_HEAD.search(line)
    return line[: m.start()] if m and m.start() > 2 else line


def index_set(text: str) -> frozenset[int]:
    """`0-3,8` → {0, 1, 2, 3, 8}"""
    out: set[int] = set()
    for part in re.findall(r"\d+(?:\s*(?:-|–|\.\.|~)\s*\d+)?", text):
        ends = [int(x) for x in re.findall(r"\d+", part)]
        if ends[-1] - ends[0] + len(out) < MAX_INDICES:
            out |= set(range(ends[0], ends[-1] + 1))
    return frozenset(out)


# ------------------------------------------------------------------------ devices

_NUMBERS = r"\d+(?:\s*(?:,|-|–|\.\.|~|/|&|and)\s*(?:GPU|NPU|rank|device)?[\s_]*\d+)*"
_DEVICE = re.compile(rf"(?:GPUs?|NPUs?|devices?|ranks?|cards?|卡)[\s_:#=\[({{-]*({_NUMBERS})", re.IGNORECASE)
_ALL = re.compile(r"\ball[\s_-]*(?:GPUs|NPUs|devices|ranks|cards)\b|全部\s*(?:GPU|卡)|所有\s*(?:GPU|卡)", re.IGNORECASE)


def devices_in(text: str) -> frozenset[int] | None:
    found: set[int] = set()
    for m in _DEVICE.finditer(text):
        found |= index_set(re.sub(r"(?i)GPU|NPU|rank|device|[\s_]", "", m[1]))
    return frozenset(found) if found else None


def _devices(n: DotNode, text: str, graph: DotGraph) -> tuple[frozenset[int] | None, bool, bool]:
    # Tensor names such as "x(GPU 3)" name members of a group, not the node's place.
    where = re.sub(
        r"(?ms)^\s*(?:input|output)\b.*?(?=^\s*(?:GPU|device|Global|Weights|Cache)\b|\Z)", "", text, flags=re.IGNORECASE
    )
    if _ALL.search(text) or _ALL.search("all GPUs" if n.attrs.get("gpu", "") == "all GPUs" else ""):
        return None, True, True
    found = devices_in(where) or devices_in(text)
    if found:
        return found, False, True
    for key in ("gpu", "gpus", "device", "devices", "rank"):
        if n.attrs.get(key) and index_set(n.attrs[key]):
            return index_set(n.attrs[key]), False, True
    cluster = n.cluster
    while cluster is not None:
        c = graph.clusters[cluster]
        found = devices_in(plain(c.attrs.get("label", ""))) or devices_in(c.name.replace("_", " "))
        if found:
            return found, False, False
        cluster = c.parent
    return None, False, False


# ------------------------------------------------------------------------ dims

_SECTION = re.compile(
    r"(?P<key>\binput|\boutput|\bglobal|\bin|\bout|输入|输出|\bweights?|\bcaches?|"
    r"\bparams?|\bexpected|\bpartial|\bmodule|\bkernel|\bdevices?|\bgpus?|\bkv cache)"
    r"(?:[ _-]*(?:dim(?:ension)?s?|shapes?|tensors?|维度))?\s*[:：=]\s*",
    re.IGNORECASE,
)
_BRACKET = re.compile(
    r"(?:(?<![\w.@·#\-])(?P<tensor>[\w.@·#\-]+(?:\([^()]*\))?)\s*[=:]?\s*)?(?:\[(?P<dims>[^\[\]]*)\]|\((?P<round>[^\[\]()]*[=,][^\[\]()]*)\))"
)
_PAIR = re.compile(r"([A-Za-z_]\w*)\s*[=:]\s*([^,;\s\]]+)")


@lru_cache(maxsize=65536)
def _ports(text: str) -> tuple[tuple[tuple[PortFacts, ...] | None, tuple[PortFacts, ...] | None], dict[str, str]]:
    marks = list(_SECTION.finditer(text))
    parts: dict[str, tuple[PortFacts, ...]] = {}
    for m, following in zip(marks, [*marks[1:], None], strict=False):
        key = {"in": "input", "out": "output", "输入": "input", "输出": "output"}.get(
            m["key"].lower(), m["key"].lower()
        )
        end = following.start() if following else len(text)
        if key not in ("input", "output", "global") or key in parts:
            continue
        if ports := ports_in(text[m.end() : end], one_line=key == "output" and following is None):
            parts[key] = ports
    whole = {d: n for p in parts.get("global", ()) for d, n in p.dims if d}
    return (parts.get("input"), parts.get("output")), whole


def ports_in(text: str, *, one_line: bool = False) -> tuple[PortFacts, ...]:
    """`q=[batch_size=8, d_k=128]; [hidden=64]` → two ports; `batch_size=8, hidden=64` without brackets → one."""
    found = [PortFacts(m["tensor"] or "", _dims(m["dims"] or m["round"] or "")) for m in _BRACKET.finditer(text)]
    if found:
        return tuple(p for p in found if p.dims)
    first = text.strip().split("\n")[0] if one_line else text
    pairs = tuple((d, n) for d, n in _PAIR.findall(first))
    return (PortFacts("", pairs),) if pairs else ()


def _dims(text: str) -> Dims:
    out = []
    for part in re.split(r"[,;]", text):
        if not part.strip():
            continue
        name, eq, value = part.partition("=") if "=" in part else part.partition(":")
        out.append((name.strip(), value.strip()) if eq else ("", part.strip()))
    return tuple(out)


# ------------------------------------------------------------------------ kind

COMM = re.compile(
    r"all[\s_-]?reduce|all[\s_-]?gather|reduce[\s_-]?scatter|all[\s_-]?to[\s_-]?all|\ba2a\b|\bsend\b|\brecv\b|\breceive\b|\bp2p\b|\bbroadcast\b|"
    r"\bcommunication\b|\btransfer\b|\bcomm\b|ring[\s_-]?(?:exchange|shift)|\bnccl\b|通信", re.IGNORECASE,
)  # fmt: skip
ROUTING = re.compile(
    r"\bsplit(?:ter)?\b|\bslice\b|\baggregat\w*|\bconcat\w*|\bdispatch\b|\bcombine\b|\brout(?:e|er|ing)\b(?!.*(?:matmul|linear|logits))|top[\s_-]?k|"
    r"\bgate\b(?!.*(?:proj|matmul|linear|softmax|sigmoid|score|mul|up))|\bscatter\b|"
    r"\bpartition\b|\bmerge\b|聚合|切分|路由", re.IGNORECASE,
)  # fmt: skip
IO = re.compile(
    r"\b(?:total|model|final|global)[\s_-]*(?:input|output)\b|^\s*(?:input|output)s?\s*$|总输入|总输出", re.IGNORECASE
)
ROLE_KIND = {
    "comm": "comm",
    "routing": "routing",
    "io": "io",
    "compute": "compute",
    "attention": "compute",
    "moe": "compute",
}


def words(text: str) -> str:
    return re.sub(r"[_@·]+", " ", text)


def _kind(n: DotNode, operator: str, text: str) -> str:
    if n.attrs.get("role") in ROLE_KIND:
        return ROLE_KIND[n.attrs["role"]]
    head = words(operator.split("\n")[0])
    head = re.split(r"\b(?:input|output)\s*[:=]", head, flags=re.IGNORECASE)[0] or head
    if IO.search(head):
        return "io"
    if COMM.search(head):
        return "comm"
    if ROUTING.search(head):
        return "routing"
    return "compute"


def _module(n: DotNode, text: str) -> str:
    if n.attrs.get("module"):
        return n.attrs["module"]
    said = re.search(r"(?:\bmodule|\bpath|模块)\s*[:：=]\s*(\S+)", text, re.IGNORECASE)
    text = re.split(r"\b(?:input|weights?)\b(?=\s*(?:dim\w*\s*)?[:=])", text, maxsplit=1, flags=re.IGNORECASE)[0]
    m = said or re.search(r"\b([a-z_]\w*(?:\.[\w\-\[\]{}*,]+)+)", text)
    return m[1] if m else ""


# ------------------------------------------------------------------------ repetition

_TIMES = re.compile(
    r"[×✕]\s*(\d+)(?!\d|\s*(?:identical\s+)?replica)|\b(\d+)\s*[×✕](?!\s*\d)|\bx\s?(\d+)\b|\brepeat(?:s|ed)?\s*[:=]?\s*(\d+)|"
    r"\b(\d+)\s*(?:times|repetitions)\b|重复\s*(\d+)", re.IGNORECASE,
)  # fmt: skip


def repeats_in(text: str) -> int | None:
    m = _TIMES.search(text)
    return int(next(g for g in m.groups() if g)) if m else None


def _repeats(n: DotNode, text: str) -> int | None:
    stated = n.attrs.get("repeats", "")
    return int(stated) if stated.isdigit() else repeats_in(text.split("\n")[0])


def lane_of(v: View, node: NodeFacts) -> frozenset[int] | None:
    """Devices of the innermost cluster that names some."""
    cluster = node.cluster
    while cluster is not None:
        c = v.graph.clusters[cluster]
        found = (
            index_set(c.attrs.get("gpu", ""))
            or devices_in(plain(c.attrs.get("label", "")))
            or devices_in(c.name.replace("_", " "))
        )
        if found:
            return frozenset(found)
        cluster = c.parent
    return None


def cluster_repeats(v: View, cluster: str | None) -> Iterable[tuple[str, int, frozenset[int]]]:
    """(cluster, repeats, layers) of every enclosing cluster that states a repetition."""
    while cluster is not None:
        c = v.graph.clusters[cluster]
        label = plain(c.attrs.get("label", ""))
        n = int(c.attrs["repeats"]) if c.attrs.get("repeats", "").isdigit() else repeats_in(label)
        if n is not None:
            yield cluster, n, index_set(c.attrs.get("layer_indices", "")) or _layers_in(label)
        cluster = c.parent


def _layers_in(label: str) -> frozenset[int]:
    m = re.search(
        r"layers?\s*:?\s*(\d+\s*(?:-|–|~|\.\.|to)\s*\d+)|第?\s*(\d+\s*(?:-|–|~|到|至)\s*\d+)\s*层", label, re.IGNORECASE
    )
    return index_set(re.sub("to|到|至", "-", m[1] or m[2])) if m else frozenset()
