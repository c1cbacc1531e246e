"""Ring attention that passes queries: exact, drawn, and cheaper than passing keys exactly when queries are the smaller."""

from __future__ import annotations

import pytest

from knowledge.catalog import load_model
from tests.mutants import program_mutants
from tools.checks import run_checks
from tools.dag.build import build_dag
from tools.dag.check_dot import check_dot
from tools.dag.dot import to_dot
from tools.graph.build import all_sizes
from tools.oracle.prove import prove
from tools.partition.lower import Program, local_dims, lower, num_elements
from tools.spec.strategy import Strategy

CASES = [
    ("Llama-3.1-8B", {"cp": 4}), ("Llama-3.1-8B", {"tp": 2, "cp": 2}), ("gpt-oss-120b", {"tp": 2, "cp": 3}),
    ("DeepSeek-V3", {"tp": 2, "cp": 4, "ep": 4}), ("Gemma-3-27B", {"cp": 2}), ("bloom-7b1", {"cp": 3}),
]  # fmt: skip


def strategy(degrees: dict, passed: str = "q") -> Strategy:
    return Strategy(**degrees, cp_kind="ring", ring_pass=passed)


def prefill(name: str, s: Strategy) -> Program:
    m = load_model(name).model
    return lower(m, s, "prefill", all_sizes(m, batch_size=4, seq_len=96, kv_len=96))


def sent(program: Program) -> int:
    """Elements that one rank sends around the ring in one layer."""
    body = program.stages[0].runs[-1].bodies[-1]
    shifts = [p for p in body.ops if p.comm is not None and p.comm.kind == "ring_shift"]
    return sum(int(num_elements(local_dims(body, p.output, program.sizes, program.mesh))) for p in shifts)


@pytest.mark.parametrize(("name", "degrees"), CASES)
def test_passing_queries_computes_the_model(name: str, degrees: dict) -> None:
    s = strategy(degrees)
    proofs = prove(load_model(name).model, s, batch_size=8, seq_len=64)
    assert all(p.ok for p in proofs.values()), {k: p.failures for k, p in proofs.items()}
    program = prefill(name, s)
    assert [f for f in run_checks({"prefill": program}) if f.severity == "error"] == []
    (report,) = check_dot(to_dot(build_dag(program)), "x.dot")
    assert report.ok, [str(v) for r in report.failed for v in r.violations[:2]]


def test_grouped_keys_are_smaller_than_queries_and_their_sums() -> None:
    """Llama-3.1-8B has 32 query heads and 8 KV heads: per step and position 2 · 8 · 128 elements of keys and values stand
    against 32 · 128 of queries, as many of weighted values, and a sum and a maximum per head."""
    keys, queries = (sent(prefill("Llama-3.1-8B", strategy({"cp": 4}, p))) for p in ("kv", "q"))
    positions = 4 * 96 // 4
    assert keys == 3 * positions * 2 * 8 * 128
    assert queries == positions * (3 * (2 * 32 * 128 + 2 * 32) + 32 * 128 + 32)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mutants_of_the_queries_way_are_caught() -> None:
    m, s = load_model("Llama-3.1-8B").model, strategy({"cp": 3})
    mutants = [x for x in program_mutants({"prefill": prefill("Llama-3.1-8B", s)}) if "#" in x.name or "ring" in x.name]
    assert len(mutants) >= 15
    missed = []
    for mutant in mutants:
        found = prove(m, s, batch_size=8, seq_len=64, decode_steps=1, alter=mutant.alter)
        if all(p.ok for p in found.values()):
            missed.append(mutant.name)
    assert not missed
