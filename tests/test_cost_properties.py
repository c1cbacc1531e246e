"""What holds for every device, model, layout and load, measured or not: no number without meaning, nothing faster than the
datasheet, faster hardware never slower, and two evaluators that agree."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from knowledge.catalog import device_by_id, devices, load_model, models
from knowledge.curves import load_curves
from tools.cost.collectives import Level, collective_time, levels
from tools.cost.compute import Roof, Work, price
from tools.cost.estimate import Predicted, estimate, predict
from tools.cost.operators import WEIGHT_BYTES
from tools.cost.serving import Speculation
from tools.cost.simulate import simulate_strategy, trace_of
from tools.memory import parameters_by_role
from tools.partition.mesh import build_mesh
from tools.spec.base import MeshwrightError, ToolError
from tools.spec.deployment import Deployment
from tools.spec.hardware import Cluster, Device
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy
from tools.spec.workload import EngineChoice, Workload

CURVES = load_curves()
ENGINES = ("vllm", "sglang", "trtllm", "vllm-ascend")
FORMATS = ("bf16", "fp8", "int8", "int4", "nvfp4", "mxfp4")
NOISE = 1.03
"""Measured tables are not smooth: an order that holds of the hardware may be off by this much between grid points."""


def cluster(d: Device, n: int, **update: Any) -> Cluster:
    return Cluster(
        device=d, num_devices=n, devices_per_node=d.devices_per_node, memory_bytes=d.memory_usable_bytes,
        memory_bandwidth=d.memory_bandwidth, peak_flops=d.peak_flops,
        intra_node_bandwidth=d.link_bandwidth if d.link_domain > 1 else d.pcie_bandwidth,
        inter_node_bandwidth=d.network_bandwidth, link_domain=d.link_domain,
    ).model_copy(update=update)  # fmt: skip


def deployment(model: ModelSpec, c: Cluster, s: Strategy, **work: Any) -> Deployment:
    return Deployment(
        model=model, cluster=c, workload=Workload(**{"isl": 1024, "osl": 256, **work}), engine=EngineChoice(name=s.engine),
        weight_dtypes=(s.weight_dtype,), kv_dtypes=(s.kv_dtype,),
    )  # fmt: skip


def one(x: Any) -> float:
    return float(np.asarray(x).reshape(-1)[0])


@lru_cache(maxsize=256)
def products(model: ModelSpec) -> float:
    """Weights that a token is multiplied by: all of the dense ones, of the experts those it is routed to."""
    roles = parameters_by_role(model)
    share = model.moe.top_k / model.moe.num_experts if model.moe else 0.0
    return roles.get("matrix", 0) + share * roles.get("expert_matrix", 0)


def drawn(rng: random.Random) -> tuple[ModelSpec, Cluster, Strategy, dict[str, Any], dict[str, Any]]:
    """(model, cluster, strategy, workload, options of `predict`): anything of the catalogue, sensible or not."""
    model, d = rng.choice(models()), rng.choice(devices())
    tp, pp, dp = rng.choice([1, 2, 4, 8, 16]), rng.choice([1, 1, 2, 4]), rng.choice([1, 1, 2, 8])
    attn_dp = rng.choice([1, 1, 2, 8]) if model.moe else 1
    group = tp * attn_dp
    ep = rng.choice([e for e in (1, 2, 8, 64) if group % e == 0]) if model.moe else 1
    s = Strategy(
        tp=tp, pp=pp, dp=dp, attn_dp=attn_dp, ep=ep, etp=group // ep, weight_dtype=rng.choice(FORMATS),  # type: ignore[arg-type]
        kv_dtype=rng.choice(["bf16", "fp8"]), engine=rng.choice(ENGINES), batch=rng.choice([1, 32, 512]),
    )  # fmt: skip
    work: dict[str, Any] = {"isl": rng.choice([1, 16, 1024, 8192, 131072]), "osl": rng.choice([1, 2, 128, 1024, 8192])}
    work["prefix_hit_rate"], work["draft_acceptance"] = (
        rng.choice([0, 0, 0.5, 1]),
        rng.choice([None, None, 0.0, 0.7, 1]),
    )
    load = rng.choice(["closed", "rate", "most", "together"])
    options: dict[str, Any] = {"concurrency": rng.choice([1, 16, 5000])} if load == "closed" else {}
    options |= {"max_throughput": True} if load == "most" else {}
    work |= {"request_rate": rng.choice([0.001, 0.5, 1000])} if load == "rate" else {}
    work |= {"batch_size": rng.choice([1, 7, 64])} if load == "together" else {}
    return model, cluster(d, s.num_devices), s, work, options


def sample(seed: int, count: int) -> list[tuple[Deployment, Strategy, Predicted, dict[str, Any]]]:
    """What of `count` draws is not refused with a reason."""
    rng, out = random.Random(seed), []
    for _ in range(count):
        model, c, s, work, options = drawn(rng)
        d = deployment(model, c, s, **work)
        try:
            out.append((d, s, predict(d, s, CURVES, **options), options))
        except MeshwrightError:
            continue
    return out


SAMPLE = sample(7, 150)


def test_most_of_the_catalogue_is_priced() -> None:
    assert len(SAMPLE) > 90
    assert len({d.cluster.device.id for d, *_ in SAMPLE}) > 40
    assert len({d.model.name for d, *_ in SAMPLE}) > 60


def test_every_number_is_finite_and_positive() -> None:
    for d, s, p, _ in SAMPLE:
        q = p.performance
        values = {
            "ttft": q.ttft, "tpot": q.tpot, "e2e": q.e2e, "out": q.output_tok_s, "in": q.input_tok_s,
            "rate": q.request_rate, "capacity": q.capacity_rate, "burst": q.burst_ttft, **q.ttft_percentiles,
            **{f"tpot {k}": v for k, v in q.tpot_percentiles.items()},
        }  # fmt: skip
        wrong = {k: one(v) for k, v in values.items() if not (math.isfinite(one(v)) and one(v) > 0)}
        assert not wrong, (d.model.name, d.cluster.device.id, s.label(), wrong)


def test_no_replica_multiplies_faster_than_its_datasheet() -> None:
    for d, s, p, _ in SAMPLE:
        new = max(1, math.ceil(p.load.isl * (1 - p.load.cached))) + p.load.osl - 1
        peak = max(d.cluster.peak_flops.values()) * s.num_devices
        used = one(p.performance.request_rate) * new * 2.0 * products(d.model) / peak
        assert used <= 1.0, (d.model.name, d.cluster.device.id, s.label(), used)


def test_no_step_reads_weights_faster_than_the_memory_is() -> None:
    """A token needs at least the weights it is multiplied by, however they are cut, and a step of speculation yields so
    many at most."""
    for d, s, p, _ in SAMPLE:
        group = s.num_devices / s.dp / s.pp
        least = products(d.model) * WEIGHT_BYTES[s.weight_dtype] / (group * d.cluster.memory_bandwidth)
        tokens = Speculation.of(d.workload).accepted
        assert one(p.performance.tpot) * tokens >= 0.999 * least, (d.model.name, d.cluster.device.id, s.label())


def test_no_prompt_is_read_faster_than_the_matrix_units_are() -> None:
    for d, s, p, _ in SAMPLE:
        new = max(1, math.ceil(p.load.isl * (1 - p.load.cached)))
        peak = max(d.cluster.peak_flops.values()) * s.num_devices / s.dp
        assert one(p.performance.ttft) >= 2.0 * products(d.model) * new / peak


def test_percentiles_are_in_order_everywhere() -> None:
    for _, _, p, _ in SAMPLE:
        for ps in (p.performance.ttft_percentiles, p.performance.tpot_percentiles):
            values = [one(ps[k]) for k in ("p50", "p90", "p95", "p99", "max")]
            assert all(b >= a * (1 - 1e-9) for a, b in itertools.pairwise(values))


def test_no_open_load_is_served_faster_than_it_arrives() -> None:
    for d, _, p, _ in SAMPLE:
        if p.load.mode == "open":
            assert one(p.performance.request_rate) <= d.workload.request_rate * (1 + 1e-9)  # type: ignore[operator]


CASES = [
    ("llama3.1-8b", "a800_sxm_80gb", Strategy(tp=2)),
    ("qwen2.5-0.5b", "rtx_4090_24gb", Strategy()),
    ("llama3.1-405b", "mi300x_192gb", Strategy(tp=8, weight_dtype="fp8")),
    ("deepseek-v3", "h800_sxm_80gb", Strategy(attn_dp=16, ep=16, etp=1, weight_dtype="fp8")),
    ("deepseek-v3", "gb300_nvl72_288gb", Strategy(tp=8, etp=8, weight_dtype="nvfp4", engine="trtllm")),
    ("gpt-oss-120b", "l20_48gb", Strategy(tp=4, weight_dtype="mxfp4", engine="sglang")),
    ("qwen3-32b", "ascend_910b2_64gb", Strategy(tp=4, pp=2, engine="vllm-ascend")),
    ("llama3.1-70b", "tpu_v5p_95gb", Strategy(tp=8)),
    ("llama3.1-70b", "h20_96gb", Strategy(tp=4, weight_dtype="int4")),
    ("qwen3-30b-a3b", "gh200_96gb", Strategy(weight_dtype="fp8")),
]
"""Devices that nobody measured, all formats, dense, MoE and MLA, from 0.5B to 671B."""
NAMES = [f"{m} on {d}" for m, d, _ in CASES]


def at(model: str, device: str, s: Strategy, update: dict[str, Any] | None = None, **options: Any) -> Predicted:
    """One of the cases at `concurrency`; what is not an option of `predict` describes the workload."""
    c = cluster(device_by_id(device), s.num_devices, **(update or {}))
    work = {k: options.pop(k) for k in list(options) if k not in ("concurrency", "max_throughput")}
    return predict(deployment(load_model(model).model, c, s, **work), s, CURVES, **options)


@pytest.mark.parametrize(("model", "device", "s"), CASES, ids=NAMES)
def test_more_requests_are_slower_each_and_faster_together(model: str, device: str, s: Strategy) -> None:
    found = [at(model, device, s, concurrency=n * s.num_devices) for n in (1, 2, 4, 8, 16, 32)]
    tpot = [one(p.performance.tpot) for p in found]
    rate = [one(p.performance.output_tok_s) for p in found]
    assert all(b * NOISE >= a for a, b in itertools.pairwise(tpot)), tpot
    assert all(b * NOISE >= a for a, b in itertools.pairwise(rate)), rate


@pytest.mark.parametrize(("model", "device", "s"), CASES, ids=NAMES)
@pytest.mark.parametrize("what", ["memory_bandwidth", "peak_flops", "intra_node_bandwidth", "inter_node_bandwidth"])
def test_faster_hardware_is_never_slower(model: str, device: str, s: Strategy, what: str) -> None:
    d = device_by_id(device)
    plain = cluster(d, s.num_devices)
    value = getattr(plain, what)
    doubled = {k: 2 * v for k, v in value.items()} if isinstance(value, dict) else 2 * value
    for n in (1, 16 * s.num_devices):
        slow, fast = (at(model, device, s, u, concurrency=n).performance for u in ({}, {what: doubled}))
        assert one(fast.e2e) <= 1.001 * one(slow.e2e)
        assert one(fast.output_tok_s) >= 0.999 * one(slow.output_tok_s)
        if n == 1:  # in a loaded closed loop faster decodes come back sooner, and queue longer for the prefill
            assert one(fast.ttft) <= 1.001 * one(slow.ttft)
            assert one(fast.tpot) <= 1.001 * one(slow.tpot)


@pytest.mark.parametrize(("model", "device", "s"), CASES, ids=NAMES)
def test_longer_prompts_take_longer(model: str, device: str, s: Strategy) -> None:
    found = [at(model, device, s, concurrency=1, isl=2**i, osl=64).performance for i in range(6, 18)]
    for pick in ("ttft", "tpot"):
        values = [one(getattr(q, pick)) for q in found]
        assert all(b * NOISE >= a for a, b in itertools.pairwise(values)), (pick, values)
    assert one(found[-1].ttft) > 100 * one(found[0].ttft) * 64 / 2048  # at least the work of its tokens, from far


@pytest.mark.parametrize(("model", "device", "s"), CASES, ids=NAMES)
def test_replicas_share_the_load_evenly(model: str, device: str, s: Strategy) -> None:
    four = s.model_copy(update={"dp": 4})
    a, b = at(model, device, s, concurrency=8).performance, at(model, device, four, concurrency=32).performance
    assert one(b.tpot) == pytest.approx(one(a.tpot), rel=1e-6)
    assert one(b.output_tok_s) == pytest.approx(4 * one(a.output_tok_s), rel=1e-6)


@pytest.mark.parametrize("name", ["h100_sxm_80gb", "rtx_pro_6000_server_96gb", "a100_sxm_80gb"])
def test_the_less_is_measured_the_wider_the_band(name: str) -> None:
    measured = cluster(device_by_id(name), 8)
    relative = cluster(device_by_id("h20_96gb"), 8)
    nobody = cluster(device_by_id("mi300x_192gb"), 8)
    for metric in ("ttft_s", "tpot_s", "throughput"):
        widths = [CURVES.band(metric, c).band for c in (measured, relative, nobody)]
        assert widths[0] < widths[1] < widths[2]


def test_neighbouring_degrees_of_a_lone_request_are_ordered_by_their_compute() -> None:
    """Twice the devices for a lone request: faster, but never more than twice as fast."""
    for model, device in (("llama3.1-70b", "h800_sxm_80gb"), ("qwen3-32b", "b200_sxm_180gb")):
        tpot = [one(at(model, device, Strategy(tp=n), concurrency=1).performance.tpot) for n in (2, 4, 8)]
        assert all(a / 2 <= b < a for a, b in itertools.pairwise(tpot)), tpot


# --------------------------------------------------------------------------------------------------------------- links


def test_two_devices_of_a_mesh_have_one_link_between_them() -> None:
    """MI300X: 448 GB/s are seven links, a pair has one of them; all eight together have them all."""
    (level, *_) = levels(cluster(device_by_id("mi300x_192gb"), 8), CURVES)
    assert level.mesh
    assert one(level.within(2).bandwidth) == pytest.approx(level.bandwidth / 7)
    assert one(level.within(8).bandwidth) == pytest.approx(level.bandwidth)
    switched = levels(cluster(device_by_id("h100_sxm_80gb"), 8), CURVES)[0]
    assert switched.within(2).bandwidth == switched.bandwidth


def test_a_node_smaller_than_the_link_domain_ends_it_unless_it_is_a_rack() -> None:
    half = cluster(device_by_id("h100_sxm_80gb"), 16, devices_per_node=4)
    rack = cluster(device_by_id("gb200_nvl72_186gb"), 72)
    assert [t.size for t in levels(half, CURVES)] == [4, None]
    assert levels(rack, CURVES)[0].size == 72


def test_a_token_goes_once_to_a_rank_that_holds_several_of_its_experts() -> None:
    """Qwen3-30B-A3B picks 8 of 128 experts: two ranks hold all of them, so that a token is sent twice at most, not 8 times."""

    def sent(ep: int) -> float:
        s = Strategy(attn_dp=ep, ep=ep, etp=1)
        works = at("qwen3-30b-a3b", "h100_sxm_80gb", s, concurrency=8 * ep).performance.steps.decode_works
        (w,) = [w for _, ws in works.layers for w in ws if w.kernel == "dispatch@all_to_all"]
        return one(w.comm_bytes) / (8 * 2048 * 2.0)  # per token of a rank

    assert sent(2) == pytest.approx(2 * (1 - 0.5**8), rel=1e-6)
    assert sent(8) == pytest.approx(8 * (1 - 0.875**8), rel=1e-6)


def test_inside_a_node_tokens_are_gathered_and_across_nodes_exchanged() -> None:
    mesh = build_mesh(Strategy(attn_dp=8, ep=8, etp=1), 8)
    axes = mesh.shape.axis("ep")
    tops: tuple[Level, ...] = levels(cluster(device_by_id("h100_sxm_80gb"), 8), CURVES)
    whole, few = (one(collective_time("all_to_all", axes, 1e8, mesh, tops, f)) for f in (4.0, 1.0))
    assert whole > 3 * few
    far = levels(cluster(device_by_id("h100_sxm_80gb"), 64, devices_per_node=1), CURVES)
    assert one(collective_time("all_to_all", axes, 1e8, mesh, far, 4.0)) == pytest.approx(
        one(collective_time("all_to_all", axes, 1e8, mesh, far, 1.0))
    )


# ------------------------------------------------------------------------------------- speculation, prefix cache, peaks


def test_speculation_yields_the_geometric_series() -> None:
    def tokens(a: float, n: int) -> float:
        return Speculation.of(Workload(isl=1, osl=1, draft_acceptance=a, draft_length=n)).accepted

    assert tokens(0.0, 5) == 1.0
    assert tokens(1.0, 5) == 6.0
    assert tokens(0.7, 3) == pytest.approx((1 - 0.7**4) / (1 - 0.7))
    assert Speculation.of(Workload(isl=1, osl=1)) == Speculation(0, 1.0)


def test_drafts_pay_where_steps_are_bound_by_memory_and_cost_where_by_compute() -> None:
    def tpot(n: int, acceptance: float | None) -> float:
        s = Strategy(tp=4)
        return one(at("llama3.1-70b", "h200_sxm_141gb", s, concurrency=n, draft_acceptance=acceptance).performance.tpot)

    gain = {n: tpot(n, None) / tpot(n, 0.7) for n in (1, 512)}
    assert 1.8 < gain[1] < 2.53  # at most the tokens per step
    assert gain[512] < gain[1] / 1.5
    assert tpot(1, 0.0) > tpot(1, None)  # drafts that are never accepted only cost
    assert tpot(1, 0.9) < tpot(1, 0.7) < tpot(1, 0.5)


def test_an_estimate_says_what_drafting_changes() -> None:
    s = Strategy(tp=4, batch=8)
    d = deployment(
        load_model("llama3.1-70b").model, cluster(device_by_id("h200_sxm_141gb"), 4), s, draft_acceptance=0.7
    )
    e = estimate(d, s, CURVES, concurrency=8)
    (f,) = [f for f in e.findings if f.code == "speculation"]
    assert f.values["tokens_per_step"] == pytest.approx(2.533)
    assert f.values["tpot_without_s"] > e.tpot_s
    assert sum(t.value for t in e.breakdown["tpot"].terms) == pytest.approx(e.tpot_s)


def test_a_cached_prefix_is_not_computed_again() -> None:
    full, half = (at("llama3.1-70b", "h100_sxm_80gb", Strategy(tp=8), concurrency=1, isl=8192, prefix_hit_rate=h).performance
                  for h in (0.0, 0.5))  # fmt: skip
    assert 0.5 * one(full.ttft) < one(half.ttft) < 0.75 * one(full.ttft)  # its attention still reads the cached half
    assert one(half.tpot) == pytest.approx(one(full.tpot), rel=0.02)


# --------------------------------------------------------------------------------------------------- the two evaluators

AGREE = 0.2
"""Closed form and simulation, TPOT and throughput at steady state."""
PIPELINE = 0.35
"""The same with pipeline stages: which microbatches carry a chunk at a time is an average in one and a schedule in the other."""
LOADS = [(512, 256, 4), (1024, 1024, 64), (4096, 256, 16), (2048, 128, 48), (256, 512, 128), (8192, 64, 96)]
"""(isl, osl, requests in flight): from decoding alone to prefills that take all of the time."""


@pytest.mark.parametrize(("isl", "osl", "n"), LOADS)
@pytest.mark.parametrize(
    ("model", "device", "s"), [CASES[i] for i in (0, 4, 5, 6)], ids=[NAMES[i] for i in (0, 4, 5, 6)]
)
def test_closed_form_and_simulation_agree(model: str, device: str, s: Strategy, isl: int, osl: int, n: int) -> None:
    d = deployment(load_model(model).model, cluster(device_by_id(device), s.num_devices), s, isl=isl, osl=osl)
    closed = predict(d, s, CURVES, concurrency=n)
    if closed.max_batch < n:
        pytest.skip(f"{closed.max_batch} sequences fit")
    found = simulate_strategy(d, s, CURVES, concurrency=n, requests=5 * n + 40, spread=(0.8, 1.2))
    within = AGREE if s.pp == 1 else PIPELINE
    assert found.outcome.tpot.mean() == pytest.approx(one(closed.performance.tpot), rel=within)
    assert found.output_tok_s == pytest.approx(one(closed.performance.output_tok_s), rel=within)


def test_the_simulation_accepts_as_many_drafts_as_the_closed_form() -> None:
    s = Strategy(tp=4, batch=16)
    d = deployment(
        load_model("llama3.1-70b").model, cluster(device_by_id("h200_sxm_141gb"), 4), s, draft_acceptance=0.7, osl=512
    )  # fmt: skip
    closed = predict(d, s, CURVES, concurrency=16).performance
    found = simulate_strategy(d, s, CURVES, concurrency=16, requests=200, spread=(0.8, 1.2))
    assert found.outcome.tpot.mean() == pytest.approx(one(closed.tpot), rel=0.1)


def test_a_trace_is_served_as_it_arrived() -> None:
    """Requests so far apart that each is alone: the lone request's numbers, in order of arrival."""
    s = Strategy(tp=8, batch=32)
    d = deployment(load_model("llama3.1-70b").model, cluster(device_by_id("h100_sxm_80gb"), 8), s)
    at_s = [300.0 * i for i in range(20)]
    trace = trace_of(at_s[::-1], [1024] * 20, [256] * 20)
    assert trace.at[0] == 0.0
    found = simulate_strategy(d, s, CURVES, trace=trace).outcome
    lone = predict(d, s, CURVES, concurrency=1).performance
    assert found.ttft.mean() == pytest.approx(one(lone.ttft), rel=0.05)
    assert found.tpot.mean() == pytest.approx(one(lone.tpot), rel=0.05)
    with pytest.raises(ToolError, match="as many arrivals"):
        trace_of([0.0], [1, 2], [3])


# ------------------------------------------------------------------------------- what nobody measured, and its neighbours

SUCCESSORS = [
    ("a100_sxm_80gb", "h100_sxm_80gb"), ("h100_sxm_80gb", "h200_sxm_141gb"), ("h200_sxm_141gb", "b200_sxm_180gb"),
    ("h20_96gb", "h20_141gb"), ("mi300x_192gb", "mi325x_256gb"), ("mi325x_256gb", "mi355x_288gb"), ("gaudi2_96gb", "gaudi3_128gb"),
    ("l4_24gb", "l40s_48gb"), ("rtx_3090_24gb", "rtx_4090_24gb"), ("rtx_4090_24gb", "rtx_5090_32gb"),
    ("tpu_v5e_16gb", "tpu_v6e_32gb"), ("v100_sxm2_32gb", "a100_sxm_40gb"),
]  # fmt: skip
"""(device, one with no less of anything), measured or not."""


@pytest.mark.parametrize(("old", "new"), SUCCESSORS)
def test_a_successor_is_never_slower(old: str, new: str) -> None:
    for n in (1, 16):
        a, b = (at("llama3.1-8b", d, Strategy(tp=2), concurrency=n).performance for d in (old, new))
        assert one(b.tpot) <= NOISE * one(a.tpot)
        assert one(b.ttft) <= 1.1 * one(a.ttft)


@pytest.mark.parametrize(
    "device", ["mi300x_192gb", "h20_96gb", "v100_sxm2_32gb", "tpu_v5p_95gb", "a10_24gb", "h100_sxm_80gb"]
)
def test_one_request_more_changes_little(device: str) -> None:
    """No cliff where a tile, a chunk or a microbatch is full: these sizes lie on both sides of them."""
    for n in (15, 16, 31, 32, 64, 127, 128):
        a, b = (at("llama3.1-8b", device, Strategy(tp=4), concurrency=m).performance for m in (n, n + 1))
        assert 0.97 * one(a.tpot) <= one(b.tpot) <= 1.12 * one(a.tpot), n
        assert one(b.output_tok_s) >= 0.95 * one(a.output_tok_s), n


@pytest.mark.parametrize("isl", [4000, 8100, 16300])
def test_a_prompt_a_little_longer_than_the_token_budget_costs_a_little_more(isl: int) -> None:
    """8,192 tokens per step: a prompt of 8,300 leaves most of its second step to the next one."""
    a, b = (at("qwen3-4b", "h100_sxm_80gb", Strategy(max_num_batched_tokens=8192), concurrency=16, isl=i, osl=64).performance
            for i in (isl, isl + 200))  # fmt: skip
    assert one(b.tpot) == pytest.approx(one(a.tpot), rel=0.25)
    assert one(b.output_tok_s) == pytest.approx(one(a.output_tok_s), rel=0.1)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize(("isl", "osl"), [(8192, 16), (32000, 128), (2048, 64)])
def test_a_replica_prefills_no_more_prompts_than_it_has_time_for(engine: str, isl: int, osl: int) -> None:
    """However few the requests in flight, each prompt takes its prefill's share of the replica's time."""
    s = Strategy(tp=4, weight_dtype="fp8", engine=engine)
    for n in (2, 3, 4, 8, 64):
        q = at("mistral-small-24b", "l40s_48gb", s, concurrency=n, isl=isl, osl=osl).performance
        alone = one(q.steps.packed.slowest) * one(q.steps.chunks) / (one(q.steps.prompts) * one(q.steps.queue_share))
        assert one(q.request_rate) * alone <= 1.05, n


@pytest.mark.parametrize(
    "device", ["h100_sxm_80gb", "h200_sxm_141gb", "b200_sxm_180gb", "l40s_48gb", "h20_96gb", "mi300x_192gb"]
)
def test_narrow_weights_cost_a_prompt_no_more_than_wide_ones(device: str) -> None:
    """int4 weights are widened on the way into the matrix unit: at worst the kernel is a 16-bit one."""
    wide, narrow = (at("mixtral-8x7b", device, Strategy(tp=4, weight_dtype=w), concurrency=1, isl=4096).performance
                    for w in ("bf16", "int4"))  # type: ignore[arg-type]  # fmt: skip
    assert one(narrow.ttft) <= 1.02 * one(wide.ttft)
    assert one(narrow.tpot) <= 1.02 * one(wide.tpot)


def test_what_a_relative_measured_carries_over_by_the_roofline() -> None:
    """H100 and H200 are one chip with two memories: priced by H100's kernels, H200 takes as long for math and latency, and
    the time of large reads shrinks with the bandwidth."""
    assert CURVES.operators is not None
    others = CURVES.model_copy(update={"operators": replace(CURVES.operators, use_own=False, chosen={})})
    c = cluster(device_by_id("h200_sxm_141gb"), 1)
    roof = Roof.of(c, others)
    assert roof.relative == "h100_sxm_80gb" and roof.reference is not None
    own = Roof.of(cluster(device_by_id("h100_sxm_80gb"), 1), CURVES)
    assert own.reference is None

    def ratio(m: float, n: float, k: float) -> float:
        w = Work(
            "x",
            "gemm",
            flops=2 * m * n * k,
            weight_bytes=2 * n * k,
            stream_bytes=2 * m * (n + k),
            m=m,
            n=n,
            k=k,
            table="gemm",
        )
        return one(price(w, roof).total) / one(price(w, own).total)

    assert ratio(16384, 8192, 8192) == pytest.approx(1.0, abs=0.02)
    assert ratio(8, 28672, 8192) == pytest.approx(3.35 / 4.8, abs=0.04)
    assert ratio(8, 512, 512) > 0.9


def test_the_roofline_of_the_datasheet_is_near_the_measured_kernels_of_every_generation() -> None:
    """The shapes in kernels.yaml are one set for all generations; with the measured operators at hand they can be checked."""
    assert CURVES.operators is not None
    ratios: dict[str, list[float]] = {}
    for device in CURVES.operators.ridge:
        for model, tp, (sequences, tokens, context) in itertools.product(
            ("llama3.1-70b", "mixtral-8x7b"), (4,), ((4, 1, 2048), (64, 1, 2048), (1, 4096, 4096))
        ):
            s = Strategy(tp=tp)
            p = at(model, device, s, concurrency=1)
            sizes = (np.asarray([n]) for n in (sequences, tokens, context))
            works = p.layout.works("prefill" if tokens > 1 else "decode", *sizes).layers[-1][1]
            plain = replace(p.layout.roof, relative="", reference=None)
            mine = [w for w in works if w.comm is None]
            total = [sum(one(price(w, roof).total) for w in mine) for roof in (plain, p.layout.roof)]
            ratios.setdefault(device, []).append(total[0] / total[1])
    for device, found in ratios.items():
        assert 0.6 < float(np.median(found)) < 1.5, (device, found)


def test_an_engine_nobody_measured_gets_the_mean_overheads_and_says_so() -> None:
    known = [CURVES.engine(n) for n in ("vllm", "sglang", "trtllm")]
    other = CURVES.engine("jetstream")
    assert min(e.step_s for e in known) < other.step_s < max(e.step_s for e in known)
    assert "not measured" in other.source
    assert "not measured" in CURVES.engine("vllm-ascend").source
