"""`meshwright estimate --csv rows.csv --out predictions.csv`: one prediction per row of measured serving points.

Columns in: model, gpu, n_gpus, engine, weight_dtype, kv_dtype, tp, pp, ep, dp, attn_dp, isl, osl, length_range,
concurrency_or_batch, metric, id. `tp` is the size of the whole group: attention tp = tp / attn_dp, expert tp = tp / ep.
Columns out: id, the scalar keys of `estimate --json`, reason. A row that cannot be answered has empty values and a
reason.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

from agent.calibration import curves_with
from agent.files import write_atomic
from knowledge.catalog import load_device, load_model
from tools.cost.curves import Curves
from tools.cost.disagg import predict_disaggregated
from tools.cost.estimate import predict
from tools.cost.report import SCALARS, disaggregated_json, prediction_json
from tools.engines.rules import engines, server_defaults
from tools.spec.base import MeshwrightError, ToolError
from tools.spec.deployment import Deployment
from tools.spec.hardware import Cluster, Device
from tools.spec.model import BITS, DType, ModelSpec
from tools.spec.strategy import Strategy
from tools.spec.workload import EngineChoice, Workload

COLUMNS = ("id", *SCALARS, "reason")
ENGINE_NAMES = {"tensorrtllm": "trtllm", "trtllm": "trtllm", "vllm": "vllm", "sglang": "sglang"}
FP8_KV_ENGINES = frozenset({"trtllm"})
"""Engines whose quantised checkpoints bring an fp8 KV cache as the default (TensorRT Model Optimizer exports)."""


def estimate_csv(in_path: str | Path, out_path: str | Path, calibration: Path | None = None) -> dict[str, Any]:
    """Writes one row per input row to `out_path`; returns {"rows", "answered", "unanswered", "reasons"}.

    Raises ToolError if the file cannot be read as CSV or has no header of the expected columns.
    """
    rows = read_rows(Path(in_path))
    out = answers(rows, calibration)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(out)
    write_atomic(Path(out_path), text.getvalue().encode())
    reasons: dict[str, int] = {}
    for r in out:
        if r["reason"]:
            reasons[r["reason"]] = reasons.get(r["reason"], 0) + 1
    unanswered = sum(reasons.values())
    return {"rows": len(out), "answered": len(out) - unanswered, "unanswered": unanswered, "reasons": reasons}


PARALLEL_ROWS = 200
"""Rows from which a second process is worth its start."""


def answers(rows: list[dict[str, str]], calibration: Path | None = None) -> list[dict[str, Any]]:
    """One output row per input row, in order; many rows are shared out over the cores there are."""
    curves_with(calibration)  # before the processes part, so that they share it
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, 8)
    if len(rows) < PARALLEL_ROWS or workers < 2:
        return _answer_all(rows, calibration)
    # Rows of one model side by side: each process partitions few models.
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["model"], rows[i]["gpu"], i))
    size = -(-len(order) // (4 * workers))
    parts = [order[i : i + size] for i in range(0, len(order), size)]
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        done = list(
            pool.map(partial(_answer_all, calibration=calibration), [[rows[i] for i in part] for part in parts])
        )
    by_index = {i: out for part, outs in zip(parts, done, strict=True) for i, out in zip(part, outs, strict=True)}
    return [by_index[i] for i in range(len(rows))]


def _answer_all(rows: list[dict[str, str]], calibration: Path | None = None) -> list[dict[str, Any]]:
    curves = curves_with(calibration)
    return [answer(row, curves) for row in rows]


def read_rows(path: Path) -> list[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise ToolError(f"{path}: cannot be read as UTF-8 text: {e}") from e
    reader = csv.DictReader(io.StringIO(text))
    missing = {"model", "gpu", "isl", "osl"} - set(reader.fieldnames or ())
    if missing:
        raise ToolError(
            f"{path}: columns missing: {', '.join(sorted(missing))}; "
            f"the header has {', '.join(reader.fieldnames or ()) or 'nothing'}"
        )
    return [dict(r) for r in reader]


def answer(row: Mapping[str, str], curves: Curves) -> dict[str, Any]:
    """One output row."""
    out: dict[str, Any] = {"id": row.get("id", ""), "reason": ""}
    try:
        if is_disaggregated(row):
            # The version such rows give is the router's; pools need a current engine.
            out |= disaggregated(row, curves)
            return {k: out.get(k, "") for k in COLUMNS}
        curves = curves.at_version(engine_name(row.get("engine") or "vllm"), row.get("engine_version") or "")
        out |= max((_priced(r, curves) for r in readings(row)), key=lambda found: found["output_tok_s"])
    except MeshwrightError as e:
        out["reason"] = " ".join(str(e).split())
    except ValueError as e:
        out["reason"] = " ".join(str(e).split())[:300]
    return {k: out.get(k, "") for k in COLUMNS}


def _priced(row: Mapping[str, str], curves: Curves) -> dict[str, Any]:
    deployment, strategy, options = row_case(row, curves)
    return prediction_json(
        predict(
            deployment, strategy, curves, benchmark_run=True, length_deviation=length_deviation(row), **options
        )
    )  # fmt: skip


def readings(row: Mapping[str, str]) -> list[Mapping[str, str]]:
    """The layouts that a row can mean. An offline run of experts on TensorRT-LLM (1.0 and later) that states the size of
    its group but not how experts and attention are split over it: sliced, or attention DP with whole experts, whichever
    serves more, since that is what such a run is set up for."""
    version = re.match(r"\D*(\d+)\.", row.get("engine_version") or "")
    unsaid = not any((row.get(c) or "").strip() for c in ("ep", "attn_dp"))
    offline = (row.get("metric") or "").strip() == "max_throughput" and unsaid
    engine = engine_name(row.get("engine") or "vllm")
    if not (offline and engine == "trtllm" and version and int(version[1]) >= 1 and number(row, "tp") > 1):
        return [row]
    if not load_model(row["model"]).model.moe:
        return [row]
    return [row, {**row, "ep": row["tp"], "attn_dp": row["tp"]}]


def row_case(row: Mapping[str, str], curves: Curves) -> tuple[Deployment, Strategy, dict[str, Any]]:
    """(deployment, strategy, keywords of `predict`) of one row. Raises ToolError with the column that is at fault."""
    engine = engine_name(row.get("engine") or "vllm")
    if not (row.get("tp") or "").strip():
        raise ToolError(
            f"tp is empty: {row.get('engine', '')} rows without one layout (disaggregated pools) cannot be priced yet"
        )
    match = load_model(row["model"])
    device = load_device(row["gpu"]).device
    tp, attn_dp, ep = number(row, "tp"), number(row, "attn_dp"), number(row, "ep")
    _divides("tp", tp, "attn_dp", attn_dp)
    _divides("tp", tp, "ep", ep)
    weights = weight_dtype(row, match.model.weight_dtype, match.model.quantized_experts_only)
    stated = (row.get("kv_dtype") or "").strip()
    kv = dtype("kv_dtype", stated) if stated else default_kv(engine, weights, device)
    pp, dp = number(row, "pp"), number(row, "dp")
    devices = max(tp * pp * dp, number(row, "n_gpus"))
    isl, osl = lengths(row)
    cluster = cluster_of(device, devices)
    if engine in engines():
        tokens = server_defaults(engine, cluster.memory_bytes, tp)[0]
    else:
        tokens = curves.engine(engine).max_num_batched_tokens
    strategy = Strategy(
        tp=tp // attn_dp, attn_dp=attn_dp, ep=ep if match.model.moe else 1, etp=tp // ep if match.model.moe else tp,
        pp=pp, dp=dp, weight_dtype=weights, kv_dtype=kv, engine=engine, max_num_batched_tokens=tokens,
    )  # fmt: skip
    workload, options = load_of(row, isl, osl, dp)
    if workload.batch_size:
        strategy = strategy.model_copy(update={"batch": workload.batch_size})
    deployment = Deployment(
        model=as_served(match.model, engine, row.get("engine_version") or ""), cluster=cluster, workload=workload,
        engine=EngineChoice(name=engine),
        weight_dtypes=(weights,), kv_dtypes=(kv,),
    )  # fmt: skip
    return deployment, strategy, options


POOL = re.compile(
    r"(prefill|decode) (\d+)x\s*\[\s*tp(\d+)\s+attn_dp(\d+)\s+moe_tp(\d+)\s+moe_ep(\d+)(?:\s+pp(\d+))?\s*\]"
)
"""One pool in the notes: workers, attention tp, attention dp, expert tp, expert ep."""


def is_disaggregated(row: Mapping[str, str]) -> bool:
    return not (row.get("tp") or "").strip() and len(POOL.findall(row.get("notes") or "")) >= 2


def disaggregated(row: Mapping[str, str], curves: Curves) -> dict[str, Any]:
    """Scalar keys of a row whose notes give the layouts of its prefill and decode pools."""
    pools = {kind: [int(x or 1) for x in rest] for kind, *rest in POOL.findall(row.get("notes") or "")}
    if set(pools) != {"prefill", "decode"}:
        raise ToolError(f"the notes name the pools {', '.join(sorted(pools))}; prefill and decode are needed")
    engine = engine_name(row.get("engine") or "vllm")
    model, device = load_model(row["model"]).model, load_device(row["gpu"]).device
    weights = weight_dtype(row, model.weight_dtype, model.quantized_experts_only)
    stated = (row.get("kv_dtype") or "").strip()
    kv = dtype("kv_dtype", stated) if stated else default_kv(engine, weights, device)
    isl, osl = lengths(row)
    concurrency = number(row, "concurrency_or_batch")

    def strategy(kind: str) -> Strategy:
        workers, tp, attn_dp, etp, ep, pp = pools[kind]
        return Strategy(
            tp=tp, attn_dp=attn_dp, etp=etp if model.moe else None, ep=ep if model.moe else 1, pp=pp, dp=workers,
            weight_dtype=weights, kv_dtype=kv, engine=engine,
            max_num_batched_tokens=curves.engine(engine).max_num_batched_tokens,
        )  # fmt: skip

    prefill, decode = strategy("prefill"), strategy("decode")
    deployment = Deployment(
        model=model, cluster=cluster_of(device, prefill.num_devices + decode.num_devices),
        workload=Workload(isl=isl, osl=osl, concurrency=concurrency), engine=EngineChoice(name=engine),
        weight_dtypes=(weights,), kv_dtypes=(kv,),
    )  # fmt: skip
    found = predict_disaggregated(
        deployment, prefill, decode, curves, concurrency=concurrency, requests=ROUNDS * concurrency,
        length_deviation=length_deviation(row),
    )  # fmt: skip
    return disaggregated_json(found, concurrency)


def lengths(row: Mapping[str, str]) -> tuple[int, int]:
    """Mean (isl, osl) of a row."""
    share = length_share(row.get("length_range") or "")
    isl, osl = (max(1, round(number(row, k) * share)) for k in ("isl", "osl"))
    return isl, osl


def load_of(row: Mapping[str, str], isl: int, osl: int, dp: int) -> tuple[Workload, dict[str, Any]]:
    """Closed loop at the stated concurrency; a maximum throughput with a stated batch: that batch arriving together."""
    metric, given = (row.get("metric") or "at_concurrency").strip(), (row.get("concurrency_or_batch") or "").strip()
    if metric == "max_throughput" and not given:
        return Workload(isl=isl, osl=osl), {"max_throughput": True, "requests": request_set(isl, osl)}
    count = number(row, "concurrency_or_batch")
    if metric == "max_throughput":
        return Workload(isl=isl, osl=osl, batch_size=max(1, count // dp)), {}
    return Workload(isl=isl, osl=osl, concurrency=count), {"concurrency": count, "requests": ROUNDS * count}


ROUNDS = 10
"""Requests per seat of a closed-loop serving benchmark: the run, ramp-up and drain included, is that long."""


def request_set(isl: int, osl: int) -> int:
    """Requests of an offline throughput run, as the benchmarks choose them: fewer where each takes longer."""
    if isl >= 20000:
        return 1000
    return 30000 if isl + osl <= 256 else 1500 if isl + osl >= 4000 else 3000


def as_served(model: ModelSpec, engine: str, version: str) -> ModelSpec:
    """TensorRT-LLM's engine builder (before 1.0) attends the whole context unless max_attention_window is given."""
    major = re.match(r"[^\d]*(\d+)\.", version)
    if engine == "trtllm" and major and int(major[1]) < 1 and model.attention.sliding_window:
        return model.model_copy(update={"attention": model.attention.model_copy(update={"sliding_window": None})})
    return model


def engine_name(text: str) -> str:
    """ "TensorRT-LLM (Dynamo)" → trtllm; an engine that nobody measured keeps its name, and gets the others' mean overheads.
    Raises ToolError for a text without a name."""
    key = re.sub(r"[^a-z]", "", text.split("(")[0].lower())
    if not key:
        raise ToolError(f"engine {text!r} has no name; measured: vLLM, SGLang, TensorRT-LLM")
    # "vLLM-ROCm": a build of the engine whose name it begins with.
    return next((name for known, name in ENGINE_NAMES.items() if key.startswith(known)), key)


def weight_dtype(row: Mapping[str, str], native: DType, experts_only: bool) -> DType:
    """As labelled; a checkpoint that exists only quantised (mxfp4 experts) is what it is whatever the label."""
    label = (row.get("weight_dtype") or "").strip()
    return native if experts_only or not label else dtype("weight_dtype", label)


def dtype(column: str, text: str) -> DType:
    name = text.strip().lower()
    if name not in BITS:
        raise ToolError(f"{column} {text!r} is not known; known: {', '.join(BITS)}")
    return cast(DType, name)


def default_kv(engine: str, weights: DType, device: Device) -> DType:
    """KV cache dtype of a row that does not say. Quantised checkpoints bring fp8 KV on TensorRT-LLM, and on devices
    with an fp4 path (whose attention kernels want it) on every engine; otherwise the model's 16 bits."""
    quantised = BITS[weights] < 16 and weights not in ("int4", "mxfp4")
    return "fp8" if quantised and (engine in FP8_KV_ENGINES or device.peak_flops.get("fp4")) else "bf16"


def number(row: Mapping[str, str], column: str, default: int = 1) -> int:
    text = (row.get(column) or "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError as e:
        raise ToolError(f"{column} = {text!r} is not a number") from e
    if value < 1 or value != int(value):
        raise ToolError(f"{column} = {text} must be a whole number of at least 1")
    return int(value)


def length_share(text: str) -> float:
    """Mean of a uniform range of lengths relative to the stated ones: "0.8-1.0" → 0.9."""
    found = re.fullmatch(r"\s*([\d.]+)\s*-\s*([\d.]+)\s*", text)
    return (float(found[1]) + float(found[2])) / 2 if found else 1.0


def length_deviation(row: Mapping[str, str]) -> float:
    """Standard deviation of uniform lengths over their mean; 0 for exact ones."""
    found = re.fullmatch(r"\s*([\d.]+)\s*-\s*([\d.]+)\s*", row.get("length_range") or "")
    if not found:
        return 0.0
    low, high = float(found[1]), float(found[2])
    return (high - low) / (high + low) * 2 / math.sqrt(12.0)


def _divides(a: str, x: int, b: str, y: int) -> None:
    if x % y:
        raise ToolError(f"{a}({x}) / {b}({y}) = {x / y:g} is not a whole number")


def cluster_of(device: Device, num_devices: int) -> Cluster:
    """`num_devices` of a catalogue device, everything from its datasheet."""
    node = max(1, min(8, num_devices)) if device.link_domain <= 8 else device.link_domain
    return Cluster(
        device=device, num_devices=num_devices, devices_per_node=node, memory_bytes=device.memory_usable_bytes,
        memory_bandwidth=device.memory_bandwidth, peak_flops=device.peak_flops,
        intra_node_bandwidth=device.link_bandwidth if device.link_domain > 1 else device.pcie_bandwidth,
        inter_node_bandwidth=device.network_bandwidth, link_domain=device.link_domain,
    )  # fmt: skip
