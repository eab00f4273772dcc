from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ks_2samp

from steelyard.bench.quality import (
    exact_memorisation,
    extraction_strength,
    forget_quality,
    harmonic_mean,
    model_utility,
    option_probability,
    probability,
    truth_probability,
    truth_ratio,
    truth_ratio_forget,
    truth_ratio_utility,
)

LN = math.log


def test_harmonic_mean():
    assert harmonic_mean([1, 2, 4]) == pytest.approx(12 / 7)
    assert harmonic_mean([0.3, 0.0]) == 0.0
    for bad in ([], [-1.0], [math.nan], [math.inf]):
        with pytest.raises(ValueError, match="harmonic mean needs numbers of at least 0"):
            harmonic_mean(bad)


def test_probabilities_by_hand():
    assert probability([0.0, LN(2), LN(4)]) == pytest.approx([1.0, 0.5, 0.25])
    # p = 1/2 for the right option, 1/4 and 1/4 for the wrong ones
    assert option_probability([LN(2)], [[LN(4), LN(4)]]) == pytest.approx([0.5])
    assert option_probability([5.0], [[5.0, 5.0, 5.0]]) == pytest.approx([0.25])  # cannot tell
    assert option_probability([2000.0], [[2000.0]]) == pytest.approx([0.5])  # no 0 / 0


def test_truth_ratio_by_hand():
    # right: p = 1/2; wrong: p = 1/4 and 1/16, geometric mean 1/8
    assert truth_ratio([LN(2)], [[LN(4), LN(16)]]) == pytest.approx([0.25])
    assert truth_ratio([3.0], [[3.0, 3.0]]) == pytest.approx([1.0])
    tr = [0.25, 4.0, 1.0]
    assert truth_ratio_forget(tr) == pytest.approx((0.25 + 0.25 + 1.0) / 3)
    assert truth_ratio_utility(tr) == pytest.approx((0.75 + 0 + 0) / 3)
    assert truth_probability(tr) == pytest.approx((0.8 + 0.2 + 0.5) / 3)
    assert truth_ratio_forget([0.0, math.inf]) == truth_ratio_utility([math.inf]) == 0.0


def test_the_shapes_are_checked():
    with pytest.raises(ValueError, match=r"correct answers \[2\] and of the wrong ones \[1, 2\]"):
        truth_ratio([1.0, 2.0], [[1.0, 2.0]])
    with pytest.raises(ValueError, match="truth ratios must be at least one number"):
        truth_ratio_forget([])
    with pytest.raises(ValueError, match="found 1 with 1 NaN"):
        forget_quality([math.nan], [1.0])


def test_forget_quality_of_identical_samples_is_one():
    tr = np.random.default_rng(0).lognormal(size=40)
    found = forget_quality(tr, np.random.default_rng(1).permutation(tr))
    assert (found.p_value, found.log10_p, found.statistic) == (1.0, 0.0, 0.0)
    assert found.questions == (40, 40)


def test_forget_quality_is_the_two_sample_test():
    # D by hand: after 3 the one function is at 1, the other at 1/4
    found = forget_quality([1, 2, 3, 3], [3.0, 4, 5, 6])
    assert found.statistic == 0.75
    rng = np.random.default_rng(0)
    a, b = rng.lognormal(size=50), rng.lognormal(0.5, size=70)
    assert forget_quality(a, b).p_value == pytest.approx(ks_2samp(a, b).pvalue)


def test_p_depends_on_the_number_of_questions_and_the_distance_does_not():
    def shifted(n: int) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(n), np.arange(n) + 0.2 * n + 0.5

    few, many = forget_quality(*shifted(40)), forget_quality(*shifted(400))
    assert few.statistic == pytest.approx(many.statistic, abs=0.03)
    assert few.p_value > 0.2
    assert many.p_value < 1e-5


def test_log10_p_goes_on_where_p_is_zero():
    a, b = np.arange(5000.0), np.arange(5000.0) + 1e4
    found = forget_quality(a, b)
    assert found.p_value == 0.0
    assert found.log10_p == pytest.approx(LN(2) / LN(10) - 5000 / LN(10))
    # the leading term agrees with the exact logarithm where both exist
    near = forget_quality(np.arange(400.0), np.arange(400.0) + 1e4)
    assert near.log10_p == pytest.approx(math.log10(near.p_value))
    assert near.log10_p < -200


def test_model_utility():
    assert model_utility([0.5] * 9) == pytest.approx(0.5)
    assert model_utility([1.0] * 8 + [0.0]) == 0.0
    assert model_utility([1, 1, 1, 0.5]) == pytest.approx(4 / 5)
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        model_utility([1.2])


# logits of five positions over three tokens; argmax: 0 1 2 1 0
LOGITS = np.array([[3, 1, 1], [0, 2, 1], [0, 0, 5], [1, 9, 2], [4, 0, 0]], dtype=float)


@pytest.mark.parametrize(
    ("labels", "strength", "exact"),
    [
        ([0, 1, 2, 1, 0], 1.0, 1.0),  # all right
        ([1, 1, 2, 1, 0], 4 / 5, 4 / 5),  # right from position 1 on
        ([0, 1, 0, 1, 0], 2 / 5, 4 / 5),  # right from position 3 on, although 0 and 1 are too
        ([0, 1, 2, 1, 1], 1 / 5, 4 / 5),  # the last is wrong: 1 / n, the public code's quirk
        ([1, 0, 0, 0, 1], 1 / 5, 0.0),  # nothing is right: 1 / n as well
    ],
)
def test_memorisation_by_hand(labels, strength, exact):
    right = LOGITS.argmax(-1) == np.array(labels)
    assert extraction_strength(right) == pytest.approx(strength)
    assert exact_memorisation(right) == pytest.approx(exact)


def slow_extraction_strength(right: list[bool]) -> float:
    """OpenUnlearning's loop, k left where it broke off."""
    k = 0
    for k in range(len(right)):
        if all(right[k:]):
            break
    return 1 - k / len(right)


def test_extraction_strength_is_the_public_loop():
    rng = np.random.default_rng(0)
    for _ in range(200):
        right = rng.random(rng.integers(1, 9)) < 0.7
        assert extraction_strength(right) == slow_extraction_strength(right.tolist())
    assert extraction_strength([]) == 0.0
    with pytest.raises(ValueError, match="at least one token"):
        exact_memorisation([])
