"""The reader on wordings of every kind: loads, speeds, machines, corrections, mixed clusters, sizes beyond reason."""

import time

import pytest

from agent.reading import input_from_text, read_conditions, resolve
from agent.reading.budget import READ_CHARS
from tools.spec.base import ToolError
from tools.spec.conditions import Conditions
from tools.units import english_number, find_quantities

# ruff: noqa: E501  (one case per line)


def read(text: str, path: str = "conditions.md") -> Conditions:
    return read_conditions([input_from_text(text, path)])


FACTS = [
    # how many at a time
    ("The bot takes fifteen requests at a time.", {"workload.concurrency": 15}),
    ("There are only seven of us, each sends 800 tokens.", {"workload.concurrency": 7}),
    ("3 at a time max, usually fewer", {"workload.concurrency": 3}),
    ("Twenty-five engineers hammering it together", {"workload.concurrency": 25}),
    ("48 conversations run in parallel", {"workload.concurrency": 48}),
    ("In flight: 96 requests", {"workload.concurrency": 96}),
    ("单用户使用，输入 300 token", {"workload.concurrency": 1, "workload.isl": 300}),
    ("大概 12 个人同时用，输入 2000 字约合 1400 token，输出 500 token", {"workload.concurrency": 12, "workload.isl": 1400, "workload.osl": 500}),
    ("It serves 20 users, prompts of 1500 words (about 2000 tokens)", {"workload.concurrency": 20, "workload.isl": 2000}),
    # lengths
    ("64 concurrent, 4000/800 tokens, bf16", {"workload.concurrency": 64, "workload.isl": 4000, "workload.osl": 800}),
    ("| 项目 | 值 |\n|---|---|\n| 输入 / 输出长度 | 3000 / 600 |", {"workload.isl": 3000, "workload.osl": 600}),
    ("Each contract is roughly 60k tokens; the summary has 1.5k tokens.", {"workload.isl": 60000, "workload.osl": 1500}),
    ("Prompts ...... 900 tokens\nCompletions .. 150 tokens", {"workload.isl": 900, "workload.osl": 150}),
    ("prompts average two thousand five hundred tokens, answers a hundred and twenty tokens", {"workload.isl": 2500, "workload.osl": 120}),
    # speed and latency
    ("5 users; each of them should see at least 25 tokens/s", {"requirements.tpot_s.limit": 0.04}),
    ("Everybody gets 20 tok/s or more.", {"requirements.tpot_s.limit": 0.05}),
    ("并发 4 路，每秒不低于 20 个 token", {"workload.concurrency": 4, "requirements.tpot_s.limit": 0.05}),
    ("The complete response has to arrive within 12 s.", {"requirements.e2e_latency_s.limit": 12}),
    ("端到端 P90 ≤ 20 秒", {"requirements.e2e_latency_s.p90": 20}),
    ("First token in 2 s, every subsequent token in 60 ms", {"requirements.ttft_s.limit": 2, "requirements.tpot_s.limit": 0.06}),
    ("TTFT ≤ 4s（P95），TPOT ≤ 90ms（平均）", {"requirements.ttft_s.p95": 4, "requirements.tpot_s.mean": 0.09}),
    ("At least 250 generated tokens per second per card", {"requirements.throughput_per_device.limit": 250, "requirements.throughput_per_device.counts": "output"}),
    ("100 concurrent requests, at least 3000 tokens/s", {"requirements.throughput_total.limit": 3000}),
    # machines
    ("8x H20 in one enclosure", {"hardware.num_nodes": 1, "hardware.devices_per_node": 8}),
    ("就这台 4 卡 L40S", {"hardware.num_nodes": 1, "hardware.num_devices": 4}),
    ("two second-hand 3090s with 24 GB each", {"hardware.device": "rtx_3090_24gb", "hardware.num_devices": 2, "hardware.memory_bytes": 24e9}),
    ("四路 4090 工作站（4 张 RTX 4090，每张 24GB）", {"hardware.device": "rtx_4090_24gb", "hardware.num_devices": 4, "hardware.memory_bytes": 24e9}),
    ("a dual RTX 4090 workstation", {"hardware.num_devices": 2, "hardware.num_nodes": 1}),
    ("L40S, six of them in the same box", {"hardware.num_devices": 6, "hardware.num_nodes": 1}),
    ("one 4×A100 (80GB) server", {"hardware.num_nodes": 1, "hardware.num_devices": 4}),
    ("7 A100 80GB PCIe cards", {"hardware.device": "a100_pcie_80gb", "hardware.num_devices": 7, "hardware.memory_bytes": 80e9}),
    ("8x H100 (80GB, PCIe)", {"hardware.device": "h100_pcie_80gb", "hardware.num_devices": 8}),
    ("H20 按需申请，张数不设上限", {"hardware.num_devices": "unbounded"}),
    ("HBM bandwidth 2 TB/s, of which 80 % can be achieved", {"hardware.mbu": 0.8}),
    ("峰值算力 300 TFLOPS（FP16），实测能跑到 55%", {"hardware.mfu": 0.55}),
    ("2 servers with 4 A100 each, linked by one 25 GbE cable that the cards share", {"hardware.inter_node_bandwidth": 25e9 / 8 / 4}),
    ("Nodes: 3\nNICs per node: 4 x ConnectX-6 (200 Gb/s per port, one per GPU)", {"hardware.num_nodes": 3}),
    ("2 台 8 卡 910C 服务器", {"hardware.num_devices": 32, "hardware.devices_per_node": 16}),
    ("16 MI250X GCDs", {"hardware.num_devices": 16}),
    ("RTX 4090 48GB x 8", {"hardware.device": "rtx_4090_24gb", "hardware.memory_bytes": 48e9, "hardware.num_devices": 8}),
    # no blank between unit and word, one line of settings, and other ways to say it
    ("TTFT均值2s以内，TPOT均值50ms以内", {"requirements.ttft_s.mean": 2, "requirements.tpot_s.mean": 0.05}),
    ("输入3.5K输出1.5K，QPS 6", {"workload.isl": 3500, "workload.osl": 1500, "workload.request_rate": 6}),
    ("qps=12, avg_in=700, avg_out=90, gpu=L4x8, model=Qwen3-14B", {"workload.request_rate": 12, "workload.isl": 700, "workload.osl": 90, "hardware.num_devices": 8, "model.name": "Qwen3-14B"}),
    ("24 V100-SXM2-32GB in six servers (4 each), 30 users, 512 in 128 out", {"hardware.num_nodes": 6, "hardware.devices_per_node": 4, "hardware.num_devices": 24, "workload.isl": 512, "workload.osl": 128}),
    ("bf16; 8k/1k; 30 users", {"workload.isl": 8000, "workload.osl": 1000, "workload.concurrency": 30}),
    ("6 张 4090D 够不够跑 Yi-34B-Chat int8？吐字别低于 25 token/s", {"model.name": "Yi-34B-Chat", "hardware.num_devices": 6, "requirements.tpot_s.limit": 0.04}),
    ("5 users, I want > 30 tok/s each.", {"requirements.tpot_s.limit": 1 / 30}),
    ("Replies 400 tokens. p95 TTFT 2.5s", {"workload.osl": 400, "requirements.ttft_s.p95": 2.5}),
    ("1,000 tokens/s per GPU (input+output) on 8 B200", {"requirements.throughput_per_device.limit": 1000, "requirements.throughput_per_device.counts": "total"}),
    ("Keep 15% of VRAM spare, the GPUs should not differ by more than 5%.", {"requirements.memory_reserve": 0.15, "requirements.balance_epsilon": 0.05}),
    ("256 experts choose 8, expert FFN 2048", {"model.num_experts": 256, "model.num_experts_per_tok": 8, "model.moe_intermediate_size": 2048}),
    ("输入1k/输出300，QPS为10，p99首token1s，TPOT50ms", {"workload.isl": 1000, "workload.osl": 300, "workload.request_rate": 10, "requirements.ttft_s.p99": 1, "requirements.tpot_s.limit": 0.05}),
    ("BF16。并发一百。输入四千，输出一千。", {"workload.concurrency": 100, "workload.isl": 4000, "workload.osl": 1000}),
    # names, dtypes, objectives, margins
    ("Qwen model\n\nWe deploy Qwen2.5-72B-Instruct, fp16 weights, fp8 cache.", {"model.name": "Qwen2.5-72B-Instruct", "model.weight_dtype": "fp16", "model.kv_dtype": "fp8"}),
    ("Model `Qwen/Qwen3-32B-FP8` (Qwen3-32B)", {"model.weight_dtype": "fp8"}),
    ("满血版 DeepSeek-R1", {"model.name": "DeepSeek-R1"}),
    ("本模型（Qwen2.5-14B-Instruct 的微调版）去年用 32 张 A100 训练，与本次部署无关。\n8 张 L40S 推理", {"model.name": "Qwen2.5-14B-Instruct", "hardware.num_devices": 8, "hardware.device": "l40s_48gb"}),
    ("TTFT < 3 s, then maximise output tokens/s", {"objective": "total_throughput"}),
    ("请把时延优化到最低", {"objective": "min_latency"}),
    ("平时 2 QPS，大促高峰是日常的 5 倍", {"workload.request_rate": 2, "workload.peak_factor": 5}),
    ("Load is 2 requests/s, at peak 4 times that", {"workload.request_rate": 2, "workload.peak_factor": 4}),
    ("No card may carry over 4% more load than the mean of all cards", {"requirements.balance_epsilon": 0.04}),
    ("各卡显存不得高于平均值 5%", {"requirements.balance_epsilon": 0.05}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "want"), FACTS, ids=[t[:40] for t, _ in FACTS])
def test_a_wording_states_these_facts(text, want):
    got = {f.path: f.value for f in read(text).facts}
    for path, value in want.items():
        assert path in got, (path, got)
        assert got[path] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), path


ABSENT = [
    ("输入 1500 字左右，输出 300 token，6 个人用", "workload.batch_size"),
    ("NICs per node: 8 x ConnectX-7 (NDR, 400 Gb/s per port, one per GPU)", "hardware.num_nodes"),
    ("Serve Zebrafish-77B-Ultra, every further one is a copy", "workload.isl"),
    ("单用户生成速度不低于 20 token/s", "workload.concurrency"),
    ("Two servers with 512 GB of RAM each and 8 H100", "hardware.memory_bytes"),
    ("We got a second server, 8 H100 in all; the first one is gone", "requirements.ttft_s.limit"),
    ("dual-socket host with 8 H100, twin power supplies", "hardware.num_nodes"),
    ("8x A100-80GB, NVLink, PCIe 4.0 host", "hardware.pcie_bandwidth"),
]


@pytest.mark.parametrize(("text", "path"), ABSENT, ids=[t[:40] for t, _ in ABSENT])
def test_a_number_of_something_else_is_not_taken(text, path):
    assert read(text).fact(path) is None


NUMERALS = [("two hundred", 200), ("twenty-four", 24), ("one thousand two hundred", 1200), ("a hundred and fifty", 150),
            ("two and a half", 2.5), ("three dozen", 36), ("seven hundred thousand", 700000)]  # fmt: skip


@pytest.mark.parametrize(("words", "value"), NUMERALS)
def test_english_numerals_have_their_value(words, value):
    assert english_number(words) == value
    assert [q.value for q in find_quantities(f"about {words} tokens")] == [value]


def test_an_english_word_is_no_numeral():
    with pytest.raises(ToolError, match="'wonder'"):
        english_number("wonder")


# ---------------------------------------------------------------- which of two statements


def conflict(got: Conditions, path: str):
    return next(c for c in got.conflicts if path == c.path or path in c.paths)


def test_a_newer_mail_wins_over_the_one_it_quotes():
    got = read(
        "Update: we got one more, so 3 servers with 8 H20 each.\n\n> We have 2 servers with 8 H20 each, 20 users,\n> 1000 tokens in and 200 out.\n",
        "mail.txt",
    )
    assert got.get("hardware.num_nodes") == 3 and got.get("hardware.num_devices") == 24
    assert conflict(got, "hardware.num_nodes").values == (3, 2)
    assert (got.get("workload.concurrency"), got.get("workload.isl")) == (20, 1000)


def test_a_comparison_sign_is_no_mail_quotation():
    assert read("> 20 tok/s per user").get("requirements.tpot_s.limit") == 0.05


def test_a_correction_wins_over_what_came_before_and_after():
    got = read("并发 32。\n更正：并发改为 48。\n附：并发 32。")
    assert got.get("workload.concurrency") == 48 and set(conflict(got, "workload.concurrency").values) == {48, 32}


def test_the_plan_counts_and_the_dream_does_not():
    assert read("Ideally 200 users, but size for 30 users.").get("workload.concurrency") == 30


# ---------------------------------------------------------------- flags, pools, unknown names


def test_a_context_beyond_the_positions_of_the_model_is_flagged():
    assert any(f.code == "context-over-model" for f in read("Llama-3-8B, context length 64k").flags)
    assert not any(f.code == "context-over-model" for f in read("Llama-3.1-8B, context length 128k").flags)


MIXED = "Host A: 4 x A100 80GB, memory bandwidth 2 TB/s\nHost B: 8 x V100 32GB\nLlama-3-8B, 1000 tokens in, 100 out, 4 users"


def test_memory_of_one_kind_of_device_never_describes_another():
    got = read(MIXED)
    assert got.get("hardware.pools") == [
        {"device": "a100_sxm_80gb", "count": 4, "memory_bytes": 80e9},
        {"device": "v100_sxm2_32gb", "count": 8, "memory_bytes": 32e9},
    ]
    assert got.get("hardware.memory_bytes") == 80e9
    assert not any("hardware.memory_bytes" in (c.path, *c.paths) for c in got.conflicts)


def test_a_mixed_cluster_is_planned_on_its_largest_pool_and_says_so():
    deployment = resolve(read(MIXED))
    assert (deployment.cluster.device.id, deployment.cluster.num_devices) == ("a100_sxm_80gb", 4)
    said = next(a for a in deployment.assumptions if a.path == "hardware.pools")
    assert "320 GB" in said.why and "8× v100_sxm2_32gb" in said.effect


def test_an_unknown_model_is_named_with_the_nearest_known():
    got = read(
        "8x H100. Please serve Lllama-3.1-70Bx and Zebrafish-77B-Ultra in bf16, 500 tokens in, 100 out, 10 users."
    )
    assert got.get("model.name") is not None
    with pytest.raises(ToolError, match="did you mean"):
        resolve(read("8x H100. Serve Zebrafish-77B-Ultra in bf16."))
    with pytest.raises(ToolError, match="Zebrafish-77B-Ultra"):
        resolve(read("8x H100. Serve Zebrafish-77B-Ultra in bf16."))


def test_a_stated_memory_is_planned_with_even_where_the_catalogue_has_another():
    cluster = resolve(read("4x RTX 4090 48GB, Llama-3-8B")).cluster
    assert cluster.memory_bytes == 48e9 and cluster.device.id == "rtx_4090_24gb"


@pytest.mark.parametrize(("device", "kv"), [("T4", "fp16"), ("A100", "bf16")])
def test_keys_and_values_of_a_32_bit_checkpoint_are_kept_in_16_bits(device, kv):
    assert resolve(read(f"GPT-2 XL in fp32 on 4x {device}")).kv_dtypes == (kv,)


# ---------------------------------------------------------------- size


def test_of_a_huge_text_the_beginning_and_the_dense_parts_are_read_and_the_rest_is_named():
    filler = "Nothing of interest happened on this quiet day in the office by the sea.\n\n"
    text = "8x H100 80GB, Llama-3-8B\n\n" + filler * (12 * READ_CHARS // len(filler)) + "TTFT p99: 700 ms\n"
    start = time.process_time()
    got = read(text)
    assert time.process_time() - start < 10
    assert got.get("hardware.num_devices") == 8 and got.get("requirements.ttft_s.p99") == 0.7
    fact = got.fact("requirements.ttft_s.p99")
    assert fact is not None and fact.evidence is not None and fact.evidence.line == text.count("\n")
    assert any("lines" in i.section and str(READ_CHARS) in i.why for i in got.ignored)


def test_a_list_of_many_nodes_is_counted_whole_but_not_read_item_by_item():
    nodes = ",".join('{"gpus": [{"type": "H100", "id": 1}, {"type": "H100", "id": 2}]}' for _ in range(1500))
    got = read(f'{{"nodes": [{nodes}]}}', "cluster.json")
    assert got.get("hardware.num_nodes") == 1500 and got.get("hardware.devices_per_node") == 2
    assert any("values under this key" in i.why for i in got.ignored)
