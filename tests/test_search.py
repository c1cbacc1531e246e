"""The search: exact, honest about what is infeasible, and it explains itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge.catalog import load_device, load_model
from knowledge.curves import load_curves
from tools.cost.compute import Roof, Work, price
from tools.cost.disagg import predict_disaggregated
from tools.cost.estimate import estimate, predict
from tools.cost.known import Table, forget
from tools.cost.steps import ARRAYS
from tools.cost.together import Job, price_all
from tools.engines.rules import legal
from tools.engines.rules.handover import pd_findings
from tools.search import baseline_strategy, evaluate_strategy, search
from tools.search.objective import choose_objective
from tools.search.pareto import front
from tools.search.pools import pooled
from tools.search.rank import explore, order
from tools.search.space import BATCHES, DEGREES, degrees, price_space, searched_axes, token_limits
from tools.spec.base import MeshwrightError, ToolError
from tools.spec.deployment import Deployment
from tools.spec.hardware import Cluster
from tools.spec.model import MLA, MLP, Attention, ModelSpec, MoE
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
LATENT = EXPERTS.model_copy(update={
    "name": "latent", "attention": Attention(
        num_heads=16, num_kv_heads=16, head_dim=128,
        mla=MLA(kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64, q_lora_rank=None),
    ),
})  # fmt: skip
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


UNLIKE = {"cp-kind", "cp-prefill", "dcp-backend"}
"""Warnings that an engine does something else than the graph that is priced."""


def every_strategy(d: Deployment) -> Iterator[dict[str, Any]]:
    """Every factorisation of N over every axis that a Strategy can name and the search covers, legal or not."""
    n, moe = d.cluster.num_devices, d.model.moe is not None
    assert n is not None
    for tp, pp, cp, attn_dp in itertools.product(range(1, n + 1), repeat=4):
        group = tp * cp * attn_dp
        if n % (group * pp) or pp > d.model.num_hidden_layers:
            continue
        eps = range(1, group + 1) if moe else (1,)
        for ep, dcp, sp, comm in itertools.product(eps, range(1, tp + 1), (False, True), ("auto", "allgather")):
            same_as_plain = (sp and tp == 1) or (comm == "allgather" and (attn_dp == 1 or ep == 1 or sp))
            if not same_as_plain:
                yield {
                    "tp": tp, "pp": pp, "cp": cp, "attn_dp": attn_dp, "dp": n // (group * pp), "ep": ep, "dcp": dcp, "sp": sp,
                    "moe_comm": comm, "engine": d.engine.name,
                }  # fmt: skip


def brute_force(d: Deployment) -> list[tuple[float, Strategy]]:
    """One at a time, through `Strategy` and `estimate`: every layout, every limit of tokens, every rung of batches."""
    out = []
    for base in every_strategy(d):
        try:
            first = estimate(d, Strategy(**base), CURVES)
        except MeshwrightError:
            continue
        if any((f.cause in ("engine", "shape") and f.severity == "error") or f.code in UNLIKE for f in first.findings):
            continue
        for tokens in token_limits(d, CURVES, d.engine.name):
            most = estimate(d, Strategy(**base, max_num_batched_tokens=tokens), CURVES).max_batch
            for batch in sorted({*(int(b) for b in BATCHES if b <= most), most} - {0}):
                e = estimate(d, Strategy(**base, max_num_batched_tokens=tokens, batch=batch), CURVES)
                if e.feasible:
                    out.append((e.output_tok_s, e.strategy))
    return sorted(out, key=lambda x: -x[0])


@pytest.mark.parametrize(
    ("model", "n", "tpot", "engine"),
    [
        (DENSE, 4, 0.02, "vllm"), (DENSE, 2, 0.05, "sglang"), (DENSE, 6, 0.012, "trtllm"), (EXPERTS, 4, 0.01, "vllm"),
        (EXPERTS, 2, 0.006, "sglang"), (LATENT, 2, 0.01, "vllm"), (LATENT, 4, 0.01, "sglang"),
    ],
)  # fmt: skip
def test_brute_force_one_at_a_time_finds_the_same_optimum(model: ModelSpec, n: int, tpot: float, engine: str) -> None:
    limits = {"max_num_seqs": 3.0, "max_num_batched_tokens": 4096.0}
    if model is DENSE:
        limits = {"max_num_seqs": 6.0}  # the limits of tokens are searched too
    d = make(model, n, (TTFT, TPOT.model_copy(update={"limit": tpot})), engine=EngineChoice(name=engine, limits=limits))
    d = d.model_copy(update={"objective": "total_throughput"})
    reference, found = brute_force(d), search(d, CURVES)
    assert reference and found.best is not None
    assert found.best.objective_value == pytest.approx(reference[0][0], rel=1e-9)
    assert found.num_feasible == len(reference)


def test_an_infeasible_verdict_is_confirmed_by_brute_force() -> None:
    d = make(DENSE, 2, (TPOT.model_copy(update={"limit": 0.001}),), engine=EngineChoice(limits={"max_num_seqs": 8}))
    assert search(d, CURVES).infeasible is not None
    assert brute_force(d) == []


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_an_infeasible_verdict_on_latent_attention_is_confirmed_by_brute_force(engine: str) -> None:
    choice = EngineChoice(name=engine, limits={"max_num_seqs": 2, "max_num_batched_tokens": 2048})
    d = make(LATENT, 2, (TPOT.model_copy(update={"limit": 1e-5}),), engine=choice)
    assert search(d, CURVES).infeasible is not None
    assert brute_force(d) == []


CASES: dict[str, Deployment] = {
    "closed": make(EXPERTS, 16), "latent": make(LATENT, 16), "concurrency": make(EXPERTS, 24, concurrency=300),
    "rate": make(LATENT, 8, request_rate=20.0), "batch": make(DENSE, 8, batch_size=64),
    "sglang": make(LATENT, 16, engine=EngineChoice(name="sglang")),
    "trtllm": make(DENSE, 16, engine=EngineChoice(name="trtllm")),
    "narrow": make(EXPERTS, 8, weight_dtypes=("bf16", "fp8"), kv_dtypes=("bf16", "fp8")),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_prices_in_the_search_are_those_of_one_strategy_at_a_time(name: str) -> None:
    """Also when most of them are looked up: the second search finds what the first one worked out."""
    d = CASES[name]
    forget()
    first, again = (price_space(d, CURVES, (d.cluster.num_devices or 0,)) for _ in range(2))
    where = [(t, i) for t, p in enumerate(first.priced) for i in range(len(p))]
    for k in np.random.default_rng(1).choice(len(where), 12, replace=False):
        t, i = where[k]
        alone = predict(d, first.priced[t].cands.strategy(i, d.model), CURVES).performance
        for p in (first.priced[t], again.priced[t]):
            for metric in ("ttft", "tpot", "e2e", "output_tok_s"):
                assert p.metrics[metric][i] == pytest.approx(getattr(alone, metric)[0], rel=1e-9), metric


def test_no_configuration_is_priced_twice() -> None:
    for d in CASES.values():
        space = price_space(d, CURVES, (d.cluster.num_devices or 0,))
        by_family: dict[tuple[object, ...], list[np.ndarray]] = {}
        for c in (p.cands for p in space.priced):
            family = (c.sp, c.moe_comm, c.node, c.weight_dtype, c.kv_dtype)
            by_family.setdefault(family, []).append(np.stack([getattr(c, n) for n in ARRAYS], axis=1))
        for parts in by_family.values():
            rows = np.concatenate(parts)
            assert len(np.unique(rows, axis=0)) == len(rows)


def test_axes_are_searched_where_the_engine_has_them_as_the_graph_does() -> None:
    def axes(model: ModelSpec, engine: str) -> dict[str, bool]:
        return searched_axes(make(model, 16, engine=EngineChoice(name=engine)))

    assert axes(LATENT, "vllm") == {"cp": False, "dcp": True}
    assert axes(EXPERTS, "sglang") == {"cp": False, "dcp": False}  # nothing checks the attention back end
    assert axes(LATENT, "sglang")["dcp"]
    assert axes(DENSE, "trtllm") == {"cp": True, "dcp": False}
    assert axes(DENSE, "an-engine-nobody-knows") == {"cp": False, "dcp": False}


def test_dealing_the_latent_cache_out_holds_more_sequences() -> None:
    d = make(LATENT, 8, (), osl=8000, engine=EngineChoice(limits={"max_num_seqs": 1e5}))
    space = price_space(d, CURVES, (8,))
    tp8 = [(p, i) for p in space.priced for i in np.flatnonzero((p.cands.tp == 8) & (p.cands.ep == 1))]
    most = {dcp: max(int(p.cands.batch[i]) for p, i in tp8 if p.cands.dcp[i] == dcp) for dcp in (1, 8)}
    assert 6 * most[1] < most[8] <= 8.5 * most[1]


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
    rows = degrees(model, (n,), cp=True, dcp=True)
    for row in rows.tolist():
        s = Strategy(**dict(zip(DEGREES, row, strict=True)))
        assert s.num_devices == n
        assert s.ep * (s.etp or 0) == s.group
    assert len(np.unique(rows, axis=0)) == len(rows)


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


def test_the_most_sequences_that_fit_are_the_most():
    """One more per attention group does not fit, however the activations of a large batch and its KV share the memory."""
    from agent.reading import read_conditions, read_files, resolve
    from evals.case import CASES, load_case

    for name in ("kv_tight_llama3_70b_2xa100_en", "deepseek_r1_w8a8_2x8_910b_zh"):
        d = resolve(read_conditions(read_files(load_case(CASES / name).inputs)))
        s = search(d, CURVES).best.estimate.strategy
        most = evaluate_strategy(d, s, CURVES).estimate.max_batch
        fits = lambda batch, d=d, s=s: min(  # noqa: E731
            m.free_bytes for m in evaluate_strategy(d, s.model_copy(update={"batch": batch}), CURVES).estimate.memory
        )
        assert fits(most) >= 0 > fits(most + s.attn_dp)


def test_a_context_beyond_the_models_positions_is_infeasible_and_the_models_own_is_the_way_out():
    d = make(
        load_model("mistral-7b-instruct-v0.2").model, 2, (), isl=20_000, osl=500, max_context=200_000, concurrency=1
    )
    r = search(d, CURVES)
    assert r.best is None and r.ranked == ()
    assert r.infeasible.binding.code == "positions" and r.infeasible.cause == "shape"
    change = r.infeasible.nearest[0]
    assert change.kind == "context" and change.value == 32768
    assert search(change.deployment, CURVES).best is not None


def test_a_strategy_that_is_asked_about_and_cannot_be_laid_out_is_answered_not_refused():
    d = make(load_model("qwen2.5-14b").model, 7, alternatives=({"tp": 7}, {"tp": 2}))
    r = search(d, CURVES)
    assert r.best is not None and len(r.asked) == 1
    assert [f.code for f in r.refused] == ["asked-illegal"] and "heads(40) % tp(7) = 5" in r.refused[0].message


# --------------------------------------------------------------------------------------------------- two pools


def test_two_pools_are_priced_as_the_closed_loop_over_them_and_joined_by_the_connector() -> None:
    for name in ("vllm", "sglang"):
        d = make(DENSE, 8, (TPOT,), concurrency=64, engine=EngineChoice(name=name))
        best = search(d, CURVES).best
        assert best is not None
        p = pooled(d, CURVES, best.estimate.output_tok_s)
        assert p is not None and p.meets
        again = predict_disaggregated(d, p.prefill, p.decode, CURVES, concurrency=64)
        assert p.output_tok_s == pytest.approx(again.output_tok_s, rel=1e-9)
        assert again.ttft_s <= p.ttft_s < 1.25 * again.ttft_s and again.tpot_s <= p.tpot_s < 1.1 * again.tpot_s
        assert p.tpot_s <= TPOT.limit
        assert p.prefill.num_devices + p.decode.num_devices == p.num_devices <= 8
        assert p.gain == pytest.approx(p.output_tok_s / best.estimate.output_tok_s - 1.0)
        assert not any(f.severity == "error" for f in pd_findings(name, d.model, p.prefill, p.decode))
        assert all(legal(name, d.model, s) for s in (p.prefill, p.decode))


def test_no_pair_of_pools_is_much_better_than_the_one_that_is_found() -> None:
    """All layouts of both pools and all numbers of workers, priced one by one."""
    d = make(DENSE, 4, (), concurrency=48, engine=EngineChoice(limits={"max_num_batched_tokens": 8192}))
    layouts = [
        Strategy(tp=tp, pp=pp, dp=dp)
        for tp, pp, dp in itertools.product((1, 2), (1, 2, 3), (1, 2, 3))
        if tp * pp * dp < 4
    ]
    pairs = [(p, q) for p in layouts for q in layouts if p.num_devices + q.num_devices <= 4]
    allowed = [(p, q) for p, q in pairs if not any(f.severity == "error" for f in pd_findings("vllm", DENSE, p, q))]
    best = max(predict_disaggregated(d, p, q, CURVES, concurrency=48).output_tok_s for p, q in allowed)
    found = pooled(d, CURVES)
    assert found is not None and found.output_tok_s >= 0.93 * best


def test_pools_that_cannot_hand_over_or_break_a_requirement_say_so() -> None:
    trtllm = pooled(make(DENSE, 8, (), engine=EngineChoice(name="trtllm")), CURVES)
    assert trtllm is not None and not trtllm.meets
    assert "pd-connector" in {f.code for f in trtllm.findings}
    slow = pooled(make(DENSE, 2, (), request_rate=1e4), CURVES)
    assert slow is not None and not slow.meets
    assert "pd-overload" in {f.code for f in slow.findings}


def test_two_pools_are_not_asked_about_where_the_question_does_not_arise() -> None:
    for d in (make(DENSE, 1), make(DENSE, None), make(DENSE, 8, batch_size=32), make(DENSE, 8, osl=1)):
        assert pooled(d, CURVES) is None


# -------------------------------------------------------------------------------------------------- what is worked out once


def test_line_numbers_of_a_table_that_starts_anew_are_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that carry prefill and decode are remembered by these numbers."""
    monkeypatch.setattr("tools.cost.known.MAX_ROWS", 5)
    table, asked = Table(), []

    def squares(keys: np.ndarray) -> np.ndarray:
        def work_out(missing: np.ndarray) -> np.ndarray:
            asked.append(len(missing))
            return (keys[missing] ** 2.0)[:, None]

        values, lines = table.rows(keys, work_out)
        assert values[:, 0].tolist() == (keys**2.0).tolist()
        return lines

    first, again, anew = (squares(np.asarray(k)) for k in ([7, 3, 5], [3, 5], [11, 3, 2]))
    assert again.tolist() == first[1:].tolist() and asked == [3, 3]
    assert not set(anew.tolist()) & set(first.tolist())


def test_kernels_priced_together_cost_what_they_cost_alone() -> None:
    roof = Roof.of(make(LATENT, 8).cluster, CURVES)
    rng = np.random.default_rng(3)
    jobs = []
    for kind, table, rows in itertools.product(("gemm", "elementwise", "grouped_gemm"), ("", "gemm"), (1, 3, 40)):
        many = {n: rng.uniform(1, 1e6, rows) for n in ("flops", "weight_bytes", "stream_bytes", "m", "n")}
        shared = {"k": 512.0, "experts": 8.0, "width": 1024.0, "groups": 2.0}
        jobs.append(Job(Work("a kernel", kind, **many, **shared, table=table), rows))  # type: ignore[arg-type]
    together = price_all(jobs, lambda w, _: price(w, roof).total)
    for job, seconds in zip(jobs, together, strict=True):
        assert seconds == pytest.approx(price(job.work, roof).total, rel=1e-12)


@pytest.mark.parametrize("rate", [40.0, 200.0])
def test_leaving_out_what_arrivals_overwhelm_leaves_what_is_feasible(rate: float) -> None:
    d = make(EXPERTS, 8, request_rate=rate)
    whole, able = (price_space(d, CURVES, (8,), able=x) for x in (False, True))
    found = [
        sorted(
            tuple(float(getattr(p.cands, n)[i]) for n in ARRAYS) for p in s.priced for i in np.flatnonzero(p.feasible)
        )
        for s in (whole, able)
    ]
    assert found[0] == found[1]
    assert sum(map(len, able.priced)) < sum(map(len, whole.priced))


def test_configurations_that_were_judged_are_left_out() -> None:
    d = make(EXPERTS, 4)
    space = price_space(d, CURVES, (4,))
    some = replace(space, priced=space.priced[:1])
    rest = price_space(d, CURVES, (4,), [some])
    assert sum(map(len, rest.priced)) == sum(map(len, space.priced)) - len(space.priced[0])
    assert not price_space(d, CURVES, (4,), [space]).priced
