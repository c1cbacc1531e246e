"""What a run leaves for people and programs: plan.json, plan.md, the Pareto plot, the terminal summary."""

from agent.report.pareto import pareto_csv, pareto_svg
from agent.report.plan_json import assemble_plan, phase_entry, plan_to_json
from agent.report.plan_md import render_plan_md

__all__ = ["assemble_plan", "pareto_csv", "pareto_svg", "phase_entry", "plan_to_json", "render_plan_md"]
