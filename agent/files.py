"""All writing of a run: run directory, content-addressed state, atomic publication. Nothing is written elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from pydantic import BaseModel

from tools.spec.base import Bug, ToolError

MARKER = "state/run.json"
M = TypeVar("M", bound=BaseModel)


class Ref(TypedDict):
    """A large value in the run directory: where it lies, and the hash of its bytes."""

    path: str
    sha256: str


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def canonical(value: Any) -> bytes:
    """JSON of a pydantic value or plain data: sorted keys, UTF-8; equal values give equal bytes."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def read_text(path: Path, what: str, limit: int = 5_000_000) -> str:
    """A text file that the user named with option `what`. Raises ToolError in one line."""
    try:
        if path.stat().st_size > limit:
            raise ToolError(
                f"{what} {path}: {path.stat().st_size / 1e6:.0f} MB; files up to {limit / 1e6:.0f} MB are read"
            )
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise ToolError(f"{what} {path}: not UTF-8 text (byte {e.start})") from None
    except OSError as e:
        raise ToolError(f"{what} {path}: {e.strerror}") from None


def write_atomic(path: Path, data: bytes) -> None:
    """The file is there whole or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temp = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        Path(temp).chmod(0o644)
        Path(temp).replace(path)
    except BaseException:
        Path(temp).unlink(missing_ok=True)
        raise


class Store:
    """Content-addressed values under RUN_DIR/state. State holds only `Ref`s; what is read back is what was written."""

    def __init__(self, run_dir: Path):
        self.run_dir, self.root = run_dir, run_dir / "state"

    def put(self, value: Any) -> Ref:
        data = value.encode() if isinstance(value, str) else canonical(value)
        digest = sha256(data)
        path = self.root / f"{digest[:20]}{'.txt' if isinstance(value, str) else '.json'}"
        if not path.exists() or sha256_file(path) != digest:
            write_atomic(path, data)
        return Ref(path=str(path.relative_to(self.run_dir)), sha256=digest)

    def bytes(self, ref: Ref) -> bytes:
        """Raises Bug when the file is gone or is not what was written."""
        path = self.run_dir / ref["path"]
        try:
            data = path.read_bytes()
        except OSError as e:
            raise Bug(f"state file {path} is gone ({e.strerror}); run the plan again") from None
        if sha256(data) != ref["sha256"]:
            raise Bug(
                f"state file {path} was changed: sha256 {sha256(data)[:12]}, not {ref['sha256'][:12]}; run it again"
            )
        return data

    def json(self, ref: Ref) -> Any:
        return json.loads(self.bytes(ref))

    def load(self, ref: Ref, kind: type[M]) -> M:
        return kind.model_validate(self.json(ref))

    def memo_get(self, key: Any) -> Ref | None:
        """The result recorded for `key`, if its file is still what it was."""
        path = self._memo_path(key)
        if not path.exists():
            return None
        ref: Ref = json.loads(path.read_bytes())
        try:
            self.bytes(ref)
        except Bug:
            return None
        return ref

    def memo_put(self, key: Any, value: Any) -> Ref:
        """Records `value` as the result for `key`, so that a node that runs again does not work again."""
        ref = self.put(value)
        write_atomic(self._memo_path(key), canonical(ref))
        return ref

    def _memo_path(self, key: Any) -> Path:
        return self.root / "memo" / f"{sha256(canonical(key))[:20]}.json"


OURS = ("manifest.json", "plan.json", "plan.md", "evaluation.json", "pareto.svg", "pareto.csv", "dag", "launch")
RUN_FILES = ("state", "checkpoint.sqlite", "checkpoint.sqlite-wal", "checkpoint.sqlite-shm", "events.jsonl", ".publish")


def default_out(name: str, stamp: str) -> Path:
    """`runs/<name>-<timestamp>` under the current directory."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:60] or "run"
    return Path("runs") / f"{safe}-{stamp}"


LOCK = ".lock"


@contextlib.contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Keeps other processes out of a run directory (or an evaluation's) while the block runs.

    The kernel holds the lock (`flock`), so that of a process that died is free at once, whatever its file says. Raises
    ToolError that names the process which runs there. Where the system has no such locks, nothing is kept out.
    """
    _writable(out)
    handle = _locked(out / LOCK)
    if handle is None:
        yield
        return
    with handle:
        try:
            yield
        finally:
            # Still held here: nobody else can have locked this very file, and whoever has opened it looks again.
            (out / LOCK).unlink(missing_ok=True)


def _locked(path: Path) -> Any:
    """The open, locked file, with our process in it; None where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        handle = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(path, handle) from None
        except OSError:  # a file system without locks
            handle.close()
            return None
        if path.exists() and path.stat().st_ino == os.fstat(handle.fileno()).st_ino:
            break
        handle.close()  # its owner took the file away between our opening and our locking it
    handle.seek(0)
    handle.truncate()
    handle.write(f"{os.getpid()} {platform.node() or 'localhost'} {time.strftime('%Y-%m-%dT%H:%M:%S')}\n")
    handle.flush()
    return handle


def _busy(path: Path, handle: Any) -> ToolError:
    handle.seek(0)
    pid, host, since = [*handle.read().split(), "?", "?", "?"][:3]
    handle.close()
    return ToolError(
        f"--out {path.parent}: process {pid} on {host} has been running in it since {since}; wait for it, stop it, or "
        "choose another directory"
    )


def _writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except FileExistsError:
        raise ToolError(f"--out {out}: exists and is not a directory; choose another") from None
    except OSError as e:
        raise ToolError(f"--out {out}: cannot write there ({e.strerror}); choose another directory") from None


def prepare_run_dir(out: Path, inputs: tuple[Path, ...] = ()) -> None:
    """Makes `out` an empty run directory. An earlier run of ours in it is removed; anything else of these names is
    not touched.

    Raises ToolError when it cannot be written, or holds files of these names that no run of ours made.
    """
    _writable(out)
    present = [n for n in (*RUN_FILES, *OURS) if (out / n).exists()]
    if not present:
        return
    if not (out / MARKER).is_file():
        raise ToolError(
            f"--out {out}: holds {', '.join(present[:4])}, which no run of meshwright made; choose an empty directory"
        )
    _refuse_inputs_inside(out, present, inputs)
    for name in present:
        target = out / name
        shutil.rmtree(target) if target.is_dir() and not target.is_symlink() else target.unlink()


def _refuse_inputs_inside(out: Path, present: list[str], inputs: tuple[Path, ...]) -> None:
    doomed = [(out / n).resolve() for n in present]
    for path in inputs:
        if any(path.resolve() == d or d in path.resolve().parents for d in doomed):
            raise ToolError(
                f"--out {out}: the input {path} lies in it and would be overwritten; choose another directory"
            )


def publish(run_dir: Path, files: Mapping[str, bytes], copies: Mapping[str, Path]) -> None:
    """Puts `files` (relative path → content) and `copies` (relative path → source) into the run directory, manifest
    last.

    Everything is written beside first and then renamed, so a reader who sees the manifest sees all that it lists.
    Doing it twice gives the same result.
    """
    temp = run_dir / ".publish"
    shutil.rmtree(temp, ignore_errors=True)
    (run_dir / "manifest.json").unlink(missing_ok=True)
    for name, data in files.items():
        write_atomic(temp / name, data)
        if name.endswith(".sh"):
            (temp / name).chmod(0o755)
    for name, source in copies.items():
        (temp / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, temp / name)
    tops = sorted({Path(n).parts[0] for n in (*files, *copies)}, key=lambda n: n == "manifest.json")
    for top in tops:
        target = run_dir / top
        if target.is_dir():
            shutil.rmtree(target)
        (temp / top).replace(target)
    shutil.rmtree(temp, ignore_errors=True)
