"""What one statement yields before anything is compared: candidates for facts, and what was seen but not used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tools.spec.conditions import Evidence, Fact, Flag, Ignored, Origin

UNITS = {
    "memory_bytes": "bytes",
    "memory_bandwidth": "bytes/s",
    "intra_node_bandwidth": "bytes/s",
    "inter_node_bandwidth": "bytes/s",
    "pcie_bandwidth": "bytes/s",
    "ttft_s": "s",
    "tpot_s": "s",
    "e2e_latency_s": "s",
    "throughput_per_device": "tokens/s",
    "throughput_total": "tokens/s",
    "request_rate": "requests/s",
    "peak_flops": "flop/s",
    "declared_weight_bytes": "bytes",
    "declared_kv_bytes_per_token": "bytes/token",
    "price_per_device_hour": "money/h",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One reading of one place. `scope` is node or device where the amount is per node or per device."""

    path: str
    value: Any
    stated_as: str
    file: str
    line: int
    quote: str
    scope: str = ""
    factor: int = 1
    key: str = ""
    """The label or dotted key it stood under, for messages."""
    doubt: str = ""
    tags: tuple[str, ...] = ()
    origin: Origin = "stated"
    leaf: str = ""
    """Key path in a structured input, list positions left out ("nodes[].gpu_type"); empty for prose."""
    weight: int = 0
    """Standing against other values of the same path: a correction above, a wish or a quoted older mail below."""
    group: str = ""
    """Position of the list item it belongs to ("nodes[0].gpus[3]"), for counting and pools."""

    def fact(self, value: Any = None, path: str | None = None) -> Fact:
        name = path or self.path
        return Fact(
            path=name,
            value=self.value if value is None else value,
            unit=unit_of(name),
            stated_as=self.stated_as,
            evidence=Evidence(file=self.file, line=self.line, quote=self.quote),
            origin=self.origin,
        )


def unit_of(path: str) -> str:
    return next((UNITS[p] for p in path.split(".") if p in UNITS), "")


@dataclass(slots=True)
class Reading:
    """Everything taken from the inputs, in order; `reconcile` makes Conditions of it."""

    candidates: list[Candidate] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Paths whose value the writer gives as "TBD"."""
    numbers: list[tuple[str, int, str, str]] = field(default_factory=list)
    """(file, line, the number as written, the words it stands in) of every amount that was seen."""
    order_at: tuple[str, int] = ("", 0)
    """File and line of the last order to the reader: a command right behind it goes on with it."""
    order_lines: dict[str, frozenset[int]] = field(default_factory=dict)
    """File → lines that hold an order: what else they say is believed least."""

    def flag(self, code: str, message: str) -> None:
        if not any(f.code == code and f.message == message for f in self.flags):
            self.flags.append(Flag(code=code, message=message))

    def ignore(self, section: str, why: str) -> None:
        if not any(i.section == section for i in self.ignored):
            self.ignored.append(Ignored(section=section, why=why))
