"""One run's loss curve from its first part and the schedule: equation (3.1), protocol F1.

Bu, Xu, Mao 2026, arXiv 2602.07145, section 3; symbols as in `steelyard.plans.laws`.

    drop the transient: max(warm-up, `skip` T) steps
    means over windows of the loss and of x1, x2
    fit L = Linf + Dt^2 x1 + Gt^2 x2 to the windows up to `fit_on` T
    predict the others
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from steelyard.plans.bound import checked_rates, features
from steelyard.plans.checks import whole
from steelyard.plans.laws import Law, fit_features
from steelyard.plans.schedule_shapes import Floats

PLACES = 400  # steps at which the features are worked out; between them they are interpolated


@dataclass(frozen=True, kw_only=True, eq=False)
class CurveLaw:
    """A fitted curve. steps, losses, predicted, x1, x2: [w] means of windows; fitted: [w], which
    were used.

    r2_held: R^2 of the prediction of the windows that were not (nan without any); it is against
    their own mean, so it is harsh where the curve is flat. error_held: their largest
    |predicted - measured| / |measured|.
    """

    law: Law
    steps: Floats
    losses: Floats
    predicted: Floats
    x1: Floats
    x2: Floats
    fitted: np.ndarray

    @property
    def r2_held(self) -> float:
        held = ~self.fitted
        y = self.losses[held]
        total = ((y - y.mean()) ** 2).sum() if held.any() else 0.0
        return 1 - float(((self.predicted[held] - y) ** 2).sum() / total) if total else float("nan")

    @property
    def error_held(self) -> float:
        held = ~self.fitted
        if not held.any():
            return float("nan")
        return float(np.abs(self.predicted[held] / self.losses[held] - 1).max())


def fit_curve(
    lr: ArrayLike,
    steps: ArrayLike,
    losses: ArrayLike,
    *,
    fit_on: float = 0.5,
    skip: float = 0.2,
    windows: int = 100,
    least_floor: float | None = 0.0,
    bootstrap: int = 400,
    seed: int = 0,
) -> CurveLaw:
    """Fit the first part of a run and predict the rest; fit_on=1 fits it all.

    lr: [T] rates of all steps, also of those to come. steps: [n] rising, how many steps had been
    taken when each loss was measured. losses: [n]. fit_on, skip: shares of T; the warm-up, up to
    the first step with the highest rate, is dropped in any case. The paper drops less; in small
    runs the transient is long, and a fit that sees it predicts far too low an end.

    Raises ValueError for fewer than 3 windows to fit, and as `features` and `fit_features`.
    """
    eta = checked_rates(lr)
    whole("windows", windows, least=3, fix="use 100, say")
    tau, y = np.asarray(steps, dtype=float), np.asarray(losses, dtype=float)
    if tau.shape != y.shape or tau.ndim != 1 or (np.diff(tau) <= 0).any():
        raise ValueError("steps must rise, with one loss each: sort the curve and drop repetitions")
    T = len(eta)
    keep = tau > max(int(eta.argmax()) + 1, skip * T)
    tau, y = tau[keep], y[keep]
    if len(tau) < 3:
        raise ValueError(
            f"{len(tau)} losses are left behind the warm-up of {int(eta.argmax()) + 1} of {T} "
            "steps: log more of them"
        )
    x1, x2 = _features(eta, tau)
    groups = np.array_split(np.arange(len(tau)), min(windows, len(tau)))
    means = [np.array([v[g].mean() for g in groups]) for v in (tau, y, x1, x2)]
    tau, y, x1, x2 = means
    fitted = np.array([t <= fit_on * T for t in tau])
    law = fit_features(
        x1[fitted],
        x2[fitted],
        y[fitted],
        least_floor=least_floor,
        bootstrap=bootstrap,
        block=max(1, round(fitted.sum() ** (1 / 3))),
        seed=seed,
    )
    return CurveLaw(
        law=law, steps=tau, losses=y, predicted=law.at(x1, x2), x1=x1, x2=x2, fitted=fitted
    )


def _features(eta: Floats, tau: Floats) -> tuple[Floats, Floats]:
    """The features at all of `tau`, worked out at some: logarithmic and linear, ends included."""
    places = tau
    if len(tau) > PLACES:
        last = len(tau) - 1
        linear = np.linspace(0, last, PLACES // 2)
        log = np.geomspace(1, last + 1, PLACES // 2) - 1
        places = tau[np.unique(np.concatenate([linear, log]).astype(int))]
    x1, x2 = features(eta, places)
    return np.interp(tau, places, x1), np.interp(tau, places, x2)
