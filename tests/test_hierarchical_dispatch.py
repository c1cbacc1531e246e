"""Hierarchical all-to-all: tokens go to nodes first; same result, fewer bytes between nodes."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge.catalog import load_device, load_model
from knowledge.curves import load_curves
from tools.checks import run_checks
from tools.cost.collectives import across, levels
from tools.cost.compute import Work
from tools.cost.curves import Curves
from tools.cost.serving import Load
from tools.cost.steps import Candidates, layouts
from tools.engines.rules import check
from tools.graph.build import all_sizes
from tools.graph.routing import node_share
from tools.oracle.prove import draw, prove
from tools.oracle.reduce import reduce
from tools.partition.layout import Layout, redistribute
from tools.partition.lower import PBody, Program, lower
from tools.search.explain import price_layouts
from tools.search.pools import _workers
from tools.search.space import families, prefill_families, price_space
from tools.spec.base import MeshwrightError
from tools.spec.deployment import Deployment
from tools.spec.hardware import Cluster
from tools.spec.strategy import Strategy
from tools.spec.workload import EngineChoice, Workload

CURVES = load_curves()

CASES = [
    ("mixtral-8x7b", {"attn_dp": 4, "ep": 4, "ep_nodes": 2}),
    ("qwen3-235b-a22b", {"tp": 2, "attn_dp": 4, "ep": 8, "ep_nodes": 2}),
    ("deepseek-v3", {"tp": 2, "attn_dp": 4, "ep": 8, "ep_nodes": 4, "sp": True}),
    ("deepseek-v3", {"attn_dp": 8, "ep": 4, "etp": 2, "ep_nodes": 2}),
    ("deepseek-v3", {"attn_dp": 4, "ep": 4, "ep_nodes": 2, "pp": 2, "redundant_experts": 4}),
    ("gpt-oss-120b", {"attn_dp": 8, "ep": 4, "etp": 1, "ep_nodes": 2}),
    ("llama-4-scout", {"attn_dp": 8, "ep": 8, "ep_nodes": 2}),
]


def layer(program: Program) -> PBody:
    return next(b for s in program.stages for b, _ in s.bodies() if "moe" in b.name)


def program(name: str, phase: str = "prefill", batch: int = 64, seq: int = 128, **degrees: object) -> Program:
    m = load_model(name).model
    sizes = all_sizes(m, batch_size=batch, seq_len=seq, kv_len=seq)
    return lower(m, Strategy.model_validate(degrees), phase, sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "degrees"), CASES, ids=lambda x: x if isinstance(x, str) else Strategy(**x).label())
def test_two_steps_compute_the_model(name: str, degrees: dict) -> None:
    """All tensors equal those of one device, and its logits those of the model that dispatches straight (`draw` checks)."""
    m, s = load_model(name).model, Strategy(**degrees)
    proofs = prove(m, s, batch_size=24, seq_len=32, decode_steps=2)
    assert all(p.ok for p in proofs.values()), {k: p.failures for k, p in proofs.items()}
    found = run_checks({p: program(name, p, **degrees) for p in ("prefill", "decode")})
    assert [f.message for f in found if f.severity == "error"] == []


def test_prefill_crosses_nodes_before_it_spreads_inside_them_and_decode_goes_straight() -> None:
    degrees = {"tp": 2, "attn_dp": 4, "ep": 8, "ep_nodes": 2}
    prefill, decode = (program("deepseek-v3", p, **degrees) for p in ("prefill", "decode"))
    nodes = prefill.mesh.shape.axis("ep_nodes")
    assert [prefill.mesh.groups(nodes)[i] for i in (0, 3)] == [(0, 4), (3, 7)], "equal places in their nodes"
    sent = [(p.comm, p.name) for p in layer(prefill).ops if p.comm is not None and p.comm.kind == "all_to_all"]
    across_nodes = [n for c, n in sent if set(c.axes) & set(nodes)]
    assert across_nodes == [f"{t}@all_to_all" for t in ("dispatch_nodes", "node_ids", "node_weights", "combine_nodes")]
    for comm in (c for c, n in sent if n not in across_nodes):
        assert all({r // 4 for r in g} in ({0}, {1}) for g in prefill.mesh.groups(comm.axes)), "inside one node"
    straight = [p.comm for p in layer(decode).ops if p.comm is not None and p.comm.kind == "all_to_all"]
    assert len(straight) == 2 and all(len(decode.mesh.groups(c.axes)[0]) == 8 for c in straight)


def test_a_token_crosses_to_a_node_once_however_many_of_its_experts_are_there() -> None:
    """Counted on the executed model, from the gate's choice alone."""
    m, s = load_model("deepseek-v3").model, Strategy(attn_dp=4, ep=4, ep_nodes=2)
    small = reduce(m, s, batch_size=24, seq_len=32, decode_steps=1)
    *_, traces, _ = draw(small, 0)
    moe, several = small.model.moe, 0
    assert moe is not None
    for (i, body, tensor), ids in traces["prefill"][0].values.items():
        if tensor != "expert_ids":
            continue
        values = traces["prefill"][0].values
        sent, held = np.asarray(values[i, body, "dispatch_nodes"]), np.asarray(values[i, body, "node_ids"])
        ids, crossed = np.asarray(ids), np.abs(sent).sum(-1) > 0
        needed = ids // (moe.num_slots // moe.nodes)
        assert (crossed.sum(0) == [[len(set(t)) for t in row] for row in needed]).all()
        assert ((held >= 0).sum() == ids.size) and (crossed.sum() <= ids.size)
        several += ids.size - int(crossed.sum())
    assert several > 0, "some token has two experts in one node, or the test says nothing"


def test_the_share_of_tokens_that_a_node_gets_is_that_of_all_choices() -> None:
    """Every choice counted: 12 experts, 3 of them per token, in 4 nodes; then only those inside 2 of 4 groups."""
    plain = list(combinations(range(12), 3))
    assert node_share(4, 12, 3) == pytest.approx(sum(min(c) < 3 for c in plain) / len(plain))
    grouped = [c for g in combinations(range(4), 2) for c in combinations([e for e in range(12) if e // 3 in g], 3)]
    assert node_share(4, 12, 3, 4, 2) == pytest.approx(sum(min(c) < 3 for c in grouped) / len(grouped))


def test_deepseek_v3_sends_a_token_to_at_most_four_of_eight_nodes() -> None:
    """DeepSeek-V3 §3.4 (arXiv 2412.19437): 8 groups of 32 experts, 4 chosen, 8 experts per token."""
    limited, free = 8 * node_share(8, 256, 8, 8, 4), 8 * node_share(8, 256, 8)
    assert 3 < limited < 4 < free < 8
    assert free == pytest.approx(8 * (1 - comb(224, 8) / comb(256, 8)))


@given(st.sampled_from([2, 4, 8, 16]), st.integers(1, 16))
def test_a_node_is_needed_no_more_often_than_its_ranks(nodes: int, top_k: int) -> None:
    """Tokens between nodes never exceed the copies for experts, nor the ranks that are needed."""
    needed = nodes * node_share(nodes, 256, top_k)
    assert needed <= min(nodes, top_k) + 1e-9
    assert needed <= 8 * nodes * node_share(8 * nodes, 256, top_k) + 1e-9


def test_an_exchange_may_take_axes_in_another_order_than_they_leave() -> None:
    """Sequences lie with the nodes inside, experts with the nodes outside: one all-to-all, not two."""
    src, dst = Layout.of({"batch_size": ("local", "node")}), Layout.of({"experts": ("node", "local")})
    ((comm, reached),) = redistribute(src, dst)
    assert (comm.kind, comm.axes, comm.src_axes, reached) == ("all_to_all", ("node", "local"), ("local", "node"), dst)


@pytest.mark.parametrize(
    ("degrees", "words"),
    [
        ({"attn_dp": 4, "ep": 4, "ep_nodes": 3}, r"ep\(4\) % ep_nodes\(3\) = 1"),
        ({"attn_dp": 4, "ep": 4, "ep_nodes": 2, "moe_comm": "allgather"}, "moe_comm auto"),
        ({"tp": 4, "ep": 4, "etp": 1, "ep_nodes": 2}, "deal sequences out over the nodes"),
        ({"tp": 2, "cp": 4, "ep": 8, "etp": 1, "ep_nodes": 2}, "deal sequences out over the nodes"),
        ({"tp": 2, "expert_devices": 4, "ep": 4, "ep_nodes": 2}, "one transfer"),
    ],
    ids=str,
)
def test_what_cannot_go_to_nodes_first_is_refused_with_the_way_out(degrees: dict, words: str) -> None:
    with pytest.raises(MeshwrightError, match=words):
        program("mixtral-8x7b", **degrees)


# -------------------------------------------------------------------------------------------------------------- the price


def deployment(engine: str = "sglang", num_nodes: int = 4, **changes: object) -> Deployment:
    d = load_device("h800").device
    cluster = Cluster(
        device=d, num_devices=8 * num_nodes, devices_per_node=8, memory_bytes=d.memory_usable_bytes,
        memory_bandwidth=d.memory_bandwidth, peak_flops=d.peak_flops, intra_node_bandwidth=d.link_bandwidth,
        inter_node_bandwidth=d.network_bandwidth, link_domain=d.link_domain,
    )  # fmt: skip
    work = Workload(isl=4096, osl=128, concurrency=256)
    choice, fp8 = EngineChoice(name=engine), {"weight_dtypes": ("fp8",)}
    fields = {"model": load_model("deepseek-v3").model, "cluster": cluster, "workload": work, "engine": choice, **fp8}
    return Deployment.model_validate({**fields, **changes})


def exchanges(s: Strategy, tokens: int = 256, curves: Curves = CURVES) -> dict[str, Work]:
    """What the all-to-alls of a prefill step of 32 x `tokens` move, by name; per rank."""
    ((_, layout),) = layouts(deployment(), curves, Candidates.of(s))
    works = layout.works("prefill", 32, tokens, tokens).layers
    return {w.kernel: w for _, ws in works for w in ws if w.comm is not None and w.comm.kind == "all_to_all"}


def one(x: object) -> float:
    return float(np.ravel(np.asarray(x))[0])


FLAT = Strategy(attn_dp=32, ep=32, weight_dtype="fp8", engine="sglang")
NODES = FLAT.model_copy(update={"ep_nodes": 4})


def test_between_nodes_a_token_its_experts_and_their_weights_go_once_per_node() -> None:
    """fp8 out, 16-bit back; 8 expert numbers and weights of 4 bytes each travel with the token, in the same message."""
    found, per_token = exchanges(NODES), 4 * node_share(4, 256, 8, 8, 4)
    assert set(found) == {f"{t}@all_to_all" for t in ("dispatch_nodes", "dispatch", "expert_down", "combine_nodes")}
    assert one(found["dispatch_nodes@all_to_all"].comm_bytes) == pytest.approx(256 * per_token * (7168 + 8 * (4 + 4)))
    assert one(found["combine_nodes@all_to_all"].comm_bytes) == pytest.approx(256 * per_token * 7168 * 2)


def test_inside_the_nodes_as_many_copies_travel_as_ranks_are_needed() -> None:
    flat, nodes = exchanges(FLAT), exchanges(NODES)
    for name in ("dispatch@all_to_all", "expert_down@all_to_all"):
        assert one(nodes[name].comm_bytes) == pytest.approx(one(flat[name].comm_bytes))


@pytest.mark.parametrize("ep_nodes", [2, 4])
def test_fewer_bytes_leave_a_node_and_the_exchange_between_nodes_takes_less_time(ep_nodes: int) -> None:
    tops = levels(deployment().cluster, CURVES, "sglang")
    n = 8 * ep_nodes
    s = Strategy(attn_dp=n, ep=n, weight_dtype="fp8", engine="sglang")
    flat = exchanges(s)["dispatch@all_to_all"].comm_bytes
    nodes = exchanges(s.model_copy(update={"ep_nodes": ep_nodes}))["dispatch_nodes@all_to_all"].comm_bytes
    assert one(nodes) < one(flat)
    assert one(across("all_to_all", [1, ep_nodes], nodes, tops, 0.0)) < one(
        across("all_to_all", [8, ep_nodes], flat, tops)
    )


@settings(max_examples=20)
@given(st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.sampled_from([FLAT, NODES]))
def test_more_skew_is_never_cheaper(a: float, b: float, s: Strategy) -> None:
    """The busiest rank, or node, ends the exchange."""
    little, much = sorted((a, b))
    tops = levels(deployment().cluster, CURVES, "sglang")

    def seconds(skew: float) -> list[float]:
        curves = CURVES.model_copy(update={"moe": CURVES.moe.model_copy(update={"skew": skew})})
        group = [8, 4] if s.ep_nodes == 1 else [1, 4]
        return [
            one(across("all_to_all", group, w.comm_bytes, tops, w.fanout, w.balance))
            for w in exchanges(s, curves=curves).values()
        ]

    assert all(x <= y for x, y in zip(seconds(little), seconds(much), strict=True))
    even, uneven = seconds(0.0)[0], seconds(1.0)[0]
    assert even < uneven


def test_the_search_prices_both_ways_as_estimate_does_and_prefill_decides() -> None:
    d = deployment()
    assert {c.node for c in families(d, CURVES)} == {0, 8}
    space = price_space(d, CURVES, [32])
    found = {}
    for p in space.priced:
        for i in range(len(p)):
            s = p.cands.strategy(i, d.model)
            key = (s.tp, s.pp, s.ep, s.etp, s.attn_dp, s.batch, s.max_num_batched_tokens, s.moe_comm, s.sp)
            found[key, s.ep_nodes] = (s, float(p.metrics["ttft"][i]))
    pairs = [(found[k, 1], (s, t)) for (k, n), (s, t) in found.items() if n > 1 and (k, 1) in found]
    assert pairs and {s.ep * (s.etp or 1) // s.ep_nodes for _, (s, _) in pairs} == {8}
    assert any(nodes < flat for (_, flat), (_, nodes) in pairs), "worth it somewhere, or it were no choice"
    s, ttft = pairs[0][1]
    again = price_layouts(d, CURVES, Candidates.of(s))
    assert again is not None and np.isclose(ttft, again.metrics["ttft"], rtol=1e-9).any()


def test_one_node_and_engines_that_dispatch_alike_in_both_phases_are_not_searched() -> None:
    assert {c.node for c in families(deployment(num_nodes=1), CURVES)} == {0}
    assert {c.node for c in families(deployment("vllm"), CURVES)} == {0}
    assert {c.node for c in families(deployment("trtllm"), CURVES)} == {0}


def test_deepep_takes_eight_ranks_for_a_node() -> None:
    """NUM_MAX_NVL_PEERS in DeepEP's csrc/kernels/configs.cuh."""
    m = load_model("deepseek-v3").model
    codes = {n: {f.code for f in check(m, FLAT.model_copy(update={"ep_nodes": n}), num_nodes=4)} for n in (1, 2, 4)}
    assert "ep-nodes" in codes[2] and "ep-nodes" not in codes[1] | codes[4]
    vllm = {f.code for f in check(m, NODES.model_copy(update={"engine": "vllm"}), num_nodes=4)}
    assert "ep-nodes-phase" in vllm


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_ranks_that_only_prefill_may_send_to_nodes_first_and_ranks_that_decode_never_do(engine: str) -> None:
    """vLLM runs one back end for both phases, which is no matter where a pool has one phase."""
    d = deployment(engine, num_nodes=6)
    assert [c.node for c in prefill_families(d, CURVES)] == [0, 8]
    fronts, backs = _workers(d, CURVES, Load.of(d.workload), 48)
    assert fronts and {w.strategy.ep_nodes for w in backs} == {1}
