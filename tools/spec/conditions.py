"""What a careful reader takes from the conditions: facts with evidence, conflicts, gaps, what was left out.

`Conditions.model_dump(mode="json")` is the answer of `meshwright read --json`.
"""

from __future__ import annotations

from typing import Any, Literal

from tools.spec.base import Frozen

Origin = Literal["stated", "catalogue", "derived", "assumed"]


class Evidence(Frozen):
    """Where a fact comes from: 1-based line, and the words themselves, verbatim."""

    file: str
    line: int
    quote: str


class Fact(Frozen):
    """`path` as in docs (`hardware.memory_bytes`), `value` in SI base units, `stated_as` the words ("80 GB").

    A value of None with origin `stated` is an explicit absence ("TPOT: None").
    """

    path: str
    value: Any
    unit: str = ""
    stated_as: str = ""
    evidence: Evidence | None = None
    origin: Origin = "stated"


class Conflict(Frozen):
    """Every value that was seen for `path`, which one the plan uses, and why."""

    path: str
    values: tuple[Any, ...]
    resolution: Any
    why: str
    paths: tuple[str, ...] = ()
    """Further paths that the conflict touches."""


class Ignored(Frozen):
    section: str
    why: str


class Flag(Frozen):
    """Something a careful reader would raise: `prompt-injection`, `assumed-top-k`, `sparse-tflops` …"""

    code: str
    message: str


class Conditions(Frozen):
    facts: tuple[Fact, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    missing: tuple[str, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    flags: tuple[Flag, ...] = ()

    def get(self, path: str, default: Any = None) -> Any:
        """Value of the fact at `path`, else `default`. An explicit absence gives None."""
        for fact in self.facts:
            if fact.path == path:
                return fact.value
        return default

    def fact(self, path: str) -> Fact | None:
        return next((f for f in self.facts if f.path == path), None)

    def under(self, prefix: str) -> tuple[Fact, ...]:
        return tuple(f for f in self.facts if f.path.startswith(prefix))


class InputFile(Frozen):
    """One input, read into memory once. `path` as the user gave it."""

    path: str
    sha256: str
    text: str
    kind: Literal["markdown", "text", "json", "yaml", "toml"]


Resolution = Literal["stated", "name", "declared", "assumed"]
