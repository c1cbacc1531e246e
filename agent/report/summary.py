"""The summary that a run ends with in the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agent.report.format import banded, duration, gigabytes, name_of, percent, quantity, rate
from agent.report.plan_json import devices_words
from tools.rubric import Evaluation
from tools.spec.plan import Plan

COLOURS = {"met": "green", "at_risk": "yellow", "broken": "red"}


def summary(plan: Plan, evaluation: Evaluation | None, manifest_path: str, degraded: Iterable[str] = ()) -> Group:
    """Strategy, devices, predictions with band and margin, memory, rubric, and where the manifest is."""
    parts: list[RenderableType] = [_facts(plan), *_predictions(plan), *_risks(plan, degraded), *_rubric(evaluation)]
    return Group(*parts, Text.assemble(("manifest  ", "bold"), manifest_path))


def _facts(plan: Plan) -> Panel:
    table = Table.grid(padding=(0, 2))
    d = plan.deployment
    table.add_row("model", d.model.name)
    if plan.strategy is None or plan.estimate is None:
        kinds = (f"{c.num_devices or 'unbounded'} × {c.device.name}" for c in d.clusters)
        table.add_row("devices", " + ".join(kinds))
        table.add_row("answer", plan.headline)
        return Panel(table, title="[bold red]infeasible (proven)[/]", title_align="left")
    e = plan.estimate
    for u in plan.units:
        label = f"[bold]{u.strategy.label(moe=d.model.moe is not None)}[/], batch {u.estimate.batch} per replica"
        share = f", {percent(u.share)} of the requests" if u.share < 1 else ""
        table.add_row(f"{devices_words(u)}", f"{label}{share}")
    if not plan.units:
        table.add_row(
            "strategy", f"[bold]{plan.strategy.label(moe=d.model.moe is not None)}[/], batch {e.batch} per replica"
        )
        table.add_row("devices", f"{plan.num_devices} × {d.cluster.device.name}")
    table.add_row("output", f"{rate(e.output_tok_s)}, {rate(e.output_tok_s_per_device)} per device (predicted)")
    table.add_row("mean", f"TTFT {duration(e.ttft_s)}, TPOT {duration(e.tpot_s)} (predicted)")
    for s in [] if len(plan.units) > 1 else e.memory[:8]:
        used, name = s.total_bytes / s.capacity_bytes, f"memory {s.where}" if len(e.memory) > 1 else "memory"
        table.add_row(name, f"{gigabytes(s.total_bytes)} of {gigabytes(s.capacity_bytes)} per device ({percent(used)})")
    if len(e.memory) > 8 and len(plan.units) < 2:
        table.add_row("", f"… {len(e.memory) - 8} more stages in plan.json")
    return Panel(table, title="[bold green]proven plan[/]", title_align="left")


def _predictions(plan: Plan) -> list[Table]:
    gated = [p for p in plan.estimate.predictions if p.limit is not None] if plan.estimate else []
    if not gated:
        return []
    table = Table(title="requirements (predicted)", title_justify="left", title_style="bold")
    for column in ("requirement", "limit", "predicted ± band", "margin", "verdict"):
        table.add_column(column, justify="left" if column in ("requirement", "verdict") else "right")
    for p in gated:
        verdict = Text(p.status.replace("_", " "), style=COLOURS.get(p.status, ""))
        table.add_row(
            name_of(p), quantity(p.metric, p.limit or 0.0), banded(p), percent(p.margin or 0.0, signed=True), verdict
        )
    return [table]


def _risks(plan: Plan, degraded: Iterable[str]) -> list[Text]:
    out = [Text(f"at risk: {line}", style="yellow") for line in plan.at_risk]
    lost = [node for node in degraded if not any(node in line for line in plan.at_risk)]
    return out + ([Text(f"degraded: {', '.join(lost)}", style="yellow")] if lost else [])


def _rubric(evaluation: Evaluation | None) -> list[Text]:
    if evaluation is None:
        return []
    line = Text("rubric    ", style="bold")
    for s in evaluation.scores:
        low = s.barred and s.value < evaluation.bar
        line.append(f"{s.criterion} ", style="not bold").append(f"{s.value:.2f}  ", style="red" if low else "green")
    line.append("passed" if evaluation.passed else "below the bar", style="green" if evaluation.passed else "red")
    return [line, *(Text(f"  {f.code}: {f.message}", style="red") for f in evaluation.failed_checks)]
