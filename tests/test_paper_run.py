"""A paper becomes proven DAGs: per model, baseline and proposed, prefill and decode."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from agent.paper_plan import plan_of
from agent.paper_run import PaperResult, deployment_of, run_paper, verify_paper
from agent.reading.paper import read_paper
from agent.reading.sources import input_from_text, read_file
from tools.spec.base import Refused

DATA = Path(__file__).parent / "data" / "papers"

SMALL = """# Attention copies and whole experts

## Abstract
We propose to keep experts whole and attention whole.

## Method
Attention runs data-parallel; every expert lives on one device. Tokens are sent by one all-to-all and returned by a second.

## Experiments
Model A: 4 layers, hidden size 64, 4 heads × 16, 4 experts, top-2, expert hidden size 96, vocabulary 256, BF16.
Model B: as A, but 8 experts, and the first layer is dense with MLP hidden size 128.
Batch size 16, sequence length 32, 8 output tokens.
Hardware: 8 H100, 8 per node.
Baselines: A: TP 2 × PP 2 on 4 devices. B: TP 4 × DP 2 on 8 devices.
Proposed: A: EP 4 on 4 devices; B: EP 8 on 8 devices.

## Conclusion
It works.
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> PaperResult:
    method = read_paper((input_from_text(SMALL, "small.md"),))
    return run_paper(method, tmp_path_factory.mktemp("paper"))


def test_every_model_has_baseline_and_proposed_in_both_phases(result: PaperResult):
    names = {d.name for d in result.drawn.drawings}
    assert names == {
        f"model_{m}_{r}_{p}" for m in "ab" for r in ("baseline", "proposed") for p in ("prefill", "decode")
    }


def test_every_graph_is_proven_and_breaks_no_rule(result: PaperResult):
    assert not result.errors
    for g in result.verification.graphs:
        assert all(p.ok and p.max_relative_error <= 1e-9 for p in g.verified.proofs.values())
        assert g.verified.parts and all(p.matches for p in g.verified.parts)
    for d in result.drawn.drawings:
        assert {"R01", "R04", "R06", "R14", "R15", "R19"} <= set(d.passed) and not [
            f for f in d.findings if f.severity == "error"
        ]


def test_batch_and_sequence_reach_the_dims_of_the_dag(result: PaperResult, tmp_path: Path):
    sizes = {(g.model, g.name): g.verified.sizes for g in result.verification.graphs}
    assert sizes["model_a", "proposed"]["prefill"].model_dump() == {"batch_size": 16, "seq_len": 32, "kv_len": 32}
    assert sizes["model_a", "proposed"]["decode"].model_dump() == {"batch_size": 16, "seq_len": 1, "kv_len": 40}
    assert sizes["model_b", "baseline"]["prefill"].batch_size == 8, "two replicas share the batch of 16"
    again = run_paper(result.method, tmp_path)
    dot = (tmp_path / "state" / "dag" / "model_a_proposed_prefill.dot").read_text()
    assert set(re.findall(r"batch_size=(\d+)", dot)) == {"16", "4"}, "all of it, and a device's share"
    assert set(re.findall(r"seq_len=(\d+)", dot)) == {"32"}
    assert again.drawn == result.drawn, "the same paper gives the same files"


def test_the_plan_of_each_model_holds_its_own_strategy_and_baseline(result: PaperResult):
    for m in result.method.models:
        plan = plan_of(result.method, result.verification, m, result.drawn)
        assert plan is not None and plan.strategy == result.method.of(m.key, "proposed")[0].strategy
        assert plan.deployment.model == m.spec
        assert sorted(r for row in plan.rank_map for r in row["ranks"]) == list(range(plan.num_devices))
        assert plan.phases["prefill"]["baseline"]["digest"] != plan.phases["prefill"]["digest"]
        assert len(plan.proposal["graphs"]) == 8 and all(row["ok"] and row["dag"] for row in plan.proposal["graphs"])


def test_a_device_that_nobody_names_is_an_assumption(result: PaperResult):
    method = read_paper((input_from_text(SMALL.replace("Hardware: 8 H100, 8 per node.\n", ""), "p.md"),))
    d = deployment_of(method, method.models[0], method.of("model_a", "proposed")[0])
    assert any(a.path == "hardware.device" for a in d.assumptions) and d.cluster.num_devices == 4


def test_a_proposed_strategy_that_cannot_be_laid_out_is_refused_with_its_words():
    text = (DATA / "ulysses_dense_16l.md").read_text().replace("32 heads of dimension 128", "24 heads of dimension 128")
    method = read_paper((input_from_text(text, "p.md"),))
    with pytest.raises(Refused, match=r"p\.md line \d+.*heads\(24\).*the exchange over P = 16") as caught:
        verify_paper(method)
    assert "\n" not in str(caught.value)


def test_a_baseline_that_cannot_be_laid_out_is_told_and_the_rest_is_drawn():
    found = verify_paper(read_paper((read_file(DATA / "own" / "compare.md"),)))
    assert {g.name for g in found.graphs} == {"baseline", "baseline_2", "proposed"}
    assert [(u.role, u.what) for u in found.refused] == [("baseline", "tp2·cp8")] and "heads(40)" in found.refused[
        0
    ].why


@pytest.mark.parametrize("name", ["two_level", "ring_zh", "sp_meg", "uneven", "published", "words"])
def test_other_papers_are_proven(name: str):
    found = verify_paper(read_paper((read_file(DATA / "own" / f"{name}.md"),)))
    assert not found.refused
    assert all(p.ok for g in found.graphs for p in g.verified.proofs.values()) and not [
        f for g in found.graphs for f in g.errors
    ]


def run_cli(*args: str) -> int:
    from typer.testing import CliRunner

    from agent.cli import app

    return CliRunner().invoke(app, list(args)).exit_code


def test_plan_of_a_paper_publishes_and_scores_it(tmp_path: Path):
    paper, out = tmp_path / "small.md", tmp_path / "run"
    paper.write_text(SMALL)
    before = paper.read_bytes()
    assert run_cli("plan", str(paper), "--out", str(out), "--json") == 0
    assert paper.read_bytes() == before
    manifest = json.loads((out / "manifest.json").read_text())
    kinds = [a["kind"] for a in manifest["artifacts"]]
    assert (kinds.count("dag_dot"), kinds.count("dag_svg"), kinds.count("dag_script"), kinds.count("plan")) == (
        8,
        8,
        8,
        2,
    )
    assert manifest["status"] == "proven" and all((out / a["path"]).is_file() for a in manifest["artifacts"])
    scores = {s["criterion"]: s for s in json.loads((out / "evaluation.json").read_text())["scores"]}
    assert all(s["value"] >= 0.8 for s in scores.values() if s["barred"]), {
        k: (s["value"], s["reason"]) for k, s in scores.items()
    }
    assert not scores["performance"]["barred"], "the paper dictates the strategy"
    report = (out / "plan.md").read_text()
    assert "EP 8 on 8 devices" in report and "Model B: proposed" in report and "Not used from the paper" in report
    assert run_cli("show", str(out)) == 0 and run_cli("prove", str(out / "models" / "model_b" / "plan.json")) == 0


def test_plan_of_a_paper_that_cannot_be_represented_exits_2_and_writes_nothing(tmp_path: Path):
    out = tmp_path / "run"
    assert run_cli("plan", str(DATA / "wordings" / "fsdp.md"), "--out", str(out)) == 2
    assert not out.exists()


def test_read_shows_a_paper_with_its_words(tmp_path: Path):
    from typer.testing import CliRunner

    from agent.cli import app

    paper = tmp_path / "small.md"
    paper.write_text(SMALL)
    done = CliRunner().invoke(app, ["read", str(paper), "--json"])
    assert done.exit_code == 0
    facts = json.loads(done.stdout)["facts"]
    said = {f["path"]: f["value"] for f in facts}
    assert (said["model.model_a.hidden_size"], said["model.model_b.num_experts"], said["workload.model_a.isl"]) == (
        64,
        8,
        32,
    )
    assert said["hardware.device"] == "h100_sxm_80gb" and said["workload.model_b.osl"] == 8
    assert said["strategy.model_a.proposed"] == {"ep": 4, "attn_dp": 4, "devices": 4}
    lines = SMALL.splitlines()
    for f in facts:
        assert f["origin"] != "stated" or f["evidence"]["quote"] in lines[f["evidence"]["line"] - 1]


def test_a_published_model_gets_launch_files_and_another_one_the_reason(tmp_path: Path):
    from agent.paper_launch import paper_launch

    published = read_paper((read_file(DATA / "wordings" / "f_pd.md"),))
    verification = verify_paper(published)
    plan = plan_of(published, verification, published.models[0])
    assert plan is not None and set(plan.pools) == {"prefill", "decode"} and plan.num_devices == 12
    files, _ = paper_launch(published.models[0], plan)
    assert {"vllm/prefill.sh", "vllm/decode.sh", "sglang/proxy.sh"} <= {f.name for f in files}
    small = read_paper((input_from_text(SMALL, "small.md"),))
    own = plan_of(small, verify_paper(small), small.models[0])
    assert own is not None
    files, said = paper_launch(small.models[0], own)
    assert not files and "engines load checkpoints by name" in said[0].message
