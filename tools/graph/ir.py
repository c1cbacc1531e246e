"""The intermediate representation: operators over tensors whose dims have names.

A `Body` is a straight-line list of operators (one embedding, one transformer layer, one head); a model is a sequence of
bodies, identical layers being one body repeated. Structure and size are apart: a `Tensor` names its dims, a `Sizes` says
how long each is: an int, or a numpy array with one entry per candidate, so that one walk prices a whole candidate set.

Dims: batch_size seq_len kv_len hidden heads kv_heads d_k ffn experts expert_nodes gate_experts expert_ffn moe_latent
      shared_ffn top_k vocab padded_vocab positions q_lora kv_lora qk_nope qk_rope v_dim lin_heads lin_group lin_dk
      lin_dv lin_rank lin_select conv conv_past
      index_heads index_dim index_k sliding_kv_heads sliding_d_k sliding_v_dim wide_ffn layers layer_input
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Size = int | np.ndarray
Sizes = Mapping[str, Size]

TensorKind = Literal["activation", "weight", "cache", "index"]
DTypeRole = Literal["act", "fp32", "index", "kv", "index_key", "matrix", "expert_matrix", "embedding", "vector"]
"""Which of a plan's dtypes a tensor has: matrices are quantised as the plan says, experts maybe differently, vectors
(norms, biases) and the router never."""

OpKind = Literal[
    "embed", "pos_lookup", "einsum", "elementwise", "norm", "sumsq", "rms_apply", "reduce", "softmax", "mask", "rope", "cache",
    "repeat_heads", "topk", "gather_scores", "assign_copies", "renormalise", "dispatch", "combine", "to_nodes", "from_nodes",
    "select_last",
    "unpad", "argmax", "conv", "recur", "select", "block_max", "of_layer", "part",
    # training: keys without a cache, the loss, backward operators (tools/graph/backward.py), the optimizer
    "as_keys", "mask_vocab", "pick", "nll", "as_keys_grad", "mask_grad", "pick_grad", "unary_grad", "norm_grad", "norm_weight_grad",
    "sum_to", "rms_apply_grad", "rms_ssq_grad", "rms_weight_grad", "softmax_grad", "sink_grad", "rope_grad", "repeat_heads_grad",
    "gather_scores_grad", "renormalise_grad", "route_dot", "embed_grad", "pos_grad", "optimizer",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """Ordered dim names and what the tensor is. `routed`: batch_size x seq_len hold only the tokens routed to each
    expert, an expected top_k/experts of them; on the label the two read `expert_tokens`."""

    name: str
    dims: tuple[str, ...]
    kind: TensorKind = "activation"
    dtype: DTypeRole = "act"
    routed: bool = False


@dataclass(frozen=True, slots=True)
class Op:
    """One operator: reads `inputs` (activations first, then weights), writes `output`.

    `kernel` groups operators that run as one launch; tensors that live only inside a kernel cost no HBM traffic.
    `attrs` are numbers the semantics needs (scale, window, theta); they are no part of the structure.
    """

    name: str
    kind: OpKind
    inputs: tuple[str, ...]
    output: str
    kernel: str
    module: str
    fn: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)


@dataclass(frozen=True, slots=True)
class Body:
    """A straight-line program. `inputs` come from the previous body, `output` goes to the next. Inputs but the first are tensors
    that some body before made and `carries`: they stay as they are until another body makes them anew."""

    name: str
    ops: tuple[Op, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    output: str
    carries: tuple[str, ...] = ()

    def weights(self) -> Iterator[Tensor]:
        return (t for t in self.tensors.values() if t.kind == "weight")

    def consumers(self, tensor: str) -> tuple[Op, ...]:
        return tuple(op for op in self.ops if tensor in op.inputs)


def signature(body: Body) -> tuple[Any, ...]:
    """Structure without numbers: two bodies with equal signatures partition alike."""
    ops = tuple((o.name, o.kind, o.fn, o.inputs, o.output, o.kernel) for o in body.ops)
    tensors = tuple(sorted((t.name, t.dims, t.kind, t.dtype, t.routed) for t in body.tensors.values()))
    return (body.name, ops, tensors, body.inputs, body.output, body.carries)


class BodyBuilder:
    """Writes a body operator by operator; each call returns the name of the tensor it made."""

    def __init__(self, name: str, inputs: Mapping[str, Tensor]):
        self.name = name
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = dict(inputs)
        self.inputs = tuple(inputs)

    def weight(self, name: str, dims: tuple[str, ...], dtype: DTypeRole = "matrix") -> str:
        self.tensors[name] = Tensor(name, dims, "weight", dtype)
        return name

    def op(
        self,
        name: str,
        kind: OpKind,
        inputs: tuple[str, ...],
        dims: tuple[str, ...],
        *,
        kernel: str,
        module: str,
        fn: str = "",
        tensor_kind: TensorKind = "activation",
        dtype: DTypeRole = "act",
        routed: bool = False,
        attrs: Mapping[str, Any] | None = None,
    ) -> str:
        missing = [t for t in inputs if t not in self.tensors]
        if missing:
            raise KeyError(f"{self.name}.{name} reads {missing}, which nothing has written")
        if name in self.tensors:
            raise KeyError(f"{self.name}.{name} is written twice")
        self.tensors[name] = Tensor(name, dims, tensor_kind, dtype, routed)
        self.ops.append(Op(name, kind, inputs, name, kernel, module, fn, dict(attrs or {})))
        return name

    def build(self, output: str, carries: tuple[str, ...] = ()) -> Body:
        return Body(self.name, tuple(self.ops), dict(self.tensors), self.inputs, output, carries)
