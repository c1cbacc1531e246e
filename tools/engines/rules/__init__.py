"""Legality of a strategy on a serving engine: conjunctive rules, keyed by engine and version.

check(model, strategy, …)      every finding: errors (the engine would refuse), warnings (it runs, but …)
legal(engine, model, strategy) no error
legal_mask(engine, model, …)   the same rules over arrays of candidates
legal_tp(engine, model)        every attention tp that passes all rules
default_layers_per_stage       how the engine cuts layers when it is not told
kv_budget, memory_fraction     the engine's own memory accounting
parallel_flags, placement      our strategy in the engine's words, and on nodes
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tools.engines.rules import sglang, vllm
from tools.engines.rules.base import Degrees, EngineRules, Flag, Ints, Placement, Verdict, place
from tools.spec.base import ToolError
from tools.spec.finding import Finding
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy
from tools.spec.term import Breakdown

RULES: dict[tuple[str, str], EngineRules] = {(e.engine, e.version): e for e in (vllm.VLLM_0_33_0, sglang.SGLANG_0_5_23)}
"""Releases in the order they were read, oldest first per engine."""
ENGINES: tuple[tuple[str, str], ...] = tuple(RULES)
"""(engine, version) of every release with rules."""

__all__ = [
    "ENGINES", "RULES", "EngineRules", "Flag", "Placement", "check", "default_layers_per_stage", "engine_rules",
    "engines",
    "kv_budget", "latest", "legal", "legal_mask", "legal_tp", "memory_fraction", "parallel_flags", "placement",
    "server_defaults",
]  # fmt: skip


def engines() -> tuple[str, ...]:
    return tuple(dict.fromkeys(engine for engine, _ in RULES))


def latest(engine: str) -> str:
    """Newest release of `engine` whose rules are known."""
    versions = [v for e, v in RULES if e == engine]
    if not versions:
        raise ToolError(f"no rules for engine {engine!r}; known: {', '.join(engines())}")
    return versions[-1]


def engine_rules(engine: str, version: str | None = None) -> EngineRules:
    version = version or latest(engine)
    if (engine, version) not in RULES:
        known = ", ".join(v for e, v in RULES if e == engine) or "none"
        raise ToolError(f"no rules for {engine} {version}; known versions of {engine}: {known}")
    return RULES[engine, version]


def check(
    model: ModelSpec,
    strategy: Strategy,
    *,
    engine: str | None = None,
    version: str | None = None,
    num_nodes: int | None = None,
    devices_per_node: int | None = None,
) -> tuple[Finding, ...]:
    """Everything the engine has to say about `strategy`; errors first, in the order the engine would meet them.

    `engine` defaults to the strategy's. `num_nodes` None: any number of nodes (of 8 devices unless stated).
    """
    rules = engine_rules(engine or strategy.engine, version)
    d = Degrees.of(strategy, num_nodes=num_nodes, devices_per_node=devices_per_node)
    broken = [v for v in (rule(model, d) for rule in rules.rules) if np.any(v.bad)]
    way_out = ""
    if any(v.axis == "tp" and v.severity == "error" for v in broken):
        way_out = _way_out(rules, model, strategy)
    return tuple(
        v.finding(rules.label, way_out if v.axis == "tp" and v.severity == "error" else "")
        for v in sorted(broken, key=lambda v: v.severity != "error")
    )


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
) -> bool:
    """No error among the findings of `check`."""
    d = Degrees.of(strategy, num_nodes=num_nodes, devices_per_node=devices_per_node)
    return not any(bool(np.any(v.bad)) for v in _errors(engine_rules(engine, version), model, d))


def _errors(rules: EngineRules, model: ModelSpec, d: Degrees) -> list[Verdict]:
    return [v for v in (rule(model, d) for rule in rules.rules) if v.severity == "error"]


def legal_mask(
    engine: str,
    model: ModelSpec,
    *,
    tp: Ints,
    pp: Ints = 1,
    ep: Ints = 1,
    etp: Ints | None = None,
    attn_dp: Ints = 1,
    cp: Ints = 1,
    dp: Ints = 1,
    batch: Ints = 1,
    max_num_batched_tokens: Ints = 8192,
    weight_dtype: str = "bf16",
    kv_dtype: str = "bf16",
    sp: bool = False,
    moe_comm: str = "auto",
    num_nodes: int | None = None,
    devices_per_node: int | None = None,
    version: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`(mask, reason)` over broadcast integer arrays: mask True where legal, reason the first error's code, else "".

    `etp` None means what ep leaves: tp * cp * attn_dp // ep. Agrees with `check` on every element.
    """
    axes = [tp, pp, ep, attn_dp, cp, dp, batch, max_num_batched_tokens]
    # Degrees of a million ranks still multiply inside 64 bits.
    a = [np.asarray(x, dtype=np.int64) for x in axes]
    tp_, pp_, ep_, adp_, cp_, dp_, batch_, tokens_ = np.broadcast_arrays(*a, *([] if etp is None else [etp]))[:8]
    etp_ = tp_ * cp_ * adp_ // ep_ if etp is None else np.broadcast_to(np.asarray(etp, np.int64), tp_.shape)
    d = Degrees(
        tp=tp_, pp=pp_, dp=dp_, ep=ep_, etp=np.maximum(etp_, 1), attn_dp=adp_, cp=cp_, batch=batch_,
        max_num_batched_tokens=tokens_, weight_dtype=weight_dtype, kv_dtype=kv_dtype, sp=sp, moe_comm=moe_comm,
        num_nodes=num_nodes, devices_per_node=devices_per_node,
    )  # fmt: skip
    verdicts = _errors(engine_rules(engine, version), model, d)
    first = np.zeros(tp_.shape, dtype=np.int16)
    for i, v in enumerate(verdicts, start=1):
        first = np.where((first == 0) & np.asarray(v.bad, dtype=bool), i, first)
    codes = np.array(["", *(v.code for v in verdicts)])
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


def _first_stages(num_layers: int, pp: int) -> tuple[int, ...]:
    base, extra = divmod(num_layers, pp)
    return tuple(base + (i < extra) for i in range(pp))


def default_layers_per_stage(engine: str, num_layers: int, pp: int, *, version: str | None = None) -> tuple[int, ...]:
    """Layers of each stage when the engine is not told: 61 on 4 is 15, 15, 16, 15 in vLLM, 15, 15, 15, 16 in SGLang.

    TensorRT-LLM gives the remainder to the first stages (tensor_split of the layer list); second-hand, so it has no
    rules here yet. Raises ToolError when there are more stages than layers.
    """
    if not 1 <= pp <= num_layers:
        raise ToolError(f"pp({pp}) stages for {num_layers} layers; choose pp from 1 to {num_layers}")
    if engine == "trtllm":
        return _first_stages(num_layers, pp)
    return engine_rules(engine, version).layers_per_stage(num_layers, pp)


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
    return engine_rules(engine, version).kv_budget(
        memory_total_bytes=memory_total_bytes, weights_bytes=weights_bytes, activation_bytes=activation_bytes,
        strategy=strategy, memory_reserve=memory_reserve,
    )  # fmt: skip


def memory_fraction(
    engine: str,
    *,
    memory_total_bytes: float,
    strategy: Strategy,
    memory_reserve: float | None = None,
    version: str | None = None,
) -> float:
    """--gpu-memory-utilization or --mem-fraction-static of the plan."""
    return engine_rules(engine, version).memory_fraction(
        memory_total_bytes=memory_total_bytes, strategy=strategy, memory_reserve=memory_reserve
    )


def server_defaults(engine: str, memory_bytes: float, tp: int, *, version: str | None = None) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) of the engine when no flag is given."""
    return engine_rules(engine, version).server_defaults(memory_bytes, tp)


def parallel_flags(
    engine: str, model: ModelSpec, strategy: Strategy, *, version: str | None = None
) -> tuple[Flag, ...]:
    """The degrees of one replica as flags of the engine; judge them with `check` first."""
    return engine_rules(engine, version).parallel_flags(model, strategy)


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
    p = place(d, engine_rules(engine, version).aligned(d))
    fields: dict[str, Any] = {name: int(getattr(p, name)) for name in ("local", "nodes_per_replica", "slots", "nodes")}
    return Placement(**fields)
