"""--approve: nothing is published before a person says yes; record and replay: a whole run again without a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.llm.cassette import cassette, scrubbed, secrets
from tests.fake_openai import serving
from tests.test_agent_run import CONDITIONS, artifacts, chosen, core, meshwright


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("approve")
    (folder / "small.md").write_text(CONDITIONS)
    (folder / "impossible.md").write_text(CONDITIONS.replace("TPOT below 50 ms", "TPOT below 0.05 ms"))
    assert meshwright("plan", "small.md", "--out", "plain", cwd=folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def paused(here: Path) -> Path:
    done = meshwright("plan", "small.md", "--out", "paused", "--approve", "--json", cwd=here)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["status"] == "awaiting_approval" and shown["scores"]["rigor"] > 0
    assert not (here / "paused" / "manifest.json").exists(), "nothing is published yet"
    assert "proven" in (here / shown["review"]).read_text().lower()
    return here / "paused"


def test_show_and_a_resume_without_an_answer_leave_it_waiting(here, paused):
    for command in ("show", "resume"):
        done = meshwright(command, "paused", cwd=here)
        assert done.returncode == 0 and "--approve yes" in done.stdout, done.stderr
    assert not (paused / "manifest.json").exists()


def test_no_leads_to_another_strategy_and_yes_publishes_it(here, paused):
    no = meshwright("resume", "paused", "--approve", "no", "--reason", "no such racks", "--json", cwd=here)
    assert no.returncode == 0, no.stderr
    assert json.loads(no.stdout)["status"] == "awaiting_approval"
    log = (paused / "events.jsonl").read_text()
    assert "no such racks" in log, "the next proposal reads the reason"
    yes = meshwright("resume", "paused", "--approve", "yes", "--json", cwd=here)
    assert yes.returncode == 0 and json.loads(yes.stdout)["status"] == "proven", yes.stderr
    assert chosen(paused) != "" and core(paused) != core(here / "plain")


def test_yes_at_once_publishes_what_a_run_without_pause_publishes(here):
    assert meshwright("plan", "small.md", "--out", "yes", "--approve", cwd=here).returncode == 0
    assert meshwright("resume", "yes", "--approve", "yes", cwd=here).returncode == 0
    assert artifacts(here / "yes") == artifacts(here / "plain")


def test_an_answer_nobody_waits_for_and_nonsense_are_refused(here):
    asked = (("plain", "--approve", "yes"), ("plain", "--approve", "maybe"), ("plain", "--reason", "x"))
    for arguments in asked:
        done = meshwright("resume", *arguments, cwd=here)
        assert done.returncode == 2 and "Traceback" not in done.stderr, arguments


def test_an_infeasible_verdict_can_be_approved_and_not_rejected(here):
    assert meshwright("plan", "impossible.md", "--out", "never", "--approve", cwd=here).returncode == 0
    no = meshwright("resume", "never", "--approve", "no", cwd=here)
    assert no.returncode == 2 and "change the conditions" in no.stderr
    assert meshwright("resume", "never", "--approve", "yes", cwd=here).returncode == 3


# ------------------------------------------------------------------------------------------------------ record, replay

KEY = "sk-very-secret-key-4711-abcdef"


def test_a_recorded_run_replays_offline_without_its_secrets(here):
    (here / "meshwright.toml").write_text(
        '[backends.fake]\nbase_url = "http://x/v1"\nkey_env = "FAKE_API_KEY"\nmodel = "m"\nprice = {input = 1, output = 2}\n'
    )
    (here / "leaky.md").write_text(CONDITIONS + f"\nOur internal token is {KEY}, please keep it.\n")
    with serving() as (url, seen):
        args = ("plan", "leaky.md", "--out", "live", "--backend", "fake", "--llm-base-url", url, "--json")
        live = meshwright(*args, cwd=here, env={"FAKE_API_KEY": KEY})
    assert live.returncode == 0 and len(seen) >= 6, live.stderr
    usage = json.loads(live.stdout)["usage"]
    assert usage["total"]["calls"] == len(seen) and usage["total"]["cost"] > 0
    assert set(usage["nodes"]) >= {"read_conditions", "propose_strategy"}
    shown = meshwright("show", "live", cwd=here).stdout
    assert "propose_strategy" in shown and "USD" in shown
    done = meshwright("record", "live", "--out", "tape/live.jsonl", "--json", cwd=here, env={"FAKE_API_KEY": KEY})
    assert done.returncode == 0 and json.loads(done.stdout)["scrubbed"] >= 1, done.stderr
    tape = (here / "tape" / "live.jsonl").read_text()
    assert KEY not in tape and "4711" not in tape and str(here) not in tape
    again = meshwright("plan", "leaky.md", "--out", "again", "--backend", "replay:tape/live.jsonl", "--json", cwd=here)
    assert again.returncode == 0 and json.loads(again.stdout)["degraded"] == [], again.stderr
    assert core(here / "again") == core(here / "live")


def test_recording_what_is_no_run_is_refused(here):
    assert meshwright("record", ".", "--out", "x.jsonl", cwd=here).returncode == 2


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefghijklmnop1234", "ghp_abcdefghijklmnopqrst1234", "AKIAABCDEFGHIJKLMNOP",
        "eyJhbGciOiJIUzI1NiJ9abc.eyJzdWIiOiIxMjM0In0.abcDEF123", "hf_abcdefghijklmnopqrstuvwx",
    ],
)  # fmt: skip
def test_what_looks_like_a_key_is_taken_out_wherever_it_stands(secret):
    event = {"event": "llm_call", "reply": {"content": f"use {secret}!", secret: [f"Bearer {secret}"]}, "time": 1.0}
    text = cassette([event])
    assert secret not in text and "[secret]" in text
    assert json.loads(text)["event"] == "llm_call"


def test_values_of_secret_variables_are_taken_out_and_short_ones_left_alone():
    known = secrets({"MY_TOKEN": 'quo"te-secret', "OPENAI_API_KEY": "plainlooking", "PATH": "/bin", "KEY": "abc"})
    assert known == ['quo"te-secret', "plainlooking"]
    assert scrubbed('a quo"te-secret b plainlooking /bin abc', known) == "a [secret] b [secret] /bin abc"


def test_ordinary_figures_survive():
    said = "tp8·pp2 at 4096 tokens, key_env, tokens 123456789012345, passage tensor_parallel, sha 0f3a9c"
    assert scrubbed(said, []) == said
