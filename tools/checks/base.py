"""The registry of checks, and what a check looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from tools.partition.lower import Program
from tools.spec.base import ToolError
from tools.spec.deployment import Deployment
from tools.spec.finding import Cause, Finding, Severity
from tools.spec.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Case:
    """A plan under check: its graphs (one per phase, one strategy), its deployment, predicted times if any."""

    programs: tuple[Program, ...]
    deployment: Deployment | None = None
    device_seconds: Mapping[int, float] = field(default_factory=dict)
    """Predicted busy time per device and step; empty: balance of time is not judged."""

    @property
    def strategy(self) -> Strategy:
        return self.programs[0].strategy


Check = Callable[[Case], Iterable[Finding]]
CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    """Registers a rule family under `name`."""

    def register(function: Check) -> Check:
        if name in CHECKS and CHECKS[name].__module__ != function.__module__:
            raise TypeError(f"check {name} is registered twice: {CHECKS[name].__module__} and {function.__module__}")
        CHECKS[name] = function
        return function

    return register


SEVERITY = {"error": 0, "warning": 1, "info": 2}


def run_checks(
    programs: Mapping[str, Program] | Sequence[Program],
    deployment: Deployment | None = None,
    *,
    device_seconds: Mapping[int, float] | None = None,
    only: Sequence[str] | None = None,
) -> tuple[Finding, ...]:
    """Findings of all checks (or of those named in `only`), errors first; no error means that the plan is sound.

    Without a deployment the checks that need a device, a workload or an engine have nothing to say. Raises ToolError
    for an unknown name, no program, or programs of different strategies.
    """
    given = tuple(programs.values()) if isinstance(programs, Mapping) else tuple(programs)
    if not given:
        raise ToolError("no program to check; give the lowered graph of at least one phase")
    if len({(p.model.name, p.strategy) for p in given}) > 1:
        raise ToolError(f"programs of {len(given)} strategies or models in one check; check them one by one")
    names = list(CHECKS) if only is None else list(only)
    unknown = [n for n in names if n not in CHECKS]
    if unknown:
        raise ToolError(f"no check named {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    case = Case(given, deployment, device_seconds or {})
    # Both phases often find the same thing.
    found = {(f.code, f.message): f for n in names for f in CHECKS[n](case)}
    return tuple(sorted(found.values(), key=lambda f: SEVERITY[f.severity]))


def finding(severity: Severity, code: str, message: str, *, cause: Cause = "shape", where: str | None = None,
            fix: str | None = None, **values: object) -> Finding:  # fmt: skip
    return Finding(code=code, severity=severity, message=message, cause=cause, where=where, fix=fix, values=values)


error = partial(finding, "error")
warning = partial(finding, "warning")
info = partial(finding, "info")


def gib(n: float) -> str:
    return f"{n / 2**30:.2f} GiB"
