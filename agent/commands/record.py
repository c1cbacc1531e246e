"""record: a finished run's conversation as a cassette, to be replayed offline."""

from __future__ import annotations

import os
from pathlib import Path

from agent.commands.common import print_json, ready_dir
from agent.errors import OK
from agent.events import read_events
from agent.files import write_atomic
from agent.llm.cassette import cassette, local_places, secrets
from agent.options import load_options
from tools.spec.base import ToolError


def record(run_dir: Path, out: Path, json_: bool) -> int:
    """Writes the cassette. Raises ToolError when the run holds no conversation, or `out` is a directory."""
    options = load_options(run_dir)
    events = list(read_events(run_dir / "events.jsonl"))
    calls = [e for e in events if e.get("event") == "llm_call"]
    if not calls:
        raise ToolError(f"{run_dir}: its log holds no conversation; run it to the end first")
    if out.is_dir():
        raise ToolError(f"--out {out}: is a directory; name a file")
    ready_dir(out.parent)
    known = secrets(os.environ)
    text = cassette(events, known, local_places(run_dir, options.cwd))
    write_atomic(out, text.encode())
    again = " ".join(options.inputs)
    told = {
        "cassette": str(out),
        "replies": len(calls),
        "bytes": len(text.encode()),
        "scrubbed": text.count("[secret]"),
    }
    if json_:
        print_json(told)
    else:
        print(f"{out}: {told['replies']} replies, {told['bytes']} bytes, {told['scrubbed']} secrets taken out")
        print(f"replay with: meshwright plan {again} --backend replay:{out}")
    return OK
