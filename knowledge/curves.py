"""Loads the constants of the cost model from knowledge/curves/*.yaml into one value."""

from __future__ import annotations

import io
import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import yaml

from tools.cost.curves import Curves
from tools.cost.operators import Operators, ridge_of, sheets_of, tuned
from tools.cost.tables import unpack

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@lru_cache(maxsize=1)
def load_curves() -> Curves:
    """Curves as committed: measured operators, efficiencies by device generation, links, engine overheads, bands."""
    data: dict[str, Any] = {}
    for name in ("devices", "kernels", "links", "engines", "bands"):
        text = (files("knowledge") / "curves" / f"{name}.yaml").read_text(encoding="utf-8")
        data.update(yaml.load(text, Loader=LOADER))
    return Curves.model_validate(data | {"operators": load_operators()})


@lru_cache(maxsize=1)
def load_operators() -> Operators:
    """The measured tables of operators.npz with their description."""
    folder = files("knowledge") / "curves"
    meta = json.loads((folder / "operators.json").read_text(encoding="utf-8"))
    with np.load(io.BytesIO((folder / "operators.npz").read_bytes())) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return Operators(tuned(unpack(arrays, meta)), ridge_of(meta["datasheet"]), sheets_of(meta["datasheet"]))
