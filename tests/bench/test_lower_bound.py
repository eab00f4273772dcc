"""The bound: its formula, and that it holds as often as it says."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from steelyard.bench.lower_bound import (
    FRACTIONS,
    Bound,
    Count,
    ceiling,
    guess,
    lower_bound,
    p_value,
    pooled,
)

LEVEL = 0.05 / len(FRACTIONS)


def by_definition(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """beta + 2 m delta max_i P[v > W >= v - i] / i with W ~ Binomial(r, q), term by term."""
    q = 1 / (1 + math.exp(-epsilon))
    chance = [math.comb(r, w) * q**w * (1 - q) ** (r - w) for w in range(r + 1)]
    alpha = max((sum(chance[max(v - i, 0) : v]) / i for i in range(1, v + 1)), default=0.0)
    return min(1.0, sum(chance[v:]) + 2 * m * delta * alpha)


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3, 0.02])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
def test_p_value_is_its_definition(epsilon, delta):
    for m, r in ((60, 40), (40, 40), (1000, 9)):
        for v in range(r + 1):
            found = p_value(canaries=m, guesses=r, right=v, epsilon=epsilon, delta=delta)
            assert found == pytest.approx(by_definition(m, r, v, epsilon, delta), rel=1e-9)


def test_more_right_guesses_are_less_likely_and_refute_more():
    values = [p_value(canaries=90, guesses=60, right=v, epsilon=1, delta=1e-4) for v in range(61)]
    assert values[0] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(values))
    bounds = [
        lower_bound([Count(guesses=60, right=v)], canaries=90, delta=1e-4, confidence=0.95).epsilon
        for v in range(61)
    ]
    assert bounds[30] == 0.0
    assert bounds == sorted(bounds)
    assert bounds[60] > 2


def test_the_bound_is_where_p_crosses_the_level():
    count = Count(guesses=500, right=440)
    looked = {"canaries": 1000, "delta": 1e-5}
    bound = lower_bound([count], confidence=0.95, **looked)
    assert bound.count == count
    for off, refuted in ((-1e-6, True), (1e-6, False)):
        p = p_value(guesses=500, right=440, epsilon=bound.epsilon + off, **looked)
        assert (p < 0.05) == refuted


def randomised_response(epsilon: float, m: int, runs: int, seed: int) -> list[tuple[Count, ...]]:
    """Counts of audits of the mechanism that tells each coin's truth with probability q, exactly
    epsilon-private; all answers are equally bold."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(runs):
        included = rng.random(m) < 0.5
        truthful = rng.random(m) < 1 / (1 + math.exp(-epsilon))
        found.append(guess(np.where(included == truthful, 1.0, -1.0), included))
    return found


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 2.5])
def test_randomised_response_passes_its_epsilon_at_most_one_time_in_twenty(epsilon):
    runs = 2000
    counts = randomised_response(epsilon, 400, runs, seed=1)
    looked = {"canaries": 400, "delta": 0.0, "confidence": 0.95}
    bounds = np.array([lower_bound(c, **looked).epsilon for c in counts])
    assert (bounds > epsilon).mean() <= 0.05
    if epsilon:
        assert np.median(bounds) > 0.3 * epsilon  # and it is no empty bound


def test_picking_the_best_count_without_correction_would_not_hold():
    """The same audits, each number of guesses at the whole level and then the best of them."""
    counts = randomised_response(1.0, 400, 2000, seed=1)
    looked = {"canaries": 400, "delta": 0.0, "confidence": 0.95}
    best = [max(lower_bound([one], **looked).epsilon for one in c) for c in counts]
    assert (np.array(best) > 1.0).mean() > 0.05


def test_delta_is_accounted_for():
    """Randomised response that shows all coins with probability delta: (epsilon, delta)-private."""
    delta, runs = 0.08, 1000
    rng = np.random.default_rng(2)
    honest = randomised_response(1.0, 100, runs, seed=3)
    shown = rng.random(runs) < delta
    counts = [
        tuple(Count(guesses=c.guesses, right=c.guesses) for c in some) if all_shown else some
        for some, all_shown in zip(honest, shown, strict=True)
    ]
    looked = {"canaries": 100, "confidence": 0.95}
    with_delta = [lower_bound(c, delta=delta, **looked).epsilon for c in counts]
    without = [lower_bound(c, delta=0.0, **looked).epsilon for c in counts]
    assert (np.array(with_delta) > 1.0).mean() <= 0.05
    assert (np.array(without) > 1.0).mean() > 0.05


def test_pooled_runs_are_one_audit_of_all_their_canaries():
    runs = [randomised_response(1.0, 400, 5, seed=s) for s in range(300)]
    looked = {"canaries": 2000, "delta": 0.0, "confidence": 0.95}
    bounds = np.array([lower_bound(pooled(five), **looked).epsilon for five in runs])
    assert (bounds > 1.0).mean() <= 0.05
    alone = lower_bound(runs[0][0], canaries=400, delta=0.0, confidence=0.95).epsilon
    assert np.median(bounds) > alone
    two = [(Count(guesses=4, right=3), Count(guesses=8, right=8)), (Count(guesses=4, right=1),) * 2]
    assert pooled(two) == (Count(guesses=8, right=4), Count(guesses=12, right=9))


def test_the_ceiling_is_the_bound_of_perfect_guesses():
    m = 1000
    without_delta = ceiling(canaries=m, delta=0.0, confidence=0.95)
    q = LEVEL ** (1 / (m // 2))  # q^r = level
    assert without_delta == pytest.approx(math.log(q / (1 - q)), abs=1e-6)
    assert ceiling(canaries=m, delta=1e-5, confidence=0.95) < without_delta
    scores = np.where(included := np.arange(m) % 3 == 0, 1.0, -1.0)
    perfect = lower_bound(guess(scores, included), canaries=m, delta=0.0, confidence=0.95)
    assert perfect == Bound(epsilon=without_delta, count=Count(guesses=m // 2, right=m // 2))


def test_guesses_follow_the_scores_farthest_from_zero():
    scores = np.zeros(32)
    scores[[3, 5, 7, 11]] = [-9.0, 4.0, 1.0, -0.5]
    included = np.zeros(32, dtype=bool)
    included[[5, 11]] = True  # 3: right, 5: right, 7: wrong, 11: wrong; zeros: out, and right
    counts = guess(scores, included)
    assert [c.guesses for c in counts] == [2, 4, 8, 16]
    assert [c.right for c in counts] == [2, 2, 6, 14]


def test_a_perfect_mechanism_without_end_stops_the_search():
    count = Count(guesses=10**6, right=10**6)
    bound = lower_bound([count], canaries=10**6, delta=0.0, confidence=0.5)
    assert 10 < bound.epsilon < 60


def test_what_makes_no_sense_is_refused():
    right: dict[str, Any] = {"canaries": 10, "guesses": 4, "right": 2, "epsilon": 1, "delta": 0}
    for wrong in ({"right": 5}, {"guesses": 11}, {"epsilon": -1.0}, {"delta": 1.5}):
        with pytest.raises(ValueError, match="guesses <= canaries"):
            p_value(**(right | wrong))
    with pytest.raises(ValueError, match="nan"):
        guess(np.array([1.0, math.nan]), np.array([True, False]))
