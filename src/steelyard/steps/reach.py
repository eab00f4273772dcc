"""What to do when a parabola is not believed: reach farther, nearer, grow or shrink the rate.

| symbol | here |
|---|---|
| h | `radius`: probes are stretched by it |
| a, b | curvature and slope of the rejected fit; se: their standard errors |
| booting | in the bootstrap phase: the rate may be off by orders of magnitude |

    booting, h = 1, every probe above y(0)      the step is far too long: back to x = 0, rates / 10
    |a| within the noise                        h grows, x 10 (booting) or x 2, up to 10^4
      booting, b > 0 clear, y(c h) < y(0)       descent as far as was looked: rates x min(c h, 10)
    else, no parabola                           h shrinks, / 3 (booting) or / 2, down to 1
    b <= 0 or nan, `shrink_after` in a row      rates / 2      (b clearly < 0 where a is noise)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from steelyard.steps.quadratic import Points, Quadratic

WIDE = (0.1, 10.0)  # how far one fit may change the rates in the bootstrap phase
FARTHEST = 1e4  # steps


class Reaction(NamedTuple):
    multiple: float  # of the rates
    move: float | None  # where along the step to leave the parameters; None: where they are
    words: str


class Reach:
    """The radius of the probes and the run of uphill rejections: the state behind the reactions."""

    def __init__(self, shrink_after: int, least_snr: float):
        self._shrink_after, self._snr = shrink_after, least_snr
        self.radius, self.uphill = 1.0, 0

    def accepted(self, multiple: float) -> None:
        """The rates were multiplied: the same places in the next step's units."""
        self.uphill = 0
        self.radius = max(1.0, self.radius / multiple)

    def rejected(self, found: Points, q: Quadratic, *, booting: bool) -> Reaction:
        """found: of one direction and one loss, points in units of the rates."""
        x, y = found.x[:, 0], found.y[:, 0]
        a, se_a = float(q.a[0, 0]), float(q.se_A[0, 0, 0])
        b, se_b = float(q.b[0, 0]), float(q.se_b[0, 0])
        noise, readable = self._snr * float(q.sigma[0]), bool(np.isfinite(y[0]))
        descent = y[x != 0] <= y[0] + noise  # False for nan
        if booting and readable and self.radius == 1 and not descent.any():
            self.uphill = 0
            words = "the loss rises on both sides: step taken back, rates / 10"
            return Reaction(WIDE[0], 0.0, words)
        multiple, words = 1.0, ""
        hidden = abs(a) < self._snr * se_a
        if hidden:
            farthest = int(x.argmax())
            if booting and b > self._snr * se_b and y[farthest] < y[0] - noise:
                multiple = min(max(float(x[farthest]), 1.0), WIDE[1])
                words = f"descent up to {x[farthest]:.3g} steps: rates x {multiple:.3g}"
            grown = self.radius * (WIDE[1] if booting else 2.0)
            self.radius = max(1.0, min(grown, FARTHEST) / multiple)
        elif math.isfinite(a):
            self.radius = max(1.0, self.radius / (3 if booting else 2))
        uphill = readable and not b > (-self._snr * se_b if hidden else 0)  # nan is uphill
        self.uphill = self.uphill + 1 if uphill else 0
        if self.uphill >= self._shrink_after:
            self.uphill = 0
            return Reaction(0.5, None, f"uphill {self._shrink_after} times: rates halved")
        return Reaction(multiple, multiple if multiple != 1 else None, words)
