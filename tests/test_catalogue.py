"""The catalogue against published numbers, against itself, and against names as people write them."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from parameter_formula import parameter_count

from knowledge import catalog
from knowledge.catalog import (
    build_index,
    device_ids,
    devices,
    find_devices_in_text,
    find_models_in_text,
    load_device,
    load_model,
    model_ids,
    models,
    read_entry,
)
from tools.spec.base import ToolError

SHARED = Path(__file__).parents[2] / "shared" / "data"
GIB = 2**30


def _facts(node: object) -> list[dict]:
    if isinstance(node, dict):
        return [node] if "value" in node else [f for child in node.values() for f in _facts(child)]
    return []


# ── devices ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ident", device_ids())
def test_every_figure_of_a_device_has_a_source_that_the_entry_lists(ident: str) -> None:
    entry = read_entry("hardware", ident)
    facts = _facts(entry)
    assert len(facts) >= 9
    for fact in facts:
        assert fact["source"] in entry["sources"], fact
        assert fact["confidence"] in ("high", "medium", "low")


@pytest.mark.parametrize("ident", device_ids())
def test_dense_and_sparse_one_way_and_two_way_nominal_and_usable_are_kept_apart(ident: str) -> None:
    entry = read_entry("hardware", ident)
    assert entry["id"] == ident
    assert entry["link"]["two_way_gbs"]["value"] == pytest.approx(2 * entry["link"]["one_way_gbs"]["value"])
    nominal, usable = entry["memory"]["nominal_gb"]["value"], entry["memory"]["usable_gib"]["value"]
    assert 0.9 * nominal < usable <= nominal, "usable GiB is at most the printed size, and not much less"
    for dtype, sparse in entry.get("peak_sparse_tflops", {}).items():
        assert sparse["value"] > entry["peak_dense_tflops"][dtype]["value"]


def test_halving_the_bits_never_lowers_the_peak_except_where_the_notes_say_so() -> None:
    for device in devices():
        peak = device.peak_flops
        if "fp8" in peak and "bf16" in peak:
            assert peak["fp8"] >= peak["bf16"], device.id
        if "fp4" in peak:
            assert peak["fp4"] >= peak["fp8"], device.id
        if peak.get("int8", 1e30) < peak.get("bf16", 0):
            assert "INT8 is cut" in device.notes, device.id


PUBLISHED = [
    # id, dense BF16/FP16 TFLOPS, HBM GB/s, link GB/s one way, nominal GB; NVIDIA, AMD and Google product pages
    ("h100_sxm_80gb", 989.4, 3350, 450, 80),
    ("h200_sxm_141gb", 989.4, 4800, 450, 141),
    ("h20_96gb", 148, 4000, 450, 96),
    ("h800_sxm_80gb", 989.4, 3350, 200, 80),
    ("a100_sxm_80gb", 312, 2039, 300, 80),
    ("a800_sxm_80gb", 312, 2039, 200, 80),
    ("rtx_4090_24gb", 165.2, 1008, 32, 24),
    ("rtx_3080_10gb", 59.5, 760, 32, 10),
    ("gh200_96gb", 989.4, 4000, 450, 96),
    ("v100_sxm2_32gb", 125, 900, 150, 32),
    ("b200_sxm_180gb", 2250, 7700, 900, 180),
    ("gb200_nvl72_186gb", 2500, 8000, 900, 186),
    ("mi300x_192gb", 1307.4, 5300, 448, 192),
    ("tpu_v5e_16gb", 197, 819, 200, 16),
]


@pytest.mark.parametrize(("ident", "tflops", "bandwidth", "link", "memory"), PUBLISHED)
def test_devices_have_their_published_dense_figures(
    ident: str, tflops: float, bandwidth: float, link: float, memory: float
) -> None:
    device = load_device(ident).device
    peak = device.peak_flops.get("bf16", device.peak_flops.get("fp16"))
    assert peak == pytest.approx(tflops * 1e12)
    assert device.memory_bandwidth == pytest.approx(bandwidth * 1e9)
    assert device.link_bandwidth == pytest.approx(link * 1e9)
    assert device.memory_bytes == pytest.approx(memory * 1e9)


def test_an_h100_has_79_6_gib_usable() -> None:
    assert load_device("H100").device.memory_usable_bytes == pytest.approx(79.6 * GIB)


@pytest.mark.parametrize(("ident", "memory"), [("mi250x_gcd_64gb", 64e9), ("ascend_910c_die_64gb", 64e9)])
def test_a_device_of_a_two_die_package_is_one_rank_with_half_of_it(ident: str, memory: float) -> None:
    assert read_entry("hardware", ident)["ranks_per_package"] == 2
    assert load_device(ident).device.memory_bytes == memory


NAMES = [
    ("H100", "h100_sxm_80gb", None),
    ("NVIDIA_H100", "h100_sxm_80gb", None),
    ("nvidia h100 80gb hbm3", "h100_sxm_80gb", None),
    ("8xH100", "h100_sxm_80gb", 8),
    ("H100x8", "h100_sxm_80gb", 8),
    ("2x8xH100", "h100_sxm_80gb", 16),
    ("H100 × 16", "h100_sxm_80gb", 16),
    ("H100 SXM5 80GB", "h100_sxm_80gb", None),
    ("H100-PCIe", "h100_pcie_80gb", None),
    ("NVIDIA A100-SXM4-40GB", "a100_sxm_40gb", None),
    ("A100 40G", "a100_sxm_40gb", None),
    ("A100 80GB PCIe", "a100_pcie_80gb", None),
    ("a100_40gb", "a100_sxm_40gb", None),
    ("4090", "rtx_4090_24gb", None),
    ("RTX4090", "rtx_4090_24gb", None),
    ("NVIDIA GeForce RTX 4090", "rtx_4090_24gb", None),
    ("双卡4090", "rtx_4090_24gb", 2),
    ("910B", "ascend_910b3_64gb", None),
    ("昇腾910B", "ascend_910b3_64gb", None),
    ("Ascend 910B3", "ascend_910b3_64gb", None),
    ("华为昇腾 910B4", "ascend_910b4_32gb", None),
    ("910B 32GB", "ascend_910b4_32gb", None),
    ("8 张 H20", "h20_96gb", 8),
    ("H20 141G", "h20_141gb", None),
    ("MI300X", "mi300x_192gb", None),
    ("8xMI300X", "mi300x_192gb", 8),
    ("MI300Xx8", "mi300x_192gb", 8),
    ("GB200", "gb200_nvl72_186gb", None),
    ("RTX6000Pro", "rtx_pro_6000_server_96gb", None),
    ("RTX 6000 Ada", "rtx_6000_ada_48gb", None),
    ("RTX A6000", "rtx_a6000_48gb", None),
    ("Tesla V100-SXM2-16GB", "v100_sxm2_16gb", None),
    ("NVIDIA GH200 480GB", "gh200_96gb", None),
    ("A100-80GB (Selene)", "a100_sxm_80gb", None),
    ("H100-96GB HBM2e 500W (Grand Teton)", "h100_sxm_96gb", None),
    ("Ｈ１００", "h100_sxm_80gb", None),
]


@pytest.mark.parametrize(("name", "ident", "count"), NAMES)
def test_device_names_as_people_write_them(name: str, ident: str, count: int | None) -> None:
    match = load_device(name)
    assert (match.device.id, match.count) == (ident, count)


@pytest.mark.parametrize(
    ("name", "memory", "ident"),
    [
        ("A100", 40e9, "a100_sxm_40gb"),
        ("A100", 80 * GIB, "a100_sxm_80gb"),
        ("910B", 32e9, "ascend_910b4_32gb"),
        ("V100", 16 * GIB, "v100_sxm2_16gb"),
        ("H20", 141e9, "h20_141gb"),
        ("H100", 94e9, "h100_nvl_94gb"),
    ],
)
def test_memory_decides_between_parts_of_one_name(name: str, memory: float, ident: str) -> None:
    assert load_device(name, memory_bytes=memory).device.id == ident


@pytest.mark.parametrize("name", ["H100", "A100", "910B", "V100", "H20", "RTX 3080", "GH200"])
def test_an_ambiguous_name_says_what_it_was_taken_for(name: str) -> None:
    assert load_device(name).note


def test_a_memory_that_no_part_has_is_said() -> None:
    match = load_device("RTX 4090", memory_bytes=48e9)
    assert match.device.id == "rtx_4090_24gb"
    assert match.note and "48 GB stated" in match.note and "24 GB" in match.note


@pytest.mark.parametrize(
    "name", ["H1000", "RTX 409", "Foo", "MI300Z", "", "   ", "GPU", "x" * 500, "H100 MIG 1g.10gb", "8x"]
)
def test_unknown_devices_get_a_suggestion_in_one_line(name: str) -> None:
    with pytest.raises(ToolError) as error:
        load_device(name)
    assert "\n" not in str(error.value)
    if name.strip():
        assert "did you mean" in str(error.value)


@pytest.mark.parametrize("ident", device_ids())
def test_every_name_that_an_entry_lists_leads_to_a_part_that_lists_it(ident: str) -> None:
    entry = read_entry("hardware", ident)
    assert load_device(ident).device.id == ident
    assert load_device(entry["name"]).device.id == ident
    for alias in entry["aliases"]:
        assert load_device(alias).device.id == ident, alias
    for alias in entry.get("families", ()):
        chosen = read_entry("hardware", load_device(alias).device.id)
        assert alias in chosen["families"] + chosen["aliases"]


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────────────

TOTALS = [
    # name, billions, citation
    ("Llama-2-7B", 6.74, "arXiv 2307.09288, hub metadata 6.74B"),
    ("Llama-3.1-8B", 8.03, "arXiv 2407.21783, hub metadata 8.03B"),
    ("Llama-3.1-70B", 70.55, "hub metadata 70.6B"),
    ("Llama-3.1-405B", 405.85, "arXiv 2407.21783, hub metadata 406B"),
    ("Mistral-7B", 7.24, "arXiv 2310.06825, hub metadata 7.24B"),
    ("Mixtral-8x7B", 46.7, "arXiv 2401.04088: 46.7B"),
    ("Mixtral-8x22B", 140.6, "hub metadata 141B"),
    ("Qwen2.5-72B", 72.7, "arXiv 2412.15115: 72.7B"),
    ("Qwen3-30B-A3B", 30.5, "arXiv 2505.09388: 30.5B"),
    ("Qwen3-235B-A22B", 235.0, "arXiv 2505.09388: 235B"),
    ("DeepSeek-V2", 236.0, "arXiv 2405.04434: 236B"),
    ("DeepSeek-V3", 671.0, "arXiv 2412.19437: 671B"),
    ("gpt-oss-120b", 116.83, "arXiv 2508.10925, table 1"),
    ("gpt-oss-20b", 20.91, "arXiv 2508.10925, table 1"),
    ("GPT-NeoX-20B", 20.55, "arXiv 2204.06745: 20,554,567,680"),
    ("GPT-J-6B", 6.05, "model card: 6,053,381,344"),
    ("BLOOM-176B", 176.25, "arXiv 2211.05100: 176,247,271,424"),
    ("Falcon-7B", 6.92, "hub metadata 6.92B"),
    ("GPT-3 175B", 174.6, "arXiv 2005.14165, table D.1: 174,600M"),
    ("phi-2", 2.78, "hub metadata 2.78B"),
    ("MPT-30B", 29.96, "hub metadata 29.96B"),
    ("Gemma-2-27B", 27.23, "hub metadata 27.2B"),
]


@pytest.mark.parametrize(("name", "billions", "citation"), TOTALS)
def test_the_shape_gives_the_published_number_of_parameters(name: str, billions: float, citation: str) -> None:
    total = parameter_count(load_model(name).model)["total"]
    assert total == pytest.approx(billions * 1e9, rel=0.005), citation


ACTIVE = [
    ("Mixtral-8x7B", 12.9),
    ("Mixtral-8x22B", 39.2),
    ("Qwen3-235B-A22B", 22.2),
    ("DeepSeek-V3", 37.5),
    ("DeepSeek-V2", 21.4),
    ("Llama-4-Scout", 17.2),
]


@pytest.mark.parametrize(("name", "billions"), ACTIVE)
def test_active_parameters_count_embedding_and_head(name: str, billions: float) -> None:
    assert parameter_count(load_model(name).model)["active"] == pytest.approx(billions * 1e9, rel=0.01)


ROUNDED = {
    "gpt2-xl": "1.5 is rounded from 1.558",
    "gpt-3-2.7b": "2.7 is rounded from 2.65",
    "opt-2.7b": "2.7 is rounded from 2.65",
    "kimi-k2": "1T is rounded from 1026",
    "kimi-k2-0905": "1T is rounded from 1026",
    "kimi-k2-thinking": "1T is rounded from 1026",
    "megatron-gpt-1.7b": "1.7 is rounded from 1.65",
}


@pytest.mark.parametrize("ident", [i for i in model_ids() if not catalog.model_by_id(i).unsupported])
def test_every_plannable_model_has_the_parameters_it_declares(ident: str) -> None:
    model = catalog.model_by_id(ident)
    assert model.declared_parameters, "published total missing"
    tolerance = 0.04 if ident in ROUNDED else 0.015
    assert parameter_count(model)["total"] == pytest.approx(model.declared_parameters, rel=tolerance)


def test_exceptions_to_the_parameter_check_are_still_needed() -> None:
    for ident in ROUNDED:
        model = catalog.model_by_id(ident)
        assert model.declared_parameters
        assert parameter_count(model)["total"] != pytest.approx(model.declared_parameters, rel=0.015), ident


MODEL_NAMES = [
    ("llama3.1-70b", "Llama-3.1-70B", None),
    ("Llama-3.1-70B-Instruct", "Llama-3.1-70B", None),
    ("llama3-70b", "Llama-3-70B", None),
    ("Llama3_70B_Instruct", "Llama-3-70B", None),
    ("llama31-70b", "Llama-3.1-70B", None),
    ("Llama3_1_70B", "Llama-3.1-70B", None),
    ("meta-llama/Meta-Llama-3.1-8B-Instruct", "Llama-3.1-8B", None),
    ("llama3:70b-instruct-q4_K_M", "Llama-3-70B", "int4"),
    ("qwen3-235b-a22b", "Qwen3-235B-A22B", None),
    ("Qwen3-235B", "Qwen3-235B-A22B", None),
    ("Qwen3 235B A22B Instruct 2507", "Qwen3-235B-A22B", None),
    ("Qwen/Qwen3-30B-A3B-Thinking-2507-FP8", "Qwen3-30B-A3B", "fp8"),
    ("Qwen2.5-32B-Instruct-AWQ", "Qwen2.5-32B", "int4"),
    ("Qwen2.5-32B-Instruct-GPTQ-Int8", "Qwen2.5-32B", "int4"),
    ("DeepSeek-V3", "DeepSeek-V3", None),
    ("DeepSeekV3", "DeepSeek-V3", None),
    ("deepseek r1", "DeepSeek-R1", None),
    ("DeepSeek-R1 满血版", "DeepSeek-R1", None),
    ("满血版", "DeepSeek-R1", None),
    ("DeepSeek-R1-0528", "DeepSeek-R1", None),
    ("DeepSeek-R1-Distill-Qwen-32B", "DeepSeek-R1-Distill-Qwen-32B", None),
    ("Kimi K2", "Kimi-K2-Instruct", None),
    ("Kimi-K2-Instruct-0905", "Kimi-K2-Instruct-0905", None),
    ("Mistral-7B-Instruct-v0.3", "Mistral-7B-v0.3", None),
    ("Mixtral 8x7B Instruct v0.1", "Mixtral-8x7B", None),
    ("RedHatAI/Meta-Llama-3.1-70B-Instruct-FP8-dynamic", "Llama-3.1-70B", "fp8"),
    ("GPT OSS 120B", "gpt-oss-120b", None),
    ("opt-13b", "OPT-13B", None),
    ("opt-1.3b", "OPT-1.3B", None),
    ("GPT-J-6B", "GPT-J-6B", None),
    ("gpt2-xl", "GPT-2 XL", None),
    ("glm-4.5-air-fp8", "GLM-4.5-Air", "fp8"),
]


@pytest.mark.parametrize(("name", "shown", "hint"), MODEL_NAMES)
def test_model_names_as_people_write_them(name: str, shown: str, hint: str | None) -> None:
    match = load_model(name)
    assert (match.model.name, match.weight_hint) == (shown, hint)


@pytest.mark.parametrize("name", ["gpt-4", "Qwen4-700B", "", " ", "Kimi-K2.99", "no such model", "x" * 400, "\0"])
def test_unknown_models_get_a_suggestion_in_one_line(name: str) -> None:
    with pytest.raises(ToolError) as error:
        load_model(name)
    assert "\n" not in str(error.value)
    if name.strip():
        assert "did you mean" in str(error.value)


@pytest.mark.parametrize("ident", model_ids())
def test_every_alias_of_a_model_leads_to_it(ident: str) -> None:
    entry = read_entry("models", ident)
    for alias in [ident, entry["name"], *entry["aliases"], *([entry["hf_id"]] if "hf_id" in entry else [])]:
        assert load_model(alias).model.name == entry["name"], alias
    for alias, note in entry.get("ambiguous", {}).items():
        assert load_model(alias).note == note


def test_models_whose_blocks_cannot_be_built_say_why() -> None:
    for name in (
        "MiniMax-Text-01",
        "DeepSeek-V4-Pro",
        "Kimi-K3",
    ):
        assert load_model(name).model.unsupported, name
    for name in (
        "DeepSeek-V3",
        "Qwen3-235B",
        "gpt-oss-120b",
        "Llama-4-Scout",
        "Kimi K2",
        "MiniMax-M2.5",
        "Gemma-3-27B",
        "Nemotron-3-Super",
        "Granite-4.0-H-Small",
        "Hunyuan-A13B",
        "Gemma-4-31B",
        "Gemma-4-26B-A4B",
        "MiMo-V2-Flash",
        "MiniMax-M3",
        "GLM-5.2",
    ):
        assert not load_model(name).model.unsupported, name


def test_llama_4_rotates_and_chunks_three_layers_of_four() -> None:
    model = load_model("Llama-4-Scout").model
    assert [(k.rope, k.sliding) for k in model.layers()[:5]] == [(True, True)] * 3 + [(False, False), (True, True)]
    maverick = load_model("Llama-4-Maverick").model
    assert sum(k.ffn == "moe" for k in maverick.layers()) == 24


def test_deepseek_v3_has_three_dense_layers_and_a_latent_of_576() -> None:
    model = load_model("DeepSeek-V3").model
    assert [k.ffn for k in model.layers()].count("dense") == 3
    assert model.attention.mla is not None
    assert model.attention.mla.kv_lora_rank + model.attention.mla.qk_rope_head_dim == 576
    assert (model.weight_dtype, model.quant_group) == ("fp8", 128)


def test_gpt_oss_keeps_its_attention_in_16_bit() -> None:
    model = load_model("gpt-oss-120b").model
    assert model.weight_dtype == "mxfp4" and model.quantized_experts_only
    assert model.attention.sinks and [k.sliding for k in model.layers()[:3]] == [True, False, True]


# ── names in prose ────────────────────────────────────────────────────────────────────────────────────────────────────

PROSE = [
    ("两台服务器，每台 8 张 H20（单卡 96GB 显存）", ["h20_96gb"], []),
    ("模型用DeepSeek-V3，FP8 权重", [], ["deepseek-v3"]),
    ("Qwen2.5-32B-Instruct on 4x RTX 4090 24G", ["rtx_4090_24gb"], ["qwen2.5-32b"]),
    ("8xH100 with Llama-3.1-70B-Instruct-FP8, A100x4", ["h100_sxm_80gb", "a100_sxm_80gb"], ["llama-3.1-70b"]),
    ("四张4090跑满血版R1", ["rtx_4090_24gb"], ["deepseek-r1"]),
    ("部署Qwen3-235B在昇腾910B上，Kimi K2也行", ["ascend_910b3_64gb"], ["qwen3-235b-a22b", "kimi-k2"]),
    ("2 nodes of 8 x A100 40GB", ["a100_sxm_40gb"], []),
    ("64 H100 80 GB, 8 per node", ["h100_sxm_80gb"], []),
    ("DeepSeek-R1-Distill-Qwen-32B, not DeepSeek-R1", [], ["deepseek-r1-distill-qwen-32b", "deepseek-r1"]),
    ("L20显卡8张, L4 x 2", ["l20_48gb", "l4_24gb"], []),
    ("GPT-2 XL (1.5B) on RTX 3080 10GB ×4", ["rtx_3080_10gb"], ["gpt2-xl"]),
    ("gpt_type: NVIDIA_H100, name: H100_8GPU_Node", ["h100_sxm_80gb", "h100_sxm_80gb"], []),
    # no device and no model in these
    ("4090 tokens, 3090 requests, option A 10 GPUs, plan B 200 GB/s, level L4 cache", [], []),
    ("Table T4 shows H 100, GPT-4 and llama-3.2-90b; K2 is a mountain", [], []),
    ("", [], []),
]


@pytest.mark.parametrize(("text", "device_idents", "model_idents"), PROSE)
def test_names_are_found_in_prose_beside_chinese_and_punctuation(
    text: str, device_idents: list[str], model_idents: list[str]
) -> None:
    assert [d for *_, d in find_devices_in_text(text)] == device_idents
    assert [m for *_, m in find_models_in_text(text)] == model_idents


@pytest.mark.parametrize("text", [row[0] for row in PROSE])
def test_spans_index_the_text_and_do_not_overlap(text: str) -> None:
    for hits in (find_devices_in_text(text), find_models_in_text(text)):
        end = 0
        for start, stop, words, _ in hits:
            assert end <= start < stop
            assert text[start:stop] == words
            end = stop


def test_a_model_span_holds_its_release_suffix() -> None:
    text = "serve meta-llama/Llama-3.1-70B-Instruct-FP8 now"
    assert [h[2] for h in find_models_in_text(text)] == ["meta-llama/Llama-3.1-70B-Instruct-FP8"]


# ── the index, files, speed ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_committed_index_equals_the_folders() -> None:
    committed = json.loads((resources.files("knowledge") / "index.json").read_text(encoding="utf-8"))
    assert committed == json.loads(json.dumps(build_index())), "run: python -m knowledge.catalog"


def test_a_lookup_reads_one_entry_and_imports_neither_agent_nor_llm_client() -> None:
    script = (
        "import sys, knowledge.catalog as c\n"
        "read, seen = c.read_entry, []\n"
        "c.read_entry = lambda kind, ident: (seen.append(ident), read(kind, ident))[1]\n"
        "c.load_device('8xH100'); c.load_model('DeepSeek-V3')\n"
        "print(*seen, *(m in sys.modules for m in ('agent', 'langgraph', 'openai')))"
    )
    root = Path(__file__).parents[1]
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert out.stdout.split() == ["h100_sxm_80gb", "deepseek-v3", "False", "False", "False"]


def test_ids_are_words_that_survive_a_shell_and_a_file_system() -> None:
    assert len(devices()) == len(device_ids()) >= 70
    assert len(models()) == len(model_ids()) >= 150
    assert all(re.fullmatch(r"[a-z0-9_]+", i) for i in device_ids())
    assert all(re.fullmatch(r"[a-z0-9.-]+", i) for i in model_ids())


# ── the open tables beside the checkout ───────────────────────────────────────────────────────────────────────────────


def _table(name: str) -> list[dict[str, str]]:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with path.open(encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.shared
def test_parameter_totals_equal_those_of_the_open_model_table() -> None:
    for row in _table("model_catalogue.csv"):
        model = load_model(row["model_id"].split(" / ")[0]).model
        computed = row["total_params_B_computed"]
        if computed and not model.unsupported:
            assert parameter_count(model)["total"] / 1e9 == pytest.approx(float(computed), rel=0.004), model.name


@pytest.mark.shared
def test_devices_agree_with_the_open_hardware_table() -> None:
    for row in _table("hardware_catalogue.csv"):
        name = re.sub(r"\(.*?\)|/.*", "", row["device"]).strip()
        device = load_device(name, memory_bytes=None).device
        packages = 2 if "2 GCD" in row["device"] or "2 dies" in row["device"] else 1
        assert device.memory_bytes * packages == pytest.approx(float(row["mem_gb"]) * 1e9, rel=0.01), name
        assert device.memory_bandwidth * packages == pytest.approx(float(row["mem_bw_gbs"]) * 1e9, rel=0.01), name
        peak = float(row["bf16_dense_tflops"]) * 1e12
        assert device.peak_flops["bf16"] * packages == pytest.approx(peak, rel=0.01), name


@pytest.mark.shared
@pytest.mark.parametrize("table", ["serving_open.csv", "training_open.csv"])
def test_every_name_in_the_open_measurements_is_known(table: str) -> None:
    for row in _table(table):
        load_device(row["gpu"])
        load_model(re.sub(r"\(.*?\)", "", row["model"]).strip())
