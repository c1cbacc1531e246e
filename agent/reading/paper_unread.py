"""Numbers in a strategy's own words that the strategy drawn does not show: told, so that a misreading is never silent."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from agent.reading.paper_clauses import Clause, Setting
from agent.reading.paper_degrees import stated
from agent.reading.paper_text import NUMBER, whole
from tools.spec.base import ToolError
from tools.spec.finding import Finding
from tools.spec.model import ModelSpec
from tools.spec.paper import PaperModel, PaperStrategy

UNREAD = "paper-unread"
"""Code of the finding."""
_THING = (
    r"layers?|blocks?|stages?|replicas?|copies|instances?|groups?|(?:routed |shared |redundant )?experts?|GPUs?|NPUs?|devices?|cards?|ranks?|"
    r"accelerators?|slices?|pieces?|chunks?|segments?|micro-?batch(?:es)?|virtual \w+|个?(?:层|级|段|卡|组|片|份|专家|副本|阶段)"
)
_COUNTED = re.compile(
    rf"(?<![A-Za-z\d.,/=_–-])(?P<n>{NUMBER})(?!\s+hidden layers)\s*(?:[-–]?\s?(?:way|fold)\b)?[- ]?(?:(?!and\b|or\b|on\b|in\b|of\b|per\b|tokens?\b|GB\b)[a-z]+[- ]){{0,2}}?(?P<w>{_THING})(?![A-Za-z])",
    re.I,
)
_OF_AN_AXIS = re.compile(
    r"(?<![A-Za-z])(?P<w>TP|PP|DP|EP|CP|SP|ETP|DCP|KVP|TPA|VPP)\s?[=:]?\s?(?P<n>\d{1,4})(?![\d.]*[A-Za-z\d])"
)
_MEMORY = re.compile(r"\s*(?:GB|GiB|MB|TB|tokens?)\b", re.I)


def with_unread(
    made: Sequence[PaperStrategy], clause: Clause, model: PaperModel, setting: Setting
) -> list[PaperStrategy]:
    """The strategies made of one clause; the first one carries a finding where a number of the clause is not accounted for."""
    shown = {n for s in made for n in _shown(s, model.spec, setting)} | _of_model(model)
    left = list(dict.fromkeys(words for n, words in _numbers(clause.words) if n not in shown))
    if not made or not left:
        return list(made)
    labels = ", ".join(s.strategy.label(moe=model.spec.moe is not None) for s in made)
    said = ", ".join(repr(w) for w in left[:4])
    text = f"{model.name}, {clause.role}: its words say {said}, and the strategy read ({labels}) shows nothing of it; check the reading"
    finding = Finding(
        code=UNREAD,
        severity="warning",
        cause="input",
        message=text,
        fix="state the degrees, such as 'TP 8 × PP 2'",
        values={"numbers": [n for n, _ in _numbers(clause.words) if n not in shown]},
    )
    first = made[0].model_copy(update={"findings": (*made[0].findings, finding)})
    return [first, *made[1:]]


def accounts_for(doubted: PaperStrategy, other: PaperStrategy, spec: ModelSpec) -> bool:
    """Whether another reading shows every number that the doubted one leaves unread."""
    numbers = {n for f in doubted.findings if f.code == UNREAD for n in f.values.get("numbers", ())}
    return bool(numbers) and numbers <= _shown(other, spec, Setting(None, None))


def _numbers(words: str) -> Iterator[tuple[int, str]]:
    text = stated(words)
    for pattern in (_COUNTED, _OF_AN_AXIS):
        for m in pattern.finditer(text):
            if _MEMORY.match(text, m.end("n")):
                continue
            try:
                yield whole(m["n"]), " ".join(m[0].split())
            except ToolError:
                continue


def _shown(p: PaperStrategy, spec: ModelSpec, setting: Setting) -> set[int]:
    """Every count that a strategy displays: degrees, devices, groups, layers, experts and heads of a device."""
    s = p.strategy
    out = {
        1,
        s.tp,
        s.pp,
        s.dp,
        s.ep,
        s.etp or 1,
        s.attn_dp or 1,
        s.cp,
        s.dcp,
        s.dk,
        s.edp,
        s.virtual,
        s.seq_slices,
        s.microbatches,
        s.batch,
    }
    out |= {
        s.num_devices,
        p.num_devices,
        s.group,
        s.replica,
        s.attention_group,
        s.expert_group,
        s.expert_devices,
        s.attn_pool,
        s.pool_above,
    }
    out |= {
        s.redundant_experts,
        s.pp * s.virtual,
        s.tp // s.dk,
        s.tp * s.cp,
        s.tp * (s.attn_dp or 1),
        s.tp // s.dcp,
        s.replica * s.pp,
    }
    out |= set(s.layers_per_stage or ()) | {spec.num_hidden_layers // s.pp, -(-spec.num_hidden_layers // s.pp)}
    out |= {spec.num_hidden_layers // (s.pp * s.virtual), spec.attention.num_heads // s.tp, (p.seq_len or 0)}
    if spec.moe:
        slots = spec.moe.num_experts + s.redundant_experts
        out |= {
            slots,
            slots // s.ep,
            -(-slots // s.ep),
            s.num_devices // s.ep,
            slots * s.etp if s.etp else slots,
            slots * s.edp,
        }
    per, have = setting.per_node, setting.num_devices
    if per:
        out |= {per, -(-s.num_devices // per), -(-p.num_devices // per), s.group // per, s.replica // per}
    return out | _partial_sums(s.layers_per_stage) | ({have} if have else set())


def _partial_sums(layers: tuple[int, ...] | None) -> set[int]:
    """Numbers of first and last layers: "blocks 4–6"."""
    return {x for i in range(len(layers or ()) + 1) for x in (sum((layers or ())[:i]), sum((layers or ())[:i]) + 1)}


def _of_model(m: PaperModel) -> set[int]:
    a, spec = m.spec.attention, m.spec
    out = {
        spec.num_hidden_layers,
        a.num_heads,
        a.num_kv_heads,
        a.head_dim,
        spec.hidden_size,
        m.batch_size,
        m.seq_len,
        m.output_len or 0,
    }
    out |= {*m.seq_lens, spec.moe_layers.count(False) if spec.moe_layers else 0}
    if spec.moe:
        out |= {spec.moe.num_experts, spec.moe.top_k, spec.moe.intermediate_size}
    return out


__all__ = ["UNREAD", "accounts_for", "with_unread"]
