"""Stages with several device groups, and pools for prefill and decode: executed, counted, drawn; wrong ones are caught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge.catalog import load_model
from tools.checks import run_checks
from tools.dag.build import build_dag
from tools.dag.check_dot import check_dot
from tools.dag.context import run_rules
from tools.dag.dot import to_dot
from tools.engines.rules import check
from tools.graph.build import all_sizes
from tools.memory import memory, model_weight_bytes, rank_kv_bytes, rank_weight_bytes
from tools.oracle.execute import Devices
from tools.oracle.pools import prove_pools
from tools.oracle.prove import prove
from tools.partition.layout import Layout, positions
from tools.partition.lower import Program, lower
from tools.partition.mesh import Mesh, MeshShape, build_mesh
from tools.partition.pools import handovers, lower_pools
from tools.partition.transfer import Message, Side, messages
from tools.shards import count_parts, idle_devices
from tools.spec.base import Refused, ToolError
from tools.spec.model import ModelSpec
from tools.spec.strategy import Phase, Strategy


def model(name: str) -> ModelSpec:
    return load_model(name).model


APART = [
    ("Mixtral-8x7B", {"tp": 2, "expert_devices": 4, "ep": 4}),
    ("Mixtral-8x7B", {"attn_dp": 3, "expert_devices": 8, "ep": 8}),
    ("Mixtral-8x7B", {"tp": 2, "attn_dp": 2, "expert_devices": 8, "ep": 2, "etp": 2}),
    ("DeepSeek-V3", {"tp": 2, "attn_dp": 2, "expert_devices": 8, "ep": 8}),
    ("DeepSeek-V3", {"tp": 4, "pp": 2, "expert_devices": 6, "ep": 6}),
    ("gpt-oss-120b", {"tp": 2, "expert_devices": 4, "ep": 2, "etp": 2}),
    ("Qwen3-30B-A3B", {"tp": 2, "cp": 2, "expert_devices": 3, "ep": 3}),
]
POOL = [
    ("Llama-3.1-8B", {"tp": 4, "attn_pool": 4}),
    ("Llama-3.1-8B", {"tp": 8, "attn_pool": 24}),
    ("Llama-3.1-8B", {"tp": 2, "attn_pool": 1}),
    ("DeepSeek-V3", {"tp": 4, "ep": 4, "attn_pool": 4}),
    ("gpt-oss-120b", {"tp": 4, "attn_pool": 12}),
    ("Qwen3-30B-A3B", {"tp": 2, "attn_pool": 2, "expert_devices": 4, "ep": 4}),
]
PAIRS = [
    ("Llama-3.1-8B", {"tp": 8}, {"tp": 2, "pp": 2}),
    ("Llama-3.1-8B", {"pp": 4, "tp": 2}, {"tp": 16, "dcp": 2}),
    ("Llama-3.1-8B", {"tp": 2, "pp": 2, "seq_slices": 3}, {"tp": 4}),
    ("DeepSeek-V3", {"tp": 4, "attn_dp": 2, "ep": 8}, {"attn_dp": 16, "ep": 16}),
    ("gpt-oss-120b", {"tp": 2, "cp": 4, "cp_kind": "ring"}, {"tp": 4}),
    ("Qwen3-30B-A3B", {"tp": 2, "cp": 2}, {"attn_dp": 4, "ep": 4}),
]


def ident(x: object) -> str:
    return Strategy(**x).label() if isinstance(x, dict) else str(x)


def programs(name: str, degrees: dict, *, batch: int = 12, seq: int = 96) -> dict[Phase, Program]:
    m, s = model(name), Strategy(**degrees)
    sizes = all_sizes(m, batch_size=batch, seq_len=seq, kv_len=seq)
    return {"prefill": lower(m, s, "prefill", sizes), "decode": lower(m, s, "decode", {**sizes, "seq_len": 1})}


# ------------------------------------------------------------------------------------------------------------ transfers

MESH_A = Mesh(MeshShape(("a", "b"), ()), {"a": 2, "b": 3})
MESH_B = Mesh(MeshShape(("c", "d"), ()), {"c": 4, "d": 2})
DIMS = ("x", "y")


def layouts(atoms: Sequence[str]) -> st.SearchStrategy[Layout]:
    return st.permutations([*atoms, "", ""]).flatmap(
        lambda order: st.integers(0, len(order)).map(
            lambda cut: Layout.of(
                {"x": tuple(a for a in order[:cut] if a), "y": tuple(a for a in order[cut:][:1] if a)}
            )
        )
    )


@settings(max_examples=80, deadline=None)
@given(src=layouts("ab"), dst=layouts("cd"), x=st.integers(1, 17), y=st.integers(1, 9))
def test_a_transfer_brings_every_receiver_each_element_once_from_a_rank_that_has_it(src, dst, x, y) -> None:
    lengths = {"x": x, "y": y}
    sender, receiver = Side(src, MESH_A, range(6), {}), Side(dst, MESH_B, range(8), {})
    got = {r: np.zeros((x, y), int) for r in receiver.ranks}
    for m in messages(sender, receiver, lengths, same_ranks=False):
        got[m.dst][np.ix_(*m.index)] += 1
        for d, n, where in zip(DIMS, (x, y), m.index, strict=True):
            assert set(where) <= set(positions(n, src.axes(d), MESH_A, m.src, d, {}))
    for r, count in got.items():
        want = np.zeros((x, y), int)
        want[np.ix_(*receiver.held(r, lengths))] = 1
        assert (count == want).all()


def test_equal_copies_take_turns() -> None:
    copies = Side(Layout(), MESH_A, range(6), {})
    split = Side(Layout.of({"x": ("c", "d")}), MESH_B, range(8), {})
    senders = [m.src for m in messages(copies, split, {"x": 16, "y": 1}, same_ranks=False)]
    assert max(senders.count(r) for r in range(6)) - min(senders.count(r) for r in range(6)) <= 1


def test_what_nobody_sends_is_an_error() -> None:
    half = Side(Layout.of({"x": ("a",)}), MESH_A, range(3), {})  # the other half lies on ranks 3 to 5
    whole = Side(Layout(), MESH_B, range(1), {})
    with pytest.raises(ValueError, match="no rank sends"):
        messages(half, whole, {"x": 4, "y": 1}, same_ranks=False)


# -------------------------------------------------------------------------------------------------------------- proofs


@pytest.mark.parametrize(("name", "degrees"), APART + POOL, ids=ident)
def test_device_groups_compute_the_model(name: str, degrees: dict) -> None:
    found = prove(model(name), Strategy(**degrees), batch_size=16, seq_len=64)
    assert all(p.ok for p in found.values()), {k: p.failures for k, p in found.items()}
    assert found["prefill"].devices_simulated == Strategy(**degrees).num_devices


@pytest.mark.parametrize(("name", "first", "second"), PAIRS, ids=ident)
def test_the_cache_of_a_prefill_pool_serves_a_decode_pool(name: str, first: dict, second: dict) -> None:
    found = prove_pools(model(name), Strategy(**first), Strategy(**second), batch_size=16, seq_len=96)
    assert all(p.ok for p in found.values()), {k: p.failures for k, p in found.items()}


def neighbour(sent: Sequence[Message]) -> list[Message]:
    """Every message from the sender of the next one."""
    return [replace(m, src=n.src) for m, n in zip(sent, [*sent[1:], sent[0]], strict=True)]


BROKEN = {
    "a message is lost": lambda sent: sent[1:],
    "a message goes to a wrong receiver": lambda sent: [replace(sent[0], dst=sent[-1].dst), *sent[1:]],
    "every sender is the next one": neighbour,
}


@pytest.mark.parametrize("broken", BROKEN, ids=str)
@pytest.mark.parametrize(
    ("name", "degrees"),
    [
        ("Mixtral-8x7B", {"tp": 2, "attn_dp": 2, "expert_devices": 4, "ep": 4}),
        ("Llama-3.1-8B", {"tp": 4, "attn_pool": 4}),
    ],
    ids=ident,
)
def test_a_wrong_transfer_is_caught(name: str, degrees: dict, broken: str) -> None:
    def alter(devices: Devices) -> None:
        devices.route = BROKEN[broken]

    found = prove(model(name), Strategy(**degrees), batch_size=16, seq_len=64, alter_devices=alter)
    assert not all(p.ok for p in found.values())


def test_a_cache_that_arrives_wrong_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.oracle import pools as oracle

    a, b = Strategy(tp=2), Strategy(tp=4)
    assert all(p.ok for p in prove_pools(model("Llama-3.1-8B"), a, b, batch_size=8, seq_len=64).values())
    for name, change in BROKEN.items():
        sent = oracle.Handover.messages
        monkeypatch.setattr(
            oracle.Handover, "messages", lambda self, sizes, sent=sent, change=change: change(sent(self, sizes))
        )
        found = prove_pools(model("Llama-3.1-8B"), a, b, batch_size=8, seq_len=64)
        monkeypatch.undo()
        assert found["prefill"].ok, "prefill does not depend on the hand-over"
        assert not found["decode"].ok, name


# ------------------------------------------------------------------------------------------------- counted independently


@pytest.mark.parametrize("batch", [1, 3])
def test_ranks_without_a_sequence_take_part_in_the_transfer_and_are_drawn(batch: int) -> None:
    """Fewer sequences than ranks that share them: some give and get nothing, and no operator loses its input."""
    m, s = model("Mixtral-8x7B"), Strategy(tp=8, expert_devices=8, ep=8)
    dag = build_dag(lower(m, s, "decode", all_sizes(m, batch_size=batch, seq_len=1, kv_len=128)))
    (report,) = check_dot(to_dot(dag), "apart")
    assert report.ok, report.failed
    back = next(n for n in dag.nodes if n.kernel == "transfer" and "expert_down" in n.operator)
    assert set(back.devices) == set(range(16))
    assert sorted(dict(port.dims)["expert_tokens"] for port in back.outputs) == [0] * (8 - batch) + [1] * batch


@pytest.mark.parametrize(("name", "degrees"), APART + POOL, ids=ident)
def test_the_checks_find_nothing_wrong(name: str, degrees: dict) -> None:
    both = programs(name, degrees)
    assert [f for f in run_checks(both) if f.severity == "error"] == []
    assert all(row.matches for row in count_parts(both["prefill"]))
    assert idle_devices(both["prefill"]) == ()


def test_experts_apart_hold_the_experts_and_nothing_else() -> None:
    s = Strategy(tp=2, attn_dp=2, expert_devices=8, ep=8)
    m = model("Mixtral-8x7B")
    program = programs("Mixtral-8x7B", s.model_dump())["prefill"]
    held = rank_weight_bytes(program)
    experts = 32 * 8 * 3 * 4096 * 14336 * 2
    assert sum(held[r] for r in range(4, 12)) == experts
    assert sum(held[r] for r in range(4)) == pytest.approx(2 * (model_weight_bytes(m) - experts), rel=0.01)
    kv = rank_kv_bytes(program, batch=8, context=100)
    assert sum(kv.values()) == 8 * 100 * 32 * 2 * 8 * 128 * 2
    assert all(kv[r] == 0 for r in range(4, 12))


def test_a_pool_shares_the_cache_and_no_weights() -> None:
    program = programs("Llama-3.1-8B", {"tp": 4, "attn_pool": 12})["decode"]
    kv = rank_kv_bytes(program, batch=8, context=1600)
    assert set(kv.values()) == {8 * 1600 * 32 * 2 * 8 * 128 * 2 / 16}
    held = rank_weight_bytes(program)
    assert all(held[r] == 0 for r in range(4, 16))
    rows = memory(program, capacity_bytes=80e9, context=1600, batch=8)
    assert [(r.group, r.ranks) for r in rows] == [("attention+pool", 4), ("pool", 12)]
    assert rows[0].kv_bytes == rows[1].kv_bytes == max(kv.values())


# --------------------------------------------------------------------------------------------------------------- drawn


@pytest.mark.parametrize("detail", ["full", "group", "stage"])
@pytest.mark.parametrize(("name", "degrees"), [APART[2], APART[4], POOL[0], POOL[5]], ids=ident)
def test_the_drawing_keeps_the_rules(name: str, degrees: dict, detail) -> None:
    for program in programs(name, degrees).values():
        dag = build_dag(program, detail=detail)
        (report,) = check_dot(to_dot(dag), "x.dot")
        assert report.ok, [str(v) for r in report.failed for v in r.violations[:2]]
        parts = next(r for r in run_rules([dag], [program]) if r.rule == "R16")
        assert parts.status != "failed", parts


@pytest.mark.parametrize("detail", ["full", "group", "stage"])
@pytest.mark.parametrize(("name", "first", "second"), [PAIRS[0], PAIRS[3]], ids=ident)
def test_the_hand_over_is_drawn(name: str, first: dict, second: dict, detail) -> None:
    m = model(name)
    prompt = all_sizes(m, batch_size=16, seq_len=96, kv_len=96)
    pools = lower_pools(m, Strategy(**first), Strategy(**second), prompt, {**prompt, "seq_len": 1})
    for program in (pools.prefill, pools.decode):
        dag = build_dag(program, detail=detail, pools=pools)
        (report,) = check_dot(to_dot(dag), "x.dot")
        assert report.ok, [str(v) for r in report.failed for v in r.violations[:2]]
    sent = [n for n in build_dag(pools.prefill, pools=pools).nodes if n.operator.startswith("KV transfer")]
    devices = {g for n in sent for g in n.devices}
    assert devices == set(range(pools.num_devices)), "every rank of both pools takes part"
    layers = sorted(i for h in handovers(pools) if h.cache == handovers(pools)[0].cache for i in h.layers)
    assert layers == list(range(m.num_hidden_layers))


# -------------------------------------------------------------------------------------------------------------- refused


def test_what_cannot_be_is_refused_with_the_reason() -> None:
    with pytest.raises(ToolError, match="no routed experts"):
        lower(model("Llama-3.1-8B"), Strategy(tp=2, expert_devices=4, ep=4), "prefill", {})
    with pytest.raises(Refused, match="tp alone"):
        lower(model("Llama-3.1-8B"), Strategy(tp=2, attn_dp=2, attn_pool=4), "prefill", {})
    with pytest.raises(ToolError, match=r"expert_devices\(6\) = 6 ranks do not split over ep\(4\)"):
        Strategy(tp=2, expert_devices=6, ep=4)
    with pytest.raises(Refused, match="hand its cache over"):
        lower_pools(model("Llama-3.1-8B"), Strategy(tp=2, attn_pool=2), Strategy(tp=2), {}, {})


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_engines_say_that_they_cannot_launch_it(engine: str) -> None:
    found = check(model("Mixtral-8x7B"), Strategy(tp=2, expert_devices=4, ep=4, engine=engine))
    assert [f.code for f in found if f.severity == "error"] == ["not-expressible"]


def test_the_groups_of_a_stage_cover_it() -> None:
    for degrees in (
        {"tp": 2, "attn_dp": 3, "expert_devices": 8, "ep": 4},
        {"tp": 4, "attn_pool": 12, "expert_devices": 2},
    ):
        s = Strategy(**degrees)
        mesh = build_mesh(s, 8)
        assert int(mesh.size) == s.group
        assert sorted(r for _, ranks in mesh.roles() for r in ranks) == list(range(s.group))
        for axis in mesh.shape.atoms:
            members = sorted(r for g in mesh.groups((axis,)) for r in g)
            assert members == list(mesh.ranks(mesh.shape.group_of(axis)))
