"""The hardware of a paper: device, counts and bandwidths, each with its words."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from agent.reading.paper_clauses import role_of
from agent.reading.paper_models import set_up
from agent.reading.paper_text import NUMBER, Paper, Passage, section_kind, whole
from agent.reading.sources import input_from_text
from tools.spec.base import ToolError
from tools.spec.conditions import Conditions, Fact

_DEV = r"(?:GPUs?|NPUs?|devices?|cards?|accelerators?|卡|设备)"
_PER_NODE = re.compile(
    rf"(?<![A-Za-z\d.])(?P<n>{NUMBER})(?!\s*(?:GB|GiB|TB|Gb))\s*(?:[×x]\s*)?(?:[A-Z][\w-]*\s+){{0,3}}(?:\d+\s?GB\s+)?(?:{_DEV}\s*)?(?:per|each|in each|in every|in one|/)\s*(?:node|server|machine|host|chassis|box|island)|(?:nodes?|servers?|machines?|hosts?)\s*(?:of|with|having|each with|containing|each having|carrying|,? each (?:equipped |fitted |built |configured |provided )?(?:with|of|having|containing|holding))\s*(?P<n1>{NUMBER})(?!\s*(?:pipeline|stages?|layers?|experts?|replicas?))"
    rf"|(?:each|every) (?:node|server|machine|host)\s*(?:has|with|holds|contains|of)?\s*(?P<n2>{NUMBER})|{_DEV} per (?:node|server|machine|host)\s*[:=|]?\s*(?P<n4>{NUMBER})|每(?:个|台)?(?:节点|服务器|机器|机)[^\d一-十]{{0,6}}(?P<n3>{NUMBER})\s*[张块卡个]?",
    re.I,
)  # fmt: skip
_NODES = re.compile(
    rf"(?<![A-Za-z\d.])(?P<n>{NUMBER})\s*(?:x\s*)?(?:DGX|HGX|\d+\s*[×x]\s*[A-Z][\w-]* |(?!per |each |every )\w+ )?\s*(?:nodes?|servers?|machines?|hosts?)\b(?! (?:each|apart))|(?P<n1>{NUMBER})\s*(?:台|个)(?:节点|服务器|机器)",
    re.I,
)


def read_hardware(paper: Paper) -> tuple[Fact, ...]:
    """Device, counts and bandwidths: the conditions' reader on the passages about hardware, counts read again here."""
    from agent.reading.reader import read_conditions
    from knowledge import catalog

    labelled = [p for p in paper.passages if _about_hardware(p) and role_of(p) is None]
    candidates = (
        labelled
        or [p for p in set_up(paper) if role_of(p) is None and catalog.find_devices_in_text(p.text)]
        or [
            p
            for p in paper.passages
            if catalog.find_devices_in_text(p.text) and section_kind(p.section) not in ("related", "references")
        ]
    )
    out: dict[str, Fact] = {}
    counted: dict[str, Fact] = {}
    for p in candidates:
        text = "\n" * (p.lines[0][1] - 1) + p.raw
        try:
            read = read_conditions((input_from_text(text, p.file.rsplit("/", 1)[-1] + ".txt"),))
        except ToolError:
            continue
        for f in read.under("hardware."):
            if (
                f.path not in ("hardware.num_nodes", "hardware.devices_per_node", "hardware.device_count")
                and f.evidence
            ):
                out.setdefault(
                    f.path, f.model_copy(update={"evidence": f.evidence.model_copy(update={"file": p.file})})
                )
        own = _counts(p, labelled=p in labelled)
        kinds = {ident for _, _, _, ident in catalog.find_devices_in_text(p.text)}
        both = len(kinds) < 2 and {"hardware.num_nodes", "hardware.devices_per_node"} <= {f.path for f in own}
        if both and not counted and not any(f.path == "hardware.num_devices" for f in own):
            out.pop("hardware.num_devices", None)  # a number in passing
        for f in own if both else _node_counts(read, p) or own:
            if f.path not in counted:
                out[f.path] = counted[f.path] = f  # a count read with its unit wins over a number in passing
    if (ample := out.get("hardware.num_devices")) and ample.value == "unbounded":
        del out["hardware.num_devices"]  # "adequate GPUs" decides nothing of a strategy that is given
    if total := _of_sibling_machines(candidates):
        out[total.path] = total
        out.pop("hardware.devices_per_node", None)  # machines of different kinds hold different numbers
    return tuple(_settled(out))


def _of_sibling_machines(passages: Sequence[Passage]) -> Fact | None:
    """ "Machine 1: 4 × P100", "Machine 2: 2 × RTX 3090": items of one list, each with a kind and a number of devices of its own."""
    from knowledge import catalog

    for _, group in itertools.groupby(passages, key=lambda p: (p.section, p.kind, p.label.split(" / ")[:-1])):
        items = [(p, {d for *_, d in catalog.find_devices_in_text(p.text)}, _before_device(p, [])) for p in group]
        held = [(p, kinds, counts[0]) for p, kinds, counts in items if len(kinds) == 1 and counts]
        if len(held) > 1 and len(set().union(*(k for _, k, _ in held))) == len(held):
            last = held[-1][2]
            total = sum(c.value for _, _, c in held)
            return last.model_copy(update={"path": "hardware.num_devices", "value": total, "origin": "derived"})
    return None


def _node_counts(read: Conditions, p: Passage) -> list[Fact]:
    """Nodes × devices per node as the conditions' reader has them; nothing where it has not both, or kinds are mixed."""
    from knowledge import catalog

    facts = {f.path: f for f in read.under("hardware.") if f.evidence}
    nodes, per = facts.get("hardware.num_nodes"), facts.get("hardware.devices_per_node")
    devices = {ident for _, _, _, ident in catalog.find_devices_in_text(p.text)}
    if len(devices) > 1 and (total := _of_all_kinds(p)):
        return [
            Fact(
                path="hardware.num_devices", value=total, origin="derived", evidence=p.quote(), stated_as=p.text.strip()
            )
        ]
    grid = any(_GRID.search(p.text[:start]) for start, *_ in catalog.find_devices_in_text(p.text))
    if grid or nodes is None or per is None or not isinstance(nodes.value, int) or not isinstance(per.value, int):
        return []
    own = {f.path: f.value for f in _counts(p, labelled=True)}
    if _PER_NODE.search(p.text) and own["hardware.devices_per_node"] != per.value:
        return []
    if (said := _IN_ALL.search(p.text)) and whole(said["n"]) != nodes.value * per.value:
        return []
    out = [f for f in (nodes, per, facts.get("hardware.num_devices")) if f]
    return [
        f.model_copy(update={"evidence": f.evidence.model_copy(update={"file": p.file})}) for f in out if f.evidence
    ]


def _of_all_kinds(p: Passage) -> int | None:
    """ "one node with 8 × H100, two with 8 × A100": devices of all kinds together; None where a kind has no number."""
    from knowledge import catalog

    total, before = 0, 0
    for start, end, _, _ in catalog.find_devices_in_text(p.text):
        said = re.search(
            rf"(?:(?P<n>{NUMBER}|an?)\s*(?:台|个|[×x]|nodes?|servers?|machines?|box(?:es)?)[^\d,，;；]{{0,12}}?)?(?<![A-Za-z\d.])(?P<m>{NUMBER})\s*(?:卡|张|块|[×x])?\s*(?:NVIDIA |AMD )?$",
            p.text[before:start],
            re.I,
        )
        if said is None:
            return None
        total += (whole(said["n"]) if said["n"] else 1) * whole(said["m"])
        before = end
    return total or None


_HARDWARE = re.compile(r"hardware|cluster|testbed|test bed|platform|硬件|集群|平台|实验环境", re.I)
_EQUIPMENT = re.compile(
    r"(?:the |our )?(?:devices?|accelerators?|machines?|GPUs?|NPUs?|servers?|equipment|nodes?|设备|加速卡|服务器|环境|显卡)(?: used)?",
    re.I,
)


def _about_hardware(p: Passage) -> bool:
    """By its label, or by the heading that it stands under."""
    titles = [t.strip() for t in p.label.split(" / ")]
    under = re.sub(r"^[\dIVX.]+\s*", "", p.section[-1]) if len(p.section) > 1 else ""
    return any(_HARDWARE.search(t) or _EQUIPMENT.fullmatch(t) for t in (*titles, under) if t)


_IN_ALL = re.compile(
    rf"(?:i\.e\.,?|that is,?|hence|thus|so|in (?:all|total)|altogether|together|共|总共|合计)\s*(?P<n>{NUMBER})\s*(?:张|块|个)?\s*{_DEV}",
    re.I,
)


def _counts(p: Passage, *, labelled: bool) -> list[Fact]:
    out = []
    per, nodes = _PER_NODE.search(p.text), _NODES.search(p.text)
    for path, m in (("hardware.devices_per_node", per), ("hardware.num_nodes", nodes)):
        if m:
            word = next(v for v in m.groupdict().values() if v)
            out.append(Fact(path=path, value=whole(word), stated_as=m[0].strip(), evidence=p.quote(m.start(), m.end())))
    if said := _IN_ALL.search(p.text):
        evidence = p.quote(said.start(), said.end())
        out.append(
            Fact(path="hardware.num_devices", value=whole(said["n"]), stated_as=said[0].strip(), evidence=evidence)
        )
    taken = [m.span(k) for m in (per, nodes) if m for k, v in m.groupdict().items() if v]
    out += _before_device(p, taken)
    total = re.search(
        rf"(?:number of {_DEV}|{_DEV} count|{_DEV}数量?)\s*[:：=]?\s*(?P<n>{NUMBER})|(?:up to|at most|maximum of|in total|totall?ing|最多|至多|共计?|总共)\s*(?:of )?(?P<n1>{NUMBER})(?!\s*(?:GB|TB|nodes?|servers?|machines?|per|experts?|layers?|tokens?|sequences?|requests?|heads?|[kK]\b))|(?P<n2>{NUMBER})\s*(?:{_DEV} )?(?:in total|altogether|overall)",
        p.text, re.I,
    )  # fmt: skip
    if total and (labelled or not total["n"]):
        out.append(
            Fact(
                path="hardware.num_devices",
                value=whole(total["n"] or total["n1"] or total["n2"]),
                stated_as=total[0],
                evidence=p.quote(total.start(), total.end()),
            )
        )
    return out


_OF_A_NODE = re.compile(
    r"(?:nodes?|servers?|machines?|hosts?|box(?:es)?|节点|服务器|机器|台)\s*(?:each\s*)?(?:[×x*,，]|of|with|each|every|having|\()?\s*(?:each )?(?:with |of |has |有|配备|配有|搭载|装有)?\s*$",
    re.I,
)


_GRID = re.compile(
    r"(?<![A-Za-z\d.=–-])(?P<n>\d{1,4})\s*[×x]\s*[(（]?\s*(?P<m>\d{1,2})\s*(?:[×x]\s*)?(?:NVIDIA |AMD |Huawei |Ascend |昇腾|\s)*$"
)
"""Nodes × devices of each, before the device: "3 × 8 910B"."""


def _before_device(p: Passage, taken: list[tuple[int, int]]) -> list[Fact]:
    """ "32 A100-80GB": the number in front of a device of the catalogue, unless it counts those of a node."""
    from knowledge import catalog

    for start, end, _, _ in catalog.find_devices_in_text(p.text):
        if grid := _GRID.search(p.text[:start]):
            named = (("hardware.num_nodes", "n"), ("hardware.devices_per_node", "m"))
            return [
                Fact(path=k, value=whole(grid[g]), stated_as=grid[0].strip(), evidence=p.quote(grid.start(), start))
                for k, g in named
            ]
        m = re.search(
            rf"(?<![A-Za-z\d.=–-])(?P<n>{NUMBER})\s*(?:[×x]\s*)?(?:NVIDIA |AMD |Huawei |Ascend |Tesla |GeForce |Pascal |Volta |Turing |Ampere |Hopper |Ada |昇腾|张|块|个|\s|{_DEV}\s*[(（])*$",
            p.text[:start],
        )
        if m and not any(a <= m.start("n") < b for a, b in taken):
            each = _OF_A_NODE.search(p.text[: m.start("n")])
            path = "hardware.devices_per_node" if each else "hardware.num_devices"
            if re.match(
                r"\s*(?:servers|nodes|machines|hosts|boxes)\b", p.text[end:]
            ):  # "8×H20 servers", "four DGX H100 machines"
                path = "hardware.devices_per_node" if re.search("[×x]", m[0]) else "hardware.num_nodes"
            return [Fact(path=path, value=whole(m["n"]), stated_as=m[0].strip(), evidence=p.quote(m.start(), start))]
    return []


def _settled(facts: dict[str, Fact]) -> list[Fact]:
    """nodes × devices per node = devices: two of them give the third; the stated total wins."""
    nodes, per, total = (facts.get(f"hardware.{n}") for n in ("num_nodes", "devices_per_node", "num_devices"))
    if total and total.origin != "stated" and nodes and per:
        total = None
    if total is None and nodes and per:
        facts["hardware.num_devices"] = Fact(
            path="hardware.num_devices",
            value=nodes.value * per.value,
            origin="derived",
            evidence=nodes.evidence,
            stated_as=nodes.stated_as,
        )
    elif total and per and nodes and nodes.value * per.value != total.value:
        facts["hardware.num_nodes"] = nodes.model_copy(
            update={"value": -(-total.value // per.value), "origin": "derived"}
        )
    elif total and per and not nodes:
        facts["hardware.num_nodes"] = Fact(
            path="hardware.num_nodes",
            value=-(-total.value // per.value),
            origin="derived",
            evidence=per.evidence,
            stated_as=per.stated_as,
        )
    elif total and nodes and not per and total.value % nodes.value == 0:
        facts["hardware.devices_per_node"] = Fact(
            path="hardware.devices_per_node",
            value=total.value // nodes.value,
            origin="derived",
            evidence=nodes.evidence,
            stated_as=nodes.stated_as,
        )
    return list(facts.values())
