"""Cassettes: the event log of a whole run with the secrets taken out, so that it may be shared and replayed.

    text = cassette(events)                meshwright record RUN_DIR --out FILE
    meshwright plan SAME_INPUTS --backend replay:FILE

Taken out: every value of an environment variable that a profile names as its key or whose name says that it is secret,
anything that looks like a key or a bearer token, the user's home and the run's own directory.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agent.llm.profiles import PROFILES

SECRET_NAME = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
SECRET_TEXT = (
    re.compile(r"\b(sk|pk|rk|gsk|xai|hf|ghp|gho|ghs|glpat|AKIA|AIza|eyJ)[-_A-Za-z0-9]{16,}(\.[-_A-Za-z0-9]+)*"),
    re.compile(r"(?i)(?<=bearer )[-._~+/A-Za-z0-9]{12,}=*"),
    re.compile(r"(?i)(?<=api[-_]key[\"':= ])\s*[\"']?[-._A-Za-z0-9]{12,}"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL),
    re.compile(r"(?<=://)[^/\s:@\"]+:[^/\s:@\"]+(?=@)"),
)
MIN_SECRET = 6
KEPT = ("run_started", "run_resumed", "llm_call", "degraded", "fact_rejected", "node_started", "node_finished")
"""Events that a replay or a reader needs; times are left out, so that recording twice gives the same file."""


def secrets(environment: Mapping[str, str]) -> list[str]:
    """Values of the environment that must not leave it, longest first."""
    named = {p.key_env for p in PROFILES if p.key_env}
    found = {
        value.strip() for name, value in environment.items()
        if (name in named or SECRET_NAME.search(name)) and len(value.strip()) >= MIN_SECRET
    }  # fmt: skip
    return sorted(found, key=len, reverse=True)


def scrubbed(text: str, known: Iterable[str], places: Iterable[str] = ()) -> str:
    """`text` without the `known` secrets, without whatever looks like one, and without local directories."""
    for secret in known:
        # As it stands, and as JSON writes it.
        for form in {secret, json.dumps(secret)[1:-1]}:
            text = text.replace(form, "[secret]")
    for pattern in SECRET_TEXT:
        text = pattern.sub("[secret]", text)
    for place in sorted({p for p in places if len(p) > 3}, key=len, reverse=True):
        text = text.replace(place, "[dir]")
    return text


def cassette(events: Iterable[Mapping[str, Any]], known: Iterable[str] = (), places: Iterable[str] = ()) -> str:
    """JSON lines of the events that count, scrubbed."""
    known, places = list(known), list(places)
    lines = []
    for e in events:
        if e.get("event") not in KEPT:
            continue
        kept = {k: v for k, v in e.items() if k not in ("time", "seconds")}
        lines.append(_clean(kept, known, places))
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _clean(value: Any, known: list[str], places: list[str]) -> Any:
    """Every text within a value scrubbed: texts, not the JSON around them, so that the result stays JSON."""
    if isinstance(value, str):
        return scrubbed(value, known, places)
    if isinstance(value, Mapping):
        return {_clean(str(k), known, places): _clean(v, known, places) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v, known, places) for v in value]
    return value


def local_places(run_dir: Path, cwd: str) -> list[str]:
    """Directories of this machine that an event may name."""
    return [str(run_dir.resolve()), cwd, str(Path.home()), os.environ.get("TMPDIR", "")]
