"""One node's conversation: whatever the backend does, it ends, bounded, with a validated result or a clear error."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from agent.events import EventLog, read_events
from agent.llm.base import Backend, Reply
from agent.llm.builtin import Builtin, call_message
from agent.llm.openai_backend import OpenAIBackend
from agent.llm.profiles import Profile
from agent.llm.replay import Replay, request_digest
from agent.loop import Conversation, Outcome, Step, StrictFailure, converse
from agent.submissions import PassagesSubmission, known_passages
from agent.tools import retrieve  # noqa: F401
from knowledge.retrieve import Library, builtin_passages
from tests.fake_openai import completion, serving
from tools.spec.base import ToolError

LIBRARY = Library(builtin_passages())
SUBJECTS = ["tp", "kv_cache", "mla"]


def step() -> Step:
    return Step(
        node="retrieve_knowledge",
        system="be brief",
        tools=frozenset({"retrieve"}),
        submit="submit_passages",
        user="find\n\n```json context\n" + json.dumps({"subjects": SUBJECTS}) + "\n```\n",
        description="hands in",
        arguments=PassagesSubmission,
        accept=lambda s: known_passages(s.ids, list(LIBRARY.passages)),
        supply={Library: LIBRARY},
    )


def profile(url: str, **more: Any) -> Profile:
    return Profile(name="fake", base_url=url, key_required=False, **{"timeout_s": 2.0, "retries": 1, **more})


def run(backend: Backend, tmp_path: Path, **more: Any) -> Outcome:
    async def inner() -> Outcome:
        try:
            return await converse(step(), Conversation(backend, EventLog(tmp_path / "events.jsonl"), **more))
        finally:
            await backend.close()

    return asyncio.run(inner())


def against(behaviour: Any, tmp_path: Path, strict: bool = False, **more: Any) -> tuple[Outcome, list[dict[str, Any]]]:
    with serving(behaviour) as (url, seen):
        return run(OpenAIBackend(profile(url, **more), "m"), tmp_path, strict=strict), seen


def test_builtin_policy_and_the_same_policy_behind_http_give_the_same_result(tmp_path):
    alone = run(Builtin(), tmp_path)
    over_http, seen = against(None, tmp_path)
    assert over_http.value == alone.value
    assert alone.value and set(alone.value) <= set(LIBRARY.passages)
    assert (over_http.by, over_http.degraded) == ("fake:m", None)
    assert len(seen) == 2, "one tool call, one submission"


@pytest.mark.parametrize("mode", ["text", "json_schema"])
def test_models_without_native_tools_answer_in_text(tmp_path, mode):
    def in_text(n: int, body: dict[str, Any]) -> Any:
        assert "tools" not in body
        assert ("response_format" in body) == (mode == "json_schema")
        call = {"tool": "retrieve", "arguments": {"query": "tensor"}} if n == 1 else submission(["tensor_parallel"])
        return {"role": "assistant", "content": "<think>{}</think>Sure:\n```json\n" + json.dumps(call)[:-1] + ",}\n```"}

    outcome, _ = against(in_text, tmp_path, tool_mode=mode)
    assert (outcome.value, outcome.degraded) == (["tensor_parallel"], None)


def submission(ids: list[str]) -> dict[str, Any]:
    return {"tool": "submit_passages", "arguments": {"ids": ids}}


def message(name: str, arguments: Any) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "x", "type": "function", "function": {"name": name, "arguments": text}}],
    }


async def _slow() -> Any:
    await asyncio.sleep(30)


BAD = {
    "http 500": lambda n, b: PlainTextResponse("boom", status_code=500),
    "http 401": lambda n, b: JSONResponse({"error": {"message": "bad key"}}, status_code=401),
    "http 404": lambda n, b: JSONResponse({"error": {"message": "no such model"}}, status_code=404),
    "429, come back in an hour": lambda n, b: JSONResponse({}, status_code=429, headers={"retry-after": "3600"}),
    "no choices": lambda n, b: JSONResponse(
        {"id": "c", "object": "chat.completion", "created": 0, "model": "f", "choices": []}
    ),
    "choices null": lambda n, b: JSONResponse({"choices": None}),
    "a list": lambda n, b: JSONResponse([1, 2]),
    "not json": lambda n, b: PlainTextResponse("{'choices': [", media_type="application/json"),
    "html": lambda n, b: PlainTextResponse("<html>gateway</html>", media_type="text/html"),
    "empty body": lambda n, b: PlainTextResponse("", media_type="application/json"),
    "refusal": lambda n, b: completion({"role": "assistant", "content": None, "refusal": "I cannot help with that."}),
    "content filter": lambda n, b: completion({"role": "assistant", "content": ""}, finish="content_filter"),
    "prose only": lambda n, b: {"role": "assistant", "content": "The best passages are obvious."},
    "empty content": lambda n, b: {"role": "assistant", "content": ""},
    "null content": lambda n, b: {"role": "assistant", "content": None},
    "truncated": lambda n, b: completion({"role": "assistant", "content": '{"tool": "submit_pass'}, finish="length"),
    "garbage arguments": lambda n, b: message("submit_passages", "{ids: [tensor"),
    "arguments are a list": lambda n, b: message("submit_passages", [1]),
    "wrong types": lambda n, b: message("submit_passages", {"ids": 7}),
    "unknown keys": lambda n, b: message("submit_passages", {"ids": [], "sudo": True}),
    "unknown passage": lambda n, b: message("submit_passages", {"ids": ["/etc/passwd"]}),
    "unknown tool": lambda n, b: message("rm_rf", {"path": "/"}),
    "tool of another step": lambda n, b: message("search_strategies", {}),
    "same call again": lambda n, b: message("retrieve", {"query": "tensor"}),
    "endless research": lambda n, b: message("retrieve", {"query": f"tensor {n}"}),
    "never answers": lambda n, b: _slow(),
}


@pytest.mark.parametrize("name", BAD)
def test_a_misbehaving_backend_degrades_to_the_builtin_policy(tmp_path, name):
    outcome, seen = against(BAD[name], tmp_path, timeout_s=0.5)
    assert outcome.value == run(Builtin(), tmp_path).value
    assert outcome.degraded, "the reason is told"
    assert outcome.by == "builtin"
    assert len(seen) <= 16
    assert any(
        e["event"] == "degraded" and e["why"] == outcome.degraded for e in read_events(tmp_path / "events.jsonl")
    )


@pytest.mark.parametrize("name", ["http 500", "prose only", "refusal"])
def test_under_strict_the_same_failure_is_an_error(tmp_path, name):
    with pytest.raises(StrictFailure, match="retrieve_knowledge"):
        against(BAD[name], tmp_path, strict=True)


def test_an_unreachable_server_degrades(tmp_path):
    outcome = run(OpenAIBackend(profile("http://127.0.0.1:9/v1"), "m"), tmp_path)
    assert "cannot reach" in (outcome.degraded or "")


def test_one_bad_reply_is_corrected_by_the_error_message(tmp_path):
    def once(n: int, body: dict[str, Any]) -> Any:
        if n == 1:
            return message("submit_passages", {"ids": ["nonsense"]})
        assert "no passage has the id" in body["messages"][-1]["content"] or n > 2
        return None

    outcome, _ = against(once, tmp_path)
    assert outcome.degraded is None and outcome.value


def test_a_brief_outage_is_retried(tmp_path):
    outcome, seen = against(lambda n, b: PlainTextResponse("busy", status_code=503) if n == 1 else None, tmp_path)
    assert outcome.degraded is None
    assert len(seen) == 3


def test_parallel_tool_calls_are_all_answered(tmp_path):
    def two(n: int, body: dict[str, Any]) -> Any:
        if n > 1:
            answered = [m["tool_call_id"] for m in body["messages"] if m["role"] == "tool"]
            assert answered == ["a", "b"]
            return None
        calls = [
            dict(call_message("retrieve", {"query": q}, 0)["tool_calls"][0], id=i)
            for i, q in (("a", "tp"), ("b", "pp"))
        ]
        return {"role": "assistant", "content": None, "tool_calls": calls}

    outcome, _ = against(two, tmp_path)
    assert outcome.degraded is None


def test_a_recorded_log_replays_without_a_server(tmp_path):
    first, _ = against(None, tmp_path)
    again = run(Replay(tmp_path / "events.jsonl"), tmp_path / "..")
    assert (again.value, again.degraded) == (first.value, None)


def test_an_exhausted_replay_degrades(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    assert "no further reply" in (run(Replay(tmp_path / "empty.jsonl"), tmp_path).degraded or "")


def test_replies_received_before_a_crash_are_not_asked_for_again(tmp_path):
    from agent.graph import recorded_replies

    _, before = against(None, tmp_path)
    with serving() as (url, seen):
        kept = recorded_replies(tmp_path / "events.jsonl")
        outcome = run(OpenAIBackend(profile(url), "m"), tmp_path, recorded=kept)
    assert len(before) == 2 and seen == []
    assert outcome.degraded is None


def test_a_key_is_in_no_event(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_KEY", "sk-very-secret-4711")
    with serving(lambda n, b: PlainTextResponse("no", status_code=401) if n > 1 else None) as (url, _):
        backend = OpenAIBackend(Profile(name="fake", base_url=url, key_env="FAKE_KEY", timeout_s=2, retries=0), "m")
        run(backend, tmp_path)
    assert "4711" not in (tmp_path / "events.jsonl").read_text()


def test_a_server_gets_no_other_providers_key(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-provider")
    keys: list[str] = []
    with serving(keys=keys) as (url, _):
        run(OpenAIBackend(profile(url), "m"), tmp_path)
    assert keys and not any("another-provider" in k for k in keys)


def test_a_missing_key_says_which_variable(monkeypatch):
    monkeypatch.delenv("FAKE_KEY", raising=False)
    with pytest.raises(ToolError, match="FAKE_KEY"):
        OpenAIBackend(Profile(name="fake", key_env="FAKE_KEY"), "m")


def test_a_context_too_small_for_the_step_degrades(tmp_path):
    with serving() as (url, seen):
        outcome = run(OpenAIBackend(profile(url), "m"), tmp_path, context_tokens=10)
    assert "tokens" in (outcome.degraded or "") and seen == []


def test_the_digest_of_a_request_ignores_the_model_and_sees_the_messages():
    body = {"messages": [{"role": "user", "content": "a"}], "tools": []}
    assert request_digest(body) == request_digest({**body, "model": "x"})
    assert request_digest(body) != request_digest({**body, "messages": []})


class Scripted:
    name = "scripted"

    def __init__(self, *messages: dict[str, Any]):
        self.left = list(messages)

    async def complete(self, body: dict[str, Any]) -> Reply:
        return Reply(self.left.pop(0))

    async def close(self) -> None:
        return None


def test_our_own_bug_is_not_hidden_as_a_tool_error(tmp_path, monkeypatch):
    def broken(self: Library, query: str, limit: int = 8) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Library, "search", broken)
    with pytest.raises(ZeroDivisionError):
        run(Scripted(message("retrieve", {"query": "tp"})), tmp_path)
