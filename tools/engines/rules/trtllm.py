"""TensorRT-LLM, PyTorch back end: `devices = dp instances * pp * tp_size * cp`, `tp_size = tp * attn_dp`.

Second-hand: no release was installed or read as a whole. What is known comes from public copies of mapping.py and of
the serve command (2025), the documentation, and configuration templates of 1.3.0rc23; every finding says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tools.engines.rules import common
from tools.engines.rules.base import (
    BLOCK_FP8,
    Amount,
    Budget,
    Degrees,
    EngineRules,
    Flag,
    Ints,
    Linear,
    Rule,
    Verdict,
    any_of,
    block_fp8,
    dense_linears,
    first_bad,
    named,
    shared_linears,
)
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

VERSION = "1.3.0rc23"
FREE_FRACTION = 0.9
"""kv_cache_config.free_gpu_memory_fraction: of the memory that weights and activations leave (serve command)."""
CONTEXT_BYTES = 0.5 * 2**30
"""CUDA context and allocations outside torch: same order as other engines' logs; upper end."""
COMMUNICATOR_BYTES = 392e6
"""NCCL buffers per communicator: aiconfigurator reserves 342 to 392 MB; upper end."""
GRAPH_BYTES = 26 * 2**20
"""One captured graph; vLLM's figure (vllm-project/vllm #22897) stands in."""

WEIGHT_DTYPES = ("bf16", "fp16", "fp8", "int8", "int4", "mxfp4", "nvfp4")
KV_DTYPES = {"bf16": "auto", "fp16": "auto", "fp8": "fp8", "nvfp4": "nvfp4"}
"""kv_cache_config.dtype by our dtype."""


def seen(where: str) -> str:
    return f"second-hand: {where}"


def aligned(d: Degrees) -> Sequence[Ints]:
    return [d.replica]


def attention_is_whole_or_split(m: ModelSpec, d: Degrees) -> Verdict:
    """enable_attention_dp is a switch: every rank of tp_size keeps all heads, or every rank a share of them."""
    return Verdict(
        "attn-dp-mixed", (d.attn_dp > 1) & (d.tp > 1), "attention",
        lambda: (
            f"attn_dp({d.attn_dp}) with attention tp({d.tp}): enable_attention_dp makes all "
            f"tp_size = {d.tp * d.attn_dp} ranks data-parallel"
        ),
        lambda: f"tp 1 attn_dp {d.tp * d.attn_dp}, or tp {d.tp * d.attn_dp} attn_dp 1",
        seen("features/parallel-strategy of the documentation"),
    )  # fmt: skip


def expert_degrees_fill_tp(m: ModelSpec, d: Degrees) -> Verdict:
    """tp_size = moe_tp * moe_ep (* cluster, which we never use)."""
    edp = d.group // np.maximum(d.etp * d.ep, 1)
    return Verdict(
        "edp", (edp > 1) & (m.moe is not None), "moe.experts",
        lambda: (
            f"etp({d.etp}) * ep({d.ep}) = {d.etp * d.ep}, must be tp_size = {d.group}: "
            f"{edp} copies of the experts have no setting"
        ),
        lambda: f"etp * ep = {d.group}", seen("mapping.py, tp_size = moe_tp_size * moe_ep_size"),
    )  # fmt: skip


def context_parallel_without_experts(m: ModelSpec, d: Degrees) -> Verdict:
    return Verdict(
        "cp-ep", (d.cp > 1) & (d.ep > 1), "moe.experts", lambda: f"cp({d.cp}) with ep({d.ep}) is not implemented",
        "cp 1 or ep 1", seen('mapping.py "CP don\'t support MoE tp/ep yet"'),
    )  # fmt: skip


def context_parallel_heads(m: ModelSpec, d: Degrees) -> Verdict:
    """Context parallelism is Ulysses: attention heads are split over tp * cp."""
    h = m.attention.num_heads
    ways = d.tp * d.cp
    return Verdict(
        "cp-heads", (d.cp > 1) & (h % ways != 0), "attention.q_proj",
        lambda: f"heads({h}) % (tp({d.tp}) * cp({d.cp})) = {h % ways}, must be 0", "a cp whose product with tp divides",
        seen("mapping.py attn_tp_size = tp_size * cp_size"), cause="shape",
    )  # fmt: skip


def no_decode_context_parallelism(m: ModelSpec, d: Degrees) -> Verdict:
    return Verdict(
        "dcp", np.asarray(d.dcp) > 1, "kv_cache",
        lambda: f"dcp({d.dcp}): the cache of a sequence is not dealt out over tp ranks", "dcp 1, or attention DP",
        seen("keys of the configuration file"),
    )  # fmt: skip


def blocks_unverified(m: ModelSpec, d: Degrees) -> Verdict:
    block = block_fp8(m, d)
    b = block or BLOCK_FP8
    xs = [*common.tp_linears(m, d)] if block and not m.quantized_experts_only else []
    if m.moe is not None and block:
        xs.append(Linear("moe.experts.down_proj", "row", m.moe.intermediate_size, d.etp))

    def broken(x: Linear) -> Ints:
        return (np.asarray(x.ways) > 1) & (x.shard % b != 0)

    def equation() -> str:
        x = first_bad(xs, broken)
        return f"shard {x.size}/{x.ways} = {x.size / x.ways:g} is not a multiple of the FP8 block({b}); not verified"

    return Verdict(
        "fp8-block", any_of(broken(x) for x in xs), named(xs, broken), equation,
        "expert parallelism, or a tp whose shards are whole blocks", seen("no source; other engines refuse or refine"),
        severity="warning",
    )  # fmt: skip


def unverified(m: ModelSpec, d: Degrees) -> Verdict:
    return Verdict(
        "second-hand", np.ones_like(np.asarray(d.tp), dtype=bool), "engine",
        lambda: "rules of TensorRT-LLM were read from public copies, not from an installed release",
        "start once with the launch file before relying on it", seen("2025 copies, templates of 1.3.0rc23"),
        severity="warning",
    )  # fmt: skip


RULES: tuple[Rule, ...] = (
    common.group_splits_into_experts(),
    common.heads_divide(seen("attention over tp_size")),
    common.no_further_slices(),
    common.kv_heads_divide_or_replicate(seen("features/parallel-strategy: KV is replicated where kv_heads < tp")),
    attention_is_whole_or_split,
    common.attention_dp_needs_experts(
        "mlp",
        lambda d: " leaves nothing shared between its ranks: they are replicas",
        seen("features/parallel-strategy"),
    ),
    common.widths_divide("tp-ffn", lambda m, d: dense_linears(m, d.tp), "tp", seen("linear layers")),
    common.widths_divide("tp-shared-expert", lambda m, d: shared_linears(m, d.tp), "tp", seen("linear layers")),
    common.expert_parallel_needs_experts(seen("mapping.py")),
    expert_degrees_fill_tp,
    common.routed_width_divides(lambda d: d.etp, "etp", seen("mapping.py moe_tp_size")),
    common.experts_cover_ranks(seen("mapping.py ep_experts")),
    common.experts_divide(
        seen("mapping.py ep_experts"),
        lambda n, d: (
            f"num_experts({n}) % ep({d.ep}) = {n % d.ep}: each rank takes {n // d.ep}, {n % d.ep} belong to nobody"
        ),
    ),
    common.int4_groups_divide(common.tp_linears, lambda d: d.etp, seen("group scales lie along the contracted dim")),
    common.dtype_known("weight_dtype", WEIGHT_DTYPES, seen("quantization of the documentation")),
    common.dtype_known("kv_dtype", tuple(KV_DTYPES), seen("kv_cache_config.dtype")),
    common.stages_have_layers(seen("mapping.py pp_layers")),
    context_parallel_without_experts,
    common.context_parallel_kind(("ulysses",), "heads are split over tp_size * cp_size", seen("mapping.py")),
    context_parallel_heads,
    common.no_sequence_parallelism(seen("keys of the configuration file")),
    no_decode_context_parallelism,
    common.fits_nodes(aligned, seen("mapping.py, world = tp * pp * cp")),
    # warnings
    blocks_unverified,
    common.released_fp8_blocks(BLOCK_FP8, lambda d: d.etp, seen("no source; other engines refuse or refine")),
    common.checkpoint_matches(seen("quantization of the documentation"), at_load=()),
    common.tp_inside_node(aligned, seen("NCCL over the network")),
    unverified,
)


def layers_per_stage(num_layers: int, pp: int) -> tuple[int, ...]:
    """The first stages hold the remainder, one layer each (tensor_split of the layer list)."""
    base, extra = divmod(num_layers, pp)
    return tuple(base + (i < extra) for i in range(pp))


def parallel_flags(m: ModelSpec, s: Strategy) -> tuple[Flag, ...]:
    """Degrees of one instance for trtllm-serve; expert TP and attention DP are keys of the configuration file."""
    flags = [Flag("--tp_size", str(s.tp * (s.attn_dp or 1)))]
    if s.pp > 1:
        flags.append(Flag("--pp_size", str(s.pp)))
    if s.cp > 1:
        flags.append(Flag("--cp_size", str(s.cp)))
    if m.moe is not None:
        flags.append(Flag("--ep_size", str(s.ep)))
    return tuple(flags)


def memory_fraction(
    *, memory_total_bytes: float, strategy: Strategy, memory_reserve: float | None = None,
    left_bytes: float | None = None,
) -> float:  # fmt: skip
    """free_gpu_memory_fraction: of `left_bytes`, what weights and activations leave, not of the device.

    A stated reserve is a fraction of the device, so the fraction depends on what is left; half of the device is assumed
    where nobody says. The launch file caps the pool by tokens as well then.
    """
    left = left_bytes if left_bytes is not None else memory_total_bytes / 2
    return float(free_fraction((memory_reserve or 0.0) * memory_total_bytes, left))


def free_fraction(reserve: float, left: Ints) -> Ints:
    share = np.clip(1 - reserve / np.maximum(left, 1e-9), 0.05, FREE_FRACTION)
    return np.where(np.asarray(left) > 0, np.round(share, 3), 0.05)


def graph_sizes(batch: Ints) -> Ints:
    """How many decode batches are captured with padding enabled: 1, 2, 4, steps of 8 up to 128, and powers of two up to
    1024 (templates)."""
    batch = np.asarray(batch)
    return 3 + np.minimum(batch, 128) // 8 + sum(np.where(batch >= i, 1, 0) for i in (256, 512, 1024))


def kv_budget(
    d: Degrees, *, memory_total_bytes: float, weights_bytes: Ints, activation_bytes: Ints,
    memory_reserve: float | None = None,
) -> Budget:  # fmt: skip
    """Bytes of the KV pool on one rank: a fraction of what weights, the activation peak, and graphs leave free.

    Negative when the weights do not fit: nothing is then left to take a fraction of.
    """
    groups: Ints = sum(np.where(np.asarray(x) > 1, 1, 0) for x in (d.group, d.pp, d.cp, d.ep))
    graphs = 1.0 * graph_sizes(-(-np.asarray(d.batch) // d.attn_dp)) * GRAPH_BYTES
    other = CONTEXT_BYTES + groups * COMMUNICATOR_BYTES
    left = memory_total_bytes - weights_bytes - activation_bytes - other - graphs
    fraction = free_fraction((memory_reserve or 0.0) * memory_total_bytes, left)
    where = seen("free_gpu_memory_fraction of the serve command")
    return (
        Amount("total", memory_total_bytes, lambda: "memory of the device", "catalogue"),
        Amount("weights", -weights_bytes, lambda: "fullest rank", where),
        Amount("activations", -activation_bytes, lambda: f"peak of a step of {d.max_num_batched_tokens} tokens", where),
        Amount("non_torch", -other, lambda: f"0.5 GiB + {groups} communicators * 392 MB", "aiconfigurator reserve"),
        Amount("cuda_graphs", -graphs, lambda: "captured sizes * 26 MiB", "vllm-project/vllm #22897, stands in"),
        Amount("left_free", -(1 - fraction) * np.maximum(left, 0.0),
               lambda: f"(1 - free_gpu_memory_fraction({fraction:g})) * what is left", where),
    )  # fmt: skip


def server_defaults(memory_bytes: float, tp: int) -> tuple[int, int]:
    """(max_num_tokens, max_batch_size) of trtllm-serve without flags (documentation of the PyTorch back end)."""
    return 8192, 2048


def world(s: Strategy) -> str:
    size = s.tp * (s.attn_dp or 1)
    return (
        f"devices = instances({s.dp}) * pp({s.pp}) * tp_size({size}) * cp({s.cp}) = {s.num_devices}; "
        f"tp_size = attention tp({s.tp}) * attention dp({s.attn_dp})"
    )


TRTLLM_1_3 = EngineRules(
    engine="trtllm", version=VERSION, rules=RULES, layers_per_stage=layers_per_stage, kv_budget=kv_budget,
    memory_fraction=memory_fraction, parallel_flags=parallel_flags, aligned=aligned, world=world,
    server_defaults=server_defaults,
)  # fmt: skip
