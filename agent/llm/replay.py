"""`replay:FILE`: answers come from a recorded event log instead of a server.

A reply is found by the digest of its request; a request that was never made is answered with the next unused reply of
the same step, so that a log stays useful after a prompt was reworded.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from agent.events import read_events
from agent.llm.base import BackendError, Reply
from tools.spec.base import ToolError


def request_digest(body: dict[str, Any]) -> str:
    """Identity of a request: messages and tools, not the model's name or sampling settings."""
    asked = {k: body.get(k) for k in ("messages", "tools")}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def step(body: dict[str, Any]) -> str:
    """The step that a request belongs to: the name of its submit tool."""
    names = (t["function"]["name"] for t in body.get("tools", []))
    return next((n for n in names if n.startswith("submit_")), "")


def recorded_replies(path: Path) -> list[dict[str, Any]]:
    """The `llm_call` events of a log that hold a reply; a torn last line is skipped.

    Where the backend failed and the built-in policy answered for it, the policy's replies are left out: a replay fails
    at the same steps and says so.
    """
    found = [e for e in read_events(path) if e.get("event") in ("llm_call", "degraded")]
    failed = any(e["event"] == "degraded" for e in found)
    calls = [e for e in found if e["event"] == "llm_call" and isinstance(e.get("reply"), dict)]
    return [e for e in calls if not (failed and e.get("backend") == "builtin")]


class Replay:
    def __init__(self, path: Path):
        if not path.is_file():
            raise ToolError(f"replay: no such file: {path}; write --backend replay:RUN_DIR/events.jsonl")
        self.name = f"replay:{path.name}"
        try:
            self._events = recorded_replies(path)
        except (OSError, UnicodeDecodeError) as e:
            raise ToolError(f"replay: {path} is not a readable event log: {e}") from None
        self._used: set[int] = set()

    async def complete(self, body: dict[str, Any]) -> Reply:
        digest, kind = request_digest(body), step(body)
        exact = [i for i, e in enumerate(self._events) if e.get("request") == digest and i not in self._used]
        loose = [i for i, e in enumerate(self._events) if e.get("step") == kind and i not in self._used]
        for i in exact or loose:
            self._used.add(i)
            e = self._events[i]
            return Reply(
                e["reply"], e.get("tokens") or {}, e.get("finish") or "", e.get("cost"), e.get("currency") or "USD"
            )
        raise BackendError(f"{self.name}: the log holds no further reply for {kind or 'this request'}")

    async def close(self) -> None:
        return None
