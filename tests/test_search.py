"""The search: exact, honest about what is infeasible, and it explains itself."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge.catalog import load_device, load_model
from knowledge.curves import load_curves
from tools.cost.estimate import estimate
from tools.engines.rules import legal
from tools.search import baseline_strategy, evaluate_strategy, search
from tools.search.objective import choose_objective
from tools.search.pareto import front
from tools.search.rank import explore, order
from tools.search.space import batched_tokens, degrees, price_space
from tools.spec.base import MeshwrightError, ToolError
from tools.spec.deployment import Deployment
from tools.spec.hardware import Cluster
from tools.spec.model import MLP, Attention, ModelSpec, MoE
from tools.spec.plan import SearchResult
from tools.spec.strategy import Strategy
from tools.spec.workload import EngineChoice, Requirement, Requirements, Workload

CURVES = load_curves()
DENSE = ModelSpec(
    name="dense-13b", hidden_size=5120, num_hidden_layers=12, vocab_size=32000, mlp=MLP(intermediate_size=13824),
    attention=Attention(num_heads=40, num_kv_heads=8, head_dim=128),
)  # fmt: skip
EXPERTS = ModelSpec(
    name="moe", hidden_size=2048, num_hidden_layers=8, vocab_size=32000,
    moe=MoE(num_experts=16, top_k=2, intermediate_size=1024),
    attention=Attention(num_heads=16, num_kv_heads=4, head_dim=128),
)  # fmt: skip
TTFT = Requirement(metric="ttft_s", stat="p99", limit=1.0)
TPOT = Requirement(metric="tpot_s", stat="mean", limit=0.05)


def make(
    model: ModelSpec, n: int | None, gates: tuple[Requirement, ...] = (TTFT, TPOT), device: str = "H100", **kw: object
) -> Deployment:
    d = load_device(device).device
    cluster = Cluster(
        device=d, num_devices=n, memory_bytes=d.memory_usable_bytes, memory_bandwidth=d.memory_bandwidth,
        peak_flops=d.peak_flops, intra_node_bandwidth=d.link_bandwidth if d.link_domain > 1 else d.pcie_bandwidth,
        inter_node_bandwidth=d.network_bandwidth, link_domain=d.link_domain,
    )  # fmt: skip
    fields = set(Deployment.model_fields)
    load = {k: v for k, v in kw.items() if k not in fields}
    work = Workload(**{"isl": 512, "osl": 128, **load})  # type: ignore[arg-type]
    rest: dict[str, Any] = {k: v for k, v in kw.items() if k in fields}
    return Deployment(model=model, cluster=cluster, workload=work, requirements=Requirements(gates=gates), **rest)


def brute_force(d: Deployment) -> list[tuple[float, Strategy]]:
    """One at a time, through `Strategy` and `estimate`: every factorisation of N, every rung of batches."""
    n = d.cluster.num_devices
    assert n is not None
    tokens = batched_tokens(d, CURVES, d.engine.name)
    ladder = sorted({2**i for i in range(14)} | {3 * 2**i // 2 for i in range(14)})
    out = []
    for tp, pp, attn_dp in itertools.product(range(1, n + 1), repeat=3):
        if n % (tp * pp * attn_dp) or pp > d.model.num_hidden_layers:
            continue
        for ep in range(1, tp * attn_dp + 1) if d.model.moe else (1,):
            base = {
                "tp": tp,
                "pp": pp,
                "attn_dp": attn_dp,
                "dp": n // (tp * pp * attn_dp),
                "ep": ep,
                "max_num_batched_tokens": tokens,
            }
            try:
                first = estimate(d, Strategy(**base), CURVES)
            except MeshwrightError:
                continue
            if any(f.code == "does-not-fit" or (f.cause == "engine" and f.severity == "error") for f in first.findings):
                continue
            for batch in sorted({*(b for b in ladder if b <= first.max_batch), first.max_batch}):
                e = estimate(d, Strategy(**base, batch=batch), CURVES)
                if e.feasible:
                    out.append((e.output_tok_s, e.strategy))
    return sorted(out, key=lambda x: -x[0])


@pytest.mark.parametrize(
    ("model", "n", "tpot"),
    [(DENSE, 4, 0.02), (DENSE, 2, 0.05), (DENSE, 6, 0.012), (EXPERTS, 4, 0.01), (EXPERTS, 2, 0.006)],
)
def test_brute_force_one_at_a_time_finds_the_same_optimum(model: ModelSpec, n: int, tpot: float) -> None:
    d = make(
        model, n, (TTFT, TPOT.model_copy(update={"limit": tpot})), engine=EngineChoice(limits={"max_num_seqs": 256})
    )
    d = d.model_copy(update={"objective": "total_throughput"})
    reference, found = brute_force(d), search(d, CURVES)
    assert reference and found.best is not None
    assert found.best.objective_value == pytest.approx(reference[0][0], rel=1e-9)
    assert found.num_feasible == len(reference)


def test_an_infeasible_verdict_is_confirmed_by_brute_force() -> None:
    d = make(DENSE, 2, (TPOT.model_copy(update={"limit": 0.001}),), engine=EngineChoice(limits={"max_num_seqs": 8}))
    assert search(d, CURVES).infeasible is not None
    assert brute_force(d) == []


def test_every_ranked_strategy_is_legal_fits_and_meets_every_requirement() -> None:
    for d in (
        make(DENSE, 8), make(EXPERTS, 8), make(DENSE, 8, request_rate=20.0), make(EXPERTS, 16, concurrency=300),
        make(DENSE, 4, batch_size=32), make(load_model("llama3-70b").model, 8), make(DENSE, 4, (), "RTX4090"),
    ):  # fmt: skip
        r = search(d, CURVES)
        assert r.ranked
        for c in r.ranked:
            e = c.estimate
            assert e.feasible, [f.message for f in e.findings if f.severity == "error"]
            assert legal(e.strategy.engine, d.model, e.strategy)
            assert all(p.status != "broken" for p in e.predictions)
            assert min(m.free_bytes for m in e.memory) >= 0
            assert e.num_devices == d.cluster.num_devices


def test_ranks_follow_the_objective() -> None:
    for objective in ("total_throughput", "min_latency", "knee"):
        r = search(make(DENSE, 8).model_copy(update={"objective": objective}), CURVES)
        values = [c.objective_value for c in r.ranked]
        assert values == sorted(values, reverse=True)
        assert r.objective == objective


def test_precedence_of_objectives() -> None:
    assert choose_objective(make(DENSE, 8)) == "total_throughput"
    assert choose_objective(make(DENSE, None)) == "fewest_devices"
    assert choose_objective(make(DENSE, 8, (Requirement(metric="throughput_total", limit=1.0),))) == "knee"
    assert choose_objective(make(DENSE, None).model_copy(update={"objective": "min_latency"})) == "min_latency"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 96), st.sampled_from([DENSE, EXPERTS]))
def test_enumerated_degrees_use_every_device(n: int, model: ModelSpec) -> None:
    for tp, pp, dp, ep, etp, attn_dp in degrees(model, (n,)):
        assert tp * pp * dp * attn_dp == n
        assert ep * etp == tp * attn_dp
        assert (
            Strategy(tp=int(tp), pp=int(pp), dp=int(dp), ep=int(ep), etp=int(etp), attn_dp=int(attn_dp)).num_devices
            == n
        )


def test_seven_devices_get_a_plan_or_a_finding_about_idle_ones() -> None:
    r = search(make(EXPERTS, 7), CURVES)
    assert r.best is not None
    idle = 7 - r.best.estimate.num_devices
    assert (idle == 0) or any(f.code == "idle-devices" for f in r.best.estimate.findings)


def test_ample_devices_end_at_the_fewest() -> None:
    d = make(load_model("llama3-70b").model, None)
    r = search(d, CURVES)
    assert r.objective == "fewest_devices" and r.best is not None
    n = r.best.estimate.num_devices
    for fewer in range(1, n):
        assert price_space(d, CURVES, (fewer,)).num_feasible == 0
    assert r.devices_table[0]["devices"] == n
    assert len(r.devices_table) > 1


def _applied(r: SearchResult) -> list[tuple[str, SearchResult]]:
    assert r.infeasible is not None
    return [(c.description, search(c.deployment, CURVES)) for c in r.infeasible.nearest]


def test_the_nearest_changes_of_a_missed_latency_work_when_applied() -> None:
    r = search(make(DENSE, 4, (TTFT, TPOT.model_copy(update={"limit": 0.001}))), CURVES)
    assert r.infeasible is not None and r.infeasible.cause == "slo"
    assert "tpot_s" in r.infeasible.binding.message
    applied = _applied(r)
    assert applied
    assert all(x.best is not None for _, x in applied)


def test_too_little_memory_is_named_and_more_devices_or_narrower_weights_help() -> None:
    r = search(make(load_model("llama3-70b").model, 1), CURVES)
    assert r.infeasible is not None and r.infeasible.cause == "memory"
    kinds = {c.kind for c in r.infeasible.nearest}
    assert "devices" in kinds
    assert all(x.best is not None for _, x in _applied(r))


def test_two_requirements_out_of_reach_are_relaxed_together() -> None:
    gates = (TTFT.model_copy(update={"limit": 1e-4}), TPOT.model_copy(update={"limit": 1e-5}))
    r = search(make(DENSE, 2, gates), CURVES)
    assert r.infeasible is not None and r.infeasible.nearest
    assert all(x.best is not None for _, x in _applied(r))


def test_too_many_arrivals_say_what_rate_works() -> None:
    r = search(make(DENSE, 2, (TPOT,), request_rate=5000.0), CURVES)
    assert r.infeasible is not None
    assert "overload" in {f.code for f in r.infeasible.findings}
    assert all(x.best is not None for _, x in _applied(r))


def test_the_front_has_no_dominated_point() -> None:
    rng = np.random.default_rng(0)
    throughput, latency = rng.random(300), rng.random(300)
    chosen = front(throughput, latency)
    for i in range(300):
        beaten = (
            (throughput >= throughput[i])
            & (latency <= latency[i])
            & ((throughput > throughput[i]) | (latency < latency[i]))
        )
        assert (i in chosen) == (not beaten.any())


def test_relaxing_a_requirement_never_lowers_throughput() -> None:
    best = []
    for limit in (0.006, 0.012, 0.03, 0.1):
        d = make(DENSE, 4, (TPOT.model_copy(update={"limit": limit}),))
        ranked = order(explore(d, CURVES)[0], "total_throughput")
        best.append(ranked[0].value if ranked else 0.0)
    assert best == sorted(best)
    r = search(make(DENSE, 4), CURVES)
    assert all(w.relative_gain >= -1e-9 for w in r.what_ifs if "relaxed" in w.description)


def test_the_baseline_is_tp_inside_the_node_and_the_smallest_pipeline_that_fits() -> None:
    llama = load_model("llama3-70b").model
    assert baseline_strategy(make(llama, 8), CURVES).label() == "tp8"
    assert baseline_strategy(make(llama, 16), CURVES).label() == "tp8·dp2"
    big = load_model("llama3.1-405b").model
    s = baseline_strategy(make(big, 16), CURVES)
    assert (s.tp, s.pp, s.dp) == (8, 2, 1)


def test_a_baseline_that_does_not_fit_is_priced_and_marked() -> None:
    r = search(make(load_model("llama3.1-405b").model, 8), CURVES)
    assert not r.baseline.estimate.feasible
    assert "does-not-fit" in {f.code for f in r.baseline.estimate.findings}


def test_a_stated_baseline_and_asked_strategies_are_used() -> None:
    d = make(DENSE, 4).model_copy(
        update={"baseline": {"tp": 1, "pp": 4}, "alternatives": ({"tp": 4}, {"tp": 2, "dp": 2})}
    )
    r = search(d, CURVES)
    assert (r.baseline.estimate.strategy.tp, r.baseline.estimate.strategy.pp) == (1, 4)
    assert [c.estimate.strategy.label() for c in r.asked] == ["tp4", "tp2·dp2"]


def test_a_proposal_is_judged_as_the_search_judges_its_own() -> None:
    d = make(DENSE, 8)
    r = search(d, CURVES)
    assert r.best is not None
    s = r.best.estimate.strategy
    again = evaluate_strategy(d, s, CURVES)
    assert again.objective_value == pytest.approx(r.best.objective_value)
    free = Strategy(tp=s.tp, pp=s.pp, dp=s.dp)
    assert evaluate_strategy(d, free, CURVES).objective_value == pytest.approx(r.best.objective_value)
    assert evaluate_strategy(d, Strategy(tp=8, batch=1), CURVES).objective_value < r.best.objective_value


def test_the_search_is_deterministic() -> None:
    a, b = (search(make(EXPERTS, 8), CURVES) for _ in range(2))
    assert a == b


def test_no_devices_and_no_tokens_are_tool_errors() -> None:
    with pytest.raises(ToolError, match="num_devices"):
        search(make(DENSE, 0), CURVES)
    with pytest.raises(ToolError, match="isl"):
        search(make(DENSE, 4, isl=0), CURVES)
