"""The seven nodes of the graph. Each is idempotent: it reads references from the state, writes content-addressed
values,
and says where to go next. A node that was killed runs again from its start and comes to the same result.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from langgraph.runtime import Runtime
from langgraph.types import Command, interrupt
from pydantic import BaseModel

import agent.tools  # noqa: F401  (registers the tools)
from agent import approval
from agent import submissions as sub
from agent.bind import Workbench, candidate_key
from agent.bundle import Bundle, Record, bundle
from agent.draw import Drawn, dag_dir, draw
from agent.events import EventLog
from agent.files import Store, sha256_file
from agent.files import publish as publish_files
from agent.loop import Conversation, Outcome, Step, converse
from agent.options import RunOptions
from agent.reference import reference_of
from agent.state import MAX_FALLBACKS, MAX_ROUNDS, RunState
from agent.task import load_task, refuse_paper
from agent.verify import Proven, Verification, establish, subjects, verify, verify_nearest, workbench_of
from knowledge.retrieve import Library, Passage, builtin_passages, user_passages
from prompts import render
from tools.cost.curves import Curves
from tools.manifest import InputRef, build, input_path
from tools.rubric import Constraint, Evaluation
from tools.search.economics import on_best_device
from tools.spec.base import Bug, ToolError
from tools.spec.conditions import Conditions, InputFile
from tools.spec.deployment import Deployment
from tools.spec.finding import Finding
from tools.spec.plan import Candidate, SearchResult
from tools.spec.strategy import Strategy


@dataclass
class RunContext:
    """What nodes use and the state must not hold: clients, the log, caches."""

    run_dir: Path
    options: RunOptions
    store: Store
    log: EventLog
    conversation: Conversation
    drawer: Callable[..., Drawn] = draw
    """Makes the DAG files; a caller that needs no pictures (the evals) passes a quicker one."""
    benches: dict[str, Workbench] = field(default_factory=dict)

    def bench(self, state: RunState) -> Workbench:
        """The workbench of this run's deployment, one per process."""
        ref = state["deployment"]
        if ref["sha256"] not in self.benches:
            given = self.options.calibration
            path = self.options.path(given) if given else None
            self.benches[ref["sha256"]] = Workbench(self.store.load(ref, Deployment), self.store, path)
        return self.benches[ref["sha256"]]

    @functools.cached_property
    def library(self) -> Library:
        extra = user_passages(self.options.path(self.options.knowledge)) if self.options.knowledge else ()
        return Library((*builtin_passages(), *extra))

    @functools.cached_property
    def task(self) -> tuple[str, tuple[str, ...], tuple[Constraint, ...]]:
        return load_task(self.options)


def curves_of(options: RunOptions) -> Curves:
    from agent.calibration import curves_with

    return curves_with(options.path(options.calibration) if options.calibration else None)


class Inputs(BaseModel):
    files: tuple[InputFile, ...]


Run = Runtime[RunContext]
Node = Callable[[RunState, Run], Awaitable[Command[Any]]]


def logged(function: Node) -> Node:
    """Start, end and duration of a node in the event log."""

    @functools.wraps(function)
    async def wrapper(state: RunState, runtime: Run) -> Command[Any]:
        log, began = runtime.context.log, time.monotonic()
        log.write("node_started", node=function.__name__, round=state.get("round", 0))
        command = await function(state, runtime)
        log.write("node_finished", node=function.__name__, seconds=round(time.monotonic() - began, 3), to=command.goto)
        return command

    return wrapper


async def ask(
    ctx: RunContext, state: RunState, node: str, role: str, context: dict[str, Any], tools: set[str], submit: str,
    arguments: type[BaseModel], accept: Callable[[Any], Any], supply: dict[type, Any],
) -> tuple[Outcome, list[str]]:  # fmt: skip
    """One conversation of `node`, and the degraded nodes so far."""
    language = state.get("language", "en")
    step = make_step(node, role, ctx.task[0], context, tools, submit, arguments, accept, supply, language)
    outcome = await converse(step, ctx.conversation)
    return outcome, with_degraded(state, node, outcome)


def make_step(
    node: str, role: str, task: str, context: dict[str, Any], tools: set[str], submit: str, arguments: type[BaseModel],
    accept: Callable[[Any], Any], supply: dict[type, Any], language: str = "en", **more: Any,
) -> Step:  # fmt: skip
    where = "" if language == "en" else f"{language}/"
    return Step(
        node=node, system=render(f"{where}system", role=role, task=task), tools=frozenset(tools), submit=submit,
        user=render(f"{where}{node}", context=json.dumps(context, ensure_ascii=False, indent=1), **more),
        description=f"Hands in the result of {node}.", arguments=arguments, accept=accept, supply=supply,
    )  # fmt: skip


def with_degraded(state: RunState, node: str, outcome: Outcome) -> list[str]:
    degraded = list(state.get("degraded", []))
    return [*degraded, node] if outcome.degraded is not None and node not in degraded else degraded


# ---------------------------------------------------------------------------------------------------- read_conditions


@logged
async def read_conditions(state: RunState, runtime: Run) -> Command[Literal["retrieve_knowledge"]]:
    """Files → Conditions → Deployment.

    The deterministic reader's facts stand; an LLM may fill gaps with quoted ones.
    """
    from agent import paper_nodes
    from agent.reading import read_conditions as read
    from agent.reading import read_files
    from agent.reading.paper import is_paper
    from agent.reading.resolve import resolve

    ctx = runtime.context
    files = tuple(shown(f, ctx.options) for f in read_files([ctx.options.path(p) for p in ctx.options.inputs]))
    if is_paper(files):
        return Command(update=await paper_nodes.read(ctx, state, files), goto="retrieve_knowledge")
    conditions = read(files)
    try:
        refuse_paper(files, conditions)
    except ToolError:
        if ctx.conversation.backend.name == "builtin":
            raise
        # A free-form paper: the language model reads it.
        return Command(update=await paper_nodes.read(ctx, state, files), goto="retrieve_knowledge")
    conditions, outcome = await fill_gaps(files, conditions, ctx.conversation, ctx.task[0])
    degraded = with_degraded(state, "read_conditions", outcome)
    deployment = resolve(conditions)
    if ctx.options.objective:
        deployment = deployment.model_copy(update={"objective": ctx.options.objective})
    if deployment.other_clusters:
        # "H100 or H20?": both are searched, and the plan is made for the one that is the better answer.
        deployment = on_best_device(deployment, curves_of(ctx.options))
        ctx.log.write("device_chosen", device=deployment.cluster.device.id)
    update = RunState(
        inputs=[{"path": f.path, "sha256": f.sha256} for f in files], sources=ctx.store.put(Inputs(files=files)),
        conditions=ctx.store.put(conditions), deployment=ctx.store.put(deployment), degraded=degraded, round=0,
        language=language_of(files, ctx.conversation),
    )  # fmt: skip
    return Command(update=update, goto="retrieve_knowledge")


def shown(file: InputFile, options: RunOptions) -> InputFile:
    """The file under the path the user knows it by: relative to where the run was started, absolute if elsewhere."""
    path = Path(file.path)
    base = Path(options.cwd)
    return file.model_copy(update={"path": str(path.relative_to(base)) if path.is_relative_to(base) else str(path)})


async def fill_gaps(
    files: tuple[InputFile, ...], conditions: Conditions, conversation: Conversation, task: str = ""
) -> tuple[Conditions, Outcome]:
    """`conditions`, with the quoted and derivable facts that the backend adds where the reader left gaps.

    Files too long for a third of its context are read part by part; a part that the backend does not answer ends it.
    """
    from agent.reading.parts import in_parts
    from agent.tokens import count_tokens

    whole = conversation.backend.name == "builtin"  # the built-in policy reads no prompt
    parts = in_parts(files, 2**62 if whole else conversation.context_tokens // 3, len if whole else count_tokens)
    outcome = Outcome(sub.Facts(), conversation.backend.name)
    for i, part in enumerate(parts):
        where = f"part {i + 1} of {len(parts)}: {part.words}" if len(parts) > 1 else ""
        conditions, outcome = await _fill_from(part.files, files, conditions, conversation, task, where)
        if outcome.degraded is not None:
            break
    return conditions, outcome


async def _fill_from(
    shown_files: tuple[InputFile, ...], files: tuple[InputFile, ...], conditions: Conditions, conversation: Conversation,
    task: str, part: str,
) -> tuple[Conditions, Outcome]:  # fmt: skip
    """The same from what is shown of the files; `part` says which part that is."""
    context = {"missing": conditions.missing, "inputs": [f.path for f in files], **({"shown": part} if part else {})}
    step = make_step(
        "read_conditions",
        "Your step: read the conditions.",
        task,
        context,
        {"read_facts"},
        "submit_conditions",
        sub.ConditionsSubmission,
        lambda s: sub.check_facts(s.facts, conditions, files),
        {Conditions: conditions},
        language_of(files, conversation),
        files=shown_files,
    )
    outcome = await converse(step, conversation)
    for path, why in outcome.value.rejected:
        conversation.log.write("fact_rejected", path=path, why=why)
    added = outcome.value.taken or outcome.value.conflicts
    return (with_facts(conditions, outcome.value) if added else conditions), outcome


CHINESE = 0.2
"""Share of Chinese characters among the letters of the inputs from which prompts are Chinese."""


def language_of(files: tuple[InputFile, ...], conversation: Conversation) -> str:
    """`zh` or `en`: the backend's own choice, else that of the inputs."""
    chosen = getattr(getattr(conversation.backend, "profile", None), "language", "auto")
    if chosen != "auto":
        return str(chosen)
    letters = [c for f in files for c in f.text if c.isalpha()]
    wide = sum("\u4e00" <= c <= "\u9fff" for c in letters)
    return "zh" if letters and wide / len(letters) >= CHINESE else "en"


def with_facts(conditions: Conditions, added: sub.Facts) -> Conditions:
    paths = {f.path for f in added.taken}
    kept = tuple(f for f in conditions.facts if f.path not in paths)
    missing = tuple(m for m in conditions.missing if m not in paths)
    conflicts = (*conditions.conflicts, *added.conflicts)
    return conditions.model_copy(update={"facts": (*kept, *added.taken), "missing": missing, "conflicts": conflicts})


# -------------------------------------------------------------------------------------------------- retrieve_knowledge


@logged
async def retrieve_knowledge(state: RunState, runtime: Run) -> Command[Literal["propose_strategy"]]:
    """Passages that concern this model, hardware and workload."""
    ctx = runtime.context
    deployment = ctx.bench(state).deployment
    library = ctx.library
    context = {
        "subjects": subjects_of(deployment),
        "model": deployment.model.name,
        "device": deployment.cluster.device.name,
    }
    outcome, degraded = await ask(
        ctx,
        state,
        "retrieve_knowledge",
        "Your step: find the relevant knowledge.",
        context,
        {"retrieve"},
        "submit_passages",
        sub.PassagesSubmission,
        lambda s: sub.known_passages(s.ids, list(library.passages)),
        {Library: library},
    )
    passages = [cited(library.passages[i]) for i in outcome.value]
    return Command(update=RunState(passages=passages, degraded=degraded), goto="propose_strategy")


def subjects_of(d: Deployment) -> list[str]:
    """Glossary subjects that matter for a deployment."""
    several = d.cluster.num_devices is None or d.cluster.num_devices > 1
    out = ["kv_cache", "memory", "chunked_prefill", "decode"]
    if several:
        out += ["tp", "pp", "dp", "all_reduce", "balance", "nvlink"]
    if d.model.moe is not None:
        out += ["moe", "ep", "etp", "all_to_all"]
    if d.model.attention.mla is not None:
        out += ["mla", "attention_dp"]
    elif d.model.attention.num_kv_heads < d.model.attention.num_heads:
        out.append("gqa")
    if {"fp8", "int8", "int4", "fp4", "mxfp4", "nvfp4"} & {*d.weight_dtypes, *d.kv_dtypes}:
        out.append("fp8")
    return out


def cited(p: Passage) -> dict[str, Any]:
    return {"id": p.id, "title": p.title, "file": p.file, "line": p.line, "source": p.source}


# ---------------------------------------------------------------------------------------------------- propose_strategy


@logged
async def propose_strategy(state: RunState, runtime: Run) -> Command[Literal["verify_dimensions", "publish"]]:
    """The search's best, or a proposal that is better; the proposal's regret is recorded either way."""
    ctx = runtime.context
    if state.get("paper"):
        from agent import paper_nodes

        return paper_nodes.propose(ctx, state)
    bench, excluded = ctx.bench(state), list(state.get("excluded", []))
    search = bench.search
    closest = search.infeasible.closest if search.infeasible else None
    context = {
        "objective": search.objective, "excluded": excluded, "feedback": state.get("feedback", [])[:12],
        "passages": [p["id"] for p in state.get("passages", [])],
        "fallback": closest.strategy.model_dump(mode="json") if closest else None,
    }  # fmt: skip
    outcome, degraded = await ask(
        ctx,
        state,
        "propose_strategy",
        "Your step: propose the strategy.",
        context,
        {"search_strategies", "estimate_strategy", "check_strategy", "memory_calculator", "count_shards"},
        "submit_strategy",
        sub.StrategySubmission,
        lambda s: (s, priced(bench, s.strategy)),
        {Workbench: bench},
    )
    submission, proposed = outcome.value
    spent = len(excluded) - len(state.get("rejected", [])) > MAX_FALLBACKS + MAX_ROUNDS
    chosen = None if spent else choose(search, proposed, excluded)
    if chosen is None and state.get("attempts"):
        return Command(update=RunState(degraded=degraded, **best_attempt(state["attempts"])), goto="publish")
    if chosen is None and state.get("rejected"):
        raise approval.none_left(state)
    if chosen is None and search.best is not None:
        raise Bug(f"all {len(excluded)} strategies that the search held feasible failed a check; last: {excluded[-1]}")
    proposal = {
        "by": outcome.by, "strategy": bench.label(proposed.estimate.strategy) if proposed else None,
        "justification": submission.justification, "passages": submission.passages,
        "regret": regret(search, proposed), "adopted": proposed is not None and chosen is not None
        and candidate_key(chosen) == candidate_key(proposed),
    }  # fmt: skip
    update = RunState(
        search=ctx.store.put(search),
        proposal=proposal,
        degraded=degraded,
        chosen=ctx.store.put(chosen) if chosen else None,
    )
    return Command(update=update, goto="verify_dimensions")


def priced(bench: Workbench, fields: dict[str, Any]) -> Candidate | None:
    """A submitted strategy, priced. Raises ToolError when it is malformed or outside what the conditions allow."""
    if not fields:
        if bench.search.best is not None:
            raise ToolError("strategies exist that meet every requirement (search_strategies lists them); submit one")
        return None
    if set(fields) == {"key"}:
        found = next((c for c in bench.search.ranked if candidate_key(c) == fields["key"]), None)
        if found is None:
            raise ToolError(f"no strategy of the search has the key {fields['key']!r}; search_strategies lists them")
        return found
    try:
        strategy = Strategy.model_validate(fields)
    except ValueError as e:
        raise ToolError(f"not a strategy: {' '.join(str(e).split())[:300]}") from None
    d = bench.deployment
    limit = d.num_devices if strategy.stage_devices else d.cluster.num_devices
    if limit is not None and strategy.num_devices > limit:
        raise ToolError(f"{strategy.label()} needs {strategy.num_devices} devices, the cluster has {limit}")
    for name, value, allowed in (
        ("weight_dtype", strategy.weight_dtype, d.weight_dtypes), ("kv_dtype", strategy.kv_dtype, d.kv_dtypes),
        ("engine", strategy.engine, (d.engine.name, *d.engine.alternatives)),
    ):  # fmt: skip
        if value not in allowed:
            raise ToolError(f"{name} {value} is not allowed by the conditions; allowed: {', '.join(allowed)}")
    return bench.candidate(strategy)


def choose(search: SearchResult, proposed: Candidate | None, excluded: list[str]) -> Candidate | None:
    """The better of the proposal and the best of the search that has not failed yet; None when there is neither."""
    left = [c for c in search.ranked if candidate_key(c) not in excluded]
    best = left[0] if left else None
    if proposed is None or not proposed.estimate.feasible or candidate_key(proposed) in excluded:
        return best
    if best is None or proposed.objective_value > best.objective_value:
        return proposed
    return best


def regret(search: SearchResult, proposed: Candidate | None) -> float | None:
    """Share of the best objective value that the proposal gives away; None when it is not feasible, negative if
    better.
    """
    if search.best is None or proposed is None or not proposed.estimate.feasible:
        return None
    best = search.best.objective_value
    return (best - proposed.objective_value) / abs(best) if best else 0.0


# --------------------------------------------------------------------------------------------------- verify_dimensions


@logged
async def verify_dimensions(state: RunState, runtime: Run) -> Command[Literal["propose_strategy", "generate_dag"]]:
    """Both phases of the plan and of its baseline: lowered, checked, executed. A failed check sends back to propose."""
    ctx = runtime.context
    if state.get("paper"):
        from agent import paper_nodes

        return paper_nodes.verify(ctx, state)
    bench, search, chosen = ctx.bench(state), ctx.store.load(state["search"], SearchResult), chosen_of(ctx, state)
    done = [verify(workbench_of(bench, search.infeasible, s), s) for s in subjects(bench, search, chosen)]
    if search.infeasible is not None and chosen is None and (found := verify_nearest(bench, search.infeasible)):
        done.append(found)
    verification = Verification(subjects=tuple(done))
    bench.strategy = done[0].subject.strategy
    errors = [f.model_dump(mode="json") for v in done for f in v.errors]
    context = {
        "strategy": bench.label(bench.strategy),
        "findings": errors,
        "proofs": [p.proof.max_relative_error for p in verification.graph_proofs()],
    }
    outcome, degraded = await ask(
        ctx,
        state,
        "verify_dimensions",
        "Your step: review the dimensions.",
        context,
        {"count_shards", "check_strategy", "prove_strategy"},
        "submit_verification",
        sub.VerificationSubmission,
        lambda s: s,
        {Workbench: bench},
    )
    ctx.log.write("verified", errors=len(errors), opinion=outcome.value.verdict, notes=outcome.value.notes)
    update = RunState(verified=ctx.store.put(verification), degraded=degraded)
    if errors:
        return Command(update={**update, **failed(state, chosen, errors)}, goto="propose_strategy")
    return Command(update=update, goto="generate_dag")


def chosen_of(ctx: RunContext, state: RunState) -> Candidate | None:
    ref = state.get("chosen")
    return ctx.store.load(ref, Candidate) if ref else None


def failed(state: RunState, chosen: Candidate | None, errors: list[dict[str, Any]]) -> RunState:
    """State for another proposal. Raises Bug when no proposal can help, or the fallbacks are spent."""
    first = errors[0]["message"]
    if chosen is None:
        raise Bug(f"a graph of the infeasible verdict fails a check: {first}")
    excluded = [*state.get("excluded", []), candidate_key(chosen)]
    if len(excluded) > MAX_FALLBACKS + MAX_ROUNDS and not state.get("attempts"):
        raise Bug(f"{len(excluded)} plans that the search holds feasible fail a check; last {excluded[-1]}: {first}")
    return RunState(excluded=excluded, feedback=errors)


# -------------------------------------------------------------------------------------------------------- generate_dag


@logged
async def generate_dag(state: RunState, runtime: Run) -> Command[Literal["propose_strategy", "evaluate"]]:
    """Scripts, DOT and SVG of every verified graph, read back and judged by the DAG rules."""
    ctx = runtime.context
    if state.get("paper"):
        from agent import paper_nodes

        return paper_nodes.draw(ctx, state)
    bench, search = ctx.bench(state), ctx.store.load(state["search"], SearchResult)
    verification = ctx.store.load(state["verified"], Verification)
    bench.strategy = verification.subjects[0].subject.strategy
    context = {
        "graphs": [
            {
                "role": v.subject.role,
                "strategy": bench.label(v.subject.strategy),
                "devices": v.subject.strategy.num_devices,
                "phases": list(v.proofs),
            }
            for v in verification.subjects
        ]
    }
    outcome, degraded = await ask(
        ctx, state, "generate_dag", "Your step: decide on further views.", context, {"build_dag"}, "submit_dags",
        sub.DagsSubmission, lambda s: s, {Workbench: bench},
    )  # fmt: skip
    drawn = ctx.drawer(bench, ctx.run_dir, verification, search.infeasible, outcome.value.extra_views)
    errors = [f.model_dump(mode="json") for f in drawn.errors]
    ctx.log.write(
        "drawn",
        dags=[{"name": d.name, "nodes": d.num_nodes, "edges": d.num_edges} for d in drawn.drawings],
        errors=len(errors),
    )
    update = RunState(drawn=ctx.store.put(drawn), degraded=degraded)
    if errors:
        return Command(update={**update, **failed(state, chosen_of(ctx, state), errors)}, goto="propose_strategy")
    return Command(update=update, goto="evaluate")


# ------------------------------------------------------------------------------------------------------------ evaluate


@logged
async def evaluate(state: RunState, runtime: Run) -> Command[Literal["propose_strategy", "publish"]]:
    """The rubric. Below the bar another strategy is tried, if another one could score better; the best attempt is
    kept.
    """
    ctx = runtime.context
    made = make_bundle(ctx, state)
    scores = {s.criterion: s.value for s in made.evaluation.scores}
    context = {
        "headline": made.plan.headline,
        "scores": scores,
        "reasons": {s.criterion: s.reason for s in made.evaluation.scores},
    }
    outcome, degraded = await ask(
        ctx, state, "evaluate", "Your step: review the evaluated plan.", context, set(), "submit_review",
        sub.ReviewSubmission, lambda s: s, {},
    )  # fmt: skip
    opinion = outcome.value.opinion if outcome.by != "builtin" else ""
    attempt: dict[str, Any] = {k: state.get(k) for k in KEPT}
    attempt |= {"passed": made.evaluation.passed, "lowest": min(scores.values()), "opinion": opinion}
    attempts = [*state.get("attempts", []), attempt]
    number = state.get("round", 0) + 1
    update = RunState(attempts=attempts, round=number, degraded=degraded, evaluation=ctx.store.put(made.evaluation))
    again = another_round(ctx, state, made.evaluation, number)
    if again is not None:
        return Command(update={**update, **again}, goto="propose_strategy")
    return Command(update={**update, **best_attempt(attempts)}, goto="publish")


KEPT = ("chosen", "verified", "drawn", "proposal")
"""What a finished round leaves for publication."""


def best_attempt(attempts: list[dict[str, Any]]) -> RunState:
    """The finished round with the best score; the earlier one where they are equal."""
    best = max(attempts, key=lambda a: (a["passed"], a["lowest"]))
    return RunState(**{k: best[k] for k in KEPT})  # type: ignore[typeddict-item]


CHANGED_BY_STRATEGY = frozenset({"rigor", "accuracy", "performance"})


def another_round(ctx: RunContext, state: RunState, evaluation: Evaluation, number: int) -> RunState | None:
    """State for another proposal, if the score is low, rounds are left, and another strategy is there that could
    raise it."""
    chosen = chosen_of(ctx, state)
    low = [s for s in evaluation.scores if s.barred and s.value < evaluation.bar and s.criterion in CHANGED_BY_STRATEGY]
    if evaluation.passed or not low or chosen is None or number >= MAX_ROUNDS:
        return None
    excluded = [*state.get("excluded", []), candidate_key(chosen)]
    search = ctx.store.load(state["search"], SearchResult)
    if not any(candidate_key(c) not in excluded for c in search.ranked):
        return None
    return RunState(excluded=excluded, feedback=[{"code": s.criterion, "message": s.reason} for s in low])


def make_bundle(ctx: RunContext, state: RunState, opinion: str = "") -> Bundle:
    """Everything that will be published, from recorded state; the verdict is established anew."""
    if state.get("paper"):
        from agent import paper_nodes

        return paper_nodes.make_bundle(ctx, state, opinion)
    bench, store = ctx.bench(state), ctx.store
    search, chosen = store.load(state["search"], SearchResult), chosen_of(ctx, state)
    verdict = establish(bench, search, chosen, store.load(state["verified"], Verification))
    _, unknown, constraints = ctx.task
    inputs = store.load(state["sources"], Inputs).files
    record = Record(
        bench=bench,
        run_dir=ctx.run_dir,
        inputs=inputs,
        inputs_after=hashes_now(ctx.options, inputs),
        conditions=store.load(state["conditions"], Conditions),
        search=search,
        verdict=verdict,
        drawn=redrawn(ctx, state),
        proposal=state.get("proposal", {}),
        passages=state.get("passages", []),
        constraints=constraints,
        degraded=tuple(state.get("degraded", [])),
        opinion=opinion,
        findings=tuple(
            Finding(code="task", severity="warning", cause="input", message=f"the task's {u} means nothing here")
            for u in unknown
        ),
    )
    return bundle(record, reference_of(bench, chosen if isinstance(verdict, Proven) else None))


def opinion_of(state: RunState) -> str:
    """What the language model said about the round that is published."""
    return next((a["opinion"] for a in state.get("attempts", []) if a["verified"] == state.get("verified")), "")


def hashes_now(options: RunOptions, inputs: tuple[InputFile, ...]) -> dict[str, str]:
    """sha256 of every input as it lies there now; "" where it is gone."""
    paths = {f.path: options.path(f.path) for f in inputs}
    return {name: sha256_file(path) if path.is_file() else "" for name, path in paths.items()}


def redrawn(ctx: RunContext, state: RunState) -> Drawn:
    """The recorded drawings; drawn again where their files are not what was recorded (an earlier attempt won, a
    crash).
    """
    drawn = ctx.store.load(state["drawn"], Drawn)
    folder = dag_dir(ctx.run_dir)
    recorded = {name: digest for d in drawn.drawings for name, digest in d.files.items()}
    if all((folder / n).is_file() and sha256_file(folder / n) == digest for n, digest in recorded.items()):
        return drawn
    search = ctx.store.load(state["search"], SearchResult)
    views = [d.detail for d in drawn.drawings]
    return ctx.drawer(
        ctx.bench(state), ctx.run_dir, ctx.store.load(state["verified"], Verification), search.infeasible, views
    )


# ------------------------------------------------------------------------------------------------------------- publish


@logged
async def publish(state: RunState, runtime: Run) -> Command[Literal["propose_strategy", "__end__"]]:
    """All files at once, the manifest last. Under --approve a person says yes before that."""
    ctx = runtime.context
    made = make_bundle(ctx, state, opinion_of(state))
    if ctx.options.approve:
        report = made.files["plan.md"][1]
        shown = approval.request(ctx.run_dir, made.plan, made.evaluation, report)
        answer = approval.Answer.model_validate(interrupt(shown))
        ctx.log.write("approval", verdict=answer.verdict, reason=answer.reason)
        if answer.verdict == "no" and made.plan.strategy is not None:
            chosen = chosen_of(ctx, state)
            assert chosen is not None
            out = approval.rejected(state, candidate_key(chosen), state.get("chosen"), answer.reason)
            return Command(update=out, goto="propose_strategy")
    contents = {path: data for path, (_, data) in made.files.items()}
    artifacts: list[Any] = [(kind, path, data) for path, (kind, data) in made.files.items()]
    artifacts += [(kind, path, source.read_bytes()) for path, (kind, source) in made.copies.items()]
    artifacts.append(("events", "events.jsonl", b""))
    here = str(ctx.run_dir.resolve())
    inputs = [
        InputRef(path=input_path(str(ctx.options.path(i["path"]).resolve()), here), sha256=i["sha256"])
        for i in state["inputs"]
    ]
    manifest = build(made.plan.status, inputs=inputs, artifacts=artifacts, degraded=state.get("degraded", []))
    contents["manifest.json"] = manifest.to_json().encode()
    publish_files(ctx.run_dir, contents, {path: source for path, (_, source) in made.copies.items()})
    ctx.log.write("published", status=made.plan.status, manifest="manifest.json", passed=made.evaluation.passed)
    return Command(update=RunState(manifest="manifest.json"), goto="__end__")
