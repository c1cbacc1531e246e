"""Launch files: what the shell really runs (recorded by stand-ins for the engines), and commands read back."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
import subprocess
import sys

import pytest
from engine_models import (
    DEEPSEEK_V3,
    GPT2_XL,
    LLAMA3_70B,
    LLAMA3_405B,
    PHI4,
    QWEN3_235B_FP8,
    QWEN25_32B_AWQ,
)
from engine_shell import flags, launch, run
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge.catalog import load_device, load_model
from tools.engines.export import (
    Expected,
    export,
    export_pd,
    export_training,
    parse,
    parse_sglang,
    parse_vllm,
)
from tools.engines.export.base import one_line
from tools.engines.rules import default_layers_per_stage
from tools.spec.base import ToolError
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="launch files are bash scripts, and there is no bash here")

DEPLOYMENTS: list[tuple[ModelSpec, dict, int, int]] = [
    (LLAMA3_70B, {"tp": 8, "batch": 64}, 1, 8),
    (QWEN25_32B_AWQ, {"tp": 2, "dp": 2, "weight_dtype": "int4", "batch": 16}, 1, 4),
    (DEEPSEEK_V3, {"tp": 16, "weight_dtype": "fp8", "batch": 32}, 2, 8),
    (DEEPSEEK_V3, {"tp": 1, "attn_dp": 16, "ep": 16, "weight_dtype": "fp8", "kv_dtype": "fp8", "batch": 256}, 2, 8),
    (DEEPSEEK_V3, {"tp": 4, "attn_dp": 4, "ep": 16, "weight_dtype": "fp8", "moe_comm": "allgather"}, 2, 8),
    (QWEN3_235B_FP8, {"tp": 4, "dp": 2, "weight_dtype": "fp8"}, 1, 8),
    (QWEN3_235B_FP8, {"tp": 8, "ep": 8, "weight_dtype": "fp8"}, 1, 8),
    (GPT2_XL, {"tp": 1}, 1, 1),
    (PHI4, {"tp": 2, "dp": 4}, 2, 4),
    (LLAMA3_405B, {"tp": 8, "pp": 4, "layers_per_stage": (32, 32, 31, 31)}, 4, 8),
    (LLAMA3_70B, {"tp": 8, "pp": 2, "dp": 2, "layers_per_stage": (41, 39)}, 4, 8),
    (LLAMA3_70B, {"tp": 2, "pp": 3, "dp": 2}, 2, 8),
]
IDS = [f"{m.name}-{Strategy(**d).label()}" for m, d, _, _ in DEPLOYMENTS]
ENGINES = ("vllm", "sglang")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("model", "degrees", "nodes", "per_node"), DEPLOYMENTS, ids=IDS)
def test_scripts_are_valid_bash_and_say_the_world_equation(engine, model, degrees, nodes, per_node, tmp_path):
    for file in launch(engine, model, degrees, nodes, per_node).values():
        assert file.name.startswith(f"{engine}/") and file.executable
        script = tmp_path / "x.sh"
        script.write_text(file.text, encoding="utf-8")
        done = subprocess.run([BASH or "bash", "-n", str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "set -euo pipefail" in file.text
        assert f"= {Strategy(**degrees).num_devices}" in next(x for x in file.text.splitlines() if "world" in x)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("model", "degrees", "nodes", "per_node"), DEPLOYMENTS, ids=IDS)
def test_a_script_read_back_is_the_strategy(engine, model, degrees, nodes, per_node):
    s = Strategy(engine=engine, **degrees)
    parsed = parse(launch(engine, model, degrees, nodes, per_node)["serve.sh"].text, moe=model.moe is not None)
    want = {k: getattr(s, k) for k in ("tp", "pp", "dp", "cp", "attn_dp")}
    if model.moe is not None:
        want |= {"ep": s.ep, "etp": s.etp}
    assert {k: parsed.degrees[k] for k in want} == want
    assert parsed.engine == engine and parsed.model_path == model.name
    default = default_layers_per_stage(engine, model.num_hidden_layers, s.pp)
    assert (parsed.layers_per_stage or default) == (s.layers_per_stage or default)
    assert parsed.strategy().num_devices == s.num_devices


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("model", "degrees", "nodes", "per_node"), DEPLOYMENTS, ids=IDS)
def test_what_runs_on_all_nodes_together_is_every_rank_once(engine, model, degrees, nodes, per_node, tmp_path):
    """Each call owns its visible devices (all of the node when not said); the sum over nodes is the plan's devices."""
    s = Strategy(engine=engine, **degrees)
    script = launch(engine, model, degrees, nodes, per_node)["serve.sh"]
    ranks = 0
    used_nodes = nodes if "NODE_RANK" in script.text else 1
    for rank in range(used_nodes):
        seen: set[str] = set()
        for call in run(script, tmp_path, NODE_RANK=str(rank), MASTER_ADDR="10.0.0.1"):
            visible = call["env"].get("CUDA_VISIBLE_DEVICES", "")
            owned = visible.split(",") if visible else [str(i) for i in range(s.num_devices // used_nodes)]
            assert not seen & set(owned) and max(map(int, owned)) < per_node
            seen |= set(owned)
        ranks += len(seen)
    assert ranks == s.num_devices


@pytest.mark.parametrize("engine", ENGINES)
def test_the_planned_batch_and_memory_are_enforced(engine, tmp_path):
    file = launch(
        engine, LLAMA3_70B, {"tp": 8, "batch": 48, "max_num_batched_tokens": 4096, "kv_dtype": "fp8"}, 1, 8,
        memory_reserve=0.15, max_model_len=4096,
    )["serve.sh"]  # fmt: skip
    (call,) = run(file, tmp_path)
    f = flags(call)
    if engine == "vllm":
        assert (f["--max-num-seqs"], f["--max-num-batched-tokens"], f["--max-model-len"]) == ("48", "4096", "4096")
        assert (f["--gpu-memory-utilization"], f["--kv-cache-dtype"]) == ("0.85", "fp8")
    else:
        # SGLang keeps five tokens of its context to itself.
        sizes = (f["--max-running-requests"], f["--chunked-prefill-size"], f["--context-length"])
        assert sizes == ("48", "4096", "4101")
        assert float(f["--mem-fraction-static"]) < 0.85 and f["--kv-cache-dtype"] == "fp8_e4m3"


def test_vllm_gives_each_attention_dp_rank_its_share_of_the_batch(tmp_path):
    degrees = {"tp": 1, "attn_dp": 16, "ep": 16, "weight_dtype": "fp8", "batch": 250}
    (call,) = run(launch("vllm", DEEPSEEK_V3, degrees, 2, 8)["serve.sh"], tmp_path, NODE_RANK="0", MASTER_ADDR="h")
    assert flags(call)["--max-num-seqs"] == "16"


def test_vllm_wide_expert_parallelism_starts_eight_ranks_per_node(tmp_path):
    degrees = {"tp": 1, "attn_dp": 16, "ep": 16, "weight_dtype": "fp8"}
    script = launch("vllm", DEEPSEEK_V3, degrees, 2, 8)["serve.sh"]
    head, tail = (flags(run(script, tmp_path, NODE_RANK=r, MASTER_ADDR="10.0.0.1")[0]) for r in "01")
    assert head["--data-parallel-size"] == tail["--data-parallel-size"] == "16"
    assert head["--data-parallel-size-local"] == tail["--data-parallel-size-local"] == "8"
    assert "--headless" not in head and "--data-parallel-start-rank" not in head
    assert "--headless" in tail and tail["--data-parallel-start-rank"] == "8"
    assert head["--all2all-backend"] == "deepep_high_throughput" and "--enable-expert-parallel" in head
    other = run(script, tmp_path, NODE_RANK="0", MASTER_ADDR="h", ALL2ALL_BACKEND="allgather_reducescatter")[0]
    assert flags(other)["--all2all-backend"] == "allgather_reducescatter"


def test_tp16_over_two_nodes_names_rank_and_master(tmp_path):
    degrees = {"tp": 16, "weight_dtype": "fp8"}
    v = flags(run(launch("vllm", DEEPSEEK_V3, degrees, 2, 8)["serve.sh"], tmp_path, NODE_RANK="1", MASTER_ADDR="n0")[0])
    assert (v["--nnodes"], v["--node-rank"], v["--master-addr"]) == ("2", "1", "n0") and "--headless" in v
    g = flags(
        run(launch("sglang", DEEPSEEK_V3, degrees, 2, 8)["serve.sh"], tmp_path, NODE_RANK="1", MASTER_ADDR="n0")[0]
    )
    assert (g["--nnodes"], g["--node-rank"], g["--dist-init-addr"]) == ("2", "1", "n0:29501")
    assert g["--tp-size"] == "16"


def test_a_multi_node_script_without_its_rank_says_what_to_set(tmp_path):
    script = launch("vllm", DEEPSEEK_V3, {"tp": 16, "weight_dtype": "fp8"}, 2, 8)["serve.sh"]
    path = tmp_path / "s.sh"
    path.write_text(script.text)
    done = subprocess.run([BASH or "bash", str(path)], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode != 0 and "set NODE_RANK, 0 to 1" in done.stderr


def test_replicas_of_vllm_get_their_own_devices_and_ports_behind_one_router(tmp_path):
    files = launch("vllm", QWEN25_32B_AWQ, {"tp": 2, "dp": 2, "weight_dtype": "int4"}, 1, 4)
    calls = run(files["serve.sh"], tmp_path)
    assert sorted((c["env"]["CUDA_VISIBLE_DEVICES"], flags(c)["--port"]) for c in calls) == [
        ("0,1", "8000"),
        ("2,3", "8001"),
    ]
    (router,) = run(files["router.sh"], tmp_path)
    assert re.findall(r"server (127\.0\.0\.1:\d+);", router["stdout"]) == ["127.0.0.1:8000", "127.0.0.1:8001"]


def test_replicas_of_sglang_on_one_node_are_its_own_dp_size(tmp_path):
    files = launch("sglang", QWEN25_32B_AWQ, {"tp": 2, "dp": 2, "weight_dtype": "int4"}, 1, 4)
    (call,) = run(files["serve.sh"], tmp_path)
    assert flags(call)["--dp-size"] == "2" and flags(call)["--tp-size"] == "2"
    assert "router.sh" not in files


@pytest.mark.parametrize("engine", ENGINES)
def test_a_layer_split_that_is_not_the_engines_own_is_exported(engine, tmp_path):
    name = {"vllm": "VLLM_PP_LAYER_PARTITION", "sglang": "SGLANG_PP_LAYER_PARTITION"}[engine]
    own = default_layers_per_stage(engine, 126, 4)
    for stages, said in ((own, None), ((30, 32, 32, 32), "30,32,32,32"), (None, None)):
        degrees = {"tp": 8, "pp": 4, "layers_per_stage": stages}
        script = launch(engine, LLAMA3_405B, degrees, 4, 8)["serve.sh"]
        (call,) = run(script, tmp_path, NODE_RANK="0", MASTER_ADDR="h")
        assert call["env"].get(name) == said


@pytest.mark.parametrize("engine", ENGINES)
def test_the_benchmark_asks_for_the_planned_lengths_and_concurrency(engine, tmp_path):
    file = launch(engine, LLAMA3_70B, {"tp": 8, "batch": 64}, 1, 8, isl=1000, osl=200)["bench.sh"]
    (call,) = run(file, tmp_path)
    f = flags(call)
    assert (f["--random-input-len"], f["--random-output-len"], f["--max-concurrency"]) == ("1000", "200", "64")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_illegal_plan_gets_findings_and_no_files(engine):
    files, findings = export(engine, LLAMA3_70B, Strategy(tp=7), isl=10, osl=10)
    assert files == () and {f.code for f in findings if f.severity == "error"} >= {"tp-heads", "tp-kv-heads"}


@pytest.mark.parametrize(("length", "word"), [(9000, "max_position_embeddings(8192)"), (600, "isl + osl = 640")])
def test_a_context_that_the_checkpoint_or_the_requests_exceed_is_refused(length, word):
    files, findings = export("vllm", LLAMA3_70B, Strategy(tp=8), isl=512, osl=128, max_model_len=length)
    assert files == () and word in findings[-1].message


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "path",
    ["/data/my models/it's", "$(touch pwned)", 'a}b"c`touch pwned`', "/模型/千问 2.5", "x; touch pwned", "~/m#1"],
)
def test_a_hostile_model_path_is_one_word_to_the_shell(engine, path, tmp_path):
    model = LLAMA3_70B.model_copy(update={"name": "evil\ntouch pwned\r\u2028touch pwned"})
    for file in launch(engine, model, {"tp": 4, "dp": 2}, 1, 8, model_path=path).values():
        calls = run(file, tmp_path)
        assert not (tmp_path / "pwned").exists()
        if "argv" in calls[0]:
            assert all(path in c["argv"] for c in calls)
    assert parse(launch(engine, model, {"tp": 8}, 1, 8, model_path=path)["serve.sh"].text).model_path == path


@given(st.text())
def test_comments_never_leave_their_line(text):
    assert len(one_line(text).splitlines()) <= 1


def test_an_engine_without_exporter_is_answered_with_the_known_ones():
    with pytest.raises(ToolError, match="known: vllm, sglang"):
        export("mindie", LLAMA3_70B, Strategy(tp=8), isl=1, osl=1)


# Commands that people write --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "degrees"),
    [
        ("vllm serve meta-llama/Llama-3-70B -tp 8 -pp=2", {"tp": 8, "pp": 2, "dp": 1}),
        ("vllm serve m --tensor_parallel_size=4 --data-parallel-size 2", {"tp": 4, "dp": 2, "attn_dp": 1}),
        ("vllm serve m -tp 2 -dp 8 --enable-expert-parallel", {"tp": 2, "attn_dp": 8, "ep": 16, "etp": 1, "dp": 1}),
        ("CUDA_VISIBLE_DEVICES=0,1 python3 -m vllm.entrypoints.openai.api_server --model m -tp 2", {"tp": 2}),
        (
            "python -m sglang.launch_server --model-path m --tp 16 --dp 16 --enable-dp-attention",
            {"tp": 1, "attn_dp": 16},
        ),
        ("python -m sglang.launch_server --model m --tp-size 8 --ep-size 4", {"tp": 8, "ep": 4, "etp": 2}),
        ("python3 -m sglang.launch_server --model m --tp 8 --moe-a2a-backend deepep", {"tp": 8, "ep": 8, "etp": 1}),
        ("sglang serve --model-path m --tp 4 --dp-size 2 # two replicas", {"tp": 4, "dp": 2, "attn_dp": 1}),
    ],
)
def test_commands_as_people_write_them(text, degrees):
    parsed = parse(text)
    assert {k: parsed.degrees[k] for k in degrees} == degrees
    assert parsed.model_path in {"m", "meta-llama/Llama-3-70B"}


def test_a_layer_partition_before_the_command_is_read():
    parsed = parse_vllm("VLLM_PP_LAYER_PARTITION=17,15,15,14 vllm serve deepseek -tp 8 -pp 4 > log 2>&1 &")
    assert parsed.layers_per_stage == (17, 15, 15, 14)
    assert parsed.strategy().layers_per_stage == (17, 15, 15, 14)


def test_a_dense_model_reads_data_parallelism_as_replicas_and_a_moe_as_attention_dp():
    assert parse_vllm("vllm serve m -dp 4", moe=False).degrees["dp"] == 4
    assert parse_vllm("vllm serve m -dp 4", moe=True).degrees["attn_dp"] == 4


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("echo hello", "no command that starts with"),
        ("vllm serve m -tp two", "must be a whole number, got 'two'"),
        ("vllm serve m -tp 0", "at least 1"),
        ("vllm serve 'm", "check its quotes"),
        ("python -m sglang.launch_server --model m --tp 6 --attn-dp-size 4", "tp_size(6) does not divide"),
    ],
)
def test_a_command_that_cannot_be_read_is_one_line(text, word):
    with pytest.raises(ToolError) as error:
        parse(text)
    assert word in str(error.value) and "\n" not in str(error.value)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200), st.sampled_from(["", "vllm serve ", "python -m sglang.launch_server "]))
def test_any_text_is_read_or_refused_never_a_crash(text, prefix):
    for reader in (parse_vllm, parse_sglang):
        with contextlib.suppress(ToolError):
            reader(prefix + text)


# The benchmark that verifies the plan -----------------------------------------------------------------------------

LLAMA = load_model("llama3.1-70b").model
EXPECTED = (
    Expected(key="mean_tpot_ms", name="mean TPOT (ms)", value=20.0, band=0.15, limit=50.0),
    Expected(
        key="output_throughput", name="output tokens/s", value=1000.0, band=0.2, limit=900.0, higher_is_better=True
    ),
)


def measured(engine, tmp_path, result, **more):
    """(exit code, output, rows kept) of bench.sh, its benchmark replaced by one that writes `result`."""
    made, _ = export(
        engine, LLAMA, Strategy(tp=4, dp=2, batch=16), isl=1000, osl=100, num_nodes=1, devices_per_node=8,
        concurrency=32, expected=EXPECTED, device=load_device("h100").device, **more,
    )  # fmt: skip
    text = next(f.text for f in made if f.name.endswith("bench.sh"))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("vllm", "python3"):
        # python3 -m …benchmark… is the engine's; python3 - is the comparison.
        real = f'[ "$1" = - ] && exec {sys.executable} "$@"\n' if name == "python3" else ""
        (programs / name).write_text(f"#!/bin/bash\n{real}cat > \"$RESULT\" <<'X'\n{result}\nX\n")
        (programs / name).chmod(0o755)
    (tmp_path / "bench.sh").write_text(text)
    done = subprocess.run(
        ["bash", "bench.sh"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **more.get("environment", {})},
    )  # fmt: skip
    table = tmp_path / "measured.csv"
    return done.returncode, done.stdout + done.stderr, list(csv.DictReader(table.open())) if table.exists() else []


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_a_measurement_inside_the_bands_confirms_the_plan(engine, tmp_path):
    code, said, rows = measured(
        engine, tmp_path, '{"mean_tpot_ms": 21.0, "mean_ttft_ms": 90.0, "output_throughput": 950}'
    )
    assert code == 0, said
    assert said.count("inside the band") == 2 and "limit 50 met" in said
    assert rows[0]["tpot_ms"] == "21.0" and rows[0]["concurrency_or_batch"] == "32" and rows[0]["tp"] == "4"


def test_a_measurement_outside_a_band_or_limit_is_loud(tmp_path):
    code, said, _ = measured("vllm", tmp_path, '{"mean_tpot_ms": 60.0, "output_throughput": 1000.0}')
    assert code == 1 and "OUTSIDE" in said and "BROKEN" in said


def test_json_lines_are_read_at_their_last_one(tmp_path):
    code, said, rows = measured(
        "sglang", tmp_path, '{"mean_tpot_ms": 99}\n{"mean_tpot_ms": 20, "output_throughput": 1000}'
    )
    assert code == 0 and len(rows) == 1, said


def test_the_measured_row_is_one_that_calibrate_reads(tmp_path):
    from agent.calibration import calibrate, read_measured

    measured("vllm", tmp_path, '{"mean_tpot_ms": 25.0, "mean_ttft_ms": 120.0, "output_throughput": 1100}')
    rows, skipped = read_measured(tmp_path / "measured.csv")
    assert not skipped and rows[0].measured == {"ttft_s": 0.12, "tpot_s": 0.025, "throughput": 1100.0}
    assert calibrate(rows).calibration.devices == ("h100_sxm_80gb",)


def test_a_prefix_that_the_load_shares_is_shared_by_the_prompts_of_the_benchmark():
    made, _ = export("vllm", LLAMA, Strategy(tp=8, batch=16), isl=1000, osl=100, cached=0.4)
    text = next(f.text for f in made if f.name.endswith("bench.sh"))
    assert "--random-prefix-len 400" in text and "--random-input-len 600" in text


def test_pools_are_measured_at_their_router():
    made, _ = export_pd("vllm", LLAMA, Strategy(tp=2, batch=8), Strategy(tp=4, batch=64), isl=1000, osl=100)
    text = next(f.text for f in made if f.name == "vllm/bench.sh")
    proxy = next(f.text for f in made if f.name == "vllm/proxy.sh")
    port = re.search(r"ROUTER_PORT:-(\d+)", proxy)[1]
    assert f"PORT=${{PORT:-{port}}}" in text and "vllm bench serve" in text


@pytest.mark.parametrize(
    ("engine", "log", "words"),
    [
        ("megatron", " elapsed time per iteration (ms): {0} |", "0.500 s per step, 8192.0 tokens/s per device"),
        ("torchtitan", "step: {1} loss: 3 tps: 8,192 tflops: 1", "0.500 s per step, 8192.0 tokens/s per device"),
    ],
)
def test_a_training_plan_comes_with_a_timing_run(engine, log, words, tmp_path):
    made, _ = export_training(engine, LLAMA, Strategy(tp=4, dp=2), seq_len=4096, global_batch_size=8)
    for f in made:
        (tmp_path / f.name).parent.mkdir(exist_ok=True)
        (tmp_path / f.name).write_text(f.text)
    lines = "\n".join(log.format(5000 if i < 10 else 500, i) for i in range(30))
    (tmp_path / engine / "train.sh").write_text(f"cat <<'X'\n{lines}\nX\n")
    done = subprocess.run(["bash", f"{engine}/bench.sh"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and words in done.stdout, done.stdout + done.stderr
