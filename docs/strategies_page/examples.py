"""The strategies of the page: an example of each, its prose, and the formula of what it moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tools.spec.strategy import Phase

BATCH, SEQ, CONTEXT = 8, 1024, 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """One section. `volume`: elements that enter collectives, per rank and layer (or stage boundary), in Python; of two
    pools, the elements of a layer that cross."""

    id: str
    title: str
    model: str
    degrees: dict[str, object]
    phase: Phase
    volume: str
    memory: str
    when: str
    passage: str
    layer: str = "layer_dense"
    batch: int = BATCH
    notes: tuple[str, ...] = field(default=())
    view: Literal["layer", "schedule", "stage"] = "layer"
    """What the picture shows: one layer, the tasks of all stages in time, or every stage whole."""
    decode: dict[str, object] | None = None
    """Degrees of the decode pool; `degrees` are then the prefill pool's."""


ENTRIES: tuple[Entry, ...] = (
    Entry(
        "tp",
        "Tensor parallelism",
        "llama-3-70b",
        {"tp": 4},
        "prefill",
        "2 * batch_size * seq_len * hidden",
        "weights / tp, KV cache / min(tp, kv_heads)",
        "First choice inside one scale-up domain: every rank reads 1/tp of the weights, so TTFT and TPOT "
        "fall until the two "
        "all-reduces of a layer weigh as much as its GEMMs.",
        "tensor_parallel",
    ),
    Entry(
        "sp",
        "Sequence parallelism beside tp",
        "llama-3-70b",
        {"tp": 4, "sp": True},
        "prefill",
        "2 * batch_size * seq_len * hidden * (1 + 1 / tp)",
        "as tp; residual and norm activations / tp",
        "Long prompts and training: same bytes on the wire as tp's all-reduces (each is a reduce-scatter "
        "and an all-gather), norms and "
        "residuals cut. In decode there is little to cut.",
        "sequence_parallel",
    ),
    Entry(
        "pp",
        "Pipeline parallelism, uneven stages",
        "llama-3-8b",
        {"pp": 3, "layers_per_stage": (10, 12, 10)},
        "prefill",
        "batch_size * seq_len * hidden",
        "weights and KV cache by layers of the stage; embedding on the first, head on the last",
        "Across slow links, and where a model does not fit one domain: only the residual stream crosses, "
        "once per boundary. "
        "Throughput needs at least pp micro-batches in flight; the latency of one request does not fall.",
        "uneven_pipeline",
        notes=("The boundary is a send/receive of every rank to the rank of the same index in the next stage.",),
    ),
    Entry(
        "interleaved",
        "Interleaved pipeline",
        "llama-3-8b",
        {"pp": 2, "virtual": 2, "microbatches": 4},
        "prefill",
        "batch_size * seq_len * hidden",
        "as pp: every stage holds virtual runs of layers instead of one",
        "Few micro-batches in flight: the idle share falls from (pp - 1) / (m + pp - 1) to (pp - 1) / (virtual · m + pp - 1), for "
        "virtual times the hand-overs.",
        "interleaved_pipeline",
        notes=(
            "The boundary is crossed pp · virtual - 1 times, the last stage sends to the first. The picture is its schedule.",
        ),
        view="schedule",
    ),
    Entry(
        "slices",
        "Token-dimension pipeline",
        "llama-3-8b",
        {"pp": 3, "seq_slices": 4},
        "prefill",
        "batch_size * seq_len * hidden",
        "as pp; activations of one slice at a time",
        "The prefill of one long prompt: its slices keep all stages busy, and TTFT falls towards 1/pp. Each slice reads the "
        "weights once more, so slices should be long enough to fill the GEMMs.",
        "token_pipeline",
        notes=(
            "Over all slices together. The picture is the schedule; a slice attends to the KV cache of those before it.",
        ),
        view="schedule",
    ),
    Entry(
        "layerwise",
        "Layers by a byte budget",
        "llama-3-8b",
        {"pp": 5, "layers_per_stage": (6, 8, 8, 8, 2)},
        "prefill",
        "batch_size * seq_len * hidden",
        "what the budget says",
        "When a device's fast memory (L2, SRAM) should hold its layers, or devices are many and small. More devices than needed "
        "only add hand-overs.",
        "layerwise_placement",
        notes=(
            "These stages follow from `layerwise: {budget: 3.7GB, method: greedy, count: [weights]}` in a strategy file; "
            "`method: dp` gives 5, 7, 7, 8, 5.",
        ),
        view="stage",
    ),
    Entry(
        "mixed",
        "Pipeline over devices of different kinds",
        "llama-3-8b",
        {"pp": 2, "layers_per_stage": (22, 10)},
        "prefill",
        "batch_size * seq_len * hidden",
        "by layers of the stage, each against its own device",
        "One kind alone does not hold the model, or is too slow. The cut follows speed and memory of each kind, so it depends on "
        "the shares of prefill and decode.",
        "mixed_devices",
        notes=(
            "A stage is a group of one kind. `meshwright search --device 4xA100 --device 4xV100 --mixed` finds group size, order "
            "of the kinds and cut.",
        ),
        view="stage",
    ),
    Entry(
        "dp",
        "Replicas",
        "llama-3-8b",
        {"dp": 2},
        "prefill",
        "0",
        "a full copy of weights per replica; the KV cache of its own requests",
        "When one replica fits and meets the latency: dp times the requests, no communication at all.",
        "data_parallel",
    ),
    Entry(
        "cp",
        "Context parallelism, positions exchanged for heads (Ulysses)",
        "llama-3-8b",
        {"cp": 4},
        "prefill",
        "batch_size * seq_len / cp * (2 * heads + 2 * kv_heads) * d_k",
        "weights whole; KV cache / min(cp, kv_heads), activations / cp",
        "Long prompts: the volume per rank falls with cp, which tp's does not. cp · tp must divide the heads.",
        "context_parallel",
    ),
    Entry(
        "ring",
        "Context parallelism as a ring",
        "llama-3-8b",
        {"cp": 4, "cp_kind": "ring"},
        "prefill",
        "(cp - 1) * 2 * batch_size * seq_len / cp * kv_heads * d_k",
        "weights whole; KV cache / cp, activations / cp",
        "Very long prompts, any number of heads: each step's transfer hides behind the attention of the "
        "step before when seq_len / cp "
        "is long enough. Positions are dealt out zig-zag so that the causal mask loads the ranks alike.",
        "ring_attention",
    ),
    Entry(
        "ring_q",
        "Ring attention that passes queries",
        "llama-3-8b",
        {"cp": 4, "cp_kind": "ring", "ring_pass": "q"},
        "prefill",
        "(2 * cp - 1) * batch_size * seq_len / cp * heads * (d_k + 1)",
        "weights whole; KV cache / cp, activations / cp",
        "Few new positions against a long cache: what travels grows with the queries, not with what they attend to. In a first "
        "prefill of a model with grouped KV heads, as here, passing keys is cheaper.",
        "ring_attention",
        notes=(
            "Queries go around with their running maximum, sum and weighted values, and a last step brings the sums home; "
            "keys and values never move.",
        ),
    ),
    Entry(
        "attn_pool",
        "Attention pool",
        "llama-3-8b",
        {"tp": 2, "attn_pool": 2},
        "prefill",
        "batch_size * seq_len * d_k * ((heads + 2 * kv_heads) / tp + heads / (tp + attn_pool)) "
        "+ 2 * batch_size * seq_len * hidden",
        "weights / tp on the tp ranks, none on the pool; KV cache / (tp + attn_pool) on all of them",
        "Long contexts on top of a deployment that fits otherwise: attention and its cache spread further, the weights stay "
        "where they are. Below `pool_above` tokens the transfers cost more than they save, and the pool is left out.",
        "attention_pool",
        notes=(
            "The regime of at most `pool_above` tokens is the same strategy with `attn_pool: 0`, a graph and a proof of its own. "
            "Ranks beyond the KV heads split queries in prefill and cached positions in decode.",
        ),
    ),
    Entry(
        "pools",
        "Prefill and decode on pools of their own",
        "llama-3-8b",
        {"tp": 2},
        "prefill",
        "2 * batch_size * seq_len * kv_heads * d_k",
        "a copy of the weights per pool, each under its own strategy; the KV cache of a prompt crosses once",
        "Tight TPOT and long prompts: no prompt stalls a decode step, and each pool has the degrees that its phase wants. The "
        "ratio of the pools has to follow the load, and the weights are held twice.",
        "prefill_decode_pools",
        notes=(
            "Each rank of the decode pool is sent exactly the part of the cache that it will hold, whatever degrees the two "
            "pools have; `meshwright prove` runs prefill, hand-over and decode steps as one.",
        ),
        decode={"tp": 4},
    ),
    Entry(
        "placements",
        "Single weights placed otherwise",
        "llama-3-8b",
        {"tp": 4, "placements": {"mlp.down_proj": {"hidden": "tp"}}},
        "prefill",
        "batch_size * seq_len * (hidden + ffn / tp + hidden / tp)",
        "as the degrees say, but for the weights that are named",
        "To try a layout that no degree expresses. Here the MLP gathers its activation and its result instead of summing: "
        "more bytes than tp's all-reduce wherever ffn exceeds hidden, which the formula shows.",
        "tensor_parallel",
        notes=(
            "Collectives follow from where the weights lie, the oracle executes them: "
            "[strategy-file.md](strategy-file.md#weights-one-by-one).",
        ),
    ),
    Entry(
        "dcp",
        "Decode context parallelism",
        "deepseek-v3",
        {"tp": 4, "dcp": 2},
        "decode",
        "batch_size * heads / tp * (kv_lora + qk_rope + dcp * (kv_lora + 2)) + 2 * batch_size * hidden",
        "KV cache / dcp instead of dcp copies; weights as tp",
        "Long contexts of models with few KV heads or a latent, whose cache tp would copy.",
        "decode_context_parallel",
    ),
    Entry(
        "dk",
        "Two-level attention slicing",
        "llama-3-8b",
        {"tp": 4, "dk": 2},
        "prefill",
        "batch_size * heads / (tp / dk) * seq_len ** 2 + 2 * batch_size * seq_len * hidden",
        "weights / tp, KV cache / tp up to dk · kv_heads",
        "More ranks than heads: dk of the tp ranks slice d_k and sum partial scores. Cheap in decode with "
        "a short context, dear in a long prefill.",
        "two_level_attention",
    ),
    Entry(
        "hidden_tp",
        "Two-dimensional tensor parallelism (weights stationary)",
        "llama-3-70b",
        {"tp": 8, "axes": {"hidden_tp": 2}},
        "prefill",
        "batch_size * seq_len * (((heads + 2 * kv_heads) * d_k + 2 * ffn) / (tp / hidden_tp) + 4 * hidden / hidden_tp)",
        "weights / tp; KV cache / min(tp / hidden_tp, kv_heads)",
        "Many ranks: a ring moves what it holds, and here every rank holds a part of both dims of a weight, so what "
        "travels shrinks with the square root of the ranks; one-dimensional tp sends the whole hidden dim however "
        "many there are. Below about 32 ranks tp alone sends less.",
        "two_dimensional_tp",
    ),
    Entry(
        "attn_dp",
        "Attention data parallelism with expert parallelism",
        "qwen3-235b-a22b",
        {"attn_dp": 4, "ep": 4},
        "prefill",
        "2 * batch_size / attn_dp * seq_len * top_k * hidden",
        "attention weights whole, routed experts / ep, KV cache / attn_dp",
        "MoE models with few KV heads or a latent: the cache is held once per group, attention has no "
        "collective, experts stay spread.",
        "attention_dp",
        layer="layer_moe",
    ),
    Entry(
        "ep",
        "Expert parallelism over tensor-parallel ranks",
        "mixtral-8x7b",
        {"tp": 4, "ep": 4, "etp": 1},
        "prefill",
        "2 * batch_size * seq_len * hidden",
        "routed experts / ep, attention / tp",
        "Inside one domain: the tokens are on every rank already, each computes its own experts' share, "
        "and one all-reduce adds them up. "
        "Experts keep their width.",
        "expert_parallel",
        layer="layer_moe",
    ),
    Entry(
        "etp",
        "Expert tensor parallelism",
        "mixtral-8x7b",
        {"tp": 2, "attn_dp": 2, "ep": 2, "etp": 2},
        "prefill",
        "batch_size / attn_dp * seq_len * hidden * 2 + 2 * batch_size / attn_dp * seq_len * top_k * hidden",
        "routed experts / (ep · etp)",
        "Experts too big for ep alone, or a load that must be even whatever the router does; the slice "
        "must keep whole quantisation groups.",
        "expert_tensor_parallel",
        layer="layer_moe",
    ),
    Entry(
        "edp",
        "Copies of experts inside a replica",
        "qwen3-235b-a22b",
        {"attn_dp": 4, "ep": 2, "etp": 1},
        "prefill",
        "2 * batch_size / attn_dp * seq_len * top_k * hidden",
        "routed experts / ep, so edp copies of each",
        "To keep the all-to-all inside a node and to share hot experts' load, while memory lasts.",
        "expert_data_parallel",
        layer="layer_moe",
    ),
    Entry(
        "large_ep",
        "Large expert parallelism: one expert per device",
        "mixtral-8x7b",
        {"attn_dp": 8, "ep": 8},
        "decode",
        "2 * batch_size / attn_dp * seq_len * top_k * hidden",
        "one expert per device and layer; attention whole",
        "Many sequences over many devices: each expert sees the tokens of the whole group and its GEMM "
        "fills. Balance is the price.",
        "large_expert_parallel",
        layer="layer_moe",
        batch=128,
    ),
    Entry(
        "ep_nodes",
        "Hierarchical all-to-all: nodes first, experts second",
        "mixtral-8x7b",
        {"attn_dp": 4, "ep": 4, "ep_nodes": 2},
        "prefill",
        "2 * ep_nodes * node_tokens * (hidden + top_k) + 2 * batch_size / attn_dp * seq_len * top_k * hidden",
        "as attn_dp and ep",
        "Prefill with experts over several nodes: a token crosses the network once per node that it needs, not once per rank, for "
        "one more hop over the fast link. Decode steps go straight to the ranks.",
        "hierarchical_all_to_all",
        layer="layer_moe",
        batch=56,
        notes=(
            "node_tokens: of a rank's tokens, those that one node gets, 1 - C(E - E/nodes, top_k) / C(E, top_k) of them on average "
            "(here 22/28). The chosen experts and their weights travel with the tokens.",
            "Sequences are dealt out with the nodes innermost, so that what a rank collects from its counterparts in the other "
            "nodes is one run of the batch.",
        ),
    ),
    Entry(
        "redundant",
        "Redundant experts",
        "mixtral-8x7b",
        {"attn_dp": 5, "ep": 5, "redundant_experts": 2},
        "prefill",
        "2 * batch_size / attn_dp * seq_len * top_k * hidden",
        "(num_experts + redundant_experts) / ep experts per rank and layer; attention whole",
        "Skewed routing, where the rank of the busiest expert sets the pace; and degrees that the number of experts forbids: 8 "
        "experts do not split over 5 ranks, 8 + 2 slots do.",
        "redundant_experts",
        layer="layer_moe",
        batch=25,
        notes=(
            "The gate scores 8 experts; a step after top-k turns experts into slots, and the tokens of an expert take turns "
            "over its copies.",
        ),
    ),
    Entry(
        "apart",
        "Attention and experts on devices of their own",
        "mixtral-8x7b",
        {"tp": 2, "attn_dp": 2, "expert_devices": 2, "ep": 2},
        "decode",
        "batch_size / attn_dp * hidden * (1 + (top_k + 1) / tp) + batch_size * top_k * hidden / ep",
        "attention, shared expert and KV cache on tp · cp · attn_dp ranks; routed experts / ep on expert_devices",
        "Decode with many sequences: few expert ranks behind many attention ranks see full GEMMs, and the two groups may be "
        "different devices. At least two micro-batches keep both busy (`meshwright dag --detail schedule`).",
        "expert_separation",
        layer="layer_moe",
        batch=64,
        notes=(
            "Ranks that share a sequence (tp) each send a part of its tokens, so no token leaves twice; the all-gather after "
            "the transfer back makes them whole again.",
        ),
    ),
)
