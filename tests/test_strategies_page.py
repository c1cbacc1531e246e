"""docs/strategies.md is what the code says, and its formulas are what the graphs move."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from tools.spec.strategy import Strategy

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
from make_strategies import PAGE  # noqa: E402
from strategies_page import graphs, pictures  # noqa: E402
from strategies_page.examples import ENTRIES  # noqa: E402
from strategies_page.page import command, page  # noqa: E402

BY_ID = {e.id: e for e in ENTRIES}


@pytest.mark.parametrize("name", BY_ID)
def test_a_formula_equals_what_the_collectives_move(name: str) -> None:
    program = graphs.program_of(BY_ID[name])
    assert graphs.predicted(BY_ID[name], program) == graphs.measured(BY_ID[name], program)


def test_messages_between_groups_carry_each_chosen_token_and_each_head_once() -> None:
    """Counted by hand: a decode step of 64 tokens to 2 experts each, there and back; half of a pool's ranks hold what they
    need only in part."""
    apart, pool = (graphs.program_of(BY_ID[n]) for n in ("apart", "attn_pool"))
    assert graphs.travelled(apart, graphs.layer_of(BY_ID["apart"], apart)) == (2 * 64 * 2 * 4096, 0)
    away, stay = graphs.travelled(pool, graphs.layer_of(BY_ID["attn_pool"], pool))
    assert away + stay == 8 * 1024 * 128 * (8 + 8 + 32 + 32)
    assert stay == (away + stay) / 4  # rank 0 alone keeps its first half


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python docs/make_strategies.py --write`"


@pytest.mark.parametrize("name", BY_ID)
def test_every_section_has_a_picture_of_its_devices(name: str) -> None:
    svg = ET.parse(pictures.IMAGES / f"{name}.svg").getroot()
    titles = "".join(svg.itertext())
    for gpu in range(graphs.devices_of(BY_ID[name])):
        group = r"(?:(?:attention|experts|pool|decode pool)(?: \+ pool)? · )?"
        assert re.search(rf"GPU {gpu} · {group}stage", titles), gpu


@pytest.mark.parametrize("name", BY_ID)
def test_a_picture_has_every_collective_of_the_layer(name: str) -> None:
    """Condensing merges nodes; it may not lose one."""
    e = BY_ID[name]
    dag = pictures.picture(e)
    drawn = [t.strip() for n in dag.nodes if n.role == "comm" for p in n.inputs for t in p.tensor.split(",")]
    said = [p.inputs[0].split("@")[0] for p in graphs.collectives(graphs.layer_of(e, graphs.program_of(e)))]
    assert {t.split("@")[0].split("(")[0] for t in drawn} >= set(said)
    assert bool(dag.edges) == bool(drawn)  # replicas have nothing to say to each other
    assert {x.src for x in dag.edges} | {x.dst for x in dag.edges} <= {n.id for n in dag.nodes}
    assert len({n.id for n in dag.nodes}) == len(dag.nodes)


@pytest.mark.parametrize("name", BY_ID)
def test_what_is_to_be_typed_is_the_strategy(name: str) -> None:
    """The options or the file on the page, read back, give the strategy of the example."""
    lines = command(BY_ID[name])
    if "```yaml" in lines:
        data = yaml.safe_load("\n".join(lines[lines.index("```yaml") + 1 : -1]))
        if BY_ID[name].decode is not None:
            assert Strategy.model_validate(data.pop("decode")) == Strategy.model_validate(BY_ID[name].decode)
            data = data.pop("prefill")
        said = Strategy.model_validate(data)
    else:
        words = lines[0].strip("`").split()[4:]
        degrees: dict[str, object] = {}
        for i, w in enumerate(words):
            if w.startswith("--"):
                degrees[w[2:].replace("-", "_")] = (
                    int(words[i + 1]) if i + 1 < len(words) and words[i + 1].isdigit() else True
                )
        said = Strategy.model_validate(degrees)
    assert said == graphs.strategy_of(BY_ID[name])
