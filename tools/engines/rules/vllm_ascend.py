"""vllm-ascend (main, 182b75ea): vLLM's rules without what needs CUDA, and the NPU's own.

Ranks are NPUs; a 910C package is two of them. Weights are quantised offline (ModelSlim) and loaded with
`--quantization ascend`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tools.engines.rules import common, vllm
from tools.engines.rules.base import Budget, Degrees, Rule, Verdict
from tools.spec.model import ModelSpec

VERSION = "main-182b75ea"
MLA_HEADS_PER_RANK = (32, 64, 128)
"""Query heads per KV head that the MLA kernel takes in graph mode (docs/source/faqs.md:158, of May 2025)."""
WEIGHT_DTYPES = ("bf16", "fp16", "int8", "int4")
KV_DTYPES = {"bf16": "auto", "fp16": "auto"}


def mla_graph_heads(m: ModelSpec, d: Degrees) -> Verdict:
    """MLA's one latent serves all query heads of a rank; the graph kernel exists for three counts of them."""
    h = m.attention.num_heads
    per_rank = h // d.tp
    bad = (h % d.tp == 0) & ~np.isin(per_rank, MLA_HEADS_PER_RANK) & (m.attention.mla is not None)
    ok = [h // n for n in MLA_HEADS_PER_RANK[::-1] if h % n == 0]
    return Verdict(
        "mla-heads", bad, "attention.q_b_proj",
        lambda: (
            f"heads({h}) / tp({d.tp}) = {per_rank} per KV head; the MLA kernel takes "
            f"{', '.join(map(str, MLA_HEADS_PER_RANK))} in graph mode"
        ),
        f"tp {', '.join(map(str, ok))} with attention DP for the rest" if ok else "--enforce-eager (slow), no tp fits",
        "docs/source/faqs.md:158, recheck per release", cause="shape", values={"heads": h, "tp": d.tp},
    )  # fmt: skip


def quantised_offline(m: ModelSpec, d: Degrees) -> Verdict:
    return Verdict(
        "checkpoint-dtype", d.weight_dtype in ("int8", "int4") and m.weight_dtype != d.weight_dtype, "weights",
        lambda: f"the plan holds {d.weight_dtype} weights, the released checkpoint is {m.weight_dtype}",
        f"point the model path at a {'W8A8' if d.weight_dtype == 'int8' else 'W4A8'} checkpoint made by ModelSlim",
        "quantization/quant_config.py", severity="warning",
    )  # fmt: skip


def prefer_attention_dp(m: ModelSpec, d: Degrees) -> Verdict:
    return Verdict(
        "attn-dp", (d.attn_dp == 1) & (d.tp > 4) & (m.attention.mla is not None) & (m.moe is not None), "kv_cache",
        lambda: f"tp({d.tp}) holds {d.tp} copies of MLA's cache; the documentation prefers dp 4 tp 4 with EP",
        "attention DP with tp of at most 4 and expert parallelism", "tutorials, DeepSeek on one A3 node",
        severity="warning", cause="kv",
    )  # fmt: skip


RULES: tuple[Rule, ...] = (
    *vllm.PORTABLE_RULES,
    mla_graph_heads,
    common.dtype_known("weight_dtype", WEIGHT_DTYPES, "quantization/quant_config.py"),
    common.dtype_known("kv_dtype", tuple(KV_DTYPES), "platform.py"),
    quantised_offline,
    prefer_attention_dp,
)


def kv_budget(d: Degrees, **kwargs: Any) -> Budget:
    """vLLM's accounting, whose figures for graphs and communicators stand in for the NPU's."""
    return tuple(
        a._replace(source=f"{a.source}, stands in for the NPU") if a.name in ("non_torch", "cuda_graphs") else a
        for a in vllm.kv_budget(d, **kwargs)
    )


VLLM_ASCEND = dataclasses.replace(
    vllm.VLLM_0_33_0, engine="vllm-ascend", version=VERSION, rules=RULES, kv_budget=kv_budget
)
