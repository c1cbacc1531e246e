"""Scores of one observation against its case: each 0..1 with a reason and its evidence, or absent where the case says
nothing about it. Pure.

reading    fact_recall, fact_precision, conflicts, missing, ignored, flags
outcome    verdict (exit code, status, cause, objective, devices, degrees)
plan       proof (no failed check), dag_rules, plan_regret, methods (of a paper), and the run's own rubric as rubric.<criterion>
conduct    untouched (nothing written outside the run directory), own_answers (share of nodes the backend answered)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from agent.state import NODES
from evals.case import Case, flag_raised
from evals.observe import Observation
from tools.spec.base import Frozen, ToolError


class CaseScore(Frozen):
    """One criterion of one run. `evidence`: what was looked at, wrong items first."""

    criterion: str
    value: float
    reason: str
    evidence: tuple[str, ...] = ()


Scorer = Callable[[Case, Observation], CaseScore | None]
CRITERIA: dict[str, Scorer] = {}


def criterion(function: Scorer) -> Scorer:
    """Registers a pure function (case, observation) → score, or None where the case does not ask for it."""
    CRITERIA[function.__name__] = function
    return function


def score(case: Case, seen: Observation) -> tuple[CaseScore, ...]:
    """Every score of one run, the registered criteria first, then the run's own rubric."""
    own = [found for f in CRITERIA.values() if (found := f(case, seen)) is not None]
    # Without scripts and SVGs the deliverables are not all there, by choice.
    left_out = {"result"} if seen["depth"] == "plan" else set()
    rubric = [
        CaseScore(criterion=f"rubric.{name}", value=s["value"], reason=s["reason"])
        for name, s in (seen.get("scores") or {}).items()
        if name not in left_out
    ]
    return (*own, *rubric)


def _share(name: str, right: Iterable[str], wrong: Iterable[str], good: str) -> CaseScore:
    right, wrong = tuple(right), tuple(wrong)
    total = len(right) + len(wrong)
    reason = good if not wrong else f"{len(wrong)} of {total}: {wrong[0]}"
    return CaseScore(
        criterion=name, value=len(right) / total if total else 1.0, reason=reason, evidence=(*wrong, *right)
    )


# ------------------------------------------------------------------------------------------------------------- reading


def _facts(seen: Observation) -> dict[str, Any] | None:
    """Path → value of what was read from the inputs or follows from them; None when the reader gave no answer."""
    if not seen.get("conditions"):
        return None
    return {f["path"]: f["value"] for f in seen["conditions"]["facts"] if f["origin"] != "assumed"}


def _answers(case: Case, seen: Observation) -> bool:
    """Facts are judged where the reader answers at all: it may refuse bad input."""
    return bool(case.facts) and (_facts(seen) is not None or 2 not in case.expect.exit_code)


@lru_cache(maxsize=4096)
def canonical(path: str, value: str) -> str:
    """The catalogue's id of a device or model, whatever it was called."""
    from knowledge.catalog import load_device, load_model

    try:
        if path == "hardware.device":
            return load_device(value).device.name
        if path == "model.name":
            return load_model(value).model.name
    except ToolError:
        pass
    return value


def right(case: Case, path: str, value: Any) -> bool:
    if case.accepts(path, value):
        return True
    if path in ("hardware.device", "model.name") and isinstance(value, str):
        wanted = (case.facts[path], *case.accept.get(path, ()))
        return any(isinstance(w, str) and canonical(path, w) == canonical(path, value) for w in wanted)
    return False


def _found(case: Case, facts: dict[str, Any], path: str) -> bool:
    places = (path, *case.accept_paths.get(path, ()))
    return any(p in facts and right(case, path, facts[p]) for p in places)


@criterion
def fact_recall(case: Case, seen: Observation) -> CaseScore | None:
    """Share of the expected facts that were read, with a right value at a right path."""
    if not _answers(case, seen):
        return None
    facts = _facts(seen) or {}
    have = [p for p in case.facts if _found(case, facts, p)]
    lack = [f"{p} = {case.facts[p]!r}, read {facts.get(p, 'nothing')!r}" for p in case.facts if p not in have]
    return _share("fact_recall", have, lack, f"all {len(have)} facts")


@criterion
def fact_precision(case: Case, seen: Observation) -> CaseScore | None:
    """Share of what was read, at paths the case knows, that is right; `wrong` values count wherever they stand."""
    facts = _facts(seen)
    if facts is None or not (case.facts or case.wrong):
        return None
    good = [p for p in case.facts if p in facts and _found(case, facts, p)]
    bad = [
        f"{p}: {facts[p]!r} is wrong"
        for p in {*case.facts, *case.wrong}
        if p in facts and p not in good and (p in case.facts or facts[p] in case.wrong[p])
    ]
    return _share("fact_precision", good, sorted(bad), "nothing wrong was read")


@criterion
def conflicts(case: Case, seen: Observation) -> CaseScore | None:
    """Of each group of paths that contradict each other at least one is reported. A refusal that names it counts."""
    if not case.conflicts or not (seen.get("conditions") or seen.get("error")):
        return None
    told = {p for c in (seen.get("conditions") or {}).get("conflicts", ()) for p in (c["path"], *c["paths"])}
    refused = seen.get("error") or ""
    groups = {" / ".join(g): any(p in told or p in refused for p in g) for g in case.conflicts}
    return _share("conflicts", [g for g, ok in groups.items() if ok], [g for g, ok in groups.items() if not ok],
                  "every contradiction is reported")  # fmt: skip


@criterion
def missing(case: Case, seen: Observation) -> CaseScore | None:
    """What is not stated is reported missing, and nothing that is stated is."""
    if not seen.get("conditions") or not (case.missing or case.facts):
        return None
    told = set(seen["conditions"]["missing"])
    have = [f"{p} is named" for p in case.missing if p in told] + [f"{p} is stated" for p in set(case.facts) - told]
    gone = [f"{p} is not reported missing" for p in case.missing if p not in told]
    false = [f"{p} is reported missing, and is stated" for p in sorted(told & set(case.facts))]
    return _share("missing", sorted(have), [*gone, *false], "gaps are named, and only gaps")


@criterion
def ignored(case: Case, seen: Observation) -> CaseScore | None:
    """Sections that do not matter are declared so."""
    if not case.ignored or not seen.get("conditions"):
        return None
    told = " \n".join(f"{i['section']} {i['why']}" for i in seen["conditions"]["ignored"]).lower()
    have = [w for w in case.ignored if w.lower() in told]
    return _share("ignored", have, [f"{w!r} is in no ignored section" for w in case.ignored if w not in have],
                  "what does not matter is declared")  # fmt: skip


@criterion
def flags(case: Case, seen: Observation) -> CaseScore | None:
    """What a careful reader would raise is raised: by a flag, a finding, or a conflict."""
    if not case.must_flag or not (seen.get("conditions") or seen.get("error")):
        return None
    read = seen.get("conditions") or {}
    said = [t for f in read.get("flags", ()) for t in (f["code"], f["message"])]
    said += [t for c in read.get("conflicts", ()) for t in (c["path"], c["why"])]
    said += (seen.get("plan") or {}).get("said", [])
    said += [seen["error"]] if seen.get("error") else []
    have = [f for f in case.must_flag if flag_raised(f, said)]
    return _share("flags", have, [f"{f} is not raised" for f in case.must_flag if f not in have], "raised")


# ------------------------------------------------------------------------------------------------------------- outcome


@criterion
def verdict(case: Case, seen: Observation) -> CaseScore | None:
    """The outcome against what is expected of it; what the case leaves open is not judged."""
    if seen["depth"] == "read":
        return None
    checks = [_among("exit code", seen["exit_code"], case.expect.exit_code)]
    if seen.get("error") and seen["exit_code"] not in case.expect.exit_code:
        checks[0] = (False, f"exit code {seen['exit_code']}: {seen['error']}")
    plan = seen.get("plan")
    # Where a refusal is right, there is nothing else to compare.
    if plan is not None:
        checks += _plan_checks(case, plan)
    return _share("verdict", [t for ok, t in checks if ok], [t for ok, t in checks if not ok], "as expected")


def _plan_checks(case: Case, plan: dict[str, Any]) -> list[tuple[bool, str]]:
    e, strategy, n = case.expect, plan["strategy"], plan["num_devices"]
    out = [_among("status", plan["status"], e.status)]
    if plan["status"] == "infeasible":
        out.append(_among("cause", plan["cause"], e.cause))
    out.append(_among("objective", plan["objective"], (e.objective,) if e.objective else ()))
    if strategy is not None:
        out.append(_among("devices", n, (e.num_devices,) if e.num_devices else ()))
        if e.num_devices_min is not None:
            out.append((n >= e.num_devices_min, f"devices {n}, at least {e.num_devices_min}"))
        if e.num_devices_max is not None:
            out.append((n <= e.num_devices_max, f"devices {n}, at most {e.num_devices_max}"))
        for name in ("tp", "pp", "ep", "dp", "weight_dtype"):
            out.append(_among(name, strategy[name], getattr(e, f"{name}_in")))
    return [c for c in out if c[1]]


def _among(what: str, got: Any, allowed: tuple[Any, ...]) -> tuple[bool, str]:
    """(is it one of `allowed`, in words); no words when nothing is asked for."""
    if not allowed:
        return True, ""
    return got in allowed, f"{what} {got}, expected {' or '.join(map(str, allowed))}"


# ---------------------------------------------------------------------------------------------------------------- plan


@criterion
def proof(case: Case, seen: Observation) -> CaseScore | None:
    """A published plan has no failed check."""
    if seen.get("plan") is None:
        return None
    return _share("proof", ["published"], seen["failed_checks"], "no failed check")


@criterion
def dag_rules(case: Case, seen: Observation) -> CaseScore | None:
    """Share of the decidable DAG rules that hold, over all DAGs of the run."""
    if not seen.get("dags"):
        return None
    held = [f"{d['name']} {r}" for d in seen["dags"] for r in d["passed"]]
    return _share("dag_rules", held, [f"{d['name']}: {b}" for d in seen["dags"] for b in d["broken"]],
                  f"{len(held)} rules hold on {len(seen['dags'])} DAGs")  # fmt: skip


@criterion
def plan_regret(case: Case, seen: Observation) -> CaseScore | None:
    """1 − the share of the search's best objective that the backend's own proposal gives away; an infeasible proposal
    where a feasible one exists gives all of it away."""
    plan, proposal = seen.get("plan"), seen.get("proposal")
    if plan is None or proposal is None or plan["status"] == "infeasible" or "regret" not in proposal:
        return None  # a paper dictates its strategy: there is nothing to regret
    lost = proposal.get("regret")
    if lost is None:
        return CaseScore(criterion="plan_regret", value=0.0, reason=f"{proposal.get('strategy')} is not feasible")
    said = f"{proposal.get('strategy')} by {proposal.get('by')}: {lost:.2%} below the search's best"
    return CaseScore(criterion="plan_regret", value=min(1.0, max(0.0, 1.0 - lost)), reason=said)


@criterion
def methods(case: Case, seen: Observation) -> CaseScore | None:
    """Of a paper: share of its methods that were deployed with the degrees it states."""
    graphs = (seen.get("proposal") or {}).get("graphs")
    if not case.expect.methods or graphs is None:
        return None
    right: list[str] = []
    wrong: list[str] = []
    for name, degrees in case.expect.methods.items():
        found = [g["strategy"] for g in graphs if name in (g["name"], g["role"])]
        ok = any(all(s[axis] == n for axis, n in degrees.items()) for s in found)
        (right if ok else wrong).append(f"{name} {degrees}")
    return _share("methods", right, wrong, "the paper's strategies")


# ------------------------------------------------------------------------------------------------------------- conduct


@criterion
def untouched(case: Case, seen: Observation) -> CaseScore | None:
    """Nothing was written outside the run directory, and the inputs are as they were."""
    return _share("untouched", [] if seen["stray"] else ["nothing"], seen["stray"], "nothing outside the run directory")


@criterion
def own_answers(case: Case, seen: Observation) -> CaseScore | None:
    """Share of the nodes that ask which the backend answered itself."""
    if seen["depth"] == "read" or seen.get("plan") is None:
        return None
    why = seen.get("why_degraded") or {}
    asked = NODES[:-1]
    return _share("own_answers", [n for n in asked if n not in why], [f"{n}: {w}" for n, w in why.items()],
                  "every node")  # fmt: skip
