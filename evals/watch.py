"""Which files a piece of code writes, which programs it starts, and where it connects to: Python's own audit events.

    with watching(allowed=(out_dir,)) as seen: ...
    seen.stray                                   # writes outside `allowed`, e.g. ["open /etc/passwd"]

An audit hook cannot be taken back, so one is installed per process and listens only inside `watching`. Child processes
are seen starting, not what they do.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHANGES = {
    "os.rename": (0, 1), "os.remove": (0,), "os.mkdir": (0,), "os.rmdir": (0,), "os.link": (1,), "os.symlink": (1,),
    "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "sqlite3.connect": (0,),
}  # fmt: skip
"""Audit events that change the file system → positions of the paths among their arguments."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(slots=True)
class Seen:
    """What happened: `writes` anywhere, `stray` of them outside the allowed folders, programs, and connections."""

    allowed: tuple[Path, ...]
    writes: int = 0
    stray: list[str] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)
    connections: list[str] = field(default_factory=list)

    def note(self, event: str, path: Any) -> None:
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str | os.PathLike):
            return  # a file descriptor: the opening was seen
        if str(path) in ("", ":memory:"):
            return  # a database without a file
        self.writes += 1
        place = os.path.normpath(Path.cwd() / path)
        if place != os.devnull and "__pycache__" not in place and not any(_inside(place, a) for a in self.allowed):
            self.stray.append(f"{event} {place}")


def _inside(place: str, folder: Path) -> bool:
    return place == str(folder) or place.startswith(f"{folder}{os.sep}")


_listening: list[Seen] = []
_installed = False
_busy = threading.local()


@contextlib.contextmanager
def watching(allowed: Sequence[Path]) -> Iterator[Seen]:
    """Notes what happens inside the block. Temporary files and bytecode are nobody's business; `allowed` neither."""
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    folders: list[Path] = [*allowed, Path(tempfile.gettempdir())]
    seen = Seen(tuple(p.resolve() for p in folders))
    seen.allowed += tuple(Path(os.path.normpath(Path.cwd() / p)) for p in allowed)
    _listening.append(seen)
    try:
        yield seen
    finally:
        _listening.remove(seen)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _listening or getattr(_busy, "now", False):
        return
    _busy.now = True
    try:
        for seen in _listening:
            _note(seen, event, args)
    finally:
        _busy.now = False


def _note(seen: Seen, event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and args[2] is not None and args[2] & WRITING:
        seen.note("open", args[0])
    elif event in CHANGES:
        for i in CHANGES[event]:
            if i < len(args):
                seen.note(event, args[i])
    elif event == "subprocess.Popen":
        seen.programs.append(str(args[0]))
    elif event == "socket.connect":
        seen.connections.append(str(args[1]))
