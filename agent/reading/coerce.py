"""From an amount under a word to the SI value of a path: unit hints of labels and keys, and stated doubts where the unit is missing."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re

from agent.reading.lexicon import Term
from tools.units import Quantity, find_quantities, in_dimension

# (what a bare number means, the unit assumed) by path: the smallest scale at which the number is plausible is taken
_BARE: dict[str, tuple[tuple[float, float, str], ...]] = {
    # path: (numbers from, multiplier, unit)
    "requirements.ttft_s": ((20, 1e-3, "ms"), (0, 1, "s")),
    "requirements.tpot_s": ((1, 1e-3, "ms"), (0, 1, "s")),
    "requirements.e2e_latency_s": ((600, 1e-3, "ms"), (0, 1, "s")),
    "hardware.memory_bytes": ((1e9, 1, "bytes"), (2000, 1e6, "MB"), (0, 1e9, "GB")),
    "hardware.memory_bandwidth": ((1e9, 1, "bytes/s"), (20, 1e9, "GB/s"), (0, 1e12, "TB/s")),
    "hardware.peak_flops": ((1e9, 1, "FLOP/s"), (20, 1e12, "TFLOPS"), (0, 1e15, "PFLOPS")),
    "hardware.inter_node_bandwidth": ((1e9, 1, "bytes/s"), (0, 1.25e8, "Gb/s, as NICs are named")),
    "model.declared_parameters": ((1e6, 1, "parameters"), (0, 1e9, "billion")),
    "model.declared_active_parameters": ((1e6, 1, "parameters"), (0, 1e9, "billion")),
}
_BY_DIMENSION = {
    "bytes": ((1e6, 1.0, "bytes"), (0, 1e9, "GB")), "bytes/s": ((1e9, 1.0, "bytes/s"), (0, 1e9, "GB/s")), "s": ((20, 1e-3, "ms"), (0, 1.0, "s")),
    "fraction": ((1.0000001, 0.01, "%"), (0, 1.0, "fraction")), "tokens/s": ((0, 1.0, "tokens/s"),), "requests/s": ((0, 1.0, "requests/s"),),
    "flop/s": ((1e9, 1.0, "FLOP/s"), (0, 1e12, "TFLOPS")), "money/h": ((0, 1.0, "per hour"),),
}  # fmt: skip
_HINTS = {
    "percent": "%", "pct": "%", "percentage": "%", "百分比": "%", "billion": " billion", "billions": " billion", "b": "B", "million": " million", "secs": "s",
    "tok/s": " tokens/s", "toks": " tokens/s", "tps": " tokens/s", "gbs": "GB/s", "tbs": "TB/s", "gb/s": "GB/s", "tb/s": "TB/s", "gib": "GiB", "kb": "KB", "mb": "MB",
    "gb": "GB", "tb": "TB", "tbps": "TBps", "mbps": "Mbps", "k": "K", "sec": "s", "us": "us", "tflop": "TFLOPS", "millis": "ms", "亿": "亿", "万": "万",
}  # fmt: skip
_HINT_DIMENSION = {"B": "count", " billion": "count", " million": "count", "K": "count"}


# "Requests per minute (average)"
_STAT_WORDS = re.compile(
    r"[(（]\s*(?:mean|average|avg\.?|peak|max(?:imum)?|min(?:imum)?|typical|median|p\d\d|平均|均值|峰值|高峰|最大)\s*[)）]",
    re.I,
)


def unit_hint(label: str) -> str:
    """The unit that a label or key carries: "TTFT (ms)" → "ms", "memory_bw_gbps" → "gbps", "params_b" → "B"; else empty."""
    label = _STAT_WORDS.sub(" ", label)
    inside = re.findall(
        r"[(（\[/，,]\s*(?:单位[:：]?)?\s*([^()（）\[\]]{1,18}?)\s*[)）\]]",
        label + (")" if label.count("(") > label.count(")") else ""),
    )
    tokens = [t for t in re.split(r"[\s_\-.]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label).strip(" :=：")) if t]
    while len(tokens) > 1 and re.fullmatch(
        r"p\d\d?|max|min|mean|avg|average|median|limit|target|value|typical|upper|lower|bound|each|one ?way|direction"
        r"|(?:uni|bi)?dir(?:ectional)?|unidirectional|bidirectional|total|peak|dense|sparse",
        tokens[-1],
        re.I,
    ):
        tokens.pop()
    if (
        len(tokens) > 2
        and tokens[-2].lower() == "per"
        and re.fullmatch(r"s(?:ec(?:ond)?)?|m(?:in(?:ute)?)?|h(?:our)?|day", tokens[-1], re.I)
    ):
        # "arrival_rate_per_s" is no time
        return (
            f" requests/{tokens[-1]}"
            if re.search(r"request|arrival|quer|call|load|traffic|rate", label, re.I)
            and not re.search(r"tok", label, re.I)
            else f" tokens/{tokens[-1]}"
            if re.search(r"tok", label, re.I)
            else ""
        )
    tails = [_join_tokens(tokens[-n:]) for n in range(min(7, len(tokens)), 0, -1)]
    if len(tokens) > 1 and tokens[-2].lower() == "top":
        return ""  # top_k
    if len(tokens) == 1 and tokens[0].lower() in ("b", "k") and not inside:
        return ""  # "B=256" is a symbol: there is nothing whose unit the letter could be
    for raw in [*inside[::-1], *tails]:
        hint = _HINTS.get(raw.lower(), raw)
        found = find_quantities(f"1{hint if hint.startswith(' ') or hint in ('%', 'B', 'K') else ' ' + hint}")
        if (
            len(found) == 1
            and found[0].end >= len(f"1{hint.strip()}")
            and (found[0].dimension != "count" or hint in _HINT_DIMENSION or hint in ("亿", "万"))
        ):
            return hint
    return ""


def _join_tokens(tokens: list[str]) -> str:
    joined = "/".join(" ".join(tokens).lower().split(" per "))
    if (
        len(tokens) >= 2
        and tokens[-1].lower() in ("s", "sec", "ms")
        # "first_token_s", "per_token_ms" are times
        and tokens[-2].lower() in ("gb", "tb", "mb", "tok", "tokens", "req", "requests")
    ):
        return "/".join(t.lower() for t in tokens[-2:]) if len(tokens) == 2 else " "
    return tokens[0] if len(tokens) == 1 else joined if "/" in joined else " "


def hinted_unit(label: str) -> Quantity | None:
    """One of the unit that the label carries ("1 ms"), or None."""
    hint = unit_hint(label)
    if not hint:
        return None
    spaced = hint if hint in ("%", "B", "K", "亿", "万") or hint.startswith(" ") else f" {hint}"
    found = find_quantities(f"1{spaced}")
    return found[0] if found else None


def amount(q: Quantity, term: Term) -> tuple[float, float | None, str] | None:
    """(value, high, doubt) of `q` as an amount of `term`, SI; None when it cannot be one."""
    direct = in_dimension(q, term.dimension)
    if q.dimension == term.dimension == "bytes/s" and term.path.startswith("hardware.inter") and q.unit in ("G", "g"):
        direct = None
    if direct is not None and not (term.dimension == "count" or q.dimension == "count"):
        ratio = direct / q.value if q.value else 1.0
        doubt = q.doubt
        if q.dimension == "bytes" and term.dimension == "bytes/s":
            if term.path == "hardware.inter_node_bandwidth" and q.unit in ("G", "g"):
                return direct / 8, None, f"{q.text} of network read as Gb/s, as NICs are named"
            doubt = f"{q.text} without '/s' read as a rate"
        return direct, None if q.high is None else q.high * ratio, doubt
    if term.dimension == "count":
        value = in_dimension(q, "count")
        if value is None:
            return None
        return _guess(q, term) if term.path in _BARE else (value, q.high, "")
    return _guess(q, term)


def _guess(q: Quantity, term: Term) -> tuple[float, float | None, str] | None:
    if q.dimension != "count":
        return None
    table = _BARE.get(term.path) or _BY_DIMENSION.get(term.dimension)
    if table is None:
        return None
    size = abs(q.high if q.high is not None else q.value)
    if 0 < size < 1 and term.dimension in ("bytes", "bytes/s", "flop/s"):
        return None
    _, scale, unit = next(row for row in table if size >= row[0])
    plain = unit in ("fraction", "parameters", "requests/s", "tokens/s", "per hour")
    doubt = "" if plain else f"{q.text} has no unit; read as {q.text} {unit}"
    return q.value * scale, None if q.high is None else q.high * scale, doubt
