"""What a launch command runs: read, resolved through the catalogue, judged."""

from __future__ import annotations

import json

import pytest
import yaml
from engine_models import DEEPSEEK_V3, LLAMA3_70B, QWEN3_30B_FP8
from engine_shell import launch
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.audit import audit, audit_command, read_command
from knowledge.catalog import load_device
from tools.engines.export import parse, parse_document
from tools.spec.base import ToolError
from tools.spec.strategy import Strategy

H100 = load_device("H100").device


def codes(report, severity: str = "error") -> list[str]:
    return [f.code for f in report.findings if f.severity == severity]


def test_a_command_is_resolved_to_a_model_of_the_catalogue():
    report = audit(
        "vllm serve meta-llama/Llama-3.1-70B-Instruct -tp 8 --max-num-seqs 64 --max-model-len 8k", device="H100"
    )
    assert report.model is not None and report.model.num_hidden_layers == 80
    assert report.strategy is not None and (report.strategy.tp, report.strategy.batch) == (8, 64)
    assert report.operating_point.max_model_len == 8000
    assert report.legal and report.strategy.num_devices == 8


@pytest.mark.parametrize("path", ["/models/Qwen2.5-7B-Instruct", "/models/Qwen2.5-7B-Instruct/", "Qwen/Qwen2.5-7B"])
def test_seven_way_tp_of_qwen2_5_7b_is_refused_with_the_way_out(path):
    report = audit(f"vllm serve {path} -tp 7")
    assert "tp-kv-heads" in codes(report) and not report.legal
    assert "tp 1, 2, 4 pass every rule" in next(f.fix for f in report.findings if f.code == "tp-kv-heads")


def test_a_model_that_nobody_knows_is_said_and_nothing_else_is_claimed():
    report = audit("vllm serve /data/小模型-final-v2 -tp 6 -pp 2")
    assert report.model is None and codes(report, "warning") == ["model-unknown"] and codes(report) == []
    assert report.strategy is not None and report.strategy.num_devices == 12
    with pytest.raises(ToolError):
        audit("vllm serve x", model="no such model at all 9000")


def test_what_the_command_leaves_to_the_engine_is_listed_as_assumed():
    report = audit("vllm serve m -tp 8 -pp 4", model=DEEPSEEK_V3, device=H100)
    assumed = {a.path: a.value for a in report.assumptions}
    assert assumed == {
        "max_num_batched_tokens": "8192", "max_num_seqs": "1024", "weight_dtype": "fp8",
        "layers_per_stage": "15,15,16,15",
    }  # fmt: skip
    full = "vllm serve m -tp 8 --max-num-seqs 8 --max-num-batched-tokens 4096 --dtype bfloat16"
    assert audit(full, model=LLAMA3_70B, device=H100).assumptions == ()


@pytest.mark.parametrize(
    ("text", "model", "weights", "kv"),
    [
        ("vllm serve m --quantization fp8 --kv-cache-dtype fp8_e4m3", LLAMA3_70B, "fp8", "fp8"),
        ("vllm serve m -q awq_marlin", LLAMA3_70B, "int4", "bf16"),
        ("vllm serve m --quantization modelopt_fp4 --kv-cache-dtype nvfp4", LLAMA3_70B, "nvfp4", "nvfp4"),
        ("vllm serve m --dtype half", LLAMA3_70B, "fp16", "fp16"),
        ("vllm serve m", DEEPSEEK_V3, "fp8", "bf16"),
        ("python -m sglang.launch_server --model m --kv-cache-dtype fp8_e5m2", DEEPSEEK_V3, "fp8", "fp8"),
        ("HCCL_IF_IP=1.2.3.4 vllm serve m --quantization ascend", DEEPSEEK_V3, "int8", "bf16"),
    ],
)
def test_dtypes_come_from_flags_else_from_the_checkpoint(text, model, weights, kv):
    s = audit(text, model=model).strategy
    assert s is not None and (s.weight_dtype, s.kv_dtype) == (weights, kv)


def test_data_parallelism_of_vllm_means_replicas_for_a_dense_model_and_attention_dp_for_experts():
    dense = audit("vllm serve m -tp 2 -dp 4", model=LLAMA3_70B).strategy
    experts = audit("vllm serve m -tp 2 -dp 4 --enable-expert-parallel", model=QWEN3_30B_FP8).strategy
    sliced = audit("vllm serve m -tp 2 -dp 2", model=QWEN3_30B_FP8).strategy
    assert dense is not None and (dense.dp, dense.attn_dp) == (4, 1)
    assert experts is not None and (experts.dp, experts.attn_dp, experts.ep, experts.etp) == (1, 4, 8, 1)
    assert sliced is not None and (sliced.dp, sliced.attn_dp, sliced.ep, sliced.etp) == (1, 2, 1, 4)


def test_limits_are_of_one_scheduler_in_vllm_and_of_the_replica_in_sglang():
    v = audit("vllm serve m -tp 1 -dp 8 --enable-expert-parallel --max-num-seqs 16", model=DEEPSEEK_V3).strategy
    g = audit(
        "python -m sglang.launch_server --model m --tp 8 --attn-dp-size 8 --ep-size 8 --max-running-requests 128 "
        "--chunked-prefill-size 65536", model=DEEPSEEK_V3,
    ).strategy  # fmt: skip
    assert v is not None and v.batch == 128
    assert g is not None and (g.batch, g.max_num_batched_tokens) == (128, 8192)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(
    "degrees",
    [
        {"tp": 8, "batch": 64, "max_num_batched_tokens": 4096},
        {"tp": 1, "attn_dp": 8, "ep": 8, "batch": 64, "kv_dtype": "fp8"},
        {"tp": 4, "pp": 2, "layers_per_stage": (30, 31), "batch": 4},
    ],
)
def test_our_own_launch_files_audit_to_the_plan(engine, degrees, tmp_path):
    s = Strategy(engine=engine, weight_dtype="fp8", **degrees)
    script = launch(engine, DEEPSEEK_V3, {"weight_dtype": "fp8", **degrees}, 1, 8)["serve.sh"]
    path = tmp_path / "serve.sh"
    path.write_text(script.text, encoding="utf-8")
    report = audit(path, model=DEEPSEEK_V3, device=H100)
    assert report.legal, codes(report)
    same = ("tp", "pp", "attn_dp", "ep", "batch", "max_num_batched_tokens", "weight_dtype", "kv_dtype")
    assert report.strategy is not None
    assert {n: getattr(report.strategy, n) for n in same} == {n: getattr(s, n) for n in same}
    if s.layers_per_stage:
        assert report.strategy.layers_per_stage == s.layers_per_stage
    assert Strategy(**report.baseline()) == report.strategy
    json.loads(report.model_dump_json())


def test_a_trtllm_script_is_read_with_the_configuration_beside_it(tmp_path):
    degrees = {"tp": 1, "attn_dp": 8, "ep": 8, "weight_dtype": "fp8", "kv_dtype": "fp8", "batch": 64}
    files = launch("trtllm", DEEPSEEK_V3, degrees, 1, 8)
    for f in files.values():
        (tmp_path / f.name.split("/")[-1]).write_text(f.text, encoding="utf-8")
    report = audit(tmp_path / "serve.sh", model=DEEPSEEK_V3, device=H100)
    s = report.strategy
    assert s is not None and (s.tp, s.attn_dp, s.ep, s.kv_dtype, s.batch) == (1, 8, 8, "fp8", 64)


def test_manifests_are_read_from_files_and_from_text(tmp_path):
    text = launch("vllm", DEEPSEEK_V3, {"tp": 16, "weight_dtype": "fp8"}, 2, 8, kinds=("k8s",))["k8s.yaml"].text
    path = tmp_path / "k8s.yaml"
    path.write_text("\ufeff" + text, encoding="utf-8")
    for source in (path, str(path), text):
        assert read_command(source).degrees["tp"] == 16
    compose = tmp_path / "compose.yml"
    compose.write_text(yaml.safe_dump({"services": {"a": {"image": "vllm/vllm-openai", "command": "--model m -tp 2"}}}))
    assert read_command(compose).degrees["tp"] == 2


@pytest.mark.parametrize(
    ("text", "code", "severity"),
    [
        ("vllm serve m -tp 8 -dp 2 --enable-expert-parallel --all2all-backend pplx", "flag-gone", "error"),
        ("python -m sglang.launch_server --model m --tp 8 --dp 8 --enable-dp-attention", "flag-gone", "warning"),
        (
            "python -m sglang.launch_server --model m --tp 8 --ep-size 2 --moe-a2a-backend deepep",
            "flag-ignored",
            "warning",
        ),
        ("vllm serve m -tp 8 --gpu-memory-utilization 1.5", "memory-fraction", "error"),
    ],
)
def test_flags_that_a_release_no_longer_obeys_are_pointed_out(text, code, severity):
    report = audit(text, model=DEEPSEEK_V3, device=H100)
    found = {f.code: f.severity for f in report.findings}
    assert found[code] == severity


def test_a_context_beyond_the_checkpoints_is_an_error():
    report = audit("vllm serve m -tp 8 --max-model-len 32768", model=LLAMA3_70B)
    assert codes(report) == ["max-model-len"]


def test_the_device_that_runs_it_is_judged():
    text = "vllm serve m -tp 8 --quantization fp8"
    assert "weight-only" in codes(audit(text, model=LLAMA3_70B, device="A100"), "warning")
    assert codes(audit(text, model=LLAMA3_70B, device="910B")) == ["device-engine"]


def test_degrees_that_contradict_each_other_are_a_finding():
    parsed = parse("vllm serve m -tp 8").model_copy(
        update={"degrees": {"tp": 8, "pp": 1, "cp": 1, "attn_dp": 1, "ep": 3}}
    )
    report = audit_command(parsed, DEEPSEEK_V3)
    assert report.strategy is None and codes(report) == ["degrees"] and not report.legal
    with pytest.raises(ToolError):
        report.baseline()


@pytest.mark.parametrize(
    "text", ["", "echo hello", "/no/such/file.sh", "vllm serve 'x", "apiVersion: [", "services: {}"]
)
def test_what_is_no_command_is_refused_in_one_line(text):
    with pytest.raises(ToolError) as error:
        audit(text)
    assert "\n" not in str(error.value)


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=80),
    st.sampled_from(
        ["", "vllm serve m ", "python -m sglang.launch_server --model m ", "trtllm-serve m ", "docker run "]
    ),
)
def test_any_text_is_audited_or_refused_never_a_crash(text, prefix):
    try:
        report = audit(prefix + text, model=DEEPSEEK_V3)
    except ToolError:
        return
    assert report.model_path is not None and all(f.message for f in report.findings)


def test_the_tag_of_an_image_is_the_release_that_is_judged():
    report = audit("docker run vllm/vllm-openai:v0.6.3 --model Qwen/Qwen2.5-32B-Instruct-AWQ -tp 4", device="4090")
    assert "engine-version" in codes(report, "warning")
    assert "engine-version" not in codes(audit("docker run vllm/vllm-openai:v0.33.0 --model gpt2"), "warning")
    data = {"containers": [{"image": "lmsysorg/sglang:v0.4.1", "command": "python -m sglang.launch_server --model m"}]}
    assert parse_document(data).version == "0.4.1"


def test_a_dtype_that_the_models_name_carries_is_the_checkpoints_own():
    report = audit("vllm serve Qwen/Qwen2.5-32B-Instruct-AWQ -tp 4", device="4090")
    assert report.strategy is not None and report.strategy.weight_dtype == "int4" and report.legal
    assert "checkpoint-dtype" not in codes(report, "warning")
    fp4 = audit("trtllm-serve nvidia/DeepSeek-R1-FP4 --tp_size 8 --ep_size 8", device="B200")
    assert fp4.strategy is not None and fp4.strategy.weight_dtype == "nvfp4" and fp4.legal
