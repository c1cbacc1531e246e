"""Texts that differ only in their numbers: what holds for all of them is found once.

The patterns of this package ask whether digits stand somewhere, never which ones. So a text and its *form* (every digit a
1) match at the same offsets, and a question that is answered by yes or no has one answer for both. The 100,000 labels of a
large file have few forms: questions go to the form, only the numbers themselves are read from each text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

T = TypeVar("T")

_ONES = str.maketrans("023456789", "111111111")
KEPT = 16_384
"""Forms whose answers are remembered, per question."""
ASKED: list[Callable[[str], Any]] = []
"""Every question that is put to forms; a test holds that none tells digits apart."""


@lru_cache(maxsize=4_096)
def form(text: str) -> str:
    """The text with every digit a 1; as long as the text."""
    return text.translate(_ONES)


def by_form(ask: Callable[[str], T]) -> Callable[[str], T]:
    """`ask` about a text's form. It must not tell digits apart: its answer is a truth value, a count or offsets."""
    answer = lru_cache(maxsize=KEPT)(ask)

    @wraps(ask)
    def asked(text: str) -> T:
        return answer(form(text))

    ASKED.append(asked)
    return asked


__all__ = ["ASKED", "KEPT", "by_form", "form"]
