"""The backward pass of ring attention (arXiv 2310.01889 §3) as a named rewrite, the mirror image of `ring.py`.

The forward pass left the final row maxima and sums, so every pair of a query block and a key block can be done alone. Keys
and values travel once more; the gradients of keys and values travel with them and collect a summand on every rank:

    for every rank of the ring:
        keys, values, their gradients so far = those of the neighbour before         (ring_shift, after the first step)
        exps again from the saved maxima, gradients of the scores
        gradient of the queries += …                                                 (stays)
        gradients of keys and values += …                                            (travel)
    the gradients of keys and values shift once more, and are home
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tools.graph.ir import Body, Op
from tools.partition.layout import Comm, Layout
from tools.partition.lower import POp, PTensor, _Lowering
from tools.partition.placement import Placement
from tools.spec.base import Refused

PAIR = {"seq_len", "kv_len"}


def backward_region(body: Body) -> list[Op]:
    """Operators on pairs of a query and a key block, with the copies of KV heads beside them."""

    def pairs(name: str) -> bool:
        return set(body.tensors[name].dims) >= PAIR

    return [
        op
        for op in body.ops
        if op.kernel == "attention_bwd"
        and (pairs(op.output) or any(map(pairs, op.inputs)) or op.kind in ("repeat_heads", "repeat_heads_grad"))
    ]


def unroll_backward(low: _Lowering, region: Sequence[Op]) -> None:
    """Writes all steps into `low`. Raises Refused where an input lies otherwise than the ring needs it."""
    _Steps(low, region).run()


@dataclass(slots=True)
class _Steps:
    low: _Lowering
    region: Sequence[Op]
    totals: dict[str, str] = field(default_factory=dict)
    """Output of the region → its sum over the steps so far."""

    @property
    def placement(self) -> Placement:
        return self.low.placement

    def run(self) -> None:
        body, made = self.low.body, {op.output for op in self.region}
        inputs = dict.fromkeys(n for op in self.region for n in op.inputs if n not in made)
        held = {n: self.at_home(n) for n in inputs if body.tensors[n].kind != "weight"}
        travellers = [n for n in held if "kv_len" in body.tensors[n].dims]
        outside = [op for op in body.ops if op.output not in made]
        results = [n for n in made if n == body.output or any(n in op.inputs for op in outside)]
        home = {n: self.low.layouts[n] for n in travellers}
        for step in range(self.placement.ring):
            if step:
                for n in travellers:
                    held[n] = self.shift(held[n], f"{n}#{step}", n, replace(home[n], rotation=step))
                for n in results:
                    if "kv_len" in body.tensors[n].dims:
                        was = self.totals[n]
                        layout = replace(self.low.tensors[was].layout, rotation=step)
                        self.totals[n] = self.shift(was, f"ring_sent_{n}#{step}", n, layout)
            self.step(step, dict(held), results)
        for n in results:
            if "kv_len" in body.tensors[n].dims:
                self.shift(self.totals[n], n, n, replace(self.low.tensors[self.totals[n]].layout, rotation=0))

    def at_home(self, name: str) -> str:
        t, attention, tokens = self.low.body.tensors[name], self.placement.attention(), self.placement.tokens()
        cache = self.placement.cache()
        want = Layout.of(
            {d: attention.get(d, tokens.get(d, cache["kv_heads"] if d == "kv_heads" else ())) for d in t.dims}
        )
        if self.low.layouts[name] != want:
            words = self.placement.words
            raise Refused(
                f"backward of ring attention: {name} lies {words(self.low.layouts[name])}, the ring needs {words(want)}"
            )
        return self.low.bring(name, want)

    def step(self, step: int, names: dict[str, str], results: Sequence[str]) -> None:
        last = step == self.placement.ring - 1
        for op in self.region:
            inputs = tuple(names.get(n, n) for n in op.inputs)
            out = f"{op.output}#{step}"
            self.emit(replace(op, name=out, inputs=inputs, output=out), op, self.layout(op, step))
            names[op.output] = out
        for n in results:
            mine, stays = names[n], "kv_len" not in self.low.body.tensors[n].dims
            if step == 0:
                self.totals[n] = mine
                continue
            out = n if last and stays else f"ring_sum_{n}#{step}"
            made = next(op for op in self.region if op.output == n)
            add = Op(out, "elementwise", (self.totals[n], mine), out, made.kernel, made.module, "add")
            self.emit(add, made, self.low.tensors[mine].layout)
            self.totals[n] = out

    def layout(self, op: Op, step: int) -> Layout:
        """Queries stay, keys rotate, heads over tp; what is summed over heads here awaits the other heads' ranks."""
        body, attention = self.low.body, self.placement.attention()
        cache, dims = self.placement.cache(), body.tensors[op.output].dims
        axes = {**attention, "batch_size": cache["batch_size"], "kv_heads": cache["kv_heads"]}
        split = {d: axes.get(d, ()) for d in dims}
        used = {a for held in split.values() for a in held}
        lost = {d for n in op.inputs for d in body.tensors[n].dims} - set(dims) - PAIR
        pending = tuple(a for d in sorted(lost) for a in axes.get(d, ()) if a not in used)
        return replace(Layout.of(split, pending), rotation=step if "kv_len" in dims else 0)

    def emit(self, op: Op, made: Op, layout: Layout) -> None:
        low = self.low
        low.ops.append(POp(op.output, op.inputs, op.output, op=op))
        low.tensors[op.output] = PTensor(op.output, made.output, layout, partial="#" in op.output)
        low.layouts[op.output] = layout

    def shift(self, src: str, output: str, origin: str, layout: Layout) -> str:
        low = self.low
        low.ops.append(POp(output, (src,), output, comm=Comm("ring_shift", self.placement.axis("cp"))))
        # A sum on its way is no tensor of the unpartitioned model; keys and values are, wherever they are.
        low.tensors[output] = PTensor(output, origin, layout, partial=output.startswith("ring_sent_"))
        low.layouts[output] = layout
        return output
