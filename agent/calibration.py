"""`meshwright calibrate`: measured rows of a cluster → factors on the curves and bands, and the file that keeps them.

read_measured(path)   a CSV as people have them: other names for the columns, units in header or cell, gaps
calibrate(rows)       robust fit of four factors, shrunk to 1 with few rows; errors with every row left out in turn
curves_with(path)     the committed curves, with a calibration file applied
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from agent.files import read_text, write_atomic
from knowledge.catalog import load_device
from knowledge.curves import load_curves
from tools.cost.calibration import (
    FACTORS,
    PRIOR,
    CalibratedBand,
    Calibration,
    Fitted,
    band_after,
    left_out,
    solve,
)
from tools.cost.curves import Curves
from tools.spec.base import Frozen, ToolError

MAX_BYTES = 20_000_000
STEP = 0.1
"""Of the logarithm of a factor, for the slope of a prediction."""
ROUNDS = 2
OUTLIER = math.log(5.0)
"""A row this far from its prediction is another unit or another setting, not another cluster."""
SIGMA = {"ttft_s": 0.20, "tpot_s": 0.08, "throughput": 0.10}
"""Spread of one measured cell around what a well calibrated model says: repeated runs differ by 6-12 %, and TTFT in a
closed loop depends on how it starts."""


# --------------------------------------------------------------------------------------------------------------- reading

NAMES: dict[str, str] = {
    "model": "model|model_name|model_id|checkpoint",
    "gpu": "gpu|device|gpu_name|gpu_type|accelerator|hardware|npu",
    "n_gpus": "n_gpus|num_gpus|gpus|num_devices|gpu_count|world_size",
    "engine": "engine|backend|framework|serving_engine",
    "engine_version": "engine_version|version",
    "weight_dtype": "weight_dtype|dtype|quantization|precision|weights",
    "kv_dtype": "kv_dtype|kv_cache_dtype",
    "tp": "tp|tp_size|tensor_parallel|tensor_parallel_size",
    "pp": "pp|pp_size|pipeline_parallel|pipeline_parallel_size",
    "ep": "ep|ep_size|expert_parallel|expert_parallel_size",
    "dp": "dp|dp_size|data_parallel|data_parallel_size|replicas",
    "attn_dp": "attn_dp|attn_dp_size|dp_attention",
    "isl": "isl|input_len|input_length|input_tokens|prompt_len|prompt_tokens|random_input_len|avg_input_tokens|"
    "mean_input_tokens",
    "osl": "osl|output_len|output_length|output_tokens|generated_tokens|random_output_len|avg_output_tokens|"
    "mean_output_tokens",
    "length_range": "length_range",
    "concurrency_or_batch": "concurrency_or_batch|concurrency|max_concurrency|users|num_concurrent|batch|batch_size",
    "metric": "metric|kind|mode",
    "id": "id|name|run|run_id",
    "notes": "notes|note|comment|remarks",
}  # fmt: skip
"""Our column, and what people call it; case, blanks and dashes do not matter."""
MEASURED: dict[str, str] = {
    "ttft": "ttft|mean_ttft|ttft_mean|avg_ttft|time_to_first_token|average_ttft",
    "tpot": "tpot|mean_tpot|tpot_mean|avg_tpot|itl|mean_itl|time_per_output_token|inter_token_latency",
    "output_tok_s_total": "output_tok_s_total|output_tok_s|output_throughput|output_tokens_per_s|output_token_throughput|"
    "output_tps|throughput_output",
    "total_tok_s": "total_tok_s|total_throughput|total_token_throughput|total_tokens_per_s|total_tps",
    "tok_s_per_gpu": "tok_s_per_gpu|tokens_per_s_per_gpu|output_tok_s_per_gpu|throughput_per_gpu|output_tok_s_per_device",
}  # fmt: skip
EMPTY = frozenset({"", "-", "--", "n/a", "na", "nan", "none", "null", "?", "tbd"})
REQUIRED = ("model", "gpu", "tp", "isl", "osl")


@dataclass(frozen=True, slots=True)
class Row:
    """One measured row: `asked` in the columns of `estimate --csv`; `measured` seconds, and tokens/s of all devices."""

    number: int
    """Line in the file."""
    asked: dict[str, str]
    measured: dict[str, float]
    """ttft_s, tpot_s, throughput"""
    counts: str
    """Which tokens the throughput counts: output, total or input."""


class Skipped(Frozen):
    line: int
    why: str


def read_measured(path: Path, defaults: Mapping[str, str] | None = None) -> tuple[list[Row], list[Skipped]]:
    """(rows that measure something, rows that were left out and why). `defaults` fills columns that the file lacks.

    Raises ToolError with column and line for a file without the columns it takes, without a measured column, with a unit
    that nobody names, or with a cell that is no number.
    """
    text = read_text(path, "table of measurements", MAX_BYTES).lstrip("\ufeff")
    if not text.strip():
        raise ToolError(f"{path}: is empty; a header and measured rows are needed")
    delimiter = max(",;\t", key=text.splitlines()[0].count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    table = [(reader.line_num, cells) for cells in reader]
    header = next(((n, c) for n, c in table if any(x.strip() for x in c)), (1, []))
    columns, measured = _columns(path, header[1])
    missing = [c for c in REQUIRED if c not in columns and not (defaults or {}).get(c)]
    if missing:
        raise ToolError(
            f"{path}: columns missing: {', '.join(missing)}; the header has {', '.join(x.strip() for x in header[1])}"
        )
    if not measured:
        wanted = "ttft_ms, tpot_ms, output_tok_s_total, total_tok_s, tok_s_per_gpu"
        raise ToolError(f"{path}: no measured column; at least one of {wanted} is needed")
    rows, skipped = [], []
    for line, cells in table:
        if line <= header[0] or not any(c.strip() for c in cells):
            continue
        found = _row(path, line, cells, columns, measured, defaults or {})
        rows.append(found) if isinstance(found, Row) else skipped.append(found)
    if not rows:
        why = f": {skipped[0].why} (line {skipped[0].line})" if skipped else ""
        raise ToolError(f"{path}: no row measures anything{why}")
    return rows, skipped


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")


def _columns(path: Path, header: Sequence[str]) -> tuple[dict[str, int], dict[str, tuple[int, float]]]:
    """(our columns by position, measured columns by position with the factor to SI). Raises ToolError for a missing unit."""
    columns: dict[str, int] = {}
    measured: dict[str, tuple[int, float]] = {}
    for i, raw in enumerate(header):
        name = _plain(raw)
        ours = next((k for k, words in NAMES.items() if name in words.split("|")), None)
        if ours is not None:
            columns.setdefault(ours, i)
            continue
        stem = re.sub(r"_(?:ms|s|sec|seconds|milliseconds|us|tok_s|tokens_s|tok_per_s|tokens_per_s|tps)$", "", name)
        metric = next(
            (k for k, words in MEASURED.items() if name in words.split("|") or stem in words.split("|")), None
        )
        if metric is None or metric in measured:
            continue
        scale = 1.0
        if metric in ("ttft", "tpot"):
            unit = re.search(r"_(ms|milliseconds|us|s|sec|seconds)$", name)
            scale = math.nan if unit is None else {"ms": 1e-3, "milliseconds": 1e-3, "us": 1e-6}.get(unit[1], 1.0)
        measured[metric] = (i, scale)
    return columns, measured


def _row(
    path: Path, line: int, cells: Sequence[str], columns: Mapping[str, int], measured: Mapping[str, tuple[int, float]],
    defaults: Mapping[str, str],
) -> Row | Skipped:  # fmt: skip
    def cell(i: int) -> str:
        text = cells[i].strip() if i < len(cells) else ""
        return "" if text.lower() in EMPTY else text

    asked = {k: cell(i) for k, i in columns.items()}
    asked = {**{k: v for k, v in defaults.items() if v}, **{k: v for k, v in asked.items() if v}}
    empty = [c for c in REQUIRED if not asked.get(c)]
    if empty:
        return Skipped(line=line, why=f"{', '.join(empty)} empty")
    found: dict[str, float] = {}
    for metric, (i, scale) in measured.items():
        if text := cell(i):
            found[metric] = _amount(path, line, metric, text, scale)
    counts, through = _throughput(asked, found)
    values = {f"{k}_s": found[k] for k in ("ttft", "tpot") if k in found}
    if through is not None:
        values["throughput"] = through
    if not values:
        return Skipped(line=line, why="nothing measured")
    if not asked.get("concurrency_or_batch") and asked.get("metric", "") != "max_throughput":
        return Skipped(line=line, why="no concurrency and not metric=max_throughput: the load is unknown")
    return Row(line, asked, values, counts)


def _amount(path: Path, line: int, metric: str, text: str, scale: float) -> float:
    """A positive number in SI units; the unit of the cell wins over that of the header."""
    m = re.fullmatch(r"~?\s*([\d,]*\.?\d+(?:[eE][+-]?\d+)?)\s*([a-zA-Zµ/]*)", text)
    if m is None:
        raise ToolError(f"{path} line {line}: {metric} = {text!r} is not a number")
    value, unit = float(m[1].replace(",", "")), m[2].lower()
    if metric in ("ttft", "tpot"):
        if unit:
            known = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "us": 1e-6, "µs": 1e-6}
            if unit not in known:
                raise ToolError(f"{path} line {line}: {metric} = {text!r} has no unit of time; use ms or s")
            scale = known[unit]
        elif math.isnan(scale):
            raise ToolError(f"{path}: column {metric} names no unit; call it {metric}_ms or {metric}_s")
    if not value > 0:
        raise ToolError(f"{path} line {line}: {metric} = {text!r} must be positive")
    return value * scale


def _throughput(asked: Mapping[str, str], found: Mapping[str, float]) -> tuple[str, float | None]:
    """(which tokens, tokens/s over all devices)."""
    if "output_tok_s_total" in found:
        return "output", found["output_tok_s_total"]
    if "total_tok_s" in found:
        return "total", found["total_tok_s"]
    if "tok_s_per_gpu" not in found:
        return "output", None
    said = re.search(r"tpg=(output|total|input)", asked.get("notes", ""))
    try:
        layout = [int(float(asked.get(k) or 1)) for k in ("tp", "pp", "dp")]
        devices = max(math.prod(layout), int(float(asked.get("n_gpus") or 1)))
    except ValueError:
        devices = 1  # the prediction says which column is at fault
    return (said[1] if said else "output"), found["tok_s_per_gpu"] * devices


# ------------------------------------------------------------------------------------------------------------------- fit


def predicted(row: Row, curves: Curves) -> dict[str, float] | str:
    """What the curves say of a row, by metric; else why they say nothing."""
    from agent.estimate_csv import answer

    out = answer(row.asked, curves)
    if out["reason"]:
        return str(out["reason"])
    output, total = float(out["output_tok_s"]), float(out["total_tok_s"])
    tokens = {"output": output, "total": total, "input": total - output}
    return {"ttft_s": out["ttft_ms"] / 1e3, "tpot_s": out["tpot_ms"] / 1e3, "throughput": tokens[row.counts]}


@dataclass(frozen=True, slots=True)
class Fit:
    calibration: Calibration
    skipped: tuple[Skipped, ...]
    helps: bool
    """False: rows left out of the fit are predicted no better than before; the factors were left at 1."""


def calibrate(
    rows: Sequence[Row], skipped: Sequence[Skipped] = (), source: str = "", curves: Curves | None = None
) -> Fit:
    """Four factors from measured rows, and what the error of a row left out of the fit becomes.

    Raises ToolError when nothing can be predicted or the file looks like another unit.
    """
    curves = curves or load_curves()
    out = list(skipped)
    kept, first = _predictable(rows, curves, out)
    keys = [(i, m) for i, r in enumerate(kept) for m in r.measured if first[i].get(m)]
    measured = np.array([math.log(kept[i].measured[m]) for i, m in keys])
    sigma = np.array([SIGMA[m] for _, m in keys])
    sign = np.array([-1.0 if m == "throughput" else 1.0 for _, m in keys])
    which = np.array([i for i, _ in keys])
    devices = tuple(sorted({load_device(r.asked["gpu"]).device.id for r in kept}))

    def residuals(theta: np.ndarray) -> np.ndarray:
        said = [predicted(r, curves.calibrated(_of(theta, devices))) for r in kept]
        # A time that is too long and a throughput that is too low are the same error.
        values = [math.log(_value(said[i], m)) for i, m in keys]
        return sign * (np.array(values) - measured)

    before = sign * (np.array([math.log(first[i][m]) for i, m in keys]) - measured)
    at, now = np.zeros(len(FACTORS)), before
    jacobian = np.zeros((len(keys), len(FACTORS)))
    for _ in range(ROUNDS):
        for j in range(len(FACTORS)):
            jacobian[:, j] = (residuals(at + STEP * np.eye(len(FACTORS))[j]) - now) / STEP
        at_was, now_was = at, now
        at, covariance = solve(jacobian, now, at, sigma)
        now = residuals(at)
    left = left_out(jacobian, now_was, at_was, sigma, which)
    helps = float(np.median(np.abs(left))) < float(np.median(np.abs(before)))
    if not helps:
        at, left = np.zeros(len(FACTORS)), before
    fitted: dict[str, Any] = {
        n: Fitted(
            factor=round(math.exp(at[j]), 4), standard_error=round(math.sqrt(covariance[j, j]), 4),
            informed=round(1.0 - covariance[j, j] / PRIOR**2, 3),
        )
        for j, n in enumerate(FACTORS)
    }  # fmt: skip
    made = Calibration(
        devices=devices, engines=tuple(sorted({_engine(r) for r in kept})), rows=len(kept), source=source,
        bands=_bands(curves, devices[0], [m for _, m in keys], before, left), **fitted,
    )  # fmt: skip
    return Fit(made, tuple(out), helps)


def _value(said: dict[str, float] | str, metric: str) -> float:
    assert isinstance(said, dict)
    return max(said[metric], 1e-12)


def _predictable(rows: Sequence[Row], curves: Curves, out: list[Skipped]) -> tuple[list[Row], list[dict[str, float]]]:
    """Rows that the committed curves answer within reason; the others go to `out`."""
    kept, first, far = [], [], []
    for r in rows:
        said = predicted(r, curves)
        if isinstance(said, str):
            out.append(Skipped(line=r.number, why=said))
            continue
        ratios = {m: said[m] / v for m, v in r.measured.items() if said.get(m)}
        bad = {m: x for m, x in ratios.items() if abs(math.log(x)) > OUTLIER}
        if bad:
            m, x = max(bad.items(), key=lambda kv: abs(math.log(kv[1])))
            far.append((m, x))
            out.append(Skipped(line=r.number, why=f"{m} is {1 / x:.3g} times the prediction: another unit or setting?"))
        elif ratios:
            kept.append(r)
            first.append(said)
    if not kept:
        raise ToolError(f"no row can be used: {out[0].why} (line {out[0].line})" if out else "no row can be used")
    if len(far) > len(kept):
        m, x = far[0]
        raise ToolError(
            f"most rows are far from any prediction ({m} {1 / x:.3g} times it); check the unit of that column"
        )
    return kept, first


def _of(theta: np.ndarray, devices: tuple[str, ...]) -> Calibration:
    factors: dict[str, Any] = {n: Fitted(factor=float(math.exp(t))) for n, t in zip(FACTORS, theta, strict=True)}
    return Calibration(devices=devices, **factors)


def _engine(row: Row) -> str:
    from agent.estimate_csv import engine_name

    return engine_name(row.asked.get("engine") or "vllm")


def _bands(
    curves: Curves, device: str, metrics: Sequence[str], before: np.ndarray, left: np.ndarray
) -> dict[str, CalibratedBand]:
    from knowledge.catalog import device_by_id
    from tools.spec.hardware import Cluster

    cluster = Cluster.of(device_by_id(device), 1, 1)
    out = {}
    for m in SIGMA:
        mine = np.array([x == m for x in metrics])
        if not mine.any():
            continue
        was, now = np.abs(np.expm1(before[mine])), np.abs(np.expm1(left[mine]))
        band = curves.band(m, cluster).band
        out[m] = CalibratedBand(
            band=round(band_after(band, now), 4), before=band, rows=int(mine.sum()),
            error_before=round(float(np.median(was)), 4), error_after=round(float(np.median(now)), 4),
        )  # fmt: skip
    return out


# ----------------------------------------------------------------------------------------------------------------- files


def save(calibration: Calibration, path: Path) -> None:
    head = "# Written by `meshwright calibrate`; read by --calibration of estimate, search and plan.\n"
    data = calibration.model_dump(mode="json")
    write_atomic(path, (head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)).encode())


def load_calibration(path: Path) -> Calibration:
    """Raises ToolError for a file that is none."""
    text = read_text(path, "calibration", 1_000_000)
    try:
        data: Any = yaml.safe_load(text)
        found = Calibration.model_validate(data)
    except (yaml.YAMLError, ValidationError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise ToolError(f"{path}: no calibration file ({first}); make one with `meshwright calibrate`") from None
    bad = [n for n, f in found.factors.items() if not 0.1 < f < 10]
    if bad:
        raise ToolError(f"{path}: {bad[0]} factor {found.factors[bad[0]]:g} is not within 0.1 and 10")
    return found


@lru_cache(maxsize=4)
def curves_with(path: Path | None) -> Curves:
    """The committed curves; with a calibration file, those of its cluster."""
    return load_curves() if path is None else load_curves().calibrated(load_calibration(path))
