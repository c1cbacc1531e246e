"""Forms that people fill in: questions with their answers, and boxes that are ticked."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re

# "**2. How many GPUs per server?**  8"; a question with a number of its own states something and stays a sentence
_QUESTION = re.compile(r"^\s*(?:[QqＱ问]?\s*\d{1,2}\s*[.)、:：]\s*|[QＱ问]\s*[:：]\s*)?(?P<question>[^?？\d:：]{2,70})[?？]\s*(?:[AＡ答]\s*[:：]\s*)?(?P<answer>\S.{0,200})$")  # fmt: skip
_ASKED = re.compile(r"^\s*(?:[-*]\s*)?(?:Q|Ｑ|问)\s*\d*\s*[:：.]\s*(?P<question>.+?)\s*[?？]?\s*$")
_ANSWERED = re.compile(r"^\s*(?:[-*]\s*)?(?:A|Ａ|答)\s*\d*\s*[:：.]\s*(?P<answer>\S.*)$")
_BOX = re.compile(r"(?P<ticked>[\[(]\s*[xX✓✔√]\s*[\])]|[☑☒✅■])|(?P<empty>\[\s?\]|[☐□])")
_OPTION = re.compile(r"(?P<option>.*?)(?P<rest>\s{2,}.*|\s*[—–].*|[;；].*|)$", re.S)


def answered(line: str) -> tuple[str, str] | None:
    """(question, answer) of a line that holds both."""
    match = _QUESTION.match(line)
    if match is None or match["answer"].rstrip().endswith(("?", "？")):
        return None
    if len(match["answer"].split()) > 14 and not re.match(r"\W*\d", match["answer"]):
        return None  # a question asked in passing, and the text goes on
    return match["question"].strip(" *_"), match["answer"].strip()


def answered_below(line: str, following: str) -> tuple[str, str] | None:
    """(question, answer) of "Q: …" with "A: …" on the next line."""
    asked, answer = _ASKED.match(line), _ANSWERED.match(following)
    return (asked["question"].rstrip("?？ "), answer["answer"].strip()) if asked and answer else None


def ticked(text: str) -> str:
    """Of the options behind boxes only those that are ticked; text without a ticked box stays as it is."""
    boxes = list(_BOX.finditer(text))
    if not any(b["ticked"] for b in boxes):
        return text
    out = [text[: boxes[0].start()]]
    for k, box in enumerate(boxes):
        end = boxes[k + 1].start() if k + 1 < len(boxes) else len(text)
        part = _OPTION.fullmatch(text[box.end() : end].lstrip())
        if part is None:
            continue
        # what follows the last option, set apart, is about the one that was chosen
        tail = part["rest"].strip() if k + 1 == len(boxes) else ""
        out.append(f"{part['option'].strip() if box['ticked'] else ''} {tail}".strip())
    return " ".join(" ".join(o for o in out if o).split())


def is_empty_box(line: str) -> bool:
    """Whether the line is an option that is not ticked."""
    box = _BOX.search(line)
    return bool(box and box["empty"] and len(line.strip()) < 48 and not _BOX.search(line, box.end()))


def is_ticked_box(line: str) -> bool:
    box = _BOX.search(line)
    return bool(box and box["ticked"] and len(line.strip()) < 48)
