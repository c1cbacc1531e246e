"""What engines run on which devices, in which dtypes: stored, computed, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from engine_models import DEEPSEEK_V3, GPT_OSS_120B, LLAMA3_70B, QWEN3_30B_FP8
from hypothesis import given
from hypothesis import strategies as st

from knowledge.catalog import device_ids, load_device
from tools.engines.export import LAUNCHERS, export, serving_engines
from tools.engines.rules import check, device_dtype, engines, legal, legal_mask
from tools.engines.rules.devices import COMPUTES, capability, units
from tools.spec.hardware import Device
from tools.spec.strategy import Strategy

DTYPES = ("fp32", "bf16", "fp16", "fp8", "int8", "int4", "mxfp4", "nvfp4")


def device(name: str) -> Device:
    return load_device(name).device


def codes(name: str, weights: str, kv: str = "bf16", engine: str = "vllm") -> dict[str, str]:
    return {f.code: f.severity for f in device_dtype(device(name), weights, kv, engine)}


def test_compute_capability_is_read_from_the_architecture():
    assert [capability(device(n)) for n in ("V100", "A100", "L40S", "H100", "B200", "RTX 5090")] == [
        70,
        80,
        89,
        90,
        100,
        120,
    ]
    assert capability(device("MI300X")) is None


@pytest.mark.parametrize(
    ("name", "weights", "engine", "want"),
    [
        ("H100", "fp8", "vllm", {}),
        ("L40S", "fp8", "trtllm", {}),
        ("MI300X", "fp8", "vllm", {}),
        ("A100", "fp8", "vllm", {"weight-only": "warning"}),
        ("A100", "fp8", "sglang", {"weight-only": "warning"}),
        ("A100", "fp8", "trtllm", {"device-dtype": "error"}),
        ("T4", "fp8", "vllm", {"weight-only": "warning"}),
        ("T4", "fp8", "sglang", {"device-dtype": "error"}),
        ("V100", "fp8", "vllm", {"device-dtype": "error"}),
        ("V100", "bf16", "vllm", {"device-dtype": "error"}),
        ("V100", "fp16", "vllm", {}),
        ("H100", "nvfp4", "vllm", {"weight-only": "warning"}),
        ("B200", "nvfp4", "vllm", {}),
        ("RTX 5090", "nvfp4", "vllm", {}),
        ("MI300X", "nvfp4", "vllm", {"device-dtype": "error"}),
        ("H100", "mxfp4", "vllm", {"weight-only": "warning"}),
        ("B200", "mxfp4", "sglang", {}),
        ("MI355X", "mxfp4", "vllm", {}),
        ("MI300X", "mxfp4", "vllm", {"weight-only": "warning"}),
        ("A100", "int4", "vllm", {}),
        ("910B", "fp8", "vllm-ascend", {"device-dtype": "error"}),
        ("910C", "int8", "vllm-ascend", {}),
        ("910C", "bf16", "vllm", {"device-engine": "error"}),
        ("H100", "bf16", "vllm-ascend", {"device-engine": "error"}),
        ("MI300X", "bf16", "trtllm", {"device-engine": "error"}),
        ("Gaudi 3", "bf16", "vllm", {"device-engine": "warning"}),
        ("A100", "fp8", "megatron", {"device-dtype": "error"}),
        ("H100", "fp8", "torchtitan", {}),
        ("H100", "bf16", "mindie", {}),
    ],
)
def test_weights_on_devices(name, weights, engine, want):
    assert codes(name, weights, engine=engine) == want


def test_fp8_on_ampere_says_what_it_computes_at():
    (found,) = device_dtype(device("A100"), "fp8", "bf16", "vllm")
    assert "312 TFLOP/s" in found.message and "stored in FP8" in found.message


def test_b300_int8_is_slower_than_bf16_and_gaudi3_fp8_no_faster():
    assert codes("B300", "int8")["dtype-slow"] == "warning"
    assert codes("Gaudi 3", "fp8")["dtype-slow"] == "info"
    assert "dtype-slow" not in codes("H100", "int8")


@pytest.mark.parametrize(
    ("name", "kv", "want"),
    [
        ("H100", "fp8", {}),
        ("A100", "fp8", {"device-kv-dtype": "warning"}),
        ("H100", "nvfp4", {"device-kv-dtype": "error"}),
        ("B200", "nvfp4", {}),
        ("MI300X", "fp8", {}),
    ],
)
def test_kv_dtypes_on_devices(name, kv, want):
    assert codes(name, "bf16", kv) == want


def test_fp8_kv_is_refused_on_910b():
    assert codes("910B", "bf16", "fp8", "vllm-ascend") == {"device-kv-dtype": "error"}


def test_the_second_ring_of_a_910b2c_server_is_out_of_reach_of_mc2():
    wide = Strategy(tp=1, attn_dp=16, ep=16, weight_dtype="int8", engine="vllm-ascend")
    said = {f.code for f in check(DEEPSEEK_V3, wide, device=device("910B2C"), devices_per_node=16)}
    assert "device-ring" in said
    assert "device-ring" not in {f.code for f in check(DEEPSEEK_V3, wide, device=device("910B1"))}


@given(name=st.sampled_from(device_ids()), weights=st.sampled_from(DTYPES), engine=st.sampled_from(engines()))
def test_no_device_that_lacks_units_computes_in_the_dtype_unsaid(name, weights, engine):
    """Property over the whole catalogue: a quantised dtype without units is refused, or said to be converted."""
    found = device_dtype(device(name), weights, "bf16", engine)
    quiet = not [f for f in found if f.code in ("device-dtype", "weight-only", "device-engine")]
    if quiet and weights in COMPUTES:
        assert units(device(name), weights) is not None or (capability(device(name)) or 0) >= COMPUTES[weights]
    for f in found:
        assert f.fix and f.where and f.message.startswith(f"{f.where}: ") and "\n" not in f.message
        f.model_dump_json()


def test_a_device_is_asked_only_when_it_is_given():
    s = Strategy(tp=4, weight_dtype="fp8")
    assert device_dtype(None, "fp8", "nvfp4", "vllm") == ()
    assert legal("trtllm", QWEN3_30B_FP8, s)
    assert not legal("trtllm", QWEN3_30B_FP8, s, device=device("A100"))


@pytest.mark.parametrize("engine", engines())
@pytest.mark.parametrize("name", ["A100", "H100", "MI300X", "910B", "V100"])
@pytest.mark.parametrize("model", [LLAMA3_70B, QWEN3_30B_FP8, GPT_OSS_120B], ids=lambda m: m.name)
def test_the_vectorised_rules_know_the_device_too(engine, name, model):
    d, s = device(name), Strategy(tp=4, weight_dtype=model.weight_dtype, engine=engine)
    mask, reason = legal_mask(engine, model, tp=np.array([4, 3]), weight_dtype=model.weight_dtype, device=d)
    first = next((f.code for f in check(model, s, device=d) if f.severity == "error"), "")
    assert (bool(mask[0]), str(reason[0])) == (first == "", first)


def test_launch_files_are_for_engines_with_a_back_end_for_the_device():
    assert serving_engines(device("H100")) == ("vllm", "sglang", "trtllm")
    assert serving_engines(device("MI300X")) == ("vllm", "sglang")
    assert serving_engines(device("910C")) == ("sglang", "vllm-ascend")
    assert serving_engines(None) == ("vllm", "sglang", "trtllm")
    for engine in LAUNCHERS:
        files, findings = export(engine, LLAMA3_70B, Strategy(tp=8), isl=10, osl=10, device=device("910C"))
        assert bool(files) == (engine in ("sglang", "vllm-ascend")), [f.message for f in findings]


def test_ascend_files_are_not_written_for_a_device_that_nobody_named():
    files, findings = export("vllm-ascend", LLAMA3_70B, Strategy(tp=8), isl=10, osl=10)
    assert files == () and findings[-1].code == "device-engine"
