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
from tools.engines.export.base import Expected, Launcher, LaunchFile, Request, router_script, serve_script
from tools.engines.export.bench import bench_script
from tools.engines.export.order import Order, refused
from tools.engines.export.reading import ParsedCommand
from tools.engines.export.sglang import parse_sglang
from tools.engines.export.training import export_training
from tools.engines.export.trtllm import parse_trtllm
from tools.engines.export.vllm import parse_vllm
from tools.engines.rules import engines
from tools.engines.rules.devices import RUNS_ON
from tools.engines.rules.handover import CONNECTORS, pd_findings
from tools.spec.base import ToolError
from tools.spec.finding import Finding
from tools.spec.hardware import Device
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

LAUNCHERS: dict[str, Launcher] = {
    launcher.engine: launcher for launcher in (vllm.LAUNCHER, sglang.LAUNCHER, trtllm.LAUNCHER, vllm_ascend.LAUNCHER)
}
KINDS = ("shell", "k8s")
"""What `export` can write; k8s for vLLM and SGLang."""
Exported = tuple[tuple[LaunchFile, ...], tuple[Finding, ...]]

__all__ = [
    "KINDS", "LAUNCHERS", "Expected", "LaunchFile", "ParsedCommand", "export", "export_pd", "export_training", "parse",
    "parse_document", "parse_sglang", "parse_trtllm", "parse_vllm", "pd_findings", "serving_engines",
]  # fmt: skip


def serving_engines(device: Device | None) -> tuple[str, ...]:
    """Engines with launch files that have a back end for the vendor of `device`; CUDA engines when it is unknown."""
    vendor = device.vendor.lower() if device is not None else "nvidia"
    return tuple(e for e in LAUNCHERS if vendor in RUNS_ON[e])


def export(
    engine: str, model: ModelSpec, strategy: Strategy, *, isl: int, osl: int,
    model_path: str | None = None, released: str | None = None, version: str | None = None,
    num_nodes: int | None = None, devices_per_node: int | None = None, device: Device | None = None,
    max_model_len: int | None = None, max_num_seqs: int | None = None, max_num_batched_tokens: int | None = None,
    memory_fraction: float | None = None, memory_total_bytes: float | None = None, memory_reserve: float | None = None,
    weights_bytes: float | None = None, concurrency: int | None = None, request_rate: float | None = None,
    port: int = 8000, kinds: tuple[str, ...] = ("shell",), image: str | None = None,
    expected: tuple[Expected, ...] = (), bench_notes: tuple[str, ...] = (), cached: float = 0.0,
    draft: tuple[int, float] | None = None,
) -> Exported:  # fmt: skip
    """Scripts that launch and measure the plan, and what the engine has to say about it.

    No files when a finding is an error: the engine would refuse them. Batch, step size and context default to the
    plan's; the memory fraction is the engine's own for `memory_total_bytes` (per device), lowered by `memory_reserve`
    (TensorRT-LLM's is of what `weights_bytes` per rank leave). `model_path` is what to load: by default `released`, the
    repository of the released checkpoint, where its weights are the plan's, else the model's name. `expected`:
    predictions that the benchmark script compares its result with; `draft`: the speculation that they count on, tokens
    per step and the share accepted. `image` (for k8s) defaults to the release's. Raises
    ToolError for an engine without exporter.
    """
    _check_kinds(engine, kinds)
    order = Order(
        engine=engine, model=model, isl=isl, osl=osl, max_model_len=max_model_len, version=version,
        devices_per_node=devices_per_node, device=device, memory_total_bytes=memory_total_bytes,
        memory_reserve=memory_reserve, memory_fraction=memory_fraction, weights_bytes=weights_bytes,
        concurrency=concurrency, request_rate=request_rate, model_path=model_path, released=released, expected=expected,
        bench_notes=bench_notes, cached=cached, draft=draft,
    )  # fmt: skip
    planned = order.planned(strategy, max_num_seqs, max_num_batched_tokens)
    findings = order.judged(planned, num_nodes)
    if refused(findings):
        return (), findings
    request = order.request(planned, findings, num_nodes=num_nodes, port=port)
    made = _scripts(LAUNCHERS[engine], request) if "shell" in kinds else ()
    if "k8s" in kinds:
        made += (k8s.manifest_file(LAUNCHERS[engine], request, image),)
    return made, findings


def _scripts(launcher: Launcher, r: Request) -> tuple[LaunchFile, ...]:
    out = [LaunchFile(name=f"{launcher.engine}/{r.pool}.sh", text=serve_script(launcher, r)), *launcher.extra(r)]
    # Replicas that MPI starts share no numbering of nodes: a router would not know where they are.
    if r.instances > 1 and not (r.multi_node and launcher.started_once):
        out.append(LaunchFile(name=f"{launcher.engine}/router.sh", text=router_script(r)))
    out.append(LaunchFile(name=f"{launcher.engine}/bench.sh", text=bench_script(launcher, r)))
    return tuple(out)


def _check_kinds(engine: str, kinds: tuple[str, ...]) -> None:
    if engine not in LAUNCHERS:
        raise ToolError(f"no launch files for engine {engine!r}; known: {', '.join(LAUNCHERS)}")
    unknown = [k for k in kinds if k not in KINDS]
    if unknown or ("k8s" in kinds and engine not in k8s.ENGINES):
        what = f"kind {unknown[0]!r}" if unknown else f"Kubernetes manifests of {engine}"
        raise ToolError(f"no {what}; kinds are {', '.join(KINDS)}, k8s for {' and '.join(k8s.ENGINES)}")


def export_pd(
    engine: str, model: ModelSpec, prefill: Strategy, decode: Strategy, *, isl: int, osl: int,
    transfer: str | None = None, model_path: str | None = None, released: str | None = None, version: str | None = None,
    num_nodes: tuple[int | None, int | None] = (None, None), devices_per_node: int | None = None,
    device: Device | None = None, max_model_len: int | None = None, memory_total_bytes: float | None = None,
    memory_reserve: float | None = None, concurrency: int | None = None, request_rate: float | None = None,
    port: int = 8000, expected: tuple[Expected, ...] = (), draft: tuple[int, float] | None = None,
) -> Exported:  # fmt: skip
    """`prefill.sh`, `decode.sh`, `proxy.sh`, `bench.sh` of a disaggregated pair; `dp` of each strategy is its number of instances.

    `num_nodes` is of the two pools, prefill first. `transfer` is the KV transport: nixl (vLLM, SGLang) or mooncake
    (SGLang's default). No files when a pool or the pair is illegal. Raises ToolError for an engine or transport without
    scripts.
    """
    transfer = _known_transfer(engine, transfer)
    order = Order(
        engine=engine, model=model, isl=isl, osl=osl, max_model_len=max_model_len, version=version,
        devices_per_node=devices_per_node, device=device, memory_total_bytes=memory_total_bytes,
        memory_reserve=memory_reserve, concurrency=concurrency, request_rate=request_rate, model_path=model_path,
        released=released, expected=expected, draft=draft,
    )  # fmt: skip
    pools = {
        pool: order.planned(s, max_tokens=pd.step_tokens(engine, pool, s))
        for pool, s in (("prefill", prefill), ("decode", decode))
    }
    nodes = dict(zip(pools, num_nodes, strict=True))
    pair = pd_findings(engine, model, pools["prefill"], pools["decode"])
    said = {pool: pd.of_pool(pool, order.judged(s, nodes[pool])) for pool, s in pools.items()}
    findings = pd.of_pools(said) + pair
    if refused(findings):
        return (), tuple(sorted(findings, key=lambda f: f.severity != "error"))
    requests = {
        pool: order.request(
            s,
            (*said[pool], *pair),
            num_nodes=nodes[pool],
            port=at,
            pool=pool,
            **pd.pool_settings(engine, pool, transfer),
        )
        for (pool, s), at in zip(pools.items(), (port, port + pd.PORTS_APART), strict=True)
    }
    return pd.pair_files(LAUNCHERS[engine], requests["prefill"], requests["decode"]), findings


def _known_transfer(engine: str, transfer: str | None) -> str:
    if engine not in CONNECTORS:
        raise ToolError(f"no disaggregated launch files for {engine!r}; known: {', '.join(CONNECTORS)}")
    transfer = transfer or CONNECTORS[engine][0]
    if transfer not in CONNECTORS[engine]:
        raise ToolError(f"{engine} has no KV transport {transfer!r}; known: {', '.join(CONNECTORS[engine])}")
    return transfer


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
