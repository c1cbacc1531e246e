"""Mistakes of every kind in a partitioned program are noticed; the full run is `python benchmarks/mutate_all.py`."""

from __future__ import annotations

import pytest

from benchmarks.mutate_all import CASES, Job, judge, mutants_of, page
from tests.mutants import equivalent

KINDS = sorted({k for c in range(len(CASES)) for k, ms in mutants_of(c).items() if ms})
EACH = 4
PROMISED = 20


def sample(kind: str, each: int) -> list[Job]:
    """`each` mutants of a kind that must be caught, from as many right programs as have some."""
    found = [(i, c) for c in range(len(CASES)) for i, m in enumerate(mutants_of(c)[kind]) if not equivalent(m.name)]
    step = max(1, len(found) // each)
    return [Job(c, kind, i) for i, c in sorted(found)[::step][:each]]


def test_there_are_enough_mutants_of_every_kind_and_in_all() -> None:
    counts = {k: sum(len(mutants_of(c)[k]) for c in range(len(CASES))) for k in KINDS}
    assert min(counts.values()) >= PROMISED and sum(counts.values()) >= 1000 and len(KINDS) >= 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_mistake_of_this_kind_is_caught(kind: str) -> None:
    outcomes = [judge(j) for j in sample(kind, EACH)]
    assert len(outcomes) == EACH
    assert not [o.name for o in outcomes if not o.caught]


def test_what_is_called_equivalent_passes() -> None:
    """Nothing is excused that the oracle would catch: one mutant for every reason that is ever given."""
    reasons: dict[str, Job] = {}
    for c in range(len(CASES)):
        for kind, ms in mutants_of(c).items():
            for i, m in enumerate(ms):
                if equivalent(m.name):
                    reasons.setdefault(equivalent(m.name), Job(c, kind, i))
    assert len(reasons) >= 5
    outcomes = [judge(j) for j in reasons.values()]
    assert not [o.name for o in outcomes if o.caught]
    assert "Equivalent, one by one" in page([*outcomes, judge(sample(KINDS[0], 1)[0])], 1.0)
