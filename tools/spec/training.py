"""How a training step is run, beside the strategy's degrees: sharding of states, recomputation, micro-batches, optimizer."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from tools.spec.base import Frozen, ToolError
from tools.spec.model import DType
from tools.spec.strategy import Strategy


class TrainOptions(Frozen):
    """Options of one training step. Ranks that hold the same part of the weights but see other tokens (dp, attn_dp, cp; edp
    for experts) are the data-parallel ranks of a weight: what ZeRO shards, it deals out over these."""

    zero: Literal[0, 1, 2, 3] = 0
    """0: everything in every replica. 1: optimizer states dealt out; 2: gradients too; 3: parameters too (FSDP)
    (Rajbhandari et al., ZeRO, arXiv 1910.02054)."""
    shard: int | None = None
    """Of the dp replicas, how many share one set of states (hybrid sharding); None: all."""
    reshard_after_forward: bool = True
    """ZeRO-3: gathered parameters are dropped after the forward pass and gathered again for the backward pass."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of reading it. selective: attention's scores and probabilities. full:
    the whole layer from its input (Korthikanti et al., arXiv 2205.05198)."""
    fused_attention: bool = True
    """Attention is one kernel whose backward recomputes scores and probabilities itself (FlashAttention, arXiv 2205.14135);
    False: they are kept, unless recompute says otherwise."""
    micro_batches: int = 1
    """Passes whose gradients are added up before the optimizer steps."""
    schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """1f1b: a stage has at most pp - stage micro-batches in flight; gpipe: all of them."""
    optimizer: Literal["adam", "sgd"] = "adam"
    master_weights: bool = True
    """The optimizer keeps weights of its own in `state_dtype`; the model's are cast from them after each step."""
    state_dtype: DType = "fp32"
    grad_dtype: DType = "fp32"
    """Of accumulated gradients."""
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1

    @model_validator(mode="after")
    def _counts(self) -> TrainOptions:
        for key in ("micro_batches", "shard"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ToolError(f"{key} must be at least 1, got {value}")
        return self

    @property
    def reruns_attention(self) -> bool:
        """Whether the backward pass computes scores and probabilities itself."""
        return self.fused_attention or self.recompute == "selective"

    def shard_degree(self, strategy: Strategy) -> int:
        """Replicas that share one set of states. Raises ToolError unless it divides dp."""
        degree = self.shard or strategy.dp
        if strategy.dp % degree:
            raise ToolError(
                f"shard({degree}) does not divide dp({strategy.dp}): {strategy.dp}/{degree} = {strategy.dp / degree:.3g}"
            )
        return degree

    def label(self) -> str:
        """ "zero3·full·m4": what differs from plain data parallelism, for tables and file names."""
        parts = [f"zero{self.zero}"]
        if self.zero and self.shard:
            parts.append(f"shard{self.shard}")
        if self.recompute != "none":
            parts.append(self.recompute)
        if self.zero == 3 and not self.reshard_after_forward:
            parts.append("keep")
        if self.micro_batches > 1:
            parts.append(f"m{self.micro_batches}")
        if self.optimizer != "adam":
            parts.append(self.optimizer)
        return "·".join(parts)
