"""Launch files for engines, and launch commands read back into degrees.

export(engine, model, strategy, …)            → (files, findings): shell scripts, Kubernetes manifests on request
export_pd(engine, model, prefill, decode, …)  → (files, findings): both pools of prefill/decode disaggregation
export_training(engine, model, strategy, …)   → (files, findings): torchrun
parse(text), parse_document(data)             → ParsedCommand, whichever engine it is for
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tools.engines.export import k8s, pd, sglang, trtllm, vllm, vllm_ascend
from tools.engines.export.base import Expected, Launcher, LaunchFile, ParsedCommand, Request, files, one_line
from tools.engines.export.sglang import parse_sglang
from tools.engines.export.training import export_training
from tools.engines.export.trtllm import parse_trtllm
from tools.engines.export.vllm import parse_vllm
from tools.engines.rules import EngineRules, check, engine_rules, engines, placement, resolve_layers
from tools.engines.rules.base import Degrees
from tools.engines.rules.devices import RUNS_ON
from tools.engines.rules.handover import CONNECTORS, pd_findings
from tools.engines.rules.sglang import native_replicas
from tools.spec.base import ToolError
from tools.spec.finding import Finding
from tools.spec.hardware import Device
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

LAUNCHERS: dict[str, Launcher] = {
    launcher.engine: launcher for launcher in (vllm.LAUNCHER, sglang.LAUNCHER, trtllm.LAUNCHER, vllm_ascend.LAUNCHER)
}
STARTS_ITSELF: dict[str, Callable[[Degrees], bool]] = {"sglang": native_replicas}
"""Engines that can start several replicas behind one port, and when."""
KINDS = ("shell", "k8s")
"""What `export` can write; k8s for vLLM and SGLang."""

__all__ = [
    "KINDS", "LAUNCHERS", "Expected", "LaunchFile", "ParsedCommand", "export", "export_pd", "export_training", "parse",
    "parse_document", "parse_sglang", "parse_trtllm", "parse_vllm", "pd_findings", "serving_engines",
]  # fmt: skip


def serving_engines(device: Device | None) -> tuple[str, ...]:
    """Engines with launch files that have a back end for the vendor of `device`; CUDA engines when it is unknown."""
    vendor = device.vendor.lower() if device is not None else "nvidia"
    return tuple(e for e in LAUNCHERS if vendor in RUNS_ON[e])


def export(
    engine: str,
    model: ModelSpec,
    strategy: Strategy,
    *,
    isl: int,
    osl: int,
    model_path: str | None = None,
    num_nodes: int | None = None,
    devices_per_node: int | None = None,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    memory_fraction: float | None = None,
    memory_total_bytes: float | None = None,
    memory_reserve: float | None = None,
    concurrency: int | None = None,
    request_rate: float | None = None,
    port: int = 8000,
    version: str | None = None,
    device: Device | None = None,
    weights_bytes: float | None = None,
    kinds: tuple[str, ...] = ("shell",),
    image: str | None = None,
    expected: tuple[Expected, ...] = (),
    bench_notes: tuple[str, ...] = (),
    cached: float = 0.0,
) -> tuple[tuple[LaunchFile, ...], tuple[Finding, ...]]:
    """Scripts that launch and measure the plan, and what the engine has to say about it.

    No files when a finding is an error: the engine would refuse them. Batch, step size and context default to the
    plan's; the memory fraction is the engine's own for `memory_total_bytes` (per device), lowered by `memory_reserve`
    (TensorRT-LLM's is of what `weights_bytes` per rank leave). `expected`: predictions that the benchmark script compares its
    result with. `model_path` defaults to the model's name, `image` (for
    k8s) to the release's. Raises ToolError for an engine without exporter.
    """
    if engine not in LAUNCHERS:
        raise ToolError(f"no launch files for engine {engine!r}; known: {', '.join(LAUNCHERS)}")
    unknown = [k for k in kinds if k not in KINDS]
    if unknown or ("k8s" in kinds and engine not in k8s.ENGINES):
        what = f"kind {unknown[0]!r}" if unknown else f"Kubernetes manifests of {engine}"
        raise ToolError(f"no {what}; kinds are {', '.join(KINDS)}, k8s for {' and '.join(k8s.ENGINES)}")
    planned = _planned(engine, model, strategy, max_num_seqs, max_num_batched_tokens, version)
    length = max_model_len or isl + osl
    findings = _judged(engine, model, planned, length, isl + osl, version, num_nodes, devices_per_node, device)
    if any(f.severity == "error" for f in findings):
        return (), findings
    fraction = memory_fraction or _fraction(engine, planned, memory_total_bytes, memory_reserve, weights_bytes, version)
    request = _request(
        engine, model, planned, findings, isl=isl, osl=osl, length=length, model_path=model_path, num_nodes=num_nodes,
        devices_per_node=devices_per_node, version=version, fraction=fraction, memory_reserve=memory_reserve,
        concurrency=concurrency, request_rate=request_rate, port=port, device=device, expected=expected,
        bench_notes=bench_notes, cached=cached,
    )  # fmt: skip
    made = files(LAUNCHERS[engine], request) if "shell" in kinds else ()
    if "k8s" in kinds:
        made += (k8s.manifest_file(LAUNCHERS[engine], request, image),)
    return made, findings


def export_pd(
    engine: str,
    model: ModelSpec,
    prefill: Strategy,
    decode: Strategy,
    *,
    isl: int,
    osl: int,
    transfer: str | None = None,
    model_path: str | None = None,
    num_nodes: tuple[int | None, int | None] = (None, None),
    devices_per_node: int | None = None,
    max_model_len: int | None = None,
    memory_total_bytes: float | None = None,
    memory_reserve: float | None = None,
    concurrency: int | None = None,
    request_rate: float | None = None,
    expected: tuple[Expected, ...] = (),
    port: int = 8000,
    version: str | None = None,
    device: Device | None = None,
) -> tuple[tuple[LaunchFile, ...], tuple[Finding, ...]]:
    """`prefill.sh`, `decode.sh`, `proxy.sh`, `bench.sh` of a disaggregated pair; `dp` of each strategy is its number of instances.

    `num_nodes` is of the two pools, prefill first. `transfer` is the KV transport: nixl (vLLM, SGLang) or mooncake
    (SGLang's default). No files when a pool or the pair is illegal. Raises ToolError for an engine or transport without
    scripts.
    """
    if engine not in CONNECTORS:
        raise ToolError(f"no disaggregated launch files for {engine!r}; known: {', '.join(CONNECTORS)}")
    transfer = transfer or CONNECTORS[engine][0]
    if transfer not in CONNECTORS[engine]:
        raise ToolError(f"{engine} has no KV transport {transfer!r}; known: {', '.join(CONNECTORS[engine])}")
    length = max_model_len or isl + osl
    pools = {"prefill": (prefill, num_nodes[0], port), "decode": (decode, num_nodes[1], port + 100)}
    planned = {n: _planned(engine, model, s, None, None, version) for n, (s, _, _) in pools.items()}
    pair = pd_findings(engine, model, planned["prefill"], planned["decode"])
    said = {
        n: _judged(engine, model, planned[n], length, isl + osl, version, nodes, devices_per_node, device)
        for n, (_, nodes, _) in pools.items()
    }
    findings = _of_pools(said) + pair
    if any(f.severity == "error" for f in findings):
        return (), tuple(sorted(findings, key=lambda f: f.severity != "error"))
    requests = {
        n: _request(
            engine, model, planned[n], (*said[n], *pair), isl=isl, osl=osl, length=length, model_path=model_path,
            num_nodes=nodes, devices_per_node=devices_per_node, version=version,
            fraction=_fraction(engine, planned[n], memory_total_bytes, memory_reserve, None, version),
            memory_reserve=memory_reserve, concurrency=concurrency, request_rate=request_rate, port=at, device=device, pool=n,
            expected=expected,
            **pd.pool_settings(engine, n, transfer),
        )
        for n, (_, nodes, at) in pools.items()
    }  # fmt: skip
    made = tuple(pd.pool_file(LAUNCHERS[engine], r) for r in requests.values())
    return (
        *made,
        pd.proxy_script(engine, requests["prefill"], requests["decode"]),
        pd.bench_file(LAUNCHERS[engine], requests["decode"]),
    ), findings


def _of_pools(said: Mapping[str, tuple[Finding, ...]]) -> tuple[Finding, ...]:
    """Findings of each pool, named after it; what both say alike is said once."""
    seen: dict[tuple[str, str], Finding] = {}
    for pool, findings in said.items():
        for f in findings:
            key = (f.code, f.message)
            label = "both pools" if key in seen else f"{pool} pool"
            seen[key] = f.model_copy(update={"message": f"{label}: {f.message}"})
    return tuple(seen.values())


def _planned(
    engine: str, model: ModelSpec, s: Strategy, max_num_seqs: int | None, max_tokens: int | None, version: str | None
) -> Strategy:
    """The strategy at the operating point of the launch, its stages spelled out."""
    update = {
        "batch": max_num_seqs or s.batch, "max_num_batched_tokens": max_tokens or s.max_num_batched_tokens,
        "engine": engine,
    }  # fmt: skip
    return resolve_layers(engine, model, s.model_copy(update=update), version=version)


def _judged(
    engine: str, model: ModelSpec, s: Strategy, length: int, planned: int, version: str | None, num_nodes: int | None,
    devices_per_node: int | None, device: Device | None,
) -> tuple[Finding, ...]:  # fmt: skip
    found = check(
        model, s, engine=engine, version=version, num_nodes=num_nodes, devices_per_node=devices_per_node, device=device
    )
    if device is None and RUNS_ON[engine] == ("huawei",):
        found += (Finding(
            code="device-engine", severity="error", cause="engine", where="device",
            message=f"device: {engine} runs on Ascend NPUs only, and no device is known",
            fix="pass the device, or use vllm",
        ),)  # fmt: skip
    return found + _context_findings(model, _rules(engine, version).label, length, planned)


def _rules(engine: str, version: str | None) -> EngineRules:
    """Rules of the release, else the newest known (which `check` says)."""
    try:
        return engine_rules(engine, version)
    except ToolError:
        return engine_rules(engine)


def _fraction(
    engine: str, s: Strategy, total: float | None, reserve: float | None, weights: float | None, version: str | None
) -> float | None:
    if total is None:
        return None
    more = {"left_bytes": total - weights} if engine == "trtllm" and weights is not None else {}
    return _rules(engine, version).memory_fraction(memory_total_bytes=total, strategy=s, memory_reserve=reserve, **more)


def _request(
    engine: str, model: ModelSpec, s: Strategy, findings: tuple[Finding, ...], *, isl: int, osl: int, length: int,
    model_path: str | None, num_nodes: int | None, devices_per_node: int | None, version: str | None,
    fraction: float | None, memory_reserve: float | None, concurrency: int | None, request_rate: float | None,
    port: int, device: Device | None, pool: str = "serve", expected: tuple[Expected, ...] = (),
    bench_notes: tuple[str, ...] = (), cached: float = 0.0, **pool_settings: Any,
) -> Request:  # fmt: skip
    rules = _rules(engine, version)
    # A router of disaggregated pools wants instances of its own, not an engine's replicas behind one port.
    itself = STARTS_ITSELF.get(engine, lambda d: False) if pool == "serve" else lambda d: False
    return Request(
        model=model, strategy=s, rules=rules, isl=isl, osl=osl, max_model_len=length, port=port,
        placement=placement(
            engine, s, num_nodes=num_nodes, devices_per_node=devices_per_node, version=rules.version
        ),
        model_path=model_path or model.name, max_num_seqs=s.batch, max_num_batched_tokens=s.max_num_batched_tokens,
        memory_fraction=fraction, memory_reserve=memory_reserve, concurrency=concurrency or s.batch * s.dp,
        request_rate=request_rate, notes=tuple(one_line(f"{f.message}; {f.fix}") for f in findings),
        native_replicas=itself(Degrees.of(s, num_nodes=num_nodes, devices_per_node=devices_per_node)), device=device,
        pool=pool, expected=expected, bench_notes=bench_notes, cached=cached, **pool_settings,
    )  # fmt: skip


def _context_findings(model: ModelSpec, label: str, length: int, planned: int) -> tuple[Finding, ...]:
    """Engines refuse a context beyond the checkpoint's own, and requests beyond the context."""
    if model.max_context is not None and length > model.max_context:
        return (Finding(
            code="max-model-len", severity="error", cause="engine", where="positions",
            message=f"positions: context({length}) > max_position_embeddings({model.max_context}) ({label})",
            fix=f"a context of at most {model.max_context} tokens, or a checkpoint with scaled RoPE",
            values={"length": length, "max_context": model.max_context},
        ),)  # fmt: skip
    if length < planned:
        return (Finding(
            code="max-model-len", severity="error", cause="engine", where="positions",
            message=f"positions: context({length}) < isl + osl = {planned} ({label})",
            fix=f"a context of at least {planned} tokens", values={"length": length, "planned": planned},
        ),)  # fmt: skip
    return ()


# Reading ---------------------------------------------------------------------------------------------------------

IMAGE_TAG = re.compile(r"(?:vllm-openai[\w-]*|sglang|vllm-ascend|tensorrt-llm/release):v?(\d+\.\d+[\w.]*)")
"""An engine's image, and the release that its tag names."""
CONTAINER_RUN = re.compile(r"^(?P<before>.*?\b(?:docker|podman|nerdctl)\s+(?:container\s+)?run\b)(?P<rest>.*)$")


def parse(text: str, *, moe: bool | None = None, config: Mapping[str, Any] | None = None) -> ParsedCommand:
    """The launch command in `text`, whichever engine it is for; `docker run` of an engine's image too.

    `config` is the configuration file that a trtllm-serve command names. Raises ToolError where there is no command.
    """
    tag = IMAGE_TAG.search(text)
    text = _container_text(text)
    errors = []
    readers: tuple[Callable[[str], ParsedCommand], ...] = (
        lambda t: parse_vllm(t, moe=moe), parse_sglang, lambda t: parse_trtllm(t, config=config),
    )  # fmt: skip
    for reader in readers:
        try:
            return reader(text).model_copy(update={"version": tag[1] if tag else None})
        except ToolError as error:
            if "no command" not in str(error):
                raise
            errors.append(str(error).removeprefix("no command that starts with ").split(";")[0])
    raise ToolError(f"no command that starts with {' or '.join(errors)}; give the launch command or its script")


def _container_text(text: str) -> str:
    """`docker run … IMAGE ARGS` as the command that the image's entry point makes of it, its -e variables in front."""
    joined = re.sub(r"\\\r?\n", " ", text)
    out = []
    for line in joined.splitlines():
        match = CONTAINER_RUN.match(line)
        image = re.search(r"(?<=\s)[\w./:-]*vllm[\w.-]*openai[\w./:@-]*", match["rest"]) if match else None
        if match is None or line.lstrip().startswith("#"):
            out.append(line)
            continue
        for name, value in re.findall(r"(?:-e|--env)[ =]([A-Za-z_]\w*)=(\S+)", match["rest"]):
            out.append(f"{name}={value}")
        out.append(k8s.entry_point(image[0], match["rest"][image.end() :]) if image else line)
    return "\n".join(out)


def parse_document(data: Any, *, moe: bool | None = None) -> ParsedCommand:
    """The launch command in a Kubernetes manifest or compose file, already loaded (a mapping, or a list of documents).

    Replicas of the workload multiply those of the command. Raises ToolError where no container runs an engine.
    """
    documents = data if isinstance(data, list | tuple) else [data]
    for document in documents:
        for container in k8s.containers(document):
            try:
                found = parse(k8s.container_command(container), moe=moe)
            except ToolError as error:
                if "no command" not in str(error):
                    raise
                continue
            degrees = {**found.degrees, "dp": found.degrees["dp"] * k8s.replicas(document)}
            tag = IMAGE_TAG.search(str(container.get("image", "")))
            return found.model_copy(update={"degrees": degrees, "version": tag[1] if tag else found.version})
    raise ToolError(f"no container runs {', '.join(engines('serving'))}; give the manifest of the serving workload")
