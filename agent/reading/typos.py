"""Misspelt words of the trade in English prose: one letter dropped or two swapped ("promt", "frist", "anwser").

Only spellings that are no other word are put right, and only inside words that the reader looks for; what is quoted as
evidence stays as it was written.
"""

from __future__ import annotations

import re
from functools import cache

_WORDS = [
    "prompt",
    "prompts",
    "answer",
    "answers",
    "output",
    "outputs",
    "input",
    "inputs",
    "token",
    "tokens",
    "first",
    "users",
    "request",
    "requests",
    "second",
    "seconds",
    "concurrent",
    "concurrency",
    "concurrently",
    "latency",
    "throughput",
    "average",
    "parallel",
    "memory",
    "bandwidth",
    "instruct",
    "simultaneous",
    "requirement",
    "requirements",
    "maximum",
    "minimum",
    "context",
    "precision",
    "quantized",
    "workload",
    "available",
    "utilization",
    "percentile",
    "response",
    "responses",
]
_OTHER_WORDS = frozenset(
    [
        "fist",
        "firs",
        "uses",
        "user",
        "toke",
        "tokes",
        "imput",
        "inpu",
        "memo",
        "contest",
        "prompt",
        "prompts",
        "quest",
        "reques",
        "secon",
        "seconds",
        "second",
        "token",
        "tokens",
        "first",
        "users",
        "input",
        "inputs",
        "output",
        "outputs",
        "answer",
        "answers",
        "request",
        "requests",
        "response",
        "responses",
        "average",
        "requirement",
        "requirements",
        "parallel",
    ]
)


@cache
def _misspelt() -> dict[str, str]:
    """Every word with a letter (not the first) dropped, or two neighbours swapped → the word."""
    out: dict[str, str] = {}
    for word in _WORDS:
        dropped = [word[:i] + word[i + 1 :] for i in range(1, len(word))]
        swapped = [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(1, len(word) - 1)]
        for form in (*dropped, *swapped):
            if form != word and form not in _OTHER_WORDS and form not in _WORDS and len(form) >= 4:
                out.setdefault(form, word)
    return out


_WORD = re.compile(r"(?<![A-Za-z0-9_./])[A-Za-z]{4,14}(?![A-Za-z0-9_/])")


def corrected(text: str, label_end: int = 0) -> tuple[str, int]:
    """`text` with such words put right, and where its label ends now."""
    shift = 0
    out, last = [], 0
    for match in _WORD.finditer(text):
        right = _misspelt().get(match.group().lower())
        if right is None:
            continue
        out += [text[last : match.start()], right]
        last = match.end()
        if match.end() <= label_end:
            shift += len(right) - len(match.group())
    return ("".join([*out, text[last:]]), label_end + shift) if out else (text, label_end)
