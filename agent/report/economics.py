"""Cost and energy as tables: the plan, and the other devices that were asked about."""

from __future__ import annotations

from collections.abc import Sequence

from agent.report.format import digits, duration, rate, table
from agent.report.page import Lines, Page
from tools.search.economics import verdict
from tools.spec.plan import Economics

SETTINGS = {
    "stated": "as stated", "same_price": "for the same money", "fewest_devices": "fewest that serve the load",
}  # fmt: skip


def economics_table(rows: Sequence[Economics]) -> Lines:
    """One row per device and setting; a price or power that nobody knows is said to be unknown."""
    currency = rows[0].currency if rows else "USD"
    head = (
        "device", "number", "strategy", "TTFT", "TPOT", "output", f"{currency}/h", f"{currency}/M output",
        f"{currency}/M total", "output tokens/J",
    )  # fmt: skip
    return table(head, [_row(r) for r in rows], "lllrrrrrrr")


def _row(r: Economics) -> tuple[object, ...]:
    number = f"{r.num_devices or '-'} ({SETTINGS[r.setting]})"
    price = _number(r.price_per_hour)
    if not r.feasible:
        return (
            r.device,
            number,
            f"infeasible: {r.why}" if r.why else "infeasible",
            "-",
            "-",
            "-",
            price,
            "-",
            "-",
            "-",
        )
    energy = f"{digits(r.output_tokens_per_joule)}" if r.output_tokens_per_joule is not None else "power unknown"
    return (
        r.device, number, r.strategy, duration(r.ttft_s or 0.0), duration(r.tpot_s or 0.0), rate(r.output_tok_s or 0.0),
        price, _number(r.price_per_million_output), _number(r.price_per_million_total), energy,
    )  # fmt: skip


def _number(x: float | None) -> str:
    return "price unknown" if x is None else digits(x)


def economics(page: Page) -> Lines:
    """Section of plan.md: cost and energy, and the choice between devices."""
    rows = page.plan.economics
    if not rows:
        return []
    w = page.plan.deployment.workload
    notes = ["Prices are of the devices alone; power is their rated limit, hosts and cooling left out."]
    if w.request_rate is not None and w.peak_factor > 1:
        notes.append(
            f"Devices are planned for the peak and paid for at the mean of {digits(w.request_rate)} requests/s "
            f"(peak factor {digits(w.peak_factor)}); output is of the mean."
        )
    choice = verdict(rows)
    return [*([f"**Which device:** {choice}.", ""] if choice else []), *economics_table(rows), "", " ".join(notes)]


def price_line(page: Page) -> Lines:
    """For the first lines: the answer to a price per token that the conditions ask for, in their words."""
    asked = next((f.message for f in page.plan.findings if f.code == "cost-target"), None)
    priced = ((r, r.price_per_million_output, r.price_per_million_total) for r in page.plan.economics)
    row, output, total = next(((r, o, t) for r, o, t in priced if o is not None), (None, None, None))
    if asked is None or row is None or output is None or total is None:
        return []
    quote = asked.partition("(")[2].partition("): set it")[0]
    return [
        f"- **Price.** Predicted: {digits(output)} {row.currency} per million output tokens, "
        f"{digits(total)} counting the input too; asked: {quote}."
    ]


def choice_line(page: Page) -> Lines:
    """For the first lines: the answer to "A or B?"."""
    choice = verdict(page.plan.economics)
    return [f"- **Which device:** {choice}."] if choice else []
