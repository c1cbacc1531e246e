"""`@tool`: a typed, documented function becomes a JSON schema for the LLM, a page of docs, and a validated call.

A tool's docstring is its description, its annotations are its schema. Parameters whose type the caller declares
*hidden* (the model, the cluster, the run's files) never appear in the schema: `call` gets them from a supplier. Two
failures are kept apart: what the caller can fix is a `ToolError`; everything else is our bug and propagates.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from tools.spec.base import ToolError

Supplier = Mapping[type, Any]
"""Values for hidden parameters, by type."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One registered function; `parameters` are name → (type, default or ...)."""

    name: str
    function: Callable[..., Any]
    description: str
    parameters: Mapping[str, tuple[Any, Any]]

    def visible(self) -> dict[str, tuple[Any, Any]]:
        return {k: v for k, v in self.parameters.items() if not any(m in HIDDEN for m in _members(v[0]))}

    def arguments(self) -> type[BaseModel]:
        """The pydantic model of what a caller may pass; unknown keys are errors."""
        fields: dict[str, Any] = self.visible()
        return create_model(f"{self.name}_arguments", __config__=ConfigDict(extra="forbid"), **fields)

    def schema(self) -> dict[str, Any]:
        """The tool as OpenAI chat completions takes it."""
        return function_schema(self.name, self.description, self.arguments())


REGISTRY: dict[str, Tool] = {}
HIDDEN: set[type] = set()
"""Types that no caller passes: they are filled from the run."""


def hide(*kinds: type) -> None:
    """Declares parameter types that are filled from the run's state and never shown to a caller."""
    HIDDEN.update(kinds)


def all_tools() -> tuple[Tool, ...]:
    return tuple(REGISTRY[n] for n in sorted(REGISTRY))


def tool(function: Callable[..., Any]) -> Callable[..., Any]:
    """Registers `function` under its own name. It must be annotated throughout and have a docstring."""
    name = function.__name__
    if not inspect.getdoc(function):
        raise TypeError(f"tool {name} has no docstring: it is what the LLM reads")
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = {}
    for key, p in inspect.signature(function).parameters.items():
        if key not in hints:
            raise TypeError(f"tool {name}: parameter {key} has no annotation")
        parameters[key] = (hints[key], ... if p.default is inspect.Parameter.empty else p.default)
    if name in REGISTRY and REGISTRY[name].function.__module__ != function.__module__:
        raise TypeError(
            f"tool {name} is registered twice: {REGISTRY[name].function.__module__} and {function.__module__}"
        )
    REGISTRY[name] = Tool(name, function, inspect.cleandoc(function.__doc__ or ""), parameters)
    return function


def function_schema(name: str, description: str, model: type[BaseModel]) -> dict[str, Any]:
    """One entry of `tools` in an OpenAI chat completions request."""
    parameters = model.model_json_schema()
    parameters.pop("title", None)
    parameters.setdefault("properties", {})
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def call(name: str, arguments: Mapping[str, Any], supply: Supplier, *, allowed: frozenset[str] | None = None) -> Any:
    """Validates `arguments`, fills the hidden parameters from `supply`, and calls the tool.

    Raises ToolError for an unknown or forbidden name, wrong arguments, and whatever the tool itself says the caller
    can fix.
    """
    names = sorted(REGISTRY if allowed is None else allowed & REGISTRY.keys())
    if name not in names:
        raise ToolError(f"there is no tool {name!r} here; the tools of this step are {', '.join(names) or 'none'}")
    entry = REGISTRY[name]
    filled = validate(entry.arguments(), arguments, name)
    values = {k: getattr(filled, k) for k in entry.visible()}
    for key, (hint, default) in entry.parameters.items():
        if key not in values:
            values[key] = next((supply[t] for t in _members(hint) if t in supply), default)
            if values[key] is ...:
                raise ToolError(f"{name} needs the run's {key}, which this step does not have yet")
    return entry.function(**values)


def validate(model: type[BaseModel], arguments: Mapping[str, Any], name: str) -> BaseModel:
    """`arguments` as `model`; a ValidationError becomes one line: the field, what came, and what is wanted."""
    if not isinstance(arguments, Mapping):
        raise ToolError(f"{name}: arguments must be a JSON object, got {type(arguments).__name__}")
    try:
        return model.model_validate(dict(arguments))
    except ValidationError as e:
        parts = [
            f"{'.'.join(str(x) for x in err['loc']) or 'arguments'}: {err['msg']} (got {_short(err['input'])})"
            for err in e.errors()[:4]
        ]
        raise ToolError(f"{name}: " + "; ".join(parts)) from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _members(hint: Any) -> tuple[Any, ...]:
    """The type itself, or the members of a union; generic aliases count as their origin."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(m for arg in typing.get_args(hint) for m in _members(arg))
    return (hint,)


def tools_markdown() -> str:
    """The Markdown page of all registered tools: description, parameters with types, defaults and meanings."""
    lines = ["# Tools", "", "What an LLM (or any other caller) may call. Generated from the functions themselves.", ""]
    for entry in all_tools():
        schema = entry.schema()["function"]
        lines += [f"## {entry.name}", "", schema["description"], ""]
        required = set(schema["parameters"].get("required", ()))
        rows = [
            f"| {key} | {_type_words(prop)} | {'required' if key in required else _code(prop.get('default'))} |"
            for key, prop in schema["parameters"]["properties"].items()
        ]
        lines += ["| parameter | type | default |", "|---|---|---|", *rows, ""] if rows else ["No parameters.", ""]
    return "\n".join(lines)


def _type_words(prop: Mapping[str, Any]) -> str:
    if "$ref" in prop:
        return prop["$ref"].rsplit("/", 1)[-1]
    if "anyOf" in prop:
        return " or ".join(_type_words(p) for p in prop["anyOf"])
    if "enum" in prop:
        return " or ".join(f"`{v}`" for v in prop["enum"])
    if prop.get("type") == "array":
        return f"list of {_type_words(prop.get('items', {}))}"
    return str(prop.get("type", "any"))


def _code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"
