"""Draws every strategy that `make prove-all` proves, on few sequences, and applies the DAG rules to the DOT text.

    python benchmarks/draw_all.py [--one-in N] [MODEL...]     # exit 1 where a rule is broken or nothing could be drawn

Prints one line per model; `tests/test_dag_all.py` draws a sample.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.prove_all import ARCHITECTURES, AXIS_SETS  # noqa: E402
from knowledge.catalog import load_model  # noqa: E402
from tools.dag.build import build_dag  # noqa: E402
from tools.dag.check_dot import check_dot  # noqa: E402
from tools.dag.dot import to_dot  # noqa: E402
from tools.dag.graph import Detail  # noqa: E402
from tools.graph.build import all_sizes  # noqa: E402
from tools.partition.lower import lower  # noqa: E402
from tools.spec.base import Refused, ToolError  # noqa: E402
from tools.spec.strategy import Phase, Strategy  # noqa: E402

PHASES: tuple[Phase, ...] = ("prefill", "decode")


def cells(one_in: int = 1) -> list[tuple[str, str]]:
    """(model, axis set): all, or one in so many, always the same ones."""
    return [(m, a) for m in ARCHITECTURES for a in AXIS_SETS if crc32(f"{m} {a}".encode()) % one_in == 0]


def drawn(name: str, axes: str, *, batch: int = 1, seq: int = 7, detail: Detail = "full") -> Iterator[list[str]]:
    """Broken rules of each drawing of a cell; nothing for a layout that is refused.

    batch: sequences per attention group; seq: prompt, or context in decode.
    """
    model = load_model(name).model
    for degrees in AXIS_SETS[axes](model)[:1]:
        s = Strategy.model_validate(degrees)
        for phase in PHASES:
            length = seq if phase == "prefill" else 1
            sizes = all_sizes(model, batch_size=batch * (s.attn_dp or 1), seq_len=length, kv_len=seq)
            try:
                program = lower(model, s, phase, sizes)
            except (ToolError, Refused):
                continue
            dag = build_dag(program, detail=detail)
            (report,) = check_dot(to_dot(dag), name)
            yield [f"{s.label()} {phase}: {r.rule} {r.message}" for r in report.failed]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--one-in", type=int, default=1)
    options = parser.parse_args()
    count, wrong, began = Counter[str](), 0, time.perf_counter()
    for name, axes in cells(options.one_in):
        if options.models and name not in options.models:
            continue
        for broken in drawn(name, axes):
            count[name] += 1
            wrong += bool(broken)
            for line in broken:
                print(f"{name} {axes} {line}")
    for name, k in count.items():
        print(f"{name:22s} {k:4d} drawings")
    print(f"{count.total()} drawings, {wrong} with a broken rule, {time.perf_counter() - began:.0f} s")
    return 1 if wrong or not count else 0


if __name__ == "__main__":
    raise SystemExit(main())
