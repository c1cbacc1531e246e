"""Prefill/decode disaggregation: the scripts of both pools. What a KV connector can move between them is judged by
`tools.engines.rules.handover`."""

from __future__ import annotations

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
from tools.spec.finding import Finding

BOOTSTRAP_PORT = 8998
NIXL_PORT = 5600


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
