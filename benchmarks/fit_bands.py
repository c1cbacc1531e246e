"""Fits the constants that no operator table holds: what engines add to their kernels, and how a benchmark starts.

    python benchmarks/fit_bands.py [--table ../shared/data/serving_open.csv] [--rounds 2] [--write]

Gauss-Newton on ln(predicted / measured) with Huber weights (nearer to a median than to a mean) and a weak prior at the
values before. Every (metric, family) weighs the same, a family being (model, GPU). The error that counts is of families
left out: with the last Jacobian the constants are refitted without each family in turn, and the family is predicted with
those. A band is the 80 % quantile of those errors; for devices without measured operators it is widened by how far
predictions move when measured devices are priced by their relatives, or by the datasheet alone. --write puts all of it
into knowledge/curves/.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.estimate_csv import answer, engine_name, read_rows  # noqa: E402
from benchmarks.accuracy import TABLE, pairs, quantile  # noqa: E402
from knowledge.curves import load_curves  # noqa: E402
from tools.cost.curves import Curves, DeviceCurve  # noqa: E402

CONSTANTS = (
    "devices.*.launch_s",
    "engines.vllm.step_s", "engines.vllm.per_sequence_s", "engines.vllm.prefill_s", "engines.vllm.launch_s",
    "engines.vllm<.step_s", "engines.vllm<.per_sequence_s",
    "engines.sglang.step_s", "engines.sglang.per_sequence_s", "engines.sglang.launch_s",
    "engines.trtllm.step_s", "engines.trtllm.per_sequence_s", "engines.trtllm.prefill_s", "engines.trtllm.launch_s",
    "engines.trtllm.attn_dp_wait_steps",
    "engines.trtllm<.step_s", "engines.trtllm<.per_sequence_s",
    "engines.vllm=.eager", "engines.sglang.eager", "engines.trtllm.eager",
    "engines.*.handoff_s", "cold_start.share",
)  # fmt: skip
"""Where each constant is: a generation or engine by name (`*`: all, `<`: its entry for older versions, `=`: both)."""
PRIOR = 0.7
"""Standard deviation of ln(constant) around its value before."""
STEP = 0.15
HUBER = 0.08
Row = dict[str, str]
Point = tuple[str, tuple[str, str], str]
"""(metric, family, row id)"""


def scaled(curves: Curves, logs: np.ndarray) -> Curves:
    """The curves with every constant multiplied by exp(log)."""
    out = curves
    for path, log in zip(CONSTANTS, logs, strict=True):
        group, *rest = path.split(".")
        factor = float(np.exp(log))
        if group == "cold_start":
            part = out.cold_start.model_copy(update={rest[0]: getattr(out.cold_start, rest[0]) * factor})
            out = out.model_copy(update={group: part})
            continue
        items = [
            i.model_copy(update={rest[1]: getattr(i, rest[1]) * factor}) if chosen(i, rest[0]) else i
            for i in getattr(out, group)
        ]
        out = out.model_copy(update={group: tuple(items)})
    return out


def chosen(item: Any, name: str) -> bool:
    older = getattr(item, "before", None) is not None
    return name == "*" or (item.name == name.rstrip("<=") and (name.endswith("=") or older == name.endswith("<")))


def log_errors(rows: Iterable[Row], curves: Curves) -> dict[Point, float]:
    out: dict[Point, float] = {}
    for row in rows:
        answered = answer(row, curves)
        if answered["reason"]:
            continue
        for metric, (p, m) in pairs(row, answered).items():
            out[metric, (row["model"], row["gpu"]), row["id"]] = float(np.log(p / m))
    return out


def weights(points: list[Point]) -> np.ndarray:
    """One per (metric, family), shared by its rows; families of a few rows count for less."""
    count: dict[tuple[str, tuple[str, str]], int] = {}
    for metric, family, _ in points:
        count[metric, family] = count.get((metric, family), 0) + 1
    return np.array([1.0 / max(count[m, f], 8) for m, f, _ in points])


def solve(
    errors: np.ndarray, jacobian: np.ndarray, weight: np.ndarray, start: np.ndarray, bound: float = 0.7
) -> np.ndarray:
    """Change of the log constants, each at most `bound`: iteratively reweighted least squares, prior included. `start`:
    logs so far, counted from where the prior is."""
    x = np.zeros(jacobian.shape[1])
    for _ in range(15):
        left = errors + jacobian @ x
        w = weight * np.minimum(1.0, HUBER / np.maximum(np.abs(left), 1e-9)) / HUBER**2
        prior = 1.0 / PRIOR**2 * 0.05
        normal = jacobian.T @ (w[:, None] * jacobian) + prior * np.eye(len(x))
        x = np.linalg.solve(normal, -(jacobian.T @ (w * errors)) - prior * start)
    return np.clip(x, -bound, bound)


def concerns(path: str, row: Row) -> bool:
    """Whether a constant can change the prediction of a row at all."""
    group, name, *_ = path.split(".")
    if group == "cold_start":
        return row["metric"] == "at_concurrency"
    if path.endswith("handoff_s"):
        return not row["tp"]
    if group != "engines" or name == "*":
        return True
    return engine_name(row["engine"]) == name.rstrip("<=")


def jacobian_of(rows: list[Row], curves: Curves, logs: np.ndarray, base: dict[Point, float]) -> np.ndarray:
    columns = []
    for i, path in enumerate(CONSTANTS):
        moved = logs.copy()
        moved[i] += STEP
        there = log_errors([r for r in rows if concerns(path, r)], scaled(curves, moved))
        columns.append([(there.get(p, base[p]) - base[p]) / STEP for p in base])
    return np.array(columns).T


def left_out(points: list[Point], errors: np.ndarray, jacobian: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """ln errors of every point with the constants fitted without its family."""
    out, weight = errors.copy(), weights(points)
    families = np.array([" ".join(f) for _, f, _ in points])
    for family in np.unique(families):
        mine = families == family
        x = solve(errors[~mine], jacobian[~mine], weight[~mine], logs)
        out[mine] = errors[mine] + jacobian[mine] @ x
    return out


def report(points: list[Point], errors: np.ndarray, title: str) -> None:
    print(title)
    weight = {p: 1.0 / sum(q[:2] == p[:2] for q in points) for p in points}
    for metric in sorted({p[0] for p in points}):
        rows = [(float(np.expm1(e)), weight[p]) for p, e in zip(points, errors, strict=True) if p[0] == metric]
        absolute, signed = sorted((abs(e), w) for e, w in rows), sorted(rows)
        print(
            f"  {metric:15} median {quantile(absolute, 0.5):6.1%}  p90 {quantile(absolute, 0.9):6.1%}  "
            f"bias {quantile(signed, 0.5):+6.1%}  n={len(rows)}"
        )


def thinned(rows: list[Row], each: int) -> list[Row]:
    """At most about `each` rows per (model, GPU, engine), evenly spread."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["gpu"], row["engine"]), []).append(row)
    return [r for g in groups.values() for r in g[:: max(1, len(g) // each)]]


def write(curves: Curves) -> None:
    """Puts the fitted constants in place, line by line, so that comments and order stay."""
    folder = ROOT / "knowledge" / "curves"
    for file, items in (("devices.yaml", curves.devices), ("engines.yaml", curves.engines)):
        blocks = re.split(r"(?m)^(?=  - name: )", (folder / file).read_text(encoding="utf-8"))
        for i, item in enumerate(items, 1):
            for path in CONSTANTS:
                name = path.split(".")[-1]
                if path.startswith(file[:-5]) and chosen(item, path.split(".")[1]):
                    value = f"{getattr(item, name):.3g}"
                    blocks[i] = re.sub(rf"(?m)^(    {name}: )\S+", rf"\g<1>{value}", blocks[i])
        text = "".join(blocks)
        if file == "engines.yaml":
            text = re.sub(r"(?m)^(  share: )\S+", rf"\g<1>{curves.cold_start.share:.3g}", text)
        (folder / file).write_text(text, encoding="utf-8")


COVERAGE = 0.8
BANDS = {"ttft_s": ("ttft_s",), "tpot_s": ("tpot_s",), "throughput": ("throughput", "max_throughput")}
"""Band of a prediction: the measured metrics it is taken from."""


def quantile_of(points: list[Point], errors: np.ndarray, metrics: tuple[str, ...], *, signed: bool = False) -> float:
    """COVERAGE quantile of the absolute relative error (or the signed median), families weighing the same."""
    mine = [(p, float(np.expm1(e))) for p, e in zip(points, errors, strict=True) if p[0] in metrics]
    size = {p[1]: sum(q[1] == p[1] for q, _ in mine) for p, _ in mine}
    rows = sorted((e if signed else abs(e), 1.0 / max(size[p[1]], 3)) for p, e in mine)
    return quantile(rows, 0.5 if signed else COVERAGE)


def unmeasured(curves: Curves) -> Curves:
    """The curves as if nobody had measured any operator, and each generation's large GEMMs and copies reached what those of
    the other generations do on average: what is known of a generation that is new."""
    known = [d for d in curves.devices if d.measured]

    def borrowed(own: DeviceCurve) -> DeviceCurve:
        others = [d for d in known if d.name != own.name]
        gemm = {t: float(np.mean([d.gemm.get(t, d.gemm["bf16"]) for d in others])) for t in own.gemm}
        return own.model_copy(update={"gemm": gemm, "memory": float(np.mean([d.memory for d in others]))})

    return curves.model_copy(update={"operators": None, "devices": tuple(map(borrowed, curves.devices))})


def bands_yaml(points: list[Point], unseen: np.ndarray, rows: list[Row], curves: Curves) -> str:
    """bands.yaml: per metric the quantile by how kernels were priced. What a relative's kernels, or none, change about the
    predictions of measured devices is independent of what was wrong with them before: the two add in quadrature."""
    relatives = curves
    if curves.operators is not None:
        relatives = curves.model_copy(update={"operators": replace(curves.operators, use_own=False, chosen={})})
    own_kernels = log_errors(rows, curves)
    others = {"nearest": relatives, "datasheet": unmeasured(curves)}
    moved = {}
    for name, c in others.items():
        there = log_errors(rows, c)
        both = [p for p in there if p in own_kernels]
        moved[name] = (both, np.array([there[p] - own_kernels[p] for p in both]))
    lines = [
        "# Relative half-widths by metric, written by benchmarks/fit_bands.py: the 80 % quantile of the error on families",
        "# (model, GPU) left out of the fit. nearest, datasheet: with kernels priced by a relative, or by no measurement.",
        "bands:",
    ]
    for metric, names in BANDS.items():
        own = quantile_of(points, unseen, names)
        wide = {k: float(np.hypot(own, quantile_of(p, e, names))) for k, (p, e) in moved.items()}
        families = len({p[1] for p in points if p[0] in names})
        lines += [
            f"  {metric}:",
            f"    band: {own:.3f}",
            f"    nearest: {wide['nearest']:.3f}",
            f"    datasheet: {max(wide.values()):.3f}",
            f"    bias: {quantile_of(points, unseen, names, signed=True):.3f}",
            f"    rows: {sum(p[0] in names for p in points)}",
            f'    source: "benchmarks/fit_bands.py: {families} families, each left out of the fit"',
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    args = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    args.add_argument("--table", type=Path, default=TABLE)
    args.add_argument("--rounds", type=int, default=2)
    args.add_argument("--each", type=int, default=16, help="rows per (model, GPU, engine) used for the fit")
    args.add_argument("--write", action="store_true")
    options = args.parse_args()
    if not options.table.exists():
        print(f"{options.table} is not there: nothing to fit")
        return 0
    rows, curves = thinned(read_rows(options.table), options.each), load_curves()
    logs = np.zeros(len(CONSTANTS))
    for turn in range(options.rounds):
        base = log_errors(rows, scaled(curves, logs))
        points, errors = list(base), np.array(list(base.values()))
        report(points, errors, f"round {turn}")
        jacobian = jacobian_of(rows, curves, logs, base)
        if turn == options.rounds - 1:
            unseen = left_out(points, errors, jacobian, logs)
            report(points, unseen, "families left out")
        logs = logs + solve(errors, jacobian, weights(points), logs)
    base = log_errors(rows, scaled(curves, logs))
    report(list(base), np.array(list(base.values())), "fitted")
    for path, log in zip(CONSTANTS, logs, strict=True):
        print(f"  {path:36} x {np.exp(log):.3f}")
    if options.write:
        fitted = scaled(curves, logs)
        write(fitted)
        text = bands_yaml(points, unseen, rows, fitted)
        (ROOT / "knowledge" / "curves" / "bands.yaml").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
