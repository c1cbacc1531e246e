"""Measured operators, finite runs, two pools, and the second evaluator against the closed form."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest

from agent.estimate_csv import as_served, disaggregated, is_disaggregated, request_set
from knowledge.catalog import load_device, load_model
from knowledge.curves import load_curves
from tools.cost.collectives import Level, collective_time
from tools.cost.compute import price
from tools.cost.disagg import predict_disaggregated
from tools.cost.estimate import predict
from tools.cost.operators import kernel_dtype, tuned
from tools.cost.simulate import simulate_strategy
from tools.cost.steps import Candidates, Layout, layouts
from tools.cost.tables import Table
from tools.partition.mesh import build_mesh
from tools.spec.base import ToolError
from tools.spec.deployment import Deployment
from tools.spec.hardware import Cluster
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy
from tools.spec.workload import Workload

CURVES = load_curves()
assert CURVES.operators is not None
OPERATORS = CURVES.operators
LLAMA_8B = load_model("llama3.1-8b").model
LLAMA_70B = load_model("llama3-70b").model
DEEPSEEK = load_model("deepseek-v3").model


def cluster(name: str, n: int = 8, **update: object) -> Cluster:
    d = load_device(name).device
    base = Cluster(
        device=d, num_devices=n, memory_bytes=d.memory_usable_bytes, memory_bandwidth=d.memory_bandwidth,
        peak_flops=d.peak_flops, intra_node_bandwidth=d.link_bandwidth if d.link_domain > 1 else d.pcie_bandwidth,
        inter_node_bandwidth=d.network_bandwidth, link_domain=d.link_domain,
    )  # fmt: skip
    return base.model_copy(update=update)


def deployment(model: ModelSpec, c: Cluster, isl: int = 1024, osl: int = 256) -> Deployment:
    return Deployment(model=model, cluster=c, workload=Workload(isl=isl, osl=osl))


def layout_of(model: ModelSpec, s: Strategy, c: Cluster) -> Layout:
    ((_, layout),) = layouts(deployment(model, c), CURVES, Candidates.of(s))
    return layout


def works(layout: Layout, phase: str, sequences: int, tokens: int, context: int, kind: int = -1):  # type: ignore[no-untyped-def]
    sizes = (np.asarray([n]) for n in (sequences, tokens, context))
    return {w.kernel: w for w in layout.works(phase, *sizes).layers[kind][1]}  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------- tables


def test_one_point_and_an_array_of_points_agree() -> None:
    table = OPERATORS.tables["gemm/h200_sxm_141gb/vllm/bf16"]
    rng = np.random.default_rng(1)
    points = np.exp(rng.uniform(0, 12, (40, 3)))
    many = table.efficiency(tuple(points.T))
    assert many == pytest.approx([float(table.efficiency(tuple(p))) for p in points], rel=1e-12)


def test_outside_the_grid_the_edge_holds() -> None:
    table = Table(("x",), (np.array([1.0, 4.0, 16.0]),), np.log(np.array([0.1, 0.4, 0.8])))
    assert table.efficiency([0.01]) == pytest.approx(0.1)
    assert table.efficiency([1e9]) == pytest.approx(0.8)
    assert table.efficiency([2.0]) == pytest.approx(math.sqrt(0.1 * 0.4))


def test_every_table_is_finite_and_below_what_a_cache_can_explain() -> None:
    for key, t in OPERATORS.tables.items():
        assert np.isfinite(t.log_efficiency).all(), key
        assert t.log_efficiency.max() < math.log(1.25), key


def test_a_fallback_kernel_is_not_used() -> None:
    axes = (np.array([1.0, 2.0]),)
    fast, slow = (Table(("m",), axes, np.log(np.array([e, e]))) for e in (0.6, 0.1))
    kept = tuned({"gemm/x/vllm/fp8": slow, "gemm/x/sglang/fp8": fast, "gemm/y/vllm/fp8": slow})
    assert set(kept) == {"gemm/x/sglang/fp8", "gemm/y/vllm/fp8"}


def test_a_gemm_takes_the_ideal_over_the_measured_efficiency_less_its_launch() -> None:
    layout = layout_of(LLAMA_70B, Strategy(tp=8), cluster("H100"))
    w = works(layout, "prefill", 1, 4096, 4096)["gate_up_proj"]
    m, n, k = 4096, 2 * 28672 / 8, 8192
    assert [float(np.sum(x)) for x in (w.m, w.n, w.k)] == [m, n, k]
    ideal = max(2 * m * n * k / 989.4e12, 2 * (m * k + n * k + m * n) / 3.35e12)
    efficiency = float(OPERATORS.tables["gemm/h100_sxm_80gb/vllm/bf16"].efficiency((m, n, k)))
    assert float(np.sum(price(w, layout.roof).total)) == pytest.approx(ideal / efficiency - layout.roof.curve.launch_s)


def test_both_expert_gemms_together_are_the_measured_expert_kernel() -> None:
    layout = layout_of(DEEPSEEK, Strategy(tp=8, weight_dtype="fp8"), cluster("H200"))
    mine = works(layout, "decode", 64, 1, 1000)
    up, down = mine["expert_gate_up"], mine["expert_down"]
    touched = 256 * (1 - (1 - 8 / 256) ** 64)
    rows, h, i = 64 * 8, 7168, 2048 / 8
    ideal = max(6 * rows * h * i / 1978.9e12, (3 * touched * h * i + rows * (1 + 2) * h) / 4.8e12)
    table = OPERATORS.find("moe", "h200_sxm_141gb", "vllm", "fp8_block")
    assert table is not None
    alone = ideal / float(table.efficiency((rows / 256, 256, h * i)))
    total = sum(float(np.sum(price(w, layout.roof).total)) for w in (up, down))
    assert total == pytest.approx(alone - 2 * layout.roof.curve.launch_s, rel=0.01)
    assert all(float(np.sum(price(mine[k], layout.roof).total)) == 0 for k in ("dispatch", "expert_act", "combine"))


def test_decode_attention_is_looked_up_by_what_a_rank_holds() -> None:
    layout = layout_of(LLAMA_70B, Strategy(tp=8), cluster("H100"))
    assert [float(np.sum(x)) for x in works(layout, "decode", 32, 1, 3000)["attention"].shape] == [3000, 32, 8, 128]
    mla = works(layout_of(DEEPSEEK, Strategy(tp=8), cluster("H200")), "decode", 32, 1, 3000)["attention"]
    assert mla.table == "mla_generation"
    assert [float(np.sum(x)) for x in mla.shape] == [3000, 32, 16]


def test_an_h20_is_priced_by_the_measured_hopper_nearest_in_flops_per_byte() -> None:
    device = load_device("H20").device
    assert CURVES.relative(device) == ("h200_sxm_141gb", "nearest generation")
    assert CURVES.relative(load_device("H100").device) == ("h100_sxm_80gb", "measured")
    assert CURVES.relative(load_device("910B2").device) == ("", "datasheet")


def test_bands_widen_with_the_distance_from_measurements() -> None:
    for metric in ("ttft_s", "tpot_s", "throughput"):
        own, near, far = (CURVES.band(metric, cluster(n)).band for n in ("H100", "H20", "910B2"))
        assert 0 < own <= near <= far


def test_a_format_without_matrix_unit_runs_widened() -> None:
    hopper, ampere, blackwell = (load_device(n).device.peak_flops for n in ("H100", "A100", "B200"))
    assert kernel_dtype("nvfp4", hopper, block=False) == "int4"
    assert kernel_dtype("nvfp4", blackwell, block=False) == "nvfp4"
    assert kernel_dtype("mxfp4", blackwell, block=False) == "mxfp4_fp8"
    assert kernel_dtype("fp8", ampere, block=False) == "int8"
    assert kernel_dtype("fp8", hopper, block=True) == "fp8_block"


def test_a_stated_utilisation_switches_the_tables_off() -> None:
    stated = layout_of(LLAMA_70B, Strategy(tp=8), cluster("H100", mfu=0.5))
    w = works(stated, "prefill", 1, 4096, 4096)["gate_up_proj"]
    assert stated.roof.table(w) is None


def test_nvlink_and_pcie_5_collectives_are_measured_and_older_pcie_ones_are_not() -> None:
    def level(name: str) -> Level:
        return layout_of(LLAMA_8B, Strategy(tp=2), cluster(name)).tops[0]

    assert level("H100").tables("all_reduce")
    assert level("RTX PRO 6000").tables("all_reduce")
    assert not level("L40S").tables("all_reduce")


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
def test_a_collective_takes_longer_with_more_bytes(kind: str) -> None:
    layout = layout_of(LLAMA_8B, Strategy(tp=8), cluster("H100"))
    mesh = build_mesh(Strategy(tp=8), 8)
    times = [
        float(np.sum(collective_time(kind, mesh.shape.axis("tp"), float(2**i), mesh, layout.tops)))
        for i in range(17, 28)
    ]
    assert all(b > 0.8 * a for a, b in itertools.pairwise(times))  # protocols switch with size
    assert times[-1] > 20 * times[0]


def test_pricing_alike_candidates_once_changes_nothing() -> None:
    n = 400
    rng = np.random.default_rng(0)
    tp = rng.choice([1, 2, 4, 8], n)
    fields = {
        "tp": tp,
        "pp": rng.choice([1, 2], n),
        "dp": np.ones(n),
        "ep": np.ones(n),
        "etp": tp,
        "attn_dp": np.ones(n),
        "cp": np.ones(n),
        "dcp": np.ones(n),
    }
    batch = rng.choice([8, 16, 32], n)
    cands = Candidates(
        **{k: np.asarray(v, np.int64) for k, v in fields.items()}, batch=batch, max_num_batched_tokens=np.full(n, 8192)
    )
    d = deployment(LLAMA_70B, cluster("H100", 16))
    for _, layout in layouts(d, CURVES, cands):
        size, ones, far = layout.cands.batch, np.ones(len(layout.cands), np.int64), np.full(len(layout.cands), 900)
        many = layout.works("decode", size, ones, far)
        assert many.row is not None and len(many.mesh_row) == len(np.unique(many.row)) <= len(layout.cands)
        for i in range(0, len(layout.cands), 37):
            ((_, alone),) = layouts(d, CURVES, layout.cands.take(np.asarray([i])))
            single = alone.step(alone.works("decode", size[[i]], ones[[i]], far[[i]]), size[[i]])
            assert layout.step(many, size).latency[i] == pytest.approx(float(single.latency[0]), rel=1e-12)


# --------------------------------------------------------------------------------------------------------- finite runs


def test_a_last_wave_that_is_not_full_costs_throughput() -> None:
    d = deployment(LLAMA_8B, cluster("H100", 1), 128, 2048)
    steady = predict(d, Strategy(), CURVES, max_throughput=True)
    batch = steady.strategy.batch

    def rate(requests: int) -> float:
        return float(predict(d, Strategy(), CURVES, max_throughput=True, requests=requests).performance.output_tok_s[0])

    full = float(steady.performance.output_tok_s[0])
    assert rate(batch + batch // 8) < 0.85 * full
    assert 0.97 * full < rate(200 * batch) <= full * 1.001


def test_longer_requests_make_shorter_runs() -> None:
    assert request_set(128, 128) > request_set(1000, 1000) > request_set(2048, 2048) > request_set(20000, 2000)


def test_an_engine_built_before_windows_were_read_attends_everything() -> None:
    mistral = load_model("mistral-7b").model
    if mistral.attention.sliding_window is None:
        pytest.skip("the catalogue's Mistral-7B has no window")
    assert as_served(mistral, "trtllm", "0.17").attention.sliding_window is None
    assert as_served(mistral, "vllm", "0.12.0").attention.sliding_window == mistral.attention.sliding_window


def test_an_engine_at_an_old_version_has_its_own_overheads() -> None:
    old, new = CURVES.at_version("vllm", "0.12.0"), CURVES.at_version("vllm", "0.19.0")
    assert new.engine("vllm") == CURVES.engine("vllm") == CURVES.at_version("vllm", "nightly").engine("vllm")
    assert old.engine("vllm").before is None
    assert old.engine("vllm") != new.engine("vllm")


# ----------------------------------------------------------------------------------------------------------- two pools


def pools(prefill: int, decode: int, concurrency: int):  # type: ignore[no-untyped-def]
    s = Strategy(tp=8, weight_dtype="fp8", engine="trtllm")
    d = deployment(DEEPSEEK, cluster("H200", 8 * (prefill + decode)), 8192, 1024)
    one, two = (s.model_copy(update={"dp": n}) for n in (prefill, decode))
    return predict_disaggregated(d, one, two, CURVES, concurrency=concurrency)


def test_two_pools_obey_littles_law() -> None:
    for n in (8, 64, 400):
        p = pools(1, 2, n)
        assert p.request_rate * (p.ttft_s + 1023 * p.tpot_s) == pytest.approx(n, rel=0.05)


def test_more_prefill_workers_relieve_a_prefill_bound_pair_of_pools() -> None:
    bound, relieved = pools(1, 2, 400), pools(3, 2, 400)
    assert bound.prefill_busy > 0.9
    assert relieved.ttft_s < bound.ttft_s
    assert relieved.request_rate > 1.5 * bound.request_rate
    assert relieved.num_devices == 40


def test_a_decode_pool_that_holds_nothing_is_an_error_with_the_numbers() -> None:
    s = Strategy(tp=1, weight_dtype="bf16")
    d = deployment(LLAMA_70B, cluster("H100", 2), 8192, 1024)
    with pytest.raises(ToolError, match="cannot hold one sequence of 9216 tokens"):
        predict_disaggregated(d, s, s, CURVES, concurrency=8)


def test_notes_that_name_both_pools_are_answered() -> None:
    row = {
        "model": "DeepSeek-R1", "gpu": "H200", "engine": "TensorRT-LLM", "weight_dtype": "fp8", "tp": "", "isl": "1024",
        "osl": "512", "concurrency_or_batch": "32",
        "notes": "DISAGG prefill 1x[tp8 attn_dp1 moe_tp1 moe_ep8] decode 2x[tp1 attn_dp8 moe_tp1 moe_ep8]; more",
    }  # fmt: skip
    assert is_disaggregated(row)
    assert not is_disaggregated(row | {"notes": "no layouts"})
    out = disaggregated(row, CURVES)
    assert out["num_devices"] == 24
    assert 0 < out["tpot_ms"] < 200 < out["e2e_ms"]


# ---------------------------------------------------------------------------------------------------- second evaluator


@pytest.mark.parametrize(
    ("model", "device", "strategy"),
    [
        (LLAMA_70B, "H100", Strategy(tp=8)),
        (DEEPSEEK, "H200", Strategy(tp=8, weight_dtype="fp8")),
        (LLAMA_70B, "H100", Strategy(tp=4, pp=2)),
        (LLAMA_8B, "L40S", Strategy()),
    ],
    ids=["dense", "moe", "pipeline", "single"],
)
def test_the_closed_form_and_the_simulation_agree(model: ModelSpec, device: str, strategy: Strategy) -> None:
    d = deployment(model, cluster(device, 8))
    closed = predict(d, strategy, CURVES, concurrency=24).performance
    simulated = simulate_strategy(d, strategy, CURVES, concurrency=24, requests=400, spread=(0.8, 1.2))
    assert simulated.outcome.tpot.mean() == pytest.approx(float(closed.tpot[0]), rel=0.1)
    assert simulated.output_tok_s == pytest.approx(float(closed.output_tok_s[0]), rel=0.1)
    assert 0.4 < simulated.outcome.ttft.mean() / float(closed.ttft[0]) < 1.6


def test_a_thousand_requests_take_a_second_or_two() -> None:
    d = deployment(LLAMA_70B, cluster("H100", 8))
    start = time.process_time()
    result = simulate_strategy(d, Strategy(tp=8), CURVES, concurrency=64, ttft_limit=0.5, tpot_limit=0.03)
    assert result.outcome.finished == 1000
    assert 0 <= result.goodput <= 1
    p = result.percentiles("ttft")
    assert p["p50"] <= p["p90"] <= p["p99"]
    assert time.process_time() - start < 10  # 2 s on an idle core; CI machines are slow


def test_goodput_falls_as_the_limit_tightens() -> None:
    d = deployment(LLAMA_8B, cluster("H100", 1))
    shares = [
        simulate_strategy(d, Strategy(batch=64), CURVES, rate=6.0, requests=200, ttft_limit=limit).goodput
        for limit in (10.0, 0.1, 1e-6)
    ]
    assert shares[0] >= shares[1] >= shares[2] == 0
