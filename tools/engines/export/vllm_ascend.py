"""vllm-ascend: vLLM's command on NPUs, with the environment that HCCL reads."""

from __future__ import annotations

import dataclasses

from tools.engines.export import vllm
from tools.engines.export.base import FLOATS, Request, flag_lines, hccl_lines
from tools.engines.rules import Flag
from tools.engines.rules.vllm_ascend import KV_DTYPES


def dtype_flags(r: Request) -> list[Flag]:
    """Quantised checkpoints of ModelSlim are named, since nothing in them says so to vLLM's core."""
    s = r.strategy
    flags = [Flag("--kv-cache-dtype", KV_DTYPES[s.kv_dtype])]
    if s.weight_dtype in ("int8", "int4"):
        flags.insert(0, Flag("--quantization", "ascend"))
    elif s.weight_dtype in FLOATS:
        flags.insert(0, Flag("--dtype", FLOATS[s.weight_dtype]))
    return flags


def command(r: Request) -> list[str]:
    return [*vllm.base_command(r), *flag_lines(dtype_flags(r))]


def environment(r: Request) -> list[str]:
    """Collectives on the vector cores."""
    rows = [
        "export HCCL_OP_EXPANSION_MODE=${HCCL_OP_EXPANSION_MODE:-AIV}",
        "export PYTORCH_NPU_ALLOC_CONF=${PYTORCH_NPU_ALLOC_CONF:-expandable_segments:True}",
    ]
    return [*rows, *hccl_lines(r)]


LAUNCHER = dataclasses.replace(
    vllm.LAUNCHER, engine="vllm-ascend", command=command, environment=environment, visible="ASCEND_RT_VISIBLE_DEVICES"
)
