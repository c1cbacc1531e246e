"""The rules on foreign DOT: a corpus of right and wrong files in several dialects, and mutations of our own."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dag import DENSE, SPARSE, dag

from tools.dag.check_dot import check_dot
from tools.dag.dot import to_dot
from tools.dag.facts import devices_in, plain, ports_in, repeats_in
from tools.dag.parse import parse_dot

DOTS = Path(__file__).parent / "data" / "dots"
RIGHT, WRONG = sorted((DOTS / "right").glob("*.dot")), sorted((DOTS / "wrong").glob("*.dot"))
OURS = to_dot(dag(SPARSE, tp=2, attn_dp=2, ep=4))
DENSE_PP = to_dot(dag(DENSE, tp=2, pp=2))


def failed(text: str) -> set[str]:
    return {r.rule for report in check_dot(text, "x") for r in report.failed}


@pytest.mark.parametrize("path", RIGHT, ids=lambda p: p.stem)
def test_a_right_file_breaks_no_rule(path):
    for report in check_dot(path.read_text(), path.name):
        assert report.ok, [(r.rule, r.message) for r in report.failed] + [s.message for s in report.syntax]
        assert report.num_nodes > 5


@pytest.mark.parametrize("path", WRONG, ids=lambda p: p.stem)
def test_a_wrong_file_breaks_the_rule_it_is_named_after_and_says_where(path):
    (report,) = check_dot(path.read_text(), path.name)
    rule = path.stem.split("_")[0]
    if rule == "syntax":
        assert report.syntax and report.syntax[0].line >= 1
        return
    (hit,) = [r for r in report.failed if r.rule == rule]
    assert hit.violations[0].line and hit.violations[0].fix
    assert all("\n" not in f.message for f in report.findings())


def test_the_corpus_has_a_wrong_file_for_every_rule_that_a_file_can_show():
    assert {p.stem.split("_")[0] for p in WRONG} - {"syntax"} == {f"R{i:02}" for i in range(1, 22)} - {
        "R13",
        "R16",
        "R17",
        "R18",
    }


def cut(text: str, pattern: str, replacement: str = "", count: int = 1) -> str:
    out, n = re.subn(pattern, replacement, text, count=count, flags=re.MULTILINE)
    assert n, pattern
    return out


Q0, NORM0 = r"s0_l1_q_proj__g0", r"s0_l1_input_norm__g0"
MUTATIONS = {
    "R01 a compute node on two devices": ("R01", OURS, rf"({Q0} \[label=\"[^\"]*?)GPU 0 ", r"\1GPU 0,1 "),
    "R01 no GPU on the label": ("R01", OURS, rf"({Q0} \[label=\"[^\"]*?)GPU 0 · ([^\]]*\][^;]*?), gpu=\"0\"", r"\1\2"),
    "R01 no box around the lane": ("R01", OURS, r"^ +bb=.*\n", ""),
    "R02 an edge into another lane": ("R02", OURS, rf"({NORM0} -> {Q0[:-1]})0 ", r"\g<1>1 "),
    "R03 a dim changes on an edge": ("R03", DENSE_PP, r"(s0_l0_q_rope__g0 \[[^;]*?Input: q_proj=\[[^\]]*heads=)4",
    r"\g<1>2"),
    "R04 no input dims": ("R04", OURS, rf"({Q0} \[label=\"[^\"]*?)Input: [^\]]*\]", r"\1"),
    "R04 no Global for a split dim": ("R04", OURS, rf"({Q0} \[label=\"[^\"]*?)\\nGlobal: [^\]]*\]", r"\1"),
    "R05 a collective as a box": ("R05", OURS, r"(all_reduce__g0 \[[^;]*shape=)ellipse", r"\1box"),
    "R05 a gate as an ellipse": ("R05", OURS, r"(expert_ids__g0 \[[^;]*shape=)parallelogram", r"\1ellipse"),
    "R06 an edge leads back": ("R06", OURS, r"^\}",
    f"  s0_l1_q_rope__g0 -> {NORM0} [label=q_rope, tensor=q_rope];\n}}"),
    "R07 a second input": ("R07", OURS, rf"^ +\S+ -> {Q0} .*\n", ""),
    "R07 a dead end": ("R07", OURS, r"^ +s0_head_sample__g0 -> .*\n", ""),
    "R08 a residual add with one input": ("R08", DENSE_PP,
    r"^ +s0_embed_embed_all_reduce__g0 -> s0_l0_attn_residual__g0 .*\n", ""),
    "R09 a solid selection": ("R09", OURS, r"(expert_ids\S* -> \S*dispatch__g0 \[[^;]*)style=dashed", r"\1style=solid"),
    "R10 two operators in one node": ("R10", OURS, rf"({Q0} \[[^;]*operator=\")q_proj · matmul",
    r"\1q_proj matmul + rope"),
    "R11 no repetition": ("R11", DENSE_PP, r", repeats=\"3\"|^ +repeats=\"3\";\n|^ +label=\"layers.*\n", "", 0),
    "R12 all GPUs on a computation": ("R12", OURS, rf"({Q0} \[label=\"[^\"]*?)GPU 0 ", r"\1all GPUs "),
    "R12 all GPUs on half the world": ("R12", DENSE_PP, r"(s0_embed_embed_all_reduce__g0 \[label=\"[^\"]*?)GPU 0,1",
    r"\1all GPUs"),
    "R14 an island": ("R14", OURS, r"^\}", "  a [shape=box]; b [shape=box]; a -> b [label=t];\n}"),
    "R15 dims differ along an edge": ("R15", OURS, rf"({Q0} \[label=\"[^\"]*?Output: q_proj=\[[^\]]*)heads=\d+",
    r"\1heads=3"),
    "R15 an edge without its tensor": ("R15", OURS, rf"(-> {Q0} \[)label=[^,]*, tensor=[^,]*,", r"\1"),
    "R19 a layer too few": ("R19", DENSE_PP, r"layer_indices=\"3-5\"", 'layer_indices="3-4"', 0),
    "R19 an operator missing on one device": ("R19", DENSE_PP,
    r"^ +s0_l0_act__g1 \[.*\n|^ +s0_l0_act__g1 -> .*\n|^ +.* -> s0_l0_act__g1 .*\n", "", 0),
    "R20 no module path": ("R20", OURS, rf"({Q0} \[label=\"[^\"\\]*)\\n[^\"\\]*(\\n[^;]*), module=\"[^\"]*\"", r"\1\2"),
    "R21 a computation regroups the batch": ("R21", OURS,
    rf"({Q0} \[label=\"[^\"]*?Output: q_proj=\[batch_size=)\d+", r"\g<1>5"),
    "R21 a reduction over different items": ("R21", OURS, r"(o_proj_all_reduce__g0 \[[^;]*batch_items=\")0:8,0:8",
    r"\g<1>0:8,8:16"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_our_own_dag_with_one_thing_broken_fails_that_rule(name):
    rule, text, pattern, replacement, *count = MUTATIONS[name]
    assert failed(text) == set()
    assert rule in failed(cut(text, pattern, replacement, *count))


@pytest.mark.parametrize(
    ("text", "nodes", "edges"),
    [
        ("digraph { a -> b -> c }", 3, 2),
        ("digraph { a -> {b c} -> d }", 4, 4),
        ('digraph "x y" { "a b":n -> c:sw; c [label=<x<br/>y>] }', 2, 1),
        ("graph g { a -- b }", 2, 1),
        ("strict DiGraph { node [shape=box] a; a -> b // c -> d\n /* e -> f */\n# g -> h\n}", 2, 1),
        ('digraph { a [label="x" + "y"]; -1.5 -> .5; é -> b }', 5, 2),
        ("digraph { subgraph cluster_a { label=A; a; subgraph cluster_b { b } } a -> b }", 2, 1),
        ("text before\n```dot\ndigraph { a -> b }\n```\ntext after", 2, 1),
        ("digraph { a=b; rankdir=LR; edge [style=dashed]; a -> b [dir=none][color=red]; { rank=same; a; b } }", 2, 1),
    ],
)
def test_dot_dialects(text, nodes, edges):
    (graph,) = parse_dot(text)
    assert (len(graph.nodes), len(graph.edges), graph.problems) == (nodes, edges, [])


def test_defaults_reach_nodes_and_edges_of_their_scope_only():
    (g,) = parse_dot(
        "digraph { node [shape=box] a; subgraph s { node [shape=ellipse]; edge [style=dashed]; b; b -> a } c; a -> c }"
    )
    assert [g.nodes[n].attrs["shape"] for n in "abc"] == ["box", "ellipse", "box"]
    assert [e.attrs.get("style") for e in g.edges] == ["dashed", None]


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("digraph {\n a -> ;\n}", 2, "node"),
        ("digraph {\n a [x=;\n}", 2, "value"),
        ("digraph {\n a\n", 3, "missing }"),
        ("digraph {\n ]\n}", 2, "statement"),
    ],
)
def test_syntax_errors_have_line_and_reason(text, line, word):
    problem = parse_dot(text)[0].problems[0]
    assert problem.line == line and word in problem.message


@given(st.text(alphabet='digraph{}[]->=;,"<>\\\n ab#/*+:1.é', max_size=80))
@settings(max_examples=300, deadline=None)
def test_no_text_crashes_the_checker(text):
    for t in (text, "digraph {" + text + "}"):
        assert check_dot(t, "x")


def test_deep_nesting_is_an_error_not_a_crash():
    (report,) = check_dot("digraph {" + "{" * 5000 + "}" * 5000 + "}", "x")
    assert any("nested" in s.message for s in report.syntax)


def test_ten_megabytes_are_read_in_seconds():
    rows = "".join(
        f'n{i} [label="matmul\\nGPU {i % 8}\\nInput: [a={i}], Output: [b=2]"];\nn{i} -> n{i + 1} [label=x];\n'
        for i in range(100_000)
    )
    start = time.process_time()
    (graph,) = parse_dot("digraph {" + rows + "}")
    assert len(graph.edges) == 100_000 and time.process_time() - start < 10


MEGABYTE = 1_000_000
HOSTILE = {
    "angle brackets": "digraph {" + "<" * MEGABYTE + "}",
    "labels that never end": "digraph {\n" + "a [label=<x;\n" * (MEGABYTE // 13) + "}",
    "an open comment": "digraph { /*" + "*" * MEGABYTE + " }",
    "stray slashes": "digraph { " + "/ " * (MEGABYTE // 2) + " }",
    "a label of brackets": 'digraph { a [label="' + "[(" * (MEGABYTE // 2) + '"]; }',
    "one long word": 'digraph { a [label="' + "a" * MEGABYTE + '"]; }',
    "a sum of strings": 'digraph { a [label="x"' + ' + "y"' * (MEGABYTE // 6) + "]; }",
    "ranges of devices": 'digraph { a [label="GPU ' + ",".join(f"{3 * i}-{3 * i + 90_000}" for i in range(900)) + '"]; }',
    "a product of groups": "digraph { {" + " ".join(f"a{i}" for i in range(1500)) + "} -> {"
    + " ".join(f"b{i}" for i in range(1500)) + "} }",
    "heads without bodies": "digraph {" * (MEGABYTE // 9),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_no_megabyte_keeps_the_checker_busy(name):
    start = time.process_time()
    reports = check_dot(HOSTILE[name], "x")
    assert reports and all(len(r.syntax) <= 101 for r in reports)
    assert time.process_time() - start < 8


def test_a_file_with_too_many_nodes_is_not_judged_and_says_so():
    (report,) = check_dot("digraph { " + " ".join(f"n{i};" for i in range(200_001)) + " }", "x")
    assert {r.status for r in report.results} == {"not_decidable"} and "200,001 nodes" in report.results[0].message


WORDS = st.sampled_from(
    ["digraph {", "subgraph cluster_0 {", "}", "a", "b", "->", "--", "[", "]", "label=", '"GPU 0\\nInput: [batch_size=4], "',
     '"Output: x=[h=3"', "<<b>x</b>>", "<", ";", "shape=record", '"{a|<p> b}"', ":", "n", "=", '"', "\\", "// x\n", "/*",
     "gpu=0", 'repeats="99999999999"', 'layer_indices="9-1,3-"', 'sizes="a=1"', "layers.0.q", "全部 GPU", "\x00", "×3"]
)  # fmt: skip


@given(st.lists(WORDS, max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_mixture_of_dot_and_label_pieces_crashes_the_checker(pieces):
    for t in (" ".join(pieces), "digraph { a [label=x] " + " ".join(pieces) + "}"):
        for report in check_dot(t, "x"):
            assert all("\n" not in f.message for f in report.findings())


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("GPU 3", {3}),
        ("GPU: 0,1, 2", {0, 1, 2}),
        ("GPUs 0-3", {0, 1, 2, 3}),
        ("[GPU0] and GPU1", {0, 1}),
        ("rank_5", {5}),
        ("卡 2", {2}),
        ("no device", None),
    ],
)
def test_devices_are_read_as_people_write_them(text, devices):
    assert devices_in(text) == (None if devices is None else frozenset(devices))


def test_dims_are_read_with_and_without_brackets_and_names():
    assert [str(p) for p in ports_in("q=[batch_size=8, d_k=128]; [hidden=64]")] == [
        "q=[batch_size=8, d_k=128]",
        "[hidden=64]",
    ]
    assert [str(p) for p in ports_in("batch_size=8, hidden=64")] == ["[batch_size=8, hidden=64]"]
    assert [str(p) for p in ports_in("\\[batch\\_size=8\\]".replace("\\", ""))] == ["[batch_size=8]"]
    assert plain("<<B>a</B><BR/>x &amp; y>") == "a\nx & y"


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("layers 0-3 × 4", 4),
        ("×80", 80),
        ("x 12", 12),
        ("repeat 61 times", 61),
        ("16 ×", 16),
        ("× 2 identical replicas", None),
        ("matmul", None),
    ],
)
def test_repetitions_are_read_as_people_write_them(text, n):
    assert repeats_in(text) == n
