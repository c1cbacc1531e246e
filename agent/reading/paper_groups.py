"""Device groups as papers give them: "8 attention GPUs and 24 expert GPUs", "GPUs 0–7 run attention, 8–15 host the experts",
"M:N = 3:1", "8 张卡做注意力". Every number of devices goes to the role that stands nearest to it.
"""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.reading.paper_text import NUMBER, whole
from tools.spec.base import ToolError

DEV = r"(?:GPUs?|NPUs?|DCUs?|XPUs?|TPUs?|devices?|cards?|ranks?|accelerators?|chips?|processors?|workers?|members?|dies?|卡|设备|加速器|加速卡|处理器|芯片)"
ROLES: dict[str, str] = {
    "pool": r"pool(?:ed|s)?\b|\breserves?\b|additional|extra|helpers?|auxiliary|elastic|spare|borrowed|on[- ]demand|surge|reinforcements?|assist\w*|资源池|注意力池|池|额外|辅助|附加|备用|扩展",
    "base": r"\bbase\b|\bstanding\b|\bcore\b|\bprimary\b|\bmain\b|permanent|always[- ]on|resident|\bhome\b|基础|主(?:组|干|设备)|常驻|核心",
    "attention": r"\battention\b|\battn\b|\bMHA\b|\bMLA\b|self-attention|注意力",
    "expert": r"\bexperts?\b|\bMoE\b|\bFFNs?\b|feed[- ]?forward|专家|前馈",
    "prefill": r"(?<![A-Za-z])P(?=\s?[:：]\s)|\bprefill\w*|prompt (?:phase|processing|side)|context phase|预填充|预填",
    "decode": r"(?<![A-Za-z])D(?=\s?[:：]\s)|\bdecod\w*|generation (?:phase|side|pool|instances?|workers?)|token generation|解码|生成(?:阶段|侧|池)",
}
_ROLE = {name: re.compile(regex, re.I) for name, regex in ROLES.items()}
_ADJECTIVES = r"(?:(?!(?:and|plus|with|on|of|for|layers?|heads?|stages?|slices?|sequences?|requests?|tokens?|experts? (?:per|on|to|across|over))\b)[A-Za-z][\w/-]*[ -]+){0,4}"
_COUNT = re.compile(
    rf"(?<![A-Za-z\d.–-])(?P<n>{NUMBER})\s*(?:[×x]\s*)?[- ]?{_ADJECTIVES}{DEV}(?![A-Za-z])(?!\s*(?:per|each|/|in (?:each|a|one|every) ))"
    rf"|(?P<n1>{NUMBER})\s*(?:张|块|个|颗|片|台)\s*(?:(?:(?!\d+\s*(?:张|块|个))[\w ]){{0,14}}?)(?:{DEV})"
    rf"|(?<![A-Za-z\d.–-])(?P<n2>{NUMBER})\s*(?:[×x]\s*)?(?:NVIDIA )?(?:H100|H200|H800|H20|A100|A800|B200|GB200|MI300X|MI250X|910[BC]|L40S?|V100|RTX ?\d+)s?\b(?!\s*(?:per|each))",
    re.I,
)  # fmt: skip
_SHARE = re.compile(
    rf"(?<![A-Za-z\d.])(?P<n>{NUMBER}) of (?:the |its |all |these )*{NUMBER}\s*{_ADJECTIVES}{DEV}", re.I
)
_GLUED = re.compile(r"(?<![A-Za-z\d])(?P<a>\d+)A(?P<b>\d+)[EF](?![A-Za-z\d])")
_RANGE = re.compile(
    rf"(?:{DEV}|编号|ids?)\s*(?:#|no\.?|numbers?)?\s*(?P<a>\d+)\s*(?:–|-|—|−|~|to|through|until|\.{{2,3}}|…|至|到)\s*(?:{DEV})?\s*#?(?P<b>\d+)"
    rf"|(?<![\d.])(?P<a1>\d+)\s*(?:–|-|—|−|~|至|到)\s*(?P<b1>\d+)\s*号?\s*(?:{DEV})",
    re.I,
)
_UP_TO = re.compile(
    rf"{DEV}\s*[:=]\s*0\s*(?:–|-|—|−|~|to)\s*(?P<n>\d*[02468])(?![\d.])(?=\s*[(（,，;；.]|\s*$|\s+{DEV})", re.I
)
"""A number of devices that starts at none: "pool GPUs: 0-32". Ids that start at 0 end at an odd number."""
_MORE_RANGES = re.compile(r"(?<![\d.A-Za-z])#?(?P<a>\d+)\s*(?:–|-|—|−|~|to|至|到)\s*#?(?P<b>\d+)(?![\d.]*\d)(?!\s*(?:%|tokens|ms|s\b))", re.I)  # fmt: skip
_LIST = re.compile(
    rf"{DEV}\s*#?(?P<l>\d+(?:\s*(?:,|、|and|和)\s*(?:and\s*)?#?\d+){{1,}})(?!\s*[-–—]?\s*\d*\s*(?:{DEV}|layers))", re.I
)
_ANY_ROLE = "|".join(f"(?:{r})" for r in ROLES.values())
_SIZED = re.compile(
    rf"(?:{_ANY_ROLE})(?:[- ](?:group|side|pool|tier|part|set|size|partition|devices|GPUs|ranks|nodes))*(?:组|侧|池|大小|规模|数)*\s*(?:(?:of|is|has|with|gets|takes|uses|size|counts?|为|是|取|共)\s*)*[:=：]?\s*(?P<n>{NUMBER})(?![\d.]*\d)(?!\s*[:：]\s*\d)(?!\s?(?:[GMTK]i?B|%|ms)\b)(?!\s*[-:]?\s*(?:layers?|heads?|experts?|stages?|tokens?|sequences?|tensor|TP|PP|DP|EP|CP|路|way|个|层|头|×|x\b|of\b|nodes?|servers?|machines?|台))",
    re.I,
)
_FOR = re.compile(
    rf"(?<![\d.A-Za-z])(?P<n>{NUMBER})\s*(?:of them|of these|of which|张|块|个)?\s*(?:for|to|do|are|act as|serve as|serve|run|host|hold|用于|用来|负责|只?做|承担|作为|只?跑|只?放置?)\s*(?:the |on |only |nothing but |all )*(?={_ANY_ROLE})",
    re.I,
)
_DEGREE = re.compile(r"(?:[TPDECS]P|parallel\w*|并行|degree|度|way)\s*[=:：]?\s*$", re.I)
_RATIO = re.compile(
    r"(?<![\d:])(?P<a>\d{1,4})\s*(?::|：|to|比)\s*(?P<b>\d{1,4})(?![\d:])(?!\s*(?:pm|am))|(?P<zh>)(?!)", re.I
)
_SEPARATOR = re.compile(r"[;；,，。.、:：]|\band\b|\bplus\b|\+|而|另|与|和|、|\bwhile\b|\bwhereas\b", re.I)
_HARD = re.compile(r"[;；.。]|[,，]\s*(?:and|while|the (?:other|remaining|rest))?", re.I)


@dataclass(frozen=True, slots=True)
class Mention:
    """A number of devices at start..end of a text; `lowest` is the first id where ids are given."""

    devices: int
    start: int
    end: int
    lowest: int | None = None


def mentions(text: str) -> list[Mention]:
    """Every number of devices in a text, in order, none twice."""
    out: list[Mention] = []

    def add(m: Mention) -> None:
        if m.devices > 0 and not any(o.start < m.end and m.start < o.end for o in out):
            out.append(m)

    for m in _UP_TO.finditer(text):
        add(Mention(int(m["n"]), m.start(), m.end()))
    for m in _RANGE.finditer(text):
        a, b = (int(m["a"] or m["a1"]), int(m["b"] or m["b1"]))
        if b > a:
            add(Mention(b - a + 1, m.start(), m.end(), a))
    if out:
        for m in _MORE_RANGES.finditer(text):
            if int(m["b"]) > int(m["a"]):
                add(Mention(int(m["b"]) - int(m["a"]) + 1, m.start(), m.end(), int(m["a"])))
    for m in _LIST.finditer(text):
        ids = [int(x) for x in re.findall(r"\d+", m["l"])]
        if len(ids) > 1 and ids == sorted(set(ids)):
            add(Mention(len(ids), m.start(), m.end(), ids[0]))
    for pattern in (_SHARE, _COUNT, _SIZED, _FOR):
        for m in pattern.finditer(text):
            word = next(v for k, v in m.groupdict().items() if k[0] == "n" and v)
            if pattern is _SIZED and word.lower() in ("one", "a", "an", "single"):
                continue  # "attention of one overlaps the experts of the other"
            if pattern is _FOR and _DEGREE.search(text[: m.start()]):
                continue  # "TP 4 for prefill"
            try:
                add(Mention(whole(word), m.start(), m.end()))
            except ToolError:
                continue
    return sorted(out, key=lambda m: m.start)


def device_groups(text: str, roles: Sequence[str], total: int | None = None) -> dict[str, int]:
    """Devices of each of `roles` that the text gives a number; "the other GPUs" and ratios need the `total`."""
    if len(roles) == 2 and (ratio := _by_ratio(text, roles, total)):
        return ratio
    if "expert" in roles and "attention" in roles and (glued := _GLUED.search(text)):
        return {"attention": int(glued["a"]), "expert": int(glued["b"])}
    found = mentions(text)
    marks = [(role, m.start(), m.end()) for role in roles for m in _ROLE[role].finditer(text)]
    pairs = sorted(
        ((_cost(text, m, mark), i, mark[0]) for i, m in enumerate(found) for mark in marks), key=lambda x: x[0]
    )
    out: dict[str, int] = {}
    used: dict[int, str] = {}
    for cost, i, role in pairs:
        if cost > 110 or role in out or i in used:
            continue
        if len(found) > 1 and (_is_total(found, i) or _CALLED_TOTAL.search(text[: found[i].start])):
            continue
        out[role], used[i] = found[i].devices, role
    if len(roles) == 2 and len(out) < 2:
        out |= _the_rest(text, roles, out, total)
    return out


_CALLED_TOTAL = re.compile(r"\btotal(?:\s+(?:number|of|GPUs|devices|NPUs|ranks))*\s*[:=]?\s*$|共计?\s*$", re.I)


def _is_total(found: Sequence[Mention], i: int) -> bool:
    """ "16 GPUs, 12 for attention and 4 for experts": the first number is the sum of the others."""
    others = [m.devices for j, m in enumerate(found) if j != i]
    return len(others) > 1 and any(
        sum(c) == found[i].devices for n in range(2, len(others) + 1) for c in itertools.combinations(others, n)
    )


def _cost(text: str, m: Mention, mark: tuple[str, int, int]) -> float:
    """Distance of a number from a role's word; what separates clauses makes it longer."""
    _, start, end = mark
    if m.start <= start and end <= m.end:
        return 0.0
    between = text[m.end : start] if start >= m.end else text[end : m.start]
    hard, soft = len(_HARD.findall(between)), len(_SEPARATOR.findall(between))
    # "attention: 12 GPUs" belongs together, a comma or a full stop does not.
    glued = re.fullmatch(r"\s*(?:组|侧|池|group|side|pool|tier|devices|GPUs)?\s*[:：=|]?\s*", between) is not None
    return len(between) + (0 if glued else 30 * hard + 15 * soft + 100 * len(re.findall(r"[;；。]|\.\s", between)))


def _by_ratio(text: str, roles: Sequence[str], total: int | None) -> dict[str, int]:
    """ "attention : experts = 3 : 1" of `total` devices, in the order in which the roles are named."""
    if not re.search(r"ratio|比例|比|[A-Za-z]+\s*:\s*[A-Za-z]+\s*(?:=|of|is)", text, re.I) or not total:
        return {}
    ratio = _RATIO.search(text)
    if ratio is None or not ratio["a"]:
        return {}
    a, b = int(ratio["a"]), int(ratio["b"])
    if total % (a + b):
        return {}
    places = sorted((m.start(), role) for role in roles if (m := _ROLE[role].search(text)))
    order = [role for _, role in places] if len(places) == 2 else list(roles)
    part = total // (a + b)
    return {order[0]: a * part, order[1]: b * part}


_REST = re.compile(r"\b(?:rest|remaining|others?|remainder)\b|其余|剩余|剩下|另外", re.I)


def _the_rest(text: str, roles: Sequence[str], out: dict[str, int], total: int | None) -> dict[str, int]:
    """ "8 GPUs for attention, the others hold the experts"."""
    if len(out) == 1 and total and _REST.search(text):
        known = next(iter(out.values()))
        missing = next(r for r in roles if r not in out)
        if total > known:
            return {missing: total - known}
    return {}


def role_spans(text: str, roles: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(role, what the text says about it): the text cut where another role is turned to."""
    marks = sorted((m.start(), role) for role in roles for m in _ROLE[role].finditer(text))
    turns: list[tuple[int, str]] = []
    for at, role in marks:
        if not turns or turns[-1][1] != role:
            turns.append((at, role))
    for i, (at, role) in enumerate(turns):
        yield role, text[_clause_start(text, at, turns[i - 1][0] if i else 0) : _clause_end(text, at, turns, i)]


def _clause_start(text: str, at: int, before: int) -> int:
    """Where the clause begins that names a role: behind the last separator, so that "8 GPUs for prefill" keeps its number."""
    cuts = [m.end() for m in re.finditer(r"[;；.。,，、]|\band\b|\bwhile\b|\+|以及|，|和", text[before:at], re.I)]
    return before + cuts[-1] if cuts else (before if before == 0 else at)


def _clause_end(text: str, at: int, turns: Sequence[tuple[int, str]], i: int) -> int:
    return len(text) if i + 1 == len(turns) else _clause_start(text, turns[i + 1][0], at)


__all__ = ["DEV", "Mention", "device_groups", "mentions", "role_spans"]
