"""Launch files for serving engines, and launch commands read back into degrees.

export(engine, model, strategy, …) → (files, findings)
parse_vllm(text), parse_sglang(text), parse(text) → ParsedCommand
"""

from __future__ import annotations

from collections.abc import Callable

from tools.engines.export import sglang, vllm
from tools.engines.export.base import Launcher, LaunchFile, ParsedCommand, Request, files, one_line
from tools.engines.export.sglang import parse_sglang
from tools.engines.export.vllm import parse_vllm
from tools.engines.rules import check, engine_rules, placement
from tools.engines.rules.base import Degrees
from tools.engines.rules.sglang import native_replicas
from tools.spec.base import ToolError
from tools.spec.finding import Finding
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

LAUNCHERS: dict[str, Launcher] = {launcher.engine: launcher for launcher in (vllm.LAUNCHER, sglang.LAUNCHER)}
STARTS_ITSELF: dict[str, Callable[[Degrees], bool]] = {"sglang": native_replicas}
"""Engines that can start several replicas behind one port, and when."""

__all__ = ["LAUNCHERS", "LaunchFile", "ParsedCommand", "export", "parse", "parse_sglang", "parse_vllm"]


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
) -> tuple[tuple[LaunchFile, ...], tuple[Finding, ...]]:
    """Scripts that launch and measure the plan, and what the engine has to say about it.

    No files when a finding is an error: the engine would refuse them. Batch, step size and context default to the
    plan's; the memory fraction is the engine's own for `memory_total_bytes` (per device), lowered by `memory_reserve`.
    `model_path` defaults to the model's name. Raises ToolError for an engine without exporter.
    """
    if engine not in LAUNCHERS:
        raise ToolError(f"no launch files for engine {engine!r}; known: {', '.join(LAUNCHERS)}")
    rules = engine_rules(engine, version)
    length = max_model_len or isl + osl
    planned = strategy.model_copy(update={
        "batch": max_num_seqs or strategy.batch,
        "max_num_batched_tokens": max_num_batched_tokens or strategy.max_num_batched_tokens,
    })  # fmt: skip
    findings = check(
        model, planned, engine=engine, version=version, num_nodes=num_nodes, devices_per_node=devices_per_node
    ) + _context_findings(model, rules.label, length, isl + osl)
    if any(f.severity == "error" for f in findings):
        return (), findings
    if memory_fraction is None and memory_total_bytes is not None:
        memory_fraction = rules.memory_fraction(
            memory_total_bytes=memory_total_bytes, strategy=planned, memory_reserve=memory_reserve
        )
    request = Request(
        model=model, strategy=planned, rules=rules, isl=isl, osl=osl, max_model_len=length, port=port,
        placement=placement(engine, planned, num_nodes=num_nodes, devices_per_node=devices_per_node, version=version),
        model_path=model_path or model.name, max_num_seqs=planned.batch,
        max_num_batched_tokens=planned.max_num_batched_tokens, memory_fraction=memory_fraction,
        concurrency=concurrency or planned.batch * planned.dp, request_rate=request_rate,
        notes=tuple(one_line(f"{f.message}; {f.fix}") for f in findings),
        native_replicas=STARTS_ITSELF.get(engine, lambda d: False)(
            Degrees.of(planned, num_nodes=num_nodes, devices_per_node=devices_per_node)
        ),
    )  # fmt: skip
    return files(LAUNCHERS[engine], request), findings


def _context_findings(model: ModelSpec, label: str, length: int, planned: int) -> tuple[Finding, ...]:
    """Both engines refuse a context beyond the checkpoint's own, and requests beyond the context."""
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


def parse(text: str, *, moe: bool | None = None) -> ParsedCommand:
    """The launch command in `text`, whichever engine it is for."""
    errors = []
    for reader in (lambda t: parse_vllm(t, moe=moe), parse_sglang):
        try:
            return reader(text)
        except ToolError as error:
            if "no command" not in str(error):
                raise
            errors.append(str(error))
    raise ToolError("; ".join(errors))
