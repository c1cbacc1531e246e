"""Writes docs/strategies.md and its pictures: what each strategy splits, what it sends, what it costs, how to say it.

python docs/make_strategies.py --write    the page and the pictures (needs Graphviz or its WASM build)
python docs/make_strategies.py --check    exit 1 if the page is not what the code says

Everything in a section but its prose comes from the partitioned graph: layouts, collectives, sizes, the picture. The
communication formula is prose too, but it is evaluated and must equal what the graph's collectives move.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from knowledge.catalog import load_model  # noqa: E402
from knowledge.retrieve import builtin_passages  # noqa: E402
from tools.dag.build import COMM_WORDS, build_dag  # noqa: E402
from tools.dag.graph import Dag, DagEdge, DagNode, Port, Role  # noqa: E402
from tools.dag.text import slug  # noqa: E402
from tools.graph.build import all_sizes  # noqa: E402
from tools.partition.lower import (  # noqa: E402
    PBody,
    POp,
    Program,
    ends_of,
    expected_tokens,
    local_dims,
    lower,
    num_elements,
    placement_of,
)
from tools.partition.mesh import ATTENTION  # noqa: E402
from tools.partition.placement import Placement  # noqa: E402
from tools.partition.pools import Handover, Pools, handovers, lower_pools  # noqa: E402
from tools.partition.transfer import messages  # noqa: E402
from tools.spec.model import ModelSpec  # noqa: E402
from tools.spec.strategy import Phase, Strategy  # noqa: E402

PAGE = ROOT / "docs" / "strategies.md"
IMAGES = ROOT / "docs" / "images" / "strategies"
FLAGS = ("tp", "pp", "ep", "etp", "dp", "attn_dp", "cp", "sp")
"""Degrees that `meshwright dag` takes as options; the others are said in a file."""
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


# ----------------------------------------------------------------------------------------------------------- the graphs


def strategy_of(e: Entry) -> Strategy:
    return Strategy.model_validate(e.degrees)


def strategies_of(e: Entry) -> list[Strategy]:
    """The strategy of the example; of two pools, prefill's and decode's."""
    return [Strategy.model_validate(d) for d in (e.degrees, e.decode) if d is not None]


def devices_of(e: Entry) -> int:
    """Devices of the example, those of both pools."""
    return sum(s.num_devices for s in strategies_of(e))


def program_of(e: Entry, model: ModelSpec | None = None, strategy: Strategy | None = None) -> Program:
    model, phase = model or load_model(e.model).model, e.phase
    seq, kv = (SEQ, SEQ) if phase == "prefill" else (1, CONTEXT)
    sizes = all_sizes(model, batch_size=e.batch, seq_len=seq, kv_len=kv)
    return lower(model, strategy or strategy_of(e), phase, sizes)


def pools_of(e: Entry, model: ModelSpec | None = None) -> Pools | None:
    """Both pools of an example that has two."""
    if e.decode is None:
        return None
    model = model or load_model(e.model).model
    prompt = all_sizes(model, batch_size=e.batch, seq_len=SEQ, kv_len=SEQ)
    return lower_pools(model, *strategies_of(e), prompt, {**prompt, "seq_len": 1})


def crossing(pools: Pools) -> tuple[Handover, ...]:
    """What crosses from pool to pool of the first layer, cache by cache."""
    return tuple(h for h in handovers(pools) if 0 in h.layers)


def layer_of(e: Entry, program: Program) -> PBody:
    """The layer that a section is about, from the first stage that has it."""
    return next(b for s in program.stages for b, _ in s.bodies() if b.name == e.layer)


def collectives(body: PBody) -> Iterator[POp]:
    return (p for p in body.ops if p.comm is not None and p.comm.kind != "slice")


def elements(program: Program, body: PBody, tensor: str) -> float:
    return float(num_elements(local_dims(body, tensor, program.sizes, program.mesh)))


def measured(e: Entry, program: Program) -> float:
    """Elements that enter collectives, per rank (of the group that sends) and layer; for a pipeline, per boundary; for two
    pools, of all messages of a layer."""
    pools, body = pools_of(e), layer_of(e, program)
    if pools:
        return float(sum(m.elements for h in crossing(pools) for m in h.messages(program.sizes)))
    if program.strategy.pp > 1:
        return elements(program, body, body.inputs[0])
    return sum(elements(program, body, p.inputs[0]) for p in collectives(body))


def travelled(program: Program, body: PBody) -> tuple[float, float]:
    """Elements that a layer's transfers between device groups move, all ranks together: (to another device, none needed
    because sender and receiver are the same device). Of a routed tensor a token goes to top_k of its experts."""
    away = stay = 0.0
    for p in collectives(body):
        if p.comm is None or p.comm.kind != "transfer":
            continue
        spec, sizes = body.spec(p.output), program.sizes
        chosen = float(sizes["top_k"] / sizes["experts"]) if spec.routed else 1.0
        ends = ends_of(body, p, program.mesh, program.orders)
        for m in messages(*ends, {d: int(sizes[d]) for d in spec.dims}):
            away += chosen * m.elements * (m.src != m.dst)
            stay += chosen * m.elements * (m.src == m.dst)
    return away, stay


def predicted(e: Entry, program: Program) -> float:
    """The formula of the section, with the sizes and degrees of its example."""
    s = program.strategy
    names = ("tp", "pp", "ep", "etp", "attn_dp", "cp", "dcp", "dk", "expert_devices", "attn_pool", "redundant_experts")
    degrees = {n: getattr(s, n) for n in names}
    if s.ep_nodes > 1:
        tokens = program.sizes["batch_size"] * program.sizes["seq_len"] // (s.attn_dp or 1)
        degrees |= {"ep_nodes": s.ep_nodes, "node_tokens": expected_tokens(("expert_nodes",), tokens, program.sizes)}
    return float(eval(e.volume, {"__builtins__": {}}, {**program.sizes, **degrees, **dict(s.axes)}))


# -------------------------------------------------------------------------------------------------------------- pictures


def picture(e: Entry) -> Dag:
    """One layer of the example (of every stage) on its devices: what runs between collectives is one box."""
    s, full = strategy_of(e), load_model(e.model).model
    if e.view != "layer":
        return build_dag(program_of(e), detail=e.view, title=f"{e.title} · {s.label()} · {e.phase}")
    layers = max(s.pp, 1)
    update: dict[str, object] = {
        "num_hidden_layers": layers,
        "moe_layers": (True,) * layers if e.layer == "layer_moe" else None,
        "sliding_layers": None,
    }
    if e.layer == "layer_dense" and full.moe:
        update["moe_layers"] = (False,) * layers
    update["position"] = full.position.model_copy(update={"rope_layers": None})
    small = s.model_copy(update={"layers_per_stage": None})
    model = full.model_copy(update=update)
    pools = pools_of(e, model)
    return condense(
        build_dag(
            pools.prefill if pools else program_of(e, model, small),
            title=f"{e.title} · {' → '.join(x.label() for x in strategies_of(e))} · {e.phase}",
            expand_replicas=not pools,
            pools=pools,
        )
    )


def condense(dag: Dag) -> Dag:
    """Layers only; operators of a lane between the same collectives merged, collectives of a kind at one depth too."""
    kept = [n for n in sorted(dag.nodes, key=lambda n: n.row) if n.frame or n.kernel == "p2p" or n.caches]
    ids = {n.id for n in kept}
    depth = _depths(kept, [x for x in dag.edges if x.src in ids and x.dst in ids])
    groups: dict[tuple[int, bool, str, tuple[int, ...]], list[DagNode]] = {}
    for n in kept:
        comm = n.role == "comm"
        groups.setdefault((depth[n.id], comm, n.kernel if comm else "", n.devices), []).append(n)
    nodes: list[DagNode] = []
    home: dict[str, str] = {}
    for row, (key, members) in enumerate(sorted(groups.items(), key=lambda kv: kv[0][:2])):
        nodes.append(_merged(members, key[0], row))
        home |= {m.id: nodes[-1].id for m in members}
    edges: dict[tuple[str, str], list[DagEdge]] = {}
    for x in dag.edges:
        a, b = home.get(x.src), home.get(x.dst)
        if a and b and a != b:
            edges.setdefault((a, b), []).append(x)
    wide = {n.id for n in nodes if n.role == "comm" and n.kernel != "p2p"}
    drawn = tuple(
        # From one collective to the next of the same devices no lane is meant more than the others.
        replace(
            xs[0],
            src=a,
            dst=b,
            tensor=_names((x.tensor for x in xs), most=2),
            dashed=False,
            lane=None if {a, b} <= wide else xs[0].lane,
        )
        for (a, b), xs in edges.items()
    )
    return replace(dag, nodes=tuple(nodes), edges=drawn, frames=())


def _names(tensors: Iterable[str], most: int = 9) -> str:
    found = list(dict.fromkeys(tensors))
    return ", ".join(found[:most]) + (f" + {len(found) - most}" if len(found) > most else "")


def _depths(nodes: Sequence[DagNode], edges: Sequence[DagEdge]) -> dict[str, int]:
    """Collectives on the longest way to each node; all copies of a step share the largest."""
    entering: dict[str, list[str]] = {}
    for x in edges:
        entering.setdefault(x.dst, []).append(x.src)
    by_id = {n.id: n for n in nodes}
    steps: dict[str, list[DagNode]] = {}
    for n in nodes:
        steps.setdefault(n.step, []).append(n)
    out: dict[str, int] = {}
    for copies in steps.values():
        before = (a for n in copies for a in entering.get(n.id, ()))
        depth = max((out[a] + (by_id[a].role == "comm") for a in before), default=0)
        out |= {n.id: depth for n in copies}
    return out


def _merged(members: Sequence[DagNode], depth: int, row: int) -> DagNode:
    """One node for several of a lane, or for several collectives of the same devices."""
    first, comm = members[0], members[0].role == "comm"
    step = f"d{depth}_{slug(first.kernel) if comm else 'run'}"
    node = replace(
        first,
        id=f"{step}__g{first.devices[0]}",
        step=step,
        row=row,
        module="",
        notes=(),
        weights=(),
        caches=(),
        frame="",
    )
    return _merged_collectives(node, members) if comm else _merged_operators(node, members)


def _merged_collectives(node: DagNode, members: Sequence[DagNode]) -> DagNode:
    moved = {_names(p.tensor for p in m.inputs): m for m in members}
    many = f"{len(members)} × {COMM_WORDS[node.kernel].rstrip(',')}: {', '.join(moved)}"
    return replace(
        node,
        operator=node.operator if len(members) == 1 else many,
        inputs=tuple(Port(n, m.inputs[0].dims) for n, m in moved.items()),
        outputs=tuple(Port(n, m.outputs[0].dims) for n, m in moved.items()),
    )


def _merged_operators(node: DagNode, members: Sequence[DagNode]) -> DagNode:
    # What a decode pool receives is called by the cache and by what happens to it.
    names = list(dict.fromkeys(" ".join(m.module.split(".")[-1 if m.frame else -2 :]) for m in members))
    lines = [" · ".join(names[i : i + 3]) for i in range(0, len(names), 3)]
    role: Role = next((m.role for m in members if m.role in ("attention", "moe")), "compute")
    return replace(
        node,
        operator="\n".join(lines),
        kernel="",
        role=role,
        inputs=node.inputs[:1],
        outputs=members[-1].outputs,
        global_dims=(),
    )


TRAINING: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "train_zero3": ("FSDP: weights gathered twice, gradients scattered", {"dp": 2}, {"zero": 3}),
    "train_sp": ("Sequence parallelism, forward and backward", {"tp": 2, "sp": True}, {}),
}
"""Pictures of docs/training.md: (title, degrees, options)."""


def training_picture(name: str) -> Dag:
    """A training step of a one-layer model: forward, loss, backward, optimizer."""
    from tools.dag.train import train_dag
    from tools.partition.train import lower_train
    from tools.spec.training import TrainOptions

    title, degrees, options = TRAINING[name]
    s, model = (
        Strategy.model_validate(degrees),
        load_model("llama-3-8b").model.model_copy(update={"num_hidden_layers": 1}),
    )
    sizes = all_sizes(model, batch_size=s.dp, seq_len=SEQ, kv_len=SEQ)
    dag = train_dag(lower_train(model, s, TrainOptions.model_validate(options), sizes), title=title)
    # The loss stands between the passes: without it both would begin at the top.
    nodes = tuple(replace(n, frame="loss") if "_loss_" in n.step and "_upd_" not in n.step else n for n in dag.nodes)
    return condense(replace(dag, nodes=nodes))


def write_pictures(entries: Sequence[Entry] = ENTRIES) -> None:
    from agent.render import run_scripts, write_scripts
    from tools.dag.script import script_text

    IMAGES.mkdir(parents=True, exist_ok=True)
    work = ROOT / "build" / "strategies"
    drawn = {e.id: picture(e) for e in entries} | {name: training_picture(name) for name in TRAINING}
    paths = write_scripts({name: script_text(dag, name) for name, dag in drawn.items()}, work)
    for r in run_scripts(paths, work):
        if r.svg is None or r.findings:
            raise SystemExit(f"{r.name}: {r.findings}")
        (IMAGES / f"{r.name}.svg").write_bytes(r.svg.read_bytes())


# ------------------------------------------------------------------------------------------------------------------ page


def page(entries: Sequence[Entry] = ENTRIES) -> str:
    head = [
        "# Strategies",
        "",
        "Written by `python docs/make_strategies.py --write`. Layouts, collectives, sizes and pictures come from the "
        "partitioned graph; each communication formula is evaluated and equals what the graph moves. Longer explanations: "
        "`knowledge/passages/`; all keys of a strategy file: [strategy-file.md](strategy-file.md); proofs: [proof.md](proof.md); "
        "training steps, ZeRO, recomputation: [training.md](training.md).",
        "",
        f"Examples: a prompt of {SEQ:,} tokens in prefill, a context of {CONTEXT:,} in decode. In the "
        "pictures a column is a "
        "device, an ellipse a collective, a box all operators between two of them; one layer is drawn.",
        "",
        "| strategy | devices | collectives of one layer |",
        "|---|--:|---|",
        *(f"| [{e.title}](#{e.id}) | {devices_of(e)} | {_summary(e)} |" for e in entries),
        "",
    ]
    return "\n".join([*head, *(line for e in entries for line in section(e))])


def _summary(e: Entry) -> str:
    program = program_of(e)
    found: dict[str, int] = {}
    for p in collectives(layer_of(e, program)):
        assert p.comm is not None
        word = f"{_word(p)} {_over(p, program) if p.comm.kind == 'transfer' else 'over ' + _over(p, program)}"
        found[word] = found.get(word, 0) + 1
    texts = [f"{n} {w}" for w, n in found.items()] + ["send/receive between stages"] * (program.strategy.pp > 1)
    texts += ["KV cache from pool to pool"] * (e.decode is not None)
    return ", ".join(texts) or "none"


def _word(p: POp) -> str:
    assert p.comm is not None
    return {"ring_shift": "ring shift", "transfer": "transfer"}.get(p.comm.kind) or COMM_WORDS[p.comm.kind]


def _over(p: POp, program: Program) -> str:
    assert p.comm is not None
    if p.comm.kind == "transfer":
        body = next(b for s in program.stages for b, _ in s.bodies() if p in b.ops)
        return f"{body.group(p.inputs[0])} → {body.group(p.output)}"
    return program.mesh.shape.words(p.comm.axes, first="ep" if "experts" in (p.comm.src_dim, p.comm.dst_dim) else "")


def section(e: Entry) -> list[str]:
    program, s = program_of(e), strategy_of(e)
    passage = next(p for p in builtin_passages() if p.id == e.passage)
    want = predicted(e, program)
    labels = [x.label(program.model.moe is not None) for x in strategies_of(e)]
    return [
        f'<a id="{e.id}"></a>',
        f"## {e.title}",
        "",
        f"Example: {program.model.name}, `{' → '.join(labels)}`, {e.phase}, {devices_of(e)} devices, {e.batch} sequences.",
        "",
        f"![{e.title}](images/strategies/{e.id}.svg)",
        "",
        f"**Splits.** {'; '.join(splits(e, program))}.",
        "",
        *_table(e, program),
        "",
        f"**Communication**, elements {_counted(e, s)}: `{e.volume}` = "
        f"{want:,.0f}. {_moved(e, program)}**Memory** per rank: {e.memory}. "
        f"Source: {passage.source}.",
        "",
        *(f"{n}\n" for n in e.notes),
        f"**When it pays.** {e.when} More: [{passage.title}](../{passage.file}).",
        "",
        *command(e),
        "",
    ]


def _counted(e: Entry, s: Strategy) -> str:
    if e.decode is not None:
        return "that cross from pool to pool, all ranks together, per layer"
    whose = "rank of the group that sends" if s.group > s.attention_group else "rank"
    return f"that enter collectives per {whose} and {'stage boundary' if s.pp > 1 else 'layer'}"


def _moved(e: Entry, program: Program) -> str:
    """What the transfers' messages carry, where a stage has several device groups."""
    away, stay = travelled(program, layer_of(e, program))
    kept = f", {stay:,.0f} are where they are needed" if stay else ""
    return f"The transfers' messages carry {away:,.0f} elements from device to device{kept}. " if away else ""


WEIGHT_AXES = {"experts": "ep", "expert_ffn": "etp"}


def splits(e: Entry, program: Program) -> list[str]:
    """Weights, cache and residual stream in the strategy's words, from their layouts."""
    body, placement = layer_of(e, program), placement_of(program.strategy, program.mesh, program.phase)
    s, out = program.strategy, []
    if s.pp > 1:
        out.append("layers by stage: " + ", ".join(str(st.num_layers) for st in program.stages))
    if s.dp > 1:
        out.append(f"requests over {s.dp} replicas")
    if s.group > s.attention_group:
        apart = ((s.attention_group, "attention"), (s.expert_devices, "experts"), (s.attn_pool, "the pool"))
        out.append("ranks of a stage: " + ", ".join(f"{n} for {whose}" for n, whose in apart if n))
    if s.group > 1:
        out += _splits_of_a_group(body, placement)
    return out + [f"KV cache on the decode pool: {w}" for w in _decode_caches(e)]


def _decode_caches(e: Entry) -> dict[str, None]:
    pools = pools_of(e)
    if pools is None:
        return {}
    there = placement_of(pools.decode.strategy, pools.decode.mesh, "decode")
    return dict.fromkeys(there.words(h.got.layout(h.cache)) for h in crossing(pools))


def _splits_of_a_group(body: PBody, placement: Placement) -> list[str]:
    words = placement.mesh.words
    found: dict[str, list[str]] = {}
    for w in body.weights():
        cut = " and ".join(f"{d} over {words(a, WEIGHT_AXES.get(d, ''))}" for d, a in w.layout.split)
        if w.group not in ("", ATTENTION):
            cut = f"{cut or 'none'} on the ranks of {w.group}"
        found.setdefault(cut or "whole on every rank", []).append(w.name.removesuffix(".weight"))
    out = [f"weights by {cut}: {', '.join(names)}" for cut, names in found.items() if cut != "whole on every rank"]
    if not out:
        out.append("no weights")
    caches = dict.fromkeys(
        placement.words(body.layout(p.output)) for p in body.ops if p.op is not None and p.op.kind == "cache"
    )
    out += [f"KV cache: {c}" for c in caches]
    out.append(f"residual stream: {placement.words(placement.residual())}")
    return out


def _table(e: Entry, program: Program) -> list[str]:
    body = layer_of(e, program)
    rows = []
    for p in collectives(body):
        assert p.comm is not None
        src = body.tensors[p.inputs[0]]
        dims = local_dims(body, p.inputs[0], program.sizes, program.mesh)
        after = local_dims(body, p.output, program.sizes, program.mesh)
        text = ", ".join(f"{d}={int(n)}" for d, n in dims.items())
        gone = ", ".join(f"{d}={int(n)}" for d, n in after.items())
        rows.append(
            f"| {_word(p)} | {src.origin} | {_over(p, program)} | {text} | {gone if gone != text else 'same'} |"
        )
    if not rows:
        return ["No collectives inside a layer."]
    return ["| collective | tensor | over | enters, per rank | leaves |", "|---|---|---|---|---|", *rows]


def command(e: Entry) -> list[str]:
    """How to say it: options where there are some, else a strategy file."""
    if e.decode is not None:
        rows = [f"{name}: {_flow(said)}" for name, said in (("prefill", e.degrees), ("decode", e.decode))]
        return [f"`meshwright prove --model {e.model} --strategy {e.id}.yaml` with", "", "```yaml", *rows, "```"]
    if set(e.degrees) <= set(FLAGS):
        flags = " ".join(f"--{k.replace('_', '-')}" + ("" if v is True else f" {v}") for k, v in e.degrees.items())
        return [f"`meshwright prove --model {e.model} {flags}`"]
    rows = [f"{k}: {_flow(v)}" for k, v in e.degrees.items()]
    return [f"`meshwright prove --model {e.model} --strategy {e.id}.yaml` with", "", "```yaml", *rows, "```"]


def _flow(v: object) -> str:
    """A value as YAML on one line."""
    if isinstance(v, dict):
        return "{" + ", ".join(f"{k}: {_flow(x)}" for k, x in v.items()) + "}"
    return str(list(v) if isinstance(v, tuple) else v)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="docs/strategies.md and its pictures")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    if args.check:
        fresh = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page()
        print(
            "docs/strategies.md is up to date"
            if fresh
            else "docs/strategies.md is not what the code says; run --write",
            file=sys.stderr,
        )
        return 0 if fresh else 1
    if args.write:
        PAGE.write_text(page(), encoding="utf-8")
        write_pictures()
        return 0
    parser.print_help()
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
