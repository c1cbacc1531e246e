"""plan.json, plan.md, the plot and the terminal summary: the answer first, and proven never blurred with predicted."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_values import (
    BASELINE,
    BEST,
    CONDITIONS,
    DELIVERABLES,
    DEPLOYMENT,
    PARTS,
    PLAN,
    RECORD,
    RESULT,
    SECOND,
    TP4_DP2,
    TP4_PP2,
    TP8,
    entries,
    estimate,
    no_plan,
    prediction,
    proof,
)
from rich.console import Console

from agent.report import assemble_plan, pareto_csv, pareto_svg, phase_entry, plan_to_json, render_plan_md
from agent.report.format import digits, duration, fact_value, gate_words, gigabytes, percent, quantity, spans, table
from agent.report.pareto import axis, nice_step
from agent.report.plan_json import rank_map
from agent.report.schema import SCHEMAS, schema_text
from agent.report.summary import summary
from tools.rubric import evaluate
from tools.spec.base import Bug
from tools.spec.finding import Finding
from tools.spec.plan import Candidate, Plan
from tools.spec.strategy import Strategy

EVALUATION = evaluate(RECORD)
MD = render_plan_md(PLAN, files=DELIVERABLES, evaluation=EVALUATION)


def section(markdown: str, title: str) -> str:
    parts = re.split(r"^## (.*)$", markdown, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


# --------------------------------------------------------------------------------------------------------- plan.json


def test_a_plan_survives_its_own_json():
    assert Plan.model_validate_json(plan_to_json(PLAN)) == PLAN


def test_the_same_run_twice_writes_the_same_bytes():
    later = RESULT.model_copy(update={"seconds": 9.0})
    again = assemble_plan(
        DEPLOYMENT, CONDITIONS, later, phases=entries(TP8), baseline_phases=entries(TP4_PP2), parts=PARTS,
        findings=PLAN.findings[:1], proposal=PLAN.proposal, passages=PLAN.knowledge,
    )  # fmt: skip
    assert plan_to_json(again) == plan_to_json(PLAN)


def test_what_no_queue_reaches_survives_json_and_reads_as_unbounded():
    endless = {"ttft_s": math.inf, "tpot_s": math.inf, "burst_ttft_s": math.inf, "output_tok_s": 0.0}
    lost = BASELINE.model_copy(update={"estimate": BASELINE.estimate.model_copy(update=endless)})
    plan = assemble_plan(DEPLOYMENT, CONDITIONS, RESULT.model_copy(update={"baseline": lost}), phases=entries(TP8))
    again = Plan.model_validate_json(plan_to_json(plan))
    assert again == plan and again.baseline is not None and again.baseline.tpot_s == math.inf
    json.loads(plan_to_json(plan), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert "| baseline | tp4·pp2 | 8 | 48 | unbounded | unbounded | 0 tok/s |" in render_plan_md(again)
    assert "1 points without" in pareto_svg(again)


@pytest.mark.parametrize("phases", [{}, {"prefill": entries(TP8)["prefill"]}])
def test_a_plan_is_published_only_with_both_phases_proven(phases):
    with pytest.raises(Bug, match="proof"):
        assemble_plan(DEPLOYMENT, CONDITIONS, RESULT, phases=phases)


def test_a_plan_with_a_proof_that_fails_is_a_bug_not_a_plan():
    bad = phase_entry(proof(TP8, "decode", ok=False), batch=1, seq_len=1, kv_len=2)
    with pytest.raises(Bug, match="decode"):
        assemble_plan(DEPLOYMENT, CONDITIONS, RESULT, phases={**entries(TP8), "decode": bad})


def test_a_search_without_best_and_without_verdict_is_a_bug():
    with pytest.raises(Bug, match="neither"):
        assemble_plan(DEPLOYMENT, CONDITIONS, RESULT.model_copy(update={"best": None}))


def test_the_headline_says_strategy_devices_and_every_limit():
    assert "8 × H100 SXM 80 GB as tp8" in PLAN.headline
    assert (
        "TTFT P90 546 ms ±20 % (limit 2.00 s)" in PLAN.headline
        and "TPOT 21.3 ms ±20 % (limit 50.0 ms)" in PLAN.headline
    )


def test_of_many_limits_the_headline_says_the_tightest_and_counts_the_rest():
    stats = (("p50", 0.045), ("p90", 0.02), ("p99", 0.04), ("max", 0.01))
    e = BEST.estimate.model_copy(update={"predictions": tuple(prediction("tpot_s", s, v, 0.05) for s, v in stats)})
    plan = assemble_plan(
        DEPLOYMENT, CONDITIONS, RESULT, chosen=Candidate(rank=1, estimate=e, objective_value=1.0), phases=entries(TP8)
    )
    assert "TPOT P50 45.0 ms" in plan.headline and "TPOT P99 40.0 ms" in plan.headline
    assert "TPOT P90" not in plan.headline and "2 more requirements with wider margins" in plan.headline


def test_what_breaks_a_requirement_is_drawn_hollow_and_the_legend_says_so():
    weak = BASELINE.model_copy(update={"estimate": BASELINE.estimate.model_copy(update={"feasible": False})})
    plan = assemble_plan(DEPLOYMENT, CONDITIONS, RESULT.model_copy(update={"baseline": weak}), phases=entries(TP8))
    assert "hollow: breaks a requirement" in pareto_svg(plan) and pareto_svg(plan).count('fill="#fff"') == 1
    assert "hollow" not in pareto_svg(PLAN)


def test_a_finding_about_a_requirement_reads_in_units():
    values = {"metric": "tpot_s", "stat": "limit", "value": 0.101, "limit": 0.06, "margin": -0.684, "band": 0.3}
    finding = Finding(code="slo-broken", severity="error", cause="slo", message="tpot_s mean = 0.101 s", values=values)
    assert gate_words(finding) == "TPOT 101 ms ±30 %, required 60.0 ms, margin -68 %"
    assert gate_words(finding.model_copy(update={"values": {}})) == "tpot_s mean = 0.101 s"


def test_a_margin_smaller_than_its_band_is_said_in_the_first_lines():
    e = BEST.estimate.model_copy(update={"predictions": (prediction("tpot_s", "limit", 0.045, 0.05),)})
    plan = assemble_plan(
        DEPLOYMENT, CONDITIONS, RESULT, chosen=Candidate(rank=1, estimate=e, objective_value=1.0), phases=entries(TP8)
    )
    assert plan.at_risk == (
        "TPOT: predicted 45.0 ms ±20 %, limit 50.0 ms: the margin of 10 % is smaller than the error band",
    )
    first = render_plan_md(plan).splitlines()[:6]
    assert any("At risk" in line and "45.0 ms" in line for line in first)
    assert PLAN.at_risk == () and "At risk" not in MD


def test_an_llm_that_did_not_answer_is_said_in_the_first_lines():
    plan = assemble_plan(DEPLOYMENT, CONDITIONS, RESULT, phases=entries(TP8), degraded=("propose_strategy",))
    assert "propose_strategy" in "\n".join(render_plan_md(plan).splitlines()[:6])


def test_the_runner_up_parallelises_differently():
    same = BEST.model_copy(
        update={
            "rank": 2,
            "estimate": estimate(TP8.model_copy(update={"batch": 32}), ttft=0.4, tpot=0.02, tok_s=1900.0),
        }
    )
    plan = assemble_plan(
        DEPLOYMENT, CONDITIONS, RESULT.model_copy(update={"ranked": (BEST, same, SECOND)}), phases=entries(TP8)
    )
    assert plan.runner_up is not None and plan.runner_up.strategy == TP4_DP2


def test_flags_of_the_reader_become_findings_once():
    assert [f.code for f in PLAN.findings] == ["balance", "assumed-engine"]


@given(
    tp=st.sampled_from([1, 2, 4]), pp=st.integers(1, 5), dp=st.integers(1, 3), attn_dp=st.sampled_from([1, 2, 3]),
    per_node=st.sampled_from([4, 8]),
)  # fmt: skip
def test_the_rank_map_gives_every_device_one_place_and_every_layer_one_stage(tp, pp, dp, attn_dp, per_node):
    s = Strategy(tp=tp, pp=pp, dp=dp, attn_dp=attn_dp)
    cluster = DEPLOYMENT.cluster.model_copy(update={"devices_per_node": per_node})
    layers = [61 // pp + (i < 61 % pp) for i in range(pp)]
    rows = rank_map(s, DEPLOYMENT.model_copy(update={"cluster": cluster}), layers)
    assert sorted(r for row in rows for r in row["ranks"]) == list(range(s.num_devices))
    assert all(set(row["nodes"]) == {r // per_node for r in row["ranks"]} for row in rows)
    for replica in range(dp):
        mine = [row["layers"] for row in rows if row["replica"] == replica]
        assert [n for first, last in mine for n in range(first, last + 1)] == list(range(61))


# ----------------------------------------------------------------------------------------------------------- plan.md


def test_the_answer_is_the_first_thing_that_is_read():
    lines = MD.splitlines()
    assert lines[0].startswith("# Deployment plan") and lines[2] == f"**{PLAN.headline}**"


def test_proven_and_predicted_are_told_apart_in_words():
    first = MD.split("## ")[0]
    assert "*Proven:*" in first and "3e-15" in first and "*Predicted:*" in first
    predicted = ["Requirements", "Where the time goes", "Latency and throughput"]
    assert all(f"## {title} (predicted)" in MD for title in predicted)
    for title in ("Modules and their parts (proven)", "Proof"):
        assert not re.search(r"±|\bms\b|tok/s", section(MD, title))


def test_why_it_won_gives_both_numbers_of_every_rival():
    why = section(MD, "Why this strategy")
    assert "the plan gives 1,987 tok/s against 1,702 tok/s (+17 %)" in why
    assert "the plan gives 1,987 tok/s against 1,404 tok/s (+42 %)" in why
    assert "Weights are read twice" in why
    assert "| runner-up, asked | tp4·dp2 |" in why
    assert "412 enumerated, 61 legal, 40 fit in memory, 22 meet every requirement" in why


def test_each_module_shows_global_and_local_dims_the_axis_what_restores_them_and_its_parts():
    row = next(line for line in MD.splitlines() if "q_proj.weight" in line)
    for said in (
        "heads=64",
        "heads=8",
        "heads over tp(8)",
        "all-reduce after o_proj over tp",
        "8 × 1 = 8 on 8",
        "matches",
    ):
        assert said in row
    assert "[attention: tp(8) × cp(1) × attn_dp(1)] × dp(1) = 8; all modules together lie on 8 of 8 devices." in MD


def test_a_module_that_does_not_match_is_loud():
    part = PARTS[0].model_copy(update={"matches": False})
    assert "**does not match**" in render_plan_md(PLAN.model_copy(update={"parts": (part,)}))


def test_the_shares_of_a_breakdown_add_up_with_the_small_terms_in_one_line():
    part = section(MD, "Where the time goes (predicted)")
    assert "| everything else | 1.26 ms | 0.3 % |" in part and "embedding" not in part
    for block in part.split("**total**")[:-1]:
        block = block.split("| 100 % |")[-1]
        shares = [float(x) for x in re.findall(r"\| ([\d.]+) % \|", block)]
        assert sum(shares) == pytest.approx(100, abs=1.5)


def test_conflicts_are_told_in_the_units_people_use():
    assert "900 GB/s / 450 GB/s | 450 GB/s" in section(MD, "Conflicts in the inputs")


def test_assumptions_findings_what_ifs_dismissals_demands_and_files_are_there():
    assert "flags and memory accounting" in section(MD, "Assumptions")
    assert "fp8 weights" in section(MD, "What if") and "+46 %" in section(MD, "What if")
    assert "Office: says nothing" in section(MD, "Not used from the inputs")
    assert section(MD, "Demands of the task").count("obeyed") == 8
    listed = section(MD, "Files") + section(MD, "Latency and throughput (predicted)")
    linked = set(re.findall(r"\]\(([^)]+)\)", listed))
    assert linked == {d.path for d in DELIVERABLES if d.kind.startswith(("dag", "launch"))} | {"pareto.svg"}


def test_prefill_stands_before_decode_and_the_plan_before_the_baseline():
    backwards = {p: entries(TP8)[p] for p in ("decode", "prefill")}
    plan = assemble_plan(DEPLOYMENT, CONDITIONS, RESULT, phases=backwards, baseline_phases=entries(TP4_PP2))
    text = render_plan_md(plan, files=DELIVERABLES[::-1])
    proofs, listed = section(text, "Proof"), section(text, "Files")
    names = ["plan, prefill", "baseline, prefill", "plan, decode", "baseline, decode"]
    assert [proofs.index(n) for n in names] == sorted(proofs.index(n) for n in names)
    names = ["plan prefill", "plan decode", "baseline prefill", "baseline decode", "Launch"]
    assert [listed.index(n) for n in names] == sorted(listed.index(n) for n in names)


def test_a_low_score_is_published_and_said_first():
    slow = evaluate(RECORD.model_copy(update={"reference": None}))
    first = render_plan_md(PLAN, evaluation=slow).split("## ")[0]
    assert "Below the bar" in first and "Performance 0.00" in first


def test_a_dense_model_is_not_described_with_expert_axes():
    assert "ep1" not in MD and "etp" not in MD


def test_an_infeasible_verdict_names_cause_numbers_and_the_way_out():
    run = no_plan()
    text = render_plan_md(run.record.plan, evaluation=evaluate(run.record))
    first = text.split("## ")[0]
    assert "No plan possible" in first and "all 61 were searched" in first and "TTFT 160 ms instead of 10 ms" in first
    assert "156 ms" in section(text, "What binds") and "closest" in section(text, "Closest strategies (predicted)")
    assert "Proven:" not in first


def test_no_line_of_the_report_is_broken_by_what_the_inputs_say():
    """Pipes and newlines in a finding or a quote stay inside their table cell."""
    nasty = DEPLOYMENT.assumptions[0].model_copy(update={"why": "a | b\n\n# c"})
    text = render_plan_md(PLAN.model_copy(update={"assumptions": (nasty,)}))
    assert "a \\| b # c" in text and "\n# c" not in text


def test_an_empty_plan_prints_no_empty_sections():
    bare = PLAN.model_copy(
        update={"parts": (), "what_ifs": (), "conflicts": (), "assumptions": (), "knowledge": (), "proposal": {}}
    )
    text = render_plan_md(bare)
    assert not re.search(r"## [^\n]*\n\n(?=## |\Z)", text)
    assert "## Assumptions" not in text and "## What if" not in text


# ------------------------------------------------------------------------------------------------------------- plots


def test_the_plot_is_svg_and_marks_plan_and_baseline():
    root = ElementTree.fromstring(pareto_svg(PLAN))
    assert root.tag.endswith("svg")
    titles = [t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}title")]
    assert any(t.startswith("plan: tp8") for t in titles) and any(t.startswith("baseline: tp4·pp2") for t in titles)
    assert "TPOT limit 50.0 ms" in pareto_svg(PLAN)


def test_every_dot_lies_inside_the_frame():
    root = ElementTree.fromstring(pareto_svg(PLAN))
    dots = [
        c
        for c in root.iter("{http://www.w3.org/2000/svg}circle")
        if c.find("{http://www.w3.org/2000/svg}title") is not None
    ]
    assert len(dots) == 8
    assert all(90 <= float(c.attrib["cx"]) <= 790 and 64 <= float(c.attrib["cy"]) <= 450 for c in dots)


def test_names_with_markup_and_chinese_stay_valid_svg():
    model = DEPLOYMENT.model.model_copy(update={"name": '<模型> & "x"'})
    plan = PLAN.model_copy(update={"deployment": DEPLOYMENT.model_copy(update={"model": model})})
    assert "<模型>" in (ElementTree.fromstring(pareto_svg(plan)).find("{http://www.w3.org/2000/svg}title").text or "")


def test_a_point_without_a_finite_prediction_is_left_out_and_said():
    lost = BASELINE.model_copy(update={"estimate": BASELINE.estimate.model_copy(update={"tpot_s": math.inf})})
    plan = assemble_plan(DEPLOYMENT, CONDITIONS, RESULT.model_copy(update={"baseline": lost}), phases=entries(TP8))
    assert "1 points without a finite prediction" in pareto_svg(plan)


def test_an_infeasible_run_still_draws():
    ElementTree.fromstring(pareto_svg(no_plan().record.plan))


def test_the_csv_has_one_row_per_point_with_units_in_its_header():
    rows = list(csv.DictReader(io.StringIO(pareto_csv(PLAN))))
    assert len(rows) == 8 and {r["kind"] for r in rows} == {"front", "ranked", "asked", "baseline", "plan"}
    (mine,) = (r for r in rows if r["kind"] == "plan")
    assert (mine["strategy"], float(mine["tpot_s"]), float(mine["output_tok_s"])) == ("tp8", 0.0213, 1987.0)


@given(st.floats(1e-12, 1e12))
def test_a_nice_step_is_1_2_or_5_times_a_power_of_ten_and_close_above(rough: float):
    step = nice_step(rough)
    assert rough * (1 - 1e-9) <= step <= 2.5 * rough * (1 + 1e-9)
    assert any(math.isclose(step, m * 10.0**e, rel_tol=1e-9) for m in (1, 2, 5) for e in range(-14, 14))


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=20))
def test_an_axis_keeps_order_and_has_ticks(values):
    scale = axis(values, 0, 100)
    placed = [scale.at(v) for v in sorted(values)]
    assert placed == sorted(placed) and all(-1e-9 <= p <= 100 + 1e-9 for p in placed)
    assert 1 <= len(scale.ticks()) <= 40


# ----------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (digits(17.62), "17.6"),
        (digits(0.0421), "0.0421"),
        (digits(1234.5), "1,234"),
        (digits(0), "0"),
        (digits(9.999), "10.0"),
        (digits(float("nan")), "n/a"),
        (duration(0.0213), "21.3 ms"),
        (duration(2), "2.00 s"),
        (duration(63.9e-6), "63.9 µs"),
        (duration(math.inf), "unbounded"),
        (gigabytes(80e9), "80.0 GB"),
        (gigabytes(3.2e6), "3.20 MB"),
        (percent(0.2), "20 %"),
        (percent(-0.031, signed=True), "-3.1 %"),
        (percent(0.5, signed=True), "+50 %"),
        (spans([3, 0, 1, 2, 8]), "0-3, 8"),
        (quantity("throughput_per_device", 4000), "4,000 tok/s/device"),
        (fact_value("hardware.memory_bytes", 64e9), "64 GB"),
        (fact_value("requirements.ttft_s.p99", 1.0), "1.00 s"),
        (fact_value("model.num_experts", 16), "16"),
        (fact_value("hardware.peak_flops.bf16", 989e12), "989 TFLOP/s"),
        (fact_value("workload.isl", None), "none"),
    ],
)  # fmt: skip
def test_numbers_read_as_people_write_them(text: str, expected: str):
    assert text == expected


@given(st.floats(1e-4, 1e14), st.integers(1, 5))
def test_printed_digits_are_the_value_within_half_a_unit_of_the_last_one(value: float, significant: int):
    assert float(digits(value, significant).replace(",", "")) == pytest.approx(
        value, rel=0.51 * 10 ** (1 - significant)
    )


def test_a_table_without_rows_is_no_table():
    assert table(("a", "b"), []) == []


def test_the_terminal_summary_shows_answer_band_margin_memory_rubric_and_path():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary(PLAN, EVALUATION, "runs/x/manifest.json"))
    text = console.export_text()
    for said in (
        "tp8",
        "8 × H100",
        "546 ms ±20 %",
        "+73 %",
        "50.9 GB of 85.5 GB",
        "rigor 1.00",
        "passed",
        "runs/x/manifest.json",
    ):
        assert said in text


def test_the_terminal_summary_of_no_plan_says_why():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary(no_plan().record.plan, None, "m.json", degraded=("evaluate",)))
    text = console.export_text()
    assert "infeasible" in text and "156 ms" in text and "evaluate" in text


# ------------------------------------------------------------------------------------------------------------ schema


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_committed_schema_is_the_one_the_types_give(name: str):
    """When this fails: python -m agent.report.schema."""
    committed = Path(__file__).parent.parent / "docs" / "schema" / name
    assert committed.read_text(encoding="utf-8") == schema_text(SCHEMAS[name])


def test_the_schema_names_every_key_of_a_real_plan():
    schema = json.loads(schema_text(SCHEMAS["plan.schema.json"]))
    assert set(json.loads(plan_to_json(PLAN))) == set(schema["properties"])
