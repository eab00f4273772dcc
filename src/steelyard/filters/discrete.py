"""Exact samples of the discrete Gaussian N_Z(0, s^2), s = 2^bits:  P(y) ~ exp(-y^2 / (2 s^2)).

Canonne, Kamath, Steinke 2020, arXiv 2004.00010. Nothing is computed in floating point: there are
only comparisons of whole random words with whole numbers, so every probability is the formula's.
Their Algorithm 1 is used as it is. Their proposal (Algorithm 2, a discrete Laplace number, of which
half is rejected) is replaced by that of Ducas, Durmus, Lepoint, Lyubashevsky 2013 (Lattice
signatures and bimodal Gaussians, section 6): a strip, and a place in it, of which 2 % are rejected.

| symbol | here | meaning |
|---|---|---|
| s | `2**bits` | scale; L K = s |
| L | `2**coarse` | strips of the half line in one s |
| K | `width` | numbers in one strip |
| V | `strip` | P(V) ~ exp(-V^2 / (2 L^2)), V = 0, 1, 2, ... |
| U | `place` | uniform in 0 .. K - 1 |
| y | `V K + U` | kept with probability exp(-U (2 V K + U) / (2 s^2)), then given a sign |

exp(-V^2 / 2 L^2) exp(-U (2 V K + U) / 2 s^2) = exp(-y^2 / 2 s^2). Zero comes with two signs: one of
them is rejected.

All fits 64 bits: V < 256 (else `_decide` stops, with probability below e^-127), K <= 2^20, so the
numerator U (2 V K + U) < K^2 (2 V + 1) < 2 s^2, the denominator, which is 2^49 at most.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache

import numpy as np
from numpy.typing import NDArray

from steelyard.filters.keystream import Keystream

FINEST = 24  # bits: 2 s^2 k stays below 2^64 for every k that Algorithm 1 can reach
_COARSE = 4  # log2 L, for the 2 % above
_GUIDE = 16  # bits of a word that settle its strip, almost always
_OPEN = 255  # mark of the guide: more bits are needed
_LAST = 255  # strip; P(V > 255) < e^-127, and then nothing is released


def discrete_gaussian(stream: Keystream, count: int, bits: int) -> NDArray[np.int64]:
    """`count` independent numbers N_Z(0, 4^bits), 0 <= bits <= 24. About 20 bytes of words each."""
    assert 0 <= bits <= FINEST
    found, have = np.empty(count, np.int64), 0
    while have < count:
        some = _candidates(stream, int(1.03 * (count - have)) + 64, bits)[: count - have]
        found[have : have + len(some)] = some
        have += len(some)
    return found


def _candidates(stream: Keystream, count: int, bits: int) -> NDArray[np.int64]:
    """What is left of `count` proposals."""
    coarse = min(_COARSE, bits)
    width = 1 << (bits - coarse)
    word = stream.words(count)
    strip = _strips(stream, word, coarse)
    place = (word & np.uint64(width - 1)).view(np.int64)  # below bit 20
    negative = (word & np.uint64(1 << 47)).astype(bool)
    y = strip * width
    numerator = (y + y + place) * place
    y += place
    kept = _bernoulli_exp(stream, numerator.view(np.uint64) << np.uint64(63 - 2 * bits))
    kept &= (y > 0) | ~negative
    np.negative(y, out=y, where=negative)
    return y[kept]


def _bernoulli_exp(stream: Keystream, gamma: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Algorithm 1: true with probability exp(-gamma / 2^64), for multiples of 2^15 below 2^64.

    k = 1, 2, ... while Bernoulli(gamma / k) says yes; true if the last k, the first no, is odd.
    """
    true, k = np.ones(len(gamma), bool), 1
    going = np.flatnonzero(stream.words(len(gamma)) < gamma)
    while len(going):
        true[going] ^= True
        k += 1
        # uniform in [0, k 2^(64 - j)) with k <= 2^j, against gamma / 2^j, which is a whole number
        j = (k - 1).bit_length()
        assert j <= 63 - 2 * FINEST  # k = 2^15 is reached with probability 1 / (2^15 - 1)!
        word = stream.words(len(going))
        while len(late := np.flatnonzero(word > np.uint64((k << (64 - j)) - 1))):
            word[late] = stream.words(len(late))
        going = going[word < gamma[going] >> np.uint64(j)]
    return true


def _strips(stream: Keystream, word: NDArray[np.uint64], coarse: int) -> NDArray[np.int64]:
    """V of every word, by inversion. Words whose lower bits took part are replaced by fresh ones:

    so that the lower 48 bits are uniform whatever V is.
    """
    ends, guide = _tables(coarse)
    strip = guide[word >> np.uint64(64 - _GUIDE)].astype(np.int64)
    still = np.flatnonzero(strip == _OPEN)
    if len(still):
        exact = word[still]
        strip[still] = np.searchsorted(ends, exact)
        for i in np.flatnonzero(ends[strip[still]] == exact):  # 2^-57: 64 bits do not settle it
            strip[still[i]] = _decide(stream, int(exact[i]), coarse)
        word[still] = stream.words(len(still))
    return strip


@cache
def _tables(coarse: int) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Ends of the strips, floor(2^64 P(V <= v)), and the guide: first bits of a word -> V, or OPEN.

    A word below ends[v] is in strip v or lower, above it is higher, and equal is undecided.
    """
    floors = [int(p * 2**64) for p in _cumulative(coarse, 64)]
    ends = np.array([*(f for f in floors if f < 2**64 - 1), 2**64 - 1], np.uint64)
    low = np.arange(1 << _GUIDE, dtype=np.uint64) << np.uint64(64 - _GUIDE)
    first = np.searchsorted(ends, low)
    last = np.searchsorted(ends, low + np.uint64((1 << (64 - _GUIDE)) - 1), side="right")
    return ends, np.where(first == last, first, _OPEN).astype(np.uint8)


def _decide(stream: Keystream, word: int, coarse: int) -> int:
    """V of a word that lies on an end: fetch more bits until they settle it."""
    bits = 64
    while True:
        bits, word = bits + 64, word << 64 | int(stream.words(1)[0])
        ends = _cumulative(coarse, bits)
        with localcontext(prec=bits // 2 + 20):
            low, high = Decimal(word) / 2**bits, Decimal(word + 1) / 2**bits
            error = Decimal(2) ** -(bits + 16)
            if low > ends[_LAST]:
                raise ArithmeticError("a number of more than 16 standard deviations: draw again")
            for strip in range(_LAST + 1):
                below = ends[strip - 1] if strip else Decimal(-1)
                if below + error < low and high < ends[strip] - error:
                    return strip


@cache
def _cumulative(coarse: int, bits: int) -> list[Decimal]:
    """P(V <= v) for v = 0, 1, ..., each with an error below 2^-(bits + 16)."""
    with localcontext(prec=bits // 2 + 20):  # digits: bits / 3 would not leave a margin
        weights: list[Decimal] = []
        while not weights or weights[-1] > Decimal(2) ** -(bits + 32) or len(weights) <= _LAST + 1:
            weights.append((Decimal(-(len(weights) ** 2)) / (2 << (2 * coarse))).exp())
        total, sums = sum(weights), [Decimal(0)]
        for weight in weights:
            sums.append(sums[-1] + weight)
        return [one / total for one in sums[1:]]
