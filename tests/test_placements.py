"""Weights placed one by one: the collectives follow, the result is the model's, and what cannot be is refused by name."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.reading.strategy_file import strategy_from_data
from knowledge.catalog import load_model
from tools.checks import run_checks
from tools.graph.build import all_sizes
from tools.oracle.prove import prove
from tools.partition.lower import Program, lower
from tools.spec.base import Refused, ToolError
from tools.spec.strategy import Strategy


def placed(name: str, degrees: dict, placements: dict) -> tuple[Strategy, dict[str, Program]]:
    s = strategy_from_data({**degrees, "placements": placements})
    m = load_model(name).model
    sizes = all_sizes(m, batch_size=8, seq_len=64, kv_len=64)
    return s, {"prefill": lower(m, s, "prefill", sizes), "decode": lower(m, s, "decode", {**sizes, "seq_len": 1})}


def collectives(program: Program) -> list[str]:
    return [p.name for body, _ in program.stages[0].bodies() for p in body.ops if p.comm and p.comm.kind != "slice"]


@pytest.mark.parametrize(
    ("name", "degrees", "placements", "moved"),
    [
        # Both matrices of the MLP split along what they produce: their inputs are gathered, nothing is summed.
        ("Llama-3.1-8B", {"tp": 4}, {"mlp.down_proj": {"hidden": "tp"}}, ["act_mul@all_gather", "down_proj@all_gather"]),
        # A whole output projection wants all heads.
        ("Llama-3.1-8B", {"tp": 4}, {"self_attn.o_proj": {}}, ["attn_values@all_gather"]),
        # Split along what is contracted: a sum is scattered.
        ("Llama-3.1-8B", {"tp": 4}, {"mlp.up_proj": {"hidden": "tp"}}, ["up_proj@reduce_scatter"]),
        ("Llama-3.1-8B", {"tp": 4}, {"embed_tokens": {"hidden": "tp"}}, ["embed@all_gather"]),
        ("Llama-3.1-8B", {"tp": 2, "cp": 2}, {"mlp.*_proj": {"ffn": "cp*tp"}}, ["ffn_norm@all_gather"]),
        ("Mixtral-8x7B", {"tp": 2, "attn_dp": 2, "ep": 4}, {"mlp.experts.*": {"expert_ffn": "ep"}}, ["dispatch@all_gather"]),
        ("DeepSeek-V3", {"tp": 2, "attn_dp": 2, "ep": 4}, {"self_attn.kv_a_proj": {"kv_lora": "tp"}}, ["kv_a@all_gather"]),
    ],
)  # fmt: skip
def test_collectives_follow_from_where_a_weight_lies(
    name: str, degrees: dict, placements: dict, moved: list[str]
) -> None:
    s, programs = placed(name, degrees, placements)
    assert set(moved) <= set(collectives(programs["prefill"]))
    proofs = prove(load_model(name).model, s, batch_size=8, seq_len=64)
    assert all(p.ok for p in proofs.values()), {k: p.failures for k, p in proofs.items()}
    assert [f for f in run_checks(programs) if f.severity == "error"] == []


MODULES = {
    "self_attn.q_proj": ["heads", "hidden"], "self_attn.o_proj": ["heads", "hidden"], "self_attn.v_proj": ["kv_heads", "hidden"],
    "mlp.up_proj": ["ffn", "hidden"], "mlp.gate_proj": ["ffn", "hidden"], "mlp.down_proj": ["ffn", "hidden"],
    "lm_head": ["vocab", "hidden"], "embed_tokens": ["vocab", "hidden"], "input_layernorm": ["hidden"],
}  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.dictionaries(
        st.sampled_from(sorted(MODULES)),
        st.tuples(st.integers(0, 1), st.sampled_from(["tp", "cp", "attn_dp", "cp*tp", "attn_dp*tp", None])),
        min_size=1,
        max_size=4,
    ),
    degrees=st.sampled_from([{"tp": 4}, {"tp": 2, "cp": 2}, {"tp": 2, "attn_dp": 2}, {"cp": 4}]),
)
def test_any_placement_is_proven_or_refused(data: dict, degrees: dict) -> None:
    """Never a graph that computes something else."""
    said = {m: {MODULES[m][i % len(MODULES[m])]: axes} if axes else {} for m, (i, axes) in data.items()}
    s = strategy_from_data({**degrees, "placements": said})
    try:
        proofs = prove(load_model("Llama-3.1-8B").model, s, batch_size=8, seq_len=64)
    except ToolError:
        return
    assert all(p.ok for p in proofs.values()), (said, {k: p.failures for k, p in proofs.items()})


@pytest.mark.parametrize(
    ("placements", "words"),
    [
        ({"self_attn.q_proj": {"heads": "tp", "hidden": "tp"}}, "heads is split over the same ranks"),
        ({"self_attn.qproj": {"heads": "tp"}}, "near: self_attn.q_proj"),
        ({"self_attn.q_proj": {"ffn": "tp"}}, "has no dim ffn; it has d_k, heads, hidden"),
        ({"self_attn.q_proj": {"d_k": "tp"}}, "use dk"),
        ({"input_layernorm": {"hidden": "tp"}}, "weights cannot move"),
        ({"mlp.up_proj": {"ffn": "pp"}}, "axes are tp, cp, attn_dp, ep, etp, edp"),
        ({"mlp.up_proj": "tp"}, "expected {dim: axis}"),
    ],
)
def test_what_cannot_be_placed_is_refused_by_name(placements: dict, words: str) -> None:
    with pytest.raises((Refused, ToolError), match=".*" + words.replace("{", r"\{").replace("}", r"\}")):
        placed("Llama-3.1-8B", {"tp": 4}, placements)
