"""Prompts: Jinja2 templates with front matter (`id`, `inputs`). A missing or unknown input is an error.

text = render("propose_strategy", language="en", ...)      prompt_digest("propose_strategy") -> sha256
"""

from __future__ import annotations

import hashlib
import importlib.resources
from functools import lru_cache
from typing import Any

import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

_ENV = SandboxedEnvironment(
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False
)


class PromptError(Exception):
    """A template and its caller disagree: our bug."""


@lru_cache
def _load(name: str) -> tuple[frozenset[str], str, str]:
    raw = (importlib.resources.files("prompts") / "templates" / f"{name}.md.j2").read_text(encoding="utf-8")
    if not raw.startswith("---\n"):
        raise PromptError(f"prompt {name}: no front matter")
    head, body = raw[4:].split("\n---\n", 1)
    meta = yaml.safe_load(head)
    if meta.get("id") != name:
        raise PromptError(f"prompt {name}: its front matter says id {meta.get('id')!r}")
    return frozenset(meta.get("inputs") or ()), body.lstrip("\n"), hashlib.sha256(raw.encode()).hexdigest()


def render(name: str, **inputs: Any) -> str:
    """The prompt `name` with `inputs`.

    Raises PromptError when an input is missing or the template declares no such input.
    """
    declared, body, _ = _load(name)
    if declared != inputs.keys():
        missing, unknown = sorted(declared - inputs.keys()), sorted(inputs.keys() - declared)
        raise PromptError(f"prompt {name}: missing inputs {missing}, unknown inputs {unknown}")
    return _ENV.from_string(body).render(**inputs)


def prompt_digest(name: str) -> str:
    return _load(name)[2]


def prompt_names() -> tuple[str, ...]:
    folder = importlib.resources.files("prompts") / "templates"
    return tuple(sorted(f.name[: -len(".md.j2")] for f in folder.iterdir() if f.name.endswith(".md.j2")))
