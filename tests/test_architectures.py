"""Every causal language model of transformers 5.23 has as many parameters as transformers counts, or is refused by name.

`data/architectures.json`: model type → the default config of its class (without what says nothing of the text model) and what
transformers counts for it: parameters, and buffers that are learned (correction biases of a gate); of a multimodal model, of its
text tower. Where a class cannot be built from its own defaults, or these leave open what released configs state, the keys are
stated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from knowledge.hf_config import FAMILIES, model_from_config
from knowledge.hf_refused import NO_DECODER, OTHER_BLOCKS
from tests.parameter_formula import parameter_count
from tools.memory import num_parameters
from tools.oracle.prove import prove
from tools.spec.base import Refused
from tools.spec.strategy import Strategy

TYPES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "architectures.json").read_text())
READ = sorted(t for t, row in TYPES.items() if row["parameters"] != "refused")


def test_the_table_is_the_list_of_transformers_and_none_of_its_types_is_a_guess() -> None:
    assert len(TYPES) == 189
    refused = set(NO_DECODER) | set(OTHER_BLOCKS)
    towers = {t: row["config"].get("text_config", {}).get("model_type") for t, row in TYPES.items()}
    assert not {t for t in TYPES if t not in FAMILIES and t not in refused and towers[t] not in FAMILIES}
    assert {t for t, row in TYPES.items() if row["parameters"] == "refused"} == refused & set(TYPES)


def test_the_readme_says_how_many_there_are() -> None:
    readme = " ".join((Path(__file__).parent.parent / "README.md").read_text().split())
    assert f"Of the {len(TYPES)} causal language models of transformers 5.23, {len(READ)} are read" in readme


@pytest.mark.parametrize("model_type", READ)
def test_the_default_config_has_the_parameters_that_transformers_counts(model_type: str) -> None:
    model = model_from_config(TYPES[model_type]["config"])
    assert model.doubt is None and not model.unsupported
    assert num_parameters(model) == TYPES[model_type]["parameters"]
    assert parameter_count(model)["total"] == TYPES[model_type]["parameters"]


@pytest.mark.parametrize("model_type", sorted(set(TYPES) - set(READ)))
def test_the_others_are_refused_for_what_they_have(model_type: str) -> None:
    reason = NO_DECODER.get(model_type) or OTHER_BLOCKS[model_type]
    try:
        told = " ".join(model_from_config(TYPES[model_type]["config"]).unsupported)
    except Refused as refused:
        told = str(refused)
    assert reason in told or "has an encoder" in told


PROVEN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("afmoe", {"tp": 2, "attn_dp": 2, "ep": 4}),  # a gate beside the queries
    ("apertus", {"tp": 4, "sp": True}),  # an activation with learned scalars
    ("axk1", {"tp": 4, "ep": 4}),  # a norm over what experts add up to
    (
        "bailing_hybrid",
        {"tp": 4, "attn_dp": 2, "ep": 8},
    ),  # Kimi Delta Attention with a bounded decay, gated latent attention
    ("bitnet", {"tp": 5, "sp": True}),  # norms over heads and FFN, which ranks split
    ("bitnet", {"cp": 4}),  # 5 KV heads over 4 ranks: every rank has all of them
    ("cohere2_moe", {"tp": 4, "ep": 2}),  # experts in a parallel block, averaged with the shared ones
    ("kolibri1", {"tp": 2, "ep": 2, "etp": 1}),  # a gate that chooses before its sigmoid
    ("laguna", {"tp": 4, "pp": 2}),  # one gate per head, RoPE of two widths
    ("llama4_text", {"cp": 2, "cp_kind": "ring"}),  # queries that grow with their position
    ("ministral3", {"cp": 2, "tp": 2, "sp": True}),
    ("nanochat", {"tp": 2}),  # norms without weights, of embeddings too
    ("openai-gpt", {"tp": 4, "sp": True, "pp": 2}),  # norms over residual sums
    ("persimmon", {"tp": 8}),  # LayerNorm on queries and keys
)


@pytest.mark.parametrize(("model_type", "degrees"), PROVEN, ids=lambda x: x if isinstance(x, str) else "·".join(x))
def test_new_blocks_are_the_same_numbers_on_many_devices(model_type: str, degrees: dict[str, Any]) -> None:
    model = model_from_config(TYPES[model_type]["config"])
    for proof in prove(model, Strategy.model_validate(degrees), batch_size=8, seq_len=17, decode_steps=2).values():
        assert proof.ok and proof.max_relative_error < 1e-9
