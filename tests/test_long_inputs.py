"""Inputs of a hundred pages: cut where sections end, read part by part, each quote found where it stands."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import nodes
from agent.loop import Outcome
from agent.mcp_server import input_of
from agent.reading import read_conditions
from agent.reading.parts import in_parts
from agent.submissions import Facts, SubmittedFact, check_facts

PAGE = "Notes of the meeting that decide nothing and mention no amount at all. " * 40


def handbook() -> str:
    pages = [f"# Section {i}\n\n{PAGE}\n\n{PAGE}\n" for i in range(100)]
    pages[3] += "The cluster has 8 H100 GPUs in one node.\n"
    pages[96] += "We serve Llama-3.1-8B with an input length of 1000 tokens and an output length of 200.\n"
    return "\n".join(pages)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="ab #.\n1", max_size=60), max_size=40), st.integers(5, 200))
def test_parts_are_the_whole_in_order_and_within_the_limit(lines: list[str], limit: int) -> None:
    text = "\n".join(["x", *lines])
    f = input_of(text)
    parts = in_parts([f], limit, len)
    if len(text) <= limit:
        assert [p.files for p in parts] == [(f,)]
        return
    whole = text.splitlines(keepends=True)
    covered: list[int] = []
    for p in parts:
        assert p.files[0].text == "".join(whole[p.first - 1 : p.last])
        assert len(p.files[0].text) <= limit or p.last == p.first
        covered += range(p.first, (p.last or 0) + 1)
    assert covered == sorted(set(covered))
    assert all(not whole[i - 1].strip() for i in set(range(1, len(whole) + 1)) - set(covered))


def test_cuts_are_at_headings() -> None:
    parts = in_parts([input_of(handbook())], 20_000, len)
    assert len(parts) > 20
    assert all(p.files[0].text.startswith("# Section") for p in parts)


@pytest.mark.parametrize("name", ["gpt", "builtin"])
def test_a_long_file_is_read_part_by_part(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    f = input_of(handbook())
    conditions = read_conditions((f,))
    asked: list[str] = []

    async def answer(step, conversation):
        asked.append(step.user)
        return Outcome(Facts(), "gpt")

    monkeypatch.setattr(nodes, "converse", answer)
    conversation = SimpleNamespace(backend=SimpleNamespace(name=name), context_tokens=12_000, log=None)
    asyncio.run(nodes.fill_gaps((f,), conditions, conversation))
    if name == "builtin":
        assert len(asked) == 1
        return
    assert len(asked) > 10
    assert all("Section" in text and f"part {i + 1} of {len(asked)}" in text for i, text in enumerate(asked))
    assert sum("8 H100 GPUs" in text for text in asked) == 1
    assert max(len(text) for text in asked) < len(f.text) / 4


def test_a_quote_is_cited_where_it_stands() -> None:
    f = input_of("first\nWorkload: input length 1000 tokens\nWe have 8 H100 GPUs\n")
    conditions = read_conditions((input_of("nothing here"),))
    said = SubmittedFact(path="workload.isl", value=1000, file=f.path, line=1, quote="input length 1000 tokens")
    found = check_facts([said], conditions, (f,))
    assert [x.evidence.line for x in found.taken if x.evidence] == [2]
    absent = said.model_copy(update={"quote": "input length 1,000"})
    assert check_facts([absent], conditions, (f,)).rejected[0][1] == f"the quote is not in {f.path}"


def test_two_quotes_that_disagree_are_a_conflict_and_a_quote_without_the_value_loses() -> None:
    f = input_of("We have 8 H100 GPUs in one node.\nAppendix: the cluster has 16 H100 GPUs.\n")
    conditions = read_conditions((input_of("We have 8 H100 GPUs in one node.\n"),))
    said = SubmittedFact(
        path="hardware.num_devices", value=16, file=f.path, line=2, quote="the cluster has 16 H100 GPUs"
    )
    found = check_facts([said], conditions, (f,))
    assert not found.taken and found.conflicts[0].values == (8, 16) and found.conflicts[0].resolution == 8
    unsupported = tuple(
        x.model_copy(update={"evidence": x.evidence.model_copy(update={"quote": "in one node"})})
        if x.path == "hardware.num_devices" and x.evidence else x
        for x in conditions.facts
    )  # fmt: skip
    found = check_facts([said], conditions.model_copy(update={"facts": unsupported}), (f,))
    assert [x.value for x in found.taken] == [16] and found.conflicts[0].resolution == 16
