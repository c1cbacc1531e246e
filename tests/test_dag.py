"""Deployment DAGs: what is drawn is the per-device graph, and every rule holds on it."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict

import pytest

from tools.dag.build import build_dag, depth_first
from tools.dag.check_dot import check_dot
from tools.dag.compare import differences
from tools.dag.context import run_rules
from tools.dag.dot import to_dot
from tools.dag.facts import index_set
from tools.dag.graph import Dag
from tools.dag.parse import parse_dot
from tools.graph.build import all_sizes
from tools.oracle.prove import prove
from tools.partition.layout import positions
from tools.partition.lower import Program, lower
from tools.spec.base import ToolError
from tools.spec.model import MLA, MLP, Attention, ModelSpec, MoE
from tools.spec.strategy import Strategy

DENSE = ModelSpec(
    name="dense", hidden_size=64, num_hidden_layers=6, vocab_size=256, mlp=MLP(intermediate_size=96),
    attention=Attention(num_heads=8, num_kv_heads=2, head_dim=8),
)  # fmt: skip
SPARSE = ModelSpec(
    name="sparse", hidden_size=64, num_hidden_layers=7, vocab_size=250, mlp=MLP(intermediate_size=96),
    attention=Attention(num_heads=8, num_kv_heads=2, head_dim=8, qk_norm="full"),
    moe=MoE(num_experts=10, top_k=3, intermediate_size=24, shared_intermediate_size=32, gate="sigmoid_topk",
    correction_bias=True),
    moe_layers=(False, *(True,) * 6),
)  # fmt: skip
LATENT = ModelSpec(
    name="latent", hidden_size=64, num_hidden_layers=8, vocab_size=256, mlp=MLP(intermediate_size=96),
    attention=Attention(
        num_heads=16, num_kv_heads=16, head_dim=8, mla=MLA(q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=8,
        qk_rope_head_dim=4, v_head_dim=8)
    ),
    moe=MoE(num_experts=16, top_k=3, intermediate_size=24, shared_intermediate_size=32), moe_layers=(False, True) * 4,
)  # fmt: skip
BIASED = ModelSpec(
    name="biased", hidden_size=64, num_hidden_layers=4, vocab_size=256,
    attention=Attention(
        num_heads=8, num_kv_heads=2, head_dim=8, qkv_bias=True, out_bias=True, sinks=True, sliding_window=8
    ),
    moe=MoE(num_experts=8, top_k=2, intermediate_size=24, gate="topk_softmax", router_bias=True, expert_bias=True),
    sliding_layers=(True, False) * 2,
)  # fmt: skip
CASES = [
    (BIASED, {"tp": 2, "attn_dp": 2, "ep": 4}),
    (BIASED, {"tp": 4, "pp": 2}),
    (DENSE, {"tp": 1}), (DENSE, {"tp": 8}), (DENSE, {"tp": 4, "sp": True}), (DENSE, {"tp": 2, "pp": 3}), (DENSE,
    {"tp": 2, "dp": 3}),
    (DENSE, {"tp": 2, "attn_dp": 2}), (DENSE, {"tp": 1, "pp": 4}),
    (DENSE, {"tp": 2, "cp": 4}), (DENSE, {"cp": 4, "cp_kind": "ring"}), (DENSE, {"tp": 8, "dcp": 4}), (DENSE,
    {"tp": 8, "dk": 2}),
    (SPARSE, {"tp": 2, "cp": 2, "ep": 4}), (LATENT, {"tp": 4, "dcp": 2, "ep": 4}), (SPARSE, {"tp": 4, "ep": 2}),
    (LATENT, {"tp": 2, "attn_dp": 4, "ep": 8, "ep_nodes": 4}), (SPARSE, {"attn_dp": 4, "ep": 4, "etp": 1, "ep_nodes": 2}),
    (SPARSE, {"tp": 2, "attn_dp": 2, "ep": 4}), (SPARSE, {"tp": 2, "attn_dp": 2, "ep": 4, "moe_comm": "allgather"}),
    (SPARSE, {"tp": 1, "attn_dp": 8, "ep": 4}), (SPARSE, {"tp": 2, "pp": 3, "ep": 2}), (SPARSE, {"tp": 2,
    "attn_dp": 2, "ep": 2, "sp": True}),
    (LATENT, {"tp": 8, "ep": 8}), (LATENT, {"tp": 1, "attn_dp": 8, "ep": 8, "dp": 2}), (LATENT, {"tp": 2,
    "attn_dp": 2, "ep": 4, "sp": True, "pp": 2}),
]  # fmt: skip
IDS = [
    f"{m.name}-{Strategy(**kw).label()}{'-' + str(kw.get('moe_comm', '')) + str(kw.get('cp_kind', ''))}"
    for m, kw in CASES
]


def program(model: ModelSpec, phase: str = "prefill", batch: int = 16, seq: int = 32, **kw) -> Program:
    sizes = all_sizes(model, batch_size=batch, seq_len=seq if phase == "prefill" else 1, kv_len=seq)
    return lower(model, Strategy(**kw), phase, sizes)


def dag(model: ModelSpec, phase: str = "prefill", detail="full", expand=False, **kw) -> Dag:
    return build_dag(program(model, phase, **kw), detail=detail, expand_replicas=expand)


def failures(d: Dag) -> list[str]:
    (report,) = check_dot(to_dot(d), "x.dot")
    return [f"{s.line}: {s.message}" for s in report.syntax] + [f"{r.rule}: {r.message}" for r in report.failed]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(("model", "kw"), CASES, ids=IDS)
def test_every_generated_dag_keeps_every_rule_that_a_file_can_show(model, kw, phase):
    d = dag(model, phase, **kw)
    assert failures(d) == []
    (report,) = check_dot(to_dot(d), "x.dot")
    assert {r.rule for r in report.results if r.status == "not_decidable"} == {"R13", "R16", "R17", "R18"}


@pytest.mark.parametrize(("model", "kw"), CASES, ids=IDS)
def test_a_dag_written_and_read_back_is_the_same_graph(model, kw):
    d = dag(model, **kw)
    assert differences(d, parse_dot(to_dot(d))[0]) == ()


@pytest.mark.parametrize(("model", "kw"), CASES, ids=IDS)
def test_parts_tile_every_weight_and_no_weight_is_lost(model, kw):
    p = program(model, **kw)
    results = {r.rule: r for r in run_rules([build_dag(p)], [p], balance={"time": 1.0})}
    assert results["R16"].status == "passed", results["R16"].message
    assert results["R19"].status == "passed", results["R19"].message


def test_every_operator_of_the_program_is_one_node_on_each_device_and_every_collective_one_per_group():
    p = program(SPARSE, tp=2, attn_dp=2, ep=4, pp=2)
    steps = defaultdict(list)
    for n in build_dag(p).nodes:
        steps[n.step].append(n)
    for stage in p.stages:
        for body, _ in stage.bodies():
            prefix = f"s{stage.index}_"
            for op in body.ops:
                name = re.sub(r"\W", "_", op.name)
                nodes = [
                    ns
                    for s, ns in steps.items()
                    if s.startswith(prefix)
                    and s.endswith(f"_{name}")
                    and body.name.split("_")[0][:1] == s.split("_")[1][:1]
                ]
                assert nodes, op.name
                for ns in nodes:
                    devices = sorted(g for n in ns for g in n.devices)
                    assert devices == list(stage.ranks)
                    if op.op is not None or op.comm.kind == "slice":
                        assert all(len(n.devices) == 1 for n in ns)
                    else:
                        assert {len(n.devices) for n in ns} == {p.mesh.degree(op.comm.axes)}


def test_local_dims_are_the_exact_lengths_of_each_rank_even_where_shards_are_uneven():
    p = program(SPARSE, batch=10, tp=1, attn_dp=4, ep=4)
    d = build_dag(p)
    axes = p.stages[0].runs[-1].bodies[0].layout("router.weight")
    assert axes.axes("experts") == ()
    for rank in range(4):
        (node,) = [n for n in d.nodes if n.operator == "q_proj · matmul" and n.devices == (rank,) and n.layers == "0"]
        batch = len(positions(10, p.mesh.shape.axis("attn_dp"), p.mesh, rank))
        assert dict(node.outputs[0].dims)["batch_size"] == batch
        (up,) = [n for n in d.nodes if n.operator == "expert_up · matmul" and n.devices == (rank,)]
        assert dict(up.outputs[0].dims)["experts"] == len(positions(10, p.mesh.shape.axis("ep"), p.mesh, rank))
    assert sorted(
        dict(n.outputs[0].dims)["batch_size"] for n in d.nodes if n.operator == "embed · embedding lookup"
    ) == [2, 2, 3, 3]


def test_expected_tokens_per_expert_are_marked_with_their_bound():
    (node,) = [n for n in dag(SPARSE, batch=8, seq=16, tp=1).nodes if n.operator == "expert_up · matmul"]
    assert node.notes == ("Expected: expert_tokens=⌈8·16·3/10⌉=39, at most 128 per expert",)
    assert dict(node.outputs[0].dims)["expert_tokens"] == 39


@pytest.mark.parametrize("comm", ["alltoall", "allgather"])
def test_dashed_lines_lead_from_every_gate_to_the_routing_of_every_device(comm):
    d = dag(SPARSE, tp=1, attn_dp=4, ep=4, moe_comm=comm)
    onward = defaultdict(set)
    for e in d.edges:
        if e.dashed:
            onward[e.src].add(e.dst)
    gates = [n for n in d.nodes if "top-k" in n.operator]
    last = "expert routing" if comm == "alltoall" else "dispatch"
    targets = {n.id for n in d.nodes if n.operator.startswith(last)}
    assert len(gates) == len(targets) == 4
    for g in gates:
        seen, todo = set(), [g.id]
        while todo:
            for nxt in onward[todo.pop()] - seen:
                seen.add(nxt)
                todo.append(nxt)
        assert targets <= seen


def test_the_selection_never_runs_along_a_solid_line():
    d = dag(SPARSE, tp=2, attn_dp=2, ep=4)
    assert all(e.dashed for e in d.edges if e.tensor.split("@")[0] in ("expert_ids", "selection"))
    assert any(e.dashed for e in d.edges)


def test_replicas_are_drawn_once_with_their_number_or_all_when_asked():
    one, three = dag(DENSE, tp=2, dp=3), dag(DENSE, tp=2, dp=3, expand=True)
    assert "× 3 identical replicas" in one.subtitle and len(one.lanes) == 2
    assert len(three.lanes) == 6 and failures(three) == [] and failures(one) == []
    assert {n.devices for n in three.nodes if n.operator == "sample · greedy sampling"} == {(g,) for g in range(6)}


def test_all_replicas_can_be_drawn_with_attention_data_parallel_inside():
    d = dag(DENSE, tp=2, attn_dp=2, dp=2, expand=True)
    assert failures(d) == []
    assert len([n for n in d.nodes if n.step == "split_batch"]) == 2


def test_repetitions_add_up_per_stage_also_for_alternating_layers():
    d = dag(LATENT, tp=2, pp=2, ep=2)
    assert [(f.repeats, len(f.layers), f.stage) for f in d.frames] == [(2, 4, 0), (2, 4, 1)]
    for stage in (0, 1):
        layers = {
            i for n in d.nodes if n.lane is not None and n.frame.startswith(f"s{stage}_") for i in index_set(n.layers)
        }
        assert layers == set(range(4 * stage, 4 * stage + 4))


@pytest.mark.parametrize("detail", ["group", "stage"])
def test_views_with_less_detail_are_connected_and_acyclic(detail):
    d = dag(LATENT, detail=detail, tp=4, attn_dp=16, ep=64, batch=64, pp=2)
    assert failures(d) == []
    assert len(d.nodes) < 250 and len(d.lanes) == 2


def test_r17_accepts_the_proof_of_this_graph_and_no_other():
    kw = {"tp": 2, "attn_dp": 2}
    proofs = list(prove(DENSE, Strategy(**kw), batch_size=4, seq_len=8, decode_steps=1).values())
    status = {
        m: {r.rule: r.status for r in run_rules([d], proofs=proofs)}["R17"]
        for m, d in (("same", dag(DENSE, **kw)), ("other", dag(DENSE, tp=4)))
    }
    assert status == {"same": "passed", "other": "failed"}
    broken = [p.model_copy(update={"ok": False, "failures": ("o_proj differs",)}) for p in proofs]
    assert {r.rule: r.message for r in run_rules([dag(DENSE, **kw)], proofs=broken)}["R17"].endswith("o_proj differs")


def test_r13_wants_both_phases_of_plan_and_baseline():
    plan = [dag(DENSE, phase, tp=2) for phase in ("prefill", "decode")]
    base = [dag(DENSE, phase, tp=1, pp=2) for phase in ("prefill", "decode")]
    r13 = lambda dags: run_rules(dags)[0].status  # noqa: E731
    assert (r13(plan + base), r13(plan), r13(plan + base[:1])) == ("passed", "failed", "failed")


def test_r18_sees_a_changed_and_a_vanished_input():
    before = {"a.md": "1", "b.md": "2"}

    def r18(after):
        return next(
            r for r in run_rules([dag(DENSE, tp=1)], inputs_before=before, inputs_after=after) if r.rule == "R18"
        )

    assert r18(before).status == "passed"
    assert (r18({"a.md": "1", "b.md": "3"}).total, r18({}).total) == (1, 2)


def test_r16_sees_a_missing_shard_a_double_one_and_imbalance():
    from dataclasses import replace

    d = dag(DENSE, tp=4)
    r16 = lambda x, b=1.0: next(r for r in run_rules([x], balance={"memory": b}) if r.rule == "R16").status  # noqa: E731
    with_w = [i for i, n in enumerate(d.nodes) if n.shards and n.operator.startswith("q_proj")]
    lost = replace(d, nodes=tuple(replace(n, shards=()) if i == with_w[1] else n for i, n in enumerate(d.nodes)))
    twice = replace(
        d,
        nodes=tuple(
            replace(n, shards=d.nodes[with_w[0]].shards) if i == with_w[1] else n for i, n in enumerate(d.nodes)
        ),
    )
    assert (r16(d), r16(lost), r16(twice), r16(d, 1.2)) == ("passed", "failed", "failed", "failed")


def test_a_program_without_sizes_is_refused_in_one_line():
    bare = lower(DENSE, Strategy(tp=2), "prefill", {})
    with pytest.raises(ToolError, match="batch_size"):
        build_dag(bare)


def test_steps_are_drawn_in_a_topological_order():
    for stage in program(LATENT, "decode", tp=2, attn_dp=2, ep=4).stages:
        for body, _ in stage.bodies():
            made: set[str] = {t for t in body.tensors if t not in {p.output for p in body.ops}}
            for p in depth_first(body):
                assert set(p.inputs) <= made
                made.add(p.output)


def test_nodes_of_one_lane_never_overlap():
    (graph,) = parse_dot(to_dot(dag(SPARSE, tp=2, attn_dp=2, ep=4)))
    columns = defaultdict(list)
    for n in graph.nodes.values():
        x, y = map(float, n.attrs["pos"].rstrip("!").split(","))
        columns[round(x, 1)].append((y, float(n.attrs["height"]) * 72))
    for rows in columns.values():
        rows.sort()
        assert all(b - a >= (h + k) / 2 for (a, h), (b, k) in itertools.pairwise(rows))
