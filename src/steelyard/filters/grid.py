"""Gaussian noise on a grid: whole numbers are released, so there are no low bits to attack.

    released = gamma (round(clipped mean / gamma) + y),   y ~ N_Z(0, s^2) each,   s = 2^bits

Discrete Gaussian: Canonne, Kamath, Steinke 2020, arXiv 2004.00010. The attack it answers: Mironov
2012, On significance of the least significant bits for differential privacy.

| symbol | here | meaning |
|---|---|---|
| sigma | `noise_multiplier` | what the accountant counts |
| Delta | `gradient.sensitivity` | R / B |
| d | `numbers` | elements of all tensors together |
| gamma | `spacing(Delta, d)` | the grid: s gamma = sigma Delta' |
| Delta' | | Delta (1 + slack) + gamma sqrt(d) |

Two gradients that one sample moves by at most Delta (1 + slack) are at most Delta' apart on the
grid: rounding moves each by at most gamma sqrt(d) / 2. So they differ by whole numbers k with
|k|_2 <= Delta' / gamma = s / sigma, and the discrete Gaussian of scale s has, for shifts by whole
numbers, the Renyi divergences of the continuous one. What is proven, what assumed: docs/noise.md.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from steelyard.filters.discrete import FINEST, discrete_gaussian
from steelyard.filters.gaussian import checked_multiplier, checked_sensitivity
from steelyard.filters.keystream import Keystream, pieces, refuse_foreign
from steelyard.generators import fresh_root
from steelyard.types import Clipped, Noised

CHUNK = 32_768  # numbers: about 60 bytes of scratch for each
COARSEST = 20  # bits: below, the difference to the continuous Gaussian is no longer negligible
LARGEST_PART = 0.01  # of the noise that may be due to rounding
_EXACT = 2.0**52  # whole numbers below, and sums of two, are exact in float64


class GridGaussian:
    """Mechanism with noise multiplier sigma on a grid of 2^bits steps per standard deviation.

    The noise is `1 + slack + gamma sqrt(d) / Delta` times that of `Gaussian(sigma)`: 0.1 % more as
    a rule. slack: part of the sensitivity that is kept free for rounding inside the rows, which
    add up in float32.

    sigma = 0 adds nothing and rounds nothing, as in `Gaussian`. Tensors on other devices are
    noised on the CPU. Raises ValueError for sigma negative or not finite, bits not in 20..24, slack
    not in [0, 1].
    """

    def __init__(
        self,
        noise_multiplier: float,
        *,
        bits: int = FINEST,
        slack: float = 1e-3,
        seed: int | None = None,
    ):
        if bits not in range(COARSEST, FINEST + 1):
            raise ValueError(f"bits must be in {COARSEST}..{FINEST}, found {bits}: leave it out")
        if not 0 <= slack <= 1:
            raise ValueError(f"slack must be in [0, 1], found {slack}: leave it out")
        self.noise_multiplier = checked_multiplier(noise_multiplier)
        self.bits, self.slack = int(bits), float(slack)
        self.seeded = seed is not None
        self._root = fresh_root(seed)
        self._words = Keystream(self._root, "grid cpu")

    def spacing(self, sensitivity: float, numbers: int) -> float:
        """gamma = sigma Delta (1 + slack) / (s - sigma sqrt(d)), in the gradient's own unit.

        Raises ValueError where rounding would need more than 1 % of the noise.
        """
        if not checked_sensitivity(sensitivity) > 0:
            raise ValueError(f"a grid needs a positive sensitivity, found {sensitivity}")
        s, rounding = 2.0**self.bits, self.noise_multiplier * math.sqrt(numbers)
        if rounding > LARGEST_PART * s:
            finer = f"bits={FINEST}, " if self.bits < FINEST else ""
            raise ValueError(
                f"a grid of {self.bits} bits is too coarse for {numbers:,} numbers at noise "
                f"multiplier {self.noise_multiplier:g}: rounding would take "
                f"{rounding / s:.1%} of the noise, at most 1 %; use {finer}fewer trained "
                "parameters, or Gaussian"
            )
        return self.noise_multiplier * sensitivity * (1 + self.slack) / (s - rounding)

    def privatise(self, gradient: Clipped) -> Noised:
        """Rounds and adds the noise in place; hands the tensors on as a released gradient.

        Raises ValueError, half done, for a gradient past 2^52 steps of the grid: it cannot come
        from clipped rows.
        """
        if self.noise_multiplier > 0:
            numbers = sum(tensor.numel() for tensor in gradient.tensors)
            gamma = self.spacing(gradient.sensitivity, numbers)
            hosts = [tensor.detach().cpu() for tensor in gradient.tensors]  # itself, on a CPU
            for count, views in pieces(hosts, CHUNK):
                noise, start = discrete_gaussian(self._words, count, self.bits), 0
                for view in views:
                    steps = np.rint(view.astype(np.float64) / gamma)
                    if not np.abs(steps).max() < _EXACT:  # NaN included
                        raise ValueError(
                            f"the gradient has a number of {np.abs(steps).max():.3g} steps of the "
                            "grid, at most 2^52: it is not finite, or the noise is far too small"
                        )
                    steps += noise[start : start + len(view)]  # exact: the release itself
                    view[...] = steps * gamma
                    start += len(view)
            for tensor, host in zip(gradient.tensors, hosts, strict=True):
                if tensor.device.type != "cpu":
                    tensor.copy_(host)
        return Noised(gradient.tensors, gradient.sensitivity, self.noise_multiplier)

    def state_dict(self) -> dict[str, Any]:
        """Private: whoever holds it can draw all noise again. Keep it with the checkpoint."""
        return {
            "kind": f"grid, bits {self.bits}, slack {self.slack:g}",
            "root": self._root,
            "seeded": self.seeded,
            "position": self._words.position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was saved, bit for bit. Raises ValueError for any other state."""
        refuse_foreign(state, self.state_dict(), "GridGaussian")
        self._root, self.seeded = state["root"], state["seeded"]
        self._words = Keystream(self._root, "grid cpu", state["position"])
