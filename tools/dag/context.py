"""The rules that no single file can answer: R13, R16, R17, R18, and that no weight was lost (R19)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from tools.dag.facts import index_set
from tools.dag.graph import Dag
from tools.dag.rules import RULES, RuleResult, Violation, result
from tools.oracle.prove import Proof
from tools.partition.lower import Program

BALANCE_BOUND = 1.05
"""max/mean over devices, where the conditions state no bound."""
Box = tuple[tuple[str, int, int, int], ...]


def run_rules(
    dags: Sequence[Dag], programs: Sequence[Program] = (), proofs: Sequence[Proof] = (), *,
    inputs_before: Mapping[str, str] | None = None, inputs_after: Mapping[str, str] | None = None,
    balance: Mapping[str, float] | None = None, balance_bound: float = BALANCE_BOUND,
    expected: Iterable[tuple[str, str, str]] | None = None,
) -> tuple[RuleResult, ...]:  # fmt: skip
    """R13, R16, R17, R18, R19 for all DAGs of a run. Violations of balance name no node, those of parts do.

    `programs[i]` is what `dags[i]` was built from; `expected` lists (model, strategy label, phase) that must be drawn,
    default: both phases of at least two strategies per model; `balance` gives max/mean per quantity ("time", "memory");
    `inputs_before/after` map paths to sha256. What is not given makes its rule not_decidable.
    """
    full = [d for d in dags if d.detail == "full"]
    return (
        _result("R13", _drawn(full, expected)),
        _result(
            "R16",
            [*(v for d in full for v in _parts(d)), *_balance(balance, balance_bound)],
            None if balance else "parts match; no predicted balance given",
        ),
        _result("R17", _proven(full, proofs) if proofs else [], None if proofs else "no proofs given"),
        _result(
            "R18",
            _untouched(inputs_before or {}, inputs_after or {}),
            None if inputs_before is not None else "no hashes given",
        ),
        _result(
            "R19",
            [v for d, p in zip(dags, programs, strict=False) for v in _weights(d, p)],
            None if programs else "no programs given",
        ),
    )


def _result(rule: str, found: list[Violation], undecided: str | None = None) -> RuleResult:
    title = RULES[rule].title
    if undecided and not found:
        return RuleResult(rule=rule, title=title, status="not_decidable", message=undecided)
    return result(rule, title, found)


def _drawn(dags: Sequence[Dag], expected: Iterable[tuple[str, str, str]] | None) -> list[Violation]:
    have = {(d.attrs["model"], d.attrs["strategy"], d.attrs["phase"]) for d in dags}
    if expected is not None:
        return [
            Violation(message=f"no DAG of {m} under {s}, {p}", fix="generate it")
            for m, s, p in expected
            if (m, s, p) not in have
        ]
    out = []
    for model in sorted({m for m, _, _ in have}):
        strategies = {s for m, s, _ in have if m == model}
        if len(strategies) < 2:
            out.append(
                Violation(
                    message=f"{model}: only {sorted(strategies)} is drawn, no baseline",
                    fix="draw the baseline (or the runner-up) too",
                )
            )
        for s in sorted(strategies):
            out += [
                Violation(message=f"{model} under {s}: no {p} DAG", fix="generate it")
                for p in ("prefill", "decode")
                if (model, s, p) not in have
            ]
    return out or ([] if have else [Violation(message="no full-detail DAG at all", fix="generate the DAGs")])


# ------------------------------------------------------------------------ parts


def _parts(dag: Dag) -> list[Violation]:
    """Shards of every weight tile it, once per copy; Σ copies = devices of the stage; every device hosts something."""
    stage_of = {g: (lane.stage, lane.index) for lane in dag.lanes for g in lane.devices}
    stage_devices: dict[int, set[int]] = defaultdict(set)
    for lane in dag.lanes:
        stage_devices[lane.stage] |= set(lane.devices)
    shards: dict[tuple[str, str], list[tuple[int, Box]]] = defaultdict(list)
    for n in dag.nodes:
        for weight, box in n.shards:
            shards[(n.step, weight)].append((n.devices[0], box))
    out: list[Violation] = []
    groups = [index_set(x.split(":")[1]) for x in dag.attrs.get("device_groups", "").split(";") if x]
    for (step, weight), held in shards.items():
        devices, hosts = stage_devices[stage_of[held[0][0]][0]], {g for g, _ in held}
        if groups:  # of several device groups, those that hold any of it
            devices = {g for group in groups if group & hosts for g in group & devices}
        out += _tiles(step, weight, held, devices)
    idle = set(stage_of) - {g for held in shards.values() for g, _ in held}
    idle -= {g for n in dag.nodes if n.caches for g in n.devices}
    if idle:
        out.append(
            Violation(
                message=f"GPU {sorted(idle)} hold no part of the model",
                node=f"GPU {min(idle)}",
                fix="use them or leave them out",
            )
        )
    return out


def _tiles(step: str, weight: str, held: Sequence[tuple[int, Box]], devices: set[int]) -> list[Violation]:
    copies = Counter(box for _, box in held)
    whole = prod(d[3] for d in held[0][1])
    covered = sum(prod(hi - lo for _, lo, hi, _ in box) for box in copies)
    out = []
    if covered != whole or _overlap(list(copies)):
        out.append(
            Violation(
                message=f"{weight} in {step}: {len(copies)} shards cover {covered} of {whole} elements",
                node=step,
                fix="shards must tile the tensor",
            )
        )
    if sum(copies.values()) != len(devices) or {g for g, _ in held} != devices:
        out.append(
            Violation(
                message=f"{weight} in {step}: {len(copies)} shards, {sum(copies.values())} parts, {len(devices)} GPUs",
                node=step,
                fix="parts must match the devices of the stage",
            )
        )
    return out


def _overlap(boxes: Sequence[Box]) -> bool:
    """Whether two boxes share an element; boxes are cut on a grid, so equal starts in every dim decide."""
    starts = Counter(tuple(lo for _, lo, hi, _ in b) for b in boxes if all(hi > lo for _, lo, hi, _ in b))
    return any(k > 1 for k in starts.values())


def _balance(balance: Mapping[str, float] | None, bound: float) -> list[Violation]:
    return [
        Violation(
            message=f"{what}: max/mean over devices is {ratio:.3f}, bound {bound:.3f}",
            fix="rebalance the stages or state a wider bound",
        )
        for what, ratio in (balance or {}).items()
        if ratio > bound + 1e-9
    ]


# ------------------------------------------------------------------------ proof and inputs


def _proven(dags: Sequence[Dag], proofs: Sequence[Proof]) -> list[Violation]:
    by_digest: dict[tuple[str, str], Proof] = {(p.digest, p.phase): p for p in proofs}
    out = []
    for d in dags:
        proof = by_digest.get((d.attrs["digest"], d.attrs["phase"]))
        if proof is None:
            out.append(
                Violation(
                    message=f"{d.title}: graph {d.attrs['digest']} was never executed",
                    fix="prove this strategy and phase",
                )
            )
        elif not proof.ok:
            out.append(
                Violation(
                    message=f"{d.title}: {proof.failures[0] if proof.failures else 'the proof failed'}",
                    fix="do not publish this graph",
                )
            )
    return out


def _untouched(before: Mapping[str, str], after: Mapping[str, str]) -> list[Violation]:
    return [
        Violation(message=f"{path} {'was changed' if path in after else 'is gone'}", fix="inputs are never written to")
        for path, sha in before.items()
        if after.get(path) != sha
    ]


def _weights(dag: Dag, program: Program) -> list[Violation]:
    """Every weight of every body of every stage is an attribute of some node."""
    if dag.detail == "stage":
        return []
    shown: dict[int, set[tuple[str, str]]] = defaultdict(set)
    stage_of = {g: lane.stage for lane in dag.lanes for g in lane.devices}
    for n in dag.nodes:
        if n.weights:
            shown[stage_of[n.devices[0]]] |= {(n.layers, p.tensor) for p in n.weights}
    out = []
    for stage in program.stages:
        drawn = {w for _, w in shown[stage_of[stage.ranks[0]]]}
        for body, _ in stage.bodies():
            out += [Violation(message=f"stage {stage.index}: {body.name} lost its weight {w.name}",
            fix="draw the operator that reads it")
                    for w in body.weights() if w.name not in drawn]  # fmt: skip
    return out
