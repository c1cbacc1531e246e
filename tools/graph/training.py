"""The bodies of a training step's forward pass: those of `build.py`, without a cache and without sampling, with a loss.

    embed_body (as it is) → train_layer_body … → loss_body: sum over tokens of weight · cross-entropy

Every token carries a weight (1 / number of tokens that count; 0 where a label is padding), so that the loss is a plain sum
over tokens, micro-batches and ranks.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from tools.graph.build import X, head_body, layer_body
from tools.graph.ir import Body, BodyBuilder, Op, Tensor
from tools.spec.model import LayerKind, ModelSpec

TOKENS = ("batch_size", "seq_len")
LABELS, TOKEN_WEIGHTS = "labels", "token_weights"


@lru_cache(maxsize=1024)
def train_layer_body(model: ModelSpec, kind: LayerKind, split_kv: bool = False) -> Body:
    """One transformer layer over whole sequences: keys and values are what the layer has just made."""
    body = layer_body(model, kind, "prefill", False, split_kv)
    renamed = {op.output: op.output.replace("_cache", "_context") for op in body.ops if op.kind == "cache"}

    def rename(op: Op) -> Op:
        kind = "as_keys" if op.kind == "cache" else op.kind
        output = renamed.get(op.output, op.output)
        inputs = tuple(renamed.get(n, n) for n in op.inputs)
        return Op(output, kind, inputs, output, op.kernel, op.module.replace("_cache", "_context"), op.fn, op.attrs)  # type: ignore[arg-type]

    tensors = {
        renamed.get(n, n): replace(t, name=renamed[n], kind="activation", dtype="act") if n in renamed else t
        for n, t in body.tensors.items()
    }
    return Body(
        body.name, tuple(rename(op) for op in body.ops), tensors, body.inputs, renamed.get(body.output, body.output)
    )


@lru_cache(maxsize=256)
def loss_body(model: ModelSpec) -> Body:
    """Final norm, LM head at every position, cross-entropy by parts that a split vocabulary can do: maximum, sum of
    exponentials, the label's logit (Megatron-LM, arXiv 1909.08053 §3)."""
    head = head_body(model, "all")
    inputs = {
        "x": Tensor("x", X), LABELS: Tensor(LABELS, TOKENS, "index", "index"),
        TOKEN_WEIGHTS: Tensor(TOKEN_WEIGHTS, TOKENS, "index", "fp32"),
    }  # fmt: skip
    b = BodyBuilder("loss", inputs)
    b.ops = [op for op in head.ops if op.kind not in ("unpad", "argmax")]
    b.tensors |= {n: t for n, t in head.tensors.items() if t.kind == "weight"}
    b.tensors |= {op.output: head.tensors[op.output] for op in b.ops}
    z = b.ops[-1].output
    wide, vocab = b.tensors[z].dims, b.tensors[z].dims[-1]
    kw = {"kernel": "cross_entropy", "module": "loss", "dtype": "fp32"}
    if vocab == "padded_vocab":
        z = b.op("logits_masked", "mask_vocab", (z,), wide, fn="vocab", attrs={"vocab": model.vocab_size}, **kw)  # type: ignore[arg-type]
    top = b.op("logits_max", "reduce", (z,), TOKENS, fn="max", attrs={"dim": vocab}, **kw)  # type: ignore[arg-type]
    e = b.op("logits_exp", "elementwise", (z, top), wide, fn="exp_sub", **kw)  # type: ignore[arg-type]
    total = b.op("logits_exp_sum", "reduce", (e,), TOKENS, fn="sum", attrs={"dim": vocab}, **kw)  # type: ignore[arg-type]
    target = b.op("label_logit", "pick", (z, LABELS), TOKENS, **kw)  # type: ignore[arg-type]
    nll = b.op("token_loss", "nll", (total, top, target), TOKENS, **kw)  # type: ignore[arg-type]
    return b.build(b.op("loss", "einsum", (nll, TOKEN_WEIGHTS), (), **kw))  # type: ignore[arg-type]
