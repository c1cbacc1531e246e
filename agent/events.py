"""The run's event log: one JSON object per line, appended and flushed; read by `show`, `replay` and `resume`.

It is the only artefact that carries wall-clock times. Keys and other secrets never reach it: only messages and
replies do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Listener = Callable[[dict[str, Any]], None]


class EventLog:
    def __init__(self, path: Path, listener: Listener | None = None):
        self.path, self._listener = path, listener

    def write(self, event: str, **fields: Any) -> None:
        record = {"event": event, "time": round(time.time(), 3), **fields}
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
        if self._listener:
            self._listener(record)


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Events of a log; a torn last line (the process was killed while writing) is skipped."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as f:
        for line in f:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event
