"""Writes tests/goldens/<name>.json (config, parameter shapes) and <name>.npz (logits) with Hugging Face transformers.

Needs torch and transformers, which the project does not depend on:

    python tests/goldens/make_goldens.py [NAME...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from tests.goldens.configs import CONFIGS  # noqa: E402
from tests.goldens.seeded import PROMPT, draw, token_ids  # noqa: E402

UNCACHED = frozenset({"bamba"})
"""Whose cached decode departs from its own forward pass in transformers 5.23; the forward pass is what counts."""


def fill(model: Any) -> dict[str, list[int]]:
    """Overwrites every parameter and learned buffer; tied ones once. Returns their shapes."""
    shapes: dict[str, list[int]] = {}
    held = dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n in model.state_dict()}
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(torch.from_numpy(draw(name, tuple(tensor.shape))))
            shapes[name] = list(tensor.shape)
    return shapes


def logits_of(model: Any, ids: np.ndarray) -> np.ndarray:
    """[batch, prompt + decode, vocab]: prefill of the prompt, then one token at a time with the carried cache."""
    tokens = torch.from_numpy(ids)
    out = model(tokens[:, :PROMPT], use_cache=True)
    parts, cache = [out.logits], out.past_key_values
    for i in range(PROMPT, tokens.shape[1]):
        out = model(tokens[:, i : i + 1], past_key_values=cache, use_cache=True)
        parts, cache = [*parts, out.logits], out.past_key_values
    return torch.cat(parts, dim=1).double().numpy()


def make(name: str) -> None:
    config = AutoConfig.for_model(**CONFIGS[name])
    config._experts_implementation = "eager"  # the fused expert kernels have no float64
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float64).eval()
    shapes = fill(model)
    ids = token_ids(config.vocab_size)
    with torch.no_grad():
        logits = logits_of(model, ids)
        again = model(torch.from_numpy(ids), use_cache=False).logits.double().numpy()
    logits = again if name in UNCACHED else logits
    spread = float(np.abs(logits - again).max() / np.abs(again).max())
    record = {"config": json.loads(config.to_json_string()), "shapes": shapes, "transformers": transformers.__version__}
    (HERE / f"{name}.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    np.savez_compressed(HERE / f"{name}.npz", ids=ids, logits=logits.astype(np.float32))
    print(f"{name:24} |logits| {np.abs(logits).max():.3g}, cached against whole {spread:.2g}")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CONFIGS:
        make(wanted)
