"""The first part of a curve predicts the rest: planted, and of real runs (data/make_runs.py)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from steelyard.plans.bound import features
from steelyard.plans.curve_law import fit_curve
from steelyard.plans.schedule_shapes import parse_shape

DATA = Path(__file__).parent / "data" / "curves.csv"


def real(kind):
    with DATA.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["run"] == kind]
    lr = 0.004 * parse_shape(kind, 0.02)(30_000)
    return lr, [int(row["step"]) for row in rows], [float(row["loss"]) for row in rows]


@pytest.mark.parametrize("kind", ["cosine", "wsd:0.3", "cyclic:4"])
@pytest.mark.parametrize("dense", [False, True])
def test_a_planted_curve_is_predicted(kind, dense):
    """Also where the features are interpolated, and through windows."""
    T = 2000
    lr = 0.3 * parse_shape(kind, 0.02)(T)
    steps = np.arange(0, T + 1, 1 if dense else 20)
    x1, x2 = features(lr, steps)
    losses = 1.0 + 4.0 * np.minimum(x1, 1e6) + 0.25 * x2
    fit = fit_curve(lr, steps, losses, bootstrap=0)
    assert (fit.law.floor, fit.law.distance, fit.law.gradient) == pytest.approx(
        (1.0, 2.0, 0.5), rel=1e-2 if dense else 1e-6
    )
    assert fit.r2_held > 0.999
    assert fit.error_held < 0.01
    assert fit.steps[fit.fitted].max() <= T / 2 < fit.steps[~fit.fitted].min()
    assert fit.steps.min() > 0.2 * T


def test_the_interval_covers_under_noise():
    T = 3000
    lr = 0.3 * parse_shape("cyclic:4", 0.02)(T)
    steps = np.arange(1, T)
    x1, x2 = features(lr, steps)
    covered = 0
    for seed in range(40):
        noise = 0.1 * np.random.default_rng(seed).normal(size=T - 1)
        fit = fit_curve(lr, steps, 1.0 + 4.0 * x1 + 0.25 * x2 + noise, fit_on=1.0, bootstrap=200)
        low, high = fit.law.interval(lambda law: law.gradient)
        covered += low <= 0.5 <= high
    assert 31 <= covered <= 40, covered  # 36 expected


@pytest.mark.parametrize(("kind", "r2", "error"), [("cosine", 0.6, 0.12), ("cyclic:4", 0.6, 0.2)])
def test_the_first_half_of_a_real_run_predicts_the_second(kind, r2, error):
    fit = fit_curve(*real(kind), windows=50)
    assert fit.r2_held > r2
    assert fit.error_held < error
    assert fit.predicted[-1] == pytest.approx(fit.losses[-1], rel=0.08)
    constant = np.abs(fit.losses[fit.fitted].mean() / fit.losses[~fit.fitted] - 1).max()
    assert fit.error_held < constant  # better than to say that nothing changes


def test_the_decay_of_a_real_wsd_run_is_not_foreseen_from_its_stable_phase():
    """A known failure, kept in sight: nothing in a constant rate tells distance from gradient."""
    fit = fit_curve(*real("wsd:0.7"), windows=50)
    assert fit.error_held > 0.2
    assert fit.predicted[-1] > 1.2 * fit.losses[-1]


def test_everything_fitted_leaves_nothing_held():
    fit = fit_curve(*real("cosine"), fit_on=1.0, bootstrap=0)
    assert fit.fitted.all()
    assert np.isnan(fit.r2_held)
    assert np.isnan(fit.error_held)


@pytest.mark.parametrize(
    ("steps", "losses", "said"),
    [
        ([10, 10, 20], [1, 1, 1], "rise"),
        ([10, 20], [1, 1, 1], "rise"),
        ([1, 2, 3], [1, 1, 1], "0 losses are left"),
        ([60, 70, 80, 90], [1, 1, 1, 1], "found 0"),
        ([30, 40, 45, 90], [1, 1, np.inf, 1], "not finite"),
    ],
)
def test_refusals(steps, losses, said):
    with pytest.raises(ValueError, match=said):
        fit_curve(np.full(100, 0.1), steps, losses)
