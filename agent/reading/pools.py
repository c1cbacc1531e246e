"""How many there are of each kind of device, where a cluster has several: "8 H100 and 16 A100", a list of node groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.reading.draft import Draft
    from agent.reading.facts import Candidate
    from tools.spec.hardware import Device

_NODES = (
    r"(?:nodes?|servers?|machines?|hosts?|boxes|台(?:服务器|机器|节点)?|个?节点|个?机器)\s*"
    r"(?:(?:of|with|each with|的|[,，])\s*)?(?:(?P<each>\d+)\s*(?:[x×*]|[张块片颗]|卡|gpus?\s*)?\s*)?"
)
_BEFORE = re.compile(
    rf"(?<![\d.A-Za-z])(?P<n>\d{{1,5}})\s*[-\s]?(?:(?P<nodes>{_NODES})|[x×*]|[张块片颗个]|卡)?\s*(?:的)?\s*"
    r"(?:NVIDIA|Nvidia|AMD|Huawei|Ascend|华为|昇腾|英伟达)?\s*$",
    re.I,
)
_AFTER = re.compile(
    r"^[-\s]*(?:\d+\s*GB?|SXM\d?|PCIe)?\s*[x×*:：(（]?\s*(?P<n>\d{1,5})"
    r"\s*(?:(?P<nodes>nodes?|servers?|台|个?节点)|[张块片颗个]|卡|gpus?)?\s*(?=[)）,，;；、。]|$)",
    re.I,
)
_ARE_NODES = re.compile(r"^[-\s]*(?:\d+\s*GB?\s*)?(?:nodes?\b|servers?\b|boxes\b|machines?\b|节点|服务器|机器)", re.I)


def counted_kinds(draft: Draft, ids: Mapping[str, tuple[Candidate, Device]]) -> list[dict[str, Any]]:
    """device, count (and devices_per_node where it is said) of every kind that has a number of its own; a kind without one is
    left out. Numbers come from words bound to the device, from the same list item or mapping, or from right beside its
    name."""
    out = []
    for ident, (c, device) in ids.items():
        alone = all(o.line != c.line or o.file != c.file for i, (o, _) in ids.items() if i != ident)
        found = _beside(draft, c, device) or _grouped(draft, c, device) or _bound(draft, ident, c)
        found = found or (_of_line(draft, c, device) if alone else None)
        if found is not None:
            out.append({"device": ident, **found})
    return out


def _bound(draft: Draft, ident: str, c: Candidate) -> dict[str, Any] | None:
    counts = draft.by_path.get("hardware.device_count", [])
    own = [
        k for k in counts if f"id={c.value}" in k.tags or f"id={ident}" in k.tags or (c.group and k.group == c.group)
    ]
    return {"count": own[0].value} if own else None


def _of_group(draft: Draft, name: str, group: str) -> int | None:
    found = [
        k.value for k in draft.by_path.get(f"hardware.{name}", []) if k.group == group and isinstance(k.value, int)
    ]
    return found[0] if found else None


def _grouped(draft: Draft, c: Candidate, device: Device) -> dict[str, Any] | None:
    """{"device": "H100", "num_nodes": 2, "devices_per_node": 8} in a list of node groups."""
    if not c.group:
        return None
    total, nodes, each = (_of_group(draft, k, c.group) for k in ("num_devices", "num_nodes", "devices_per_node"))
    if total is None and nodes is None:
        return None
    each = each or per_node(draft, device)
    return {"count": total or (nodes or 1) * each, "devices_per_node": each}


def _of_line(draft: Draft, c: Candidate, device: Device) -> dict[str, Any] | None:
    """The row of a table that names one device: its one number of devices, or of nodes times devices in each."""

    def own(name: str) -> int | None:
        rows = [
            k.value
            for k in draft.by_path.get(f"hardware.{name}", [])
            if (k.file, k.line, k.quote) == (c.file, c.line, c.quote)
            and isinstance(k.value, int)
            and "weak" not in k.tags
        ]
        return rows[0] if len(set(rows)) == 1 else None

    total, nodes, each = (own(k) for k in ("device_count", "num_nodes", "devices_per_node"))
    if nodes is not None and (each or total):
        size = each or total or 1
        return {"count": nodes * size, "devices_per_node": size}
    return {"count": total} if total is not None else None


def _beside(draft: Draft, c: Candidate, device: Device) -> dict[str, Any] | None:
    """ "4 nodes of H20", "16 张 A100", "A100 x 16"."""
    at = c.quote.find(c.stated_as)
    if at < 0:
        return None
    rest = c.quote[at + len(c.stated_as) :]
    m = _BEFORE.search(c.quote[:at]) or _AFTER.match(rest)
    if m is None:
        return None
    number, groups = int(m["n"]), m.groupdict()
    if not groups.get("nodes") and not (m.re is _BEFORE and _ARE_NODES.match(rest)):
        return {"count": number}
    each = int(groups["each"]) if groups.get("each") else per_node(draft, device)
    return {"count": number * each, "devices_per_node": each}


def per_node(draft: Draft, device: Device) -> int:
    """Stated for all nodes, else of the device's usual host."""
    stated: Sequence[Candidate] = [
        *draft.by_path.get("hardware.devices_per_node", []),
        *(k for k in draft.by_path.get("hardware.device_count", []) if k.scope == "node"),
    ]
    values = {k.value for k in stated if isinstance(k.value, int)}
    return int(values.pop()) if len(values) == 1 else device.devices_per_node


__all__ = ["counted_kinds", "per_node"]
