"""inspect-ai runs the same cases with the same scorer; it is optional, so the test is skipped where it is not there."""

from __future__ import annotations

import pytest

from evals.case import load_cases
from evals.suites import load_suite

inspect_ai = pytest.importorskip("inspect_ai", reason="the extra inspect is not installed")


def test_every_case_of_a_suite_is_a_sample():
    from evals.inspect_adapter import samples

    found = samples("all")
    assert [s.id for s in found] == [c.id for c in load_cases()]
    assert all(s.input and s.target for s in found)


def test_inspects_scores_are_the_harnesss(tmp_path):
    from evals.harness import run_suite
    from evals.inspect_adapter import meshwright

    name = "negative_slo_yaml"
    (own,) = run_suite(load_suite(name), ["builtin"], tmp_path / "own", workers=1)
    (log,) = inspect_ai.eval(
        meshwright(suite=name, backend="builtin"), model="mockllm/model", log_dir=str(tmp_path), display="none"
    )
    assert log.status == "success" and len(log.samples) == 1
    scores = log.samples[0].scores
    assert scores["criteria"].value == {s.criterion: s.value for s in own.scores}
    assert scores["lowest"].value == min(s.value for s in own.scores)


def test_inspects_model_names_become_backends():
    from evals.inspect_adapter import backend_of

    assert backend_of("openai/gpt-4.1") == "openai:gpt-4.1"
    assert backend_of("none/none") == backend_of("mockllm/model") == "builtin"
