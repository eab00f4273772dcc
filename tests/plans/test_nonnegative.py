"""The active sets against SciPy's solver, and digits that an iterative solver would not reach."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from steelyard.plans.nonnegative import solve


@pytest.mark.parametrize("signed", [frozenset(), frozenset({0})])
def test_equals_scipy_on_problems_with_and_without_active_bounds(signed):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 3)) * [1, 1e-3, 50]
    Y = X @ (rng.normal(size=(3, 40)) * [[1], [1e3], [0.02]]) + rng.normal(size=(20, 40))
    found = solve(X, Y, signed)
    low = [-np.inf if k in signed else 0 for k in range(3)]
    size = np.linalg.norm(X, axis=0)
    for y, c in zip(Y.T, found.T, strict=True):
        expected = lsq_linear(X / size, y, bounds=(low, np.inf), method="bvls").x / size
        assert c * size == pytest.approx(expected * size, abs=1e-8)
    bound = (found[1:] == 0).any(0)
    assert 0 < bound.sum() < 40  # both cases were there


def test_nothing_but_zero_is_allowed():
    assert (solve(np.ones((4, 1)), -np.ones((4, 2))) == 0).all()
    assert solve(np.zeros((4, 1)), np.ones((4, 1))).tolist() == [[0.0]]
