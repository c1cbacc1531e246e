"""A language model beside the paper reader: it fills gaps and reads free forms, and nothing unquoted comes in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from agent.events import EventLog, read_events
from agent.llm.profiles import make_backend
from agent.loop import Conversation
from agent.paper_accept import accept, covered, follows, numbers_in
from agent.paper_llm import read_with
from agent.paper_submission import PaperSubmission, Reading
from agent.reading.paper import read_paper
from agent.reading.sources import input_from_text
from tests.fake_openai import serving
from tools.spec.base import ToolError
from tools.spec.conditions import Evidence, InputFile
from tools.spec.strategy import Strategy

PAPER = """# Whole experts

## Abstract
We propose to keep experts whole.

## Method
Attention runs data-parallel; every expert lives on one device.

## Experiments
Model: 4 layers, hidden size 64, 4 heads × 16, 4 experts, top-2, expert hidden size 96, BF16. Batch size 16, sequence length 32.
The words are drawn from a lexicon of 256 symbols.
Hardware: 4 H100.
Baseline: TP 2 × PP 2 on 4 devices.
Proposed: EP 4 on 4 devices.
"""
FREE = """Notes on a serving layout

People ask how we serve our little network. It is sixteen blocks deep and 1024 wide; it attends with 8 heads.
The inner width of a block is 4096. Requests come 4 at a time and are 512 words long.
Four accelerators are ours. So far, all four of them shared every matrix (TP 4).
Now each accelerator runs four blocks and hands on what it computed: a chain of 4.
"""


def file_of(text: str) -> InputFile:
    return input_from_text(text, "p.md")


def line_of(text: str, words: str) -> dict[str, Any]:
    n = next(i for i, line in enumerate(text.splitlines(), 1) if words in line)
    return {"line": n, "quote": words}


def submitted(text: str = PAPER, **parts: Any) -> Reading:
    file = file_of(text)
    found = accept(PaperSubmission.model_validate(parts), file, read_paper((file,)), "")
    assert found is not None
    return found


def strategy(role: str, degrees: dict[str, Any], *quotes: dict[str, Any], model: str = "") -> dict[str, Any]:
    return {"model": model, "role": role, "degrees": degrees, "quotes": list(quotes)}


FREE_SUBMISSION = {
    "models": [{"name": "little", "facts": [
        {"name": "num_hidden_layers", "value": 16, **line_of(FREE, "sixteen blocks deep")},
        {"name": "hidden_size", "value": 1024, **line_of(FREE, "1024 wide")},
        {"name": "num_attention_heads", "value": 8, **line_of(FREE, "8 heads")},
        {"name": "intermediate_size", "value": 4096, **line_of(FREE, "inner width of a block is 4096")},
        {"name": "batch_size", "value": 4, **line_of(FREE, "4 at a time")},
        {"name": "isl", "value": 512, **line_of(FREE, "512 words long")},
        {"name": "vocab_size", "value": 99999, **line_of(FREE, "People ask")},
    ]}],
    "hardware": [{"path": "hardware.num_devices", "value": 4, **line_of(FREE, "Four accelerators")}],
    "strategies": [
        strategy("baseline", {"tp": 4}, line_of(FREE, "(TP 4)")),
        strategy("proposed", {"pp": 4}, line_of(FREE, "a chain of 4")),
    ],
}  # fmt: skip


def test_a_gap_is_filled_by_a_quoted_fact_and_the_readers_own_facts_stand():
    where = line_of(PAPER, "a lexicon of 256 symbols")
    wrong = {"name": "hidden_size", "value": 4, **line_of(PAPER, "4 layers, hidden size 64")}
    found = submitted(models=[{"name": "moe-4l", "facts": [{"name": "vocab_size", "value": 256, **where}, wrong]}])
    (model,) = found.method.models
    assert model.spec.vocab_size == 256 and model.spec.hidden_size == 64
    (conflict,) = found.method.conditions.conflicts
    assert (conflict.values, conflict.resolution) == ((64, 4), 64)


@pytest.mark.parametrize(
    ("fact", "why"),
    [
        ({"name": "vocab_size", "value": 256, "line": 11, "quote": "a vocabulary of 256"}, "is not on line"),
        ({"name": "vocab_size", "value": 512, **line_of(PAPER, "a lexicon of 256 symbols")}, "does not follow"),
        ({"name": "intermediate_size", "value": 64, **line_of(PAPER, "hidden size 64")}, "no such part"),
    ],
)
def test_a_fact_without_a_quote_that_carries_it_is_refused(fact: dict[str, Any], why: str):
    found = submitted(models=[{"name": "moe-4l", "facts": [fact]}])
    assert found.method.models == read_paper((file_of(PAPER),)).models
    assert len(found.rejected) == 1 and why in found.rejected[0][1]


def test_strategies_that_are_quoted_and_laid_out_come_in_beside_the_readers():
    also = strategy("baseline", {"tp": 4}, line_of(PAPER, "4 devices"))
    found = submitted(strategies=[also])
    assert [(s.name, s.strategy.tp) for s in found.method.of("moe_4l", "baseline")] == [
        ("baseline", 2),
        ("baseline_2", 4),
    ]
    for degrees, quote in (
        ({"tp": 8}, "4 devices"),
        ({"tp": 3}, "4 devices"),
        ({"cp": 64}, "hidden size 64"),
        ({"wp": 4}, "4 devices"),
    ):
        found = submitted(strategies=[strategy("proposed", degrees, line_of(PAPER, quote))])
        assert found.rejected and found.method.strategies == read_paper((file_of(PAPER),)).strategies


def test_where_both_read_the_proposed_method_the_quotes_decide():
    found = submitted(strategies=[strategy("proposed", {"tp": 4, "ep": 4}, line_of(PAPER, "EP 4 on 4 devices"))])
    (kept,) = found.method.of("moe_4l", "proposed")
    assert kept.strategy.attn_dp == 4, "the reader's quotes carry its degrees, so that it stands"
    assert len(found.method.conditions.conflicts) == 1


@pytest.mark.parametrize(
    ("strategy", "quote", "share"),
    [
        (Strategy(tp=8, pp=2), "TP 8 and PP 2", 1.0), (Strategy(tp=8, pp=2), "TP 8 on 16 devices", 1.0),
        (Strategy(tp=8, pp=2), "TP 8", 0.5), (Strategy(tp=8, pp=4), "on some devices", 0.0), (Strategy(), "one device", 1.0),
    ],
)  # fmt: skip
def test_degrees_that_stand_in_the_quotes(strategy: Strategy, quote: str, share: float):
    assert covered(strategy, [Evidence(file="f", line=1, quote=quote)]) == share


def test_what_follows_from_a_quote():
    assert numbers_in("4K tokens, 16,384 and thirty-two") >= {4096, 4000, 16384, 32}
    assert follows("fp16", "half precision") and follows("bf16", "bfloat16") and not follows("fp8", "bf16")
    assert follows("NVIDIA H100", "on NVIDIA-H100 cards") and not follows(7, "17 layers")


def test_a_free_form_that_the_reader_cannot_read_is_read_from_quotes_alone():
    file = file_of(FREE)
    with pytest.raises(ToolError):
        read_paper((file,))
    found = accept(PaperSubmission.model_validate(FREE_SUBMISSION), file, None, "no model")
    assert found is not None
    (model,) = found.method.models
    assert (model.spec.num_hidden_layers, model.spec.hidden_size, model.batch_size, model.seq_len) == (16, 1024, 4, 512)
    assert model.spec.vocab_size == 32000 and any(p == "model.vocab_size" for p, _ in found.rejected)
    assert {s.name: (s.strategy.tp, s.strategy.pp) for s in found.method.strategies} == {
        "baseline": (4, 1),
        "proposed": (1, 4),
    }
    nothing = PaperSubmission.model_validate({**FREE_SUBMISSION, "strategies": []})
    with pytest.raises(ToolError, match="proposed strategy"):
        accept(nothing, file, None, "no model")


def answering(submission: dict[str, Any]) -> Any:
    """A language model that hands in one submission for the paper, and does as the policy does elsewhere."""

    def behaviour(n: int, body: dict[str, Any]) -> Any:
        names = [t["function"]["name"] for t in body.get("tools", [])]
        if "submit_paper" not in names:
            return None
        call = {"name": "submit_paper", "arguments": json.dumps(submission)}
        return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": call}]}

    return behaviour


def read_by(text: str, submission: dict[str, Any] | None, tmp_path: Path) -> Reading:
    async def work(url: str) -> Reading:
        backend = make_backend("openai:fake", url)
        try:
            return await read_with((file_of(text),), Conversation(backend, EventLog(tmp_path / "events.jsonl")))
        finally:
            await backend.close()

    with serving(answering(submission) if submission is not None else None) as (url, seen):
        found = asyncio.run(work(url))
        assert seen and "BEGIN INPUT p.md" in json.dumps(seen[0])
    return found


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")


def test_a_served_model_reads_a_free_form_and_its_unquoted_fact_is_logged(tmp_path: Path):
    found = read_by(FREE, FREE_SUBMISSION, tmp_path)
    assert found.by != "builtin" and found.degraded is None
    assert found.method.of("little", "proposed")[0].strategy.pp == 4
    assert [e["path"] for e in read_events(tmp_path / "events.jsonl") if e["event"] == "fact_rejected"] == [
        "model.vocab_size"
    ]


def test_a_served_model_that_adds_nothing_changes_nothing(tmp_path: Path):
    found = read_by(PAPER, {"remarks": "fine"}, tmp_path)
    assert found.method == read_paper((file_of(PAPER),))


def test_a_served_model_that_makes_things_up_is_outvoted_and_the_reader_answers(tmp_path: Path):
    lies = {
        "models": [{"name": "x", "facts": []}],
        "strategies": [strategy("proposed", {"tp": 4}, {"line": 1, "quote": "TP 4"})],
    }
    with pytest.raises(ToolError, match="no proposed strategy"):
        read_by(FREE, lies, tmp_path)
    found = read_by(PAPER, lies, tmp_path)
    assert found.method.strategies == read_paper((file_of(PAPER),)).strategies and found.rejected


def test_a_free_form_paper_becomes_proven_dags_with_a_served_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from typer.testing import CliRunner

    from agent.cli import app

    free = FREE.replace("Notes on", "Abstract\nWe propose notes on").replace("People ask", "arXiv:1 People ask")
    (tmp_path / "free.md").write_text(free)
    lines = FREE_SUBMISSION | {}
    moved = json.loads(
        json.dumps(lines).replace('"line": ', '"line": 9')
    )  # wrong lines are put right where words are unique
    monkeypatch.chdir(tmp_path)
    with serving(answering(moved)) as (url, _):
        done = CliRunner().invoke(
            app, ["plan", "free.md", "--out", "run", "--backend", "openai:fake", "--llm-base-url", url, "--json"]
        )
    assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "proven" and manifest["degraded"] == []
    assert sum(a["kind"] == "dag_dot" for a in manifest["artifacts"]) == 4


UNREAD = PAPER.replace(
    "Proposed: EP 4 on 4 devices.", "Proposed: TP 2 for all, PP 2, cut once behind 3 layers, so that 1 comes after."
)


@pytest.mark.parametrize(
    ("degrees", "taken"),
    [
        ({"tp": 2, "pp": 2, "layers_per_stage": [3, 1]}, {"layers_per_stage": (3, 1)}),
        ({"tp": 2, "pp": 1, "dp": 2}, {"layers_per_stage": None, "pp": 2}),  # shows nothing of the 3 layers either
    ],
)
def test_a_reading_that_shows_the_numbers_that_the_reader_left_unread_takes_its_place(
    degrees: dict[str, Any], taken: dict[str, Any]
):
    (own,) = [s for s in read_paper((file_of(UNREAD),)).strategies if s.role == "proposed"]
    assert [f.values for f in own.findings] == [{"numbers": [3]}] and covered(own.strategy, own.quotes) >= 1
    quote = line_of(UNREAD, "TP 2 for all, PP 2, cut once behind 3 layers, so that 1 comes after")
    found = submitted(UNREAD, strategies=[strategy("proposed", degrees, quote)])
    (used,) = found.method.of(own.model, "proposed")
    assert {k: getattr(used.strategy, k) for k in taken} == taken
    assert [c.path for c in found.method.conditions.conflicts] == ["paper.moe_4l.strategy.proposed"], (
        "the disagreement is told"
    )
