"""The discrete Gaussian and its parts against their probabilities, and the paper's own way."""

from __future__ import annotations

import random
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from scipy import stats

from steelyard.filters import discrete
from steelyard.filters.discrete import discrete_gaussian
from steelyard.filters.keystream import Keystream

REJECTED = 1e-6  # p-value


def stream(purpose: str = "a") -> Keystream:
    return Keystream("7" * 64, purpose)


class Words:
    """A keystream of chosen words, then none."""

    def __init__(self, *values: int):
        self.values = list(values)

    def words(self, count: int) -> np.ndarray[Any, Any]:
        assert count <= len(self.values)
        taken, self.values = self.values[:count], self.values[count:]
        return np.array(taken, np.uint64)


def fit(y: np.ndarray, s: float) -> float:
    """p-value of chi-square: do the numbers have P(y) ~ exp(-y^2 / (2 s^2))?"""
    far = int(12 * s) + 1
    k = np.arange(-far, far + 1)
    p = np.exp(-(k**2) / (2 * s * s))
    expected = p / p.sum() * len(y)
    counts = np.bincount(y + far, minlength=len(k))
    often = expected > 5
    rest = (counts[~often].sum(), expected[~often].sum())
    return stats.chisquare([*counts[often], rest[0]], [*expected[often], rest[1]]).pvalue


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 4, 5, 6, 8])
def test_probabilities_are_the_formulas(bits):
    y = discrete_gaussian(stream(), 300_000, bits)
    assert y.dtype == np.int64
    assert fit(y, 2**bits) > REJECTED
    for wrong in (0.95, 1.05):  # and no other scale's
        assert fit(y, wrong * 2**bits) < REJECTED
    if bits < 5:  # nor is zero drawn once for each sign
        assert fit(np.append(y, y[y == 0]), 2**bits) < REJECTED


def test_at_full_precision_it_is_normal_to_the_last_bit():
    """24 bits: the shape, then every bit below a strip, which a float would leave uneven."""
    y = discrete_gaussian(stream(), 400_000, 24)
    assert stats.kstest(y / 2**24, "norm").pvalue > REJECTED
    assert stats.kstest(np.abs(y[np.abs(y) < 2**20]) / 2**20, "uniform").pvalue > 1e-3
    for low in (1, 4, 8):
        counts = np.bincount(y & ((1 << low) - 1))
        assert stats.chisquare(counts).pvalue > REJECTED
    assert abs((y > 0).sum() - (y < 0).sum()) < 5 * len(y) ** 0.5


def test_numbers_are_independent_and_the_stream_goes_on():
    words = stream()
    one, two = (discrete_gaussian(words, 50_000, 20).astype(float) for _ in range(2))
    for x, y in ((one, two), (one[1:], one[:-1]), (np.abs(one[1:]), np.abs(one[:-1]))):
        assert abs(stats.pearsonr(x, y)[0]) < 5 / 50_000**0.5
    again = np.concatenate([discrete_gaussian(stream(), 50_000, 20)])
    assert np.array_equal(one, again)
    assert 2 * len(one) * 16 < words.position * 16 < 2 * len(one) * 24  # bytes a number


@pytest.mark.parametrize("count", [0, 1, 2, 77])
def test_as_many_as_were_asked_for(count):
    assert discrete_gaussian(stream(), count, 24).shape == (count,)


@pytest.mark.parametrize("gamma", [0.0, 2.0**-49, 0.01, 0.3, 0.5, 0.9, 1 - 2.0**-40])
def test_bernoulli_exp(gamma):
    n = 400_000
    kept = discrete._bernoulli_exp(stream(), np.full(n, int(gamma * 2**64), np.uint64)).sum()
    p = np.exp(-gamma)
    assert abs(kept - n * p) <= 5 * (n * p * (1 - p)) ** 0.5


def test_bernoulli_exp_word_by_word():
    """gamma = 1/2: thresholds 1/2, then 1/4, then 1/8 of a range that is 3/4 of all words."""
    half = np.array([2**63], np.uint64)
    below, above = 2**63 - 1, 2**63
    for words, wanted in (
        ([above], True),  # no at k = 1
        ([below, 2**62], False),  # yes, no at k = 2
        ([below, 2**62 - 1, 2**61], True),
        ([below, 2**62 - 1, 3 * 2**62, 2**64 - 1, 2**61], True),  # out of range: drawn again
        ([below, 2**62 - 1, 2**61 - 1, 2**61], False),  # k = 4: 2^-3 of all words
    ):
        fake: Any = Words(*words)
        assert discrete._bernoulli_exp(fake, half)[0] == wanted
        assert not fake.values


@pytest.mark.parametrize("coarse", range(5))
def test_ends_of_strips_are_right_to_the_last_bit(coarse):
    ends, guide = discrete._tables(coarse)
    precise = discrete._cumulative(coarse, 192)
    with localcontext(prec=80):
        total = sum((Decimal(-v * v) / (2 * 4**coarse)).exp() for v in range(700))
        reached = Decimal(0)
        for v, end in enumerate(ends[:-1]):
            reached += (Decimal(-v * v) / (2 * 4**coarse)).exp()
            assert int(reached / total * 2**64) == end
            assert abs(precise[v] - reached / total) < Decimal(2) ** -208
    assert ends[-1] == 2**64 - 1
    settled = np.flatnonzero(guide != 255)
    assert len(settled) > 0.99 * len(guide)
    for lowest in (0, 2**48 - 1):
        words = settled.astype(np.uint64) * np.uint64(2**48) + np.uint64(lowest)
        assert np.array_equal(np.searchsorted(ends, words), guide[settled])
        assert not np.isin(words, ends).any()


def test_a_word_on_an_end_is_settled_by_further_bits():
    """After 64 equal bits the next ones decide; 64 more that are equal, and then the next."""
    ends, _ = discrete._tables(4)
    for v in (0, 5, 40):
        end = int(ends[v])
        with localcontext(prec=200):
            more = int(discrete._cumulative(4, 192)[v] * 2**128) - (end << 64)
        for words, wanted in (
            ([more - 1], v),
            ([more + 1], v + 1),
            ([more, 0], v),
            ([more, 2**64 - 1], v + 1),
        ):
            fake: Any = Words(end, *words, 123)  # the last: fresh bits for place and sign
            word = fake.words(1)
            assert discrete._strips(fake, word, 4)[0] == wanted
            assert word[0] == 123
            assert not fake.values


def test_past_the_last_strip_nothing_is_drawn():
    ones: Any = Words(*[2**64 - 1] * 4)
    with pytest.raises(ArithmeticError, match="draw again"):
        discrete._strips(ones, ones.words(1), 4)
    near: Any = Words(2**64 - 1, 2**63, 0)  # 1 - 2^-65
    assert 140 < discrete._strips(near, near.words(1), 4)[0] < 155


def paper(rng: random.Random, s: int) -> int:
    """Algorithms 1 to 3 of 2004.00010 with t = s, as they stand, in whole numbers."""

    def bernoulli_exp(n: int, d: int) -> bool:  # n <= d
        k = 1
        while rng.randrange(d * k) < n:
            k += 1
        return k % 2 == 1

    def laplace() -> int:
        while True:
            u = rng.randrange(s)
            if not bernoulli_exp(u, s):
                continue
            v = 0
            while bernoulli_exp(1, 1):
                v += 1
            x, negative = u + s * v, rng.randrange(2)
            if x or not negative:
                return -x if negative else x

    while True:
        y = laplace()
        n, d = (abs(y) - s) ** 2, 2 * s * s
        if all(bernoulli_exp(1, 1) for _ in range(n // d)) and bernoulli_exp(n % d, d):
            return y


def test_the_paper_draws_from_the_same():
    rng, s = random.Random(0), 32
    slow = np.array([paper(rng, s) for _ in range(20_000)])
    fast = discrete_gaussian(stream(), 200_000, 5)
    assert fit(slow, s) > REJECTED
    assert stats.ks_2samp(slow, fast).pvalue > REJECTED
    assert stats.ks_2samp(slow, 1.1 * fast).pvalue < REJECTED
