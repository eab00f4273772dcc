"""What finished runs say about a longer one, by two methods that are first tested on held-out runs.

Bu, Xu, Mao 2026, arXiv 2602.07145, sections 4 and 5.

| method | fits | best peak |
|---|---|---|
| law | (4.1): Linf, Dt, Gt to all pilots (`steelyard.plans.laws`) | q1/(q2 sqrt(T)), any rate |
| lines | a line in 1/sqrt(T) to each eta_ref (`steelyard.plans.lines`) | one of the eta_ref tried |

The test is the planner's own job in small: hide the longest runs, predict them from the others, and
let each method choose among their rates. Which method is right depends on the runs: the law's
single bowl in eta_peak is a strong claim, lines assume nothing between the rates tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from steelyard.plans.bound import constants
from steelyard.plans.laws import Law, Schedule, fit_features
from steelyard.plans.lines import SAME, Line, best_reference, by_reference

LIKE = 0.05  # schedules whose constants differ by less have one line


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """A finished run in numbers: T, eta_peak, its features at the end, its final loss."""

    name: str
    steps: int
    peak: float
    x1: float
    x2: float
    loss: float

    @property
    def reference(self) -> float:
        """eta_ref = eta_peak sqrt(T)."""
        return self.peak * math.sqrt(self.steps)

    def follows(self, shape: Schedule) -> bool:
        """Whether the run's own schedule has the constants of `shape`, within 5 %."""
        c = constants(shape, self.steps)
        own = (self.x1 * self.peak * self.steps, self.x2 / self.peak)
        return all(
            abs(a / b - 1) <= LIKE for a, b in zip(own, (c.q1_squared, c.q2_squared), strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class Best:
    """A peak rate for a horizon, and the loss it is predicted to reach.

    Intervals of 90 %, None where there are too few runs; of the method, not of one run's luck.
    """

    rate: float
    loss: float
    rate_interval: tuple[float, float] | None
    loss_interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ByLaw:
    """The law's forecast."""

    law: Law
    shape: Schedule

    def predict(self, pilot: Pilot) -> float:
        return float(self.law.at(pilot.x1, pilot.x2))

    def best(self, steps: int) -> Best:
        def rate(law: Law) -> float:
            return law.best_rate(steps, self.shape)

        def loss(law: Law) -> float:
            return law.best_loss(steps, self.shape)

        law = self.law
        return Best(
            rate=rate(law),
            loss=loss(law),
            rate_interval=law.interval(rate),
            loss_interval=law.interval(loss),
        )

    def required_steps(self, target: float) -> int:
        return self.law.required_steps(target, self.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class ByLines:
    """The lines' forecast. The rate's interval: the eta_ref tried whose lines, with their errors,
    reach under the lowest."""

    lines: Mapping[float, Line]

    def predict(self, pilot: Pilot) -> float:
        """nan for a run whose eta_ref has no line."""
        near = min(self.lines, key=lambda reference: abs(math.log(reference / pilot.reference)))
        same = abs(math.log(near / pilot.reference)) <= SAME
        return self.lines[near](pilot.steps) if same else math.nan

    def best(self, steps: int) -> Best:
        reference = best_reference(self.lines, steps)
        line, root = self.lines[reference], math.sqrt(steps)
        interval = line.interval(steps)
        rivals = None
        if interval is not None:
            low = {r: (other.interval(steps) or (math.inf,))[0] for r, other in self.lines.items()}
            near = [r for r in self.lines if r == reference or low[r] <= line(steps)]
            rivals = (min(near) / root, max(near) / root)
        return Best(
            rate=reference / root,
            loss=line(steps),
            rate_interval=rivals,
            loss_interval=interval,
        )

    def required_steps(self, target: float) -> int:
        """The shortest horizon at which some line is at `target`. ValueError where none is ever."""
        needed = [line.required_steps(target) for line in self.lines.values()]
        least = min(needed)
        if not math.isfinite(least):
            floor = min(line.floor for line in self.lines.values())
            raise ValueError(
                f"no horizon reaches the loss {target:g}: the lines end at {floor:.4g}"
            )
        return max(1, math.ceil(least))


Forecast = ByLaw | ByLines
Method = Callable[[Sequence[Pilot]], Forecast | None]


def law_of(
    pilots: Sequence[Pilot], shape: Schedule, *, bootstrap: int = 400, seed: int = 0
) -> ByLaw | None:
    """The law of three pilots or more, else None. Linf >= 0 unless a loss is negative."""
    if len(pilots) < 3:
        return None
    losses = np.array([p.loss for p in pilots])
    law = fit_features(
        [p.x1 for p in pilots],
        [p.x2 for p in pilots],
        losses,
        least_floor=None if losses.min() < 0 else 0.0,
        bootstrap=bootstrap,
        seed=seed,
    )
    return ByLaw(law=law, shape=shape)


def lines_of(pilots: Sequence[Pilot], shape: Schedule) -> ByLines | None:
    """The lines of the pilots that follow the schedule `shape`; None without an eta_ref at two
    horizons."""
    alike = [p for p in pilots if p.follows(shape)]
    lines = by_reference((p.peak, p.steps, p.loss) for p in alike)
    return ByLines(lines=lines) if lines else None


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A run that was predicted without having been seen: predicted loss by method."""

    name: str
    steps: int
    peak: float
    measured: float
    predicted: Mapping[str, float]

    def error(self, method: str) -> float:
        """(predicted - measured) / |measured|; nan where the method says nothing."""
        return (self.predicted.get(method, math.nan) - self.measured) / abs(self.measured)


def hold_out(
    pilots: Sequence[Pilot], hidden: Sequence[Pilot], methods: Mapping[str, Method]
) -> list[HeldOut]:
    """Predict `hidden` by each method fitted to the other pilots."""
    rest = [p for p in pilots if p not in hidden]
    fitted = {name: method(rest) for name, method in methods.items()}
    return [
        HeldOut(
            name=p.name,
            steps=p.steps,
            peak=p.peak,
            measured=p.loss,
            predicted={name: f.predict(p) for name, f in fitted.items() if f is not None},
        )
        for p in hidden
    ]


def largest_error(held: Sequence[HeldOut], method: str) -> float:
    """The largest |error| of a method; nan where it predicted nothing."""
    errors = [abs(h.error(method)) for h in held]
    return max((e for e in errors if not math.isnan(e)), default=math.nan)


def regret(held: Sequence[HeldOut], method: str) -> float:
    """How much worse than the best of the held-out runs the one is that the method thinks best.

    Over the runs of one horizon, two or more; the worst horizon counts; nan where there is none.
    """
    worst = math.nan
    for steps in {h.steps for h in held}:
        runs = [h for h in held if h.steps == steps and not math.isnan(h.error(method))]
        if len(runs) > 1:
            chosen = min(runs, key=lambda h: h.predicted[method]).measured
            best = min(h.measured for h in held if h.steps == steps)
            worst = np.fmax(worst, (chosen - best) / abs(best))
    return float(worst)


def better(held: Sequence[HeldOut], methods: Sequence[str]) -> str:
    """The method with the smaller mean |error| on runs that all predicted; the first on a tie.

    Without such runs, the one that predicted most of them.
    """
    said = {m: [not math.isnan(h.error(m)) for h in held] for m in methods}
    common = [h for h, *all_said in zip(held, *said.values(), strict=True) if all(all_said)]
    if not common:
        return max(methods, key=lambda m: sum(said[m]))
    return min(methods, key=lambda m: sum(abs(h.error(m)) for h in common))
