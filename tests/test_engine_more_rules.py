"""Rules of TensorRT-LLM, vllm-ascend, Megatron-LM and torchtitan, decode context parallelism, and layer cuts."""

from __future__ import annotations

import pytest
from engine_models import (
    DEEPSEEK_V3,
    GPT2_XL,
    LLAMA3_70B,
    LLAMA3_405B,
    MODELS,
    QWEN3_30B_FP8,
    QWEN3_235B_FP8,
    TEN_EXPERTS,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge.catalog import load_model
from tools.engines.rules import (
    check,
    default_layers_per_stage,
    engine_rules,
    engines,
    kv_budget,
    legal,
    legal_mask,
    parallel_flags,
    resolve_layers,
)
from tools.partition.lower import default_layers_per_stage as balanced
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

KIMI_K2 = DEEPSEEK_V3.model_copy(
    update={
        "name": "Kimi-K2",
        "attention": DEEPSEEK_V3.attention.model_copy(update={"num_heads": 64, "num_kv_heads": 64}),
    }
)


def said(engine: str, model: ModelSpec, severity: str = "error", **degrees) -> list[str]:
    weights = degrees.pop("weight_dtype", "bf16")
    s = Strategy(engine=engine, weight_dtype=weights, **degrees)
    return [f.code for f in check(model, s) if f.severity == severity]


# An engine or release that nobody wrote rules for ------------------------------------------------------------------


def test_an_engine_without_rules_is_one_warning_and_no_obstacle():
    s = Strategy(tp=7, engine="mindie")
    (found,) = check(LLAMA3_70B, s)
    assert (found.severity, found.message) == ("warning", "engine mindie has no rules here; legality unchecked")
    assert legal("mindie", LLAMA3_70B, s)
    mask, reason = legal_mask("mindie", LLAMA3_70B, tp=[1, 3, 7])
    assert mask.all() and set(reason) == {""}


def test_a_release_without_rules_is_judged_by_the_newest_known_one_and_said():
    found = check(LLAMA3_70B, Strategy(tp=7), version="0.6.3")
    assert {"tp-heads", "engine-version"} <= {f.code for f in found}
    assert "0.33.0" in next(f for f in found if f.code == "engine-version").message
    assert not any(f.code == "engine-version" for f in check(LLAMA3_70B, Strategy(tp=8), version="0.33.0"))


def test_serving_and_training_engines_are_told_apart():
    assert engines("serving") == ("vllm", "sglang", "trtllm", "vllm-ascend")
    assert engines("training") == ("megatron", "torchtitan")
    assert set(engines()) == {*engines("serving"), *engines("training")}


# Layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "want"),
    [
        ("vllm", (15, 15, 16, 15)),
        ("sglang", (15, 15, 15, 16)),
        ("trtllm", (16, 15, 15, 15)),
        ("mindie", balanced(61, 4)),
    ],
)
def test_layers_that_nobody_cut_are_cut_by_the_engine(engine, want):
    s = Strategy(tp=8, pp=4, engine=engine)
    got = resolve_layers(None, DEEPSEEK_V3, s)
    assert got.layers_per_stage == want
    assert got.model_copy(update={"layers_per_stage": None}) == s


@settings(max_examples=100, deadline=None)
@given(engine=st.sampled_from([*engines(), "mindie"]), model=st.sampled_from(MODELS), pp=st.integers(1, 120))
def test_resolved_layers_stay_resolved_and_hold_every_layer(engine, model, pp):
    s = Strategy(pp=pp, engine=engine)
    got = resolve_layers(engine, model, s)
    assert resolve_layers(engine, model, got) == got
    if pp == 1 or pp > model.num_hidden_layers:
        assert got == s
    else:
        assert got.layers_per_stage is not None and sum(got.layers_per_stage) == model.num_hidden_layers


@given(engine=st.sampled_from(engines("serving")), model=st.sampled_from(MODELS), pp=st.integers(1, 8))
def test_spelling_the_engines_own_cut_out_changes_no_verdict(engine, model, pp):
    s = Strategy(pp=pp, engine=engine, weight_dtype="bf16")
    assert {f.code for f in check(model, s)} == {f.code for f in check(model, resolve_layers(engine, model, s))}


# Decode context parallelism ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_deepseek_deals_its_latent_over_all_of_tp(engine):
    for dcp in (2, 4, 8):
        assert said(engine, DEEPSEEK_V3, tp=8, dcp=dcp) == []
    assert "dcp" in said(engine, DEEPSEEK_V3, tp=8, dcp=3)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_gqa_deals_out_only_what_would_be_copied(engine):
    """Qwen3-235B: 4 KV heads on 16 ranks are 4 copies of each."""
    assert said(engine, QWEN3_235B_FP8, tp=16, dcp=4) == []
    assert said(engine, QWEN3_235B_FP8, tp=16, dcp=8) == ["dcp"]
    assert "dcp" in said(engine, QWEN3_235B_FP8, tp=4, dcp=2)
    assert "dcp" in said(engine, LLAMA3_70B, tp=8, dcp=2)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@settings(max_examples=150, deadline=None)
@given(model=st.sampled_from(MODELS), tp=st.sampled_from([1, 2, 4, 8, 16]), dcp=st.sampled_from([1, 2, 4, 8, 16]))
def test_what_an_engine_deals_out_the_partitioner_deals_out_too(engine, model, tp, dcp):
    """The partitioner's own condition: dcp divides the copies of a KV head (all of tp under MLA)."""
    kv = model.attention.num_kv_heads
    copies = tp if model.attention.mla else max(1, tp // kv)
    if "dcp" not in said(engine, model, tp=tp, dcp=dcp) and "tp-kv-heads" not in said(engine, model, tp=tp):
        assert copies % dcp == 0


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_prefill_and_decode_context_parallelism_exclude_each_other(engine):
    assert "dcp-cp" in said(engine, DEEPSEEK_V3, tp=4, cp=2, dcp=2)


def test_dcp_is_a_flag_of_both_engines_and_of_neither_when_off():
    s = Strategy(tp=8, dcp=4)
    assert ("--decode-context-parallel-size", "4") in parallel_flags("vllm", DEEPSEEK_V3, s)
    assert ("--dcp-size", "4") in parallel_flags("sglang", DEEPSEEK_V3, s)
    for engine in ("vllm", "sglang"):
        names = {f.name for f in parallel_flags(engine, DEEPSEEK_V3, Strategy(tp=8))}
        assert not {n for n in names if "dcp" in n or "decode-context" in n}


@pytest.mark.parametrize(
    ("engine", "kind", "severity"),
    [
        ("vllm", "ulysses", "warning"), ("sglang", "ring", "warning"), ("trtllm", "ulysses", None),
        ("trtllm", "ring", "error"), ("torchtitan", "ring", None), ("torchtitan", "ulysses", "error"),
        ("megatron", "ring", None), ("megatron", "ulysses", None),
    ],
)  # fmt: skip
def test_each_engine_has_its_own_way_of_context_parallelism(engine, kind, severity):
    found = check(LLAMA3_70B, Strategy(tp=4, cp=2, cp_kind=kind, engine=engine))
    assert next((f.severity for f in found if f.code == "cp-kind"), None) == severity


@pytest.mark.parametrize("engine", engines())
def test_no_engine_slices_heads(engine):
    assert "dk" in said(engine, LLAMA3_70B, tp=8, dk=2)
    assert "dk" not in said(engine, LLAMA3_70B, tp=8)


# Shared experts on SGLang ------------------------------------------------------------------------------------------


def test_shared_experts_of_qwen_are_split_over_the_group_unless_tokens_are_dispatched():
    moe = QWEN3_30B_FP8.moe.model_copy(update={"shared_intermediate_size": 2048})
    model = QWEN3_30B_FP8.model_copy(update={"moe": moe, "architecture": "Qwen2MoeForCausalLM"})
    degrees = {"tp": 1, "attn_dp": 4, "ep": 4}
    assert "shared-layout" in said("sglang", model, "warning", moe_comm="allgather", **degrees)
    assert "shared-layout" not in said("sglang", model, "warning", **degrees)
    assert "shared-layout" in said("sglang", model, "warning", tp=2, attn_dp=2, ep=4)


def test_deepseeks_shared_experts_are_replicated_by_a_variable():
    degrees = {"tp": 1, "attn_dp": 16, "ep": 16, "moe_comm": "allgather"}
    assert "shared-layout" not in said("sglang", DEEPSEEK_V3, "warning", **degrees)


# TensorRT-LLM ------------------------------------------------------------------------------------------------------


def test_every_finding_about_tensorrt_llm_says_that_it_is_second_hand():
    for model in MODELS:
        for s in (Strategy(tp=7, engine="trtllm"), Strategy(tp=2, attn_dp=2, sp=True, dcp=2, engine="trtllm")):
            assert all("second-hand" in f.message for f in check(model, s))


def test_tensorrt_llm_attention_is_data_parallel_on_all_ranks_or_none():
    assert said("trtllm", DEEPSEEK_V3, tp=1, attn_dp=8, ep=8) == []
    assert said("trtllm", DEEPSEEK_V3, tp=8, ep=8) == []
    assert said("trtllm", DEEPSEEK_V3, tp=8, ep=2) == []
    assert said("trtllm", DEEPSEEK_V3, tp=2, attn_dp=4, ep=8) == ["attn-dp-mixed"]


def test_ten_experts_on_four_ranks_would_lose_two_in_tensorrt_llm():
    found = next(f for f in check(TEN_EXPERTS, Strategy(tp=4, ep=4, engine="trtllm")) if f.code == "ep-even")
    assert "each rank takes 2, 2 belong to nobody" in found.message


def test_gpt2_xl_splits_five_ways_in_tensorrt_llm_whose_vocabulary_is_padded():
    assert said("trtllm", GPT2_XL, tp=5) == []


@settings(max_examples=60, deadline=None)
@given(weights=st.floats(0, 7e10), activations=st.floats(0, 2e9), reserve=st.floats(0, 0.3))
def test_tensorrt_llm_takes_its_fraction_of_what_weights_leave(weights, activations, reserve):
    def budget(r):
        return kv_budget(
            "trtllm", memory_total_bytes=80e9, weights_bytes=weights, activation_bytes=activations, memory_reserve=r,
            strategy=Strategy(tp=8, batch=64),
        )  # fmt: skip

    terms = {t.name: t.value for t in budget(None).terms}
    left = sum(v for n, v in terms.items() if n != "left_free")
    assert budget(None).total == pytest.approx(0.9 * left if left > 0 else left)
    # A stated reserve of the device stays free whatever the weights are, until nothing but the least fraction is left.
    with_reserve = budget(reserve)
    free = -next(t.value for t in with_reserve.terms if t.name == "left_free")
    if left > 0:
        assert free >= min(reserve * 80e9, 0.95 * left) - 1e-3 * left


@pytest.mark.parametrize("engine", engines())
@settings(max_examples=40, deadline=None)
@given(weights=st.floats(0, 7e10), reserve=st.floats(0, 0.3), batch=st.integers(1, 2000))
def test_no_engine_gives_the_cache_what_weights_or_a_reserve_take(engine, weights, reserve, batch):
    def budget(w, r):
        return kv_budget(
            engine, memory_total_bytes=80e9, weights_bytes=w, activation_bytes=1e9, memory_reserve=r,
            strategy=Strategy(tp=8, batch=batch),
        )  # fmt: skip

    here = budget(weights, reserve)
    assert here.total == pytest.approx(sum(t.value for t in here.terms))
    assert here.total < max(80e9 * (1 - reserve) - weights, 0.05 * (80e9 - weights)) + 1
    assert budget(weights + 1e9, reserve).total < here.total
    assert all(t.source and t.formula for t in here.terms)


# vllm-ascend -------------------------------------------------------------------------------------------------------


def test_mla_on_npus_takes_32_64_or_128_heads_per_rank():
    legal_tps = {tp for tp in (1, 2, 4, 8, 16) if "mla-heads" not in said("vllm-ascend", DEEPSEEK_V3, tp=tp)}
    assert legal_tps == {1, 2, 4}
    assert {tp for tp in (1, 2, 4, 8) if "mla-heads" not in said("vllm-ascend", KIMI_K2, tp=tp)} == {1, 2}
    assert said("vllm-ascend", LLAMA3_70B, tp=8) == []


def test_npus_take_w8a8_and_no_fp8():
    assert said("vllm-ascend", DEEPSEEK_V3, tp=4, attn_dp=4, ep=16, weight_dtype="int8") == []
    assert said("vllm-ascend", DEEPSEEK_V3, tp=4, attn_dp=4, ep=16, weight_dtype="fp8") == ["weight-dtype"]


def test_npus_obey_vllms_core():
    assert said("vllm-ascend", GPT2_XL, tp=5) == ["tp-vocab"]
    assert said("vllm-ascend", DEEPSEEK_V3, tp=4, ep=2) == ["ep-switch"]


# Megatron-LM and torchtitan ----------------------------------------------------------------------------------------


def test_megatron_splits_126_layers_on_4_stages_only_by_a_layout():
    degrees = {"tp": 8, "pp": 4, "sp": True}
    assert said("megatron", LLAMA3_405B, **degrees) == ["pp-even"]
    assert said("megatron", LLAMA3_405B, layers_per_stage=(31, 32, 32, 31), **degrees) == []
    s = Strategy(layers_per_stage=(31, 32, 32, 31), engine="megatron", **degrees)
    assert ("--pipeline-model-parallel-layout", "Et*31|t*32|t*32|t*31L") in parallel_flags("megatron", LLAMA3_405B, s)


def test_megatron_experts_train_under_tp_only_with_sequence_parallelism():
    assert said("megatron", QWEN3_30B_FP8, tp=4, ep=4) == ["moe-sp"]
    assert said("megatron", QWEN3_30B_FP8, tp=4, ep=4, sp=True) == []


def test_megatron_groups_may_be_a_divisor_or_a_multiple_of_tp():
    assert said("megatron", LLAMA3_70B, tp=16, sp=True) == []
    assert "tp-kv-heads" in said("torchtitan", LLAMA3_70B, tp=16, sp=True)


def test_torchtitan_counts_embedding_and_head_as_a_layer_each():
    """32 layers on 4 stages: 34 / 4 = 8 remainder 2, to the first stages; each end gives one back."""
    assert default_layers_per_stage("torchtitan", 32, 4) == (8, 9, 8, 7)
    assert default_layers_per_stage("torchtitan", 80, 2) == (40, 40)
    assert said("torchtitan", LLAMA3_70B, pp=4, layers_per_stage=(20, 20, 20, 20)) == ["pp-split"]
    own = default_layers_per_stage("torchtitan", 80, 4)
    assert said("torchtitan", LLAMA3_70B, pp=4, layers_per_stage=own) == []


def test_torchtitan_spreads_experts_or_slices_them_not_both():
    assert said("torchtitan", QWEN3_30B_FP8, tp=4, attn_dp=2, ep=8, sp=True) == []
    assert said("torchtitan", QWEN3_30B_FP8, tp=4, ep=2, sp=True) == ["etp"]


@pytest.mark.parametrize("engine", engines("training"))
@given(
    tp=st.sampled_from([1, 2, 4]), pp=st.sampled_from([1, 2]), dp=st.integers(1, 4), attn_dp=st.sampled_from([1, 2, 4])
)
def test_the_world_equation_of_training_multiplies_to_the_devices(engine, tp, pp, dp, attn_dp):
    import re

    s = Strategy(tp=tp, pp=pp, dp=dp, attn_dp=attn_dp, ep=tp * attn_dp, engine=engine)
    text = engine_rules(engine).world(s)
    product = 1
    for factor in re.findall(r"\w+\((\d+)\)", text.split("=")[1]):
        product *= int(factor)
    assert product == s.num_devices


def test_vllm_hands_no_picked_positions_from_stage_to_stage() -> None:
    """GLM-5.2's indexer runs in layers 0, 1, 2, 6, 10, …: a cut elsewhere leaves a stage without positions; 38 is such a layer."""
    model = load_model("glm-5.2").model

    def codes(s: Strategy, engine: str = "vllm") -> set[str]:
        return {f.code for f in check(model, s, engine=engine) if f.severity == "error"}

    assert "pp-shared-index" in codes(Strategy(tp=8, pp=2))
    assert "pp-shared-index" not in codes(Strategy(tp=8, pp=2, layers_per_stage=(38, 40)))
    assert "pp-shared-index" not in codes(Strategy(tp=8, pp=2), "sglang")  # its proxy tensors carry them
