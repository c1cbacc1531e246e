"""A config.json beside the conditions is the model that reading the file alone gives: every key that decides the graph arrives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.reading import input_from_text, read_conditions
from agent.reading.resolve import resolve
from knowledge.catalog import read_entry
from knowledge.hf_config import model_from_config
from tools.spec.base import Refused, ToolError

CONDITIONS = "8x H200, input 1000 tokens, output 200 tokens, TTFT < 1 s, 10 users"
LINEAR = ("qwen3.5-27b", "nemotron-3-super", "granite-4.0-h-small", "deepseek-v3.2", "gpt-oss-20b", "hunyuan-a13b",
          "gemma-4-31b", "gemma-4-26b-a4b", "mimo-v2-flash", "glm-5.2", "minimax-m3", "gemma-4-e4b",
          "jamba-1.5-mini", "lfm2-8b-a1b", "falcon-h1-0.5b")  # fmt: skip
VISION = {
    "model_type": "vit", "hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16,
    "intermediate_size": 4304, "hidden_act": "gelu",
}  # fmt: skip


ARCHITECTURES = json.loads((Path(__file__).parent / "data" / "architectures.json").read_text())


def attached(config: dict[str, Any]) -> Any:
    files = [input_from_text(json.dumps(config, indent=1), "m/config.json"), input_from_text(CONDITIONS, "c.md")]
    return resolve(read_conditions(files)).model


def told(model: Any) -> dict[str, Any]:
    """All but what it is called and where that stands."""
    return model.model_dump(
        exclude={"name", "sources", "confidence", "max_context", "quant_group", "quantized_experts_only"}
    )


@pytest.mark.parametrize("ident", LINEAR)
def test_an_attached_config_is_the_model_of_the_file(ident: str) -> None:
    config = read_entry("models", ident)["config"]
    assert told(attached(config)) == told(model_from_config(config))


OWN_KEYS: dict[str, dict[str, Any]] = {
    "afmoe": {"mup_enabled": True, "route_scale": 2.4},
    "apertus": {},
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "cohere2_moe": {"shared_expert_combination_strategy": "average", "norm_topk_prob": True},
    "dots1": {},
    "emu3": {},
    "ernie4_5_moe": {"use_bias": True},
    "flint": {},
    "granite_swa": {"layer_rope_theta": [10000.0, 50000.0, 50000.0, 50000.0] * 6},
    "hy_v3": {"router_scaling_factor": 1.9},
    "hyperclovax": {"use_post_norm": False},
    "laguna": {"moe_routed_scaling_factor": 2.0},
    "llama4_text": {"floor_scale": 4096, "attn_scale": 0.2},
    "minicpm3": {"scale_depth": 1.7},
    "qwen3_5_moe": {},
    "solar_open": {},
}


@pytest.mark.parametrize("model_type", sorted(OWN_KEYS))
def test_keys_that_one_family_has_arrive_too(model_type: str) -> None:
    config = {**ARCHITECTURES[model_type]["config"], **OWN_KEYS[model_type]}
    got, want = told(attached(config)), told(model_from_config(config))
    if want["moe_layers"] and all(want["moe_layers"]):
        want["moe_layers"] = got["moe_layers"]  # all of them, said or not
    assert got == want


def test_lists_of_a_config_stay_lists_however_short() -> None:
    """Four layers by name, two and five constants, the places of two layers: none is a range or a choice."""
    falcon = read_entry("models", "falcon-h1-0.5b")["config"] | {"num_hidden_layers": 3}
    lfm = read_entry("models", "lfm2-8b-a1b")["config"] | {"num_hidden_layers": 4}
    by_name = lfm | {"layer_types": ["conv", "full_attention", "conv", "conv"]}
    by_place = {k: v for k, v in lfm.items() if k != "layer_types"} | {"full_attn_idxs": [1, 3]}
    for config in (falcon, by_name, by_place):
        assert told(attached(config)) == told(model_from_config(config))


def test_the_vision_tower_of_a_multimodal_config_says_nothing_of_the_text_tower() -> None:
    text = read_entry("models", "qwen3.5-27b")["config"]
    whole = {
        "model_type": "qwen3_5",
        "architectures": text["architectures"],
        "text_config": text,
        "vision_config": VISION,
    }
    assert told(attached(whole)) == told(model_from_config(whole))


@pytest.mark.parametrize("ident", ["deepseek-v4-flash", "minimax-text-01"])
def test_what_is_refused_by_name_is_refused_when_attached(ident: str) -> None:
    config = read_entry("models", ident)["config"]
    try:
        model = attached(config)
    except (Refused, ToolError):
        return
    assert model.unsupported
