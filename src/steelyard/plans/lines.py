"""Straight lines in 1/sqrt(T): the choice of eta_ref, and what a larger model would reach.

Bu, Xu, Mao, "Convex Dominance in Deep Learning I", ICLR 2026, arXiv 2602.07145, sections 4 and 5.

| symbol | here |
|---|---|
| eta_ref = eta_peak sqrt(T) | `reference`, the horizon-free learning rate |
| Linf, Q(eta_ref) | `Line.floor`, `Line.slope` |
| N | `parameters` |

    eta_peak = eta_ref/sqrt(T):   L(T) = Linf + Q(eta_ref)/sqrt(T)
    (5.1)  L(N, T) = Linf(N) + Q(N)/sqrt(T),  at one eta_ref for all N

eta_ref belongs to one optimizer and one batch size, and to a schedule that passes
`steelyard.plans.bound.schedule_exam`. That Linf and Q are powers of N between the measured sizes is
ours; the paper gives no formula, and its own fitted Linf are not monotone in N.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from steelyard.plans.checks import real

SAME = 0.03  # references closer than this are one, which rounding has moved


@dataclass(frozen=True, kw_only=True)
class Line:
    """L(T) = floor + slope / sqrt(T). r2, residual (standard deviation): nan for two points.
    middle, width: mean and root of the sum of squares of 1/sqrt(T) of the points."""

    floor: float
    slope: float
    r2: float = math.nan
    points: int = 0
    residual: float = math.nan
    middle: float = math.nan
    width: float = math.nan

    def __call__(self, steps: float) -> float:
        return self.floor + self.slope / math.sqrt(steps)

    def interval(self, steps: float, confidence: float = 0.9) -> tuple[float, float] | None:
        """Where the line is at a horizon, for normal residuals; None for fewer than 3 points."""
        from scipy.stats import t

        if self.points < 3 or math.isnan(self.residual):
            return None
        off = (1 / math.sqrt(steps) - self.middle) / self.width
        error = self.residual * math.sqrt(1 / self.points + off**2)
        reach = float(t.ppf((1 + confidence) / 2, self.points - 2)) * error
        return self(steps) - reach, self(steps) + reach

    def required_steps(self, target: float) -> float:
        """The horizon at which the line is at `target`: inf where it never gets there."""
        if target <= self.floor:
            return math.inf
        return (self.slope / (target - self.floor)) ** 2 if self.slope > 0 else 1.0


def fit_line(steps: ArrayLike, losses: ArrayLike) -> Line:
    """Least squares over runs of different horizons: steps, losses [n].

    A slope in units of sqrt(tokens) comes from steps in tokens. Raises ValueError for fewer than
    two horizons.
    """
    T, y = np.asarray(steps, dtype=float), np.asarray(losses, dtype=float)
    if T.shape != y.shape or len(np.unique(T)) < 2 or T.min() <= 0:
        raise ValueError(f"a line needs runs of 2 horizons or more, found {np.unique(T).tolist()}")
    x = 1 / np.sqrt(T)
    dx = x - x.mean()
    slope = float(dx @ y / (dx @ dx))
    floor = float(y.mean() - slope * x.mean())
    total = float(((y - y.mean()) ** 2).sum())
    left = float(((y - floor - slope * x) ** 2).sum())
    exact = len(np.unique(T)) < 3
    return Line(
        floor=floor,
        slope=slope,
        r2=math.nan if exact or not total else 1 - left / total,
        points=len(y),
        residual=math.nan if exact else math.sqrt(left / (len(y) - 2)),
        middle=float(x.mean()),
        width=math.sqrt(float(dx @ dx)),
    )


def by_reference(runs: Iterable[tuple[float, int, float]]) -> dict[float, Line]:
    """eta_ref -> its line, of runs (eta_peak, T, final loss); those with one horizon are left out.

    References within 3 % of each other count as one.
    """
    found = sorted((peak * math.sqrt(T), T, loss) for peak, T, loss in runs)
    groups: list[list[tuple[float, int, float]]] = []
    for run in found:
        if groups and run[0] <= groups[-1][0][0] * (1 + SAME):
            groups[-1].append(run)
        else:
            groups.append([run])
    return {
        math.exp(sum(math.log(r[0]) for r in group) / len(group)): fit_line(
            [r[1] for r in group], [r[2] for r in group]
        )
        for group in groups
        if len({r[1] for r in group}) > 1
    }


def best_reference(lines: Mapping[float, Line], steps: float) -> float:
    """The eta_ref whose line is lowest at the horizon `steps`, intercept and slope together.

    Raises ValueError for no lines.
    """
    if not lines:
        raise ValueError(
            "no learning rate eta_peak sqrt(T) was tried at two horizons: run each at 3 or more"
        )
    return min(lines, key=lambda reference: lines[reference](steps))


def rescaled_rate(peak: float, steps: int, to_steps: int) -> float:
    """The peak for another horizon: eta_peak sqrt(T / T'), also for a larger model (section 5)."""
    return real("peak learning rate", peak, above=0.0, fix="use 0.01, say") * math.sqrt(
        steps / to_steps
    )


@dataclass(frozen=True, kw_only=True)
class SizeLaw:
    """(5.1) between and beyond measured sizes: Linf(N) = floor[0] N^floor[1], Q(N) likewise.

    With two sizes both go through the points; nothing then says how wrong they are.
    """

    floor: tuple[float, float]
    slope: tuple[float, float]
    sizes: tuple[float, ...]

    def line(self, parameters: float) -> Line:
        """The line of a model of `parameters` numbers."""
        N = real("parameters", parameters, above=0.0, fix="give the model's size")
        return Line(
            floor=self.floor[0] * N ** self.floor[1],
            slope=self.slope[0] * N ** self.slope[1],
        )


def fit_sizes(lines: Sequence[tuple[float, Line]]) -> SizeLaw:
    """From lines of one eta_ref at several model sizes: (N, line).

    Raises ValueError for fewer than two sizes, and floors or slopes that are not positive.
    """
    sizes = tuple(N for N, _ in lines)
    if len(set(sizes)) < 2:
        raise ValueError(f"a law of size needs lines at 2 sizes, found {sorted(set(sizes))}")
    if min(*(line.floor for _, line in lines), *(line.slope for _, line in lines)) <= 0:
        raise ValueError("a line has a floor or slope that is not positive: add longer runs to it")

    def power(values: list[float]) -> tuple[float, float]:
        exponent, log = np.polyfit(np.log(sizes), np.log(values), 1)
        return math.exp(log), float(exponent)

    return SizeLaw(
        floor=power([line.floor for _, line in lines]),
        slope=power([line.slope for _, line in lines]),
        sizes=sizes,
    )
