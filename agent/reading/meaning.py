"""What a quantity of a statement means: candidates for facts."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from dataclasses import replace

from agent.reading import loose
from agent.reading.binding import Pair
from agent.reading.coerce import amount
from agent.reading.facts import Candidate
from agent.reading.lexicon import (
    MAXIMUM,
    MEAN,
    MINIMUM,
    PER_DEVICE,
    PER_USER,
    STATS,
    TERMS,
    compiled,
    search,
    stats_in,
)
from agent.reading.meaning_hardware import of_hardware
from agent.reading.scene import CLAUSE, OSL, Scene, region, tidy, words_after
from tools.units import Quantity

# ---------------------------------------------------------------- from a pair to candidates


def candidates_of(scene: Scene, p: Pair) -> list[Candidate]:
    converted = amount(p.quantity, p.spot.term)
    if converted is None:
        return []
    value, high, doubt = converted
    path = p.spot.term.path
    q = p.quantity
    base = scene.candidate(path, tidy(path, value), min(q.start, q.start), q.end, doubt=doubt, factor=q.factor)
    if path.startswith("requirements."):
        return _requirement(scene, p, base, high)
    if path.startswith("model.declared_") and scene.text[q.end :].lstrip()[:1] == "个":
        experts = any(o.spot.term.path == "model.num_experts" for o in scene.pairs)
        one = replace(base, path="model.num_experts_per_tok", value=int(q.value), doubt="")
        return [one] if experts and q.integral else []
    if path in ("workload.isl", "workload.osl", "workload.seq_len", "workload.max_context"):
        return _length(scene, p, base, high)
    if path.startswith("hardware."):
        return of_hardware(scene, p, base, high)
    if path == "workload.isl" and p.spot.term.needs and _is_the_answer(scene, p):
        p = replace(p, spot=replace(p.spot, term=OSL))
        return _length(scene, p, replace(base, path="workload.osl"), high)
    if path == "workload.peak_factor" and (rate := _peak_rate(scene, p)):
        return [replace(base, path="workload.request_rate", value=rate, tags=("peak",))]
    if path == "workload.concurrency" and _OF_A_WHOLE.search(scene.text[: q.start]):
        return []  # the 60 of "45 of the 60 dispatchers"
    if path == "workload.concurrency" and p.spot.end <= q.start and (more := _AND_MORE.match(scene.text, q.end)):
        high = max(value, float(more["n"]))
        base = replace(base, stated_as=scene.text[q.start : more.end("n")])
    if path == "workload.concurrency" and p.spot.term.side == "noun" and not _AT_ONCE.search(_own_clause(scene, q)):
        base = replace(base, tags=("headcount",))
    if path == "model.num_experts" and _CHOOSES.search(scene.masked[: q.start]):
        shared = re.match(r"\s*(?:are |is )?(?:always|shared|common)", scene.text[q.end :], re.I)
        return [replace(base, path=f"model.{'n_shared_experts' if shared else 'num_experts_per_tok'}")]
    if path == "model.num_hidden_layers" and _FIRST_OF_THEM.search(scene.masked[: q.start]):
        dense = re.search(r"稠密|dense", words_after(scene, q, 30), re.I)
        return [replace(base, path="model.first_k_dense_replace")] if dense else []
    if path == "model.declared_parameters" and (value < 1e6 or (p.spot.term.side == "post" and q.value < 1e6)):
        return []  # "two models" are no parameters
    if (
        path == "model.num_hidden_layers"
        and scene.text[p.spot.start : p.spot.end] in "Ll"
        and not _among_dims(scene, p)
    ):
        return []
    if high is not None and not path.startswith("ignore"):
        base = replace(base, value=tidy(path, high), doubt=f"{base.stated_as} is a range; planned for its upper end")
    return [base]


_OF_A_WHOLE = re.compile(r"\d\s+(?:out )?of (?:the |our |these |those |all )?$", re.I)
_AND_MORE = re.compile(r"\s*(?:,|and|/|、|和|及)\s*(?P<n>\d+)\s*(?:$|[(（,;])", re.I)  # "Concurrency: 96 and 192"


def _peak_rate(scene: Scene, p: Pair) -> float | None:
    """ "30 requests a second (burst 75)": no factor but the peak, in the unit of the rate before it."""
    rates = [o for o in scene.quantities if o.dimension == "requests/s" and o.end <= p.quantity.start]
    word = scene.text[p.spot.start : p.spot.end]
    if not rates or re.search(r"factor|multipl|ratio|系数|倍", word, re.I):
        return None
    figure = re.match(r"\d[\d,]*(?:\.\d+)?", rates[-1].text)
    one = rates[-1].value / float(figure.group().replace(",", "")) if figure else 1.0
    return float(f"{p.quantity.value * one:.10g}") if p.quantity.value * one > rates[-1].value else None


def _among_dims(scene: Scene, p: Pair) -> bool:
    """ "L=60, d_model=6144": a letter counts layers where other dims of a model stand beside it."""
    return any(o is not p and o.spot.term.path.startswith("model.") for o in scene.pairs)


_AT_ONCE = re.compile(
    r"同时|一起|\btogether\b|\blogged in\b|at once|at (?:a|any|one) time|at the same time|concurrent|simultaneous|in parallel|online|active",
    re.I,
)


def _own_clause(scene: Scene, q: Quantity) -> str:
    return CLAUSE.split(scene.text[: q.start])[-1] + q.text + CLAUSE.split(scene.text[q.end :])[0]


def _is_the_answer(scene: Scene, p: Pair) -> bool:
    """ "6000 token prompts, 800 token reports": the prompt is named, so the document behind it is what comes out."""
    lengths = [o for o in scene.pairs if o is not p and o.quantity.end <= p.quantity.start]
    return any(o.spot.term.path == "workload.isl" and not o.spot.term.needs for o in lengths) and not any(
        o.spot.term.path == "workload.osl" for o in scene.pairs
    )


_FIRST_OF_THEM = re.compile(
    r"(?:前|首|最初|最后|末|后|\bfirst|\bleading|\blast|\bfinal|\bother|\bremaining|其余)\s*$", re.I
)
_CHOOSES = re.compile(
    r"(?:激活|选择|路由到|选取?|activat\w+|select\w*|rout\w+ to|choos\w+|pick\w*|top|of (?:which|these|those))[\s\-]*(?:其中|的|the|only|about)?\s*$",
    re.I,
)


def _stat(scene: Scene, p: Pair) -> str:
    q = p.quantity
    siblings = [o for o in scene.pairs if o.spot is p.spot]
    first = siblings[0].quantity.start
    window = scene.text[max((o.end for o in scene.quantities if o.end <= first), default=0) : first]
    listed = [name for _, name in stats_in(window)]
    if len(siblings) > 1 and len(listed) == len(siblings):
        return listed[siblings.index(p)]
    start = max((o.end for o in scene.quantities if o.end <= q.start), default=0)
    earlier = [o for o in scene.pairs if o.quantity.end == start and o.spot.start >= start]
    if earlier and (behind_it := _end_of_own_stat(scene, earlier[-1])):
        start = behind_it  # "5 s to first token at the median, and 25 ms": said of the amount before
    before = stats_in(scene.text[start : q.start])
    if before and not (start and _ASIDE_BEGINS.fullmatch(scene.text[start : start + before[-1][0]])):
        between = scene.masked[start + before[-1][0] : q.start]
        others = [
            o
            for o in scene.pairs
            if o is not p
            and start + before[-1][0] <= o.spot.start < p.spot.start
            and "requirements" in o.spot.term.path
        ]
        if not others or len(between) < 12:
            return before[-1][1]
    after = re.match(
        r"\s*(?:以内|之内|以下|左右|之下|or (?:less|better|faster)|at most|max(?:imum)?)?\s*[,，]?\s*[(（@]?\s*(?:also |again |too,? )?(?:at |for |on |in |\()?(?:the |an? )?",
        scene.text[q.end :],
        re.I,
    )
    if _THE_SAME.match(scene.text, q.end) and (said := stats_in(scene.text[: q.start])):
        return said[-1][1]  # "60 ms a token, same percentile"
    if bracket := _SHARE_IN_BRACKETS.match(scene.text, q.end):
        return f"p{bracket[1]}"
    if behind := _stat_behind_term(scene, p):
        return behind
    joint = after.end() if after else 0
    follow = [(at - joint, name) for at, name in stats_in(scene.text[q.end : q.end + 30]) if at >= joint]
    if (
        follow
        and follow[0][0] <= 2
        and not _next_term_first(scene, q, q.end + (after.end() if after else 0) + follow[0][0])
    ):
        return follow[0][1]
    if p.spot.start < start:
        shared = stats_in(scene.text[: p.spot.start])
        if shared and not any(o.quantity.end <= p.spot.start for o in scene.pairs):
            return shared[-1][1]
    if own_end := _stat_of_the_clause(scene, q):
        return own_end
    if shared_stat := _SHARED_STAT.search(scene.text[q.end :]):
        return stats_in(shared_stat.group())[0][1]
    label = scene.text[: scene.label_end]
    own = stats_in(label)
    if len(own) == 1 and not any(compiled(t.words).search(label) for t in _LATENCIES):
        return own[0][1]  # "SLO p95: TTFT 1200ms; TPOT 60ms"
    if len(own) == 0 and (bracket := re.search(r"[(（]\s*(50|9[059])\s*%\s*[)）]", label)):
        return f"p{bracket[1]}"  # "first token (95 %)"
    if of_all := _of_all_requests(scene, q):
        return of_all
    if leading := _LEADING_STAT.match(scene.text, scene.label_end):
        return stats_in(leading.group())[0][1]
    if scene.statement.kind == "prose" and scene.statement.context:
        above = stats_in(scene.statement.context[-1])  # "SLO p95: TTFT 1200ms; TPOT 60ms"
        return above[-1][1] if above else "limit"
    if not scene.label_end or scene.statement.kind == "leaf":
        return "limit"
    context = stats_in(" ".join(scene.statement.context[-2:]))
    return context[-1][1] if context else "limit"


_THE_SAME = re.compile(
    r"[^.;。；\d]{0,24}?[,，(]\s*(?:at |for |in )?(?:the )?same (?:percentile|quantile)|[^.;。；\d]{0,12}?[，（]同分位",
    re.I,
)
_SHARE_IN_BRACKETS = re.compile(r"[^,.;，。；()（）\d]{0,16}[(（]\s*(50|9[059])\s*%\s*[)）]")  # "55 ms per token (95%)"
_STAT_JOINT = re.compile(
    r"(?:\s*[(（](?:we |this is |it is |as )?(?:measured?|counted|taken)\b)?\s*(?:(?:is|are) (?:ok|okay|fine|acceptable|enough|good)\b)?\s*[(（]?\s*(?:at|for|in|on)?\s*(?:the |an? |its )?\s*",
    re.I,
)


def _end_of_own_stat(scene: Scene, p: Pair) -> int:
    """Where the statistic ends that stands right behind the word of `p`, itself behind its amount; 0 where there is none."""
    if p.spot.start < p.quantity.end or not p.spot.term.path.startswith("requirements."):
        return 0
    joint = _STAT_JOINT.match(scene.text, p.spot.end)
    start = joint.end() if joint else p.spot.end
    found = stats_in(scene.text[start : start + 24])
    if not found or found[0][0] > 0:
        return 0
    end = re.match(r"[\w%\- ]*?\w(?=\s*(?:[,，.;；)）]|and\b|$))", scene.text[start:])
    return start + (end.end() if end else 3)


def _stat_behind_term(scene: Scene, p: Pair) -> str:
    """ "5 s to first token at the median"."""
    end = _end_of_own_stat(scene, p)
    found = stats_in(scene.text[p.spot.end : end]) if end else []
    return found[0][1] if found else ""


# "3s 以内（p90），吐字 …": the bracket right behind an amount belongs to it
_ASIDE_BEGINS = re.compile(r"\s*(?:以内|之内|以下|左右|or less)?\s*[(（@]\s*")
_ANY_STAT = "|".join(words for _, words in STATS)
# "TTFT <= 600 ms, TPOT <= 25 ms, both p99": said once behind the last of several bounds
_SHARED_STAT = re.compile(
    rf"(?:\b(?:both|all)(?: of them| limits)?|均|都|皆|按|以)(?: (?:at|as|are|in|the|measured)|为|按|取|是|以|指)*\s*\(?(?:{_ANY_STAT})(?![A-Za-z0-9])|(?:{_ANY_STAT})(?![A-Za-z0-9]) (?:for |on |in )?(?:both|all of them|each)\b",
    re.I,
)


_LATENCIES = tuple(
    t for t in TERMS if t.path in ("requirements.ttft_s", "requirements.tpot_s", "requirements.e2e_latency_s")
)
# "99% of requests: TTFT < 4 s and TPOT < 30 ms": said once, before all bounds
_LEADING_STAT = re.compile(
    rf"\s*(?:the |at |for |in )*(?:{_ANY_STAT})(?:\s*(?:of|的)?\s*(?:all |the |our )*(?:[a-z]+|请求|用户))?\s*(?:slo|target)?\s*(?:[:：]|\b(?:must|should|has to|have to|needs? to|shall|will|get|see)\b)",
    re.I,
)


def _stat_of_the_clause(scene: Scene, q: Quantity) -> str:
    """ "Three seconds is the limit for the 95th percentile, and …": the one statistic before the clause ends."""
    clause = re.split(r"[,，;；。()（）\n]|\.(?=\s|$)", scene.text[q.end :])[0]
    found = stats_in(clause)
    nearer = any(q.end <= o.start < q.end + len(clause) for o in scene.quantities)
    others = any(
        q.end < o.spot.start < q.end + len(clause) + 12 and o.quantity is not q and "requirements" in o.spot.term.path
        for o in scene.pairs
    )
    return found[0][1] if len(found) == 1 and not nearer and not others and found[0][1] not in ("mean", "max") else ""


_POPULATION = re.compile(r"%|per ?cent|\bout of\b|\bin (?:10|ten)\b|成", re.I)


def _of_all_requests(scene: Scene, q: Quantity) -> str:
    """ "For 90% of requests the first token in 3 s and each next one in 50 ms": a share of the requests, said once before
    the bounds, is that of all of them."""
    found = stats_in(scene.text[scene.label_end :])
    bounds = [o.quantity.start for o in scene.pairs if o.spot.term.path.startswith("requirements.")]
    if len(found) != 1 or not bounds or scene.label_end + found[0][0] > min(bounds):
        return ""
    if re.search(r"[;；]", scene.text[min(bounds) : q.start]):
        return ""
    words = scene.text[scene.label_end + found[0][0] : scene.label_end + found[0][0] + 12]
    return found[0][1] if _POPULATION.search(words) else ""


def _next_term_first(scene: Scene, q: Quantity, stat_at: int) -> bool:
    """ "TTFT 2s, P99 TPOT 50ms": the percentile after the comma belongs to what follows it."""
    following = [o for o in scene.pairs if o.spot.start >= stat_at and o.quantity.start > stat_at]
    return bool(re.match(r"\s*[,，;；/]", scene.text[q.end :])) and bool(following)


def _requirement(scene: Scene, p: Pair, base: Candidate, high: float | None) -> list[Candidate]:
    path, value, q = p.spot.term.path, base.value, p.quantity
    around = region(scene, q) + q.text + words_after(scene, q)
    doubt = base.doubt
    if p.spot.term.transform == "complement":
        return [replace(base, path="requirements.memory_reserve", value=float(f"{1 - value:.10g}"))]
    if path in ("requirements.memory_reserve", "requirements.balance_epsilon", "requirements.utilisation_target"):
        return [base]
    user = q.per == "user" or (q.dimension == "tokens/s" and search(PER_USER).search(around))
    if p.spot.term.transform == "inverse" or user:
        if q.dimension != "tokens/s" or not value:
            return [replace(base, path=f"requirements.tpot_s.{_stat(scene, p)}")] if not value else []
        return [replace(base, path=f"requirements.tpot_s.{_stat(scene, p)}", value=float(f"{1 / value:.10g}"))]
    if high is not None:
        loose = path.startswith("requirements.throughput")
        value, doubt = (
            (base.value if loose else high),
            f"{base.stated_as} is a range; gated at its {'lower' if loose else 'upper'} end",
        )
    if path in ("requirements.throughput_total", "requirements.throughput_per_device"):
        return _throughput(scene, p, replace(base, value=value, doubt=doubt), around)
    return [replace(base, path=f"{path}.{_stat(scene, p)}", value=value, doubt=doubt)]


def _throughput(scene: Scene, p: Pair, base: Candidate, around: str) -> list[Candidate]:
    label = scene.text[: scene.label_end]
    words = label + around + scene.masked[p.spot.start : p.spot.end] + p.quantity.text
    per_device = (
        p.spot.term.path.endswith("per_device")
        or p.quantity.per == "device"
        or bool(search(PER_DEVICE).search(label + around))
    )
    metric = "throughput_per_device" if per_device else "throughput_total"
    out = [replace(base, path=f"requirements.{metric}.{_stat(scene, p)}")]
    counts = loose.counted_tokens(words)
    if counts:
        out.append(replace(base, path=f"requirements.{metric}.counts", value=counts, doubt=""))
    return out


def _length(scene: Scene, p: Pair, base: Candidate, high: float | None) -> list[Candidate]:
    """Typical lengths, bounds of ranges, and the context window (whose K is 1024 for the usual sizes)."""
    path, q = p.spot.term.path, p.quantity
    # a bound belongs to its own clause, not to the one before
    near = (
        CLAUSE.split(region(scene, q))[-1]
        + " "
        + scene.masked[p.spot.start : p.spot.end]
        + " "
        + CLAUSE.split(words_after(scene, q, 22))[0]
    )
    label = scene.text[: scene.label_end]
    if bound := _listed_bound(scene, p, label):
        return [replace(base, path=path if bound == "mean" else f"{path}_{bound}")]
    lowest, highest = (bool(search(w).search(near + " " + label)) for w in (MINIMUM, MAXIMUM))
    kind = path.removeprefix("workload.")
    if path == "workload.max_context" and _OF_CONTEXT.match(scene.masked, q.end) and not highest:
        path, kind = "workload.isl", "isl"  # "650 tokens of context" are sent, not a window
        base = replace(base, path=path)
    if path == "workload.max_context":
        value = _window(q, high if high is not None else base.value)
        own_min = search(MINIMUM).search(near + label) and not search(r"max|最[长大]").search(near + label)
        return [replace(base, path="workload.min_context" if own_min else path, value=value)]
    said_before = CLAUSE.split(region(scene, q))[-1] + " " + label
    behind = _MEAN_BEHIND.match(scene.masked, q.end)
    mean = (search(MEAN).search(said_before) or behind) and not search(MAXIMUM).search(said_before)
    if high is not None and kind in ("isl", "osl") and mean:
        doubt = f"{base.stated_as} is a range of the mean; planned for its upper end"
        return [replace(base, value=tidy(path, high), doubt=doubt)]
    if high is not None:
        stem = "seq_len" if kind == "seq_len" else kind
        bounds = [
            replace(base, path=f"workload.{stem}_min"),
            replace(base, path=f"workload.{stem}_max", value=tidy(path, high)),
        ]
        even = kind in ("isl", "osl") and re.search(r"uniform|evenly|均匀", near + words_after(scene, q), re.I)
        middle = replace(base, value=round((base.value + high) / 2), origin="derived", doubt="")
        return [*bounds, middle] if even else bounds
    if kind == "seq_len":
        return [replace(base, path=f"workload.seq_len_{'min' if lowest and not highest else 'max'}")]
    own = CLAUSE.split(region(scene, q))[-1]
    if search(MAXIMUM).search(own) and not search(MEAN).search(own):
        return [replace(base, path=f"{path}_max")]
    if search(MAXIMUM).search(_shared_bound(scene, q)):
        return [replace(base, path=f"{path}_max")]
    if search(MEAN).search(near + " " + label):
        return [base]
    if lowest and not highest:
        return [replace(base, path=f"{path}_min")]
    return [replace(base, path=f"{path}_max")] if highest else [base]


_MEAN_BEHIND = re.compile(r"\s*(?:tokens?|toks?)?\s*(?:on average|average\b|avg\b|平均)(?!\W*\d)", re.I)
_OF_CONTEXT = re.compile(r"\s*(?:tokens?|toks?)\s+of\s+(?:\w+\s+)?context\b", re.I)
_JOINED_LENGTHS = re.compile(r"\s*(?:tokens?|toks?)?\s*(?:in|input|输入)?\s*(?:tokens?)?\s*(?:and|/|和|与|及)\s*", re.I)


def _shared_bound(scene: Scene, q: Quantity) -> str:
    """The words before the length that `q` is joined to: "the longest was 28,000 in and 2,000 out"."""
    before = [o for o in scene.quantities if o.end <= q.start and o.dimension == "count"]
    if not before or not _JOINED_LENGTHS.fullmatch(scene.masked[before[-1].end : q.start]):
        return ""
    return CLAUSE.split(scene.masked[: before[-1].start])[-1]


_BOUNDS = re.compile(
    r"(?P<mean>avg|average|mean|typical|平均|均值|典型)|(?P<max>max(?:imum)?|longest|最大|最长)|(?P<min>min(?:imum)?|shortest|最小|最短)",
    re.I,
)


def _listed_bound(scene: Scene, p: Pair, label: str) -> str:
    """ "Input tokens (avg / max): 1500 / 12000": the i-th amount is what the i-th word of the label says; else empty."""
    kinds = [m.lastgroup or "" for m in _BOUNDS.finditer(label)]
    own = [o for o in scene.pairs if o.spot.term.path == p.spot.term.path or o.spot.start == o.spot.end]
    amounts_here = sorted(
        {o.quantity.start for o in own} | {q.start for q in scene.quantities if q.dimension == "count"}
    )
    if len(kinds) < 2 or len(amounts_here) != len(kinds):
        return ""
    return kinds[amounts_here.index(p.quantity.start)]


def _window(q: Quantity, value: float) -> int:
    thousands = value / 1000
    if (
        re.search(r"[kK]", q.text)
        and thousands.is_integer()
        and thousands >= 1
        and int(thousands) & (int(thousands) - 1) == 0
    ):
        return int(thousands) * 1024
    if re.search(r"\dM|\d m", q.text) and value == 1e6:
        return 1024 * 1024
    return int(value)
