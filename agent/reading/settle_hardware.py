"""Which device is meant, how many of it there are, and what of them is stated: one fact each."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from agent.reading.draft import Draft, distinct, settle, take, where
from agent.reading.economics import CANDIDATES, PRICE
from agent.reading.facts import Candidate
from agent.reading.pools import counted_kinds
from knowledge import catalog
from tools.spec.base import ToolError
from tools.spec.conditions import Evidence, Fact
from tools.spec.hardware import Device
from tools.units import fold_width

# ---------------------------------------------------------------- hardware


def settle_device(draft: Draft) -> Device | None:
    """The device named, with a stated memory size as the hint between variants; pools when several are counted."""
    named = take(draft, "hardware.device")
    if not named:
        return None
    named = _chips_before_systems(named)
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
            if (part := _as_named(c, own)) is not None:  # "a v6e-16 slice"
                found.append((c, part))
                continue
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


_SYSTEM = re.compile(r"\batlas\b|\b(?:dgx|hgx)\b(?![ -]*[A-Z]{1,2}\d{2,3})", re.I)


def _chips_before_systems(named: list[Candidate]) -> list[Candidate]:
    """A server is known by the chip that is usual in it; a chip that is named itself says which one it is."""
    chips = [c for c in named if not _SYSTEM.search(c.stated_as)]
    return chips or named


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


def settle_prices(draft: Draft, device: Device | None) -> None:
    """Prices of nodes as prices of their devices."""
    per_node = draft.value("hardware.devices_per_node") or (device.devices_per_node if device else 8)
    for path in [p for p in draft.by_path if p.startswith(PRICE)]:
        draft.by_path[path] = [
            replace(c, value=float(f"{c.value / (c.factor if c.factor > 1 else per_node):.6g}"), scope="device")
            if c.scope == "node"
            else c
            for c in draft.by_path[path]
        ]


def settle_reserve(draft: Draft, device: Device | None) -> None:
    """Memory that must stay free, in bytes of each device, as the share of it that the plan may not use."""
    rows = take(draft, "done.reserved_bytes")
    stated = [c.value for c in draft.by_path.get("hardware.memory_bytes", []) if isinstance(c.value, int | float)]
    whole = stated[0] if stated else device.memory_bytes if device else None
    for c in rows:
        if whole is None or not 0 < c.value < whole:
            draft.reading.ignore(
                f"{c.stated_as} ({c.file} line {c.line})", "memory set aside that is no part of a device"
            )
            continue
        share = float(f"{c.value / whole:.6g}")
        draft.by_path["requirements.memory_reserve"].append(
            replace(c, path="requirements.memory_reserve", value=share, origin="derived")
        )


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
            evidence=_together([ids[p["device"]][0] for p in pools]),
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


def _together(said: list[Candidate]) -> Evidence:
    """The lines that say it, as one quote where they follow one another; else the first."""
    lines = {c.line: c.quote for c in said}
    first, numbers = said[0], sorted(lines)
    joined = {c.file for c in said} == {first.file} and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    if not joined:
        return Evidence(file=first.file, line=first.line, quote=first.quote)
    return Evidence(file=first.file, line=numbers[0], quote="\n".join(lines[n] for n in numbers))


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


def settle_packages(draft: Draft, device: Device | None) -> None:
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


def _chassis(draft: Draft) -> None:
    """Where sleds or trays are counted, they are the nodes and a chassis is what they stand in."""
    path = "hardware.num_nodes"
    rows = draft.by_path.get(path, [])
    outer = [c for c in rows if re.search(r"chassis|机箱", _words_behind(c), re.I)]
    inner = [c for c in rows if re.search(r"\b(?:sled|tray|blade)s?\b", _words_behind(c), re.I)]
    if outer and inner and len(distinct(outer)) == 1:
        number = outer[0].value
        draft.by_path[path] = [
            replace(c, value=c.value * number) if isinstance(c.value, int) else c for c in rows if c not in outer
        ]


def _words_behind(c: Candidate) -> str:
    return fold_width(c.quote).partition(c.stated_as)[2][:16] if c.stated_as else ""


def settle_counts(draft: Draft) -> None:
    """Nodes × devices per node = devices; a count that says neither "each" nor "total" is settled by its size."""
    _chassis(draft)
    _multiply_groups(draft)
    if not draft.has("hardware.num_devices"):
        _scope_counts(draft)
    _drop_weak_nodes(draft)
    _add_pools(draft)
    for path in ("hardware.num_nodes", "hardware.devices_per_node", "hardware.num_devices"):
        candidates = take(draft, path)
        if candidates and not draft.has(path):
            stated = [c for c in candidates if c.origin == "stated"]
            settle(draft, path, stated or candidates)
    nodes, each, total = (draft.value(f"hardware.{k}") for k in ("num_nodes", "devices_per_node", "num_devices"))
    if total == 1 and nodes is None and each is None:
        nodes = 1
        _derive(draft, "hardware.num_nodes", 1, "hardware.num_devices", "one device is in one node")
    if nodes and each and total is None:
        _derive(draft, "hardware.num_devices", nodes * each, "hardware.devices_per_node", f"{nodes} × {each}")
    elif draft.has("hardware.pools") and (each is None or nodes is None):
        pass  # nodes of several kinds need not be of one size
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


def _multiply_groups(draft: Draft) -> None:
    """ "Three racks; each holds four servers" are twelve; "two racks of 32 GPUs" are 64."""
    groups = distinct([c for c in take(draft, "hardware.num_groups") if isinstance(c.value, int)])
    for path, whole in (("hardware.num_nodes", ""), ("hardware.device_count", "total")):
        rows = draft.by_path.get(path)
        if not rows:
            continue
        draft.by_path[path] = [
            replace(c, value=groups[0].value * c.value, stated_as=f"{groups[0].stated_as} × {c.stated_as}", scope=whole)
            if c.scope == "group" and isinstance(c.value, int) and len(groups) == 1
            else replace(c, scope="" if c.scope == "group" else c.scope)
            for c in rows
        ]


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
    sought = any(c.value == "fewest_devices" for c in draft.by_path.get("objective", []))
    if sought and each and total is None:
        draft.by_path["hardware.num_nodes"] = firm  # "8 cards in a node, as few as possible" counts no nodes
        return
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
        if not scope and nodes > 1 and any(k.value == nodes * c.value for k in stated):
            scope = "node"  # "12 in all, 6 in either of the two": the counts multiply
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
