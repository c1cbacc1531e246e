"""read, search, estimate, export: answers without a run directory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.commands.common import deployment_from, load_plan, print_json, ready_dir, strategy_from
from agent.errors import OK
from agent.files import write_atomic
from tools.spec.base import ToolError
from tools.spec.conditions import Conditions, InputFile

if TYPE_CHECKING:
    from tools.cost.curves import Curves
    from tools.engines.export import LaunchFile
    from tools.spec.deployment import Deployment
    from tools.spec.finding import Finding
    from tools.spec.plan import Economics, Estimate, Plan
    from tools.spec.strategy import Strategy


def read(conditions: list[Path], backend: str, base_url: str | None, json_: bool) -> int:
    found = asyncio.run(read_with(conditions, backend, base_url, Path(os.devnull)))
    if json_:
        print_json(found.model_dump(mode="json"))
    else:
        _print_conditions(found)
    return OK


async def read_with(inputs: Sequence[Path], choice: str, base_url: str | None, events: Path) -> Conditions:
    """What the deterministic reader and then the backend take from the inputs; calls are logged to `events`."""
    from agent.events import EventLog
    from agent.llm.profiles import make_backend
    from agent.loop import Conversation
    from agent.nodes import fill_gaps
    from agent.progress import Progress
    from agent.reading import read_conditions, read_files
    from agent.reading.paper import is_paper

    files = read_files(inputs)
    if is_paper(files):
        return await paper_read_with(tuple(files), choice, base_url, events)
    conditions = read_conditions(files)
    if choice == "builtin":
        return conditions
    backend = make_backend(choice, base_url)
    try:
        log = EventLog(events, Progress("").__call__)
        return (await fill_gaps(tuple(files), conditions, Conversation(backend, log)))[0]
    finally:
        await backend.close()


async def paper_read_with(files: tuple[InputFile, ...], choice: str, base_url: str | None, events: Path) -> Conditions:
    """The same for a paper: models, hardware, inputs and strategies with the words they rest on."""
    from agent.events import EventLog
    from agent.llm.profiles import make_backend
    from agent.loop import Conversation
    from agent.paper_llm import read_with as read_paper_with
    from agent.progress import Progress
    from agent.reading.paper import as_conditions, read_paper

    if choice == "builtin":
        return as_conditions(read_paper(files))
    backend = make_backend(choice, base_url)
    try:
        log = EventLog(events, Progress("").__call__)
        return as_conditions((await read_paper_with(files, Conversation(backend, log))).method)
    finally:
        await backend.close()


def _print_conditions(c: Conditions) -> None:
    for f in c.facts:
        where = f"{f.evidence.file}:{f.evidence.line} {f.evidence.quote!r}" if f.evidence else f.origin
        print(f"{f.path} = {f.value} {f.unit}".rstrip() + f"    ({where})")
    for x in c.conflicts:
        print(f"conflict: {x.path}: {', '.join(map(str, x.values))} → {x.resolution} ({x.why})")
    for m in c.missing:
        print(f"missing: {m}")
    for i in c.ignored:
        print(f"ignored: {i.section} ({i.why})")
    for flag in c.flags:
        print(f"flag: {flag.code}: {flag.message}")


COMPARED = 10
"""Ranked strategies among which the choice's rivals are looked for, however few are shown."""


def search(asked: Mapping[str, Any], json_: bool) -> int:
    if asked.get("mixed"):
        from agent.commands.mixed import mixed

        return mixed(asked, json_)
    from agent.calibration import curves_with
    from agent.tools import summary
    from tools.search import search as run
    from tools.search.economics import compare_devices, verdict
    from tools.search.sensitivity import sensitivity, sentence

    deployment, curves = deployment_from(asked), curves_with(asked.get("calibration"))
    moe = deployment.model.moe is not None
    found = run(deployment, curves, top=max(asked["top"], COMPARED))
    result = found.model_copy(update={"ranked": found.ranked[: asked["top"]]})
    rows = compare_devices(deployment, curves, planned=result.best.estimate if result.best else None)
    sure = sensitivity(deployment, curves, found.ranked, result.objective)
    if json_:
        more: dict[str, Any] = {"economics": dumped(rows), "device_choice": verdict(rows), "sensitivity": None}
        more |= {"sensitivity": {**sure.model_dump(mode="json"), "sentence": sentence(sure)}} if sure else {}
        print_json({**result.model_dump(mode="json"), **more})
        return OK
    print(
        f"{result.objective}: {result.num_enumerated} strategies, {result.num_legal} legal, {result.num_fitting} fit, "
        f"{result.num_feasible} meet the requirements ({result.seconds:.2f} s)"
    )
    for c in result.ranked:
        print(f"{c.rank:3d}  {summary(c, moe)}")
    if result.infeasible:
        print(f"infeasible: {result.infeasible.binding.message}")
        for change in result.infeasible.nearest:
            print(f"  would do: {change.description}")
    for w in result.what_ifs:
        print(f"what if  {w.description}: {w.strategy}, {w.relative_gain:+.1%}")
    if sure:
        print(sentence(sure))
        if sure.experiment:
            e = sure.experiment
            names = f"{e.first.label(moe)} against {e.second.label(moe)}"
            print(f"measure  {names}, {e.load}: {e.metric}; {e.decides}")
    print_economics(rows)
    return OK


def dumped(rows: Sequence[Economics]) -> list[dict[str, Any]]:
    return [r.model_dump(mode="json") for r in rows]


def print_economics(rows: Sequence[Economics]) -> None:
    """Devices side by side; nothing where there is neither a price nor another device."""
    from agent.report.economics import economics_table
    from tools.search.economics import verdict

    if len(rows) < 2 and all(r.price_per_device_hour is None for r in rows):
        return
    print("\n".join(["", *economics_table(rows)]))
    if verdict(rows):
        print(f"\n{verdict(rows)}")


def estimate(asked: Mapping[str, Any], json_: bool) -> int:
    if asked.get("csv") is not None:
        return _estimate_csv(asked, json_)
    from agent.calibration import curves_with
    from agent.simulated import read_trace, simulated_json, trace_load
    from tools.cost.report import estimate_json
    from tools.search.economics import economics, on_cluster

    trace = read_trace(asked["trace"]) if asked.get("trace") else None
    if trace is not None:
        asked = {**asked, **trace_load(trace)}
    for option in ("model", "device", "isl", "osl"):
        if asked.get(option) in (None, []):
            raise ToolError(f"estimate needs --{option} (or --csv FILE --out FILE)")
    loads = sum(bool(asked.get(x)) for x in ("concurrency", "max_throughput", "trace"))
    if loads != 1:
        raise ToolError("estimate needs one of --concurrency C, --max-throughput and --trace FILE")
    draft = strategy_from(asked)
    planned = deployment_from(asked, num_devices=draft.num_devices)
    curves = curves_with(asked.get("calibration"))
    cases = [planned, *(on_cluster(planned, c) for c in planned.other_clusters)]
    found = [_estimated(d, draft, curves, asked) for d in cases]
    rows = [economics(d, e) for d, e in zip(cases, found, strict=True)]
    if json_:
        seen = simulated_json(planned, found[0], curves, concurrency=asked.get("concurrency"), trace=trace)
        print_json({**estimate_json(found[0]), **seen, "economics": dumped(rows)})
        return OK
    for d, e in zip(cases, found, strict=True):
        print(
            f"{e.strategy.label(d.model.moe is not None)} on {e.num_devices} × {d.cluster.device.name}, "
            f"{e.concurrency} requests in flight: TTFT {e.ttft_s * 1e3:.4g} ms, TPOT {e.tpot_s * 1e3:.4g} ms, "
            f"{e.output_tok_s:.5g} output tokens/s (predicted)"
        )
        for f in e.findings:
            print(f"{f.severity}: {f.message}")
    print_economics(rows)
    return OK


def _estimated(deployment: Deployment, draft: Strategy, curves: Curves, asked: Mapping[str, Any]) -> Estimate:
    from tools.cost.estimate import estimate as run
    from tools.cost.estimate import predict

    concurrency = asked.get("concurrency")
    strategy = draft.model_copy(
        update={
            "weight_dtype": deployment.weight_dtypes[0],
            "kv_dtype": deployment.kv_dtypes[0],
            "engine": deployment.engine.name,
            "batch": max(1, -(-concurrency // draft.dp)) if concurrency else draft.batch,
        }
    )
    if asked.get("trace"):
        # Arrivals fill as many seats as there are.
        most = predict(deployment, strategy, curves, max_throughput=True).max_batch
        strategy = strategy.model_copy(update={"batch": max(1, most)})
    return run(deployment, strategy, curves, concurrency=concurrency, max_throughput=asked["max_throughput"])


def _estimate_csv(asked: Mapping[str, Any], json_: bool) -> int:
    if asked.get("out") is None:
        raise ToolError("estimate --csv needs --out FILE for the predictions")
    from agent.estimate_csv import estimate_csv

    ready_dir(asked["out"].parent)
    if asked["out"].is_dir():
        raise ToolError(f"--out {asked['out']}: is a directory; name a file")
    try:
        result = estimate_csv(asked["csv"], asked["out"], asked.get("calibration"))
    except OSError as e:
        raise ToolError(f"{e.filename}: {e.strerror}") from None
    if json_:
        print_json(result)
    else:
        print("; ".join(f"{k}: {v}" for k, v in result.items()))
    return OK


def export(plan_json: Path, engine: str, out: Path, json_: bool, more: Mapping[str, Any] | None = None) -> int:
    """Launch files of a proven plan. Raises ToolError with the engine's reason when it cannot run the plan.

    `more`: k8s and its image, pools (a file with a prefill and a decode strategy); for training seq_len, global_batch,
    micro_batch.
    """
    from tools.engines.export import LAUNCHERS
    from tools.engines.export.training import COMMANDS as TRAINERS

    more = more or {}
    if engine not in (*LAUNCHERS, *TRAINERS):
        raise ToolError(f"--engine {engine!r}: choose one of {', '.join((*LAUNCHERS, *TRAINERS))}")
    if more.get("k8s") and (more.get("pools") or engine in TRAINERS):
        raise ToolError("--k8s writes the manifest of one serving strategy; leave it out with --pools and for training")
    plan = load_plan(plan_json)
    if plan.strategy is None:
        raise ToolError(f"{plan_json}: the plan is infeasible, there is nothing to launch")
    strategy = plan.strategy.model_copy(update={"engine": engine})
    plan = plan.model_copy(update={"strategy": strategy})
    if plan.units:
        files, findings = _export_units(plan, engine, more)
    elif engine in TRAINERS:
        files, findings = _export_training(plan, engine, more)
    elif more.get("pools"):
        files, findings = _export_pools(plan, engine, more["pools"])
    else:
        from agent.bind import Workbench
        from agent.bundle import export_plan

        files, findings = export_plan(Workbench(plan.deployment), plan, engine, _kinds(more), more.get("image"))
    if not files:
        raise ToolError(f"{engine} cannot run {strategy.label()}: {'; '.join(f.message for f in findings)}")
    ready_dir(out)
    for f in files:
        (out / f.name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out / f.name, f.text.encode())
        (out / f.name).chmod(0o755 if f.executable else 0o644)
    if json_:
        print_json(
            {"files": [str(out / f.name) for f in files], "findings": [f.model_dump(mode="json") for f in findings]}
        )
    else:
        print("\n".join(str(out / f.name) for f in files))
        for said in findings:
            print(f"{said.severity}: {said.message}" + (f" → {said.fix}" if said.fix else ""))
    return OK


Exported = tuple[tuple["LaunchFile", ...], tuple["Finding", ...]]


def _export_units(plan: Plan, engine: str, more: Mapping[str, Any]) -> Exported:
    """Every unit of a plan in a folder of its own, and the file that says what the router gives each."""
    from agent.bind import Workbench
    from agent.bundle import export_plan, placement_file
    from agent.pools import export_pair
    from tools.search.fleet import views

    if more.get("pools") or not engine_serves(engine):
        raise ToolError("a plan over several kinds of devices is exported for serving engines, without --pools")
    files = [placement_file(plan)]
    findings: list[Finding] = []
    if len(plan.units[0].phases_run) == 1:
        pair = (plan.units[0].strategy, plan.units[-1].strategy)
        both = (pair[0].model_copy(update={"engine": engine}), pair[1].model_copy(update={"engine": engine}))
        made, said = export_pair(plan.deployment, both, engine)
        return (*files, *made), said
    for unit, view in zip(plan.units, views(plan), strict=True):
        assert view.strategy is not None
        view = view.model_copy(update={"strategy": view.strategy.model_copy(update={"engine": engine})})
        made, said = export_plan(Workbench(view.deployment), view, engine, _kinds(more), more.get("image"))
        if not made:
            why = "; ".join(f.message for f in said)
            raise ToolError(f"{unit.name}: {engine} cannot run {unit.strategy.label()}: {why}")
        files += [f.model_copy(update={"name": f"{unit.name}/{f.name}"}) for f in made]
        findings += said
    return tuple(files), tuple(findings)


def _kinds(more: Mapping[str, Any]) -> tuple[str, ...]:
    if more.get("image") and not more.get("k8s"):
        raise ToolError("--image is of the Kubernetes manifest; give --k8s with it")
    return ("shell", "k8s") if more.get("k8s") else ("shell",)


def engine_serves(engine: str) -> bool:
    from tools.engines.export import LAUNCHERS

    return engine in LAUNCHERS


def _export_training(plan: Plan, engine: str, more: Mapping[str, Any]) -> Exported:
    """The plan's layout as a training job; sequence length and batch are the user's, else the plan's context and batch."""
    from tools.engines.export import export_training

    assert plan.strategy is not None
    s, d = plan.strategy, plan.deployment
    micro = more.get("micro_batch") or 1
    groups = s.dp * (s.attn_dp or 1)
    most = d.model.max_context or d.workload.context
    return export_training(
        engine, d.model, s, seq_len=more.get("seq_len") or min(most, max(d.workload.context, 1)),
        global_batch_size=more.get("global_batch") or micro * groups * max(s.pp, s.microbatches, 1),
        micro_batch_size=micro, num_nodes=d.cluster.num_nodes, devices_per_node=d.cluster.devices_per_node,
        device=d.cluster.known_device,
    )  # fmt: skip


def _export_pools(plan: Plan, engine: str, file: Path) -> Exported:
    """Prefill and decode pools of a strategy file, for the plan's model, lengths and load."""
    from agent.bundle import bench_concurrency, bench_rate, draft_of
    from agent.reading.strategy_file import load_pools
    from knowledge.catalog import released_checkpoint
    from tools.engines.export import export_pd
    from tools.engines.export.pd import shared_nodes

    assert plan.strategy is not None
    s, d = plan.strategy, plan.deployment
    defaults = {"engine": engine, "weight_dtype": s.weight_dtype, "kv_dtype": s.kv_dtype, "batch": s.batch}
    pools = load_pools(file, defaults, d.model)
    if pools is None:
        raise ToolError(f"--pools {file}: one strategy; two keys are needed, prefill and decode")
    per_node = d.cluster.devices_per_node
    nodes = (-(-pools[0].num_devices // per_node), -(-pools[1].num_devices // per_node))
    shared = shared_nodes(*pools, devices_per_node=per_node, num_nodes=d.cluster.num_nodes)
    files, findings = export_pd(
        engine, d.model, *pools, isl=d.workload.isl, osl=d.workload.osl, num_nodes=nodes, devices_per_node=per_node,
        max_model_len=max(d.workload.context, d.workload.isl + d.workload.osl), request_rate=bench_rate(d),
        released=released_checkpoint(d.model.name), draft=draft_of(d),
        memory_total_bytes=d.cluster.memory_bytes, memory_reserve=d.requirements.memory_reserve,
        concurrency=bench_concurrency(plan), device=d.cluster.known_device,
    )  # fmt: skip
    return files, (*findings, *shared)
