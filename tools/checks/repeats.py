"""Σ repeats × body = num_hidden_layers, per stage and in total; every layer is of the kind the model says."""

from __future__ import annotations

from collections.abc import Iterator

from tools.checks.base import Case, check, error
from tools.graph.build import embed_body, head_body, layer_body
from tools.partition.lower import Program, Stage
from tools.spec.finding import Finding


@check("repeats")
def repeats(case: Case) -> Iterator[Finding]:
    for program in case.programs:
        yield from _total(program)
        for stage in program.stages:
            yield from _stage(program, stage)
        yield from _ends(program)


def _total(program: Program) -> Iterator[Finding]:
    model, seen = program.model, [i for s in program.stages for r in s.runs for i in r.layers]
    if seen != list(range(model.num_hidden_layers)):
        missing = sorted(set(range(model.num_hidden_layers)) - set(seen))
        words = f"{program.phase}: stages hold {len(seen)} layers, the model has {model.num_hidden_layers}"
        detail = f"; missing {missing[:5]}" if missing else "; some twice or out of order"
        yield error("repeats", words + detail, layers=len(seen))
    drawn = sum(r.repeat * len(r.bodies) for s in program.stages for r in s.runs)
    if drawn != model.num_hidden_layers:
        words = f"{program.phase}: Σ repeats × body = {drawn}, the model has {model.num_hidden_layers} layers"
        yield error("repeats", words, layers=drawn)


def _stage(program: Program, stage: Stage) -> Iterator[Finding]:
    where = f"{program.phase} stage {stage.index}"
    stated = program.strategy.layers_per_stage
    drawn = sum(r.repeat * len(r.bodies) for r in stage.runs)
    if stated is not None and drawn != stated[stage.index]:
        yield error("repeats", f"{where}: {drawn} layers drawn, the strategy gives it {stated[stage.index]}")
    for run in stage.runs:
        if run.repeat * len(run.bodies) != len(run.layers):
            words = f"{where}: {run.repeat} repeats × {len(run.bodies)} bodies for {len(run.layers)} layers"
            yield error("repeats", words)
        for i, layer in enumerate(run.layers):
            if layer >= program.model.num_hidden_layers:
                continue
            body = run.bodies[i % len(run.bodies)].body
            want = layer_body(program.model, program.model.layer_kind(layer), program.phase)
            if body.name != want.name or {w.name for w in body.weights()} != {w.name for w in want.weights()}:
                yield error("layer-kind", f"{where}: layer {layer} is drawn as {body.name}, the model has {want.name}")


def _ends(program: Program) -> Iterator[Finding]:
    """Embedding on the first stage, head on the last, nowhere else; every weight of the model appears."""
    last = len(program.stages) - 1
    for stage in program.stages:
        for what, there, at in (("embedding", stage.embed, 0), ("head", stage.head, last)):
            if (there is not None) != (stage.index == at):
                have = "has" if there is not None else "lacks"
                yield error("ends", f"{program.phase} stage {stage.index} {have} the {what}")
    drawn = {w.name for s in program.stages for b, _ in s.bodies() for w in b.weights()}
    model = program.model
    bodies = [embed_body(model), head_body(model), *(layer_body(model, k, program.phase) for k in set(model.layers()))]
    lost = sorted({w.name for b in bodies for w in b.weights()} - drawn)
    if lost:
        yield error("weights-missing", f"{program.phase}: no device holds {', '.join(lost[:5])}")
