"""Planted laws are found; what follows from a law is consistent; intervals cover."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steelyard.plans.bound import LONGEST, constants, features
from steelyard.plans.laws import fit_features, fit_runs
from steelyard.plans.schedule_shapes import Shape

COSINE, LINEAR = Shape(kind="cosine", warmup=0.02), Shape(kind="linear")
FLOOR, D, G = 1.7, 3.0, 0.8


def loss_of(shape, peak, steps):
    c = constants(shape, steps)
    return FLOOR + D**2 * c.q1_squared / (steps * peak) + G**2 * c.q2_squared * peak


def grid(noise=0.0, seed=0, shape=COSINE):
    rng = np.random.default_rng(seed)
    return [
        (shape, r / math.sqrt(T), T, loss_of(shape, r / math.sqrt(T), T) + noise * rng.normal())
        for T in (400, 900, 2000)
        for r in (1.0, 3.0, 9.0)
    ]


def test_planted_numbers_to_eight_digits():
    law = fit_runs(grid())
    assert (law.floor, law.distance, law.gradient) == pytest.approx((FLOOR, D, G), abs=1e-8)
    assert law.r2 == pytest.approx(1)
    eta = 0.2 * Shape(kind="wsd")(300)  # of one curve
    x1, x2 = features(eta, range(20, 301, 5))
    law = fit_features(x1, x2, FLOOR + D**2 * x1 + G**2 * x2)
    assert (law.floor, law.distance, law.gradient) == pytest.approx((FLOOR, D, G), abs=1e-8)


def test_runs_of_different_schedules_share_a_law():
    law = fit_runs([*grid()[:5], *grid(shape=LINEAR)[5:]])
    assert (law.floor, law.distance, law.gradient) == pytest.approx((FLOOR, D, G), abs=1e-8)
    values = [(run[0](run[2]), *run[1:]) for run in grid()]  # s_t as numbers
    assert fit_runs(values).distance == pytest.approx(D, abs=1e-8)


@pytest.mark.parametrize("shape", [COSINE, LINEAR, Shape(kind="constant")])
def test_the_best_rate_minimises_the_prediction(shape):
    law = fit_runs(grid())
    T = 8000
    best = law.best_rate(T, shape)
    q1, q2 = law.q(shape, T)
    assert best == pytest.approx(q1 / (q2 * math.sqrt(T)))
    losses = {k: law.predict(T, k * best, shape) for k in (0.5, 0.99, 1, 1.01, 2)}
    assert min(losses, key=losses.__getitem__) == 1
    assert law.best_loss(T, shape) == pytest.approx(losses[1])
    assert law.predict(T, 0.01, COSINE) == pytest.approx(loss_of(COSINE, 0.01, T))


@pytest.mark.parametrize("shape", [COSINE, Shape(kind="constant")])
def test_required_steps_are_just_enough(shape):
    law = fit_runs(grid())
    for target in (3.0, 1.9, 1.75):
        T = law.required_steps(target, shape)
        assert law.best_loss(T, shape) <= target * (1 + 1e-4)
        assert law.best_loss(math.floor(0.98 * T), shape) > target
    with pytest.raises(ValueError, match=r"floor is 1\.7"):
        law.required_steps(1.7 - 1e-6, shape)
    with pytest.raises(ValueError, match=f"{LONGEST:,}"):
        law.required_steps(FLOOR + 1e-4, shape)


def test_coefficients_do_not_go_below_zero():
    x1, x2 = np.array([1.0, 2, 3, 4]), np.array([4.0, 1, 3, 2])
    law = fit_features(x1, x2, 5 - x1 + x2)
    assert law.distance == 0
    assert law.best_rate(100, COSINE) == 0
    law = fit_features(x1, x2, 5 + x1 - x2)
    assert law.gradient == 0
    assert math.isinf(law.best_rate(100, COSINE))
    line = x1 + x2 - 2.0
    assert fit_features(x1, x2, line + 1, least_floor=None).floor == pytest.approx(-1)
    assert fit_features(x1, x2, line + 1, least_floor=0.0).floor == 0


def test_intervals_cover_the_planted_values():
    """90 % intervals of four quantities, 100 planted sets of nine runs: 90 +- 3 expected."""
    T = 8000
    truth = fit_runs(grid())
    quantities = (
        lambda law: law.floor,
        lambda law: law.distance,
        lambda law: law.best_rate(T, COSINE),
        lambda law: law.best_loss(T, COSINE),
    )
    covered = np.zeros(len(quantities))
    widths = np.zeros(len(quantities))
    for seed in range(100):
        law = fit_runs(grid(0.02, seed), bootstrap=200, seed=seed)
        for k, what in enumerate(quantities):
            low, high = law.interval(what)
            covered[k] += low <= what(truth) <= high
            widths[k] += (high - low) / 100
    assert (covered >= 83).all(), covered
    assert (covered <= 97).all(), covered
    assert widths[3] < 0.15  # and they say something: the loss is 1.8


def test_intervals_are_as_wide_as_least_squares_has_them():
    """For Linf, linear in the losses: t times its standard error, over 40 planted data sets."""
    X = np.array([[1, *_features(run)] for run in grid()])
    spread = math.sqrt(np.linalg.inv(X.T @ X)[0, 0])
    ratios = []
    for seed in range(40):
        law = fit_runs(grid(0.02, seed), bootstrap=1000, seed=seed)
        low, high = law.interval(lambda law: law.floor)
        ratios.append((high - low) / (2 * 1.943180 * law.residual * spread))  # t of 6 at 95 %
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)


def _features(run):
    shape, peak, steps, _ = run
    c = constants(shape, steps)
    return c.q1_squared / (steps * peak), c.q2_squared * peak


def test_few_points_have_no_interval():
    law = fit_runs(grid(0.01)[:4])
    assert law.interval(lambda law: law.floor) is None
    assert np.isnan(law.covariance).all()
    assert fit_runs(grid(0.01)).covariance.shape == (3, 3)
    assert math.isnan(fit_runs(grid()[:3]).residual)


def test_one_rate_and_horizon_cannot_tell_distance_from_gradient():
    runs = [(COSINE, 0.05, 400 + k, 2.0 + 0.01 * k) for k in range(5)]
    assert fit_runs(runs).alike > 0.999
    assert fit_runs([(COSINE, 0.05, 400, 2.0)] * 5).alike == 1
    assert fit_runs(grid()).alike < 0.9


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([], "found 0"),
        (grid()[:2], "found 2"),
        ([*grid()[:3], (COSINE, 0.1, 100, math.nan)], "not finite"),
        ([*grid()[:3], (COSINE, 0.1, 100, -1.0)], "least_floor=None"),
        ([*grid()[:3], (COSINE, -0.1, 100, 1.0)], "peak"),
        ([*grid()[:3], ([1.0, 0.5], 0.1, 100, 1.0)], "2 values for 100"),
    ],
)
def test_refusals(runs, said):
    with pytest.raises(ValueError, match=said) as error:
        fit_runs(runs)
    assert "\n" not in str(error.value)
