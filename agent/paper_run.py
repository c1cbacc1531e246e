"""Papers as runs: what the nodes do for a PaperMethod, and the same without a graph (`run_paper`).

For every model × {baselines, proposed} × {prefill, decode}: lowered, checked, executed, counted, drawn, judged. The
strategies are the paper's: nothing is searched, times are predictions beside them.
"""

from __future__ import annotations

from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.bind import Workbench, phase_sizes
from agent.draw import Drawn, dag_dir, draw_all
from agent.verify import STRUCTURAL, Subject, Verified, mismatch, proof_findings
from tools.rubric.record import Role
from tools.spec.base import Bug, Frozen, Refused, ToolError
from tools.spec.conditions import Conditions, Evidence, Fact
from tools.spec.deployment import Assumption, Deployment
from tools.spec.finding import Finding
from tools.spec.hardware import Cluster
from tools.spec.paper import PaperMethod, PaperModel, PaperStrategy, Unsupported
from tools.spec.plan import Estimate
from tools.spec.strategy import Phase, Strategy
from tools.spec.workload import Workload

if TYPE_CHECKING:
    from tools.oracle.prove import Proof
    from tools.partition.lower import Program
    from tools.partition.pools import Pools

TIMED_OUTPUT = 128
"""Generated tokens that times are predicted for, out of the stated length, where the paper gives no output length."""
ASSUMED_DEVICE = "h100_sxm_80gb"
DOES_NOT_FIT, POSITIONS = "does-not-fit", "positions"
"""Codes of the estimate's findings about memory, and about a context beyond the model's positions."""


class PaperGraph(Frozen):
    """One strategy of one model, verified: graphs, proofs, parts, findings; and its predicted performance if there is one."""

    model: str
    name: str
    verified: Verified
    estimate: Estimate | None = None

    def file(self, phase: str) -> str:
        """NAME of its files: model_role_phase; a pool of one phase has it in its name."""
        return f"{self.model}_{self.name}" if self.name.endswith(f"_{phase}") else f"{self.model}_{self.name}_{phase}"

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What would make the graph wrong. That a set-up does not fit or no engine runs it is told, not an error of the reading."""
        return tuple(f for f in self.verified.findings if f.severity == "error" and f.cause in STRUCTURAL)


class PaperVerification(Frozen):
    graphs: tuple[PaperGraph, ...]
    refused: tuple[Unsupported, ...] = ()
    """Strategies that were read but cannot be laid out (40 heads exchanged over 16 ranks), with the words they rest on."""

    def of(self, model: str, name: str) -> PaperGraph | None:
        return next((g for g in self.graphs if (g.model, g.name) == (model, name)), None)


class PaperResult(Frozen):
    """What `run_paper` gives back: the reading, every verified graph, and the files drawn for them."""

    method: PaperMethod
    verification: PaperVerification
    drawn: Drawn

    @property
    def errors(self) -> tuple[Finding, ...]:
        return (*(f for g in self.verification.graphs for f in g.errors), *self.drawn.errors)


def run_paper(method: PaperMethod, out_dir: Path) -> PaperResult:
    """All graphs of a paper, under `out_dir`/state/dag. Raises Refused where a strategy cannot be laid out."""
    verification = verify_paper(method)
    return PaperResult(method=method, verification=verification, drawn=draw_paper(method, verification, out_dir))


# ---------------------------------------------------------------------------------------------------------- deployments


def deployment_of(method: PaperMethod, model: PaperModel, strategy: PaperStrategy) -> Deployment:
    """The paper's set-up as a deployment of one strategy: its batch per replica, prefill at seq_len, decode at kv_len."""
    assumptions = [
        Assumption(path=f"paper.{model.key}", value=n, why="the paper leaves it open")
        for n in (*model.notes, *strategy.notes)
    ]
    cluster = _cluster(method.conditions, model, assumptions)
    n = strategy.strategy.num_devices
    if cluster.num_devices is None or cluster.num_devices < n:
        cluster = cluster.model_copy(update={"num_devices": n})
    osl = model.output_len or max(1, min(TIMED_OUTPUT, model.seq_len // 4))
    seq_len = strategy.seq_len or model.seq_len
    isl = max(1, seq_len + (model.output_len or 0) - osl)
    return Deployment(
        model=model.spec, cluster=cluster,
        workload=Workload(isl=isl, osl=osl, seq_len_max=seq_len, batch_size=max(1, model.batch_size // strategy.strategy.dp)),
        objective="total_throughput", weight_dtypes=(strategy.strategy.weight_dtype,), kv_dtypes=(strategy.strategy.kv_dtype,),
        assumptions=tuple(assumptions),
    )  # fmt: skip


def _cluster(conditions: Conditions, model: PaperModel, assumptions: list[Assumption]) -> Cluster:
    """From the paper's hardware facts by the conditions' rules; H100 where no device is named."""
    from agent.reading.resolve import resolve
    from knowledge.catalog import device_by_id

    facts = [f for f in conditions.facts if f.path.startswith("hardware.")]
    if not any(f.path == "hardware.device" for f in facts):
        facts.append(Fact(path="hardware.device", value=ASSUMED_DEVICE, origin="assumed"))
        why = "the paper names no device"
        assumptions.append(
            Assumption(
                path="hardware.device", value=device_by_id(ASSUMED_DEVICE).name, why=why, effect="memory and every time"
            )
        )
    spec = model.spec
    shape = {
        "num_hidden_layers": spec.num_hidden_layers,
        "hidden_size": spec.hidden_size,
        "num_attention_heads": spec.attention.num_heads,
        "head_dim": spec.attention.head_dim,
        "vocab_size": spec.vocab_size,
        "intermediate_size": 4 * spec.hidden_size,
    }
    facts += [Fact(path=f"model.{k}", value=v) for k, v in shape.items()]
    resolved = resolve(Conditions(facts=tuple(facts)))
    assumptions += [a for a in resolved.assumptions if a.path.startswith("hardware.")]
    return resolved.cluster


def programs_of(method: PaperMethod, s: PaperStrategy, bench: Workbench) -> dict[Phase, Program]:
    """The per-device graph of every phase that a strategy runs; pools of one phase hand their cache over to each other."""
    pools = pools_of(method, s, bench)
    if pools is None:
        return {phase: bench.program(s.strategy, phase) for phase in s.phases}
    (phase,) = s.phases
    return {phase: pools.prefill if phase == "prefill" else pools.decode}


def pools_of(method: PaperMethod, s: PaperStrategy, bench: Workbench) -> Pools | None:
    """Both pools with their real sizes, where `s` is one of them."""
    from tools.graph.build import all_sizes
    from tools.partition.pools import lower_pools

    pair = pool_pair(method, s)
    if pair is None:
        return None
    first, second = pair
    groups = lcm(first.attn_dp or 1, second.attn_dp or 1)
    d = bench.deployment

    def sizes(strategy: Strategy, phase: Phase) -> Any:
        found = phase_sizes(d, strategy, phase).model_dump()
        return all_sizes(d.model, **{**found, "batch_size": -(-found["batch_size"] // groups) * groups})

    return lower_pools(d.model, first, second, sizes(first, "prefill"), sizes(second, "decode"))


def pool_pair(method: PaperMethod, s: PaperStrategy) -> tuple[Strategy, Strategy] | None:
    """(prefill's, decode's strategy) of the two pools that `s` belongs to."""
    if len(s.phases) != 1:
        return None
    mine = {x.phases: x.strategy for x in method.of(s.model, s.role)}
    first, second = mine.get(("prefill",)), mine.get(("decode",))
    return (first, second) if first is not None and second is not None else None


def bench_of(method: PaperMethod, strategy: PaperStrategy, store: Any = None) -> Workbench:
    return Workbench(deployment_of(method, method.model(strategy.model), strategy), store)


# --------------------------------------------------------------------------------------------------------------- work


def primary(method: PaperMethod, verification: PaperVerification | None = None) -> PaperStrategy:
    """The proposed strategy of the first model (of the first one that was drawn): what plan.json leads with."""
    proposed = [s for m in method.models for s in method.of(m.key, "proposed")]
    return next(s for s in proposed if verification is None or verification.of(s.model, s.name))


def role_of(strategy: PaperStrategy) -> Role:
    return "plan" if strategy.role == "proposed" else "baseline"


def verify_paper(method: PaperMethod, store: Any = None) -> PaperVerification:
    """Every strategy lowered, checked and executed. Raises Refused when no proposed one can be laid out."""
    graphs, refused = [], []
    for s in method.strategies:
        bench = bench_of(method, s, store)
        try:
            found = _verified(method, s, bench)
        except ToolError as e:
            quote = s.quotes[0] if s.quotes else Evidence(file="", line=0, quote=s.title)
            refused.append(Unsupported(what=s.strategy.label(), why=str(e), evidence=quote, role=s.role, model=s.model))
            continue
        graphs.append(PaperGraph(model=s.model, name=s.name, verified=_told(found, s), estimate=_estimate(bench, s)))
    if not any(g.verified.subject.role == "plan" for g in graphs):
        raise Refused(next(u for u in refused if u.role == "proposed").message())
    return PaperVerification(graphs=tuple(graphs), refused=tuple(refused))


def _proofs(method: PaperMethod, s: PaperStrategy, bench: Workbench) -> dict[Phase, Proof]:
    """Both phases of a strategy; of pools, with the hand-over of the cache between them."""
    from tools.oracle.pools import prove_pools

    pair = pool_pair(method, s)
    sizes = phase_sizes(bench.deployment, s.strategy, "prefill")
    found = (
        bench.proofs(s.strategy)
        if pair is None
        else prove_pools(bench.deployment.model, *pair, batch_size=sizes.batch_size, seq_len=sizes.seq_len)
    )
    return {phase: p for phase, p in found.items() if phase in s.phases}


def _verified(method: PaperMethod, paper_strategy: PaperStrategy, bench: Workbench) -> Verified:
    """`agent.verify.verify` of the phases that the strategy runs, without an engine's rules: a paper's strategy is no
    engine's."""
    from tools.checks import CHECKS, run_checks

    s, phases = paper_strategy.strategy, paper_strategy.phases
    proofs = _proofs(method, paper_strategy, bench)
    programs = list(programs_of(method, paper_strategy, bench).values())
    findings = [
        *proof_findings(bench, s, proofs),
        *run_checks(programs, bench.deployment, only=[c for c in CHECKS if c != "engine"]),
    ]
    parts = bench.parts(s)
    findings += [mismatch(p) for p in parts if not p.matches]
    sizes = {phase: phase_sizes(bench.deployment, s, phase) for phase in phases}
    subject = Subject(role=role_of(paper_strategy), strategy=s)
    return Verified(subject=subject, sizes=sizes, proofs=proofs, parts=parts, findings=tuple(findings))


def _told(found: Verified, s: PaperStrategy) -> Verified:
    """With the reader's own findings; what the paper's set-up breaks (memory, an engine's rules) is a warning of ours."""
    findings = [_as_paper(f) for f in (*s.findings, *found.findings)]
    return found.model_copy(update={"findings": tuple({(f.code, f.message): f for f in findings}.values())})


def _as_paper(f: Finding) -> Finding:
    if f.cause == "engine" or f.code == "idle-devices":
        return f.model_copy(update={"severity": "info"})  # a paper names its own devices, and no engine
    told = f.cause not in STRUCTURAL or f.code == POSITIONS  # a context beyond the model's positions is the paper's
    return f if f.severity != "error" or not told else f.model_copy(update={"severity": "warning"})


def _estimate(bench: Workbench, s: PaperStrategy) -> Estimate | None:
    """Predicted performance; None where the cost model has no price for this strategy. It decides nothing."""
    try:
        estimate = bench.estimate(s.strategy)
    except ToolError:
        return None
    return estimate.model_copy(update={"findings": tuple(_of_estimate(f) for f in estimate.findings)})


def _of_estimate(f: Finding) -> Finding:
    """A finding of the price: that it does not fit is told; what an engine's rules refuse says nothing about a paper's graph,
    which has its own checks."""
    return _as_paper(f) if f.code in (DOES_NOT_FIT, POSITIONS) else f.model_copy(update={"severity": "info"})


def draw_paper(method: PaperMethod, verification: PaperVerification, run_dir: Path) -> Drawn:
    """Every graph's script, DOT and SVG, judged by the rules."""
    from tools.dag.build import build_dag

    wanted = {}
    for g in verification.graphs:
        s = next(x for x in method.strategies if (x.model, x.name) == (g.model, g.name))
        bench, name = bench_of(method, s), method.model(s.model).name
        pools = pools_of(method, s, bench)
        for phase, program in programs_of(method, s, bench).items():
            title = f"{name} · {s.name.replace('_', ' ')} · {phase} · {bench.label(s.strategy)}"
            dag = build_dag(program, title=title, pools=pools)
            wanted[g.file(phase)] = (g.verified, phase, "full", dag)
    return draw_all(dag_dir(run_dir), wanted)  # type: ignore[arg-type]


def check_again(method: PaperMethod, verification: PaperVerification) -> None:
    """What `publish` asks of a record: every graph lowered again is the one that was proven. Raises Bug if not."""
    for g in verification.graphs:
        s = next(x for x in method.strategies if (x.model, x.name) == (g.model, g.name))
        bench = bench_of(method, s)
        programs = programs_of(method, s, bench)
        for phase, proof in g.verified.proofs.items():
            if not proof.ok or proof.digest != programs[phase].digest():
                raise Bug(f"{g.model}, {g.name}, {phase}: the recorded proof is not of this graph")
        if g.errors:
            raise Bug(f"{g.model}, {g.name}: {g.errors[0].message}")


__all__ = [
    "PaperGraph", "PaperResult", "PaperVerification", "check_again", "deployment_of", "draw_paper", "primary", "run_paper",
    "verify_paper",
]  # fmt: skip
