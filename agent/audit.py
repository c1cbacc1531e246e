"""What runs today: a launch command, script, manifest or compose file → strategy, operating point, and findings.

read_command(text_or_path) → ParsedCommand            the only function here that opens a file
audit_command(parsed, model, …) → AuditReport         pure
audit(text_or_path, …) → AuditReport                  both, names resolved through the catalogue
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from knowledge.catalog import load_device, load_model
from tools.engines.export import ParsedCommand, parse, parse_document
from tools.engines.rules import check, default_layers_per_stage, engine_rules, engines, server_defaults
from tools.engines.rules import sglang as sglang_rules
from tools.engines.rules import vllm as vllm_rules
from tools.spec.base import Frozen, ToolError
from tools.spec.deployment import Assumption, Deployment
from tools.spec.finding import Finding
from tools.spec.hardware import Device
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

MAX_BYTES = 4_000_000
FLOATS = {
    "bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "half": "fp16", "fp16": "fp16", "float32": "fp32",
    "float": "fp32",
}  # fmt: skip
QUANTIZATION = (
    ("nvfp4", "nvfp4"), ("modelopt_fp4", "nvfp4"), ("mxfp4", "mxfp4"), ("fp8", "fp8"), ("awq", "int4"),
    ("gptq", "int4"), ("w4a16", "int4"), ("w8a8_int8", "int8"), ("int8", "int8"), ("ascend", "int8"),
)  # fmt: skip
"""Part of a --quantization value, and our dtype; the first that matches."""
KV_PREFIXES = (("fp8", "fp8"), ("nvfp4", "nvfp4"), ("fp4", "mxfp4"), ("int8", "int8"), ("int4", "int4"))
GONE = {
    ("sglang", "enable-dp-attention"): ("--attn-dp-size", "arg_groups/parallel_hook.py:36, removed after 2026"),
    ("sglang", "enable-ep-moe"): ("--ep-size", "earlier releases"),
    ("sglang", "enable-deepep-moe"): ("--moe-a2a-backend deepep", "earlier releases"),
    ("vllm", "disable-log-requests"): ("no flag: it is the default", "earlier releases"),
}  # fmt: skip
"""Flags that newer releases do without, what replaces them, and since when."""
GONE_BACKENDS = ("naive", "pplx")


class OperatingPoint(Frozen):
    """What the command makes the engine run at; sequences and tokens per scheduler. None: the engine decides."""

    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    memory_fraction: float | None = None


class AuditReport(Frozen):
    """What runs today. `strategy` is None where the degrees contradict each other (then a finding says which)."""

    engine: str
    model_path: str
    model: ModelSpec | None
    strategy: Strategy | None
    operating_point: OperatingPoint
    options: dict[str, str]
    """Every flag of the command, as written."""
    findings: tuple[Finding, ...] = ()
    assumptions: tuple[Assumption, ...] = ()

    @property
    def legal(self) -> bool:
        return self.strategy is not None and not any(f.severity == "error" for f in self.findings)

    def baseline(self) -> dict[str, Any]:
        """Keyword arguments of Strategy, as `Deployment.baseline` takes them. Raises ToolError where nothing parses."""
        if self.strategy is None:
            raise ToolError("the command has no strategy that could be a baseline; see its findings")
        return self.strategy.model_dump(exclude={"name"})


def read_command(text_or_path: str | Path) -> ParsedCommand:
    """The launch command in a text, or in a file: script, Kubernetes manifest, compose file.

    A text that names no existing file is the command itself. Raises ToolError when there is no command in it, or the
    file cannot be read.
    """
    path = _existing(text_or_path)
    text = _read(path) if path is not None else str(text_or_path)
    manifest = path is not None and path.suffix.lower() in (".yaml", ".yml", ".json")
    if manifest or "apiVersion:" in text or "services:" in text:
        return parse_document(_documents(text))
    found = parse(text)
    named = found.options.get("config") or found.options.get("extra-llm-api-options")
    beside = path.parent / Path(named).name if path is not None and named else None
    if found.engine == "trtllm" and beside is not None and beside.is_file():
        config = _documents(_read(beside))[0]
        return parse(text, config=config if isinstance(config, Mapping) else None)
    return found


def _existing(text_or_path: str | Path) -> Path | None:
    text = str(text_or_path)
    if "\n" in text or "\0" in text or len(text) > 1024:
        return None
    path = Path(text)
    try:
        return path if path.is_file() else None
    except OSError:
        return None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ToolError(f"{path} has {path.stat().st_size} bytes, a launch file at most {MAX_BYTES}")
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise ToolError(f"{path} cannot be read: {error.strerror}") from None


def _documents(text: str) -> list[Any]:
    try:
        return list(yaml.safe_load_all(text))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ToolError(f"no YAML: {str(error).splitlines()[0]}; give the manifest or the launch command") from None


def audit(
    text_or_path: str | Path,
    *,
    model: ModelSpec | str | None = None,
    device: Device | str | None = None,
    deployment: Deployment | None = None,
    num_nodes: int | None = None,
    devices_per_node: int | None = None,
    version: str | None = None,
) -> AuditReport:
    """What the launch command in a text or file runs, judged by its engine's rules.

    Model and device come from the arguments, else from `deployment`, else from the command's model path by the
    catalogue; a model that nobody knows leaves legality unchecked, said in a finding. Raises ToolError where there is
    no command.
    """
    parsed = read_command(text_or_path)
    hint: str | None = None
    if deployment is not None:
        model, device = model or deployment.model, device or deployment.cluster.device
        num_nodes = num_nodes if num_nodes is not None else deployment.cluster.num_nodes
        devices_per_node = devices_per_node or deployment.cluster.devices_per_node
    if not isinstance(model, ModelSpec):
        model, hint = _known_model(model or parsed.model_path, named=model is not None)
    if isinstance(device, str):
        device = load_device(device).device
    return audit_command(
        parsed, model, device=device, weight_hint=hint, num_nodes=num_nodes, devices_per_node=devices_per_node,
        version=version,
    )  # fmt: skip


def _known_model(name: str, *, named: bool) -> tuple[ModelSpec | None, str | None]:
    """Catalogue's model of a name or path, and the dtype its name carries. Only a name that was asked for may fail."""
    try:
        match = load_model(name)
    except ToolError:
        if named:
            raise
        try:
            match = load_model(name.rstrip("/").rsplit("/", 1)[-1])
        except ToolError:
            return None, None
    return match.model, match.weight_hint


def audit_command(
    parsed: ParsedCommand,
    model: ModelSpec | None,
    *,
    device: Device | None = None,
    weight_hint: str | None = None,
    num_nodes: int | None = None,
    devices_per_node: int | None = None,
    version: str | None = None,
) -> AuditReport:
    """The report on a command that was read. Pure: nothing is opened, nothing is looked up."""
    parsed = _as_model(parsed, model)
    point, findings = _point(parsed), [*_gone(parsed)]
    strategy: Strategy | None = None
    assumptions: list[Assumption] = []
    try:
        strategy, assumptions = _strategy(parsed, model, point, device, weight_hint)
    except ToolError as error:
        findings.insert(0, _finding("degrees", "error", "strategy", str(error), "degrees whose product is the group"))
    if model is None:
        findings.append(_finding(
            "model-unknown", "warning", "model", f"{parsed.model_path or 'no model'} is not in the catalogue; "
            "legality unchecked", "name the model, or give the path of its config.json",
        ))  # fmt: skip
    elif strategy is not None:
        said = check(
            model, strategy, version=version or parsed.version, num_nodes=num_nodes, devices_per_node=devices_per_node,
            device=device,
        )  # fmt: skip
        # A path that carries its dtype (…-AWQ) is that checkpoint already.
        findings += [f for f in said if not (weight_hint and f.code == "checkpoint-dtype")]
        findings += _limits(model, point)
    return AuditReport(
        engine=parsed.engine, model_path=parsed.model_path, model=model, strategy=strategy, operating_point=point,
        options=parsed.options, findings=tuple(sorted(findings, key=lambda f: f.severity != "error")),
        assumptions=tuple(assumptions),
    )  # fmt: skip


def _finding(code: str, severity: Any, where: str, text: str, fix: str, **values: Any) -> Finding:
    return Finding(
        code=code, severity=severity, cause="engine", where=where, message=f"{where}: {text}", fix=fix, values=values
    )


def _as_model(parsed: ParsedCommand, model: ModelSpec | None) -> ParsedCommand:
    """vLLM's --data-parallel-size means attention DP for experts and replicas for a dense model: now it is known."""
    d = parsed.degrees
    if model is None or not parsed.engine.startswith("vllm"):
        return parsed
    data = int(parsed.options.get("data-parallel-size") or 1)
    if model.moe is None and d.get("attn_dp", 1) == data > 1:
        d = {**d, "attn_dp": 1, "ep": 1, "etp": d["tp"] * d["cp"], "dp": d["dp"] * data}
    elif model.moe is not None and d.get("attn_dp", 1) == 1 and data > 1:
        group = d["tp"] * d["cp"] * data
        experts = "enable-expert-parallel" in parsed.options
        d = {**d, "attn_dp": data, "ep": group if experts else 1, "etp": 1 if experts else group,
             "dp": max(1, d["dp"] // data)}  # fmt: skip
    return parsed.model_copy(update={"degrees": d})


def _strategy(
    parsed: ParsedCommand, model: ModelSpec | None, point: OperatingPoint, device: Device | None, hint: str | None
) -> tuple[Strategy, list[Assumption]]:
    """The strategy at its operating point, and what the command left to the engine. Raises ToolError."""
    assumed: list[Assumption] = []
    s = parsed.strategy()
    tokens, seqs = point.max_num_batched_tokens, point.max_num_seqs
    if tokens is not None and parsed.engine == "sglang":
        # SGLang divides the chunk by the number of schedulers.
        tokens = max(1, tokens // (s.attn_dp or 1))
    if (tokens is None or seqs is None) and parsed.engine in engines("serving"):
        memory = device.memory_usable_bytes if device is not None else 80e9
        default_tokens, default_seqs = server_defaults(parsed.engine, memory, s.group)
        why = f"default of {engine_rules(parsed.engine).label} on {device.name if device else 'a device of 80 GB'}"
        if tokens is None:
            tokens = default_tokens
            assumed.append(Assumption(path="max_num_batched_tokens", value=str(tokens), why=why))
        if seqs is None:
            seqs = default_seqs
            assumed.append(Assumption(path="max_num_seqs", value=str(seqs), why=why))
    weights, why = _weight_dtype(parsed, model, hint)
    if why:
        assumed.append(Assumption(path="weight_dtype", value=weights, why=why))
    # Limits are of one scheduler; the strategy's batch is of the replica.
    schedulers = 1 if parsed.engine == "sglang" else (s.attn_dp or 1)
    kwargs: dict[str, Any] = {
        "weight_dtype": weights, "kv_dtype": _kv_dtype(parsed, weights), "batch": (seqs or 1) * schedulers,
        "max_num_batched_tokens": tokens or 8192,
    }  # fmt: skip
    s = parsed.strategy(**kwargs)
    if s.pp > 1 and s.layers_per_stage is None and model is not None and s.pp <= model.num_hidden_layers:
        cut = default_layers_per_stage(s.engine, model.num_hidden_layers, s.pp)
        s = s.model_copy(update={"layers_per_stage": cut})
        assumed.append(Assumption(path="layers_per_stage", value=",".join(map(str, cut)), why="the engine's own cut"))
    return s, assumed


def _weight_dtype(parsed: ParsedCommand, model: ModelSpec | None, hint: str | None) -> tuple[str, str]:
    """(dtype, why it was assumed): --quantization, --dtype, the dtype that the name carries, the checkpoint's own."""
    asked = parsed.options.get("quantization", "").lower()
    for part, dtype in QUANTIZATION:
        if part in asked:
            return dtype, ""
    hint = "nvfp4" if hint == "fp4" and parsed.engine != "vllm-ascend" else hint
    if model is not None and (hint or model.weight_dtype) not in ("bf16", "fp16", "fp32"):
        dtype = hint or model.weight_dtype
        return dtype, "the checkpoint's own, no --quantization is given"
    stated = FLOATS.get(parsed.options.get("dtype", "").lower())
    if stated:
        return stated, ""
    return (hint or model.weight_dtype if model is not None else "bf16"), "the checkpoint's own, no --dtype is given"


def _kv_dtype(parsed: ParsedCommand, weights: str) -> str:
    asked = (parsed.options.get("kv-cache-dtype") or parsed.options.get("kv-cache-config.dtype") or "").lower()
    for prefix, dtype in KV_PREFIXES:
        if asked.startswith(prefix):
            return dtype
    return FLOATS.get(asked) or (weights if weights in ("fp16", "fp32") else "bf16")


def _point(parsed: ParsedCommand) -> OperatingPoint:
    o = parsed.options
    return OperatingPoint(
        max_model_len=_number(o, "max-model-len", "context-length", "max-seq-len"),
        max_num_seqs=_number(o, "max-num-seqs", "max-running-requests", "max-batch-size"),
        max_num_batched_tokens=_number(o, "max-num-batched-tokens", "chunked-prefill-size", "max-num-tokens"),
        memory_fraction=_fraction(
            o, "gpu-memory-utilization", "mem-fraction-static", "free-gpu-memory-fraction",
            "kv-cache-free-gpu-memory-fraction", "kv-cache-config.free-gpu-memory-fraction",
        ),
    )  # fmt: skip


SUFFIXES = {"k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2, "g": 1000**3, "G": 1024**3}
"""vLLM's human-readable integers: lower case decimal, upper case binary."""


def _number(options: Mapping[str, str], *names: str) -> int | None:
    """The first of the options that is a positive whole number ("8192", "8k"); -1 and "auto" leave it to the engine."""
    for name in names:
        raw = options.get(name, "").strip()
        scale = SUFFIXES.get(raw[-1:], 1)
        try:
            value = float(raw.rstrip("kKmMgG")) * scale
        except ValueError:
            continue
        if 1 <= value < 1e15:
            return int(value)
    return None


def _fraction(options: Mapping[str, str], *names: str) -> float | None:
    for name in names:
        try:
            return float(options[name])
        except (KeyError, ValueError):
            continue
    return None


def _limits(model: ModelSpec, point: OperatingPoint) -> Iterator[Finding]:
    length, most = point.max_model_len, model.max_context
    if length is not None and most is not None and length > most:
        yield _finding(
            "max-model-len", "error", "positions", f"context({length}) > max_position_embeddings({most})",
            f"a context of at most {most} tokens, or a checkpoint with scaled RoPE", length=length, max_context=most,
        )  # fmt: skip
    fraction = point.memory_fraction
    if fraction is not None and not 0 < fraction <= 1:
        yield _finding(
            "memory-fraction", "error", "memory", f"a memory fraction of {fraction:g} is not in (0, 1]",
            f"{vllm_rules.GPU_MEMORY_UTILIZATION:g} or less", fraction=fraction,
        )  # fmt: skip


def _gone(parsed: ParsedCommand) -> Iterator[Finding]:
    """Flags of other releases than the one whose rules judge."""
    for (engine, flag), (instead, since) in GONE.items():
        if parsed.engine == engine and flag in parsed.options:
            yield _finding("flag-gone", "warning", "flags", f"--{flag} is deprecated or gone ({since})", instead)
    backend = parsed.options.get("all2all-backend")
    if parsed.engine == "vllm" and backend in GONE_BACKENDS:
        yield _finding(
            "flag-gone", "error", "flags", f"--all2all-backend {backend} is removed ({vllm_rules.VERSION})",
            "allgather_reducescatter, deepep_high_throughput or deepep_low_latency",
        )  # fmt: skip
    mixed = "moe-a2a-backend" in parsed.options and "ep-size" in parsed.options
    if parsed.engine == "sglang" and mixed and parsed.options["ep-size"] != str(parsed.degrees["ep"]):
        yield _finding(
            "flag-ignored", "warning", "flags",
            f"--ep-size {parsed.options['ep-size']} is ignored: an all-to-all back end makes it "
            f"{parsed.degrees['ep']} ({sglang_rules.VERSION})",
            f"--ep-size {parsed.degrees['ep']}",
        )  # fmt: skip
