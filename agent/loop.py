"""The small loop of every node: ask, run the tools that were asked for, until a submission validates.

    outcome = await converse(step, ctx)      Outcome(value, by, degraded)

Every failure has a bounded answer. The LLM gets `MAX_TURNS` replies and `MAX_BAD` mistakes; after that, or when the
backend
gives up, the built-in policy answers for this node through the same loop, and the node is listed as degraded.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from agent.events import EventLog
from agent.llm.base import Backend, BackendError, ContextOverflow, Message, Reply
from agent.llm.builtin import Builtin
from agent.llm.modes import repaired
from agent.llm.replay import request_digest
from agent.tokens import count_tokens
from tools.registry import REGISTRY, Supplier, call, function_schema, validate
from tools.spec.base import MeshwrightError, ToolError

MAX_TURNS = 16
MAX_BAD = 4
MAX_PARALLEL = 8
MAX_SHRINKS = 4
MIN_RESULT_TOKENS = 50
MAX_TIMEOUTS = 2
"""Steps that time out before the backend is not asked any more in this run."""
MAX_RESULT_CHARS = 24_000
NODE_SECONDS = 600.0


class StrictFailure(MeshwrightError):
    """The backend failed at a node and --strict forbids the built-in policy to answer for it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node's conversation.

    `accept` turns a valid submission into the node's result; it raises ToolError to refuse it.
    """

    node: str
    system: str
    user: str
    tools: frozenset[str]
    submit: str
    description: str
    arguments: type[BaseModel]
    accept: Callable[[Any], Any]
    supply: Supplier = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    value: Any
    by: str
    degraded: str | None = None
    """Why the backend did not answer for this node; None when it did."""


@dataclass(slots=True)
class Conversation:
    """What all nodes share: the backend, the log, replies recorded before a crash (by request digest), and
    strictness.
    """

    backend: Backend
    log: EventLog
    strict: bool = False
    recorded: dict[str, Reply] = field(default_factory=dict)
    context_tokens: int = 64_000
    node_seconds: float = NODE_SECONDS
    dead: str = ""
    """Why the backend is not asked any more in this run: a wrong key, no such model, nobody listens, twice no answer."""
    timeouts: int = 0


async def converse(step: Step, with_: Conversation) -> Outcome:
    """Result of `step`, from the backend or, when that fails, from the built-in policy.

    Raises StrictFailure under --strict.
    """
    backend = with_.backend
    if isinstance(backend, Builtin):
        return Outcome(await _loop(step, backend, with_), backend.name)
    try:
        if with_.dead:
            raise BackendError(with_.dead)
        async with asyncio.timeout(with_.node_seconds):
            return Outcome(await _loop(step, backend, with_), backend.name)
    except (BackendError, TimeoutError) as e:
        why = str(e) or f"no result within {with_.node_seconds:g} s"
        with_.timeouts += isinstance(e, TimeoutError) or "within" in why
        if getattr(e, "permanent", False) or with_.timeouts >= MAX_TIMEOUTS:
            with_.dead = why
    with_.log.write("degraded", node=step.node, why=why)
    if with_.strict:
        raise StrictFailure(
            f"{step.node}: {why}; without --strict the built-in policy would have answered for this step"
        )
    builtin = Builtin()
    return Outcome(await _loop(step, builtin, with_), builtin.name, degraded=why)


async def _loop(step: Step, backend: Backend, with_: Conversation) -> Any:
    messages: list[Message] = [{"role": "system", "content": step.system}, {"role": "user", "content": step.user}]
    schemas = _schemas(step)
    bad = 0
    seen: set[str] = set()
    for turn in range(MAX_TURNS):
        reply = await _ask_fitting(step, backend, with_, messages, schemas, turn)
        message, calls = _checked(reply)
        messages.append(message)
        if not calls:
            bad += 1
            messages.append({"role": "user", "content": _nudge(step, reply)})
        for i, c in enumerate(calls):
            if i >= MAX_PARALLEL:
                content = _error(f"more than {MAX_PARALLEL} calls in one reply; this one was not made")
            else:
                done, value, content = _answer(step, c, seen)
                if done:
                    return value
            bad += content.startswith('{"error"')
            messages.append({"role": "tool", "tool_call_id": c["id"], "content": content})
        if bad >= MAX_BAD:
            raise BackendError(f"{backend.name}: {bad} mistakes in {turn + 1} replies; last: {_last(messages)}")
    raise BackendError(f"{backend.name}: no valid {step.submit} within {MAX_TURNS} replies")


def _checked(reply: Reply) -> tuple[Message, list[dict[str, Any]]]:
    """The message as it goes back into the conversation: every call with its own id, and with arguments that are JSON
    text (servers refuse a history with broken ones)."""
    calls: list[dict[str, Any]] = []
    for i, c in enumerate(reply.message.get("tool_calls") or []):
        raw = c["function"]["arguments"]
        value = repaired(raw) if isinstance(raw, str) else raw
        text = json.dumps(value if isinstance(value, dict) else {UNREADABLE: str(raw)[:2000]}, ensure_ascii=False)
        ids = {x["id"] for x in calls}
        name = c["id"] if c["id"] not in ids else f"{c['id']}_{i}"
        calls.append({**c, "id": name, "function": {**c["function"], "arguments": text}})
    return ({**reply.message, "tool_calls": calls} if calls else reply.message), calls


UNREADABLE = "unreadable"
"""Key under which arguments go back to the model that are no JSON object."""


def _nudge(step: Step, reply: Reply) -> str:
    if reply.finish == "length":
        return f"Your reply was cut off at the server's token limit. Think less and call {step.submit} at once."
    return f"Nothing was called. Call a tool, or {step.submit} to hand in the result."


async def _ask_fitting(
    step: Step, backend: Backend, with_: Conversation, messages: list[Message], schemas: list[dict[str, Any]], turn: int
) -> Reply:
    """One reply; when the server says that the context is full, again with less of it."""
    for _ in range(MAX_SHRINKS):
        body = {"messages": _fit(messages, with_, backend), "tools": schemas}
        try:
            return await _ask(step, backend, with_, body, turn)
        except ContextOverflow as e:
            sent = sum(count_tokens(str(m.get("content") or "")) for m in body["messages"])
            told = e.limit if e.limit and e.limit < sent else sent
            with_.context_tokens = int(min(with_.context_tokens, told) * 0.7)
            with_.log.write("context_shrunk", node=step.node, to=with_.context_tokens, why=str(e)[:300])
    raise BackendError(f"{backend.name}: the context is full even with {with_.context_tokens} tokens")


def _schemas(step: Step) -> list[dict[str, Any]]:
    offered = [REGISTRY[n].schema() for n in sorted(step.tools)]
    return [*offered, function_schema(step.submit, step.description, step.arguments)]


async def _ask(step: Step, backend: Backend, with_: Conversation, body: dict[str, Any], turn: int) -> Reply:
    """One reply, from the record when this very request was answered before a crash; logged either way."""
    digest = request_digest(body)
    reply = with_.recorded.get(digest) if not isinstance(backend, Builtin) else None
    again, began = reply is not None, time.monotonic()
    if reply is None:
        reply = await backend.complete(body)
    new = body["messages"] if turn == 0 else body["messages"][_last_assistant(body["messages"]) + 1 :]
    with_.log.write(
        "llm_call", node=step.node, step=step.submit, backend=backend.name, turn=turn, request=digest,
        messages=new, reply=reply.message, tokens=reply.tokens, replayed=again, cost=reply.cost,
        currency=reply.currency, finish=reply.finish, seconds=round(time.monotonic() - began, 3),
    )  # fmt: skip
    return reply


def _last_assistant(messages: list[Message]) -> int:
    return max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=-1)


def _answer(step: Step, call_: Mapping[str, Any], seen: set[str]) -> tuple[bool, Any, str]:
    """(is it an accepted submission, its value, what the caller is told otherwise)."""
    name, arguments = call_["function"]["name"], json.loads(call_["function"]["arguments"])
    if set(arguments) == {UNREADABLE}:
        return False, None, _error(f"the arguments of {name} are no JSON object; send one, whole and without comments")
    try:
        if name == step.submit:
            return True, step.accept(validate(step.arguments, arguments, name)), ""
        same = f"{name} {json.dumps(arguments, sort_keys=True)}"
        if same in seen:
            return (
                False,
                None,
                _error(
                    f"{name} was already called with these arguments; its result is above. Use it, or {step.submit}"
                ),
            )
        seen.add(same)
        return False, None, _result(call(name, arguments, step.supply, allowed=step.tools))
    except ToolError as e:
        return False, None, _error(str(e))


def _result(value: Any) -> str:
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(plain, ensure_ascii=False, default=str)
    if len(text) > MAX_RESULT_CHARS:
        return json.dumps(
            {"truncated": True, "characters": len(text), "head": text[:MAX_RESULT_CHARS]}, ensure_ascii=False
        )
    return text


def _error(text: str) -> str:
    return json.dumps({"error": text}, ensure_ascii=False)


def _last(messages: list[Message]) -> str:
    return " ".join(str(messages[-1].get("content")).split())[:200]


def _fit(messages: list[Message], with_: Conversation, backend: Backend) -> list[Message]:
    """Messages within the context budget: the oldest tool results are dropped first, the newest is shortened last, the
    instructions stay.
    """
    if isinstance(backend, Builtin):
        return messages
    sizes = [count_tokens(str(m.get("content") or "")) for m in messages]
    out = list(messages)
    for i, m in enumerate(messages[:-1]):
        if sum(sizes) <= with_.context_tokens:
            break
        if m["role"] == "tool":
            out[i] = {**m, "content": _error("dropped to keep the context small; call the tool again if you need it")}
            sizes[i] = 30
    over = sum(sizes) - with_.context_tokens
    if over > 0 and messages[-1]["role"] == "tool" and sizes[-1] - over > MIN_RESULT_TOKENS:
        text = str(messages[-1]["content"])
        keep = int(len(text) * (sizes[-1] - over) / sizes[-1] * 0.8)
        shown = {"truncated": True, "characters": len(text), "head": text[:keep]}
        out[-1] = {**messages[-1], "content": json.dumps(shown, ensure_ascii=False)}
    elif over > 0:
        raise BackendError(
            f"{backend.name}: this step needs {sum(sizes)} tokens, the context holds {with_.context_tokens}"
        )
    return out
