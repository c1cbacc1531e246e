"""Proves training steps: every architecture under every axis set and two of the option sets in turn; breaks some of them.

    python benchmarks/prove_train.py [--mutants EVERY] [--write]

One line per step: model, strategy, options, devices, gradients and weights compared, largest relative error. With `--write`
the page benchmarks/prove_train.md is written. `--mutants 5`: every fifth mutant of every kind (0: none).
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from knowledge.catalog import load_model  # noqa: E402
from tests.train_mutants import MAKERS  # noqa: E402
from tools.graph.build import all_sizes  # noqa: E402
from tools.oracle.train import _reduced, prove_train  # noqa: E402
from tools.partition.train import lower_train  # noqa: E402
from tools.spec.base import ToolError  # noqa: E402
from tools.spec.strategy import Strategy  # noqa: E402
from tools.spec.training import TrainOptions  # noqa: E402

PAGE = ROOT / "benchmarks" / "prove_train.md"
MODELS = (
    "llama-3-8b", "gpt2", "bloom-7b1", "gpt-j-6b", "falcon-40b", "gemma-2b", "gemma-2-9b", "olmo-2-7b", "minimax-m2",
    "gpt-oss-20b", "mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "deepseek-v2-lite", "llama-4-scout", "qwen2-57b-a14b",
)  # fmt: skip
AXES: tuple[dict[str, object], ...] = (
    {"tp": 4}, {"tp": 2, "dp": 2, "sp": True}, {"dp": 3}, {"pp": 2, "dp": 2}, {"tp": 2, "pp": 2, "sp": True}, {"tp": 2, "cp": 2},
    {"cp": 3, "cp_kind": "ring", "dp": 2}, {"attn_dp": 2, "tp": 2, "dp": 2}, {"tp": 2, "ep": 2, "dp": 2}, {"attn_dp": 4, "ep": 4},
    {"attn_dp": 2, "tp": 2, "ep": 2, "etp": 2, "sp": True}, {"cp": 2, "ep": 2, "dp": 2},
)  # fmt: skip
OPTIONS: tuple[dict[str, object], ...] = (
    {"micro_batches": 2}, {"zero": 3}, {"zero": 1}, {"zero": 3, "recompute": "full"}, {"zero": 2, "micro_batches": 2},
    {"recompute": "full"}, {"zero": 3, "reshard_after_forward": False},
)  # fmt: skip
BROKEN: tuple[tuple[str, dict[str, object], dict[str, object]], ...] = (
    ("llama-3-8b", {"tp": 2, "dp": 2, "sp": True}, {"zero": 2}), ("llama-3-8b", {"tp": 2, "pp": 2, "dp": 2}, {"zero": 1}),
    ("llama-3-8b", {"dp": 4}, {"zero": 3, "recompute": "full"}), ("llama-3-8b", {"cp": 2, "tp": 2}, {}),
    ("llama-3-8b", {"cp": 3, "cp_kind": "ring"}, {"zero": 1}), ("gemma-2b", {"tp": 2, "pp": 2, "dp": 2}, {}),
    ("qwen3-30b-a3b", {"attn_dp": 2, "tp": 2, "ep": 2, "etp": 2}, {"zero": 3}),
    ("deepseek-v2-lite", {"tp": 2, "ep": 2, "dp": 2}, {"zero": 2}),
)  # fmt: skip


def batch_of(s: Strategy) -> int:
    return 2 * s.dp * (s.attn_dp or 1) * (s.tp if s.sp else 1)


def proofs() -> Iterator[str]:
    turn = 0
    for name in MODELS:
        model = load_model(name).model
        for degrees in AXES:
            if model.moe is None and "ep" in degrees:
                continue
            for _ in range(2):
                turn += 1
                o = TrainOptions.model_validate(OPTIONS[turn % len(OPTIONS)])
                words = " ".join(f"{k}={v}" for k, v in degrees.items())
                began = time.perf_counter()
                try:
                    s = Strategy.model_validate(degrees)
                    p = prove_train(model, s, o, batch_size=batch_of(s), seq_len=16)
                except ToolError as e:
                    yield f"| {model.name} | {words} | {o.label()} | refused | | | {e} |"
                    continue
                said = f"{p.max_relative_error:.1e}" if p.ok else f"**FAILED** {p.failures[0]}"
                yield (
                    f"| {model.name} | {words} | {o.label()} | {p.devices_simulated} | {p.gradients_compared} | "
                    f"{p.weights_updated} | {said} ({time.perf_counter() - began:.1f} s) |"
                )


def mutants(every: int) -> Iterator[tuple[str, str, bool]]:
    """(kind, name, caught)"""
    for name, degrees, options in BROKEN:
        model, s, o = load_model(name).model, Strategy.model_validate(degrees), TrainOptions.model_validate(options)
        small, t, b, n = _reduced(model, s, batch_of(s), 16)
        program = lower_train(small, t, o, all_sizes(small, batch_size=b, seq_len=n, kv_len=n))
        for maker in MAKERS:
            for i, (what, wrong) in enumerate(maker(program)):
                if i % every:
                    continue
                try:
                    ok = prove_train(model, s, o, batch_size=batch_of(s), seq_len=16, alter=lambda _, w=wrong: w).ok
                except AssertionError:
                    ok = False  # a collective that its tensor's layout cannot have
                yield maker.__name__, f"{name} {degrees} {options}: {what}", not ok


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--mutants", type=int, default=5)
    args.add_argument("--write", action="store_true")
    asked = args.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    began, rows, survivors = time.perf_counter(), [], []
    for row in proofs():
        print(row, flush=True)
        rows.append(row)
    made: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    for kind, what, ok in mutants(asked.mutants) if asked.mutants else ():
        made[kind] += 1
        caught[kind] += ok
        if not ok:
            survivors.append(what)
            print("survived:", what, flush=True)
    refused, failed = sum("| refused |" in r for r in rows), sum("FAILED" in r for r in rows)
    head = (
        f"{len(rows)} training steps of {len(MODELS)} architectures: {len(rows) - refused - failed} proven, {refused} refused, "
        f"{failed} failed. {sum(made.values())} mutants, {sum(caught.values())} caught ({time.perf_counter() - began:.0f} s)."
    )
    print(head)
    if asked.write:
        kinds = [f"| {k} | {n} | {caught[k]} |" for k, n in made.items()]
        text = [
            "# Training steps proven", "", "Written by `python benchmarks/prove_train.py --write`.", "", head, "",
            "| mutants | made | caught |", "|---|--:|--:|", *kinds, "", *(f"- survived: {x}" for x in survivors), "",
            "| model | strategy | options | devices | gradients | weights | largest relative error |",
            "|---|---|---|--:|--:|--:|---|", *rows,
        ]  # fmt: skip
        PAGE.write_text("\n".join(text) + "\n", encoding="utf-8")
    return 1 if failed or survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())
