"""The KV cache of a prefill pool on its way to the decode pool: transfers and what the decode ranks then hold, as nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.dag import runtime
from tools.dag.graph import DagNode, Lane, Port
from tools.dag.text import layers_text, slug
from tools.partition.pools import Handover, Pools, handovers
from tools.partition.transfer import circles

if TYPE_CHECKING:
    from tools.dag.build import _Builder, _Unit

Held = dict[int, tuple[str, Port]]
"""Per decode lane: the node after which the cache lies there, and its local dims."""


def draw_handover(b: _Builder, there: _Builder, pools: Pools) -> list[tuple[DagNode, Port]]:
    """Draws all transfers into `b`; returns one aggregation per cache tensor with the whole cache as its output. `there`
    knows the decode program at the prompt's lengths."""
    lanes = {st.index: there._units(st, 0) for st in pools.decode.stages}
    for st in pools.decode.on_ranks:
        for u in lanes[st.index]:
            title = f"{runtime.short(runtime.gpu_text(u.devices))} · decode pool · stage {st.index}"
            b.lanes.append(Lane(u.devices[0], title, u.devices, pools.prefill.strategy.pp + st.index))
    b.sizes = b.total
    return [_draw(b, there, h, lanes[h.target.index]) for h in handovers(pools)]


def _draw(b: _Builder, there: _Builder, h: Handover, targets: list[_Unit]) -> tuple[DagNode, Port]:
    """One cache tensor of some layers: transfers, what arrives on every rank, the whole of it."""
    sources = b._units(h.source, 0)
    held: Held = {}
    b.row += 1
    for senders, receivers in _circles(b, h, sources, targets):
        _transfer(b, there, h, senders, receivers, held)
    b.row += 1
    arrived = [(u, _arrival(b, h, u, held)) for u in targets]
    name = f"{h.cache}({layers_text(h.layers)})"
    whole = Port(name, tuple(h.lengths(b.total).items()), b.dtypes.bytes(h.got.spec(h.cache).dtype))
    devices = tuple(g for u in targets for g in u.devices)
    ports = [(u.devices[0], held[u.devices[0]][1]) for u in targets]
    node = b._io(
        f"kv_{slug(h.cache)}_{h.layers[0]}", f"aggregation: {h.cache} in place on the decode pool",
        f"model.layers.{layers_text(h.layers)}.self_attn.{h.cache}", "routing", devices, (b._uniform(ports), [whole]),
        lanes=[u.devices[0] for u in targets],
    )  # fmt: skip
    for u, at in arrived:
        b._join(at.id, node.id, held[u.devices[0]][1], u.devices[0])
    return node, whole


def _circles(
    b: _Builder, h: Handover, sources: list[_Unit], targets: list[_Unit]
) -> list[tuple[list[_Unit], list[_Unit]]]:
    """Lanes that give and lanes that get, apart where nothing joins them."""
    if b.detail != "full":
        return [(sources, targets)]
    return [([sources[i] for i in s], [targets[i] for i in t]) for s, t in circles(h.messages(b.total))]


def _transfer(
    b: _Builder, there: _Builder, h: Handover, senders: list[_Unit], receivers: list[_Unit], held: Held
) -> None:
    """One node: these ranks of the prefill pool send to those of the decode pool."""
    key = _body_of(b, h)
    given = [(u.devices[0], b.kept[key, h.cache, u.devices[0]]) for u in senders]
    got = [(u.devices[0], there._kept_port(h.got, h.cache, u.rank)) for u in receivers]
    devices = tuple(g for u in (*senders, *receivers) for g in u.devices)
    step = f"kv_{key}_{slug(h.cache)}_s{h.target.index}"
    node = DagNode(
        id=f"{step}__g{devices[0]}", step=step, row=b.row, role="comm", operator=f"KV transfer {h.cache}: send / recv",
        module=f"model.layers.{layers_text(h.layers)}.self_attn.{h.cache}.transfer", kernel="p2p", devices=devices,
        inputs=tuple(b._uniform([(g, port) for g, (_, port) in given])), outputs=tuple(b._uniform(got)),
        device_text=runtime.gpu_text(devices), spans=tuple(u.devices[0] for u in (*senders, *receivers)),
        global_dims=b._global([p for _, (_, p) in given], [p for _, p in got]), repeats=len(h.layers),
        layers=layers_text(h.layers),
        notes=(f"prefill {_words(senders)} → decode {_words(receivers)}, once per layer, × {len(h.layers)}",),
    )  # fmt: skip
    b.nodes.append(node)
    for g, (source, port) in given:
        b._join(source, node.id, port, g)
    held.update({g: (node.id, port) for g, port in got})


def _arrival(b: _Builder, h: Handover, u: _Unit, held: Held) -> DagNode:
    """What a decode rank holds of the cache from here on."""
    source, port = held[u.devices[0]]
    step = f"kv_in_{slug(h.cache)}_{h.layers[0]}"
    node = DagNode(
        id=f"{step}__g{u.devices[0]}", step=step, row=b.row, role="routing", operator=f"receive {h.cache} into the cache",
        module=f"model.layers.{layers_text(h.layers)}.self_attn.{h.cache}.received", kernel="", devices=u.devices,
        inputs=(port,), outputs=(port,), device_text=runtime.gpu_text(u.devices), global_dims=b._global([port]),
        caches=(port,), lane=u.devices[0], repeats=len(h.layers), layers=layers_text(h.layers),
    )  # fmt: skip
    b.nodes.append(node)
    b._join(source, node.id, port, u.devices[0])
    return node


def _body_of(b: _Builder, h: Handover) -> str:
    """Key under which the builder keeps the cache nodes of these layers."""
    for run in h.source.runs:
        if h.layers[0] in run.layers:
            at = run.layers.index(h.layers[0]) % len(run.bodies)
            return f"s{h.source.index}_l{run.layers[at]}"
    raise AssertionError(f"stage {h.source.index} has no layer {h.layers[0]}")


def _words(units: list[_Unit]) -> str:
    return runtime.short(runtime.gpu_text(tuple(g for u in units for g in u.devices)))
