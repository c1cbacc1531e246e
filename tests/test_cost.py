"""The cost model: FLOPs and bytes of kernels, collectives, serving formulas, estimates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge.catalog import load_device, load_model
from knowledge.curves import load_curves
from tools.cost.collectives import boundaries, collective_time, levels, members
from tools.cost.compute import merge, price
from tools.cost.estimate import estimate, predict
from tools.cost.fit import free_bytes, max_batch
from tools.cost.report import SCALARS, estimate_json, prediction_json
from tools.cost.serving import Load, serve
from tools.cost.steps import Candidates, Layout, layouts
from tools.graph.build import all_sizes
from tools.memory import memory
from tools.partition.lower import lower
from tools.partition.mesh import Mesh, build_mesh
from tools.spec.base import ToolError
from tools.spec.deployment import Deployment
from tools.spec.hardware import Cluster
from tools.spec.model import MLP, Attention, ModelSpec, MoE
from tools.spec.strategy import Strategy
from tools.spec.workload import Requirement, Requirements, Workload

CURVES = load_curves()
LLAMA_70B = load_model("llama3-70b").model
DEEPSEEK = load_model("deepseek-v3").model
SMALL = ModelSpec(
    name="small", hidden_size=1024, num_hidden_layers=6, vocab_size=32000, mlp=MLP(intermediate_size=2816),
    attention=Attention(num_heads=16, num_kv_heads=4, head_dim=64),
)  # fmt: skip
SMALL_MOE = SMALL.model_copy(update={"name": "small-moe", "moe": MoE(num_experts=16, top_k=2, intermediate_size=512)})
SLIDING = SMALL.model_copy(
    update={"name": "sliding", "attention": SMALL.attention.model_copy(update={"sliding_window": 512})}
)


def cluster(device: str = "H100", n: int | None = 8, **update: object) -> Cluster:
    d = load_device(device).device
    base = Cluster(
        device=d, num_devices=n, memory_bytes=d.memory_usable_bytes, memory_bandwidth=d.memory_bandwidth,
        peak_flops=d.peak_flops, intra_node_bandwidth=d.link_bandwidth if d.link_domain > 1 else d.pcie_bandwidth,
        inter_node_bandwidth=d.network_bandwidth, link_domain=d.link_domain,
    )  # fmt: skip
    return base.model_copy(update=update)


def deployment(
    model: ModelSpec = LLAMA_70B, c: Cluster | None = None, gates: tuple[Requirement, ...] = (), **w: object
) -> Deployment:
    work = Workload(**{"isl": 1024, "osl": 256, **w})  # type: ignore[arg-type]
    return Deployment(model=model, cluster=c or cluster(), workload=work, requirements=Requirements(gates=gates))


def one(model: ModelSpec, s: Strategy, c: Cluster | None = None) -> Layout:
    ((_, layout),) = layouts(deployment(model, c), CURVES, Candidates.of(s))
    return layout


def total(layout: Layout, phase: str, sequences: int, tokens: int, context: int, field: str) -> float:
    """Sum of a field over all layers and the head of a single-stage replica, per rank."""
    a = np.asarray([sequences])
    works = layout.works(phase, a, np.asarray([tokens]), np.asarray([context]))  # type: ignore[arg-type]
    counts = {k: layout.model.layers().count(k) for k, _ in works.layers}
    out = sum(float(np.sum(getattr(w, field))) * counts[k] for k, ws in works.layers for w in ws)
    return out + sum(float(np.sum(getattr(w, field))) for w in (*works.embed, *works.head))


# --------------------------------------------------------------------------------------------------- FLOPs and bytes


def test_a_decode_token_costs_two_flops_per_weight_of_the_matrices() -> None:
    """2·P for the linear layers and head, plus 4·heads·d_k per attended position and layer (Kaplan et al., arXiv
    2001.08361)."""
    context = 1000
    flops = total(one(LLAMA_70B, Strategy(tp=1)), "decode", 1, 1, context, "flops")
    matrices = 80 * (8192 * (8192 * 2 + 2 * 1024) + 3 * 8192 * 28672) + 8192 * 128256
    attention = 80 * 4 * 64 * 128 * context
    assert flops == pytest.approx(2 * matrices + attention, rel=1e-6)


def test_tensor_parallelism_divides_the_flops_exactly() -> None:
    whole = total(one(LLAMA_70B, Strategy(tp=1)), "prefill", 2, 512, 512, "flops")
    eighth = total(one(LLAMA_70B, Strategy(tp=8)), "prefill", 2, 512, 512, "flops")
    assert eighth * 8 == pytest.approx(whole, rel=1e-9)


def test_causal_prefill_attends_half_of_the_square() -> None:
    layout = one(LLAMA_70B, Strategy())
    works = layout.works("prefill", np.asarray([1]), np.asarray([2048]), np.asarray([2048]))
    attention = next(w for w in works.layers[0][1] if w.kind == "attention_prefill")
    assert float(np.sum(attention.flops)) == pytest.approx(4 * 64 * 128 * 2048 * 2049 / 2)


def test_chunks_of_a_prompt_cost_as_many_attention_flops_as_the_whole() -> None:
    layout = one(LLAMA_70B, Strategy())

    def attention(tokens: int, context: int) -> float:
        works = layout.works("prefill", np.asarray([1]), np.asarray([tokens]), np.asarray([context]))
        return float(np.sum(next(w for w in works.layers[0][1] if w.kind == "attention_prefill").flops))

    assert sum(attention(512, 512 * (j + 1)) for j in range(4)) == pytest.approx(attention(2048, 2048))


@pytest.mark.parametrize(("queries", "context"), [(1, 2000), (300, 400), (600, 600), (64, 4096), (1000, 1200)])
def test_a_sliding_window_attends_what_a_mask_counts(queries: int, context: int) -> None:
    layout = one(SLIDING, Strategy())
    works = layout.works("prefill", np.asarray([1]), np.asarray([queries]), np.asarray([context]))
    attention = next(w for w in works.layers[0][1] if w.kind == "attention_prefill")
    q = np.arange(context - queries, context)[:, None]
    k = np.arange(context)[None, :]
    pairs = int(((k <= q) & (k > q - 512)).sum())
    assert float(np.sum(attention.flops)) == pytest.approx(4 * 16 * 64 * pairs)


def test_decode_reads_the_kv_cache_once() -> None:
    """320 KiB per token for Llama-3-70B in bf16, over 80 layers."""
    layout = one(LLAMA_70B, Strategy())

    def streamed(context: int) -> float:
        works = layout.works("decode", np.asarray([4]), np.asarray([1]), np.asarray([context]))
        return 80 * float(np.sum(next(w for w in works.layers[0][1] if w.kind == "attention_decode").stream_bytes))

    assert streamed(3000) - streamed(2000) == pytest.approx(4 * 1000 * 320 * 1024)


def test_weights_read_in_decode_are_the_weights_in_memory_less_the_embedding_rows() -> None:
    s = Strategy(tp=8)
    read = total(one(LLAMA_70B, s), "decode", 1, 1, 100, "weight_bytes")
    program = lower(LLAMA_70B, s, "decode", all_sizes(LLAMA_70B, batch_size=1, seq_len=1, kv_len=100))
    (stage,) = memory(program, capacity_bytes=80e9, context=128, batch=1)
    table = 128256 * 8192 * 2 / 8
    row = 8192 * 2
    assert read == pytest.approx(stage.weights_bytes - table + row, rel=1e-3)


def test_few_tokens_touch_few_experts_and_many_touch_all() -> None:
    layout = one(DEEPSEEK, Strategy(tp=8, weight_dtype="fp8"))

    def share(batch: int) -> float:
        works = layout.works("decode", np.asarray([batch]), np.asarray([1]), np.asarray([100]))
        w = next(w for w in works.layers[1][1] if w.kernel == "expert_gate_up")
        return float(np.sum(w.weight_bytes) / np.sum(w.weight_total))

    assert share(1) == pytest.approx(8 / 256)
    assert share(64) == pytest.approx(1 - (1 - 8 / 256) ** 64)
    assert share(4096) == pytest.approx(1.0, abs=1e-6)


def test_a_mixed_step_reads_weights_once() -> None:
    layout = one(LLAMA_70B, Strategy(tp=8))
    p = layout.works("prefill", np.asarray([1]), np.asarray([512]), np.asarray([512])).layers[0][1]
    d = layout.works("decode", np.asarray([32]), np.asarray([1]), np.asarray([900])).layers[0][1]
    both = merge(p, d)
    gate = next(w for w in both if w.kernel == "gate_up_proj")
    assert float(np.sum(gate.weight_bytes)) == pytest.approx(8192 * 2 * 28672 * 2 / 8)
    assert float(np.sum(gate.m)) == 544
    assert sum(float(np.sum(w.flops)) for w in both) == pytest.approx(sum(float(np.sum(w.flops)) for w in (*p, *d)))
    assert {w.kind for w in both if w.kernel == "attention"} == {"attention_prefill", "attention_decode"}


def test_stated_utilisations_override_the_curves() -> None:
    c = cluster(mfu=0.6, mbu=0.8)
    layout = one(LLAMA_70B, Strategy(tp=8), c)
    works = layout.works("prefill", np.asarray([4]), np.asarray([2048]), np.asarray([2048]))
    w = next(w for w in works.layers[0][1] if w.kernel == "gate_up_proj")
    t = price(w, layout.roof)
    assert float(np.sum(t.compute)) == pytest.approx(float(np.sum(w.flops)) / (c.peak_flops["bf16"] * 0.6))
    assert float(np.sum(t.memory)) == pytest.approx(
        float(np.sum(w.weight_bytes + w.stream_bytes)) / (c.memory_bandwidth * 0.8)
    )


def test_a_kernel_is_never_faster_than_either_roof() -> None:
    layout = one(DEEPSEEK, Strategy(attn_dp=8, ep=8, weight_dtype="fp8"))
    for phase, tokens in (("prefill", 700), ("decode", 1)):
        works = layout.works(phase, np.asarray([64]), np.asarray([tokens]), np.asarray([900]))  # type: ignore[arg-type]
        for _, ws in works.layers:
            for w in ws:
                if w.comm is None:
                    t = price(w, layout.roof)
                    assert np.all(t.total >= np.maximum(t.compute, t.memory))
                    # What an expert kernel contains, and what rides in the next norm, has no launch of its own.
                    assert w.routed or w.fused or np.all(t.total >= layout.roof.latency)


# ------------------------------------------------------------------------------------------------------- collectives


def _mesh(**kw: int) -> Mesh:
    return build_mesh(Strategy(**kw), 128)


def test_a_group_wider_than_the_domain_crosses_the_network() -> None:
    tops = levels(cluster(n=32), CURVES)
    mesh = _mesh(tp=16)
    assert [float(x) for x in members(mesh.shape.axis("tp"), mesh, tops)] == [8, 2]


def test_attention_dp_with_tp_inside_the_node_lies_across_nodes() -> None:
    tops = levels(cluster(n=32), CURVES)
    mesh = _mesh(tp=8, attn_dp=4, ep=32)
    assert [float(x) for x in members(mesh.shape.axis("attn_dp"), mesh, tops)] == [1, 4]
    assert [float(x) for x in members(mesh.shape.axis("ep"), mesh, tops)] == [8, 4]


def test_members_multiply_to_the_group() -> None:
    tops = levels(cluster(n=64), CURVES)
    for kw in ({"tp": 4, "attn_dp": 12, "ep": 48}, {"tp": 2, "attn_dp": 6, "ep": 6}, {"tp": 64}):
        mesh = _mesh(**kw)
        for name in ("tp", "attn_dp", "ep", "etp"):
            axes = mesh.shape.axis(name)
            assert math.prod(float(x) for x in members(axes, mesh, tops)) == float(np.asarray(mesh.degree(axes)))


def test_collectives_cost_nothing_alone_and_more_for_more_bytes() -> None:
    tops = levels(cluster(n=64), CURVES)
    mesh = _mesh(tp=8, attn_dp=4, ep=32)
    for kind in ("all_reduce", "reduce_scatter", "all_gather", "all_to_all"):
        for name in ("tp", "attn_dp", "ep"):
            times = [float(collective_time(kind, mesh.shape.axis(name), n, mesh, tops)) for n in (1e3, 1e6, 1e9)]
            assert 0 < times[0] <= times[1] < times[2]
        assert float(np.sum(collective_time(kind, (), 1e6, mesh, tops))) == 0.0


def test_large_all_reduce_reaches_the_published_bus_bandwidth() -> None:
    """nccl-tests on 8 x H100 with NVSwitch: 360 GB/s without and about 480 GB/s with in-switch reduction."""
    mesh = _mesh(tp=8)
    nbytes = 8e9
    t = float(collective_time("all_reduce", mesh.shape.axis("tp"), nbytes, mesh, levels(cluster(), CURVES)))
    assert 360e9 <= 2 * 7 / 8 * nbytes / t <= 490e9


def test_without_a_scale_up_link_ranks_talk_over_pcie() -> None:
    (first, last) = levels(cluster("RTX4090", 4), CURVES)
    assert (first.name, last.name) == ("node", "network")
    assert first.curve.name.startswith("pcie")


def test_stage_boundaries_cross_the_network_once_per_node() -> None:
    tops = levels(cluster(n=32), CURVES)
    assert [float(x) for x in boundaries(4, 8, tops)] == [0, 3]
    assert [float(x) for x in boundaries(8, 4, tops)] == [4, 3]
    assert [float(x) for x in boundaries(2, 4, tops)] == [1, 0]


# ----------------------------------------------------------------------------------------------------------- serving


def test_littles_law_holds_in_a_closed_loop() -> None:
    for batch in (1, 7, 64, 300):
        p = predict(deployment(), Strategy(tp=8, batch=batch), CURVES).performance
        cycle = p.ttft + 255 * p.tpot - CURVES.engine("vllm").prefill_s
        assert float(p.request_rate[0] * cycle[0]) == pytest.approx(batch, rel=0.02)


def test_throughput_rises_and_tpot_rises_with_concurrency() -> None:
    rows = [predict(deployment(), Strategy(tp=8), CURVES, concurrency=n).performance for n in (1, 4, 16, 64, 256)]
    rates = [float(p.output_tok_s[0]) for p in rows]
    tpots = [float(p.tpot[0]) for p in rows]
    assert rates == sorted(rates)
    assert tpots == sorted(tpots)


def test_a_lone_request_waits_for_nobody() -> None:
    p = predict(deployment(), Strategy(tp=8, batch=1), CURVES).performance
    assert float(p.ttft_percentiles["p99"][0]) == pytest.approx(float(p.ttft[0]), rel=1e-6)
    assert float(p.tpot[0]) == pytest.approx(float(p.steps.high[0]), rel=1e-6)


def test_percentiles_are_ordered() -> None:
    d = deployment(request_rate=6.0)
    p = predict(d, Strategy(tp=8, batch=256), CURVES).performance
    for table in (p.ttft_percentiles, p.tpot_percentiles):
        values = [float(table[k][0]) for k in ("p50", "p90", "p95", "p99", "max")]
        assert values == sorted(values)


def test_an_open_loop_queues_more_the_closer_to_capacity_and_is_refused_beyond() -> None:
    s = Strategy(tp=8, batch=256)
    capacity = float(predict(deployment(request_rate=0.1), s, CURVES).performance.capacity_rate[0])
    waits = [
        float(predict(deployment(request_rate=capacity * x), s, CURVES).performance.ttft[0]) for x in (0.1, 0.5, 0.9)
    ]
    assert waits == sorted(waits)
    over = estimate(deployment(request_rate=capacity * 1.1), s, CURVES)
    assert not over.feasible
    assert "overload" in {f.code for f in over.findings}


def test_replicas_share_the_load() -> None:
    two = predict(deployment(), Strategy(tp=4, dp=2), CURVES, concurrency=64).performance
    alone = predict(deployment(), Strategy(tp=4), CURVES, concurrency=32).performance
    assert float(two.output_tok_s[0]) == pytest.approx(2 * float(alone.output_tok_s[0]))
    assert float(two.tpot[0]) == pytest.approx(float(alone.tpot[0]))


def test_a_batch_that_arrives_together_waits_for_its_whole_prefill() -> None:
    d = deployment(batch_size=32)
    e = estimate(d, Strategy(tp=8, batch=32), CURVES)
    alone = estimate(deployment(batch_size=1), Strategy(tp=8, batch=1), CURVES)
    assert e.ttft_s == e.burst_ttft_s
    assert 4 * alone.ttft_s < e.ttft_s < 32 * alone.ttft_s


def test_a_pipeline_needs_microbatches_to_fill() -> None:
    """With one sequence a two-stage pipeline is no faster than its stages in a row; with many it nearly doubles the
    rate."""
    one_stage, two = Strategy(tp=4), Strategy(tp=4, pp=2)
    single = [predict(deployment(), s.model_copy(update={"batch": 1}), CURVES).performance for s in (one_stage, two)]
    assert float(single[1].tpot[0]) >= float(single[0].tpot[0])
    many = [
        predict(deployment(), s.model_copy(update={"batch": 128 * s.pp}), CURVES).performance for s in (one_stage, two)
    ]
    assert 1.4 < float(many[1].output_tok_s[0] / many[0].output_tok_s[0]) < 2.05


def test_uneven_stages_are_bound_by_the_slowest() -> None:
    even = predict(deployment(), Strategy(tp=4, pp=2, batch=64, layers_per_stage=(40, 40)), CURVES).performance
    uneven = predict(deployment(), Strategy(tp=4, pp=2, batch=64, layers_per_stage=(60, 20)), CURVES).performance
    assert float(uneven.tpot[0]) > 1.3 * float(even.tpot[0])


# ---------------------------------------------------------------------------------------------------------- estimates


@st.composite
def small_strategies(draw: st.DrawFn) -> tuple[ModelSpec, Strategy]:
    model = draw(st.sampled_from([SMALL, SMALL_MOE]))
    tp = draw(st.sampled_from([1, 2, 4, 8]))
    attn_dp = draw(st.sampled_from([1, 2, 4])) if model.moe else 1
    group = tp * attn_dp
    ep = draw(st.sampled_from([e for e in (1, 2, 4, 8, 16) if group % e == 0])) if model.moe else 1
    s = Strategy(
        tp=tp, attn_dp=attn_dp, ep=ep, pp=draw(st.sampled_from([1, 2, 3])), dp=draw(st.sampled_from([1, 2])),
        batch=draw(st.integers(1, 300)), max_num_batched_tokens=draw(st.sampled_from([512, 2048, 8192])),
    )  # fmt: skip
    return model, s


@settings(max_examples=30, deadline=None)
@given(st.lists(small_strategies(), min_size=2, max_size=6), st.sampled_from(["closed", "open", "together"]))
def test_arrays_of_candidates_are_priced_exactly_like_one(cases: list[tuple[ModelSpec, Strategy]], mode: str) -> None:
    model = cases[0][0]
    strategies = [s for m, s in cases if m is model]
    d = deployment(model, cluster(n=None))
    parts = [Candidates.of(s) for s in strategies]
    names = ("tp", "pp", "dp", "ep", "etp", "attn_dp", "cp", "dcp", "batch", "max_num_batched_tokens")
    together = Candidates(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})
    load = Load(mode, 1000, 200, rate=3.0 if mode == "open" else None)  # type: ignore[arg-type]
    for index, layout in layouts(d, CURVES, together):
        wide, free = serve(layout, load), free_bytes(layout, layout.cands.batch)[0]
        most = max_batch(layout, np.full(len(index), 4096))
        for j, i in enumerate(index):
            ((_, alone),) = layouts(d, CURVES, parts[i])
            single = serve(alone, load)
            for name in ("ttft", "tpot", "e2e", "output_tok_s", "request_rate", "burst_ttft", "capacity_rate"):
                assert getattr(wide, name)[j] == pytest.approx(getattr(single, name)[0], rel=1e-12), name
            assert free[j] == free_bytes(alone, alone.cands.batch)[0][0]
            assert most[j] == max_batch(alone, np.asarray([4096]))[0]


@settings(max_examples=15, deadline=None)
@given(small_strategies())
def test_the_vectorised_memory_is_the_memory_calculators(case: tuple[ModelSpec, Strategy]) -> None:
    model, s = case
    e = estimate(deployment(model, cluster(n=None)), s, CURVES)
    ((_, layout),) = layouts(deployment(model, cluster(n=None)), CURVES, Candidates.of(e.strategy))
    free, _ = free_bytes(layout, layout.cands.batch)
    assert min(m.free_bytes for m in e.memory) == pytest.approx(float(free[0]), abs=16)


def test_breakdowns_add_up_and_have_no_negative_kernel() -> None:
    for s, kw in (
        (Strategy(tp=8, batch=64), {}),
        (Strategy(tp=4, pp=2, batch=64), {}),
        (Strategy(tp=8, batch=16), {"batch_size": 16}),
    ):
        e = estimate(deployment(**kw), s, CURVES)
        assert e.breakdown["ttft"].total == pytest.approx(e.ttft_s)
        assert e.breakdown["tpot"].total == pytest.approx(e.tpot_s)
        for b in e.breakdown.values():
            assert all(t.value >= 0 for t in b.terms[:-1])
            assert all(t.formula and t.source for t in b.terms)


def test_utilisations_are_shares() -> None:
    for s in (Strategy(tp=8, batch=1), Strategy(tp=8, batch=512), Strategy(tp=2, pp=4, batch=64)):
        e = estimate(deployment(), s, CURVES)
        assert set(e.utilisation) == {"compute", "memory", "network", "busy"}
        assert all(0 <= v <= 1 for v in e.utilisation.values())
    assert e.utilisation["memory"] > 0.05


def test_a_broken_requirement_makes_it_infeasible_and_a_thin_margin_is_at_risk() -> None:
    s = Strategy(tp=8, batch=32)
    tpot = estimate(deployment(), s, CURVES).tpot_s
    status = {}
    for factor in (0.9, 1.02, 5.0):
        d = deployment(gates=(Requirement(metric="tpot_s", stat="mean", limit=tpot * factor),))
        e = estimate(d, s, CURVES)
        status[factor] = (e.feasible, next(p.status for p in e.predictions if p.limit))
    assert status == {0.9: (False, "broken"), 1.02: (True, "at_risk"), 5.0: (True, "met")}


def test_an_unqualified_throughput_is_reported_under_every_reading() -> None:
    d = deployment(gates=(Requirement(metric="throughput_per_device", limit=300.0),))
    e = estimate(d, Strategy(tp=8, batch=32), CURVES)
    found = next(f for f in e.findings if f.code == "throughput-reading")
    assert found.values["total"] == pytest.approx(found.values["input"] + found.values["output"])
    gate = next(p for p in e.predictions if p.limit)
    assert gate.value == pytest.approx(found.values["total"])


def test_what_does_not_fit_says_so_with_numbers() -> None:
    e = estimate(deployment(c=cluster(n=1)), Strategy(batch=4), CURVES)
    assert not e.feasible
    finding = next(f for f in e.findings if f.code == "does-not-fit")
    assert finding.cause == "memory"
    assert "141" in finding.message
    assert e.max_batch == 0


def test_more_devices_than_the_cluster_has_is_infeasible_and_fewer_are_reported_idle() -> None:
    codes = {
        n: {f.code for f in estimate(deployment(c=cluster(n=n)), Strategy(tp=8), CURVES).findings} for n in (4, 8, 16)
    }
    assert "devices" in codes[4] and "idle-devices" in codes[16]
    assert not {"devices", "idle-devices"} & codes[8]


def test_concurrency_zero_and_impossible_degrees_are_tool_errors() -> None:
    with pytest.raises(ToolError, match="concurrency"):
        estimate(deployment(), Strategy(tp=8), CURVES, concurrency=0)
    with pytest.raises(ToolError, match="heads"):
        estimate(deployment(), Strategy(tp=5), CURVES)


def test_max_throughput_uses_the_largest_batch_that_fits() -> None:
    e = estimate(deployment(), Strategy(tp=8), CURVES, max_throughput=True)
    assert e.batch == e.max_batch > 100
    assert e.feasible
    limited = deployment().model_copy(
        update={"engine": deployment().engine.model_copy(update={"limits": {"max_num_seqs": 48}})}
    )
    assert estimate(limited, Strategy(tp=8), CURVES, max_throughput=True).batch == 48


def test_mla_decode_attends_the_latent() -> None:
    """Absorbed decode: 2·heads·(2·kv_lora + rope) FLOPs per position, and (kv_lora + rope) elements read, once for all
    heads."""
    layout = one(DEEPSEEK, Strategy(weight_dtype="fp8"))

    def attention(context: int) -> tuple[float, float]:
        works = layout.works("decode", np.asarray([1]), np.asarray([1]), np.asarray([context]))
        w = next(w for w in works.layers[0][1] if w.kind == "attention_decode")
        return float(np.sum(w.flops)), float(np.sum(w.stream_bytes))

    (f1, b1), (f2, b2) = attention(1000), attention(3000)
    assert f2 - f1 == pytest.approx(2000 * 2 * 128 * (2 * 512 + 64))
    assert b2 - b1 == pytest.approx(2000 * (512 + 64) * 2)


def test_json_has_every_scalar_key() -> None:
    e = estimate_json(estimate(deployment(), Strategy(tp=8, batch=8), CURVES))
    p = prediction_json(predict(deployment(), Strategy(tp=8, batch=8), CURVES))
    assert set(SCALARS) <= set(e)
    assert set(SCALARS) <= set(p)
    assert e["tpot_ms"] == pytest.approx(p["tpot_ms"])


def test_every_curve_is_a_fraction_with_a_source() -> None:
    for c in CURVES.devices:
        assert all(0 < v < 1 for v in (*c.gemm.values(), c.memory, c.gather_memory))
        for k in CURVES.kernels.values():
            assert 0 < k.compute <= 1 and 0 < c.memory * k.memory <= 1 and 0 < k.latency_s < 3e-5
        assert c.source and "bf16" in c.gemm
    assert all(b.source for b in CURVES.bands.values())


def test_every_catalogue_device_has_a_curve_and_an_unmeasured_one_a_wider_band() -> None:
    h100, mi300 = cluster("H100"), cluster("MI300X")
    assert CURVES.device(h100.device).measured
    assert not CURVES.device(mi300.device).measured
    assert CURVES.band("tpot_s", mi300).band > CURVES.band("tpot_s", h100).band
    assert CURVES.device(load_device("RTX PRO 6000").device).name == "blackwell-rtx"


def test_context_parallelism_is_priced_by_its_own_graph() -> None:
    """Two cp ranks share a long prompt: prefill gets faster than on one, and devices and memory count them."""
    d = deployment(isl=32768)
    alone, split, ring = (
        estimate(d, Strategy(tp=4, batch=2, **kw), CURVES) for kw in ({}, {"cp": 2}, {"cp": 2, "cp_kind": "ring"})
    )
    for e in (split, ring):
        assert e.num_devices == 8
        assert 0.4 * alone.ttft_s < e.ttft_s < 0.8 * alone.ttft_s


def test_decode_context_parallelism_makes_room_for_more_sequences() -> None:
    h200 = cluster("H200")
    plain = estimate(deployment(DEEPSEEK, h200, isl=16384), Strategy(tp=8, weight_dtype="fp8", batch=8), CURVES)
    spread = estimate(deployment(DEEPSEEK, h200, isl=16384), Strategy(tp=8, dcp=8, weight_dtype="fp8", batch=8), CURVES)
    assert spread.max_batch > 2 * plain.max_batch
