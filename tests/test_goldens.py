"""Is the unpartitioned model right? Its logits are those of Hugging Face transformers, prefill and decode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knowledge.hf_config import model_from_config
from tests.goldens.mapping import Checkpoint, our_weights
from tests.goldens.seeded import PROMPT
from tools.graph.rope import SCALINGS
from tools.memory import num_parameters
from tools.oracle.execute import Caches, run_reference
from tools.oracle.prove import reference_bodies
from tools.spec.model import ModelSpec

GOLDENS = Path(__file__).parent / "goldens"
NAMES = sorted(p.stem for p in GOLDENS.glob("*.npz"))
TOLERANCE = 1e-5


def load(name: str) -> tuple[dict[str, Any], ModelSpec, np.ndarray, np.ndarray]:
    record = json.loads((GOLDENS / f"{name}.json").read_text())
    with np.load(GOLDENS / f"{name}.npz") as data:
        ids, logits = data["ids"], data["logits"].astype(np.float64)
    return record, model_from_config(record["config"], name), ids, logits


def our_logits(model: ModelSpec, weights: Any, ids: np.ndarray) -> np.ndarray:
    """Prefill of the prompt, then one token at a time with carried caches, as the golden was made."""
    caches: Caches = {}
    chunks = [ids[:, :PROMPT], *(ids[:, i : i + 1] for i in range(PROMPT, ids.shape[1]))]
    parts, past = [], 0
    for i, chunk in enumerate(chunks):
        bodies = reference_bodies(model, "decode" if i else "prefill", logits="all")
        trace = run_reference(bodies, weights, chunk, caches, past)
        head = bodies[-1][1]
        parts.append(trace.values[(None, "head", head.ops[-1].inputs[0])])
        past += chunk.shape[1]
    return np.concatenate(parts, axis=1)


def test_the_goldens_cover_the_block_kinds_we_claim() -> None:
    """At least one golden each: what a wrong operator could hide in."""
    models = [load(n)[1] for n in NAMES]
    assert {m.block for m in models} == {"sequential", "parallel", "sandwich", "post", "summed"}
    assert {m.position.kind for m in models} >= {"rope", "learned", "alibi"}
    assert {m.moe.gate for m in models if m.moe} == {
        "softmax_topk", "topk_softmax", "sigmoid_topk", "topk_sigmoid", "sparsemixer",
    }  # fmt: skip
    assert {m.attention.qk_norm for m in models} == {"none", "head", "plain", "layer", "heads", "full"}
    assert {m.attention.temperature.turned_too for m in models if m.attention.temperature} == {True, False}
    gates = {(a.gate_fn, a.gate_per_head) for a in (m.attention for m in models) if a.output_gate}
    assert gates == {("sigmoid", False), ("sigmoid", True), ("softplus", True)}
    assert any(m.moe and m.moe.output_norm for m in models) and any(m.moe and m.moe.output_scale != 1.0 for m in models)
    assert {m.linear.kind for m in models if m.linear} == {"gated_delta", "kda", "mamba1", "mamba2", "short_conv"}
    assert {m.linear.one_key for m in models if m.linear and m.linear.kind == "mamba2"} == {True, False}
    assert {(k.mixer, k.ffn) for m in models for k in m.layers()} >= {
        ("none", "moe"),
        ("none", "dense"),
        ("linear", "none"),
    }
    assert {m.attention.indexer.interleaved for m in models if m.attention.indexer} == {True, False}
    assert {m.attention.indexer.block is None for m in models if m.attention.indexer} == {True, False}
    assert {k.picks for m in models for k in m.layers()} == {"own", "shared", "none"}
    assert {k.kv for m in models for k in m.layers()} == {"own", "lent", "borrowed"}
    assert any(m.moe and m.moe.beside_mlp for m in models) and any(m.attention.values_are_keys for m in models)
    assert any(m.attention.mla and m.attention.mla.q_lora_rank is None for m in models)
    heads = {(m.attention.num_kv_heads == m.attention.num_heads, m.attention.num_kv_heads == 1) for m in models}
    assert heads >= {(True, False), (False, False), (False, True)}


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_transformers(name: str) -> None:
    record, model, ids, want = load(name)
    assert not model.unsupported
    checkpoint = Checkpoint(record["shapes"], record["config"]["model_type"], model)
    got = our_logits(model, our_weights(checkpoint), ids)
    error = np.abs(got - want).max() / np.abs(want).max()
    assert got.shape == want.shape
    assert error <= TOLERANCE, f"{name}: relative error {error:.3g}"
    assert checkpoint.read == set(record["shapes"]), "parameters that our graph does not have"


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("rope_")])
def test_a_golden_of_a_rope_scaling_would_notice_if_it_were_forgotten(name: str) -> None:
    record, model, ids, want = load(name)
    assert model.position.scaling is not None
    plain = model.model_copy(update={"position": model.position.model_copy(update={"scaling": None})})
    weights = our_weights(Checkpoint(record["shapes"], record["config"]["model_type"], model))
    error = np.abs(our_logits(plain, weights, ids) - want).max() / np.abs(want).max()
    assert error > 100 * TOLERANCE


def test_every_rope_scaling_has_a_golden() -> None:
    scalings = [s for s in (load(n)[1].position.scaling for n in NAMES) if s]
    assert {s.kind for s in scalings} == set(SCALINGS)
    assert any(s.attention_factor != 1.0 for s in scalings) and any(not s.truncate for s in scalings)


@pytest.mark.parametrize("name", NAMES)
def test_number_of_parameters_equals_the_checkpoints(name: str) -> None:
    record, model, _, _ = load(name)
    assert num_parameters(model) == sum(int(np.prod(s)) for s in record["shapes"].values())
