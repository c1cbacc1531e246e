"""Prefill and decode pools: percentiles of simulated requests, when they are the plan, and a published plan of them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from knowledge.catalog import load_device, load_model
from knowledge.curves import load_curves
from tests.test_device_choice import planned
from tools.cost.disagg import Cycle, at_concurrency, cycle_of, walk
from tools.search import search
from tools.search.pools import pooled, pooled_candidate, takes_over
from tools.spec.deployment import Deployment
from tools.spec.hardware import Cluster
from tools.spec.strategy import Strategy
from tools.spec.workload import Requirement, Requirements, Workload

CURVES = load_curves()


def deployment(ttft: float = 2.0, tpot: float = 0.008, stat: str = "mean", **load: float) -> Deployment:
    gates = [{"metric": "ttft_s", "stat": stat, "limit": ttft}, {"metric": "tpot_s", "stat": stat, "limit": tpot}]
    return Deployment(
        model=load_model("llama-3-8b").model, cluster=Cluster.of(load_device("h100").device, 4, 4),
        workload=Workload.model_validate({"isl": 7000, "osl": 300, **(load or {"concurrency": 32})}),
        requirements=Requirements(gates=tuple(Requirement.model_validate(g) for g in gates)),
    )  # fmt: skip


@lru_cache
def cycle() -> Cycle:
    return cycle_of(deployment(), Strategy(dp=2), Strategy(tp=2), CURVES)


# ------------------------------------------------------------------------------------------------- request by request


@pytest.mark.parametrize("flying", [1, 4, 12, 24])
def test_requests_walked_through_both_pools_take_what_the_closed_form_says_on_average(flying: int) -> None:
    closed, walked = at_concurrency(cycle(), flying), walk(cycle(), concurrency=flying)
    assert walked.request_rate == pytest.approx(closed.request_rate, rel=0.08)
    assert float(walked.tpot.mean()) == pytest.approx(closed.tpot_s, rel=0.08)
    assert float(walked.ttft.mean()) == pytest.approx(closed.ttft_s, rel=0.25)


def test_arrivals_are_served_at_their_rate_and_wait_longer_the_closer_they_come_to_what_the_pools_serve() -> None:
    most = at_concurrency(cycle(), 200).request_rate
    runs = [walk(cycle(), rate=share * most) for share in (0.3, 0.6, 0.9)]
    assert runs[0].request_rate == pytest.approx(0.3 * most, rel=0.1)
    tails = [r.percentile("ttft", 0.9) for r in runs]
    assert tails == sorted(tails) and tails[2] > 1.5 * tails[0]
    assert all(r.percentile("ttft", 0.5) < r.percentile("ttft", 0.99) for r in runs)


def test_a_lone_request_is_prefilled_handed_over_and_decoded_without_waiting() -> None:
    c = cycle()
    one = walk(c, concurrency=1)
    busy, latency = c.service(1)
    assert 0.75 * c.alone() < one.ttft.min() and one.ttft.max() < 1.25 * c.alone() and busy <= latency
    assert one.tpot == pytest.approx(c.step(1), rel=0.01)


def test_the_same_requests_are_walked_every_time() -> None:
    assert walk(cycle(), concurrency=8).ttft.tolist() == walk(cycle(), concurrency=8).ttft.tolist()


def test_a_percentile_that_breaks_is_found_where_the_mean_holds() -> None:
    mean = pooled(deployment(ttft=9.0, tpot=1.0), CURVES)
    assert mean is not None and mean.meets
    between = (mean.tpot_s + mean.tpot_percentiles["p99"]) / 2
    assert mean.tpot_s < between < mean.tpot_percentiles["p99"]
    on_mean, on_tail = (pooled(deployment(9.0, between, s), CURVES) for s in ("mean", "p99"))
    assert on_mean is not None and on_tail is not None and on_mean.meets
    assert on_tail.tpot_percentiles["p99"] <= between or not on_tail.meets


def test_a_spare_of_two_pools_is_not_promised() -> None:
    assert pooled(deployment(concurrency=32, spare_replicas=1), CURVES) is None


# -------------------------------------------------------------------------------------------------- when it is the plan


def test_two_pools_are_the_plan_where_no_single_pool_holds_the_limits() -> None:
    """Long prompts beside a tight time per token: prefills in the way of decodes, or few sequences."""
    d = deployment()
    result = search(d, CURVES, top=3)
    assert result.best is not None and result.infeasible is None
    assert [u.phases_run for u in result.best.units] == [("prefill",), ("decode",)]
    assert all(not c.units for c in result.ranked[1:])
    assert result.best.estimate.feasible and result.best.estimate.num_devices == 4
    assert result.pooled is not None and result.best.objective_value == result.pooled.output_tok_s


def test_a_gain_that_the_bands_leave_open_makes_no_plan() -> None:
    d = deployment(concurrency=24, ttft=6.0, tpot=0.007)
    result = search(d, CURVES, top=2)
    p = result.pooled
    assert p is not None and p.meets and p.gain is not None and 0 < p.gain < p.least_gain
    assert result.best is not None and not result.best.units
    band = CURVES.band("throughput", d.cluster).band
    assert (1 + p.least_gain) * (1 - band) == pytest.approx(1 + band)


def test_two_pools_that_break_a_requirement_are_never_the_plan() -> None:
    d = deployment(concurrency=16, ttft=6.0, tpot=0.0055)
    p = pooled(d, CURVES)
    assert p is not None and not p.meets and p.tpot_s > 0.0055
    assert not takes_over(p, "total_throughput", None)
    assert not pooled_candidate(d, CURVES, p).estimate.feasible


# --------------------------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    text = (
        "# Hardware\n4 H100 in one node\n# Model\nLlama-3-8B, bf16\n# Load\nInput 7000 tokens, output 300 tokens, "
        "32 concurrent requests\n# Limits\nTTFT below 2 s, TPOT below 8 ms\n"
    )
    return planned(text, tmp_path_factory.mktemp("pools"))


def test_both_pools_are_proven_with_the_hand_over_between_them(run: tuple[dict[str, Any], Path]) -> None:
    plan, out = run
    assert plan["status"] == "proven"
    assert [u["phases_run"] for u in plan["units"]] == [["prefill"], ["decode"]]
    assert all(plan["phases"][p]["proof"]["ok"] for p in ("prefill", "decode"))
    assert sorted(r for row in plan["rank_map"] for r in row["ranks"]) == list(range(4))
    assert {r for row in plan["rank_map"] if row["unit"] == "decode" for r in row["ranks"]} == {2, 3}
    dot = (out / "dag" / "plan_prefill.dot").read_text()
    assert "GPU 3" in dot  # the cache arrives on the decode pool's ranks
    assert plan["phases"]["decode"]["digest"] in (out / "dag" / "plan_decode.dot").read_text()


def test_both_pools_are_launched_behind_a_proxy(run: tuple[dict[str, Any], Path]) -> None:
    _, out = run
    for engine in ("vllm", "sglang"):
        assert {"prefill.sh", "decode.sh", "proxy.sh"} <= {p.name for p in (out / "launch" / engine).iterdir()}
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert not evaluation["failed_checks"] and evaluation["passed"]
    assert "Two pools are the plan." in (out / "plan.md").read_text()
