"""The registry's tools for MCP clients, over stdio or streamable HTTP.

A run's tools get their deployment from the run; here every call brings it along, as `deployment`: either the text of
conditions, or a model, a device and a few numbers. The server keeps no session and opens no file that a client names.
Results are structured (`structuredContent`); long calls report progress; what the caller can fix is a tool error in one
line.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError as McpToolError
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema

import agent.tools  # noqa: F401  (registers the tools)
from agent.bind import Workbench
from agent.commands.common import deployment_from
from agent.errors import one_line
from agent.llm.modes import inlined
from knowledge.retrieve import Library, builtin_passages
from tools.registry import REGISTRY, Tool, call
from tools.spec.base import ToolError
from tools.spec.conditions import Conditions, InputFile
from tools.spec.deployment import Deployment

MAX_TEXT = 1_000_000
MAX_BENCHES = 16
HEARTBEAT_S = 1.0
INSTRUCTIONS = (
    "Tools of meshwright, which plans the parallel deployment of large language models. Give `deployment` as the text "
    "of the deployment conditions, or as model, device and numbers. read_facts shows what was understood; "
    "search_strategies ranks every legal strategy; estimate_strategy, memory_calculator, count_shards, check_strategy, "
    "prove_strategy and build_dag look at one strategy; check_dag judges any DOT text. SI base units throughout."
)


class DeploymentArg(BaseModel):
    """What is to be deployed where: `conditions`, or `model` and `device` with the numbers. Not both."""

    model_config = ConfigDict(extra="forbid")

    conditions: str | None = Field(
        default=None, description="text of the conditions, English or Chinese, prose or JSON"
    )
    model: str | None = Field(default=None, description="such as llama3.1-70b, qwen3-235b-a22b")
    device: str | None = Field(default=None, description="such as h100, 910B, 8xH100")
    nodes: int | None = Field(default=None, ge=1)
    devices_per_node: int | None = Field(default=None, ge=1)
    unbounded: bool = Field(default=False, description="devices are ample")
    isl: int = Field(default=1024, ge=1, description="input tokens of a request")
    osl: int = Field(default=256, ge=1, description="output tokens of a request")
    concurrency: int | None = Field(default=None, ge=1)
    rate: float | None = Field(default=None, description="requests per second")
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    percentile: str | None = Field(default=None, description="statistic of the limits: mean, p50, p90, p95, p99, max")
    engine: str | None = None
    weights: str | None = Field(default=None, description="bf16, fp8, int4, …")
    kv: str | None = None
    objective: str | None = Field(default=None, description="fewest_devices, total_throughput, knee, min_latency")


class Benches:
    """Workbenches by deployment, the least recently used one forgotten first. Calls on one bench are serialised."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, tuple[Workbench, threading.Lock]] = {}

    def get(self, deployment: Deployment) -> tuple[Workbench, threading.Lock]:
        key = hashlib.sha256(deployment.model_dump_json().encode()).hexdigest()
        with self._lock:
            found = self._found.pop(key, None) or (Workbench(deployment), threading.Lock())
            self._found[key] = found
            while len(self._found) > MAX_BENCHES:
                self._found.pop(next(iter(self._found)))
        return found


def read_text(text: str) -> Conditions:
    """Conditions of a text. Raises ToolError for an empty or oversized one."""
    from agent.reading import read_conditions

    return read_conditions((input_of(text),))


def input_of(text: str) -> InputFile:
    if not text.strip():
        raise ToolError("conditions: the text is empty")
    if len(text) > MAX_TEXT:
        raise ToolError(f"conditions: {len(text)} characters; up to {MAX_TEXT} are read")
    data = text.lstrip()[:1] in "{["
    return InputFile(
        path="conditions", sha256=hashlib.sha256(text.encode()).hexdigest(), text=text,
        kind="json" if data else "markdown",
    )  # fmt: skip


def deployment_of(asked: DeploymentArg) -> Deployment:
    """Raises ToolError when neither or both ways are used, and for whatever is wrong with the values."""
    from agent.reading.resolve import resolve

    if (asked.conditions is None) == (asked.model is None):
        raise ToolError("deployment: give either conditions (a text), or model and device")
    if asked.conditions is not None:
        return resolve(read_text(asked.conditions))
    if asked.device is None:
        raise ToolError("deployment: give a device beside the model, such as h100")
    # On the command line a model may be a path; a client of a server has no business in its files.
    if (
        str(asked.model).endswith(".json")
        or str(asked.model).startswith((".", "/", "~"))
        or Path(str(asked.model)).exists()
    ):
        raise ToolError(f"deployment: model {asked.model!r} looks like a path; give a name, or its shape in conditions")
    return deployment_from(asked.model_dump(exclude={"conditions"}))


def server(host: str = "127.0.0.1") -> MCPServer:
    """All tools of the registry, and check_dag."""
    from importlib.metadata import version

    made = MCPServer("meshwright", instructions=INSTRUCTIONS, version=version("meshwright"), log_level="WARNING")
    benches, library = Benches(), Library(builtin_passages())
    for entry in REGISTRY.values():
        made.add_tool(exposed(entry, benches, library), name=entry.name, description=entry.description,
                      structured_output=True)  # fmt: skip
    made.add_tool(check_dag, structured_output=True)
    return made


def exposed(entry: Tool, benches: Benches, library: Library) -> Callable[..., Any]:
    """A function with the tool's own visible parameters, plus what stands in for its hidden ones."""
    kinds = {hint for hint, _ in entry.parameters.values()}

    async def run(**given: Any) -> dict[str, Any]:
        ctx: Context = given.pop("ctx")
        asked, text = given.pop("deployment", None), given.pop("conditions", None)

        def work() -> dict[str, Any]:
            supply: dict[type, Any] = {Library: library}
            if text is not None:
                supply[Conditions] = read_text(text)
            if asked is None:
                return dict(call(entry.name, given, supply))
            bench, lock = benches.get(deployment_of(asked))
            with lock:
                return dict(call(entry.name, given, {**supply, Workbench: bench}))

        return await with_progress(work, ctx, entry.name)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=unvalidated(hint),
                          default=inspect.Parameter.empty if default is ... else default)
        for name, (hint, default) in entry.visible().items()
    ]  # fmt: skip
    if Workbench in kinds:
        parameters.insert(0, _parameter("deployment", DeploymentArg))
    if Conditions in kinds:
        parameters.insert(0, _parameter("conditions", str))
    parameters.append(_parameter("ctx", Context))
    run.__signature__ = inspect.Signature(parameters, return_annotation=dict[str, Any])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": dict[str, Any]}
    run.__name__ = entry.name
    return run


def unvalidated(hint: Any) -> Any:
    """`hint` for the schema alone: the registry validates, and says in one line what is wrong; the SDK would not."""
    schema = TypeAdapter(hint).json_schema()
    return Annotated[Any, WithJsonSchema(inlined(schema, schema.pop("$defs", {})))]


def _parameter(name: str, kind: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)


async def check_dag(dot: str, ctx: Context) -> dict[str, Any]:
    """Applies the DAG rules R01–R21 to DOT text, one report per graph: what holds, what is broken, where, and the way
    out."""
    from tools.dag.check_dot import check_dot

    def work() -> dict[str, Any]:
        if len(dot) > 20 * MAX_TEXT:
            raise ToolError(f"dot: {len(dot)} characters; up to {20 * MAX_TEXT} are read")
        reports = check_dot(dot, "dot")
        if not reports:
            raise ToolError("dot: the text holds no graph; start with digraph NAME { … }")
        plain = [
            {**r.model_dump(mode="json", exclude={"file"}), "ok": r.ok,
             "findings": [f.model_dump(mode="json") for f in r.findings()]}
            for r in reports
        ]  # fmt: skip
        return {"ok": all(r.ok for r in reports), "graphs": plain}

    return await with_progress(work, ctx, "check_dag")


async def with_progress(work: Callable[[], dict[str, Any]], ctx: Context, what: str) -> dict[str, Any]:
    """Runs `work` in a thread; says that it began, every second that it is still going, and that it is done."""
    began = time.monotonic()
    await ctx.report_progress(0.0, 1.0, f"{what}: started")

    async def beat() -> None:
        while True:
            await anyio.sleep(HEARTBEAT_S)
            seconds = time.monotonic() - began
            # How long a search takes is not known beforehand: the bar nears its end and never reaches it.
            await ctx.report_progress(seconds / (seconds + 10.0), 1.0, f"{what}: {seconds:.0f} s")

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beat)
            found = await anyio.to_thread.run_sync(functools.partial(_called, work))
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    if isinstance(found, McpToolError):
        raise found
    await ctx.report_progress(1.0, 1.0, f"{what}: done in {time.monotonic() - began:.2f} s")
    return found


def _called(work: Callable[[], dict[str, Any]]) -> dict[str, Any] | McpToolError:
    """The result with what JSON cannot say made plain, or the caller's own mistake as MCP's tool error."""
    from agent.commands.common import finite

    try:
        return dict(finite(work()))
    except ToolError as e:
        return McpToolError(one_line(e))


def serve_stdio() -> None:
    server().run("stdio")


def serve_http(host: str, port: int) -> None:
    """Streamable HTTP at http://HOST:PORT/mcp. Requests with a foreign Host or Origin header are refused where `host`
    is this machine only."""
    import uvicorn

    app = server().streamable_http_app(host=host)
    uvicorn.run(app, host=host, port=port, log_level="warning")
