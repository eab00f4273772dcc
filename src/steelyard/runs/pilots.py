"""Finished runs as pilots: what they must share, their ends in numbers, their schedule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steelyard.plans.bound import features
from steelyard.plans.forecast import Pilot
from steelyard.plans.laws import Schedule
from steelyard.plans.schedule_shapes import Floats, Shape
from steelyard.runs.loss_curves import LossCurve


def refuse_mixtures(curves: Sequence[LossCurve]) -> None:
    """Raises ValueError for one run given twice, and for runs that no one law can describe."""
    names = [curve.name for curve in curves]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"the run '{twice}' is given twice: give each once")
    first = curves[0]
    for curve in curves[1:]:
        if curve.split != first.split:
            raise ValueError(
                f"'{first.name}' has its {first.split} loss and '{curve.name}' its {curve.split} "
                "loss: choose one with --loss"
            )
        for key in first.settings.keys() & curve.settings.keys() - {"noise"}:
            if first.settings[key] != curve.settings[key]:
                raise ValueError(
                    f"'{curve.name}' has {key} {curve.settings[key]!r} and '{first.name}' "
                    f"{first.settings[key]!r}: a law is of one setting, plan each by itself"
                )


def pilot_of(curve: LossCurve) -> Pilot:
    """A curve's end in numbers."""
    (x1,), (x2,) = features(curve.lr)
    return Pilot(
        name=curve.name,
        steps=curve.horizon,
        peak=curve.peak,
        x1=float(x1),
        x2=float(x2),
        loss=curve.final(),
    )


def planned_shape(curves: Sequence[LossCurve], schedule: Shape | None) -> tuple[Schedule, str]:
    """The schedule to plan with and its name: `schedule`, or that of the longest run, stretched."""
    if schedule is not None:
        return schedule, str(schedule)
    longest = max(curves, key=lambda curve: curve.horizon)
    if longest.shape is not None:
        return longest.shape, str(longest.shape)
    values, T = longest.lr / longest.peak, longest.horizon

    def stretched(steps: int) -> Floats:
        places = (np.arange(steps) + 0.5) / steps
        return np.interp(places, (np.arange(T) + 0.5) / T, values)

    return stretched, f"that of {longest.name}"
