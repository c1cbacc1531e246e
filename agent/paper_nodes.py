"""The nodes' branches for papers: the same seven nodes, the paper's strategies in place of the search's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from langgraph.types import Command

from agent import approval, paper_publish, paper_run
from agent.bundle import Bundle
from agent.draw import Drawn, dag_dir
from agent.files import sha256_file
from agent.nodes import Inputs, RunContext, hashes_now, language_of
from agent.paper_run import PaperVerification
from agent.state import RunState
from tools.spec.base import Bug
from tools.spec.conditions import InputFile
from tools.spec.paper import PaperMethod

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tools.spec.finding import Finding


async def read(ctx: RunContext, state: RunState, files: tuple[InputFile, ...]) -> RunState:
    """The paper's reading, by the built-in reader and the backend. Raises ToolError (Refused) where its method cannot be
    told or drawn."""
    from agent.paper_llm import read_with

    language = language_of(files, ctx.conversation)
    found = await read_with(files, ctx.conversation, ctx.task[0], language)
    method = found.method
    first = paper_run.primary(method)
    deployment = paper_run.deployment_of(method, method.model(first.model), first)
    ctx.log.write(
        "paper",
        title=method.title,
        models=[m.name for m in method.models],
        strategies=[s.strategy.label() for s in method.strategies],
        by=found.by,
    )
    return RunState(
        inputs=[{"path": f.path, "sha256": f.sha256} for f in files], sources=ctx.store.put(Inputs(files=files)),
        conditions=ctx.store.put(method.conditions), deployment=ctx.store.put(deployment), paper=ctx.store.put(method),
        degraded=["read_conditions"] if found.degraded is not None else [], round=0, language=language,
    )  # fmt: skip


def method_of(ctx: RunContext, state: RunState) -> PaperMethod:
    return ctx.store.load(state["paper"], PaperMethod)


def propose(ctx: RunContext, state: RunState) -> Command[Literal["verify_dimensions", "publish"]]:
    """What the paper proposes; where a person rejected it, there is nothing else to propose."""
    if state.get("rejected"):
        raise approval.none_left(state)
    first = paper_run.primary(method_of(ctx, state))
    proposal: dict[str, Any] = {
        "by": "paper",
        "strategy": first.strategy.label(),
        "justification": first.title,
        "adopted": True,
    }
    return Command(update=RunState(proposal=proposal, chosen=None), goto="verify_dimensions")


def verify(ctx: RunContext, state: RunState) -> Command[Literal["propose_strategy", "generate_dag"]]:
    verification = paper_run.verify_paper(method_of(ctx, state), ctx.store)
    _none_of(f for g in verification.graphs for f in g.errors)
    ctx.log.write("verified", errors=0, graphs=sum(len(g.verified.proofs) for g in verification.graphs))
    return Command(update=RunState(verified=ctx.store.put(verification)), goto="generate_dag")


def draw(ctx: RunContext, state: RunState) -> Command[Literal["propose_strategy", "evaluate"]]:
    verification = ctx.store.load(state["verified"], PaperVerification)
    drawn = paper_run.draw_paper(method_of(ctx, state), verification, ctx.run_dir)
    _none_of(drawn.errors)
    dags = [{"name": d.name, "nodes": d.num_nodes, "edges": d.num_edges} for d in drawn.drawings]
    ctx.log.write("drawn", dags=dags, errors=0)
    return Command(update=RunState(drawn=ctx.store.put(drawn)), goto="evaluate")


def _none_of(errors: Iterable[Finding]) -> None:
    """A graph that could be laid out and is still wrong is our bug: no other proposal can help."""
    first = next(iter(errors), None)
    if first is not None:
        raise Bug(f"a graph of the paper fails a check: {first.code}: {first.message}")


def make_bundle(ctx: RunContext, state: RunState, opinion: str = "") -> Bundle:
    """All files of a paper's run, from recorded state only; graphs are lowered again and compared with their proofs."""
    method, verification = method_of(ctx, state), ctx.store.load(state["verified"], PaperVerification)
    paper_run.check_again(method, verification)
    inputs = ctx.store.load(state["sources"], Inputs).files
    return paper_publish.bundle_of(
        method, verification, _redrawn(ctx, state, method, verification), ctx.run_dir, inputs, hashes_now(ctx.options, inputs),
        ctx.task[2], state.get("passages", []), tuple(state.get("degraded", [])), opinion,
    )  # fmt: skip


def _redrawn(ctx: RunContext, state: RunState, method: PaperMethod, verification: PaperVerification) -> Drawn:
    """The recorded drawings; drawn again where their files are not what was recorded."""
    drawn = ctx.store.load(state["drawn"], Drawn)
    folder = dag_dir(ctx.run_dir)
    recorded = {name: digest for d in drawn.drawings for name, digest in d.files.items()}
    if all((folder / n).is_file() and sha256_file(folder / n) == digest for n, digest in recorded.items()):
        return drawn
    return paper_run.draw_paper(method, verification, ctx.run_dir)
