"""Parabolas along groups: known closed forms, coupling, radii of groups lost in noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from steelyard.steps.displacements import Displacements
from steelyard.steps.parabolas import Parabolas, along, multipliers
from steelyard.steps.probing import Evaluator
from steelyard.steps.quadratic import Policy

NAMES = ["a", "b", "c"]
KAPPA = 0.7


def place(loss, dtype=torch.float64):
    """Three scalar parameters at 0, displacements of 1 each, and the evaluator of `loss`."""
    w = [nn.Parameter(torch.zeros(1, dtype=dtype)) for _ in NAMES]
    one = torch.ones(1, dtype=dtype)
    directions = {n: [one if i == k else None for i in range(3)] for k, n in enumerate(NAMES)}
    return Displacements(w, directions), Evaluator(None, lambda _: loss(torch.cat(w)))


A = torch.tensor([[2.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 3.0]], dtype=torch.float64)
B = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def quadratic(w):
    return 3 - B @ w + 0.5 * w @ A @ w


def test_slopes_curvatures_and_couplings_are_exact():
    moved, evaluator = place(quadratic)
    found = Parabolas(NAMES, Policy()).measure(moved, evaluator, pairs=True)
    assert found.start == 3
    assert evaluator.forwards == 4 * 3 + 1 + 3
    for k, one in enumerate(found.parabolas.values()):
        assert one.slope == pytest.approx(float(B[k]), rel=1e-12)
        assert one.curvature == pytest.approx(float(A[k, k]), rel=1e-12)
        assert one.value == pytest.approx(float(B[k] ** 2 / (2 * A[k, k])), rel=1e-12)
    assert np.allclose(found.coupling.A[0], A, rtol=1e-9)
    assert np.allclose(multipliers(found, NAMES, (1e-6, 1e6)), np.linalg.solve(A, B), rtol=1e-9)
    inside = multipliers(found, NAMES, (0.5, 1.5))
    assert inside[1] == 1.5  # 2.0 where free
    assert inside.min() >= 0.5


def test_a_cubic_term_biases_the_slope_by_3_4_sixths():
    moved, evaluator = place(lambda w: quadratic(w) + KAPPA * w[0] ** 3 / 6)
    found = Parabolas(NAMES, Policy(least_r2=0.0)).measure(moved, evaluator)
    assert found.parabolas["a"].slope == pytest.approx(1 - 3.4 * KAPPA / 6, rel=1e-12)
    assert found.parabolas["a"].curvature == pytest.approx(2, rel=1e-12)
    assert found.parabolas["a"].r2 < 1
    assert found.parabolas["b"].r2 == 1  # each group has its own


def test_some_of_the_groups_in_other_units():
    moved, evaluator = place(quadratic)
    found = Parabolas(NAMES, Policy()).measure(moved, evaluator, ["c", "a"], unit=4.0)
    assert found.names == ["c", "a"]
    assert evaluator.forwards == 9
    assert found.parabolas["c"].slope == pytest.approx(4 * 0.5)
    assert found.parabolas["c"].curvature == pytest.approx(16 * 3)


def test_along_a_combined_step():
    moved, evaluator = place(quadratic)
    x = np.array([0.3, -1.0, 2.0])
    one = along(moved, evaluator, x, Policy(), start=3.0)
    assert evaluator.forwards == 2
    assert one.slope == pytest.approx(float(x @ B.numpy()), rel=1e-12)
    assert one.curvature == pytest.approx(float(x @ A.numpy() @ x), rel=1e-12)


def test_a_group_lost_in_rounding_is_probed_farther_until_it_is_seen():
    """Trap 3: float32, and a group whose step moves the loss by 1e-7 of itself."""
    tiny = torch.tensor([1.0, 1e-3, 1.0])

    def loss(w):
        at = w * tiny
        return 3 - at.sum() * 1e-1 + 0.5 * at @ at

    moved, evaluator = place(loss, torch.float32)
    fits = Parabolas(NAMES, Policy())
    seen = []
    for _ in range(12):
        one = fits.measure(moved, evaluator).parabolas["b"]
        seen.append(one)
        if one.accepted:
            fits.reaches["b"].accepted(1.0)
            break
        fits.reaches["b"].rejected(one.fitted.points, one.fitted, booting=False)
    assert "noise" in seen[0].reason
    assert seen[-1].accepted
    assert all(s.radius < t.radius for s, t in itertools.pairwise(seen))
    assert seen[-1].multiplier == pytest.approx(100, rel=0.1)
    assert fits.reaches["a"].radius == 1


def test_a_group_that_is_not_believed_keeps_its_step_in_the_full_model():
    def loss(w):
        return quadratic(w) - 3 * w[2] ** 2  # negative curvature along c

    moved, evaluator = place(loss)
    found = Parabolas(NAMES, Policy()).measure(moved, evaluator, pairs=True)
    assert not found.parabolas["c"].accepted
    s = multipliers(found, NAMES, (1e-6, 1e6))
    b = (B - A[:, 2])[:2]  # c moves by 1
    assert s[2] == 1
    assert np.allclose(s[:2], np.linalg.solve(A[:2, :2], b), rtol=1e-9)


def test_nothing_moves():
    w = [nn.Parameter(torch.zeros(1))]
    moved = Displacements(w, {"a": [torch.zeros(1)]})
    evaluator = Evaluator(None, lambda _: w[0].sum())
    found = Parabolas(["a"], Policy()).measure(moved, evaluator)
    assert found.parabolas == {}
    assert evaluator.forwards == 0
