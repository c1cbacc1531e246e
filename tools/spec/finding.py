"""A finding: one thing a check, a reader or the search has to say, with the numbers and the way out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tools.spec.base import Frozen

Severity = Literal["error", "warning", "info"]
Cause = Literal["memory", "kv", "slo", "shape", "network", "engine", "balance", "input", "dag", "oracle", "other"]


class Finding(Frozen):
    """`code` is stable and short (`R06`, `tp-kv-heads`), `message` one line with values, `fix` the way out."""

    code: str
    severity: Severity
    message: str
    cause: Cause = "other"
    where: str | None = None
    fix: str | None = None
    values: dict[str, Any] = Field(default_factory=dict)
