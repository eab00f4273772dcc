"""The honest comparison: every arm gets a search of equal size, then the same seeds.

    for each arm and epsilon:
        every rate of the arm's grid on SEARCH_SEED, judged on samples held out of training
        the best is at an end of the grid -> one rate further, at most WIDENINGS times
        the best rate on every reported seed, all training samples, judged on the test set

All runs of one seed share weights, batches and noise as far as the arms allow, so that arms can be
compared seed by seed. The search is not charged to epsilon.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from steelyard.runs.config import TrainConfig

SEARCH_SEED = 100  # none of the reported ones
WIDENINGS = 2
ROLES = ("method", "baseline", "reference")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run. `part`: what it is judged on, "validation" or "test".

    features: a pretrained encoder whose frozen features of the texts are the data, if any.
    """

    config: TrainConfig
    part: str = "test"
    features: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run gave: accuracy in %, and what it cost."""

    accuracy: float
    seconds: float


Runs = Callable[[Sequence[Job]], Sequence[Outcome]]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a comparison: changes of the base settings, and its own grid of rates.

    rates: rising, by one constant factor (the grid is widened by it). private False: trained once,
    with epsilon None. epsilons: where it is trained, if not at all of the experiment. epsilon_of:
    the budget to train at where it is not the one it is listed under, as for an arm whose noise is
    that of another one; `note` says so in the table.
    """

    name: str
    rates: tuple[float, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    role: str = "method"
    private: bool = True
    epsilons: tuple[float, ...] | None = None
    epsilon_of: Callable[[float], float] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"arm {self.name!r}: role {self.role!r} is not one of {ROLES}")
        if len(self.rates) < 2 or self.rates[0] <= 0:
            raise ValueError(f"arm {self.name!r}: give two positive rates at least: {self.rates}")
        steps = [high / low for low, high in pairwise(self.rates)]
        if min(steps) <= 1 or max(steps) > 1.001 * min(steps):
            raise ValueError(
                f"arm {self.name!r}: rates must rise by one constant factor, found {self.rates}"
            )

    @property
    def factor(self) -> float:
        return self.rates[1] / self.rates[0]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Arms that are compared on one data set; `data` is its name in the table.

    Raises ValueError for two arms of one name, or grids of different sizes: an arm with more tries
    would win by its luck.
    """

    data: str
    base: TrainConfig
    arms: tuple[Arm, ...]
    epsilons: tuple[float, ...]
    seeds: tuple[int, ...]
    features: str | None = None

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"experiment on {self.data}: two arms are called {doubled.pop()!r}")
        sizes = {arm.name: len(arm.rates) for arm in self.arms}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"experiment on {self.data}: every arm needs a grid of the same size, found "
                + ", ".join(f"{size} for {name!r}" for name, size in sizes.items())
            )
        if SEARCH_SEED in self.seeds or len(set(self.seeds)) < 3:
            raise ValueError(
                f"experiment on {self.data}: report three seeds at least, none of them the "
                f"search's {SEARCH_SEED}; found {self.seeds}"
            )


@dataclass(kw_only=True)
class Cell:
    """One arm at one epsilon (None: not private): its search and its results, in %."""

    arm: Arm
    data: str
    epsilon: float | None
    search: dict[float, float] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)  # by seed
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """The best of the search; the lower one of equals."""
        return max(sorted(self.search), key=lambda rate: self.search[rate])

    @property
    def at_an_end(self) -> bool:
        """The best rate is the first or the last one tried: a better one may lie beyond."""
        return self.rate in (min(self.search), max(self.search))

    @property
    def mean(self) -> float:
        return statistics.mean(self.values.values())

    def entry(self) -> dict[str, Any]:
        """The cell in plain values: a line of the table."""
        return {
            "data": self.data,
            "arm": self.arm.name,
            "role": self.arm.role,
            "note": self.arm.note,
            "epsilon": self.epsilon,
            "mean": round(self.mean, 3),
            "sd": round(statistics.stdev(self.values.values()), 3),
            "seeds": list(self.values),
            "lr": self.rate,
            "values": [round(value, 3) for value in self.values.values()],
            "search": {f"{lr:g}": round(score, 3) for lr, score in sorted(self.search.items())},
            "rate_at_an_end": self.at_an_end,
        }


def measure(experiment: Experiment, runs: Runs) -> list[Cell]:
    """All cells of an experiment, searched and run; `runs` trains and may answer from a cache."""
    cells = [
        Cell(arm=arm, data=experiment.data, epsilon=epsilon)
        for arm in experiment.arms
        for epsilon in _epsilons(experiment, arm)
    ]
    todo = [(cell, rate) for cell in cells for rate in cell.arm.rates]
    for _ in range(1 + WIDENINGS):
        jobs = [_job(experiment, cell, rate, SEARCH_SEED, "validation") for cell, rate in todo]
        for (cell, rate), outcome in zip(todo, runs(jobs), strict=True):
            cell.search[rate] = outcome.accuracy
            cell.seconds += outcome.seconds
        todo = [(cell, _beyond(cell)) for cell in cells if cell.at_an_end]
        if not todo:
            break
    tasks = [(cell, seed) for cell in cells for seed in experiment.seeds]
    jobs = [_job(experiment, cell, cell.rate, seed, "test") for cell, seed in tasks]
    for (cell, seed), outcome in zip(tasks, runs(jobs), strict=True):
        cell.values[seed] = outcome.accuracy
        cell.seconds += outcome.seconds
    return cells


def _epsilons(experiment: Experiment, arm: Arm) -> tuple[float | None, ...]:
    if not arm.private:
        return (None,)
    return experiment.epsilons if arm.epsilons is None else arm.epsilons


def _beyond(cell: Cell) -> float:
    """One step further than the end of the grid at which the best rate lies."""
    factor = cell.arm.factor if cell.rate == max(cell.search) else 1 / cell.arm.factor
    return float(f"{cell.rate * factor:.6g}")


def _job(experiment: Experiment, cell: Cell, rate: float, seed: int, part: str) -> Job:
    epsilon = cell.epsilon
    if epsilon is not None and cell.arm.epsilon_of is not None:
        epsilon = cell.arm.epsilon_of(epsilon)
    config = experiment.base.replace(
        **cell.arm.changes,
        epsilon=epsilon,
        lr=rate,
        seed=seed,
        # the data are public benchmarks: a noise that can be drawn again hides nothing less
        noise_seed=seed if cell.arm.private else None,
    )
    if not math.isfinite(rate):
        raise ValueError(f"arm {cell.arm.name!r}: the rate {rate} is not finite")
    return Job(config=config, part=part, features=experiment.features)
