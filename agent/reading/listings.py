"""What machines print and start: device listings (nvidia-smi, npu-smi, rocm-smi) and the command lines of engines."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from knowledge import catalog

# "|   0  NVIDIA L20   On |", "GPU 0: NVIDIA A100 (UUID: …)", "GPU[0] : Card series: …", "| 0  910B4 | OK |"
_ENTRY = re.compile(
    r"^(?:\|\s*(?P<row>\d{1,3})\s{2,}|\W{0,2}(?:GPU|NPU|DCU|Device|card)\s*[\[#]?\s*(?P<index>\d{1,3})\]?\s*:\s*)(?P<rest>\S.*)$",
    re.I,
)
_CAPACITY = (
    re.compile(r"/\s*(?P<n>\d{4,6}\s*Mi?B)\b"),
    re.compile(r"/\s*(?P<n>\d{4,6})\s*\|\s*$"),
    re.compile(r"(?:total memory|memory total)[^:]*:\s*(?P<n>\d{4,12}\s*(?:[KMG]i?B)?)\s*$", re.I),
)
_ART = re.compile(r"^\s*(?:[+|=]|GPU\[|GPU \d)")


@dataclass(frozen=True, slots=True)
class Listing:
    """`count` devices, first seen on `line`; `fields` are (line, label, value); `end` is the line behind (from 0)."""

    count: int
    line: int
    fields: tuple[tuple[int, str, str], ...]
    end: int


def device_listing(lines: Sequence[str], i: int) -> Listing | None:
    """The listing that begins at line `i` (from 0): entries numbered from 0, each with a device that is known."""
    if not _ART.match(lines[i]):
        return None
    end = next((j for j in range(i, len(lines)) if not _ART.match(lines[j])), len(lines))
    seen: dict[int, tuple[int, str]] = {}
    for j in range(i, end):
        entry = _ENTRY.match(lines[j])
        device = _device(entry["rest"]) if entry else ""
        if entry and device:
            seen.setdefault(int(entry["row"] or entry["index"]), (j + 1, device))
    if not seen or sorted(seen) != list(range(len(seen))):
        return None
    line, name = seen[0]
    fields = [(line, "GPU", name)]
    capacity = next((m for j in range(line - 1, end) for p in _CAPACITY if (m := p.search(lines[j]))), None)
    if capacity is not None:
        at = next(j for j in range(line - 1, end) if capacity["n"] in lines[j]) + 1
        bare = capacity["n"].isdigit()
        unit = "" if not bare else " bytes" if float(capacity["n"]) > 1e9 else " MiB"
        fields.append((at, "GPU memory", capacity["n"].replace("MB", "MiB") + unit))
    while end + 1 < len(lines) and _ART.match(lines[end + 1]):  # the table of processes
        end = next((j for j in range(end + 1, len(lines)) if not _ART.match(lines[j])), len(lines))
    return Listing(len(seen), line, tuple(fields), end)


def _device(text: str) -> str:
    """The words of the device named in `text`; a bare "910B4" is one in a listing."""
    found = catalog.find_devices_in_text(text) or catalog.find_devices_in_text(f"Ascend {text}")
    if not found:
        return ""
    return found[0][2]


# ---------------------------------------------------------------- commands

_ENGINE_COMMAND = re.compile(
    r"^\W{0,3}(?:\$\s*)?(?:(?:[A-Z_][A-Z0-9_]*=\S+|sudo|nohup|exec|numactl|docker|podman|torchrun|mpirun)\s+(?:\S+\s+){0,24}?)?"
    r"(?P<command>vllm\s+serve|(?:python\d?(?:\.\d+)?\s+-m\s+)(?:vllm|sglang|lmdeploy)[\w.]*|python\d?(?:\.\d+)?\s+\S*launch_server\S*|sglang\s+serve|trtllm-serve|lmdeploy\s+serve\s+api_server"
    r"|text-generation-launcher|llama-server)(?=\s|$)(?P<rest>.*)$",
    re.S,
)
_MODEL_FLAGS = frozenset({"model", "model-path", "model-id", "model-dir", "served-model", "m"})
_NOT_FLAGS = frozenset(
    {"port", "host", "node-rank", "dist-init-addr", "seed", "api-key", "master-addr", "master-port", "download-dir", "tokenizer", "served-model-name", "chat-template", "log-level"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Flag:
    """`--name value` on a 1-based line; `words` is the name as words, `raw` the value as a number where it is one."""

    line: int
    name: str
    value: str
    raw: object

    @property
    def key(self) -> str:
        return "model" if self.name in _MODEL_FLAGS else self.name

    @property
    def words(self) -> str:
        return self.key.replace("-", " ").replace("_", " ")


@dataclass(frozen=True, slots=True)
class Command:
    flags: tuple[Flag, ...]
    end: int


def engine_command(lines: Sequence[str], i: int) -> Command | None:
    """The command on line `i` (from 0) and the lines that a backslash continues it on; None if it starts no engine."""
    end = i + 1
    while end < len(lines) and lines[end - 1].rstrip().endswith("\\"):
        end += 1
    rows = [line.rstrip().removesuffix("\\") for line in lines[i:end]]
    text = "\n".join(rows)
    match = _ENGINE_COMMAND.match(text)
    if match is None or ("--" not in match["rest"] and not match["command"].startswith("vllm")):
        return None
    engine = next(e for e in ("vllm", "sglang", "trtllm", "lmdeploy", "text-generation", "llama", "launch_server") if e in match["command"])  # fmt: skip
    flags = [Flag(i + 1, "engine", {"launch_server": "sglang", "text-generation": "tgi", "llama": "llama.cpp"}.get(engine, engine), None)]  # fmt: skip
    flags += _flags(match["rest"], i + 1 + text[: match.start("rest")].count("\n"))
    return Command(tuple(flags), end)


def _flags(rest: str, line: int) -> list[Flag]:
    return flags_of([(line + k, word) for k, row in enumerate(rest.split("\n")) for word in _split(row)])


def flags_of(words: Sequence[tuple[int, str]]) -> list[Flag]:
    """The flags of (line, word) pairs; the first word that belongs to no flag is the model."""
    out: list[Flag] = []
    name = ""
    for line, word in words:
        if word.startswith("-") and re.match(r"--?[A-Za-z]", word):
            name, _, value = word.lstrip("-").partition("=")
            if value:
                out += _flag(line, name, value)
                name = ""
        elif name or not out:
            out += _flag(line, name or "model", word)
            name = ""
    return out


def _flag(line: int, name: str, value: str) -> list[Flag]:
    if name in _NOT_FLAGS:
        return []
    raw: object = int(value) if re.fullmatch(r"\d+", value) else value
    return [Flag(line, name, value, raw)]


def _split(row: str) -> list[str]:
    try:
        return shlex.split(row, comments=True)
    except ValueError:
        return row.split()
