"""Equations 6 to 9, against the Taylor expansion that they come from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steelyard.plans.landscape import Landscape

# the constants of the paper's figure 5; tr(H)/cbar^2 is 2e8 from scratch, 2e6 when fine-tuning
SCRATCH = Landscape(
    squared_gradient=40.0, gradient_curvature=1e2, spread_curvature=2e4, trace=2e6, clip_factor=0.1
)
SIGMA = 0.5


def expected_improvement(at, lr, B, sigma):
    """dF_priv(eta, B) of the card, R = 1."""
    c = at.clip_factor
    bend = c**2 * at.gradient_curvature + c**2 * at.spread_curvature / B
    bend += (sigma * at.bound) ** 2 * at.trace / B**2
    return lr * c * at.squared_gradient - lr**2 / 2 * bend


def test_improvement_of_one_step():
    for lr, B in ((0.1, 10), (3.0, 1000), (1e-3, 1)):
        exact = expected_improvement(SCRATCH, lr, B, SIGMA)
        assert SCRATCH.improvement(lr, B, SIGMA) == pytest.approx(exact)


def test_simulated_steps_on_a_quadratic_agree():
    """The formulas against steps that are taken: private SGD, with noise, sampling and clipping."""
    rng = np.random.default_rng(0)
    H = np.diag([4.0, 1.0, 0.25])
    G, root = np.array([1.0, -2.0, 0.5]), np.diag([1.0, 0.5, 2.0])
    at = Landscape(
        squared_gradient=G @ G,
        gradient_curvature=G @ H @ G,
        spread_curvature=np.trace(H @ root @ root),
        trace=np.trace(H),
        clip_factor=0.3,
        bound=0.7,
    )
    lr, B, sigma, draws = 0.4, 5, 1.3, 400_000
    mean = G + rng.normal(size=(draws, 3)) @ root / math.sqrt(B)
    ghat = 0.3 * mean + sigma * 0.7 * rng.normal(size=(draws, 3)) / B
    step = -lr * ghat
    fall = -(step @ G + 0.5 * np.einsum("ni,ij,nj->n", step, H, step))
    error = fall.std() / math.sqrt(draws)
    assert error < 0.01 * abs(fall.mean())
    assert at.improvement(lr, B, sigma) == pytest.approx(fall.mean(), abs=3 * error)


def test_equation_6_is_the_best_improvement_per_sample():
    for B in (20, 300, 5000):
        lr = SCRATCH.best_lr(B, SIGMA)
        best = SCRATCH.improvement(lr, B, SIGMA)
        assert SCRATCH.private_improvement(B, SIGMA) == pytest.approx(best / B)
        for other in (0.9 * lr, 1.1 * lr):
            assert SCRATCH.improvement(other, B, SIGMA) < best


def test_equation_6_without_noise_is_equation_7():
    one = Landscape(squared_gradient=3.0, gradient_curvature=2.0, spread_curvature=5.0, trace=9.0)
    assert one.clip_factor == 1
    for B in (1, 64, 4096):
        assert one.private_improvement(B, 0.0) == one.public_improvement(B)
        assert one.private_improvement(B, 0.3) < one.public_improvement(B)
        exact = 0.5 * 9.0 / (B * 2.0 + 5.0)
        assert one.public_improvement(B) == pytest.approx(exact)
    # the per-sample improvement at the best learning rate does not feel cbar when there is no noise
    assert SCRATCH.private_improvement(64, 0.0) == SCRATCH.public_improvement(64)


def test_equation_8_is_all_that_privacy_adds():
    for B in (10, 1000):
        public = SCRATCH.squared_gradient**2 / 2 / SCRATCH.public_improvement(B)
        private = SCRATCH.squared_gradient**2 / 2 / SCRATCH.private_improvement(B, SIGMA)
        assert private - public == pytest.approx(SCRATCH.decelerator(B, SIGMA))
        assert SCRATCH.decelerator(B, SIGMA) == pytest.approx(0.25 * 2e8 / B)


def test_the_best_batch_is_the_best_batch():
    best = SCRATCH.best_private_batch(SIGMA)
    assert best == pytest.approx(math.sqrt(0.25 * 2e8 / 1e2))
    grid = best * np.geomspace(0.1, 10, 2001)  # best itself in the middle
    cost = [B * 1e2 + SCRATCH.decelerator(B, SIGMA) for B in grid]
    assert int(np.argmin(cost)) == 1000
    gains = [SCRATCH.private_improvement(B, SIGMA) for B in grid]
    assert int(np.argmax(gains)) == 1000


def test_equation_9_the_noise_costs_a_factor_two_in_batch():
    for sigma in (0.3, 1.0, 4.0):
        best = SCRATCH.best_private_batch(sigma)
        private = SCRATCH.private_improvement(best, sigma)
        assert private == pytest.approx(SCRATCH.public_improvement(2 * best))


def test_the_bound_only_rescales():
    """AUTO: C_i = R/||g_i||, so cbar grows with R; only the learning rate changes."""
    other = Landscape(**{**fields(SCRATCH), "clip_factor": 0.5, "bound": 5.0})
    for B in (10, 1000):
        assert other.decelerator(B, SIGMA) == pytest.approx(SCRATCH.decelerator(B, SIGMA))
        assert 5 * other.best_lr(B, SIGMA) == pytest.approx(SCRATCH.best_lr(B, SIGMA))
    assert other.best_private_batch(SIGMA) == pytest.approx(SCRATCH.best_private_batch(SIGMA))


def fields(landscape):
    return {name: getattr(landscape, name) for name in Landscape.__dataclass_fields__}


def test_edges():
    assert SCRATCH.best_private_batch(0.0) == 0
    concave = Landscape(**{**fields(SCRATCH), "gradient_curvature": -1e9})
    assert concave.best_private_batch(SIGMA) == math.inf
    assert concave.best_lr(64, SIGMA) == math.inf
    assert concave.private_improvement(64, SIGMA) == concave.public_improvement(64) == math.inf
    assert concave.improvement(1.0, 64, SIGMA) > 1e6
    saddle = Landscape(**{**fields(SCRATCH), "trace": -5.0})
    assert saddle.best_private_batch(SIGMA) == 0
    assert saddle.private_improvement(64, SIGMA) > saddle.public_improvement(64)


def test_wrong_numbers():
    for name, value in (("trace", math.nan), ("clip_factor", 0.0), ("bound", math.inf)):
        with pytest.raises(ValueError, match=f"{name} must be a finite number"):
            Landscape(**{**fields(SCRATCH), name: value})
    for batch in (0, -1, math.inf):
        with pytest.raises(ValueError, match="batch must be a finite number above 0"):
            SCRATCH.private_improvement(batch, 1.0)
        with pytest.raises(ValueError, match="batch must be"):
            SCRATCH.best_lr(batch, 1.0)
    with pytest.raises(ValueError, match="noise multiplier must not be negative"):
        SCRATCH.best_private_batch(-1.0)
