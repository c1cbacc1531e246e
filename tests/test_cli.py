"""The command line: exit codes, one-line errors, JSON on stdout, and answers at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = "## Hardware\n2 x H100 80GB\n## Model\nQwen2.5-7B\n## Workload\ninput 512, output 128, 16 concurrent requests\n"


def meshwright(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent.cli", *args], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def refused(done: subprocess.CompletedProcess[str], word: str) -> None:
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().count("\n") == 0, f"more than one line: {done.stderr}"
    assert word.lower() in done.stderr.lower(), done.stderr
    assert done.stdout == ""


def test_help_names_every_command_with_an_example(tmp_path):
    commands = ("plan", "resume", "show", "read", "search", "estimate", "dag", "prove", "check-dag", "export", "doctor")
    overview = meshwright("--help", cwd=tmp_path).stdout
    assert all(c in overview for c in commands)
    for c in commands:
        assert f"meshwright {c}" in meshwright(c, "--help", cwd=tmp_path).stdout


def test_help_imports_nothing_heavy():
    heavy = ("langgraph", "openai", "numpy", "pydantic", "mcp")
    code = f"import sys; from agent import cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "ok.md").write_text(SMALL)
    (tmp_path / "empty.md").write_text("")
    (tmp_path / "binary.md").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "anchors.yaml").write_text("a: &a\n  b: *a\n")
    (tmp_path / "broken.json").write_text('{"a": 1,,}')
    (tmp_path / "nogpu.md").write_text(SMALL.replace("2 x H100", "0 x H100"))
    (tmp_path / "negative.md").write_text(SMALL + "## Requirements\nTTFT below -3 s\n")
    (tmp_path / "unknown.md").write_text(SMALL.replace("Qwen2.5-7B", "Model: Lama-9-7000B"))
    (tmp_path / "task.md").write_text("Save in {save_path} <<<never closed")
    (tmp_path / "locked").mkdir()
    return tmp_path


BAD_INPUT = {
    "missing file": (("plan", "nosuch.md"), "nosuch.md"),
    "empty file": (("plan", "empty.md"), "empty"),
    "binary file": (("plan", "binary.md"), "binary"),
    "circular anchors": (("plan", "anchors.yaml"), "anchors.yaml"),
    "broken json": (("read", "broken.json"), "broken.json"),
    "no gpu": (("plan", "nogpu.md"), "device"),
    "negative limit": (("plan", "negative.md"), "ttft"),
    "unknown backend": (("plan", "ok.md", "--backend", "nope"), "nope"),
    "backend without model": (("plan", "ok.md", "--backend", "vllm"), "model"),
    "unknown objective": (("plan", "ok.md", "--objective", "cheapest"), "cheapest"),
    "out is a file": (("plan", "ok.md", "--out", "ok.md"), "ok.md"),
    "out below a file": (("plan", "ok.md", "--out", "ok.md/run"), "ok.md"),
    "missing task": (("plan", "ok.md", "--task", "nosuch"), "nosuch"),
    "unclosed remark": (("plan", "ok.md", "--task", "task.md", "--out", "o"), "<<<"),
    "no such replay": (("plan", "ok.md", "--backend", "replay:nosuch"), "nosuch"),
    "no such option": (("plan", "ok.md", "--sped"), "--sped"),
    "no argument": (("plan",), "conditions"),
    "unknown command": (("paln", "ok.md"), "paln"),
    "unknown model": (("search", "--model", "lama-9", "--device", "h100", "--isl", "9", "--osl", "9"), "did you mean"),
    "unknown device": (("search", "--model", "qwen2.5-7b", "--device", "h900x", "--isl", "9", "--osl", "9"), "h900x"),
    "negative rate": (
        ("search", "--model", "qwen2.5-7b", "--device", "h100", "--isl", "9", "--osl", "9", "--rate=-1"),
        "rate",
    ),
    "degrees that do not fit": (("prove", "--model", "qwen2.5-7b", "--tp", "4", "--ep", "3"), "ep(3)"),
    "zero tp": (("prove", "--model", "qwen2.5-7b", "--tp", "0"), "tp"),
    "not a plan": (("prove", "ok.md"), "plan.json"),
    "estimate of nothing": (("estimate",), "--model"),
    "csv without out": (("estimate", "--csv", "rows.csv"), "--out"),
    "unreadable dot": (("check-dag", "nosuch.dot"), "nosuch.dot"),
    "export of nothing": (("export", "nosuch.json", "--engine", "vllm", "--out", "o"), "nosuch.json"),
    "resume of nothing": (("resume", "nosuch"), "nosuch"),
    "phase unknown": (("prove", "--model", "qwen2.5-7b", "--phase", "both"), "prefill"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_2(files, name):
    args, word = BAD_INPUT[name]
    before = {p: p.read_bytes() for p in files.iterdir() if p.is_file()}
    refused(meshwright(*args, cwd=files), word)
    assert {p: p.read_bytes() for p in files.iterdir() if p.is_file()} == before, (
        "inputs untouched, nothing half-written"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_output_is_refused(files):
    (files / "locked").chmod(0o500)
    refused(meshwright("plan", "ok.md", "--out", "locked/run", cwd=files), "cannot write")


def test_a_directory_with_files_of_these_names_is_not_touched(files):
    (files / "mine").mkdir()
    (files / "mine" / "plan.md").write_text("my own plan")
    refused(meshwright("plan", "ok.md", "--out", "mine", cwd=files), "plan.md")
    assert (files / "mine" / "plan.md").read_text() == "my own plan"


def test_a_paper_is_recognised_and_refused(files):
    abstract = "## Abstract\nWe propose a method to train and serve models on 8 H100 GPUs.\n\n"
    paper = f"# Fast Pipelines\n\n{abstract}## References\n[1] arXiv:1909.08053\n"
    (files / "paper.md").write_text(paper)
    refused(meshwright("plan", "paper.md", "--out", "o", cwd=files), "paper")


def test_read_gives_facts_with_evidence(files):
    document = json.loads(meshwright("read", "ok.md", "--json", cwd=files).stdout)
    assert set(document) == {"facts", "conflicts", "missing", "ignored", "flags"}
    isl = next(f for f in document["facts"] if f["path"] == "workload.isl")
    assert (isl["value"], isl["evidence"]["line"]) == (512, 6)
    assert isl["evidence"]["quote"] in SMALL


def test_search_ranks_feasible_strategies(files):
    args = (
        "--model",
        "llama3.1-8b",
        "--device",
        "h100",
        "--nodes",
        "1",
        "--devices-per-node",
        "4",
        "--isl",
        "512",
        "--osl",
        "64",
    )
    done = meshwright(
        "search", *args, "--concurrency", "16", "--ttft-ms", "2000", "--percentile", "p90", "--json", cwd=files
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [c["rank"] for c in document["ranked"]] == list(range(1, len(document["ranked"]) + 1))
    assert all(c["estimate"]["feasible"] for c in document["ranked"])


def test_an_infeasible_search_is_an_answer(files):
    args = (
        "--model",
        "deepseek-v3",
        "--device",
        "rtx4090",
        "--nodes",
        "1",
        "--devices-per-node",
        "1",
        "--isl",
        "512",
        "--osl",
        "64",
    )
    done = meshwright("search", *args, "--json", cwd=files)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["infeasible"]["cause"]


def test_estimate_has_the_documented_keys(files):
    args = (
        "--model",
        "llama3.1-8b",
        "--device",
        "h100",
        "--tp",
        "2",
        "--isl",
        "512",
        "--osl",
        "64",
        "--concurrency",
        "8",
    )
    done = meshwright("estimate", *args, "--json", cwd=files)
    assert done.returncode == 0, done.stderr
    keys = {"feasible", "findings", "ttft_ms", "tpot_ms", "output_tok_s", "output_tok_s_per_device", "total_tok_s"}
    assert set(json.loads(done.stdout)) >= keys | {"concurrency", "batch", "band", "memory", "breakdown", "utilisation"}


def test_prove_reports_every_graph(files):
    done = meshwright(
        "prove", "--model", "qwen3-30b-a3b", "--tp", "2", "--attn-dp", "2", "--ep", "4", "--json", cwd=files
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [g["phase"] for g in document["graphs"]] == ["prefill", "decode"]
    for g in document["graphs"]:
        assert g["devices"] == 4 and g["max_relative_error"] < 1e-9 and g["seconds"] > 0


NEW_TYPE = {
    "model_type": "brand_new", "hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 4,
    "intermediate_size": 4096, "vocab_size": 32000, "rms_norm_eps": 1e-6, "max_position_embeddings": 8192,
}  # fmt: skip


def test_blocks_of_a_model_type_that_nobody_knows_are_said_to_be_guessed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(NEW_TYPE))
    (tmp_path / "task.md").write_text("4 x H100 80GB, 16 concurrent requests, input 512, output 128")
    proved = meshwright("prove", "--model", "config.json", "--tp", "4", cwd=tmp_path)
    assert proved.returncode == 0 and "warning: model_type 'brand_new' is not known here" in proved.stdout
    drawn = meshwright(
        "dag", "--model", "config.json", "--tp", "4", "--phase", "decode", "--out", "d", "--json", cwd=tmp_path
    )
    assert "blocks-in-doubt" in [f["code"] for f in json.loads(drawn.stdout)["findings"]]
    planned = meshwright("plan", "task.md", "config.json", "--out", "run", "--json", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    first = (tmp_path / "run" / "plan.md").read_text().split("\n## ")[0]
    assert "**At risk.** model: model_type 'brand_new' is not known here" in first
    assert "computes the model as it was read" in first
    assert "Below the bar" not in first  # the precision that nobody stated is a named assumption
    assumed = json.loads((tmp_path / "run" / "plan.json").read_text())["deployment"]["assumptions"]
    assert "model.weight_dtype" in [a["path"] for a in assumed]


def test_dag_draws_and_check_dag_finds_no_broken_rule(files):
    args = ("--model", "llama3.1-8b", "--tp", "2", "--pp", "2", "--phase", "decode", "--out", "dags", "--json")
    done = meshwright("dag", *args, cwd=files)
    assert done.returncode == 0, done.stderr
    graph = json.loads(done.stdout)["graphs"][0]
    assert all((files / graph[k]).stat().st_size > 0 for k in ("script", "dot", "svg"))
    checked = meshwright("check-dag", graph["dot"], "--json", cwd=files)
    assert checked.returncode == 0, checked.stdout[:2000]
    assert json.loads(checked.stdout)["ok"] is True


@pytest.mark.parametrize("text", ["digraph { a -> b -> a }", "digraph {", "not a graph"])
def test_check_dag_finds_what_is_wrong(files, text):
    (files / "bad.dot").write_text(text)
    done = meshwright("check-dag", "bad.dot", "--json", cwd=files)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["findings"]


def test_a_strategy_file_is_read_and_excludes_degrees(files):
    (files / "s.yaml").write_text("tp: 2\npp: 1\n")
    done = meshwright(
        "prove", "--model", "llama3.1-8b", "--strategy", "s.yaml", "--phase", "decode", "--json", cwd=files
    )
    assert [g["strategy"] for g in json.loads(done.stdout)["graphs"]] == ["tp2"] or done.returncode == 0
    refused(meshwright("prove", "--model", "llama3.1-8b", "--strategy", "s.yaml", "--tp", "4", cwd=files), "exclude")


def test_doctor_names_renderer_and_tokenizer(files):
    document = json.loads(meshwright("doctor", "--json", cwd=files).stdout)
    names = {c["name"] for c in document["checks"]}
    assert names >= {"python", "packages", "renderer", "tokenizer", "catalogue", "knowledge", "engines", "backends"}
    assert document["ok"] == (not [c for c in document["checks"] if c["status"] == "problem"])
