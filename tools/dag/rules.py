"""R01-R21: what a deployment DAG must be. Each rule reads a `View` of any DOT file and yields what is wrong.

A rule yields `Violation`s; none means passed. What a file cannot say raises `NotDecidable` with the reason; rules that
need the run (R13, R16, R17, R18) are evaluated by `tools.dag.context.run_rules`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tools.dag.facts import (
    COMM,
    NodeFacts,
    PortFacts,
    View,
    cluster_repeats,
    devices_in,
    index_set,
    lane_of,
    plain,
    repeats_in,
    words,
)
from tools.spec.base import Frozen

Status = Literal["passed", "failed", "not_decidable"]
MAX_SHOWN = 20


class Violation(Frozen):
    """One thing that is wrong, where, and what to do about it."""

    message: str
    node: str | None = None
    line: int | None = None
    fix: str = ""


class RuleResult(Frozen):
    """`violations` shows the first few of `total`."""

    rule: str
    title: str
    status: Status
    message: str = ""
    violations: tuple[Violation, ...] = ()
    total: int = 0


class NotDecidable(Exception):
    """The file does not say what the rule needs; the message says what is missing."""


Check = Callable[[View], Iterator[Violation]]


@dataclass(frozen=True, slots=True)
class Rule:
    id: str
    title: str
    check: Check

    def __call__(self, v: View) -> RuleResult:
        try:
            found = list(self.check(v))
        except NotDecidable as why:
            return RuleResult(rule=self.id, title=self.title, status="not_decidable", message=str(why))
        return result(self.id, self.title, found)


RULES: dict[str, Rule] = {}


def rule(rule_id: str, title: str) -> Callable[[Check], Check]:
    """Registers a rule; its function yields violations."""

    def register(check: Check) -> Check:
        RULES[rule_id] = Rule(rule_id, title, check)
        return check

    return register


def result(rule_id: str, title: str, found: list[Violation]) -> RuleResult:
    if not found:
        return RuleResult(rule=rule_id, title=title, status="passed")
    shown = tuple(v.model_copy(update={"message": " ".join(v.message.split())}) for v in found[:MAX_SHOWN])
    return RuleResult(
        rule=rule_id,
        title=title,
        status="failed",
        message=shown[0].message,
        violations=shown,
        total=len(found),
    )


def _bad(n: NodeFacts, message: str, fix: str) -> Violation:
    return Violation(message=f"{n.id}: {message}", node=n.id, line=n.line, fix=fix)


def _full_detail(v: View) -> None:
    detail = v.graph.attrs.get("detail", "full")
    if detail != "full":
        raise NotDecidable(f"a {detail} view; judged on the full-detail file")


def _some_nodes(v: View) -> None:
    if not v.nodes:
        raise NotDecidable("the graph has no nodes")


# ------------------------------------------------------------------------ devices, transfers


@rule("R01", "one lane per device; every compute operator is one node on one named device, in its lane")
def lanes(v: View) -> Iterator[Violation]:
    _some_nodes(v)
    _full_detail(v)
    placed = any("pos" in n.attrs for n in v.nodes.values())
    used: set[str] = set()
    for n in v.nodes.values():
        if n.kind != "compute":
            if n.devices is None and not n.everywhere:
                yield _bad(n, "names no GPU", "write `GPU 3`, `GPU 0,1` or `all GPUs` into the label")
            continue
        if n.everywhere or n.devices is None or not n.on_label:
            if not n.everywhere:
                yield _bad(n, "names no GPU in its label", "write `GPU 3` into the label")
            else:
                yield _bad(n, "one compute node for all GPUs", "draw one node per device, in that device's lane")
            continue
        if len(n.devices) > 1:
            yield _bad(
                n, f"one compute node for {len(n.devices)} devices", "draw one node per device, in that device's lane"
            )
            continue
        lane = lane_of(v, n)
        if lane is None:
            yield _bad(
                n,
                f"GPU {min(n.devices)} has no lane around it",
                "put the node into `subgraph cluster_gpu…` of its device",
            )
        elif lane != n.devices:
            yield _bad(
                n,
                f"is on GPU {min(n.devices)} but lies in the lane of GPU {','.join(map(str, sorted(lane)))}",
                "move it to its own lane",
            )
        used.add(n.cluster or "")
    for c in sorted(used & set(v.graph.clusters)):
        if placed and "bb" not in v.graph.clusters[c].attrs:
            cluster = v.graph.clusters[c]
            yield Violation(
                message=f"{c}: positions are fixed but the lane has no bb, so no box is drawn",
                line=cluster.line,
                fix='add bb="x0,y0,x1,y1"',
            )


@rule("R02", "every transfer between devices is a node")
def transfers(v: View) -> Iterator[Violation]:
    known = [n for n in v.nodes.values() if n.devices]
    if not known:
        raise NotDecidable("no node names its GPU")
    for e in v.graph.edges:
        a, b = v.nodes[e.src], v.nodes[e.dst]
        if not a.devices or not b.devices:
            continue
        # An operator that is drawn once for several devices is R01's to tell, not every edge of it.
        several = any(n.kind == "compute" and len(n.devices or ()) > 1 for n in (a, b))
        if several and a.devices & b.devices:
            continue
        if (a.kind == "compute" == b.kind and a.devices != b.devices) or not a.devices & b.devices:
            yield Violation(
                message=f"{a.id} (GPU {_gpus(a)}) → {b.id} (GPU {_gpus(b)}) crosses devices without communication",
                node=a.id, line=e.line,
                fix="put an ellipse (send/recv or a collective) that names both devices between them",
            )  # fmt: skip
        elif (
            "comm" not in (a.kind, b.kind)
            and "routing" not in (a.kind, b.kind)
            and "io" not in (a.kind, b.kind)
            and a.devices != b.devices
        ):
            yield Violation(
                message=f"{a.id} → {b.id} crosses devices without a node",
                node=a.id,
                line=e.line,
                fix="add a communication node",
            )


def _gpus(n: NodeFacts) -> str:
    return ",".join(map(str, sorted(n.devices or ())))


@rule("R03", "splits and aggregations are nodes")
def splits(v: View) -> Iterator[Violation]:
    dims_known = False
    for n in v.nodes.values():
        if n.kind != "compute":
            continue
        dims_known |= bool(n.inputs and n.outputs)
        yield from _implicit_aggregation(v, n)
        for e in v.in_edges[n.id]:
            a = v.nodes[e.src]
            if not a.outputs or not n.inputs:
                continue
            change = _resized(a.outputs, n.inputs)
            if change:
                yield Violation(
                    message=f"{a.id} → {n.id}: {change} on a bare edge", node=n.id, line=e.line,
                    fix="insert a parallelogram that splits or aggregates this dim (or a collective)",
                )  # fmt: skip
    if not dims_known:
        raise NotDecidable("no node states its dims")


def _implicit_aggregation(v: View, n: NodeFacts) -> Iterator[Violation]:
    arriving: dict[str, set[str]] = defaultdict(set)
    for e in v.in_edges[n.id]:
        if tensor := _tensor(e.attrs):
            arriving[tensor].add(e.src)
    for tensor, sources in arriving.items():
        if len(sources) > 1 and len(n.inputs or ()) < len(v.in_edges[n.id]):
            yield _bad(
                n,
                f"{tensor} arrives from {len(sources)} nodes and is aggregated inside",
                "insert an aggregation node or a collective",
            )


def _resized(outputs: tuple[PortFacts, ...], inputs: tuple[PortFacts, ...]) -> str | None:
    """The dim that changes its length between producer and consumer, where names agree otherwise."""
    if any(o.dims == i.dims for o in outputs for i in inputs):
        return None
    for o in outputs:
        for i in inputs:
            a, b = dict(o.dims), dict(i.dims)
            if a and a.keys() == b.keys():
                changed = [d for d in a if a[d] != b[d]]
                if len(changed) == 1 and a[changed[0]].isdigit() and b[changed[0]].isdigit():
                    return f"{changed[0]} changes from {a[changed[0]]} to {b[changed[0]]}"
    return None


@rule("R12", '"all GPUs" only for the whole world')
def all_gpus(v: View) -> Iterator[Violation]:
    stated = v.graph.attrs.get("num_devices", "")
    world = (
        frozenset(range(int(stated)))
        if stated.isdigit()
        else frozenset().union(*(n.devices or frozenset() for n in v.nodes.values()))
    )
    for n in v.nodes.values():
        if not n.everywhere or n.kind == "io":
            continue
        if n.kind in ("compute", "routing"):
            yield _bad(
                n,
                '"all GPUs" on something that is neither a collective nor the total input or output',
                "name the devices, one node each",
            )
            continue
        near: frozenset[int] = frozenset().union(
            *(v.nodes[m].devices or frozenset() for m in (*v.preds[n.id], *v.succs[n.id]))
        )
        if (
            world
            and near
            and near != world
            and not any(v.nodes[m].everywhere for m in (*v.preds[n.id], *v.succs[n.id]))
        ):
            yield _bad(
                n,
                f'"all GPUs", but it joins {len(near)} of {len(world)} devices',
                f"write GPU {','.join(map(str, sorted(near)))}",
            )


# ------------------------------------------------------------------------ dims and shapes


@rule("R04", "every node states Input and Output dims as name=value; Global for split dims")
def dims_stated(v: View) -> Iterator[Violation]:
    _some_nodes(v)
    sizes = dict(re.findall(r"(\w+)=(\d+)", v.graph.attrs.get("sizes", "")))
    for n in v.nodes.values():
        missing = [w for w, ports in (("Input", n.inputs), ("Output", n.outputs)) if not ports]
        if missing:
            yield _bad(
                n, f"no {' and no '.join(missing)} dims", "add `Input: [batch_size=…, …], Output: [batch_size=…, …]`"
            )
            continue
        ports = (*(n.inputs or ()), *(n.outputs or ()))
        unnamed = next((p for p in ports for d, x in p.dims if not d or not x or x == "?"), None)
        if unnamed is not None:
            yield _bad(
                n,
                f"{unnamed} has a length without a name, or a name without a length",
                "write every dim as name=value, separated by commas",
            )
        for d in sorted({d for p in ports for d, x in p.dims if d in sizes and x != sizes[d]}):
            if n.whole.get(d) != sizes[d]:
                yield _bad(
                    n,
                    f"{d} is split (whole: {sizes[d]}) but Global says {n.whole.get(d, 'nothing')}",
                    f"add `Global: [{d}={sizes[d]}]`",
                )


RECTANGLES = frozenset({"box", "rect", "rectangle", "square", "record", "mrecord"})
ELLIPSES = frozenset({"ellipse", "oval", "circle"})
EXPECTED_SHAPE = {"compute": (RECTANGLES, "rectangle (box)"), "comm": (ELLIPSES, "ellipse"),
"routing": (frozenset({"parallelogram"}), "parallelogram"),
                  "io": (frozenset({"parallelogram"}), "parallelogram")}  # fmt: skip


@rule(
    "R05",
    "ellipse = communication, rectangle = computation, parallelogram = routing, split, aggregation, total in/output",
)
def shapes(v: View) -> Iterator[Violation]:
    _some_nodes(v)
    for n in v.nodes.values():
        allowed, name = EXPECTED_SHAPE[_kind_by_name(n)]
        if n.shape not in allowed:
            yield _bad(
                n,
                f"{n.operator[:60]!r} is drawn as {n.shape}, not as {name}",
                f"shape={'box' if 'box' in allowed else sorted(allowed)[-1]}",
            )


def _kind_by_name(n: NodeFacts) -> str:
    """A collective is one by its name, whatever role the file claims for it."""
    return "comm" if COMM.search(words(n.operator)) and n.kind == "compute" else n.kind


@rule("R15", "edges carry the tensor's name; the producer's output dims are the consumer's input dims")
def edge_dims(v: View) -> Iterator[Violation]:
    known = unnamed = 0
    for e in v.graph.edges:
        a, b = v.nodes[e.src], v.nodes[e.dst]
        tensor = _tensor(e.attrs)
        if not tensor:
            unnamed += 1
            if unnamed <= MAX_SHOWN:
                yield Violation(
                    message=f"{e.src} → {e.dst} does not name its tensor",
                    node=e.src,
                    line=e.line,
                    fix='label="tensor name"',
                )
        if not a.outputs or not b.inputs:
            continue
        known += 1
        wanted = [p for p in b.inputs if p.tensor and tensor and p.tensor.split("(")[0] == tensor] or list(b.inputs)
        offered = [p for p in a.outputs if p.tensor and tensor and p.tensor.split("(")[0] == tensor] or list(a.outputs)
        if not any(_same(o, i) for o in offered for i in wanted):
            yield Violation(
                message=f"{e.src} gives {offered[0]}, {e.dst} takes {wanted[0]}", node=e.dst, line=e.line,
                fix="make the dims equal, or put the operator that changes them between",
            )  # fmt: skip
    yield from _unserved(v)
    yield from _unoffered(v)
    if not known and not unnamed:
        raise NotDecidable("no edge joins two nodes that state their dims")


def _same(a: PortFacts, b: PortFacts) -> bool:
    if not all(d for p in (a, b) for d, _ in p.dims):
        return [n for _, n in a.dims] == [n for _, n in b.dims]  # unnamed lengths are R04's to tell
    return dict(a.dims) == dict(b.dims)


def _tensor(attrs: dict[str, str]) -> str:
    return attrs.get("tensor") or plain(attrs.get("label", "") or attrs.get("xlabel", "")).split("\n")[0].split("[")[
        0
    ].strip(" =:")


def _unserved(v: View) -> Iterator[Violation]:
    """Inputs that are named on a node but that no edge brings."""
    for n in v.nodes.values():
        brought = {_tensor(e.attrs) for e in v.in_edges[n.id]}
        if n.kind != "compute" or _is_residual(n) or not n.inputs or not brought or "" in brought:
            continue
        for p in n.inputs:
            if p.tensor and p.tensor not in brought and len(brought) < len({q.tensor for q in n.inputs}):
                yield _bad(
                    n, f"no edge brings its input {p.tensor}", f"add the edge from the node that makes {p.tensor}"
                )


def _unoffered(v: View) -> Iterator[Violation]:
    """Of several inputs without names, one that no producer makes; a single one is compared edge by edge."""
    for n in v.nodes.values():
        ports = n.inputs or ()
        made = [v.nodes[m].outputs for m in v.preds[n.id]]
        if n.kind != "compute" or len(ports) < 2 or any(p.tensor for p in ports) or not made or not all(made):
            continue
        for p in ports:
            if not any(_same(o, p) for outputs in made for o in outputs or ()):
                yield _bad(n, f"no producer makes its input {p}", "add the edge from the node that makes it")


BATCH = re.compile(r"(?:batch(?:[ _]?size)?|bsz?|B|批次?(?:大小)?)\Z")


@rule("R21", "no edge mixes batch items outside routing")
def batch(v: View) -> Iterator[Violation]:
    decidable = False
    for n in v.nodes.values():
        ins = {x for p in n.inputs or () for d, x in p.dims if BATCH.match(d)}
        outs = {x for p in n.outputs or () for d, x in p.dims if BATCH.match(d)}
        if n.kind == "compute" and (ins or outs):
            decidable = True
            if len(ins) > 1 or (ins and outs and ins != outs):
                yield _bad(
                    n,
                    f"a computation turns batch_size {_set(ins)} into {_set(outs)}",
                    "batch items are independent; only split, routing or communication may regroup",
                )
            elif ins and not outs and any(d for p in n.outputs or () for d, _ in p.dims):
                yield _bad(n, "its output has no batch_size any more", "batch items are independent; keep the dim")
        items = n.attrs.get("batch_items", "")
        if (
            n.kind == "comm"
            and re.search(r"reduce", words(n.operator), re.IGNORECASE)
            and "," in items
            and len(set(items.split(","))) > 1
        ):
            yield _bad(
                n,
                f"sums over members that hold different batch items ({items})",
                "reduce only among ranks that hold the same items",
            )
        elif n.kind == "compute" and len(set(items.split(","))) > 1:
            yield _bad(n, f"reads different batch items ({items})", "an operator's inputs must hold the same items")
    if not decidable:
        raise NotDecidable("no computation states a batch_size")


def _set(values: set[str]) -> str:
    return "/".join(sorted(values)) or "none"


# ------------------------------------------------------------------------ wiring


@rule("R06", "acyclic")
def acyclic(v: View) -> Iterator[Violation]:
    if not v.graph.directed and v.graph.edges:
        yield Violation(message="an undirected graph has no order", line=v.graph.line, fix="use digraph and ->")
        return
    waiting = {n: len(p) for n, p in v.preds.items()}
    ready = [n for n, k in waiting.items() if k == 0]
    while ready:
        for m in v.succs[ready.pop()]:
            waiting[m] -= 1
            if waiting[m] == 0:
                ready.append(m)
    left = {n for n, k in waiting.items() if k > 0}
    if left:
        cycle = _cycle(v, left)
        yield Violation(
            message=f"cycle: {' → '.join(cycle[:12])}",
            node=cycle[0],
            line=v.nodes[cycle[0]].line,
            fix="remove the edge that leads back",
        )


def _cycle(v: View, left: set[str]) -> list[str]:
    """Walking backwards inside the remainder must repeat a node."""
    seen: dict[str, int] = {}
    path: list[str] = []
    at = next(iter(left))
    while at not in seen:
        seen[at] = len(path)
        path.append(at)
        at = next(p for p in v.preds[at] if p in left)
    return [*path[seen[at] :], at][::-1]


@rule("R07", "one total input, one total output, nothing else without predecessor or successor")
def ends(v: View) -> Iterator[Violation]:
    _some_nodes(v)
    sources = [v.nodes[n] for n, p in v.preds.items() if not p]
    sinks = [v.nodes[n] for n, s in v.succs.items() if not s]
    for found, word, other in ((sources, "predecessor", "input"), (sinks, "successor", "output")):
        named = [n for n in found if n.kind == "io" or re.search(other, n.id + words(n.operator), re.IGNORECASE)]
        keep = named[0] if named else None
        if keep is None:
            yield Violation(message=f"no total {other}: {len(found)} nodes without {word}, none called so",
            node=found[0].id if found else None,
                            line=found[0].line if found else None,
                            fix=f"add one parallelogram 'total {other}'")  # fmt: skip
        for n in found:
            if n is not keep:
                yield _bad(n, f"has no {word}", f"connect it; only the total {other} may have none")


RESIDUAL = re.compile(r"\bresidual|\bresid\b|残差|\badd\s*(?:&|and|\+)\s*norm", re.IGNORECASE)


@rule("R08", "a residual add has at least two inputs")
def residuals(v: View) -> Iterator[Violation]:
    for n in v.nodes.values():
        if n.kind != "compute" or not _is_residual(n):
            continue
        if len(set(v.preds[n.id])) < 2:
            yield _bad(n, f"residual add with {len(set(v.preds[n.id]))} input", "add the edge that skips the block")
        elif n.inputs and len(n.inputs) < 2:
            yield _bad(n, "residual add whose label states one input", "list both inputs with their dims")


def _is_residual(n: NodeFacts) -> bool:
    head = words(n.operator)
    return bool(RESIDUAL.search(head)) and not re.search(r"\bscale\b", head)


GATE = re.compile(
    r"top[\s_-]?k|\bgate\b.*\bselect|\bgating\b|\brouter\b(?!.*(?:matmul|linear|logits|softmax|proj))|\bgate\b\s*$|门控",
    re.IGNORECASE,
)
TOP_K = re.compile(r"top[\s_-]?k", re.IGNORECASE)
EXPERT = re.compile(r"\bexperts?\b|\bmoe\b|专家", re.IGNORECASE)
EXPERT_ROUTING = re.compile(r"\bdispatch\b|\bexpert routing\b|\broute\b|\brouting\b", re.IGNORECASE)


@rule("R09", "the gate's selection is dashed, from the gate towards every expert's routing")
def gates(v: View) -> Iterator[Violation]:
    heads = {n.id: words(n.operator) for n in v.nodes.values()}
    experts = [n for n in v.nodes.values() if EXPERT.search(heads[n.id]) and n.kind == "compute"]
    found = _gates(v, heads)
    if not found:
        if experts:
            yield _bad(experts[0], "experts without a gate", "add the gate's top-k selection and its dashed edges")
        return
    reached: set[str] = set()
    for g in found:
        dashed = [e.dst for e in v.out_edges[g.id] if _dashed(e.attrs)]
        if not dashed:
            yield _bad(g, "no dashed edge leaves the gate", "draw its selection with style=dashed")
        reached |= _follow(v, dashed)
        for e in v.out_edges[g.id]:
            if not _dashed(e.attrs) and _is_expert_side(heads[e.dst], v.nodes[e.dst]):
                yield Violation(
                    message=f"{g.id} → {e.dst}: the gate's selection is a solid line",
                    node=g.id,
                    line=e.line,
                    fix="style=dashed",
                )
    targets = [
        n for n in v.nodes.values() if n.kind == "routing" and EXPERT_ROUTING.search(heads[n.id]) and n not in found
    ]
    for t in targets or experts:
        if t.id not in reached and not (not targets and any(p in reached for p in v.preds[t.id])):
            yield _bad(
                t,
                "no dashed line from a gate leads here",
                "add a dashed edge from the gate (through the all-to-all where tokens cross devices)",
            )


def _gates(v: View, heads: dict[str, str]) -> list[NodeFacts]:
    """Nodes that choose experts: the top-k where the file has one, else whatever it calls gate or router."""
    nodes = [n for n in v.nodes.values() if n.kind in ("compute", "routing") and GATE.search(heads[n.id])]
    chosen = [n for n in nodes if TOP_K.search(heads[n.id])]
    return chosen or [n for n in nodes if not re.search(r"gate[ _]?proj|\b(?:bias|add|scores?)\b", heads[n.id])]


def _is_expert_side(head: str, n: NodeFacts) -> bool:
    return bool(EXPERT_ROUTING.search(head)) or (
        n.kind == "compute" and bool(re.match(r"\s*experts?\b(?! (?:scores|weights))", head, re.IGNORECASE))
    )


def _dashed(attrs: dict[str, str]) -> bool:
    return "dashed" in attrs.get("style", "")


def _follow(v: View, start: list[str]) -> set[str]:
    """Nodes that dashed edges lead to, onwards through splits and communication."""
    seen, todo = set(start), list(start)
    while todo:
        for e in v.out_edges[todo.pop()]:
            if _dashed(e.attrs) and e.dst not in seen:
                seen.add(e.dst)
                todo.append(e.dst)
    return seen


@rule("R14", "connected")
def connected(v: View) -> Iterator[Violation]:
    _some_nodes(v)
    seen, todo = set(), [next(iter(v.nodes))]
    while todo:
        n = todo.pop()
        if n not in seen:
            seen.add(n)
            todo += v.preds[n] + v.succs[n]
    rest = [n for n in v.nodes if n not in seen]
    if rest:
        yield _bad(
            v.nodes[rest[0]],
            f"is one of {len(rest)} nodes that nothing connects to the rest",
            "add the missing edges or remove the nodes",
        )


# ------------------------------------------------------------------------ operators, layers

BLOCK = re.compile(
    r"multi[\s-]?head[\s-]?attention|\bself[\s-]?attention\b|\bMHA\b|\bGQA\b|\bMLA\b|\battention\b|\bfeed[\s-]?forward\b|\bFFN\b|\bMLP\b|"
    r"\b(?:transformer|decoder|encoder)[\s-]?(?:block|layer)|\bMoE\b|\blayers?\s*\d+\s*(?:-|–|to)\s*\d+", re.IGNORECASE,
)  # fmt: skip
OPERATOR = re.compile(
    r"matmul|gemm|linear|\bproj|\bscores?\b|softmax|\bscale\b|\bmask\b|\bvalues?\b|\bcontext\b|norm\b|\badd\b|\bmul\b|\bact|gelu|silu|swish|relu|rope|"
    r"rotary|\bup\b|\bdown\b|\bgate\b|\bq\b|\bk\b|\bv\b|qkv|\bcache\b|\boutput\b|embed|lookup|sampl|argmax|logits|repeat|weights?|cat\b|transpose|"
    r"reshape|lm[\s-]?head|dispatch|combine|residual|gather|scatter|top[\s_-]?k|router|sigmoid", re.IGNORECASE,
)  # fmt: skip
JOINED = re.compile(r"\s(?:\+|&|and|→|->)\s|(?<=\w)\+(?=\w)", re.IGNORECASE)


@rule("R10", "no node stands for several operators")
def single_operators(v: View) -> Iterator[Violation]:
    _some_nodes(v)
    _full_detail(v)
    for n in v.nodes.values():
        if n.kind != "compute":
            continue
        head = words(n.operator)
        parts = JOINED.split(head)
        if (
            len(parts) > 1
            and sum(bool(OPERATOR.search(p)) for p in parts) > 1
            and not re.search(r"append and read", head)
        ):
            yield _bad(n, f"{head[:60]!r} names {len(parts)} operators", "one node per operator")
        elif BLOCK.search(head) and not OPERATOR.search(BLOCK.sub("", head)):
            yield _bad(n, f"{head[:60]!r} is a block of operators", "break it down: projections, scores, softmax, …")


ANY_LAYER = re.compile(r"\b(?:layers?|blocks?|h)[._\[{(]+(?:[a-z*]|idx|index)[\]})]*(?:\.|$)", re.IGNORECASE)
"""`model.layers.i.…`: a layer that stands for others."""
LAYER_INDEX = re.compile(
    r"(?:\b|_)(?:(?:layers?|blocks?)[._\s\[-]*(\d+)(?![\d-])|[hl][._\[]?(\d+)(?=[._\]]))", re.IGNORECASE
)


@rule("R11", "repeated modules are drawn once, with the number of repetitions")
def repeats(v: View) -> Iterator[Violation]:
    _some_nodes(v)
    per_layer: dict[tuple[frozenset[int] | None, int], Counter[tuple[str, str]]] = defaultdict(Counter)
    first: dict[tuple[frozenset[int] | None, int], NodeFacts] = {}
    for n in v.nodes.values():
        index = _layer_index(n)
        if index is not None and n.kind == "compute":
            key = (n.devices, index)
            per_layer[key][
                (_without_index(n.operator), str([*map(str, n.inputs or ()), *map(str, n.outputs or ())]))
            ] += 1
            first.setdefault(key, n)
    for (devices, index), ops in sorted(per_layer.items(), key=lambda kv: (kv[0][1], sorted(kv[0][0] or ()))):
        before = per_layer.get((devices, index - 1))
        if before is not None and _shape_only(before) == _shape_only(ops):
            yield _bad(
                first[(devices, index)],
                f"layer {index} is drawn again, equal to layer {index - 1}",
                "draw it once and write × n",
            )
    if not _states_repetition(v):
        stated = v.graph.attrs.get("num_hidden_layers", "")
        if stated == "1":
            return
        if not per_layer and not any(ANY_LAYER.search(n.module) for n in v.nodes.values()):
            raise NotDecidable("no layer is recognisable and no repetition is stated")
        yield Violation(
            message="no number of repetitions anywhere",
            line=v.graph.line,
            fix='label the repeated layer "layers 0-79 · × 80"',
        )


def _layer_index(n: NodeFacts) -> int | None:
    if n.layers:
        return min(n.layers) if n.attrs.get("repeats", "1") == "1" else None
    m = LAYER_INDEX.search(n.module) or LAYER_INDEX.search(n.id) or LAYER_INDEX.search(n.operator)
    return int(m[1] or m[2]) if m else None


def _without_index(text: str) -> str:
    return LAYER_INDEX.sub(" ", words(text))


def _shape_only(ops: Counter[tuple[str, str]]) -> Counter[str]:
    return Counter({op: k for (op, _), k in ops.items()})


def _states_repetition(v: View) -> bool:
    texts = [plain(c.attrs.get("label", "")) for c in v.graph.clusters.values()]
    if any("repeats" in c.attrs for c in v.graph.clusters.values()) or any(
        n.layers and "repeats" in n.attrs for n in v.nodes.values()
    ):
        return True
    texts += [plain(v.graph.attrs.get("label", "")), *(n.text for n in v.nodes.values())]
    return any(
        repeats_in(t) is not None
        or re.search(
            r"\b\d+\s*(?:more\s*)?(?:identical\s*)?layers\b|layers?\s*\d+\s*(?:-|–|to)\s*\d+", t, re.IGNORECASE
        )
        for t in texts
    )


@rule("R19", "the repetitions add up to num_hidden_layers, per stage and in total")
def layer_sum(v: View) -> Iterator[Violation]:
    stated = v.graph.attrs.get("num_hidden_layers", "")
    total = int(stated) if stated.isdigit() else None
    owners: dict[int, frozenset[int]] = {}
    seen = False
    for devices, layers, times, n in _layer_claims(v):
        seen = True
        if layers and times != len(layers):
            yield _bad(
                n,
                f"repeats {times} times but stands for {len(layers)} layers",
                "make the count and the layer range agree",
            )
        for i in layers:
            owners[i] = owners.get(i, frozenset()) | devices
    if not seen:
        raise NotDecidable("no layer range or repetition is stated")
    if total is None:
        total = max(owners, default=-1) + 1
        if not owners:
            raise NotDecidable("the number of layers is not stated (graph attribute num_hidden_layers)")
    missing = sorted(set(range(total)) - owners.keys())
    extra = sorted(owners.keys() - set(range(total)))
    if missing or extra:
        what = f"layers {missing[:8]} are missing" if missing else f"layers {extra[:8]} do not exist"
        yield Violation(
            message=f"{len(owners)} of {total} layers are drawn: {what}",
            line=v.graph.line,
            fix="correct the repetitions and layer ranges",
        )
    yield from _uneven_stages(v)


def _layer_claims(v: View) -> Iterator[tuple[frozenset[int], frozenset[int], int, NodeFacts]]:
    """(devices, layers, repetitions, node) once per node that belongs to layers."""
    for n in v.nodes.values():
        if n.kind != "compute":
            continue
        devices = n.devices or frozenset()
        if n.layers and "repeats" in n.attrs:
            yield devices, n.layers, n.repeats or 1, n
            continue
        for _, times, layers in cluster_repeats(v, n.cluster):
            if layers:
                yield devices, layers, times, n
                break


def _uneven_stages(v: View) -> Iterator[Violation]:
    """A device that lacks an operator which the others of its stage have."""
    steps: dict[tuple[str, str], list[NodeFacts]] = defaultdict(list)
    for n in v.nodes.values():
        if n.kind == "compute" and n.layers and n.devices and n.module:
            steps[(n.module, _without_index(n.operator))].append(n)
    lanes: dict[str, frozenset[int]] = {}
    for c in v.graph.clusters.values():
        if c.attrs.get("layer_indices") and c.parent and (gpu := v.graph.clusters[c.parent].attrs.get("gpu")):
            span = c.attrs["layer_indices"]
            lanes[span] = lanes.get(span, frozenset()) | index_set(gpu)
    for nodes in steps.values():
        key = next((k for k in lanes if nodes[0].layers <= index_set(k)), None)
        have = frozenset().union(*(n.devices or frozenset() for n in nodes))
        if key and lanes[key] - have:
            gone = ",".join(map(str, sorted(lanes[key] - have)))
            yield _bad(
                nodes[0], f"is missing on GPU {gone}", "every device of the stage runs every operator of its layers"
            )


@rule("R20", "each node carries its module path")
def modules(v: View) -> Iterator[Violation]:
    _some_nodes(v)
    for n in v.nodes.values():
        if not n.module and n.kind != "io":
            yield _bad(n, "no module path", "write it on the second line, e.g. model.layers.0-79.self_attn.q_proj")


def _needs_run(what: str) -> Check:
    def check(v: View) -> Iterator[Violation]:
        raise NotDecidable(f"needs the run: {what}")
        yield

    return check


rule("R13", "every model has its own DAGs, the baseline too, per phase")(_needs_run("the set of all DAGs"))
rule("R16", "parts match devices; load is balanced")(_needs_run("shards and predicted times"))
rule("R17", "the executed graph equals the unpartitioned model")(_needs_run("the proof"))
rule("R18", "inputs are byte-identical after the run")(_needs_run("the hashes of the inputs"))
ALL_RULES = tuple(sorted(RULES))
__all__ = [
    "ALL_RULES",
    "RULES",
    "NotDecidable",
    "Rule",
    "RuleResult",
    "Status",
    "Violation",
    "devices_in",
    "result",
    "rule",
]
