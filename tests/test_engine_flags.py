"""Every flag of every launch file exists in the engine's own argument parser and takes the value's type.

Opt-in: set MESHWRIGHT_ENGINE_WHEELS to a folder with the wheels of the releases that the rules describe
(`pip download --no-deps vllm==0.33.0 sglang==0.5.23 torchtitan==0.3.0`). Nothing is installed: parsers are read from
the sources inside the wheels.
"""

from __future__ import annotations

import ast
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from engine_models import DEEPSEEK_V3, GPT2_XL, GPT_OSS_120B, LLAMA3_70B, LLAMA3_405B, QWEN3_30B_FP8, QWEN25_32B_AWQ
from engine_shell import launch, run

from knowledge.catalog import load_device
from tools.engines.export import export_pd, export_training
from tools.engines.rules import latest
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

FOLDER = os.environ.get("MESHWRIGHT_ENGINE_WHEELS", "")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="MESHWRIGHT_ENGINE_WHEELS names no folder with the engines' wheels: their parsers are not read"
)

CASES: list[tuple[ModelSpec, dict, int, int]] = [
    (LLAMA3_70B, {"tp": 8, "batch": 64, "kv_dtype": "fp8"}, 1, 8),
    (LLAMA3_70B, {"tp": 8, "weight_dtype": "fp8"}, 1, 8),
    (LLAMA3_405B, {"tp": 8, "pp": 4, "layers_per_stage": (30, 32, 32, 32)}, 4, 8),
    (QWEN25_32B_AWQ, {"tp": 2, "dp": 2, "weight_dtype": "int4"}, 1, 4),
    (DEEPSEEK_V3, {"tp": 16, "weight_dtype": "fp8"}, 2, 8),
    (DEEPSEEK_V3, {"tp": 8, "dcp": 4, "weight_dtype": "fp8"}, 1, 8),
    (DEEPSEEK_V3, {"tp": 4, "cp": 2, "ep": 8, "weight_dtype": "fp8"}, 1, 8),
    (DEEPSEEK_V3, {"tp": 1, "attn_dp": 16, "ep": 16, "weight_dtype": "fp8", "batch": 256}, 2, 8),
    (DEEPSEEK_V3, {"tp": 4, "attn_dp": 4, "ep": 16, "weight_dtype": "fp8", "moe_comm": "allgather"}, 2, 8),
    (QWEN3_30B_FP8, {"tp": 4, "ep": 4, "weight_dtype": "fp8"}, 1, 8),
    (QWEN3_30B_FP8, {"tp": 1, "attn_dp": 4, "ep": 4, "dp": 2, "weight_dtype": "fp8", "batch": 1200}, 1, 8),
    (DEEPSEEK_V3, {"tp": 1, "attn_dp": 8, "ep": 8, "redundant_experts": 8, "weight_dtype": "fp8"}, 1, 8),
    (GPT_OSS_120B, {"tp": 2, "weight_dtype": "mxfp4"}, 1, 8),
    (GPT2_XL, {"tp": 1}, 1, 1),
]
IDS = [f"{m.name}-{Strategy(**d).label()}" for m, d, _, _ in CASES]


@dataclass
class Spec:
    """What a flag takes: a type by name ("int", "bool", …; "" unknown), and its choices where they are literals."""

    kind: str = ""
    choices: frozenset[str] = field(default_factory=frozenset)

    def takes(self, value: str | None) -> bool:
        if self.kind == "bool":
            return value is None
        if value is None:
            return False
        if self.choices and value not in self.choices:
            return False
        parse = {"int": int, "float": float}.get(self.kind, str)
        try:
            parse(value)
        except ValueError:
            return False
        return True


def wheel(engine: str, version: str) -> zipfile.ZipFile:
    found = sorted(Path(FOLDER).glob(f"{engine}-{version}-*.whl"))
    if not found:
        pytest.skip(f"no wheel of {engine} {version} in {FOLDER}")
    return zipfile.ZipFile(found[0])


def trees(archive: zipfile.ZipFile, pattern: str) -> Iterator[ast.Module]:
    for name in archive.namelist():
        if re.fullmatch(pattern, name):
            yield ast.parse(archive.read(name).decode("utf-8"))


def annotated(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.annotation


def spec_of(annotation: ast.expr) -> Spec:
    """int | None → int; Literal["a", "b"] → choices; bool → a switch."""
    text = ast.unparse(annotation)
    choices = frozenset(
        str(n.value)
        for sub in ast.walk(annotation)
        if isinstance(sub, ast.Subscript) and ast.unparse(sub.value).endswith("Literal")
        for n in ast.walk(sub.slice)
        if isinstance(n, ast.Constant)
    )
    words = set(re.findall(r"\b(?:int|float|bool|str)\b", re.sub(r"'[^']*'|\"[^\"]*\"", "", text)))
    return Spec(words.pop() if len(words) == 1 and not choices else "", choices)


def strings(nodes: list[ast.expr]) -> list[str]:
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def add_argument_calls(tree: ast.AST) -> Iterator[tuple[list[str], ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            names = [s for s in strings(list(node.args)) if s.startswith("-")]
            if names:
                yield names, node


def spec_of_call(call: ast.Call, fields: dict[str, Spec]) -> Spec:
    """The keyword arguments of add_argument, or the field of a config that they are derived from."""
    given = {k.arg: k.value for k in call.keywords if k.arg}
    for k in call.keywords:
        if k.arg is None and isinstance(k.value, ast.Subscript) and isinstance(k.value.slice, ast.Constant):
            return fields.get(str(k.value.slice.value), Spec())
    if "store_" in ast.unparse(given.get("action", ast.Constant(""))):
        return Spec("bool")
    kind = ast.unparse(given["type"]) if "type" in given else ""
    choices = given.get("choices")
    listed = frozenset(strings(choices.elts)) if isinstance(choices, ast.List | ast.Tuple) else frozenset()
    return Spec(kind if kind in ("int", "float", "str") else "", listed)


@cache
def vllm_flags() -> dict[str, Spec]:
    archive = wheel("vllm", latest("vllm"))
    fields = {n: spec_of(a) for tree in trees(archive, r"vllm/config/\w+\.py") for n, a in annotated(tree)}
    out: dict[str, Spec] = {}
    for tree in trees(archive, r"vllm/(engine/arg_utils|entrypoints/.*cli_args|entrypoints/cli/serve)\.py"):
        out |= {f"--{n.replace('_', '-')}": spec_of(a) for n, a in annotated(tree) if n in ("host", "port", "headless")}
        for names, call in add_argument_calls(tree):
            out |= dict.fromkeys(names, spec_of_call(call, fields))
    return out


@cache
def vllm_bench_flags() -> dict[str, Spec]:
    found: dict[str, Spec] = {}
    for tree in trees(wheel("vllm", latest("vllm")), r"vllm/benchmarks/(serve|datasets/\w+)\.py"):
        for names, call in add_argument_calls(tree):
            found |= dict.fromkeys(names, spec_of_call(call, {}))
    return found


@cache
def sglang_flags() -> dict[str, Spec]:
    out: dict[str, Spec] = {}
    for tree in trees(wheel("sglang", latest("sglang")), r"sglang/srt/arg_groups/fields/\w+\.py"):
        for name, annotation in annotated(tree):
            if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "A"):
                continue
            parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
            spec = spec_of(parts[0])
            out[f"--{name.replace('_', '-')}"] = spec
            for n in ast.walk(annotation):
                if isinstance(n, ast.keyword) and n.arg == "aliases" and isinstance(n.value, ast.List):
                    out |= dict.fromkeys(strings(n.value.elts), spec)
    return out


@cache
def sglang_bench_flags() -> dict[str, Spec]:
    found: dict[str, Spec] = {}
    for tree in trees(wheel("sglang", latest("sglang")), r"sglang/benchmark/(serving|datasets/\w+)\.py"):
        for names, call in add_argument_calls(tree):
            found |= dict.fromkeys(names, spec_of_call(call, {}))
    return found


@cache
def torchtitan_flags() -> dict[str, Spec]:
    out: dict[str, Spec] = {"--module": Spec("str"), "--config": Spec("str")}
    groups = {"TrainingConfig": "training", "ParallelismConfig": "parallelism"}
    for tree in trees(wheel("torchtitan", latest("torchtitan")), r"torchtitan/config/configs\.py"):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name in groups:
                for name, annotation in annotated(node):
                    spec = spec_of(annotation)
                    out[f"--{groups[node.name]}.{name}"] = spec
                    out[f"--{groups[node.name]}.no-{name}"] = Spec("bool")
    return out


def given(argv: list[str]) -> Iterator[tuple[str, str | None]]:
    """(flag, value) pairs as argparse would see them."""
    for i, word in enumerate(argv):
        if word.startswith("--"):
            name, has, value = word.partition("=")
            following = argv[i + 1] if i + 1 < len(argv) and not argv[i + 1].startswith("--") else None
            yield name, value if has else following


def wrong(argv: list[str], known: dict[str, Spec]) -> list[str]:
    assert len(known) > 20, "the parser was not found where it used to be"
    return [f"{n} {v}" for n, v in given(argv) if n not in known or not known[n].takes(v)]


def after(argv: list[str], word: str) -> list[str]:
    return argv[argv.index(word) + 1 :]


@pytest.mark.parametrize(("model", "degrees", "nodes", "per_node"), CASES, ids=IDS)
@pytest.mark.parametrize(
    ("engine", "serve", "bench"),
    [("vllm", vllm_flags, vllm_bench_flags), ("sglang", sglang_flags, sglang_bench_flags)],
)
def test_the_engines_own_parser_takes_every_flag(
    engine, serve, bench, model, degrees, nodes, per_node, tmp_path
):  # fmt: skip
    files = launch(engine, model, degrees, nodes, per_node, request_rate=2.5)
    for rank in ("0", "1"):
        for call in run(files["serve.sh"], tmp_path, NODE_RANK=rank, MASTER_ADDR="h"):
            assert wrong(call["argv"], serve()) == []
    (call,) = run(files["bench.sh"], tmp_path)
    assert wrong(call["argv"], bench()) == []


@pytest.mark.parametrize(("engine", "serve"), [("vllm", vllm_flags), ("sglang", sglang_flags)])
def test_the_engines_own_parser_takes_the_flags_of_disaggregated_pools(engine, serve, tmp_path):
    pools = (Strategy(tp=8, weight_dtype="fp8"), Strategy(tp=1, attn_dp=8, ep=8, weight_dtype="fp8"))
    files, findings = export_pd(engine, DEEPSEEK_V3, *pools, isl=100, osl=10, memory_total_bytes=80e9)
    assert files, [f.message for f in findings]
    for file in files[:2]:
        (call,) = run(file, tmp_path, NODE_IP="h", IB_DEVICE="mlx5_0")
        assert wrong(call["argv"], serve()) == []


def test_vllms_parser_takes_the_flags_that_npus_get(tmp_path):
    degrees = {"tp": 4, "attn_dp": 4, "ep": 16, "weight_dtype": "int8"}
    script = launch("vllm-ascend", DEEPSEEK_V3, degrees, 1, 16, device=load_device("910C").device)["serve.sh"]
    (call,) = run(script, tmp_path)
    assert wrong(call["argv"], vllm_flags()) == []


@pytest.mark.parametrize(
    "degrees", [{"tp": 8, "sp": True}, {"tp": 4, "pp": 4, "dp": 2}, {"tp": 2, "cp": 2, "cp_kind": "ring"}]
)
def test_torchtitans_configuration_has_every_field(degrees, tmp_path):
    (file, _), _ = export_training("torchtitan", LLAMA3_70B, Strategy(**degrees), seq_len=4096, global_batch_size=64)
    (call,) = run(file, tmp_path, NODE_RANK="0", MASTER_ADDR="h", MODULE="llama3", CONFIG="llama3_8b")
    assert wrong(after(call["argv"], "torchtitan.train"), torchtitan_flags()) == []
    assert wrong(["--training.seq_len", "long"], torchtitan_flags()) == ["--training.seq_len long"]


def test_a_flag_that_no_release_has_is_noticed():
    assert wrong(["--tensor-parallel-size", "8", "--no-such-flag"], vllm_flags()) == ["--no-such-flag None"]
    assert wrong(["--tensor-parallel-size", "eight"], vllm_flags()) == ["--tensor-parallel-size eight"]
    assert wrong(["--enable-expert-parallel", "1"], vllm_flags()) == ["--enable-expert-parallel 1"]
    assert wrong(["--disaggregation-mode", "both"], sglang_flags()) == ["--disaggregation-mode both"]
