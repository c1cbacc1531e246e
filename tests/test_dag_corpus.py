"""How well check-dag finds what is wrong: precision and recall per rule over hand-written files in many dialects.

Every file under data/dots/wrong starts with `// broken: R01, R05`: all rules that a reader finds broken in it. Files
under data/dots/right break none. `python tests/test_dag_corpus.py` writes the table into docs/check-dag.md.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

from tools.dag.check_dot import check_dot
from tools.dag.rules import RULES

ROOT = Path(__file__).parent.parent
DOTS = Path(__file__).parent / "data" / "dots"
PAGE = ROOT / "docs" / "check-dag.md"
NEEDS_THE_RUN = frozenset({"R13", "R16", "R17", "R18"})
FROM_A_FILE = tuple(r for r in sorted(RULES) if r not in NEEDS_THE_RUN)
SEPARATOR = "<!-- generated below: python tests/test_dag_corpus.py -->"


@dataclass(frozen=True)
class Score:
    """Files in which a rule was rightly found broken, wrongly found broken, and missed."""

    hit: int
    false: int
    missed: int

    @property
    def precision(self) -> float:
        return self.hit / (self.hit + self.false) if self.hit + self.false else 1.0

    @property
    def recall(self) -> float:
        return self.hit / (self.hit + self.missed) if self.hit + self.missed else 1.0


def broken(text: str) -> frozenset[str]:
    """What the file's first line says is broken."""
    stated = re.match(r"// broken: (.*)\n", text)
    return frozenset(stated[1].split(", ")) if stated else frozenset()


@lru_cache(maxsize=1)
def scores() -> dict[str, Score]:
    hit: Counter[str] = Counter()
    false: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for path in sorted(DOTS.rglob("*.dot")):
        if path.stem.startswith("syntax"):
            continue
        text = path.read_text(encoding="utf-8")
        truth, found = broken(text), {r.rule for report in check_dot(text, path.name) for r in report.failed}
        hit.update(truth & found)
        false.update(found - truth)
        missed.update(truth - found)
    return {r: Score(hit[r], false[r], missed[r]) for r in FROM_A_FILE}


@pytest.mark.parametrize("rule", FROM_A_FILE)
def test_a_rule_finds_nine_of_ten_faults_and_nine_of_ten_findings_are_faults(rule: str):
    s = scores()[rule]
    assert s.hit + s.missed >= 3, "at least three files break it"
    assert s.precision >= 0.9 and s.recall >= 0.9, s


def test_the_corpus_is_as_large_as_it_should_be():
    wrong = list((DOTS / "wrong").glob("*.dot"))
    named = Counter(p.stem.split("_")[0] for p in wrong)
    assert len(wrong) >= 60 and all(named[r] >= 3 for r in FROM_A_FILE) and named["syntax"] >= 3


def test_every_wrong_file_breaks_the_rule_it_is_named_after_and_no_unknown_one():
    for path in (DOTS / "wrong").glob("R*.dot"):
        truth = broken(path.read_text(encoding="utf-8"))
        assert path.stem.split("_")[0] in truth <= set(FROM_A_FILE), path.name


def table() -> str:
    rows = ["| rule | what it asks | files that break it | found | missed | wrongly found | precision | recall |",
            "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r, s in scores().items():
        rows.append(
            f"| {r} | {RULES[r].title} | {s.hit + s.missed} | {s.hit} | {s.missed} | {s.false} "
            f"| {s.precision:.2f} | {s.recall:.2f} |"
        )
    wrong, right = (len(list((DOTS / kind).glob("*.dot"))) for kind in ("wrong", "right"))
    return "\n".join([f"{wrong} wrong and {right} right files.", "", *rows, ""])


def test_the_table_in_the_docs_is_the_one_measured_here():
    head, sep, generated = PAGE.read_text(encoding="utf-8").partition(SEPARATOR)
    assert sep and head and generated.strip() == table().strip(), "run: python tests/test_dag_corpus.py"


if __name__ == "__main__":
    said = PAGE.read_text(encoding="utf-8").split(SEPARATOR)[0]
    PAGE.write_text(f"{said}{SEPARATOR}\n\n{table()}", encoding="utf-8")
    sys.stdout.write(table())
