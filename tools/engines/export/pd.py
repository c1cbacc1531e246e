"""Prefill/decode disaggregation: which pairs a KV connector can move between, and the scripts of both pools.

vLLM moves KV by NIXL, SGLang by mooncake or NIXL. Each pool is judged by its engine's rules; this file judges the pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tools.engines.export.base import (
    Launcher,
    LaunchFile,
    Request,
    bench_script,
    header,
    one_line,
    serve_script,
)
from tools.spec.finding import Finding, Severity
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

CONNECTORS = {"vllm": ("nixl",), "sglang": ("mooncake", "nixl")}
"""KV transports by engine, the default first."""
NIXL = "distributed/kv_transfer/kv_connector/v1/nixl"
BOOTSTRAP_PORT = 8998
NIXL_PORT = 5600


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
    kv = m.attention.num_kv_heads
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


# Scripts ---------------------------------------------------------------------------------------------------------


def pool_settings(engine: str, pool: str, transfer: str) -> dict[str, Any]:
    """pool_lines, pool_environment and pool_flags of a Request, for `pool` prefill or decode."""
    if engine == "vllm":
        role = "kv_producer" if pool == "prefill" else "kv_consumer"
        # Peers fetch KV from this address, so it is the one they reach, not localhost.
        return {
            "pool_lines": (
                ': "${NODE_IP:?set NODE_IP, the address at which the other pool reaches this node}"',
                f"NIXL_PORT=${{NIXL_PORT:-{NIXL_PORT}}}",
                "unset PYTORCH_CUDA_ALLOC_CONF   # expandable segments and registered KV memory exclude each other",
            ),
            "pool_environment": (
                ("VLLM_NIXL_SIDE_CHANNEL_HOST", '"$NODE_IP"'), ("VLLM_NIXL_SIDE_CHANNEL_PORT", '"$NIXL_PORT"'),
            ),
            "pool_flags": (
                f"--kv-transfer-config '{{\"kv_connector\":\"NixlConnector\",\"kv_role\":\"{role}\"}}'",
            ),
        }  # fmt: skip
    lines = [f"BOOTSTRAP_PORT=${{BOOTSTRAP_PORT:-{BOOTSTRAP_PORT}}}"] if pool == "prefill" else []
    flags = [f"--disaggregation-mode {pool}", f"--disaggregation-transfer-backend {transfer}"]
    if pool == "prefill":
        flags.append('--disaggregation-bootstrap-port "$BOOTSTRAP_PORT"')
    return {
        "pool_lines": (*lines, "IB_DEVICE=${IB_DEVICE:-}   # mlx5_0,mlx5_1; empty: the back end chooses"),
        "pool_environment": (), "pool_flags": (*flags, '${IB_DEVICE:+--disaggregation-ib-device "$IB_DEVICE"}'),
    }  # fmt: skip


def pool_file(launcher: Launcher, r: Request) -> LaunchFile:
    return LaunchFile(name=f"{launcher.engine}/{r.pool}.sh", text=serve_script(launcher, r))


def proxy_script(engine: str, prefill: Request, decode: Request) -> LaunchFile:
    """The router in front of both pools; addresses are given as lists, since it may run anywhere."""
    one = prefill.strategy.dp, decode.strategy.dp
    usage = [
        f'PREFILL="<host:port of {one[0]} servers>" DECODE="<host:port of {one[1]} servers>" bash proxy.sh',
        "needs " + ("vllm-router" if engine == "vllm" else "sglang-router (python3 -m sglang_router.launch_router)"),
    ]
    if engine == "vllm":
        start = ["vllm-router --policy round_robin --vllm-pd-disaggregation --kv-connector nixl"]
        add = 'args+=(--prefill "http://$server")'
    else:
        start = ["python3 -m sglang_router.launch_router --pd-disaggregation --policy round_robin"]
        usage.append("a prefill server with another bootstrap port is host:port/bootstrap_port")
        add = (
            f"boot={BOOTSTRAP_PORT}; case $server in */*) boot=${{server#*/}} ;; esac; "
            'args+=(--prefill "http://${server%%/*}" "$boot")'
        )
    head = header(decode, "One port in front of both pools.", usage)
    text = f"""{head}
: "${{PREFILL:?set PREFILL to the host:port of the prefill servers, separated by spaces}}"
: "${{DECODE:?set DECODE to the host:port of the decode servers, separated by spaces}}"
ROUTER_PORT=${{ROUTER_PORT:-{decode.port - 1}}}

args=()
for server in $PREFILL; do {add}; done
for server in $DECODE; do args+=(--decode "http://$server"); done
exec {start[0]} "${{args[@]}}" --host 0.0.0.0 --port "$ROUTER_PORT"
"""
    return LaunchFile(name=f"{engine}/proxy.sh", text=text)


def bench_file(launcher: Launcher, decode: Request) -> LaunchFile:
    """The benchmark against the router in front of both pools."""
    return LaunchFile(name=f"{launcher.engine}/bench.sh", text=bench_script(launcher, decode, port=decode.port - 1))


def notes(found: tuple[Finding, ...]) -> tuple[str, ...]:
    return tuple(one_line(f"{f.message}; {f.fix}") for f in found)
