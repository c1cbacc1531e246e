"""`manifest.json`: what a run read and what it published, as paths and hashes, never as content.

`build` hashes bytes that the caller has read, `verify` recomputes the hashes through a function that reads: nothing
here touches a file. Artifact paths are relative to the manifest and stay inside its folder; input paths are relative
too and may lead out of it (`../conditions.md`).
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Iterable
from typing import Literal, get_args

from pydantic import field_validator, model_validator

from tools.spec.base import Frozen, ToolError
from tools.spec.conditions import InputFile
from tools.spec.finding import Finding

Kind = Literal[
    "plan", "report", "dag_script", "dag_dot", "dag_svg", "launch", "evaluation", "pareto", "events"
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(Kind)
UNHASHED: frozenset[str] = frozenset({"events"})
"""Kinds that differ between two runs that publish the same: the event log carries times."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class InputRef(Frozen):
    path: str
    sha256: str

    @field_validator("path")
    @classmethod
    def _relative(cls, path: str) -> str:
        return _relative_path(path, inside=False)


class Artifact(Frozen):
    """One published file; `sha256` is None for the kinds in `UNHASHED` only."""

    kind: Kind
    path: str
    sha256: str | None = None

    @field_validator("path")
    @classmethod
    def _relative(cls, path: str) -> str:
        return _relative_path(path, inside=True)

    @model_validator(mode="after")
    def _hashed(self) -> Artifact:
        if (self.sha256 is None) != (self.kind in UNHASHED):
            raise ValueError(
                f"{self.path}: kind {self.kind} {'has no hash' if self.kind in UNHASHED else 'needs a sha256'}"
            )
        return self


class Manifest(Frozen):
    schema_version: Literal["1"] = "1"
    status: Literal["proven", "infeasible"]
    degraded: tuple[str, ...] = ()
    """Nodes that the built-in policy answered because the LLM did not."""
    inputs: tuple[InputRef, ...]
    artifacts: tuple[Artifact, ...]

    @model_validator(mode="after")
    def _unique(self) -> Manifest:
        seen: set[str] = set()
        for artifact in self.artifacts:
            if artifact.path in seen:
                raise ValueError(f"{artifact.path} is listed twice")
            seen.add(artifact.path)
        return self

    def of(self, kind: Kind) -> tuple[Artifact, ...]:
        return tuple(a for a in self.artifacts if a.kind == kind)

    def to_json(self) -> str:
        """The text of `manifest.json`, newline at the end; an absent hash is left out, not null."""
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"


def _relative_path(path: str, *, inside: bool) -> str:
    if not path or "\\" in path or "\0" in path or path.startswith(("/", "~")) or path[1:2] == ":":
        raise ValueError(f"path {path!r} must be relative to the manifest, with forward slashes")
    if posixpath.normpath(path) != path or path == ".":
        raise ValueError(f"path {path!r} is not normalised; write {posixpath.normpath(path)!r}")
    if inside and path.split("/")[0] == "..":
        raise ValueError(f"artifact {path!r} lies outside the manifest's folder")
    return path


def input_path(path: str, manifest_dir: str) -> str:
    """How an absolute input path is written in a manifest that lies in the absolute `manifest_dir`."""
    if not (path.startswith("/") and manifest_dir.startswith("/")):
        raise ToolError(f"input_path needs absolute paths, got {path!r} and {manifest_dir!r}")
    return posixpath.relpath(path, manifest_dir)


def build(
    status: Literal["proven", "infeasible"], *, inputs: Iterable[InputFile | InputRef],
    artifacts: Iterable[tuple[Kind, str, bytes]], degraded: Iterable[str] = (),
) -> Manifest:  # fmt: skip
    """Manifest of `artifacts` (kind, path, content), sorted so that the same run gives the same bytes."""
    refs = (i if isinstance(i, InputRef) else InputRef(path=i.path, sha256=i.sha256) for i in inputs)
    made = [Artifact(kind=k, path=p, sha256=None if k in UNHASHED else sha256(data)) for k, p, data in artifacts]
    made.sort(key=lambda a: (KINDS.index(a.kind), a.path))
    return Manifest(status=status, degraded=tuple(degraded), inputs=tuple(refs), artifacts=tuple(made))


def verify(manifest: Manifest, read: Callable[[str], bytes | None]) -> tuple[Finding, ...]:
    """Findings for every input or artifact that is gone or changed; `read` gives None where nothing is."""
    hashed = [(i.path, i.sha256, "input") for i in manifest.inputs]
    hashed += [(a.path, a.sha256, a.kind) for a in manifest.artifacts if a.sha256 is not None]
    found = (_verify_one(path, digest, kind, read(path)) for path, digest, kind in hashed)
    return tuple(f for f in found if f is not None)


def _verify_one(path: str, expected: str, kind: str, data: bytes | None) -> Finding | None:
    if data is None:
        return Finding(
            code="manifest-missing", severity="error", cause="input" if kind == "input" else "other", where=path,
            message=f"{kind} {path} is listed in the manifest but is not there", fix="run again, or restore the file",
        )  # fmt: skip
    actual = sha256(data)
    if actual == expected:
        return None
    return Finding(
        code="manifest-changed", severity="error", cause="input" if kind == "input" else "other", where=path,
        message=f"{kind} {path} changed: sha256 {actual[:12]}…, the manifest says {expected[:12]}…",
        fix="run again on the changed input" if kind == "input" else "restore the published file, or run again",
        values={"expected": expected, "actual": actual},
    )  # fmt: skip
