"""The evaluation's cases and scorer for inspect-ai (optional: `pip install 'meshwright[inspect]'`).

    inspect eval evals/inspect_adapter.py@meshwright --model openai/gpt-4.1 -T suite=smoke
    inspect eval evals/inspect_adapter.py@meshwright --model none -T suite=consumer

A sample is a case, its solver is one whole run of the agent, its scores are those of `meshwright eval`: the same
observation goes through the same `evals.score.score`. The agent asks the model over its own backends, so inspect's
`PROVIDER/MODEL` becomes `PROVIDER:MODEL` of `--backend`; `none` and `mockllm` are the built-in policy. `-T backend=`
names one directly (`replay:DIR`), `-T base_url=` its server.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from evals.case import load_case
from evals.harness import replay_of
from evals.observe import Job, observe
from evals.score import CaseScore, score
from evals.suites import load_suite
from tools.spec.base import ToolError

try:
    from inspect_ai import Task, task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
    from inspect_ai.solver import Generate, Solver, TaskState, solver
except ImportError as e:
    raise ToolError(f"inspect-ai is not installed ({e.name}); pip install 'meshwright[inspect]'") from None

NO_MODEL = ("none", "mockllm")
"""Providers of inspect behind which no model is."""


def backend_of(model: str) -> str:
    """Our `--backend` for inspect's `provider/model`: `openai/gpt-4.1` → `openai:gpt-4.1`."""
    provider, _, name = model.partition("/")
    return "builtin" if provider in NO_MODEL else f"{provider}:{name}"


def samples(suite: str, depth: str | None = None) -> list[Sample]:
    """A sample per case: the texts of its inputs are shown, what is expected is its metadata."""
    chosen = load_suite(suite, depth)
    return [
        Sample(
            id=c.id, input="\n\n".join(f"{name}\n{text}" for name, text in c.texts().items()) or c.title,
            target=json.dumps(c.expect.model_dump(mode="json"), ensure_ascii=False),
            metadata={"folder": str(c.folder.resolve()), "kind": c.kind, "title": c.title, "depth": chosen.depth},
        )
        for c in chosen.cases
    ]  # fmt: skip


@solver
def agent_run(backend: str | None = None, base_url: str | None = None, strict: bool = False) -> Solver:
    """One whole run on the case; its observation is kept in the sample's store."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        case = load_case(Path(state.metadata["folder"]))
        with tempfile.TemporaryDirectory() as out:
            job = Job(
                folder=state.metadata["folder"], backend=replay_of(backend or backend_of(str(state.model)), case),
                base_url=base_url, sample=state.epoch - 1, depth=state.metadata["depth"], out=f"{out}/run", strict=strict,
            )  # fmt: skip
            # The run has an event loop of its own.
            seen = await asyncio.to_thread(observe, job)
        state.store.set("observation", seen)
        plan = seen.get("plan") or {}
        state.output.completion = plan.get("headline") or seen.get("error") or "read"
        return state

    return solve


def as_inspect(found: tuple[CaseScore, ...]) -> dict[str, float]:
    return {s.criterion: s.value for s in found}


@scorer(metrics=[mean(), stderr()])
def lowest() -> Scorer:
    """The lowest of all scores of the run; each one, with its reason and evidence, is in the metadata."""

    async def judge(state: TaskState, target: Target) -> Score:
        case = load_case(Path(state.metadata["folder"]))
        found = score(case, state.store.get("observation"))
        worst = min(found, key=lambda s: s.value, default=None)
        return Score(
            value=worst.value if worst else 1.0, answer=state.output.completion,
            explanation=f"{worst.criterion}: {worst.reason}" if worst and worst.value < 1 else "full marks",
            metadata={"scores": as_inspect(found), "reasons": {s.criterion: s.reason for s in found if s.value < 1}},
        )  # fmt: skip

    return judge


@scorer(metrics={"*": [mean(), stderr()]})
def criteria() -> Scorer:
    """Every criterion as a score of its own."""

    async def judge(state: TaskState, target: Target) -> Score:
        found = score(load_case(Path(state.metadata["folder"])), state.store.get("observation"))
        return Score(value=as_inspect(found), explanation="; ".join(s.reason for s in found if s.value < 1))

    return judge


@task
def meshwright(
    suite: str = "smoke", backend: str | None = None, base_url: str | None = None, depth: str | None = None,
    strict: bool = False,
) -> Task:  # fmt: skip
    """The cases of a suite (`meshwright eval --help` lists them), solved by the agent."""
    return Task(
        dataset=MemoryDataset(samples(suite, depth), name=f"meshwright {suite}"),
        solver=agent_run(backend, base_url, strict), scorer=[lowest(), criteria()],
    )  # fmt: skip
