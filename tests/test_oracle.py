"""Partitioned programs, executed on all their devices, equal the unpartitioned model; wrong ones do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from knowledge.catalog import load_model
from tests.mutants import (
    Mutant,
    neighbours_shard,
    places,
    program_mutants,
    reversed_groups,
    shifted_shard,
    with_body,
    with_op,
)
from tools.oracle.prove import TOLERANCE, Programs, Proof, prove, relative_error, rewrite_error
from tools.oracle.reduce import reduce
from tools.partition.lower import Program, default_layers_per_stage, lower
from tools.spec.base import Refused, ToolError
from tools.spec.model import MLA, MLP, Attention, ModelSpec, MoE, Position, RopeScaling
from tools.spec.strategy import Strategy


def model(name: str) -> ModelSpec:
    return load_model(name).model


def failures(proofs: dict) -> list[str]:
    return [f"{phase}: {line}" for phase, p in proofs.items() for line in p.failures]


# ------------------------------------------------------------------------------------------- architectures × strategies

MODELS = (
    "llama-3-70b", "qwen2.5-7b", "qwen3-32b", "gemma-2-9b", "mixtral-8x7b", "qwen3-235b-a22b", "deepseek-v3",
    "deepseek-v2-lite", "gpt-oss-120b", "bloom-7b1", "gpt2", "phi-2", "falcon-40b", "gpt-j-6b", "olmo-2-7b",
    "llama-4-scout", "command-r-35b", "qwen1.5-moe-a2.7b", "opt-6.7b", "minimax-m2",
)  # fmt: skip
STRATEGIES: tuple[dict, ...] = (
    {"tp": 2}, {"tp": 4, "sp": True}, {"tp": 8}, {"pp": 3}, {"tp": 2, "pp": 4}, {"tp": 2, "attn_dp": 2},
    {"tp": 2, "attn_dp": 2, "ep": 4}, {"tp": 2, "attn_dp": 2, "ep": 4, "moe_comm": "allgather"}, {"tp": 4, "ep": 2},
    {"attn_dp": 4, "ep": 4}, {"tp": 2, "attn_dp": 2, "ep": 2, "sp": True}, {"tp": 2, "cp": 2}, {"tp": 4, "dcp": 2},
    {"tp": 16},
)  # fmt: skip


def pairs() -> Iterator[tuple[str, dict]]:
    """Every model with every strategy that has a program; refusals are tested for themselves below."""
    for name in MODELS:
        for s in STRATEGIES:
            try:
                lower(model(name), Strategy(**s), "prefill", {})
            except ToolError:
                continue
            yield name, s


PAIRS = tuple(pairs())


def test_most_pairs_have_a_program() -> None:
    assert len(PAIRS) >= 180
    assert {name for name, _ in PAIRS} == set(MODELS)


@pytest.mark.parametrize(("name", "strategy"), PAIRS, ids=lambda x: x if isinstance(x, str) else Strategy(**x).label())
def test_all_devices_together_compute_the_model(name: str, strategy: dict) -> None:
    proofs = prove(model(name), Strategy(**strategy), batch_size=8, seq_len=16, decode_steps=2)
    assert not failures(proofs)
    assert {p.phase for p in proofs.values()} == {"prefill", "decode"}
    for p in proofs.values():
        assert p.ok and p.max_relative_error <= TOLERANCE and p.tensors_compared > 20
        assert p.devices_simulated == Strategy(**strategy).replica


@pytest.mark.parametrize("name", ["llama-3-70b", "mistral-7b", "deepseek-v3", "gpt-oss-120b"])
def test_a_ring_of_four_attends_to_everything(name: str) -> None:
    assert not failures(prove(model(name), Strategy(cp=4, cp_kind="ring"), batch_size=2, seq_len=16))


def test_experts_without_a_token_are_part_of_the_proof() -> None:
    proofs = prove(model("qwen3-235b-a22b"), Strategy(tp=2, attn_dp=2, ep=4), batch_size=8, seq_len=16)
    assert all(p.idle_experts >= 1 for p in proofs.values())


# --------------------------------------------------------------------------------------------------------- uneven cases


def ten_experts() -> ModelSpec:
    m = model("mixtral-8x7b")
    assert m.moe
    return m.model_copy(update={"moe": m.moe.model_copy(update={"num_experts": 10})})


UNEVEN: dict[str, tuple[ModelSpec, dict, int]] = {
    "61 layers on 4 stages": (model("deepseek-v3"), {"tp": 2, "pp": 4}, 8),
    "61 layers as an engine cuts them": (model("deepseek-v3"), {"pp": 4, "layers_per_stage": (15, 15, 16, 15)}, 8),
    "10 experts on 4 ranks": (ten_experts(), {"tp": 4, "ep": 4}, 8),
    "10 experts on 4 attention-parallel ranks": (ten_experts(), {"attn_dp": 4, "ep": 4}, 8),
    "more expert ranks than experts": (model("mixtral-8x7b"), {"tp": 4, "attn_dp": 4, "ep": 16}, 16),
    "KV heads fewer than tp": (model("qwen3-235b-a22b"), {"tp": 16}, 8),
    "one KV head on 8 ranks": (model("starcoder-15b"), {"tp": 8}, 8),
    "a vocabulary that does not divide": (model("gpt2"), {"tp": 4}, 8),
    "an FFN width that does not divide": (
        model("llama-3-8b").model_copy(update={"mlp": MLP(intermediate_size=14339)}), {"tp": 4}, 8,
    ),
    "sequences that do not divide": (model("deepseek-v3"), {"attn_dp": 4, "ep": 4}, 7),
    "fewer sequences than ranks": (model("qwen3-235b-a22b"), {"attn_dp": 8, "ep": 8}, 3),
    "a prompt that does not divide under sp": (model("llama-3-8b"), {"tp": 4, "sp": True}, 5),
}  # fmt: skip


@pytest.mark.parametrize("case", UNEVEN)
def test_uneven_is_real(case: str) -> None:
    m, strategy, batch = UNEVEN[case]
    assert not failures(prove(m, Strategy(**strategy), batch_size=batch, seq_len=17, decode_steps=3))


REFUSED: dict[str, tuple[str, dict, str]] = {
    "heads": ("llama-3-70b", {"tp": 5}, r"heads\(64\) % tp\(5\) = 4"),
    "kv heads": ("qwen2.5-7b", {"tp": 7}, r"tp\(7\).*kv_heads\(4\)"),
    "no experts": ("llama-3-70b", {"tp": 2, "ep": 2}, r"ep\(2\) on .* no experts"),
    "stages": ("gpt2", {"pp": 13}, r"pp\(13\) exceeds the 12 layers"),
    "layers": ("gpt2", {"pp": 2, "layers_per_stage": (6, 7)}, r"sums to 13, the model has 12"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_represented_is_refused_with_numbers(case: str) -> None:
    name, strategy, says = REFUSED[case]
    with pytest.raises((ToolError, Refused), match=says):
        prove(model(name), Strategy(**strategy), batch_size=4, seq_len=8)


# ------------------------------------------------------------------------------------------------------- random models


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    if draw(st.integers(0, 3)) == 0:
        heads = draw(st.sampled_from([4, 8, 16]))
        q_lora = draw(st.sampled_from([None, 24]))
        mla = MLA(q_lora_rank=q_lora, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=12)
        return Attention(num_heads=heads, num_kv_heads=heads, head_dim=12, mla=mla)
    kv = draw(st.sampled_from([1, 2, 4, 8]))
    window = draw(st.sampled_from([None, 4]))
    return Attention(
        num_heads=kv * draw(st.sampled_from([1, 2, 4])), num_kv_heads=kv, head_dim=8, qkv_bias=draw(st.booleans()),
        out_bias=draw(st.booleans()), qk_norm=draw(st.sampled_from(["none", "head", "full"])), sliding_window=window,
        sinks=draw(st.booleans()), softcap=draw(st.sampled_from([None, 5.0])),
    )  # fmt: skip


@st.composite
def moes(draw: st.DrawFn) -> MoE | None:
    if draw(st.booleans()):
        return None
    grouped = draw(st.booleans())
    gate = "sigmoid_topk" if grouped else draw(st.sampled_from(["softmax_topk", "topk_softmax", "sigmoid_topk"]))
    return MoE(
        num_experts=16 if grouped else draw(st.sampled_from([5, 8, 10])), top_k=draw(st.sampled_from([1, 2, 3])),
        intermediate_size=24, gate=gate, n_group=4 if grouped else 1, topk_group=2 if grouped else 1,
        correction_bias=draw(st.booleans()), expert_bias=draw(st.booleans()), router_bias=draw(st.booleans()),
        shared_intermediate_size=draw(st.sampled_from([0, 20])), input_scaled=draw(st.booleans()),
    )  # fmt: skip


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    layers, moe, attention = draw(st.integers(1, 7)), draw(moes()), draw(attentions())
    flags = st.lists(st.booleans(), min_size=layers, max_size=layers).map(tuple)
    kind = draw(st.sampled_from(["rope", "learned", "alibi", "none"])) if not attention.mla else "rope"
    rotary = draw(st.sampled_from([None, 4])) if not attention.mla else None
    return ModelSpec(
        name="drawn", hidden_size=64, num_hidden_layers=layers, vocab_size=draw(st.sampled_from([192, 250])),
        attention=attention, moe=moe, moe_layers=draw(flags) if moe else None,
        mlp=MLP(intermediate_size=draw(st.sampled_from([96, 99])), gated=draw(st.booleans()), bias=draw(st.booleans())),
        position=Position(
            kind=kind, rotary_dim=rotary, interleaved=draw(st.booleans()), scaling=draw(st.sampled_from(SCALINGS)),
            sliding_theta=draw(st.sampled_from([None, 500.0])),
        ),
        sliding_layers=draw(flags) if attention.sliding_window else None,
        norm=draw(st.sampled_from(["rmsnorm", "layernorm"])), norm_bias=draw(st.booleans()),
        block=draw(st.sampled_from(["sequential", "parallel", "sandwich", "post", "summed"])),
        parallel_norms=draw(st.sampled_from([1, 2])), tie_word_embeddings=draw(st.booleans()),
        lm_head_bias=draw(st.booleans()), residual_scale=draw(st.sampled_from([1.0, 0.5])),
        embedding_norm=draw(st.booleans()), logit_softcap=draw(st.sampled_from([None, 9.0])),
    )  # fmt: skip


FACTORS = tuple(1.0 + i for i in range(64))
SCALINGS = (
    None, RopeScaling(kind="yarn", factor=8.0, original=4096, attention_factor=1.2),
    RopeScaling(kind="dynamic", factor=4.0, original=8),
    RopeScaling(kind="longrope", original=8, short_factor=FACTORS, long_factor=FACTORS[::-1]),
)  # fmt: skip
"""Two of them change within the lengths that are tried."""


@st.composite
def plans(draw: st.DrawFn) -> tuple[ModelSpec, Strategy]:
    m = draw(models())
    tp, attn_dp = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2]))
    cp = draw(st.sampled_from([1, 1, 2]))
    ep = draw(st.sampled_from([1, 2, 4])) if m.moe else 1
    etp = draw(st.sampled_from([None, 1])) if m.moe else None
    assume(m.attention.num_heads % tp == 0 and (tp * attn_dp * cp) % ep == 0)
    s = Strategy(
        tp=tp, pp=draw(st.integers(1, min(3, m.num_hidden_layers))), attn_dp=attn_dp, ep=ep, etp=etp, cp=cp,
        cp_kind=draw(st.sampled_from(["ulysses", "ring"])), dcp=draw(st.sampled_from([1, 1, 2])),
        sp=draw(st.booleans()), moe_comm=draw(st.sampled_from(["auto", "auto", "allgather"])),
        ep_nodes=draw(st.sampled_from([1, 2])) if ep > 1 else 1,
    )  # fmt: skip
    return m, s


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(plan=plans(), batch=st.integers(1, 9), seq=st.integers(1, 19))
def test_any_model_under_any_strategy_is_computed_or_refused(
    plan: tuple[ModelSpec, Strategy], batch: int, seq: int
) -> None:
    m, s = plan
    try:
        proofs = prove(m, s, batch_size=batch, seq_len=seq, decode_steps=2)
    except ToolError as refusal:
        assert len(str(refusal)) > 20
        return
    assert not failures(proofs)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(plan=plans(), batch=st.integers(1, 40), seq=st.integers(1, 400))
def test_the_reduced_graph_is_the_published_one(plan: tuple[ModelSpec, Strategy], batch: int, seq: int) -> None:
    m, s = plan
    try:
        published = [lower(m, s, phase, {}).digest() for phase in ("prefill", "decode")]
    except ToolError:
        return
    small = reduce(m, s, batch_size=batch, seq_len=seq)
    assert [lower(small.model, small.strategy, phase, {}).digest() for phase in ("prefill", "decode")] == published


# ------------------------------------------------------------------------------------------------------------- mutants

MUTATED: tuple[tuple[str, dict, int], ...] = (
    # model, strategy, take every n-th mutant
    ("llama-3-70b", {"tp": 2, "pp": 2}, 1),
    ("llama-3-70b", {"tp": 4, "sp": True}, 2),
    ("qwen2.5-7b", {"tp": 2, "attn_dp": 2, "pp": 2}, 4),
    ("qwen3-235b-a22b", {"tp": 4, "ep": 2}, 1),
    ("deepseek-v3", {"tp": 2, "attn_dp": 2, "ep": 4}, 9),
    ("deepseek-v3", {"tp": 2, "attn_dp": 2, "ep": 2, "sp": True}, 11),
    ("gpt-oss-120b", {"tp": 2, "attn_dp": 2, "ep": 4, "moe_comm": "allgather"}, 9),
    ("llama-3-70b", {"tp": 2, "cp": 2}, 4),
    ("llama-3-70b", {"tp": 16, "dcp": 2}, 5),
    ("llama-3-70b", {"cp": 4, "cp_kind": "ring"}, 4),
)
WEIGHT_DIMS = frozenset({"heads", "kv_heads", "ffn", "experts", "expert_ffn", "shared_ffn", "vocab", "padded_vocab"})


def equivalent(mutant: str, strategy: Strategy) -> str:
    """Why a mutant computes the same: these cannot be caught, because nothing is wrong with their numbers."""
    if "all_reduce reversed" in mutant or ("all_reduce" in mutant and "another order" in mutant):
        return "a sum does not depend on the order of its summands"
    copies = strategy.attn_dp == 1 and strategy.cp == 1 and not strategy.sp
    if "handover turned" in mutant and copies:
        return "all ranks of the stage hold copies of the residual stream"
    if "ring_shift reversed" in mutant and strategy.cp == 2:
        return "a ring of two has one direction"
    return ""


def mutants_of(program: dict[str, Program]) -> list[Mutant]:
    bodies = [b for p in program.values() for s in p.stages for b, _ in s.bodies()]
    kinds = {p.comm.kind for b in bodies for p in b.ops if p.comm}
    dims = {d for b in bodies for t in b.weights() for d, _ in t.layout.split} & WEIGHT_DIMS
    swapped = [f(d) for d in sorted(dims) for f in (neighbours_shard, shifted_shard)]
    return [*program_mutants(program), *(reversed_groups(k) for k in sorted(kinds)), *swapped]  # type: ignore[arg-type]


MUTATED_IDS = [f"{name} {Strategy(**s).label()}" for name, s, _ in MUTATED]


@pytest.mark.parametrize(("name", "strategy", "every"), MUTATED, ids=MUTATED_IDS)
def test_every_wrong_program_is_caught(name: str, strategy: dict, every: int) -> None:
    """Collectives dropped, over wrong axes, in wrong order; residuals forgotten; layers left out or run twice; stages
    crossed; members reversed; shards shifted by one or held by the neighbour."""
    m, s = model(name), Strategy(**strategy)
    small = {p: lower(m, s, p, {}) for p in ("prefill", "decode")}
    survivors, tried = [], 0
    for mutant in mutants_of(small)[::every]:
        if equivalent(mutant.name, s):
            continue
        tried += 1
        with np.errstate(all="ignore"):
            proofs = prove(
                m, s, batch_size=8, seq_len=16, decode_steps=1, alter=mutant.alter, alter_devices=mutant.alter_devices
            )
        if all(p.ok for p in proofs.values()):
            survivors.append(mutant.name)
    assert not survivors
    assert tried >= 10


def test_the_mutants_called_equivalent_are() -> None:
    """What `equivalent` excuses does pass the oracle: nothing is excused that it would catch."""
    m, s = model("llama-3-70b"), Strategy(tp=2, pp=2)
    programs = {p: lower(m, s, p, {}) for p in ("prefill", "decode")}
    excused = [x for x in mutants_of(programs) if equivalent(x.name, s)]  # type: ignore[arg-type]
    assert len(excused) == 3
    for mutant in excused:
        wrong = {"alter": mutant.alter, "alter_devices": mutant.alter_devices}
        proofs = prove(m, s, batch_size=8, seq_len=16, decode_steps=1, **wrong)  # type: ignore[arg-type]
        assert not failures(proofs), mutant.name


# ---------------------------------------------------------------------------------------------------- the oracle itself


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v2-lite", "kimi-k2"])
def test_absorbed_attention_is_the_plain_one(name: str) -> None:
    """W_UK folded into the query, W_UV into the output (arXiv 2405.04434, §2.1.2): same logits."""
    assert 0 <= rewrite_error(model(name)) <= TOLERANCE


def test_nan_and_misplaced_infinities_fail() -> None:
    want = np.array([1.0, -np.inf, 3.0])
    assert relative_error(want.copy(), want, 3.0) == 0.0
    assert relative_error(np.array([1.0, -np.inf, np.nan]), want, 3.0) == np.inf
    assert relative_error(np.array([1.0, 2.0, 3.0]), want, 3.0) == np.inf
    assert relative_error(np.array([1.0, np.inf, 3.0]), want, 3.0) == np.inf
    assert relative_error(np.array([np.nan]), np.array([np.nan]), 1.0) == np.inf


def test_a_device_that_computes_nan_fails_the_proof() -> None:
    def poison(programs: Programs) -> Programs:
        program = programs["prefill"]
        where, body = next((w, b) for w, b in places(program) if w[1] == "run")
        at = next(i for i, p in enumerate(body.ops) if p.name == "scaled")
        op = body.ops[at].op
        assert op is not None
        wrong = with_op(body, at, replace(body.ops[at], op=replace(op, attrs={"c": float("nan")})))
        return {**programs, "prefill": with_body(program, where, wrong)}

    proofs = prove(model("llama-3-8b"), Strategy(tp=2), batch_size=2, seq_len=8, alter=poison)
    assert not proofs["prefill"].ok and "scaled rank 0: relative error inf" in proofs["prefill"].failures[0]


def test_a_proof_says_which_tensor_is_wrong() -> None:
    m, s = model("llama-3-8b"), Strategy(tp=2)
    programs = {p: lower(m, s, p, {}) for p in ("prefill", "decode")}
    dropped = next(x for x in program_mutants(programs) if "o_proj@all_reduce dropped" in x.name)  # type: ignore[arg-type]
    proof: Proof = prove(m, s, batch_size=2, seq_len=8, alter=dropped.alter)["prefill"]
    assert not proof.ok and "layer 0 o_proj@all_reduce" in proof.failures[0]


def test_layers_are_dealt_out_to_the_middle_first() -> None:
    assert default_layers_per_stage(61, 4) == (15, 15, 16, 15)
    assert sum(default_layers_per_stage(126, 8)) == 126
