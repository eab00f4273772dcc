"""The checks on planted runs: a law that holds passes each of them, another one does not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steelyard.plans.bound import features
from steelyard.plans.schedule_shapes import parse_shape
from steelyard.trials import law_checks as checks

SHAPE = parse_shape("cosine", 0.02)
HORIZONS, FAR, REFERENCES = (300, 600, 1200), 9600, (0.05, 0.1, 0.2, 0.4, 0.8)
BEST = 0.2  # eta_ref of the planted law, D/G of nearly that


def planted(p: float = 0.5, noise: float = 0.0) -> dict[tuple[int, float], float]:
    """Linf + Q(eta_ref) T^-p, by the law for p = 1/2."""
    rng = np.random.default_rng(0)
    return {
        (T, r): (1.0 + 6.0 * (BEST / r + r / BEST) * T**-p) * (1 + noise * rng.normal())
        for T in (*HORIZONS, FAR)
        for r in REFERENCES
    }


def test_the_law_is_planned_with():
    one = checks.planned(planted(), SHAPE, FAR)
    assert one.reference == BEST
    assert one.error == pytest.approx(0, abs=2e-3)
    assert one.regret == 0
    assert one.trusted < 2e-3
    assert set(one.errors) == {"lines", "law"}
    assert one.errors["lines"] == pytest.approx(dict.fromkeys(REFERENCES, 0.0), abs=1e-9)
    assert one.worst("law") < 0.02


def test_the_far_runs_are_not_seen_by_the_plan():
    losses = planted()
    before = checks.planned(losses, SHAPE, FAR)
    changed = {(T, r): 2 * y if T == FAR else y for (T, r), y in losses.items()}
    after = checks.planned(changed, SHAPE, FAR)
    assert (after.predicted, after.reference) == (before.predicted, before.reference)
    assert after.measured == 2 * before.measured
    assert after.error == pytest.approx(-0.5, abs=2e-3)


def test_a_loss_that_falls_otherwise_is_missed():
    one = checks.planned(planted(p=0.25), SHAPE, FAR)
    assert abs(one.error) > 0.02


def test_a_wrong_choice_costs():
    """At the longest horizon another rate is the best."""
    losses = planted() | {(FAR, 0.4): 1.0}
    one = checks.planned(losses, SHAPE, FAR)
    assert one.reference == BEST
    assert one.regret == pytest.approx(losses[FAR, BEST] - 1)


def test_no_plan_without_pilots():
    with pytest.raises(ValueError, match="no plan for 9,600 steps"):
        checks.planned({(FAR, 0.1): 1.0}, SHAPE, FAR)


@pytest.mark.parametrize("p", [0.3, 0.5, 0.9])
def test_the_free_exponent_is_found(p):
    assert checks.free_exponent(planted(p)) == pytest.approx(p, abs=0.011)
    assert math.isnan(checks.free_exponent({(T, 0.1): 1.0 for T in HORIZONS}))


def test_an_exponent_of_a_floor_below_zero_goes_through_zero():
    losses = {(T, 0.1): 5 * T**-0.2 for T in (*HORIZONS, FAR)}
    assert checks.free_exponent(losses) == pytest.approx(0.2, abs=0.011)


@pytest.mark.parametrize("drift", [0.0, 0.25])
def test_the_best_rates_exponent(drift):
    """The best eta_ref moves like T^-drift."""
    losses = {
        (T, r): 1 + math.log(r / BEST * (T / 1700) ** drift) ** 2
        for T in (*HORIZONS, FAR)
        for r in REFERENCES
    }
    assert checks.rate_exponent(losses) == pytest.approx(-0.5 - drift)
    ends = {place: y for place, y in losses.items() if place[1] >= BEST}
    assert len(checks.best_peaks(ends)) < len(HORIZONS) + 1
    if not drift:
        assert math.isnan(checks.rate_exponent(ends))


def test_slopes_are_equal_under_the_law():
    assert checks.slopes(planted(), BEST) == pytest.approx([12.0] * 3)
    rising = checks.slopes(planted(0.9), BEST)
    assert rising[0] > rising[1] > rising[2]


def test_a_planted_curve_is_followed():
    T = 2000
    lr = 0.02 * parse_shape("cyclic:4", 0.02)(T)
    steps = np.arange(50, T + 1, 50)
    x1, x2 = features(lr, steps)
    rng = np.random.default_rng(1)
    curve = 0.5 + 0.4 * x1 + 9.0 * x2
    exact = checks.followed(lr, steps.tolist(), [curve.tolist()])
    assert exact.r2 > 0.999
    assert exact.whole > 0.999
    assert math.isnan(exact.ceiling)
    late = curve[steps > T / 2]
    scatter = 0.5 * late.std() * rng.normal(size=(20, len(curve)))
    noisy = checks.followed(lr, steps.tolist(), (curve + scatter).tolist())
    assert noisy.ceiling == pytest.approx(1 - 0.25 / 20, abs=0.004)
    assert noisy.r2 == pytest.approx(noisy.ceiling, abs=0.01)
    bent = checks.followed(lr, steps.tolist(), [(curve + (steps > T / 2) * 0.2).tolist()])
    assert bent.r2 < bent.both < 1
    assert bent.r2 < 0
