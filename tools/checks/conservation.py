"""What devices hold and do, summed up, is the model: weights, multiply-adds, KV cache; nothing lost, nothing twice.

Counted with index sets over all ranks, independently of the oracle, and compared with the unpartitioned model and with
closed forms. Replication is accounted: a weight that c ranks keep counts c times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import gcd, isclose, prod

from tools.checks.base import Case, check, error
from tools.graph.build import all_sizes, embed_body, head_body, layer_body
from tools.graph.ir import Body, Op
from tools.memory import (
    Dtypes,
    cached_bytes,
    index_bytes,
    kv_bytes_per_token,
    parameters_by_role,
    rank_kv_bytes,
    shared_state_bytes_per_sequence,
    state_bytes_per_sequence,
)
from tools.partition.axes import sliced
from tools.partition.lower import PBody, POp, Program
from tools.shards import Box, Runs, box, boxes_of, tiling
from tools.spec.finding import Finding
from tools.spec.model import Attention, dtype_bytes
from tools.spec.strategy import Strategy

Lengths = Mapping[str, int]
PROBE = {"batch_size": 12, "seq_len": 24, "kv_len": 24}
"""Token dims that the sums are taken at: what is conserved at one size is at all, with the same layouts."""


@check("conservation")
def conservation(case: Case) -> Iterator[Finding]:
    for program in case.programs:
        sizes: Lengths = {k: int(v) for k, v in all_sizes(program.model, **PROBE).items()}
        yield from _weights(program, sizes)
        yield from _flops(program, sizes)
        yield from _kv(program, sizes)


def _weights(program: Program, sizes: Lengths) -> Iterator[Finding]:
    """Distinct shards of every weight tile it, and all bodies × repeats together are the model's parameters."""
    total = 0
    for stage in program.stages:
        for pbody, times in stage.bodies():
            for w in pbody.weights():
                shape = [sizes[d] for d in pbody.spec(w.name).dims]
                found = tiling(boxes_of(pbody, w.name, sizes, program.mesh), shape)
                if not found.exact:
                    words = f"{program.phase} {pbody.name}: shards of {w.name} cover {found.covered:.4g} of it"
                    yield error("weights-conserved", words, where=w.name, fix="a split that tiles the tensor once")
                total += round(found.covered * prod(shape)) * times
    want = sum(parameters_by_role(program.model, padded=True).values())
    if program.model.tie_word_embeddings:
        # The head reads the same table: on the same rank once in memory, here once per body that reads it.
        want += sizes[_table(embed_body(program.model))[0]] * sizes["hidden"]
    if total != want:
        words = f"{program.phase}: shards × repeats hold {total} weights, the model has {want}"
        yield error("parameters-conserved", words, held=total, model=want)


def _table(body: Body) -> tuple[str, ...]:
    return body.tensors["embed_tokens"].dims


def _flops(program: Program, sizes: Lengths) -> Iterator[Finding]:
    """Every multiply-add of every einsum is done, and done equally often; per pass they add up to the model's."""
    total = 0
    for stage in program.stages:
        for pbody, times in stage.bodies():
            for name, steps in _einsums(pbody).items():
                dims = list(dict.fromkeys(d for n in (*steps[0].inputs, steps[0].output) for d in pbody.spec(n).dims))
                boxes = [b for p in steps for b in work_boxes(pbody, p, {d: sizes[d] for d in dims}, program)]
                shape = [sizes[d] for d in dims]
                found = tiling(boxes, shape)
                if not found.exact:
                    done = f"ranks do {found.covered:.4g} of its work" if boxes else "its inputs lie differently"
                    yield error("flops-conserved", f"{program.phase} {pbody.name}.{name}: {done}", where=name)
                else:
                    total += 2 * prod(shape) * times
    want = model_flops(program, sizes)
    if total != want:
        yield error("flops-conserved", f"{program.phase}: devices do {total} distinct FLOPs, the model needs {want}")


def _einsums(pbody: PBody) -> dict[str, list[POp]]:
    """Einsums by the operator of the model they are (part of): a ring does one in several steps."""
    out: dict[str, list[POp]] = {}
    for p in pbody.ops:
        if p.op is not None and p.op.kind == "einsum":
            out.setdefault(p.op.name.split("#")[0], []).append(p)
    return out


def work_boxes(pbody: PBody, p: POp, lengths: Lengths, program: Program) -> list[Box]:
    """Index sets of the multiply-adds that each rank does; none when two operands place a dim differently."""
    boxes = []
    for rank in program.mesh.ranks(pbody.group(p.output)):
        held: dict[str, Runs] = {}
        for n in (*p.inputs, p.output):
            dims = {d: lengths[d] for d in pbody.spec(n).dims}
            for d, runs in zip(dims, box(pbody.layout(n), dims, program.mesh, rank, program.orders), strict=True):
                if held.setdefault(d, runs) != runs:
                    return []
        boxes.append(tuple(held[d] for d in lengths))
    return boxes


def model_flops(program: Program, sizes: Lengths) -> int:
    """2 · Π of all dims of every einsum of the unpartitioned model, experts counted densely."""
    model = program.model
    bodies = [embed_body(model), *(layer_body(model, k, program.phase) for k in model.layers()), head_body(model)]
    return sum(_op_flops(b, op, sizes) for b in bodies for op in b.ops if op.kind == "einsum")


def _op_flops(body: Body, op: Op, sizes: Lengths) -> int:
    return 2 * prod(sizes[d] for d in {d for n in (*op.inputs, op.output) for d in body.tensors[n].dims})


def _kv(program: Program, sizes: Lengths) -> Iterator[Finding]:
    """KV bytes over all devices = Σ over layers of kv_heads·(d_k + d_v) (or kv_lora + rope) × tokens × the strategy's copies."""
    s = program.strategy
    batch, context = sizes["batch_size"], sizes["kv_len"]
    held = sum(rank_kv_bytes(program, batch=batch, context=context).values())
    model, layers = program.model, [k for k in program.model.layers() if k.attends and k.kv != "borrowed"]
    once = kv_bytes_per_token(program.model, s.kv_dtype) * batch * context
    # An indexer's key is one for all heads, and on every rank like a latent.
    per_token = sum(
        cached_bytes(a, s.kv_dtype) * kv_copies(s, a)
        + index_bytes(model, k, s.kv_dtype) * kv_copies(s, a, one_key=True)
        for k, a in ((k, model.attention_of(k)) for k in layers)
    )
    want = per_token * batch * context
    # Heads over what slices leave of tp, sequences over attn_dp, copies over the rest; what all heads share, on every rank.
    taken = prod(d for x, d in sliced(s).values() if "lin_heads" in x.takes_from)
    act = Dtypes.of_strategy(program.model, s).plain
    shared = shared_state_bytes_per_sequence(program.model, act) * (s.tp // taken - 1)
    want += (state_bytes_per_sequence(program.model, act) + shared) * taken * batch * s.cp
    if not isclose(held, want, rel_tol=1e-12):
        words = (
            f"{program.phase}: devices hold {held:.6g} B of KV for {batch} × {context} tokens, the model needs "
            f"{want:.6g} B, {once:.6g} B in one copy"
        )
        yield error("kv-conserved", words, cause="kv", held=held, model=want, elem_bytes=dtype_bytes(s.kv_dtype))


def kv_copies(s: Strategy, a: Attention, *, one_key: bool = False) -> float:
    """Ranks of a stage over the distinct parts of its cache: sequences over attn_dp, KV heads over tp (d_k over dk) and then over
    what cp exchanges for heads, positions over dcp or over a ring's cp. From the degrees, not from layouts. `one_key`: of a key
    that all heads share."""
    assert s.attn_dp is not None
    kv_heads = 1 if a.mla or one_key else a.num_kv_heads
    if s.attn_pool:
        ranks = s.attention_group + s.attn_pool
        return gcd(ranks, a.num_heads) if a.mla else 1  # heads over what divides them, positions over the rest
    slices = sliced(s).values()
    groups = s.tp // prod(d for x, d in slices if "heads" in x.takes_from)
    sliced_dk = 1 if one_key else prod(d for x, d in slices if x.cache)  # each head's d_k over dk of the ranks
    by_heads = min(groups, kv_heads) * sliced_dk
    by_positions = s.dcp
    if s.cp > 1 and s.cp_kind == "ring":
        by_positions *= s.cp
    elif a.mla is None and not one_key:
        by_heads *= gcd(s.cp, max(kv_heads // s.tp, 1))
    return s.attention_group / (s.attn_dp * by_heads * by_positions)
