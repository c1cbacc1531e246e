"""What decides whether a launch file starts on its engine, and holds the planned point once it has started.

Facts about the engines were read in the sources of the releases that the rules describe (vLLM 0.33.0, SGLang 0.5.23).
"""

from __future__ import annotations

import shutil

import pytest
import yaml
from engine_models import DEEPSEEK_V3, LLAMA3_70B, QWEN3_30B_FP8, QWEN25_32B_AWQ
from engine_shell import flags, launch, run

from knowledge.catalog import load_device, load_model, released_checkpoint
from tools.engines.export import export, export_pd
from tools.engines.export.pd import shared_nodes
from tools.engines.rules import check, legal, legal_mask
from tools.spec.strategy import Strategy

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="launch files are bash scripts, no bash here")

WIDE = {"tp": 1, "attn_dp": 8, "ep": 8, "weight_dtype": "fp8"}


def codes(engine: str, model, degrees: dict, severity: str) -> set[str]:
    return {f.code for f in check(model, Strategy(engine=engine, **degrees)) if f.severity == severity}


# The checkpoint ----------------------------------------------------------------------------------------------------


def test_the_default_checkpoint_is_the_released_repository():
    assert released_checkpoint("Qwen3-32B") == "Qwen/Qwen3-32B"
    assert released_checkpoint("a model of mine") is None
    model = load_model("qwen3-32b").model
    script = launch("vllm", model, {"tp": 4}, 1, 8, released=released_checkpoint(model.name))["serve.sh"]
    assert "MODEL=${MODEL:-Qwen/Qwen3-32B}\n" in script.text


@pytest.mark.parametrize(
    ("engine", "degrees"), [("vllm", {"weight_dtype": "int4"}), ("trtllm", {"weight_dtype": "fp8"})]
)
def test_weights_that_nobody_released_are_asked_for_instead_of_loading_others(engine, degrees):
    """vLLM and SGLang quantise to FP8 at load; TensorRT-LLM loads what the checkpoint holds, which would be bf16."""
    model = load_model("qwen3-32b").model
    script = launch(engine, model, {"tp": 4, **degrees}, 1, 8, released="Qwen/Qwen3-32B")["serve.sh"]
    assert "Qwen/" not in script.text and f"set MODEL: a checkpoint in {degrees['weight_dtype']}" in script.text
    assert "checkpoint-dtype" in codes(engine, model, {"tp": 4, **degrees}, "warning")
    assert "checkpoint-dtype" not in codes("vllm", model, {"tp": 4, "weight_dtype": "fp8"}, "warning")


# Dispatch of tokens to experts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "backend"), [(1024, "deepep_low_latency"), (8192, "deepep_high_throughput")])
def test_vllm_takes_low_latency_kernels_only_for_steps_that_fit_their_buffers(tokens, backend, tmp_path):
    """vLLM sizes DeepEP's low-latency buffers by max_num_batched_tokens, and the kernels take 1,024 tokens of a rank."""
    degrees = {**WIDE, "max_num_batched_tokens": tokens}
    (call,) = run(launch("vllm", DEEPSEEK_V3, degrees, 1, 8)["serve.sh"], tmp_path)
    assert flags(call)["--all2all-backend"] == backend
    assert ("a2a-step" in codes("vllm", DEEPSEEK_V3, degrees, "warning")) == (tokens > 1024)
    assert "a2a-step" not in codes("vllm", DEEPSEEK_V3, {**degrees, "moe_comm": "allgather"}, "warning")


def test_a_decode_pool_of_vllm_has_small_steps_and_a_prefill_pool_is_not_told_about_decode(tmp_path):
    s = Strategy(**WIDE, batch=320)
    files, findings = export_pd("vllm", DEEPSEEK_V3, s, s, isl=2000, osl=200, devices_per_node=8)
    assert "a2a-step" not in {f.code for f in findings}
    prefill, decode = (flags(run(f, tmp_path, NODE_IP="h")[0]) for f in files[:2])
    assert (prefill["--all2all-backend"], prefill["--max-num-batched-tokens"]) == ("deepep_high_throughput", "8192")
    assert (decode["--all2all-backend"], decode["--max-num-batched-tokens"]) == ("deepep_low_latency", "256")


@pytest.mark.parametrize(
    ("batch", "room", "mode"), [(8 * 128, None, "auto"), (8 * 200, "200", "auto"), (8 * 1025, None, "normal")]
)
def test_sglang_makes_room_for_the_planned_batch_in_its_dispatch_buffers(batch, room, mode, tmp_path):
    """SGLang's low-latency buffers take 128 tokens of a rank unless told, at most 1,024; a larger batch fails in decode."""
    degrees = {**WIDE, "batch": batch}
    (call,) = run(launch("sglang", DEEPSEEK_V3, degrees, 1, 8)["serve.sh"], tmp_path)
    assert call["env"].get("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK") == room
    assert flags(call)["--deepep-mode"] == mode
    assert ("a2a-step" in codes("sglang", DEEPSEEK_V3, degrees, "warning")) == (mode == "normal")


# Context and benchmark ---------------------------------------------------------------------------------------------


def test_sglang_keeps_the_last_output_tokens_of_the_planned_context(tmp_path):
    """A request of isl + osl = --context-length loses its last two output tokens; beyond the checkpoint's own context
    there is no room to add."""
    for model, want in ((LLAMA3_70B.model_copy(update={"max_context": 640}), "640"), (LLAMA3_70B, "645")):
        (call,) = run(launch("sglang", model, {"tp": 8}, 1, 8)["serve.sh"], tmp_path)
        assert flags(call)["--context-length"] == want


def test_sglangs_benchmark_sends_token_ids_so_that_prompts_have_the_planned_length(tmp_path):
    (call,) = run(launch("sglang", LLAMA3_70B, {"tp": 8}, 1, 8)["bench.sh"], tmp_path)
    assert "--tokenize-prompt" in call["argv"]


def test_the_router_takes_the_planned_concurrency_and_long_prompts(tmp_path):
    files = launch("vllm", LLAMA3_70B, {"tp": 4, "dp": 2, "batch": 2000}, 1, 8)
    (said,) = run(files["router.sh"], tmp_path)
    assert "worker_connections 16384" in said["stdout"] and "client_max_body_size 0" in said["stdout"]


# Neighbours on a node ----------------------------------------------------------------------------------------------


def test_attention_dp_instances_of_sglang_on_one_node_do_not_share_ports(tmp_path):
    """An instance takes its port + 233 and six more; instances one port apart would overlap."""
    degrees = {"tp": 1, "attn_dp": 4, "ep": 4, "dp": 2, "weight_dtype": "fp8"}
    calls = [flags(c) for c in run(launch("sglang", QWEN3_30B_FP8, degrees, 1, 8)["serve.sh"], tmp_path)]
    addresses = {f["--dist-init-addr"] for f in calls}
    assert addresses == {"127.0.0.1:29501", "127.0.0.1:29521"}
    alone = run(launch("sglang", QWEN3_30B_FP8, {**degrees, "dp": 1}, 1, 8)["serve.sh"], tmp_path)
    assert "--dist-init-addr" not in flags(alone[0])


def test_pools_that_share_a_node_are_told_so_and_can_keep_apart(tmp_path):
    prefill, decode = Strategy(tp=4), Strategy(tp=2, dp=2)
    (said,) = shared_nodes(prefill, decode, devices_per_node=8, num_nodes=1)
    assert said.severity == "warning" and "FIRST_DEVICE=4" in said.fix
    assert shared_nodes(prefill, decode, devices_per_node=8, num_nodes=2) == ()
    (said,) = shared_nodes(Strategy(tp=8), decode, devices_per_node=8, num_nodes=1)
    assert "12 > 8 devices" in said.message
    files, _ = export_pd("vllm", LLAMA3_70B, prefill, decode, isl=100, osl=10, devices_per_node=8)
    one, *_ = run(files[0], tmp_path, NODE_IP="h")
    others = run(files[1], tmp_path, NODE_IP="h", FIRST_DEVICE="4")
    assert {c["env"]["CUDA_VISIBLE_DEVICES"] for c in others} == {"4,5", "6,7"}
    channels = [int(c["env"]["VLLM_NIXL_SIDE_CHANNEL_PORT"]) for c in (one, *others)]
    assert min(abs(a - b) for i, a in enumerate(channels) for b in channels[:i]) >= 100


@pytest.mark.parametrize(
    ("name", "variable"),
    [("H100", "CUDA"), ("MI300X", "HIP"), ("910C", "ASCEND_RT"), ("MTT S4000", "MUSA")],
)
def test_each_vendor_limits_processes_by_its_own_variable(name, variable):
    degrees = {"tp": 1, "attn_dp": 4, "ep": 4, "dp": 2, "moe_comm": "allgather"}
    model = QWEN3_30B_FP8.model_copy(update={"weight_dtype": "bf16"})
    script = launch("sglang", model, degrees, 1, 8, device=load_device(name).device)["serve.sh"]
    assert f"{variable}_VISIBLE_DEVICES" in script.text


@pytest.mark.parametrize("engine", ["vllm-ascend", "sglang"])
def test_npus_across_nodes_name_their_network_to_hccl_not_to_nccl(engine, tmp_path):
    device = load_device("910C").device
    script = launch(engine, LLAMA3_70B, {"tp": 8, "pp": 2}, 2, 8, device=device)["serve.sh"]
    assert "NCCL_SOCKET_IFNAME" not in script.text
    env = {"NODE_RANK": "1", "MASTER_ADDR": "h", "HCCL_IF_IP": "10.0.0.2", "NIC": "eth1"}
    (call,) = run(script, tmp_path, **env)
    assert {call["env"][f"{n}_SOCKET_IFNAME"] for n in ("HCCL", "GLOO", "TP")} == {"eth1"}


# What the engine refuses at start-up -------------------------------------------------------------------------------


def test_vllm_splits_prompts_of_mla_models_only():
    """AttentionImplBase.supports_pcp is False in 0.33.0, MLA's overrides it; start-up asserts it."""
    assert "cp-backend" in codes("vllm", LLAMA3_70B, {"tp": 4, "cp": 2}, "error")
    assert "cp-backend" not in codes("vllm", DEEPSEEK_V3, {"tp": 4, "cp": 2, "ep": 8, "weight_dtype": "fp8"}, "error")
    assert legal_mask("vllm", LLAMA3_70B, tp=4, cp=[1, 2])[1].tolist() == ["", "cp-backend"]


@pytest.mark.parametrize(("name", "refused"), [("H100", False), ("MI300X", True), ("MTT S4000", True)])
def test_sglang_splits_prompts_on_some_vendors_only(name, refused):
    device, s = load_device(name).device, Strategy(tp=4, cp=2, engine="sglang")
    found = check(LLAMA3_70B, s, device=device)
    assert ("cp-platform" in {f.code for f in found if f.severity == "error"}) == refused
    assert legal("sglang", LLAMA3_70B, s, device=device) != refused
    assert legal_mask("sglang", LLAMA3_70B, tp=4, cp=[1, 2], device=device)[0].tolist() == [True, not refused]


@pytest.mark.parametrize(
    "beyond", [{"expert_devices": 8, "ep": 8}, {"attn_pool": 2}, {"seq_slices": 4, "pp": 2}, {"virtual": 2, "pp": 2}]
)
def test_what_no_flag_says_is_not_legal(beyond):
    s = Strategy(tp=8, weight_dtype="fp8", **beyond)
    assert "not-expressible" in {f.code for f in check(DEEPSEEK_V3, s)}
    assert not legal("vllm", DEEPSEEK_V3, s)


# What a script leaves to whoever starts it -------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [{"tp": 8}, {"tp": 4, "dp": 2}])
def test_flags_after_the_scripts_name_go_to_every_server(degrees, tmp_path):
    file = launch("vllm", LLAMA3_70B, degrees, 1, 8)["serve.sh"]
    assert all("--seed" not in c["argv"] for c in run(file, tmp_path))
    for call in run(file, tmp_path, "--seed", "a word with spaces"):
        assert call["argv"][-2:] == ["--seed", "a word with spaces"]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_speculation_that_the_predictions_count_on_is_a_finding(engine):
    """Which draft there is, the plan does not know; a server without one would be slower than predicted."""
    more = {"isl": 512, "osl": 128, "devices_per_node": 8}
    files, findings = export(engine, LLAMA3_70B, Strategy(tp=8), draft=(3, 0.7), **more)
    (said,) = [f for f in findings if f.code == "speculation"]
    assert "3 drafted tokens" in said.message and "70%" in said.message and "specul" in said.fix
    assert "drafted" in files[0].text
    assert "speculation" not in {f.code for f in export(engine, LLAMA3_70B, Strategy(tp=8), **more)[1]}


# Kubernetes --------------------------------------------------------------------------------------------------------


def test_a_manifest_takes_a_token_and_says_what_the_cluster_has_to_add():
    files, _ = export("vllm", LLAMA3_70B, Strategy(tp=8, pp=2), isl=512, osl=128, devices_per_node=8, kinds=("k8s",))
    text = files[0].text
    assert "RDMA" in text.split("apiVersion")[0]
    workload = next(yaml.safe_load_all(text))
    for template in ("leaderTemplate", "workerTemplate"):
        container = workload["spec"]["leaderWorkerTemplate"][template]["spec"]["containers"][0]
        (token,) = container["env"]
        assert token["name"] == "HF_TOKEN" and token["valueFrom"]["secretKeyRef"]["optional"] is True


def test_an_image_for_npus_can_be_named():
    more = {"isl": 512, "osl": 128, "kinds": ("k8s",), "device": load_device("910C").device}
    files, _ = export(
        "sglang", QWEN25_32B_AWQ.model_copy(update={"weight_dtype": "bf16"}), Strategy(tp=4), image="mine:1", **more
    )
    (container,) = next(yaml.safe_load_all(files[0].text))["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "mine:1" and container["resources"]["limits"] == {"huawei.com/Ascend910": 4}
