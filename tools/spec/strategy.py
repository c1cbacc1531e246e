"""A parallel strategy in the field's words.

`devices = dp * pp * group`. The device group of a pipeline stage is factorised twice: attention `attn_dp * cp * tp` (tp
innermost), experts `edp * ep * etp` (etp innermost); both products are the group. With attention/expert separation or an
attention pool a stage has several groups: `group = tp * cp * attn_dp + expert_devices + attn_pool`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import model_validator

from tools.spec.base import Frozen, ToolError
from tools.spec.model import DType

Placements = tuple[tuple[str, tuple[tuple[str, tuple[str, ...]], ...]], ...]
PLACEABLE = ("tp", "cp", "attn_dp", "ep", "etp", "edp")
"""Axes that a placement can name."""


class Strategy(Frozen):
    """Degrees of every axis, the layers of each stage, dtypes, and the operating point.

    `tp` attention tensor parallel; `pp` pipeline stages; `dp` independent replicas; `ep`/`etp` expert parallel and
    expert tensor parallel; `attn_dp` attention data parallel inside a replica; `cp` context parallel;
    `sp` sequence parallelism (norms and residuals split over tp along seq_len).
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    etp: int | None = None
    attn_dp: int | None = None
    cp: int = 1
    sp: bool = False
    dcp: int = 1
    """Decode context parallelism: the KV cache of a sequence is dealt out over dcp of the tp ranks that would hold copies
    of it; adds no ranks."""
    dk: int = 1
    """Two-level attention slicing: of the tp ranks, dk slice each head's d_k (partial scores are summed over them), the
    other tp / dk share the heads."""
    cp_kind: Literal["ulysses", "ring"] = "ulysses"
    """How attention crosses a sequence split over cp. ulysses: all-to-all from positions to heads and back. ring: keys and
    values travel around the cp ranks, one step per rank, while each rank attends to what it holds."""
    ring_pass: Literal["kv", "q"] = "kv"
    """What travels around the ring in prefill: keys and values, or queries with their running sums (arXiv 2411.01783)."""
    moe_comm: Literal["auto", "alltoall", "allgather"] = "auto"
    """How tokens reach experts when attn_dp > 1: all-to-all dispatch/combine (auto), or all-gather + reduce-scatter."""
    ep_nodes: int = 1
    """Hierarchical all-to-all: prefill sends a token first to each of `ep_nodes` equal runs of the ep ranks (the nodes) that
    holds one of its experts, once, and inside it to the experts; partial sums come back the same way (DeepEP's normal
    kernels). 1, and every decode step (its low-latency kernels): straight to the experts' ranks."""
    redundant_experts: int = 0
    """Further copies of experts, so that expert parallelism deals out num_experts + redundant_experts slots; tokens of an
    expert take turns over its copies."""
    expert_devices: int = 0
    """Attention/expert separation: devices of each stage that hold routed experts and nothing else, beside the
    tp * cp * attn_dp of attention. The expert axes etp * ep * edp then cover these devices. 0: experts lie on attention's."""
    attn_pool: int = 0
    """Attention pool: devices of each stage that join attention's own only between projections and output projection.
    0: none, also the regime below `pool_above`."""
    pool_above: int = 0
    """Tokens of context above which the attention pool joins; below it the same strategy runs with attn_pool 0."""
    virtual: int = 1
    """Interleaved pipeline (arXiv 2104.04473): runs of layers that each rank holds; pp * virtual runs are dealt out cyclically."""
    seq_slices: int = 1
    """Token-dimension pipeline (TeraPipe, arXiv 2102.07988): slices of the prompt that follow each other through the stages."""
    axes: tuple[tuple[str, int], ...] = ()
    """Degrees of axes that have no field of their own (`tools/partition/axes`): (name, degree), sorted; {name: degree} in a
    file."""
    placements: Placements = ()
    """Weights that lie otherwise than the degrees say: (module, ((dim, axes), …)), the first that matches counts; a weight
    with no dim named is whole on every rank. Collectives follow from it."""
    layers_per_stage: tuple[int, ...] | None = None
    """None: the balanced default of the engine."""
    stage_devices: tuple[str, ...] = ()
    """Catalogue id of the device of each stage, where a pipeline's stages lie on different kinds; (): all on the planned one."""
    weight_dtype: DType = "bf16"
    kv_dtype: DType = "bf16"
    batch: int = 1
    """Concurrent decode sequences per replica (the planned operating point; max_num_seqs)."""
    max_num_batched_tokens: int = 8192
    microbatches: int = 1
    engine: str = "vllm"
    name: str = ""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: dict) -> dict:
        data = dict(data)
        none = ("expert_devices", "attn_pool", "redundant_experts")
        for key in ("tp", "pp", "dp", "ep", "cp", "dcp", "dk", "ep_nodes", "virtual", "seq_slices", *none):
            least = 0 if key in none else 1
            value = data.get(key, least)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ToolError(f"{key} must be a whole number of at least {least}, got {value!r}")
        if data.get("axes"):
            data["axes"] = _axes(data["axes"])
        if data.get("placements"):
            data["placements"] = _placements(data["placements"])
        tp, ep, cp = data.get("tp", 1), data.get("ep", 1), data.get("cp", 1)
        etp, attn_dp, apart = data.get("etp"), data.get("attn_dp"), data.get("expert_devices", 0)
        if attn_dp is None:
            attn_dp = 1 if apart else max(1, (etp or 1) * ep // (tp * cp))
        ranks = apart or tp * cp * attn_dp
        said = f"expert_devices({apart})" if apart else f"tp({tp}) * cp({cp}) * attn_dp({attn_dp})"
        if etp is None:
            if ranks % ep:
                raise ToolError(
                    f"{said} = {ranks} ranks do not split over ep({ep}): {ranks}/{ep} = {ranks / ep:.3g}; "
                    f"choose ep among the divisors of {ranks}"
                )
            etp = ranks // ep
        if ranks % (etp * ep):
            raise ToolError(
                f"edp = {said} / (etp({etp}) * ep({ep})) = {ranks}/{etp * ep} = {ranks / (etp * ep):.3g} is not a whole "
                f"number; choose etp * ep among the divisors of {ranks}"
            )
        data.update(attn_dp=attn_dp, etp=etp)
        stages = data.get("layers_per_stage")
        runs = data.get("pp", 1) * data.get("virtual", 1)
        if stages is not None and len(stages) != runs:
            times = f" * virtual({data['virtual']}) = {runs}" if data.get("virtual", 1) > 1 else f" = {runs}"
            raise ToolError(f"layers_per_stage has {len(stages)} entries, but pp{times}")
        _check_stage_devices(tuple(data.get("stage_devices") or ()), data.get("pp", 1), data.get("virtual", 1))
        return data

    def degree(self, axis: str) -> int:
        """Degree of an axis by its name, 1 for one that the strategy does not name."""
        return int(getattr(self, axis, None) or dict(self.axes).get(axis, 1))

    @property
    def attention_group(self) -> int:
        """Ranks that hold attention's weights in one pipeline stage of one replica."""
        assert self.attn_dp is not None
        return self.tp * self.cp * self.attn_dp

    @property
    def expert_group(self) -> int:
        """Ranks that hold routed experts in one pipeline stage of one replica."""
        return self.expert_devices or self.attention_group

    @property
    def group(self) -> int:
        """Ranks of one pipeline stage of one replica."""
        return self.attention_group + self.expert_devices + self.attn_pool

    @property
    def edp(self) -> int:
        assert self.etp is not None
        return self.expert_group // (self.etp * self.ep)

    @property
    def replica(self) -> int:
        """Ranks of one replica."""
        return self.pp * self.group

    @property
    def num_devices(self) -> int:
        return self.dp * self.replica

    def label(self, moe: bool = True) -> str:
        """ "tp8·pp2·ep8·dp1": the degrees above 1, for tables and file names."""
        parts = [f"tp{self.tp}"]
        if self.pp > 1:
            parts.append(f"pp{self.pp}")
        if self.cp > 1:
            parts.append(f"cp{self.cp}" + ("q" if self.cp_kind == "ring" and self.ring_pass == "q" else ""))
        if self.dk > 1:
            parts.append(f"dk{self.dk}")
        parts += [f"{name}{d}" for name, d in self.axes if d > 1]
        if self.dcp > 1:
            parts.append(f"dcp{self.dcp}")
        if (self.attn_dp or 1) > 1:
            parts.append(f"attn_dp{self.attn_dp}")
        if moe and (self.ep > 1 or self.etp != self.expert_group):
            parts.append(f"ep{self.ep}·etp{self.etp}")
        if self.ep_nodes > 1:
            parts.append(f"nodes{self.ep_nodes}")
        if self.redundant_experts:
            parts.append(f"red{self.redundant_experts}")
        if self.expert_devices:
            parts.append(f"apart{self.expert_devices}")
        if self.attn_pool:
            parts.append(f"pool{self.attn_pool}")
        if self.virtual > 1:
            parts.append(f"v{self.virtual}")
        if self.seq_slices > 1:
            parts.append(f"slices{self.seq_slices}")
        if self.dp > 1:
            parts.append(f"dp{self.dp}")
        if self.sp:
            parts.append("sp")
        if self.moe_comm == "allgather" and self.attn_dp != 1 and self.ep > 1:
            parts.append("allgather")
        if self.placements:
            parts.append("placed")
        if self.stage_devices:
            parts.append("mixed")
        return "·".join(parts)


def _axes(said: object) -> tuple[tuple[str, int], ...]:
    """{name: degree} as sorted tuples. Raises ToolError naming the entry."""
    entries = list(said.items() if isinstance(said, Mapping) else said)  # type: ignore[call-overload]
    for name, d in entries:
        if not isinstance(d, int) or isinstance(d, bool) or d < 1:
            raise ToolError(f"axes: {name} must be a whole number of at least 1, got {d!r}")
    return tuple(sorted((str(n), d) for n, d in entries))


def _check_stage_devices(devices: tuple[str, ...], pp: int, virtual: int) -> None:
    """A device for every stage or for none. Raises ToolError with the numbers."""
    if devices and len(devices) != pp:
        raise ToolError(f"stage_devices names {len(devices)} devices, but pp = {pp} stages")
    if devices and virtual > 1:
        raise ToolError(f"virtual({virtual}) with stage_devices: the stages of an interleaved pipeline are of one kind")


def _placements(said: object) -> Placements:
    """{"mlp.down_proj": {"hidden": "tp"}, "lm_head": {}} as tuples. Raises ToolError naming the entry."""
    entries = said.items() if isinstance(said, Mapping) else said
    if not isinstance(entries, Iterable) or isinstance(entries, str):
        raise ToolError(f"placements: expected {{module: {{dim: axis}}}}, got {said!r}")
    out = []
    for module, split in entries:
        rows = split.items() if isinstance(split, Mapping) else split or ()
        if isinstance(rows, str):
            raise ToolError(
                f"placements: {module}: expected {{dim: axis}}, or {{}} for whole on every rank, got {split!r}"
            )
        dims = []
        for dim, axes in rows:
            names = tuple(a.strip() for a in axes.split("*")) if isinstance(axes, str) else tuple(axes)
            wrong = next((a for a in names if a not in PLACEABLE), None)
            if wrong is not None:
                raise ToolError(f"placements: {module}: {dim} over {wrong!r}; axes are {', '.join(PLACEABLE)}")
            dims.append((str(dim), names))
        out.append((str(module), tuple(dims)))
    return tuple(out)


Phase = Literal["prefill", "decode"]
