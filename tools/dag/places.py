"""Which devices a text names: `GPU 3`, `cuda:{0,1}`, `ranks 0 & 1`, and the words that one file uses for them (`R3`, `TP0/PP1`).

What a file calls its devices is inferred from the file: where hardly any node names one in the usual words, a word that
stands with a number on most nodes, or on the clusters around them, is the file's word for it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

from tools.dag.alike import KEPT, by_form, form

MAX_INDICES = 100_000
Spans = tuple[tuple[int, int], ...]
DEVICE_WORD = r"(?:GPUs?|NPUs?|XPUs?|TPUs?|DCUs?|GCDs?|cuda|dev(?:ice)?s?|ranks?|cards?|accelerators?|设备|卡)"
SEPARATORS = r"[\s_:：#=\[({-]*"
_JOIN = r"(?:,|，|、|->|=>|→|⇒|-|–|\.\.\.?|~|/|&|\+|\||and|和|to(?=\s*\d)|到(?=\s*\d))"


def index_set(text: str) -> frozenset[int]:
    """`0-3,8` → {0, 1, 2, 3, 8}"""
    if text.isdigit() and len(text) < 9:
        return _one(text)
    out: set[int] = set()
    for part in re.findall(r"\d+(?:\s*(?:-|–|\.\.\.?|~|to|到)\s*\d+)?", text):
        ends = [int(x) for x in re.findall(r"\d+", part)]
        if ends[-1] - ends[0] + len(out) < MAX_INDICES:
            out |= set(range(ends[0], ends[-1] + 1))
    return frozenset(out)


@lru_cache(maxsize=4096)
def _one(digits: str) -> frozenset[int]:
    return frozenset({int(digits)})


class Places:
    """How one file names devices: the usual words, and those that `learn` found in it.

    With several axis words (`TP`, `PP`) a device is a pair of coordinates; each pair gets an index in order of
    appearance in `coordinates`.
    """

    def __init__(self, words: Sequence[str] = (), axes: Sequence[str] = ()):
        learned = "|".join(rf"(?<![A-Za-z0-9.]){_any_digits(w)}(?:s|_rank)?" for w in words)
        word = rf"(?:{DEVICE_WORD}|{learned})" if learned else DEVICE_WORD
        # "GPU 0 (from GPU 3)": both ends of a transfer.
        to = rf"(?:{_JOIN}|\(?(?:from|to|←)(?=\s*{word}?[\s_:#]*\d))"
        numbers = rf"\d+(?:\s*{to}\s*(?:{word})?[\s_:#\[]*\d+)*"
        self.word, self.words = word, tuple(words)
        self.axes = tuple(axes)
        self.shown = words[0].upper() if words else "GPU"
        self.coordinates: dict[tuple[int, ...], int] = {}
        self.span = 0
        """Where every host counts its devices from 0: devices per host, so that device d of host h is h·span + d."""
        self._named = re.compile(rf"{word}(?:[_\s-]?ids?)?{SEPARATORS}({numbers})", re.IGNORECASE)
        self._ends = re.compile(rf"\(?(?:from|to|←)\s*(?={word})", re.IGNORECASE)
        self._strip = re.compile(rf"{word}|[\s_:#\[]", re.IGNORECASE)
        self._numbers = re.compile(rf"[\s\[({{]*({numbers})")
        starred = rf"{word}\s*[:_\[({{]?\s*\*"
        self._all = re.compile(
            r"\b(?:all|every|each)[ _-]*(?:\d+[ _-]*)?(?:(?:the|of|[tpdec]p|model|available|participating)[ _-]+)*"
            rf"{word}\b|{starred}"
            rf"|(?:全部|所有)的?\s*\d*\s*(?:个|张)?\s*{word}|\ball_(?:gpus?|devices?|ranks?)",
            re.IGNORECASE,
        )
        self._axis = [re.compile(rf"(?<![A-Za-z]){a}(?:[\s_-]?rank)?[\s_:=#-]*(\d+)", re.IGNORECASE) for a in self.axes]
        self._alone = re.compile(
            rf"[\[(<]?\s*(?:all\s+|on\s+|@\s*)?(?:{word})(?:[\d\s,、，\-–~/&+|.:：#=_\[({{*]|and\b|all\b|全部|所有|{word})*[\])>}}]*\Z",
            re.IGNORECASE,
        )
        self._where = lru_cache(maxsize=KEPT)(self._spans)
        self._says_all = lru_cache(maxsize=KEPT)(lambda form: self._all.search(form) is not None)
        self._says_only = lru_cache(maxsize=KEPT)(lambda form: self._alone.match(form) is not None)

    def find(self, text: str) -> frozenset[int] | None:
        """The devices that `text` names; None for none."""
        if self.axes:
            return self._at_coordinates(text)
        hosted, named, counted = self._where(form(text))
        if hosted:
            return frozenset(int(text[a:b]) * self.span + int(text[c:d]) for a, b, c, d in hosted)
        found: set[int] = set()
        for a, b in named:
            found |= self._indices(text[a:b])
        if not found:
            found |= {int(text[a:b]) for a, b in counted}
        return self.on_hosts(frozenset(found), hosts_in(text)) if found else None

    def _indices(self, numbers: str) -> frozenset[int]:
        return index_set(self._strip.sub("", self._ends.sub(",", numbers)))

    def _spans(self, text: str) -> tuple[tuple[tuple[int, int, int, int], ...], Spans, Spans]:
        """Where devices of hosts, devices, and counted devices stand."""
        return (
            tuple((*m.span(1), *m.span(2)) for m in _HOSTED.finditer(text)),
            tuple(m.span(1) for m in self._named.finditer(text)),
            tuple(m.span(1) for m in _COUNTED.finditer(text)),
        )

    def on_hosts(self, local: frozenset[int], hosts: frozenset[int]) -> frozenset[int]:
        """Global numbers of devices that are counted per host; numbers beyond a host's are global already."""
        if not self.span or not hosts or max(local, default=0) >= self.span:
            return local
        return frozenset(h * self.span + d for h in hosts for d in local)

    def names(self, devices: Iterable[int]) -> str:
        """`GPU 0,1`, `TP0 PP1`, `node 1 GPU 0`: devices as the file calls them."""
        found = sorted(devices)
        if self.axes:
            back = {i: c for c, i in self.coordinates.items()}
            return ", ".join(
                " ".join(f"{a.upper()}{x}" for a, x in zip(self.axes, back[i], strict=True)) for i in found
            )
        if self.span:
            return ", ".join(f"node {i // self.span} {self.shown} {i % self.span}" for i in found)
        return f"{self.shown} {_in_short(found)}"

    def _at_coordinates(self, text: str) -> frozenset[int] | None:
        stated = [[int(m[1]) for m in axis.finditer(text)] for axis in self._axis]
        if not any(stated):
            return None
        known = self.coordinates
        if all(stated):
            pairs = list(zip(*stated, strict=False)) if len({len(s) for s in stated}) == 1 else []
            return frozenset(known.setdefault(p, len(known)) for p in pairs) or None
        fits = (all(not s or p[i] in s for i, s in enumerate(stated)) for p in known)
        return frozenset(i for i, ok in zip(known.values(), fits, strict=True) if ok) or None

    def without(self, text: str) -> str:
        """The text without the devices that it names."""
        return self._named.sub(" ", text) if self._where(form(text))[1] else text

    def everywhere(self, text: str) -> bool:
        """Whether `text` says "all GPUs"."""
        return self._says_all(form(text))

    def value(self, text: str) -> frozenset[int] | None:
        """As `find`, where a keyword (`device:`) already said that a device follows: bare numbers count too."""
        m = self._numbers.match(text)
        found = self.find(text)
        if found and not (m and self.find(text[m.end() :]) is None and found <= self._indices(m[1])):
            return found
        return self._indices(m[1]) or None if m else None

    def only(self, text: str) -> bool:
        """It names devices and nothing else."""
        return self._says_only(form(text)) or (bool(self.axes) and not re.search(r"[A-Za-z]{3}", text))


def _in_short(found: list[int]) -> str:
    """`0,1,2,3`, `0-15,32`: ranges where a list would be long."""
    if len(found) <= MAX_LISTED:
        return ",".join(map(str, found))
    runs = [[found[0], found[0]]]
    for i in found[1:]:
        if i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in runs)


MAX_LISTED = 8
_HOSTED = re.compile(
    r"(?<![A-Za-z0-9])(?:node|host|server|n)[\s_#-]*(\d+)\s*[:/.]\s*(?:GPU|NPU|cuda|dev(?:ice)?|rank)?[\s_:#-]*(\d+)",
    re.IGNORECASE,
)
_COUNTED = re.compile(r"(?<![\d.])(\d{1,5})\s*(?:号|张|块|#)\s*(?:GPU|NPU|卡|设备|加速卡)", re.IGNORECASE)
_HOST = re.compile(
    r"(?<![A-Za-z])(?:nodes?|hosts?|servers?|machines?|节点|机器|服务器)[\s_#:-]*(\d+)(?!\s*(?:nodes|GPUs))",
    re.IGNORECASE,
)


def _any_digits(word: str) -> str:
    """Pattern of a word, whatever its digits are: `H100` and `H200`."""
    return re.sub(r"\d", r"\\d", re.escape(word))


def hosts_in(text: str) -> frozenset[int]:
    """`Node 1 / GPU 3` → {1}"""
    return frozenset(int(text[a:b]) for a, b in _hosts(text))


@by_form
def _hosts(text: str) -> Spans:
    return tuple(m.span(1) for m in _HOST.finditer(text))


USUAL = Places()
_WORD_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])([A-Za-z]+(?:\d+[A-Za-z]?(?=[\s#:_-]+\d))?|[一-鿿]{1,4})(?:[\s_-]?rank)?[\s:_#=\-\[({]{0,2}(\d+)(?![\d.]*[A-Za-z])"
)
NO_DEVICE = re.compile(
    r"(?:layers?|blocks?|l|h|experts?|e|heads?|x|repeats?|times|steps?|stages?|levels?|q|k|v|matmul|linear|fc|conv|seq|batch|b|s|tokens?|"
    r"nodes?|hosts?|servers?|n|mb|micro\w*|chunks?|mlp|ffn|attn|norm|ln|dim|size|phase|part|partition|shard|slice|seg|segment|group|param|weight|top|v|fig\w*|"
    r"version|bf|fp|float|int|层|第|专家|重复)\Z",
    re.IGNORECASE,
)  # fmt: skip


@by_form
def _words_with_numbers(text: str) -> tuple[tuple[int, int, int, int], ...]:
    return tuple((*m.span(1), *m.span(2)) for m in _WORD_NUMBER.finditer(text) if not NO_DEVICE.match(m[1]))


_AXES = frozenset({"tp", "pp", "dp", "ep", "cp", "sp"})
MOST = 0.5
"""Share of nodes that a file's convention covers."""


def learn(texts: Sequence[str], lanes: Iterable[str]) -> Places:
    """How the file names devices. `texts`: what each node says beside its dims; `lanes`: labels and names of clusters."""
    lanes = list(lanes)
    usual = sum(bool(USUAL.find(t)) or USUAL.everywhere(t) for t in texts)
    if usual > MOST * len(texts) or not texts:
        return USUAL
    seen: dict[str, set[str]] = defaultdict(set)
    on: Counter[str] = Counter()
    for t in texts:
        found = {(t[a:b].lower(), t[c:d]) for a, b, c, d in _words_with_numbers(t)}
        on.update({w for w, _ in found})
        for w, i in found:
            seen[w].add(i)
    boxed = Counter(m[1].lower() for t in lanes for m in _WORD_NUMBER.finditer(t))
    often = [w for w, k in on.most_common() if k > MOST * len(texts) and len(seen[w]) > 1]
    axes = [w for w in often if w in _AXES]
    if len(axes) > 1:
        places = Places(axes=axes)
        for t in texts:  # nodes that state every coordinate come first; groups that state one refer to them
            places.find(t)
        return places
    often.sort(key=lambda w: -boxed[w])
    return Places(words=often[:1]) if often else USUAL


__all__ = [
    "DEVICE_WORD",
    "MAX_INDICES",
    "MOST",
    "NO_DEVICE",
    "SEPARATORS",
    "USUAL",
    "Places",
    "hosts_in",
    "index_set",
    "learn",
]
