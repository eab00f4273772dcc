from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.report.numerals import (
    above,
    cell,
    day,
    duration,
    factor,
    listed,
    percent,
    plain,
    power,
    prose,
)


def _value(text: str) -> float:
    return float(text.replace(",", "").rstrip("%").rstrip("\u202f"))


@given(st.floats(min_value=1e-3, max_value=9.0))
def test_printed_bounds_are_bounds_and_close(epsilon):
    assert epsilon - 1e-8 <= _value(above(epsilon)) <= epsilon + 1.001e-3
    grown = math.exp(epsilon)
    assert grown * (1 - 1e-9) <= _value(factor(epsilon)) <= grown * 1.0101


@given(st.floats(min_value=0.5, max_value=0.99998))
def test_percentages_are_rounded_up_but_never_to_certainty(share):
    assert 100 * share - 1e-6 <= _value(percent(share)) < 100


def test_certainty_is_100():
    assert percent(1.0) == "100.000\u202f%"


@pytest.mark.parametrize(
    ("epsilon", "text"), [(2.993, "20.0"), (0.5, "1.65"), (9.3, "10⁵"), (1000.0, "10⁴³⁵")]
)
def test_factor(epsilon, text):
    assert factor(epsilon) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-5, "10⁻⁵"), (2.5e-6, "2.5 × 10⁻⁶"), (0.5, "0.5"), (1e-3, "10⁻³"), (0.0, "0")],
)
def test_power(value, text):
    assert power(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(57.32, "57.3 s"), (61, "1 min 1 s"), (7265, "2 h 1 min"), (None, "?")]
)
def test_duration(seconds, text):
    assert duration(seconds).replace("\u202f", " ") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (True, "yes"), (1e-5, "10⁻⁵"), (0.1, "0.1"), (5, "5"), ("a", "a"),
     (["a", 2], "a, 2"), ({"a": 1}, '{"a": 1}'), (123456.0, "123,456")],
)  # fmt: skip
def test_cell(value, text):
    assert cell(value) == text


def test_plain_keeps_three_digits():
    assert (plain(0.82345), plain(3.0), plain(12345.0)) == ("0.823", "3", "1.234e+04")


def test_prose_escapes_and_raises_superscripts():
    assert str(prose("<b>10⁻⁵</b>")) == "&lt;b&gt;10<sup>−5</sup>&lt;/b&gt;"
    assert str(prose("δ = 1")) == "δ\u00a0=\u00a01"


def test_days_and_records_in_a_line():
    assert [day(t) for t in (1_760_000_000.0, None, -1.0, 1e12)] == ["9 October 2025", "", "", ""]
    assert listed({"non_members": 20, "loss": 0.25}) == "non members 20, loss 0.25"
    assert [listed({}), listed(None), listed("as is")] == ["–", "–", "as is"]
