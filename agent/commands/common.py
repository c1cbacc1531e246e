"""Shared by the commands: JSON output, deployments and strategies from options."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from agent.files import read_text
from knowledge.catalog import load_device, load_model
from tools.spec.base import Refused, ToolError
from tools.spec.deployment import Deployment, Objective
from tools.spec.hardware import Cluster, Device
from tools.spec.model import DType, ModelSpec
from tools.spec.plan import Plan
from tools.spec.strategy import Phase, Strategy
from tools.spec.workload import EngineChoice, Metric, Requirement, Requirements, Stat, Workload

LIMITS: tuple[tuple[Metric, str], ...] = (("ttft_s", "ttft_ms"), ("tpot_s", "tpot_ms"))
DEGREES = ("tp", "pp", "ep", "etp", "dp", "attn_dp", "cp")


def print_json(value: Any) -> None:
    """One JSON document on stdout; infinities and NaN, which JSON has not, become null."""
    print(json.dumps(finite(value), ensure_ascii=False, indent=2))


def finite(value: Any) -> Any:
    """`value` with infinities and NaN, which JSON has not, as None."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def one_of(value: str | None, kind: Any, option: str) -> Any:
    """`value` if it is one of the literals of `kind`. Raises ToolError listing them."""
    allowed = get_args(kind)
    if value is not None and value not in allowed:
        raise ToolError(f"{option} {value!r}: choose one of {', '.join(allowed)}")
    return value


def buildable(model: ModelSpec) -> ModelSpec:
    if model.unsupported:
        raise Refused(f"{model.name}: its operator graph is not supported yet: {'; '.join(model.unsupported)}")
    return model


def phases(option: str | None) -> tuple[Phase, ...]:
    one_of(option, Phase, "--phase")
    return ("prefill", "decode") if option is None else (option,)  # type: ignore[return-value]


def ready_dir(path: Path, option: str = "--out") -> Path:
    """Makes the directory. Raises ToolError when it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ToolError(f"{option} {path}: exists and is not a directory; choose another") from None
    except OSError as e:
        raise ToolError(f"{option} {path}: cannot write there ({e.strerror}); choose another directory") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ToolError(f"{option} {path}: cannot write there (no permission); choose another directory")
    return path


def strategy_from(asked: Mapping[str, Any], **defaults: Any) -> Strategy:
    """Strategy of --strategy FILE or of the degrees; both at once is an error."""
    degrees = {k: asked[k] for k in DEGREES if asked.get(k) is not None}
    if asked.get("sp"):
        degrees["sp"] = True
    if asked.get("axis"):
        degrees |= _further(asked["axis"], degrees)
    if asked.get("strategy") is None:
        return Strategy.model_validate({**defaults, **degrees})
    if degrees:
        raise ToolError(
            f"--strategy and --{next(iter(degrees)).replace('_', '-')} exclude each other; give one of them"
        )
    from agent.reading.strategy_file import load_strategy

    return load_strategy(asked["strategy"], defaults, load_model(asked["model"]).model if asked.get("model") else None)


def _further(said: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Degrees of `--axis NAME=K`: fields of a strategy, or entries of its `axes`. Raises ToolError."""
    from agent.reading.strategy_file import WHOLE
    from tools.partition.axes import SLICES

    known = [n for n in dict.fromkeys((*WHOLE, *SLICES)) if n not in ("devices", "batch", "max_num_batched_tokens")]
    out: dict[str, Any] = {}
    for text in said:
        name, _, number = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known:
            raise ToolError(f"--axis {text}: no axis is called {name!r}; known: {', '.join(known)}")
        if not number.strip().isdigit() or int(number) < 1:
            raise ToolError(f"--axis {text}: expected NAME=DEGREE with a whole number of at least 1, such as {name}=2")
        if name in out or name in given or name in out.get("axes", {}):
            raise ToolError(f"--axis {text}: {name} is stated twice; keep one")
        if name in Strategy.model_fields:
            out[name] = int(number)
        else:
            out.setdefault("axes", {})[name] = int(number)
    return out


def checkpoint_dtypes(asked: str) -> dict[str, str]:
    """Strategy defaults for a model named on the command line: the checkpoint's own weights, or those its name says."""
    found = load_model(asked)
    return {"weight_dtype": found.weight_hint or found.model.weight_dtype}


def load_plan(path: Path) -> Plan:
    """plan.json of a run (or the run directory). Raises ToolError when it is none."""
    from pydantic import ValidationError

    path = path / "plan.json" if path.is_dir() else path
    text = read_text(path, "plan", 50_000_000)
    try:
        return Plan.model_validate_json(text)
    except ValidationError as e:
        first = e.errors()[0]
        raise ToolError(
            f"{path} is no plan.json: {'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}"
        ) from None


def dtypes(
    model: ModelSpec, hint: str | None, device: Device, weights: str | None, kv: str | None
) -> tuple[DType, DType]:
    """(weights, KV cache): the stated ones, else the name's hint or the checkpoint's own, and 16 bits for KV."""
    one_of(weights, DType, "--weights")
    one_of(kv, DType, "--kv")
    half: DType = "bf16" if "bf16" in device.peak_flops else "fp16"
    native: DType = half if model.weight_dtype in ("bf16", "fp16", "fp32") else model.weight_dtype
    return cast(DType, weights or hint or native), cast(DType, kv or half)


def deployment_from(asked: Mapping[str, Any], num_devices: int | None = None) -> Deployment:
    """Deployment of the options of `search` and `estimate`.

    `num_devices`: what a given strategy needs, if none is stated.
    """
    names = device_names(asked)
    found, dev = load_model(asked["model"]), load_device(names[0])
    buildable(found.model)
    per_node = asked.get("devices_per_node") or dev.count or 8
    nodes = asked.get("nodes") or (1 if num_devices is None else -(-num_devices // per_node))
    total = None if asked.get("unbounded") else nodes * per_node
    if asked.get("unbounded") and asked.get("nodes"):
        raise ToolError("--unbounded and --nodes exclude each other; give one of them")
    if num_devices is not None:
        if asked.get("nodes") and total is not None and num_devices > total:
            raise ToolError(f"the strategy needs {num_devices} devices, but {nodes} nodes × {per_node} = {total}")
        total = num_devices
    weights, kv = dtypes(found.model, found.weight_hint, dev.device, asked.get("weights"), asked.get("kv"))
    stat: Stat = one_of(asked.get("percentile"), Stat, "--percentile") or "limit"
    gates = [
        Requirement(metric=m, stat=stat, limit=asked[o] / 1e3)
        for m, o in LIMITS
        if asked.get(o) is not None and _positive(asked[o], o)
    ]
    rate = asked.get("rate")
    if rate is not None:
        _positive(rate, "rate")
    return Deployment(
        model=found.model, cluster=Cluster.of(dev.device, total, per_node),
        workload=Workload(
            isl=asked["isl"], osl=asked["osl"], concurrency=asked.get("concurrency"), request_rate=rate,
            peak_factor=asked.get("peak_factor") or 1.0, spare_replicas=asked.get("spare_replicas") or 0,
            spare_nodes=asked.get("spare_nodes") or 0, prefix_hit_rate=asked.get("prefix_hit_rate") or 0.0,
            draft_acceptance=asked.get("draft_acceptance"), draft_length=asked.get("draft_length"),
        ),
        requirements=Requirements(gates=tuple(gates)), engine=engine_of(asked.get("engine")),
        objective=one_of(asked.get("objective"), Objective, "--objective"), weight_dtypes=(weights,), kv_dtypes=(kv,),
        other_clusters=tuple(Cluster.of(load_device(n).device, total, per_node) for n in names[1:]),
        prices=prices_of(asked, names), currency=asked.get("currency") or "USD",
    )  # fmt: skip


def device_names(asked: Mapping[str, Any]) -> list[str]:
    """The devices of --device, in order; the first is the one that is planned for. Raises ToolError for one named twice."""
    given = asked["device"]
    names = [given] if isinstance(given, str) else list(given)
    ids = [load_device(n).device.id for n in names]
    twice = next((n for i, n in enumerate(names) if ids[i] in ids[:i]), None)
    if twice is not None:
        raise ToolError(f"--device {twice}: {load_device(twice).device.name} is named twice")
    return names


def prices_of(asked: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Price of a device for an hour by device id, of --price-per-device-hour: one per --device in order, or NAME=PRICE."""
    given = asked.get("price_per_device_hour") or []
    given = [given] if isinstance(given, str) else list(given)
    option = "--price-per-device-hour"
    plain = [g for g in given if "=" not in g]
    if plain and len(plain) not in (1, len(names)):
        raise ToolError(
            f"{option}: {len(plain)} prices for {len(names)} devices; give one for each --device, or NAME=PRICE"
        )
    if plain and len(plain) < len(names) and len(given) < len(names):
        raise ToolError(f"{option} {plain[0]}: of which of {', '.join(names)}? give one for each, or NAME=PRICE")
    pairs = list(zip(names, plain, strict=False)) + [tuple(g.split("=", 1)) for g in given if "=" in g]
    out = {}
    for name, text in pairs:
        try:
            price = float(text)
        except ValueError:
            raise ToolError(f"{option} {text!r}: a number is needed, such as 2.5 or h100=2.5") from None
        if not 0 < price < 1e6:
            raise ToolError(f"{option} {text}: must be positive")
        out[load_device(name).device.id] = price
    return out


def engine_of(name: str | None) -> EngineChoice:
    from tools.engines.rules import engines

    if name is not None and name not in engines():
        raise ToolError(f"--engine {name!r}: choose one of {', '.join(engines())}")
    return EngineChoice(name=name, stated=True) if name else EngineChoice()


def _positive(value: float, option: str) -> bool:
    if not value > 0:
        raise ToolError(f"--{option.replace('_', '-')} must be positive, got {value:g}")
    return True
