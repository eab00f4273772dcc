"""Least squares with coefficients that must not be negative, for many right-hand sides at once.

Three columns have eight sets of coefficients that may be positive. The solution is the best among
the plain least-squares solutions of those sets that turn out positive; each is solved by SVD, to
the last digits, where an iterative solver stops earlier.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from steelyard.plans.schedule_shapes import Floats


def solve(columns: Floats, y: Floats, signed: frozenset[int] = frozenset()) -> Floats:
    """argmin_c |columns c - y|^2, c >= 0 except at the columns in `signed`.

    columns: [n, k] with a small k. y: [n, R], one problem a column. Returns [k, R].
    Guarantees: the columns' units do not matter (they are scaled to the same length).
    """
    k = columns.shape[1]
    scale = np.sqrt((columns**2).sum(0))
    scale[scale == 0] = 1.0
    X = columns / scale
    best = np.zeros((k, y.shape[1]))
    least = np.full(y.shape[1], np.inf)
    free = [i for i in range(k) if i not in signed]
    for size in range(len(free) + 1):
        for some in combinations(free, size):
            chosen = sorted(signed.union(some))
            c = np.zeros_like(best)
            if chosen:
                c[chosen] = np.linalg.lstsq(X[:, chosen], y, rcond=None)[0]
            rss = ((X @ c - y) ** 2).sum(0)
            better = (rss < least) & (c[free] >= 0).all(0)
            best[:, better], least[better] = c[:, better], rss[better]
    return best / scale[:, None]
