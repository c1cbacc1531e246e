"""Live progress of the nodes on stderr: a spinner in a terminal, plain lines elsewhere. stdout stays clean."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """Listener of the event log."""

    def __init__(self, headline: str):
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("starting") if sys.stderr.isatty() else None
        self._headline = headline

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if self._headline:
            self._console.print(self._headline, markup=False)
            self._headline = ""
            if self._status:
                self._status.start()
        line = self.line(event)
        if line:
            self._console.print(line, markup=False)
        if self._status and event["event"] == "node_started":
            self._status.update(str(event["node"]))

    def line(self, e: dict[str, Any]) -> str | None:
        """What an event says to a person; None for those that only the log keeps."""
        match e["event"]:
            case "node_started" if not self._status:
                return f"  {e['node']} …"
            case "node_finished":
                back = " → back to propose_strategy" if e["to"] == "propose_strategy" and e["node"] in BACK else ""
                return f"✓ {e['node']:<20} {e['seconds']:6.2f} s{back}"
            case "degraded":
                return f"! {e['node']}: the built-in policy answers ({e['why']})"
            case "fact_rejected":
                return f"! rejected {e['path']}: {e['why']}"
        return None


BACK = ("verify_dimensions", "generate_dag", "evaluate")
