"""Rules that several engines share; each is made with the place in the engine's source where it is enforced."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tools.engines.rules.base import (
    GROUP_INT4,
    Degrees,
    Ints,
    Linear,
    Rule,
    Verdict,
    any_of,
    attention_linears,
    block_fp8,
    dense_linears,
    dispatches,
    divisors,
    first_bad,
    named,
    place,
    shared_linears,
)
from tools.spec.model import ModelSpec


def heads_divide(source: str) -> Rule:
    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        h = m.attention.num_heads
        return Verdict(
            "tp-heads", h % d.tp != 0, "attention.q_proj",
            lambda: f"heads({h}) % tp({d.tp}) = {h % d.tp}, must be 0",
            f"tp among the divisors of {h}: {divisors(h)}", source, cause="shape", axis="tp",
            values={"heads": h, "tp": d.tp},
        )  # fmt: skip

    return rule


def no_further_slices() -> Rule:
    """Axes that slice heads or weights further than tp does are for papers and other runtimes."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        name, k, why = d.slices[0] if d.slices else ("", 1, "")
        return Verdict(
            name or "slices", np.asarray(d.tp) * 0 + k > 1, "attention.q_proj",
            lambda: f"{name}({k}) of tp({d.tp}): no flag of the engine says it; {why}",
            lambda: f"{name} 1, tp {d.tp // k}", "argument parser", values={name: k},
        )  # fmt: skip

    return rule


def context_parallel_kind(kinds: Sequence[str], text: str, source: str, *, refuses: bool = True) -> Rule:
    """`kinds` are the ways of context parallelism that the engine has; with another one it refuses, or does its own."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        return Verdict(
            "cp-kind", (np.asarray(d.cp) > 1) & (d.cp_kind not in kinds), "attention",
            lambda: f"cp({d.cp}) by {d.cp_kind}: {text}",
            f"cp_kind {' or '.join(kinds)}" if kinds else "count its collectives as all-gathers of KV", source,
            severity="error" if refuses else "warning", cause="network",
        )  # fmt: skip

    return rule


def kv_heads_divide_or_replicate(source: str) -> Rule:
    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        def wrong(kv: int) -> Ints:
            return np.where(d.tp >= kv, d.tp % kv, kv % d.tp) != 0

        # MLA keeps one latent on every rank, whatever tp is.
        bad = np.logical_or.reduce([wrong(kv) for kv in m.cache_heads]) & (m.attention.mla is None)

        def first() -> int:
            return next((kv for kv in m.cache_heads if np.any(wrong(kv))), m.cache_heads[0])

        def equation() -> str:
            kv = first()
            if d.tp >= kv:
                return f"tp({d.tp}) % kv_heads({kv}) = {d.tp % kv}, must be 0 to replicate KV heads"
            return f"kv_heads({kv}) % tp({d.tp}) = {kv % d.tp}, must be 0 to split KV heads"

        return Verdict(
            "tp-kv-heads", bad, "attention.k_proj", equation, lambda: f"tp that divides {first()} or is a multiple of it", source,
            cause="shape", axis="tp", values={"kv_heads": m.attention.num_kv_heads, "tp": d.tp},
        )  # fmt: skip

    return rule


def widths_divide(
    code: str, linears: Callable[[ModelSpec, Degrees], Sequence[Linear]], label: str, source: str
) -> Rule:
    """Every split dim of `linears` divides by the ranks it is split over (`label` names them)."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        xs = linears(m, d)

        def broken(x: Linear) -> Ints:
            return x.size % x.ways != 0

        def equation() -> str:
            x = first_bad(xs, broken)
            return f"width({x.size}) % {label}({x.ways}) = {x.size % x.ways}, must be 0"

        return Verdict(
            code, any_of(broken(x) for x in xs), named(xs, broken), equation,
            f"{label} that divides the width", source, cause="shape", axis="tp",
        )  # fmt: skip

    return rule


def routed_width_divides(ways: Callable[[Degrees], Ints], label: str, source: str) -> Rule:
    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        width = m.moe.intermediate_size if m.moe else 0
        return Verdict(
            "moe-width", width % ways(d) != 0, "moe.experts.gate_up_proj",
            lambda: f"moe_intermediate_size({width}) % {label}({ways(d)}) = {width % ways(d)}, must be 0",
            f"{label} among the divisors of {width}, or more expert parallelism", source, cause="shape", axis="tp",
        )  # fmt: skip

    return rule


def experts_cover_ranks(source: str) -> Rule:
    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        n = m.moe.num_slots if m.moe else 0
        return Verdict(
            "ep-experts", (d.ep > n) & (m.moe is not None), "moe.experts",
            lambda: f"ep({d.ep}) > num_experts({n}): {d.ep - n} ranks would hold no expert",
            f"ep of at most {n}", source, cause="shape",
        )  # fmt: skip

    return rule


def experts_divide(source: str, says: Callable[[int, Degrees], str] | None = None) -> Rule:
    """Every rank of an expert group holds equally many experts; `says` (experts, degrees) is the engine's own equation."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        n = m.moe.num_slots if m.moe else 0
        return Verdict(
            "ep-even", n % d.ep != 0, "moe.experts",
            lambda: says(n, d) if says else f"num_experts({n}) % ep({d.ep}) = {n % d.ep}, must be 0",
            f"ep among the divisors of {n}: {divisors(n)}", source, cause="shape",
        )  # fmt: skip

    return rule


def expert_parallel_needs_experts(source: str) -> Rule:
    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        return Verdict(
            "ep-not-moe", (d.ep > 1) & (m.moe is None), "moe.experts",
            lambda: f"ep({d.ep}) > 1, but {m.name} has no routed experts",
            "ep 1 for a dense model", source,
        )  # fmt: skip

    return rule


def attention_dp_needs_experts(where: str, says: Callable[[Degrees], str], source: str) -> Rule:
    """Attention DP is for models with experts; `says` is what the engine would make of a dense one."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        return Verdict(
            "attn-dp-dense", (d.attn_dp > 1) & (m.moe is None), where,
            lambda: f"attn_dp({d.attn_dp}) on a dense model{says(d)}",
            lambda: f"dp {d.dp * d.attn_dp} instead of attn_dp {d.attn_dp}", source,
        )  # fmt: skip

    return rule


DEEPEP_NODE = 8
"""Ranks that DeepEP's normal kernels take for a node (NUM_MAX_NVL_PEERS): rank // 8 is the node, rank % 8 the place in it."""


def dispatch_in_nodes() -> Rule:
    """Hierarchical dispatch is what DeepEP's normal kernels do, over nodes of eight ranks."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        inside = d.ep * d.etp // np.maximum(d.ep_nodes, 1)
        return Verdict(
            "ep-nodes", (np.asarray(d.ep_nodes) > 1) & (inside != DEEPEP_NODE), "moe.dispatch",
            lambda: (
                f"ep({d.ep}) * etp({d.etp}) / ep_nodes({d.ep_nodes}) = {inside} ranks per node; the kernels that dispatch "
                f"in two steps take {DEEPEP_NODE}"
            ),
            lambda: f"ep_nodes {max(1, d.ep * d.etp // DEEPEP_NODE)}", "DeepEP csrc/deep_ep.cpp NUM_MAX_NVL_PEERS",
        )  # fmt: skip

    return rule


def needs_deepep(fix: str, source: str) -> Rule:
    """A warning: kernels that do not come with the engine."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        return Verdict(
            "a2a-backend", dispatches(d) & (m.moe is not None), "moe.dispatch",
            lambda: "the plan dispatches tokens by all-to-all, which needs the DeepEP kernels (and RDMA across nodes)",
            fix, source, severity="warning",
        )  # fmt: skip

    return rule


LOW_LATENCY_TOKENS = 1024
"""Tokens of a rank that DeepEP's low-latency kernels take in one dispatch, at most (FINISHED_SUM_TAG of csrc/kernels/
internode_ll.cu; sglang 0.5.23 layers/moe/token_dispatcher/deepep.py:409 asserts it)."""


def dispatch_fits_low_latency(tokens: Callable[[Degrees], Ints], name: str, says: str, fix: str, source: str) -> Rule:
    """A warning: decode is priced with DeepEP's low-latency kernels, which take `tokens` of a rank (called `name`) or do not."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        bad = dispatches(d) & (np.asarray(d.ep_nodes) == 1) & (np.asarray(tokens(d)) > LOW_LATENCY_TOKENS)
        return Verdict(
            "a2a-step", bad & (m.moe is not None), "moe.dispatch",
            lambda: f"{name}({tokens(d)}) > {LOW_LATENCY_TOKENS}, the most that DeepEP's low-latency kernels take: {says}",
            fix, source, severity="warning", values={"tokens": tokens(d), "most": LOW_LATENCY_TOKENS},
        )  # fmt: skip

    return rule


def group_splits_into_experts() -> Rule:
    """Arrays only: a `Strategy` cannot be built otherwise."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        return Verdict(
            "group-split", (d.group % (d.etp * d.ep) != 0) & (m.moe is not None), "moe.experts",
            lambda: f"group({d.group}) % (etp({d.etp}) * ep({d.ep})) = {d.group % (d.etp * d.ep)}, must be 0",
            "etp * ep among the divisors of tp * cp * attn_dp", "both factorisations span the same ranks",
        )  # fmt: skip

    return rule


def pipeline_supported(missing: frozenset[str], says: str, source: str) -> Rule:
    """`missing` are the architectures without pipeline stages; `says` names the lack of one ("{architecture} has none")."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        return Verdict(
            "pp-model", (d.pp > 1) & (m.architecture in missing), "layers",
            lambda: f"{says.format(architecture=m.architecture)}, pp({d.pp})", "pp 1", source,
        )  # fmt: skip

    return rule


def context_parallel_is_prefill_only(source: str) -> Rule:
    """A warning."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        return Verdict(
            "cp-prefill", d.cp > 1, "kv_cache",
            lambda: f"cp({d.cp}) splits the prompt only; each of the {d.cp} ranks keeps the whole KV cache",
            "count the KV cache once per rank", source, severity="warning",
        )  # fmt: skip

    return rule


def no_sequence_parallelism(source: str) -> Rule:
    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        return Verdict(
            "sp", (d.tp > 1) & d.sp, "norm", lambda: "sequence parallelism of norms has no switch", "sp off", source
        )

    return rule


def sequence_parallelism_needs_tp(says: str, fix: str, source: str) -> Rule:
    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        return Verdict("sp", (np.asarray(d.tp) == 1) & d.sp, "norm", lambda: f"{says} with tp({d.tp})", fix, source)

    return rule


def stages_have_layers(source: str) -> Rule:
    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        n, cut = m.num_hidden_layers, d.layers_per_stage
        wrong_cut = cut is not None and (sum(cut) != n or min(cut) < 1)

        def equation() -> str:
            if wrong_cut and cut is not None:
                return f"layers per stage {list(cut)} sum to {sum(cut)} with {min(cut)} the fewest, layers are {n}"
            return f"pp({d.pp}) > num_hidden_layers({n})"

        return Verdict(
            "pp-layers", (d.pp > n) | wrong_cut, "layers", equation, f"pp of at most {n}, at least 1 layer per stage",
            source, cause="shape",
        )  # fmt: skip

    return rule


def row_blocks_divide(dense: Callable[[ModelSpec, Degrees], Sequence[Linear]], kinds: str, source: str) -> Rule:
    """Block-FP8: the shards of the listed kinds of weights hold whole blocks of scales.

    Parts of a fused weight (`merged`) are compared even when nothing is split: their scales are stored side by side.
    """

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        block = block_fp8(m, d)
        xs = [x for x in dense(m, d) if x.kind in kinds.split()] if block and not m.quantized_experts_only else []
        b = block or 1

        def broken(x: Linear) -> Ints:
            return ((np.asarray(x.ways) > 1) | (x.kind == "merged")) & (x.shard % b != 0)

        def equation() -> str:
            x = first_bad(xs, broken)
            return f"shard {x.size}/{x.ways} = {x.size / x.ways:g}, not a multiple of the FP8 block({b})"

        return Verdict(
            "fp8-block", any_of(broken(x) for x in xs), named(xs, broken), equation, "smaller tp, or bf16 weights",
            source, axis="tp",
        )  # fmt: skip

    return rule


def int4_groups_divide(
    dense: Callable[[ModelSpec, Degrees], Sequence[Linear]], moe_ways: Callable[[Degrees], Ints], source: str
) -> Rule:
    """Group-quantised int4 (AWQ, GPTQ): scales lie along the contracted dim, so a K shard holds whole groups."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        g = m.quant_group or GROUP_INT4
        xs: list[Linear] = []
        if d.weight_dtype == "int4":
            xs = [] if m.quantized_experts_only else [x for x in dense(m, d) if x.kind == "row"]
            if m.moe is not None:
                xs.append(Linear("moe.experts.down_proj", "row", m.moe.intermediate_size, moe_ways(d)))

        def broken(x: Linear) -> Ints:
            return (np.asarray(x.ways) > 1) & (x.shard % g != 0)

        def equation() -> str:
            x = first_bad(xs, broken)
            return f"K shard {x.size}/{x.ways} = {x.size / x.ways:g}, not a multiple of the int4 group({g})"

        return Verdict(
            "int4-group", any_of(broken(x) for x in xs), named(xs, broken), equation,
            f"smaller tp, or a checkpoint with a smaller group than {g}", source, axis="tp",
        )  # fmt: skip

    return rule


def dtype_known(field: str, known: Sequence[str], source: str) -> Rule:
    """`field` is weight_dtype or kv_dtype."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        value = getattr(d, field)
        return Verdict(
            field.replace("_", "-"), value not in known, "weights" if field == "weight_dtype" else "kv_cache",
            lambda: f"{field} {value} cannot be served", f"{field} among {', '.join(known)}", source,
        )  # fmt: skip

    return rule


def fits_nodes(aligned: Callable[[Degrees], Sequence[Ints]], source: str) -> Rule:
    """Replicas lie on equally filled nodes of the cluster."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        p = place(d, aligned(d))
        limit = d.num_nodes
        bad = False if limit is None else np.asarray(p.nodes) > limit

        def equation() -> str:
            return (
                f"pp({d.pp}) * tp({d.tp}) * cp({d.cp}) * attn_dp({d.attn_dp}) = {d.replica} ranks per replica lie as "
                f"{p.local} ranks on each of {p.nodes_per_replica} nodes; dp({d.dp}) of them need {p.nodes} nodes, "
                f"the cluster has {limit} of {d.node} devices"
            )

        def fix() -> str:
            fit = (p.slots * ((limit or 0) // p.nodes_per_replica)) if limit else 0
            return (
                f"dp of at most {fit}" if fit else f"at most {(limit or 0) * d.node} ranks per replica, evenly per node"
            )

        return Verdict("world-nodes", bad, "devices", equation, fix, source)

    return rule


def tp_inside_node(aligned: Callable[[Degrees], Sequence[Ints]], source: str) -> Rule:
    """A warning: a TP group that leaves the node puts its all-reduces on the network."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        p = place(d, aligned(d))
        local = np.asarray(p.local)
        bad = (np.asarray(d.tp) > local) | (local % np.minimum(d.tp, local) != 0)
        return Verdict(
            "tp-spans-nodes", bad & (np.asarray(p.nodes_per_replica) > 1), "attention.o_proj",
            lambda: f"tp({d.tp}) groups do not stay inside the {p.local} ranks of a node",
            "tp inside the node and pp across nodes, unless the network is as fast as the scale-up link", source,
            severity="warning", cause="network",
        )  # fmt: skip

    return rule


def tp_linears(m: ModelSpec, d: Degrees) -> tuple[Linear, ...]:
    """All weights that attention tp splits: attention, dense MLP, shared expert."""
    return attention_linears(m, d.tp) + dense_linears(m, d.tp) + shared_linears(m, d.tp)


def checkpoint_matches(source: str, *, at_load: tuple[str, ...] = ("fp8",)) -> Rule:
    """A warning: which checkpoint the plan's weight dtype needs; `at_load` are those that the engine makes of 16 bits."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        native, want = m.weight_dtype, d.weight_dtype
        floats = ("bf16", "fp16", "fp32")
        online = native in floats and want in at_load
        bad = native != want and not online and not (native in floats and want in floats)
        return Verdict(
            "checkpoint-dtype", bad, "weights",
            lambda: f"the plan holds {want} weights, the released checkpoint is {native}",
            f"point the model path at a checkpoint of {m.name} in {want}", source, severity="warning",
        )  # fmt: skip

    return rule


def released_fp8_blocks(limit: int, ways: Callable[[Degrees], Ints], source: str) -> Rule:
    """A warning: weights quantised at load scale per tensor; a released block-FP8 checkpoint may not split this way."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        online = d.weight_dtype == "fp8" and m.weight_dtype != "fp8"
        xs = [x for x in tp_linears(m, d) if x.kind == "row"]
        if m.moe is not None:
            xs.append(Linear("moe.experts.down_proj", "row", m.moe.intermediate_size, ways(d)))

        def broken(x: Linear) -> Ints:
            return (np.asarray(x.ways) > 1) & (x.shard % limit != 0)

        def equation() -> str:
            x = first_bad(xs, broken)
            return (
                f"shard {x.size}/{x.ways} = {x.size / x.ways:g} is not a multiple of {limit}; "
                f"fine for FP8 quantised at load, not for a checkpoint with {limit}x{limit} blocks"
            )

        return Verdict(
            "fp8-released-blocks", online & np.asarray(any_of(broken(x) for x in xs)), named(xs, broken), equation,
            "load the bf16 checkpoint with --quantization fp8, or a smaller tp", source, severity="warning",
        )  # fmt: skip

    return rule


def architecture_known(missing: frozenset[str], source: str) -> Rule:
    """A warning: architectures the engine has no own implementation of."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        return Verdict(
            "architecture", m.architecture in missing, "model",
            lambda: f"no own implementation of {m.architecture}; it would run on the Transformers backend",
            "try the model on one device first, or use another engine", source, severity="warning",
        )  # fmt: skip

    return rule


O_GROUPS = {"DeepseekV4ForCausalLM": {64: 8, 128: 16}}
"""Groups of the output projection by architecture and heads (vllm 0.33.0 models/deepseek_v4/attention.py:225)."""


def output_groups_divide(source: str) -> Rule:
    """No engine raises here: o_groups is floor-divided by tp, and the result is wrong or breaks later."""

    def rule(m: ModelSpec, d: Degrees) -> Verdict:
        groups = O_GROUPS.get(m.architecture or "", {}).get(m.attention.num_heads)
        n = groups or 1
        return Verdict(
            "tp-output-groups", (n % d.tp != 0) & (groups is not None), "attention.o_proj",
            lambda: f"o_groups({n}) % tp({d.tp}) = {n % d.tp}, must be 0 (the engine does not check it)",
            f"tp among the divisors of {n}: {divisors(n)}", source, cause="shape", axis="tp",
        )  # fmt: skip

    return rule
