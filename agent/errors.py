"""Exit codes, and how an exception becomes one line."""

from __future__ import annotations

OK, FINDINGS, BAD_INPUT, INFEASIBLE, BACKEND, BUG = 0, 1, 2, 3, 4, 70


def one_line(error: BaseException, limit: int = 600) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
