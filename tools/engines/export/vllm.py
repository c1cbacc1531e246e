"""vLLM 0.33.0: `vllm serve`, on one node, on several (multiprocessing back end, no Ray), and read back."""

from __future__ import annotations

from tools.engines.export.base import Launcher, Request, dtype_flags, flag_lines
from tools.engines.export.reading import ParsedCommand, command_words, layer_partition, split_flags, whole
from tools.engines.rules import Flag
from tools.engines.rules.base import Degrees, dispatches
from tools.engines.rules.common import LOW_LATENCY_TOKENS
from tools.engines.rules.vllm import KV_DTYPES


def base_command(r: Request) -> list[str]:
    """Model, address, degrees and the planned limits: what vLLM takes on every platform."""
    s = r.strategy
    flags = [
        *r.rules.parallel_flags(r.model, s),
        Flag("--max-model-len", str(r.max_model_len)),
        # One scheduler per attention-DP rank, so its share of the replica's batch.
        Flag("--max-num-seqs", str(-(-r.max_num_seqs // (s.attn_dp or 1)))),
        Flag("--max-num-batched-tokens", str(r.max_num_batched_tokens)),
    ]
    if r.memory_fraction is not None:
        flags.append(Flag("--gpu-memory-utilization", f"{r.memory_fraction:g}"))
    return ['vllm serve "$MODEL"', '--host "$HOST"', '--port "$PORT"', *flag_lines(flags)]


def command(r: Request) -> list[str]:
    s = r.strategy
    lines = [*base_command(r), *flag_lines(dtype_flags(r, KV_DTYPES))]
    if r.model.moe is not None and (s.attn_dp or 1) > 1 and s.ep > 1:
        lines.append(f'--all2all-backend "${{ALL2ALL_BACKEND:-{all_to_all(r)}}}"')
    return lines


def all_to_all(r: Request) -> str:
    """High throughput is for the large batches of prefill, low latency for decode; one pool does both, where its steps are
    small enough (vLLM sizes the low-latency buffers by them)."""
    s = r.strategy
    if not dispatches(Degrees.of(s)):
        return "allgather_reducescatter"
    throughput = r.pool == "prefill" or s.ep_nodes > 1 or r.max_num_batched_tokens > LOW_LATENCY_TOKENS
    return "deepep_high_throughput" if throughput else "deepep_low_latency"


def across_nodes(r: Request) -> tuple[list[str], list[str]]:
    """Ranks after the first are headless. Whole attention-DP ranks per node start by their own handshake."""
    s, p = r.strategy, r.placement
    before = ['HEADLESS=""', 'if [ "$RANK" -gt 0 ]; then HEADLESS=1; fi']
    per_dp_rank = s.replica // (s.attn_dp or 1)
    if (s.attn_dp or 1) == 1 or per_dp_rank > int(p.local):
        return before, [
            '--nnodes "$NNODES"', '--node-rank "$RANK"', '--master-addr "$MASTER_ADDR"', '--master-port "$MASTER_PORT"',
            "${HEADLESS:+--headless}",
        ]  # fmt: skip
    here = int(p.local) // per_dp_rank
    before.append(f"START=$((RANK * {here}))   # first data-parallel rank of this node")
    return before, [
        f"--data-parallel-size-local {here}", '--data-parallel-address "$MASTER_ADDR"',
        '--data-parallel-rpc-port "$MASTER_PORT"',
        # The head node names no start rank: with one it would balance its own ranks only.
        "${HEADLESS:+--headless --data-parallel-start-rank $START}",
    ]  # fmt: skip


def bench(r: Request) -> list[str]:
    prefix = round(r.isl * r.cached)
    return [
        "vllm bench serve", '--model "$MODEL"', '--base-url "http://$HOST:$PORT"', "--dataset-name random",
        f"--random-input-len {r.isl - prefix}", *([f"--random-prefix-len {prefix}"] if prefix else []),
        f"--random-output-len {r.osl}", "--ignore-eos",
        '--max-concurrency "$CONCURRENCY"', '--num-prompts "$PROMPTS"', '--num-warmups "$CONCURRENCY"',
        "--percentile-metrics ttft,tpot,itl,e2el", "--metric-percentiles 50,90,95,99",
        "--save-result", '--result-dir .', '--result-filename "$RESULT"',
    ]  # fmt: skip


LAUNCHER = Launcher(engine="vllm", command=command, across_nodes=across_nodes, bench=bench)

SHORT = {
    "-tp": "tensor-parallel-size", "-pp": "pipeline-parallel-size", "-dp": "data-parallel-size",
    "-dpl": "data-parallel-size-local", "-dpa": "data-parallel-address", "-dpp": "data-parallel-rpc-port",
    "-dpr": "data-parallel-start-rank", "-dpn": "data-parallel-rank", "-dpb": "data-parallel-backend",
    "-dcp": "decode-context-parallel-size", "-pcp": "prefill-context-parallel-size", "-ep": "enable-expert-parallel",
    "-q": "quantization", "-n": "nnodes", "-r": "node-rank", "-cc": "compilation-config",
}  # fmt: skip
SWITCHES = frozenset({
    "enable-expert-parallel", "headless", "trust-remote-code", "enforce-eager", "enable-prefix-caching",
    "no-enable-prefix-caching", "enable-chunked-prefill", "no-enable-chunked-prefill", "enable-eplb", "enable-dbo",
    "data-parallel-hybrid-lb", "data-parallel-external-lb", "enable-auto-tool-choice", "disable-log-requests",
    "async-scheduling", "no-async-scheduling", "disable-custom-all-reduce",
})  # fmt: skip
STARTS = ("vllm serve", "vllm.entrypoints.openai.api_server")


def parse_vllm(text: str, *, moe: bool | None = None) -> ParsedCommand:
    """Degrees and options of a `vllm serve` command, or of the first one in a script.

    `--data-parallel-size` means attention DP for a MoE model and replicas for a dense one; with `moe` None the
    expert-parallel switch decides. Raises ToolError for what is no vLLM command.
    """
    words, variables = command_words(text, STARTS)
    positional, options = split_flags(words, SHORT, SWITCHES)
    experts = "enable-expert-parallel" in options
    moe = experts if moe is None else moe
    tp = whole(options, "tensor-parallel-size")
    dcp = whole(options, "decode-context-parallel-size")
    cp = whole(options, "prefill-context-parallel-size")
    data = whole(options, "data-parallel-size")
    degrees = {"tp": tp, "pp": whole(options, "pipeline-parallel-size"), "cp": cp, "dcp": dcp}
    attn_dp = data if moe else 1
    group = tp * cp * attn_dp
    degrees |= {"attn_dp": attn_dp, "ep": group if experts else 1, "etp": 1 if experts else group}
    degrees["dp"] = (1 if moe else data) * whole(variables, "REPLICAS")
    ascend = options.get("quantization") == "ascend" or any(v.startswith(("HCCL_", "ASCEND_")) for v in variables)
    return ParsedCommand(
        engine="vllm-ascend" if ascend else "vllm", degrees=degrees, options=options,
        model_path=options.get("model") or (positional[0] if positional else ""),
        layers_per_stage=layer_partition(variables, "VLLM_PP_LAYER_PARTITION"),
    )  # fmt: skip
