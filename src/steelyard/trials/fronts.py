"""Fronts of points with two qualities, both higher is better, and the hypervolume below them.

| symbol | here |
|---|---|
| p = (x, y) | a point, as (retain quality, forget quality) |
| front | the points that no other point is at least as good as in both, and better in one |
| HV | area of the union over p of the rectangles from the reference point (a, b) to p |

HV: Zitzler, Thiele 1998. In two dimensions it is exact after one sort, O(n log n).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

Point = tuple[float, float]


def front(points: Iterable[Point]) -> list[Point]:
    """The points that none dominates, by rising x (and so by falling y), equal ones once.

    Raises ValueError for a point that is not finite.
    """
    found: list[Point] = []
    best = -math.inf
    for x, y in sorted({(float(x), float(y)) for x, y in points}, key=_checked, reverse=True):
        if y > best:  # of all with at least this x
            found.append((x, y))
            best = y
    return found[::-1]


def hypervolume(points: Iterable[Point], reference: Point = (0.0, 0.0)) -> float:
    """The area that the points dominate above `reference`; 0 for none above it.

    Range, for points in the unit square and the default: [0, 1]; higher is better; 1 for a point
    (1, 1). Never falls when a point is added. Raises ValueError for a point that is not finite.
    """
    a, b = reference
    area, left = 0.0, a
    for x, y in front(points):
        if x > left and y > b:
            area += (x - left) * (y - b)
            left = x
    return area


def attained(points: Iterable[Point], x: float) -> float:
    """The largest y among the points with at least this x; 0 where there is none."""
    return max((p[1] for p in points if p[0] >= x), default=0.0)


Cell = tuple[float, float]  # learning rate, weight of the retain row


@dataclass
class Grid:
    """One method's trials (`steelyard.trials.forgetting.forget`): of each cell one for each seed.

    Per seed, so that methods can be compared seed by seed:
    union: HV of all cells' points together, what tuning on the front gives. over_cells: the mean of
    the cells' own HV, what a cell taken blindly gives. over_rates: that mean over the rates alone,
    at the weight that is best for it.
    """

    cells: dict[Cell, list[dict[str, Any]]] = field(default_factory=dict)

    def points(self, seed: int) -> list[Point]:
        """(retain quality, forget quality) of every look at every cell; seed: its place."""
        return [point for trials in self.cells.values() for point in points_of(trials[seed])]

    @property
    def seeds(self) -> range:
        return range(len(next(iter(self.cells.values()))))

    def at(self, cell: Cell) -> list[float]:
        return [hypervolume(points_of(trial)) for trial in self.cells[cell]]

    @property
    def union(self) -> list[float]:
        return [hypervolume(self.points(seed)) for seed in self.seeds]

    @property
    def over_cells(self) -> list[float]:
        return _means([self.at(cell) for cell in self.cells])

    @property
    def over_rates(self) -> list[float]:
        weights = {weight for _, weight in self.cells}
        means = [_means([self.at(c) for c in self.cells if c[1] == w]) for w in sorted(weights)]
        return max(means, key=fmean)

    @property
    def best(self) -> Cell:
        """The cell with the largest mean HV over the seeds."""
        return max(self.cells, key=lambda cell: fmean(self.at(cell)))

    def by_rate(self) -> dict[float, list[float]]:
        """HV of each rate's best weight, by seed."""
        found: dict[float, list[float]] = {}
        for cell in self.cells:
            values = self.at(cell)
            if cell[0] not in found or fmean(values) > fmean(found[cell[0]]):
                found[cell[0]] = values
        return dict(sorted(found.items()))

    def total(self, name: str) -> float:
        return sum(float(trial[name]) for trials in self.cells.values() for trial in trials)

    def mean(self, name: str) -> float | None:
        """Over all trials that have it."""
        told = [t[name] for trials in self.cells.values() for t in trials if t[name] is not None]
        return fmean(told) if told else None


def points_of(trial: dict[str, Any]) -> list[Point]:
    return [(retained, forgotten) for *_, forgotten, retained in trial["trajectory"]]


def _means(values: Sequence[Sequence[float]]) -> list[float]:
    """Over the cells, seed by seed."""
    return [fmean(one) for one in zip(*values, strict=True)]


def _checked(point: Point) -> Point:
    if not all(map(math.isfinite, point)):
        raise ValueError(f"the point {point} is not finite: leave diverged runs out")
    return point
