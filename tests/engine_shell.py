"""Launch scripts run for real, with stand-ins for the engines that record how they were called."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools.engines.export import LaunchFile, export
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

BASH = shutil.which("bash") or "bash"
KEEP = "VISIBLE PARTITION NIXL HCCL IFNAME NPU SGLANG"
"""Parts of the names of variables that a stand-in writes down."""
STAND_IN = """
import json, os, sys, time

kept = {k: v for k, v in os.environ.items() if any(w in k for w in os.environ["KEEP"].split())}
with open(os.environ["CALLS"], "a") as f:
    f.write(json.dumps({"argv": sys.argv[1:], "env": kept}) + chr(10))
# A server that ends takes its neighbours along, so every stand-in waits until all of the node have been called.
end = time.time() + 30
while time.time() < end and sum(1 for _ in open(os.environ["CALLS"])) < int(os.environ["EXPECT"]):
    time.sleep(0.01)
"""


def launch(engine: str, model: ModelSpec, degrees: dict, nodes: int, per_node: int, **more) -> dict[str, LaunchFile]:
    more = {"isl": 512, "osl": 128, "memory_total_bytes": 80e9, **more}
    files, findings = export(
        engine, model, Strategy(engine=engine, **degrees), num_nodes=nodes, devices_per_node=per_node, **more
    )
    assert files, [f.message for f in findings]
    return {Path(f.name).name: f for f in files}


def run(file: LaunchFile, where: Path, *words: str, **env: str) -> list[dict]:
    """Run the script, `words` after its name, with stand-ins that record how they were called: [{"argv": [...], "env": {...}}]."""
    log = where / "calls.jsonl"
    log.unlink(missing_ok=True)
    tools = where / "bin"
    tools.mkdir(exist_ok=True)
    stand_in = tools / "stand_in.py"
    stand_in.write_text(STAND_IN, encoding="utf-8")
    for name in ("vllm", "python3", "trtllm-serve", "mpirun", "torchrun", "vllm-router"):
        # "python3 -" is the scripts' own arithmetic on a result, and there is no result here.
        (tools / name).write_text(
            f'#!/bin/sh\n[ "$1" = - ] && exit 0\nexec "{sys.executable}" "{stand_in}" {name} "$@"\n'
        )
        (tools / name).chmod(0o755)
    (tools / "nginx").write_text('#!/bin/sh\ncat "$2"\n')
    (tools / "nginx").chmod(0o755)
    path = where / "script.sh"
    path.write_text(file.text, encoding="utf-8")
    slots = (re.findall(r"^SLOTS=(\d+)", file.text, re.MULTILINE) or ["1"])[0]
    done = subprocess.run(
        [BASH, str(path), *words], cwd=where, capture_output=True, text=True, timeout=60,
        env={"PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(log), "EXPECT": slots, "KEEP": KEEP, **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if not log.exists():
        return [{"stdout": done.stdout}]
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def flags(call: dict) -> dict[str, str]:
    argv = call["argv"]
    return {
        a: (argv[i + 1] if i + 1 < len(argv) and not argv[i + 1].startswith("--") else "")
        for i, a in enumerate(argv) if a.startswith("--")
    }  # fmt: skip
