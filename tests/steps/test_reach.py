"""Reactions to parabolas that are not believed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steelyard.steps.quadratic import Points, fit
from steelyard.steps.reach import FARTHEST, Reach

C = np.array([0.0, -2, -1, 1, 2])


def rejected(reach, y_of, *, booting, sigma=1e-6):
    x = C * reach.radius
    found = Points(x[:, None], y_of(x)[:, None], np.array([sigma]))
    return reach.rejected(found, fit(found, "scalar"), booting=booting)


def line(x):
    return 5 - 1e-3 * x


def far_too_long(x):
    return 5 + 40 * x**2 - x


def uphill(x):
    return 5 + 0.5 * x**2 + x


def kinked(x):
    return 5 + np.abs(x) - 1.5 * x


def test_a_step_far_too_long_is_taken_back_while_booting():
    reaction = rejected(Reach(3, 8), far_too_long, booting=True)
    assert (reaction.multiple, reaction.move) == (0.1, 0.0)
    assert "taken back" in reaction.words
    infinite = rejected(Reach(3, 8), lambda x: np.where(x == 0, 5.0, math.nan), booting=True)
    assert infinite == reaction
    assert rejected(Reach(3, 8), far_too_long, booting=False) == (1.0, None, "")
    assert rejected(Reach(3, 8), lambda x: x * math.nan, booting=True) == (1.0, None, "")
    far = Reach(3, 8)
    far.radius = 30.0  # there it says nothing about the step itself
    assert rejected(far, far_too_long, booting=True).multiple == 1


def test_without_visible_curvature_it_looks_farther():
    reach, radii = Reach(3, 8), []
    for _ in range(6):
        reaction = rejected(reach, lambda x: 5 + 0 * x, booting=True)
        assert reaction == (1.0, None, "")  # nor a visible slope
        radii.append(reach.radius)
    assert radii == [10, 100, 1000, 1e4, 1e4, 1e4]
    assert radii[-1] == FARTHEST
    assert reach.uphill == 0  # a flat loss says nothing against the rate
    falling = [rejected(reach, lambda x: 5 + 1e-3 * x, booting=False).multiple for _ in range(3)]
    assert falling == [1, 1, 0.5]  # the loss clearly rises along the step
    slow = Reach(3, 8)
    rejected(slow, line, booting=False)
    assert slow.radius == 2


def test_descent_that_was_measured_lets_the_rate_grow():
    reach = Reach(3, 8)
    reaction = rejected(reach, line, booting=True)
    assert reaction.multiple == reaction.move == 2  # no farther than the farthest probe
    assert reach.radius == 5  # x 10, in units that are 2 times as long
    reaction = rejected(reach, line, booting=True)
    assert reaction.multiple == 10
    assert "descent up to 10 steps" in reaction.words
    assert reach.radius == 5
    assert rejected(Reach(3, 8), line, booting=False).multiple == 1


def test_no_parabola_lets_it_look_nearer_again():
    for booting, radius in ((True, 10), (False, 15)):
        reach = Reach(3, 8)
        reach.radius = 30
        assert rejected(reach, kinked, booting=booting).multiple == 1
        assert reach.radius == radius
    reach.radius = 1.5
    rejected(reach, kinked, booting=False)
    assert reach.radius == 1


def test_uphill_in_a_row_halves_the_rate():
    reach = Reach(3, 8)
    found = [rejected(reach, uphill, booting=False).multiple for _ in range(7)]
    assert found == [1, 1, 0.5, 1, 1, 0.5, 1]
    reach = Reach(2, 8)
    rejected(reach, uphill, booting=False)
    reach.accepted(1.1)
    assert rejected(reach, uphill, booting=False).multiple == 1
    assert rejected(reach, kinked, booting=False).multiple == 1  # b > 0: not uphill
    assert rejected(reach, uphill, booting=False).multiple == 1
    assert rejected(reach, uphill, booting=False).words == "uphill 2 times: rates halved"


def test_the_radius_stays_where_it_was_when_the_units_change():
    reach = Reach(3, 8)
    reach.radius = 50.0
    reach.accepted(10.0)
    assert reach.radius == 5
    reach.accepted(10.0)
    assert reach.radius == 1
    reach.accepted(0.5)
    assert reach.radius == pytest.approx(2)
