"""RoPE scalings: read from configs, right at their limits, the same on many devices as on one. Their logits: test_goldens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from knowledge.catalog import load_model
from knowledge.hf_config import model_from_config
from tools.graph.build import layer_body
from tools.graph.rope import attention_factor, inverse_frequencies
from tools.oracle.prove import prove
from tools.spec.base import Refused, ToolError
from tools.spec.model import ModelSpec, RopeScaling
from tools.spec.strategy import Strategy

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0,
}  # fmt: skip


def scaled(rope: dict[str, Any], **more: Any) -> ModelSpec:
    return model_from_config({**LLAMA, "rope_scaling": rope, **more}, "llama")


def test_llama_3_1_keeps_its_fast_pairs_and_stretches_its_slow_ones_eightfold() -> None:
    """Wavelengths below 8192 / 4 positions stay, above 8192 / 1 they grow by 8 (Meta's apply_scaling)."""
    s = load_model("llama-3.1-8b").model.position.scaling
    assert s is not None and s.kind == "llama3"
    plain, got = inverse_frequencies(500000.0, 128, None, 1), inverse_frequencies(500000.0, 128, s, 1)
    wave = 2 * np.pi / plain
    assert got[wave < 2048] == pytest.approx(plain[wave < 2048])
    assert got[wave > 8192] == pytest.approx(plain[wave > 8192] / 8)
    between = (wave > 2048) & (wave < 8192)
    assert between.any() and (got[between] < plain[between]).all() and (got[between] > plain[between] / 8).all()


def test_deepseek_v3_puts_its_temperature_into_the_scores_and_not_into_the_rotation() -> None:
    """mscale = mscale_all_dim = 1: their ratio is 1, and the square of 0.1 ln 40 + 1 multiplies all scores."""
    m = load_model("deepseek-v3").model
    assert m.position.scaling is not None and m.position.scaling.attention_factor == 1.0
    assert m.attention.scale == pytest.approx(192**-0.5 * (0.1 * np.log(40) + 1) ** 2)


def test_yarn_without_mscale_turns_longer_vectors() -> None:
    """arXiv 2309.00071, eq. 22: 0.1 ln s + 1."""
    s = load_model("gpt-oss-120b").model.position.scaling
    assert s is not None and attention_factor(s, 1) == pytest.approx(0.1 * np.log(32) + 1) and not s.truncate


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_a_factor_of_one_stretches_nothing(kind: Any) -> None:
    s = RopeScaling(kind=kind, factor=1.0, original=4096)
    assert inverse_frequencies(1e4, 64, s, 100000) == pytest.approx(inverse_frequencies(1e4, 64, None, 1))


def test_dynamic_ntk_starts_beyond_the_original_context_and_slows_every_pair_but_the_first() -> None:
    s = RopeScaling(kind="dynamic", factor=2.0, original=4096)
    plain = inverse_frequencies(1e4, 64, None, 1)
    assert inverse_frequencies(1e4, 64, s, 4096) == pytest.approx(plain)
    longer = inverse_frequencies(1e4, 64, s, 8192)
    assert longer[0] == plain[0] and (longer[1:] < plain[1:]).all()


def test_dynamic_ntk_of_a_single_pair_leaves_it_as_it_is() -> None:
    scaling = RopeScaling(kind="dynamic", factor=4.0, original=8)
    assert inverse_frequencies(10000.0, 2, scaling, 64) == pytest.approx([1.0])


def test_longrope_takes_its_long_factors_beyond_the_original_context() -> None:
    pairs = [1.0 + i / 10 for i in range(64)]
    rope = {"type": "su", "short_factor": [1.0] * 64, "long_factor": pairs, "original_max_position_embeddings": 4096}
    s = scaled(rope).position.scaling
    assert s is not None and s.kind == "longrope"
    plain = inverse_frequencies(5e5, 128, None, 1)
    assert inverse_frequencies(5e5, 128, s, 4096) == pytest.approx(plain)
    assert inverse_frequencies(5e5, 128, s, 4097) == pytest.approx(plain / pairs)
    # Phi-3: sqrt(1 + ln(max / original) / ln(original))
    assert s.attention_factor == pytest.approx(np.sqrt(1 + np.log(32) / np.log(4096)))


@pytest.mark.parametrize("rope", [None, {"type": "default"}, {"type": "mrope", "mrope_section": [16, 24, 24]}], ids=str)
def test_text_of_a_multimodal_model_turns_as_plain_rope(rope: dict[str, Any] | None) -> None:
    m = model_from_config({**LLAMA, "rope_scaling": rope} if rope else LLAMA, "llama")
    assert m.position.scaling is None and not m.unsupported


def test_gemma_3_turns_sliding_layers_by_a_base_of_their_own() -> None:
    m = load_model("gemma-3-27b").model
    assert (m.position.theta, m.position.sliding_theta) == (1e6, 1e4)
    found = {}
    for kind in dict.fromkeys(m.layers()):
        (op, *_) = [op for op in layer_body(m, kind, "prefill").ops if op.kind == "rope"]
        found[kind.sliding] = op.attrs["theta"]
    assert found == {True: 1e4, False: 1e6}


def test_an_unknown_scaling_is_refused_by_name() -> None:
    m = scaled({"rope_type": "spiral", "factor": 4.0})
    with pytest.raises(Refused, match="RoPE scaling of type spiral"):
        layer_body(m, m.layer_kind(0), "prefill")


def test_longrope_with_too_few_factors_is_refused_with_both_counts() -> None:
    with pytest.raises(ToolError, match="64 pairs, got 3"):
        scaled({"type": "longrope", "short_factor": [1, 1, 1], "long_factor": [1] * 64})


STRATEGIES = [
    {"tp": 2, "cp": 2, "cp_kind": "ring"}, {"tp": 4, "dk": 2}, {"tp": 2, "cp": 2, "sp": True}, {"pp": 2, "attn_dp": 2},
]  # fmt: skip


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "yarn"])
@pytest.mark.parametrize("degrees", STRATEGIES, ids=lambda d: Strategy(**d).label())
def test_ranks_that_hold_some_positions_or_pairs_turn_them_as_the_whole_model_does(kind: Any, degrees: dict) -> None:
    """What depends on the length depends on that of the whole context, not on the part that a rank holds."""
    pairs = tuple(1.0 + i for i in range(64))
    s = RopeScaling(
        kind=kind,
        factor=4.0,
        original=9,
        attention_factor=1.2,
        short_factor=pairs,
        long_factor=pairs[::-1],
    )
    m = load_model("llama-3-8b").model
    m = m.model_copy(update={"position": m.position.model_copy(update={"scaling": s})})
    proofs = prove(m, Strategy(**degrees), batch_size=4, seq_len=16, decode_steps=2)
    assert all(p.ok for p in proofs.values()), {k: p.failures for k, p in proofs.items()}
