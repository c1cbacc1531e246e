"""Runs a suite with several backends: in parallel processes, each run kept by the hash of what went into it.

    results = run_suite(suite, backends, out, samples=3)      # yields Result as they finish
    summary = summarise(results)                              # backend → criterion → mean with interval
    regressions(summary, results, baseline)                   # what got worse than the committed scores

An observation is taken again only when the case, the backend, the depth or the code changed; scores are computed from it
each time. A run that was interrupted goes on where it was.
"""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import Any

from agent.errors import BUG
from agent.files import canonical, sha256, write_atomic
from evals.case import Case
from evals.observe import Job, Observation, observe
from evals.score import CaseScore, score
from evals.suites import Suite
from tools.spec.base import Frozen, ToolError

BASELINE = Path(__file__).parent / "baseline.json"
BAR = 0.8
TOLERANCE = 1e-3
"""A mean may fall by this much before it is a regression: scores are rounded when they are committed."""
PREDICTED = frozenset({"rubric.accuracy", "rubric.performance", "rubric.attitude", "plan_regret"})
PREDICTED_TOLERANCE = 0.02
"""Scores that follow the predicted times move a little whenever a constant is fitted anew; what is read, proven and
drawn does not."""


def tolerance(criterion: str) -> float:
    """How far a score may fall before it counts as worse."""
    return PREDICTED_TOLERANCE if criterion in PREDICTED else TOLERANCE


class Result(Frozen):
    """One run, scored."""

    case: str
    kind: str
    title: str
    backend: str
    sample: int
    key: str
    cached: bool
    observation: dict[str, Any]
    scores: tuple[CaseScore, ...]

    def value(self, criterion: str) -> float | None:
        return next((s.value for s in self.scores if s.criterion == criterion), None)


# ----------------------------------------------------------------------------------------------------------------- run


def run_suite(
    suite: Suite, backends: Sequence[str], out: Path, *, samples: int = 1, workers: int = 2,
    base_url: str | None = None, strict: bool = False, task: Path | None = None, fresh: bool = False,
) -> Iterator[Result]:  # fmt: skip
    """Every case × backend × sample, those found in `out` first, then the others as they finish."""
    open_jobs: list[tuple[Case, Job, str]] = []
    for backend in backends:
        count = 1 if backend == "builtin" else samples  # the built-in policy gives the same answer every time
        for case in suite.cases:
            for sample in range(count):
                job = make_job(case, backend, sample, suite, out, base_url, strict, task)
                key = job_key(job, case)
                kept = None if fresh else _kept(out, key)
                if kept is not None:
                    yield result(case, job, key, kept, cached=True)
                else:
                    open_jobs.append((case, job, key))
    # The long ones first, so that no worker is left alone with one at the end.
    open_jobs.sort(key=lambda x: -sum(p.stat().st_size for p in x[0].folder.rglob("*") if p.is_file()))
    for case, job, key, seen in _all(open_jobs, workers):
        write_atomic(out / "cache" / f"{key}.json", canonical(seen))
        yield result(case, job, key, seen, cached=False)


def make_job(
    case: Case, backend: str, sample: int, suite: Suite, out: Path, base_url: str | None, strict: bool,
    task: Path | None,
) -> Job:  # fmt: skip
    place = out / "runs" / _safe(backend) / case.id / f"s{sample}"
    return Job(
        folder=str(case.folder.resolve()), backend=replay_of(backend, case), base_url=base_url, sample=sample,
        depth=suite.depth, out=str(place.resolve()), strict=strict, task=str(task.resolve()) if task else None,
    )  # fmt: skip


def replay_of(backend: str, case: Case) -> str:
    """`replay:DIR` means the log of this case in DIR: DIR/CASE.jsonl, or the event log of a run DIR/CASE."""
    name, _, place = backend.partition(":")
    if name != "replay" or not Path(place).is_dir():
        return backend
    for found in (Path(place) / f"{case.id}.jsonl", Path(place) / case.id / "s0" / "events.jsonl",
                  Path(place) / case.id / "events.jsonl"):  # fmt: skip
        if found.is_file():
            return f"replay:{found.resolve()}"
    raise ToolError(f"--backend {backend}: no log of {case.id} in it; expected {case.id}.jsonl")


def _safe(backend: str) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in backend)[:80]


def job_key(job: Job, case: Case) -> str:
    """Hash of everything that the observation depends on: the inputs, the backend's settings, the code."""
    inputs = {name: sha256(text.encode()) for name, text in case.texts().items()}
    backend = _backend_identity(job.backend, job.base_url)
    task = sha256(Path(job.task).read_bytes()) if job.task else None
    asked = {"case": case.id, "inputs": inputs, "backend": backend, "sample": job.sample, "depth": job.depth}
    return sha256(canonical({**asked, "strict": job.strict, "task": task, "code": code_digest()}))[:24]


def _backend_identity(choice: str, base_url: str | None) -> dict[str, Any]:
    """Settings of a backend that change its answers; of a replayed log its content. Never a key."""
    from agent.llm.profiles import profiles

    name, _, rest = choice.partition(":")
    if name == "replay":
        return {"replay": sha256(Path(rest).read_bytes()) if Path(rest).is_file() else rest}
    profile = profiles().get(name)
    return {"choice": choice, "url": base_url, "profile": profile.model_dump(mode="json") if profile else None}


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Hash of every file of the packages that a run uses (code, prompts, catalogue)."""
    import agent
    import knowledge
    import prompts
    import tools

    digest = hashlib.sha256()
    for package in (agent, knowledge, prompts, tools):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{root.name}/{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _kept(out: Path, key: str) -> Observation | None:
    try:
        found = json.loads((out / "cache" / f"{key}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _all(jobs: Sequence[tuple[Case, Job, str]], workers: int) -> Iterator[tuple[Case, Job, str, Observation]]:
    """Observations as they come. A run that takes its process down costs itself, and the pool is made anew."""
    left = list(jobs)
    while left:
        with ProcessPoolExecutor(
            min(workers, len(left)), mp_context=multiprocessing.get_context("spawn"), initializer=_settle
        ) as pool:
            running: dict[Future[Observation], tuple[Case, Job, str]] = {pool.submit(observe, j[1]): j for j in left}
            broken = []
            for done in as_completed(running):
                item = running[done]
                try:
                    seen = done.result()
                except BrokenProcessPool:
                    broken.append(item)
                    continue
                left.remove(item)
                yield (*item, seen)
        # Nobody knows which of the running ones did it: each is tried alone.
        for item in broken[:workers]:
            left.remove(item)
            yield (*item, _alone(item[1]))


def _settle() -> None:
    """A worker's graphs are large and free of cycles: collecting garbage seldom saves 5 % of the time."""
    gc.set_threshold(200_000, 50, 50)


def _alone(job: Job) -> Observation:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(observe, job).result()
        except BrokenProcessPool:
            return {
                "case": Path(job.folder).name, "backend": job.backend, "sample": job.sample, "depth": job.depth,
                "exit_code": BUG, "error": "the run took its process down", "stray": [], "seconds": 0.0,
            }  # fmt: skip


def result(case: Case, job: Job, key: str, seen: Observation, *, cached: bool) -> Result:
    name = "replay" if job.backend.startswith("replay:") else job.backend
    return Result(
        case=case.id, kind=case.kind, title=case.title, backend=name, sample=job.sample, key=key, cached=cached,
        observation=seen, scores=score(case, seen),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- summary


class Mean(Frozen):
    """Mean of a criterion over cases (samples of a case averaged first), with a 95 % bootstrap interval over cases."""

    mean: float
    low: float
    high: float
    cases: int


class BackendSummary(Frozen):
    backend: str
    runs: int
    criteria: dict[str, Mean]
    kinds: dict[str, float]
    """Kind of case → mean of all its scores."""
    passed: int
    """Runs without any score below the bar."""
    calls: int
    prompt: int
    completion: int
    cached_tokens: int
    cost: float | None
    currency: str
    seconds: float
    cpu_seconds: float


def summarise(results: Iterable[Result]) -> tuple[BackendSummary, ...]:
    by_backend: dict[str, list[Result]] = {}
    for r in results:
        by_backend.setdefault(r.backend, []).append(r)
    return tuple(_summary(name, found) for name, found in by_backend.items())


def _summary(name: str, found: list[Result]) -> BackendSummary:
    names = list(dict.fromkeys(s.criterion for r in found for s in r.scores))
    usage = [r.observation.get("usage") or {"total": {}, "currency": "USD"} for r in found]
    costs = [u["total"].get("cost") for u in usage if u["total"].get("cost") is not None]

    def total(key: str) -> int:
        return int(sum(u["total"].get(key, 0) for u in usage))

    kinds = {k: [s.value for r in found if r.kind == k for s in r.scores] for k in dict.fromkeys(r.kind for r in found)}
    return BackendSummary(
        backend=name, runs=len(found), criteria={c: mean_of(found, c) for c in names},
        kinds={k: sum(v) / len(v) for k, v in kinds.items() if v},
        passed=sum(all(s.value >= BAR for s in r.scores) for r in found),
        calls=total("calls"), prompt=total("prompt"), completion=total("completion"), cached_tokens=total("cached"),
        cost=sum(costs) if costs else None, currency=usage[0]["currency"],
        seconds=sum(r.observation.get("seconds", 0.0) for r in found),
        cpu_seconds=sum(r.observation.get("cpu_seconds", 0.0) for r in found),
    )  # fmt: skip


RESAMPLES = 1000


def mean_of(found: Sequence[Result], criterion: str) -> Mean:
    """Cases are resampled, and within each drawn case its samples: what varies is which cases were asked and what the
    backend happened to answer. Seeded, so that the same results give the same interval."""
    import numpy as np

    cases: dict[str, list[float]] = {}
    for r in found:
        if (value := r.value(criterion)) is not None:
            cases.setdefault(r.case, []).append(value)
    groups = [np.array(v) for v in cases.values()]
    centre = float(np.mean([g.mean() for g in groups]))
    rng = np.random.default_rng(0)
    picked = rng.integers(0, len(groups), (RESAMPLES, len(groups)))
    if all(len(g) == 1 for g in groups):
        draws = np.concatenate(groups)[picked].mean(axis=1)
    else:
        draws = np.array([np.mean([rng.choice(groups[i], len(groups[i])).mean() for i in row]) for row in picked])
    low, high = np.percentile(draws, [2.5, 97.5])
    return Mean(mean=centre, low=float(low), high=float(high), cases=len(groups))


# ------------------------------------------------------------------------------------------------------------ baseline


def baseline_of(suite: Suite, results: Sequence[Result]) -> dict[str, Any]:
    """What is committed: of every case the score of every criterion, by the built-in policy."""
    scores = {r.case: {s.criterion: round(s.value, 4) for s in r.scores} for r in results if r.backend == "builtin"}
    return {"suite": suite.name, "depth": suite.depth, "scores": dict(sorted(scores.items()))}


def load_baseline(path: Path = BASELINE) -> dict[str, Any]:
    """Raises ToolError when it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"suite": found["suite"], "depth": found["depth"], "scores": found["scores"]}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ToolError(f"{path}: not readable as a baseline ({e}); write one with --update-baseline") from None


def regressions(suite: Suite, results: Sequence[Result], baseline: dict[str, Any]) -> list[str]:
    """What the built-in policy does worse than the committed scores, in words: a criterion whose mean over the cases
    that both have fell, and a case that fell below the bar. Cases that are new or gone are no regression."""
    if suite.depth != baseline["depth"]:
        return []
    now = {r.case: {s.criterion: s.value for s in r.scores} for r in results if r.backend == "builtin"}
    both = [c for c in baseline["scores"] if c in now]
    found = []
    for name in sorted({k for c in both for k in baseline["scores"][c]}):
        cases = [c for c in both if name in baseline["scores"][c]]
        old = sum(baseline["scores"][c][name] for c in cases) / len(cases)
        # A criterion that no longer applies where it did (no plan any more) counts as lost.
        new = sum(now[c].get(name, 0.0) for c in cases) / len(cases)
        fallen = [c for c in cases if now[c].get(name, 0.0) < baseline["scores"][c][name] - tolerance(name)]
        if new < old - tolerance(name):
            found.append(f"{name}: {old:.4f} → {new:.4f} over {len(cases)} cases; worse: {', '.join(fallen[:6])}")
        else:
            below = [c for c in fallen if now[c].get(name, 0.0) < BAR <= baseline["scores"][c][name]]
            found += [f"{name}: {c} fell to {now[c].get(name, 0.0):.2f}, below the bar of {BAR}" for c in below]
    return found
