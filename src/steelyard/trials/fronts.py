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
from collections.abc import Iterable

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


def _checked(point: Point) -> Point:
    if not all(map(math.isfinite, point)):
        raise ValueError(f"the point {point} is not finite: leave diverged runs out")
    return point
