"""A paper that describes a parallel method, read: its models, its set-up, and each strategy with the words it rests on."""

from __future__ import annotations

from typing import Literal

from tools.spec.base import Frozen
from tools.spec.conditions import Conditions, Evidence, Fact
from tools.spec.finding import Finding
from tools.spec.model import ModelSpec
from tools.spec.strategy import Phase, Strategy

PaperRole = Literal["baseline", "proposed"]
DevicesSource = Literal["stated", "product", "hardware"]


class PaperModel(Frozen):
    """One model of the paper's set-up. `key` is short and fit for file names.

    Prefill processes `seq_len` new tokens of each of `batch_size` sequences; a decode step one token of each, with
    `kv_len` tokens of context (itself included).
    """

    key: str
    name: str
    spec: ModelSpec
    batch_size: int
    seq_len: int
    kv_len: int
    seq_lens: tuple[int, ...] = ()
    """Every length that is stated; `seq_len` is the largest."""
    output_len: int | None = None
    """Generated tokens, where the paper says how many."""
    facts: tuple[Fact, ...] = ()
    """What the paper states of its shape and workload, by the names of conditions (`model.hidden_size`)."""
    quotes: tuple[Evidence, ...] = ()
    notes: tuple[str, ...] = ()
    """What the paper leaves open, and what was assumed."""


class PaperStrategy(Frozen):
    """One strategy of one model, in the field's degrees. `name` is unique per model: proposed, baseline, baseline_2 …,
    proposed_below (the regime of short sequences), proposed_prefill and proposed_decode (pools of one phase)."""

    model: str
    """`PaperModel.key`."""
    name: str
    role: PaperRole
    title: str
    """The paper's own words for it, shortened."""
    strategy: Strategy
    num_devices: int
    """What the paper gives it; `strategy.num_devices` unless a finding says otherwise."""
    devices_source: DevicesSource
    phases: tuple[Phase, ...] = ("prefill", "decode")
    """Fewer than both where a pool of devices runs one phase only."""
    seq_len: int | None = None
    """Tokens of a sequence where this strategy is one regime of lengths; None: the model's."""
    quotes: tuple[Evidence, ...] = ()
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


class Unsupported(Frozen):
    """What the layout language cannot say yet, and the passage that asks for it."""

    what: str
    why: str
    evidence: Evidence
    role: PaperRole = "proposed"
    model: str | None = None
    """None: every model."""

    def message(self) -> str:
        e = self.evidence
        where = f"the {self.role} method" + (f" of {self.model}" if self.model else "")
        return (
            f"{e.file} line {e.line}: {where} needs {self.what}, which is not supported: {self.why} ({e.quote[:160]!r})"
        )


class PaperMethod(Frozen):
    title: str
    models: tuple[PaperModel, ...]
    strategies: tuple[PaperStrategy, ...]
    conditions: Conditions
    """Hardware and every other fact with its quote, the sections that were not needed, the flags."""
    unsupported: tuple[Unsupported, ...] = ()
    used: tuple[str, ...] = ()
    """Titles of the sections that something was read from."""

    def model(self, key: str) -> PaperModel:
        return next(m for m in self.models if m.key == key)

    def of(self, key: str, role: PaperRole | None = None) -> tuple[PaperStrategy, ...]:
        """Strategies of one model, baselines first."""
        mine = [s for s in self.strategies if s.model == key and role in (None, s.role)]
        return tuple(sorted(mine, key=lambda s: s.role != "baseline"))
