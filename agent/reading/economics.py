"""What flips plans without being a dimension of model or hardware: prices, devices to choose between, spare capacity."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.reading.facts import Candidate, Reading
from knowledge import catalog
from tools.spec.base import ToolError

if TYPE_CHECKING:
    from agent.reading.names import Name
    from agent.reading.scene import Scene

PRICE = "hardware.price_per_device_hour"
CURRENCY = "hardware.price_currency"
CANDIDATES = "hardware.candidates"

_SIGNS = r"US\$|[$¥￥€£]"
_WORDS = r"USD|EUR|RMB|CNY|GBP|(?:US )?dollars?|bucks|euros?|yuan|元|块钱?|人民币|美元|美金|欧元"
_AMOUNT = re.compile(
    rf"(?P<sign>{_SIGNS}|\b(?:USD|EUR|RMB|CNY)\b)\s*(?P<a>\d[\d,]*(?:\.\d+)?)\s*(?P<ak>[kK万])?(?![\d.])|(?<![A-Za-z\d.,])(?P<b>\d[\d,]*(?:\.\d+)?)\s*(?P<bk>[kK万])?\s*(?P<word>(?:{_SIGNS})(?!\s*\d)|{_WORDS})",
    re.I,
)
_BARE = re.compile(r"\s*(?P<b>\d[\d,]*(?:\.\d+)?)\s*$|\s*(?P<c>\d[\d,]*(?:\.\d+)?)\s*(?:/|per)", re.I)
CURRENCIES = (
    ("USD", r"US\$|\$|USD|dollar|bucks|美元|美金"), ("CNY", r"[¥￥]|RMB|CNY|yuan|元|块|人民币"), ("EUR", r"€|EUR|euro|欧元"),
    ("GBP", r"£|GBP"),
)  # fmt: skip
_HOURS = (
    (1.0, r"hours?\b|hourly|\bhrs?\b|(?:/|per[\s_-]?)h\b|小时|卡时|机时|每时"), (24.0, r"\bdays?\b|\bdaily\b|天|每日|/日"),
    (730.0, r"\bmonths?\b|\bmonthly\b|\bmo\b|月"), (8760.0, r"\byears?\b|\bannual|\byr\b|年"),
)  # fmt: skip
_NODE = re.compile(r"\b(?:node|server|instance|machine|host|box|vm)s?\b|节点|服务器|每台|整机|单机|机器|机时", re.I)
_DEVICE = re.compile(r"\b(?:gpu|npu|card|device|accelerator|chip)s?\b|每?[张块]?卡|显卡", re.I)
_LABEL = re.compile(
    r"price|cost|\brent|\bfee\b|\brate\b|usd|rmb|cny|eur\b|dollar|单价|价格|租金|费用|成本|报价|元", re.I
)
_BUDGET = re.compile(r"budget|预算|at most|不超过|cap of", re.I)
_CLAUSE = re.compile(r"[,，;；。()（）\n]|\.\s|\b(?:and|while|whereas|vs\.?)\b|而")


def read(scene: Scene, reading: Reading) -> None:
    """Adds prices, candidate devices and spare capacity; takes back what other rules made of their words."""
    for c in (*_prices(scene, reading), *_choice(scene)):
        reading.candidates.append(c)
    for found, words in (_spare(scene), _peak(scene)):
        if found is None:
            continue
        # "One spare replica" is no share of memory, "a node may fail" no number of nodes, "3x at peak" no users.
        mine = (found.file, found.line, found.quote)
        reading.candidates[:] = [
            c
            for c in reading.candidates
            if not (
                (c.file, c.line, c.quote) == mine
                and c.path in _MISREAD
                and c.value == found.value
                and (c.stated_as in words or c.path == "requirements.memory_reserve")
            )
        ]
        if not any(c.path == found.path and (c.file, c.line) == mine[:2] for c in reading.candidates):
            reading.candidates.append(found)


_MEAN = re.compile(
    r"\b(?:mean|average|avg|typical|usual|normal|steady|off-?peak|quiet|base)\w*|平均|均值|日常|平时|平峰|通常|常态|一般|闲时",
    re.I,
)
_TOP = re.compile(
    r"(?<!off-)(?<!off )\bpeak\w*|\bmax\w*|\bburst\w*|\bbusiest|\brush\b|\b(?:lunch|evening|morning) (?:hours?|rush|peak)\b|\bspik\w+|\bp9[059]\b|峰值|高峰|最高|忙时|尖峰",
    re.I,
)
_EDGE = re.compile(r"[,，;；。()（）\n/]|\.(?=\s|$)|\b(?:and|but)\b|[而但]")


def mark_rates(scene: Scene, reading: Reading, first: int) -> None:
    """Marks every rate of the sentence as the mean or the peak by the words of its clause; `settle_peak` compares them."""
    line, quote = scene.statement.at(0)
    # rules that take readings back may have moved the sentence's own a little to the front
    for k in range(max(0, first - 64), len(reading.candidates)):
        c = reading.candidates[k]
        if c.path != "workload.request_rate" or (c.line, c.quote) != (line, quote):
            continue
        place = re.search(rf"(?<![\d.]){re.escape(c.stated_as)}", scene.text)
        if place is None:
            continue
        own = _EDGE.split(scene.text[: place.start()])[-1] + " " + _EDGE.split(scene.text[place.end() :])[0]
        own += " " + scene.text[scene.shift : scene.label_end]
        kind = "mean" if _MEAN.search(own) else "peak" if _TOP.search(own) else ""
        if kind:
            reading.candidates[k] = replace(c, tags=(*c.tags, kind))


def settle_peak(rates: list[Candidate]) -> tuple[list[Candidate], Candidate | None]:
    """ "30 QPS at peak, usually 10": the mean is the rate, their ratio the peak factor; both may stand apart."""
    peaks = [c for c in rates if "peak" in c.tags]
    means = [c for c in rates if "mean" in c.tags] or [c for c in rates if "peak" not in c.tags]
    if not peaks or not means:
        return rates, None
    high, low = max(peaks, key=lambda c: c.value), max(means, key=lambda c: c.value)
    if not 0 < low.value < high.value:
        return rates, None
    factor = replace(high, path="workload.peak_factor", value=float(f"{high.value / low.value:.6g}"), origin="derived")
    return [c for c in rates if c not in peaks], factor


_MISREAD = (
    "requirements.memory_reserve", "hardware.num_nodes", "hardware.device_count", "workload.concurrency",
    "workload.batch_size", "workload.request_rate",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- prices


def _prices(scene: Scene, reading: Reading) -> list[Candidate]:
    text, out = scene.text, []
    if listed := _listed_prices(scene, reading):
        return listed
    for m in _AMOUNT.finditer(text, scene.label_end):
        out += _price(scene, m, m["sign"] or m["word"] or "", reading)
    label = text[: scene.label_end]
    subject = f"{' '.join(scene.statement.context[-2:])} {label}"
    if not out and scene.label_end and _LABEL.search(subject):
        bare = _BARE.match(text, scene.label_end)
        out += _price(scene, bare, subject, reading) if bare else []
    return out


_RUN = re.compile(
    rf"(?P<run>(?:{_SIGNS})?\s*\d[\d,]*(?:\.\d+)?(?:\s*(?:,|/|、|\band\b|\bor\b|\bvs\.?|&|和|及|或)\s*(?:{_SIGNS})?\s*\d[\d,]*(?:\.\d+)?)+)\s*(?P<word>{_WORDS})?(?P<after>[^,，;；。()（）\n]{{0,40}})",
    re.I,
)


def _listed_prices(scene: Scene, reading: Reading) -> list[Candidate]:
    """ "list price 2.10 and 1.85 dollars an hour": one for each of the devices named before, in their order."""
    devices = list(dict.fromkeys(i for n in scene.names if n.kind == "device" and (i := device_id(n))))
    if not devices:  # "We would take A or B; they are $3 and $2 an hour"
        choices = [c.value for c in reading.candidates if c.path == CANDIDATES and c.file == scene.statement.file]
        devices = [row["device"] for row in choices[-1]] if choices else []
    for m in _RUN.finditer(scene.text, scene.label_end):
        currency = next((n for n, words in CURRENCIES if re.search(words, f"{m['run']} {m['word'] or ''}", re.I)), None)
        hours = next((h for h, words in _HOURS if re.search(words, m["after"], re.I)), None)
        numbers = list(re.finditer(r"\d[\d,]*(?:\.\d+)?", m["run"]))
        if currency is None or hours is None or len(numbers) != len(devices):
            continue
        scope = "node" if _NODE.search(m["after"]) and not _DEVICE.search(m["after"]) else "device"
        found = [
            scene.candidate(
                f"{PRICE}.{device}", _money(n.group()) / hours, m.start() + n.start(), m.start() + n.end(),
                scope=scope, tags=("price",),
            )
            for device, n in zip(devices, numbers, strict=True)
        ]  # fmt: skip
        return [*found, replace(found[-1], path=CURRENCY, value=currency, scope="")]
    return []


def _price(scene: Scene, m: re.Match[str], currency: str, reading: Reading) -> list[Candidate]:
    groups = m.groupdict()
    raw = groups.get("a") or groups.get("b") or groups.get("c") or ""
    scale = {"k": 1e3, "万": 1e4}.get((groups.get("ak") or groups.get("bk") or "").lower(), 1.0)
    label = f"{' '.join(scene.statement.context[-2:])} {scene.text[: scene.label_end]}" if scene.label_end else ""
    before = _CLAUSE.split(scene.text[max(scene.label_end, m.start() - 40) : m.start()])[-1]
    after = _CLAUSE.split(scene.text[m.end() : m.end() + 40])[0]
    together = _PER_AND_HOUR.match(scene.text, m.end())
    after = f"{after} per {together['t']}" if together else after  # "$1.10, $2.60 or $3.20 per GPU and hour"
    # A unit of time must belong to this amount: behind it, else in the words that lead to it.
    hours = next((h for where in (after, f"{label} {before}".replace("_", " ")) for h, words in _HOURS if re.search(words, where, re.I)), None)  # fmt: skip
    if re.search(r"\btokens?\b|词元", f"{after[:32]} {label} {before[-24:]}", re.I) and re.search(
        r"million|\bM\b|百万|1M|thousand|\bK\b|千|万", f"{after[:32]} {label}", re.I
    ):
        reading.flag(
            "cost-target",
            f"a price per token is asked for ({_short(scene)!r}): set it beside the plan's under Cost and energy; no plan is "
            "refused for it",
        )
        return []
    if hours is None or re.search(r"\btokens?\b|词元|requests?\b", after[:24], re.I):
        return []
    where = f"{label} {before} {after}".replace("_", " ")
    if _BUDGET.search(where):
        reading.flag(
            "budget",
            f"a budget ({_short(scene)!r}): what the plan costs is reported beside it, no plan is refused for it",
        )
        return []
    value = _money(raw) * scale / hours
    if not _NODE.search(where) and not _DEVICE.search(where):
        where = f"{scene.text[: m.start()]} {after}"  # "one 8-GPU instance (8x H100) is $98 per hour"
    node = _NODE.search(where) and not _DEVICE.search(
        re.sub(r"\d+[\s-]?(?:x\s?)?gpus?[\s-](?:node|server|instance|machine)|\d+ ?卡", "", where, flags=re.I)
    )
    size = re.search(r"(\d+)[\s-]?(?:x\s?)?(?:gpus?|卡)[\s-]?(?:node|server|instance|machine|机|服务器)", where, re.I)
    device = _device_of(scene, m)
    path = PRICE if device is None else f"{PRICE}.{device}"
    found = scene.candidate(
        path, float(f"{value:.10g}"), m.start(), m.end(), scope="node" if node else "device",
        factor=int(size[1]) if size else 1, tags=("price",),
    )  # fmt: skip
    name = next((n for n, words in CURRENCIES if re.search(words, currency, re.I)), None)
    return [found] + ([replace(found, path=CURRENCY, value=name, scope="")] if name else [])


_PER_AND_HOUR = re.compile(
    r"(?:[^.;。；?？]|\.\d){0,70}?\b(?:per|a) [\w -]{1,24}? (?:and|per) (?P<t>hour|day|month)\b", re.I
)


def _money(raw: str) -> float:
    """ "1,250.00" and "9,20": two digits behind the last comma are cents where no thousands end so."""
    return float(raw.replace(",", "." if re.fullmatch(r"\d+,\d{1,2}", raw) else ""))


def _device_of(scene: Scene, m: re.Match[str]) -> str | None:
    """The device that an amount is the price of: the last one named before it, else one in the same clause behind it."""
    devices = [n for n in scene.names if n.kind == "device"]
    ahead = [n for n in devices if n.end <= m.start()]
    clause = _CLAUSE.split(scene.text[m.end() :])[0]
    behind = [n for n in devices if m.end() <= n.start < m.end() + len(clause)]
    own = _CLAUSE.split(scene.text[: m.start()])[-1]
    if behind and not any(n.start >= m.start() - len(own) for n in ahead):
        ahead = behind[:1]
    return device_id(ahead[-1]) if ahead else None


def device_id(name: Name) -> str | None:
    try:
        return catalog.load_device(name.text).device.id
    except ToolError:
        return None


def _short(scene: Scene) -> str:
    text = " ".join(scene.text[scene.shift :].split())
    return text if len(text) <= 80 else text[:77] + "..."


# ------------------------------------------------------------------------------------------------- devices to choose from

_BETWEEN = re.compile(
    r"\s*(?:(?:gpus?|cards?|nodes?|卡)\s*)?(?:(?:at|for|@|[(（])\s*(?:US\$|[$¥￥€£]|[A-Z]{3} )?\s*\d[\d.,]*\d\s*(?:[A-Za-z]+)?[)）]?\s*)?(?:,|，|、|/|\||or|and|vs\.?|versus|还是|或者?|和|与|对比|,\s*or)\s*(?:(?:an?|the|use|buy|rent|with|用|买|租|\d+\s*[x×*张块]?)\s*)*",
    re.I,
)
_MARK = re.compile(
    r"\bor\b|\bvs\b|versus|\bcompare|\bchoos|\bchoice|\bpick\b|\beither\b|\bwhich\b|candidates?|alternatives?|options?|还是|或|对比|备选|可选|候选|选型|哪|二选一",
    re.I,
)


def _choice(scene: Scene) -> list[Candidate]:
    """ "H100 or H20?": devices of which one is to be used."""
    devices = [n for n in scene.names if n.kind == "device" and n.start >= scene.shift]
    label = f"{' '.join(scene.statement.context[-1:])} {scene.text[: scene.label_end]}"
    runs: list[list[Name]] = []
    for n in devices:
        last = runs[-1][-1] if runs else None
        between = scene.text[last.end : n.start] if last else ""
        if last is not None and _BETWEEN.fullmatch(between):
            runs[-1].append(n)
        else:
            runs.append([n])
    for run in runs:
        words = scene.text[run[0].end : run[-1].start] + " " + label
        near = scene.text[max(0, run[0].start - 24) : run[0].start] + scene.text[run[-1].end : run[-1].end + 12]
        ids = {i: _count_before(scene, n) for n in reversed(run) if (i := device_id(n))}
        marked = _MARK.search(words) or _MARK.search(near) or re.match(r"\s*[?？]", scene.text[run[-1].end :])
        if len(ids) > 1 and marked:
            value = [{"device": i} | ({"count": n} if n else {}) for i, n in reversed(ids.items())]
            return [scene.candidate(CANDIDATES, value, run[0].start, run[-1].end, tags=("choice",))]
    return []


def _count_before(scene: Scene, name: Name) -> int | None:
    m = re.search(
        r"(?<![\d.])(\d{1,5})\s*(?:[x×*]|[张块片颗])?\s*(?:NVIDIA|Nvidia|AMD|Ascend|昇腾)?\s*$",
        scene.text[: name.start],
    )
    return int(m[1]) if m else None


# -------------------------------------------------------------------------------------------------------------- spare

_NUMBERS = {"one": 1, "a": 1, "an": 1, "any": 1, "two": 2, "three": 3, "一": 1, "二": 2, "两": 2, "三": 3}
_N = r"(?P<n>\d|one|two|three|an?|any|一|二|两|三)"
_WHAT = r"(?P<what>replicas?|instances?|nodes?|servers?|machines?|hosts?|vms?|gpus?|cards?|devices?|副本|实例|节点|服务器|机器?|卡)"
_SPARES = tuple(
    re.compile(p, re.I)
    for p in (
        r"\bN\s*\+\s*(?P<n>[1-3])(?!\d)",
        rf"{_N}\s+(?:hot[- ]?|cold[- ]?|warm[- ]?)?(?:spare|standby|stand-by|backup|redundant)\s+{_WHAT}",
        rf"(?:spare|standby|backup|redundant)[\s_]+{_WHAT}\s*[:=：]\s*(?P<n>[1-3])\s*$",
        rf"(?:surviv|tolerat|withstand)\w*\s+(?:the\s+)?(?:loss|failure|outage|crash)\s+of\s+(?:any\s+)?{_N}\s+(?:single\s+|whole\s+)?{_WHAT}",
        rf"(?:任意|任何|其中|单)(?:一|1)?\s*[个台]?\s*{_WHAT}(?:发生|出现)?(?:故障|宕机|失效|挂掉|下线|掉线)",
        rf"(?:with|when|if)\s+(?:any\s+)?{_N}\s+{_WHAT}\s+(?:is |are |goes? |being )?(?:down|lost|out|offline|failed|unavailable)",
        rf"(?:any\s+)?{_N}\s+(?:{_WHAT}|(?P<box>dgx|hgx|box|chassis))\s+(?:must be able to|may|can|could|might)\s+(?:fail|go down|be lost|be down|die)",
        rf"(?:预留|备用|冗余|保留|留有?)\s*{_N}\s*[个台]?\s*(?:备用|冗余|热备|空闲)?(?:的)?{_WHAT}(?!\s*显存)",
        rf"{_N}\s*[个台]?\s*(?:备用|冗余|热备){_WHAT}",
        rf"(?:容忍|允许|承受|容许)(?:任意|任何|单)?\s*{_N}?\s*[个台]?\s*{_WHAT}.{{0,4}}(?:故障|宕机|失效|挂掉|下线)",
    )
)
_OTHER_SPARES = re.compile(
    r"power suppl|psu|ups\b|cooling|\bfans?\b|raid|disk|switch|uplink|网卡|电源|散热|交换机|磁盘", re.I
)


def _spare(scene: Scene) -> tuple[Candidate | None, str]:
    """ "N+1", "one spare replica", "must survive the loss of a node": (how many of what, the words)."""
    for pattern in _SPARES:
        m = pattern.search(scene.text, scene.shift if scene.statement.kind != "leaf" else 0)
        if m is None or _OTHER_SPARES.search(scene.text):
            continue
        groups = m.groupdict()
        count = groups.get("n") or "1"
        number = int(count) if count.isdigit() else _NUMBERS[count.lower()]
        what = groups.get("what") or ("node" if groups.get("box") else scene.text)
        node = re.search(r"node|server|machine|host|vm|节点|服务器|机", what, re.I)
        path = (
            "workload.spare_nodes"
            if node and not re.search(r"replica|instance|副本|实例", what, re.I)
            else "workload.spare_replicas"
        )
        return scene.candidate(path, number, m.start(), m.end(), tags=("spare",)), m.group()
    return None, ""


_PEAKS = (
    re.compile(r"(?:\b(?:peaks?|busiest|rush|bursts?|spikes?)\b|高峰|峰值|忙时|尖峰)[^,.;，。；\d]{0,24}?(?P<w>double|doubles|doubled|twice|triples?|tripled|treble|quadruples?|翻倍|翻番|翻一番)", re.I),
    re.compile(r"(?P<w>double|twice|triple|treble|quadruple|翻倍)\b[^,.;，。；\d]{0,16}\b(?:peaks?|busiest|rush)\b", re.I),
    re.compile(r"(?P<n>\d+(?:\.\d+)?)\s*(?:x|×|times|-?fold|倍)\s*(?:the (?:mean|average)\s*)?(?:higher\s*)?(?:at|during|in|on)\s+(?:the\s+)?(?:daily\s+)?peaks?\b", re.I),
    re.compile(r"\b(?:peaks?|bursts?|spikes?)\b[^,.;\d]{0,24}?(?P<n>\d+(?:\.\d+)?)\s*(?:x|×|times|-?fold)(?![\w.])", re.I),
    re.compile(r"\b(?:busiest|peak|rush|top)\s+(?:hours?|times?|minutes?|load|traffic)\b[^,.;\d]{0,24}?(?P<n>\d+(?:\.\d+)?)\s*(?:x|×|times|-?fold)(?![\w.])", re.I),
    re.compile(r"(?:高峰|峰值|尖峰)[^，。；,\d]{0,12}(?P<n>\d+(?:\.\d+)?)\s*倍", re.I),
)  # fmt: skip


def _peak(scene: Scene) -> tuple[Candidate | None, str]:
    """ "3x at peak", "bursts up to 4x": peak over mean load."""
    for pattern in _PEAKS:
        m = pattern.search(scene.text, scene.shift)
        if m is None:
            continue
        groups = m.groupdict()
        number = float(groups["n"]) if groups.get("n") else _MULTIPLES[groups["w"].lower()[:4]]
        if number >= 1:
            return scene.candidate("workload.peak_factor", number, m.start(), m.end()), m.group()
    return None, ""


_MULTIPLES = {"doub": 2.0, "twic": 2.0, "trip": 3.0, "treb": 3.0, "quad": 4.0, "翻倍": 2.0, "翻番": 2.0, "翻一番": 2.0}


__all__: list[str] = ["CANDIDATES", "CURRENCY", "PRICE", "mark_rates", "read", "settle_peak"]
