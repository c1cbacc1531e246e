"""config.json of many families → ModelSpec, and what is said about files that cannot be read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parameter_formula import parameter_count

from knowledge.catalog import load_model
from knowledge.hf_config import FAMILIES, model_from_config
from knowledge.hf_refused import NO_DECODER, OTHER_BLOCKS
from tools.cost.estimate import blocks_in_doubt
from tools.memory import kv_bytes_per_token
from tools.partition.lower import lower
from tools.spec.base import Refused, ToolError
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

DATA = Path(__file__).parent / "data" / "hf_configs"
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}


def changed(**changes: Any) -> dict[str, Any]:
    return {k: v for k, v in (LLAMA | changes).items() if v != "drop"}


def read(name: str) -> ModelSpec:
    return model_from_config(json.loads((DATA / f"{name}.json").read_text(encoding="utf-8")), name=name)


# Numbers of parameters of transformers 5.23's own modules for the same config, counted on the meta device.
COUNTED = [
    ("falcon-40b-style", 11_592_704),
    ("gpt-bigcode-style", 15_904_256),
    ("phi-style", 22_807_264),
    ("starcoder2-style", 15_079_424),
    ("stablelm-style", 24_358_912),
    ("granite-style", 18_207_232),
    ("cohere2-style", 18_205_184),
    ("gemma3-style", 31_850_752),
    ("olmo3-style", 24_353_792),
    ("gpt-neo-style", 17_736_704),
    ("gpt-neox-style", 22_799_360),
    ("bloom-style", 17_219_584),
    ("opt-style", 18_268_160),
    ("qwen2-moe-style", 26_327_552),
    ("deepseek-v2-style", 23_943_040),
    ("glm4-style", 24_358_400),
    ("ernie-moe-style", 20_575_762),
    ("exaone4-style", 24_351_744),
    ("granitemoe-style", 71_549_440),
    ("minicpm3-style", 17_470_592),
    ("smollm3-style", 18_207_232),
]


@pytest.mark.parametrize(("name", "parameters"), COUNTED)
def test_families_have_the_parameters_that_their_modelling_code_creates(name: str, parameters: int) -> None:
    assert parameter_count(read(name))["total"] == parameters


def test_every_config_file_of_the_folder_is_counted() -> None:
    assert {p.stem for p in DATA.glob("*.json")} == {name for name, _ in COUNTED}


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_family_reads_a_plain_config(model_type: str) -> None:
    conv = {"layer_types": ["conv", "full_attention"] * 16}
    drawn = {
        "nemotron_h": {"hybrid_override_pattern": "M*-E" * 8, "mamba_num_heads": 64},
        "lfm2": conv,
        "lfm2_moe": conv,
        "bamba": {"attn_layer_indices": [9, 18, 27]},
    }
    config = changed(model_type=model_type, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=512)
    config |= drawn.get(model_type, {})
    model = model_from_config(config)
    assert model.hidden_size == 4096 and model.num_hidden_layers == 32 and len(model.layers()) == 32


def test_falcon_h1_folds_its_constants_into_what_attention_is_scaled_by() -> None:
    config = {
        "model_type": "falcon_h1", "mamba_n_heads": 32, "mamba_d_head": "auto", "mamba_d_ssm": 2048, "mamba_rms_norm": False,
        "attention_in_multiplier": 2.0, "key_multiplier": 0.5, "attention_out_multiplier": 0.25, "ssm_in_multiplier": 4.0,
        "ssm_multipliers": [1.0, 0.5, 2.0, 0.25, 8.0], "mlp_multipliers": [0.5, 0.125], "lm_head_multiplier": 0.25,
    }  # fmt: skip
    m = model_from_config(changed(**config))
    a, lin = m.attention, m.linear
    assert lin and lin.value_dim == 64 and lin.scales == (4.0, 2.0, 8.0, 1.0, 32.0) and not lin.output_norm
    assert a.scale == pytest.approx(2.0 * a.head_dim**-0.5) and a.value_scale == 0.5
    assert m.mlp and (m.mlp.gate_scale, m.mlp.out_scale, m.logit_scale) == (0.5, 0.125, 0.25)
    assert {k.mixer for k in m.layers()} == {"both"}
    assert model_from_config(changed(**config | {"mamba_rms_norm": True})).unsupported  # its norm comes before the gate
    for broken in ({"mlp_multipliers": [1.0]}, {"mamba_d_ssm": 2047}):
        with pytest.raises(ToolError, match=r"mlp_multipliers must be 2 numbers|but mamba_d_ssm"):
            model_from_config(changed(**config | broken))


def test_bamba_lists_the_layers_with_attention() -> None:
    bamba = changed(model_type="bamba", mamba_n_heads=128, attn_layer_indices=[9, 18, 27])
    model = model_from_config(bamba)
    assert [i for i, k in enumerate(model.layers()) if k.mixer == "attention"] == [9, 18, 27]
    assert model.position.rotary_dim == model.attention.head_dim // 2
    for wrong in (None, [32], "9"):
        with pytest.raises(ToolError, match="attn_layer_indices must list"):
            model_from_config(bamba | {"attn_layer_indices": wrong})


def test_lfm2_states_the_width_of_its_mlp_before_it_is_cut_and_where_its_attention_stands() -> None:
    plain = changed(model_type="lfm2", block_ff_dim=6656, block_multiple_of=256, block_ffn_dim_multiplier=1.0)
    with pytest.raises(ToolError, match="lacks layer_types"):
        model_from_config(plain)
    model = model_from_config(plain | {"full_attn_idxs": [2, 5]})
    assert model.mlp.intermediate_size == 4608  # as the weights of LFM2-350M have it
    assert [i for i, k in enumerate(model.layers()) if k.mixer == "attention"] == [2, 5]
    assert model.linear and model.linear.num_value_heads == model.hidden_size
    kept = model_from_config(plain | {"full_attn_idxs": [0], "block_auto_adjust_ff_dim": False})
    assert kept.mlp.intermediate_size == 6656


def test_a_value_listed_for_every_layer_is_that_value_where_all_are_the_same() -> None:
    listed = {"num_experts": 8, "moe_topk": [2] * 32, "moe_intermediate_size": [512] * 32}
    plain = {"num_experts": 8, "moe_topk": 2, "moe_intermediate_size": 512}
    one, other = (model_from_config(changed(model_type="hunyuan_v1_moe", **x), "m") for x in (listed, plain))
    assert one == other and one.moe
    with pytest.raises(ToolError, match="moe_topk must be a whole number"):
        model_from_config(changed(model_type="hunyuan_v1_moe", **plain | {"moe_topk": [2, 4] * 16}), "m")


def test_alternative_spellings_give_the_same_model() -> None:
    spelled = {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": 3072,
        "n_positions": 1024,
        "vocab_size": 50257,
    }
    megatron = {
        "model_type": "gpt2",
        "hidden_size": 768,
        "num_layers": 12,
        "num_attention_heads": 12,
        "ffn_hidden_size": 3072,
        "seq_length": 1024,
        "padded_vocab_size": 50257,
    }
    assert model_from_config(spelled, "a") == model_from_config(megatron, "a")


def test_nested_text_config_is_unwrapped_and_said() -> None:
    outer = {
        "model_type": "some_vl",
        "architectures": ["SomeVL"],
        "text_config": LLAMA,
        "vision_config": {"hidden_size": 8},
    }
    model = model_from_config(outer, "vl")
    assert model.hidden_size == 4096 and model.architecture in ("SomeVL", "LlamaForCausalLM")
    assert any("text_config" in s for s in model.sources)


def test_text_configs_nested_twice_are_found() -> None:
    model = model_from_config({"model_type": "omni", "thinker_config": {"text_config": LLAMA}}, "omni")
    assert model.vocab_size == 128256


def test_released_gemma_3_configs_leave_out_heads_and_vocabulary() -> None:
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34}
    model = model_from_config({"model_type": "gemma3", "text_config": text | {"sliding_window": 1024}}, "gemma-3-4b-it")
    assert parameter_count(model)["total"] == parameter_count(load_model("gemma-3-4b").model)["total"]
    assert sum(k.sliding for k in model.layers()) == 29


def test_minimax_m2_is_no_hybrid_though_it_ships_with_the_type_of_one() -> None:
    config = changed(
        model_type="minimax",
        architectures=["MiniMaxM2ForCausalLM"],
        attn_type_list=[1] * 32,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    model = model_from_config(config)
    assert not model.unsupported and model.attention.qk_norm == "full"
    assert model.moe is not None and model.moe.gate == "sigmoid_topk"


def test_patterns_of_letters_and_windows_of_zero() -> None:
    model = model_from_config(changed(model_type="exaone4", sliding_window=4096, sliding_window_pattern="LLLG"))
    assert [k.sliding for k in model.layers()[:4]] == [True, True, True, False]
    assert not any(k.sliding for k in model_from_config(changed(sliding_window=0)).layers())


def test_first_falcon_40b_configs_do_not_name_their_architecture() -> None:
    config = {
        "model_type": "RefinedWeb",
        "hidden_size": 8192,
        "n_layer": 60,
        "n_head": 128,
        "n_head_kv": 8,
        "vocab_size": 65024,
    }
    model = model_from_config(config, "falcon-40b")
    assert (model.parallel_norms, model.attention.num_kv_heads) == (2, 8)


def test_an_unknown_type_is_read_as_llama_like_with_low_confidence() -> None:
    model = model_from_config(changed(model_type="brandnew", architectures="drop"))
    assert model.confidence == "low" and any("brandnew" in s for s in model.sources)
    assert (model.norm, model.attention.num_kv_heads, model.mlp is not None and model.mlp.gated) == ("rmsnorm", 8, True)


def test_gpt_j_rotates_64_of_256_in_pairs_beside_its_mlp() -> None:
    model = load_model("gpt-j-6b").model
    assert (model.position.rotary_dim, model.position.interleaved, model.block) == (64, True, "parallel")
    assert model.lm_head_bias and not model.attention.qkv_bias and model.mlp is not None and model.mlp.bias


def test_falcon_7b_has_one_norm_and_one_kv_head_and_40b_two_norms_and_eight() -> None:
    small, large = load_model("falcon-7b").model, load_model("falcon-40b").model
    assert (small.parallel_norms, small.attention.num_kv_heads) == (1, 1)
    assert (large.parallel_norms, large.attention.num_kv_heads) == (2, 8)


def test_yarn_of_deepseek_raises_the_scores_by_its_temperature_squared() -> None:
    scale = load_model("DeepSeek-V3").model.attention.scale
    assert scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)


def test_gemma_2_scales_by_its_stated_scalar() -> None:
    assert load_model("gemma-2-27b").model.attention.scale == pytest.approx(144**-0.5)


def test_sliding_windows_follow_the_pattern_of_the_family() -> None:
    gemma3 = load_model("gemma-3-27b").model
    assert sum(k.sliding for k in gemma3.layers()) == 52
    qwen = model_from_config(changed(model_type="qwen2", sliding_window=4096, use_sliding_window=False))
    assert not any(k.sliding for k in qwen.layers())


QUANT: list[tuple[dict[str, Any], tuple[str, int | None]]] = [
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, ("fp8", 128)),
    ({"quant_method": "fp8"}, ("fp8", None)),
    ({"quant_method": "fbgemm_fp8"}, ("fp8", None)),
    ({"quant_method": "awq", "bits": 4, "group_size": 128}, ("int4", 128)),
    ({"quant_method": "gptq", "bits": 8, "group_size": -1}, ("int8", None)),
    ({"quant_method": "mxfp4"}, ("mxfp4", 32)),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, ("nvfp4", 16)),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, ("fp8", None)),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ("int4", 64)),
    ({"quant_method": "compressed-tensors",
      "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}}, ("fp8", None)),
    ({"quant_method": "compressed-tensors",
      "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}}}, ("int4", 32)),
    ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized",
      "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}}}, ("nvfp4", 16)),
]  # fmt: skip


@pytest.mark.parametrize(("quantization", "expected"), QUANT)
def test_quantisation_configs_give_dtype_and_group(quantization: dict, expected: tuple[str, int | None]) -> None:
    model = model_from_config(changed(quantization_config=quantization))
    assert (model.weight_dtype, model.quant_group) == expected


@pytest.mark.parametrize(("stated", "dtype"), [("float16", "fp16"), ("torch.bfloat16", "bf16"), ("float32", "fp32")])
def test_the_plain_dtype_comes_from_torch_dtype(stated: str, dtype: str) -> None:
    assert model_from_config(changed(torch_dtype=stated)).weight_dtype == dtype


BAD = [
    (changed(hidden_size="4096"), "hidden_size must be a whole number", "'4096'"),
    (changed(num_hidden_layers=0), "num_hidden_layers", "got 0"),
    (changed(num_hidden_layers=10**9), "num_hidden_layers", "1000000000"),
    (changed(num_attention_heads=33), "is not whole", "head_dim"),
    (changed(num_key_value_heads=7), "num_key_value_heads(7)", "4.571"),
    (changed(vocab_size=-5), "vocab_size", "-5"),
    (changed(vocab_size="drop"), "lacks vocab_size", "config.json"),
    (changed(hidden_size="drop", num_attention_heads="drop"), "hidden_size", "num_attention_heads"),
    (changed(intermediate_size="drop"), "intermediate_size", "lacks"),
    (changed(rope_theta="ten"), "rope_theta", "'ten'"),
    (changed(rms_norm_eps=float("nan")), "rms_norm_eps", "nan"),
    (changed(tie_word_embeddings="yes"), "tie_word_embeddings", "'yes'"),
    (changed(num_experts=4, num_experts_per_tok=8), "num_experts_per_tok(8)", "4 experts"),
    (changed(num_experts=4), "num_experts_per_tok", "4 experts"),
    (changed(num_experts=10, num_experts_per_tok=2, n_group=3), "n_group(3)", "10 experts"),
    (changed(layer_types=["full_attention"] * 3), "layer_types", "3 entries"),
    (changed(quantization_config={"quant_method": "magic"}), "magic", "quant_method"),
    (changed(quantization_config={"quant_method": "gptq", "bits": 3}), "bits = 3", "4 and 8"),
    (changed(kv_lora_rank=512), "MLA", "v_head_dim"),
    (changed(head_dim=True), "head_dim", "True"),
]


@pytest.mark.parametrize(("config", "part", "value"), BAD)
def test_bad_configs_are_one_line_with_the_value(config: dict, part: str, value: str) -> None:
    with pytest.raises(ToolError) as error:
        model_from_config(config, "m")
    assert part in str(error.value) and value in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("model_type", sorted(NO_DECODER))
def test_models_that_are_no_decoder_are_refused_with_the_reason(model_type: str) -> None:
    with pytest.raises(Refused) as error:
        model_from_config(changed(model_type=model_type))
    assert NO_DECODER[model_type] in str(error.value)


def test_a_model_with_an_encoder_is_refused_whatever_it_is_called() -> None:
    with pytest.raises(Refused, match="has an encoder"):
        model_from_config({"model_type": "brandnew", "is_encoder_decoder": True})


def test_a_refused_model_around_a_known_text_tower_stays_refused() -> None:
    inner = {**LLAMA, "model_type": "llama"}
    with pytest.raises(Refused, match="depth decoder"):
        model_from_config({"model_type": "moshi", "text_config": inner})
    assert "cross-attention" in model_from_config({"model_type": "mllama", "text_config": inner}).unsupported[0]


def test_a_refused_model_whose_keys_are_its_own_is_refused_for_its_blocks_not_for_missing_keys() -> None:
    with pytest.raises(Refused, match="relative positions"):
        model_from_config({"model_type": "cpmant", "hidden_size": 64})


@pytest.mark.parametrize(
    ("stated", "known"), [("AXK1", "axk1"), ("Solar_Open", "solar_open"), ("gpt-neox", "gpt_neox")]
)
def test_a_type_in_another_spelling_is_the_same_type(stated: str, known: str) -> None:
    one, other = (model_from_config(changed(model_type=t), "m") for t in (stated, known))
    assert one == other and one.doubt is None


def test_no_type_is_both_known_and_refused() -> None:
    assert not set(FAMILIES) & (set(NO_DECODER) | set(OTHER_BLOCKS)) and not set(NO_DECODER) & set(OTHER_BLOCKS)


UNSUPPORTED = [
    ({"full_attention_interval": 4, "linear_num_key_heads": 16}, "linear attention"),
    ({"attn_type_list": [0, 1] * 16}, "lightning"),
    ({"index_topk": 2048}, "indexer"),
    ({"layer_types": ["linear_attention", "full_attention"] * 16}, "linear_attention"),
    ({"mamba_d_state": 128}, "Mamba"),
    ({"hidden_act": "swigluoai"}, "swigluoai"),
    ({"hybrid_override_pattern": "M-*-"}, "Mamba"),
    ({"head_dim": 256, "global_head_dim": 512}, "differs from layer to layer"),
    ({"swa_num_key_value_heads": 8}, "differs from layer to layer"),
    ({"attention_k_eq_v": True}, "values that are the keys"),
    ({"sparse_attention_config": {"sparse_topk_blocks": 16}}, "blocks of positions"),
]


@pytest.mark.parametrize(("extra", "reason"), UNSUPPORTED)
def test_layers_without_an_operator_graph_are_named_whatever_the_family(extra: dict, reason: str) -> None:
    for model_type in ("llama", "brandnew"):
        model = model_from_config(changed(model_type=model_type, **extra))
        assert any(reason in r for r in model.unsupported)


@pytest.mark.parametrize("model_type", sorted(OTHER_BLOCKS))
def test_types_with_other_blocks_are_refused_by_name(model_type: str) -> None:
    assert OTHER_BLOCKS[model_type] in model_from_config(changed(model_type=model_type)).unsupported


def test_blocks_that_are_read_by_likeness_are_a_finding() -> None:
    """Shapes that look right may be another family's: the finding gives the count to compare."""
    known = model_from_config(LLAMA, "m")
    assert known.doubt is None and blocks_in_doubt(known) is None
    found = blocks_in_doubt(model_from_config(changed(model_type="brandnew"), "m"))
    assert found and found.severity == "warning" and "'brandnew'" in found.message
    assert f"{parameter_count(known)['total'] / 1e9:.4g} B" in found.message


def test_files_folders_and_broken_files(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    assert load_model(folder).model == load_model(str(folder / "config.json")).model
    assert load_model(folder).model.name == "my-model"
    for content, part in (
        ("{", "no valid JSON"),
        ("[1]", "JSON object"),
        ("", "no valid JSON"),
        ("\x00\xff", "no valid JSON"),
    ):
        (tmp_path / "bad.json").write_text(content, encoding="latin-1")
        with pytest.raises(ToolError, match=part):
            load_model(tmp_path / "bad.json")
    with pytest.raises(ToolError, match="No such file"):
        load_model(tmp_path / "missing.json")


def test_a_folder_named_like_a_model_does_not_hide_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model("gpt2").model.hidden_size == 768
    with pytest.raises(ToolError, match="No such file"):
        load_model("./gpt2")


INNER_KEYS = st.text(max_size=8) | st.sampled_from([
    "rope_type", "type", "factor", "mscale", "mscale_all_dim", "original_max_position_embeddings", "rope_theta",
    "partial_rotary_factor", "attention_factor", "full_attention", "quant_method", "bits", "group_size",
    "config_groups",
    "weight_block_size", "alibi", "kv_n_heads", "weights", "ignore", "short_factor", "long_factor", "alpha",
    "low_freq_factor", "high_freq_factor", "beta_fast", "sliding_attention",
])  # fmt: skip
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**12) | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(INNER_KEYS, inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([
    *LLAMA, "head_dim", "num_experts", "num_experts_per_tok", "sliding_window", "rope_scaling",
    "quantization_config", "layer_types", "kv_lora_rank", "text_config", "n_group", "moe_layers", "mlp_only_layers",
    "rotary_dim", "attn_config", "partial_rotary_factor", "query_pre_attn_scalar", "no_rope_layers",
    "moe_layer_freq", "attn_logit_softcapping", "rope_parameters", "expansion_ratio", "max_position_embeddings",
    "final_logit_softcapping", "attention_multiplier",
])  # fmt: skip


@given(
    st.dictionaries(KEYS, JSON_VALUES, max_size=4),
    st.sampled_from([*sorted(FAMILIES), "brandnew"]),
)
def test_whatever_a_config_holds_the_answer_is_a_model_or_a_tool_error(changes: dict, model_type: str) -> None:
    try:
        model = model_from_config({**LLAMA, "model_type": model_type, **changes})
    except ToolError as error:
        assert str(error)
    else:
        assert len(model.layers()) == model.num_hidden_layers


def test_gemma_4s_full_layers_have_heads_of_their_own() -> None:
    """31B: 32 heads; full layers 4 KV heads of 512 whose values are their keys, sliding ones 16 of 256."""
    model = load_model("gemma-4-31b").model
    full, sliding = model.attentions
    assert (full.num_kv_heads, full.head_dim, full.values_are_keys) == (4, 512, True)
    assert (sliding.num_kv_heads, sliding.head_dim, sliding.values_are_keys) == (16, 256, False)
    assert [k.sliding for k in model.layers()].count(False) == 10 and model.cache_heads == (4, 16)
    assert kv_bytes_per_token(model) == 2 * 2 * (50 * 16 * 256 + 10 * 4 * 512)


def test_mimo_v2s_values_are_narrower_than_its_keys() -> None:
    """MiMo-V2-Flash: keys of 192, values of 128; 9 full layers with 4 KV heads, 39 that slide with 8."""
    model = load_model("mimo-v2-flash").model
    full, sliding = model.attentions
    assert (full.sinks, sliding.sinks, sliding.sliding_window) == (False, True, 129)
    assert kv_bytes_per_token(model) == 2 * (192 + 128) * (9 * 4 + 39 * 8)


def test_a_config_whose_layers_differ_beyond_two_kinds_is_refused() -> None:
    config = {
        "model_type": "gemma4_text", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "vocab_size": 320,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "per_layer_config": {"1": {"head_dim": 24}, "3": {"head_dim": 32}},
    }  # fmt: skip
    with pytest.raises(ToolError, match="per_layer_config"):
        model_from_config(config)


def test_the_last_layers_of_gemma_4_e4b_borrow_keys_and_values() -> None:
    """24 of 42 layers cache: 4 full ones of 2 heads of 512, 20 that slide of 2 heads of 256."""
    model = load_model("gemma-4-e4b").model
    assert [i for i, k in enumerate(model.layers()) if k.kv == "lent"] == [22, 23]
    assert [k.kv for k in model.layers()][24:] == ["borrowed"] * 18
    assert kv_bytes_per_token(model) == 2 * 2 * 2 * (20 * 256 + 4 * 512)
    with pytest.raises(Refused, match="a stage would begin at layer 28"):
        lower(model, Strategy(pp=3), "decode", {})
    lower(model, Strategy(pp=3, layers_per_stage=(10, 12, 20)), "decode", {})
