"""What the nodes of any DOT graph say: operator, device, dims, role, repetition (labels, attributes, clusters).

A file's own conventions are read from the file before its nodes are judged: what it calls its devices (`places.learn`),
whether module paths may be single words, which shapes it draws communication and routing with.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tools.dag.alike import by_form
from tools.dag.conventions import in_usual_words, own_keys
from tools.dag.kinds import BRACKETED, COMM, COMPUTES, ELLIPSES, GATE, RECTANGLES, RESIDUAL, THINGS, TOP_K, kind_of
from tools.dag.labels import (
    RECORDS,
    Dims,
    Label,
    PortFacts,
    attribute_key,
    attribute_ports,
    layers_in,
    module_of,
    num_layers_in,
    operator_of,
    plain,
    read_label,
    record_text,
    repeats_in,
    repeats_of,
    tidy,
    words,
)
from tools.dag.parse import DotEdge, DotGraph, DotNode
from tools.dag.places import MOST, USUAL, Places, hosts_in, index_set, learn
from tools.dag.ports import only_ports, ports_in, readable


@dataclass(slots=True)
class NodeFacts:
    id: str
    line: int
    text: str
    operator: str
    kind: str
    """compute, comm, routing or io."""
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
    sure: bool = True
    """Words or a role say what it is; else only the drawing does."""
    lists: int = 0
    """Lists of dims in the label that no word says to go in or to come out."""


@dataclass(slots=True)
class View:
    """A graph with everything the rules ask about it."""

    graph: DotGraph
    nodes: dict[str, NodeFacts]
    preds: dict[str, list[str]]
    succs: dict[str, list[str]]
    in_edges: dict[str, list[DotEdge]]
    out_edges: dict[str, list[DotEdge]]
    places: Places = USUAL
    lanes: dict[str, frozenset[int] | None] = field(default_factory=dict)
    """Devices of each cluster: its own, else those of the innermost one around it that names some."""
    undefined: frozenset[str] = frozenset()
    """Nodes that only edges name, where others have statements of their own: often misspelt names."""

    def edges_from(self, node: str) -> list[DotEdge]:
        return self.out_edges[node]


def view(graph: DotGraph) -> View:
    drawn = _without_residue(graph)
    said = {n.id: _read(n) for n in drawn}
    keys = _say_in_usual_words(graph, said)
    lanes = [t for c in graph.clusters.values() for t in (tidy(plain(c.attrs.get("label", ""))), c.name)]
    places = learn(["\n".join((*s.label.free, s.label.said.get("device", ""))) for s in said.values()], lanes)
    if own := [k for k, means in keys.items() if means == "Device" and len(k) > 1]:
        places = Places(own)
    if span := _devices_per_host(graph, places):
        places = Places(places.words)
        places.span = span
    of_cluster = _lanes(graph, places)
    nodes = {n.id: _node_facts(n, said[n.id], places, of_cluster, graph) for n in drawn}
    v = _joined(graph, nodes)
    v.places, v.lanes = places, of_cluster
    if any(n.declared for n in drawn):
        v.undefined = frozenset(n.id for n in drawn if not n.declared)
    _one_word_modules(v, said)
    _undirected_dims(v)
    _ends_by_name(v)
    _kinds_by_drawing(v)
    return v


def wiring(graph: DotGraph) -> View:
    """What is joined to what, without reading any label."""
    blank = frozenset[int]()
    return _joined(graph, {
        n.id: NodeFacts(n.id, n.line, "", n.id, "", "", None, None, {}, None, False, False, "", None, blank, n.cluster, n.attrs)
        for n in graph.nodes.values()
    })  # fmt: skip


def _joined(graph: DotGraph, nodes: dict[str, NodeFacts]) -> View:
    v = View(
        graph, nodes, {n: [] for n in nodes}, {n: [] for n in nodes}, {n: [] for n in nodes}, {n: [] for n in nodes}
    )
    for e in graph.edges:
        v.preds[e.dst].append(e.src)
        v.succs[e.src].append(e.dst)
        v.in_edges[e.dst].append(e)
        v.out_edges[e.src].append(e)
    return v


def _without_residue(graph: DotGraph) -> list[DotNode]:
    """The nodes without bare words that a broken statement leaves behind: told once, as the broken statement."""
    broken = {p.line for p in graph.problems}
    if not broken:
        return list(graph.nodes.values())
    joined = {end for e in graph.edges for end in (e.src, e.dst)}
    return [n for n in graph.nodes.values() if n.line not in broken or "label" in n.attrs or n.id in joined]


@dataclass(slots=True)
class _Said:
    text: str
    label: Label
    beside: Label
    """What attributes and tooltips say that the label does not."""


_ESCAPED = re.compile(r"\\([{}|<>\"])")
_TIPS = ("tooltip", "comment")


def _read(n: DotNode) -> _Said:
    text = plain(n.attrs.get("label", n.id), n.id)
    if n.attrs.get("shape", "").lower() in RECORDS or (text.startswith("{") and text.endswith("}") and "|" in text):
        text = record_text(text)
    elif "\\" in text:
        text = _ESCAPED.sub(r"\1", text)
    if beside := n.attrs.get("xlabel", ""):
        text = f"{text}\n{plain(beside)}"  # drawn next to the node: it says this too
    text = tidy(text)
    told = [tidy(plain(n.attrs[k])) for k in _TIPS if k in n.attrs]
    told += [f"{k.replace('_', ' ')}: {plain(x)}" for k, x in n.attrs.items() if attribute_key(k)]
    return _Said(text, read_label(text), read_label("\n".join(told)) if told else _NOTHING)


_NOTHING = Label()


def _say_in_usual_words(graph: DotGraph, said: dict[str, _Said]) -> dict[str, str]:
    """Where most labels do not say their dims in words that everybody uses, the file's own keys are looked for."""
    silent = sum(not s.label.ports and not s.beside.ports for s in said.values())
    if silent <= MOST * len(said):
        return {}
    keys = own_keys({i: s.text for i, s in said.items()}, ((e.src, e.dst) for e in graph.edges))
    for s in said.values() if keys else ():
        s.label = read_label(in_usual_words(s.text, keys))
    return keys


def _node_facts(
    n: DotNode, said: _Said, places: Places, lanes: dict[str, frozenset[int] | None], graph: DotGraph
) -> NodeFacts:
    label, beside = said.label, said.beside
    module = (
        n.attrs.get("module")
        or module_of(label)
        or (module_of(beside) if beside is not _NOTHING else "")
        or (module_of(read_label(n.id)) if "label" in n.attrs and _names_module(n.id) else "")
    )
    named = n.attrs.get("operator") or (beside.said.get("operator", "") if "label" not in n.attrs else "")
    operator = named or operator_of(label, module, places) or n.id.strip() or "?"
    devices, everywhere, on_label = _devices(n, said, places, lanes, graph)
    inputs, outputs, whole = _ports(n, said)
    layers = index_set(n.attrs.get("layer_indices", "")) or (layers_in(module) if module else frozenset())
    repeats = _repeats(n, said)
    if len(layers) == (repeats or 0) + 1 and ":" in module:
        layers -= {max(layers)}  # a Python slice ends before its last number
    return NodeFacts(
        n.id, n.line, said.text, operator, kind_of(n, operator, module), _shape(n.attrs), inputs, outputs,
        {d: size for p in whole for d, size in p.dims if d} if whole else {}, devices,
        everywhere, on_label, module, repeats, layers, n.cluster, n.attrs, lists=_undirected_lists(label),
    )  # fmt: skip


def _undirected_lists(label: Label) -> int:
    return sum(len(ports_in(s)) for s in label.free if only_ports(s)) if not label.ports else 0


def _ports(n: DotNode, said: _Said) -> list[tuple[PortFacts, ...] | None]:
    """Ports of input, output and whole sizes: the label's, else an attribute's or a tooltip's."""
    if said.beside is _NOTHING:
        return [readable(said.label.ports.get(k)) for k in _PORTS] if said.label.ports else [None, None, None]
    return [
        readable(said.label.ports.get(k) or attribute_ports(n.attrs, k) or said.beside.ports.get(k)) for k in _PORTS
    ]


_PORTS = ("input", "output", "global")


@by_form
def _names_module(name: str) -> bool:
    return module_of(read_label(name)) != ""


FEW = 0.1


def _undirected_dims(v: View) -> None:
    """Where hardly a node has dims that come out, but most have several lists that go in (or the other way round), the word
    for the other direction is not known here, and what was read is both."""
    nodes = v.nodes.values()
    for one, other in (("inputs", "outputs"), ("outputs", "inputs")):
        known = [n for n in nodes if getattr(n, one)]
        several = sum(len(getattr(n, one)) > 1 for n in known)
        if sum(bool(getattr(n, other)) for n in nodes) <= FEW * len(nodes) and several > MOST * len(nodes):
            for n in known:
                setattr(n, one, None)


_ONE_WORD = re.compile(r"[a-z_][a-z0-9_]*(?:/[a-z0-9_]+)?\Z")


def _one_word_modules(v: View, said: dict[str, _Said]) -> None:
    """Where most nodes carry a path, a single word beside the operator is one too: `sampler`, `head`."""
    without = [n for n in v.nodes.values() if not n.module]
    if len(without) > MOST * len(v.nodes):
        return
    for n in without:
        free = (s.strip("[]()<>@ ") for s in (*said[n.id].label.free, *said[n.id].beside.free))
        n.module = next((s for s in free if _ONE_WORD.match(s) and s != n.operator and not v.places.find(s)), "")


def _shape(attrs: dict[str, str]) -> str:
    """The shape as drawn: a skewed polygon of four sides is a parallelogram."""
    shape = attrs.get("shape", "ellipse").lower()
    if shape == "polygon":
        if attrs.get("sides", "4") != "4":
            return shape
        return "parallelogram" if attrs.get("skew", "0").strip("-0.") else "box"
    if shape in ("plaintext", "plain", "none") and "<table" in attrs.get("label", "")[:400].lower():
        return "box"  # the table draws the rectangle
    return shape


# ------------------------------------------------------------------------ devices

_DEVICE_KEYS = ("gpu", "gpus", "device", "devices", "rank", "ranks", "npu")
_ALL = re.compile(
    r"[\"'\[({]?(?:(?:all|everywhere|every|global)\b|\*|全部|所有|tou(?:te)?s\b|todos\b|todas\b|alle\b)", re.IGNORECASE
)


def _devices(
    n: DotNode, said: _Said, places: Places, lanes: dict[str, frozenset[int] | None], graph: DotGraph
) -> tuple[frozenset[int] | None, bool, bool]:
    # Tensor names such as "x(GPU 3)" name members of a group, not the node's place: only what stands outside the dims counts.
    for label in (said.label,) if said.beside is _NOTHING else (said.label, said.beside):
        stated = label.said.get("device", "")
        where = "\n".join((*label.free, stated)) if stated or len(label.free) != 1 else label.free[0]
        if places.everywhere(where) or (stated and _ALL.match(stated)):
            return None, True, True
        if found := (places.value(stated) if stated else None) or places.find(where):
            if places.span and not hosts_in(where):
                found = places.on_hosts(found, _hosts(graph, n.cluster))
            return found, False, True
    attributes = [n.attrs[k] for k in _DEVICE_KEYS if k in n.attrs] if n.attrs else ()
    if any(x in ("all", "all GPUs") for x in attributes):
        return None, True, True
    if found := places.find(said.text):
        return found, False, True
    for stated in attributes:
        if found := index_set(stated):
            return found, False, True
    return lanes.get(n.cluster or ""), False, False


def _lanes(graph: DotGraph, places: Places) -> dict[str, frozenset[int] | None]:
    """Devices of each cluster: named by itself, else by the innermost one around it that names some."""
    out: dict[str, frozenset[int] | None] = {}
    for c in graph.clusters.values():  # a cluster comes after the one it lies in
        label = tidy(plain(c.attrs.get("label", "")))
        stated = read_label(label).said.get("device", "") if label else ""
        own = (
            index_set(c.attrs.get("gpu", ""))
            or places.find(label)
            or (places.value(stated) if stated else None)
            or places.find(c.name.replace("_", " "))
        )
        out[c.name] = places.on_hosts(own, _hosts(graph, c.name)) if own else out.get(c.parent or "")
    return out


def _hosts(graph: DotGraph, cluster: str | None) -> frozenset[int]:
    """Hosts that the innermost cluster around says."""
    while cluster is not None:
        c = graph.clusters[cluster]
        if found := hosts_in(f"{tidy(plain(c.attrs.get('label', '')))}\n{c.name.replace('_', ' ')}"):
            return found
        cluster = c.parent
    return frozenset()


def _devices_per_host(graph: DotGraph, places: Places) -> int:
    """Above 0 where lanes of several hosts name the same devices: every host counts its own from 0."""
    on: dict[int, set[int]] = {}
    for c in graph.clusters.values():
        named = places.find(tidy(plain(c.attrs.get("label", "")))) or places.find(c.name.replace("_", " "))
        for d in named or ():
            on.setdefault(d, set()).update(_hosts(graph, c.name))
    return max(on) + 1 if any(len(h) > 1 for h in on.values()) else 0


def lane_of(v: View, node: NodeFacts) -> frozenset[int] | None:
    return v.lanes.get(node.cluster or "")


def devices_in(text: str) -> frozenset[int] | None:
    """Devices that a text names in the usual words."""
    return USUAL.find(text)


# ------------------------------------------------------------------------ kind


_END = {"preds": re.compile(r"\binputs?\b", re.IGNORECASE), "succs": re.compile(r"\boutputs?\b", re.IGNORECASE)}


def _ends_by_name(v: View) -> None:
    """What nothing leads to and is called input, of whatever (`Layer 0 MLP Input`), is where the graph begins; so its end."""
    for side, word in _END.items():
        for n in v.nodes.values():
            joined = v.succs[n.id] or v.preds[n.id]
            if joined and not getattr(v, side)[n.id] and "role" not in n.attrs and n.kind in ("", "compute"):
                head = words(n.operator)
                if word.search(head) and not COMPUTES.search(THINGS.sub(" ", head)):
                    n.kind = "io"


def _kinds_by_drawing(v: View) -> None:
    """Words that nobody here knows: then the file's drawing says what the node is."""
    drawn: dict[str, Counter[str]] = defaultdict(Counter)
    for n in v.nodes.values():
        if n.kind:
            drawn[n.shape][n.kind] += 1
    boxes = sum(c["compute"] for s, c in drawn.items() if s in RECTANGLES)
    rounds = sum(c["compute"] for s, c in drawn.items() if s in ELLIPSES)
    for n in v.nodes.values():
        if not n.kind:
            n.sure = False
            n.kind = _kind_by_drawing(v, n, drawn[n.shape])
        elif n.kind in ("compute", "routing") and n.shape in ELLIPSES and boxes > rounds and _joins(v, n):
            # "Ring sum (attention)", drawn as communication: its words are not all known here.
            n.sure, n.kind = False, "comm"


def _joins(v: View, n: NodeFacts) -> bool:
    """It stands between nodes and on several devices, and its words name no operator of one device."""
    several = (n.everywhere or len(n.devices or ()) > 1) and not COMPUTES.search(THINGS.sub(" ", words(n.operator)))
    return several and "role" not in n.attrs and bool(v.preds[n.id] and v.succs[n.id])


def _kind_by_drawing(v: View, n: NodeFacts, alike: Counter[str]) -> str:
    """What is drawn in the same way is the same, where the file's words say so; else what the shape usually means."""
    if n.shape == "parallelogram":
        return "routing" if v.preds[n.id] and v.succs[n.id] else "io"
    if alike["comm"] + alike["compute"] and n.shape in ELLIPSES:
        return "comm" if alike["comm"] > alike["compute"] else "compute"
    joins = n.everywhere or len(n.devices or ()) > 1
    return "comm" if joins and n.shape in ELLIPSES else "compute"


@by_form
def _adds_residual(operator: str) -> bool:
    head = words(operator)
    return bool(RESIDUAL.search(head)) and not re.search(r"\bscale\b", head)


def is_residual(n: NodeFacts) -> bool:
    return _adds_residual(n.operator)


@by_form
def _chooses(operator: str) -> bool:
    head = words(operator)
    bare = BRACKETED.sub(" ", head).strip()
    # "Expert 3 gate" is inside one expert: its gated linear map.
    return bool(GATE.search(head) or GATE.search(bare)) and (
        bool(TOP_K.search(head))
        or not re.search(
            r"gate[ _]?proj|\b(?:bias|add|scores?)\b|\bexpert\s*#?\d|\b(?:mlp|ffn|glu|swiglu)\b", head, re.I
        )
    )


def is_gate(n: NodeFacts) -> bool:
    """It chooses experts, whatever shape it is drawn with."""
    return n.kind in ("compute", "routing") and _chooses(n.operator)


_GATING = re.compile(r"\bgate\b|\brouter\b|门控", re.IGNORECASE)


@by_form
def is_gating(operator: str) -> bool:
    """Its words name a gate or router, the choice or a map in front of it."""
    return _GATING.search(words(operator)) is not None


def selects(v: View, e: DotEdge) -> bool:
    """A dashed line from a gate says who is chosen; the tokens come on a solid one."""
    a = v.nodes[e.src]
    return is_dashed(e.attrs) and (is_gate(a) or is_gating(a.operator))


BOXES = frozenset({"note", "tab", "folder", "component", "box3d"})
"""Rectangles with an ornament."""


def is_computed(n: NodeFacts) -> bool:
    """Its kind is known from words or from a shape that the rules know; of other shapes under unknown names it is not."""
    return n.sure or n.shape in RECTANGLES or n.shape in BOXES


def is_dashed(attrs: dict[str, str]) -> bool:
    return "dashed" in attrs.get("style", "")


# ------------------------------------------------------------------------ repetition


def _repeats(n: DotNode, said: _Said) -> int | None:
    for key in ("repeats", "repeat", "repetitions") if n.attrs else ():
        if n.attrs.get(key, "").isdigit():
            return int(n.attrs[key])
    return repeats_of(said.label) or (repeats_of(said.beside) if said.beside is not _NOTHING else None)


def cluster_repeats(v: View, cluster: str | None) -> Iterable[tuple[str, int, frozenset[int]]]:
    """(cluster, repeats, layers) of every enclosing cluster that states a repetition."""
    while cluster is not None:
        c = v.graph.clusters[cluster]
        label = tidy(plain(c.attrs.get("label", "")))
        n = int(c.attrs["repeats"]) if c.attrs.get("repeats", "").isdigit() else repeats_in(label)
        if n is not None:
            yield cluster, n, index_set(c.attrs.get("layer_indices", "")) or layers_in(label)
        cluster = c.parent


def num_layers(v: View) -> int | None:
    """Layers of the model as the graph states them: an attribute, else its title."""
    for key in ("num_hidden_layers", "num_layers", "layers", "n_layers"):
        if v.graph.attrs.get(key, "").isdigit():
            return int(v.graph.attrs[key])
    return num_layers_in(tidy(plain(v.graph.attrs.get("label", ""))))


__all__ = [
    "COMM",
    "COMPUTES",
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
    "is_gating",
    "is_residual",
    "lane_of",
    "num_layers",
    "plain",
    "ports_in",
    "repeats_in",
    "selects",
    "view",
    "words",
]
