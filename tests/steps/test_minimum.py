"""Against every point of a grid, in two dimensions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from steelyard.steps.minimum import in_ball, in_box


def lowest(b, A, inside, span):
    """The lowest value on a fine grid of two dimensions."""
    side = np.linspace(-span, span, 141)
    X = np.array([x for x in itertools.product(side, side) if inside(np.array(x))])
    return min(-X @ b + 0.5 * np.einsum("nk,kl,nl->n", X, A, X))


@pytest.mark.parametrize("seed", range(8))
def test_ball_and_box_beat_every_point_of_a_grid(seed):
    rng = np.random.default_rng(seed)
    b, A = rng.normal(size=2), rng.normal(size=(2, 2))
    A = A + A.T  # of any signs

    def value(x):
        return -b @ x + 0.5 * x @ A @ x

    x = in_ball(b, A, 0.7)
    assert np.linalg.norm(x) <= 0.7 + 1e-9
    assert value(x) <= lowest(b, A, lambda x: np.linalg.norm(x) <= 0.7, 0.7) + 1e-9
    A = A @ A + 0.1 * np.eye(2)
    x = in_box(b, A, -0.3, 0.5)
    assert x.min() >= -0.3
    assert x.max() <= 0.5
    assert value(x) <= lowest(b, A, lambda x: (x >= -0.3).all() and (x <= 0.5).all(), 0.5) + 1e-9


def test_the_balls_hard_cases():
    A = np.diag([-1.0, 2.0])
    for b in (np.zeros(2), np.array([0.0, 0.3])):  # no slope along the lowest eigenvector
        x = in_ball(b, A, 1.0)
        assert np.linalg.norm(x) == pytest.approx(1)
        assert -b @ x + 0.5 * x @ A @ x <= lowest(b, A, lambda x: np.linalg.norm(x) <= 1, 1) + 1e-9
    assert np.allclose(in_ball(np.zeros(2), np.eye(2), 1.0), 0)
    assert np.allclose(in_ball(np.array([3.0, 4.0]), np.zeros((2, 2)), 1.0), [0.6, 0.8])
    assert np.allclose(in_ball(np.array([1.0, 0.0]), np.diag([2.0, 0.0]), 9.0), [0.5, 0])


def test_refusals():
    with pytest.raises(ValueError, match="trust must be positive, found 0"):
        in_ball(np.ones(1), np.eye(1), 0)
    with pytest.raises(ValueError, match=r"found \(1, 1\)"):
        in_box(np.ones(1), np.eye(1), 1, 1)
