"""Writes tests/goldens/gradients.json: loss and gradients of Hugging Face models by torch autograd.

Per weight of our graph: the norm of its gradient and its products with two random directions. Needs torch and transformers,
which the project does not depend on:

    python tests/goldens/make_gradients.py [NAME...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from knowledge.hf_config import model_from_config  # noqa: E402
from tests.goldens.mapping import Checkpoint, our_weights  # noqa: E402
from tests.goldens.seeded import draw, token_ids  # noqa: E402

PAGE = HERE / "gradients.json"


class Gradients(Checkpoint):
    """Gradients under the parameters' names: the mapping to our weights only renames, cuts and reshapes."""

    values: Mapping[str, np.ndarray]

    def get(self, name: str) -> np.ndarray:
        self.read.add(name)
        return self.values[name]


def directions(key: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(crc32(key.encode())).normal(size=(2, *shape))


def summary(key: str, g: np.ndarray) -> list[float]:
    """[norm, product with two random directions]"""
    return [float(np.linalg.norm(g)), *(float((g * d).sum()) for d in directions(key, g.shape))]


def task(vocab: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, labels, weight of every token), [batch, tokens] each."""
    ids, rng = token_ids(vocab), np.random.default_rng(11)
    return ids, rng.integers(1, vocab, size=ids.shape), rng.uniform(0.5, 1.5, size=ids.shape) / ids.size


def make(name: str) -> dict[str, object]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.goldens.configs import CONFIGS

    config = AutoConfig.for_model(**CONFIGS[name])
    config._experts_implementation = "eager"  # the fused expert kernels have no float64
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float64).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.Embedding):
            part.padding_idx = None  # else the row of the padding token would get no gradient
    shapes = json.loads((HERE / f"{name}.json").read_text())
    with torch.no_grad():
        held = dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n in model.state_dict()}
        for key, tensor in held.items():
            tensor.copy_(torch.from_numpy(draw(key, tuple(tensor.shape))))
    ids, labels, weights = (torch.from_numpy(x) for x in task(config.vocab_size))
    logits = model(ids, use_cache=False).logits.double()
    nll = -torch.log_softmax(logits, -1).gather(-1, labels[..., None])[..., 0]
    loss = (nll * weights).sum()
    loss.backward()
    spec = model_from_config(shapes["config"], name)
    found = Gradients(shapes["shapes"], shapes["config"]["model_type"], spec)
    found.values = {
        n: p.grad.numpy() if getattr(p, "grad", None) is not None else np.zeros(tuple(p.shape)) for n, p in held.items()
    }
    rows = {f"{layer}/{w}": summary(f"{layer}/{w}", g) for (layer, w), g in our_weights(found).items()}
    return {"loss": float(loss.detach()), "gradients": rows}


if __name__ == "__main__":
    wanted = sys.argv[1:] or sorted(p.stem for p in HERE.glob("*.npz"))
    old = json.loads(PAGE.read_text()) if PAGE.exists() else {}
    for n in wanted:
        old[n] = make(n)
        print(n, old[n]["loss"])
    PAGE.write_text(
        json.dumps(old, indent=None, sort_keys=True).replace('"], "', '"],\n"').replace("}}, ", "}},\n") + "\n"
    )
