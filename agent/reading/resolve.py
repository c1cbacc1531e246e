"""`resolve`: Conditions → Deployment, every gap filled by a named assumption, impossible input refused in one line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, get_args

from agent.reading.shape import SHAPE_KEYS
from knowledge import catalog
from knowledge.hf_config import model_from_config
from tools.engines.rules.devices import engine_on
from tools.spec.base import ToolError
from tools.spec.conditions import Conditions
from tools.spec.deployment import Assumption, Deployment, Objective
from tools.spec.hardware import Cluster, Device
from tools.spec.model import MLP, DType, ModelSpec, MoE
from tools.spec.workload import EngineChoice, Metric, Requirement, Requirements, Stat, Workload
from tools.units import format_quantity

NODE_SIZE = 8
TOP_K = 2
VOCAB_SIZE = 32000
OSL = 512
ISL = 1024
# memory bandwidth over scale-up link (one direction) and over the NIC: medians over the catalogue (8.2 and 80)
MEMORY_TO_LINK, MEMORY_TO_NETWORK = 8.0, 80.0


@dataclass(slots=True)
class _Filled:
    """Looks facts up and remembers what had to be assumed."""

    conditions: Conditions
    assumptions: list[Assumption] = field(default_factory=list)

    def get(self, path: str) -> Any:
        return self.conditions.get(path)

    def assume(self, path: str, value: Any, why: str, effect: str = "", shown: str = "") -> Any:
        self.assumptions.append(Assumption(path=path, value=shown or str(value), why=why, effect=effect))
        return value


def resolve(conditions: Conditions) -> Deployment:
    """One value per question. Stated shape > named model > declared parameter count.

    Raises ToolError for impossible values (0 devices, a negative SLO) and for a model or device neither known nor
    described.
    """
    filled = _Filled(conditions)
    _refuse_impossible(conditions)
    model = _model(filled)
    cluster = _cluster(filled, model)
    workload = _workload(filled, model)
    weights, kv = _dtypes(filled, model, cluster)
    objective = conditions.get("objective")
    if objective is not None and objective not in get_args(Objective):
        raise ToolError(f"objective {objective!r} is not known; choose among {', '.join(get_args(Objective))}")
    return Deployment(
        model=model,
        cluster=cluster,
        workload=workload,
        requirements=_requirements(conditions),
        engine=_engine(conditions, cluster.device),
        objective=objective,
        weight_dtypes=weights,
        kv_dtypes=kv,
        assumptions=tuple(filled.assumptions),
        baseline=conditions.get("baseline"),
        alternatives=tuple(conditions.get("workload.asked_strategies") or ()),
        other_clusters=_other_clusters(conditions, cluster),
        further_clusters=_further_clusters(conditions, cluster),
        prices=_prices(conditions, cluster),
        currency=conditions.get("hardware.price_currency") or "USD",
    )


def _other_clusters(conditions: Conditions, planned: Cluster) -> tuple[Cluster, ...]:
    """The devices to choose from, besides the planned one, each from its datasheet and in its stated number."""
    out = []
    for row in conditions.get("hardware.candidates") or ():
        device = catalog.device_by_id(row["device"])
        if device.id != planned.device.id:
            out.append(Cluster.of(device, row.get("count", planned.num_devices), planned.devices_per_node))
    return tuple(out)


def _further_clusters(conditions: Conditions, planned: Cluster) -> tuple[Cluster, ...]:
    """The kinds of devices that are counted beside the planned one."""
    pools = [p for p in conditions.get("hardware.pools") or () if p["device"] != planned.device.id]
    network = conditions.get("hardware.inter_node_bandwidth")
    found = (Cluster.of(catalog.device_by_id(p["device"]), p["count"], _per_node(conditions, p)) for p in pools)
    return tuple(c.model_copy(update={"inter_node_bandwidth": float(network)}) if network else c for c in found)


def _per_node(conditions: Conditions, pool: dict[str, Any]) -> int:
    """Devices in a node of one kind: stated for it, else for all nodes where it can be of this kind's, else a usual node."""
    usual = min(pool["count"], NODE_SIZE)
    stated = conditions.get("hardware.devices_per_node") or usual
    return int(pool.get("devices_per_node") or (stated if 1 < stated <= pool["count"] else usual))


def _prices(conditions: Conditions, cluster: Cluster) -> dict[str, float]:
    """Price of a device for an hour by device id; a price that names no device is that of the planned one."""
    path = "hardware.price_per_device_hour"
    out = {f.path.removeprefix(f"{path}."): float(f.value) for f in conditions.under(f"{path}.") if f.value}
    plain = conditions.get(path)
    if plain:
        out.setdefault(cluster.device.id, float(plain))
    if len(out) == 1 and not conditions.get("hardware.candidates"):
        out = {cluster.device.id: next(iter(out.values()))}
    return out


_ZERO_OK = (
    "prefix_hit_rate",
    "draft_acceptance",
    "memory_reserve",
    "balance_epsilon",
    "n_shared_experts",
    "first_k_dense_replace",
)


def _refuse_impossible(conditions: Conditions) -> None:
    for fact in conditions.facts:
        value, name = fact.value, fact.path.split(".")[-1]
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not fact.path.startswith(("hardware.", "workload.", "requirements."))
        ):
            continue
        place = f" ({fact.evidence.file} line {fact.evidence.line}: {fact.stated_as!r})" if fact.evidence else ""
        if value < 0 or (value == 0 and name not in _ZERO_OK):
            raise ToolError(f"{fact.path} is {value:g}{place}; it must be greater than 0")
        if (
            name in ("num_nodes", "devices_per_node", "num_devices", "batch_size", "concurrency")
            and not float(value).is_integer()
        ):
            raise ToolError(f"{fact.path} is {value:g}{place}; it must be a whole number")
        if name in ("mfu", "mbu", "prefix_hit_rate", "memory_reserve", "utilisation_target") and value > 1:
            raise ToolError(f"{fact.path} is {value:g}{place}; it is a fraction and must be at most 1")


# ---------------------------------------------------------------- model


def _model(filled: _Filled) -> ModelSpec:
    name = filled.get("model.name")
    declared = filled.get("model.declared_parameters")
    base, unknown = None, None
    if isinstance(name, str):
        try:
            base = catalog.load_model(name).model
        except ToolError as error:
            unknown = error
    if base is not None:
        base = _with_stated_shape(filled, base)
        own = base.declared_parameters
        return base.model_copy(update={"declared_parameters": declared or own})
    if filled.get("model.num_hidden_layers") is None or filled.get("model.hidden_size") is None:
        if unknown is not None:
            raise unknown
        raise ToolError(
            "no model named and no shape stated; give model.name, or at least num_hidden_layers, hidden_size, "
            "heads and FFN width"
        )
    model = model_from_config(_config(filled), name if isinstance(name, str) else "stated-model")
    return model.model_copy(update={"declared_parameters": declared or model.declared_parameters})


def _config(filled: _Filled) -> dict[str, Any]:
    """A Hugging Face style config from `model.*` facts, the gaps assumed."""
    config: dict[str, Any] = {}
    skip = ("name", "declared_", "weight_dtype", "kv_dtype", "activation_dtype", "draft_name")
    for fact in filled.conditions.under("model."):
        keys = fact.path.removeprefix("model.").split(".")
        if fact.value is None or keys[0].startswith(skip):
            continue
        place = config
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = fact.value
    if (config.get("num_experts") or 0) <= 1:
        for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size"):
            config.pop(key, None)
    hidden = config["hidden_size"]
    if "num_attention_heads" not in config:
        size = config.get("head_dim") or 128
        config["num_attention_heads"] = filled.assume(
            "model.num_attention_heads",
            max(1, hidden // size),
            f"hidden_size {hidden} / {size} per head",
            "limits TP and the KV cache",
        )
    if "vocab_size" not in config:
        config["vocab_size"] = filled.assume(
            "model.vocab_size",
            VOCAB_SIZE,
            "not stated",
            "embedding and LM head: V·h parameters each, and the sampling traffic",
        )
    if "num_key_value_heads" not in config and "model_type" not in config:
        config["num_key_value_heads"] = filled.assume(
            "model.num_key_value_heads",
            config["num_attention_heads"],
            "no KV head count stated: multi-head attention",
            "KV cache grows with it",
        )
    _fill_ffn(filled, config, hidden)
    return config


def _fill_ffn(filled: _Filled, config: dict[str, Any], hidden: int) -> None:
    if config.get("num_experts"):
        if "num_experts_per_tok" not in config:
            top_k = min(TOP_K, config["num_experts"])
            config["num_experts_per_tok"] = filled.assume(
                "model.num_experts_per_tok",
                top_k,
                "no top-k stated; 2 is the usual choice",
                "expert compute and all-to-all traffic are proportional to it",
            )
        if "moe_intermediate_size" not in config:
            width = config.get("intermediate_size") or 4 * hidden
            config["moe_intermediate_size"] = filled.assume(
                "model.moe_intermediate_size",
                width,
                "the stated FFN width, else 4·h",
                "expert weights are proportional to it",
            )
    elif "intermediate_size" not in config:
        config["intermediate_size"] = filled.assume(
            "model.intermediate_size", 4 * hidden, "no FFN width stated: 4·h", "FFN weights are proportional to it"
        )
    if "model_type" not in config and "hidden_act" not in config:
        filled.assume(
            "model.gated_mlp", "gated (SwiGLU)", "the activation is not stated", "a plain FFN has 2/3 of these weights"
        )


def _with_stated_shape(filled: _Filled, base: ModelSpec) -> ModelSpec:
    """The named model with every stated dimension put in its place."""
    stated = {k: filled.get(f"model.{k}") for k in SHAPE_KEYS if isinstance(filled.get(f"model.{k}"), int)}
    update: dict[str, Any] = {k: stated[k] for k in ("hidden_size", "vocab_size") if k in stated}
    if "num_hidden_layers" in stated:
        update |= _layers(base, stated["num_hidden_layers"])
    attention = {
        new: stated[old]
        for old, new in (
            ("num_attention_heads", "num_heads"),
            ("num_key_value_heads", "num_kv_heads"),
            ("head_dim", "head_dim"),
        )
        if old in stated
    }
    if attention and base.attention.mla is None:
        update["attention"] = base.attention.model_copy(update=attention)
    if "intermediate_size" in stated and base.mlp is not None:
        update["mlp"] = base.mlp.model_copy(update={"intermediate_size": stated["intermediate_size"]})
    experts = {
        new: stated[old]
        for old, new in (
            ("num_experts", "num_experts"),
            ("num_experts_per_tok", "top_k"),
            ("moe_intermediate_size", "intermediate_size"),
        )
        if old in stated
    }
    if base.moe is not None and stated.get("num_experts", 2) > 1:
        update["moe"] = base.moe.model_copy(update=experts)
    elif base.moe is not None:
        update |= {
            "moe": None,
            "moe_layers": None,
            "mlp": base.mlp or MLP(intermediate_size=base.moe.intermediate_size),
        }
    elif stated.get("num_experts", 1) > 1:
        update["moe"] = MoE(
            num_experts=stated["num_experts"],
            top_k=stated.get("num_experts_per_tok", TOP_K),
            intermediate_size=stated.get(
                "moe_intermediate_size", base.mlp.intermediate_size if base.mlp else 4 * base.hidden_size
            ),
        )
    model = ModelSpec.model_validate(base.model_copy(update=update).model_dump())
    heads, kv = model.attention.num_heads, model.attention.num_kv_heads
    if kv and heads % kv:
        raise ToolError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv}; correct one of the two"
        )
    return model


def _layers(base: ModelSpec, layers: int) -> dict[str, Any]:
    """Per-layer patterns cut, or continued with their last entry."""

    def fit(flags: tuple[bool, ...] | None) -> tuple[bool, ...] | None:
        return None if flags is None else (flags + (flags[-1],) * layers)[:layers]

    position = base.position.model_copy(update={"rope_layers": fit(base.position.rope_layers)})
    return {
        "num_hidden_layers": layers,
        "moe_layers": fit(base.moe_layers),
        "sliding_layers": fit(base.sliding_layers),
        "position": position,
    }


# ---------------------------------------------------------------- cluster


def _cluster(filled: _Filled, model: ModelSpec) -> Cluster:
    pool = _largest_pool(filled)
    device, recognised = (catalog.device_by_id(pool["device"]), True) if pool else _device(filled)
    stated = [
        k
        for k in ("memory_bytes", "memory_bandwidth", "mfu", "mbu", "intra_node_bandwidth", "inter_node_bandwidth")
        if filled.get(f"hardware.{k}") is not None
    ]
    num_devices, per_node = (pool["count"], _per_node(filled.conditions, pool)) if pool else _devices(filled, device)
    peaks = {
        f.path.rsplit(".", 1)[1]: float(f.value) for f in filled.conditions.under("hardware.peak_flops.") if f.value
    }
    if peaks:
        stated.append("peak_flops")
    memory = pool.get("memory_bytes") if pool else filled.get("hardware.memory_bytes")
    usable = (
        device.memory_usable_bytes
        if recognised and (memory is None or abs(memory / device.memory_bytes - 1) < 0.08)
        else float(memory or device.memory_usable_bytes)
    )
    pcie_only = filled.get("hardware.intra_node_link") == "PCIe"
    intra = filled.get("hardware.intra_node_bandwidth") or (
        device.pcie_bandwidth if pcie_only else device.link_bandwidth
    )
    before = {a.path for a in filled.assumptions}
    return Cluster(
        device=device,
        num_devices=num_devices,
        devices_per_node=per_node,
        memory_bytes=usable,
        memory_bandwidth=float((None if pool else filled.get("hardware.memory_bandwidth")) or device.memory_bandwidth),
        peak_flops={**device.peak_flops, **peaks},
        mfu=filled.get("hardware.mfu"),
        mbu=filled.get("hardware.mbu"),
        intra_node_bandwidth=float(intra),
        inter_node_bandwidth=float(filled.get("hardware.inter_node_bandwidth") or device.network_bandwidth),
        link_domain=1 if pcie_only else device.link_domain,
        stated=tuple(stated),
        assumed=tuple(p.removeprefix("hardware.") for p in sorted(before) if p.startswith("hardware.")),
    )


def _largest_pool(filled: _Filled) -> dict[str, Any] | None:
    """Of several kinds of device the one with the most memory in all: baseline and what-ifs are of this one."""
    pools = filled.get("hardware.pools")
    if not pools:
        return None

    def total(pool: dict[str, Any]) -> float:
        device = catalog.device_by_id(pool["device"])
        return float(pool["count"] * (pool.get("memory_bytes") or device.memory_bytes))

    best = max(pools, key=lambda p: (total(p), p["count"]))
    others = ", ".join(f"{p['count']}× {p['device']}" for p in pools if p is not best)
    filled.assume(
        "hardware.pools",
        best["device"],
        f"several kinds of device: the main one is that with the most memory, {best['count']}× {best['device']} "
        f"({total(best) / 1e9:.0f} GB)",
        f"{others} are used too where that is better: alone, as replicas beside it, or as stages of one pipeline, all of which "
        "are searched; no tensor-parallel group mixes kinds, because the slower one would set its pace",
    )
    return best


def _device(filled: _Filled) -> tuple[Device, bool]:
    name = filled.get("hardware.device")
    memory = filled.get("hardware.memory_bytes")
    if isinstance(name, str):
        try:
            return catalog.load_device(name, memory).device, True
        except ToolError:
            if not _described(filled):
                raise
    if not _described(filled):
        lacking = [p for p in ("memory_bytes", "memory_bandwidth", "peak_flops") if not _has(filled, p)]
        raise ToolError(
            f"no device named and hardware.{', hardware.'.join(lacking)} not stated; "
            "name the device (for example 'H100 80GB') or give these numbers"
        )
    return _stated_device(filled, str(name or "stated device")), False


def _has(filled: _Filled, name: str) -> bool:
    if name == "peak_flops":
        return bool(filled.conditions.under("hardware.peak_flops."))
    return filled.get(f"hardware.{name}") is not None


def _described(filled: _Filled) -> bool:
    return all(_has(filled, p) for p in ("memory_bytes", "memory_bandwidth", "peak_flops"))


def _stated_device(filled: _Filled, name: str) -> Device:
    """A device known by its numbers only; its links are assumed in the proportion usual for data-centre parts."""
    bandwidth = float(filled.get("hardware.memory_bandwidth"))
    peaks = {
        f.path.rsplit(".", 1)[1]: float(f.value) for f in filled.conditions.under("hardware.peak_flops.") if f.value
    }
    for twin, other in (("bf16", "fp16"), ("fp16", "bf16")):
        if other in peaks:
            peaks.setdefault(twin, peaks[other])
    link, network = filled.get("hardware.intra_node_bandwidth"), filled.get("hardware.inter_node_bandwidth")
    if link is None:
        link = filled.assume(
            "hardware.intra_node_bandwidth",
            bandwidth / MEMORY_TO_LINK,
            "device not named and no link stated: memory bandwidth / 8, as usual for data-centre devices",
            "all-reduce time of TP scales with it",
            format_quantity(bandwidth / MEMORY_TO_LINK, "bytes/s"),
        )
    if network is None:
        network = filled.assume(
            "hardware.inter_node_bandwidth",
            bandwidth / MEMORY_TO_NETWORK,
            "device not named and no network stated: memory bandwidth / 80",
            "pipeline and expert traffic between nodes scales with it",
            format_quantity(bandwidth / MEMORY_TO_NETWORK, "bytes/s"),
        )
    memory = float(filled.get("hardware.memory_bytes"))
    return Device(
        id="stated",
        name=name,
        vendor="unknown",
        arch="unknown",
        memory_bytes=memory,
        memory_usable_bytes=memory,
        memory_bandwidth=bandwidth,
        peak_flops=peaks,
        link="stated",
        link_bandwidth=float(link),
        link_domain=NODE_SIZE,
        pcie_bandwidth=32e9,
        network_bandwidth=float(network),
        sources=("the conditions",),
        confidence="low",
        notes="numbers as stated in the conditions; links assumed where not stated",
    )


def _devices(filled: _Filled, device: Device) -> tuple[int | None, int]:
    total, per_node = filled.get("hardware.num_devices"), filled.get("hardware.devices_per_node")
    if total is None:
        total = filled.assume(
            "hardware.num_devices",
            "unbounded",
            "the number of devices is not stated",
            "the plan uses as few as meet the requirements",
        )
    if per_node is None:
        known = total if isinstance(total, int) and total <= NODE_SIZE else NODE_SIZE
        per_node = filled.assume(
            "hardware.devices_per_node", known, "node size not stated", "TP beyond a node crosses the network"
        )
    return (None if total == "unbounded" else int(total)), int(per_node)


# ---------------------------------------------------------------- workload, requirements, engine, dtypes


def _workload(filled: _Filled, model: ModelSpec) -> Workload:
    get = filled.get
    low, high, context = get("workload.seq_len_min"), get("workload.seq_len_max"), get("workload.max_context")
    isl, osl = get("workload.isl"), get("workload.osl")
    room = context or model.max_context
    if osl is None:
        bound = get("workload.osl_max")
        osl = bound or (min(OSL, max(1, room - (isl or 0))) if room else OSL)
        why = f"only a maximum of {bound} is stated; gates are judged at it" if bound else "output length not stated"
        filled.assume("workload.osl", osl, why, "decode share of the load, and KV cache per request")
    if isl is None:
        bound = get("workload.isl_max") or high
        isl = bound or ISL
        why = (
            f"only a range up to {bound} is stated; gates are judged at its maximum"
            if bound
            else "input length not stated"
        )
        filled.assume("workload.isl", isl, why, "TTFT and KV cache grow with it")
    if not any(get(f"workload.{k}") for k in ("batch_size", "concurrency", "request_rate")):
        filled.assume(
            "workload.concurrency",
            "what the requirements allow",
            "no concurrency, batch or rate stated",
            "the search finds the largest load that meets the limits",
        )
    concurrency, peak = get("workload.concurrency"), get("workload.peak_factor") or 1.0
    if concurrency and peak > 1.0 and not get("workload.request_rate"):
        users = math.ceil(concurrency * peak)
        filled.assume(
            "workload.concurrency", users, f"the stated {concurrency} taken as the mean, times peak factor {peak:g}",
            "capacity is planned for the peak",
        )  # fmt: skip
        concurrency = users
    return Workload(
        isl=int(isl),
        osl=int(osl),
        seq_len_min=low,
        seq_len_max=high,
        max_context=context,
        batch_size=get("workload.batch_size"),
        concurrency=concurrency,
        request_rate=get("workload.request_rate"),
        prefix_hit_rate=get("workload.prefix_hit_rate") or 0.0,
        draft_acceptance=get("workload.draft_acceptance"),
        peak_factor=peak,
        spare_replicas=get("workload.spare_replicas") or 0,
        spare_nodes=get("workload.spare_nodes") or 0,
        mode=get("workload.mode") or "inference",
    )


def _requirements(conditions: Conditions) -> Requirements:
    gates = []
    for fact in conditions.under("requirements."):
        parts = fact.path.split(".")
        if len(parts) != 3 or fact.value is None or parts[1] not in get_args(Metric) or parts[2] not in get_args(Stat):
            continue
        metric, stat = parts[1], parts[2]
        counts = conditions.get(f"requirements.{metric}.counts")
        gates.append(
            Requirement.model_validate({"metric": metric, "stat": stat, "limit": float(fact.value), "counts": counts})
        )
    epsilon = conditions.get("requirements.balance_epsilon")
    return Requirements(
        gates=tuple(gates),
        memory_reserve=conditions.get("requirements.memory_reserve"),
        balance_epsilon=0.05 if epsilon is None else epsilon,
        balance_stated=epsilon is not None,
        utilisation_target=conditions.get("requirements.utilisation_target"),
    )


def _engine(conditions: Conditions, device: Device) -> EngineChoice:
    name = conditions.get("engine.name")
    limits = {
        f.path.removeprefix("engine.limits."): float(f.value)
        for f in conditions.under("engine.limits.")
        if isinstance(f.value, int | float)
    }
    return EngineChoice(
        name=engine_on(device, name or "vllm"),
        version=conditions.get("engine.version"),
        alternatives=tuple(conditions.get("engine.alternatives") or ()),
        limits=limits,
        stated=name is not None,
    )


def _dtypes(filled: _Filled, model: ModelSpec, cluster: Cluster) -> tuple[tuple[DType, ...], tuple[DType, ...]]:
    weights = filled.get("model.weight_dtype.allowed") or [filled.get("model.weight_dtype") or model.weight_dtype]
    if "model.weight_dtype" in filled.conditions.missing:
        filled.assume(
            "model.weight_dtype", weights[0], "no precision stated: as released checkpoints are, unquantised",
            "8-bit weights would take half the memory and half the time to read",
        )  # fmt: skip
    # keys and values are kept in 16 bits whatever the checkpoint is stored in; a device without bf16 takes fp16
    half = "fp16" if weights[0] == "fp16" or "bf16" not in cluster.peak_flops else "bf16"
    kv = filled.get("model.kv_dtype.allowed") or [filled.get("model.kv_dtype") or half]
    if filled.get("model.kv_dtype") is None:
        filled.assume(
            "model.kv_dtype",
            kv[0],
            "KV dtype not stated: 16 bits, as engines keep it by default",
            "an fp8 KV cache would halve its bytes",
        )
    return tuple(weights), tuple(kv)
