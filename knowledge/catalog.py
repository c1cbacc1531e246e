"""The catalogue: names as people write them → devices and models with sourced values.

One YAML file per device (`hardware/`) and per model (`models/`), each value with its source. A look-up reads the index
of aliases (`index.json`, written by `python -m knowledge.catalog`) and then one YAML file only. An index that is older
than the folder (a file was added or removed) is rebuilt in memory.

    load_device("8xH100").device.id         == "h100_sxm_80gb", count 8
    load_device("A100", memory_bytes=40e9)  → the 40 GB part
    load_model("Llama3_70B_Instruct").model → ModelSpec
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import yaml

from knowledge.hf_config import model_from_config
from tools.spec.base import ToolError
from tools.spec.hardware import Device
from tools.spec.model import ModelSpec

__all__ = [
    "DeviceMatch", "ModelMatch", "build_index", "device_ids", "devices", "find_devices_in_text", "find_models_in_text",
    "load_device", "load_model", "model_ids", "models", "normalise_device", "normalise_model", "read_entry",
    "released_checkpoint",
]  # fmt: skip

Kind = Literal["hardware", "models"]
GB, GIB, TERA = 1e9, 2.0**30, 1e12
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MEMORY_TOLERANCE = 0.12
"""Relative distance within which a stated memory size means a catalogue part (80 GB, 79.6 GiB and 85.5e9 bytes)."""
MAX_CONFIG_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class DeviceMatch:
    """`count` as in "8xH100"; `note` says what was assumed about an ambiguous name."""

    device: Device
    count: int | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class ModelMatch:
    """`weight_hint` is the dtype that the name carries ("-FP8", "-AWQ"), None when it carries none."""

    model: ModelSpec
    weight_hint: str | None = None
    note: str | None = None


# ── look-ups ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def load_device(name: str, memory_bytes: float | None = None) -> DeviceMatch:
    """Device of any spelling; `memory_bytes` (or a size in the name) picks among the parts that share it.

    Raises ToolError with the nearest known names.
    """
    text, count, stated = _parse_device_name(name)
    found = _device_candidates(text)
    if not found and count is None:
        text, count = _strip_tight_count(text)
        found = _device_candidates(text)
    if not found:
        return _device_within(name, text, count, memory_bytes)
    if (memory_bytes is None and len(found) > 1) or (
        memory_bytes is None and stated is not None and not _index()["hardware"]["aliases"].get(normalise_device(text))
    ):
        memory_bytes = stated
    ident, note = _pick(found, memory_bytes, name)
    return DeviceMatch(device_by_id(ident), count, note)


def _device_within(name: str, text: str, count: int | None, memory_bytes: float | None) -> DeviceMatch:
    """The one device that a longer description names; a MIG slice is none of them."""
    hits = [] if re.search(r"(?<![a-z])mig(?![a-z])", text) else find_devices_in_text(name)
    if len({ident for *_, ident in hits}) != 1:
        raise _unknown("device", name, normalise_device(text), _index()["hardware"])
    start, _, words, ident = hits[0]
    if memory_bytes:
        ident = load_device(words, memory_bytes).device.id
    before = re.search(r"(\d{1,6})\s*(?:[x×*]|张|块|卡)?\s*$", name[:start])
    return DeviceMatch(
        device_by_id(ident), count or (int(before[1]) if before else None), f"{name[:80]!r} read as {words}"
    )


def load_model(name_or_path: str | Path) -> ModelMatch:
    """Model of any spelling, or the path of a `config.json` (or of a folder that holds one).

    Raises ToolError with the nearest known names, or naming what is wrong with the file.
    """
    text = str(name_or_path)
    if not text.strip():
        raise ToolError("no model named; give a name such as 'Llama-3.1-70B' or the path of a config.json")
    path = Path(name_or_path)
    # a folder that happens to be called "gpt2" is no model, unless it holds one or is written as a path
    if text.lower().endswith(".json") or (_is_folder(path) and (_holds_config(path) or re.search(r"[/\\]|^\.", text))):
        return ModelMatch(_model_from_file(path))
    found = _model_key(text)
    if found is None:
        raise _unknown("model", text, normalise_model(text), _index()["models"])
    (ident, note), hint = found
    return ModelMatch(model_by_id(ident), hint, note)


@lru_cache(maxsize=256)
def device_by_id(ident: str) -> Device:
    """The entry `hardware/<ident>.yaml` in SI base units."""
    return _device(read_entry("hardware", ident))


@lru_cache(maxsize=256)
def model_by_id(ident: str) -> ModelSpec:
    """The entry `models/<ident>.yaml`, read by the same function as a user's config.json."""
    return _model(ident, read_entry("models", ident))


def released_checkpoint(name: str) -> str | None:
    """Repository on the Hugging Face Hub of the catalogue's model with exactly this name, where it was released."""
    ident = next((i for i, shown in _index()["models"]["names"].items() if shown == name), None)
    return read_entry("models", ident).get("hf_id") if ident else None


def device_ids() -> tuple[str, ...]:
    return tuple(sorted(_names("hardware")))


def model_ids() -> tuple[str, ...]:
    return tuple(sorted(_names("models")))


def devices() -> tuple[Device, ...]:
    """Every device of the catalogue, by id."""
    return tuple(device_by_id(i) for i in device_ids())


def models() -> tuple[ModelSpec, ...]:
    """Every model of the catalogue, by id, unsupported ones included."""
    return tuple(model_by_id(i) for i in model_ids())


def read_entry(kind: Kind, ident: str) -> dict[str, Any]:
    """The YAML of one entry as written, for reports that quote its sources and notes."""
    source = _folder(kind) / f"{ident}.yaml"
    if ident not in _names(kind):
        raise ToolError(f"the catalogue has no entry {ident!r} under {kind}")
    entry = yaml.load(source.read_text(encoding="utf-8"), Loader=LOADER)
    if not isinstance(entry, dict):
        raise ToolError(f"{kind}/{ident}.yaml is no mapping")
    return entry


# ── entries → values ──────────────────────────────────────────────────────────────────────────────────────────────────


def _value(fact: Mapping[str, Any] | float) -> float:
    return float(fact["value"] if isinstance(fact, Mapping) else fact)


def _device(entry: dict[str, Any]) -> Device:
    memory, link = entry["memory"], entry["link"]
    return Device(
        id=entry["id"],
        name=entry["name"],
        vendor=entry["vendor"],
        arch=entry["arch"],
        memory_bytes=_value(memory["nominal_gb"]) * GB,
        memory_usable_bytes=_value(memory["usable_gib"]) * GIB,
        memory_bandwidth=_value(memory["bandwidth_gbs"]) * GB,
        peak_flops={dtype: _value(fact) * TERA for dtype, fact in entry["peak_dense_tflops"].items()},
        sparse_multiplier=_value(entry["sparse_multiplier"]),
        link=link["kind"],
        link_bandwidth=_value(link["one_way_gbs"]) * GB,
        link_domain=link["domain"],
        pcie_bandwidth=_value(entry["pcie_one_way_gbs"]) * GB,
        network_bandwidth=_value(entry["network_one_way_gbs"]) * GB,
        devices_per_node=entry["devices_per_node"],
        link_topology=link["topology"],
        power_watts=_value(entry["power_watts"]) if "power_watts" in entry else None,
        sources=tuple(entry["sources"].values()),
        confidence=_lowest_confidence(entry),
        notes=" ".join(entry.get("notes", ())),
    )


def _lowest_confidence(entry: dict[str, Any]) -> Literal["high", "medium", "low"]:
    """Of the figures that decide a plan: memory, its bandwidth, and peaks."""
    memory = entry["memory"]
    facts = [memory["nominal_gb"], memory["bandwidth_gbs"], *entry["peak_dense_tflops"].values()]
    grades = {fact["confidence"] for fact in facts}
    return "low" if "low" in grades else "medium" if "medium" in grades else "high"


def _resolved_config(entry: dict[str, Any]) -> dict[str, Any]:
    """Config of the entry; that of `variant_of` where it has none, its own keys on top."""
    base: dict[str, Any] = {}
    if "variant_of" in entry:
        base = _resolved_config(read_entry("models", entry["variant_of"]))
    return base | entry.get("config", {})


def _model(ident: str, entry: dict[str, Any]) -> ModelSpec:
    spec = model_from_config(_resolved_config(entry), name=entry["name"])
    parameters = entry.get("parameters", {})
    total, active = parameters.get("total_billion"), parameters.get("active_billion")
    return spec.model_copy(
        update={
            "declared_parameters": total * GB if total else None,
            "declared_active_parameters": active * GB if active else None,
            "unsupported": tuple(entry["unsupported"]) if entry.get("unsupported") else spec.unsupported,
            "sources": (f"knowledge/models/{ident}.yaml: {entry['source']}", *spec.sources[1:]),
            "confidence": entry["confidence"],
        }
    )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _holds_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _model_from_file(path: Path) -> ModelSpec:
    file = path / "config.json" if _is_folder(path) else path
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            size = file.stat().st_size / 1e6
            raise ToolError(f"{file}: {size:.0f} MB is no model config; give the config.json of the model")
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ToolError(
            f"{file}: {error.strerror or error}; give a config.json, a folder with one, or a name"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ToolError(f"{file}: no valid JSON ({str(error)[:80]})") from None
    if not isinstance(data, dict):
        raise ToolError(f"{file}: a model config is a JSON object, got {type(data).__name__}")
    label = file.parent.name if file.name == "config.json" else file.stem
    return model_from_config(data, name=str(data.get("_name_or_path") or data.get("model_name") or label or "model"))


# ── names of devices ──────────────────────────────────────────────────────────────────────────────────────────────────

_VENDOR_LIST = """
nvidia amd intel google huawei geforce instinct tesla quadro radeon cloud ascend rtx gpus gpu npus npu cards card habana
cambricon graphics accelerator 英伟达 华为 昇腾 升腾 显卡 加速卡 计算卡 寒武纪 摩尔线程 谷歌 服务器
"""
VENDOR_WORDS = (*_VENDOR_LIST.split(), "tensor core", "moore threads")
_VENDOR = re.compile(r"(?<![a-z])(?:" + "|".join(sorted(VENDOR_WORDS, key=len, reverse=True)) + r")(?![a-z])")
_MEMORY = re.compile(r"(?<![a-z0-9.])(\d{1,4})\s*(gib|gb|g|显存)(?![a-z0-9])|(?<=[-_ ])(\d{1,4})(gib|gb|g)(?![a-z0-9])")
_MEMORY_KIND = re.compile(r"(?<![a-z])(?:hbm\d?e?|gddr\d?x?|lpddr\d?x?)(?![a-z0-9])")
_CJK_NUMBERS = {
    "单": 1,
    "一": 1,
    "双": 2,
    "两": 2,
    "二": 2,
    "三": 3,
    "四": 4,
    "五": 5,
    "六": 6,
    "七": 7,
    "八": 8,
    "十": 10,
    "十六": 16,
    "三十二": 32,
}
_COUNTER = r"(?:张|块|卡|片|颗|个|枚)"
_CJK_COUNT = "|".join(sorted(_CJK_NUMBERS, key=len, reverse=True))
_PREFIX_COUNT = re.compile(
    rf"^\s*(?:(\d{{1,6}})\s*(?:[x×*✕]|{_COUNTER}|(?=\s))\s*|({_CJK_COUNT})\s*{_COUNTER}\s*)(?=\S)"
)
_SUFFIX_COUNT = re.compile(
    rf"(?:\s*[×*✕]\s*|[\s_-]+x\s*|\s*[(（]x)(\d{{1,6}})[)）]?\s*$|[\s,，]*(\d{{1,6}})\s*{_COUNTER}\s*$"
)


def normalise_device(name: str) -> str:
    """Key under which spellings of one device meet: no case, no separators, no vendor words."""
    text = unicodedata.normalize("NFKC", name).lower().replace("_", " ")
    text = _VENDOR.sub(" ", text)
    return re.sub(r"[^0-9a-z\u4e00-\u9fff+]", "", text)


def _parse_device_name(name: str) -> tuple[str, int | None, float | None]:
    """(name without count, count, memory size in the name)."""
    if not isinstance(name, str) or not name.strip():
        raise ToolError(f"a device name is a word such as 'H100' or 'RTX 4090', got {name!r}")
    text = unicodedata.normalize("NFKC", name[:200]).lower().replace("_", " ").strip()
    count: int | None = None
    while not _device_candidates(text) and (match := _PREFIX_COUNT.match(text)):
        times = int(match[1]) if match[1] else _CJK_NUMBERS[match[2]]
        count, text = (count or 1) * times, text[match.end() :]
    if (
        not _device_candidates(text)
        and (match := _SUFFIX_COUNT.search(text))
        and match[1]
        and not match[0].startswith("x")
    ):
        count, text = (count or 1) * int(match[1]), text[: match.start()]
    elif not _device_candidates(text) and match and match[2]:
        count, text = (count or 1) * int(match[2]), text[: match.start()]
    size = _MEMORY.search(text)
    if size is None:
        return text, count, None
    number, unit = size[1] or size[3], size[2] or size[4]
    spelled = f"{text[: size.start()]} {number}gb {text[size.end() :]}"
    return spelled if _device_candidates(spelled) else text, count, float(number) * (GIB if unit == "gib" else GB)


def _strip_tight_count(text: str) -> tuple[str, int | None]:
    """ "H100x8": tried last, since x ends the names of some devices."""
    match = re.search(r"x(\d{1,6})$", text)
    return (text[: match.start()], int(match[1])) if match else (text, None)


def _device_candidates(text: str) -> list[list[Any]]:
    """Index rows of a name: as written, then without memory type, then without its size."""
    aliases = _index()["hardware"]["aliases"]
    bare = _MEMORY_KIND.sub(" ", text)
    for attempt in (text, bare, _MEMORY.sub(" ", bare)):
        found = aliases.get(normalise_device(attempt))
        if found:
            return found
    return []


def _pick(rows: list[list[Any]], memory: float | None, name: str) -> tuple[str, str | None]:
    """One of the parts that share a name: by memory when it is known, else the documented default."""
    if memory:
        fitting = [row for row in rows if _memory_distance(row[2], memory) <= MEMORY_TOLERANCE]
        if fitting:
            # equal sizes: the documented default, else the part with the faster link (SXM before PCIe)
            best = min(fitting, key=lambda row: (round(_memory_distance(row[2], memory), 2), not row[1], -row[4]))
            others = [row for row in fitting if row is not best and row[2] == best[2]]
            return best[
                0
            ], f"taken as {best[3]}; {', '.join(r[3] for r in others)} has the same memory" if others else None
        row = _default(rows)
        return row[0], f"{name}: {memory / GB:g} GB stated, {row[3]} has {row[2] / GB:g} GB"
    row = _default(rows)
    return row[0], row[1] if isinstance(row[1], str) and row[1] else None


def _default(rows: list[list[Any]]) -> list[Any]:
    return next((row for row in rows if row[1]), rows[0])


def _memory_distance(nominal: float, stated: float) -> float:
    """Relative distance of a stated size to a nominal one, read as GB or as GiB."""
    return (
        min(abs(math.log(stated / nominal)), abs(math.log(stated / (nominal / GB * GIB)))) if stated > 0 else math.inf
    )


# ── names of models ───────────────────────────────────────────────────────────────────────────────────────────────────

WEIGHT_SPELLINGS = {
    "fp8": "fp8 f8 float8",
    "int4": "awq gptq int4 w4a16 4bit w4a8 q4 autoround nf4 bnb",
    "int8": "int8 w8a8 w8a16 8bit smoothquant q8",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
    "fp4": "fp4",
    "bf16": "bf16",
    "fp16": "fp16 f16 half",
    "fp32": "fp32",
}
WEIGHT_WORDS = {word: dtype for dtype, words in WEIGHT_SPELLINGS.items() for word in words.split()}
_SUFFIX_LIST = """
instruct chat hf it base pt sft dpo thinking reasoning preview dynamic block quantized text gguf mlx model latest
official original 模型 版 量化版 w a int exp 4k 8k 32k 128k 1m 2407 2411 2501 2503 2506 2507 2512 0324 0414 0528 0711
0905 1120
"""
PLAIN_SUFFIXES = frozenset(_SUFFIX_LIST.split())
_ORG = re.compile(r"^.*/(?=[^/]+$)")


def normalise_model(name: str) -> str:
    """Key under which spellings of one model meet: no organisation, no case, no separators but the decimal point."""
    text = _ORG.sub("", unicodedata.normalize("NFKC", name).strip().rstrip("/")).lower()
    return re.sub(r"(?<!\d)\.|\.(?!\d)|[^0-9a-z\u4e00-\u9fff+.]", "", text)


def _model_tokens(name: str) -> list[str]:
    text = _ORG.sub("", unicodedata.normalize("NFKC", name).strip().rstrip("/")).lower()
    text = re.sub(r"(?<![0-9a-z])q(\d)(?:_[0-9k])?(?:_[sml])?(?![0-9a-z])", r"q\1", text)  # llama.cpp: q4_k_m
    return [t for t in re.split(r"[^0-9a-z\u4e00-\u9fff.+]+", text) if t]


def _model_key(name: str) -> tuple[list[Any], str | None] | None:
    """(index row, weight hint) of a name, dropping as few as possible of the words that releases append to it."""
    if not name.strip() or len(name) > 300:
        return None
    aliases = _index()["models"]["aliases"]
    tokens = _model_tokens(name)
    hint = next((WEIGHT_WORDS[t] for t in tokens if t in WEIGHT_WORDS), None)
    loose = [i for i in range(1, len(tokens)) if _is_suffix(tokens[i])][:8]
    # fewest words dropped first: "Mistral-7B-Instruct-v0.3" is v0.3, not v0.1
    for count in range(len(loose) + 1):
        for dropped in itertools.combinations(loose, count):
            row = aliases.get(normalise_model("-".join(t for i, t in enumerate(tokens) if i not in dropped)))
            if row:
                return row, hint
    return None


def _is_suffix(token: str) -> bool:
    return (
        token in PLAIN_SUFFIXES
        or token in WEIGHT_WORDS
        or bool(re.fullmatch(r"v\d(\.\d)?|g\d{2,3}|q\d.*|\d{4}", token))
    )


# ── the index ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _folder(kind: Kind) -> Traversable:
    return resources.files("knowledge") / kind


@lru_cache(maxsize=2)
def _names(kind: Kind) -> frozenset[str]:
    return frozenset(f.name[:-5] for f in _folder(kind).iterdir() if f.name.endswith(".yaml"))


@lru_cache(maxsize=1)
def _index() -> dict[str, Any]:
    """The committed index, or a fresh one when the folders hold other files than it knows."""
    try:
        index = json.loads((resources.files("knowledge") / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return build_index()
    same = all(set(index[kind]["names"]) == _names(kind) for kind in ("hardware", "models"))  # type: ignore[arg-type]
    return index if same else build_index()


def build_index() -> dict[str, Any]:
    """Aliases of all entries. Raises ToolError when two models claim a name, or a shared device name has no default."""
    return {"hardware": _device_index(), "models": _model_index()}


def _device_index() -> dict[str, Any]:
    """alias → rows [id, default?, nominal bytes, name, link GB/s]; `default?` is the note of the choice, or false."""
    aliases: dict[str, list[list[Any]]] = {}
    names: dict[str, str] = {}
    shown: dict[str, str] = {}
    for ident in sorted(_names("hardware")):
        entry = read_entry("hardware", ident)
        names[ident] = entry["name"]
        defaults = {normalise_device(k): v for k, v in entry.get("default_for", {}).items()}
        for alias in [ident, entry["name"], *entry["aliases"], *entry.get("families", ())]:
            key = normalise_device(alias)
            shown.setdefault(key, alias)
            rows = aliases.setdefault(key, [])
            if all(row[0] != ident for row in rows):
                nominal = _value(entry["memory"]["nominal_gb"]) * GB
                rows.append(
                    [ident, defaults.get(key, False), nominal, entry["name"], _value(entry["link"]["one_way_gbs"])]
                )
    for key, rows in aliases.items():
        if len(rows) > 1 and sum(bool(row[1]) for row in rows) != 1:
            raise ToolError(
                f"device name {shown[key]!r} is shared by {[r[0] for r in rows]}: exactly one must be its default_for"
            )
    return {"names": names, "aliases": aliases, "shown": shown}


def _model_index() -> dict[str, Any]:
    """alias → [id, note or null]."""
    aliases: dict[str, list[Any]] = {}
    names: dict[str, str] = {}
    shown: dict[str, str] = {}
    for ident in sorted(_names("models")):
        entry = read_entry("models", ident)
        names[ident] = entry["name"]
        spellings = [ident, entry["name"], *([entry["hf_id"]] if "hf_id" in entry else []), *entry["aliases"]]
        noted = [(s, None) for s in spellings] + list(entry.get("ambiguous", {}).items())
        for alias, note in noted:
            key = normalise_model(alias)
            if key in aliases and aliases[key][0] != ident:
                raise ToolError(f"model name {alias!r} is claimed by {aliases[key][0]} and {ident}")
            aliases.setdefault(key, [ident, note])
            shown.setdefault(key, _ORG.sub("", alias))
    for key, row in _without_points(aliases).items():
        aliases.setdefault(key, row)
    return {"names": names, "aliases": aliases, "shown": shown}


def _without_points(aliases: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """ "llama31-70b" for "llama3.1-70b", where that means one model only ("opt-13b" is not "opt-1.3b")."""
    claims: dict[str, list[list[Any]]] = {}
    for key, row in aliases.items():
        if "." in key:
            claims.setdefault(key.replace(".", ""), []).append(row)
    return {key: rows[0] for key, rows in claims.items() if len({row[0] for row in rows}) == 1}


def _unknown(what: str, name: str, key: str, index: dict[str, Any]) -> ToolError:
    if not key:
        key = re.sub(r"\s", "", str(name).lower())
    within = sorted((a for a in index["aliases"] if len(a) >= 5 and a in key), key=len, reverse=True)[:1]
    near = within + difflib.get_close_matches(key, index["aliases"], n=12, cutoff=0.3) or sorted(index["aliases"])[:3]
    rows = [index["aliases"][k] for k in near]
    idents = dict.fromkeys(row[0][0] if isinstance(row[0], list) else row[0] for row in rows)
    labels = [index["names"][i] for i in idents][:3]
    return ToolError(f"unknown {what} {str(name)[:80]!r}; did you mean {', '.join(labels)}?")


# ── names in prose ────────────────────────────────────────────────────────────────────────────────────────────────────

_ATOM = re.compile(r"[A-Za-z]+|\d+|[\u4e00-\u9fff]|\+")
_WORDY = re.compile(r"[A-Za-z0-9]")
MAX_ATOMS = 14
_GPU_BEFORE = re.compile(
    r"(?:\d|[一二两三四五六七八十双单几多])\s*(?:[x×*✕]|张|块|卡|片|颗|台|个)\s*$"
    r"|(?:rtx|geforce|nvidia|tesla|gpus?|显卡|英伟达)[\s:：(（]*$",
    re.IGNORECASE,
)
_GPU_AFTER = re.compile(
    r"^[\s,，]*(?:\d+\s*(?:g|gb|gib)\b)?"
    r"\s*(?:[x×*✕]\s*\d|张|块|卡|片|显卡|gpus?\b|cards?\b|显存|\d+\s*(?:张|块|卡))",
    re.IGNORECASE,
)


def _joins(text: str, left: tuple[int, int], right: tuple[int, int]) -> bool:
    """Whether neighbouring atoms may belong to one name: "H100" and "Llama 3" yes, "plan B 200" and line breaks no."""
    gap = text[left[1] : right[0]]
    if not gap:
        return True
    if len(gap) > 2 or re.search(r"[^ \-_.]", gap):
        return False
    before, after = text[slice(*left)], text[slice(*right)]
    if before.isalpha() and before.isascii() and after.isdigit() and len(before) <= 2 and " " in gap:
        return False
    return not (before.isalpha() and len(before) == 1 and after.isdigit())


def _bounded(text: str, start: int, end: int, multiplied: bool) -> bool:
    """Word boundaries that also hold beside Chinese characters; "8xH100" and "H100x8" count when `multiplied`."""
    left = text[start - 1] if start and text[start].isascii() else ""
    if left and (_WORDY.match(left) or (left == "." and start > 1 and text[start - 2].isdigit())):
        before = re.search(r"\d[xX]$", text[:start][-3:])
        if not (multiplied and before):
            return False
    tail = text[end : end + 8] if text[end - 1].isascii() else ""
    if multiplied and re.match(r"[xX]\d", tail):
        return True
    return not re.match(r"[A-Za-z0-9]|\.\d", tail)


@lru_cache(maxsize=2)
def _prefixes(kind: Kind) -> frozenset[str]:
    """Every beginning of every alias: where a growing name leaves this set, no longer name can match."""
    return frozenset(key[:n] for key in _index()[kind]["aliases"] for n in range(len(key) + 1))


def _scan(text: str, kind: Kind, multiplied: bool) -> Iterable[tuple[int, int, str]]:
    """(start, end, key): longest names first at every position; a name never overlaps the one before it."""
    normalise = normalise_device if kind == "hardware" else normalise_model
    aliases, prefixes = _index()[kind]["aliases"], _prefixes(kind)
    spans = [m.span() for m in _ATOM.finditer(text)]
    i = 0
    while i < len(spans):
        hit, j, start = None, i, spans[i][0]
        while j < min(len(spans), i + MAX_ATOMS) and (j == i or _joins(text, spans[j - 1], spans[j])):
            key = normalise(text[start : spans[j][1]])
            if key not in prefixes:
                break
            if key in aliases and _bounded(text, start, spans[j][1], multiplied):
                hit = (key, j)
            j += 1
        if hit:
            yield start, spans[hit[1]][1], hit[0]
        i = hit[1] + 1 if hit else i + 1


def _split_count(text: str) -> str:
    """ "8xH100" → "8 H100" in place, so that the letter x does not stick to the name."""
    return re.sub(r"(?<=\d)[xX](?=[A-Za-z]{1,3}\d|[A-Za-z]{3,}|\d{4})", "×", text)


_PLURAL = re.compile(r"(?<![A-Za-z0-9])(?!L40|V100)[A-Z]{1,2}\d{2,4}s(?![A-Za-z0-9])")
""" "H100s" are several; an L40s and a V100s are devices of that name."""


def find_devices_in_text(text: str) -> list[tuple[int, int, str, str]]:
    """(start, end, words, device id) of every device named in prose, in order; spans index the given text.

    Short or purely numeric names ("4090", "L4") count only beside a card word, a number of cards, or a vendor.
    """
    index = _index()["hardware"]["aliases"]
    found = []
    for start, end, key in _scan(
        _split_count(_PLURAL.sub(lambda m: m[0][:-1] + " ", text)), "hardware", multiplied=True
    ):
        start = _skip_generic(text, start, end)
        words = text[start:end]
        risky = words.isdigit() or len(words) <= 2
        if risky and not (
            _GPU_BEFORE.search(text[max(0, start - 16) : start]) or _GPU_AFTER.match(text[end : end + 16])
        ):
            continue
        size = re.match(r"\s*[-(（,，]?\s*(\d{1,4}\s*(?:gib|gb|g))(?![a-z0-9/])", text[end : end + 14], re.I)
        memory = _MEMORY.search(" " + size[1].lower()) if size else None
        stated = float(memory[1] or memory[3]) * GB if memory else _parse_device_name(words)[2]
        found.append((start, end, words, _pick(index[key], stated, words)[0]))
    return found


def _skip_generic(text: str, start: int, end: int) -> int:
    """Drops leading words that are no part of a name ("GPU H100", "显卡 4090")."""
    match = re.match(r"(?:(?:gpus?|npus?|cards?|显卡|服务器|加速卡|计算卡)[\s:：_-]*)+", text[start:end], re.I)
    return start + match.end() if match else start


def find_models_in_text(text: str) -> list[tuple[int, int, str, str]]:
    """(start, end, words, model id) of every model named in prose, release suffixes included ("-Instruct", "-FP8")."""
    index = _index()["models"]["aliases"]
    found = []
    for start, end, key in _scan(text, "models", multiplied=False):
        if text[start:end].isdigit():
            continue
        start, end = _with_organisation(text, start), _with_suffixes(text, end)
        row = _model_key(text[start:end]) or (index[key], None)
        found.append((start, end, text[start:end], row[0][0]))
    return found


def _with_organisation(text: str, start: int) -> int:
    match = re.search(r"(?<![\w./-])[A-Za-z][\w-]{1,30}/$", text[:start])
    return match.start() if match else start


def _with_suffixes(text: str, end: int) -> int:
    """End of the release suffixes that follow a model name, hyphenated or as separate words."""
    while match := re.match(r"([-_ ])([A-Za-z0-9.]+?)(?=[-_ ,.;:()/]|\s|$|[^\x00-\x7f])", text[end:]):
        word = match[2].lower()
        spoken = match[1] == " "
        known = word in {"instruct", "chat", "thinking"} | (set() if spoken else PLAIN_SUFFIXES | set(WEIGHT_WORDS))
        dated = not spoken and re.fullmatch(r"\d{4}|v\d(\.\d)?", word)
        if not (known or dated):
            break
        end += match.end()
    return end


if __name__ == "__main__":
    target = Path(__file__).with_name("index.json")
    target.write_text(json.dumps(build_index(), ensure_ascii=False, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{target}: {len(_names('hardware'))} devices, {len(_names('models'))} models")
