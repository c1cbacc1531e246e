"""Candidates as arrays of degrees, and which layers their pipeline stages run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, reduce
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from tools.cost.compute import Num
from tools.engines.rules import Degrees, default_layers_per_stage, engines
from tools.partition.lower import default_layers_per_stage as balanced_layers
from tools.spec.model import DType, LayerKind, ModelSpec
from tools.spec.strategy import Strategy

MoEComm = Literal["auto", "alltoall", "allgather"]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Degrees as int64 arrays of one length; what all of them share as scalars."""

    tp: np.ndarray
    pp: np.ndarray
    dp: np.ndarray
    ep: np.ndarray
    etp: np.ndarray
    attn_dp: np.ndarray
    cp: np.ndarray
    dcp: np.ndarray
    batch: np.ndarray
    max_num_batched_tokens: np.ndarray
    sp: bool = False
    moe_comm: MoEComm = "auto"
    weight_dtype: DType = "bf16"
    kv_dtype: DType = "bf16"
    engine: str = "vllm"
    node: int = 0
    """Ranks of a node, where prefill sends tokens to nodes first (`Strategy.ep_nodes`); 0: straight to the experts' ranks."""
    layers_per_stage: tuple[int, ...] | None = None
    """Stated stages, for one strategy; None: the engine's default."""
    origin: Strategy | None = None
    """Set when all entries are one strategy at several batches: axes that have no array here (dk, an attention pool,
    experts on devices of their own) come from it."""

    def __len__(self) -> int:
        return len(self.tp)

    @property
    def group(self) -> np.ndarray:
        """Ranks of one pipeline stage of one replica."""
        return np.full(len(self), self.origin.group) if self.origin else self.tp * self.attn_dp * self.cp

    @property
    def ep_nodes(self) -> np.ndarray:
        """Nodes that tokens are sent to first."""
        if self.origin is not None:
            return np.full(len(self), self.origin.ep_nodes)
        return self.ep * self.etp // self.node if self.node else np.ones(len(self), np.int64)

    @property
    def num_devices(self) -> np.ndarray:
        return self.group * self.pp * self.dp

    def take(self, index: Any) -> Candidates:
        return replace(self, **{n: getattr(self, n)[index] for n in ARRAYS})

    def with_batch(self, batch: np.ndarray) -> Candidates:
        return replace(self, batch=batch)

    def degrees(self) -> Degrees:
        """The same candidates as engine rules read them."""
        return Degrees(
            **{n: getattr(self, n) for n in ARRAYS}, weight_dtype=self.weight_dtype, kv_dtype=self.kv_dtype, sp=self.sp,
            moe_comm=self.moe_comm,
        )  # fmt: skip

    @classmethod
    def of(cls, s: Strategy) -> Candidates:
        arrays: dict[str, Any] = {n: np.asarray([getattr(s, n)], np.int64) for n in ARRAYS}
        return cls(
            **arrays, sp=s.sp, moe_comm=s.moe_comm, weight_dtype=s.weight_dtype, kv_dtype=s.kv_dtype, engine=s.engine,
            layers_per_stage=s.layers_per_stage, origin=s,
        )  # fmt: skip

    def strategy(self, i: int, model: ModelSpec) -> Strategy:
        """Candidate i as a Strategy, its stages spelled out."""
        degrees: dict[str, Any] = {n: int(getattr(self, n)[i]) for n in ARRAYS}
        if self.origin is not None:
            return self.origin.model_copy(update=degrees)
        degrees["ep_nodes"] = int(self.ep_nodes[i])
        stages = self.layers_per_stage or stage_layers(self.engine, model.num_hidden_layers, degrees["pp"])
        return Strategy(
            **degrees, sp=self.sp, moe_comm=self.moe_comm, weight_dtype=self.weight_dtype, kv_dtype=self.kv_dtype,
            engine=self.engine, layers_per_stage=stages if degrees["pp"] > 1 else None, microbatches=degrees["pp"],
        )  # fmt: skip


ARRAYS = ("tp", "pp", "dp", "ep", "etp", "attn_dp", "cp", "dcp", "batch", "max_num_batched_tokens")
assert {f.name for f in fields(Candidates)} >= set(ARRAYS)


def stage_layers(engine: str, num_layers: int, pp: int) -> tuple[int, ...]:
    """The engine's own split where it has one."""
    if engine in engines() or engine == "trtllm":
        return default_layers_per_stage(engine, num_layers, pp)
    return balanced_layers(num_layers, pp)


@dataclass(frozen=True, slots=True)
class StageRow:
    """What one kind of stage runs: how many of its layers are of each kind, and whether it embeds and ends."""

    layers: tuple[tuple[LayerKind, int], ...]
    embed: bool
    head: bool


@lru_cache(maxsize=2048)
def stage_rows(model: ModelSpec, split: tuple[int, ...], virtual: int = 1) -> tuple[tuple[StageRow, int], ...]:
    """Distinct stages with how many there are of each; a stage of an interleaved pipeline holds every (n / virtual)-th of
    the n runs of `split`."""
    rows: dict[StageRow, int] = {}
    for row in each_stage(model, split, virtual):
        rows[row] = rows.get(row, 0) + 1
    return tuple(rows.items())


def each_stage(model: ModelSpec, split: tuple[int, ...], virtual: int = 1) -> tuple[StageRow, ...]:
    """What every stage runs, in order."""
    kinds, ends = model.layers(), [0, *accumulate(split)]
    stages, out = len(split) // virtual, []
    for i in range(stages):
        mine = [k for c in range(i, len(split), stages) for k in kinds[ends[c] : ends[c + 1]]]
        per_kind = tuple((k, mine.count(k)) for k in dict.fromkeys(mine))
        out.append(StageRow(tuple(sorted(per_kind, key=repr)), i == 0, i == stages - 1))
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Stages:
    """Stages of every pp of a candidate set. `whole[body, pp]`: how often each body (embedding, layers by kind, head) runs
    in all stages; `kinds[j, body, pp]`: how often in the j-th kind of stage, of those that can be the slowest or fullest."""

    whole: np.ndarray
    kinds: np.ndarray
    used: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """The `pp` there are, in order."""

    @classmethod
    def of(
        cls, model: ModelSpec, kinds: Sequence[LayerKind], splits: Mapping[int, tuple[int, ...]], virtual: int
    ) -> Stages:
        rows: dict[int, list[np.ndarray]] = {}
        whole = np.zeros((len(kinds) + 2, max(splits) + 1))
        for pp, split in splits.items():
            found = []
            for row, times in stage_rows(model, split, virtual):
                per = dict(row.layers)
                counts = np.asarray([row.embed, *(per.get(k, 0) for k in kinds), row.head], float)
                whole[:, pp] += times * counts
                found.append(counts)
            rows[pp] = [c for c in found if not any((c <= o).all() and o is not c for o in found)]
        most = max(len(r) for r in rows.values())
        table = np.zeros((most, *whole.shape))
        for pp, left in rows.items():
            for j in range(most):
                table[j, :, pp] = left[min(j, len(left) - 1)]
        return cls(whole, table, np.asarray(sorted(splits), np.int64))

    def each(self, pp: np.ndarray) -> Iterator[list[np.ndarray]]:
        """Per kind of stage, how often each body runs in it, for candidates with these `pp`."""
        return ([counts[pp] for counts in kind] for kind in self.kinds)

    def total(self, pp: np.ndarray, values: Sequence[Num]) -> Num:
        """Sum over the stages of each candidate of a quantity per body."""
        return weighted([counts[pp] for counts in self.whole], values)

    def worst(self, pp: np.ndarray, values: Sequence[Num]) -> Num:
        """Maximum over its stages."""
        found = [weighted(counts, values) for counts in self.each(pp)]
        return reduce(np.maximum, found)

    def through(self, pp: np.ndarray, times: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(`total`, `worst`) of a quantity whose values per body are row `row` of `times`. Candidates share rows: where the
        rows are few, both are worked out per row and `pp` and looked up."""
        if not 0 < len(times) * len(self.used) <= 2 * row.size:
            values = [t[row] for t in times.T]
            return self.total(pp, values), self.worst(pp, values)
        at = row * len(self.used) + np.searchsorted(self.used, pp)
        worst = reduce(np.maximum, (times @ kind[:, self.used] for kind in self.kinds))
        return (times @ self.whole[:, self.used]).ravel()[at], worst.ravel()[at]


def weighted(counts: Sequence[np.ndarray], values: Sequence[Num]) -> Num:
    out: Num = counts[0] * values[0]
    for n, v in zip(counts[1:], values[1:], strict=True):
        out = out + n * v
    return out


def virtual_runs(cands: Candidates) -> int:
    """Runs of layers per rank; a candidate set has one each."""
    return cands.origin.virtual if cands.origin else 1


def splits(cands: Candidates, model: ModelSpec) -> dict[int, tuple[int, ...]]:
    """Layers per stage (per run, where a rank holds several), by pp."""
    runs = virtual_runs(cands)
    return {
        int(pp): cands.layers_per_stage or stage_layers(cands.engine, model.num_hidden_layers, int(pp) * runs)
        for pp in np.unique(cands.pp)
    }


__all__ = [
    "ARRAYS", "Candidates", "MoEComm", "StageRow", "Stages", "each_stage", "splits", "stage_layers", "stage_rows",
    "virtual_runs", "weighted",
]  # fmt: skip
