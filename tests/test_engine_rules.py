"""What serving engines accept: published disagreements between releases, and scalar against vectorised rules."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from engine_models import (
    DEEPSEEK_V3,
    FALCON_7B,
    GPT2_XL,
    GPT_OSS_120B,
    LLAMA3_70B,
    MODELS,
    PHI4,
    QWEN3_30B_FP8,
    QWEN3_235B_FP8,
    QWEN25_7B,
    QWEN25_32B_AWQ,
    TEN_EXPERTS,
    V4_FLASH,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tools.engines.rules import (
    RULES,
    check,
    default_layers_per_stage,
    engine_rules,
    engines,
    kv_budget,
    latest,
    legal,
    legal_mask,
    legal_tp,
    memory_fraction,
    parallel_flags,
    placement,
    server_defaults,
)
from tools.spec.base import ToolError
from tools.spec.model import MLA, MLP, Attention, ModelSpec, MoE
from tools.spec.strategy import Strategy

GIB = 2**30
CATALOGUE = Path(__file__).parents[2] / "shared" / "data" / "model_catalogue.csv"


def errors(engine: str, model: ModelSpec, **degrees) -> list[str]:
    nodes = {k: degrees.pop(k) for k in ("num_nodes", "devices_per_node") if k in degrees}
    strategy = Strategy(engine=engine, weight_dtype=degrees.pop("weight_dtype", model.weight_dtype), **degrees)
    return [f.code for f in check(model, strategy, **nodes) if f.severity == "error"]


def warnings(engine: str, model: ModelSpec, **degrees) -> list[str]:
    strategy = Strategy(engine=engine, weight_dtype=degrees.pop("weight_dtype", model.weight_dtype), **degrees)
    return [f.code for f in check(model, strategy) if f.severity == "warning"]


# Where vLLM 0.33.0 and SGLang 0.5.23 disagree -----------------------------------------------------------------------


def test_gpt2_xl_splits_five_ways_in_sglang_but_its_padded_vocabulary_does_not_in_vllm():
    assert errors("vllm", GPT2_XL, tp=5) == ["tp-vocab"]
    assert errors("sglang", GPT2_XL, tp=5) == []


def test_phi4_ten_kv_heads_allow_five_ways_only_where_the_vocabulary_is_padded_on_demand():
    assert errors("vllm", PHI4, tp=5) == ["tp-vocab"]
    assert errors("sglang", PHI4, tp=5) == []
    for engine, tp in itertools.product(("vllm", "sglang"), (4, 8)):
        assert "tp-kv-heads" in errors(engine, PHI4, tp=tp)


def test_qwen3_235b_fp8_experts_at_tp8_are_refined_by_vllm_and_refused_by_sglang():
    assert errors("vllm", QWEN3_235B_FP8, tp=8) == []
    assert "fp8-block-refined" in warnings("vllm", QWEN3_235B_FP8, tp=8)
    assert errors("sglang", QWEN3_235B_FP8, tp=8) == ["fp8-block-moe"]
    assert errors("sglang", QWEN3_235B_FP8, tp=4) == []
    assert errors("sglang", QWEN3_235B_FP8, tp=8, ep=8) == []


@pytest.mark.parametrize("tp", [4, 8])
def test_qwen3_30b_fp8_shards_of_192_and_96_are_refined_by_vllm_and_refused_by_sglang(tp):
    assert errors("vllm", QWEN3_30B_FP8, tp=tp) == []
    assert errors("sglang", QWEN3_30B_FP8, tp=tp) == ["fp8-block-moe"]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_deepseek_v3_fp8_at_tp32_fails_on_the_dense_down_projection(engine):
    strategy = Strategy(tp=32, weight_dtype="fp8", engine=engine)
    found = {f.code: f for f in check(DEEPSEEK_V3, strategy)}
    assert "576" in found["fp8-block"].message
    assert "fp8-block" not in errors(engine, DEEPSEEK_V3, tp=16)


def test_126_layers_on_4_stages_put_the_remainder_in_the_middle_at_the_end_or_at_the_front():
    assert default_layers_per_stage("vllm", 126, 4) == (31, 32, 32, 31)
    assert default_layers_per_stage("sglang", 126, 4) == (31, 31, 32, 32)
    assert default_layers_per_stage("trtllm", 126, 4) == (32, 32, 31, 31)


def test_61_layers_on_4_stages():
    assert default_layers_per_stage("vllm", 61, 4) == (15, 15, 16, 15)
    assert default_layers_per_stage("sglang", 61, 4) == (15, 15, 15, 16)
    assert default_layers_per_stage("trtllm", 61, 4) == (16, 15, 15, 15)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_falcon_7b_with_71_heads_runs_on_one_device_only(engine):
    assert legal_tp(engine, FALCON_7B, max_tp=70) == (1,)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_deepseek_v4_flash_at_tp16_passes_the_head_check_and_fails_on_output_groups(engine):
    assert errors(engine, V4_FLASH, tp=16) == ["tp-output-groups"]
    assert errors(engine, V4_FLASH, tp=8) == []


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_forty_heads_do_not_split_sixteen_ways(engine):
    assert "tp-heads" in errors(engine, QWEN25_32B_AWQ, tp=16)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_qwen2_5_7b_splits_one_two_or_four_ways_and_not_seven(engine):
    assert legal_tp(engine, QWEN25_7B) == (1, 2, 4)
    finding = next(f for f in check(QWEN25_7B, Strategy(tp=7, engine=engine)) if f.code == "tp-kv-heads")
    assert finding.fix is not None and "tp 1, 2, 4 pass every rule" in finding.fix
    assert "k_proj" in finding.message and "tp(7)" in finding.message


# Experts ----------------------------------------


def test_vllm_expert_parallelism_is_all_ranks_or_none():
    assert errors("vllm", DEEPSEEK_V3, tp=16) == []
    assert errors("vllm", DEEPSEEK_V3, tp=1, ep=16) == []
    assert errors("vllm", DEEPSEEK_V3, tp=4, attn_dp=4, ep=16) == []
    assert errors("vllm", DEEPSEEK_V3, tp=8, ep=2) == ["ep-switch"]
    assert errors("sglang", DEEPSEEK_V3, tp=8, ep=2) == []


def test_copies_of_experts_inside_a_group_cannot_be_said_to_either_engine():
    assert "ep-switch" in errors("vllm", DEEPSEEK_V3, tp=8, ep=4, etp=1)
    assert errors("sglang", DEEPSEEK_V3, tp=8, ep=4, etp=1) == ["edp"]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_expert_parallelism_on_a_dense_model_is_an_error(engine):
    assert "ep-not-moe" in errors(engine, LLAMA3_70B, tp=8, ep=8)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_attention_data_parallelism_of_a_dense_model_is_replicas(engine):
    strategy = Strategy(tp=4, attn_dp=2, engine=engine)
    finding = next(f for f in check(LLAMA3_70B, strategy) if f.code == "attn-dp-dense")
    assert finding.severity == "error" and finding.fix is not None and "dp 2" in finding.fix


def test_ten_experts_on_four_ranks_are_uneven_in_vllm_and_refused_by_sglang():
    assert errors("vllm", TEN_EXPERTS, tp=4, ep=4) == []
    assert "ep-uneven" in warnings("vllm", TEN_EXPERTS, tp=4, ep=4)
    assert errors("sglang", TEN_EXPERTS, tp=4, ep=4) == ["ep-even"]


def test_gpt_oss_mxfp4_shards_that_split_a_block_of_32_are_padded_not_refused():
    assert errors("vllm", GPT_OSS_120B, tp=8) == []
    assert "mxfp4-padding" in warnings("vllm", GPT_OSS_120B, tp=8)
    assert "mxfp4-padding" not in warnings("vllm", GPT_OSS_120B, tp=2)


def test_awq_groups_of_128_must_divide_the_k_shard():
    assert errors("vllm", QWEN25_32B_AWQ, tp=2) == []
    odd = QWEN25_32B_AWQ.model_copy(update={"mlp": MLP(intermediate_size=27648 + 128)})
    assert errors("vllm", odd, tp=2) == ["int4-group"]
    assert errors("sglang", odd, tp=2) == ["int4-group"]


def test_fp8_quantised_at_load_has_no_blocks_but_the_released_blocks_are_pointed_out():
    bf16 = QWEN3_235B_FP8.model_copy(update={"weight_dtype": "bf16", "quant_group": None})
    assert errors("sglang", bf16, tp=8, weight_dtype="fp8") == []
    assert "fp8-released-blocks" in warnings("sglang", bf16, tp=8, weight_dtype="fp8")


# Nodes ----------------------------------------


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_sixteen_ranks_need_two_nodes_of_eight(engine):
    assert errors(engine, DEEPSEEK_V3, tp=16, num_nodes=2, devices_per_node=8) == []
    assert errors(engine, DEEPSEEK_V3, tp=16, num_nodes=1, devices_per_node=8) == ["world-nodes"]
    p = placement(engine, Strategy(tp=16), num_nodes=2, devices_per_node=8)
    assert (p.local, p.nodes_per_replica, p.slots, p.nodes) == (8, 2, 1, 2)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@settings(max_examples=60, deadline=None)
@given(
    tp=st.integers(1, 16),
    pp=st.integers(1, 6),
    dp=st.integers(1, 5),
    attn_dp=st.integers(1, 4),
    node=st.integers(1, 16),
)
def test_every_rank_has_a_place_and_no_node_is_overfull(engine, tp, pp, dp, attn_dp, node):
    s = Strategy(tp=tp, pp=pp, dp=dp, attn_dp=attn_dp)
    p = placement(engine, s, devices_per_node=node)
    assert p.local * p.nodes_per_replica == s.replica
    assert p.local * p.slots <= node
    assert p.nodes // p.nodes_per_replica * p.slots >= dp


def test_three_stages_of_four_prefer_whole_tp_groups_per_node_where_there_are_nodes():
    assert placement("vllm", Strategy(tp=4, pp=3), devices_per_node=8).local == 4
    assert placement("vllm", Strategy(tp=4, pp=3), num_nodes=2, devices_per_node=8).local == 6


# Scalar and vectorised rules ----------------------------------------

degree = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16, 32])


@settings(max_examples=400, deadline=None)
@given(
    model=st.sampled_from(MODELS), engine=st.sampled_from(engines()), tp=degree, pp=st.integers(1, 9),
    ep=degree, etp=st.one_of(st.none(), degree), attn_dp=st.sampled_from([1, 2, 4, 16]), cp=st.sampled_from([1, 1, 2]),
    dp=st.integers(1, 4), sp=st.booleans(), num_nodes=st.one_of(st.none(), st.integers(1, 4)),
    weight_dtype=st.sampled_from(["bf16", "fp8", "int4"]), kv_dtype=st.sampled_from(["bf16", "fp8", "int8"]),
    moe_comm=st.sampled_from(["auto", "allgather"]), dcp=st.sampled_from([1, 1, 2, 4]),
    cp_kind=st.sampled_from(["ulysses", "ring"]),
)  # fmt: skip
def test_vectorised_legality_is_what_check_says(
    model, engine, tp, pp, ep, etp, attn_dp, cp, dp, sp, num_nodes, weight_dtype, kv_dtype, moe_comm, dcp, cp_kind
):
    shared = {"weight_dtype": weight_dtype, "kv_dtype": kv_dtype, "sp": sp, "moe_comm": moe_comm, "cp_kind": cp_kind}
    try:
        s = Strategy(tp=tp, pp=pp, ep=ep, etp=etp, attn_dp=attn_dp, cp=cp, dp=dp, dcp=dcp, engine=engine, **shared)
    except ToolError:
        assume(model.moe is not None)
        s = None
    # A second candidate rides along, so that arrays are arrays.
    both = {
        "tp": tp,
        "pp": pp,
        "attn_dp": attn_dp,
        "cp": cp,
        "dp": dp,
        "ep": ep,
        "etp": s.etp if s else etp,
        "dcp": dcp,
    }
    arrays = {k: np.array([v, 1]) for k, v in both.items() if v is not None}
    mask, reason = legal_mask(engine, model, **arrays, **shared, num_nodes=num_nodes, devices_per_node=8)
    if s is None:
        assert not mask[0]
        return
    found = check(model, s, num_nodes=num_nodes, devices_per_node=8)
    first = next((f.code for f in found if f.severity == "error"), "")
    assert (bool(mask[0]), str(reason[0])) == (first == "", first)
    assert legal(engine, model, s, num_nodes=num_nodes, devices_per_node=8) == (first == "")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_one_device_is_legal_for_every_unblocked_model(engine, model):
    """Block scales of fused weights are compared even on one device by SGLang; none of these models has odd ones."""
    assert errors(engine, model, tp=1) == []


@pytest.mark.parametrize("engine", engines())
def test_every_error_names_a_tensor_shows_numbers_its_source_and_a_way_out(engine):
    seen = {}
    for model, tp, ep, attn_dp, sp in itertools.product(MODELS, (3, 7, 32, 256), (1, 4, 256), (1, 3), (False, True)):
        more = {"weight_dtype": model.weight_dtype, "kv_dtype": "fp32", "dcp": 5}
        try:
            s = Strategy(tp=tp, ep=ep, attn_dp=attn_dp, sp=sp, pp=200, **more)
        except ToolError:
            continue
        for f in check(model, s, engine=engine, num_nodes=1, devices_per_node=8):
            seen[f.code] = f
    assert len(seen) > 12
    for f in seen.values():
        assert f.where and f.message.startswith(f.where), f
        assert f"({engine} {latest(engine)} " in f.message, f
        assert f.fix and "\n" not in f.message + f.fix, f
        f.model_dump_json()


def test_an_unknown_engine_or_version_is_answered_with_the_known_ones():
    with pytest.raises(ToolError, match="known: vllm, sglang"):
        latest("lmdeploy")
    with pytest.raises(ToolError, match=r"0\.33\.0"):
        engine_rules("vllm", "0.1")
    assert set(engines()) == {e for e, _ in RULES}


@settings(max_examples=200, deadline=None)
@given(
    engine=st.sampled_from(["vllm", "sglang", "trtllm", "vllm-ascend", "megatron", "mindie"]),
    layers=st.integers(1, 200),
    data=st.data(),
)
def test_default_stages_hold_all_layers_and_differ_by_at_most_one(engine, layers, data):
    pp = data.draw(st.integers(1, layers))
    stages = default_layers_per_stage(engine, layers, pp)
    assert len(stages) == pp and sum(stages) == layers and max(stages) - min(stages) <= 1


def test_more_stages_than_layers_are_refused():
    with pytest.raises(ToolError, match="from 1 to 4"):
        default_layers_per_stage("vllm", 4, 5)
    assert errors("vllm", LLAMA3_70B, pp=81) == ["pp-layers"]
    assert errors("vllm", LLAMA3_70B, pp=2, layers_per_stage=(41, 40)) == ["pp-layers"]


# Memory ----------------------------------------


def test_vllm_requests_92_percent_and_a_stated_reserve_lowers_it():
    s = Strategy(tp=8, batch=64)
    assert memory_fraction("vllm", memory_total_bytes=80e9, strategy=s) == 0.92
    assert memory_fraction("vllm", memory_total_bytes=80e9, strategy=s, memory_reserve=0.15) == 0.85
    assert memory_fraction("vllm", memory_total_bytes=80e9, strategy=s, memory_reserve=0.05) == 0.92


def test_sglang_reserves_ten_gib_on_large_cards_and_the_formula_on_small_ones():
    """Llama-3-70B on H100: 512 + 1.5 * 8192 + 1024 * 8 / 8 + 2 * 64 MiB = 13.6 GiB; a 4090 at tp 1: 7.9 GiB."""
    s = Strategy(tp=8, batch=64)
    reserved = (512 + 1.5 * 8192 + 1024 + 2 * 64) / 1024
    assert memory_fraction("sglang", memory_total_bytes=80 * GIB, strategy=s) == pytest.approx(
        1 - reserved / 80, abs=1e-3
    )
    small = Strategy(tp=1, batch=8, max_num_batched_tokens=2048)
    total = (512 + 1.5 * 2048 + 128 + 16) / 1024
    assert memory_fraction("sglang", memory_total_bytes=24 * GIB, strategy=small) == pytest.approx(
        1 - total / 24, abs=1e-3
    )
    assert memory_fraction("sglang", memory_total_bytes=80 * GIB, strategy=small) == pytest.approx(
        1 - 10 / 80, abs=1e-3
    )


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@settings(max_examples=60, deadline=None)
@given(
    weights=st.floats(0, 2e11), activations=st.floats(0, 2e10), reserve=st.floats(0, 0.5), batch=st.integers(1, 2000)
)
def test_kv_budget_terms_add_up_and_each_cost_lowers_it(engine, weights, activations, reserve, batch):
    def budget(w, a, r):
        return kv_budget(
            engine, memory_total_bytes=80e9, weights_bytes=w, activation_bytes=a, memory_reserve=r,
            strategy=Strategy(tp=8, batch=batch),
        )  # fmt: skip

    here = budget(weights, activations, reserve)
    assert here.total == pytest.approx(sum(t.value for t in here.terms))
    assert here.total < 80e9 * (1 - reserve) - weights
    assert budget(weights + 1e9, activations, reserve).total == pytest.approx(here.total - 1e9)
    assert budget(weights, activations + 1e10, reserve).total <= here.total
    assert all(t.source and t.formula for t in here.terms)


def test_sglang_reserves_graph_padding_per_attention_dp_rank_and_deepep_buffers():
    """16 ranks of 16 sequences: 512 + 1.5 * 8192 + 1024 * 16 / 8 + (2 + 3 * 16) * 16 MiB, then 2 GiB of DeepEP."""
    s = Strategy(tp=1, ep=16, weight_dtype="fp8", batch=256)
    mib = 512 + 1.5 * 8192 + 2048 + (2 + 3 * 16) * 16 + 2048
    got = memory_fraction("sglang", memory_total_bytes=140 * GIB, strategy=s)
    assert got == pytest.approx(1 - mib / (140 * 1024), abs=1e-3)


def test_server_defaults_grow_with_memory():
    assert [server_defaults("vllm", g * GIB, 1)[0] for g in (24, 80, 180)] == [2048, 8192, 16384]
    assert [server_defaults("sglang", g * GIB, 1)[0] for g in (16, 24, 80, 180)] == [2048, 4096, 8192, 16384]


def test_flags_say_the_group_in_each_engines_words():
    wide = Strategy(tp=1, ep=16, weight_dtype="fp8")
    assert parallel_flags("vllm", DEEPSEEK_V3, wide) == (
        ("--tensor-parallel-size", "1"), ("--data-parallel-size", "16"), ("--enable-expert-parallel", None),
    )  # fmt: skip
    sglang = dict(parallel_flags("sglang", DEEPSEEK_V3, wide))
    assert sglang["--tp-size"] == "16" and sglang["--attn-dp-size"] == "16" and sglang["--ep-size"] == "16"
    assert sglang["--moe-dense-tp-size"] == "1"


# A second derivation of legal TP, by another script over 48 published models

EXPLAINED = {
    ("meta-llama/Llama-3.2-1B", "sglang", "fp8"): "heads of 64: a K shard of one head is half a block",
    ("Qwen/Qwen3.5-397B-A17B", "vllm", "bf16"): "linear-attention heads are not in ModelSpec",
    ("Qwen/Qwen3.5-397B-A17B", "sglang", "bf16"): "linear-attention heads are not in ModelSpec",
}


def _spec(row: dict[str, str], native: str) -> ModelSpec:
    def i(key: str) -> int:
        return int(float(row[key] or 0))

    mla = None
    if row["kv_lora_rank"]:
        mla = MLA(
            q_lora_rank=i("q_lora_rank") or None, kv_lora_rank=i("kv_lora_rank"), v_head_dim=i("v_head_dim"),
            qk_nope_head_dim=i("qk_nope_head_dim"), qk_rope_head_dim=i("qk_rope_head_dim"),
        )  # fmt: skip
    layers = i("num_hidden_layers")
    experts, moe_layers = None, None
    if row["n_routed_experts"]:
        shared = i("shared_expert_intermediate") * max(1, i("n_shared_experts"))
        experts = MoE(
            num_experts=i("n_routed_experts"), top_k=i("top_k"), intermediate_size=i("moe_intermediate_size"),
            shared_intermediate_size=shared,
        )  # fmt: skip
        step = i("moe_layer_step") or 1
        moe_layers = tuple(k >= i("first_k_dense") and k % step == step - 1 for k in range(layers))
    return ModelSpec(
        name=row["model_id"], hidden_size=i("hidden_size"), num_hidden_layers=layers, vocab_size=i("vocab_size"),
        attention=Attention(
            num_heads=i("num_attention_heads"), num_kv_heads=i("num_kv_heads"), head_dim=i("head_dim") or 128, mla=mla
        ),
        mlp=MLP(intermediate_size=i("intermediate_size"), gated=row["gated_mlp"] == "True")
        if row["intermediate_size"] else None,
        moe=experts, moe_layers=moe_layers, weight_dtype=native, quant_group=128 if native == "fp8" else None,
        architecture="DeepseekV4ForCausalLM" if "DeepSeek-V4" in row["model_id"] else None,
    )  # fmt: skip


@pytest.mark.shared
def test_legal_tp_of_published_models_equals_an_independent_derivation():
    if not CATALOGUE.exists():
        pytest.skip("the open model table is not beside this checkout")
    columns = {
        ("vllm", "bf16"): "legal_tp_vllm033_bf16", ("sglang", "bf16"): "legal_tp_sglang0523_bf16",
        ("vllm", "fp8"): "legal_tp_fp8block128_vllm033_refined",
        ("sglang", "fp8"): "legal_tp_fp8block128_strict_sglang0523",
    }  # fmt: skip
    compared = 0
    with CATALOGUE.open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    for row, (engine, dtype) in itertools.product(rows, columns):
        published = row[columns[engine, dtype]]
        if published == "n/a" or not (row["intermediate_size"] or row["n_routed_experts"]):
            continue
        same = legal_tp(engine, _spec(row, dtype)) == tuple(map(int, published.split()))
        assert same != ((row["model_id"], engine, dtype) in EXPLAINED), (row["model_id"], engine, dtype)
        compared += 1
    assert compared > 150
