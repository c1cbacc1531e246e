"""audit and diff: what runs today against what could, and one plan against another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.commands.common import deployment_from, load_plan, print_json
from agent.errors import FINDINGS, OK
from tools.spec.base import ToolError
from tools.spec.plan import Candidate, Plan


def audit(text: str, asked: Mapping[str, Any], json_: bool) -> int:
    """Parse what runs, judge it by the engine's rules, prove its graphs; with device and lengths also price it and set it
    beside the best of the search. Exit 1 when something is wrong with what runs."""
    from agent.audit import audit as read
    from knowledge.catalog import load_device
    from tools.oracle.prove import prove

    device = load_device(asked["device"]).device if asked.get("device") else None
    report = read(
        text,
        model=asked.get("model"),
        device=device,
        num_nodes=asked.get("nodes"),
        devices_per_node=asked.get("devices_per_node"),
    )
    out: dict[str, Any] = {
        "report": report.model_dump(mode="json", exclude={"model"}),
        "legal": report.legal,
        "proofs": [],
    }
    holds = report.legal
    if report.strategy is not None and report.model is not None:
        try:
            proofs = prove(report.model, report.strategy, batch_size=2 * (report.strategy.attn_dp or 1), seq_len=64)
        except ToolError as e:
            out["refuted"], holds, proofs = str(e), False, {}
        out["proofs"] = [p.model_dump(mode="json") for p in proofs.values()]
        holds = holds and all(p.ok for p in proofs.values())
        if proofs and asked.get("device") and asked.get("isl") and asked.get("osl"):
            out |= _beside_the_best(report, asked)
    if json_:
        print_json(out)
    else:
        _print_audit(out)
    return OK if holds else FINDINGS


def _beside_the_best(report: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    from agent.tools import summary
    from knowledge.curves import load_curves
    from tools.search import evaluate_strategy, search

    s, curves = report.strategy, load_curves()
    deployment = deployment_from(
        {**asked, "model": asked.get("model") or report.model_path}, None if asked.get("nodes") else s.num_devices
    )
    deployment = deployment.model_copy(
        update={
            "baseline": report.baseline(),
            "weight_dtypes": (s.weight_dtype,),
            "kv_dtypes": (s.kv_dtype,),
            "objective": "total_throughput",
        }
    )
    today, found = evaluate_strategy(deployment, s, curves), search(deployment, curves, top=3)
    moe = deployment.model.moe is not None

    def words(c: Candidate | None) -> str | None:
        return summary(c, moe) if c is not None else None

    return {"today": words(today), "best": words(found.best), "gain": _gain(today, found.best)}


def _gain(today: Candidate, best: Candidate | None) -> float | None:
    """Relative gain in output tokens/s of the search's best over what runs."""
    if best is None or today.estimate.output_tok_s <= 0:
        return None
    return best.estimate.output_tok_s / today.estimate.output_tok_s - 1.0


def _print_audit(out: Mapping[str, Any]) -> None:
    report = out["report"]
    print(f"{report['engine']} {report['model_path']}: {'legal' if out['legal'] else 'not legal'}")
    for f in report["findings"]:
        print(f"{f['severity']} {f['code']}: {f['message']}" + (f" → {f['fix']}" if f.get("fix") else ""))
    for a in report["assumptions"]:
        print(f"assumed {a['path']} = {a['value']}: {a['why']}")
    if out.get("refuted"):
        print(f"refuted: {out['refuted']}")
    for p in out["proofs"]:
        state = "proven" if p["ok"] else "NOT equal to the model"
        print(f"{p['strategy']} {p['phase']}: {state}, max relative error {p['max_relative_error']:.2g}")
    for name in ("today", "best"):
        if out.get(name):
            print(f"{name}: {out[name]}")
    if out.get("gain") is not None:
        print(f"output tokens/s of the best over today's (predicted): {out['gain']:+.1%}")


# ------------------------------------------------------------------------------------------------------------------ diff


def diff(left: Path, right: Path, json_: bool) -> int:
    """What differs between two plans: verdict, strategy, dtypes, predictions, memory, assumptions."""
    a, b = facts(load_plan(left)), facts(load_plan(right))
    rows = [{"what": k, "left": a.get(k), "right": b.get(k)} for k in dict.fromkeys([*a, *b]) if a.get(k) != b.get(k)]
    if json_:
        print_json({"left": str(left), "right": str(right), "equal": not rows, "differences": rows})
        return OK
    if not rows:
        print("the plans say the same")
    for r in rows:
        print(f"{r['what']:34s} {_shown(r['left']):>28s}  →  {_shown(r['right'])}{_change(r['left'], r['right'])}")
    return OK


def facts(plan: Plan) -> dict[str, Any]:
    """A plan as flat facts, for comparison."""
    out: dict[str, Any] = {"status": plan.status, "model": plan.deployment.model.name, "objective": plan.objective}
    cluster = plan.deployment.cluster
    out |= {"device": cluster.device.name, "devices available": cluster.num_devices, "devices used": plan.num_devices}
    if plan.strategy is not None:
        out |= {f"strategy.{k}": v for k, v in plan.strategy.model_dump(mode="json").items() if k != "name"}
    e = plan.estimate
    if e is not None:
        out |= {
            "ttft_s": e.ttft_s,
            "tpot_s": e.tpot_s,
            "output tokens/s": e.output_tok_s,
            "largest batch that fits": e.max_batch,
        }
        out |= {f"bytes per device, {m.where}": m.total_bytes for m in e.memory}
        out |= {f"{p.metric} {p.stat} verdict": p.status for p in e.predictions if p.limit is not None}
    out |= {f"assumed {x.path}": x.value for x in plan.assumptions}
    return out


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _change(left: Any, right: Any) -> str:
    numbers = isinstance(left, int | float) and isinstance(right, int | float) and not isinstance(left, bool)
    return f"  ({right / left - 1:+.1%})" if numbers and left else ""
