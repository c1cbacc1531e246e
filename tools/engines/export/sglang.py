"""SGLang 0.5.23: `python -m sglang.launch_server`, on one node and on several, and read back."""

from __future__ import annotations

from tools.engines.export.base import (
    Launcher,
    ParsedCommand,
    Request,
    command_words,
    flag_lines,
    layer_partition,
    split_flags,
    whole,
)
from tools.engines.rules import Flag
from tools.engines.rules.sglang import KV_DTYPES, MAX_GRAPH_BATCH, SHARED_TP1, scheduled
from tools.spec.base import ToolError

FLOATS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def dtype_flags(r: Request) -> list[Flag]:
    """Quantisation is read from the checkpoint; only what departs from it is said."""
    s, native = r.strategy, r.model.weight_dtype
    flags = [Flag("--kv-cache-dtype", KV_DTYPES[s.kv_dtype])]
    if s.weight_dtype in FLOATS and native in FLOATS:
        flags.insert(0, Flag("--dtype", FLOATS[s.weight_dtype]))
    elif s.weight_dtype == "fp8" and native in FLOATS:
        flags.insert(0, Flag("--quantization", "fp8"))
    elif s.weight_dtype == "int8" and r.device is not None and r.device.vendor.lower() == "huawei":
        flags.insert(0, Flag("--quantization", "modelslim"))
    return flags


def command(r: Request) -> list[str]:
    s = r.strategy
    attn_dp = s.attn_dp or 1
    flags = [
        *r.rules.parallel_flags(r.model, s),
        *([Flag("--dp-size", str(s.dp))] if r.native_replicas else []),
        *dtype_flags(r),
        Flag("--context-length", str(r.max_model_len)),
        # Both are divided by attn_dp inside the engine.
        Flag("--max-running-requests", str(r.max_num_seqs)),
        Flag("--chunked-prefill-size", str(r.max_num_batched_tokens * attn_dp)),
        Flag("--max-prefill-tokens", str(r.max_num_batched_tokens)),
        # No graphs for batches that the plan never runs: their memory belongs to the KV cache.
        Flag("--cuda-graph-max-bs-decode", str(min(MAX_GRAPH_BATCH, scheduled(s)))),
    ]
    if r.device is not None and r.device.vendor.lower() == "huawei":
        flags += [Flag("--device", "npu"), Flag("--attention-backend", "ascend")]
    if r.memory_fraction is not None:
        flags.append(Flag("--mem-fraction-static", f"{r.memory_fraction:g}"))
    return [
        "python3 -m sglang.launch_server", '--model-path "$MODEL"', '--host "$HOST"', '--port "$PORT"',
        *flag_lines(flags),
    ]  # fmt: skip


def across_nodes(r: Request) -> tuple[list[str], list[str]]:
    return [], ['--nnodes "$NNODES"', '--node-rank "$RANK"', '--dist-init-addr "$MASTER_ADDR":"$MASTER_PORT"']


def bench(r: Request) -> list[str]:
    lines = [
        "python3 -m sglang.benchmark.serving", "--backend sglang", '--model "$MODEL"',
        '--base-url "http://$HOST:$PORT"', "--dataset-name random-ids", f"--random-input-len {r.isl}",
        f"--random-output-len {r.osl}", "--random-range-ratio 1.0", '--max-concurrency "$CONCURRENCY"',
        '--num-prompts "$PROMPTS"', '--warmup-requests "$CONCURRENCY"', '--output-file "$RESULT"',
    ]  # fmt: skip
    if r.request_rate:
        lines.append(f"--request-rate {r.request_rate:g}")
    return lines


def environment(r: Request) -> list[str]:
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
