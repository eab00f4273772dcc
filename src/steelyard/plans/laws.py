"""A law of the loss in the learning rate: fitted to finished runs, it predicts longer ones.

Bu, Xu, Mao, "Convex Dominance in Deep Learning I: A Scaling Law of Loss and Learning Rate", ICLR
2026, arXiv 2602.07145, sections 3 and 4: deep networks follow the bound of convex SGD
(`steelyard.plans.bound`) with three fitted numbers in place of L*, D, G.

| symbol | here |
|---|---|
| Linf, Dt, Gt | `floor`, `distance`, `gradient` |
| x1, x2 | the features of `steelyard.plans.bound` |
| eta_peak, T | `peak`, `steps` |
| q1, q2 | `Law.q`: D and G folded in |

    (3.1)  L(tau) = Linf + Dt^2 x1(tau) + Gt^2 x2(tau)             every step of one run
    (4.1)  L(T) = Linf + q1^2/(T eta_peak) + eta_peak q2^2         the end of several runs
           best eta_peak = q1/(q2 sqrt(T)),  best loss Linf + 2 q1 q2/sqrt(T)

Both are the same linear regression, with Dt^2 and Gt^2 not negative. (4.1) uses each run's exact
features, so runs of different schedules can be fitted together. The exponent of T is not fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from steelyard.plans.bound import LONGEST, constants, features
from steelyard.plans.checks import fraction, real, whole
from steelyard.plans.nonnegative import solve
from steelyard.plans.schedule_shapes import Floats, Shape

Schedule = Shape | Callable[[int], ArrayLike]
LOOKED_AT = 1_000_000  # steps: past it `required_steps` takes q1 and q2 as they are there


@dataclass(frozen=True, kw_only=True, eq=False)
class Law:
    """Linf, Dt and Gt, how well they fit, and what follows from them. Losses in the fit's units.

    samples: [R, 3] of (Linf, Dt^2, Gt^2), fitted to bootstrapped residuals; R = 0 where there were
    too few points. r2: of the fit. residual: its standard deviation, nan without degrees of
    freedom. alike: |correlation| of the features, near 1 where Dt and Gt cannot be told apart (a
    constant rate; one peak and one horizon).

    | case | best rate |
    |---|---|
    | Gt = 0: no run was hurt by a large rate | inf |
    | Dt = 0: no run was helped by more steps | 0 |
    """

    floor: float
    distance: float
    gradient: float
    samples: Floats
    r2: float
    residual: float
    points: int
    alike: float

    def at(self, x1: ArrayLike, x2: ArrayLike) -> Floats:
        """The loss at features x1, x2, of any shape."""
        return self.floor + self.distance**2 * np.asarray(x1) + self.gradient**2 * np.asarray(x2)

    def q(self, shape: Schedule, steps: int) -> tuple[float, float]:
        """(q1, q2) of a schedule, at a horizon."""
        c = constants(shape, steps)
        return self.distance * math.sqrt(c.q1_squared), self.gradient * math.sqrt(c.q2_squared)

    def predict(self, steps: int, peak: float, shape: Schedule) -> float:
        """The loss at the end of a run: (4.1). Raises ValueError for a peak of 0 or below."""
        peak = real("peak learning rate", peak, above=0.0, fix="use 0.01, say")
        q1, q2 = self.q(shape, steps)
        return self.floor + q1**2 / (steps * peak) + peak * q2**2

    def best_rate(self, steps: int, shape: Schedule) -> float:
        """The peak learning rate with the lowest predicted loss: q1/(q2 sqrt(T))."""
        q1, q2 = self.q(shape, steps)
        if q1 == 0:
            return 0.0
        return q1 / (q2 * math.sqrt(steps)) if q2 > 0 else math.inf

    def best_loss(self, steps: int, shape: Schedule) -> float:
        """The predicted loss at the best peak: Linf + 2 q1 q2/sqrt(T)."""
        q1, q2 = self.q(shape, steps)
        return self.floor + 2 * q1 * q2 / math.sqrt(steps)

    def required_steps(self, target: float, shape: Schedule) -> int:
        """The horizon T at which the best peak reaches the loss `target`, by the law.

        Raises ValueError for a target at or below Linf, or one that takes more than LONGEST steps.
        """
        target = real("target loss", target, fix="give the loss to reach")
        if target <= self.floor:
            raise ValueError(
                f"no horizon reaches the loss {target:g}: the law's floor is {self.floor:.4g}"
            )
        steps = 1.0
        for _ in range(50):  # (2 q1 q2)^2 moves with ln T at most: this converges in a few rounds
            q1, q2 = self.q(shape, min(max(math.ceil(steps), 1), LOOKED_AT))
            before, steps = steps, (2 * q1 * q2 / (target - self.floor)) ** 2
            if abs(steps - before) < 0.5:
                break
        if steps > LONGEST:
            raise ValueError(
                f"the loss {target:g} takes about {steps:.2g} steps by the law, past the "
                f"{LONGEST:,} that are worked out: the floor is {self.floor:.4g}"
            )
        return max(1, math.ceil(steps))

    @property
    def covariance(self) -> Floats:
        """[3, 3], of (Linf, Dt^2, Gt^2) over the bootstrap; nan without samples."""
        return np.cov(self.samples.T) if len(self.samples) > 1 else np.full((3, 3), math.nan)

    def interval(
        self, what: Callable[[Law], float], confidence: float = 0.9
    ) -> tuple[float, float] | None:
        """Where `what(law)` lies with that confidence: bootstrap percentiles; None without samples.

        `law.interval(lambda law: law.best_rate(T, shape))`. The interval is of the law, not of one
        run's luck, and widened for few points by t in place of z (the expanded percentiles of
        Hesterberg 2015, 10.1080/00031305.2015.1089789).
        """
        from scipy.stats import norm, t

        confidence = fraction("confidence", confidence, fix="use 0.9, say")
        if not len(self.samples):
            return None
        tail = norm.cdf(t.ppf((1 - confidence) / 2, self.points - 3))
        values = np.sort([what(self._with(sample)) for sample in self.samples])
        low = int(tail * (len(values) - 1))
        return float(values[low]), float(values[len(values) - 1 - low])

    def _with(self, sample: Floats) -> Law:
        floor, distance, gradient = float(sample[0]), math.sqrt(sample[1]), math.sqrt(sample[2])
        return Law(
            floor=floor, distance=distance, gradient=gradient, samples=self.samples[:0],
            r2=self.r2, residual=self.residual, points=self.points, alike=self.alike,
        )  # fmt: skip


def fit_features(
    x1: ArrayLike,
    x2: ArrayLike,
    losses: ArrayLike,
    *,
    least_floor: float | None = 0.0,
    bootstrap: int = 400,
    block: int = 1,
    seed: int = 0,
) -> Law:
    """The regression L = Linf + Dt^2 x1 + Gt^2 x2, Dt^2 and Gt^2 >= 0, Linf >= least_floor or free.

    x1, x2, losses: [n], n >= 3. least_floor None: Linf may be anything, for losses that can be
    negative. bootstrap: refits to resampled residuals, in blocks of `block` neighbours (a curve's
    residuals are not independent); from n = 5 on.

    Raises ValueError for fewer than 3 points, numbers that are not finite, a loss below that floor.
    """
    X = np.stack([np.asarray(v, dtype=float) for v in (x1, x2)], 1)  # [n, 2]
    y = np.asarray(losses, dtype=float)
    n = len(y)
    if len(X) != n or n < 3:
        raise ValueError(f"a law has three numbers: fit it to 3 losses or more, found {n}")
    if not (np.isfinite(X).all() and np.isfinite(y).all()):
        raise ValueError("a loss or a schedule is not finite: leave out runs that diverged")
    if least_floor is not None and y.min() < least_floor:
        raise ValueError(
            f"a loss is {y.min():.4g}, below the least floor {least_floor:g}: pass least_floor=None"
        )
    columns = np.column_stack([np.ones(n), X])
    signed = frozenset({0}) if least_floor is None else frozenset[int]()
    base = least_floor or 0.0
    c = solve(columns, y[:, None] - base, signed)[:, 0]
    fitted = columns @ c
    left = y - base - fitted
    dof = n - 3
    samples = np.zeros((0, 3))
    if dof >= 2 and bootstrap:
        draws = _blocks(n, block, bootstrap, np.random.default_rng(seed))
        wide = (left - left.mean()) * math.sqrt(n / dof)  # what the fit took out of them
        samples = solve(columns, fitted[:, None] + wide[draws], signed).T
        samples[:, 0] += base
    total = float(((y - y.mean()) ** 2).sum())
    spread = X.std(0)
    alike = abs(np.corrcoef(X.T)[0, 1]) if spread.all() else 1.0
    return Law(
        floor=float(c[0] + base),
        distance=math.sqrt(c[1]),
        gradient=math.sqrt(c[2]),
        samples=samples,
        r2=1 - float((left**2).sum()) / total if total else math.nan,
        residual=math.sqrt(float((left**2).sum()) / dof) if dof else math.nan,
        points=n,
        alike=float(alike),
    )


def _blocks(n: int, block: int, times: int, rng: np.random.Generator) -> np.ndarray:
    """[n, times] indices: neighbours stay together, around a circle."""
    starts = rng.integers(0, n, size=(-(-n // block), 1, times))
    return ((starts + np.arange(block)[None, :, None]) % n).reshape(-1, times)[:n]


Finished = tuple[Schedule | ArrayLike, float, int, float]  # schedule, eta_peak, T, final loss


def fit_runs(
    runs: Sequence[Finished],
    *,
    least_floor: float | None = 0.0,
    bootstrap: int = 400,
    seed: int = 0,
) -> Law:
    """(4.1) fitted to finished runs: each (schedule, eta_peak, T, final loss).

    schedule: a `Shape`, a function of T, or the T values of s_t. Take 3 horizons with 3 values of
    eta_peak sqrt(T) or more; average the loss over the last steps, or over seeds. All runs share
    one optimizer and one batch size. Raises ValueError as `fit_features`.
    """
    x = [_features_of(*run[:3]) for run in runs]
    x1, x2 = zip(*x, strict=True) if x else ((), ())
    losses = [run[3] for run in runs]
    return fit_features(x1, x2, losses, least_floor=least_floor, bootstrap=bootstrap, seed=seed)


def _features_of(schedule: Schedule | ArrayLike, peak: float, steps: int) -> tuple[float, float]:
    peak = real("peak learning rate", peak, above=0.0, fix="give the run's largest rate")
    if callable(schedule):
        c = constants(schedule, steps)
        return c.q1_squared / (steps * peak), c.q2_squared * peak
    steps = whole("steps", steps, least=1, fix="give the run's optimizer steps")
    if len(np.asarray(schedule)) != steps:
        raise ValueError(f"a schedule has {len(np.asarray(schedule))} values for {steps} steps")
    (x1,), (x2,) = features(schedule)
    return float(x1 / peak), float(x2 * peak)
