"""Copies of experts: same result, more slots, degrees that the expert count alone forbids."""

from __future__ import annotations

import numpy as np
import pytest

from knowledge.catalog import load_model
from tools.checks import run_checks
from tools.engines.rules import check
from tools.graph.build import all_sizes, layer_body
from tools.graph.semantics import Place, run
from tools.memory import rank_weight_bytes
from tools.oracle.prove import draw, prove
from tools.oracle.reduce import reduce
from tools.partition.lower import local_dims, lower
from tools.spec.base import ToolError
from tools.spec.model import LayerKind, with_redundant
from tools.spec.strategy import Strategy

CASES = [
    ("Mixtral-8x7B", {"attn_dp": 12, "ep": 12, "redundant_experts": 4}),
    ("Mixtral-8x7B", {"attn_dp": 24, "ep": 24, "redundant_experts": 16}),
    ("Mixtral-8x7B", {"tp": 2, "attn_dp": 2, "ep": 2, "redundant_experts": 3}),
    ("Mixtral-8x7B", {"tp": 2, "attn_dp": 2, "expert_devices": 10, "ep": 10, "redundant_experts": 2}),
    ("DeepSeek-V3", {"attn_dp": 32, "ep": 32, "redundant_experts": 32}),
    ("gpt-oss-120b", {"tp": 4, "ep": 4, "redundant_experts": 8}),
    ("Llama-4-Scout-17B-16E", {"tp": 4, "ep": 4, "redundant_experts": 4}),
]


@pytest.mark.parametrize(("name", "degrees"), CASES, ids=lambda x: x if isinstance(x, str) else Strategy(**x).label())
def test_copies_compute_the_same(name: str, degrees: dict) -> None:
    m, s = load_model(name).model, Strategy(**degrees)
    proofs = prove(m, s, batch_size=24, seq_len=32)
    assert all(p.ok for p in proofs.values()), {k: p.failures for k, p in proofs.items()}
    sizes = all_sizes(m, batch_size=24, seq_len=32, kv_len=32)
    found = run_checks(
        {"prefill": lower(m, s, "prefill", {**sizes, "experts": m.moe.num_experts + s.redundant_experts})}
    )
    assert [f for f in found if f.severity == "error"] == []


@pytest.mark.parametrize(("name", "degrees"), [CASES[2], CASES[5]], ids=str)
def test_every_kind_of_layer_sends_tokens_to_copies_in_both_phases_of_a_proof(name: str, degrees: dict) -> None:
    """Else a graph that forgets its copies would pass."""
    small = reduce(load_model(name).model, Strategy(**degrees), batch_size=8, seq_len=16, decode_steps=2)
    *_, traces, idle = draw(small, 0)
    assert idle > 0, "and still one expert has no token"
    for phase, steps in traces.items():
        highest: dict[str, int] = {}
        for (_, body, tensor), v in (pair for t in steps for pair in t.values.items()):
            if tensor == "expert_slots":
                highest[body] = max(highest.get(body, 0), int(np.max(v)))
        assert highest and min(highest.values()) >= small.model.moe.num_experts, (phase, highest)


@pytest.mark.parametrize(("experts", "copies"), [(8, 3), (8, 8), (5, 12), (4, 1)])
def test_tokens_of_an_expert_take_turns_over_its_slots(experts: int, copies: int) -> None:
    m = load_model("Mixtral-8x7B").model
    m = with_redundant(m.model_copy(update={"moe": m.moe.model_copy(update={"num_experts": experts})}), copies)
    body = layer_body(m, LayerKind(ffn="moe"), "prefill")
    op = next(o for o in body.ops if o.kind == "assign_copies")
    ids = np.tile(np.arange(experts), (3, 40, 1))  # every token chooses every expert
    place = Place(lambda d: np.arange({"batch_size": 3, "seq_len": 40}[d]), 0, body, ("batch_size", "seq_len", "top_k"))
    slots = run(op, [ids], place, [body.tensors[op.inputs[0]].dims])
    assert (slots % experts == ids).all()
    assert set(slots.ravel()) == set(range(experts + copies))
    for e in range(experts):
        used = np.bincount(slots[..., e].ravel())
        used = used[used > 0]
        assert max(used) - min(used) <= 3, "an expert's copies are used alike"


def test_a_graph_has_every_slot_whatever_lengths_it_was_given() -> None:
    m = load_model("Mixtral-8x7B").model
    program = lower(
        m,
        Strategy(attn_dp=5, ep=5, redundant_experts=2),
        "prefill",
        all_sizes(m, batch_size=25, seq_len=1024, kv_len=1024),
    )
    body = program.stages[0].runs[0].bodies[0]
    assert program.sizes["experts"] == 10
    assert local_dims(body, "expert_up.weight", program.sizes, program.mesh)["experts"] == 2
    arrived = local_dims(body, "expert_down", program.sizes, program.mesh)
    assert arrived["experts"] * arrived["expert_tokens"] == 5 * 1024 * 2, "a device computes as many pairs as it sends"


def test_memory_counts_every_copy() -> None:
    m = load_model("Mixtral-8x7B").model
    one, more = (lower(m, Strategy(attn_dp=4, ep=4, redundant_experts=r), "prefill", {}) for r in (0, 4))
    grown = sum(rank_weight_bytes(more).values()) - sum(rank_weight_bytes(one).values())
    assert grown == 32 * 4 * 3 * 4096 * 14336 * 2


def test_engines_that_rebalance_take_it_and_others_say_no() -> None:
    m = load_model("DeepSeek-V3").model
    for engine, codes in (("sglang", set()), ("vllm", set()), ("trtllm", {"not-expressible"})):
        s = Strategy(attn_dp=32, ep=32, redundant_experts=32, engine=engine, batch=64)
        assert {f.code for f in check(m, s) if f.severity == "error"} == codes
    uneven = Strategy(attn_dp=24, ep=24, engine="sglang", batch=48)
    assert any("num_experts(256) % ep(24)" in f.message for f in check(m, uneven))
    even = uneven.model_copy(update={"redundant_experts": 8})
    assert [f for f in check(m, even) if f.severity == "error"] == []


def test_a_dense_model_has_none() -> None:
    with pytest.raises(ToolError, match="has no experts"):
        lower(load_model("Llama-3.1-8B").model, Strategy(tp=2, redundant_experts=2), "prefill", {})
