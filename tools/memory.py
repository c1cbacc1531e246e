"""The memory calculator: bytes per rank of weights, KV cache and activations, from the partitioned graph itself.

    memory(program, …)   one StageMemory per pipeline stage, of its fullest rank, with the engine's accounting
    rank_weight_bytes(program)   exact weight bytes of every rank, uneven shards included

The walks below take one `PBody` and sizes and degrees that are ints *or numpy arrays*, so that a search prices a whole
candidate set with the same code:

    body_weight_bytes, body_kv_bytes_per_token, body_kv_bytes, body_activation_bytes

Every result is of the longest shard. Shards of an uneven dim have their longer parts first, so the rank with all
coordinates 0 holds the longest shard of every tensor: the fullest rank's bytes are exact, not a bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from math import prod
from typing import Any, Literal

import numpy as np

from tools.engines.rules import engines, kv_budget
from tools.graph.build import all_sizes, embed_body, head_body, layer_body
from tools.graph.ir import DTypeRole, Size, Sizes
from tools.graph.semantics import STATEFUL
from tools.partition.layerwise import Loads
from tools.partition.layout import DEFAULT_ORDERS, Orders, positions
from tools.partition.lower import PBody, POp, Program, Stage, local_dims, lower, num_elements
from tools.partition.mesh import Mesh
from tools.spec.base import ToolError
from tools.spec.model import BITS, Attention, LayerKind, ModelSpec, dtype_bytes
from tools.spec.plan import StageMemory
from tools.spec.strategy import Strategy
from tools.spec.term import Breakdown, Term

KV_BLOCK = 16
"""Tokens per page of the KV cache (vLLM config/cache.py; SGLang pages are no larger by default)."""
HOLDS_WINDOW_ONLY = frozenset({"vllm"})
"""Engines that free the pages a sliding-window layer can no longer see: vLLM's hybrid KV cache manager, which is off
for chunked attention (vllm 0.33.0 config/vllm.py:2246). Others are counted as keeping the whole context."""
INDEX_BYTES = 4.0
INDEX_KEY_BYTES = 1.0 + 4 / 128
"""An indexer's cached key: fp8 with one fp32 scale per 128 (vLLM v1/attention/backends/mla/indexer.py, SGLang nsa)."""
Counted = Literal["weights", "activations", "kv"]
COUNTED: tuple[Counted, ...] = ("weights", "activations", "kv")
Role = frozenset[str] | None
"""Device groups of a stage that a rank belongs to; None: the stage has one group, every rank holds every tensor."""


def _there(group: str, role: Role) -> bool:
    return role is None or group in role


@dataclass(frozen=True, slots=True)
class Dtypes:
    """Bytes per element by role. Quantisation concerns matrices; embeddings, norms, biases, router stay 16-bit."""

    matrix: float
    expert_matrix: float
    plain: float
    kv: float

    @classmethod
    def of(cls, model: ModelSpec, weight_dtype: str, kv_dtype: str) -> Dtypes:
        """Bytes of a plan's dtypes. Native quantisation that covers the routed experts only leaves the rest 16-bit."""
        plain = dtype_bytes(weight_dtype) if weight_dtype in ("fp32", "fp16", "bf16") else 2.0
        experts_only = model.quantized_experts_only and weight_dtype == model.weight_dtype and BITS[weight_dtype] < 16
        weights = dtype_bytes(weight_dtype)
        return cls(plain if experts_only else weights, weights, plain, dtype_bytes(kv_dtype))

    @classmethod
    def of_strategy(cls, model: ModelSpec, strategy: Strategy) -> Dtypes:
        return cls.of(model, strategy.weight_dtype, strategy.kv_dtype)

    def bytes(self, role: DTypeRole) -> float:
        """Bytes of one element of a tensor of this role."""
        named = {
            "matrix": self.matrix,
            "expert_matrix": self.expert_matrix,
            "kv": self.kv,
            "index_key": INDEX_KEY_BYTES,
            "fp32": 4.0,
            "index": INDEX_BYTES,
        }
        return named.get(role, self.plain)


# ------------------------------------------------------------------------------ one body, ints or arrays, longest shard


def tensor_bytes(pbody: PBody, tensor: str, sizes: Sizes, mesh: Mesh, dtypes: Dtypes) -> Size | float:
    """Bytes of one tensor of the per-device program on the rank with the longest shard."""
    return num_elements(local_dims(pbody, tensor, sizes, mesh)) * dtypes.bytes(pbody.spec(tensor).dtype)


def body_weight_bytes(
    pbody: PBody, sizes: Sizes, mesh: Mesh, dtypes: Dtypes, skip: frozenset[str] = frozenset(), role: Role = None
) -> Size | float:
    """Weights of one body per rank. `skip` names weights that the rank holds already (tied embeddings)."""
    total: Size | float = 0.0
    for w in pbody.weights():
        if w.name not in skip and _there(w.group, role):
            total = total + tensor_bytes(pbody, w.name, sizes, mesh, dtypes)
    return total


def body_kv_bytes_per_token(pbody: PBody, sizes: Sizes, mesh: Mesh, dtypes: Dtypes, role: Role = None) -> Size | float:
    """KV cache that one token of a sequence adds on a rank that serves it: 2 · kv_heads_local · d_k · bytes, or
    (kv_lora + qk_rope) · bytes for MLA, whose latent every rank keeps; the mean where positions are dealt out (dcp)."""
    total: Size | float = 0.0
    for name in _caches(pbody, role):
        total = total + _position_bytes(pbody, name, sizes, mesh, dtypes) / _kv_degree(pbody, name, mesh)
    return total


def _position_bytes(pbody: PBody, cache: str, sizes: Sizes, mesh: Mesh, dtypes: Dtypes) -> Size | float:
    """One cached position of one sequence, on a rank that holds it."""
    dims = local_dims(pbody, cache, sizes, mesh)
    return num_elements({d: n for d, n in dims.items() if d not in ("batch_size", "kv_len")}) * dtypes.bytes(
        pbody.spec(cache).dtype
    )


def _kv_degree(pbody: PBody, cache: str, mesh: Mesh) -> Size:
    """Ranks that the positions of one sequence are dealt out over."""
    return mesh.degree(pbody.layout(cache).axes("kv_len"))


def body_window(pbody: PBody) -> int | None:
    """Tokens that a sliding-window layer can see; None: the whole context, or its own chunk of it."""
    for p in pbody.ops:
        if p.op is not None and p.op.kind == "mask" and p.op.fn == "causal":
            return p.op.attrs.get("window")
    return None


def body_kv_bytes(
    pbody: PBody, sizes: Sizes, mesh: Mesh, dtypes: Dtypes, *, sequences: Size, context: Size, engine: str,
    in_flight: Size = 0, role: Role = None,
) -> Size | float:  # fmt: skip
    """KV cache of one body on one rank: `sequences` (on this rank) of `context` tokens each, in whole pages; and the
    states of linear attention.

    A layer that slides keeps window + one page per sequence where the engine frees the rest, plus `in_flight` tokens of
    the prefill chunk being computed.
    """
    total: Size | float = 0.0
    window = body_window(pbody) if engine in HOLDS_WINDOW_ONLY else None
    for name in _caches(pbody, role):
        degree = _kv_degree(pbody, name, mesh)
        positions_held = sequences * _pages(-(-context // degree))
        if window is not None:
            slid = sequences * (_pages(-(-window // degree)) + KV_BLOCK) + in_flight
            positions_held = _smaller(positions_held, slid)
        total = total + positions_held * _position_bytes(pbody, name, sizes, mesh, dtypes)
    return total + body_state_bytes(pbody, sizes, mesh, dtypes, sequences=sequences, role=role)


def body_state_bytes(
    pbody: PBody, sizes: Sizes, mesh: Mesh, dtypes: Dtypes, *, sequences: Size, role: Role = None
) -> Size | float:
    """What linear attention keeps of `sequences` (on this rank), however long they are: the state of every head, and the
    inputs that its convolutions still see."""
    total: Size | float = 0.0
    for p in _keepers(pbody, role):
        dims = {d: n for d, n in local_dims(pbody, p.output, sizes, mesh).items() if d not in ("batch_size", "seq_len")}
        kept = num_elements(dims) * kept_positions(p, sizes)
        total = total + sequences * kept * dtypes.bytes(pbody.spec(p.output).dtype)
    return total


def kept_positions(p: POp, sizes: Sizes) -> Size:
    """Positions of its output that a stateful operator keeps: the last state; of a convolution all but one of its reach."""
    return 1 if p.op is not None and p.op.kind == "recur" else sizes["conv"] - 1


def _keepers(pbody: PBody, role: Role = None) -> Iterator[POp]:
    return (p for p in pbody.ops if p.op is not None and p.op.kind in STATEFUL and _there(pbody.group(p.output), role))


def _pages(tokens: Size) -> Size:
    """Tokens in whole pages."""
    return -(-tokens // KV_BLOCK) * KV_BLOCK


def body_activation_bytes(
    pbody: PBody, sizes: Sizes, mesh: Mesh, dtypes: Dtypes, role: Role = None, known: dict[Any, Any] | None = None
) -> Size | float:
    """Peak of the tensors that are live between kernels. Tensors inside a kernel never reach memory; caches are not
    activations. A kernel's outputs exist from its start, its inputs to its end. `known` remembers tensors laid out alike,
    over bodies at the same sizes."""
    peak: Size | float = 0.0
    like, moments = _live_sets(_ById(pbody), role)
    known = {} if known is None else known
    for kind, name in like.items():
        if kind not in known:
            known[kind] = tensor_bytes(pbody, name, sizes, mesh, dtypes)
    size = [known[kind] for kind in like]
    for counts in moments:
        live: Size | float = 0.0
        for i, n in counts:
            live = live + (size[i] if n == 1 else n * size[i])
        peak = _larger(peak, live)
    return peak


def _larger(a: Any, b: Any) -> Any:
    """max of two ints, or of arrays element by element."""
    return np.maximum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else max(a, b)


def _smaller(a: Any, b: Any) -> Any:
    return np.minimum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else min(a, b)


@lru_cache(maxsize=4096)
def _kernel_spans(key: _ById) -> dict[str, tuple[int, int]]:
    spans: dict[str, tuple[int, int]] = {}
    for i, p in enumerate(key.pbody.ops):
        first, _ = spans.get(p.kernel, (i, i))
        spans[p.kernel] = (first, i)
    return spans


@dataclass(frozen=True, eq=False, slots=True)
class _ById:
    """Cache key: partitioned bodies are shared objects, and hashing one would walk all its operators."""

    pbody: PBody

    def __hash__(self) -> int:
        return id(self.pbody)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.pbody is self.pbody


def _lifetimes(pbody: PBody) -> tuple[tuple[str, int, int], ...]:
    """(tensor, first step, last step) of every activation that crosses a kernel boundary."""
    return _lifetimes_of(_ById(pbody))


@lru_cache(maxsize=4096)
def _lifetimes_of(key: _ById) -> tuple[tuple[str, int, int], ...]:
    pbody, spans = key.pbody, _kernel_spans(key)
    made = dict.fromkeys(pbody.inputs, "") | {p.output: p.kernel for p in pbody.ops}
    handed = {here for _, here in pbody.carries} | set(pbody.inputs[1:])
    used: dict[str, set[str]] = {}
    for p in pbody.ops:
        for name in p.inputs:
            used.setdefault(name, set()).add(p.kernel)
    out = []
    for name, kernel in made.items():
        readers = used.get(name, set())
        if pbody.spec(name).kind == "cache" or (readers == {kernel} and name != pbody.output and name not in handed):
            continue
        first = spans[kernel][0] if kernel else 0
        last = max((spans[k][1] for k in readers), default=first)
        out.append((name, first, len(pbody.ops) - 1 if name == pbody.output or name in handed else last))
    return tuple(out)


@lru_cache(maxsize=4096)
def _live_sets(key: _ById, role: Role) -> tuple[dict[Any, str], tuple[tuple[tuple[int, int], ...], ...]]:
    """(one tensor of each kind that is laid out alike, at every moment that can be the peak how many of each are live).

    A moment whose tensors are all live at another one too cannot be the peak."""
    pbody = key.pbody
    lives = [x for x in _lifetimes(pbody) if _there(pbody.group(x[0]), role)]
    like: dict[Any, str] = {}
    of: dict[str, int] = {}
    for name, _, _ in lives:
        spec = pbody.spec(name)
        kind = (spec.dims, spec.dtype, spec.routed, pbody.layout(name))
        like.setdefault(kind, name)
        of[name] = list(like).index(kind)
    found = [Counter(of[n] for n, first, last in lives if first <= at <= last) for at in _busy_moments(pbody)]
    top = [
        c for i, c in enumerate(found) if not any(c <= o and (c != o or j < i) for j, o in enumerate(found) if j != i)
    ]
    return like, tuple(tuple(sorted(c.items())) for c in top)


def _busy_moments(pbody: PBody) -> tuple[int, ...]:
    """Steps at which something new has become live: only there can the peak be."""
    return tuple(sorted({first for _, first, _ in _lifetimes(pbody)}))


def _caches(pbody: PBody, role: Role = None) -> Iterator[str]:
    held = (p.output for p in pbody.ops if p.op is not None and p.op.kind == "cache")
    return (n for n in held if _there(pbody.group(n), role))


# -------------------------------------------------------------------------------------------------------------- a stage


def activation_sizes(model: ModelSpec, *, attn_dp: Size, batch: Size, max_num_batched_tokens: Size) -> Sizes:
    """Sizes of the step the engine profiles: every rank computes `max_num_batched_tokens` of its own sequences, as many as
    the fullest of the attention-DP ranks has of `batch`."""
    per_rank = _larger(1, _smaller(-(-batch // attn_dp), max_num_batched_tokens))
    length = -(-max_num_batched_tokens // per_rank)
    return all_sizes(model, batch_size=attn_dp * per_rank, seq_len=length, kv_len=length)


def stage_weight_bytes(stage: Stage, sizes: Sizes, mesh: Mesh, dtypes: Dtypes, role: Role = None) -> Size | float:
    """Weights of a stage per rank. A rank that embeds and ends keeps a tied embedding once."""
    return sum((b for _, b in stage_weights_by_body(stage, sizes, mesh, dtypes, role)), 0.0)


def stage_weights_by_body(
    stage: Stage, sizes: Sizes, mesh: Mesh, dtypes: Dtypes, role: Role = None
) -> list[tuple[str, Size | float]]:
    """(what, bytes per rank) of embedding, layers by kind, head."""
    held = frozenset(w.name for w in stage.embed.weights()) if stage.embed else frozenset()
    rows: dict[str, Size | float] = {}
    for pbody, times in stage.bodies():
        skip = held if pbody is stage.head else frozenset()
        held_here = times * body_weight_bytes(pbody, sizes, mesh, dtypes, skip, role)
        rows[pbody.name] = rows.get(pbody.name, 0.0) + held_here
    return list(rows.items())


def stage_kv_bytes_per_token(stage: Stage, sizes: Sizes, mesh: Mesh, dtypes: Dtypes, role: Role = None) -> Size | float:
    """KV cache that one token of one sequence adds on one rank of this stage (all its layers)."""
    return sum((times * body_kv_bytes_per_token(b, sizes, mesh, dtypes, role) for b, times in stage.bodies()), 0.0)


def stage_kv_bytes(stage: Stage, sizes: Sizes, mesh: Mesh, dtypes: Dtypes, **held: Any) -> Size | float:
    """KV cache of one rank of this stage; keywords as in `body_kv_bytes`."""
    return sum((times * body_kv_bytes(b, sizes, mesh, dtypes, **held) for b, times in stage.bodies()), 0.0)


def stage_activation_bytes(stage: Stage, sizes: Sizes, mesh: Mesh, dtypes: Dtypes, role: Role = None) -> Size | float:
    """Peak over the bodies of the stage: they run one after another."""
    return reduce(_larger, (body_activation_bytes(b, sizes, mesh, dtypes, role) for b, _ in stage.bodies()))


# -------------------------------------------------------------------------------------------------------------- program


def memory(
    program: Program,
    *,
    capacity_bytes: float | Sequence[float],
    context: int,
    batch: int | None = None,
    memory_reserve: float | None = None,
    engine_version: str | None = None,
) -> tuple[StageMemory, ...]:
    """What the fullest rank of every stage holds, with the engine's own reserves: `batch` sequences of `context` tokens
    per replica (the strategy's batch by default).

    `capacity_bytes` is what the device offers in total (one figure, or one per pipeline stage); `memory_reserve` a fraction
    of it that must stay free. Raises ToolError when batch or context is below 1. A stage that does not fit is an answer:
    `free_bytes` is negative.
    """
    batch = program.strategy.batch if batch is None else batch
    if batch < 1 or context < 1:
        raise ToolError(f"memory of batch({batch}) sequences of context({context}) tokens: both must be at least 1")
    if program.phase != "prefill":
        # The same weights serve both phases; the activation peak is that of prefill.
        program = lower(program.model, program.strategy, "prefill", program.sizes)
    stages = program.on_ranks
    sizes = [capacity_bytes] * len(stages) if isinstance(capacity_bytes, int | float) else capacity_bytes
    loads = [Load(batch, context, float(size), memory_reserve, engine_version) for size in sizes]
    return tuple(
        _stage_memory(program, s, load, role, len(ranks))
        for s, load in zip(stages, loads, strict=True)
        for role, ranks in program.mesh.roles()
    )


@dataclass(frozen=True, slots=True)
class Load:
    """What a replica is asked to hold, and on what."""

    batch: int
    context: int
    capacity_bytes: float
    memory_reserve: float | None = None
    engine_version: str | None = None


def _stage_memory(program: Program, stage: Stage, load: Load, role: frozenset[str], ranks: int) -> StageMemory:
    """Of the ranks of a stage that belong to the device groups `role`."""
    m, s, mesh = program.model, program.strategy, program.mesh
    assert s.attn_dp is not None
    dtypes = Dtypes.of_strategy(m, s)
    sizes = activation_sizes(m, attn_dp=s.attn_dp, batch=load.batch, max_num_batched_tokens=s.max_num_batched_tokens)
    parts = [(n, float(b)) for n, b in stage_weights_by_body(stage, sizes, mesh, dtypes, role)]
    weights, sequences = sum(b for _, b in parts), -(-load.batch // s.attn_dp)
    held: dict[str, Any] = {"sequences": sequences, "context": load.context, "in_flight": s.max_num_batched_tokens}
    held |= {"engine": s.engine, "role": role}
    kv = float(stage_kv_bytes(stage, sizes, mesh, dtypes, **held))
    activation = float(stage_activation_bytes(stage, sizes, mesh, dtypes, role))
    reserve, overhead = _engine_share(s, load, weights, activation)
    per_token = float(stage_kv_bytes_per_token(stage, sizes, mesh, dtypes, role))
    terms = (
        *(_term(f"weights of {name}", b, "Σ local elements · bytes") for name, b in parts),
        _term("kv_cache", kv, f"{sequences} sequences · {load.context} tokens · up to {per_token:g} B per token"),
        _term("activations", activation, f"peak between kernels at {s.max_num_batched_tokens} tokens"),
        *overhead,
        _term("reserve", reserve, "what the engine leaves unused", s.engine),
    )
    return StageMemory(
        stage=stage.index, group="+".join(sorted(role)), ranks=ranks, layers=stage.num_layers, weights_bytes=weights, kv_bytes=kv,
        activation_bytes=activation, overhead_bytes=sum(t.value for t in overhead), reserve_bytes=reserve,
        capacity_bytes=load.capacity_bytes, terms=Breakdown(name="memory", unit="bytes", terms=terms),
    )  # fmt: skip


def _term(name: str, value: float, formula: str, source: str = "partitioned graph") -> Term:
    return Term(name=name, value=value, unit="bytes", formula=formula, source=source)


def kv_budget_bytes(
    strategy: Strategy,
    *,
    capacity_bytes: float,
    weights_bytes: float,
    activation_bytes: float,
    batch: int,
    memory_reserve: float | None = None,
    engine_version: str | None = None,
) -> Breakdown:
    """The engine's own budget for KV on one rank; vLLM's accounting stands in for an engine without rules."""
    known = strategy.engine in engines()
    return kv_budget(
        strategy.engine if known else "vllm", memory_total_bytes=capacity_bytes, weights_bytes=weights_bytes,
        activation_bytes=activation_bytes, strategy=strategy.model_copy(update={"batch": batch}),
        memory_reserve=memory_reserve, version=engine_version if known else None,
    )  # fmt: skip


def _engine_share(s: Strategy, load: Load, weights: float, activation: float) -> tuple[float, tuple[Term, ...]]:
    """(bytes the engine leaves unused, overhead terms): beside weights and activations, what KV does not get."""
    budget = kv_budget_bytes(
        s, capacity_bytes=load.capacity_bytes, weights_bytes=weights, activation_bytes=activation, batch=load.batch,
        memory_reserve=load.memory_reserve, engine_version=load.engine_version,
    )  # fmt: skip
    named = {t.name: t for t in budget.terms}
    if "requested" in named:
        held = load.capacity_bytes - named["requested"].value
    else:
        held = -named["stated_reserve"].value if "stated_reserve" in named else 0.0
    names = [n for n in ("non_torch", "cuda_graphs") if n in named]
    direct = tuple(named[n].model_copy(update={"value": -named[n].value}) for n in names)
    rest = load.capacity_bytes - budget.total - weights - activation - held - sum(t.value for t in direct)
    if abs(rest) > 1:
        direct = (*direct, _term("engine_reserved", rest, "reserved by the engine beyond activations", s.engine))
    return held, direct


def rank_weight_bytes(program: Program) -> dict[int, float]:
    """Exact weight bytes of every rank of one replica, by global rank: each shard counted by the positions it holds."""
    dtypes = Dtypes.of_strategy(program.model, program.strategy)
    sizes = all_sizes(program.model, batch_size=1, seq_len=1, kv_len=1)
    out: dict[int, float] = {}
    for stage in program.on_ranks:
        held = frozenset(w.name for w in stage.embed.weights()) if stage.embed else frozenset()
        for local, rank in enumerate(stage.ranks):
            out[rank] = sum(
                times * _exact(pbody, local, program.mesh, sizes, dtypes, held if pbody is stage.head else frozenset())
                for pbody, times in stage.bodies()
            )
    return out


def rank_kv_bytes(program: Program, *, batch: int, context: int) -> dict[int, float]:
    """Exact KV bytes of every rank of one replica that holds `batch` sequences of `context` tokens, by global rank.

    Windows are not applied: this is what the cache tensors of the graph hold, before the engine frees anything. States of
    linear attention are among them.
    """
    dtypes = Dtypes.of_strategy(program.model, program.strategy)
    sizes = all_sizes(program.model, batch_size=batch, seq_len=1, kv_len=context)
    roles = {r: role for role, ranks in program.mesh.roles() for r in ranks}
    out: dict[int, float] = {}

    def positions_of(b: PBody, local: int) -> float:
        return sum(
            held_elements(b, n, local, program.mesh, sizes, program.orders) * dtypes.bytes(b.spec(n).dtype)
            for n in _caches(b, roles[local])
        )

    def states_of(b: PBody, local: int) -> float:
        return sum(
            held_elements(b, p.output, local, program.mesh, sizes, program.orders)
            * int(kept_positions(p, sizes)) * dtypes.bytes(b.spec(p.output).dtype)
            for p in _keepers(b, roles[local])
        )  # fmt: skip

    for stage in program.on_ranks:
        for local, rank in enumerate(stage.ranks):
            out[rank] = sum(times * (positions_of(b, local) + states_of(b, local)) for b, times in stage.bodies())
    return out


def _exact(pbody: PBody, rank: int, mesh: Mesh, sizes: Sizes, dtypes: Dtypes, skip: frozenset[str]) -> float:
    held = (w.name for w in pbody.weights() if w.name not in skip and rank in mesh.ranks(w.group))
    return sum(held_elements(pbody, n, rank, mesh, sizes) * dtypes.bytes(pbody.spec(n).dtype) for n in held)


def held_elements(
    pbody: PBody, tensor: str, rank: int, mesh: Mesh, sizes: Sizes, orders: Orders = DEFAULT_ORDERS
) -> int:
    """Elements of a tensor that local rank `rank` holds, by the positions of every dim."""
    layout = pbody.layout(tensor)

    def held(dim: str) -> int:
        return len(positions(int(sizes[dim]), layout.axes(dim), mesh, rank, dim, orders, layout.turned(dim)))

    return prod(held(d) for d in pbody.spec(tensor).dims)


def layer_loads(
    model: ModelSpec, strategy: Strategy, *, batch: int, seq_len: int, count: Collection[Counted] = COUNTED,
    add_activations: bool = False, ends: bool = True,
) -> Loads:  # fmt: skip
    """What each layer takes on one device of its stage, for layer-wise placement: weights, KV cache of `batch` sequences
    (per replica) of `seq_len` tokens, activations of their prefill.

    Layers of a group run one after another, so of their activations the largest counts; `add_activations` adds them up
    instead (nothing is freed). `ends`: embedding and head count on the first and the last device.
    """
    one = strategy.model_copy(update={"pp": 1, "virtual": 1, "layers_per_stage": None})
    sizes = all_sizes(model, batch_size=batch, seq_len=seq_len, kv_len=seq_len)
    program = lower(model, one, "prefill", sizes)
    (stage,), dtypes, tokens = (
        program.stages,
        Dtypes.of_strategy(model, strategy),
        -(-batch // (strategy.attn_dp or 1)) * seq_len,
    )
    args = (sizes, program.mesh, dtypes)

    def held(b: PBody) -> float:
        weights = body_weight_bytes(b, *args) if "weights" in count else 0.0
        states = body_state_bytes(b, *args, sequences=tokens // seq_len)
        return float(weights + (tokens * body_kv_bytes_per_token(b, *args) + states if "kv" in count else 0.0))

    bodies = [r.bodies[i % len(r.bodies)] for r in stage.runs for i in range(len(r.layers))]
    by_body = {
        id(b): (held(b), float(body_activation_bytes(b, *args)) if "activations" in count else 0.0) for b in bodies
    }
    rows = [by_body[id(b)] for b in bodies]
    outer = [held(b) if b is not None and ends else 0.0 for b in (stage.embed, stage.head)]
    if add_activations:
        return Loads(tuple(a + b for a, b in rows), (), *outer)
    return Loads(tuple(a for a, _ in rows), tuple(b for _, b in rows), *outer)


# ------------------------------------------------------------------------------------------------------ the whole model


def parameters_by_role(model: ModelSpec, *, padded: bool = False) -> Mapping[DTypeRole, int]:
    """Number of weights of the unpartitioned model by dtype role; tied embeddings once. `padded`: vocabulary rows that
    engines add for divisibility are counted too."""
    sizes = all_sizes(model, batch_size=1, seq_len=1, kv_len=1)
    if not padded:
        sizes = {**sizes, "padded_vocab": sizes["vocab"]}
    out: dict[DTypeRole, int] = {}
    seen: set[str] = set()
    bodies = [embed_body(model), *(layer_body(model, k, "prefill") for k in model.layers()), head_body(model)]
    for body in bodies:
        for t in body.weights():
            if t.dtype == "embedding" and t.name in seen:
                continue
            seen.add(t.name)
            out[t.dtype] = out.get(t.dtype, 0) + int(num_elements({d: sizes[d] for d in t.dims}))
    return out


def num_parameters(model: ModelSpec) -> int:
    """Weights of the whole model; tied embeddings once."""
    return sum(parameters_by_role(model).values())


def model_weight_bytes(model: ModelSpec, weight_dtype: str | None = None) -> float:
    """Weights of the whole model in one copy, in `weight_dtype` (the checkpoint's own by default)."""
    dtypes = Dtypes.of(model, weight_dtype or model.weight_dtype, "bf16")
    return sum(n * dtypes.bytes(role) for role, n in parameters_by_role(model).items())


def kv_bytes_per_token(model: ModelSpec, kv_dtype: str = "bf16") -> float:
    """KV cache of one token in one copy: L · kv_heads · (d_k + d_v) · bytes, or L · (kv_lora + qk_rope) · bytes, and the key of
    the indexer where there is one; L are the layers whose cache grows."""
    layers = [k for k in model.layers() if k.attends and k.kv != "borrowed"]
    return sum(cached_bytes(model.attention_of(k), kv_dtype) + index_bytes(model, k, kv_dtype) for k in layers)


def index_bytes(model: ModelSpec, kind: LayerKind, kv_dtype: str) -> float:
    """The key that the indexer of a layer caches of one token, in one copy."""
    ix = model.attention_of(kind).indexer
    if ix is None or kind.picks != "own":
        return 0.0
    return ix.head_dim * (dtype_bytes(kv_dtype) if ix.block else INDEX_KEY_BYTES)


def cached_bytes(a: Attention, kv_dtype: str) -> float:
    """Keys and values, or the latent, of one token in one layer and one copy."""
    values = a.v_head_dim or a.head_dim
    held = a.mla.kv_lora_rank + a.mla.qk_rope_head_dim if a.mla else a.num_kv_heads * (a.head_dim + values)
    return held * dtype_bytes(kv_dtype)


def state_bytes_per_sequence(model: ModelSpec, elem_bytes: float = 2.0) -> float:
    """What the layers of linear attention keep of one sequence in one copy: value_heads · key_dim · value_dim in fp32 each,
    and conv_kernel - 1 inputs of the convolutions of `elem_bytes`."""
    a = model.linear
    if a is None:
        return 0.0
    keys = 0 if a.value_dim == 1 else 2 * a.num_key_heads * a.key_dim  # these follow from channels that are convolved
    channels = keys + a.num_value_heads * a.value_dim
    states = 0 if a.kind == "short_conv" else 4 * a.num_value_heads * a.key_dim * a.value_dim
    per_layer = states + elem_bytes * (a.conv_kernel - 1) * channels
    return sum(k.recurs for k in model.layers()) * per_layer


def shared_state_bytes_per_sequence(model: ModelSpec, elem_bytes: float = 2.0) -> float:
    """The part of it that every rank of tp keeps: the convolution's inputs of the one key and query that all heads read."""
    a = model.linear
    if a is None or not a.one_key or a.kind in ("mamba1", "short_conv"):
        return 0.0
    return sum(k.recurs for k in model.layers()) * elem_bytes * (a.conv_kernel - 1) * 2 * a.key_dim


__all__ = [
    "HOLDS_WINDOW_ONLY",
    "KV_BLOCK",
    "Dtypes",
    "activation_sizes",
    "body_activation_bytes",
    "body_kv_bytes",
    "body_kv_bytes_per_token",
    "body_state_bytes",
    "body_weight_bytes",
    "body_window",
    "held_elements",
    "kv_budget_bytes",
    "kv_bytes_per_token",
    "layer_loads",
    "memory",
    "model_weight_bytes",
    "num_parameters",
    "parameters_by_role",
    "rank_kv_bytes",
    "rank_weight_bytes",
    "stage_activation_bytes",
    "stage_kv_bytes",
    "stage_kv_bytes_per_token",
    "stage_weight_bytes",
    "stage_weights_by_body",
    "state_bytes_per_sequence",
    "tensor_bytes",
]  # fmt: skip
