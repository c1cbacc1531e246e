"""The tools over MCP, through the SDK's own client: in process, over stdio, and over streamable HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="the extra mcp is not installed: pip install 'meshwright[mcp]'")

from mcp import Client, StdioServerParameters

from agent.commands.mcp import address
from agent.mcp_server import server
from tools.registry import REGISTRY
from tools.spec.base import ToolError

SMALL = {"model": "llama3.1-8b", "device": "h100", "nodes": 1, "devices_per_node": 2, "concurrency": 8}
TEXT = (
    "2 x H100 80GB in one node. Model Llama-3.1-8B, bf16. Input 512 tokens, output 128 tokens, 16 concurrent requests."
)


def over(target: Any, work: Callable[[Client], Awaitable[Any]]) -> Any:
    async def inner() -> Any:
        async with Client(target) as client:
            return await work(client)

    return asyncio.run(asyncio.wait_for(inner(), 90))


def called(target: Any, name: str, arguments: dict[str, Any], progress: Any = None) -> Any:
    return over(target, lambda c: c.call_tool(name, arguments, progress_callback=progress))


@pytest.fixture(scope="module")
def stdio() -> StdioServerParameters:
    return StdioServerParameters(command=sys.executable, args=["-m", "agent.cli", "mcp"], cwd=str(Path.cwd()))


@pytest.fixture(scope="module")
def http() -> Iterator[str]:
    with serving_http() as url:
        yield url


@contextlib.contextmanager
def serving_http() -> Iterator[str]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "agent.cli", "mcp", "--http", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
        process.terminate()
        process.wait(10)


def test_every_registered_tool_and_check_dag_are_offered_with_schemas_of_input_and_output():
    tools = {t.name: t for t in over(server(), lambda c: c.list_tools()).tools}
    assert set(tools) == {*REGISTRY, "check_dag"}
    for tool in tools.values():
        assert tool.description and tool.output_schema and tool.output_schema["type"] == "object"
        text = json.dumps(tool.input_schema)
        assert not {"bench", "library", "ctx"} & set(tool.input_schema["properties"])
        named = set(re.findall(r'"#/\$defs/(\w+)"', text))
        assert named <= set(tool.input_schema.get("$defs", {})), "every reference leads somewhere"


@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_over_both_transports_a_search_gives_what_the_library_gives(transport, request):
    from agent.commands.common import deployment_from
    from agent.mcp_server import DeploymentArg
    from knowledge.curves import load_curves
    from tools.search import search

    told: list[tuple[float, float | None, str | None]] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        told.append((done, total, message))

    found = called(request.getfixturevalue(transport), "search_strategies", {"deployment": SMALL, "top": 3}, progress)
    assert not found.is_error, found.content
    own = search(deployment_from(DeploymentArg(**SMALL).model_dump(exclude={"conditions"})), load_curves(), top=10)
    assert found.structured_content["enumerated"] == own.num_enumerated
    best = found.structured_content["items"][0]
    assert best["objective_value"] == pytest.approx(own.ranked[0].objective_value)
    assert json.loads(found.content[0].text) == found.structured_content, "text and structure say the same"
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told) and told[-1][0] == 1.0


@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_over_both_transports_a_strategy_goes_from_conditions_to_proof(transport, request):
    async def work(client: Client) -> dict[str, Any]:
        out = {"read": await client.call_tool("read_facts", {"conditions": TEXT})}
        given = {"deployment": {"conditions": TEXT}, "strategy": {"tp": 2, "batch": 16}}
        for name in ("estimate_strategy", "memory_calculator", "count_shards", "check_strategy", "prove_strategy"):
            out[name] = await client.call_tool(name, given)
        out["build_dag"] = await client.call_tool("build_dag", {**given, "phase": "decode"})
        return out

    done = over(request.getfixturevalue(transport), work)
    assert {name: r.content for name, r in done.items() if r.is_error} == {}
    facts = {f["path"]: f["value"] for f in done["read"].structured_content["facts"]}
    assert (facts["hardware.num_devices"], facts["workload.isl"]) == (2, 512)
    proofs = done["prove_strategy"].structured_content["proofs"]
    assert {p["ok"] for p in proofs.values()} == {True} and set(proofs) == {"prefill", "decode"}
    assert done["count_shards"].structured_content["all_match"] is True
    assert done["build_dag"].structured_content["lanes"] == 2
    stage = done["memory_calculator"].structured_content["stages"][0]
    assert stage["total_bytes"] + stage["free_bytes"] == pytest.approx(stage["capacity_bytes"], rel=1e-9)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("search_strategies", {"deployment": {"model": "llama9", "device": "h100"}}, "unknown model 'llama9'"),
        ("search_strategies", {"deployment": {"model": "llama3.1-8b"}}, "give a device"),
        ("search_strategies", {"deployment": {}}, "either conditions"),
        ("search_strategies", {"deployment": {"conditions": " "}}, "empty"),
        ("search_strategies", {"deployment": {"model": "/etc/passwd", "device": "h100"}}, "looks like a path"),
        ("search_strategies", {"deployment": {"model": "pyproject.toml", "device": "h100"}}, "looks like a path"),
        ("estimate_strategy", {"deployment": SMALL, "strategy": {"tp": 0}}, "tp must be a whole number"),
        ("estimate_strategy", {"deployment": SMALL, "strategy": {"tp": 2, "ep": 3}}, r"ep\(3\)"),
        ("memory_calculator", {"deployment": SMALL}, "no strategy is under review"),
        ("read_facts", {"conditions": "x" * 1_000_001}, "up to 1000000"),
        ("build_dag", {"deployment": SMALL, "strategy": {"tp": 2}, "phase": "warm-up"}, "phase"),
        ("rm_rf", {}, "rm_rf"),
    ],
)
def test_what_the_caller_can_fix_is_an_error_that_says_how(name, arguments, words):

    found = called(server(), name, arguments)
    assert found.is_error
    text = found.content[0].text
    assert re.search(words, text) and "Traceback" not in text and len(text) < 800


def test_check_dag_names_the_broken_rules():
    found = called(server(), "check_dag", {"dot": "digraph g { a -> b; b -> a }"})
    assert not found.is_error and found.structured_content["ok"] is False
    broken = {f["code"] for g in found.structured_content["graphs"] for f in g["findings"]}
    assert "R06" in broken, "it has a cycle"


@pytest.mark.parametrize("text", ["only prose", "", "digraph g { a -> "])
def test_check_dag_never_calls_text_without_a_whole_graph_fine(text):
    found = called(server(), "check_dag", {"dot": text})
    assert found.is_error or found.structured_content["ok"] is False


def test_infinities_do_not_reach_the_client():
    async def work(client: Client) -> str:
        given = {"deployment": {**SMALL, "ttft_ms": 0.001}, "top": 2}
        return (await client.call_tool("search_strategies", given)).content[0].text

    text = over(server(), work)
    assert "Infinity" not in text and "NaN" not in text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("8765", ("127.0.0.1", 8765)), ("0.0.0.0:80", ("0.0.0.0", 80)), ("[::1]:9", ("::1", 9))],
)
def test_an_address_is_this_machine_unless_it_names_another(text, wanted):
    assert address(text) == wanted


@pytest.mark.parametrize("text", ["", "host", "host:", "1:2:x", "70000", "0"])
def test_an_address_without_a_port_is_refused(text):
    with pytest.raises(ToolError, match="PORT"):
        address(text)


def test_a_request_that_pretends_to_another_host_is_refused(http):
    import httpx2

    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    headers = {"host": "evil.example", "accept": "application/json, text/event-stream"}
    assert httpx2.post(http, json=body, headers=headers).status_code in (403, 421)
