"""What a paper calls things: the name of its own method, and the symbols it defines ("let N be the prompt length")."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_SYMBOL = r"[A-Za-z](?:_?\{?[A-Za-z*]{1,6}\}?)?"
_KNOWN = re.compile(
    r"(?:TP|PP|DP|EP|CP|SP|ETP|DCP|KVP|MoE|LLMs?|GPUs?|NPUs?|KV|MHA|GQA|MQA|MLA|FFN|MLP|TTFT|TPOT|SLOs?|GEMM|SRAM|HBM|L2|LSE|QKV|GPT|SUMMA|USP|RoPE|AI|IO|API|DeepSpeed|DeepSeek|FlashAttention|PageAttention|vLLM|TensorRT|MegaScale|NVLink|InfiniBand)",
    re.I,
)
_KNOWN_WORDS = re.compile(
    r"parallel|pipelin|tensor|ulysses|ring attention|baseline|expert|data|models?$|stud(?:y|ies)|note|report", re.I
)
_ACRONYM = r"[A-Z][A-Za-z]*[A-Z0-9][A-Za-z0-9]*(?:-[A-Z][A-Za-z0-9]+)?|[A-Z][a-z]+[A-Z][A-Za-z]*"
_TITLE_NAME = re.compile(rf"^(?P<n>{_ACRONYM}|[A-Z]{{1,4}}-[A-Z][a-z]+)\s*[:：]\s+\S")
_TITLE_WORD = re.compile(r"^(?P<n>[A-Z][a-z]{2,11})\s*[:：]\s+\S")
_CAMEL = re.compile(r"(?<![A-Za-z])(?P<n>[A-Z][a-z]+[A-Z][A-Za-z]*)(?![A-Za-z])")
_PAREN_NAME = re.compile(rf"[A-Za-z]\s*[(（](?P<n>{_ACRONYM})[)）]")
_PROPOSES = re.compile(
    rf"\b(?:we|this (?:paper|work|article)) (?:propose|present|introduce|describe|call (?:it|this|the (?:method|scheme|layout|result)))s?\b[^.。]{{0,90}}?(?:\b(?P<n>{_ACRONYM}|[A-Z]{{1,4}}-[A-Z][a-z]+)\b)"
    rf"|(?:本文|我们)(?:提出|介绍|设计)(?:了|的)?(?:一种)?\s*(?P<n1>{_ACRONYM})"
)
_DEFINITIONS = (
    re.compile(
        rf"\b(?:[Ll]et|[Ww]here|[Ww]ith|[Dd]enote by|[Hh]ere|and)\s+(?P<s>{_SYMBOL})\s+(?:(?:be|is|are|denotes?|stands? for|means)\s+)?(?:the |its |our )(?P<w>(?:number|count|amount|total)? ?(?:of )?[A-Za-z][A-Za-z /-]{{3,40}}?)(?=\s*(?:[,;.:(]|and\b|is\b|in\b|$))"
    ),
    re.compile(
        r"(?P<w>number of [A-Za-z][A-Za-z -]{3,40}?)\s*\(?(?P<s>(?<![A-Za-z])[A-Z](?:_[a-z]{1,3})?)\)?(?=[\s,.;)])"
    ),
)
_COUNT_OF = re.compile(r"^(?:(?:number|count|amount|total)(?: number)? of )\s*", re.I)


@dataclass(frozen=True, slots=True)
class Terms:
    """`own`: names of the paper's method; `symbols`: (symbol, what it stands for, "of" a count or not)."""

    own: tuple[str, ...] = ()
    symbols: tuple[tuple[str, str], ...] = ()

    def names_own(self, title: str) -> bool:
        """Whether a label or heading is the paper's own method's."""
        return any(
            re.search(rf"(?<![A-Za-z]){re.escape(n)}(?![A-Za-z])", title, re.I if " " in n else 0) for n in self.own
        )

    def spelled(self, text: str) -> Iterator[str]:
        """What a text's "N = 262144" says in words: "prompt length = 262144"."""
        for symbol, words in self.symbols:
            m = re.search(
                rf"(?<![A-Za-z_]){re.escape(symbol)}\s*=\s*(?P<v>\d+(?:,\d{{3}})*\s?[kK]?)(?![A-Za-z\d])", text
            )
            if m and not re.search(r"(?:\btimes|[×x*·])\s*$", text[: m.start()]):  # "m × n = 16" gives neither a value
                counted = re.match(r"number of (?P<what>.+)", words)
                yield f"{m['v']} {counted['what']}" if counted else f"{words} = {m['v']}"


NO_TERMS = Terms()


def terms_of(title: str, texts: Sequence[str]) -> Terms:
    """Names from the title ("AE-Split: …"), a first mention in brackets, and "we propose X"; symbols from definitions."""
    own: list[str] = []
    for m in (_TITLE_NAME.match(title), *_PAREN_NAME.finditer(title), *_CAMEL.finditer(title)):
        own += [m["n"]] if m else []
    # A short title, or what stands before its comma or colon, is a name too: "Two racks, one model".
    head = re.split(r"[:：,，—]", title)[0].strip()
    own += [head] if 1 < len(head.split()) <= 3 and not _KNOWN_WORDS.search(head) else []
    word = _TITLE_WORD.match(title)
    said = "\n".join(texts)
    if (
        word
        and not _KNOWN_WORDS.search(word["n"])
        and len(re.findall(rf"(?<![A-Za-z]){word['n']}(?![A-Za-z])", said)) > 1
    ):
        own.append(word["n"])  # "Orca: …", and Orca is spoken of
    symbols: dict[str, str] = {}
    for text in texts:
        own += [m["n"] or m["n1"] for m in _PROPOSES.finditer(text)]
        for pattern in _DEFINITIONS:
            for m in pattern.finditer(text):
                symbols.setdefault(
                    m["s"].replace("{", "").replace("}", ""), _COUNT_OF.sub("number of ", m["w"].strip())
                )
    names = tuple(dict.fromkeys(n for n in own if not _KNOWN.fullmatch(n)))
    return Terms(names, tuple(symbols.items()))
