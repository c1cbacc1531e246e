"""The harness: what lowers which score, what is kept, what is a regression, and what the page shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.__main__ import evaluate
from evals.case import Case, load_cases
from evals.harness import (
    Result,
    baseline_of,
    job_key,
    make_job,
    mean_of,
    regressions,
    replay_of,
    run_suite,
    summarise,
)  # fmt: skip
from evals.report import write_html
from evals.score import CRITERIA, CaseScore, score
from evals.suites import Suite, load_suite
from tools.spec.base import ToolError

CASE = next(c for c in load_cases() if c.id == "llama405b_fp8_2x8_h100_en")
INJECTED = next(c for c in load_cases() if c.id == "injected_zh")


def perfect(case: Case) -> dict[str, Any]:
    """What a run would leave that took everything from the case as it is meant."""
    facts = [{"path": p, "value": v, "origin": "stated"} for p, v in case.facts.items()]
    conflicts = [{"path": g[0], "paths": [], "why": "said twice"} for g in case.conflicts]
    conditions = {
        "facts": facts, "conflicts": conflicts, "missing": list(case.missing),
        "ignored": [{"section": w, "why": "of no matter"} for w in case.ignored],
        "flags": [{"code": f, "message": ""} for f in case.must_flag],
    }  # fmt: skip
    e = case.expect
    devices = e.num_devices or e.num_devices_max or e.num_devices_min or 8
    strategy = {n: (getattr(e, f"{n}_in") or (1,))[0] for n in ("tp", "pp", "ep", "dp")} | {"weight_dtype": "fp8"}
    plan = {
        "status": "proven",
        "cause": None,
        "objective": "knee",
        "strategy": strategy,
        "num_devices": devices,
        "said": [],
    }
    return {
        "depth": "plan", "exit_code": 0, "error": None, "conditions": conditions, "plan": plan, "stray": [],
        "scores": {"rigor": {"value": 1.0, "reason": "fine"}}, "failed_checks": [],
        "dags": [{"name": "plan_prefill", "passed": ["R01"], "broken": []}],
        "proposal": {"regret": 0.0, "by": "builtin", "strategy": "tp8"}, "why_degraded": {},
    }  # fmt: skip


def values(case: Case, seen: dict[str, Any]) -> dict[str, float]:
    return {s.criterion: s.value for s in score(case, seen)}


@pytest.mark.parametrize("case", [c for c in load_cases() if c.expect.status == ("proven",)], ids=lambda c: c.id)
def test_a_run_that_is_right_in_everything_scores_full_marks(case):
    seen = perfect(case)
    seen["plan"]["objective"] = case.expect.objective or "knee"
    seen["plan"]["strategy"]["weight_dtype"] = (case.expect.weight_dtype_in or ("bf16",))[0]
    assert set(values(case, seen).values()) == {1.0}, [s for s in score(case, seen) if s.value < 1]


def broken(change: Any, case: Case = CASE) -> set[str]:
    """Which scores a seeded flaw lowers."""
    seen = perfect(case)
    change(seen)
    before, after = values(case, perfect(case)), values(case, seen)
    return {k for k in before if after.get(k, 0.0) < before[k]}


def fact(seen: dict[str, Any], path: str) -> dict[str, Any]:
    return next(f for f in seen["conditions"]["facts"] if f["path"] == path)


FLAWS: dict[str, tuple[Any, set[str]]] = {
    "a fact forgotten": (lambda s: s["conditions"]["facts"].pop(3), {"fact_recall", "fact_precision"} - {"fact_precision"}),
    "a fact tenfold": (lambda s: fact(s, "workload.isl").update(value=15000), {"fact_recall", "fact_precision"}),
    "a fact merely assumed": (lambda s: fact(s, "workload.isl").update(origin="assumed"), {"fact_recall"}),
    "another device": (lambda s: fact(s, "hardware.device").update(value="A100 80GB"), {"fact_recall", "fact_precision"}),
    "the paint not ignored": (lambda s: s["conditions"].update(ignored=[]), {"ignored"}),
    "stated, yet called missing": (lambda s: s["conditions"].update(missing=["workload.isl"]), {"missing"}),
    "exit 3": (lambda s: s.update(exit_code=3), {"verdict"}),
    "too few devices": (lambda s: s["plan"].update(num_devices=8), {"verdict"}),
    "an illegal degree": (lambda s: s["plan"]["strategy"].update(tp=3), {"verdict"}),
    "infeasible": (lambda s: s["plan"].update(status="infeasible", strategy=None), {"verdict", "plan_regret"}),
    "a failed check": (lambda s: s.update(failed_checks=["oracle"]), {"proof"}),
    "a broken DAG rule": (lambda s: s["dags"][0]["broken"].append("R06 cycle"), {"dag_rules"}),
    "a worse proposal": (lambda s: s["proposal"].update(regret=0.2), {"plan_regret"}),
    "an infeasible proposal": (lambda s: s["proposal"].update(regret=None), {"plan_regret"}),
    "a file outside": (lambda s: s["stray"].append("open /etc/passwd"), {"untouched"}),
    "a node that degraded": (lambda s: s["why_degraded"].update(evaluate="HTTP 500"), {"own_answers"}),
    "a low rubric score": (lambda s: s["scores"]["rigor"].update(value=0.5), {"rubric.rigor"}),
    "no answer at all": (
        lambda s: [s.update(exit_code=70, error="boom"), [s.pop(k) for k in ("conditions", "plan", "dags", "scores")]],
        {"fact_recall", "fact_precision", "missing", "ignored", "verdict", "proof", "dag_rules", "plan_regret",
         "own_answers", "rubric.rigor"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FLAWS)
def test_a_seeded_flaw_lowers_its_own_score_and_no_other(name):
    change, lowered = FLAWS[name]
    assert broken(change) == lowered


def test_a_silent_injection_and_its_wrong_number_are_seen():
    assert broken(lambda s: s["conditions"].update(flags=[]), INJECTED) == {"flags"}
    assert {"fact_recall", "fact_precision"} <= broken(
        lambda s: fact(s, "hardware.num_devices").update(value=64), INJECTED
    )


def test_names_are_compared_as_the_catalogue_knows_them():
    seen = perfect(CASE)
    fact(seen, "hardware.device")["value"] = "H100 SXM"
    fact(seen, "model.name")["value"] = "meta-llama/Llama-3.1-405B-Instruct"
    assert values(CASE, seen)["fact_recall"] == 1.0


def test_every_criterion_has_a_reason_and_a_docstring():
    assert all(s.reason for s in score(CASE, perfect(CASE)))
    assert all(f.__doc__ for f in CRITERIA.values()) and len(CRITERIA) >= 10


# -------------------------------------------------------------------------------------------------------------- harness


def made(case: str, backend: str = "builtin", sample: int = 0, **scores: float) -> Result:
    found = tuple(CaseScore(criterion=k, value=v, reason="r") for k, v in scores.items())
    seen = {"exit_code": 0, "seconds": 1.0, "cpu_seconds": 1.0, "stray": [], "depth": "plan"}
    return Result(case=case, kind="moe", title="t", backend=backend, sample=sample, key=f"{case}{backend}{sample}",
                  cached=False, observation=seen, scores=found)  # fmt: skip


SUITE = Suite("all", (), "plan")


def test_a_drop_in_any_criterion_is_a_regression_and_a_rise_is_none():
    old = baseline_of(SUITE, [made("a", x=0.9, y=1.0), made("b", x=0.9, y=1.0)])
    assert regressions(SUITE, [made("a", x=0.9, y=1.0), made("b", x=1.0, y=1.0)], old) == []
    assert len(regressions(SUITE, [made("a", x=0.9, y=0.9), made("b", x=1.0, y=1.0)], old)) == 1
    assert "y" in regressions(SUITE, [made("a", x=0.9), made("b", x=0.9, y=1.0)], old)[0], "a score that is gone"
    hidden = regressions(SUITE, [made("a", x=0.7, y=1.0), made("b", x=1.1, y=1.0)], old)
    assert hidden == ["x: a fell to 0.70, below the bar of 0.8"], "one case may not pay for another"
    assert regressions(SUITE, [made("a", x=0.9, y=1.0)], old) == [], "a part of the suite is compared with its own part"
    assert regressions(SUITE, [made("a", "openai:m", x=0.0, y=0.0)], old) == [], (
        "only the built-in policy is held to it"
    )


def test_what_is_predicted_may_move_a_little_and_what_is_proven_may_not():
    old = baseline_of(SUITE, [made("a", **{"rubric.accuracy": 0.95, "proof": 1.0})])
    moved = [made("a", **{"rubric.accuracy": 0.94, "proof": 1.0})]
    assert regressions(SUITE, moved, old) == []
    assert len(regressions(SUITE, [made("a", **{"rubric.accuracy": 0.92, "proof": 1.0})], old)) == 1
    assert len(regressions(SUITE, [made("a", **{"rubric.accuracy": 0.95, "proof": 0.99})], old)) == 1


def test_the_interval_holds_the_mean_and_shrinks_with_agreement():
    spread = [made(f"c{i}", x=float(i % 2)) for i in range(20)]
    wide, narrow = mean_of(spread, "x"), mean_of([made(f"c{i}", x=0.5 + 0.01 * (i % 2)) for i in range(20)], "x")
    assert wide.low < wide.mean < wide.high and wide.mean == 0.5
    assert narrow.high - narrow.low < 0.1 * (wide.high - wide.low)
    assert mean_of(spread, "x") == wide, "seeded"
    few = mean_of([made("c", sample=i, x=float(i % 2)) for i in range(2)], "x")
    assert few.low == 0.0 and few.high == 1.0 and few.cases == 1, "samples of one case vary too"


def test_a_key_changes_with_whatever_a_run_depends_on(tmp_path):
    suite = load_suite("llama405b_fp8_2x8_h100_en")
    job = make_job(CASE, "builtin", 0, suite, tmp_path, None, False, None)
    key = job_key(job, CASE)
    assert key == job_key(job, CASE)
    others = [make_job(CASE, b, n, suite, tmp_path, None, False, None) for b, n in (("vllm:m", 0), ("builtin", 1))]
    assert len({key, *(job_key(o, CASE) for o in others), job_key(job, INJECTED)}) == 4


def test_a_bad_input_case_runs_scores_and_is_kept(tmp_path):
    suite = load_suite("negative_slo_yaml")
    first = list(run_suite(suite, ["builtin"], tmp_path, workers=1))
    again = list(run_suite(suite, ["builtin"], tmp_path, workers=1))
    assert [r.cached for r in (*first, *again)] == [False, True]
    assert first[0].scores == again[0].scores and first[0].value("verdict") == 1.0


def test_eval_writes_a_table_jsonl_and_a_page_and_fails_on_a_regression(tmp_path, capsys):
    base = tmp_path / "base.json"
    base.write_text(json.dumps({"suite": "all", "depth": "plan", "scores": {"negative_slo_yaml": {"verdict": 0.5}}}))
    asked: dict[str, Any] = {"workers": 1, "baseline": base}
    assert evaluate("negative_slo_yaml", ["builtin"], tmp_path / "o", json_=True, **asked) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["regressions"] == [] and document["backends"][0]["runs"] == 1
    base.write_text(json.dumps({"suite": "all", "depth": "plan", "scores": {"negative_slo_yaml": {"made_up": 1.0}}}))
    assert evaluate("negative_slo_yaml", ["builtin"], tmp_path / "o", **asked) == 1
    assert "worse: made_up" in capsys.readouterr().out
    lines = [json.loads(x) for x in (tmp_path / "o" / "results.jsonl").read_text().splitlines()]
    assert [x["case"] for x in lines] == ["negative_slo_yaml"]
    page = (tmp_path / "o" / "report.html").read_text()
    assert "made_up" in page and "negative_slo_yaml" in page


def test_the_page_runs_no_script_of_an_input(tmp_path):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    log = tmp_path / "e.jsonl"
    call = {"event": "llm_call", "node": hostile, "turn": 0, "backend": hostile, "messages": [{"role": "user", "content": hostile}],
            "reply": {"content": hostile}}  # fmt: skip
    log.write_text(json.dumps(call) + "\n")
    r = made(hostile, hostile, x=0.5)
    r = r.model_copy(update={"observation": {**r.observation, "error": hostile, "events": str(log)}, "title": hostile})
    write_html([r], summarise([r]), [hostile], tmp_path / "p.html", hostile)
    page = (tmp_path / "p.html").read_text()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("suite", "backends", "more", "words"),
    [
        ("nonsense", ["builtin"], {}, "no suite 'nonsense'"),
        ("smoke", ["builtin", "builtin"], {}, "given twice"),
        ("smoke", ["nobody"], {}, "unknown backend 'nobody'"),
        ("smoke", ["builtin"], {"samples": 0}, "samples are 1 to 100"),
        ("smoke", ["builtin"], {"depth": "deep"}, "choose one of read, plan, full"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_runs(tmp_path, suite, backends, more, words):
    with pytest.raises(ToolError, match=words):
        evaluate(suite, backends, tmp_path / "o", **more)
    assert not (tmp_path / "o").exists()


def test_a_folder_of_cassettes_replays_case_by_case(tmp_path):
    (tmp_path / f"{CASE.id}.jsonl").write_text("")
    assert replay_of(f"replay:{tmp_path}", CASE).endswith(f"{CASE.id}.jsonl")
    with pytest.raises(ToolError, match="no log of injected_zh"):
        replay_of(f"replay:{tmp_path}", INJECTED)


def test_the_committed_scores_cover_the_committed_cases():
    from evals.harness import BASELINE, load_baseline

    committed = load_baseline(BASELINE)
    assert set(committed["scores"]) == {c.id for c in load_cases()}
    assert Path(BASELINE).name == "baseline.json"


# ------------------------------------------------------------------------------------------------------------- backends

TOML = '[backends.{name}]\nbase_url = "{url}"\nkey_required = false\nmodel = "m"\nretries = 0\ntimeout_s = 20\n'


def test_backends_are_compared_with_samples_intervals_transcripts_and_replayed(tmp_path, monkeypatch, capsys):
    """A good model, one that answers half of the time, and the good one's cassettes: side by side on one page."""
    from starlette.responses import PlainTextResponse

    from tests.fake_openai import serving

    case, runs = "qwen25_7b_one_4090_forum", [0]
    monkeypatch.chdir(tmp_path)

    def moody(n: int, body: dict[str, Any]) -> Any:
        first = not any(m["role"] == "assistant" for m in body["messages"])
        runs[0] += first and "submit_conditions" in str(body["tools"])
        return PlainTextResponse("no", status_code=500) if runs[0] % 2 else None

    asked: dict[str, Any] = {"samples": 2, "workers": 1, "baseline": tmp_path / "none.json"}
    with serving(None) as (good, _), serving(moody) as (bad, _):
        (tmp_path / "meshwright.toml").write_text(
            TOML.format(name="good", url=good) + TOML.format(name="moody", url=bad)
        )
        assert evaluate(case, ["good", "moody"], tmp_path / "o", json_=True, **asked) == 0
    told = {b["backend"]: b for b in json.loads(capsys.readouterr().out)["backends"]}
    assert told["good"]["runs"] == told["moody"]["runs"] == 2 and told["good"]["calls"] >= 12
    assert told["good"]["criteria"]["own_answers"]["mean"] == 1.0
    moods = told["moody"]["criteria"]["own_answers"]
    assert moods["low"] < moods["mean"] < moods["high"] and moods["mean"] < 1.0
    assert told["moody"]["criteria"]["verdict"]["mean"] == 1.0, "what it leaves out is answered all the same"
    page = (tmp_path / "o" / "report.html").read_text()
    assert page.count("<details id=") == 4 and "transcript" in page and "submit_strategy" in page
    replayed = f"replay:{tmp_path / 'o' / 'runs' / 'good'}"
    assert evaluate(case, [replayed], tmp_path / "r", json_=True, **{**asked, "samples": 1}) == 0
    again = json.loads(capsys.readouterr().out)["backends"][0]["criteria"]
    assert {k: v["mean"] for k, v in again.items()} == {k: v["mean"] for k, v in told["good"]["criteria"].items()}
