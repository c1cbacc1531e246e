"""Keywords that one file uses and nobody else: which of its keys mean input, output, device, module path or repetition.

A key (`I=…`, `src: …`) is known by its values over all nodes: dims, paths, devices or counts. Which of two keys with dims is
the input shows along the edges, where a producer's output is its consumer's input.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from tools.dag.labels import is_path, pieces, segments
from tools.dag.places import MOST, USUAL
from tools.dag.ports import only_ports, ports_in

ALIKE = 0.8
"""Share of a key's values that have to be of one sort."""
_KEYED = re.compile(r"([^\W\d_]{1,16}(?:[ _][^\W\d_]{1,12})?)\s*[:=]\s*(\S.*)\Z")
_PLACE = re.compile(
    r"(?:\*|all\b.*|[A-Za-z]{0,8}[\s_:#-]?\d{1,4}(?:\s*[,+&/-]\s*[A-Za-z]{0,8}[\s_:#-]?\d{1,4})*)\Z", re.IGNORECASE
)
_COUNT = re.compile(r"[×x*]?\s*\d{1,4}\s*[×x]?\Z")


def own_keys(texts: Mapping[str, str], edges: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Key → the word that everybody uses for it (`Input`, `Output`, `Global`, `Device`, `Module`, `Repeat`)."""
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for node, text in texts.items():
        for s in segments(text):
            if (m := _KEYED.match(s)) and not any(k for k, _ in pieces(s)):
                said[m[1]].setdefault(node, m[2])
    out: dict[str, str] = {}
    with_dims = [k for k, values in said.items() if _mostly(values, _has_dims)]
    often = sorted((k for k in with_dims if len(said[k]) > MOST * len(texts)), key=lambda k: -len(said[k]))[:2]
    if len(often) == 2:
        out |= dict(zip(_in_order(said[often[0]], said[often[1]], often, edges), ("Input", "Output"), strict=True))
        out |= {k: "Global" for k in with_dims if k not in often}
    for key, values in said.items():
        if key in with_dims or (len(values) <= MOST * len(texts) and not _mostly(values, _COUNT.match)):
            continue
        if _mostly(values, lambda x: is_path(x)):
            out[key] = "Module"
        elif (
            len(set(values.values())) > 1
            and _mostly(values, lambda x: _PLACE.match(x) or USUAL.find(x))
            and not _same(values)
        ):
            out[key] = "Device"
        elif _mostly(values, _COUNT.match) and len(values) > 1:
            out[key] = "Repeat"
    return out


def in_usual_words(text: str, keys: Mapping[str, str]) -> str:
    """The text with its own keys replaced by the usual ones."""
    lines = []
    for s in segments(text):
        m = _KEYED.match(s)
        lines.append(f"{keys[m[1]]}: {m[2]}" if m and m[1] in keys else s)
    return "\n".join(lines)


def _mostly(values: Mapping[str, str], holds: object) -> bool:
    return bool(values) and sum(bool(holds(x)) for x in values.values()) >= ALIKE * len(values)  # type: ignore[operator]


def _has_dims(value: str) -> bool:
    return only_ports(value) and any(d for p in ports_in(value) for d, _ in p.dims)


def _same(values: Mapping[str, str]) -> bool:
    """Nearly all say the same: a count, no place."""
    return Counter(values.values()).most_common(1)[0][1] > ALIKE * len(values)


def _in_order(
    a: Mapping[str, str], b: Mapping[str, str], keys: list[str], edges: Iterable[tuple[str, str]]
) -> tuple[str, str]:
    """The two keys as (input, output): dims that leave a node have to arrive at the next one."""
    forward = backward = 0
    for src, dst in edges:
        forward += _meet(b.get(src, ""), a.get(dst, ""))
        backward += _meet(a.get(src, ""), b.get(dst, ""))
    return (keys[0], keys[1]) if forward >= backward else (keys[1], keys[0])


def _meet(given: str, taken: str) -> bool:
    return any(o.dims == i.dims for o in ports_in(given) for i in ports_in(taken))


__all__ = ["in_usual_words", "own_keys"]
