"""Error bands of the predictions, from residuals over measured serving points; and how sensitive the constants are.

    python benchmarks/fit_bands.py [--table ../shared/data/serving_open.csv] [--write]
    python benchmarks/fit_bands.py --scan          # family-weighted error as each fitted constant moves by 20 %

A band is the 80 % quantile of |predicted/measured - 1|, every family (model, GPU) weighing the same. Its honesty is
checked by leaving one family out at a time: the band of the others, and the share of the family it covers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.estimate_csv import read_rows  # noqa: E402
from benchmarks.accuracy import TABLE, quantile, residuals, summary  # noqa: E402
from knowledge.curves import load_curves  # noqa: E402
from tools.cost.curves import Curves  # noqa: E402

COVERAGE = 0.8
MIN_ROWS = 5
"""Families with fewer rows say little about a quantile and are left out."""
OUT = ROOT / "knowledge" / "curves" / "bands.yaml"
Family = tuple[str, str]
Errors = dict[Family, list[tuple[str, float]]]
METRICS = {"ttft_s": ("ttft_s",), "tpot_s": ("tpot_s",), "throughput": ("throughput", "max_throughput")}


def band(errors: Errors) -> float:
    """80 % quantile of the absolute error, families weighing the same."""
    return quantile(sorted((abs(e), 1 / len(rows)) for rows in errors.values() for _, e in rows), COVERAGE)


def pooled(found: dict[str, Errors], names: tuple[str, ...]) -> Errors:
    out: Errors = {}
    for name in names:
        for family, rows in found.get(name, {}).items():
            out.setdefault(family, []).extend(rows)
    return {family: rows for family, rows in out.items() if len(rows) >= MIN_ROWS}


def left_out(errors: Errors) -> tuple[float, dict[Family, float]]:
    """(mean coverage of families that the band has not seen, coverage by family)."""
    cover = {}
    for family, rows in errors.items():
        others = band({f: r for f, r in errors.items() if f != family})
        cover[family] = sum(abs(e) <= others for _, e in rows) / len(rows)
    return sum(cover.values()) / len(cover), cover


def bands_yaml(found: dict[str, Errors]) -> str:
    lines = [
        "# Residual quantiles over measured serving points; written by benchmarks/fit_bands.py. Provisional:",
        f"# one {COVERAGE:.0%} quantile per metric, families (model, GPU) weighing the same.",
        "bands:",
    ]
    for metric, names in METRICS.items():
        errors = pooled(found, names)
        covered, _ = left_out(errors)
        rows = sum(map(len, errors.values()))
        bias = summary(errors)[2]
        source = f"{len(errors)} families, {covered:.0%} of a family left out lies inside"
        lines.append(
            f"  {metric}: {{band: {band(errors):.3f}, bias: {bias:.3f}, rows: {rows}, "
            f'source: "benchmarks/fit_bands.py: {source}"}}'
        )
    return "\n".join(lines) + "\n"


def scaled(curves: Curves, path: str, factor: float) -> Curves:
    """The curves with one constant multiplied: `devices.hopper.attention`, `engines.vllm.step_s`, `moe.skew` …"""
    group, *rest = path.split(".")
    if group in ("moe", "cold_start"):
        part = getattr(curves, group)
        return curves.model_copy(update={group: part.model_copy(update={rest[0]: getattr(part, rest[0]) * factor})})
    items = []
    for item in getattr(curves, group):
        if item.name == rest[0]:
            now = getattr(item, rest[1])
            new = {k: v * factor for k, v in now.items()} if isinstance(now, dict) else now * factor
            item = item.model_copy(update={rest[1]: new})
        items.append(item)
    return curves.model_copy(update={group: tuple(items)})


FITTED = (
    "engines.vllm.step_s", "engines.sglang.step_s", "engines.trtllm.step_s", "moe.skew", "cold_start.share",
    "devices.hopper.gemm", "devices.hopper.grouped_gemm", "devices.hopper.attention", "devices.hopper.grouped_memory",
)  # fmt: skip
"""The constants that were adjusted to this table; the others come from published figures."""


def scan(rows: list[dict[str, str]], say: Callable[[str], None]) -> None:
    curves = load_curves()
    for path in ("", *FITTED):
        for factor in (1.0,) if not path else (0.8, 1.25):
            found, _ = residuals(rows, scaled(curves, path, factor) if path else curves)
            text = "  ".join(f"{m} {summary(e)[0]:.1%}" for m, e in sorted(found.items()))
            say(f"{path or 'as committed':32} x{factor:<5} {text}")


def main() -> int:
    args = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    args.add_argument("--table", type=Path, default=TABLE)
    args.add_argument("--write", action="store_true")
    args.add_argument("--scan", action="store_true")
    options = args.parse_args()
    if not options.table.exists():
        print(f"{options.table} is not there: nothing to fit")
        return 0
    rows = read_rows(options.table)
    if options.scan:
        scan(rows, print)
        return 0
    found, _ = residuals(rows, load_curves())
    text = bands_yaml(found)  # type: ignore[arg-type]
    print(text)
    for metric, names in METRICS.items():
        for family, share in sorted(left_out(pooled(found, names))[1].items()):  # type: ignore[arg-type]
            print(f"{metric:12} {' '.join(family):34} {share:6.0%} inside the band of the others")
    if options.write:
        OUT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
