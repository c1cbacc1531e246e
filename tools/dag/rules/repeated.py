"""Blocks of operators that a device is drawn with more than once, one after the other: what R11 asks to draw once.

Found in the graph's structure: along the operators of one device, in an order in which every one comes after what it
reads, the same labels (their numbers aside) come again, and what is drawn again depends on what was drawn before.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from tools.dag.alike import by_form, form
from tools.dag.facts import NodeFacts, View, is_residual, words
from tools.dag.ports import PortFacts

MAX_OPERATORS = 4_000
"""Operators of one device that are looked through."""
MAX_PERIODS = 40
MAX_WALK = 4_000
LAYER_LIKE = re.compile(
    r"norm\b|\bffn\b|\bmlp\b|\bmoe\b|\bexperts?\b|feed[\s-]?forward|^\s*(?:layer|block)\s*#?\d+\s*$", re.IGNORECASE
)
"""What a layer has once and a loop inside a layer (ring steps, chunks) has not."""


@dataclass(frozen=True, slots=True)
class Repetition:
    first: NodeFacts
    again: NodeFacts
    last: NodeFacts
    size: int
    times: int


def repetitions(v: View) -> Iterator[Repetition]:
    """The longest repeated block of each device, or group of devices, that operators name."""
    on: dict[frozenset[int] | None, list[NodeFacts]] = defaultdict(list)
    for n in _in_order(v):
        if n.kind in ("compute", "routing") and (n.everywhere or n.devices is not None):
            on[n.devices].append(n)  # None: on all of them
    for nodes in on.values():
        if len(nodes) <= MAX_OPERATORS and (found := _longest(v, nodes)):
            yield found


def _in_order(v: View) -> list[NodeFacts]:
    waiting = {n: len(p) for n, p in v.preds.items()}
    ready = [n for n, k in waiting.items() if k == 0]
    for n in ready:  # grows while it is read
        for m in v.succs[n]:
            waiting[m] -= 1
            if waiting[m] == 0:
                ready.append(m)
    return [v.nodes[n] for n in ready]


def _longest(v: View, nodes: list[NodeFacts]) -> Repetition | None:
    said = [_said(n) for n in nodes]
    places: dict[Said, list[int]] = defaultdict(list)
    for i, s in enumerate(said):
        places[s].append(i)
    periods = sorted({b - a for at in places.values() for a, b in pairwise(at)})[:MAX_PERIODS]
    best: Repetition | None = None
    for period in periods:
        run = 0
        for i in range(len(said) - period + 1):
            if i + period < len(said) and said[i] == said[i + period]:
                run += 1
                continue
            if run >= period and (found := _block(v, nodes[i - run : i + period], period)):
                best = found if best is None or found.size * found.times > best.size * best.times else best
            run = 0
    return best


def _block(v: View, nodes: list[NodeFacts], period: int) -> Repetition | None:
    """None where the repeated operators are no layer, or do not depend on each other: experts and heads are drawn side by side."""
    first, again = nodes[0], nodes[period]
    body = nodes[:period]
    if not any(is_residual(n) or _is_layer_like(n.operator) for n in body) or not _leads_to(v, first.id, again.id):
        return None
    if period == 1 and not _is_one_layer(first.operator):
        return None
    return Repetition(first, again, body[-1], period, len(nodes) // period)


Said = tuple[str, tuple[PortFacts, ...] | None, tuple[PortFacts, ...] | None]


def _said(n: NodeFacts) -> Said:
    """What a node says, its numbers aside except the dims."""
    return re.sub(r"1+", "#", form(n.operator)), n.inputs, n.outputs


@by_form
def _is_layer_like(operator: str) -> bool:
    return LAYER_LIKE.search(words(operator)) is not None


@by_form
def _is_one_layer(operator: str) -> bool:
    return re.fullmatch(r"\W*(?:[a-z]+\s+)*(?:layer|block)\s*#?\d+\W*", words(operator), re.IGNORECASE) is not None


def _leads_to(v: View, start: str, end: str) -> bool:
    seen, todo = {start}, [start]
    for n in todo:  # grows while it is read
        for m in v.succs[n]:
            if m == end:
                return True
            if m not in seen and len(seen) < MAX_WALK:
                seen.add(m)
                todo.append(m)
    return False


__all__ = ["Repetition", "repetitions"]
