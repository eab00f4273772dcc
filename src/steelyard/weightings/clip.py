"""Clipping: every row is weighted from its own norm, so the weighted sum has a sensitivity.

| rule | C(||g||) | source |
|---|---|---|
| `FlatClip` | min(1, R / ||g||) | Abadi et al. 2016, arXiv 1607.00133, Algorithm 1 |
| `AutoClip` (AUTO-S) | R / (||g|| + zeta), zeta = 0.01 | Bu et al. 2023, arXiv 2206.07136 |
| `AutoClip(stability=0)` (AUTO-V) | R / ||g|| | the same, AUTO-V |
| `NormalizedClip` | R / (r + ||g||), r of the order of ||g|| | Yang et al. 2022, arXiv 2206.13033 |
| `GlobalClip` | 1 if ||g|| <= R else 0 | Bu et al. 2023, arXiv 2106.07830 |

Guarantee of all: C(||g||) * ||g|| <= R for every finite norm, so adding or removing one sample
moves the sum by at most R. C(0) is finite (AUTO-V: 0). A norm that is not finite is the engine's
error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALLEST = 1e-18  # the square of a smaller norm is no normal float32: such a row counts as zero


@dataclass(frozen=True)
class _Bounded:
    bound: float = 1.0

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise ValueError(f"the clipping bound must be positive, found {self.bound}")

    def with_bound(self, bound: float):
        return replace(self, bound=bound)


@dataclass(frozen=True)
class FlatClip(_Bounded):
    """C = min(1, R / ||g||). `bound=math.inf` leaves every row as it is (no privacy)."""

    def __call__(self, norms: Tensor) -> Tensor:
        return (self.bound / norms).clamp(max=1.0)


@dataclass(frozen=True)
class AutoClip(_Bounded):
    """C = R / (||g|| + stability): AUTO-S, or AUTO-V with `stability=0` (a zero row stays zero).

    R only scales the learning rate of SGD, and drops out of adaptive optimizers.
    """

    stability: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.isinf(self.bound):
            raise ValueError(
                "automatic clipping needs a finite bound, found inf: use flat clipping"
            )
        if self.stability != 0 and not 1e-12 <= self.stability < math.inf:
            raise ValueError(f"stability must be 0, or 1e-12 and more, found {self.stability}")

    def __call__(self, norms: Tensor) -> Tensor:
        weights = self.bound / (norms + self.stability)
        return torch.where(norms >= SMALLEST, weights, 0.0) if self.stability == 0 else weights


@dataclass(frozen=True)
class NormalizedClip(AutoClip):
    """C = R / (r + ||g||): normalised gradients; the regulariser r keeps small ones small."""

    stability: float = 0.1


@dataclass(frozen=True)
class GlobalClip(_Bounded):
    """C = 1 if ||g|| <= R else 0: large rows are left out rather than shrunk."""

    def __call__(self, norms: Tensor) -> Tensor:
        return (norms <= self.bound).to(norms.dtype)


CLIPS = {
    "flat": FlatClip,
    "auto-s": AutoClip,
    "auto-v": lambda bound=1.0: AutoClip(bound, stability=0.0),
    "normalized": NormalizedClip,
    "global": GlobalClip,
}


def parse_clip(text: str) -> FlatClip | AutoClip | GlobalClip:
    """A clipping rule from `name` or `name:R`, for example `auto-s` or `flat:0.5`.

    Raises ValueError when the name is unknown or R is not a positive number.
    """
    name, _, bound = text.partition(":")
    if name not in CLIPS:
        raise ValueError(f"unknown clipping {name!r}: choose one of {', '.join(CLIPS)}")
    try:
        return CLIPS[name](float(bound)) if bound else CLIPS[name]()
    except ValueError as error:
        reason = str(error) if "must" in str(error) or "needs" in str(error) else "not a number"
        raise ValueError(f"clipping {text!r}: {reason}; write for example {name}:1.0") from None
