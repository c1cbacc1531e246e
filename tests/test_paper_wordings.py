"""Papers in many wordings: models, hardware and strategies that each must give, in English and Chinese."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from agent.paper_run import verify_paper
from agent.reading.paper import is_paper, read_paper
from agent.reading.sources import read_file
from tools.spec.base import Refused
from tools.spec.paper import PaperMethod, PaperModel, PaperStrategy
from tools.spec.strategy import Strategy

PAPERS = Path(__file__).parent / "data" / "papers"
FOLDERS = (PAPERS / "wordings", PAPERS / "voices", PAPERS / "field")
FILES = {p.stem: p for folder in FOLDERS for p in sorted(folder.glob("*.md"))}
EXPECTED: dict[str, dict[str, Any]] = {
    name: e for d in FOLDERS for name, e in json.loads((d / "expected.json").read_text(encoding="utf-8")).items()
}
READ = [name for name, e in EXPECTED.items() if "refused" not in e]
DEGREES = (
    "tp", "pp", "dp", "ep", "etp", "attn_dp", "cp", "sp", "dcp", "dk", "expert_devices", "attn_pool", "redundant_experts",
    "virtual", "seq_slices", "microbatches",
)  # fmt: skip


@cache
def read(name: str) -> PaperMethod:
    file = read_file(FILES[name])
    assert is_paper((file,))
    return read_paper((file,))


def shape_of(m: PaperModel) -> dict[str, Any]:
    s, a = m.spec, m.spec.attention
    out: dict[str, Any] = {
        "num_hidden_layers": s.num_hidden_layers, "hidden_size": s.hidden_size, "num_heads": a.num_heads,
        "num_kv_heads": a.num_kv_heads, "head_dim": a.head_dim, "vocab_size": s.vocab_size, "weight_dtype": s.weight_dtype,
        "batch_size": m.batch_size, "seq_len": m.seq_len, "output_len": m.output_len,
    }  # fmt: skip
    if s.mlp:
        out |= {"ffn": s.mlp.intermediate_size, "ffn_gated": s.mlp.gated}
    if s.moe:
        out |= {"num_experts": s.moe.num_experts, "top_k": s.moe.top_k, "expert_width": s.moe.intermediate_size}
        out |= {"expert_gated": s.moe.gated, "shared": s.moe.shared_intermediate_size}
        out["dense_layers"] = (s.moe_layers or ()).count(False)
    return out


def agrees(got: PaperStrategy, role: str, fields: dict[str, Any], more: dict[str, Any]) -> bool:
    want, s = Strategy.model_validate(fields), got.strategy
    names = [*DEGREES, *(k for k in ("layers_per_stage", "cp_kind", "pool_above") if k in fields)]
    same = all(getattr(s, n) == getattr(want, n) for n in names)
    around = all(getattr(got, k) == (tuple(v) if isinstance(v, list) else v) for k, v in more.items())
    return got.role == role and same and around


@pytest.mark.parametrize("name", READ)
def test_models_of_a_paper(name: str):
    method = read(name)
    assert len(method.models) == len(EXPECTED[name]["models"])
    for got, want in zip(method.models, EXPECTED[name]["models"], strict=True):
        shape = shape_of(got)
        assert {k: shape.get(k) for k in want} == want, got.name


@pytest.mark.parametrize("name", READ)
def test_hardware_of_a_paper(name: str):
    got = {f.path.removeprefix("hardware."): f.value for f in read(name).conditions.under("hardware.")}
    for key, value in EXPECTED[name]["hardware"].items():
        if key == "device":
            assert value in str(got.get(key)).replace("_", "")
        else:
            assert got.get(key) == value, key


@pytest.mark.parametrize("name", READ)
def test_strategies_of_a_paper(name: str):
    method = read(name)
    left = [s for m in method.models for s in method.of(m.key)]
    for role, fields, *more in EXPECTED[name]["strategies"]:
        hit = next((s for s in left if agrees(s, role, fields, more[0] if more else {})), None)
        said = [(s.name, s.strategy.label()) for s in left]
        assert hit is not None, f"{role} {Strategy.model_validate(fields).label()} {more} is not among {said}"
        left.remove(hit)
    assert not left, [(s.name, s.strategy.label()) for s in left]
    missing = [u.what for u in method.unsupported]
    assert missing == ([EXPECTED[name]["unsupported"]] if "unsupported" in EXPECTED[name] else [])


@pytest.mark.parametrize("name", [n for n in READ if "conflicts" in EXPECTED[n]])
def test_what_a_paper_contradicts_or_leaves_open_is_said(name: str):
    method = read(name)
    told = {c.path.split(".", 2)[2] for c in method.conditions.conflicts}
    assert told == set(EXPECTED[name]["conflicts"])
    assert {f.code for s in method.strategies for f in s.findings} == set(EXPECTED[name]["findings"])


@pytest.mark.parametrize("name", READ)
def test_every_strategy_rests_on_words_of_the_paper(name: str):
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    for s in read(name).strategies:
        assert s.quotes or s.title == "assumed"
        assert s.strategy.num_devices == s.num_devices
        for q in s.quotes:
            assert q.quote.strip() in "\n".join(lines[q.line - 1 : q.line + q.quote.count("\n")])


@pytest.mark.parametrize("name", [n for n in EXPECTED if n not in READ])
def test_a_method_without_words_in_the_layout_language_is_refused_with_its_passage(name: str):
    with pytest.raises(Refused, match=EXPECTED[name]["refused"]) as caught:
        read(name)
    assert f"{name}.md line " in str(caught.value)


def test_a_budget_that_cannot_be_kept_is_a_finding_with_both_numbers():
    stated = read("l2_budget").strategies[-1]
    assert [f.code for f in stated.findings] == ["paper-budget"] and "50 MB" in stated.findings[0].message
    computed = read("c_l2").strategies[-1]
    assert computed.strategy.layers_per_stage == (3,) * 8 and "12 devices, 8 are given" in computed.findings[0].message


@pytest.mark.parametrize("name", ["afd_zh", "pd_pools", "token_zh", "e_inter", "g_dcp", "c_l2"])
def test_groups_pools_slices_and_chunks_are_proven(name: str):
    found = verify_paper(read(name))
    assert not found.refused
    for g in found.graphs:
        assert not g.errors and all(p.ok and p.max_relative_error <= 1e-9 for p in g.verified.proofs.values())
    phases = {p for g in found.graphs for p in g.verified.proofs if g.verified.subject.role == "plan"}
    assert phases == {"prefill", "decode"}
