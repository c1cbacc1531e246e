"""TensorRT-LLM 1.3: `trtllm-serve` with a configuration file, on several nodes under MPI, and read back.

The file's values overrule flags. Second-hand like the rules: keys are those of public templates of 1.3.0rc23.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tools.engines.export.base import Launcher, LaunchFile, Request, flag_lines
from tools.engines.export.reading import ParsedCommand, command_words, split_flags, whole
from tools.engines.export.yaml_text import to_yaml
from tools.engines.rules import Flag
from tools.engines.rules.trtllm import FREE_FRACTION, KV_DTYPES
from tools.spec.base import ToolError

TOKENS_PER_BLOCK = 32


def scheduled(r: Request) -> int:
    """Requests of one scheduler: under attention DP every rank has its own."""
    return -(-r.max_num_seqs // (r.strategy.attn_dp or 1))


def config(r: Request) -> dict[str, Any]:
    """The configuration file: degrees that have no flag, the planned limits, and the cache."""
    s, m = r.strategy, r.model
    kv: dict[str, Any] = {
        "free_gpu_memory_fraction": r.memory_fraction if r.memory_fraction is not None else FREE_FRACTION,
        "dtype": KV_DTYPES[s.kv_dtype], "tokens_per_block": TOKENS_PER_BLOCK,
    }  # fmt: skip
    if r.memory_reserve:
        # The fraction is of what weights leave, so the reserve of the device is kept by capping the planned tokens.
        blocks = -(-r.max_model_len // TOKENS_PER_BLOCK)
        kv["max_tokens"] = scheduled(r) * blocks * TOKENS_PER_BLOCK
    out: dict[str, Any] = {
        "tensor_parallel_size": s.tp * (s.attn_dp or 1), "pipeline_parallel_size": s.pp,
        "max_batch_size": scheduled(r), "max_num_tokens": r.max_num_batched_tokens, "max_seq_len": r.max_model_len,
        "enable_attention_dp": (s.attn_dp or 1) > 1, "enable_chunked_prefill": True, "kv_cache_config": kv,
        "cuda_graph_config": {"enable_padding": True, "max_batch_size": scheduled(r)},
    }  # fmt: skip
    if m.moe is not None:
        out |= {"moe_expert_parallel_size": s.ep, "moe_tensor_parallel_size": s.etp}
    if s.cp > 1:
        out["context_parallel_size"] = s.cp
    own = r.rules.layers_per_stage(m.num_hidden_layers, s.pp)
    if s.pp > 1 and s.layers_per_stage not in (None, own):
        out["pp_partition"] = list(s.layers_per_stage or ())
    return out


def extra(r: Request) -> tuple[LaunchFile, ...]:
    name = "config.yaml" if r.pool == "serve" else f"{r.pool}.yaml"
    return (LaunchFile(name=f"trtllm/{name}", text=to_yaml(config(r)), executable=False),)


def environment(r: Request) -> list[str]:
    name = "config.yaml" if r.pool == "serve" else f"{r.pool}.yaml"
    return [f'CONFIG=${{CONFIG:-$(cd "$(dirname "$0")" && pwd)/{name}}}']


def command(r: Request) -> list[str]:
    flags = [
        *r.rules.parallel_flags(r.model, r.strategy),
        Flag("--max_batch_size", str(scheduled(r))),
        Flag("--max_num_tokens", str(r.max_num_batched_tokens)),
        Flag("--max_seq_len", str(r.max_model_len)),
    ]
    return [
        'trtllm-serve "$MODEL"', '--host "$HOST"', '--port "$PORT"', "--backend pytorch", *flag_lines(flags),
        '--config "$CONFIG"',
    ]  # fmt: skip


def started_once(r: Request) -> list[str]:
    """MPI starts every rank; the first becomes the server."""
    local = int(r.placement.local)
    return [
        "mpirun", f"-n {r.strategy.replica}", f'--host "${{HOSTS//,/:{local},}}:{local}"', f"--map-by ppr:{local}:node",
        "-x PATH -x LD_LIBRARY_PATH -x HF_TOKEN", "trtllm-llmapi-launch",
    ]  # fmt: skip


def bench(r: Request) -> list[str]:
    return [
        "python3 -m tensorrt_llm.serve.scripts.benchmark_serving", "--backend openai", '--model "$MODEL"',
        '--host "$HOST"', '--port "$PORT"', "--dataset-name random", "--random-ids", f"--random-input-len {r.isl}",
        f"--random-output-len {r.osl}", "--ignore-eos", '--max-concurrency "$CONCURRENCY"',
        '--num-prompts "$PROMPTS"', "--percentile-metrics ttft,tpot,itl,e2el", "--metric-percentiles 50,90,95,99",
        "--save-result", "--result-dir .", '--result-filename "$RESULT"',
    ]  # fmt: skip


LAUNCHER = Launcher(
    engine="trtllm", command=command, across_nodes=lambda r: ([], []), bench=bench, environment=environment,
    extra=extra, started_once=started_once,
)  # fmt: skip


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Scalars of the configuration file by name with dashes, nested ones with a dot ("kv-cache-config.dtype")."""
    for key, value in config.items():
        name = prefix + str(key).replace("_", "-")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, int | float | str):
            yield name, str(value)


STARTS = ("trtllm-serve serve", "trtllm-serve")
SWITCHES = frozenset({"trust-remote-code", "fail-fast-on-attention-window-too-large", "enable-chunked-prefill"})


def parse_trtllm(text: str, *, config: Mapping[str, Any] | None = None) -> ParsedCommand:
    """Degrees and options of a trtllm-serve command; `config` is its configuration file, whose values overrule flags.

    Attention DP is said in the file only. Raises ToolError for what is no such command, or sizes that do not divide.
    """
    words, variables = command_words(text, STARTS)
    positional, options = split_flags(words, {}, SWITCHES)
    given = dict(_flat(config or {}))
    attention_dp = given.get("enable-attention-dp", "").lower() == "true"
    options = {**options, **given}
    group = whole(options, "tensor-parallel-size", "tp-size")
    cp = whole(options, "context-parallel-size", "cp-size")
    ep = whole(options, "moe-expert-parallel-size", "ep-size")
    if group % ep:
        raise ToolError(f"tp_size({group}) does not divide by ep_size({ep}); tp_size = expert tp * ep_size")
    # Experts are sliced over tp_size / ep_size; Ulysses ranks are beside them.
    degrees = {
        "tp": 1 if attention_dp else group, "pp": whole(options, "pipeline-parallel-size", "pp-size"), "cp": cp,
        "attn_dp": group if attention_dp else 1, "ep": ep, "etp": whole(options, "moe-tensor-parallel-size",
        default=group // ep), "dp": whole(variables, "REPLICAS"),
    }  # fmt: skip
    cut = (config or {}).get("pp_partition")
    return ParsedCommand(
        engine="trtllm", model_path=options.get("model") or (positional[0] if positional else ""), degrees=degrees,
        layers_per_stage=tuple(int(n) for n in cut) if cut else None, options=options,
    )  # fmt: skip
