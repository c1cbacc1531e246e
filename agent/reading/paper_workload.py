"""Batch, sequence and output lengths of a paper: by its own patterns, else as the conditions' reader has them."""

# ruff: noqa: E501  (a message reads better unbroken)

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import cast

from agent.reading.paper_shapes import Found, find_workload
from agent.reading.paper_text import Passage
from agent.reading.sources import input_from_text
from tools.spec.base import ToolError
from tools.spec.conditions import Fact

SEQ_LEN, BATCH = 4096, 1
"""Assumed where a paper does not say; each use is noted."""


def read_workload(
    sources: Sequence[Sequence[Passage]], notes: list[str]
) -> tuple[int, tuple[int, ...], int | None, tuple[Fact, ...]]:
    """(batch_size, sequence lengths, output length, the facts): the model's own, else everybody's, the method's, another model's."""
    facts: list[Fact] = []
    values: dict[str, int | None] = {}
    lengths: tuple[int, ...] = ()
    for name in ("batch_size", "seq_len", "output_len"):
        stated = next((s for source in sources if (s := find_workload(source).get(name))), [])
        stated = stated or _as_conditions(name, sources)
        distinct = list(dict.fromkeys(int(cast(int, s.value)) for s in stated))
        values[name] = max(distinct) if distinct else None
        lengths = tuple(sorted(distinct)) if name == "seq_len" else lengths
        path = f"workload.{ {'seq_len': 'isl', 'output_len': 'osl'}.get(name, name) }"
        facts += [Fact(path=path, value=s.value, stated_as=s.stated_as, evidence=s.evidence) for s in stated]
        if len(distinct) > 1:
            notes.append(f"{name}: {', '.join(map(str, distinct))} are stated; the graphs are drawn at the largest")
    if values["batch_size"] is None:
        notes.append(f"batch_size = {BATCH} assumed: none stated")
    if values["seq_len"] is None:
        notes.append(f"seq_len = {SEQ_LEN} assumed: none stated")
    if values["output_len"] is None:
        notes.append("decode is drawn with seq_len tokens of context: no output length stated")
    return values["batch_size"] or BATCH, lengths or (SEQ_LEN,), values["output_len"], tuple(facts)


_IN_CONDITIONS = {
    "batch_size": ("workload.batch_size", "workload.concurrency"),
    "seq_len": ("workload.isl", "workload.seq_len_max", "workload.max_context"),
    "output_len": ("workload.osl",),
}


def _as_conditions(name: str, sources: Sequence[Sequence[Passage]]) -> list[Found]:
    """What the conditions' reader finds: "ISL 1024 / OSL 256", "256 users", "1500 tokens in, 500 out"."""
    for source in sources:
        for path in _IN_CONDITIONS[name]:
            for p in source:
                if len(p.cells) > 2 or not re.search(r"\d", p.text):
                    continue
                fact = next((f for f in _conditions(p) if f.path == path and isinstance(f.value, int)), None)
                if fact is not None and isinstance(fact.value, int) and fact.value > 0:
                    return [Found(name, fact.value, p.quote(), fact.stated_as or str(fact.value))]
    return []


@lru_cache(maxsize=512)
def _conditions(p: Passage) -> tuple[Fact, ...]:
    """Facts of one passage, read as conditions; none where they cannot be read."""
    from agent.reading.reader import read_conditions

    said = "\n".join(f"{title}: {cell}" for title, cell in p.cells) or p.text
    if len(p.cells) == 2:  # a list of values: name, value
        said = f"{p.cells[0][1]}: {p.cells[1][1]}"
    try:
        facts = read_conditions((input_from_text(said, "passage.txt"),)).facts
    except ToolError:
        return ()
    return tuple(f for f in facts if f.origin == "stated" and f.evidence)
