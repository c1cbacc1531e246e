"""Numbers as people read them: three significant digits, the unit beside them, GB decimal and GiB named as such."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tools.spec.finding import Finding
from tools.spec.term import Prediction

METRIC_NAMES = {
    "ttft_s": "time to first token (TTFT)",
    "tpot_s": "time per output token (TPOT)",
    "e2e_latency_s": "end-to-end latency",
    "throughput_per_device": "throughput per device",
    "throughput_total": "total throughput",
    "request_rate": "request rate",
}
SHORT_NAMES = {
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "e2e_latency_s": "E2E latency",
    "throughput_per_device": "throughput per device",
    "throughput_total": "total throughput",
    "request_rate": "request rate",
}


def digits(value: float, significant: int = 3) -> str:
    """ "0.0421", "17.6", "1,234": `significant` digits, no exponent between 1e-4 and 1e15, thousands separated."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞" if value < 0 else "n/a"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude >= 15:
        return f"{value:.{significant - 1}e}"
    # Rounding can carry into the next power of ten (9.999 -> 10.0), so the decimals follow the rounded value.
    rounded = round(value, max(0, significant - 1 - magnitude))
    return f"{rounded:,.{max(0, significant - 1 - math.floor(math.log10(abs(rounded))))}f}"


def exact(value: float) -> str:
    """A number that was stated: no digit added, none lost up to six."""
    return (
        f"{float(f'{value:.6g}'):,.6f}".rstrip("0").rstrip(".") if abs(value) >= 1e-4 or value == 0 else f"{value:.6g}"
    )


def duration(seconds: float | None) -> str:
    """µs, ms or s, whichever reads without leading zeros; None and infinity are unbounded."""
    if seconds is None:
        return "unbounded"
    if not math.isfinite(seconds):
        return "unbounded" if seconds > 0 else "n/a"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= scale:
            return f"{digits(seconds / scale)} {unit}"
    return "0 s" if seconds == 0 else f"{digits(seconds / 1e-9)} ns"


def gigabytes(num_bytes: float) -> str:
    """Decimal GB (1e9 bytes); below 0.1 GB in MB, kB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(num_bytes) >= 0.1 * scale:
            return f"{digits(num_bytes / scale)} {unit}"
    return f"{num_bytes:.0f} B"


def gibibytes(num_bytes: float) -> str:
    return f"{digits(num_bytes / 2**30)} GiB"


def rate(tokens_per_s: float) -> str:
    return f"{digits(tokens_per_s, 4)} tok/s"


def percent(share: float, *, signed: bool = False) -> str:
    if not math.isfinite(share):
        return "n/a"
    value = share * 100
    text = f"{abs(value):.0f}" if abs(value) >= 10 or value == 0 else f"{abs(value):.1f}"
    sign = "-" if value < 0 else "+" if signed else ""
    return f"{sign}{text} %"


def quantity(metric: str, value: float) -> str:
    """A metric's value in the unit that people use for it."""
    if metric.endswith("_s"):
        return duration(value)
    if metric == "request_rate":
        return f"{digits(value)} requests/s"
    return rate(value) + ("/device" if metric == "throughput_per_device" else "")


SCALES: tuple[tuple[str, float, str], ...] = (
    ("_bandwidth", 1e9, "GB/s"),
    ("_bytes", 1e9, "GB"),
    ("peak_flops", 1e12, "TFLOP/s"),
    ("_parameters", 1e9, "B"),
)
"""Path fragment, SI units per printed unit, printed unit."""


def fact_value(path: str, value: object) -> str:
    """The value of a conditions path as people write it: `hardware.memory_bytes` 8e10 is "80 GB"."""
    if value is None:
        return "none"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    metric = path.split(".")[1] if path.startswith("requirements.") and path.count(".") > 1 else ""
    if metric in SHORT_NAMES:
        return quantity(metric, float(value))
    if path.endswith("_s"):
        return duration(float(value))
    for fragment, scale, unit in SCALES:
        if fragment in path:
            return f"{exact(value / scale)} {unit}" if abs(value) >= 0.1 * scale else f"{value:,.0f}"
    return exact(value)


def name_of(prediction: Prediction) -> str:
    """ "TTFT P90", "TPOT": the statistic is left out where none was stated."""
    stat = (
        ""
        if prediction.stat == "limit"
        else f" {prediction.stat.upper() if prediction.stat[0] == 'p' else prediction.stat}"
    )
    return SHORT_NAMES.get(prediction.metric, prediction.metric) + stat


def gate_words(finding: Finding) -> str:
    """What a finding about a requirement says, in the units people use; its own message for every other finding."""
    v = finding.values
    if not {"metric", "stat", "value", "limit"} <= set(v) or v["metric"] not in SHORT_NAMES:
        return finding.message.rstrip(".")
    stat = "" if v["stat"] == "limit" else f" {v['stat']}"
    off = f", margin {percent(v['margin'], signed=True)}" if isinstance(v.get("margin"), float) else ""
    band = f" ±{percent(v['band'])}" if isinstance(v.get("band"), float) else ""
    value, limit = quantity(v["metric"], v["value"]), quantity(v["metric"], v["limit"])
    return f"{SHORT_NAMES[v['metric']]}{stat} {value}{band}, required {limit}{off}"


def banded(prediction: Prediction) -> str:
    return f"{quantity(prediction.metric, prediction.value)} ±{percent(prediction.band)}"


def plural(n: int, noun: str) -> str:
    irregular = {"copy": "copies", "strategy": "strategies"}
    return f"{n:,} {noun if n == 1 else irregular.get(noun, noun + 's')}"


def spans(numbers: Iterable[int]) -> str:
    """ "0-3, 8": sorted, runs joined."""
    out: list[list[int]] = []
    for n in sorted(numbers):
        if out and n == out[-1][1] + 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in out)


def cell(text: object) -> str:
    """Markdown table cell: one line, pipes escaped."""
    return " ".join(str(text).split()).replace("|", "\\|")


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> list[str]:
    """Markdown table; `align` has one of l, r, c per column (default l)."""
    marks = {"l": ":--", "r": "--:", "c": ":-:"}
    rule = [marks[a] for a in align.ljust(len(headers), "l")]
    body = [f"| {' | '.join(cell(c) for c in row)} |" for row in rows]
    return [f"| {' | '.join(map(cell, headers))} |", f"|{'|'.join(rule)}|", *body] if body else []
