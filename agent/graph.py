"""The state machine: seven nodes, SQLite checkpoints after every one of them, and the two ways in: start and resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from agent.approval import Answer
from agent.events import EventLog, Listener, read_events
from agent.files import Store, exclusive, prepare_run_dir, sha256_file
from agent.llm.base import Reply
from agent.loop import Conversation
from agent.options import RunOptions, load_options
from agent.state import NODES, RunState
from prompts import prompt_digest, prompt_names
from tools.spec.base import ToolError

THREAD = {"configurable": {"thread_id": "run"}, "recursion_limit": 80}


async def start(
    options: RunOptions, run_dir: Path, listener: Listener | None = None, *, drawer: Any = None
) -> RunState:
    """A new run in `run_dir`. Raises ToolError, StrictFailure or Bug; nothing is published then, the state is kept.

    `drawer` makes the DAG files in place of `agent.draw.draw`.
    """
    named = (*options.inputs, options.task, options.knowledge)
    with exclusive(run_dir):
        prepare_run_dir(run_dir, tuple(options.path(p) for p in named if p))
        options.save(run_dir)
        return await _drive(options, run_dir, listener, fresh=True, drawer=drawer)


async def resume(run_dir: Path, listener: Listener | None = None, answer: Answer | None = None) -> RunState:
    """Goes on where the last checkpoint is; `answer` is a person's to a run that waits under --approve.

    Raises ToolError when this is no run, another process runs in it, an input changed since it began, or nothing waits
    for the answer.
    """
    options = load_options(run_dir)
    with exclusive(run_dir):
        return await _drive(options, run_dir, listener, fresh=False, answer=answer)


async def _drive(
    options: RunOptions, run_dir: Path, listener: Listener | None, *, fresh: bool, drawer: Any = None,
    answer: Answer | None = None,
) -> RunState:  # fmt: skip
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
            return await _run(build_graph(saver), options, run_dir, log, conversation, fresh, drawer, answer)
    finally:
        await backend.close()


async def _run(
    graph: Any, options: RunOptions, run_dir: Path, log: EventLog, conversation: Conversation, fresh: bool,
    drawer: Any, answer: Answer | None,
) -> RunState:  # fmt: skip
    from langgraph.types import Command

    from agent.nodes import RunContext

    context = RunContext(run_dir, options, Store(run_dir), log, conversation, **({"drawer": drawer} if drawer else {}))
    before = await graph.aget_state(THREAD)
    waits = any(t.interrupts for t in before.tasks)
    if answer is not None:
        _refuse_answer(waits, before, answer)
    if before.values and (not before.next or (waits and answer is None)):
        return before.values
    begun = bool(before.values)
    if begun:
        _refuse_changed_inputs(options, before.values)
    prompts = {name: prompt_digest(name)[:12] for name in prompt_names()}
    log.write("run_started" if fresh else "run_resumed", backend=options.backend, at=list(before.next), prompts=prompts)
    entry: Any = None if begun else {"round": 0}
    if answer is not None:
        entry = Command(resume=answer.model_dump())
    await graph.ainvoke(entry, THREAD, context=context, durability="sync")
    return (await graph.aget_state(THREAD)).values


def _refuse_answer(waits: bool, before: Any, answer: Answer) -> None:
    if not waits:
        raise ToolError("nothing waits for an answer in this run; leave --approve out")
    shown = next(i.value for t in before.tasks for i in t.interrupts)
    if answer.verdict == "no" and not shown["rejectable"]:
        raise ToolError("an infeasible verdict cannot be rejected into a plan; change the conditions and plan again")


async def waiting(run_dir: Path) -> dict[str, Any] | None:
    """What a run under --approve shows the person it waits for; None when it does not wait."""
    found = await _snapshot(run_dir)
    return next((i.value for t in found.tasks for i in t.interrupts), None) if found else None


async def recorded_state(run_dir: Path) -> RunState:
    """The state after the last finished node. Raises ToolError where no checkpoint is."""
    found = await _snapshot(run_dir)
    if found is None or not found.values:
        raise ToolError(f"{run_dir} has no checkpoint; run the plan again")
    return found.values


async def _snapshot(run_dir: Path) -> Any:
    """LangGraph's last snapshot; None where there is no checkpoint."""
    import aiosqlite
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    if not (run_dir / "checkpoint.sqlite").is_file():
        return None
    async with aiosqlite.connect(run_dir / "checkpoint.sqlite") as db:
        saver = AsyncSqliteSaver(db, serde=JsonPlusSerializer(allowed_msgpack_modules=None))
        return await build_graph(saver).aget_state(THREAD)


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
