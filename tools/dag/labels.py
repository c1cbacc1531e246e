"""What a label says: its segments, dims, module path and repetitions. Text in, values out; no graph.

A label is read in segments (lines, record fields, parts between ` | ` or ` -- `), a segment in pieces: what a keyword
introduces (`Input: …`, `device=…`, `模块：…`) and what stands free. The operator is the first free piece that is neither a
path, nor a device, nor dims. Pieces repeat from node to node, so each is read once.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from tools.dag.alike import KEPT, by_form
from tools.dag.places import DEVICE_WORD, USUAL, Places, index_set
from tools.dag.ports import BRACKET, Dims, PortFacts, across_arrow, after_ports, copied, only_ports, ports_in

MAX_HEAD = 300
MAX_LABEL = 16_000
"""Characters of a label that are read; what people can see of one is less."""
MAX_WORD = 1_000
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD},}}")
RECORDS = frozenset({"record", "mrecord"})

# ------------------------------------------------------------------------ text

_TAG = re.compile(r"<[^<>]*>")
_CELL = re.compile(r"\s*:?\s*<\s*/td\s*>\s*<\s*td\b[^<>]*>", re.IGNORECASE)
_BREAK = re.compile(r"<\s*(?:br|/tr|/p|hr)\b[^<>]*>", re.IGNORECASE)
_LINE_END = re.compile(r"<\s*br\s*/?\s*>\s*", re.IGNORECASE)
_FIELD = re.compile(r"<[^<>]*>|(?<!\\)[{}]")


def plain(label: str, name: str = "") -> str:
    """Text of a label: escapes and HTML resolved, one line per line, Markdown's escaped brackets freed."""
    if "\\" not in label and "<" not in label and len(label) <= MAX_LABEL:
        return label
    return _plain(label, name)


@lru_cache(maxsize=KEPT)
def _plain(label: str, name: str) -> str:
    if len(label) > MAX_LABEL:
        label = label[:MAX_LABEL] + (">" if label.startswith("<") else "")
    if label.startswith("<") and label.endswith(">"):
        # Cells of one row are a key and its value: "Input: [...]".
        label = html.unescape(_TAG.sub("", _BREAK.sub("\n", _CELL.sub(": ", label[1:-1]))))
    elif "<" in label:
        label = _LINE_END.sub("\n", label)  # HTML in a quoted label: Graphviz prints the tag, but a line end is meant
    if "\\" not in label:
        return label
    label = re.sub(r"\\[nlr]", "\n", label).replace("\\N", name)
    return label.replace("\\[", "[").replace("\\]", "]").replace("\\_", "_")


_PLAIN_ASCII = str.maketrans("（）：，；＝［］｛｝【】⟨⟩〈〉《》\xa0　➔➜➡⟶⇒⇨➝", "():,;=[]{}[][][][]  →→→→→→→")
_DECORATED = re.compile(
    r"[（）：，；＝［］｛｝【】⟨⟩〈〉《》\xa0　⌀-⏿■-◿☀-✔✖-➿⬀-⯿\ufe0f\u200d\U0001f000-\U0001faff]|\*\*|`|^[ \t]*[-*•#»›]+\s",
    re.MULTILINE,
)
_PICTURES = re.compile(
    r"[⌀-⏿■-◿☀-✔✖-➿⬀-⯿\ufe0f\u200d\U0001f000-\U0001faff]+[ \t]?|\*\*|`|^[ \t]*[-*•#»›]+\s+", re.MULTILINE
)


def tidy(text: str) -> str:
    """Without emoji, bullets and Markdown; full-width punctuation as ASCII; of a word no more than anybody would write."""
    if len(text) > MAX_WORD:
        text = _LONG_WORD.sub(lambda m: m[0][:MAX_WORD], text)
    return _PICTURES.sub("", text.translate(_PLAIN_ASCII)) if _is_decorated(text) else text


@by_form
def _is_decorated(text: str) -> bool:
    return _DECORATED.search(text) is not None


def record_text(label: str) -> str:
    """Fields of a record label, one per line, without braces and port names."""
    fields = re.split(r"(?<!\\)\|", _FIELD.sub("", label))
    return re.sub(r"\\([{}|<>])", r"\1", "\n".join(f.strip() for f in fields if f.strip()))


_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z][a-z]{2})")


@lru_cache(maxsize=65536)
def words(text: str) -> str:
    """`q_proj` → `q proj`, `SendRecv` → `Send Recv`."""
    return _CAMEL.sub(" ", re.sub(r"[_@·]+", " ", text))


_CUT = re.compile(r"\n|\s\|{1,2}\s|\s::\s|\s(?:--|—|–)\s")


def segments(text: str) -> list[str]:
    if " " not in text and "\n" not in text and "\t" not in text:
        return [text] if text else []
    return [s for part in _CUT.split(text) if (s := part.strip())]


# ------------------------------------------------------------------------ pieces

_QUALIFIER = r"(?:[ _-]*(?:dim(?:ension)?s?|shapes?|tensors?|sizes?|types?|paths?|ids?|维度|形状|张量|大小|路径))*"
_TENSOR_NEXT = (
    rf"{_QUALIFIER}(?:[ #]+(?=[\w%.]+\s*[:=])|[ ]?[(\[](?=[\w%.]+[\])])|_?(?=\d))"
    r"(?=[\w%.]+[\])]?\s*[:=][^\n]*\w\s*[=:\[({])"
)
"""`Input q: [...]`, `in0 = ...`, `Input (q): ...`: a tensor's name between the keyword and its dims."""
_ANYWHERE = {
    "input": r"(?<![%\w.-])(?:inputs?|in)|输入",
    "output": r"(?<![%\w.-])(?:outputs?|out)|输出",
    "global": r"\bglobal|全局",
    "module": r"\bmodules?|模块",
    "device": r"\b(?:devices?|gpus?)|(?:所在)?设备",
    "other": r"\b(?:weights?|caches?|params?|expected|partial|kernel|kv cache)|权重|缓存",
    "repeats": r"重复(?:次数)?",
}
_AT_START = {
    "input": r"inp|ins|args?|arguments?|operands?|takes|consumes|from tensors?|入",
    "output": r"outs|returns?|results?|produces|yields|gives|出",
    "global": r"whole|full|unsharded|global(?:ly)?|完整",
    "module": r"(?:(?:module|layer|full|hf)[ _])?(?:path|mod|scope|target|fqn|loc|qualname)|模块路径|路径",
    "device": r"npus?|xpus?|tpus?|placement|placed on|ranks?|location|runs on|cards?|所在卡|卡|位置",
    "operator": r"op(?:erator|eration)?(?:[ _]?(?:type|name|code))?|算子|操作|名称",
    "name": r"name",
    "repeats": r"(?:num[ _])?repeat\w*|reps?|times|loop",
    "other": r"dtype|flops|memory|mem|bytes|time|latency|note|desc(?:ription)?|kind|role|category|type|comm(?:unication)?|"
    r"algorithm|strategy|num[ _]users|users|说明|备注|通信量|类型",
}  # fmt: skip
_MARK = re.compile(
    "(?:" + "|".join(rf"(?P<{k}>{v})" for k, v in _ANYWHERE.items()) + rf")s?{_QUALIFIER}\s*(?:[:=]|为)\s*"
    r"|(?:^[\s{(\[<]*|(?<=[,;|{])\s*)(?:"
    + "|".join(rf"(?P<{k}_>{v})" for k, v in _AT_START.items())
    + rf"|(?P<input__>inputs?|ins?|输入){_TENSOR_NEXT}"
    + rf"|(?P<output__>outputs?|outs?|输出){_TENSOR_NEXT}"
    rf")(?:{_QUALIFIER}\s*[:=]\s*|\s*(?=\()|(?<=[ #(\[])|(?<=[s_nt])(?=\d))",
    re.IGNORECASE,
)
_BARE_KEY = re.compile(
    rf"\W*(?:(?P<input>inputs?|ins?|takes|输入)|(?P<output>outputs?|outs?|gives|returns|produces|输出)|(?P<global>global(?:ly)?|whole|全局))"
    rf"{_QUALIFIER}(?![\w.])\s*",
    re.IGNORECASE,
)
PORTS = ("input", "output", "global")
_CHEVRON = re.compile(r"\A([A-Za-z]{2,12})>\s+")
_MAY_SAY = re.compile(r"[:=(]")


def pieces(segment: str) -> tuple[tuple[str, str], ...]:
    """(keyword, what it introduces) along a segment; the keyword is empty for what stands free."""
    if ">" in segment:
        segment = _CHEVRON.sub(r"\1: ", segment)
    return tuple([(key, segment[a:b]) for key, a, b in _cuts(segment)])


@by_form
def _cuts(segment: str) -> tuple[tuple[str, int, int], ...]:
    """As `pieces`, with the places where they begin and end."""
    whole = len(segment)
    marks = [m for m in _MARK.finditer(segment) if m.end() > m.start()] if _MAY_SAY.search(segment) else []
    if not marks:
        m = _BARE_KEY.match(segment)
        return ((m.lastgroup or "", m.end(), whole),) if m and only_ports(segment[m.end() :]) else (("", 0, whole),)
    out = [("", *_inside(segment, 0, marks[0].start()))]
    for m, following in zip(marks, [*marks[1:], None], strict=False):
        key = (m.lastgroup or "").rstrip("_")
        out.append((key, *_inside(segment, m.end(), following.start() if following else whole)))
    return tuple((k, a, b) for k, a, b in out if k or re.search(r"\w", segment[a:b]))


def _inside(text: str, a: int, b: int) -> tuple[int, int]:
    """The part from `a` to `b` without the separators at its ends."""
    part = text[a:b]
    return a + len(part) - len(part.lstrip(" ,;|")), a + len(part.rstrip(" ,;|"))


@dataclass(slots=True)
class Label:
    """What a text says in words that everybody reads alike; devices and operators are the file's own words."""

    ports: dict[str, tuple[PortFacts, ...]] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    free: list[str] = field(default_factory=list)


_VALUE = re.compile(r"%[\w.]+")
"""A value's name behind its type, as compilers print it."""


def read_label(text: str) -> Label:
    label, open_key = Label(), ""
    for segment in segments(text):
        for key, body in pieces(segment):
            if key in PORTS:
                body = copied(body)
                if found := ports_in(body):
                    label.ports[key] = (*label.ports.get(key, ()), *found)
                rest = _VALUE.sub("", after_ports(body))
                if re.search(r"\w", rest):
                    label.free.append(rest.strip(" ,;.)"))
                open_key = key
            elif key:
                if key == "operator" and is_path(body):
                    key = "module"  # exporters call the scope an operator's name
                if body:
                    label.said.setdefault(key, body)
                open_key = key if key == "other" else ""
            elif open_key and only_ports(body):
                if open_key in PORTS:
                    label.ports[open_key] = (*label.ports.get(open_key, ()), *ports_in(body))
            else:
                label.free.append(body)
                open_key = ""
    if "input" not in label.ports or "output" not in label.ports:
        _otherwise(text, label)
    return label


def _otherwise(text: str, label: Label) -> None:
    """Dims on both sides of an arrow, or in prose."""
    if "=" not in text and "[" not in text and "(" not in text and "with" not in text and "of" not in text:
        return
    if not label.ports.keys() & {"input", "output"} and (both := across_arrow(text)):
        label.ports |= {"input": both[0], "output": both[1]}
        label.free = [f for f in label.free if across_arrow(f) is None]
        return
    marks = list(_BARE_SECTION.finditer(text)) if _has_bare_section(text) else []
    for m, following in zip(marks, [*marks[1:], None], strict=False):
        key = "output" if m["out"] else "global" if m["whole"] else "input"
        part = text[m.end() : following.start() if following else len(text)]
        if key not in label.ports and (found := ports_in(part.split("\n", 1)[0] if not following else part)):
            label.ports[key] = found


_BARE_SECTION = re.compile(
    r"\b(?:(?P<in>inputs?|takes)|(?P<out>outputs?|gives|returns|produces)|(?P<whole>global))"
    r"(?:[ _-]*(?:dim(?:ension)?s?|shapes?))?\s+(?=[\[(]|\w+\s*=\s*\d|[\w.]+\s+(?:with|of)\s+\w+\s*=)",
    re.IGNORECASE,
)


@by_form
def _has_bare_section(text: str) -> bool:
    return _BARE_SECTION.search(text) is not None


@lru_cache(maxsize=4096)
def attribute_key(name: str) -> str:
    """`in_dims` → input, `device_ids` → device, `num_repeats` → repeats; empty for other attributes."""
    m = _MARK.match(name.replace("_", " ") + ": ")
    key = (m.lastgroup or "").rstrip("_") if m and m.end() >= len(name) + 1 else ""
    return "" if key == "other" else key


def attribute_ports(attrs: Mapping[str, str], key: str) -> tuple[PortFacts, ...] | None:
    """Ports of the attribute `input`, `in_dims`, `input_shape`, … of a node."""
    for name, value in attrs.items():
        if attribute_key(name) == key and (ports := ports_in(tidy(plain(value)))):
            return ports
    return None


# ------------------------------------------------------------------------ operator and module

_AFTER_HEAD = re.compile(
    rf"(?<![\s.;,|(\[·@-])[\s.;,|(\[·@-]*(?:\bon\s+)?(?:\b(?:all\s+)?{DEVICE_WORD}\b\s*[:#=\[({{]*\s*[\d*]"
    r"|(?<![\w-])(?:input|in|输入)\s*(?:dim\w*|shapes?|维度)?\s*[:：=])",
    re.IGNORECASE,
)
PATH = re.compile(r"[A-Za-z_]\w*(?:\[[\d:*\w.-]+\])?(?:\.{1,2}[\w\-\[\]{}*,:]+)+")
_WHOLE_PATH = re.compile(
    rf"@?\s*({PATH.pattern}|/[\w.\-]+(?:/[\w.\-\[\]{{}}*,:]+)+|[\w.\-]+(?:/[\w.\-\[\]{{}}*,:]+){{2,}}|/[A-Za-z_]\w*)\Z"
)
_NAMESPACE = re.compile(
    r"(?:torch|aten|prims?|linalg|nn|F|tf|jax|lax|stablehlo|mhlo|onnx|operator|dist|mesh|arith|math|func|tensor|scf|nccl|hccl|relay|tvm|"
    r"relax|np|numpy|triton|te|xla|cuda|cublas|cudnn|npu|ops?|e\.g|i\.e)[./]"
)  # fmt: skip
_TOP_MODULE = re.compile(
    r"[\[(<@]?\s*(lm_head|embed_tokens|embed(?:ding)?s?|wte|wpe|ln_f|norm|sampler|sampling|router|logits_processor|"
    r"input|output|model|[a-z]+(?:_[a-z0-9]+)+)\s*[\])>]?\Z"
)
_PLACE_IN_MODEL = re.compile(
    r"\s*(?:(?:pipeline|tensor|data|expert|[tpdec]p|transformer|decoder|encoder|micro)[\s_-]*)*"
    r"(?:stages?|layers?|blocks?|groups?|shards?|replicas?|batch|ranks?)[\s_#(\[]*\d+(?:\s*[,–-]\s*\d+)*\s*[)\]]?\s*\Z",
    re.IGNORECASE,
)
_NOT_OPERATOR = re.compile(
    rf"{_PLACE_IN_MODEL.pattern}|"
    r"\s*(?:\(?\s*(?:repeat\w*|[×✕x*])\s*[:=x×]?\s*\d+\s*(?:times|layers?|层|次)?\)?|\[?repeat\w*\s*[:=x×]*\s*\d+\]?|[\d\s.,%-]+)\s*\Z",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(r"\s*%[\w.]+\s*=\s*")


def is_path(text: str) -> bool:
    """`model.layers.0-15.mlp`, `/model/layers.0/attn`, `lm_head`; `torch.matmul` is a function."""
    m = _WHOLE_PATH.match(text.strip(" \"'()<>"))
    return bool(m and not _NAMESPACE.match(m[1])) or bool(
        re.fullmatch(r"[a-z]+(?:_[a-z0-9]+)+|[a-z][\w.]*(?:/[\w.\-]+)+|sampler", text)
    )


def operator_of(label: Label, module: str, places: Places = USUAL) -> str:
    """The operator's name: what the label calls so, else the first free piece that is no path, device or count."""
    named = label.said.get("operator")
    if not named:
        rest = (
            s for s in label.free
            if not (_is_no_operator(s) or places.only(s)) and s.strip("[]()<>@ ") != module
        )  # fmt: skip
        named = next(rest, "") or label.said.get("name", "") or next(iter(label.free), "")
        if named is not next(iter(label.free), named) and _is_place_in_model(label.free[0]) and _is_remark(named):
            named = label.free[0]  # "Layer 3", then something about it: the layer is all that it names
    named = named[:MAX_HEAD]
    if "%" in named:
        named = _ASSIGNED.sub("", named)
    if (
        named.lstrip()[:1] in ("[", "(", "<")
        and (m := _BRACKET_FIRST.match(named))
        and (places.only(m[1]) or places.everywhere(m[1]))
    ):
        named = named[m.end() :]
    return _head(named, module)


@by_form
def _is_place_in_model(piece: str) -> bool:
    return _PLACE_IN_MODEL.match(piece) is not None


@by_form
def _is_remark(piece: str) -> bool:
    """A line with numbers outside brackets, or a long one, is no operator's name behind the number of its layer."""
    bare = re.sub(r"[(\[][^()\[\]]*[)\]]", " ", piece)
    return re.search(r"\d", bare) is not None or len(bare.split()) > MAX_NAME


MAX_NAME = 5


@by_form
def _is_no_operator(piece: str) -> bool:
    return _NOT_OPERATOR.match(piece) is not None or only_ports(piece)


_BRACKET_FIRST = re.compile(r"\s*[\[(<]([^\])>]*)[\])>]\s*(?=\S)")


def _head(line: str, module: str) -> str:
    """The operator in a line that goes on with module, device or dims."""
    if module and module in line[1:] and re.search(r"[./_]", module):
        line = re.sub(rf"[\s<(\[]*{re.escape(module)}[\s>)\]]*", " ", line).strip() or line
    end = _end_of_head(line)
    return line[:end] if end > 2 else line


@by_form
def _end_of_head(line: str) -> int:
    m = _AFTER_HEAD.search(line)
    return m.start() if m else -1


def module_of(label: Label) -> str:
    """Said (`Module: …`), else a piece that is a path, else the first dotted name outside dims and weights, else a
    piece that is a top-level module (`lm_head`) beside the operator's. Empty for none."""
    if said := label.said.get("module", "").strip(" \"'()<>,}"):
        return said.split()[0].strip("\"',")
    if not any(_may_be_module(s) for s in label.free):
        return ""
    for s in label.free:
        if (m := _WHOLE_PATH.match(s.strip("[]()<>@ "))) and not _NAMESPACE.match(m[1]):
            return m[1]
    for s in label.free:
        if "." not in s:
            continue
        for m in re.finditer(rf"(?<![\w.-]){PATH.pattern}", BRACKET.sub(" ", s) if "=" in s else s):
            if (m[0][0].islower() or m[0][0] in "_L") and not _NAMESPACE.match(m[0]):
                return m[0]
    if len(label.free) > 1:
        return next((m[1] for s in label.free if (m := _TOP_MODULE.match(s))), "")
    return ""


@by_form
def _may_be_module(piece: str) -> bool:
    return "." in piece or "/" in piece or _TOP_MODULE.match(piece) is not None


# ------------------------------------------------------------------------ repetition, layers

TIMES = re.compile(
    r"(?:(?<!\d)|(?<=[-–]\d)|(?<=[-–]\d\d)|(?<=[-–]\d\d\d))[×✕]\s*(\d+)(?!\d|\s*(?:identical\s+)?replica)|\b(\d+)\s*[×✕](?!\s*\d)|\bx\s?(\d+)\b|\b(\d+)x\b(?!\s*\d)|\brepeat(?:s|ed)?\s*[:=x×]*\s*(\d+)|"
    r"\b(\d+)\s*(?:times|repetitions)\b|重复\s*(\d+)|共\s*(\d+)\s*层", re.IGNORECASE,
)  # fmt: skip
_RANGE = re.compile(
    r"(?:\blayers?|\bblocks?|\bh|\bl(?=\d))[._\s:\[({]*(\d+\s*(?:-|–|~|\.\.\.?|to|:)\s*\d+)(?!\d|(?:(?<=\s\d)|(?<=\s\d\d))[×✕x]\d)|第?\s*(\d+\s*(?:-|–|~|到|至)\s*\d+)\s*层",
    re.IGNORECASE,
)


def repeats_in(text: str) -> int | None:
    span = _times(text)
    return int(text[span[0] : span[1]]) if span else None


_MAY_REPEAT = re.compile(r"[×✕重共]|x\s?\d|\dx|repe|times", re.IGNORECASE)


@by_form
def _times(text: str) -> tuple[int, int] | None:
    m = TIMES.search(text) if _MAY_REPEAT.search(text) else None
    return m.span(m.lastindex or 0) if m else None


def repeats_of(label: Label) -> int | None:
    """As `repeats_in`, of what a label says outside its dims: tensors called x2 are no repetition."""
    if (said := label.said.get("repeats")) and (m := re.match(r"[\s×x(]*(\d+)", said)):
        return int(m[1])
    for s in label.free:
        if _may_repeat(s) and (k := repeats_in(BRACKET.sub(_kept, s))) is not None:
            return k
    return None


@by_form
def _may_repeat(text: str) -> bool:
    return _MAY_REPEAT.search(text) is not None


def _kept(m: re.Match[str]) -> str:
    """A bracket that counts (`[Repeat ×12]`) is no bracket of dims."""
    return " " if "=" in m[0] or "," in m[0] else m[0]


def layers_in(text: str) -> frozenset[int]:
    """Layers of a stated range: `layers 0-15`, `model.layers.0-15.mlp`, `第 0 到 15 层`."""
    span = _layer_range(text)
    return index_set(re.sub(r"to|到|至|~|–|:|\.{2,3}", "-", text[span[0] : span[1]])) if span else frozenset()


@by_form
def _layer_range(text: str) -> tuple[int, int] | None:
    m = _RANGE.search(text)
    return m.span(m.lastindex or 0) if m else None


_NUM_LAYERS = re.compile(
    r"\b(?:num_(?:hidden_)?|n_)?layers\s*[=:]\s*(\d+)|\b(\d+)[\s-]*(?:hidden\s+|transformer\s+|decoder\s+)?layers?\b|(\d+)\s*层",
    re.IGNORECASE,
)


def num_layers_in(text: str) -> int | None:
    """Layers of the whole model, as a title says it: `32 layers`, `num_layers=32`, `32层`."""
    m = _NUM_LAYERS.search(re.sub(_RANGE, " ", text))
    return int(next(g for g in m.groups() if g)) if m else None


__all__ = [
    "PATH", "RECORDS", "TIMES", "Dims", "Label", "PortFacts", "attribute_key", "attribute_ports", "is_path", "layers_in",
    "module_of", "num_layers_in", "operator_of", "plain", "read_label", "record_text", "repeats_in", "repeats_of", "tidy", "words",
]  # fmt: skip
