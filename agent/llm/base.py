"""The one interface of every backend, and the exceptions it raises.

complete(body) -> Reply      body: OpenAI chat completions request {model, messages, tools, ...}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from tools.spec.base import MeshwrightError

Message = dict[str, Any]


class BackendError(MeshwrightError):
    """The backend did not answer usefully: HTTP error, time-out, empty or refused reply, no key, no server.

    `permanent`: asking again, also in a later step, cannot help (wrong key, unknown model, nobody listens).
    `retry_after`: seconds to wait before another attempt; None where another attempt is useless.
    """

    def __init__(self, text: str, *, permanent: bool = False, retry_after: float | None = None):
        super().__init__(text)
        self.permanent, self.retry_after = permanent, retry_after


class ContextOverflow(BackendError):
    """The request is longer than the model's context; `limit` in tokens where the server tells it."""

    def __init__(self, text: str, limit: int | None = None):
        super().__init__(text)
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Reply:
    """An assistant message and what it cost; `tokens` has prompt, completion, cached where the server says so.

    `finish` is the server's reason for stopping; `cost` in `currency` is None where the profile names no price.
    """

    message: Message
    tokens: dict[str, int] = field(default_factory=dict)
    finish: str = ""
    cost: float | None = None
    currency: str = "USD"


class Backend(Protocol):
    name: str
    """As reports show it: `builtin`, `openai:gpt-5`."""

    async def complete(self, body: dict[str, Any]) -> Reply:
        """The next assistant message. Raises BackendError; never waits forever."""
        ...

    async def close(self) -> None: ...
