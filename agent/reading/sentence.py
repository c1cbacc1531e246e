"""What a sentence says as a whole: names, absences, "ample", objectives, permissions, strategies, and amounts no word claims."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.reading import loose
from agent.reading.facts import Candidate, Reading
from agent.reading.lexicon import (
    NAME_LABELS,
    OBJECTIVES,
    ONE_NODE,
    TERMS,
    UNBOUNDED,
    compiled,
    search,
    stats_in,
)
from agent.reading.names import ENGINE_VERSION, FAMILY_NAME, SIZED_NAME, Name
from tools.units import is_absence, is_unknown

if TYPE_CHECKING:
    from agent.reading.scene import Scene

_CLAUSE = re.compile(r"[,，;；。()（）\n]|\bbut\b|但")
_DEVICES = next(t for t in TERMS if t.path == "hardware.device_count")
_NEGATED = re.compile(
    r"(?:\bnot?\b|\bnever\b|\bwithout\b|\bdon'?t\b|\bcannot\b|\bcan'?t\b|\bavoid\b|\bunsupported\b|(?<![够能是可要会好行])不(?:要|能|可|接受|支持|用|使用|允许|考虑|想|会)?|无需|禁止|没有|避免|未)\s*(?:\w+\s+){0,2}\W{0,2}$",
    re.I,
)
_ALSO = r"也可以?|也行|亦可|或者?|备选|其次|次选|或|\bor\b|alternative(?:ly)?|also|otherwise|fall ?back|else|if not|second choice"


def read(scene: Scene, reading: Reading) -> None:
    """Adds sentence-level candidates and flags, one rule after the other."""
    for rule in (
        _unknowns,
        _first_layer_dense,
        _names,
        _called_devices,
        _dtypes,
        _engines,
        _strategies,
        _unbounded,
        _absences,
        _objective,
        _mode,
        _single_node,
        _racks,
        _named_networks,
        _single_user,
        _links_absent,
        loose.read,
    ):
        reading.candidates += list(rule(scene, reading))


def _label(scene: Scene) -> str:
    return scene.text[: scene.label_end].rstrip(" :=：")


def _value(scene: Scene) -> str:
    return scene.text[scene.label_end :].strip().strip("\"'")


def label_path(label: str) -> str:
    """`model.name`, `hardware.device`, … when the whole label is a word for it (the longest such), else empty."""
    plain = re.sub(r"[^A-Za-z0-9\u4e00-\u9fff/]+", " ", label).strip()
    hits = []
    for path, words in NAME_LABELS:
        for match in compiled(words).finditer(plain):
            if match.end() == len(plain):
                hits.append((match.start() == 0, len(match.group()), path))
    return max(hits)[2] if hits else ""


def _clause(scene: Scene, start: int, end: int) -> tuple[str, str]:
    """The words of the clause before and after [start, end)."""
    before = _CLAUSE.split(scene.text[:start])[-1]
    after = _CLAUSE.split(scene.text[end:])[0]
    return before, after


def _unknowns(scene: Scene, reading: Reading) -> list[Candidate]:
    if scene.label_end and is_unknown(_value(scene)):
        for path in label_terms(scene):
            latency = path.startswith("requirements.") and path.endswith(
                ("_s", "throughput_total", "throughput_per_device")
            )
            reading.unknown.append(f"{path}.limit" if latency else path)
    return []


def label_terms(scene: Scene) -> list[str]:
    """Paths that the label names, the longest words first."""
    label = scene.masked[: scene.label_end]
    found = sorted(
        (
            (len(m.group().strip()), t.path)
            for t in TERMS
            for m in compiled(t.words).finditer(label)
            if m.group().strip()
        ),
        reverse=True,
    )
    longest = found[0][0] if found else 0
    return list(dict.fromkeys(path for size, path in found if size == longest and not path.startswith("ignore")))


# ---------------------------------------------------------------- names


def _names(scene: Scene, reading: Reading) -> list[Candidate]:
    out: list[Candidate] = []
    for name in scene.names:
        if name.kind not in ("device", "model") or name.start < scene.shift:
            continue
        before, _ = _clause(scene, name.start, name.end)
        if _NEGATED.search(before):
            reading.flag("negated-name", f"{name.text} is named as what not to use; left out")
            continue
        path = "hardware.device" if name.kind == "device" else "model.name"
        value = name.value if name.kind == "device" else name.text.strip()
        tags = ("draft",) if name.kind == "model" and re.search(r"draft|speculat|投机|草稿", before, re.I) else ()
        if (
            name.kind == "model"
            and not tags
            and any(c.path == path for c in out)
            and re.search(r"\b(?:like|such as|similar to|vs)\b|类似|比如|相比", before, re.I)
        ):
            continue
        out.append(scene.candidate(path, value, name.start, name.end, tags=(*tags, f"id={name.value}")))
        if name.kind == "device" and (size := _SIZE_IN_NAME.search(name.text)):
            part, number = ("size", size["n"]) if size["size"] else ("tail", size["m"])
            start, end = name.start + size.start(part), name.start + size.end(part)
            out.append(scene.candidate("hardware.memory_bytes", float(number) * 1e9, start, end))
    for name in [n for n in scene.names if n.kind == "instance"]:
        out += _instance(scene, name)
    if scene.label_end and not out:
        out += _stated_name(scene)
    raw = scene.statement.raw
    named = scene.statement.kind == "leaf" and not out and re.search(r"name|id$|model", _label(scene), re.I)
    sized = SIZED_NAME.fullmatch(raw.strip()) if named and isinstance(raw, str) else None
    if sized is not None and sized.group() in scene.text:  # {"name": "Orca-MoE-90B"}
        start = scene.text.index(sized.group(), scene.label_end)
        out.append(
            scene.candidate("model.name", sized.group(), start, start + len(sized.group()), tags=("unrecognised",))
        )
    if scene.statement.kind != "leaf" and not any(c.path == "model.name" for c in out):
        out += _sized_names(scene)
    return out


def _first_layer_dense(scene: Scene, reading: Reading) -> list[Candidate]:
    m = re.search(
        r"\bfirst (?:transformer |decoder )?(?:layer|block) (?:is|stays|remains) (?:plain |a )?dense\b|(?:首层|第一层)(?:为|是)稠密",
        scene.text,
        re.I,
    )
    return [scene.candidate("model.first_k_dense_replace", 1, m.start(), m.end())] if m else []


# 'custom ASIC "Falcon-X2"', "in-house NPU, code name Tern-3"
_CALLED = re.compile(
    r"(?:\b(?:asic|npu|gpu|accelerator|chip|processor|card|dcu|tpu)s?\b|加速卡|加速器|芯片)[^.;。；\n\"“”'「」]{0,24}?"
    r"(?:[\"“'「](?P<quoted>[A-Za-z][\w.\- ]{1,24}?)[\"”'」]|\b(?:code[ -]?name(?:d)?|called|named|dubbed|代号(?:为|是)?)\s*[:：]?\s*[\"“'「]?(?P<called>[A-Z][\w.\-]{1,24}))",
    re.I,
)


def _called_devices(scene: Scene, reading: Reading) -> list[Candidate]:
    """A device of its own make, by the name it is given; no model is called so."""
    found = _CALLED.search(scene.text, scene.shift)
    if found is None or any(
        n.kind in ("device", "model") and n.start < found.end() and found.start() < n.end for n in scene.names
    ):
        return []
    part = "quoted" if found["quoted"] else "called"
    return [scene.candidate("hardware.device", found[part].strip(), *found.span(part), tags=("unrecognised",))]


def _instance(scene: Scene, name: Name) -> list[Candidate]:
    """A cloud instance type is a node with so many of a device."""
    device, count = name.value
    base = scene.candidate("hardware.device", device, name.start, name.end, tags=(f"id={device}", "instance"))
    each = replace(base, path="hardware.devices_per_node", value=count, origin="derived", tags=())
    counted = any(p.spot.term.path == "hardware.num_nodes" for p in scene.pairs)
    one = replace(base, path="hardware.num_nodes", value=1, tags=("weak",), origin="derived")
    return [base, each] + ([] if counted else [one])


# "NVIDIA-H100-80GB-HBM3": the product's own name says its memory
_SIZE_IN_NAME = re.compile(
    r"(?<=[\s_-])(?P<size>(?P<n>\d{2,3})\s?GB)(?=[\s_-])|(?<=-)(?P<tail>(?P<m>\d{2,3})GB?)$", re.I
)


def _sized_names(scene: Scene) -> list[Candidate]:
    """Words built like a model's name that no catalogue knows: "Zebrafish-77B-Ultra"."""
    return [
        scene.candidate("model.name", m.group(), m.start(), m.end(), tags=("unrecognised",))
        for m in (*SIZED_NAME.finditer(scene.masked, scene.shift), *FAMILY_NAME.finditer(scene.masked, scene.shift))
        if not _NEGATED.search(_clause(scene, m.start(), m.end())[0]) and not _names_a_device(scene, m)
    ][:1]


def _names_a_device(scene: Scene, m: re.Match[str]) -> bool:
    called = _CALLED.search(scene.text, scene.shift)
    return called is not None and called.start() < m.end() and m.start() < called.end()


def subject_of_an_aside(scene: Scene) -> list[Candidate]:
    """The model that an otherwise irrelevant sentence says "the model" is; it gives way to any other."""
    if not re.search(r"(?:该|本|这个|此|我们的|\bour|\bthe|\bthis)\s*(?:模型|model)", scene.text, re.I):
        return []
    names = [n for n in scene.names if n.kind == "model"][:1]
    found = [scene.candidate("model.name", n.text.strip(), n.start, n.end, tags=(f"id={n.value}",)) for n in names]
    return [replace(c, weight=c.weight - 3) for c in found]


def _stated_name(scene: Scene) -> list[Candidate]:
    """A name that no catalogue knows, under a label that says what it names."""
    label, value = _label(scene), _value(scene)
    path = label_path(label)
    if (
        path not in ("model.name", "hardware.device")
        or is_absence(value)
        or is_unknown(value)
        or search(UNBOUNDED).search(value)
    ):
        return []
    raw = scene.statement.raw
    if scene.statement.kind == "leaf" and not isinstance(raw, str):
        return []
    word = re.match(
        r"(?:\d+\s*[x×*]\s*)?([A-Za-z\u4e00-\u9fff][\w./\-]*(?: [A-Z0-9][\w.\-]*){0,3})(?=\s*(?:$|[,，(（;；。]|\.$))",
        value,
    )
    if word is None or not re.search(r"[A-Za-z]", word[1]) or any(word[1].startswith(n.text) for n in scene.names):
        return []
    inside = [
        p
        for p in scene.pairs
        if scene.label_end <= p.spot.start < scene.label_end + word.end()
        and p.quantity.start < scene.label_end + word.end()
    ]
    if inside or len(word[1]) > 60:
        return []
    text = word[1].strip(" ,.")
    if re.fullmatch(
        r"(?:gpu|npu|nvidia|amd|huawei|moe|dense|llm|transformer|decoder[- ]only|gqa|mha|true|false|yes|auto|default|none)s?",
        text,
        re.I,
    ):
        return []
    start = scene.text.index(text, scene.label_end)
    return [scene.candidate(path, text, start, start + len(text), tags=("unrecognised",))]


def _dtypes(scene: Scene, reading: Reading) -> list[Candidate]:
    out: list[Candidate] = []
    mentions = [n for n in scene.names if n.kind == "dtype" and n.start >= scene.shift]
    flops = [q for q in scene.quantities if q.dimension == "flop/s"] or [
        p.quantity for p in scene.pairs if p.spot.term.path == "hardware.peak_flops"
    ]
    for name in mentions:
        before, after = _clause(scene, name.start, name.end)
        if any(min(abs(name.end - q.start), abs(name.start - q.end)) < 22 for q in flops) or (
            name.end <= scene.label_end and flops
        ):
            continue
        if _NEGATED.search(before) and not re.search(r"不(?:需要|一定)|n't need|not (?:need|required)", before, re.I):
            reading.flag("refused-dtype", f"{name.text} is ruled out by the conditions: {_snip(scene)!r}")
            continue
        if re.search(r"(?:n'?t need|not need(?:ed)?|no need (?:for|of)|无需|不需要)\s*$", before, re.I):
            continue
        if name.end <= scene.label_end and any(n.kind == "dtype" and n.start >= scene.label_end for n in mentions):
            continue
        if name.end <= scene.label_end and any(p.spot.term.dimension in ("bytes", "flop/s") for p in scene.pairs):
            continue
        for path in _dtype_targets(scene, before, after):
            optional = bool(
                re.search(
                    _ALSO + r"|fine|ok\b|okay|acceptable|allowed|可接受|可以", before[-14:] + " " + after[:18], re.I
                )
            )
            out.append(scene.candidate(path, name.value, name.start, name.end, tags=("optional",) if optional else ()))
    return out


def _dtype_targets(scene: Scene, before: str, after: str) -> list[str]:
    label = re.sub(r"[_\-.]+", " ", _label(scene)).lower()
    context = " ".join(scene.statement.context[-1:]).lower() if scene.statement.kind != "prose" else ""
    if scene.label_end and re.search(r"activation|激活", label):
        return ["model.activation_dtype"]
    if re.match(
        r"[\s\-]*(?:for (?:both )?(?:the )?)?(?:model )?(?:weights?|权重)\s*(?:和|与|及|、|and|&|/|\+)\s*(?:the )?(?:kv|键值|cache)",
        after,
        re.I,
    ):
        return ["model.weight_dtype", "model.kv_dtype"]
    kv_words = r"(?<![A-Za-z])kv(?![A-Za-z])|kv ?cache|kv ?缓存|键值缓存|(?<!prefix )\bcache\b[^,.;]{0,12}$"
    label_kv = re.search(kv_words, label) and not re.search(r"weight|权重", label)
    here_kv = re.search(kv_words, before, re.I) or re.match(r"[\s\-]*(?:精度|的)?\s*(?:kv|cache|缓存)", after, re.I)
    here_weights = re.search(r"weight|权重|model|模型", before, re.I) or re.match(
        r"[\s\-]*(?:精度|的)?\s*(?:weights?|权重|模型|model)", after, re.I
    )
    # "FP4 weights / FP8 KV": the word behind, where none leads
    adjacent_kv = re.match(r"[\s\-]*(?:kv|cache|缓存|键值)", after, re.I)
    if adjacent_kv and here_weights and not re.search(r"(?:weights?|权重|model|模型)\s*[:：=]?\s*$", before, re.I):
        return ["model.kv_dtype"]
    if here_kv and here_weights:
        joined = re.search(r"(?:weights?|权重)\s*(?:和|与|及|、|and|&|/|\+)\s*(?:kv|键值)", before + after, re.I)
        if joined:
            return ["model.weight_dtype", "model.kv_dtype"]
        later = max((m.start() for m in re.finditer(kv_words, before, re.I)), default=-1) > max(
            (m.start() for m in re.finditer(r"weight|权重", before, re.I)), default=-2
        )
        adjacent_weight = re.match(r"[\s\-]*(?:精度|的)?\s*(?:weights?|权重)", after, re.I)
        return ["model.kv_dtype"] if later and not adjacent_weight else ["model.weight_dtype"]
    if here_kv or label_kv or (context and re.search(kv_words, context) and not here_weights):
        return ["model.kv_dtype"]
    return ["model.weight_dtype"]


def _snip(scene: Scene) -> str:
    text = " ".join(scene.text[scene.shift :].split())
    return text if len(text) < 80 else text[:77] + "..."


def _engines(scene: Scene, reading: Reading) -> list[Candidate]:
    out: list[Candidate] = []
    for name in [n for n in scene.names if n.kind == "engine" and n.start >= scene.shift]:
        before, after = _clause(scene, name.start, name.end)
        if _NEGATED.search(before):
            reading.flag("refused-engine", f"{name.text} is ruled out by the conditions: {_snip(scene)!r}")
            continue
        alternative = bool(
            re.search(_ALSO, before[-16:], re.I)
            or re.match(rf"\s*(?:{_ALSO}|is (?:also )?(?:fine|ok|acceptable)|works too)", after, re.I)
        )
        tags = ("alternative",) if alternative and not re.search(r"if possible", after, re.I) else ()
        if re.search(r"prefer|倾向|优先|首选", before, re.I):
            tags = ("preferred",)
        out.append(scene.candidate("engine.name", name.value, name.start, name.end, tags=tags))
        version = ENGINE_VERSION.match(scene.text, name.end)
        if version:
            out.append(scene.candidate("engine.version", version["v"], name.start, version.end()))
    if (
        scene.label_end
        and label_path(_label(scene)) == "engine.version"
        and re.search(r"engine|vllm|sglang|framework|推理|框架", scene.text[: scene.label_end], re.I)
    ):
        match = re.search(r"\d+\.\d+(?:\.\w+)*", _value(scene))
        if match:
            start = scene.text.index(match.group(), scene.label_end)
            out.append(scene.candidate("engine.version", match.group(), start, start + len(match.group())))
    return out


# ---------------------------------------------------------------- strategies, objectives, mode


def _strategies(scene: Scene, reading: Reading) -> list[Candidate]:
    mentions = [n for n in scene.names if n.kind == "strategy"]
    if scene.statement.kind == "leaf":
        return _strategy_leaf(scene)
    if not mentions:
        return []
    context = " ".join(scene.statement.context[-2:])
    first, last = mentions[0], mentions[-1]
    start, end = first.start, last.end
    baseline = re.search(r"baseline|基线|基准|current(?:ly)?|现在|目前|现有|today we", scene.text + " " + context, re.I)
    asked = re.search(
        r"[?？]|should (?:i|we)|\bwould\b|whether|\bvs\.?\b|versus|compare|还是|哪个|是否|要不要|对比|比较|better"
        r"|\b(?:some(?:body|one)|they|colleagues?|vendors?)\b.{0,24}\b(?:said|says|told|claims?|suggest(?:s|ed)?|thinks?)\b|听说|有人说|据说",
        scene.text,
        re.I,
    )
    if asked and not (baseline and len(mentions) == 1 and not re.search(r"[?？]", scene.text)):
        return [scene.candidate("workload.asked_strategies", [m.value for m in mentions], start, end)]
    if baseline:
        return [scene.candidate("baseline", first.value, first.start, first.end)]
    return [scene.candidate("baseline", first.value, first.start, first.end, tags=("constraint",))]


_AXIS_KEYS = {
    "tp": "tp", "tp_size": "tp", "tensor_parallel_size": "tp", "tensor_parallel": "tp", "tensor_parallelism": "tp", "pp": "pp", "pp_size": "pp",
    "pipeline_parallel_size": "pp", "pipeline_parallel": "pp", "pipeline_parallelism": "pp", "dp": "dp", "dp_size": "dp", "data_parallel_size": "dp",
    "data_parallel": "dp", "data_parallelism": "dp", "ep": "ep", "ep_size": "ep", "expert_parallel_size": "ep", "expert_parallel": "ep",
    "expert_parallelism": "ep", "cp": "cp", "cp_size": "cp", "context_parallel_size": "cp", "context_parallel": "cp",
}  # fmt: skip


def _strategy_leaf(scene: Scene) -> list[Candidate]:
    key = re.split(r"[.\]]", scene.statement.key)[-1].lower().replace("-", "_")
    raw = scene.statement.raw
    if key in _AXIS_KEYS and isinstance(raw, int) and not isinstance(raw, bool) and raw > 0:
        start = scene.label_end
        return [scene.candidate("baseline", {_AXIS_KEYS[key]: raw}, start, len(scene.text), tags=("constraint",))]
    named = [n for n in scene.names if n.kind == "strategy" and n.start >= scene.label_end]
    if named and isinstance(raw, str):
        return [scene.candidate("baseline", named[0].value, named[0].start, named[0].end)]
    return []


def _objective(scene: Scene, reading: Reading) -> list[Candidate]:
    label = label_path(_label(scene)) == "objective" if scene.label_end else False
    value = _value(scene)
    hits = []
    for name, words in OBJECTIVES:
        match = search(words).search(value if label else scene.text[scene.shift :])
        if match is None or (match.group().lower() in ("latency", "throughput") and not (label and len(value) < 30)):
            continue
        offset = scene.label_end if label else scene.shift
        start = scene.text.find(match.group(), offset)
        if name == "fewest_devices" and scene.label_end > start and scene.quantities:
            continue  # "How many GPUs per server?  8" asks and is answered
        if name == "total_throughput" and re.search(r"per (?:gpu|card)|单卡|每卡", match.group(), re.I):
            continue
        hits.append(scene.candidate("objective", name, start, start + len(match.group())))
    knee = [h for h in hits if h.value == "knee"]
    return knee or hits


def _mode(scene: Scene, reading: Reading) -> list[Candidate]:
    heading = scene.statement.kind == "heading"
    labelled = bool(scene.label_end) and label_path(_label(scene)) == "workload.mode"
    if not (heading or labelled):
        match = re.search(
            r"\b(?:pre-?train(?:ing)?|fine-?tun(?:e|ing)|sft|global batch size)\b|(?:预训练|微调|训练任务|全参训练)",
            scene.text,
            re.I,
        )
        found = match and not re.search(r"fine-?tuned|pretrained|trained|微调(?:后|过)的|训练好", scene.text, re.I)
        return [scene.candidate("workload.mode", "training", match.start(), match.end())] if found and match else []
    area = scene.text[scene.label_end :] if labelled else scene.text
    offset = scene.label_end if labelled else 0
    for mode, words in (
        ("training", r"\btrain(?:ing)?\b|pre-?training|fine-?tuning|训练|微调"),
        ("inference", r"\binference\b|\bserving\b|online|推理|服务化|在线|generation"),
    ):
        match = re.search(words, area, re.I)
        if match:
            return [scene.candidate("workload.mode", mode, offset + match.start(), offset + match.end())]
    return []


# ---------------------------------------------------------------- absences, bounds, topology


def _unbounded(scene: Scene, reading: Reading) -> list[Candidate]:
    """ "GPUs: ample", "卡数不限": about the number of devices, not about their memory or a metric."""
    if machines := re.search(
        r"(?:机器|服务器|节点|台|机|集群)(?:的)?(?:数量?|台数)?(?:不限|没有限制|无限制|不受限|管够|充足)|\b(?:number of )?(?:nodes|servers|machines|hosts|boxes)\b(?: count)? (?:is |are )?(?:unlimited|not limited|unbounded)|as many (?:nodes|servers|machines|boxes) as",
        scene.text,
        re.I,
    ):
        return [scene.candidate("hardware.num_devices", "unbounded", machines.start(), machines.end(), scope="total")]
    if any(p.spot.term.path in ("hardware.device_count", "hardware.devices_per_node") for p in scene.pairs):
        return []
    text = scene.text
    for match in search(UNBOUNDED).finditer(text, scene.label_end):
        clause_before, clause_after = _clause(scene, match.start(), match.end())
        label = scene.text[: scene.label_end]
        near = f"{label} {clause_before} {clause_after}"
        whole = re.search(r"数量|个数|按需|\bnumber\b|\bcount\b|how many", f"{clause_before} {clause_after}", re.I)
        near = scene.text if whole else near
        if any(n.kind == "device" and match.start() <= n.start < match.end() for n in scene.names):
            return [scene.candidate("hardware.num_devices", "unbounded", match.start(), match.end(), scope="total")]
        if compiled(_DEVICES.words).search(near) or re.search(
            r"(?:compute|hardware|算力|硬件|计算) ?(?:resources?|资源)|^\s*资源|\bresources\b", near, re.I
        ):
            if re.search(
                r"memory|显存|vram|bandwidth|带宽|token|latency|延迟|power|not (?:enough|sufficient)|不足|不够",
                f"{clause_before} {clause_after}",
                re.I,
            ):
                continue
            if match.group().lower() in ("enough", "足够") and re.search(
                r"not|n't|不|whether|是否", clause_before, re.I
            ):
                continue
            return [scene.candidate("hardware.num_devices", "unbounded", match.start(), match.end(), scope="total")]
    raw = scene.statement.raw
    if (
        scene.statement.kind == "leaf"
        and isinstance(raw, str)
        and re.fullmatch(r"inf(?:inity)?|unlimited|unbounded|any|不限|∞|ample", raw.strip(), re.I)
        and "hardware.device_count" in label_terms(scene)
    ):
        return [scene.candidate("hardware.num_devices", "unbounded", scene.label_end, len(scene.text), scope="total")]
    return []


_NO_LIMIT = r"不限|无要求|没有要求|不(?:做|作)要求|不要求|无限制|没有限制|不关心|不在意|no (?:hard |strict |particular |specific )*(?:[\w-]+ ){0,4}?(?:requirements?|limits?|constraints?|target|slo)|not (?:required|limited|constrained|important)|don'?t care|doesn'?t matter|unconstrained|without (?:any )?limits?"


def _absences(scene: Scene, reading: Reading) -> list[Candidate]:
    """ "TPOT: None", "对 TPOT 没有要求": a stated absence is a fact with value None."""
    value = _value(scene)
    if scene.label_end and (is_absence(value) or (scene.statement.kind == "leaf" and scene.statement.raw is None)):
        raw_null = scene.statement.kind == "leaf" and scene.statement.raw is None
        name = label_path(_label(scene)) if not label_terms(scene) else ""
        if name in ("engine.name", "objective", "model.kv_dtype", "model.weight_dtype") or (raw_null and name):
            return [
                scene.candidate(name, None, scene.label_end, max(scene.label_end, len(scene.text)), tags=("absent",))
            ]
        paths = label_terms(scene)[:1]
        stat = next((s for _, s in stats_in(scene.text[: scene.label_end])), "limit")
        out = []
        for path in paths:
            if (
                path == "hardware.device_count"
                and not raw_null
                and not re.fullmatch(r"\W*(?:none|无|n/?a|null|no|-+)\W*", value, re.I)
            ):
                continue
            full = (
                f"{path}.{stat}"
                if path.startswith("requirements.")
                and path.endswith(("_s", "throughput_total", "throughput_per_device"))
                else path
            )
            full = (
                full.replace("hardware.device_count", "hardware.num_devices")
                .replace("memory_usage_limit", "memory_reserve")
                .replace("workload.seq_len", "workload.seq_len_max")
            )
            out.append(scene.candidate(full, None, scene.label_end, len(scene.text), tags=("absent",)))
        return out
    return _absence_in_words(scene)


def _absence_in_words(scene: Scene) -> list[Candidate]:
    out = []
    for match in search(_NO_LIMIT).finditer(scene.text, scene.shift):
        before, after = _clause(scene, match.start(), match.end())
        start, end = match.start() - len(before), match.end() + len(after)
        hits = []
        for term in TERMS:
            if not term.path.startswith("requirements.") or term.dimension not in ("s", "tokens/s") or term.transform:
                continue
            hits += [
                (m.end() - m.start(), m.start(), term.path)
                for m in compiled(term.words).finditer(scene.text, start, end)
            ]
        taken = {p.spot.start for p in scene.pairs}
        hits = [h for h in hits if h[1] not in taken]
        if hits:
            _, _, path = max(hits)
            out.append(scene.candidate(f"{path}.limit", None, start, end, tags=("absent",)))
    return out


def _single_node(scene: Scene, reading: Reading) -> list[Candidate]:
    if any(p.spot.term.path == "hardware.num_nodes" for p in scene.pairs) or (
        not any(n.kind == "device" for n in scene.names)
        and not any(p.spot.term.path == "hardware.device_count" for p in scene.pairs)
    ):
        return []
    match = search(ONE_NODE).search(scene.masked, scene.shift) if scene.statement.kind != "leaf" else None
    if match is None or re.search(
        r"\b(?:per|each|every|both|all)\b|每", scene.text[max(0, match.start() - 6) : match.start()]
    ):
        return []
    if match.group().startswith("单机") and re.search(r"每|多机|[2-9两三四]\s*(?:台|机|节点)", scene.text):
        return []
    # "单机 8 卡", "in a node" may describe each of several nodes: it gives way to any other count
    return [scene.candidate("hardware.num_nodes", 1, match.start(), match.end(), tags=("weak",))]


def _racks(scene: Scene, reading: Reading) -> list[Candidate]:
    """ "GB300 NVL72, one rack": as many devices as the name says."""
    size = re.search(r"NVL[ -]?(\d{2,3})\b(?! ?GB)", scene.text[scene.shift :], re.I)
    count = re.search(
        r"(?P<n>\d{1,2}|one|a|an|the|single|whole|full|entire|two|three|four|一|两|三|整)\s*(?:个)?\s*(?:racks?\b|机柜|柜)",
        scene.text,
        re.I,
    )
    if not size or not count or any(p.spot.term.path == "hardware.device_count" for p in scene.pairs):
        return []
    number = (
        int(count["n"])
        if count["n"].isdigit()
        else {"two": 2, "two ": 2, "两": 2, "three": 3, "三": 3, "four": 4}.get(count["n"].lower(), 1)
    )
    value = number * int(size[1])
    return [scene.candidate("hardware.num_devices", value, count.start(), count.end(), scope="total")]


_NETWORKS = {"百兆": 0.1, "千兆": 1, "万兆": 10, "十万兆": 100, "gigabit": 1, "gige": 1, "gbe": 1}
"""Gb/s by name."""


def _named_networks(scene: Scene, reading: Reading) -> list[Candidate]:
    """ "千兆网", "plain gigabit Ethernet": a network by the name of its speed."""
    m = re.search(
        r"(?<![\d百千万十])(?P<zh>十?[百千万]兆)(?=\s*(?:网|以太|内网|局域|交换|口|光))"
        r"|(?<![\d.] )(?<![\d.])\b(?P<en>gigabit|gige|gbe)\b(?= ?(?:ethernet|lan|network|switch|nics?|links?|only|\W|$))",
        scene.text[scene.shift :], re.I,
    )  # fmt: skip
    if m is None or any(p.spot.term.path == "hardware.inter_node_bandwidth" for p in scene.pairs):
        return []
    value = _NETWORKS[(m["zh"] or m["en"]).lower()] * 1e9 / 8
    start = scene.shift + m.start()
    return [scene.candidate("hardware.inter_node_bandwidth", value, start, start + len(m.group()))]


def _single_user(scene: Scene, reading: Reading) -> list[Candidate]:
    """ "单路请求", "a single user": one request at a time, where no speed of one user is meant."""
    if any(p.spot.term.path == "workload.concurrency" for p in scene.pairs) or scene.statement.kind == "leaf":
        return []
    match = re.search(
        r"单(?:路|用户|并发|请求)(?:请求|使用|场景|推理|访问)?(?!\s*(?:的|平均)?\s*(?:输出|生成|解码)?(?:速度|速率|吞吐|吐字|生成|解码|时延|延迟|不|≥|>|\d|token))"
        r"|\b(?:a |one )?single (?:user|request|stream|client)\b(?! ?(?:speed|rate|throughput|latency))|\bjust (?:for )?me\b|\bonly (?:for )?me\b|只有我(?:一个)?",
        scene.text,
        re.I,
    )
    return [scene.candidate("workload.concurrency", 1, match.start(), match.end(), tags=("weak",))] if match else []


def _links_absent(scene: Scene, reading: Reading) -> list[Candidate]:
    match = re.search(
        r"(?:\bno|without|not? (?:have )?|lacks?|没有|无|不带|不支持)\s*(?:any\s+)?(nv-?link|nv-?switch|hccs)",
        scene.text,
        re.I,
    )
    match = match or re.search(
        r"pci-?e[ -]only|only pci-?e|(?:仅|只)(?:有|支持)? ?pci-?e|通过 ?pci-?e (?:互联|互连|连接)", scene.text, re.I
    )
    if match and scene.statement.kind != "leaf":
        return [scene.candidate("hardware.intra_node_link", "PCIe", match.start(), match.end())]
    return []
