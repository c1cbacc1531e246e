"""Error of the cost model against measured serving points, per metric and family (model, GPU).

    python benchmarks/accuracy.py [../shared/data/serving_open.csv]

Opt-in: says so and stops when the table is not there. Families count alike, however many rows they have.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.estimate_csv import answer, read_rows  # noqa: E402
from knowledge.curves import load_curves  # noqa: E402
from tools.cost.curves import Curves  # noqa: E402

TABLE = ROOT.parent / "shared" / "data" / "serving_open.csv"
Residuals = dict[str, dict[tuple[str, str], list[tuple[str, float]]]]


def counts(notes: str) -> str:
    """Which tokens `tok_s_per_gpu` counts: the notes begin with tpg=output|total|input."""
    return notes.split("tpg=", 1)[1].split(";")[0].split("(")[0].strip() if "tpg=" in notes else "output"


def pairs(row: dict[str, str], out: dict[str, object]) -> dict[str, tuple[float, float]]:
    """metric → (predicted, measured) of one row, for what it measures cleanly."""
    found: dict[str, tuple[float, float]] = {}
    if row["tpot_ms"]:
        found["tpot_s"] = (float(out["tpot_ms"]), float(row["tpot_ms"]))  # type: ignore[arg-type]
    if row["ttft_ms"] and not row["id"].startswith("AIC"):
        found["ttft_s"] = (float(out["ttft_ms"]), float(row["ttft_ms"]))  # type: ignore[arg-type]
    if row["tok_s_per_gpu"]:
        key = {"total": "total_tok_s"}.get(counts(row["notes"]), "output_tok_s")
        predicted = float(out[key]) / float(out["num_devices"])  # type: ignore[arg-type]
        name = "max_throughput" if row["metric"] == "max_throughput" else "throughput"
        found[name] = (predicted, float(row["tok_s_per_gpu"]))
    return found


def residuals(rows: list[dict[str, str]], curves: Curves) -> tuple[Residuals, dict[str, int]]:
    """(signed relative errors by metric and family, unanswered rows by reason)."""
    out: Residuals = defaultdict(lambda: defaultdict(list))
    skipped: dict[str, int] = defaultdict(int)
    for row in rows:
        predicted = answer(row, curves)
        if predicted["reason"]:
            skipped[str(predicted["reason"])[:90]] += 1
            continue
        for metric, (p, m) in pairs(row, predicted).items():
            out[metric][row["model"], row["gpu"]].append((row["id"], p / m - 1))
    return out, skipped


def summary(by_family: dict[tuple[str, str], list[tuple[str, float]]]) -> tuple[float, float, float]:
    """(median absolute, 90 % absolute, median signed error), each family weighing the same."""
    weighted = sorted((abs(e), 1 / len(rows)) for rows in by_family.values() for _, e in rows)
    signed = sorted((e, 1 / len(rows)) for rows in by_family.values() for _, e in rows)
    return quantile(weighted, 0.5), quantile(weighted, 0.9), quantile(signed, 0.5)


def quantile(weighted: list[tuple[float, float]], q: float) -> float:
    total, seen = sum(w for _, w in weighted), 0.0
    for value, w in weighted:
        seen += w
        if seen >= q * total:
            return value
    return weighted[-1][0]


def main() -> int:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else TABLE
    if not path.exists():
        print(f"{path} is not there: nothing to compare with")
        return 0
    found, skipped = residuals(read_rows(path), load_curves())
    for metric, by_family in sorted(found.items()):
        mid, high, bias = summary(by_family)
        rows = sum(map(len, by_family.values()))
        print(
            f"\n{metric}: median {mid:.1%}, p90 {high:.1%}, bias {bias:+.1%} "
            f"over {rows} rows of {len(by_family)} families"
        )
        for family, errors in sorted(by_family.items()):
            signed = median(e for _, e in errors)
            print(
                f"  {' '.join(family):32} {median(abs(e) for _, e in errors):6.1%}  "
                f"bias {signed:+7.1%}  n={len(errors)}"
            )
    print(f"\nunanswered: {sum(skipped.values())}")
    for reason, n in sorted(skipped.items(), key=lambda kv: -kv[1]):
        print(f"  {n:4}  {reason}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
