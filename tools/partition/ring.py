"""Ring attention (arXiv 2310.01889) as a named rewrite: keys and values travel, one step per rank of cp.

What one rank attends to in a step has no counterpart in the unpartitioned model, so these tensors are marked `partial`;
what comes out after the last step is the ordinary attention output, which the oracle compares. The steps:

    m, l, o = max, sum and weighted values over the rank's own positions
    for every further rank of the ring:
        keys, values = those of the neighbour before                      (ring_shift: send and receive)
        scores …, m', exps against m', their sum and weighted values
        l, o = l·exp(m − m') + …, o·exp(m − m') + …
    output = o / l

Passing queries (arXiv 2411.01783 §3) turns it round: keys and values stay, queries travel with m, l and o, and after as many
steps as ranks the sums are home. What is sent then grows with the new positions, not with the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tools.graph.ir import Body, Op
from tools.partition.layout import Comm, Layout
from tools.partition.placement import Placement

Emit = Callable[[Op, tuple[str, ...], str, str, Layout], None]
"""(operator, inputs, output, origin that gives the dims, layout of the output)"""
EmitComm = Callable[[Comm, str, str, str, Layout], None]

CHAIN_ENDS = frozenset({"row_max", "exps", "row_sum"})


def ring_region(body: Body) -> tuple[list[Op], list[str]]:
    """(operators of attention after the caches, up to the division that ends it; the keys and values that travel)."""
    region = [op for op in body.ops if op.kernel == "attention" and op.kind not in ("cache", "as_keys")]
    made = {op.output for op in region}
    inputs = dict.fromkeys(n for op in region for n in op.inputs if n not in made)
    return region, [n for n in inputs if "kv_len" in body.tensors[n].dims]


def unroll(body: Body, placement: Placement, emit: Emit, shift: EmitComm, layout_of: Callable[[str], Layout]) -> None:
    """Writes all steps. `layout_of` gives the layout of tensors made before the region."""
    region, keys = ring_region(body)
    made = {op.output for op in region}
    steps = _Steps(body, placement, emit, layout_of, region, made)
    queries = [n for op in region for n in op.inputs if n not in made and "seq_len" in body.tensors[n].dims]
    held = {c: c for c in (dict.fromkeys(queries) if placement.pass_q else keys)}
    way = -1 if placement.pass_q else 1

    def send(name: str, to: str, origin: str, layout: Layout, step: int) -> None:
        shift(Comm("ring_shift", placement.axis("cp")), name, to, origin, replace(layout, rotation=way * step))

    for step in range(placement.ring):
        if step:
            for c in held:
                name = f"{c}#{step}"
                send(held[c], name, c, layout_of(c), step)
                held[c] = name
            if placement.pass_q:
                steps.travel(step, send)
        steps.run(step, held)
    if placement.pass_q:
        steps.travel(0, send)  # home
    steps.finish()


class _Steps:
    def __init__(
        self,
        body: Body,
        placement: Placement,
        emit: Emit,
        layout_of: Callable[[str], Layout],
        region: Sequence[Op],
        made: set[str],
    ):
        self.body, self.placement, self.emit, self.layout_of = body, placement, emit, layout_of
        self.region, self.made = region, made
        self.top, self.total, self.values = "", "", ""
        self.values_op = region[-1].output
        self.first = {op.output: op for op in region}

    def layout(self, tensor: str, step: int) -> Layout:
        """Queries stay, keys rotate; heads over tp."""
        attention, dims = self.placement.attention(), self.body.tensors[tensor].dims
        batch = self.placement.cache()["batch_size"]
        split = {d: attention.get(d, batch if d == "batch_size" else ()) for d in dims}
        if self.placement.pass_q:
            return replace(Layout.of(split), rotation=-step if "seq_len" in dims else 0)
        return replace(Layout.of(split), rotation=step if "kv_len" in dims else 0)

    def travel(self, step: int, send: Callable[[str, str, str, Layout, int], None]) -> None:
        """Maximum, sum and weighted values go on to the next rank with their queries; home (step 0) without the maximum,
        which nobody needs there."""
        rows = (("top", "row_max"), ("total", "row_sum"), ("values", self.values_op))
        for name, origin in rows if step else rows[1:]:
            to = f"ring_{name}_{'home' if step == 0 else 'arrived'}#{step}"
            send(getattr(self, name), to, origin, self.layout(origin, 0), step)
            setattr(self, name, to)

    def run(self, step: int, held: dict[str, str]) -> None:
        names = dict(held)
        for op in self.region:
            if op.output in ("row_max_sink", "sink_exp", "row_total"):
                continue
            out = f"{op.output}#{step}"
            inputs = tuple(names.get(n, n) for n in op.inputs)
            if op.name == "exps":
                inputs = (inputs[0], self.raise_top(step, names["row_max"]))
            self.emit(op, inputs, out, op.output, self.layout(op.output, step))
            names[op.output] = out
        self.accumulate(step, names["row_sum"], names[self.values_op])

    def raise_top(self, step: int, mine: str) -> str:
        """The maximum so far, and the factor by which what was summed before shrinks."""
        if step == 0:
            self.top = self.with_sink(mine)
            return self.top
        top, shrink = f"ring_max#{step}", f"ring_shrink#{step}"
        self.binary("maximum", (self.top, mine), top, "row_max", step)
        self.binary("exp_sub", (self.top, top), shrink, "row_max", step)
        for name, origin in (("total", "row_sum"), ("values", self.values_op)):
            scaled = f"ring_{name}_scaled#{step}"
            self.binary("mul", (getattr(self, name), shrink), scaled, origin, step)
            setattr(self, name, scaled)
        self.top = top
        return top

    def with_sink(self, mine: str) -> str:
        if "row_max_sink" not in self.first:
            return mine
        self.binary("maximum", (mine, "sinks"), "ring_max#0", "row_max")
        return "ring_max#0"

    def accumulate(self, step: int, total: str, values: str) -> None:
        if step == 0:
            self.total, self.values = total, values
            if "sink_exp" in self.first:
                self.binary("exp_sub", ("sinks", self.top), "ring_sink", "row_sum")
                self.binary("add", (total, "ring_sink"), "ring_total#0", "row_sum")
                self.total = "ring_total#0"
            return
        self.binary("add", (self.total, total), f"ring_total#{step}", "row_sum", step)
        self.binary("add", (self.values, values), f"ring_values#{step}", self.values_op, step)
        self.total, self.values = f"ring_total#{step}", f"ring_values#{step}"

    def binary(self, fn: str, inputs: tuple[str, str], out: str, origin: str, step: int = 0) -> None:
        op = Op(out, "elementwise", inputs, out, "attention", "self_attn.ring", fn)
        self.emit(op, inputs, out, origin, self.layout(origin, step))

    def finish(self) -> None:
        """Hands the sums to the division under the names that the body knows."""
        for name, origin in (
            (self.total, "row_total" if "row_total" in self.first else "row_sum"),
            (self.values, self.values_op),
        ):
            op = Op(origin, "elementwise", (name,), origin, "attention", "self_attn.ring", "scale", {"c": 1.0})
            self.emit(op, (name,), origin, origin, self.layout(origin, 0))
