"""max/mean over devices, of bytes and of time, against the stated bound or the best that any cut reaches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tools.checks.base import Case, check, error, info, warning
from tools.graph.build import all_sizes
from tools.memory import (
    Dtypes,
    body_kv_bytes_per_token,
    body_state_bytes,
    body_weight_bytes,
    rank_kv_bytes,
    rank_weight_bytes,
)
from tools.partition.lower import Program
from tools.shards import balance as spread
from tools.shards import balance_bound, optimal_cut
from tools.spec.finding import Finding


@check("balance")
def balance(case: Case) -> Iterator[Finding]:
    """Bytes always, times where they were predicted. Broken is an error only where a bound was stated."""
    program, d = case.programs[0], case.deployment
    stated = d.requirements.balance_epsilon if d is not None and d.requirements.balance_stated else None
    context = d.workload.context if d is not None else 1
    held = device_bytes(program, batch=program.strategy.batch, context=context)
    if program.strategy.stage_devices:
        # Faster devices hold more layers by intent: what counts is that their stages take equally long.
        ratio = spread(held).ratio
        yield info(
            "balance-bytes",
            f"bytes: max/mean over devices of several kinds = {ratio:.4f}, not bounded",
            cause="balance",
        )
    else:
        yield from _judge("bytes", held, stated, byte_optimum(program, batch=program.strategy.batch, context=context))
    if case.device_seconds:
        yield from _judge("time", case.device_seconds, stated, 1.0)


def _judge(what: str, per_device: Mapping[int, float], stated: float | None, optimum: float) -> Iterator[Finding]:
    found, bound = spread(per_device), balance_bound(stated, optimum)
    words = (
        f"{what}: max/mean over {len(per_device)} devices = {found.ratio:.4f} (device {found.fullest}), "
        f"bound {bound:.4f}, best over all cuts {optimum:.4f}"
    )
    values: dict[str, Any] = {"ratio": found.ratio, "bound": bound, "optimum": optimum}
    if found.ratio <= bound * (1 + 1e-9):
        yield info("balance", words, cause="balance", where=what, **values)
        return
    tell = error if stated is not None else warning
    fix = "layers_per_stage of the optimal cut, degrees that divide the dims"
    yield tell("imbalance", words, cause="balance", where=what, fix=fix, **values)


def device_bytes(program: Program, *, batch: int, context: int) -> dict[int, float]:
    """Weights and KV cache of every device of one replica, exact."""
    kv = rank_kv_bytes(program, batch=batch, context=context)
    return {r: n + kv[r] for r, n in rank_weight_bytes(program).items()}


def byte_optimum(program: Program, *, batch: int, context: int) -> float:
    """Smallest max/mean of bytes that any cut of the layers into this many stages reaches, the rest being the same."""
    heaviest = max(_heaviest(program, role, batch, context) for role, _ in program.mesh.roles())
    held = device_bytes(program, batch=batch, context=context)
    return heaviest / (sum(held.values()) / len(held))


def _heaviest(program: Program, role: frozenset[str], batch: int, context: int) -> float:
    """Bytes of the fullest of the ranks in these device groups, under the best cut of the layers for them."""
    m, s, mesh = program.model, program.strategy, program.mesh
    assert s.attn_dp is not None
    dtypes, sizes = Dtypes.of_strategy(m, s), all_sizes(m, batch_size=batch, seq_len=1, kv_len=context)
    sequences = -(-batch // s.attn_dp)
    costs: dict[int, float] = {}
    for stage in program.stages:
        for run in stage.runs:
            for i, layer in enumerate(run.layers):
                b = run.bodies[i % len(run.bodies)]
                weights = body_weight_bytes(b, sizes, mesh, dtypes, role=role)
                kv = sequences * context * body_kv_bytes_per_token(b, sizes, mesh, dtypes, role)
                states = body_state_bytes(b, sizes, mesh, dtypes, sequences=sequences, role=role)
                costs[layer] = float(weights + kv + states)
    first, last = program.stages[0].embed, program.stages[-1].head
    ends = [float(body_weight_bytes(b, sizes, mesh, dtypes, role=role)) if b else 0.0 for b in (first, last)]
    if s.pp == 1 and m.tie_word_embeddings and last is not None:
        ends[1] = float(body_weight_bytes(last, sizes, mesh, dtypes, frozenset({"embed_tokens"}), role))
    _, heaviest = optimal_cut([costs[i] for i in sorted(costs)], s.pp, first=ends[0], last=ends[1])
    return heaviest
