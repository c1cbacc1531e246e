"""The front as CSV and as a plot: tokens/s per user (1/TPOT) against output tokens/s per device. All predicted."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from agent.report.format import digits, exact
from tools.spec.plan import Plan

COLUMNS = (
    "kind",
    "strategy",
    "weight_dtype",
    "kv_dtype",
    "num_devices",
    "batch",
    "concurrency",
    "ttft_s",
    "tpot_s",
    "output_tok_s",
    "output_tok_s_per_device",
    "feasible",
    "objective_value",
)
WIDTH, HEIGHT = 820, 520
LEFT, RIGHT, TOP, BOTTOM = 90, 30, 64, 70


@dataclass(frozen=True, slots=True)
class Mark:
    kind: str
    label: str
    x: float
    y: float
    title: str


def rows(plan: Plan) -> list[tuple[str, Mapping[str, Any]]]:
    """(kind, point) of everything that is plotted: the front, the ranked, what was asked, baseline and plan."""
    s = plan.search
    out = [("front", p) for p in s.get("pareto", ())] + [("ranked", p) for p in s.get("ranked", ())]
    out += [("asked", p) for p in s.get("asked", ())]
    return out + [(kind, p) for kind in ("baseline", "plan") if (p := s.get("marked", {}).get(kind))]


def pareto_csv(plan: Plan) -> str:
    """One row per point; units are in the column names (s, tokens/s)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for kind, p in rows(plan):
        writer.writerow([kind, *(p.get(c, "") for c in COLUMNS[1:])])
    return out.getvalue()


def pareto_svg(plan: Plan) -> str:
    """A stand-alone SVG; points without a finite TPOT or throughput are left out, and it says how many."""
    marks, lost = [], 0
    for kind, p in rows(plan):
        mark = _mark(kind, p)
        marks += [mark] if mark else []
        lost += mark is None
    limit = _tpot_limit(plan)
    return "\n".join(_document(plan, marks, lost, limit)) + "\n"


def _mark(kind: str, p: Mapping[str, Any]) -> Mark | None:
    tpot, y = p["tpot_s"], p["output_tok_s_per_device"]
    if tpot is None or y is None or not (math.isfinite(tpot) and math.isfinite(y) and tpot > 0 and y > 0):
        return None
    label = f"{p['strategy']} · batch {p['batch']}"
    title = (
        f"{kind}: {label} on {p['num_devices']} devices, {digits(1 / tpot)} tok/s per user, {digits(y)} tok/s per "
        "device"
    )
    return Mark(kind, label, 1 / tpot, y, title + ("" if p["feasible"] else BREAKS))


def _tpot_limit(plan: Plan) -> float | None:
    limits = [g.limit for g in plan.deployment.requirements.gates if g.metric == "tpot_s" and g.limit > 0]
    return 1 / min(limits) if limits else None


# ------------------------------------------------------------------------------------------------------------- axes


@dataclass(frozen=True, slots=True)
class Axis:
    low: float
    high: float
    log: bool
    start: float
    end: float

    def at(self, value: float) -> float:
        f = math.log if self.log else float
        share = (f(value) - f(self.low)) / (f(self.high) - f(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            return [m * 10.0**d for d in decades for m in (1, 2, 5) if self.low <= m * 10.0**d <= self.high]
        step = nice_step((self.high - self.low) / 6)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def nice_step(rough: float) -> float:
    """Smallest of 1, 2, 5 x 10^n that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def axis(values: Sequence[float], start: float, end: float) -> Axis:
    """Linear from zero; logarithmic when the values span more than a factor of 20."""
    low, high = (min(values), max(values)) if values else (1.0, 1.0)
    if high / low > 20:
        return Axis(low / 1.3, high * 1.3, True, start, end)
    return Axis(0.0, high * 1.12, False, start, end)


# ---------------------------------------------------------------------------------------------------------- drawing

STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", "Noto Sans", "Noto Sans CJK SC", sans-serif; fill: #1f2937 }
  .title { font-size: 16px; font-weight: 600 } .small { font-size: 11px; fill: #6b7280 }
  .grid { stroke: #e5e7eb; stroke-width: 1 } .frame { stroke: #9ca3af; fill: none }
  .front { fill: none; stroke: #2563eb; stroke-width: 1.5; stroke-dasharray: 5 4 }
  .limit { stroke: #b91c1c; stroke-width: 1.5; stroke-dasharray: 2 3 }
  .halo { stroke: #fff; stroke-width: 4; paint-order: stroke }
"""
LOOKS = {
    "front": ("#2563eb", 4.0),
    "ranked": ("#94a3b8", 3.0),
    "asked": ("#7c3aed", 6.0),
    "baseline": ("#d97706", 6.5),
    "plan": ("#059669", 8.0),
}
BREAKS = " (breaks a requirement)"
LEGEND = (
    ("plan", "the plan"),
    ("baseline", "baseline"),
    ("asked", "asked for"),
    ("front", "Pareto front"),
    ("ranked", "other ranked"),
)


def _document(plan: Plan, marks: Sequence[Mark], lost: int, limit: float | None) -> list[str]:
    xs = [m.x for m in marks] + ([limit] if limit else [])
    x, y = axis(xs, LEFT, WIDTH - RIGHT), axis([m.y for m in marks], HEIGHT - BOTTOM, TOP)
    name = escape(
        f"{plan.deployment.model.name} on {plan.deployment.cluster.device.name}: predicted speed and throughput"
    )
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img">',
        f"<title>{name}</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text class="title" x="{LEFT}" y="24">{name}</text>',
        *_legend(marks),
        *_grid(x, y),
    ]
    out += _limit_line(x, limit) if limit and marks else []
    out += [
        *_front_line([m for m in marks if m.kind == "front"], x, y),
        *(_dot(m, x, y) for m in marks),
        *_labels(marks, x, y),
    ]
    if not marks:
        out.append(
            f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no point with a finite prediction</text>'
        )
    if lost:
        out.append(
            f'<text class="small" x="{LEFT}" y="{HEIGHT - 8}">'
            f"{lost} points without a finite prediction are left out</text>"
        )
    return [*out, "</svg>"]


def _legend(marks: Sequence[Mark]) -> list[str]:
    out, at, kinds = [], float(LEFT), {m.kind for m in marks}
    for kind, name in LEGEND:
        if kind in kinds:
            color, radius = LOOKS[kind]
            out.append(
                f'<circle cx="{at + 6:.0f}" cy="42" r="{min(radius, 6)}" fill="{color}"/>'
                f'<text x="{at + 17:.0f}" y="46">{name}</text>'
            )
            at += 40 + 7.2 * len(name)
    if any(BREAKS in m.title for m in marks):
        out.append(f'<text class="small" x="{at:.0f}" y="46">hollow: breaks a requirement</text>')
    return out


def _grid(x: Axis, y: Axis) -> list[str]:
    out = []
    for tick in x.ticks():
        at = x.at(tick)
        out.append(f'<line class="grid" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}"/>')
        out.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{exact(tick)}</text>')
    for tick in y.ticks():
        at = y.at(tick)
        out.append(f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{exact(tick)}</text>')
    mid = (TOP + HEIGHT - BOTTOM) / 2
    return [
        *out,
        f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"/>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 28}" text-anchor="middle">'
        "tokens/s per user (1/TPOT)</text>",
        f'<text transform="translate(22 {mid}) rotate(-90)" text-anchor="middle">output tokens/s per device</text>',
    ]


def _limit_line(x: Axis, limit: float) -> list[str]:
    at = x.at(limit)
    return [
        f'<line class="limit" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}"/>',
        f'<text class="small halo" x="{at + 5:.1f}" y="{HEIGHT - BOTTOM - 8}">'
        f"TPOT limit {digits(1e3 / limit)} ms: right of here</text>",
    ]


def _front_line(front: Sequence[Mark], x: Axis, y: Axis) -> list[str]:
    if len(front) < 2:
        return []
    points = " ".join(f"{x.at(m.x):.1f},{y.at(m.y):.1f}" for m in sorted(front, key=lambda m: (m.x, -m.y)))
    return [f'<polyline class="front" points="{points}"/>']


def _dot(m: Mark, x: Axis, y: Axis) -> str:
    color, radius = LOOKS[m.kind]
    open_ = f'fill="#fff" stroke="{color}" stroke-width="2"' if BREAKS in m.title else f'fill="{color}"'
    place = f'cx="{x.at(m.x):.1f}" cy="{y.at(m.y):.1f}" r="{radius}"'
    return f"<circle {place} {open_}><title>{escape(m.title)}</title></circle>"


def _labels(marks: Sequence[Mark], x: Axis, y: Axis) -> list[str]:
    """Names of plan, baseline, asked and the two ends of the front, moved apart where they would overlap."""
    front = sorted((m for m in marks if m.kind == "front"), key=lambda m: m.x)
    named = [m for kind in ("plan", "baseline", "asked") for m in marks if m.kind == kind] + front[:1] + front[-1:]
    placed: list[tuple[float, float, float, float]] = []
    out, seen = [], set()
    for m in named:
        if m.label in seen:
            continue
        seen.add(m.label)
        width = 7.0 * len(m.label)
        px, py = x.at(m.x), y.at(m.y)
        left = px + 12 if px + 12 + width < WIDTH - RIGHT else px - 12 - width
        for dy in (-10, 16, -26, 32, -42, 48, -58, 64):
            box = (left, py + dy - 12, left + width, py + dy + 3)
            if box[1] > TOP - 2 and box[3] < HEIGHT - BOTTOM and not any(_overlap(box, other) for other in placed):
                break
        placed.append(box)
        out.append(f'<text class="halo" x="{left:.1f}" y="{box[3] - 3:.1f}">{escape(m.label)}</text>')
    return out


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
