"""Any server that speaks OpenAI chat completions with tools, through the `openai` client.

Retries are bounded here and nowhere else; keys come from the environment and go nowhere but into the client.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from agent.llm.base import BackendError, Message, Reply
from agent.llm.modes import from_text, to_text, visible
from agent.llm.profiles import Profile
from tools.spec.base import ToolError

RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
MAX_WAIT_S = 20.0


class OpenAIBackend:
    """One profile, one model. Raises ToolError when its key is not in the environment.

    `timeout_s` bounds a whole reply, `retries` the further attempts after the first.
    """

    def __init__(self, profile: Profile, model: str):
        import openai

        # A server gets the key that its profile names, never another provider's.
        key = os.environ.get(profile.key_env, "") if profile.key_env else ""
        if not key and profile.needs_key:
            raise ToolError(f"backend {profile.name}: no key; set {profile.key_env} in the environment")
        self.name, self.profile, self.model = f"{profile.name}:{model}", profile, model
        self._client = openai.AsyncOpenAI(
            api_key=key or "none", base_url=profile.base_url or None, timeout=profile.timeout_s, max_retries=0
        )

    async def complete(self, body: dict[str, Any]) -> Reply:
        request = {**body, "model": self.model, **self.profile.extra}
        if self.profile.tool_mode != "native":
            request = to_text(request, schema=self.profile.tool_mode == "json_schema")
        reply = await self._retried(request)
        known = {t["function"]["name"] for t in body.get("tools", [])}
        return Reply(from_text(reply.message, known), reply.tokens)

    async def _retried(self, request: dict[str, Any]) -> Reply:
        for attempt in range(self.profile.retries + 1):
            try:
                return await asyncio.wait_for(self._once(request), self.profile.timeout_s)
            except BackendError as e:
                wait = getattr(e, "retry_after", None)
                if wait is None or attempt == self.profile.retries:
                    raise
                await asyncio.sleep(min(MAX_WAIT_S, max(wait, 0.25 * 2**attempt)))
            except TimeoutError:
                raise BackendError(f"{self.name}: no complete reply within {self.profile.timeout_s:g} s") from None
        raise BackendError(f"{self.name}: no reply after {self.profile.retries + 1} attempts")

    async def _once(self, request: dict[str, Any]) -> Reply:
        import openai

        try:
            answer = await self._client.chat.completions.create(**request)
        except openai.APIStatusError as e:
            raise self._status_error(e) from None
        except openai.APITimeoutError:
            raise BackendError(f"{self.name}: no answer within {self.profile.timeout_s:g} s") from None
        except openai.APIConnectionError as e:
            raise _retry_later(f"{self.name}: cannot reach {self._client.base_url}: {e.__cause__ or e}", 0.0) from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as e:
            raise BackendError(f"{self.name}: unreadable reply ({type(e).__name__}: {_one_line(e)})") from None
        return self._reply(answer)

    def _status_error(self, e: Any) -> BackendError:
        text = f"{self.name}: HTTP {e.status_code}: {_one_line(e)}"
        if e.status_code not in RETRIED:
            return BackendError(text)
        try:
            after = float(e.response.headers.get("retry-after", 0))
        except ValueError:
            after = 0.0
        if after > MAX_WAIT_S:
            return BackendError(f"{text} (asked to wait {after:g} s, more than the {MAX_WAIT_S:g} s that a run waits)")
        return _retry_later(text, after)

    def _reply(self, answer: Any) -> Reply:
        """The message of the first choice; a body that is no completion raises BackendError."""
        choices = getattr(answer, "choices", None)
        if not choices:
            raise BackendError(f"{self.name}: reply without choices")
        message = getattr(choices[0], "message", None)
        if message is None:
            raise BackendError(f"{self.name}: choice without a message")
        if getattr(message, "refusal", None):
            raise BackendError(f"{self.name}: refused: {_one_line(message.refusal)}")
        if choices[0].finish_reason == "content_filter":
            raise BackendError(f"{self.name}: stopped by the provider's content filter")
        return Reply(_plain(message), _usage(getattr(answer, "usage", None)))

    async def close(self) -> None:
        await self._client.close()


def _retry_later(text: str, after: float) -> BackendError:
    error = BackendError(text)
    error.retry_after = after  # type: ignore[attr-defined]
    return error


def _plain(message: Any) -> Message:
    calls = [
        {
            "id": c.id or f"call_{i}",
            "type": "function",
            "function": {"name": c.function.name, "arguments": c.function.arguments or "{}"},
        }
        for i, c in enumerate(message.tool_calls or ())
        if getattr(c, "function", None) is not None
    ]
    text = visible(message.content).strip() if isinstance(message.content, str) else None
    out: Message = {"role": "assistant", "content": text}
    return {**out, "tool_calls": calls} if calls else out


def _usage(usage: Any) -> dict[str, int]:
    if usage is None:
        return {}
    details = getattr(usage, "prompt_tokens_details", None)
    counts = {
        "prompt": getattr(usage, "prompt_tokens", None),
        "completion": getattr(usage, "completion_tokens", None),
        "cached": getattr(details, "cached_tokens", None),
    }
    return {k: int(v) for k, v in counts.items() if isinstance(v, int)}


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
