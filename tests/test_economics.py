"""Cost, energy, spare capacity: what flips plans without being model or hardware."""

from __future__ import annotations

import json
import math

import pytest

from agent.commands.common import deployment_from
from agent.commands.pure import estimate as estimate_command
from agent.commands.pure import search as search_command
from agent.reading import read_conditions, resolve
from knowledge.curves import load_curves
from tools.cost.estimate import estimate
from tools.cost.simulate import simulate_strategy
from tools.search import search
from tools.search.economics import compare_devices, economics, verdict
from tools.spec.base import ToolError
from tools.spec.conditions import Conditions, InputFile
from tools.spec.deployment import Deployment
from tools.spec.strategy import Strategy

CURVES = load_curves()
ASKED: dict = {
    "model": "qwen3-8b", "device": ["h100"], "isl": 1000, "osl": 200, "nodes": 1, "devices_per_node": 8, "rate": 20.0,
    "ttft_ms": 2000.0, "tpot_ms": 50.0, "max_throughput": False, "top": 2,
}  # fmt: skip


def deployment(**more: object) -> Deployment:
    return deployment_from({**ASKED, **more})


def read(text: str) -> Conditions:
    base = "Qwen3-32B, input 2000 tokens, output 500 tokens.\n\n"
    return read_conditions([InputFile(path="c.md", sha256="0", text=base + text, kind="markdown")])


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("8 x H100 SXM. We pay 2.1 USD per GPU-hour.", "hardware.price_per_device_hour", 2.1),
        ("8x H100 node costs $25/hour.", "hardware.price_per_device_hour.h100_sxm_80gb", 3.125),
        ("One 8-GPU instance (8x H100) is $98.32 per hour.", "hardware.price_per_device_hour.h100_sxm_80gb", 12.29),
        ("8x H100. Rent is $1,460 per GPU per month.", "hardware.price_per_device_hour", 2.0),
        ("16 张 H800，每卡每小时 15 元。", "hardware.price_per_device_hour.h800_sxm_80gb", 15.0),
        ("8 x H100. Mean load 4 requests per second, 3x at peak.", "workload.peak_factor", 3.0),
        ("8 张 H100，平均 QPS 4，峰值是均值的 3 倍。", "workload.peak_factor", 3.0),
        ("8 x H100, average QPS 5, peak QPS 15.", "workload.peak_factor", 3.0),
        ("8 x H100, average QPS 5, peak QPS 15.", "workload.request_rate", 5.0),
        ("8 x H100, mean load 5 requests/s, peak load 15 requests/s.", "workload.peak_factor", 3.0),
        ("8 张 H100，平均 QPS 为 4，峰值 QPS 为 12。", "workload.peak_factor", 3.0),
        ("16 x H100. N+1 redundancy.", "workload.spare_replicas", 1),
        ("16 x H100. Keep two spare replicas.", "workload.spare_replicas", 2),
        ("2 nodes of 8 H100, must survive the loss of one node.", "workload.spare_nodes", 1),
        ("16 张 H100，要求容忍 1 台机器故障。", "workload.spare_nodes", 1),
        ("16 张 H100，要求 N+1 冗余。", "workload.spare_replicas", 1),
    ],
)
def test_prices_peaks_and_spares_are_facts(text: str, path: str, value: float) -> None:
    found = read(text)
    assert found.get(path) == pytest.approx(value, rel=1e-3)
    evidence = found.fact(path)
    assert evidence is not None and evidence.evidence is not None and evidence.evidence.quote in text


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("8 x H100, servers have N+1 power supplies.", "workload.spare_replicas"),
        ("8 x H100. Output is sold at $2 per million tokens.", "hardware.price_per_device_hour"),
        ("8 x H100. Keep one spare replica.", "requirements.memory_reserve"),
        ("2 nodes of 8 H100, must survive the loss of one node.", "requirements.memory_reserve"),
    ],
)
def test_words_that_only_look_like_it_are_left_alone(text: str, path: str) -> None:
    found = read(text)
    assert found.get(path) is None and not found.under(f"{path}.")


def test_a_node_that_may_fail_is_no_number_of_nodes() -> None:
    assert read("2 nodes of 8 H100 each, must survive the loss of one node.").get("hardware.num_nodes") == 2


def test_a_budget_is_said_not_dropped() -> None:
    assert any(f.code == "budget" for f in read("8 x H100. The budget is $10,000 per month.").flags)


def test_devices_to_choose_from_are_not_pools_of_one_cluster() -> None:
    found = read(
        "H100 or H20? We have 16 of either, 8 per node. An H100 costs $2.50 per GPU hour, an H20 $1.20 per GPU-hour."
    )
    d = resolve(found)
    assert found.get("hardware.pools") is None
    assert [c.device.id for c in d.other_clusters] == ["h20_96gb"]
    assert (d.cluster.num_devices, d.other_clusters[0].num_devices) == (16, 16)
    assert d.prices == {"h100_sxm_80gb": 2.5, "h20_96gb": 1.2} and d.currency == "USD"


def test_each_candidate_keeps_its_own_number() -> None:
    d = resolve(read("8 张 H800 或 16 张 910B，哪个更划算？"))
    assert d.cluster.num_devices == 8 and d.other_clusters[0].num_devices == 16


def test_two_kinds_that_are_both_there_stay_pools() -> None:
    found = read("4x A100 80GB + 8x V100 32GB in the cluster.")
    assert found.get("hardware.candidates") is None and len(found.get("hardware.pools")) == 2


def test_users_at_the_peak_are_planned_for() -> None:
    d = resolve(read("8 x H100, 40 concurrent users on average, 3x at peak."))
    assert d.workload.concurrency == 120
    assert any(a.path == "workload.concurrency" and "40" in a.why for a in d.assumptions)


# --------------------------------------------------------------------------------------------------------------- spare


def test_a_spare_replica_leaves_the_load_to_the_others() -> None:
    """Two replicas with one spare serve as one replica without."""
    one = estimate(deployment(nodes=1, devices_per_node=4), Strategy(tp=4, batch=64), CURVES)
    two = estimate(deployment(spare_replicas=1), Strategy(tp=4, dp=2, batch=64), CURVES)
    assert two.ttft_s == pytest.approx(one.ttft_s) and two.tpot_s == pytest.approx(one.tpot_s)
    assert two.num_devices == 8 and two.capacity_tok_s == pytest.approx(one.capacity_tok_s)
    spare = next(f for f in two.findings if f.code == "spare")
    assert spare.values["spare_devices"] == 4


def test_without_a_replica_left_nothing_is_feasible() -> None:
    e = estimate(deployment(spare_replicas=1), Strategy(tp=8, batch=64), CURVES)
    assert not e.feasible and any(f.code == "no-spare" for f in e.findings)


def test_a_spare_node_takes_all_its_replicas() -> None:
    e = estimate(deployment(nodes=2, spare_nodes=1), Strategy(tp=2, dp=8, batch=64), CURVES)
    assert next(f for f in e.findings if f.code == "spare").values["spare_replicas"] == 4


def test_the_search_never_ranks_a_plan_without_its_spare() -> None:
    found = search(deployment(spare_replicas=1), CURVES, top=20)
    assert found.ranked and all(c.estimate.strategy.dp > 1 for c in found.ranked)
    ample = search(deployment(spare_replicas=1, nodes=None, unbounded=True), CURVES).best
    alone = search(deployment(nodes=None, unbounded=True), CURVES).best
    assert ample is not None and alone is not None
    assert ample.estimate.num_devices > alone.estimate.num_devices


def test_the_simulation_loses_the_spare_too() -> None:
    s = Strategy(tp=4, dp=2, batch=64)
    whole = simulate_strategy(deployment(), s, CURVES, requests=200)
    spare = simulate_strategy(deployment(spare_replicas=1), s, CURVES, requests=200)
    assert spare.outcome.percentile("tpot", 0.5) > whole.outcome.percentile("tpot", 0.5)


# ---------------------------------------------------------------------------------------------------------------- cost


def test_price_and_power_by_hand() -> None:
    d = deployment(price_per_device_hour=["2.5"])
    e = estimate(d, Strategy(tp=2, dp=4, batch=64), CURVES)
    row = economics(d, e)
    assert row.price_per_hour == pytest.approx(8 * 2.5)
    assert row.price_per_million_output == pytest.approx(20.0 / (e.output_tok_s * 3600) * 1e6)
    assert row.power_watts == 8 * 700 and row.output_tokens_per_joule == pytest.approx(e.output_tok_s / 5600)


def test_devices_planned_for_the_peak_are_paid_for_at_the_mean() -> None:
    flat, peaked = (
        deployment(rate=r, peak_factor=p, price_per_device_hour=["2"]) for r, p in ((20.0, 1.0), (10.0, 2.0))
    )
    rows = [economics(d, estimate(d, Strategy(tp=2, dp=4, batch=64), CURVES)) for d in (flat, peaked)]
    assert rows[0].ttft_s == rows[1].ttft_s
    assert rows[1].price_per_million_output == pytest.approx(2 * (rows[0].price_per_million_output or math.nan))


def test_what_nobody_knows_is_unknown_not_zero() -> None:
    row = economics(deployment(device=["910C"]), estimate(deployment(device=["910C"]), Strategy(tp=4, dp=2), CURVES))
    assert row.price_per_million_output is None and row.power_watts is None and row.output_tokens_per_joule is None


def test_two_devices_side_by_side_for_the_same_number_and_the_same_money() -> None:
    d = deployment(device=["h100", "h20"], price_per_device_hour=["2.4", "1.2"])
    rows = compare_devices(d, CURVES)
    cells = {(r.device, r.setting): r for r in rows}
    assert cells["h20_96gb", "stated"].num_devices == 8
    same = cells["h20_96gb", "same_price"]
    assert same.num_devices <= 16 and (same.price_per_hour or 0) <= 8 * 2.4 + 1e-9
    fewest = [cells[i, "fewest_devices"] for i in ("h100_sxm_80gb", "h20_96gb")]
    cheaper = min(fewest, key=lambda r: r.price_per_hour or math.inf)
    assert verdict(rows).startswith(cheaper.device)


def test_a_device_that_cannot_is_named_with_what_binds() -> None:
    rows = compare_devices(deployment(model="llama3.1-70b", device=["h100", "l4"], rate=2.0), CURVES)
    small = next(r for r in rows if r.device == "l4_24gb" and r.setting == "stated")
    assert small.feasible or small.why


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"device": ["h100", "H100 SXM"]}, "twice"),
        ({"price_per_device_hour": ["cheap"]}, "number"),
        ({"price_per_device_hour": ["-1"]}, "positive"),
        ({"device": ["h100", "h20"], "price_per_device_hour": ["2"]}, "of which"),
        ({"device": ["h100", "h20"], "price_per_device_hour": ["2", "1", "3"]}, "3 prices for 2 devices"),
    ],
)
def test_prices_that_say_too_little_are_refused(more: dict, words: str) -> None:
    with pytest.raises(ToolError, match=words):
        deployment(**more)


def test_search_and_estimate_print_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    asked = {**ASKED, "device": ["h100", "h20"], "price_per_device_hour": ["2.4", "1.2"]}
    search_command(asked, True)
    found = json.loads(capsys.readouterr().out)
    assert found["device_choice"] and {r["device"] for r in found["economics"]} == {"h100_sxm_80gb", "h20_96gb"}
    estimate_command({**asked, "nodes": None, "rate": None, "concurrency": 16, "tp": 2}, True)
    rows = json.loads(capsys.readouterr().out)["economics"]
    assert [r["num_devices"] for r in rows] == [2, 2]
    search_command(asked, False)
    assert "USD/M output" in capsys.readouterr().out
