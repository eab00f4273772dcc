"""Solve epsilon(sigma, T) = target for the noise multiplier sigma, or for the number of steps T.

Starting points come from the central limit theorem of Bu, Dong, Long, Su 2020 (arXiv 1911.11607,
corollary 4): mu = q sqrt(T (exp(1/sigma^2) - 1)), the mu of one Gaussian of noise 1/mu. From there
a bracketed secant in logarithms, because one good epsilon costs tenths of a second.
"""

from __future__ import annotations

import math
from dataclasses import replace

from steelyard.plans.accounting import (
    LARGEST_NOISE,
    MAX_STEPS,
    Event,
    spent_epsilon,
    steps_per_pass,
)
from steelyard.plans.checks import real

SMALLEST_PLANNED = 1e-3


def calibrate(event: Event, epsilon: float, delta: float, accountant: str = "pld") -> float:
    """sigma such that `event` at that noise spends in (epsilon - 0.01, epsilon], within 1 % of it.

    Guarantees: never above `epsilon`; less than the interval only where epsilon jumps past it or
    sigma = 0.001 spends less. Raises ValueError where no sigma up to 10^9 is enough (RDP has a
    floor near 0.01).
    """
    target = real("epsilon", epsilon, above=0.0, fix="use a budget such as 3")
    window = min(0.01, target / 100)
    aim = target - window / 2
    floor, ceiling = math.log(SMALLEST_PLANNED), math.log(LARGEST_NOISE)
    bracket, enough = _Bracket(), math.inf
    x = min(max(math.log(_clt_noise(target, delta, event)), floor), ceiling)
    while True:
        spent = spent_epsilon([replace(event, noise_multiplier=math.exp(x))], delta, accountant)
        if target - window < spent <= target or (spent <= target and x <= floor):
            return math.exp(x)
        if spent > target and x >= ceiling:
            hint = "raise epsilon or delta" + ", or use accountant 'pld'" * (accountant != "pld")
            raise ValueError(f"no noise is enough for epsilon {target:g} by {accountant}: {hint}")
        enough = min(enough, x) if spent <= target else enough
        y = _log_ratio(spent, aim)
        root = bracket.add(x, y)
        if bracket.width() < 1e-9:
            return math.exp(enough)
        step = math.copysign(min(max(abs(y), 0.01), 2.0), y)  # falls at least like 1/sigma
        x = min(max(x + step, floor), ceiling) if root is None else root


def max_steps(
    *,
    sampling_probability: float,
    noise_multiplier: float,
    epsilon: float,
    delta: float,
    accountant: str = "pld",
    sampling: str = "poisson",
) -> int:
    """Largest T with spent_epsilon(T steps at (q, sigma)) <= epsilon; 0 if not even one step.

    At most 10^8, which stands for no limit. Raises ValueError as `Event` and `spent_epsilon`.
    """
    target = real("epsilon", epsilon, above=0.0, fix="use a budget such as 3")
    event = Event(
        sampling_probability=sampling_probability,
        noise_multiplier=noise_multiplier,
        steps=1,
        sampling=sampling,
    )
    if spent_epsilon([event], delta, accountant) > target:
        return 0
    allowed, refused = 1, MAX_STEPS + 1
    bracket, stride = _Bracket(), 0.1
    x = math.log(_clt_steps(target, delta, event))
    while refused - allowed > 1:
        steps = min(max(math.floor(math.exp(x)), allowed + 1), refused - 1)
        y = _log_ratio(spent_epsilon([replace(event, steps=steps)], delta, accountant), target)
        allowed, refused = (steps, refused) if y <= 0 else (allowed, steps)
        sign = -1.0 if y <= 0 else 1.0
        stride = min(max(2 * abs(y), 2 * stride), 4.0)  # grows at least like the root of T
        root = bracket.add(math.log(steps), sign * max(abs(y), 1e-6))
        x = math.log(steps) - sign * stride if root is None else root
    return allowed


def _log_ratio(spent: float, aim: float) -> float:
    return math.log(min(max(spent / aim, 1e-6), 1e6))


def _clt_noise(epsilon: float, delta: float, event: Event) -> float:
    """sigma by the central limit theorem: exact for Gaussians, else a first guess."""
    from dp_accounting import get_sigma_gaussian

    per_mu, q, T = get_sigma_gaussian(epsilon, delta), event.sampling_probability, event.steps
    if event.sampling == "unamplified":
        return per_mu * math.sqrt(-(-T // steps_per_pass(q)))
    return per_mu * math.sqrt(T) if q == 1.0 else math.log1p(1 / (per_mu * q) ** 2 / T) ** -0.5


def _clt_steps(epsilon: float, delta: float, event: Event) -> float:
    """T by the central limit theorem, a first guess in [1, 10^8]."""
    from dp_accounting import get_sigma_gaussian

    mu, q = 1 / get_sigma_gaussian(epsilon, delta), event.sampling_probability
    sigma = event.noise_multiplier
    if event.sampling == "unamplified":
        T = (mu * sigma) ** 2 * steps_per_pass(q)
    else:
        T = (mu * sigma) ** 2 if q == 1.0 else (mu / q) ** 2 / math.expm1(min(sigma**-2, 700.0))
    return min(max(1.0, T), MAX_STEPS)


class _Bracket:
    """A sign change of a monotone function, narrowed by regula falsi (Illinois variant)."""

    def __init__(self) -> None:
        self._ends: dict[bool, tuple[float, float]] = {}  # is y > 0: (x, y)
        self._last: bool | None = None

    def add(self, x: float, y: float) -> float | None:
        """The next x to try; None until both signs were seen."""
        positive = y > 0
        other = self._ends.get(not positive)
        if other and positive == self._last:
            other = self._ends[not positive] = (other[0], other[1] / 2)
        self._ends[positive], self._last = (x, y), positive
        return None if other is None else x + (other[0] - x) * y / (y - other[1])

    def width(self) -> float:
        """Distance of the two ends; inf until both are known."""
        xs = [x for x, _ in self._ends.values()]
        return abs(xs[0] - xs[1]) if len(xs) == 2 else math.inf
