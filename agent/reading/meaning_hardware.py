"""What a quantity means that is said of devices, nodes and links."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from agent.reading import loose
from agent.reading.binding import Pair
from agent.reading.facts import Candidate
from agent.reading.lexicon import (
    BIDIRECTIONAL,
    GROUP_OF,
    PER_DEVICE,
    PER_GROUP,
    PER_NODE,
    SHARED_LINK,
    SPARSE,
    TERMS,
    UNIDIRECTIONAL,
    compiled,
    search,
)
from agent.reading.names import Name
from agent.reading.scene import CLAUSE, Scene, region, tidy, words_after
from tools.units import Quantity

_GENERIC_BANDWIDTH = re.compile(r"(?:带宽|bandwidth|bw)", re.I)


_ASIDE_OF_THE_LAST = re.compile(r"^\s*[(（][^()（）]*[)）]")
"""Brackets right behind an amount say something about that amount, not about the next."""


def _of_the_next(between: str, p: Pair) -> str:
    """ "HCCS 56 GB/s both ways, RoCE 200 Gb/s": what stands before the comma is said of the last amount, if the word for
    the next one comes behind it."""
    own = re.split(r"[,，;；]", between)[-1]
    return own if p.quantity.start - len(own) <= p.spot.start < p.quantity.start else between


def of_hardware(scene: Scene, p: Pair, base: Candidate, high: float | None) -> list[Candidate]:
    path, q = p.spot.term.path, p.quantity
    if path in ("hardware.intra_node_bandwidth", "hardware.pcie_bandwidth") and re.match(r"[GT]b?E\b", q.unit):
        path, base = "hardware.inter_node_bandwidth", replace(base, path="hardware.inter_node_bandwidth")
    if path in ("hardware.device_count", "hardware.num_groups", "hardware.num_nodes", "hardware.devices_per_node"):
        return _count(scene, p, base, high)
    before = region(scene, q)
    if any(o.end <= q.start for o in scene.quantities):
        before = _of_the_next(_ASIDE_OF_THE_LAST.sub("", before), p)
    words = scene.masked[: scene.label_end] + before[-40:] + words_after(scene, q)
    tags = tuple(
        t for t, w in (("both", BIDIRECTIONAL), ("one", UNIDIRECTIONAL), ("sparse", SPARSE)) if search(w).search(words)
    )
    ports = loose.ports_of_a_node(scene.text) if path == "hardware.inter_node_bandwidth" else None
    scope = (
        "node"
        if path == "hardware.inter_node_bandwidth" and (search(SHARED_LINK).search(scene.text) or ports)
        else "device"
        if q.per == "device" or _EACH_DEVICE.search(CLAUSE.split(region(scene, q))[-1])
        else "node"
        if q.per in ("node", "replica")
        or (search(PER_NODE).search(CLAUSE.split(region(scene, q))[-1] + words_after(scene, q)))
        else ""
    )
    base = replace(base, tags=tags, scope=scope, factor=max(base.factor, ports or 1))
    if path == "hardware.intra_node_bandwidth" and _says_fabric(scene, p):
        return [replace(base, path="hardware.inter_node_bandwidth")]
    if path == "hardware.memory_bandwidth":
        return [replace(base, path=_bandwidth_of(scene, p))]
    if path == "hardware.memory_bytes":
        if loose.reserved(scene, q):
            return [replace(base, path="done.reserved_bytes")]
        near = CLAUSE.split(region(scene, q))[-1] + scene.masked[: scene.label_end] + words_after(scene, q, 12)
        if re.search(
            r"\btotal\b(?! memory per)|aggregate|合计|总(?:显存|共)|overall|combined", near, re.I
        ) and not re.search(PER_DEVICE, near, re.I):
            return [replace(base, path="hardware.total_memory_bytes", value=base.value * q.factor)]
        both = [base]
        if q.factor > 1:
            both.append(replace(base, path="hardware.device_count", value=q.factor))
        return both
    if path == "hardware.peak_flops":
        return [
            replace(
                base,
                path=f"hardware.peak_flops.{loose.flops_dtype(scene, min(q.start, p.spot.start), max(q.end, p.spot.end), (q.start, q.end))}",
            )
        ]
    return [base]


_FABRIC = re.compile(
    r"\b[ehnx]dr\b|(?<![A-Za-z])[ehnx]dr(?=\d)|infiniband|\bib\b|roce|ethernet|\bnics?\b|\bhcas?\b|connectx|\d ?GbE\b|\d ?GE\b",
    re.I,
)


_EACH_DEVICE = re.compile(
    r"\b(?:each|every|per) (?:gpu|card|npu|device|accelerator|chip)|每(?:张|块|个)?(?:卡|gpu|npu)", re.I
)


def _says_fabric(scene: Scene, p: Pair) -> bool:
    """ "Interconnect: 8x NDR 400Gb/s per server": a general word, and the name of a network beside the amount."""
    spelled = scene.masked[p.spot.start : p.spot.end]
    near = scene.text[max(0, p.quantity.start - 24) : p.quantity.end + 16]
    return bool(re.match(r"interconnect|互联|互连", spelled.strip(), re.I) and _FABRIC.search(near))


def _bandwidth_of(scene: Scene, p: Pair) -> str:
    """ "Bandwidth" alone is the memory's, unless a link was named just before it."""
    spelled = scene.masked[p.spot.start : p.spot.end]
    if not _GENERIC_BANDWIDTH.fullmatch(spelled.strip()):
        return p.spot.term.path
    start = min(p.spot.start, p.quantity.start)
    words = scene.masked[max(0, start - 30) : start] + " " + " ".join(scene.statement.context[-1:])
    best, place = p.spot.term.path, -1
    for term in _LINKS:
        for match in compiled(term.words).finditer(words):
            if match.start() > place:
                best, place = term.path, match.start()
    memory = [m.start() for m in re.finditer(r"memory|vram|hbm|显存", words, re.I)]
    return p.spot.term.path if memory and memory[-1] > place else best


def _count(scene: Scene, p: Pair, base: Candidate, high: float | None) -> list[Candidate]:
    """Nodes and devices; whether a device count is per node stands in the words around it."""
    path, q = p.spot.term.path, p.quantity
    value = base.value if high is None else tidy(path, high)
    doubt = base.doubt if high is None else f"{base.stated_as} is a range; planned for its upper end"
    base = replace(base, value=value, doubt=doubt)
    if not isinstance(value, int):
        # "19.60 an hour each" counts nothing; "2.5 nodes" is said to be none
        beside = p.spot.start >= q.end and p.spot.start - q.end <= 2 and p.spot.term.side != "post"
        return [replace(base, doubt=f"{base.stated_as} is no whole number")] if beside else []
    if loose.not_working(scene, q) or _is_network_card(scene, q) or _DISKS.match(scene.text, q.end):
        return []
    if _OF_A_PACKAGE.search(scene.text[: q.start]) and _DIES.match(scene.text, q.end):
        return []  # "16 cards with 2 dies each"
    named = next((n for n in scene.names if n.kind == "device" and n.start >= q.end and n.start - q.end < 14), None)
    title = named.text if named else scene.text[p.spot.start : p.spot.end] if p.spot.is_name else ""  # "DGX H200 (1x)"
    system = re.search(r"dgx|hgx", title, re.I)
    if system and path == "hardware.device_count" and p.spot.is_name:
        return [
            replace(base, path="hardware.num_nodes"),
            replace(base, path="hardware.devices_per_node", value=8, origin="derived"),
        ]
    if path == "hardware.num_nodes" and _OTHER_NODES.search(
        scene.text[q.end : max(q.end + 8, p.spot.end)].split("，")[0]
    ):
        return []
    if path == "hardware.num_nodes" and (pool := _POOL.search(CLAUSE.split(scene.text[: q.start])[-1])):
        base = replace(base, tags=("prefill" if pool["prefill"] else "decode",))
    if path == "hardware.num_nodes" and re.search(
        r"(?:nodes?|servers?|machines?|hosts?|台|节点|服务器|机器)\s*[x×*]\s*$|\b(?:nodes?|servers?|machines?|hosts?|boxes)\s+of\s*$",
        scene.masked[: q.start],
        re.I,
    ):
        return [replace(base, path="hardware.devices_per_node")]
    apiece = path == "hardware.devices_per_node" and scene.masked[p.spot.start : p.spot.end] in ("each", "apiece")
    if apiece and not any(_counts_nodes(scene, o) for o in scene.pairs):
        return []
    before = scene.masked[: scene.label_end] * (scene.label_end <= q.start) + region(scene, q)
    of_group = bool(search(PER_GROUP).search(before + q.text + words_after(scene, q, 40)) or _in_groups(before))
    if path == "hardware.num_nodes" and of_group:
        return [replace(base, scope="group")]
    if path != "hardware.device_count":
        return [base]
    if rack := _rack(scene, q, named):
        return [replace(base, path="hardware.num_devices", value=value * rack, scope="total", origin="derived")]
    if _counts_the_lot(scene, p):
        return [replace(base, path="hardware.num_nodes")]
    if loose.counts_boxes(scene, q):
        return [replace(base, path="hardware.num_nodes")]
    extra = [
        replace(base, path="hardware.num_nodes", value=int(o.value), stated_as=o.text)
        for o in scene.quantities
        if _multiplies(scene, o, q)
    ]
    extra += _nodes_that_have(scene, q, base)
    after = scene.masked[q.end : q.end + 40]
    has_nodes = any(_counts_nodes(scene, o) for o in scene.pairs) or bool(extra)
    owner = re.match(
        r"[\s\-]*(?:x|×|[张块片]|卡|gpus?|npus?|cards?)?[\s\-]*(?:\x01+)?[\s\-]*(?:\d+ ?GB?)?[\s\-]*(?:gpus?|cards?)?[\s\-]*(?:的)?[\s\-]*(?:nodes?|servers?|machines?|box|hosts?|服务器|节点|机器|机型|机\b|机[，,。])",
        after,
        re.I,
    )
    each = has_nodes and re.search(
        r"\beach\b|apiece|per (?:node|server|machine)|/node|每台|每节点", words_after(scene, q, 40), re.I
    )
    times = re.search(r"(?:(?:nodes?|servers?|台|节点|服务器)\s*[x×*]|台)\s*$", before, re.I)
    single = search(r"单机|单节点|一台|single[- ](?:node|server|machine)|^box\b").search(scene.text[: q.start])
    aside = _ASIDE_OF_NODES.search(scene.masked[: q.start])
    aside = aside if has_nodes or (aside and aside.group()[0].isascii()) else None
    scope = "node" if (search(PER_NODE).search(before) or owner or each or times or extra or single or aside) else ""
    total = search(r"total|in all|altogether|across|共|合计|总").search(scene.masked[max(0, q.start - 14) : q.end + 24])
    tags = (
        (f"id={named.value}",)
        if named and p.spot.is_name
        else tuple(f"id={n.value}" for n in scene.names if n.kind == "device" and n.start == p.spot.start)
    )
    return [replace(base, scope=scope or ("group" if of_group else "total" if total else ""), tags=tags[:1]), *extra]


_OF_A_PACKAGE = re.compile(
    r"(?:每(?:[张块颗个]卡?|卡)|(?:per|each|every) (?:gpu|card|package|chip|accelerator))\D{0,8}$|\b(?:gpus?|cards|packages|accelerators) (?:with|of)\s*$",
    re.I,
)
_DIES = re.compile(r"\s*(?:个|x|×)?\s*(?:die|gcd)s?\b", re.I)
# "4 块 7.68TB NVMe": disks
_DISKS = re.compile(
    r"\s*(?:[张块片颗个]|x|×)?\s*[\d.]+ ?[TG]i?B?\s*(?:[\w.]+ )?(?:nvme|ssd|hdd|disk|drive|硬盘|固态|盘)", re.I
)
# "two servers (8 cards, 80G)": what stands in brackets behind them is in each
_ASIDE_OF_NODES = re.compile(
    r"(?:nodes|servers|machines|hosts|boxes|台|服务器|节点|机器|\d\s*机)\s*[(（][^()（）]*$", re.I
)


def _in_groups(before: str) -> bool:
    """ "two racks of 32 GPUs", "zones with 3 nodes each"; "three racks, 12 nodes" counts all."""
    return re.search(rf"(?:{GROUP_OF})", before, re.I) is not None


_NETWORK_BEFORE = re.compile(
    r"(?:\b(?:nics?|hca|connectx|infiniband|ethernet|roce)\b|网卡|\d\s*(?:Gb(?:it)?(?:/s|ps)|GbE)\b)[^()（）。;；]{0,40}$",
    re.I,
)
_CARD = re.compile(r"\s*(?:network |nic )?cards?\b|\s*[张块]?网?卡", re.I)


def _is_network_card(scene: Scene, q: Quantity) -> bool:
    """ "100 Gb/s between them, one card per host": said of the network, a card is a network card."""
    before, after = scene.text[max(0, q.start - 80) : q.start], scene.text[q.end : q.end + 16]
    return q.value <= 2 and bool(_NETWORK_BEFORE.search(before) and _CARD.match(after))


_OTHER_NODES = re.compile(
    r"\b(?:cpu|osd|storage|master|control[- ]plane|login|head|management|etcd|ceph)\b|存储|管理|登录|控制", re.I
)
_POOL = re.compile(
    r"(?P<prefill>prefill(?:ing)?|预填充|P ?(?:池|节点|实例))|(?P<decode>decod(?:e|ing)|解码|D ?(?:池|节点|实例))", re.I
)
_RACK = re.compile(r"NVL[ -]?(?P<size>\d{2,3})\b(?! ?GB)", re.I)


def _rack(scene: Scene, q: Quantity, named: Name | None) -> int:
    """Devices in one of the racks that `q` counts ("2 × GB200 NVL72" is 144); 0 where it counts devices."""
    size = _RACK.search(scene.text, named.start, named.end + 8) if named is not None else None
    return (
        int(size["size"])
        if size and not re.match(r"[\s-]*(?:gpus?|cards?|devices?|卡)", scene.text[size.end() :], re.I)
        else 0
    )


def _counts_the_lot(scene: Scene, p: Pair) -> bool:
    """ "8x H200 each; three of them": what was described has several devices each, so these are nodes."""
    spelled = scene.masked[p.spot.start : p.spot.end]
    earlier = [
        o for o in scene.pairs if o.quantity.end <= p.quantity.start and o.spot.term.path == "hardware.device_count"
    ]
    return bool(
        re.match(r"of (?:them|these|those)", spelled)
        and any(re.search(r"\beach\b|apiece", scene.masked[o.quantity.end : p.quantity.start]) for o in earlier)
    )


def _counts_nodes(scene: Scene, p: Pair) -> bool:
    path = p.spot.term.path
    return path == "hardware.num_nodes" or (path == "hardware.device_count" and loose.counts_boxes(scene, p.quantity))


_MAKES_WITH = re.compile(r"\s*[x×]\s*[A-Z][\w-]+(?: [\w-]+){0,3} with\s*", re.I)


def _nodes_that_have(scene: Scene, q: Quantity, base: Candidate) -> list[Candidate]:
    """The 2 of "2 x Supermicro with 8 Gaudi 3 each"."""
    before = [o for o in scene.quantities if o.integral and o.end <= q.start]
    each = re.search(r"\b(?:each|apiece)\b", scene.text[q.end : q.end + 40], re.I)
    if not before or not each or not _MAKES_WITH.fullmatch(scene.text[before[-1].end : q.start]):
        return []
    return [replace(base, path="hardware.num_nodes", value=int(before[-1].value), stated_as=before[-1].text)]


def _multiplies(scene: Scene, o: Quantity, q: Quantity) -> bool:
    """The 2 of "2×8 H20"."""
    return o.end <= q.start and o.integral and bool(re.fullmatch(r"\s*[x×*]\s*", scene.masked[o.end : q.start]))


def _links() -> tuple[Any, ...]:

    wanted = ("hardware.inter_node_bandwidth", "hardware.intra_node_bandwidth", "hardware.pcie_bandwidth")
    return tuple(t for t in TERMS if t.path in wanted)


_LINKS = _links()
