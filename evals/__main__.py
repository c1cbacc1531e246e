"""`meshwright eval` and `python -m evals`: run a suite, report, and fail on a regression.

Exit 0: answered, no worse than the committed scores. 1: worse. 2: bad input.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.commands.common import print_json, ready_dir
from agent.errors import FINDINGS, OK
from agent.files import canonical, exclusive, write_atomic
from evals.harness import BASELINE, Result, baseline_of, load_baseline, regressions, run_suite, summarise
from evals.report import table, write_html, write_jsonl
from evals.suites import Suite, load_suite
from tools.spec.base import ToolError


def evaluate(
    suite: str, backends: Sequence[str], out: Path, *, samples: int = 1, workers: int = 2, depth: str | None = None,
    base_url: str | None = None, strict: bool = False, fresh: bool = False, update_baseline: bool = False,
    baseline: Path | None = None, json_: bool = False,
) -> int:  # fmt: skip
    if (Path(suite) / "manifest.json").is_file():
        return judge_again(Path(suite), json_)
    chosen = load_suite(suite, depth)
    check_backends(backends, base_url, samples, workers)
    ready_dir(out)
    with exclusive(out):
        began = time.monotonic()
        results = _run(chosen, backends, out, samples, workers, base_url, strict, fresh)
        cost = cost_of(results, time.monotonic() - began, workers)
        return _report(chosen, results, out, update_baseline, baseline or BASELINE, json_, cost)


def judge_again(run_dir: Path, json_: bool) -> int:
    """The rubric on what lies in a run's directory now. Exit 1 when it does not pass, or is not what the run wrote."""
    from agent.rejudge import rejudge, restate

    restated = restate(run_dir)
    found = rejudge(run_dir, restated)
    if json_:
        print_json(found.model_dump(mode="json"))
    else:
        for s in found.scores:
            print(f"{s.criterion:<12} {s.value:.2f}  {s.reason}")
        print("passed" if found.passed else "not passed")
    same = found.scores == restated.evaluation.scores
    return OK if found.passed and same else FINDINGS


def cost_of(results: Sequence[Result], seconds: float, workers: int) -> dict[str, float]:
    """What the evaluation took here: wall and CPU seconds of the runs that were not kept from before."""
    new = [r for r in results if not r.cached]
    cpu = sum(r.observation.get("cpu_seconds", 0.0) for r in new)
    return {"runs": len(new), "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "workers": workers}


def check_backends(backends: Sequence[str], base_url: str | None, samples: int, workers: int) -> None:
    """Refuses what can be refused before the first run."""
    import asyncio

    from agent.llm.profiles import make_backend

    if len(set(backends)) < len(backends):
        raise ToolError(f"--backend is given twice: {', '.join(backends)}; use --samples for repeated runs")
    if not 1 <= samples <= 100 or not 1 <= workers <= 64:
        raise ToolError(f"--samples {samples}, --workers {workers}: samples are 1 to 100, workers 1 to 64")
    for name in backends:
        if not (name.startswith("replay:") and Path(name.partition(":")[2]).is_dir()):
            asyncio.run(make_backend(name, base_url).close())


def _run(
    suite: Suite, backends: Sequence[str], out: Path, samples: int, workers: int, base_url: str | None, strict: bool,
    fresh: bool,
) -> list[Result]:  # fmt: skip
    results: list[Result] = []
    for r in run_suite(
        suite, backends, out, samples=samples, workers=workers, base_url=base_url, strict=strict, fresh=fresh
    ):
        results.append(r)
        lowest = min(r.scores, key=lambda s: s.value, default=None)
        low = f"{lowest.value:.2f} {lowest.criterion}" if lowest and lowest.value < 1 else "1.00"
        again = " (kept)" if r.cached else ""
        line = f"{r.case:<42} {r.backend} #{r.sample}  {r.observation.get('seconds', 0):6.1f} s  lowest {low}{again}"
        print(line, file=sys.stderr, flush=True)
    return sorted(results, key=lambda r: (r.backend, r.case, r.sample))


def _report(
    suite: Suite, results: list[Result], out: Path, update: bool, baseline: Path, json_: bool,
    cost: dict[str, float],
) -> int:  # fmt: skip
    summaries = summarise(results)
    builtin = any(r.backend == "builtin" for r in results)
    if update:
        _update(suite, results, baseline, builtin)
    worse = regressions(suite, results, load_baseline(baseline)) if builtin and baseline.is_file() else []
    write_jsonl(results, out / "results.jsonl")
    write_html(results, summaries, worse, out / "report.html", f"meshwright eval: {suite.name}, depth {suite.depth}")
    if json_:
        files = {"results": str(out / "results.jsonl"), "report": str(out / "report.html")}
        document: dict[str, Any] = {
            "suite": suite.name,
            "depth": suite.depth,
            "regressions": worse,
            "cost": cost,
            **files,
        }
        print_json({**document, "backends": [s.model_dump(mode="json") for s in summaries]})
    else:
        _print(summaries, worse, out, cost)
    return FINDINGS if worse else OK


def _update(suite: Suite, results: list[Result], path: Path, builtin: bool) -> None:
    if not builtin:
        raise ToolError(
            "--update-baseline needs --backend builtin among the backends: its scores are the committed ones"
        )
    if suite.name != "all":
        raise ToolError(f"--update-baseline is for the suite all, not for {suite.name}: the others are parts of it")
    write_atomic(path, canonical(baseline_of(suite, results)).replace(b'},"', b'},\n"') + b"\n")


def _print(summaries: Any, worse: Sequence[str], out: Path, cost: dict[str, float]) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 140).print(table(summaries))
    for w in worse:
        print(f"worse: {w}")
    print(
        f"took     {cost['seconds']:.0f} s with {cost['workers']:.0f} processes for {cost['runs']:.0f} new runs "
        f"({cost['cpu_seconds']:.0f} s of CPU)"
    )
    print(f"runs     {out / 'results.jsonl'}\nreport   {out / 'report.html'}")


if __name__ == "__main__":
    from agent.cli import main

    main(["eval", *sys.argv[1:]])
