"""R03, R04, R05, R15, R21: what nodes and edges say about dims, and the shapes they are drawn with."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from math import prod

from tools.dag.alike import by_form
from tools.dag.facts import (
    COMM,
    NodeFacts,
    PortFacts,
    View,
    is_computed,
    is_dashed,
    is_gate,
    is_gating,
    is_residual,
    plain,
    selects,
    words,
)
from tools.dag.kinds import ELLIPSES, RECTANGLES
from tools.dag.parse import DotEdge
from tools.dag.places import MOST
from tools.dag.rules.base import NotDecidable, Violation, bad, rule, some_nodes
from tools.dag.rules.evidence import (
    CLEAR,
    DIMS,
    INPUT,
    OUTPUT,
    absent,
    deviating,
    dims_hinted,
    in_turn,
    lacking,
)  # fmt: skip


@rule("R03", "splits and aggregations are nodes")
def splits(v: View) -> Iterator[Violation]:
    dims_known = False
    for n in v.nodes.values():
        if n.kind == "comm":
            yield from _joined_by_collective(v, n)
        if n.kind != "compute":
            continue
        dims_known |= bool(n.inputs and n.outputs)
        yield from _implicit_aggregation(v, n)
        for e in v.in_edges[n.id]:
            a = v.nodes[e.src]
            if not a.outputs or not n.inputs:
                continue
            change = _resized(a.outputs, n.inputs)
            if change and is_computed(n) and is_computed(a):
                yield Violation(
                    message=f"{a.id} → {n.id}: {change} on a bare edge", node=n.id, line=e.line,
                    fix="insert a parallelogram that splits or aggregates this dim (or a collective)",
                )  # fmt: skip
    if not dims_known:
        raise NotDecidable("no node states its dims")


def _implicit_aggregation(v: View, n: NodeFacts) -> Iterator[Violation]:
    if len(n.devices or ()) > 1:
        return  # each device's own arrives there; that one node stands for several is R01's to tell
    arriving: dict[str, set[str]] = defaultdict(set)
    for e in v.in_edges[n.id]:
        if (tensor := _tensor(e.attrs)) and not selects(v, e):
            arriving[tensor].add(e.src)
    for tensor, sources in arriving.items():
        known = is_computed(n) and (n.inputs or not dims_hinted(v, n))
        if len(sources) > 1 and known and len(n.inputs or ()) < len(v.in_edges[n.id]):
            yield bad(
                n,
                f"{tensor} arrives from {len(sources)} nodes and is aggregated inside",
                "insert an aggregation node or a collective",
            )


def _joined_by_collective(v: View, n: NodeFacts) -> Iterator[Violation]:
    """Parts of one device that only their sum makes what a collective takes."""
    parts: dict[frozenset[int], list[NodeFacts]] = defaultdict(list)
    for m in dict.fromkeys(v.preds[n.id]):
        if v.nodes[m].devices and v.nodes[m].outputs:
            parts[v.nodes[m].devices or frozenset()].append(v.nodes[m])
    for devices, made in parts.items():
        if len(devices) != 1 or len(made) < 2:
            continue
        for i in n.inputs or ():
            for d, x in i.dims:
                given = [dict(o.dims) for m in made for o in m.outputs or () if {**dict(o.dims), d: x} == dict(i.dims)]
                lengths = [int(g[d]) for g in given if g.get(d, "").isdigit()]
                if len(lengths) > 1 and x.isdigit() and sum(lengths) == int(x) and max(lengths) < int(x):
                    yield bad(n, f"joins {len(lengths)} parts of GPU {min(devices)} along {d} ({x}) inside",
                              "insert an aggregation node (a parallelogram) in front of it")  # fmt: skip
                    break


def _resized(outputs: tuple[PortFacts, ...], inputs: tuple[PortFacts, ...]) -> str | None:
    """The dim that changes its length between producer and consumer, where names agree otherwise."""
    if any(o.dims == i.dims for o in outputs for i in inputs):
        return None
    for o in outputs:
        for i in inputs:
            a, b = dict(o.dims), dict(i.dims)
            if a and a.keys() == b.keys() and "" not in a:
                changed = [d for d in a if a[d] != b[d]]
                if len(changed) == 1 and a[changed[0]].isdigit() and b[changed[0]].isdigit():
                    return f"{changed[0]} changes from {a[changed[0]]} to {b[changed[0]]}"
    return None


@rule("R04", "every node states Input and Output dims as name=value; Global for split dims")
def dims_stated(v: View) -> Iterator[Violation]:
    some_nodes(v)
    nodes = list(v.nodes.values())
    undirected = _undirected(nodes)
    if not undirected and absent(v, DIMS, nodes):
        yield Violation(message=f"none of the {len(nodes)} nodes states its dims", line=v.graph.line, fix=_STATE_DIMS)
        return
    sizes = dict(re.findall(r"(\w+)=(\d+)", v.graph.attrs.get("sizes", "")))
    undefined = [n for n in nodes if n.id in v.undefined and not n.inputs and not n.outputs]
    told = {n.id for n in (*undirected, *undefined)}
    directed = [n for n in nodes if n.id not in told]
    yield from in_turn(
        (
            bad(n, "only edges name it, no statement defines it", "define it, or correct its name in the edges")
            for n in undefined
        ),
        (
            bad(n, "its one list of dims does not say whether it goes in or comes out", f"say both: {_STATE_DIMS}")
            for n in undirected
        ),
        _stated_badly(nodes, sizes),
        () if sizes else _split_without_global(v),
        (
            bad(n, "no Input dims", _STATE_INPUT) if n.outputs else bad(n, "no Input and no Output dims", _STATE_DIMS)
            for n in lacking(v, INPUT, directed)
        ),
        (bad(n, "no Output dims", _STATE_OUTPUT) for n in lacking(v, OUTPUT, directed) if n.inputs),
    )


def _undirected(nodes: list[NodeFacts]) -> list[NodeFacts]:
    """Nodes with a single list of dims and no word for its direction, where most nodes are such.

    Two lists a node may be input and output in words that are not known; one can be but one of them."""
    found = [n for n in nodes if n.lists == 1 and not n.inputs and not n.outputs]
    return found if len(found) > MOST * len(nodes) else []


_STATE_DIMS = "add `Input: [batch_size=…, …], Output: [batch_size=…, …]`"
_STATE_INPUT = "say what goes in: `Input: [batch_size=…, …]`"
_STATE_OUTPUT = "say what comes out: `Output: [batch_size=…, …]`"


def _stated_badly(nodes: list[NodeFacts], sizes: dict[str, str]) -> Iterator[Violation]:
    for n in nodes:
        ports = (*(n.inputs or ()), *(n.outputs or ()))
        if (wrong := next((w for p in ports for d, x in p.dims if (w := _misstated(p, d, x))), "")) != "":
            yield bad(n, wrong, "write every dim as name=value, separated by commas")
        for d in sorted({d for p in ports for d, x in p.dims if d in sizes and x != sizes[d]}):
            if n.whole.get(d) != sizes[d]:
                yield bad(
                    n,
                    f"{d} is split (whole: {sizes[d]}) but Global says {n.whole.get(d, 'nothing')}",
                    f"add `Global: [{d}={sizes[d]}]`",
                )


def _misstated(port: PortFacts, dim: str, length: str) -> str:
    """What is wrong with a dim; empty for nothing."""
    if not dim and not any(d for d, _ in port.dims):
        return f"{port} gives lengths without names, or names without lengths"
    if not dim or not length:
        return f"{port} has a length without a name, or a name without a length"
    return f"{port} leaves {dim} open" if length == "?" else ""


def _split_without_global(v: View) -> Iterator[Violation]:
    """Dims that a collective shows to be split: summed over by what feeds an all-reduce, grown by a gather."""
    whole = {pair for n in v.nodes.values() for pair in n.whole.items()}
    for c in v.nodes.values():
        if c.kind != "comm" or len(c.devices or ()) < 2:
            continue
        head = words(c.operator)
        for n in (v.nodes[m] for m in dict.fromkeys(v.preds[c.id])):
            if n.kind != "compute" or len(n.devices or ()) != 1 or not n.inputs or not n.outputs:
                continue
            given = {d for p in n.outputs for d, _ in p.dims if d}
            split: set[str] = set()
            if re.search(r"all[\s_-]?reduce|reduce[\s_-]?scatter", head, re.IGNORECASE):
                split = {d for p in n.inputs for d, x in p.dims if d and (d, x) not in whole} - given
            elif re.search(r"all[\s_-]?gather", head, re.IGNORECASE):
                grown = {d: x for p in c.outputs or () for d, x in p.dims}
                split = {d for p in n.outputs for d, x in p.dims if d and grown.get(d, x) != x}
            if split and not split & n.whole.keys():
                d = min(split)
                yield bad(n, f"{d} is split over {len(c.devices or ())} devices but no Global says how long it is",
                          f"add `Global: [{d}=…]`")  # fmt: skip


EXPECTED_SHAPE = {"compute": (RECTANGLES, "rectangle (box)"), "comm": (ELLIPSES, "ellipse"),
"routing": (frozenset({"parallelogram"}), "parallelogram"),
                  "io": (frozenset({"parallelogram"}), "parallelogram")}  # fmt: skip


@rule(
    "R05",
    "ellipse = communication, rectangle = computation, parallelogram = routing, split, aggregation, total in/output",
)
def shapes(v: View) -> Iterator[Violation]:
    some_nodes(v)
    for n in v.nodes.values():
        if n.id in v.undefined:
            continue  # nobody drew it
        kind = _kind_by_name(n)
        allowed, name = EXPECTED_SHAPE[kind]
        if is_gate(n) or (n.kind == "routing" and is_gating(n.operator)):
            allowed = allowed | RECTANGLES  # "Gate" may be the linear map or the choice; a top-k is an operator too
        if n.shape not in allowed and n.sure:
            yield bad(
                n,
                f"{n.operator[:60]!r} is drawn as {n.shape}, not as {name}",
                f"shape={next(s for s in ('box', 'ellipse', 'parallelogram') if s in EXPECTED_SHAPE[kind][0])}"
                f", as it is {_WHAT[kind]}",
            )
        elif not n.sure and (n.shape not in _DRAWN or (n.shape in _REMARKS and v.preds[n.id] and v.succs[n.id])):
            yield bad(n, f"{n.operator[:60]!r} is drawn as {n.shape}, which says nothing about what it is",
                      "shape=box for a computation, ellipse for communication, parallelogram for a split")  # fmt: skip


_WHAT = {
    "compute": "a computation",
    "comm": "communication",
    "routing": "routing, split or aggregation",
    "io": "the total input or output",
}
_REMARKS = frozenset({"plaintext", "plain", "none", "underline", "note", "tab", "point"})
"""Shapes of remarks; what data flow through is none."""
_DRAWN = RECTANGLES | ELLIPSES | _REMARKS | {"parallelogram"}


@by_form
def _communicates(operator: str) -> bool:
    return COMM.search(words(operator)) is not None


def _kind_by_name(n: NodeFacts) -> str:
    """A collective is one by its name, whatever role the file claims for it."""
    return "comm" if n.kind == "compute" and _communicates(n.operator) else n.kind


@rule("R15", "edges carry the tensor's name; the producer's output dims are the consumer's input dims")
def edge_dims(v: View) -> Iterator[Violation]:
    edges = [(e, _tensor(e.attrs)) for e in v.graph.edges]
    joined = [x for x in edges if _comparable(v, x[0])]
    yield from in_turn(
        deviating(v, "dims given and taken along edges", len(joined), _mismatches(v, joined)),
        _unserved(v), _unoffered(v), _unnamed(v, edges),
    )  # fmt: skip
    if not joined and all(t for _, t in edges):
        raise NotDecidable("no edge joins two nodes that state their dims")


def _comparable(v: View, e: DotEdge) -> bool:
    """Both ends state their dims; a dashed selection says who is chosen, the tokens come on the solid line."""
    a, b = v.nodes[e.src], v.nodes[e.dst]
    chosen = selects(v, e) or (is_dashed(e.attrs) and b.kind == "routing" and not a.sure)
    return bool(a.outputs and b.inputs) and not chosen


def _mismatches(v: View, edges: list[tuple[DotEdge, str]]) -> Iterator[Violation]:
    for e, tensor in edges:
        inputs, outputs = v.nodes[e.dst].inputs or (), v.nodes[e.src].outputs or ()
        wanted = [p for p in inputs if p.tensor and tensor and p.tensor.split("(")[0] == tensor] or list(inputs)
        offered = [p for p in outputs if p.tensor and tensor and p.tensor.split("(")[0] == tensor] or list(outputs)
        if not any(_same(o, i) for o in offered for i in wanted):
            yield Violation(
                message=f"{e.src} gives {offered[0]}, {e.dst} takes {wanted[0]}", node=e.dst, line=e.line,
                fix="make the dims equal, or put the operator that changes them between",
            )  # fmt: skip


_DRAWS = re.compile(
    r"(?:style|.*color|weight|arrow.*|pen.*|constraint|dir|minlen|.*font.*|len|.*size|.*port|[lw]?[hst]\w*|pos|lp|class)\Z"
)
"""Attributes of an edge that say how it is drawn, not what it carries."""


def _unnamed(v: View, edges: list[tuple[DotEdge, str]]) -> Iterator[Violation]:
    """Edges without a tensor's name: where most have one, or where none says anything at all."""
    without = [e for e, tensor in edges if not tensor]
    said = [
        e
        for e in without
        if not any(e.attrs.get(k) for k in _TENSOR_KEYS) and any(not _DRAWS.match(k) for k in e.attrs)
    ]
    named = len(edges) - len(without)
    if len(said) > (1 - CLEAR) * len(edges):
        raise NotDecidable(f"edges say something in attributes that are not known: {', '.join(said[0].attrs)}")
    if not named and len(without) > 1:
        yield Violation(message=f"none of the {len(edges)} edges names its tensor, e.g. {without[0].src} → {without[0].dst}",
                        node=without[0].src, line=without[0].line, fix='label="tensor name"')  # fmt: skip
        return
    for e in without:
        yield Violation.model_construct(
            message=f"{e.src} → {e.dst} does not name its tensor", node=e.src, line=e.line, fix='label="tensor name"'
        )


def _same(a: PortFacts, b: PortFacts) -> bool:
    if not all(d for p in (a, b) for d, _ in p.dims):
        return [n for _, n in a.dims] == [n for _, n in b.dims]  # unnamed lengths are R04's to tell
    return dict(a.dims) == dict(b.dims)


_TENSOR_KEYS = (
    "label",
    "xlabel",
    "headlabel",
    "taillabel",
    "data",
    "tensor_name",
    "tensorName",
    "value",
    "name",
    "edgetooltip",
    "tooltip",
)
_SHAPE_ONLY = re.compile(
    r"\s*[(\[]?\s*\d+(?:\s*[,;x×*]\s*\d+)*\s*[)\]]?\s*\Z|[(\[].*[)\]]\Z|(?:[A-Za-z_]\w*\s*=\s*\d+[\s,;]*)+\Z"
)


def _tensor(attrs: dict[str, str]) -> str:
    """The tensor that an edge names; a shape alone is no name."""
    if not attrs:
        return ""
    said = attrs.get("label") or next((attrs[k] for k in _TENSOR_KEYS if attrs.get(k)), "")
    return _tensor_name(attrs.get("tensor", ""), said)


@lru_cache(maxsize=65536)
def _tensor_name(stated: str, label: str) -> str:
    said = plain(label).split("\n")[0]
    name = stated or said.split("[")[0].strip(" =:")
    return "" if _SHAPE_ONLY.match(name) or _OPERATION.match(name) else name


_OPERATION = re.compile(rf"\s*(?:{COMM.pattern})\s*\Z", re.IGNORECASE)
"""An edge that is called `broadcast` says what happens on it, not what it carries."""
RESIDENT = re.compile(r"W(?:[_A-Z\d]|[a-z]{1,4}\Z|\Z)|.*(?:weight|bias|cache|gamma|beta|mask)|w\Z|w_|cos\Z|sin\Z")
"""Weights, caches and constants that lie on the device: no edge has to bring them."""


def _unserved(v: View) -> Iterator[Violation]:
    """Inputs that are named on a node but that no edge brings."""
    for n in v.nodes.values():
        if n.kind != "compute" or not n.inputs or is_residual(n):
            continue
        brought = {_tensor(e.attrs) for e in v.in_edges[n.id]}
        if not brought or "" in brought:
            continue
        for p in n.inputs:
            if (
                p.tensor
                and not RESIDENT.match(p.tensor)
                and p.tensor not in brought
                and len(brought) < len({q.tensor for q in n.inputs})
            ):
                yield bad(
                    n, f"no edge brings its input {p.tensor}", f"add the edge from the node that makes {p.tensor}"
                )


def _unoffered(v: View) -> Iterator[Violation]:
    """Of several inputs without names, one that no producer makes; a single one is compared edge by edge."""
    for n in v.nodes.values():
        ports = n.inputs or ()
        made = [v.nodes[m].outputs for m in v.preds[n.id]]
        if n.kind != "compute" or len(ports) < 2 or any(p.tensor for p in ports) or not made or not all(made):
            continue
        batched = [p for p in ports if any(BATCH.match(d) for d, _ in p.dims)]
        for p in batched or ports:  # beside activations, what has no batch dim is a weight
            if not any(_same(o, p) for outputs in made for o in outputs or ()):
                yield bad(n, f"no producer makes its input {p}", "add the edge from the node that makes it")


BATCH = re.compile(r"(?:batch(?:[ _]?size)?|bsz?|B|批次?(?:大小)?)\Z")


@rule("R21", "no edge mixes batch items outside routing")
def batch(v: View) -> Iterator[Violation]:
    if v.graph.attrs.get("phase") == "train":
        raise NotDecidable("a training step sums gradients over batch items, as it should")
    decidable = False
    for n in v.nodes.values():
        ins = {x for p in n.inputs or () for d, x in p.dims if BATCH.match(d)}
        outs = {x for p in n.outputs or () for d, x in p.dims if BATCH.match(d)}
        if n.kind == "compute" and (ins or outs):
            decidable = True
            if is_computed(n) and (len(ins) > 1 or (ins and outs and ins != outs)):
                yield bad(
                    n,
                    f"a computation turns batch_size {_set(ins)} into {_set(outs)}",
                    "batch items are independent; only split, routing or communication may regroup",
                )
            elif (
                ins
                and not outs
                and is_computed(n)
                and not _reshapes(n)
                and any(d for p in n.outputs or () for d, _ in p.dims)
            ):
                yield bad(n, "its output has no batch_size any more", "batch items are independent; keep the dim")
        items = n.attrs.get("batch_items", "")
        if (
            n.kind == "comm"
            and re.search(r"reduce", words(n.operator), re.IGNORECASE)
            and "," in items
            and len(set(items.split(","))) > 1
        ):
            yield bad(
                n,
                f"sums over members that hold different batch items ({items})",
                "reduce only among ranks that hold the same items",
            )
        elif n.kind == "compute" and len(set(items.split(","))) > 1:
            yield bad(n, f"reads different batch items ({items})", "an operator's inputs must hold the same items")
    yield from _foreign_items(v)
    if not decidable:
        raise NotDecidable("no computation states a batch_size")


def _reshapes(n: NodeFacts) -> bool:
    """Dims are merged or split, `[batch_size=4, seq_len=8] → [tokens=32]`: as many elements as before, none mixed."""
    sizes = [[int(x) for _, x in p.dims if x.isdigit()] for ports in (n.inputs, n.outputs) for p in ports or ()]
    return len(sizes) == 2 and prod(sizes[0]) == prod(sizes[1])


def _batch_of(ports: tuple[PortFacts, ...] | None) -> str:
    return next((x for p in ports or () for d, x in p.dims if BATCH.match(d)), "")


def _items_of_devices(v: View) -> dict[int, tuple[str, str]]:
    """Which slice of a split batch each device holds, and its length, where every slice goes to one device."""
    items: dict[int, tuple[str, str]] = {}
    for n in v.nodes.values():
        whole, part = _batch_of(n.inputs), _batch_of(n.outputs)
        if n.kind != "routing" or not (whole.isdigit() and part.isdigit()) or not 0 < int(part) < int(whole):
            continue
        taken = [v.nodes[m].devices or frozenset() for m in dict.fromkeys(v.succs[n.id])]
        if all(len(d) == 1 for d in taken) and len(frozenset().union(*taken)) * int(part) == int(whole):
            items |= {g: (f"{n.id}/{g}", part) for d in taken for g in d}
    return items


def _foreign_items(v: View) -> Iterator[Violation]:
    """Collectives that sum, and computations that read, batch items of other devices after a split of the batch."""
    if any("batch_items" in n.attrs for n in v.nodes.values()):
        return  # the file says which items each node holds
    items = _items_of_devices(v)
    if not items:
        return
    for c in v.nodes.values():
        split = _batch_of(c.outputs) and _batch_of(c.outputs) == _batch_of(c.inputs)
        senders = [v.nodes[m] for m in v.preds[c.id] if v.nodes[m].devices]
        if c.kind != "comm" or not split or not all(_in_slices(n, items) for n in senders):
            continue
        held = {items[g] for n in senders for g in n.devices or ()}
        if re.search(r"reduce", words(c.operator), re.IGNORECASE) and len(held) > 1:
            yield bad(c, f"sums over {len(held)} devices that hold different batch items",
                      "reduce only among ranks that hold the same items")  # fmt: skip
            continue
        for m in v.succs[c.id]:
            reader = v.nodes[m]
            if reader.kind == "compute" and _in_slices(reader, items) and len(v.preds[m]) > 1:
                own = {items[g] for g in reader.devices or ()}
                if held and not own & held:
                    yield bad(reader, f"reads batch items that GPU {','.join(map(str, _gpus(senders)))} holds",
                              "an operator's inputs must hold the same items")  # fmt: skip


def _in_slices(n: NodeFacts, items: dict[int, tuple[str, str]]) -> bool:
    """The node's batch is a slice, by its Global or by its length, and it stands on devices with known slices."""
    here = _batch_of(n.outputs)
    whole = next((x for d, x in n.whole.items() if BATCH.match(d)), here)
    return bool(n.devices) and all(g in items and (here != whole or here == items[g][1]) for g in n.devices or ())


def _gpus(nodes: list[NodeFacts]) -> list[int]:
    return sorted({g for n in nodes for g in n.devices or ()})


def _set(values: set[str]) -> str:
    return "/".join(sorted(values)) or "none"
