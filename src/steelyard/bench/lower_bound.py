"""A lower bound on epsilon from right guesses about who took part: one training run is enough.

Steinke, Nasr, Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023, arXiv
2305.08846: Algorithm 1, Theorem 5.2 with the p-value of Appendix D.

| symbol | here |
|---|---|
| m | `canaries`: samples that were each included by a fair coin of their own |
| r | `guesses`: canaries of which the auditor says "in" or "out"; the other m - r abstain |
| v | `right`: guesses that agree with the coins |
| q | 1 / (1 + exp(-epsilon)), how often epsilon-randomised response tells the truth |
| beta | P[Binomial(r, q) >= v] |
| alpha | max_i P[v > Binomial(r, q) >= v - i] / i |
| p | beta + 2 m delta alpha: the chance of v right guesses, at most, if (epsilon, delta) holds |

The bound is the largest epsilon with p < 1 - confidence. Several r are tried; each is tested at
(1 - confidence) / (number of r), so that the best of them still holds with `confidence`
(Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import binom

FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # r / m: few bold guesses, or many timid ones
LEAST = 16  # canaries
_HALVINGS = 30
_MOST = 60.0  # epsilon; exp(-60) is lost beside 1


@dataclass(frozen=True, kw_only=True)
class Count:
    """`right` of `guesses` guesses agree with the coins."""

    guesses: int
    right: int


@dataclass(frozen=True, kw_only=True)
class Bound:
    """epsilon is at least `epsilon`, because of `count`."""

    epsilon: float
    count: Count


def guess(scores: np.ndarray, included: np.ndarray) -> tuple[Count, ...]:
    """Guess "in" where a score is positive, "out" elsewhere, for the r scores farthest from 0.

    scores float [m], included bool [m] -> one `Count` for each r = m * fraction of `FRACTIONS`.
    Guarantees: which are guessed, and how, depends on the scores alone (ties: the first of them).
    Raises ValueError when a score is nan.
    """
    if np.isnan(scores).any():
        raise ValueError("a canary's score is nan: the training diverged; lower the learning rate")
    boldest = np.argsort(-np.abs(scores), kind="stable")
    agrees = ((scores > 0) == included)[boldest]
    return tuple(Count(guesses=r, right=int(agrees[:r].sum())) for r in _sizes(len(scores)))


def p_value(*, canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """At most how likely `right` or more right guesses are if (epsilon, delta) holds.

    Guarantees: in [0, 1], decreasing in `right`; 1 for right = 0.
    Raises ValueError unless 0 <= right <= guesses <= canaries, epsilon >= 0, 0 <= delta <= 1.
    """
    if not 0 <= right <= guesses <= canaries or epsilon < 0 or not 0 <= delta <= 1:
        raise ValueError(
            f"need right <= guesses <= canaries, epsilon >= 0 and delta in [0, 1]; found {right}, "
            f"{guesses}, {canaries}, {epsilon}, {delta}"
        )
    if right == 0:
        return 1.0
    q = 1.0 / (1.0 + math.exp(-epsilon))
    beta = float(binom.sf(right - 1, guesses, q))
    if delta == 0:
        return min(1.0, beta)
    i = np.arange(1, right + 1)
    below = np.cumsum(binom.pmf(right - i, guesses, q))  # P[v > Binomial >= v - i]
    alpha = float((below / i).max())
    return min(1.0, beta + 2 * canaries * delta * alpha)


def lower_bound(
    counts: Sequence[Count], *, canaries: int, delta: float, confidence: float
) -> Bound:
    """The largest epsilon that the best of these counts refutes, all of them corrected for.

    Guarantees: if the training is (epsilon, delta)-private, the bound exceeds epsilon with
    probability at most 1 - confidence. 0 if nothing is refuted; never above 60.
    """
    level = (1.0 - confidence) / len(counts)
    bounds = [
        Bound(epsilon=_refuted(canaries, c.guesses, c.right, delta, level), count=c) for c in counts
    ]
    return max(bounds, key=lambda bound: bound.epsilon)


def pooled(runs: Sequence[Sequence[Count]]) -> tuple[Count, ...]:
    """Several runs as one, r by r: runs with coins of their own are one mechanism on all canaries.

    Each canary sits in one run only, so the product of the runs is as private for it as that run.
    Use with `canaries` summed over the runs.
    """
    return tuple(
        Count(guesses=sum(c.guesses for c in same), right=sum(c.right for c in same))
        for same in zip(*runs, strict=True)
    )


def ceiling(*, canaries: int, delta: float, confidence: float) -> float:
    """The bound of a guesser who is always right: the largest that so many canaries can give."""
    perfect = [Count(guesses=r, right=r) for r in _sizes(canaries)]
    return lower_bound(perfect, canaries=canaries, delta=delta, confidence=confidence).epsilon


def _sizes(canaries: int) -> list[int]:
    return [max(1, round(canaries * fraction)) for fraction in FRACTIONS]


@lru_cache(maxsize=4096)
def _refuted(canaries: int, guesses: int, right: int, delta: float, level: float) -> float:
    """Bisection. A claim of less epsilon is the stronger claim, so any crossing of p is sound."""

    def refuted(epsilon: float) -> bool:
        return (
            p_value(canaries=canaries, guesses=guesses, right=right, epsilon=epsilon, delta=delta)
            < level
        )

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
        if high > _MOST:
            return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
