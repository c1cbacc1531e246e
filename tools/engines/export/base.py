"""What every launch file has in common: the request, the script around a command, and how commands are read.

A `Launcher` says one engine's command; this file wraps it for one node, several nodes, and several replicas. Scripts
are plain bash: values that come from outside are shell-quoted, what differs per cluster is an environment variable.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from tools.engines.rules import EngineRules, Flag, Placement
from tools.spec.base import Frozen, ToolError
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


def visible_variable(launcher: Launcher, device: Device | None) -> str:
    """The variable that limits a process to some devices."""
    own = {"amd": "HIP_VISIBLE_DEVICES", "huawei": "ASCEND_RT_VISIBLE_DEVICES"}
    return own.get(device.vendor.lower(), launcher.visible) if device is not None else launcher.visible


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
        parts.append("exec " + continued([" ".join(once(r)), *lines]) + "\n")
        return "\n".join(parts)
    before, across = launcher.across_nodes(r) if r.multi_node else ([], [])
    lines += across
    if r.instances == 1:
        parts.append("\n".join(before) + ("\n\n" if before else "") + "exec " + continued(lines) + "\n")
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
        return [f"bash {script}            # MODEL, HOST and PORT may be set in the environment"]
    addr = " MASTER_ADDR=<first node of this replica>" if r.multi_node else ""
    usage = [f"NODE_RANK=<0..{nodes - 1}>{addr} bash {script}   # on each of {nodes} nodes"]
    if r.multi_node:
        usage.append("NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME choose the network where a node has several")
    return usage


def model_and_address(r: Request) -> list[str]:
    return [
        f"MODEL=${{MODEL:-{shlex.quote(r.model_path)}}}",
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
    command = continued([" ".join(['env "$VISIBLE=$devices"', *environment]), *lines], "  ")
    for name, step in PORTS.items():
        offset = "slot" if step == 1 else f"{step} * slot"
        command = command.replace(f'"${name}"', f'"$(({name} + {offset}))"')
    return f"""REPLICAS={r.strategy.dp}
SLOTS={slots}   # replicas side by side on a node
LOCAL={r.placement.local}   # devices of one replica on a node
VISIBLE=${{VISIBLE:-{visible_variable(launcher, r.device)}}}   # the variable that limits a process to some devices
FIRST={first}

serve() {{   # serve SLOT
  local slot=$1 devices
  devices=$(seq -s, "$((slot * LOCAL))" "$((slot * LOCAL + LOCAL - 1))")
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
  echo "daemon off; events {{}}"
  echo "http {{ upstream replicas {{ least_conn;"
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


def bench_script(launcher: Launcher, r: Request, port: int | None = None) -> str:
    """The engine's own benchmark under the planned load, then its result beside the predictions.

    Exit 1 where a figure lies outside its band. The measured row goes to $MEASURED, which `meshwright calibrate` reads."""
    port = port or (r.port - 1 if r.instances > 1 else r.port)
    usage = [
        "bash bench.sh            # while the servers run; at other loads: CONCURRENCY=N bash bench.sh",
        "meshwright calibrate --measured measured.csv   # afterwards: curves and bands of this cluster",
        *(f"{n}" for n in r.bench_notes),
    ]
    prompts = 8 * r.concurrency if r.request_rate is None else max(4 * r.concurrency, round(120 * r.request_rate))
    why = (
        "eight rounds: the first fills the batch"
        if r.request_rate is None
        else "two minutes of arrivals, or four batches"
    )
    rows = [
        f"MODEL=${{MODEL:-{shlex.quote(r.model_path)}}}",
        "HOST=${HOST:-127.0.0.1}",
        f"PORT=${{PORT:-{port}}}",
        f"CONCURRENCY=${{CONCURRENCY:-{r.concurrency}}}",
        f"PROMPTS=${{PROMPTS:-{max(16, min(prompts, 4000))}}}   # {why}",
        "export RESULT=${RESULT:-bench.json} MEASURED=${MEASURED:-measured.csv}",
    ]
    return (
        header(r, "Measure the plan and compare it with its predictions.", usage)
        + "\n"
        + "\n".join(rows)
        + '\n\nrm -f "$RESULT"\n'
        + continued(launcher.bench(r))
        + "\n\n"
        + comparison(r)
    )


def comparison(r: Request) -> str:
    """Python that reads the result (JSON, or the last line of JSON lines), compares, and appends the measured row."""
    s = r.strategy
    rows = [(e.key, e.name, e.value, e.band, e.limit, e.higher_is_better) for e in r.expected]
    measured = {
        "model": r.model.name, "gpu": r.device.id if r.device is not None else "", "n_gpus": s.num_devices,
        "engine": r.rules.engine, "weight_dtype": s.weight_dtype, "kv_dtype": s.kv_dtype, "tp": s.tp * (s.attn_dp or 1),
        "pp": s.pp, "ep": s.ep, "dp": s.dp, "attn_dp": s.attn_dp or 1, "isl": r.isl, "osl": r.osl,
        "metric": "at_concurrency",
    }  # fmt: skip
    return f"""python3 - "$RESULT" "$MEASURED" "$CONCURRENCY" <<'PY'
import csv, json, os, sys
PREDICTED = {rows!r}   # key of the result, name, value, relative band, limit, higher is better
ROW = {measured!r}
PLANNED, RATE = {r.concurrency}, {r.request_rate!r}
result, table, concurrency = sys.argv[1:]
text = open(result).read().strip()
try:
    found = json.loads(text)
except ValueError:
    found = json.loads(text.splitlines()[-1])   # one JSON document per run and line
outside = 0
at_plan = RATE is not None or int(concurrency) == PLANNED
for key, name, value, band, limit, higher in PREDICTED if at_plan else []:
    got = found.get(key)
    if not got:
        print(f"{{name:22s}} not in the result")
        continue
    off = got / value - 1
    inside = abs(off) <= band
    outside += not inside
    said = f"{{name:22s}} measured {{got:10.4g}}  predicted {{value:10.4g}} ±{{band:.0%}}  off {{off:+.1%}}"
    said += "  inside the band" if inside else "  OUTSIDE the band"
    if limit is not None:
        said += f"  limit {{limit:.4g}} " + ("met" if (got >= limit if higher else got <= limit) else "BROKEN")
    print(said)
if not at_plan:
    print(f"concurrency {{concurrency}} is not the planned {{PLANNED}}: nothing to compare, the row is kept")
if RATE is not None and found.get("mean_e2el_ms") and found.get("request_throughput"):
    concurrency = max(1, round(found["request_throughput"] * found["mean_e2el_ms"] / 1e3))   # Little's law
row = ROW | {{"concurrency_or_batch": concurrency, "ttft_ms": found.get("mean_ttft_ms", ""),
             "tpot_ms": found.get("mean_tpot_ms", ""), "output_tok_s_total": found.get("output_throughput", "")}}
new = not os.path.exists(table)
with open(table, "a", newline="") as f:
    w = csv.DictWriter(f, row)
    if new:
        w.writeheader()
    w.writerow(row)
sys.exit(1 if outside else 0)
PY
"""


def files(launcher: Launcher, r: Request) -> tuple[LaunchFile, ...]:
    out = [LaunchFile(name=f"{launcher.engine}/{r.pool}.sh", text=serve_script(launcher, r)), *launcher.extra(r)]
    # Replicas that MPI starts share no numbering of nodes: a router would not know where they are.
    if r.instances > 1 and not (r.multi_node and launcher.started_once):
        out.append(LaunchFile(name=f"{launcher.engine}/router.sh", text=router_script(r)))
    out.append(LaunchFile(name=f"{launcher.engine}/bench.sh", text=bench_script(launcher, r)))
    return tuple(out)


# Reading a command back ------------------------------------------------------------------------------------------


class ParsedCommand(Frozen):
    """What a launch command says: `degrees` are keyword arguments of Strategy, `options` every flag as written."""

    engine: str
    model_path: str
    degrees: dict[str, int]
    layers_per_stage: tuple[int, ...] | None = None
    options: dict[str, str] = Field(default_factory=dict)
    """Long flag names with dashes, without the leading ones; a switch has the value ""."""
    version: str | None = None
    """Release of the engine, where the text names one (the tag of an image)."""

    def strategy(self, **more: Any) -> Strategy:
        kwargs: dict[str, Any] = {"engine": self.engine, **self.degrees, **more}
        if self.layers_per_stage is not None and len(self.layers_per_stage) == kwargs.get("pp", 1):
            kwargs.setdefault("layers_per_stage", self.layers_per_stage)
        return Strategy(**kwargs)


ASSIGNMENT = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)=(.*)$", re.MULTILINE)
REFERENCE = re.compile(r"\$\{(\w+)(?::?[-?]([^}]*))?\}|\$(\w+)")


def shell_variables(text: str) -> dict[str, str]:
    """Plain assignments of a script; `X=${X:-default}` gives the default."""
    out: dict[str, str] = {}
    for name, raw in ASSIGNMENT.findall(text):
        try:
            words = shlex.split(raw, comments=True)
        except ValueError:
            continue
        value = words[0] if len(words) == 1 else " ".join(words)
        if "$((" in value:
            continue  # arithmetic on ranks
        if match := re.fullmatch(r"\$\{\w+:-(.*)\}", value, re.DOTALL):
            value = match.group(1)
        out[name] = value
    return out


def command_words(text: str, starts: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(words of the first command that starts with one of `starts`, variables of the script). ToolError if none."""
    joined = re.sub(r"\\\r?\n", " ", text)
    variables = shell_variables(joined)
    for line in joined.splitlines():
        if line.lstrip().startswith("#"):
            continue
        for start in starts:
            at = re.search(rf"(?<![\w.-]){re.escape(start)}(?!\w)", line)
            if at is None:
                continue
            inline = dict(re.findall(r"([A-Z_][A-Z0-9_]*)=([^\s;]+)", line[: at.start()]))
            # Arithmetic and alternative expansions name ports and ranks, never degrees.
            rest = re.sub(r"\$\(\([^()]*\)\)", "0", line[at.end() :])
            rest = re.sub(r"\$\{\w+:\+[^}]*\}", "", rest)
            try:
                words = shlex.split(rest, comments=True)
            except ValueError as error:
                raise ToolError(f"the {start} command cannot be read: {error}; check its quotes") from None
            return [_expand(w, variables) for w in _until_operator(words)], {**variables, **inline}
    raise ToolError(f"no command that starts with {' or '.join(starts)}; give the launch command or its script")


def _until_operator(words: Sequence[str]) -> list[str]:
    out: list[str] = []
    for w in words:
        if w in {"&", "&&", "|", "||", ";", ">", ">>", "2>&1"}:
            break
        out.append(w.removesuffix(";"))
    return out


def _expand(word: str, variables: Mapping[str, str]) -> str:
    """Variables of the script, else the default that the reference itself gives (`${X:-default}`), else nothing."""
    return REFERENCE.sub(lambda m: variables.get(m.group(1) or m.group(3), m.group(2) or ""), word)


def split_flags(
    words: Sequence[str], short: Mapping[str, str], switches: frozenset[str]
) -> tuple[list[str], dict[str, str]]:
    """(positional words, options by long name). Understands --flag=value, underscores, and the short forms given."""
    positional: list[str] = []
    options: dict[str, str] = {}
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if not (word.startswith("--") or word.split("=")[0] in short):
            positional.append(word)
            continue
        name, _, value = word.partition("=")
        name = short.get(name, name.removeprefix("--").replace("_", "-"))
        if not value and name not in switches and i < len(words) and not _is_flag(words[i], short):
            value = words[i]
            i += 1
        options[name] = value
    return positional, options


def _is_flag(word: str, short: Mapping[str, str]) -> bool:
    return word.startswith("--") or word in short


def whole(options: Mapping[str, str], *names: str, default: int = 1) -> int:
    """The first option among `names` as a positive integer."""
    for name in names:
        if name in options:
            try:
                value = int(options[name])
            except ValueError:
                raise ToolError(f"--{name} must be a whole number, got {options[name]!r}") from None
            if value < 1:
                raise ToolError(f"--{name} must be at least 1, got {value}")
            return value
    return default


def layer_partition(variables: Mapping[str, str], name: str) -> tuple[int, ...] | None:
    raw = variables.get(name, "").strip("\"'")
    if not raw:
        return None
    try:
        return tuple(int(x) for x in raw.split(","))
    except ValueError:
        raise ToolError(f"{name} must be whole numbers joined by commas, got {raw!r}") from None
