"""Models without native tools: the tools go into the prompt, the call comes back as JSON in the text.

`from_text` is applied to every reply, also in native mode: some servers put the call into the content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from agent.llm.base import Message

HOW = (
    "You have no native tools here. Answer with exactly one JSON object and nothing else: "
    '{"tool": NAME, "arguments": {...}}. The tools, with JSON schemas of their arguments:\n'
)


def to_text(request: dict[str, Any], *, schema: bool) -> dict[str, Any]:
    """The same request without `tools`: schemas in the system prompt, earlier calls and results as plain messages.

    `schema` adds a `response_format` that constrains the reply to {tool, arguments}.
    """
    tools = [t["function"] for t in request.get("tools", [])]
    out = {k: v for k, v in request.items() if k not in ("tools", "tool_choice", "parallel_tool_calls")}
    messages = [_as_text(m) for m in request["messages"]]
    messages[0] = {
        **messages[0],
        "content": messages[0]["content"] + "\n\n" + HOW + json.dumps(tools, ensure_ascii=False),
    }
    out["messages"] = messages
    if schema:
        wanted = {
            "type": "object", "required": ["tool", "arguments"],
            "properties": {"tool": {"enum": [t["name"] for t in tools]}, "arguments": {"type": "object"}},
        }  # fmt: skip
        out["response_format"] = {"type": "json_schema", "json_schema": {"name": "call", "schema": wanted}}
    return out


def _as_text(m: Message) -> Message:
    if m.get("role") == "tool":
        return {"role": "user", "content": f"Result: {m['content']}"}
    if m.get("tool_calls"):
        f = m["tool_calls"][0]["function"]
        return {"role": "assistant", "content": json.dumps({"tool": f["name"], "arguments": _loads(f["arguments"])})}
    return {"role": m["role"], "content": m.get("content") or ""}


def from_text(message: Message, known: Collection[str]) -> Message:
    """`message` with a tool call read from its text, if it has none and the text holds one for a `known` tool."""
    if message.get("tool_calls") or not isinstance(message.get("content"), str):
        return message
    for found in json_objects(visible(message["content"])):
        name, arguments = found.get("tool") or found.get("name"), found.get("arguments", found.get("parameters"))
        if name in known and isinstance(arguments, dict):
            call = {
                "id": "call_text",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            return {"role": "assistant", "content": None, "tool_calls": [call]}
    return message


def visible(text: str) -> str:
    """The reply without its `<think>` block."""
    return re.sub(r"<think>.*?(</think>|\Z)", "", text, flags=re.DOTALL)


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """Every outermost JSON object in prose, fenced or not; trailing commas and full-width quotes are forgiven."""
    start = text.find("{")
    while start >= 0:
        end = _closing(text, start)
        if end is None:
            return
        found = _loads(text[start : end + 1])
        if isinstance(found, dict):
            yield found
            start = text.find("{", end + 1)
        else:
            start = text.find("{", start + 1)


def _closing(text: str, start: int) -> int | None:
    depth, quoted, i = 0, False, start
    while i < len(text):
        c = text[i]
        if quoted:
            i += c == "\\"
            quoted = text[i : i + 1] != '"'
        elif c == '"':
            quoted = True
        elif c in "{}":
            depth += 1 if c == "{" else -1
            if depth == 0:
                return i
        i += 1
    return None


def _loads(text: str) -> Any:
    for attempt in (text, re.sub(r",\s*([}\]])", r"\1", text.translate(str.maketrans("“”", '""')))):
        try:
            return json.loads(attempt)
        except ValueError:
            continue
    return None
