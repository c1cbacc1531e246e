"""Backward bodies, derived from forward bodies operator by operator.

`backward(body)` walks the forward operators from the last to the first. Each has a rule in `VJPS` that writes the operators
of its vector-Jacobian product; where several consumers read a tensor their gradients are added. The gradient of `x` is
`grad(x)`, has the dims of `x`, and is the gradient of the *whole* model's loss: who holds which part of it, and which sums
are still pending, is for the layouts to say (tools/partition/train.py), as for every other tensor.

What the backward pass reads of the forward pass is either saved or made again. Tensors that live inside a kernel never
reach memory, so the backward kernel makes them again from what the kernel read (FlashAttention, arXiv 2205.14135).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from tools.graph.ir import Body, DTypeRole, Op, OpKind, Tensor
from tools.spec.base import Refused

KEPT_KINDS = frozenset({"reduce", "as_keys", "topk"})
"""Kinds whose results are kept even inside a kernel: row statistics and choices are small, and keys are only a name."""
CONSTANT = frozenset({("reduce", "max"), ("elementwise", "maximum"), ("topk", ""), ("argmax", "")})
"""Operators that pass no gradient: choices, and maxima that are subtracted again before they matter."""


@dataclass(frozen=True, slots=True)
class Backward:
    """A backward body and what its tensors are gradients of.

    `body.inputs`: the output's gradient, then the forward tensors that are saved for it. `grads`: weight → its gradient.
    `of`: tensor of the body → forward tensor whose gradient, or whose summand of a gradient, it is.
    """

    body: Body
    forward: Body
    grads: Mapping[str, str]
    of: Mapping[str, str]

    @property
    def saved(self) -> tuple[str, ...]:
        return self.body.inputs[1:]


def grad(tensor: str) -> str:
    return f"grad({tensor})"


@lru_cache(maxsize=1024)
def _cached(key: _ById, reruns_attention: bool) -> Backward:
    return _Tape(key.body, reruns_attention).derive()


@dataclass(frozen=True, eq=False, slots=True)
class _ById:
    body: Body

    def __hash__(self) -> int:
        return id(self.body)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.body is self.body


def backward(body: Body, *, reruns_attention: bool = True) -> Backward:
    """The backward body of `body`. `reruns_attention` False: scores and probabilities are saved. Raises Refused with the
    operator for what has no rule."""
    return _cached(_ById(body), reruns_attention)


class _Tape:
    def __init__(self, body: Body, reruns_attention: bool):
        self.body, self.reruns_attention = body, reruns_attention
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = {}
        self.of: dict[str, str] = {}
        self.parts: dict[str, list[str]] = {}
        self.maker = {op.output: op for op in body.ops}
        self.readers: dict[str, list[Op]] = {}
        for op in body.ops:
            for n in dict.fromkeys(op.inputs):
                self.readers.setdefault(n, []).append(op)

    # ------------------------------------------------------------------------ the walk

    def derive(self) -> Backward:
        body, out = self.body, self.body.output
        seed = grad(out)
        self.tensors[seed] = replace(body.tensors[out], name=seed)
        self.of[seed] = out
        self.parts[out] = [seed]
        for op in reversed(body.ops):
            if op.output in self.parts and (op.kind, op.fn) not in CONSTANT:
                g = self.total(op.output)
                if op.kind not in VJPS:
                    raise Refused(f"{body.name}.{op.name}: no backward rule for operator kind {op.kind}")
                VJPS[op.kind](self, op, g)
        grads = {w.name: self.total(w.name) for w in body.weights() if w.name in self.parts}
        inner = next((n for n in body.inputs if n in self.parts), None)
        last = self.total(inner) if inner else next(iter(grads.values()))
        return Backward(self.program(seed, last), body, grads, dict(self.of))

    def total(self, tensor: str) -> str:
        """The gradient of a tensor: the sum of what its readers contributed."""
        parts = self.parts[tensor]
        while len(parts) > 1:
            name = grad(tensor) if len(parts) == 2 else f"{grad(tensor)}+{len(parts) - 1}"
            made = self.maker.get(tensor)
            kernel = f"{made.kernel}_bwd" if made else "residual_bwd"
            self.op(
                name, "elementwise", (parts[0], parts[1]), tensor, kernel=kernel, fn="add", module=self.module(tensor)
            )
            parts[:2] = [name]
        return parts[0]

    def module(self, tensor: str) -> str:
        return self.maker[tensor].module if tensor in self.maker else self.readers[tensor][0].module

    # ------------------------------------------------------------------------ writing

    def op(
        self, name: str, kind: OpKind, inputs: tuple[str, ...], like: str, *, kernel: str, module: str,
        dims: tuple[str, ...] | None = None, fn: str = "", attrs: Mapping[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """One operator whose output is a gradient of `like`, or (`dims` given) a value on the way to it."""
        t = self.body.tensors[like]
        dtype: DTypeRole = "act" if t.kind == "weight" and dims is None else t.dtype
        routed = t.routed and dims is None
        self.tensors[name] = Tensor(name, dims if dims is not None else t.dims, "activation", dtype, routed)
        self.ops.append(Op(name, kind, inputs, name, kernel, module, fn, dict(attrs or {})))
        if dims is None:
            self.of[name] = like
        return name

    def give(
        self, tensor: str, op: Op, kind: OpKind, inputs: tuple[str, ...], *, fn: str = "", wgrad: bool = False,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Contributes to the gradient of `tensor`, which `op` read, by one operator."""
        if self.body.tensors[tensor].kind == "index":
            return
        kernel = f"{op.kernel}_{'wgrad' if wgrad else 'bwd'}"
        name = self.name_for(tensor, op)
        self.op(name, kind, inputs, tensor, kernel=kernel, module=op.module, fn=fn, attrs=attrs)
        self.parts.setdefault(tensor, []).append(name)

    def pass_on(self, tensor: str, g: str) -> None:
        """The gradient goes through unchanged."""
        if self.body.tensors[tensor].kind != "index":
            self.parts.setdefault(tensor, []).append(g)

    def name_for(self, tensor: str, op: Op) -> str:
        alone = len(self.readers.get(tensor, ())) <= 1 and tensor not in self.parts and tensor != self.body.output
        return grad(tensor) if alone else f"{grad(tensor)}:{op.name}"

    def inner(
        self, op: Op, step: str, kind: OpKind, inputs: tuple[str, ...], dims: tuple[str, ...], like: str, **kw: Any
    ) -> str:
        """A value on the way to a gradient; of the dims and type of nothing in particular."""
        return self.op(
            f"{grad(op.output)}.{step}",
            kind,
            inputs,
            like,
            kernel=f"{op.kernel}_bwd",
            module=op.module,
            dims=dims,
            **kw,
        )

    def reduced(self, tensor: str, op: Op, g: str) -> None:
        """`g` summed over the dims that `tensor` was broadcast along."""
        have, want = self.dims(g), self.dims(tensor)
        if set(have) == set(want):
            self.pass_on(tensor, g)
        else:
            self.give(tensor, op, "sum_to", (g,))

    def dims(self, tensor: str) -> tuple[str, ...]:
        return (self.tensors.get(tensor) or self.body.tensors[tensor]).dims

    def is_index(self, tensor: str) -> bool:
        return self.body.tensors[tensor].kind == "index"

    # ------------------------------------------------------------------------ assembling

    def inside(self, tensor: str) -> bool:
        """Whether a forward tensor lives inside one kernel only, and so is made again rather than saved."""
        op = self.maker.get(tensor)
        if op is None or op.kind in KEPT_KINDS or op.fn == "maximum" or tensor == self.body.output:
            return False
        if op.kernel == "attention" and not self.reruns_attention:
            return False
        return all(r.kernel == op.kernel for r in self.readers.get(tensor, ()))

    def program(self, seed: str, last: str) -> Body:
        """Backward operators in order, what they read of kernels' insides made again just before."""
        ops: list[Op] = []
        tensors = dict(self.tensors)
        saved: dict[str, None] = {}

        def ensure(name: str) -> None:
            if name in tensors:
                return
            if self.inside(name):
                made = self.maker[name]
                for n in made.inputs:
                    ensure(n)
                ops.append(replace(made, kernel=f"{made.kernel}_bwd"))
            elif self.body.tensors[name].kind != "weight":
                saved[name] = None
            tensors[name] = self.body.tensors[name]

        for op in self.ops:
            for n in op.inputs:
                ensure(n)
            ops.append(op)
        return Body(f"{self.body.name}_bwd", tuple(ops), tensors, (seed, *saved), last)


# ------------------------------------------------------------------------------------------- one rule per operator kind


def _einsum(t: _Tape, op: Op, g: str) -> None:
    """The gradient of each factor is the einsum of the output's gradient with the other factor."""
    for i, name in enumerate(op.inputs):
        if t.is_index(name):
            continue
        other = op.inputs[1 - i]
        lost = set(t.dims(name)) - set(t.dims(g)) - set(t.dims(other))
        if lost:
            raise Refused(
                f"{t.body.name}.{op.name}: {name} is summed over {sorted(lost)} alone; no einsum gives its gradient"
            )
        weight = t.body.tensors[name].kind == "weight"
        operands = (other, g) if weight else (g, other)
        t.give(name, op, "einsum", operands, wgrad=weight, attrs={"wgrad": weight})


def _elementwise(t: _Tape, op: Op, g: str) -> None:
    if len(op.inputs) == 1:
        (x,) = op.inputs
        if op.fn == "scale":
            t.give(x, op, "elementwise", (g,), fn="scale", attrs=op.attrs)
        else:
            t.give(x, op, "unary_grad", (g, x), fn=op.fn, attrs=op.attrs)
        return
    a, b = op.inputs[:2]
    match op.fn:
        case "add":
            for n in (a, b):
                t.reduced(n, op, g)
        case "mul":
            for n, other in ((a, b), (b, a)):
                _times(t, op, n, g, other)
        case "exp_sub":
            _times(t, op, a, g, op.output)
        case "div":
            t.give(a, op, "elementwise", (g, b), fn="div")
            _div_by(t, op, b, g)
        case _:
            raise Refused(f"{t.body.name}.{op.name}: no backward rule for elementwise {op.fn}")


def _times(t: _Tape, op: Op, tensor: str, g: str, factor: str) -> None:
    """`g · factor`, summed to the dims of `tensor`."""
    out = t.dims(op.output)
    if set(t.dims(tensor)) == set(out):
        t.give(tensor, op, "elementwise", (g, factor), fn="mul")
        return
    product = t.inner(op, f"times_{factor}", "elementwise", (g, factor), out, op.output, fn="mul")
    t.give(tensor, op, "sum_to", (product,))


def _div_by(t: _Tape, op: Op, total: str, g: str) -> None:
    """d(y / total) / d total = −(y / total) / total."""
    small = t.dims(total)
    product = t.inner(op, "times_out", "elementwise", (g, op.output), t.dims(op.output), op.output, fn="mul")
    summed = t.inner(op, "row", "sum_to", (product,), small, total)
    share = t.inner(op, "share", "elementwise", (summed, total), small, total, fn="div")
    t.give(total, op, "elementwise", (share,), fn="scale", attrs={"c": -1.0})


def _norm(t: _Tape, op: Op, g: str) -> None:
    x, *w = op.inputs[:2]
    for weight in w:
        t.give(weight, op, "norm_weight_grad", (g, x), fn=op.fn, attrs=op.attrs)
    if len(op.inputs) == 3:
        t.give(op.inputs[2], op, "sum_to", (g,))
    t.give(x, op, "norm_grad", (g, x, *w), fn=op.fn, attrs=op.attrs)


def _rms_apply(t: _Tape, op: Op, g: str) -> None:
    x, ssq, w = op.inputs
    t.give(w, op, "rms_weight_grad", (g, x, ssq), attrs=op.attrs)
    t.give(ssq, op, "rms_ssq_grad", (g, x, ssq, w), attrs=op.attrs)
    t.give(x, op, "rms_apply_grad", (g, ssq, w), attrs=op.attrs)


def _sumsq(t: _Tape, op: Op, g: str) -> None:
    (x,) = op.inputs
    twice = t.inner(op, "twice", "elementwise", (g,), t.dims(g), op.output, fn="scale", attrs={"c": 2.0})
    t.give(x, op, "elementwise", (x, twice), fn="mul")


def _reduce(t: _Tape, op: Op, g: str) -> None:
    t.pass_on(op.inputs[0], g)  # a sum's gradient is the same everywhere along the dim: broadcast where it is used


def _softmax(t: _Tape, op: Op, g: str) -> None:
    for sink in op.inputs[1:]:
        t.give(sink, op, "sink_grad", (g, op.output), attrs=op.attrs)
    t.give(op.inputs[0], op, "softmax_grad", (g, op.output), attrs=op.attrs)


def _mask(t: _Tape, op: Op, g: str) -> None:
    if op.fn == "alibi":
        t.pass_on(op.inputs[0], g)
    else:
        t.give(op.inputs[0], op, "mask_grad", (g,), fn=op.fn, attrs=op.attrs)


def _mirror(kind: OpKind) -> Callable[[_Tape, Op, str], None]:
    """Linear operators of one input."""

    def rule(t: _Tape, op: Op, g: str) -> None:
        t.give(op.inputs[0], op, kind, (g,), fn=op.fn, attrs=op.attrs)

    return rule


def _gather_scores(t: _Tape, op: Op, g: str) -> None:
    scores, ids = op.inputs
    if op.fn == "of_experts":
        raise Refused(f"{t.body.name}.{op.name}: no backward rule for a learned scale per expert")
    t.give(scores, op, "gather_scores_grad", (g, ids))


def _renormalise(t: _Tape, op: Op, g: str) -> None:
    t.give(op.inputs[0], op, "renormalise_grad", (g, op.inputs[0]), attrs=op.attrs)


def _dispatch(t: _Tape, op: Op, g: str) -> None:
    """Experts' gradients come home as their outputs do."""
    x, ids = op.inputs[:2]
    sent = next(o.output for o in t.ops if o.kind == "dispatch")
    if op.fn == "scaled":
        t.give(op.inputs[2], op, "route_dot", (x, g, ids), attrs={"dispatched": sent})
    back = (g, ids, *op.inputs[2:])
    t.give(x, op, "combine", back, fn="" if op.fn == "scaled" else "unweighted", attrs={"dispatched": sent})


def _combine(t: _Tape, op: Op, g: str) -> None:
    """The output's gradient goes to the experts as their inputs did; the gate's weights get a product per chosen expert."""
    y, ids = op.inputs[:2]
    weighted = op.fn != "unweighted"
    t.give(y, op, "dispatch", (g, ids, *op.inputs[2:]), fn="scaled" if weighted else "")
    if weighted:
        t.give(op.inputs[2], op, "route_dot", (g, y, ids), attrs={"dispatched": t.parts[y][-1]})


def _embed(t: _Tape, op: Op, g: str) -> None:
    t.give(op.inputs[1], op, "embed_grad", (op.inputs[0], g), wgrad=True)


def _pos_lookup(t: _Tape, op: Op, g: str) -> None:
    t.give(op.inputs[1], op, "pos_grad", (g,), attrs=op.attrs, wgrad=True)


def _pick(t: _Tape, op: Op, g: str) -> None:
    t.give(op.inputs[0], op, "pick_grad", (g, op.inputs[1]))


def _nll(t: _Tape, op: Op, g: str) -> None:
    total, _, target = op.inputs
    t.give(target, op, "elementwise", (g,), fn="scale", attrs={"c": -1.0})
    t.give(total, op, "elementwise", (g, total), fn="div")


VJPS: dict[str, Callable[[_Tape, Op, str], None]] = {
    "einsum": _einsum, "elementwise": _elementwise, "norm": _norm, "rms_apply": _rms_apply, "sumsq": _sumsq, "reduce": _reduce,
    "softmax": _softmax, "mask": _mask, "mask_vocab": _mask, "rope": _mirror("rope_grad"), "as_keys": _mirror("as_keys_grad"),
    "repeat_heads": _mirror("repeat_heads_grad"), "gather_scores": _gather_scores, "renormalise": _renormalise,
    "dispatch": _dispatch, "combine": _combine, "embed": _embed, "pos_lookup": _pos_lookup, "pick": _pick, "nll": _nll,
}  # fmt: skip

__all__: Sequence[str] = ["Backward", "backward", "grad"]
