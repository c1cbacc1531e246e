"""Attention that differs between layers: heads of full ones and of ones that slide, blocks of positions that some layers pick."""

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
    _borrowed_caches(c, f)
    width = c.whole("hidden_size_per_layer_input", minimum=0)
    if width:
        f["layer_inputs"] = {"width": width}
        rows = c.whole("vocab_size_per_layer_input") or f["vocab_size"]
        if rows != f["vocab_size"]:
            f["unsupported"] += (f"embeddings for every layer of {rows} tokens, the vocabulary has {f['vocab_size']}",)
    if c.raw("use_bidirectional_attention") == "all":
        f["unsupported"] += ("attention in both directions (use_bidirectional_attention)",)


def _borrowed_caches(c: Config, f: Fields) -> None:
    """The last `num_kv_shared_layers` read the keys and values of the last layer of their type before them."""
    layers, count = f["num_hidden_layers"], c.whole("num_kv_shared_layers", minimum=0) or 0
    if not count:
        return
    first, types = layers - count, f["sliding_layers"]
    lent = {max((i for i in range(first) if types[i] == t), default=-1) for t in set(types[first:])}
    if -1 in lent or first < 1:
        raise ToolError(
            f"{c.name}: num_kv_shared_layers({count}) of {layers} layers leaves no layer of each type that makes keys and values"
        )
    f["kv_layers"] = tuple("lent" if i in lent else "own" if i < first else "borrowed" for i in range(layers))
    if c.flag("use_double_wide_mlp"):
        f["borrower_mlp_size"] = 2 * f["mlp"]["intermediate_size"]


def _full_layers(c: Config, sliding: tuple[bool, ...]) -> Config:
    """What `per_layer_config` says of the layers that do not slide, the same for each of them."""
    stated = {
        str(i).lstrip("0") or "0": x for i, x in c.mapping("per_layer_config").items()
    }  # "05", as transformers writes it
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


def minimax_m3(c: Config, f: Fields) -> None:
    """MiniMax-M3: an indexer head per KV head picks blocks of positions, in all but the first layers; norms as Gemma's; the
    clamped SwiGLU everywhere. Keys of the released config, or as transformers spells them."""
    sparse, layers = Config(c.mapping("sparse_attention_config"), c.name), f["num_hidden_layers"]
    types = c.sequence("layer_types", layers)
    drawn = sparse.sequence("sparse_attention_freq", layers)
    own = [t == "minimax_m3_sparse" for t in types] if types else [bool(x) for x in drawn or [0] * layers]
    if any(own):
        f["attention"]["indexer"] = {
            "num_heads": sparse.whole("sparse_num_index_heads") or c.whole("index_n_heads") or 4,
            "head_dim": sparse.whole("sparse_index_dim") or c.whole("index_head_dim") or 128,
            "top_k": sparse.whole("sparse_topk_blocks") or c.whole("index_topk_blocks") or 16,
            "block": sparse.whole("sparse_block_size") or c.whole("index_block_size") or 128,
            "local_blocks": _stated(
                sparse.whole("sparse_local_block", minimum=0), c.whole("index_local_blocks", minimum=0), 1
            ),
        }
        f["indexer_layers"] = None if all(own) else tuple("own" if x else "none" for x in own)
        f["unsupported"] += _other_indexers(sparse, own)
    f["mlp"]["intermediate_size"] = c.whole("dense_intermediate_size") or 12288
    f["mlp"]["activation"] = "swiglu_oai"
    if f["moe"]:
        f["moe"].update(
            activation="swiglu_oai", intermediate_size=c.whole("moe_intermediate_size", "intermediate_size")
        )
    if (c.number("swiglu_alpha", default=1.702), c.number("swiglu_limit", default=7.0)) != (1.702, 7.0):
        f["unsupported"] += ("a clamped SwiGLU with other constants (swiglu_alpha, swiglu_limit)",)
    if c.flag("attention_output_gate"):
        f["unsupported"] += ("an output gate (attention_output_gate)",)


def _other_indexers(sparse: Config, own: list[bool]) -> tuple[str, ...]:
    """What an indexer may be configured for and the graph has not."""
    reasons = []
    if sparse.whole("sparse_init_block", minimum=0):
        reasons.append("first blocks that are always picked (sparse_init_block)")
    if sparse.raw("sparse_score_type") not in (None, "max"):
        reasons.append(f"scores of a block by {sparse.raw('sparse_score_type')} (sparse_score_type)")
    without = sparse.sequence("sparse_disable_index_value", len(own))
    if without is not None and any(x and not off for x, off in zip(own, without, strict=True)):
        reasons.append("values of the indexer's own (sparse_disable_index_value)")
    return tuple(reasons)


def _stated(*values: int | None) -> int:
    return next(v for v in values if v is not None)
