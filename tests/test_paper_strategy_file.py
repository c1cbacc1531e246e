"""Strategies from YAML and JSON files: presets, degrees, and errors that name the way out."""

# ruff: noqa: E501  (tables of examples read better unbroken)

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.reading.strategy_file import KEYS, PRESETS, load_strategy, strategy_file_markdown, strategy_from_data
from tools.spec.base import ToolError
from tools.spec.strategy import Strategy

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("data", "label"),
    [
        ({"tp": 8, "pp": 2}, "tp8·pp2"), ({"preset": "tp", "devices": 8}, "tp8"), ({"preset": "tp-sp", "devices": 8}, "tp8·sp"),
        ({"preset": "pp", "devices": 4}, "tp1·pp4"), ({"preset": "tp-pp", "tp": 8, "devices": 32}, "tp8·pp4"),
        ({"preset": "tp-dp", "tp": 4, "devices": 16}, "tp4·dp4"), ({"preset": "tp-ep", "devices": 8}, "tp8·ep8·etp1"),
        ({"preset": "dp-attention-ep", "devices": 16}, "tp1·attn_dp16·ep16·etp1"),
        ({"preset": "dp-attention-ep", "tp": 2, "pp": 2, "devices": 16}, "tp2·pp2·attn_dp4·ep8·etp1"),
        ({"preset": "ulysses", "devices": 16}, "tp1·cp16"), ({"preset": "ring", "tp": 2, "devices": 8}, "tp2·cp4"),
        ({"preset": "two-level", "dk": 4, "devices": 16}, "tp16·dk4"), ({"preset": "dcp", "dcp": 2, "devices": 8}, "tp8·dcp2"),
        ({"tensor_parallel_size": 4, "pipeline-parallel-size": 2}, "tp4·pp2"), ({"preset": "tp", "tp": 4}, "tp4"),
    ],
)  # fmt: skip
def test_a_preset_fills_its_open_axis(data: dict, label: str):
    moe = any(k in label for k in ("ep", "etp"))
    assert strategy_from_data(data).label(moe=moe) == label


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("devices", [4, 8, 16])
def test_every_preset_takes_all_its_devices(name: str, devices: int):
    s = strategy_from_data({"preset": name, "devices": devices, **dict.fromkeys(PRESETS[name].needs, 2)})
    assert s.num_devices == devices


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_what_is_written_comes_back(tmp_path: Path, suffix: str):
    s = Strategy(tp=4, pp=2, layers_per_stage=(7, 9), weight_dtype="fp8", cp=2, cp_kind="ring", sp=False)
    path = tmp_path / f"s.{suffix}"
    fields = s.model_dump(mode="json")
    path.write_text(
        json.dumps(fields) if suffix == "json" else "".join(f"{k}: {json.dumps(v)}\n" for k, v in fields.items())
    )
    assert load_strategy(path) == s
    (tmp_path / "plan.json").write_text(json.dumps({"strategy": fields, "status": "proven"}))
    assert load_strategy(tmp_path / "plan.json") == s


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tpp: 8", "unknown key 'tpp'; did you mean 'tp'"), ("tp: eight", "tp must be a whole number of at least 1, got 'eight'"), ("tp: 0", "got 0"),
        ("tp: 2.5", "got 2.5"), ("tp: true", "got True"), ("preset: ulyses\ndevices: 4", "did you mean 'ulysses'"), ("preset: tp", "needs devices"),
        ("preset: tp-pp\ndevices: 16", "needs tp"), ("preset: tp-pp\ntp: 8\ndevices: 12", "12 devices / 8"),
        ("tp: 8\ndevices: 16", r"= 8, but devices is 16"), ("layers_per_stage: 8\npp: 2", "list of whole numbers"),
        ("pp: 3\nlayers_per_stage: [8, 8]", "2 entries, but pp = 3"), ("weight_dtype: fp9", "did you mean 'fp8'"),
        ("preset: ring\ncp_kind: ulysses\ndevices: 4", "drop one of the two"), ("tp: 2\ntensor_parallel_size: 4", "second time"),
        ("", "an empty file"), ("[1, 2]", "a list"), ("hello", "'hello'"), ("{", "not JSON or YAML"), ("a: &x [*x]", "unknown key 'a'|not JSON or YAML"),
        ("tp: 3\nep: 2", "3/2"), ("sp: maybe", "true or false"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_with_the_way_out(tmp_path: Path, text: str, message: str):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ToolError, match=message) as caught:
        load_strategy(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_defaults_fill_what_the_file_leaves_out_and_nothing_else(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_text("tp: 2\nkv_dtype: fp8\n")
    s = load_strategy(path, {"weight_dtype": "fp8", "kv_dtype": "bf16"})
    assert (s.weight_dtype, s.kv_dtype) == ("fp8", "fp8")


def test_the_page_is_generated_and_names_every_key_and_preset():
    page = strategy_file_markdown()
    assert (ROOT / "docs" / "strategy-file.md").read_text(encoding="utf-8") == page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(KEYS) + len(PRESETS) and not [r for r in rows if r.rstrip(" |").endswith("|")]
    assert all(r.split("|")[-2].strip() for r in rows), "no key without a meaning"


def test_the_commands_take_a_strategy_file(tmp_path: Path):
    from typer.testing import CliRunner

    from agent.cli import app

    path = tmp_path / "s.yaml"
    path.write_text("preset: dp-attention-ep\ndevices: 4\n")
    runner = CliRunner()
    done = runner.invoke(app, ["prove", "--model", "mixtral-8x7b", "--strategy", str(path), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["graphs"][0]["devices"] == 4
    path.write_text("tpp: 4\n")
    assert (
        runner.invoke(
            app, ["dag", "--model", "mixtral-8x7b", "--strategy", str(path), "--out", str(tmp_path / "d")]
        ).exit_code
        == 2
    )
