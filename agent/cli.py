"""The command line. Heavy modules are imported inside the commands, so that `--help` answers at once.

Exit codes: 0 answered or proven; 1 findings (prove, check-dag, doctor); 2 bad input; 3 infeasible; 4 the LLM backend
failed
under --strict; 70 our bug. With --json one JSON document goes to stdout; progress always goes to stderr.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.errors import BACKEND, BAD_INPUT, BUG, one_line

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Deployment conditions in, a proven parallel deployment plan out.\n\n"
    "Example: meshwright plan examples/conditions/llama3_70b_8xh100.md --out out",
)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Backend = Annotated[
    str,
    typer.Option("--backend", metavar="NAME[:LLM]", help="builtin, replay:FILE, or a profile such as openai:gpt-5."),
]
BaseUrl = Annotated[str | None, typer.Option("--llm-base-url", metavar="URL", help="OpenAI-compatible server.")]
Model = Annotated[str, typer.Option("--model", help="Name, or path of a config.json.")]
OptModel = Annotated[str | None, typer.Option("--model", help="Name, or path of a config.json.")]
Devices = Annotated[
    list[str], typer.Option("--device", help="Name such as h100, '910B', 8xH100; several are set side by side.")
]
OptDevices = Annotated[
    list[str] | None, typer.Option("--device", help="Name such as h100; several are set side by side.")
]
Prices = Annotated[
    list[str] | None,
    typer.Option("--price-per-device-hour", metavar="PRICE", help="One per --device in order, or NAME=PRICE."),
]
Currency = Annotated[str, typer.Option("--currency", help="Of the prices.")]
Degree = Annotated[int | None, typer.Option(min=1)]
PeakFactor = Annotated[
    float,
    typer.Option(
        "--peak-factor", min=1.0, help="Peak over mean of the rate; judged at the peak, paid for at the mean."
    ),
]
HitRate = Annotated[
    float, typer.Option("--prefix-hit-rate", min=0, max=1, help="Share of prompt tokens that the prefix cache holds.")
]
Acceptance = Annotated[
    float | None,
    typer.Option("--draft-acceptance", min=0, max=1, help="Speculation: share of drafted tokens accepted."),
]
DraftLength = Annotated[
    int | None, typer.Option("--draft-length", min=0, max=64, help="Tokens drafted per step, 3 if not said.")
]
Spare = Annotated[int, typer.Option("--spare-replicas", min=0, help="N+k: replicas that may be out of service.")]
SpareNodes = Annotated[int, typer.Option("--spare-nodes", min=0, help="N+k: nodes that may be out of service.")]
Calibration = Annotated[
    Path | None, typer.Option("--calibration", help="File of `meshwright calibrate`: curves and bands of your cluster.")
]
Phase = Annotated[str | None, typer.Option("--phase", help="prefill or decode; both when left out. Or train.")]
Train = Annotated[
    str | None, typer.Option("--train", help="With --phase train: zero=3,recompute=full,… or a YAML file.")
]
StrategyFile = Annotated[
    Path | None, typer.Option("--strategy", help="JSON or YAML with the degrees (or a plan.json).")
]
Axis = Annotated[
    list[str] | None,
    typer.Option("--axis", metavar="NAME=K", help="Degree of a further axis (dcp, dk, …); may be repeated."),
]
Dtype = Annotated[str | None, typer.Option(help="bf16, fp8, int4, …")]


def guarded(module: str, function: str, *args: Any) -> None:
    """Runs a command and turns what it raises into one line and the exit code.

    Never a traceback, except for our own bugs.
    """
    from tools.spec.base import Bug, ToolError

    try:
        code = getattr(importlib.import_module(f"agent.{module}"), function)(*args)
    except ToolError as e:
        _fail(f"error: {one_line(e)}", BAD_INPUT)
    except Bug as e:
        _fail(f"internal error: {one_line(e)}", BUG)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()
        raise typer.Exit(0) from None
    except Exception as e:
        from agent.llm.base import BackendError
        from agent.loop import StrictFailure

        if isinstance(e, BackendError | StrictFailure):
            _fail(f"backend: {one_line(e)}", BACKEND)
        import traceback

        traceback.print_exc()
        _fail(f"internal error: {type(e).__name__}: {one_line(e)}", BUG)
    raise typer.Exit(code)


def _fail(text: str, code: int) -> None:
    print(f"meshwright: {text}", file=sys.stderr)
    raise typer.Exit(code)


@app.command()
def plan(
    conditions: Annotated[list[Path], typer.Argument(help="Files or folders: Markdown, text, YAML, JSON, TOML.")],
    task: Annotated[
        Path | None, typer.Option("--task", help="Task prompt to obey; its constraints become rubric items.")
    ] = None,
    knowledge: Annotated[
        Path | None, typer.Option("--knowledge", help="Folder with further passages (.md, .txt).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run directory [default: ./runs/NAME-TIMESTAMP].")] = None,
    backend: Backend = "builtin",
    llm_base_url: BaseUrl = None,
    objective: Annotated[str | None, typer.Option(help="fewest_devices, total_throughput, knee, min_latency.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 4 instead of letting the built-in policy answer for a failing LLM.")
    ] = False,
    approve: Annotated[
        bool, typer.Option("--approve", help="Wait for a person's yes (meshwright resume --approve) before publishing.")
    ] = False,
    calibration: Calibration = None,
    json_: Json = False,
) -> None:
    """Read conditions, search, prove, draw, evaluate, publish.

    Examples:

      meshwright plan conditions.md

      meshwright plan hardware.json model.json slo.json --out runs/mine --json

      meshwright plan conditions.md --task TASK.md --backend openai:gpt-5 --strict
    """
    guarded("commands.run", "plan", conditions, task, knowledge, out, backend, llm_base_url, objective, strict, json_,
            approve, calibration)  # fmt: skip


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(help="Run directory of an interrupted plan.")],
    approve: Annotated[str | None, typer.Option("--approve", help="yes or no, to a plan that waits.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="With --approve no: what the next proposal is told.")] = "",
    json_: Json = False,
) -> None:
    """Go on with an interrupted run, from its last checkpoint, or answer one that waits under --approve.

    Examples:

      meshwright resume runs/mine

      meshwright resume runs/mine --approve no --reason "keep tensor parallelism at 4"
    """
    guarded("commands.run", "resume", run_dir, json_, approve, reason)


@app.command()
def show(run_dir: Annotated[Path, typer.Argument(help="Run directory.")], json_: Json = False) -> None:
    """Summary of a finished run, or how far an unfinished one got.

    Example: meshwright show runs/mine
    """
    guarded("commands.run", "show", run_dir, json_)


@app.command()
def read(
    conditions: Annotated[list[Path], typer.Argument(help="Files or folders.")],
    backend: Backend = "builtin",
    llm_base_url: BaseUrl = None,
    json_: Json = False,
) -> None:
    """What a careful reader takes from the conditions: facts with evidence, conflicts, missing, ignored.

    Example: meshwright read conditions.md --json
    """
    guarded("commands.pure", "read", conditions, backend, llm_base_url, json_)


@app.command()
def search(
    model: Model,
    device: Devices,
    isl: Annotated[int, typer.Option(min=1, help="Input tokens of a request.")],
    osl: Annotated[int, typer.Option(min=1, help="Output tokens of a request.")],
    nodes: Degree = None,
    devices_per_node: Degree = None,
    unbounded: Annotated[bool, typer.Option("--unbounded", help="Devices are ample.")] = False,
    ttft_ms: Annotated[float | None, typer.Option(help="Limit on time to first token.")] = None,
    tpot_ms: Annotated[float | None, typer.Option(help="Limit on time per output token.")] = None,
    percentile: Annotated[
        str | None, typer.Option(help="mean, p50, p90, p95, p99, max: statistic of the limits.")
    ] = None,
    concurrency: Degree = None,
    rate: Annotated[float | None, typer.Option(help="Requests per second.")] = None,
    engine: Annotated[str | None, typer.Option(help="vllm, sglang.")] = None,
    weights: Dtype = None,
    kv: Dtype = None,
    objective: Annotated[str | None, typer.Option(help="fewest_devices, total_throughput, knee, min_latency.")] = None,
    price_per_device_hour: Prices = None,
    currency: Currency = "USD",
    peak_factor: PeakFactor = 1.0,
    prefix_hit_rate: HitRate = 0.0,
    draft_acceptance: Acceptance = None,
    draft_length: DraftLength = None,
    spare_replicas: Spare = 0,
    spare_nodes: SpareNodes = 0,
    calibration: Calibration = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="One pipeline over all kinds of --device, each with its number.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, max=1000)] = 10,
    json_: Json = False,
) -> None:
    """Every legal strategy, priced; the best that meet the limits.

    Examples:

      meshwright search --model llama3.1-70b --device h100 --nodes 1 --devices-per-node 8 --isl 2048 --osl 256
      --ttft-ms 1000

      meshwright search --model qwen3-235b-a22b --device h200 --unbounded --isl 4096 --osl 1024 --tpot-ms 40 --json

      meshwright search --model qwen3-32b --device h100 --device h20 --price-per-device-hour 2.5 --price-per-device-hour 1.2
      --nodes 2 --devices-per-node 8 --isl 2000 --osl 500 --rate 4 --peak-factor 3 --spare-replicas 1

      meshwright search --model llama3.1-70b --device 4xA100 --device 4xV100 --mixed --isl 1024 --osl 256 --concurrency 16
    """
    asked = {k: v for k, v in locals().items() if k != "json_"}
    guarded("commands.pure", "search", asked, json_)


@app.command()
def estimate(
    model: OptModel = None,
    device: OptDevices = None,
    tp: Degree = None,
    pp: Degree = None,
    ep: Degree = None,
    etp: Degree = None,
    dp: Degree = None,
    attn_dp: Degree = None,
    cp: Degree = None,
    sp: Annotated[bool, typer.Option("--sp", help="Sequence parallelism over tp.")] = False,
    axis: Axis = None,
    strategy: StrategyFile = None,
    weights: Dtype = None,
    kv: Dtype = None,
    isl: Degree = None,
    osl: Degree = None,
    concurrency: Degree = None,
    max_throughput: Annotated[bool, typer.Option("--max-throughput", help="At the largest batch that fits.")] = False,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="CSV of recorded requests: at (seconds), isl, osl.")
    ] = None,
    nodes: Degree = None,
    devices_per_node: Degree = None,
    engine: Annotated[str | None, typer.Option(help="vllm, sglang.")] = None,
    price_per_device_hour: Prices = None,
    currency: Currency = "USD",
    prefix_hit_rate: HitRate = 0.0,
    draft_acceptance: Acceptance = None,
    draft_length: DraftLength = None,
    calibration: Calibration = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Rows to predict instead of one strategy.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="With --csv: the predictions.")] = None,
    json_: Json = False,
) -> None:
    """Predicted latency, throughput and memory of one strategy, or of every row of a CSV.

    Examples:

      meshwright estimate --model llama3.1-70b --device h100 --tp 8 --isl 2048 --osl 256 --concurrency 32 --json

      meshwright estimate --model qwen3-32b --device h20 --tp 4 --trace requests.csv --json

      meshwright estimate --csv rows.csv --out predictions.csv
    """
    asked = {k: v for k, v in locals().items() if k != "json_"}
    guarded("commands.pure", "estimate", asked, json_)


@app.command()
def dag(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="Directory for the .py, .dot and .svg files.")],
    tp: Degree = None,
    pp: Degree = None,
    ep: Degree = None,
    etp: Degree = None,
    dp: Degree = None,
    attn_dp: Degree = None,
    cp: Degree = None,
    sp: Annotated[bool, typer.Option("--sp", help="Sequence parallelism over tp.")] = False,
    axis: Axis = None,
    strategy: StrategyFile = None,
    phase: Phase = None,
    train: Train = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Sequences [default: 1 per attention group].")
    ] = None,
    seq: Annotated[int, typer.Option("--seq", min=1, help="Prompt, or context in decode.")] = 1024,
    detail: Annotated[str, typer.Option(help="full, stage, group, schedule.")] = "full",
    device: Annotated[
        str | None, typer.Option("--device", help="Whose times the schedule shows, such as h100.")
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="Also NAME.html: zoom, search, dims on a click, no network.")
    ] = False,
    json_: Json = False,
) -> None:
    """Draw the operator-level graph of a strategy; with --detail schedule its micro-batches or slices in time.

    Example: meshwright dag --model llama3.1-70b --tp 4 --pp 2 --phase decode --out dags --json
    """
    asked = {k: v for k, v in locals().items() if k != "json_"}
    guarded("commands.training" if train or phase == "train" else "commands.graphs", "dag", asked, json_)


@app.command()
def prove(
    plan_json: Annotated[Path | None, typer.Argument(help="plan.json of a run.")] = None,
    model: OptModel = None,
    tp: Degree = None,
    pp: Degree = None,
    ep: Degree = None,
    etp: Degree = None,
    dp: Degree = None,
    attn_dp: Degree = None,
    cp: Degree = None,
    sp: Annotated[bool, typer.Option("--sp", help="Sequence parallelism over tp.")] = False,
    axis: Axis = None,
    strategy: StrategyFile = None,
    phase: Phase = None,
    train: Train = None,
    json_: Json = False,
) -> None:
    """Execute the partitioned graph on simulated devices and compare every tensor with the unpartitioned model.

    Examples:

      meshwright prove runs/mine/plan.json

      meshwright prove --model deepseek-v3 --tp 4 --attn-dp 2 --ep 8 --json

      meshwright prove --model llama3.1-8b --tp 2 --dp 4 --sp --phase train --train zero=3,recompute=full
    """
    asked = {k: v for k, v in locals().items() if k != "json_"}
    guarded("commands.training" if train or phase == "train" else "commands.graphs", "prove", asked, json_)


@app.command(name="check-dag")
def check_dag(files: Annotated[list[Path], typer.Argument(help="DOT files.")], json_: Json = False) -> None:
    """Apply the DAG rules to any DOT file; exit 1 when one is broken.

    Example: meshwright check-dag graph.dot --json
    """
    guarded("commands.graphs", "check_dag", files, json_)


@app.command()
def export(
    plan_json: Annotated[Path, typer.Argument(help="plan.json of a run.")],
    engine: Annotated[
        str, typer.Option("--engine", help="vllm, sglang, trtllm, vllm-ascend; megatron, torchtitan for training.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory for the launch files.")],
    k8s: Annotated[bool, typer.Option("--k8s", help="Also a Kubernetes manifest (vllm, sglang).")] = False,
    image: Annotated[
        str | None, typer.Option("--image", help="With --k8s: the container image [default: the engine's release].")
    ] = None,
    pools: Annotated[
        Path | None, typer.Option("--pools", help="Strategy file with prefill and decode pools (vllm, sglang).")
    ] = None,
    seq_len: Annotated[int | None, typer.Option(min=1, help="Training: tokens of a sequence.")] = None,
    global_batch: Annotated[int | None, typer.Option(min=1, help="Training: sequences of a step.")] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Training: sequences of a pass.")] = None,
    json_: Json = False,
) -> None:
    """Write the launch files of a plan for an engine, and bench.sh, which measures it against its predictions.

    Examples:

      meshwright export runs/mine/plan.json --engine sglang --out launch

      meshwright export runs/mine/plan.json --engine vllm --k8s --out launch

      meshwright export runs/mine/plan.json --engine megatron --seq-len 4096 --global-batch 256 --out launch
    """
    more = {
        "k8s": k8s, "image": image, "pools": pools, "seq_len": seq_len, "global_batch": global_batch, "micro_batch": micro_batch,
    }  # fmt: skip
    guarded("commands.pure", "export", plan_json, engine, out, json_, more)


@app.command(name="eval")
def eval_(
    suite: Annotated[
        str,
        typer.Argument(
            help="all, read, smoke, full, a kind of cases, a case, a folder of cases; or a run to judge again."
        ),
    ] = "all",
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", metavar="NAME[:LLM]", help="May be given several times [default: builtin]."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Directory for results, transcripts and the page.")] = Path("eval"),
    samples: Annotated[int, typer.Option(help="Runs of each case with each LLM.")] = 1,
    workers: Annotated[int, typer.Option(help="Parallel processes.")] = 2,
    depth: Annotated[str | None, typer.Option(help="read, plan (no scripts, no SVG), full.")] = None,
    llm_base_url: BaseUrl = None,
    strict: Annotated[bool, typer.Option("--strict", help="The built-in policy answers for nobody.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what is kept under --out.")] = False,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="Committed scores to compare with.")] = None,
    update_baseline: Annotated[bool, typer.Option("--update-baseline", help="Write them instead.")] = False,
    json_: Json = False,
) -> None:
    """Run the evaluation cases, score them, compare backends; exit 1 when the built-in policy got worse.

    Examples:

      meshwright eval --out eval

      meshwright eval smoke --backend builtin --backend openai:gpt-5 --samples 3 --out eval
    """
    asked = {k: v for k, v in locals().items() if k != "json_"}
    guarded("commands.evals", "run", {**asked, "backend": backend or []}, json_)


@app.command()
def record(
    run_dir: Annotated[Path, typer.Argument(help="Run directory of a finished plan.")],
    out: Annotated[Path, typer.Option("--out", help="File for the cassette.")],
    json_: Json = False,
) -> None:
    """Write the conversation of a run as a cassette, secrets taken out, for --backend replay:FILE.

    Example: meshwright record runs/mine --out mine.jsonl
    """
    guarded("commands.record", "record", run_dir, out, json_)


@app.command()
def mcp(
    http: Annotated[
        str | None, typer.Option("--http", metavar="[HOST:]PORT", help="Streamable HTTP instead of stdio.")
    ] = None,
) -> None:
    """Offer the tools (read, search, estimate, memory, shards, prove, DAG) to MCP clients.

    Examples:

      meshwright mcp

      meshwright mcp --http 8765
    """
    guarded("commands.mcp", "mcp", http)


@app.command()
def audit(
    command: Annotated[
        str, typer.Argument(help="The launch command in quotes, or a script, manifest or compose file.")
    ],
    model: OptModel = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Name such as h100; with lengths: priced as well.")
    ] = None,
    nodes: Degree = None,
    devices_per_node: Degree = None,
    isl: Degree = None,
    osl: Degree = None,
    concurrency: Degree = None,
    json_: Json = False,
) -> None:
    """What runs today: parsed, judged by the engine's rules, proven, and set beside the best there is.

    Examples:

      meshwright audit "vllm serve meta-llama/Llama-3.1-70B-Instruct -tp 8" --device h100 --isl 2048 --osl 256 --concurrency 48

      meshwright audit serve.sh --json
    """
    asked = {k: v for k, v in locals().items() if k not in ("json_", "command")}
    guarded("commands.compare", "audit", command, asked, json_)


@app.command()
def calibrate(
    measured: Annotated[
        Path,
        typer.Option("--measured", help="CSV: columns of estimate --csv, and ttft_ms, tpot_ms, output_tok_s_total, …"),
    ],
    out: Annotated[Path, typer.Option("--out", help="Calibration file, for --calibration.")] = Path("calibration.yaml"),
    model: OptModel = None,
    device: Annotated[str | None, typer.Option("--device", help="Where the file has no column for it.")] = None,
    engine: Annotated[str | None, typer.Option(help="The same: vllm, sglang, trtllm.")] = None,
    json_: Json = False,
) -> None:
    """Rescale the curves and error bands to what was measured on your own cluster, and say by how much.

    Examples:

      meshwright calibrate --measured my.csv --out mine.yaml

      meshwright estimate --model llama3.1-70b --device h100 --tp 8 --isl 2048 --osl 256 --concurrency 32 --calibration mine.yaml
    """
    guarded("commands.calibrate", "calibrate", measured, out, {"model": model, "gpu": device, "engine": engine}, json_)


@app.command()
def diff(
    left: Annotated[Path, typer.Argument(help="plan.json")],
    right: Annotated[Path, typer.Argument(help="plan.json")],
    json_: Json = False,
) -> None:
    """What differs between two plans.

    Example: meshwright diff runs/a/plan.json runs/b/plan.json
    """
    guarded("commands.compare", "diff", left, right, json_)


@app.command()
def doctor(json_: Json = False) -> None:
    """What is installed, which renderer and tokenizer are in use, and how to get what is missing.

    Example: meshwright doctor
    """
    guarded("doctor", "main", json_)


def main(argv: list[str] | None = None) -> Any:
    """Console entry point. Usage errors are one line and exit with 2, as all bad input."""
    try:
        code = app(args=argv, standalone_mode=False)
    except typer.Exit as e:
        code = e.exit_code
    except typer.Abort:
        code = 130
    except Exception as e:
        # Typer's own usage errors carry an exit code and a message; anything else is ours.
        if not hasattr(e, "format_message"):
            raise
        text = e.format_message()
        print(f"meshwright: error: {one_line(RuntimeError(text))} (see --help)" if text else "", file=sys.stderr)
        code = getattr(e, "exit_code", BAD_INPUT)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
