"""Which groups of parameters are worth training under a budget of parameters: a 0-1 knapsack.

Xu and Bu, "Adaptive parameter-efficient fine-tuning via Hessian-informed subset selection"
(AdaPEFT), arXiv 2505.12579, section 2.1.

| symbol | here |
|---|---|
| v_k, n_k | `values`, `sizes`: what group k gains, how many parameters it has |
| eps | `budget`, in parameters |
| z_k | 1 for the chosen |

    exact       max sum_k z_k v_k   subject to   sum_k z_k n_k <= eps,  z in {0, 1}^K
    prefixes    the nested sets in order of decreasing density v_k / n_k
    greedy      the longest prefix within the budget: optimal where it fills the budget, else not

Groups without a finite positive value are never chosen. Equal groups are told apart by their order
alone: bring them into one that means something.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# HiGHS stops at an absolute gap of 1e-6, which scipy cannot set: so the objective is scaled up
SCALE = 1e6


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Chosen groups, as rising indices; the sum of their values, and of their parameters."""

    chosen: tuple[int, ...]
    value: float
    size: int


def in_parameters(budget: int | float | str, total: int) -> int:
    """A budget in parameters: 5000, "5000", or "1%" of the model's `total`, rounded down.

    Raises ValueError for anything else, numbers below 0, and shares above 100%.
    """
    wrong = f"budget {budget!r}: give a number of parameters, or a share of them such as '1%'"
    text = str(budget).strip().replace(",", "").replace("_", "")
    share = text.endswith("%")
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise ValueError(wrong) from None
    if not math.isfinite(number) or number < 0 or isinstance(budget, bool):
        raise ValueError(wrong)
    if share:
        if number > 100:
            raise ValueError(f"budget {budget!r} is more than the whole model: use at most '100%'")
        return math.floor(number * total / 100 + 1e-9)  # 1e-9: 0.29 of 100 is not 28
    if number != int(number):
        raise ValueError(wrong)
    return int(number)


def by_density(values: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Indices by decreasing v_k / n_k, ties by size; those that are worth nothing left out."""
    _check(values, sizes)
    worth = [k for k, v in enumerate(values) if math.isfinite(v) and v > 0]
    return sorted(worth, key=lambda k: (-values[k] / sizes[k], sizes[k], k))


def prefixes(values: Sequence[float], sizes: Sequence[int]) -> list[Choice]:
    """The nested sets of rising size: each is the best of all sets of its size or less."""
    order = by_density(values, sizes)
    return [_choice(order[:m], values, sizes) for m in range(1, len(order) + 1)]


def greedy(values: Sequence[float], sizes: Sequence[int], budget: int) -> Choice:
    """The longest prefix within the budget; it may be empty."""
    fitting = [choice for choice in prefixes(values, sizes) if choice.size <= budget]
    return fitting[-1] if fitting else _choice([], values, sizes)


def best_single(values: Sequence[float], sizes: Sequence[int], budget: int) -> Choice:
    """The one group of the highest value that fits; the first of equal ones, or none."""
    fitting = [k for k in by_density(values, sizes) if sizes[k] <= budget]
    return _choice([max(fitting, key=lambda k: values[k])] if fitting else [], values, sizes)


def exact(values: Sequence[float], sizes: Sequence[int], budget: int) -> Choice:
    """The optimum, by branch and bound (scipy's HiGHS); any sizes, K up to a hundred in a moment.

    Guarantees: the budget is never exceeded, counted in whole numbers; the value is never below
    that of `greedy` and `best_single`, nor more than 1e-9 of it below the optimum.

    Raises ValueError for sizes below 1, lengths that differ; RuntimeError if the solver fails.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    items = [k for k in by_density(values, sizes) if sizes[k] <= budget]
    simple = max(
        greedy(values, sizes, budget), best_single(values, sizes, budget), key=lambda c: c.value
    )
    if sum(sizes[k] for k in items) <= budget:  # all that may be chosen; none, too
        return _choice(items, values, sizes)
    v = np.array([values[k] for k in items], float)
    n = np.array([sizes[k] / budget for k in items])  # [items], in (0, 1]
    limits: list[Any] = [LinearConstraint(n, ub=1.0)]
    while True:
        found = milp(
            -SCALE * v / v.max(),
            constraints=limits,
            integrality=np.ones(len(v)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            raise RuntimeError(f"the solver found no optimum: {found.message}")
        z = np.round(found.x)
        best = _filled([k for k, one in zip(items, z, strict=True) if one], items, sizes, budget)
        if sum(sizes[k] for k in best) <= budget:
            return max(simple, _choice(best, values, sizes), key=lambda c: c.value)
        limits.append(LinearConstraint(z, ub=z.sum() - 1))  # too large by less than its tolerance


def _filled(
    chosen: list[int], items: Iterable[int], sizes: Sequence[int], budget: int
) -> list[int]:
    """With the items that still fit: values far below the largest are zero to the solver."""
    left = budget - sum(sizes[k] for k in chosen)
    for k in items:
        if k not in chosen and sizes[k] <= left:
            chosen.append(k)
            left -= sizes[k]
    return chosen


def _choice(chosen: Iterable[int], values: Sequence[float], sizes: Sequence[int]) -> Choice:
    chosen = tuple(sorted(chosen))
    value = math.fsum(values[k] for k in chosen)
    return Choice(chosen=chosen, value=value, size=sum(int(sizes[k]) for k in chosen))


def _check(values: Sequence[float], sizes: Sequence[int]) -> None:
    if len(values) != len(sizes):
        raise ValueError(f"{len(values)} values and {len(sizes)} sizes: give one of each per group")
    if wrong := [n for n in sizes if n < 1 or n != int(n)]:
        raise ValueError(f"a group of {wrong[0]} parameters: sizes are whole numbers from 1 on")
