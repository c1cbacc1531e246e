"""dag and prove of a training step (`--phase train`)."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from agent.commands.common import buildable, one_of, print_json, ready_dir, strategy_from
from agent.errors import FINDINGS, OK
from agent.files import read_text, write_atomic
from knowledge.catalog import load_model
from tools.graph.build import all_sizes
from tools.partition.train import TrainProgram, lower_train
from tools.spec.base import ToolError
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy
from tools.spec.training import TrainOptions


def train_options(text: str | None) -> TrainOptions:
    """`zero=3,recompute=full,micro_batches=4`, or a YAML or JSON file of these keys, → options. Raises ToolError with the
    nearest key or the allowed values."""
    from pydantic import ValidationError

    data = (
        _from_file(Path(text)) if text and Path(text).suffix in (".yaml", ".yml", ".json") else _from_text(text or "")
    )
    for key in data:
        if key not in TrainOptions.model_fields:
            near = difflib.get_close_matches(key, TrainOptions.model_fields, 1)
            known = f"did you mean {near[0]}?" if near else f"choose among {', '.join(TrainOptions.model_fields)}"
            raise ToolError(f"--train {key!r}: no such option; {known}")
    try:
        return TrainOptions.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        raise ToolError(f"--train {'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}") from None


def _from_text(text: str) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for part in (p.strip() for p in text.split(",") if p.strip()):
        key, sign, value = part.partition("=")
        if not sign:
            raise ToolError(f"--train {part!r}: write key=value, or name a .yaml or .json file")
        data[key.strip().replace("-", "_")] = yaml.safe_load(value)
    return data


def _from_file(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(read_text(path, "training options", 1_000_000))
    except yaml.YAMLError as e:
        raise ToolError(f"--train {path}: no YAML or JSON ({str(e).splitlines()[0]})") from None
    if not isinstance(data, dict):
        raise ToolError(f"--train {path}: needs keys and values such as zero: 3")
    return {str(k).replace("-", "_"): v for k, v in data.items()}


def _asked(asked: Mapping[str, Any]) -> tuple[ModelSpec, Strategy, TrainOptions]:
    if asked.get("phase") != "train":
        raise ToolError(f"--train describes a training step; add --phase train (--phase is {asked.get('phase')})")
    if asked.get("model") is None:
        raise ToolError("--phase train needs --model with degrees or a --strategy file")
    model = buildable(load_model(asked["model"]).model)
    return model, strategy_from(asked, weight_dtype="bf16"), train_options(asked.get("train"))


def _program(asked: Mapping[str, Any], model: ModelSpec, s: Strategy, o: TrainOptions) -> TrainProgram:
    ways = s.dp * (s.attn_dp or 1)
    batch = asked.get("batch") or ways
    if batch % ways:
        raise ToolError(
            f"--batch {batch} does not split over dp * attn_dp ({ways}): {batch}/{ways} = {batch / ways:.3g}"
        )
    unit = s.cp * (s.tp if s.sp else 1)
    if asked["seq"] % unit:
        words = "cp * tp" if s.sp else "cp"
        raise ToolError(f"--seq {asked['seq']} does not split over {words} ({unit}); choose a multiple of {unit}")
    return lower_train(model, s, o, all_sizes(model, batch_size=batch, seq_len=asked["seq"], kv_len=asked["seq"]))


def dag(asked: Mapping[str, Any], json_: bool) -> int:
    """Script, DOT and SVG of the step, and what each stage's fullest rank holds."""
    from agent.html_view import html
    from agent.render import run_scripts
    from tools.dag.graph import Detail
    from tools.dag.script import script_text
    from tools.dag.train import train_dag
    from tools.dag.train_schedule import train_schedule_dag
    from tools.training_memory import train_memory

    one_of(asked["detail"], Detail, "--detail")
    model, strategy, options = _asked(asked)
    program, out = _program(asked, model, strategy, options), ready_dir(asked["out"])
    detail = asked["detail"]
    drawn = train_schedule_dag(program) if detail == "schedule" else train_dag(program, detail=detail)
    name = re.sub(
        r"[^A-Za-z0-9._-]+", "_", f"{model.name}_{strategy.label()}_train_{options.label()}".replace("·", "_")
    )
    name += "" if detail == "full" else f".{detail}"
    write_atomic(out / f"{name}.py", script_text(drawn, name).encode())
    if asked.get("html"):
        write_atomic(out / f"{name}.html", html(drawn).encode())
    (made,) = run_scripts([out / f"{name}.py"], out, dags={name: drawn})
    memory = train_memory(program)
    if json_:
        graph = {
            "phase": "train", "strategy": strategy.label(), "options": options.label(), "devices": strategy.num_devices,
            "digest": program.digest(), "nodes": len(drawn.nodes), "edges": len(drawn.edges), "script": str(made.script),
            "dot": str(made.dot) if made.dot else None, "svg": str(made.svg) if made.svg else None,
            **({"html": str(out / f"{name}.html")} if asked.get("html") else {}),
            "findings": [f.model_dump(mode="json") for f in made.findings],
            "memory": [m.model_dump(mode="json") | {"total_bytes": m.total_bytes} for m in memory],
        }  # fmt: skip
        print_json({"model": model.name, "graphs": [graph], "findings": []})
        return OK
    print(f"train: {len(drawn.nodes)} nodes, {len(drawn.edges)} edges: {made.dot} {made.svg or '(no SVG)'}")
    for f in made.findings:
        print(f"{f.severity}: {f.message}")
    for m in memory:
        parts = ", ".join(f"{t.name} {t.value / 1e9:.2f}" for t in m.breakdown.terms)
        print(f"stage {m.stage}: {m.total_bytes / 1e9:.2f} GB on the fullest of {m.ranks} ranks ({parts})")
    return OK


def prove(asked: Mapping[str, Any], json_: bool) -> int:
    """Exit 1 when the proof does not hold."""
    from tools.oracle.train import prove_train

    if asked.get("plan_json") is not None:
        raise ToolError("a PLAN.json holds serving strategies; --phase train needs --model with degrees")
    model, s, o = _asked(asked)
    began = time.perf_counter()
    p = prove_train(model, s, o, batch_size=2 * s.dp * (s.attn_dp or 1), seq_len=64)
    row = {"model": model.name, **p.model_dump(mode="json"), "seconds": round(time.perf_counter() - began, 3)}
    if json_:
        row["devices"] = row.pop("devices_simulated")
        print_json({"ok": p.ok, "graphs": [row], "findings": []})
    else:
        verdict = "proven" if p.ok else f"FAILED ({p.failures[0]})"
        print(
            f"{model.name} {p.strategy} train {p.options}: {verdict}, {p.devices_simulated} devices, {p.tensors_compared} tensors "
            f"({p.gradients_compared} gradients, {p.weights_updated} weights updated), "
            f"max relative error {p.max_relative_error:.2g} ({row['seconds']} s)"
        )
    return OK if p.ok else FINDINGS
