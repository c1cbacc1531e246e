""" "H100 or H20?": every device named is searched, and the plan is made for the best answer. Whole runs over two kinds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.reading.reader import read_conditions
from agent.reading.resolve import resolve
from agent.reading.sources import InputFile
from knowledge.curves import load_curves
from tools.search.economics import choice, compare_devices, on_best_device, verdict
from tools.spec.deployment import Deployment

CURVES = load_curves()
LOAD = " Model: Llama-3-8B bf16. Input 1000 tokens, output 200 tokens, 4 requests/s. TTFT below 2 s, TPOT below 30 ms."


def conditions(hardware: str, load: str = LOAD) -> Deployment:
    return resolve(read_conditions([InputFile(path="c.md", sha256="", text=hardware + load, kind="markdown")]))


@pytest.mark.parametrize("named", ["H100 or A10? We have 4 of either.", "A10 or H100? We have 4 of either."])
def test_the_answer_does_not_depend_on_which_is_named_first(named: str) -> None:
    best = on_best_device(conditions(named), CURVES)
    assert best.cluster.device.id == "h100_sxm_80gb" and [c.device.id for c in best.other_clusters] == ["a10_24gb"]


def test_without_prices_the_fewest_devices_win_and_with_prices_the_cheapest() -> None:
    plain = "可选 L40S 或 H100，各 4 张。"
    assert on_best_device(conditions(plain), CURVES).cluster.device.id == "h100_sxm_80gb"
    priced = f"{plain} An H100 costs $9 per GPU hour. An L40S costs $0.8 per GPU hour."
    d = conditions(priced)
    best = on_best_device(d, CURVES)
    assert best.cluster.device.id == "l40s_48gb" and best.prices == d.prices
    rows = [r for r in compare_devices(d, CURVES) if r.setting == "fewest_devices"]
    assert min(rows, key=lambda r: r.price_per_hour or 0.0).device == "l40s_48gb"


def test_a_device_that_its_stated_number_does_not_suffice_for_is_not_taken() -> None:
    d = conditions("1 张 A10 或 2 张 H100，哪个更合适？价格：A10 每卡每小时 0.1 美元，H100 每卡每小时 9 美元。")
    assert {c.device.id: c.num_devices for c in (d.cluster, *d.other_clusters)} == {"a10_24gb": 1, "h100_sxm_80gb": 2}
    rows = compare_devices(d, CURVES)
    found = choice(rows)
    assert found is not None and [r.device for r in found.ranked] == ["h100_sxm_80gb"]
    assert "a10_24gb cannot" in verdict(rows)
    assert on_best_device(d, CURVES).cluster.device.id == "h100_sxm_80gb"


def test_where_none_serves_the_load_the_first_named_stays() -> None:
    impossible = LOAD.replace("TPOT below 30 ms", "TPOT below 0.01 ms")
    d = conditions("H100 or A10? We have 4 of either.", impossible)
    assert on_best_device(d, CURVES) == d
    assert verdict(compare_devices(d, CURVES)) == "none of the devices named serves the load within the requirements"


def test_what_is_asked_about_by_name_stays_asked() -> None:
    d = conditions("A10 or H100? We have 4 of either. How good would TP4 be?")
    assert on_best_device(d, CURVES).alternatives == d.alternatives


# ----------------------------------------------------------------------------------------------------------- whole runs


def planned(text: str, folder: Path) -> tuple[dict[str, Any], Path]:
    (folder / "c.md").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli", "plan", "c.md", "--out", "out"], cwd=folder, env={**os.environ},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out" / "plan.json").read_text()), folder / "out"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    text = (
        "# Hardware\n2 H100 and 2 A100 80GB\n# Model\nQwen2.5-7B-Instruct, bf16\n# Load\nInput 512 tokens, output 128 tokens, "
        "64 concurrent requests\n# Limits\nTTFT below 2 s, TPOT below 50 ms\n"
    )
    return planned(text, tmp_path_factory.mktemp("mixed"))


def test_a_plan_over_two_kinds_says_the_kind_of_every_rank(mixed: tuple[dict[str, Any], Path]) -> None:
    plan, _ = mixed
    assert plan["status"] == "proven" and plan["num_devices"] == 4
    by_kind: dict[str, list[int]] = {}
    for row in plan["rank_map"]:
        by_kind.setdefault(row["device"], []).extend(row["ranks"])
    assert {k: len(v) for k, v in by_kind.items()} == {"h100_sxm_80gb": 2, "a100_sxm_80gb": 2}
    assert sorted(r for ranks in by_kind.values() for r in ranks) == [0, 1, 2, 3]


def test_every_group_is_proven_drawn_and_launched_by_itself(mixed: tuple[dict[str, Any], Path]) -> None:
    plan, out = mixed
    assert len(plan["units"]) == 2
    placed = json.loads((out / "launch" / "placement.json").read_text())["units"]
    assert sum(u["share"] for u in placed) == pytest.approx(1.0)
    for unit in plan["units"]:
        assert all(unit["phases"][p]["proof"]["ok"] for p in ("prefill", "decode"))
        assert all(p["matches"] for p in unit["parts"])
        dot = (out / "dag" / f"plan_{unit['name']}_decode.dot").read_text()
        assert f"· {unit['name']}" in dot and unit["phases"]["decode"]["digest"] in dot
        assert (out / "launch" / unit["name"] / "vllm" / "serve.sh").is_file()
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["passed"] and not evaluation["failed_checks"]


def test_the_report_sets_the_ways_side_by_side(mixed: tuple[dict[str, Any], Path]) -> None:
    _, out = mixed
    report = (out / "plan.md").read_text()
    assert "## Ways to use the kinds of devices (predicted)" in report and report.count("**the plan**") == 1
    assert "h100_sxm_80gb; a100_sxm_80gb" in report or "a100_sxm_80gb; h100_sxm_80gb" in report


def test_a_published_plan_over_two_kinds_is_exported_again(mixed: tuple[dict[str, Any], Path]) -> None:
    _, out = mixed
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli", "export", str(out / "plan.json"), "--engine", "sglang", "--out", str(out / "x")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = {p.relative_to(out / "x").parts[0] for p in (out / "x").rglob("serve.sh")}
    assert made == {"h100_sxm_80gb", "a100_sxm_80gb"}
