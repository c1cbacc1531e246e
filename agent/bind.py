"""What tools see of a run: the deployment and the results computed so far, each computed once.

A `Workbench` stands behind every tool parameter that the LLM does not pass. It is made from a `Deployment`; nothing
in it
depends on the order of calls, so a node that runs again after a crash gets the same answers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.files import Store
from tools.spec.base import Frozen, ToolError
from tools.spec.deployment import Deployment
from tools.spec.finding import Finding
from tools.spec.plan import Candidate, Economics, Estimate, ModuleParts, SearchResult, Sensitivity, StageMemory, Unit
from tools.spec.strategy import Phase, Strategy

if TYPE_CHECKING:
    from tools.cost.curves import Curves
    from tools.oracle.prove import Proof
    from tools.partition.lower import Program

PHASES: tuple[Phase, ...] = ("prefill", "decode")
TOP = 10
MAX_PROOF_DEVICES = 4096


def strategy_key(strategy: Strategy) -> str:
    """Readable and unique: degrees, then a digest of every field but the name."""
    fields = {k: v for k, v in strategy.model_dump(mode="json").items() if k != "name"}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
    return f"{strategy.label()} b{strategy.batch} {digest}"


def candidate_key(candidate: Candidate) -> str:
    """The key of its strategy, or of all its units."""
    units = (f"{u.name} {strategy_key(u.strategy)}" for u in candidate.units)
    return " + ".join(units) or strategy_key(candidate.estimate.strategy)


class PhaseSizes(Frozen):
    """The workload of one phase as drawn and proven: sequences per replica, new tokens per sequence, context."""

    batch_size: int
    seq_len: int
    kv_len: int


def phase_sizes(deployment: Deployment, strategy: Strategy, phase: Phase) -> PhaseSizes:
    """Prefill: the longest stated prompt, one sequence per attention group unless a batch arrives together.
    Decode: the planned batch, one token each, at kv_len = isl + osl."""
    w, groups = deployment.workload, strategy.attn_dp or 1
    if phase == "prefill":
        prompt = max(w.isl, w.seq_len_max or 0)
        return PhaseSizes(batch_size=_multiple(w.batch_size or 1, groups), seq_len=prompt, kv_len=prompt)
    return PhaseSizes(batch_size=_multiple(strategy.batch, groups), seq_len=1, kv_len=w.isl + w.osl)


def _multiple(n: int, of: int) -> int:
    return -(-n // of) * of


@dataclass
class Workbench:
    """Results about one deployment, cached in memory and, where a `store` is given, on disk across crashes."""

    deployment: Deployment
    store: Store | None = None
    calibration: Path | None = None
    """File of `meshwright calibrate`."""
    strategy: Strategy | None = None
    """The strategy under review, for tools that are called without one."""
    _changed: dict[str, Workbench] = field(default_factory=dict)
    _programs: dict[tuple[str, Phase], Program] = field(default_factory=dict)
    _memo: dict[str, Any] = field(default_factory=dict)

    def under(self, deployment: Deployment) -> Workbench:
        """The workbench of changed conditions, kept so that its results are computed once too."""
        key = deployment.model_dump_json()
        if key not in self._changed:
            self._changed[key] = Workbench(deployment, self.store, self.calibration)
        return self._changed[key]

    def label(self, strategy: Strategy) -> str:
        return strategy.label(moe=self.deployment.model.moe is not None)

    @cached_property
    def curves(self) -> Curves:
        from agent.calibration import curves_with

        return curves_with(self.calibration)

    @cached_property
    def search(self) -> SearchResult:
        from tools.search import search

        # The clock's reading would make two runs differ.
        return self._stored(
            "search",
            SearchResult,
            lambda: search(self.deployment, self.curves, top=TOP).model_copy(update={"seconds": 0.0}),
        )

    def economics(self, chosen: Candidate | None) -> tuple[Economics, ...]:
        """Cost and energy of the plan, and of the best strategy on every other device that the conditions name."""
        from tools.search.economics import compare_devices, fleet_economics

        def work() -> list[dict[str, Any]]:
            if chosen is not None and chosen.units:
                return [fleet_economics(self.deployment, chosen).model_dump(mode="json")]
            rows = compare_devices(self.deployment, self.curves, planned=chosen.estimate if chosen else None)
            return [r.model_dump(mode="json") for r in rows]

        key = candidate_key(chosen) if chosen else "none"
        return tuple(Economics.model_validate(r) for r in self._stored(f"economics {key}", None, work))

    def sensitivity(self, chosen: Candidate | None) -> Sensitivity | None:
        """Whether the choice turns within the error bands, and what to measure then."""
        from tools.search.sensitivity import sensitivity

        def work() -> dict[str, Any] | None:
            plain = tuple(c for c in self.search.ranked if not c.units)
            found = sensitivity(self.deployment, self.curves, plain, self.search.objective, chosen)
            return found.model_dump(mode="json") if found else None

        if chosen is None or chosen.units:
            return None
        found = self._stored(f"sensitivity {strategy_key(chosen.estimate.strategy)}", None, work)
        return Sensitivity.model_validate(found) if found else None

    def units(self, candidate: Candidate) -> tuple[tuple[Unit, Workbench], ...]:
        """Every unit of a candidate, with the workbench of the conditions that it serves under."""
        from tools.search.fleet import units_of

        return tuple((u, self.under(d)) for u, d in units_of(candidate.units, self.deployment))

    def candidate(self, strategy: Strategy) -> Candidate:
        """`strategy` priced and judged as the search's own candidates are.

        Raises ToolError when it cannot be laid out.
        """
        from tools.search import evaluate_strategy

        key = f"candidate {strategy_key(strategy)}"
        if key not in self._memo:
            self._memo[key] = evaluate_strategy(self.deployment, strategy, self.curves)
        return self._memo[key]

    def estimate(self, strategy: Strategy) -> Estimate:
        return self.candidate(strategy).estimate

    def program(self, strategy: Strategy, phase: Phase) -> Program:
        """The per-device graph with this deployment's sizes filled in."""
        from tools.graph.build import all_sizes
        from tools.partition.lower import lower

        key = (strategy_key(strategy), phase)
        if key not in self._programs:
            sizes = phase_sizes(self.deployment, strategy, phase)
            self._programs[key] = lower(
                self.deployment.model, strategy, phase, all_sizes(self.deployment.model, **sizes.model_dump())
            )
        return self._programs[key]

    def proofs(self, strategy: Strategy) -> dict[Phase, Proof]:
        """Both phases executed at reduced dims on all simulated devices of a replica."""
        from tools.oracle.prove import Proof, prove

        if strategy.replica > MAX_PROOF_DEVICES:
            raise ToolError(
                f"a replica of {strategy.replica} devices is more than the {MAX_PROOF_DEVICES} simulated; use more dp"
            )
        model, sizes = self.deployment.model, phase_sizes(self.deployment, strategy, "prefill")

        def work() -> dict[str, Any]:
            found = prove(model, strategy, batch_size=sizes.batch_size, seq_len=sizes.seq_len)
            return {phase: p.model_dump(mode="json") for phase, p in found.items()}

        found = self._stored(f"proof {strategy_key(strategy)}", None, work)
        return {phase: Proof.model_validate(found[phase]) for phase in PHASES}

    def parts(self, strategy: Strategy) -> tuple[ModuleParts, ...]:
        from tools.shards import count_parts

        return count_parts(self.program(strategy, "decode"))

    def memory(self, strategy: Strategy) -> tuple[StageMemory, ...]:
        return self.estimate(strategy).memory

    def engine_findings(self, strategy: Strategy) -> tuple[Finding, ...]:
        from tools.engines.rules import check

        cluster, engine = self.deployment.cluster, self.deployment.engine
        version = engine.version if engine.name == strategy.engine else None
        if strategy.stage_devices:
            cluster = self.deployment.stage_clusters(strategy)[0].model_copy(update={"num_devices": None})
        return check(
            self.deployment.model, strategy, version=version, num_nodes=cluster.num_nodes,
            devices_per_node=cluster.devices_per_node, device=cluster.known_device,
        )  # fmt: skip

    def reviewed(self, strategy: Strategy | None) -> Strategy:
        """`strategy`, or the one under review. Raises ToolError when there is neither."""
        chosen = strategy or self.strategy
        if chosen is None:
            raise ToolError("no strategy is under review yet; pass one")
        return chosen

    def stored(self, key: str, kind: Any, work: Any) -> Any:
        """A value of `kind` that `work` makes, once per run, across crashes too."""
        return self._stored(key, kind, work)

    def _stored(self, key: str, kind: Any, work: Any) -> Any:
        if key in self._memo:
            return self._memo[key]
        full = {"what": key, "deployment": self.deployment.model_dump(mode="json")}
        ref = self.store.memo_get(full) if self.store else None
        value = self._read(ref, kind) if ref else work()
        if self.store and not ref:
            self.store.memo_put(full, value)
        self._memo[key] = value
        return value

    def _read(self, ref: Any, kind: Any) -> Any:
        assert self.store is not None
        return self.store.json(ref) if kind is None else self.store.load(ref, kind)
