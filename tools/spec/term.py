"""Numbers that explain themselves."""

from __future__ import annotations

from typing import Literal

from tools.spec.base import Frozen


class Term(Frozen):
    """One number with the formula it came from and the source of its constants. SI base units."""

    name: str
    value: float
    unit: str
    formula: str = ""
    source: str = ""


class Breakdown(Frozen):
    """A total and the terms that add up to it."""

    name: str
    unit: str
    terms: tuple[Term, ...]

    @property
    def total(self) -> float:
        return sum(t.value for t in self.terms)


class Prediction(Frozen):
    """A predicted number, never a proven one: value, relative error band, provenance, and the requirement it meets.

    `band` is a relative half-width (0.2 = ±20 %). `margin` is how far the value is inside the requirement, relative to
    the limit (negative = broken); `at_risk` when 0 <= margin < band.
    """

    metric: str
    stat: str
    value: float
    unit: str
    band: float
    provenance: str
    limit: float | None = None
    margin: float | None = None
    status: Literal["met", "at_risk", "broken", "no_requirement"] = "no_requirement"
