"""Pipeline parallelism: runs of layers on ranks of their own."""

from __future__ import annotations

from tools.partition.axes.base import Axis, Sliced
from tools.partition.pipeline import check_pipeline
from tools.spec.base import ToolError
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy


def _check(model: ModelSpec, s: Strategy, _: Sliced) -> None:
    if s.layers_per_stage and sum(s.layers_per_stage) != model.num_hidden_layers:
        raise ToolError(
            f"layers_per_stage {list(s.layers_per_stage)} sums to {sum(s.layers_per_stage)}, "
            f"the model has {model.num_hidden_layers} layers"
        )
    check_pipeline(s, model.num_hidden_layers)


AXIS = Axis(
    name="pp",
    summary="Pipeline parallelism (GPipe, arXiv 1811.06965), interleaved (arXiv 2104.04473) or by token slices (2102.07988).",
    check=_check,  # its ranks lie outside the stage's line, so it cuts nothing there
)
