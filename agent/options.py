"""What the user asked of a run; kept in the run directory so that `resume` knows it."""

from __future__ import annotations

from pathlib import Path

from agent.files import MARKER, canonical, write_atomic
from tools.spec.base import Frozen, ToolError
from tools.spec.deployment import Objective


class RunOptions(Frozen):
    """Paths are as given, relative to `cwd`. The run directory is not part of it: a moved one resumes."""

    cwd: str
    inputs: tuple[str, ...]
    task: str | None = None
    knowledge: str | None = None
    backend: str = "builtin"
    llm_base_url: str | None = None
    objective: Objective | None = None
    strict: bool = False
    approve: bool = False
    calibration: str | None = None

    def path(self, given: str) -> Path:
        """A path that the user gave, from wherever the process runs now."""
        return Path(self.cwd) / given

    def save(self, run_dir: Path) -> None:
        write_atomic(run_dir / MARKER, canonical(self))


def load_options(run_dir: Path) -> RunOptions:
    """Raises ToolError when `run_dir` is no run directory."""
    path = run_dir / MARKER
    if not path.is_file():
        raise ToolError(f"{run_dir} is not a run directory: it has no {MARKER}")
    try:
        return RunOptions.model_validate_json(path.read_bytes())
    except ValueError as e:
        raise ToolError(f"{path} is damaged: {str(e).splitlines()[0]}") from None
