"""Memory of a training step, read from the graph, against the published formulas."""

from __future__ import annotations

import pytest

from knowledge.catalog import load_model
from tools.graph.build import all_sizes
from tools.memory import Dtypes, num_parameters
from tools.partition.train import TrainBody, lower_train
from tools.spec.model import MLP, Attention, ModelSpec, Position
from tools.spec.strategy import Strategy
from tools.spec.training import TrainOptions
from tools.training_memory import TrainMemory, saved_bytes, train_memory


def gpt(hidden: int, layers: int, heads: int, vocab: int = 51200) -> ModelSpec:
    """A GPT as the papers count it: 4h wide GeLU, biases, learned positions, no dropout."""
    return ModelSpec(
        name="gpt", hidden_size=hidden, num_hidden_layers=layers, vocab_size=vocab, norm="layernorm", norm_bias=True,
        attention=Attention(num_heads=heads, num_kv_heads=heads, head_dim=hidden // heads, qkv_bias=True, out_bias=True),
        position=Position(kind="learned", max_positions=2048),
        mlp=MLP(intermediate_size=4 * hidden, gated=False, activation="gelu", bias=True), tie_word_embeddings=True,
    )  # fmt: skip


def step(
    model: ModelSpec, degrees: dict[str, object], batch: int, seq: int, **options: object
) -> tuple[TrainMemory, ...]:
    sizes = all_sizes(model, batch_size=batch, seq_len=seq, kv_len=seq)
    return train_memory(
        lower_train(model, Strategy.model_validate(degrees), TrainOptions.model_validate(options), sizes)
    )


def layer_activations(model: ModelSpec, degrees: dict[str, object], batch: int, seq: int, **options: object) -> float:
    s = Strategy.model_validate(degrees)
    sizes = all_sizes(model, batch_size=batch, seq_len=seq, kv_len=seq)
    p = lower_train(model, s, TrainOptions.model_validate(options), sizes)
    body: TrainBody = p.stages[0].runs[0].bodies[0]
    return saved_bytes(body, sizes, p.mesh, Dtypes.of_strategy(model, s))


S, B, H, A = 2048, 2, 6144, 48
"""Sequence, micro-batch, hidden, heads of the 22B model of arXiv 2205.05198, table 3 (its h/a ratio)."""


@pytest.mark.parametrize(
    ("degrees", "fixed", "split"),
    [({}, 0, 32), ({"tp": 8}, 8, 24), ({"tp": 8, "sp": True}, 0, 32)],
    ids=["one device", "tensor parallel", "tensor and sequence parallel"],
)
def test_activations_of_a_layer_are_those_of_korthikanti(degrees: dict[str, int], fixed: int, split: int) -> None:
    """arXiv 2205.05198, equations 1, 2 and 4: sbh(10 + 24/t + 5as/ht) and sbh/t(34 + 5as/h). Of these, dropout masks and
    outputs are 2sbh (outside tensor parallelism) and 3as²b; without dropout 8 for 10, 32 for 34, and 2as²b for 5as²b."""
    t = degrees.get("tp", 1)
    got = layer_activations(gpt(H, 4, A), degrees, B, S, fused_attention=False)
    assert got == S * B * H * (fixed + split / t + 2 * A * S / (H * t))


@pytest.mark.parametrize("options", [{"fused_attention": False, "recompute": "selective"}, {"fused_attention": True}])
def test_selective_recomputation_and_a_fused_kernel_drop_the_quadratic_term(options: dict[str, object]) -> None:
    assert layer_activations(gpt(H, 4, A), {"tp": 8, "sp": True}, B, S, **options) == S * B * H * 32 / 8


def test_full_recomputation_keeps_a_layers_input() -> None:
    """2sbh (arXiv 2205.05198 §5)."""
    assert layer_activations(gpt(H, 4, A), {"tp": 8}, B, S, recompute="full") == 2 * S * B * H


@pytest.mark.parametrize(("zero", "replicated", "sharded"), [(0, 16, 0), (1, 4, 12), (2, 2, 14), (3, 0, 16)])
def test_states_are_those_of_zero(zero: int, replicated: int, sharded: int) -> None:
    """Rajbhandari et al., arXiv 1910.02054, figure 1: bytes per parameter with mixed-precision Adam, N = 64."""
    model, n = gpt(4096, 36, 32, vocab=51200), 64
    (m,) = step(model, {"dp": n}, n, 128, zero=zero, grad_dtype="bf16")
    psi = num_parameters(model)
    assert psi == pytest.approx(7.5e9, rel=0.01)
    states = m.parameters_bytes + m.gradients_bytes + m.optimizer_bytes
    # Biases of 32 heads over 64 ranks leave the fullest rank a little more than its share.
    assert states == pytest.approx(psi * replicated + psi * sharded / n, rel=1e-3 if zero else 0)
    published = {0: 120e9, 1: 31.4e9, 2: 16.6e9, 3: 1.9e9}
    assert m.total_bytes - m.activations_bytes - m.working_bytes == pytest.approx(published[zero], rel=0.02)


def test_pipeline_stages_keep_as_many_micro_batches_as_are_in_flight() -> None:
    """1F1B (arXiv 2006.09503): pp - stage of them; GPipe: all."""
    model = gpt(1024, 8, 16)
    eager = step(model, {"pp": 4}, 1, 128, micro_batches=8)
    assert [m.in_flight for m in eager] == [4, 3, 2, 1]
    assert eager[1].activations_bytes == 3 * step(model, {"pp": 4}, 1, 128)[1].activations_bytes
    assert [m.in_flight for m in step(model, {"pp": 4}, 1, 128, micro_batches=8, schedule="gpipe")] == [8, 8, 8, 8]


@pytest.mark.parametrize(("pp", "virtual"), [(2, 2), (4, 2), (4, 4)])
def test_an_interleaved_pipeline_keeps_the_more_that_korthikanti_says(pp: int, virtual: int) -> None:
    """arXiv 2205.05198 §4.2.3: the first stage keeps 1 + (p - 1)/(p·m) times the activations of all layers."""
    model = gpt(1024, 16, 16)
    per_layer = layer_activations(model, {}, 1, 128)
    first = step(model, {"pp": pp, "virtual": virtual}, 1, 128, micro_batches=4 * pp)[0]
    embedded = step(model, {"pp": pp}, 1, 128, micro_batches=4 * pp)[0].activations_bytes - 16 * per_layer
    more = first.activations_bytes - 16 * per_layer * (1 + (pp - 1) / (pp * virtual))
    assert 0 <= more <= 2 * embedded  # ids of the embedding, kept by every pass through the first chunk
    assert first.in_flight == 2 * (pp - 1) + (virtual - 1) * pp + 1


def test_experts_states_are_cut_over_fewer_ranks_than_attentions() -> None:
    """Experts over ep have edp = dp copies only, so ZeRO has only those to share among."""
    model = load_model("qwen3-30b-a3b").model
    one, cut = (step(model, {"attn_dp": 8, "ep": 8, "dp": 4}, 32, 128, zero=z)[0] for z in (0, 1))
    moe = model.moe
    assert moe is not None
    experts = model.num_hidden_layers * moe.num_experts * 3 * moe.intermediate_size * model.hidden_size
    rest = num_parameters(model) - experts
    assert one.optimizer_bytes == 12 * (experts / 8 + rest)
    assert cut.optimizer_bytes == pytest.approx(12 * (experts / 8 / 4 + rest / 32), rel=1e-3)


def test_kept_parameters_count_as_saved() -> None:
    model = load_model("llama-3-8b").model
    free, kept = (step(model, {"dp": 8}, 8, 512, zero=3, reshard_after_forward=r)[0] for r in (True, False))
    assert kept.parameters_bytes == free.parameters_bytes
    assert kept.activations_bytes - free.activations_bytes == pytest.approx(2 * num_parameters(model), rel=0.1)


def test_tied_weights_are_counted_once_on_a_stage_that_has_both() -> None:
    model = load_model("gemma-2b").model
    (m,) = step(model, {}, 1, 64)
    assert m.parameters_bytes == 2 * num_parameters(model)
    assert m.gradients_bytes == 4 * num_parameters(model) and m.optimizer_bytes == 12 * num_parameters(model)


def test_working_memory_covers_the_widest_gathered_layer() -> None:
    """Under ZeRO-3 the layer being computed is whole on every rank."""
    model = load_model("llama-3-8b").model
    (m,) = step(model, {"dp": 64}, 64, 16, zero=3)
    a = model.attention
    mlp = model.mlp
    assert mlp is not None
    assert m.working_bytes >= 2 * mlp.intermediate_size * model.hidden_size
    assert a.num_heads and m.total_bytes == sum(t.value for t in m.breakdown.terms)
