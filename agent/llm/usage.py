"""What a run's LLM calls took: calls, tokens, money, seconds, per node and in total; read from the event log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tools.spec.base import Frozen


class Price(Frozen):
    """Money per million tokens, as the provider's price list or the user's profile says; `cached` defaults to input."""

    input: float
    output: float
    cached: float | None = None
    currency: str = "USD"

    def of(self, tokens: Mapping[str, int]) -> float:
        """Cost of one call. `prompt` counts cached tokens too, as servers report it."""
        cached = min(tokens.get("cached", 0), tokens.get("prompt", 0))
        fresh = tokens.get("prompt", 0) - cached
        rate = self.input if self.cached is None else self.cached
        return (fresh * self.input + cached * rate + tokens.get("completion", 0) * self.output) / 1e6


class NodeUsage(Frozen):
    """One node, all rounds. `seconds` is its wall time, `llm_seconds` the part spent waiting for replies.

    `cost` is None where no price is known; `counted` says how many of `calls` reported their tokens.
    """

    calls: int = 0
    counted: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    cost: float | None = None
    seconds: float = 0.0
    llm_seconds: float = 0.0

    def plus(self, other: NodeUsage) -> NodeUsage:
        sums = {k: getattr(self, k) + getattr(other, k) for k in NUMBERS}
        costs = [c for c in (self.cost, other.cost) if c is not None]
        return NodeUsage(**sums, cost=sum(costs) if costs else None)


NUMBERS = ("calls", "counted", "prompt", "completion", "cached", "seconds", "llm_seconds")


class Usage(Frozen):
    total: NodeUsage
    nodes: dict[str, NodeUsage]
    currency: str = "USD"


def usage_of(events: Iterable[Mapping[str, Any]]) -> Usage:
    """Usage of a run from its events. Replies replayed after a crash cost nothing again; the built-in policy nothing
    at all."""
    nodes: dict[str, NodeUsage] = {}
    currency = "USD"
    for e in events:
        if e.get("event") == "node_finished":
            one = NodeUsage(seconds=float(e.get("seconds", 0.0)))
        elif e.get("event") == "llm_call" and e.get("backend") != "builtin" and not e.get("replayed"):
            tokens = e.get("tokens") or {}
            currency = e.get("currency") or currency
            one = NodeUsage(
                calls=1, counted=int(bool(tokens)), cost=e.get("cost"), llm_seconds=float(e.get("seconds", 0.0)),
                **{k: int(tokens.get(k, 0)) for k in ("prompt", "completion", "cached")},
            )  # fmt: skip
        else:
            continue
        nodes[e["node"]] = nodes.get(e["node"], NodeUsage()).plus(one)
    total = NodeUsage()
    for node in nodes.values():
        total = total.plus(node)
    return Usage(total=total, nodes=nodes, currency=currency)


def usage_lines(usage: Usage) -> list[str]:
    """A line per node and the total, for a terminal; empty when no LLM was called."""
    if not usage.total.calls:
        return []
    head = f"{'node':<20} {'calls':>5} {'in':>9} {'cached':>9} {'out':>8} {'cost':>10} {'LLM s':>8} {'s':>8}"
    rows = [*usage.nodes.items(), ("total", usage.total)]
    return [head, *(_row(name, u, usage.currency) for name, u in rows)]


def _row(name: str, u: NodeUsage, currency: str) -> str:
    cost = "unknown" if u.cost is None and u.calls else f"{u.cost or 0:.4f}"
    known = "" if u.counted == u.calls else f"  ({u.calls - u.counted} calls without token counts)"
    return (
        f"{name:<20} {u.calls:>5} {u.prompt:>9} {u.cached:>9} {u.completion:>8} "
        f"{cost if cost == 'unknown' else f'{cost} {currency}':>10} {u.llm_seconds:>8.2f} {u.seconds:>8.2f}{known}"
    )
