"""What every section of `plan.md` is made from, and the sentences that several share."""

from __future__ import annotations

from dataclasses import dataclass

from agent.report.format import (
    duration,
    gate_words,
    name_of,
    percent,
    quantity,
    rate,
)
from tools.rubric import Deliverable, Evaluation
from tools.spec.finding import Finding
from tools.spec.plan import Estimate, Plan

Lines = list[str]


@dataclass(frozen=True, slots=True)
class Page:
    plan: Plan
    files: tuple[Deliverable, ...] = ()
    evaluation: Evaluation | None = None

    @property
    def moe(self) -> bool:
        return self.plan.deployment.model.moe is not None

    def label(self, estimate: Estimate) -> str:
        s = estimate.strategy
        for c in (f.candidate for f in self.plan.fleets if f.candidate is not None):
            told = c.estimate
            if (told.strategy, told.num_devices, told.output_tok_s) == (s, estimate.num_devices, estimate.output_tok_s):
                return "; ".join(f"{u.name.replace('+', ' + ')} {u.strategy.label(moe=self.moe)}" for u in c.units)
        d, plan = self.plan.deployment, self.plan.strategy
        native = (plan.weight_dtype, plan.kv_dtype) if plan else (d.weight_dtypes[0], d.kv_dtypes[0])
        dtypes = "" if native == (s.weight_dtype, s.kv_dtype) else f" ({s.weight_dtype}, KV {s.kv_dtype})"
        return f"{s.label(moe=self.moe)}{dtypes}"


COMPARISON = ("", "strategy", "devices", "batch", "TTFT", "TPOT", "output", "verdict")


def comparison_row(name: str, e: Estimate, page: Page) -> tuple[object, ...]:
    return (
        name,
        page.label(e),
        e.num_devices,
        e.batch,
        duration(e.ttft_s),
        duration(e.tpot_s),
        rate(e.output_tok_s),
        verdict(e),
    )


def verdict(e: Estimate) -> str:
    if e.feasible:
        return "meets everything"
    errors = [f for f in e.findings if f.severity == "error"]
    broken = [p for p in e.predictions if p.status == "broken" and p.limit is not None]
    if errors:
        return gate_words(errors[0])
    if broken:
        p = broken[0]
        return f"{name_of(p)} {quantity(p.metric, p.value)} breaks {quantity(p.metric, p.limit or 0.0)}"
    return "not feasible"


def against(plan: Estimate, other: Estimate) -> str:
    """ "the plan gives 2,310 tok/s against 1,980 tok/s (+17 %), TPOT 21 ms against 25 ms"; devices if they differ."""
    if not other.output_tok_s > 0:
        return "no throughput could be predicted for it"
    gain = percent(plan.output_tok_s / other.output_tok_s - 1, signed=True)
    out = [f"the plan gives {rate(plan.output_tok_s)} against {rate(other.output_tok_s)} ({gain})"]
    if plan.num_devices != other.num_devices:
        out.append(f"on {plan.num_devices} devices against {other.num_devices}")
    out.append(f"TTFT {duration(plan.ttft_s)} against {duration(other.ttft_s)}")
    out.append(f"TPOT {duration(plan.tpot_s)} against {duration(other.tpot_s)}")
    return ", ".join(out)


def finding_line(f: Finding) -> str:
    where = f" ({f.where})" if f.where else ""
    fix = f" Way out: {f.fix.rstrip('.')}." if f.fix else ""
    return f"**{f.severity}** `{f.code}`{where}: {gate_words(f)}.{fix}"
