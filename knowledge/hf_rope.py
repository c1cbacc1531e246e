"""RoPE scaling of a Hugging Face config → `RopeScaling`. Keys, defaults and formulas follow `modeling_rope_utils` of
transformers 5.23; older spellings (`type`, `su`, `rope_local_base_freq`) are read too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from knowledge.hf_values import POSITIONS, Config, Fields
from tools.spec.base import ToolError

PLAIN = frozenset({"default", "mrope", ""})
"""Types that stretch nothing. Multimodal RoPE (sections for time, height, width) is plain RoPE for text: all three positions
are the same."""
ALIASES = {"su": "longrope", "deepseek_yarn": "yarn"}
KINDS = ("linear", "dynamic", "yarn", "llama3", "longrope", "proportional")


def scaling_type(rope: Mapping[str, Any]) -> str:
    """Kind of scaling, "" for none; a type that is not known here as it is spelled."""
    stated = rope.get("rope_type", rope.get("type"))
    kind = ALIASES.get(str(stated), str(stated)) if stated is not None else ""
    if kind == "dynamic" and rope.get("alpha"):
        return ""  # a fixed base instead (`stretched_theta`)
    return "" if kind in PLAIN else kind


def stretched_theta(rope: Mapping[str, Any], theta: float, dim: int) -> float:
    """HunYuan's fixed NTK: theta · alpha^(dim / (dim - 2))."""
    alpha = rope.get("alpha")
    kind = rope.get("rope_type", rope.get("type"))
    return theta * float(alpha) ** (dim / (dim - 2)) if kind == "dynamic" and isinstance(alpha, (int, float)) else theta


def scaling_of(c: Config, rope: Mapping[str, Any], dim: int) -> Fields | None:
    """Keyword arguments of `RopeScaling`, None where nothing is stretched. `dim`: dims that rotate. Raises ToolError naming
    what is missing."""
    kind = scaling_type(rope)
    if kind not in KINDS:
        return None
    most = c.whole(*POSITIONS, maximum=10**9) or 4096
    r = Config(rope, c.name)
    original = r.whole("original_max_position_embeddings") or c.whole("original_max_position_embeddings") or most
    factor = r.number("factor", default=0.0) or max(most / original, 1.0)
    if factor <= 0:
        raise ToolError(f"{c.name}: rope_scaling: factor is {factor}; it must be above 0")
    out: Fields = {"kind": kind, "factor": factor, "original": most if kind == "dynamic" else original}
    if kind == "llama3":
        low, high = r.number("low_freq_factor", default=1.0), r.number("high_freq_factor", default=4.0)
        out |= {"low_freq_factor": low, "high_freq_factor": high}
    elif kind == "yarn":
        out |= {
            "beta_fast": r.number("beta_fast", default=0.0) or 32.0,
            "beta_slow": r.number("beta_slow", default=0.0) or 1.0,
        }
        out |= {"truncate": bool(rope.get("truncate", True)), "attention_factor": yarn_factor(rope, factor)}
    elif kind == "proportional":
        out["rotated"] = r.number("partial_rotary_factor", default=1.0)
    elif kind == "longrope":
        # Phi-3 states the stretched length and the original one, and their ratio counts where no factor is stated.
        out |= _longrope(c, rope, dim, out["original"], r.number("factor", default=0.0) or most / original)
    return out


def _longrope(c: Config, rope: Mapping[str, Any], dim: int, original: int, factor: float) -> Fields:
    r = Config(rope, c.name)
    out: Fields = {}
    for key in ("short_factor", "long_factor"):
        values = rope.get(key)
        if not isinstance(values, (list, tuple)) or len(values) != dim // 2:
            got = len(values) if isinstance(values, (list, tuple)) else "none"
            raise ToolError(f"{c.name}: rope_scaling: {key} needs a number for each of the {dim // 2} pairs, got {got}")
        if not all(isinstance(v, (int, float)) and v > 0 for v in values):
            raise ToolError(f"{c.name}: rope_scaling: {key} must hold positive numbers")
        out[key] = tuple(float(v) for v in values)
    stated = r.number("attention_factor", default=0.0)
    out["attention_factor"] = stated or (math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0)
    if rope.get("short_mscale") and rope.get("long_mscale"):  # Phi-3.5-MoE
        out["attention_factor"] = r.number("short_mscale", default=1.0)
        out["long_attention_factor"] = r.number("long_mscale", default=1.0)
    return out


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature (arXiv 2309.00071, eq. 22): 0.1 m ln s + 1."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def yarn_factor(rope: Mapping[str, Any], factor: float) -> float:
    """What YaRN multiplies cos and sin by."""
    if isinstance(rope.get("attention_factor"), (int, float)):
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return yarn_mscale(factor, rope["mscale"]) / yarn_mscale(factor, rope["mscale_all_dim"])
    return yarn_mscale(factor, 1.0)


def sliding_theta(c: Config, theta: float) -> float | None:
    """Base of the layers that slide, where these rotate by a base of their own and unstretched (Gemma-3, OLMo-3)."""
    own = c.mapping("rope_parameters").get("sliding_attention")
    if isinstance(own, Mapping) and isinstance(own.get("rope_theta"), (int, float)):
        return float(own["rope_theta"])
    local = c.number("rope_local_base_freq", "local_rope_theta", "swa_rope_theta", default=0.0)
    model_type = str(c.raw("model_type") or "")
    if not local and model_type.startswith("gemma3"):
        local = 10000.0  # configuration_gemma3.py: default of rope_local_base_freq
    return local or (theta if model_type == "olmo3" else None)
