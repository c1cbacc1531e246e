"""JSON and YAML blocks inside a paper: what stands in them, entry by entry, each with its line.

A block is data, never prose: `"tensor_parallelism": 8` under `"baseline"` is the baseline's degree, and the ids of a device
map ("GPU_3": {"tensor_parallel_rank": 3}) are no degrees at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

_FENCE = re.compile(r"^\s*(?:```|~~~)\s*(?P<kind>[A-Za-z0-9_+-]*)\s*$")
_KINDS = ("", "json", "json5", "jsonc", "yaml", "yml", "text", "txt")
_NUMBERED = re.compile(
    r"(?:gpus?|npus?|devices?|ranks?|cards?|nodes?|hosts?|layers?|blocks?|stages?|experts?|groups?|partitions?|heads?)"
    r"[ _-]?\d+(?:[ _-]*(?:-|to|,)[ _-]*\d+)?",
    re.I,
)
"""A key that numbers one of many: "GPU_0", "layer 3", "device-12", "stage_0"."""
_LEFT_OUT = re.compile(r"^\s*(?:(?://|#).*|\.{3,}.*|/\*.*\*/\s*)$")
"""A line that only says that something is left out."""
_LONGEST = 90


@dataclass(frozen=True, slots=True)
class Entries:
    """Neighbouring entries of one mapping. `path` are the keys around them, `first`..`last` their lines (from 0)."""

    path: tuple[str, ...]
    entries: tuple[tuple[str, str], ...]
    first: int
    last: int


def data_block(lines: Sequence[str], i: int) -> tuple[list[Entries], int] | None:
    """(entries, the line behind the block) where a fence at line `i` holds nested data; None where it holds anything else."""
    fence = _FENCE.match(lines[i])
    if fence is None or fence["kind"].lower() not in _KINDS:
        return None
    closing = (j for j in range(i + 1, len(lines)) if (m := _FENCE.match(lines[j])) and not m["kind"])
    end = next(closing, None)
    if end is None:
        return None
    root = _parsed(lines[i + 1 : end])
    if not isinstance(root, yaml.MappingNode) or not _nested(root):
        return None
    return list(_entries(root, (), i + 1)), end + 1


def _parsed(lines: Sequence[str]) -> yaml.Node | None:
    """The block's root, or None; lines that say that something is left out are blanked."""
    text = "\n".join("" if _LEFT_OUT.match(x) else x.replace("\t", "  ") for x in lines)
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None


def _nested(node: yaml.MappingNode) -> bool:
    """A flat "key: value" listing reads like prose with labels; braces or a mapping inside a mapping make it data."""
    return bool(node.flow_style) or any(isinstance(v, yaml.MappingNode) for _, v in node.value)


def _entries(node: yaml.MappingNode, path: tuple[str, ...], offset: int) -> Iterator[Entries]:
    run: list[tuple[str, str]] = []
    first = last = 0

    def flushed() -> Iterator[Entries]:
        if run:
            yield Entries(path, tuple(run), first, last)
            run.clear()

    for key, value in node.value:
        name, said = spaced(str(key.value)), _value(value)
        if said is not None and len(said) <= _LONGEST and not _NUMBERED.fullmatch(str(key.value)):
            first = first if run else key.start_mark.line + offset
            last = value.end_mark.line + offset if value.end_mark.column else value.start_mark.line + offset
            run.append((name, said))
            continue
        yield from flushed()
        if isinstance(value, yaml.MappingNode) and not _NUMBERED.fullmatch(str(key.value)):
            yield from _entries(value, (*path, name), offset)
    yield from flushed()


def _value(node: yaml.Node) -> str | None:
    """A scalar, or a list of scalars, as one would write it in prose; None for anything nested."""
    if isinstance(node, yaml.ScalarNode):
        return spaced(str(node.value))
    if isinstance(node, yaml.SequenceNode) and all(isinstance(v, yaml.ScalarNode) for v in node.value):
        return f"[{', '.join(spaced(str(v.value)) for v in node.value)}]"
    return None


def spaced(text: str) -> str:
    """ "tensor_parallelism" tensor parallelism; other underscores stay."""
    return re.sub(r"(?<=[A-Za-z0-9])_+(?=[A-Za-z0-9])", " ", text).strip()


__all__ = ["Entries", "data_block"]
