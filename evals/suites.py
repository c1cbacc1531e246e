"""Which cases a suite holds, and how far each is run.

read   the reader alone
plan   the whole agent; the DAGs are built and judged in memory, no script is executed and no SVG rendered
full   the whole agent as `meshwright plan` runs it
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from evals.case import CASES, KINDS, Case, load_case, load_cases
from tools.spec.base import ToolError

Depth = Literal["read", "plan", "full"]
DEPTHS: tuple[Depth, ...] = get_args(Depth)


@dataclass(frozen=True, slots=True)
class Suite:
    name: str
    cases: tuple[Case, ...]
    depth: Depth


NAMED: dict[str, tuple[str, Depth]] = {
    "all": ("every case", "plan"),
    "read": ("every case, the reader alone", "read"),
    "smoke": ("the first case of every kind", "plan"),
    "full": ("the first case of every kind, with scripts, DOT and SVG", "full"),
}
"""Suites besides the kinds of cases (`evals.case.KINDS`), each of which is a suite too."""


def load_suite(name: str = "all", depth: str | None = None) -> Suite:
    """A named suite, a kind of cases, or a folder of cases (or of one). Raises ToolError for anything else."""
    if depth is not None and depth not in DEPTHS:
        raise ToolError(f"--depth {depth!r}: choose one of {', '.join(DEPTHS)}")
    chosen, default = _cases(name)
    wanted: Depth = depth or default  # type: ignore[assignment]
    return Suite(name, chosen, wanted)


def _cases(name: str) -> tuple[tuple[Case, ...], Depth]:
    if name in KINDS:
        return load_cases(kinds=[name]), "plan"
    if name in NAMED:
        every = load_cases()
        return (first_of_each_kind(every) if name in ("smoke", "full") else every), NAMED[name][1]
    path = Path(name)
    if (path / "case.yaml").is_file():
        return (load_case(path),), "plan"
    if path.is_dir():
        return load_cases(path), "plan"
    if (CASES / name / "case.yaml").is_file():
        return (load_case(CASES / name),), "plan"
    raise ToolError(f"no suite {name!r}; there are {', '.join((*NAMED, *KINDS))}, a case's name, or a folder of cases")


def first_of_each_kind(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    first: dict[str, Case] = {}
    for case in cases:
        first.setdefault(case.kind, case)
    return tuple(first[k] for k in KINDS if k in first)
