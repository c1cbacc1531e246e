"""Several kinds of devices: every way to group them, the plan's groups, and each group's share of a section."""

from __future__ import annotations

from collections.abc import Callable

from agent.report.format import duration, percent, rate, table
from agent.report.page import Lines, Page
from agent.report.plan_json import devices_words
from tools.search.fleet import views
from tools.spec.plan import Fleet, Unit


def kinds(page: Page) -> Lines:
    """Every way to use the kinds of devices: alone, side by side (;), as stages of one pipeline (+)."""
    fleets = page.plan.fleets
    if not fleets:
        return []
    head = ("devices", "strategies", "number", "TTFT", "TPOT", "output", "verdict")
    note = (
        "`a; b`: replicas of each kind, with a router between them; `a + b`: one pipeline with stages on both. Each group "
        "meets every latency with its own share; percentiles are those of the slower group."
    )
    return [*table(head, [_row(f, page) for f in fleets], "llrrrrl"), "", note]


def _row(f: Fleet, page: Page) -> tuple[object, ...]:
    named = "; ".join(g.replace("+", " + ") for g in f.groups)
    if f.candidate is None:
        return (named, "-", "-", "-", "-", "-", f"infeasible: {f.why}")
    e = f.candidate.estimate
    labels = "; ".join(u.strategy.label(page.moe) for u in f.candidate.units)
    verdict = "**the plan**" if _planned(f, page) else "meets everything" if e.feasible else "breaks a requirement"
    return (named, labels, e.num_devices, duration(e.ttft_s), duration(e.tpot_s), rate(e.output_tok_s), verdict)


def _planned(f: Fleet, page: Page) -> bool:
    """A plan without units runs on the main kind alone."""
    plan = page.plan
    mine = [u.name for u in plan.units] if plan.units else [plan.deployment.cluster.device.id]
    return plan.status == "proven" and list(f.groups) == mine


def groups(page: Page) -> Lines:
    """The groups of the plan: devices, strategy, share of the requests, predictions."""
    rows = [_group(u, page) for u in page.plan.units]
    head = ("devices", "strategy", "batch", "requests", "in flight", "TTFT", "TPOT", "output", "ranks")
    return table(head, rows, "llrrrrrrl")


def _group(u: Unit, page: Page) -> tuple[object, ...]:
    e, first, pool = u.estimate, getattr(u, "first_rank", 0), len(u.phases_run) == 1
    return (
        devices_words(u), u.strategy.label(page.moe), e.batch, percent(u.share), e.concurrency,
        *(("-", "-", "-") if pool else (duration(e.ttft_s), duration(e.tpot_s), rate(e.output_tok_s))),
        f"{first}-{first + u.strategy.num_devices - 1}" + (f" ({u.phases_run[0]})" if pool else ""),
    )  # fmt: skip


def each(section: Callable[[Page], Lines]) -> Callable[[Page], Lines]:
    """The section once for every group of the plan; as it is where there is one."""

    def run(page: Page) -> Lines:
        if not page.plan.units:
            return section(page)
        out: Lines = []
        for u, view in zip(page.plan.units, views(page.plan), strict=True):
            lines = section(Page(view, page.files, page.evaluation))
            pool = f"{u.phases_run[0]}, " if len(u.phases_run) == 1 else ""
            out += [f"### {pool}{devices_words(u)}", "", *lines, ""] if lines else []
        return out[:-1]

    return run
