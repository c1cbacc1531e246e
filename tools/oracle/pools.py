"""The proof of two pools: prefill on one, the KV cache handed over message by message, decode steps on the other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tools.graph.build import all_sizes
from tools.oracle.execute import Array, Caches
from tools.oracle.passes import run_passes
from tools.oracle.prove import Proof, Tally, draw, machine, rounds
from tools.oracle.reduce import Reduced, reduce
from tools.partition.lower import Program
from tools.partition.pools import Handover, Pools, handovers, lower_pools
from tools.partition.transfer import place
from tools.spec.base import Bug
from tools.spec.model import ModelSpec
from tools.spec.strategy import Phase, Strategy


def prove_pools(
    model: ModelSpec, prefill: Strategy, decode: Strategy, *, batch_size: int, seq_len: int, decode_steps: int = 4,
    seed: int = 0,
) -> dict[Phase, Proof]:  # fmt: skip
    """Prefill on its pool, hand-over, then decode steps on the other pool; every tensor equals the unpartitioned model's.

    Raises Refused for what cannot be represented. The programs' structure is that of the published ones.
    """
    small = reduce(model, prefill, decode=decode, batch_size=batch_size, seq_len=seq_len, decode_steps=decode_steps)
    assert small.decode is not None
    sizes = all_sizes(small.model, batch_size=small.batch_size, seq_len=small.seq_len, kv_len=small.seq_len)
    step = {**sizes, "seq_len": 1, "kv_len": small.seq_len + decode_steps}
    pools = lower_pools(small.model, small.strategy, small.decode, sizes, step)
    published = lower_pools(model, prefill, decode, {}, {})
    for p, q in ((pools.prefill, published.prefill), (pools.decode, published.decode)):
        if p.digest() != q.digest():
            raise Bug(f"{p.strategy.label()} {p.phase}: reduced graph {p.digest()} is not the published {q.digest()}")
    found = _run(small, pools, seed)
    labels = {"prefill": prefill.label(), "decode": decode.label()}
    return {phase: p.model_copy(update={"strategy": labels[phase]}) for phase, p in found.items()}


def _run(small: Reduced, pools: Pools, seed: int) -> dict[Phase, Proof]:
    weights, ids, nexts, traces, idle = draw(small, seed)
    out: dict[Phase, Proof] = {}
    held: dict[int, list[Caches]] = {}
    programs: dict[Phase, Program] = {"prefill": pools.prefill, "decode": pools.decode}
    for phase, program in programs.items():
        on_ranks: dict[tuple[int, ...], list[Caches]] = {
            s.ranks: [{} for _ in range(int(program.mesh.size))] for s in program.stages
        }
        caches, tally = {s.index: on_ranks[s.ranks] for s in program.stages}, Tally()
        if phase == "decode":
            prompt = {k: int(v) for k, v in pools.prefill.sizes.items()}
            try:
                hand_over(pools, held, caches, prompt)
            except (ValueError, IndexError, KeyError) as e:
                tally.failures.append(f"hand-over: devices cannot execute it: {type(e).__name__}: {e}")
        steps = rounds(small, phase, weights, ids, nexts, traces) if not tally.failures else []
        for at, passes in enumerate(steps):
            machines = [machine(small, program, p) for p in passes]
            try:
                got = run_passes(program, weights, passes, machines, caches)
            except (ValueError, IndexError, KeyError, TypeError) as e:
                tally.failures.append(f"{phase} step {at}: devices cannot execute it: {type(e).__name__}: {e}")
                break
            for p, trace, devices in zip(passes, got, machines, strict=True):
                tally.compare(program, trace, p.want, devices)
        held = caches
        out[phase] = Proof(
            strategy=program.strategy.label(), phase=phase, devices_simulated=len(on_ranks) * int(program.mesh.size),
            steps=1 if phase == "prefill" else small.decode_steps, tensors_compared=tally.count,
            max_relative_error=tally.worst, worst_tensor=tally.where, digest=program.digest(), idle_experts=idle,
            ok=not tally.failures, failures=tuple(tally.failures[:10]),
        )  # fmt: skip
    return out


def hand_over(
    pools: Pools, held: Mapping[int, list[Caches]], into: Mapping[int, list[Caches]], sizes: Mapping[str, int]
) -> None:
    """Fills the decode ranks' caches from the prefill ranks', message by message; what no message brings stays NaN."""
    for h in handovers(pools):
        sent, got = held[h.source.index], into[h.target.index]
        for layer in h.layers:
            _deliver(h, (layer, h.cache), sent, got, sizes)


def _deliver(
    h: Handover, key: tuple[int, str], sent: list[Caches], got: list[Caches], sizes: Mapping[str, int]
) -> None:
    lengths = h.lengths(sizes)
    wanted = {r: h.receiver.held(r, lengths) for r in h.receiver.ranks}
    arrived: dict[int, Array] = {r: np.full([len(i) for i in index], np.nan) for r, index in wanted.items()}
    for m in h.messages(sizes):
        source = h.sender.held(m.src, lengths)
        arrived[m.dst][place(wanted[m.dst], m.index)] = sent[m.src][key][place(source, m.index)]
    for r, value in arrived.items():
        got[r][key] = value
