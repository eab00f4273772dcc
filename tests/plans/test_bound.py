"""The bound against its double loop, closed forms, and subgradient descent itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steelyard.plans.bound import (
    LONGEST,
    any_iterate,
    averaged_iterate,
    constants,
    features,
    schedule_exam,
)
from steelyard.plans.schedule_shapes import KINDS, Shape, parse_shape


def by_hand(eta, tau, D=1.0, G=1.0):
    """(2.4) as printed: every sum anew, 1-based."""

    def total(k):
        return sum(eta[t - 1] for t in range(k, tau + 1))

    def squares(k):
        return sum(eta[t - 1] ** 2 for t in range(k, tau + 1))

    value = D**2 / (2 * total(1)) + G**2 * squares(1) / (2 * total(1))
    for k in range(1, tau):
        value += G**2 / 2 * (eta[k - 1] / total(k + 1)) * (squares(k) / total(k))
    return value


@pytest.mark.parametrize("kind", KINDS)
def test_every_iterate_equals_the_double_loop(kind):
    eta = 0.3 * parse_shape(kind, 0.1)(50)
    found = any_iterate(eta, range(1, 51), floor=0.5, distance=2.0, gradient=3.0)
    expected = [0.5 + by_hand(eta, tau, 2.0, 3.0) for tau in range(1, 51)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_random_rates_equal_the_double_loop():
    eta = np.random.default_rng(0).uniform(0.01, 1, 50)
    taus = [1, 2, 7, 50, 50, 3]  # any order, repetitions
    assert any_iterate(eta, taus) == pytest.approx([by_hand(eta, t) for t in taus], rel=1e-12)


@pytest.mark.parametrize("T", [1, 2, 10, 1000])
def test_constant_rate_in_closed_form(T):
    eta, D, G = 0.07, 1.5, 0.4
    harmonic = sum(1 / n for n in range(1, T))
    expected = D**2 / (2 * T * eta) + eta * G**2 / 2 * (1 + harmonic)
    (found,) = any_iterate(np.full(T, eta), distance=D, gradient=G)
    assert found == pytest.approx(expected, rel=1e-12)


def test_constants_of_table_1():
    """To three digits at T = 10,000."""
    T, c = 10_000, 0.8
    expected = {
        "linear": (1, 1),
        "cosine": (1, 1.061),
        f"wsd:{c}": (1 / (1 + c), 1 + 0.5 * math.log((1 + c) / (1 - c))),
        "constant": (0.5, 0.5 * (math.log(T) + 1 + np.euler_gamma)),
    }
    for kind, (q1, q2) in expected.items():
        found = constants(parse_shape(kind), T)
        assert found.q1_squared == pytest.approx(q1, rel=2e-3), kind
        assert found.q2_squared == pytest.approx(q2, rel=2e-3), kind
    root = constants(Shape(kind="inverse-sqrt"), T)
    assert root.q1_squared / T == pytest.approx(1 / (4 * math.sqrt(T)), rel=0.01)


def test_the_rates_scale_trades_distance_for_gradient():
    eta = Shape(kind="cosine", warmup=0.05)(200)
    for k in (0.01, 3.0, 1e4):
        scaled = any_iterate(k * eta, [50, 200], distance=2.0, gradient=3.0)
        other = any_iterate(
            eta, [50, 200], distance=2.0 / math.sqrt(k), gradient=3.0 * math.sqrt(k)
        )
        assert scaled == pytest.approx(other, rel=1e-12)


def test_zero_rates():
    eta = Shape(kind="linear")(40)
    padded = np.concatenate([[0.0, 0.0], eta, np.zeros(5)])
    assert np.array(features(padded)) == pytest.approx(np.array(features(eta)), rel=1e-12)
    assert np.isfinite(features(padded, [43, 45, 47])).all()
    x1, x2 = features(padded, [0, 1, 2])  # nothing has moved yet
    assert np.isinf(x1).all()
    assert (x2 == 0).all()
    holes = np.array([0.2, 0.0, 0.1, 0.0, 0.3])
    (found,) = any_iterate(holes)
    assert found == pytest.approx(by_hand(holes, 5))


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd", "constant", "cyclic"])
def test_subgradient_descent_stays_below(kind):
    """f(w) = G |w - w*|, convex and G-Lipschitz; every iterate of every peak."""
    G, D, T = 2.0, 3.0, 300
    tightest = math.inf
    for peak in (0.003, 0.03, 0.3):
        eta = peak * Shape(kind=kind, warmup=0.02)(T)
        w, losses = D, []
        for rate in eta:
            w -= rate * G * np.sign(w)
            losses.append(G * abs(w))
        bound = any_iterate(eta, range(1, T + 1), distance=D, gradient=G)
        assert (np.array(losses) <= bound + 1e-12).all()
        averaged = averaged_iterate(eta, distance=D, gradient=G)
        assert averaged <= bound[-1]
        tightest = min(tightest, float((bound / np.maximum(losses, 1e-9)).min()))
    assert tightest < 3  # it says something about these losses


def test_the_averaged_iterate_is_the_bound_without_the_sum():
    eta = np.array([0.1, 0.4, 0.2])
    expected = 0.5 + (4 + 9 * 0.21) / (2 * 0.7)
    assert averaged_iterate(eta, floor=0.5, distance=2, gradient=3) == pytest.approx(expected)


def test_exam():
    for kind in ("linear", "cosine", "wsd", "cyclic"):
        exam = schedule_exam(Shape(kind=kind, warmup=0.02))
        assert exam.qualified
        assert exam.slope == pytest.approx(-0.5, abs=0.01)
    for kind in ("constant", "inverse-sqrt"):
        exam = schedule_exam(Shape(kind=kind))
        assert not exam.qualified
        # 2 q1 q2 grows like sqrt(ln T), up to the constants beside the logarithm
        assert 1.15 < exam.growth < math.sqrt(math.log(1e5) / math.log(1e3))
    assert not schedule_exam(lambda T: np.minimum(1, np.arange(1, T + 1) / T)).qualified


def test_a_long_horizon_loses_no_digits():
    """The last rates of a cosine are 1e-12 of its sum: sums from the front would lose them."""
    T = 100_000
    found = constants(Shape(kind="cosine"), T)
    reference = Shape(kind="cosine")(T).astype(np.longdouble)
    S = np.cumsum(reference[::-1])[::-1]
    V = np.cumsum(reference[::-1] ** 2)[::-1]
    x2 = V[0] / (2 * S[0]) + (reference[:-1] / S[1:] * V[:-1] / S[:-1]).sum() / 2
    assert found.q2_squared == pytest.approx(float(x2), rel=1e-10)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: features([0.1, -0.1]), "negative"),
        (lambda: features([]), "shape"),
        (lambda: features([0.1, math.nan]), "not finite"),
        (lambda: features([0.1], [2]), "from 0 to 1"),
        (lambda: averaged_iterate([0.0, 0.0]), "nothing moves"),
        (lambda: constants(lambda T: np.zeros(T), 5), "nothing moves"),
        (lambda: constants(Shape(kind="linear"), LONGEST + 1), "past the"),
        (lambda: schedule_exam(Shape(kind="linear"), (100, 200)), "factor of 10"),
    ],
)
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
