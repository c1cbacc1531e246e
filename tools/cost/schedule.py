"""The schedule of a pipeline with times: every micro-batch or slice in every chunk of layers, start and end.

Times are kernel times of the fullest rank, and one message of the slowest stage boundary per hand-over; what the engine's
host adds per step is not in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from tools.cost.compute import kernels_of
from tools.cost.curves import Curves
from tools.cost.steps import Candidates, Layout, Works, layouts, splits
from tools.partition.pipeline import Orders, Span, Task, bubble, cut, num_slices, order, slices, timeline
from tools.spec.deployment import Deployment
from tools.spec.model import LayerKind
from tools.spec.strategy import Phase, Strategy


@dataclass(frozen=True, slots=True)
class Piece:
    """What goes through the stages at once: `sequences` (per replica) x `tokens` new ones at `context` KV positions."""

    sequences: int
    tokens: int
    context: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """`transfer`: what a hand-over takes, by piece; `unit`: of all times."""

    pieces: tuple[Piece, ...]
    orders: Orders
    spans: Mapping[Task, Span]
    transfer: tuple[float, ...]
    unit: str = "s"

    @property
    def bubble(self) -> float:
        """Idle share of the stages between the first start and the last end."""
        return bubble(self.spans, self.orders)

    @property
    def makespan(self) -> float:
        return max(s.end for s in self.spans.values())


def pieces_of(s: Strategy, phase: Phase, *, batch: int, seq_len: int) -> tuple[Piece, ...]:
    """Micro-batches of `batch` sequences, each in the strategy's slices of the prompt. A strategy that states no number of
    micro-batches and no slices has as many as stages, if there are sequences for them."""
    parts = num_slices(s, phase)
    count = s.microbatches if s.microbatches > 1 or parts > 1 else min(s.pp, batch)
    sizes = cut(batch, count, "microbatches", "batch")
    steps = [(n, first + n) for first, n in slices(seq_len, parts)] if phase == "prefill" else [(1, seq_len)]
    return tuple(Piece(n, tokens, context) for _, n in sizes for tokens, context in steps)


def schedule(
    deployment: Deployment, strategy: Strategy, curves: Curves, phase: Phase, *, batch: int, seq_len: int
) -> Schedule:
    """Forward schedule of one step of a replica on the deployment's devices: the prefill of `batch` prompts of `seq_len`
    tokens, or one decode step at that context. Raises ToolError for more micro-batches than sequences."""
    pieces = pieces_of(strategy, phase, batch=batch, seq_len=seq_len)
    ((_, layout),) = layouts(deployment, curves, Candidates.of(strategy))
    priced = {p: _piece_seconds(layout, strategy, phase, p) for p in dict.fromkeys(pieces)}
    orders, last = order(strategy, len(pieces)), strategy.pp * strategy.virtual - 1
    spans = timeline(orders, last, lambda t: priced[pieces[t.piece]][0][t.chunk], lambda t: priced[pieces[t.piece]][1])
    return Schedule(pieces, orders, spans, tuple(priced[p][1] for p in pieces))


def _piece_seconds(layout: Layout, s: Strategy, phase: Phase, p: Piece) -> tuple[list[float], float]:
    """(seconds in every chunk, seconds of a hand-over)."""
    works = layout.works(phase, *(np.asarray([n]) for n in (p.sequences, p.tokens, p.context)))
    priced = {id(side): _bodies_seconds(side, w) for side, w in layout.by_stage(works)}
    on = [priced[id(side)] for side, _ in layout.by_stage(works)]
    ends = [0, *accumulate(splits(layout.cands, layout.model)[s.pp])]
    kinds = layout.model.layers()
    chunks = [sum(on[i % s.pp][1][k] for k in kinds[a:b]) for i, (a, b) in enumerate(pairwise(ends))]
    chunks[0], chunks[-1] = chunks[0] + on[0][0], chunks[-1] + on[-1][2]
    hop = float(np.max(layout.boundary_times(works.residual_bytes)[1])) / s.virtual if s.pp > 1 else 0.0
    return chunks, hop


def _bodies_seconds(layout: Layout, works: Works) -> tuple[float, dict[LayerKind, float], float]:
    """Of embedding, of a layer of each kind, of head."""
    embed, *layers, head = (float(np.max(t)) for t in layout.body_times(works))
    return embed, dict(zip((k for k, _ in layout.decode.layers), layers, strict=True)), head


# ------------------------------------------------------------------------------------------- attention and experts apart


@dataclass(frozen=True, slots=True)
class Halves:
    """Seconds of one piece in one layer: on attention's ranks, on the experts' ranks, of both transfers between them."""

    attention: float
    experts: float
    transfer: float


def layer_halves(
    deployment: Deployment, strategy: Strategy, curves: Curves, phase: Phase, piece: Piece
) -> tuple[Halves, ...]:
    """Every layer of a strategy with `expert_devices`, kernel by kernel on the device group that runs it. A layer without
    routed experts has nothing on the experts' side."""
    ((_, layout),) = layouts(deployment, curves, Candidates.of(strategy))
    works = layout.works(phase, *(np.asarray([n]) for n in (piece.sequences, piece.tokens, piece.context)))
    bodies = dict((layout.prefill if phase == "prefill" else layout.decode).layers)
    found: dict[LayerKind, Halves] = {}
    for kind, ws in works.layers:
        kernels = [k for k in kernels_of(bodies[kind]) if k.comm is None or k.comm.kind != "slice"]
        parts = dict.fromkeys(("attention", "experts", "transfer"), 0.0)
        for k, w in zip(kernels, ws, strict=True):
            moved = k.comm is not None and k.comm.kind == "transfer"
            where = "transfer" if moved else bodies[kind].group(k.steps[0].output)
            parts[where] += float(np.max(layout.body_time((w,), works)))
        found[kind] = Halves(**parts)
    return tuple(found[k] for k in layout.model.layers())


def ping_pong(layers: Sequence[Halves], pieces: int) -> Schedule:
    """Micro-batches between attention and experts: chunk 2l is attention of layer l, chunk 2l + 1 its experts; each side takes
    the micro-batches in turn, layer after layer (MegaScale-Infer, arXiv 2504.02263 §4). `transfer` is of one way."""
    visits = [c for i, x in enumerate(layers) for c in ((2 * i, 2 * i + 1) if x.experts else (2 * i,))]
    place = {c: n for n, c in enumerate(visits)}
    took = [layers[c // 2].experts if c % 2 else layers[c // 2].attention for c in visits]
    sides = tuple(tuple(Task(p, place[c]) for c in visits if c % 2 == side for p in range(pieces)) for side in (0, 1))
    ways = max((x.transfer / 2 for x in layers), default=0.0)
    spans = timeline(sides, len(visits) - 1, lambda t: took[t.chunk], lambda t: ways)
    renamed = {Task(t.piece, visits[t.chunk]): span for t, span in spans.items()}
    orders = tuple(tuple(Task(t.piece, visits[t.chunk]) for t in side) for side in sides)
    return Schedule((Piece(1, 1, 1),) * pieces, orders, renamed, (ways,) * pieces)


__all__ = ["Halves", "Piece", "Schedule", "layer_halves", "pieces_of", "ping_pong", "schedule"]
