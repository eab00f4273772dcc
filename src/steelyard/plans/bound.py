"""The loss of any iterate of SGD on a convex function, for an arbitrary schedule.

Bu, Xu, Mao, "Convex Dominance in Deep Learning I: A Scaling Law of Loss and Learning Rate", ICLR
2026, arXiv 2602.07145, section 2; the bound is Corollary 12 of Defazio et al. 2023, arXiv
2310.07831.

| symbol | here |
|---|---|
| T; tau | steps of a run, `len(lr)`; the step at which the loss is bounded, 1..T |
| eta_t = eta_peak s_t | `lr[t - 1]`, the rate of the step from w_{t-1} to w_t |
| L*, D, G | `floor`, `distance` of w_0 to a minimiser, `gradient`: E of its squared norm <= G^2 |
| S_k, V_k | sums from k to tau of eta_t and of eta_t^2 |
| x1, x2 | what D^2 and G^2 are multiplied by: `features` |
| q1, q2 | `Constants`: D = G = 1, eta_peak = 1 |

    (2.4)  E L(w_tau) <= L* + D^2 x1(tau) + G^2 x2(tau)
           x1 = 1/(2 S_1)
           x2 = V_1/(2 S_1) + 1/2 sum_{k=1}^{tau-1} [eta_k / S_{k+1}] [V_k / S_k]
    (2.3)  averaged iterate: the same without the sum
    (2.5)  last iterate, eta = eta_peak s:   L* + q1^2/(T eta_peak) + eta_peak q2^2
           best eta_peak = q1/(q2 sqrt(T)),  best bound L* + 2 q1 q2/sqrt(T)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from steelyard.plans.checks import whole
from steelyard.plans.schedule_shapes import Floats, Shape

LONGEST = 5_000_000  # steps: a bound there takes half a second and 300 MB


def features(lr: ArrayLike, steps: ArrayLike | None = None) -> tuple[Floats, Floats]:
    """(x1, x2) of equation (2.4) at each tau in `steps` (default: the last alone), O(tau) each.

    lr: [T] rates of the steps, not negative. steps: [n] whole numbers from 0 to T.

    | case | what happens |
    |---|---|
    | rates of 0 just before tau | tau counts as the last step that moved |
    | nothing moved up to tau, tau = 0 | x1 = inf, x2 = 0: there is no bound yet |
    | rates of 0 elsewhere (warm-up from 0) | as the formula says |

    Guarantees: float64; suffix sums are added from their end, so small last rates lose no digits.
    Raises ValueError for rates that are negative or not finite, and steps out of range.
    """
    eta = checked_rates(lr)
    taus = np.asarray([len(eta)] if steps is None else steps)
    if taus.ndim != 1 or (taus.size and (taus.min() < 0 or taus.max() > len(eta))):
        raise ValueError(f"steps must be a list of numbers from 0 to {len(eta)}, the run's length")
    moved = np.maximum.accumulate(np.where(eta > 0, np.arange(1, len(eta) + 1), 0))
    last = np.concatenate([[0], moved])[taus.astype(int)]
    of = {tau: _at(eta[:tau]) for tau in set(last.tolist())}  # rates of 0 are not worked out twice
    pairs = np.array([of[tau] for tau in last.tolist()], dtype=float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _at(eta: Floats) -> tuple[float, float]:
    """(x1, x2) at tau = len(eta), whose last rate is positive."""
    if not len(eta):
        return math.inf, 0.0
    S = np.cumsum(eta[::-1])[::-1]  # S[k-1] = S_k
    V = np.cumsum(eta[::-1] ** 2)[::-1]
    steps = eta[:-1] / S[1:] * (V[:-1] / S[:-1])  # k = 1..tau-1
    return float(1 / (2 * S[0])), float(V[0] / (2 * S[0]) + 0.5 * steps.sum())


def checked_rates(lr: ArrayLike) -> Floats:
    """`lr` as float64 [T]. Raises ValueError for what is no list of rates."""
    eta = np.asarray(lr, dtype=float)
    if eta.ndim != 1 or not len(eta):
        raise ValueError(f"a schedule is a list of rates, one a step; found shape {eta.shape}")
    if not np.isfinite(eta).all() or eta.min() < 0:
        raise ValueError("a schedule has rates that are negative or not finite: read it again")
    return eta


def any_iterate(
    lr: ArrayLike,
    steps: ArrayLike | None = None,
    *,
    floor: float = 0.0,
    distance: float = 1.0,
    gradient: float = 1.0,
) -> Floats:
    """Equation (2.4): L* + D^2 x1 + G^2 x2 at each of `steps`, default the last. As `features`."""
    x1, x2 = features(lr, steps)
    return floor + distance**2 * x1 + gradient**2 * x2


def averaged_iterate(
    lr: ArrayLike, *, floor: float = 0.0, distance: float = 1.0, gradient: float = 1.0
) -> float:
    """Equation (2.3), of the average of the iterates weighted by their rates, after the last step.

    Raises ValueError as `features`, and where every rate is 0.
    """
    eta = checked_rates(lr)
    S, V = math.fsum(eta), math.fsum(eta**2)
    if S == 0:
        raise ValueError("every rate of the schedule is 0: nothing moves, so nothing is bounded")
    return floor + (distance**2 + gradient**2 * V) / (2 * S)


@dataclass(frozen=True)
class Constants:
    """q1^2/D^2 and q2^2/G^2 of a shape at a horizon of T steps (Table 1)."""

    steps: int
    q1_squared: float
    q2_squared: float

    @property
    def price(self) -> float:
        """2 q1 q2 / (D G): schedules compare by it, best bound L* + price D G / sqrt(T)."""
        return 2 * math.sqrt(self.q1_squared * self.q2_squared)

    @property
    def best_peak(self) -> float:
        """eta_peak G / D at which the bound is smallest: q1/(q2 sqrt(T))."""
        return math.sqrt(self.q1_squared / self.q2_squared / self.steps)


@lru_cache(maxsize=256)
def constants(shape: Shape | Callable[[int], ArrayLike], steps: int) -> Constants:
    """The constants of `shape(steps)`: exact for that horizon, from (2.4) at the last step.

    Raises ValueError for more than LONGEST steps, or a shape that never moves.
    """
    T = whole("steps", steps, least=1, fix="give the run's optimizer steps")
    if T > LONGEST:
        raise ValueError(f"a horizon of {T:,} steps is past the {LONGEST:,} that are worked out")
    (x1,), (x2,) = features(shape(T))
    if not math.isfinite(x1):
        raise ValueError("every rate of the schedule is 0: nothing moves, so nothing is bounded")
    return Constants(T, float(x1 * T), float(x2))


@dataclass(frozen=True, kw_only=True)
class Exam:
    """How a schedule did in the qualifying exam, which needs no training.

    slope: of log(best bound) against log T, -0.5 where the best bound falls like 1/sqrt(T).
    growth: how many times 2 q1 q2 grew from the shortest horizon to the longest.
    """

    of: tuple[Constants, ...]
    slope: float
    growth: float
    qualified: bool


def schedule_exam(
    shape: Shape | Callable[[int], ArrayLike],
    horizons: Sequence[int] = (1_000, 10_000, 100_000),
    tolerance: float = 0.01,
) -> Exam:
    """Condition 2.5 at the tuned peak: is the best bound O(1/sqrt(T))? Qualified: slope within
    `tolerance` of -1/2.

    linear, cosine and wsd qualify; constant and 1/sqrt(t) do not: their 2 q1 q2 grows like
    sqrt(ln T), about 25 % from 1,000 to 100,000 steps. horizons: rising, the longest at least ten
    times the shortest. Raises ValueError for others.
    """
    wanted = sorted(set(horizons))
    if len(wanted) < 2 or wanted[-1] < 10 * wanted[0]:
        raise ValueError(
            f"the exam compares horizons a factor of 10 or more apart, found {list(horizons)}: "
            "use (1000, 10000, 100000)"
        )
    of = tuple(constants(shape, T) for T in wanted)
    price = [c.price for c in of]
    slope = np.polyfit(np.log(wanted), np.log(price) - 0.5 * np.log(wanted), 1)[0]
    return Exam(
        of=of,
        slope=float(slope),
        growth=price[-1] / price[0],
        qualified=bool(abs(slope + 0.5) <= tolerance),
    )
