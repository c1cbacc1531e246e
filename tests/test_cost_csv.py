"""`estimate --csv`: one answer per row, reasons where there is none."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from agent.estimate_csv import (
    COLUMNS,
    default_kv,
    engine_name,
    estimate_csv,
    length_deviation,
    length_share,
    readings,
)  # fmt: skip
from knowledge.catalog import load_device
from tools.spec.base import ToolError

HEADER = (
    "id,gpu,n_gpus,engine,model,weight_dtype,kv_dtype,tp,pp,ep,dp,attn_dp,isl,osl,length_range,"
    "concurrency_or_batch,metric"
)
ROWS = {
    "dense": "H100,8,vLLM,Llama-3.1-70B,fp8,,8,1,,1,1,1024,1024,0.8-1.0,64,at_concurrency",
    "offline": "H100,8,TensorRT-LLM,Llama-3.1-70B,fp8,fp8,8,1,,1,1,1024,1024,1.0-1.0,,max_throughput",
    "moe-dep": "H200,8,SGLang (Dynamo),DeepSeek-R1,fp8,,8,1,8,1,8,1024,1024,1.0-1.0,256,at_concurrency",
    "static": "A100,1,TensorRT-LLM,GPT-J-6B,fp16,,1,1,,1,1,128,128,1.0-1.0,64,max_throughput",
    "unknown-model": "H100,1,vLLM,Llama-9-1B,fp8,,1,1,,1,1,128,128,1.0-1.0,4,at_concurrency",
    "no-layout": "H100,16,vLLM,Llama-3.1-70B,fp8,,,,,,,128,128,1.0-1.0,4,at_concurrency",
    "uneven": "H100,8,SGLang,DeepSeek-R1,fp8,,8,1,1,1,3,128,128,1.0-1.0,4,at_concurrency",
    "not-a-number": "H100,8,vLLM,Llama-3.1-70B,fp8,,8,1,,1,1,many,128,1.0-1.0,4,at_concurrency",
    "bad-dtype": "H100,8,vLLM,Llama-3.1-70B,fp7,,8,1,,1,1,128,128,1.0-1.0,4,at_concurrency",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("csv")
    source = folder / "rows.csv"
    source.write_text("\n".join([HEADER, *(f"{k},{v}" for k, v in ROWS.items())]) + "\n", encoding="utf-8")
    before = source.read_bytes()
    summary = estimate_csv(source, folder / "out.csv")
    assert source.read_bytes() == before
    with (folder / "out.csv").open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert summary["rows"] == len(rows) == len(ROWS)
    assert summary["answered"] == sum(not r["reason"] for r in rows)
    assert tuple(rows[0]) == COLUMNS
    return {r["id"]: r for r in rows}


def test_every_row_has_one_answer_in_the_order_of_the_input(answers: dict[str, dict[str, str]]) -> None:
    assert list(answers) == list(ROWS)


@pytest.mark.parametrize("name", ["dense", "offline", "moe-dep", "static"])
def test_answerable_rows_have_every_number(answers: dict[str, dict[str, str]], name: str) -> None:
    row = answers[name]
    assert row["reason"] == ""
    assert all(row[k] != "" for k in COLUMNS if k != "reason")
    assert float(row["tpot_ms"]) > 0 and float(row["output_tok_s"]) > 0


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("unknown-model", "did you mean"),
        ("no-layout", "tp"),
        ("uneven", "attn_dp"),
        ("not-a-number", "isl"),
        ("bad-dtype", "fp7"),
    ],
)
def test_others_have_a_reason_and_no_number(answers: dict[str, dict[str, str]], name: str, word: str) -> None:
    row = answers[name]
    assert word in row["reason"]
    assert all(row[k] == "" for k in COLUMNS if k not in ("id", "reason"))


def test_offline_runs_at_the_largest_batch_and_a_closed_loop_at_its_concurrency(
    answers: dict[str, dict[str, str]],
) -> None:
    assert answers["offline"]["batch"] == answers["offline"]["max_batch"]
    assert answers["dense"]["concurrency"] == "64"


def test_engine_names_and_lengths_are_read_as_written() -> None:
    assert [engine_name(n) for n in ("TensorRT-LLM (Dynamo)", "vLLM", "SGLang (PD disaggregated)")] == [
        "trtllm",
        "vllm",
        "sglang",
    ]
    assert engine_name("vLLM-ROCm") == "vllm"
    with pytest.raises(ToolError, match="no name"):
        engine_name("(Dynamo)")
    assert (length_share("0.8-1.0"), length_share("1.0-1.0"), length_share("")) == (0.9, 1.0, 1.0)


def test_an_offline_run_of_experts_without_its_layout_is_read_both_ways() -> None:
    row = {
        "model": "Qwen3-30B-A3B",
        "engine": "TensorRT-LLM",
        "engine_version": "1.0",
        "tp": "4",
        "ep": "",
        "attn_dp": "",
    }
    offline = {**row, "metric": "max_throughput"}
    assert [(r["ep"], r["attn_dp"]) for r in readings(offline)] == [("", ""), ("4", "4")]
    for other in (
        {**offline, "ep": "4"}, {**offline, "engine_version": "0.21"}, {**offline, "model": "Llama-3.1-8B"},
        {**offline, "engine": "vLLM"}, {**offline, "tp": "1"}, {**row, "metric": "at_concurrency"},
    ):  # fmt: skip
        assert readings(other) == [other]


def test_lengths_deviate_by_their_range() -> None:
    """Uniform in [0.8, 1.0]: a width of 0.2 over sqrt(12), relative to a mean of 0.9."""
    assert length_deviation({"length_range": "0.8-1.0"}) == pytest.approx(0.2 / math.sqrt(12) / 0.9)
    assert length_deviation({"length_range": "1.0-1.0"}) == length_deviation({}) == 0.0


def test_a_blank_kv_dtype_is_the_engines_default() -> None:
    h100, b200 = load_device("H100").device, load_device("B200").device
    assert default_kv("trtllm", "fp8", h100) == "fp8"
    assert default_kv("trtllm", "bf16", h100) == "bf16"
    assert default_kv("vllm", "fp8", h100) == "bf16"
    assert default_kv("vllm", "nvfp4", b200) == "fp8"


def test_a_file_that_is_no_table_is_one_clear_error(tmp_path: Path) -> None:
    bad = tmp_path / "x.csv"
    bad.write_text("hello\nworld\n", encoding="utf-8")
    with pytest.raises(ToolError, match="columns missing"):
        estimate_csv(bad, tmp_path / "o.csv")
    with pytest.raises(ToolError, match="cannot be read"):
        estimate_csv(tmp_path / "none.csv", tmp_path / "o.csv")
