"""Understand: was everything in the inputs read, read right, and used?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tools.rubric.base import Item, Score, criterion, mean, score
from tools.rubric.coverage import account
from tools.rubric.record import RunRecord
from tools.spec.conditions import Fact
from tools.spec.deployment import Deployment

REACHES: dict[str, Callable[[Deployment], Any]] = {
    "hardware.num_devices": lambda d: "unbounded" if d.num_devices is None else d.num_devices,
    "hardware.devices_per_node": lambda d: d.cluster.devices_per_node,
    "hardware.mfu": lambda d: d.cluster.mfu,
    "hardware.mbu": lambda d: d.cluster.mbu,
    "model.num_hidden_layers": lambda d: d.model.num_hidden_layers,
    "model.hidden_size": lambda d: d.model.hidden_size,
    "model.num_attention_heads": lambda d: d.model.attention.num_heads,
    "model.num_key_value_heads": lambda d: d.model.attention.num_kv_heads,
    "model.vocab_size": lambda d: d.model.vocab_size,
    "model.num_experts": lambda d: d.model.moe.num_experts if d.model.moe else 1,
    "model.num_experts_per_tok": lambda d: d.model.moe.top_k if d.model.moe else 1,
    "workload.isl": lambda d: d.workload.isl,
    "workload.osl": lambda d: d.workload.osl,
    "workload.batch_size": lambda d: d.workload.batch_size,
    "workload.concurrency": lambda d: d.workload.concurrency,
    "workload.request_rate": lambda d: d.workload.request_rate,
    "workload.seq_len_min": lambda d: d.workload.seq_len_min,
    "workload.seq_len_max": lambda d: d.workload.seq_len_max,
    "requirements.memory_reserve": lambda d: d.requirements.memory_reserve,
    "requirements.balance_epsilon": lambda d: d.requirements.balance_epsilon,
    "requirements.utilisation_target": lambda d: d.requirements.utilisation_target,
    "engine.name": lambda d: d.engine.name,
    "objective": lambda d: d.objective,
}
"""Where the deployment carries what a fact states: a fact that does not arrive there was read and then dropped."""

METRICS = ("ttft_s", "tpot_s", "e2e_latency_s", "throughput_per_device", "throughput_total", "request_rate")


@criterion("understand")
def understand(record: RunRecord) -> Score:
    """Least of four shares: units accounted for, quotes that are verbatim, facts that reach the plan, gaps declared."""
    read, quoted, used, gaps = _read(record), _quoted(record), _used(record), _gaps(record)
    values = [mean(group) for group in (read, quoted, used, gaps) if group]
    value = min(values) if read else 0.0
    good = (
        f"all {len(read)} sections, keys and statements of {len(record.inputs)} input file(s) are used, in "
        "conflict, or "
        f"declared irrelevant; {len(quoted)} quotes are verbatim, {len(used)} facts reach the plan"
    )
    return score(
        "understand", value, [*read, *quoted, *used, *gaps] or [Item(name="inputs", value=0, reason="none given")], good
    )


def _read(record: RunRecord) -> list[Item]:
    return [
        Item(name=f"{u.where} {u.title}", value=1.0 if how else 0.0, reason=how or "nobody accounted for it")
        for u, how in account(record.inputs, record.conditions)
    ]


def _quoted(record: RunRecord) -> list[Item]:
    """Every quote stands in its file, at its line."""
    texts = {i.path: i.text.splitlines() for i in record.inputs}
    items = []
    for fact in record.conditions.facts:
        if fact.evidence is None:
            if fact.origin == "stated":
                items.append(Item(name=fact.path, value=0.0, reason="stated, yet without a quote"))
            continue
        e = fact.evidence
        lines = next(
            (t for p, t in texts.items() if p == e.file or p.endswith("/" + e.file) or e.file.endswith("/" + p)), []
        )
        at = "\n".join(lines[e.line - 1 : e.line + e.quote.count("\n")]) if e.line >= 1 else ""
        found = bool(e.quote.strip()) and e.quote.strip() in at
        where = f"{e.file}:{e.line}"
        items.append(
            Item(
                name=fact.path,
                value=float(found),
                reason=f"quoted at {where}" if found else f"its quote is not at {where}",
            )
        )
    return items


def _used(record: RunRecord) -> list[Item]:
    contested = {p for c in record.conditions.conflicts for p in (c.path, *c.paths)}
    deployment, items = record.plan.deployment, []
    for fact in record.conditions.facts:
        if fact.path in contested or fact.origin not in ("stated", "derived"):
            continue
        if fact.path in REACHES:
            carried = REACHES[fact.path](deployment)
            same = fact.value is None or _same(fact.value, carried)
            items.append(_arrival(fact, same, carried))
        elif (gate := _gate(fact, deployment)) is not None:
            items.append(_arrival(fact, *gate))
    return items


def _gate(fact: Fact, deployment: Deployment) -> tuple[bool, Any] | None:
    """(whether the stated limit is judged, what is judged) for `requirements.<metric>.<stat>`."""
    parts = fact.path.split(".")
    if len(parts) != 3 or parts[0] != "requirements" or parts[1] not in METRICS or parts[2] == "counts":
        return None
    limits = [g.limit for g in deployment.requirements.gates if g.metric == parts[1] and g.stat == parts[2]]
    if fact.value is None:
        return not limits, limits or None
    return any(_same(fact.value, limit) for limit in limits), limits or None


def _arrival(fact: Fact, same: bool, carried: Any) -> Item:
    said = f"stated {fact.stated_as or fact.value!r}"
    reason = f"{said}, used as {carried!r}" if same else f"{said} ({fact.value!r}), but the plan uses {carried!r}"
    return Item(name=fact.path, value=float(same), reason=reason)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-6)
    if isinstance(a, str) and isinstance(b, str):
        return a.lower() == b.lower()
    return bool(a == b)


SETTLED: dict[str, tuple[Callable[[RunRecord], bool], str]] = {
    "model.name": (
        lambda r: r.conditions.fact("model.num_hidden_layers") is not None,
        "not needed: its shape is stated",
    ),
    "requirements.throughput_per_device.counts": (
        lambda r: all(
            g.counts is None for g in r.plan.deployment.requirements.gates if g.metric == "throughput_per_device"
        ),
        "not chosen: the verdict is given under each reading",
    ),
}
"""Gaps that are left open on purpose, and when that is right."""


def _gaps(record: RunRecord) -> list[Item]:
    """Every missing path ends in an assumption that is named, or is a gap that the plan does not fill silently."""
    assumed = {a.path for a in (*record.plan.assumptions, *record.plan.deployment.assumptions)}
    assumed |= {f.path for f in record.conditions.facts if f.origin in ("assumed", "derived", "catalogue")}
    items = []
    for path in record.conditions.missing:
        if path in SETTLED and SETTLED[path][0](record):
            items.append(Item(name=path, value=1.0, reason=SETTLED[path][1]))
            continue
        told = path in assumed or any(a.startswith(path) or path.startswith(a) for a in assumed)
        items.append(
            Item(
                name=path,
                value=float(told),
                reason="missing, assumption named" if told else "missing, and no assumption names it",
            )
        )
    return items
