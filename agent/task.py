"""Task prompts (`--task`): placeholders, remarks, demands; and the recognition of inputs that are papers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from agent.files import read_text
from agent.options import RunOptions
from tools.rubric import Constraint, parse_task
from tools.spec.base import ToolError
from tools.spec.conditions import Conditions, InputFile

REMARK = re.compile(r"<<<.*?>>>", re.DOTALL)
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def render_task(text: str, values: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """(the task without `<<<remarks>>>`, placeholders filled in; the placeholders that nothing is known for, left as
    they are).

    Raises ToolError for a remark that is not closed, with its line.
    """
    # Remarks are cut out of whole lines, so line numbers of the rest stay those of the file.
    clean = REMARK.sub(lambda m: "\n" * m.group(0).count("\n"), text)
    for mark in ("<<<", ">>>"):
        if mark in clean:
            raise ToolError(f"task line {1 + clean[: clean.find(mark)].count(chr(10))}: {mark} without its counterpart")
    unknown = tuple(dict.fromkeys(m.group(0) for m in PLACEHOLDER.finditer(clean) if m.group(1) not in values))
    return PLACEHOLDER.sub(lambda m: values.get(m.group(1), m.group(0)), clean), unknown


def load_task(options: RunOptions) -> tuple[str, tuple[str, ...], tuple[Constraint, ...]]:
    """(task with placeholders filled, placeholders nobody knows, its demands); empty without --task."""
    if not options.task:
        return "", (), ()
    path = options.path(options.task)
    text = read_text(path, "--task")
    values = {"knowledge_path": options.knowledge or "the built-in passages", "save_path": "the output directory"}
    filled, unknown = render_task(text, values)
    return filled, unknown, parse_task(filled, path.name)


PAPER_MARKS = (
    r"^\W*abstract\b",
    r"^\W*(references|bibliography)\b",
    r"\bwe (propose|present|introduce)\b",
    r"\barxiv:",
)


def refuse_paper(files: tuple[InputFile, ...], conditions: Conditions) -> None:
    """Refuses a paper that the paper reader does not recognise; conditions that quote a paper are not one."""
    stated = {f.path.split(".")[0] for f in conditions.facts if f.origin == "stated"}
    for f in files:
        marks = [m for m in PAPER_MARKS if re.search(m, f.text, re.IGNORECASE | re.MULTILINE)]
        if len(marks) >= 3 or (len(marks) >= 2 and not {"requirements", "workload"} & stated):
            raise ToolError(
                f"{f.path} reads like a research paper, but not of the form that is read without a language model (headings "
                "Abstract, Method, Experiments; Model, Hardware, Baseline, Proposed): give it these, or write conditions"
            )
