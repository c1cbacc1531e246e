"""The one interface of every backend, and the one exception it raises.

complete(body) -> Reply      body: OpenAI chat completions request {model, messages, tools, ...}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from tools.spec.base import MeshwrightError

Message = dict[str, Any]


class BackendError(MeshwrightError):
    """The backend did not answer usefully: HTTP error, time-out, empty or refused reply, no key, no server."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An assistant message and what it cost; `tokens` has prompt, completion, cached where the server says so."""

    message: Message
    tokens: dict[str, int] = field(default_factory=dict)


class Backend(Protocol):
    name: str
    """As reports show it: `builtin`, `openai:gpt-5`."""

    async def complete(self, body: dict[str, Any]) -> Reply:
        """The next assistant message. Raises BackendError; never waits forever."""
        ...

    async def close(self) -> None: ...
