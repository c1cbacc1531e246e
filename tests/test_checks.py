"""Checks say nothing about a sound plan, and find what is broken in a mutated one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from knowledge.catalog import load_device, load_model
from tools.checks import CHECKS, run_checks
from tools.checks.conservation import kv_copies
from tools.graph.build import all_sizes
from tools.partition.layout import Layout
from tools.partition.lower import PBody, Program, Run, Stage, lower
from tools.spec.base import ToolError
from tools.spec.deployment import Deployment
from tools.spec.finding import Finding
from tools.spec.hardware import Cluster
from tools.spec.strategy import Phase, Strategy
from tools.spec.workload import EngineChoice, Requirements, Workload


def programs(name: str, **strategy: object) -> dict[Phase, Program]:
    m = load_model(name).model
    s = Strategy(**{"batch": 16, **strategy})
    sizes = {
        "prefill": all_sizes(m, batch_size=s.batch, seq_len=512, kv_len=512),
        "decode": all_sizes(m, batch_size=s.batch, seq_len=1, kv_len=640),
    }
    return {p: lower(m, s, p, sizes[p]) for p in ("prefill", "decode")}  # type: ignore[arg-type]


def deployment(name: str, num_devices: int | None, **changes: object) -> Deployment:
    d = load_device("H100").device
    cluster = Cluster(
        device=d, num_devices=num_devices, memory_bytes=d.memory_usable_bytes, memory_bandwidth=d.memory_bandwidth,
        peak_flops=d.peak_flops, intra_node_bandwidth=d.link_bandwidth, inter_node_bandwidth=d.network_bandwidth,
    )  # fmt: skip
    base = Deployment(model=load_model(name).model, cluster=cluster, workload=Workload(isl=512, osl=128))
    return base.model_copy(update=changes)


def codes(found: tuple[Finding, ...], severity: str = "error") -> set[str]:
    return {f.code for f in found if f.severity == severity}


SOUND = [
    ("llama-3-70b", {"tp": 8}),
    ("llama-3-70b", {"tp": 4, "pp": 3, "dp": 2, "sp": True}),
    ("llama-3-70b", {"tp": 16}),
    ("llama-3-70b", {"tp": 4, "cp": 2}),
    ("llama-3-70b", {"tp": 16, "dcp": 2}),
    ("bloom-7b1", {"tp": 4, "pp": 2}),
    ("gemma-2-9b", {"tp": 2, "pp": 2, "layers_per_stage": (20, 22)}),
    ("gpt-oss-120b", {"tp": 4, "ep": 4, "weight_dtype": "mxfp4"}),
    ("qwen3-235b-a22b", {"tp": 4, "attn_dp": 2, "ep": 8}),
    ("deepseek-v3", {"tp": 4, "attn_dp": 4, "ep": 16, "pp": 2, "weight_dtype": "fp8"}),
    ("deepseek-v3", {"tp": 8, "pp": 4, "ep": 4, "weight_dtype": "fp8"}),
    ("deepseek-v3", {"tp": 8, "dcp": 4, "weight_dtype": "fp8"}),
]


@pytest.mark.parametrize(("name", "strategy"), SOUND)
def test_a_sound_graph_has_no_error(name: str, strategy: dict) -> None:
    found = run_checks(programs(name, **strategy))
    assert not codes(found), [f.message for f in found if f.severity == "error"]


def test_every_family_is_registered() -> None:
    assert set(CHECKS) == {
        "divisibility", "fit", "topology", "conservation", "repeats", "engine", "balance", "collectives", "deadlock"
    }  # fmt: skip


def test_an_unknown_check_names_the_known_ones() -> None:
    with pytest.raises(ToolError, match="no check named gravity; there are balance"):
        run_checks(programs("gpt2"), only=["gravity"])


def test_programs_of_two_strategies_are_not_mixed() -> None:
    with pytest.raises(ToolError, match="2 strategies"):
        run_checks([programs("gpt2")["prefill"], programs("gpt2", tp=2)["prefill"]])


# ------------------------------------------------------------------------------------------------- against a deployment


def test_weights_that_do_not_fit_are_a_memory_error_with_the_shortfall() -> None:
    found = run_checks(programs("llama-3-70b", tp=1), deployment("llama-3-70b", 1))
    f = next(f for f in found if f.code == "memory")
    assert f.cause == "memory" and "short before any KV cache" in f.message and f.values["free_bytes"] < 0


def test_a_batch_that_does_not_fit_is_a_kv_error_with_one_that_does() -> None:
    d = deployment("llama-3-70b", 8, workload=Workload(isl=7000, osl=1000))
    f = next(f for f in run_checks(programs("llama-3-70b", tp=8, batch=400), d) if f.code == "kv-cache")
    assert f.cause == "kv" and f.fix is not None
    fits = int(f.fix.split("about ")[1].split(",")[0])
    assert "kv-cache" in codes(run_checks(programs("llama-3-70b", tp=8, batch=fits * 11 // 10), d))
    assert "kv-cache" not in codes(run_checks(programs("llama-3-70b", tp=8, batch=fits * 9 // 10), d))


def test_a_stated_reserve_is_kept_free() -> None:
    tight = deployment("llama-3-70b", 4, requirements=Requirements(memory_reserve=0.6))
    assert "memory" in codes(run_checks(programs("llama-3-70b", tp=4), tight))
    assert "memory" not in codes(run_checks(programs("llama-3-70b", tp=4), deployment("llama-3-70b", 4)))


def test_tensor_parallelism_across_domains_is_a_warning_with_both_bandwidths() -> None:
    found = run_checks(programs("llama-3-70b", tp=16), deployment("llama-3-70b", 16))
    f = next(f for f in found if f.code == "crosses-domain")
    assert f.severity == "warning" and "50 GB/s instead of 450" in f.message
    inside = run_checks(programs("llama-3-70b", tp=8, pp=2), deployment("llama-3-70b", 16))
    assert not [f for f in inside if f.code == "crosses-domain"]


def test_a_group_that_straddles_two_domains_is_seen_although_it_is_small() -> None:
    """tp 3 on domains of 8: ranks 6, 7 | 8."""
    found = run_checks(programs("gpt2", tp=3, pp=4), deployment("gpt2", 12), only=["topology"])
    assert [f.code for f in found] == ["crosses-domain"]


def test_idle_and_missing_devices_are_found() -> None:
    assert "idle-devices" in codes(run_checks(programs("gpt2", tp=2), deployment("gpt2", 8)), "warning")
    assert "devices" in codes(run_checks(programs("gpt2", tp=4), deployment("gpt2", 2)))
    assert not codes(run_checks(programs("gpt2", tp=2), deployment("gpt2", None), only=["topology"]), "warning")


def test_the_engines_refusal_is_an_error() -> None:
    d = deployment("qwen2.5-7b", 4)
    assert "sp" in codes(run_checks(programs("qwen2.5-7b", tp=4, sp=True), d))
    unknown = deployment("qwen2.5-7b", 4, engine=EngineChoice(name="homemade"))
    assert "engine-unknown" in codes(run_checks(programs("qwen2.5-7b", tp=4, engine="homemade"), unknown), "warning")


def test_uneven_experts_and_sequences_are_said_with_numbers() -> None:
    m = load_model("mixtral-8x7b").model
    ten = m.model_copy(update={"moe": m.moe.model_copy(update={"num_experts": 10})}) if m.moe else m
    sizes = all_sizes(ten, batch_size=7, seq_len=1, kv_len=8)
    found = run_checks([lower(ten, Strategy(tp=2, attn_dp=2, ep=4, batch=7), "decode", sizes)], only=["divisibility"])
    assert any("experts(10) % ep(4) = 2: ranks hold 3 or 2" in f.message for f in found)
    assert any("batch_size(7) % attn_dp(2) = 1" in f.message for f in found)


# ------------------------------------------------------------------------------------------------------------ balance


def test_balance_is_judged_by_the_stated_bound_else_by_what_is_possible() -> None:
    ps = programs("deepseek-v3", tp=8, pp=4, layers_per_stage=(15, 15, 16, 15), weight_dtype="fp8")
    loose = run_checks(ps, deployment("deepseek-v3", 32), only=["balance"])
    f = next(f for f in loose if f.where == "bytes")
    assert f.severity == "warning" and f.values["ratio"] > f.values["bound"] >= 1.05 > f.values["optimum"] > 1
    stated = deployment("deepseek-v3", 32, requirements=Requirements(balance_epsilon=0.2, balance_stated=True))
    assert codes(run_checks(ps, stated, only=["balance"]), "info") == {"balance"}
    strict = deployment("deepseek-v3", 32, requirements=Requirements(balance_epsilon=0.01, balance_stated=True))
    assert codes(run_checks(ps, strict, only=["balance"])) == {"imbalance"}


def test_the_optimal_cut_balances_deepseek_v3() -> None:
    """17, 15, 15, 14 is what a user found by hand for four stages."""
    ps = programs("deepseek-v3", tp=8, pp=4, layers_per_stage=(17, 15, 15, 14), weight_dtype="fp8")
    f = next(f for f in run_checks(ps, deployment("deepseek-v3", 32), only=["balance"]) if f.where == "bytes")
    assert f.severity == "info" and f.values["ratio"] == pytest.approx(f.values["optimum"], rel=1e-6)


def test_uneven_times_are_found() -> None:
    found = run_checks(programs("gpt2", tp=2), only=["balance"], device_seconds={0: 1.0, 1: 2.0})
    assert codes(found, "warning") == {"imbalance"}


# ----------------------------------------------------------------------------------------------------------- mutations


def change_body(program: Program, change: Callable[[PBody], PBody | None]) -> Program:
    """Every layer body changed; None leaves one as it is."""

    def mutate(b: PBody) -> PBody:
        return change(b) or b

    stages = tuple(
        replace(s, runs=tuple(replace(r, bodies=tuple(mutate(b) for b in r.bodies)) for r in s.runs))
        for s in program.stages
    )
    return replace(program, stages=stages)


def change_run(program: Program, change: Callable[[Run], Run]) -> Program:
    first: Stage = program.stages[0]
    runs = (change(first.runs[0]), *first.runs[1:])
    return replace(program, stages=(replace(first, runs=runs), *program.stages[1:]))


def relayout(b: PBody, tensor: str, layout: Layout) -> PBody:
    return replace(b, tensors={**b.tensors, tensor: replace(b.tensors[tensor], layout=layout)})


def first_comm(b: PBody, kind: str) -> int:
    return next(i for i, p in enumerate(b.ops) if p.comm is not None and p.comm.kind == kind)


def with_comm(b: PBody, which: str, **changes: object) -> PBody:
    i = first_comm(b, which)
    comm = b.ops[i].comm
    assert comm is not None
    return replace(b, ops=(*b.ops[:i], replace(b.ops[i], comm=replace(comm, **changes)), *b.ops[i + 1 :]))


def skip_comm(b: PBody, kind: str) -> PBody:
    """Without the collective: whoever read its output reads its input."""
    i = first_comm(b, kind)
    gone = b.ops[i]
    rest = [p for j, p in enumerate(b.ops) if j != i]
    ops = tuple(replace(p, inputs=tuple(gone.inputs[0] if n == gone.output else n for n in p.inputs)) for p in rest)
    return replace(b, ops=ops)


Change = Callable[[Program], Program]


def on_bodies(change: Callable[[PBody, Program], PBody]) -> Change:
    return lambda p: change_body(p, lambda b: change(b, p))


def on_stage(index: int, change: Callable[[Stage, Program], Stage]) -> Change:
    def apply(p: Program) -> Program:
        return replace(p, stages=tuple(change(s, p) if s.index == index else s for s in p.stages))

    return apply


def tp_over(*dims: str) -> Callable[[Program], Layout]:
    return lambda p: Layout.of(dict.fromkeys(dims, p.mesh.shape.axis("tp")))


def crossed(stage: Stage, p: Program) -> Stage:
    """Every rank receives what its mirror image should get."""
    senders = [a for a, _ in stage.receives]
    return replace(stage, receives=tuple(zip(reversed(senders), stage.ranks, strict=True)))


MUTATIONS: dict[str, tuple[Change, str]] = {
    "one repeat too few": (lambda p: change_run(p, lambda r: replace(r, repeat=r.repeat - 1)), "repeats"),
    "one layer forgotten": (lambda p: change_run(p, lambda r: replace(r, layers=r.layers[:-1])), "repeats"),
    "a layer twice": (lambda p: change_run(p, lambda r: replace(r, layers=(r.layers[1], *r.layers[1:]))), "repeats"),
    "no head": (on_stage(1, lambda s, p: replace(s, head=None)), "repeats"),
    "an embedding on the second stage": (on_stage(1, lambda s, p: replace(s, embed=p.stages[0].embed)), "repeats"),
    "a weight cut along another dim": (
        on_bodies(lambda b, p: relayout(b, "down_proj.weight", tp_over("hidden")(p))), "conservation",
    ),
    "a weight left whole": (on_bodies(lambda b, p: relayout(b, "down_proj.weight", Layout())), "conservation"),
    "a weight cut along two dims by one axis": (
        on_bodies(lambda b, p: relayout(b, "up_proj.weight", tp_over("hidden", "ffn")(p))), "conservation",
    ),
    "caches whole on every rank": (on_bodies(lambda b, p: relayout(b, "k_cache", Layout())), "conservation"),
    "a repeat too many": (lambda p: change_run(p, lambda r: replace(r, repeat=r.repeat + 1)), "conservation"),
    "an all-reduce that is a slice": (
        on_bodies(lambda b, p: with_comm(b, "all_reduce", kind="slice", dst_dim="hidden")), "collectives",
    ),
    "an all-reduce over no axis": (on_bodies(lambda b, p: with_comm(b, "all_reduce", axes=())), "collectives"),
    "an all-reduce of the maximum": (on_bodies(lambda b, p: with_comm(b, "all_reduce", reduce="max")), "collectives"),
    "an all-reduce dropped": (on_bodies(lambda b, p: skip_comm(b, "all_reduce")), "collectives"),
    "stages crossed": (on_stage(1, crossed), "collectives"),
    "a rank that receives nothing": (on_stage(1, lambda s, p: replace(s, receives=s.receives[:-1])), "collectives"),
    "a rank in two stages": (on_stage(1, lambda s, p: replace(s, ranks=p.stages[0].ranks)), "collectives"),
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_mutated_graph_is_caught_by_the_family_it_concerns(mutation: str, phase: Phase) -> None:
    program = programs("llama-3-70b", tp=4, pp=2)[phase]
    break_it, family = MUTATIONS[mutation]
    assert not codes(run_checks([program], only=[family]))
    assert codes(run_checks([break_it(program)], only=[family])), mutation


@pytest.mark.parametrize(("name", "strategy"), SOUND)
def test_copies_of_the_cache_follow_from_the_degrees(name: str, strategy: dict) -> None:
    """A second derivation, without layouts, against the count of the conservation check."""
    program = programs(name, **strategy)["decode"]
    assert (copies := kv_copies(program.strategy, program.model.attention)) == int(copies) >= 1
    doubled = replace(program, strategy=program.strategy.model_copy(update={"kv_dtype": "fp8"}))
    assert not codes(run_checks([doubled], only=["conservation"]))
