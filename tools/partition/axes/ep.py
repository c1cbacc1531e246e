"""Expert parallelism: whole experts per rank (ep), slices of experts (etp), copies of them (edp), and the
nodes that an all-to-all in two steps crosses first (ep_nodes)."""

from __future__ import annotations

from tools.partition.axes.base import Axis, Sliced
from tools.spec.base import Refused, ToolError
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy


def _check(model: ModelSpec, s: Strategy, _: Sliced) -> None:
    if model.moe is None and s.redundant_experts:
        raise ToolError(f"redundant_experts({s.redundant_experts}) on {model.name}, which has no experts; use 0")
    if model.moe is None and s.ep > 1 and not s.expert_devices:
        raise ToolError(f"ep({s.ep}) on {model.name}, which has no experts; use ep=1")
    if s.ep_nodes > 1:
        _check_nodes(model, s)


def _check_nodes(model: ModelSpec, s: Strategy) -> None:
    slots = model.moe.num_experts + s.redundant_experts if model.moe else 0
    for what, n in ((f"ep({s.ep})", s.ep), (f"experts({slots})", slots)):
        if n % s.ep_nodes or n == 0:
            raise ToolError(
                f"{what} % ep_nodes({s.ep_nodes}) = {n % s.ep_nodes}: nodes hold equal runs of the experts; use a divisor of {n}"
            )
    if s.moe_comm == "allgather":
        raise ToolError(f"ep_nodes({s.ep_nodes}) is a way to dispatch by all-to-all; use moe_comm auto, or ep_nodes=1")
    if s.expert_devices:
        raise Refused(
            f"ep_nodes({s.ep_nodes}) with expert_devices({s.expert_devices}): tokens reach experts on devices of their own by "
            "one transfer; use ep_nodes=1"
        )


AXIS = Axis(
    name="ep",
    summary="Expert parallelism (GShard, arXiv 2006.16668), its slices (etp) and copies (edp).",
    cuts=lambda d: {
        "etp": d["etp"],
        "ep_node": d["etp"] * (d["ep"] // d["ep_nodes"]),
        "ep": d["etp"] * d["ep"],
    },
    pieces=(("etp", "one", "etp"), ("ep_nodes", "ep_node", "ep"), ("ep", "etp", "ep"), ("edp", "ep", "group")),
    visible=("ep", "etp", "edp", "ep_nodes"),
    splits=(("experts", "ep"), ("expert_ffn", "etp")),
    check=_check,
)
