"""Calibration: factors on the curves from a cluster's own rows."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from agent.calibration import calibrate, curves_with, load_calibration, predicted, read_measured, save
from agent.commands.calibrate import calibrate as command
from agent.errors import OK
from knowledge.curves import load_curves
from tools.cost.calibration import PRIOR, Calibration, Fitted, band_after, left_out, solve
from tools.spec.base import ToolError

CURVES = load_curves()
TRUE = {"compute": 1.1, "memory": 1.35, "link": 1.2, "step": 0.8}
HEADER = [
    "model",
    "GPU",
    "tp",
    "Input Len",
    "output_len",
    "max_concurrency",
    "Mean TTFT (ms)",
    "tpot_ms",
    "Output throughput (tok/s)",
]


def rows_of(cluster: Calibration | None, noise: float = 0.0, seed: int = 0) -> list[list[object]]:
    """What a cluster with known factors would measure."""
    from agent.calibration import Row

    rng = np.random.default_rng(seed)
    curves = CURVES if cluster is None else CURVES.calibrated(cluster)
    out: list[list[object]] = []
    for model in ("llama3.1-8b", "qwen3-32b"):
        for tp in (1, 2, 8):
            for users in (1, 16, 128):
                asked = {
                    "model": model,
                    "gpu": "h100",
                    "tp": str(tp),
                    "isl": "1000",
                    "osl": "300",
                    "concurrency_or_batch": str(users),
                }
                said = predicted(Row(1, asked, {}, "output"), curves)
                assert isinstance(said, dict)
                a, b, c = (
                    said[k] * math.exp(noise * rng.standard_normal()) for k in ("ttft_s", "tpot_s", "throughput")
                )
                out.append([model, "h100", tp, 1000, 300, users, a * 1e3, b * 1e3, c])
    return out


def write(path: Path, header: list[str], rows: list[list[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([header, *rows])
    return path


def cluster() -> Calibration:
    factors = {k: Fitted(factor=v) for k, v in TRUE.items()}
    return Calibration(devices=("h100_sxm_80gb",), **factors)  # type: ignore[arg-type]


def test_a_cluster_of_known_factors_is_found_again(tmp_path: Path) -> None:
    rows, skipped = read_measured(write(tmp_path / "m.csv", HEADER, rows_of(cluster(), noise=0.02)))
    fit = calibrate(rows, skipped)
    assert fit.helps and not skipped
    assert fit.calibration.memory.factor == pytest.approx(TRUE["memory"], rel=0.06)
    assert fit.calibration.step.factor == pytest.approx(TRUE["step"], rel=0.15)
    tpot = fit.calibration.bands["tpot_s"]
    assert tpot.error_after < 0.35 * tpot.error_before
    assert tpot.band < tpot.before


def test_a_cluster_like_the_curves_keeps_factors_near_one(tmp_path: Path) -> None:
    rows, _ = read_measured(write(tmp_path / "m.csv", HEADER, rows_of(None)))
    fit = calibrate(rows)
    assert all(abs(f - 1) < 0.01 for f in fit.calibration.factors.values())


def test_one_row_moves_factors_less_than_many(tmp_path: Path) -> None:
    rows, _ = read_measured(write(tmp_path / "m.csv", HEADER, rows_of(cluster())))
    one, many = calibrate(rows[1:2]).calibration, calibrate(rows).calibration
    assert abs(math.log(one.memory.factor)) <= abs(math.log(many.memory.factor)) + 1e-6
    assert one.link.informed < 0.2


def test_no_rows_leave_the_prior_and_an_outlier_pulls_no_harder_than_its_bound() -> None:
    at, sigma = np.zeros(1), np.full(9, 0.1)
    theta, covariance = solve(np.zeros((0, 1)), np.zeros(0), at, np.zeros(0))
    assert theta[0] == 0 and covariance[0, 0] == pytest.approx(PRIOR**2)
    clean = np.zeros(9)
    wild, mad = clean.copy(), clean.copy()
    wild[0], mad[0] = 1.0, 100.0
    ones = np.ones((9, 1))
    a, b = (solve(ones, r, at, sigma)[0][0] for r in (wild, mad))
    assert abs(a - b) < 1e-3 and abs(a) < 0.03


def test_left_out_errors_are_what_a_fit_without_the_row_leaves() -> None:
    rng = np.random.default_rng(1)
    jacobian, residuals, sigma = rng.normal(size=(12, 4)), rng.normal(size=12) * 0.2, np.full(12, 0.1)
    rows = np.arange(12) // 2
    got = left_out(jacobian, residuals, np.zeros(4), sigma, rows)
    keep = rows != 3
    theta, _ = solve(jacobian[keep], residuals[keep], np.zeros(4), sigma[keep])
    assert np.allclose(got[~keep], residuals[~keep] + jacobian[~keep] @ theta)


def test_a_band_moves_with_the_number_of_rows() -> None:
    few, many = (band_after(0.2, np.full(n, 0.05)) for n in (2, 200))
    assert 0.05 < many < few < 0.2
    assert band_after(0.2, np.zeros(0)) == 0.2


def test_a_calibrated_cluster_is_slower_and_says_so(tmp_path: Path) -> None:
    from agent.commands.common import deployment_from
    from tools.cost.estimate import estimate
    from tools.spec.strategy import Strategy

    made = Calibration(devices=("h100_sxm_80gb",), memory=Fitted(factor=1.5), rows=7)
    save(made, tmp_path / "c.yaml")
    curves = curves_with(tmp_path / "c.yaml")
    for device, same in (("h100", False), ("h200", True)):
        d = deployment_from({"model": "llama3.1-8b", "device": device, "isl": 1000, "osl": 200, "concurrency": 8}, 1)
        now, was = estimate(d, Strategy(batch=8), curves), estimate(d, Strategy(batch=8), CURVES)
        assert (now.tpot_s == was.tpot_s) is same
        assert ("calibrated on 7 rows" in now.predictions[0].provenance) is not same


# ------------------------------------------------------------------------------------------------------------ messy files

GOOD = ["llama3.1-8b", "h100", 1, 1000, 300, 16, 60.0, 9.0, 1500.0]


def test_units_are_taken_from_header_or_cell(tmp_path: Path) -> None:
    header = ["model", "gpu", "tp", "isl", "osl", "concurrency", "TTFT (s)", "TPOT"]
    rows, _ = read_measured(
        write(tmp_path / "m.csv", header, [["llama3.1-8b", "h100", 1, 1000, 300, 16, 0.06, "9 ms"]])
    )
    assert rows[0].measured == {"ttft_s": 0.06, "tpot_s": pytest.approx(0.009)}


def test_gaps_are_left_out_and_counted(tmp_path: Path) -> None:
    table = [GOOD, [], ["", *GOOD[1:]], [*GOOD[:6], "n/a", "-", ""], [*GOOD[:5], "", *GOOD[6:]], ["", ""]]
    rows, skipped = read_measured(write(tmp_path / "m.csv", HEADER, table))
    assert len(rows) == 1
    assert [s.line for s in skipped] == [4, 5, 6]
    assert "model empty" in skipped[0].why and "nothing measured" in skipped[1].why and "load" in skipped[2].why


def test_semicolons_tabs_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    for sep in ";\t":
        text = "\ufeff" + sep.join(map(str, HEADER)) + "\n" + sep.join(map(str, GOOD)) + "\n"
        (tmp_path / "m.csv").write_text(text, encoding="utf-8")
        assert read_measured(tmp_path / "m.csv")[0][0].measured["tpot_s"] == pytest.approx(0.009)


@pytest.mark.parametrize(
    ("header", "row", "words"),
    [
        (["model", "gpu", "isl", "osl", "tpot_ms"], ["a", "h100", 1, 1, 1], "columns missing: tp"),
        (HEADER[:6], GOOD[:6], "no measured column"),
        (["model", "gpu", "tp", "isl", "osl", "concurrency", "tpot"], [*GOOD[:6], 9.0], "names no unit"),
        (HEADER, [*GOOD[:7], "fast", 1500.0], "line 2: tpot = 'fast' is not a number"),
        (HEADER, [*GOOD[:7], "9 tokens", 1500.0], "no unit of time"),
        (HEADER, [*GOOD[:7], 0, 1500.0], "must be positive"),
        (HEADER, ["", ""], "no row measures anything"),
    ],
)
def test_a_table_that_cannot_be_used_says_which_line_and_column(
    header: list[str], row: list[object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ToolError, match=words):
        read_measured(write(tmp_path / "m.csv", header, [row]))


def test_a_column_in_another_unit_is_noticed(tmp_path: Path) -> None:
    rows, _ = read_measured(
        write(tmp_path / "m.csv", HEADER, [[*r[:7], float(str(r[7])) / 1e3, r[8]] for r in rows_of(None)])
    )
    with pytest.raises(ToolError, match="unit"):
        calibrate(rows)


def test_an_unknown_model_is_left_out_with_its_reason(tmp_path: Path) -> None:
    table = [*rows_of(None)[:3], ["no-such-model-99b", *GOOD[1:]]]
    rows, skipped = read_measured(write(tmp_path / "m.csv", HEADER, table))
    fit = calibrate(rows, skipped)
    assert fit.calibration.rows == 3 and "no-such-model" in fit.skipped[0].why


@pytest.mark.parametrize("text", ["", "a: [", "devices: 3", "[]", "devices: [h100]\nmemory: {factor: 400}"])
def test_a_file_that_is_no_calibration_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ToolError):
        load_calibration(tmp_path / "c.yaml")


def test_the_command_writes_a_file_that_search_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "mine.yaml"
    table = write(
        tmp_path / "m.csv", [h for h in HEADER if h != "GPU"], [[r[0], *r[2:]] for r in rows_of(cluster())[:6]]
    )
    assert command(table, out, {"gpu": "h100", "model": None, "engine": None}, True) == OK
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == 6 and said["devices"] == ["h100_sxm_80gb"]
    assert load_calibration(out).memory.factor == said["memory"]["factor"]
    assert command(table, out, {"gpu": "h100", "model": None, "engine": None}, False) == OK
    assert "left out of the fit" in capsys.readouterr().out
