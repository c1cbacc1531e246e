"""Typed access to a Hugging Face config, its spellings of one key, and what a family of models fixes in code."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tools.spec.base import ToolError

Fields = dict[str, Any]
Switch = bool | tuple[str, bool]
"""A fixed answer, or (config key, default when the key is absent)."""

HIDDEN = ("hidden_size", "n_embd", "n_embed", "d_model", "dim", "model_dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = (
    "num_key_value_heads",
    "num_kv_heads",
    "n_kv_heads",
    "n_head_kv",
    "multi_query_group_num",
    "num_query_groups",
)
HEAD_DIM = ("head_dim", "kv_channels", "attention_head_dim")
VOCAB = ("padded_vocab_size", "vocab_size", "n_vocab")
FFN = ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim", "hidden_dim", "d_ff", "inner_hidden_size")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "n_ctx")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
TOP_K = (
    "num_experts_per_tok", "experts_per_token", "num_experts_per_token", "moe_k", "moe_topk", "moe_top_k",
    "num_selected_experts", "top_k_experts", "top_k",
)  # fmt: skip
EXPERT_FFN = ("moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size", "expert_intermediate_size")
SHARED_FFN = ("shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size")
SHARED_COUNT = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
EPS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "layernorm_epsilon", "norm_eps")
ACT = ("hidden_act", "hidden_activation", "mlp_hidden_act", "activation_function", "activation")
TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "swiglu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "geglu": "gelu",
    "relu": "relu",
    "relu2": "relu2",
}
MAX_WHOLE = 10**8
MAX_LAYERS = 4096


@dataclass(frozen=True, slots=True)
class Family:
    """What the modelling code of one `model_type` fixes; the config file only says the rest."""

    norm: str = "rmsnorm"
    norm_bias: Switch = False
    norm_offset: float = 0.0
    block: str = "sequential"
    parallel_norms: int = 1
    position: str = "rope"
    interleaved: bool = False
    rotary_fraction: float = 1.0
    learned_offset: int = 0
    qkv_bias: Switch = ("attention_bias", False)
    out_bias: Switch = ("attention_bias", False)
    mlp_bias: Switch = ("mlp_bias", False)
    gated: bool = True
    activation: str = "silu"
    ffn_multiple: int | None = None
    """FFN width over hidden when the config leaves it out; None: it must be stated."""
    qk_norm: str = "none"
    head_dim: int | None = None
    kv_heads: int | None = None
    tie: bool = False
    lm_head_bias: bool = False
    embedding_norm: bool = False
    gate: str = "softmax_topk"
    norm_topk: bool = True
    correction_bias: bool = False
    sliding: bool = True
    """Whether `sliding_window`, when set, is in force without a further switch."""
    draws: frozenset[str] = frozenset()
    """Config keys that stand for blocks with a graph in this family and for nothing known elsewhere."""
    adapt: Callable[[Config, Fields], None] | None = None
    defaults: tuple[tuple[str, Any], ...] = ()
    """Keys that released configs of the family leave out, as the configuration class fills them in."""


class Config:
    """Typed access to a config: a bad value is an error that names the key and shows the value."""

    def __init__(self, data: Mapping[str, Any], name: str):
        self.data = data
        self.name = name

    def raw(self, *keys: str) -> Any:
        """First non-null value among spellings of one key."""
        return next((self.data[k] for k in keys if self.data.get(k) is not None), None)

    def key(self, *keys: str) -> str:
        return next((k for k in keys if self.data.get(k) is not None), keys[0])

    def whole(self, *keys: str, minimum: int = 1, maximum: int = MAX_WHOLE) -> int | None:
        value = self.raw(*keys)
        if value is None:
            return None
        if isinstance(value, (list, tuple)) and value and all(v == value[0] for v in value):
            value = value[0]  # one for every layer, all the same (Hunyuan-A13B)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise ToolError(
                f"{self.name}: {self.key(*keys)} must be a whole number from {minimum} to {maximum}, got {value!r}"
            )
        return value

    def number(self, *keys: str, default: float) -> float:
        value = self.raw(*keys)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ToolError(f"{self.name}: {self.key(*keys)} must be a finite number, got {value!r}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, (bool, int)):
            raise ToolError(f"{self.name}: {key} must be true or false, got {value!r}")
        return bool(value)

    def switch(self, switch: Switch) -> bool:
        return switch if isinstance(switch, bool) else self.flag(*switch)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.raw(key)
        return value if isinstance(value, Mapping) else {}

    def sequence(self, key: str, length: int) -> list[Any] | None:
        """A per-layer list. A longer one is cut (released configs ship such), a shorter one is an error."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or len(value) < length:
            size = len(value) if isinstance(value, (list, tuple)) else repr(value)
            raise ToolError(f"{self.name}: {key} has {size} entries for {length} layers")
        return list(value[:length])
