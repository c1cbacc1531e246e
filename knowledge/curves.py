"""Loads the constants of the cost model from knowledge/curves/*.yaml into one value."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

from tools.cost.curves import Curves

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@lru_cache(maxsize=1)
def load_curves() -> Curves:
    """Curves as committed: efficiencies by device generation, links, engine overheads, residual bands."""
    data: dict[str, Any] = {}
    for name in ("devices", "links", "engines", "bands"):
        text = (files("knowledge") / "curves" / f"{name}.yaml").read_text(encoding="utf-8")
        data.update(yaml.load(text, Loader=LOADER))
    return Curves.model_validate(data)
