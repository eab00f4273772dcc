"""Gradient ascent in which every token has a weight of its own, from how likely it still is.

WGA: Wang et al. 2025, "Rethinking LLM unlearning objectives: a gradient perspective and go beyond"
(ICLR), arXiv:2502.19301. SatImp: Yang et al. 2025, "Exploring criteria of loss reweighting to
enhance LLM unlearning" (ICML), arXiv:2505.11953.

| symbol | variable |
|---|---|
| p_t, NLL_t | `p`, `nll` [B, T-1] |
| q | `WGA.power` |
| q1, q2 | `SatImp.saturation`, `SatImp.importance` |
| sg | `.detach()` |

The weights carry no gradient. So the step is that of another loss, which is bounded although -NLL
is not: for WGA the token mean of p_t^q / q, for WGA with q = 1 the mean probability itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from steelyard.objectives.answers import answer_nll
from steelyard.objectives.reference import Reference
from steelyard.objectives.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class WGA:
    """F = -mean over samples of the token mean of sg(p_t^power) NLL_t.

    power 0 is gradient ascent; larger ones let go of tokens that have become unlikely.
    The value lies in [-1 / (e power), 0] and rises again towards 0 once p_t < exp(-1 / power),
    although every step lowers p_t: read the probabilities, not this value.
    Public code differs: the mean is over the tokens of the batch, not per sample first; power is
    called beta there.
    Raises: ValueError for a negative power.
    """

    power: float = 1.0

    needs_reference: ClassVar[bool] = False
    needs_pair: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _not_negative("power", self.power)

    def per_sample(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        """[B], in weighted nats per token, not positive."""
        nll, _, lengths = answer_nll(model, tokens)
        p = (-nll.detach()).exp()
        return -(p**self.power * nll).sum(1) / lengths

    def __call__(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        return self.per_sample(model, tokens, reference).mean()


@dataclass(frozen=True, kw_only=True)
class SatImp:
    """F = -mean over samples of the token mean of sg(p_t^saturation (1 - p_t)^importance) NLL_t.

    saturation lets go of what is forgotten already, importance of what is known almost surely (so
    a perfectly memorised token has weight 0). The value lies in [-1 / (e saturation), 0] for
    saturation > 0. Public code differs: the mean is over the tokens of the batch, the exponents are
    called beta1 and beta2; its sources disagree on the weights, 1 (forget) and 0.1 (retain) in its
    README, the reverse in its settings.
    Raises: ValueError for a negative exponent.
    """

    saturation: float = 5.0
    importance: float = 1.0

    needs_reference: ClassVar[bool] = False
    needs_pair: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _not_negative("saturation", self.saturation)
        _not_negative("importance", self.importance)

    def per_sample(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        """[B], in weighted nats per token, not positive."""
        nll, _, lengths = answer_nll(model, tokens)
        p = (-nll.detach()).exp().clamp(max=1)  # rounding must not make 1 - p negative
        return -(p**self.saturation * (1 - p) ** self.importance * nll).sum(1) / lengths

    def __call__(
        self, model: nn.Module, tokens: Tokens, reference: Reference | None = None
    ) -> Tensor:
        return self.per_sample(model, tokens, reference).mean()


def _not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name}={value}: use 0 or more")
