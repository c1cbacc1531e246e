"""Candidates → Conditions: one fact per path, every disagreement a conflict, gaps listed.

Who wins: stated shape > name > declared parameter count; the stricter of two limits; the catalogue among link speeds;
otherwise the later statement.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace

from agent.reading import demand
from agent.reading.draft import LISTS, Draft, distinct, same, settle, take, where
from agent.reading.economics import settle_peak
from agent.reading.facts import Reading
from agent.reading.hardware_check import check_hardware, settle_links
from agent.reading.loose import UNSCOPED
from agent.reading.missing import find_missing
from agent.reading.model_check import check_model
from agent.reading.settle_hardware import (
    settle_counts,
    settle_device,
    settle_packages,
    settle_prices,
    settle_reserve,
)
from agent.reading.settle_model import (
    settle_dtypes,
    settle_engines,
    settle_flops_dtype,
    settle_model_name,
    settle_strategies,
)
from tools.spec.conditions import Conditions
from tools.units import fold_width


def reconcile(reading: Reading) -> Conditions:
    """The facts of `reading`, settled."""
    draft = Draft(reading)
    reading.candidates += demand.joined(reading.candidates)
    for candidate in reading.candidates:
        draft.by_path[candidate.path].append(candidate)
    _outranked(draft)
    _heads(draft)
    _mean_and_peak(draft)
    _unscoped_rates(draft)
    _ignored_paths(draft)
    device = settle_device(draft)
    settle_packages(draft, device)
    settle_counts(draft)
    settle_reserve(draft, device)
    settle_prices(draft, device)
    settle_links(draft, device)
    settle_dtypes(draft)
    settle_engines(draft)
    settle_model_name(draft)
    settle_strategies(draft)
    for path, candidates in draft.by_path.items():
        if path not in draft.facts and not path.startswith(("ignore.", "done.")):
            settle(draft, path, candidates)
    settle_flops_dtype(draft)
    check_hardware(draft, device)
    check_model(draft)
    _limits(draft)
    _impossible(draft)
    _doubts(draft)
    _account(draft)
    _lost_numbers(draft)
    missing = find_missing(draft, device)
    return Conditions(
        facts=tuple(draft.facts.values()),
        conflicts=tuple(draft.conflicts),
        missing=tuple(missing),
        ignored=tuple(reading.ignored),
        flags=tuple(reading.flags),
    )


_SUMS = ("hardware.device_count", "hardware.num_devices", "hardware.total_memory_bytes")


def _outranked(draft: Draft) -> None:
    """A correction replaces what it corrects, a plan a wish, a mail the one it quotes; the conflict is kept."""
    for path, candidates in draft.by_path.items():
        best = max(c.weight for c in candidates)
        lower = [c for c in candidates if c.weight < best]
        kept = [c for c in candidates if c.weight == best]
        others = [c for c in distinct(lower) if not any(same(c.value, k.value) for k in kept)]
        if not lower or path in LISTS or (not others and path not in _SUMS):
            continue
        draft.by_path[path] = kept
        if others:
            listed = ", ".join(f"{where(c)}: {c.stated_as or c.value}" for c in (*kept, *others))
            draft.conflict(
                path,
                [c.value for c in distinct([*kept, *others])],
                kept[0].value,
                f"{listed}; the corrected, planned or newer statement is used, not the quoted or wished one",
            )


def _heads(draft: Draft) -> None:
    """ "20 people use it, about 8 at the same time": who is there gives way to who is there at once."""
    users = draft.by_path.get("workload.concurrency", [])
    at_once = [c for c in users if "headcount" not in c.tags]
    if at_once and len(at_once) < len(users):
        draft.by_path["workload.concurrency"] = at_once
        heads = [c for c in users if "headcount" in c.tags and not any(same(c.value, k.value) for k in at_once)]
        for c in distinct(heads):
            draft.reading.ignore(
                f"{c.stated_as} ({where(c)})", f"how many there are; {at_once[0].stated_as} are served at once"
            )


def _mean_and_peak(draft: Draft) -> None:
    """The peak that is stated beside a mean becomes its factor; a factor in words wins over none."""
    path = "workload.request_rate"
    rates, factor = settle_peak([c for c in draft.by_path.get(path, []) if isinstance(c.value, int | float)])
    if factor is None:
        return
    draft.by_path[path] = rates
    if not draft.by_path.get(factor.path):
        draft.by_path[factor.path] = [factor]


READING_SPEED = 10.0
"""Tokens per second; a total below this for each user is no total: nobody reads that slowly (~250 words a minute is 5.5)."""


def _unscoped_rates(draft: Draft) -> None:
    """ "At least 40 tokens/s" of a service with few users is the speed that each of them sees."""
    path = "requirements.throughput_total.limit"
    needed = _demand(draft)
    users = max((c.value for c in draft.by_path.get("workload.concurrency", []) if isinstance(c.value, int)), default=0)
    for c in [c for c in draft.by_path.get(path, []) if UNSCOPED in c.doubt]:
        # "15 tokens per second" where the load itself needs more in total
        a_user = bool(c.value and c.value < needed) or bool(
            users and c.value and (c.value / users < READING_SPEED or users == 1)
        )
        if not a_user:
            continue
        draft.by_path[path].remove(c)
        tpot = float(f"{1 / c.value:.10g}")
        draft.by_path["requirements.tpot_s.limit"].append(replace(c, path="requirements.tpot_s.limit", value=tpot))
        if c.value < needed:
            draft.reading.flag(
                "ambiguous",
                f"{c.stated_as} does not say per what; the stated load alone is {needed:.4g} output tokens/s, so it is read as the "
                "speed of one user",
            )
        elif users > 1:
            draft.reading.flag(
                "ambiguous",
                f"{c.stated_as} does not say per what; over {users} users a total would be {c.value / users:.3g} tokens/s "
                "each, so it is read as the speed of one user",
            )
    if not draft.by_path.get(path):
        draft.by_path.pop(path, None)


def _demand(draft: Draft) -> float:
    """Output tokens per second that the stated rate and output length come to; 0 where one is not stated."""
    rate = max(
        (c.value for c in draft.by_path.get("workload.request_rate", []) if isinstance(c.value, int | float)), default=0
    )
    osl = max((c.value for c in draft.by_path.get("workload.osl", []) if isinstance(c.value, int | float)), default=0)
    return float(rate * osl)


def _ignored_paths(draft: Draft) -> None:
    whys = {
        "ignore.host_memory": "host memory does not bound the plan",
        "ignore.disk": "storage does not enter the plan",
        "ignore.price": "not the price of a device for an hour; costs are reported, not planned for",
        "ignore.power": "power is not planned for",
        "ignore.activation_memory": "activation memory is counted from the operator graph",
    }
    priced = {(c.file, c.line, c.quote) for c in draft.reading.candidates if "price" in c.tags}
    for path, why in whys.items():
        for c in take(draft, path):
            if path == "ignore.price" and (c.file, c.line, c.quote) in priced:
                continue
            draft.reading.ignore(c.leaf or c.key or c.stated_as, f"{why} ({c.stated_as})")


# ---------------------------------------------------------------- the general rule


# ---------------------------------------------------------------- last looks


def _limits(draft: Draft) -> None:
    batch, seqs = draft.value("engine.limits.max_batch_size"), draft.value("engine.limits.max_num_seqs")
    if batch is not None and seqs is not None and batch != seqs:
        low = min(batch, seqs)
        draft.conflict(
            "engine.limits.max_batch_size",
            (batch, seqs),
            low,
            f"max_batch_size {batch} against max_num_seqs {seqs}; both bound the same thing, the smaller holds",
            "engine.limits.max_num_seqs",
            "workload.batch_size",
            "workload.concurrency",
        )


_POSITIVE = ("hardware.", "workload.", "requirements.", "model.num_", "model.hidden_size", "engine.limits.")
_MAY_BE_ZERO = (
    "workload.prefix_hit_rate",
    "workload.draft_acceptance",
    "requirements.memory_reserve",
    "requirements.balance_epsilon",
    "model.n_shared_experts",
    "model.first_k_dense_replace",
)
_HIGH = {"ttft_s": 600.0, "tpot_s": 10.0, "e2e_latency_s": 86400.0}


def _impossible(draft: Draft) -> None:
    for path, fact in list(draft.facts.items()):
        if not isinstance(fact.value, int | float) or isinstance(fact.value, bool) or not path.startswith(_POSITIVE):
            continue
        if fact.value < 0 or (fact.value == 0 and path not in _MAY_BE_ZERO):
            draft.reading.flag(
                "impossible-value", f"{path} is {fact.value:g} ({fact.stated_as!r}); it must be greater than 0"
            )
        limit = next((v for k, v in _HIGH.items() if k in path), None)
        if limit is not None and fact.value > limit:
            draft.reading.flag("suspicious-magnitude", f"{path} is {fact.value:g} s ({fact.stated_as!r}); a unit slip?")
        whole = path.split(".")[-1] in ("num_nodes", "devices_per_node", "num_devices", "batch_size", "concurrency")
        if whole and not float(fact.value).is_integer():
            draft.reading.flag(
                "impossible-value", f"{path} is {fact.value:g} ({fact.stated_as!r}); it must be a whole number"
            )


def _account(draft: Draft) -> None:
    """A key whose value stands nowhere in the result repeats another one, and that is said."""
    shown = {(f.evidence.file, f.evidence.line, f.evidence.quote) for f in draft.facts.values() if f.evidence}
    told = " ".join(c.why for c in draft.conflicts)
    covered = {c.leaf for c in draft.reading.candidates if (c.file, c.line, c.quote) in shown}
    for c in draft.reading.candidates:
        if c.leaf and c.leaf not in covered and c.key.split(".")[-1] not in told:
            kept = draft.facts.get(c.path)
            repeats = kept is not None and same(kept.value, c.value)
            why = (
                f"repeats {c.path}, which is stated elsewhere"
                if repeats
                else f"{c.path} is settled by a more specific statement"
            )
            draft.reading.ignore(c.leaf, why)


_FIGURE = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


def _lost_numbers(draft: Draft) -> None:
    """A number beside facts that is none itself is said to be left out, so that none is lost in silence."""
    said: dict[tuple[str, int], str] = defaultdict(str)
    for c in draft.reading.candidates:
        if c.path in draft.facts or c.path.startswith(("hardware.device_count", "ignore.")):
            said[c.file, c.line] += f" {fold_width(c.stated_as)}"
    for fact in draft.facts.values():
        if fact.evidence is not None:
            said[fact.evidence.file, fact.evidence.line] += f" {fold_width(fact.stated_as)}"
    follow = [f.stated_as for f in draft.facts.values() if f.origin == "derived" or " × " in f.stated_as]
    told = [*follow, *(c.why for c in draft.conflicts), *(f.message for f in draft.reading.flags)]
    everywhere = fold_width(" ".join([*told, *(f"{i.section} {i.why}" for i in draft.reading.ignored)]))
    figures = set(_FIGURE.findall(everywhere))  # searched once: a long text has thousands of numbers
    for file, line, number, words in draft.reading.numbers:
        here, figure = said[file, line], _FIGURE.search(number)
        if figure is None:
            known = fold_width(number) in here or fold_width(number) in everywhere
        else:
            known = figure.group() in figures or figure.group() in _FIGURE.findall(here)
        if not known:
            draft.reading.ignore(f"{number} (line {line}: {words})", "a number that states nothing the plan depends on")


def _doubts(draft: Draft) -> None:
    """What a chosen value leaves open is said."""
    for c in draft.reading.candidates:
        fact = draft.facts.get(c.path)
        if c.doubt and fact is not None and same(fact.value, c.value):
            code = (
                "range"
                if "is a range" in c.doubt
                else "unit-missing"
                if "has no unit" in c.doubt
                else "unit-mismatch"
                if "bits" in c.doubt or "Gb" in c.doubt
                else "ambiguous"
            )
            draft.reading.flag(code, f"{c.path}: {c.doubt}")
