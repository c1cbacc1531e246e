"""How many machines of how many devices, and what network they share, in the words people use."""

from __future__ import annotations

from typing import Any

import pytest

from agent.mcp_server import input_of
from agent.reading import read_conditions


def hardware(text: str) -> tuple[dict[str, Any], set[str]]:
    c = read_conditions((input_of(text),))
    return {f.path: f.value for f in c.facts if f.path.startswith("hardware.")}, {f.code for f in c.flags}


@pytest.mark.parametrize(
    ("text", "nodes", "each"),
    [
        ("five L40S boxes, 4 cards each (48GB)", 5, 4),
        ("a rack of 12 MI300X boxes (8 each)", 12, 8),
        ("5 H100 boxes with 8 GPUs", 5, 8),
        ("10 A100 80GB nodes, 8 cards per node", 10, 8),
        ("two 8-GPU H100 servers", 2, 8),
        ("We have 8xH100 nodes, 4 of them.", 4, 8),
        ("2 nodes of 8xH100", 2, 8),
        ("16 H100s over two boxes", 2, 8),
        ("6 台服务器，每台 7 张 A800 80GB（有一张坏了，先不修）", 6, 7),
        ("6 台 × 8 卡 910B", 6, 8),
        ("四台机器，每台八张H20", 4, 8),
        ("7 servers, each with 4 RTX 4090 (24GB), one server is being repaired", 7, 4),
        ("机房里一共 12 张 H20（96GB），两台机器各 6 张，机内 NVLink。模型 Qwen2.5-32B。", 2, 6),
        ("三台服务器各有 5 块 A100-80G，跑 Llama-3-8B。", 3, 5),
        ("12 H20 GPUs altogether in two servers, 6 in the left one and 6 in the right one. Qwen2.5-32B.", 2, 6),
    ],
)
def test_machines_and_what_is_in_each(text: str, nodes: int, each: int) -> None:
    found, _ = hardware(text)
    assert (found.get("hardware.num_nodes"), found.get("hardware.devices_per_node")) == (nodes, each)
    assert found.get("hardware.num_devices") == nodes * each


@pytest.mark.parametrize("text", ["4 H100 servers", "we own 16 H100 nodes"])
def test_machines_of_unknown_size_are_no_devices(text: str) -> None:
    found, _ = hardware(text)
    assert found["hardware.num_nodes"] == int(next(w for w in text.split() if w.isdigit()))
    assert "hardware.num_devices" not in found


@pytest.mark.parametrize(
    "text",
    ["8 x L40S, 2 cards are down right now", "6 台服务器，每台 8 张 H20，其中 2 张卡坏了", "16 H100, 3 of them broken"],
)
def test_devices_that_do_not_work_are_said_and_not_counted_as_the_cluster(text: str) -> None:
    found, flags = hardware(text)
    assert "devices-not-working" in flags
    assert found["hardware.num_devices"] in (8, 16, 48)


@pytest.mark.parametrize(
    ("text", "per_device"),
    [
        ("3 台服务器，每台 8 张 H20，机间 200Gb/s IB，每台两个网口", 2 * 25e9 / 8),
        ("6 台服务器，每台 7 张 A800 80GB，机间 200Gb/s IB，每台两口", 2 * 25e9 / 7),
        ("3 servers of 8 H100 each, one 400G NIC per server", 50e9 / 8),
        ("3 servers of 8 H100 each, 2x200GbE per server", 50e9 / 8),
        ("3 servers of 8 H100 each, 200GbE", 25e9),
    ],
)
def test_a_network_that_a_server_shares_is_dealt_out_over_its_devices(text: str, per_device: float) -> None:
    found, _ = hardware(text)
    assert found["hardware.inter_node_bandwidth"] == pytest.approx(per_device, rel=1e-3)


GROUPED = {
    "We run three racks. Each rack holds four servers with eight H100-80GB apiece.": (12, 8, 96),
    "我们在两个机房各有一台服务器，每台 8 张 H20（96GB）。": (2, 8, 16),
    "Two availability zones with 3 nodes each, 8x A100 80GB per node.": (6, 8, 48),
    "4 个机柜，每个机柜 2 台 8 卡 H800 服务器。": (8, 8, 64),
    "12 servers in three racks, 8 H100 per server.": (12, 8, 96),
    "2 racks, 32 H200 per rack.": (None, None, 64),
    "昇腾 910B3 × 32（4 机）。": (4, 8, 32),
    '{"racks": 2, "nodesPerRack": 4, "gpu": {"model": "MI355X", "perNode": 8}, "llm": "Llama-3.1-70B"}': (8, 8, 64),
}


@pytest.mark.parametrize("text", GROUPED)
def test_nodes_that_stand_in_racks_or_rooms_are_counted_in_all(text: str) -> None:
    found, _ = hardware(text if text.startswith("{") else f"{text} Model: Llama-3.1-70B.")
    got = tuple(found.get(f"hardware.{k}") for k in ("num_nodes", "devices_per_node", "num_devices"))
    want = GROUPED[text]
    assert all(w is None or g == w for g, w in zip(got, want, strict=True)), got


def test_the_words_around_one_amount_say_nothing_of_the_next() -> None:
    found, _ = hardware("昇腾 910B3 × 32（4 机），机内 HCCS 56GB/s 双向，机间 RoCE 200Gbps。模型 Qwen2.5-72B。")
    assert found["hardware.intra_node_bandwidth"] == 28e9 and found["hardware.inter_node_bandwidth"] == 25e9


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("First token within 1.5 s at p99, then 40 ms between tokens.", "requirements.tpot_s.p99", 0.04),
        ("TTFT 800 ms, no more than 30 ms between consecutive tokens", "requirements.tpot_s.limit", 0.03),
        ("用户平均问 3 千字左右（约 3000 tokens），回答 800 token 上下", "workload.isl", 3000),
        ("Response should start within two seconds for 95 % of users.", "requirements.ttft_s.p95", 2.0),
        ("每次对话历史 4k 上下，回复 300 字", "workload.isl", 4000),
        ("prompts of ~2,500 tokens and ~600 back", "workload.osl", 600),
        ("预算有限，能少用几台就少用几台", "objective", "fewest_devices"),
        ("三台机器之间是千兆网", "hardware.inter_node_bandwidth", 0.125e9),
        ("two boxes on plain gigabit Ethernet", "hardware.inter_node_bandwidth", 0.125e9),
    ],
)
def test_what_a_user_feels_is_said_in_plain_words(text: str, path: str, value: object) -> None:
    c = read_conditions((input_of(f"8x H100. Llama-3.1-70B. {text}"),))
    assert {f.path: f.value for f in c.facts}[path] == value and not c.conflicts


def test_a_line_of_thousands_of_numbers_is_data_and_says_so() -> None:
    trace = ", ".join(str(i % 977) for i in range(20_000))
    c = read_conditions(
        (input_of(f"8x H100. Llama-3.1-70B. 64 concurrent requests.\n\nPrompt lengths seen: {trace} tokens.\n"),)
    )
    assert {f.path: f.value for f in c.facts}["workload.concurrency"] == 64
    assert "many-numbers" in {f.code for f in c.flags} and any("20,000 numbers" in i.why for i in c.ignored)
