"""The peak learning rate and the loss of a longer run, from finished pilots: `steelyard plan lr`.

    read the runs; they must share model, data, optimizer and batch
    hide the longest, predict them by each method                   -> how far to trust it
    take the method that missed them least, fitted to all runs      -> best peak, predicted loss

Bu, Xu, Mao 2026, arXiv 2602.07145; the methods: `steelyard.plans.forecast`. Three runs or fewer are
not enough for that: their curves are fitted instead (`steelyard.plans.curve_law`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steelyard.plans.bound import schedule_exam
from steelyard.plans.checks import whole
from steelyard.plans.curve_law import CurveLaw, fit_curve
from steelyard.plans.forecast import (
    Best,
    ByLaw,
    Forecast,
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
from steelyard.plans.laws import Schedule, fit_features
from steelyard.plans.schedule_shapes import Shape
from steelyard.runs.loss_curves import LossCurve, read_curves
from steelyard.runs.pilots import pilot_of, planned_shape, refuse_mixtures

ALIKE = 0.999  # correlation of the features past which D and G cannot be told apart
MISSED = 0.05  # relative error on held-out runs past which the plan says so
LOGGED = 8  # losses in the first half of a run, for a curve to be fitted to it


@dataclass(frozen=True, kw_only=True, eq=False)
class LrPlan:
    """What the pilots say about a run of `steps` steps.

    held_out, protocol: the test that comes first. method: "lines", "law" or "curves", what `best`
    and `required` (the horizon that `target` takes; None without a target) are from. forecasts: by
    method, fitted to all runs. notes: doubts, in sentences.
    """

    steps: int
    schedule: str
    held_out: tuple[HeldOut, ...]
    protocol: str
    method: str
    best: Best
    target: float | None
    required: int | None
    forecasts: dict[str, Forecast]
    pilots: tuple[Pilot, ...]
    notes: tuple[str, ...]

    def error(self, method: str | None = None) -> float:
        """The largest relative error of a method, default the chosen one, on what was held out."""
        return largest_error(self.held_out, method or self.method)

    def regret(self, method: str | None = None) -> float:
        """How much loss its choice among the held-out runs would have cost, relative; or nan."""
        return regret(self.held_out, method or self.method)


def plan_lr(
    sources: Sequence[str | Path],
    steps: int,
    *,
    schedule: Shape | None = None,
    held_out: Sequence[str] = (),
    at_least: int = 1,
    loss: str = "auto",
    lr: str = "lr",
    target: float | None = None,
    seed: int = 0,
) -> LrPlan:
    """Plan a run of `steps` steps from finished runs.

    sources: run folders, CSV files, TensorBoard files. schedule: of the planned run, default that
    of the longest pilot, stretched. held_out: names of runs to test the methods on, default those
    of the longest horizon, or each in turn where that leaves too few. at_least: leave out runs of
    fewer steps, which bend the lines. loss, lr: as `read_curves`.

    Raises ValueError, one line: what cannot be read, runs that share no settings, a name that is
    not there, runs from which no rate follows.
    """
    whole("steps", steps, least=1, fix="give the planned run's optimizer steps")
    found = [curve for source in sources for curve in read_curves(source, loss, lr)]
    curves = [curve for curve in found if curve.horizon >= at_least]
    if not curves:
        raise ValueError(f"no runs of {at_least} steps or more are given: name finished pilots")
    refuse_mixtures(curves)
    pilots = [pilot_of(curve) for curve in curves]
    shape, schedule_name = planned_shape(curves, schedule)
    if len(pilots) < 4:
        held, protocol, forecasts = _from_curves(curves, held_out, shape, seed)
    else:
        held, protocol = _test(pilots, held_out, shape)
        both = {"lines": lines_of(pilots, shape), "law": law_of(pilots, shape, seed=seed)}
        forecasts = {name: forecast for name, forecast in both.items() if forecast is not None}
    bests = {name: forecast.best(steps) for name, forecast in forecasts.items()}
    usable = [name for name, best in bests.items() if 0 < best.rate < math.inf]
    if not usable:
        why = (
            "was hurt by a large rate"
            if any(best.rate for best in bests.values())
            else "gained from more steps"
        )
        raise ValueError(f"no best rate follows from these runs: none {why}; try other rates")
    method = better(held, usable)
    forecast, best = forecasts[method], bests[method]
    notes = list(dict.fromkeys(note for curve in curves for note in curve.notes))
    notes += _doubts(curves, pilots, forecast, best, steps, largest_error(held, method))
    if not schedule_exam(shape).qualified:
        notes.append("the schedule is not qualified: its best rate falls faster than 1/sqrt(T)")
    return LrPlan(
        steps=steps,
        schedule=schedule_name,
        held_out=tuple(held),
        protocol=protocol,
        method=method,
        best=best,
        target=target,
        required=None if target is None else forecast.required_steps(target),
        forecasts=forecasts,
        pilots=tuple(pilots),
        notes=tuple(notes),
    )


def _test(pilots: list[Pilot], names: Sequence[str], shape: Schedule) -> tuple[list[HeldOut], str]:
    """Predictions of runs from the others."""
    if unknown := set(names) - {p.name for p in pilots}:
        known = ", ".join(p.name for p in pilots)
        raise ValueError(f"no run {min(unknown)!r} to hold out, there are: {known}")
    methods: dict[str, Method] = {
        "lines": lambda rest: lines_of(rest, shape),
        "law": lambda rest: law_of(rest, shape, bootstrap=0),
    }
    longest = max(p.steps for p in pilots)
    hidden = [p for p in pilots if (p.name in names if names else p.steps == longest)]
    rest = [p for p in pilots if p not in hidden]
    if len(rest) >= 3:
        what = "the runs named" if names else f"the runs of {longest:,} steps"
        protocol = f"{what}, from runs of up to {max(p.steps for p in rest):,} steps"
        return hold_out(pilots, hidden, methods), protocol
    if names:
        raise ValueError(f"{len(rest)} runs are left to fit a law of three numbers: hold out fewer")
    each = [held for p in pilots for held in hold_out(pilots, [p], methods)]
    return each, "each run from the others, since nearly all are of one horizon"


def _from_curves(
    curves: list[LossCurve],
    names: Sequence[str],
    shape: Schedule,
    seed: int,
) -> tuple[list[HeldOut], str, dict[str, Forecast]]:
    """(3.1) for few runs: the end of each from its first half; one law of all windows."""
    if names:
        raise ValueError(f"{len(curves)} runs are too few to hold one out: give 4 or more")
    for c in curves:
        if (fewer := int((c.steps <= c.horizon / 2).sum())) < LOGGED:
            raise ValueError(
                f"'{c.name}' logs {fewer} losses in its first half: give 4 runs, or log more"
            )
    least = None if min(c.losses.min() for c in curves) < 0 else 0.0

    def fitted(curve: LossCurve, share: float) -> CurveLaw:
        return fit_curve(
            curve.lr, curve.steps, curve.losses, fit_on=share, least_floor=least, bootstrap=0
        )

    held = []
    for curve in curves:
        fit = fitted(curve, 0.5)
        held.append(
            HeldOut(
                name=curve.name,
                steps=curve.horizon,
                peak=curve.peak,
                measured=float(fit.losses[-1]),
                predicted={"curves": float(fit.predicted[-1])},
            )
        )
    fits = [fitted(curve, 1.0) for curve in curves]
    x1, x2, losses = (np.concatenate([getattr(f, k) for f in fits]) for k in ("x1", "x2", "losses"))
    block = max(1, round(len(losses) ** (1 / 3)))
    law = fit_features(x1, x2, losses, least_floor=least, block=block, seed=seed)
    return held, "the end of each run from its first half", {"curves": ByLaw(law=law, shape=shape)}


def _doubts(
    curves: list[LossCurve],
    pilots: list[Pilot],
    forecast: Forecast,
    best: Best,
    steps: int,
    missed: float,
) -> list[str]:
    """What a reader of the plan must know before using it."""
    found: list[str] = []
    if math.isnan(missed):
        found.append("nothing could be held out: treat the plan as a guess")
    elif missed > MISSED:
        found.append(f"what was held out was missed by {missed:.1%}: treat the plan as a guess")
    if len(pilots) < 9:
        found.append(f"{len(pilots)} pilots: 3 rates at each of 3 horizons would say more")
    if isinstance(forecast, ByLaw) and forecast.law.alike > ALIKE:
        found.append("the runs hardly differ in what the law sees: vary the rate and the horizon")
    references = sorted({p.reference for p in pilots})
    root = math.sqrt(steps)
    low, high = references[0] / root, references[-1] / root
    if best.rate >= 0.97 * high or best.rate <= 1.03 * low:
        side = "largest" if best.rate >= 0.97 * high else "smallest"
        found.append(
            f"the best rate is at or past the {side} tried, {low:.3g} to {high:.3g} at this "
            "horizon: add pilots there"
        )
    longest = max(p.steps for p in pilots)
    if longest < 2_500:
        found.append("below 2,500 steps the paper itself finds that the law is not yet tight")
    if steps > 20 * longest:
        found.append(f"the plan is {steps / longest:.0f} times longer than the longest pilot")
    noise = sorted({c.settings["noise"] for c in curves if "noise" in c.settings})
    if noise and noise[-1] > 1.01 * noise[0]:
        found.append(
            f"noise multipliers differ, {noise[0]:.3g} to {noise[-1]:.3g}: a law is of one noise, "
            "so give the pilots that of the planned run"
        )
    return found
