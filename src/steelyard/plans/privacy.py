"""Plan a private run before paying for it: noise for a budget, budget for a noise.

    q = B/n,   (q, sigma, T, delta) -> epsilon      (`accounting`),   solved for sigma or for T

n = private samples, B = expected batch (the constant divisor), T = steps, sigma = noise_multiplier.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

from steelyard.plans.accounting import (
    ACCOUNTANTS,
    SAMPLINGS,
    Event,
    spent_epsilon,
    steps_per_pass,
)
from steelyard.plans.calibration import calibrate, max_steps
from steelyard.plans.checks import chosen, fraction, real, whole

__all__ = ["Event", "PrivacyPlan", "max_steps", "plan_privacy", "spent_epsilon", "table"]


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """What a private run may do: T steps at (q = B/n, sigma) are (epsilon, delta)-private.

    `epsilon` is what `accountant` finds for all steps (inf for sigma = 0); `target_epsilon` is
    the budget, None for no limit. Neighbours differ by adding or removing one sample.
    Raises ValueError (one line) for fields outside their range.
    """

    n: int
    expected_batch: float
    steps: int
    delta: float
    noise_multiplier: float
    epsilon: float
    target_epsilon: float | None
    accountant: str = "pld"
    sampling: str = "poisson"

    def __post_init__(self) -> None:
        whole("n", self.n, least=1, fix="give the number of private training samples")
        _batch(self.expected_batch, self.n)
        whole("steps", self.steps, least=1, fix="plan at least one step")
        fraction("delta", self.delta, fix="use a number well below 1/n")
        self._event(self.steps)
        if self.epsilon != math.inf and real("epsilon", self.epsilon, fix="use 0 or more") < 0:
            raise ValueError(f"epsilon must not be negative, found {self.epsilon}: use 0 or more")
        if self.target_epsilon is not None:
            real("target epsilon", self.target_epsilon, above=0.0, fix="use None for no limit")
        chosen("accountant", self.accountant, ACCOUNTANTS)

    @property
    def sampling_probability(self) -> float:
        """q = B/n."""
        return self.expected_batch / self.n

    def _event(self, steps: int) -> Event:
        return Event(
            sampling_probability=self.sampling_probability,
            noise_multiplier=self.noise_multiplier,
            steps=steps,
            sampling=self.sampling,
        )

    def curve(self, points: int = 12) -> list[tuple[int, float]]:
        """(step, epsilon spent by then) at up to `points` steps, the last one `steps`.

        Quadratically spaced, since epsilon grows like the root of the steps. About a tenth of
        a second a point at the first call, then cached.
        """
        return list(_curve(self, whole("points", points, least=1, fix="ask for 12, say")))

    def spent(self, step: int) -> float:
        """Upper bound on the epsilon of the first `step` steps, cheap enough for a display.

        It is the value at the next point of `curve()`; past the plan, at the next multiple of
        an eighth of the planned steps.
        """
        if whole("step", step, least=0, fix="count from 0") == 0:
            return 0.0
        curve = _curve(self, 12)
        if step <= self.steps:
            return curve[bisect_left(curve, (step, -math.inf))][1]
        eighth = -(-self.steps // 8)
        return spent_epsilon(
            [self._event(-(-step // eighth) * eighth)], self.delta, self.accountant
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite epsilon is written as None."""
        return asdict(self) | {"epsilon": self.epsilon if self.epsilon < math.inf else None}

    @classmethod
    def from_dict(cls, d: Mapping[str, object]) -> PrivacyPlan:
        """Inverse of `to_dict`, exact. Nothing is recomputed. ValueError if `d` is malformed."""
        if not isinstance(d, Mapping):
            raise ValueError(f"a privacy plan must be a JSON object, found {type(d).__name__}")
        if wrong := {f.name for f in fields(cls)} ^ d.keys():
            raise ValueError(f"not a privacy plan: missing or unknown fields {sorted(wrong)}")
        epsilon = math.inf if d["epsilon"] is None else d["epsilon"]
        return cls(**{**d, "epsilon": epsilon})  # pyright: ignore[reportArgumentType]


@lru_cache(maxsize=64)
def _curve(plan: PrivacyPlan, points: int) -> tuple[tuple[int, float], ...]:
    grid = sorted({math.ceil(plan.steps * (i / points) ** 2) for i in range(1, points + 1)})
    spend = (spent_epsilon([plan._event(t)], plan.delta, plan.accountant) for t in grid)
    return tuple(zip(grid, spend, strict=True))


def plan_privacy(
    *,
    n: int,
    batch: float,
    steps: int | None = None,
    epochs: float | None = None,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    delta: float | None = None,
    accountant: str = "pld",
    sampling: str = "poisson",
) -> PrivacyPlan:
    """(n, B, steps or epochs, epsilon or sigma, delta) -> the plan, with the other one computed.

    Shapes and units: `batch` is the expected batch B in samples, 0 < B <= n; `epochs` means
    T = ceil(epochs n / B) steps (unamplified: ceil(epochs ceil(n / B))); delta None means
    min(1e-5, 1/(10 n)).
    Guarantees: given `epsilon`, the plan's epsilon lies in (target - 0.01, target], and within
    1 % of it; below that only where no sigma >= 0.001 spends as much. Given `noise_multiplier`
    there is no target, hence no limit. Deterministic; cached by inputs.
    Raises: ValueError (one line) for any input outside its range; warns if delta >= 1/n.
    """
    n = whole("n", n, least=1, fix="give the number of private training samples")
    q = _batch(batch, n) / n
    chosen("sampling", sampling, SAMPLINGS)
    chosen("accountant", accountant, ACCOUNTANTS)
    if (steps is None) == (epochs is None):
        raise ValueError(f"give steps or epochs, one of them; found {steps} and {epochs}")
    if (epsilon is None) == (noise_multiplier is None):
        found = f"{epsilon} and {noise_multiplier}"
        raise ValueError(f"give epsilon or noise_multiplier, one of them; found {found}")
    if steps is None:
        passes = real("epochs", epochs, above=0.0, fix="give the number of passes, such as 5")
        one_pass = steps_per_pass(q) if sampling == "unamplified" else n / batch
        steps = max(1, math.ceil(passes * one_pass - 1e-9))
    steps = whole("steps", steps, least=1, fix="plan at least one step")
    if delta is None:
        delta = min(1e-5, 0.1 / n)
    delta = fraction("delta", delta, fix="use a number well below 1/n, such as 1e-5")
    if delta >= 1 / n:
        message = f"delta {delta:g} is not below 1/n = {1 / n:g}: one sample may leak entirely"
        warnings.warn(message, stacklevel=2)

    event = Event(sampling_probability=q, noise_multiplier=0.0, steps=steps, sampling=sampling)
    if noise_multiplier is None:
        epsilon = real("epsilon", epsilon, above=0.0, fix="use a budget such as 3")
        noise_multiplier = calibrate(event, epsilon, delta, accountant)
    event = replace(event, noise_multiplier=noise_multiplier)
    return PrivacyPlan(
        n=n,
        expected_batch=float(batch),
        steps=steps,
        delta=delta,
        noise_multiplier=float(noise_multiplier),
        epsilon=spent_epsilon([event], delta, accountant),
        target_epsilon=epsilon,
        accountant=accountant,
        sampling=sampling,
    )


def table(plans: Sequence[PrivacyPlan]) -> list[dict[str, float | str]]:
    """One row of plain values per plan, for printing side by side."""
    return [
        {
            "target epsilon": math.nan if plan.target_epsilon is None else plan.target_epsilon,
            "epsilon": plan.epsilon,
            "delta": plan.delta,
            "noise multiplier": plan.noise_multiplier,
            "sampling probability": plan.sampling_probability,
            "steps": plan.steps,
            "accountant": plan.accountant,
            "sampling": plan.sampling,
        }
        for plan in plans
    ]


def _batch(batch: float, n: int) -> float:
    batch = real("batch", batch, above=0.0, fix="give the expected batch in samples")
    if batch > n:
        raise ValueError(
            f"batch {batch:g} is larger than the {n} training samples: use at most {n}"
        )
    return batch
