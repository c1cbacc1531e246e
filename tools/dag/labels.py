"""What a label says: its segments, devices, dims, module path and repetitions. Text in, values out; no graph.

A label is read in segments (lines, record fields, parts between ` | ` or ` -- `): the operator is the first one that is
neither a path, nor a device, nor dims.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

Dims = tuple[tuple[str, str], ...]
"""(dim, length as written); the name is empty where a length has none."""
MAX_HEAD, MAX_INDICES = 300, 100_000
MAX_LABEL = 16_000
"""Characters of a label that are read; what people can see of one is less."""
RECORDS = frozenset({"record", "mrecord"})


@dataclass(frozen=True, slots=True)
class PortFacts:
    tensor: str
    dims: Dims

    def __str__(self) -> str:
        return (
            f"{self.tensor}=" * bool(self.tensor) + "[" + ", ".join(f"{d}={n}" if d else n for d, n in self.dims) + "]"
        )


# ------------------------------------------------------------------------ text

_TAG = re.compile(r"<[^<>]*>")
_CELL = re.compile(r"\s*:?\s*<\s*/td\s*>\s*<\s*td\b[^<>]*>", re.IGNORECASE)
_BREAK = re.compile(r"<\s*(?:br|/tr|/p)\b[^<>]*>", re.IGNORECASE)
_FIELD = re.compile(r"<[^<>]*>|(?<!\\)[{}]")


@lru_cache(maxsize=65536)
def plain(label: str, name: str = "") -> str:
    """Text of a label: escapes and HTML resolved, one line per line, Markdown's escaped brackets freed."""
    if len(label) > MAX_LABEL:
        label = label[:MAX_LABEL] + (">" if label.startswith("<") else "")
    if label.startswith("<") and label.endswith(">"):
        # Cells of one row are a key and its value: "Input: [...]".
        label = html.unescape(_TAG.sub("", _BREAK.sub("\n", _CELL.sub(": ", label[1:-1]))))
    label = re.sub(r"\\[nlr]", "\n", label).replace("\\N", name)
    return label.replace("\\[", "[").replace("\\]", "]").replace("\\_", "_")


def record_text(label: str) -> str:
    """Fields of a record label, one per line, without braces and port names."""
    fields = re.split(r"(?<!\\)\|", _FIELD.sub("", label))
    return re.sub(r"\\([{}|<>])", r"\1", "\n".join(f.strip() for f in fields if f.strip()))


def words(text: str) -> str:
    return re.sub(r"[_@·]+", " ", text)


_CUT = re.compile(r"\n|\s\|{1,2}\s|\s(?:--|—|–)\s")


def segments(text: str) -> list[str]:
    return [s for part in _CUT.split(text) if (s := part.strip())]


# ------------------------------------------------------------------------ operator and module

_SEPARATORS = r"[\s_:：#=\[({-]*"
_DEVICE_WORD = r"(?:GPUs?|NPUs?|XPUs?|TPUs?|DCUs?|GCDs?|cuda|devices?|ranks?|cards?|设备|卡)"
_AFTER_HEAD = re.compile(
    rf"(?<![\s.;,|(\[·@-])[\s.;,|(\[·@-]*(?:\bon\s+)?(?:\b(?:all\s+)?{_DEVICE_WORD}\b\s*[:#=]?\s*\d"
    r"|(?<![\w-])(?:input|in|输入)\s*(?:dim\w*|shapes?|维度)?\s*[:：=])",
    re.IGNORECASE,
)
_PATH = re.compile(r"[A-Za-z_]\w*(?:\.[\w\-\[\]{}*,]+)+")
_WHOLE_PATH = re.compile(rf"{_PATH.pattern}\Z")
_TOP_MODULE = re.compile(
    r"[\[(<]?\s*(lm_head|embed_tokens|embed(?:ding)?s?|wte|wpe|ln_f|norm|sampler|sampling|router|logits_processor|"
    r"input|output|model|[a-z]+(?:_[a-z0-9]+)+)\s*[\])>]?\Z"
)
_SAID_MODULE = re.compile(r"(?:\bmodule|\bpath|模块(?:路径)?)\s*[:：=]\s*(\S+)", re.IGNORECASE)
_SAID_OPERATOR = re.compile(r"^\s*(?:op(?:erator|eration)?|name|算子|操作|名称)\s*[:：=]\s*", re.IGNORECASE)
_NOT_OPERATOR = re.compile(
    r"\s*(?:(?:input|output|in|out|global|weights?|caches?|kv cache|params?|module|path|shapes?|dims?|"
    r"输入|输出|全局|权重|模块|重复)"
    r"(?:\s*(?:tensors?|dim(?:ension)?s?|shapes?|维度|形状))?\s*[:：=]"
    rf"|[\[(<]?\s*(?:all\s+|on\s+)?{_DEVICE_WORD}(?:[\d\s,、，\-–~/&.:：#=_\[({{]|and\b|all\b|全部|所有|{_DEVICE_WORD})*[\])>]?\Z"
    r"|\(?\s*(?:repeat\w*|[×✕x])\s*[:=x×]?\s*\d+\s*(?:times)?\)?\Z)",
    re.IGNORECASE,
)


def operator_of(text: str, module: str) -> str:
    """The operator's name: the first segment that is no path, device, section or count, up to what follows in it."""
    found = segments(text)
    named = [s for s in found if _SAID_OPERATOR.match(s)]
    rest = [s for s in found if not _NOT_OPERATOR.match(s) and s.strip("[]()<> ") != module]
    head = _SAID_OPERATOR.sub("", named[0]) if named else next(iter(rest), "") or next(iter(found), "")
    return _head(head[:MAX_HEAD], module)


def _head(line: str, module: str) -> str:
    """The operator in a line that goes on with module, device or dims."""
    if module and module in line[1:]:
        line = re.sub(rf"[\s<(\[]*{re.escape(module)}[\s>)\]]*", " ", line).strip() or line
    m = _AFTER_HEAD.search(line)
    return line[: m.start()] if m and m.start() > 2 else line


def module_of(text: str) -> str:
    """Said (`Module: …`), else a line that is a dotted path, else the first dotted name outside dims and weights, else
    a line that is a top-level module (`lm_head`) beside the operator's. Empty for none."""
    if m := _SAID_MODULE.search(text):
        return m[1]
    found = segments(text)
    for s in found:
        if m := _WHOLE_PATH.match(s.strip("[]()<> ")):
            return m[0]
    for s in found:
        bare = re.sub(r"\b(?:weights?|caches?)\b\s*(?:dim\w*\s*)?[:=].*", "", _BRACKET.sub(" ", s), flags=re.IGNORECASE)
        m = re.search(rf"(?<![\w.-]){_PATH.pattern}", bare)
        if m and (m[0][0].islower() or m[0][0] == "_"):
            return m[0]
    others = [s for s in found if not _NOT_OPERATOR.match(s)]
    if len(others) > 1:
        return next((m[1] for s in others if (m := _TOP_MODULE.match(s))), "")
    return ""


# ------------------------------------------------------------------------ numbers, devices


def index_set(text: str) -> frozenset[int]:
    """`0-3,8` → {0, 1, 2, 3, 8}"""
    out: set[int] = set()
    for part in re.findall(r"\d+(?:\s*(?:-|–|\.\.|~)\s*\d+)?", text):
        ends = [int(x) for x in re.findall(r"\d+", part)]
        if ends[-1] - ends[0] + len(out) < MAX_INDICES:
            out |= set(range(ends[0], ends[-1] + 1))
    return frozenset(out)


_NUMBERS = r"\d+(?:\s*(?:,|，|、|-|–|\.\.|~|/|&|and|和)\s*(?:GPU|NPU|cuda|rank|device)?[\s_:#]*\d+)*"
_DEVICE = re.compile(rf"{_DEVICE_WORD}{_SEPARATORS}({_NUMBERS})", re.IGNORECASE)
ALL_DEVICES = re.compile(
    r"\ball[\s_-]*(?:\d+[\s_-]*)?(?:GPUs?|NPUs?|devices?|ranks?|cards?)\b|(?:全部|所有)\s*(?:GPU|NPU|设备|卡|rank)",
    re.IGNORECASE,
)


def devices_in(text: str) -> frozenset[int] | None:
    found: set[int] = set()
    for m in _DEVICE.finditer(text):
        found |= index_set(re.sub(r"(?i)GPU|NPU|cuda|rank|device|[\s_:]", "", m[1]))
    return frozenset(found) if found else None


# ------------------------------------------------------------------------ dims

_SECTION = re.compile(
    r"(?P<key>\b(?:input|output|global|in|out|weights?|caches?|params?|expected|partial|module|kernel|devices?|gpus?|kv cache)"
    r"|输入|输出|全局|权重|缓存|设备|模块|重复)s?(?:[ _-]*(?:dim(?:ension)?s?|shapes?|tensors?|维度|形状))?\s*[:：=]\s*",
    re.IGNORECASE,
)
_BARE_SECTION = re.compile(
    r"\b(?P<key>inputs?|outputs?|global|takes|gives|returns|produces)"
    r"(?:[ _-]*(?:dim(?:ension)?s?|shapes?))?\s+(?=[\[(]|\w+\s*=\s*\d|[\w.]+\s+(?:with|of)\s+\w+\s*=)",
    re.IGNORECASE,
)
_KEYS = {"in": "input", "out": "output", "输入": "input", "输出": "output", "全局": "global", "inputs": "input",
         "outputs": "output", "takes": "input", "gives": "output", "returns": "output", "produces": "output"}  # fmt: skip
_BRACKET = re.compile(
    r"(?:(?<![\w.@·#\-])(?P<tensor>[\w.@·#\-]+(?:\([^()]*\))?)\s*[=:]?\s*)?(?:\[(?P<dims>[^\[\]]*)\]|\((?P<round>[^\[\]()]*[=,][^\[\]()]*)\))"
)
_PAIR = re.compile(r"([A-Za-z_]\w*)\s*[=:]\s*([^,;\s\])]+)")
_LIST = re.compile(r"[,;，；、]")
_WITH = re.compile(r"([\w.]+)\s+(?:with|of)\s+(?=\w+\s*=)")


@lru_cache(maxsize=65536)
def sections(text: str) -> dict[str, tuple[PortFacts, ...]]:
    """Ports of `input`, `output`, `global`, as far as the text states them."""
    found = _ports_between(text, list(_SECTION.finditer(text)))
    if "input" in found and "output" in found:
        return found
    marks = sorted([*_SECTION.finditer(text), *_BARE_SECTION.finditer(text)], key=lambda m: m.start())
    return _ports_between(text, marks)


def _ports_between(text: str, marks: list[re.Match[str]]) -> dict[str, tuple[PortFacts, ...]]:
    parts: dict[str, tuple[PortFacts, ...]] = {}
    for m, following in zip(marks, [*marks[1:], None], strict=False):
        key = m["key"].lower()
        key = _KEYS.get(key, key)
        end = following.start() if following else len(text)
        if key not in ("input", "output", "global") or key in parts:
            continue
        if ports := ports_in(text[m.end() : end], one_line=key == "output" and following is None):
            parts[key] = ports
    return parts


def ports_in(text: str, *, one_line: bool = False) -> tuple[PortFacts, ...]:
    """`q=[batch_size=8, d_k=128]; [hidden=64]` → two ports; `batch_size=8, hidden=64` without brackets → one."""
    found = [PortFacts(m["tensor"] or "", _dims(m["dims"] or m["round"] or "")) for m in _BRACKET.finditer(text)]
    if found:
        return tuple(p for p in found if p.dims)
    first = next(iter(segments(text)), "") if one_line else text
    return tuple(_prose_ports(first))


def _prose_ports(text: str) -> Iterator[PortFacts]:
    """`q with heads=12, d_k=64 and k with heads=12, d_k=64` → q and k."""
    named = list(_WITH.finditer(text))
    starts = [m.end() for m in named] or [0]
    ends = [*(m.start() for m in named[1:]), len(text)]
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if pairs := tuple((d, n) for d, n in _PAIR.findall(text[start:end])):
            yield PortFacts(named[i][1] if named else "", pairs)


def _dims(text: str) -> Dims:
    out = []
    for part in _LIST.split(text):
        if not part.strip():
            continue
        name, eq, value = part.partition("=") if "=" in part else part.partition(":")
        out.append((name.strip(), value.strip()) if eq else ("", part.strip()))
    return tuple(out)


@lru_cache(maxsize=4096)
def _port_key(name: str) -> str:
    """`in_dims` → input, `output_shape` → output, `global` → global; empty for other attributes."""
    m = re.fullmatch(
        r"(inputs?|in|outputs?|out|global|whole)(?:[_-]?(?:dims?|dimensions?|shapes?|tensors?))?", name, re.IGNORECASE
    )
    return {"i": "input", "o": "output", "g": "global", "w": "global"}[m[1][0].lower()] if m else ""


def attribute_ports(attrs: Mapping[str, str], key: str) -> tuple[PortFacts, ...] | None:
    """Ports of the attribute `input`, `in_dims`, `input_shape`, … of a node."""
    for name, value in attrs.items():
        if _port_key(name) == key and (ports := ports_in(plain(value))):
            return ports
    return None


# ------------------------------------------------------------------------ repetition, layers

_TIMES = re.compile(
    r"[×✕]\s*(\d+)(?!\d|\s*(?:identical\s+)?replica)|\b(\d+)\s*[×✕](?!\s*\d)|\bx\s?(\d+)\b|\brepeat(?:s|ed)?\s*[:=x×]?\s*(\d+)|"
    r"\b(\d+)\s*(?:times|repetitions)\b|重复\s*(\d+)|共\s*(\d+)\s*层", re.IGNORECASE,
)  # fmt: skip
_RANGE = re.compile(
    r"(?:\blayers?|\bblocks?|\bh)[._\s:\[({]*(\d+\s*(?:-|–|~|\.\.|to)\s*\d+)|第?\s*(\d+\s*(?:-|–|~|到|至)\s*\d+)\s*层",
    re.IGNORECASE,
)


def repeats_in(text: str) -> int | None:
    m = _TIMES.search(text)
    return int(next(g for g in m.groups() if g)) if m else None


_PORT_LINE = re.compile(r"\s*(?:in|out)(?:put)?s?\b.*[:=\[]", re.IGNORECASE)
_MAY_REPEAT = re.compile(r"[×✕重共]|x\s?\d|\dx|repe|times", re.IGNORECASE)


def repeats_of(text: str) -> int | None:
    """As `repeats_in`, in a whole label: tensors called x2 are no repetition."""
    if not _MAY_REPEAT.search(text):
        return None
    for s in segments(text):
        if not _MAY_REPEAT.search(s) or _PORT_LINE.match(s):
            continue
        if (k := repeats_in(_BRACKET.sub(" ", s))) is not None:
            return k
    return None


def layers_in(text: str) -> frozenset[int]:
    """Layers of a stated range: `layers 0-15`, `model.layers.0-15.mlp`, `第 0 到 15 层`."""
    m = _RANGE.search(text)
    return index_set(re.sub("to|到|至|~|–", "-", m[1] or m[2])) if m else frozenset()


_NUM_LAYERS = re.compile(
    r"\bnum_(?:hidden_)?layers\s*[=:]\s*(\d+)|\b(\d+)[\s-]*(?:hidden\s+|transformer\s+|decoder\s+)?layers?\b|(\d+)\s*层",
    re.IGNORECASE,
)


def num_layers_in(text: str) -> int | None:
    """Layers of the whole model, as a title says it: `32 layers`, `num_layers=32`, `32层`."""
    m = _NUM_LAYERS.search(re.sub(_RANGE, " ", text))
    return int(next(g for g in m.groups() if g)) if m else None
