"""Checks of a plan's per-device graphs: one `@check` per rule family, each of which can fail.

run_checks(programs, deployment)   every finding of every family, errors first
CHECKS                             name → function, in the order they run

divisibility   every split dim against its degree
fit            memory of every stage against the device
topology       which groups cross the scale-up link's domain
conservation   weights, FLOPs and KV cache, summed over devices, are the model's
repeats        Σ repeats × body = num_hidden_layers, per stage and in total
engine         the serving engine's own rules
balance        max/mean over devices, of bytes and of time
collectives    groups partition the ranks, members agree on bytes, layouts follow from the collective
deadlock       every rank comes to its end when sends, receives and collectives block
"""

from tools.checks import (
    balance,
    collectives,
    conservation,
    deadlock,
    divisibility,
    engine,
    fit,
    repeats,
    topology,
)
from tools.checks.base import CHECKS, Case, check, run_checks

__all__ = [
    "CHECKS", "Case", "balance", "check", "collectives", "conservation", "deadlock", "divisibility", "engine", "fit", "repeats",
    "run_checks", "topology",
]  # fmt: skip
