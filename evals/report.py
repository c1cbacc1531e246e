"""What an evaluation leaves: a terminal table, JSONL with one run per line, and one HTML page that needs no server.

The page compares the backends criterion by criterion and opens, for every run, its scores with evidence and its
transcript. Everything on it is text from files and models: it is escaped, and shown without scripts.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from agent.events import read_events
from agent.files import write_atomic
from evals.harness import BAR, BackendSummary, Mean, Result
from evals.score import CRITERIA

MAX_SHOWN = 4000
MAX_MESSAGES = 120


def table(summaries: Sequence[BackendSummary]) -> Any:
    """A rich table: a row per criterion, a column per backend."""
    from rich.table import Table

    out = Table(title="evaluation", title_justify="left")
    out.add_column("criterion")
    for s in summaries:
        out.add_column(s.backend, justify="right")
    for name in criteria_of(summaries):
        out.add_row(name, *(interval(s.criteria.get(name)) for s in summaries))
    out.add_section()
    for label, value in FOOT:
        out.add_row(label, *(value(s) for s in summaries))
    return out


def criteria_of(summaries: Iterable[BackendSummary]) -> list[str]:
    """Every criterion that any backend was scored on, in the order of the scorers."""
    named = {c for s in summaries for c in s.criteria}
    order = [*CRITERIA, *sorted(named - set(CRITERIA))]
    return [c for c in order if c in named]


def interval(m: Mean | None) -> str:
    """`0.93 [0.88, 0.97] n=61`: mean, 95 % interval, cases."""
    if m is None:
        return "–"
    return f"{m.mean:.3f} [{m.low:.2f}, {m.high:.2f}] n={m.cases}"


def money(s: BackendSummary) -> str:
    if s.cost is None:
        return "0" if not s.calls else "unknown"
    return f"{s.cost:.4f} {s.currency}"


FOOT: tuple[tuple[str, Any], ...] = (
    (f"runs without a score below {BAR}", lambda s: f"{s.passed} of {s.runs}"),
    ("LLM calls", lambda s: f"{s.calls}"),
    ("tokens in (cached) / out", lambda s: f"{s.prompt} ({s.cached_tokens}) / {s.completion}"),
    ("cost", money),
    ("seconds, all runs", lambda s: f"{s.seconds:.0f}"),
)


def write_jsonl(results: Sequence[Result], path: Path) -> None:
    lines = [json.dumps(r.model_dump(mode="json"), ensure_ascii=False) for r in results]
    write_atomic(path, ("\n".join(lines) + "\n").encode())


# ---------------------------------------------------------------------------------------------------------------- HTML


def write_html(
    results: Sequence[Result], summaries: Sequence[BackendSummary], worse: Sequence[str], path: Path, title: str
) -> None:
    body = [f"<h1>{_e(title)}</h1>", *_regressions(worse), _comparison(summaries), _kinds(summaries)]
    body += [_cases(results, summaries), "<h2>Runs</h2>", *(_run(r) for r in results)]
    page = PAGE.replace("@TITLE@", _e(title)).replace("@BODY@", "\n".join(body))
    write_atomic(path, page.encode())


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)


def _regressions(worse: Sequence[str]) -> list[str]:
    if not worse:
        return []
    items = "".join(f"<li>{_e(w)}</li>" for w in worse)
    return [f"<h2>Worse than the committed scores</h2><ul class=bad>{items}</ul>"]


def _comparison(summaries: Sequence[BackendSummary]) -> str:
    head = "".join(f"<th>{_e(s.backend)}</th>" for s in summaries)
    rows = []
    for name in criteria_of(summaries):
        best = max((s.criteria[name].mean for s in summaries if name in s.criteria), default=0.0)
        cells = "".join(_mean_cell(s.criteria.get(name), best, len(summaries)) for s in summaries)
        rows.append(f"<tr><td>{_e(name)}</td>{cells}</tr>")
    foot = "".join(
        f"<tr><td>{_e(label)}</td>{''.join(f'<td>{_e(value(s))}</td>' for s in summaries)}</tr>"
        for label, value in FOOT
    )
    note = "Mean over cases, 95 % bootstrap interval over cases and samples, number of cases."
    return (
        f"<h2>Backends</h2><p>{note}</p><table><tr><th>criterion</th>{head}</tr>{''.join(rows)}"
        f"<tbody class=foot>{foot}</tbody></table>"
    )


def _mean_cell(m: Mean | None, best: float, backends: int) -> str:
    if m is None:
        return "<td>–</td>"
    mark = " class=best" if backends > 1 and m.mean >= best else ""
    bar = f"<div class=bar><i style='width:{100 * m.mean:.1f}%'></i></div>"
    return f"<td{mark}>{_e(interval(m))}{bar}</td>"


def _kinds(summaries: Sequence[BackendSummary]) -> str:
    kinds = list(dict.fromkeys(k for s in summaries for k in s.kinds))
    head = "".join(f"<th>{_e(s.backend)}</th>" for s in summaries)
    rows = "".join(f"<tr><td>{_e(k)}</td>{''.join(_value_cell(s.kinds.get(k)) for s in summaries)}</tr>" for k in kinds)
    return f"<h2>Kinds of cases</h2><table><tr><th>kind</th>{head}</tr>{rows}</table>"


def _value_cell(value: float | None, link: str = "") -> str:
    if value is None:
        return "<td>–</td>"
    shade = "good" if value >= 0.999 else "fair" if value >= BAR else "poor"
    text = f"{value:.2f}"
    shown = f"<a href='#{link}'>{text}</a>" if link else text
    return f"<td class={shade}>{shown}</td>"


def _cases(results: Sequence[Result], summaries: Sequence[BackendSummary]) -> str:
    """A row per case, a column per backend with the lowest score; it leads to the run."""
    cases = list(dict.fromkeys(r.case for r in results))
    head = "".join(f"<th>{_e(s.backend)}</th>" for s in summaries)
    rows = []
    for case in cases:
        cells = ""
        for s in summaries:
            runs = [r for r in results if r.case == case and r.backend == s.backend]
            lowest = min(runs, key=lambda r: min((x.value for x in r.scores), default=1.0), default=None)
            value = min((x.value for x in lowest.scores), default=1.0) if lowest else None
            cells += _value_cell(value, anchor(lowest) if lowest else "")
        kind = next(r.kind for r in results if r.case == case)
        rows.append(f"<tr><td>{_e(case)}</td><td>{_e(kind)}</td>{cells}</tr>")
    return (
        f"<h2>Cases: lowest score of each</h2><table><tr><th>case</th><th>kind</th>{head}</tr>{''.join(rows)}</table>"
    )


def anchor(r: Result) -> str:
    return _e(f"r{r.key}")


def _run(r: Result) -> str:
    o = r.observation
    lowest = min((s.value for s in r.scores), default=1.0)
    plan = o.get("plan") or {}
    outcome = plan.get("headline") or o.get("error") or ("read" if o.get("conditions") else "nothing")
    scores = "".join(
        f"<tr><td>{_e(s.criterion)}</td>{_value_cell(s.value)}<td>{_e(s.reason)}{_evidence(s.evidence)}</td></tr>"
        for s in r.scores
    )
    return (
        f"<details id='{anchor(r)}'><summary><b>{_e(r.case)}</b> · {_e(r.backend)} · sample {r.sample} · lowest "
        f"{lowest:.2f} · exit {o['exit_code']} · {o.get('seconds', 0):.1f} s<br>{_e(outcome)}</summary>"
        f"<p>{_e(r.title)}</p><table><tr><th>criterion</th><th>score</th><th>why</th></tr>{scores}</table>"
        f"{_usage(o)}{_transcript(o)}</details>"
    )


def _evidence(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{_e(line)}</li>" for line in lines[:40])
    return f"<details><summary>evidence ({len(lines)})</summary><ul>{items}</ul></details>"


def _usage(o: dict[str, Any]) -> str:
    usage = o.get("usage") or {}
    if not usage.get("nodes"):
        return ""
    keys = ("calls", "prompt", "cached", "completion", "cost", "llm_seconds", "seconds")
    rows = "".join(
        f"<tr><td>{_e(n)}</td>{''.join(f'<td>{_e(_figure(u[k]))}</td>' for k in keys)}</tr>"
        for n, u in usage["nodes"].items()
    )
    return f"<table><tr><th>node</th>{''.join(f'<th>{k}</th>' for k in keys)}</tr>{rows}</table>"


def _figure(value: Any) -> str:
    return "unknown" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _transcript(o: dict[str, Any]) -> str:
    """The conversation with the backend, node by node, each message cut to a readable length."""
    path = Path(o.get("events") or "")
    if not path.is_file():
        return ""
    out: list[str] = []
    for e in read_events(path):
        if e.get("event") == "llm_call":
            new = [f"<dt>{_e(m['role'])}</dt><dd><pre>{_e(_text(m))}</pre></dd>" for m in e["messages"]]
            new.append(f"<dt>{_e(e['backend'])}</dt><dd class=reply><pre>{_e(_text(e['reply']))}</pre></dd>")
            out.append(f"<h4>{_e(e['node'])}, turn {e['turn']}</h4><dl>{''.join(new)}</dl>")
        elif e.get("event") in ("degraded", "fact_rejected"):
            out.append(f"<p class=bad>{_e(e['event'])}: {_e(e.get('why'))}</p>")
        if len(out) >= MAX_MESSAGES:
            out.append("<p>…</p>")
            break
    return f"<details><summary>transcript ({len(out)} replies and remarks)</summary>{''.join(out)}</details>"


def _text(message: dict[str, Any]) -> str:
    calls = "".join(
        f"→ {c['function']['name']}({c['function']['arguments']})\n" for c in message.get("tool_calls") or ()
    )
    text = f"{message.get('content') or ''}{calls}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} … ({len(text)} characters)"


PAGE = """<!doctype html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'">
<title>@TITLE@</title><style>
:root{color-scheme:light dark;--line:#8884;--good:#2a92;--fair:#da02;--poor:#e333}
body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:82rem;padding:0 1rem}
table{border-collapse:collapse;margin:.5rem 0}td,th{border:1px solid var(--line);padding:.2rem .5rem;text-align:left}
td{vertical-align:top;font-variant-numeric:tabular-nums}.good{background:var(--good)}.fair{background:var(--fair)}
.poor{background:var(--poor)}.best{font-weight:600}.bad{color:#c22}.foot td{border-top-style:dotted}
details{margin:.3rem 0;padding-left:.6rem;border-left:3px solid var(--line)}summary{cursor:pointer}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0}dd{margin:0 0 .5rem 1rem}.reply{background:#8881}
.bar{height:3px;background:var(--line)}.bar i{display:block;height:3px;background:#2a9}
</style></head><body>
@BODY@
</body></html>
"""
