"""The proof: a program, reduced and executed on all its devices, equals the unpartitioned model tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from tools.graph.build import all_sizes, embed_body, head_body, layer_body
from tools.graph.ir import Body
from tools.graph.semantics import select_margin, topk_margin
from tools.oracle.execute import Caches, Devices, Trace, Weights, run_reference, stage_bodies
from tools.oracle.passes import Pass, prompt_passes, run_passes
from tools.oracle.reduce import Reduced, reduce
from tools.partition.layout import Comm
from tools.partition.lower import PBody, Program, lower, placement_of
from tools.partition.mesh import build_mesh
from tools.partition.pipeline import num_slices
from tools.spec.base import Bug, Frozen
from tools.spec.model import ModelSpec, with_nodes, with_redundant
from tools.spec.strategy import Phase, Strategy

TOLERANCE = 1e-9
MARGIN = 1e-6
"""Top-k scores closer than this could be ordered differently by rounding; inputs are redrawn."""


class Proof(Frozen):
    """Result of one proof. `digest` is the structure of the graph that was executed; it equals the published one's."""

    strategy: str
    phase: Phase
    devices_simulated: int
    tensors_compared: int
    steps: int
    max_relative_error: float
    worst_tensor: str
    digest: str
    idle_experts: int = 0
    ok: bool = True
    failures: tuple[str, ...] = ()


Programs = dict[Phase, Program]


def prove(
    model: ModelSpec, strategy: Strategy, *, batch_size: int, seq_len: int, decode_steps: int = 4, seed: int = 0,
    alter: Callable[[Programs], Programs] | None = None, alter_devices: Callable[[Devices], None] | None = None,
) -> dict[Phase, Proof]:  # fmt: skip
    """Prefill and `decode_steps` decode steps with carried caches, on every device of one replica.

    `alter` and `alter_devices` let tests break the program or the devices; a sound oracle must then report a failure.
    """
    # The published graph first: a refusal then names the model's own lengths.
    published = {p: lower(model, strategy, p, {}).digest() for p in ("prefill", "decode")}
    small = reduce(model, strategy, batch_size=batch_size, seq_len=seq_len, decode_steps=decode_steps)
    programs = _programs(small)
    for phase, program in programs.items():
        if program.digest() != published[phase]:
            raise Bug(
                f"{strategy.label()} {phase}: reduced graph {program.digest()} is not the published graph {published[phase]}"
            )
    if alter:
        programs = alter(programs)
    found = _compare_phases(small, programs, seed, alter_devices)
    return {phase: p.model_copy(update={"strategy": strategy.label()}) for phase, p in found.items()}


def _programs(small: Reduced) -> Programs:
    m, s = small.model, small.strategy
    sizes = all_sizes(m, batch_size=small.batch_size, seq_len=small.seq_len, kv_len=small.seq_len)
    decode = {**sizes, "seq_len": 1, "kv_len": small.seq_len + small.decode_steps}
    return {"prefill": lower(m, s, "prefill", sizes), "decode": lower(m, s, "decode", decode)}


def reference_bodies(
    model: ModelSpec, phase: Phase, absorb: bool = True, logits: str = "last", split_kv: bool = False
) -> list[tuple[int | None, Body]]:
    """The unpartitioned model, body by body."""
    layers = [
        (i, layer_body(model, model.layer_kind(i), phase, absorb, split_kv)) for i in range(model.num_hidden_layers)
    ]
    return [(None, embed_body(model)), *layers, (None, head_body(model, logits))]


def draw_weights(model: ModelSpec, rng: np.random.Generator) -> Weights:
    """Random weights with fan-in scaling; the router is skewed so hard that one expert receives no token."""
    sizes = all_sizes(model, batch_size=1, seq_len=1, kv_len=1)
    out: dict[tuple[int | None, str], np.ndarray] = {}
    for layer, body in reference_bodies(model, "prefill"):
        for t in body.weights():
            key = (None if t.dtype == "embedding" else layer, t.name)
            if key in out:
                continue
            shape = [int(sizes[d]) for d in t.dims]
            fan_in = shape[0] if len(shape) > 1 and t.dims[0] != "experts" else shape[1] if len(shape) > 1 else 4
            out[key] = np.asarray(rng.normal(size=shape)) / np.sqrt(fan_in)
            if t.dtype == "vector" and t.name.endswith("norm.weight"):
                offset = 0.0 if t.name == "lin_norm.weight" else model.norm_offset
                out[key] = 1.0 - offset + 0.1 * rng.normal(size=shape)  # rounding would grow with every gain above one
            if t.name == "layer_scale":
                out[key] = np.asarray(1.0 + 0.05 * rng.normal())
            if t.dtype == "embedding":
                # A common component in all tokens, for the router's skew to act on (also under tied heads).
                out[key] = 0.6 + rng.normal(size=shape)
            if t.name == "router.weight":
                out[key][:, -1] -= 0.75
                if model.moe and model.moe.redundant:
                    out[key][:, 0] += 0.75  # an expert with copies is busy, or nothing would show where they are
            if model.moe and model.moe.redundant and t.dims[:1] == ("experts",):
                held = np.arange(model.moe.num_slots) % model.moe.num_experts
                out[key] = out[key][held]  # copies are equal
    return out


def _top_k_margin(trace: Trace, bodies: Sequence[tuple[int | None, Body]]) -> tuple[float, int]:
    """Smallest score difference that decides a routing choice, and the experts that received no token."""
    margin, idle = float("inf"), 0
    for layer, body in bodies:
        for op in body.ops:
            if op.kind == "select":
                picked = trace.values[(layer, body.name, op.inputs[0])]
                assert isinstance(picked, np.ndarray)
                margin = min(margin, select_margin(op, picked))
            if op.kind != "topk":
                continue
            scores, ids = trace.values[(layer, body.name, op.inputs[0])], trace.values[(layer, body.name, op.output)]
            assert isinstance(scores, np.ndarray) and isinstance(ids, np.ndarray)
            margin = min(margin, topk_margin(op, scores))
            idle += scores.shape[-1] - len(np.unique(ids))
    return margin, idle


def rings(s: Strategy) -> bool:
    return s.cp > 1 and s.cp_kind == "ring"


def splits_kv(model: ModelSpec, s: Strategy) -> bool:
    """Whether decode's softmax is written as max, exp, sum and divide."""
    return placement_of(s, build_mesh(s, model.cache_heads), "decode").splits_kv


@lru_cache(maxsize=8)  # nobody writes into what is returned
def draw(small: Reduced, seed: int) -> tuple[Weights, np.ndarray, list[np.ndarray], dict[Phase, list[Trace]], int]:
    """Weights and tokens, redrawn until no top-k choice hangs on rounding; with the reference's traces of all steps."""
    m, best = small.model, None
    for attempt in range(20):
        rng = np.random.default_rng([seed, attempt])
        weights = draw_weights(m, rng)
        ids = rng.integers(0, m.vocab_size, size=(small.batch_size, small.seq_len))
        nexts = [rng.integers(0, m.vocab_size, size=(small.batch_size, 1)) for _ in range(small.decode_steps)]
        caches: Caches = {}
        prefill = reference_bodies(m, "prefill", split_kv=rings(small.strategy))
        traces: dict[Phase, list[Trace]] = {"prefill": [run_reference(prefill, weights, ids, caches, 0)], "decode": []}
        decode = reference_bodies(m, "decode", split_kv=splits_kv(m, small.decode or small.strategy))
        for step, tok in enumerate(nexts):
            traces["decode"].append(run_reference(decode, weights, tok, caches, small.seq_len + step))
        margins = [_top_k_margin(t, reference_bodies(m, phase)) for phase, ts in traces.items() for t in ts]
        best = (weights, ids, nexts, traces, max(i for _, i in margins))
        _check_copies(m, weights, ids, traces["prefill"][0])
        if min(g for g, _ in margins) > MARGIN:
            return best
    raise Bug("no random input with a clear top-k choice in 20 draws")


def _check_copies(model: ModelSpec, weights: Weights, ids: np.ndarray, got: Trace) -> None:
    """Experts with copies, and tokens that go to nodes first, compute what the plain model does. Raises Bug."""
    if model.moe is None or (not model.moe.redundant and model.moe.nodes == 1):
        return
    plain, n = with_nodes(with_redundant(model, 0), 1), model.moe.num_experts
    single = {k: w[:n] if k[1].startswith("expert_") else w for k, w in weights.items()}
    want = run_reference(reference_bodies(plain, "prefill"), single, ids, {}, 0).values[(None, "head", "logits")]
    mine = got.values[(None, "head", "logits")]
    assert isinstance(want, np.ndarray) and isinstance(mine, np.ndarray)
    error = relative_error(mine, want, magnitude(want))
    if not error <= TOLERANCE:
        how = f"{model.moe.redundant} copies of experts on {model.moe.nodes} nodes"
        raise Bug(f"{model.name}: with {how} the logits differ by {error:.3g}")


def _compare_phases(
    small: Reduced, programs: Programs, seed: int, alter_devices: Callable[[Devices], None] | None
) -> dict[Phase, Proof]:
    weights, ids, nexts, traces, idle = draw(small, seed)
    num = int(programs["prefill"].mesh.size)
    # Chunks on the same ranks share these ranks' caches.
    held: dict[tuple[int, ...], list[Caches]] = {s.ranks: [{} for _ in range(num)] for s in programs["prefill"].stages}
    out: dict[Phase, Proof] = {}
    for phase, program in programs.items():
        tally, caches = Tally(), {s.index: held[s.ranks] for s in program.stages}
        for step, passes in enumerate(rounds(small, phase, weights, ids, nexts, traces)):
            machines = [machine(small, program, p) for p in passes]
            for m in machines if alter_devices else ():
                alter_devices(m)  # type: ignore[misc]
            try:
                got = run_passes(program, weights, passes, machines, caches)
            except (ValueError, IndexError, KeyError, TypeError, ArithmeticError) as e:
                tally.failures.append(
                    f"{phase} step {step}: devices cannot execute the program: {type(e).__name__}: {e}"
                )
                break
            for p, trace in zip(passes, got, strict=True):
                tally.compare(program, trace, p.want, machine(small, program, p))
        out[phase] = Proof(
            strategy=small.strategy.label(), phase=phase, devices_simulated=num * len({s.ranks for s in program.stages}),
            steps=1 if phase == "prefill" else small.decode_steps,
            tensors_compared=tally.count, max_relative_error=tally.worst, worst_tensor=tally.where, digest=program.digest(),
            idle_experts=idle, ok=not tally.failures, failures=tuple(tally.failures[:10]),
        )  # fmt: skip
    return out


def rounds(
    small: Reduced, phase: Phase, weights: Weights, ids: np.ndarray, nexts: Sequence[np.ndarray],
    traces: Mapping[Phase, Sequence[Trace]],
) -> list[list[Pass]]:  # fmt: skip
    """What goes through the stages together, round by round: all slices of the prompt; then one decode step at a time."""
    if phase == "decode":
        steps = zip(nexts, traces["decode"], strict=True)
        return [[Pass(tok, small.seq_len + i, want)] for i, (tok, want) in enumerate(steps)]
    bodies = reference_bodies(small.model, "prefill", split_kv=rings(small.strategy))
    return [prompt_passes(ids, num_slices(small.strategy, "prefill"), bodies, weights, traces["prefill"][0])]


def machine(small: Reduced, program: Program, p: Pass) -> Devices:
    """The devices of a stage at the lengths of one pass."""
    new = p.ids.shape[1]
    sizes = {**program.sizes, "batch_size": small.batch_size, "seq_len": new, "kv_len": p.past + new}
    return Devices(program.mesh, {k: int(v) for k, v in sizes.items()}, p.past, program.orders, small.seq_len)


class Tally:
    def __init__(self) -> None:
        self.count, self.worst, self.where = 0, 0.0, ""
        self.failures: list[str] = []

    def compare(self, program: Program, got: Trace, ref: Trace, devices: Devices) -> None:
        """Every tensor of every rank against its part of the reference."""
        for stage in program.stages:
            for layer, pbody in stage_bodies(stage):
                for p in pbody.ops:
                    if pbody.tensors[p.output].partial or pbody.spec(p.output).kind == "weight":
                        continue
                    mine = got.values[(layer, pbody.name, p.output)]
                    want = ref.values.get((layer, pbody.name, pbody.tensors[p.output].origin))
                    where = f"layer {layer} {p.output}"
                    if not isinstance(want, np.ndarray):
                        self.failures.append(f"{where}: the unpartitioned model has no such tensor in this layer")
                        continue
                    assert isinstance(mine, list)
                    self._tensor(where, pbody, p.output, mine, want, devices)

    def _tensor(
        self, where: str, pbody: PBody, name: str, mine: list[np.ndarray], want: np.ndarray, devices: Devices
    ) -> None:
        layout, dims = pbody.layout(name), pbody.spec(name).dims
        self.count += 1
        if layout.pending:
            summed = list(mine)
            for group in devices.mesh.groups(layout.pending):
                shapes = {mine[r].shape for r in group}
                if len(shapes) > 1:
                    self.failures.append(f"{where}: summands of shapes {sorted(shapes)}")
                    return
                total = (
                    np.max([mine[r] for r in group], axis=0) if layout.reduce == "max" else sum(mine[r] for r in group)
                )
                for r in group:
                    summed[r] = np.asarray(total)
            mine = summed
        scale = magnitude(want)
        holders = devices.mesh.ranks(pbody.group(name))
        for rank in holders:
            x = mine[rank]
            self._shard(f"{where} rank {rank}", x, devices.cut(want, dims, layout.without_pending(), rank), scale)

    def _shard(self, where: str, x: np.ndarray, part: np.ndarray, scale: float) -> None:
        if x.shape != part.shape:
            self.failures.append(f"{where}: shape {x.shape}, should be {part.shape}")
            return
        if x.size == 0:
            return
        error = relative_error(x, part, scale)
        if not error <= TOLERANCE:
            self.failures.append(f"{where}: relative error {error:.3g}")
        if not error <= self.worst:
            self.worst, self.where = error, where


def magnitude(x: np.ndarray) -> float:
    """Largest finite magnitude; 1 for an all-zero tensor, which is thereby compared absolutely."""
    return float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) or 1.0


def relative_error(x: np.ndarray, part: np.ndarray, scale: float) -> float:
    """max|x − part| / scale; NaN fails, infinities must be where the reference has them."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(x - part)
    if np.isfinite(difference).all():
        return float(difference.max()) / scale
    finite = np.isfinite(part)
    if np.isnan(x).any() or (np.isfinite(x) != finite).any() or (x[~finite] != part[~finite]).any():
        return float("inf")
    return float(difference[finite].max(initial=0.0)) / scale


def rewrite_error(model: ModelSpec, *, batch_size: int = 3, seq_len: int = 5, seed: int = 0) -> float:
    """Named rewrite "absorbed MLA": largest relative difference of logits between its decode and the plain form's."""
    small = reduce(model, Strategy(), batch_size=batch_size, seq_len=seq_len)
    weights, ids, nexts, _, _ = draw(small, seed)
    worst = 0.0
    caches: tuple[Caches, Caches] = ({}, {})
    for store in caches:
        run_reference(reference_bodies(small.model, "prefill"), weights, ids, store, 0)
    for step, tok in enumerate(nexts):
        a, b = (
            run_reference(
                reference_bodies(small.model, "decode", absorb), weights, tok, store, small.seq_len + step
            ).values[(None, "head", "logits")]
            for absorb, store in zip((True, False), caches, strict=True)
        )
        assert isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
        worst = max(worst, relative_error(a, b, magnitude(b)))
    return worst


__all__: Sequence[str] = ["MARGIN", "TOLERANCE", "Comm", "Proof", "prove", "rewrite_error"]
