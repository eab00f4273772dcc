"""What finished runs of several horizons say about a law of loss: the checks, as pure functions.

Bu, Xu, Mao 2026, arXiv 2602.07145. The planner is `steelyard plan lr`'s own: the longest pilots
are hidden, the method that missed them least, of `steelyard.plans.forecast`, makes the plan from
all of them. The free exponent and the best rate's exponent are for the account why it fails: by
the law they are 1/2 and -1/2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from steelyard.plans.bound import features
from steelyard.plans.curve_law import CurveLaw, fit_curve
from steelyard.plans.forecast import (
    HeldOut,
    Method,
    Pilot,
    better,
    hold_out,
    largest_error,
    law_of,
    lines_of,
    regret,
)
from steelyard.plans.schedule_shapes import Shape

Losses = Mapping[tuple[int, float], float]  # (T, eta_ref) -> final loss, of runs that ended
EXPONENTS = np.arange(0.02, 3.005, 0.01)  # tried for T^-p


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan for the horizon `far` from shorter pilots, beside what was then measured there.

    method: the one that missed the longest pilots least, by `trusted` at most. reference,
    predicted: its choice among the rates that were run at `far`. regret: what that costs against
    the best of them, relative. errors: method -> eta_ref -> (predicted - measured) / measured.
    """

    method: str
    trusted: float
    reference: float
    predicted: float
    measured: float
    regret: float
    errors: Mapping[str, Mapping[float, float]]

    @property
    def error(self) -> float:
        """Of the loss at the chosen rate, relative and signed."""
        return self.predicted / self.measured - 1

    def worst(self, method: str | None = None) -> float:
        """The largest |error| over all rates, of a method, default the chosen one."""
        return max(abs(e) for e in self.errors[method or self.method].values())


def planned(losses: Losses, shape: Shape, far: int) -> Planned:
    """The plan for `far` from all shorter runs in `losses`.

    Raises ValueError where no method can predict, or nothing was run at `far`.
    """
    runs = {(T, reference): _pilot(T, reference, shape, y) for (T, reference), y in losses.items()}
    pilots = [pilot for (T, _), pilot in runs.items() if far > T]
    there = {reference: pilot for (T, reference), pilot in runs.items() if far == T}
    methods: dict[str, Method] = {
        "lines": lambda rest: lines_of(rest, shape),
        "law": lambda rest: law_of(rest, shape, bootstrap=0),
    }
    longest = max((p.steps for p in pilots), default=0)
    tested = hold_out(pilots, [p for p in pilots if p.steps == longest], methods)
    held = hold_out([*pilots, *there.values()], list(there.values()), methods)
    if not held or not tested or not held[0].predicted:
        raise ValueError(f"no plan for {far:,} steps follows from {len(pilots)} shorter runs")
    method = better(tested, [name for name in methods if name in held[0].predicted])
    said = [h for h in held if not math.isnan(h.error(method))]
    choice = min(said, key=lambda h: h.predicted[method])
    return Planned(
        method=method,
        trusted=largest_error(tested, method),
        reference=next(r for r, pilot in there.items() if pilot.name == choice.name),
        predicted=choice.predicted[method],
        measured=choice.measured,
        regret=regret(held, method),
        errors={name: _errors(held, there, name) for name in held[0].predicted},
    )


@lru_cache(maxsize=256)
def _ends(reference: float, shape: Shape, steps: int) -> tuple[float, float]:
    (x1,), (x2,) = features(reference / math.sqrt(steps) * shape(steps))
    return float(x1), float(x2)


def _pilot(steps: int, reference: float, shape: Shape, loss: float) -> Pilot:
    peak = reference / math.sqrt(steps)
    x1, x2 = _ends(reference, shape, steps)
    name = f"{steps} steps, {reference:g}"
    return Pilot(name=name, steps=steps, peak=peak, x1=x1, x2=x2, loss=loss)


def _errors(held: Sequence[HeldOut], there: Mapping[float, Pilot], method: str):
    of = {h.name: h.error(method) for h in held}
    return {r: of[pilot.name] for r, pilot in there.items() if not math.isnan(of[pilot.name])}


@dataclass(frozen=True, kw_only=True)
class Followed:
    """The second half of a run from its first. both: R^2 of that prediction over both halves;
    ceiling: R^2 that the curve without the seeds' luck would have; whole: R^2 of the law fitted to
    all of it."""

    fit: CurveLaw
    whole: float
    ceiling: float

    @property
    def r2(self) -> float:
        return self.fit.r2_held

    @property
    def both(self) -> float:
        y = self.fit.losses
        return 1 - float(((self.fit.predicted - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())

    @property
    def error(self) -> float:
        return self.fit.error_held


def followed(
    lr: np.ndarray, steps: Sequence[int], curves: Sequence[Sequence[float]], skip: float = 0.2
) -> Followed:
    """`fit_curve` of the mean of curves [seeds][n]; every logged loss is a window of its own."""
    all_of = np.array(curves)  # [seeds, n]
    mean = all_of.mean(0)
    half, all_steps = (
        fit_curve(lr, steps, mean, fit_on=share, skip=skip, windows=max(3, len(mean)), bootstrap=0)
        for share in (0.5, 1.0)
    )
    late = np.array(steps) > len(lr) / 2
    luck = all_of[:, late].var(0, ddof=1).mean() / len(all_of) if len(all_of) > 1 else math.nan
    return Followed(fit=half, whole=all_steps.law.r2, ceiling=1 - float(luck / mean[late].var()))


def free_exponent(losses: Losses) -> float:
    """p of L = Linf + A T^-p, Linf >= 0 and A >= 0, of the lowest loss at each horizon.

    By the law 1/2. Least squares; nan for fewer than 4 horizons.
    """
    best: dict[int, float] = {}
    for (T, _), loss in losses.items():
        best[T] = min(loss, best.get(T, math.inf))
    if len(best) < 4:
        return math.nan
    T = np.array(sorted(best), dtype=float)
    y = np.array([best[int(t)] for t in T])

    def left(p: float) -> float:
        x = (T / T[0]) ** -p
        dx = x - x.mean()
        A = max(float(dx @ y / (dx @ dx)), 0.0)
        floor = y.mean() - A * x.mean()
        if floor < 0:  # then through 0
            floor, A = 0.0, float(x @ y / (x @ x))
        return float(((y - floor - A * x) ** 2).sum())

    return float(min(EXPONENTS, key=left))


def best_peaks(losses: Losses) -> dict[int, float]:
    """T -> eta_peak with the lowest loss, by a parabola in log eta_peak through the lowest of the
    grid and its neighbours; horizons whose lowest is at an end of the grid are left out."""
    found = {}
    for steps in sorted({T for T, _ in losses}):
        here = sorted((reference, y) for (T, reference), y in losses.items() if steps == T)
        at = min(range(len(here)), key=lambda i: here[i][1])
        if 0 < at < len(here) - 1:
            x = np.log([reference for reference, _ in here[at - 1 : at + 2]])
            a, b, _ = np.polyfit(x, [y for _, y in here[at - 1 : at + 2]], 2)
            found[steps] = math.exp(-b / (2 * a)) / math.sqrt(steps)
    return found


def rate_exponent(losses: Losses) -> float:
    """Slope of log best eta_peak against log T: -1/2 by the law; nan for fewer than 3 horizons
    whose best rate is within the grid."""
    peaks = best_peaks(losses)
    if len(peaks) < 3:
        return math.nan
    return float(np.polyfit(np.log(list(peaks)), np.log(list(peaks.values())), 1)[0])


def slopes(losses: Losses, reference: float) -> list[float]:
    """dL / d(1/sqrt(T)) from each horizon to the next, at one eta_ref: by the law all are equal."""
    runs = sorted((T, y) for (T, r), y in losses.items() if r == reference)
    return [
        (y - z) / (1 / math.sqrt(T) - 1 / math.sqrt(U))
        for (T, y), (U, z) in itertools.pairwise(runs)
    ]
