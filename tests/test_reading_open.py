"""The reader on conditions as people write them: expected facts, conflicts and gaps from files beside them."""

import json
from pathlib import Path

import pytest

from agent.reading import input_from_text, read_conditions, read_files, resolve

CASES = Path(__file__).parent / "data" / "conditions"
EXPECTED = sorted(CASES.glob("*.expected.json"))


def source(expected: Path) -> Path:
    stem = expected.name.removesuffix(".expected.json")
    return next(p for p in sorted(CASES.glob(f"{stem}*")) if p.name.rsplit(".", 1)[0] == stem and p != expected)


def same(a, b):
    if isinstance(a, int | float) and isinstance(b, int | float) and not isinstance(a, bool):
        return abs(a - b) <= 1e-6 * max(abs(a), abs(b))
    return a == b


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda p: p.name.removesuffix(".expected.json"))
def test_every_expected_fact_conflict_and_gap_comes_out(expected):
    want = json.loads(expected.read_text(encoding="utf-8"))
    got = read_conditions(read_files([source(expected)]))
    for path, value in want["facts"].items():
        fact = got.fact(path)
        assert fact is not None, path
        assert same(fact.value, value), (path, fact.value, value)
    touched = [{c.path, *c.paths} for c in got.conflicts]
    for conflict in want["conflicts"]:
        assert any(set(conflict["paths"]) & paths for paths in touched), conflict
    assert set(got.missing) == set(want["missing"])
    for section in want.get("ignored", ()):
        assert any(section in i.section for i in got.ignored)
    for path in want.get("absent", ()):
        assert got.fact(path) is None, path
    if not want["conflicts"]:
        assert got.conflicts == ()


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda p: p.name.removesuffix(".expected.json"))
def test_every_fact_quotes_its_line(expected):
    files = {f.path: f.text.split("\n") for f in read_files([source(expected)])}
    for fact in read_conditions(read_files([source(expected)])).facts:
        if fact.origin in ("stated", "derived"):
            assert fact.evidence is not None, fact.path
            assert fact.evidence.quote in files[fact.evidence.file][fact.evidence.line - 1], fact


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda p: p.name.removesuffix(".expected.json"))
def test_reading_twice_gives_the_same(expected):
    files = read_files([source(expected)])
    assert read_conditions(files) == read_conditions(files)


def test_the_open_cases_resolve():
    for name, devices in (
        ("deepseek_v3_2x8_h20_zh.md", 16),
        ("llama3_70b_json", 8),
        ("qwen32b_4x4090_en.md", 4),
        ("moe_10b_ample_gpu.md", None),
    ):
        deployment = resolve(read_conditions(read_files([CASES / name])))
        assert deployment.cluster.num_devices == devices
        assert deployment.requirements.gates


def test_the_question_about_two_strategies_is_kept():
    got = read_conditions(read_files([CASES / "qwen32b_4x4090_en.md"]))
    assert got.get("workload.asked_strategies") == [{"tp": 4}, {"tp": 2, "dp": 2}]
    assert resolve(got).alternatives == ({"tp": 4}, {"tp": 2, "dp": 2})


def test_facts_do_not_depend_on_what_the_file_is_called():
    text = (CASES / "moe_10b_ample_gpu.md").read_text(encoding="utf-8")
    values = [
        {f.path: f.value for f in read_conditions([input_from_text(text, name)]).facts} for name in ("a.md", "b.txt")
    ]
    assert values[0] == values[1]
