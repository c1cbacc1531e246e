"""What servers and models do wrong, over a real socket: streams, text mode, refusals of fields, limits, prices.

Every case ends in one of three ways, and nothing else: the backend's own result, the built-in policy's with the reason
told, or, under --strict, an error with that reason.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse, PlainTextResponse, Response

from agent.events import EventLog, read_events
from agent.llm.builtin import Builtin, call_message, policy
from agent.llm.modes import from_text, json_objects, visible
from agent.llm.openai_backend import OpenAIBackend, unsupported, wait_of
from agent.llm.profiles import PROFILES, make_backend, profiles
from agent.llm.stream import Dropped, assemble
from agent.llm.usage import Price, usage_of
from agent.loop import Conversation, StrictFailure, converse
from tests.fake_openai import chunks_of, completion, serving, sse
from tests.test_agent_loop import against, message, profile, run, step
from tools.spec.base import ToolError

GOOD_IDS = ["tensor_parallel"]
GOOD = message("submit_passages", {"ids": GOOD_IDS})


def text(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def error(status: int, said: str, **headers: str) -> Response:
    return JSONResponse(
        {"error": {"message": said, "type": "invalid_request_error"}}, status_code=status, headers=headers
    )


async def _late(answer: Any, seconds: float) -> Any:
    await asyncio.sleep(seconds)
    return answer


def first(bad: Any, then: Any = GOOD) -> Any:
    """Misbehaves on the first request only."""
    return lambda n, b: bad(n, b) if n == 1 else then


CALL = json.dumps({"tool": "submit_passages", "arguments": {"ids": GOOD_IDS}})
WHOLE = chunks_of(GOOD)
ONE_BY_ONE = [
    {"choices": [{"delta": {"tool_calls": [{**c, "id": f"x{i}"}]}, "finish_reason": None}]}
    for i, c in enumerate([call_message("retrieve", {"query": "tp"}, 0)["tool_calls"][0], GOOD["tool_calls"][0]])
]

RECOVERS: dict[str, Any] = {
    "a stream in small pieces": lambda n, b: sse(chunks_of(GOOD, size=1)),
    "a server that ignores stream": lambda n, b: completion(GOOD),
    "a stream that calls itself json": lambda n, b: Response(
        "".join(f"data: {json.dumps(c)}\n\n" for c in WHOLE), media_type="application/json"
    ),
    "a stream without usage": lambda n, b: sse(chunks_of(GOOD, usage=False)),
    "a stream without [DONE]": lambda n, b: sse(WHOLE, done=False),
    "comments and keep-alives in the stream": lambda n, b: sse([": ping\n\n", *WHOLE, ": bye\n\n"]),
    "the name repeated in every piece": lambda n, b: sse(repeated_names()),
    "whole calls without an index": lambda n, b: sse([*ONE_BY_ONE, finish("tool_calls")]),
    "reasoning_content beside the answer": lambda n, b: sse([reasoning("Hmm. {\"tool\": \"rm\"}"), *WHOLE]),
    "thoughts in the content": lambda n, b: text(f"<think>{{\"tool\": \"submit_passages\"}} no…</think>{CALL}"),
    "the end of thoughts alone": lambda n, b: text(f"I should {{…}} so\n</think>\n{CALL}"),
    "arguments as an object": lambda n, b: completion(call_with({"ids": GOOD_IDS})),
    "arguments with a trailing comma": lambda n, b: message("submit_passages", '{"ids": ["tensor_parallel",],}'),
    "arguments in Python": lambda n, b: message("submit_passages", "{'ids': ['tensor_parallel']}"),
    "calls without ids": lambda n, b: completion(call_with(json.dumps({"ids": GOOD_IDS}), id=None)),
    "content in parts": lambda n, b: completion(text([{"type": "text", "text": CALL}])),  # type: ignore[arg-type]
    "a call in Chinese prose": lambda n, b: text(f"好的，我选择张量并行相关的段落：\n```json\n{CALL}\n```\n以上。"),
    "Chinese quotes": lambda n, b: text(CALL.replace('"', "“", 1).replace('"', "”", 1).replace('": "', '”: “')),
    "full-width JSON": lambda n, b: text("｛“tool”：“submit_passages”，“arguments”：｛“ids”：［“tensor_parallel”］｝｝"),
    "a Hermes tool_call block": lambda n, b: text(
        '<tool_call>\n{"name": "submit_passages", "arguments": {"ids": ["tensor_parallel"]}}\n</tool_call>'
    ),
    "arguments as JSON in JSON": lambda n, b: text(
        json.dumps({"name": "submit_passages", "arguments": json.dumps({"ids": GOOD_IDS})})
    ),
    "the tool's name as the only key": lambda n, b: text(json.dumps({"submit_passages": {"ids": GOOD_IDS}})),
    "a brief 429 with Retry-After": first(lambda n, b: error(429, "slow down", **{"retry-after": "0"})),
    "a brief 429 with retry-after-ms": first(lambda n, b: error(429, "slow down", **{"retry-after-ms": "5"})),
    "a brief 503": first(lambda n, b: PlainTextResponse("busy", status_code=503)),
    "a stream dropped once": first(lambda n, b: sse(WHOLE[:2], drop=True)),
    "a stream that ends early once": first(lambda n, b: sse(WHOLE[:2], done=False)),
    "an error within the stream once": first(lambda n, b: sse([WHOLE[0], {"error": {"message": "overloaded"}}])),
    "cut off by the token limit once": first(lambda n, b: sse(chunks_of(text("Let me think"), finish="length"))),
    "stream_options unknown": lambda n, b: error(400, "Unrecognized request argument: stream_options")
    if "stream_options" in b else GOOD,
    "streaming unknown": lambda n, b: error(400, "stream=true is not supported") if b.get("stream") else GOOD,
    "tools unknown": lambda n, b: error(400, "this model does not support tools") if "tools" in b else text(CALL),
    "a slow but steady stream": lambda n, b: sse(WHOLE, pause=0.3, after=1),
}  # fmt: skip


def finish(reason: str) -> dict[str, Any]:
    return {"choices": [{"delta": {}, "finish_reason": reason}]}


def reasoning(said: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"reasoning_content": said}, "finish_reason": None}]}


def repeated_names() -> list[dict[str, Any]]:
    out = json.loads(json.dumps(WHOLE))
    for chunk in out:
        for choice in chunk["choices"]:
            for part in choice["delta"].get("tool_calls", ()):
                part["function"]["name"] = "submit_passages"
    return out


def call_with(arguments: Any, **more: Any) -> dict[str, Any]:
    call = {"id": "x", "type": "function", "function": {"name": "submit_passages", "arguments": arguments}, **more}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@pytest.mark.parametrize("name", RECOVERS)
def test_what_can_be_understood_is_the_backends_own_answer(tmp_path, name):
    outcome, seen = against(RECOVERS[name], tmp_path, timeout_s=4.0)
    assert (outcome.value, outcome.degraded, outcome.by) == (GOOD_IDS, None, "fake:m")
    assert len(seen) <= 4


GIVES_UP: dict[str, tuple[Any, str]] = {
    "no byte at all": (lambda n, b: _late(GOOD, 5), "no first byte within"),
    "a stream that stalls": (lambda n, b: sse(WHOLE, pause=5, after=1), "no further byte within"),
    "a stream that never ends": (lambda n, b: sse(forever(), pause=0), "no complete reply|more than"),
    "dropped every time": (lambda n, b: sse(WHOLE[:2], drop=True), "broke off"),
    "no finish_reason every time": (lambda n, b: sse(WHOLE[:2]), "without a finish_reason"),
    "garbage in the stream": (lambda n, b: sse(["data: {oops\n\n"]), "not JSON"),
    "a number in the stream": (lambda n, b: sse(["data: 7\n\n"]), "no object"),
    "an empty stream": (lambda n, b: sse([]), "finish_reason"),
    "cut off every time": (lambda n, b: sse(chunks_of(text("Let me think"), finish="length")), "token limit"),
    "a wrong key": (lambda n, b: error(401, "Incorrect API key"), "refuses the key"),
    "no credit": (lambda n, b: error(402, "Insufficient balance"), "no credit"),
    "a forbidden model": (lambda n, b: error(403, "not allowed"), "may not use this model"),
    "an unknown model": (lambda n, b: error(404, "model not found"), "--backend NAME:LLM"),
    "429, come back tomorrow": (
        lambda n, b: error(429, "quota", **{"retry-after": "Fri, 31 Dec 2099 23:59:59 GMT"}), "asked to wait"),
    "429 for ever": (lambda n, b: error(429, "quota", **{"retry-after-ms": "1"}), "HTTP 429"),
    "overloaded for ever": (lambda n, b: error(529, "overloaded"), "HTTP 529"),
    "an error object with 200": (lambda n, b: JSONResponse({"error": {"message": "quota"}}), "reported an error"),
    "a refusal in the stream": (lambda n, b: sse([refusing("No."), finish("stop")]), "refused"),
    "a refusal in Chinese prose": (lambda n, b: text("抱歉，我无法协助完成这个请求。"), "mistakes in"),
    "the context is always too long": (
        lambda n, b: error(400, "maximum context length is 4096 tokens, you sent 9000"), "context is full|tokens"),
    "a hundred calls at once": (lambda n, b: many_calls(n), "mistakes in|no valid"),
    "nested to the sky": (lambda n, b: message("submit_passages", "[" * 5000), "mistakes in"),
    "a name that is no text": (lambda n, b: completion(call_with("{}", function={"name": 7})), "mistakes in"),
    "null calls": (lambda n, b: completion({"role": "assistant", "content": None, "tool_calls": [None]}), "mistakes in"),
    "every field refused": (lambda n, b: error(400, "Unrecognized request argument: tools, stream"), "HTTP 400"),
    "bytes that are no text": (lambda n, b: Response(b"\xff\xfe\x00data", media_type="text/event-stream"), "finish_reason"),
}  # fmt: skip


def refusing(said: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"refusal": said}, "finish_reason": None}]}


def forever() -> Any:
    for _ in range(1000):  # 10 MB, far beyond what a reply may have
        yield {"choices": [{"delta": {"content": "word " * 2000}, "finish_reason": None}]}


def many_calls(n: int) -> dict[str, Any]:
    calls = [dict(call_message("retrieve", {"query": f"q{n}-{i}"}, 0)["tool_calls"][0], id=f"c{i}") for i in range(100)]
    return {"role": "assistant", "content": None, "tool_calls": calls}


@pytest.mark.parametrize("name", GIVES_UP)
def test_what_cannot_is_bounded_and_told(tmp_path, name):
    import re

    behaviour, why = GIVES_UP[name]
    began = time.monotonic()
    outcome, seen = against(behaviour, tmp_path, timeout_s=1.5, first_byte_s=0.4, stall_s=0.4)
    assert outcome.by == "builtin" and outcome.value == run(Builtin(), tmp_path).value
    assert re.search(why, outcome.degraded or ""), outcome.degraded
    assert time.monotonic() - began < 15 and len(seen) <= 16


@pytest.mark.parametrize("name", ["a stream that stalls", "a wrong key", "cut off every time"])
def test_under_strict_it_is_an_error_with_the_same_reason(tmp_path, name):
    behaviour, why = GIVES_UP[name]
    with pytest.raises(StrictFailure, match=why):
        against(behaviour, tmp_path, strict=True, timeout_s=1.5, first_byte_s=0.4, stall_s=0.4)


def test_at_least_30_behaviours_are_tried_here_besides_those_of_the_loop():
    assert len(RECOVERS) + len(GIVES_UP) >= 50


def test_a_backend_that_cannot_work_is_asked_once_in_a_whole_run(tmp_path):
    with serving(lambda n, b: error(401, "Incorrect API key")) as (url, seen):
        backend = OpenAIBackend(profile(url), "m")
        shared = Conversation(backend, EventLog(tmp_path / "e.jsonl"))

        async def thrice() -> list[Any]:
            try:
                return [await converse(step(), shared) for _ in range(3)]
            finally:
                await backend.close()

        outcomes = asyncio.run(thrice())
    assert len(seen) == 1 and all("refuses the key" in (o.degraded or "") for o in outcomes)


def test_tools_are_tried_once_in_a_run_and_never_again_after_a_refusal(tmp_path):
    """tool_mode auto: the first request is the probe."""
    refusing_tools = RECOVERS["tools unknown"]
    with serving(refusing_tools) as (url, seen):
        backend = OpenAIBackend(profile(url), "m")
        shared = Conversation(backend, EventLog(tmp_path / "e.jsonl"))

        async def thrice() -> list[Any]:
            try:
                return [await converse(step(), shared) for _ in range(3)]
            finally:
                await backend.close()

        outcomes = asyncio.run(thrice())
    assert all(o.degraded is None and o.value == GOOD_IDS for o in outcomes)
    assert ["tools" in body for body in seen] == [True] + [False] * (len(seen) - 1) and len(seen) >= 4


def test_a_context_that_is_too_small_is_learnt_from_the_server_and_the_run_goes_on(tmp_path):
    def small(n: int, body: dict[str, Any]) -> Any:
        size = len(json.dumps(body["messages"])) // 4
        if size > 1500:
            return error(400, f"This model's maximum context length is 1500 tokens, your messages have {size + 10000}")
        return message("retrieve", {"query": f"tensor {n}"}) if n == 1 else GOOD

    outcome, seen = against(small, tmp_path)
    assert (outcome.value, outcome.degraded) == (GOOD_IDS, None)
    assert any(e["event"] == "context_shrunk" for e in read_events(tmp_path / "events.jsonl"))
    assert "truncated" in json.dumps(seen[-1]["messages"][-1])


def test_reasoning_is_in_no_record_and_goes_back_to_no_server(tmp_path):
    def thinking(n: int, b: dict[str, Any]) -> Any:
        if n == 1:
            call = chunks_of(message("retrieve", {"query": "tp"}))
            return sse([reasoning("SECRET-THOUGHT"), *chunks_of(text("<think>SECRET-THOUGHT</think>"))[:-2], *call])
        return GOOD

    outcome, seen = against(thinking, tmp_path)
    assert outcome.degraded is None and len(seen) == 2
    assert "SECRET-THOUGHT" not in json.dumps(seen[1]) + (tmp_path / "events.jsonl").read_text()


def test_parallel_calls_with_one_id_are_told_apart(tmp_path):
    def twins(n: int, b: dict[str, Any]) -> Any:
        if n > 1:
            ids = [m["tool_call_id"] for m in b["messages"] if m["role"] == "tool"]
            assert len(ids) == len(set(ids)) == 2
            return GOOD
        return {"role": "assistant", "content": None, "tool_calls": [
            call_message("retrieve", {"query": q}, 7)["tool_calls"][0] for q in ("tp", "pp")]}  # fmt: skip

    assert against(twins, tmp_path)[0].degraded is None


def test_broken_arguments_go_back_as_json_because_servers_refuse_a_broken_history(tmp_path):
    def once(n: int, b: dict[str, Any]) -> Any:
        for m in b["messages"]:
            for c in m.get("tool_calls") or ():
                json.loads(c["function"]["arguments"])
        return message("submit_passages", '{"ids": [tensor') if n == 1 else GOOD

    outcome, seen = against(once, tmp_path)
    assert outcome.degraded is None and len(seen) == 2


# ------------------------------------------------------------------------------------------------ text mode, by property


@given(
    st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=20), st.lists(st.integers()))),
    st.text(alphabet=st.characters(exclude_characters='{}<"“”'), max_size=40),
)
def test_any_json_object_survives_prose_around_it(value, prose):
    assert list(json_objects(f"{prose}{json.dumps(value, ensure_ascii=False)}{prose}")) == [value]


@given(st.text(max_size=300))
def test_no_text_makes_the_readers_fail(said):
    visible(said)
    out = from_text({"role": "assistant", "content": said}, {"submit_passages"})
    assert out.get("tool_calls") or out["content"] == said


@given(st.lists(st.sampled_from(["{", "}", '"', "“", "”", ",", ":", "tool", "[", "]", "\\", "a"]), max_size=60))
def test_no_heap_of_brackets_makes_them_fail(pieces):
    list(json_objects("".join(pieces)))


def test_two_calls_in_one_text_are_two_calls():
    said = '{"tool": "a", "arguments": {"x": 1}} and {"tool": "b", "arguments": {}}'
    calls = from_text(text(said), {"a", "b"})["tool_calls"]
    assert [c["function"]["name"] for c in calls] == ["a", "b"] and len({c["id"] for c in calls}) == 2


def test_half_a_call_is_no_call():
    assert "tool_calls" not in from_text(text('{"tool": "a", "arguments": {"x": {"y": 1}'), {"a"})


def test_quotes_inside_a_value_stay_as_they_are():
    said = json.dumps({"tool": "a", "arguments": {"why": "他说“好”，因此：是"}}, ensure_ascii=False)
    arguments = from_text(text(said), {"a"})["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"why": "他说“好”，因此：是"}


# ------------------------------------------------------------------------------------------------- streams, by property


@given(st.integers(1, 40), st.text(max_size=60))
def test_a_stream_in_pieces_of_any_size_says_what_the_whole_reply_says(size, content):
    whole = {"role": "assistant", "content": content or None, "tool_calls": GOOD["tool_calls"]}
    put = assemble(chunks_of(whole, size=size))["choices"][0]["message"]
    assert put["tool_calls"] == GOOD["tool_calls"] and (put["content"] or "") == content


def test_every_cut_of_a_stream_is_noticed():
    for n in range(len(WHOLE) - 1):
        with pytest.raises(Dropped):
            assemble(WHOLE[: min(n, len(WHOLE) - 2)])


# ------------------------------------------------------------------------------------------------------ profiles, money


@pytest.mark.parametrize(
    "name",
    ["openai", "azure-openai", "vllm", "sglang", "ollama", "llama.cpp", "deepseek", "dashscope", "moonshot", "zhipu",
     "openrouter", "litellm-proxy"],
)  # fmt: skip
def test_the_usual_servers_have_a_profile(name, monkeypatch):
    found = {p.name: p for p in PROFILES}[name]
    assert found.base_url or found.base_url_env or name == "openai"
    for p in PROFILES:
        if p.key_env:
            monkeypatch.delenv(p.key_env, raising=False)
    if found.key_required:
        with pytest.raises(ToolError, match=found.key_env or ""):
            OpenAIBackend(found, "m")


def test_azure_gets_its_address_from_the_environment_and_its_key_in_a_header_of_its_own(monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "az-secret-key-1")
    with serving() as (url, _):
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", url)
        backend = make_backend("azure-openai:m")
        assert str(backend._client.base_url).startswith(url)
        headers = backend._client.default_headers
        asyncio.run(backend.close())
    assert headers["api-key"] == "az-secret-key-1"


def test_a_profile_of_ones_own_has_prices_and_reports_what_a_run_costs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meshwright.toml").write_text(
        '[backends.lab]\nbase_url = "http://x/v1"\nmodel = "m"\nprice = {input = 2.0, output = 10.0, cached = 0.5}\n'
    )
    with serving() as (url, _):
        backend = OpenAIBackend(profiles()["lab"].model_copy(update={"base_url": url}), "m")
        run(backend, tmp_path)
    usage = usage_of(read_events(tmp_path / "events.jsonl"))
    one = (6 * 2.0 + 4 * 0.5 + 5 * 10.0) / 1e6
    assert usage.total.calls == usage.total.counted == 2
    assert usage.total.cost == pytest.approx(2 * one)
    assert (usage.total.prompt, usage.total.cached, usage.total.completion) == (20, 8, 10)


def test_without_a_price_the_cost_is_unknown_and_not_zero(tmp_path):
    against(None, tmp_path)
    assert usage_of(read_events(tmp_path / "events.jsonl")).total.cost is None


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_cache_hit_never_costs_more(prompt, cached, completion_tokens):
    price = Price(input=2.0, output=8.0, cached=0.5)
    tokens = {"prompt": prompt, "completion": completion_tokens}
    assert price.of({**tokens, "cached": cached}) <= price.of(tokens) + 1e-12


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [({}, 0), ({"retry-after": "7"}, 7), ({"retry-after-ms": "1500"}, 1.5), ({"retry-after": "soon"}, 0),
     ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0), ({"retry-after": "-3"}, 0)],
)  # fmt: skip
def test_retry_after_in_all_its_forms(headers, wanted):
    assert wait_of(headers) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("said", "what"),
    [("Unrecognized request argument supplied: stream_options", "stream_options"),
     ("'response_format' of type 'json_schema' is not supported", "response_format"),
     ("registry.ollama.ai/library/gemma does not support tools", "tools"),
     ("Invalid value for max_tokens", None), ("the key is wrong", None)],
)  # fmt: skip
def test_which_field_a_complaint_is_about(said, what):
    assert unsupported(said) == what


def test_prompts_are_chinese_where_the_inputs_are_and_their_stable_part_comes_first():
    from agent.nodes import language_of
    from prompts import render
    from tools.spec.conditions import InputFile

    shared = Conversation(Builtin(), EventLog(Path("/dev/null")))
    for words, wanted in (("部署 Qwen3-32B，八张 H20，并发 24", "zh"), ("eight H100, Llama-3-70B", "en"), ("", "en")):
        assert language_of((InputFile(path="a", sha256="", text=words, kind="text"),), shared) == wanted
    for where in ("", "zh/"):
        a, b = render(f"{where}system", role="r1", task=""), render(f"{where}system", role="r1", task="obey")
        assert b.startswith(a.rstrip()), "a task is added at the end, so that the shared beginning stays cached"


def test_the_builtin_policy_answers_chinese_prompts_with_the_same_calls():
    from prompts import render

    tools = [{"type": "function", "function": {"name": n}} for n in ("retrieve", "submit_passages")]
    asked = json.dumps({"subjects": ["tp"]})
    said = [
        policy(
            {"messages": [{"role": "user", "content": render(f"{w}retrieve_knowledge", context=asked)}], "tools": tools}
        )
        for w in ("", "zh/")
    ]
    assert said[0] == said[1]
