"""Error of predictions for what the fit never saw: whole GPUs, models, engines or sources left out of every constant.

    python benchmarks/left_out.py [--table ../shared/data/serving_open.csv]

Per group the constants of `benchmarks/fit_bands.py` are fitted to all other rows and the rows of the group answered with
them. A constant that no other row says anything about falls back to the mean of the other engines'. A GPU is also left out
of the measured operators and collectives: a relative of its generation prices it, or the datasheet where it has none.
`benchmarks/accuracy.py --write` puts the table into its report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.estimate_csv import engine_name, read_rows  # noqa: E402
from benchmarks.accuracy import TABLE, Point, Row, compare, summary  # noqa: E402
from benchmarks.fit_bands import CONSTANTS, jacobian_of, log_errors, scaled, solve, thinned, weights  # noqa: E402
from knowledge.catalog import load_device  # noqa: E402
from knowledge.curves import load_curves  # noqa: E402
from tools.cost.curves import Curves  # noqa: E402

BOUND = 3.0
"""Largest change of a log constant: one that falls back to the others' mean may be far from it."""
EACH = 8
"""Rows per (model, GPU, engine) that the constants are fitted to."""
ANSWERED = 24
"""Rows of each that are answered."""
METRICS = ("max_throughput", "throughput", "tpot_s", "ttft_s")


@dataclass(frozen=True, slots=True)
class Fit:
    """The fit to all rows, linearised: what a fit without some of them starts from."""

    rows: dict[str, Row]
    points: list[tuple[str, tuple[str, str], str]]
    errors: np.ndarray
    jacobian: np.ndarray
    weight: np.ndarray
    means: np.ndarray
    """Logarithm of the other engines' mean over each constant; 0 where there are no others."""

    @classmethod
    def of(cls, rows: list[Row], curves: Curves) -> Fit:
        thin, start = thinned(rows, EACH), np.zeros(len(CONSTANTS))
        base = log_errors(thin, curves)
        points = list(base)
        jacobian = jacobian_of(thin, curves, start, base)
        means = np.array([mean_of_others(path, curves) for path in CONSTANTS])
        return cls({r["id"]: r for r in thin}, points, np.array(list(base.values())), jacobian, weights(points), means)

    def without(self, left: Callable[[Row], bool]) -> np.ndarray:
        """Log constants fitted to the rows that are not `left` out."""
        keep = np.array([not left(self.rows[p[2]]) for p in self.points])
        return solve(self.errors[keep], self.jacobian[keep], self.weight[keep], -self.means, BOUND)


def mean_of_others(path: str, curves: Curves) -> float:
    """ln(geometric mean of the other engines' value / an engine's own)."""
    group, name, field = [*path.split("."), ""][:3]
    if group != "engines" or name == "*":
        return 0.0
    own = {getattr(e, field) for e in curves.engines if e.name == name.rstrip("<=")}
    others = [getattr(e, field) for e in curves.engines if e.name != name.rstrip("<=") and e.before is None]
    logs = [np.log(v) for v in others if v > 0]
    return float(np.mean(logs) - np.log(max(own))) if logs and max(own) > 0 else 0.0


def unmeasured(curves: Curves, device: str) -> Curves:
    """The curves as if nobody had measured operators or collectives on `device`."""
    ops = curves.operators
    if ops is None:
        return curves
    tables = {k: t for k, t in ops.tables.items() if k.split("/")[1] != device}
    ridge = {k: r for k, r in ops.ridge.items() if k != device}
    return curves.model_copy(update={"operators": replace(ops, tables=tables, ridge=ridge, chosen={})})


BY: dict[str, Callable[[Row], str]] = {
    "model": lambda r: r["model"], "GPU": lambda r: r["gpu"],
    "GPU and its operators": lambda r: r["gpu"], "engine": lambda r: engine_name(r["engine"]), "source": lambda r: r["source"],
}  # fmt: skip


def unseen(rows: list[Row], curves: Curves, fit: Fit, by: str) -> list[Point]:
    """Every row, answered with constants fitted without its group."""
    key, out = BY[by], []
    for group in sorted({key(r) for r in rows}):
        mine = [r for r in rows if key(r) == group]
        fitted = scaled(curves, fit.without(lambda r, group=group: key(r) == group))  # type: ignore[misc]
        if "operators" in by:
            fitted = unmeasured(fitted, load_device(mine[0]["gpu"]).device.id)
        out += compare(mine, fitted)
    return out


def lines(title: str, points: list[Point]) -> str:
    cells = []
    for metric in METRICS:
        ps = [p for p in points if p.metric == metric]
        cells.append("{:.1%} / {:.0%} ({:+.1%})".format(*summary(ps)) if ps else "–")
    return f"| {title} | {' | '.join(cells)} |"


def section(rows: list[Row], curves: Curves) -> tuple[list[str], dict[str, list[Point]]]:
    """(Markdown of the comparison, the points behind it)."""
    fit = Fit.of(rows, curves)
    rows = thinned(rows, ANSWERED)
    found = {"nothing": compare(rows, curves)} | {by: unseen(rows, curves, fit, by) for by in BY}
    head = [
        "## Left out of everything fitted", "",
        "Median / 90 % quantile (bias) of rows whose group had no part in any fitted constant; constants that only the group",
        "determines fall back to the other engines' mean. *GPU and its operators*: its measured kernels and collectives are",
        "taken away as well, so that a relative or the datasheet prices it.",
        f"About {ANSWERED} rows per (model, GPU, engine).", "",
        f"| left out | {' | '.join(METRICS)} |", "|---|" + "---|" * len(METRICS),
    ]  # fmt: skip
    return [*head, *(lines(by, ps) for by, ps in found.items())], found


def main() -> int:
    args = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    args.add_argument("--table", type=Path, default=TABLE)
    options = args.parse_args()
    if not options.table.exists():
        print(f"{options.table} is not there: nothing to leave out")
        return 0
    text, found = section(read_rows(options.table), load_curves())
    print("\n".join(text))
    for by, points in found.items():
        if by != "nothing":
            for group in sorted({BY[by](p.row) for p in points}):
                print(lines(f"{by} {group}", [p for p in points if BY[by](p.row) == group]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
