from __future__ import annotations

import pytest

from steelyard.plans import calibration
from steelyard.plans.accounting import Event, spent_epsilon
from steelyard.plans.calibration import calibrate, max_steps


def event(q: float, steps: int, sampling: str = "poisson", sigma: float = 0.0) -> Event:
    return Event(sampling_probability=q, noise_multiplier=sigma, steps=steps, sampling=sampling)


def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every epsilon that the solver asks for, as it goes."""
    seen: list[float] = []

    def counted(*args):
        seen.append(spent_epsilon(*args))
        return seen[-1]

    monkeypatch.setattr(calibration, "spent_epsilon", counted)
    return seen


@pytest.mark.parametrize(
    ("epsilon", "rdp", "pld"), [(1.0, 1.483, 1.380), (3.0, 0.882, 0.823), (8.0, 0.617, 0.582)]
)
def test_table_of_sixty_thousand_samples(epsilon, rdp, pld):
    """n = 60000, B = 1024, T = 293, delta = 1e-5; the window of 1 % moves sigma by under 0.6 %."""
    at = event(1024 / 60_000, 293)
    assert calibrate(at, epsilon, 1e-5, "pld") == pytest.approx(pld, rel=6e-3)
    assert calibrate(at, epsilon, 1e-5, "rdp") == pytest.approx(rdp, rel=6e-3)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize(
    ("q", "steps", "epsilon", "delta", "sampling"),
    [
        (1e-3, 10_000, 1.25, 1e-5, "poisson"),
        (0.1, 200, 0.05, 1e-9, "poisson"),
        (0.02, 300, 20.0, 1e-9, "poisson"),
        (0.5, 1, 0.05, 1e-5, "poisson"),
        (0.5, 1, 20.0, 1e-5, "poisson"),
        (1.0, 1, 20.0, 1e-9, "poisson"),
        (1.0, 1000, 0.05, 1e-9, "poisson"),
        (0.01, 450, 8.0, 1e-6, "unamplified"),
    ],
)
def test_lands_in_the_window(q, steps, epsilon, delta, sampling, accountant):
    sigma = calibrate(event(q, steps, sampling), epsilon, delta, accountant)
    spent = spent_epsilon([event(q, steps, sampling, sigma)], delta, accountant)
    assert epsilon - 0.01 < spent <= epsilon
    assert spent > 0.99 * epsilon


@pytest.mark.parametrize(("q", "epsilon"), [(1e-3, 1.25), (1e-4, 8.0)])
def test_ten_thousand_steps_take_few_evaluations(q, epsilon, monkeypatch):
    seen = evaluations(monkeypatch)
    calibrate(event(q, 10_000), epsilon, 1e-5)
    assert 1 < len(seen) <= 10


def test_jumps_past_the_window_land_on_the_private_side(monkeypatch):
    monkeypatch.setattr(
        calibration,
        "spent_epsilon",
        lambda events, delta, accountant: 5.0 if events[0].noise_multiplier < 2.0 else 0.5,
    )
    assert calibrate(event(0.1, 10), 1.0, 1e-5) == pytest.approx(2.0)
    assert calibrate(event(0.1, 10), 1.0, 1e-5) >= 2.0


def test_noise_has_a_floor_and_a_ceiling():
    at = event(1e-6, 1)  # delta = 1e-5 exceeds the chance of ever being seen
    assert calibrate(at, 1.0, 1e-5) == pytest.approx(calibration.SMALLEST_PLANNED)
    with pytest.raises(ValueError, match=r"0\.001 by rdp: .*accountant 'pld'"):
        calibrate(event(0.1, 100), 1e-3, 1e-9, "rdp")


@pytest.mark.parametrize(
    ("q", "sigma", "epsilon", "sampling", "accountant"),
    [
        (0.02, 1.0, 3.0, "poisson", "pld"),
        (0.02, 1.0, 3.0, "poisson", "rdp"),
        (1.0, 50.0, 3.0, "poisson", "pld"),
        (0.1, 5.0, 3.0, "unamplified", "pld"),
    ],
)
def test_max_steps_is_the_last_that_fits(q, sigma, epsilon, sampling, accountant):
    found = max_steps(
        sampling_probability=q,
        noise_multiplier=sigma,
        epsilon=epsilon,
        delta=1e-5,
        accountant=accountant,
        sampling=sampling,
    )

    def spent(steps: int) -> float:
        return spent_epsilon([event(q, steps, sampling, sigma)], 1e-5, accountant)

    assert spent(found) <= epsilon < spent(found + 1)


def test_max_steps_at_the_ends(monkeypatch):
    def steps(sigma: float, epsilon: float = 3.0) -> int:
        return max_steps(
            sampling_probability=0.01, noise_multiplier=sigma, epsilon=epsilon, delta=1e-5
        )

    assert steps(0.0) == steps(0.1) == 0
    assert steps(1e6) == calibration.MAX_STEPS
    exact = spent_epsilon([event(0.01, 500, sigma=1.0)], 1e-5)
    seen = evaluations(monkeypatch)
    assert steps(1.0, exact) == 500
    assert len(seen) <= 20
