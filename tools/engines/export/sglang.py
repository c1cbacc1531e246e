"""SGLang 0.5.23: `python -m sglang.launch_server`, on one node and on several, and read back."""

from __future__ import annotations

from tools.engines.export.base import Launcher, Request, dtype_flags, flag_lines, hccl_lines, on_npus
from tools.engines.export.reading import ParsedCommand, command_words, layer_partition, split_flags, whole
from tools.engines.rules import Flag
from tools.engines.rules.base import Degrees, dispatches
from tools.engines.rules.common import LOW_LATENCY_TOKENS
from tools.engines.rules.sglang import KV_DTYPES, MAX_GRAPH_BATCH, SHARED_TP1, scheduled
from tools.spec.base import ToolError

RESERVED_TOKENS = 5
"""Of --context-length, which no request may use: inputs end 6 tokens before it, outputs 2 (managers/tp_worker.py:568,
managers/scheduler.py:2714), and a request has one output token at least."""
DISPATCH_TOKENS = 128
"""Default of SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK (environ.py:1439)."""


def context_length(r: Request) -> int:
    """The planned context with what the engine keeps for itself, as far as the checkpoint goes."""
    most = r.model.max_context
    wanted = r.max_model_len + RESERVED_TOKENS
    return wanted if most is None else min(wanted, max(most, r.max_model_len))


def command(r: Request) -> list[str]:
    s = r.strategy
    attn_dp = s.attn_dp or 1
    flags = [
        *r.rules.parallel_flags(r.model, s),
        *([Flag("--dp-size", str(s.dp))] if r.native_replicas else []),
        *([Flag("--quantization", "modelslim")] if s.weight_dtype == "int8" and on_npus(r) else []),
        *dtype_flags(r, KV_DTYPES),
        Flag("--context-length", str(context_length(r))),
        # Both are divided by attn_dp inside the engine.
        Flag("--max-running-requests", str(r.max_num_seqs)),
        Flag("--chunked-prefill-size", str(r.max_num_batched_tokens * attn_dp)),
        Flag("--max-prefill-tokens", str(r.max_num_batched_tokens)),
        # No graphs for batches that the plan never runs: their memory belongs to the KV cache.
        Flag("--cuda-graph-max-bs-decode", str(min(MAX_GRAPH_BATCH, scheduled(s)))),
    ]
    if on_npus(r):
        flags += [Flag("--device", "npu"), Flag("--attention-backend", "ascend")]
    if r.memory_fraction is not None:
        flags.append(Flag("--mem-fraction-static", f"{r.memory_fraction:g}"))
    return [
        "python3 -m sglang.launch_server", '--model-path "$MODEL"', '--host "$HOST"', '--port "$PORT"',
        *flag_lines(flags), *(['--dist-init-addr 127.0.0.1:"$MASTER_PORT"'] if own_ports(r) else []),
    ]  # fmt: skip


def own_ports(r: Request) -> bool:
    """With attention DP an instance talks over a run of ports, which it derives from its own port: those of neighbours, one
    port further, would overlap (server_args.py:820)."""
    return (r.strategy.attn_dp or 1) > 1 and r.instances > 1 and not r.multi_node


def across_nodes(r: Request) -> tuple[list[str], list[str]]:
    return [], ['--nnodes "$NNODES"', '--node-rank "$RANK"', '--dist-init-addr "$MASTER_ADDR":"$MASTER_PORT"']


def bench(r: Request) -> list[str]:
    return [
        "python3 -m sglang.benchmark.serving", "--backend sglang", '--model "$MODEL"',
        '--base-url "http://$HOST:$PORT"', "--dataset-name random-ids", f"--random-input-len {r.isl}",
        f"--random-output-len {r.osl}", "--random-range-ratio 1.0", "--tokenize-prompt", '--max-concurrency "$CONCURRENCY"',
        '--num-prompts "$PROMPTS"', '--warmup-requests "$CONCURRENCY"', '--output-file "$RESULT"',
    ]  # fmt: skip


def environment(r: Request) -> list[str]:
    rows = ["MASTER_PORT=${MASTER_PORT:-29501}"] if own_ports(r) else []
    return [*rows, *(hccl_lines(r) if on_npus(r) else []), *_shared_experts(r), *_dispatch_tokens(r)]


def _dispatch_tokens(r: Request) -> list[str]:
    """Low-latency kernels take so many tokens of a rank: room for the planned batch."""
    tokens = int(scheduled(r.strategy))
    room = DISPATCH_TOKENS < tokens <= LOW_LATENCY_TOKENS and r.pool != "prefill"
    if not room or r.model.moe is None or not dispatches(Degrees.of(r.strategy)):
        return []
    return [f"export SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK={tokens}"]


def _shared_experts(r: Request) -> list[str]:
    """Shared experts stay whole on every rank, as the plan has them, where no all-to-all back end makes them so."""
    s, moe = r.strategy, r.model.moe
    wanted = moe is not None and moe.shared_intermediate_size > 0 and s.tp == 1 and s.group > 1
    if wanted and s.moe_comm == "allgather" and r.model.architecture in SHARED_TP1:
        return ["export SGLANG_SHARED_EXPERT_TP1=1"]
    return []


LAUNCHER = Launcher(engine="sglang", command=command, across_nodes=across_nodes, bench=bench, environment=environment)

SWITCHES = frozenset({
    "enable-dp-attention", "enable-dp-lm-head", "enable-prefill-cp", "enable-layernorm-sp", "trust-remote-code",
    "disable-radix-cache", "disable-cuda-graph", "enable-torch-compile", "enable-ep-moe", "enable-deepep-moe",
    "enable-eplb", "enable-two-batch-overlap", "enable-mixed-chunk", "disable-overlap-schedule", "enable-metrics",
})  # fmt: skip
STARTS = ("sglang.launch_server", "sglang serve")


def parse_sglang(text: str) -> ParsedCommand:
    """Degrees and options of an SGLang launch command, or of the first one in a script.

    `--tp-size` is the whole group. The older pair `--dp-size N --enable-dp-attention` means `--attn-dp-size N`.
    Raises ToolError for what is no SGLang command, or when the sizes do not divide.
    """
    words, variables = command_words(text, STARTS)
    positional, options = split_flags(words, {}, SWITCHES)
    group = whole(options, "tp-size", "tensor-parallel-size", "tp")
    data = whole(options, "dp-size", "data-parallel-size", "dp")
    attn_dp = whole(options, "attn-dp-size", "attention-data-parallel-size")
    if "enable-dp-attention" in options and attn_dp == 1:
        attn_dp, data = data, 1
    cp = whole(options, "attn-cp-size", "attention-context-parallel-size")
    a2a = options.get("moe-a2a-backend", "none") != "none" or "enable-deepep-moe" in options
    ep = group if a2a else whole(options, "ep-size", "expert-parallel-size", "ep")
    moe_dp = whole(options, "moe-dp-size", "moe-data-parallel-size")
    if group % (attn_dp * cp) or group % (ep * moe_dp):
        raise ToolError(
            f"tp_size({group}) does not divide by attn_dp({attn_dp}) * attn_cp({cp}) or by ep({ep}) * moe_dp({moe_dp})"
        )
    degrees = {
        "tp": group // (attn_dp * cp), "pp": whole(options, "pp-size", "pipeline-parallel-size", "pp"), "cp": cp,
        "dcp": whole(options, "dcp-size", "decode-context-parallel-size"), "attn_dp": attn_dp, "ep": ep,
        "etp": group // (ep * moe_dp), "dp": data * whole(variables, "REPLICAS"),
    }  # fmt: skip
    path = options.get("model-path") or options.get("model") or (positional[0] if positional else "")
    return ParsedCommand(
        engine="sglang", model_path=path, degrees=degrees, options=options,
        layers_per_stage=layer_partition(variables, "SGLANG_PP_LAYER_PARTITION"),
    )  # fmt: skip
