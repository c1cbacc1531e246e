"""The built-in policy: what a careful, unimaginative LLM would do, as a pure function of the request.

It sees exactly what an LLM sees (messages and tool schemas) and answers in the same tool-call messages, so one code
path
serves both, and a fake OpenAI server for tests is this function behind HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from agent.llm.base import Message, Reply


class Builtin:
    """Backend around `policy`; needs no key, no network, and gives the same answer every time."""

    name = "builtin"

    async def complete(self, body: dict[str, Any]) -> Reply:
        return Reply(policy(body))

    async def close(self) -> None:
        return None


def policy(body: dict[str, Any]) -> Message:
    """The next assistant message for an OpenAI chat completions request. Pure: same body, same message."""
    names = [t["function"]["name"] for t in body.get("tools", [])]
    submit = next((n for n in names if n.startswith("submit_")), None)
    if submit is None:
        return {"role": "assistant", "content": "I have no tool to submit a result with."}
    results = tool_results(body["messages"])
    for want, arguments in PLANS[submit](context(body["messages"]), results):
        if want not in results and want in names:
            return call_message(want, arguments, len(body["messages"]))
    return call_message(submit, SUBMISSIONS[submit](context(body["messages"]), results), len(body["messages"]))


def call_message(name: str, arguments: dict[str, Any], serial: int) -> Message:
    call = {"id": f"call_{serial}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def tool_results(messages: list[Message]) -> dict[str, Any]:
    """Latest result of each tool called so far, by tool name."""
    names = {c["id"]: c["function"]["name"] for m in messages for c in m.get("tool_calls") or ()}
    out: dict[str, Any] = {}
    for m in messages:
        if m.get("role") == "tool" and m.get("tool_call_id") in names:
            try:
                out[names[m["tool_call_id"]]] = json.loads(m["content"])
            except ValueError:
                out[names[m["tool_call_id"]]] = {"error": m["content"]}
    return out


def context(messages: list[Message]) -> dict[str, Any]:
    """The JSON block of the user's message: what the node hands over besides prose."""
    for m in messages:
        if m.get("role") == "user" and isinstance(m.get("content"), str):
            block = re.search(r"^```json context\n(.*?)^```", m["content"], re.DOTALL | re.MULTILINE)
            if block:
                return json.loads(block.group(1))
    return {}


Ctx = dict[str, Any]
Plan = list[tuple[str, dict[str, Any]]]


def _read(ctx: Ctx, results: Ctx) -> Ctx:
    return {"facts": [], "remarks": "The deterministic reader's facts stand; nothing to add."}


def _retrieve(ctx: Ctx, results: Ctx) -> Ctx:
    hits = _items(results.get("retrieve"))
    keep = [h["id"] for h in hits if set(h.get("subjects", ())) & set(ctx.get("subjects", ()))]
    dropped = [
        {"id": h["id"], "why": "about none of the subjects of this deployment"} for h in hits if h["id"] not in keep
    ]
    return {"ids": keep, "dropped": dropped}


def _propose(ctx: Ctx, results: Ctx) -> Ctx:
    ranked = _items(results.get("search_strategies"))
    tried = set(ctx.get("excluded", ()))
    best = next((r for r in ranked if r.get("key") not in tried), None) or (ranked[0] if ranked else None)
    if best is None:
        return {
            "strategy": ctx.get("fallback") or {},
            "justification": "The search holds no strategy feasible; this is its closest.",
            "passages": [],
        }
    why = f"Rank {best['rank']} of the exhaustive search for {ctx.get('objective')}: {best['summary']}."
    second = next((r for r in ranked if r["rank"] > best["rank"]), None)
    if second:
        why += f" The next one, {second['label']}: {second['summary']}."
    return {"strategy": best["strategy"], "justification": why, "passages": list(ctx.get("passages", ()))[:8]}


def _verify(ctx: Ctx, results: Ctx) -> Ctx:
    errors = [f for f in ctx.get("findings", ()) if f.get("severity") == "error"]
    return {"verdict": "revise" if errors else "accept", "notes": "; ".join(f["message"] for f in errors[:3])}


def _dags(ctx: Ctx, results: Ctx) -> Ctx:
    return {"extra_views": [], "notes": ""}


def _review(ctx: Ctx, results: Ctx) -> Ctx:
    scores = ctx.get("scores") or {}
    weakest = min(scores, key=lambda name: scores[name], default=None)
    return {"weakest": weakest, "opinion": ""}


def _items(result: Any) -> list[dict[str, Any]]:
    found = result.get("items", []) if isinstance(result, dict) else []
    return [x for x in found if isinstance(x, dict)]


PLANS: dict[str, Callable[[Ctx, Ctx], Plan]] = {
    "submit_conditions": lambda ctx, _: [("read_facts", {})],
    "submit_passages": lambda ctx, _: [("retrieve", {"query": " ".join(ctx.get("subjects", ())), "limit": 12})],
    "submit_strategy": lambda ctx, _: [("search_strategies", {"top": 5})],
    "submit_verification": lambda ctx, _: [("count_shards", {})],
    "submit_dags": lambda ctx, _: [],
    "submit_review": lambda ctx, _: [],
}
"""Tools that are called before the submission of each node, in this order."""

SUBMISSIONS: dict[str, Callable[[Ctx, Ctx], Ctx]] = {
    "submit_conditions": _read,
    "submit_passages": _retrieve,
    "submit_strategy": _propose,
    "submit_verification": _verify,
    "submit_dags": _dags,
    "submit_review": _review,
}
