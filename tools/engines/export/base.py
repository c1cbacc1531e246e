"""What every launch file has in common: the request, and the script around a command.

A `Launcher` says one engine's command; this file wraps it for one node, several nodes, and several replicas. Scripts
are plain bash: values that come from outside are shell-quoted, what differs per cluster is an environment variable.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tools.engines.rules import EngineRules, Flag, Placement
from tools.spec.base import Frozen
from tools.spec.hardware import Device
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy


class LaunchFile(Frozen):
    """`name` is relative to the launch directory (`vllm/serve.sh`)."""

    name: str
    text: str
    executable: bool = True


@dataclass(frozen=True, slots=True)
class Expected:
    """A predicted figure under the name that the benchmark's result gives it; `band` relative, `limit` in the same unit."""

    key: str
    name: str
    value: float
    band: float
    limit: float | None = None
    higher_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One plan to launch. Batch figures are of one replica, tokens of one scheduler; lengths are tokens."""

    model: ModelSpec
    strategy: Strategy
    rules: EngineRules
    placement: Placement
    model_path: str
    isl: int
    osl: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    memory_fraction: float | None
    concurrency: int
    own_checkpoint: bool = False
    """Weights in another dtype than the released checkpoint's: only the user knows where they are."""
    request_rate: float | None = None
    port: int = 8000
    notes: tuple[str, ...] = ()
    native_replicas: bool = False
    """The engine starts all replicas behind one port itself."""
    device: Device | None = None
    memory_reserve: float | None = None
    pool: str = "serve"
    """Name of the script: `serve`, or the pool (`prefill`, `decode`) of a disaggregated pair."""
    pool_lines: tuple[str, ...] = ()
    """Shell lines that set variables of the pool, its base ports for one."""
    pool_environment: tuple[tuple[str, str], ...] = ()
    """(name, shell value) of what the pool's command finds in its environment."""
    pool_flags: tuple[str, ...] = ()
    """Further flags of the pool, as shell text."""
    expected: tuple[Expected, ...] = ()
    """What the plan predicts under the benchmark's load."""
    bench_notes: tuple[str, ...] = ()
    cached: float = 0.0
    """Share of each prompt that the planned load finds in the prefix cache."""

    @property
    def instances(self) -> int:
        return 1 if self.native_replicas else self.strategy.dp

    @property
    def multi_node(self) -> bool:
        return int(self.placement.nodes_per_replica) > 1


@dataclass(frozen=True, slots=True)
class Launcher:
    """One engine's words. Lines are shell text without continuation marks, values already quoted."""

    engine: str
    command: Callable[[Request], list[str]]
    """The command of one instance: first line the program and model, then one flag per line. May use $MODEL, $PORT."""
    across_nodes: Callable[[Request], tuple[list[str], list[str]]]
    """(shell before the command, further flags) for a replica on several nodes: $RANK, $NNODES, $MASTER_ADDR."""
    bench: Callable[[Request], list[str]]
    environment: Callable[[Request], list[str]] = lambda r: []
    """Shell lines that set what the engine reads from its environment."""
    extra: Callable[[Request], tuple[LaunchFile, ...]] = lambda r: ()
    """Files that the command refers to."""
    started_once: Callable[[Request], list[str]] | None = None
    """For a replica on several nodes: the words before the command that start it on all of $HOSTS from one of them."""
    visible: str = "CUDA_VISIBLE_DEVICES"


VISIBLE = {
    "amd": "HIP_VISIBLE_DEVICES", "huawei": "ASCEND_RT_VISIBLE_DEVICES", "moore threads": "MUSA_VISIBLE_DEVICES",
}  # fmt: skip
"""The variable that limits a process to some devices, by vendor."""


def vendor(device: Device | None) -> str:
    return device.vendor.lower() if device is not None else "nvidia"


def visible_variable(launcher: Launcher, device: Device | None) -> str:
    return VISIBLE.get(vendor(device), launcher.visible)


def on_npus(r: Request) -> bool:
    return vendor(r.device) == "huawei"


def hccl_lines(r: Request) -> list[str]:
    """Ascend's collectives across nodes: HCCL, GLOO and the TP store must name one network."""
    if not r.multi_node:
        return []
    return [
        ': "${HCCL_IF_IP:?set HCCL_IF_IP, the address of this node on the network between hosts}"',
        ': "${NIC:?set NIC, the network interface that has this address}"',
        "export HCCL_IF_IP GLOO_SOCKET_IFNAME=$NIC TP_SOCKET_IFNAME=$NIC HCCL_SOCKET_IFNAME=$NIC",
    ]


FLOATS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""--dtype by our dtype, in vLLM and SGLang alike."""


def dtype_flags(r: Request, kv_dtypes: Mapping[str, str]) -> list[Flag]:
    """Quantisation is read from the checkpoint; only what departs from it is said."""
    s, native = r.strategy, r.model.weight_dtype
    flags = [Flag("--kv-cache-dtype", kv_dtypes[s.kv_dtype])]
    if s.weight_dtype in FLOATS and native in FLOATS:
        flags.insert(0, Flag("--dtype", FLOATS[s.weight_dtype]))
    elif s.weight_dtype == "fp8" and native in FLOATS:
        flags.insert(0, Flag("--quantization", "fp8"))
    return flags


def flag_lines(flags: Iterable[Flag]) -> list[str]:
    return [f.name if f.value is None else f"{f.name} {shlex.quote(f.value)}" for f in flags]


def one_line(text: str) -> str:
    """Safe inside a `#` comment: no line ends, no control characters."""
    return re.sub(r"[\x00-\x1f\x7f\u0085\u2028\u2029]+", " ", text).strip()


def continued(lines: Sequence[str], indent: str = "") -> str:
    """One shell command over several lines."""
    return (" \\\n" + indent + "  ").join([indent + lines[0], *lines[1:]])


def header_rows(what: str, rows: Sequence[tuple[str, str]]) -> str:
    """Shebang, what the script is for, and one comment per row."""
    body = "\n".join(f"#   {k:<9} {one_line(v)}" for k, v in rows)
    return f"#!/usr/bin/env bash\n# {what}\n#\n{body}\n\nset -euo pipefail\n"


def layer_counts(s: Strategy, m: ModelSpec) -> str:
    return f"{'+'.join(map(str, s.layers_per_stage or (m.num_hidden_layers,)))} = {m.num_hidden_layers} per stage"


def header(r: Request, what: str, usage: Sequence[str]) -> str:
    s, p = r.strategy, r.placement
    dtypes = f"weights {s.weight_dtype}, KV cache {s.kv_dtype}"
    return header_rows(what, [
        ("model", r.model.name),
        ("engine", f"{r.rules.label} (flags and rules of this release)"),
        ("strategy", f"{s.label(moe=r.model.moe is not None)}; {dtypes}"),
        ("world", r.rules.world(s)),
        *([("layers", layer_counts(s, r.model))] if s.pp > 1 else []),
        ("nodes", f"{p.nodes}, {p.local} ranks of a replica on each, {p.nodes_per_replica} per replica"),
        ("batch", f"{r.max_num_seqs} sequences per replica, steps of {r.max_num_batched_tokens} tokens"),
        ("context", f"{r.max_model_len} tokens (planned for {r.isl} in, {r.osl} out)"),
        *(("usage", u) for u in usage),
        *(("note", n) for n in r.notes),
    ])  # fmt: skip


def serve_script(launcher: Launcher, r: Request) -> str:
    once = launcher.started_once if r.multi_node else None
    needs_rank = int(r.placement.nodes) > 1 and once is None
    parts = [
        header(r, "Serve the plan." if r.pool == "serve" else f"Serve the {r.pool} pool of the plan.", _usage(r, once)),
        _variables(launcher, r, needs_rank, once is not None),
    ]
    lines = [*launcher.command(r), *r.pool_flags]
    if once is not None:
        parts.append("exec " + continued([" ".join(once(r)), *lines, '"$@"']) + "\n")
        return "\n".join(parts)
    before, across = launcher.across_nodes(r) if r.multi_node else ([], [])
    lines += across
    if r.instances == 1:
        parts.append("\n".join(before) + ("\n\n" if before else "") + "exec " + continued([*lines, '"$@"']) + "\n")
    else:
        parts.append(_several(launcher, r, before, lines))
    return "\n".join(parts)


def _usage(r: Request, once: Callable[[Request], list[str]] | None) -> list[str]:
    script, nodes = f"{r.pool}.sh", int(r.placement.nodes)
    if once is not None:
        per = int(r.placement.nodes_per_replica)
        again = f", once for each of {r.strategy.dp} replicas" if r.strategy.dp > 1 else ""
        return [
            f"HOSTS=<the {per} nodes of a replica, joined by commas> bash {script}   # on one of them{again}",
            "the directory of this script must be readable under the same path on all of them",
        ]
    if nodes == 1:
        return [f"bash {script}   # MODEL, HOST and PORT may be set in the environment; further flags go to the engine"]
    addr = " MASTER_ADDR=<first node of this replica>" if r.multi_node else ""
    usage = [f"NODE_RANK=<0..{nodes - 1}>{addr} bash {script}   # on each of {nodes} nodes"]
    if r.multi_node and on_npus(r):
        usage.append("HCCL_IF_IP and NIC name this node's address and interface on the network between hosts")
    elif r.multi_node:
        usage.append("NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME choose the network where a node has several")
    return usage


def model_and_address(r: Request) -> list[str]:
    where = f"   # set MODEL: a checkpoint in {r.strategy.weight_dtype}" if r.own_checkpoint else ""
    return [
        f"MODEL=${{MODEL:-{shlex.quote(r.model_path)}}}{where}",
        "HOST=${HOST:-0.0.0.0}",
        f"PORT=${{PORT:-{r.port}}}",
    ]


def layer_partition_lines(r: Request) -> list[str]:
    """The environment variable that cuts the layers, where the plan's cut is not the engine's own."""
    stages, own = r.strategy.layers_per_stage, r.rules.layers_per_stage
    if not stages or r.strategy.pp == 1 or not r.rules.layer_partition_env:
        return []
    if stages == own(r.model.num_hidden_layers, r.strategy.pp):
        return []
    return [f"export {r.rules.layer_partition_env}={','.join(map(str, stages))}"]


def _variables(launcher: Launcher, r: Request, needs_rank: bool, once: bool) -> str:
    rows = model_and_address(r)
    if needs_rank:
        rows.append(f': "${{NODE_RANK:?set NODE_RANK, 0 to {int(r.placement.nodes) - 1}, one per node}}"')
    if once:
        rows.append(f': "${{HOSTS:?set HOSTS to the {r.placement.nodes_per_replica} nodes of a replica}}"')
    elif r.multi_node:
        rows += [
            ': "${MASTER_ADDR:?set MASTER_ADDR, the address of the first node of this replica}"',
            "MASTER_PORT=${MASTER_PORT:-29501}",
            f"NNODES={r.placement.nodes_per_replica}",
            "RANK=$((NODE_RANK % NNODES))",
        ]
    rows += [*layer_partition_lines(r), *launcher.environment(r), *r.pool_lines]
    if r.instances == 1 or once:
        rows += [f"export {name}={value}" for name, value in r.pool_environment]
    return "\n".join(rows) + "\n"


PORTS = {"PORT": 1, "MASTER_PORT": 20, "BOOTSTRAP_PORT": 1, "NIXL_PORT": 100}
"""Ports that each replica on a node needs its own of, and how far apart (NIXL takes one per rank)."""


def _several(launcher: Launcher, r: Request, before: Sequence[str], lines: Sequence[str]) -> str:
    """Independent replicas, each on its own devices and port; the script ends when the first of them does."""
    nodes, per = int(r.placement.nodes), int(r.placement.nodes_per_replica)
    slots = min(int(r.placement.slots), -(-r.strategy.dp * per // nodes))
    first = "$((NODE_RANK / NNODES * SLOTS))" if r.multi_node else "$((NODE_RANK * SLOTS))" if nodes > 1 else "0"
    body = "\n".join("  " + line for line in before)
    environment = [f"{name}={value}" for name, value in r.pool_environment]
    command = continued(
        [" ".join(['env "$VISIBLE=$devices"', *environment]), *lines, '${EXTRA[@]+"${EXTRA[@]}"}'], "  "
    )
    for name, step in PORTS.items():
        offset = "slot" if step == 1 else f"{step} * slot"
        command = command.replace(f'"${name}"', f'"$(({name} + {offset}))"')
    return f"""REPLICAS={r.strategy.dp}
SLOTS={slots}   # replicas side by side on a node
LOCAL={r.placement.local}   # devices of one replica on a node
VISIBLE=${{VISIBLE:-{visible_variable(launcher, r.device)}}}   # the variable that limits a process to some devices
FIRST={first}
EXTRA=("$@")
FIRST_DEVICE=${{FIRST_DEVICE:-0}}   # of this node; those before it belong to somebody else

serve() {{   # serve SLOT
  local slot=$1 devices
  devices=$(seq -s, "$((FIRST_DEVICE + slot * LOCAL))" "$((FIRST_DEVICE + slot * LOCAL + LOCAL - 1))")
{body + chr(10) if body else ""}{command} &
}}

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for ((slot = 0; slot < SLOTS && FIRST + slot < REPLICAS; slot++)); do
  serve "$slot"
done
wait -n
"""


def router_script(r: Request) -> str:
    """nginx in front of the replicas; least_conn, since decode lengths differ."""
    nodes, per = int(r.placement.nodes), int(r.placement.nodes_per_replica)
    slots = min(int(r.placement.slots), -(-r.strategy.dp * per // nodes))
    hosts = "127.0.0.1" if nodes == 1 else ""
    need = f"the {nodes // per} nodes with NODE_RANK % {per} = 0" if per > 1 else f"the {nodes} nodes"
    usage = "bash router.sh" if nodes == 1 else f'NODES="<addresses of {need}, in order>" bash router.sh'
    head = header(r, "One port in front of the replicas.", [
        f"{usage}   # needs nginx",
        "engine-aware routers (vllm-router, sglang-router) also keep prompts with a common prefix together",
    ])  # fmt: skip
    ask = f"NODES=${{NODES:-{hosts}}}" if hosts else f': "${{NODES:?set NODES to the addresses of {need}}}"'
    return f"""{head}
{ask}
PORT=${{PORT:-{r.port}}}           # first replica's port on each node
ROUTER_PORT=${{ROUTER_PORT:-{r.port - 1}}}
REPLICAS={r.strategy.dp}
SLOTS={slots}

conf=$(mktemp)
replica=0
{{
  # A request holds two connections; nginx allows 512 and bodies of 1 MB, prompts may be longer.
  echo "daemon off; worker_rlimit_nofile 65536; events {{ worker_connections 16384; }}"
  echo "http {{ client_max_body_size 0; upstream replicas {{ least_conn;"
  for node in $NODES; do
    for ((slot = 0; slot < SLOTS && replica < REPLICAS; slot++, replica++)); do
      echo "  server $node:$((PORT + slot));"
    done
  done
  echo "}} server {{ listen $ROUTER_PORT; location / {{"
  echo "  proxy_pass http://replicas; proxy_buffering off; proxy_read_timeout 3600s;"
  echo "}} }} }}"
}} > "$conf"
exec nginx -c "$conf"
"""
