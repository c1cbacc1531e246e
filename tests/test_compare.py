"""audit and diff, from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.commands.common import load_plan
from agent.commands.compare import audit, diff, facts
from agent.errors import FINDINGS, OK

ASKED: dict = {
    "model": None,
    "device": "h100",
    "nodes": None,
    "devices_per_node": None,
    "isl": 2048,
    "osl": 256,
    "concurrency": 48,
}


def test_what_runs_today_is_parsed_proven_and_set_beside_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    code = audit("vllm serve meta-llama/Llama-3.1-70B-Instruct -tp 4 -pp 2", ASKED, True)
    out = json.loads(capsys.readouterr().out)
    assert code == OK
    assert out["report"]["strategy"]["tp"] == 4 and out["report"]["strategy"]["pp"] == 2
    assert [p["ok"] for p in out["proofs"]] == [True, True]
    assert out["today"] and out["best"] and out["gain"] is not None


def test_a_command_that_cannot_run_is_refuted_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code = audit("vllm serve Qwen/Qwen2.5-7B-Instruct -tp 7", {**ASKED, "device": None}, True)
    out = json.loads(capsys.readouterr().out)
    assert code == FINDINGS
    assert not out["legal"] and "kv_heads(4)" in out["refuted"]


def test_two_plans_differ_in_what_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from agent.cli import main

    for name, users in (("a", 16), ("b", 64)):
        text = "8 x H100 SXM 80GB in one node, Llama-3-8B, input 1000 tokens, output 200 tokens. TTFT under 2 s. "
        text += f"{users} concurrent requests."
        (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
        with pytest.raises(SystemExit) as ended:
            main(["plan", str(tmp_path / f"{name}.md"), "--out", str(tmp_path / name), "--json"])
        assert ended.value.code == 0
    capsys.readouterr()
    left, right = (tmp_path / n / "plan.json" for n in "ab")
    assert diff(left, right, True) == OK
    rows = {r["what"] for r in json.loads(capsys.readouterr().out)["differences"]}
    assert "output tokens/s" in rows and "model" not in rows
    assert diff(left, left, True) == OK
    assert json.loads(capsys.readouterr().out)["equal"]
    assert facts(load_plan(left))["status"] == "proven"
