"""Every criterion can fall: a right run scores 1.0 everywhere, each seeded flaw lowers the criterion it concerns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_values import (
    BASELINE,
    DELIVERABLES,
    RECORD,
    REFERENCE,
    SOURCE,
    TP8,
    estimate,
    no_plan,
    prediction,
    proof,
)  # fmt: skip

from tools.rubric import BAR, CRITERIA, Constraint, Evaluation, GraphProof, RunRecord, dag_report, evaluate, parse_task
from tools.rubric.base import criterion
from tools.rubric.constraints import CHECKS, STANDING, judge
from tools.rubric.coverage import account, coverage, units
from tools.spec.conditions import Conditions, Evidence, Fact, Ignored, InputFile
from tools.spec.finding import Finding
from tools.spec.workload import Requirements

ERROR = Finding(code="fit", severity="error", cause="memory", message="stage 0 needs 90 GB of 85.5 GB")


def changed(**fields) -> RunRecord:
    return RECORD.model_copy(update=fields)


def with_plan(**fields) -> RunRecord:
    return changed(plan=RECORD.plan.model_copy(update=fields))


def with_estimate(**fields) -> RunRecord:
    assert RECORD.plan.estimate is not None
    return with_plan(estimate=RECORD.plan.estimate.model_copy(update=fields))


def with_conditions(**fields) -> RunRecord:
    return changed(conditions=RECORD.conditions.model_copy(update=fields))


def without(kind: str) -> RunRecord:
    return changed(deliverables=tuple(d for d in DELIVERABLES if d.kind != kind))


def test_a_right_run_scores_one_everywhere():
    evaluation = evaluate(RECORD)
    assert {s.criterion: s.value for s in evaluation.scores} == dict.fromkeys(CRITERIA, 1.0)
    assert evaluation.passed and evaluation.failed_checks == ()


def test_a_right_infeasible_verdict_scores_one_everywhere():
    evaluation = evaluate(no_plan().record)
    assert {s.criterion: s.value for s in evaluation.scores} == dict.fromkeys(CRITERIA, 1.0)
    assert evaluation.passed


def test_the_six_criteria_of_the_task_prompts_are_there_in_order():
    assert [s.criterion for s in evaluate(RECORD).scores] == [
        "rigor", "understand", "attitude", "accuracy", "performance", "result",
    ]  # fmt: skip


def bad_proof(**fields) -> RunRecord:
    return changed(proofs=(GraphProof(role="plan", proof=proof(TP8, "prefill", **fields)), *RECORD.proofs[1:]))


def two_on_one_rank() -> RunRecord:
    row = RECORD.plan.rank_map[0]
    return with_plan(rank_map=({**row, "ranks": [0, 1, 2, 3, 4, 5, 6, 6]},))


def overfull() -> RunRecord:
    assert RECORD.plan.estimate is not None
    (stage,) = RECORD.plan.estimate.memory
    return with_estimate(memory=(stage.model_copy(update={"kv_bytes": 80e9}),))


def lost_layer() -> RunRecord:
    assert RECORD.plan.estimate is not None
    (stage,) = RECORD.plan.estimate.memory
    return with_estimate(memory=(stage.model_copy(update={"layers": 79}),))


def whitewashed() -> RunRecord:
    """A prediction that breaks its limit and calls itself met."""
    broken = prediction("ttft_s", "p90", 2.4, 2.0).model_copy(update={"status": "met", "margin": 0.2})
    assert RECORD.plan.estimate is not None
    return with_estimate(predictions=(broken, *RECORD.plan.estimate.predictions[1:]))


def mismatched_part() -> RunRecord:
    part = RECORD.plan.parts[0].model_copy(update={"matches": False})
    return with_plan(parts=(part, *RECORD.plan.parts[1:]))


def broken_rule(rule: str) -> RunRecord:
    flaw = Finding(code=rule, severity="error", cause="dag", message="a cycle through o_proj")
    dag = RECORD.dags[0].model_copy(
        update={"findings": (flaw,), "passed": tuple(r for r in RECORD.dags[0].passed if r != rule)}
    )
    return changed(dags=(dag, *RECORD.dags[1:]))


def misquoted() -> RunRecord:
    facts = list(RECORD.conditions.facts)
    facts[0] = facts[0].model_copy(update={"evidence": Evidence(file="chat.md", line=4, quote="16 x H100")})
    return with_conditions(facts=tuple(facts))


def dropped_gate() -> RunRecord:
    """TPOT was read, and then not judged."""
    d = RECORD.plan.deployment
    gates = Requirements(gates=d.requirements.gates[:1])
    return with_plan(deployment=d.model_copy(update={"requirements": gates}))


def near_the_limit(value: float) -> RunRecord:
    assert RECORD.plan.estimate is not None
    return with_estimate(predictions=(prediction("ttft_s", "p90", value, 2.0), *RECORD.plan.estimate.predictions[1:]))


def unbalanced() -> RunRecord:
    return with_estimate(time_imbalance=1.2)


FLAWS: dict[str, tuple[str, Callable[[], RunRecord]]] = {
    "an error found by the checks": ("rigor", lambda: with_plan(findings=(ERROR,))),
    "flags that the engine cannot express": ("rigor", lambda: changed(launch_findings=(ERROR,))),
    "a wrong number on one device": ("rigor", lambda: bad_proof(ok=False, max_relative_error=0.3)),
    "NaN in the proof": ("rigor", lambda: bad_proof(max_relative_error=float("nan"))),
    "a proof that compared nothing": ("rigor", lambda: bad_proof(tensors_compared=0)),
    "another graph drawn than proven": ("rigor", lambda: bad_proof(digest="0" * 64)),
    "a phase that was not proven": ("rigor", lambda: changed(proofs=RECORD.proofs[1:])),
    "a device with two places": ("rigor", two_on_one_rank),
    "a device count that is not the product": ("rigor", lambda: with_plan(num_devices=16)),
    "a stage that overflows": ("rigor", overfull),
    "a batch that does not fit": ("rigor", lambda: with_estimate(max_batch=47)),
    "a layer that is on no stage": ("rigor", lost_layer),
    "a broken limit called met": ("rigor", whitewashed),
    "a module whose parts do not match": ("rigor", mismatched_part),
    "a broken DAG rule": ("rigor", lambda: broken_rule("R06")),
    "an unread section": ("understand", lambda: with_conditions(ignored=())),
    "an unread statement": ("understand", lambda: with_conditions(facts=RECORD.conditions.facts[2:])),
    "a quote that is not in the file": ("understand", misquoted),
    "a requirement that was read and dropped": ("understand", dropped_gate),
    "a gap that no assumption names": ("understand", lambda: with_conditions(missing=("workload.osl_spread",))),
    "parts that do not match": ("attitude", mismatched_part),
    "imbalance beyond the bound": ("attitude", unbalanced),
    "an input that the run changed": ("attitude", lambda: changed(inputs_after={SOURCE.path: "0"})),
    "a cyclic DAG": ("attitude", lambda: broken_rule("R06")),
    "no baseline drawn": (
        "attitude",
        lambda: changed(deliverables=tuple(d for d in DELIVERABLES if d.role != "baseline")),
    ),
    "idle devices without a word": ("attitude", lambda: with_plan(num_devices=4)),
    "a broken requirement": ("accuracy", lambda: near_the_limit(2.4)),
    "a requirement inside its band": ("accuracy", lambda: near_the_limit(1.9)),
    "a requirement that nothing was predicted for": ("accuracy", lambda: with_estimate(predictions=())),
    "a better strategy left lying": (
        "performance",
        lambda: changed(reference=REFERENCE.model_copy(update={"objective_value": 3000.0})),
    ),
    "no reference": ("performance", lambda: changed(reference=None)),
    **{
        f"no {kind}": ("result", lambda kind=kind: without(kind))
        for kind in sorted({d.kind for d in DELIVERABLES} - {"events"})
    },
    "an empty file": (
        "result",
        lambda: changed(deliverables=(DELIVERABLES[0].model_copy(update={"num_bytes": 0}), *DELIVERABLES[1:])),
    ),
    "a file outside the folder": (
        "result",
        lambda: changed(deliverables=(*DELIVERABLES, DELIVERABLES[1].model_copy(update={"path": "/tmp/plan.md"}))),
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_lowers_its_criterion(flaw: str):
    name, spoiled = FLAWS[flaw]
    score = evaluate(spoiled()).score(name)
    assert score.value < 1.0
    assert score.reason and score.evidence


@pytest.mark.parametrize("flaw", [f for f, (name, _) in FLAWS.items() if name == "rigor"])
def test_an_engineering_error_is_below_the_bar_however_much_else_is_right(flaw: str):
    evaluation = evaluate(FLAWS[flaw][1]())
    assert evaluation.score("rigor").value <= 0.5
    assert not evaluation.passed


def test_a_failed_check_is_never_outvoted_by_scores():
    evaluation = evaluate(with_plan(findings=(ERROR,)))
    assert evaluation.failed_checks == (ERROR,) and not evaluation.passed


def test_a_margin_inside_the_band_scores_between_the_bar_and_one_and_grows_with_the_margin():
    values = [evaluate(near_the_limit(v)).score("accuracy").value for v in (2.0, 1.9, 1.8, 1.7, 1.6)]
    assert values[0] == pytest.approx(BAR) and values == sorted(values) and all(BAR <= v <= 1 for v in values)
    assert evaluate(near_the_limit(2.0001)).score("accuracy").value == 0.0
    assert evaluate(near_the_limit(1.9)).passed


def test_performance_is_the_share_of_the_reference_and_never_above_one():
    def score(best: float, mine: float, higher: bool = True) -> float:
        values = {"objective_value": best, "plan_value": mine, "higher_is_better": higher}
        return evaluate(changed(reference=REFERENCE.model_copy(update=values))).score("performance").value

    assert score(200.0, 100.0) == 0.5 and score(100.0, 200.0) == 1.0
    assert score(8, 16, higher=False) == 0.5 and score(16, 8, higher=False) == 1.0
    assert score(-8, -16) == 0.5 and score(-16, -8) == 1.0


def test_the_knee_is_a_logarithm_and_compared_as_one():
    behind = REFERENCE.model_copy(update={"objective_value": 2.0 + math.log(2), "plan_value": 2.0})
    record = with_plan(objective="knee").model_copy(update={"reference": behind})
    assert evaluate(record).score("performance").value == pytest.approx(0.5)


def test_performance_of_a_dictated_strategy_is_reported_but_not_barred():
    slow = REFERENCE.model_copy(update={"objective_value": 9000.0})
    assert not evaluate(changed(reference=slow)).passed
    assert evaluate(changed(reference=slow, fixed_strategy=True)).passed


def test_demands_on_a_plan_do_not_apply_to_an_infeasible_verdict_and_the_others_still_do():
    status = {r.text: r.status for r in judge(no_plan().record)}
    assert status["The performance requirements must be met."] == "not_applicable"
    assert status["Do not change the input files."] == "obeyed"
    spoiled = no_plan().record.model_copy(update={"inputs_after": {SOURCE.path: "0"}})
    assert evaluate(spoiled).score("attitude").value < BAR


def test_an_infeasible_verdict_falls_when_the_reference_finds_a_way():
    record = no_plan().record
    found = REFERENCE.model_copy(update={"strategy": "tp4"})
    assert evaluate(record.model_copy(update={"reference": found})).score("performance").value == 0.0


def test_an_infeasible_verdict_whose_way_out_was_not_tried_stands_at_the_bar():
    assert evaluate(no_plan().record.model_copy(update={"proofs": ()})).score("accuracy").value == BAR


def test_the_runner_up_stands_in_where_the_baseline_is_the_plan():
    roles = {"baseline": "runner_up", "plan": "plan"}
    swap = lambda items: tuple(i.model_copy(update={"role": roles.get(i.role)}) for i in items)  # noqa: E731
    record = changed(proofs=swap(RECORD.proofs), dags=swap(RECORD.dags), deliverables=swap(DELIVERABLES))
    assert evaluate(record).passed and evaluate(record).score("rigor").value == 1.0


def test_an_evaluation_is_json_with_its_bar_its_reference_and_what_is_provisional():
    text = evaluate(RECORD).to_json()
    assert Evaluation.model_validate_json(text) == evaluate(RECORD)
    document = json.loads(text)
    assert document["bar"] == BAR and document["reference"]["num_evaluated"] == 61 and len(document["provisional"]) == 2


def test_a_criterion_cannot_be_registered_twice():
    with pytest.raises(ValueError, match="twice"):
        criterion("rigor")(lambda record: evaluate(record).scores[0])


# ---------------------------------------------------------------------------------------------------------- attitude

DAG_DEMANDS = {
    "Use ellipses to represent communication, rectangles for computation": "R05",
    "The generated DAG must not contain any cycles": "R06",
    "A complete DAG must include a total input and output": "R07",
    "The residual add has at least two inputs": "R08",
    "Each layer in DAG needs to be detailed down to the operator level": "R10",
    "Omit repeated modules in the DAG graph and indicate the number of repetitions": "R11",
    "Each nodes must have the attributions: INPUT DIMENSION and OUTPUT DIMENSION": "R04",
    "禁止有环": "R06",
    "注意dag中不能漏残差的边": "R08",
}


@pytest.mark.parametrize(("demand", "rule"), DAG_DEMANDS.items())
def test_a_demand_on_the_dag_is_obeyed_exactly_when_its_rule_holds(demand: str, rule: str):
    def status(record: RunRecord) -> str:
        (result,) = judge(record.model_copy(update={"constraints": (Constraint(text=demand, line=3),)}))
        return result.status

    assert status(RECORD) == "obeyed"
    assert status(broken_rule(rule)) == "broken"
    assert status(changed(dags=())) == "broken"
    undecided = tuple(d.model_copy(update={"passed": ()}) for d in RECORD.dags)
    assert status(changed(dags=undecided)) == "not_machine_checked"


def test_an_unknown_demand_is_said_to_be_unchecked_and_costs_a_little():
    record = changed(
        constraints=(Constraint(text="Print the plan on green paper", line=9), *(Constraint(text=t) for t in STANDING))
    )
    unknown = judge(record)[0]
    assert unknown.status == "not_machine_checked" and unknown.line == 9
    assert BAR < evaluate(record).score("attitude").value < 1.0


def test_a_sentence_that_demands_nothing_counts_neither_way():
    record = changed(
        constraints=(
            Constraint(text="Generally speaking, a layer consists of attention and an FFN"),
            Constraint(text=STANDING[0]),
        )
    )
    assert [r.status for r in judge(record)] == ["statement", "obeyed"]
    assert evaluate(record).score("attitude").value == 1.0


def test_each_standing_demand_is_known_to_a_check():
    assert all(any(c.pattern.search(text) for c in CHECKS) for text in STANDING)


def test_the_balance_bound_is_the_checks_own_where_it_judged():
    note = Finding(
        code="balance", severity="info", cause="balance", where="time", message="61 layers on 4 stages",
        values={"ratio": 1.2, "bound": 1.25, "optimum": 1.25},
    )  # fmt: skip
    told = with_plan(findings=(note,))
    assert evaluate(told).score("attitude").value == 1.0
    beyond = note.model_copy(update={"values": {"ratio": 1.3, "bound": 1.25}})
    assert evaluate(with_plan(findings=(beyond,))).score("attitude").value < 1.0


def test_without_a_stated_bound_the_evenest_cut_of_the_layers_is_allowed():
    """80 layers on 11 stages: 8 on the fullest, 1.1 times the mean."""
    assert RECORD.plan.estimate is not None
    strategy = RECORD.plan.estimate.strategy.model_copy(update={"pp": 11})
    uneven = {"strategy": strategy, "estimate": RECORD.plan.estimate.model_copy(update={"time_imbalance": 1.1})}
    status = lambda record: next(r.status for r in judge(record) if "balanc" in r.text)  # noqa: E731
    assert status(with_plan(**uneven)) == "obeyed"
    d = RECORD.plan.deployment
    stated = d.model_copy(update={"requirements": d.requirements.model_copy(update={"balance_stated": True})})
    assert status(with_plan(**uneven, deployment=stated)) == "broken"


TASK = """You are an engineer.

RESOURCES

---

You have been given a file at {knowledge_path}. <<<备注>>>

TASK

---

You are tested to completed the following tasks:

Propose the optimal parallel strategy. <<<要求最优
两行备注>>>

NOTE

---

- Ensure GPU load balancing.

How we would grade this:

Rigor: no errors.
"""


def test_a_task_prompt_gives_its_demands_with_their_lines_and_without_remarks():
    found = parse_task(TASK, "task.md")
    assert [(c.line, c.text) for c in found] == [
        (15, "Propose the optimal parallel strategy"), (22, "Ensure GPU load balancing"),
    ]  # fmt: skip
    assert all(TASK.splitlines()[c.line - 1].strip("- ").startswith(c.text[:20]) for c in found)


def test_a_task_without_sections_is_all_demands():
    assert [c.text for c in parse_task("No cycles.\n\n确保GPU负载均衡")] == ["No cycles", "确保GPU负载均衡"]


def test_markdown_headings_are_sections_too():
    text = (
        "# Task\n\nMake full use of the hardware.\n\n## Grading\n\nWe look at style.\n\n## 注意\n\n1. 确保GPU负载均衡\n"
    )
    assert [c.line for c in parse_task(text)] == [3, 11]


def test_dag_rule_results_become_a_report():
    class Result:
        def __init__(self, rule: str, status: str):
            self.rule, self.status, self.message = rule, status, f"{rule} {status}"

    results = [Result("R01", "passed"), Result("R06", "failed"), Result("R18", "not_decidable")]
    report = dag_report("plan", "m", "prefill", "a.dot", results)
    assert report.passed == ("R01",) and report.broken == {"R06"}


# -------------------------------------------------------------------------------------------------------- understand


def source(text: str, kind: str) -> InputFile:
    return InputFile.model_validate({"path": "in", "sha256": "", "text": text, "kind": kind})


TREES = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.none(), st.text(max_size=8), st.lists(st.integers(), max_size=3)),
    lambda inner: st.dictionaries(st.text('abcdefgh_{}:[",', min_size=1, max_size=6), inner, max_size=4),
    max_leaves=12,
)


def leaves(tree: object) -> list[str]:
    """Keys that hold no further key."""
    if not isinstance(tree, dict):
        return []
    return [k for key, value in tree.items() for k in (leaves(value) if isinstance(value, dict) and value else [key])]


@given(st.dictionaries(st.text("abcxyz_", min_size=1, max_size=6), TREES, max_size=4), st.sampled_from([None, 1]))
def test_every_leaf_key_of_any_json_is_a_unit_however_it_is_laid_out(tree: dict, indent: int | None):
    found = units(source(json.dumps(tree, indent=indent), "json"))
    assert sorted(json.loads(f'"{u.title}"') for u in found) == sorted(leaves(tree))


def test_keys_of_yaml_and_toml_carry_their_path():
    yaml = units(source("hw:\n  gpus: 8  # one node\n  nics:\n    - 400\n    - 400\nslo: {ttft: 2}\n", "yaml"))
    assert [(u.path, u.title) for u in yaml] == [(("hw",), "gpus"), (("hw",), "nics"), ((), "slo")]
    toml = units(source("a = 1\n[hw.gpu]\nn = 8\n", "toml"))
    assert [(u.path, u.title) for u in toml] == [((), "a"), (("hw", "gpu"), "n")]


def test_headings_list_items_rows_and_sentences_with_numbers_are_units():
    text = (
        "# A\nSome prose.\n\n**B**\n- x: 1\n- no number here\n\n| k | v |\n|---|---|\n| n | 8 |\n\n我们有两台服务器\n"
    )
    found = [(u.kind, u.first) for u in units(source(text, "markdown"))]
    assert ("section", 1) in found and ("section", 4) in found
    assert [first for kind, first in found if kind == "statement"] == [5, 10, 12]


def test_a_unit_is_accounted_for_by_a_fact_a_conflict_or_a_reasoned_dismissal():
    (unit,) = units(source('{"node_cpu_cores": 64}', "json"))
    quote = Evidence(file="in", line=1, quote='"node_cpu_cores": 64')
    assert coverage(unit, Conditions()) == ""
    assert coverage(unit, Conditions(facts=(Fact(path="x", value=64, evidence=quote),))).startswith("used")
    assert coverage(
        unit, Conditions(ignored=(Ignored(section="node_cpu_cores", why="hosts are not planned"),))
    ).startswith("declared")
    assert coverage(unit, Conditions(ignored=(Ignored(section="node_cpu_cores", why=""),))) == ""


def test_a_key_that_says_what_was_read_elsewhere_is_accounted_for():
    (unit,) = units(source('{"gpu_type": "NVIDIA_H100"}', "json"))
    assert coverage(unit, Conditions(facts=(Fact(path="hardware.device", value="h100", stated_as="H100"),)))
    assert not coverage(unit, Conditions(facts=(Fact(path="hardware.device", value="a100", stated_as="A100"),)))
    (number,) = units(source('{"gpu_count": 8}', "json"))
    assert not coverage(number, Conditions(facts=(Fact(path="hardware.num_devices", value=8, stated_as="8"),)))


def test_on_one_line_of_minified_json_a_quote_covers_only_its_own_key():
    text = '{"gpus": 8, "owner": "ops"}'
    facts = (Fact(path="hardware.num_devices", value=8, evidence=Evidence(file="in", line=1, quote='"gpus": 8')),)
    left = [u.title for u, how in account((source(text, "json"),), Conditions(facts=facts)) if not how]
    assert left == ["owner"]


def test_a_dense_model_has_no_gate_to_draw_dashed():
    demand = Constraint(text="The gate will select among all the experts; use a dashed line")
    undecided = tuple(d.model_copy(update={"passed": ()}) for d in RECORD.dags)
    (result,) = judge(changed(constraints=(demand,), dags=undecided))
    assert result.status == "obeyed" and "no gate" in result.reason


def test_the_baselines_own_shortcomings_are_not_the_plans():
    weak = estimate(BASELINE.estimate.strategy, ttft=9.0, tpot=0.2, tok_s=10.0, feasible=False, findings=(ERROR,))
    assert evaluate(with_plan(baseline=weak)).score("rigor").value == 1.0
