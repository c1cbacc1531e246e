"""torchtitan 0.3.0 (training): `world = dp_replicate * dp_shard * cp * tp * pp`, EP inside `dp_shard * cp * tp`.

All data parallelism of a strategy is `dp_shard` (FSDP), whose groups experts may span. Source places are files of the
0.3.0 wheel.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import numpy as np

from tools.engines.rules import common, megatron
from tools.engines.rules.base import (
    Degrees,
    EngineRules,
    Flag,
    Ints,
    Rule,
    Verdict,
    dense_linears,
    divisors,
    shared_linears,
)
from tools.spec.model import ModelSpec
from tools.spec.strategy import Strategy

VERSION = "0.3.0"
WEIGHT_DTYPES = ("fp32", "bf16", "fp8")
END_WEIGHT = 1
"""pipeline_parallel_first/last_stage_less_layers: embedding and head count as one layer each."""


def aligned(d: Degrees) -> Sequence[Ints]:
    return [d.tp]


def experts_span_shards(m: ModelSpec, d: Degrees) -> Verdict:
    """One degree for experts: EP over dp_shard * cp * tp; there is no expert TP beside it."""
    bad = (d.ep > 1) & (np.asarray(d.etp) > 1) & (m.moe is not None)
    return Verdict(
        "etp", bad, "moe.experts",
        lambda: f"ep({d.ep}) with etp({d.etp}): experts are spread or sliced, not both",
        lambda: f"ep {d.ep * d.etp} etp 1", "distributed/parallel_dims.py",
    )  # fmt: skip


def kv_heads_divide(m: ModelSpec, d: Degrees) -> Verdict:
    kv = gcd(*m.cache_heads)
    return Verdict(
        "tp-kv-heads", (kv % d.tp != 0) & (m.attention.mla is None), "attention.k_proj",
        lambda: f"kv_heads({kv}) % tp({d.tp}) = {kv % d.tp}, must be 0: KV heads are never replicated",
        f"tp among the divisors of {kv}: {divisors(kv)}", "models/*/sharding.py", cause="shape", axis="tp",
        values={"kv_heads": kv, "tp": d.tp},
    )  # fmt: skip


def stages_are_its_own(m: ModelSpec, d: Degrees) -> Verdict:
    """Stages follow from the number of layers; only the weights of embedding and head can be moved by flags."""
    pp, n = int(np.max(d.pp)), m.num_hidden_layers
    own = layers_per_stage(n, pp) if d.layers_per_stage is not None and pp <= n else None
    return Verdict(
        "pp-split", d.layers_per_stage is not None and own != d.layers_per_stage, "layers",
        lambda: f"layers per stage {list(d.layers_per_stage or ())}, torchtitan cuts {list(own or ())}",
        "its own cut, or module_fqns_per_model_part in the training script", "distributed/pipeline_parallel.py:408",
    )  # fmt: skip


def ends_keep_a_layer(m: ModelSpec, d: Degrees) -> Verdict:
    """Embedding and head count as a layer each, so that an end stage may be left with no layer of its own."""
    n = m.num_hidden_layers
    return Verdict(
        "pp-ends", (d.pp > 1) & ((n + 2 * END_WEIGHT) // d.pp < 2), "layers",
        lambda: f"(layers({n}) + 2) // pp({d.pp}) = {(n + 2 * END_WEIGHT) // d.pp}: an end stage would hold no layer",
        f"pp of at most {(n + 2 * END_WEIGHT) // 2}", "distributed/pipeline_parallel.py:408", cause="shape",
    )  # fmt: skip


RULES: tuple[Rule, ...] = (
    common.group_splits_into_experts(),
    common.heads_divide("models/*/sharding.py"),
    common.no_further_slices(),
    common.context_parallel_kind(("ring",), "context parallelism is ring attention", "config/configs.py"),
    kv_heads_divide,
    common.widths_divide("tp-ffn", lambda m, d: dense_linears(m, d.tp), "tp", "models/*/sharding.py"),
    common.widths_divide("tp-shared-expert", lambda m, d: shared_linears(m, d.tp), "tp", "models/*/sharding.py"),
    common.expert_parallel_needs_experts("distributed/parallel_dims.py"),
    experts_span_shards,
    common.routed_width_divides(lambda d: d.etp, "etp", "models/*/sharding.py"),
    common.experts_cover_ranks("distributed/expert_parallel.py"),
    common.experts_divide("distributed/expert_parallel.py"),
    common.dtype_known("weight_dtype", WEIGHT_DTYPES, "config/configs.py"),
    common.stages_have_layers("distributed/pipeline_parallel.py:395"),
    ends_keep_a_layer,
    stages_are_its_own,
    common.sequence_parallelism_needs_tp(
        "sequence parallelism", "sp off", "config/configs.py enable_sequence_parallel"
    ),
    megatron.no_decode,
    common.fits_nodes(aligned, "distributed/parallel_dims.py:190"),
    # warnings
    common.tp_inside_node(aligned, "NCCL over the network"),
)


def layers_per_stage(num_layers: int, pp: int) -> tuple[int, ...]:
    """Even over layers + embedding + head, the remainder to the first stages: 32 on 4 is 8, 9, 8, 7."""
    if pp == 1:
        return (num_layers,)
    base, extra = divmod(num_layers + 2 * END_WEIGHT, pp)
    counts = [base + (i < extra) for i in range(pp)]
    counts[0] -= END_WEIGHT
    counts[-1] -= END_WEIGHT
    return tuple(counts)


def parallel_flags(m: ModelSpec, s: Strategy) -> tuple[Flag, ...]:
    """Degrees as overrides of a torchtitan configuration; dp_shard is all data parallelism."""
    degrees = {
        "data_parallel_replicate_degree": 1, "data_parallel_shard_degree": s.dp * (s.attn_dp or 1),
        "tensor_parallel_degree": s.tp, "pipeline_parallel_degree": s.pp, "context_parallel_degree": s.cp,
    }  # fmt: skip
    if m.moe is not None:
        degrees["expert_parallel_degree"] = s.ep
    flags = [Flag(f"--parallelism.{name}", str(value)) for name, value in degrees.items()]
    if s.tp > 1 and not s.sp:
        flags.append(Flag("--parallelism.no-enable_sequence_parallel"))
    return tuple(flags)


def world(s: Strategy) -> str:
    return (
        f"world = dp_replicate(1) * dp_shard({s.dp * (s.attn_dp or 1)}) * cp({s.cp}) * tp({s.tp}) * pp({s.pp}) "
        f"= {s.num_devices}"
    )


TORCHTITAN_0_3_0 = EngineRules(
    engine="torchtitan", version=VERSION, rules=RULES, layers_per_stage=layers_per_stage,
    kv_budget=megatron.kv_budget, memory_fraction=megatron.memory_fraction, parallel_flags=parallel_flags,
    aligned=aligned, world=world, training=True,
)  # fmt: skip
