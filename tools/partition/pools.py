"""Prefill and decode on pools of their own: the KV cache crosses from one pool to the other.

Each pool runs a program with its own strategy; what the prefill ranks have cached of every layer goes to the decode ranks
that hold this layer, from the prefill's layout into the decode's (DistServe, arXiv 2401.09670; Splitwise, arXiv
2311.18677). Layouts may differ in every way: other tp, other stages, sequences over attn_dp, positions over dcp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tools.graph.ir import Sizes
from tools.partition.lower import PBody, Program, Stage, keepers, kept_dims, lower
from tools.partition.transfer import Message, Side, messages
from tools.spec.base import Refused
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Pools:
    """Programs of one replica of each pool. Global ranks of the decode pool follow all of the prefill pool's replicas."""

    prefill: Program
    decode: Program

    @property
    def num_devices(self) -> int:
        return self.prefill.num_devices + self.decode.num_devices


@dataclass(frozen=True, slots=True)
class Handover:
    """One cache (or state) of some layers that the same ranks send and the same ranks receive."""

    cache: str
    layers: tuple[int, ...]
    source: Stage
    target: Stage
    sent: PBody
    got: PBody
    sender: Side
    receiver: Side

    def messages(self, sizes: Mapping[str, int]) -> tuple[Message, ...]:
        """Who sends what to whom; `src` and `dst` are ranks inside the two stages."""
        return messages(self.sender, self.receiver, self.lengths(sizes), same_ranks=False)

    def lengths(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Dims of what crosses, whole."""
        return {d: int(sizes[d]) for d in kept_dims(self.got, self.cache)}


def lower_pools(model: ModelSpec, prefill: Strategy, decode: Strategy, prompt: Sizes, step: Sizes) -> Pools:
    """Both programs; `prompt` and `step` are the sizes of a prefill and of a decode step. Raises as `lower` does."""
    for s in (prefill, decode):
        if s.expert_devices or s.attn_pool:
            raise Refused(f"{s.label()}: a pool with several device groups per stage cannot hand its cache over yet")
    first = lower(model, prefill, "prefill", prompt)
    return Pools(first, moved(lower(model, decode, "decode", step), prefill.num_devices))


def moved(program: Program, first: int) -> Program:
    """The same program on the ranks from `first` on."""
    stages = tuple(
        replace(
            s, ranks=tuple(r + first for r in s.ranks), receives=tuple((a + first, b + first) for a, b in s.receives)
        )
        for s in program.stages
    )
    return replace(program, stages=stages, first=first)


def handovers(pools: Pools) -> tuple[Handover, ...]:
    """Every cache of every layer, layers together that cross between the same bodies of the same stages."""
    rows: dict[tuple[int, int, int, int, str], list[int]] = {}
    sent, got = _bodies(pools.prefill), _bodies(pools.decode)
    for layer, (source, a) in sent.items():
        target, b = got[layer]
        for name in keepers(a):
            rows.setdefault((source.index, id(a), target.index, id(b), name), []).append(layer)
    out = []
    for (*_, name), layers in rows.items():
        (source, a), (target, b) = sent[layers[0]], got[layers[0]]
        sides = [
            Side(body.layout(name), p.mesh, p.mesh.ranks(body.group(name)), p.orders)
            for body, p in ((a, pools.prefill), (b, pools.decode))
        ]
        out.append(Handover(name, tuple(layers), source, target, a, b, *sides))
    return tuple(out)


def _bodies(program: Program) -> dict[int, tuple[Stage, PBody]]:
    """Stage and body of every layer."""
    return {
        layer: (stage, run.bodies[i % len(run.bodies)])
        for stage in program.stages
        for run in stage.runs
        for i, layer in enumerate(run.layers)
    }


__all__ = ["Handover", "Pools", "handovers", "lower_pools", "moved"]
