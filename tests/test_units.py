"""Quantities: what people write, in SI base units."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.spec.base import ToolError
from tools.units import (
    chinese_number,
    find_quantities,
    fold_width,
    format_quantity,
    in_dimension,
    is_absence,
    is_unknown,
    parse_quantity,
)

READINGS = [
    ("80 GB", "bytes", 80e9),
    ("80GiB", "bytes", 80 * 2**30),
    ("24G", "bytes", 24e9),
    ("256 gigs", "bytes", 256e9),
    ("900GB/s", "bytes/s", 9e11),
    ("400Gb/s", "bytes/s", 5e10),
    ("640 Gbps", "bytes/s", 8e10),
    ("1.8TBps", "bytes/s", 1.8e12),
    ("3.35 TB/s", "bytes/s", 3.35e12),
    ("400TFlops", "flop/s", 4e14),
    ("2 PFLOPS", "flop/s", 2e15),
    ("100 tokens/ms", "tokens/s", 1e5),
    ("100tokens/ms", "tokens/s", 1e5),
    ("4000 tok/s", "tokens/s", 4000),
    ("20 tokens per second", "tokens/s", 20),
    ("每毫秒 100 个 token", "tokens/s", 1e5),
    ("8 QPS", "requests/s", 8),
    ("每秒 8 个请求", "requests/s", 8),
    ("12 requests per minute", "requests/s", 0.2),
    ("864000 requests per day", "requests/s", 10),
    ("30s", "s", 30),
    ("500ms", "s", 0.5),
    ("1.5 秒", "s", 1.5),
    ("60 毫秒", "s", 0.06),
    ("三秒", "s", 3),
    ("half a second", "s", 0.5),
    ("under a second", "s", 1),
    ("两百路", "count", 200),
    ("两台", "count", 2),
    ("十六张", "count", 16),
    ("6.7 万亿", "count", 6.7e12),
    ("6710亿", "count", 6.71e11),
    ("10B", "count", 1e10),
    ("70b", "count", 7e10),
    ("1,024 tokens", "count", 1024),
    ("60%", "fraction", 0.6),
    ("百分之六十", "fraction", 0.6),
    ("$2.5/hour", "money/h", 2.5),
    ("８０ＧＢ", "bytes", 80e9),
]


@pytest.mark.parametrize(("text", "dimension", "value"), READINGS)
def test_an_amount_is_read_in_si_base_units(text, dimension, value):
    quantity = parse_quantity(text)
    assert quantity.dimension == dimension
    assert math.isclose(quantity.value, value, rel_tol=1e-9)
    assert text[quantity.start : quantity.end] == quantity.text


@pytest.mark.parametrize(
    "text",
    [
        "[128, 10240]",
        "between 128 and 10240",
        "128~10240",
        "128-10240",
        "128 到 10240",
        "128 to 10240",
        "介于 128 和 10240",
    ],
)
def test_a_range_is_one_quantity(text):
    (quantity,) = find_quantities(text)
    assert (quantity.value, quantity.high) == (128, 10240)


def test_one_to_four_k_means_thousands_at_both_ends_but_128_to_10k_does_not():
    assert [(q.value, q.high) for q in find_quantities("1-4k")] == [(1000, 4000)]
    assert [(q.value, q.high) for q in find_quantities("128-10k")] == [(128, 10000)]


def test_eight_nics_are_a_factor_not_a_product():
    (quantity,) = find_quantities("8×400Gb/s")
    assert (quantity.factor, quantity.value) == (8, 5e10)


def test_two_amounts_side_by_side_are_no_range():
    assert [q.value for q in find_quantities("input 3500, output 1000")] == [3500, 1000]


@pytest.mark.parametrize(
    ("text", "per"),
    [
        ("25 tok/s per user", "user"),
        ("3500 tok/s/GPU", "device"),
        ("400Gb/s per node", "node"),
        ("50 tokens/s/用户", "user"),
    ],
)
def test_what_a_rate_is_for_is_kept(text, per):
    assert parse_quantity(text).per == per


def test_lower_case_gbps_is_bits_and_doubted():
    quantity = parse_quantity("400gbps")
    assert quantity.value == 5e10 and "bytes" in quantity.doubt
    assert not parse_quantity("400Gbps").doubt


@pytest.mark.parametrize("text", ["统一的", "一般情况", "万一失败", "Qwen2.5", "FP8", "H100", "v0.9.1x"])
def test_words_and_names_hold_no_amounts(text):
    assert find_quantities(text) == []


def test_a_negative_amount_keeps_its_sign_and_a_hyphen_is_none():
    assert parse_quantity("-5 s").value == -5
    assert [q.value for q in find_quantities("A100-SXM4-80GB") if q.dimension == "bytes"] in ([], [80e9])


@pytest.mark.parametrize("text", ["None", "无", "不限", "n/a", "N/A", "no limit", "没有要求", " none. "])
def test_absence_is_recognised(text):
    assert is_absence(text) and not is_unknown(text)


@pytest.mark.parametrize("text", ["TBD", "待定", "unknown", "?"])
def test_unknown_is_not_absence(text):
    assert is_unknown(text) and not is_absence(text)


def test_the_wrong_dimension_is_refused_with_both_names():
    with pytest.raises(ToolError, match=r"is in s, expected bytes"):
        parse_quantity("30 s", "bytes")
    with pytest.raises(ToolError, match="found 0"):
        parse_quantity("soon")


def test_a_bare_number_is_never_silently_given_a_unit():
    assert in_dimension(parse_quantity("80"), "bytes") is None
    assert in_dimension(parse_quantity("80"), "s") is None
    assert in_dimension(parse_quantity("0.6"), "fraction") == 0.6


def _numeral(n: int) -> str:
    """An independent writer of Chinese numerals, for the round trip."""
    digits = "零一二三四五六七八九"
    if n == 0:
        return "零"
    out, pending = "", False
    for scale, name in ((10**8, "亿"), (10**4, "万"), (1, "")):
        group, n = divmod(n, scale)
        if group == 0:
            pending = bool(out)
            continue
        part, zero = "", pending or bool(out and group < 1000)
        for unit, sign in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
            digit, group = divmod(group, unit)
            if digit:
                part += ("零" if zero else "") + digits[digit] + sign
                zero = False
            elif part:
                zero = True
        out, pending = out + part + name, False
    return out


@given(st.integers(0, 10**12 - 1))
def test_chinese_numerals_round_trip(n):
    assert chinese_number(_numeral(n)) == n


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("两百五", 250),
        ("一万二", 12000),
        ("三点五", 3.5),
        ("半", 0.5),
        ("两万半", 20000.5),
        ("二〇二四", 2024),
        ("十二", 12),
        ("六万七千亿", 6.7e12),
    ],
)
def test_colloquial_chinese_numerals(text, value):
    assert chinese_number(text) == value


@given(
    st.floats(1e-3, 1e18, allow_nan=False),
    st.sampled_from(["bytes", "bytes/s", "flop/s", "s", "tokens/s", "requests/s"]),
)
def test_formatting_and_reading_are_inverse(value, dimension):
    quantity = parse_quantity(format_quantity(value, dimension, digits=12), None)
    assert quantity.dimension == dimension
    assert math.isclose(quantity.value, value, rel_tol=1e-9)


@given(st.text(max_size=200))
def test_any_text_is_read_without_error_and_spans_are_verbatim(text):
    for quantity in find_quantities(text):
        assert 0 <= quantity.start < quantity.end <= len(text)
        assert text[quantity.start : quantity.end] == quantity.text
    assert len(fold_width(text)) == len(text)
