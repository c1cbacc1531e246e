"""Linear attention and picked positions: proven under every axis, states counted, nothing that grows where nothing does."""

from __future__ import annotations

import numpy as np
import pytest

from knowledge.catalog import load_model
from tools.checks import run_checks
from tools.dag.build import build_dag
from tools.graph.build import all_sizes, layer_body, model_sizes
from tools.graph.ir import Op
from tools.graph.semantics import Place, recur
from tools.memory import kv_bytes_per_token, memory, state_bytes_per_sequence
from tools.oracle.pools import prove_pools
from tools.oracle.prove import prove
from tools.partition.lower import lower
from tools.partition.pools import handovers, lower_pools
from tools.spec.base import Refused, ToolError
from tools.spec.strategy import Strategy

HYBRID, SPARSE = load_model("qwen3-next-80b-a3b").model, load_model("deepseek-v3.2").model
NEMOTRON, GRANITE = load_model("nemotron-3-nano").model, load_model("granite-4.0-h-small").model
GIB = 1024**3


@pytest.mark.parametrize(
    "degrees",
    [
        {"tp": 4, "sp": True}, {"tp": 2, "attn_dp": 2, "ep": 4}, {"tp": 2, "cp": 2, "pp": 2}, {"cp": 4, "cp_kind": "ring"},
        {"tp": 8, "dcp": 2}, {"tp": 4, "axes": {"hidden_tp": 2}}, {"pp": 2, "seq_slices": 3},
        {"tp": 2, "attn_dp": 2, "expert_devices": 4, "ep": 4}, {"tp": 2, "attn_pool": 2},
    ],
    ids=str,
)  # fmt: skip
def test_a_hybrid_is_proven_under_every_axis(degrees: dict) -> None:
    for proof in prove(HYBRID, Strategy.model_validate(degrees), batch_size=8, seq_len=17, decode_steps=2).values():
        assert proof.ok and proof.max_relative_error <= 1e-9


@pytest.mark.parametrize(
    "degrees",
    [
        {"tp": 4, "sp": True},
        {"tp": 2, "attn_dp": 2, "ep": 4},
        {"tp": 2, "cp": 2},
        {"tp": 8, "dcp": 2},
        {"pp": 2, "seq_slices": 3},
    ],
    ids=str,
)
def test_picked_positions_are_proven_under_every_axis(degrees: dict) -> None:
    for proof in prove(SPARSE, Strategy.model_validate(degrees), batch_size=8, seq_len=17, decode_steps=2).values():
        assert proof.ok and proof.max_relative_error <= 1e-9


@pytest.mark.parametrize(
    "degrees",
    [
        {"tp": 2, "sp": True}, {"tp": 2, "attn_dp": 2, "ep": 4}, {"tp": 2, "cp": 2, "pp": 2}, {"cp": 4, "cp_kind": "ring"},
        {"tp": 4, "axes": {"hidden_tp": 2}}, {"pp": 2, "seq_slices": 3}, {"tp": 2, "attn_dp": 2, "expert_devices": 4, "ep": 4},
        {"tp": 2, "attn_pool": 2},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("model", [NEMOTRON, GRANITE], ids=lambda m: m.name)
def test_mamba_layers_are_proven_under_every_axis(model, degrees: dict) -> None:
    """Groups of heads with their own key (Nemotron), one key for all (Granite); layers that are one half only (Nemotron)."""
    for proof in prove(model, Strategy.model_validate(degrees), batch_size=8, seq_len=17, decode_steps=2).values():
        assert proof.ok and proof.max_relative_error <= 1e-9


@pytest.mark.parametrize(
    "degrees",
    [
        {"tp": 2, "sp": True},
        {"tp": 2, "attn_dp": 2, "ep": 4},
        {"tp": 2, "attn_dp": 2, "ep": 4, "ep_nodes": 2},
        {"tp": 4, "axes": {"hidden_tp": 2}},
    ],
    ids=str,
)
def test_experts_in_a_latent_space_are_proven_under_the_axes_that_move_tokens(degrees: dict) -> None:
    model = load_model("nemotron-3-super").model
    for proof in prove(model, Strategy.model_validate(degrees), batch_size=8, seq_len=17, decode_steps=2).values():
        assert proof.ok and proof.max_relative_error <= 1e-9


def test_what_is_dispatched_is_as_wide_as_the_latent_space() -> None:
    """Nemotron-3-Super: 1,024 of 4,096 channels travel to the experts; 22 of 512 of them for a token."""
    model = load_model("nemotron-3-super").model
    body = layer_body(model, next(k for k in model.layers() if k.ffn == "moe"), "prefill")
    assert [body.tensors[n].dims[-1] for n in ("dispatch", "expert_down", "combine")] == ["moe_latent"] * 3
    assert model_sizes(model)["moe_latent"] == 1024


@pytest.mark.parametrize(
    ("model", "degrees", "said"),
    [
        (HYBRID, {"tp": 32}, r"heads of linear attention \(16\) % tp\(32\)"),
        (NEMOTRON, {"tp": 16}, r"heads of linear attention \(8\) % tp\(16\) = 8; tp must be one of \[1, 2, 4, 8\]"),
        (SPARSE, {"cp": 4, "cp_kind": "ring"}, "picks among all of them"),
        (SPARSE, {"tp": 2, "attn_pool": 2}, "indexer"),
    ],
)
def test_what_cannot_be_is_refused_with_its_numbers(model, degrees: dict, said: str) -> None:
    with pytest.raises((ToolError, Refused), match=said):
        lower(model, Strategy.model_validate(degrees), "prefill", {})


@pytest.mark.parametrize(
    "degrees",
    [
        {"tp": 4},
        {"tp": 4, "weight_dtype": "fp32"},
        {"tp": 2, "attn_dp": 2, "ep": 4},
        {"tp": 2, "cp": 2},
        {"tp": 4, "pp": 3},
        {"tp": 4, "axes": {"hidden_tp": 2}},
    ],
)
@pytest.mark.parametrize("model", [HYBRID, SPARSE, NEMOTRON, GRANITE], ids=lambda m: m.name)
def test_devices_together_hold_the_states_and_keys_of_the_model(model, degrees: dict) -> None:
    sizes = all_sizes(model, batch_size=4, seq_len=64, kv_len=64)
    program = lower(model, Strategy.model_validate(degrees), "prefill", sizes)
    found = run_checks([program], only=("conservation", "collectives", "divisibility"))
    assert [f.message for f in found if f.severity == "error"] == []


def test_a_sequence_of_linear_attention_takes_the_same_at_any_length() -> None:
    """Qwen3-Next: 36 of 48 layers keep 32 heads x 128 x 128 x 4 B and 3 inputs of 8,192 channels; 12 layers keep 2 KiB a token."""
    assert state_bytes_per_sequence(HYBRID) == 36 * (32 * 128 * 128 * 4 + 3 * 8192 * 2)
    assert kv_bytes_per_token(HYBRID) == 12 * 2 * 2 * 256 * 2
    program = lower(HYBRID, Strategy(tp=2, engine="sglang"), "decode", {})
    held = [memory(program, capacity_bytes=141e9, context=c, batch=16)[0].kv_bytes for c in (4096, 8192, 16384)]
    assert held[2] - held[1] == pytest.approx(2 * (held[1] - held[0]))
    assert held[0] - (held[1] - held[0]) == pytest.approx(16 * state_bytes_per_sequence(HYBRID) / 2)


def test_a_sequence_takes_what_its_mamba_layers_keep() -> None:
    """Nemotron-3-Nano: 23 layers keep 64 heads x 128 x 64 x 4 B and 3 inputs of 4,096 + 2 x 8 x 128 channels; 6 layers keep
    2 x 2 heads x 128 x 2 B a token, the other 23 nothing. Granite: each rank of tp has its own copy of the one B and C."""
    assert state_bytes_per_sequence(NEMOTRON) == 23 * (64 * 128 * 64 * 4 + 3 * 6144 * 2)
    assert kv_bytes_per_token(NEMOTRON) == 6 * 2 * 2 * 128 * 2
    held = []
    for tp in (1, 4):
        program = lower(GRANITE, Strategy(tp=tp, engine="sglang"), "decode", {})
        held.append([tp * memory(program, capacity_bytes=141e9, context=c, batch=16)[0].kv_bytes for c in (4096, 8192)])
    assert held[0][0] - (held[0][1] - held[0][0]) == pytest.approx(16 * state_bytes_per_sequence(GRANITE))
    assert held[1][0] - held[0][0] == pytest.approx(3 * 16 * 36 * 3 * 2 * 128 * 2)


def test_the_indexer_adds_132_bytes_a_token_and_layer() -> None:
    v3 = load_model("deepseek-v3").model
    assert kv_bytes_per_token(SPARSE) - kv_bytes_per_token(v3) == 61 * 132


def test_the_recurrence_is_the_one_of_state_space_duality() -> None:
    """arXiv 2405.21060, eq. 1 and §3: y = (L ∘ C B^T) x, where L_ts = exp(g_{s+1} + … + g_t)."""
    rng = np.random.default_rng(1)
    b, c, x = (rng.normal(size=(1, 6, n)) for n in (3, 3, 4))
    x, g = x[:, :, None, :], -rng.uniform(size=(1, 6, 1))
    dims = ("batch_size", "seq_len", "lin_heads")
    place = Place(lambda d: np.arange(0), 0, None, (*dims, "lin_dk", "lin_dv"))  # type: ignore[arg-type]
    op = Op("s", "recur", (), "s", "", "")
    states, _ = recur(op, (b, x, g), place, ((*dims[:2], "lin_dk"), (*dims, "lin_dv"), dims), None)
    total = np.cumsum(g[0, :, 0])
    decay = np.tril(np.exp(total[:, None] - total[None, :]))
    np.testing.assert_allclose(
        np.einsum("tk,tkv->tv", c[0], states[0, :, 0]), (decay * (c[0] @ b[0].T)) @ x[0, :, 0], rtol=1e-12
    )


def test_the_recurrence_is_the_one_that_gated_delta_networks_state() -> None:
    """arXiv 2412.06464, eq. 10: S_t = S_{t-1} α_t (I - β_t k_t k_t^T) + β_t v_t k_t^T, there with S transposed."""
    rng = np.random.default_rng(0)
    k, v = rng.normal(size=(1, 5, 1, 3)), rng.normal(size=(1, 5, 1, 4))
    g, beta = -rng.uniform(size=(1, 5, 1)), rng.uniform(size=(1, 5, 1))
    dims = ("batch_size", "seq_len", "lin_heads")
    out = (*dims, "lin_dk", "lin_dv")
    op = Op("s", "recur", (), "s", "", "", "delta")
    place = Place(lambda d: np.arange(0), 0, None, out)  # type: ignore[arg-type]
    states, last = recur(op, (k, v, g, beta), place, ((*dims, "lin_dk"), (*dims, "lin_dv"), dims, dims), None)
    s = np.zeros((4, 3))
    for t in range(5):
        kt, vt, a, b = k[0, t, 0], v[0, t, 0], np.exp(g[0, t, 0]), beta[0, t, 0]
        s = s @ (a * (np.eye(3) - b * np.outer(kt, kt))) + b * np.outer(vt, kt)
        np.testing.assert_allclose(states[0, t, 0], s.T, rtol=1e-12)
    np.testing.assert_allclose(last[0, 0], s.T, rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["qwen3-next-80b-a3b", "kimi-linear-48b-a3b", "nemotron-3-nano", "granite-4.0-h-small"]
)
def test_states_cross_from_the_prefill_to_the_decode_pool(name: str) -> None:
    """Into another layout; without them the decode pool would start from nothing."""
    model = load_model(name).model
    prefill, decode = Strategy(tp=4), Strategy(tp=2, attn_dp=2, ep=4)
    for proof in prove_pools(model, prefill, decode, batch_size=8, seq_len=17, decode_steps=2).values():
        assert proof.ok and proof.max_relative_error <= 1e-9
    sizes = all_sizes(model, batch_size=4, seq_len=64, kv_len=64)
    handed = {h.cache: h for h in handovers(lower_pools(model, prefill, decode, sizes, {**sizes, "seq_len": 1}))}
    assert {"lin_states", "lin_q_conv", "lin_k_conv", "lin_v_conv"} < set(handed)
    assert "seq_len" not in handed["lin_states"].lengths({k: int(v) for k, v in sizes.items()})


def test_slices_of_a_prompt_hand_their_states_on() -> None:
    sizes = all_sizes(HYBRID, batch_size=2, seq_len=64, kv_len=64)
    dag = build_dag(lower(HYBRID, Strategy(pp=2, seq_slices=2), "prefill", sizes))
    states = [n for n in dag.nodes if n.operator.startswith("lin_states")]
    assert states and all(any(p.tensor == "lin_states_kept" for p in n.outputs) for n in states)
    later = [n for n in states if any(p.tensor == "lin_states_kept" for p in n.inputs)]
    assert len(later) == len(states) // 2
