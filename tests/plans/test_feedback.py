"""Accounting for error feedback: the card's numbers, and a bound that an exact attack never passes.

The exact attack: two steps, one number released in each, the sample's coins hidden. Its releases
are a mixture of four Gaussians, so every divergence is an integral over a plane, done on a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import dp_accounting as dpa
import numpy as np
import pytest
from dp_accounting.rdp import rdp_privacy_accountant as rdp

from steelyard.plans.accounting import Event, spent_epsilon
from steelyard.plans.feedback import (
    MODES,
    assumption,
    charges,
    inflation,
    noise_for,
    spent,
    theorem_noise,
)
from steelyard.plans.privacy import plan_privacy

PUBLISHED = {"n": 60_000, "batch": 1024, "steps": 293, "epsilon": 3.0, "delta": 1e-5}
Q = 1024 / 60_000


def test_inflation_is_what_each_mode_says():
    assert inflation("paper", rho=0.0) == 1.0
    assert inflation("paper", rho=10.0) == pytest.approx(math.sqrt(201))
    assert inflation("one-pass", bound=0.5, largest=0.5) == 1.0
    assert inflation("one-pass", bound=0.5, largest=2.0) == pytest.approx(
        math.hypot(0.5, 1.5) / 0.5
    )
    assert inflation("conservative", rho=0.0, expected_batch=10) == 1.0
    assert inflation("conservative", rho=0.5, expected_batch=10) == pytest.approx(math.hypot(1, 10))


def test_the_numbers_of_an_mnist_sized_run():
    """Calibrated 0.823, times sqrt(3) = 1.43; theorem 3.8 as printed 1.87 times sqrt(3) = 3.24."""
    sigma = noise_for("paper", rho=1.0, **PUBLISHED)
    assert sigma == pytest.approx(0.823, abs=1e-3)
    assert sigma * inflation("paper", rho=1.0) == pytest.approx(1.43, abs=5e-3)
    assert theorem_noise(rho=0.0, **PUBLISHED) == pytest.approx(1.87, abs=5e-3)
    assert theorem_noise(rho=1.0, **PUBLISHED) == pytest.approx(3.24, abs=5e-3)


def test_paper_without_feedback_is_dp_sgd():
    event = Event(sampling_probability=Q, noise_multiplier=0.9, steps=293)
    truth = spent_epsilon([event], 1e-5)
    drawn = 0.9
    for rho in (0.0, 1.0, 3.0):
        accounted = drawn / inflation("paper", rho=rho)
        found = spent("paper", accounted, sampling_probability=Q, steps=293, delta=1e-5, rho=rho)
        assert found == truth if rho == 0 else found > 1.5 * truth
    assert noise_for("paper", rho=0.0, **PUBLISHED) == plan_privacy(**PUBLISHED).noise_multiplier


def test_one_pass_is_one_gaussian_of_the_whole_pass():
    for steps in (1, 30, 59):
        found = spent("one-pass", 1.4, sampling_probability=Q, steps=steps, delta=1e-5)
        assert found == pytest.approx(dpa.get_epsilon_gaussian(1.4, 1e-5))
    sigma = noise_for("one-pass", n=60_000, batch=1024, epsilon=3.0, delta=1e-5)
    assert 2.97 < dpa.get_epsilon_gaussian(sigma, 1e-5) <= 3.0
    paid = [charges("one-pass", 1.4, sampling_probability=Q, step=t) for t in range(59)]
    assert paid == [[(1.4, 1.0)], *[[]] * 58]


def test_one_pass_is_refused_past_one_pass():
    with pytest.raises(ValueError, match="59 steps"):
        charges("one-pass", 1.0, sampling_probability=Q, step=59)
    with pytest.raises(ValueError, match="59 steps"):
        spent("one-pass", 1.0, sampling_probability=Q, steps=60, delta=1e-5)
    with pytest.raises(ValueError, match="59 steps"):
        noise_for("one-pass", **PUBLISHED)


# -- conservative ------------------------------------------------------------------------------


@pytest.mark.parametrize(("rho", "B", "q", "sigma"), [(1.0, 20, 0.1, 15.0), (1e-3, 20, 0.1, 1.2)])
def test_conservative_pays_for_two_releases_that_make_up_the_noise(rho, B, q, sigma):
    (a, p), (b, one) = charges(
        "conservative", sigma, sampling_probability=q, rho=rho, expected_batch=B
    )
    assert (p, one) == (q, 1.0)
    drawn = sigma * inflation("conservative", rho=rho, expected_batch=B)
    assert math.hypot(a, b * 2 * B * rho) == pytest.approx(drawn)


@pytest.mark.parametrize("rho", [1.0, 1e-3])
def test_conservative_is_the_formula_of_renyi_divergences(rho):
    """min over orders of T [RDP_subsampled(q, s_a) + order (2 B R2)^2 / (2 s_b^2)] + conversion."""
    q, B, T, delta = 0.1, 20, 40, 1e-5
    orders = [2.0, *range(3, 65), 128.0, 256.0, *[k / 10 for k in range(11, 110) if k % 10]]
    (a, _), (b, _) = charges("conservative", 9.0, sampling_probability=q, rho=rho, expected_batch=B)
    event = dpa.PoissonSampledDpEvent(q, dpa.GaussianDpEvent(a))
    accountant = rdp.RdpAccountant(orders)
    accountant.compose(event, T)
    accountant._rdp += T * np.array(orders) / (2 * b**2)
    found = spent(
        "conservative", 9.0, sampling_probability=q, steps=T, delta=delta, rho=rho,
        expected_batch=B, accountant="rdp",
    )  # fmt: skip
    assert found == pytest.approx(accountant.get_epsilon(delta), rel=1e-6)


@pytest.mark.parametrize(
    ("rho", "sigma", "steps"),
    [(1.0, 17.0, 1), (1.0, 17.0, 300), (1e-3, 1.0, 300), (1e-4, 0.8, 300)],
)
def test_the_split_is_close_to_the_best_one(rho, sigma, steps):
    q, B = Q, 1024
    total = sigma * inflation("conservative", rho=rho, expected_batch=B)

    def epsilon(share: float) -> float:
        paid = [(math.sqrt(share) * total, q), (math.sqrt(1 - share) * total / (2 * B * rho), 1.0)]
        events = [Event(sampling_probability=p, noise_multiplier=s, steps=steps) for s, p in paid]
        return spent_epsilon(events, 1e-5, "rdp")

    best = min(epsilon(1 / (1 + math.exp(-x))) for x in np.linspace(-12, 4, 17))
    found = spent(
        "conservative", sigma, sampling_probability=q, steps=steps, delta=1e-5, rho=rho,
        expected_batch=B, accountant="rdp",
    )  # fmt: skip
    assert found <= 1.05 * best


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_conservative_noise_spends_the_budget_and_is_practically_useless(accountant):
    setting = {"n": 2000, "batch": 50, "steps": 40, "epsilon": 3.0, "delta": 1e-5}
    sigma = noise_for("conservative", rho=1.0, accountant=accountant, **setting)
    found = spent(
        "conservative", sigma, sampling_probability=50 / 2000, steps=40, delta=1e-5, rho=1.0,
        expected_batch=50, accountant=accountant,
    )  # fmt: skip
    assert 2.97 < found <= 3.0
    drawn = sigma * inflation("conservative", rho=1.0, expected_batch=50)
    assert drawn > 500 * noise_for("paper", rho=1.0, accountant=accountant, **setting)


Strategy = Callable[[np.ndarray, int], float | np.ndarray]  # (first release, first coin) -> shift
STRATEGIES: dict[str, Strategy] = {
    "always the largest shift": lambda y, coin: np.ones_like(y),
    "says whether the sample was drawn": lambda y, coin: np.full_like(y, float(coin)),
    "opposite signs": lambda y, coin: np.full_like(y, 2.0 * coin - 1.0),
    "adapts to the release": lambda y, coin: np.where(y > 0.5, 1.0, -1.0) * (2 * coin - 1),
}


def releases(strategy: Strategy, q: float, D: float, s: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of every cell of the plane, with and without the sample; R1 = 1."""
    axis = np.linspace(-12 * s, 12 * s + 4, 601)
    one, two = np.meshgrid(axis, axis, indexing="ij")
    area = (axis[1] - axis[0]) ** 2

    def log_density(mean: float | np.ndarray, x: np.ndarray) -> np.ndarray:
        return -((x - mean) ** 2) / (2 * s**2) - math.log(s * math.sqrt(2 * math.pi))

    without = log_density(0.0, one) + log_density(0.0, two)
    drawn = np.logaddexp.reduce(
        [
            math.log(q if a else 1 - q)
            + math.log(q if b else 1 - q)
            + log_density(a, one)
            + log_density(b + D * strategy(one, a), two)
            for a in (0, 1)
            for b in (0, 1)
        ]
    )
    return drawn + math.log(area), without + math.log(area)


def paid_for(q: float, D: float, s: float) -> list[tuple[float, float, int]]:
    """(noise, q, times) charged for the two steps; the full release once, since at first nothing
    is fed back. B = 1, so that D = 2 B R2 is 2 rho."""
    sigma = s / inflation("conservative", rho=D / 2, expected_batch=1)
    paid = charges("conservative", sigma, sampling_probability=q, rho=D / 2, expected_batch=1)
    return [(*one, times) for one, times in zip(paid, (2, 1), strict=False)]


def renyi(paid: list[tuple[float, float, int]], order: float) -> float:
    accountant = rdp.RdpAccountant([order])
    for noise, p, times in paid:
        accountant.compose(dpa.PoissonSampledDpEvent(p, dpa.GaussianDpEvent(noise)), times)
    return float(accountant._rdp[0])


@pytest.mark.parametrize("order", [2.0, 3.5, 6.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_exact_attack_passes_conservative_and_some_pass_dp_sgd(strategy, order):
    """Renyi divergences, in both directions."""
    q, s, passed = 0.2, 1.5, False
    for D in (0.1, 1.0, 2.0):
        one, two = releases(STRATEGIES[strategy], q, D, s)
        found = max(
            math.log(np.exp(order * p + (1 - order) * r).sum()) / (order - 1)
            for p, r in ((one, two), (two, one))
        )
        assert found <= renyi(paid_for(q, D, s), order) * (1 + 1e-6)
        passed |= found > renyi(paid_for(q, 0.0, s), order) * 1.01
    assert passed  # DP-SGD's account, which forgets the state, is no bound


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_exact_attack_passes_conservative_by_privacy_loss_distributions(strategy):
    """The exact delta at an epsilon: the accountant must not find less than that epsilon for it."""
    q, s, passed = 0.2, 1.5, False
    for D in (0.1, 1.0, 2.0):
        one, two = (np.exp(log) for log in releases(STRATEGIES[strategy], q, D, s))
        for epsilon in (0.2, 1.0, 2.0):
            pairs = ((one, two), (two, one))
            delta = max((p - math.exp(epsilon) * r).clip(0).sum() for p, r in pairs)

            def found(D: float, delta: float = float(delta)) -> float:
                events = [
                    Event(noise_multiplier=noise, sampling_probability=p, steps=times)
                    for noise, p, times in paid_for(q, D, s)
                ]
                return spent_epsilon(events, delta)

            assert found(D) >= epsilon * (1 - 1e-3)
            passed |= found(0.0) < epsilon * 0.99
    assert passed


# -- words and errors ---------------------------------------------------------------------------


def test_every_mode_says_what_it_assumes():
    said = [assumption(mode) for mode in MODES]
    assert len(set(said)) == len(MODES)
    assert "relies on the assumptions of Theorem 3.8" in assumption("paper")
    assert all(text.endswith(".") and "\n" not in text for text in said)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: inflation("dp-sgd"), "paper, one-pass, conservative"),
        (lambda: assumption("none"), "paper, one-pass, conservative"),
        (lambda: charges("no", 1.0, sampling_probability=0.1), "paper, one-pass"),
        (lambda: inflation("paper", rho=math.inf), "finite"),
        (lambda: inflation("paper", rho=-1.0), "0 or positive"),
        (lambda: inflation("one-pass", bound=1.0), "g_max"),
        (lambda: inflation("one-pass", bound=1.0, largest=math.inf), "g_max"),
        (lambda: inflation("one-pass", bound=1.0, largest=0.5), "at least the bound"),
        (lambda: inflation("conservative", rho=1.0), "B in samples"),
        (lambda: noise_for("conservative", n=100, batch=200, epsilon=1.0), "at most 100"),
    ],
)
def test_errors_are_one_line_and_say_what_to_do(call, match):
    with pytest.raises(ValueError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
