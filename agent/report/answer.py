"""The first lines of `plan.md`: the answer, what is at risk, the requirements, and why this strategy won."""

from __future__ import annotations

from agent.report.economics import choice_line, price_line
from agent.report.format import (
    METRIC_NAMES,
    banded,
    digits,
    duration,
    percent,
    plural,
    quantity,
    rate,
    table,
)
from agent.report.page import COMPARISON, Lines, Page, against, comparison_row, verdict
from agent.report.plan_json import degrees, device_name
from agent.report.sensitivity import close_call
from tools.rubric import Evaluation
from tools.spec.plan import Estimate, Plan


def first_lines(page: Page) -> Lines:
    plan = page.plan
    kind = "Deployment plan" if plan.status == "proven" else "No plan possible"
    out = [f"# {kind}: {plan.deployment.model.name} on {device_name(plan.deployment)}", "", f"**{plan.headline}**"]
    out += ["", *(f"- **At risk.** {line}." for line in plan.at_risk)] if plan.at_risk else []
    notes = [*choice_line(page), *price_line(page), *close_call(page)]
    out += ["", *notes] if notes else []
    out += ["", *score_warning(page.evaluation)] if score_warning(page.evaluation) else []
    out += ["", proof_sentence(plan)] if plan.status == "proven" else []
    if plan.status == "infeasible" and plan.degraded:
        out += ["", f"The built-in policy answered in place of the LLM at: {', '.join(plan.degraded)}."]
    return out


def score_warning(evaluation: Evaluation | None) -> Lines:
    """A low score is published, and said first."""
    if evaluation is None:
        return []
    low = [s for s in evaluation.scores if s.barred and s.value < evaluation.bar]
    out = [
        f"- **Below the bar.** {s.criterion.capitalize()} {s.value:.2f} (bar {evaluation.bar}): {s.reason}."
        for s in low
    ]
    return out + [f"- **Failed check {f.code}.** {f.message}" for f in evaluation.failed_checks]


def proof_sentence(plan: Plan) -> str:
    phases = [u.phases for u in plan.units] or [plan.phases]
    proofs = [e["proof"] for of in phases for e in of.values()]
    worst = max((p["max_relative_error"] for p in proofs), default=0.0)
    tensors = sum(p["tensors_compared"] for p in proofs)
    devices = max((p["devices_simulated"] for p in proofs), default=0)
    as_read = " as it was read" if plan.deployment.model.doubt else ""
    return (
        f"*Proven:* the partitioned graph computes the model{as_read}: executed on {plural(devices, 'simulated device')} "
        "at reduced "
        f"sizes, prefill and decode, {plural(tensors, 'tensor')} equal the unpartitioned model's (max relative "
        f"error {worst:.0e}); "
        "dimensions, parts, memory and the engine's rules check out. *Predicted:* every time and throughput, "
        "with its error band."
    )


def requirements(page: Page) -> Lines:
    estimate = page.plan.estimate or (page.plan.infeasible and page.plan.infeasible.closest)
    if not estimate:
        return []
    gated = [p for p in estimate.predictions if p.limit is not None]
    rows = [
        (
            METRIC_NAMES.get(p.metric, p.metric) + (f", {p.stat}" if p.stat != "limit" else ""),
            quantity(p.metric, p.limit or 0.0),
            banded(p),
            percent(p.margin or 0.0, signed=True),
            p.status.replace("_", " "),
        )
        for p in gated
    ]
    if not rows:
        return ["No requirement was stated; the plan is the best by its objective alone.", "", *other_numbers(estimate)]
    return [
        *table(("requirement", "limit", "predicted", "margin", "verdict"), rows, "lrrrl"),
        "",
        *other_numbers(estimate),
    ]


def other_numbers(e: Estimate) -> Lines:
    """What is predicted beside the gates."""
    ttft = ", ".join(f"{k} {duration(v)}" for k, v in e.ttft_percentiles.items())
    tpot = ", ".join(f"{k} {duration(v)}" for k, v in e.tpot_percentiles.items())
    rows = [
        ("TTFT", f"mean {duration(e.ttft_s)}" + (f"; {ttft}" if ttft else "")),
        ("TPOT", f"mean {duration(e.tpot_s)}" + (f"; {tpot}" if tpot else "")),
        ("end to end", duration(e.e2e_s)),
        ("output", f"{rate(e.output_tok_s)} ({rate(e.output_tok_s_per_device)} per device)"),
        ("input + output", rate(e.total_tok_s)),
        (
            "load",
            f"{plural(e.concurrency, 'request')} in flight, {plural(e.batch, 'sequence')} per replica (at most "
            f"{e.max_batch:,} fit)",
        ),
        ("requests", f"{digits(e.request_rate)} per second"),
        (
            "all at once",
            f"if {plural(e.concurrency, 'request')} arrive together, the last one's TTFT is {duration(e.burst_ttft_s)}",
        ),
    ]
    return table(("predicted", "value"), [r for r in rows if "n/a" not in r[1]])


def why(page: Page) -> Lines:
    plan = page.plan
    out = [objective_sentence(plan), *funnel(plan)]
    out += ["", *table(COMPARISON, [comparison_row(n, e, page) for n, e in compared(plan)], "llrrrrrl")]
    return [*out, "", *margins(page), *ends(plan)]


def compared(plan: Plan) -> list[tuple[str, Estimate]]:
    """The plan and what it is held against; a strategy that is several of these is one row."""
    named = [("**plan**", plan.estimate), ("runner-up", plan.runner_up), ("baseline", plan.baseline)]
    rows: dict[tuple[object, ...], tuple[str, Estimate]] = {}
    for name, e in (*named, *(("asked", e) for e in plan.asked)):
        if e is not None:
            key = (*degrees(e.strategy), e.batch, e.num_devices)
            rows[key] = (f"{rows[key][0]}, {name}", rows[key][1]) if key in rows else (name, e)
    return list(rows.values())


def ends(plan: Plan) -> Lines:
    """Both ends of the front where no latency limit chooses between them."""
    front = [p for p in plan.search.get("pareto", ()) if p["tpot_s"] and p["output_tok_s"]]
    if plan.objective != "knee" or len(front) < 2:
        return []
    fast, full = min(front, key=lambda p: p["tpot_s"]), max(front, key=lambda p: p["output_tok_s"])
    return [
        f"- {end} end of the front: {p['strategy']} at batch {p['batch']}: TTFT {duration(p['ttft_s'])}, "
        f"TPOT {duration(p['tpot_s'])}, {rate(p['output_tok_s'])}."
        for end, p in (("Low-latency", fast), ("High-throughput", full))
    ]


OBJECTIVES = {
    "total_throughput": "most output tokens per second within the requirements, over all devices",
    "fewest_devices": "fewest devices that meet every requirement, ties by tokens per second per device",
    "knee": "the knee of the latency-throughput front (no latency limit was stated)",
    "min_latency": "lowest latency",
}


def objective_sentence(plan: Plan) -> str:
    stated = "stated" if plan.deployment.objective else "chosen by rule"
    return f"Objective ({stated}): `{plan.objective}`, {OBJECTIVES[plan.objective]}."


def funnel(plan: Plan) -> Lines:
    s = plan.search
    steps = [
        ("enumerated", "num_enumerated"),
        ("legal", "num_legal"),
        ("fit in memory", "num_fitting"),
        ("meet every requirement", "num_feasible"),
    ]
    said = [f"{s[key]:,} {name}" for name, key in steps if key in s]
    return ["Searched exhaustively: " + ", ".join(said) + "."] if said else []


def margins(page: Page) -> Lines:
    """Plan against runner-up, baseline, and what was asked, each with both numbers."""
    plan = page.plan
    if plan.estimate is None:
        return []
    out = []
    if plan.runner_up is not None:
        out.append(
            f"- Runner-up {page.label(plan.runner_up)}: {against(plan.estimate, plan.runner_up)}.{decided(plan)}"
        )
    else:
        out.append("- No other way to parallelise is feasible: there is no runner-up.")
    if plan.baseline is not None:
        same = not plan.units and plan.baseline.strategy.label() == plan.estimate.strategy.label()
        note = "the plan parallelises as the baseline does" if same else against(plan.estimate, plan.baseline)
        out.append(f"- Baseline {page.label(plan.baseline)}: {note}.")
    out += [f"- Asked: {asked_line(e, page)}" for e in plan.asked]
    out += [f"- Asked: {f.message}." for f in plan.findings if f.code == "asked-illegal"]
    return out


def asked_line(e: Estimate, page: Page) -> str:
    assert page.plan.estimate is not None
    if degrees(e.strategy) == degrees(page.plan.estimate.strategy):
        return f"{page.label(e)} is the plan."
    return f"{page.label(e)}: {against(page.plan.estimate, e)}; {verdict(e)}."


def decided(plan: Plan) -> str:
    """What the search itself noted about the runner-up, if anything."""
    ranked = plan.search.get("ranked", ())
    moe = plan.deployment.model.moe is not None
    label = plan.runner_up.strategy.label(moe=moe) if plan.runner_up else ""
    reason = next((r["reason"] for r in ranked if r["strategy"] == label and r["reason"]), "")
    return f" {reason[0].upper()}{reason[1:].rstrip('.')}." if reason else ""


def pareto(page: Page) -> Lines:
    plots = [d.path for d in page.files if d.kind == "pareto"]
    svg = [p for p in plots if p.endswith(".svg")]
    out = [f"![Throughput per device against speed per user; predicted]({svg[0]})"] if svg else []
    front = page.plan.search.get("pareto", ())
    rows = [
        (
            p["strategy"],
            p["num_devices"],
            p["batch"],
            duration(p["ttft_s"]),
            duration(p["tpot_s"]),
            rate(p["output_tok_s"]),
        )
        for p in front[:12]
    ]
    out += [""] if out and rows else []
    out += table(("strategy", "devices", "batch", "TTFT", "TPOT", "output"), rows, "lrrrrr")
    if len(front) > len(rows):
        out += [
            "",
            f"{len(front) - len(rows)} more points are in "
            f"{next((p for p in plots if p.endswith('.csv')), 'plan.json')}.",
        ]
    return out


def devices_table(page: Page) -> Lines:
    """Devices x throughput, where the number of devices is free; columns as the search gives them."""
    rows = page.plan.search.get("devices_table", ())
    if not rows:
        return []
    columns = list(dict.fromkeys(k for row in rows for k in row))
    names = [COLUMN_NAMES.get(c, c.replace("_", " ")) for c in columns]
    return table(names, [[column_value(c, row.get(c)) for c in columns] for row in rows])


COLUMN_NAMES = {
    "num_devices": "devices",
    "output_tok_s": "output",
    "output_tok_s_per_device": "output per device",
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "total_tok_s": "input + output",
    "label": "strategy",
}


def column_value(column: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return rate(value) if "tok_s" in column else duration(value) if column.endswith("_s") else digits(value, 4)
    return str(value)


def what_ifs(page: Page) -> Lines:
    rows = [(w.description, w.strategy or "-", percent(w.relative_gain, signed=True)) for w in page.plan.what_ifs]
    return table(("change", "best strategy then", "objective"), rows, "llr")
