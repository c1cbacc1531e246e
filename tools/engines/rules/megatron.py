"""Megatron-LM core 0.20 (training): `world = tp * pp * cp * dp`, for experts `etp * ep * pp * edp`.

Our `attn_dp` is the part of data parallelism that one group of experts spans, `dp` the rest; Megatron derives both from
the world size. Source places are files of the repository at core 0.20 (dev).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tools.engines.rules import common
from tools.engines.rules.base import (
    Amount,
    Budget,
    Degrees,
    EngineRules,
    Flag,
    Ints,
    Rule,
    Verdict,
    dense_linears,
    divisors,
    shared_linears,
)
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

VERSION = "core-0.20"
WEIGHT_DTYPES = ("fp32", "bf16", "fp16", "fp8")
OVERHEAD_BYTES = 1.5 * 2**30
"""CUDA context, NCCL communicators and allocator slack of a training rank; an assumption, not read from the source."""


def aligned(d: Degrees) -> Sequence[Ints]:
    return [d.tp]


def groups_match(m: ModelSpec, d: Degrees) -> Verdict:
    kv = m.attention.num_kv_heads
    bad = (kv % d.tp != 0) & (np.asarray(d.tp) % kv != 0) & (m.attention.mla is None)
    return Verdict(
        "tp-kv-heads", bad, "attention.k_proj",
        lambda: f"num_query_groups({kv}) and tp({d.tp}): neither is a multiple of the other",
        f"tp among the divisors of {kv}, or a multiple of it", "core/transformer/transformer_config.py:1446",
        cause="shape", axis="tp", values={"kv_heads": kv, "tp": d.tp},
    )  # fmt: skip


def layers_divide(m: ModelSpec, d: Degrees) -> Verdict:
    n = m.num_hidden_layers
    return Verdict(
        "pp-even", (n % d.pp != 0) & (d.layers_per_stage is None), "layers",
        lambda: f"layers({n}) % pp({d.pp}) = {n % d.pp}, must be 0 unless a layout is given",
        f"pp among the divisors of {n}: {divisors(n)}; or layers_per_stage (--pipeline-model-parallel-layout)",
        "training/arguments.py:968", cause="shape",
    )  # fmt: skip


def experts_need_sequence_parallel(m: ModelSpec, d: Degrees) -> Verdict:
    return Verdict(
        "moe-sp", (d.tp > 1) & (not d.sp) & (m.moe is not None), "moe.dispatch",
        lambda: f"MoE with tp({d.tp}) trains only with sequence parallelism", "sp on, or tp 1",
        "core/transformer/moe/moe_layer.py",
    )  # fmt: skip


def exchange_needs_heads(m: ModelSpec, d: Degrees) -> Verdict:
    h, ways = m.attention.num_heads, d.tp * d.cp
    return Verdict(
        "cp-heads", (d.cp > 1) & (h % ways != 0) & (d.cp_kind == "ulysses"), "attention.q_proj",
        lambda: f"heads({h}) % (tp({d.tp}) * cp({d.cp})) = {h % ways}, must be 0 for --cp-comm-type a2a",
        "a cp whose product with tp divides the heads", "core/transformer/transformer_config.py", cause="shape",
    )  # fmt: skip


def no_decode(m: ModelSpec, d: Degrees) -> Verdict:
    return Verdict(
        "dcp", np.asarray(d.dcp) > 1, "kv_cache", lambda: f"dcp({d.dcp}) deals out a KV cache, training has none",
        "dcp 1", "training",
    )  # fmt: skip


RULES: tuple[Rule, ...] = (
    common.group_splits_into_experts(),
    common.heads_divide("core/transformer/transformer_config.py:1446"),
    common.no_further_slices(),
    groups_match,
    common.widths_divide("tp-ffn", lambda m, d: dense_linears(m, d.tp), "tp", "core/tensor_parallel/layers.py divide"),
    common.widths_divide(
        "tp-shared-expert", lambda m, d: shared_linears(m, d.tp), "tp", "core/tensor_parallel/layers.py divide"
    ),
    common.expert_parallel_needs_experts("training/arguments.py"),
    common.routed_width_divides(lambda d: d.etp, "etp", "core/tensor_parallel/layers.py divide"),
    common.experts_cover_ranks("core/transformer/moe/moe_layer.py:186"),
    common.experts_divide("core/transformer/moe/moe_layer.py:186"),
    common.dtype_known("weight_dtype", WEIGHT_DTYPES, "training/arguments.py mixed precision"),
    common.stages_have_layers("training/arguments.py:968"),
    layers_divide,
    common.sequence_parallelism_needs_tp("--sequence-parallel", "sp off, or tp above 1", "training/arguments.py:1335"),
    experts_need_sequence_parallel,
    exchange_needs_heads,
    no_decode,
    common.fits_nodes(aligned, "core/parallel_state.py:822"),
    # warnings
    common.tp_inside_node(aligned, "NCCL over the network"),
)


def layers_per_stage(num_layers: int, pp: int) -> tuple[int, ...]:
    """Megatron splits evenly only; a remainder needs a layout, for which the first and last stages get fewer."""
    base, extra = divmod(num_layers, pp)
    inner = sorted(range(pp), key=lambda i: (i in (0, pp - 1), i == pp - 1, i))
    return tuple(base + (i in inner[:extra]) for i in range(pp))


def pipeline_layout(stages: tuple[int, ...]) -> str:
    """`--pipeline-model-parallel-layout`: E embeds, t is a layer, L the loss: "Et*15|t*15|t*16|t*15L"."""
    parts = [f"t*{n}" for n in stages]
    return "|".join([f"E{parts[0]}", *parts[1:]]) + "L"


def parallel_flags(m: ModelSpec, s: Strategy) -> tuple[Flag, ...]:
    """Degrees as arguments of pretrain_gpt.py; data parallelism is what the world size leaves."""
    flags = [
        Flag("--tensor-model-parallel-size", str(s.tp)),
        Flag("--pipeline-model-parallel-size", str(s.pp)),
    ]
    if s.cp > 1:
        flags += [
            Flag("--context-parallel-size", str(s.cp)),
            Flag("--cp-comm-type", "a2a" if s.cp_kind == "ulysses" else "p2p"),
        ]
    if m.moe is not None:
        flags += [
            Flag("--expert-model-parallel-size", str(s.ep)), Flag("--expert-tensor-parallel-size", str(s.etp)),
            Flag("--moe-token-dispatcher-type", "allgather" if s.moe_comm == "allgather" else "alltoall"),
        ]  # fmt: skip
    if s.sp and s.tp > 1:
        flags.append(Flag("--sequence-parallel"))
    stages = s.layers_per_stage
    if s.pp > 1 and stages is not None and len(set(stages)) > 1:
        flags.append(Flag("--pipeline-model-parallel-layout", pipeline_layout(stages)))
    elif s.virtual > 1:
        per_run = m.num_hidden_layers // (s.pp * s.virtual)
        flags.append(Flag("--num-layers-per-virtual-pipeline-stage", str(per_run)))
    return tuple(flags)


def memory_fraction(*, memory_total_bytes: float, strategy: Strategy, memory_reserve: float | None = None) -> float:
    """Training frameworks take what they need; only a stated reserve limits them."""
    return 1 - (memory_reserve or 0.0)


def kv_budget(
    d: Degrees, *, memory_total_bytes: float, weights_bytes: Ints, activation_bytes: Ints,
    memory_reserve: float | None = None,
) -> Budget:  # fmt: skip
    """What parameters, gradients, optimizer state (all in `weights_bytes`) and activations leave."""
    return (
        Amount("total", memory_total_bytes, lambda: "memory of the device", "catalogue"),
        Amount("stated_reserve", -(memory_reserve or 0.0) * memory_total_bytes,
               lambda: f"{memory_reserve or 0.0:g} * total", "stated"),
        Amount("weights", -weights_bytes, lambda: "fullest rank", "plan"),
        Amount("activations", -activation_bytes, lambda: "fullest rank", "plan"),
        Amount("non_torch", -OVERHEAD_BYTES, lambda: "1.5 GiB", "assumed"),
    )  # fmt: skip


def world(s: Strategy) -> str:
    data = s.dp * (s.attn_dp or 1)
    text = f"world = tp({s.tp}) * pp({s.pp}) * cp({s.cp}) * dp({data}) = {s.num_devices}"
    if s.ep > 1 or (s.etp or 1) > 1:
        text += f" = etp({s.etp}) * ep({s.ep}) * pp({s.pp}) * edp({s.edp * s.dp})"
    return text


MEGATRON_CORE_0_20 = EngineRules(
    engine="megatron", version=VERSION, rules=RULES, layers_per_stage=layers_per_stage, kv_budget=kv_budget,
    memory_fraction=memory_fraction, parallel_flags=parallel_flags, aligned=aligned, world=world, training=True,
)  # fmt: skip
