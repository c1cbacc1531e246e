"""JSON schemas of what a run publishes. `python -m agent.report.schema [DIR]` writes them (default docs/schema)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import BaseModel

from tools.manifest import Manifest
from tools.rubric import Evaluation
from tools.spec.plan import Plan

SCHEMAS: dict[str, type[BaseModel]] = {
    "plan.schema.json": Plan, "manifest.schema.json": Manifest, "evaluation.schema.json": Evaluation,
}  # fmt: skip


def schema_text(model: type[BaseModel]) -> str:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **model.model_json_schema(mode="serialization"),
    }
    return json.dumps(schema, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/schema")
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in SCHEMAS.items():
        (folder / name).write_text(schema_text(model), encoding="utf-8")
        print(folder / name)


if __name__ == "__main__":
    main()
