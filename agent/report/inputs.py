"""What the plan was made for: the conditions as understood, what was assumed, contested, or left out."""

from __future__ import annotations

from collections.abc import Iterable

from agent.report.format import (
    digits,
    fact_value,
    gibibytes,
    gigabytes,
    plural,
    table,
)
from agent.report.page import Lines, Page, finding_line
from tools.spec.finding import Finding
from tools.spec.hardware import Cluster
from tools.spec.model import ModelSpec


def setting(page: Page) -> Lines:
    """What was planned for, in one table: the reader checks here that we understood."""
    d = page.plan.deployment
    w = d.workload
    load = [
        f"{name} {value:,}"
        for name, value in (("batch", w.batch_size), ("concurrency", w.concurrency))
        if value is not None
    ]
    load += [f"{digits(w.request_rate)} requests/s"] if w.request_rate is not None else []
    if w.peak_factor > 1:
        load.append(f"peak {digits(w.peak_factor)} times the mean (capacity is judged at the peak)")
    if w.spare_replicas or w.spare_nodes:
        spare = [
            plural(n, f"spare {what}") for n, what in ((w.spare_replicas, "replica"), (w.spare_nodes, "node")) if n
        ]
        load.append(f"{', '.join(spare)} (judged without)")
    if w.prefix_hit_rate:
        load.append(f"{w.prefix_hit_rate:.0%} of the prompt found in the prefix cache")
    if w.draft_acceptance is not None:
        load.append(f"draft acceptance {w.draft_acceptance:.0%}")
    lengths = f"input {w.isl:,}, output {w.osl:,}, longest context {w.context:,}"
    rows = [
        ("model", f"{d.model.name}: {shape(d.model)}"),
        *(row for c in d.clusters for row in cluster_rows(c)),
        ("tokens", lengths),
        ("load", ", ".join(load) or "not stated"),
        ("engine", f"{d.engine.name} {d.engine.version or ''}".strip() + ("" if d.engine.stated else " (not stated)")),
    ]
    return table(("", "planned for"), rows)


def cluster_rows(c: Cluster) -> list[tuple[str, str]]:
    number = f"{c.num_devices} ({plural(c.num_nodes or 1, 'node')} of {c.devices_per_node})"
    devices = "unbounded" if c.num_devices is None else number
    return [
        (
            "devices",
            f"{devices} × {c.device.name}, {gigabytes(c.memory_bytes)} ({gibibytes(c.memory_bytes)}), "
            f"{digits(c.memory_bandwidth / 1e9)} GB/s memory",
        ),
        (
            "links",
            f"{digits(c.intra_node_bandwidth / 1e9)} GB/s inside a node, {digits(c.inter_node_bandwidth / 1e9)} "
            "GB/s between nodes (per device, one direction)",
        ),
    ]


def shape(m: ModelSpec) -> str:
    a = m.attention
    kind = "MLA" if a.mla else "MHA" if a.num_kv_heads == a.num_heads else "MQA" if a.num_kv_heads == 1 else "GQA"
    out = [f"{m.num_hidden_layers} layers", f"hidden {m.hidden_size:,}", f"{kind} {a.num_heads} heads"]
    out += [f"{a.num_kv_heads} KV heads"] if kind == "GQA" else []
    if m.moe:
        out.append(f"{m.moe.num_experts} experts, top {m.moe.top_k}")
    return ", ".join([*out, f"vocabulary {m.vocab_size:,}"])


def assumptions(page: Page) -> Lines:
    rows = [(a.path, a.value, a.why, a.effect) for a in page.plan.assumptions]
    return table(("not stated", "assumed", "why", "if it is otherwise"), rows)


def conflicts(page: Page) -> Lines:
    rows = [
        (
            c["path"],
            " / ".join(fact_value(c["path"], v) for v in c["values"]),
            fact_value(c["path"], c["resolution"]),
            c["why"],
        )
        for c in page.plan.conflicts
    ]
    return table(("about", "values seen", "used", "why"), rows)


def ignored(page: Page) -> Lines:
    return [f"- {_clipped(i['section'])}: {i['why']}" for i in page.plan.ignored]


def _clipped(section: str, width: int = 160) -> str:
    return section if len(section) <= width else section[: width - 3] + "..."


def findings(page: Page) -> Lines:
    estimate = page.plan.estimate.findings if page.plan.estimate else ()
    rank = {"error": 0, "warning": 1, "info": 2}
    found: Iterable[Finding] = {(f.code, f.message, f.where): f for f in (*page.plan.findings, *estimate)}.values()
    return [f"- {finding_line(f)}" for f in sorted(found, key=lambda f: rank[f.severity])]
