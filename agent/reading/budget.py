"""How much of a large input is read: all of a usual one, of a huge one its beginning and its densest parts, the rest named.

Reading costs about 20 µs a character; the budgets keep any accepted set of files within about ten seconds.
"""

from __future__ import annotations

import re
from collections import Counter

from agent.reading.facts import Reading
from agent.reading.structured import Leaf

READ_CHARS = 160_000
"""Characters of prose read per run."""
READ_LEAVES = 4_000
"""Values of structured inputs read per document."""
LEAVES_PER_KEY = 200
"""Of one key repeated in a list ("nodes[].gpus[].id"); the list itself is counted whole."""
_BLOCK_LINES = 40
_LONG_LINE = 8_000
# case matters here, for speed: this ranks, it does not read
_DENSE = re.compile(r"\d\s?[GTMKkmsxB%张块台路层卡秒个条]|TTFT|TPOT|GPU|NPU|token|模型|显存|带宽|并发|时延|延迟")


def within_budget(text: str, path: str, budget: int, reading: Reading) -> str:
    """`text` with what exceeds `budget` characters blanked line by line, so that line numbers stay; what is left out is said."""
    if len(text) <= budget:
        return text
    lines = text.split("\n")
    blocks = _blocks(lines)
    sizes = [sum(min(len(line), _LONG_LINE) + 1 for line in lines[a:b]) for a, b in blocks]
    kept, used = set(), 0
    for i, size in enumerate(sizes):
        if used + size > budget // 2:
            break
        kept.add(i)
        used += size
    # rounded, so that the earlier of two equally dense blocks comes first
    density = [-round(_hits(lines, a, b) / (size + 1), 3) for (a, b), size in zip(blocks, sizes, strict=True)]
    for i in sorted(range(len(blocks)), key=lambda i: (density[i], i)):
        if i not in kept and used + sizes[i] <= budget and density[i]:
            kept.add(i)
            used += sizes[i]
    out = [""] * len(lines)
    for i in kept:
        a, b = blocks[i]
        out[a:b] = [line[:_LONG_LINE] for line in lines[a:b]]
    skipped = sum(1 for a, b in zip(lines, out, strict=True) if a != b)
    reading.ignore(
        f"{path}: {skipped} of {len(lines)} lines",
        f"{len(text)} characters of text, of which {budget} are read: the beginning and the parts densest in quantities; "
        "give the conditions alone to have all of it read",
    )
    return "\n".join(out)


def _hits(lines: list[str], start: int, end: int) -> int:
    return len(_DENSE.findall("\n".join(line[:_LONG_LINE] for line in lines[start:end])))


def _blocks(lines: list[str]) -> list[tuple[int, int]]:
    """[start, end) of paragraphs, long ones cut."""
    blocks, start = [], 0
    for i, line in enumerate(lines):
        if not line.strip() or i - start >= _BLOCK_LINES:
            blocks.append((start, i + 1))
            start = i + 1
    blocks.append((start, len(lines)))
    return [(a, b) for a, b in blocks if a < b]


def leaves_within_budget(leaves: list[Leaf], reading: Reading) -> list[Leaf]:
    """The first `LEAVES_PER_KEY` of every repeated key and `READ_LEAVES` in all; the others are said to be left out."""
    if len(leaves) <= READ_LEAVES:
        return leaves
    seen: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    kept: list[Leaf] = []
    for leaf in leaves:
        key = "".join("[]" if isinstance(k, int) else f".{k}" for k in leaf.path).removeprefix(".")
        seen[key] += 1
        if seen[key] > LEAVES_PER_KEY or len(kept) >= READ_LEAVES:
            skipped[key] += 1
        else:
            kept.append(leaf)
    for key, count in skipped.most_common(50):
        reading.ignore(key, f"{count} of {seen[key]} values under this key are beyond the {READ_LEAVES} that are read")
    if len(skipped) > 50:
        rest = sum(count for _, count in skipped.most_common()[50:])
        reading.ignore(f"{len(skipped) - 50} further keys", f"{rest} values are beyond the {READ_LEAVES} that are read")
    return kept
