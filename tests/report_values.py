"""One hand-made run, whole and right: the ground that tests of report and rubric start from and then spoil."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from agent.report import assemble_plan, phase_entry
from tools.oracle.prove import Proof
from tools.rubric import DagReport, Deliverable, GraphProof, Reference, RunRecord
from tools.spec.conditions import Conditions, Conflict, Evidence, Fact, Flag, Ignored, InputFile
from tools.spec.deployment import Assumption, Deployment
from tools.spec.finding import Finding
from tools.spec.hardware import Cluster, Device
from tools.spec.model import MLP, Attention, ModelSpec
from tools.spec.plan import Candidate, Change, Estimate, Infeasible, ModuleParts, SearchResult, StageMemory, WhatIf
from tools.spec.strategy import Strategy
from tools.spec.term import Breakdown, Prediction, Term
from tools.spec.workload import Requirement, Requirements, Workload

TEXT = """# Chat service

## Hardware
- GPUs: 8 x H100 SXM 80 GB in one node
- NVLink: 900 GB/s both directions
- Memory bandwidth: 3.35 TB/s

## Model
- Llama-3-70B, BF16

## Workload
- Average input 2048 tokens, average output 256 tokens
- About 48 requests in flight

## Requirements
- TTFT: P90 below 2 s
- TPOT: below 50 ms

## Office
- Lunch is at 12.
"""
SOURCE = InputFile(path="chat.md", sha256=hashlib.sha256(TEXT.encode()).hexdigest(), text=TEXT, kind="markdown")


def fact(path: str, value: Any, quote: str, **more: Any) -> Fact:
    line = next(i for i, text in enumerate(TEXT.splitlines(), 1) if quote in text)
    return Fact(
        path=path, value=value, stated_as=quote, evidence=Evidence(file="chat.md", line=line, quote=quote), **more
    )


CONDITIONS = Conditions(
    facts=(
        fact("hardware.num_devices", 8, "8 x H100"),
        fact("hardware.device", "h100_sxm_80gb", "H100 SXM 80 GB"),
        fact("hardware.memory_bandwidth", 3.35e12, "3.35 TB/s"),
        fact("model.name", "Llama-3-70B", "Llama-3-70B"),
        fact("workload.isl", 2048, "input 2048 tokens"),
        fact("workload.osl", 256, "output 256 tokens"),
        fact("workload.concurrency", 48, "48 requests"),
        fact("requirements.ttft_s.p90", 2.0, "P90 below 2 s"),
        fact("requirements.tpot_s.limit", 0.05, "below 50 ms"),
    ),
    conflicts=(
        Conflict(
            path="hardware.intra_node_bandwidth", values=(9e11, 4.5e11), resolution=4.5e11,
            why="NVLink: 900 GB/s both directions is 450 GB/s one way",
        ),
    ),
    missing=("engine.name",),
    ignored=(Ignored(section="Office", why="says nothing about the deployment"),),
    flags=(Flag(code="assumed-engine", message="no engine is named"),),
)  # fmt: skip

H100 = Device(
    id="h100_sxm_80gb",
    name="H100 SXM 80 GB",
    vendor="NVIDIA",
    arch="hopper",
    memory_bytes=80e9,
    memory_usable_bytes=85.5e9,
    memory_bandwidth=3.35e12,
    peak_flops={"bf16": 989e12, "fp8": 1979e12},
    link="NVLink4",
    link_bandwidth=4.5e11,
    link_domain=8,
    pcie_bandwidth=64e9,
    network_bandwidth=50e9,
)
CLUSTER = Cluster(
    device=H100, num_devices=8, memory_bytes=85.5e9, memory_bandwidth=3.35e12, peak_flops=H100.peak_flops,
    intra_node_bandwidth=4.5e11, inter_node_bandwidth=50e9,
)  # fmt: skip
MODEL = ModelSpec(
    name="Llama-3-70B", hidden_size=8192, num_hidden_layers=80, vocab_size=128256,
    attention=Attention(num_heads=64, num_kv_heads=8, head_dim=128), mlp=MLP(intermediate_size=28672),
)  # fmt: skip
GATES = (Requirement(metric="ttft_s", stat="p90", limit=2.0), Requirement(metric="tpot_s", limit=0.05))
DEPLOYMENT = Deployment(
    model=MODEL,
    cluster=CLUSTER,
    workload=Workload(isl=2048, osl=256, concurrency=48),
    requirements=Requirements(gates=GATES),
    assumptions=(
        Assumption(path="engine.name", value="vllm", why="no engine is named", effect="flags and memory accounting"),
    ),
)


def prediction(metric: str, stat: str, value: float, limit: float | None, band: float = 0.2) -> Prediction:
    if limit is None:
        return Prediction(metric=metric, stat=stat, value=value, unit="s", band=band, provenance="test")
    margin = (value - limit) / limit if metric.startswith("throughput") else (limit - value) / limit
    status = "broken" if margin < 0 else "at_risk" if margin < band else "met"
    return Prediction(
        metric=metric,
        stat=stat,
        value=value,
        unit="s",
        band=band,
        provenance="test",
        limit=limit,
        margin=margin,
        status=status,
    )


def stage_memory(strategy: Strategy) -> tuple[StageMemory, ...]:
    weights, per_stage = 141.1e9 / strategy.tp / strategy.pp, 80 // strategy.pp
    return tuple(
        StageMemory(
            stage=i,
            ranks=strategy.group,
            layers=per_stage,
            weights_bytes=weights,
            kv_bytes=30e9,
            activation_bytes=1.2e9,
            overhead_bytes=2.1e9,
            reserve_bytes=0.0,
            capacity_bytes=85.5e9,
            terms=Breakdown(name="weights", unit="B", terms=(Term(name="weights", value=weights, unit="B"),)),
        )
        for i in range(strategy.pp)
    )


def estimate(
    strategy: Strategy, *, ttft: float, tpot: float, tok_s: float, feasible: bool = True, **more: Any
) -> Estimate:
    def breakdown(name: str, total: float) -> Breakdown:
        shares = (("attention", 0.3), ("mlp", 0.5), ("all-reduce", 0.197), ("embedding", 0.003))
        return Breakdown(
            name=name,
            unit="s",
            terms=tuple(Term(name=n, value=s * total, unit="s", formula="bytes / bandwidth") for n, s in shares),
        )

    values: dict[str, Any] = {
        "strategy": strategy,
        "feasible": feasible,
        "findings": (),
        "ttft_s": ttft,
        "tpot_s": tpot,
        "ttft_percentiles": {"p50": ttft, "p90": 1.3 * ttft, "p99": 2 * ttft},
        "tpot_percentiles": {"p50": tpot, "p90": 1.1 * tpot, "p99": 1.2 * tpot},
        "e2e_s": ttft + 255 * tpot,
        "output_tok_s": tok_s,
        "total_tok_s": 9 * tok_s,
        "input_tok_s": 8 * tok_s,
        "num_devices": strategy.num_devices,
        "concurrency": 48,
        "batch": strategy.batch,
        "request_rate": tok_s / 256,
        "max_batch": 256,
        "burst_ttft_s": 48 * 0.15,
        "predictions": (
            prediction("ttft_s", "p90", 1.3 * ttft, 2.0),
            prediction("tpot_s", "limit", tpot, 0.05),
            prediction("throughput_total", "mean", tok_s, None),
        ),
        "memory": stage_memory(strategy),
        "breakdown": {"ttft": breakdown("ttft", ttft), "tpot": breakdown("tpot", tpot)},
        "utilisation": {"compute": 0.31, "memory": 0.72, "network": 0.12, "busy": 0.93},
        "time_imbalance": 1.0,
        "memory_imbalance": 1.004,
    }
    return Estimate.model_validate({**values, **more})


TP8 = Strategy(tp=8, batch=48)
TP4_DP2 = Strategy(tp=4, dp=2, batch=24)
TP4_PP2 = Strategy(tp=4, pp=2, batch=48)
BEST = Candidate(rank=1, estimate=estimate(TP8, ttft=0.42, tpot=0.0213, tok_s=1987.0), objective_value=1987.0)
SECOND = Candidate(
    rank=2, estimate=estimate(TP4_DP2, ttft=0.55, tpot=0.0262, tok_s=1702.0), objective_value=1702.0,
    reason="weights are read twice, once per replica",
)  # fmt: skip
BASELINE = Candidate(rank=3, estimate=estimate(TP4_PP2, ttft=0.61, tpot=0.031, tok_s=1404.0), objective_value=1404.0)
RESULT = SearchResult(
    objective="total_throughput", best=BEST, ranked=(BEST, SECOND, BASELINE), pareto=(BEST, SECOND), baseline=BASELINE,
    asked=(SECOND,), num_enumerated=412, num_legal=61, num_fitting=40, num_feasible=22,
    what_ifs=(WhatIf(description="fp8 weights", strategy="tp8", objective_value=2900.0, relative_gain=0.46),),
)  # fmt: skip
PARTS = (
    ModuleParts(
        module="attention",
        weight="q_proj.weight",
        global_dims={"hidden": 8192, "heads": 64, "d_k": 128},
        local_dims={"hidden": 8192, "heads": 8, "d_k": 128},
        axis="heads over tp(8)",
        collective="all-reduce after o_proj over tp",
        num_shards=8,
        copies=1,
        devices=8,
        layers=80,
        matches=True,
        sentence="attention: 8 shards × 1 copy on 8 GPUs (tp=8), matches",
    ),
    ModuleParts(
        module="norm",
        weight="input_norm.weight",
        global_dims={"hidden": 8192},
        local_dims={"hidden": 8192},
        axis="",
        collective="",
        num_shards=1,
        copies=8,
        devices=8,
        layers=80,
        matches=True,
        sentence="norm: 1 shard × 8 copies on 8 GPUs, matches",
    ),
)


def proof(strategy: Strategy, phase: str, **more: Any) -> Proof:
    values: dict[str, Any] = {
        "strategy": strategy.label(), "phase": phase, "devices_simulated": strategy.replica, "tensors_compared": 620,
        "steps": 1 if phase == "prefill" else 4, "max_relative_error": 3e-15, "worst_tensor": "logits",
        "digest": hashlib.sha256(f"{strategy.label()} {phase}".encode()).hexdigest(),
    }  # fmt: skip
    return Proof.model_validate({**values, **more})


PHASES = ("prefill", "decode")
RULES = tuple(f"R{i:02d}" for i in range(1, 22) if i not in (16, 17, 18))


def entries(strategy: Strategy) -> dict[str, dict[str, Any]]:
    return {
        p: phase_entry(
            proof(strategy, p), batch=48, seq_len=2048 if p == "prefill" else 1, kv_len=2048 if p == "prefill" else 2304
        )
        for p in PHASES
    }


PLAN = assemble_plan(
    DEPLOYMENT,
    CONDITIONS,
    RESULT,
    phases=entries(TP8),
    baseline_phases=entries(TP4_PP2),
    parts=PARTS,
    findings=(Finding(code="balance", severity="info", cause="balance", message="all ranks do the same work"),),
    proposal={
        "by": "builtin",
        "strategy": "tp8",
        "justification": "one NVLink domain holds the model",
        "regret": 0.0,
        "adopted": True,
    },
    passages=({"id": "tp", "file": "passages/tp.md", "line": 1, "title": "Tensor parallelism"},),
)

ROLES = (("plan", TP8), ("baseline", TP4_PP2))
DAGS = tuple(
    DagReport(
        role=role, model=MODEL.name, phase=p, dot=f"dag/{role}_{p}.dot", digest=proof(s, p).digest, passed=RULES
    )
    for role, s in ROLES for p in PHASES
)  # fmt: skip
DELIVERABLES = (
    Deliverable(kind="plan", path="plan.json", num_bytes=9000),
    Deliverable(kind="report", path="plan.md", num_bytes=7000),
    Deliverable(kind="evaluation", path="evaluation.json", num_bytes=4000),
    Deliverable(kind="pareto", path="pareto.svg", num_bytes=3000),
    Deliverable(kind="pareto", path="pareto.csv", num_bytes=300),
    Deliverable(kind="launch", path="launch/vllm.sh", num_bytes=900),
    Deliverable(kind="events", path="events.jsonl", num_bytes=100),
    *(
        Deliverable(kind=kind, path=f"dag/{role}_{p}{ext}", num_bytes=5000, role=role, phase=p)
        for role, _ in ROLES
        for p in PHASES
        for kind, ext in (("dag_script", ".py"), ("dag_dot", ".dot"), ("dag_svg", ".svg"))
    ),
)
REFERENCE = Reference(
    objective_value=1987.0, plan_value=1987.0, strategy="tp8", num_evaluated=61, method="one-at-a-time brute force"
)
RECORD = RunRecord(
    plan=PLAN, conditions=CONDITIONS, inputs=(SOURCE,), inputs_after={SOURCE.path: SOURCE.sha256},
    proofs=tuple(GraphProof(role=role, proof=proof(s, p)) for role, s in ROLES for p in PHASES), dags=DAGS,
    deliverables=DELIVERABLES, reference=REFERENCE,
)  # fmt: skip


@dataclass(frozen=True)
class NoPlan:
    """The same conditions with a TTFT limit that nothing meets."""

    deployment: Deployment
    record: RunRecord


def no_plan() -> NoPlan:
    gates = (Requirement(metric="ttft_s", stat="p90", limit=0.01), GATES[1])
    tight = DEPLOYMENT.model_copy(update={"requirements": Requirements(gates=gates)})
    closest = estimate(
        TP8, ttft=0.12, tpot=0.0213, tok_s=1987.0, feasible=False,
        predictions=(prediction("ttft_s", "p90", 0.156, 0.01), prediction("tpot_s", "limit", 0.0213, 0.05)),
    )  # fmt: skip
    binding = Finding(
        code="slo-ttft", severity="error", cause="slo", message="TTFT p90 is 156 ms at best, the limit is 10 ms",
        values={"best_s": 0.156, "limit_s": 0.01},
    )  # fmt: skip
    verdict = Infeasible(
        cause="slo", binding=binding, findings=(binding,), num_searched=61, closest=closest,
        nearest=(Change(description="TTFT 160 ms instead of 10 ms", kind="ttft", value=0.16, deployment=DEPLOYMENT),),
    )  # fmt: skip
    result = RESULT.model_copy(
        update={"best": None, "ranked": (), "pareto": (), "infeasible": verdict, "num_feasible": 0}
    )
    facts = tuple(f for f in CONDITIONS.facts if f.path != "requirements.ttft_s.p90")
    text = TEXT.replace("P90 below 2 s", "P90 below 10 ms")
    quote = Evidence(file="chat.md", line=16, quote="P90 below 10 ms")
    asked = Fact(path="requirements.ttft_s.p90", value=0.01, stated_as="10 ms", evidence=quote)
    conditions = CONDITIONS.model_copy(update={"facts": (*facts, asked)})
    source = InputFile(path="chat.md", sha256=hashlib.sha256(text.encode()).hexdigest(), text=text, kind="markdown")
    record = RunRecord(
        plan=assemble_plan(tight, conditions, result),
        conditions=conditions,
        inputs=(source,),
        inputs_after={source.path: source.sha256},
        proofs=tuple(GraphProof(role="nearest", proof=proof(TP8, p)) for p in PHASES),
        deliverables=DELIVERABLES[:3],
        reference=Reference(
            objective_value=None, plan_value=None, num_evaluated=61, method="one-at-a-time brute force"
        ),
    )
    return NoPlan(tight, record)
