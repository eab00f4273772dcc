"""Normal numbers from random words: Box and Muller 1958, A note on the generation of random normal

deviates. Two words b, c of w bits (32 for float32, 64 for float64) make two numbers:

    u = (b + 1/2) / 2^w,   a = 2 pi c / 2^w  (c signed),   r = sqrt(-2 log u),   r cos a,  r sin a

Ends at sqrt(2 (w + 1) log 2): 6.76 standard deviations in float32, 9.49 in float64.

Everything runs in the calling thread: so the result does not depend on the number of threads, and
no thread waits for another. For these functions NumPy's loops in one thread are as fast as torch's
in two.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelyard.filters.keystream import Keystream


class BoxMuller:
    """Normal numbers from cipher words, in scratch memory that is used again and again."""

    def __init__(self, size: int, dtype: np.dtype[Any]):
        assert dtype.itemsize in (4, 8)  # the rows hand on float32 or float64
        self.size, half = size, -(-size // 8) * 4  # two halves, each of whole blocks
        word = np.dtype(f"u{dtype.itemsize}")
        self._words, self._r = np.empty(2 * half, word), np.empty(half, dtype)
        self._z = np.empty(2 * half, dtype)
        self._unit = dtype.type(2.0 ** -(8 * dtype.itemsize))  # a word's worth of [0, 1)

    def draw(self, words: Keystream, count: int, scale: float) -> NDArray[Any]:
        """`count` <= size numbers N(0, scale^2): a view of the scratch, until the next draw."""
        half = -(-count // 8) * 4
        bits, r, z = self._words[: 2 * half], self._r[:half], self._z[: 2 * half]
        words.fill(bits)
        np.copyto(r, bits[:half], casting="unsafe")
        r += r.dtype.type(0.5)
        r *= self._unit  # in (0, 1]
        np.log(r, out=r)
        r *= r.dtype.type(-2.0)
        np.sqrt(r, out=r)
        r *= r.dtype.type(scale)
        angle, sine = z[:half], z[half:]
        signed = bits[half:].view(f"i{bits.itemsize}")
        np.copyto(angle, signed, casting="unsafe")
        angle *= self._unit * r.dtype.type(2 * math.pi)  # in [-pi, pi]: precise around 0
        np.sin(angle, out=sine)
        np.cos(angle, out=angle)
        z[:half] *= r
        z[half:] *= r
        return z[:count]
