"""Passages: each strategy that can be said has one, short, with a source, and a question finds it in two languages."""

from __future__ import annotations

import re

import pytest

from knowledge.retrieve import Library, builtin_passages
from tools.partition.axes import LOGICAL, SLICES, VISIBLE
from tools.spec.model import BITS, dtype_bytes
from tools.spec.strategy import Strategy

PASSAGES = {p.id: p for p in builtin_passages()}
LIBRARY = Library(PASSAGES.values())
OPERATING_POINT = {"batch", "max_num_batched_tokens", "microbatches"}
"""Whole-number fields of a strategy that are no axes."""


def axes_of_a_strategy() -> list[str]:
    """Every degree and switch of `Strategy` that cuts something: a new one needs a passage."""
    whole = [n for n, f in Strategy.model_fields.items() if f.annotation in (int, bool, int | None)]
    return [n for n in whole if n not in OPERATING_POINT]


def test_the_axes_are_the_known_ones_and_those_of_the_mesh_are_among_them() -> None:
    assert set(axes_of_a_strategy()) >= {"tp", "pp", "dp", "ep", "etp", "attn_dp", "cp", "sp", "dcp", "dk"}
    derived = {"edp", "pool_heads", "pool_seq"}  # from the others, and from attn_pool
    assert set(VISIBLE) - {"pool_heads", "pool_seq"} <= {name for name, _, _ in LOGICAL}
    assert set(VISIBLE) - derived - set(SLICES) <= set(axes_of_a_strategy())


@pytest.mark.parametrize("axis", list(dict.fromkeys([*axes_of_a_strategy(), "edp", *SLICES])))
def test_every_axis_is_explained(axis: str) -> None:
    about = [p for p in PASSAGES.values() if axis in p.subjects and re.search(rf"\b{axis}\b", p.text)]
    assert about, f"no passage in knowledge/passages has {axis} among its subjects and in its text"


@pytest.mark.parametrize("name", PASSAGES)
def test_a_passage_names_its_source_and_fits_a_screen(name: str) -> None:
    p = PASSAGES[name]
    assert len(p.text.splitlines()) <= 60 and len(p.text) >= 300
    cited = re.findall(r"arXiv \d{4}\.\d{4,5}\b", p.source)
    assert cited or re.search("derivation|documentation", p.source), f"{name}: source {p.source!r}"
    assert p.subjects and p.title


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("ring attention", "ring_attention"), ("环形注意力", "ring_attention"), ("zig-zag positions", "ring_attention"),
        ("ulysses all-to-all heads", "context_parallel"), ("上下文并行", "context_parallel"),
        ("decode context parallelism", "decode_context_parallel"), ("解码上下文并行", "decode_context_parallel"),
        ("two-level slicing of d_k", "two_level_attention"), ("两级切分", "two_level_attention"),
        ("large expert parallelism", "large_expert_parallel"), ("大规模专家并行", "large_expert_parallel"),
        ("uneven pipeline stages", "uneven_pipeline"), ("mxfp4 groups", "quantised_weights"),
        ("copies of experts", "expert_data_parallel"), ("weight absorption", "mla_absorption"),
        ("interleaved pipeline virtual stages", "interleaved_pipeline"), ("交错流水线", "interleaved_pipeline"),
        ("token-dimension pipeline of sequence slices", "token_pipeline"), ("序列切片流水", "token_pipeline"),
        ("layers per device by L2 cache budget", "layerwise_placement"), ("按层划分", "layerwise_placement"),
        ("experts on separate devices from attention", "expert_separation"), ("注意力与专家分离", "expert_separation"),
        ("attention pool above a threshold", "attention_pool"), ("注意力池", "attention_pool"),
        ("prefill decode disaggregation", "prefill_decode_pools"), ("PD 分离", "prefill_decode_pools"),
        ("heterogeneous GPUs uneven stages", "mixed_devices"), ("异构设备", "mixed_devices"),
        ("sliding window", "attention_sinks_windows"), ("滑动窗口", "attention_sinks_windows"),
    ],
)  # fmt: skip
def test_a_question_finds_its_strategy(query: str, wanted: str) -> None:
    assert wanted in [h.passage.id for h in LIBRARY.search(query, 2)]


def test_the_bits_in_the_quantisation_passage_are_those_of_the_calculator() -> None:
    text = PASSAGES["quantised_weights"].text.replace("\n", " ")
    for dtype in ("int4", "mxfp4", "nvfp4"):
        said = re.search(rf"{dtype} (?:\([^)]*\) )?one [^;]*?(\d\.\d+)", text)
        assert said and float(said[1]) == pytest.approx(dtype_bytes(dtype) * 8, abs=0.005)
    assert BITS["bf16"] / BITS["mxfp4"] == pytest.approx(3.76, abs=0.01)
