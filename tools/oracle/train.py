"""The proof of a training step: forward, backward and optimizer on all devices equal the unpartitioned step, tensor by tensor.

The unpartitioned step runs the whole model's bodies and their backward bodies on one device and applies the optimizer's
formula directly. Is that backward pass right? `finite_difference_error` compares it with differences of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from tools.graph.backward import backward
from tools.graph.build import all_sizes, embed_body
from tools.graph.grad_semantics import run
from tools.graph.ir import Body, Op
from tools.graph.semantics import Place, topk_margin
from tools.graph.training import LABELS, TOKEN_WEIGHTS, loss_body, train_layer_body
from tools.oracle.execute import Devices, Weights, communicate, weight_of
from tools.oracle.prove import MARGIN, TOLERANCE, draw_weights, magnitude, relative_error
from tools.oracle.reduce import reduce
from tools.partition.layout import Layout
from tools.partition.lower import PBody
from tools.partition.pipeline import sequence
from tools.partition.train import TrainBody, TrainProgram, TrainStage, lower_train, task_order
from tools.spec.base import Bug, Frozen
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy
from tools.spec.training import TrainOptions

Array = np.ndarray
Key = tuple[int | None, str]
Batch = Mapping[str, Array]
"""ids, labels, token_weights of one micro-batch, each [batch_size, seq_len]."""
CANCELLED = 1e-5
"""Gradients this far below the largest one of the step are compared on this scale of it: where a gradient cancels to zero
(the bias of the keys under softmax) only rounding is left."""


class TrainProof(Frozen):
    """Result of one proof. `digest` is the structure of the graph that was executed; it equals the published one's."""

    strategy: str
    options: str
    phase: str = "train"
    devices_simulated: int
    micro_batches: int
    tensors_compared: int
    gradients_compared: int
    weights_updated: int
    max_relative_error: float
    worst_tensor: str
    digest: str
    ok: bool = True
    failures: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------------- unpartitioned step


@dataclass(slots=True)
class Reference:
    """`values`: (micro-batch, layer, pass, tensor) → value. `grads`, `states`: by weight; states are master, mean, square."""

    values: dict[tuple[int, int | None, str, str], Array] = field(default_factory=dict)
    grads: dict[Key, Array] = field(default_factory=dict)
    loss: float = 0.0
    largest: float = 0.0
    """Largest magnitude of any gradient."""


def train_bodies(model: ModelSpec, split_kv: bool = False) -> list[tuple[int | None, Body]]:
    """The unpartitioned model's bodies in forward order; `split_kv`: softmax as max, exp, sum and divide."""
    layers = [(i, train_layer_body(model, model.layer_kind(i), split_kv)) for i in range(model.num_hidden_layers)]
    return [(None, embed_body(model)), *layers, (None, loss_body(model))]


def reference_step(
    model: ModelSpec, weights: Weights, batches: Sequence[Batch], *, reruns_attention: bool = True, split_kv: bool = False,
) -> Reference:  # fmt: skip
    """Loss and gradients of one step on one device, summed over micro-batches."""
    ref, bodies = Reference(), train_bodies(model, split_kv)
    for micro, batch in enumerate(batches):
        sizes = _sizes(model, batch)
        envs = forward_values(model, weights, batch, split_kv)
        for (layer, body), env in zip(bodies, envs, strict=True):
            ref.values.update({(micro, layer, f"{body.name} forward", n): v for n, v in env.items()})
        ref.loss += float(envs[-1]["loss"])
        g = np.array(1.0)
        for (layer, body), env in reversed(list(zip(bodies, envs, strict=True))):
            bw = backward(body, reruns_attention=reruns_attention)
            back = {bw.body.inputs[0]: g, **{n: env[n] for n in bw.saved}}
            _run_whole(bw.body, back, weights, layer, sizes)
            ref.values.update({(micro, layer, f"{body.name} backward", n): v for n, v in back.items()})
            for w, name in bw.grads.items():
                key = (layer, w) if (layer, w) in weights else (None, w)
                ref.grads[key] = ref.grads.get(key, 0.0) + back[name]
            g = back[bw.body.output]
    ref.largest = max(magnitude(g) for g in ref.grads.values())
    return ref


def forward_values(model: ModelSpec, weights: Weights, batch: Batch, split_kv: bool = False) -> list[dict[str, Array]]:
    """Every tensor of the forward pass, body by body."""
    out: list[dict[str, Array]] = []
    carried, sizes = batch["ids"], _sizes(model, batch)
    for layer, body in train_bodies(model, split_kv):
        env: dict[str, Array] = {body.inputs[0]: carried, **{n: batch[n] for n in body.inputs[1:]}}
        _run_whole(body, env, weights, layer, sizes)
        carried = env[body.output]
        out.append(env)
    return out


def _sizes(model: ModelSpec, batch: Batch) -> dict[str, int]:
    b, s = batch["ids"].shape
    return {k: int(v) for k, v in all_sizes(model, batch_size=b, seq_len=s, kv_len=s).items()}


def _run_whole(
    body: Body, env: dict[str, Array], weights: Weights, layer: int | None, sizes: Mapping[str, int]
) -> None:
    for op in body.ops:
        args = [env[n] if n in env else weight_of(weights, layer, n) for n in op.inputs]
        place = Place(lambda d: np.arange(sizes[d]), 0, body, body.tensors[op.output].dims)
        env[op.output] = run(op, args, place, [body.tensors[n].dims for n in op.inputs])


def updated(options: TrainOptions, w: Array, g: Array, states: Mapping[str, Array], step: int = 2) -> dict[str, Array]:
    """New weight and states by the optimizer's formula (AdamW, arXiv 1711.05101; SGD with decay)."""
    o = options
    if o.optimizer == "sgd":
        return {"weight": w - o.learning_rate * (g + o.weight_decay * w)}
    mean = o.beta1 * states["mean"] + (1 - o.beta1) * g
    square = o.beta2 * states["square"] + (1 - o.beta2) * g**2
    unbiased = (mean / (1 - o.beta1**step)) / (np.sqrt(square / (1 - o.beta2**step)) + o.epsilon)
    return {"weight": w - o.learning_rate * (unbiased + o.weight_decay * w), "mean": mean, "square": square}


def finite_difference_error(
    model: ModelSpec, weights: Weights, batch: Batch, seed: int = 0, step: float = 2e-4
) -> tuple[float, str]:
    """(largest relative error, weight) of the gradient along a random direction of every weight, against a fourth-order
    central difference of the loss."""
    ref, rng = reference_step(model, weights, [batch]), np.random.default_rng(seed)
    worst, where = 0.0, ""
    for key, g in ref.grads.items():
        d = rng.normal(size=g.shape)
        d *= step / np.linalg.norm(d)

        def loss(times: float, key: Key = key, d: Array = d) -> float:
            moved = {**weights, key: weights[key] + times * d}
            return float(forward_values(model, moved, batch)[-1]["loss"])

        slope = (8 * (loss(1) - loss(-1)) - (loss(2) - loss(-2))) / 12
        scale = max(float(np.linalg.norm(g)) * step / np.sqrt(g.size), 1e-6 * step)
        error = abs(slope - float((g * d).sum())) / scale
        if not error <= worst:
            worst, where = error, f"layer {key[0]} {key[1]}"
    return worst, where


# --------------------------------------------------------------------------------------------------------------- devices


Shards = dict[str, list[Array]]
"""Tensor → its value on every rank of a stage."""


@dataclass(slots=True)
class Run:
    """A step on all devices: every tensor of every program, rank by rank."""

    values: dict[tuple[int, int, int | None, str, str], list[Array]] = field(default_factory=dict)
    """(stage, micro-batch, layer, pass, tensor); the optimizer's micro-batch is 0."""


def run_pbody(pbody: PBody, devices: Devices, env: Shards, weights: Weights, layer: int | None) -> Shards:
    """One program on all ranks of a stage; `env` holds its inputs and is extended."""
    read = {n for p in pbody.ops for n in p.inputs}
    for w in pbody.weights():
        if w.name in read and w.name not in env:
            whole = weight_of(weights, layer, w.name)
            env[w.name] = [devices.cut(whole, pbody.spec(w.name).dims, w.layout, r) for r in range(devices.num_ranks)]
    for p in pbody.ops:
        if p.comm is not None:
            env[p.output] = communicate(p.comm, env[p.inputs[0]], pbody.spec(p.output).dims, devices)
        else:
            assert p.op is not None
            env[p.output] = [
                _run_op(p.op, p.inputs, p.output, pbody, env, devices, r) for r in range(devices.num_ranks)
            ]
    return env


def _run_op(
    op: Op, inputs: Sequence[str], output: str, pbody: PBody, env: Shards, devices: Devices, rank: int
) -> Array:
    layouts = [pbody.layout(n) for n in (*inputs, output)]
    dims = [pbody.spec(n).dims for n in (*inputs, output)]

    def index(dim: str) -> Array:
        # The output says where this shard lies; dims it lost are where the inputs had them.
        for layout, ds in (*((layouts[-1], dims[-1]),), *zip(layouts[:-1], dims[:-1], strict=True)):
            if dim in ds:
                return devices.index(layout, dim, rank)
        return devices.index(layouts[0], dim, rank)

    place = Place(index, 0, pbody.body, dims[-1], devices.sizes["seq_len"])
    return run(op, [env[n][rank] for n in inputs], place, dims[:-1])


def run_step(
    program: TrainProgram,
    weights: Weights,
    batches: Sequence[Batch],
    states: Mapping[Key, Mapping[str, Array]],
    devices: Devices,
) -> Run:
    """One training step on all devices of all stages, task by task in the order of the pipeline's schedule."""
    machine = _Machine(program, weights, batches, devices)
    for task in sequence(task_order(program.strategy, program.options), len(program.stages) - 1):
        (machine.backward if task.backward else machine.forward)(task.piece, program.stages[task.chunk])
    _sum_tied(program, machine.gathered)
    for stage in program.stages:
        for layer, tb in stage.sequence():
            env: Shards = {}
            for n in tb.update.inputs:
                env[n] = _update_input(tb, n, layer, weights, states, machine.gathered[stage.index], devices)
            run_pbody(tb.update, devices, env, weights, layer)
            _record(machine.out, stage, 0, layer, f"{tb.name} update", tb.update, env)
    return machine.out


@dataclass(slots=True)
class _Machine:
    """All devices in the middle of a step: what each chunk has handed on, and what it keeps for the backward pass."""

    program: TrainProgram
    weights: Weights
    batches: Sequence[Batch]
    devices: Devices
    out: Run = field(default_factory=Run)
    kept: dict[tuple[int, int, int], Shards] = field(default_factory=dict)
    """(micro-batch, chunk, position) → what is saved of that body's forward pass, and nothing else."""
    sent: dict[tuple[int, int, bool], list[Array]] = field(default_factory=dict)
    """(micro-batch, chunk, backward) → the residual stream, or its gradient, that leaves the chunk."""
    gathered: dict[int, dict[Key, list[Array]]] = field(default_factory=dict)
    """chunk → weight → gradient added up over micro-batches."""

    def forward(self, micro: int, stage: TrainStage) -> None:
        carried: list[Array] = []
        if stage.index:
            before = self.program.stages[stage.index - 1]
            come = self.sent.pop((micro, stage.index - 1, False))
            carried = _deliver(stage, before, come, {b: a for a, b in stage.receives})
        for at, (layer, tb) in enumerate(stage.sequence()):
            env = {n: carried if n == "x" else self.dealt(micro, tb, n) for n in tb.forward.inputs}
            run_pbody(tb.forward, self.devices, env, self.weights, layer)
            _record(self.out, stage, micro, layer, f"{tb.name} forward", tb.forward, env)
            self.kept[(micro, stage.index, at)] = {n: env[n] for n in tb.saved}
            carried = env[tb.forward.output]
        self.sent[(micro, stage.index, False)] = carried

    def dealt(self, micro: int, tb: TrainBody, name: str) -> list[Array]:
        """Each rank's part of the tokens, labels or token weights."""
        whole, layout = self.batches[micro][name], tb.forward.layout(name)
        return [self.devices.cut(whole, ("batch_size", "seq_len"), layout, r) for r in range(self.devices.num_ranks)]

    def backward(self, micro: int, stage: TrainStage) -> None:
        g = [np.array(1.0)] * self.devices.num_ranks
        if stage.index < len(self.program.stages) - 1:
            after = self.program.stages[stage.index + 1]
            g = _deliver(stage, after, self.sent.pop((micro, after.index, True)), dict(after.receives))
        for at, (layer, tb) in reversed(list(enumerate(stage.sequence()))):
            held = self.kept.pop((micro, stage.index, at))
            if tb.rerun is not None:
                held = run_pbody(tb.rerun, self.devices, held, self.weights, layer)
                _record(self.out, stage, micro, layer, f"{tb.name} forward", tb.rerun, held)
            env: Shards = {tb.backward.inputs[0]: g, **{n: held[n] for n in tb.reads}}
            run_pbody(tb.backward, self.devices, env, self.weights, layer)
            _record(self.out, stage, micro, layer, f"{tb.name} backward", tb.backward, env)
            self.accumulate(stage, layer, tb, env)
            g = env[tb.backward.output]
        self.sent[(micro, stage.index, True)] = g

    def accumulate(self, stage: TrainStage, layer: int | None, tb: TrainBody, env: Shards) -> None:
        mine = self.gathered.setdefault(stage.index, {})
        for w, name in tb.grads.items():
            key = (layer, w) if (layer, w) in self.weights else (None, w)
            have = mine.get(key)
            mine[key] = env[name] if have is None else [a + b for a, b in zip(have, env[name], strict=True)]


def _deliver(stage: TrainStage, other: TrainStage, sent: list[Array], sender: Mapping[int, int]) -> list[Array]:
    missing = [r for r in stage.ranks if r not in sender]
    if missing:
        raise ValueError(f"ranks {missing} of stage {stage.index} receive nothing")
    return [sent[other.ranks.index(sender[r])] for r in stage.ranks]


def _sum_tied(program: TrainProgram, gathered: dict[int, dict[Key, list[Array]]]) -> None:
    """A weight that the first and the last stage share: each rank of one adds what its counterpart has."""
    if program.tied is None:
        return
    key, ends = (None, program.tied), (gathered[0], gathered[len(program.stages) - 1])
    total = [a + b for a, b in zip(ends[0][key], ends[1][key], strict=True)]
    for end in ends:
        end[key] = total


def _update_input(
    tb: TrainBody, name: str, layer: int | None, weights: Weights, states: Mapping[Key, Mapping[str, Array]],
    gathered: Mapping[Key, list[Array]], devices: Devices,
) -> list[Array]:  # fmt: skip
    what, weight = name[:-1].split("(", 1)
    key = (layer, weight) if (layer, weight) in weights else (None, weight)
    if what == "grad":
        return gathered[key]
    whole = weights[key] if what == "master" else states[key][what]
    layout, dims = tb.update.layout(name), tb.update.spec(name).dims
    return [devices.cut(whole, dims, layout, r) for r in range(devices.num_ranks)]


def _record(out: Run, stage: TrainStage, micro: int, layer: int | None, which: str, pbody: PBody, env: Shards) -> None:
    for p in pbody.ops:
        out.values[(stage.index, micro, layer, which, p.output)] = env[p.output]


# --------------------------------------------------------------------------------------------------------------- the proof


Alter = Callable[[TrainProgram], TrainProgram]


def prove_train(
    model: ModelSpec, strategy: Strategy, options: TrainOptions | None = None, *, batch_size: int, seq_len: int, seed: int = 0,
    alter: Alter | None = None, alter_devices: Callable[[Devices], None] | None = None,
) -> TrainProof:  # fmt: skip
    """One training step on every device. `batch_size`: sequences of a micro-batch over all replicas; it and `seq_len` give
    residue classes only. `alter` and `alter_devices` let tests break the program or the devices."""
    o = options or TrainOptions()
    published = lower_train(model, strategy, o, {}).digest()
    small, s, batch, length = _reduced(model, strategy, batch_size, seq_len)
    program = lower_train(small, s, o, all_sizes(small, batch_size=batch, seq_len=length, kv_len=length))
    if program.digest() != published:
        raise Bug(f"{strategy.label()} train: reduced graph {program.digest()} is not the published graph {published}")
    if alter:
        program = alter(program)
    weights, batches, states, ref = _draw(small, batch, length, o, seed, program.placement.rings)
    devices = _devices(program)
    if alter_devices:
        alter_devices(devices)
    tally = _Tally(ref.largest)
    try:
        got = run_step(program, weights, batches, states, devices)
    except (ValueError, IndexError, KeyError, TypeError) as e:
        tally.failures.append(f"devices cannot execute the program: {type(e).__name__}: {e}")
    else:
        tally.compare(program, got, ref, weights, _new(o, weights, ref, states), _devices(program))
    return TrainProof(
        strategy=strategy.label(model.moe is not None), options=o.label(), micro_batches=len(batches),
        devices_simulated=int(program.mesh.size) * len(program.on_ranks), tensors_compared=tally.count,
        gradients_compared=tally.gradients, weights_updated=tally.updates, max_relative_error=tally.worst,
        worst_tensor=tally.where, digest=program.digest(), ok=not tally.failures, failures=tuple(tally.failures[:10]),
    )  # fmt: skip


def _devices(program: TrainProgram) -> Devices:
    return Devices(program.mesh, {k: int(v) for k, v in program.sizes.items()}, 0, program.placement.orders)


def _reduced(
    model: ModelSpec, strategy: Strategy, batch_size: int, seq_len: int
) -> tuple[ModelSpec, Strategy, int, int]:
    """Small twin; the batch keeps its residue modulo all ranks that share it."""
    wide = strategy.model_copy(update={"attn_dp": (strategy.attn_dp or 1) * strategy.dp, "dp": 1})
    small = reduce(model, wide, batch_size=batch_size, seq_len=seq_len)
    s = strategy.model_copy(update={"layers_per_stage": small.strategy.layers_per_stage})
    return small.model, s, small.batch_size, small.seq_len


@lru_cache(maxsize=8)  # nobody writes into what is returned
def _draw(
    model: ModelSpec, batch_size: int, seq_len: int, options: TrainOptions, seed: int, split_kv: bool = False
) -> tuple[Weights, list[Batch], dict[Key, dict[str, Array]], Reference]:
    """Weights, micro-batches and optimizer states, redrawn until no top-k choice hangs on rounding; the reference step."""
    for attempt in range(20):
        rng = np.random.default_rng([seed, attempt, 7])
        weights = draw_weights(model, rng)
        shape = (batch_size, seq_len)
        batches: list[Batch] = [
            {
                "ids": rng.integers(0, model.vocab_size, size=shape), LABELS: rng.integers(0, model.vocab_size, size=shape),
                TOKEN_WEIGHTS: rng.uniform(0.5, 1.5, size=shape) / (batch_size * seq_len),
            }
            for _ in range(options.micro_batches)
        ]  # fmt: skip
        ref = reference_step(model, weights, batches, reruns_attention=options.reruns_attention, split_kv=split_kv)
        # A running step: with fresh states Adam's first step is the sign of the gradient, rounding noise included.
        states: dict[Key, dict[str, Array]] = {
            k: {
                "mean": rng.normal(size=w.shape) * ref.largest,
                "square": rng.uniform(0.5, 1.5, size=w.shape) * ref.largest**2,
            }
            for k, w in weights.items()
        }
        if _margin(model, ref, options.micro_batches) > MARGIN:
            return weights, batches, states, ref
    raise Bug("no random input with a clear top-k choice in 20 draws")


def _margin(model: ModelSpec, ref: Reference, micro_batches: int) -> float:
    out = float("inf")
    for layer, body in train_bodies(model):
        for op in body.ops:
            if op.kind == "topk":
                for m in range(micro_batches):
                    out = min(out, topk_margin(op, ref.values[(m, layer, f"{body.name} forward", op.inputs[0])]))
    return out


def _new(
    options: TrainOptions, weights: Weights, ref: Reference, states: Mapping[Key, Mapping[str, Array]]
) -> dict[Key, dict[str, Array]]:
    return {k: updated(options, weights[k], g, states[k]) for k, g in ref.grads.items()}


class _Tally:
    def __init__(self, largest: float) -> None:
        self.largest = largest
        self.count, self.gradients, self.updates, self.worst, self.where = 0, 0, 0, 0.0, ""
        self.failures: list[str] = []

    def compare(
        self, program: TrainProgram, got: Run, ref: Reference, weights: Weights, new: Mapping[Key, Mapping[str, Array]],
        devices: Devices,
    ) -> None:  # fmt: skip
        """Every tensor of every rank against its part of the reference; every weight that has a gradient is updated."""
        seen: set[Key] = set()
        for stage in program.stages:
            for layer, tb in stage.sequence():
                for which, pbody in tb.programs():
                    which = "forward" if which == "rerun" else which
                    for micro in range(1 if which == "update" else program.options.micro_batches):
                        for p in pbody.ops:
                            if pbody.tensors[p.output].partial:
                                continue
                            key = (stage.index, micro, layer, f"{tb.name} {which}", p.output)
                            want = self._wanted(which, pbody, p.output, micro, layer, tb, ref, weights, new, seen)
                            where = f"layer {layer} {which} {p.output}" + (f" micro-batch {micro}" if micro else "")
                            if want is None:
                                self.failures.append(
                                    f"{where}: the unpartitioned step has no such tensor in this layer"
                                )
                            else:
                                self._tensor(where, pbody, p.output, got.values[key], want, devices)
        for layer, name in sorted(set(new) - seen, key=str):
            self.failures.append(f"layer {layer} {name}: has a gradient and is not updated")
        self.updates = len(seen)

    def _wanted(
        self, which: str, pbody: PBody, name: str, micro: int, layer: int | None, tb: TrainBody, ref: Reference,
        weights: Weights, new: Mapping[Key, Mapping[str, Array]], seen: set[Key],
    ) -> Array | None:  # fmt: skip
        origin = pbody.tensors[name].origin
        if which == "update" and origin.startswith("next("):
            what, _, weight = origin.removeprefix("next(").rstrip(")").rpartition("(")
            key = (layer, weight) if (layer, weight) in weights else (None, weight)
            if not what:
                seen.add(key)
            return new[key]["weight" if what in ("", "master") else what] if key in new else None
        if which == "update":
            weight = origin.removeprefix("grad(").removesuffix(")")
            key = (layer, weight) if (layer, weight) in weights else (None, weight)
            # A weight by its own name: brought to where its states lie.
            return weights.get(key) if weight == origin else ref.grads.get(key)
        if pbody.spec(name).kind == "weight":
            return weight_of(weights, layer, origin)
        return ref.values.get((micro, layer, f"{tb.name} {which}", origin))

    def _tensor(self, where: str, pbody: PBody, name: str, mine: list[Array], want: Array, devices: Devices) -> None:
        layout, dims = pbody.layout(name), pbody.spec(name).dims
        self.count += 1
        self.gradients += "grad(" in name
        if layout.pending:
            mine = self._settled(where, mine, layout, devices)
            if not mine:
                return
        scale = magnitude(want)
        if "grad(" in name:
            scale = max(scale, CANCELLED * self.largest)
        for rank, x in enumerate(mine):
            part = devices.cut(want, dims, layout.without_pending(), rank)
            if x.shape != part.shape:
                self.failures.append(f"{where} rank {rank}: shape {x.shape}, should be {part.shape}")
                return
            error = relative_error(x, part, scale) if x.size else 0.0
            if not error <= TOLERANCE:
                self.failures.append(f"{where} rank {rank}: relative error {error:.3g}")
            if not error <= self.worst:
                self.worst, self.where = error, f"{where} rank {rank}"

    def _settled(self, where: str, mine: list[Array], layout: Layout, devices: Devices) -> list[Array]:
        """Summands added up over the axes that they await."""
        out = list(mine)
        for group in devices.mesh.groups(layout.pending):
            shapes = {mine[r].shape for r in group}
            if len(shapes) > 1:
                self.failures.append(f"{where}: summands of shapes {sorted(shapes)}")
                return []
            parts = [mine[r] for r in group]
            total = np.max(parts, axis=0) if layout.reduce == "max" else np.sum(parts, axis=0)
            for r in group:
                out[r] = np.asarray(total)
        return out


__all__: Sequence[str] = ["TrainProof", "finite_difference_error", "prove_train", "reference_step", "updated"]
