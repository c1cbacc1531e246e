"""vLLM 0.33.0: `devices = dp instances * attn_dp * pp * tp * pcp`.

`--data-parallel-size` of vLLM is attention data parallelism for a MoE model (experts span all of it); independent
replicas are separate instances. Source places are files of the 0.33.0 wheel, below the package root.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import accumulate

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
    block_fp8,
    dense_linears,
    divisors,
    pad,
    shared_linears,
)
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

VERSION = "0.33.0"
VOCAB_PADDING = 64
"""model_executor/layers/vocab_parallel_embedding.py DEFAULT_VOCAB_PADDING_SIZE."""
MIN_REFINED_BLOCK = 32
"""model_executor/layers/fused_moe/oracle/fp8.py refine_fp8_moe_block_shape."""
GPU_MEMORY_UTILIZATION = 0.92
"""config/cache.py CacheConfig.gpu_memory_utilization."""
CONTEXT_BYTES = 0.33 * 2**30
"""CUDA allocations outside torch on one device: start-up logs in vllm-project/vllm #12126, #14447, #14452 show
0.16 to 0.33 GiB; the upper end."""
COMMUNICATOR_BYTES = 392e6
"""NCCL buffers per communicator and device: aiconfigurator reserves 342 to 392 MB; the upper end."""
GRAPH_BYTES_PER_SIZE = 26 * 2**20
"""One captured CUDA graph: logs in vllm-project/vllm #22897 show 24 to 28 MiB per captured size."""
MAX_CAPTURE = 512
"""config/vllm.py _set_cudagraph_sizes (1024 on compute capability 10.x)."""

KV_DTYPES = {
    "bf16": "auto", "fp16": "auto", "fp8": "fp8", "int8": "int8_per_token_head", "int4": "int4_per_token_head",
    "nvfp4": "nvfp4",
}  # fmt: skip
"""--kv-cache-dtype by our dtype (config/cache.py CacheDType)."""
WEIGHT_DTYPES = ("fp32", "bf16", "fp16", "fp8", "int8", "int4", "mxfp4", "nvfp4")
NO_IMPLEMENTATION = frozenset({"GPTNeoXForCausalLM", "PhiForCausalLM"})
NO_PIPELINE = frozenset({"Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"})
ASSERTS_EVEN_EXPERTS = frozenset({"DeepseekV4ForCausalLM"})


def aligned(d: Degrees) -> Sequence[Ints]:
    """With attention DP, one DP rank (its pp * tp * pcp processes) stays whole or spans whole nodes."""
    return [np.where(np.asarray(d.attn_dp) > 1, d.replica // d.attn_dp, d.replica)]


def vocab_divides(m: ModelSpec, d: Degrees) -> Verdict:
    padded = pad(m.vocab_size, VOCAB_PADDING)
    return Verdict(
        "tp-vocab", padded % d.tp != 0, "embedding",
        lambda: f"pad{VOCAB_PADDING}({m.vocab_size}) = {padded}; {padded} % tp({d.tp}) = {padded % d.tp}, must be 0",
        "a power of two divides the padded vocabulary up to 64", "layers/vocab_parallel_embedding.py:304",
        cause="shape", axis="tp",
    )  # fmt: skip


def experts_are_all_or_nothing(m: ModelSpec, d: Degrees) -> Verdict:
    """Expert parallelism is a switch: on, every rank of the group is an expert rank; off, every expert is sliced."""
    on, off = (d.ep == d.group), (d.ep == 1) & (d.etp == d.group)
    return Verdict(
        "ep-switch", ~np.asarray(on | off) & (m.moe is not None), "moe.experts",
        lambda: (
            f"ep({d.ep}) * etp({d.etp}): the switch on, ep = tp * pcp * attn_dp = {d.group} and etp = 1; "
            f"off, ep = 1 and etp = {d.group}"
        ),
        lambda: f"ep {d.group} etp 1, or ep 1 etp {d.group}", "fused_moe/config.py FusedMoEParallelConfig.make",
    )  # fmt: skip


def experts_divide(m: ModelSpec, d: Degrees) -> Verdict:
    n = m.moe.num_slots if m.moe else 0
    return Verdict(
        "ep-even", (n % d.ep != 0) & (m.architecture in ASSERTS_EVEN_EXPERTS), "moe.experts",
        lambda: f"num_experts({n}) % ep({d.ep}) = {n % d.ep}, {m.architecture} asserts 0",
        f"ep among the divisors of {n}: {divisors(n)}", "models/deepseek_v4/nvidia/model.py:356", cause="shape",
    )  # fmt: skip


def experts_uneven(m: ModelSpec, d: Degrees) -> Verdict:
    n = m.moe.num_slots if m.moe else 0
    return Verdict(
        "ep-uneven", n % d.ep != 0, "moe.experts",
        lambda: f"num_experts({n}) % ep({d.ep}) = {n % d.ep}: the first {n % d.ep} ranks hold one expert more",
        f"ep among the divisors of {n} balances them", "fused_moe/expert_map_manager.py:66", severity="warning",
        cause="balance",
    )  # fmt: skip


def tp_within_experts(m: ModelSpec, d: Degrees) -> Verdict:
    n = m.moe.num_slots if m.moe else 0
    return Verdict(
        "tp-experts", (d.tp > n) & (m.moe is not None), "moe.router",
        lambda: f"tp({d.tp}) > num_experts({n})", f"tp of at most {n}",
        "models/qwen3_moe.py:155 (17 MoE models check it)", cause="shape", axis="tp",
    )  # fmt: skip


def moe_blocks_refine(m: ModelSpec, d: Degrees) -> Verdict:
    """Block-FP8 experts: whole blocks, else scales refined to gcd(block, shard, hidden) of at least 32."""
    refined, shard, block = _refined_block(m, d)
    return Verdict(
        "fp8-block-moe", refined < MIN_REFINED_BLOCK, "moe.experts.down_proj",
        lambda: (
            f"shard {m.moe.intermediate_size if m.moe else 0}/etp({d.etp}) = {shard} is not a multiple of the FP8 "
            f"block({block}), and gcd({block}, {shard}, hidden {m.hidden_size}) = {refined} < {MIN_REFINED_BLOCK}"
        ),
        "expert parallelism (whole experts), or smaller tp", "fused_moe/oracle/fp8.py:292", axis="tp",
    )  # fmt: skip


def moe_blocks_refined_slowly(m: ModelSpec, d: Degrees) -> Verdict:
    refined, shard, block = _refined_block(m, d)
    bad = (refined >= MIN_REFINED_BLOCK) & (refined < block)
    return Verdict(
        "fp8-block-refined", bad, "moe.experts.down_proj",
        lambda: f"shard {shard} is not a multiple of the FP8 block({block}): refined to {refined}, Triton kernels only",
        "expert parallelism keeps the native blocks and the fast kernels", "fused_moe/oracle/fp8.py:292",
        severity="warning",
    )  # fmt: skip


def _refined_block(m: ModelSpec, d: Degrees) -> tuple[Ints, Ints, int]:
    """(block that splits exactly, shard, native block); the native block where nothing needs refining."""
    block = block_fp8(m, d)
    if m.moe is None or not block:
        return np.asarray(block or MIN_REFINED_BLOCK), 0, block or MIN_REFINED_BLOCK
    shard = m.moe.intermediate_size // d.etp
    refined = np.gcd(np.gcd(block, shard), m.hidden_size)
    return np.where(shard % block == 0, block, refined), shard, block


def nvfp4_blocks(m: ModelSpec, d: Degrees) -> Verdict:
    width = m.moe.intermediate_size if m.moe else 0
    return Verdict(
        "nvfp4-block", (d.weight_dtype == "nvfp4") & (width // np.maximum(d.etp, 1) % 16 != 0), "moe.experts.down_proj",
        lambda: f"shard {width}/etp({d.etp}) = {width / d.etp:g} is not a multiple of the NVFP4 block(16)",
        "smaller etp", "quantization/modelopt.py", axis="tp",
    )  # fmt: skip


def mxfp4_shards(m: ModelSpec, d: Degrees) -> Verdict:
    width = m.moe.intermediate_size if m.moe else 0
    return Verdict(
        "mxfp4-padding", (d.weight_dtype == "mxfp4") & (width // d.etp % 32 != 0), "moe.experts.down_proj",
        lambda: (
            f"shard {width}/etp({d.etp}) = {width / d.etp:g} is not a multiple of the MXFP4 block(32): ranks hold "
            f"{math.ceil(width / 32 / d.etp) * 32} columns, the last ones fewer"
        ),
        "expert parallelism, or etp that divides the blocks", "models/gpt_oss.py:578", severity="warning",
        cause="balance",
    )  # fmt: skip


def context_parallel_needs_full_attention(m: ModelSpec, d: Degrees) -> Verdict:
    windowed = any(layer.sliding for layer in m.layers())
    return Verdict(
        "cp-window", (d.cp > 1) & windowed, "attention",
        lambda: f"cp({d.cp}) with sliding or chunked attention layers", "cp 1",
        "v1/core/single_type_kv_cache_manager.py:985,1337",
    )  # fmt: skip


def prefill_context_parallel_needs_mla(m: ModelSpec, d: Degrees) -> Verdict:
    """CUDA and ROCm attention back ends other than MLA's leave supports_pcp False, which is asserted at start-up."""
    return Verdict(
        "cp-backend", (d.cp > 1) & (m.attention.mla is None), "attention",
        lambda: f"cp({d.cp}): no attention back end without MLA supports --prefill-context-parallel-size",
        "cp 1, with more tp or pp instead", "v1/worker/cp_utils.py:36, v1/attention/backend.py:823",
    )  # fmt: skip


def decode_context_parallel_copies(m: ModelSpec, d: Degrees) -> Verdict:
    """DCP deals the cache over ranks that would hold copies of it: all of tp under MLA, tp // kv_heads under GQA."""
    a = m.attention
    kv = 1 if a.mla is not None else max(m.cache_heads)
    per_kv = a.num_heads // kv
    dealt = np.asarray(d.dcp) > 1
    gqa = (np.asarray(d.tp) <= kv) | (d.dcp > d.tp // kv) | (per_kv % d.dcp != 0)
    bad = dealt & ((np.asarray(d.tp) % d.dcp != 0) | (gqa & (a.mla is None)))

    def equation() -> str:
        if d.tp % d.dcp:
            return f"tp({d.tp}) % dcp({d.dcp}) = {d.tp % d.dcp}, must be 0"
        if d.tp <= kv:
            return f"dcp({d.dcp}) needs tp({d.tp}) > kv_heads({kv}): no KV head is held twice"
        if d.dcp > d.tp // kv:
            return f"dcp({d.dcp}) > tp({d.tp}) // kv_heads({kv}) = {d.tp // kv}, the copies of each KV head"
        return (
            f"heads({a.num_heads}) / kv_heads({kv}) = {per_kv}; {per_kv} % dcp({d.dcp}) = {per_kv % d.dcp}, must be 0"
        )

    def fix() -> str:
        copies = d.tp if a.mla is not None else d.tp // kv if d.tp > kv else 1
        ok = [i for i in range(1, copies + 1) if d.tp % i == 0 and (a.mla is not None or per_kv % i == 0)]
        return f"dcp among {', '.join(map(str, ok))} at tp {d.tp}"

    return Verdict(
        "dcp", bad, "kv_cache", equation, fix, "config/parallel.py:592, config/model.py:1578", cause="shape",
        values={"dcp": d.dcp, "tp": d.tp, "kv_heads": kv},
    )  # fmt: skip


def decode_context_parallel_with_prefill(m: ModelSpec, d: Degrees) -> Verdict:
    return Verdict(
        "dcp-cp", (d.dcp > 1) & (d.cp > 1), "kv_cache",
        lambda: (
            f"dcp({d.dcp}) with cp({d.cp}): beside prefill context parallelism DCP spans the cp ranks, "
            f"not the tp ranks of the plan"
        ),
        "dcp 1 or cp 1", "config/parallel.py:595",
    )  # fmt: skip


def batch_fits_step(m: ModelSpec, d: Degrees) -> Verdict:
    seqs = -(-d.batch // d.attn_dp)
    return Verdict(
        "batched-tokens", seqs > d.max_num_batched_tokens, "scheduler",
        lambda: f"max_num_batched_tokens({d.max_num_batched_tokens}) < max_num_seqs({seqs})",
        lambda: f"max_num_batched_tokens of at least {seqs}", "config/scheduler.py:331",
    )  # fmt: skip


def dispatches_alike(m: ModelSpec, d: Degrees) -> Verdict:
    return Verdict(
        "ep-nodes-phase", np.asarray(d.ep_nodes) > 1, "moe.dispatch",
        lambda: (
            f"ep_nodes({d.ep_nodes}): one server has one back end for both phases, deepep_high_throughput (nodes first, no "
            "CUDA graphs) or deepep_low_latency (straight to the ranks); decode is priced with the latter"
        ),
        "a prefill pool of its own, or ep_nodes 1", "config/parallel.py all2all_backend", severity="warning",
    )  # fmt: skip


steps_fit_low_latency = common.dispatch_fits_low_latency(
    lambda d: d.max_num_batched_tokens, "max_num_batched_tokens",
    "the server takes deepep_high_throughput, which runs without CUDA graphs, and decode is priced with the former",
    f"a prefill pool of its own, steps of at most {common.LOW_LATENCY_TOKENS} tokens, or moe_comm allgather",
    "fused_moe/layer.py:373, config/compilation.py:1244",
)  # fmt: skip


def stages_begin_with_an_indexer(m: ModelSpec, d: Degrees) -> Verdict:
    """Picked positions are no part of what a stage hands on; one that begins with a layer that shares them reads a buffer that
    nothing has written."""

    def torn(pp: int) -> list[int]:
        if pp == 1 or m.indexer_layers is None:
            return []
        starts = accumulate((d.layers_per_stage or layers_per_stage(m.num_hidden_layers, pp))[:-1])
        return [i for i in starts if i < m.num_hidden_layers and m.indexer_layers[i] == "shared"]

    bad = {int(pp): bool(torn(int(pp))) for pp in np.unique(d.pp)}
    own = [i for i, x in enumerate(m.indexer_layers or ()) if x == "own"]
    return Verdict(
        "pp-shared-index", np.vectorize(bad.__getitem__, otypes=[bool])(d.pp), "attention.indexer",
        lambda: f"pp({d.pp}): the stage from layer {torn(d.pp)[0]} on needs positions that the stage before it picked, and "
        "these do not cross",
        lambda: f"layers_per_stage whose stages begin at one of the layers {', '.join(map(str, own))}; or pp 1",
        "models/deepseek_v2.py:1442,1489", values={"pp": d.pp},
    )  # fmt: skip


PORTABLE_RULES: tuple[Rule, ...] = (
    common.group_splits_into_experts(),
    common.heads_divide("config/model.py:1559"),
    common.no_further_slices(),
    common.kv_heads_divide_or_replicate("layers/linear.py QKVParallelLinear"),
    vocab_divides,
    common.output_groups_divide("models/deepseek_v4/attention.py:225"),
    common.widths_divide("tp-ffn", lambda m, d: dense_linears(m, d.tp), "tp", "distributed/utils.py divide"),
    common.widths_divide("tp-shared-expert", lambda m, d: shared_linears(m, d.tp), "tp", "distributed/utils.py divide"),
    common.expert_parallel_needs_experts("config/model.py:1498"),
    common.attention_dp_needs_experts(
        "attention", lambda d: ": its data-parallel ranks share nothing, they are replicas", "engine/arg_utils.py:2384"
    ),
    experts_are_all_or_nothing,
    common.routed_width_divides(lambda d: d.etp, "etp", "fused_moe/config.py:1352"),
    common.experts_cover_ranks("fused_moe/expert_map_manager.py:66"),
    experts_divide,
    tp_within_experts,
    common.stages_have_layers("distributed/utils.py:198"),
    common.pipeline_supported(NO_PIPELINE, "{architecture} does not implement SupportsPP", "config/model.py:1570"),
    stages_begin_with_an_indexer,
    common.no_sequence_parallelism("config/compilation.py PassConfig"),
    context_parallel_needs_full_attention,
    decode_context_parallel_copies,
    decode_context_parallel_with_prefill,
    batch_fits_step,
    common.fits_nodes(aligned, "engine/arg_utils.py:2400"),
    # warnings
    experts_uneven,
    common.context_parallel_is_prefill_only("config/parallel.py pcp_shard_decode_requests"),
    common.context_parallel_kind(
        (),
        "the engine gathers keys and values instead of the plan's exchange",
        "config/parallel.py prefill_context_parallel_size",
        refuses=False,
    ),
    common.architecture_known(NO_IMPLEMENTATION, "models/registry.py"),
    common.tp_inside_node(aligned, "config/parallel.py:1068"),
)
"""What holds on every platform that vLLM's core runs on."""
RULES: tuple[Rule, ...] = (
    *PORTABLE_RULES,
    prefill_context_parallel_needs_mla,
    common.row_blocks_divide(common.tp_linears, "row col", "quantization/utils/fp8_utils.py:1296"),
    moe_blocks_refine,
    nvfp4_blocks,
    common.int4_groups_divide(common.tp_linears, lambda d: d.etp, "quantization/utils/marlin_utils.py:306"),
    common.dtype_known("weight_dtype", WEIGHT_DTYPES, "layers/quantization"),
    common.dtype_known("kv_dtype", tuple(KV_DTYPES), "config/cache.py CacheDType"),
    # warnings
    moe_blocks_refined_slowly,
    mxfp4_shards,
    common.released_fp8_blocks(128, lambda d: d.etp, "quantization/utils/fp8_utils.py:1296"),
    common.needs_deepep(
        "install DeepEP, or moe_comm allgather (--all2all-backend allgather_reducescatter)",
        "config/parallel.py all2all_backend",
    ),
    steps_fit_low_latency,
    common.dispatch_in_nodes(),
    dispatches_alike,
    common.checkpoint_matches("layers/quantization"),
)


def layers_per_stage(num_layers: int, pp: int) -> tuple[int, ...]:
    """One more layer each for the stages before the last, backwards (distributed/utils.py get_pp_indices)."""
    base, extra = divmod(num_layers, pp)
    counts = [base] * pp
    for i in range(2, extra + 2):
        counts[-i] += 1
    return tuple(counts)


def parallel_flags(m: ModelSpec, s: Strategy) -> tuple[Flag, ...]:
    """Degrees of one instance (one replica). `attn_dp` is vLLM's data-parallel size."""
    flags = [Flag("--tensor-parallel-size", str(s.tp))]
    if s.pp > 1:
        flags.append(Flag("--pipeline-parallel-size", str(s.pp)))
    if s.cp > 1:
        flags.append(Flag("--prefill-context-parallel-size", str(s.cp)))
    if s.dcp > 1:
        flags.append(Flag("--decode-context-parallel-size", str(s.dcp)))
    if (s.attn_dp or 1) > 1:
        flags.append(Flag("--data-parallel-size", str(s.attn_dp)))
    if m.moe is not None and s.ep > 1:
        flags.append(Flag("--enable-expert-parallel"))
    if s.redundant_experts:
        copies = json.dumps({"num_redundant_experts": s.redundant_experts})
        flags += [Flag("--enable-eplb"), Flag("--eplb-config", copies)]
    return tuple(flags)


def memory_fraction(*, memory_total_bytes: float, strategy: Strategy, memory_reserve: float | None = None) -> float:
    """--gpu-memory-utilization: the engine's default, lowered to leave a stated reserve free."""
    return utilisation(memory_reserve)


def utilisation(memory_reserve: float | None) -> float:
    return round(min(GPU_MEMORY_UTILIZATION, 1 - (memory_reserve or 0.0)), 3)


def captured_sizes(max_num_seqs: Ints) -> Ints:
    """How many batch sizes get a CUDA graph: 1, 2, 4, every 8th below 256, every 16th from there to
    min(2 * max_num_seqs, 512)."""
    top = np.minimum(2 * max_num_seqs, MAX_CAPTURE)
    few = sum((np.where(top >= i, 1, 0) for i in (1, 2, 4)), 0)
    return few + np.minimum(255, top) // 8 + np.maximum((top - 240) // 16, 0)


def communicators(d: Degrees) -> Ints:
    """Groups that each rank keeps NCCL buffers for."""
    groups: Ints = 0
    for degree in (d.tp, d.pp, d.cp, d.dcp, d.attn_dp, d.ep):
        groups = groups + (np.asarray(degree) > 1)
    return groups


def kv_budget(
    d: Degrees, *, memory_total_bytes: float, weights_bytes: Ints, activation_bytes: Ints,
    memory_reserve: float | None = None,
) -> Budget:  # fmt: skip
    """Bytes left for KV blocks on one rank: requested - weights - activation peak - non-torch - CUDA graphs.

    `weights_bytes` and `activation_bytes` are of the fullest rank, activations at max_num_batched_tokens. The total may
    be negative: then the weights do not fit. Source: v1/worker/gpu_worker.py determine_available_memory.
    """
    fraction = utilisation(memory_reserve)
    n, groups = captured_sizes(-(-np.asarray(d.batch) // d.attn_dp)), communicators(d)
    where = f"vllm {VERSION} v1/worker/gpu_worker.py"
    return (
        Amount("requested", float(math.ceil(memory_total_bytes * fraction)),
               lambda: f"total * gpu_memory_utilization({fraction:g})", f"vllm {VERSION} v1/worker/utils.py"),
        Amount("weights", -weights_bytes, lambda: "fullest rank", where),
        Amount("activations", -activation_bytes, lambda: f"peak of a step of {d.max_num_batched_tokens} tokens", where),
        Amount("non_torch", -(CONTEXT_BYTES + groups * COMMUNICATOR_BYTES),
               lambda: f"0.33 GiB + {groups} communicators * 392 MB", "start-up logs; aiconfigurator reserve"),
        Amount("cuda_graphs", -1.0 * n * GRAPH_BYTES_PER_SIZE, lambda: f"{n} captured sizes * 26 MiB",
               "vllm-project/vllm #22897"),
    )  # fmt: skip


def server_defaults(memory_bytes: float, tp: int) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) of `vllm serve` without flags, by memory (engine/arg_utils.py:2973).

    An A100 of 80 GB is an exception there (2048, 256) that memory alone does not show.
    """
    gib = memory_bytes / 2**30
    if gib >= 160:
        return 16384, 1024
    return (8192, 1024) if gib >= 70 else (2048, 256)


def world(s: Strategy) -> str:
    dcp = f"; dcp({s.dcp}) divides tp and adds no ranks" if s.dcp > 1 else ""
    return (
        f"devices = instances({s.dp}) * data_parallel({s.attn_dp}) * pp({s.pp}) * tp({s.tp}) * pcp({s.cp}) "
        f"= {s.num_devices}{dcp}"
    )


VLLM_0_33_0 = EngineRules(
    engine="vllm", version=VERSION, rules=RULES, layers_per_stage=layers_per_stage, kv_budget=kv_budget,
    memory_fraction=memory_fraction, parallel_flags=parallel_flags, aligned=aligned,
    layer_partition_env="VLLM_PP_LAYER_PARTITION", world=world, server_defaults=server_defaults,
)  # fmt: skip
