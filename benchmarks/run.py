"""Timings of what a user waits for: medians of whole processes, reported and never asserted.

    python benchmarks/run.py [--runs N]

End to end with the built-in policy, with `neato` and with the WebAssembly renderer; `--help`; the search for a large MoE;
a wide DAG. Machines are shared: quote medians, on this machine, on this day.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONDITIONS = ROOT / "examples" / "conditions" / "llama3_70b_8xh100.md"
COMMAND = [sys.executable, "-m", "agent.cli"]
DEEPSEEK = [
    "search", "--model", "deepseek-v3", "--device", "h200", "--nodes", "128", "--devices-per-node", "8", "--isl", "4096",
    "--osl", "1024", "--concurrency", "4096", "--json",
]  # fmt: skip
SIMULATED = [
    "estimate", "--model", "llama3.1-70b", "--device", "h100", "--tp", "8", "--isl", "2048", "--osl", "512", "--concurrency",
    "128", "--json",
]  # fmt: skip
WIDE = ["dag", "--model", "llama3-8b", "--tp", "1", "--pp", "16", "--detail", "full", "--phase", "prefill"]


def without_graphviz() -> str:
    """PATH without the folders that hold a Graphviz executable, python's own kept."""
    keep = [
        p
        for p in os.environ["PATH"].split(os.pathsep)
        if not shutil.which("neato", path=p) and not shutil.which("dot", path=p)
    ]
    return os.pathsep.join(keep)


def measure(
    arguments: Sequence[str], runs: int, *, path: str | None = None, out: bool = False
) -> tuple[float, float, int]:
    """(median seconds, slowest seconds, exit code) of `runs` processes after one warm-up."""
    env = {**os.environ, **({"PATH": path} if path is not None else {})}
    seconds, code = [], 0
    for i in range(runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            extra = ["--out", str(Path(folder) / "run")] if out else []
            begin = time.perf_counter()
            code = subprocess.run(
                [*COMMAND, *arguments, *extra], env=env, cwd=ROOT, capture_output=True, check=False
            ).returncode
            if i:
                seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), max(seconds), code


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    rows = [
        ("--help", measure(["--help"], runs), "0.3 s"),
        ("search DeepSeek-V3 on 1,024 H200", measure(DEEPSEEK, runs), "2 s in the search"),
        ("estimate, 1,000 requests simulated", measure(SIMULATED, runs), "2 s"),
        ("dag, 16 stages, full detail", measure(WIDE, runs, out=True), "5 s"),
        (
            "plan, WebAssembly renderer",
            measure(["plan", str(CONDITIONS)], runs, path=without_graphviz(), out=True),
            "8 s",
        ),
    ]
    if shutil.which("neato"):
        rows.append(("plan, neato", measure(["plan", str(CONDITIONS)], runs, out=True), "5 s"))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1e6 if platform.system() == "Darwin" else 1e3)
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores, median of {runs} processes\n"
    )
    print(f"{'what':36s} {'median':>9s} {'slowest':>9s}  {'aim':20s} exit")
    for name, (median, slowest, code), aim in rows:
        print(f"{name:36s} {median:8.2f}s {slowest:8.2f}s  {aim:20s} {code}")
    print(f"\npeak memory of the largest process: {peak:.0f} MB (aim: 400 MB)")


if __name__ == "__main__":
    main()
