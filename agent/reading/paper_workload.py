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
    sources: Sequence[Sequence[Passage]], notes: list[str], names: Sequence[str] = ()
) -> tuple[int, tuple[int, ...], int | None, tuple[Fact, ...]]:
    """(batch_size, sequence lengths, output length, the facts): the model's own, else everybody's, the method's, another model's."""
    facts: list[Fact] = []
    values: dict[str, int | None] = {}
    lengths: tuple[int, ...] = ()
    in_tokens = next((t[0] for source in sources if (t := find_workload(source).get("batch_tokens"))), None)
    for name in ("batch_size", "seq_len", "output_len"):
        stated = _by_name(name, names, sources)
        stated = stated or next((s for source in sources if (s := find_workload(source).get(name))), [])
        stated = stated or ([] if in_tokens and name == "batch_size" else _as_conditions(name, sources))
        distinct = list(dict.fromkeys(int(cast(int, s.value)) for s in stated))
        distinct = [v for v in distinct if v % 1024 or v // 1024 * 1000 not in distinct]  # "100K" beside "100,000"
        values[name] = max(distinct) if distinct else None
        lengths = tuple(sorted(distinct)) if name == "seq_len" else lengths
        path = f"workload.{ {'seq_len': 'isl', 'output_len': 'osl'}.get(name, name) }"
        facts += [Fact(path=path, value=s.value, stated_as=s.stated_as, evidence=s.evidence) for s in stated]
        if len(distinct) > 1:
            notes.append(f"{name}: {', '.join(map(str, distinct))} are stated; the graphs are drawn at the largest")
    if in_tokens and values["batch_size"] is None:
        values["batch_size"], lengths = _of_tokens(int(cast(int, in_tokens.value)), lengths, notes)
        values["seq_len"] = max(lengths)
        facts.append(
            Fact(path="workload.batch_size", value=values["batch_size"], stated_as=in_tokens.stated_as,
                 evidence=in_tokens.evidence, origin="derived")
        )  # fmt: skip
    if values["batch_size"] is None:
        notes.append(f"batch_size = {BATCH} assumed: none stated")
    if values["seq_len"] is None:
        notes.append(f"seq_len = {SEQ_LEN} assumed: none stated")
    if values["output_len"] is None:
        notes.append("decode is drawn with seq_len tokens of context: no output length stated")
    return values["batch_size"] or BATCH, lengths or (SEQ_LEN,), values["output_len"], tuple(facts)


_QUANTITY = {
    "batch_size": r"batch(?:[ _-]sizes?|es)?|批(?:大小|量)",
    "seq_len": r"(?:sequence|prompt|input|context)[ _-]lengths?|(?:序列|输入)长度",
    "output_len": r"output[ _-]lengths?|输出长度",
}


def _by_name(name: str, names: Sequence[str], sources: Sequence[Sequence[Passage]]) -> list[Found]:
    """ "Batch sizes: GPT-A = 12, Llama-B = 6": the value that stands beside the model's own name."""
    for p in (p for source in sources for p in source if any(names)):
        for own in filter(None, names):
            m = re.search(
                rf"(?:{_QUANTITY[name]})\b[^.;。；]*?(?<![A-Za-z\d]){re.escape(own)}\s*(?:[=:：]|\()\s*(?P<n>\d+(?:,\d{{3}})*)(?![\d.]*[A-Za-z\d])",
                p.text, re.I,
            )  # fmt: skip
            if m:
                return [Found(name, int(m["n"].replace(",", "")), p.quote(m.start(), m.end()), m[0])]
    return []


def _of_tokens(tokens: int, lengths: tuple[int, ...], notes: list[str]) -> tuple[int, tuple[int, ...]]:
    """(sequences, their length) of a batch that is counted in tokens."""
    length = max(lengths, default=tokens)
    whole, rest = divmod(tokens, length)
    if not lengths:
        notes.append(
            f"the batch is given as {tokens} tokens and no sequence length is: one sequence of {tokens} tokens"
        )
    elif rest:
        notes.append(
            f"a batch of {tokens} tokens is no whole number of sequences of {length}: {max(1, whole)} are drawn"
        )
    else:
        notes.append(f"a batch of {tokens} tokens is {whole} sequences of {length}")
    return max(1, whole), lengths or (tokens,)


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
