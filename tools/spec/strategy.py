"""A parallel strategy in the field's words.

`devices = pp * tp * cp * attn_dp * dp`. One device group per pipeline stage is factorised twice: attention
`attn_dp * cp * tp` (tp innermost), experts `edp * ep * etp` (etp innermost); both products are the group.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from tools.spec.base import Frozen, ToolError
from tools.spec.model import DType


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
    moe_comm: Literal["auto", "alltoall", "allgather"] = "auto"
    """How tokens reach experts when attn_dp > 1: all-to-all dispatch/combine (auto), or all-gather + reduce-scatter."""
    layers_per_stage: tuple[int, ...] | None = None
    """None: the balanced default of the engine."""
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
        for key in ("tp", "pp", "dp", "ep", "cp", "dcp", "dk"):
            value = data.get(key, 1)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ToolError(f"{key} must be a whole number of at least 1, got {value!r}")
        tp, ep, cp = data.get("tp", 1), data.get("ep", 1), data.get("cp", 1)
        etp, attn_dp = data.get("etp"), data.get("attn_dp")
        if attn_dp is None:
            attn_dp = max(1, (etp or 1) * ep // (tp * cp))
        group = tp * cp * attn_dp
        if etp is None:
            if group % ep:
                raise ToolError(
                    f"tp({tp}) * cp({cp}) * attn_dp({attn_dp}) = {group} ranks do not split over ep({ep}): "
                    f"{group}/{ep} = {group / ep:.3g}; choose ep among the divisors of {group}"
                )
            etp = group // ep
        if group % (etp * ep):
            raise ToolError(
                f"edp = tp({tp}) * cp({cp}) * attn_dp({attn_dp}) / (etp({etp}) * ep({ep})) = "
                f"{group}/{etp * ep} = {group / (etp * ep):.3g} is not a whole number; "
                f"choose etp * ep among the divisors of {group}"
            )
        data.update(attn_dp=attn_dp, etp=etp)
        stages = data.get("layers_per_stage")
        if stages is not None and len(stages) != data.get("pp", 1):
            raise ToolError(f"layers_per_stage has {len(stages)} entries, but pp = {data.get('pp', 1)}")
        return data

    @property
    def group(self) -> int:
        """Ranks of one pipeline stage of one replica."""
        assert self.attn_dp is not None
        return self.tp * self.cp * self.attn_dp

    @property
    def edp(self) -> int:
        assert self.etp is not None
        return self.group // (self.etp * self.ep)

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
            parts.append(f"cp{self.cp}")
        if self.dk > 1:
            parts.append(f"dk{self.dk}")
        if self.dcp > 1:
            parts.append(f"dcp{self.dcp}")
        if (self.attn_dp or 1) > 1:
            parts.append(f"attn_dp{self.attn_dp}")
        if moe and (self.ep > 1 or self.etp != self.group):
            parts.append(f"ep{self.ep}·etp{self.etp}")
        if self.dp > 1:
            parts.append(f"dp{self.dp}")
        if self.sp:
            parts.append("sp")
        return "·".join(parts)


Phase = Literal["prefill", "decode"]
