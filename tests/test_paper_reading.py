"""Papers are recognised, and read into the strategies they describe, with the words each rests on."""

# ruff: noqa: E501  (tables of examples read better unbroken)

from __future__ import annotations

from pathlib import Path

import pytest

from agent.reading.paper import is_paper, read_paper
from agent.reading.paper_degrees import parse_degrees
from agent.reading.paper_text import read_paper_text, whole
from agent.reading.sources import input_from_text, read_file
from tools.partition.lower import lower
from tools.spec.base import Refused, ToolError
from tools.spec.paper import PaperMethod

DATA = Path(__file__).parent / "data"
OPEN = DATA / "papers"
OWN = OPEN / "own"


def read(path: Path) -> PaperMethod:
    return read_paper((read_file(path),))


def labels(method: PaperMethod, model: str) -> dict[str, str]:
    moe = method.model(model).spec.moe is not None
    return {s.name: s.strategy.label(moe=moe) for s in method.of(model)}


# ------------------------------------------------------------------------------------------------------ the open papers


def test_ulysses_on_sixteen_devices_against_tensor_and_pipeline_parallelism():
    m = read(OPEN / "ulysses_dense_16l.md")
    (model,) = m.models
    spec = model.spec
    assert (spec.num_hidden_layers, spec.hidden_size, spec.vocab_size, spec.weight_dtype) == (16, 4096, 32000, "bf16")
    assert (spec.attention.num_heads, spec.attention.num_kv_heads, spec.attention.head_dim) == (32, 32, 128)
    assert spec.moe is None and spec.mlp is not None
    assert (spec.mlp.intermediate_size, spec.mlp.gated, spec.mlp.activation) == (16384, False, "gelu")
    assert (model.batch_size, model.seq_len) == (16, 65536)
    baseline, proposed = m.of(model.key)
    assert (baseline.strategy.tp, baseline.strategy.pp, baseline.strategy.layers_per_stage) == (8, 2, (8, 8))
    assert (proposed.strategy.cp, proposed.strategy.cp_kind, proposed.strategy.tp) == (16, "ulysses", 1)
    assert baseline.num_devices == proposed.num_devices == 16
    hardware = {f.path: f.value for f in m.conditions.under("hardware.")}
    assert hardware["hardware.device"] == "h100_sxm_80gb"
    assert (
        hardware["hardware.num_nodes"],
        hardware["hardware.devices_per_node"],
        hardware["hardware.num_devices"],
    ) == (2, 8, 16)
    assert hardware["hardware.inter_node_bandwidth"] == 50e9, "400 Gb/s are 50 GB/s"


def test_one_expert_per_device_for_two_models_the_second_described_by_the_first():
    m = read(OPEN / "large_ep_two_models.md")
    a, b = m.models
    assert (a.name, b.name, a.batch_size, b.seq_len) == ("Model A", "Model B", 128, 4096)
    for spec in (a.spec, b.spec):
        assert (spec.num_hidden_layers, spec.hidden_size, spec.attention.num_heads, spec.weight_dtype) == (
            16,
            4096,
            32,
            "fp16",
        )
        assert spec.moe is not None and not spec.moe.gated, "the paper's experts have two matrices"
    assert a.spec.moe and b.spec.moe and b.spec.mlp
    assert (
        a.spec.moe.num_experts,
        a.spec.moe.top_k,
        a.spec.moe.intermediate_size,
        a.spec.moe.shared_intermediate_size,
    ) == (16, 2, 16384, 0)
    assert (
        b.spec.moe.num_experts,
        b.spec.moe.top_k,
        b.spec.moe.intermediate_size,
        b.spec.moe.shared_intermediate_size,
    ) == (64, 6, 2048, 4096)
    assert b.spec.moe_layers == (False,) + (True,) * 15 and b.spec.mlp.intermediate_size == 16384
    assert a.spec.moe_layers is None and a.spec.vocab_size == 32000
    assert any("vocab_size = 32000 assumed" in n for n in a.notes), "what is assumed is said"
    assert labels(m, "model_a") == {"baseline": "tp8·pp2", "proposed": "tp1·attn_dp16·ep16·etp1"}
    assert labels(m, "model_b") == {"baseline": "tp8·pp2", "proposed": "tp1·attn_dp64·ep64·etp1"}
    assert [s.num_devices for s in m.of("model_b")] == [16, 64], "a baseline on 16 of 64 devices is right"
    baseline = m.of("model_a", "baseline")[0].strategy
    assert (baseline.ep, baseline.etp) == (1, 8), "all experts on every group, sliced by TP"


@pytest.mark.parametrize("path", [*sorted(OPEN.glob("*.md")), *sorted(OWN.glob("*.md"))], ids=lambda p: p.stem)
def test_every_quote_stands_where_it_is_said_to(path: Path):
    try:
        m = read(path)
    except Refused as e:
        assert str(path) in str(e) and " line " in str(e), "a refusal names the passage"
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    quotes = [f.evidence for f in m.conditions.facts if f.evidence] + [q for s in m.strategies for q in s.quotes]
    assert quotes
    for q in quotes:
        there = "\n".join(lines[q.line - 1 : q.line + q.quote.count("\n")])
        assert q.quote.strip() in there


# ------------------------------------------------------------------------------------------------------- other papers

EXPECTED: dict[str, dict[str, tuple[str, int]]] = {
    "tp_pp": {"dense_32l/baseline": ("tp8·dp4", 32), "dense_32l/proposed": ("tp8·pp4", 32)},
    "ep_several": {
        "moe_24l/baseline": ("tp8·pp2", 16), "moe_24l/baseline_2": ("tp16", 16), "moe_24l/proposed": ("tp1·attn_dp16·ep16·etp1", 16),
    },
    "ring_zh": {"dense_32l/baseline": ("tp8", 8), "dense_32l/proposed": ("tp1·cp8", 8)},
    "ring_sp": {
        "dense/baseline": ("tp8·pp2", 16), "dense/proposed": ("tp1·cp16", 16), "moe/baseline": ("tp8·pp2", 16), "moe/proposed": ("tp1·cp16", 16),
    },
    "two_level": {"dense_4l/baseline": ("tp8·pp2", 16), "dense_4l/proposed": ("tp16·dk4", 16)},
    "zh_table": {"dense_16l/baseline": ("tp8·pp2", 16), "dense_16l/proposed": ("tp16·dk4", 16)},
    "layerwise": {
        "dense/baseline": ("tp8·pp2", 16), "dense/proposed": ("tp1·pp16", 16), "moe/baseline": ("tp8·pp2", 16), "moe/proposed": ("tp1·pp16", 16),
    },
    "sp_meg": {"dense_24l/baseline": ("tp8", 8), "dense_24l/proposed": ("tp8·sp", 8)},
    "dp_ep": {
        "small/baseline": ("tp8", 8), "small/proposed": ("tp1·attn_dp16·ep16·etp1", 16),
        "large/baseline": ("tp8·pp4", 32), "large/proposed": ("tp4·attn_dp8·ep32·etp1", 32),
    },
    "published": {"llama_3_8b/baseline": ("tp8", 8), "llama_3_8b/proposed": ("tp1·cp8", 8)},
    "compare": {
        "dense_40l/baseline": ("tp8·pp2", 16), "dense_40l/baseline_2": ("tp8·dp2", 16), "dense_40l/baseline_3": ("tp2·cp8", 16),
        "dense_40l/proposed": ("tp2·cp8", 16),
    },
    "zh_ep": {
        "model_a/baseline": ("tp8·pp2", 16), "model_a/proposed": ("tp1·attn_dp16·ep16·etp1", 16),
        "model_b/baseline": ("tp8·pp4", 32), "model_b/proposed": ("tp1·attn_dp32·ep32·etp1", 32),
    },
    "uneven": {"dense_32l/baseline": ("tp1·pp4", 4), "dense_32l/proposed": ("tp1·pp4", 4)},
    "moe_cols": {
        "moe_s/baseline": ("tp8", 8), "moe_s/proposed": ("tp4·attn_dp2·ep8·etp1", 8),
        "moe_l/baseline": ("tp8·pp4", 32), "moe_l/proposed": ("tp4·attn_dp8·ep32·etp1", 32),
    },
    "words": {
        "model_s/baseline": ("tp8·pp2", 16), "model_s/proposed": ("tp1·cp16", 16),
        "model_l/baseline": ("tp8·pp2", 16), "model_l/proposed": ("tp1·cp16", 16),
    },
    "tp_vs": {"dense_12l/baseline": ("tp1·pp8", 8), "dense_12l/proposed": ("tp8", 8)},
    "ep_orig": {"moe_16l/baseline": ("tp8·pp2", 16), "moe_16l/proposed": ("tp1·attn_dp16·ep16·etp1", 16)},
    "hybrid": {"dense_48l/baseline": ("tp8·pp2", 16), "dense_48l/baseline_2": ("tp16", 16), "dense_48l/proposed": ("tp8·cp2", 16)},
    "listed": {
        "m1/baseline": ("tp8·pp2", 16), "m1/proposed": ("tp4·attn_dp4·ep16·etp1", 16),
        "m2/baseline": ("tp8·pp2", 16), "m2/proposed": ("tp4·attn_dp4·ep16·etp1", 16),
    },
    "zh_tp_pp": {"dense_40l/baseline": ("tp8·dp4", 32), "dense_40l/proposed": ("tp8·pp4", 32)},
    "decode_cp": {"dense_16l/baseline": ("tp8", 8), "dense_16l/proposed": ("tp8·dcp4", 8)},
    "dsv3": {"deepseek_v3/baseline": ("tp8·pp4", 32), "deepseek_v3/proposed": ("tp1·attn_dp32·ep32·etp1", 32)},
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_strategies_of_a_paper(name: str):
    file = read_file(OWN / f"{name}.md")
    assert is_paper((file,))
    m = read_paper((file,))
    got = {}
    for s in m.strategies:
        moe = m.model(s.model).spec.moe is not None
        got[f"{s.model}/{s.name}"] = (s.strategy.label(moe=moe), s.num_devices)
        assert s.strategy.num_devices == s.num_devices, "read degrees take the devices that the paper gives"
        assert s.quotes, "a strategy rests on words"
    assert got == EXPECTED[name]


@pytest.mark.parametrize(
    ("name", "model", "batch", "seq_len", "kv_len"),
    [
        ("tp_pp", "dense_32l", 32, 8192, 8448), ("ep_several", "moe_24l", 64, 2048, 2048), ("ring_zh", "dense_32l", 8, 131072, 131072),
        ("zh_ep", "model_a", 64, 2048, 2048), ("words", "model_s", 4, 32768, 32768), ("dp_ep", "small", 256, 4096, 4608),
        ("ep_orig", "moe_16l", 128, 10000, 10000), ("published", "llama_3_8b", 4, 32768, 32768), ("compare", "dense_40l", 2, 65536, 65536),
        ("zh_table", "dense_16l", 128, 10000, 10000), ("tp_vs", "dense_12l", 8, 1024, 1152),
    ],
)  # fmt: skip
def test_workload_of_a_paper(name: str, model: str, batch: int, seq_len: int, kv_len: int):
    m = read(OWN / f"{name}.md").model(model)
    assert (m.batch_size, m.seq_len, m.kv_len) == (batch, seq_len, kv_len)


def test_shapes_from_tables_prose_and_chinese():
    table = read(OWN / "ep_several.md").model("moe_24l").spec
    assert (table.num_hidden_layers, table.hidden_size, table.attention.num_kv_heads, table.vocab_size) == (
        24,
        2048,
        4,
        151936,
    )
    assert table.moe and (table.moe.num_experts, table.moe.top_k, table.moe.intermediate_size, table.moe.gated) == (
        64,
        8,
        1024,
        True,
    )
    columns = read(OWN / "moe_cols.md")
    assert (
        columns.model("moe_s").spec.moe.intermediate_size == 1408 and columns.model("moe_l").spec.vocab_size == 100_000
    )
    prose = read(OWN / "tp_pp.md").model("dense_32l").spec
    assert (prose.attention.num_kv_heads, prose.mlp.intermediate_size, prose.mlp.gated, prose.norm) == (
        8,
        14336,
        True,
        "rmsnorm",
    )
    chinese = read(OWN / "zh_ep.md").model("model_b").spec
    assert chinese.moe and (chinese.moe.num_experts, chinese.moe.top_k, chinese.moe.shared_intermediate_size) == (
        32,
        4,
        4096,
    )
    assert chinese.moe_layers and chinese.moe_layers.count(False) == 1 and chinese.attention.head_dim == 128
    assert read(OWN / "tp_vs.md").model("dense_12l").spec.mlp.activation == "relu"
    assert read(OWN / "dsv3.md").model("deepseek_v3").spec.attention.mla is not None, (
        "a published model is the catalogue's"
    )


def test_ring_and_exchange_are_told_apart():
    assert read(OWN / "ring_zh.md").of("dense_32l", "proposed")[0].strategy.cp_kind == "ring"
    compare = read(OWN / "compare.md")
    assert compare.of("dense_40l", "proposed")[0].strategy.cp_kind == "ring", "the method passes keys and values around"
    assert compare.of("dense_40l", "baseline")[2].strategy.cp_kind == "ulysses"
    assert read(OWN / "words.md").of("model_s", "proposed")[0].strategy.cp_kind == "ulysses"


def test_batch_is_shared_by_replicas_and_stages_keep_their_depth():
    assert read(OWN / "tp_pp.md").of("dense_32l", "baseline")[0].strategy.batch == 8, "32 sequences over 4 replicas"
    assert read(OWN / "uneven.md").of("dense_32l", "proposed")[0].strategy.layers_per_stage == (7, 9, 9, 7)
    assert read(OWN / "layerwise.md").of("dense", "proposed")[0].strategy.layers_per_stage == (1,) * 16


def test_devices_that_do_not_fit_the_degrees_are_a_finding_with_both_numbers():
    s = read(OWN / "contradict.md").of("dense_8l", "proposed")[0]
    assert (s.strategy.tp, s.num_devices, [f.code for f in s.findings]) == (8, 12, ["paper-devices"])
    assert s.findings[0].values == {"read": 8, "stated": 12}


def test_groups_regimes_and_pools_are_read():
    apart = read(OWN / "separation.md").of("moe_16l", "proposed")[0].strategy
    assert (apart.attn_dp, apart.expert_devices, apart.num_devices) == (8, 24, 32)
    above, below = read(OWN / "pool.md").of("dense_4l", "proposed")
    assert (above.strategy.tp, above.strategy.attn_pool, above.strategy.pool_above, above.seq_len) == (8, 8, 4096, 8192)
    assert (below.strategy.attn_pool, below.num_devices, below.seq_len) == (0, 8, 4096)
    prefill, decode = read(OWN / "pd.md").of("dense_16l", "proposed")
    assert (prefill.phases, decode.phases) == (
        ("prefill",),
        ("decode",),
    ) and prefill.strategy.tp == decode.strategy.tp == 8
    slices = read(OWN / "tokenpipe.md").of("dense_16l", "proposed")[0]
    assert (slices.strategy.pp, slices.strategy.seq_slices) == (8, 8)
    assert any("number of slices is not said" in n for n in slices.notes), "what is assumed is said"


def test_what_cannot_be_represented_is_refused_with_its_passage():
    path = OPEN / "wordings" / "fsdp.md"
    with pytest.raises(Refused) as caught:
        read(path)
    said = str(caught.value)
    assert "sharded weights" in said and f"{path} line 4" in said and "\n" not in said


# ---------------------------------------------------------------------------------------------- recognition and bad papers


@pytest.mark.parametrize(
    "path", sorted((DATA / "conditions").rglob("*.md")) if (DATA / "conditions").exists() else [], ids=lambda p: p.stem
)
def test_conditions_are_no_paper(path: Path):
    assert not is_paper((read_file(path),))


def test_conditions_that_cite_a_paper_are_no_paper():
    text = """# Deployment conditions
## Introduction
We follow arXiv:1909.08053, where the authors propose tensor parallelism; the baseline there is TP 8.
## Model
Llama-3-70B, BF16
## Hardware
8 x H100
## Requirements
TTFT 1 s
"""
    assert not is_paper((input_from_text(text),))


PAPER = """# T
## Abstract
We propose a layout.
## Method
Weights are split.
## Experiments
{model}
Hardware: 8 H100.
Baseline: TP 8.
Proposed: {proposed}
"""
MODEL = "Model: 8 layers, hidden size 1024, 8 heads of dimension 128, MLP hidden size 4096. Batch size 2, sequence length 512."


def paper(model: str = MODEL, proposed: str = "PP 8.") -> PaperMethod:
    return read_paper((input_from_text(PAPER.format(model=model, proposed=proposed), "p.md"),))


@pytest.mark.parametrize(
    ("model", "proposed", "message"),
    [
        ("Model: a large one.", "PP 8.", "describes no model"),
        ("Model: 8 layers, 8 experts, top-2.", "PP 8.", "hidden size"),
        (MODEL.replace("8 heads of dimension 128", "7 heads"), "PP 8.", "1024 / 7 heads is not whole"),
        (MODEL, "faster.", "no proposed strategy found"),
        (MODEL, "PP 16.", "16 pipeline stages for 8 layers"),
    ],
)
def test_a_paper_that_does_not_say_enough_is_refused_in_one_line(model: str, proposed: str, message: str):
    with pytest.raises(ToolError, match=message) as caught:
        paper(model, proposed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "axes", "devices"),
    [
        ("TP 8 × PP 2 on 16 devices", {"tp": 8, "pp": 2}, 16), ("TP=8, PP=2", {"tp": 8, "pp": 2}, None), ("TP8PP2", {"tp": 8, "pp": 2}, None),
        ("8-way tensor parallelism and 2-way pipeline parallelism on 16 GPUs", {"tp": 8, "pp": 2}, 16),
        ("tensor parallelism 8 × pipeline parallelism 2", {"tp": 8, "pp": 2}, None), ("expert parallelism of degree 32", {"ep": 32}, None),
        ("张量并行 8 × 流水线并行 2，共 16 张卡", {"tp": 8, "pp": 2}, 16), ("tensor parallelism (TP) = 4", {"tp": 4}, None),
        ("Ulysses over 8 GPUs", {"ulysses": 8}, None), ("TP 8 x DP 4 across 32 H100 GPUs", {"tp": 8, "dp": 4}, 32),
        ("eight-way tensor parallelism", {"tp": 8}, None), ("TP 8 without sequence parallelism", {"tp": 8}, None),
        ("DP attention 16, EP 16", {"attn_dp": 16, "ep": 16}, None), ("4 GPUs per stage with TP 4", {"tp": 4}, None),
    ],
)  # fmt: skip
def test_degrees_in_words(words: str, axes: dict[str, int], devices: int | None):
    d = parse_degrees(words)
    assert (d.axes, d.devices) == (axes, devices)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("pp", [1, 2, 4])
@pytest.mark.parametrize(
    "form",
    [
        "TP {tp} × PP {pp} on {n} devices",
        "TP={tp}, PP={pp}",
        "{tp}-way tensor parallelism with {pp}-way pipeline parallelism",
        "张量并行 {tp}，流水线并行 {pp}，共 {n} 张卡",
    ],
)
def test_what_is_written_is_what_is_read(form: str, tp: int, pp: int):
    s = paper(proposed=form.format(tp=tp, pp=pp, n=tp * pp) + ".").of("dense_8l", "proposed")[0].strategy
    assert (s.tp, s.pp, s.num_devices) == (tp, pp, tp * pp)


@pytest.mark.parametrize(
    ("text", "value"), [("16,384", 16384), ("64K", 65536), ("two", 2), ("十六", 16), ("4096", 4096), ("1.5k", 1536)]
)
def test_numbers_of_papers(text: str, value: int):
    assert whole(text) == value


def test_passages_keep_their_lines_and_labels():
    p = read_paper_text("# T\n\n## Experiments\n**Model.** 8 layers,\nhidden 64.\nBatch 2.\n", "f.md")
    assert [(x.label, x.lines[0][1]) for x in p.passages] == [("Model", 4), ("", 6)]


@pytest.mark.parametrize("name", [n for n in EXPECTED if n != "compare"])
def test_every_read_strategy_can_be_laid_out(name: str):
    m = read(OWN / f"{name}.md")
    for s in m.strategies:
        program = lower(m.model(s.model).spec, s.strategy, "prefill", {})
        assert sum(len(stage.ranks) for stage in program.stages) * s.strategy.dp == s.num_devices
