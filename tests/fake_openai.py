"""An OpenAI-compatible server around the built-in policy, over a real socket; it can be told to misbehave.

    with serving(behaviour) as (url, requests): ...

`behaviour(n, body)` gets the number of the request and its body, and returns a Starlette Response, an assistant
message,
or None for the policy's own answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from agent.llm.builtin import policy

Behaviour = Callable[[int, dict[str, Any]], Any]


def completion(message: dict[str, Any], finish: str = "stop") -> JSONResponse:
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if message.get("tool_calls") else finish}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return JSONResponse(
        {"id": "c", "object": "chat.completion", "created": 0, "model": "fake", "choices": [choice], "usage": usage}
    )


def chunks_of(
    message: dict[str, Any], finish: str | None = None, usage: bool = True, size: int = 7
) -> list[dict[str, Any]]:
    """The message as a server streams it: content and arguments in pieces of `size` characters."""
    calls = message.get("tool_calls") or []
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    text = message.get("content") or ""
    deltas += [{"content": text[i : i + size]} for i in range(0, len(text), size)]
    for n, call in enumerate(calls):
        arguments = call["function"]["arguments"]
        head = {"index": n, "id": call["id"], "type": "function", "function": {"name": call["function"]["name"]}}
        deltas.append({"tool_calls": [head]})
        deltas += [
            {"tool_calls": [{"index": n, "function": {"arguments": arguments[i : i + size]}}]}
            for i in range(0, len(arguments), size)
        ]
    base = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "fake"}
    out = [{**base, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    end = finish or ("tool_calls" if calls else "stop")
    out.append({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": end}]})
    if usage:
        counts = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
        out.append({**base, "choices": [], "usage": counts})
    return out


def sse(
    chunks: Iterable[Any], *, done: bool = True, pause: float = 0.0, after: int = -1, drop: bool = False
) -> Response:
    """An event stream of `chunks` (texts go out as they are). `pause` seconds of silence after chunk number `after`;
    `drop`: the connection breaks at the end."""

    async def body() -> AsyncIterator[str]:
        for i, chunk in enumerate(chunks):
            yield chunk if isinstance(chunk, str) else f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
            await asyncio.sleep(pause if i == after else 0)
        if drop:
            raise ConnectionResetError("dropped on purpose")
        if done:
            yield "data: [DONE]\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


def answered(message: dict[str, Any], body: dict[str, Any]) -> Response:
    """A well-behaved server's answer: streamed where the request asks for it."""
    return sse(chunks_of(message)) if body.get("stream") else completion(message)


def app(behaviour: Behaviour | None, seen: list[dict[str, Any]], keys: list[str]) -> Starlette:
    async def chat(request: Request) -> Response:
        body = await request.json()
        seen.append(body)
        keys.append(request.headers.get("authorization", ""))
        answer = behaviour(len(seen), body) if behaviour else None
        if hasattr(answer, "__await__"):
            answer = await answer
        return answer if isinstance(answer, Response) else answered(policy(body) if answer is None else answer, body)

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


@contextlib.contextmanager
def serving(
    behaviour: Behaviour | None = None, keys: list[str] | None = None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    seen: list[dict[str, Any]] = []
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    config = uvicorn.Config(
        app(behaviour, seen, [] if keys is None else keys),
        host="127.0.0.1",
        port=port,
        log_level="error",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}/v1", seen
    finally:
        server.should_exit = True
        thread.join(timeout=5)
