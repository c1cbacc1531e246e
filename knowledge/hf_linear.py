"""Linear attention in Hugging Face configs: which layers have it, and its shape."""

from __future__ import annotations

from knowledge.hf_values import Config, Fields
from tools.spec.base import ToolError


def gated_delta(c: Config, f: Fields) -> None:
    """Qwen3-Next and Qwen3.5: Gated DeltaNet, every fourth layer full attention with an output gate."""
    f["attention"]["output_gate"] = c.flag("attn_output_gate", True)
    keys = c.whole("linear_num_key_heads") or 16
    f["linear"] = {
        "kind": "gated_delta",
        "num_key_heads": keys,
        "num_value_heads": c.whole("linear_num_value_heads") or 32,
        "key_dim": c.whole("linear_key_head_dim") or 128,
        "value_dim": c.whole("linear_value_head_dim") or 128,
        "conv_kernel": c.whole("linear_conv_kernel_dim") or 4,
    }
    _groups_divide(c, f)
    interval = c.whole("full_attention_interval") or 4
    f["linear_layers"] = _by_type(c, f) or tuple((i + 1) % interval != 0 for i in range(f["num_hidden_layers"]))
    f["sliding_layers"] = None


def kimi_delta(c: Config, f: Fields) -> None:
    """Kimi-Linear: Kimi Delta Attention, every fourth layer latent attention that does not rotate. Layers are listed from 1."""
    stated = c.mapping("linear_attn_config")
    inner = Config({**stated, **{k: v for k, v in c.data.items() if v is not None}}, c.name)
    heads, dim = inner.whole("linear_num_heads") or stated.get("num_heads"), inner.whole("linear_head_dim")
    dim = dim or stated.get("head_dim") or 128
    f["linear"] = {
        "kind": "kda",
        "num_key_heads": heads or f["attention"]["num_heads"],
        "num_value_heads": heads or f["attention"]["num_heads"],
        "key_dim": dim,
        "value_dim": dim,
        "conv_kernel": inner.whole("linear_conv_kernel_dim", "short_conv_kernel_size") or 4,
        "gate_rank": dim,
    }
    layers, full = f["num_hidden_layers"], stated.get("full_attn_layers")
    listed = tuple(i + 1 not in full for i in range(layers)) if isinstance(full, (list, tuple)) else None
    f["linear_layers"] = listed or _by_type(c, f) or tuple((i + 1) % 4 != 0 for i in range(layers))
    f["sliding_layers"] = None
    if f["attention"]["mla"] and c.flag("mla_use_nope", True):
        f["position"]["rope_layers"] = (False,) * layers


def single_halves(c: Config, f: Fields) -> None:
    """Nemotron-H: every layer is one thing only, Mamba-2, attention without positions, an MLP or routed experts."""
    layers, drawn = f["num_hidden_layers"], _drawn(c)
    if drawn is None or len(drawn) != layers:
        raise ToolError(
            f"{c.name}: {layers} layers need a hybrid_override_pattern of as many of {', '.join(NEMOTRON_LAYERS)} (or "
            f"layers_block_type), got {c.raw('hybrid_override_pattern', 'layers_block_type', 'layer_types')!r}"
        )
    f["linear"] = {
        "kind": "mamba2",
        "num_key_heads": c.whole("n_groups", "mamba_n_groups") or 8,
        "num_value_heads": _stated(c, "mamba_num_heads"),
        "key_dim": c.whole("ssm_state_size") or 128,
        "value_dim": c.whole("mamba_head_dim") or 64,
        "conv_kernel": c.whole("conv_kernel", "mamba_d_conv") or 4,
        "conv_bias": c.flag("use_conv_bias", c.flag("mamba_conv_bias", True)),
    }
    _groups_divide(c, f)
    _refuse_mamba_variants(c, f, ("use_bias", "mamba_proj_bias"))
    f["linear_layers"] = tuple(k == "mamba2" for k in drawn)
    f["mixer_layers"] = tuple(k in ("mamba2", "attention") for k in drawn)
    f["ffn_layers"] = tuple(k in ("mlp", "moe") for k in drawn)
    f["moe"] = f["moe"] if "moe" in drawn else None
    f["moe_layers"] = tuple(k == "moe" for k in drawn) if f["moe"] else None
    if "mlp" not in drawn and f["moe"]:
        f["mlp"] = None
    f["sliding_layers"] = None


NEMOTRON_LAYERS = {"M": "mamba2", "*": "attention", "-": "mlp", "E": "moe"}
NEMOTRON_TYPES = {
    "mamba": "mamba2", "linear_attention": "mamba2", "attention": "attention", "full_attention": "attention",
    "mlp": "mlp", "moe": "moe",
}  # fmt: skip


def _drawn(c: Config) -> list[str] | None:
    """What every layer of a Nemotron-H is, under either spelling; None where it is not said or not known."""
    pattern, types = c.raw("hybrid_override_pattern"), c.raw("layers_block_type", "layer_types")
    if isinstance(pattern, str):
        kinds = [NEMOTRON_LAYERS.get(x) for x in pattern]
    else:
        kinds = [NEMOTRON_TYPES.get(str(x)) for x in types] if isinstance(types, (list, tuple)) else [None]
    return None if None in kinds else [k for k in kinds if k]


def granite_hybrid(c: Config, f: Fields) -> None:
    """Granite-4.0-H: Mamba-2 or attention, then a shared MLP with or without routed experts beside it."""
    layers = f["num_hidden_layers"]
    types = c.sequence("layer_types", layers) or c.sequence("layers_block_type", layers) or ["mamba"] * layers
    linear = tuple(t in ("mamba", "linear_attention") for t in types)
    shared = c.whole("shared_intermediate_size", minimum=0) or 0
    if f["moe"] is None and f["mlp"]:
        f["mlp"]["intermediate_size"] = shared or f["mlp"]["intermediate_size"]
    if str(c.raw("position_embedding_type")) != "rope":
        f["position"].update(kind="none", rotary_dim=None, scaling=None, interleaved=False)
    f["sliding_layers"] = None
    if not any(linear):
        return
    _mamba2(c, f, ("mamba_proj_bias",))
    f["linear_layers"] = linear


def bamba(c: Config, f: Fields) -> None:
    """Bamba: Mamba-2 on all layers but those listed, whose attention rotates half of every head; an MLP after each."""
    layers, full = f["num_hidden_layers"], c.raw("attn_layer_indices")
    if not isinstance(full, (list, tuple)) or not all(isinstance(i, int) and 0 <= i < layers for i in full):
        raise ToolError(
            f"{c.name}: attn_layer_indices must list the layers with attention among {layers}, got {full!r}"
        )
    _mamba2(c, f, ("mamba_proj_bias",))
    f["linear_layers"], f["sliding_layers"] = tuple(i not in full for i in range(layers)), None


def _mamba2(c: Config, f: Fields, biases: tuple[str, ...], inner: int | None = None) -> None:
    """The Mamba-2 layers of configs that name their sizes mamba_…; `inner`: all channels, where mamba_expand does not say."""
    stated = "mamba_d_ssm" if inner else "mamba_expand"
    inner, heads = inner or (c.whole("mamba_expand") or 2) * f["hidden_size"], c.whole("mamba_n_heads") or 128
    dim = None if c.raw("mamba_d_head") == "auto" else c.whole("mamba_d_head")
    dim = dim or inner // heads
    if heads * dim != inner:
        raise ToolError(
            f"{c.name}: mamba_n_heads({heads}) * mamba_d_head({dim}) = {heads * dim}, but {stated} makes it {inner}"
        )
    f["linear"] = {
        "kind": "mamba2",
        "num_key_heads": c.whole("mamba_n_groups") or 1,
        "num_value_heads": heads,
        "key_dim": c.whole("mamba_d_state") or 256,
        "value_dim": dim,
        "conv_kernel": c.whole("mamba_d_conv") or 4,
        "conv_bias": c.flag("mamba_conv_bias", True),
    }
    _groups_divide(c, f)
    _refuse_mamba_variants(c, f, biases)


def beside_attention(c: Config, f: Fields) -> None:
    """Falcon-H1: every layer has attention and Mamba-2 on the same input, and constants in front of and behind everything.
    Constants around attention, which is linear in its values, are folded into what its scores and values are scaled by."""
    _mamba2(c, f, ("mamba_proj_bias", "projectors_bias"), inner=c.whole("mamba_d_ssm"))
    into, each = c.number("ssm_in_multiplier", default=1.0), _numbers(c, "ssm_multipliers", 5)
    f["linear"] |= {
        "scales": tuple(into * x for x in each),
        "out_scale": c.number("ssm_out_multiplier", default=1.0),
        "output_norm": c.flag("mamba_rms_norm"),
    }
    if c.flag("mamba_rms_norm") and c.flag("mamba_norm_before_gate", True):
        f["unsupported"] += ("a norm before the gate of Mamba (mamba_norm_before_gate)",)
    if c.flag("attention_bias") or c.flag("mlp_bias"):
        f["unsupported"] += ("biases beside constants on their projections (attention_bias, mlp_bias)",)
    f["linear_layers"], f["beside_attention"] = (True,) * f["num_hidden_layers"], True
    a, into = f["attention"], c.number("attention_in_multiplier", default=1.0)
    a["scale"] = into**2 * c.number("key_multiplier", default=1.0) * a["head_dim"] ** -0.5
    a["value_scale"] = into * c.number("attention_out_multiplier", default=1.0)
    f["mlp"]["gate_scale"], f["mlp"]["out_scale"] = _numbers(c, "mlp_multipliers", 2)
    f["embed_scale"] = c.number("embedding_multiplier", default=1.0)
    f["logit_scale"] = c.number("lm_head_multiplier", default=1.0)
    f["sliding_layers"] = None


def _numbers(c: Config, key: str, count: int) -> tuple[float, ...]:
    """A list of constants, all 1 where it is not stated."""
    stated = c.raw(key)
    if stated is None:
        return (1.0,) * count
    if (
        not isinstance(stated, (list, tuple))
        or len(stated) != count
        or not all(isinstance(x, (int, float)) for x in stated)
    ):
        raise ToolError(f"{c.name}: {key} must be {count} numbers, got {stated!r}")
    return tuple(float(x) for x in stated)


def jamba(c: Config, f: Fields) -> None:
    """Jamba: Mamba-1 with norms of its own on all but every eighth layer, experts on every second one, no positions."""
    layers = f["num_hidden_layers"]

    def every(what: str, period: int, offset: int) -> tuple[bool, ...]:
        step, first = c.whole(f"{what}_layer_period") or period, c.whole(f"{what}_layer_offset", minimum=0)
        return tuple(i % step == (offset if first is None else first) for i in range(layers))

    drawn = c.sequence("layers_block_type", layers)
    full = tuple(k == "attention" for k in drawn) if drawn else every("attn", 8, 4)
    rank = None if c.raw("mamba_dt_rank") == "auto" else c.whole("mamba_dt_rank")
    f["linear"] = {
        "kind": "mamba1",
        "num_key_heads": 1,
        "num_value_heads": (c.whole("mamba_expand") or 2) * f["hidden_size"],
        "key_dim": c.whole("mamba_d_state") or 16,
        "value_dim": 1,
        "conv_kernel": c.whole("mamba_d_conv") or 4,
        "conv_bias": c.flag("mamba_conv_bias", True),
        "gate_rank": rank or -(-f["hidden_size"] // 16),
    }
    _refuse_mamba_variants(c, f, ("mamba_proj_bias",))
    f["linear_layers"], f["sliding_layers"] = tuple(not x for x in full), None
    f["moe_layers"] = every("expert", 2, 1) if f["moe"] else None


def short_convolutions(c: Config, f: Fields) -> None:
    """LFM2: a gated convolution in the place of attention on the layers that are not listed; its released configs state a width
    of the MLP before two thirds of it are taken."""
    layers = f["num_hidden_layers"]
    types, full = c.sequence("layer_types", layers), c.raw("full_attn_idxs")
    if types is None and not isinstance(full, (list, tuple)):
        raise ToolError(
            f"{c.name}: the config lacks layer_types (conv or full_attention for each of the {layers} layers)"
        )
    f["linear_layers"] = tuple(types[i] == "conv" if types is not None else i not in full for i in range(layers))
    f["linear"] = {
        "kind": "short_conv",
        "num_key_heads": 1,
        "num_value_heads": f["hidden_size"],
        "key_dim": 1,
        "value_dim": 1,
        "conv_kernel": c.whole("conv_L_cache") or 3,
        "conv_bias": c.flag("conv_bias"),
    }
    f["sliding_layers"] = None
    f["tie_word_embeddings"] = c.flag("tie_embedding", f["tie_word_embeddings"])
    if f["moe"]:
        f["moe"]["correction_bias"] = c.flag("use_expert_bias", True)
        return
    width = c.whole("block_ff_dim") or f["mlp"]["intermediate_size"]
    if c.flag("block_auto_adjust_ff_dim", True):
        step = c.whole("block_multiple_of") or 256
        width = int(c.number("block_ffn_dim_multiplier", default=1.0) * int(2 * width / 3))
        width = step * -(-width // step)
    f["mlp"]["intermediate_size"] = width


def _stated(c: Config, key: str) -> int:
    value = c.whole(key)
    if value is None:
        raise ToolError(f"{c.name}: the config lacks {key}; add it (spelled as in Hugging Face's config.json)")
    return value


def _refuse_mamba_variants(c: Config, f: Fields, biases: tuple[str, ...]) -> None:
    if any(c.flag(b) for b in biases):
        f["unsupported"] += (f"biases of the Mamba projections ({biases[0]})",)
    if c.raw("mamba_hidden_act") not in (None, "silu", "swish"):
        f["unsupported"] += (f"Mamba layers with activation {c.raw('mamba_hidden_act')}",)


def _by_type(c: Config, f: Fields) -> tuple[bool, ...] | None:
    types = c.sequence("layer_types", f["num_hidden_layers"])
    return tuple(t == "linear_attention" for t in types) if types is not None else None


def _groups_divide(c: Config, f: Fields) -> None:
    k, v = f["linear"]["num_key_heads"], f["linear"]["num_value_heads"]
    if v % k:
        names = (
            ("mamba heads", "n_groups")
            if f["linear"]["kind"] == "mamba2"
            else ("linear_num_value_heads", "linear_num_key_heads")
        )
        raise ToolError(f"{c.name}: {names[0]}({v}) % {names[1]}({k}) = {v % k}, must be 0")
