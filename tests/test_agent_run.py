"""Whole runs: seven nodes, one manifest, the same bytes after a crash, nothing unproven whatever the LLM says."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from agent.events import read_events
from agent.state import NODES
from tests.fake_openai import serving

CONDITIONS = """\
# A small service
## Hardware
2 x NVIDIA H100 SXM 80GB in one node
## Model
Qwen2.5-7B-Instruct, bf16
## Workload
Average input 512 tokens, average output 128 tokens, 16 concurrent requests
## Requirements
TTFT p90 below 2 s, TPOT below 50 ms
"""
IMPOSSIBLE = CONDITIONS.replace("TPOT below 50 ms", "TPOT below 0.05 ms")


def meshwright(
    *args: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent.cli", *args]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=timeout
    )


def artifacts(run_dir: Path) -> dict[str, str]:
    """sha256 of everything that a run publishes, the manifest too; not the event log and the checkpoint."""
    tops = ("manifest.json", "plan.json", "plan.md", "evaluation.json", "pareto.svg", "pareto.csv", "dag", "launch")
    files = [p for t in tops for p in ([run_dir / t] if (run_dir / t).is_file() else sorted((run_dir / t).rglob("*")))]
    return {str(p.relative_to(run_dir)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.is_file()}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.md").write_text(CONDITIONS)
    (folder / "impossible.md").write_text(IMPOSSIBLE)
    return folder


@pytest.fixture(scope="module")
def proven(here: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    done = meshwright("plan", "small.md", "--out", "proven", "--json", cwd=here)
    return here / "proven", done


def test_a_plan_is_proven_and_its_manifest_lists_what_is_there(proven):
    run_dir, done = proven
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["status"] == "proven" and document["degraded"] == []
    kinds = {a["kind"] for a in document["artifacts"]}
    assert kinds >= {"plan", "report", "dag_script", "dag_dot", "dag_svg", "launch", "evaluation", "pareto", "events"}
    for a in document["artifacts"]:
        data = (run_dir / a["path"]).read_bytes()
        assert a["kind"] == "events" or hashlib.sha256(data).hexdigest() == a["sha256"]
    listed = {a["path"] for a in document["artifacts"]} | {"manifest.json"}
    assert set(artifacts(run_dir)) <= listed, "nothing lies there that the manifest does not list"


def test_the_nodes_run_in_order_and_progress_goes_to_stderr(proven):
    run_dir, done = proven
    finished = [e["node"] for e in read_events(run_dir / "events.jsonl") if e["event"] == "node_finished"]
    assert list(dict.fromkeys(finished)) == list(NODES)
    assert all(n in done.stderr for n in NODES)


def test_the_input_is_untouched_and_its_hash_is_in_the_manifest(here, proven):
    assert (here / "small.md").read_text() == CONDITIONS
    manifest = json.loads((proven[0] / "manifest.json").read_text())
    wanted = {"path": "../small.md", "sha256": hashlib.sha256(CONDITIONS.encode()).hexdigest()}
    assert manifest["inputs"] == [wanted]


def test_no_artifact_knows_this_machine(here, proven):
    for name in artifacts(proven[0]):
        if not name.endswith(".svg"):
            assert str(here) not in (proven[0] / name).read_text(), name


def test_the_same_conditions_give_the_same_bytes(here, proven):
    assert meshwright("plan", "small.md", "--out", "again", cwd=here).returncode == 0
    assert artifacts(here / "again") == artifacts(proven[0])


def test_an_infeasible_verdict_is_published_with_exit_3(here):
    done = meshwright("plan", "impossible.md", "--out", "infeasible", "--json", cwd=here)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["status"] == "infeasible"
    plan = json.loads((here / "infeasible" / "plan.json").read_text())
    assert plan["infeasible"]["binding"]["message"] and plan["strategy"] is None
    assert (here / "infeasible" / "plan.md").stat().st_size > 500


def test_show_tells_a_finished_run_and_refuses_a_foreign_directory(here, proven):
    assert json.loads(meshwright("show", "proven", "--json", cwd=here).stdout)["status"] == "proven"
    foreign = meshwright("show", ".", cwd=here)
    assert foreign.returncode == 2 and "not a run directory" in foreign.stderr


def test_resuming_a_finished_run_changes_nothing(here, proven):
    before = artifacts(proven[0])
    assert meshwright("resume", "proven", cwd=here).returncode == 0
    assert artifacts(proven[0]) == before


@pytest.mark.parametrize("node", NODES)
def test_killed_in_a_node_and_resumed_gives_the_same_artifacts(here, proven, node):
    out = here / f"killed_{node}"
    command = [sys.executable, "-m", "agent.cli", "plan", "small.md", "--out", out.name]
    with subprocess.Popen(command, cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(out / "events.jsonl", node, process)
        process.send_signal(signal.SIGKILL)
    assert not (out / "manifest.json").exists() or node == "publish"
    done = meshwright("resume", out.name, cwd=here)
    assert done.returncode == 0, done.stderr
    assert artifacts(out) == artifacts(proven[0])


def wait_for(events: Path, node: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        if any(e["event"] == "node_started" and e["node"] == node for e in read_events(events)):
            return
        if ended:
            break
        time.sleep(0.002)
    pytest.fail(f"{node} was never seen running")


def test_an_input_that_changed_since_is_refused_on_resume(here, tmp_path):
    (tmp_path / "c.md").write_text(CONDITIONS)
    with subprocess.Popen(
        [sys.executable, "-m", "agent.cli", "plan", "c.md", "--out", "r"], cwd=tmp_path, stderr=subprocess.DEVNULL
    ) as process:
        wait_for(tmp_path / "r" / "events.jsonl", "verify_dimensions", process)
        process.send_signal(signal.SIGKILL)
    (tmp_path / "c.md").write_text(CONDITIONS + "\n")
    done = meshwright("resume", "r", cwd=tmp_path)
    assert done.returncode == 2 and "changed since the run began" in done.stderr


def test_two_processes_do_not_share_a_run_directory(here, proven):
    """The second is refused with the first one's number; the first is not disturbed."""
    command = [sys.executable, "-m", "agent.cli", "plan", "small.md", "--out", "shared"]
    with subprocess.Popen(command, cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(here / "shared" / "events.jsonl", NODES[0], process)
        for again in (("plan", "small.md", "--out", "shared"), ("resume", "shared")):
            refused = meshwright(*again, cwd=here)
            if process.poll() is not None:
                pytest.skip("the first run ended before the second began")
            assert refused.returncode == 2 and f"process {process.pid} on " in refused.stderr, refused.stderr
            assert len(refused.stderr.strip().splitlines()) <= 2
    assert process.returncode == 0
    assert artifacts(here / "shared") == artifacts(proven[0]) and not (here / "shared" / ".lock").exists()


def test_the_lock_of_a_dead_process_is_taken_over(here, tmp_path):
    from agent.files import exclusive
    from tools.spec.base import ToolError

    holder = (
        "import os, signal, pathlib\nfrom agent.files import exclusive\n"
        f"with exclusive(pathlib.Path({str(tmp_path)!r})):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", holder], cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == -signal.SIGKILL and (tmp_path / ".lock").read_text().split()[0].isdigit()
    with exclusive(tmp_path), pytest.raises(ToolError, match=f"process {os.getpid()} on "), exclusive(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


# ------------------------------------------------------------------------------------------------------ with an LLM


def with_llm(here: Path, out: str, behaviour: Any, *more: str) -> tuple[subprocess.CompletedProcess[str], list[Any]]:
    profile = (
        '[backends.fake]\nbase_url = "http://x/v1"\nkey_env = "FAKE_KEY"\ntimeout_s = 5\nretries = 0\nmodel = "m"\n'
    )
    (here / "meshwright.toml").write_text(profile)
    with serving(behaviour) as (url, seen):
        args = ("plan", "small.md", "--out", out, "--backend", "fake", "--llm-base-url", url, "--json", *more)
        return meshwright(*args, cwd=here, env={"FAKE_KEY": "sk-secret-4711"}), seen


def core(run_dir: Path) -> dict[str, Any]:
    plan = json.loads((run_dir / "plan.json").read_text())
    return {k: plan[k] for k in ("strategy", "estimate", "phases", "parts")}


def test_a_whole_run_over_http_equals_the_builtin_run(here, proven):
    done, seen = with_llm(here, "http", None)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["degraded"] == []
    assert core(here / "http") == core(proven[0])
    assert len(seen) >= 6
    for path in (p for p in (here / "http").rglob("*") if p.is_file()):
        assert b"sk-secret" not in path.read_bytes(), f"a key in {path}"


def test_a_dead_backend_gives_the_same_plan_and_says_so(here, proven):
    done, _ = with_llm(here, "dead", lambda n, b: PlainTextResponse("no", status_code=500))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["degraded"] == list(NODES[:-1])
    assert core(here / "dead") == core(proven[0])


def test_a_dead_backend_under_strict_exits_4_and_publishes_nothing(here):
    done, _ = with_llm(here, "strict", lambda n, b: JSONResponse({}, status_code=500), "--strict")
    assert done.returncode == 4, done.stderr
    assert "backend:" in done.stderr and "Traceback" not in done.stderr
    assert not (here / "strict" / "manifest.json").exists()


def worst_proposal(n: int, body: dict[str, Any]) -> Any:
    names = [t["function"]["name"] for t in body["tools"]]
    if "submit_strategy" not in names:
        return None
    call = {
        "name": "submit_strategy",
        "arguments": json.dumps({"strategy": {"tp": 1, "dp": 1, "batch": 1}, "justification": "small"}),
    }
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "x", "type": "function", "function": call}]}


def test_a_worse_proposal_is_recorded_with_its_regret_and_not_used(here, proven):
    done, _ = with_llm(here, "worse", worst_proposal)
    assert done.returncode == 0, done.stderr
    proposal = json.loads((here / "worse" / "plan.json").read_text())["proposal"]
    assert proposal["adopted"] is False
    assert proposal["regret"] is None or proposal["regret"] > 0
    assert core(here / "worse") == core(proven[0])


def invented_facts(n: int, body: dict[str, Any]) -> Any:
    names = [t["function"]["name"] for t in body["tools"]]
    if "submit_conditions" not in names:
        return None
    quote = "Average input 512 tokens, average output 128 tokens, 16 concurrent requests"
    facts = [
        {"path": "workload.isl", "value": 4, "file": "small.md", "line": 7, "quote": quote},
        {"path": "workload.max_context", "value": 131072, "file": "small.md", "line": 7, "quote": quote},
        {
            "path": "workload.request_rate",
            "value": 3,
            "file": "small.md",
            "line": 7,
            "quote": "three requests a second",
        },
        {"path": "hardware.mfu", "value": 0.9, "file": "/etc/passwd", "line": 1, "quote": "root"},
    ]
    call = {"name": "submit_conditions", "arguments": json.dumps({"facts": facts})}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "x", "type": "function", "function": call}]}


def test_facts_without_a_quote_that_carries_them_are_rejected(here, proven):
    done, _ = with_llm(here, "invented", invented_facts)
    assert done.returncode == 0, done.stderr
    rejected = {e["path"] for e in read_events(here / "invented" / "events.jsonl") if e["event"] == "fact_rejected"}
    assert rejected == {"workload.isl", "workload.max_context", "workload.request_rate", "hardware.mfu"}
    assert core(here / "invented") == core(proven[0])


def test_a_recorded_run_replays_offline(here, proven):
    with_llm(here, "recorded", None)
    done = meshwright(
        "plan", "small.md", "--out", "replayed", "--backend", "replay:recorded/events.jsonl", "--json", cwd=here
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["degraded"] == []
    assert core(here / "replayed") == core(proven[0])


# ------------------------------------------------------------------------------------------------------------- task


def test_a_task_prompt_is_obeyed_and_its_constraints_are_judged(here):
    (here / "know").mkdir(exist_ok=True)
    (here / "know" / "notes.md").write_text("# Tensor parallel notes\n\nKeep tensor parallel inside NVLink.\n")
    task = Path(__file__).parent.parent / "prompts" / "tasks" / "serving_plan.md"
    done = meshwright(
        "plan", "small.md", "--task", str(task), "--knowledge", "know", "--out", "task", "--json", cwd=here
    )
    assert done.returncode == 0, done.stderr
    evaluation = json.loads((here / "task" / "evaluation.json").read_text())
    texts = [c["text"] for c in evaluation["constraints"]]
    assert any("how many parts" in t for t in texts)
    assert not any("<<<" in t for t in texts)
    assert not [c for c in evaluation["constraints"] if c["status"] == "broken"]
    plan = json.loads((here / "task" / "plan.json").read_text())
    assert any(p["id"].startswith("user:notes") for p in plan["knowledge"])


# ------------------------------------------------------------------------------------------- failed checks, low scores


def in_process(here: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> int:
    from agent.cli import main

    monkeypatch.chdir(here)
    with pytest.raises(SystemExit) as e:
        main(["plan", "small.md", "--out", out])
    return int(e.value.code or 0)


def failing(strategies: set[str] | None) -> Any:
    """run_checks that fails the strategies of these labels, or all (None)."""
    from agent.verify import run_checks
    from tools.spec.finding import Finding

    def checks(bench: Any, strategy: Any, *phases: Any) -> Any:
        if strategies is None or strategy.label(moe=False) in strategies:
            return (Finding(code="made-up", severity="error", cause="memory", message="a seeded flaw"),)
        return run_checks(bench, strategy, *phases)

    return checks


def chosen(run_dir: Path) -> str:
    from tools.spec.strategy import Strategy

    strategy = json.loads((run_dir / "plan.json").read_text())["strategy"]
    return Strategy.model_validate(strategy).label(moe=False)


def test_a_plan_that_fails_a_check_gives_way_to_the_searchs_next_best(here, proven, monkeypatch):
    best = chosen(proven[0])
    monkeypatch.setattr("agent.verify.run_checks", failing({best}))
    assert in_process(here, monkeypatch, "second") == 0
    assert chosen(here / "second") != best


def test_when_every_feasible_plan_fails_a_check_it_is_our_bug_and_the_state_is_kept(here, monkeypatch, capsys):
    monkeypatch.setattr("agent.verify.run_checks", failing(None))
    assert in_process(here, monkeypatch, "bug") == 70
    said = capsys.readouterr().err
    assert "a seeded flaw" in said or "failed a check" in said
    assert "meshwright resume bug" in said and "Traceback" not in said
    assert not (here / "bug" / "manifest.json").exists()
    assert (here / "bug" / "checkpoint.sqlite").exists()


def test_a_low_score_is_tried_again_boundedly_and_then_published_with_the_score_in_the_first_lines(here, monkeypatch):
    from tools.rubric import Reference

    never = Reference(objective_value=1e12, plan_value=1.0, num_evaluated=3, method="a seeded reference")
    monkeypatch.setattr("agent.nodes.reference_of", lambda bench, chosen: never)
    assert in_process(here, monkeypatch, "low") == 0
    finished = [e["node"] for e in read_events(here / "low" / "events.jsonl") if e["event"] == "node_finished"]
    assert 2 <= finished.count("evaluate") <= 3
    first_lines = "\n".join((here / "low" / "plan.md").read_text().splitlines()[:12])
    assert "below the bar" in first_lines.lower()


def test_a_changed_state_file_stops_the_run(here, monkeypatch):
    from agent.files import Store
    from agent.nodes import Verification
    from agent.verify import establish
    from tools.spec.base import Bug
    from tools.spec.plan import Candidate, SearchResult

    run_dir = here / "proven"
    values = [json.loads(p.read_text()) for p in (run_dir / "state").glob("*.json") if p.name != "run.json"]
    search = next(SearchResult.model_validate(v) for v in values if isinstance(v, dict) and "num_enumerated" in v)
    verification = next(
        Verification.model_validate(v) for v in values if isinstance(v, dict) and set(v) == {"subjects"}
    )
    bench = bench_of(run_dir)
    assert isinstance(search.best, Candidate)
    establish(bench, search, search.best, verification)
    plan = verification.subjects[0]
    forged = plan.proofs["decode"].model_copy(update={"digest": "0" * 16})
    lying = plan.model_copy(update={"proofs": {**plan.proofs, "decode": forged}})
    with pytest.raises(Bug, match="not the published one"):
        establish(bench, search, search.best, Verification(subjects=(lying, *verification.subjects[1:])))
    with pytest.raises(Bug, match="exhausted"):
        establish(bench, search, None, verification)
    assert Store(run_dir).root.is_dir()


def bench_of(run_dir: Path) -> Any:
    from agent.bind import Workbench
    from tools.spec.plan import Plan

    return Workbench(Plan.model_validate_json((run_dir / "plan.json").read_bytes()).deployment)
