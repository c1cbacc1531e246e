"""The proof catalogue covers what it says, and a part of it that is quick to run holds."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks.prove_all import ARCHITECTURES, AXIS_SETS, LENGTHS, cells, label, page, prove_cell
from knowledge.catalog import load_model
from tools.oracle.prove import TOLERANCE
from tools.partition.axes import SLICES, VISIBLE
from tools.partition.lower import lower
from tools.partition.mesh import build_mesh
from tools.spec.base import ToolError
from tools.spec.strategy import Strategy

QUICK = (
    ("llama-3-70b", "dcp"), ("gpt2-xl", "tp > kv_heads"), ("gpt2-xl", "tp·cp ring"), ("falcon-7b", "tp"), ("falcon-7b", "dcp"),
    ("bloom-7b1", "tp·sp"), ("opt-6.7b", "pp uneven"), ("gemma-2-9b", "cp ulysses"), ("gpt-j-6b", "dk"), ("mistral-7b", "cp ring"),
    ("mixtral-8x7b", "large ep"), ("deepseek-v3", "dcp"), ("deepseek-v3", "dk"), ("gpt-oss-120b", "tp·cp ring"),
    ("llama-4-scout", "tp·attn_dp·ep·etp"), ("glm-4.5", "attn_dp·ep·edp"), ("qwen3-235b-a22b", "attn_dp·ep, all-gather"),
    ("gemma-4-26b-a4b", "tp·attn_dp·ep·etp"), ("mimo-v2-flash", "dcp"), ("mimo-v2-flash", "dk"),
    ("glm-5.2", "pp uneven"), ("minimax-m3", "cp ulysses"), ("minimax-m3", "dcp"), ("jamba-1.5-mini", "tp·sp"),
    ("lfm2-8b-a1b", "tp"), ("falcon-h1-0.5b", "tp·sp"), ("gemma-4-e4b", "tp·cp ring"), ("gemma-4-e4b", "pp·slices"),
)  # fmt: skip


def test_the_catalogue_is_as_wide_as_promised() -> None:
    assert len(ARCHITECTURES) >= 12 and len(AXIS_SETS) >= 12
    assert len(cells()) == len(ARCHITECTURES) * len(AXIS_SETS)
    attention = {load_model(n).model.attention.num_kv_heads for n in ARCHITECTURES}
    assert 1 in attention and max(attention) > 64
    assert {load_model(n).model.position.kind for n in ARCHITECTURES} == {"rope", "learned", "alibi", "none"}


FIELDS = [
    a
    for a in (*VISIBLE, "pp", "sp", "expert_devices", "attn_pool", "redundant_experts", "virtual", "seq_slices")
    if a == "edp" or a in Strategy.model_fields or a in SLICES
]


def test_every_axis_that_a_strategy_names_is_proven_somewhere() -> None:
    """With a degree above 1, on a model that can take it."""
    seen: set[str] = set()
    for name, axes in cells(("llama-3-70b", "mixtral-8x7b", "deepseek-v3")):
        for degrees in AXIS_SETS[axes](load_model(name).model):
            try:
                s = Strategy.model_validate(degrees)
            except ToolError:
                continue
            seen |= {
                a for a in FIELDS if (int(getattr(s, a)) if a == "edp" else s.degree(a)) > 1 or (a == "sp" and s.sp)
            }
    assert seen >= {*FIELDS}


@pytest.mark.parametrize("cell", QUICK, ids=lambda c: f"{c[0]} {c[1]}")
def test_a_cell_is_proven_or_refused_with_a_reason(cell: tuple[str, str]) -> None:
    lines = prove_cell(cell, LENGTHS[1:], decode_steps=2)
    if lines[0].refused:
        assert len(lines) == 1 and len(lines[0].refused) > 20 and any(c.isdigit() for c in lines[0].refused)
        return
    assert [x.phase for x in lines] == ["prefill", "decode"]
    for x in lines:
        assert x.ok and x.error <= TOLERANCE and x.tensors > 20 and x.devices > 1 and x.seconds > 0


def test_what_a_model_lacks_is_refused_in_its_own_lengths() -> None:
    (line,) = prove_cell(("deepseek-v3", "dk"), LENGTHS[:1])
    assert "d_k(192)" in line.refused  # not the length of the reduced model
    (line,) = prove_cell(("gpt2-xl", "tp > kv_heads"), LENGTHS[:1])
    assert "heads(25) % tp(50) = 25" in line.refused


REFUSED = (
    ("deepseek-v3", {"cp": 4, "cp_kind": "ring", "ep": 2}, "over cp, only etp would move"),
    ("deepseek-v3", {"cp": 2, "tp": 2, "cp_kind": "ring", "ep": 2, "etp": 2, "attn_dp": 1}, ""),
    ("gpt-oss-120b", {"tp": 16, "cp": 2, "dcp": 2}, "splits heads over tp, the activation over part of tp·cp"),
    ("mixtral-8x7b", {"tp": 16, "attn_dp": 3, "ep": 3, "etp": 1}, "tp/kv_heads"),
    ("llama-3-70b", {"tp": 6, "dk": 4}, "tp(6) % dk(4) = 2"),
)


@pytest.mark.parametrize(("name", "degrees", "says"), REFUSED, ids=lambda x: str(x))
def test_a_refusal_speaks_of_the_axes_that_were_asked_for(name: str, degrees: dict, says: str) -> None:
    """No name of an atomic axis of the mesh reaches a person."""
    try:
        for phase in ("prefill", "decode"):
            lower(load_model(name).model, Strategy(**degrees), phase, {})
    except ToolError as e:
        assert says in str(e) and not re.search(r"\ba\d+\b|tp_rep|cp_rep|tp_kv", str(e))
    else:
        assert not says


@given(
    tp=st.sampled_from([1, 2, 4, 8]), cp=st.sampled_from([1, 2]), attn_dp=st.sampled_from([1, 2, 4]),
    ep=st.sampled_from([1, 2, 4, 8]), kv=st.sampled_from([1, 2, 8]),
)  # fmt: skip
def test_every_run_of_axes_has_a_name_that_says_which_ranks(tp: int, cp: int, attn_dp: int, ep: int, kv: int) -> None:
    assume((tp * cp * attn_dp) % ep == 0)
    mesh = build_mesh(Strategy(tp=tp, cp=cp, attn_dp=attn_dp, ep=ep), kv)
    shape = mesh.shape
    for name in ("tp", "cp", "attn_dp"):
        if axes := shape.axis(name):
            assert shape.words(axes) == shape.words(axes[::-1]) == name
    assert not shape.axis("ep") or shape.words(shape.axis("ep"), first="ep") == "ep"
    assert shape.words(()) == "nothing"
    everything = "·".join(n for n in ("attn_dp", "cp", "tp") if shape.axis(n))
    assert shape.words(shape.atoms) == (everything or "nothing")


def test_the_page_counts_proofs_and_refusals_apart() -> None:
    lines = [
        x for c in (("gpt2-xl", "tp"), ("gpt2-xl", "attn_dp·ep")) for x in prove_cell(c, LENGTHS[:1], decode_steps=1)
    ]
    text = page(lines, 1.0, 1)
    assert "2 graphs (2 of them structurally distinct) of 1 architectures" in text and "2 proven, 0 not" in text
    assert "1 combinations are refused" in text and "no experts" in text


def test_a_label_says_what_the_degrees_do_not() -> None:
    assert label(Strategy(cp=2, cp_kind="ring")) == "tp1·cp2 ring"
    assert label(Strategy(pp=2, layers_per_stage=(3, 5))) == "tp1·pp2 layers 3+5"
