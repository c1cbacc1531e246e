"""An OpenAI-compatible server around the built-in policy, over a real socket; it can be told to misbehave.

    with serving(behaviour) as (url, requests): ...

`behaviour(n, body)` gets the number of the request and its body, and returns a Starlette Response, an assistant
message,
or None for the policy's own answer.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agent.llm.builtin import policy

Behaviour = Callable[[int, dict[str, Any]], Any]


def completion(message: dict[str, Any], finish: str = "stop") -> JSONResponse:
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if message.get("tool_calls") else finish}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return JSONResponse(
        {"id": "c", "object": "chat.completion", "created": 0, "model": "fake", "choices": [choice], "usage": usage}
    )


def app(behaviour: Behaviour | None, seen: list[dict[str, Any]], keys: list[str]) -> Starlette:
    async def chat(request: Request) -> Response:
        body = await request.json()
        seen.append(body)
        keys.append(request.headers.get("authorization", ""))
        answer = behaviour(len(seen), body) if behaviour else None
        if hasattr(answer, "__await__"):
            answer = await answer
        return answer if isinstance(answer, Response) else completion(policy(body) if answer is None else answer)

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
