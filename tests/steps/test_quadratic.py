"""The identities of the card's section 7, on numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from steelyard.steps.probing import design
from steelyard.steps.quadratic import Points, Policy, Quadratic, fit

K, J = 4, 3


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def model(rng, K=K, J=J, diagonal=False):
    A = rng.normal(size=(J, K, K))
    A = A @ A.transpose(0, 2, 1) + 0.1 * np.eye(K)
    return rng.normal(size=J), rng.normal(size=(J, K)), A * np.eye(K) if diagonal else A


def losses(c0, b, A, X):
    """y_j(x) = c0_j - b_j.x + x'A_j x / 2, one at a time."""
    return np.array(
        [[c - s @ x + 0.5 * x @ H @ x for c, s, H in zip(c0, b, A, strict=True)] for x in X]
    )


def points(y_of, X, sigma=0.0):
    X = np.concatenate([np.zeros((1, X.shape[1])), X])
    y = y_of(X)
    return Points(X, y, np.full(y.shape[1], sigma))


def line(c, y, sigma=0.0) -> Quadratic:
    """The fit of one loss along one direction; y relative to y(0) = 0."""
    x = np.array([0.0, *c])[:, None]
    return fit(Points(x, np.array([0.0, *y])[:, None], np.array([sigma])), "scalar")


# -- exact quadratics, every structure and design ------------------------------------------------

FULL_RANK = [
    *itertools.product(["diagonal"], ["star", "central", "pairs", "random"], ["anchored"]),
    *itertools.product(["full"], ["pairs", "random"], ["anchored", "free"]),
    ("diagonal", "star", "free"),
]


@pytest.mark.parametrize(("structure", "kind", "intercept"), FULL_RANK)
def test_recovers_an_exact_quadratic(rng, structure, kind, intercept):
    c0, b, A = model(rng, diagonal=structure == "diagonal")
    q = fit(points(lambda X: losses(c0, b, A, X), design(kind, K)), structure, intercept)
    assert np.abs(q.b - b).max() < 1e-9
    assert np.abs(q.A - A).max() < 1e-9
    assert np.abs(q.c0 - c0).max() < 1e-9
    assert np.allclose(q.r2, 1)
    X = rng.normal(size=(5, K))
    assert np.allclose(q.predict(X), losses(c0, b, A, X))
    assert np.allclose(q.predict(X[0]), losses(c0, b, A, X)[0])


def test_thirty_dimensions_from_random_points(rng):
    c0, b, A = model(rng, K=30, J=1)
    X = design("random", 30)
    q = fit(points(lambda X: losses(c0, b, A, X), X), "full")
    assert np.abs(q.A - A).max() < 1e-9
    assert np.abs(q.b - b).max() < 1e-9


def test_a_diagonal_fit_of_a_coupled_quadratic_needs_symmetric_points(rng):
    c0, b, A = np.zeros(1), np.array([[1.0, -0.5]]), np.array([[[2.0, 1.0], [1.0, 2.0]]])

    def fitted(X):
        return fit(points(lambda X: losses(c0, b, A, X), X), "diagonal").a[0]

    symmetric = design("random", 2, m=4000)
    assert np.allclose(fitted(symmetric), 2, atol=0.1)
    assert fitted(np.abs(symmetric)).min() > 2.5  # the card: 2.65


def test_three_points_are_gens_formula():
    up, down = 0.7, -0.3
    q = line((-1, 1), (up, down))
    assert q.multiplier()[0, 0] == pytest.approx(0.5 * (up - down) / (up + down))
    assert q.dof == 0
    assert q.r2[0] == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_three_points_have_r2_1_whatever_they_are(seed):
    y = np.random.default_rng(seed).normal(size=2)
    assert line((-1, 1), y).r2[0] == pytest.approx(1)
    assert line((-1, 1), y).dof == 0


def test_five_points_in_closed_form(rng):
    c, y = np.array([-2.0, -1, 1, 2]), rng.normal(size=4)
    q = line(c, y)
    assert q.a[0, 0] == pytest.approx((4 * (y[3] + y[0]) + y[2] + y[1]) / 17)
    assert q.b[0, 0] == pytest.approx(-(2 * (y[3] - y[0]) + y[2] - y[1]) / 10)
    assert q.dof == 2


@pytest.mark.parametrize(("c", "bias"), [((-2, -1, 1, 2), 3.4), ((-1, 1), 1.0)])
def test_a_cubic_term_biases_the_slope_alone(c, bias):
    """U7."""
    a, b, kappa = 0.8, 0.5, 0.3
    c = np.array(c, float)
    q = line(c, 0.5 * a * c**2 - b * c + kappa * c**3 / 6)
    assert q.a[0, 0] == pytest.approx(a, abs=1e-14)
    assert q.b[0, 0] == pytest.approx(b - bias * kappa / 6, abs=1e-14)
    assert (q.r2[0] < 1 - 1e-6) == (len(c) == 4)


def test_the_star_of_one_direction_is_five_points():
    assert design("star", 1)[:, 0].tolist() == [-2, -1, 1, 2]
    y = np.array([[0.0, 4, 1, 3, 9]]).T
    p = Points(np.array([[0.0, -2, -1, 1, 2]]).T, y, np.zeros(1))
    for structure in ("diagonal", "full"):
        other = fit(p, structure)
        assert other.b[0, 0] == fit(p, "scalar").b[0, 0]
        assert other.A[0, 0, 0] == fit(p, "scalar").A[0, 0, 0]


# -- invariances ---------------------------------------------------------------------------------


def test_scale_and_offset_of_the_loss_leave_the_minimiser(rng):
    """U3."""
    c0, b, A = model(rng, J=1)
    p = points(lambda X: losses(c0, b, A, X), design("pairs", K))
    q = fit(p, "full")
    scaled = fit(Points(p.x, 7 * p.y - 3, p.sigma), "full")
    assert np.allclose(scaled.argmin(), q.argmin())
    assert np.allclose(scaled.multiplier(), q.multiplier())
    longer = fit(Points(p.x / 5, p.y, p.sigma), "full")  # D -> 5 D: the same places, x / 5
    assert np.allclose(longer.argmin(), q.argmin() / 5)


def test_combine_is_linear(rng):
    c0, b, A = model(rng)
    q = fit(points(lambda X: losses(c0, b, A, X) + X[:, :1] ** 3, design("pairs", K)), "full")
    w = np.array([2.0, -1.0, 0.5])
    one = q.combine(w)
    assert np.allclose(one.b, w @ q.b)
    assert np.allclose(one.A[0], np.einsum("j,jkl->kl", w, q.A))
    assert np.allclose(one.c0, w @ q.c0)
    assert np.allclose(one.predict(np.ones(K)), w @ q.predict(np.ones(K)))
    several = q.combine([w, [1, 0, 0]])
    assert np.allclose(several.b, [w @ q.b, q.b[0]])
    assert several.r2[1] == pytest.approx(q.r2[0])


def test_the_whole_step_is_the_sum_of_its_groups(rng):
    """GeN's a and b from full Hi-DLR's."""
    c0, b, A = model(rng, J=1)
    full = fit(points(lambda X: losses(c0, b, A, X), design("pairs", K)), "full")
    c = design("star", 1)
    whole = fit(points(lambda c: losses(c0, b, A, c * np.ones(K)), c), "scalar")
    assert whole.a[0, 0] == pytest.approx(full.A[0].sum())
    assert whole.b[0, 0] == pytest.approx(full.b[0].sum())


def test_groups_without_coupling_equal_fits_of_one_each(rng):
    c0, b, A = model(rng, J=1, diagonal=True)
    q = fit(points(lambda X: losses(c0, b, A, X), design("star", K)), "diagonal")
    for k in range(K):
        along = np.eye(K)[k]
        alone = fit(points(lambda c, d=along: losses(c0, b, A, c * d), design("star", 1)), "scalar")
        assert alone.b[0, 0] == pytest.approx(q.b[0, k])
        assert alone.a[0, 0] == pytest.approx(q.a[0, k])


def test_argmin_and_value(rng):
    c0, b, A = model(rng, J=2)
    q = fit(points(lambda X: losses(c0, b, A, X), design("pairs", K)), "full")
    w = np.array([1.0, 2.0])
    x = q.argmin(w)
    assert np.allclose(np.einsum("j,jkl->kl", w, A) @ x, w @ b)
    assert np.allclose(q.argmin(), q.argmin([1, 1]))
    best = q.combine([1, 0]).argmin()
    assert q.value()[0] == pytest.approx(q.c0[0] - q.predict(best)[0])
    d = fit(points(lambda X: losses(c0, b, A * np.eye(K), X), design("star", K)))
    assert np.allclose(d.value(), b**2 / (2 * d.a))
    assert np.allclose(d.multiplier(), b / d.a)
    total = d.combine([1, 0])
    assert total.value().sum() == pytest.approx(
        float(total.c0[0] - total.predict(total.argmin())[0])
    )


def test_no_minimum_is_said():
    q = line((-2, -1, 1, 2), (-4, -1, -1, -4))
    with pytest.raises(ValueError, match=r"not positive definite \(lowest eigenvalue -2\)"):
        q.argmin()
    assert q.argmin(box=(-3, 2))[0] == -3
    assert abs(q.argmin(trust=0.5)[0]) == pytest.approx(0.5)
    assert math.isnan(q.value()[0, 0])
    with pytest.raises(ValueError, match="box or trust, not both"):
        q.argmin(box=(0, 1), trust=1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_spoils_itself_alone(rng, bad):
    c0, b, A = model(rng, J=2, diagonal=True)
    p = points(lambda X: losses(c0, b, A, X), design("star", K))
    p.y[3, 0] = bad
    q = fit(p)
    assert np.isnan(q.b[0]).all()
    assert np.isnan(q.a[0]).all()
    assert math.isnan(q.r2[0])
    assert np.allclose(q.b[1], b[1])
    assert not any(v.accepted for v in Policy().judge(q, 0))
    assert "not finite" in Policy().judge(q)[0].reason
    with pytest.raises(ValueError, match="not finite"):
        q.argmin()


def test_too_few_points_are_refused_or_held_by_a_ridge(rng):
    c0, b, A = model(rng, J=1)
    p = points(lambda X: losses(c0, b, A, X), design("central", K))
    with pytest.raises(ValueError, match="determine 8 of the 14 unknowns of a full fit"):
        fit(p, "full")
    held = fit(p, "full", ridge=1e-9)
    assert np.allclose(held.b, b, atol=1e-5)
    assert np.allclose(held.a, np.diagonal(A, axis1=1, axis2=2), atol=1e-5)
    with pytest.raises(ValueError, match="x = 0"):
        fit(Points(p.x[1:], p.y[1:], p.sigma))
    with pytest.raises(ValueError, match="one direction, found 4"):
        fit(p, "scalar")
    with pytest.raises(ValueError, match="unknown fit 'cubic'"):
        fit(p, "cubic")


# -- noise and acceptance ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("intercept", "exact"), [("anchored", False), ("anchored", True), ("free", False)]
)
def test_standard_errors_are_the_spread_over_noisy_repeats(rng, intercept, exact):
    c = np.array([[0.0, -2, -1, 1, 2]]).T
    found = []
    for _ in range(4000):
        noise = 0.1 * rng.normal(size=(5, 1))
        noise[0] *= not exact
        p = Points(c, 0.5 * c**2 - c + noise, np.array([0.1]), exact_start=exact)
        found.append(fit(p, "scalar", intercept))
    spread_b = np.std([q.b[0, 0] for q in found])
    spread_a = np.std([q.a[0, 0] for q in found])
    assert found[0].se_b[0, 0] == pytest.approx(spread_b, rel=0.05)
    assert found[0].se_A[0, 0, 0] == pytest.approx(spread_a, rel=0.05)
    if exact:  # the card: sigma^2 / sum(c^4 / 4)
        assert found[0].se_A[0, 0, 0] == pytest.approx(0.1 / math.sqrt(34 / 4))


C4 = np.array([-2.0, -1, 1, 2])


@pytest.mark.parametrize(
    ("a", "b", "sigma", "cubic", "words"),
    [
        (1.0, 1.0, 0.0, 0.0, ""),
        (-1.0, 1.0, 0.0, 0.0, "curvature is not positive: -1"),
        (0.0, 1.0, 0.0, 0.0, "curvature is not positive"),
        (1.0, -1.0, 0.0, 0.0, "slope is not positive: -1"),
        (1.0, 1.0, 0.5, 0.0, "curvature 1 is within 8 x noise"),
        (1.0, 0.01, 0.01, 0.0, "slope 0.01 is within 8 x noise"),
        (1.0, 1.0, 0.0, 1.5, "no parabola: R2"),
    ],
)
def test_policy(a, b, sigma, cubic, words):
    q = line(C4, 0.5 * a * C4**2 - b * C4 + cubic * C4**3 / 6, sigma)
    q.A[:] = np.round(q.A, 12)
    verdict = Policy().judge(q)[0]
    assert verdict.accepted == (words == "")
    assert words in verdict.reason


def test_without_degrees_of_freedom_r2_is_not_asked():
    assert Policy(least_r2=1.5).judge(line((-1, 1), (3, 0)))[0].accepted
    assert not Policy(least_r2=1.5).judge(line(C4, 0.5 * C4**2 - C4))[0].accepted


def test_each_direction_has_its_verdict():
    b, A = np.array([[1.0, -1.0, 1.0]]), np.diag([1.0, 1.0, -1.0])[None]
    q = fit(points(lambda X: losses(np.zeros(1), b, A, X), design("star", 3)))
    assert [v.accepted for v in Policy().judge(q)] == [True, False, False]
    with pytest.raises(ValueError, match="around 1"):
        Policy(clip=(2.0, 3.0))
