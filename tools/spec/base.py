"""The two bases every type of the vocabulary stands on, and the exceptions that cross boundaries.

    MeshwrightError
    ├── ToolError      the caller (a person, or the LLM) can fix it: bad input, unknown name, illegal strategy
    │   └── Refused    the request is understood and deliberately not supported; names op, dim and axis
    └── Bug            ours: a plan that the search holds feasible fails a check

`Infeasible` is *not* an exception: it is a result (see `tools.spec.plan`).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value that crosses a boundary: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False, ser_json_inf_nan="strings")
    # JSON has no infinity: "Infinity" as text comes back as the float, null would not.


class MeshwrightError(Exception):
    """Root of everything meshwright raises on purpose."""


class ToolError(MeshwrightError):
    """The caller can fix this. The message gives the numbers and the way out, in one line."""


class Refused(ToolError):
    """Understood, and deliberately not done: what cannot be represented, with op, dim, axis and reason."""


class Bug(MeshwrightError):
    """Our own contradiction. Stops the run loudly (exit 70), state kept."""
