"""Conditions under construction, and how two candidates compare."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from agent.reading.facts import Candidate, Reading
from tools.spec.conditions import Conflict, Fact

MAX_LISTED = 12
"""Values spelled out in the words of one conflict."""


class Draft:
    """Conditions under construction."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.facts: dict[str, Fact] = {}
        self.conflicts: list[Conflict] = []
        self.by_path: dict[str, list[Candidate]] = defaultdict(list)

    def value(self, path: str) -> Any:
        fact = self.facts.get(path)
        return fact.value if fact else None

    def has(self, path: str) -> bool:
        return path in self.facts

    def put(self, fact: Fact) -> None:
        self.facts[fact.path] = fact

    def conflict(self, path: str, values: Iterable[Any], resolution: Any, why: str, *paths: str) -> None:
        self.conflicts = [c for c in self.conflicts if not (c.path == path and c.why == why)]
        self.conflicts.append(
            Conflict(path=path, values=tuple(values), resolution=resolution, why=why, paths=(path, *paths))
        )


def take(draft: Draft, path: str) -> list[Candidate]:
    """Candidates of `path`, taken off the list so that the general rule leaves them alone."""
    return draft.by_path.pop(path, [])


def same(a: Any, b: Any) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float) and not isinstance(a, bool):
        return abs(a - b) <= 1e-6 * max(abs(a), abs(b))
    return bool(a == b)


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    out: list[Candidate] = []
    for c in candidates:
        if not any(same(c.value, o.value) for o in out):
            out.append(c)
    return out


def where(c: Candidate) -> str:
    """ "first_token_latency_p99_ms" or "conditions.md line 12"."""
    return c.key.split(".")[-1] if c.key and len(c.key) < 70 else f"{c.file} line {c.line}"


LISTS = ("workload.asked_strategies",)


def settle(draft: Draft, path: str, candidates: list[Candidate]) -> None:
    stated = [c for c in candidates if "absent" not in c.tags]
    options = distinct(stated or candidates)
    if len(options) == 1:
        draft.put(options[0].fact(path=path))
        return
    chosen, why = _choose(path, options)
    listed = ", ".join(f"{where(c)}: {c.stated_as or c.value}" for c in options[:MAX_LISTED])
    listed += f" and {len(options) - MAX_LISTED} more" if len(options) > MAX_LISTED else ""
    draft.conflict(path, [c.value for c in options], chosen.value, f"{listed}; {why}")
    draft.put(chosen.fact(path=path))


def _choose(path: str, options: list[Candidate]) -> tuple[Candidate, str]:
    numeric = all(isinstance(c.value, int | float) for c in options)
    if path.startswith("requirements.") and numeric:
        if ".throughput" in path or path.endswith("memory_reserve"):
            return max(options, key=lambda c: c.value), "the stricter one is planned for"
        if path.endswith("utilisation_target"):
            return options[-1], "the later one is reported against"
        return min(options, key=lambda c: c.value), "the stricter one is planned for"
    if path == "model.name":
        return options[0], "the one named first is planned for"
    if path == "workload.max_context" and numeric:
        return max(options, key=lambda c: c.value), "the larger one bounds the KV cache"
    if path in ("workload.isl", "workload.osl") and numeric:
        return max(options, key=lambda c: c.value), "the longer one is planned for"
    if path in ("workload.concurrency", "workload.request_rate") and numeric:
        return max(options, key=lambda c: c.value), "the larger load is planned for"
    config = [c for c in options if "config" in c.tags]
    if path.startswith("model.") and config:
        return config[-1], "the model's own config wins"
    return options[-1], "the later statement is used"
