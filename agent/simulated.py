"""`estimate`: percentiles from the request-level simulation, at a load or over a recorded trace."""

from __future__ import annotations

import csv
import io
import math
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from agent.files import read_text
from tools.cost.simulate import Arrivals, Simulated, simulate_strategy, trace_of
from tools.spec.base import ToolError

if TYPE_CHECKING:
    from tools.cost.curves import Curves
    from tools.spec.deployment import Deployment
    from tools.spec.plan import Estimate

MAX_TRACE_BYTES = 200_000_000
SPREAD = (0.8, 1.2)
"""Lengths that are given as a mean, in shares of it: requests of one exact length would run in lockstep for ever."""
COLUMNS = {
    "at": ("at", "arrival_s", "arrival", "timestamp", "time"),
    "isl": ("isl", "input_length", "prompt_tokens", "input_tokens", "contexttokens"),
    "osl": ("osl", "output_length", "completion_tokens", "output_tokens", "generatedtokens"),
}
"""What a trace file may call arrival (seconds), prompt length and output length."""


def read_trace(path: Path) -> Arrivals:
    """A CSV of one request per line: arrival in seconds, prompt and output tokens. Raises ToolError with line and column."""
    reader = csv.DictReader(io.StringIO(read_text(path, "trace", MAX_TRACE_BYTES)))
    names = {(n or "").strip().lower(): n for n in reader.fieldnames or ()}
    picked = {key: next((names[n] for n in known if n in names), None) for key, known in COLUMNS.items()}
    missing = [f"{key} (or {', '.join(COLUMNS[key][1:])})" for key, name in picked.items() if name is None]
    if missing:
        raise ToolError(
            f"{path}: columns missing: {'; '.join(missing)}; the header has {', '.join(names) or 'nothing'}"
        )
    values: dict[str, list[float]] = {key: [] for key in COLUMNS}
    for row in reader:
        for key, name in picked.items():
            text = (row.get(name or "") or "").strip()
            value = _number(text, key)
            if not math.isfinite(value):
                raise ToolError(f"{path}:{reader.line_num}: {name} = {text!r} is not a number")
            values[key].append(value)
    return trace_of(values["at"], [int(x) for x in values["isl"]], [int(x) for x in values["osl"]])


def _number(text: str, key: str) -> float:
    """NaN where it is none. An arrival may be a date and time too: seconds of the clock then."""
    try:
        return float(text)
    except ValueError:
        if key != "at":
            return math.nan
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    return when.replace(tzinfo=when.tzinfo or UTC).timestamp()


def trace_load(trace: Arrivals) -> dict[str, Any]:
    """isl, osl and rate (requests per second) that stand for a trace in the closed form: its means."""
    span = float(trace.at[-1])
    rate = (len(trace.at) - 1) / span if span > 0 else None
    return {"isl": round(fmean(trace.isl)), "osl": round(fmean(trace.osl)), "rate": rate}


def simulated_json(
    deployment: Deployment, e: Estimate, curves: Curves, *, concurrency: int | None, trace: Arrivals | None = None
) -> dict[str, Any]:  # fmt: skip
    """The percentile keys of `estimate --json` and the block `simulation`; a block with a reason where there is none.

    `concurrency`: requests in flight over all replicas; None, without a trace: the batch of every replica.
    """
    loaded = concurrency or e.strategy.batch * e.strategy.dp
    try:
        found = simulate_strategy(
            deployment,
            e.strategy,
            curves,
            concurrency=None if trace is not None else loaded,
            trace=trace,
            spread=SPREAD,
        )
    except (ToolError, ValueError) as error:
        return {"simulation": {"reason": str(error)}}
    low, high = SPREAD
    load = (
        f"{loaded} requests in flight, lengths {low:g} to {high:g} of the mean"
        if trace is None
        else f"trace of {len(trace.at)} requests"
    )
    return _percentile_keys(found) | {"simulation": block(found, load)}


def _percentile_keys(found: Simulated) -> dict[str, float]:
    return {
        f"{metric}_ms_{name}": value * 1e3
        for metric in ("ttft", "tpot", "e2e")
        for name, value in found.percentiles(metric).items()
    }


def block(found: Simulated, load: str) -> dict[str, Any]:
    """What was simulated, and its means: seconds as ms."""
    o = found.outcome
    means = {f"{m}_ms_mean": float(v.mean()) * 1e3 for m, v in (("ttft", o.ttft), ("tpot", o.tpot), ("e2e", o.e2e))}
    return {
        "load": load, "requests": o.finished, "counted": len(o.ttft), **means, "output_tok_s": found.output_tok_s,
        "evictions": o.evictions, "busy": o.busy,
    }  # fmt: skip
