"""Fronts and hypervolumes by hand, by a count of small squares, and by pymoo where it is there."""

from __future__ import annotations

import numpy as np
import pytest

from steelyard.trials.fronts import Grid, attained, front, hypervolume


def squares(points, n=200):
    """The share of n x n small squares whose middle a point dominates."""
    middles = (np.arange(n) + 0.5) / n
    under = np.zeros((n, n), bool)
    for x, y in points:
        under |= (middles[:, None] < x) & (middles[None, :] < y)
    return under.mean()


def test_by_hand():
    assert hypervolume([(0.5, 0.5)]) == 0.25
    assert hypervolume([(1.0, 0.25), (0.5, 1.0)]) == pytest.approx(0.25 + 0.5 * 0.75)
    assert hypervolume([(1.0, 1.0), (0.3, 0.9)]) == 1.0
    assert hypervolume([]) == hypervolume([(1.0, 0.0), (0.0, 1.0)]) == 0.0
    assert hypervolume([(2.0, 3.0), (0.5, 9.0)], (1.0, 1.0)) == 2.0


def test_by_counting():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 40):
        points = rng.random((n, 2)).round(2)  # borders of the squares
        assert hypervolume(map(tuple, points)) == pytest.approx(squares(points), abs=1e-12)


def test_by_pymoo():
    indicators = pytest.importorskip("pymoo.indicators.hv")
    points = np.random.default_rng(1).random((30, 2))
    theirs = indicators.HV(ref_point=np.zeros(2))(-points)  # it minimises
    assert hypervolume(map(tuple, points)) == pytest.approx(theirs)


def test_a_front_has_no_dominated_point():
    points = [(0.1, 0.9), (0.1, 0.8), (0.5, 0.5), (0.4, 0.5), (0.5, 0.5), (0.9, 0.1)]
    assert front(points) == [(0.1, 0.9), (0.5, 0.5), (0.9, 0.1)]
    with pytest.raises(ValueError, match="not finite"):
        front([(0.5, float("nan"))])


def test_what_is_attained_at_a_level():
    points = [(0.2, 0.9), (0.6, 0.4)]
    assert [attained(points, x) for x in (0.0, 0.2, 0.21, 0.6, 0.7)] == [0.9, 0.9, 0.4, 0.4, 0.0]


def trial(*points, **more):
    rows = [[k, 0.0, 0.0, forgotten, retained] for k, (retained, forgotten) in enumerate(points)]
    return {"trajectory": rows, "diverged": False, "raised": 0.0} | more


def test_a_grid_by_union_by_cells_and_by_rates():
    """Two seeds; the rate 2 is good with the weight 3 alone."""
    grid = Grid({
        (1.0, 1.0): [trial((1.0, 0.2)), trial((1.0, 0.4))],
        (2.0, 1.0): [trial((0.1, 1.0)), trial((0.1, 1.0))],
        (1.0, 3.0): [trial((1.0, 0.1)), trial((1.0, 0.3))],
        (2.0, 3.0): [trial((1.0, 0.5)), trial((1.0, 0.5))],
    })  # fmt: skip
    assert grid.union == pytest.approx([0.5 + 0.1 * 0.5] * 2)
    assert grid.over_cells == pytest.approx([0.9 / 4, 1.3 / 4])
    assert grid.over_rates == pytest.approx([0.3, 0.4])
    assert grid.best == (2.0, 3.0)
    assert grid.by_rate() == {1.0: pytest.approx([0.2, 0.4]), 2.0: pytest.approx([0.5, 0.5])}
    assert (1.0, 0.5) in grid.points(1)
    assert grid.total("diverged") == 0


def test_means_leave_out_trials_without_a_number():
    grid = Grid({(1.0, 1.0): [trial(raised=0.5), trial(raised=None)]})
    assert grid.mean("raised") == 0.5
    assert Grid({(1.0, 1.0): [trial(raised=None)]}).mean("raised") is None
