"""How many parts of what lie where, and how evenly."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge.catalog import load_model
from tools.partition.lower import lower
from tools.shards import (
    balance,
    balance_bound,
    count_parts,
    hosts,
    idle_devices,
    optimal_cut,
    region_of,
    summary,
    tiling,
)
from tools.spec.plan import ModuleParts
from tools.spec.strategy import Strategy


def parts(name: str, **strategy: object) -> dict[str, ModuleParts]:
    program = lower(load_model(name).model, Strategy(**strategy), "decode", {})
    return {row.weight: row for row in count_parts(program)}


def test_attention_of_llama3_70b_on_eight_gpus_in_words() -> None:
    row = parts("llama-3-70b", tp=8)["q_proj.weight"]
    assert row.sentence == "self_attn.q_proj.weight: 8 shards × 1 copy on 8 GPUs (heads over tp(8)), matches"
    assert row.collective == "all-reduce over tp(8) after o_proj"
    assert (row.global_dims["heads"], row.local_dims["heads"], row.layers) == (64, 8, 80)


def test_replicas_are_copies() -> None:
    row = parts("llama-3-70b", tp=8, dp=3)["down_proj.weight"]
    assert (row.num_shards, row.copies, row.devices) == (8, 3, 24)
    assert row.sentence.endswith("3 replicas), matches")


def test_kv_heads_fewer_than_tp_have_fewer_shards_in_more_copies() -> None:
    row = parts("qwen3-235b-a22b", tp=8)["k_proj.weight"]
    assert (row.num_shards, row.copies, row.devices) == (4, 2, 8)
    assert row.axis == "kv_heads over 4 of tp(8), 2 ranks share each"


def test_experts_and_attention_divide_the_same_devices_differently() -> None:
    rows = parts("deepseek-v3", tp=4, attn_dp=4, ep=16)
    assert (rows["q_nope.weight"].num_shards, rows["q_nope.weight"].copies) == (4, 4)
    assert (rows["expert_up.weight"].num_shards, rows["expert_up.weight"].copies) == (16, 1)
    assert rows["expert_up.weight"].collective == "all-to-all over ep(16) after expert_down"
    assert (rows["router.weight"].num_shards, rows["router.weight"].axis) == (1, "whole on every rank")


def test_ranks_without_an_expert_are_said_aloud() -> None:
    m = load_model("mixtral-8x7b").model
    program = lower(m, Strategy(tp=16, ep=16), "decode", {})
    row = next(r for r in count_parts(program) if r.weight == "expert_up.weight")
    assert (row.num_shards, row.devices, row.matches) == (8, 8, True)
    assert "8 GPUs of the group hold nothing of it" in row.sentence


def test_a_summary_has_one_sentence_per_region() -> None:
    said = summary(tuple(parts("deepseek-v3", tp=8, pp=2).values()))
    regions = [s.split(":")[0] for s in said]
    assert len(set(regions)) == len(regions)
    assert set(regions) == {
        "embedding", "attention", "dense MLP", "router", "routed experts", "shared expert", "head", "norms"
    }  # fmt: skip
    assert region_of("mlp.gate_proj") == "dense MLP"


def test_a_row_that_does_not_match_says_so_in_the_summary() -> None:
    row = parts("llama-3-70b", tp=8)["q_proj.weight"]
    broken = row.model_copy(update={"matches": False, "sentence": "x: 7 shards, DOES NOT MATCH"})
    assert summary((row, broken)) == ("attention: 7 shards, DOES NOT MATCH",)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_shards_times_copies_are_the_devices_that_host_them(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["llama-3-70b", "deepseek-v3", "qwen2.5-7b", "gpt-oss-120b", "bloom-7b1"]))
    m = load_model(name).model
    tp = data.draw(st.sampled_from([t for t in (1, 2, 4, 8) if m.attention.num_heads % t == 0]))
    attn_dp = data.draw(st.sampled_from([1, 2, 4]))
    ep = data.draw(st.sampled_from([1, 2, 4, 8])) if m.moe else 1
    group = tp * attn_dp
    s = Strategy(
        tp=tp, attn_dp=attn_dp, ep=min(ep, group), pp=data.draw(st.integers(1, 3)), dp=data.draw(st.integers(1, 3))
    )
    program = lower(m, s, "prefill", {})
    for row in count_parts(program):
        assert row.matches, row.sentence
        assert row.num_shards * row.copies == row.devices <= group * s.dp
    everywhere: set[int] = set().union(*hosts(program).values())
    assert everywhere == set(range(s.num_devices)) and not idle_devices(program)


# ------------------------------------------------------------------------------------------------------------ tiling

ROWS = [((0, 3),), ((3, 7),)]


def test_two_halves_tile_a_tensor_and_copies_are_counted() -> None:
    boxes = [((r,), ((0, 4),)) for r in (ROWS[0][0], ROWS[1][0])] * 3
    assert tiling(boxes, [7, 4]) == (2, (3, 3), 6, True, 1.0)


@pytest.mark.parametrize(
    ("boxes", "why"),
    [
        ([(((0, 3),),), (((4, 7),),)], "a gap"),
        ([(((0, 4),),), (((3, 7),),)], "an overlap"),
        ([(((0, 3),),), (((3, 7),),), (((0, 3),),)], "one shard has more copies"),
        ([(((0, 3),),), (((3, 8),),)], "beyond the end"),
        ([((),)], "nobody holds it"),
        ([], "nobody is there"),
    ],
)
def test_what_does_not_tile_is_seen(boxes: list, why: str) -> None:
    assert not tiling(boxes, [7]).exact, why


def test_interleaved_positions_tile_too() -> None:
    """A cache that is dealt out one by one."""
    boxes = [(tuple((i, i + 1) for i in range(r, 9, 3)),) for r in range(3)]
    assert tiling(boxes, [9]).exact


@given(n=st.integers(1, 40), cuts=st.lists(st.integers(0, 40), max_size=4), shift=st.integers(1, 3))
def test_any_cut_tiles_and_shifting_one_part_of_it_does_not(n: int, cuts: list[int], shift: int) -> None:
    edges = sorted({0, n, *(c for c in cuts if c < n)})
    boxes = [(((lo, hi),),) for lo, hi in pairwise(edges)]
    assert tiling(boxes, [n]).exact
    lo, hi = boxes[0][0][0]
    moved = [(((lo + shift, hi + shift),),), *boxes[1:]]
    assert not tiling(moved, [n]).exact


# ----------------------------------------------------------------------------------------------------------- balance


def test_balance_is_max_over_mean() -> None:
    found = balance({0: 10.0, 1: 20.0, 2: 30.0, 3: 20.0})
    assert (found.ratio, found.fullest) == (1.5, 2)
    assert balance({0: 0.0, 1: 0.0}).ratio == 1.0


@settings(max_examples=60)
@given(
    costs=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    pp=st.integers(1, 4),
    ends=st.tuples(st.integers(0, 20), st.integers(0, 20)),
)
def test_the_optimal_cut_is_the_best_of_all_cuts(costs: list[int], pp: int, ends: tuple[int, int]) -> None:
    pp = min(pp, len(costs))

    def heaviest(edges: tuple[int, ...]) -> int:
        loads = [sum(costs[a:b]) for a, b in pairwise(edges)]
        loads[0] += ends[0]
        loads[-1] += ends[1]
        return max(loads)

    inner = combinations(range(1, len(costs)), pp - 1)
    brute = min(heaviest((0, *c, len(costs))) for c in inner)
    counts, worst = optimal_cut([float(c) for c in costs], pp, first=ends[0], last=ends[1])
    assert worst == brute and sum(counts) == len(costs) and len(counts) == pp and min(counts) >= 1


def test_sixty_one_equal_layers_on_four_stages_give_the_ends_fewer() -> None:
    counts, worst = optimal_cut([1.0] * 61, 4, first=0.5, last=0.5)
    assert worst == 16.0 and counts[0] == counts[-1] == 15


def test_the_bound_is_the_stated_one_else_five_percent_or_what_is_possible() -> None:
    assert balance_bound(0.01, 1.2) == 1.01
    assert balance_bound(None, 1.02) == 1.05
    assert balance_bound(None, 1.2) == 1.2
