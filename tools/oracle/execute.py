"""Runs the unpartitioned model, and all devices of a program, in numpy float64.

Devices run the operators of `tools.graph.semantics` on their shards only; what crosses devices does so through the
collectives below, group by group, as the program says. Nothing here knows what the result should be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from tools.graph.heads import KV_HEADS
from tools.graph.ir import Body, Op
from tools.graph.semantics import STATEFUL, Place, run
from tools.partition.layout import DEFAULT_ORDERS, Comm, Layout, Orders, positions
from tools.partition.lower import PBody, POp, Program, Stage, ends_of
from tools.partition.mesh import Mesh
from tools.partition.transfer import Message, messages, place

Array = np.ndarray
Weights = Mapping[tuple[int | None, str], Array]
"""Global weights by (layer index, or None outside layers; name)."""
Caches = dict[tuple[int, str], Array]
Flow = dict[str, list[Array]]
"""What goes from body to body, rank by rank: the residual stream "x" (token ids before the embedding), and what bodies carry
beside it."""
STREAM = "x"
NOTHING: Array = np.empty(0)
"""What a rank has of a tensor that another device group holds."""


@dataclass(slots=True)
class Trace:
    """Values of every tensor of one forward pass: (layer or None, body name, tensor) → value (one, or one per rank)."""

    values: dict[tuple[int | None, str, str], Array | list[Array]] = field(default_factory=dict)


def weight_of(weights: Weights, layer: int | None, name: str) -> Array:
    return weights[(layer, name)] if (layer, name) in weights else weights[(None, name)]


# ------------------------------------------------------------------------------------------------- unpartitioned model


def run_reference(
    bodies: Sequence[tuple[int | None, Body]], weights: Weights, ids: Array, caches: Caches, past: int
) -> Trace:
    """Forward pass of the whole model on one device. `bodies` in order with their layer index; `caches` is extended."""
    trace, carried, beside = Trace(), ids, dict[str, Array]()
    for layer, body in bodies:
        env: dict[str, Array] = {body.inputs[0]: carried, **{n: beside[n] for n in body.inputs[1:]}}
        trace.values.update({(layer, body.name, n): env[n] for n in body.inputs})
        for op in body.ops:
            args = [env[n] if n in env else weight_of(weights, layer, n) for n in op.inputs]
            if op.kind in STATEFUL:
                key = (layer if layer is not None else -1, op.output)
                where = _whole_place(op, body, env, weights, layer, past)
                dims = [body.tensors[n].dims for n in op.inputs]
                env[op.output], caches[key] = STATEFUL[op.kind](op, args, where, dims, caches.get(key))
            elif op.kind == "cache":
                key = (layer if layer is not None else -1, op.output)
                caches[key] = append_cache(caches.get(key), args[0])
                env[op.output] = caches[key]
            else:
                env[op.output] = run(
                    op,
                    args,
                    _whole_place(op, body, env, weights, layer, past),
                    [body.tensors[n].dims for n in op.inputs],
                )
            trace.values[(layer, body.name, op.output)] = env[op.output]
        carried = env[body.output]
        beside |= {n: env[n] for n in body.carries}
    return trace


def append_cache(old: Array | None, new: Array) -> Array:
    """KV length is the second dim of every cache."""
    return new if old is None else np.concatenate([old, new], axis=1)


def _whole_place(op: Op, body: Body, env: Mapping[str, Array], weights: Weights, layer: int | None, past: int) -> Place:
    sizes: dict[str, int] = {}
    for n in op.inputs:
        shape = env[n].shape if n in env else weight_of(weights, layer, n).shape
        sizes.update(zip(body.tensors[n].dims, shape, strict=True))

    def index(dim: str) -> Array:
        if dim == "heads" and op.kind == "repeat_heads":
            return np.arange(next(sizes[d] for d in KV_HEADS if d in sizes) * op.attrs["group"])
        if dim == "expert_nodes" and dim not in sizes:
            return np.arange(op.attrs["nodes"])
        if dim == "experts" and dim not in sizes:
            return np.arange(weight_of(weights, layer, "expert_up.weight").shape[0])
        start = past if dim == "seq_len" else 0
        return np.arange(start, start + sizes[dim])

    return Place(index, past, body, body.tensors[op.output].dims, past + sizes.get("seq_len", 0), layer or 0)


# ------------------------------------------------------------------------------------------------------------- devices


@dataclass(slots=True)
class Devices:
    """All ranks of one stage. `sizes` are global; `groups` may be overridden to simulate a wrong program."""

    mesh: Mesh
    sizes: Mapping[str, int]
    past: int
    orders: Orders = field(default_factory=lambda: DEFAULT_ORDERS)
    prompt: int = 0
    """Positions that prefill dealt out; what decoding appends after them is dealt out one by one."""
    groups: Callable[[Comm], Sequence[Sequence[int]]] | None = None
    route: Callable[[Sequence[Message]], Sequence[Message]] | None = None
    shard: Callable[[int, str, tuple[str, ...], int], Array] | None = None

    @property
    def num_ranks(self) -> int:
        return int(self.mesh.size)

    def index(self, layout: Layout, dim: str, rank: int) -> Array:
        """Global positions of `dim` that `rank` holds; token positions start after the cached ones."""
        start = self.past if dim == "seq_len" else 0
        if self.shard is not None:
            return start + self.shard(self.sizes[dim], dim, layout.axes(dim), rank)
        return start + self.dealt(dim, layout, rank)

    def dealt(self, dim: str, layout: Layout, rank: int) -> Array:
        n, axes = self.sizes[dim], layout.axes(dim)
        rotation = layout.turned(dim)
        if dim != "kv_len" or self.orders.get("seq_len", "run") == "run" or not axes:
            return positions(n, axes, self.mesh, rank, dim, self.orders, rotation)
        # A ring's cache: the prompt as prefill dealt it out, then one position after the other.
        prompt = min(n, self.prompt or n)
        head = positions(prompt, axes, self.mesh, rank, "seq_len", self.orders, rotation)
        tail = positions(n, axes, self.mesh, rank, "kv_len", self.orders, rotation)
        return np.concatenate([head, tail[tail >= prompt]])

    def cut(self, x: Array, dims: Sequence[str], layout: Layout, rank: int) -> Array:
        """The part of a global tensor that `rank` holds."""
        for axis, d in enumerate(dims):
            if layout.axes(d):
                start = self.past if d == "seq_len" else 0
                x = take(x, self.index(layout, d, rank) - start, axis)
        return x

    def each(self, group: str, value: Callable[[int], Array]) -> list[Array]:
        """One value per rank of a device group, nothing on the other ranks."""
        mine = self.mesh.ranks(group)
        return [value(r) if r in mine else NOTHING for r in range(self.num_ranks)]

    def sent(self, planned: Sequence[Message]) -> Sequence[Message]:
        """Messages of a transfer; overridden to simulate a wrong program."""
        return self.route(planned) if self.route else planned

    def members(self, comm: Comm) -> Sequence[Sequence[int]]:
        return self.groups(comm) if self.groups else self.mesh.groups(comm.axes)


def take(x: Array, where: Array, axis: int) -> Array:
    """np.take, as a view where the positions are one run."""
    if (
        len(where)
        and where[-1] - where[0] == len(where) - 1
        and where[-1] < x.shape[axis]
        and (np.diff(where) == 1).all()
    ):
        return x[(slice(None),) * axis + (slice(int(where[0]), int(where[-1]) + 1),)]
    return np.take(x, where, axis=axis)


def run_body(
    pbody: PBody, devices: Devices, flow: Flow, weights: Weights, layer: int | None, caches: list[Caches]
) -> dict[str, list[Array]]:
    """One body on all ranks of a stage: every tensor, rank by rank. Ranks outside a tensor's device group hold nothing of
    it."""
    env: dict[str, list[Array]] = {pbody.inputs[0]: flow[STREAM], **{n: flow[n] for n in pbody.inputs[1:]}}
    for w in pbody.weights():
        dims, whole = pbody.spec(w.name).dims, weight_of(weights, layer, w.name)
        env[w.name] = devices.each(w.group, partial(devices.cut, whole, dims, w.layout))
    for p in pbody.ops:
        if p.comm is not None and p.comm.kind == "transfer":
            env[p.output] = _transfer(pbody, p, env[p.inputs[0]], devices)
        elif p.comm is not None:
            env[p.output] = communicate(p.comm, env[p.inputs[0]], pbody.spec(p.output).dims, devices)
        else:
            step = partial(_run_op, p, pbody, env, devices, layer, caches)
            env[p.output] = devices.each(pbody.group(p.output), step)
    return env


def _transfer(pbody: PBody, p: POp, xs: list[Array], devices: Devices) -> list[Array]:
    """A tensor from one device group to another, message by message."""
    dims = pbody.spec(p.output).dims
    lengths = {d: devices.sizes[d] for d in dims}
    sender, receiver = ends_of(pbody, p, devices.mesh, devices.orders)
    held = {r: sender.held(r, lengths) for r in sender.ranks}
    wanted = {r: receiver.held(r, lengths) for r in receiver.ranks}
    out = [NOTHING] * devices.num_ranks
    for r, index in wanted.items():
        out[r] = np.full([len(i) for i in index], -1 if xs[sender.ranks[0]].dtype.kind == "i" else np.nan)
        out[r] = out[r].astype(xs[sender.ranks[0]].dtype)
    for m in devices.sent(messages(sender, receiver, lengths)):
        out[m.dst][place(wanted[m.dst], m.index)] = xs[m.src][place(held[m.src], m.index)]
    return out


def _run_op(
    p: POp,
    pbody: PBody,
    env: Mapping[str, list[Array]],
    devices: Devices,
    layer: int | None,
    caches: list[Caches],
    rank: int,
) -> Array:
    assert p.op is not None
    op, inputs, output, cache = p.op, p.inputs, p.output, caches[rank]
    args = [env[n][rank] for n in inputs]
    if op.kind == "cache":
        key = (layer if layer is not None else -1, op.output)
        arrived = devices.index(pbody.layout(inputs[0]), "seq_len", rank)
        mine = devices.index(pbody.layout(output), "kv_len", rank)
        cache[key] = append_cache(cache.get(key), take(args[0], np.flatnonzero(np.isin(arrived, mine)), 1))
        return cache[key]
    layouts = [pbody.layout(n) for n in (*inputs, output)]
    dims = [pbody.spec(n).dims for n in (*inputs, output)]

    def index(dim: str) -> Array:
        # The output says where this shard lies; dims it lost are where the input had them.
        for layout, ds in (*((layouts[-1], dims[-1]),), *zip(layouts[:-1], dims[:-1], strict=True)):
            if dim in ds:
                return devices.index(layout, dim, rank)
        return devices.index(layouts[0], dim, rank)

    where = Place(index, devices.past, pbody.body, dims[-1], devices.past + devices.sizes["seq_len"], layer or 0)
    if op.kind in STATEFUL:
        key = (layer if layer is not None else -1, op.output)
        value, cache[key] = STATEFUL[op.kind](op, args, where, dims[:-1], cache.get(key))
        return value
    return run(op, args, where, dims[:-1])


# ---------------------------------------------------------------------------------------------------------- collectives


def communicate(comm: Comm, xs: list[Array], dims: Sequence[str], devices: Devices) -> list[Array]:
    """One collective over every group it names."""
    out: list[Array] = list(xs)
    for group in devices.members(comm):
        parts = [xs[r] for r in group]
        for r, value in zip(group, COLLECTIVES[comm.kind](comm, parts, dims, devices), strict=True):
            out[r] = value
    return out


def _split(x: Array, dim: str, comm: Comm, dims: Sequence[str], devices: Devices) -> list[Array]:
    """Pieces of `x` along `dim`, one per member, cut axis by axis as layouts do."""
    if devices.orders.get(dim, "run") != "run":
        members = _canonical(comm, devices, int(devices.mesh.degree(comm.axes)))
        return [np.take(x, devices.dealt(dim, Layout.of({dim: comm.axes}), r), axis=dims.index(dim)) for r in members]
    pieces = [x]
    for a in comm.axes:
        pieces = [
            q for piece in pieces for q in np.array_split(piece, int(devices.mesh.degrees[a]), axis=dims.index(dim))
        ]
    return pieces


def _all_reduce(comm: Comm, parts: list[Array], dims: Sequence[str], devices: Devices) -> list[Array]:
    total = parts[0]
    for p in parts[1:]:
        total = np.maximum(total, p) if comm.reduce == "max" else total + p
    return [total for _ in parts]


def _reduce_scatter(comm: Comm, parts: list[Array], dims: Sequence[str], devices: Devices) -> list[Array]:
    assert comm.dst_dim
    return _split(_all_reduce(comm, parts, dims, devices)[0], comm.dst_dim, comm, dims, devices)


def _join(parts: list[Array], dim: str, comm: Comm, dims: Sequence[str], devices: Devices) -> Array:
    """Members' parts along `dim`, in their order; parts that are no runs interleave."""
    axis = dims.index(dim)
    whole = np.concatenate(parts, axis=axis)
    if devices.orders.get(dim, "run") == "run":
        return whole
    where = [devices.dealt(dim, Layout.of({dim: comm.axes}), r) for r in _canonical(comm, devices, len(parts))]
    return np.take(whole, np.argsort(np.concatenate(where)), axis=axis)


def _all_gather(comm: Comm, parts: list[Array], dims: Sequence[str], devices: Devices) -> list[Array]:
    assert comm.src_dim
    whole = _join(parts, comm.src_dim, comm, dims, devices)
    return [whole for _ in parts]


def _canonical(comm: Comm, devices: Devices, count: int) -> Sequence[int]:
    """The first group of the collective, whose members stand for position 0, 1, … along its axes."""
    return devices.mesh.groups(comm.axes)[0][:count]


def _ring_shift(comm: Comm, parts: list[Array], dims: Sequence[str], devices: Devices) -> list[Array]:
    """Everybody sends to the next member and receives from the one before."""
    return [parts[i - 1] for i in range(len(parts))]


def _all_to_all(comm: Comm, parts: list[Array], dims: Sequence[str], devices: Devices) -> list[Array]:
    assert comm.src_dim and comm.dst_dim
    sent = [_split(p, comm.dst_dim, comm, dims, devices) for p in parts]
    order = _source_order(comm, devices, len(parts))
    return [_join([sent[i][j] for i in order], comm.src_dim, comm, dims, devices) for j in range(len(parts))]


def _source_order(comm: Comm, devices: Devices, count: int) -> Sequence[int]:
    """Members of a group in the order in which they hold `src_dim`."""
    if not comm.src_axes:
        return range(count)
    grid = np.arange(count).reshape([int(devices.mesh.degrees[a]) for a in comm.axes])
    return [int(i) for i in grid.transpose([comm.axes.index(a) for a in comm.src_axes]).ravel()]


def _slice(comm: Comm, parts: list[Array], dims: Sequence[str], devices: Devices) -> list[Array]:
    assert comm.dst_dim
    return [_split(p, comm.dst_dim, comm, dims, devices)[i] for i, p in enumerate(parts)]


COLLECTIVES: dict[str, Callable[[Comm, list[Array], Sequence[str], Devices], list[Array]]] = {
    "all_reduce": _all_reduce, "reduce_scatter": _reduce_scatter, "all_gather": _all_gather, "all_to_all": _all_to_all,
    "slice": _slice,
    "ring_shift": _ring_shift,
}  # fmt: skip


def run_program(
    program: Program, weights: Weights, ids: Array, caches: dict[int, list[Caches]], past: int, devices: Devices
) -> Trace:
    """One forward pass of a replica: stage after stage, each on its own ranks. `caches[stage][rank]` is extended."""
    trace = Trace()
    flow: Flow = {}
    for stage in program.stages:
        flow = run_stage(program, stage, weights, ids, flow, caches[stage.index], devices, trace)
    return trace


def run_stage(
    program: Program, stage: Stage, weights: Weights, ids: Array, sent: Flow, caches: list[Caches], devices: Devices,
    trace: Trace,
) -> Flow:  # fmt: skip
    """One chunk of layers on its ranks: from what the one before `sent` (the first one embeds `ids`) to what it hands on."""
    if stage.embed is not None:
        layout, group = stage.embed.layout("ids"), stage.embed.group("ids")
        flow = {STREAM: devices.each(group, lambda r: devices.cut(ids, ("batch_size", "seq_len"), layout, r))}
    else:
        flow = {n: deliver(program, stage, sent[n]) for n in (STREAM, *stage.carried)}
    for layer, pbody in stage_bodies(stage):
        env = run_body(pbody, devices, flow, weights, layer, caches)
        for p in pbody.ops:
            trace.values[(layer, pbody.name, p.output)] = env[p.output]
        flow |= {STREAM: env[pbody.output], **{n: env[here] for n, here in pbody.carries}}
    return flow


def deliver(program: Program, stage: Stage, sent: list[Array]) -> list[Array]:
    """A tensor crosses from one stage to the next, rank to rank, as the stage says it receives."""
    before = program.stages[stage.index - 1].ranks
    sender = {dst: src for src, dst in stage.receives}
    first = stage.runs[0].bodies[0]
    holders = program.mesh.ranks(first.group(first.inputs[0]))
    missing = [stage.ranks[r] for r in holders if stage.ranks[r] not in sender]
    if missing:
        raise ValueError(f"ranks {missing} of stage {stage.index} receive nothing")
    return [sent[before.index(sender[g])] if r in holders else NOTHING for r, g in enumerate(stage.ranks)]


def stage_bodies(stage: Stage) -> list[tuple[int | None, PBody]]:
    """Bodies of a stage in execution order, with the index of each layer."""
    out: list[tuple[int | None, PBody]] = [(None, stage.embed)] if stage.embed else []
    for r in stage.runs:
        out += [(layer, r.bodies[i % len(r.bodies)]) for i, layer in enumerate(r.layers)]
    return [*out, (None, stage.head)] if stage.head else out
