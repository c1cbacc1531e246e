"""Prefill and decode on pools of their own, beside the plan."""

from __future__ import annotations

from agent.report.format import duration, percent, plural, rate, table
from agent.report.page import Lines, Page
from tools.spec.plan import Pooled


def pools(page: Page) -> Lines:
    """The best pair of pools against the best single one: figures of both, and which is the plan and why."""
    plan, p = page.plan, page.plan.pooled
    if p is None:
        return []
    rows = [_pooled_row(p, page)]
    if plan.estimate is not None and not _is_plan(page):
        e = plan.estimate
        rows.insert(0, (
            f"the plan: {page.label(e)}", e.num_devices, e.concurrency, duration(e.ttft_s), _p90(e.ttft_percentiles),
            duration(e.tpot_s), _p90(e.tpot_percentiles), rate(e.output_tok_s), "meets everything",
        ))  # fmt: skip
    head = ("strategy", "devices", "in flight", "TTFT", "p90", "TPOT", "p90", "output", "verdict")
    return [*table(head, rows, "lrrrrrrrl"), "", decision(page, p), *_findings(p)]


def _pooled_row(p: Pooled, page: Page) -> tuple[object, ...]:
    label = (
        f"prefill {p.prefill.label(moe=page.moe)} ({plural(p.prefill.num_devices, 'device')}), "
        f"decode {p.decode.label(moe=page.moe)} ({plural(p.decode.num_devices, 'device')})"
    )
    verdict = "meets everything" if p.meets else next(f.message for f in p.findings if f.severity == "error")
    return (
        label, p.num_devices, p.concurrency, duration(p.ttft_s), _p90(p.ttft_percentiles), duration(p.tpot_s),
        _p90(p.tpot_percentiles), rate(p.output_tok_s), verdict,
    )  # fmt: skip


def _p90(percentiles: dict[str, float]) -> str:
    return duration(percentiles["p90"]) if "p90" in percentiles else "-"


def _is_plan(page: Page) -> bool:
    return any(u.phases_run != ("prefill", "decode") for u in page.plan.units)


def decision(page: Page, p: Pooled) -> str:
    """Why two pools are, or are not, the plan."""
    simulated = f"Percentiles of the pools are those of {p.num_simulated:,} simulated requests."
    if _is_plan(page):
        return f"Two pools are the plan. {simulated}"
    if not p.meets or p.gain is None:
        return simulated
    if p.gain <= 0:
        return f"Two pools give {percent(-p.gain)} less output. {simulated}"
    return (
        f"Two pools are predicted to give {percent(p.gain)} more output, which is less than the error bands of both "
        f"predictions together leave open ({percent(p.least_gain)}): they are not the plan, and worth measuring. "
        f"plan.json has both strategies under `pooled`. {simulated}"
    )


def _findings(p: Pooled) -> Lines:
    said = [f"- {f.message}" for f in p.findings if f.severity != "error"]
    return ["", *said] if said else []
