"""Frequencies of rotary position embedding, and what stretches them to longer contexts.

Pair i of `dim` rotating dims turns by position x theta^(-2i/dim) (RoFormer, arXiv 2104.09864). Scalings change the
frequencies, and some also the length of what is turned (`attention_factor`). Two of them depend on how many positions
there are so far: dynamic NTK and LongRoPE.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.spec.model import RopeScaling

Array = np.ndarray


def inverse_frequencies(theta: float, dim: int, scaling: RopeScaling | None, length: int) -> Array:
    """[dim / 2] radians per position, once there are `length` positions."""
    plain = theta ** (-np.arange(0, dim, 2) / dim)
    return plain if scaling is None else SCALINGS[scaling.kind](plain, theta, dim, scaling, length)


def attention_factor(scaling: RopeScaling | None, length: int) -> float:
    """What turned queries and keys are multiplied by; scores of what turns get its square."""
    if scaling is None:
        return 1.0
    long = scaling.long_attention_factor
    return long if long is not None and length > scaling.original else scaling.attention_factor


def _linear(plain: Array, theta: float, dim: int, s: RopeScaling, length: int) -> Array:
    """Positions pressed together (arXiv 2306.15595)."""
    return plain / s.factor


def _dynamic(plain: Array, theta: float, dim: int, s: RopeScaling, length: int) -> Array:
    """NTK-aware with a base that grows with the context: theta · (f·L/L0 - (f - 1))^(dim / (dim - 2)) beyond L0."""
    if dim == 2:  # the first pair turns by one radian whatever the base, and there is no other
        return plain
    grown = s.factor * max(length, s.original) / s.original - (s.factor - 1.0)
    return (theta * grown ** (dim / (dim - 2))) ** (-np.arange(0, dim, 2) / dim)


def _llama3(plain: Array, theta: float, dim: int, s: RopeScaling, length: int) -> Array:
    """Long waves are stretched, short ones kept, a smooth passage between (Llama 3.1, arXiv 2407.21783; Meta's code)."""
    turns = s.original * plain / (2 * np.pi)
    if s.high_freq_factor == s.low_freq_factor:  # Llama-4-Scout: no passage
        kept = np.where(turns >= s.low_freq_factor, 1.0, 0.0)
    else:
        kept = np.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0)
    return (1.0 - kept) * plain / s.factor + kept * plain


def _yarn(plain: Array, theta: float, dim: int, s: RopeScaling, length: int) -> Array:
    """NTK by parts: pairs that turn often are kept, those that turn seldom stretched, a ramp between (arXiv 2309.00071)."""

    def pair(turns: float) -> float:
        """The pair that turns so often over the original context."""
        return dim * np.log(s.original / (turns * 2 * np.pi)) / (2 * np.log(theta))

    low, high = pair(s.beta_fast), pair(s.beta_slow)
    if s.truncate:
        low, high = np.floor(low), np.ceil(high)
    low, high = max(low, 0.0), min(high, dim - 1.0)
    stretched = np.clip((np.arange(dim // 2) - low) / (high - low if high != low else 0.001), 0.0, 1.0)
    return plain / s.factor * stretched + plain * (1.0 - stretched)


def _longrope(plain: Array, theta: float, dim: int, s: RopeScaling, length: int) -> Array:
    """A searched factor per pair, another set once the context is longer than the original (arXiv 2402.13753)."""
    return plain / np.asarray(s.long_factor if length > s.original else s.short_factor)


def _proportional(plain: Array, theta: float, dim: int, s: RopeScaling, length: int) -> Array:
    """Only the fastest pairs turn, the rest stand still (Gemma-4; transformers 5.23 modeling_rope_utils)."""
    return np.where(np.arange(dim // 2) < int(s.rotated * dim // 2), plain / s.factor, 0.0)


SCALINGS: dict[str, Callable[[Array, float, int, RopeScaling, int], Array]] = {
    "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope,
    "proportional": _proportional,
}  # fmt: skip
