"""What a rule is, the degrees it looks at, and how a replica lies on nodes.

A rule is one small function `(ModelSpec, Degrees) -> Verdict`. Degrees hold ints for one strategy or integer arrays
for a candidate set; the arithmetic of a rule is the same for both, so that `check` and `legal_mask` cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tools.partition.axes import sliced
from tools.spec.finding import Cause, Finding, Severity
from tools.spec.hardware import Device
from tools.spec.model import Attention, ModelSpec
from tools.spec.strategy import Strategy
from tools.spec.term import Breakdown, Term

Ints = Any
"""int, or a numpy integer array of one value per candidate."""
Mask = Any
"""bool, or a numpy bool array of one value per candidate."""

DEFAULT_DEVICES_PER_NODE = 8
BLOCK_FP8 = 128
GROUP_INT4 = 128
"""Group of AWQ and GPTQ checkpoints where the config does not say (the default of both quantisers)."""


@dataclass(frozen=True, slots=True)
class Degrees:
    """Everything a rule may read of a strategy. Degrees and batch are `Ints`; the rest is shared by all candidates."""

    tp: Ints
    pp: Ints = 1
    dp: Ints = 1
    ep: Ints = 1
    etp: Ints = 1
    attn_dp: Ints = 1
    cp: Ints = 1
    dcp: Ints = 1
    batch: Ints = 1
    max_num_batched_tokens: Ints = 8192
    weight_dtype: str = "bf16"
    kv_dtype: str = "bf16"
    slices: tuple[tuple[str, int, str], ...] = ()
    """(axis, degree above 1, why no engine runs it): axes that slice further than any engine does."""
    sp: bool = False
    moe_comm: str = "auto"
    ep_nodes: Ints = 1
    cp_kind: str = "ulysses"
    layers_per_stage: tuple[int, ...] | None = None
    num_nodes: int | None = None
    devices_per_node: int | None = None
    vendor: str = ""
    """Of the device in lower case; "" where none is known."""

    @classmethod
    def of(
        cls,
        s: Strategy,
        *,
        num_nodes: int | None = None,
        devices_per_node: int | None = None,
        device: Device | None = None,
    ) -> Degrees:
        return cls(
            tp=s.tp, pp=s.pp, dp=s.dp, ep=s.ep, etp=s.etp, attn_dp=s.attn_dp, cp=s.cp, dcp=s.dcp,
            batch=s.batch, cp_kind=s.cp_kind,
            max_num_batched_tokens=s.max_num_batched_tokens, weight_dtype=s.weight_dtype, kv_dtype=s.kv_dtype, sp=s.sp,
            moe_comm=s.moe_comm, ep_nodes=s.ep_nodes, layers_per_stage=s.layers_per_stage, num_nodes=num_nodes,
            devices_per_node=devices_per_node, slices=tuple((n, d, x.engines) for n, (x, d) in sliced(s).items()),
            vendor=device.vendor.lower() if device is not None else "",
        )  # fmt: skip

    @property
    def group(self) -> Ints:
        """Ranks of one pipeline stage of one replica."""
        return self.tp * self.cp * self.attn_dp

    @property
    def replica(self) -> Ints:
        return self.pp * self.group

    @property
    def devices(self) -> Ints:
        return self.dp * self.replica

    @property
    def node(self) -> int:
        return self.devices_per_node or DEFAULT_DEVICES_PER_NODE


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of one rule: where it is broken, and what to say there. `equation` and `fix` are called only if it is."""

    code: str
    bad: Mask
    where: str | Callable[[], str]
    """The tensor; a function where it is one of several."""
    equation: Callable[[], str]
    fix: str | Callable[[], str]
    source: str
    severity: Severity = "error"
    cause: Cause = "engine"
    axis: str = ""
    """Set to "tp" where another tp is the way out: the fix then lists every tp that passes *all* rules."""
    values: dict[str, Any] = field(default_factory=dict)

    def finding(self, engine: str, extra_fix: str = "") -> Finding:
        fix = self.fix() if callable(self.fix) else self.fix
        where = self.where() if callable(self.where) else self.where
        return Finding(
            code=self.code, severity=self.severity, cause=self.cause, where=where,
            message=f"{where}: {self.equation()} ({engine} {self.source})",
            fix="; ".join(part for part in (fix, extra_fix) if part), values=plain(self.values),
        )  # fmt: skip


Rule = Callable[[ModelSpec, Degrees], Verdict]


def dispatches(d: Degrees) -> Mask:
    """Whether tokens reach experts by an all-to-all."""
    return (np.asarray(d.attn_dp) > 1) & (np.asarray(d.ep) > 1) & (d.moe_comm != "allgather")


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """numpy scalars as python ints, so that findings stay JSON."""
    return {k: v.item() if isinstance(v, np.generic | np.ndarray) else v for k, v in values.items()}


class Flag(NamedTuple):
    """One command-line flag; a switch has no value."""

    name: str
    value: str | None = None


class Amount(NamedTuple):
    """One line of an engine's memory accounting, in bytes: of one strategy, or one value per candidate."""

    name: str
    bytes: Ints
    formula: Callable[[], str]
    """Called only where somebody reads it; degrees are ints then."""
    source: str


Budget = tuple[Amount, ...]
"""What a device has (first), and everything that is not KV cache as negative amounts."""


def total(budget: Budget) -> Ints:
    """Bytes that are left for KV."""
    left: Ints = 0.0
    for a in budget:
        left = left + a.bytes
    return left


def breakdown(budget: Budget) -> Breakdown:
    """The budget of one strategy, with its formulas."""
    terms = (
        Term(name=a.name, value=float(a.bytes), unit="bytes", formula=a.formula(), source=a.source) for a in budget
    )
    return Breakdown(name="kv_budget", unit="bytes", terms=tuple(terms))


@dataclass(frozen=True, slots=True)
class EngineRules:
    """One release of one engine: rules, its layer split, its memory accounting, its flags."""

    engine: str
    version: str
    rules: tuple[Rule, ...]
    layers_per_stage: Callable[[int, int], tuple[int, ...]]
    kv_budget: Callable[..., Budget]
    """(degrees, memory_total_bytes, weights_bytes, activation_bytes, memory_reserve) → what the engine leaves for KV."""
    memory_fraction: Callable[..., float]
    parallel_flags: Callable[[ModelSpec, Strategy], tuple[Flag, ...]]
    aligned: Callable[[Degrees], Sequence[Ints]]
    """Rank counts that must divide, or be divided by, the ranks of a node."""
    layer_partition_env: str = ""
    world: Callable[[Strategy], str] = lambda s: f"devices = {s.num_devices}"
    server_defaults: Callable[[float, int], tuple[int, int]] = lambda memory_bytes, tp: (8192, 256)
    """(memory of the device in bytes, tp) → (max_num_batched_tokens, max_num_seqs) when no flag is given."""
    training: bool = False
    """A training framework: no KV cache, no scheduler."""

    @property
    def label(self) -> str:
        return f"{self.engine} {self.version}"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where replicas lie: `local` ranks of a replica per node, over `nodes_per_replica` nodes, `slots` side by side."""

    local: Ints
    nodes_per_replica: Ints
    slots: Ints
    nodes: Ints
    """Nodes used in total."""


def place(d: Degrees, aligned: Iterable[Ints]) -> Placement:
    """Fewest nodes per replica such that every node holds equally many ranks and no aligned unit straddles badly.

    `aligned` are rank counts the engine needs whole (vLLM: one attention-DP rank; SGLang: one TP group). TP groups are
    kept whole where that costs no node that the cluster does not have.
    """
    wanted = [*aligned]
    strict = _local_ranks(d, [*wanted, d.tp])
    loose = _local_ranks(d, wanted)
    first = _placement(d, strict)
    if d.num_nodes is None:
        return first
    local: Ints = np.where(np.asarray(first.nodes) <= d.num_nodes, strict, loose)
    return _placement(d, local if local.ndim else int(local))


def _local_ranks(d: Degrees, aligned: Sequence[Ints]) -> Ints:
    """The largest divisor of the replica's ranks that fits a node and keeps every aligned unit whole."""
    replica = np.asarray(d.replica)
    local = np.ones_like(replica)
    for size in range(2, d.node + 1):
        ok = replica % size == 0
        for unit in aligned:
            u = np.asarray(unit)
            ok = ok & ((u % size == 0) | (size % u == 0))
        local = np.where(ok, size, local)
    return local if local.ndim else int(local)


def _placement(d: Degrees, local: Ints) -> Placement:
    nodes_per_replica = d.replica // local
    slots = d.node // local
    return Placement(local, nodes_per_replica, slots, nodes_per_replica * -(-d.dp // slots))


class Linear(NamedTuple):
    """One tensor-parallel weight: the split dim's global size and how many ways it splits.

    kind: `col` splits outputs, `merged` is a col that is stored fused with others (QKV, gate_up), `row` splits inputs.
    """

    name: str
    kind: str
    size: int
    ways: Ints

    @property
    def shard(self) -> Ints:
        return self.size // self.ways


def attention_linears(m: ModelSpec, tp: Ints) -> tuple[Linear, ...]:
    a = m.attention
    if a.mla is not None:
        q = a.num_heads * (a.mla.qk_nope_head_dim + a.mla.qk_rope_head_dim)
        q_name = "q_proj" if a.mla.q_lora_rank is None else "q_b_proj"
        kv = a.num_heads * (a.mla.qk_nope_head_dim + a.mla.v_head_dim)
        return (
            Linear(f"attention.{q_name}", "col", q, tp),
            Linear("attention.kv_b_proj", "col", kv, tp),
            Linear("attention.o_proj", "row", a.num_heads * a.mla.v_head_dim, tp),
        )
    return tuple(x for a in m.attentions for x in _plain_linears(a, tp))


def _plain_linears(a: Attention, tp: Ints) -> tuple[Linear, ...]:
    values, shared = a.v_head_dim or a.head_dim, np.minimum(tp, a.num_kv_heads)
    return (
        Linear("attention.q_proj", "merged", a.num_heads * a.head_dim, tp),
        Linear("attention.k_proj", "merged", a.num_kv_heads * a.head_dim, shared),
        *((Linear("attention.v_proj", "merged", a.num_kv_heads * values, shared),) if values != a.head_dim else ()),
        Linear("attention.o_proj", "row", a.num_heads * values, tp),
    )


def dense_linears(m: ModelSpec, tp: Ints) -> tuple[Linear, ...]:
    """Dense layers of the model, if any has one."""
    beside = m.moe is not None and m.moe.beside_mlp
    if m.mlp is None or (m.moe is not None and not beside and (m.moe_layers is None or all(m.moe_layers))):
        return ()
    return _ffn("mlp", m.mlp.intermediate_size, m.mlp.gated, tp)


def shared_linears(m: ModelSpec, tp: Ints) -> tuple[Linear, ...]:
    if m.moe is None or not m.moe.shared_intermediate_size:
        return ()
    return _ffn("moe.shared_expert", m.moe.shared_intermediate_size, m.moe.gated, tp)


def _ffn(name: str, size: int, gated: bool, tp: Ints) -> tuple[Linear, ...]:
    up = Linear(f"{name}.gate_up_proj", "merged", size, tp) if gated else Linear(f"{name}.up_proj", "col", size, tp)
    return (up, Linear(f"{name}.down_proj", "row", size, tp))


def divisors(n: int) -> str:
    """ "1, 2, 4": for messages."""
    return ", ".join(str(i) for i in range(1, n + 1) if n % i == 0)


def pad(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def block_fp8(m: ModelSpec, d: Degrees) -> int | None:
    """Block size if this is a checkpoint with block-wise FP8 scales, else None (per-tensor scales split anywhere)."""
    return m.quant_group if d.weight_dtype == "fp8" and m.weight_dtype == "fp8" else None


def any_of(masks: Iterable[Mask]) -> Mask:
    out: Mask = False
    for mask in masks:
        out = out | mask
    return out


def first_bad(linears: Sequence[Linear], broken: Callable[[Linear], Mask]) -> Linear:
    """The first weight that breaks a rule; for messages, so degrees are ints."""
    return next((x for x in linears if np.any(broken(x))), linears[0])


def named(linears: Sequence[Linear], broken: Callable[[Linear], Mask]) -> Callable[[], str]:
    """`where` of a verdict about one of several weights."""
    return lambda: first_bad(linears, broken).name
