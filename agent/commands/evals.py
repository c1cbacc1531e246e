"""eval: the door to `evals/`, which stands above this package and is therefore looked up by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def run(asked: Mapping[str, Any], json_: bool) -> int:
    options = {k: v for k, v in asked.items() if k not in ("suite", "backend", "out", "llm_base_url")}
    evaluate = importlib.import_module("evals.__main__").evaluate
    backends = tuple(asked["backend"]) or ("builtin",)
    found: int = evaluate(
        asked["suite"], backends, asked["out"], base_url=asked["llm_base_url"], json_=json_, **options
    )
    return found
