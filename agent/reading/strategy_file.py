"""A strategy from a file: a preset with a number of devices, or degrees one by one; YAML or JSON.

    preset: dp-attention-ep          tp: 4
    devices: 16                      pp: 2
                                     layers_per_stage: [7, 9]

`PRESETS` name the field's usual deployments; each leaves one axis open, which takes the devices that the other degrees
leave. Keys are those of `tools.spec.strategy.Strategy`, engines' spellings (`tensor_parallel_size`) count too.
"""

# ruff: noqa: E501  (tables read better unbroken)

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from tools.partition.axes import SLICES
from tools.placing import Layerwise
from tools.spec.base import ToolError
from tools.spec.model import ModelSpec
from tools.spec.strategy import PLACEABLE, Strategy


@dataclass(frozen=True, slots=True)
class Preset:
    """`open` is the axis that takes the devices the other degrees leave; `fixed` fields may not be restated otherwise."""

    summary: str
    open: str
    fixed: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


PRESETS: dict[str, Preset] = {
    "tp": Preset("Tensor parallelism over all devices.", "tp"),
    "tp-sp": Preset("Tensor parallelism with norms and residuals split along the sequence.", "tp", {"sp": True}),
    "pp": Preset("One pipeline stage per device: whole layers, no collective inside a layer.", "pp"),
    "tp-pp": Preset("Tensor parallelism inside the node (tp, usually 8), pipeline stages across.", "pp", needs=("tp",)),
    "tp-dp": Preset("Replicas of a tensor-parallel group (tp).", "dp", needs=("tp",)),
    "tp-ep": Preset("Attention by tensor parallelism (tp), whole experts over the same ranks.", "tp", {"ep": "group", "etp": 1}),
    "dp-attention-ep": Preset("Attention data-parallel, experts over all ranks of a stage (large EP).", "attn_dp", {"ep": "group", "etp": 1}),
    "ulysses": Preset("Sequence split over cp; all-to-all exchanges positions for heads around attention.", "cp", {"cp_kind": "ulysses"}),
    "ring": Preset("Sequence split over cp; keys and values travel around a ring.", "cp", {"cp_kind": "ring"}),
    "dcp": Preset("Tensor parallelism whose ranks deal out the KV cache of a sequence (dcp) while decoding.", "tp", needs=("dcp",)),
    "interleaved": Preset("Interleaved pipeline: every stage holds `virtual` runs of layers, dealt out cyclically.", "pp", needs=("virtual",)),
    "token-pipeline": Preset("Slices of the prompt (seq_slices) follow each other through the stages.", "pp", needs=("seq_slices",)),
    "two-level": Preset("Heads in groups, each head's d_k in dk slices.", "tp", needs=("dk",)),
}  # fmt: skip

ALIASES: dict[str, str] = {
    "tensor_parallel_size": "tp", "tensor_parallel": "tp", "tp_size": "tp", "pipeline_parallel_size": "pp", "pipeline_parallel": "pp",
    "pp_size": "pp", "data_parallel_size": "dp", "data_parallel": "dp", "dp_size": "dp", "expert_parallel_size": "ep", "expert_parallel": "ep",
    "ep_size": "ep", "expert_tensor_parallel_size": "etp", "attention_dp": "attn_dp", "context_parallel_size": "cp", "context_parallel": "cp",
    "cp_size": "cp", "decode_context_parallel_size": "dcp", "sequence_parallel": "sp", "kv_cache_dtype": "kv_dtype", "max_num_seqs": "batch",
}  # fmt: skip
OURS = ("preset", "devices", "layerwise")
KEYS: tuple[str, ...] = (*OURS, *Strategy.model_fields)


def load_strategy(path: Path, defaults: Mapping[str, Any] | None = None, model: ModelSpec | None = None) -> Strategy:
    """The strategy of a YAML or JSON file, or the one of a plan.json; `defaults` fill what it leaves out. A layer-wise
    placement needs the model whose layers are placed.

    Raises ToolError in one line: file, key, what is wrong, and the nearest thing that is right.
    """
    data = _read(path)
    if POOLS & set(data):
        raise ToolError(f"--strategy {path}: has pools for prefill and decode; only dag and prove take them")
    try:
        return strategy_from_data(data, defaults, model)
    except ToolError as e:
        raise type(e)(f"--strategy {path}: {e}") from None


POOLS = {"prefill", "decode"}
"""Keys of a file with one strategy per pool."""


def load_pools(
    path: Path, defaults: Mapping[str, Any] | None = None, model: ModelSpec | None = None
) -> tuple[Strategy, Strategy] | None:
    """(prefill's strategy, decode's) of a file with both keys; None for a file with one strategy. Raises ToolError."""
    data = _read(path)
    if not POOLS & set(data):
        return None
    missing, others = POOLS - set(data), set(data) - POOLS
    if missing or others:
        wrong = f"lacks {missing.pop()}" if missing else f"has {sorted(others)[0]!r} beside them"
        raise ToolError(
            f"--strategy {path}: pools are two keys, prefill and decode, each with degrees; the file {wrong}"
        )
    try:
        both = [strategy_from_data(data[k], defaults, model) for k in ("prefill", "decode")]
    except ToolError as e:
        raise type(e)(f"--strategy {path}: {e}") from None
    return both[0], both[1]


def _read(path: Path) -> dict[str, Any]:
    import yaml

    from agent.files import read_text

    text = read_text(path, "--strategy")
    try:
        data = json.loads(text)  # as YAML, a long JSON file takes minutes
    except (ValueError, RecursionError):
        try:
            data = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as e:
            raise ToolError(f"--strategy {path}: not JSON or YAML: {' '.join(str(e).split())[:200]}") from None
    if isinstance(data, dict) and isinstance(data.get("strategy"), dict):
        data = data["strategy"]
    if not isinstance(data, dict) or not data:
        raise ToolError(
            f"--strategy {path}: expected degrees such as {{tp: 8, pp: 2}}, or {{preset: tp, devices: 8}}; got {_kind(data)}"
        )
    return data


def _kind(data: Any) -> str:
    if data is None:
        return "an empty file"
    return "a list" if isinstance(data, list) else f"{str(data)[:40]!r}" if data != {} else "an empty object"


def strategy_from_data(
    data: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, model: ModelSpec | None = None
) -> Strategy:
    """The same for data in memory. Raises ToolError."""
    fields = _named(data)
    _check_types(fields)
    if "layerwise" in fields:
        return _placed(fields, defaults, model)
    preset, devices = fields.pop("preset", None), fields.pop("devices", None)
    if preset is not None:
        fields = _preset(preset, devices, fields)
    strategy = Strategy.model_validate({**(defaults or {}), **fields})
    if devices is not None and strategy.num_devices != devices:
        s = strategy
        raise ToolError(
            f"{_factors(s)} = {s.num_devices}, but devices is {devices}; change a degree, or leave devices out"
        )
    return strategy


def _factors(s: Strategy) -> str:
    """The number of devices as its factors."""
    group = f"tp({s.tp}) × cp({s.cp}) × attn_dp({s.attn_dp})"
    more = [f"{n}({getattr(s, n)})" for n in ("expert_devices", "attn_pool") if getattr(s, n)]
    group = f"({' + '.join([group, *more])})" if more else group
    return f"pp({s.pp}) × {group} × dp({s.dp})"


LAYERWISE = ("budget", "method", "count", "activations", "ends", "batch", "seq")


def _placed(fields: dict[str, Any], defaults: Mapping[str, Any] | None, model: ModelSpec | None) -> Strategy:
    """A strategy whose stages follow from a byte budget per device. pp, or devices, says how many there are; without them
    the fewest that keep the budget."""
    from tools.placing import place_layers

    rule, fields = layerwise_rule(fields.pop("layerwise")), dict(fields)
    if "layers_per_stage" in fields:
        raise ToolError("layerwise and layers_per_stage both place the layers; keep one")
    if model is None:
        raise ToolError("layerwise places the layers of a model; give --model too")
    devices, pp, preset = fields.pop("devices", None), fields.pop("pp", None), fields.pop("preset", None)
    if preset is not None:
        raise ToolError(
            f"layerwise with preset {preset}: the preset fixes the stages already; give the degrees one by one"
        )
    one = Strategy.model_validate({**(defaults or {}), **fields})
    if devices is not None and devices % one.num_devices:
        raise ToolError(
            f"{devices} devices / {one.num_devices} per stage (all replicas) is not a whole number of stages"
        )
    return place_layers(model, one, rule, groups=pp or (devices // one.num_devices if devices else None))


def layerwise_rule(data: Any) -> Layerwise:
    """The value of `layerwise`: a mapping, or just the budget. Raises ToolError naming the key that is wrong."""
    from pydantic import ValidationError

    from tools.placing import Layerwise
    from tools.units import parse_quantity

    given = dict(data) if isinstance(data, Mapping) else {"budget": data}
    unknown = next((k for k in given if k not in LAYERWISE), None)
    if unknown is not None:
        raise ToolError(f"layerwise: unknown key {unknown!r}; known keys: {', '.join(LAYERWISE)}")
    budget = given.pop("budget", None)
    if isinstance(budget, str):
        budget = parse_quantity(budget, "bytes").value
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0):
        raise ToolError(f"layerwise: budget must be bytes such as 50MB, got {budget!r}")
    if given.get("activations", "peak") not in ("peak", "sum"):
        raise ToolError(f"layerwise: activations must be peak or sum, got {given['activations']!r}")
    if "seq" in given:
        given["seq_len"] = given.pop("seq")
    try:
        return Layerwise.model_validate({"budget_bytes": budget, **given})
    except ValidationError as e:
        first = e.errors()[0]
        raise ToolError(f"layerwise: {first['loc'][0]}: {first['msg']}") from None


def _named(data: Mapping[str, Any]) -> dict[str, Any]:
    """Keys in our spelling; an unknown one is an error that names the nearest."""
    out: dict[str, Any] = {}
    for given, value in data.items():
        plain = str(given).strip().lower().replace("-", "_")
        if plain in SLICES and plain not in KEYS:
            out["axes"] = {**dict(out.get("axes") or {}), plain: value}
            continue
        key = plain if plain in KEYS else ALIASES.get(plain)
        if key is None:
            near = difflib.get_close_matches(plain, [*KEYS, *ALIASES, *SLICES], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(KEYS)}"
            raise ToolError(f"unknown key {given!r}; {hint}")
        if key in out:
            raise ToolError(f"{given!r} states {key} a second time; keep one")
        out[key] = value
    return {k: v for k, v in out.items() if v is not None}


WHOLE = (
    "devices",
    "tp",
    "pp",
    "dp",
    "ep",
    "etp",
    "ep_nodes",
    "attn_dp",
    "cp",
    "dcp",
    "dk",
    "batch",
    "max_num_batched_tokens",
    "microbatches",
    "virtual",
    "seq_slices",
)


def _check_types(fields: dict[str, Any]) -> None:
    for key, value in fields.items():
        if key in WHOLE and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ToolError(f"{key} must be a whole number of at least 1, got {value!r}")
        if key == "sp" and not isinstance(value, bool):
            raise ToolError(f"sp must be true or false, got {value!r}")
        choices = _choices(key)
        if choices and value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.4)
            raise ToolError(
                f"{key} {value!r}: {f'did you mean {near[0]!r}? ' if near else ''}choose one of {', '.join(choices)}"
            )
        if key == "layers_per_stage":
            if (
                not isinstance(value, list | tuple)
                or not value
                or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in value)
            ):
                raise ToolError(f"layers_per_stage must be a list of whole numbers such as [8, 8], got {value!r}")
            fields[key] = tuple(value)


def _choices(key: str) -> tuple[str, ...]:
    if key == "preset":
        return tuple(PRESETS)
    if key not in Strategy.model_fields:
        return ()
    annotation = Strategy.model_fields[key].annotation
    literal = get_origin(annotation) is not None and all(isinstance(a, str) for a in get_args(annotation))
    return tuple(get_args(annotation)) if literal else ()


def _preset(name: str, devices: int | None, given: dict[str, Any]) -> dict[str, Any]:
    """The fields of a preset: its open axis takes what the given degrees leave of the devices."""
    preset = PRESETS[name]
    missing = [n for n in preset.needs if n not in given]
    if missing:
        raise ToolError(f"preset {name} needs {', '.join(missing)}; add e.g. {missing[0]}: 2")
    if devices is None and preset.open not in given:
        raise ToolError(f"preset {name} needs devices (or {preset.open}); add e.g. devices: 16")
    fields = dict(given)
    if preset.open not in fields:
        assert devices is not None
        others = _product(fields, preset.open)
        if devices % others:
            raise ToolError(
                f"preset {name}: {devices} devices / {others} (the other degrees) = {devices / others:.3g} is not a whole number; choose devices as a multiple of {others}"
            )
        fields[preset.open] = devices // others
    group = fields.get("tp", 1) * fields.get("cp", 1) * fields.get("attn_dp", 1)
    for key, value in preset.fixed.items():
        want = group if value == "group" else value
        if key in fields and value != "group" and fields[key] != want:
            raise ToolError(f"preset {name} has {key} = {want!r}, the file says {fields[key]!r}; drop one of the two")
        fields.setdefault(key, want)
    return fields


def _product(fields: Mapping[str, Any], leave_out: str) -> int:
    out = 1
    for axis in ("tp", "pp", "cp", "attn_dp", "dp"):
        if axis != leave_out:
            out *= fields.get(axis, 1)
    return out


# ------------------------------------------------------------------------------------------------------- documentation

_TEXTS: dict[str, str] = {
    "preset": "A usual deployment, see below; its open axis takes the devices that the other degrees leave.",
    "devices": "All devices of the strategy. With explicit degrees: checked against their product.",
    "layerwise": "Contiguous layers per stage by a byte budget, see below; instead of `layers_per_stage`.",
    "tp": "Attention tensor parallelism.", "pp": "Pipeline stages.", "dp": "Independent replicas.", "ep": "Expert parallelism.",
    "etp": "Tensor parallelism inside an expert; left out: what EP leaves of the group.",
    "attn_dp": "Attention data parallelism inside a replica; left out: max(1, etp · ep / (tp · cp)).",
    "cp": "Context parallelism.", "sp": "Norms and residuals split over tp along the sequence.",
    "layers_per_stage": "Layers of every pipeline stage; left out: as even as can be.", "weight_dtype": "Dtype of the weights.",
    "kv_dtype": "Dtype of the KV cache.", "batch": "Concurrent sequences per replica.", "max_num_batched_tokens": "Tokens of one prefill step.",
    "microbatches": "Micro-batches of a pipeline step.", "engine": "Whose rules are reported as findings.", "name": "A name of your own.",
}  # fmt: skip


def strategy_file_markdown() -> str:
    """docs/strategy-file.md, from the types."""
    lines = [
        "# Strategy files", "", "`meshwright dag --strategy FILE` and `meshwright prove --strategy FILE` take a YAML or JSON file (or a `plan.json`).",
        "Either a preset with a number of devices:", "", "```yaml", "preset: dp-attention-ep", "devices: 16", "```", "", "or degrees one by one:", "",
        "```yaml", "tp: 8", "pp: 2", "layers_per_stage: [7, 9]", "```", "",
        "`devices = dp · pp · (tp · cp · attn_dp + expert_devices + attn_pool)`; experts use attention's ranks,",
        "`tp · cp · attn_dp = edp · ep · etp`, or those of `expert_devices` where there are any.",
        "What cannot be laid out is refused with operator, dim and axis.", "", "## Keys", "", "| key | values | default | meaning |", "|:--|:--|:--|:--|",
    ]  # fmt: skip
    lines += [f"| `{k}` | {_values(k)} | {_default(k)} | {_meaning(k)} |" for k in KEYS]
    lines += [
        "",
        "Engines' spellings are understood too: " + ", ".join(f"`{a}`" for a in ALIASES) + ".",
        "",
        "## Presets",
        "",
        "| preset | open axis | needs | what it is |",
        "|:--|:--|:--|:--|",
    ]
    lines += [
        f"| `{n}` | `{p.open}` | {', '.join(f'`{x}`' for x in p.needs) or 'devices'} | {p.summary} |"
        for n, p in PRESETS.items()
    ]
    return "\n".join([*lines, *PLACEMENTS_TEXT, *POOLS_TEXT, *LAYERWISE_TEXT]) + "\n"


PLACEMENTS_TEXT = (
    "", "## Weights one by one", "",
    "`placements` lays single weights out otherwise than the degrees say; the collectives follow from it, and the oracle executes them.", "",
    "```yaml", "tp: 4", "cp: 2", "placements:", "  mlp.*_proj: {ffn: cp*tp}     # over both axes, cp outermost",
    "  lm_head: {vocab: [cp, tp]}", "  self_attn.o_proj: {}         # whole on every rank", "```", "",
    f"Keys are module paths as the DAG shows them, or patterns; the first that matches counts. Axes: {', '.join(f'`{a}`' for a in PLACEABLE)}.",
    "Two dims of a weight over the same ranks, a dim that the weight lacks, a norm's weight that its input does not follow: refused by name.",
)  # fmt: skip
POOLS_TEXT = (
    "", "## Prefill and decode pools", "",
    "Two keys, each with a strategy of its own. The KV cache crosses between the pools message by message: the prefill DAG ends with it in",
    "place on the decode ranks, and `prove` runs prefill, hand-over and decode steps as one.", "",
    "```yaml", "prefill: {tp: 2, pp: 2}", "decode: {tp: 4}", "```",
)  # fmt: skip


LAYERWISE_TEXT = (
    "", "## Layers by a byte budget", "",
    "`layerwise` places contiguous groups of layers, one per pipeline stage, so that each device keeps a budget, such as its L2 or",
    "SRAM. Without `pp` or `devices` the fewest devices are taken. A layer that exceeds the budget is refused with its bytes.", "",
    "```yaml", "tp: 1", "layerwise: {budget: 2GB, method: dp, batch: 1, seq: 1024, count: [weights, activations, kv]}", "```", "",
    "- `budget`: bytes per device. Left out: as even as can be over `pp` or `devices`.",
    "- `method`: `dp` (default), of all placements the one whose heaviest device is lightest; `greedy`, one device filled after the other.",
    "- `count`: what counts against the budget, of `weights`, `activations`, `kv`; default: all.",
    "- `activations`: `peak` (default), layers of a device run one after another and the largest counts; `sum`, nothing is freed.",
    "- `ends`: whether embedding and head count on the first and the last device; default `true`.",
    "- `batch`, `seq`: sequences and tokens whose activations and KV cache count; default 1 and 1024.",
)  # fmt: skip


def _values(key: str) -> str:
    if choices := _choices(key):
        return ", ".join(f"`{c}`" for c in choices)
    if key in WHOLE:
        return "whole number ≥ 1"
    if key in Strategy.model_fields and type(Strategy.model_fields[key].default) is int:
        return "whole number ≥ 0"
    return {
        "sp": "`true`, `false`",
        "layerwise": "mapping, or the budget",
        "layers_per_stage": "list of whole numbers",
        "placements": "mapping, see below",
    }.get(key, "text")


def _default(key: str) -> str:
    if key in OURS:
        return "-"
    value = Strategy.model_fields[key].default
    return "-" if value in (None, "", ()) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _meaning(key: str) -> str:
    if key in _TEXTS:
        return _TEXTS[key]
    return _attribute_docs().get(key, "")


def _attribute_docs() -> dict[str, str]:
    """The string below each field of Strategy, as its author wrote it."""
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(Strategy))).body[0]
    assert isinstance(body, ast.ClassDef)
    out: dict[str, str] = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            out[before.target.id] = " ".join(str(after.value.value).split())
    return out
