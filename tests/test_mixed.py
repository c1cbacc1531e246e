"""Pipelines over devices of several kinds: exact cuts, own memory and speed per stage."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge.catalog import load_device, load_model
from knowledge.curves import load_curves
from tools.oracle.prove import prove
from tools.partition.layerwise import Loads
from tools.partition.uneven import StageDevice, fastest_split
from tools.search.mixed import MixedPipeline, mixed_pipelines, pipeline_rate
from tools.spec.base import Refused, ToolError
from tools.spec.deployment import Deployment
from tools.spec.hardware import Cluster
from tools.spec.workload import Workload


def cluster(name: str, count: int) -> Cluster:
    return Cluster.of(load_device(name).device, count, 8)


def pipelines(model: str, *kinds: tuple[str, int], isl: int = 1024, osl: int = 256) -> tuple[MixedPipeline, ...]:
    clusters = [cluster(*k) for k in kinds]
    w = Workload(isl=isl, osl=osl, concurrency=16)
    d = Deployment(model=load_model(model).model, cluster=clusters[0], workload=w)
    return mixed_pipelines(d, clusters, load_curves())


def layers_on(p: MixedPipeline, device: str) -> int:
    return sum(s.layers for s in p.stages if s.device == load_device(device).device.id)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[StageDevice], Loads]:
    n = draw(st.integers(1, 7))
    held = draw(st.lists(st.integers(1, 5), min_size=n, max_size=n))
    stages = draw(st.integers(1, n))
    rows = []
    for i in range(stages):
        seconds = draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
        ends = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
        rows.append(StageDevice(f"d{i}", tuple(map(float, seconds)), draw(st.integers(3, 25)), *ends))
    return rows, Loads(tuple(map(float, held)), (), draw(st.integers(0, 3)), draw(st.integers(0, 3)))


@given(problems())
@settings(max_examples=200, deadline=None)
def test_no_cut_that_fits_has_a_faster_slowest_stage(problem: tuple[list[StageDevice], Loads]) -> None:
    stages, loads = problem
    n, times = len(loads.held), []
    for cuts in combinations(range(1, n), len(stages) - 1):
        spans = list(pairwise([0, *cuts, n]))
        if all(loads.of(*span) <= s.capacity_bytes for span, s in zip(spans, stages, strict=True)):
            times.append(max(s.time(*span) for span, s in zip(spans, stages, strict=True)))
    if not times:
        with pytest.raises(Refused, match="no cut of"):
            fastest_split(stages, loads)
        return
    counts, slowest = fastest_split(stages, loads)
    assert slowest == min(times) and sum(counts) == n and min(counts) >= 1


def test_equal_kinds_share_the_layers_evenly() -> None:
    best = next(p for p in pipelines("llama-3-70b", ("h100", 4), ("h100", 4)) if p.strategy.tp == 4)
    assert sorted(best.strategy.layers_per_stage or ()) == [40, 40]
    assert best.output_tok_s == pytest.approx(best.even_output_tok_s)


def test_the_faster_kind_holds_more_layers_and_beats_an_even_cut() -> None:
    best = pipelines("llama-3-70b", ("a100-sxm-80gb", 4), ("v100-32gb", 4))[0]
    assert layers_on(best, "a100-sxm-80gb") > 1.5 * layers_on(best, "v100-32gb")
    assert best.output_tok_s > 1.3 * best.even_output_tok_s > 0


def test_prefill_moves_layers_to_the_faster_arithmetic_and_decode_back() -> None:
    """An H20 has 0.15 of an H100's FLOP/s and 1.2 times its memory bandwidth."""

    def share(isl: int, osl: int) -> float:
        best = next(
            p for p in pipelines("llama-3-70b", ("h100", 8), ("h20", 8), isl=isl, osl=osl) if p.strategy.tp == 8
        )
        return layers_on(best, "h100") / 80

    assert share(8192, 16) > 0.75 > share(128, 2048)


def test_each_stage_keeps_the_memory_of_its_own_device() -> None:
    for p in pipelines("llama-3-70b", ("a100-sxm-80gb", 4), ("v100-32gb", 4)):
        for s in p.stages:
            assert s.memory.capacity_bytes == load_device(s.device).device.memory_usable_bytes
            assert s.memory.free_bytes >= 0
            assert s.memory.layers == s.layers


def test_a_mixed_pipeline_computes_the_model() -> None:
    best = pipelines("llama-3-8b", ("a100-sxm-80gb", 2), ("v100-32gb", 2))[0]
    assert len(set(best.strategy.layers_per_stage or ())) > 1
    assert all(p.ok for p in prove(load_model("llama-3-8b").model, best.strategy, batch_size=4, seq_len=16).values())


def test_what_does_not_fit_or_is_not_mixed_is_refused() -> None:
    with pytest.raises(Refused, match=r"no pipeline over 4 × a100_sxm_80gb \+ 4 × v100_sxm2_32gb fits.*GB in all"):
        pipelines("llama-3.1-405b", ("a100-sxm-80gb", 4), ("v100-32gb", 4))
    with pytest.raises(ToolError, match="at least two kinds"):
        pipelines("llama-3-8b", ("h100", 4))


def test_a_pipeline_of_one_kind_is_counted_like_a_mixed_one() -> None:
    """Two stages of the same kind, one on each cluster, are the plain pipeline."""
    half, whole = cluster("h100", 4), cluster("h100", 8)
    w = Workload(isl=1024, osl=256, concurrency=16)
    d = Deployment(model=load_model("llama-3-70b").model, cluster=whole, workload=w)
    mixed = next(p for p in mixed_pipelines(d, [half, half], load_curves()) if p.strategy.tp == 4)
    assert pipeline_rate(d, load_curves(), mixed.strategy) == pytest.approx(mixed.output_tok_s)
