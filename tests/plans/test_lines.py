"""Lines in 1/sqrt(T): planted ones are found, choices follow them, sizes are powers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import linregress

from steelyard.plans.lines import (
    Line,
    best_reference,
    by_reference,
    fit_line,
    fit_sizes,
    rescaled_rate,
)

T = np.array([400, 800, 1600, 3200])


def test_equals_scipy():
    losses = 2.0 + 30 / np.sqrt(T) + np.array([0.01, -0.02, 0.015, 0.0])
    line, expected = fit_line(T, losses), linregress(1 / np.sqrt(T), losses)
    assert (line.slope, line.floor) == pytest.approx((expected.slope, expected.intercept))
    assert line.r2 == pytest.approx(expected.rvalue**2)
    assert line(10_000) == pytest.approx(expected.intercept + expected.slope / 100)
    low, high = line.interval(math.inf)  # at 1/sqrt(T) = 0: the intercept's own
    assert (low + high) / 2 == pytest.approx(line.floor)
    assert (high - low) / 2 == pytest.approx(2.919986 * expected.intercept_stderr, rel=1e-5)


def test_required_steps():
    line = fit_line(T, 2.0 + 30 / np.sqrt(T))
    assert line.required_steps(2.1) == pytest.approx(90_000)
    assert line(line.required_steps(2.5)) == pytest.approx(2.5)
    assert math.isinf(line.required_steps(2.0 - 1e-9))
    assert Line(floor=2.0, slope=-1.0).required_steps(2.5) == 1


def test_two_points_make_a_line_of_unknown_error():
    line = fit_line([100, 400], [3.0, 2.5])
    assert (line.floor, line.slope) == pytest.approx((2.0, 10.0))
    assert math.isnan(line.r2)
    assert line.interval(1000) is None


def test_the_choice_is_at_the_horizon_not_at_the_pilots():
    """The steep line with the low intercept is worse at the pilots, better later."""
    flat, steep = (lambda t: 2.0 + 5 / math.sqrt(t)), (lambda t: 1.8 + 12 / math.sqrt(t))
    runs = [(1.0 / math.sqrt(t), t, flat(t)) for t in (100, 200, 400)]
    runs += [(3.01 / math.sqrt(t), t, steep(t)) for t in (100, 400)]
    runs += [(2.99 / math.sqrt(200), 200, steep(200))]  # rounded: the same reference
    runs += [(9.0 / math.sqrt(100), 100, 1.0)]  # one horizon: no line
    lines = by_reference(runs)
    assert list(lines) == pytest.approx([1.0, 3.003], rel=1e-3)
    assert [line.points for line in lines.values()] == [3, 3]
    assert best_reference(lines, 400) == pytest.approx(1.0)
    assert best_reference(lines, 100_000) == pytest.approx(3.003, rel=1e-3)


def test_rates_are_rescaled():
    assert rescaled_rate(0.02, 1000, 4000) == pytest.approx(0.01)


def test_sizes():
    def line(N):
        return Line(floor=8 * N**-0.1, slope=2 * N**0.2)

    law = fit_sizes([(N, line(N)) for N in (1e6, 1e7, 1e8)])
    assert law.floor == pytest.approx((8, -0.1))
    assert law.line(1e9)(2500) == pytest.approx(line(1e9)(2500))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: fit_line([100, 100], [1, 2]), "2 horizons"),
        (lambda: best_reference({}, 100), "two horizons"),
        (lambda: rescaled_rate(0, 1, 2), "peak"),
        (lambda: fit_sizes([(1e6, Line(floor=1, slope=1))] * 2), "2 sizes"),
        (
            lambda: fit_sizes([(1e6, Line(floor=1, slope=1)), (1e7, Line(floor=-1, slope=1))]),
            "not positive",
        ),
    ],
)
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said):
        call()
