"""Leaves of a structured input → statements; every key ends as a fact, a conflict or an ignored entry."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from typing import Any

from agent.reading.budget import leaves_within_budget
from agent.reading.facts import Candidate, Reading
from agent.reading.lexicon import DTYPES, HF_KEYS, HF_MARKS, HF_MORE, HF_NOISE, HF_SAME, TERMS, compiled
from agent.reading.listings import flags_of
from agent.reading.prose import read_statement
from agent.reading.segments import Statement, sentence_spans
from agent.reading.structured import Key, Leaf
from knowledge.hf_values import TEXT_PARTS

_DEVICE_LIST = re.compile(r"gpus?|npus?|devices?|accelerators?|cards?|dcus?|显卡|加速卡", re.I)
_NODE_LIST = re.compile(r"nodes?|servers?|hosts?|machines?|服务器|节点|机器", re.I)
_VALUE_KEYS = ("answer", "response", "回答", "value", "val", "amount", "值", "数值")
_BOUND_KEYS = (
    "within",
    "below",
    "under",
    "at_most",
    "no_more_than",
    "target",
    "threshold",
    "limit",
    "max",
    "min",
    "maximum",
    "minimum",
    "目标",
    "上限",
    "要求",
)
_ROW_KEYS = ("what", "field", "question", "key", "param", "parameter", "item", "metric", "指标", "参数")
_SUBJECT_KEYS = (
    "what",
    "question",
    "of",
    "name",
    "metric",
    "key",
    "param",
    "parameter",
    "item",
    "field",
    "指标",
    "名称",
    "参数",
)
_STAT_KEYS = ("at", "pctl", "percentile", "stat", "statistic", "quantile", "aggregation", "分位", "分位数")
_UNIT_KEYS = ("unit", "units", "单位")
_REASONS = (
    (re.compile(r"cpu|core|socket|numa", re.I), "host processors do not enter the plan"),
    (
        re.compile(
            r"(?:^|\W|_)(?:id|uuid|index|idx|serial|rank|hostname|host_?name|ip|address|port|label|tag)s?(?:$|\W|_)",
            re.I,
        ),
        "an identifier",
    ),
    (re.compile(r"ram|host_?mem|node_?mem|cpu_?mem|内存", re.I), "host memory does not bound the plan"),
    (re.compile(r"disk|ssd|nvme|storage|path|dir|file|url|cache_dir", re.I), "storage and paths do not enter the plan"),
    (
        re.compile(
            r"owner|author|team|contact|email|date|created|updated|version|revision|comment|note|description|remark|备注|说明|title",
            re.I,
        ),
        "descriptive, states nothing to plan with",
    ),
    (re.compile(r"activation", re.I), "activation memory is counted from the operator graph"),
    (re.compile(r"name$|名称$", re.I), "a name that is neither a model nor a device"),
    (re.compile(r"power|watt|tdp|功耗|price|cost|cooling", re.I), "power and cost are not planned for"),
)


def read_structured(leaves: list[Leaf], file: str, reading: Reading, context: tuple[str, ...] = ()) -> None:
    """Reads all leaves of one document into `reading`."""
    leaves = _joined_lists(_with_units(_units_split_off(leaves)))
    _count_lists(leaves, file, reading)
    leaves = leaves_within_budget(leaves, reading)
    configs = _config_roots(leaves, file)
    unused: dict[str, tuple[Leaf, str]] = {}
    hosts = {p.path[:-1] for p in leaves if p.path and str(p.path[-1]).lower() in ("cpu", "cpus", "vcpu", "vcpus")}
    nics = {
        p.path[:-1]: p.value for p in leaves
        if len(p.path) > 1 and _COUNT_KEY.fullmatch(str(p.path[-1])) and _NIC.search(_words(p.path[-2])) and type(p.value) is int
    }  # fmt: skip
    for leaf in leaves:
        root = max((r for r in configs if leaf.path[: len(r)] == r), key=len, default=None)
        if root is not None and (why := _of_another_tower(leaf, configs)):
            reading.ignore(_generic_path(leaf), why)
            continue
        before = len(reading.candidates)
        if leaf.path and leaf.path[:-1] in hosts and re.fullmatch(r"mem(?:ory)?", str(leaf.path[-1]), re.I):
            reading.ignore(_generic_path(leaf), f"memory of the host beside its processors ({leaf.value})")
            continue
        known = root is not None and _read_config_key(leaf, len(root), file, reading)
        if not known and not _read_leaf(leaf, file, reading, context):
            unused[_generic_path(leaf)] = (leaf, _reason(leaf))
        if (ports := nics.get(leaf.path[:-1])) and ports > 1:  # {"nic": {"count": 4, "gbps": 400}}
            reading.candidates[before:] = [
                replace(c, factor=ports, scope="node") if c.path == "hardware.inter_node_bandwidth" else c
                for c in reading.candidates[before:]
            ]
        group = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in leaf.path[:-1])
        generic = _generic_path(leaf)
        node = any(isinstance(k, int) and _is_node_list(leaf.path[:d]) for d, k in enumerate(leaf.path) if d)
        node = node or any(isinstance(k, str) and _OF_EACH_NODE.fullmatch(_words(k)) for k in leaf.path[:-1])
        reading.candidates[before:] = [
            replace(
                c, group=group, leaf=generic, scope="node" if node and c.path == "hardware.device_count" else c.scope
            )
            for c in reading.candidates[before:]
        ]
    for section, (leaf, why) in unused.items():
        if not _count_of_device(leaf, file, reading):
            reading.ignore(section, why)


def _is_node_list(path: tuple[Key, ...]) -> bool:
    name = _words(path[-1])
    return bool(_NODE_LIST.search(name) and not _DEVICE_LIST.search(name))


# what stands under it is said of every node: {"machines": {"howMany": 2, "each": {"gpuCount": 8}}}
_OF_EACH_NODE = re.compile(
    r"each(?: (?:one|node|server|machine|host))?|per (?:node|server|machine|host)|每[台个]", re.I
)
_COUNT_KEY = re.compile(
    r"(?:num|number|total|n|how)?_?(?:count|number|quantity|qty|num|size|amount|n|many|total|数量|个数)", re.I
)


_PER_NODE_KEY = re.compile(
    r"(?:num_?|count_?)?(?:per|in_each|each)_?(?:node|server|host|machine)|每(?:台|节点|机)", re.I
)


def _count_of_device(leaf: Leaf, file: str, reading: Reading) -> bool:
    """`count: 8` beside `device: L40S` counts devices."""
    if (
        not leaf.path
        or not isinstance(leaf.value, int)
        or isinstance(leaf.value, bool)
        or not (_COUNT_KEY.fullmatch(str(leaf.path[-1])) or _PER_NODE_KEY.fullmatch(str(leaf.path[-1])))
    ):
        return False
    path = "devices_per_node" if _PER_NODE_KEY.fullmatch(str(leaf.path[-1])) else "device_count"
    group = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in leaf.path[:-1])
    if not any(c.path == "hardware.device" and c.file == file and c.group == group for c in reading.candidates):
        return False
    reading.candidates.append(
        Candidate(
            f"hardware.{path}",
            leaf.value,
            str(leaf.value),
            file,
            leaf.line,
            leaf.quote,
            key=leaf.dotted,
            group=group,
        )
    )
    return True


def _generic_path(leaf: Leaf) -> str:
    return "".join("[]" if isinstance(k, int) else f".{k}" for k in leaf.path).removeprefix(".") or "(document)"


def _reason(leaf: Leaf) -> str:
    words = str(leaf.path[-1] if leaf.path else "")
    full = leaf.dotted
    for pattern, why in _REASONS:
        if pattern.search(words):
            return why
    for pattern, why in _REASONS:
        if pattern.search(full):
            return why
    if isinstance(leaf.value, bool):
        return f"a switch ({str(leaf.value).lower()}) that the plan does not read"
    if leaf.value in ([], {}, "", None):
        return "empty"
    return "not a quantity or name the plan depends on"


# ---------------------------------------------------------------- shaping leaves


_BOUND_WITH_UNIT = re.compile(
    rf"(?P<key>{'|'.join((*_VALUE_KEYS, *_BOUND_KEYS))})_?(?P<unit>ms|s|sec|seconds|millis|milliseconds|gb|gib|pct|percent)",
    re.I,
)


def _units_split_off(leaves: list[Leaf]) -> list[Leaf]:
    """{"metric": "ttft", "thresholdMs": 900} becomes {"metric": "ttft", "threshold": "900 ms"}."""
    subjects = {leaf.path[:-1] for leaf in leaves if leaf.path and str(leaf.path[-1]).lower() in _SUBJECT_KEYS}
    out = []
    for leaf in leaves:
        match = _BOUND_WITH_UNIT.fullmatch(str(leaf.path[-1])) if leaf.path and leaf.path[:-1] in subjects else None
        bare = isinstance(leaf.value, int | float) and not isinstance(leaf.value, bool)
        if match and bare:
            unit = "%" if match["unit"].lower() in ("pct", "percent") else match["unit"].lower()
            leaf = replace(leaf, path=(*leaf.path[:-1], match["key"].lower()), value=f"{leaf.value} {unit}")
        out.append(leaf)
    return out


def _with_units(leaves: list[Leaf]) -> list[Leaf]:
    """{"value": 80, "unit": "GB"} becomes one leaf "80 GB"."""
    by_parent: dict[tuple[Key, ...], dict[str, Leaf]] = defaultdict(dict)
    for leaf in leaves:
        if leaf.path and isinstance(leaf.path[-1], str):
            by_parent[leaf.path[:-1]][leaf.path[-1].lower()] = leaf
    merged: dict[int, Leaf | None] = {}
    for parent, entries in by_parent.items():
        image, tag = entries.get("repository") or entries.get("image") or entries.get("name"), entries.get("tag")
        if image is not None and tag is not None and isinstance(image.value, str):  # a container image and its version
            merged[id(tag)] = replace(tag, path=(*parent, "engine"), value=f"{image.value}:{tag.value}")
        subject = next((entries[k] for k in _SUBJECT_KEYS if k in entries and isinstance(entries[k].value, str)), None)
        keys = (*_VALUE_KEYS, *_BOUND_KEYS) if subject is not None else _VALUE_KEYS
        value = next((entries[k] for k in keys if k in entries), None)
        unit = next((entries[k] for k in _UNIT_KEYS if k in entries), None)
        row = bool(parent) and isinstance(parent[-1], int) and any(entries.get(k) is subject for k in _ROW_KEYS)
        if subject is not None and value is not None and parent and (row or _is_metric(subject.value)):
            merged |= _named_value(parent, entries, subject, value, unit)
            continue
        if parent and value is not None and unit is not None and isinstance(unit.value, str):
            quote = _spanning(value, unit)
            merged[id(value)] = replace(value, path=parent, value=f"{value.value} {unit.value}", quote=quote)
            merged[id(unit)] = None
        elif parent and value is not None and len(entries) <= 3 and isinstance(parent[-1], str):
            merged[id(value)] = replace(value, path=parent)
    return [new for leaf in leaves if (new := merged.get(id(leaf), leaf)) is not None]


def _is_metric(text: str) -> bool:
    """Whether `text` is a word of the lexicon ("TTFT") rather than a proper name."""
    return any(compiled(t.words).fullmatch(text.strip()) for t in TERMS)


def _named_value(
    parent: tuple[Key, ...], entries: dict[str, Leaf], subject: Leaf, value: Leaf, unit: Leaf | None
) -> dict[int, Leaf | None]:
    """{"metric": "TTFT", "percentile": "p99", "value": 3, "unit": "s"} reads like the key path TTFT.p99."""
    stats = [entries[k] for k in _STAT_KEYS if k in entries]
    words = " ".join(str(f"p{s.value}" if isinstance(s.value, int) else s.value) for s in stats)
    amount = f"{value.value} {unit.value}" if unit is not None else value.value
    quote = _spanning(value, unit) if unit is not None else value.quote
    gone: dict[int, Leaf | None] = {id(x): None for x in (subject, *stats, *((unit,) if unit is not None else ()))}
    return gone | {
        id(value): replace(value, path=(*parent, f"{subject.value} {words}".strip()), value=amount, quote=quote)
    }


def _spanning(first: Leaf, last: Leaf) -> str:
    """The words from one leaf to the other where both stand on one line."""
    start = first.row.find(first.quote)
    end = first.row.find(last.quote, start)
    return first.row[start : end + len(last.quote)] if first.line == last.line and 0 <= start < end else first.quote


LIST_KEYS = frozenset(
    {
        "full_attn_idxs", "hybrid_layer_pattern", "indexer_types", "layer_types", "layers_block_type", "mlp_layer_types",
        "mlp_multipliers", "no_rope_layers", "ssm_multipliers", "attn_layer_indices", "layer_rope_theta", "mlp_only_layers",
        "moe_layers", "num_attention_heads_per_layer",
    }
)  # fmt: skip
"""Keys of a config.json whose value is a list however short it is, not a range or a choice."""


def _joined_lists(leaves: list[Leaf]) -> list[Leaf]:
    """A list of scalars is one statement: [128, 10240] is a range, ["fp8", "bf16"] a choice."""
    groups: dict[tuple[Key, ...], list[Leaf]] = defaultdict(list)
    for leaf in leaves:
        if leaf.path and isinstance(leaf.path[-1], int) and not isinstance(leaf.value, list | dict):
            groups[leaf.path[:-1]].append(leaf)
    out, done = [], set()
    for leaf in leaves:
        parent = leaf.path[:-1]
        if not leaf.path or not isinstance(leaf.path[-1], int) or isinstance(leaf.value, list | dict) or not parent:
            out.append(leaf)
        elif parent not in done:
            done.add(parent)
            items = groups[parent]
            if any(isinstance(i.value, str) and re.match(r"--[a-z]", i.value) for i in items):
                out += _flags_of_arguments(parent, items)
                continue
            text = ", ".join(str(i.value) for i in items)
            numbers = all(isinstance(i.value, int | float) and not isinstance(i.value, bool) for i in items)
            value: Any = items[0].value if len(items) == 1 else f"[{text}]" if numbers and len(items) == 2 else text
            per_layer = len(items) > 16 and (numbers or parent[-1] in HF_KEYS | HF_MORE)  # one entry for every layer
            if per_layer or parent[-1] in LIST_KEYS:
                value = [i.value for i in items]
            quote = (
                items[-1].quote
                if items[-1].line == leaf.line and items[-1].quote.startswith(leaf.quote)
                else leaf.row.strip()
            )
            out.append(replace(leaf, path=parent, value=value, quote=quote))
    return out


def _flags_of_arguments(parent: tuple[Key, ...], items: list[Leaf]) -> list[Leaf]:
    """The `args` of a container as one leaf per flag; words before the first flag stay a list."""
    first = next(k for k, i in enumerate(items) if str(i.value).startswith("--"))
    out = [replace(items[0], path=parent, value=" ".join(str(i.value) for i in items[:first]))] if first else []
    at = {i.line: i for i in reversed(items)}
    for flag in flags_of([(i.line, str(i.value)) for i in items[first:]]):
        value: Any = flag.raw if isinstance(flag.raw, int) else flag.value
        own = next((i for i in items if i.line == flag.line and str(i.value) == flag.value), at[flag.line])
        out.append(replace(own, path=(*parent, flag.key), value=value))
    return out


# ---------------------------------------------------------------- Hugging Face configs


def _config_roots(leaves: list[Leaf], file: str) -> list[tuple[Key, ...]]:
    """Objects that look like a Hugging Face config: a mark of one, or ≥ 4 of its keys spelled its way."""
    keys: dict[tuple[Key, ...], set[str]] = defaultdict(set)
    for leaf in leaves:
        for depth in range(len(leaf.path)):
            key = leaf.path[depth]
            if isinstance(key, str):
                keys[leaf.path[:depth]].add(key)
    roots = []
    for path, names in keys.items():
        known, marks = names & HF_KEYS, names & HF_MARKS
        if (len(known) >= 3 and marks) or len(known) >= 5:
            roots.append(path)
    return sorted(roots, key=len)


_TOWERS = re.compile(r"(?:vq|vision|visual|image|audio|speech|talker|code2wav|token2wav)\w*_config")


def _of_another_tower(leaf: Leaf, configs: list[tuple[Key, ...]]) -> str | None:
    """Why this entry of a multimodal config says nothing of the text tower, if it does not."""
    if any(isinstance(k, str) and _TOWERS.fullmatch(k) for k in leaf.path):
        return "another tower of the model; the text tower is planned"
    inner = [r for r in configs if r and r[-1] in TEXT_PARTS]
    if leaf.path[-1] == "model_type" and any(leaf.path[:-1] == r[:-1] for r in inner):
        return "the text tower states its own model_type"
    return None


def _read_config_key(leaf: Leaf, depth: int, file: str, reading: Reading) -> bool:
    """`num_hidden_layers: 80` inside a config is `model.num_hidden_layers`, nested objects keep their dots."""
    rest = leaf.path[depth:]
    if not rest or not isinstance(rest[0], str):
        return False
    key = rest[0]
    if key in HF_NOISE:
        reading.ignore(
            _generic_path(leaf), "a training or tokenizer setting that the operator graph does not depend on"
        )
        return True
    if key not in HF_KEYS | HF_MORE or leaf.value in ([], {}):
        return False
    name = HF_SAME.get(key, key) if len(rest) == 1 else ".".join(str(k) for k in rest)
    if key in ("torch_dtype", "dtype") or key == "quantization_config":
        _config_dtype(leaf, rest, file, reading)
    value = leaf.value
    reading.candidates.append(
        Candidate(f"model.{name}", value, str(value), file, leaf.line, leaf.quote, key=leaf.dotted, tags=("config",))
    )
    return True


def _config_dtype(leaf: Leaf, rest: tuple[Key, ...], file: str, reading: Reading) -> None:
    text = str(leaf.value)
    if rest[-1] in ("torch_dtype", "dtype", "quant_method", "weight_dtype", "fmt"):
        dtype = next((d for d, words in DTYPES if compiled(words).fullmatch(text)), None)
        quantised = rest[0] == "quantization_config"
        if dtype:
            tags = ("quantised",) if quantised else ("config-dtype",)
            reading.candidates.append(
                Candidate("model.weight_dtype", dtype, text, file, leaf.line, leaf.quote, key=leaf.dotted, tags=tags)
            )


# ---------------------------------------------------------------- one leaf


def _words(key: Key) -> str:
    own = re.sub(r"^[\w-]+(?:\.[\w-]+)+/", "", str(key))  # nvidia.com/gpu
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])(?!B$)|(?<=[A-Z])(?=[A-Z][a-z])(?<![GTM](?=B(?:ps|it)))", " ", own)
    return re.sub(r"[_\-.\s]+", " ", text).strip()


def _read_leaf(leaf: Leaf, file: str, reading: Reading, context: tuple[str, ...]) -> bool:
    names = [k for k in leaf.path if isinstance(k, str)]
    label = _words(names[-1]) if names else (context[-1] if context else "")
    parents = " ".join(_words(k) for k in names[-3:-1] if not _OF_EACH_NODE.fullmatch(_words(k)))
    if len(names) > 2 and _OTHER_PART.search(_words(names[-2])):
        parents = _words(names[-2])  # nodes[0].nics.count counts neither nodes nor devices
    if isinstance(leaf.value, list | dict):
        return False
    if isinstance(leaf.value, bool):
        return _read_switch(leaf, label, file, reading)
    value = "" if leaf.value is None else _number(leaf.value)
    if isinstance(leaf.value, str) and (len(value) > 60 or "\n" in value) and len(sentence_spans(value)) >= 1:
        return _read_text(leaf, label, value, file, reading, (*context, label))
    text = f"{label}: {value}"
    statement = Statement(
        file,
        leaf.line,
        leaf.quote,
        text,
        len(label) + 2 if label else 0,
        (parents,) if parents else (),
        key=leaf.dotted,
        raw=leaf.value,
        kind="leaf",
    )
    return read_statement(statement, reading)


_NIC = re.compile(r"\b(?:nic|hca|port)s?\b|网[卡口]", re.I)
_OTHER_PART = re.compile(
    r"\b(?:nic|hca|port|cpu|socket|disk|ssd|psu)s?\b|\bswitch|网卡|网口|硬盘|电源",
    re.I,
)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return (
            f"{value:.0f}"
            if value.is_integer() and abs(value) < 1e15
            else f"{value:.12g}"
            if 1e-6 < abs(value) < 1e15 or not value
            else repr(value)
        )
    return str(value)


def _read_text(leaf: Leaf, label: str, value: str, file: str, reading: Reading, context: tuple[str, ...]) -> bool:
    """A string of sentences is prose."""
    said = False
    for i, (a, b) in enumerate(sentence_spans(value)):
        text, end = value[a:b], 0
        if i == 0 and label:
            text, end = f"{label}: {text}", len(label) + 2
        said |= read_statement(
            Statement(
                file,
                leaf.line,
                leaf.quote,
                text,
                end,
                context[:-1],
                key=leaf.dotted,
                raw=text,
                kind="field" if end else "prose",
            ),
            reading,
        )
    return said


def _read_switch(leaf: Leaf, label: str, file: str, reading: Reading) -> bool:
    if re.search(r"nv ?link|nv ?switch", label, re.I) and leaf.value is False:
        reading.candidates.append(
            Candidate("hardware.intra_node_link", "PCIe", str(leaf.value), file, leaf.line, leaf.quote, key=leaf.dotted)
        )
        return True
    if re.search(r"tie(?:d)? (?:word )?embeddings?", label, re.I):
        reading.candidates.append(
            Candidate(
                "model.tie_word_embeddings", leaf.value, str(leaf.value), file, leaf.line, leaf.quote, key=leaf.dotted
            )
        )
        return True
    return False


# ---------------------------------------------------------------- counting list items


def _count_lists(leaves: list[Leaf], file: str, reading: Reading) -> None:
    """A list of device objects states how many there are; inside a node, how many per node."""
    members: dict[tuple[Key, ...], set[int]] = defaultdict(set)
    first: dict[tuple[Key, ...], Leaf] = {}
    for leaf in leaves:
        for depth, key in enumerate(leaf.path):
            if isinstance(key, int) and depth and isinstance(leaf.path[depth - 1], str):
                members[leaf.path[:depth]].add(key)
                first.setdefault(leaf.path[:depth], leaf)
    objects = {leaf.path[:depth] for leaf in leaves for depth in range(len(leaf.path) - 1)}
    counted = {leaf.path[:-2] for leaf in leaves if len(leaf.path) > 2 and _ITEM_COUNT.fullmatch(str(leaf.path[-1]))}
    for path, items in members.items():
        name = str(path[-1])
        leaf = first[path]
        if leaf.path == path or path not in objects:
            continue
        nested = any(isinstance(k, int) for k in path[:-1])
        if _NODE_LIST.search(_words(name)) and not _DEVICE_LIST.search(_words(name)):
            kind = "hardware.num_nodes"
        elif _DEVICE_LIST.search(_words(name)) and path not in counted:
            kind = "hardware.devices_per_node" if nested else "hardware.device_count"
        else:
            continue
        if kind == "hardware.num_nodes" and path in counted:
            continue
        reading.candidates.append(
            Candidate(
                kind,
                len(items),
                f"{len(items)} entries of {name}",
                file,
                leaf.line,
                leaf.quote,
                key=name,
                origin="derived",
                tags=("listed",),
                group=str(path),
            )
        )


# items that carry their own count are kinds, not single devices
_ITEM_COUNT = re.compile(r"count|num|number|quantity|qty|n|num_\w+|数量|\w+_count", re.I)
