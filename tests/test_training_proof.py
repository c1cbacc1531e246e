"""A training step on all devices equals the step on one: every tensor, every gradient, every updated weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from knowledge.catalog import load_model
from tests.train_mutants import MAKERS
from tools.graph.build import all_sizes
from tools.oracle.execute import Devices
from tools.oracle.train import TrainProof, _reduced, prove_train
from tools.partition.layout import Layout, positions
from tools.partition.train import TrainProgram, lower_train
from tools.spec.base import Refused, ToolError
from tools.spec.strategy import Strategy
from tools.spec.training import TrainOptions

EXACT = 1e-9


def prove(
    model: str, degrees: dict[str, object], options: dict[str, object] | None = None, **more: object
) -> TrainProof:
    s = Strategy.model_validate(degrees)
    batch = 2 * s.dp * (s.attn_dp or 1) * (s.tp if s.sp else 1)
    return prove_train(
        load_model(model).model, s, TrainOptions.model_validate(options or {}), batch_size=batch, seq_len=16, **more
    )  # type: ignore[arg-type]


def program(model: str, degrees: dict[str, object], options: dict[str, object] | None = None) -> TrainProgram:
    return lower_train(
        load_model(model).model, Strategy.model_validate(degrees), TrainOptions.model_validate(options or {}), {}
    )


AXES: dict[str, dict[str, object]] = {
    "tp": {"tp": 4, "dp": 2}, "tp above kv heads": {"tp": 16}, "sp": {"tp": 2, "dp": 2, "sp": True},
    "cp": {"cp": 2, "tp": 2, "sp": True}, "ring": {"cp": 3, "cp_kind": "ring", "tp": 2, "dp": 2},
    "pp": {"pp": 2, "tp": 2, "dp": 2}, "interleaved": {"pp": 2, "virtual": 2, "dp": 2},
    "attn_dp": {"attn_dp": 2, "tp": 2, "dp": 2},
}  # fmt: skip
OPTIONS: dict[str, dict[str, object]] = {
    "data parallel": {}, "two micro-batches": {"micro_batches": 2}, "zero1": {"zero": 1, "micro_batches": 2}, "zero2": {"zero": 2},
    "zero3": {"zero": 3}, "zero3 kept": {"zero": 3, "reshard_after_forward": False},
    "zero3 full recompute": {"zero": 3, "recompute": "full"}, "full recompute": {"recompute": "full", "micro_batches": 2},
    "unfused attention": {"fused_attention": False}, "selective": {"fused_attention": False, "recompute": "selective"},
    "sgd without master weights": {"optimizer": "sgd", "master_weights": False, "zero": 1},
    "adam without master weights": {"master_weights": False, "zero": 2},
}  # fmt: skip


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("model", ["llama-3-8b", "gemma-2-9b"])
def test_every_axis_is_proven(model: str, axes: str) -> None:
    p = prove(model, AXES[axes], {"zero": 1, "micro_batches": 2 if "virtual" in AXES[axes] else 1})
    assert p.ok and p.max_relative_error <= EXACT, p.failures
    assert p.gradients_compared > 80 and p.weights_updated > 20


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_is_proven(options: str) -> None:
    p = prove("llama-3-8b", {"tp": 2, "dp": 2, "pp": 2, "sp": True}, OPTIONS[options])
    assert p.ok and p.max_relative_error <= EXACT, p.failures


@pytest.mark.parametrize(
    ("model", "degrees"),
    [
        ("gpt2", {"tp": 3, "dp": 3}), ("gpt2", {"tp": 2, "dp": 2, "sp": True}), ("bloom-7b1", {"tp": 2, "pp": 2}),
        ("gpt-j-6b", {"tp": 2, "dp": 2}), ("falcon-40b", {"tp": 4, "sp": True}), ("minimax-m2", {"tp": 2, "dp": 2, "sp": True}),
        ("mixtral-8x7b", {"attn_dp": 2, "tp": 2, "ep": 2, "etp": 2, "dp": 2}), ("qwen3-30b-a3b", {"attn_dp": 4, "ep": 4, "dp": 2}),
        ("deepseek-v3", {"attn_dp": 2, "tp": 2, "ep": 4, "sp": True}), ("deepseek-v2-lite", {"tp": 2, "ep": 2, "dp": 2}),
        ("gpt-oss-20b", {"tp": 2, "ep": 1, "etp": 2, "sp": True}),
        ("llama-4-scout", {"attn_dp": 2, "ep": 2, "moe_comm": "allgather"}),
        ("gpt-oss-20b", {"cp": 2, "cp_kind": "ring", "tp": 2}), ("deepseek-v2-lite", {"cp": 4, "cp_kind": "ring", "ep": 4}),
        ("qwen2-57b-a14b", {"cp": 2, "ep": 2, "dp": 2}), ("gemma-2b", {"pp": 2, "dp": 2, "tp": 2}), ("gemma-2b", {"dp": 2}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"zero": 3, "recompute": "full"}], ids=["ddp", "fsdp"])
def test_every_kind_of_model_is_proven(model: str, degrees: dict[str, object], options: dict[str, object]) -> None:
    p = prove(model, degrees, options)
    assert p.ok and p.max_relative_error <= EXACT, p.failures


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_a_shared_weight_is_updated_alike_at_both_ends_of_an_interleaved_pipeline(schedule: str) -> None:
    p = prove("gemma-2b", {"pp": 2, "virtual": 3, "dp": 2}, {"micro_batches": 4, "zero": 2, "schedule": schedule})
    assert p.ok and p.micro_batches == 4 and p.devices_simulated == 4
    with pytest.raises(ToolError, match=r"microbatches\(3\) % pp\(2\) = 1"):
        prove("gemma-2b", {"pp": 2, "virtual": 2}, {"micro_batches": 3})


def test_hybrid_sharding_and_degrees_that_divide_nothing_are_proven() -> None:
    assert prove("llama-3-8b", {"dp": 4}, {"zero": 3, "shard": 2}).ok
    assert prove("llama-3-8b", {"dp": 5, "tp": 2}, {"zero": 2}).ok  # hidden over 5: uneven shards


# ------------------------------------------------------------------------ the collectives that literature names


def moves(p: TrainProgram, which: str, body: str = "layer_dense") -> Counter[tuple[str, str]]:
    found = next(b for s in p.stages for b, _ in s.bodies() if b.name == body)
    pbody = dict(found.programs())[which]
    return Counter((q.comm.kind, p.mesh.shape.words(q.comm.axes)) for q in pbody.ops if q.comm is not None)


def test_tensor_parallelism_mirrors_its_all_reduces() -> None:
    """Megatron-LM (arXiv 1909.08053 §3): two in the forward pass of a layer, two in the backward pass."""
    p = program("llama-3-8b", {"tp": 4})
    assert moves(p, "forward") == moves(p, "backward") == {("all_reduce", "tp"): 2}


def test_sequence_parallelism_gathers_again_for_weight_gradients() -> None:
    """Korthikanti et al. (arXiv 2205.05198 §4.2.2): all-gather and reduce-scatter swap, plus a second all-gather of the
    saved shards in the backward pass."""
    p = program("llama-3-8b", {"tp": 4, "sp": True})
    assert moves(p, "forward") == {("all_gather", "tp"): 2, ("reduce_scatter", "tp"): 2}
    assert moves(p, "backward") == {("all_gather", "tp"): 4, ("reduce_scatter", "tp"): 2}
    norms = {w: g for w, g in body_of(p).grads.items() if "norm" in w}
    assert all(p.mesh.shape.words(body_of(p).backward.layout(g).pending) == "tp" for g in norms.values())


def body_of(p: TrainProgram, name: str = "layer_dense"):  # type: ignore[no-untyped-def]
    return next(b for s in p.stages for b, _ in s.bodies() if b.name == name)


def test_ulysses_mirrors_its_four_all_to_alls() -> None:
    p = program("llama-3-8b", {"cp": 4})
    assert moves(p, "forward") == moves(p, "backward") == {("all_to_all", "cp"): 4}


def test_the_gradients_of_keys_and_values_travel_around_the_ring_and_home() -> None:
    """Ring attention (arXiv 2310.01889 §3): keys and values cp - 1 times in each pass, their gradients cp times."""
    p = program("llama-3-8b", {"cp": 4, "cp_kind": "ring"})
    assert moves(p, "forward") == {("ring_shift", "cp"): 2 * 3}
    assert moves(p, "backward") == {("ring_shift", "cp"): 2 * 3 + 2 * 4}
    with pytest.raises(Refused, match="a ring keeps no whole row"):
        program("llama-3-8b", {"cp": 4, "cp_kind": "ring"}, {"fused_attention": False})


def test_experts_gradients_cross_as_their_tokens_did() -> None:
    p = program("qwen3-30b-a3b", {"attn_dp": 4, "ep": 4, "dp": 2})
    assert moves(p, "forward", "layer_moe") == moves(p, "backward", "layer_moe") == {("all_to_all", "attn_dp"): 2}
    reduced = moves(p, "update", "layer_moe")
    assert reduced == {
        ("all_reduce", "dp·attn_dp"): 9,
        ("all_reduce", "dp"): 3,
    }  # experts have other copies than attention


@pytest.mark.parametrize(
    ("zero", "forward", "backward", "update"),
    [
        (0, {}, {}, {("all_reduce", "dp"): 9}),
        (1, {}, {}, {("reduce_scatter", "dp"): 9, ("all_gather", "dp"): 9}),
        (2, {}, {("reduce_scatter", "dp"): 9}, {("all_gather", "dp"): 9}),
        (3, {("all_gather", "dp"): 9}, {("all_gather", "dp"): 9, ("reduce_scatter", "dp"): 9}, {}),
    ],
)
def test_zero_moves_what_its_stage_says(
    zero: int, forward: dict[object, int], backward: dict[object, int], update: dict[object, int]
) -> None:
    """Rajbhandari et al. (arXiv 1910.02054 §5, §7); the nine weights of a layer, each once."""
    p = program("llama-3-8b", {"dp": 4}, {"zero": zero})
    assert (moves(p, "forward"), moves(p, "backward"), moves(p, "update")) == (forward, backward, update)


def test_kept_parameters_are_gathered_once_and_hybrid_shards_are_reduced_across() -> None:
    kept = program("llama-3-8b", {"dp": 4}, {"zero": 3, "reshard_after_forward": False})
    assert moves(kept, "forward")[("all_gather", "dp")] == 9 and moves(kept, "backward") == {
        ("reduce_scatter", "dp"): 9
    }
    hybrid = program("llama-3-8b", {"dp": 4}, {"zero": 2, "shard": 2})
    assert moves(hybrid, "backward") == {("reduce_scatter", "part of dp"): 9, ("all_reduce", "part of dp"): 9}


def test_full_recomputation_runs_the_forward_collectives_again_but_for_the_last() -> None:
    p = program("llama-3-8b", {"tp": 4, "dp": 2}, {"recompute": "full", "zero": 3})
    assert moves(p, "rerun")[("all_reduce", "tp")] == 1  # nothing reads the layer's output again
    assert moves(p, "backward")[("all_gather", "dp")] == 0  # the rerun has gathered them
    assert body_of(p).saved == ("x",)


# ------------------------------------------------------------------------ what a broken step looks like


SITES: tuple[tuple[str, dict[str, object], dict[str, object], int], ...] = (
    ("llama-3-8b", {"tp": 2, "dp": 2, "sp": True}, {"zero": 2}, 9), ("llama-3-8b", {"pp": 2, "dp": 2}, {"zero": 1}, 5),
    ("llama-3-8b", {"dp": 3}, {"zero": 3, "recompute": "full"}, 5), ("llama-3-8b", {"cp": 2, "tp": 2}, {}, 5),
    ("llama-3-8b", {"cp": 3, "cp_kind": "ring"}, {"zero": 1}, 7),
    ("qwen3-30b-a3b", {"attn_dp": 2, "tp": 2, "ep": 2, "etp": 2}, {"zero": 3}, 23), ("gemma-2b", {"pp": 2, "dp": 2}, {}, 5),
)  # fmt: skip


@lru_cache(maxsize=8)
def small_program(site: int) -> TrainProgram:
    model, degrees, options, _ = SITES[site]
    s = Strategy.model_validate(degrees)
    batch = 2 * s.dp * (s.attn_dp or 1) * (s.tp if s.sp else 1)
    small, s, b, n = _reduced(load_model(model).model, s, batch, 16)
    return lower_train(
        small, s, TrainOptions.model_validate(options), all_sizes(small, batch_size=b, seq_len=n, kv_len=n)
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a wrong program may divide by zero
@pytest.mark.parametrize("maker", MAKERS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("site", range(len(SITES)), ids=lambda i: f"{SITES[i][0]} {SITES[i][1]}")
def test_a_broken_step_is_caught(
    site: int, maker: Callable[[TrainProgram], Iterator[tuple[str, TrainProgram]]]
) -> None:
    model, degrees, options, every = SITES[site]
    survivors = []
    for i, (name, mutant) in enumerate(maker(small_program(site))):
        if i % every == 0 and caught(model, degrees, options, mutant) is False:
            survivors.append(name)
    assert not survivors


def caught(model: str, degrees: dict[str, object], options: dict[str, object], mutant: TrainProgram) -> bool:
    try:
        return not prove(model, degrees, options, alter=lambda _: mutant).ok
    except AssertionError:
        return True  # a collective that its tensor's layout cannot have


def test_a_forgotten_gradient_reduction_is_caught() -> None:
    """Replicas that step on their own gradients: every rank computes, and drifts."""

    def forget(p: TrainProgram) -> TrainProgram:
        stage = p.stages[0]
        run = stage.runs[0]
        update = run.bodies[0].update
        ops = tuple(replace(q, comm=replace(q.comm, axes=())) if q.comm else q for q in update.ops)
        body = replace(run.bodies[0], update=replace(update, ops=ops))
        return replace(p, stages=(replace(stage, runs=(replace(run, bodies=(body,)),)),))

    p = prove("llama-3-8b", {"dp": 2}, {}, alter=forget)
    assert not p.ok and any("update" in f for f in p.failures)


def test_a_layer_whose_weights_are_not_updated_is_caught() -> None:
    def freeze(p: TrainProgram) -> TrainProgram:
        stage = p.stages[0]
        run = stage.runs[0]
        body = replace(run.bodies[0], update=replace(run.bodies[0].update, ops=(), inputs=()))
        return replace(p, stages=(replace(stage, runs=(replace(run, bodies=(body,)),)),))

    p = prove("llama-3-8b", {"dp": 2}, {}, alter=freeze)
    assert not p.ok and any("has a gradient and is not updated" in f for f in p.failures)


def test_a_shard_shifted_by_one_is_caught() -> None:
    def shift(devices: Devices) -> None:
        def shard(n: int, dim: str, axes: tuple[str, ...], rank: int) -> np.ndarray:
            at = positions(n, axes, devices.mesh, rank, dim, devices.orders)
            return (at + 1) % n if dim == "hidden" and axes else at

        devices.shard = shard

    assert not prove("llama-3-8b", {"dp": 2}, {"zero": 3}, alter_devices=shift).ok


# ------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("degrees", "words"),
    [
        ({"tp": 16, "dcp": 2}, "training keeps none"), ({"tp": 2, "dk": 2}, "slices d_k"), 
        ({"seq_slices": 2}, "micro_batches"), ({"attn_pool": 2}, "serving only"),
        ({"redundant_experts": 1}, "gradients added"), ({"placements": (("embed_tokens", ()),)}, "use degrees"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_refused_with_its_axis(degrees: dict[str, object], words: str) -> None:
    with pytest.raises(Refused, match=words) as e:
        program("llama-3-8b", degrees)
    assert next(k for k in degrees if k in str(e.value))


def test_a_sharding_degree_must_divide_dp() -> None:
    with pytest.raises(ToolError, match=r"shard\(3\) does not divide dp\(4\): 4/3 = 1.33"):
        program("llama-3-8b", {"dp": 4}, {"zero": 1, "shard": 3})
    with pytest.raises(ToolError, match="micro_batches must be at least 1"):
        TrainOptions(micro_batches=0)


def test_the_published_graph_is_the_proven_one() -> None:
    p = prove("llama-3-8b", {"tp": 2, "dp": 2}, {"zero": 3})
    assert p.digest == program("llama-3-8b", {"tp": 2, "dp": 2}, {"zero": 3}).digest()
    assert p.digest != program("llama-3-8b", {"tp": 2, "dp": 2}, {"zero": 2}).digest()


def test_states_lie_on_the_ranks_that_would_hold_copies() -> None:
    p = program("deepseek-v3", {"attn_dp": 4, "ep": 4, "dp": 2}, {"zero": 1})
    body = body_of(p, "layer_moe").forward.body
    words = {t.name: p.placement.words(p.placement.states(t)) for t in body.weights()}
    assert words["o_proj.weight"] == "hidden over dp·attn_dp"
    assert words["expert_up.weight"] == "experts over attn_dp, hidden over dp"
    assert Layout() == p.placement.weight(body.tensors["input_norm.weight"])
