"""The text of docs/strategies.md."""

from __future__ import annotations

from collections.abc import Sequence

from knowledge.retrieve import builtin_passages
from strategies_page.examples import CONTEXT, ENTRIES, SEQ, Entry
from strategies_page.graphs import (
    collectives,
    crossing,
    devices_of,
    layer_of,
    pools_of,
    predicted,
    program_of,
    strategies_of,
    strategy_of,
    travelled,
)
from tools.dag.build import COMM_WORDS
from tools.partition.lower import (
    PBody,
    POp,
    Program,
    local_dims,
    placement_of,
)
from tools.partition.mesh import ATTENTION
from tools.partition.placement import Placement
from tools.spec.strategy import Strategy

FLAGS = ("tp", "pp", "ep", "etp", "dp", "attn_dp", "cp", "sp")
"""Degrees that `meshwright dag` takes as options; the others are said in a file."""


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
