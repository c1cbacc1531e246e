"""Training launch scripts: torchrun with Megatron-LM (pretrain_gpt.py) or torchtitan, the same script on every node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tools.engines.export.base import LaunchFile, continued, flag_lines, header_rows, layer_counts
from tools.engines.rules import EngineRules, Flag, check, engine_rules, resolve_layers
from tools.spec.base import ToolError
from tools.spec.finding import Finding
from tools.spec.hardware import Device
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Job:
    """One training run. Batch sizes are sequences: `global_batch_size` of a step, `micro_batch_size` of one pass."""

    model: ModelSpec
    strategy: Strategy
    rules: EngineRules
    seq_len: int
    global_batch_size: int
    micro_batch_size: int
    nodes: int
    per_node: int
    notes: tuple[str, ...] = ()

    @property
    def data_parallel(self) -> int:
        return self.strategy.dp * (self.strategy.attn_dp or 1)


def job_findings(job: Job) -> Iterator[Finding]:
    """What depends on sequence length and batch, which a strategy does not know."""
    s, label = job.strategy, job.rules.label
    if s.cp > 1:
        unit, why = 2 * s.cp * (s.tp if s.sp else 1), "2 * cp" + (" * tp" if s.sp else "")
    else:
        unit, why = (s.tp if s.sp else 1), "tp"
    if job.seq_len % unit:
        yield _error(
            "seq-len", "positions", f"seq_len({job.seq_len}) % ({why} = {unit}) = {job.seq_len % unit}, must be 0",
            f"a seq_len among the multiples of {unit}", label,
        )  # fmt: skip
    step = job.micro_batch_size * job.data_parallel
    if job.global_batch_size % step:
        yield _error(
            "global-batch", "scheduler",
            f"global_batch({job.global_batch_size}) % (micro_batch({job.micro_batch_size}) * dp({job.data_parallel}) "
            f"= {step}) = {job.global_batch_size % step}, must be 0",
            f"a global batch among the multiples of {step}", label,
        )  # fmt: skip
    if s.num_devices != job.nodes * job.per_node:
        yield _error(
            "world-nodes", "devices", f"{s.num_devices} ranks on {job.nodes} nodes of {job.per_node}: torchrun starts "
            f"equally many on each, {job.nodes * job.per_node} in all",
            "a number of ranks that fills its nodes evenly", label,
        )  # fmt: skip
    if job.model.max_context is not None and job.seq_len > job.model.max_context:
        yield _error(
            "max-model-len", "positions",
            f"seq_len({job.seq_len}) > max_position_embeddings({job.model.max_context})",
            f"a seq_len of at most {job.model.max_context}", label,
        )  # fmt: skip


def _error(code: str, where: str, text: str, fix: str, label: str) -> Finding:
    return Finding(
        code=code, severity="error", cause="engine", where=where, message=f"{where}: {text} ({label})", fix=fix
    )


def export_training(
    engine: str,
    model: ModelSpec,
    strategy: Strategy,
    *,
    seq_len: int,
    global_batch_size: int,
    micro_batch_size: int = 1,
    num_nodes: int | None = None,
    devices_per_node: int | None = None,
    version: str | None = None,
    device: Device | None = None,
) -> tuple[tuple[LaunchFile, ...], tuple[Finding, ...]]:
    """`<engine>/train.sh`, and what the framework has to say; no file when a finding is an error.

    Raises ToolError for an engine that is no training framework.
    """
    if engine not in COMMANDS:
        raise ToolError(f"no training launch files for {engine!r}; known: {', '.join(COMMANDS)}")
    s = resolve_layers(engine, model, strategy, version=version)
    per_node = min(devices_per_node or 8, s.num_devices)
    rules = engine_rules(engine)
    job = Job(model, s, rules, seq_len, global_batch_size, micro_batch_size, -(-s.num_devices // per_node), per_node)
    found = check(
        model, s, engine=engine, version=version, num_nodes=num_nodes, devices_per_node=devices_per_node, device=device
    )
    findings = tuple(sorted((*found, *job_findings(job)), key=lambda f: f.severity != "error"))
    if any(f.severity == "error" for f in findings):
        return (), findings
    rows = header_rows(
        "Train the plan.",
        [
            ("model", model.name), ("engine", f"{rules.label} (arguments and rules of this release)"),
            ("strategy", f"{s.label(moe=model.moe is not None)}; weights {s.weight_dtype}"), ("world", rules.world(s)),
            ("layers", layer_counts(s, model)), ("batch", _batch_equation(job)),
            ("usage", f"NODE_RANK=<0..{job.nodes - 1}> MASTER_ADDR=<first node> {USAGE[engine]} bash train.sh"
             if job.nodes > 1 else f"{USAGE[engine]} bash train.sh"),
            *(("note", f"{f.message}; {f.fix}") for f in findings),
        ],
    )  # fmt: skip
    text = "\n".join([rows, *_torchrun(job), "exec " + continued([*TORCHRUN, *COMMANDS[engine](job)]) + "\n"])
    return (LaunchFile(name=f"{engine}/train.sh", text=text), bench_file(engine, job)), findings


STEPS = 30
"""Of a timing run; the first third warms up."""
SHORT_RUN = {
    "megatron": f"--train-iters {STEPS} --log-interval 1 --log-throughput --eval-iters 0",
    "torchtitan": f"--training.steps {STEPS} --metrics.log_freq 1",
}
STEP_TIMES = {
    "megatron": (r"elapsed time per iteration \(ms\):\s*([\d.]+)", "ms"), "torchtitan": (r"tps:\s*([\d,]+)", "tps"),
}  # fmt: skip
"""Where each framework logs the time of a step, or the tokens per second and device."""


def bench_file(engine: str, job: Job) -> LaunchFile:
    """`bench.sh`: a short run of train.sh, its step time and tokens per second and device."""
    pattern, unit = STEP_TIMES[engine]
    tokens, devices = job.global_batch_size * job.seq_len, job.strategy.num_devices
    head = header_rows(
        "Time the plan: a few steps, tokens per second and device.",
        [
            ("engine", job.rules.label), ("strategy", job.strategy.label(moe=job.model.moe is not None)),
            ("batch", _batch_equation(job)), ("usage", f"as train.sh, on every node; {USAGE[engine]} bash bench.sh"),
        ],
    )  # fmt: skip
    text = f"""{head}
LOG=${{LOG:-bench.log}}
here=$(cd "$(dirname "$0")" && pwd)
bash "$here/train.sh" {SHORT_RUN[engine]} "$@" 2>&1 | tee "$LOG"
python3 - "$LOG" <<'PY'
import re, statistics, sys
found = [float(x.replace(",", "")) for x in re.findall(r"{pattern}", open(sys.argv[1], errors="replace").read())]
steady = found[len(found) // 3 :]
if not steady:
    sys.exit("no step time in the log of this node (ranks log on the last stage: look on its node)")
middle = statistics.median(steady)
seconds = middle / 1e3 if "{unit}" == "ms" else {tokens} / (middle * {devices})
print(f"{{len(steady)}} steps: {{seconds:.3f}} s per step, {{{tokens} / seconds / {devices}:.1f}} tokens/s per device")
PY
"""
    return LaunchFile(name=f"{engine}/bench.sh", text=text)


def _batch_equation(job: Job) -> str:
    passes = job.global_batch_size // (job.micro_batch_size * job.data_parallel)
    return (
        f"{job.global_batch_size} sequences of {job.seq_len} tokens = micro {job.micro_batch_size} * "
        f"dp {job.data_parallel} * {passes} passes"
    )


TORCHRUN = (
    "torchrun", '--nnodes "$NNODES"', '--nproc-per-node "$NPROC"', '--node-rank "$NODE_RANK"',
    '--master-addr "$MASTER_ADDR"', '--master-port "$MASTER_PORT"',
)  # fmt: skip


def _torchrun(job: Job) -> list[str]:
    rank = (
        [f': "${{NODE_RANK:?set NODE_RANK, 0 to {job.nodes - 1}}}"', ': "${MASTER_ADDR:?set MASTER_ADDR}"']
        if job.nodes > 1
        else ["NODE_RANK=${NODE_RANK:-0}", "MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}"]
    )
    return [*rank, "MASTER_PORT=${MASTER_PORT:-29500}", f"NNODES={job.nodes}", f"NPROC={job.per_node}", ""]


# Megatron-LM -----------------------------------------------------------------------------------------------------


def megatron_command(job: Job) -> list[str]:
    """pretrain_gpt.py: where data and tokenizer are is the user's; everything else follows from model and plan."""
    flags = [
        *job.rules.parallel_flags(job.model, job.strategy), *_megatron_model(job.model, job.seq_len),
        *(_megatron_experts(job.model) if job.model.moe is not None else []), *_megatron_precision(job.strategy),
        Flag("--seq-length", str(job.seq_len)), Flag("--micro-batch-size", str(job.micro_batch_size)),
        Flag("--global-batch-size", str(job.global_batch_size)), Flag("--use-distributed-optimizer"),
        Flag("--use-mcore-models"), Flag("--transformer-impl", "transformer_engine"),
    ]  # fmt: skip
    return [
        '"${PRETRAIN:-pretrain_gpt.py}"', *flag_lines(flags),
        '--train-iters "${TRAIN_ITERS:-1000}"', '--lr "${LR:-1e-4}"',
        '--data-path "${DATA_PATH:?set DATA_PATH}"', "--tokenizer-type HuggingFaceTokenizer",
        '--tokenizer-model "${TOKENIZER:?set TOKENIZER}"', '"$@"',
    ]  # fmt: skip


def _megatron_model(m: ModelSpec, seq_len: int) -> list[Flag]:
    a = m.attention
    width = m.mlp.intermediate_size if m.mlp else m.moe.intermediate_size if m.moe else 0
    flags = [
        Flag("--num-layers", str(m.num_hidden_layers)), Flag("--hidden-size", str(m.hidden_size)),
        Flag("--ffn-hidden-size", str(width)), Flag("--num-attention-heads", str(a.num_heads)),
        Flag("--max-position-embeddings", str(max(seq_len, m.max_context or 0))),
        Flag("--normalization", "RMSNorm" if m.norm == "rmsnorm" else "LayerNorm"),
        Flag("--norm-epsilon", f"{m.norm_eps:g}"), Flag("--vocab-size", str(m.vocab_size)),
    ]  # fmt: skip
    if a.mla is not None:
        flags += _megatron_mla(m)
    else:
        flags.append(Flag("--kv-channels", str(a.head_dim)))
        if a.num_kv_heads != a.num_heads:
            flags += [Flag("--group-query-attention"), Flag("--num-query-groups", str(a.num_kv_heads))]
    if m.position.kind == "rope":
        flags += [Flag("--position-embedding-type", "rope"), Flag("--rotary-base", f"{m.position.theta:.0f}")]
    elif m.position.kind == "learned":
        flags.append(Flag("--position-embedding-type", "learned_absolute"))
    gated = m.mlp.gated if m.mlp else bool(m.moe and m.moe.gated)
    return flags + _switches(
        ("--swiglu", gated), ("--untie-embeddings-and-output-weights", not m.tie_word_embeddings),
        ("--disable-bias-linear", not (a.out_bias or (m.mlp is not None and m.mlp.bias))),
        ("--add-qkv-bias", a.qkv_bias), ("--qk-layernorm", a.qk_norm != "none"),
    )  # fmt: skip


def _megatron_mla(m: ModelSpec) -> list[Flag]:
    mla = m.attention.mla
    assert mla is not None
    return [
        Flag("--multi-latent-attention"), Flag("--kv-lora-rank", str(mla.kv_lora_rank)),
        *([Flag("--q-lora-rank", str(mla.q_lora_rank))] if mla.q_lora_rank else []),
        Flag("--qk-head-dim", str(mla.qk_nope_head_dim)), Flag("--qk-pos-emb-head-dim", str(mla.qk_rope_head_dim)),
        Flag("--v-head-dim", str(mla.v_head_dim)),
    ]  # fmt: skip


def _megatron_experts(m: ModelSpec) -> list[Flag]:
    moe = m.moe
    assert moe is not None
    flags = [
        Flag("--num-experts", str(moe.num_experts)), Flag("--moe-router-topk", str(moe.top_k)),
        Flag("--moe-ffn-hidden-size", str(moe.intermediate_size)), Flag("--moe-grouped-gemm"),
    ]  # fmt: skip
    if moe.shared_intermediate_size:
        flags.append(Flag("--moe-shared-expert-intermediate-size", str(moe.shared_intermediate_size)))
    if moe.gate == "sigmoid_topk":
        flags.append(Flag("--moe-router-score-function", "sigmoid"))
    if m.moe_layers is not None and not all(m.moe_layers):
        pattern = "[" + ",".join(str(int(on)) for on in m.moe_layers) + "]"
        flags.append(Flag("--moe-layer-freq", pattern))
    return flags


def _megatron_precision(s: Strategy) -> list[Flag]:
    if s.weight_dtype == "fp8":
        return [Flag("--bf16"), Flag("--fp8-format", "hybrid")]
    return [] if s.weight_dtype == "fp32" else [Flag(f"--{s.weight_dtype}")]


def _switches(*rows: tuple[str, bool]) -> list[Flag]:
    return [Flag(name) for name, on in rows if on]


# torchtitan ------------------------------------------------------------------------------------------------------


def torchtitan_command(job: Job) -> list[str]:
    """The model comes from torchtitan's own registry (--module, --config); degrees and batch are overrides."""
    flags = [
        *job.rules.parallel_flags(job.model, job.strategy), Flag("--training.seq_len", str(job.seq_len)),
        Flag("--training.local_batch_size", str(job.micro_batch_size * _passes(job))),
        Flag("--training.global_batch_size", str(job.global_batch_size)),
    ]  # fmt: skip
    if job.strategy.pp > 1:
        flags.append(Flag("--parallelism.pipeline_parallel_microbatch_size", str(job.micro_batch_size)))
    return [
        "-m torchtitan.train", '--module "${MODULE:?set MODULE, such as llama3}"',
        '--config "${CONFIG:?set CONFIG, such as llama3_8b}"',
        *flag_lines(flags), '"$@"',
    ]  # fmt: skip


def _passes(job: Job) -> int:
    """Microbatches of one pipeline flush; what is left of the global batch is accumulated. At least one per stage."""
    total = job.global_batch_size // (job.micro_batch_size * job.data_parallel)
    wanted = max(job.strategy.pp, job.strategy.microbatches) if job.strategy.pp > 1 else 1
    return next((n for n in range(wanted, total + 1) if total % n == 0), total)


COMMANDS: dict[str, Callable[[Job], list[str]]] = {"megatron": megatron_command, "torchtitan": torchtitan_command}
USAGE = {"megatron": "DATA_PATH=… TOKENIZER=…", "torchtitan": "MODULE=… CONFIG=…"}
