"""Box and Muller's formula, on real words and on the farthest ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from steelyard.filters.box_muller import BoxMuller
from steelyard.filters.keystream import Keystream


class Words:
    """A keystream of chosen words."""

    def __init__(self, *values: int):
        self.values = values

    def fill(self, out: np.ndarray[Any, Any]) -> None:
        out[...] = np.resize(np.array(self.values, out.dtype), len(out))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_box_muller_of_the_words(dtype):
    """Against the header's formula in 80-bit floating point (x86) or float64, on real words."""
    size, bits = 1000, 8 * np.dtype(dtype).itemsize
    found = BoxMuller(size, np.dtype(dtype)).draw(Keystream("0" * 64, "a"), size, 0.7)
    words = np.empty(size, f"u{bits // 8}")
    Keystream("0" * 64, "a").fill(words)
    b = words[:500].astype(np.longdouble)
    c = words[500:].view(f"i{bits // 8}").astype(np.longdouble)
    r = 0.7 * np.sqrt(-2 * np.log((b + 0.5) / 2.0**bits))
    angle = np.longdouble(math.pi) * c / 2.0 ** (bits - 1)
    wanted = np.concatenate([r * np.cos(angle), r * np.sin(angle)])
    assert found.dtype == dtype
    assert np.abs(found - wanted).max() < 16 * np.finfo(dtype).eps


@pytest.mark.parametrize(("dtype", "bits", "end"), [(np.float32, 32, 6.77), (np.float64, 64, 9.50)])
def test_the_farthest_and_the_nearest(dtype, bits, end):
    """The smallest word is the longest radius, in every quarter of the circle; the largest is 0."""
    draw = BoxMuller(32, np.dtype(dtype)).draw
    words: Any = Words(*[0] * 16, *[0, 2 ** (bits - 2), 2 ** (bits - 1), 3 * 2 ** (bits - 2)] * 4)
    z = draw(words, 32, 1.0).reshape(2, 16)
    radius = np.hypot(*z)
    assert np.allclose(radius, math.sqrt(2 * (bits + 1) * math.log(2)), rtol=1e-6)
    assert end - 0.02 < radius.max() < end
    assert np.allclose(z[:, :4] / radius[:4], [[1, 0, -1, 0], [0, 1, 0, -1]], atol=1e-6)
    nothing: Any = Words(2**bits - 1)
    assert np.abs(draw(nothing, 32, 1.0)).max() < 1e-3


def test_numbers_of_any_count_and_no_more_words_than_needed():
    words = Keystream("0" * 64, "a")
    made = BoxMuller(100, np.dtype(np.float32))
    for count in (1, 8, 9, 100):
        before = words.position
        assert made.draw(words, count, 1.0).shape == (count,)
        assert words.position - before == 2 * math.ceil(count / 8)  # two halves of whole blocks
