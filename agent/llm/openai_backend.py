"""Any server that speaks OpenAI chat completions with tools, through the `openai` client.

Retries are bounded here and nowhere else; keys come from the environment and go nowhere but into the client. What a
server does not know (stream options, tools, response formats) is left out after its first complaint and stays out.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import re
import time
from typing import Any

from agent.llm.base import BackendError, ContextOverflow, Message, Reply
from agent.llm.modes import from_text, to_text, visible
from agent.llm.profiles import Profile
from agent.llm.stream import Dropped, Stalled, Unreadable, read_body
from tools.spec.base import ToolError

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
MAX_WAIT_S = 20.0
OVERFLOW = re.compile(r"context.{0,20}(length|window|size|limit)|maximum context|too many tokens|prompt is too long")
PERMANENT = {
    401: "the server refuses the key; set the right one in {key}",
    402: "the account has no credit left",
    403: "the key in {key} may not use this model",
    404: "no such model or path; check --backend NAME:LLM and the base_url",
}


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
        self.tool_mode = "native" if profile.tool_mode == "auto" else profile.tool_mode
        self._without: set[str] = set()
        more: dict[str, Any] = {"default_query": profile.query} if profile.query else {}
        if profile.key_header:
            more["default_headers"] = {profile.key_header: key, "Authorization": openai.Omit()}
        self._client = openai.AsyncOpenAI(
            api_key=key or "none", base_url=profile.base_url or None, timeout=profile.timeout_s, max_retries=0, **more
        )

    async def complete(self, body: dict[str, Any]) -> Reply:
        known = {t["function"]["name"] for t in body.get("tools", [])}
        for _ in range(4):
            try:
                answer = await self._retried(self._request(body))
                break
            except _Unsupported as e:
                self._leave_out(e)
        else:
            raise BackendError(f"{self.name}: the server accepts none of the ways to ask it")
        reply = self._reply(answer)
        return Reply(from_text(reply.message, known), reply.tokens, reply.finish, reply.cost, reply.currency)

    def _request(self, body: dict[str, Any]) -> dict[str, Any]:
        request = {**body, "model": self.model, **self.profile.extra}
        if self.profile.stream and "stream" not in self._without:
            request |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.tool_mode != "native":
            request = to_text(request, schema=self.tool_mode == "json_schema")
        return {k: v for k, v in request.items() if k not in self._without}

    def _leave_out(self, error: _Unsupported) -> None:
        """Remembers what the server does not know. Raises the error itself when that was tried before."""
        if (error.what == "tools" and self.profile.tool_mode == "auto" and self.tool_mode == "native") or (
            error.what == "response_format" and self.tool_mode == "json_schema"
        ):
            self.tool_mode = "text"
        elif error.what in ("stream_options", "stream", "parallel_tool_calls") and error.what not in self._without:
            self._without |= {"stream", "stream_options"} if error.what == "stream" else {error.what}
        else:
            raise BackendError(str(error))

    async def _retried(self, request: dict[str, Any]) -> dict[str, Any]:
        for attempt in range(self.profile.retries + 1):
            try:
                return await asyncio.wait_for(self._once(request), self.profile.timeout_s)
            except BackendError as e:
                if e.retry_after is None or attempt == self.profile.retries:
                    raise
                await asyncio.sleep(min(MAX_WAIT_S, max(e.retry_after, 0.25 * 2**attempt)))
            except TimeoutError:
                raise BackendError(f"{self.name}: no complete reply within {self.profile.timeout_s:g} s") from None
        raise BackendError(f"{self.name}: no reply after {self.profile.retries + 1} attempts")

    async def _once(self, request: dict[str, Any]) -> dict[str, Any]:
        import httpx2
        import openai

        first = min(self.profile.first_byte_s, self.profile.timeout_s)
        try:
            # The body is read here and not by the client, which would wait for a stalled stream.
            manager = self._client.chat.completions.with_streaming_response.create(**request)
            async with asyncio.timeout(first):
                response = await manager.__aenter__()
            try:
                answer = await read_body(response.http_response, first_byte_s=first, stall_s=self.profile.stall_s)
            finally:
                await manager.__aexit__(None, None, None)
        except openai.APIStatusError as e:
            raise await self._status_error(e) from None
        except (openai.APITimeoutError, TimeoutError):
            raise BackendError(f"{self.name}: no first byte within {first:g} s") from None
        except openai.APIConnectionError as e:
            text = f"{self.name}: cannot reach {self._client.base_url}: {e.__cause__ or e}"
            raise BackendError(text, permanent=True, retry_after=0.0) from None
        except (Dropped, httpx2.HTTPError) as e:
            raise BackendError(f"{self.name}: the reply broke off ({_one_line(e)})", retry_after=0.0) from None
        except (Stalled, Unreadable) as e:
            raise BackendError(f"{self.name}: {_one_line(e)}") from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as e:
            raise BackendError(f"{self.name}: unreadable reply ({type(e).__name__}: {_one_line(e)})") from None
        return answer

    async def _status_error(self, e: Any) -> BackendError:
        code, said = e.status_code, _one_line(e)
        text = f"{self.name}: HTTP {code}: {said}"
        if OVERFLOW.search(said.lower()) and code in (400, 413, 422):
            numbers = [int(n) for n in re.findall(r"\b(\d{4,8})\b", said)]
            return ContextOverflow(text, min(numbers) if numbers else None)
        if code in (400, 422, 501) and (what := unsupported(said)):
            return _Unsupported(text, what)
        if code in PERMANENT:
            hint = PERMANENT[code].format(key=self.profile.key_env or "the environment (the profile names no key_env)")
            return BackendError(f"{text}; {hint}", permanent=True)
        if code not in RETRIED:
            return BackendError(text)
        after = wait_of(e.response.headers)
        if after > MAX_WAIT_S:
            return BackendError(f"{text} (asked to wait {after:g} s, more than the {MAX_WAIT_S:g} s that a run waits)")
        return BackendError(text, retry_after=after)

    def _reply(self, answer: Any) -> Reply:
        """The message of the first choice; a body that is no completion raises BackendError."""
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if isinstance(answer, dict) and answer.get("error"):
            raise BackendError(f"{self.name}: the server reported an error: {str(answer['error'])[:200]}")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise BackendError(f"{self.name}: the reply has no choices")
        message, finish = choices[0].get("message"), choices[0].get("finish_reason") or ""
        if not isinstance(message, dict):
            raise BackendError(f"{self.name}: the first choice has no message")
        if message.get("refusal"):
            raise BackendError(f"{self.name}: refused: {_one_line(message['refusal'])}")
        if finish == "content_filter":
            raise BackendError(f"{self.name}: stopped by the provider's content filter")
        tokens, price = _usage(answer.get("usage")), self.profile.price
        cost = price.of(tokens) if price is not None and tokens else None
        return Reply(_plain(message), tokens, finish, cost, price.currency if price else "USD")

    async def close(self) -> None:
        await self._client.close()


class _Unsupported(BackendError):
    """The server does not know a field of the request."""

    def __init__(self, text: str, what: str):
        super().__init__(text)
        self.what = what


def unsupported(said: str) -> str | None:
    """Which field of the request a server's complaint is about; None when it is about something else."""
    if not re.search(r"support|unknown|unrecogni|unexpected|not (allowed|permitted)|extra (fields|inputs)|invalid", said,
                     re.IGNORECASE):  # fmt: skip
        return None
    low = said.lower()
    if "stream_options" in low:
        return "stream_options"
    if "parallel_tool_calls" in low:
        return "parallel_tool_calls"
    if "response_format" in low or "json_schema" in low:
        return "response_format"
    if "tool" in low or "function call" in low:
        return "tools"
    return "stream" if "stream" in low else None


def wait_of(headers: Any) -> float:
    """Seconds that a response asks to wait: Retry-After as seconds or date, retry-after-ms; 0 where it says nothing."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        raw = headers.get(name)
        if raw is None:
            continue
        try:
            return max(0.0, float(raw) * scale)
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(raw).timestamp() - time.time())
        except (TypeError, ValueError):
            continue
    return 0.0


def _plain(message: dict[str, Any]) -> Message:
    """Role, visible text and calls; reasoning stays out, as most servers refuse to see it again."""
    calls = []
    for i, c in enumerate(message.get("tool_calls") or ()):
        function = c.get("function") if isinstance(c, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            continue
        arguments = function.get("arguments")
        calls.append(
            {
                "id": str(c.get("id") or f"call_{i}"),
                "type": "function",
                "function": {"name": function["name"], "arguments": "{}" if arguments in (None, "") else arguments},
            }
        )
    content = message.get("content")
    if isinstance(content, list):  # content parts
        content = "".join(p.get("text") or "" for p in content if isinstance(p, dict))
    out: Message = {"role": "assistant", "content": visible(content).strip() if isinstance(content, str) else None}
    return {**out, "tool_calls": calls} if calls else out


def _usage(usage: Any) -> dict[str, int]:
    if not isinstance(usage, dict):
        return {}
    details = usage.get("prompt_tokens_details") or {}
    counts = {
        "prompt": usage.get("prompt_tokens"),
        "completion": usage.get("completion_tokens"),
        # DeepSeek names it its own way.
        "cached": details.get("cached_tokens") if isinstance(details, dict) and details else
        usage.get("prompt_cache_hit_tokens"),
    }  # fmt: skip
    return {k: int(v) for k, v in counts.items() if isinstance(v, int)}


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
