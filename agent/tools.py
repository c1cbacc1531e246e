"""The tools that an LLM may call. Each is a thin, typed door to the deterministic library; answers are plain JSON.

Parameters of the types hidden below are filled from the run; the LLM sees only the others.
"""

from __future__ import annotations

from typing import Any, Literal

from agent.bind import Workbench, candidate_key
from knowledge.retrieve import Library
from tools.registry import hide, tool
from tools.spec.conditions import Conditions
from tools.spec.plan import Candidate, Unit
from tools.spec.strategy import Phase, Strategy

hide(Workbench, Conditions, Library)


def summary(candidate: Candidate, moe: bool = True) -> str:
    """One line of numbers about a priced strategy of a model with or without experts."""
    e = candidate.estimate
    return (
        f"{e.strategy.label(moe)} on {e.num_devices} devices: TTFT {e.ttft_s * 1e3:.4g} ms, "
        f"TPOT {e.tpot_s * 1e3:.4g} ms, {e.output_tok_s:.5g} output tokens/s "
        f"({e.output_tok_s_per_device:.4g} per device), batch {e.batch} per replica"
    )


def plain(bench: Workbench, candidate: Candidate) -> dict[str, Any]:
    """A priced strategy as the LLM sees it."""
    e, moe = candidate.estimate, bench.deployment.model.moe is not None
    predictions = [
        {k: getattr(p, k) for k in ("metric", "stat", "value", "unit", "band", "limit", "margin", "status")}
        for p in e.predictions
    ]
    return {
        "rank": candidate.rank,
        "label": e.strategy.label(moe),
        "key": candidate_key(candidate),
        "summary": summary(candidate, moe),
        # Several strategies side by side have no degrees of their own: they are named by their key.
        "strategy": {"key": candidate_key(candidate)} if candidate.units else e.strategy.model_dump(mode="json"),
        **({"units": [unit_summary(u, moe) for u in candidate.units]} if candidate.units else {}),
        "feasible": e.feasible,
        "objective_value": candidate.objective_value,
        "reason": candidate.reason,
        "predictions": predictions,
        "findings": [f.message for f in e.findings][:8],
    }


def unit_summary(u: Unit, moe: bool) -> dict[str, Any]:
    return {
        "devices": u.name,
        "share": u.share,
        "strategy": u.strategy.model_dump(mode="json"),
        "label": u.strategy.label(moe),
    }


@tool
def read_facts(conditions: Conditions) -> dict[str, Any]:
    """What the deterministic reader took from the inputs: facts with value, unit and quote; conflicts; missing paths;
    ignored sections; flags.
    """
    return conditions.model_dump(mode="json")


@tool
def retrieve(library: Library, query: str, limit: int = 8) -> dict[str, Any]:
    """Passages of the knowledge base for a query in English or Chinese, best first, each with id, title, file, line,
    subjects and text."""
    hits = library.search(query, min(max(limit, 1), 20))
    return {"items": [{**h.passage.model_dump(mode="json"), "score": h.score} for h in hits]}


@tool
def search_strategies(bench: Workbench, top: int = 5) -> dict[str, Any]:
    """Exhaustive search over every legal strategy: the best that meet all requirements, the Pareto front, the
    baseline, and, when none is feasible, why and the nearest change.
    """
    result = bench.search
    verdict = result.infeasible
    return {
        "objective": result.objective,
        "enumerated": result.num_enumerated,
        "legal": result.num_legal,
        "fitting": result.num_fitting,
        "feasible": result.num_feasible,
        "items": [plain(bench, c) for c in result.ranked[: min(max(top, 1), 20)]],
        "pareto": [
            {
                "summary": summary(c, bench.deployment.model.moe is not None),
                "strategy": c.estimate.strategy.model_dump(mode="json"),
            }
            for c in result.pareto[:12]
        ],
        "baseline": plain(bench, result.baseline),
        "infeasible": verdict
        and {
            "cause": verdict.cause,
            "binding": verdict.binding.message,
            "nearest": [c.description for c in verdict.nearest],
        },
    }


@tool
def estimate_strategy(bench: Workbench, strategy: Strategy) -> dict[str, Any]:
    """Predicted TTFT, TPOT, throughput, memory and requirement margins of one strategy, with its objective value."""
    return plain(bench, bench.candidate(strategy))


@tool
def check_strategy(bench: Workbench, strategy: Strategy | None = None) -> dict[str, Any]:
    """Whether the serving engine accepts a strategy: every finding with the equation, its values, and the way out."""
    s = bench.reviewed(strategy)
    found = bench.engine_findings(s)
    return {
        "label": bench.label(s),
        "legal": not any(f.severity == "error" for f in found),
        "findings": [f.model_dump(mode="json") for f in found],
    }


@tool
def memory_calculator(bench: Workbench, strategy: Strategy | None = None) -> dict[str, Any]:
    """Bytes per device of each pipeline stage: weights, KV cache, activations, overhead, reserve, capacity, and what
    is free.
    """
    s = bench.reviewed(strategy)
    stages = [
        {**m.model_dump(mode="json", exclude={"terms"}), "total_bytes": m.total_bytes, "free_bytes": m.free_bytes}
        for m in bench.memory(s)
    ]
    return {"label": bench.label(s), "stages": stages}


@tool
def count_shards(bench: Workbench, strategy: Strategy | None = None) -> dict[str, Any]:
    """Into how many parts each module is divided, in how many copies, and whether that matches its devices, in words
    and numbers."""
    s = bench.reviewed(strategy)
    keep = ("module", "weight", "num_shards", "copies", "devices", "matches", "sentence")
    parts = bench.parts(s)
    return {
        "label": bench.label(s),
        "all_match": all(p.matches for p in parts),
        "items": [{k: getattr(p, k) for k in keep} for p in parts],
    }


@tool
def prove_strategy(bench: Workbench, strategy: Strategy | None = None) -> dict[str, Any]:
    """Executes the partitioned graph on simulated devices at reduced dims and compares every tensor with the
    unpartitioned model."""
    s = bench.reviewed(strategy)
    return {
        "label": bench.label(s),
        "proofs": {phase: p.model_dump(mode="json") for phase, p in bench.proofs(s).items()},
    }


@tool
def build_dag(
    bench: Workbench, phase: Phase, strategy: Strategy | None = None, detail: Literal["full", "stage", "group"] = "full"
) -> dict[str, Any]:
    """The operator-level graph of one phase: numbers of nodes, edges and lanes (the drawing itself is made by the
    run).
    """
    from tools.dag.build import build_dag as build

    dag = build(bench.program(bench.reviewed(strategy), phase), detail=detail)
    return {"phase": phase, "detail": detail, "nodes": len(dag.nodes), "edges": len(dag.edges), "lanes": len(dag.lanes)}
