"""`estimate --trace`: recorded requests in, percentiles of the simulation out."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.simulated import read_trace, simulated_json, trace_load
from knowledge.catalog import load_device, load_model
from knowledge.curves import load_curves
from tools.cost.estimate import estimate
from tools.spec.base import ToolError
from tools.spec.deployment import Deployment
from tools.spec.hardware import Cluster
from tools.spec.strategy import Strategy
from tools.spec.workload import Workload


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_are_found_by_the_names_that_traces_use(tmp_path: Path) -> None:
    """The second is the header of the public Azure LLM inference traces, times made seconds."""
    for header in (
        "at,isl,osl",
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "arrival_s,prompt_tokens,completion_tokens",
    ):
        trace = read_trace(written(tmp_path, f"{header}\n12.5,100,10\n10,300,30\n11,200.0,20\n"))
        assert trace.at.tolist() == [0.0, 1.0, 2.5]
        assert trace.isl.tolist() == [300, 200, 100]
        assert trace_load(trace) == {"isl": 200, "osl": 20, "rate": pytest.approx(2 / 2.5)}


def test_arrivals_may_be_dates(tmp_path: Path) -> None:
    lines = "2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:50.93,396,109\n"
    trace = read_trace(written(tmp_path, f"TIMESTAMP,ContextTokens,GeneratedTokens\n{lines}"))
    assert trace.at == pytest.approx([0.0, 4.25])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("at,isl\n1,2\n", "columns missing: osl"),
        ("at,isl,osl\n1,2,3\n2,many,3\n", "trace.csv:3: isl = 'many' is not a number"),
        ("at,isl,osl\n", "one"),
        ("at,isl,osl\n1,0,3\n", "below 1"),
        ("at,isl,osl\nnan,1,3\n", "not a number"),
        ("at,isl,osl\n1,inf,3\n", "not a number"),
    ],
)
def test_a_file_that_is_no_trace_is_one_clear_error(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ToolError, match=words):
        read_trace(written(tmp_path, text))


def test_percentiles_come_from_the_simulation_and_say_so() -> None:
    d = load_device("H100").device
    s = Strategy(tp=4, batch=16)
    case = Deployment(
        model=load_model("llama3.1-70b").model, cluster=Cluster.of(d, 4, 8), workload=Workload(isl=512, osl=128)
    )
    curves = load_curves()
    e = estimate(case, s, curves, concurrency=16)
    found = simulated_json(case, e, curves, concurrency=16)
    assert found["ttft_ms_p50"] <= found["ttft_ms_p90"] <= found["ttft_ms_p99"]
    assert found["simulation"]["requests"] == 1000
    assert "16 requests in flight" in found["simulation"]["load"]
    assert found["simulation"]["tpot_ms_mean"] == pytest.approx(e.tpot_s * 1e3, rel=0.2)


def test_what_does_not_fit_has_a_reason_instead_of_percentiles() -> None:
    d = load_device("L4").device
    case = Deployment(
        model=load_model("llama3.1-70b").model, cluster=Cluster.of(d, 1, 8), workload=Workload(isl=512, osl=128)
    )
    curves = load_curves()
    e = estimate(case, Strategy(), curves, concurrency=1)
    assert list(simulated_json(case, e, curves, concurrency=1)) == ["simulation"]
    assert "cannot hold" in simulated_json(case, e, curves, concurrency=1)["simulation"]["reason"]
