"""Input files, read once: decoded, bounded in size, refused with one line when they are no text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from agent.reading.pdf import text_of_pdf
from tools.spec.base import ToolError
from tools.spec.conditions import InputFile

MAX_BYTES = 20 * 10**6
MAX_FILES = 200
Kind = Literal["markdown", "text", "json", "yaml", "toml"]
_KINDS: dict[str, Kind] = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "text",
    ".text": "text",
    ".json": "json",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".toml": "toml",
    "": "text",
    ".pdf": "text",
    ".rst": "text",
    ".cfg": "text",
    ".conf": "text",
    ".ini": "text",
    ".csv": "text",
    ".tsv": "text",
    ".log": "text",
    ".env": "text",
    ".properties": "text",
    ".org": "text",
    ".sh": "text",
    ".bash": "text",
    ".bat": "text",
    ".cmd": "text",
    ".slurm": "text",
    ".sbatch": "text",
    ".service": "text",
    ".eml": "text",
    ".mbox": "text",
    ".html": "text",
    ".htm": "text",
    ".tf": "text",
    ".hcl": "text",
    ".adoc": "text",
    ".tex": "text",
    ".out": "text",
    ".jsonc": "json",
    ".json5": "json",
}


def read_files(paths: Sequence[str | Path]) -> tuple[InputFile, ...]:
    """Read files, and every readable file of folders (subfolders included, hidden ones not), sorted by name.

    Raises ToolError for a missing, empty, binary or oversized file, and for a folder without any input.
    """
    if not paths:
        raise ToolError("no input given; pass a conditions file or a folder of them")
    files: list[InputFile] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            files += [read_file(p) for p in _folder(path)]
        else:
            files.append(read_file(path))
    return tuple({f.path: f for f in files}.values())


def _folder(path: Path) -> list[Path]:
    def visible(p: Path) -> bool:
        return not any(part.startswith(".") for part in p.relative_to(path).parts)

    found = sorted(p for p in path.rglob("*") if p.is_file() and visible(p) and p.suffix.lower() in _KINDS)
    if not found:
        raise ToolError(f"folder {path} has no input; expected files like .md, .txt, .json, .yaml or .toml")
    if len(found) > MAX_FILES:
        raise ToolError(
            f"folder {path} has {len(found)} files, the limit is {MAX_FILES}; name the ones that state the conditions"
        )
    return found


def read_file(path: Path) -> InputFile:
    """One file as text. `sha256` is that of the bytes on disk."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ToolError(f"{path} is not a regular file; pass a text file or a folder")
        if size > MAX_BYTES:
            raise ToolError(
                f"{path} is {size / 1e6:.0f} MB, the limit is {MAX_BYTES / 1e6:.0f} MB; cut it down to the conditions"
            )
        data = path.read_bytes()
    except OSError as error:
        raise ToolError(f"cannot read {path}: {error.strerror or error}") from None
    text = text_of_pdf(data, str(path)) if data[:1024].lstrip().startswith(b"%PDF-") else decode(data, str(path))
    text = unwrapped(text)
    if not text.strip():
        raise ToolError(f"{path} is empty; it should state hardware, model, workload and requirements")
    return InputFile(path=str(path), sha256=hashlib.sha256(data).hexdigest(), text=text, kind=_kind(path, text))


_FENCED = re.compile(r"\A(\s*)```(?:markdown|md|text)?[ \t]*(\n.*\n)[ \t]*```(\s*)\Z", re.S)


def unwrapped(text: str) -> str:
    """A document that was pasted as one code block, without the marks around it; its lines keep their numbers."""
    m = _FENCED.match(text)
    inside_headings = len(re.findall(r"^#{1,6} \S|^\*\*[A-Z][^*\n]+\*\*\s*$", m[2], re.M)) if m else 0
    return f"{m[1]}{m[2]}{m[3]}" if m and inside_headings > 2 else text


def input_from_text(text: str, path: str = "conditions.md") -> InputFile:
    """The same for text that is already in memory."""
    return InputFile(
        path=path, sha256=hashlib.sha256(text.encode()).hexdigest(), text=text, kind=_kind(Path(path), text)
    )


def decode(data: bytes, name: str) -> str:
    """UTF-8 (with or without BOM), UTF-16 with BOM or by its zero bytes, else GB18030 (a superset of cp936).

    Raises ToolError for binary data.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _clean(_try(data, "utf-16", name), name)
    if data[:4000].count(0) > 0:
        guess = "utf-16-le" if data[1:4000:2].count(0) > len(data[1:4000:2]) // 3 else "utf-16-be"
        if data[:4000].count(0) < len(data[:4000]) // 3:
            raise ToolError(f"{name} is binary, not text; pass Markdown, text, JSON, YAML or TOML")
        return _clean(_try(data, guess, name), name)
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return _clean(data.decode(encoding), name)
        except UnicodeDecodeError:
            continue
    raise ToolError(f"{name} is neither UTF-8, UTF-16 nor GB18030 text; save it as UTF-8")


def _try(data: bytes, encoding: str, name: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise ToolError(f"{name} is binary, not text; pass Markdown, text, JSON, YAML or TOML") from None


def _clean(text: str, name: str) -> str:
    text = text.removeprefix("\ufeff")
    sample = text[:20000]
    odd = sum(
        1 for c in sample if (ord(c) < 32 and c not in "\t\n\r\f\v\x1b") or c == "\ufffd" or 0xE000 <= ord(c) <= 0xF8FF
    )
    if odd > max(2, len(sample) // 100):
        raise ToolError(f"{name} is binary, not text; pass Markdown, text, JSON, YAML or TOML")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _kind(path: Path, text: str) -> Kind:
    kind = _KINDS.get(path.suffix.lower(), "text")
    if kind in ("text", "markdown") and text.lstrip()[:1] in ("{", "["):
        try:
            if isinstance(json.loads(text), dict | list):
                return "json"
        except (ValueError, RecursionError):
            pass
    return kind
