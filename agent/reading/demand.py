"""The load of a service said in other words than a rate: users a day, jobs in a night, "8/s", a speed that no total can mean."""

# ruff: noqa: E501  (a pattern reads better unbroken)

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.reading.facts import Candidate, Reading
from tools.units import find_quantities, seconds_per

if TYPE_CHECKING:
    from agent.reading.scene import Scene
    from tools.units import Quantity

DAY_S = 86400.0
RATE = "workload.request_rate"
_DAILY_USERS = re.compile(
    r"\bdau\b|daily (?:active )?users?|(?:active )?users? (?:per|a|each) day|日活(?:跃)?(?:用户)?(?:数|量)?|每[天日](?:活跃)?用户(?:数)?",
    re.I,
)
_ASKED_A_DAY = re.compile(
    r"(?:人均|每人|每(?:个)?用户|平均每人)\s*(?:每[天日]|日均)?|(?:每[天日])\s*(?:人均|每人)|(?:requests?|questions?|queries|calls?|chats?|messages?|prompts?) (?:per|/|for each) (?:user|person|head)|each (?:user )?(?:asks|sends|makes)|per user (?:per|a|and) day|per head",
    re.I,
)
_ITEMS = re.compile(
    r"\s*(?:条|个|份|篇|封)?\s*(?:(?:customer|user|product|support|用户|客户|商品|客服)\s*)?(?:requests?|queries|prompts?|documents?|docs\b|records?|rows|items?|samples?|tickets?|e?mails?|reviews?|articles?|transcripts?|files|jobs"
    r"|请求|文档|数据|样本|语料|工单|评论|文章|邮件|对话|条)",
    re.I,
)
_MANY_ITEMS = 1e4
_WINDOW_BEHIND = re.compile(r"\s*(?:之?内|以内|window|or less|at most|nightly|a night|per night|every night)", re.I)
_CLOCK = re.compile(
    r"(?P<h1>\d{1,2})[:：](?P<m1>\d\d)\s*(?:and|to|till|until|-|~|–|至|到)\s*(?:次日|第二天|the next day)?\s*(?P<h2>\d{1,2})[:：](?P<m2>\d\d)",
    re.I,
)
_PER_TIME = re.compile(
    r"\s*(?:/|\bper\b|\ban?\b|\beach\b|\bevery\b)\s*(?P<t>s|sec|second|min|minute|h|hr|hour|d|day)(?![A-Za-z0-9/])",
    re.I,
)
_EACH_TIME = re.compile(r"每(?P<t>秒钟?|分钟|小时|天|日)\s*(?:要|需要?|得|约|大约|处理|完成|跑)*\s*$")
_ARRIVALS = re.compile(r"处理|完成|\bprocess|\bhandle\b|\brequests?\b|\barrivals?\b|\bquer(?:y|ies)\b|\bcalls?\b|\btraffic\b|\bload\b|\bpoisson\b|请求|到达|流量|调用", re.I)  # fmt: skip


def read(scene: Scene, reading: Reading) -> None:
    """Adds rates that follow from the words; takes back what other rules made of their numbers."""
    daily = _daily(scene, reading) + _share_a_day(scene)
    found = [*daily, *_crowd(scene), *_volume_of_a_day(scene), *_bare_rate(scene), *_left_out(scene), *_job(scene)]
    taken = {(c.path, c.stated_as) for c in found}
    for c in found:
        reading.candidates[:] = [
            o
            for o in reading.candidates
            if not ((o.file, o.line) == (c.file, c.line) and _within(o.stated_as, c.stated_as) and o.path in _MISREAD)
            or (o.path, o.stated_as) in taken
        ]
    reading.candidates += found


def _within(words: str, whole: str) -> bool:
    """Whether `words` stand in `whole`, not as a part of a longer number."""
    return bool(words) and re.search(rf"(?<![\d.]){re.escape(words)}(?![\d.])", whole) is not None


_MISREAD = ("workload.concurrency", "workload.batch_size", RATE, "hardware.device_count", "hardware.num_nodes")


# ---------------------------------------------------------------- crowds and shares of them

SHARE_AT_ONCE = "done.active_share"
_AT_ONCE = re.compile(
    r"\bactive\b|\bonline\b|\bbusy\b|\bat once\b|\bat (?:any|one|the same|a|peak) ?(?:given |one )?(?:time|moment|instant)?|\bconcurrent|\bsimultaneous|\bin parallel\b|\bin use\b"
    r"|\brunning\b|\bat work\b|\btalking\b|\btyping\b|\brush\b|\bpeak\b|\bbusiest\b|最忙|高峰|忙时|\blogged in\b|\bwaiting\b|\bin ?flight\b|\btogether\b|同时|在线|活跃|并发|并行|一起",
    re.I,
)
_NOT_A_CROWD = re.compile(r"cach|\bcpu\b|\bwhen \d|prefix|hit|memory|vram|gpu|util|token|命中|缓存|显存|利用率", re.I)
_ON_A_DAY = re.compile(
    r"\b(?:on|in) (?:a|any|each|every) (?:given |typical |normal |working |average )?day\b|\b(?:per|a|each|every) day\b|\bdaily\b|每[天日]|当[天日]|日活",
    re.I,
)
_SENTENCE_CUT = re.compile(r"[,，;；。()（）\n]|\.(?=\s|$)")


def _around(scene: Scene, q: Quantity) -> str:
    """The words of the clause of `q`, behind it up to the next amount."""
    after = min((o.start for o in scene.quantities if o.start >= q.end), default=len(scene.text))
    return _SENTENCE_CUT.split(scene.text[: q.start])[-1] + q.text + _SENTENCE_CUT.split(scene.text[q.end : after])[0]


def _people_before(scene: Scene, q: Quantity) -> Quantity | None:
    """The number of people, or of whatever sends requests, that the share `q` is one of: the count before it."""
    taken = {id(p.quantity) for p in scene.pairs if not p.spot.term.path.startswith("workload.concurrency")}
    counts = [o for o in _counts(scene) if o.end <= q.start and o.value >= 10 and id(o) not in taken]
    people = [o for o in counts if not re.match(r"\s*(?:tokens?|toks?|字|词)", scene.text[o.end :], re.I)]
    return people[-1] if people else None


# "45 of the 60 dispatchers are logged in together"
_PART_OF_ALL = re.compile(
    r"(?<![\d.,])(?P<n>\d[\d,]*) (?:out )?of (?:the|our|these|those|all) \d[\d,]*\s+(?!gpu|card|node|server|token|layer|expert|head|device)[a-z]+",
    re.I,
)


def _crowd(scene: Scene) -> list[Candidate]:
    """ "9,000 adjusters, maybe 2% active at any moment": so many at once. A share alone waits for its crowd (`joined`)."""
    if (part := _PART_OF_ALL.search(scene.text, scene.shift)) and _AT_ONCE.search(
        scene.text[part.start() :].split(".")[0]
    ):
        return [scene.candidate("workload.concurrency", int(part["n"].replace(",", "")), part.start(), part.end())]
    for q in [
        q for q in scene.quantities if q.dimension == "fraction" and 0 < q.value <= 1 and q.start >= scene.label_end
    ]:
        words = _around(scene, q)
        if not _AT_ONCE.search(words) or _NOT_A_CROWD.search(words):
            continue
        people = _people_before(scene, q)
        if people is None:
            return [scene.candidate(SHARE_AT_ONCE, q.high or q.value, q.start, q.end)]
        count = max(1, round(people.value * (q.high or q.value)))
        return [scene.candidate("workload.concurrency", count, people.start, q.end, origin="derived")]
    return []


def _share_a_day(scene: Scene) -> list[Candidate]:
    """ "3 million registered, of whom 4% open it on a given day and ask 9 things each"."""
    out = []
    for q in [q for q in scene.quantities if q.dimension == "fraction" and 0 < q.value <= 1]:
        people = _people_before(scene, q)
        if people is not None and _ON_A_DAY.search(_around(scene, q)):
            out.append(scene.candidate("done.daily_users", people.value * q.value, people.start, q.end))
    for q in _counts(scene):
        if _ASKS_BEFORE.search(scene.text[: q.start]) and _EACH_BEHIND.match(scene.text, q.end):
            out.append(scene.candidate("done.requests_per_user_day", q.high or q.value, q.start, q.end))
    return out


_ASKS_BEFORE = re.compile(
    r"\b(?:asks?|asking|makes?|sends?|issues?|submits?|opens?)\s+(?:(?:about|around|roughly|some|on average|~)\s*)*$",
    re.I,
)
_EACH_BEHIND = re.compile(
    r"\s*(?:[a-z]+\s+){0,3}?(?:each|apiece|a day|per day|daily|every day)\b(?! (?:token|other))", re.I
)

# ---------------------------------------------------------------- the volume of a day

VOLUME = "done.daily_volume"
_DAY_BEFORE = re.compile(r"(?:日均|每[天日]|全天|一天|单日|\bdaily\b)[^，,。；;\d]{0,10}$", re.I)
_DAY_BEHIND = re.compile(
    r"\s*(?:[a-z]+\s+){0,3}?(?:per|a|each|every|/) ?(?:(?:working|business|calendar|week|office)[ -]?)?day\b|\s*[次条个笔通]?\s*(?:请求|调用|提问)?\s*(?:/|每)\s*[天日]",
    re.I,
)
_DAYS = {"week": 7, "month": 30, "周": 7, "月": 30, "星期": 7}
_LONGER_BEHIND = re.compile(
    r"\s*(?:(?!tok)[a-z]+\s+){1,3}?(?:per|a|each|every|/) ?(?P<p>week|month)\b|\s*[次条个笔通]?\s*(?:请求|调用|提问|工单)?\s*(?:/|每)\s*(?P<q>周|月|星期)",
    re.I,
)
_TIMES = re.compile(
    r"\s*(?:[次条个笔通]|requests?\b|calls?\b|queries\b|questions?\b|chats?\b|请求|调用|提问|对话|会话)", re.I
)


def _volume_of_a_day(scene: Scene) -> list[Candidate]:
    """ "日均请求 120 万次，集中在 8 小时": what a day brings, and the hours it comes in."""
    volume = next((v for q in scene.quantities if (v := _in_a_day(scene, q))), None)
    hours = [
        q for q in scene.quantities if q.dimension == "s" and 1800 <= q.value <= DAY_S and q.start >= scene.label_end
    ]
    clock = _CLOCK.search(scene.text)
    if volume is None:
        return []
    (q, value), out = volume, []
    if len(hours) == 1 or clock:
        seconds = hours[0].value if len(hours) == 1 else _between(clock)  # type: ignore[arg-type]
        place = (hours[0].start, hours[0].end) if len(hours) == 1 else clock.span()  # type: ignore[union-attr]
        out.append(scene.candidate("done.busy_seconds", seconds, *place))
    elif q.dimension == "requests/s":
        return []  # read as a rate already
    return [scene.candidate(VOLUME, value, q.start, q.end), *out]


def _in_a_day(scene: Scene, q: Quantity) -> tuple[Quantity, float] | None:
    if q.start < scene.label_end and scene.label_end:
        return None
    if q.dimension == "requests/s" and re.search(r"day|天|日", q.text, re.I):
        return q, q.value * DAY_S
    if q.dimension != "count" or q.value < 100:
        return None
    if period := _LONGER_BEHIND.match(scene.text, q.end):
        return q, q.value / _DAYS[(period["p"] or period["q"]).lower()]
    day = _DAY_BEFORE.search(scene.text[: q.start]) or _CLOCK.search(scene.text)
    before = day and _TIMES.match(scene.text, q.end)
    behind = _DAY_BEHIND.match(scene.text, q.end) and not re.search(r"tok", scene.text[q.end : q.end + 12], re.I)
    people = _ON_A_DAY.search(scene.text) and re.match(r"\s*(?:人|users?|people)", scene.text[q.end :], re.I)
    return (q, q.value) if (before or behind) and not people else None


def _bare_rate(scene: Scene) -> list[Candidate]:
    """ "Requests: 8/s", "Poisson arrivals at 2/s", "请求速率: 每分钟 600 个"."""
    if not _ARRIVALS.search(scene.text) or any(
        p.spot.term.path == RATE and p.quantity.dimension != "count" for p in scene.pairs
    ):
        return []
    for q in _counts(scene):
        behind, before = _PER_TIME.match(scene.text, q.end), _EACH_TIME.search(scene.text[: q.start])
        unit = (behind or before or {"t": ""})["t"]
        if unit and not re.search(r"tok", scene.text[max(0, q.start - 16) : q.end + 12], re.I):
            start, end = (before.start() if before else q.start), (behind.end() if behind else q.end)
            return [scene.candidate(RATE, float(f"{q.value / seconds_per(unit):.10g}"), start, end)]
    return []


_ITS_KIND = re.compile(
    r"\b(?:average|mean|avg|usually|typically|normally|peak\w*|burst\w*|at most|off-?peak)\b|平均|平时|高峰|峰值|\b(?:in|during|at) the (?:[a-z]+ )?(?:hours?|rush|evening|morning|night)\b",
    re.I,
)


def _left_out(scene: Scene) -> list[Candidate]:
    """ "Peak 3 requests per second, on average about one", "8 req/s and 20 in the lunch hour": the unit is that of before."""
    rates = [q for q in scene.quantities if q.dimension == "requests/s"]
    if len(rates) != 1:
        return []
    taken = {id(p.quantity) for p in scene.pairs}
    for q in _counts(scene):
        words = (
            _SENTENCE_CUT.split(scene.text[rates[0].end : q.start])[-1] + _SENTENCE_CUT.split(scene.text[q.end :])[0]
        )
        nearby = 0 < q.start - rates[0].end < 48 and re.match(
            r"\s*(?:[,.;，。；)）]|$|in\b|at\b|during\b|on\b)", scene.text[q.end :]
        )
        if nearby and id(q) not in taken and _ITS_KIND.search(words):
            one = rates[0].value / _number(rates[0])
            return [scene.candidate(RATE, float(f"{q.value * one:.10g}"), q.start, q.end)]
    return []


def _number(q: Quantity) -> float:
    """The 3 of "3 requests per second"."""
    found = find_quantities(q.text.removesuffix(q.unit)) if q.unit else []
    return found[0].value if found and found[0].value else q.value or 1.0


def _counts(scene: Scene) -> list[Quantity]:
    return [q for q in scene.quantities if q.dimension == "count" and q.value > 0 and q.start >= scene.label_end]


def _daily(scene: Scene, reading: Reading) -> list[Candidate]:
    """Parts of "50 万 daily users × 12 questions a day"; `joined` multiplies them."""
    out = []
    users = _nearest(scene, _DAILY_USERS)
    asked = _nearest(scene, _ASKED_A_DAY)
    if users is not None:
        out.append(scene.candidate("done.daily_users", users.value, users.start, users.end))
    if asked is not None and asked is not users:
        out.append(scene.candidate("done.requests_per_user_day", asked.value, asked.start, asked.end))
    return out


def _job(scene: Scene) -> list[Candidate]:
    """Parts of "6 million prompts between 22:00 and 06:00": how many there are, and the time they have."""
    out = []
    for q in _counts(scene):
        things = _ITEMS.match(scene.text, q.end) or (_JOB.search(scene.text) and _PLURAL.match(scene.text, q.end))
        if q.value >= _MANY_ITEMS and q.high is None and things:
            out.append(scene.candidate("done.job_items", q.value, q.start, q.end))
    for q in [q for q in scene.quantities if q.dimension == "s" and q.value >= 1800 and q.start >= scene.label_end]:
        if _WINDOW_BEHIND.match(scene.text, q.end) or re.search(
            r"\b(?:in|within|inside)\s+(?:the\s+|an?\s+)?$", scene.text[: q.start], re.I
        ):
            out.append(scene.candidate("done.job_seconds", q.value, q.start, q.end))
    for m in _CLOCK.finditer(scene.text):
        out.append(scene.candidate("done.job_seconds", _between(m), m.start(), m.end()))
    return out


def _between(clock: re.Match[str]) -> float:
    minutes = (int(clock["h2"]) - int(clock["h1"])) * 60 + int(clock["m2"]) - int(clock["m1"])
    return 60.0 * (minutes % 1440 or 1440)


_JOB = re.compile(
    r"\b(?:job|batch|backlog|overnight|nightly|offline|to (?:translate|summari[sz]e|classify|process|label|tag|score|embed|extract|rewrite|convert))\b|离线|批处理|跑批|夜间",
    re.I,
)
_PLURAL = re.compile(
    r"\s*(?:[a-z][a-z-]*\s+){0,2}?(?!tokens|parameters|params|users|people|seconds|words)[a-z-]{3,}s\b", re.I
)


def _nearest(scene: Scene, words: re.Pattern[str]) -> Quantity | None:
    """The amount nearest to `words`, behind them rather than before."""
    best: tuple[float, Quantity] | None = None
    for m in words.finditer(scene.text):
        for q in [q for q in scene.quantities if q.value > 0 and q.dimension in ("count", "requests/s")]:
            overlap = q.start < m.end() and m.start() < q.end
            gap = 0 if overlap else q.start - m.end() if q.start >= m.end() else 1.5 * (m.start() - q.end) + 2
            clause = scene.text[min(m.end(), q.end) : max(m.start(), q.start)]
            if 0 <= gap <= 24 and not re.search(r"[，,;；。]", clause) and (best is None or gap < best[0]):
                best = (gap, q)
    if best is None:
        return None
    q = best[1]
    # "12 requests per day" was read as a rate already; here it is a number of times
    return q if q.dimension == "count" else replace(q, value=q.value * DAY_S)


def joined(candidates: list[Candidate]) -> list[Candidate]:
    """What follows from parts that stand in several sentences: the rate of daily users, the pace of a job with a deadline."""
    return [
        *_rate_of_users(candidates),
        *_rate_of_volume(candidates),
        *_pace_of_job(candidates),
        *_share_of_heads(candidates),
    ]


def _rate_of_volume(candidates: list[Candidate]) -> list[Candidate]:
    """The mean rate over the hours that a day's requests come in; over the whole day where none are said."""
    volumes = [c for c in candidates if c.path == VOLUME]
    hours = [c for c in candidates if c.path == "done.busy_seconds"]
    if not volumes:
        return []
    seconds, how = (hours[-1].value, f" in {hours[-1].stated_as}") if hours else (DAY_S, " a day")
    value = float(f"{volumes[-1].value / seconds:.10g}")
    return [replace(volumes[-1], path=RATE, value=value, stated_as=volumes[-1].stated_as + how, origin="derived")]


def _share_of_heads(candidates: list[Candidate]) -> list[Candidate]:
    """A share at once, stated apart from the crowd that it is a share of."""
    shares = [c for c in candidates if c.path == SHARE_AT_ONCE and isinstance(c.value, int | float)]
    heads = [c for c in candidates if c.path == "workload.concurrency" and "headcount" in c.tags]
    if len(shares) != 1 or len({c.value for c in heads}) != 1:
        return []
    count = max(1, round(heads[0].value * shares[0].value))
    how = f"{shares[0].stated_as} of {heads[0].stated_as}"
    return [replace(shares[0], path="workload.concurrency", value=count, stated_as=how, origin="derived", tags=())]


def _pace_of_job(candidates: list[Candidate]) -> list[Candidate]:
    """So many items in so much time: a lower bound on requests per second, where no rate is stated."""
    items = [c for c in candidates if c.path == "done.job_items"]
    seconds = [c for c in candidates if c.path == "done.job_seconds"]
    if len(items) != 1 or len(seconds) != 1 or any(c.path in (RATE, "workload.concurrency") for c in candidates):
        return []
    value = float(f"{items[0].value / seconds[0].value:.10g}")
    how = f"{items[0].stated_as} in {seconds[0].stated_as}"
    return [replace(items[0], path="requirements.request_rate.limit", value=value, stated_as=how, origin="derived")]


def _rate_of_users(candidates: list[Candidate]) -> list[Candidate]:
    """Requests per second of the daily users and of what each of them asks in a day, as one derived rate."""
    users = [c for c in candidates if c.path == "done.daily_users"]
    asked = [c for c in candidates if c.path == "done.requests_per_user_day"]
    if not users or not asked:
        return []
    value = float(f"{users[-1].value * asked[-1].value / DAY_S:.10g}")
    how = f"{users[-1].stated_as} × {asked[-1].stated_as} per day"
    return [replace(users[-1], path=RATE, value=value, stated_as=how, origin="derived")]


__all__ = ["joined", "read"]
