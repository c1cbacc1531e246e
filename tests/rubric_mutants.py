"""Seeded flaws of a real run: of the record that the rubric judges, and of the files that lie in its directory.

A `Kind` of flaw knows all the places of a run that it can be seeded at; every (kind, place) is one mutant. `lowers` is
the criterion that has to fall.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tools.rubric import Reference, RunRecord
from tools.rubric.constraints import STANDING, judge_one
from tools.rubric.record import Constraint, DagReport, GraphProof
from tools.rubric.understand import REACHES
from tools.spec.conditions import Fact
from tools.spec.finding import Finding
from tools.spec.plan import Plan

Mutants = Iterator[tuple[str, RunRecord]]
"""(place, the spoiled record)."""


@dataclass(frozen=True, slots=True)
class Kind:
    lowers: str
    seeded: Callable[[RunRecord], Mutants]


KINDS: dict[str, Kind] = {}


def flaw(lowers: str) -> Callable[[Callable[[RunRecord], Mutants]], Callable[[RunRecord], Mutants]]:
    def register(function: Callable[[RunRecord], Mutants]) -> Callable[[RunRecord], Mutants]:
        KINDS[f"{lowers}: {function.__name__.replace('_', ' ')}"] = Kind(lowers, function)
        return function

    return register


def changed(r: RunRecord, **fields: Any) -> RunRecord:
    return r.model_copy(update=fields)


def planned(r: RunRecord, **fields: Any) -> RunRecord:
    return changed(r, plan=r.plan.model_copy(update=fields))


def estimated(r: RunRecord, **fields: Any) -> RunRecord:
    assert r.plan.estimate is not None
    return planned(r, estimate=r.plan.estimate.model_copy(update=fields))


def replaced(items: tuple[Any, ...], i: int, **fields: Any) -> tuple[Any, ...]:
    return (*items[:i], items[i].model_copy(update=fields), *items[i + 1 :])


def without(items: tuple[Any, ...], i: int) -> tuple[Any, ...]:
    return (*items[:i], *items[i + 1 :])


def proven(plan: Plan) -> bool:
    return plan.status == "proven" and plan.estimate is not None and plan.strategy is not None


# ------------------------------------------------------------------------------------------------------------- rigor

WRONG_PROOFS: tuple[dict[str, Any], ...] = (
    {"ok": False, "max_relative_error": 0.2, "failures": ("o_proj differs",)}, {"max_relative_error": 1e-6},
    {"max_relative_error": float("nan")}, {"max_relative_error": float("inf")}, {"tensors_compared": 0},
)  # fmt: skip


@flaw("rigor")
def a_proof_that_does_not_hold(r: RunRecord) -> Mutants:
    if r.plan.status == "proven":
        for i, p in enumerate(r.proofs):
            for wrong in WRONG_PROOFS:
                spoiled = GraphProof(role=p.role, proof=p.proof.model_copy(update=wrong))
                proofs = (*r.proofs[:i], spoiled, *r.proofs[i + 1 :])
                yield f"{p.role} {p.proof.phase} {wrong}", changed(r, proofs=proofs)


@flaw("rigor")
def a_graph_without_a_proof(r: RunRecord) -> Mutants:
    if r.plan.status == "proven":
        for i, p in enumerate(r.proofs):
            yield f"{p.role} {p.proof.phase}", changed(r, proofs=without(r.proofs, i))


@flaw("rigor")
def another_graph_drawn_than_proven(r: RunRecord) -> Mutants:
    for i, d in enumerate(r.dags if r.plan.status == "proven" else ()):
        yield d.dot, changed(r, dags=replaced(r.dags, i, digest="0" * 16))


def broken(d: DagReport, rule: str) -> dict[str, Any]:
    found = Finding(code=rule, severity="error", cause="dag", where=d.dot, message=f"{rule} is broken")
    return {"passed": tuple(x for x in d.passed if x != rule), "findings": (*d.findings, found)}


@flaw("rigor")
def a_broken_rule_of_a_dag(r: RunRecord) -> Mutants:
    for i, d in enumerate(r.dags):
        for rule in d.passed:
            yield f"{d.dot} {rule}", changed(r, dags=replaced(r.dags, i, **broken(d, rule)))


@flaw("rigor")
def a_failed_check(r: RunRecord) -> Mutants:
    for cause in ("memory", "shape", "engine", "oracle", "dag", "balance", "network"):
        found = Finding(code=f"{cause}-check", severity="error", cause=cause, message=f"{cause} is wrong")
        yield cause, planned(r, findings=(*r.plan.findings, found))


@flaw("rigor")
def a_launch_file_that_is_an_error(r: RunRecord) -> Mutants:
    found = Finding(code="flag", severity="error", cause="engine", message="--no-such-flag")
    yield "launch", changed(r, launch_findings=(found,))


@flaw("rigor")
def a_stage_beyond_its_memory(r: RunRecord) -> Mutants:
    if proven(r.plan):
        for i, s in enumerate(r.plan.estimate.memory):
            for part in ("weights_bytes", "kv_bytes", "activation_bytes"):
                more = {part: getattr(s, part) + s.free_bytes + 1.0}
                yield f"{part} of stage {i}", estimated(r, memory=replaced(r.plan.estimate.memory, i, **more))


@flaw("rigor")
def a_layer_lost_or_twice(r: RunRecord) -> Mutants:
    if proven(r.plan):
        memory = r.plan.estimate.memory
        for i, s in enumerate(memory):
            for n in (s.layers - 1, s.layers + 1):
                yield f"{n} layers on stage {i}", estimated(r, memory=replaced(memory, i, layers=n))


@flaw("rigor")
def a_batch_that_does_not_fit(r: RunRecord) -> Mutants:
    if proven(r.plan):
        yield "max_batch", estimated(r, max_batch=r.plan.estimate.batch - 1)
        yield "batch", estimated(r, batch=r.plan.estimate.max_batch + 1)


@flaw("rigor")
def a_wrong_number_of_devices(r: RunRecord) -> Mutants:
    if proven(r.plan):
        for n in (0, r.plan.num_devices - 1, r.plan.num_devices + 1, 2 * r.plan.num_devices):
            yield str(n), planned(r, num_devices=n)


@flaw("rigor")
def a_degree_that_the_rest_does_not_know(r: RunRecord) -> Mutants:
    if proven(r.plan):
        for axis in ("tp", "pp", "dp", "attn_dp"):
            value = 2 * (getattr(r.plan.strategy, axis) or 1)
            try:
                strategy = type(r.plan.strategy).model_validate(
                    {**r.plan.strategy.model_dump(exclude={"etp", "layers_per_stage"}), axis: value}
                )
            except ValueError:
                continue
            yield f"{axis}={value}", planned(r, strategy=strategy)


@flaw("rigor")
def a_rank_map_that_is_none(r: RunRecord) -> Mutants:
    for i, row in enumerate(r.plan.rank_map):
        rest = r.plan.rank_map
        yield f"row {i} gone", planned(r, rank_map=without(rest, i))
        for ranks in (row["ranks"][:-1], [*row["ranks"], row["ranks"][0]], [*row["ranks"][:-1], 999]):
            yield f"row {i} {ranks}", planned(r, rank_map=(*rest[:i], {**row, "ranks": ranks}, *rest[i + 1 :]))


@flaw("rigor")
def more_devices_than_there_are(r: RunRecord) -> Mutants:
    if proven(r.plan) and r.plan.deployment.cluster.num_devices is not None:
        d = r.plan.deployment
        fewer = d.cluster.model_copy(update={"num_devices": r.plan.num_devices - 1})
        yield "cluster", planned(r, deployment=d.model_copy(update={"cluster": fewer}))


@flaw("rigor")
def a_verdict_that_its_own_number_contradicts(r: RunRecord) -> Mutants:
    if proven(r.plan):
        for i, p in enumerate(r.plan.estimate.predictions):
            for status in {"met", "at_risk", "broken"} - {p.status} if p.limit else ():
                told = replaced(r.plan.estimate.predictions, i, status=status)
                yield f"{p.metric} {p.stat} {status}", estimated(r, predictions=told)


@flaw("rigor")
def parts_that_do_not_add_up(r: RunRecord) -> Mutants:
    for i, p in enumerate(r.plan.parts):
        yield f"{p.module}.{p.weight} matches", planned(r, parts=replaced(r.plan.parts, i, matches=False))
        if p.devices > 1:
            more = replaced(r.plan.parts, i, num_shards=1, copies=p.devices + 1)
            yield f"{p.module}.{p.weight} copies", planned(r, parts=more)


@flaw("rigor")
def nothing_counted_or_computed(r: RunRecord) -> Mutants:
    if proven(r.plan):
        yield "parts", planned(r, parts=())
        yield "memory", estimated(r, memory=())
        yield "strategy", planned(r, strategy=None)


@flaw("rigor")
def an_infeasible_verdict_that_argues_nothing(r: RunRecord) -> Mutants:
    verdict = r.plan.infeasible
    if verdict is not None:
        yield "none", planned(r, infeasible=None)
        yield "searched", planned(r, infeasible=verdict.model_copy(update={"num_searched": 0}))
        empty = verdict.binding.model_copy(update={"values": {}})
        yield "binding", planned(r, infeasible=verdict.model_copy(update={"binding": empty}))


# -------------------------------------------------------------------------------------------------------- understand


def facts(r: RunRecord, i: int, **fields: Any) -> RunRecord:
    conditions = r.conditions
    return changed(r, conditions=conditions.model_copy(update={"facts": replaced(conditions.facts, i, **fields)}))


def quoted(r: RunRecord) -> Iterator[tuple[int, Fact]]:
    yield from ((i, f) for i, f in enumerate(r.conditions.facts) if f.evidence is not None)


@flaw("understand")
def a_quote_that_is_not_there(r: RunRecord) -> Mutants:
    for i, f in quoted(r):
        e = f.evidence
        yield f"{f.path} words", facts(r, i, evidence=e.model_copy(update={"quote": f"{e.quote} (sic)"}))
        yield f"{f.path} file", facts(r, i, evidence=e.model_copy(update={"file": "other.md"}))
        yield f"{f.path} line", facts(r, i, evidence=e.model_copy(update={"line": 9999}))
        yield f"{f.path} empty", facts(r, i, evidence=e.model_copy(update={"quote": " "}))


@flaw("understand")
def stated_yet_without_a_quote(r: RunRecord) -> Mutants:
    for i, f in quoted(r):
        if f.origin == "stated":
            yield f.path, facts(r, i, evidence=None)


@flaw("understand")
def a_fact_that_the_plan_does_not_use(r: RunRecord) -> Mutants:
    contested = {p for c in r.conditions.conflicts for p in (c.path, *c.paths)}
    for i, f in quoted(r):
        carried = f.path in REACHES or (f.path.startswith("requirements.") and f.path.split(".")[-1] != "counts")
        if carried and f.path not in contested and isinstance(f.value, int | float) and f.path.count(".") < 3:
            for value in (10 * f.value, f.value + 1, f.value / 1000):
                yield f"{f.path} {value}", facts(r, i, value=value)


@flaw("understand")
def a_gate_dropped_or_loosened(r: RunRecord) -> Mutants:
    d = r.plan.deployment
    gates = d.requirements.gates
    for i, g in enumerate(gates):
        for name, left in (("gone", without(gates, i)), ("tenfold", replaced(gates, i, limit=10 * g.limit))):
            requirements = d.requirements.model_copy(update={"gates": left})
            deployment = d.model_copy(update={"requirements": requirements})
            yield f"{g.metric} {name}", planned(r, deployment=deployment)


@flaw("understand")
def a_gap_that_no_assumption_names(r: RunRecord) -> Mutants:
    for path in ("workload.osl_spread", "hardware.rack", "engine.limits.max_loras"):
        yield path, changed(r, conditions=r.conditions.model_copy(update={"missing": (*r.conditions.missing, path)}))


@flaw("understand")
def a_section_that_nobody_read(r: RunRecord) -> Mutants:
    """A further section or statement in an input, of which no fact, conflict or dismissal tells."""
    for i, f in enumerate(r.inputs):
        for more in ("\n## Rollout\n- 12 weeks, 3 phases\n", "\nThe budget is 400 kW per rack.\n"):
            yield f"{f.path} {more.strip()[:12]}", changed(r, inputs=replaced(r.inputs, i, text=f.text + more))


@flaw("understand")
def nothing_read_at_all(r: RunRecord) -> Mutants:
    yield "facts", changed(r, conditions=r.conditions.model_copy(update={"facts": (), "ignored": ()}))
    yield "inputs", changed(r, inputs=())


# ---------------------------------------------------------------------------------------------------------- attitude


@flaw("attitude")
def an_input_changed_by_the_run(r: RunRecord) -> Mutants:
    for f in r.inputs:
        yield f"{f.path} changed", changed(r, inputs_after={**r.inputs_after, f.path: "0" * 64})
        yield f"{f.path} gone", changed(r, inputs_after={**r.inputs_after, f.path: ""})


@flaw("attitude")
def a_dag_that_is_cyclic_or_disconnected(r: RunRecord) -> Mutants:
    for i, d in enumerate(r.dags):
        for rule in ("R06", "R14"):
            yield f"{d.dot} {rule}", changed(r, dags=replaced(r.dags, i, **broken(d, rule)))


@flaw("attitude")
def an_uneven_load(r: RunRecord) -> Mutants:
    if proven(r.plan):
        told = tuple(f for f in r.plan.findings if f.cause != "balance")
        for what in ("time_imbalance", "memory_imbalance"):
            yield what, planned(estimated(r, **{what: 1.6}), findings=told)


@flaw("attitude")
def idle_devices_without_a_word(r: RunRecord) -> Mutants:
    if proven(r.plan) and r.plan.deployment.cluster.num_devices is not None:
        yield "half", planned(r, num_devices=r.plan.num_devices // 2)
        yield "one less", planned(r, num_devices=r.plan.num_devices - 1)


@flaw("attitude")
def a_limit_that_is_not_met(r: RunRecord) -> Mutants:
    if proven(r.plan):
        for i, p in enumerate(r.plan.estimate.predictions):
            if p.limit:
                yield f"{p.metric} {p.stat}", estimated(r, predictions=beyond(r, i, 1.01))


@flaw("attitude")
def parts_that_match_no_devices(r: RunRecord) -> Mutants:
    for i, p in enumerate(r.plan.parts):
        yield f"{p.module}.{p.weight}", planned(r, parts=replaced(r.plan.parts, i, matches=False))


@flaw("attitude")
def no_dot_of_the_baseline(r: RunRecord) -> Mutants:
    for i, d in enumerate(r.deliverables if r.plan.status == "proven" else ()):
        if d.kind == "dag_dot" and ".schedule." not in d.path:  # a view of the schedule is extra
            yield d.path, changed(r, deliverables=without(r.deliverables, i))


@flaw("attitude")
def a_path_that_is_not_relative(r: RunRecord) -> Mutants:
    for i, d in enumerate(r.deliverables):
        for path in (
            f"/home/me/{d.path}",
            f"../{d.path}",
            d.path.replace("/", "\\") if "/" in d.path else f"\\{d.path}",
        ):
            yield path, changed(r, deliverables=replaced(r.deliverables, i, path=path))


@flaw("attitude")
def a_demand_of_the_task_that_is_broken(r: RunRecord) -> Mutants:
    """Each rule that some demand of a task prompt names, broken on one DAG."""
    from tests.test_rubric import DAG_DEMANDS

    demands = tuple(Constraint(text=t) for t in (*STANDING, *DAG_DEMANDS))
    asked = changed(r, constraints=demands)
    for demand, rule in DAG_DEMANDS.items():
        if r.dags and judge_one(Constraint(text=demand), asked).status == "obeyed":
            yield f"{rule} {demand[:20]}", changed(asked, dags=replaced(r.dags, 0, **broken(r.dags[0], rule)))


# ---------------------------------------------------------------------------------------------------------- accuracy


def beyond(r: RunRecord, i: int, share: float) -> tuple[Any, ...]:
    """The predictions with number `i` at `share` of its limit, on the wrong side for a share above 1."""
    p = r.plan.estimate.predictions[i]
    higher = p.metric.startswith(("throughput", "request_rate"))
    value = p.limit / share if higher else p.limit * share
    margin = value / p.limit - 1 if higher else 1 - value / p.limit
    status = "broken" if margin < 0 else "at_risk" if margin < p.band else "met"
    return replaced(r.plan.estimate.predictions, i, value=value, margin=margin, status=status)


@flaw("accuracy")
def a_requirement_broken_or_inside_its_band(r: RunRecord) -> Mutants:
    if proven(r.plan):
        for i, p in enumerate(r.plan.estimate.predictions):
            for share in (3.0, 1.2, 1.001, 0.999, 0.95) if p.limit else ():
                yield f"{p.metric} {p.stat} {share}", estimated(r, predictions=beyond(r, i, share))


@flaw("accuracy")
def a_requirement_that_nothing_was_predicted_for(r: RunRecord) -> Mutants:
    if proven(r.plan):
        for i, p in enumerate(r.plan.estimate.predictions):
            if p.limit:
                yield f"{p.metric} {p.stat}", estimated(r, predictions=without(r.plan.estimate.predictions, i))


@flaw("accuracy")
def a_limit_tightened_below_the_prediction(r: RunRecord) -> Mutants:
    if proven(r.plan):
        d = r.plan.deployment
        for i, g in enumerate(d.requirements.gates):
            gates = replaced(d.requirements.gates, i, limit=g.limit / 1000)
            requirements = d.requirements.model_copy(update={"gates": gates})
            yield g.metric, planned(r, deployment=d.model_copy(update={"requirements": requirements}))


@flaw("accuracy")
def an_infeasible_verdict_without_a_way_out(r: RunRecord) -> Mutants:
    verdict = r.plan.infeasible
    if verdict is not None:
        yield "nearest", planned(r, infeasible=verdict.model_copy(update={"nearest": ()}))
        yield "untried", changed(r, proofs=tuple(p for p in r.proofs if p.role != "nearest"))
        failed = tuple(
            GraphProof(role=p.role, proof=p.proof.model_copy(update={"ok": p.role != "nearest"})) for p in r.proofs
        )
        yield "wrong", changed(r, proofs=failed)


# ------------------------------------------------------------------------------------------------------- performance


def referred(r: RunRecord, **fields: Any) -> RunRecord:
    assert r.reference is not None
    return changed(r, reference=r.reference.model_copy(update=fields))


@flaw("performance")
def a_better_strategy_left_lying(r: RunRecord) -> Mutants:
    ref = r.reference
    if ref is not None and ref.plan_value is not None:
        for share in (1.02, 1.05, 1.5, 10.0):
            up = (share > 1) == (ref.plan_value > 0)
            best = (
                ref.plan_value + (share - 1)
                if r.plan.objective == "knee"
                else ref.plan_value * (share if up else 1 / share)
            )
            if not ref.higher_is_better:
                best = 2 * ref.plan_value - best if r.plan.objective == "knee" else ref.plan_value / share
            yield f"{share}", referred(r, objective_value=best)


@flaw("performance")
def a_reference_that_says_nothing(r: RunRecord) -> Mutants:
    yield "none", changed(r, reference=None)
    yield "empty", referred(r, num_evaluated=0)
    if r.plan.status == "proven":
        yield "plan unpriced", referred(r, plan_value=None)
        yield "nothing feasible", referred(r, objective_value=None)
    else:
        found = Reference(objective_value=1.0, plan_value=None, strategy="tp4", num_evaluated=9, method="brute force")
        yield "a way found", changed(r, reference=found)


# ------------------------------------------------------------------------------------------------------------ result


@flaw("result")
def a_deliverable_that_is_gone_or_empty(r: RunRecord) -> Mutants:
    kinds = [d.kind for d in r.deliverables]
    for i, d in enumerate(r.deliverables):
        needed = (
            d.role in ("plan", "baseline", "runner_up") and r.plan.status == "proven" and ".schedule." not in d.path
        )
        if d.kind != "events" and (needed or kinds.count(d.kind) == 1):
            yield f"{d.path} gone", changed(r, deliverables=without(r.deliverables, i))
        if d.kind != "events":
            yield f"{d.path} empty", changed(r, deliverables=replaced(r.deliverables, i, num_bytes=0))


@flaw("result")
def a_deliverable_outside_the_folder(r: RunRecord) -> Mutants:
    for i, d in enumerate(r.deliverables):
        for path in (f"/srv/{d.path}", f"../{d.path}"):
            yield path, changed(r, deliverables=replaced(r.deliverables, i, path=path))


@flaw("result")
def a_file_that_is_not_what_was_written(r: RunRecord) -> Mutants:
    for d in r.deliverables:
        yield d.path, changed(r, flaws={d.path: "line 1 differs"})


# ------------------------------------------------------------------------------------------------- files of a run

Texts = Mapping[str, str]
"""Path within the run directory → text."""
FileMutants = Iterator[tuple[str, str, str]]
"""(place, path, the spoiled text)."""


@dataclass(frozen=True, slots=True)
class FileKind:
    lowers: str
    seeded: Callable[[Texts], FileMutants]


FILE_KINDS: dict[str, FileKind] = {}


def spoils(lowers: str) -> Callable[[Callable[[Texts], FileMutants]], Callable[[Texts], FileMutants]]:
    def register(function: Callable[[Texts], FileMutants]) -> Callable[[Texts], FileMutants]:
        FILE_KINDS[f"{lowers}: {function.__name__.replace('_', ' ')}"] = FileKind(lowers, function)
        return function

    return register


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*path, key))
    if not isinstance(value, dict | list):
        yield path, value


def put(value: Any, path: tuple[Any, ...], leaf: Any) -> Any:
    document = json.loads(json.dumps(value))
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = leaf
    return document


def dumped(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def spread(items: list[Any], most: int) -> list[Any]:
    """At most `most` of `items`, evenly over them."""
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else items


@spoils("rigor")
def a_number_of_the_plan_half_as_large_again(texts: Texts) -> FileMutants:
    plan = json.loads(texts["plan.json"])
    # Which findings the reader or a check raised is judged by what they say, not by their numbers.
    numbers = [
        (p, v) for p, v in leaves(plan)
        if isinstance(v, float) and v and p[0] in ("estimate", "baseline", "runner_up", "phases", "search", "what_ifs")
    ]  # fmt: skip
    for path, value in spread(numbers, 24):
        yield ".".join(map(str, path)), "plan.json", dumped(put(plan, path, 1.5 * value))


@spoils("rigor")
def a_degree_of_the_plan(texts: Texts) -> FileMutants:
    plan = json.loads(texts["plan.json"])
    if plan["strategy"]:
        for name in ("tp", "dp", "pp"):
            yield name, "plan.json", dumped(put(plan, ("strategy", name), 2 * plan["strategy"][name]))
        yield "dtype", "plan.json", dumped(put(plan, ("strategy", "weight_dtype"), "int4"))


def lines_of(texts: Texts, folder: str, suffix: str) -> Iterator[tuple[str, list[str]]]:
    for path in sorted(p for p in texts if p.startswith(folder) and p.endswith(suffix)):
        yield path, texts[path].splitlines(keepends=True)


def dot_edit(pattern: str, edit: Callable[[re.Match[str]], str], most: int = 3) -> Callable[[Texts], FileMutants]:
    """The lines of each DOT file that match, `most` of them edited one at a time."""

    def seeded(texts: Texts) -> FileMutants:
        for path, lines in lines_of(texts, "dag/", ".dot"):
            at = [i for i, line in enumerate(lines) if re.search(pattern, line)]
            for i in spread(at, most):
                text = "".join((*lines[:i], re.sub(pattern, edit, lines[i], count=1), *lines[i + 1 :]))
                yield f"{path}:{i + 1} {lines[i].strip()[:80]}", path, text

    return seeded


def a_layer_less(texts: Texts) -> FileMutants:
    """A run of layers that ends one layer early, everywhere in the file."""
    for path, lines in lines_of(texts, "dag/", ".dot"):
        text = "".join(lines)
        if run := re.search(r'label="layers (\d+)-(\d+) · × (\d+)"', text):
            first, last, n = (int(x) for x in run.groups())
            text = re.sub(rf"(layers[ .]{first}-|layer_indices=\"{first}-){last}\b", rf"\g<1>{last - 1}", text)
            yield path, path, re.sub(rf"(× |repeats=){n}\b", rf"\g<1>{n - 1}", text)


EDGE = r"^\s*(\w+) -> (\w+).*$"
DOT_EDITS: dict[str, Callable[[Texts], FileMutants]] = {
    "an edge taken out": dot_edit(r"^\s*s0_l0_\w+ -> s0_l0_\w+ .*\n", lambda m: "", 6),
    "a back edge added": dot_edit(EDGE, lambda m: f"{m.group(0)}\n\t{m.group(2)} -> {m.group(1)}", 4),
    "a node that stands alone": dot_edit(EDGE, lambda m: f"{m.group(0)}\n\tstray [label=stray shape=box]", 1),
    "a node in another device's lane": dot_edit(
        r"\\nGPU 0 ·(.*) gpu=0 ", lambda m: f"\\nGPU 1 ·{m[1]} gpu=1 ", 4
    ),
    "an output dim that no consumer expects": dot_edit(
        r"(Output: \w+=\[batch_size=\d+, (?:seq_len=\d+, )?(?:hidden|heads|ffn)=)(\d+)", lambda m: f"{m[1]}{m[2]}7", 5
    ),
    "an input dim that no producer gives": dot_edit(
        r"(Input: \w+=\[batch_size=\d+, (?:seq_len=\d+, )?(?:hidden|heads|ffn)=)(\d+)", lambda m: f"{m[1]}{m[2]}7", 5
    ),
    "no input dims at all": dot_edit(r"\\nInput: .*?,\\nOutput:", lambda m: "\\nOutput:", 3),
    "no output dims at all": dot_edit(r"Output: [^\\\"]*", lambda m: "", 3),
    "an ellipse drawn as a box": dot_edit(r"shape=ellipse", lambda m: "shape=box", 3),
    "a box drawn as an ellipse": dot_edit(r"shape=box", lambda m: "shape=ellipse", 3),
    "an edge without its tensor": dot_edit(
        r'( -> \w+ \[)label=(?:"[^"]*"|\S+) (.*?) tensor=(?:"[^"]*"|[^\s\]]+)', lambda m: f"{m[1]}{m[2]}", 3
    ),
    "one repetition less of an operator": dot_edit(
        r"(__g\d+ \[label=.*)repeats=(\d\d+) ", lambda m: f"{m[1]}repeats={int(m[2]) - 1} ", 3
    ),
    "a node without its module": dot_edit(
        r'\\nmodel\.[\w.-]+(.*) module="[^"]*"', lambda m: m[1], 3
    ),
    "a layer less in a run of layers": a_layer_less,
}  # fmt: skip
"""Edits of a DOT file that a rule must find on the file alone."""


@spoils("rigor")
def a_line_of_a_dag_gone(texts: Texts) -> FileMutants:
    for path, lines in lines_of(texts, "dag/", ".dot"):
        for i in spread(list(range(4, len(lines) - 1)), 3):
            yield f"{path}:{i + 1}", path, "".join(lines[:i] + lines[i + 1 :])


@spoils("rigor")
def a_launch_flag_changed_or_gone(texts: Texts) -> FileMutants:
    for path in sorted(p for p in texts if p.startswith("launch/")):
        lines = texts[path].splitlines(keepends=True)
        flags = [i for i, line in enumerate(lines) if re.search(r"^\s+--[\w-]+|^\w+: ", line)]
        for i in spread(flags, 4):
            yield f"{path}:{i + 1} gone", path, "".join(lines[:i] + lines[i + 1 :])
            number = re.sub(r"\d+", lambda m: str(int(m[0]) + 1), lines[i], count=1)
            if number != lines[i]:
                yield f"{path}:{i + 1} number", path, "".join((*lines[:i], number, *lines[i + 1 :]))


@spoils("result")
def a_hash_kind_or_entry_of_the_manifest(texts: Texts) -> FileMutants:
    manifest = json.loads(texts["manifest.json"])
    for i, a in enumerate(manifest["artifacts"]):
        if "sha256" in a:
            wrong = put(manifest, ("artifacts", i, "sha256"), "0" * 64)
            yield f"hash of {a['path']}", "manifest.json", dumped(wrong)
        left = {**manifest, "artifacts": [x for x in manifest["artifacts"] if x is not a]}
        yield f"{a['path']} not listed", "manifest.json", dumped(left)
    for name, value in (
        ("status", "infeasible" if manifest["status"] == "proven" else "proven"),
        ("degraded", ["evaluate"]),
    ):
        yield name, "manifest.json", dumped({**manifest, name: value})
    for i, x in enumerate(manifest["inputs"]):
        yield f"input {x['path']}", "manifest.json", dumped(put(manifest, ("inputs", i, "sha256"), "0" * 64))
        yield f"input {x['path']} elsewhere", "manifest.json", dumped(put(manifest, ("inputs", i, "path"), "x.md"))


@spoils("result")
def an_evaluation_that_flatters_or_slanders(texts: Texts) -> FileMutants:
    told = json.loads(texts["evaluation.json"])
    for i, s in enumerate(told["scores"]):
        yield f"score {s['criterion']}", "evaluation.json", dumped(put(told, ("scores", i, "value"), 0.5))
        yield f"reason {s['criterion']}", "evaluation.json", dumped(put(told, ("scores", i, "reason"), "fine"))
    yield "passed", "evaluation.json", dumped({**told, "passed": not told["passed"]})
    yield "constraints", "evaluation.json", dumped({**told, "constraints": []})
    yield "reference", "evaluation.json", dumped({**told, "reference": None})


@spoils("result")
def a_torn_report_picture_table_or_script(texts: Texts) -> FileMutants:
    for path, text in sorted(texts.items()):
        if path.endswith((".md", ".svg", ".csv", ".py", "evaluation.json")):
            yield f"{path} torn", path, text[: len(text) // 2]
            at = re.search(r"\d{2,}", text[len(text) // 2 :])
            if at:
                start = len(text) // 2 + at.start()
                yield f"{path} number", path, f"{text[:start]}7{text[start:]}"
