"""How large a deployment DAG may get: nodes, seconds and MB from the model to the DOT text, one process per row.

    python benchmarks/bench_dag.py [NAME...]      # all rows, or those named; prints a Markdown table

Rows: what a plan of that size draws. `seconds` covers lowering, building, layout and DOT text; `check` is the time that
`check-dag` takes to read the text back and judge it; `MB` is the DOT text; `peak` is the process's high-water mark.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field

from knowledge.catalog import load_model
from tools.dag.build import build_dag
from tools.dag.check_dot import check_dot
from tools.dag.dot import to_dot
from tools.dag.graph import Detail
from tools.graph.build import all_sizes
from tools.partition.lower import lower
from tools.spec.strategy import Phase, Strategy


@dataclass(frozen=True)
class Row:
    """One drawing: a model under a strategy."""

    model: str
    degrees: dict[str, int]
    detail: Detail = "full"
    phase: Phase = "prefill"
    replicas: bool = False
    options: dict[str, int] = field(default_factory=dict)


ROWS = {
    "dense_8": Row("llama3.1-70b", {"tp": 8}),
    "moe_64": Row("qwen3-235b-a22b", {"tp": 4, "attn_dp": 16, "ep": 64}),
    "moe_256": Row("deepseek-v3", {"tp": 1, "attn_dp": 256, "ep": 256}, phase="decode"),
    "group_1024": Row("deepseek-v3", {"tp": 8, "attn_dp": 16, "ep": 128, "pp": 8}, "group"),
    "stage_1024": Row("deepseek-v3", {"tp": 8, "attn_dp": 16, "ep": 128, "pp": 8}, "stage"),
    "full_1024": Row("deepseek-v3", {"tp": 8, "attn_dp": 16, "ep": 128, "pp": 8}),
    "nodes_100k": Row("llama3.1-405b", {"tp": 8, "pp": 2, "dp": 230}, replicas=True),
}


def measure(row: Row) -> list[str]:
    """Cells of one row of the table."""
    model, strategy = load_model(row.model).model, Strategy(**row.degrees)  # type: ignore[arg-type]
    began = time.perf_counter()
    batch, seq = 2 * (strategy.attn_dp or 1), 2048
    sizes = all_sizes(model, batch_size=batch, seq_len=seq if row.phase == "prefill" else 1, kv_len=seq)
    dag = build_dag(lower(model, strategy, row.phase, sizes), detail=row.detail, expand_replicas=row.replicas)
    text = to_dot(dag)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    began = time.perf_counter()
    (report,) = check_dot(text, row.model)
    check = time.perf_counter() - began
    broken = ",".join(r.rule for r in report.failed) or "none"
    return [
        row.model, strategy.label(), row.detail, str(strategy.num_devices), f"{len(dag.nodes):,}",
        f"{len(dag.edges):,}", f"{seconds:.1f}", f"{len(text) / 1e6:.1f}", f"{peak:.0f}", f"{check:.1f}", broken,
    ]  # fmt: skip


HEAD = ["row", "model", "strategy", "detail", "devices", "nodes", "edges", "seconds", "MB", "peak MB", "check s",
        "rules broken"]  # fmt: skip


def main(names: list[str]) -> None:
    """A child per row, so that the peaks are the rows' own."""
    if len(names) == 2 and names[0] == "--row":
        print(" | ".join(measure(ROWS[names[1]])))
        return
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    for name in names or ROWS:
        command = [sys.executable, __file__, "--row", name]
        done = subprocess.run(command, capture_output=True, text=True)
        answer = done.stdout.strip() if done.returncode == 0 else (done.stderr.strip().splitlines() or ["failed"])[-1]
        print(f"| {name} | {answer} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
