"""SGLang 0.5.23: `devices = dp * tp_size * pp`, where `tp_size` is the whole group, `tp * cp * attn_dp`.

Attention TP is tp_size / (attn_dp * attn_cp), expert TP is tp_size / (ep * moe_dp). Source places are files of the
0.5.23 wheel, below sglang/srt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tools.engines.rules import common
from tools.engines.rules.base import (
    BLOCK_FP8,
    GROUP_INT4,
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
    attention_linears,
    block_fp8,
    dense_linears,
    dispatches,
    first_bad,
    named,
    place,
    shared_linears,
    total,
)
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

VERSION = "0.5.23"
MIB = 2**20
GIB = 2**30
MAX_GRAPH_BATCH = 512
"""The largest default of arg_groups/memory_hook.py."""

KV_DTYPES = {"bf16": "auto", "fp16": "auto", "fp8": "fp8_e4m3", "nvfp4": "nvfp4", "mxfp4": "fp4_mx_block16"}
"""--kv-cache-dtype by our dtype (arg_groups/fields/model.py)."""
WEIGHT_DTYPES = ("fp32", "bf16", "fp16", "fp8", "int8", "int4", "mxfp4", "nvfp4")
NO_IMPLEMENTATION = frozenset({"BloomForCausalLM", "FalconForCausalLM", "GPTNeoXForCausalLM"})
NO_PIPELINE = frozenset({
    "GPT2LMHeadModel", "GPTJForCausalLM", "GPTBigCodeForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM",
    "Gemma3ForCausalLM", "CohereForCausalLM", "Cohere2ForCausalLM", "BaichuanForCausalLM", "DbrxForCausalLM",
    "Grok1ForCausalLM", "InternLM2ForCausalLM", "MiniCPMForCausalLM", "MiniCPM3ForCausalLM", "OlmoForCausalLM",
    "Olmo2ForCausalLM", "OlmoeForCausalLM", "StableLmForCausalLM", "ExaoneForCausalLM", "GraniteForCausalLM",
    "DeepseekForCausalLM", "HunYuanMoEV1ForCausalLM", "HunYuanDenseV1ForCausalLM", "LongcatFlashForCausalLM",
    "XverseForCausalLM", "PhiMoEForCausalLM",
})  # fmt: skip
"""Implementations below models/ that never ask for their pipeline group."""
LAYERNORM_SP = frozenset({"Qwen3ForCausalLM"})
"""arg_groups/fields/parallel.py enable_layernorm_sp (a quantised Muse Spark too, which we do not know)."""
SHARED_TP1 = frozenset({"DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM"})
"""Architectures of models/deepseek_v2.py, whose shared experts obey SGLANG_SHARED_EXPERT_TP1."""
PREFILL_CP_ON_AMD = frozenset({"DeepseekV4ForCausalLM"})
"""arg_groups/parallel_hook.py:115."""
INTERLEAVES = frozenset({"DeepseekV32ForCausalLM"})
"""Architectures whose prefill context parallelism refuses zigzag (arg_groups/parallel_hook.py:123)."""
COUNTS_EXPERTS_PER_SLICE = frozenset({"Qwen3MoeForCausalLM"})
"""models/qwen3_moe.py:246 compares expert TP with the experts; qwen2_moe.py and deepseek_v2.py the whole group."""


def aligned(d: Degrees) -> Sequence[Ints]:
    """A node holds whole TP groups, or a TP group whole nodes (entrypoints/engine.py:2063)."""
    return [d.group]


def dense_ways(d: Degrees) -> Ints:
    """Ranks that a dense MLP is split over: the whole group, or 1 (`--moe-dense-tp-size 1`)."""
    return np.where(np.asarray(d.attn_dp * d.cp) > 1, np.where(np.asarray(d.tp) > 1, d.group, 1), d.tp)


def shared_ways(m: ModelSpec, d: Degrees) -> Ints:
    """Ranks that a shared expert is split over: 1 under an all-to-all back end, else the whole group.

    models/deepseek_v2.py:871, qwen2_moe.py:369. DeepSeek's also obeys SGLANG_SHARED_EXPERT_TP1, which the launch file
    sets where the plan replicates the shared expert without dispatch.
    """
    replicated = dispatches(d) | ((np.asarray(d.tp) == 1) & (m.architecture in SHARED_TP1))
    return np.where(replicated, 1, d.group)


def linears(m: ModelSpec, d: Degrees) -> tuple[Linear, ...]:
    return attention_linears(m, d.tp) + dense_linears(m, dense_ways(d)) + shared_linears(m, shared_ways(m, d))


def group_covers_expert_degrees(m: ModelSpec, d: Degrees) -> Verdict:
    """tp_size = etp * ep * moe_dp, and moe_dp > 1 only as the counterpart of context parallelism."""
    edp = d.group // np.maximum(d.etp * d.ep, 1)
    as_cp = (edp == d.cp) & (d.pp == 1) & ((d.ep == 1) | (d.etp == 1))
    return Verdict(
        "edp", (edp > 1) & ~np.asarray(as_cp) & (m.moe is not None), "moe.experts",
        lambda: (
            f"group({d.group}) / (etp({d.etp}) * ep({d.ep})) = {edp} copies of the experts; moe_dp > 1 needs "
            f"moe_dp = cp({d.cp}), pp = 1 and etp or ep 1"
        ),
        lambda: f"etp * ep = {d.group}", "arg_groups/parallel_hook.py handle_context_parallelism",
    )  # fmt: skip


def dispatch_spans_group(m: ModelSpec, d: Degrees) -> Verdict:
    return Verdict(
        "ep-a2a", dispatches(d) & (d.ep != d.group) & (m.moe is not None), "moe.dispatch",
        lambda: f"all-to-all backends force ep_size = tp_size: ep({d.ep}) != group({d.group})",
        lambda: f"ep {d.group} etp 1, or moe_comm allgather", "arg_groups/overrides.py:1611",
    )  # fmt: skip


def group_within_experts(m: ModelSpec, d: Degrees) -> Verdict:
    n = m.moe.num_slots if m.moe else 0
    ranks = d.etp if m.architecture in COUNTS_EXPERTS_PER_SLICE else d.group
    return Verdict(
        "tp-experts", (ranks > n) & (m.moe is not None), "moe.router",
        lambda: f"tp_size({ranks}) > num_experts({n})", f"at most {n} ranks per group",
        "models/deepseek_v2.py:714, qwen2_moe.py:273, qwen3_moe.py:246", cause="shape", axis="tp",
    )  # fmt: skip


def moe_blocks_divide(m: ModelSpec, d: Degrees) -> Verdict:
    """Block-FP8 experts: no refinement, shards hold whole blocks (padding on aiter excepted)."""
    block = block_fp8(m, d)
    width, b = (m.moe.intermediate_size, block) if m.moe and block else (0, 1)
    return Verdict(
        "fp8-block-moe", width // d.etp % b != 0, "moe.experts.gate_up_proj",
        lambda: f"shard {width}/etp({d.etp}) = {width / d.etp:g} is not a multiple of the FP8 block({b})",
        "more expert parallelism (whole experts), or smaller tp", "layers/quantization/fp8.py:1585", axis="tp",
    )  # fmt: skip


def dense_layout_differs(m: ModelSpec, d: Degrees) -> Verdict:
    """Under attention DP with tp > 1 SGLang splits dense MLPs over the group, the plan over tp."""
    dense = bool(dense_linears(m, 1)) and m.moe is not None
    return Verdict(
        "dense-layout", (np.asarray(dense_ways(d)) != d.tp) & dense, "mlp",
        lambda: f"dense weights are split over the group({d.group}), the plan counts tp({d.tp})",
        "tp 1 with attention DP gives the plan's layout exactly", "models/deepseek_v2.py:2665", severity="warning",
    )  # fmt: skip


def shared_layout_differs(m: ModelSpec, d: Degrees) -> Verdict:
    """Shared experts follow the dispatch: replicated with all-to-all, split over the group without."""
    shared = m.moe is not None and m.moe.shared_intermediate_size > 0
    ways = shared_ways(m, d)

    def equation() -> str:
        held = "replicated on every rank" if ways == 1 else f"split over the group({d.group})"
        return f"shared experts are {held}, the plan splits them over tp({d.tp})"

    def fix() -> str:
        if d.tp == 1 and d.ep == d.group:
            return "moe_comm alltoall, which replicates them"
        return "tp 1 with attention DP and all-to-all dispatch gives the plan's layout exactly"

    return Verdict(
        "shared-layout", (np.asarray(ways) != d.tp) & shared, "moe.shared_expert", equation, fix,
        "models/deepseek_v2.py:871, qwen2_moe.py:369", severity="warning",
        values={"ways": ways, "tp": d.tp},
    )  # fmt: skip


def sequence_parallelism_known(m: ModelSpec, d: Degrees) -> Verdict:
    pure = (d.attn_dp == 1) & (d.cp == 1) & (m.architecture in LAYERNORM_SP)
    return Verdict(
        "sp", (d.tp > 1) & d.sp & ~np.asarray(pure), "norm",
        lambda: f"--enable-layernorm-sp takes {', '.join(sorted(LAYERNORM_SP))} under pure TP, not {m.architecture}",
        "sp off", "arg_groups/layernorm_sp_hook.py",
    )  # fmt: skip


def prefill_context_parallel_platform(m: ModelSpec, d: Degrees) -> Verdict:
    refuses = {"moore threads": True, "amd": m.architecture not in PREFILL_CP_ON_AMD}
    return Verdict(
        "cp-platform", (d.cp > 1) & refuses.get(d.vendor, False), "attention",
        lambda: f"cp({d.cp}): --enable-prefill-cp of {m.architecture} is refused on devices of this vendor ({d.vendor})",
        "cp 1, with more tp or pp instead", "arg_groups/parallel_hook.py:115,820",
    )  # fmt: skip


def decode_context_parallel_copies(m: ModelSpec, d: Degrees) -> Verdict:
    """DCP ranks hold copies of the same KV heads; heads are split over tp // dcp (configs/model_config.py:1700)."""
    a = m.attention
    kv = 1 if a.mla is not None else max(m.cache_heads)
    groups = np.asarray(d.tp) // d.dcp
    # Where a rank of the plan holds more than one KV head per dcp group, SGLang would hold other heads than the plan.
    bad = (d.dcp > 1) & ((np.asarray(d.tp) % d.dcp != 0) | (groups % kv != 0))

    def equation() -> str:
        if d.tp % d.dcp:
            return f"tp({d.tp}) % dcp({d.dcp}) = {d.tp % d.dcp}, must be 0"
        return f"tp({d.tp}) / dcp({d.dcp}) = {d.tp // d.dcp}, which must be a multiple of kv_heads({kv}) as in the plan"

    def fix() -> str:
        ok = [i for i in range(1, d.tp + 1) if d.tp % i == 0 and d.tp // i % kv == 0] or [1]
        return f"dcp among {', '.join(map(str, ok))} at tp {d.tp}"

    return Verdict(
        "dcp", bad, "kv_cache", equation, fix, "distributed/parallel_state.py:2717", cause="shape",
        values={"dcp": d.dcp, "tp": d.tp, "kv_heads": kv},
    )  # fmt: skip


def decode_context_parallel_with_prefill(m: ModelSpec, d: Degrees) -> Verdict:
    return Verdict(
        "dcp-cp", (d.dcp > 1) & (d.cp > 1), "kv_cache",
        lambda: f"dcp({d.dcp}) and --enable-prefill-cp (cp {d.cp}) exclude each other", "dcp 1 or cp 1",
        "arg_groups/parallel_hook.py:249",
    )  # fmt: skip


def decode_context_parallel_gqa(m: ModelSpec, d: Degrees) -> Verdict:
    return Verdict(
        "dcp-backend", (d.dcp > 1) & (m.attention.mla is None), "attention",
        lambda: f"dcp({d.dcp}) without MLA depends on the attention back end; nothing checks it at launch",
        "--attention-backend fa3 or triton; compare one answer with dcp 1 first", "layers/attention",
        severity="warning",
    )  # fmt: skip


def pipeline_is_synchronous(m: ModelSpec, d: Degrees) -> Verdict:
    return Verdict(
        "pp-overlap", d.pp > 1, "scheduler", lambda: f"pp({d.pp}) switches overlap scheduling off",
        "prefer tp inside the node where it is legal", "arg_groups/overrides.py", severity="warning", cause="slo",
    )  # fmt: skip


def batch_divides(m: ModelSpec, d: Degrees) -> Verdict:
    return Verdict(
        "batch-attn-dp", d.batch < d.attn_dp, "scheduler",
        lambda: f"batch({d.batch}) < attn_dp({d.attn_dp}): some attention ranks get no request",
        lambda: f"a batch of at least {d.attn_dp}", "mem_cache/kv_cache_configurator.py:3128", severity="warning",
    )  # fmt: skip


def marlin_tiles(m: ModelSpec, d: Degrees) -> Verdict:
    """Linears whose shards miss the Marlin tiles (N 64, K 128) fall back to unoptimised AWQ kernels."""
    xs = linears(m, d) if d.weight_dtype == "int4" and not m.quantized_experts_only else ()

    def broken(x: Linear) -> Ints:
        return x.shard % (GROUP_INT4 if x.kind == "row" else 64) != 0

    def equation() -> str:
        x = first_bad(xs, broken)
        return f"shard {x.size}/{x.ways} = {x.size / x.ways:g} misses the Marlin tile (N 64, K 128)"

    return Verdict(
        "int4-marlin", any_of(broken(x) for x in xs), named(xs, broken), equation, "a tp whose shards keep the tiles",
        "layers/quantization/awq/awq.py:368", severity="warning",
    )  # fmt: skip


decode_fits_low_latency = common.dispatch_fits_low_latency(
    lambda d: scheduled(d), "batch per attention rank",
    "the server dispatches by the normal ones, without CUDA graphs, and decode is priced with the former",
    f"a batch of at most {common.LOW_LATENCY_TOKENS} for each attention rank, or moe_comm allgather",
    "layers/moe/token_dispatcher/deepep.py:409",
)  # fmt: skip


RULES: tuple[Rule, ...] = (
    common.group_splits_into_experts(),
    common.heads_divide("layers/linear.py:1139"),
    common.no_further_slices(),
    common.kv_heads_divide_or_replicate("layers/linear.py:1139"),
    common.output_groups_divide("models/deepseek_v4.py:1037"),
    common.widths_divide("tp-ffn", lambda m, d: dense_linears(m, dense_ways(d)), "tp", "distributed/utils.py divide"),
    common.widths_divide(
        "tp-shared-expert", lambda m, d: shared_linears(m, shared_ways(m, d)), "tp", "distributed/utils.py divide"
    ),
    common.expert_parallel_needs_experts("layers/moe"),
    common.attention_dp_needs_experts(
        "mlp",
        lambda d: f" splits the MLP over all {d.group} ranks, which is not the plan's layout (over tp({d.tp}))",
        "models/qwen2.py, models/llama.py",
    ),
    group_covers_expert_degrees,
    dispatch_spans_group,
    common.routed_width_divides(lambda d: d.etp, "etp", "distributed/utils.py divide"),
    common.experts_cover_ranks("layers/moe/topk.py:571"),
    common.experts_divide("layers/moe/topk.py:571, token_dispatcher/deepep.py:240"),
    group_within_experts,
    common.row_blocks_divide(linears, "row col merged", "layers/quantization/fp8.py:590"),
    moe_blocks_divide,
    common.int4_groups_divide(linears, lambda d: d.etp, "layers/quantization/marlin_utils.py:187"),
    common.dtype_known("weight_dtype", WEIGHT_DTYPES, "arg_groups/choices.py QUANTIZATION_CHOICES"),
    common.dtype_known("kv_dtype", tuple(KV_DTYPES), "arg_groups/fields/model.py kv_cache_dtype"),
    common.stages_have_layers("distributed/utils.py:110"),
    common.pipeline_supported(NO_PIPELINE, "the implementation of {architecture} has no pipeline stages", "models/"),
    sequence_parallelism_known,
    prefill_context_parallel_platform,
    decode_context_parallel_copies,
    decode_context_parallel_with_prefill,
    common.fits_nodes(aligned, "arg_groups/validation_hook.py:179"),
    # warnings
    dense_layout_differs,
    shared_layout_differs,
    decode_context_parallel_gqa,
    common.released_fp8_blocks(BLOCK_FP8, lambda d: d.etp, "layers/quantization/fp8.py:590"),
    common.context_parallel_is_prefill_only("arg_groups/fields/parallel.py enable_prefill_cp"),
    common.context_parallel_kind(
        (),
        "the engine gathers keys and values instead of the plan's exchange",
        "arg_groups/fields/parallel.py cp_strategy",
        refuses=False,
    ),
    pipeline_is_synchronous,
    batch_divides,
    marlin_tiles,
    common.needs_deepep("install DeepEP, or moe_comm allgather", "arg_groups/overrides.py:1611"),
    decode_fits_low_latency,
    common.dispatch_in_nodes(),
    common.checkpoint_matches("layers/quantization"),
    common.architecture_known(NO_IMPLEMENTATION, "models/"),
    common.tp_inside_node(aligned, "entrypoints/engine.py:2063"),
)


def layers_per_stage(num_layers: int, pp: int) -> tuple[int, ...]:
    """The last stages hold the remainder, one layer each (distributed/utils.py get_pp_indices)."""
    base, extra = divmod(num_layers, pp)
    return tuple(base + (i >= pp - extra) for i in range(pp))


def parallel_flags(m: ModelSpec, s: Strategy) -> tuple[Flag, ...]:
    """Degrees of one replica; `--dp-size` is the launcher's (single node only)."""
    d = Degrees.of(s)
    flags = [Flag("--tp-size", str(s.group))]
    if s.pp > 1:
        flags.append(Flag("--pp-size", str(s.pp)))
    if d.attn_dp > 1:
        # The LM head then splits over attention TP, as in the plan, instead of gathering over all of the group.
        flags += [Flag("--attn-dp-size", str(d.attn_dp)), Flag("--enable-dp-lm-head")]
    if s.cp > 1:
        kind = "interleave" if m.architecture in INTERLEAVES else "zigzag"
        flags += [Flag("--attn-cp-size", str(s.cp)), Flag("--enable-prefill-cp"), Flag("--cp-strategy", kind)]
    if m.moe is not None:
        flags += _expert_flags(d, bool(dense_linears(m, 1)))
    if s.redundant_experts:
        flags += [Flag("--enable-eplb"), Flag("--ep-num-redundant-experts", str(s.redundant_experts))]
    if s.dcp > 1:
        flags.append(Flag("--dcp-size", str(s.dcp)))
    if s.sp and s.tp > 1:
        flags.append(Flag("--enable-layernorm-sp"))
    return tuple(flags)


def _expert_flags(d: Degrees, has_dense: bool) -> list[Flag]:
    flags = [Flag("--ep-size", str(d.ep))] if d.ep > 1 else []
    edp = d.group // (d.etp * d.ep)
    if edp > 1:
        flags.append(Flag("--moe-dp-size", str(edp)))
    if dispatches(d):
        # Normal kernels for prefill, low-latency ones for decode, as long as these take the batch.
        low_latency = scheduled(d) <= common.LOW_LATENCY_TOKENS
        flags += [Flag("--moe-a2a-backend", "deepep"), Flag("--deepep-mode", "auto" if low_latency else "normal")]
    if has_dense and d.attn_dp * d.cp > 1 and d.tp == 1:
        flags.append(Flag("--moe-dense-tp-size", "1"))
    return flags


def native_replicas(d: Degrees) -> bool:
    """Whether `--dp-size` can start all replicas: one node, and no attention DP beside it (validation_hook.py:199)."""
    return d.dp > 1 and d.attn_dp == 1 and d.devices <= d.node and place(d, aligned(d)).nodes == 1


def graph_batch(memory_bytes: float, group: Ints) -> Ints:
    """Default largest decode batch with a CUDA graph, by device memory (arg_groups/memory_hook.py)."""
    gib = memory_bytes / GIB
    narrow = np.asarray(group) < 4
    if gib < 20:
        return np.where(narrow, 8, 8)
    if gib < 60:
        return np.where(narrow, 48 if gib < 35 else 32, 160)
    return np.where(narrow & (gib < 160), 256, MAX_GRAPH_BATCH)


def scheduled(d: Degrees | Strategy) -> Ints:
    """Sequences of one scheduler: every attention-DP rank has its own."""
    return np.maximum(1, -(-np.asarray(d.batch) // d.attn_dp))


def reserved(memory_bytes: float, d: Degrees) -> Budget:
    """What `mem_fraction_static` leaves free for activations and graphs, in bytes (arg_groups/memory_hook.py).

    The older path, which sizes the KV pool before graphs are captured: it reserves more than the one that sizes it
    after, so a plan that fits here fits there. The prefill-graph term is left to the 10 GiB floor of large cards.
    """
    graph = np.minimum(graph_batch(memory_bytes, d.group), scheduled(d))
    padding = np.where(np.asarray(d.attn_dp) > 1, np.where(graph > 300, 4.5, 3.0) * graph * d.attn_dp, 0.0)
    rows: list[tuple[str, Ints, Callable[[], str]]] = [
        ("constant", 512.0, lambda: "512 MiB"),
        ("activations", 1.5 * np.maximum(d.max_num_batched_tokens, 2048), lambda: "1.5 MiB * max(chunk, 2048)"),
        ("parallel", 1024.0 * d.group * d.pp / 8, lambda: "1 GiB * tp_size * pp / 8"),
        ("graphs", 2.0 * graph + padding, lambda: f"2 MiB * {graph} + attention-DP padding"),
    ]
    if memory_bytes > 60 * GIB:
        below = np.maximum(10 * 1024 - sum(r[1] for r in rows), 0.0)
        rows.append(("floor", below, lambda: "at least 10 GiB above 60 GiB cards"))
    rows.append(("deepep", np.where(dispatches(d), 2048.0, 0.0), lambda: "2 GiB of all-to-all buffers"))
    source = f"sglang {VERSION} arg_groups/memory_hook.py"
    return tuple(
        Amount(name, -mib * MIB, formula, source) for name, mib, formula in rows if np.any(np.asarray(mib) > 0)
    )


def memory_fraction(*, memory_total_bytes: float, strategy: Strategy, memory_reserve: float | None = None) -> float:
    """--mem-fraction-static: the engine's formula, less a stated reserve (activations live outside the fraction).

    Not below 0.1, the least that starts; `kv_budget` shows the true terms.
    """
    held = -float(total(reserved(memory_total_bytes, Degrees.of(strategy))))
    fraction = (memory_total_bytes - held) / memory_total_bytes - (memory_reserve or 0.0)
    return max(0.1, round(fraction, 3))


def kv_budget(
    d: Degrees, *, memory_total_bytes: float, weights_bytes: Ints, activation_bytes: Ints,
    memory_reserve: float | None = None,
) -> Budget:  # fmt: skip
    """Bytes left for the KV pool on one rank: total * mem_fraction_static - weights.

    Activations beyond what the fraction reserves for them are taken off too (the engine would run out of memory).
    """
    amounts = reserved(memory_total_bytes, d)
    named = {a.name: -a.bytes for a in amounts}
    covered = named["activations"] + named.get("floor", 0.0)
    where = f"sglang {VERSION} arg_groups/memory_hook.py"
    return (
        Amount("total", memory_total_bytes, lambda: "memory of the device", where),
        *amounts,
        Amount("stated_reserve", -(memory_reserve or 0.0) * memory_total_bytes,
               lambda: f"{memory_reserve or 0.0:g} * total", "stated"),
        Amount("activation_excess", np.minimum(0.0, covered - activation_bytes),
               lambda: "min(0, reserved for activations - their peak)", "plan"),
        Amount("weights", -weights_bytes, lambda: "fullest rank", where),
    )  # fmt: skip


def server_defaults(memory_bytes: float, tp: int) -> tuple[int, int]:
    """(chunked_prefill_size, largest graphed decode batch) without flags, by device memory."""
    gib = memory_bytes / GIB
    chunk = 2048 if gib < 20 else 4096 if gib < 60 else 8192 if gib < 160 else 16384
    return chunk, int(graph_batch(memory_bytes, tp))


def world(s: Strategy) -> str:
    return (
        f"devices = replicas({s.dp}) * tp_size({s.group}) * pp({s.pp}) = {s.num_devices}; "
        f"tp_size = attn_tp({s.tp}) * attn_cp({s.cp}) * attn_dp({s.attn_dp})"
    )


SGLANG_0_5_23 = EngineRules(
    engine="sglang", version=VERSION, rules=RULES, layers_per_stage=layers_per_stage, kv_budget=kv_budget,
    memory_fraction=memory_fraction, parallel_flags=parallel_flags, aligned=aligned,
    layer_partition_env="SGLANG_PP_LAYER_PARTITION", world=world, server_defaults=server_defaults,
)  # fmt: skip
