"""plan, resume, show: runs of the agent."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from agent.commands.common import one_of, print_json
from agent.errors import INFEASIBLE, OK
from agent.files import MARKER, default_out
from agent.options import RunOptions, load_options
from agent.progress import Progress
from agent.state import NODES
from tools.spec.base import ToolError
from tools.spec.deployment import Objective


def plan(
    conditions: list[Path],
    task: Path | None,
    knowledge: Path | None,
    out: Path | None,
    backend: str,
    base_url: str | None,
    objective: str | None,
    strict: bool,
    json_: bool,
) -> int:
    """A new run. Exit 0 proven, 3 infeasible."""
    from agent.graph import start

    one_of(objective, Objective, "--objective")
    if out is None:
        out = default_out(conditions[0].stem or conditions[0].name, time.strftime("%Y%m%d-%H%M%S"))
    options = RunOptions(
        cwd=str(Path.cwd()), inputs=tuple(str(p) for p in conditions), task=str(task) if task else None,
        knowledge=str(knowledge) if knowledge else None, backend=backend, llm_base_url=base_url, objective=objective,  # type: ignore[arg-type]
        strict=strict,
    )  # fmt: skip
    _check_named(options)
    with Progress(f"run directory: {out}") as progress:
        _kept(out, lambda: asyncio.run(start(options, out, progress)))
    return _finish(out, json_)


def _check_named(options: RunOptions) -> None:
    """Refuses what can be refused before anything is written."""
    from agent.llm.profiles import make_backend
    from agent.reading import read_conditions, read_files, resolve
    from agent.task import load_task, refuse_paper

    asyncio.run(make_backend(options.backend, options.llm_base_url).close())
    load_task(options)
    if options.knowledge and not options.path(options.knowledge).is_dir():
        raise ToolError(f"--knowledge {options.knowledge}: no such directory")
    files = read_files([Path(p) for p in options.inputs])
    conditions = read_conditions(files)
    refuse_paper(files, conditions)
    # With an LLM, gaps may still be filled from the text; without one the answer is known now.
    if options.backend == "builtin":
        resolve(conditions)


def resume(run_dir: Path, json_: bool) -> int:
    from agent.graph import resume as go_on

    load_options(run_dir)
    with Progress(f"run directory: {run_dir}") as progress:
        _kept(run_dir, lambda: asyncio.run(go_on(run_dir, progress)))
    return _finish(run_dir, json_)


def _kept(run_dir: Path, work: Any) -> None:
    """Runs `work`; when it fails for a reason that is not the input's, says where the state is kept."""
    try:
        work()
    except ToolError:
        raise
    except OSError as e:
        raise ToolError(f"{e.filename or run_dir}: {e.strerror or e}; free space or choose another --out") from None
    except sqlite3.OperationalError as e:
        raise ToolError(
            f"{run_dir / 'checkpoint.sqlite'}: {e}; is another run using {run_dir}, or the disk full?"
        ) from None
    except BaseException:
        if (run_dir / MARKER).is_file():
            print(f"meshwright: state is kept in {run_dir} (meshwright resume {run_dir})", file=sys.stderr)
        raise


def _finish(run_dir: Path, json_: bool) -> int:
    """The summary table (stderr under --json: nothing), the manifest's path, the exit code."""
    document = published(run_dir)
    if json_:
        print_json(document)
    else:
        print_summary(run_dir, document["degraded"])
    return INFEASIBLE if document["status"] == "infeasible" else OK


def published(run_dir: Path) -> dict[str, Any]:
    """The manifest, and the few figures that a caller wants without opening plan.json."""
    import json

    from agent.commands.common import load_plan

    manifest = json.loads((run_dir / "manifest.json").read_bytes())
    plan = load_plan(run_dir / "plan.json")
    evaluation = json.loads((run_dir / "evaluation.json").read_bytes())
    figures = {
        "headline": plan.headline, "at_risk": list(plan.at_risk), "num_devices": plan.num_devices,
        "strategy": plan.strategy.model_dump(mode="json") if plan.strategy else None,
        "evaluation": {"passed": evaluation["passed"], **{s["criterion"]: s["value"] for s in evaluation["scores"]}},
    }  # fmt: skip
    return {**manifest, "manifest": os.path.normpath(run_dir / "manifest.json"), **figures}


def print_summary(run_dir: Path, degraded: list[str]) -> None:
    from rich.console import Console

    from agent.commands.common import load_plan
    from agent.report.summary import summary
    from tools.rubric import Evaluation

    evaluation = Evaluation.model_validate_json((run_dir / "evaluation.json").read_bytes())
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(summary(load_plan(run_dir), evaluation, os.path.normpath(run_dir / "manifest.json"), degraded))


def show(run_dir: Path, json_: bool) -> int:
    """A finished run as `plan` shows it; an unfinished one by its events."""
    load_options(run_dir)
    if (run_dir / "manifest.json").is_file():
        return _finish(run_dir, json_)
    document = progress_of(run_dir)
    if json_:
        print_json(document)
    else:
        done = ", ".join(document["finished"]) or "nothing"
        print(f"{run_dir}: unfinished; done: {done}; next: {document['next']}\ngo on with: meshwright resume {run_dir}")
    return OK


def progress_of(run_dir: Path) -> dict[str, Any]:
    from agent.events import read_events

    events = list(read_events(run_dir / "events.jsonl"))
    finished = [e["node"] for e in events if e.get("event") == "node_finished"]
    after = finished[-1] if finished else None
    upcoming = (
        NODES[0]
        if after is None
        else next((e["to"] for e in reversed(events) if e.get("event") == "node_finished"), None)
    )
    calls = [e for e in events if e.get("event") == "llm_call"]
    return {"status": "unfinished", "finished": finished, "next": upcoming, "llm_calls": len(calls)}
