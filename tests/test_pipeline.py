"""Interleaved and token-dimension pipelines: assembly, schedule, proof, drawing, and the check against deadlocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from knowledge.catalog import load_device, load_model
from knowledge.curves import load_curves
from tools.checks import run_checks
from tools.checks.deadlock import Call, Collective, Exchange, blocked, calls
from tools.cost.estimate import estimate
from tools.cost.schedule import Halves, Schedule, layer_halves, ping_pong, schedule
from tools.dag.build import build_dag
from tools.dag.context import run_rules
from tools.dag.pingpong import ping_pong_dag, ping_pong_pieces
from tools.dag.schedule import by_flops, schedule_dag
from tools.graph.build import all_sizes
from tools.memory import memory, rank_kv_bytes, rank_weight_bytes
from tools.oracle.execute import Devices
from tools.oracle.prove import prove
from tools.partition.lower import Program, lower
from tools.partition.pipeline import Orders, Task, bubble, order, sequence, slices, timeline
from tools.spec.base import Refused, ToolError
from tools.spec.deployment import Deployment
from tools.spec.hardware import Cluster
from tools.spec.strategy import Phase, Strategy
from tools.spec.workload import Workload


def program(name: str = "llama-3-8b", phase: Phase = "prefill", *, seq: int = 65, **degrees: object) -> Program:
    model = load_model(name).model
    sizes = all_sizes(model, batch_size=4, seq_len=seq if phase == "prefill" else 1, kv_len=seq)
    return lower(model, Strategy.model_validate(degrees), phase, sizes)


# ------------------------------------------------------------------------------------------------------------- assembly


def test_interleaved_runs_are_dealt_out_cyclically_and_need_no_more_devices() -> None:
    p = program(pp=2, virtual=2, tp=2)
    assert p.num_devices == 4
    assert [s.ranks for s in p.stages] == [(0, 1), (2, 3), (0, 1), (2, 3)]
    assert p.stages[2].receives == ((2, 0), (3, 1))  # around, from the last stage to the first
    assert [s.num_layers for s in p.on_ranks] == [16, 16]


def test_interleaving_moves_layers_but_neither_weights_nor_cache_grow() -> None:
    plain, mixed = program(pp=2, tp=2), program(pp=2, virtual=4, tp=2)
    assert rank_weight_bytes(plain) == rank_weight_bytes(mixed)
    assert rank_kv_bytes(plain, batch=3, context=100) == rank_kv_bytes(mixed, batch=3, context=100)
    asked = {"capacity_bytes": 80e9, "context": 4096, "batch": 4}
    assert [s.total_bytes for s in memory(plain, **asked)] == [s.total_bytes for s in memory(mixed, **asked)]


@pytest.mark.parametrize("layers", [(5, 11, 11, 5), (1, 1, 1, 29)])
def test_a_stage_holds_all_its_runs(layers: tuple[int, ...]) -> None:
    p = program(pp=2, virtual=2, layers_per_stage=layers)
    assert [s.num_layers for s in p.on_ranks] == [layers[0] + layers[2], layers[1] + layers[3]]
    assert not [f for f in run_checks([p]) if f.severity == "error"]


def test_what_cannot_be_assembled_is_refused_with_numbers() -> None:
    with pytest.raises(ToolError, match=r"virtual\(2\) with pp\(1\)"):
        program(virtual=2)
    with pytest.raises(ToolError, match=r"pp\(8\) \* virtual\(5\) = 40 exceeds the 32 layers"):
        program(pp=8, virtual=5)
    with pytest.raises(Refused, match=r"seq_slices\(2\) with ring attention over cp\(2\)"):
        program(cp=2, cp_kind="ring", seq_slices=2)
    with pytest.raises(ToolError, match=r"seq_slices\(66\) > seq_len\(65\)"):
        build_dag(program(seq_slices=66))


# ------------------------------------------------------------------------------------------------------------- schedule


def last_chunk(s: Strategy) -> int:
    return s.pp * s.virtual - 1


@pytest.mark.parametrize("pp", [1, 2, 3, 4])
@pytest.mark.parametrize("virtual", [1, 2, 3])
@pytest.mark.parametrize("rounds", [1, 2, 5])
@pytest.mark.parametrize("backward", [False, True])
def test_the_bubble_is_what_the_papers_say(pp: int, virtual: int, rounds: int, backward: bool) -> None:
    """(pp - 1) / (virtual · m + pp - 1): Narayanan et al., arXiv 2104.04473 §2.2, as a share of the whole time."""
    s = Strategy(pp=pp, virtual=virtual if pp > 1 else 1)
    for kind in ("gpipe", "1f1b"):
        orders = order(s, rounds * pp, backward=backward, kind=kind)
        spans = timeline(orders, last_chunk(s), lambda t: 2.0 if t.backward else 1.0)
        want = (pp - 1) / (s.virtual * rounds * pp + pp - 1)
        assert bubble(spans, orders) == pytest.approx(want)


def test_every_task_is_done_once_and_after_what_it_needs() -> None:
    for pp, virtual, pieces in ((2, 3, 5), (4, 2, 3), (3, 1, 7)):
        s = Strategy(pp=pp, virtual=virtual)
        done = sequence(order(s, pieces), last_chunk(s))
        assert sorted(done) == sorted(Task(p, c) for p in range(pieces) for c in range(pp * virtual))
        at = {t: i for i, t in enumerate(done)}
        assert all(at[Task(p, c - 1)] < at[Task(p, c)] for p, c, _ in done if c)


def test_an_order_that_cannot_be_worked_off_names_what_waits() -> None:
    wrong: Orders = ((Task(0, 2), Task(0, 0)), (Task(0, 1), Task(0, 3)))
    with pytest.raises(ValueError, match=r"forward of piece 0 in chunk 2; forward of piece 0 in chunk 1 each wait"):
        sequence(wrong, 3)


def test_one_forward_one_backward_holds_fewer_micro_batches_than_gpipe() -> None:
    def most_in_flight(orders: Orders) -> int:
        held = most = 0
        for t in orders[0]:
            held += -1 if t.backward else 1
            most = max(most, held)
        return most

    s = Strategy(pp=4)
    assert most_in_flight(order(s, 16, backward=True, kind="gpipe")) == 16
    assert most_in_flight(order(s, 16, backward=True, kind="1f1b")) == 4


def test_slices_tile_the_prompt_and_the_longer_ones_come_first() -> None:
    for n, count in ((65, 3), (7, 7), (12, 1), (100, 8)):
        parts = slices(n, count)
        assert [i for first, k in parts for i in range(first, first + k)] == list(range(n))
        lengths = [k for _, k in parts]
        assert lengths == sorted(lengths, reverse=True) and lengths[0] - lengths[-1] <= 1


# ---------------------------------------------------------------------------------------------------------------- proof

PIPELINES = [
    ("llama-3-8b", {"pp": 2, "virtual": 2, "tp": 2}),
    ("llama-3-8b", {"pp": 2, "seq_slices": 3, "tp": 2, "sp": True}),
    ("llama-3-8b", {"tp": 16, "dcp": 2, "seq_slices": 2}),
    ("mistral-7b", {"pp": 2, "cp": 2, "seq_slices": 3}),
    ("deepseek-v3", {"pp": 3, "virtual": 2, "seq_slices": 4, "tp": 2, "attn_dp": 2, "ep": 4}),
    ("llama-4-scout", {"pp": 2, "seq_slices": 4, "tp": 2}),
    ("mixtral-8x7b", {"tp": 2, "expert_devices": 4, "ep": 4, "pp": 2, "virtual": 2, "seq_slices": 2}),
    ("llama-3-8b", {"tp": 2, "attn_pool": 2, "pp": 2, "seq_slices": 2}),
]


@pytest.mark.parametrize(("name", "degrees"), PIPELINES)
def test_a_pipeline_computes_the_model(name: str, degrees: dict) -> None:
    s = Strategy.model_validate(degrees)
    for batch, seq in ((4, 12), (3, 17)):
        for proof in prove(load_model(name).model, s, batch_size=batch, seq_len=seq).values():
            assert proof.ok, proof.failures
            assert proof.devices_simulated == s.replica


def test_a_slice_that_forgets_the_slices_before_it_is_noticed() -> None:
    def forget(d: Devices) -> None:
        d.past = 0

    found = prove(
        load_model("llama-3-8b").model, Strategy(pp=2, seq_slices=3), batch_size=2, seq_len=12, alter_devices=forget
    )
    assert not found["prefill"].ok


def test_slices_compare_every_tensor_once_per_slice() -> None:
    model = load_model("llama-3-8b").model
    one, three = (
        prove(model, Strategy(pp=2, seq_slices=n), batch_size=2, seq_len=12)["prefill"].tensors_compared for n in (1, 3)
    )
    assert three == 3 * one


# ------------------------------------------------------------------------------------------------------------------ DAG


DRAWN = [
    *PIPELINES[:2],
    ("mixtral-8x7b", {"pp": 2, "virtual": 2, "attn_dp": 2, "ep": 2, "seq_slices": 2, "dp": 2}),
    PIPELINES[-2],
]


@pytest.mark.parametrize(("name", "degrees"), DRAWN)
@pytest.mark.parametrize("detail", ["full", "group", "stage"])
def test_the_drawing_keeps_the_rules(name: str, degrees: dict, detail) -> None:
    from tools.dag.check_dot import check_dot
    from tools.dag.dot import to_dot

    p = program(name, **degrees)
    dag = build_dag(p, detail=detail)
    failed = [
        (r.rule, r.message) for report in check_dot(to_dot(dag), name) for r in report.results if r.status == "failed"
    ]
    assert not failed
    if detail == "full":
        assert not [r for r in run_rules([dag], [p]) if r.status == "failed" and r.rule != "R13"]


def test_an_interleaved_stage_has_one_lane_per_device_and_a_transfer_per_boundary() -> None:
    dag = build_dag(program(pp=2, virtual=2, tp=2))
    assert [lane.devices for lane in dag.lanes] == [(0,), (1,), (2,), (3,)]
    assert "chunks 0, 2" in dag.lanes[0].title
    assert sum(n.kernel == "p2p" for n in dag.nodes) == 3 * 2


def test_every_slice_reads_the_cache_that_the_slice_before_left() -> None:
    dag = build_dag(program(pp=2, seq_slices=3, seq=65), detail="full")
    appends = [n for n in dag.nodes if n.step.endswith("k_cache")]
    lengths = [[dict(p.dims)["kv_len"] for p in n.inputs if p.tensor == "k_cache"] for n in appends if n.lane == 0]
    assert lengths == [[], [22], [44]]
    arriving = {e.dst for e in dag.edges if e.tensor == "k_cache" and e.dst in {n.id for n in appends}}
    assert arriving == {n.id for n in appends if not n.step.startswith("t0")}
    assert sum(n.kernel == "p2p" for n in dag.nodes) == 3


# ------------------------------------------------------------------------------------------------------------- deadlock


SOUND: list[tuple[str, dict]] = [
    ("llama-3-8b", {"pp": 4, "tp": 2, "microbatches": 8}),
    ("llama-3-8b", {"pp": 4, "virtual": 2, "tp": 2, "microbatches": 3}),
    ("llama-3-8b", {"pp": 2, "cp": 4, "cp_kind": "ring"}),
    ("deepseek-v3", {"attn_dp": 8, "ep": 8, "pp": 2, "virtual": 2, "seq_slices": 4}),
]


@pytest.mark.parametrize(("name", "degrees"), SOUND)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_sound_program_comes_to_its_end(name: str, degrees: dict, phase: Phase) -> None:
    p = program(name, phase, **degrees)
    assert not blocked(calls(p))
    assert not run_checks([p], only=["deadlock"])


@pytest.mark.parametrize("virtual", [1, 2, 3])
@pytest.mark.parametrize("pp", [2, 3, 4])
@pytest.mark.parametrize("kind", ["gpipe", "1f1b"])
def test_training_schedules_come_to_their_end(pp: int, virtual: int, kind) -> None:
    p = program(pp=pp, virtual=virtual)
    for rounds in (1, 2, 4):
        assert not blocked(calls(p, order(p.strategy, rounds * pp, backward=True, kind=kind), kind))


def seeded() -> dict[int, list[Call]]:
    return calls(program(pp=2, virtual=2, tp=2, microbatches=4))


def collectives(of: Sequence[Call]) -> list[int]:
    return [i for i, c in enumerate(of) if isinstance(c, Collective)]


def test_two_collectives_in_another_order_on_one_member_are_a_circle() -> None:
    mine = seeded()
    i, j = collectives(mine[1])[1:3]
    mine[1][i], mine[1][j] = mine[1][j], mine[1][i]
    why = blocked(mine)
    assert "in a circle" in why and "o_proj@all_reduce of layer 0" in why and "down_proj@all_reduce of layer 0" in why


def test_a_collective_that_one_member_leaves_out_blocks_the_others() -> None:
    for at in range(4):
        mine = seeded()
        del mine[1][collectives(mine[1])[at]]
        assert "wait for ever" in blocked(mine)


def test_a_send_without_a_receiver_blocks_the_sender() -> None:
    mine = seeded()
    mine[2] = [replace(c, receives=()) if isinstance(c, Exchange) else c for c in mine[2]]
    assert "rank 0 waits for rank 2 to receive the result of the forward of piece 0 in chunk 0" in blocked(mine)


def test_sends_before_receives_instead_of_together_deadlock_an_interleaved_pipeline() -> None:
    """The first stage still sends to the second while the last one already sends to the first."""
    apart: dict[int, list[Call]] = {}
    for r, mine in seeded().items():
        halves = [
            [Exchange(sends=c.sends), Exchange(receives=c.receives)] if isinstance(c, Exchange) else [c] for c in mine
        ]
        apart[r] = [c for cs in halves for c in cs if not isinstance(c, Exchange) or c.sends or c.receives]
    assert "in a circle" in blocked(apart)


def test_a_rank_that_stops_early_is_named() -> None:
    mine = seeded()
    del mine[2][-1]
    assert (
        "rank 2 to call logits@all_gather of head (forward of piece 3 in chunk 3), which has come to its end"
        in blocked(mine)
    )


# -------------------------------------------------------------------------------------------------------- schedule view


def timed(p: Program, batch: int, seq: int) -> Schedule:
    device = load_device("h100").device
    cluster = Cluster.of(device, p.strategy.num_devices, 8)
    d = Deployment(model=p.model, cluster=cluster, workload=Workload(isl=seq, osl=1, concurrency=batch))
    return schedule(d, p.strategy, load_curves(), p.phase, batch=batch, seq_len=seq)


VIEWS: list[dict] = [
    {"pp": 4, "tp": 2, "microbatches": 4},
    {"pp": 2, "virtual": 2, "microbatches": 4, "dp": 2},
    {"pp": 3, "seq_slices": 4},
    {"pp": 2, "seq_slices": 3, "microbatches": 2, "cp": 2},
    {"tp": 2},
]


@pytest.mark.parametrize("degrees", VIEWS)
@pytest.mark.parametrize("with_times", [False, True])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_schedule_view_keeps_the_rules(degrees: dict, with_times: bool, phase: Phase) -> None:
    from tools.dag.check_dot import check_dot
    from tools.dag.dot import to_dot

    p = program(phase=phase, **degrees)
    dag = schedule_dag(p, timed(p, 4, 65) if with_times else None)
    found = {r.rule: r for report in check_dot(to_dot(dag), "schedule") for r in report.results}
    assert not [(r.rule, r.message) for r in found.values() if r.status == "failed"]
    assert all(found[r].status == "passed" for r in ("R02", "R04", "R05", "R06", "R07", "R14", "R15"))
    s = p.strategy
    pieces = int(dag.attrs["pieces"])
    tasks = [n for n in dag.nodes if n.operator.startswith("forward")]
    assert len(tasks) == pieces * s.pp * s.virtual
    assert sum(n.kernel == "p2p" for n in dag.nodes) == pieces * (s.pp * s.virtual - 1)
    assert len(dag.lanes) == s.pp


def test_tasks_side_by_side_run_at_the_same_time() -> None:
    dag = schedule_dag(program(pp=3, seq_slices=4))
    rows: dict[int, set[int]] = {}
    for n in dag.nodes:
        if n.operator.startswith("forward"):
            assert n.lane is not None
            assert n.lane not in rows.setdefault(n.row, set())
            rows[n.row].add(n.lane)
    assert [len(rows[r]) for r in sorted(rows)] == [1, 2, 3, 3, 2, 1]


def test_later_slices_take_longer_and_the_bubble_says_so() -> None:
    p = program(pp=2, seq_slices=4, seq=65536, tp=8)
    found = timed(p, 1, 65536)
    lengths = [s.end - s.start for t, s in sorted(found.spans.items()) if t.chunk == 0]
    assert lengths == sorted(lengths) and lengths[-1] > 1.2 * lengths[0]
    assert found.bubble > 1 / 5  # what equal slices would leave idle


def test_slices_shorten_the_prefill_of_a_single_prompt() -> None:
    long = 32768
    one, eight = (timed(program(pp=4, seq_slices=n, seq=long), 1, long).makespan for n in (1, 8))
    assert 1 / 4 < eight / one < 1 / 2


def test_without_times_a_task_is_as_long_as_its_flops() -> None:
    """Llama-3-8B: 2 · 6.98e9 FLOPs per token in the layers' matmuls, and attention's scores and values."""
    p = program(pp=2, microbatches=4)
    found = by_flops(p)
    attention = 4 * 32 * 32 * 128 * 65 * 65
    layers = 2 * 32 * (218_112_000 - 8192) * 65 + attention
    head = 2 * 4096 * 128_256
    assert sum(s.end - s.start for t, s in found.spans.items() if t.piece == 0) * 1e12 == pytest.approx(layers + head)


def test_more_micro_batches_than_sequences_are_refused() -> None:
    with pytest.raises(ToolError, match=r"microbatches\(8\) > batch\(4\)"):
        schedule_dag(program(pp=2, microbatches=8))


# ------------------------------------------------------------------------------------------ attention and experts apart


def test_two_equal_sides_are_always_busy_with_enough_micro_batches() -> None:
    """MegaScale-Infer (arXiv 2504.02263 §4.1): m · T >= 2 · (T + transfer) keeps both sides busy but for the ends."""
    layers = (Halves(1.0, 1.0, 0.5),) * 40

    def busy(m: int) -> list[float]:
        found = ping_pong(layers, m)
        return [sum(found.spans[t].end - found.spans[t].start for t in side) / found.makespan for side in found.orders]

    assert max(busy(1)) < 0.5
    assert max(busy(2)) < 0.85  # 2 < 2 · 1.25
    assert min(busy(3)) > 0.97


def test_the_slower_side_sets_the_pace() -> None:
    found = ping_pong((Halves(1.0, 3.0, 0.2),) * 20, 2)
    assert found.makespan == pytest.approx(2 * 20 * 3.0 + 1.0 + 2 * 0.1, rel=0.02)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("with_times", [False, True])
def test_the_ping_pong_view_keeps_the_rules(name: str, phase: Phase, with_times: bool) -> None:
    from tools.dag.check_dot import check_dot
    from tools.dag.dot import to_dot

    p = program(name, phase, attn_dp=2, expert_devices=4, ep=4, microbatches=3)
    if with_times:
        cluster = Cluster.of(load_device("h100").device, p.num_devices, 8)
        d = Deployment(model=p.model, cluster=cluster, workload=Workload(isl=65, osl=1, concurrency=4))
        dag = ping_pong_dag(p, layer_halves(d, p.strategy, load_curves(), phase, ping_pong_pieces(p)[0]))
    else:
        dag = build_dag(p, detail="schedule")
    assert not [r.message for report in check_dot(to_dot(dag), "x") for r in report.results if r.status == "failed"]
    assert len(dag.lanes) == 2
    assert sum(n.operator.startswith(("attention side", "FFN side")) for n in dag.nodes) == 2 * 2 * 3
    assert sum(n.kernel == "p2p" for n in dag.nodes) == 3 * (2 * 2)


def test_ping_pong_needs_experts_of_their_own() -> None:
    with pytest.raises(ToolError, match=r"expert_devices\(0\) with pp\(1\)"):
        ping_pong_dag(program("mixtral-8x7b", tp=2))


# ----------------------------------------------------------------------------------------------------------- prediction


def predicted(**degrees: object) -> dict[str, float]:
    d = Deployment(
        model=load_model("llama-3-70b").model, cluster=Cluster.of(load_device("h100").device, 8, 8),
        workload=Workload(isl=2048, osl=128, concurrency=1),
    )  # fmt: skip
    found = estimate(d, Strategy.model_validate({"pp": 4, "tp": 2, **degrees}), load_curves())
    return {p.metric: p.value for p in found.predictions if p.stat == "mean"}


def test_slices_of_a_prompt_shorten_ttft_and_leave_decode_alone() -> None:
    whole, sliced = predicted(), predicted(seq_slices=8)
    assert 1 / 4 < sliced["ttft_s"] / whole["ttft_s"] < 0.6
    assert sliced["tpot_s"] == whole["tpot_s"]


def test_interleaving_costs_a_single_request_the_further_hand_overs_only() -> None:
    plain, mixed = predicted(), predicted(virtual=2)
    for metric in ("ttft_s", "tpot_s"):
        assert 1.0 < mixed[metric] / plain[metric] < 1.01
