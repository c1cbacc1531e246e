"""`read_conditions`: from the text of the inputs to Conditions, deterministically."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from agent.reading import asides
from agent.reading.budget import READ_CHARS, within_budget
from agent.reading.facts import Candidate, Reading
from agent.reading.keys import read_structured
from agent.reading.orders import lines_with_order, order_in, orders_in_comments
from agent.reading.prose import read_statement
from agent.reading.reconcile import reconcile
from agent.reading.segments import Fence, Statement, segment
from agent.reading.structured import Leaf, read_leaves
from knowledge import catalog
from tools.spec.base import ToolError
from tools.spec.conditions import Conditions, InputFile
from tools.units import fold_width


def read_conditions(files: Sequence[InputFile]) -> Conditions:
    """Facts with evidence, conflicts, gaps, ignored parts and flags of all `files` together.

    Raises ToolError for a structured file with a syntax error (with its line), or when no file is given.
    """
    if not files:
        raise ToolError("no input given; pass a conditions file or a folder of them")
    reading = Reading()
    budget = READ_CHARS // max(1, sum(1 for f in files if len(f.text) > READ_CHARS // len(files)))
    for file in files:
        before = len(reading.candidates)
        if file.kind in ("json", "yaml", "toml"):
            reading.order_lines[file.path] = lines_with_order(file.text)
            leaves = _without_orders(read_leaves(file.text, file.kind, file.path), file.path, reading)
            read_structured(leaves, file.path, reading)
            for line, words in orders_in_comments(file.text) if file.kind != "json" else ():
                reading.flag(
                    "prompt-injection", f"{file.path} line {line}: a comment addresses the reader: {words[:100]!r}"
                )
        else:
            _read_text(file.model_copy(update={"text": within_budget(file.text, file.path, budget, reading)}), reading)
        _name_of_config(file, reading.candidates[before:], reading)
    return reconcile(reading)


def _without_orders(leaves: list[Leaf], name: str, reading: Reading) -> list[Leaf]:
    """The leaves whose keys are keys; a key that is an order to the reader takes its value with it."""
    kept = []
    for leaf in leaves:
        order = next((str(k) for k in leaf.path if order_in(fold_width(str(k)))), None)
        if order is None:
            kept.append(leaf)
            continue
        reading.flag("prompt-injection", f"{name} line {leaf.line}: a key addresses the reader: {order[:100]!r}")
        reading.ignore(order, "an instruction to the reader inside the conditions; treated as data")
    return kept


def _read_text(file: InputFile, reading: Reading) -> None:
    statements, fences = segment(file.text, file.path)
    reading.order_lines[file.path] = lines_with_order(file.text)
    sections: dict[tuple[str, ...], list[tuple[Statement, bool]]] = defaultdict(list)
    watched: dict[int, list[Candidate]] = {}
    last: list[Candidate] = []
    for k, statement in enumerate(statements):
        before = {id(c) for c in reading.candidates} if asides.may_be_taken_back(statement) else None
        size = len(reading.candidates)
        said = _read_statement(statement, reading)
        asides.superseded(statement, last, reading)
        last = reading.candidates[size:]
        if before is not None:
            watched[k] = [c for c in reading.candidates if id(c) not in before]
        section = (*statement.context, statement.text) if statement.kind == "heading" else statement.context
        sections[section].append((statement, said))
    asides.take_back(statements, watched, reading)
    for fence in fences:
        _read_fence(fence, file, reading)
    _flag_torn_orders(file, reading)
    _ignore_unused(sections, [f.context for f in fences], reading)


def _read_statement(statement: Statement, reading: Reading) -> bool:
    if statement.kind == "count":
        return _read_count(statement, reading)
    if statement.kind == "listing":
        reading.ignore(statement.text, "the rest of a listing of devices; their kind, number and memory are read")
        return True
    return read_statement(statement, reading)


def _read_count(statement: Statement, reading: Reading) -> bool:
    """Rows of a table or entries of a listing, counted."""
    path, count = statement.raw if isinstance(statement.raw, tuple) else ("", 0)
    reading.candidates.append(
        Candidate(
            path, count, statement.text, statement.file, statement.line, statement.quote, key=statement.text,
            origin="derived", tags=("listed", *(("weak",) if path == "hardware.num_nodes" and count == 1 else ())),
        )
    )  # fmt: skip
    return True


def _flag_torn_orders(file: InputFile, reading: Reading) -> None:
    """Orders that were cut into cells or fields, so that no statement of their line looked like one."""
    lines = file.text.split("\n")
    told = " ".join(f.message for f in reading.flags if f.code == "prompt-injection")
    for number in sorted(reading.order_lines[file.path]):
        if f"{file.path} line {number} " not in told:
            words = " ".join(lines[number - 1].split())[:100]
            reading.flag("prompt-injection", f"{file.path} line {number} addresses the reader: {words!r}")


def _read_fence(fence: Fence, file: InputFile, reading: Reading) -> None:
    """A fenced block is structured if its language says so or it parses; otherwise it is text."""
    body = fence.body.strip()
    languages = {"json": "json", "yaml": "yaml", "yml": "yaml", "toml": "toml", "jsonc": "json"}
    kind = languages.get(fence.language) or ("json" if body[:1] in ("{", "[") else None)
    if kind and body:
        try:
            leaves = [_moved(leaf, fence.line - 1) for leaf in read_leaves(fence.body, kind, file.path)]
            read_structured(leaves, file.path, reading, fence.context)
            return
        except ToolError as error:
            reading.flag(
                "broken-block", f"the {kind} block at line {fence.line} does not parse ({error}); read as text"
            )
    padded = InputFile(path=file.path, sha256=file.sha256, text="\n" * (fence.line - 1) + fence.body, kind="text")
    for statement in segment(padded.text, file.path)[0]:
        _read_statement(statement, reading)


def _moved(leaf: Leaf, lines: int) -> Leaf:
    return Leaf(leaf.path, leaf.value, leaf.line + lines, leaf.quote)


def _ignore_unused(
    sections: dict[tuple[str, ...], list[tuple[Statement, bool]]], fenced: list[tuple[str, ...]], reading: Reading
) -> None:
    """A section without any fact is ignored as a whole; elsewhere the sentences that state nothing are, one by one."""
    for section, entries in sections.items():
        body = [(s, said) for s, said in entries if s.kind != "heading"]
        if not any(said for _, said in body) and len(section) > 0 and section not in fenced:
            if body:
                text = " ".join(body[0][0].text.split())
                title = f"{section[-1]}: {text}"[:100] if len(body) == 1 and text else section[-1]
                reading.ignore(title, "a section that states nothing the plan depends on")
            continue
        for statement, said in body:
            text = " ".join(statement.text.split())
            if not said and any(ch.isalnum() for ch in text):
                reading.ignore(text if len(text) <= 100 else text[:97] + "...", "states nothing the plan depends on")


def _name_of_config(file: InputFile, candidates: list[Candidate], reading: Reading) -> None:
    """A bare config.json has its model's name in its path ("Llama-3-70B/config.json")."""
    config = [c for c in candidates if "config" in c.tags]
    if not config or any(c.path == "model.name" for c in reading.candidates):
        return
    path = Path(file.path)
    for name in (path.parent.name, path.stem):
        found = catalog.find_models_in_text(name)
        if found:
            first = config[0]
            reading.candidates.append(
                Candidate(
                    "model.name",
                    name,
                    name,
                    first.file,
                    first.line,
                    first.quote,
                    key="file name",
                    origin="derived",
                    tags=(f"id={found[0][3]}",),
                )
            )
            return
