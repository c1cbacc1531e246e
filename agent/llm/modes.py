"""Models without native tools: the tools go into the prompt, the call comes back as JSON in the text.

`from_text` is applied to every reply, also in native mode: some servers put the call into the content.
"""

from __future__ import annotations

import ast
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
        wanted = {"anyOf": [_call_schema(t) for t in tools]}
        out["response_format"] = {"type": "json_schema", "json_schema": {"name": "call", "schema": wanted}}
    return out


def _call_schema(tool: dict[str, Any]) -> dict[str, Any]:
    """{tool, arguments} of one tool, its arguments constrained too."""
    parameters = {k: v for k, v in (tool.get("parameters") or {"type": "object"}).items() if k != "$defs"}
    arguments = inlined(parameters, (tool.get("parameters") or {}).get("$defs", {}))
    return {
        "type": "object", "required": ["tool", "arguments"], "additionalProperties": False,
        "properties": {"tool": {"const": tool["name"]}, "arguments": arguments},
    }  # fmt: skip


def inlined(schema: Any, defs: dict[str, Any]) -> Any:
    """`schema` with every `$ref` replaced by what it names: a schema within another one has no definitions of its own."""
    if isinstance(schema, list):
        return [inlined(x, defs) for x in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return inlined(defs[schema["$ref"].rsplit("/", 1)[-1]], defs)
    return {k: inlined(v, defs) for k, v in schema.items()}


def _as_text(m: Message) -> Message:
    if m.get("role") == "tool":
        return {"role": "user", "content": f"Result: {m['content']}"}
    if m.get("tool_calls"):
        calls = [{"tool": c["function"]["name"], "arguments": _loads(c["function"]["arguments"])}
                 for c in m["tool_calls"]]  # fmt: skip
        return {"role": "assistant", "content": "\n".join(json.dumps(c, ensure_ascii=False) for c in calls)}
    return {"role": m["role"], "content": m.get("content") or ""}


def from_text(message: Message, known: Collection[str]) -> Message:
    """`message` with the tool calls read from its text, if it has none and the text holds some for `known` tools."""
    if message.get("tool_calls") or not isinstance(message.get("content"), str):
        return message
    text = visible(message["content"])
    calls = [c for found in json_objects(text) for c in calls_in(found, known)]
    if not calls:
        # Full-width braces and colons hide an object from the first look.
        calls = [c for found in json_objects(text.translate(FULL_WIDTH)) for c in calls_in(found, known)]
    if not calls:
        return message
    made = [
        {"id": f"call_text_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(dict.fromkeys(calls))
    ]
    return {"role": "assistant", "content": None, "tool_calls": made}


def calls_in(found: dict[str, Any], known: Collection[str]) -> list[tuple[str, str]]:
    """(name, arguments as JSON text) of the calls that one JSON object spells out, in any of the usual shapes."""
    for key in ("tool_calls", "calls"):
        if isinstance(found.get(key), list):
            return [c for x in found[key] if isinstance(x, dict) for c in calls_in(x, known)]
    if isinstance(found.get("function"), dict):
        found = found["function"]
    name = next((found[k] for k in ("tool", "name", "function", "tool_name", "action") if k in found), None)
    arguments = next((found[k] for k in ("arguments", "parameters", "args", "input") if k in found), None)
    if isinstance(arguments, str):
        arguments = _loads(arguments)
    if isinstance(name, str) and name in known and isinstance(arguments, dict):
        return [(name, json.dumps(arguments, ensure_ascii=False))]
    # {"submit_x": {...}}
    only = list(found.items())
    if len(only) == 1 and only[0][0] in known and isinstance(only[0][1], dict):
        return [(only[0][0], json.dumps(only[0][1], ensure_ascii=False))]
    return []


def visible(text: str) -> str:
    """The reply without its `<think>` block, closed or not; some servers send its end alone."""
    text = re.sub(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", "", text, flags=re.DOTALL | re.IGNORECASE)
    return re.sub(r"\A.*</(think|thinking|reasoning)>", "", text, flags=re.DOTALL | re.IGNORECASE)


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """Every outermost JSON object in prose, fenced or not; trailing commas, comments, full-width quotes and Python
    literals are forgiven."""
    start = text.find("{")
    while start >= 0:
        end = _closing(text, start)
        if end is None:
            return  # cut off: what is whole inside may be half of what was meant
        found = _loads(text[start : end + 1])
        if isinstance(found, dict):
            yield found
            start = text.find("{", end + 1)
        else:
            start = text.find("{", start + 1)


MAX_OBJECT_CHARS = 200_000


def _closing(text: str, start: int) -> int | None:
    depth, quoted, i = 0, False, start
    while i < min(len(text), start + MAX_OBJECT_CHARS):
        c = text[i]
        if quoted and c == "\\":
            i += 1  # whatever is escaped
        elif quoted:
            quoted = c != '"'
        elif c == '"':
            quoted = True
        elif c in "{}":
            depth += 1 if c == "{" else -1
            if depth == 0:
                return i
        i += 1
    return None


CURLY = str.maketrans("“”„‟＂", '"' * 5)
FULL_WIDTH = str.maketrans("“”„‟＂｛｝［］：，", '"""""{}[]:,')
COMMAS = re.compile(r",\s*([}\]])")
COMMENTS = re.compile(r"^\s*//.*$|(?<=[,{\[\d\"])\s*//[^\n\"]*$", re.MULTILINE)


def _loads(text: str) -> Any:
    """The value, after the gentlest correction that makes it JSON; None when none does."""
    if not isinstance(text, str):
        return text
    plain = COMMAS.sub(r"\1", COMMENTS.sub("", text))
    for attempt in (text, plain, plain.translate(CURLY), COMMAS.sub(r"\1", text.translate(FULL_WIDTH))):
        try:
            return json.loads(attempt, strict=False)
        except (ValueError, RecursionError):
            continue
    try:
        return ast.literal_eval(plain)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def repaired(text: str) -> Any:
    """Tool arguments as a model wrote them: the value, or None when they cannot be read. For native calls too."""
    return _loads(text)
