"""Quantities as people write them ("80 GB", "8×400Gb/s", "100 tokens/ms", "两百路", "6.7 万亿") in SI base units.

Dimensions: `bytes`, `bytes/s`, `flop/s`, `tokens/s`, `requests/s`, `s`, `fraction`, `money/h`, `count`.
Pure text in, values out. What the text leaves open is said in `Quantity.doubt`, never settled in silence.
"""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tools.spec.base import ToolError

__all__ = [
    "Quantity",
    "chinese_number",
    "english_number",
    "find_quantities",
    "fold_width",
    "format_quantity",
    "in_dimension",
    "is_absence",
    "is_unknown",
    "parse_quantity",
]

DIMENSIONS = ("bytes", "bytes/s", "flop/s", "tokens/s", "requests/s", "s", "fraction", "money/h", "count")


@dataclass(frozen=True, slots=True)
class Quantity:
    """One amount, or a range when `high` is set. `value` and `high` are SI and for *one* of `factor` equal things."""

    value: float
    dimension: str
    unit: str
    """As written ("GB/s"); empty for a bare number."""
    start: int
    end: int
    text: str
    high: float | None = None
    factor: int = 1
    """The 8 of "8×400Gb/s"."""
    per: str = ""
    """user, device or node, when the unit says so ("tok/s/user")."""
    doubt: str = ""
    """Why another reading is possible, or empty."""
    integral: bool = False
    """Written without fraction or unit: a plain whole number."""


# ---------------------------------------------------------------- characters and numerals

_WIDE = {
    **{0xFF10 + i: chr(48 + i) for i in range(10)},
    **{0xFF21 + i: chr(65 + i) for i in range(26)},
    **{0xFF41 + i: chr(97 + i) for i in range(26)},
    **{ord(w): n for w, n in zip("％．：／～（）＝＜＞＋－［］＊＿　｜＠＃＄", "%.:/~()=<>+-[]*_ |@#$", strict=True)},
    0x00A0: " ",
    0x2013: "-",
    0x2014: "-",
    0x2212: "-",
    0x2011: "-",
    0x3010: "[",
    0x3011: "]",
    # traditional characters of the words that are looked for
    **dict(zip(
        map(ord, "個輸併發並機臺張塊單雙節點頻寬顯記憶體權開線請數據長層頭專詞維詢務戶時間遲總響應後續內網絡連圖兩壓訓練標規參無約為過係話隊處達證絕對樣選擇測試環際負載運營"),
        "个输并发并机台张块单双节点频宽显记忆体权开线请数据长层头专词维询务户时间迟总响应后续内网络连图两压训练标规参无约为过系话队处达证绝对样选择测试环际负载运营",
        strict=True,
    )),
}  # fmt: skip


def fold_width(text: str) -> str:
    """Full-width digits, letters and signs to ASCII, one character for one, so that offsets stay valid.

    The full-width comma stays: it separates clauses, never thousands.
    """
    return text.translate(_WIDE)


_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "○": 0, "两": 2, "俩": 2, "幺": 1}
_DIGITS |= {c: i for i, c in enumerate("零壹贰叁肆伍陆柒捌玖")}
_SMALL = {"十": 10, "百": 100, "千": 1000, "拾": 10, "佰": 100, "仟": 1000}
_LARGE = {"万": 10**4, "亿": 10**8, "萬": 10**4, "億": 10**8, "兆": 10**12}
_HAN = "".join([*_DIGITS, *_SMALL, *_LARGE])


def chinese_number(text: str) -> float:
    """The value of a Chinese numeral: 两百 200, 一千零二十四 1024, 二〇二四 2024, 三点五 3.5, 两百五 250, 半 0.5.

    Raises ToolError for anything else.
    """
    if text in ("半", "双"):
        return 0.5 if text == "半" else 2
    if text.endswith("半") and len(text) > 1:
        return chinese_number(text[:-1].removesuffix("个")) + 0.5
    if "点" in text:
        whole, _, tail = text.partition("点")
        scale = 1
        if tail and tail[-1] in _LARGE:
            scale, tail = _LARGE[tail[-1]], tail[:-1]
        if not tail or any(c not in _DIGITS for c in tail):
            raise ToolError(f"{text!r} is not a Chinese numeral")
        return (chinese_number(whole) + float("0." + "".join(str(_DIGITS[c]) for c in tail))) * scale
    if not text or any(c not in _HAN for c in text):
        raise ToolError(f"{text!r} is not a Chinese numeral")
    if all(c in _DIGITS for c in text):
        return int("".join(str(_DIGITS[c]) for c in text))
    return _positional(text)


def _positional(text: str) -> int:
    """Sum of digit × multiplier, 万 and 亿 closing a group. A trailing digit after 百/千/万 counts its next lower unit."""
    total = group = digit = 0
    last_unit, zero = 1, False
    for char in text:
        if char in _DIGITS:
            digit, zero = _DIGITS[char], zero or _DIGITS[char] == 0
        elif char in _SMALL:
            group += (digit or 1) * _SMALL[char]
            digit, last_unit, zero = 0, _SMALL[char], False
        else:
            scale = _LARGE[char]
            group += digit
            # 六千七百一十亿 closes one group; 六万亿 multiplies what is already there
            total = (total + group) * scale if group == 0 or scale > 10**4 else total + group * scale
            group, digit, last_unit, zero = 0, 0, scale, False
    if digit and last_unit >= 100 and not zero:
        digit *= last_unit // 10
    return total + group + digit


_ONES = {
    w: i
    for i, w in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
}
_TENS = {
    w: 10 * i for i, w in enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 2)
}
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ALONE = {"single": 1.0, "half": 0.5, "dozen": 12.0, "couple": 2.0, "dual": 2.0, "twin": 2.0, "quad": 4.0}


def english_number(text: str) -> float:
    """The value of an English numeral: two hundred 200, twenty-four 24, one thousand and fifty 1050, half 0.5.

    Raises ToolError for anything else.
    """
    if text.endswith(" and a half"):
        return english_number(text.removesuffix(" and a half")) + 0.5
    words = [w for w in re.split(r"[\s-]+", text.strip().lower()) if w != "and"]
    if len(words) == 1 and words[0] in _ALONE:
        return _ALONE[words[0]]
    total = group = 0
    for word in words:
        if word in ("a", "an"):
            group += 1
        elif word in _ONES or word in _TENS:
            group += _ONES.get(word, _TENS.get(word, 0))
        elif word == "hundred":
            group = (group or 1) * 100
        elif word == "dozen":
            group = (group or 1) * 12
        elif word in _SCALES:
            total, group = total + (group or 1) * _SCALES[word], 0
        else:
            raise ToolError(f"{text!r} is not an English numeral")
    return float(total + group)


_MAGNITUDE = {
    "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "b": 1e9, "T": 1e12, "bn": 1e9, "thousand": 1e3, "million": 1e6,
    "billion": 1e9, "trillion": 1e12, "mln": 1e6, "P": 1e15, "百": 100, "千": 1e3, "万": 1e4, "百万": 1e6, "千万": 1e7,
    "亿": 1e8, "十亿": 1e9, "百亿": 1e10, "千亿": 1e11, "万亿": 1e12, "w": 1e4, "W": 1e4,
}  # fmt: skip

_ARABIC = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?=\s+(?:tokens?|requests?|users?)\b)|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?|(?<![\d.])\.\d+"
_HAN_NUMBER = (
    rf"[{_HAN}]+个半(?=小时|钟头)|双(?=\s*(?:卡|机|节点|\x01))|[{_HAN}]+(?:点[{''.join(_DIGITS)}]+[万亿]?)?半?|半"
)
_TO_99 = rf"(?:(?:{'|'.join(_TENS)})(?:[ -](?:{'|'.join(list(_ONES)[1:10])}))?|{'|'.join(sorted(_ONES, key=len, reverse=True))})"
_TO_999 = (
    rf"(?:(?:(?:{_TO_99}|an?)[ -])?hundred(?:[ -](?:and[ -])?{_TO_99})?|(?:{_TO_99}|half a|an?)[ -]dozen|{_TO_99})"
)
_PARTS = {
    "third": 3, "quarter": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10, "twelfth": 12, "fifteenth": 15,
    "twentieth": 20, "twenty-fifth": 25, "thirtieth": 30, "fortieth": 40, "fiftieth": 50, "hundredth": 100,
}  # fmt: skip
_OF_A_CROWD = r"(?:of (?:them|the|these|those|all|our|us|whom|which)\b)"
_SHARE = re.compile(
    rf"\b(?:(?P<n>one|two|three|a)[ -](?P<part>third|quarter|fifth|tenth|twentieth|hundredth)s?|(?P<half>half)) (?={_OF_A_CROWD})"
    r"|\b(?P<k>one|two|three|four|five|six|seven|eight|nine) (?:in|out of|of(?= (?:every )?ten\b)) (?:every )?(?P<m>three|four|five|six|eight|ten|twelve|twenty|thirty|forty|fifty|a hundred)\b(?! (?:gpu|card|node|server|second|minute))"
    r"|(?P<zm>[二三四五六七八九十])分之(?P<zk>[一二三四五六七八九])",
    re.I,
)
"""Shares in words: "two thirds of them", "one in ten", 三分之一."""
_WORD_NUMBER = (
    rf"(?:an?|one|two|three)[ -](?:{'|'.join(_PARTS)})s?(?= of an? )|{_TO_99} and a half|(?:(?:{_TO_999}|an?)[ -](?:thousand|million|billion|trillion)[ -](?:and[ -])?)*{_TO_999}"
    rf"|(?:{_TO_999}|an?)[ -](?:thousand|million|billion|trillion)|a (?:couple|pair)(?: of)?(?: (?:hundred|thousand|dozen))?|{'|'.join(_ALONE)}|an?"
)
_NUMBER = re.compile(
    rf"(?P<sign>(?<![^\s(:=<>≤≥,\[])[-−])?(?:(?P<arabic>{_ARABIC})|(?P<han>{_HAN_NUMBER})|(?P<word>\b(?:{_WORD_NUMBER})\b))",
    re.I,
)
_MAG = re.compile(
    r"\s*(?:(?P<h>百万|千万|十亿|百亿|千亿|万亿|百|千|万|亿)(?!兆)"
    r"|(?P<w>thousand|million|billion|trillion|bn|mln)(?![A-Za-z])|(?P<l>[kKM](?=[Tt]ok)|[kKMBbTPwW](?![A-Za-z0-9]|/\s?[A-Za-z])))"
)
# "并发一百。", "输入四千，": a round numeral at the end of its clause needs no measure word
_ROUND_HAN = re.compile(r"[一二三四五六七八九两十][一二三四五六七八九十百千万亿]*[百千万亿](?:$|[\s,，。；;、])")
# a Chinese numeral in running text counts only where a measure word follows: 统一, 一般, 万一 are words
_MEASURE = re.compile(
    r"\s*(?:台|张|块|片|颗|卡|机|路|秒|毫秒|微秒|分钟|小时|层|头|个|条|人|位|节点|专家|并发|倍|成|维|套|份|次|字|副本|"
    r"token|tok|GPU|NPU|吉字节|太字节|ms|s(?![A-Za-z0-9_])|GB|TB|G(?![A-Za-z0-9_])|T(?![A-Za-z0-9_])|%|QPS|rps|条|组|\x01)", re.I
)  # fmt: skip

# ---------------------------------------------------------------- units

_PER = (
    r"(?:\s*(?:/|per\b|每(?:一)?(?:个|张|路)?)\s*(?P<per>users?|readers?|viewers?|callers?|agents?|seats?|developers?|employees?|customers?|requests?|req|streams?|sessions?|persons?|clients?|sequences?|seq|用户|请求|"
    r"会话|路|人|gpus?|npus?|cards?|devices?|accelerators?|ranks?|dies?|chips?|卡|nodes?|servers?|machines?|hosts?|台|机|节点|instances?|replicas?))"
)
# \b sees no edge between "s" and "以", so edges are spelled out: a letter unit ends where no ASCII letter or digit follows
# "a second server", "second-hand": an ordinal
_NOT_TIME = r"[ -](?:hand|server|node|machine|gpu|card|box|one|phase|stage|option|choice|model|team|cluster|replica|host|site|half|batch)"
_SECOND = r"(?:s(?![A-Za-z0-9_])|sec(?:ond)?s?(?![A-Za-z0-9_])|秒钟?)"
_TIME_UNIT = rf"(?P<t>ms(?![A-Za-z0-9_])|millisec(?:ond)?s?(?![A-Za-z0-9_])|毫秒|{_SECOND}|min(?:ute)?s?(?![A-Za-z0-9_])|分钟?|h(?:ou)?rs?(?![A-Za-z0-9_])|h(?![A-Za-z0-9_])|小时|days?(?![A-Za-z0-9_])|天)"
_TOK = r"(?:(?:个|千)?\s*(?:output |decode |prefill |input |total |generated |completion |new |prompt |输出|输入)?(?:tokens?|toks?|词元|字))"
_REQ = r"(?:个|次|条|笔)?\s*(?:requests?|reqs?|queries|query|prompts?|calls?|questions?|messages?|tickets?|documents?|docs|e?mails?|jobs?|chats?|conversations?|summaries|transactions?|invocations?|请求|查询|调用|提问|问题|工单|文档|对话|会话)"
_UNIT_RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("money", re.compile(r"\s*(?:/|per|每)\s*(?:h(?:ou)?r?(?![A-Za-z0-9_])|hour|小时)", re.I)),
    ("data", re.compile(
        r"\s*(?:个\s*)?(?P<p>[KMGTP])(?P<i>i)?\s?(?P<u>bytes?|bits?|B|b)(?![A-Za-z]*[A-Za-z](?<!ps)(?![A-Za-z0-9_]))"
        r"(?P<r>ps(?![A-Za-z])|\s*/\s*(?:s(?![A-Za-z0-9_])|sec(?![A-Za-z0-9_])|second(?![A-Za-z0-9_])|秒)|\s*per\s+sec(?:ond)?|每秒)?(?![A-Za-z])", re.I)),
    ("gbe", re.compile(r"\s*(?P<p>[GT])b?E(?![A-Za-z0-9_])")),
    ("binary", re.compile(r"\s?(?P<p>[KMGT])i(?![A-Za-z0-9_])")),
    ("datarate_g", re.compile(r"\s*(?P<p>[GT])\s*/\s*(?:s(?![A-Za-z0-9_])|sec(?![A-Za-z0-9_])|秒)")),
    ("data_word", re.compile(r"\s*(?P<w>gigs?|吉字节|太字节|gigabytes?|terabytes?|megabytes?|terabits?|gigabits?)(?![A-Za-z0-9_])(?P<r>\s*(?:/|per)\s*s(?:ec(?:ond)?)?(?![A-Za-z0-9_]))?", re.I)),
    ("flops", re.compile(r"\s*(?P<p>[KMGTPE]|tera|peta|giga|exa)?[\s-]?(?:FLOPS?(?:\s*/\s*s(?:ec)?(?![A-Za-z0-9_]))?|FLOP\s*/\s*s|OPS?(?:\s*/\s*s)?)(?![A-Za-z])", re.I)),
    ("bare_g", re.compile(r"\s*(?:个\s*)?(?P<p>[Gg])(?![A-Za-z0-9/])")),
    ("bare_t", re.compile(r"\s*个\s*(?P<p>T)(?![A-Za-z0-9/])")),
    ("tokens", re.compile(rf"\s*{_TOK}{_PER}?\s*(?:/|per|each|every|每|a(?![A-Za-z0-9_])|p)\s*{_TIME_UNIT}", re.I)),
    ("tokens", re.compile(r"\s*(?:t/(?P<t>s)(?![A-Za-z0-9_])|tps(?![A-Za-z0-9_]))", re.I)),
    ("requests", re.compile(rf"\s*(?:{_REQ})\s*(?:/|per|每|a(?![A-Za-z0-9_]))\s*(?:(?:working|business|calendar|single|week)[ -]?)?{_TIME_UNIT}", re.I)),
    ("requests", re.compile(r"\s*(?:qps|rps|req/s)(?![A-Za-z0-9_])", re.I)),
    ("requests", re.compile(r"\s*[qr]p(?P<t>[mh])(?![A-Za-z0-9_])", re.I)),
    ("tokens", re.compile(r"\s*tp(?P<t>m)(?![A-Za-z0-9_])", re.I)),
    ("time", re.compile(
        rf"\s*-?(?:个(?=小时|钟头|月))?(?P<t>ms(?![A-Za-z0-9_])|milli-?sec(?:ond)?s?(?![A-Za-z0-9_])|毫秒|[uµμ]s(?![A-Za-z0-9_])|micro-?seconds?(?![A-Za-z0-9_])|微秒|ns(?![A-Za-z0-9_])|纳秒|sec(?:ond)?s?(?![A-Za-z0-9_])(?!{_NOT_TIME})|s(?![A-Za-z0-9_])|秒钟?|min(?:ute)?s?(?![A-Za-z0-9_])|分钟|"
        r"h(?:ou)?rs?(?![A-Za-z0-9_])|h(?![A-Za-z0-9_])|小时|钟头)", re.I)),
    ("fraction", re.compile(r"\s*(?:%|percent(?![A-Za-z0-9_])|pct(?![A-Za-z0-9_])|个百分点)", re.I)),
)  # fmt: skip
_PREFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18}
_SECONDS: tuple[tuple[str, float], ...] = (
    ("ms", 1e-3),
    ("milli", 1e-3),
    ("毫", 1e-3),
    ("µ", 1e-6),
    ("μ", 1e-6),
    ("us", 1e-6),
    ("micro", 1e-6),
    ("微", 1e-6),
)
_SECONDS += (
    ("ns", 1e-9),
    ("纳", 1e-9),
    ("min", 60.0),
    ("分", 60.0),
    ("m", 60.0),
    ("h", 3600.0),
    ("小", 3600.0),
    ("钟头", 3600.0),
    ("day", 86400.0),
    ("天", 86400.0),
    ("日", 86400.0),
    ("s", 1.0),
    ("秒", 1.0),
)


def seconds_per(unit: str) -> float:
    """Seconds in one `unit` ("ms", "毫秒", "min")."""
    low = unit.lower()
    return next((scale for start, scale in _SECONDS if low.startswith(start)), 1.0)


def _unit_data(match: re.Match[str]) -> tuple[str, float, str]:
    prefix, unit, rate = match["p"], match["u"], match["r"]
    scale = 1024.0 ** "kmgtp".index(prefix.lower()) * 1024 if match["i"] else _PREFIX[prefix.lower()]
    spelled_bits = unit.lower().startswith("bit")
    small_b = unit == "b"
    if not rate:
        doubt = (
            f"{match.group().strip()} is bits by the letter; read as bytes, as memory sizes are"
            if small_b and prefix.isupper()
            else ""
        )
        return "bytes", scale / (8 if spelled_bits else 1), doubt
    if spelled_bits or small_b:
        doubt = (
            ""
            if spelled_bits or prefix.isupper()
            else f"{match.group().strip()} in lower case: bits by the letter, may mean bytes"
        )
        return "bytes/s", scale / 8, doubt
    return "bytes/s", scale, ""


def _unit_value(rule: str, match: re.Match[str]) -> tuple[str, float, str]:
    """(dimension, SI value of one unit, doubt)."""
    groups = match.groupdict()
    if rule == "data":
        return _unit_data(match)
    if rule == "binary":  # Kubernetes writes 512Gi
        return "bytes", 1024.0 ** (" KMGT".index(match["p"].upper())), ""
    if rule == "gbe":
        return "bytes/s", _PREFIX[match["p"].lower()] / 8, ""
    if rule == "datarate_g":
        return "bytes/s", _PREFIX[match["p"].lower()], f"{match.group().strip()} without B or b: read as bytes"
    if rule in ("bare_g", "bare_t"):
        return "bytes", _PREFIX[match["p"].lower()], ""
    if rule == "data_word":
        word = match["w"].lower().replace("吉字节", "gigabyte").replace("太字节", "terabyte")
        return "bytes/s" if match["r"] else "bytes", _PREFIX[word[0]] / (8 if "bit" in word else 1), ""
    if rule == "flops":
        return "flop/s", _PREFIX[(match["p"] or "")[:1].lower()], ""
    if rule in ("tokens", "requests"):
        return f"{rule}/s", 1.0 / seconds_per(groups.get("t") or "s"), ""
    if rule == "time":
        return "s", seconds_per(match["t"]), ""
    if rule == "fraction":
        return "fraction", 0.01, ""
    return "money/h", 1.0, ""


_PER_CLASS = (
    (
        "user",
        r"user|reader|viewer|caller|agent|seat|developer|employee|customer|^each$|each of|of us|every(?:one|body)|request|req|stream|session|person|client|seq|用户|请求|会话|路|人",
    ),
    ("device", r"gpu|npu|card|device|accel|rank|die|chip|卡"),
    ("node", r"node|server|machine|host|台|机|节点"),
    ("replica", r"instance|replica"),
)
_PER_AFTER = re.compile(
    _PER.replace("(?:/|per", "(?:/|for (?:each|every)|per")
    + r"|\s*(?:for|to|,)?\s*(?P<per2>each(?=\s*(?:$|[.,;!?)]))|each of (?:us|them|the users)|every (?:one )?of us|every(?:one|body)|each user|every user|每(?:个)?用户|每路|单用户|per-user|per-request)",
    re.I,
)


def _per_class(word: str | None) -> str:
    return next((name for name, pat in _PER_CLASS if word and re.search(pat, word, re.I)), "")


def _match_unit(text: str, pos: int) -> tuple[int, str, float, str, str]:
    """(end, dimension, scale, doubt, per) of the unit at `pos`; a count of scale 1 when there is none."""
    for rule, pattern in _UNIT_RULES:
        match = pattern.match(text, pos)
        if match is None or (rule == "money" and not re.search(r"[$¥€]\s*[\d.,]+$", text[:pos])):
            continue
        dimension, scale, doubt = _unit_value(rule, match)
        per, end = _per_class(match.groupdict().get("per")), match.end()
        if dimension in ("tokens/s", "bytes/s") and not per:
            after = _PER_AFTER.match(text, end)
            if after:
                per, end = _per_class(after["per"] or after["per2"]), after.end()
        return end, dimension, scale, doubt, per
    return pos, "count", 1.0, "", ""


# ---------------------------------------------------------------- one number with its unit


def _number_at(text: str, match: re.Match[str]) -> tuple[float, int, bool] | None:
    """(value, end, whole) of the number matched, magnitude words included; None where it is only a word."""
    end, whole = match.end(), True
    if match["arabic"]:
        raw = re.sub(r"[, \u00a0\u202f]", "", match["arabic"])
        value = float(raw)
        whole = raw.isdigit()
    elif match["han"]:
        if (
            text[match.start() - 1 : match.start()] in ("第", "统", "唯", "任", "同", "进", "每")
            and len(match["han"]) == 1
        ):
            return None
        if (
            not _MEASURE.match(text, end)
            and not _ROUND_HAN.match(match["han"] + text[end : end + 1])
            and not text[: match.start()].rstrip().endswith("百分之")
        ):
            return None
        try:
            value = chinese_number(match["han"])
        except ToolError:
            return None
        whole = float(value).is_integer()
    else:
        found = _english_at(text, match)
        if found is None:
            return None
        value, end = found
    mag = _MAG.match(text, end)
    if mag and (match["arabic"] or mag["w"] or mag["h"]):
        value *= _MAGNITUDE[(mag["h"] or mag["l"] or mag["w"].lower())]
        value = round(value, 6)
        end = mag.end()
    return (-value if match["sign"] else value), end, whole


# "this one", "every further one": a pronoun, no number; "dual-port", "single-stream": no devices
_PRONOUN = re.compile(
    r"\b(?:further|this|that|another|other|which|each|every|any|new|old|first|last|bigger|smaller|next|no|the)\s+$",
    re.I,
)
_ARTICLE_UNIT = re.compile(rf"\s*(?:second(?!{_NOT_TIME})|sec\b|minute|hour)", re.I)
_DEVICES_NEXT = re.compile(
    r"\s*-?\s*(?:\x01|gpus?\b|cards?\b|npus?\b|nodes?\b|servers?\b|\d+ ?G(?:b?E|bit|bps|b/s)\b)", re.I
)


def _english_at(text: str, match: re.Match[str]) -> tuple[float, int] | None:
    """(value, end) of an English numeral; None for an article, a pronoun, or "dual" before anything but devices."""
    word, end = " ".join(match["word"].lower().split()), match.end()
    if word in ("a", "an"):
        whole = not re.search(
            r"\b\w+(?:th|rd|half|quarter)s?\s+of\s+$", text[: match.start()], re.I
        )  # "a thirtieth of a second"
        return (1.0, end) if whole and _ARTICLE_UNIT.match(text, end) else None
    if part := _PARTS.get(re.split(r"[ -]", word)[-1].removesuffix("s")):  # "a twentieth of a second"
        article = re.match(r"\s+of\s+an?(?=\s)", text[end:])
        end += article.end() if article else 0
        return (english_number(re.split(r"[ -]", word)[0]) / part, end) if _ARTICLE_UNIT.match(text, end) else None
    if word in ("dual", "twin", "quad"):
        return (_ALONE[word], end) if _DEVICES_NEXT.match(text, end) else None
    if word in _SCALES and re.search(r"\b(?:few|several|some)\s+$", text[: match.start()], re.I):
        return None
    if word == "one" and _PRONOUN.search(text[: match.start()]) and not re.match(r"\s+[a-z]+s?\b\s*[,.:]", text[end:]):
        return None
    if word.startswith(("a couple", "a pair")):
        return 2.0 * _SCALES.get(word.split()[-1], 12 if word.endswith("dozen") else 1), end
    if word == "half":
        article = re.match(r"\s+an?(?=\s)", text[end:])
        end += article.end() if article else 0
        return (
            (0.5, end)
            if _ARTICLE_UNIT.match(text, end) or re.match(r"\s*(?:million|thousand|billion)", text[end:])
            else None
        )
    return (6.0 if word == "half a dozen" else english_number(word)), end


_AND_MORE = re.compile(
    r"\s*[多余来](?=\s*(?:[GTM](?:B|b)?(?![A-Za-z0-9])|个|token|ms|秒|张|卡|台|路|人|条|万|亿))", re.I
)
_IB_GBITS = (100, 200, 400, 800)
"""Gb/s of an InfiniBand port by generation (EDR, HDR, NDR, XDR; InfiniBand Trade Association roadmap): "NDR400"."""


_AND_A_HALF = re.compile(r"(?<=[秒钟时]) ?半|\s+and\s+a\s+half\b", re.I)


def _quantity_at(text: str, match: re.Match[str]) -> Quantity | None:
    if match["han"] == "一半":
        return Quantity(0.5, "fraction", "", match.start(), match.end(), match["han"])
    found = _number_at(text, match)
    if found is None:
        return None
    value, end, whole = found
    number_end = end
    if more := _AND_MORE.match(text, end):  # "600 多 G", "1k多token"
        end = more.end()
    end, dimension, scale, doubt, per = _match_unit(text, end)
    start = match.start()
    prefix = re.search(r"(?:百分之)\s*$", text[:start])
    if dimension == "count" and re.search(r"(?<![A-Za-z])[EHNX]DR[ -]?$", text[:start], re.I) and value in _IB_GBITS:
        dimension, scale = "bytes/s", 1.25e8
    if prefix and dimension == "count":
        dimension, scale, start = "fraction", 0.01, prefix.start()
    elif dimension == "count" and match["han"] and text[end : end + 1] == "成":
        dimension, scale, end = "fraction", 0.1, end + 1
    written = text[start:end]
    amount = value * scale
    if dimension == "s":
        more = _AND_A_HALF.match(text, end)  # "a second and a half", "两秒半"
        amount += scale / 2 if more else 0
        end, written = (more.end(), text[start : more.end()]) if more else (end, written)
        amount = float(f"{amount:.12g}")
    return Quantity(
        value=amount, dimension=dimension, unit=text[number_end:end].strip(), start=start, end=end, text=written,
        per=per, doubt=doubt, integral=whole and dimension == "count" and end == match.end(),
    )  # fmt: skip


_EVERY_SECOND = re.compile(
    r"(?:每|一(?=秒)|per\s+|(?=日均))(?P<t>秒钟?|毫秒|分钟|小时|天|日均?|second|sec|minute|day)(?:钟)?\s*(?:约|大约|about|能|可|处理|生成|输出|服务|来|出|吐出?|生成|至少|不少于|不低于|不小于|大于|超过|最多|达到|要|有|需要?|at least|[≥>=]+)*\s*$",
    re.I,
)
_TOKENS_AFTER = re.compile(rf"\s*(?P<k>{_TOK}|{_REQ})(?![\s]*/)", re.I)


def _prefixed_rate(text: str, q: Quantity) -> Quantity:
    """ "每秒 8 个请求", "每毫秒 100 个 token": the period stands before the number."""
    lead = _EVERY_SECOND.search(text[: q.start])
    noun = _TOKENS_AFTER.match(text, q.end)
    if q.dimension != "count" or not lead or not noun:
        return q
    kind = "tokens/s" if re.search(r"tok|词元|字", noun["k"], re.I) else "requests/s"
    return replace(
        q, value=q.value / seconds_per(lead["t"]), dimension=kind, unit=noun["k"].strip() + "/" + lead["t"], start=lead.start(),
        end=noun.end(), text=text[lead.start() : noun.end()], integral=False,
    )  # fmt: skip


_RANGE_SEP = re.compile(r"\s*(?:~|-|–|—|\.\.+|…|到|至|和|与|to\b|and\b|,|，)\s*", re.I)
_OPEN = re.compile(r"(?:\[|\(|between\s+|from\s+|在\s*|介于\s*|从\s*)\s*$", re.I)


def _is_range(text: str, low: Quantity, high: Quantity) -> bool:
    sep = _RANGE_SEP.fullmatch(text[low.end : high.start])
    if sep is None or not (low.dimension == high.dimension or low.dimension == "count"):
        return False
    digits = re.match(_ARABIC, high.text)
    # "30-60 ms": the unit behind the second number is that of both
    top = float(digits.group().replace(",", "")) if low.dimension != high.dimension and digits else high.value
    if top < low.value:
        return False
    word = sep.group().strip().lower()
    opened = _OPEN.search(text[: low.start])
    if word in (",", "，"):
        return (
            opened is not None and opened.group().strip() in ("[", "(") and text[high.end : high.end + 1] in ("]", ")")
        )
    if word in ("and", "和", "与"):
        return bool(opened)
    return True


def _joined_range(text: str, low: Quantity, high: Quantity) -> Quantity:
    scale = 1.0
    unit_number = re.match(rf"{_ARABIC}", high.text)
    if low.integral and not high.integral and unit_number:
        digits = float(unit_number.group().replace(",", ""))
        # "1-4k" means 1k to 4k, "128-10k" does not mean 128k
        scale = high.value / digits if digits and (high.dimension != "count" or low.value <= digits) else 1.0
    return replace(
        high,
        value=low.value * scale,
        high=high.value,
        start=low.start,
        text=text[low.start : high.end],
        doubt=high.doubt or low.doubt,
    )


# words that a hyphen joins to their number; after any other word it joins the parts of a name ("ConnectX-7", "Foo-77B")
_NUMBERED = re.compile(
    r"(?:top|k|batch|bs|bsz|isl|osl|seq|len|length|in|out|input|output|sub|under|over|to|of|from|rank|size|count|degree|tp|pp|dp|ep|cp|"
    r"gpus?|nodes?|layers?|heads?|experts?|users?|tokens?|max|min|avg|mean|n|x|ttft|tpot|qps|rps|concurrency|requests?|prompts?)",
    re.I,
)


def _in_a_name(text: str, start: int) -> bool:
    """Whether the digits at `start` continue a word over a hyphen: the 7 of "ConnectX-7", the 77 of "Foo-77B"."""
    word = re.search(
        r"(?<![A-Za-z0-9._/])[A-Za-z][A-Za-z0-9._/]*(?:-[A-Za-z0-9._]+)*-$", text[max(0, start - 60) : start]
    )
    return word is not None and not _NUMBERED.fullmatch(word.group()[:-1].split("-")[-1])


_POINT = re.compile(r"(?<!\.)\.$")  # "1k..3k" is a range, no decimal
_METRIC_BEFORE = re.compile(r"(?:tokens?|ttft|tpot|itl|qps|rps|isl|osl|[ehnx]dr)$", re.I)  # "首token1s", "NDR400"
_FABRIC = r"(?:[EHNX]DR|IB|InfiniBand|RoCE(?:v2)?|Ethernet|ConnectX-?\d|CX-?\d|BlueField-?\d)"
_TIMES = re.compile(rf"\s*[×xX*✕]\s*(?:{_FABRIC}[\s:@(-]*)?", re.I)
# "8个400Gb网口", "8 张 400G IB 网卡", "eight 400G NICs": so many ports of one speed
_PORTS_OF = re.compile(r"\s*(?:[个张块条口]|ports? (?:of|at)|)\s*", re.I)
_IS_A_PORT = re.compile(
    rf"\s*(?:的)?\s*(?:{_FABRIC}\s*)?(?:[\u4e00-\u9fff]{{0,4}}网[口卡]|网[口卡络]|端口|口|光[口模纤]|NICs?\b|HCAs?\b|ports?\b|uplinks?\b|rails?\b)",
    re.I,
)

# "网卡每台 4 张 400G": what is counted was named before
_PORTS_BEFORE = re.compile(r"(?:网[口卡]|端口|\b(?:NICs?|HCAs?|ports?)\b)[^\d,，。;；()（）]{0,8}$", re.I)


def find_quantities(text: str) -> list[Quantity]:
    """Every amount in `text`, left to right. Offsets are those of `text`; full-width forms are understood.

    Ranges ("128~10240", "between 1k and 4k", "[128, 10240]") and multiples ("8×400Gb/s") are one quantity each.
    """
    folded = fold_width(text)
    singles: list[Quantity] = []
    shares = [_share(m) for m in _SHARE.finditer(folded)]
    if shares:
        folded = _SHARE.sub(lambda m: "\x03" * len(m.group()), folded)
    pos = 0
    while match := _NUMBER.search(folded, pos):
        quantity = None
        before = folded[match.start() - 1 : match.start()]
        glued = (
            bool(match["arabic"])
            and not match["sign"]
            and (
                (before.isascii() and before.isalpha())
                or before == "_"
                or _POINT.search(folded[: match.start()]) is not None
            )
        )
        times = before in ("x", "X") and re.search(r"(?:^|[\d\s)\x01])[xX]$", folded[: match.start()])
        if not glued or times or _METRIC_BEFORE.search(folded[max(0, match.start() - 8) : match.start()]):
            quantity = _quantity_at(folded, match)
        if (
            quantity is not None
            and quantity.dimension == "count"
            and match["arabic"]
            and _in_a_name(folded, match.start())
        ):
            quantity = None
        if quantity is None:
            pos = match.end()
            continue
        quantity = _prefixed_rate(folded, quantity)
        singles.append(quantity)
        pos = max(quantity.end, match.end())
    found = _combine(folded, singles, text)
    return sorted([*found, *shares], key=lambda q: q.start) if shares else found


def _share(match: re.Match[str]) -> Quantity:
    """ "two thirds (of them)", "one in ten", 三分之一."""
    if match["half"]:
        value = 0.5
    elif match["part"]:
        value = english_number(match["n"]) / _PARTS[match["part"].lower()]
    elif match["k"]:
        value = english_number(match["k"]) / english_number(match["m"])
    else:
        value = chinese_number(match["zk"]) / chinese_number(match["zm"])
    words, start = match.group().rstrip(), match.start()
    return Quantity(float(f"{value:.10g}"), "fraction", "", start, start + len(words), words)


def _multiple(text: str, count: Quantity, each: Quantity) -> bool:
    """Whether `count` is how often there is `each`: "8×400Gb/s", "8 张 400G 网卡"."""
    between = text[count.end : each.start]
    if _TIMES.fullmatch(between):
        return True
    port = (
        _IS_A_PORT.match(text, each.end) or re.match(r"Gb?E\b", each.unit) or _PORTS_BEFORE.search(text[: count.start])
    )
    return bool(_PORTS_OF.fullmatch(between) and port)


def _combine(folded: str, singles: list[Quantity], text: str) -> list[Quantity]:
    out: list[Quantity] = []
    for q in singles:
        last = out[-1] if out else None
        if last is not None and last.high is None and _is_range(folded, last, q):
            out[-1] = _joined_range(folded, last, q)
        elif last is not None and last.integral and q.dimension != "count" and _multiple(folded, last, q):
            out[-1] = replace(q, factor=int(last.value), start=last.start, text=folded[last.start : q.end])
        elif (
            last is not None
            and last.high is None
            and last.dimension == q.dimension == "count"
            and q.value < 0
            and q.start == last.end
        ):
            continue
        else:
            out.append(q)
    return [replace(q, text=text[q.start : q.end]) for q in out]


# ---------------------------------------------------------------- meaning

_ABSENT = re.compile(
    r"(?:none|null|nil|n\s*/\s*a|na|not\s+(?:required|applicable|specified|limited)|no(?:\s+(?:hard|strict))?\s+(?:limit|requirement|constraint|slo|target)s?|unlimited|"
    r"unconstrained|without\s+limits?|no|-+|无|不限|没有|无要求|不要求|没有要求|无限制|不作要求|不做要求|不限制|无需|暂无|未要求|没有限制)\s*[.。]?",
    re.I,
)
_UNKNOWN = re.compile(
    r"(?:tbd|to be (?:determined|decided)|unknown|待定|未知|不清楚|不确定|\?+|？+|not\s+sure|unspecified|未定|待确认)\s*[.。]?",
    re.I,
)


def is_absence(text: str) -> bool:
    """ "None", "n/a", "无", "不限": an explicit absence, which is a fact."""
    return bool(_ABSENT.fullmatch(fold_width(text).strip().strip("*_`\"' ")))


def is_unknown(text: str) -> bool:
    """ "TBD", "待定": the writer does not know either, so the value is missing."""
    return bool(_UNKNOWN.fullmatch(fold_width(text).strip().strip("*_`\"' ")))


def in_dimension(q: Quantity, dimension: str) -> float | None:
    """The value of `q` read as `dimension`, or None where that would be a guess of more than a dropped unit word."""
    if q.dimension == dimension:
        return q.value
    letter = q.unit.strip()
    if q.dimension == "count":
        if dimension == "fraction" and 0 <= q.value <= 1:
            return q.value
        if dimension == "flop/s" and q.value >= 1e11:
            return q.value
        if dimension == "bytes/s" and q.value >= 1e11:
            return q.value
    if q.dimension == "bytes" and dimension == "bytes/s" and letter in ("G", "g", "T", "GB", "TB", "MB"):
        return q.value
    if (
        q.dimension == "bytes"
        and dimension == "bytes/s"
        and re.fullmatch(r"[GTgt]bits?|[GT]b|(?:giga|tera)bits?", letter)
    ):
        return q.value / (8 if letter in ("Gb", "Tb") else 1)
    return None


def parse_quantity(text: str, dimension: str | None = None) -> Quantity:
    """The one amount that `text` states. Raises ToolError if there is none, several, or another dimension."""
    found = find_quantities(text)
    if dimension is not None:
        fitting = [q for q in found if in_dimension(q, dimension) is not None]
        if len(fitting) == 1:
            value = in_dimension(fitting[0], dimension)
            assert value is not None
            return replace(fitting[0], value=value, dimension=dimension)
        if found and not fitting:
            raise ToolError(f"{text!r} is in {found[0].dimension}, expected {dimension}")
    if len(found) != 1:
        raise ToolError(
            f"expected one quantity in {text!r}, found {len(found)}; write it like '80 GB', '900 GB/s' or '500 ms'"
        )
    return found[0]


_FORMATS = {
    "bytes": (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)),
    "bytes/s": (("TB/s", 1e12), ("GB/s", 1e9), ("MB/s", 1e6), ("KB/s", 1e3)),
    "flop/s": (("PFLOPS", 1e15), ("TFLOPS", 1e12), ("GFLOPS", 1e9)),
    "s": (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)),
    "tokens/s": (("tokens/s", 1.0),),
    "requests/s": (("requests/s", 1.0),),
    "fraction": (("%", 0.01),),
}


def format_quantity(value: float, dimension: str, digits: int = 6) -> str:
    """ "80 GB", "450 GB/s", "500 ms": the inverse of `parse_quantity` to `digits` significant digits."""
    for unit, scale in _FORMATS.get(dimension, ()):
        if abs(value) >= scale or (unit, scale) == _FORMATS[dimension][-1]:
            return f"{value / scale:.{digits}g} {unit}".replace(" %", "%")
    return f"{value:.{digits}g}"
