"""Facts about the evaluation cases: what they cover, and that every expected value rests on words of its own input."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from evals.case import CASES, FLAGS, KINDS, Case, flag_raised, is_legal_path, is_legal_value, load_case, load_cases
from knowledge.catalog import device_ids, load_device, load_model
from tools.spec.base import ToolError
from tools.units import find_quantities

ALL = load_cases()
ACCEPTED = [c for c in ALL if c.facts]
MINIMAL = {
    "title": "one line of text",
    "kind": "serving",
    "files": ["a.txt"],
    "facts": {"workload.isl": 500},
    "sources": {"500 tokens": ["workload.isl"]},
    "expect": {"exit_code": 0, "status": "proven"},
    "notes": "a case for the loader's own tests",
}


def write_case(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.txt").write_text("500 tokens", encoding="utf-8")
    (folder / "case.yaml").write_text(yaml.safe_dump({**MINIMAL, **changes}, allow_unicode=True), encoding="utf-8")
    return folder


# ── coverage ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_there_are_at_least_44_cases_and_every_kind_has_two() -> None:
    assert len(ALL) >= 44
    assert {k: n for k in KINDS if (n := sum(c.kind == k for c in ALL)) < 2} == {}


def test_ids_titles_and_inputs_are_distinct() -> None:
    assert len({c.id for c in ALL}) == len(ALL)
    assert len({c.title.lower() for c in ALL}) == len(ALL)
    digests = [hashlib.sha256("\0".join(c.texts().values()).encode()).hexdigest() for c in ALL]
    assert len(set(digests)) == len(ALL)


def test_inputs_come_in_every_format_as_folders_and_in_two_languages() -> None:
    suffixes = {Path(name).suffix for c in ALL for name in c.texts()}
    assert {".md", ".txt", ".json", ".yaml", ".toml"} <= suffixes
    assert any(path.is_dir() for c in ALL for path in c.inputs)
    assert any(len(c.texts()) >= 3 for c in ALL)
    chinese = [c for c in ALL if any("\u4e00" <= ch <= "\u9fff" for text in c.texts().values() for ch in text)]
    assert 15 <= len(chinese) <= len(ALL) - 15


def test_both_verdicts_and_every_exit_code_of_a_plan_that_conditions_can_cause_are_expected() -> None:
    assert {s for c in ALL for s in c.expect.status} == {"proven", "infeasible"}
    assert {code for c in ALL for code in c.expect.exit_code} == {0, 2, 3}
    assert {"memory", "kv", "slo"} <= {cause for c in ALL for cause in c.expect.cause}


@pytest.mark.parametrize("case", ALL, ids=lambda c: c.id)
def test_verdict_and_exit_code_agree(case: Case) -> None:
    expect = case.expect
    if expect.status == ("infeasible",):
        assert expect.exit_code == (3,) and expect.cause
    if expect.status == ("proven",):
        assert expect.exit_code == (0,) and not expect.cause
    if expect.exit_code == (2,):
        assert not expect.status and (case.must_not or expect.says)
    low, high = expect.num_devices_min or 1, expect.num_devices_max
    assert high is None or low <= high
    assert expect.num_devices is None or high is None


# ── every expected fact rests on its own input ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", ALL, ids=lambda c: c.id)
def test_quotes_and_ignored_words_stand_in_the_inputs_verbatim(case: Case) -> None:
    texts = case.texts().values()
    assert [q for q in (*case.sources, *case.ignored) if not any(q in text for text in texts)] == []


@pytest.mark.parametrize("case", [c for c in ACCEPTED if "hardware.device" in c.facts], ids=lambda c: c.id)
def test_devices_are_of_the_catalogue_and_stated_memory_is_near_the_catalogues(case: Case) -> None:
    ident = case.facts["hardware.device"]
    assert {ident, *case.accept.get("hardware.device", ())} <= set(device_ids())
    if stated := case.facts.get("hardware.memory_bytes"):
        assert load_device(ident).device.memory_bytes == pytest.approx(stated, rel=0.05)


@pytest.mark.parametrize("case", [c for c in ACCEPTED if "model.name" in c.facts], ids=lambda c: c.id)
def test_named_models_are_of_the_catalogue_and_their_shapes_do_not_contradict_the_case(case: Case) -> None:
    model = load_model(case.facts["model.name"]).model
    assert case.facts.get("model.num_hidden_layers", model.num_hidden_layers) == model.num_hidden_layers
    if case.kind not in ("long_context", "infeasible"):
        assert case.facts.get("workload.isl", 0) + case.facts.get("workload.osl", 0) <= (model.max_context or 1 << 60)


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda c: c.id)
def test_devices_are_nodes_times_devices_per_node(case: Case) -> None:
    nodes, per_node, total = (
        case.facts.get(f"hardware.{name}") for name in ("num_nodes", "devices_per_node", "num_devices")
    )
    if None not in (nodes, per_node, total):
        assert nodes * per_node == total


def readings(path: str, quote: str) -> list[float]:
    """Every number that the words give for `path`: a unit in a key, sparse or two-way halves, tokens/s per user."""
    found = [q.value for q in find_quantities(quote) if isinstance(q.value, int | float)]
    found += [q.high for q in find_quantities(quote) if isinstance(getattr(q, "high", None), int | float)]
    scales: tuple[float, ...] = (1,)
    if path.startswith("hardware.peak_flops"):
        scales = (1, 0.5e12)
    elif path == "hardware.intra_node_bandwidth":
        scales = (1, 0.5)
    elif path == "hardware.memory_bytes":
        scales = (1, 1e9)
    elif "_s." in path:
        scales = (1, 1e-3)
    per_user = [1 / v for v in found if v] if path.startswith("requirements.tpot_s") else []
    return [v * scale for v in found for scale in scales] + per_user


# Values that words give without a number ("the box", 单机), or as a product of two lines.
BY_WORDS = {"hardware.num_nodes", "hardware.num_devices", "workload.concurrency", "hardware.inter_node_bandwidth"}
SPELLED_OUT = {("falcon40b_4xa100_40g_pcie_en", "workload.osl")}


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda c: c.id)
def test_numbers_follow_from_their_own_quotes_by_the_units_alone(case: Case) -> None:
    orphans = [
        (path, value, quote)
        for quote, paths in case.sources.items()
        for path in paths
        if isinstance(value := case.facts[path], int | float)
        and path not in BY_WORDS
        and (case.id, path) not in SPELLED_OUT
        and not any(case.accepts(path, reading) for reading in readings(path, quote))
    ]
    assert orphans == []


# ── the loader ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_kinds_select_and_an_unknown_kind_is_an_error() -> None:
    assert {c.kind for c in load_cases(kinds=["moe", "paper"])} == {"moe", "paper"}
    with pytest.raises(ToolError, match="unknown kind nonsense; there are serving"):
        load_cases(kinds=["nonsense"])


def test_one_value_stands_for_a_tuple_of_one(tmp_path: Path) -> None:
    case = load_case(write_case(tmp_path / "c"))
    assert case.expect.exit_code == (0,) and case.expect.status == ("proven",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"facts": {"workload.tokens": 500}, "sources": {"500": ["workload.tokens"]}}, "illegal path: workload.tokens"),
        ({"facts": {"workload.isl": 0.5}}, "fact of the wrong type: workload.isl"),
        ({"facts": {"workload.isl": "5e2"}}, "fact of the wrong type: workload.isl"),
        ({"sources": {}}, "fact without a source: workload.isl"),
        ({"sources": {"500 tokens": ["workload.isl", "workload.osl"]}}, "source without a fact: workload.osl"),
        ({"missing": ["workload.isl"]}, "missing, but a fact: workload.isl"),
        ({"wrong": {"workload.isl": [500]}}, "wrong, but expected: workload.isl"),
        ({"must_flag": ["smells-odd"]}, "unknown flag: smells-odd"),
        ({"accept": {"workload.osl": [1]}}, "alternative without a fact: workload.osl"),
        ({"files": ["b.txt"]}, "no such input: b.txt"),
        ({"surprise": 1}, "surprise"),
        ({"id": "other"}, "id and folder follow from the folder's name"),
    ],
)
def test_a_broken_case_is_one_line_that_names_the_file(tmp_path: Path, changes: dict, message: str) -> None:
    folder = write_case(tmp_path / "c", **changes)
    with pytest.raises(ToolError) as caught:
        load_case(folder)
    assert message in str(caught.value) and str(folder / "case.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_cases_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"no folder with a case\.yaml"):
        load_cases(tmp_path)


def test_values_match_within_tolerance_by_alternative_and_by_spelling(tmp_path: Path) -> None:
    facts = {"workload.isl": 2048, "model.name": "Qwen2.5-7B-Instruct", "requirements.tpot_s.limit": None}
    case = load_case(
        write_case(
            tmp_path / "c",
            facts=facts,
            sources={"500 tokens": list(facts)},
            accept={"workload.isl": [2000]},
        )
    )
    assert case.accepts("workload.isl", 2048.0) and case.accepts("workload.isl", 2000)
    assert not case.accepts("workload.isl", 2001)
    assert case.accepts("model.name", "Qwen/qwen2.5_7b-instruct") and not case.accepts("model.name", "Qwen2.5-72B")
    assert case.accepts("requirements.tpot_s.limit", None) and not case.accepts("requirements.tpot_s.limit", 0)
    assert not case.accepts("workload.osl", 1)


@pytest.mark.parametrize(
    ("path", "legal"),
    [
        ("hardware.peak_flops.fp8", True),
        ("hardware.peak_flops.fp7", False),
        ("requirements.ttft_s.p95", True),
        ("requirements.ttft_s.p42", False),
        ("requirements.ttft_ms.p95", False),
        ("engine.limits.max_num_seqs", True),
        ("model.num_layers", False),
        ("objective", True),
    ],
)
def test_paths_are_those_of_the_reader_contract(path: str, legal: bool) -> None:
    assert is_legal_path(path) is legal


def test_values_have_the_type_of_their_path() -> None:
    assert is_legal_value("hardware.num_devices", "unbounded") and not is_legal_value("hardware.num_nodes", "unbounded")
    assert is_legal_value("hardware.mfu", 0.6) and not is_legal_value("hardware.mfu", 60)
    assert is_legal_value("requirements.tpot_s.limit", None) and not is_legal_value("workload.isl", None)
    assert is_legal_value("model.weight_dtype", "fp8") and not is_legal_value("model.weight_dtype", "w8a8")
    assert not is_legal_value("workload.isl", True) and not is_legal_value("requirements.ttft_s.limit", -0.2)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("prompt-injection", "line 8 gives instructions to the reader; it is data"),
        ("sparse-tflops", "3958 TFLOPS is the figure with 2:4 sparsity"),
        ("heterogeneous", "two kinds of device: 4 A100, 8 V100"),
        ("heterogeneous", "hardware.device"),
        ("context-over-model", "200000 tokens exceed the model's 32768 positions"),
    ],
)
def test_a_flag_is_recognised_by_code_or_by_words_and_not_in_an_ordinary_message(flag: str, said: str) -> None:
    assert flag in FLAGS
    assert flag_raised(flag, ["other", said]) and flag_raised(flag, [flag])
    assert not flag_raised(flag, ["H100 without form factor is taken as SXM5 80 GB", "no top-k is stated; 2 assumed"])


def test_the_cp936_case_is_no_utf8_and_the_binary_one_no_text() -> None:
    with pytest.raises(UnicodeDecodeError):
        (CASES / "encoded_cp936" / "说明.txt").read_text(encoding="utf-8")
    assert b"\0" in (CASES / "binary_file" / "photo.md").read_bytes()
    assert (CASES / "empty_file" / "empty.md").read_bytes() == b""
