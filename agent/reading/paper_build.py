"""One strategy of a paper: the degrees of its clause, the axes its method names, solved against the devices."""

# ruff: noqa: E501  (a message reads better unbroken)

from __future__ import annotations

import re
from math import prod
from typing import Any, cast

from agent.reading.paper_clauses import Clause, Setting
from agent.reading.paper_degrees import Degrees, parse_degrees
from agent.reading.paper_mechanisms import Method
from agent.reading.paper_modes import (
    check_budget,
    layers_by_budget,
    phase_pools,
    regime_lengths,
    take_apart,
    take_pool,
    take_redundant,
    take_schedule,
    value_of,
    without_budget,
)
from agent.reading.paper_schedule import head_groups, head_slices, symbols_of
from tools.spec.base import Refused, ToolError
from tools.spec.finding import Finding
from tools.spec.paper import DevicesSource, PaperModel, PaperRole, PaperStrategy
from tools.spec.strategy import Strategy


class Build:
    """Degrees of one strategy as they become known; notes say what was not in the words."""

    def __init__(self, model: PaperModel, clause: Clause, method: Method, setting: Setting) -> None:
        self.model, self.spec, self.clause, self.method, self.setting = model, model.spec, clause, method, setting
        self.found = method.found
        self.d, self.notes = clause.degrees, cast("list[str]", [])
        self.quotes = [p.quote() for p in clause.texts]
        self.axes: dict[str, int | None] = {}
        self.extra: dict[str, Any] = {}
        self.findings: list[Finding] = []

    def cite(self, name: str) -> None:
        if name in self.found:
            self.quotes.append(self.found[name].quote())

    @property
    def kv_dtype(self) -> str:
        own = self.spec.weight_dtype
        return own if own in ("fp16", "bf16", "fp32") else "bf16"

    def cite_from(self, name: str, method: Method) -> None:
        if name in method.found:
            self.quotes.append(method.found[name].quote())

    def known(self, *names: str) -> int:
        return prod(self.axes.get(n) or 1 for n in names)


def build_strategies(
    model: PaperModel, clause: Clause, role: PaperRole, method: Method, setting: Setting
) -> list[PaperStrategy]:
    """One strategy; two where phases have pools of their own, or lengths have regimes of their own.

    Raises ToolError when nothing says how the model is dealt out.
    """
    if "pd" in method.found and (pools := phase_pools(clause, method, setting)):
        out = []
        for phase, (own, about) in pools.items():
            b = Build(model, own, about, setting)
            b.cite_from("pd", method)
            made = build_strategy(b, role)
            out.append(made.model_copy(update={"name": f"{role}_{phase}", "phases": (phase,)}))
        return out
    b = Build(model, clause, method, setting)
    made = build_strategy(b, role)
    return [made] if not made.strategy.attn_pool else _regimes(b, made)


def _regimes(b: Build, above: PaperStrategy) -> list[PaperStrategy]:
    """The regime with the pool and the one without it."""
    longer, shorter = regime_lengths(b)
    alone = above.strategy.model_copy(update={"attn_pool": 0})
    notes = tuple(b.notes)
    short = above.model_copy(update={
        "name": f"{above.name}_below", "strategy": alone, "num_devices": alone.num_devices, "seq_len": shorter, "findings": (),
        "devices_source": "product", "notes": (*notes, f"the regime of at most {alone.pool_above} tokens: the pool is idle"),
    })  # fmt: skip
    return [above.model_copy(update={"seq_len": longer, "notes": notes}), short]


def build_strategy(b: Build, role: PaperRole) -> PaperStrategy:
    model = b.model
    _take_axes(b)
    apart = take_apart(b)
    pool = not apart and take_pool(b)
    if not apart and not pool:
        _take_slices(b)
        _take_layers(b)
        _take_experts(b)
    take_schedule(b)
    if not (b.axes or b.extra):
        raise _nothing_said(b, role)
    devices, source = _solve_groups(b) if apart or pool else _solve(b)
    strategy = _make(b, devices)
    if role == "proposed" and strategy.num_devices == 1 and not (b.d.devices or any(b.d.axes.values())):
        raise _without_degrees(b)
    findings = _device_findings(b, strategy, devices)
    return PaperStrategy(
        model=model.key, name=role, role=role, title=_title(b.clause), strategy=strategy,
        num_devices=devices, devices_source=source, quotes=tuple(dict.fromkeys(b.quotes)), notes=tuple(b.notes), findings=findings,
    )  # fmt: skip


def _nothing_said(b: Build, role: PaperRole) -> ToolError:
    """No degree, in words or by a mechanism: which words were looked at, and what would do."""
    way_out = "state it like 'Proposed: TP 8 × PP 2 on 16 devices'"
    said = b.quotes or [p.quote() for p in b.method.sentences if p.kind != "heading"]
    if not said:
        return ToolError(f"no {role} strategy found for {b.model.name}; {way_out}")
    words = " ".join(said[0].quote.split())[:120]
    return Refused(
        f"{said[0].file} line {said[0].line}: no {role} strategy found for {b.model.name} in {words!r}; {way_out}"
    )


def _without_degrees(b: Build) -> ToolError:
    """Axes that are named, and no number from which a degree follows: one device is nobody's parallel method."""
    named = ", ".join(b.axes) or "the method"
    said = next((q for q in b.quotes if q.quote.strip()), None)
    where = f"{said.file} line {said.line}: " if said else ""
    return Refused(
        f"{where}{b.model.name}, proposed: {named} is named without a degree, and no number of devices is stated for it; state it like 'TP 8 × CP 4 on 32 devices'"
    )


def _device_findings(b: Build, strategy: Strategy, devices: int) -> tuple[Finding, ...]:
    have = b.setting.num_devices
    if strategy.num_devices == devices:
        if have is None or devices <= have:
            return tuple(b.findings)
        label = strategy.label(moe=b.spec.moe is not None)
        text = (
            f"{b.model.name}, {b.clause.role}: the degrees read ({label}) take {devices} devices, the set-up has {have}"
        )
        beyond = Finding(
            code="paper-devices",
            severity="warning",
            cause="input",
            message=text,
            values={"read": devices, "stated": have},
        )
        return (*b.findings, beyond)
    label = strategy.label(moe=b.spec.moe is not None)
    text = f"{b.model.name}, {b.clause.role}: the degrees read ({label}) take {strategy.num_devices} devices, the paper gives {devices}"
    b.notes.append(text)
    values = {"read": strategy.num_devices, "stated": devices}
    return (*b.findings, Finding(code="paper-devices", severity="warning", cause="input", message=text, values=values))


def _solve_groups(b: Build) -> tuple[int, DevicesSource]:
    """Devices of a strategy with several groups: all degrees are known by now."""
    if b.axes.get("pp", 1) is None:
        b.axes.pop("pp")
    group = b.known("tp", "cp", "attn_dp") + b.extra.get("expert_devices", 0) + b.extra.get("attn_pool", 0)
    found = int(group * b.known("pp", "dp"))
    return found, "product" if b.d.devices not in (None, found) else "stated"


def _title(clause: Clause) -> str:
    words = re.sub(r"^\W*[(（]?(?:\d|[a-z])[)）]\s*|\s*[(（]?(?:\d|[a-z])[)）]\s*$", "", clause.words.split(" ⟨")[0])
    return words.strip(" ;；.。,，")[:160] or "as the method says"


def _take_axes(b: Build) -> None:
    """Axes that the clause names, then those the method names."""
    d, m = b.d, b.found
    for axis in ("tp", "pp", "dp", "ep", "etp", "attn_dp", "dcp"):
        if axis in d.axes:
            b.axes[axis] = d.axes[axis]
    if (d.axes.get("ulysses") or 1) > 1 and (d.axes.get("ring") or 1) > 1:
        raise Refused(
            f"{b.model.name}: Ulysses({d.axes['ulysses']}) × ring({d.axes['ring']}) splits a sequence in two ways at once, and cp has one cp_kind; state one of them ({b.clause.words[:80]!r})"
        )
    crossing = next((a for a in ("ulysses", "ring", "cp", "sp") if a in d.axes and (a != "sp" or _sp_is_cp(b))), None)
    from_method = next((k for k in ("ulysses", "ring") if k in m), None)
    if crossing or (from_method and not _only_local(b)):
        degree = next(
            (d.axes[a] for a in ("ulysses", "ring", "cp", "sp") if d.axes.get(a) and (a != "sp" or _sp_is_cp(b))), None
        )
        b.axes["cp"] = degree or d.bindings.get("P") or d.bindings.get("p")
        if "tp" not in b.axes and (width := d.bindings.get("T") or d.bindings.get("t")) and b.method.mentions(_TENSOR):
            b.axes["tp"] = width
        kind = (
            crossing if crossing in ("ulysses", "ring") else from_method or ("ring" if crossing == "cp" else "ulysses")
        )
        b.extra["cp_kind"] = kind
        if crossing in ("cp", "sp") and not from_method:
            b.notes.append(f"how attention crosses the split sequence is not said: {kind} assumed")
        b.cite(kind)
    elif d.sp or "sp" in d.axes or ("sp" in m and ("tp" in d.axes)):
        b.extra["sp"] = True
        b.cite("sp")
    if "dcp" in m and "dcp" not in b.axes:
        b.axes["dcp"] = d.bindings.get("K") or value_of(b, _position_ranks) or _only_symbol(d)
        b.cite("dcp")


_TENSOR = re.compile(r"tensor[- ]parallel|张量并行", re.I)
_OVER = re.compile(r"(?:over|across|among|into)\s+(?P<n>\d+)\b|(?P<n1>\d+)[- ]?ways?\b|(?P<n2>\d+)\s*(?:路|份)", re.I)


def _position_ranks(text: str) -> int | None:
    """Ranks that the positions of a cache are dealt out over."""
    if not re.search(r"cache|K/?V|缓存", text, re.I):
        return None
    m = _OVER.search(text)
    return int(m["n"] or m["n1"] or m["n2"]) if m else None


def _only_symbol(d: Degrees) -> int | None:
    """ "TP 8 with D = 2": the one symbol of a clause stands for the one degree it leaves open."""
    return next(iter(d.bindings.values())) if len(d.bindings) == 1 else None


def _sp_is_cp(b: Build) -> bool:
    """ "SP 16" beside no equal TP splits the sequence over ranks of its own (Ulysses); beside TP it splits norms over TP's."""
    degree = b.d.axes.get("sp")
    return degree is not None and b.d.axes.get("tp") != degree and not ("tp" in b.d.axes and b.d.axes["tp"] is None)


def _only_local(b: Build) -> bool:
    """The clause names other axes with degrees that fill its devices, so that the method's text adds none."""
    return b.d.devices is not None and prod(v or 1 for v in b.d.axes.values()) == b.d.devices and bool(b.d.axes)


def _take_slices(b: Build) -> None:
    slices = b.d.slices
    if slices is None and "slices" in b.found:
        slices = (value_of(b, head_groups), value_of(b, head_slices))
        grid = re.search(r"(?<![\d.])(\d+)\s*[×x]\s*(\d+)(?![\d.])", b.clause.words)
        if grid and None in slices:
            slices = (int(grid[1]), int(grid[2]))
    if slices is None:
        return
    if None in slices:
        slices = _of_symbols(b, slices)
    b.cite("slices")
    groups, parts = slices
    total = b.d.devices or b.d.axes.get("tp") or b.setting.num_devices
    groups = groups or (total // parts if total and parts else None)
    parts = parts or (total // groups if total and groups else None)
    if groups is None and parts is None and total:
        groups, parts = _most_even(b, total)
    if groups is None or parts is None:
        raise ToolError(
            f"{b.model.name}: heads are dealt out in groups and d_k in slices, but how many is not said; state e.g. n = 4, m = 4"
        )
    b.axes["tp"] = groups * parts
    b.extra["dk"] = parts
    b.notes.append(
        f"{groups} head groups × {parts} slices of d_k = {groups * parts} ranks of attention; the MLP is split over the same ranks"
    )


def _of_symbols(b: Build, slices: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    """Values of the letters that the method gives groups and slices ("n" and "m"), wherever the paper binds them."""
    told = parse_degrees(b.found["slices"].text).slice_symbols if "slices" in b.found else b.d.slice_symbols
    values = dict(b.d.bindings)
    for p in b.method.sentences:
        for k, v in symbols_of(p.text).items():
            values.setdefault(k, v)
    groups, parts = (v or values.get(k) for v, k in zip(slices, told, strict=True))
    return groups, parts


def _most_even(b: Build, total: int) -> tuple[int | None, int | None]:
    """Head groups × slices of d_k = `total` where only the product is said; a doubt that is told."""
    a = b.spec.attention
    fits = [
        n for n in range(1, total + 1) if total % n == 0 and a.num_heads % n == 0 and a.head_dim % (total // n) == 0
    ]
    fits = [n for n in fits if 1 < total // n < total] or fits
    if not fits:
        return None, None
    groups = min(fits, key=lambda n: (abs(n - total // n), -n))
    text = f"{b.model.name}: {total} devices share head groups × slices of d_k, and how many of each is not said; {groups} × {total // groups}, the most even, is drawn"
    b.findings.append(Finding(code="paper-open", severity="warning", cause="input", message=text, fix=f"state e.g. n = {groups}, m = {total // groups}"))  # fmt: skip
    return groups, total // groups


def _take_layers(b: Build) -> None:
    layers = b.spec.num_hidden_layers
    each = b.d.layers_each
    if each is None and "layers_each" in b.found and "pp" not in b.d.axes and not b.axes:
        each = parse_degrees(b.found["layers_each"].text).layers_each
        b.cite("layers_each")
    listed = b.d.layers_per_stage
    if listed is None and "layers_listed" in b.found and b.axes.keys() <= {"pp"} and not b.axes.get("pp"):
        listed = value_of(b, lambda text: _cut_of(text, layers))
        if listed is None:
            listed = parse_degrees(b.found["layers_listed"].text).layers_per_stage
            b.cite("layers_listed")
    if listed and sum(listed) == layers and b.axes.get("pp") in (None, len(listed)):
        b.axes["pp"] = len(listed)
        b.extra["layers_per_stage"] = listed
    elif listed and "pp" in b.axes:
        b.notes.append(
            f"layers per stage {'+'.join(map(str, listed))} = {sum(listed)}, but {b.model.name} has {layers} on {b.axes['pp']} stages; the even split is used"
        )
    if "layerwise" in b.found and each is None and not b.extra.get("layers_per_stage"):
        if runs := layers_by_budget(b):
            b.axes["pp"], b.extra["layers_per_stage"] = len(runs), runs
        else:
            without_budget(b)
    if each and ("pp" in b.axes or "layerwise" in b.found or not b.axes):
        stages = -(-layers // each)
        b.axes["pp"] = b.axes.get("pp") or stages
        if layers % each == 0 and b.axes["pp"] == stages:
            b.extra["layers_per_stage"] = (each,) * stages
    if each is not None and b.extra.get("layers_per_stage"):
        check_budget(b, b.extra["layers_per_stage"])
    if "layerwise" in b.found and "pp" not in b.axes and not {"tp", "cp", "ep"} & b.axes.keys():
        b.axes["pp"] = None
        b.cite("layerwise")


def _cut_of(text: str, layers: int) -> tuple[int, ...] | None:
    """Layers per stage in a text, where they are those of a model of so many layers."""
    listed = parse_degrees(text).layers_per_stage
    return listed if listed and sum(listed) == layers else None


def _take_experts(b: Build) -> None:
    """EP, and attention beside it."""
    moe = b.spec.moe
    if moe is not None and "sliced" in b.found and "ep" not in b.d.axes and not b.d.experts_per_device:
        b.d.experts_sliced = True  # every device holds a slice of every expert: the ranks of tensor parallelism
        b.axes.setdefault("tp", b.d.bindings.get("P") or b.d.devices)
        b.cite("sliced")
    if moe is None:
        for axis in ("ep", "etp"):
            b.axes.pop(axis, None)
        return
    per_device = b.d.experts_per_device
    if per_device is None and "experts_per_device" in b.found:
        per_device = parse_degrees(b.found["experts_per_device"].text).experts_per_device
        b.cite("experts_per_device")
    if "ep" not in b.axes and ("ep" in b.found or per_device) and not b.d.experts_sliced and not _only_local(b):
        b.axes["ep"] = None
        b.cite("ep")
    ep = b.axes.get("ep")
    of_all_layers = per_device and ep and ep == b.d.devices and _devices_of_each_layer(b, per_device)
    if per_device and (of_all_layers or (ep is None and not b.d.experts_sliced)):
        b.axes["ep"] = _ep_of(b, per_device)
    elif per_device and ep and ep * per_device < moe.num_experts:
        _fewer_devices(b, per_device, ep)
    if "ep" in b.axes and b.axes.get("dp", 1) is None:
        b.axes["attn_dp"] = b.axes.pop("dp")  # data parallelism without a degree beside EP is that of attention
    if "ep" in b.axes and ("attn_dp" in b.found or "attn_dp" in b.axes):
        b.axes.setdefault("attn_dp", None)
        b.cite("attn_dp")
        if b.axes["attn_dp"] is None and b.axes.get("dp") and b.axes.get("dp") != 1:
            b.axes["attn_dp"] = b.axes.pop("dp")  # "DP 16 + EP 16": the data parallelism is that of attention
    take_redundant(b)


def _ep_of(b: Build, per_device: int) -> int:
    """The degree that experts per device give: over the strategy's devices, or over those of each layer."""
    moe = b.spec.moe
    assert moe is not None
    wanted, devices, layers = max(1, -(-moe.num_experts // per_device)), b.d.devices, b.spec.num_hidden_layers
    if _devices_of_each_layer(b, per_device):
        b.axes["pp"] = layers
        b.notes.append(
            f"{devices} devices hold {per_device} of {layers} layers × {moe.num_experts} experts each: every layer has {wanted} devices of its own, so pp = {layers}"
        )
    elif devices and devices < wanted and b.clause.role == "proposed":
        fits = [n for n in range(1, devices + 1) if devices % n == 0 and n <= moe.num_experts]
        _fewer_devices(b, per_device, max(fits))
        return max(fits)
    b.notes.append(f"EP = {moe.num_experts} experts / {per_device} per device = {wanted}")
    return wanted


def _devices_of_each_layer(b: Build, per_device: int) -> bool:
    """Whether the strategy's devices hold the experts of all layers side by side."""
    moe, layers = b.spec.moe, b.spec.num_hidden_layers
    alone = not b.known("tp", "cp", "pp", "dp", "attn_dp") > 1 and "pp" not in b.axes
    if moe is None or not alone or layers < 2 or b.spec.moe_layers is not None:
        return False
    return b.d.devices == -(-moe.num_experts // per_device) * layers


def _fewer_devices(b: Build, per_device: int, ep: int) -> None:
    """ "One expert per GPU" of 64 experts on 16 GPUs: both are stated, and cannot both be."""
    moe = b.spec.moe
    assert moe is not None
    wanted = -(-moe.num_experts // per_device)
    text = f"{b.model.name}: {per_device} of {moe.num_experts} experts on a device would take {wanted} devices, the paper gives {ep}; drawn with {-(-moe.num_experts // ep)} experts on each of {ep}"
    values = {"experts": moe.num_experts, "per_device": per_device, "devices": ep}
    b.findings.append(Finding(code="paper-experts", severity="warning", cause="input", message=text, values=values))


def _solve(b: Build) -> tuple[int, DevicesSource]:
    """Fills the one degree that is named without a number, and says how many devices the strategy takes."""
    devices, source = b.d.devices, cast("DevicesSource", "stated")
    a = b.axes
    outer = ("tp", "pp", "cp", "dp", "attn_dp")
    open_axes = [n for n in (*outer, "ep") if n in a and a[n] is None]
    if devices is None:
        wide = max(b.known("tp", "cp", "attn_dp"), b.known("ep", "etp")) * b.known("pp", "dp")
        if open_axes and not (open_axes == ["attn_dp"] and a.get("ep")) and b.setting.num_devices:
            devices, source = b.setting.num_devices, "hardware"
            b.notes.append(f"no number of devices stated for it: all {devices} of the set-up")
        else:
            devices, source = wide, "product"
    moe = b.spec.moe
    if (
        moe
        and a.get("ep")
        and "attn_dp" not in a
        and a.get("dp", 1)
        and (a.get("dp") or 1) > 1
        and (a["ep"] or 1) > b.known("tp", "cp")
    ) and (
        b.known("tp", "cp", "dp", "pp") in (devices, b.known("ep", "pp"))
        or (a["ep"] or 1) % b.known("tp", "cp", "dp") == 0
    ):
        a["attn_dp"] = a.pop("dp")
        if source == "product":
            devices = max(b.known("tp", "cp", "attn_dp"), b.known("ep", "etp")) * b.known("pp")
        b.notes.append("data parallelism beside EP is that of attention: the replicas share the experts")
    if "ep" in a and "attn_dp" not in a:
        group = devices // b.known("pp", "dp")
        wide = group > b.known("tp", "cp") and (a["ep"] is None or (a["ep"] or 1) > b.known("tp", "cp"))
        if wide and "attn_tp" in b.found and "attn_dp" not in b.found and "tp" not in a:
            a["tp"] = None  # attention's heads over the same devices
            b.cite("attn_tp")
        elif wide:
            a["attn_dp"] = None
            b.notes.append("attention beside EP is not described: data-parallel over the same devices, as usual")
    for axis in [n for n in outer if n in a and a[n] is None]:
        rest = b.known(*outer)
        if devices % rest:
            raise ToolError(
                f"{b.model.name}, {b.clause.role}: {devices} devices do not split over the other degrees ({rest}); state the degree of {axis}"
            )
        a[axis] = devices // rest
        if axis == "pp" and a[axis] and a[axis] > b.spec.num_hidden_layers:  # type: ignore[operator]
            a[axis] = b.spec.num_hidden_layers
    if "ep" in a and a["ep"] is None:
        group = b.known("tp", "cp", "attn_dp")
        a["ep"] = min(group, moe.num_experts) if moe else 1
        b.notes.append(f"EP's degree is not said: {a['ep']}, the devices that attention takes")
    return devices, source


def _make(b: Build, devices: int) -> Strategy:
    a = {k: v for k, v in b.axes.items() if v}
    if b.extra.get("expert_devices") or b.extra.get("attn_pool"):
        return _valid(b, a)
    have = prod(a.get(n, 1) for n in ("tp", "pp", "cp", "dp", "attn_dp"))
    if "attn_dp" not in a and a.get("ep", 1) * a.get("etp", 1) > a.get("tp", 1) * a.get("cp", 1):
        have = a.get("ep", 1) * a.get("etp", 1) * a.get("pp", 1) * a.get("dp", 1)
    if "dp" not in a and have < devices and devices % have == 0 and b.d.devices is not None:
        a["dp"] = devices // have
        b.notes.append(f"{have} devices hold one copy of the model; {devices} devices hold {a['dp']} replicas")
    if b.spec.moe and "ep" in a and a["ep"] > b.spec.moe.num_experts:
        b.notes.append(
            f"EP {a['ep']} is more than {b.spec.moe.num_experts} experts: each has {a['ep'] // b.spec.moe.num_experts} copies"
        )
        a["ep"] = b.spec.moe.num_experts
    if "attn_dp" in a and "ep" in a and "etp" not in a:
        group = a.get("tp", 1) * a.get("cp", 1) * a["attn_dp"]
        if b.d.experts_per_device or "experts_per_device" in b.found or "copied" in b.found:
            a["etp"] = 1  # whole experts; what EP leaves of the group are copies
        elif group % a["ep"]:
            raise ToolError(
                f"{b.model.name}, {b.clause.role}: {group} devices do not split over EP {a['ep']}; state EP among the divisors of {group}"
            )
    return _valid(b, a)


def _valid(b: Build, a: dict[str, int]) -> Strategy:
    batch = max(1, b.model.batch_size // a.get("dp", 1))
    fields: dict[str, Any] = {
        **a,
        **b.extra,
        "weight_dtype": b.spec.weight_dtype,
        "kv_dtype": b.kv_dtype,
        "batch": batch,
        "name": b.clause.role,
    }
    if fields.get("layers_per_stage") and len(fields["layers_per_stage"]) != a.get("pp", 1) * fields.get("virtual", 1):
        fields.pop("layers_per_stage")
    if a.get("pp", 1) > b.spec.num_hidden_layers:
        raise ToolError(
            f"{b.model.name}, {b.clause.role}: {a['pp']} pipeline stages for {b.spec.num_hidden_layers} layers; use at most one stage per layer"
        )
    try:
        return Strategy.model_validate(fields)
    except ToolError as e:
        raise ToolError(f"{b.model.name}, {b.clause.role} ({b.clause.words[:80]!r}): {e}") from None
