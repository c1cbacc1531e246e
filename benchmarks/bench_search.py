"""How fast the search is: costed configurations per second of CPU time, against pricing one strategy at a time, and whole
searches, verdicts of infeasibility included. Reported, never asserted.

    python benchmarks/bench_search.py [--runs N]

A configuration is a layout with its batch and its limit of tokens per step, priced with TTFT, TPOT, throughput and memory;
no two are alike, and each price equals `predict` of that one strategy (tests/test_search.py). "first" forgets before every
run what earlier ones worked out; "again" keeps it, as a search does that changes a limit or a rate. CPU seconds of one
thread: on a shared machine the wall clock says more about the neighbours.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.estimate_csv import cluster_of  # noqa: E402
from knowledge.catalog import load_device, load_model  # noqa: E402
from knowledge.curves import load_curves  # noqa: E402
from tools.cost.curves import Curves  # noqa: E402
from tools.cost.estimate import predict  # noqa: E402
from tools.cost.known import forget  # noqa: E402
from tools.search import search  # noqa: E402
from tools.search.space import Space, price_space  # noqa: E402
from tools.spec.deployment import Deployment  # noqa: E402
from tools.spec.workload import EngineChoice, Requirement, Requirements, Workload  # noqa: E402

SPACES = (
    ("deepseek-v3", "H200", 1024, "fp8", "vllm"), ("deepseek-v3", "H200", 1024, "fp8", "sglang"),
    ("qwen3-235b-a22b", "H100", 64, "fp8", "vllm"), ("deepseek-v3", "H20", 16, "fp8", "sglang"),
    ("llama3-70b", "H100", 8, "bf16", "vllm"),
)  # fmt: skip
"""(model, device, devices, weights, engine)"""
VERDICTS: dict[str, tuple[str, str, int, str, dict[str, Any]]] = {
    "a rate out of reach": ("deepseek-r1", "H20", 16, "fp8", {"request_rate": 200.0}),
    "a context out of reach": ("deepseek-r1", "H20", 8, "fp8", {"isl": 30_000, "osl": 2_000, "max_context": 131_072}),
    "too many at once": (
        "deepseek-v3",
        "H20",
        16,
        "fp8",
        {"isl": 3500, "osl": 1000, "concurrency": 200, "max_context": 32_768},
    ),
    "too little memory": ("llama3-70b", "H100", 1, "bf16", {}),
}
ALONE = 25
"""Strategies that are priced one at a time for comparison."""


def case(model: str, device: str, n: int, weights: str, engine: str = "vllm", **load: Any) -> Deployment:
    gates = (Requirement(metric="ttft_s", stat="p99", limit=2.0), Requirement(metric="tpot_s", limit=0.05))
    return Deployment(
        model=load_model(model).model, cluster=cluster_of(load_device(device).device, n),
        workload=Workload(**{"isl": 2048, "osl": 512, **load}), requirements=Requirements(gates=gates),
        weight_dtypes=(weights,), engine=EngineChoice(name=engine),
    )  # fmt: skip


def seconds(work: Callable[[], object], runs: int, *, first: bool) -> float:
    """Median CPU seconds; `first`: nothing known from before."""
    taken = []
    for _ in range(runs):
        if first:
            forget()
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return statistics.median(taken)


def one_at_a_time(d: Deployment, curves: Curves, space: Space) -> float:
    """CPU seconds per configuration, each as a strategy of its own."""
    where = [(p, i) for p in space.priced for i in range(len(p))]
    chosen = random.Random(0).sample(where, min(ALONE, len(where)))
    strategies = [p.cands.strategy(i, d.model) for p, i in chosen]
    begin = time.process_time()
    for s in strategies:
        predict(d, s, curves)
    return (time.process_time() - begin) / len(strategies)


def report_space(row: tuple[str, str, int, str, str], curves: Curves, runs: int) -> None:
    model, device, n, weights, engine = row
    d = case(model, device, n, weights, engine)
    space = price_space(d, curves, (n,))
    count = sum(len(p) for p in space.priced)
    first, again = (seconds(lambda: price_space(d, curves, (n,)), runs, first=x) for x in (True, False))
    alone = one_at_a_time(d, curves, space)
    whole = seconds(lambda: search(d, curves), max(1, runs // 2), first=True)
    print(
        f"{model} on {n} x {device}, {engine}: {count:,} configurations in {first:.2f} s = {count / first:,.0f}/s "
        f"(again {count / again:,.0f}/s); one at a time {1 / alone:,.0f}/s, {alone * count / first:,.0f} times slower; "
        f"full search {whole:.2f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs, curves = parser.parse_args().runs, load_curves()
    for row in SPACES:
        report_space(row, curves, runs)
    for what, (model, device, n, weights, load) in VERDICTS.items():
        d = case(model, device, n, weights, **load)
        taken, changes = seconds(lambda d=d: search(d, curves), 1, first=True), search(d, curves)  # type: ignore[misc]
        found = changes.infeasible.nearest if changes.infeasible else ()
        print(f"infeasible: {what} ({model} on {n} x {device}): verdict with {len(found)} changes in {taken:.2f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
