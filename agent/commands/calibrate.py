"""calibrate: curves and bands of this cluster, from its own measurements."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.calibration import Fit, read_measured, save
from agent.calibration import calibrate as fit
from agent.commands.common import print_json, ready_dir
from agent.errors import OK
from tools.cost.calibration import FACTORS
from tools.spec.base import ToolError

MEANING = {
    "compute": "kernels bound by math", "memory": "kernels bound by memory traffic", "link": "collectives and transfers",
    "step": "engine overhead per step and request",
}  # fmt: skip
SHOWN = 5


def calibrate(measured: Path, out: Path, defaults: Mapping[str, str | None], json_: bool) -> int:
    """Writes the calibration file. Raises ToolError for a table that cannot be used, or an `out` that cannot be written."""
    if out.is_dir():
        raise ToolError(f"--out {out}: is a directory; name a file")
    rows, skipped = read_measured(measured, {k: v for k, v in defaults.items() if v})
    found = fit(rows, skipped, source=measured.name)
    ready_dir(out.parent)
    save(found.calibration, out)
    if json_:
        print_json(document(found, out))
    else:
        _print(found, out)
    return OK


def document(found: Fit, out: Path) -> dict[str, Any]:
    return {
        "calibration": str(out), "helps": found.helps, **found.calibration.model_dump(mode="json"),
        "skipped": [s.model_dump(mode="json") for s in found.skipped],
    }  # fmt: skip


def _print(found: Fit, out: Path) -> None:
    c = found.calibration
    print(f"{c.rows} rows used, {len(found.skipped)} left out; {', '.join(c.devices)}")
    for s in found.skipped[:SHOWN]:
        print(f"  line {s.line}: {s.why}")
    if len(found.skipped) > SHOWN:
        print(f"  … {len(found.skipped) - SHOWN} more")
    for name in FACTORS:
        f = getattr(c, name)
        print(
            f"{name:8s} time × {f.factor:.3f} ± {f.standard_error:.2f}   {MEANING[name]}; {f.informed:.0%} from the rows"
        )
    for metric, b in c.bands.items():
        print(
            f"{metric:11s} median error of rows left out of the fit {b.error_before:.1%} → {b.error_after:.1%}, "
            f"band ±{b.before:.0%} → ±{b.band:.0%} ({b.rows} rows)"
        )
    if not found.helps:
        print(
            "no better on rows left out of the fit: factors stay at 1, bands are widened or narrowed to what was seen"
        )
    print(f"{out}: use it with --calibration")
