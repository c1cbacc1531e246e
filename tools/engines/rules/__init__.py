"""Legality of a strategy on an engine: conjunctive rules, keyed by engine and version.

check(model, strategy, …)      every finding: errors (the engine would refuse), warnings (it runs, but …)
legal(engine, model, strategy) no error
legal_mask(engine, model, …)   the same rules over arrays of candidates
legal_tp(engine, model)        every attention tp that passes all rules
device_dtype(device, …)        which dtypes an engine computes in, or only stores in, on a device
default_layers_per_stage       how the engine cuts layers when it is not told
resolve_layers                 the strategy with that cut spelled out
kv_budget, memory_fraction     the engine's own memory accounting
parallel_flags, placement      our strategy in the engine's words, and on nodes

An engine without rules is not an error: its legality is unchecked, said in one warning. A version without rules is
judged by the newest known one, said likewise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from tools.engines.rules import megatron, sglang, torchtitan, trtllm, vllm, vllm_ascend
from tools.engines.rules.base import (
    Degrees,
    EngineRules,
    Flag,
    Ints,
    Placement,
    Verdict,
    breakdown,
    place,
    total,
)
from tools.engines.rules.devices import device_dtype, device_layout
from tools.partition.lower import default_layers_per_stage as balanced_layers
from tools.spec.base import ToolError
from tools.spec.finding import Finding
from tools.spec.hardware import Device
from tools.spec.model import ModelSpec, with_redundant
from tools.spec.strategy import Strategy
from tools.spec.term import Breakdown

RULES: dict[tuple[str, str], EngineRules] = {
    (e.engine, e.version): e
    for e in (
        vllm.VLLM_0_33_0, sglang.SGLANG_0_5_23, trtllm.TRTLLM_1_3, vllm_ascend.VLLM_ASCEND,
        megatron.MEGATRON_CORE_0_20, torchtitan.TORCHTITAN_0_3_0,
    )
}  # fmt: skip
"""Releases in the order they were read, oldest first per engine."""
ENGINES: tuple[tuple[str, str], ...] = tuple(RULES)
"""(engine, version) of every release with rules."""

__all__ = [
    "ENGINES", "RULES", "Degrees", "EngineRules", "Flag", "Placement", "check", "default_layers_per_stage", "device_dtype",
    "engine_rules", "engines", "kv_budget", "kv_budgets", "latest", "legal", "legal_mask", "legal_tp", "memory_fraction",
    "parallel_flags", "placement", "resolve_layers", "server_defaults",
]  # fmt: skip


def engines(kind: Literal["serving", "training"] | None = None) -> tuple[str, ...]:
    """Engines with rules, in the order they were read; `kind` narrows them down."""
    return tuple(dict.fromkeys(e for (e, _), r in RULES.items() if kind is None or r.training == (kind == "training")))


def latest(engine: str) -> str:
    """Newest release of `engine` whose rules are known."""
    versions = [v for e, v in RULES if e == engine]
    if not versions:
        raise ToolError(f"no rules for engine {engine!r}; known: {', '.join(engines())}")
    return versions[-1]


def engine_rules(engine: str, version: str | None = None) -> EngineRules:
    """Rules of exactly this release (the newest one by default). Raises ToolError with the known ones."""
    version = version or latest(engine)
    if (engine, version) not in RULES:
        known = ", ".join(v for e, v in RULES if e == engine) or "none"
        raise ToolError(f"no rules for {engine} {version}; known versions of {engine}: {known}")
    return RULES[engine, version]


def _nearest(engine: str, version: str | None) -> EngineRules:
    """Rules of the release, else of the newest known one of the engine. Raises ToolError for an unknown engine."""
    return RULES.get((engine, version or ""), engine_rules(engine))


def check(
    model: ModelSpec,
    strategy: Strategy,
    *,
    engine: str | None = None,
    version: str | None = None,
    num_nodes: int | None = None,
    devices_per_node: int | None = None,
    device: Device | None = None,
) -> tuple[Finding, ...]:
    """Everything the engine has to say about `strategy`; errors first, in the order the engine would meet them.

    `engine` defaults to the strategy's. `num_nodes` None: any number of nodes (of 8 devices unless stated). With a
    `device`, its back end and dtypes are judged too.
    """
    name = engine or strategy.engine
    known, said = _known(name, version)
    if known is None:
        return said
    beyond = _beyond(known, strategy)
    if beyond:
        return (*beyond, *said)  # its degrees mean something else to the engine: judging them would mislead
    d = Degrees.of(strategy, num_nodes=num_nodes, devices_per_node=devices_per_node, device=device)
    broken = [v for v in _verdicts(known, with_redundant(model, strategy.redundant_experts), d) if np.any(v.bad)]
    way_out = ""
    if any(v.axis == "tp" and v.severity == "error" for v in broken):
        way_out = _way_out(known, model, strategy)
    found = [v.finding(known.label, way_out if v.axis == "tp" and v.severity == "error" else "") for v in broken]
    found = [
        *device_dtype(device, strategy.weight_dtype, strategy.kv_dtype, name), *found,
        *device_layout(device, name, strategy.ep, strategy.group), *said,
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda f: f.severity != "error"))


BEYOND: tuple[tuple[str, Any, str, frozenset[str]], ...] = (
    ("expert_devices", 0, "experts on devices of their own", frozenset()),
    ("attn_pool", 0, "a pool of devices that joins attention", frozenset()),
    ("seq_slices", 1, "a pipeline over slices of the prompt", frozenset()),
    ("ep_nodes", 1, "an all-to-all in two steps, nodes first", frozenset({"vllm", "sglang"})),
    ("redundant_experts", 0, "further copies of experts", frozenset({"vllm", "sglang"})),
    ("placements", (), "weights that are placed one by one", frozenset()),
    ("virtual", 1, "an interleaved pipeline", frozenset({"megatron", "torchtitan"})),
)
"""Deployments that layouts express and engines mostly do not: (field, its neutral value, in words, engines that have it)."""


def _beyond(rules: EngineRules, strategy: Strategy) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            code="not-expressible", severity="error", cause="engine", where=name,
            message=f"{rules.label} has no option for {words} ({name}={getattr(strategy, name)}); the graph is proven, but "
            "nothing launches it", fix=f"{name}={neutral}, or an engine that has it", values={name: getattr(strategy, name)},
        )
        for name, neutral, words, able in BEYOND
        if getattr(strategy, name) != neutral and rules.engine not in able
    )  # fmt: skip


def _known(engine: str, version: str | None) -> tuple[EngineRules | None, tuple[Finding, ...]]:
    """Rules that apply, and what is to be said about them: none for this engine, or those of another version."""
    if engine not in engines():
        return None, (Finding(
            code="engine-unknown", severity="warning", cause="engine", where="engine",
            message=f"engine {engine} has no rules here; legality unchecked",
            fix=f"an engine among {', '.join(engines())}", values={"engine": engine},
        ),)  # fmt: skip
    rules = _nearest(engine, version)
    if version is None or version == rules.version:
        return rules, ()
    return rules, (Finding(
        code="engine-version", severity="warning", cause="engine", where="engine",
        message=f"no rules for {engine} {version}; judged by {rules.version}, rules move between releases",
        fix=f"{engine} {rules.version}, or start once before relying on it",
        values={"version": version, "judged_by": rules.version},
    ),)  # fmt: skip


def _way_out(rules: EngineRules, model: ModelSpec, s: Strategy) -> str:
    tps = legal_tp(
        rules.engine, model, version=rules.version, weight_dtype=s.weight_dtype, expert_parallel=s.ep > 1
    )  # fmt: skip
    experts = " with expert parallelism" if model.moe is not None and s.ep > 1 else ""
    return f"tp {', '.join(map(str, tps))} pass every rule{experts}" if tps else "no tp passes every rule"


def legal(
    engine: str,
    model: ModelSpec,
    strategy: Strategy,
    *,
    version: str | None = None,
    num_nodes: int | None = None,
    devices_per_node: int | None = None,
    device: Device | None = None,
) -> bool:
    """No error among the findings of `check`; True for an engine without rules."""
    if _refused(device, strategy.weight_dtype, strategy.kv_dtype, engine):
        return False
    if engine not in engines():
        return True
    rules = _nearest(engine, version)
    if _beyond(rules, strategy):
        return False
    d = Degrees.of(strategy, num_nodes=num_nodes, devices_per_node=devices_per_node, device=device)
    model = with_redundant(model, strategy.redundant_experts)
    return not any(v.severity == "error" and bool(np.any(v.bad)) for v in _verdicts(rules, model, d))


def _refused(device: Device | None, weight_dtype: str, kv_dtype: str, engine: str) -> str:
    """Code of the first error that the device alone gives, else ""."""
    found = device_dtype(device, weight_dtype, kv_dtype, engine)
    return next((f.code for f in found if f.severity == "error"), "")


def _verdicts(rules: EngineRules, model: ModelSpec, d: Degrees) -> list[Verdict]:
    return [rule(model, d) for rule in rules.rules]


def legal_mask(
    engine: str, model: ModelSpec, *,
    tp: Ints, pp: Ints = 1, ep: Ints = 1, etp: Ints | None = None, attn_dp: Ints = 1, cp: Ints = 1, dp: Ints = 1, dcp: Ints = 1,
    batch: Ints = 1, max_num_batched_tokens: Ints = 8192,
    weight_dtype: str = "bf16", kv_dtype: str = "bf16", sp: bool = False, moe_comm: str = "auto", cp_kind: str = "ulysses",
    num_nodes: int | None = None, devices_per_node: int | None = None, version: str | None = None, device: Device | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """`(mask, reason)` over broadcast integer arrays: mask True where legal, reason the first error's code, else "".

    `etp` None means what ep leaves: tp * cp * attn_dp // ep. Agrees with `check` on every element.
    """
    spread = _spread(
        etp, tp=tp, pp=pp, ep=ep, attn_dp=attn_dp, cp=cp, dp=dp, dcp=dcp, batch=batch,
        max_num_batched_tokens=max_num_batched_tokens,
    )  # fmt: skip
    shape = spread["tp"].shape
    refused = _refused(device, weight_dtype, kv_dtype, engine)
    if refused or engine not in engines():
        return np.full(shape, not refused), np.full(shape, refused)
    d = Degrees(
        **spread, weight_dtype=weight_dtype, kv_dtype=kv_dtype, sp=sp, moe_comm=moe_comm, cp_kind=cp_kind,
        num_nodes=num_nodes, devices_per_node=devices_per_node, vendor=device.vendor.lower() if device is not None else "",
    )  # fmt: skip
    return _first_error(_verdicts(_nearest(engine, version), model, d), shape)


def _spread(etp: Ints | None, **axes: Ints) -> dict[str, Any]:
    """All axes and etp as arrays of one shape; degrees of a million ranks still multiply inside 64 bits."""
    given = axes if etp is None else {**axes, "etp": etp}
    arrays = np.broadcast_arrays(*(np.asarray(x, dtype=np.int64) for x in given.values()))
    spread: dict[str, Any] = dict(zip(given, arrays, strict=True))
    if etp is None:
        spread["etp"] = spread["tp"] * spread["cp"] * spread["attn_dp"] // spread["ep"]
    return {**spread, "etp": np.maximum(spread["etp"], 1)}


def _first_error(verdicts: Iterable[Verdict], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(no error, code of the first one or "") for each candidate."""
    errors = [v for v in verdicts if v.severity == "error"]
    first = np.zeros(shape, dtype=np.int16)
    for i, v in enumerate(errors, start=1):
        first = np.where((first == 0) & np.asarray(v.bad, dtype=bool), i, first)
    codes = np.array(["", *(v.code for v in errors)])
    return first == 0, codes[first]


def legal_tp(
    engine: str,
    model: ModelSpec,
    *,
    version: str | None = None,
    weight_dtype: str | None = None,
    expert_parallel: bool = False,
    max_tp: int = 64,
) -> tuple[int, ...]:
    """Every attention tp up to `max_tp` that passes all rules of one instance; the weights' native dtype by default.

    >>> legal_tp("vllm", qwen2_5_7b)                                        # doctest: +SKIP
    (1, 2, 4)
    """
    tp = np.arange(1, max_tp + 1)
    mask, _ = legal_mask(
        engine, model, tp=tp, ep=tp if expert_parallel and model.moe else 1, version=version,
        weight_dtype=weight_dtype or model.weight_dtype,
    )  # fmt: skip
    return tuple(int(t) for t in tp[mask])


def default_layers_per_stage(engine: str, num_layers: int, pp: int, *, version: str | None = None) -> tuple[int, ...]:
    """Layers of each stage when the engine is not told: 61 on 4 is 15, 15, 16, 15 in vLLM, 15, 15, 15, 16 in SGLang,
    16, 15, 15, 15 in TensorRT-LLM.

    An engine without rules gets the balanced cut of the partitioner. Raises ToolError when there are more stages than
    layers.
    """
    if not 1 <= pp <= num_layers:
        raise ToolError(f"pp({pp}) stages for {num_layers} layers; choose pp from 1 to {num_layers}")
    if engine not in engines():
        return balanced_layers(num_layers, pp)
    return _nearest(engine, version).layers_per_stage(num_layers, pp)


def resolve_layers(engine: str | None, model: ModelSpec, strategy: Strategy, *, version: str | None = None) -> Strategy:
    """`strategy` with its stages spelled out: None becomes the engine's own cut, so that graph, memory, cost and launch
    files mean the same layers. `engine` None is the strategy's. Unchanged without stages to cut, or when more stages
    than layers make it illegal anyway. Idempotent.
    """
    runs = strategy.pp * strategy.virtual
    if strategy.pp == 1 or strategy.layers_per_stage is not None or runs > model.num_hidden_layers:
        return strategy
    cut = default_layers_per_stage(engine or strategy.engine, model.num_hidden_layers, runs, version=version)
    return strategy.model_copy(update={"layers_per_stage": cut})


def kv_budget(
    engine: str,
    *,
    memory_total_bytes: float,
    weights_bytes: float,
    activation_bytes: float,
    strategy: Strategy,
    memory_reserve: float | None = None,
    version: str | None = None,
) -> Breakdown:
    """Bytes left for KV on the fullest rank, by the engine's own accounting; negative when the weights do not fit.

    `memory_reserve` is a fraction of the device that must stay free; it lowers the engine's memory fraction.
    """
    return breakdown(_nearest(engine, version).kv_budget(
        Degrees.of(strategy), memory_total_bytes=memory_total_bytes, weights_bytes=weights_bytes,
        activation_bytes=activation_bytes, memory_reserve=memory_reserve,
    ))  # fmt: skip


def kv_budgets(
    engine: str, degrees: Degrees, *, memory_total_bytes: float, weights_bytes: Ints, activation_bytes: Ints,
    memory_reserve: float | None = None, version: str | None = None,
) -> np.ndarray:  # fmt: skip
    """The totals of `kv_budget` for arrays of candidates."""
    return np.asarray(total(_nearest(engine, version).kv_budget(
        degrees, memory_total_bytes=memory_total_bytes, weights_bytes=weights_bytes, activation_bytes=activation_bytes,
        memory_reserve=memory_reserve,
    )))  # fmt: skip


def memory_fraction(
    engine: str,
    *,
    memory_total_bytes: float,
    strategy: Strategy,
    memory_reserve: float | None = None,
    version: str | None = None,
) -> float:
    """--gpu-memory-utilization or --mem-fraction-static of the plan."""
    return _nearest(engine, version).memory_fraction(
        memory_total_bytes=memory_total_bytes, strategy=strategy, memory_reserve=memory_reserve
    )


def server_defaults(engine: str, memory_bytes: float, tp: int, *, version: str | None = None) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) of the engine when no flag is given."""
    return _nearest(engine, version).server_defaults(memory_bytes, tp)


def parallel_flags(
    engine: str, model: ModelSpec, strategy: Strategy, *, version: str | None = None
) -> tuple[Flag, ...]:
    """The degrees of one replica as flags of the engine; judge them with `check` first."""
    return _nearest(engine, version).parallel_flags(model, strategy)


def placement(
    engine: str,
    strategy: Strategy,
    *,
    num_nodes: int | None = None,
    devices_per_node: int | None = None,
    version: str | None = None,
) -> Placement:
    """How the ranks of each replica lie on nodes, as ints."""
    d = Degrees.of(strategy, num_nodes=num_nodes, devices_per_node=devices_per_node)
    p = place(d, _nearest(engine, version).aligned(d))
    fields: dict[str, Any] = {name: int(getattr(p, name)) for name in ("local", "nodes_per_replica", "slots", "nodes")}
    return Placement(**fields)
