"""How much the oracle catches: wrong programs of every kind, made from right ones, each executed on all its devices.

python benchmarks/mutate_all.py               up to 120 mutants of each kind, writes benchmarks/mutate_all.md
python benchmarks/mutate_all.py --each 20     fewer
python benchmarks/mutate_all.py --print       without writing the page

Exit 1 if a mutant survives that is not shown to be equivalent, or if one called equivalent is caught after all.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices are tiny; threads only wait for each other
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

import tools.oracle.pools as oracle_pools  # noqa: E402
from knowledge.catalog import load_model  # noqa: E402
from tests.mutants import SAME, Mutant, equivalent, mutants_by_kind, pool_mutants_by_kind  # noqa: E402
from tools.graph.build import all_sizes  # noqa: E402
from tools.oracle.pools import prove_pools  # noqa: E402
from tools.oracle.prove import Programs, Proof, prove  # noqa: E402
from tools.oracle.reduce import reduce  # noqa: E402
from tools.partition.lower import lower  # noqa: E402
from tools.partition.pools import handovers, lower_pools  # noqa: E402
from tools.spec.strategy import Phase, Strategy  # noqa: E402

PAGE = ROOT / "benchmarks" / "mutate_all.md"
CASES: tuple[tuple[str, dict], ...] = (
    ("llama-3-70b", {"tp": 2, "pp": 2}),
    ("llama-3-70b", {"tp": 4, "sp": True}),
    ("qwen2.5-7b", {"tp": 2, "attn_dp": 2, "pp": 3}),
    ("qwen3-235b-a22b", {"tp": 4, "ep": 2}),
    ("deepseek-v3", {"tp": 2, "attn_dp": 2, "ep": 4}),
    ("deepseek-v3", {"tp": 2, "attn_dp": 2, "ep": 2, "sp": True}),
    ("gpt-oss-120b", {"tp": 2, "attn_dp": 2, "ep": 4, "moe_comm": "allgather"}),
    ("llama-3-70b", {"tp": 2, "cp": 2, "pp": 2}),
    ("llama-3-70b", {"tp": 16, "dcp": 2}),
    ("deepseek-v3", {"tp": 4, "dcp": 2}),
    ("llama-3-70b", {"cp": 4, "cp_kind": "ring"}),
    ("gpt-oss-120b", {"tp": 2, "cp": 3, "cp_kind": "ring"}),
    ("llama-3-8b", {"tp": 4, "dk": 2}),
    ("llama-3-8b", {"tp": 4, "axes": {"hidden_tp": 2}}),
    ("qwen3-next-80b-a3b", {"tp": 2, "ep": 2}),
    ("jamba-1.5-mini", {"tp": 2, "attn_dp": 2, "ep": 4, "pp": 2}),
    ("lfm2-8b-a1b", {"tp": 4, "pp": 2}),
    ("falcon-h1-0.5b", {"tp": 2, "pp": 2, "sp": True}),
    ("deepseek-v3.2", {"tp": 2, "attn_dp": 2, "ep": 4}),
    ("glm-5.2", {"tp": 2, "pp": 3, "sp": True}),
    ("minimax-m3", {"tp": 2, "cp": 2, "attn_dp": 2, "ep": 4}),
    ("minimax-m3", {"tp": 8, "dcp": 2}),
    ("gemma-4-26b-a4b", {"tp": 4, "attn_dp": 2, "ep": 4}),
    ("gemma-4-e4b", {"tp": 2, "attn_dp": 2, "pp": 2}),
    ("mimo-v2-flash", {"tp": 8, "pp": 2}),
    ("mimo-v2-flash", {"tp": 16, "dcp": 2}),
    ("mixtral-8x7b", {"tp": 2, "attn_dp": 4, "ep": 4, "etp": 2}),
    ("glm-4.5", {"attn_dp": 2, "cp": 2, "ep": 4, "pp": 2}),
    ("gemma-2-9b", {"tp": 2, "attn_dp": 2, "sp": True}),
    ("llama-3-70b", {"tp": 2, "pp": 2, "virtual": 2}),
    ("gpt-oss-120b", {"tp": 2, "pp": 2, "seq_slices": 3}),
    ("deepseek-v3", {"attn_dp": 2, "ep": 2, "pp": 2, "virtual": 2, "seq_slices": 2}),
    ("mixtral-8x7b", {"tp": 2, "attn_dp": 2, "expert_devices": 4, "ep": 4}),
    ("deepseek-v3", {"tp": 2, "pp": 2, "expert_devices": 4, "ep": 2, "etp": 2}),
    ("llama-3-8b", {"tp": 4, "attn_pool": 4}),
    ("gpt-oss-120b", {"tp": 4, "attn_pool": 12}),
    ("mixtral-8x7b", {"attn_dp": 4, "ep": 4, "redundant_experts": 8}),
    ("gpt-oss-120b", {"tp": 2, "attn_dp": 2, "expert_devices": 6, "ep": 6, "redundant_experts": 4}),
    ("deepseek-v3", {"tp": 2, "attn_dp": 4, "ep": 8, "ep_nodes": 2}),
    ("llama-3-8b", {"tp": 2, "cp": 3, "cp_kind": "ring", "ring_pass": "q"}),
    (
        "llama-3-8b",
        {"tp": 2, "cp": 2, "placements": {"mlp.down_proj": {"hidden": "tp"}, "mlp.up_proj": {"ffn": "cp*tp"}}},
    ),
    ("llama-3-8b", {"prefill": {"tp": 8}, "decode": {"tp": 2, "pp": 2}}),
    ("deepseek-v3", {"prefill": {"tp": 4, "attn_dp": 2, "ep": 8}, "decode": {"attn_dp": 8, "ep": 8}}),
    ("gpt-oss-120b", {"prefill": {"tp": 2, "cp": 4, "cp_kind": "ring"}, "decode": {"tp": 4}}),
)
"""Degrees of a strategy, or of a prefill and a decode pool."""
LENGTHS = {"batch_size": 8, "seq_len": 16, "decode_steps": 2}
PHASES: tuple[Phase, ...] = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class Job:
    case: int
    kind: str
    index: int


@dataclass(frozen=True, slots=True)
class Outcome:
    job: Job
    name: str
    caught: bool
    excuse: str


@cache
def mutants_of(case: int) -> dict[str, list[Mutant]]:
    name, degrees = CASES[case]
    first, *second = strategies(degrees)
    small = reduce(load_model(name).model, first, decode=second[0] if second else None, **LENGTHS)
    prompt = all_sizes(small.model, batch_size=small.batch_size, seq_len=small.seq_len, kv_len=small.seq_len)
    step = {**prompt, "seq_len": 1}
    if small.decode is not None:
        return pool_mutants_by_kind(lower_pools(small.model, small.strategy, small.decode, prompt, step), mutants_of(0))
    programs: Programs = {p: lower(small.model, small.strategy, p, prompt if p == "prefill" else step) for p in PHASES}
    return mutants_by_kind(programs)


def strategies(degrees: dict) -> tuple[Strategy, ...]:
    """One strategy, or those of the prefill and the decode pool."""
    return tuple(Strategy(**d) for d in ([degrees[p] for p in PHASES] if "prefill" in degrees else [degrees]))


def jobs(each: int) -> list[Job]:
    """`each` mutants of every kind, taken in turn from all cases and spread evenly inside each."""
    out: list[Job] = []
    sizes = {(c, k): len(ms) for c in range(len(CASES)) for k, ms in mutants_of(c).items()}
    for kind in dict.fromkeys(k for _, k in sizes):
        order = sorted((i / sizes[c, kind], c, i) for c in range(len(CASES)) for i in range(sizes[c, kind]))
        step = max(1, len(order) / each)
        picked = sorted({order[int(k * step)] for k in range(min(each, len(order)))})
        out += [Job(c, kind, i) for _, c, i in picked]
    return sorted(out, key=lambda j: (j.case, j.kind, j.index))


def judge(job: Job) -> Outcome:
    """Whether the oracle finds one mutant wrong."""
    name, degrees = CASES[job.case]
    mutant = mutants_of(job.case)[job.kind][job.index]
    with np.errstate(all="ignore"):
        proofs = proofs_of(name, strategies(degrees), mutant)
    caught = not all(p.ok for p in proofs.values())
    label = f"{name} {' → '.join(s.label() for s in strategies(degrees))}: {mutant.name.partition(SAME)[0]}"
    return Outcome(job, label, caught, equivalent(mutant.name))


def proofs_of(name: str, said: Sequence[Strategy], mutant: Mutant) -> dict[Phase, Proof]:
    """The oracle's verdict on a mutant of a strategy, or of two pools' hand-over."""
    model = load_model(name).model
    if len(said) == 1:
        return prove(model, said[0], **LENGTHS, alter=mutant.alter, alter_devices=mutant.alter_devices)
    assert mutant.alter_handovers is not None
    alter = mutant.alter_handovers
    with patch.object(oracle_pools, "handovers", lambda pools: alter(handovers(pools))):
        return prove_pools(model, *said, **LENGTHS)


def run(todo: Sequence[Job], workers: int = 2) -> list[Outcome]:
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(judge, todo, chunksize=16))


def wrong(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Survivors without an excuse, and excused ones that were caught: either way `equivalent` or the oracle errs."""
    return [o for o in outcomes if o.caught == bool(o.excuse)]


def page(outcomes: Sequence[Outcome], seconds: float) -> str:
    real = [o for o in outcomes if not o.excuse]
    caught = sum(o.caught for o in real)
    rows = []
    for kind in dict.fromkeys(o.job.kind for o in sorted(outcomes, key=lambda o: o.job.kind)):
        mine = [o for o in outcomes if o.job.kind == kind]
        same = sum(bool(o.excuse) for o in mine)
        rows.append(
            f"| {kind} | {len(mine)} | {same} | {sum(o.caught and not o.excuse for o in mine)} of {len(mine) - same} |"
        )
    excused = sorted((o for o in outcomes if o.excuse), key=lambda o: (o.excuse, o.name))
    survivors = [o for o in real if not o.caught]
    return "\n".join(
        [
            "# Mutants",
            "",
            f"{datetime.date.today().isoformat()} · {seconds:.0f} s · written by `benchmarks/mutate_all.py`",
            "",
            f"{len(outcomes)} wrong programs or machines from {len(CASES)} right ones "
            f"({', '.join(dict.fromkeys(c[0] for c in CASES))}); "
            f"{len(excused)} of them compute the same numbers and are listed with the reason; of the other "
            f"{len(real)} the oracle "
            f"catches {caught} ({100 * caught / len(real):.2f} %).",
            "",
            "| kind of mistake | mutants | equivalent | caught |",
            "|---|--:|--:|--:|",
            *rows,
            "",
            "## Not caught",
            "",
            *([f"- {o.job.kind}: {o.name}" for o in survivors] or ["None."]),
            "",
            "## Equivalent, one by one",
            "",
            *[f"- {o.name} ({o.job.kind}): {o.excuse}" for o in excused],
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="how much the oracle catches")
    parser.add_argument("--each", type=int, default=120)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--print", action="store_true", dest="print_only")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    outcomes = run(jobs(args.each), args.workers)
    text = page(outcomes, time.perf_counter() - start)
    print(text)
    if not args.print_only:
        PAGE.write_text(text, encoding="utf-8")
    for o in wrong(outcomes):
        print(f"{'caught, but called equivalent' if o.caught else 'SURVIVED'}: {o.job.kind}: {o.name}")
    return 1 if wrong(outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
