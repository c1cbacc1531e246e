"""JSON, YAML and TOML as leaves that know their line: `Leaf(("slo", "ttft_ms"), 500, line, quote)`."""

from __future__ import annotations

import bisect
import json
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import yaml

from tools.spec.base import ToolError

MAX_LEAVES = 200_000
MAX_DEPTH = 60
Key = str | int


@dataclass(frozen=True, slots=True)
class Leaf:
    """A scalar (or an empty container) and where it stands. List positions are ints in `path`."""

    path: tuple[Key, ...]
    value: Any
    line: int
    quote: str
    row: str = ""
    """The whole line, for quotes that join two leaves."""

    @property
    def dotted(self) -> str:
        """ "nodes[0].gpu_type"."""
        return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in self.path).removeprefix(".")


def read_leaves(text: str, kind: str, name: str) -> list[Leaf]:
    """All leaves of a document in file order.

    Raises ToolError with the line of a syntax error, for circular anchors, and beyond `MAX_LEAVES` values.
    """
    readers = {"json": _read_json, "toml": _read_toml}
    try:
        leaves = readers.get(kind, _read_yaml)(text, name)
    except RecursionError:
        raise ToolError(f"{name} is nested deeper than {MAX_DEPTH} levels; flatten it") from None
    rows = text.split("\n")
    return [replace(leaf, row=rows[leaf.line - 1]) for leaf in leaves]


# ---------------------------------------------------------------- JSON

_JSON_TOKEN = re.compile(
    r'\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<open>[{\[])|(?P<close>[}\]])|(?P<punct>[:,])|(?P<word>[^\s\[\]{},:"]+))'
)


def _read_json(text: str, name: str) -> list[Leaf]:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise ToolError(
            f"{name} line {error.lineno}: not valid JSON: {error.msg.lower()} (column {error.colno})"
        ) from None
    except ValueError as error:
        raise ToolError(f"{name}: not valid JSON: {error}") from None
    lines = _Lines(text)
    return list(_json_leaves(text, lines, name))


@dataclass(slots=True)
class _Frame:
    is_list: bool
    key: Key = 0
    key_start: int = 0
    wants_key: bool = True
    empty: bool = True


def _json_leaves(text: str, lines: _Lines, name: str) -> Iterator[Leaf]:
    """A walk over tokens; the document is known to be valid."""
    stack: list[_Frame] = []
    for match in _JSON_TOKEN.finditer(text):
        frame = stack[-1] if stack else None
        start, end = match.start(match.lastgroup or 0), match.end()
        if match["string"] and frame and not frame.is_list and frame.wants_key:
            frame.key, frame.key_start, frame.wants_key, frame.empty = (
                json.loads(match["string"], strict=False),
                start,
                False,
                False,
            )
        elif match["open"]:
            if frame:
                frame.empty = False
            if len(stack) > MAX_DEPTH:
                raise RecursionError
            stack.append(_Frame(is_list=match["open"] == "["))
            inline = match["open"] == "[" and frame is not None and not frame.is_list
            stack[-1].key_start = frame.key_start if frame is not None and inline else start
        elif match["close"]:
            done = stack.pop()
            if done.empty and stack:
                yield Leaf(
                    tuple(f.key for f in stack),
                    [] if done.is_list else {},
                    lines.number(start),
                    lines.quote(stack[-1].key_start, end),
                )
        elif match["punct"] == "," and frame:
            if frame.is_list:
                frame.key = int(frame.key) + 1
            frame.wants_key = True
        elif match["string"] or match["word"]:
            value = json.loads(match["string"] or match["word"], strict=False)
            key_start = start if frame is None else frame.key_start
            if frame:
                frame.empty = False
            yield Leaf(tuple(f.key for f in stack), value, lines.number(start), lines.quote(key_start, end))


class _Lines:
    """Offsets to 1-based lines, and quotes that stay on one line."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.starts = [0] + [m.end() for m in re.finditer("\n", text)]

    def number(self, offset: int) -> int:
        return bisect.bisect_right(self.starts, offset)

    def quote(self, start: int, end: int) -> str:
        part = self.text[start:end]
        return part if "\n" not in part else part.rsplit("\n", 1)[1].strip()


# ---------------------------------------------------------------- YAML


def _read_yaml(text: str, name: str) -> list[Leaf]:
    loader_class = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        documents = [node for node in yaml.compose_all(text, Loader=loader_class) if node is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark else ""
        raise ToolError(f"{name}{where}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ToolError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None
    lines, leaves = _Lines(text), []
    constructor = yaml.SafeLoader("")
    for node in documents:
        for leaf in _yaml_leaves(node, (), None, frozenset(), lines, constructor, name):
            leaves.append(leaf)
            if len(leaves) > MAX_LEAVES:
                raise ToolError(f"{name} unfolds to more than {MAX_LEAVES} values through its anchors; write them out")
    return leaves


def _yaml_leaves(
    node: yaml.Node,
    path: tuple[Key, ...],
    key: yaml.Node | None,
    above: frozenset[int],
    lines: _Lines,
    constructor: Any,
    name: str,
) -> Iterator[Leaf]:
    if id(node) in above:
        raise ToolError(
            f"{name} line {node.start_mark.line + 1}: a YAML anchor contains itself; remove the circular alias"
        )
    if len(path) > MAX_DEPTH:
        raise RecursionError
    inside = above | {id(node)}
    start = (key or node).start_mark
    if isinstance(node, yaml.MappingNode) and node.value:
        for k, v in node.value:
            word: Key = str(k.value) if isinstance(k, yaml.ScalarNode) else "key"
            # a merge key (<<: *base) contributes its entries at this level
            below = path if word == "<<" and isinstance(v, yaml.MappingNode) else (*path, word)
            yield from _yaml_leaves(v, below, k, inside, lines, constructor, name)
    elif isinstance(node, yaml.SequenceNode) and node.value:
        for i, v in enumerate(node.value):
            yield from _yaml_leaves(
                v, (*path, i), key if isinstance(v, yaml.ScalarNode) else None, inside, lines, constructor, name
            )
    else:
        quote_start = lines.starts[start.line] + start.column
        quote_end = lines.starts[node.end_mark.line] + node.end_mark.column
        quote = (
            lines.text[quote_start:quote_end].rstrip() if quote_end > quote_start else str(getattr(node, "value", ""))
        )
        if "\n" in quote:
            quote = lines.text[lines.starts[node.start_mark.line] :].split("\n", 1)[0].strip()
        yield Leaf(path, _yaml_scalar(node, constructor), node.start_mark.line + 1, quote)


def _yaml_scalar(node: yaml.Node, constructor: Any) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        return {} if isinstance(node, yaml.MappingNode) else []
    try:
        value = constructor.construct_object(node)
    except (yaml.YAMLError, ValueError):
        return node.value
    if isinstance(value, float) and value != value:
        return node.value
    # YAML 1.1 oddities stay words: dates, sexagesimal numbers (1:30), octal
    if isinstance(value, bool | int | float | str) or value is None:
        return (
            node.value
            if isinstance(value, int | float) and not isinstance(value, bool) and ":" in node.value
            else value
        )
    return node.value


# ---------------------------------------------------------------- TOML


def _read_toml(text: str, name: str) -> list[Leaf]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        try:  # TOML 1.1 allows bare keys in any script
            document = tomllib.loads(_with_quoted_keys(text))
        except tomllib.TOMLDecodeError:
            raise ToolError(f"{name}: not valid TOML: {error}") from None
    finder = _TomlFinder(text)
    return [Leaf(path, value, *finder.find(path, value)) for path, value in _walk(document, ())]


def _with_quoted_keys(text: str) -> str:
    """Bare keys and table names outside ASCII in quotes, as TOML 1.0 asks for."""
    part = r"[\w\-]*[\u0080-\uffff][\w\-\u0080-\uffff]*"
    rows = []
    for row in text.split("\n"):
        header = re.fullmatch(r"(\s*\[{1,2})([^\[\]\"']+)(\]{1,2}\s*(?:#.*)?)", row)
        key = re.match(r"(\s*)([^=\"'#\[]+?)(\s*=)", row)
        if header:
            row = header[1] + re.sub(part, lambda m: f'"{m[0]}"', header[2]) + header[3]
        elif key:
            row = key[1] + re.sub(part, lambda m: f'"{m[0]}"', key[2]) + row[key.end(2) :]
        rows.append(row)
    return "\n".join(rows)


def _walk(value: Any, path: tuple[Key, ...]) -> Iterator[tuple[tuple[Key, ...], Any]]:
    if len(path) > MAX_DEPTH:
        raise RecursionError
    if isinstance(value, dict) and value:
        for k, v in value.items():
            yield from _walk(v, (*path, str(k)))
    elif isinstance(value, list) and value:
        for i, v in enumerate(value):
            yield from _walk(v, (*path, i))
    else:
        yield path, value if isinstance(value, bool | int | float | str | list | dict) or value is None else str(value)


class _TomlFinder:
    """tomllib keeps no positions: find the line by following table headers and keys in file order."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.seen: Counter[tuple[str, ...]] = Counter()
        self.numbers: dict[tuple[str, ...], list[int]] = defaultdict(list)
        table: tuple[str, ...] = ()
        for number, line in enumerate(self.lines):
            header = re.match(r"\s*\[{1,2}\s*([^\[\]]+?)\s*\]{1,2}\s*(?:#.*)?$", line)
            if header:
                table = tuple(k.strip().strip("\"'") for k in header[1].split("."))
            elif entry := re.match(r"\s*([\w\-.\"' \u0080-\uffff]+?)\s*=", line):
                self.numbers[(*table, *(k.strip().strip("\"'") for k in entry[1].split(".")))].append(number)

    def find(self, path: tuple[Key, ...], value: Any) -> tuple[int, str]:
        words = tuple(k for k in path if isinstance(k, str))
        lines = sorted(n for depth in range(len(words) + 1) for n in self.numbers.get(words[:depth], ()))
        if len(lines) <= 500:
            lines = [n for n in lines if str(value) in self.lines[n]] or lines
        if not lines:
            lines = [i for i, line in enumerate(self.lines) if str(value) in line] or [0]
        # the i-th [[table]] of one name is the i-th line with its key; items of one inline list share a line
        number = lines[0 if isinstance(path[-1], int) else min(self.seen[words], len(lines) - 1)]
        self.seen[words] += 1
        return number + 1, self.lines[number].strip()
