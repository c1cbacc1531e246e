"""Launch commands as people write them: the words of a script, options by their long names, and degrees."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from tools.spec.base import Frozen, ToolError
from tools.spec.strategy import Strategy


class ParsedCommand(Frozen):
    """What a launch command says: `degrees` are keyword arguments of Strategy, `options` every flag as written."""

    engine: str
    model_path: str
    degrees: dict[str, int]
    layers_per_stage: tuple[int, ...] | None = None
    options: dict[str, str] = Field(default_factory=dict)
    """Long flag names with dashes, without the leading ones; a switch has the value ""."""
    version: str | None = None
    """Release of the engine, where the text names one (the tag of an image)."""

    def strategy(self, **more: Any) -> Strategy:
        kwargs: dict[str, Any] = {"engine": self.engine, **self.degrees, **more}
        if self.layers_per_stage is not None and len(self.layers_per_stage) == kwargs.get("pp", 1):
            kwargs.setdefault("layers_per_stage", self.layers_per_stage)
        return Strategy(**kwargs)


ASSIGNMENT = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)=(.*)$", re.MULTILINE)
REFERENCE = re.compile(r"\$\{(\w+)(?::?[-?]([^}]*))?\}|\$(\w+)")


def shell_variables(text: str) -> dict[str, str]:
    """Plain assignments of a script; `X=${X:-default}` gives the default."""
    out: dict[str, str] = {}
    for name, raw in ASSIGNMENT.findall(text):
        try:
            words = shlex.split(raw, comments=True)
        except ValueError:
            continue
        value = words[0] if len(words) == 1 else " ".join(words)
        if "$((" in value:
            continue  # arithmetic on ranks
        if match := re.fullmatch(r"\$\{\w+:-(.*)\}", value, re.DOTALL):
            value = match.group(1)
        out[name] = value
    return out


def command_words(text: str, starts: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(words of the first command that starts with one of `starts`, variables of the script). ToolError if none."""
    joined = re.sub(r"\\\r?\n", " ", text)
    variables = shell_variables(joined)
    for line in joined.splitlines():
        if line.lstrip().startswith("#"):
            continue
        for start in starts:
            at = re.search(rf"(?<![\w.-]){re.escape(start)}(?!\w)", line)
            if at is None:
                continue
            inline = dict(re.findall(r"([A-Z_][A-Z0-9_]*)=([^\s;]+)", line[: at.start()]))
            # Arithmetic and alternative expansions name ports and ranks, never degrees.
            rest = re.sub(r"\$\(\([^()]*\)\)", "0", line[at.end() :])
            rest = re.sub(r"\$\{\w+:\+[^}]*\}", "", rest)
            try:
                words = shlex.split(rest, comments=True)
            except ValueError as error:
                raise ToolError(f"the {start} command cannot be read: {error}; check its quotes") from None
            return [_expand(w, variables) for w in _until_operator(words)], {**variables, **inline}
    raise ToolError(f"no command that starts with {' or '.join(starts)}; give the launch command or its script")


def _until_operator(words: Sequence[str]) -> list[str]:
    out: list[str] = []
    for w in words:
        if w in {"&", "&&", "|", "||", ";", ">", ">>", "2>&1"}:
            break
        out.append(w.removesuffix(";"))
    return out


def _expand(word: str, variables: Mapping[str, str]) -> str:
    """Variables of the script, else the default that the reference itself gives (`${X:-default}`), else nothing."""
    return REFERENCE.sub(lambda m: variables.get(m.group(1) or m.group(3), m.group(2) or ""), word)


def split_flags(
    words: Sequence[str], short: Mapping[str, str], switches: frozenset[str]
) -> tuple[list[str], dict[str, str]]:
    """(positional words, options by long name). Understands --flag=value, underscores, and the short forms given."""
    positional: list[str] = []
    options: dict[str, str] = {}
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if not (word.startswith("--") or word.split("=")[0] in short):
            positional.append(word)
            continue
        name, _, value = word.partition("=")
        name = short.get(name, name.removeprefix("--").replace("_", "-"))
        if not value and name not in switches and i < len(words) and not _is_flag(words[i], short):
            value = words[i]
            i += 1
        options[name] = value
    return positional, options


def _is_flag(word: str, short: Mapping[str, str]) -> bool:
    return word.startswith("--") or word in short


def whole(options: Mapping[str, str], *names: str, default: int = 1) -> int:
    """The first option among `names` as a positive integer."""
    for name in names:
        if name in options:
            try:
                value = int(options[name])
            except ValueError:
                raise ToolError(f"--{name} must be a whole number, got {options[name]!r}") from None
            if value < 1:
                raise ToolError(f"--{name} must be at least 1, got {value}")
            return value
    return default


def layer_partition(variables: Mapping[str, str], name: str) -> tuple[int, ...] | None:
    raw = variables.get(name, "").strip("\"'")
    if not raw:
        return None
    try:
        return tuple(int(x) for x in raw.split(","))
    except ValueError:
        raise ToolError(f"{name} must be whole numbers joined by commas, got {raw!r}") from None
