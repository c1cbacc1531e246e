"""Training step → Dag: forward, loss, backward, gradient reduction and optimizer, on the lanes of all devices.

A layer is drawn twice (three times under full recomputation): in a frame of the forward pass, and in one of the backward
pass, which reads what the forward pass saved. Optimizer frames follow. Stored weights and optimizer states are attributes of
the nodes that read them; under ZeRO-3 a node where a body begins hands out the shards that are gathered for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tools.dag import runtime
from tools.dag.build import COMM_WORDS, Carried, _Builder, _frame_title, _Place, _Unit, _Walk, depth_first
from tools.dag.graph import Dag, DagNode, Detail, Frame, Lane, Port
from tools.dag.text import layers_text
from tools.graph.training import LABELS, TOKEN_WEIGHTS
from tools.partition.lower import PBody, POp, Program, Stage
from tools.partition.train import TrainBody, TrainProgram, TrainRun, TrainStage, after
from tools.spec.base import ToolError

Env = dict[tuple[str, int], tuple[str, Port]]
"""(tensor, lane) → the node that holds it, and its port."""
SCALAR = "scalar"


def train_dag(program: TrainProgram, *, detail: Detail = "full", title: str | None = None) -> Dag:
    """The DAG of one training step on all replicas. Raises ToolError if the program has no sizes, or for a view that a
    training step has not."""
    missing = [d for d in ("batch_size", "seq_len", "kv_len") if d not in program.sizes]
    if missing:
        raise ToolError(f"a DAG needs the length of {missing}; lower with all_sizes(batch_size=…, seq_len=…, kv_len=…)")
    if detail not in ("full", "group"):
        raise ToolError(f"a training step has no {detail} view; use full, group, or schedule")
    return _TrainBuilder(program, detail).step(title)


@dataclass(slots=True)
class _Pass:
    """A body on its way: the tensors of its forward pass."""

    stage: TrainStage
    body: TrainBody
    place: _Place
    env: Env


class _TrainBuilder(_Builder):
    def __init__(self, program: TrainProgram, detail: Detail):
        one = program.strategy.model_copy(update={"dp": 1})
        super().__init__(Program(program.model, one, "prefill", program.mesh, (), program.sizes), detail, False)
        self.train, self.world = program, program.strategy.num_devices
        self.orders = program.placement.orders
        self.whole[SCALAR] = self.sizes[SCALAR] = 1
        self.whole["batch_size"] *= program.options.micro_batches
        self.lanes_of = {s.index: self._train_units(s) for s in program.stages}
        self.passes: list[_Pass] = []
        self.handed: set[tuple[int, str]] = set()
        """(body, weight) that is moved before use, so that what is stored is a shard of what is used."""

    def _train_units(self, stage: TrainStage) -> list[_Unit]:
        if self.detail == "full":
            return [_Unit(i, (g,)) for i, g in enumerate(stage.ranks)]
        return [_Unit(0, stage.ranks)]

    # ------------------------------------------------------------------------ the step

    def step(self, title: str | None) -> Dag:
        p = self.train
        for i, chunks in enumerate(p.on_ranks):
            held = f" · chunks {', '.join(str(c.index) for c in chunks)}" if len(chunks) > 1 else ""
            for u in self.lanes_of[chunks[0].index]:
                text = f"{runtime.short(runtime.gpu_text(u.devices))} · stage {i}{held}"
                self.lanes.append(Lane(u.devices[0], text, u.devices, i))
        feeds = self._inputs()
        carried: Carried = {}
        for stage in p.stages:
            carried = self._forward(stage, feeds, carried)
        loss = carried
        grads: dict[tuple[int, str], Env] = {}
        back = {lane: (node, replace(port, tensor="grad(loss)")) for lane, (node, port) in loss.items()}
        for at in reversed(range(len(self.passes))):
            back = self._backward(self.passes[at], back, grads)
        self._output(loss, self._optimizer(grads))
        s = p.strategy
        head = title or f"{p.model.name} · train · {s.label(p.model.moe is not None)} · {p.options.label()}"
        return Dag(
            head, self._words(), self.detail, tuple(self.nodes), tuple(self.edges), tuple(self.lanes), tuple(self.frames),
            self._facts(),
        )  # fmt: skip

    def _words(self) -> str:
        o, n = self.train.options, self.sizes
        text = f"batch_size={n['batch_size']}, seq_len={n['seq_len']} · {self.world} GPUs · one step"
        return text + (f" of {o.micro_batches} micro-batches, one drawn" if o.micro_batches > 1 else "")

    def _facts(self) -> dict[str, str]:
        p = self.train
        used = {d for n in self.nodes for port in (*n.inputs, *n.outputs, *n.weights) for d, _ in port.dims}
        return {
            "model": p.model.name, "strategy": p.strategy.label(p.model.moe is not None), "options": p.options.label(),
            "phase": "train", "detail": self.detail, "num_hidden_layers": str(p.model.num_hidden_layers),
            "num_devices": str(self.world), "num_replicas": "1", "drawn_replicas": "1",
            "sizes": ", ".join(f"{d}={n}" for d, n in self.whole.items() if d in used), "digest": p.digest(),
        }  # fmt: skip

    # ------------------------------------------------------------------------ ends

    def _tokens(self, name: str, times: int = 1) -> Port:
        dims = (("batch_size", self.sizes["batch_size"] * times), ("seq_len", self.sizes["seq_len"]))
        return Port(name, dims, 4.0 if name == TOKEN_WEIGHTS else self.index_bytes)

    def _inputs(self) -> Env:
        """Token ids to the first stage, labels and token weights to the last."""
        p, o = self.train, self.train.options
        everyone = tuple(range(self.world))
        names = ("ids", LABELS, TOKEN_WEIGHTS)
        whole = [self._tokens(n, o.micro_batches) for n in names]
        source = self._io(
            "total_input",
            "total input · token ids, labels, token weights",
            "model.input",
            "io",
            everyone,
            (whole, whole),
        )
        if o.micro_batches > 1:
            source = self._micro(source, whole, [self._tokens(n) for n in names], everyone)
        first, last = p.stages[0], p.stages[-1]
        assert first.embed is not None and last.loss is not None
        env: Env = {}
        for stage, body, wanted in ((first, first.embed, names[:1]), (last, last.loss, names[1:])):
            for name in wanted:
                env |= self._deal(stage, body.forward, name, source)
        return env

    def _micro(
        self, source: DagNode, whole: Sequence[Port], part: Sequence[Port], everyone: tuple[int, ...]
    ) -> DagNode:
        times = self.train.options.micro_batches
        node = self._io(
            "split_micro",
            f"split: {times} micro-batches",
            "model.input.micro_batches",
            "routing",
            everyone,
            (whole, part),
            ["one after the other; one is drawn, gradients are added up"],
        )
        for port in whole:
            self._join(source.id, node.id, port)
        return node

    def _deal(self, stage: TrainStage, body: PBody, name: str, source: DagNode) -> Env:
        """Each rank's part of the tokens; a split node where they differ."""
        units, whole = self.lanes_of[stage.index], self._tokens(name)
        ports = {u.devices[0]: replace(self._port(body, name, u.rank), tensor=name) for u in units}
        if any(port.dims != whole.dims for port in ports.values()):
            axes = " and ".join(f"{d} over {self._axis_names(a)}" for d, a in body.layout(name).split)
            outputs = self._uniform([(u.devices[0], ports[u.devices[0]]) for u in units])
            node = self._io(
                f"split_{name}", f"split {name}: {axes}", f"model.input.{name}", "routing",
                tuple(g for u in units for g in u.devices), ([whole], outputs), lanes=[u.devices[0] for u in units],
            )  # fmt: skip
            self._join(source.id, node.id, whole)
            source = node
        return {(name, lane): (source.id, port) for lane, port in ports.items()}

    def _output(self, loss: Carried, weights: Sequence[tuple[str, Port, int]]) -> None:
        """The step ends when every rank has its new weights; the loss is reported."""
        everyone = tuple(range(self.world))
        value = next(iter(loss.values()))[1]
        ports = list({(q.tensor, q.dims): q for _, q, _ in weights}.values())
        named = [replace(q, tensor=q.tensor) for q in ports]
        node = self._io(
            "aggregate", "aggregation: loss and updated weights", "model.output.aggregate", "routing", everyone,
            ([value, *named], [value]), ["updated weights stay where they are"],
        )  # fmt: skip
        for lane, (src, port) in loss.items():
            self._join(src, node.id, port, lane)
        for src, port, lane in weights:
            self._join(src, node.id, port, lane)
        sink = self._io("total_output", "total output · loss", "model.output", "io", everyone, ([value], [value]))
        self._join(node.id, sink.id, value)

    # ------------------------------------------------------------------------ forward

    def _forward(self, stage: TrainStage, feeds: Env, carried: Carried) -> Carried:
        if stage.index:
            carried = self._pass_on(stage, carried, False)
        tag, units = f"s{stage.index}", self.lanes_of[stage.index]
        bodies: list[tuple[TrainBody, _Place]] = []
        if stage.embed:
            bodies.append((stage.embed, _Place(f"{tag}_embed", "", 1, ())))
        for i, run in enumerate(stage.runs):
            key = f"{tag}_run{i}"
            self._frame(key, run, stage, "")
            for j, body in enumerate(run.bodies):
                layers = run.layers[j :: len(run.bodies)]
                bodies.append((body, _Place(f"{tag}_l{run.layers[j]}", key, run.repeat, layers)))
        if stage.loss:
            bodies.append((stage.loss, _Place(f"{tag}_loss", "", 1, ())))
        for body, place in bodies:
            env: Env = {k: v for k, v in feeds.items() if k[0] in body.forward.inputs}
            env |= {("x", lane): (node, replace(port, tensor="x")) for lane, (node, port) in carried.items()}
            self._walk(stage, body.forward, place, env)
            self.passes.append(_Pass(stage, body, place, env))
            carried = {u.devices[0]: env[(body.forward.output, u.devices[0])] for u in units}
        return carried

    def _frame(self, key: str, run: TrainRun, stage: TrainStage, word: str) -> None:
        title = _frame_title(run.layers, run.repeat, len(run.bodies)) + (f" · {word}" if word else "")
        lanes = tuple(u.devices[0] for u in self.lanes_of[stage.index])
        self.frames.append(Frame(key, title, run.repeat, run.layers, stage.index % len(self.train.on_ranks), lanes))

    def _walk(
        self, stage: TrainStage, body: PBody, place: _Place, env: Env, gates: frozenset[str] = frozenset()
    ) -> None:
        units = self.lanes_of[stage.index]
        walk = _TrainWalk(self, _as_stage(stage), body, place, units, env)
        walk.choices = gates | {op.output for op in body.body.ops if op.kind == "topk"}
        walk.hand_out()
        for p in depth_first(body):
            self.row += 1
            walk.step(p)

    def _pass_on(self, stage: TrainStage, carried: Carried, back: bool) -> Carried:
        """Across a stage boundary, rank to rank: the residual stream, or its gradient the other way."""
        self.row += 1
        out: Carried = {}
        here, before = self.lanes_of[stage.index], self.lanes_of[stage.index - 1]
        by_device = {u.devices[0]: u for u in (*here, *before)}
        pairs = (
            [(by_device[a], by_device[b]) for a, b in stage.receives]
            if self.detail == "full"
            else [(before[0], here[0])]
        )
        for a, b in ((b, a) for a, b in pairs) if back else pairs:
            node_id, port = carried[a.devices[0]]
            moved = port if back else replace(port, tensor="x")
            ends = (stage.index, stage.index - 1) if back else (stage.index - 1, stage.index)
            step = f"p2p_{'grad_' if back else ''}s{ends[0]}_s{ends[1]}"
            text = runtime.short(runtime.gpu_text(a.devices)), runtime.short(runtime.gpu_text(b.devices))
            node = DagNode(
                id=f"{step}__g{a.devices[0]}", step=step, row=self.row, role="comm", operator=COMM_WORDS["p2p"],
                module=f"model.pipeline.stage{ends[0]}_to_stage{ends[1]}", kernel="p2p",
                devices=(*a.devices, *b.devices), inputs=(moved,), outputs=(moved,),
                device_text=runtime.gpu_text((*a.devices, *b.devices)), global_dims=self._global([moved]),
                spans=(b.devices[0],), notes=(f"{text[0]} → {text[1]}",),
            )  # fmt: skip
            self.nodes.append(node)
            self._join(node_id, node.id, moved, a.devices[0])
            out[b.devices[0]] = (node.id, moved)
        return out

    # ------------------------------------------------------------------------ backward

    def _backward(self, was: _Pass, back: Carried, grads: dict[tuple[int, str], Env]) -> Carried:
        stage, body, units = was.stage, was.body, self.lanes_of[was.stage.index]
        if next(iter(back)) not in {u.devices[0] for u in units}:
            back = self._pass_on(self.train.stages[stage.index + 1], back, True)
        place = replace(
            was.place, prefix=f"{was.place.prefix}_bwd", frame=f"{was.place.frame}_bwd" if was.place.frame else ""
        )
        if place.frame and place.frame not in {f.key for f in self.frames}:
            run = next(r for i, r in enumerate(stage.runs) if f"s{stage.index}_run{i}" == was.place.frame)
            self._frame(place.frame, run, stage, "backward")
        held, gates = was.env, frozenset(op.output for op in body.forward.body.ops if op.kind == "topk")
        if body.rerun is not None:
            held = {k: v for k, v in was.env.items() if k[0] in body.rerun.inputs}
            self._walk(stage, body.rerun, replace(place, prefix=f"{was.place.prefix}_again"), held)
        env: Env = {k: v for k, v in held.items() if k[0] in body.reads}
        seed = body.backward.inputs[0]
        env |= {(seed, lane): (node, replace(port, tensor=seed)) for lane, (node, port) in back.items()}
        self._walk(stage, body.backward, place, env, gates)
        key = was.place.prefix
        grads[(stage.index, key)] = {
            (w, u.devices[0]): env[(g, u.devices[0])] for w, g in body.grads.items() for u in units
        }
        return {u.devices[0]: env[(body.backward.output, u.devices[0])] for u in units}

    # ------------------------------------------------------------------------ optimizer

    def _optimizer(self, grads: Mapping[tuple[int, str], Env]) -> list[tuple[str, Port, int]]:
        """Update of every body; returns (node, port, lane) of every new weight."""
        out: list[tuple[str, Port, int]] = []
        total = {k: dict(v) for k, v in grads.items()}
        self._tied(total)
        for was in self.passes:
            body, stage = was.body, was.stage
            if not body.update.ops:
                continue
            frame = f"{was.place.frame}_upd" if was.place.frame else ""
            if frame and frame not in {f.key for f in self.frames}:
                run = next(r for i, r in enumerate(stage.runs) if f"s{stage.index}_run{i}" == was.place.frame)
                self._frame(frame, run, stage, "optimizer")
            place = replace(was.place, prefix=f"{was.place.prefix}_upd", frame=frame)
            mine = total[(stage.index, was.place.prefix)]
            env: Env = {}
            wanted = {n.removeprefix("grad(")[:-1] for n in body.update.inputs if n.startswith("grad(")}
            for w in sorted(wanted):
                env |= self._gradient(body, stage, place, w, mine)
            self._walk(stage, body.update, place, env)
            for w in sorted(wanted):
                last = [p.output for p in body.update.ops if body.update.tensors[p.output].origin == after(w)][-1]
                for u in self.lanes_of[stage.index]:
                    node, port = env[(last, u.devices[0])]
                    out.append((node, port, u.devices[0]))
            out += self._dead_ends(body, stage, env)
        return out

    def _dead_ends(self, body: TrainBody, stage: TrainStage, env: Env) -> list[tuple[str, Port, int]]:
        """States that nothing reads further: none as long as every state ends in a weight."""
        read = {n for p in body.update.ops for n in p.inputs}
        loose = [
            p.output for p in body.update.ops
            if p.output not in read and not body.update.tensors[p.output].origin.startswith("next(")
        ]  # fmt: skip
        return [(*env[(n, u.devices[0])], u.devices[0]) for n in loose for u in self.lanes_of[stage.index]]

    def _gradient(self, body: TrainBody, stage: TrainStage, place: _Place, w: str, mine: Env) -> Env:
        """A weight's gradient as the optimizer finds it, added up over micro-batches where there are several."""
        name, times = f"grad({w})", self.train.options.micro_batches
        units = self.lanes_of[stage.index]
        if times == 1:
            return {
                (name, u.devices[0]): (n, replace(q, tensor=name)) for u in units for n, q in [mine[(w, u.devices[0])]]
            }
        self.row += 1
        env: Env = {}
        for u in units:
            src, port = mine[(w, u.devices[0])]
            port = replace(port, tensor=name)
            step = f"{place.prefix}_sum_{w.replace('.', '_')}"
            node = DagNode(
                id=f"{step}__g{u.devices[0]}", step=step, row=self.row, role="compute", operator=f"{name} · accumulate",
                module=place.module(f"{w}.main_grad"), kernel="accumulate", devices=u.devices, inputs=(port,), outputs=(port,),
                device_text=runtime.gpu_text(u.devices), global_dims=self._global([port]), lane=u.devices[0], frame=place.frame,
                repeats=place.repeats, layers=layers_text(place.layers), notes=(f"sum of {times} micro-batches",),
            )  # fmt: skip
            self.nodes.append(node)
            self._join(src, node.id, port, u.devices[0])
            env[(name, u.devices[0])] = (node.id, port)
        return env

    def _tied(self, grads: dict[tuple[int, str], Env]) -> None:
        """A weight that embedding and head share: their gradients are added, across stages by an all-reduce of two."""
        if not self.train.model.tie_word_embeddings:
            return
        w, last = "embed_tokens", len(self.train.stages) - 1
        ends = (grads[(0, "s0_embed")], grads[(last, f"s{last}_loss")])
        self.row += 1
        for u, v in zip(self.lanes_of[0], self.lanes_of[last], strict=True):
            (a, port), (b, other) = (
                replace_name(end[(w, x.devices[0])], f"grad({w})") for end, x in zip(ends, (u, v), strict=True)
            )
            devices = tuple(dict.fromkeys((*u.devices, *v.devices)))
            comm = last > 0
            step = "tied_embeddings"
            node = DagNode(
                id=f"{step}__g{u.devices[0]}", step=step, row=self.row, role="comm" if comm else "compute",
                operator=f"{'all-reduce (sum)' if comm else 'add'} grad({w})", module="model.embed_tokens.tied",
                kernel="all_reduce" if comm else "add", devices=devices, inputs=(port,) if comm else (port, other),
                outputs=(port,), device_text=runtime.gpu_text(devices), global_dims=self._global([port]),
                lane=None if comm else u.devices[0], spans=(u.devices[0], v.devices[0]) if comm else (),
                notes=("embedding and head hold the same weight",),
            )  # fmt: skip
            self.nodes.append(node)
            self._join(a, node.id, port, u.devices[0])
            self._join(b, node.id, other, v.devices[0])
            for end, x in zip(ends, (u, v), strict=True):
                end[(w, x.devices[0])] = (node.id, port)

    # ------------------------------------------------------------------------ sizes

    def _port(self, body: PBody, tensor: str, rank: int) -> Port:
        port = super()._port(body, tensor, rank)
        if (id(body), tensor) in self.handed:
            port = replace(port, tensor=f"shard({tensor})")
        return port if port.dims else replace(port, dims=((SCALAR, 1),))

    def _axis_names(self, axes: tuple[str, ...]) -> str:
        """As everywhere, with dp first."""
        dp = tuple(a for a in axes if a in self.mesh.shape.axis("dp"))
        rest = tuple(a for a in axes if a not in dp)
        if not dp:
            return super()._axis_names(axes)
        whole = dp == self.mesh.shape.axis("dp")
        said = f"{'' if whole else 'part of '}dp({int(self.mesh.degree(dp))})"
        return f"{said}·{super()._axis_names(rest)}" if rest else said


def replace_name(at: tuple[str, Port], tensor: str) -> tuple[str, Port]:
    return at[0], replace(at[1], tensor=tensor)


def _as_stage(stage: TrainStage) -> Stage:
    """What the walk asks of a stage: its ranks."""
    return Stage(stage.index, stage.ranks, None, (), None)


@dataclass(slots=True)
class _TrainWalk(_Walk):
    b: _TrainBuilder
    choices: frozenset[str] = field(default_factory=frozenset)
    """Tensors that are the gate's selection."""

    def hand_out(self) -> None:
        """Stored weights that are moved before use (gathered or sliced) get a node that hands them out as the body begins."""
        made = {p.output for p in self.body.ops}
        moved = [p.inputs[0] for p in self.body.ops if p.comm is not None and p.inputs[0] not in made]
        weights = [n for n in dict.fromkeys(moved) if self.body.spec(n).kind == "weight"]
        if not weights:
            return
        self.b.handed |= {(id(self.body), n) for n in weights}
        self.b.row += 1
        first = self.units[0].devices[0]
        start = next(n for n in self.body.inputs if (n, first) in self.env)  # backward: the output's gradient
        for u in self.units:
            lane = u.devices[0]
            source, port = self.env[(start, lane)]
            outputs = tuple(self.b._port(self.body, n, u.rank) for n in weights)
            step = f"{self.place.prefix}_hand_out"
            node = DagNode(
                id=f"{step}__g{lane}", step=step, row=self.b.row, role="routing", operator="split: parameter shards to gather",
                module=self.place.module("parameters"), kernel="", devices=u.devices, inputs=(port,), outputs=outputs,
                device_text=runtime.gpu_text(u.devices), global_dims=self.b._global([port], outputs), lane=lane,
                frame=self.place.frame, repeats=self.place.repeats, layers=layers_text(self.place.layers),
                shards=tuple((n, self._shard(n, u.rank)) for n in weights), notes=(f"begins with {port.tensor}",),
            )  # fmt: skip
            self.b.nodes.append(node)
            self.b._join(source, node.id, port, lane)
            for n, out in zip(weights, outputs, strict=True):
                self.env[(n, lane)] = (node.id, out)

    def _is_weight(self, tensor: str) -> bool:
        return self.body.spec(tensor).kind == "weight" and (tensor, self.units[0].devices[0]) not in self.env

    def _from_gate(self, tensor: str) -> bool:
        return self.body.tensors[tensor].origin in self.choices

    def _carries_selection(self, p: POp) -> bool:
        if p.comm is None or p.comm.kind != "all_to_all":
            return False
        origin = self.body.tensors[p.output].origin
        return any(op.output == origin and op.kind == "dispatch" for op in self.body.body.ops)
