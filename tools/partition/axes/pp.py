"""Pipeline parallelism: runs of layers on ranks of their own."""

from __future__ import annotations

from itertools import accumulate

from tools.partition.axes.base import Axis, Sliced
from tools.partition.pipeline import check_pipeline, default_layers_per_stage, num_chunks
from tools.spec.base import Refused, ToolError
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy


def _check(model: ModelSpec, s: Strategy, _: Sliced) -> None:
    if s.layers_per_stage and sum(s.layers_per_stage) != model.num_hidden_layers:
        raise ToolError(
            f"layers_per_stage {list(s.layers_per_stage)} sums to {sum(s.layers_per_stage)}, "
            f"the model has {model.num_hidden_layers} layers"
        )
    check_pipeline(s, model.num_hidden_layers)
    _check_lenders(model, s)


def _check_lenders(model: ModelSpec, s: Strategy) -> None:
    """Layers that read the cache of others lie in one run of layers with them: a cache does not cross."""
    tied = [i for i, x in enumerate(model.kv_layers or ()) if x != "own"]
    if not tied or num_chunks(s) == 1:
        return
    first, last, n = tied[0], tied[-1], model.num_hidden_layers
    counts = s.layers_per_stage or default_layers_per_stage(n, num_chunks(s))
    torn = next((start for start in accumulate(counts[:-1]) if first < start <= last), None)
    if torn is not None:
        raise Refused(
            f"pp({s.pp}): layers {first} to {last} of {model.name} share keys and values, and a stage would begin at layer {torn}; "
            f"use layers_per_stage whose last stage has at least {n - first} layers, or pp=1"
        )


AXIS = Axis(
    name="pp",
    summary="Pipeline parallelism (GPipe, arXiv 1811.06965), interleaved (arXiv 2104.04473) or by token slices (2102.07988).",
    check=_check,  # its ranks lie outside the stage's line, so it cuts nothing there
)
