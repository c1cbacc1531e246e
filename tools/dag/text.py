"""Small wording shared by the builder, the layout and the views."""

from __future__ import annotations

import re
from collections.abc import Sequence


def slug(name: str) -> str:
    return re.sub(r"\W", "_", name)


def layers_text(layers: Sequence[int]) -> str:
    """`0-79`, `1,3,5`; empty for no layers."""
    if not layers:
        return ""
    if len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))
