"""A real model server: a tiny random-weight model behind llama.cpp's OpenAI-compatible HTTP server.

Opt-in, as it needs two packages beyond the extra dev:
    pip install xllamacpp gguf && MESHWRIGHT_REAL_SERVER=1 pytest tests/test_real_server.py
The model knows nothing: what is shown is that a whole run ends well with whatever such a server says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.events import read_events
from tests.test_agent_run import CONDITIONS, core, meshwright

PYTHON = os.environ.get("MESHWRIGHT_REAL_SERVER_PYTHON", sys.executable)
"""Interpreter that has xllamacpp and gguf, where it is another one."""

PATIENCE = int(os.environ.get("MESHWRIGHT_REAL_SERVER_SECONDS", "60"))
"""For one reply; prompts of some thousand tokens take a busy machine's single core a while."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("MESHWRIGHT_REAL_SERVER"), reason="opt-in: set MESHWRIGHT_REAL_SERVER=1"),
]

SERVE = """
import sys, time
from pathlib import Path
from tests.tiny_gguf import write_tiny_gguf
import xllamacpp
path = Path(sys.argv[1]) / "tiny.gguf"
write_tiny_gguf(path)
p = xllamacpp.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.n_predict, p.port = str(path), 32768, 1, 400, int(sys.argv[2])
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(p)
print("LISTENING", server.listening_address, flush=True)
time.sleep(3600)
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import socket

    probe = subprocess.run([PYTHON, "-c", "import xllamacpp, gguf"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("xllamacpp and gguf are not installed")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [PYTHON, "-c", SERVE, str(tmp_path_factory.mktemp("gguf")), str(port)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            try:
                urllib.request.urlopen(f"{address}/v1/models", timeout=2).read()
                break
            except OSError:
                time.sleep(0.3)
        else:
            pytest.fail(f"the server did not start (exit {process.poll()})")
        yield f"{address}/v1"
        process.kill()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    (folder / "small.md").write_text(CONDITIONS)
    assert meshwright("plan", "small.md", "--out", "builtin", cwd=folder).returncode == 0
    return folder


@pytest.mark.parametrize("mode", ["text", "json_schema", "auto"])
def test_a_whole_run_ends_with_the_builtin_plan_and_says_what_the_model_could_not(here, url, mode):
    profile = (
        f'[backends.tiny]\nbase_url = "{url}"\nkey_required = false\nmodel = "m"\ntool_mode = "{mode}"\n'
        f"timeout_s = {PATIENCE}\nstall_s = {PATIENCE}\nfirst_byte_s = {PATIENCE}\nretries = 0\n"
        "extra = { max_tokens = 150, seed = 1 }\n"
    )
    (here / "meshwright.toml").write_text(profile)
    done = meshwright(
        "plan", "small.md", "--out", f"real_{mode}", "--backend", "tiny", "--json", cwd=here, timeout=20 * PATIENCE
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["status"] == "proven"
    assert core(here / f"real_{mode}") == core(here / "builtin")
    events = list(read_events(here / f"real_{mode}" / "events.jsonl"))
    replies = [e for e in events if e["event"] == "llm_call" and e["backend"] == "tiny:m"]
    assert replies, "the server was really asked and really answered"
    if mode == "json_schema":
        assert any(e["reply"].get("tool_calls") for e in replies), "constrained decoding gives calls that parse"
    told = {e["node"] for e in events if e["event"] == "degraded"}
    assert set(document["degraded"]) == told
    seconds = sum(e["seconds"] for e in replies)
    print(f"\n{mode}: {len(replies)} replies in {seconds:.1f} s, degraded {sorted(told)}")
