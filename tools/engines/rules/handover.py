"""Which prefill and decode pools a KV connector can move caches between.

vLLM moves KV by NIXL, SGLang by mooncake or NIXL. Each pool is judged by its engine's rules; this file judges the pair.
"""

from __future__ import annotations

from collections.abc import Iterator

from tools.spec.finding import Finding, Severity
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

CONNECTORS = {"vllm": ("nixl",), "sglang": ("mooncake", "nixl")}
"""KV transports by engine, the default first."""
NIXL = "distributed/kv_transfer/kv_connector/v1/nixl"


def _pair(code: str, severity: Severity, message: str, fix: str, source: str, **values: int | str) -> Finding:
    return Finding(
        code=code, severity=severity, cause="engine", where="kv_transfer", message=f"kv_transfer: {message} ({source})",
        fix=fix, values=values,
    )  # fmt: skip


def pd_findings(engine: str, model: ModelSpec, prefill: Strategy, decode: Strategy) -> tuple[Finding, ...]:
    """What the connector of `engine` has to say about moving KV from `prefill` ranks to `decode` ranks."""
    rules = {"vllm": _vllm, "sglang": _sglang, "vllm-ascend": _ascend}.get(engine)
    found = [*_shared(engine, prefill, decode), *(rules(model, prefill, decode) if rules else ())]
    return tuple(sorted(found, key=lambda f: f.severity != "error"))


def _shared(engine: str, p: Strategy, d: Strategy) -> Iterator[Finding]:
    if p.kv_dtype != d.kv_dtype:
        yield _pair(
            "pd-kv-dtype", "error", f"prefill keeps KV in {p.kv_dtype}, decode in {d.kv_dtype}: blocks move verbatim",
            f"one kv_dtype for both pools ({d.kv_dtype} or {p.kv_dtype})",
            f"vllm 0.33.0 {NIXL}/metadata.py" if engine == "vllm" else "layout of the KV pages",
            prefill=p.kv_dtype, decode=d.kv_dtype,
        )  # fmt: skip
    big, small = max(p.tp, d.tp), min(p.tp, d.tp)
    if big % small:
        yield _pair(
            "pd-tp", "error", f"prefill tp({p.tp}) and decode tp({d.tp}): {big} % {small} = {big % small}",
            f"one of the two divides the other, e.g. {small} and {small * max(1, big // small)}",
            f"vllm 0.33.0 {NIXL.removesuffix('/v1/nixl')}/utils.py:529" if engine == "vllm"
            else "sglang 0.5.23 disaggregation/utils.py:891" if engine == "sglang" else "ascend_config.py",
            prefill_tp=p.tp, decode_tp=d.tp,
        )  # fmt: skip


def _vllm(m: ModelSpec, p: Strategy, d: Strategy) -> Iterator[Finding]:
    kv = min(m.cache_heads)
    worker = f"vllm 0.33.0 {NIXL}/base_worker.py"
    if m.attention.mla is None and p.tp > d.tp and p.tp > kv:
        yield _pair(
            "pd-replicated", "error",
            f"prefill tp({p.tp}) > decode tp({d.tp}), and prefill holds KV heads twice: tp({p.tp}) > kv_heads({kv})",
            f"prefill tp of at most {max(kv, d.tp)}", f"{worker}:2727", prefill_tp=p.tp, decode_tp=d.tp, kv_heads=kv,
        )  # fmt: skip
    if d.pp > 1:
        yield _pair("pd-decode-pp", "error", f"decode pool with pp({d.pp}): completions are counted per rank",
                    "pp 1 in the decode pool", f"{worker}:887", pp=d.pp)  # fmt: skip
    windows = any(layer.sliding for layer in m.layers())
    if p.pp > 1 and windows and not all(layer.sliding for layer in m.layers()):
        yield _pair("pd-prefill-pp", "error", f"prefill pp({p.pp}) with layers that slide beside layers that do not",
                    "pp 1 in the prefill pool", f"{worker}:873", pp=p.pp)  # fmt: skip
    if max(p.dcp, d.dcp) % min(p.dcp, d.dcp):
        yield _pair("pd-dcp", "error", f"dcp({p.dcp}) of prefill and dcp({d.dcp}) of decode: one must divide the other",
                    "equal dcp in both pools", f"{worker}:2706", prefill=p.dcp, decode=d.dcp)  # fmt: skip
    if p.cp > 1 and d.dcp > 1:
        yield _pair("pd-cp-dcp", "error", f"prefill cp({p.cp}) keeps whole caches, decode dcp({d.dcp}) deals them",
                    "cp 1 for prefill or dcp 1 for decode", f"{worker}:1049", cp=p.cp, dcp=d.dcp)  # fmt: skip
    if p.kv_dtype == "nvfp4" and p.tp != d.tp:
        yield _pair("pd-nvfp4", "error", f"NVFP4 cache with tp({p.tp}) and tp({d.tp}): it moves at equal tp only",
                    "equal tp in both pools", "vllm 0.33.0 kv connectors", prefill_tp=p.tp, decode_tp=d.tp)  # fmt: skip


def _sglang(m: ModelSpec, p: Strategy, d: Strategy) -> Iterator[Finding]:
    if m.attention.mla is None and p.tp != d.tp:
        yield _pair(
            "pd-tp-unequal", "warning",
            f"attention tp({p.tp}) of prefill and tp({d.tp}) of decode without MLA: heads move in slices, and slower",
            f"attention tp {d.tp} in both pools", "sglang 0.5.23 disaggregation/common/conn.py:1454",
            prefill_tp=p.tp, decode_tp=d.tp,
        )  # fmt: skip


def _ascend(m: ModelSpec, p: Strategy, d: Strategy) -> Iterator[Finding]:
    if p.tp < d.tp:
        yield _pair("pd-tp-order", "error", f"prefill tp({p.tp}) < decode tp({d.tp}): it must be a multiple of it",
                    f"prefill tp {d.tp} or more", "vllm-ascend ascend_config.py:215", prefill_tp=p.tp)  # fmt: skip
