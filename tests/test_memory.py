"""What models weigh, what their caches hold, and how both divide over devices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge.catalog import load_model
from tools.graph.build import all_sizes
from tools.memory import (
    KV_BLOCK,
    Dtypes,
    activation_sizes,
    body_activation_bytes,
    body_kv_bytes,
    body_kv_bytes_per_token,
    body_weight_bytes,
    kv_budget_bytes,
    kv_bytes_per_token,
    memory,
    model_weight_bytes,
    num_parameters,
    parameters_by_role,
    rank_kv_bytes,
    rank_weight_bytes,
    stage_kv_bytes_per_token,
    stage_weight_bytes,
)
from tools.partition.lower import Program, lower, partition_layer, placement_of
from tools.partition.mesh import Mesh, build_mesh
from tools.spec.base import ToolError
from tools.spec.model import ModelSpec, dtype_bytes
from tools.spec.strategy import Strategy

GiB, KiB, GB = 2**30, 2**10, 1e9
H100 = 79.6 * GiB


def model(name: str) -> ModelSpec:
    return load_model(name).model


def program(name: str, **strategy: object) -> Program:
    m = model(name)
    return lower(m, Strategy(**strategy), "prefill", all_sizes(m, batch_size=1, seq_len=64, kv_len=64))


# ------------------------------------------------------------------------------------------------------ published sizes

PUBLISHED_PARAMETERS = {
    "llama-3-70b": 70.55e9, "llama-3.1-405b": 405.85e9, "mixtral-8x7b": 46.70e9, "deepseek-v3": 671.03e9,
    "qwen3-235b-a22b": 235.09e9, "gpt-oss-120b": 116.83e9, "gemma-2-9b": 9.242e9, "gpt2": 124.44e6,
    "qwen2.5-7b": 7.616e9, "falcon-40b": 41.84e9, "bloom-7b1": 7.069e9, "phi-2": 2.780e9, "opt-6.7b": 6.658e9,
}  # fmt: skip
"""Parameters of the released checkpoints (their model cards and safetensors indices)."""


@pytest.mark.parametrize(("name", "published"), PUBLISHED_PARAMETERS.items())
def test_the_graph_has_as_many_parameters_as_the_release(name: str, published: float) -> None:
    assert num_parameters(model(name)) == pytest.approx(published, rel=1e-3)


def test_llama3_70b_weighs_141_gb_in_bf16_and_17_6_gb_per_gpu_at_tp8() -> None:
    assert model_weight_bytes(model("llama-3-70b"), "bf16") == pytest.approx(141.1 * GB, rel=1e-3)
    held = rank_weight_bytes(program("llama-3-70b", tp=8))
    assert max(held.values()) == pytest.approx(17.6 * GB, rel=5e-3)
    assert len(set(held.values())) == 1


def test_llama3_70b_needs_320_kib_of_kv_cache_per_token() -> None:
    assert kv_bytes_per_token(model("llama-3-70b")) == 320 * KiB


def test_deepseek_v3_keeps_70272_bytes_of_latent_per_token() -> None:
    """arXiv 2412.19437 and 2405.04434: (512 + 64) · 61 layers, 2 bytes: 70 KB, quoted by the vendor."""
    assert kv_bytes_per_token(model("deepseek-v3")) == 61 * 576 * 2 == 70_272


def test_deepseek_v3_fp8_on_pp4_tp8_fills_the_third_stage_most() -> None:
    """A user's 32-GPU log shows 16.96 GiB for stage 0; dividing every layer by 8 gives 16.5, 20.1, 21.4, 20.3. The
    latent projections and the router are whole on every rank, which is the difference."""
    p = program("deepseek-v3", tp=8, pp=4, layers_per_stage=(15, 15, 16, 15), weight_dtype="fp8")
    held = [rank_weight_bytes(p)[s.ranks[0]] / GiB for s in p.stages]
    assert held == pytest.approx([16.5, 20.1, 21.4, 20.3], rel=0.02)
    assert 16.5 < held[0] < 16.96


def test_what_tp_replicates_explains_deepseek_v3_exactly() -> None:
    """Second derivation: an even eighth of everything, plus seven eighths of q_a, kv_a, router and norms."""
    m = model("deepseek-v3")
    h, d = m.hidden_size, Dtypes.of(m, "fp8", "bf16")
    assert m.attention.mla is not None and m.attention.mla.q_lora_rank and m.moe is not None
    latent = h * (m.attention.mla.q_lora_rank + m.attention.mla.kv_lora_rank + m.attention.mla.qk_rope_head_dim)
    norms = 2 * h + m.attention.mla.q_lora_rank + m.attention.mla.kv_lora_rank
    whole = 61 * (latent * d.matrix + norms * d.plain) + 58 * (h + 1) * m.moe.num_experts * d.plain + h * d.plain
    total = model_weight_bytes(m, "fp8")
    assert max(rank_weight_bytes(program("deepseek-v3", tp=8, weight_dtype="fp8")).values()) == pytest.approx(
        total / 8 + whole * 7 / 8, rel=1e-12
    )


def test_gpt_oss_weighs_what_its_files_do() -> None:
    """The released checkpoints: 65.2 GB (120b) and 13.8 GB (20b): mxfp4 experts, the rest bf16."""
    assert model_weight_bytes(model("gpt-oss-120b")) == pytest.approx(65.2 * GB, rel=5e-3)
    assert model_weight_bytes(model("gpt-oss-20b")) == pytest.approx(13.8 * GB, rel=5e-3)


# ----------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("name", ["llama-3-70b", "deepseek-v3", "qwen3-235b-a22b", "gpt-oss-120b", "gemma-2-9b"])
@pytest.mark.parametrize("strategy", [{}, {"tp": 2}, {"tp": 8, "pp": 3}, {"tp": 4, "attn_dp": 2, "sp": True}])
def test_the_fullest_rank_is_the_first_of_its_stage(name: str, strategy: dict) -> None:
    """So the walk with ceilings is exact, not a bound."""
    p = program(name, **strategy)
    exact = rank_weight_bytes(p)
    sizes = all_sizes(p.model, batch_size=1, seq_len=1, kv_len=1)
    for stage in p.stages:
        held = [exact[r] for r in stage.ranks]
        assert held[0] == max(held)
        walked = stage_weight_bytes(stage, sizes, p.mesh, Dtypes.of_strategy(p.model, p.strategy))
        assert walked == pytest.approx(held[0], rel=1e-12)


def test_ten_experts_on_four_ranks_are_three_three_two_two() -> None:
    m = model("mixtral-8x7b")
    ten = m.model_copy(update={"moe": m.moe.model_copy(update={"num_experts": 10})}) if m.moe else m
    p = lower(ten, Strategy(tp=4, ep=4), "prefill", {})
    held = list(rank_weight_bytes(p).values())
    one = 3 * ten.hidden_size * ten.moe.intermediate_size * ten.num_hidden_layers * 2  # type: ignore[union-attr]
    assert [round((h - held[3]) / one, 9) for h in held] == [1, 1, 0, 0]


def test_kv_heads_fewer_than_tp_are_replicated() -> None:
    p = program("llama-3-70b", tp=16)
    held = rank_kv_bytes(p, batch=3, context=100)
    assert sum(held.values()) == 2 * kv_bytes_per_token(p.model) * 300


def test_every_rank_of_a_tp_group_keeps_the_whole_latent() -> None:
    p = program("deepseek-v3", tp=8)
    assert set(rank_kv_bytes(p, batch=2, context=50).values()) == {kv_bytes_per_token(p.model) * 100}


def test_attention_data_parallelism_deals_sequences_out() -> None:
    p = program("deepseek-v3", tp=2, attn_dp=4, ep=8)
    held = rank_kv_bytes(p, batch=6, context=50)
    per_sequence = kv_bytes_per_token(p.model) * 50
    assert [held[r] / per_sequence for r in range(8)] == [2, 2, 2, 2, 1, 1, 1, 1]


def test_decode_context_parallelism_deals_positions_out() -> None:
    p = program("deepseek-v3", tp=8, dcp=4)
    m, dtypes = p.model, Dtypes.of_strategy(p.model, p.strategy)
    sizes = all_sizes(m, batch_size=1, seq_len=1, kv_len=64)
    assert stage_kv_bytes_per_token(p.stages[0], sizes, p.mesh, dtypes) == kv_bytes_per_token(m) / 4
    assert sum(rank_kv_bytes(p, batch=1, context=64).values()) == kv_bytes_per_token(m) * 64 * 2


def test_tied_embeddings_are_kept_once_on_a_rank_that_embeds_and_ends() -> None:
    one, two = program("gemma-2-9b", tp=1), program("gemma-2-9b", tp=1, pp=2)
    table = two.model.vocab_size * two.model.hidden_size * 2
    assert sum(rank_weight_bytes(two).values()) - sum(rank_weight_bytes(one).values()) == table


def test_quantised_experts_leave_attention_16_bit() -> None:
    m = model("gpt-oss-120b")
    native, online = Dtypes.of(m, "mxfp4", "bf16"), Dtypes.of(m, "fp8", "bf16")
    assert (native.bytes("matrix"), native.bytes("expert_matrix")) == (2.0, dtype_bytes("mxfp4"))
    assert (online.bytes("matrix"), online.bytes("expert_matrix")) == (1.0, 1.0)


def test_a_vocabulary_that_does_not_divide_by_64_is_padded_in_memory_only() -> None:
    m = model("gpt2")
    assert parameters_by_role(m, padded=True)["embedding"] - parameters_by_role(m)["embedding"] == 47 * m.hidden_size


# ------------------------------------------------------------------------------------------------- windows, activations


def _layer(m: ModelSpec, sliding: bool, **strategy: object) -> tuple[object, Mesh]:
    s = Strategy(**strategy)
    mesh = build_mesh(s, m.attention.num_kv_heads)
    kind = next(k for k in m.layers() if k.sliding == sliding)
    return partition_layer(m, kind, placement_of(s, mesh, "prefill")), mesh


def test_sliding_layers_hold_their_window_on_vllm_and_everything_elsewhere() -> None:
    m = model("gemma-2-9b")
    sizes, d = all_sizes(m, batch_size=1, seq_len=1, kv_len=1), Dtypes.of(m, "bf16", "bf16")
    held = {}
    for sliding in (True, False):
        body, mesh = _layer(m, sliding)
        for engine in ("vllm", "sglang"):
            held[sliding, engine] = body_kv_bytes(body, sizes, mesh, d, sequences=3, context=8000, engine=engine)  # type: ignore[arg-type]
    assert held[True, "sglang"] == held[False, "sglang"] == held[False, "vllm"]
    assert held[True, "vllm"] / held[False, "vllm"] == (4096 + KV_BLOCK) / 8000


def test_attention_scores_cost_no_memory() -> None:
    """They live inside one kernel: doubling the context at equal tokens leaves the peak alone."""
    m = model("llama-3-70b")
    body, mesh = _layer(m, False, tp=8)
    d = Dtypes.of(m, "bf16", "bf16")
    near, far = (all_sizes(m, batch_size=1, seq_len=4096, kv_len=n) for n in (4096, 65536))
    assert body_activation_bytes(body, near, mesh, d) == body_activation_bytes(body, far, mesh, d)  # type: ignore[arg-type]


def test_the_activation_peak_of_a_dense_layer_is_the_residual_and_the_widest_pair() -> None:
    """At tp1 the peak is in the MLP: x and the normalised x beside up and gate, or up, gate and their activation."""
    m = model("llama-3-70b")
    assert m.mlp is not None
    body, mesh = _layer(m, False)
    n, h, f = 512, m.hidden_size, m.mlp.intermediate_size
    peak = body_activation_bytes(
        body, all_sizes(m, batch_size=1, seq_len=n, kv_len=n), mesh, Dtypes.of(m, "bf16", "bf16")
    )  # type: ignore[arg-type]
    assert peak == 2 * n * max(2 * h + 2 * f, h + 3 * f)


@given(tokens=st.integers(1, 9000), batch=st.integers(1, 600), attn_dp=st.integers(1, 8))
def test_the_profiled_step_has_its_tokens_on_every_rank(tokens: int, batch: int, attn_dp: int) -> None:
    sizes = activation_sizes(model("qwen2.5-7b"), attn_dp=attn_dp, batch=batch, max_num_batched_tokens=tokens)
    assert sizes["batch_size"] * sizes["seq_len"] >= tokens * attn_dp
    assert sizes["batch_size"] <= attn_dp * -(-batch // attn_dp)
    assert sizes["batch_size"] // attn_dp * sizes["seq_len"] < tokens + sizes["batch_size"]


# ------------------------------------------------------------------------------------------------------- arrays, engine


@settings(max_examples=25, deadline=None)
@given(tps=st.lists(st.sampled_from([2, 4, 8]), min_size=1, max_size=4), data=st.data())
def test_one_walk_over_arrays_equals_one_walk_per_candidate(tps: list[int], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["llama-3-70b", "deepseek-v3", "qwen3-235b-a22b", "gemma-2-9b"]))
    m = model(name)
    tps = [t for t in tps if t <= m.attention.num_kv_heads] or [2]
    d = Dtypes.of(m, "fp8", "bf16")
    tokens = data.draw(st.lists(st.integers(64, 9000), min_size=len(tps), max_size=len(tps)))
    meshes = [build_mesh(Strategy(tp=t), m.attention.num_kv_heads) for t in tps]
    assert len({mesh.shape for mesh in meshes}) == 1
    degrees = {a: np.array([mesh.degrees[a] for mesh in meshes]) for a in meshes[0].shape.atoms}
    together = Mesh(meshes[0].shape, degrees)
    body = partition_layer(
        m, m.layer_kind(m.num_hidden_layers - 1), placement_of(Strategy(tp=tps[0]), meshes[0], "prefill")
    )
    many = all_sizes(m, batch_size=1, seq_len=np.array(tokens), kv_len=np.array(tokens))
    for i, mesh in enumerate(meshes):
        one = all_sizes(m, batch_size=1, seq_len=tokens[i], kv_len=tokens[i])
        for walk in (body_weight_bytes, body_kv_bytes_per_token, body_activation_bytes):
            got = np.broadcast_to(walk(body, many, together, d), len(tps))[i]
            assert got == walk(body, one, mesh, d), walk.__name__


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_what_is_free_is_the_engines_kv_budget_less_the_kv_cache(engine: str) -> None:
    p = program("llama-3-70b", tp=8, engine=engine, batch=48)
    (s,) = memory(p, capacity_bytes=H100, context=4096, memory_reserve=0.1)
    budget = kv_budget_bytes(
        p.strategy, capacity_bytes=H100, weights_bytes=s.weights_bytes, activation_bytes=s.activation_bytes, batch=48,
        memory_reserve=0.1,
    )  # fmt: skip
    assert s.free_bytes == pytest.approx(budget.total - s.kv_bytes, abs=2)
    assert s.terms.total == pytest.approx(s.total_bytes, abs=2)
    assert s.overhead_bytes > 0 and s.reserve_bytes >= 0


def test_memory_is_the_same_from_either_phase() -> None:
    m, s = model("deepseek-v3"), Strategy(tp=8, pp=2, weight_dtype="fp8")
    both = [memory(lower(m, s, phase, {}), capacity_bytes=H100, context=4096) for phase in ("prefill", "decode")]
    assert both[0] == both[1]


def test_nothing_to_hold_is_an_error_with_numbers() -> None:
    with pytest.raises(ToolError, match=r"batch\(0\) sequences of context\(10\)"):
        memory(program("gpt2"), capacity_bytes=H100, context=10, batch=0)
