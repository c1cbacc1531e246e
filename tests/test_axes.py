"""Axes: each is one file of tools/partition/axes, from which layouts, collectives, DAG, memory and proof follow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from knowledge.catalog import load_model
from tools.graph.build import all_sizes
from tools.oracle.prove import prove
from tools.partition.axes import AXES, LOGICAL, SLICES, VISIBLE, cuts
from tools.partition.lower import lower
from tools.spec.base import Refused, ToolError
from tools.spec.strategy import Strategy

ROOT = Path(__file__).resolve().parent.parent
LLAMA = load_model("llama-3-8b").model


def test_an_axis_takes_one_file() -> None:
    """hidden_tp, the worked example of CONTRIBUTING: no other module of the product knows its name."""
    modules = [p for top in ("tools", "agent", "knowledge", "evals") for p in (ROOT / top).rglob("*.py")]
    knowing = [p.relative_to(ROOT).as_posix() for p in modules if "hidden_tp" in p.read_text(encoding="utf-8")]
    assert knowing == ["tools/partition/axes/hidden_tp.py"]


@pytest.mark.parametrize("name", ["llama-3-8b", "mixtral-8x7b", "deepseek-v3", "bloom-7b1", "opt-6.7b"])
@pytest.mark.parametrize("example", [e for a in AXES for e in a.examples], ids=str)
def test_the_examples_of_every_axis_are_proven(name: str, example: dict) -> None:
    for proof in prove(load_model(name).model, Strategy.model_validate(example), batch_size=8, seq_len=16).values():
        assert proof.ok and proof.max_relative_error <= 1e-9


def test_slices_of_tp_share_its_ranks_and_nest() -> None:
    """tp 8 = 2 over the heads * 2 slices of d_k * 2 of the hidden dim."""
    s = Strategy(tp=8, dk=2, axes={"hidden_tp": 2})  # type: ignore[arg-type]
    assert s.num_devices == 8 and s.label() == "tp8·dk2·hidden_tp2"
    program = lower(LLAMA, s, "prefill", all_sizes(LLAMA, batch_size=4, seq_len=16, kv_len=16))
    (run,) = program.stages[0].runs
    body, mesh = run.bodies[0], program.mesh
    ways = {
        t.origin: {d: int(mesh.degree(a)) for d, a in t.layout.split}
        for t in body.weights()
        if t.origin in ("q_proj.weight", "up_proj.weight", "input_norm.weight")
    }
    assert ways["q_proj.weight"] == {"heads": 2, "d_k": 2, "hidden": 2}
    assert ways["up_proj.weight"] == {"ffn": 4, "hidden": 2}


def test_partial_products_are_summed_over_few_ranks() -> None:
    s = Strategy(tp=8, axes={"hidden_tp": 4})  # type: ignore[arg-type]
    program = lower(LLAMA, s, "decode", all_sizes(LLAMA, batch_size=4, seq_len=1, kv_len=16))
    (run,) = program.stages[0].runs
    comms = [(p.comm.kind, int(program.mesh.degree(p.comm.axes))) for p in run.bodies[0].ops if p.comm]
    sums = [n for kind, n in comms if kind in ("all_reduce", "reduce_scatter")]
    assert sums and max(sums) == 4 and ("all_reduce", 8) not in comms


@pytest.mark.parametrize(
    ("degrees", "said"),
    [
        ({"tp": 4, "axes": {"hidden_tp": 3}}, "tp(4) % hidden_tp(3) = 1"),
        ({"tp": 4, "axes": {"hiden_tp": 2}}, "no axis is called hiden_tp; known: "),
        ({"tp": 8, "dcp": 2, "axes": {"hidden_tp": 2}}, "both take the innermost ranks"),
        ({"tp": 8, "attn_pool": 8, "axes": {"hidden_tp": 2}}, "hidden_tp(2)"),
        ({"tp": 4, "dk": 2, "cp": 2, "cp_kind": "ring"}, "dk with ring attention"),
    ],
)
def test_degrees_that_no_layout_expresses_are_refused_with_their_numbers(degrees: dict, said: str) -> None:
    with pytest.raises((ToolError, Refused), match=re.escape(said)):
        lower(LLAMA, Strategy.model_validate(degrees), "prefill", {})


def test_a_degree_of_zero_is_refused_by_name() -> None:
    with pytest.raises(ToolError, match="axes: hidden_tp must be a whole number"):
        Strategy(tp=4, axes={"hidden_tp": 0})  # type: ignore[arg-type]


def test_pieces_lie_between_cuts_that_some_axis_makes() -> None:
    made = set(cuts({"tp": 8, "cp": 2, "attn_dp": 2, "ep": 4, "etp": 2}, 8))
    for name, start, end in LOGICAL:
        assert {start, end} <= made, name
    assert set(SLICES) <= set(VISIBLE) and {a.name for a in AXES} >= {"tp", "cp", "attn_dp", "ep", "dcp", "dk", "pp"}
