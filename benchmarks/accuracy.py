"""Error of the cost model against measured serving points, per metric, family (model, GPU) and source.

    python benchmarks/accuracy.py [--table ../shared/data/serving_open.csv] [--write]

Opt-in: says so and stops when the table is not there. Families count alike, however many rows they have; a row left
unanswered counts as 100 % error. --write puts the report into benchmarks/accuracy.md, with the errors of whole GPUs, models,
engines and sources left out of the fit (benchmarks/left_out.py), which takes some minutes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.estimate_csv import answer, read_rows  # noqa: E402
from knowledge.curves import load_curves  # noqa: E402
from tools.cost.curves import Curves  # noqa: E402

TABLE = ROOT.parent / "shared" / "data" / "serving_open.csv"
OUT = ROOT / "benchmarks" / "accuracy.md"
NOISE = (0.06, 0.12)
"""Median and 90 % ratio of one cell measured again in another release: nobody's error can be below."""
BARS = {"max_throughput": (0.12, 0.35), "throughput": (None, None), "tpot_s": (0.10, None), "ttft_s": (0.25, None)}
"""(median, p90) to reach."""
Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Point:
    """One prediction beside its measurement. `predicted` None: unanswered."""

    metric: str
    row: Row
    measured: float
    predicted: float | None
    answer: dict[str, object]

    @property
    def family(self) -> tuple[str, str]:
        return self.row["model"], self.row["gpu"]

    @property
    def error(self) -> float:
        """predicted/measured - 1; -1 where there is no prediction."""
        return -1.0 if self.predicted is None else self.predicted / self.measured - 1.0


def counts(notes: str) -> str:
    """Which tokens `tok_s_per_gpu` counts: the notes begin with tpg=output|total|input."""
    return notes.split("tpg=", 1)[1].split(";")[0].split("(")[0].strip() if "tpg=" in notes else "output"


def measured(row: Row) -> dict[str, float]:
    """What a row measures cleanly, by metric: seconds, and tokens/s per device of the kind that its notes name."""
    found: dict[str, float] = {}
    if row["tpot_ms"]:
        found["tpot_s"] = float(row["tpot_ms"]) / 1e3
    if row["ttft_ms"] and "score TPOT only" not in row["notes"] and row["metric"] != "latency":
        found["ttft_s"] = float(row["ttft_ms"]) / 1e3
    if row["tok_s_per_gpu"] and row["metric"] != "latency":
        found["max_throughput" if row["metric"] == "max_throughput" else "throughput"] = float(row["tok_s_per_gpu"])
    return found


def predicted(row: Row, out: dict[str, object], metric: str) -> float | None:
    if out["reason"]:
        return None
    if metric in ("tpot_s", "ttft_s"):
        return float(out[metric[:-1] + "ms"]) / 1e3  # type: ignore[arg-type]
    key = {"total": "total_tok_s"}.get(counts(row["notes"]), "output_tok_s")
    return float(out[key]) / float(out["num_devices"])  # type: ignore[arg-type]


def compare(rows: Iterable[Row], curves: Curves) -> list[Point]:
    """Every measured number of every row with its prediction."""
    points = []
    for row in rows:
        out = answer(row, curves)
        points += [Point(m, row, v, predicted(row, out, m), out) for m, v in measured(row).items()]
    return points


def pairs(row: Row, out: dict[str, object]) -> dict[str, tuple[float, float]]:
    """metric → (predicted, measured) of one answered row."""
    found = {m: (predicted(row, out, m), v) for m, v in measured(row).items()}
    return {m: (p, v) for m, (p, v) in found.items() if p is not None}


def quantile(weighted: list[tuple[float, float]], q: float) -> float:
    """Of sorted (value, weight) pairs."""
    total, seen = sum(w for _, w in weighted), 0.0
    for value, w in weighted:
        seen += w
        if seen >= q * total:
            return value
    return weighted[-1][0]


def summary(points: list[Point]) -> tuple[float, float, float]:
    """(median absolute, 90 % absolute, median signed error), each family weighing the same."""
    size: dict[tuple[str, str], int] = defaultdict(int)
    for p in points:
        size[p.family] += 1
    rows = sorted((p.error, 1 / size[p.family]) for p in points)
    absolute = sorted((abs(e), w) for e, w in rows)
    return quantile(absolute, 0.5), quantile(absolute, 0.9), quantile(rows, 0.5)


# --------------------------------------------------------------------------------------------------------- layout groups


def groups(points: list[Point]) -> dict[tuple[str, ...], list[Point]]:
    """Points that are alike but for layout and number of GPUs: compared by tokens/s per GPU, by TPOT where that is
    absent."""
    same = ("model", "gpu", "engine", "weight_dtype", "isl", "osl", "concurrency_or_batch", "metric", "source")
    by: dict[tuple[str, ...], dict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for p in points:
        kind = "rate" if "throughput" in p.metric else p.metric
        if kind in ("rate", "tpot_s") and p.predicted is not None:
            by[tuple(p.row[c] for c in same)][kind].append(p)
    out = {}
    for key, kinds in by.items():
        best = max(kinds.values(), key=lambda ps: (len(ps), ps[0].metric != "tpot_s"))
        layouts = {tuple(p.row[c] for c in ("n_gpus", "tp", "pp", "ep", "dp", "attn_dp")) for p in best}
        if len(layouts) > 1:
            out[key] = best
    return out


def ranking(points: list[Point]) -> tuple[int, float, float]:
    """(groups, share of groups whose predicted best is within 5 % of the measured best, median Spearman of groups of
    three or more), families weighing the same."""
    found = groups(points)
    size: dict[tuple[str, ...], int] = defaultdict(int)
    for key in found:
        size[key[:2]] += 1
    hits, ranks = [], []
    for key, ps in found.items():
        sign = -1.0 if ps[0].metric == "tpot_s" else 1.0
        ours = max(ps, key=lambda p: sign * (p.predicted or 0.0)).measured
        best = max(ps, key=lambda p: sign * p.measured).measured
        hits.append((ours >= 0.95 * best if sign > 0 else ours <= 1.05 * best, 1 / size[key[:2]]))
        if len(ps) >= 3:
            rho = spearman([p.predicted or 0.0 for p in ps], [p.measured for p in ps])
            ranks.append((rho, 1 / size[key[:2]]))
    share = sum(w for hit, w in hits if hit) / max(sum(w for _, w in hits), 1e-12)
    return len(found), share, quantile(sorted(ranks), 0.5) if ranks else float("nan")


def spearman(a: list[float], b: list[float]) -> float:
    def rank(xs: list[float]) -> list[float]:
        return [sum(y < x for y in xs) + 0.5 * (sum(y == x for y in xs) - 1) for x in xs]

    ra, rb = rank(a), rank(b)
    ma, mb = sum(ra) / len(ra), sum(rb) / len(rb)
    over = sum((x - ma) * (y - mb) for x, y in zip(ra, rb, strict=True))
    under = math.sqrt(sum((x - ma) ** 2 for x in ra) * sum((y - mb) ** 2 for y in rb))
    return over / under if under else 0.0


# --------------------------------------------------------------------------------------------------------------- report


def table(points: list[Point], key: Callable[[Point], str]) -> list[str]:
    """Markdown rows by metric and key."""
    lines = []
    by: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for p in points:
        by[p.metric, key(p)].append(p)
    for (metric, name), ps in sorted(by.items()):
        absolute = sorted(abs(p.error) for p in ps)
        high = absolute[min(len(absolute) - 1, int(0.9 * len(absolute)))]
        bias = median(p.error for p in ps)
        lines.append(f"| {metric} | {name} | {len(ps)} | {median(absolute):.1%} | {high:.1%} | {bias:+.1%} |")
    return lines


def diagnosis(p: Point) -> str:
    """What the numbers of a point say about where it went wrong."""
    out = p.answer
    if p.predicted is None:
        return f"unanswered: {out['reason']}"
    batch, most = float(out["batch"] or 0), float(out["max_batch"] or 0)  # type: ignore[arg-type]
    others = {m: v for m, v in pairs(p.row, out).items() if m != p.metric}
    beside = ", ".join(f"{m} {q / v - 1:+.0%}" for m, (q, v) in others.items())
    if p.metric == "ttft_s" and batch > 0.5 * most:
        return f"{batch:.0f} sequences of the {most:.0f} that we say fit: the queue hangs on the KV limit ({beside})"
    if p.metric == "ttft_s" and p.error < 0:
        return f"waiting or first-token time that the closed loop does not have ({beside})"
    if p.metric == "ttft_s":
        return f"queue or prefill priced too high ({beside})"
    if p.metric == "max_throughput":
        return f"batch {batch:.0f}: tensor-parallel overhead, batch limit or engine settings not in the row"
    return f"decode step at batch {batch:.0f}{': ' + beside if beside else ''}"


def scatter(points: list[Point], width: int = 61, height: int = 21) -> list[str]:
    """ln(predicted / measured) over measured, as text: one character per cell, digits count points (9: nine or more)."""
    answered = [p for p in points if p.predicted]
    x = [math.log(p.measured) for p in answered]
    low, span = min(x), max(max(x) - min(x), 1e-9)
    cells: dict[tuple[int, int], int] = defaultdict(int)
    for p, at in zip(answered, x, strict=True):
        e = max(-1.0, min(1.0, math.log(p.predicted or 1.0) - math.log(p.measured)))
        cells[round((1.0 - e) / 2 * (height - 1)), round((at - low) / span * (width - 1))] += 1
    lines = []
    for i in range(height):
        factor = math.exp(1.0 - 2.0 * i / (height - 1))
        dots = "".join(
            str(min(9, cells[i, j])) if cells.get((i, j)) else "-" if 2 * i == height - 1 else " " for j in range(width)
        )
        lines.append(f"{factor:5.2f} |{dots}")
    return [*lines, f"       measured {math.exp(low):.3g} … {math.exp(low + span):.3g}"]


def report(points: list[Point]) -> str:
    by = defaultdict(list)
    for p in points:
        by[p.metric].append(p)
    lines = ["# Accuracy against measured serving points", ""]
    lines += [
        "Written by `benchmarks/accuracy.py`. Errors are predicted/measured - 1. Families (model, GPU) weigh the same; a row",
        "left unanswered counts as 100 %. Constants were fitted to a part of these rows: the errors of families *left out*",
        "of the fit are printed by `benchmarks/fit_bands.py` and set the bands in `knowledge/curves/bands.yaml`.", "",
        "| metric | rows | median | p90 | bias | bar (median, p90) |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for metric, ps in sorted(by.items()):
        mid, high, bias = summary(ps)
        bar = ", ".join("–" if b is None else f"{b:.0%}" for b in BARS[metric])
        lines.append(f"| {metric} | {len(ps)} | {mid:.1%} | {high:.1%} | {bias:+.1%} | {bar} |")
    count, share, rho = ranking(points)
    lines += ["", f"Layouts: in {share:.0%} of {count} groups the predicted best is within 5 % of the measured best; ",
              f"median rank correlation in groups of three or more: {rho:.2f}.", "",
              f"The floor: the same cell measured again in another release differs by {NOISE[0]:.0%} (median) to "
              f"{NOISE[1]:.0%} (90 %)."]  # fmt: skip
    lines += ["", "80 % quantile of the error on families left out of the fit (the bands that predictions carry), and its median: "
              + ", ".join(f"{m} {b.band:.0%} ({b.bias:+.1%})" for m, b in load_curves().bands.items()) + ".", "",
              "Leaving families out covers the constants, not the structure: docs/cost-model.md, section 5, says what was chosen "
              "with all of these rows in view."]  # fmt: skip
    head = ["| metric | {} | rows | median | p90 | bias |", "|---|---|---|---|---|---|"]
    for title, key in (
        ("family", lambda p: " ".join(p.family)),
        ("engine", lambda p: p.row["engine"]),
        ("source", lambda p: p.row["source"]),
    ):
        lines += ["", f"## By {title}", "", head[0].format(title), head[1], *table(points, key)]
    lines += ["", "## Predicted over measured", ""]
    for metric, ps in sorted(by.items()):
        lines += [f"{metric}", "", "```text", *scatter(ps), "```", ""]
    lines += ["## The ten worst rows of each metric", "", "| metric | row | error | diagnosis |", "|---|---|---|---|"]
    for metric, ps in sorted(by.items()):
        for p in sorted(ps, key=lambda p: -abs(math.log(max(1.0 + p.error, 1e-3))))[:10]:
            lines.append(f"| {metric} | {p.row['id']} | {p.error:+.0%} | {diagnosis(p)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    args = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    args.add_argument("--table", type=Path, default=TABLE)
    args.add_argument("--write", action="store_true")
    options = args.parse_args()
    if not options.table.exists():
        print(f"{options.table} is not there: nothing to compare with")
        return 0
    rows, curves = read_rows(options.table), load_curves()
    text = report(compare(rows, curves))
    if options.write:
        from benchmarks.left_out import section  # it reads this file

        head, mark, rest = text.partition("## By family")
        text = head + "\n".join([*section(rows, curves)[0], "", ""]) + mark + rest
        OUT.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
