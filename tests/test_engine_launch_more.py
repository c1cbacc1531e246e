"""Launch files beyond vLLM and SGLang on bare nodes: TensorRT-LLM, NPUs, Kubernetes, disaggregated pools, training."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml
from engine_models import (
    DEEPSEEK_V3,
    GPT_OSS_120B,
    LLAMA3_70B,
    LLAMA3_405B,
    QWEN3_30B_FP8,
    QWEN25_32B_AWQ,
    TEN_EXPERTS,
)
from engine_shell import BASH, flags, launch, run
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge.catalog import load_device
from tools.engines.export import export, export_pd, export_training, parse, parse_document, parse_trtllm, pd_findings
from tools.engines.export.yaml_text import documents, to_yaml
from tools.engines.rules import resolve_layers
from tools.spec.base import ToolError
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="launch files are bash scripts, no bash here")

NPU = load_device("910C").device
H100 = load_device("H100").device


def same_strategy(got: Strategy, want: Strategy, moe: bool) -> None:
    names = ["tp", "pp", "dp", "cp", "attn_dp", "dcp", *(["ep", "etp"] if moe else [])]
    assert {n: getattr(got, n) for n in names} == {n: getattr(want, n) for n in names}


# YAML --------------------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=20)
    | st.sampled_from(["no", "1e3", "~", "a\n b\n", "2026-01-01", "0x1f", "- x"]),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3), max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(plain)
def test_yaml_text_is_read_back_as_what_was_written(value):
    assert yaml.safe_load(to_yaml(value)) == value


@given(st.lists(st.dictionaries(st.text(min_size=1, max_size=4), st.integers()), min_size=1, max_size=3))
def test_several_documents_are_read_back_in_order(values):
    assert list(yaml.safe_load_all(documents(values))) == values


# TensorRT-LLM ------------------------------------------------------------------------------------------------------

TRT: list[tuple[ModelSpec, dict, int, int]] = [
    (LLAMA3_70B, {"tp": 8, "batch": 64}, 1, 8),
    (LLAMA3_70B, {"tp": 4, "pp": 2, "layers_per_stage": (41, 39)}, 1, 8),
    (LLAMA3_405B, {"tp": 8, "pp": 2}, 2, 8),
    (DEEPSEEK_V3, {"tp": 1, "attn_dp": 16, "ep": 16, "weight_dtype": "fp8", "kv_dtype": "fp8", "batch": 250}, 2, 8),
    (DEEPSEEK_V3, {"tp": 8, "ep": 2, "weight_dtype": "fp8"}, 1, 8),
    (QWEN25_32B_AWQ, {"tp": 2, "dp": 2, "weight_dtype": "int4"}, 1, 4),
]
TRT_IDS = [f"{m.name}-{Strategy(**d).label()}" for m, d, _, _ in TRT]


@pytest.mark.parametrize(("model", "degrees", "nodes", "per_node"), TRT, ids=TRT_IDS)
def test_a_trtllm_launch_read_back_is_the_strategy(model, degrees, nodes, per_node):
    files = launch("trtllm", model, degrees, nodes, per_node)
    config = yaml.safe_load(files["config.yaml"].text)
    parsed = parse(files["serve.sh"].text, config=config)
    want = Strategy(engine="trtllm", **degrees)
    assert parsed.engine == "trtllm" and parsed.model_path == model.name
    same_strategy(parsed.strategy(), want, model.moe is not None)
    cut = resolve_layers("trtllm", model, parsed.strategy()).layers_per_stage
    assert cut == resolve_layers("trtllm", model, want).layers_per_stage


@pytest.mark.parametrize(("model", "degrees", "nodes", "per_node"), TRT, ids=TRT_IDS)
def test_flags_and_configuration_of_trtllm_say_the_same(model, degrees, nodes, per_node, tmp_path):
    files = launch("trtllm", model, degrees, nodes, per_node)
    config = yaml.safe_load(files["config.yaml"].text)
    (call, *others) = run(files["serve.sh"], tmp_path, HOSTS="a,b", NODE_RANK="0")
    f, s = flags(call), Strategy(engine="trtllm", **degrees)
    assert int(f["--tp_size"]) == config["tensor_parallel_size"] == s.tp * s.attn_dp
    assert int(f.get("--pp_size", 1)) == config["pipeline_parallel_size"] == s.pp
    assert int(f["--max_batch_size"]) == config["max_batch_size"] == -(-s.batch // s.attn_dp)
    assert int(f["--max_num_tokens"]) == config["max_num_tokens"] == s.max_num_batched_tokens
    assert config["enable_attention_dp"] == (s.attn_dp > 1)
    assert len(others) == s.dp - 1


def test_trtllm_on_two_nodes_is_started_once_by_mpi_with_all_ranks(tmp_path):
    files = launch("trtllm", DEEPSEEK_V3, {"tp": 16, "weight_dtype": "fp8"}, 2, 8)
    (call,) = run(files["serve.sh"], tmp_path, HOSTS="node-a,node-b")
    argv = call["argv"]
    assert argv[0] == "mpirun" and argv[argv.index("-n") + 1] == "16"
    assert argv[argv.index("--host") + 1] == "node-a:8,node-b:8"
    assert argv[argv.index("trtllm-llmapi-launch") + 1] == "trtllm-serve"


def test_a_stated_reserve_caps_the_pool_of_trtllm_at_the_planned_tokens():
    files = launch("trtllm", LLAMA3_70B, {"tp": 8, "batch": 64}, 1, 8, memory_reserve=0.15, weights_bytes=17.6e9)
    kv = yaml.safe_load(files["config.yaml"].text)["kv_cache_config"]
    assert kv["max_tokens"] == 64 * 640
    assert (1 - kv["free_gpu_memory_fraction"]) * (80e9 - 17.6e9) >= 0.15 * 80e9 * 0.99
    assert "max_tokens" not in yaml.safe_load(
        launch("trtllm", LLAMA3_70B, {"tp": 8, "batch": 64}, 1, 8)["config.yaml"].text
    )["kv_cache_config"]  # fmt: skip


def test_trtllm_sizes_that_do_not_divide_are_one_line():
    with pytest.raises(ToolError, match=r"tp_size\(8\) does not divide by ep_size\(3\)"):
        parse_trtllm("trtllm-serve m --tp_size 8 --ep_size 3")


# NPUs --------------------------------------------------------------------------------------------------------------


def test_npus_get_their_quantisation_their_variable_and_hccl(tmp_path):
    degrees = {"tp": 4, "attn_dp": 4, "ep": 16, "weight_dtype": "int8", "batch": 64}
    script = launch("vllm-ascend", DEEPSEEK_V3, degrees, 1, 16, device=NPU)["serve.sh"]
    (call,) = run(script, tmp_path)
    f = flags(call)
    assert (f["--quantization"], f["--data-parallel-size"], f["--max-num-seqs"]) == ("ascend", "4", "16")
    assert "--all2all-backend" not in f and call["env"]["HCCL_OP_EXPANSION_MODE"] == "AIV"
    parsed = parse(script.text, moe=True)
    assert parsed.engine == "vllm-ascend"
    same_strategy(parsed.strategy(), Strategy(engine="vllm-ascend", **degrees), moe=True)


def test_npus_on_two_nodes_name_one_network_for_hccl_gloo_and_the_store(tmp_path):
    degrees = {"tp": 4, "attn_dp": 8, "ep": 32, "weight_dtype": "int8"}
    script = launch("vllm-ascend", DEEPSEEK_V3, degrees, 2, 16, device=NPU)["serve.sh"]
    env = {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "HCCL_IF_IP": "10.0.0.2", "NIC": "eth7"}
    (call,) = run(script, tmp_path, **env)
    names = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME")
    assert {call["env"][n] for n in names} == {"eth7"} and call["env"]["HCCL_IF_IP"] == "10.0.0.2"


def test_replicas_on_npus_and_on_amd_are_limited_by_their_own_variable(tmp_path):
    for name, engine, variable in (
        ("910C", "vllm-ascend", "ASCEND_RT_VISIBLE_DEVICES"),
        ("MI300X", "vllm", "HIP_VISIBLE_DEVICES"),
    ):
        script = launch(engine, LLAMA3_70B, {"tp": 4, "dp": 2}, 1, 8, device=load_device(name).device)["serve.sh"]
        seen = sorted(c["env"][variable] for c in run(script, tmp_path))
        assert seen == ["0,1,2,3", "4,5,6,7"]


def test_sglang_on_npus_names_the_device_its_attention_and_modelslim(tmp_path):
    script = launch("sglang", LLAMA3_70B, {"tp": 8, "weight_dtype": "int8"}, 1, 16, device=NPU)["serve.sh"]
    f = flags(run(script, tmp_path)[0])
    assert (f["--device"], f["--attention-backend"], f["--quantization"]) == ("npu", "ascend", "modelslim")


# SGLang: shared experts --------------------------------------------------------------------------------------------


def test_sglang_keeps_deepseeks_shared_expert_whole_without_dispatch(tmp_path):
    degrees = {"tp": 1, "attn_dp": 8, "ep": 8, "weight_dtype": "fp8"}
    for comm, want in (("allgather", "1"), ("alltoall", None)):
        script = launch("sglang", DEEPSEEK_V3, {**degrees, "moe_comm": comm}, 1, 8)["serve.sh"]
        (call,) = run(script, tmp_path)
        assert call["env"].get("SGLANG_SHARED_EXPERT_TP1") == want


# Decode context parallelism ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_dcp_is_written_and_read_back(engine):
    degrees = {"tp": 8, "dcp": 4, "weight_dtype": "fp8"}
    parsed = parse(launch(engine, DEEPSEEK_V3, degrees, 1, 8)["serve.sh"].text, moe=True)
    assert parsed.degrees["dcp"] == 4 and parsed.strategy().num_devices == 8


def test_dcp_as_people_write_it():
    assert parse("vllm serve m -tp 8 -dcp 2").degrees["dcp"] == 2
    assert parse("python -m sglang.launch_server --model m --tp 8 --decode-context-parallel-size 4").degrees["dcp"] == 4


# Kubernetes --------------------------------------------------------------------------------------------------------

K8S: list[tuple[ModelSpec, dict, int, int]] = [
    (LLAMA3_70B, {"tp": 4, "dp": 3}, 2, 8),
    (DEEPSEEK_V3, {"tp": 16, "weight_dtype": "fp8", "dp": 2}, 4, 8),
    (DEEPSEEK_V3, {"tp": 1, "attn_dp": 16, "ep": 16, "weight_dtype": "fp8"}, 2, 8),
    (LLAMA3_405B, {"tp": 8, "pp": 4, "layers_per_stage": (30, 32, 32, 32)}, 4, 8),
]


def manifest(engine: str, model: ModelSpec, degrees: dict, nodes: int, per_node: int, **more) -> list[dict]:
    text = launch(engine, model, degrees, nodes, per_node, kinds=("k8s",), **more)["k8s.yaml"].text
    return list(yaml.safe_load_all(text))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(("model", "degrees", "nodes", "per_node"), K8S)
def test_pods_of_a_manifest_own_every_device_of_the_plan_once(engine, model, degrees, nodes, per_node):
    workload, service = manifest(engine, model, degrees, nodes, per_node)
    s, spec = Strategy(**degrees), workload["spec"]
    if workload["kind"] == "LeaderWorkerSet":
        pods, templates = spec["leaderWorkerTemplate"]["size"], ("leaderTemplate", "workerTemplate")
        pod_specs = [spec["leaderWorkerTemplate"][t] for t in templates]
        assert pods > 1 and service["spec"]["selector"]["role"] == "leader"
    else:
        pods, pod_specs = 1, [spec["template"]]
        assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    each = {c["resources"]["limits"]["nvidia.com/gpu"] for p in pod_specs for c in p["spec"]["containers"]}
    assert len(each) == 1 and spec["replicas"] * pods * each.pop() == s.num_devices
    assert service["spec"]["selector"].items() <= pod_specs[0]["metadata"]["labels"].items()


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(("model", "degrees", "nodes", "per_node"), K8S)
def test_a_manifest_read_back_is_the_strategy(engine, model, degrees, nodes, per_node):
    parsed = parse_document(manifest(engine, model, degrees, nodes, per_node), moe=model.moe is not None)
    same_strategy(parsed.strategy(), Strategy(engine=engine, **degrees), model.moe is not None)
    assert parsed.model_path == model.name
    assert parsed.layers_per_stage == degrees.get("layers_per_stage")


def test_pods_of_a_leader_worker_set_start_with_their_own_rank(tmp_path):
    workload, _ = manifest("vllm", DEEPSEEK_V3, {"tp": 1, "attn_dp": 16, "ep": 16, "weight_dtype": "fp8"}, 2, 8)
    from tools.engines.export import LaunchFile

    template = workload["spec"]["leaderWorkerTemplate"]
    script = LaunchFile(name="x", text=template["workerTemplate"]["spec"]["containers"][0]["args"][0])
    env = {"LWS_GROUP_SIZE": "2", "LWS_LEADER_ADDRESS": "leader-0"}
    head, tail = (flags(run(script, tmp_path, LWS_WORKER_INDEX=i, **env)[0]) for i in "01")
    assert "--headless" not in head and "--headless" in tail
    assert tail["--data-parallel-start-rank"] == "8" and tail["--data-parallel-address"] == "leader-0"


def test_manifests_name_the_devices_of_their_vendor_and_refuse_where_no_image_is_known():
    workload, _ = manifest("vllm", LLAMA3_70B, {"tp": 8}, 1, 8, device=load_device("MI300X").device)
    limits = workload["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"amd.com/gpu": 8}
    with pytest.raises(ToolError, match="pass image="):
        launch("sglang", LLAMA3_70B, {"tp": 8}, 1, 8, kinds=("k8s",), device=NPU)
    with pytest.raises(ToolError, match="no Kubernetes manifests of trtllm"):
        export("trtllm", LLAMA3_70B, Strategy(tp=8), isl=1, osl=1, kinds=("k8s",))


@pytest.mark.parametrize("name", ["千问 3", "evil\nkind: Secret", "A" * 90, "--", "x: [y"])
def test_any_model_name_makes_a_manifest_of_two_documents_with_legal_names(name):
    workload, service = manifest("vllm", LLAMA3_70B.model_copy(update={"name": name}), {"tp": 8}, 1, 8)
    label = workload["metadata"]["name"]
    assert label == service["metadata"]["name"] and len(label) <= 63
    assert label.replace("-", "a").isalnum() and label.isascii() and label == label.lower() and label[0].isalpha()


@pytest.mark.parametrize(
    ("data", "degrees"),
    [
        (
            {"kind": "Deployment", "spec": {"replicas": 3, "template": {"spec": {"containers": [
                {"name": "v", "image": "vllm/vllm-openai:latest", "args": ["--model", "m", "-tp", "4"]}]}}}},
            {"tp": 4, "dp": 3},
        ),
        (
            {"spec": {"leaderWorkerTemplate": {"size": 2, "leaderTemplate": {"spec": {"containers": [
                {"name": "v", "image": "x", "command": ["sh", "-c", "vllm serve m --tensor-parallel-size 8 "
                 "--pipeline-parallel-size $(LWS_GROUP_SIZE) --nnodes 2"],
                 "env": [{"name": "LWS_GROUP_SIZE", "value": "2"}]}]}}}}},
            {"tp": 8, "pp": 2},
        ),
        (
            {"services": {"llm": {"image": "lmsysorg/sglang:latest",
                                  "command": "python3 -m sglang.launch_server --model m --tp 2"}}},
            {"tp": 2},
        ),
        (
            {"services": {"a": {"image": "nginx"}, "b": {"image": "vllm/vllm-openai", "command": ["--model=m", "-tp=2"],
                                                          "deploy": {"replicas": 1}}}},
            {"tp": 2},
        ),
    ],
)  # fmt: skip
def test_manifests_and_compose_files_as_people_write_them(data, degrees):
    parsed = parse_document(data)
    assert {k: parsed.degrees[k] for k in degrees} == degrees and parsed.model_path == "m"


@pytest.mark.parametrize(
    ("text", "degrees"),
    [
        (
            "docker run --runtime nvidia --gpus all -e HF_TOKEN=x -p 8000:8000 vllm/vllm-openai:latest \\\n"
            "  --model m --tensor-parallel-size 2",
            {"tp": 2},
        ),
        ("sudo docker run --rm vllm/vllm-openai:v0.33.0 m -tp 4 -pp 2", {"tp": 4, "pp": 2}),
        ("podman run lmsysorg/sglang python3 -m sglang.launch_server --model-path m --tp 8 --ep 8", {"tp": 8, "ep": 8}),
        (
            "docker run -e VLLM_PP_LAYER_PARTITION=41,39 vllm/vllm-openai --model m -tp 1 -pp 2",
            {"pp": 2},
        ),
    ],
)
def test_docker_commands_as_people_write_them(text, degrees):
    parsed = parse(text)
    assert {k: parsed.degrees[k] for k in degrees} == degrees and parsed.model_path == "m"
    if "PARTITION" in text:
        assert parsed.layers_per_stage == (41, 39)


@settings(max_examples=100, deadline=None)
@given(plain)
def test_any_document_is_read_or_refused_never_a_crash(data):
    for wrapped in (data, {"spec": data}, {"containers": [{"image": "vllm/vllm-openai", "args": data}]}):
        try:
            parse_document(wrapped)
        except ToolError as error:
            assert "\n" not in str(error)


# Disaggregated pools -----------------------------------------------------------------------------------------------


def pair(engine: str, model: ModelSpec, prefill: dict, decode: dict) -> set[str]:
    found = pd_findings(engine, model, Strategy(engine=engine, **prefill), Strategy(engine=engine, **decode))
    return {f.code for f in found if f.severity == "error"}


def test_kv_moves_between_pools_whose_tp_divide():
    assert pair("vllm", LLAMA3_70B, {"tp": 4}, {"tp": 8}) == set()
    assert pair("vllm", LLAMA3_70B, {"tp": 8}, {"tp": 4}) == set()
    assert pair("vllm", LLAMA3_70B, {"tp": 3}, {"tp": 8}) == {"pd-tp"}
    assert pair("sglang", LLAMA3_70B, {"tp": 3}, {"tp": 8}) == {"pd-tp"}


def test_nixl_does_not_gather_kv_heads_that_prefill_holds_twice():
    """Llama-3-70B has 8 KV heads: 16 prefill ranks hold each twice. MLA has one latent everywhere, which is fine."""
    assert pair("vllm", LLAMA3_70B, {"tp": 16}, {"tp": 8}) == {"pd-replicated"}
    assert pair("vllm", LLAMA3_70B, {"tp": 16}, {"tp": 16}) == set()
    assert pair("vllm", DEEPSEEK_V3, {"tp": 16}, {"tp": 8}) == set()


def test_ascend_wants_the_larger_tp_in_prefill_where_nixl_takes_either():
    assert pair("vllm-ascend", LLAMA3_70B, {"tp": 4}, {"tp": 8}) == {"pd-tp-order"}
    assert pair("vllm-ascend", LLAMA3_70B, {"tp": 8}, {"tp": 4}) == set()


@pytest.mark.parametrize(
    ("prefill", "decode", "code"),
    [
        ({"tp": 4}, {"tp": 4, "pp": 2}, "pd-decode-pp"),
        ({"tp": 4, "kv_dtype": "fp8"}, {"tp": 4}, "pd-kv-dtype"),
        ({"tp": 4, "kv_dtype": "nvfp4"}, {"tp": 8, "kv_dtype": "nvfp4"}, "pd-nvfp4"),
        ({"tp": 8, "dcp": 2}, {"tp": 8, "dcp": 3}, "pd-dcp"),
        ({"tp": 4, "cp": 2}, {"tp": 8, "dcp": 2}, "pd-cp-dcp"),
    ],
)
def test_what_nixl_refuses(prefill, decode, code):
    found = pd_findings("vllm", DEEPSEEK_V3, Strategy(**prefill), Strategy(**decode))
    assert code in {f.code for f in found}
    assert all(f.fix and "\n" not in f.message for f in found)


def test_sliding_windows_keep_prefill_in_one_stage():
    layers = tuple(i % 2 == 0 for i in range(GPT_OSS_120B.num_hidden_layers))
    attention = GPT_OSS_120B.attention.model_copy(update={"sliding_window": 128})
    model = GPT_OSS_120B.model_copy(update={"sliding_layers": layers, "attention": attention})
    assert "pd-prefill-pp" in pair("vllm", model, {"tp": 4, "pp": 2}, {"tp": 4})
    assert "pd-prefill-pp" not in pair("vllm", LLAMA3_70B, {"tp": 4, "pp": 2}, {"tp": 4})


def test_vllm_pools_name_their_role_and_do_not_share_side_channels(tmp_path):
    files, findings = export_pd(
        "vllm", LLAMA3_70B, Strategy(tp=4, dp=2), Strategy(tp=8), isl=2000, osl=200, devices_per_node=8,
        memory_total_bytes=80e9,
    )  # fmt: skip
    by_name = {f.name: f for f in files}
    assert set(by_name) == {"vllm/prefill.sh", "vllm/decode.sh", "vllm/proxy.sh", "vllm/bench.sh"}, findings
    calls = run(by_name["vllm/prefill.sh"], tmp_path, NODE_IP="10.0.0.1", PYTORCH_CUDA_ALLOC_CONF="x")
    assert {c["env"]["VLLM_NIXL_SIDE_CHANNEL_PORT"] for c in calls} == {"5600", "5700"}
    assert {flags(c)["--port"] for c in calls} == {"8000", "8001"}
    assert all('"kv_role":"kv_producer"' in flags(c)["--kv-transfer-config"] for c in calls)
    (decode,) = run(by_name["vllm/decode.sh"], tmp_path, NODE_IP="10.0.0.2")
    assert '"kv_role":"kv_consumer"' in flags(decode)["--kv-transfer-config"]
    assert decode["env"]["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "10.0.0.2"
    (proxy,) = run(by_name["vllm/proxy.sh"], tmp_path, PREFILL="10.0.0.1:8000 10.0.0.1:8001", DECODE="10.0.0.2:8100")
    assert [a for a in proxy["argv"] if a.startswith("http")] == [
        "http://10.0.0.1:8000", "http://10.0.0.1:8001", "http://10.0.0.2:8100",
    ]  # fmt: skip


@pytest.mark.parametrize("transfer", ["mooncake", "nixl"])
def test_sglang_pools_name_their_mode_transport_and_bootstrap(transfer, tmp_path):
    files, _ = export_pd(
        "sglang", DEEPSEEK_V3, Strategy(tp=8, dp=2, weight_dtype="fp8"),
        Strategy(tp=1, attn_dp=16, ep=16, weight_dtype="fp8"),
        isl=2000, osl=200, devices_per_node=8, transfer=transfer,
    )  # fmt: skip
    prefill, decode, proxy, _ = files
    calls = run(prefill, tmp_path, NODE_RANK="0", IB_DEVICE="mlx5_0")
    f = flags(calls[0])
    assert (f["--disaggregation-mode"], f["--disaggregation-transfer-backend"]) == ("prefill", transfer)
    assert f["--disaggregation-ib-device"] == "mlx5_0"
    assert len({flags(c)["--disaggregation-bootstrap-port"] for c in calls}) == len(calls)
    g = flags(run(decode, tmp_path, NODE_RANK="0", MASTER_ADDR="h")[0])
    assert g["--disaggregation-mode"] == "decode" and "--disaggregation-bootstrap-port" not in g
    assert "--disaggregation-ib-device" not in g and g["--attn-dp-size"] == "16"
    (router,) = run(proxy, tmp_path, PREFILL="p:8000 p:8001/8999", DECODE="d:8100")
    argv = router["argv"]
    at = [i for i, a in enumerate(argv) if a == "--prefill"]
    assert [argv[i + 1 : i + 3] for i in at] == [["http://p:8000", "8998"], ["http://p:8001", "8999"]]


def test_an_illegal_pair_or_pool_gets_findings_that_name_the_pool_and_no_files():
    files, findings = export_pd("vllm", LLAMA3_70B, Strategy(tp=7), Strategy(tp=8), isl=10, osl=10)
    assert files == () and findings[0].severity == "error"
    assert any(f.message.startswith("prefill pool: ") and f.code == "tp-heads" for f in findings)
    assert "pd-tp" in {f.code for f in findings}
    with pytest.raises(ToolError, match="known: vllm, sglang"):
        export_pd("trtllm", LLAMA3_70B, Strategy(tp=8), Strategy(tp=8), isl=1, osl=1)
    with pytest.raises(ToolError, match="known: nixl"):
        export_pd("vllm", LLAMA3_70B, Strategy(tp=8), Strategy(tp=8), isl=1, osl=1, transfer="mooncake")


# Training ----------------------------------------------------------------------------------------------------------


def train(engine: str, model: ModelSpec, degrees: dict, **more):
    more = {"seq_len": 4096, "global_batch_size": 64, **more}
    return export_training(engine, model, Strategy(engine=engine, **degrees), **more)


def test_megatron_is_told_the_model_and_every_degree(tmp_path):
    degrees = {"tp": 4, "pp": 4, "attn_dp": 4, "ep": 16, "sp": True}
    (file, *_), _ = train("megatron", DEEPSEEK_V3, degrees)
    env = {"NODE_RANK": "3", "MASTER_ADDR": "n0", "DATA_PATH": "/d", "TOKENIZER": "t"}
    (call,) = run(file, tmp_path, **env)
    f = flags(call)
    assert call["argv"][0] == "torchrun" and f["--node-rank"] == "3"
    assert int(f["--nnodes"]) * int(f["--nproc-per-node"]) == Strategy(**degrees).num_devices
    assert (f["--expert-model-parallel-size"], f["--expert-tensor-parallel-size"]) == ("16", "1")
    assert (f["--num-layers"], f["--hidden-size"], f["--kv-lora-rank"], f["--num-experts"]) == (
        "61",
        "7168",
        "512",
        "256",
    )
    layout = f["--pipeline-model-parallel-layout"]
    assert sum(int(p.strip("EL").removeprefix("t*")) for p in layout.split("|")) == 61
    assert f["--moe-layer-freq"].count("1") == 58


def test_torchtitan_gets_its_degrees_and_a_microbatch_per_stage_at_least(tmp_path):
    (file, *_), _ = train("torchtitan", LLAMA3_70B, {"tp": 8, "pp": 4, "dp": 2, "sp": True})
    (call,) = run(file, tmp_path, NODE_RANK="0", MASTER_ADDR="n0", MODULE="llama3", CONFIG="llama3_70b")
    f = flags(call)
    p = "--parallelism."
    degrees = ("data_parallel_replicate", "data_parallel_shard", "tensor_parallel", "pipeline_parallel")
    product = 1
    for name in (*degrees, "context_parallel"):
        product *= int(f[f"{p}{name}_degree"])
    assert product == 64 == int(f["--nnodes"]) * int(f["--nproc-per-node"])
    assert int(f["--training.local_batch_size"]) // int(f[f"{p}pipeline_parallel_microbatch_size"]) >= 4
    assert int(f["--training.global_batch_size"]) % (int(f["--training.local_batch_size"]) * 2) == 0


@pytest.mark.parametrize("engine", ["megatron", "torchtitan"])
@pytest.mark.parametrize(
    ("degrees", "more", "code"),
    [
        ({"tp": 8, "sp": True}, {"seq_len": 4097}, "seq-len"),
        ({"tp": 8, "sp": True, "dp": 3}, {"global_batch_size": 64}, "global-batch"),
        ({"tp": 8, "sp": True}, {"seq_len": 16384}, "max-model-len"),
        ({"tp": 4, "dp": 3, "sp": True}, {"global_batch_size": 66}, "world-nodes"),
        ({"tp": 7}, {}, "tp-heads"),
    ],
)
def test_what_training_refuses_gets_no_file(engine, degrees, more, code):
    files, findings = train(engine, LLAMA3_70B, degrees, **more)
    assert files == () and code in {f.code for f in findings if f.severity == "error"}


@pytest.mark.parametrize(
    ("kind", "flag", "engine"),
    [("ulysses", "a2a", "megatron"), ("ring", "p2p", "megatron"), ("ring", None, "torchtitan")],
)
def test_context_parallelism_says_its_kind(kind, flag, engine, tmp_path):
    (file, *_), _ = train(engine, LLAMA3_70B, {"tp": 4, "cp": 2, "cp_kind": kind, "sp": True})
    (call,) = run(file, tmp_path, DATA_PATH="d", TOKENIZER="t", MODULE="m", CONFIG="c")
    assert flags(call).get("--cp-comm-type") == flag
    assert train("torchtitan", LLAMA3_70B, {"tp": 4, "cp": 2, "cp_kind": "ulysses", "sp": True})[0] == ()


@pytest.mark.parametrize("model", [LLAMA3_70B, DEEPSEEK_V3, QWEN3_30B_FP8, TEN_EXPERTS], ids=lambda m: m.name)
@pytest.mark.parametrize("engine", ["megatron", "torchtitan"])
def test_training_scripts_are_valid_bash(engine, model, tmp_path):
    (file, *_), _ = train(engine, model, {"tp": 2, "sp": True})
    path = tmp_path / "t.sh"
    path.write_text(file.text, encoding="utf-8")
    done = subprocess.run([BASH, "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_serving_engines_do_not_train_and_training_frameworks_do_not_serve():
    with pytest.raises(ToolError, match="known: megatron, torchtitan"):
        train("vllm", LLAMA3_70B, {"tp": 8})
    with pytest.raises(ToolError, match="known: vllm, sglang, trtllm, vllm-ascend"):
        export("megatron", LLAMA3_70B, Strategy(tp=8), isl=1, osl=1)
