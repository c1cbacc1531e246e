"""Layer-wise placement of a model: bytes of its layers as the partitioned graph has them, and the strategy that follows.

place_layers(model, strategy, Layerwise(budget_bytes=50e6))   → the strategy with pp and layers_per_stage
"""

from __future__ import annotations

from tools.memory import COUNTED, Counted, layer_loads
from tools.partition.layerwise import Method, megabytes, place
from tools.spec.base import Frozen, ToolError
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy


class Layerwise(Frozen):
    """How layers are dealt out to devices: by which budget, which bytes count, at which batch and prompt."""

    budget_bytes: float | None = None
    """Per device: an L2 or SRAM size, or what is stated. None: as many devices as asked for, as even as can be."""
    method: Method = "dp"
    count: tuple[Counted, ...] = COUNTED
    activations: str = "peak"
    """peak: layers of a group run one after another, the largest counts; sum: nothing is freed."""
    ends: bool = True
    """Embedding and head count on the first and the last device."""
    batch: int = 1
    seq_len: int = 1024


def place_layers(model: ModelSpec, strategy: Strategy, rule: Layerwise, *, groups: int | None = None) -> Strategy:
    """`strategy` with one pipeline stage per group of layers. `groups`: that many; None: the fewest that keep the budget.

    Raises Refused, with the numbers, where a layer or the best placement exceeds the budget; ToolError where the rule says
    nothing to go by.
    """
    if strategy.virtual > 1:
        raise ToolError(
            f"layer-wise placement gives each device one group of layers, virtual is {strategy.virtual}; use 1"
        )
    loads = layer_loads(
        model, strategy, batch=rule.batch, seq_len=rule.seq_len, count=rule.count,
        add_activations=rule.activations == "sum", ends=rule.ends,
    )  # fmt: skip
    counts = place(loads, budget=rule.budget_bytes, method=rule.method, groups=groups)
    return strategy.model_copy(update={"pp": len(counts), "layers_per_stage": counts})


def placement_words(model: ModelSpec, strategy: Strategy, rule: Layerwise) -> str:
    """ "10 devices hold 3 or 4 layers each, at most 48.2 MB of 50 MB"."""
    loads = layer_loads(
        model, strategy, batch=rule.batch, seq_len=rule.seq_len, count=rule.count,
        add_activations=rule.activations == "sum", ends=rule.ends,
    )  # fmt: skip
    counts = strategy.layers_per_stage or ()
    numbers = " or ".join(map(str, sorted(set(counts))))
    of = f" of {megabytes(rule.budget_bytes)}" if rule.budget_bytes else ""
    return f"{len(counts)} stages hold {numbers} layers each, at most {megabytes(max(loads.groups(counts)))}{of} per device"
