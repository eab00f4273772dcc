"""When unlearning stops."""

from __future__ import annotations

import math

import pytest

from steelyard.steps.stop import Stop


def test_it_goes_on_until_the_reference_is_reached():
    stop = Stop(2.0)
    assert stop(retain=1.0, forget=0.1) == ""
    assert stop(retain=1.1, forget=1.99) == ""
    assert stop(retain=1.0, forget=2.0) == "forgotten: the forget metric 2 has reached 2"
    falling = Stop(0.3, upwards=False)
    assert falling(retain=1.0, forget=0.9) == ""
    assert falling(retain=1.0, forget=0.3).startswith("forgotten")


def test_it_stops_when_the_retain_loss_rises():
    stop = Stop(9.0, tolerance=0.2)
    assert stop(retain=1.0, forget=0) == ""
    assert stop(retain=1.19, forget=0) == ""
    assert stop(retain=1.21, forget=9) == "lost: the retain loss 1.21 is above 1.2"
    near_zero = Stop(9.0, slack=0.05)
    assert near_zero(retain=1e-4, forget=0) == ""
    assert near_zero(retain=0.05, forget=0) == ""
    assert near_zero(retain=0.0502, forget=0).startswith("lost")
    assert Stop(9.0, start=2.0)(retain=2.3, forget=0).startswith("lost")


def test_a_floor_counts_for_a_start_below_it():
    stop = Stop(9.0, tolerance=0.5, slack=0.01, floor=0.1)
    assert stop.limit is None
    assert stop(retain=1e-3, forget=0) == ""
    assert stop.limit == pytest.approx(0.16)
    assert stop(retain=0.159, forget=0) == ""
    assert stop(retain=0.161, forget=0) == "lost: the retain loss 0.161 is above 0.16"
    assert Stop(tolerance=0.5, floor=0.1, start=2.0).limit == 3.0


def test_without_reference_or_tolerance_only_the_other_stops():
    stop = Stop(tolerance=0.2, start=1.0)
    assert stop(retain=1.0, forget=1e9) == ""
    assert stop(retain=1.3, forget=1e9).startswith("lost")
    stop = Stop(2.0, tolerance=None)
    assert stop(retain=1.0, forget=0) == ""
    assert stop(retain=1e9, forget=0) == ""
    assert stop.limit is None
    assert stop(retain=1e9, forget=2.0).startswith("forgotten")
    assert Stop(tolerance=None)(retain=1.0, forget=math.inf).startswith("not finite")


def test_the_two_reasons_one_by_one():
    stop = Stop(2.0, tolerance=0.5)
    assert stop.lost(retain=1.0, forget=3.0) == ""
    assert stop.forgotten(3.0) == "forgotten: the forget metric 3 has reached 2"
    assert stop.lost(retain=1.6, forget=3.0) == "lost: the retain loss 1.6 is above 1.5"
    assert stop(retain=1.6, forget=3.0).startswith("lost")  # both: lost


def test_what_is_not_finite():
    for wrong in (math.nan, math.inf):
        assert Stop(1.0)(retain=wrong, forget=0).startswith("not finite")
        assert Stop(1.0)(retain=1.0, forget=wrong).startswith("not finite")
    for bad in (
        {"tolerance": -0.1}, {"slack": math.nan}, {"floor": -1.0}, {"reference": math.inf},
        {"start": math.nan},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="found"):
            Stop(**({"reference": 1.0} | bad))
