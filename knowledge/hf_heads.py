"""Attention whose heads differ between layers: full ones, and ones that slide."""

from __future__ import annotations

from collections.abc import Mapping

from knowledge.hf_values import Config, Fields
from tools.spec.base import ToolError


def gemma4(c: Config, f: Fields) -> None:
    """Gemma-4: full layers have heads of another size and number, and their values are their keys where `attention_k_eq_v`
    says so; a norm on values; every layer's output is scaled; experts, where there are some, beside the dense MLP."""
    layers = f["num_hidden_layers"]
    if f["sliding_layers"] is None:
        f["sliding_layers"] = tuple((i + 1) % 6 != 0 for i in range(layers))
    f["sliding_layers"] = (*f["sliding_layers"][:-1], False)  # the last layer attends to everything, whatever is drawn
    own = _full_layers(c, f["sliding_layers"])
    shared = c.flag("attention_k_eq_v")
    f["attention"].update(scale=1.0, value_norm=True)
    f["attention"]["sliding_window"] = f["attention"]["sliding_window"] or 512
    f["sliding_attention"] = dict(f["attention"])
    f["attention"].update(head_dim=own.whole("head_dim") or c.whole("global_head_dim") or 512, values_are_keys=shared)
    if shared:
        kv = own.whole("num_key_value_heads") or c.whole("num_global_key_value_heads")
        f["attention"]["num_kv_heads"] = kv or f["attention"]["num_kv_heads"]
    if not any(f["sliding_layers"]):
        f["sliding_attention"] = None
    f["logit_softcap"], f["embed_scale"] = c.raw("final_logit_softcapping"), f["hidden_size"] ** 0.5
    f["layer_scale"] = True
    if not c.flag("enable_moe_block"):
        f["moe"] = f["moe_layers"] = None
    if f["moe"]:
        f["moe"].update(beside_mlp=True, router_norm=True, expert_scale=True)
    if c.raw("use_bidirectional_attention") == "all":
        f["unsupported"] += ("attention in both directions (use_bidirectional_attention)",)


def _full_layers(c: Config, sliding: tuple[bool, ...]) -> Config:
    """What `per_layer_config` says of the layers that do not slide, the same for each of them."""
    stated = {str(i): x for i, x in c.mapping("per_layer_config").items()}
    said = [stated.get(str(i)) for i, slides in enumerate(sliding) if not slides] if stated else []
    if any(x != said[0] for x in said) or (stated and len(stated) > len(said)):
        raise ToolError(
            f"{c.name}: per_layer_config gives layers of one type different heads; all full layers must be alike, and layers that "
            "slide as the config itself says"
        )
    return Config(said[0] if said and isinstance(said[0], Mapping) else {}, c.name)


def mimo_v2(c: Config, f: Fields) -> None:
    """MiMo-V2: layers that slide have KV heads of their own and a sink in their softmax; values are narrower than keys."""
    layers, a = f["num_hidden_layers"], f["attention"]
    drawn = c.sequence("hybrid_layer_pattern", layers)
    if drawn is not None:
        f["sliding_layers"] = tuple(bool(x) for x in drawn)
    elif f["sliding_layers"] is None:
        f["sliding_layers"] = tuple(i != 0 and (i + 1) % 6 != 0 for i in range(layers))
    reach = c.whole("sliding_window_size")  # positions before the query's own
    a["sliding_window"] = reach + 1 if reach else a["sliding_window"] or 129
    a["v_head_dim"] = c.whole("v_head_dim") or 128
    a["value_scale"] = c.number("attention_value_scale", default=0.707)
    f["sliding_attention"] = {
        **a,
        "num_kv_heads": c.whole("swa_num_key_value_heads") or 2 * a["num_kv_heads"],
        "head_dim": c.whole("swa_head_dim") or a["head_dim"],
        "v_head_dim": c.whole("swa_v_head_dim") or a["v_head_dim"],
        "sinks": c.flag("add_swa_attention_sink_bias", True),
    }
    a["sinks"] = c.flag("add_full_attention_sink_bias")
    heads = c.whole("swa_num_attention_heads") or a["num_heads"]
    if heads != a["num_heads"]:
        f["unsupported"] += (f"layers that slide with {heads} query heads, the others with {a['num_heads']}",)
