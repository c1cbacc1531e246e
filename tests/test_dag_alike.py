"""Questions that are put to the form of a label have the same answer for the label itself."""

from collections.abc import Callable
from pathlib import Path

import pytest

import tools.dag.check_dot  # noqa: F401  (importing registers the questions)
from tools.dag import check_dot as checker
from tools.dag.alike import ASKED, form
from tools.dag.check_dot import check_dot
from tools.dag.labels import plain, segments, tidy
from tools.dag.parse import parse_dot
from tools.dag.places import Places

DATA = Path(__file__).parent / "data"


def _texts() -> list[str]:
    """Ids, labels, their segments and attributes of every graph of the corpus that has numbers."""
    found: set[str] = set()
    for file in sorted((DATA / "dots").rglob("*.dot"))[::3] + sorted((DATA / "dag_heldout").rglob("*.dot"))[::2]:
        for graph in parse_dot(file.read_text(errors="replace")):
            for n in graph.nodes.values():
                label = tidy(plain(n.attrs.get("label", ""), n.id))
                found.update((n.id, label, *segments(label), *n.attrs.values()))
    return sorted(t for t in found if any(c.isdigit() for c in t))


def test_no_question_tells_digits_apart() -> None:
    texts = _texts()
    assert len(texts) > 3_000 and len(ASKED) > 20
    wrong = [(ask.__name__, t) for ask in ASKED for t in texts if ask(t) != ask.__wrapped__(t)]
    assert wrong == []


@pytest.mark.parametrize("text", ["GPU 3", "H100-2 and H200-7", "GPUs 0-15", "cuda:{0,1}", "0号卡", "node 1 / GPU 12"])
def test_a_form_is_as_long_as_its_text_and_devices_keep_their_numbers(text: str) -> None:
    assert len(form(text)) == len(text)
    found = Places(words=["h100"]).find(text) or frozenset()
    assert found and all(str(d) in text or "-15" in text for d in found)


def test_a_cycle_is_the_same_one_in_every_run_and_begins_where_the_file_does() -> None:
    (report,) = check_dot("digraph { x -> a; a -> b; b -> c; c -> a }", "f")
    (r06,) = [r for r in report.results if r.rule == "R06"]
    assert r06.message == "cycle: a → b → c → a"


def test_of_a_graph_too_large_for_its_labels_the_wiring_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "MAX_NODES", 3)
    (report,) = check_dot("digraph { a -> b -> c -> d -> b; e }", "f")
    status = {r.rule: r.status for r in report.results}
    assert status["R06"] == status["R14"] == "failed"
    assert {s for r, s in status.items() if r not in ("R06", "R14")} == {"not_decidable"}
    assert "what so many say is judged up to 3" in next(r.message for r in report.results if r.rule == "R04")


def test_labels_that_share_no_form_are_left_to_the_wiring(monkeypatch: pytest.MonkeyPatch) -> None:
    def graph(words: Callable[[int], str]) -> str:
        return (
            "digraph { "
            + " ".join(f'n{i} [label="matmul {words(i)} GPU {i}"]; n{i} -> n{i + 1};' for i in range(50))
            + " }"
        )

    monkeypatch.setattr(checker, "MAX_WORDING", 200)
    (report,) = check_dot(graph(str), "f")
    assert {r.status for r in report.results if r.rule == "R01"} == {"failed"}
    (report,) = check_dot(graph(lambda i: "ab" * (1 + i)), "f")
    assert [r.rule for r in report.results if r.status != "not_decidable"] == ["R06", "R14"]
    assert "differ in more than their numbers" in report.results[0].message
