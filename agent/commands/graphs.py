"""dag, prove, check-dag: graphs without a run."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from agent.render import Rendered


def dag(asked: Mapping[str, Any], json_: bool) -> int:
    """Script, DOT and SVG per phase; engine legality only as findings."""
    from tools.dag.graph import Detail

    one_of(asked["detail"], Detail, "--detail")
    if asked.get("device") and asked["detail"] != "schedule":
        raise ToolError(f"--device gives the times of --detail schedule; --detail is {asked['detail']}")
    model, wanted = buildable(load_model(asked["model"]).model), phases(asked.get("phase"))
    out, pools = ready_dir(asked["out"]), _pools(asked, model)
    programs = _programs(asked, model, pools, wanted)
    dags = {_file_name(model, p, asked["detail"]): (p, _drawn(p, asked, pools)) for p in programs}
    graphs = _written(dags, out, with_html=bool(asked.get("html")))
    legality = _findings(model, dict.fromkeys(p.strategy for p in programs))
    if json_:
        print_json({"model": model.name, "graphs": graphs, "findings": legality})
    else:
        for g in graphs:
            files = " ".join(str(name) for name in (g["dot"], g["svg"] or "(no SVG)", g.get("html")) if name)
            print(f"{g['phase']}: {g['nodes']} nodes, {g['edges']} edges: {files}")
        for f in legality:
            print(f"{f['severity']}: {f['message']}")
    return OK


def _programs(
    asked: Mapping[str, Any], model: ModelSpec, pools: Pools | None, wanted: Sequence[Phase]
) -> list[Program]:
    """The graph of each wanted phase: of its own pool, or of the one strategy that the options say."""
    from tools.engines.rules import resolve_layers
    from tools.partition.lower import lower

    if pools is not None:
        return [p for p in (pools.prefill, pools.decode) if p.phase in wanted]
    strategy = strategy_from(asked, **checkpoint_dtypes(asked["model"]))
    strategy = resolve_layers(strategy.engine, model, strategy)
    return [lower(model, strategy, phase, _sizes(model, strategy, phase, asked)) for phase in wanted]


def _file_name(model: ModelSpec, program: Program, detail: str) -> str:
    named = f"{model.name}_{program.strategy.label()}_{program.phase}".replace("·", "_")
    return re.sub(r"[^A-Za-z0-9._-]+", "_", named) + ("" if detail == "full" else f".{detail}")


def _drawn(program: Program, asked: Mapping[str, Any], pools: Pools | None) -> Dag:
    from tools.dag.build import build_dag

    if asked.get("device"):
        return _timed_schedule(program, asked)
    return build_dag(program, detail=asked["detail"], pools=pools)


def _written(dags: Mapping[str, tuple[Program, Dag]], out: Path, *, with_html: bool) -> list[dict[str, Any]]:
    """Writes and runs the scripts; one row per graph about what it is and where its files are."""
    from agent.html_view import html
    from agent.render import run_scripts
    from tools.dag.script import script_text

    for name, (_, drawn) in dags.items():
        write_atomic(out / f"{name}.py", script_text(drawn, name).encode())
        if with_html:
            write_atomic(out / f"{name}.html", html(drawn).encode())
    made = run_scripts([out / f"{n}.py" for n in dags], out, dags={n: drawn for n, (_, drawn) in dags.items()})
    return [_row(r, *dags[r.name], out / f"{r.name}.html" if with_html else None) for r in made]


def _row(made: Rendered, program: Program, drawn: Dag, page: Path | None) -> dict[str, Any]:
    return {
        "phase": program.phase,
        "strategy": program.strategy.label(),
        "devices": program.num_devices,
        "digest": program.digest(),
        "nodes": len(drawn.nodes),
        "edges": len(drawn.edges),
        "script": str(made.script),
        "dot": _text(made.dot),
        "svg": _text(made.svg),
        **({"html": str(page)} if page else {}),
        "findings": [f.model_dump(mode="json") for f in made.findings],
    }


def _findings(model: ModelSpec, strategies: Iterable[Strategy]) -> list[dict[str, Any]]:
    """Whether the model was read by likeness only, and what the engines say to the strategies."""
    from tools.cost.estimate import blocks_in_doubt
    from tools.engines.rules import check

    doubt = blocks_in_doubt(model)
    said = [*([doubt] if doubt else []), *(f for s in strategies for f in check(model, s))]
    return [f.model_dump(mode="json") for f in said]


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
        for f in _legality(asked):
            if f["code"] == "blocks-in-doubt":
                print(f"warning: {f['message']}")
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
        chosen = [u.strategy for u in plan.units] or ([plan.strategy] if plan.strategy else [])
        others = [e.strategy for e in (plan.baseline,) if e is not None and e.strategy not in chosen]
        model = buildable(plan.deployment.model)
        return [(model, s, 2 * (s.attn_dp or 1), plan.deployment.workload.isl) for s in (*chosen, *others)]
    if asked.get("model") is None:
        raise ToolError("prove needs a PLAN.json, or --model with degrees")
    model, s = buildable(load_model(asked["model"]).model), strategy_from(asked, **checkpoint_dtypes(asked["model"]))
    return [(model, resolve_layers(s.engine, model, s), 2 * (s.attn_dp or 1), 64)]


def _legality(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    from agent.reading.strategy_file import load_pools

    both = load_pools(asked["strategy"]) if asked.get("strategy") and asked.get("model") else None
    if both:
        return _findings(load_model(asked["model"]).model, dict.fromkeys(both))
    return [f for model, s, _, _ in _to_prove(asked) for f in _findings(model, (s,))]


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
