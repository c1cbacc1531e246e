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
from tools.dag.facts import devices_in, plain, ports_in, repeats_in, view
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


@pytest.mark.parametrize(
    ("body", "line", "column", "message", "fix"),
    [
        ('  a [label="x, shape=box];\n  b [label="y"];\n', 2, 12, "unterminated string", 'close it with "'),
        ('  a [label="say "hello" now"];\n', 2, 17, 'a " inside a string', '\\"'),
        ('  a [label: "x"];\n', 2, 6, "needs = and a value", "= instead of :"),
        ('  a [label="x";\n  b [label="y"];\n', 2, 5, "attribute list without ]", "]"),
        ("  a [label=“x”];\n", 2, 12, "typographic quotes", 'straight quotes: "'),
        ("  a [label='x'];\n", 2, 12, "single quotes", "double quotes"),
        ("  a → b;\n", 2, 5, "arrow", "->"),
        ("  a => b;\n", 2, 6, "no edge is written so", "->"),
        ("  a -- b;\n", 2, 5, "edges are -> in a digraph", "write ->"),
        ("  q-proj -> b;\n", 2, 4, "unexpected character", "needs quotes"),
        ("  node -> a;\n", 2, 3, "keyword", '"node"'),
        ("  a -> b;\n  ...\n", 3, 3, "ellipsis", "× n"),
        ("  **a** -> b;\n", 2, 3, "Markdown", "//"),
        ("  a [color=#ff0000];\n", 2, 12, "a colour with # needs quotes", '"#ff0000"'),
        ("  a\x00b -> c;\n", 2, 4, "NUL", "UTF-8"),
        ("  /* a -> b;\n", 2, 3, "never ends", "*/"),
    ],
)
def test_broken_syntax_is_told_once_with_line_column_and_the_way_out(body, line, column, message, fix):
    (report,) = check_dot("digraph g {\n" + body + "}", "x.dot")
    first = report.syntax[0]
    assert (first.line, first.column) == (line, column) and message in first.message and fix in first.fix
    assert sum(s.line == line for s in report.syntax) == 1, "what follows on the line is the same error"
    assert report.findings()[0].where == f"x.dot:{line}:{column}"


def test_a_lost_bracket_or_quote_costs_its_own_statement_only():
    (bracket,) = parse_dot('digraph {\n a [label="x";\n b [label="y"];\n a -> b;\n}')
    (quote,) = parse_dot('digraph {\n a [label="x];\n b [label="y"];\n a -> b;\n}')
    assert all(g.nodes["b"].attrs["label"] == "y" and len(g.edges) == 1 for g in (bracket, quote))


def test_a_graph_in_two_fences_is_read_on_behind_the_second():
    (g,) = parse_dot("```dot\ndigraph {\n a -> b\n```\nand then\n```dot\n b -> c\n}\n```\n")
    assert g.nodes.keys() == set("abc") and "fence" in g.problems[0].message


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("cuda:{0,1}", {0, 1}),
        ("ranks 0 & 1", {0, 1}),
        ("GPU[0..3]", {0, 1, 2, 3}),
        ("dev:0|1", {0, 1}),
        ("GPU #0,#1", {0, 1}),
        ("位于3号卡", {3}),
        ("send from GPU 0 to GPU 3", {0, 3}),
        ("H100 80GB", None),
    ],
)
def test_device_groups_are_read_in_many_spellings(text, devices):
    assert devices_in(text) == (None if devices is None else frozenset(devices))


DIMS = ("[batch_size=2, hidden=64]", "{batch_size: 2, hidden: 64}", "tensor<batch_size=2 x hidden=64 x bf16>",
"bf16[batch_size=2,hidden=64]", "(batch_size=2, hidden=128/2)", "batch_size=2, hidden=64", "batch_size=2 hidden=64")  # fmt: skip


@pytest.mark.parametrize("dims", DIMS)
def test_the_same_dims_are_read_from_every_notation(dims):
    assert [p.dims for p in ports_in(dims)] == [(("batch_size", "2"), ("hidden", "64"))]


LINES = {
    "colon": "Input: {i}\nOutput: {o}",
    "no colon": "In x{i}\nOut y{o}",
    "arrow": "{i} -> {o}",
    "bullets": "- **Input Dimension**: `{i}`\n- **Output Dimension**: `{o}`",
    "emoji": "📥 Input: {i}\n📤 Output: {o}",
    "Chinese": "输入为{i}\n输出为{o}",
    "compiler": "ins(%x: {i})\nouts(%y: {o})",
    "cells": "in x: {i}\nout y: {o}",
}


@pytest.mark.parametrize("form", LINES)
def test_what_goes_in_and_comes_out_is_read_in_many_forms(form):
    label = "Linear\nGPU 0\n" + LINES[form].format(i="[batch_size=2, hidden=64]", o="[batch_size=2, ffn=256]")
    n = view(parse_dot(f'digraph {{ a [label="{label}"] }}')[0]).nodes["a"]
    assert n.operator == "Linear" and n.devices == {0}
    assert [p.dims for p in (*n.inputs, *n.outputs)] == [
        (("batch_size", "2"), ("hidden", "64")),
        (("batch_size", "2"), ("ffn", "256")),
    ]


def _chain(label: str, boxes: str, count: int = 4) -> str:
    nodes = "".join(f'subgraph cluster_{i} {{ label="{boxes.format(i)}"; n{i} [label="{label.format(i)}", shape=box] }}\n'
    for i in range(count))  # fmt: skip
    return "digraph {" + nodes + "".join(f"n{i} -> n{i + 1};" for i in range(count - 1)) + "}"


def test_a_word_that_stands_with_a_number_on_most_nodes_is_what_the_file_calls_its_devices():
    v = view(parse_dot(_chain("Linear\\nWorker {0}", "Worker {0}"))[0])
    assert [v.nodes[f"n{i}"].devices for i in range(4)] == [{0}, {1}, {2}, {3}]
    assert v.places.names({2}) == "WORKER 2"
    v = view(parse_dot(_chain("Linear {0}", "Layer {0}"))[0])
    assert all(n.devices is None for n in v.nodes.values()), "a layer is no device"


def test_a_device_may_be_a_pair_of_coordinates():
    nodes = "".join(f'n{t}{p} [label="Linear\\nTP{t}/PP{p}"];' for p in (0, 1) for t in (0, 1))
    v = view(parse_dot(f'digraph {{ {nodes} s [label="All-Reduce\\nPP1"] }}')[0])
    assert len({v.nodes[n].devices for n in ("n00", "n10", "n01", "n11")}) == 4
    assert v.nodes["s"].devices == v.nodes["n01"].devices | v.nodes["n11"].devices


def test_hosts_that_each_count_their_devices_from_zero_have_different_devices():
    box = 'subgraph cluster_n{0} {{ label="Node {0}"; subgraph cluster_n{0}g0 {{ label="GPU 0"; a{0} [label="Linear\\nGPU 0"] }} }}'
    v = view(parse_dot(f"digraph {{ {box.format(0)} {box.format(1)} a0 -> a1 }}")[0])
    assert v.nodes["a0"].devices != v.nodes["a1"].devices
    assert v.places.names(v.nodes["a1"].devices) == "node 1 GPU 0"


def test_keys_that_only_this_file_uses_are_known_by_their_values_and_the_edges():
    label = "Linear | Z=[b=2, h={0}] | A=[b=2, h={1}] | M=model.layers.{0}.up"
    text = "digraph {" + "".join(f'n{i} [label="{label.format(i, i + 1)}"]; n{i} -> n{i + 1};' for i in range(5))
    v = view(parse_dot(text + 'n5 [label="' + label.format(5, 6) + '"] }')[0])
    assert [str(p) for p in v.nodes["n3"].inputs] == ["[b=2, h=3]"] and [str(p) for p in v.nodes["n3"].outputs] == [
        "[b=2, h=4]"
    ]
    assert v.nodes["n3"].module == "model.layers.3.up"


def test_what_no_node_of_a_file_says_is_told_once():
    (report,) = check_dot(_chain("Linear", "box"), "x")
    told = {r.rule: (r.total, r.message) for r in report.failed}
    assert told["R20"] == (1, "none of the 4 nodes carries a module path")
    assert told["R01"] == (1, "none of the 4 nodes names a device, and no cluster does")


def test_sizes_in_a_form_that_nobody_knows_are_undecidable_not_missing():
    (report,) = check_dot(_chain("Linear\\neats b=2 h=4 makes b=2 f=8", "GPU {0}"), "x")
    (dims,) = [r for r in report.results if r.rule == "R04"]
    assert dims.status == "not_decidable" and "write `Input: […], Output: […]`" in dims.message


def _told(text: str) -> dict[str, list[str]]:
    (report,) = check_dot(text, "x")
    out: dict[str, list[str]] = {}
    for f in report.findings():
        out.setdefault(f.code, []).append(f.message)
    return out


def _drawn(*nodes: str, edges: str = "") -> str:
    return "digraph g {\n" + "\n".join(nodes) + f"\n{edges}\n}}"


def test_one_habit_is_one_finding_with_its_count_and_an_example():
    nodes = [f'a{i} [label="Linear\\nGPU: 0-3\\nInput: [8, 64]\\nOutput: [8, 64]", shape=ellipse]' for i in range(30)]
    told = _told(_drawn(*nodes, edges=" -> ".join(f"a{i}" for i in range(30))))
    assert told["R05"] == ["a0: 'Linear' is drawn as ellipse, not as rectangle (box) (and 29 more: a1, a2, a3, …)"]
    assert len(told["R01"]) == len(told["R04"]) == len(told["R15"]) == 1
    assert told["R15"] == ["none of the 29 edges names its tensor, e.g. a0 → a1"]


@pytest.mark.parametrize(
    "said", ["GPU: 0 → 1", "GPU: GPU0→GPU1", "GPU 0 (to GPU 1)", "GPU: 0 -> 1", "From GPU 0 to GPU 1"]
)
def test_a_transfer_names_both_of_its_ends(said):
    nodes = [f'a{i} [label="Linear\\nGPU: {i}", shape=box]' for i in (0, 1)]
    text = _drawn(*nodes, f'c [label="Send/Recv\\n{said}", shape=ellipse]', edges='a0 -> c -> a1 [label="x"]')
    assert "R02" not in _told(text)
    only = _told(text.replace(said, "GPU: 0"))
    assert only["R02"] == ["c (GPU 0) → a1 (GPU 1): c names one end of the transfer only"]


@pytest.mark.parametrize("both", ["[b=2, h=4] x2", "[b=2, h=4]×2", "2×[b=2, h=4]", "[b=2, h=4]; [b=2, h=4]"])
def test_tensors_of_one_shape_may_be_written_once_with_their_number(both):
    text = f'digraph {{ r [label="Residual Add\\nInput: {both}\\nOutput: [b=2, h=4]", shape=box] a -> r; b -> r }}'
    n = view(parse_dot(text)[0]).nodes["r"]
    assert [str(p) for p in n.inputs or ()] == ["[b=2, h=4]"] * 2 and n.repeats is None


def test_a_single_list_of_dims_on_most_nodes_cannot_be_input_and_output():
    nodes = [f'a{i} [label="Linear\\nGPU: {i}\\n[batch_size=2, hidden=64]", shape=box]' for i in range(6)]
    (said,) = _told(_drawn(*nodes, edges="a0 -> {a1 a2 a3 a4 a5}"))["R04"]
    assert said.startswith("a0: its one list of dims does not say whether it goes in or comes out (and 5 more")


def test_a_layer_that_one_device_is_drawn_with_twice_is_found_without_the_word_layer():
    def block(i: int) -> list[str]:
        return [f'{op}{i} [label="{said}\\nGPU: 0", shape=box]'
                for op, said in (("n", "LayerNorm"), ("a", "Scores MatMul"), ("f", "FC1 Linear"))]  # fmt: skip

    chain = "n0 -> a0 -> f0 -> n1 -> a1 -> f1"
    told = _told(_drawn(*block(0), *block(1), edges=chain))["R11"]
    assert told == ["n1: the 3 operators from n0 to f0 are drawn again (2 times on GPU 0)"]
    beside = "s -> {n0 n1}; n0 -> a0 -> f0; n1 -> a1 -> f1"
    assert "R11" not in _told(
        _drawn('s [label="Split\\nGPU: 0", shape=parallelogram]', *block(0), *block(1), edges=beside)
    )


def test_a_box_of_several_devices_is_no_lane():
    nodes = 'a [label="Linear\\nGPU: 2", shape=box] b [label="GELU\\nGPU: 3", shape=box]'
    text = f'digraph {{ subgraph cluster_s {{ label="Stage 0 (GPUs 0-3)"; {nodes} }} a -> b }}'
    assert _told(text)["R01"] == ["a: lies in a box of GPU 0,1,2,3, not in a lane of its own (and 1 more: b)"]


def test_words_that_a_broken_line_leaves_behind_are_not_judged_as_nodes():
    good = 'a [label="Linear\\nGPU 0", shape=box]\nb [label="GELU\\nGPU 0", shape=box]'
    told = _told(f'digraph {{\n{good}\nparts = [f"p_{{i}}" for i in range(4)]\na -> b [label="x"]\n}}')
    assert "dot-syntax" in told and "R14" not in told
    assert all(not m.startswith(("f:", "for:", "i:")) for said in told.values() for m in said)


def test_the_gate_inside_one_expert_chooses_nobody():
    experts = [f'g{i} [label="Expert {i} Gate\\nGPU {i}", shape=box]' for i in (0, 1)]
    ups = [f'u{i} [label="Expert {i} Up-Proj\\nGPU {i}", shape=box]' for i in (0, 1)]
    router = 't [label="Top-2 Gating\\nGPU 0", shape=parallelogram]'
    text = _drawn(router, *experts, *ups, edges="t -> {g0 g1} [style=dashed]; g0 -> u0; g1 -> u1")
    assert "R09" not in _told(text)
    assert len(_told(text.replace(" [style=dashed]", ""))["R09"]) == 1, "one cause, one finding"


def test_a_misspelt_name_is_told_with_the_node_that_it_was_meant_for():
    text = 'digraph { tin [label="Total Input"]; q_proj_l0 [label="Q Linear"]; out [label="Total Output"]; tin -> qproj_l0 -> out }'
    told = {f.code: (f.message, f.fix) for f in check_dot(text, "x")[0].findings()}
    assert told["R07"] == (
        "q_proj_l0: has neither predecessor nor successor",
        "connect it or remove it; the edges name qproj_l0, which is defined nowhere",
    )


def test_an_undefined_node_is_told_once_as_undefined_not_as_drawn_in_the_wrong_shape():
    nodes = [
        f'{n} [label="{op}\\nInput: [b=2]\\nOutput: [b=2]\\nGPU: 0", shape=box]'
        for n, op in (("a", "Linear"), ("b", "GELU"))
    ]
    told = _told(_drawn(*nodes, edges="a -> expert_1 -> b"))
    assert told["R04"] == ["expert_1: only edges name it, no statement defines it"]
    assert not any("expert_1" in said for rule in ("R05", "R09", "R10") for said in told.get(rule, ()))


def test_a_part_of_a_block_is_no_split_unless_drawn_as_one():
    text = _drawn(
        'a [label="MLP Partition 3\\nGPU: 0", shape=box]', 'b [label="Linear\\nGPU: 0", shape=box]', edges="a -> b"
    )
    told = _told(text)
    assert "R05" not in told and told["R10"] == ["a: 'MLP Partition 3' is a block of operators"]
    drawn = _told(text.replace('3\\nGPU: 0", shape=box', '3\\nGPU: 0", shape=parallelogram'))
    assert "R05" not in drawn and "R10" not in drawn


@pytest.mark.parametrize("said", ["GPU0 Attn with KV0", "Layer 1 GPU0 Ring Attention", "Attn Stage 2"])
def test_attention_under_its_short_name_or_behind_its_layer_is_a_block(said):
    told = _told(
        _drawn(f'a [label="{said}\\nGPU: 0", shape=box]', 'b [label="Linear\\nGPU: 0", shape=box]', edges="a -> b")
    )
    assert [m.split(": ")[0] for m in told["R10"]] == ["a"]
    own = _told(
        _drawn('a [label="Attn scores\\nGPU: 0", shape=box]', 'b [label="Linear\\nGPU: 0", shape=box]', edges="a -> b")
    )
    assert "R10" not in own


@pytest.mark.parametrize("said", ["(B×L×8192→B×L×4)", "(B × L × 8192 -> B × L × 4)"])
def test_a_product_in_brackets_alone_on_its_line_is_dims_without_names(said):
    n = view(parse_dot(f'digraph {{ a [label="Expert Gate\\n{said}"] }}')[0]).nodes["a"]
    assert ([str(p) for p in n.inputs or ()], [str(p) for p in n.outputs or ()]) == (["[B, L, 8192]"], ["[B, L, 4]"])
    mesh = view(parse_dot('digraph { a [label="Linear (8×8×2 mesh)\\n(TP×DP)"] }')[0]).nodes["a"]
    assert mesh.inputs is None and mesh.lists == 0


def test_a_residual_add_of_a_group_drawn_as_an_ellipse_is_still_a_computation():
    nodes = ['a [label="Linear\\nGPU: 0,1", shape=box]', 'r [label="Residual Add\\nGPU: 0,1", shape=ellipse]',
             'b [label="Linear\\nGPU: 0,1", shape=box]']  # fmt: skip
    assert any(
        m.startswith("r: 'Residual Add' is drawn as ellipse") for m in _told(_drawn(*nodes, edges="a -> r -> b"))["R05"]
    )


def test_how_many_devices_are_joined_is_no_device():
    nodes = [f'a{i} [label="Linear\\nGPU: {i}", shape=box]' for i in range(4)]
    nodes.append('c [label="Concatenate Group 0\\n4 devices → 1", shape=parallelogram]')
    assert any(m.startswith("c: names no GPU") for m in _told(_drawn(*nodes, edges="{a0 a1 a2 a3} -> c"))["R01"])
