"""search --mixed: one pipeline over devices of several kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.commands.common import deployment_from, device_names, print_json
from agent.errors import OK
from knowledge.catalog import load_device
from tools.spec.base import ToolError
from tools.spec.hardware import Cluster
from tools.units import format_quantity


def mixed(asked: Mapping[str, Any], json_: bool) -> int:
    """Stages of one kind of device each, layers cut by speed and memory; the best group size and order first."""
    from agent.calibration import curves_with
    from tools.search.mixed import mixed_pipelines

    clusters = clusters_of(asked)
    deployment = deployment_from({**asked, "device": asked["device"][:1], "nodes": None, "devices_per_node": None})
    if deployment.weight_dtypes == ("bf16",) and any("bf16" not in c.peak_flops for c in clusters):
        # One dtype for all stages: what the oldest kind computes natively.
        deployment = deployment.model_copy(update={"weight_dtypes": ("fp16",), "kv_dtypes": ("fp16",)})
    found = mixed_pipelines(deployment, clusters, curves_with(asked.get("calibration")))[: asked["top"]]
    if json_:
        print_json({"pipelines": [{**p.model_dump(mode="json"), "words": p.words} for p in found]})
        return OK
    for i, p in enumerate(found, 1):
        even = p.even_output_tok_s
        gain = f"{p.output_tok_s / even - 1:+.0%} over even layers" if even else "even layers do not fit"
        print(
            f"{i:3d}  {p.strategy.label(deployment.model.moe is not None)}: {p.words} · up to {p.output_tok_s:,.0f} tokens/s "
            f"({gain}), TPOT {p.tpot_s * 1e3:.3g} ms, prefill {p.ttft_s * 1e3:.3g} ms (kernel times)"
        )
    for n, s in enumerate(found[0].stages):
        free, room = (format_quantity(x, "bytes", 3) for x in (s.memory.free_bytes, s.memory.capacity_bytes))
        print(
            f"     stage {n} on {s.device}: {s.layers} layers, decode {s.decode_s * 1e3:.3g} ms, prefill "
            f"{s.prefill_s * 1e3:.3g} ms, {free} of {room} free"
        )
    print(f"     strategy file: {{tp: {found[0].strategy.tp}, pp: {found[0].strategy.pp}, dp: {found[0].strategy.dp}, "
          f"layers_per_stage: {list(found[0].strategy.layers_per_stage or ())}}}")  # fmt: skip
    return OK


def clusters_of(asked: Mapping[str, Any]) -> list[Cluster]:
    """One cluster per --device: its own number (4xA100), else --nodes times --devices-per-node."""
    names = device_names(asked)
    if len(names) < 2:
        raise ToolError("--mixed needs two kinds of devices or more: --device 4xA100 --device 4xV100")
    if asked.get("unbounded"):
        raise ToolError("--mixed needs a number of devices of each kind; drop --unbounded and write 4xA100")
    out = []
    for name in names:
        found = load_device(name)
        per_node = asked.get("devices_per_node") or found.count or 8
        out.append(Cluster.of(found.device, (asked.get("nodes") or 1) * per_node, per_node))
    return out
