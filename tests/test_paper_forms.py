"""The same paper as Markdown, plain text and PDF; and what is said where a form cannot be read."""

from __future__ import annotations

import builtins
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from agent.reading.paper import is_paper, read_paper
from agent.reading.paper_data import data_block
from agent.reading.pdf import joined
from agent.reading.sources import read_file, unwrapped
from tools.spec.base import ToolError

LINES = """Whole experts on their own devices
Abstract
We propose to keep experts whole and attention data-parallel.
1 Introduction
Slices of experts waste devices.
2 Method
Attention is replicated on every device; every expert lives on one device, and tokens
are exchanged by all-to-all dispatch and combine.
3 Experiments
Model: 24 layers, hidden size 2048, 16 heads of dimension 128, 16 experts, top-2, expert hid-
den size 1408, vocabulary 32000, BF16. Batch size 64, sequence length 1024.
Hardware: 16 H100 GPUs, 8 per node.
Baseline: TP 8 x PP 2 on 16 GPUs.
Proposed: EP 16 on 16 GPUs.
4 Conclusion
It works.
""".splitlines()


def tiny_pdf(lines: list[str]) -> bytes:
    """A PDF of one page, written by hand: catalog, pages, page, content, font."""
    shown = [line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)") for line in lines]
    text = "BT /F1 9 Tf 12 TL 40 800 Td " + " ".join(f"({line}) Tj T*" for line in shown) + " ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>", "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(text)} >>\nstream\n{text}\nendstream", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]  # fmt: skip
    out, offsets = "%PDF-1.4\n", []
    for i, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{i} 0 obj\n{body}\nendobj\n"
    rows = "".join(f"{o:010d} 00000 n \n" for o in offsets)
    at = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{rows}"
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{at}\n%%EOF\n"
    return out.encode("latin-1")


def said(path: Path) -> list[tuple[str, str, int]]:
    file = read_file(path)
    assert is_paper((file,))
    method = read_paper((file,))
    for s in method.strategies:
        assert all(q.quote in file.text for q in s.quotes), "quotes are verbatim in the text that was read"
    return [(s.name, s.strategy.label(), method.model(s.model).spec.moe.intermediate_size) for s in method.strategies]  # type: ignore[union-attr]


WANT = [("baseline", "tp8·pp2·ep1·etp8", 1408), ("proposed", "tp1·attn_dp16·ep16·etp1", 1408)]


@pytest.mark.parametrize("name", ["paper.txt", "paper", "paper.md", "paper.text"])
def test_plain_text_is_read_like_markdown(tmp_path: Path, name: str):
    (tmp_path / name).write_text(joined("\n".join(LINES)))
    got = said(tmp_path / name)
    assert [(n, label.replace("·ep1·etp8", ""), width) for n, label, width in got] == [
        (n, label.replace("·ep1·etp8", ""), width) for n, label, width in WANT
    ]


@pytest.mark.skipif(importlib.util.find_spec("pypdf") is None, reason="the extra meshwright[pdf] is not installed")
def test_a_pdf_is_read_like_text(tmp_path: Path):
    (tmp_path / "paper.pdf").write_bytes(tiny_pdf(LINES))
    (tmp_path / "paper.txt").write_text(joined("\n".join(LINES)))
    assert said(tmp_path / "paper.pdf") == said(tmp_path / "paper.txt")


@pytest.mark.skipif(importlib.util.find_spec("pypdf") is None, reason="the extra meshwright[pdf] is not installed")
@pytest.mark.parametrize(("data", "message"), [(b"%PDF-1.4\nnothing", "broken PDF"), (tiny_pdf([]), "no text")])
def test_a_pdf_without_text_is_refused_in_one_line(tmp_path: Path, data: bytes, message: str):
    (tmp_path / "p.pdf").write_bytes(data)
    with pytest.raises(ToolError, match=message) as caught:
        read_file(tmp_path / "p.pdf")
    assert "\n" not in str(caught.value)


def test_without_the_extra_a_pdf_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def absent(name: str, *args: Any, **more: Any) -> Any:
        if name == "pypdf":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    (tmp_path / "p.pdf").write_bytes(tiny_pdf(LINES))
    with pytest.raises(ToolError, match=r"pip install 'meshwright\[pdf\]'"):
        read_file(tmp_path / "p.pdf")


def test_words_that_a_line_break_cut_are_joined():
    assert joined("paral-\nlelism, top-\n2, TP-\nslices") == "parallelism, top-\n2, TP-\nslices"


def test_a_document_pasted_as_one_code_block_is_read_without_its_marks():
    inside = "# A\n\n## Method\n\n```\nfor g in groups:\n    run(g)\n```\n\n## Experiments\ntext\n"
    shown = unwrapped(f"```\n{inside}```\n")
    assert shown.split("\n")[1 : 1 + inside.count("\n")] == inside.splitlines(), "every line keeps its number"
    assert unwrapped(listing := "```\nkey: 1\nother: 2\n```\n") == listing


def test_entries_of_a_json_block_keep_their_way_and_lines_and_numbered_devices_say_nothing():
    block = """```json
{
  "baseline": {
    "parallel": {"tensor_parallelism": 4, "pipeline_parallelism": 3},
    // more of the same
    "map": {"gpu_0": {"tensor_parallel_rank": 0}, "gpu_1": {"tensor_parallel_rank": 1}}
  },
  "batch_size": 12
}
```""".splitlines()
    found = data_block(block, 0)
    assert found is not None and found[1] == len(block)
    assert [(e.path, e.entries, e.first) for e in found[0]] == [
        (("baseline", "parallel"), (("tensor parallelism", "4"), ("pipeline parallelism", "3")), 3),
        ((), (("batch size", "12"),), 7),
    ]


@pytest.mark.parametrize(
    "block", [["```python", "x = {'a': {'b': 1}}", "```"], ["```", "a: 1", "b: 2", "```"], ["```json"]]
)
def test_code_flat_listings_and_open_fences_are_no_data(block: list[str]):
    assert data_block(block, 0) is None
