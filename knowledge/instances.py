"""Cloud instance types in running text: what device is in them and how many."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

import yaml


@cache
def instance_types() -> dict[str, tuple[str, int]]:
    """Lower-case name ("p5.48xlarge") → (device id, devices)."""
    table = yaml.safe_load((files("knowledge") / "instances.yaml").read_text(encoding="utf-8"))
    rows = [row for vendor in table.values() for row in vendor]
    return {name.lower(): (row["device"], row["count"]) for row in rows for name in row["names"]}


@cache
def _pattern() -> re.Pattern[str]:
    names = "|".join(re.escape(n) for n in sorted(instance_types(), key=len, reverse=True))
    return re.compile(rf"(?<![A-Za-z0-9.-])(?:ml\.|Standard_)?(?P<name>{names})(?![A-Za-z0-9-]|\.\d)", re.I)


def find_instances_in_text(text: str) -> list[tuple[int, int, str, int]]:
    """(start, end, device id, devices in one) of every instance type named, in order."""
    return [(m.start(), m.end(), *instance_types()[m["name"].lower()]) for m in _pattern().finditer(text)]
