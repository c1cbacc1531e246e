"""Passes through a pipeline: prompts, slices of a prompt, decode steps, each through all chunks of layers in the order of
the schedule.

A slice is executed with the caches that the slices before it left on the same ranks. What it must equal: its positions of
every tensor of the unpartitioned prefill. The head, which takes the last position only, has no such part; there a slice
must equal the head of the prompt that ends with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tools.graph.ir import Body
from tools.oracle.execute import Caches, Devices, Flow, Trace, Weights, run_reference, run_stage
from tools.partition.lower import Program
from tools.partition.pipeline import order, sequence, slices


@dataclass(frozen=True, slots=True)
class Pass:
    """New tokens [batch_size, seq_len] that go through all chunks together after `past` cached positions, and what every
    tensor must be."""

    ids: np.ndarray
    past: int
    want: Trace


def prompt_passes(
    ids: np.ndarray, count: int, bodies: Sequence[tuple[int | None, Body]], weights: Weights, whole: Trace
) -> list[Pass]:
    """A prompt in `count` slices; `whole` are the tensors of its unpartitioned prefill."""
    if count == 1:
        return [Pass(ids, 0, whole)]
    return [
        Pass(ids[:, first : first + n], first, _part(whole, bodies, weights, first, first + n))
        for first, n in slices(ids.shape[1], count)
    ]


def _part(whole: Trace, bodies: Sequence[tuple[int | None, Body]], weights: Weights, first: int, end: int) -> Trace:
    """Positions first … end - 1 of every tensor; cached positions as far as they exist then."""
    out, (last, head) = Trace(), bodies[-1]
    cuts = {"seq_len": slice(first, end), "kv_len": slice(0, end)}
    for layer, body in bodies[:-1]:
        for name, t in body.tensors.items():
            x = whole.values.get((layer, body.name, name))
            if x is not None and not isinstance(x, list):
                out.values[(layer, body.name, name)] = x[tuple(cuts.get(d, slice(None)) for d in t.dims)]
    x = whole.values[(last, head.name, head.inputs[0])]
    assert not isinstance(x, list)
    until = run_reference([(last, head)], weights, x[:, :end], {}, 0)
    for name, t in head.tensors.items():
        y = until.values.get((last, head.name, name))
        if y is not None and not isinstance(y, list):
            cut = cuts["seq_len"]
            out.values[(last, head.name, name)] = y[tuple(cut if d == "seq_len" else slice(None) for d in t.dims)]
    return out


def run_passes(
    program: Program, weights: Weights, passes: Sequence[Pass], machines: Sequence[Devices],
    caches: Mapping[int, list[Caches]],
) -> list[Trace]:  # fmt: skip
    """Every pass through all chunks, in the order in which the stages take them; `caches[chunk][rank]` are extended.

    `machines`: the ranks of a stage at the lengths of each pass. Raises ValueError when no stage can go on.
    """
    last, traces = len(program.stages) - 1, [Trace() for _ in passes]
    handed: dict[tuple[int, int], Flow] = {}
    for task in sequence(order(program.strategy, len(passes)), last):
        stage, p = program.stages[task.chunk], passes[task.piece]
        sent = handed.pop((task.piece, task.chunk - 1), {})
        handed[task.piece, task.chunk] = run_stage(
            program, stage, weights, p.ids, sent, caches[stage.index], machines[task.piece], traces[task.piece]
        )
    return traces
