"""Every strategy that is proven can be drawn, and no rule is broken in the drawing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.draw_all import cells, drawn
from tools.dag.graph import Detail

KNOWN_BAD = [
    ("gpt-oss-120b", "cp ulysses"),
    ("gpt-oss-120b", "tp·sp·pp interleaved·slices"),
    ("kimi-linear-48b-a3b", "experts apart"),
]
"""What could not be drawn once: a weight of which a rank reads a part, runs of layers on one device, layers that only their
attention tells apart on devices without attention."""


@pytest.mark.parametrize(("name", "axes"), cells(one_in=24))
def test_a_strategy_that_is_proven_is_drawn_without_a_broken_rule(name: str, axes: str) -> None:
    assert not any(drawn(name, axes))


@pytest.mark.parametrize(("name", "axes"), KNOWN_BAD)
@pytest.mark.parametrize("detail", ["full", "stage", "group"])
def test_what_could_not_be_drawn_once(name: str, axes: str, detail: Detail) -> None:
    drawings = list(drawn(name, axes, seq=130, detail=detail))
    assert len(drawings) == 2 and not any(drawings)
