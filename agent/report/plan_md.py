"""`plan.md`: what a person reads. The answer first, what is at risk next, then why, then the detail.

Each section is one function `(Page) -> lines`; an empty list leaves the section out. Nothing is computed here that the
plan does not hold: proven facts and predictions are labelled as such wherever they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent.report.answer import devices_table, first_lines, pareto, requirements, what_ifs, why
from agent.report.detail import files as file_list
from agent.report.detail import latency, memory, modules, placement, proofs
from agent.report.economics import economics
from agent.report.inputs import assumptions, conflicts, findings, ignored, setting
from agent.report.judged import knowledge, proposal, rubric, task
from agent.report.kinds import each, groups, kinds
from agent.report.page import Lines, Page
from agent.report.pools import pools
from agent.report.sensitivity import sensitivity
from agent.report.verdict import binding, closest, nearest
from tools.rubric import Deliverable, Evaluation
from tools.spec.plan import Plan

Section = Callable[[Page], Lines]
COMMON: tuple[tuple[str, Section], ...] = (
    ("Assumptions", assumptions), ("Conflicts in the inputs", conflicts), ("Not used from the inputs", ignored),
    ("Findings", findings),
)  # fmt: skip
CLOSING: tuple[tuple[str, Section], ...] = (
    ("Demands of the task", task),
    ("Rubric", rubric),
    ("Proposal", proposal),
    ("Knowledge used", knowledge),
    ("Files", file_list),
)
PROVEN: tuple[tuple[str, Section], ...] = (
    ("Requirements (predicted)", requirements),
    ("Planned for", setting),
    ("Groups of devices (predicted)", groups),
    ("Ways to use the kinds of devices (predicted)", kinds),
    ("Why this strategy", why),
    ("Prefill and decode on pools of their own (predicted)", pools),
    *COMMON,
    ("Cost and energy", economics),
    ("How sure the choice is (predicted)", sensitivity),
    ("What if", what_ifs),
    ("Modules and their parts (proven)", each(modules)),
    ("Which device does what", placement),
    ("Memory per device", each(memory)),
    ("Where the time goes (predicted)", each(latency)),
    ("Latency and throughput (predicted)", pareto),
    ("Devices and throughput (predicted)", devices_table),
    ("Proof", proofs),
    *CLOSING,
)
INFEASIBLE: tuple[tuple[str, Section], ...] = (
    ("What binds", binding),
    ("Nearest changes", nearest),
    ("Ways to use the kinds of devices (predicted)", kinds),
    ("Closest strategies (predicted)", closest),
    ("Cost and energy", economics),
    ("Planned for", setting),
    ("Requirements, at the closest strategy (predicted)", requirements),
    *COMMON,
    *CLOSING,
)


def render_plan_md(
    plan: Plan, *, files: Sequence[Deliverable] = (), evaluation: Evaluation | None = None
) -> str:  # fmt: skip
    """Markdown of a proven plan or of an infeasible verdict. `files` are linked by their paths beside plan.md."""
    page = Page(plan, tuple(files), evaluation)
    sections = PROVEN if plan.status == "proven" else INFEASIBLE
    blocks = [first_lines(page)]
    for title, section in sections:
        lines = section(page)
        if lines:
            blocks.append([f"## {title}", "", *lines])
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"
