"""The DAG of a training step keeps the rules, and the commands draw and prove it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent.cli import app
from knowledge.catalog import load_model
from tools.dag.check_dot import check_dot
from tools.dag.dot import to_dot
from tools.dag.graph import Dag
from tools.dag.train import train_dag
from tools.dag.train_schedule import train_schedule_dag
from tools.graph.build import all_sizes
from tools.partition.train import lower_train
from tools.spec.base import ToolError
from tools.spec.strategy import Strategy
from tools.spec.training import TrainOptions

NEEDS_MORE = {"R13", "R16", "R17", "R18", "R21"}
"""Rules that ask for the run; R21 forbids what training is for: sums over the batch."""
CASES: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("llama-3-8b", {"tp": 2, "dp": 2, "sp": True}, {}),
    ("llama-3-8b", {"tp": 2, "pp": 2, "dp": 2}, {"zero": 3, "micro_batches": 4}),
    ("gemma-2b", {"pp": 2, "dp": 2}, {"zero": 1}),
    ("gemma-2b", {"pp": 2, "virtual": 2}, {"micro_batches": 2}), ("gemma-2b", {"dp": 2}, {"zero": 2, "master_weights": False}),
    ("llama-3-8b", {"cp": 2, "tp": 2}, {"recompute": "full"}),
    ("llama-3-8b", {"cp": 2, "cp_kind": "ring", "tp": 2}, {"zero": 1}),
    ("qwen3-30b-a3b", {"attn_dp": 2, "tp": 2, "ep": 2, "etp": 2}, {"zero": 2}),
    ("deepseek-v3", {"attn_dp": 4, "ep": 4}, {"zero": 3, "recompute": "full", "micro_batches": 2}),
)  # fmt: skip


def draw(model: str, degrees: dict[str, Any], options: dict[str, Any], detail: Any = "full") -> Dag:
    m, s = load_model(model).model, Strategy.model_validate(degrees)
    batch = 2 * s.dp * (s.attn_dp or 1)
    sizes = all_sizes(m, batch_size=batch, seq_len=256, kv_len=256)
    return train_dag(lower_train(m, s, TrainOptions.model_validate(options), sizes), detail=detail)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]} {c[1]} {c[2]}")
def test_every_rule_that_can_be_judged_passes(case: tuple[str, dict[str, Any], dict[str, Any]]) -> None:
    (report,) = check_dot(to_dot(draw(*case)), "train.dot")
    assert {r.rule: r.message for r in report.results if r.status == "failed"} == {}
    assert {r.rule for r in report.results if r.status == "not_decidable"} <= NEEDS_MORE


def test_every_collective_of_the_program_is_drawn_once_per_group() -> None:
    m, s = load_model("llama-3-8b").model, Strategy(tp=2, dp=2, sp=True)
    program = lower_train(m, s, TrainOptions(zero=1), all_sizes(m, batch_size=4, seq_len=256, kv_len=256))
    drawn = [n for n in train_dag(program).nodes if n.role == "comm"]
    want = sum(
        len(program.mesh.groups(q.comm.axes))
        for stage in program.stages for body, _ in stage.bodies() for _, p in body.programs() for q in p.ops
        if q.comm is not None and q.comm.kind != "slice"
    )  # fmt: skip
    assert len(drawn) == want


def test_micro_batches_are_split_and_their_gradients_added() -> None:
    dag = draw("llama-3-8b", {"dp": 2}, {"micro_batches": 4})
    assert next(n for n in dag.nodes if n.step == "split_micro").inputs[0].dims[0] == ("batch_size", 16)
    sums = [n for n in dag.nodes if n.kernel == "accumulate"]
    assert len(sums) == 2 * 12 and all("sum of 4 micro-batches" in n.notes for n in sums)


def test_gradients_travel_back_through_the_stages() -> None:
    dag = draw("llama-3-8b", {"pp": 3}, {})
    hops = [n.devices for n in dag.nodes if n.kernel == "p2p"]
    assert hops == [(0, 1), (1, 2), (2, 1), (1, 0)]


def test_the_flops_of_a_backward_pass_are_twice_the_forwards() -> None:
    """Two matmuls for one: the data gradient and the weight gradient; the attention kernel makes its scores again."""
    dag = draw("llama-3-8b", {}, {})
    outside = [n for n in dag.nodes if n.flops and not n.kernel.startswith("attention") and "_upd" not in n.step]
    forward = sum(n.flops * n.repeats for n in outside if "_bwd_" not in n.step)
    backward = sum(n.flops * n.repeats for n in outside if "_bwd_" in n.step)
    assert backward == pytest.approx(2 * forward, rel=1e-6)
    attention = {b: sum(n.flops for n in dag.nodes if n.kernel == f"attention{b}") for b in ("", "_bwd")}
    assert attention["_bwd"] == 2.5 * attention[""]  # FlashAttention-2, arXiv 2307.08691 §4.1


def test_a_view_that_a_training_step_has_not_is_refused() -> None:
    with pytest.raises(ToolError, match="no stage view; use full, group, or schedule"):
        draw("llama-3-8b", {}, {}, "stage")
    assert len(draw("llama-3-8b", {"tp": 4}, {}, "group").lanes) == 1


def schedule(degrees: dict[str, Any], options: dict[str, Any], layers: int = 8) -> Dag:
    full = load_model("gpt2").model
    m = full.model_copy(
        update={"num_hidden_layers": layers, "vocab_size": 64}
    )  # a head that weighs nothing: equal tasks
    s = Strategy.model_validate(degrees)
    sizes = all_sizes(m, batch_size=s.dp, seq_len=512, kv_len=512)
    return train_schedule_dag(lower_train(m, s, TrainOptions.model_validate(options), sizes))


@pytest.mark.parametrize(
    ("degrees", "options"),
    [({"pp": 4}, {"micro_batches": 8}), ({"pp": 4}, {"micro_batches": 8, "schedule": "gpipe"}),
     ({"pp": 2, "virtual": 2, "tp": 2}, {"micro_batches": 4}), ({"pp": 2}, {"micro_batches": 1, "recompute": "full"})],
)  # fmt: skip
def test_a_schedule_shows_every_micro_batch_in_both_directions(
    degrees: dict[str, Any], options: dict[str, Any]
) -> None:
    dag = schedule(degrees, options)
    chunks, times = degrees["pp"] * degrees.get("virtual", 1), options["micro_batches"]
    for word in ("forward", "backward"):
        assert sum(n.operator.startswith(word) for n in dag.nodes) == chunks * times
    assert sum(n.kernel == "p2p" for n in dag.nodes) == 2 * (chunks - 1) * times
    (report,) = check_dot(to_dot(dag), "schedule.dot")
    assert {r.rule: r.message for r in report.results if r.status == "failed"} == {}
    ideal = (degrees["pp"] - 1) / (degrees.get("virtual", 1) * times + degrees["pp"] - 1)
    assert float(dag.attrs["bubble"]) == pytest.approx(ideal, abs=0.02)


# ------------------------------------------------------------------------ commands


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(args))
    return result.exit_code, result.output


def test_prove_says_one_line_per_graph() -> None:
    args = (
        "prove",
        "--model",
        "llama3.1-8b",
        "--tp",
        "2",
        "--dp",
        "2",
        "--phase",
        "train",
        "--train",
        "zero=3,recompute=full",
    )
    code, text = run(*args)
    assert code == 0 and "tp2·dp2 train zero3·full: proven, 4 devices" in text and "weights updated" in text
    code, text = run(*args, "--json")
    (graph,) = json.loads(text)["graphs"]
    assert graph["phase"] == "train" and graph["ok"] and graph["max_relative_error"] <= 1e-9 and graph["devices"] == 4


def test_dag_writes_the_files_and_says_what_fits(tmp_path: Path) -> None:
    args = (
        "dag",
        "--model",
        "gemma-2b",
        "--dp",
        "2",
        "--phase",
        "train",
        "--train",
        "zero=1",
        "--seq",
        "128",
        "--json",
    )
    code, text = run(*args, "--out", str(tmp_path))
    (graph,) = json.loads(text)["graphs"]
    assert code == 0 and graph["findings"] == [] and Path(graph["dot"]).is_file() and Path(graph["svg"]).is_file()
    assert graph["memory"][0]["parameters_bytes"] > 5e9


def test_options_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("zero: 2\nmicro-batches: 2\n")
    code, text = run(
        "prove", "--model", "gemma-2b", "--dp", "2", "--phase", "train", "--train", str(tmp_path / "t.yaml")
    )
    assert code == 0 and "train zero2·m2: proven" in text
    (tmp_path / "u.yaml").write_text("- zero\n")
    assert run("prove", "--model", "gemma-2b", "--phase", "train", "--train", str(tmp_path / "u.yaml"))[0] == 2
    assert run("prove", "--model", "gemma-2b", "--phase", "train", "--train", str(tmp_path / "none.yaml"))[0] == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--train", "zer=1", "--phase", "train"), "did you mean zero"), (("--train", "zero", "--phase", "train"), "key=value"),
        (("--train", "zero=7", "--phase", "train"), "0, 1, 2 or 3"), (("--train", "zero=1"), "--phase train"),
        (("--cp", "2", "--phase", "train", "--strategy", "nowhere.yaml"), "exclude"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line(args: tuple[str, ...], words: str) -> None:
    code, text = run("prove", "--model", "gemma-2b", *args)
    assert code == 2 and words in text and len(text.strip().splitlines()) == 1


def test_the_page_is_what_the_code_says() -> None:
    from agent.training_page import training_markdown

    page = Path(__file__).parent.parent / "docs" / "training.md"
    assert page.read_text(encoding="utf-8") == training_markdown(), "run `make docs`"
