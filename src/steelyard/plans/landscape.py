"""What noise costs a step, by the loss's curvature: decelerator, best batch, best learning rate.

Bu, Zhang, Hong, Zha, Karypis, "Pre-training Differentially Private Models with Limited Public
Data" (DPCP), NeurIPS 2024, arXiv 2402.18752, section 3.

| symbol | here |
|---|---|
| abs(G)^2, G'HG | `squared_gradient`, `gradient_curvature`: G mean gradient, H Hessian |
| tr(H Cov) | `spread_curvature`: Cov covariance of the per-sample gradients |
| tr(H), cbar = E[C_i], R | `trace`, `clip_factor`, `bound` |
| eta, B, sigma | `lr`, `batch`, `noise_multiplier` |

The expected second-order improvement of the loss by one private step; DP adds the last term alone:

    dF(eta, B) = eta cbar abs(G)^2
                 - eta^2/2 (cbar^2 G'HG + cbar^2 tr(H Cov)/B + sigma^2 R^2 tr(H)/B^2)

The paper has R = 1. The numbers are measured on public data: `steelyard.steps.curvature.measure`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from steelyard.plans.checks import real

BATCH = "give the batch in samples"


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """Public measurements of a loss around its parameters, and what they say of private steps.

    All in units of the loss; `*_error` are standard errors of the two random estimates, `samples`
    the public samples measured. With a preconditioner J, the numbers of the update J g: G'JG,
    G'J'HJG, tr(J'HJ Cov), tr(J'HJ).

    | case | improvement, learning rate | `best_private_batch` |
    |---|---|---|
    | the curvature term is 0 or negative | inf: the model sees no end of the descent | |
    | sigma = 0, or tr(H) <= 0 | as without noise, or better | 0 |
    | G'HG <= 0 < tr(H) | by the sum of the terms | inf |

    Raises ValueError for numbers that are not finite, and cbar or R that are not positive.
    """

    squared_gradient: float
    gradient_curvature: float
    spread_curvature: float
    trace: float
    clip_factor: float = 1.0
    bound: float = 1.0
    trace_error: float = 0.0
    spread_error: float = 0.0
    samples: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            above = 0.0 if field.name in ("clip_factor", "bound") else None
            fix = "measure other samples, or with another clipping rule"
            real(field.name, getattr(self, field.name), above=above, fix=fix)

    def decelerator(self, batch: float, noise_multiplier: float) -> float:
        """sigma^2 R^2 tr(H) / (B cbar^2): all that DP adds to the denominator. (Equation 8)"""
        batch = real("batch", batch, above=0.0, fix=BATCH)
        return self._noise(noise_multiplier) / batch

    def public_improvement(self, batch: float) -> float:
        """Best decrease of the loss per sample: abs(G)^4/2 / (B G'HG + tr(H Cov)). (Equation 7)"""
        return self._per_sample(batch, 0.0)

    def private_improvement(self, batch: float, noise_multiplier: float) -> float:
        """The same of a private step: the decelerator joins the denominator. (Equation 6)"""
        return self._per_sample(batch, self.decelerator(batch, noise_multiplier))

    def best_private_batch(self, noise_multiplier: float) -> float:
        """B*_DP = sqrt(sigma^2 R^2 tr(H) / (cbar^2 G'HG)), in samples.

        Maximises `private_improvement`, which at B*_DP equals `public_improvement` at 2 B*_DP
        (equation 9): the noise costs a factor 2 in batch.
        """
        noise, curvature = self._noise(noise_multiplier), self.gradient_curvature
        if noise <= 0:
            return 0.0
        return math.sqrt(noise / curvature) if curvature > 0 else math.inf

    def improvement(self, lr: float, batch: float, noise_multiplier: float) -> float:
        """dF(eta, B): the expected decrease of the loss in one private step of SGD."""
        lr = real("learning rate", lr, fix="use 0.1, say")
        c, curvature = self.clip_factor, self._curvature(batch, noise_multiplier)
        return lr * c * self.squared_gradient - lr**2 / 2 * c**2 * curvature

    def best_lr(self, batch: float, noise_multiplier: float) -> float:
        """eta* = abs(G)^2 / (cbar (G'HG + tr(H Cov)/B + sigma^2 R^2 tr(H)/(B cbar)^2))."""
        curvature = self._curvature(batch, noise_multiplier)
        return self.squared_gradient / (self.clip_factor * curvature) if curvature > 0 else math.inf

    def _noise(self, noise_multiplier: float) -> float:
        sigma = real("noise multiplier", noise_multiplier, fix="use 0 or more")
        if sigma < 0:
            raise ValueError(f"noise multiplier must not be negative, found {sigma:g}: use 1, say")
        return (sigma * self.bound / self.clip_factor) ** 2 * self.trace

    def _curvature(self, batch: float, noise_multiplier: float) -> float:
        added = self.decelerator(batch, noise_multiplier)
        return self.gradient_curvature + (self.spread_curvature + added) / batch

    def _per_sample(self, batch: float, added: float) -> float:
        batch = real("batch", batch, above=0.0, fix=BATCH)
        below = batch * self.gradient_curvature + self.spread_curvature + added
        return self.squared_gradient**2 / 2 / below if below > 0 else math.inf
