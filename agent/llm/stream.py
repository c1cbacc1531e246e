"""Server-sent events of a chat completion → one plain completion, as a server without streaming would have sent it.

`assemble` is pure: chunks in, completion out. `read_body` does the waiting, with a limit for the first byte, one for
each silence, and one for the size.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

MAX_REPLY_CHARS = 2_000_000


class Unreadable(Exception):
    """What came is no chat completion."""


class Dropped(Exception):
    """The reply ended before it was complete; asking again may help."""


class Stalled(Exception):
    """No byte came for longer than the limit."""


def assemble(chunks: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The completion that `chunks` spell out. Raises Dropped when the last one says no finish_reason."""
    content: list[str] = []
    refusal: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    finish, usage = None, None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in (chunk.get("choices") or [])[:1]:
            delta = choice.get("delta") or choice.get("message") or {}
            content.append(delta.get("content") or "")
            refusal.append(delta.get("refusal") or "")
            for position, part in enumerate(delta.get("tool_calls") or ()):
                _add(calls, part, position)
            finish = choice.get("finish_reason") or finish
    if finish is None:
        raise Dropped("the stream ended without a finish_reason")
    message: dict[str, Any] = {"role": "assistant", "content": "".join(content) or None}
    if any(refusal):
        message["refusal"] = "".join(refusal)
    if calls:
        message["tool_calls"] = [calls[i] for i in sorted(calls)]
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


def _add(calls: dict[int, dict[str, Any]], part: dict[str, Any], position: int) -> None:
    """One piece of a tool call; servers that leave `index` out send whole calls, told apart by their ids."""
    index = part.get("index")
    if index is None:
        same = [i for i, c in calls.items() if part.get("id") and c["id"] == part["id"]]
        index = same[0] if same else (len(calls) if part.get("id") else position)
    call = calls.setdefault(index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call["id"] = part.get("id") or call["id"]
    function = part.get("function") or {}
    # Some servers repeat the name in every piece.
    if function.get("name") and function["name"] != call["function"]["name"]:
        call["function"]["name"] += function["name"]
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments) if arguments is not None else ""
    call["function"]["arguments"] += text


async def read_body(response: Any, *, first_byte_s: float, stall_s: float) -> Any:
    """The JSON body of a response, or its event stream put together. Raises Unreadable, Dropped or Stalled."""
    pieces = _patient(response.aiter_text(), first_byte_s, stall_s)
    kind = response.headers.get("content-type", "")
    if "event-stream" not in kind:
        text = await _whole(pieces)
        # A stream that calls itself something else is still one.
        if not text.lstrip().startswith("data:"):
            return _json(text)
        return assemble(_events(text.splitlines()))
    return assemble(_events((await _stream_text(pieces)).splitlines()))


async def _patient(pieces: AsyncIterator[str], first_byte_s: float, stall_s: float) -> AsyncIterator[str]:
    limit, what = first_byte_s, "first byte"
    iterator = pieces.__aiter__()
    while True:
        try:
            piece = await asyncio.wait_for(iterator.__anext__(), limit)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Stalled(f"no {what} within {limit:g} s") from None
        yield piece
        limit, what = stall_s, "further byte"


async def _whole(pieces: AsyncIterator[str]) -> str:
    found, size = [], 0
    async for piece in pieces:
        found.append(piece)
        size += len(piece)
        if size > MAX_REPLY_CHARS:
            raise Unreadable(f"a reply of more than {MAX_REPLY_CHARS} characters")
    return "".join(found)


async def _stream_text(pieces: AsyncIterator[str]) -> str:
    """The text of an event stream up to `[DONE]`; some servers leave the connection open after it."""
    found, size = [], 0
    async for piece in pieces:
        found.append(piece)
        size += len(piece)
        if size > MAX_REPLY_CHARS:
            raise Unreadable(f"a stream of more than {MAX_REPLY_CHARS} characters")
        if "[DONE]" in "".join(found[-2:]):
            break
    return "".join(found)


def _events(lines: Iterable[str]) -> list[dict[str, Any]]:
    out = []
    for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or not data or data == "[DONE]":
            continue
        chunk = _json(data)
        if not isinstance(chunk, dict):
            raise Unreadable(f"an event that is no object: {data[:80]}")
        if chunk.get("error"):
            raise Dropped(f"the server reported an error within the stream: {str(chunk['error'])[:200]}")
        out.append(chunk)
    return out


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Unreadable(f"not JSON: {' '.join(text.split())[:80] or 'an empty body'}") from None
