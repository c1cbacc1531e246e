"""Prefill/decode disaggregation: the scripts of both pools. What a KV connector can move between them is judged by
`tools.engines.rules.handover`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.engines.export.base import (
    Launcher,
    LaunchFile,
    Request,
    header,
    serve_script,
)
from tools.engines.export.bench import bench_script
from tools.engines.rules.base import Degrees, dispatches
from tools.spec.finding import Finding
from tools.spec.strategy import Strategy

BOOTSTRAP_PORT = 8998
NIXL_PORT = {"prefill": 5600, "decode": 7600}
"""First port of the side channels, one per rank: pools that share a node keep out of each other's way."""
PORTS_APART = 100
"""Between the first ports of the two pools."""
LOW_LATENCY_STEP = 256
"""Tokens of a step that vLLM itself takes under low-latency dispatch, whose buffers are sized by it (0.33.0
config/scheduler.py DEFAULT_MAX_NUM_BATCHED_TOKENS_FOR_BATCHED_DP)."""
OF_ONE_SERVER = ("a2a-step", "ep-nodes-phase")
"""Findings about a server that runs both phases: a prefill pool never decodes."""


# Findings --------------------------------------------------------------------------------------------------------


def step_tokens(engine: str, pool: str, s: Strategy) -> int | None:
    """Tokens of a step where the pool wants others than the plan: vLLM's decode pool under all-to-all dispatch."""
    if engine != "vllm" or pool != "decode" or not dispatches(Degrees.of(s)):
        return None
    return min(s.max_num_batched_tokens, max(LOW_LATENCY_STEP, -(-s.batch // (s.attn_dp or 1))))


def of_pool(pool: str, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Without what the other pool takes away."""
    return tuple(f for f in findings if pool != "prefill" or f.code not in OF_ONE_SERVER)


def of_pools(said: Mapping[str, tuple[Finding, ...]]) -> tuple[Finding, ...]:
    """Findings of each pool, named after it; what both say alike is said once."""
    seen: dict[tuple[str, str], Finding] = {}
    for pool, findings in said.items():
        for f in findings:
            key = (f.code, f.message)
            label = "both pools" if key in seen else f"{pool} pool"
            seen[key] = f.model_copy(update={"message": f"{label}: {f.message}"})
    return tuple(seen.values())


def shared_nodes(
    prefill: Strategy, decode: Strategy, *, devices_per_node: int, num_nodes: int | None
) -> tuple[Finding, ...]:
    """A warning where the cluster has fewer nodes than the two pools would fill alone: then they share one, or do not fit."""
    sizes = prefill.num_devices, decode.num_devices
    apart = sum(-(-n // devices_per_node) for n in sizes)
    if num_nodes is None or apart <= num_nodes:
        return ()
    devices = num_nodes * devices_per_node
    fits = sum(sizes) <= devices
    fix = (
        f"on a node of both, start decode.sh with FIRST_DEVICE={sizes[0] % devices_per_node} (several instances) or with the "
        "visible devices that prefill.sh leaves (one instance)"
        if fits
        else f"pools of at most {devices} devices together, or {apart} nodes"
    )
    return (Finding(
        code="pd-nodes", severity="warning", cause="engine", where="devices",
        message=f"devices: prefill({sizes[0]}) and decode({sizes[1]}) fill {apart} nodes of {devices_per_node} devices, the "
        f"cluster has {num_nodes}: " + ("they share a node" if fits else f"{sum(sizes)} > {devices} devices"),
        fix=fix, values={"prefill": sizes[0], "decode": sizes[1], "devices": devices},
    ),)  # fmt: skip


# Scripts ---------------------------------------------------------------------------------------------------------


def pool_settings(engine: str, pool: str, transfer: str) -> dict[str, Any]:
    """pool_lines, pool_environment and pool_flags of a Request, for `pool` prefill or decode."""
    if engine == "vllm":
        role = "kv_producer" if pool == "prefill" else "kv_consumer"
        # Peers fetch KV from this address, so it is the one they reach, not localhost.
        return {
            "pool_lines": (
                ': "${NODE_IP:?set NODE_IP, the address at which the other pool reaches this node}"',
                f"NIXL_PORT=${{NIXL_PORT:-{NIXL_PORT[pool]}}}",
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


def pair_files(launcher: Launcher, prefill: Request, decode: Request) -> tuple[LaunchFile, ...]:
    """Both pools, the router in front of them, and the benchmark against it."""
    return (
        *(LaunchFile(name=f"{launcher.engine}/{r.pool}.sh", text=serve_script(launcher, r)) for r in (prefill, decode)),
        proxy_script(launcher.engine, prefill, decode),
        LaunchFile(name=f"{launcher.engine}/bench.sh", text=bench_script(launcher, decode, port=decode.port - 1)),
    )


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
