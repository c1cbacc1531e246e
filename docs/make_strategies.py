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
from tools.partition.lower import PBody, POp, Program, local_dims, lower, num_elements, placement_of  # noqa: E402
from tools.partition.placement import Placement  # noqa: E402
from tools.spec.model import ModelSpec  # noqa: E402
from tools.spec.strategy import Phase, Strategy  # noqa: E402

PAGE = ROOT / "docs" / "strategies.md"
IMAGES = ROOT / "docs" / "images" / "strategies"
FLAGS = ("tp", "pp", "ep", "etp", "dp", "attn_dp", "cp", "sp")
"""Degrees that `meshwright dag` takes as options; the others are said in a file."""
BATCH, SEQ, CONTEXT = 8, 1024, 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """One section. `volume`: elements that enter collectives, per rank and layer (or stage boundary), in Python."""

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
)


# ----------------------------------------------------------------------------------------------------------- the graphs


def strategy_of(e: Entry) -> Strategy:
    return Strategy.model_validate(e.degrees)


def program_of(e: Entry, model: ModelSpec | None = None, strategy: Strategy | None = None) -> Program:
    model, phase = model or load_model(e.model).model, e.phase
    seq, kv = (SEQ, SEQ) if phase == "prefill" else (1, CONTEXT)
    sizes = all_sizes(model, batch_size=e.batch, seq_len=seq, kv_len=kv)
    return lower(model, strategy or strategy_of(e), phase, sizes)


def layer_of(e: Entry, program: Program) -> PBody:
    """The layer that a section is about, from the first stage that has it."""
    return next(b for s in program.stages for b, _ in s.bodies() if b.name == e.layer)


def collectives(body: PBody) -> Iterator[POp]:
    return (p for p in body.ops if p.comm is not None and p.comm.kind != "slice")


def elements(program: Program, body: PBody, tensor: str) -> float:
    return float(num_elements(local_dims(body, tensor, program.sizes, program.mesh)))


def measured(e: Entry, program: Program) -> float:
    """Elements that enter collectives, per rank and layer; for a pipeline, per boundary."""
    body = layer_of(e, program)
    if program.strategy.pp > 1:
        return elements(program, body, body.inputs[0])
    return sum(elements(program, body, p.inputs[0]) for p in collectives(body))


def predicted(e: Entry, program: Program) -> float:
    """The formula of the section, with the sizes and degrees of its example."""
    s = program.strategy
    degrees = {n: getattr(s, n) for n in ("tp", "pp", "ep", "etp", "attn_dp", "cp", "dcp", "dk")}
    return float(eval(e.volume, {"__builtins__": {}}, {**program.sizes, **degrees}))


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
    return condense(
        build_dag(
            program_of(e, full.model_copy(update=update), small),
            title=f"{e.title} · {s.label()} · {e.phase}",
            expand_replicas=True,
        )
    )


def condense(dag: Dag) -> Dag:
    """Layers only; operators of a lane between the same collectives merged, collectives of a kind at one depth too."""
    kept = [n for n in sorted(dag.nodes, key=lambda n: n.row) if n.frame or n.kernel == "p2p"]
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
    drawn = tuple(
        replace(xs[0], src=a, dst=b, tensor=_names((x.tensor for x in xs), most=2), dashed=False)
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
    names = list(dict.fromkeys(m.module.rsplit(".", 1)[-1] for m in members))
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
        *(f"| [{e.title}](#{e.id}) | {strategy_of(e).num_devices} | {_summary(e)} |" for e in entries),
        "",
    ]
    return "\n".join([*head, *(line for e in entries for line in section(e))])


def _summary(e: Entry) -> str:
    program = program_of(e)
    found: dict[str, int] = {}
    for p in collectives(layer_of(e, program)):
        assert p.comm is not None
        word = f"{_word(p)} over {_over(p, program)}"
        found[word] = found.get(word, 0) + 1
    texts = [f"{n} {w}" for w, n in found.items()] + ["send/receive between stages"] * (program.strategy.pp > 1)
    return ", ".join(texts) or "none"


def _word(p: POp) -> str:
    assert p.comm is not None
    return "ring shift" if p.comm.kind == "ring_shift" else COMM_WORDS[p.comm.kind]


def _over(p: POp, program: Program) -> str:
    assert p.comm is not None
    return program.mesh.shape.words(p.comm.axes, first="ep" if "experts" in (p.comm.src_dim, p.comm.dst_dim) else "")


def section(e: Entry) -> list[str]:
    program, s = program_of(e), strategy_of(e)
    passage = next(p for p in builtin_passages() if p.id == e.passage)
    want = predicted(e, program)
    per = "stage boundary" if s.pp > 1 else "layer"
    return [
        f'<a id="{e.id}"></a>',
        f"## {e.title}",
        "",
        f"Example: {program.model.name}, `{s.label(program.model.moe is not None)}`, {e.phase}, "
        f"{s.num_devices} devices, {e.batch} sequences.",
        "",
        f"![{e.title}](images/strategies/{e.id}.svg)",
        "",
        f"**Splits.** {'; '.join(splits(e, program))}.",
        "",
        *_table(e, program),
        "",
        f"**Communication**, elements that enter collectives per rank and {per}: `{e.volume}` = "
        f"{want:,.0f}. **Memory** per rank: {e.memory}. "
        f"Source: {passage.source}.",
        "",
        *(f"{n}\n" for n in e.notes),
        f"**When it pays.** {e.when} More: [{passage.title}](../{passage.file}).",
        "",
        *command(e),
        "",
    ]


WEIGHT_AXES = {"experts": "ep", "expert_ffn": "etp"}


def splits(e: Entry, program: Program) -> list[str]:
    """Weights, cache and residual stream in the strategy's words, from their layouts."""
    body, placement = layer_of(e, program), placement_of(program.strategy, program.mesh, program.phase)
    s, out = program.strategy, []
    if s.pp > 1:
        out.append("layers by stage: " + ", ".join(str(st.num_layers) for st in program.stages))
    if s.dp > 1:
        out.append(f"requests over {s.dp} replicas")
    return out if s.group == 1 else out + _splits_of_a_group(body, placement)


def _splits_of_a_group(body: PBody, placement: Placement) -> list[str]:
    words = placement.mesh.words
    found: dict[str, list[str]] = {}
    for w in body.weights():
        cut = " and ".join(f"{d} over {words(a, WEIGHT_AXES.get(d, ''))}" for d, a in w.layout.split)
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
    if set(e.degrees) <= set(FLAGS):
        flags = " ".join(f"--{k.replace('_', '-')}" + ("" if v is True else f" {v}") for k, v in e.degrees.items())
        return [f"`meshwright prove --model {e.model} {flags}`"]
    rows = [f"{k}: {list(v) if isinstance(v, tuple) else v}" for k, v in e.degrees.items()]
    return [f"`meshwright prove --model {e.model} --strategy {e.id}.yaml` with", "", "```yaml", *rows, "```"]


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
