"""The proof catalogue: architectures x axis sets x both phases, each graph executed on all its simulated devices.

python benchmarks/prove_all.py              prove everything, print one line per graph, write benchmarks/prove_all.md
python benchmarks/prove_all.py --print      the same without writing the page
python benchmarks/prove_all.py --workers 1  in one process (default: one per core)

Exit 1 if a graph is not proven. A refusal is no failure: it is counted, and listed with its reason. Every graph is
executed twice, once at a batch and a prompt that all degrees divide and once at lengths that few of them do; the larger
error is reported.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices are tiny; threads only wait for each other
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from knowledge.catalog import load_model  # noqa: E402
from tools.oracle.prove import TOLERANCE, prove  # noqa: E402
from tools.partition.axes import AXES  # noqa: E402
from tools.partition.lower import default_layers_per_stage  # noqa: E402
from tools.spec.base import ToolError  # noqa: E402
from tools.spec.model import ModelSpec  # noqa: E402
from tools.spec.strategy import Strategy  # noqa: E402

PAGE = ROOT / "benchmarks" / "prove_all.md"
ARCHITECTURES: dict[str, str] = {
    "llama-3-70b": "grouped-query attention",
    "qwen2.5-7b": "biases on Q, K, V",
    "qwen3-32b": "RMSNorm of each Q and K head",
    "olmo-2-7b": "norms after each half, RMSNorm over all heads",
    "mistral-7b": "sliding window",
    "gemma-2-9b": "sandwich norms, soft caps",
    "gpt2-xl": "learned positions, 25 heads",
    "gpt-j-6b": "parallel block, rotates part of d_k",
    "falcon-7b": "one KV head, parallel block",
    "falcon-40b": "parallel block with two norms",
    "bloom-7b1": "ALiBi, norm after the embedding",
    "opt-6.7b": "biases, ReLU, learned positions",
    "mixtral-8x7b": "8 experts",
    "qwen3-235b-a22b": "128 experts",
    "qwen1.5-moe-a2.7b": "gated shared expert, 60 experts",
    "deepseek-v3": "latent attention, grouped sigmoid gate, dense first layers",
    "gpt-oss-120b": "attention sinks, mxfp4 experts",
    "llama-4-scout": "chunked attention, gate scales the input",
    "glm-4.5": "half of d_k rotates, shared expert",
    "kimi-k2": "latent attention, 384 experts",
    "qwen3-next-80b-a3b": "gated delta rule on three of four layers, gated attention",
    "kimi-linear-48b-a3b": "Kimi delta attention, latents that do not rotate",
    "jamba-1.5-mini": "Mamba-1 on seven of eight layers, no positions",
    "falcon-h1-0.5b": "Mamba-2 beside attention in every layer, constants on all projections",
    "lfm2-8b-a1b": "gated short convolutions on three of four layers, experts after two layers",
    "deepseek-v3.2": "attention to positions that an indexer picks",
    "glm-5.2": "picked positions that layers share",
    "minimax-m3": "blocks of positions that every KV head picks",
    "gemma-4-26b-a4b": "heads of two sizes and numbers, values that are keys, experts beside an MLP",
    "gemma-4-e4b": "keys and values that layers lend, embeddings for every layer",
    "mimo-v2-flash": "KV heads of two numbers, narrow values, sinks on some layers",
}
"""Catalogue name → what its operator graph adds."""
LENGTHS = ((8, 16), (7, 17))
"""(sequences per replica, prompt): residue classes that the reduced run keeps."""

Degrees = dict[str, object]


def tp_choices(m: ModelSpec, most: int = 4) -> list[int]:
    """Ranks that divide the heads, about `most` first."""
    ok = [t for t in range(2, 17) if m.attention.num_heads % t == 0]
    return sorted(ok, key=lambda t: (t > most, abs(most - t))) or [2]


def copied_kv(m: ModelSpec) -> list[int]:
    """Ranks that outnumber the KV heads, so that some hold copies; a latent is copied to all of them."""
    if m.attention.mla:
        return [4, 8]
    kv, heads = m.attention.num_kv_heads, m.attention.num_heads
    return [t for k in (2, 4, 3, 5, 71) if heads % (t := kv * k) == 0 and t <= 80] or [2 * kv]


def uneven(m: ModelSpec, pp: int) -> tuple[int, ...]:
    """Stages where the first holds a layer less than its share, as one does to make room for the embedding."""
    even = list(default_layers_per_stage(m.num_hidden_layers, pp))
    even[0], even[1] = even[0] - 1, even[1] + 1
    return tuple(even)


def one_expert_each(m: ModelSpec) -> list[int]:
    """As many ranks as experts, up to 64; of more experts 32 ranks hold several each."""
    return [m.moe.num_experts] if m.moe and m.moe.num_experts <= 64 else [32]


def some(m: ModelSpec, **experts: int) -> Degrees:
    """Expert axes, for models that have experts."""
    return dict(experts) if m.moe else {}


def tp_with(**rest: object) -> Callable[[ModelSpec], list[Degrees]]:
    return lambda m: [{"tp": t, **rest} for t in tp_choices(m)]


def two_with(**rest: object) -> Callable[[ModelSpec], list[Degrees]]:
    return lambda m: [{"tp": t, **rest} for t in tp_choices(m, 2)[:2]]


def fixed(**degrees: object) -> Callable[[ModelSpec], list[Degrees]]:
    return lambda m: [dict(degrees)]


AXIS_SETS: dict[str, Callable[[ModelSpec], list[Degrees]]] = {
    "tp": tp_with(),
    "tp > kv_heads": lambda m: [{"tp": t} for t in copied_kv(m)],
    "tp·sp": tp_with(sp=True),
    "pp uneven": lambda m: [{"pp": 3, "layers_per_stage": uneven(m, 3)}],
    "tp·pp": two_with(pp=2),
    "tp·attn_dp": two_with(attn_dp=2),
    "tp·attn_dp·sp": two_with(attn_dp=2, sp=True),
    "tp·ep": lambda m: [{"tp": t, "ep": t, "etp": 1} for t in tp_choices(m)],
    "tp·ep·etp": lambda m: (
        [{"tp": t, "ep": 2, "etp": t // 2} for t in tp_choices(m) if t % 2 == 0] or [{"tp": 2, "ep": 2}]
    ),
    "attn_dp·ep": fixed(attn_dp=4, ep=4),
    "attn_dp·ep, all-gather": fixed(attn_dp=4, ep=4, moe_comm="allgather"),
    "tp·attn_dp·ep·etp": two_with(attn_dp=4, ep=4, etp=2),
    "attn_dp·ep·edp": fixed(attn_dp=4, ep=2, etp=1),
    "large ep": lambda m: [{"attn_dp": n, "ep": n} for n in one_expert_each(m)],
    "cp ulysses": lambda m: [{"cp": t} for t in tp_choices(m)],
    "tp·cp ulysses": two_with(cp=2),
    "cp ring": fixed(cp=4, cp_kind="ring"),
    "tp·cp ring": two_with(cp=3, cp_kind="ring"),
    "cp ring, queries travel": fixed(cp=4, cp_kind="ring", ring_pass="q"),
    "experts apart": lambda m: [{"tp": t, "attn_dp": 2, "expert_devices": 4, "ep": 4} for t in tp_choices(m, 2)],
    "experts apart·etp·pp": lambda m: [
        {"tp": t, "pp": 2, "expert_devices": 8, "ep": 4, "etp": 2} for t in tp_choices(m, 2)
    ],
    "attention pool": lambda m: [{"tp": t, "attn_pool": 3 * t, **some(m, ep=1)} for t in tp_choices(m, 2)],
    "attn_dp·ep, redundant": lambda m: [
        {"attn_dp": 4, "ep": 4, "redundant_experts": 4 - m.moe.num_experts % 4 if m.moe else 1}
    ],
    "tp·attn_dp·ep, nodes first": two_with(attn_dp=4, ep=4, ep_nodes=2),
    "tp·cp, placed by hand": lambda m: [
        {"tp": t, "cp": 2, "placements": {"self_attn.o_proj": {}, "lm_head": {"hidden": "tp"}}}
        for t in tp_choices(m, 2)
    ],
    "dcp": lambda m: [{"tp": t, "dcp": d} for t in copied_kv(m) for d in (2, 4, 3, 5, 71)],
    "dk": lambda m: [{"tp": 2 * t, "dk": 2} for t in (2, 5, 1)],
    "dk·attn_dp": lambda m: [{"tp": 4, "dk": 4, "attn_dp": 2}],
    "tp·pp·attn_dp·sp (and ep)": lambda m: [
        {"tp": t, "pp": 2, "attn_dp": 2, "sp": True, **some(m, ep=2)} for t in tp_choices(m, 2)
    ],
    "tp·pp·cp·attn_dp (and ep)": lambda m: [
        {"tp": t, "pp": 2, "cp": 2, "attn_dp": 2, **some(m, ep=4)} for t in tp_choices(m, 2)
    ],
    "pp·cp ring·attn_dp (and ep)": lambda m: [{"pp": 2, "cp": 2, "cp_kind": "ring", "attn_dp": 2, **some(m, ep=2)}],
    "pp interleaved": lambda m: [{"pp": 2, "virtual": 2}],
    "tp·pp interleaved·attn_dp (and ep)": lambda m: [
        {"tp": t, "pp": 3, "virtual": 2, "attn_dp": 2, **some(m, ep=2)} for t in tp_choices(m, 2)
    ],
    "pp·slices": lambda m: [{"pp": 2, "seq_slices": 3}],
    "tp·pp·cp·slices (and ep)": lambda m: [
        {"tp": t, "pp": 2, "cp": 2, "seq_slices": 3, **some(m, ep=2)} for t in tp_choices(m, 2)
    ],
    "tp·dcp·slices": lambda m: [{"tp": t, "dcp": d, "seq_slices": 2} for t in copied_kv(m) for d in (2, 3, 5, 71)],
    "tp·sp·pp interleaved·slices": two_with(sp=True, pp=2, virtual=2, seq_slices=3),
    "tp·dcp·attn_dp·pp": lambda m: [
        {"tp": t, "dcp": d, "attn_dp": 2, "pp": 2} for t in copied_kv(m) for d in (2, 3, 5, 71)
    ],
} | {
    "·".join(k for k in (*example, *example.get("axes", {})) if k != "axes"): fixed(**example)
    for axis in AXES for example in axis.examples
}  # fmt: skip
"""Name → degrees to try on a model: the first that it can take is proven; if none, the refusal is listed."""


@dataclass(frozen=True, slots=True)
class Line:
    """One graph, or one refusal (`refused` set). `seconds` are of the proof of both phases at both lengths."""

    model: str
    axes: str
    strategy: str
    phase: str = ""
    devices: int = 0
    tensors: int = 0
    error: float = 0.0
    seconds: float = 0.0
    digest: str = ""
    refused: str = ""
    failure: str = ""

    @property
    def ok(self) -> bool:
        return bool(self.refused) or (not self.failure and self.error <= TOLERANCE)

    def __str__(self) -> str:
        head = f"{self.model:18} {self.axes:24} {self.strategy:34}"
        if self.refused:
            return f"{head} refused: {self.refused}"
        tail = f"{self.phase:8} {self.devices:4d} devices  {self.tensors:6d} tensors  {self.error:.1e}  {self.seconds:6.2f} s"
        return f"{head} {tail}" + (f"  NOT PROVEN: {self.failure}" if self.failure else "")


def prove_cell(
    cell: tuple[str, str], lengths: Iterable[tuple[int, int]] = LENGTHS, decode_steps: int = 4
) -> list[Line]:
    """Both phases of one architecture under one axis set, or the reason why it has none."""
    name, axes = cell
    model, refusal, shown = load_model(name).model, "", ""
    for degrees in AXIS_SETS[axes](model):
        shown = shown or ", ".join(f"{k}={v}" for k, v in degrees.items())
        try:
            return _proven(name, axes, model, Strategy.model_validate(degrees), lengths, decode_steps)
        except ToolError as e:
            refusal = refusal or str(e)
    return [Line(name, axes, shown, refused=refusal)]


def _proven(
    name: str, axes: str, model: ModelSpec, s: Strategy, lengths: Iterable[tuple[int, int]], decode_steps: int
) -> list[Line]:
    start, runs = time.perf_counter(), []
    for batch, seq in lengths:
        runs.append(prove(model, s, batch_size=batch, seq_len=seq, decode_steps=decode_steps))
    seconds, out = time.perf_counter() - start, []
    for phase in ("prefill", "decode"):
        proofs = [r[phase] for r in runs]
        failure = next((f for p in proofs for f in p.failures), "")
        out.append(
            Line(
                name,
                axes,
                label(s),
                phase,
                proofs[0].devices_simulated,
                sum(p.tensors_compared for p in proofs),
                max(p.max_relative_error for p in proofs),
                seconds,
                proofs[0].digest,
                failure=failure,
            )
        )
    return out


def label(s: Strategy) -> str:
    """The strategy's label, with what the degrees do not say."""
    rest: list[str] = [s.cp_kind] if s.cp > 1 else []
    if s.layers_per_stage:
        rest.append("layers " + "+".join(map(str, s.layers_per_stage)))
    if s.moe_comm != "auto":
        rest.append(s.moe_comm)
    return " ".join([s.label(), *rest])


def cells(models: Iterable[str] = ARCHITECTURES, axis_sets: Iterable[str] = AXIS_SETS) -> list[tuple[str, str]]:
    return [(m, a) for m in models for a in axis_sets]


def run(
    todo: Sequence[tuple[str, str]], workers: int = 2, show: Callable[[Line], None] = lambda line: None
) -> list[Line]:
    """All cells, in order, over `workers` processes."""
    lines: list[Line] = []
    with ProcessPoolExecutor(workers) as pool:
        for found in pool.map(prove_cell, todo, chunksize=4):
            lines += found
            for line in found:
                show(line)
    return lines


# ------------------------------------------------------------------------------------------------------------------ page


def page(lines: Sequence[Line], seconds: float, workers: int, cpu_seconds: float = 0.0) -> str:
    graphs, refused = [x for x in lines if not x.refused], [x for x in lines if x.refused]
    worst = max(graphs, key=lambda x: x.error)
    structures = len({(x.model, x.digest) for x in graphs})
    machine = (
        f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}, {workers} processes"
    )
    text = [
        "# Proof catalogue",
        "",
        f"{datetime.date.today().isoformat()} · {machine} · {seconds:.0f} s ({cpu_seconds:.0f} s of CPU time) · "
        "written by `benchmarks/prove_all.py`",
        "",
        f"{len(graphs)} graphs ({structures} of them structurally distinct) of "
        f"{len({x.model for x in lines})} architectures under "
        f"{len({x.axes for x in lines})} axis sets, both phases: {sum(x.ok for x in graphs)} proven, "
        f"{sum(not x.ok for x in graphs)} not. "
        f"Largest relative error {worst.error:.1e} ({worst.model}, {worst.strategy}, {worst.phase}); the "
        f"bound is {TOLERANCE:.0e}. "
        f"{len(refused)} combinations are refused; they are listed below and are neither proven nor counted.",
        "",
        "Each graph is executed in float64 on all devices of one replica at reduced dims with the same "
        "residue classes, twice "
        f"(sequences, prompt: {' and '.join(map(str, LENGTHS))}), and every tensor of every device is "
        "compared with the "
        "unpartitioned model's; decode runs 4 steps on the caches that prefill left. Seconds are of both "
        "phases together.",
        "",
        "## What was proven where",
        "",
        *_matrix(lines),
        "",
        "## Refused",
        "",
        *_refusals(refused),
        "",
        "## Graphs",
        "",
        "| model | axes | strategy | phase | devices | tensors compared | max relative error | seconds |",
        "|---|---|---|---|--:|--:|--:|--:|",
        *(
            f"| {x.model} | {x.axes} | {x.strategy} | {x.phase} | {x.devices} | {x.tensors} | {x.error:.1e} "
            f"| {x.seconds:.2f} |"
            for x in graphs
        ),
    ]
    return "\n".join([*text, ""])


def _matrix(lines: Sequence[Line]) -> list[str]:
    models, by = list(dict.fromkeys(x.model for x in lines)), {(x.model, x.axes): x for x in lines}
    rows = [f"| axes | {' | '.join(models)} |", "|---|" + "--:|" * len(models)]
    for axes in dict.fromkeys(x.axes for x in lines):
        marks = [_mark(by.get((m, axes))) for m in models]
        rows.append(f"| {axes} | {' | '.join(marks)} |")
    return [*rows, "", "Number: devices simulated. –: refused. ✗: not proven."]


def _mark(line: Line | None) -> str:
    if line is None:
        return ""
    return "–" if line.refused else f"{line.devices}" if line.ok else "✗"


def _refusals(refused: Sequence[Line]) -> list[str]:
    """Per axis set; models that are refused for the same kind of reason share a line with the first one's words."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for x in refused:
        groups.setdefault((x.axes, re.sub(r"\d+|on \S+,", "", x.refused)), []).append(x)
    rows = [
        f"| {axes} | {', '.join(x.model for x in xs)} | {xs[0].strategy} | {xs[0].refused} |"
        for (axes, _), xs in groups.items()
    ]
    return (
        ["| axes | models | degrees (of the first) | reason (of the first) |", "|---|---|---|---|", *rows]
        if rows
        else ["None."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="prove every architecture under every axis set")
    parser.add_argument("--print", action="store_true", dest="print_only", help="do not write the page")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    args = parser.parse_args(argv)
    start = time.perf_counter()
    lines = run(cells(), args.workers, lambda line: print(line, flush=True))
    seconds = time.perf_counter() - start
    text = page(lines, seconds, args.workers, os.times().children_user)
    if not args.print_only:
        PAGE.write_text(text, encoding="utf-8")
    wrong = [x for x in lines if not x.ok]
    count = Counter("refused" if x.refused else "proven" if x.ok else "not proven" for x in lines)
    print(f"{dict(count)} in {seconds:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
