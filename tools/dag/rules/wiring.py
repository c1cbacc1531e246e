"""R06, R07, R08, R09, R14: what is joined to what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches

from tools.dag.alike import by_form
from tools.dag.facts import TOP_K, NodeFacts, View, is_dashed, is_gate, is_residual, words
from tools.dag.rules.base import NotDecidable, Violation, bad, rule, some_nodes
from tools.dag.rules.evidence import is_own


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
    at = next(n for n in v.nodes if n in left)
    while at not in seen:
        seen[at] = len(path)
        path.append(at)
        at = next(p for p in v.preds[at] if p in left)
    return [*path[seen[at] :], at][::-1]


@rule("R07", "one total input, one total output, nothing else without predecessor or successor")
def ends(v: View) -> Iterator[Violation]:
    some_nodes(v)
    sources = [v.nodes[n] for n, p in v.preds.items() if not p]
    sinks = [v.nodes[n] for n, s in v.succs.items() if not s]
    undefined = sorted(v.undefined)
    for found, word, other in ((sources, "predecessor", "input"), (sinks, "successor", "output")):
        named = [n for n in found if n.kind == "io" or re.search(other, n.id + words(n.operator), re.IGNORECASE)]
        called = [n for n in named if re.search(other, n.id + words(n.operator), re.IGNORECASE)]
        elsewhere = any(n.kind == "io" and re.search(other, n.operator, re.IGNORECASE) for n in v.nodes.values())
        keep = (called or named)[0] if named else None if elsewhere and not is_own(v) else _unnamed_end(v, found)
        if keep is None:
            yield Violation(message=_no_end(found, word, other),
            node=found[0].id if found else None,
                            line=found[0].line if found else None,
                            fix=f"add one parallelogram 'total {other}'")  # fmt: skip
        for n in found if keep or len(found) > 1 else ():
            if n is not keep and not v.preds[n.id] and not v.succs[n.id] and len(v.nodes) > 1:
                if word == "predecessor":
                    yield bad(
                        n, "has neither predecessor nor successor", f"connect it or remove it{_meant(n, undefined)}"
                    )
            elif n is not keep:
                yield bad(n, f"has no {word}", f"connect it; only the total {other} may have none")


def _meant(n: NodeFacts, undefined: list[str]) -> str:
    """The name that the edges may have meant it by."""
    alike = get_close_matches(n.id, undefined, n=1, cutoff=0.8) if len(undefined) <= MAX_COMPARED else []
    return f"; the edges name {alike[0]}, which is defined nowhere" if alike else ""


MAX_COMPARED = 200


def _no_end(found: list[NodeFacts], word: str, other: str) -> str:
    if len(found) == 1:
        return f"{found[0].id}: the only node without {word} is not called the {other}"
    return f"no total {other}: {len(found)} nodes without {word}, none called so"


def _unnamed_end(v: View, found: list[NodeFacts]) -> NodeFacts | None:
    """The total input or output under a name that nobody here knows: a parallelogram, or the only one that is no operator."""
    if is_own(v):
        return None
    drawn = [
        n
        for n in found
        if n.shape == "parallelogram" and (n.kind == "io" or not n.sure or (n.kind == "routing" and n.everywhere))
    ]
    return drawn[0] if drawn else found[0] if len(found) == 1 and not found[0].sure else None


@rule("R08", "a residual add has at least two inputs")
def residuals(v: View) -> Iterator[Violation]:
    # Where no operator lists several inputs, one shape stands for all of them: only the edges count.
    lists_all = any(len(n.inputs or ()) > 1 for n in v.nodes.values())
    for n in v.nodes.values():
        if n.kind != "compute" or not is_residual(n):
            continue
        if len(set(v.preds[n.id])) < 2:
            yield bad(n, f"residual add with {len(set(v.preds[n.id]))} input", "add the edge that skips the block")
        elif lists_all and n.inputs and len(n.inputs) < 2:
            yield bad(n, "residual add whose label states one input", "list both inputs with their dims")


EXPERT = re.compile(
    r"\bexperts?\b|专家|\bmoe\b(?!\s*(?:layer|block|module|model)?\s*(?:l?\d+)?\s*(?:[(（].*)?\Z)", re.IGNORECASE
)
"""A node for a whole MoE block holds its own gate; it is R10's to tell."""
MAX_WALK = 1_000_000
"""Gates times edges; beyond it only the union of all gates is judged."""
EXPERT_ROUTING = re.compile(r"\bdispatch\b|\bexpert routing\b|\broute\b|\brouting\b|路由|分发", re.IGNORECASE)


@rule("R09", "the gate's selection is dashed, from the gate towards every expert's routing")
def gates(v: View) -> Iterator[Violation]:
    nodes = [n for n in v.nodes.values() if n.id not in v.undefined]
    experts = [n for n in nodes if n.kind == "compute" and _names_expert(n.operator)]
    found = _gates(v)
    if not found:
        if experts and any(is_dashed(e.attrs) for e in v.graph.edges) and not is_own(v):
            raise NotDecidable("no node is called a gate or router, but dashed edges are drawn")
        if experts:
            yield bad(experts[0], "experts without a gate", "add the gate's top-k selection and its dashed edges")
        return
    called = {g.id for g in found}
    elsewhere = [e.src for e in v.graph.edges if is_dashed(e.attrs) and not v.nodes[e.src].sure and e.dst not in called]
    if elsewhere and not is_own(v) and not any(is_dashed(e.attrs) for g in found for e in v.out_edges[g.id]):
        raise NotDecidable(f"dashed edges leave {elsewhere[0]}, which is not known as a gate")
    reached: set[str] = set()
    for g in found:
        dashed = [e.dst for e in v.out_edges[g.id] if is_dashed(e.attrs)]
        solid = [e for e in v.out_edges[g.id] if not is_dashed(e.attrs) and _is_expert_side(v.nodes[e.dst])]
        if not dashed and not solid:
            yield bad(g, "no dashed edge leaves the gate", "draw its selection with style=dashed")
        reached |= _follow(v, dashed) | {e.dst for e in solid}
        for e in solid:
            message = f"{g.id} → {e.dst}: the gate's selection is a solid line"
            yield Violation(message=message, node=g.id, line=e.line, fix="style=dashed")
    chosen = {g.id for g in found}
    targets = [n for n in nodes if n.kind == "routing" and _routes(n.operator) and n.id not in chosen]
    if targets:
        yield from _partial_choice(v, found, {t.id for t in targets})
    onwards = reached.union(*(v.succs[r] for r in reached))
    unknown = (
        reached and not any(t.id in onwards for t in targets or experts) and not any(v.nodes[r].sure for r in reached)
    )
    if unknown and not is_own(v):
        raise NotDecidable(f"dashed lines leave {found[0].id}, to nodes that are not known as routing or experts")
    expert_ids = {e.id for e in experts}
    inside = {e for e in expert_ids if not expert_ids.isdisjoint(v.preds[e])}
    for t in targets or experts:
        if (
            t.id not in reached
            and t.id not in inside
            and not (not targets and any(p in reached for p in v.preds[t.id]))
        ):
            yield bad(
                t,
                "no dashed line from a gate leads here",
                "add a dashed edge from the gate (through the all-to-all where tokens cross devices)",
            )


def _gates(v: View) -> list[NodeFacts]:
    """Nodes that choose experts: the top-k where the file has one, else whatever it calls gate or router, else a gate's
    linear map that dashed lines leave."""
    nodes = [n for n in v.nodes.values() if is_gate(n)]
    chosen = [n for n in nodes if TOP_K.search(words(n.operator))]
    return chosen or nodes or [
        n for n in v.nodes.values()
        if _names_gate(n.operator)
        and any(is_dashed(e.attrs) for e in v.out_edges[n.id])
    ]  # fmt: skip


def _partial_choice(v: View, found: list[NodeFacts], targets: set[str]) -> Iterator[Violation]:
    """A gate whose tokens can reach an expert that its dashed lines leave out."""
    if len(found) * len(v.graph.edges) > MAX_WALK:
        return
    final = {t for t in targets if not any(m in targets for m in v.succs[t])}
    for g in found:
        chosen = _follow(v, [e.dst for e in v.out_edges[g.id] if is_dashed(e.attrs)]) & targets
        way, todo = set(), [g.id, *_before(v, g)]
        while todo:
            for m in v.succs[todo.pop()]:
                if m not in way and v.nodes[m].kind in ("routing", "comm"):
                    way.add(m)
                    todo.append(m)
        left = sorted((way & final) - chosen)
        if chosen & final and left:
            yield bad(
                g,
                f"selects among {len(chosen & final)} of the {len(way & final)} experts that its tokens can reach",
                f"add dashed edges to {', '.join(left[:4])}",
            )


MAX_BEFORE = 4
"""Operators between the tokens and the choice: gate matmul, bias, softmax, norm."""


def _before(v: View, g: NodeFacts) -> list[str]:
    """What the gate reads, back to the tokens that it chooses for: computations of its own device."""
    found, edge = [], [g.id]
    for _ in range(MAX_BEFORE):
        edge = [p for n in edge for p in v.preds[n] if v.nodes[p].kind == "compute" and v.nodes[p].devices == g.devices]
        found += edge[:MAX_BEFORE]
    return found


def _is_expert_side(n: NodeFacts) -> bool:
    return _routes(n.operator) or (
        n.kind == "compute"
        and bool(re.match(r"\s*experts?\b(?! (?:scores|weights))", words(n.operator), re.IGNORECASE))
    )


@by_form
def _names_expert(operator: str) -> bool:
    return EXPERT.search(words(operator)) is not None


@by_form
def _names_gate(operator: str) -> bool:
    return re.search(r"\b(?:gate|router)\b(?![ _]?proj)", words(operator), re.IGNORECASE) is not None


@by_form
def _routes(operator: str) -> bool:
    return EXPERT_ROUTING.search(words(operator)) is not None


def _follow(v: View, start: list[str]) -> set[str]:
    """Nodes that dashed edges lead to, onwards through splits and communication."""
    seen, todo = set(start), list(start)
    while todo:
        for e in v.out_edges[todo.pop()]:
            if is_dashed(e.attrs) and e.dst not in seen:
                seen.add(e.dst)
                todo.append(e.dst)
    return seen


@rule("R14", "connected")
def connected(v: View) -> Iterator[Violation]:
    some_nodes(v)
    seen, todo = set(), [next(iter(v.nodes))]
    while todo:
        n = todo.pop()
        if n not in seen:
            seen.add(n)
            todo += v.preds[n] + v.succs[n]
    rest = [n for n in v.nodes if n not in seen]
    if rest:
        yield bad(
            v.nodes[rest[0]],
            "nothing connects it to the rest"
            if len(rest) == 1
            else f"is one of {len(rest)} nodes that nothing connects to the rest",
            "add the missing edges or remove the nodes",
        )
