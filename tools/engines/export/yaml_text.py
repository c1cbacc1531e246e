"""Plain data as YAML text, for files that people read: manifests and engine configurations."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

PLAIN = re.compile(r"[A-Za-z/_][A-Za-z0-9_./@-]*")
UNSAFE = re.compile("[^\x20-\x7e\xa1-\u1fff\u2070-\ud7ff\ue000-\ufdcf\ufdf0-\ufefe\uff00-\ufffd]")
WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n", "inf", "nan"})
"""What some YAML reader takes for something else than a string."""


def to_yaml(value: Any) -> str:
    """Block style, two spaces; multi-line strings as literal blocks where that is exact.

    >>> print(to_yaml({"a": [1, {"b": "x y"}]}), end="")
    a:
      - 1
      - b: "x y"
    """
    return "\n".join(_lines(value)) + "\n"


def documents(values: Sequence[Any]) -> str:
    return "---\n".join(to_yaml(v) for v in values)


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [line for k, v in value.items() for line in _entry(f"{_scalar(str(k))}:", v, "  ")]
    if isinstance(value, list | tuple) and value:
        return [line for v in value for line in _item(v)]
    return [_scalar(value)]


def _entry(key: str, value: Any, indent: str) -> list[str]:
    if isinstance(value, Mapping | list | tuple) and value:
        return [key, *(indent + line for line in _lines(value))]
    if isinstance(value, str) and _is_block(value):
        return [f"{key} |", *(indent + line if line else "" for line in value[:-1].split("\n"))]
    return [f"{key} {_scalar(value)}"]


def _item(value: Any) -> list[str]:
    if isinstance(value, str) and _is_block(value):
        return ["- |", *("  " + line if line else "" for line in value[:-1].split("\n"))]
    first, *rest = _lines(value)
    return [f"- {first}", *("  " + line if line else "" for line in rest)]


def _is_block(text: str) -> bool:
    """Texts that a literal block reproduces: printable, ending in one line feed, first line not indented or empty."""
    return bool(re.fullmatch(r"[^\s](?:[\x20-\x7e\n]*[^\s])?\n", text)) and "\n" in text[:-1]


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return value if PLAIN.fullmatch(value) and value.lower() not in WORDS else _quoted(value)
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        return "[]"
    return json.dumps(value)


def _quoted(text: str) -> str:
    """Double-quoted; what a YAML reader may not take literally is escaped (JSON's surrogate pairs are not YAML)."""
    return UNSAFE.sub(lambda m: f"\\U{ord(m[0]):08x}", json.dumps(text, ensure_ascii=False))
