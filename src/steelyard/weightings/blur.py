"""BLUR: forgetting first, retaining along what is left.

Reisizadeh, Jia, Bu, Vinzamuri, Ramakrishna, Chang, Cevher, Liu, Hong, "BLUR: a bi-level
optimization approach for LLM unlearning", EACL 2026, arXiv 2506.08164. The paper and the code
project globally, over all parameters; so does this.

| symbol | here |
|---|---|
| f, r | gradients of the lower level (`lower`, it has priority) and of the upper one |
| gamma | multiple of f that the step keeps |
| xi | weight of f in u = r + xi f; that of r is 1 |
| P | diagonal of the optimizer's step, where metric = "optimizer" |

    upper  min R   s.t. w in argmin F  lower
    u  =  gamma f + r - (<f,r> / ||f||^2) f  =  r + xi f,      xi = gamma - <f,r> / ||f||^2
    one_sided       xi = max(0, xi)                           keeps the part of r that helps F
    norm="unit"     f / ||f|| and r / ||r|| in place of f and r
    metric          <f, P u> = gamma <f, P f>, P of the coming step: rows/adam_step.py
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from steelyard.weightings.ngdiff import TINY, checked_tiny, standing

TOLERANCE = 1e-3  # of xi, in the search along the optimizer's own step
MOST = 60  # evaluations of that search
FARTHEST = 10  # in (gamma + ||r||/||f||): its step is bounded, its second moments would remember


class Slopes(Protocol):
    """What the search asks of the coming optimizer step."""

    def slopes(self, low: int, weights: Sequence[float]) -> tuple[float, float, float, float]:
        """For the gradient u = sum_i weights_i g_i and f = g_low:  <f, P u>, <f, P f>, <f, step>,
        and how fast the last grows with the weight of f, at fixed P."""
        ...


@dataclass(frozen=True)
class Blur:
    """u = r + xi f. Two rows; `lower` names f ("retain" swaps the roles). On a bare Gram matrix the
    rows are retain, forget.

    Guarantees for SGD without momentum and decay: <f, u> = gamma ||f||^2 for every r, so F never
    rises to first order; one_sided: at least that. Scaling R scales the projected part only;
    scaling F by k multiplies the gamma term by k (norm="unit" takes both scales out). Both hold for
    the rows of the step: of small batches <f, r> is mostly noise.

    metric="optimizer" (Adam, AdamW; needs `Tasks(..., optimizer=optimizer)`): <f, P u> is at least
    gamma <f, P f>, and more by at most 0.001 (1 + |xi|) <f, P f> (but in Adam's first step, where
    it jumps), with P after the second moments have seen u; where momentum or weight decay would
    still make the step raise F, xi grows until it does not: <f, step> >= 0 for the real step, up to
    the rounding of the parameters. That step is predicted: nothing may change `.grad` or the
    optimizer's settings in between. It costs two or three passes over the parameters, more in
    Adam's very first steps.

    | case | behaviour |
    |---|---|
    | ||f|| at most `tiny` of ||r|| | u = r |
    | ||r|| at most `tiny` of ||f|| | u = gamma f, to `tiny`; norm="unit" leaves r out |
    | r parallel to f | u = gamma f |
    | gamma = 0 | pure projected descent on R; F constant to first order |
    | F without bound below (gradient ascent) | its priority ends in collapse: use NPO, or stop |
    | momentum and decay need xi beyond 10 (gamma + ||r|| / ||f||) | <f, P u> alone is kept, and a \
    UserWarning says so: Adam's second moments would remember so large a gradient |

    Raises ValueError for options that are none, other than two rows, or none called `lower`.
    """

    gamma: float = 1.0
    lower: str = "forget"
    norm: str | None = None
    one_sided: bool = False
    metric: str | None = None
    tiny: float = TINY

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma must be 0 or positive, found {self.gamma}")
        if self.norm not in (None, "unit"):
            raise ValueError(f'unknown norm {self.norm!r}: choose "unit" or None')
        if self.metric not in (None, "optimizer"):
            raise ValueError(f'unknown metric {self.metric!r}: choose "optimizer" or None')
        checked_tiny(self.tiny)

    def __call__(self, gram: Tensor) -> Tensor:
        """gram [2, 2] -> weights [2]."""
        return self.given(("retain", "forget"), gram)(gram)

    def given(self, names: Sequence[str], losses: Tensor) -> Callable[[Tensor], Tensor]:
        if self.metric is not None:
            raise ValueError(
                'metric="optimizer" reads the optimizer: give it as '
                "Tasks(parameters, Blur(...), optimizer=optimizer)"
            )
        low, up = self._places(names)
        return lambda gram: self._weights(gram, low, up, self._projected)

    def on_step(self, gram: Tensor, names: Sequence[str], step: Slopes) -> Tensor:
        """Weights in the metric of the coming step."""
        low, up = self._places(names)

        def xi(matrix: Tensor, size: Tensor) -> float:
            start = self._projected(matrix, size)
            ratio = math.sqrt(float(matrix[1, 1] / matrix[0, 0]))  # ||r|| / ||f||
            farthest = start + FARTHEST * (self.gamma + ratio)
            search = partial(self._search, step, low, up, size, start)
            found = search(farthest)
            if found is None:
                warnings.warn(
                    f"BLUR: no weight keeps momentum and weight decay from raising {self.lower!r} "
                    "in this step, so its metric alone decides: lower weight_decay or beta1",
                    stacklevel=2,
                )
                found = search(None)
            return start if found is None else found

        return self._weights(gram, low, up, xi)

    def _places(self, names: Sequence[str]) -> tuple[int, int]:
        if len(names) != 2 or self.lower not in names:
            raise ValueError(
                f"BLUR needs two rows, one of them {self.lower!r}; found {', '.join(names)}"
            )
        low = list(names).index(self.lower)
        return low, 1 - low

    def _weights(
        self, gram: Tensor, low: int, up: int, xi: Callable[[Tensor, Tensor], float]
    ) -> Tensor:
        """xi: from the Gram matrix of (f, r) [2, 2] and what f and r were multiplied by [2]."""
        if gram.shape != (2, 2):
            raise ValueError(f"BLUR weighs two rows, found {len(gram)}")
        norms, counts = standing(gram, self.tiny)
        order = [low, up]
        size = torch.ones(2, dtype=gram.dtype)  # of f, r
        if self.norm == "unit":
            size = torch.where(counts, 1 / norms, 0.0)[order]
        weights = torch.zeros(2, dtype=gram.dtype)
        weights[up] = size[1]
        if counts[low]:
            scaled = gram[order][:, order] * size[:, None] * size[None, :]
            weights[low] = size[0] * xi(scaled, size)
        return weights

    def _projected(self, gram: Tensor, size: Tensor) -> float:
        """xi of the Gram matrix of (f, r)."""
        xi = self.gamma - float(gram[0, 1] / gram[0, 0])
        return max(0.0, xi) if self.one_sided else xi

    def _search(
        self,
        step: Slopes,
        low: int,
        up: int,
        size: Tensor,
        xi: float,
        farthest: float | None,
    ) -> float | None:
        """An xi with <f, P u> >= gamma <f, P f> and <f, step> >= 0, hardly larger than needed; None
        where there is none up to `farthest` (None: no bound, and momentum and decay are let be).

        At fixed P both slopes are linear in xi and grow: so a Newton step with a small push, and
        halving where it leaves the bracket. P moves too; what is returned has been looked at.
        """
        lower, upper, reach = -math.inf, math.inf, 1.0
        a, b = float(size[0]), float(size[1])
        weights = [0.0, 0.0]
        for _ in range(MOST):
            weights[low], weights[up] = a * xi, b
            along, own, real, rate = step.slopes(low, weights)
            if not (own > 0 and rate > 0):  # nothing of f moves: every xi is as good
                upper = min(upper, xi)
                break
            # u = b g_up + a xi g_low, and slopes are of g_low itself
            short = self.gamma - along / (a * own)  # xi lacks so much
            if farthest is not None:
                short = max(short, -real / (a * rate))
            lower, upper = (xi, upper) if short > 0 else (lower, xi)
            slack = TOLERANCE * (1 + abs(xi))
            if upper < math.inf and (-slack <= short <= 0 or upper - lower <= slack / 10):
                break
            reach *= 2 if upper == math.inf else 1  # still short: go farther every time
            following = xi + (short * reach / 2 if short > 0 else short) + slack / 2
            inside = lower < following < upper
            xi = following if inside else (lower + upper) / 2
            if farthest is not None and xi > farthest:
                return None
        return None if upper == math.inf else max(0.0, upper) if self.one_sided else upper
