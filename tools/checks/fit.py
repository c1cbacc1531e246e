"""Memory of every stage against the device, by the engine's own accounting."""

from __future__ import annotations

from collections.abc import Iterator

from tools.checks.base import Case, check, error, gib, warning
from tools.memory import memory
from tools.spec.finding import Finding
from tools.spec.plan import StageMemory

TIGHT = 0.02
"""A margin below this share of the device is said aloud: allocators fragment."""


@check("fit")
def fit(case: Case) -> Iterator[Finding]:
    """Weights, activations and the KV cache of the planned batch at the longest context fit on the fullest rank."""
    d = case.deployment
    if d is None:
        return
    stages = memory(
        case.programs[0], capacity_bytes=[c.memory_bytes for c in d.stage_clusters(case.strategy)], context=d.workload.context,
        memory_reserve=d.requirements.memory_reserve, engine_version=d.engine.version,
    )  # fmt: skip
    for s in stages:
        yield from _stage(s, case.strategy.batch, d.workload.context)


def _stage(s: StageMemory, batch: int, context: int) -> Iterator[Finding]:
    where = f"stage {s.stage}"
    share = (
        f"weights {gib(s.weights_bytes)} + KV {gib(s.kv_bytes)} ({batch} × {context} tokens) + activations "
        f"{gib(s.activation_bytes)} + engine {gib(s.overhead_bytes + s.reserve_bytes)} = {gib(s.total_bytes)}"
    )
    values = {"free_bytes": s.free_bytes, "total_bytes": s.total_bytes, "capacity_bytes": s.capacity_bytes}
    room = s.capacity_bytes - (s.total_bytes - s.kv_bytes)
    if room <= 0:
        short = f"{where}: {share} of {gib(s.capacity_bytes)}; {gib(-room)} short before any KV cache"
        fix = "more devices per replica (tp, pp, ep), fewer-bit weights, or a smaller max_num_batched_tokens"
        yield error("memory", short, cause="memory", where=where, fix=fix, **values)
    elif s.free_bytes < 0:
        fits = int(batch * room // s.kv_bytes)
        short = f"{where}: {share} of {gib(s.capacity_bytes)}; {gib(-s.free_bytes)} short for the KV cache"
        fix = f"batch of at most about {fits}, a shorter context, fewer-bit KV, or more devices per replica"
        yield error("kv-cache", short, cause="kv", where=where, fix=fix, **values)
    elif s.free_bytes < TIGHT * s.capacity_bytes:
        words = f"{where}: only {gib(s.free_bytes)} free of {gib(s.capacity_bytes)} ({share})"
        yield warning("memory-tight", words, cause="memory", where=where, fix="a slightly smaller batch", **values)
