"""Dims as labels write them: `q=[batch_size=8, d_k=128]`, `x: {b=2, s=16}`, `tensor<b=2 x s=16 x bf16>`, `(B, S, H)`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from tools.dag.alike import by_form

Dims = tuple[tuple[str, str], ...]
"""(dim, length as written); the name is empty where a length has none."""


class PortFacts(NamedTuple):
    tensor: str
    dims: Dims

    def __str__(self) -> str:
        return (
            f"{self.tensor}=" * bool(self.tensor) + "[" + ", ".join(f"{d}={n}" if d else n for d, n in self.dims) + "]"
        )


_DTYPE = r"(?:torch\.)?(?:b?f(?:loat)?\d+(?:_?e\d+m\d+\w*)?|fp\d+(?:_?e\d+m\d+)?|u?int\d+|[ui]\d+|half|double|bool)"
_TYPE_WORD = re.compile(
    rf"(?<![\w.])(?:{_DTYPE}|(?:ranked)?tensor(?:type)?|memref|torch\.size|size|shape)\s*(?=[\[(<{{])", re.IGNORECASE
)
_IS_DTYPE = re.compile(rf"{_DTYPE}\Z", re.IGNORECASE)
_OTHER_BRACKETS = re.compile(
    r"\{([^{}<>\[\]()]*[=:][^{}<>\[\]()]*)\}|<([^{}<>\[\]()]*=[^{}<>\[\]()]*)>|(?<=\w)<([^<>\[\](){}=]*\d[^<>\[\](){}=]*)>"
)
BRACKET = re.compile(
    r"(?:(?<![\w.@·#\-])(?P<tensor>[\w.@·#\-]+(?:\([^()]*\))?)\s*[=:]?\s*)?(?:\[(?P<dims>[^\[\]]*)\]|\((?P<round>[^\[\]()]*[=,][^\[\]()]*)\))"
)
_GROUP = re.compile(r"\[[^\[\]]*\]|\([^\[\]()]*[=,][^\[\]()]*\)")
_NAME_DIMS = re.compile(r"\S*\s*[=:]?\s*\0\Z")
_PAIR = re.compile(r"([^\W\d]\w*)\s*[=:]\s*([^,;\s\])}>]+)")
_LIST = re.compile(r"[,;，；、]")
_TIMES = re.compile(r"\s[x×*·]\s|×")
_SPACED = re.compile(r"\w+\s*=\s*\S+(?:\s+\w+\s*=\s*\S+)+\Z")
_NAMED = re.compile(r"([\w.]+)\s+(?:with|of)\s+(?=\w+\s*=)|(?<![\w=:])([\w.%]+)\s*[:=]\s*(?=[^\W\d]\w*\s*[=:]\s*\w)")
_ATOM = re.compile(r"(?:\d[\d,._]*|[A-Za-z]\w{0,11}|\?|-\d)(?:\s*[/*+\-]\s*\w+)*\Z", re.ASCII)


_FACTORS = r"[\w/.]+(?:\s*×\s*[\w/.]+){2,}"
_PRODUCT = re.compile(rf"^[ \t]*\(\s*({_FACTORS})(?:\s*(?:→|->)\s*({_FACTORS}))?\s*\)[ \t]*$", re.MULTILINE)


def square(text: str) -> str:
    """Dims in braces or angle brackets, or as a product alone on its line (`(B×L×8192→B×L×4)`), as dims in square brackets,
    without the type in front of them."""
    if "×" in text:
        text = _PRODUCT.sub(lambda m: f"[{m[1]}] → [{m[2]}]" if m[2] else f"[{m[1]}]", text)
    if "{" in text or "<" in text:
        text = _TYPE_WORD.sub("", text)
        return _OTHER_BRACKETS.sub(lambda m: f"[{m[1] or m[2] or m[3]}]", text)
    return _TYPE_WORD.sub("", text) if _TYPE_WORD.search(text) else text


@lru_cache(maxsize=65536)
def ports_in(text: str) -> tuple[PortFacts, ...]:
    """`q=[batch_size=8, d_k=128]; [hidden=64]` → two ports; `batch_size=8, hidden=64` without brackets → one."""
    spans = _plain_spans(text)
    if spans is not None:
        return tuple(
            [PortFacts(text[a:b], tuple([(text[c:d], text[e:f]) for c, d, e, f in dims])) for a, b, dims in spans]
        )
    text = square(text)
    found = [PortFacts(m["tensor"] or "", _dims(m["dims"] or m["round"] or "")) for m in BRACKET.finditer(text)]
    if found:
        return tuple(p for p in found if p.dims)
    return tuple(_prose_ports(text))


_PLAIN_DIM = re.compile(r"\s*(?:(\w+)\s*=\s*)?(\d+|(?<==)[^\W\d]\w*)\s*(?:[,;]|\Z)")


@by_form
def _plain_spans(text: str) -> tuple[tuple[int, int, tuple[tuple[int, int, int, int], ...]], ...] | None:
    """Where the tensor and the names and lengths of each port stand, as nearly all are written: `q=[batch_size=8, d_k=128]`.
    None where some dims are written in another way."""
    if "{" in text or "<" in text or _TYPE_WORD.search(text):
        return None
    out = []
    for m in BRACKET.finditer(text):
        at, end = m.span("dims") if m["dims"] is not None else m.span("round")
        dims = []
        while at < end:
            d = _PLAIN_DIM.match(text, at, end)
            if d is None:
                return None
            dims.append((*(d.span(1) if d[1] else (0, 0)), *d.span(2)))
            at = d.end()
        if dims:
            out.append((*(m.span("tensor") if m["tensor"] else (0, 0)), tuple(dims)))
    return tuple(out) or None


def after_ports(text: str) -> str:
    """What follows the last bracket of dims, and how often it stands for a tensor (`[…] x2`)."""
    end = _end_of_ports(text)
    return text[end:] if end else ""


MAX_COPIES = 64
_COPIES = re.compile(r"(?:(?<![\w.])(\d+)\s*[×✕x*]\s*)?([\w.%]*\s*=?\s*\[[^\[\]]*\])(?:\s*[×✕x*]\s*(\d+)(?![\w.]))?")


def copied(text: str) -> str:
    """`[b=2] x2` and `2×[b=2]` as `[b=2]; [b=2]`: tensors of one shape that are written once."""

    def one(m: re.Match[str]) -> str:
        times = m[1] or m[3]
        return "; ".join([m[2]] * min(int(times), MAX_COPIES)) if times and int(times[:4]) > 1 else m[2]

    return _COPIES.sub(one, text) if _may_be_copied(text) else text


@by_form
def _may_be_copied(text: str) -> bool:
    return any(m[1] or m[3] for m in _COPIES.finditer(text))


@by_form
def _end_of_ports(text: str) -> int:
    end = 0
    for m in BRACKET.finditer(text):
        end = m.end()
    return end


@by_form
def only_ports(text: str) -> bool:
    """Dims and nothing else: `q=[…]; k=[…]`, `(b=2, s=16)`, `x: b=2, s=16`."""
    text = square(text)
    rest = BRACKET.sub("", text)
    if rest == text:
        return bool(_PAIR.search(text)) and not re.search(r"\w", _PAIR.sub("", _NAMED.sub("", text)))
    ports = ports_in(text)
    if re.search(r"\w", rest):  # tensors have names like grad(x)@all_reduce; a name has no spaces
        parts = (
            p.strip(" .")
            for p in re.split(r"[;,/|]\s|[;,]\Z|\s(?:\+|&|and|和)\s|和|(?<=\0)\s+(?=\0)", _GROUP.sub("\0", text))
        )
        return all(d for p in ports for d, _ in p.dims) and all(_NAME_DIMS.match(p) for p in parts if p)
    atoms = [n for p in ports for d, n in p.dims if not d]
    return bool(ports) and all(_ATOM.match(n) for n in atoms) and not (len(atoms) == 1 and not atoms[0][0].isdigit())


def _prose_ports(text: str) -> Iterator[PortFacts]:
    """`q with heads=12, d_k=64 and k with heads=12, d_k=64`, `q: heads=12, d_k=64` → q, k."""
    named = list(_NAMED.finditer(text))
    starts = [m.end() for m in named] or [0]
    ends = [*(m.start() for m in named[1:]), len(text)]
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if pairs := tuple((d, n) for d, n in _PAIR.findall(text[start:end])):
            yield PortFacts((named[i][1] or named[i][2]).lstrip("%") if named else "", pairs)


@lru_cache(maxsize=65536)
def _dims(text: str) -> Dims:
    parts = _LIST.split(text)
    if len(parts) == 1:
        parts = _TIMES.split(text) if "=" in text or not re.search(r"[A-Za-z]{3}", text) else parts
        if len(parts) == 1 and _SPACED.match(text.strip()):
            return tuple((d, n) for d, n in _PAIR.findall(text))
    out = []
    for part in parts:
        if not part.strip() or (len(parts) > 1 and _IS_DTYPE.match(part.strip()) and "=" not in part):
            continue
        name, eq, value = part.partition("=") if "=" in part else part.partition(":")
        out.append((name.strip(" '\""), _length(value.strip())) if eq else ("", part.strip()))
    return tuple(out)


_QUOTIENT = re.compile(r"(\d+)\s*([/÷×*x])\s*(\d+)\Z")


def _length(text: str) -> str:
    """`4096/8`, `4096/8=512`, `512 (local)` → 512; other text as written."""
    if text.isdigit():
        return text
    if m := re.match(r"(?:.*=\s*)?(\d+)(?:\s+[(\w].*|\()?\Z", text):
        return m[1]
    if m := _QUOTIENT.match(text):
        a, b = int(m[1][:12]), int(m[3][:12])
        return str(a * b) if m[2] in "×*x" else str(a // b) if b and a % b == 0 else text
    return text


_ODD = re.compile(r"[^\w\s?*/+\-–.()×÷^%'\"=:·→>#@|&~$≤≥<]")


def readable(ports: tuple[PortFacts, ...] | None) -> tuple[PortFacts, ...] | None:
    """None where a name or length has signs that stand in no notation known here (`b∶4`, `⟪b`): then it was misread."""
    return None if ports and any(_is_odd(d) or _is_odd(n) for p in ports for d, n in p.dims) else ports


@by_form
def _is_odd(text: str) -> bool:
    return _ODD.search(text) is not None


_CLOSE, _OPEN = r"[\])}>]", r"[\[({<]"
_ARROW = re.compile(rf"(?<=[\])}}>])\s*(?:->|=>|→|⇒|⟶|⟹)\s*(?=(?:[\w.%]+\s*[=:]?\s*)?{_OPEN})")


def across_arrow(text: str) -> tuple[tuple[PortFacts, ...], tuple[PortFacts, ...]] | None:
    """Dims before and after an arrow, `(b=2, h=64) → (b=2, f=256)`: what goes in and what comes out."""
    if not _has_arrow(text):
        return None
    text = square(text)
    m = _ARROW.search(text)
    if m is None:
        return None
    before = text[: m.start()].rstrip().rsplit("\n", 1)[-1]
    left, right = (_alike(ports_in(part)) for part in (before, text[m.end() :].split("\n", 1)[0]))
    return (left, right) if left and right else None


@by_form
def _has_arrow(text: str) -> bool:
    return _ARROW.search(square(text)) is not None


def _alike(ports: tuple[PortFacts, ...]) -> tuple[PortFacts, ...]:
    """Where some dims have names, a bracket without any is something else (`[R0]`)."""
    return tuple(p for p in ports if any(d for d, _ in p.dims)) or ports


__all__ = [
    "BRACKET",
    "Dims",
    "PortFacts",
    "across_arrow",
    "after_ports",
    "copied",
    "only_ports",
    "ports_in",
    "readable",
    "square",
]
