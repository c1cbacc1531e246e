"""Layer-wise placement by a byte budget: exact against brute force, bytes from the partitioned graph."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.reading.strategy_file import strategy_from_data
from knowledge.catalog import load_model
from tools.memory import layer_loads
from tools.partition.layerwise import Loads, greedy, optimal, place
from tools.spec.base import Refused, ToolError
from tools.spec.strategy import Strategy

LOADS = st.builds(
    lambda rows, first, last: Loads(tuple(a for a, _ in rows), tuple(b for _, b in rows), first, last),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=8),
    st.integers(0, 5),
    st.integers(0, 5),
)


def every_placement(n: int) -> list[tuple[int, ...]]:
    """All cuts of n layers into non-empty contiguous groups."""
    out = []
    for k in range(n):
        for cuts in combinations(range(1, n), k):
            ends = [0, *cuts, n]
            out.append(tuple(b - a for a, b in pairwise(ends)))
    return out


@given(LOADS, st.integers(1, 8))
@settings(max_examples=150, deadline=None)
def test_for_a_number_of_devices_no_placement_has_a_lighter_heaviest_group(loads: Loads, groups: int) -> None:
    n = len(loads.held)
    if groups > n:
        with pytest.raises(ToolError):
            optimal(loads, groups=groups)
        return
    found = optimal(loads, groups=groups)
    assert len(found) == groups and sum(found) == n
    assert max(loads.groups(found)) == min(max(loads.groups(c)) for c in every_placement(n) if len(c) == groups)


@given(LOADS, st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_for_a_budget_both_methods_take_the_fewest_devices(loads: Loads, budget: int) -> None:
    n = len(loads.held)
    keep = [c for c in every_placement(n) if max(loads.groups(c)) <= budget]
    if not keep:
        for method in ("greedy", "dp"):
            with pytest.raises(Refused, match="the budget is"):
                place(loads, budget=budget, method=method)
        return
    fewest = min(map(len, keep))
    filled, exact = greedy(loads, budget), optimal(loads, budget=budget)
    assert len(filled) == len(exact) == fewest
    assert max(loads.groups(filled)) <= budget
    assert max(loads.groups(exact)) == min(max(loads.groups(c)) for c in keep if len(c) == fewest)


def test_a_layer_beyond_the_budget_is_refused_with_its_numbers() -> None:
    with pytest.raises(
        Refused, match=r"layer 1 takes 70 MB, the budget is 50 MB per device; slice layers over tp of at least 2"
    ):
        place(Loads((10e6, 70e6, 10e6)), budget=50e6)
    with pytest.raises(Refused, match=r"layer 0 with the embedding \(45 MB\) takes 55 MB"):
        place(Loads((10e6, 10e6), first=45e6), budget=50e6)


def test_too_few_devices_are_refused_with_the_number_that_would_do() -> None:
    with pytest.raises(
        Refused, match=r"6 layers on 2 devices of 25 MB: the heaviest group takes at least 30 MB; use 3 devices"
    ):
        place(Loads((10e6,) * 6), budget=25e6, groups=2)


def test_layer_bytes_are_those_of_the_partitioned_graph() -> None:
    """Llama-3-8B in bf16: 218,112,000 parameters a layer, of which tp slices all but the two norms."""
    m = load_model("llama-3-8b").model
    one = layer_loads(m, Strategy(), batch=1, seq_len=1, count=["weights"])
    assert one.held == (2 * 218_112_000.0,) * 32
    assert one.first == 2 * 128_256 * 4096
    four = layer_loads(m, Strategy(tp=4), batch=1, seq_len=1, count=["weights"])
    assert four.held[0] == 2 * ((218_112_000 - 8192) / 4 + 8192)


def test_kv_and_activations_grow_with_the_tokens() -> None:
    m = load_model("llama-3-8b").model
    weights, all_three = (
        layer_loads(m, Strategy(), batch=4, seq_len=1024, count=c, ends=False)
        for c in (["weights"], ["weights", "kv", "activations"])
    )
    kv = 4 * 1024 * 2 * 8 * 128 * 2
    assert all_three.held[0] - weights.held[0] == kv
    assert all_three.peak[0] >= 2 * 4 * 1024 * 4096 * 2  # at least input and output of a block
    summed = layer_loads(m, Strategy(), batch=4, seq_len=1024, add_activations=True, ends=False)
    assert summed.held[0] == all_three.held[0] + all_three.peak[0]


def test_layers_of_different_size_are_balanced_by_bytes_not_by_number() -> None:
    """DeepSeek-V3: three dense layers of 0.6 GB, then experts of 11.5 GB a layer (fp8)."""
    m = load_model("deepseek-v3").model
    loads = layer_loads(m, Strategy(weight_dtype="fp8"), batch=1, seq_len=1, count=["weights"], ends=False)
    counts = optimal(loads, groups=4)
    assert sum(counts) == 61 and counts[0] > counts[1]
    assert max(loads.groups(counts)) < max(loads.groups((15, 15, 15, 16)))  # even by number, as SGLang cuts


# ---------------------------------------------------------------------------------------------------------- strategy file


def test_a_strategy_file_says_only_the_budget() -> None:
    m = load_model("llama-3-8b").model
    s = strategy_from_data({"layerwise": "2 GB"}, model=m)
    loads = layer_loads(m, s, batch=1, seq_len=1024)
    assert s.pp == len(s.layers_per_stage or ()) == s.num_devices
    assert max(loads.groups(s.layers_per_stage or ())) <= 2e9
    with pytest.raises(Refused):
        optimal(loads, s.pp - 1, budget=2e9)


def test_devices_or_pp_say_how_many_stages_there_are() -> None:
    m = load_model("llama-3-8b").model
    rule = {"method": "dp", "count": ["weights"], "ends": False}
    assert strategy_from_data({"tp": 2, "devices": 16, "layerwise": rule}, model=m).layers_per_stage == (4,) * 8
    assert strategy_from_data({"pp": 4, "layerwise": {"budget": "10GB", **rule}}, model=m).layers_per_stage == (8,) * 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"layerwise": {"budget": "12 ms"}}, "expected bytes"),
        ({"layerwise": {"budgets": "50MB"}}, "layerwise: unknown key 'budgets'; known keys: budget"),
        ({"layerwise": {"budget": "1GB", "method": "best"}}, "layerwise: method"),
        ({"layerwise": {"budget": "1GB", "count": ["weight"]}}, "layerwise: count"),
        ({"layerwise": {"budget": "1GB", "activations": "mean"}}, "activations must be peak or sum"),
        ({"layerwise": {"budget": "2GB"}, "layers_per_stage": [16, 16], "pp": 2}, "both place the layers"),
        ({"layerwise": "2GB", "preset": "pp", "devices": 4}, "with preset pp"),
        ({"layerwise": {"method": "greedy"}}, "needs a budget in bytes per device"),
        ({"layerwise": {"method": "dp"}}, "needs a budget in bytes per device, or a number of devices"),
        ({"layerwise": "100 MB"}, "takes 1.588 GB, the budget is 100 MB"),
    ],
)
def test_a_wrong_placement_says_what_is_wrong(data: dict, message: str) -> None:
    with pytest.raises(ToolError, match=message.replace("(", r"\(")):
        strategy_from_data(data, model=load_model("llama-3-8b").model)


def test_a_placement_without_a_model_asks_for_one() -> None:
    with pytest.raises(ToolError, match="give --model too"):
        strategy_from_data({"layerwise": "50MB"})


def test_the_example_of_the_strategies_page_is_what_the_budget_gives() -> None:
    m = load_model("llama-3-8b").model
    rule = {"budget": "3.7GB", "count": ["weights"]}
    given = [
        strategy_from_data({"layerwise": {**rule, "method": k}}, model=m).layers_per_stage for k in ("greedy", "dp")
    ]
    assert given == [(6, 8, 8, 8, 2), (5, 7, 7, 8, 5)]
