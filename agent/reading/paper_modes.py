"""Ways to deploy that have several device groups, regimes or schedules: read from a clause, else from the method's sentences.

attention/expert separation (M:N) · attention pool above a length · pools for prefill and decode · slices of the sequence
through a pipeline · interleaved stages · micro-batches · runs of layers by a byte budget.
"""

# ruff: noqa: E501  (a message reads better unbroken)

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from agent.reading.paper_degrees import parse_degrees
from agent.reading.paper_groups import DEV, device_groups, role_spans
from agent.reading.paper_mechanisms import Method, mechanisms
from agent.reading.paper_schedule import (
    bound,
    budget_bytes,
    microbatches,
    redundant_experts,
    redundant_per_device,
    seq_slices,
    slice_tokens,
    threshold,
    virtual_stages,
)
from tools.spec.base import Refused, ToolError
from tools.spec.finding import Finding
from tools.spec.strategy import Strategy

if TYPE_CHECKING:
    from agent.reading.paper_build import Build
    from agent.reading.paper_clauses import Clause, Setting
    from agent.reading.paper_text import Passage
    from tools.partition.layerwise import Loads
    from tools.spec.strategy import Phase

_SHARED = re.compile(r"\bsame (?:\w+ )?(?:\w+ )?(?:GPUs?|devices?|ranks?|group|accelerators?)|co-?locat|同一(?:组|批)|相同的?(?:设备|GPU|卡)", re.I)  # fmt: skip
_BY_HEADS = re.compile(
    r"(?:attention|heads?|Q/K/V|QKV)[^.。;]{0,80}(?:tensor[- ]parallel\w*|\bTP\b)|(?:tensor[- ]parallel\w*|\bTP\b)[^.。;]{0,50}(?:attention|heads?)|heads?[^.。;]{0,40}(?:split|shard|partition|divid|distribut|dealt|spread)|(?:split|shard|partition|divid|distribut)\w*[^.。;]{0,30}heads|注意力[^。；]{0,30}张量并行|张量并行[^。；]{0,20}注意力|注意力头[^。；]{0,20}(?:划分|切分|分配)",
    re.I,
)
_HEADS_EACH = re.compile(
    rf"\bheads?(?:[- ]per[- ]|\s?/\s?)(?:\w+ )?{DEV}|\beach (?:computing|handling|holding|with) \d+ (?:attention )?heads|\d+ (?:attention )?heads (?:across|over|on) \d+ (?:\w+ )?{DEV}|(?<!all )\b\d+ heads on (?:each|every) {DEV}",
    re.I,
)
"""A number of heads for each device: they are dealt out, whatever else is said of copies."""
_BY_TENSOR = re.compile(r"attention[^.。;]{0,60}(?:tensor[- ]parallel\w*|\bTP\b)|注意力[^。；]{0,30}张量并行", re.I)
_WHOLE_COPIES = re.compile(r"replicat|data[- ]parallel|(?:all|its own) (?:the )?attention weights|own (?:share|part) of the (?:requests|sequences|batch)|full attention weights|complete attention weights|数据并行|复制|副本", re.I)  # fmt: skip


def groups_of(b: Build, roles: tuple[str, str]) -> dict[str, int]:
    """Devices of both roles, from the clause, else from a sentence of the method (which is then cited)."""
    total = b.d.devices or b.setting.num_devices
    said = device_groups(bound(b.clause.words, b.d.bindings), roles, total)
    if len(said) == 2:
        return said

    def both(text: str) -> dict[str, int] | None:
        groups = device_groups(text, roles, total)
        return groups if len(groups) == 2 else None

    found, where = b.method.says(both, b.d.bindings)
    if found and where is not None:
        b.quotes.append(where.quote())
        return dict(found)
    groups = said | _one_by_one(b, roles, said)
    if len(groups) < 2 and (m := re.search(r"(?<![\d.])(\d+)\s*\+\s*(\d+)(?![\d.])", b.clause.words)):
        groups = {roles[0]: int(m[1]), roles[1]: int(m[2])}
        b.notes.append(f"{m[0]!r} is read as {m[1]} {roles[0]} and {m[2]} {roles[1]} devices")
    return groups


def _one_by_one(b: Build, roles: tuple[str, str], said: dict[str, int]) -> dict[str, int]:
    """ "M attention devices keep …" in one sentence, "N expert devices …" in another."""
    out: dict[str, int] = {}
    for role in roles:
        if role not in said:
            read = functools.partial(_devices_of, role, roles)
            found, where = b.method.says(read, b.d.bindings)
            if found and where is not None:
                out[role] = found
                b.quotes.append(where.quote())
    return out


def _devices_of(role: str, roles: tuple[str, str], text: str) -> int | None:
    return device_groups(text, roles).get(role)


def value_of(b: Build, read: Callable[[str], Any]) -> Any:
    """What `read` finds in the clause, else in the method; the sentence is cited."""
    value = read(bound(b.clause.words, b.d.bindings))
    if value is None:
        value, where = b.method.says(read, b.d.bindings)
        if where is not None:
            b.quotes.append(where.quote())
    return value


# ----------------------------------------------------------------------------------------- attention and experts apart


def take_apart(b: Build) -> bool:
    """Attention on M devices, experts on N others: `expert_devices`. False where the paper says nothing of the kind."""
    if "apart" not in b.found and not _disjoint(b):
        return False
    groups = groups_of(b, ("attention", "expert"))
    if b.spec.moe is None:
        raise ToolError(
            f"{b.model.name} has no experts: attention and a dense MLP on different devices is not supported"
        )
    if len(groups) < 2:
        raise ToolError(
            f"{b.model.name}: attention and experts lie on different devices, but how many each is not said; state e.g. 8 attention devices and 16 expert devices"
        )
    b.cite("apart")
    stages = _stages(b, sum(groups.values()))
    if groups["attention"] % stages or groups["expert"] % stages:
        raise ToolError(
            f"{b.model.name}: {groups['attention']} attention and {groups['expert']} expert devices do not split over {stages} stages"
        )
    _attention_side(b, groups["attention"] // stages)
    _expert_side(b, groups["expert"] // stages)
    return True


def _disjoint(b: Build) -> bool:
    """Counts for both roles that add up to the strategy's devices are two groups, unless they are said to be the same."""
    total = b.d.devices or b.setting.num_devices
    words = b.clause.words
    if b.spec.moe is None or _SHARED.search(words) or not total:
        return False
    groups = device_groups(words, ("attention", "expert"), total)
    return len(groups) == 2 and sum(groups.values()) == total


def _stages(b: Build, devices: int) -> int:
    """Pipeline stages that share the groups' devices: counts that add up to the total are of all stages."""
    pp = b.axes.get("pp") or 1
    total = b.d.devices
    return pp if pp > 1 and (total is None or total == devices) else 1


def _attention_side(b: Build, devices: int) -> None:
    tp, attn_dp = b.axes.get("tp"), b.axes.get("attn_dp") or b.axes.pop("dp", None)
    words = " ".join([b.clause.words, *(p.text for p in b.method.sentences)])
    if tp or attn_dp:
        fixed = tp or attn_dp or 1
        if devices % fixed:
            raise ToolError(f"{b.model.name}: {devices} attention devices do not split over degree {fixed}")
        tp = tp or devices // fixed
        attn_dp = devices // tp
    elif (
        _says_tensor(b)
        or _HEADS_EACH.search(words)
        or (("tp" in b.axes or _BY_HEADS.search(words)) and not _WHOLE_COPIES.search(words))
    ):
        tp, attn_dp = devices, 1
    else:
        tp, attn_dp = 1, devices
        if b.spec.attention.num_heads % devices and _BY_HEADS.search(words):
            _heads_left_over(b, devices)
        elif not _WHOLE_COPIES.search(words):
            b.notes.append("how attention shares its devices is not said: data parallel, whole weights on each")
    heads = b.spec.attention.num_heads
    if heads % tp:
        _heads_left_over(b, tp)
        tp, attn_dp = 1, devices
    b.axes["tp"], b.axes["attn_dp"] = tp, attn_dp


def _heads_left_over(b: Build, devices: int) -> None:
    """Heads are to be dealt out over a number of devices that does not divide them."""
    heads = b.spec.attention.num_heads
    text = f"{b.model.name}: {heads} heads do not split over {devices} attention devices; drawn with attention data-parallel over them"
    values = {"heads": heads, "devices": devices}
    b.findings.append(Finding(code="paper-heads", severity="warning", cause="input", message=text, values=values))


def _says_tensor(b: Build) -> bool:
    """A sentence that gives attention tensor parallelism, and none that gives it whole copies."""
    said = [b.clause.words, *(p.text for p in b.method.sentences)]
    copies = re.compile(r"data[- ]parallel|数据并行|(?:full|complete|all) (?:the )?attention weights", re.I)
    return any(_BY_TENSOR.search(t) for t in said) and not any(copies.search(t) for t in said)


def _expert_side(b: Build, devices: int) -> None:
    assert b.spec.moe is not None
    experts, ep, etp = b.spec.moe.num_experts, b.axes.get("ep"), b.axes.get("etp")
    per_device = b.d.experts_per_device
    if not ep and per_device and -(-experts // per_device) <= devices:
        ep = -(-experts // per_device)
    if b.d.experts_sliced and not ep:
        ep, etp = 1, devices
    ep = ep or min(experts, devices)
    if devices % ep:
        ep = max(n for n in range(1, ep + 1) if devices % n == 0)
        b.notes.append(f"{experts} experts on {devices} devices: EP {ep}, the rest of the group holds slices or copies")
    if etp is None and devices > ep:
        etp = 1
        b.notes.append(f"{devices} expert devices hold {devices // ep} copies of each of {experts} experts")
    b.axes["ep"], b.extra["expert_devices"] = ep, devices
    if etp is not None:
        b.axes["etp"] = etp


def take_redundant(b: Build) -> None:
    """Further copies of experts: a number of them, or some on every device."""
    if "redundant" not in b.found or b.spec.moe is None or "ep" not in b.axes:
        return
    each = value_of(b, redundant_per_device)
    devices = b.axes.get("ep") or b.d.devices or b.setting.num_devices
    copies = each * devices if each and devices else value_of(b, redundant_experts)
    if not copies:
        return
    b.cite("redundant")
    b.extra["redundant_experts"] = copies
    b.notes.append(
        f"which experts are copied is decided while serving; drawn: the first {copies} of {b.spec.moe.num_experts}"
    )


# ------------------------------------------------------------------------------------------------------ attention pool


def take_pool(b: Build) -> bool:
    """Extra devices that join attention above a length: `attn_pool`, `pool_above`."""
    if "pool" not in b.found or "pd" in b.found or "apart" in b.found:
        return False
    groups = groups_of(b, ("base", "pool"))
    total = b.d.devices or b.setting.num_devices
    tp = b.axes.get("tp")
    if "base" not in groups and (tp or (total and groups.get("pool", total) < total)):
        groups["base"] = tp or (total or 0) - groups["pool"]
    if "pool" not in groups and total and groups.get("base", total) < total:
        groups["pool"] = total - groups["base"]
        b.notes.append(f"the pool's devices: {total} - {groups['base']} of the base")
    if "pool" not in groups or "base" not in groups:
        raise ToolError(
            f"{b.model.name}: devices join attention from a pool, but how many is not said; state e.g. 8 base devices and 8 pool devices"
        )
    above = value_of(b, threshold) or next((v for k, v in b.d.bindings.items() if k[0] in "TLSτ" and v >= 256), None)
    if not above:
        raise ToolError(f"{b.model.name}: the attention pool joins above a length that is not said; state it in tokens")
    b.cite("pool")
    base = groups["base"] // (b.axes.get("pp") or 1)
    rest = prod(b.axes.get(n) or 1 for n in ("cp", "attn_dp"))
    b.axes["tp"] = tp or base // rest
    b.extra |= {"attn_pool": groups["pool"] // (b.axes.get("pp") or 1), "pool_above": above}
    return True


def regime_lengths(b: Build) -> tuple[int, int]:
    """(a length above the threshold, one at or below it): stated ones where there are any."""
    above, stated = b.extra["pool_above"], b.model.seq_lens or (b.model.seq_len,)
    longer, shorter = [s for s in stated if s > above], [s for s in stated if s <= above]
    if not longer:
        b.notes.append(f"no stated length exceeds {above} tokens: the long regime is drawn at {2 * above}")
    if not shorter:
        b.notes.append(f"no stated length is within {above} tokens: the short regime is drawn at {above}")
    return max(longer, default=2 * above), max(shorter, default=above)


# ------------------------------------------------------------------------------------------- pools for prefill and decode


def phase_pools(clause: Clause, method: Method, setting: Setting) -> dict[Phase, tuple[Clause, Method]]:
    """The clause and the method's sentences of each pool; empty where the clause does not tell them apart."""
    spans: dict[Phase, list[str]] = {"prefill": [], "decode": []}
    words = bound(clause.words, clause.degrees.bindings)
    for role, text in role_spans(words, ("prefill", "decode")):
        spans["prefill" if role == "prefill" else "decode"].append(text)
    groups = device_groups(words, ("prefill", "decode"), clause.degrees.devices or setting.num_devices)
    out: dict[Phase, tuple[Clause, Method]] = {}
    for phase, texts in spans.items():
        d = parse_degrees(" ".join(texts), per_node=setting.per_node, num_nodes=setting.num_nodes)
        if d.empty and (under := _of_phase(method, phase)):
            texts = [p.text for p in under]
            clause = replace(clause, texts=[*clause.texts, *(p for p in under if p not in clause.texts)])
            d = parse_degrees(" ".join(texts), per_node=setting.per_node, num_nodes=setting.num_nodes)
        d.devices = groups.get(phase)
        if d.empty and d.devices is None:
            return {}
        other = "decode" if phase == "prefill" else "prefill"
        about = tuple(p for p in method.sentences if phase in (r := _phases(p.text)) or other not in r)
        # A sentence about both phases gives a mechanism only where the pool's own words give no degree.
        telling = about if d.empty else tuple(p for p in about if len(_phases(p.text)) < 2)
        found = {k: p for k, p in mechanisms(telling).items() if k not in ("pd", "apart", "pool")}
        said = " ".join(texts).strip(" ;；.。,，")
        own = replace(clause, degrees=d, said_as=said)
        out[phase] = (own, Method(tuple(p for p in about if p not in clause.texts), found))
    return out


def _of_phase(method: Method, phase: Phase) -> list[Passage]:
    """Sentences of the method under a heading or label that names this phase only, or else that name it only themselves,
    as far as they state a degree."""
    titled = [p for p in method.sentences if _phases(" ".join((*p.section[1:], p.label))) == {phase}]
    own = titled or [p for p in method.sentences if _phases(p.text) == {phase}]
    return [p for p in own if any(parse_degrees(p.text).axes.values()) or parse_degrees(p.text).devices]


def _phases(text: str) -> set[str]:
    return {role for role, _ in role_spans(text, ("prefill", "decode"))}


# ------------------------------------------------------------------------------------------------------------ schedules


def take_schedule(b: Build) -> None:
    """Slices of the sequence, virtual stages, micro-batches."""
    if "tokens" in b.found and "apart" not in b.found:
        _take_slices_of_sequence(b)
    if "interleaved" in b.found and (b.axes.get("pp") or 2) > 1:
        _take_virtual(b)
    count = b.d.microbatches or (value_of(b, microbatches) if b.clause.role == "proposed" and _scheduled(b) else None)
    if count and count > 1:
        b.extra["microbatches"] = count


def _scheduled(b: Build) -> bool:
    return bool(b.extra.get("expert_devices")) or "pp" in b.axes


def _take_slices_of_sequence(b: Build) -> None:
    slices = value_of(b, seq_slices)
    if not slices:
        tokens = value_of(b, slice_tokens)
        slices = -(-b.model.seq_len // tokens) if tokens else None
    b.axes.setdefault("pp", None)
    b.cite("tokens")
    if not slices:
        slices = b.axes["pp"] or (b.d.devices or b.setting.num_devices or 1) // b.known("tp", "cp", "dp", "attn_dp")
        b.notes.append(f"the number of slices is not said: {slices}, one per stage, assumed")
    b.extra["seq_slices"] = slices


def _take_virtual(b: Build) -> None:
    runs = value_of(b, virtual_stages) or b.d.bindings.get("v") or b.d.bindings.get("V")
    if not runs:
        if b.clause.role == "baseline":
            return
        raise ToolError(
            f"{b.model.name}: stages are interleaved, but how many runs of layers a rank holds is not said; state e.g. v = 2"
        )
    b.axes.setdefault("pp", None)
    b.cite("interleaved")
    b.extra["virtual"] = runs


# ------------------------------------------------------------------------------------------------- layers by byte budget


_COUNTED = {
    "weights": re.compile(r"weight|parameter|权重|参数", re.I),
    "kv": re.compile(r"\bKV\b|key[- /]?value|keys and values|键值", re.I),
    "activations": re.compile(r"activation|intermediate|buffer|激活|中间结果|缓冲", re.I),
}


def layers_by_budget(b: Build) -> tuple[int, ...] | None:
    """Runs of layers that keep the stated bytes of fast memory; where no cut can, the most even cut over the stated
    devices, with a finding. None where no budget is stated."""
    budget = value_of(b, budget_bytes)
    if not budget and b.setting.fast_memory:
        budget, where = b.setting.fast_memory
        b.quotes.append(where.quote())
    if not budget:
        return None
    from tools.partition.layerwise import greedy, megabytes, optimal

    loads, count = _loads(b), ", ".join(_counted(b))
    stated = b.axes.get("pp") or b.d.devices
    try:
        first = greedy(loads, budget)
        balanced = stated and (stated > len(first) or "fewest_bytes" in b.found)
        runs = optimal(loads, budget=budget, groups=stated) if stated and balanced else first
        given = stated or b.setting.num_devices
        if given and len(runs) > given:
            raise Refused(f"{megabytes(budget)} per device take {len(runs)} devices, {given} are given")
    except Refused as e:
        groups = min(stated or b.setting.num_devices or b.spec.num_hidden_layers, b.spec.num_hidden_layers)
        runs = optimal(loads, groups=groups)
        _over_budget(b, budget, str(e), len(runs))
    worst = max(loads.groups(runs))
    b.notes.append(
        f"{len(runs)} runs of layers; the heaviest takes {megabytes(worst)} of {megabytes(budget)} ({count})"
    )
    return runs


_FAST = re.compile(r"\bSRAM\b|\bL2\b|on-chip|last-level cache|scratch-?pad|片上|二级缓存", re.I)


def without_budget(b: Build) -> None:
    """A method that fits layers into memory on the chip, of a size that the paper does not give: what is drawn keeps no budget."""
    if b.clause.role != "proposed" or not b.method.mentions(_FAST):
        return
    text = f"{b.model.name}: each device's layers are to fit its on-chip memory, whose size the paper does not state; the cut drawn is checked against no budget"
    b.findings.append(
        Finding(
            code="paper-budget", severity="warning", cause="input", message=text, fix="state it, e.g. C = 50 MB of L2"
        )
    )


def _counted(b: Build) -> tuple[str, ...]:
    """What the paper counts against its budget; everything where it does not say."""
    about = " ".join([b.clause.words, *(p.text for p in b.method.sentences)])
    return tuple(k for k, words in _COUNTED.items() if words.search(about)) or tuple(_COUNTED)


def _loads(b: Build) -> Loads:
    from tools.memory import layer_loads

    m, count = b.model, _counted(b)
    return layer_loads(b.spec, _alone(b), batch=m.batch_size, seq_len=m.seq_len, count=count, ends=False)  # type: ignore[arg-type]


def check_budget(b: Build, runs: tuple[int, ...]) -> None:
    """Whether a cut that the paper states keeps the budget that it states."""
    budget = value_of(b, budget_bytes) or (b.setting.fast_memory or (None,))[0]
    if not budget or "layerwise" not in b.found:
        return
    from tools.partition.layerwise import megabytes

    worst = max(_loads(b).groups(runs))
    if worst > budget:
        text = f"{b.model.name}: the cut that the paper states takes {megabytes(worst)} on its fullest device, its budget is {megabytes(budget)}"
        b.findings.append(
            Finding(
                code="paper-budget",
                severity="warning",
                cause="input",
                message=text,
                values={"bytes": worst, "budget_bytes": budget},
            )
        )


def _over_budget(b: Build, budget: float, why: str, devices: int) -> None:
    text = f"{b.model.name}: the paper's budget of {budget / 1e6:.4g} MB per device cannot be kept ({why}); drawn as the most even cut over {devices} devices"
    b.findings.append(
        Finding(code="paper-budget", severity="warning", cause="input", message=text, values={"budget_bytes": budget})
    )


def _alone(b: Build) -> Strategy:
    dtypes = {"weight_dtype": b.spec.weight_dtype, "kv_dtype": b.kv_dtype}
    return Strategy.model_validate({**dtypes, "batch": b.model.batch_size})
