"""Candidates → Conditions: one fact per path, every disagreement a conflict, gaps listed.

Who wins: stated shape > name > declared parameter count; the stricter of two limits; the catalogue among link speeds;
otherwise the later statement.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from agent.reading import demand
from agent.reading.economics import CANDIDATES, PRICE
from agent.reading.facts import Candidate, Reading
from agent.reading.hardware_check import check_hardware, settle_links
from agent.reading.loose import UNSCOPED
from agent.reading.missing import find_missing
from agent.reading.model_check import check_model, named_model
from agent.reading.pools import counted_kinds
from knowledge import catalog
from tools.spec.base import ToolError
from tools.spec.conditions import Conditions, Conflict, Evidence, Fact
from tools.spec.hardware import Device
from tools.units import fold_width

MAX_LISTED = 12
"""Values spelled out in the words of one conflict."""
_LISTS = ("workload.asked_strategies",)


class Draft:
    """Conditions under construction."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.facts: dict[str, Fact] = {}
        self.conflicts: list[Conflict] = []
        self.by_path: dict[str, list[Candidate]] = defaultdict(list)

    def value(self, path: str) -> Any:
        fact = self.facts.get(path)
        return fact.value if fact else None

    def has(self, path: str) -> bool:
        return path in self.facts

    def put(self, fact: Fact) -> None:
        self.facts[fact.path] = fact

    def conflict(self, path: str, values: Iterable[Any], resolution: Any, why: str, *paths: str) -> None:
        self.conflicts = [c for c in self.conflicts if not (c.path == path and c.why == why)]
        self.conflicts.append(
            Conflict(path=path, values=tuple(values), resolution=resolution, why=why, paths=(path, *paths))
        )


def reconcile(reading: Reading) -> Conditions:
    """The facts of `reading`, settled."""
    draft = Draft(reading)
    reading.candidates += demand.joined(reading.candidates)
    for candidate in reading.candidates:
        draft.by_path[candidate.path].append(candidate)
    _outranked(draft)
    _heads(draft)
    _unscoped_rates(draft)
    _ignored_paths(draft)
    device = _device(draft)
    _packages(draft, device)
    _counts(draft)
    _prices(draft, device)
    settle_links(draft, device)
    _dtypes(draft)
    _engines(draft)
    _model_name(draft)
    _strategies(draft)
    for path, candidates in draft.by_path.items():
        if path not in draft.facts and not path.startswith(("ignore.", "done.")):
            _settle(draft, path, candidates)
    _flops_dtype(draft)
    check_hardware(draft, device)
    check_model(draft)
    _limits(draft)
    _impossible(draft)
    _doubts(draft)
    _account(draft)
    missing = find_missing(draft, device)
    return Conditions(
        facts=tuple(draft.facts.values()),
        conflicts=tuple(draft.conflicts),
        missing=tuple(missing),
        ignored=tuple(reading.ignored),
        flags=tuple(reading.flags),
    )


_SUMS = ("hardware.device_count", "hardware.num_devices", "hardware.total_memory_bytes")


def _outranked(draft: Draft) -> None:
    """A correction replaces what it corrects, a plan a wish, a mail the one it quotes; the conflict is kept."""
    for path, candidates in draft.by_path.items():
        best = max(c.weight for c in candidates)
        lower = [c for c in candidates if c.weight < best]
        kept = [c for c in candidates if c.weight == best]
        others = [c for c in distinct(lower) if not any(same(c.value, k.value) for k in kept)]
        if not lower or path in _LISTS or (not others and path not in _SUMS):
            continue
        draft.by_path[path] = kept
        if others:
            listed = ", ".join(f"{where(c)}: {c.stated_as or c.value}" for c in (*kept, *others))
            draft.conflict(
                path,
                [c.value for c in distinct([*kept, *others])],
                kept[0].value,
                f"{listed}; the corrected, planned or newer statement is used, not the quoted or wished one",
            )


def _heads(draft: Draft) -> None:
    """ "20 people use it, about 8 at the same time": who is there gives way to who is there at once."""
    users = draft.by_path.get("workload.concurrency", [])
    at_once = [c for c in users if "headcount" not in c.tags]
    if at_once and len(at_once) < len(users):
        draft.by_path["workload.concurrency"] = at_once
        heads = [c for c in users if "headcount" in c.tags and not any(same(c.value, k.value) for k in at_once)]
        for c in distinct(heads):
            draft.reading.ignore(
                f"{c.stated_as} ({where(c)})", f"how many there are; {at_once[0].stated_as} are served at once"
            )


READING_SPEED = 10.0
"""Tokens per second; a total below this for each user is no total: nobody reads that slowly (~250 words a minute is 5.5)."""


def _unscoped_rates(draft: Draft) -> None:
    """ "At least 40 tokens/s" of a service with few users is the speed that each of them sees."""
    path = "requirements.throughput_total.limit"
    needed = _demand(draft)
    users = max((c.value for c in draft.by_path.get("workload.concurrency", []) if isinstance(c.value, int)), default=0)
    for c in [c for c in draft.by_path.get(path, []) if UNSCOPED in c.doubt]:
        # "15 tokens per second" where the load itself needs more in total
        a_user = bool(c.value and c.value < needed) or bool(
            users and c.value and (c.value / users < READING_SPEED or users == 1)
        )
        if not a_user:
            continue
        draft.by_path[path].remove(c)
        tpot = float(f"{1 / c.value:.10g}")
        draft.by_path["requirements.tpot_s.limit"].append(replace(c, path="requirements.tpot_s.limit", value=tpot))
        if c.value < needed:
            draft.reading.flag(
                "ambiguous",
                f"{c.stated_as} does not say per what; the stated load alone is {needed:.4g} output tokens/s, so it is read as the "
                "speed of one user",
            )
        elif users > 1:
            draft.reading.flag(
                "ambiguous",
                f"{c.stated_as} does not say per what; over {users} users a total would be {c.value / users:.3g} tokens/s "
                "each, so it is read as the speed of one user",
            )
    if not draft.by_path.get(path):
        draft.by_path.pop(path, None)


def _demand(draft: Draft) -> float:
    """Output tokens per second that the stated rate and output length come to; 0 where one is not stated."""
    rate = max(
        (c.value for c in draft.by_path.get("workload.request_rate", []) if isinstance(c.value, int | float)), default=0
    )
    osl = max((c.value for c in draft.by_path.get("workload.osl", []) if isinstance(c.value, int | float)), default=0)
    return float(rate * osl)


def take(draft: Draft, path: str) -> list[Candidate]:
    """Candidates of `path`, taken off the list so that the general rule leaves them alone."""
    return draft.by_path.pop(path, [])


def same(a: Any, b: Any) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float) and not isinstance(a, bool):
        return abs(a - b) <= 1e-6 * max(abs(a), abs(b))
    return bool(a == b)


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    out: list[Candidate] = []
    for c in candidates:
        if not any(same(c.value, o.value) for o in out):
            out.append(c)
    return out


def where(c: Candidate) -> str:
    """ "first_token_latency_p99_ms" or "conditions.md line 12"."""
    return c.key.split(".")[-1] if c.key and len(c.key) < 70 else f"{c.file} line {c.line}"


def _ignored_paths(draft: Draft) -> None:
    whys = {
        "ignore.host_memory": "host memory does not bound the plan",
        "ignore.disk": "storage does not enter the plan",
        "ignore.price": "not the price of a device for an hour; costs are reported, not planned for",
        "ignore.power": "power is not planned for",
        "ignore.activation_memory": "activation memory is counted from the operator graph",
    }
    priced = {(c.file, c.line, c.quote) for c in draft.reading.candidates if "price" in c.tags}
    for path, why in whys.items():
        for c in take(draft, path):
            if path == "ignore.price" and (c.file, c.line, c.quote) in priced:
                continue
            draft.reading.ignore(c.leaf or c.key or c.stated_as, f"{why} ({c.stated_as})")


# ---------------------------------------------------------------- the general rule


def _settle(draft: Draft, path: str, candidates: list[Candidate]) -> None:
    stated = [c for c in candidates if "absent" not in c.tags]
    options = distinct(stated or candidates)
    if len(options) == 1:
        draft.put(options[0].fact(path=path))
        return
    chosen, why = _choose(path, options)
    listed = ", ".join(f"{where(c)}: {c.stated_as or c.value}" for c in options[:MAX_LISTED])
    listed += f" and {len(options) - MAX_LISTED} more" if len(options) > MAX_LISTED else ""
    draft.conflict(path, [c.value for c in options], chosen.value, f"{listed}; {why}")
    draft.put(chosen.fact(path=path))


def _choose(path: str, options: list[Candidate]) -> tuple[Candidate, str]:
    numeric = all(isinstance(c.value, int | float) for c in options)
    if path.startswith("requirements.") and numeric:
        if ".throughput" in path or path.endswith("memory_reserve"):
            return max(options, key=lambda c: c.value), "the stricter one is planned for"
        if path.endswith("utilisation_target"):
            return options[-1], "the later one is reported against"
        return min(options, key=lambda c: c.value), "the stricter one is planned for"
    if path == "model.name":
        return options[0], "the one named first is planned for"
    if path == "workload.max_context" and numeric:
        return max(options, key=lambda c: c.value), "the larger one bounds the KV cache"
    if path in ("workload.isl", "workload.osl") and numeric:
        return max(options, key=lambda c: c.value), "the longer one is planned for"
    if path in ("workload.concurrency", "workload.request_rate") and numeric:
        return max(options, key=lambda c: c.value), "the larger load is planned for"
    config = [c for c in options if "config" in c.tags]
    if path.startswith("model.") and config:
        return config[-1], "the model's own config wins"
    return options[-1], "the later statement is used"


# ---------------------------------------------------------------- hardware


def _device(draft: Draft) -> Device | None:
    """The device named, with a stated memory size as the hint between variants; pools when several are counted."""
    named = take(draft, "hardware.device")
    if not named:
        return None
    memory = [c.value for c in draft.by_path.get("hardware.memory_bytes", []) if isinstance(c.value, int | float)]
    found: list[tuple[Candidate, Device | None]] = []
    for c in named:
        try:
            own = _memory_beside(draft, c, memory)
            if "instance" in c.tags:
                found.append((c, catalog.device_by_id(c.value)))
                continue
            match = catalog.load_device(c.stated_as, own)
            found.append((c, _as_named(c, own) or match.device))
            if match.note and not memory:
                draft.reading.flag("device-variant", match.note)
        except ToolError as error:
            found.append((c, None))
            draft.reading.flag("unknown-device", str(error))
    ids = {d.id: (c, d) for c, d in reversed(found) if d is not None}
    choice = _candidates(draft, ids)
    if len(ids) > 1 and not choice and _pools(draft, {d.id: (c, d) for c, d in found if d is not None}):
        return next(d for _, d in found if d is not None)
    known = [(c, d) for c, d in found if d is not None]
    chosen, device = (known or found)[0]
    if len(ids) > 1:
        names = [d.id for d in {d.id: d for _, d in known}.values()]
        draft.conflict(
            "hardware.device",
            names,
            names[0],
            f"{', '.join(sorted({c.stated_as for c, _ in known}))} are named; the first is planned for"
            + (
                " if it is the better choice: each is searched, and the plan says which one it is for" if choice else ""
            ),
        )
    draft.put(chosen.fact(value=device.id if device else chosen.value, path="hardware.device"))
    return device


def _candidates(draft: Draft, ids: dict[str, tuple[Candidate, Device]]) -> bool:
    """ "H100 or H20?": whether several devices are named to choose from; each keeps the count stated for it."""
    named = take(draft, CANDIDATES)
    rows = {row["device"]: row for c in reversed(named) for row in reversed(c.value) if row["device"] in ids}
    choice = list(reversed(rows))
    if len(choice) < 2:
        return False
    own = {i: rows[i]["count"] for i in choice if "count" in rows[i]}
    if len(own) > 1:
        # Counts of the others are not of this cluster.
        counts = draft.by_path.get("hardware.device_count", [])
        others = {n for i, n in own.items() if i != choice[0]} - {own.get(choice[0])}
        draft.by_path["hardware.device_count"] = [k for k in counts if k.value not in others] or [
            replace(named[0], path="hardware.device_count", value=own[choice[0]], tags=())
        ]
    else:
        own = {}
    value = [{"device": i} | ({"count": own[i]} if i in own else {}) for i in choice]
    draft.put(named[0].fact(value=value, path=CANDIDATES))
    return True


def _prices(draft: Draft, device: Device | None) -> None:
    """Prices of nodes as prices of their devices."""
    per_node = draft.value("hardware.devices_per_node") or (device.devices_per_node if device else 8)
    for path in [p for p in draft.by_path if p.startswith(PRICE)]:
        draft.by_path[path] = [
            replace(c, value=float(f"{c.value / (c.factor if c.factor > 1 else per_node):.6g}"), scope="device")
            if c.scope == "node"
            else c
            for c in draft.by_path[path]
        ]


def _memory_beside(draft: Draft, c: Candidate, stated: list[Any]) -> float | None:
    """The memory stated for the device of `c`: the only one there is, or the only one on its line (of its list item)."""
    if len(set(stated)) == 1:
        return float(stated[0])
    near = {
        m.value
        for m in draft.by_path.get("hardware.memory_bytes", [])
        if isinstance(m.value, int | float)
        and m.file == c.file
        and (m.group == c.group if c.group else m.line == c.line)
    }
    return float(near.pop()) if len(near) == 1 else None


def _as_named(c: Candidate, memory: float | None) -> Device | None:
    """The part that the words around the name already settled ("A100 80GB PCIe"), unless its memory is not the stated."""
    ident = next((t[3:] for t in c.tags if t.startswith("id=")), "")
    device = catalog.device_by_id(ident) if ident in catalog.device_ids() else None
    fits = device is not None and (memory is None or abs(memory / device.memory_bytes - 1) <= catalog.MEMORY_TOLERANCE)
    return device if fits else None


def _pools(draft: Draft, ids: dict[str, tuple[Candidate, Device]]) -> bool:
    """ "4x A100 + 8x V100": every kind has its own count."""
    pools = counted_kinds(draft, ids)
    for pool in pools:
        if memory := _memory_beside(draft, ids[pool["device"]][0], []):
            pool["memory_bytes"] = memory
    if len(pools) < 2:
        return False
    _nodes_of_pools(draft, pools)
    first = next(iter(ids.values()))[0]
    text = " + ".join(f"{p['count']}× {p['device']}" for p in pools)
    draft.put(
        Fact(
            path="hardware.pools",
            value=pools,
            stated_as=text,
            evidence=Evidence(file=first.file, line=first.line, quote=first.quote),
        )
    )
    draft.reading.flag("heterogeneous", f"{text}: one pool per kind; {sum(p['count'] for p in pools)} devices in all")
    draft.put(first.fact(value=next(iter(ids)), path="hardware.device"))
    take(draft, "hardware.device_count")
    # memory and speed of one kind never describe another
    for path in ("hardware.memory_bytes", "hardware.memory_bandwidth"):
        own = [k for k in take(draft, path) if k.file == first.file and k.line == first.line]
        if own:
            draft.by_path[path] = own
    draft.put(
        first.fact(value=sum(p["count"] for p in pools), path="hardware.num_devices").model_copy(
            update={"origin": "derived", "stated_as": text}
        )
    )
    return True


def _nodes_of_pools(draft: Draft, pools: list[dict[str, Any]]) -> None:
    """Numbers of nodes that are of one kind say nothing about all of them; a size that all nodes share does."""
    each = {p["devices_per_node"] for p in pools if "devices_per_node" in p}
    if not each:
        return
    take(draft, "hardware.num_nodes")
    if len(each) > 1:
        take(draft, "hardware.devices_per_node")
    elif not draft.by_path.get("hardware.devices_per_node"):
        of_node = [k for k in draft.by_path.get("hardware.device_count", []) if k.scope == "node"]
        if of_node:
            draft.by_path["hardware.devices_per_node"] = [
                replace(of_node[0], path="hardware.devices_per_node", scope="")
            ]


def _packages(draft: Draft, device: Device | None) -> None:
    """An MI250X or a 910C is two devices: a count of packages is doubled, their figures halved; dies are counted as such."""
    ranks = int(catalog.read_entry("hardware", device.id).get("ranks_per_package", 1)) if device else 1
    if device is None or ranks == 1:
        return
    counts = [c for path in _DEVICE_COUNTS for c in draft.by_path.get(path, []) if isinstance(c.value, int)]
    packages = [c for c in counts if not _counts_dies(draft, c, device)]
    # "4 MI250X, so the system shows 8 devices": the second count is that of the dies already
    packages = [c for c in packages if not any(c.value == ranks * o.value for o in packages)]
    for path in _DEVICE_COUNTS:
        if rows := draft.by_path.get(path):
            draft.by_path[path] = [replace(c, value=ranks * c.value) if c in packages else c for c in rows]
    for c in packages:
        draft.reading.flag(
            "packages", f"{c.stated_as} packages are {ranks * c.value} devices: {ranks} ranks in each, {device.name}"
        )
    figures = {"hardware.memory_bytes": device.memory_bytes, "hardware.memory_bandwidth": device.memory_bandwidth}
    figures |= {f"hardware.peak_flops.{d}": v for d, v in device.peak_flops.items()}
    for path, of_one in figures.items():
        if rows := draft.by_path.get(path):
            draft.by_path[path] = [
                replace(c, value=c.value / ranks) if _is_near(c.value, ranks * of_one) else c for c in rows
            ]


def _is_near(value: Any, reference: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value / reference - 1) < 0.1


def _counts_dies(draft: Draft, c: Candidate, device: Device) -> bool:
    """ "8 GCDs", "16 dies"; or the memory beside the count is that of one die."""
    behind = fold_width(c.quote).partition(fold_width(c.stated_as))[2]
    if re.match(
        r"\W*(?:(?!\d)\w+\W+){0,3}?(?:gcd|die|rank)s?\b|\W*(?:\w+\W+){0,2}?(?:个)?(?:逻辑卡|裸片|die)", behind, re.I
    ):
        return True
    beside = [m for m in draft.by_path.get("hardware.memory_bytes", []) if (m.file, m.quote) == (c.file, c.quote)]
    after = behind[:32]
    return any(_is_near(m.value, device.memory_bytes) and m.stated_as in after for m in beside)


_DEVICE_COUNTS = ("hardware.device_count", "hardware.devices_per_node", "hardware.num_devices")


def _counts(draft: Draft) -> None:
    """Nodes × devices per node = devices; a count that says neither "each" nor "total" is settled by its size."""
    if not draft.has("hardware.num_devices"):
        _scope_counts(draft)
    _drop_weak_nodes(draft)
    _add_pools(draft)
    for path in ("hardware.num_nodes", "hardware.devices_per_node", "hardware.num_devices"):
        candidates = take(draft, path)
        if candidates and not draft.has(path):
            stated = [c for c in candidates if c.origin == "stated"]
            _settle(draft, path, stated or candidates)
    nodes, each, total = (draft.value(f"hardware.{k}") for k in ("num_nodes", "devices_per_node", "num_devices"))
    if total == 1 and nodes is None and each is None:
        nodes = 1
        _derive(draft, "hardware.num_nodes", 1, "hardware.num_devices", "one device is in one node")
    if nodes and each and total is None:
        _derive(draft, "hardware.num_devices", nodes * each, "hardware.devices_per_node", f"{nodes} × {each}")
    elif isinstance(total, int) and nodes and each is None and total % nodes == 0:
        _derive(draft, "hardware.devices_per_node", total // nodes, "hardware.num_devices", f"{total} / {nodes}")
    elif isinstance(total, int) and each and nodes is None and total % each == 0:
        _derive(draft, "hardware.num_nodes", total // each, "hardware.num_devices", f"{total} / {each}")
    elif isinstance(total, int) and nodes and each and nodes * each != total:
        draft.conflict(
            "hardware.num_devices",
            (total, nodes * each),
            nodes * each,
            f"{total} devices stated, but {nodes} nodes × {each} per node = {nodes * each}",
            "hardware.num_nodes",
            "hardware.devices_per_node",
        )
        draft.put(draft.facts["hardware.num_devices"].model_copy(update={"value": nodes * each}))


def _add_pools(draft: Draft) -> None:
    """ "Prefill: 2 nodes, decode: 4 nodes" are six."""
    nodes = draft.by_path.get("hardware.num_nodes", [])
    pools = [
        distinct([c for c in nodes if name in c.tags and isinstance(c.value, int)]) for name in ("prefill", "decode")
    ]
    if all(len(p) == 1 for p in pools):
        one, other = pools[0][0], pools[1][0]
        how = f"{one.stated_as} + {other.stated_as}"
        draft.by_path["hardware.num_nodes"] = [replace(one, value=one.value + other.value, stated_as=how, tags=())]


def _drop_weak_nodes(draft: Draft) -> None:
    nodes = draft.by_path.get("hardware.num_nodes", [])
    firm = [c for c in nodes if "weak" not in c.tags]
    each = max(
        (c.value for c in draft.by_path.get("hardware.devices_per_node", []) if isinstance(c.value, int)), default=None
    )
    total = max(
        (c.value for c in draft.by_path.get("hardware.num_devices", []) if isinstance(c.value, int)), default=None
    )
    unbounded = any(c.value == "unbounded" for c in draft.by_path.get("hardware.num_devices", []))
    if firm or unbounded or (each and total and total > each):
        draft.by_path["hardware.num_nodes"] = firm


def _derive(draft: Draft, path: str, value: Any, source: str, how: str) -> None:
    draft.put(
        draft.facts[source].model_copy(update={"path": path, "value": value, "origin": "derived", "stated_as": how})
    )


def _scope_counts(draft: Draft) -> None:
    counts = take(draft, "hardware.device_count")
    nodes = next((c.value for c in draft.by_path.get("hardware.num_nodes", []) if isinstance(c.value, int)), 0)
    stated = [c for c in counts if "listed" not in c.tags] or counts
    for c in stated:
        scope = c.scope
        if not scope and nodes > 1 and isinstance(c.value, int):
            per_node = (
                c.value <= 8
                and not any(k.value > 8 for k in stated)
                and (c.value % nodes != 0 or c.value == 8 or c.value < 2 * nodes)
            )
            scope = "node" if per_node else "total"
            if c.value <= 8 or c.value % nodes:
                draft.reading.flag(
                    "ambiguous-device-count",
                    f"{c.stated_as!r} ({where(c)}) with {nodes} nodes does not say each or total; "
                    f"read as {'per node' if per_node else 'the total'}",
                )
        path = "hardware.devices_per_node" if scope == "node" else "hardware.num_devices"
        draft.by_path[path].append(replace(c, path=path))
    if (
        stated is not counts
        and not draft.by_path.get("hardware.num_devices")
        and not draft.by_path.get("hardware.devices_per_node")
    ):
        draft.by_path["hardware.num_devices"] += [replace(c, path="hardware.num_devices") for c in counts]


# ---------------------------------------------------------------- dtypes, engines, names, strategies


def _dtypes(draft: Draft) -> None:
    for path in ("model.weight_dtype", "model.kv_dtype"):
        candidates = [c for c in take(draft, path) if c.value is not None]
        if not candidates:
            continue
        quantised = [c for c in candidates if "quantised" in c.tags]
        own = [c for c in candidates if "config-dtype" not in c.tags]
        firm = quantised or [c for c in own if "optional" not in c.tags] or own or candidates
        options = distinct(firm)
        if len(options) > 1 and all("optional" not in c.tags for c in options):
            _settle(draft, path, firm)
        else:
            draft.put(options[0].fact(path=path))
        chosen = draft.value(path)
        if chosen == "fp4" and (format_ := _fp4_of(draft)):
            chosen = format_
            draft.put(draft.facts[path].model_copy(update={"value": chosen}))
            draft.reading.flag(
                "assumed-fp4", f"{path}: fp4 does not say which format; read as {chosen}, the one of the device"
            )
        allowed = [chosen] + [c.value for c in distinct(own) if c.value != chosen and "optional" in c.tags]
        if len(allowed) > 1:
            draft.put(candidates[-1].fact(value=allowed, path=f"{path}.allowed"))


def _fp4_of(draft: Draft) -> str:
    """The 4-bit float format that the device multiplies in: NVFP4 on NVIDIA, MXFP4 on AMD; empty for any other."""
    name = draft.value("hardware.device")
    if name not in catalog.device_ids():
        return ""
    entry = catalog.read_entry("hardware", name)
    computes = "fp4" in entry.get("peak_dense_tflops", {})
    return {"NVIDIA": "nvfp4", "AMD": "mxfp4"}.get(str(entry.get("vendor")), "") if computes else ""


def _engines(draft: Draft) -> None:
    candidates = list(take(draft, "engine.name"))
    named = [c for c in candidates if c.value is not None]
    if not named:
        if candidates:
            draft.put(candidates[0].fact(path="engine.name"))
        return
    first = next((c for c in named if "preferred" in c.tags), None) or next(
        (c for c in named if "alternative" not in c.tags), named[0]
    )
    draft.put(first.fact(path="engine.name"))
    others = [c for c in distinct(named) if c.value != first.value]
    if others:
        draft.put(others[0].fact(value=[c.value for c in others], path="engine.alternatives"))
        firm = [c for c in others if "alternative" not in c.tags and (c.file, c.line) != (first.file, first.line)]
        if firm and "preferred" not in first.tags:
            draft.conflict(
                "engine.name",
                [first.value, *(c.value for c in firm)],
                first.value,
                f"{first.value} is named first ({where(first)}); "
                f"{', '.join(c.value for c in firm)} kept as alternative",
            )


def _model_name(draft: Draft) -> None:
    candidates = take(draft, "model.name")
    drafts = [c for c in candidates if "draft" in c.tags]
    if drafts:
        draft.put(drafts[0].fact(path="model.draft_name"))
    named = [c for c in candidates if "draft" not in c.tags]
    if not named:
        return
    ids: dict[str, list[Candidate]] = defaultdict(list)
    for c in named:
        ids[next((t[3:] for t in c.tags if t.startswith("id=")), str(c.value))].append(c)
    # "Mixtral" in the title and "Mixtral-8x7B-Instruct-v0.1" in the text are one model: its fullest spelling is shown
    spelled = [max(cs, key=lambda c: (bool(_hint(c)), len(_bare_name(c)))) for cs in ids.values()]
    recognised = [c for c in spelled if "unrecognised" not in c.tags]
    chosen = (recognised or spelled)[0]
    chosen = replace(chosen, value=_bare_name(chosen))
    draft.put(chosen.fact(path="model.name"))
    if len(recognised) > 1:
        values = [_bare_name(c) for c in recognised]
        draft.conflict(
            "model.name",
            values,
            chosen.value,
            f"{len(values)} models are named ({', '.join(map(str, values))}); the first is planned for",
        )
    ident = next((t[3:] for t in chosen.tags if t.startswith("id=")), "")
    if ident:
        _name_hint(draft, chosen)


def _bare_name(c: Candidate) -> str:
    """The name without the Chinese words around it ("满血版 DeepSeek-R1"), where it still means the same model."""
    name = str(c.value)
    bare = re.sub(r"^[\u4e00-\u9fff\s]+|[\u4e00-\u9fff\s]+$", "", name)
    full, part = named_model(name), named_model(bare)
    return bare if full is not None and part is not None and full.name == part.name else name


def _hint(c: Candidate) -> str | None:
    try:
        return catalog.load_model(str(c.value)).weight_hint
    except ToolError:
        return None


def _name_hint(draft: Draft, chosen: Candidate) -> None:
    """A suffix like -AWQ or -FP8 states the dtype of the weights."""
    hint = _hint(chosen)
    if hint and not draft.has("model.weight_dtype"):
        draft.put(chosen.fact(value=hint, path="model.weight_dtype"))


def _strategies(draft: Draft) -> None:
    for path in _LISTS:
        candidates = take(draft, path)
        if candidates:
            merged: list[Any] = []
            for c in candidates:
                merged += [s for s in c.value if s not in merged]
            draft.put(candidates[0].fact(value=merged, path=path))
    baselines = take(draft, "baseline")
    if baselines:
        axes: dict[str, int] = {}
        for c in baselines:
            for axis, degree in c.value.items():
                if axes.get(axis, degree) != degree:
                    draft.conflict(
                        "baseline",
                        (axes[axis], degree),
                        axes[axis],
                        f"{axis} {axes[axis]} and {degree} are stated; the first is used",
                    )
                axes.setdefault(axis, degree)
        draft.put(baselines[0].fact(value=axes, path="baseline"))


def _flops_dtype(draft: Draft) -> None:
    """A peak without dtype is taken for the model's precision, and said to be so."""
    fact = draft.facts.pop("hardware.peak_flops.", None)
    if fact is None:
        return
    dtype = draft.value("model.weight_dtype") or "bf16"
    dtype = {"int4": "fp16", "mxfp4": "bf16", "nvfp4": "bf16"}.get(dtype, dtype)
    path = f"hardware.peak_flops.{dtype}"
    if path in draft.facts:
        if not same(draft.facts[path].value, fact.value):
            draft.conflict(
                path,
                (draft.facts[path].value, fact.value),
                draft.facts[path].value,
                f"{fact.stated_as} has no dtype; the one stated for {dtype} is used",
            )
        return
    draft.put(fact.model_copy(update={"path": path}))
    draft.reading.flag(
        "assumed-flops-dtype",
        f"{fact.stated_as} does not say for which dtype; taken for the model's precision, {dtype}",
    )


# ---------------------------------------------------------------- last looks


def _limits(draft: Draft) -> None:
    batch, seqs = draft.value("engine.limits.max_batch_size"), draft.value("engine.limits.max_num_seqs")
    if batch is not None and seqs is not None and batch != seqs:
        low = min(batch, seqs)
        draft.conflict(
            "engine.limits.max_batch_size",
            (batch, seqs),
            low,
            f"max_batch_size {batch} against max_num_seqs {seqs}; both bound the same thing, the smaller holds",
            "engine.limits.max_num_seqs",
            "workload.batch_size",
            "workload.concurrency",
        )


_POSITIVE = ("hardware.", "workload.", "requirements.", "model.num_", "model.hidden_size", "engine.limits.")
_MAY_BE_ZERO = (
    "workload.prefix_hit_rate",
    "workload.draft_acceptance",
    "requirements.memory_reserve",
    "requirements.balance_epsilon",
    "model.n_shared_experts",
    "model.first_k_dense_replace",
)
_HIGH = {"ttft_s": 600.0, "tpot_s": 10.0, "e2e_latency_s": 86400.0}


def _impossible(draft: Draft) -> None:
    for path, fact in list(draft.facts.items()):
        if not isinstance(fact.value, int | float) or isinstance(fact.value, bool) or not path.startswith(_POSITIVE):
            continue
        if fact.value < 0 or (fact.value == 0 and path not in _MAY_BE_ZERO):
            draft.reading.flag(
                "impossible-value", f"{path} is {fact.value:g} ({fact.stated_as!r}); it must be greater than 0"
            )
        limit = next((v for k, v in _HIGH.items() if k in path), None)
        if limit is not None and fact.value > limit:
            draft.reading.flag("suspicious-magnitude", f"{path} is {fact.value:g} s ({fact.stated_as!r}); a unit slip?")
        whole = path.split(".")[-1] in ("num_nodes", "devices_per_node", "num_devices", "batch_size", "concurrency")
        if whole and not float(fact.value).is_integer():
            draft.reading.flag(
                "impossible-value", f"{path} is {fact.value:g} ({fact.stated_as!r}); it must be a whole number"
            )


def _account(draft: Draft) -> None:
    """A key whose value stands nowhere in the result repeats another one, and that is said."""
    shown = {(f.evidence.file, f.evidence.line, f.evidence.quote) for f in draft.facts.values() if f.evidence}
    told = " ".join(c.why for c in draft.conflicts)
    covered = {c.leaf for c in draft.reading.candidates if (c.file, c.line, c.quote) in shown}
    for c in draft.reading.candidates:
        if c.leaf and c.leaf not in covered and c.key.split(".")[-1] not in told:
            kept = draft.facts.get(c.path)
            repeats = kept is not None and same(kept.value, c.value)
            why = (
                f"repeats {c.path}, which is stated elsewhere"
                if repeats
                else f"{c.path} is settled by a more specific statement"
            )
            draft.reading.ignore(c.leaf, why)


def _doubts(draft: Draft) -> None:
    """What a chosen value leaves open is said."""
    for c in draft.reading.candidates:
        fact = draft.facts.get(c.path)
        if c.doubt and fact is not None and same(fact.value, c.value):
            code = (
                "range"
                if "is a range" in c.doubt
                else "unit-missing"
                if "has no unit" in c.doubt
                else "unit-mismatch"
                if "bits" in c.doubt or "Gb" in c.doubt
                else "ambiguous"
            )
            draft.reading.flag(code, f"{c.path}: {c.doubt}")
