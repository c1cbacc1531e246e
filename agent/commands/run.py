"""plan, resume, show: runs of the agent."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any, Literal

from agent.commands.common import one_of, print_json
from agent.errors import INFEASIBLE, OK
from agent.events import read_events
from agent.files import MARKER, default_out
from agent.llm.usage import Usage, usage_lines, usage_of
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
    approve: bool = False,
    calibration: Path | None = None,
) -> int:
    """A new run. Exit 0 proven (or waiting for a person under --approve), 3 infeasible."""
    from agent.graph import start

    one_of(objective, Objective, "--objective")
    if out is None:
        out = default_out(conditions[0].stem or conditions[0].name, time.strftime("%Y%m%d-%H%M%S"))
    options = RunOptions(
        cwd=str(Path.cwd()), inputs=tuple(str(p) for p in conditions), task=str(task) if task else None,
        knowledge=str(knowledge) if knowledge else None, backend=backend, llm_base_url=base_url, objective=objective,  # type: ignore[arg-type]
        strict=strict, approve=approve, calibration=str(calibration) if calibration else None,
    )  # fmt: skip
    _check_named(options)
    with Progress(f"run directory: {out}") as progress:
        _kept(out, lambda: asyncio.run(start(options, out, progress)))
    return _finish(out, json_)


def _check_named(options: RunOptions) -> None:
    """Refuses what can be refused before anything is written."""
    from agent.calibration import load_calibration
    from agent.llm.profiles import make_backend
    from agent.reading import read_conditions, read_files, resolve
    from agent.reading.paper import is_paper, read_paper
    from agent.task import load_task, refuse_paper

    asyncio.run(make_backend(options.backend, options.llm_base_url).close())
    load_task(options)
    if options.calibration:
        load_calibration(options.path(options.calibration))
    if options.knowledge and not options.path(options.knowledge).is_dir():
        raise ToolError(f"--knowledge {options.knowledge}: no such directory")
    files = read_files([Path(p) for p in options.inputs])
    # With an LLM, gaps may still be filled from the text; without one the answer is known now.
    if options.backend != "builtin":
        return
    if is_paper(files):
        read_paper(files)
        return
    conditions = read_conditions(files)
    refuse_paper(files, conditions)
    resolve(conditions)


def resume(run_dir: Path, json_: bool, approve: str | None = None, reason: str = "") -> int:
    """Goes on. `approve` is a person's yes or no to a run that waits; no names the `reason` to the next proposal."""
    from agent.approval import Answer
    from agent.graph import resume as go_on

    load_options(run_dir)
    one_of(approve, Literal["yes", "no"], "--approve")
    if reason and approve != "no":
        raise ToolError("--reason goes with --approve no")
    answer = Answer(verdict=approve, reason=reason) if approve else None  # type: ignore[arg-type]
    with Progress(f"run directory: {run_dir}") as progress:
        _kept(run_dir, lambda: asyncio.run(go_on(run_dir, progress, answer)))
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
    if not (run_dir / "manifest.json").is_file() and (waits := _waiting(run_dir)):
        print_json(waits) if json_ else print(_waiting_text(run_dir, waits))
        return OK
    document = published(run_dir)
    if json_:
        print_json(document)
    else:
        print_summary(run_dir, document["degraded"])
        for line in usage_lines(_usage(run_dir)):
            print(line)
    return INFEASIBLE if document["status"] == "infeasible" else OK


def _usage(run_dir: Path) -> Usage:
    return usage_of(read_events(run_dir / "events.jsonl"))


def _waiting(run_dir: Path) -> dict[str, Any] | None:
    """What a run under --approve waits with; None where it does not wait."""
    from agent.graph import waiting

    shown = asyncio.run(waiting(run_dir)) if load_options(run_dir).approve else None
    if shown is None:
        return None
    review = os.path.normpath(run_dir / shown["review"])
    return {**shown, "status": "awaiting_approval", "review": review, "usage": _usage(run_dir).model_dump(mode="json")}


def _waiting_text(run_dir: Path, shown: dict[str, Any]) -> str:
    scores = "  ".join(f"{k} {v:.2f}" for k, v in shown["scores"].items())
    risks = "".join(f"\nat risk: {r}" for r in shown["at_risk"])
    no = f"\n     meshwright resume {run_dir} --approve no --reason TEXT" if shown["rejectable"] else ""
    return (
        f"waits for approval: {shown['headline']}{risks}\nrubric    {scores}\nreport    {shown['review']}\n"
        f"then meshwright resume {run_dir} --approve yes{no}"
    )


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
        "usage": _usage(run_dir).model_dump(mode="json"),
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
    if _waiting(run_dir):
        return _finish(run_dir, json_)
    document = progress_of(run_dir)
    if json_:
        print_json(document)
    else:
        done = ", ".join(document["finished"]) or "nothing"
        print(f"{run_dir}: unfinished; done: {done}; next: {document['next']}\ngo on with: meshwright resume {run_dir}")
    return OK


def progress_of(run_dir: Path) -> dict[str, Any]:
    events = list(read_events(run_dir / "events.jsonl"))
    finished = [e["node"] for e in events if e.get("event") == "node_finished"]
    after = finished[-1] if finished else None
    upcoming = (
        NODES[0]
        if after is None
        else next((e["to"] for e in reversed(events) if e.get("event") == "node_finished"), None)
    )
    calls = [e for e in events if e.get("event") == "llm_call"]
    return {"status": "unfinished", "finished": finished, "next": upcoming, "llm_calls": len(calls),
            "usage": usage_of(events).model_dump(mode="json")}  # fmt: skip
