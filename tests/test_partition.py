"""Layouts, meshes, and what it takes to move between layouts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from knowledge.catalog import load_model
from tools.graph.build import all_sizes
from tools.graph.ir import signature
from tools.oracle.execute import Devices, communicate
from tools.partition.layout import Layout, local_size, positions, redistribute
from tools.partition.lower import Program, compress, default_layers_per_stage, local_dims, lower
from tools.partition.mesh import Mesh, MeshShape, build_mesh
from tools.spec.base import Refused
from tools.spec.model import LayerKind, ModelSpec
from tools.spec.strategy import Strategy


def model(name: str) -> ModelSpec:
    return load_model(name).model


MESH = Mesh(MeshShape(("a", "b", "c"), ()), {"a": 2, "b": 3, "c": 2})
DIMS = ("x", "y")


@st.composite
def layouts(draw: st.DrawFn, pending: bool = True) -> Layout:
    """Every axis splits one of two dims, awaits a sum, or holds copies."""
    split: dict[str, tuple[str, ...]] = {}
    waiting = []
    for axis in draw(st.permutations(MESH.shape.atoms)):
        role = draw(st.sampled_from([*DIMS, "pending", "copy"] if pending else [*DIMS, "copy"]))
        if role in DIMS:
            split[role] = (*split.get(role, ()), axis)
        elif role == "pending":
            waiting.append(axis)
    return Layout.of(split, tuple(waiting))


def shards(x: np.ndarray, layout: Layout, devices: Devices, rng: np.random.Generator) -> list[np.ndarray]:
    """A global tensor as every rank holds it; pending axes hold random summands that add up to it."""
    out = [devices.cut(x, DIMS, layout.without_pending(), r).copy() for r in range(12)]
    for group in devices.mesh.groups(layout.pending):
        if len(group) > 1:
            noise = [rng.normal(size=out[group[0]].shape) for _ in group[1:]]
            for r, n in zip(group[1:], noise, strict=True):
                out[r] = n
            out[group[0]] = out[group[0]] - sum(noise)
    return out


@settings(max_examples=200, deadline=None)
@given(src=layouts(), dst=layouts(pending=False), x=st.integers(12, 29), y=st.integers(12, 29))
def test_redistribution_moves_any_layout_to_any_other(src: Layout, dst: Layout, x: int, y: int) -> None:
    """Executed on twelve ranks, uneven dims included: what arrives is what the destination says."""
    devices, rng = Devices(MESH, {"x": x, "y": y}, 0), np.random.default_rng(x * 100 + y)
    whole = rng.normal(size=(x, y))
    held = shards(whole, src, devices, rng)
    for comm, _ in redistribute(src, dst):
        held = communicate(comm, held, DIMS, devices)
    for rank, part in enumerate(held):
        want = devices.cut(whole, DIMS, dst, rank)
        assert part.shape == want.shape
        assert np.allclose(part, want, atol=1e-12)


@given(src=layouts(), dst=layouts(pending=False))
def test_nothing_is_gathered_only_to_be_scattered_again(src: Layout, dst: Layout) -> None:
    steps = redistribute(src, dst)
    assert (not steps) == (src == dst)
    for comm, _ in steps:
        if comm.kind == "all_gather" and comm.src_dim is not None:
            have, want = src.axes(comm.src_dim), dst.axes(comm.src_dim)
            assert want[: len(have)] != have
    assert not steps or steps[-1][1] == dst


@given(
    n=st.integers(0, 60),
    axes=st.permutations(("a", "b", "c")),
    k=st.integers(0, 3),
    dim=st.sampled_from(["x", "kv_len"]),
)
def test_shards_of_a_dim_tile_it_and_differ_by_little(n: int, axes: list[str], k: int, dim: str) -> None:
    used = tuple(axes[:k])
    held = {r: positions(n, used, MESH, r, dim) for r in range(12)}
    distinct = {tuple(MESH.coordinate(r, a) for a in used): tuple(int(i) for i in held[r]) for r in held}
    assert sorted(i for part in distinct.values() for i in part) == list(range(n))
    longest = max(len(p) for p in distinct.values())
    assert longest == local_size(n, int(MESH.degree(used)))
    assert len(held[0]) == longest, "the rank with all coordinates 0 holds a longest shard"
    assert longest - min(len(p) for p in distinct.values()) <= max(1, k)


@given(axes=st.permutations(("a", "b", "c")), k=st.integers(0, 3))
def test_groups_partition_the_ranks_in_the_order_of_the_axes(axes: list[str], k: int) -> None:
    used = tuple(axes[:k])
    groups = MESH.groups(used)
    assert sorted(r for g in groups for r in g) == list(range(12))
    for g in groups:
        assert len(g) == MESH.degree(used)
        places = [tuple(MESH.coordinate(r, a) for a in used) for r in g]
        assert places == sorted(places)
        assert len({tuple(MESH.coordinate(r, a) for a in MESH.shape.atoms if a not in used) for r in g}) == 1


# --------------------------------------------------------------------------------------------------------------- meshes


@given(
    tp=st.sampled_from([1, 2, 4, 8, 16]), attn_dp=st.sampled_from([1, 2, 4]), ep=st.sampled_from([1, 2, 4, 8]),
    kv=st.sampled_from([1, 2, 4, 8, 128]),
)  # fmt: skip
def test_both_factorisations_describe_the_same_ranks(tp: int, attn_dp: int, ep: int, kv: int) -> None:
    assume((tp * attn_dp) % ep == 0)
    s = Strategy(tp=tp, attn_dp=attn_dp, ep=ep)
    mesh = build_mesh(s, kv)
    assert mesh.size == s.group
    for name, degree in {
        "tp": tp,
        "attn_dp": attn_dp,
        "ep": ep,
        "etp": s.etp,
        "edp": s.edp,
        "tp_rep": max(1, tp // kv),
    }.items():
        assert mesh.degree(mesh.shape.axis(name)) == degree, name
    assert {g[1] - g[0] for g in mesh.groups(mesh.shape.axis("tp")) if tp > 1} <= {1}, "tp is innermost"


def test_degrees_that_do_not_nest_are_refused_with_both_strides() -> None:
    with pytest.raises(Refused, match=r"tp ends at stride 3|ends at stride 2, .* at 3"):
        build_mesh(Strategy(tp=3, attn_dp=2, etp=2, ep=3), 6)


# ------------------------------------------------------------------------------------------------------------- programs


def program(name: str, phase: str = "prefill", **strategy: object) -> Program:
    m = model(name)
    sizes = all_sizes(m, batch_size=8, seq_len=32 if phase == "prefill" else 1, kv_len=32)
    return lower(m, Strategy(**strategy), phase, sizes)  # type: ignore[arg-type]


def comms(p: Program) -> list[str]:
    return [f"{q.comm.kind} {q.inputs[0]}" for b, _ in p.stages[0].bodies() for q in b.ops if q.comm]


def test_megatron_needs_two_all_reduces_per_dense_layer() -> None:
    """arXiv 1909.08053, §3: one after attention, one after the MLP; plus the embedding's and the logits' gather."""
    assert comms(program("llama-3-70b", tp=8)) == [
        "all_reduce embed", "all_reduce o_proj", "all_reduce down_proj", "all_gather logits",
    ]  # fmt: skip


def test_parallel_blocks_without_biases_need_one_all_reduce_per_layer() -> None:
    """Attention and MLP are added before the reduction (PaLM's formulation, arXiv 2204.02311, §2). A bias on the output
    would be added once per rank, so that GPT-J needs both."""
    reduced = [c for c in comms(program("command-r-35b", tp=4)) if "all_reduce" in c]
    assert reduced == ["all_reduce embed", "all_reduce branch_add"]
    assert sum("all_reduce" in c for c in comms(program("gpt-j-6b", tp=4))) == 3


def test_sequence_parallelism_turns_each_all_reduce_into_two_halves() -> None:
    """arXiv 2205.05198, §4.2.2: reduce-scatter after, all-gather before."""
    kinds = [c.split()[0] for c in comms(program("llama-3-70b", tp=8, sp=True))]
    assert "all_reduce" not in kinds
    assert kinds.count("reduce_scatter") == 3 and kinds.count("all_gather") == 4


def test_expert_parallel_tokens_leave_and_return_by_all_to_all() -> None:
    kinds = comms(program("deepseek-v3", attn_dp=4, ep=4))
    assert sum(c.startswith("all_to_all") for c in kinds) == 2
    inside = comms(program("deepseek-v3", tp=4, ep=4))
    assert not [c for c in inside if c.startswith("all_to_all")]


def test_one_device_needs_no_collective() -> None:
    for name in ("llama-3-70b", "deepseek-v3", "gpt2"):
        for phase in ("prefill", "decode"):
            assert not comms(program(name, phase))


def test_absorbed_decode_reads_the_latent_only() -> None:
    (body,) = [b for b, _ in program("deepseek-v3", "decode", tp=8).stages[0].bodies() if b.name == "layer_moe"]
    caches = [p.output for p in body.ops if p.op and p.op.kind == "cache"]
    assert [body.spec(c).dims for c in caches] == [
        ("batch_size", "kv_len", "kv_lora"),
        ("batch_size", "kv_len", "qk_rope"),
    ]
    assert not any("k_up" in p.name or p.name == "v_up" for p in body.ops if p.op and p.op.kind == "einsum")


def test_each_query_head_reads_its_own_keys_in_multi_head_attention() -> None:
    """Were heads and KV heads two dims there, scores would sum over all KV heads."""
    body = next(b for b, _ in program("gpt2").stages[0].bodies() if b.name.startswith("layer"))
    assert "kv_heads" not in {d for t in body.body.tensors.values() for d in t.dims}
    grouped = next(b for b, _ in program("llama-3-70b").stages[0].bodies() if b.name.startswith("layer"))
    scores = next(o for o in grouped.body.ops if o.name == "scores")
    assert all("kv_heads" not in grouped.body.tensors[n].dims for n in scores.inputs)


def test_local_sizes_on_the_label_of_a_routed_tensor() -> None:
    p = program("deepseek-v3", "decode", attn_dp=8, ep=8)
    body = next(b for b, _ in p.stages[0].bodies() if b.name == "layer_moe")
    dims = local_dims(body, "expert_up", p.sizes, p.mesh)
    assert dims == {"experts": 32, "expert_tokens": 1, "expert_ffn": 2048}


def test_stages_hand_the_residual_stream_over_rank_by_rank() -> None:
    p = program("llama-3-70b", tp=2, pp=3)
    assert [s.receives for s in p.stages] == [(), ((0, 2), (1, 3)), ((2, 4), (3, 5))]


@given(kinds=st.lists(st.sampled_from("abc"), min_size=1, max_size=24))
def test_repeats_spell_out_the_layers_again(kinds: list[str]) -> None:
    named = {"a": LayerKind(), "b": LayerKind(ffn="moe"), "c": LayerKind(sliding=True)}
    wanted = [named[k] for k in kinds]
    assert [k for pattern, n in compress(wanted) for k in pattern * n] == wanted


def test_alternating_layers_are_one_pair_repeated() -> None:
    (pattern, repeat), *rest = compress(model("gemma-2-9b").layers())
    assert (len(pattern), repeat, rest) == (2, 21, [])


@given(layers=st.integers(1, 130), pp=st.integers(1, 16))
def test_default_stages_are_even_and_complete(layers: int, pp: int) -> None:
    assume(pp <= layers)
    counts = default_layers_per_stage(layers, pp)
    assert sum(counts) == layers and len(counts) == pp and max(counts) - min(counts) <= 1


def test_a_graph_has_no_sizes_in_its_structure() -> None:
    """Two models of one architecture have equal digests under equal strategies; another architecture has another."""
    a, b, c = (program(n, tp=8).digest() for n in ("llama-3-70b", "llama-3.1-405b", "qwen2.5-72b"))
    assert a == b != c
    bodies = [program(n).stages[0].runs[0].bodies[0].body for n in ("llama-3-70b", "llama-3.1-405b")]
    assert signature(bodies[0]) == signature(bodies[1])
