"""From a strategy to a request that a launcher can write: the operating point, what the engine says to it, and where its
ranks lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.engines.export.base import Expected, Request, one_line
from tools.engines.rules import EngineRules, check, engine_rules, placement, resolve_layers
from tools.engines.rules.base import Degrees
from tools.engines.rules.devices import RUNS_ON
from tools.engines.rules.sglang import native_replicas
from tools.spec.base import ToolError
from tools.spec.finding import Finding
from tools.spec.hardware import Device
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

STARTS_ITSELF: dict[str, Callable[[Degrees], bool]] = {"sglang": native_replicas}
"""Engines that can start several replicas behind one port, and when."""
SPECULATES = {
    "vllm": "--speculative-config with num_speculative_tokens {tokens} and your draft's method (flags after the script's name)",
    "vllm-ascend": "--speculative-config with num_speculative_tokens {tokens} and your draft's method (flags after the script's "
    "name)",
    "sglang": "--speculative-algorithm and --speculative-num-steps {tokens} for your draft (flags after the script's name)",
    "trtllm": "speculative_config with max_draft_len {tokens} for your draft in the configuration file",
}  # fmt: skip
"""What starts a draft, by engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a caller wants launched, the same for every pool. Lengths are tokens, memory bytes per device."""

    engine: str
    model: ModelSpec
    isl: int
    osl: int
    max_model_len: int | None
    version: str | None
    devices_per_node: int | None
    device: Device | None
    memory_total_bytes: float | None
    memory_reserve: float | None
    memory_fraction: float | None = None
    weights_bytes: float | None = None
    concurrency: int | None
    request_rate: float | None
    model_path: str | None
    released: str | None
    expected: tuple[Expected, ...]
    bench_notes: tuple[str, ...] = ()
    cached: float = 0.0
    draft: tuple[int, float] | None = None
    """(tokens drafted per step, share accepted) that the predictions count on."""

    @property
    def length(self) -> int:
        return self.max_model_len or self.isl + self.osl

    @property
    def rules(self) -> EngineRules:
        """Rules of the release, else the newest known (which `check` says)."""
        try:
            return engine_rules(self.engine, self.version)
        except ToolError:
            return engine_rules(self.engine)

    def planned(self, s: Strategy, max_num_seqs: int | None = None, max_tokens: int | None = None) -> Strategy:
        """The strategy at the operating point of the launch, its stages spelled out."""
        update = {
            "batch": max_num_seqs or s.batch, "max_num_batched_tokens": max_tokens or s.max_num_batched_tokens,
            "engine": self.engine,
        }  # fmt: skip
        return resolve_layers(self.engine, self.model, s.model_copy(update=update), version=self.version)

    def judged(self, s: Strategy, num_nodes: int | None) -> tuple[Finding, ...]:
        """What the engine says to the strategy, the device, and the context."""
        found = check(
            self.model, s, engine=self.engine, version=self.version, num_nodes=num_nodes,
            devices_per_node=self.devices_per_node, device=self.device,
        )  # fmt: skip
        if self.device is None and RUNS_ON[self.engine] == ("huawei",):
            found += (Finding(
                code="device-engine", severity="error", cause="engine", where="device",
                message=f"device: {self.engine} runs on Ascend NPUs only, and no device is known",
                fix="pass the device, or use vllm",
            ),)  # fmt: skip
        return found + self._context() + self._speculation()

    def _context(self) -> tuple[Finding, ...]:
        """Engines refuse a context beyond the checkpoint's own, and requests beyond the context."""
        most, length, wanted, label = self.model.max_context, self.length, self.isl + self.osl, self.rules.label
        if most is not None and length > most:
            return (_context_error(
                f"context({length}) > max_position_embeddings({most}) ({label})",
                f"a context of at most {most} tokens, or a checkpoint with scaled RoPE", length=length, max_context=most,
            ),)  # fmt: skip
        if length < wanted:
            return (_context_error(
                f"context({length}) < isl + osl = {wanted} ({label})", f"a context of at least {wanted} tokens",
                length=length, planned=wanted,
            ),)  # fmt: skip
        return ()

    def _speculation(self) -> tuple[Finding, ...]:
        """Which draft a model has is the checkpoint's: the command cannot name it."""
        if self.draft is None:
            return ()
        tokens, accepted = self.draft
        return (Finding(
            code="speculation", severity="warning", cause="engine", where="decode",
            message=f"decode: predicted with {tokens} drafted tokens per step, {accepted:.0%} of them accepted; the launch "
            "files start no draft",
            fix=SPECULATES[self.engine].format(tokens=tokens), values={"tokens": tokens, "accepted": accepted},
        ),)  # fmt: skip

    def fraction(self, s: Strategy) -> float | None:
        """The stated memory fraction, else the engine's own for the device's memory."""
        total, weights = self.memory_total_bytes, self.weights_bytes
        if self.memory_fraction or total is None:
            return self.memory_fraction
        more = {"left_bytes": total - weights} if self.engine == "trtllm" and weights is not None else {}
        return self.rules.memory_fraction(
            memory_total_bytes=total, strategy=s, memory_reserve=self.memory_reserve, **more
        )

    def request(
        self, s: Strategy, findings: tuple[Finding, ...], *, num_nodes: int | None, port: int, pool: str = "serve",
        **pool_settings: Any,
    ) -> Request:  # fmt: skip
        """What a launcher writes a script from."""
        rules, per_node = self.rules, self.devices_per_node
        # A router of disaggregated pools wants instances of its own, not an engine's replicas behind one port.
        itself = STARTS_ITSELF.get(self.engine) if pool == "serve" else None
        # Weights that nobody released are at no known address.
        other = any(f.code == "checkpoint-dtype" for f in findings) and self.model_path is None
        known = self.model.name if other else self.released or self.model.name
        return Request(
            model=self.model, strategy=s, rules=rules, isl=self.isl, osl=self.osl, max_model_len=self.length, port=port,
            placement=placement(
                self.engine, s, num_nodes=num_nodes, devices_per_node=per_node, version=rules.version
            ),
            model_path=self.model_path or known, own_checkpoint=other, max_num_seqs=s.batch,
            max_num_batched_tokens=s.max_num_batched_tokens, memory_fraction=self.fraction(s),
            memory_reserve=self.memory_reserve, concurrency=self.concurrency or s.batch * s.dp,
            request_rate=self.request_rate, notes=tuple(one_line(f"{f.message}; {f.fix}") for f in findings),
            native_replicas=bool(itself and itself(Degrees.of(s, num_nodes=num_nodes, devices_per_node=per_node))),
            device=self.device, pool=pool, expected=self.expected, bench_notes=self.bench_notes, cached=self.cached,
            **pool_settings,
        )  # fmt: skip


def refused(findings: tuple[Finding, ...]) -> bool:
    return any(f.severity == "error" for f in findings)


def _context_error(text: str, fix: str, **values: int) -> Finding:
    return Finding(
        code="max-model-len", severity="error", cause="engine", where="positions", message=f"positions: {text}", fix=fix,
        values=values,
    )  # fmt: skip
