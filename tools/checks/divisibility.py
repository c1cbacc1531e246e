"""Every split dim against its degree: what does not divide is uneven, what is smaller leaves ranks empty."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tools.checks.base import Case, check, error, info, warning
from tools.graph.build import model_sizes
from tools.graph.heads import KV_HEADS
from tools.partition.layout import positions
from tools.partition.lower import Program
from tools.shards import axis_name
from tools.spec.finding import Finding

WHOLE_HEADS = frozenset({"heads", *KV_HEADS})
"""Dims that engines and kernels need even: a rank's query heads must find their KV heads on the same rank."""
TOKENS = frozenset({"batch_size", "seq_len", "kv_len"})


@check("divisibility")
def divisibility(case: Case) -> Iterator[Finding]:
    for program in case.programs:
        yield from _weights(program)
        yield from _tokens(program)


def _splits(program: Program, kinds: frozenset[str]) -> dict[tuple[str, tuple[str, ...]], str]:
    """(dim, axes) of every split of tensors of these kinds, with one tensor that has it."""
    out: dict[tuple[str, tuple[str, ...]], str] = {}
    for stage in program.stages:
        for pbody, _ in stage.bodies():
            for name, t in pbody.tensors.items():
                if pbody.spec(name).kind in kinds:
                    for split in t.layout.split:
                        out.setdefault(split, name)
    return out


def _weights(program: Program) -> Iterator[Finding]:
    sizes, mesh = model_sizes(program.model), program.mesh
    for (dim, axes), name in _splits(program, frozenset({"weight"})).items():
        n, degree = int(sizes[dim]), int(mesh.degree(axes))
        if n % degree == 0:
            continue
        parts = sorted({len(positions(n, axes, mesh, r)) for r in range(int(mesh.size))}, reverse=True)
        words = f"{dim}({n}) % {axis_name(mesh, axes, dim)} = {n % degree}: ranks hold {' or '.join(map(str, parts))}"
        fix = f"a degree among the divisors of {n}"
        common: dict[str, Any] = {"where": name, "fix": fix, "size": n, "degree": degree}
        if dim in WHOLE_HEADS:
            yield error("uneven-heads", words, **common)
        elif 0 in parts:
            yield warning("empty-shard", f"{words}, {degree - n} of {degree} ranks hold nothing", **common)
        else:
            yield warning("uneven-shard", words, cause="balance", **common)


def _tokens(program: Program) -> Iterator[Finding]:
    """Sequences that do not deal out evenly over attention-data-parallel ranks; sizes come with the program."""
    if "batch_size" not in program.sizes:
        return
    n = int(program.sizes["batch_size"])
    for (dim, axes), _ in _splits(program, frozenset({"index", "activation"})).items():
        degree = int(program.mesh.degree(axes))
        if dim != "batch_size" or n % degree == 0:
            continue
        words = f"{program.phase}: batch_size({n}) % {axis_name(program.mesh, axes, dim)} = {n % degree}"
        if n < degree:
            words += f": {degree - n} of {degree} ranks have no sequence"
        yield info("uneven-batch", words, cause="balance", fix=f"a batch that is a multiple of {degree}", size=n)
