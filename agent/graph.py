"""The state machine: seven nodes, SQLite checkpoints after every one of them, and the two ways in: start and resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from agent.events import EventLog, Listener, read_events
from agent.files import Store, prepare_run_dir, sha256_file
from agent.llm.base import Reply
from agent.loop import Conversation
from agent.options import RunOptions, load_options
from agent.state import NODES, RunState
from prompts import prompt_digest, prompt_names
from tools.spec.base import ToolError

THREAD = {"configurable": {"thread_id": "run"}, "recursion_limit": 80}


async def start(options: RunOptions, run_dir: Path, listener: Listener | None = None) -> RunState:
    """A new run in `run_dir`. Raises ToolError, StrictFailure or Bug; nothing is published then, the state is kept."""
    named = (*options.inputs, options.task, options.knowledge)
    prepare_run_dir(run_dir, tuple(options.path(p) for p in named if p))
    options.save(run_dir)
    return await _drive(options, run_dir, listener, fresh=True)


async def resume(run_dir: Path, listener: Listener | None = None) -> RunState:
    """Goes on where the last checkpoint is.

    Raises ToolError when this is no run, or an input changed since it began.
    """
    return await _drive(load_options(run_dir), run_dir, listener, fresh=False)


async def _drive(options: RunOptions, run_dir: Path, listener: Listener | None, *, fresh: bool) -> RunState:
    os.environ["LANGSMITH_TRACING"] = "false"
    import aiosqlite
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    from agent.llm.profiles import make_backend

    backend = make_backend(options.backend, options.llm_base_url)
    events = run_dir / "events.jsonl"
    log = EventLog(events, listener)
    conversation = Conversation(backend, log, strict=options.strict, recorded={} if fresh else recorded_replies(events))
    conversation.context_tokens = getattr(
        getattr(backend, "profile", None), "context_tokens", conversation.context_tokens
    )
    try:
        async with aiosqlite.connect(run_dir / "checkpoint.sqlite") as db:
            saver = AsyncSqliteSaver(db, serde=JsonPlusSerializer(allowed_msgpack_modules=None))
            return await _run(build_graph(saver), options, run_dir, log, conversation, fresh)
    finally:
        await backend.close()


async def _run(
    graph: Any, options: RunOptions, run_dir: Path, log: EventLog, conversation: Conversation, fresh: bool
) -> RunState:
    from agent.nodes import RunContext

    context = RunContext(run_dir, options, Store(run_dir), log, conversation)
    before = await graph.aget_state(THREAD)
    if before.values and not before.next:
        return before.values
    begun = bool(before.values)
    if begun:
        _refuse_changed_inputs(options, before.values)
    prompts = {name: prompt_digest(name)[:12] for name in prompt_names()}
    log.write("run_started" if fresh else "run_resumed", backend=options.backend, at=list(before.next), prompts=prompts)
    await graph.ainvoke(None if begun else {"round": 0}, THREAD, context=context, durability="sync")
    return (await graph.aget_state(THREAD)).values


def build_graph(saver: Any) -> Any:
    """The compiled graph. Routing is by the nodes' own Commands; their annotations are the edges."""
    from langgraph.graph import START, StateGraph

    from agent import nodes

    graph = StateGraph(RunState, context_schema=nodes.RunContext)
    for name in NODES:
        graph.add_node(name, getattr(nodes, name))
    graph.add_edge(START, NODES[0])
    return graph.compile(checkpointer=saver)


def recorded_replies(events: Path) -> dict[str, Reply]:
    """LLM replies received before a crash, by request digest: they are not asked for (and paid for) again."""
    return {
        e["request"]: Reply(e["reply"], e.get("tokens") or {})
        for e in read_events(events)
        if e.get("event") == "llm_call" and e.get("backend") != "builtin" and isinstance(e.get("reply"), dict)
    }


def _refuse_changed_inputs(options: RunOptions, state: RunState) -> None:
    for i in state.get("inputs", []):
        path = options.path(i["path"])
        if not path.is_file() or sha256_file(path) != i["sha256"]:
            raise ToolError(f"{path} is gone or changed since the run began; start a new run with meshwright plan")
