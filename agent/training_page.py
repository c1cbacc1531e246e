"""docs/training.md: what a training step sends and holds, read from its graphs."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

from knowledge.catalog import load_model
from tools.graph.build import all_sizes
from tools.partition.lower import PBody
from tools.partition.train import TrainBody, TrainProgram, lower_train
from tools.spec.strategy import Strategy
from tools.spec.training import TrainOptions
from tools.training_memory import train_memory

WORDS = {"all_reduce": "all-reduce", "reduce_scatter": "reduce-scatter", "all_gather": "all-gather", "all_to_all": "all-to-all",
         "slice": "split", "ring_shift": "ring shift"}  # fmt: skip
ROWS: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("Tensor parallelism", "llama-3-8b", {"tp": 4}, {}), ("with sequence parallelism", "llama-3-8b", {"tp": 4, "sp": True}, {}),
    ("Context parallelism, Ulysses", "llama-3-8b", {"cp": 4}, {}),
    ("Context parallelism, ring", "llama-3-8b", {"cp": 4, "cp_kind": "ring"}, {}),
    ("Data parallelism", "llama-3-8b", {"dp": 4}, {}), ("ZeRO-1", "llama-3-8b", {"dp": 4}, {"zero": 1}),
    ("ZeRO-2", "llama-3-8b", {"dp": 4}, {"zero": 2}), ("ZeRO-3 (FSDP)", "llama-3-8b", {"dp": 4}, {"zero": 3}),
    ("ZeRO-3, weights kept for the backward pass", "llama-3-8b", {"dp": 4}, {"zero": 3, "reshard_after_forward": False}),
    ("ZeRO-3, full recomputation", "llama-3-8b", {"dp": 4}, {"zero": 3, "recompute": "full"}),
    ("ZeRO-2, shards of 2 replicas", "llama-3-8b", {"dp": 4}, {"zero": 2, "shard": 2}),
    ("Experts over attention's data-parallel ranks", "qwen3-30b-a3b", {"attn_dp": 4, "ep": 4, "dp": 2}, {"zero": 1}),
)  # fmt: skip
MEMORY: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("dp8", {"dp": 8}, {}), ("dp8, ZeRO-1", {"dp": 8}, {"zero": 1}), ("dp8, ZeRO-2", {"dp": 8}, {"zero": 2}),
    ("dp8, ZeRO-3", {"dp": 8}, {"zero": 3}), ("dp8, ZeRO-3, full recomputation", {"dp": 8}, {"zero": 3, "recompute": "full"}),
    ("tp8", {"tp": 8}, {}), ("tp8, sp", {"tp": 8, "sp": True}, {}), 
    ("tp2, sp, pp2, dp2, ZeRO-1", {"tp": 2, "sp": True, "pp": 2, "dp": 2}, {"zero": 1}),
)  # fmt: skip
SEQ, MICRO = 4096, 8


def training_markdown() -> str:
    return "\n".join([*_head(), *_options(), *_collectives(), *_memory(), *_limits()]) + "\n"


def _head() -> Iterator[str]:
    yield from (
        "# Training steps", "",
        "Written by `make docs`. A training step is drawn, proven, and weighed like a serving step:", "",
        "```",
        "meshwright prove --model llama3.1-8b --tp 2 --dp 4 --sp --phase train --train zero=3,recompute=full",
        "meshwright dag   --model llama3.1-8b --tp 2 --dp 4 --phase train --train zero=1,micro_batches=4 --seq 4096 --out dags",
        "```", "",
        "The backward graph is derived from the forward graph, operator by operator; its layouts follow from the forward layouts",
        "by the same kind of rules, so gradients' collectives are found, not listed. `dp` is an axis of the mesh here: replicas",
        "see other tokens. Proofs: [proof.md](proof.md); explanations: `knowledge/passages/training_step.md`, `zero_fsdp.md`,",
        "`recomputation.md`.", "",
    )  # fmt: skip


def _options() -> Iterator[str]:
    yield from ("## Options (`--train key=value,…`)", "", "| key | values | default | meaning |", "|:--|:--|:--|:--|")
    said = _attribute_docs()
    for key, field in TrainOptions.model_fields.items():
        values = ", ".join(
            f"`{v}`" for v in get_args(field.annotation) if v is not type(None) and not isinstance(v, type)
        )
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        yield f"| `{key}` | {values or '-'} | {'-' if default is None else f'`{default}`'} | {said.get(key, '')} |"
    yield ""


def _attribute_docs() -> dict[str, str]:
    """The string below each field, as its author wrote it."""
    body = ast.parse(textwrap.dedent(inspect.getsource(TrainOptions))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        a.target.id: " ".join(str(b.value.value).split())
        for a, b in zip(body.body, body.body[1:], strict=False)
        if isinstance(a, ast.AnnAssign) and isinstance(a.target, ast.Name)
        and isinstance(b, ast.Expr) and isinstance(b.value, ast.Constant)
    }  # fmt: skip


def _program(model: str, degrees: dict[str, Any], options: dict[str, Any]) -> TrainProgram:
    m, s = load_model(model).model, Strategy.model_validate(degrees)
    batch = s.dp * (s.attn_dp or 1)
    sizes = all_sizes(m, batch_size=batch, seq_len=SEQ, kv_len=SEQ)
    return lower_train(m, s, TrainOptions.model_validate(options), sizes)


def _collectives() -> Iterator[str]:
    yield from (
        "## What one layer sends", "",
        "| strategy | forward | backward (with what is run again) | once per step |", "|---|---|---|---|",
    )  # fmt: skip
    for title, model, degrees, options in ROWS:
        p = _program(model, degrees, options)
        body: TrainBody = p.stages[0].runs[-1].bodies[0]
        again = [body.rerun] if body.rerun else []
        cells = (_moves(p, body.forward), _moves(p, *again, body.backward), _moves(p, body.update))
        yield f"| {title}, `{p.strategy.label(p.model.moe is not None)}` | {' | '.join(cells)} |"
    yield from (
        "", "![FSDP: weights gathered twice, gradients scattered](images/strategies/train_zero3.svg)", "",
        "![Sequence parallelism, forward and backward](images/strategies/train_sp.svg)", "",
        "Pipeline stages send the residual stream forward and its gradient back. Embedding and head, where they share a weight "
        "on two stages, all-reduce its gradient between them. A split vocabulary adds three all-reduces of one number per token.",
        "",
    )  # fmt: skip


def _moves(p: TrainProgram, *programs: PBody) -> str:
    found = Counter(
        (WORDS[q.comm.kind], p.mesh.shape.words(q.comm.axes)) for b in programs for q in b.ops if q.comm is not None
    )
    return ", ".join(f"{n} {kind} over {axes}" for (kind, axes), n in found.items()) or "none"


def _memory() -> Iterator[str]:
    model = load_model("llama-3-8b").model
    yield from (
        "## What a rank holds", "",
        f"{model.name}, 8 devices, {SEQ:,} tokens per sequence, one sequence per replica and micro-batch, {MICRO} micro-batches; "
        "GB on the fullest rank of the fullest stage. Activations are what the backward graph reads of the forward graph.", "",
        "| strategy | weights | gradients | optimizer | activations | working | total |", "|---|--:|--:|--:|--:|--:|--:|",
    )  # fmt: skip
    for title, degrees, options in MEMORY:
        rows = train_memory(_program("llama-3-8b", degrees, {**options, "micro_batches": MICRO}))
        m = max(rows, key=lambda r: r.total_bytes)
        cells = [*(t.value for t in m.breakdown.terms), m.total_bytes]
        yield f"| {title} | {' | '.join(f'{v / 1e9:.1f}' for v in cells)} |"
    yield ""


def _limits() -> Iterator[str]:
    yield from (
        "## What is refused", "",
        "Decode context parallelism, d_k slicing, slices of the prompt, expert devices apart, attention",
        "pools, redundant experts and single placements: each with the axis and what to use instead. Not modelled: dropout,",
        "auxiliary router losses, gradient clipping, loss scaling, offload to the host, overlap in time, FP8 recipes. ZeRO moves",
        "weights one by one; engines pack them.",
    )  # fmt: skip
