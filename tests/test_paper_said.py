"""What a reading of a paper is not sure of, and what its set-up cannot carry, is said first; never silent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.paper_plan import fits, headline, plan_of
from agent.paper_publish import fidelity
from agent.paper_run import verify_paper
from agent.reading.paper import is_paper, read_paper
from agent.reading.paper_doubts import doubts
from agent.reading.paper_terms import terms_of
from agent.reading.paper_text import read_paper_text, whole
from agent.reading.sources import input_from_text
from tools.spec.paper import PaperMethod

PAPER = """# Two ways to deal out a small model

## Abstract
We propose a layout.

## Method
Weights are split.

## Experiments
Model: {layers} layers, hidden size 256, 8 heads of dimension 32, MLP hidden size 512, vocabulary 512, FP16. \
Batch size {batch}, sequence length {seq}.
Hardware: 8 A100 40GB.
Baseline: {baseline}
Proposed: {proposed}
"""


def paper(
    proposed: str = "PP 4.", baseline: str = "TP 8.", layers: int = 8, batch: int = 8, seq: int = 64
) -> PaperMethod:
    text = PAPER.format(proposed=proposed, baseline=baseline, layers=layers, batch=batch, seq=seq)
    return read_paper((input_from_text(text, "p.md"),))


# ---------------------------------------------------------------------------------------------- what was not understood


@pytest.mark.parametrize(
    ("words", "unread"),
    [
        ("TP 4 × PP 2 with 3 layers before the cut.", "'3 layers'"),
        ("PP 2, TP 4, where heads are rotated among 3 groups.", "'3 groups'"),
        ("PP 4, TP 2, with VPP 3.", "'VPP 3'"),
        ("TP 2 × PP 4, and six helper cards watch.", "'six helper cards'"),
    ],
)
def test_a_number_that_the_strategy_does_not_show_is_told(words: str, unread: str):
    method = paper(words)
    (proposed,) = method.of(method.models[0].key, "proposed")
    (finding,) = [f for f in proposed.findings if f.code == "paper-unread"]
    assert unread in finding.message and proposed.strategy.label() in finding.message and finding.severity == "warning"


def test_what_is_not_understood_lowers_accuracy():
    method = paper("TP 4 × PP 2 with 3 layers before the cut.")
    said = [f for f in fidelity(method, verify_paper(method)) if not f.holds]
    assert [f.name for f in said] == ["dense_8l, proposed: every number of its words"] and "'3 layers'" in said[
        0
    ].reason


@pytest.mark.parametrize(
    "words",
    [
        "TP 4 × PP 2 on 8 devices, four layers on each stage.", "eight stages of one layer each",
        "two replicas of TP 4, each on four GPUs", "PP 4 with two layers per stage, TP 2: eight A100 40GB in all",
    ],
)  # fmt: skip
def test_numbers_that_the_strategy_shows_are_not(words: str):
    method = paper(words)
    assert not [f for s in method.strategies for f in s.findings]


def test_more_devices_than_the_set_up_has_are_a_finding_with_both_numbers():
    method = paper("TP 8 in 5 replicas.")
    (finding,) = method.of(method.models[0].key, "proposed")[0].findings
    assert (finding.code, finding.values) == ("paper-devices", {"read": 40, "stated": 8})


# ------------------------------------------------------------------------------------------------ what cannot be loaded


def test_a_proposed_strategy_that_does_not_fit_is_drawn_and_marked_and_so_is_a_baseline():
    method = paper(layers=8, batch=65536, seq=32768, baseline="TP 8.", proposed="PP 4.")
    found = verify_paper(method)
    (fit,) = fits(method, found)
    assert not fit.holds and "GiB short for the KV cache" in fit.reason and "batch of at most" in fit.reason
    assert {g.name for g in found.graphs} == {"baseline", "proposed"}, "both are drawn"
    assert not [f for g in found.graphs for f in g.errors], "that it does not fit is no error of the graph"
    plan = plan_of(method, found, method.models[0])
    assert plan is not None and plan.status == "proven"
    assert [line.split(":")[0] for line in plan.at_risk] == [
        "dense_8l, baseline does not fit",
        "dense_8l, proposed does not fit",
    ]
    assert "Not deployable as given, for lack of memory: dense-8l, proposed." in headline(
        method, method.models[0], found
    )


@pytest.mark.parametrize(
    ("batch", "seq", "proposed", "rigor", "first"),
    [
        (8, 64, "PP 4.", 1.0, ""),
        (65536, 32768, "PP 4.", 0.5, "proposed does not fit"),
        (
            16384,
            1024,
            "TP 8.",
            1.0,
            "baseline does not fit",
        ),  # 8 KiB of cache per token: 17 GB on each of 8, 69 GB on each of 2
    ],
)
def test_rigor_is_lowered_where_the_proposed_strategy_cannot_be_loaded(
    tmp_path: Path, batch: int, seq: int, proposed: str, rigor: float, first: str
):
    from typer.testing import CliRunner

    from agent.cli import app

    file, out = tmp_path / "p.md", tmp_path / "run"
    baseline = "PP 2." if "baseline" in first else "TP 8."
    file.write_text(PAPER.format(proposed=proposed, baseline=baseline, layers=8, batch=batch, seq=seq))
    done = CliRunner().invoke(app, ["plan", str(file), "--out", str(out), "--json"])
    assert done.exit_code == 0, "published all the same"
    scores = {s["criterion"]: s["value"] for s in json.loads((out / "evaluation.json").read_text())["scores"]}
    report = (out / "plan.md").read_text().splitlines()
    assert scores["rigor"] == rigor and scores["accuracy"] == 1.0, "fidelity is another matter than fit"
    assert first in "\n".join(report[:12])
    assert any("**Below the bar.** Rigor 0.50" in line for line in report[:12]) == (rigor < 0.8)


def test_an_engines_rules_say_nothing_about_a_papers_graph():
    text = (Path(__file__).parent / "data" / "papers" / "voices" / "two_level_zh.md").read_text(encoding="utf-8")
    method = read_paper((input_from_text(text, "p.md"),))
    found = verify_paper(method)
    proposed = next(g for g in found.graphs if g.verified.subject.role == "plan")
    assert proposed.verified.subject.strategy.tp == 32, "four ranks for each of the 8 heads: no engine does that"
    assert proposed.estimate is not None and not [f for f in proposed.estimate.findings if f.severity == "error"]
    assert not [f for f in proposed.verified.findings if f.cause == "kv"], (
        "a head's cache is dealt out over its four ranks"
    )


def test_a_context_beyond_the_models_positions_is_said_first():
    text = (Path(__file__).parent / "data" / "papers" / "voices" / "no_degree.md").read_text(encoding="utf-8")
    method = read_paper((input_from_text(text, "p.md"),))
    plan = plan_of(method, verify_paper(method), method.models[0])
    assert plan is not None
    (line,) = [x for x in plan.at_risk if "position" in x]
    assert "4096" in line.replace(",", "") and "65536" in line.replace(",", "")


# ---------------------------------------------------------------------------------------------------- how papers say it


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("forty-eight", 48), ("one hundred and twenty-eight", 128), ("three thousand and seventy-two", 3072),
        ("one hundred and twenty-eight thousand", 128_000), ("a single", 1), ("1M", 1_048_576),
    ],
)  # fmt: skip
def test_numbers_in_words(words: str, value: int):
    assert whole(words) == value


def test_a_paper_names_its_own_method_and_its_symbols():
    terms = terms_of(
        "RingServe: long contracts", ["We introduce Helix-2 today. Let $N$ be the prompt length.".replace("$", " ")]
    )
    assert terms.names_own("RingServe (8 GPUs)") and not terms.names_own("Ring attention")
    assert list(terms.spelled("N = 4096")) == ["prompt length = 4096"]
    counted = terms_of("T", ["Let K be the number of pipeline stages and M the number of slices."])
    assert list(counted.spelled("K=6, M=24")) == ["6 pipeline stages", "24 slices"]


def test_a_paragraph_that_turns_to_another_role_is_two_statements():
    p = read_paper_text("# T\n\n## Experiments\nBaseline: TP 8. Proposed: TP 8 with\nsequence parallelism.\n", "f.md")
    assert [(x.label, x.said.strip()[:9], x.lines[0][1]) for x in p.passages] == [
        ("Baseline", "TP 8.", 4),
        ("Proposed", "TP 8 with", 4),
    ]


def test_latex_is_read_as_what_it_shows():
    p = read_paper_text(
        "\\section{Experiments}\n\\paragraph{Load.} $\\mathrm{TP}=8$, $2{,}048 \\times 2$, $d_{model}$\n", "f.md"
    )
    (x,) = p.passages
    assert (x.label, len(x.text)) == ("Load", len(x.raw))
    assert x.said.split() == ["TP", "=8", ",", "2,048", "×", "2", ",", "d_model"]


# ------------------------------------------------------------------------------------------------------- no paper at all


@pytest.mark.parametrize(
    "text",
    [
        "# Chat\n## TL;DR\nWe serve Llama-3-70B.\n## System\n8 H100.\n## Workload\n64 users.\n## Requirements\nTTFT < 2 s\n",
        "# Ops\n## TL;DR\nToday TP 8.\n## Architecture\nvLLM, 2 nodes.\n## Configuration\nMixtral-8x7B.\nSLO: TPOT below 40 ms\n",
    ],
)
def test_conditions_with_a_papers_headings_are_none(text: str):
    assert not is_paper((input_from_text(text, "c.md"),))


# ------------------------------------------------------------------------------------------------------ contradictions


def test_what_the_conclusion_says_otherwise_is_a_doubt_with_both_lines():
    text = PAPER.format(proposed="PP 4 on 4 GPUs.", baseline="TP 8.", layers=8, batch=8, seq=64)
    text += "\n## Conclusion\nOn a 12-layer model in BF16 our layout is faster; two layers never meet.\n"
    method = read_paper((input_from_text(text, "p.md"),))
    told = doubts(method)
    assert [d.split(" in the set-up")[0] for d in told] == ["hidden layers is 8", "weight dtype is fp16"]
    assert "line 10" in told[0] and "line 16" in told[0]
    assert method.models[0].spec.num_hidden_layers == 8


def test_a_paper_that_agrees_with_itself_raises_no_doubt():
    assert doubts(paper("PP 4 on 4 GPUs.")) == ()


@pytest.mark.parametrize(("declared", "told"), [("2.4M", False), ("3B", True)])
def test_a_declared_number_of_parameters_is_held_against_the_shape(declared: str, told: bool):
    text = PAPER.format(proposed="PP 4 on 4 GPUs.", baseline="TP 8.", layers=4, batch=8, seq=64)
    text = text.replace("FP16.", f"FP16. Model parameters: ~{declared}.")
    method = read_paper((input_from_text(text, "p.md"),))
    assert bool(method.conditions.conflicts) is told
