"""Is the unpartitioned backward pass right? It equals torch autograd on Hugging Face models, and differences of the loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from knowledge.catalog import load_model
from knowledge.hf_config import model_from_config
from tests.goldens.make_gradients import summary, task
from tests.goldens.mapping import Checkpoint, our_weights
from tests.test_goldens import load
from tools.graph.backward import backward
from tools.graph.ir import Body, Op, Tensor
from tools.graph.training import LABELS, TOKEN_WEIGHTS, loss_body, train_layer_body
from tools.oracle.prove import draw_weights
from tools.oracle.reduce import reduce
from tools.oracle.train import finite_difference_error, reference_step, train_bodies
from tools.spec.base import Refused
from tools.spec.strategy import Strategy

ARCHITECTURES = json.loads((Path(__file__).parent / "data" / "architectures.json").read_text())
GOLDEN = json.loads((Path(__file__).parent / "goldens" / "gradients.json").read_text())
TOLERANCE = 1e-4
"""Hugging Face computes RoPE angles, softmax and norms in float32, whatever the model's dtype."""
VARIED = ("gpt2", "bloom-7b1", "gemma-2-9b", "falcon-40b", "gpt-oss-20b", "deepseek-v3", "minimax-m2", "llama-4-scout")


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_gradients_equal_torch_autograd(name: str) -> None:
    record, model, _, _ = load(name)
    weights = our_weights(Checkpoint(record["shapes"], record["config"]["model_type"], model))
    ids, labels, token_weights = task(model.vocab_size)
    ref = reference_step(model, weights, [{"ids": ids, LABELS: labels, TOKEN_WEIGHTS: token_weights}])
    assert ref.loss == pytest.approx(GOLDEN[name]["loss"], rel=TOLERANCE)
    largest = max(norm for norm, *_ in GOLDEN[name]["gradients"].values())
    for key, (norm, *products) in GOLDEN[name]["gradients"].items():
        layer, _, w = key.partition("/")
        g = ref.grads.get((None if layer == "None" else int(layer), w))
        if g is None:
            assert norm == 0.0, f"{name} {key} has a gradient in torch"
            continue
        mine = summary(key, g)
        assert mine[0] == pytest.approx(norm, rel=TOLERANCE, abs=1e-7 * largest), f"{name} {key}"
        assert mine[1:] == pytest.approx(products, rel=TOLERANCE, abs=TOLERANCE * norm + 1e-7 * largest), (
            f"{name} {key}"
        )


OTHERS = ("bitnet", "jais2", "laguna", "ministral3", "nanochat", "openai-gpt", "persimmon")
"""Default configs with operators that no catalogue model has: wide norms inside, relu2, softplus gates, temperatures, …"""


@pytest.mark.parametrize("name", [*VARIED, *OTHERS])
def test_gradients_equal_differences_of_the_loss(name: str) -> None:
    whole = model_from_config(ARCHITECTURES[name]["config"]) if name in OTHERS else load_model(name).model
    small = reduce(whole, Strategy(), batch_size=2, seq_len=5).model
    rng = np.random.default_rng(4)  # a draw whose routing no step of the differences turns over
    batch = {
        "ids": rng.integers(0, small.vocab_size, (2, 5)), LABELS: rng.integers(0, small.vocab_size, (2, 5)),
        TOKEN_WEIGHTS: rng.uniform(0.5, 1.5, (2, 5)) / 10,
    }  # fmt: skip
    error, where = finite_difference_error(small, draw_weights(small, rng), batch)
    assert error < 1e-5, where


def test_micro_batches_add_up_to_the_batch() -> None:
    small = reduce(load_model("qwen3-30b-a3b").model, Strategy(), batch_size=4, seq_len=5).model
    rng = np.random.default_rng(0)
    weights = draw_weights(small, rng)
    whole = {
        "ids": rng.integers(0, small.vocab_size, (4, 5)), LABELS: rng.integers(0, small.vocab_size, (4, 5)),
        TOKEN_WEIGHTS: rng.uniform(0.5, 1.5, (4, 5)) / 20,
    }  # fmt: skip
    halves = [{k: v[part] for k, v in whole.items()} for part in (slice(0, 2), slice(2, 4))]
    one, two = reference_step(small, weights, [whole]), reference_step(small, weights, halves)
    assert one.loss == pytest.approx(two.loss)
    for key, g in one.grads.items():
        assert two.grads[key] == pytest.approx(g, rel=1e-9, abs=1e-12 * one.largest)


def test_a_token_of_weight_zero_has_no_say() -> None:
    """Padding: whatever its label, loss and gradients stay."""
    small = reduce(load_model("llama-3-8b").model, Strategy(), batch_size=2, seq_len=5).model
    rng = np.random.default_rng(0)
    weights, w = draw_weights(small, rng), np.ones((2, 5))
    w[:, -1] = 0.0
    batch = {"ids": rng.integers(0, 9, (2, 5)), LABELS: rng.integers(0, 9, (2, 5)), TOKEN_WEIGHTS: w}
    other = {**batch, LABELS: np.where(w == 0, 40, batch[LABELS])}
    a, b = reference_step(small, weights, [batch]), reference_step(small, weights, [other])
    assert a.loss == b.loss and all((a.grads[k] == b.grads[k]).all() for k in a.grads)


@pytest.mark.parametrize("name", ["llama-3-8b", "gpt2", "deepseek-v3", "gpt-oss-20b"])
def test_every_weight_has_a_gradient_but_the_balancing_bias(name: str) -> None:
    """DeepSeek-V3 adjusts its correction bias by rule, not by gradient: it only orders the choice."""
    for _, body in train_bodies(load_model(name).model):
        without = {w.name for w in body.weights()} - set(backward(body).grads)
        assert without <= {"gate_correction_bias"}


def test_a_fused_kernels_inside_is_made_again_and_an_unfused_one_is_kept() -> None:
    model = load_model("llama-3-8b").model
    body = train_layer_body(model, model.layer_kind(0))
    fused, eager = backward(body), backward(body, reruns_attention=False)
    assert "probs" not in fused.saved and "probs" in eager.saved
    assert {"scores", "masked", "probs"} <= {op.name for op in fused.body.ops}
    assert not any(op.name == "probs" for op in eager.body.ops)


def test_the_backward_body_reads_nothing_that_nobody_has() -> None:
    for name in VARIED:
        for _, body in train_bodies(load_model(name).model):
            bw = backward(body)
            known = set(bw.body.inputs) | {w.name for w in bw.body.weights()}
            for op in bw.body.ops:
                assert set(op.inputs) <= known, (name, op)
                known.add(op.output)


def test_an_operator_without_a_rule_is_refused_by_name() -> None:
    x = Tensor("x", ("batch_size", "hidden"))
    body = Body("odd", (Op("y", "unpad", ("x",), "y", "k", "m"),), {"x": x, "y": Tensor("y", x.dims)}, ("x",), "y")
    with pytest.raises(Refused, match=r"odd\.y: no backward rule for operator kind unpad"):
        backward(body)
    summed = Op("y", "einsum", ("x", "w"), "y", "k", "m")
    tensors = {"x": x, "w": Tensor("w", ("ffn",), "weight"), "y": Tensor("y", ("batch_size", "ffn"))}
    with pytest.raises(Refused, match=r"x is summed over \['hidden'\] alone"):
        backward(Body("odd", (summed,), tensors, ("x",), "y"))


def test_the_loss_masks_the_vocabularys_padding() -> None:
    model = load_model("gpt2").model
    assert any(op.kind == "mask_vocab" for op in loss_body(model).ops)
    assert not any(op.kind in ("unpad", "argmax") for op in loss_body(model).ops)
