"""Names in running text: devices and models of the catalogue, engines, dtypes, parallel strategies, and numbers that are none."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from agent.reading.lexicon import DTYPES, ENGINES, compiled
from knowledge import catalog
from knowledge.instances import find_instances_in_text
from tools.spec.base import ToolError

NameKind = Literal["device", "instance", "model", "engine", "dtype", "strategy", "noise"]


@dataclass(frozen=True, slots=True)
class Name:
    kind: NameKind
    value: Any
    start: int
    end: int
    text: str


_NOISE = re.compile(
    r"https?://\S+|(?<=pcie) ?(?:gen ?)?\d(?:\.0)?(?![\d.])(?: ?x ?\d{1,2})?|(?<=pci-e) ?(?:gen ?)?\d(?:\.0)?(?![\d.])(?: ?x ?\d{1,2})?|\bgen ?\d(?: ?x\d+)?|(?:cuda|driver|cann|rocm|nccl|python|torch|pytorch|ubuntu|linux|transformers|firmware|kernel)[ :=-]*v?\d+(?:\.\d+)*"
    r"|\bv\d+(?:\.\d+)+|\b\d+\.\d+\.\d+\w*|\b(?:19|20)\d\d(?:[-/.](?:0?[1-9]|1[0-2])[-/.][0-3]?\d(?!\d)|年\d{1,2}(?:月(?:\d{1,2}日?)?)?)|(?:19|20)\d\d ?年|\b(?:gpu|npu|node|rank|device|card|节点|卡)[ _#]?(?:id[ _=:]*)?(?<=[ _#=:a-z])\d{1,2}(?!\s*[x×*]|\s*[A-Za-z%]|\d|[台张块卡层])(?=\s*[:,，)]|\s*$|-\d)"
    r"|(?<=nvlink) ?\d(?:\.0)?(?![\d.])(?!\s*[GT]B)|\bddr\d\w*|\bhbm\d\w*|\bx86(?:_64)?|\b(?:epyc|xeon|threadripper)[ -]?\w*\d\w*(?:x\d+)?|\b\d+ ?cores?\b|\bx16\b|\b\d+(?:\.\d+)?\s?[kK]?[Ww](?:atts?)?\b(?!\s*token)|\b\d+u\b|roce ?v2|\b\d+\s*(?:days?|weeks?|months?|years?|天|周|年|个月)\b",
    re.I,
)  # fmt: skip
# "Zebrafish-77B-Ultra": a word, a size in billions, suffixes; what no catalogue knows may still be a model
SIZED_NAME = re.compile(
    r"(?<![\w./-])(?:[A-Za-z][\w.-]*/)?(?!(?:moe|dense|model|llm|only|the|a)-)[A-Za-z][\w.]*(?:[-_][\w.]+)*?[-_ ]?(?:\d+x)?\d+(?:\.\d+)?[Bb](?:[-_][\w.]*\w)*(?![\w/])"
)
# families whose members no catalogue can list: "Hunyuan-Large", "Step-3", "MiniCPM3-4B"
FAMILY_NAME = re.compile(
    r"(?<![\w./-])(?:Hunyuan|HunYuan|Step|MiniCPM|Granite|ERNIE|Ernie|Jamba|Aquila|XVERSE|Skywork|TeleChat|PanGu|Pangu|Ling|LongCat|Arctic|Solar|EXAONE|"
    r"Aya|StableLM|Vicuna|Orion|TigerBot|Moonlight|Kimi|Spark|MiniMax|InternLM|Qwen|QwQ|GLM|ChatGLM|Baichuan|Yi|Gemma|Phi|OLMo|Nemotron|Falcon|Llama|Mistral|DeepSeek|Grok|Seed)"
    r"\d?(?:[-_ ](?:Large|Turbo|Pro|Lite|Plus|Max|Mini|Base|Flash|Air|Instruct|Chat)\b|[-_]?v?\d+(?:\.\d+)*[A-Za-z]*(?![\d%])|-[A-Z]\d+)(?:[-_][A-Za-z0-9.]*[A-Za-z0-9])*"
)
# devices that no catalogue lists, beside words that only devices carry
_OTHER_DEVICE = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:(?:Huawei|华为)\s*)?(?:Ascend|昇腾)[ -]?\d{3}[A-Z]?\d?|Tesla [A-Z]\d{1,3}|(?<=[\dx×*] )[PKM]\d0(?![\w%])|Inferentia ?\d?|Trainium ?\d?|MLU ?\d{3}\w*|Kunlun ?\w*\d\w*|昆仑芯? ?\w*\d\w*|"
    r"(?:GeForce |Quadro )?(?:RTX|GTX) (?:PRO )?[A-Z]?\d{4}(?: ?(?:Ti|Super|Ada))?|Instinct MI\d+\w*|MI\d{2,3}X?|Radeon (?:Pro )?\w*\d{3,4}\w*|(?:MetaX|沐曦|Iluvatar|Biren|壁仞|Enflame|燧原|Cambricon|寒武纪|Moore Threads|摩尔线程|Hygon|海光|Kunlun(?:xin)?|昆仑芯?|T-Head|平头哥|Groq|Cerebras|SambaNova|Tenstorrent|Graphcore|Rebellions|FuriosaAI)[ -]?[A-Za-z]*[ -]?\d\w*(?:[ -](?:AI|Pro|Max|Ultra|S))?|Hygon [KZ]\d+|海光 ?\w*\d+|天数 ?\w*\d+|BI-?V\d+|沐曦 ?\w*\d+|C[56]00(?= ?卡)|Gaudi ?\d)(?![A-Za-z0-9])",
    re.I,
)
_TPU_SLICE = re.compile(r"\b(?P<generation>v(?:4|5e|5p|6e|7))-\d{1,4}\b", re.I)
ENGINE_VERSION = re.compile(
    r"(?:(?:-[a-z]+)*:|\s*(?:[=>~]=|\bversion|版本(?:号)?|[(（:@])?)\s*v?(?P<v>\d+\.\d+(?:\.\w+)*)(?!\.?\w)(?!\s*(?:%|x\b|ms\b|s\b|GB|tok))",
    re.I,
)
_AXES = (
    (
        "tp",
        r"tp(?:[ _-]?size)?|tensor[ _-]?(?:model[ _-]?)?parallel(?:ism)?(?:[ _-](?:size|degree))?|张量并行(?:度|大小)?",
    ),
    (
        "pp",
        r"pp(?:[ _-]?size)?|pipeline[ _-]?(?:model[ _-]?)?parallel(?:ism)?(?:[ _-](?:size|degree))?|流水线?并行(?:度|大小)?",
    ),
    ("dp", r"dp(?:[ _-]?size)?|data[ _-]?parallel(?:ism)?(?:[ _-](?:size|degree))?|数据并行(?:度|大小)?"),
    ("ep", r"ep(?:[ _-]?size)?|expert[ _-]?parallel(?:ism)?(?:[ _-](?:size|degree))?|专家并行(?:度|大小)?"),
    ("cp", r"cp(?:[ _-]?size)?|context[ _-]?parallel(?:ism)?(?:[ _-](?:size|degree))?|上下文并行(?:度)?"),
)
_AXIS = re.compile(
    "|".join(
        rf"(?P<{a}>(?<![A-Za-z])(?:{w})\s*(?:[=:：]|of|为|is)?\s*(?P<{a}n>\d{{1,4}})(?!\d|\.\d|\s*(?:ms|s\b|%)))"
        for a, w in _AXES
    ),
    re.I,
)
_REPLICAS_BEFORE = re.compile(
    r"(?P<n>\d+|two|three|four|eight|两|三|四)\s*(?:个|组|x|×)?\s*(?:replicas?|copies|instances|副本|实例)?\s*(?:of|x|×|with|,|的)?\s*$",
    re.I,
)
_REPLICAS_AFTER = re.compile(
    r"\s*(?:[,+x×*]|with|and)?\s*(?P<n>\d+|two|three|four|eight|两|三|四)\s*(?:个|组)?\s*(?:replicas?|copies|instances|副本|实例)",
    re.I,
)
_JOIN = re.compile(r"\s*(?:[,+x×*&/·、\-]|and|with|加|和|且)?\s*", re.I)
_SMALL = {"two": 2, "three": 3, "four": 4, "eight": 8, "两": 2, "三": 3, "四": 4}
_FORM_FACTOR = re.compile(
    r"(?:\s*[(（]\s*\d+\s*G(?:i?B)?\s*[,，/]\s*|[\s-]*\d+\s*G(?:i?B)?[\s(（-]*|[\s(（-]*)(?P<form>pci-?e|sxm\d?|nvl\d*|oam)(?![A-Za-z0-9/]|[ -]*(?:only|switch|bandwidth|\d(?!\d{1,2} ?G)))",
    re.I,
)
_BARE_CARD = re.compile(
    r"(?:(?<=[双两])\s*|(?<=dual )|(?<=dual-)|(?<=twin )|\b(?:used|old|new|second[- ]hand|consumer|spare|my|our|single|this|the|a|\d+|one|two|three|four|six|eight)\s+|二手的?\s*)"
    r"(?P<card>[2-6]0[5-9]0(?:\s?(?:ti|super|d))?)(?=s?(?![A-Za-z0-9.%]|\s*(?:tok|ms|req|字|GB)))", re.I
)  # fmt: skip
_EDITION = re.compile(r"(?:\s(?:Blackwell|Max-Q|(?:Workstation|Server) Edition)\b)+", re.I)
_MEMORY_TAIL = re.compile(r"(?:[\s_-]+|(?<![A-Za-z\d]))\d+\s*G(?:i?B)?$", re.I)
"""A memory size behind a name; the 10G of an A10G is none."""


def find_names(text: str) -> list[Name]:
    """All names, left to right, not overlapping: strategies first, then models, devices, engines, dtypes, noise."""
    taken: list[Name] = []

    def add(kind: NameKind, value: Any, start: int, end: int) -> None:
        if start < end and not any(start < n.end and n.start < end for n in taken):
            taken.append(Name(kind, value, start, end, text[start:end]))

    for degrees, start, end in _strategies(text):
        add("strategy", degrees, start, end)
    for start, end, _alias, model_id in catalog.find_models_in_text(text):
        add("model", model_id, start, _attached(text, end))
    for start, end, device, count in find_instances_in_text(text):
        add("instance", (device, count), start, end)
    for start, end, ident in _devices(text):
        edition = _EDITION.match(text, end)
        end = edition.end() if edition else end
        tail = _MEMORY_TAIL.search(text[start:end])
        add("device", ident, start, start + tail.start() if tail and tail.start() > 1 else end)
        if form := _FORM_FACTOR.match(text, end):
            add("noise", form["form"], form.start("form"), form.end("form"))
    for match in _TPU_SLICE.finditer(text) if re.search(r"\btpus?\b|\bslice\b|\bpod\b", text, re.I) else ():
        if tpu := _of_form(f"TPU {match['generation']}", ""):
            add("device", tpu, match.start(), match.end())
    for match in _OTHER_DEVICE.finditer(text):
        add("device", match.group().strip(), match.start(), match.end())
    for kind, table in (("engine", ENGINES), ("dtype", DTYPES)):
        for value, words in table:
            for match in compiled(words).finditer(text):
                if kind == "dtype" and text[match.end() : match.end() + 1].isdigit():
                    continue
                add(kind, value, match.start() + len(match.group()) - len(match.group().lstrip()), match.end())  # type: ignore[arg-type]
    for engine in [n for n in taken if n.kind == "engine"]:
        if version := ENGINE_VERSION.match(text, engine.end):
            add("noise", version["v"], engine.end, version.end())
    for match in _NOISE.finditer(text):
        add("noise", match.group(), match.start(), match.end())
    return sorted(taken, key=lambda n: n.start)


def _devices(text: str) -> list[tuple[int, int, str]]:
    """(start, end, device id): those of the catalogue's own scan, a form factor after the memory size included, then
    consumer cards by their bare number ("two used 3090s", "双 5090")."""
    found: list[tuple[int, int, str]] = []
    for start, end, words, ident in catalog.find_devices_in_text(text):
        form = _FORM_FACTOR.match(text, end)
        found.append((start, end, _of_form(words, form["form"]) or ident if form else ident))
    for match in _BARE_CARD.finditer(text):
        start, end = match.span("card")
        card = _of_form(match["card"], "")
        if card and not any(start < e and s < end for s, e, _ in found):
            found.append((start, end, card))
    return found


def _of_form(words: str, form: str) -> str | None:
    """The catalogue's device of a name with its form factor behind it; None where there is no such part."""
    try:
        return catalog.load_device(f"{words} {form}".strip()).device.id
    except ToolError:
        return None


def _attached(text: str, end: int) -> int:
    """A model name goes on over "-Instruct", "-AWQ", "_v0.1"."""
    # "Llama 4 Maverick 17B-128E": active size and experts are part of the name
    match = re.match(r"(?:\.\d+(?![\dA-Za-z]))?(?: \d+B[- ]\d+E\b)?(?:[-_][A-Za-z0-9.]*[A-Za-z0-9]+)*", text[end:])
    return end + match.end() if match and text[end - 1 : end].isalnum() else end


def _strategies(text: str) -> list[tuple[dict[str, int], int, int]]:
    """ "TP=4" → {tp: 4}; "2 replicas of TP=2" → {tp: 2, dp: 2}; "TP8 PP2", "tp8·pp2" → one strategy."""
    runs: list[tuple[dict[str, int], int, int]] = []
    for match in _AXIS.finditer(text):
        axis = next(a for a, _ in _AXES if match[a])
        degree = int(match[axis + "n"])
        if runs and axis not in runs[-1][0] and _JOIN.fullmatch(text[runs[-1][2] : match.start()]):
            runs[-1] = ({**runs[-1][0], axis: degree}, runs[-1][1], match.end())
        else:
            runs.append(({axis: degree}, match.start(), match.end()))
    return [_with_replicas(text, run) for run in runs]


def _with_replicas(text: str, run: tuple[dict[str, int], int, int]) -> tuple[dict[str, int], int, int]:
    value, start, end = run
    before, after = _REPLICAS_BEFORE.search(text[:start]), _REPLICAS_AFTER.match(text, end)
    worded = before and re.search(r"replica|cop|instance|副本|实例|[x×]|of", before.group(), re.I)
    hit = before if worded else after
    if hit is None or "dp" in value:
        return run
    count = _SMALL.get(hit["n"].lower()) or int(hit["n"])
    return (
        {**value, "dp": count},
        min(start, hit.start() if hit is before else start),
        max(end, hit.end() if hit is after else end),
    )


def mask(text: str, names: list[Name]) -> str:
    """`text` with every name blanked by a sign that is neither letter, digit, blank nor punctuation; offsets stay."""
    chars = list(text)
    for name in names:
        for i in range(name.start, name.end):
            chars[i] = "\x01"
    return "".join(chars)
