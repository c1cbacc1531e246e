"""dag, prove, check-dag: graphs without a run."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from math import lcm
from pathlib import Path
from typing import Any

from agent.commands.common import (
    buildable,
    checkpoint_dtypes,
    load_plan,
    one_of,
    phases,
    print_json,
    ready_dir,
    strategy_from,
)
from agent.errors import FINDINGS, OK
from agent.files import read_text, write_atomic
from agent.reading.sources import decode
from knowledge.catalog import load_model
from tools.dag.graph import Dag
from tools.oracle.prove import Proof
from tools.partition.lower import Program
from tools.partition.pools import Pools
from tools.spec.base import ToolError
from tools.spec.finding import Finding
from tools.spec.model import ModelSpec
from tools.spec.strategy import Phase, Strategy


def dag(asked: Mapping[str, Any], json_: bool) -> int:
    """Script, DOT and SVG per phase; engine legality only as findings."""
    from agent.html_view import html
    from agent.render import run_scripts
    from tools.dag.build import build_dag
    from tools.dag.graph import Detail
    from tools.dag.script import script_text
    from tools.engines.rules import check, resolve_layers
    from tools.partition.lower import lower

    one_of(asked["detail"], Detail, "--detail")
    if asked.get("device") and asked["detail"] != "schedule":
        raise ToolError(f"--device gives the times of --detail schedule; --detail is {asked['detail']}")
    model, wanted = buildable(load_model(asked["model"]).model), phases(asked.get("phase"))
    out, pools = ready_dir(asked["out"]), _pools(asked, model)
    if pools is None:
        strategy = strategy_from(asked, **checkpoint_dtypes(asked["model"]))
        strategy = resolve_layers(strategy.engine, model, strategy)
        programs = {p: lower(model, strategy, p, _sizes(model, strategy, p, asked)) for p in wanted}
    else:
        programs = {p: q for p, q in (("prefill", pools.prefill), ("decode", pools.decode)) if p in wanted}
    dags = {}
    for phase, program in programs.items():
        strategy = program.strategy
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{model.name}_{strategy.label()}_{phase}".replace("·", "_"))
        name += "" if asked["detail"] == "full" else f".{asked['detail']}"
        if asked.get("device"):
            dags[name] = (phase, program, _timed_schedule(program, asked))
        else:
            dags[name] = (phase, program, build_dag(program, detail=asked["detail"], pools=pools))
        write_atomic(out / f"{name}.py", script_text(dags[name][2], name).encode())
        if asked.get("html"):
            write_atomic(out / f"{name}.html", html(dags[name][2]).encode())
    made = run_scripts([out / f"{n}.py" for n in dags], out, dags={n: d[2] for n, d in dags.items()})
    graphs = [
        {
            "phase": dags[r.name][0],
            "strategy": dags[r.name][1].strategy.label(),
            "devices": dags[r.name][1].num_devices,
            "digest": dags[r.name][1].digest(),
            "nodes": len(dags[r.name][2].nodes),
            "edges": len(dags[r.name][2].edges),
            "script": str(r.script),
            "dot": _text(r.dot),
            "svg": _text(r.svg),
            **({"html": str(out / f"{r.name}.html")} if asked.get("html") else {}),
            "findings": [f.model_dump(mode="json") for f in r.findings],
        }
        for r in made
    ]
    judged = dict.fromkeys(p.strategy for p in programs.values())
    legality = [f.model_dump(mode="json") for s in judged for f in check(model, s)]
    if json_:
        print_json({"model": model.name, "graphs": graphs, "findings": legality})
    else:
        for g in graphs:
            files = " ".join(str(name) for name in (g["dot"], g["svg"] or "(no SVG)", g.get("html")) if name)
            print(f"{g['phase']}: {g['nodes']} nodes, {g['edges']} edges: {files}")
        for f in legality:
            print(f"{f['severity']}: {f['message']}")
    return OK


def _pools(asked: Mapping[str, Any], model: ModelSpec) -> Pools | None:
    """Programs of both pools where --strategy names a file that has two; None for one strategy."""
    from agent.reading.strategy_file import load_pools
    from tools.engines.rules import resolve_layers
    from tools.partition.pools import lower_pools

    found = load_pools(asked["strategy"], checkpoint_dtypes(asked["model"]), model) if asked.get("strategy") else None
    if found is None:
        return None
    first, second = (resolve_layers(s.engine, model, s) for s in found)
    groups = lcm(first.attn_dp or 1, second.attn_dp or 1)
    asked = {**asked, "batch": asked.get("batch") or groups}
    prompt, step = _sizes(model, first, "prefill", asked), _sizes(model, second, "decode", asked)
    return lower_pools(model, first, second, prompt, step)


def _timed_schedule(program: Program, asked: Mapping[str, Any]) -> Dag:
    """The schedule with the times that the cost model predicts on a device."""
    from agent.commands.common import deployment_from
    from knowledge.curves import load_curves
    from tools.cost.schedule import layer_halves, schedule
    from tools.dag.pingpong import ping_pong_dag, ping_pong_pieces
    from tools.dag.schedule import schedule_dag

    s, length = program.strategy, asked["seq"]
    deployment = deployment_from({**asked, "isl": length, "osl": 1}, s.num_devices)
    if s.expert_devices and s.pp == 1:
        piece = ping_pong_pieces(program)[0]
        return ping_pong_dag(program, layer_halves(deployment, s, load_curves(), program.phase, piece))
    batch = int(program.sizes["batch_size"])
    return schedule_dag(program, schedule(deployment, s, load_curves(), program.phase, batch=batch, seq_len=length))


def _text(path: Path | None) -> str | None:
    return str(path) if path else None


def _sizes(model: ModelSpec, strategy: Strategy, phase: Phase, asked: Mapping[str, Any]) -> Any:
    from tools.graph.build import all_sizes

    groups = strategy.attn_dp or 1
    batch = asked.get("batch") or groups
    if batch % groups:
        raise ToolError(
            f"--batch {batch} does not split over attn_dp({groups}): {batch}/{groups} = {batch / groups:.3g}"
        )
    return all_sizes(model, batch_size=batch, seq_len=asked["seq"] if phase == "prefill" else 1, kv_len=asked["seq"])


def prove(asked: Mapping[str, Any], json_: bool) -> int:
    """Exit 1 when a proof does not hold."""
    graphs: list[dict[str, Any]] = []
    for model, run, batch, seq in _proofs(asked):
        began = time.perf_counter()
        found = run(batch_size=batch, seq_len=seq)
        seconds = round(time.perf_counter() - began, 3)
        for phase in phases(asked.get("phase")):
            p = found[phase]
            graphs.append(
                {
                    "model": model.name, "strategy": p.strategy, "phase": phase, "devices": p.devices_simulated,
                    "max_relative_error": p.max_relative_error, "seconds": seconds, "ok": p.ok, "digest": p.digest,
                    "tensors_compared": p.tensors_compared, "failures": list(p.failures),
                }
            )  # fmt: skip
    holds = all(g["ok"] for g in graphs)
    if json_:
        print_json({"ok": holds, "graphs": graphs, "findings": _legality(asked)})
    else:
        for g in graphs:
            verdict = "proven" if g["ok"] else f"FAILED ({g['failures'][0]})"
            print(
                f"{g['model']} {g['strategy']} {g['phase']}: {verdict}, {g['devices']} devices, "
                f"{g['tensors_compared']} tensors, max relative error {g['max_relative_error']:.2g} ({g['seconds']} s)"
            )
    return OK if holds else FINDINGS


def _proofs(asked: Mapping[str, Any]) -> list[tuple[ModelSpec, Callable[..., dict[Phase, Proof]], int, int]]:
    """(model, what proves it, batch, sequence length) of every strategy, or of the two pools of a strategy file."""
    from agent.reading.strategy_file import load_pools
    from tools.oracle.pools import prove_pools
    from tools.oracle.prove import prove as run

    if asked.get("strategy") and asked.get("model"):
        model = buildable(load_model(asked["model"]).model)
        both = load_pools(asked["strategy"], checkpoint_dtypes(asked["model"]), model)
        if both:
            batch = 2 * lcm(*(s.attn_dp or 1 for s in both))
            return [(model, partial(prove_pools, model, *both), batch, 64)]
    return [(model, partial(run, model, s), batch, seq) for model, s, batch, seq in _to_prove(asked)]


def _to_prove(asked: Mapping[str, Any]) -> list[tuple[ModelSpec, Strategy, int, int]]:
    """(model, strategy, batch, sequence length) of the plan and its baseline, or of the options."""
    from tools.engines.rules import resolve_layers

    if asked.get("plan_json") is not None:
        if asked.get("model") is not None:
            raise ToolError("give a PLAN.json or --model, not both")
        plan = load_plan(asked["plan_json"])
        chosen = [plan.strategy] if plan.strategy else []
        others = [e.strategy for e in (plan.baseline,) if e is not None and e.strategy not in chosen]
        model = buildable(plan.deployment.model)
        return [(model, s, 2 * (s.attn_dp or 1), plan.deployment.workload.isl) for s in (*chosen, *others)]
    if asked.get("model") is None:
        raise ToolError("prove needs a PLAN.json, or --model with degrees")
    model, s = buildable(load_model(asked["model"]).model), strategy_from(asked, **checkpoint_dtypes(asked["model"]))
    return [(model, resolve_layers(s.engine, model, s), 2 * (s.attn_dp or 1), 64)]


def _legality(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    from agent.reading.strategy_file import load_pools
    from tools.engines.rules import check

    both = load_pools(asked["strategy"]) if asked.get("strategy") and asked.get("model") else None
    if both:
        model = load_model(asked["model"]).model
        return [f.model_dump(mode="json") for s in dict.fromkeys(both) for f in check(model, s)]
    return [f.model_dump(mode="json") for model, s, _, _ in _to_prove(asked) for f in check(model, s)]


def check_dag(files: list[Path], json_: bool) -> int:
    """Exit 1 when a rule is broken or a file does not parse; an unreadable file is bad input."""
    from tools.dag.check_dot import DotReport, check_dot

    reports: list[DotReport] = []
    findings: list[Finding] = []
    gc.disable()  # hundreds of thousands of small values, no cycles, one short process: collecting costs a sixth
    for path in files:
        found = check_dot(_dot_text(path), str(path))
        reports += found
        findings += [f for r in found for f in r.findings()] if found else [_no_graph(path)]
    gc.enable()
    ok = not findings and all(r.ok for r in reports)
    if json_:
        plain = [{**r.model_dump(mode="json"), "ok": r.ok} for r in reports]
        print_json({"ok": ok, "reports": plain, "findings": [f.model_dump(mode="json") for f in findings]})
    else:
        for r in reports:
            said = "no rule broken" if r.ok else "rules broken"
            print(f"{r.file} {r.graph or ''}: {r.num_nodes} nodes, {r.num_edges} edges, {said}")
        for f in findings:
            print(f"{f.severity} {f.code} {f.where or ''}: {f.message}" + (f" → {f.fix}" if f.fix else ""))
    return OK if ok else FINDINGS


def _dot_text(path: Path) -> str:
    """UTF-8, else what conditions may be written in too: UTF-16, GB18030."""
    try:
        return read_text(path, "DOT file", 100_000_000)
    except ToolError:
        if not path.is_file() or path.stat().st_size > 100_000_000:
            raise
        return decode(path.read_bytes(), str(path))


def _no_graph(path: Path) -> Finding:
    text, fix = f"{path} holds no graph", "start with digraph NAME { … }"
    return Finding(code="dot-syntax", severity="error", cause="dag", message=text, where=f"{path}:1", fix=fix)
