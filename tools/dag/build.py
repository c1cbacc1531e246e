"""Program → Dag: one node per operator and device, one per collective and group, total input to total output.

`detail="full"` has a lane per device; `"group"` one lane per pipeline stage whose operators stand for all its devices
alike (local dims of its first one); `"stage"` one node per stage and run of layers. Replicas (dp) are equal, so one is
drawn and the number is said, unless `expand_replicas`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from tools.dag import runtime
from tools.dag.graph import Dag, DagEdge, DagNode, Detail, Dims, Frame, Lane, Port, Role
from tools.dag.handover import draw_handover
from tools.dag.text import layers_text, slug
from tools.graph.ir import Op
from tools.graph.routing import node_tokens, routed_name
from tools.graph.semantics import STATEFUL
from tools.memory import Dtypes
from tools.partition.layout import Comm, Layout, positions
from tools.partition.lower import PBody, POp, Program, Stage, ends_of, expected_tokens, keepers, kept_dims
from tools.partition.pipeline import num_slices, order, sequence, slices
from tools.partition.pools import Pools
from tools.partition.transfer import circles, messages
from tools.spec.base import ToolError

ROUTING_KINDS = frozenset({"topk", "assign_copies", "dispatch", "combine", "to_nodes", "from_nodes"})
WORDS = {"einsum": "matmul", "topk": "gate: top-k selection", "gather_scores": "gather scores",
"argmax": "greedy sampling",
         "select_last": "select last position", "repeat_heads": "repeat KV heads", "cache": "cache append and read",
         "embed": "embedding lookup", "pos_lookup": "position lookup", "sumsq": "sum of squares",
         "rms_apply": "rmsnorm apply",
         "renormalise": "renormalise", "dispatch": "dispatch: tokens to experts",
         "combine": "combine: aggregate experts", "to_nodes": "dispatch: to the nodes of their experts",
         "from_nodes": "combine: aggregate nodes", "assign_copies": "gate: experts to the copies that serve them",
         "unpad": "drop padding", "block_max": "maximum per block"}  # fmt: skip
AXES = ("tp", "attn_dp", "ep", "etp", "cp", "edp", "ep_nodes", "pool_heads", "pool_seq")
COMM_WORDS = {"all_reduce": "all-reduce", "reduce_scatter": "reduce-scatter", "all_gather": "all-gather",
              "all_to_all": "all-to-all", "slice": "split", "p2p": "send / recv", "transfer": "send / recv between groups",
              "ring_shift": "ring shift: send to next, receive from previous,"}  # fmt: skip


def build_dag(
    program: Program, *, detail: Detail = "full", title: str | None = None, expand_replicas: bool = False,
    pools: Pools | None = None, kinds: Sequence[str] = (),
) -> Dag:  # fmt: skip
    """The deployment DAG of one phase. Raises ToolError if the program has no sizes.

    `pools`: `program` is one of two pools; the prefill's DAG then ends with the KV cache in place on the decode ranks.
    `kinds`: the kind of device of every pipeline stage, by default the strategy's; lanes are named by it.
    """
    missing = [d for d in ("batch_size", "seq_len", "kv_len") if d not in program.sizes]
    if missing:
        raise ToolError(
            f"a DAG needs the length of {missing}; lower the model with all_sizes(batch_size=…, seq_len=…, kv_len=…)"
        )
    if detail == "schedule":
        from tools.dag.pingpong import ping_pong_dag
        from tools.dag.schedule import schedule_dag

        apart = program.strategy.expert_devices and program.strategy.pp == 1
        return ping_pong_dag(program, title=title) if apart else schedule_dag(program, title=title)
    builder = _Builder(program, detail, expand_replicas, pools)
    dag = builder.build(title)
    if kinds := kinds or program.strategy.stage_devices:
        named = (replace(lane, title=f"{lane.title} · {kinds[lane.stage % program.strategy.pp]}") for lane in dag.lanes)
        dag = replace(dag, lanes=tuple(named))
    if detail == "stage":
        from tools.dag.coarse import stage_view

        return stage_view(dag)
    return dag


@dataclass(frozen=True, slots=True)
class _Unit:
    """One lane: `rank` inside the stage whose sizes it shows, and the devices it stands for."""

    rank: int
    devices: tuple[int, ...]


Carried = dict[int, tuple[str, Port]]
"""Per lane (first device): the node that holds the tensor handed from body to body, and its port."""
Beside = dict[str, Carried]
"""By name, what bodies hand on beside the residual stream."""


@dataclass(slots=True)
class _Place:
    """Where in the model a body stands."""

    prefix: str
    frame: str
    repeats: int
    layers: tuple[int, ...]

    def module(self, path: str) -> str:
        return f"model.layers.{layers_text(self.layers)}.{path}" if self.layers else f"model.{path}"


class _Builder:
    def __init__(self, program: Program, detail: Detail, expand: bool, pools: Pools | None = None):
        self.program, self.mesh, self.detail, self.pools = program, program.mesh, detail, pools
        s = program.strategy
        self.replicas = range(s.dp) if expand else range(1)
        self.sizes = {k: int(v) for k, v in program.sizes.items()}
        self.nodes: list[DagNode] = []
        self.edges: list[DagEdge] = []
        self.lanes: list[Lane] = []
        self.frames: list[Frame] = []
        self.row = 0
        self.total, self.tag = self.sizes, ""
        self.slices = slices(self.sizes["seq_len"], num_slices(s, program.phase))
        self.beside: dict[int, Beside] = {}
        """Of every piece that goes through the stages."""
        self.kept: dict[tuple[str, str, int], tuple[str, Port]] = {}
        """(body, cache, lane) → the node of the slice before that appended to the cache, and what it holds since."""
        self._range_cache: dict[tuple[str, tuple[str, ...], int, int], tuple[int, int]] = {}
        self._port_cache: dict[tuple[int, str, int], tuple[PBody, Port]] = {}
        self.orders = program.orders
        self.dtypes = Dtypes.of_strategy(program.model, s)
        self.index_bytes = self.dtypes.bytes("index")
        self.world = pools.num_devices if pools else s.num_devices
        self.everyone = tuple(range(program.first, program.first + s.num_devices))
        self.whole = {**self.sizes, "batch_size": self.sizes["batch_size"] * s.dp}
        if "experts" in self.sizes:
            tokens = self.whole["batch_size"] * self.sizes["seq_len"]
            for parts in ("experts", "expert_nodes"):
                if parts in self.sizes:
                    self.whole[routed_name((parts,))] = int(expected_tokens((parts,), tokens, self.sizes))

    # ------------------------------------------------------------------------ whole

    def build(self, title: str | None) -> Dag:
        p, s = self.program, self.program.strategy
        units = {st.index: [self._units(st, r) for r in self.replicas] for st in p.stages}
        for r in self.replicas:
            for st in p.on_ranks:
                self._lanes(st, units[st.index][r], r)
        carried = self._total_input(units[0])
        for piece, chunk, _ in sequence(order(s, len(carried)), len(p.stages) - 1):
            stage = p.stages[chunk]
            self._enter(piece)
            mine = [u for group in units[chunk] for u in group]
            beside = self.beside.setdefault(piece, {})
            if chunk:
                before = p.stages[chunk - 1]
                carried[piece] = self._send(before, stage, carried[piece], units)
                for name in stage.carried:
                    beside[name] = self._send(before, stage, beside[name], units, name)
            carried[piece] = self._stage(stage, mine, carried[piece], beside)
        handed: list[tuple[DagNode, Port]] = []
        if self.pools and p.phase == "prefill":
            there = replace(self.pools.decode, sizes={**self.pools.decode.sizes, **self.total})
            handed = draw_handover(self, _Builder(there, self.detail, False), self.pools)
        self._total_output(units[p.stages[-1].index], carried, handed)
        head = title or f"{p.model.name} · {p.phase} · {s.label(p.model.moe is not None)}"
        return Dag(
            head,
            self._subtitle(),
            self.detail,
            tuple(self.nodes),
            tuple(self.edges),
            tuple(self.lanes),
            tuple(self.frames),
            self._attrs(),
        )

    def _enter(self, piece: int) -> None:
        """From here on: the sizes of one slice of the prompt. Steps of a slice carry its number where there are several."""
        if len(self.slices) > 1:
            first, n = self.slices[piece]
            self.tag, self.sizes = f"t{piece}", {**self.total, "seq_len": n, "kv_len": first + n}
            self._range_cache.clear()
            self._port_cache.clear()

    def _subtitle(self) -> str:
        s, n = self.program.strategy, self.total
        text = (
            f"batch_size={self.whole['batch_size']}, seq_len={n['seq_len']}, kv_len={n['kv_len']} · {self.world} GPUs"
        )
        if self.program.phase == "decode":
            text += " · one decode step at the longest context; its tokens are the next step's input"
        if len(self.slices) > 1:
            text += f" · prompt in {len(self.slices)} slices of {', '.join(str(n) for _, n in self.slices)} tokens"
        if self.pools:
            mine = runtime.short(runtime.gpu_text(self.everyone))
            text += f" in two pools, {self.program.phase} on {mine}"
        if s.dp > 1 and len(self.replicas) == 1:
            one = runtime.short(runtime.gpu_text(self.everyone[: s.replica]))
            text += f" · drawn: replica 0 ({one}), × {s.dp} identical replicas of {s.replica} GPUs"
        return text

    def _attrs(self) -> dict[str, str]:
        p = self.program
        used = {d for n in self.nodes for port in (*n.inputs, *n.outputs, *n.weights) for d, _ in port.dims}
        return {
            "model": p.model.name, "strategy": p.strategy.label(p.model.moe is not None), "phase": p.phase,
            "detail": self.detail,
            "num_hidden_layers": str(p.model.num_hidden_layers), "num_devices": str(self.world),
            "num_replicas": str(p.strategy.dp),
            "drawn_replicas": str(len(self.replicas)), "sizes": ", ".join(f"{d}={n}" for d,
            n in self.whole.items() if d in used),
            "digest": p.digest(), **self._device_groups(),
        }  # fmt: skip

    def _device_groups(self) -> dict[str, str]:
        """Where a stage has several device groups: which drawn devices serve the same ones."""
        if not self.mesh.shape.groups:
            return {}
        spans = []
        for role, run in self.mesh.roles():
            ranks = [
                st.ranks[r] + k * self.program.strategy.replica
                for k in self.replicas
                for st in self.program.stages
                for r in run
            ]
            spans.append(f"{' + '.join(sorted(role))}: {','.join(map(str, sorted(set(ranks))))}")
        return {"device_groups": "; ".join(spans)}

    def _units(self, stage: Stage, replica: int) -> list[_Unit]:
        ranks = tuple(g + replica * self.program.strategy.replica for g in stage.ranks)
        if self.detail == "full":
            return [_Unit(i, (g,)) for i, g in enumerate(ranks)]
        return [_Unit(run.start, ranks[run.start : run.stop]) for _, run in self.mesh.roles()]

    def holders(self, body: PBody, tensor: str, units: Sequence[_Unit]) -> list[_Unit]:
        """Lanes of the device group that holds a tensor."""
        mine = self.mesh.ranks(body.group(tensor))
        return [u for u in units if u.rank in mine]

    def _role(self, u: _Unit) -> str:
        """What a lane's devices are for, where a stage has several groups: "attention + pool"."""
        role = next(role for role, ranks in self.mesh.roles() if u.rank in ranks)
        return " + ".join(sorted(role))

    def _lanes(self, stage: Stage, units: Sequence[_Unit], replica: int) -> None:
        for u in units:
            where = (
                f"stage {stage.index}"
                + self._chunk_words(stage)
                + (f" · replica {replica}" if len(self.replicas) > 1 else "")
            )
            where = f"{self._role(u)} · {where}" if self.mesh.shape.groups else where
            copies = self.program.strategy.dp if len(self.replicas) == 1 else 1
            title = f"{runtime.short(runtime.gpu_text(u.devices))} · {where}" + (
                f" · × {copies} replicas" if copies > 1 else ""
            )
            self.lanes.append(Lane(u.devices[0], title, u.devices, stage.index))

    def _chunk_words(self, stage: Stage) -> str:
        """ " · chunks 0, 2" where a stage holds several."""
        mine = [c.index for c in self.program.stages if c.ranks == stage.ranks]
        return f" · chunks {', '.join(map(str, mine))}" if len(mine) > 1 else ""

    def _stage(self, stage: Stage, units: Sequence[_Unit], carried: Carried, beside: Beside) -> Carried:
        tag = f"{self.tag}s{stage.index}"
        if stage.embed:
            carried = self._body(stage, stage.embed, _Place(f"{tag}_embed", "", 1, ()), units, carried, beside)
        for i, run in enumerate(stage.runs):
            key = f"{tag}_run{i}"
            self.frames.append(
                Frame(
                    key,
                    (f"slice {self.tag[1:]} · " if self.tag else "")
                    + _frame_title(run.layers, run.repeat, len(run.bodies)),
                    run.repeat,
                    run.layers,
                    stage.index % self.program.strategy.pp,
                    tuple(u.devices[0] for u in units),
                )
            )
            for j, body in enumerate(run.bodies):
                place = _Place(f"{tag}_l{run.layers[j]}", key, run.repeat, run.layers[j :: len(run.bodies)])
                carried = self._body(stage, body, place, units, carried, beside)
        if stage.head:
            carried = self._body(stage, stage.head, _Place(f"{tag}_head", "", 1, ()), units, carried, beside)
        return carried

    # ------------------------------------------------------------------------ input, output

    def _io(self, step: str, operator: str, module: str, role: Role, devices: tuple[int, ...],
    ports: tuple[Sequence[Port], Sequence[Port]],
            notes: Sequence[str] = (), lanes: Iterable[int] | None = None) -> DagNode:  # fmt: skip
        self.row += 1
        everything = len(devices) == self.world or not devices
        spans = (
            tuple(lanes) if lanes is not None else tuple(x.index for x in self.lanes if set(x.devices) & set(devices))
        )
        node = DagNode(
            id=f"{step}__g{devices[0] if devices else 0}", step=step, row=self.row, role=role, operator=operator,
            module=module,
            kernel="", devices=devices, inputs=tuple(ports[0]), outputs=tuple(ports[1]),
            device_text=runtime.gpu_text(devices, everything and role == "io"), global_dims=self._global(*ports),
            notes=tuple(notes), spans=spans,
        )  # fmt: skip
        self.nodes.append(node)
        return node

    def _join(self, src: str, dst: str, port: Port, lane: int | None = None, dashed: bool = False) -> None:
        self.edges.append(DagEdge(src, dst, port.tensor, port.dims, dashed, lane))

    def _total_input(self, units: Sequence[Sequence[_Unit]]) -> list[Carried]:
        s, first = self.program.strategy, self.program.stages[0]
        assert first.embed is not None
        all_devices = self.everyone
        lanes = tuple(u.devices[0] for group in units for u in group)
        whole = Port(
            "ids", (("batch_size", self.whole["batch_size"]), ("seq_len", self.sizes["seq_len"])), self.index_bytes
        )
        source = self._io(
            "total_input", "total input · token ids", "model.input", "io", all_devices, ([whole], [whole]), lanes=lanes
        )
        last, port = source, whole
        if s.dp > 1:
            port = Port("ids", (("batch_size", self.sizes["batch_size"]), *whole.dims[1:]), self.index_bytes)
            note = (
                f"one of {s.dp} equal parts, replica {'k to each' if len(self.replicas) > 1 else '0 drawn'} of {s.dp}"
            )
            last = self._io(
                "split_replicas",
                f"split: batch_size over dp({s.dp})",
                "model.input.replicas",
                "routing",
                all_devices,
                ([whole], [port]),
                [note],
                lanes,
            )
            self._join(source.id, last.id, whole)
        carried: list[Carried] = []
        for piece, (node, part) in enumerate(self._split_slices(last, port, lanes)):
            self._enter(piece)
            carried.append({})
            for group in units:
                carried[-1] |= self._split_tokens(first.embed, group, node, part)
        return carried

    def _split_slices(self, source: DagNode, whole: Port, lanes: Sequence[int]) -> list[tuple[DagNode, Port]]:
        """The prompt cut into slices: the node that gives each of them."""
        if len(self.slices) == 1:
            return [(source, whole)]
        parts = [replace(whole, dims=(whole.dims[0], ("seq_len", n))) for _, n in self.slices]
        named = [replace(p, tensor=f"ids(slice {i})") for i, p in enumerate(parts)]
        node = self._io(
            "split_slices", f"split: seq_len in {len(parts)} slices", "model.input.slices", "routing", source.devices,
            ([whole], named), ["one after the other through the stages"], lanes,
        )  # fmt: skip
        self._join(source.id, node.id, whole)
        return [(node, p) for p in parts]

    def _split_tokens(self, embed: PBody, group: Sequence[_Unit], source: DagNode, whole: Port) -> Carried:
        """Token ids to the ranks of the first stage; a split node where attention ranks get different sequences."""
        group = self.holders(embed, "ids", group)
        local = {u.devices[0]: self._port(embed, "ids", u.rank) for u in group}
        devices = tuple(g for u in group for g in u.devices)
        cut = any(p.dims != whole.dims for p in local.values())
        ports = {u: replace(p, tensor="ids") for u, p in local.items()}
        if cut:
            axes = " and ".join(
                f"{d} over {self._axis_names(a)}" for d, a in embed.layout("ids").split if self.mesh.degree(a) > 1
            )
            outputs = self._uniform([(u.devices[0], ports[u.devices[0]]) for u in group])
            node = self._io(
                f"{self.tag}split_batch",
                f"split: {axes}",
                "model.input.split",
                "routing",
                devices,
                ([whole], outputs),
                lanes=[u.devices[0] for u in group],
            )
            self._join(source.id, node.id, whole, None)
            if len(self.replicas) > 1 and group[0].devices[0]:
                self.row -= 1
                self.nodes[-1] = replace(node, row=self.row)
            source = node
        return {lane: (source.id, port) for lane, port in ports.items()}

    def _total_output(
        self, units: Sequence[Sequence[_Unit]], carried: Sequence[Carried], handed: Sequence[tuple[DagNode, Port]] = ()
    ) -> None:
        s, head = self.program.strategy, self.program.stages[-1].head
        assert head is not None
        row, collected = self.row, []
        part = Port("tokens", (("batch_size", self.sizes["batch_size"]),), self.index_bytes)
        for everybody in units:
            self.row = row
            group = self.holders(head, head.output, everybody)
            devices = tuple(g for u in group for g in u.devices)
            held = [(u.devices[0], replace(carried[-1][u.devices[0]][1], tensor="tokens")) for u in group]
            axes = head.layout(head.output).axes("batch_size")
            how = (
                f"concatenate batch_size over {self._axis_names(axes)}"
                if self.mesh.degree(axes) > 1
                else "equal copies, one is taken"
            )
            notes = [how, "of the last slice; what earlier ones sample is dropped"][: 1 + (len(self.slices) > 1)]
            node = self._io(
                "aggregate", "aggregation: sampled tokens", "model.output.aggregate", "routing", devices,
                (self._uniform(held), [part]), notes,
                [u.devices[0] for u in group],
            )  # fmt: skip
            for piece in carried:
                for lane, port in held:
                    self._join(piece[lane][0], node.id, port, lane)
            collected.append(node)
        whole, all_devices = replace(part, dims=(("batch_size", self.whole["batch_size"]),)), self.everyone
        lanes = tuple(u.devices[0] for group in units for u in group)
        sources = collected
        if s.dp > 1:
            note = f"concatenates the {s.dp} replicas" + ("" if len(self.replicas) > 1 else ", replica 0 drawn")
            gather = self._io("aggregate_replicas", f"aggregation: batch_size over dp({s.dp})",
            "model.output.replicas", "routing", all_devices,
                              ([part], [whole]), [note], lanes)  # fmt: skip
            for node in collected:
                self._join(node.id, gather.id, part)
            sources = [gather]
        kept = [port for _, port in handed]
        if handed:
            lanes, all_devices = tuple(x.index for x in self.lanes), tuple(range(self.world))
        words = "total output · next token ids" + (", KV cache on the decode pool" if handed else "")
        ports = ([whole, *kept], [whole, *kept])
        sink = self._io("total_output", words, "model.output", "io", all_devices, ports, lanes=lanes)
        for node, port in (*((n, whole) for n in sources), *handed):
            self._join(node.id, sink.id, port)

    def _send(
        self, src: Stage, dst: Stage, carried: Carried, units: Mapping[int, Sequence[Sequence[_Unit]]], name: str = "x"
    ) -> Carried:
        """Every rank hands its shard of the residual stream, or of what goes with it, to the rank of the same index in the
        next stage."""
        self.row += 1
        out: Carried = {}
        word = "stage" if self.program.strategy.virtual == 1 else "chunk"
        pairs = [(a, b) for r in self.replicas for a, b in self._pairs(dst, units[src.index][r], units[dst.index][r])]
        for a, b in pairs:
            node_id, port = carried[a.devices[0]]
            moved = replace(port, tensor=name)
            step = f"p2p_{self.tag}s{src.index}_s{dst.index}" + ("" if name == "x" else f"_{name}")
            devices = (*a.devices, *b.devices)
            node = DagNode(
                id=f"{step}__g{a.devices[0]}", step=step, row=self.row, role="comm", operator=COMM_WORDS["p2p"],
                module=f"model.pipeline.{word}{src.index}_to_{word}{dst.index}", kernel="p2p", devices=devices,
                inputs=(moved,), outputs=(moved,),
                device_text=runtime.gpu_text(devices), global_dims=self._global([moved]), spans=(b.devices[0],),
                notes=(f"{runtime.short(runtime.gpu_text(a.devices))} → {runtime.short(runtime.gpu_text(b.devices))}",),
            )  # fmt: skip
            self.nodes.append(node)
            self._join(node_id, node.id, moved, a.devices[0])
            out[b.devices[0]] = (node.id, moved)
        return out

    def _pairs(self, dst: Stage, senders: Sequence[_Unit], receivers: Sequence[_Unit]) -> list[tuple[_Unit, _Unit]]:
        if self.detail != "full":
            first = dst.runs[0].bodies[0]
            held = (self.holders(first, first.inputs[0], side) for side in (senders, receivers))
            return list(zip(*held, strict=True))
        shift = receivers[0].devices[0] - dst.ranks[0]
        by_device = {u.devices[0]: u for u in (*senders, *receivers)}
        return [(by_device[a + shift], by_device[b + shift]) for a, b in dst.receives]

    # ------------------------------------------------------------------------ bodies

    def _body(
        self, stage: Stage, body: PBody, place: _Place, units: Sequence[_Unit], carried: Carried, beside: Beside
    ) -> Carried:
        env: dict[tuple[str, int], tuple[str, Port]] = {(body.inputs[0], lane): at for lane, at in carried.items()}
        for name in body.inputs[1:]:
            env |= {(name, lane): at for lane, at in beside[name].items()}
        walk = _Walk(self, stage, body, place, units, env)
        for p in depth_first(body):
            self.row += 1
            walk.step(p)
        for name, here in body.carries:
            beside[name] = {u.devices[0]: env[(here, u.devices[0])] for u in self.holders(body, here, units)}
        return {u.devices[0]: env[(body.output, u.devices[0])] for u in self.holders(body, body.output, units)}

    # ------------------------------------------------------------------------ sizes

    def range(self, dim: str, layout: Layout, rank: int) -> tuple[int, int]:
        """First and end index of the part of `dim` that `rank` holds. Where a dim is not dealt out in runs (zig-zag,
        cyclic, RoPE pairs) the indices count in the order in which the parts are dealt."""
        axes = layout.axes(dim)
        key = (dim, axes, rank, layout.turned(dim))
        if key not in self._range_cache:
            held = positions(self.sizes[dim], axes, self.mesh, rank, dim, self.orders, layout.turned(dim))
            if self.orders.get(dim, "run") == "run" or not axes:
                first = int(held[0]) if len(held) else 0
            else:
                group = next(g for g in self.mesh.groups(axes) if rank in g)
                first = sum(
                    len(positions(self.sizes[dim], axes, self.mesh, r, dim, self.orders, layout.turned(dim)))
                    for r in group[: group.index(rank)]
                )
            self._range_cache[key] = (first, first + len(held))
        return self._range_cache[key]

    def _length(self, dim: str, layout: Layout, rank: int) -> int:
        lo, hi = self.range(dim, layout, rank)
        return hi - lo

    def _port(self, body: PBody, tensor: str, rank: int) -> Port:
        """Local dims of a tensor on one rank, exact where shards are uneven; a routed one counts expected tokens."""
        key = (
            id(body),
            tensor,
            rank,
        )  # replicas hold the same parts; the entry keeps the body, so that no id is reused
        known = self._port_cache.get(key)
        if known is not None:
            return known[1]
        t, layout = body.spec(tensor), body.layout(tensor)
        dims = [(d, self._length(d, layout, rank)) for d in t.dims]
        if t.routed:
            n = dict(dims)
            tokens = int(expected_tokens(n, n["batch_size"] * n["seq_len"], self.sizes))
            parts = "expert_nodes" if "expert_nodes" in n else "experts"
            rest = [(d, k) for d, k in dims if d not in (parts, "batch_size", "seq_len")]
            dims = [(parts, n[parts]), (routed_name(n), tokens), *rest]
        port = Port(tensor, tuple(dims), self.dtypes.bytes(t.dtype))
        self._port_cache[key] = (body, port)
        return port

    def _kept_port(self, body: PBody, tensor: str, rank: int) -> Port:
        """Local dims of what one rank keeps of a tensor for the next step."""
        dims = kept_dims(body, tensor)
        if dims == body.spec(tensor).dims:
            return self._port(body, tensor, rank)
        layout, dtype = body.layout(tensor), body.spec(tensor).dtype
        return Port(f"{tensor}_kept", tuple((d, self._length(d, layout, rank)) for d in dims), self.dtypes.bytes(dtype))

    def routed_note(self, body: PBody, tensor: str, rank: int) -> list[str]:
        if not body.spec(tensor).routed:
            return []
        layout = body.layout(tensor)
        b, s = self._length("batch_size", layout, rank), self._length("seq_len", layout, rank)
        if "expert_nodes" in body.spec(tensor).dims:
            share, most = node_tokens(1.0, self.sizes), self.sizes["expert_nodes"]
            tokens = expected_tokens(("expert_nodes",), b * s, self.sizes)
            return [f"Expected: node_tokens=⌈{b}·{s}·{share:.4g}⌉={tokens}, at most {b * s} for each of {most} nodes"]
        k, e = self.sizes["top_k"], self.sizes["experts"]
        return [f"Expected: expert_tokens=⌈{b}·{s}·{k}/{e}⌉={-(-b * s * k // e)}, at most {b * s} per expert"]

    def _global(self, *groups: Sequence[Port]) -> Dims:
        """Whole length of every dim of which this node holds a part only."""
        parts = {d: n for ports in groups for p in ports for d, n in p.dims if n != self.whole[d]}
        return tuple((d, self.whole[d]) for d in parts)

    @staticmethod
    def _uniform(ports: Sequence[tuple[int, Port]]) -> list[Port]:
        """One port if all members have equal dims, else one per member, named by its device."""
        if len({p.dims for _, p in ports}) == 1:
            return [ports[0][1]]
        return [replace(p, tensor=f"{p.tensor}(GPU {g})") for g, p in ports]

    def _axis_names(self, axes: tuple[str, ...]) -> str:
        """Mesh axes as a person calls them: `tp(8)`, `ep(4)·etp(2)`."""
        degrees = {
            n: (a, int(self.mesh.degree(a)))
            for n, a in self.mesh.shape.logical
            if n in AXES and self.mesh.degree(a) > 1
        }
        for n, m in ((n, m) for n in AXES for m in ("", *AXES) if n in degrees and (not m or m in degrees)):
            if (*degrees[n][0], *(degrees[m][0] if m else ())) == axes:
                return f"{n}({degrees[n][1]})" + (f"·{m}({degrees[m][1]})" if m else "")
        return f"{int(self.mesh.degree(axes))} ranks"


@dataclass(slots=True)
class _Walk:
    """Turns the steps of one body into nodes and edges, on all lanes of one stage."""

    b: _Builder
    stage: Stage
    body: PBody
    place: _Place
    units: Sequence[_Unit]
    env: dict[tuple[str, int], tuple[str, Port]]
    gates: dict[int, str] = field(default_factory=dict)

    def step(self, p: POp) -> None:
        units = self.b.holders(self.body, p.output, self.units)
        if p.op is not None:
            for u in units:
                self._operator(p, p.op, u)
            return
        assert p.comm is not None
        if p.comm.kind == "slice":
            for u in units:
                if (p.inputs[0], u.devices[0]) in self.env:  # else a weight, whose part is its reader's to tell
                    self._slice(p, p.comm, u)
            return
        for sources, targets in self._members(p, p.comm):
            self._collective(p, p.comm, sources, targets)
        if self._carries_selection(p) and not any(
            self._carries_selection(q) and p.output in q.inputs for q in self.body.ops
        ):
            self.b.row += 1
            for u in units:
                self._receive(p, u)

    def _members(self, p: POp, comm: Comm) -> Iterable[tuple[Sequence[_Unit], Sequence[_Unit]]]:
        """Lanes that give and lanes that get, once per group of ranks that communicate."""
        sources, targets = (self.b.holders(self.body, n, self.units) for n in (p.inputs[0], p.output))
        if self.b.detail != "full":
            return [(sources, targets)] if comm.kind == "transfer" else [([u], [u]) for u in targets]
        size = len(self.stage.ranks)
        lanes = [self.units[r * size : (r + 1) * size] for r in range(len(self.units) // size)]
        if comm.kind == "transfer":
            circles = self._circles(p)
            return [([row[i] for i in a], [row[i] for i in b]) for row in lanes for a, b in circles]
        groups = self.b.mesh.groups(comm.axes)
        return [(u, u) for row in lanes for u in ([row[i] for i in g] for g in groups)]

    def _circles(self, p: POp) -> list[tuple[list[int], list[int]]]:
        mesh, sizes = self.b.mesh, self.b.sizes
        sender, receiver = ends_of(self.body, p, mesh, self.b.orders)
        found = circles(messages(sender, receiver, {d: sizes[d] for d in self.body.spec(p.output).dims}))
        if not found:
            return [(list(sender.ranks), list(receiver.ranks))]
        # Fewer sequences than ranks: those that hold none give and get nothing, in the first circle.
        (gives, gets), *others = found
        idle = [sorted(set(side.ranks) - {r for c in found for r in c[i]}) for i, side in enumerate((sender, receiver))]
        return [(sorted([*gives, *idle[0]]), sorted([*gets, *idle[1]])), *others]

    def _carries_selection(self, p: POp) -> bool:
        """Whether this all-to-all, or transfer to the expert devices, takes tokens to their experts."""
        carries = p.comm is not None and p.comm.kind in ("all_to_all", "transfer")
        return carries and self.body.tensors[p.output].origin == "dispatch"

    def _from_gate(self, tensor: str) -> bool:
        """Whether a tensor is the gate's selection, wherever it has been moved."""
        origin = self.body.tensors[tensor].origin
        chooses = (o for o in self.body.body.ops if o.kind in ("topk", "assign_copies") or o.fn == "ids")
        return any(o.output == origin for o in chooses)

    def _read(self, node_id: str, tensor: str, u: _Unit, port: Port) -> None:
        source, _ = self.env[(tensor, u.devices[0])]
        self.b._join(source, node_id, port, u.devices[0], self._from_gate(tensor))

    def _node(
        self,
        p: POp,
        u: _Unit,
        role: Role,
        operator: str,
        module: str,
        kernel: str,
        inputs: Sequence[Port],
        output: Port,
        notes: Sequence[str],
    ) -> DagNode:
        b, layout = self.b, self.body.layout(p.output)
        step = f"{self.place.prefix}_{slug(p.name)}"
        items = tuple(self._items(n, u.rank) for n in p.inputs if not self._is_weight(n))
        read = [n for n in p.inputs if self._is_weight(n)]
        weights = [self.body.tensors[n].origin for n in read]  # as it lies on the device, whatever part of it is read
        ports = [b._port(self.body, n, u.rank) for n in weights]
        notes = [*notes, *(self._part_of(n, u) for n, w in zip(read, weights, strict=True) if n != w)]
        if layout.pending:
            notes = [*notes, f"Partial: {layout.reduce} pending over {b._axis_names(layout.pending)}"]
        cache = (b._kept_port(self.body, p.output, u.rank),) if p.op and p.output in keepers(self.body) else ()
        outputs = (output, *(port for port in cache if port != output))
        node = DagNode(
            id=f"{step}__g{u.devices[0]}", step=step, row=b.row, role=role, operator=operator,
            module=self.place.module(module), kernel=kernel,
            devices=u.devices, inputs=tuple(inputs), outputs=outputs, device_text=runtime.gpu_text(u.devices),
            global_dims=b._global(inputs, [output], ports), notes=tuple(notes), weights=tuple(ports), caches=cache,
            shards=tuple((n, self._shard(n, u.rank)) for n in weights), lane=u.devices[0], frame=self.place.frame,
            repeats=self.place.repeats,
            layers=layers_text(self.place.layers), batch_items=items, flops=_flops(p, [*inputs, *ports]),
        )  # fmt: skip
        b.nodes.append(node)
        self.env[(p.output, u.devices[0])] = (node.id, output)
        return node

    def _is_weight(self, tensor: str) -> bool:
        return self.body.spec(tensor).kind == "weight"

    def _part_of(self, part: str, u: _Unit) -> str:
        """What a rank reads of a weight that it holds more of."""
        port = self.b._port(self.body, part, u.rank)
        dims = ", ".join(f"{d}={n}" for d, n in port.dims)
        return f"Part: {self.body.tensors[part].origin} is read over [{dims}] only"

    def _shard(self, weight: str, rank: int) -> tuple[tuple[str, int, int, int], ...]:
        layout = self.body.layout(weight)
        return tuple((d, *self.b.range(d, layout, rank), self.b.sizes[d]) for d in self.body.spec(weight).dims)

    def _items(self, tensor: str, rank: int) -> tuple[int, int]:
        layout = self.body.layout(tensor)
        return self.b.range("batch_size", layout, rank)

    def _operator(self, p: POp, op: Op, u: _Unit) -> None:
        reads = [n for n in p.inputs if not self._is_weight(n)]
        inputs = [self.b._port(self.body, n, u.rank) for n in reads]
        output = self.b._port(self.body, p.output, u.rank)
        before = self._kept_before(p, op, u)
        routed = next((n for n in (p.output, *reads) if self.body.spec(n).routed), p.output)
        notes = self.b.routed_note(self.body, routed, u.rank)
        shown = [*inputs, *(port for _, port in before)]
        node = self._node(p, u, role_of(op), f"{op.name} · {word_of(op)}", op.module, op.kernel, shown, output, notes)
        for source, port in before:
            self.b._join(source, node.id, port, u.devices[0])
        for port in node.caches:
            self.b.kept[self._cache_key(p, u)] = (node.id, port)
        for n, port in zip(reads, inputs, strict=True):
            self._read(node.id, n, u, port)

    def _cache_key(self, p: POp, u: _Unit) -> tuple[str, str, int]:
        return self.place.prefix.removeprefix(self.b.tag), p.output, u.devices[0]

    def _kept_before(self, p: POp, op: Op, u: _Unit) -> list[tuple[str, Port]]:
        """The cache as the slice before left it on this device."""
        found = self.b.kept.get(self._cache_key(p, u)) if op.kind in ("cache", *STATEFUL) else None
        return [found] if found else []

    def _slice(self, p: POp, comm: Comm, u: _Unit) -> None:
        port = self.b._port(self.body, p.inputs[0], u.rank)
        output = self.b._port(self.body, p.output, u.rank)
        origin = self.body.tensors[p.output].origin
        operator = f"split {origin}: {comm.dst_dim} over {self.b._axis_names(comm.axes)}"
        node = self._node(p, u, "routing", operator, f"{self._module(origin)}.split", "", [port], output, [])
        self._read(node.id, p.inputs[0], u, port)

    def _module(self, origin: str) -> str:
        return next((o.module for o in self.body.body.ops if o.output == origin), "input")

    def _collective(self, p: POp, comm: Comm, sources: Sequence[_Unit], targets: Sequence[_Unit]) -> None:
        b, origin = self.b, self.body.tensors[p.output].origin
        ins = [(u.devices[0], b._port(self.body, p.inputs[0], u.rank)) for u in sources]
        outs = [(u.devices[0], b._port(self.body, p.output, u.rank)) for u in targets]
        inputs, outputs = b._uniform(ins), b._uniform(outs)
        together = {u.devices[0]: u for u in (*sources, *targets)}
        members = [together[g] for g in sorted(together)]
        devices = tuple(g for u in members for g in u.devices)
        step = f"{self.place.prefix}_{slug(p.name)}"
        notes = b.routed_note(self.body, p.output, targets[0].rank)
        if comm.kind == "transfer":
            ends = (
                runtime.short(runtime.gpu_text(tuple(g for u in side for g in u.devices)))
                for side in (sources, targets)
            )
            notes = [*notes, " → ".join(ends)]
        elif b.detail != "full" and b.mesh.degree(comm.axes) < len(devices):
            notes = [*notes, f"in groups of {int(b.mesh.degree(comm.axes))}"]
        moved = " → ".join(d for d in (comm.src_dim, comm.dst_dim) if d)
        node = DagNode(
            id=f"{step}__g{devices[0]}", step=step, row=b.row, role="comm",
            operator=f"{comm_word(comm)} {origin}" + (f" · {moved}" if moved else ""),
            module=self.place.module(f"{self._module(origin)}.{comm.kind}"), kernel=comm.kind, devices=devices,
            inputs=tuple(inputs),
            outputs=tuple(outputs), device_text=runtime.gpu_text(devices, len(devices) == b.world),
            global_dims=b._global(inputs, outputs),
            notes=tuple(notes), spans=tuple(u.devices[0] for u in members), frame=self.place.frame,
            repeats=self.place.repeats,
            layers=layers_text(self.place.layers), batch_items=tuple(self._items(p.inputs[0], u.rank) for u in sources),
        )  # fmt: skip
        if self._carries_selection(p):
            node = self._with_selection(node, p, sources, targets)
        b.nodes.append(node)
        for u, (_, port) in zip(sources, ins, strict=True):
            self._read(node.id, p.inputs[0], u, port)
        for u, (_, out) in zip(targets, outs, strict=True):
            self.env[(p.output, u.devices[0])] = (node.id, out)

    # The gate's choice travels with the tokens: all-to-all carries both, and each device sorts what it receives by its
    # own experts. So dashed lines lead from every gate to the routing of every expert on every device.

    def _selection(self) -> str:
        op = next(q for q in self.body.ops if q.op is not None and q.op.kind == "dispatch")
        return op.inputs[1]

    def _with_selection(self, node: DagNode, p: POp, sources: Sequence[_Unit], targets: Sequence[_Unit]) -> DagNode:
        before = next((q for q in self.body.ops if q.output == p.inputs[0] and self._carries_selection(q)), None)
        name = self._selection() if before is None else before.output
        ids = [
            (u.devices[0], self.b._port(self.body, name, u.rank) if before is None else self._chosen(before, u))
            for u in sources
        ]
        got = [(u.devices[0], self._chosen(p, u)) for u in targets]
        for u, (_, port) in zip(sources, ids, strict=True):
            self.b._join(self.env[(name, u.devices[0])][0], node.id, port, u.devices[0], dashed=True)
        inputs, outputs = (*node.inputs, *self.b._uniform(ids)), (*node.outputs, *self.b._uniform(got))
        return replace(node, inputs=inputs, outputs=outputs, global_dims=self.b._global(inputs, outputs))

    def _chosen(self, p: POp, u: _Unit) -> Port:
        return Port("selection", self.b._port(self.body, p.output, u.rank).dims[:2], self.b.index_bytes)

    def _receive(self, p: POp, u: _Unit) -> None:
        source, port = self.env[(p.output, u.devices[0])]
        chosen = self._chosen(p, u)
        lo, hi = self.b.range("experts", self.body.layout(p.output), u.rank)
        step = POp(f"{p.output}_route", (p.output,), p.output, op=None, comm=p.comm)
        notes = self.b.routed_note(self.body, p.output, u.rank)
        node = self._node(
            step,
            u,
            "routing",
            f"expert routing: received tokens to experts {lo}-{hi - 1}",
            "mlp.experts.route",
            "",
            [port, chosen],
            port,
            notes,
        )
        self.b._join(source, node.id, port, u.devices[0])
        self.b._join(source, node.id, chosen, u.devices[0], dashed=True)


def _flops(p: POp, operands: Sequence[Port]) -> float:
    """2 x the product of all dims of a matmul's operands on one device."""
    if p.op is None or p.op.kind != "einsum":
        return 0.0
    dims: dict[str, int] = {}
    for port in operands:
        for d, n in port.dims:
            dims[d] = min(n, dims.get(d, n))
    return 2.0 * prod(dims.values())


# ------------------------------------------------------------------------ wording


def role_of(op: Op) -> Role:
    if op.kind in ROUTING_KINDS:
        return "routing"
    if op.module.startswith("self_attn") and "residual" not in op.module:
        return "attention"
    return "moe" if op.module == "mlp.gate" or op.module.startswith(("mlp.experts", "mlp.shared")) else "compute"


def comm_word(comm: Comm) -> str:
    """`all-reduce (sum)`"""
    word = COMM_WORDS.get(comm.kind, comm.kind.replace("_", "-"))
    return f"{word} ({comm.reduce})" if "reduce" in comm.kind else word


def word_of(op: Op) -> str:
    """What the operator does, in a word or two."""
    if op.kind == "norm":
        return op.fn
    if op.kind.endswith("_grad"):
        return f"{op.fn or op.kind.removesuffix('_grad').replace('_', ' ')} backward"
    if op.kind == "elementwise":
        return "residual add" if op.fn == "add" and "residual" in op.module else op.fn
    if op.kind == "mask":
        reach = next((f", {k} {op.attrs[k]}" for k in ("window", "chunk") if op.attrs.get(k)), "")
        return f"{op.fn} mask{reach}"
    return WORDS.get(op.kind) or op.fn or op.kind


def _frame_title(layers: Sequence[int], repeat: int, pattern: int) -> str:
    span = f"layers {layers_text(layers)}" if len(layers) > 1 else f"layer {layers[0]}"
    return f"{span} · × {repeat}" + (f" (pattern of {pattern} layers)" if pattern > 1 else "")


def depth_first(body: PBody) -> list[POp]:
    """Steps in a topological order that follows each branch to its end, so that few edges jump over nodes."""
    made = {p.output: i for i, p in enumerate(body.ops)}
    waits = [{made[n] for n in p.inputs if n in made} for p in body.ops]
    order: list[int] = []
    done: set[int] = set()
    todo = list(range(len(body.ops)))
    while todo:
        ready = [i for i in todo if waits[i] <= done]
        last = order[-1] if order else None
        chosen = next((i for i in ready if last in waits[i]), ready[0])
        order.append(chosen)
        done.add(chosen)
        todo.remove(chosen)
    return [body.ops[i] for i in order]
