"""Several kinds of devices in one plan: stages priced on their own kind, kinds grouped in every way, shares of the load."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest

from agent.reading.reader import read_conditions
from agent.reading.resolve import resolve
from agent.reading.sources import InputFile
from knowledge.catalog import load_device, load_model
from knowledge.curves import load_curves
from tools.cost.estimate import estimate
from tools.cost.schedule import schedule
from tools.search import search
from tools.search.fleet import dealt, fleets, partitions, unit_deployment, units_of
from tools.search.rank import evaluate_strategy, explore, order
from tools.spec.base import Refused, ToolError
from tools.spec.deployment import Deployment
from tools.spec.hardware import Cluster
from tools.spec.plan import Fleet, SearchResult
from tools.spec.strategy import Strategy
from tools.spec.workload import Requirement, Requirements, Workload

H100, A100 = "h100_sxm_80gb", "a100_sxm_80gb"


def cluster(name: str, count: int) -> Cluster:
    return Cluster.of(load_device(name).device, count, 8)


def deployment(
    model: str, *kinds: tuple[str, int], ttft: float | None = 3.0, tpot: float = 0.06, total: float | None = None,
    **workload: float,
) -> Deployment:  # fmt: skip
    gates = [] if ttft is None else [("ttft_s", ttft), ("tpot_s", tpot)]
    gates += [] if total is None else [("throughput_total", total)]
    clusters = [cluster(*k) for k in kinds]
    requirements = [
        Requirement.model_validate(
            {"metric": m, "stat": "mean", "limit": x, "counts": "output" if m == "throughput_total" else None}
        )
        for m, x in gates
    ]
    return Deployment(
        model=load_model(model).model, cluster=clusters[0], further_clusters=tuple(clusters[1:]),
        workload=Workload.model_validate({"isl": 2000, "osl": 500, **workload}),
        requirements=Requirements(gates=tuple(requirements)),
    )  # fmt: skip


def two_kinds(**more: float) -> Deployment:
    return deployment("llama-3-70b", (H100, 8), (A100, 16), **{"concurrency": 128, **more})  # type: ignore[arg-type]


@lru_cache
def searched() -> SearchResult:
    return search(two_kinds(), load_curves(), top=3)


def fleet(result: SearchResult, *groups: str) -> Fleet:
    return next(f for f in result.fleets if f.groups == groups)


# --------------------------------------------------------------------------------------------- stages on their own kind


def test_stages_that_name_one_kind_are_the_plain_pipeline() -> None:
    """Two routes to the same figures: per stage, and for all stages at once."""
    d = deployment("llama-3-70b", (H100, 16), concurrency=64)
    plain = Strategy(tp=8, pp=2, batch=64, layers_per_stage=(39, 41))
    named = plain.model_copy(update={"stage_devices": (H100, H100)})
    a, b = (
        estimate(d, s, load_curves()).model_dump(exclude={"strategy", "breakdown", "findings"}) for s in (plain, named)
    )
    assert a == b
    one, other = (schedule(d, s, load_curves(), "prefill", batch=4, seq_len=512).makespan for s in (plain, named))
    assert one == pytest.approx(other)


def test_a_stage_moved_to_a_slower_kind_takes_longer_and_serves_less() -> None:
    d = deployment("llama-3-70b", (H100, 16), (A100, 16), concurrency=64)
    s = Strategy(tp=8, pp=2, batch=64, layers_per_stage=(40, 40))
    found = [s.model_copy(update={"stage_devices": k}) for k in ((H100, H100), (H100, A100), (A100, A100))]
    passes = [schedule(d, x, load_curves(), "prefill", batch=2, seq_len=2000).makespan for x in found]
    serves = [estimate(d, x, load_curves()).output_tok_s for x in found]
    assert passes == sorted(passes) and passes[0] < passes[-1]
    assert serves == sorted(serves, reverse=True) and serves[0] > serves[-1]


def test_memory_of_a_stage_is_that_of_its_own_device() -> None:
    d = deployment("llama-3-8b", ("a100-sxm-80gb", 4), ("v100-32gb", 4), concurrency=8)
    s = Strategy(tp=4, pp=2, batch=8, weight_dtype="fp16", kv_dtype="fp16", stage_devices=(A100, "v100_sxm2_32gb"))
    sizes = [m.capacity_bytes for m in estimate(d, s, load_curves()).memory]
    assert sizes == [load_device(n).device.memory_usable_bytes for n in ("a100-sxm-80gb", "v100-32gb")]


def test_the_kind_with_least_room_bounds_the_batch_of_a_pipeline() -> None:
    d = deployment("llama-3-8b", ("a100-sxm-80gb", 4), ("v100-32gb", 4), concurrency=8)
    s = Strategy(tp=4, pp=2, batch=8, weight_dtype="fp16", kv_dtype="fp16")
    a, v = A100, "v100_sxm2_32gb"
    most = {
        k: estimate(d, s.model_copy(update={"stage_devices": k}), load_curves()).max_batch
        for k in ((a, a), (a, v), (v, v))
    }
    assert most[v, v] <= most[a, v] < most[a, a]


def test_more_devices_of_a_kind_than_there_are_is_infeasible() -> None:
    d = deployment("llama-3-70b", (H100, 8), (A100, 16), concurrency=16)
    e = estimate(d, Strategy(tp=8, pp=2, batch=16, stage_devices=(H100, H100)), load_curves())
    assert not e.feasible
    assert any("needs 16 h100_sxm_80gb devices, the cluster has 8" in f.message for f in e.findings)


def test_kinds_that_no_collective_library_joins_share_no_pipeline() -> None:
    d = deployment("llama-3-8b", (H100, 4), ("mi300x_192gb", 4), concurrency=8)
    with pytest.raises(Refused, match="run replicas of each kind"):
        estimate(d, Strategy(tp=4, pp=2, batch=8, stage_devices=(H100, "mi300x_192gb")), load_curves())
    ways = {f.groups: f for f in fleets(d, load_curves(), "total_throughput")}
    assert "NVIDIA and AMD" in ways[(f"{H100}+mi300x_192gb",)].why
    beside = ways[H100, "mi300x_192gb"].candidate
    assert beside is not None and beside.estimate.feasible


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"pp": 3, "stage_devices": ("a", "b")}, "names 2 devices, but pp = 3"),
        ({"pp": 2, "virtual": 2, "stage_devices": ("a", "b")}, "interleaved"),
    ],
)
def test_stage_devices_that_do_not_fit_the_stages_are_refused(fields: dict, says: str) -> None:
    with pytest.raises(ToolError, match=says):
        Strategy(**fields)


def test_a_device_that_is_not_there_is_named_with_those_that_are() -> None:
    d = deployment("llama-3-8b", (H100, 8), concurrency=8)
    with pytest.raises(ToolError, match=r"no b200 in this deployment; there is h100_sxm_80gb"):
        estimate(d, Strategy(tp=4, pp=2, batch=8, stage_devices=(H100, "b200")), load_curves())


# -------------------------------------------------------------------------------------------------------- ways to group


@pytest.mark.parametrize(("kinds", "bell"), [(1, 1), (2, 2), (3, 5), (4, 15)])
def test_kinds_are_grouped_in_every_way(kinds: int, bell: int) -> None:
    """The Bell numbers."""
    clusters = [cluster(n, 4) for n in (H100, A100, "h200", "l40s")[:kinds]]
    found = {frozenset(frozenset(c.device.id for c in g) for g in groups) for groups in partitions(clusters)}
    assert len(found) == bell
    assert all(sum(len(g) for g in groups) == kinds for groups in found)


@pytest.mark.parametrize(("whole", "shares"), [(128, (0.65, 0.35)), (7, (1 / 3, 1 / 3, 1 / 3)), (2, (0.99, 0.01))])
def test_requests_in_flight_are_dealt_out_whole(whole: int, shares: tuple[float, ...]) -> None:
    parts = dealt(whole, shares)
    assert sum(parts) == whole and all(p >= 1 for p in parts)


def test_replicas_of_both_kinds_serve_more_than_either_alone() -> None:
    result = searched()
    both, fast, slow = (fleet(result, *g).candidate for g in ((H100, A100), (H100,), (A100,)))
    assert both and fast and slow
    assert fast.objective_value > slow.objective_value
    assert fast.objective_value < both.objective_value < fast.objective_value + slow.objective_value
    assert result.best is not None and result.best.units == both.units
    assert {u.name: u.strategy.num_devices for u in both.units} == {H100: 8, A100: 16}


def test_every_group_meets_every_latency_with_its_own_share() -> None:
    best = searched().best
    assert best is not None
    for unit, own in units_of(best.units, two_kinds()):
        again = estimate(own, unit.strategy, load_curves())
        assert again == unit.estimate and again.feasible
    assert sum(u.share for u in best.units) == pytest.approx(1.0)
    assert sum(u.in_flight or 0 for u in best.units) == 128


def test_shares_are_near_the_best_of_all_splits_of_the_requests_in_flight() -> None:
    d, curves = two_kinds(), load_curves()
    best = searched().best
    assert best is not None
    values = []
    for n in range(48, 112, 8):
        parts = [unit_deployment(d, (c,), 0.5, m) for c, m in zip(d.clusters, (n, 128 - n), strict=True)]
        ranked = [order(explore(p, curves)[0], "total_throughput") for p in parts]
        values.append(sum(r[0].value for r in ranked) if all(ranked) else 0.0)
    assert best.objective_value > 0.98 * max(values)


def test_arrivals_are_split_so_that_no_group_saturates_before_the_other() -> None:
    """A ratio that is fixed serves what the group that fills first lets it: at the ratio of the capacities all of them."""
    d = deployment("llama-3-8b", (H100, 2), (A100, 2), request_rate=4.0, ttft=2.0, tpot=0.05)
    best = fleet(search(d, load_curves(), top=1), H100, A100).candidate
    assert best is not None and best.estimate.feasible
    filled = [u.estimate.request_rate * d.workload.osl / (u.estimate.capacity_tok_s or 1.0) for u in best.units]
    assert max(filled) / min(filled) < 1.25
    assert sum(u.estimate.request_rate for u in best.units) == pytest.approx(4.0)


def test_a_model_too_large_for_either_kind_runs_on_stages_of_both() -> None:
    d = deployment("llama-3.1-405b", (H100, 8), (A100, 8), concurrency=16, ttft=5.0, tpot=0.1)
    result = search(d, load_curves(), top=3)
    best = result.best
    assert best is not None and [f.groups for f in result.fleets if f.candidate] == [(f"{H100}+{A100}",)]
    assert sorted(best.estimate.strategy.stage_devices) == sorted((H100, A100))
    layers = dict(zip(best.estimate.strategy.stage_devices, best.estimate.strategy.layers_per_stage or (), strict=True))
    assert layers[H100] > 1.5 * layers[A100]
    told = next(f for f in best.estimate.findings if f.code == "mixed-balance")
    assert told.values["ratio"] < told.values["bound"]
    assert any(f.code == "mixed-unmeasured" for f in best.estimate.findings)


def test_a_throughput_is_asked_of_all_groups_together_and_never_ranked_feasible_if_they_miss_it() -> None:
    alone = max(f.candidate.objective_value for f in searched().fleets if f.candidate and len(f.groups) == 1)
    reached = fleets(two_kinds(total=1.1 * alone), load_curves(), "total_throughput")
    able = [f for f in reached if f.candidate and f.candidate.estimate.feasible]
    assert [f.groups for f in able] == [(H100, A100)]
    beyond = fleets(two_kinds(total=10 * alone), load_curves(), "total_throughput")
    assert not any(f.candidate and f.candidate.estimate.feasible for f in beyond)


def test_one_kind_has_no_ways_to_group() -> None:
    d = deployment("llama-3-8b", (H100, 4), concurrency=8)
    assert fleets(d, load_curves(), "total_throughput") == ()
    assert evaluate_strategy(d, Strategy(tp=4, batch=8), load_curves()).units == ()


# ---------------------------------------------------------------------------------------------------------- conditions


TAIL = "\nModel: Llama-3-70B bf16. Input 2000 tokens, output 500 tokens, concurrency 128.\n"
SAME = {(H100, 8), (A100, 16)}
NODES = {("h20_96gb", 32), (H100, 16)}


def counted(text: str, kind: str = "markdown") -> set[tuple[str, int | None]]:
    d = resolve(read_conditions([InputFile(path="c.md", sha256="", text=text, kind=kind)]))  # type: ignore[arg-type]
    return {(c.device.id, c.num_devices) for c in d.clusters}


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("8 H100 and 16 A100 80GB, 8 per node.", SAME),
        ("硬件：8 张 H100 和 16 张 A100-80G。", SAME),
        ("Cluster: H100 x 8, A100-80GB x 16", SAME),
        ("- H100: 8\n- A100 80GB: 16", SAME),
        ("We have 4 nodes of H20 plus 2 nodes of H100, 8 GPUs each.", NODES),
        ("Hardware: 4 H20 nodes and 2 H100 nodes, 8 GPUs per node.", NODES),
        ("We have 2 nodes with 8 H100 each and 4 nodes with 8 H20 each.", NODES),
        ("集群：4 台 8 卡 H20 服务器，外加 2 台 8 卡 H100 服务器。", NODES),
        ("集群由 2 个 H100 节点和 4 个 H20 节点组成，每节点 8 卡。", NODES),
        ("8 H100 and 16 A100 80GB and 32 L40S", {*SAME, ("l40s_48gb", 32)}),
        ("| host | GPUs | model |\n|---|---|---|\n| node-a | 8 | H100 SXM |\n| node-b | 16 | A100 SXM4 80 GB |", SAME),
    ],
)
def test_clusters_of_several_kinds_are_counted_by_kind(text: str, kinds: set[tuple[str, int]]) -> None:
    assert counted(text + TAIL) == kinds


def test_a_list_of_node_groups_is_counted_by_kind() -> None:
    groups = [
        {"device": "H100", "num_nodes": 1, "devices_per_node": 8},
        {"device": "A100-80GB", "num_nodes": 2, "devices_per_node": 8},
    ]
    load = {"isl": 2000, "osl": 500, "concurrency": 128}
    text = json.dumps({"model": "Llama-3-70B", "hardware": {"node_groups": groups}, "workload": load})
    assert counted(text, "json") == SAME


def test_devices_to_choose_from_are_no_cluster_of_several_kinds() -> None:
    assert counted("8 H100 or 16 H20, which should we buy?" + TAIL) == {(H100, 8)}
