"""read, search, estimate, export: answers without a run directory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.commands.common import deployment_from, load_plan, print_json, ready_dir, strategy_from
from agent.errors import OK
from agent.files import write_atomic
from tools.spec.base import ToolError
from tools.spec.conditions import Conditions


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

    files = read_files(inputs)
    conditions = read_conditions(files)
    if choice == "builtin":
        return conditions
    backend = make_backend(choice, base_url)
    try:
        log = EventLog(events, Progress("").__call__)
        return (await fill_gaps(tuple(files), conditions, Conversation(backend, log)))[0]
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


def search(asked: Mapping[str, Any], json_: bool) -> int:
    from agent.tools import summary
    from knowledge.curves import load_curves
    from tools.search import search as run

    deployment = deployment_from(asked)
    moe = deployment.model.moe is not None
    result = run(deployment, load_curves(), top=asked["top"])
    if json_:
        print_json(result.model_dump(mode="json"))
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
    return OK


def estimate(asked: Mapping[str, Any], json_: bool) -> int:
    if asked.get("csv") is not None:
        return _estimate_csv(asked, json_)
    for option in ("model", "device", "isl", "osl"):
        if asked.get(option) is None:
            raise ToolError(f"estimate needs --{option} (or --csv FILE --out FILE)")
    if (asked.get("concurrency") is None) == (not asked["max_throughput"]):
        raise ToolError("estimate needs either --concurrency C or --max-throughput")
    from knowledge.curves import load_curves
    from tools.cost.estimate import estimate as run
    from tools.cost.report import estimate_json

    draft = strategy_from(asked)
    deployment = deployment_from(asked, num_devices=draft.num_devices)
    concurrency = asked.get("concurrency")
    strategy = draft.model_copy(
        update={
            "weight_dtype": deployment.weight_dtypes[0],
            "kv_dtype": deployment.kv_dtypes[0],
            "engine": deployment.engine.name,
            "batch": max(1, -(-concurrency // draft.dp)) if concurrency else draft.batch,
        }
    )
    found = run(deployment, strategy, load_curves(), concurrency=concurrency, max_throughput=asked["max_throughput"])
    if json_:
        print_json(estimate_json(found))
        return OK
    print(
        f"{strategy.label(deployment.model.moe is not None)} on {found.num_devices} devices, "
        f"{found.concurrency} requests in flight: TTFT {found.ttft_s * 1e3:.4g} ms, TPOT {found.tpot_s * 1e3:.4g} ms, "
        f"{found.output_tok_s:.5g} output tokens/s (predicted)"
    )
    for f in found.findings:
        print(f"{f.severity}: {f.message}")
    return OK


def _estimate_csv(asked: Mapping[str, Any], json_: bool) -> int:
    if asked.get("out") is None:
        raise ToolError("estimate --csv needs --out FILE for the predictions")
    from agent.estimate_csv import estimate_csv

    ready_dir(asked["out"].parent)
    if asked["out"].is_dir():
        raise ToolError(f"--out {asked['out']}: is a directory; name a file")
    try:
        result = estimate_csv(asked["csv"], asked["out"])
    except OSError as e:
        raise ToolError(f"{e.filename}: {e.strerror}") from None
    if json_:
        print_json(result)
    else:
        print("; ".join(f"{k}: {v}" for k, v in result.items()))
    return OK


def export(plan_json: Path, engine: str, out: Path, json_: bool) -> int:
    """Launch files of a proven plan. Raises ToolError with the engine's reason when it cannot run the plan."""
    from agent.bind import Workbench
    from agent.bundle import export_plan
    from tools.engines.export import LAUNCHERS

    if engine not in LAUNCHERS:
        raise ToolError(f"--engine {engine!r}: choose one of {', '.join(LAUNCHERS)}")
    plan = load_plan(plan_json)
    if plan.strategy is None:
        raise ToolError(f"{plan_json}: the plan is infeasible, there is nothing to launch")
    strategy = plan.strategy.model_copy(update={"engine": engine})
    files, findings = export_plan(Workbench(plan.deployment), plan.model_copy(update={"strategy": strategy}), engine)
    if not files:
        raise ToolError(f"{engine} cannot run {plan.strategy.label()}: {'; '.join(f.message for f in findings)}")
    ready_dir(out)
    for f in files:
        write_atomic(out / f.name, f.text.encode())
        (out / f.name).chmod(0o755 if f.executable else 0o644)
    if json_:
        print_json(
            {"files": [str(out / f.name) for f in files], "findings": [f.model_dump(mode="json") for f in findings]}
        )
    else:
        print("\n".join(str(out / f.name) for f in files))
    return OK
